"""The split of the handwritten digits."""

import builtins

import numpy as np
import pytest
from sklearn.datasets import load_digits

from torchrelabel.demo.digits import load_digits_split


def test_no_digit_is_for_training_and_for_testing():
    training, test = load_digits_split()
    assert not set(training.sources.tolist()) & set(test.sources.tolist())


def test_every_digit_of_scikit_learn_is_used():
    training, test = load_digits_split()
    assert sorted([*training.sources.tolist(), *test.sources.tolist()]) == list(range(1797))


def test_ink_and_labels_are_those_of_their_source():
    _, test = load_digits_split()
    original = load_digits()
    np.testing.assert_array_equal(test.ink * 16, original.images[test.sources])
    np.testing.assert_array_equal(test.labels, original.target[test.sources])


def test_a_missing_scikit_learn_is_named_with_the_pip_command(monkeypatch):
    original = builtins.__import__

    def without_sklearn(name, *args, **kwargs):
        if name.startswith("sklearn"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_sklearn)
    with pytest.raises(ModuleNotFoundError, match=r'scikit-learn.*pip install "torchrelabel\[demo\]"'):
        load_digits_split()
