"""The handwritten digits that the scenes are made of, split before any scene is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

TEST_SHARE = 0.3
SPLIT_SEED = 0


@dataclass(frozen=True)
class Digits:
    """Handwritten digits of one split.

    Attributes:
        ink: How much ink a pen left, ``[N, 8, 8]``, 0 to 1.
        labels: Which digit it is, ``[N]``, 0 to 9.
        sources: Index of each digit in scikit-learn's ``load_digits``, ``[N]``.
    """

    ink: NDArray[np.float64]
    labels: NDArray[np.int64]
    sources: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


def load_digits_split() -> tuple[Digits, Digits]:
    """Split scikit-learn's 1,797 digits into those for training and those for testing.

    No digit is in both, so a test scene never shows a digit that a model has seen.

    Returns:
        The training digits and the test digits.

    Raises:
        ModuleNotFoundError: If scikit-learn is missing, naming the pip command.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise missing_extra("scikit-learn", error) from error
    bunch: Any = load_digits()
    order = np.random.default_rng(SPLIT_SEED).permutation(len(bunch.target))
    first_training = round(TEST_SHARE * len(order))

    def take(indices: NDArray[np.int64]) -> Digits:
        return Digits(bunch.images[indices] / 16.0, bunch.target[indices].astype(np.int64), indices)

    return take(order[first_training:]), take(order[:first_training])


def missing_extra(package: str, error: ModuleNotFoundError) -> ModuleNotFoundError:
    """Say which package the demo lacks, with the command that brings it."""
    return ModuleNotFoundError(
        f'the demo needs {package}, which is not installed. Install it with: pip install "torchrelabel[demo]"',
        name=error.name,
    )
