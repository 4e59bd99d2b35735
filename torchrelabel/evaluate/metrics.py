"""The measures themselves, from predictions and right answers to one number; docs/evaluating.md has the formulas."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence

import torch
from torch import Tensor

CALIBRATION_BINS = 15


def top_k(top: Tensor, labels: Sequence[int], k: int) -> float:
    """The share of images whose class is among the first k.

    Args:
        top: Classes, the best first, ``[N, K]``; -1 is nobody's class.
        labels: N classes.
        k: At most K.
    """
    return _mean((top[:, :k] == torch.tensor(labels)[:, None]).any(1).tolist())


def in_set(top: Tensor, right: Sequence[Collection[int]], k: int = 1) -> float:
    """The share of images for which one of the first k classes is right.

    Args:
        top: Classes, the best first, ``[N, K]``.
        right: The right classes of each image; where there are none, no answer is right.
        k: At most K.

    Source: ReaL accuracy, Beyer et al. 2020, https://arxiv.org/abs/2006.07159, which leaves images without right
    classes out before.
    """
    return _mean([any(each in classes for each in row[:k]) for row, classes in zip(top.tolist(), right, strict=True)])


def in_set_per_class(top: Tensor, right: Sequence[Collection[int]], labels: Sequence[int]) -> float:
    """The mean over classes of `in_set` over the images labelled so.

    Args:
        top: Classes, the best first, ``[N, K]``.
        right: The right classes of each image.
        labels: The class that each image is labelled as.

    Source: multi-label accuracy, Shankar et al. 2020, https://proceedings.mlr.press/v119/shankar20c.html.
    """
    hits: defaultdict[int, list[bool]] = defaultdict(list)
    for first, classes, label in zip(top[:, 0].tolist(), right, labels, strict=True):
        hits[label].append(first in classes)
    return _mean([_mean(each) for each in hits.values()])


def f1(predicted: Sequence[Collection[int]], right: Sequence[Collection[int]]) -> float:
    """The mean over images of ``2 |P & R| / (|P| + |R|)``.

    Args:
        predicted: P of each image, N sets of classes.
        right: R of each image, none of them empty.

    Source: ReaL-F1 as MILe's code computes it, Rajeswar et al. 2021, https://arxiv.org/abs/2111.12172.
    """
    pairs = zip(map(set, predicted), map(set, right), strict=True)
    return _mean([2 * len(p & r) / (len(p) + len(r)) for p, r in pairs])


def with_best(top: Tensor, above: Sequence[Collection[int]] | None) -> list[set[int]]:
    """The classes that count as predicted: the best one, and of sigmoids those above the threshold.

    Args:
        top: Classes, the best first, ``[N, K]``; empty sets where it is -1.
        above: Those above the threshold; None for softmax.
    """
    best = top[:, 0].tolist()
    more = above or [()] * len(best)
    return [set() if one < 0 else {one, *others} for one, others in zip(best, more, strict=True)]


def calibration_error(confidence: Tensor, hits: Tensor) -> float:
    """The expected calibration error, in 15 bins of equal width.

    Args:
        confidence: Probability of the predicted class, ``[N]``.
        hits: Whether it was right, ``[N]``.

    Raises:
        ImportError: If torchmetrics is missing, with the command.

    Source: Guo et al. 2017, https://arxiv.org/abs/1706.04599; computed by torchmetrics.
    """
    try:
        from torchmetrics.functional.classification import binary_calibration_error
    except ImportError:
        raise ImportError("Calibration needs torchmetrics: pip install 'torchrelabel[evaluate]'") from None
    # A probability above 1 by rounding would make torchmetrics take all of them for logits.
    return float(binary_calibration_error(confidence.clamp(0, 1), hits.int(), n_bins=CALIBRATION_BINS, norm="l1"))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")
