"""What label maps and batches of them are made of, and how these parts must fit together."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchrelabel.calibration import Calibration
from torchrelabel.store.header import SCORE_KINDS

__all__ = ["check_parts", "same", "yes_or_no"]


def yes_or_no(part: Any) -> str:
    return "no" if part is None else "yes"


def same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def check_parts(
    scores: Tensor,
    classes: Tensor,
    residual: Tensor | None,
    num_classes: int,
    score_kind: str,
    image_scores: Tensor | None,
    calibration: Calibration | None,
    *,
    batch: bool = False,
) -> None:
    """Raise if types or shapes disagree. Values are not looked at: on a GPU that would wait for it."""
    what, first = ("a batch of label maps", "B, ") if batch else ("a label map", "")
    if not scores.is_floating_point():
        raise TypeError(f"The scores of a label map are floating point, got {scores.dtype}.")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(
            f"The classes of a label map are integers, got {classes.dtype}. Indices kept as floating point are exact "
            f"only up to 2048 in half precision: convert them with .long() after checking that."
        )
    if scores.ndim != 3 + batch or 0 in scores.shape[-3:] or scores.shape != classes.shape:
        raise ValueError(
            f"Scores and classes of {what} have one shape [{first}K, h, w], "
            f"got {tuple(scores.shape)} and {tuple(classes.shape)}."
        )
    k, grid = scores.shape[-3], (*scores.shape[:-3], *scores.shape[-2:])
    if residual is not None and residual.shape != grid:
        raise ValueError(
            f"The residual of {what} has the shape of its grid, [{first}h, w] = {grid}, got {tuple(residual.shape)}."
        )
    if score_kind not in SCORE_KINDS:
        raise ValueError(f"score_kind is one of {', '.join(map(repr, SCORE_KINDS))}, got {score_kind!r}.")
    if num_classes < k:
        raise ValueError(f"A label map cannot keep {k} classes a cell out of {num_classes}.")
    if image_scores is not None:
        shape = (*scores.shape[:-3], num_classes)
        if not image_scores.is_floating_point() or image_scores.shape != shape:
            raise ValueError(
                f"The image_scores of {what} are floating point, [{first}C] = {shape}, got {image_scores.dtype} "
                f"{tuple(image_scores.shape)}."
            )
        if score_kind != "logit":
            raise ValueError(f"The image_scores of {what} are logits, and its score_kind is {score_kind!r}.")
    if calibration is not None and (image_scores is None or (residual is None and k < num_classes)):
        raise ValueError(f"The calibration of {what} needs its image_scores, and its residual unless K = C.")
