"""The measures, against answers worked out by hand and against torchmetrics."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from torchrelabel.evaluate import metrics

TOP = torch.tensor([[3, 1], [0, 2], [-1, -1], [2, 3]])


def test_top_k_counts_the_images_whose_class_is_among_the_first_k() -> None:
    assert metrics.top_k(TOP, [3, 2, 0, 1], 1) == 1 / 4
    assert metrics.top_k(TOP, [3, 2, 0, 1], 2) == 2 / 4


def test_a_class_of_minus_one_is_nobodys() -> None:
    assert metrics.top_k(torch.tensor([[-1]]), [0], 1) == 0


def test_an_answer_is_right_if_it_is_one_of_several() -> None:
    right = [{3, 9}, {1}, {0}, {3}]
    assert metrics.in_set(TOP, right) == 1 / 4
    assert metrics.in_set(TOP, right, 2) == 2 / 4
    assert metrics.in_set(TOP, [set()] * 4) == 0


def test_classes_count_alike_however_many_images_they_have() -> None:
    # Class 5: one of three right; class 6: the only one right.
    assert metrics.in_set_per_class(TOP, [{3}, {1}, {0}, {2}], [5, 5, 5, 6]) == (1 / 3 + 1) / 2


def test_f1_is_that_of_sets_averaged_over_images() -> None:
    # 2*1/(1+2); 2*1/(3+1); none predicted.
    assert metrics.f1([{1}, {1, 2, 3}, set()], [{1, 4}, {2}, {0}]) == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)


def test_the_best_class_is_predicted_even_where_no_sigmoid_passes_the_threshold() -> None:
    assert metrics.with_best(TOP, [(), (0, 7), (1,), ()]) == [{3}, {0, 7}, set(), {2}]
    assert metrics.with_best(TOP, None) == [{3}, {0}, set(), {2}]


def test_without_images_there_is_no_number() -> None:
    assert math.isnan(metrics.f1([], []))


def test_the_calibration_error_weighs_bins_by_their_images() -> None:
    pytest.importorskip("torchmetrics")
    # Bin .93-1: confidence .95, half of four right. Bin .53-.6: confidence .55, the only one right.
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.55])
    hits = torch.tensor([True, True, False, False, True])
    assert metrics.calibration_error(confidence, hits) == pytest.approx(4 / 5 * 0.45 + 1 / 5 * 0.45)


def test_a_probability_above_one_by_rounding_is_one() -> None:
    pytest.importorskip("torchmetrics")
    assert metrics.calibration_error(torch.tensor([1.0000001, 1.0]), torch.tensor([True, True])) == 0


def test_without_torchmetrics_the_command_that_brings_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.classification", None)
    with pytest.raises(ImportError, match=r"^Calibration needs torchmetrics: pip install 'torchrelabel\[evaluate\]'$"):
        metrics.calibration_error(torch.ones(1), torch.ones(1))


def test_accuracies_f1_and_calibration_are_those_of_torchmetrics() -> None:
    reference = pytest.importorskip("torchmetrics.functional.classification")
    scores = torch.randn(200, 9)
    labels = torch.randint(0, 9, (200,))
    top = scores.topk(5).indices
    for k in (1, 5):
        theirs = reference.multiclass_accuracy(scores, labels, 9, average="micro", top_k=k)
        assert metrics.top_k(top, labels.tolist(), k) == pytest.approx(float(theirs))
    theirs = reference.multiclass_accuracy(scores, labels, 9, average="macro")
    ours = metrics.in_set_per_class(top, [{label} for label in labels.tolist()], labels.tolist())
    assert ours == pytest.approx(float(theirs))
    confidence, first = scores.softmax(1).max(1)
    theirs = reference.multiclass_calibration_error(scores, labels, 9, n_bins=15, norm="l1")
    assert metrics.calibration_error(confidence, first == labels) == pytest.approx(float(theirs), rel=1e-5)
    multi_hot = torch.rand(200, 9) > 0.6
    multi_hot[:, 0] |= ~multi_hot.any(1)
    predicted = [set(row.nonzero()[:, 0].tolist()) for row in scores > 0]
    right = [set(row.nonzero()[:, 0].tolist()) for row in multi_hot]
    samples = [
        reference.binary_f1_score((row > 0).int(), truth.int()) for row, truth in zip(scores, multi_hot, strict=True)
    ]
    assert metrics.f1(predicted, right) == pytest.approx(float(torch.stack(samples).mean()), rel=1e-5)
