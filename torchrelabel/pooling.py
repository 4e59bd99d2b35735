"""LabelPooling: the soft label of what a view shows, pooled from a label map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from torchrelabel.label_map import LabelMap, LabelMapBatch

__all__ = ["LabelPooling", "dense_scores", "pool_dense"]

_FILLS = ("zero", "residual")
_ACTIVATIONS = ("auto", "softmax", "argmax", None)


class LabelPooling(nn.Module):
    """Pool label maps over the part of the image in view, and turn the pooled scores into a soft label.

    RoIAlign is linear in the map and separable in x and y. One ``roi_align`` call for the whole batch gives the weight
    of every row of cells and a second one that of every column, their product is the weight of each cell, and one
    ``scatter_add`` of the weighted scores gives the pooled ones: the dense map of ``C`` channels is never built.

    Args:
        output_size: 1 for one label an image, or ``(gh, gw)`` for a label for each token of a grid on the canvas,
            flipped as the view is.
        fill: What the classes not kept in a cell count as. ``"zero"``: logit 0, the paper's method. ``"residual"``:
            they share the cell's residual equally, so that no probability is invented.
        temperature: Divides the pooled logits before the softmax. One is the paper's. Probabilities have none.
        activation: ``"auto"``: softmax for logits, and probabilities pooled as they are and normalised to sum to one.
            ``"softmax"`` demands logits. ``"argmax"``: a one-hot label (the paper's "localized single-label"). None:
            the pooled scores.

    Shape:
        - Input: a :class:`LabelMap`, or a :class:`LabelMapBatch` of ``B`` maps, on any device.
        - Output: ``[C]`` or ``[B, C]``, with a grid ``[C, gh, gw]`` or ``[B, C, gh, gw]``, float32.

    A view that reaches outside the image pools only the part inside. One that lies outside altogether shows nothing,
    and every class gets the same.

    Raises:
        ValueError: If an argument has an unknown value, ``fill="residual"`` meets maps without residual, or a
            temperature or ``activation="softmax"`` meets probabilities.

    Example:
        >>> pooling = LabelPooling()
        >>> soft_label = pooling(label_map)  # [C], sums to one

    Source: LabelPooling, Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.2 and algorithm A1. Cells are
    sampled at their centres (``aligned=True``), where the authors subtract half a cell by hand.
    """

    def __init__(
        self,
        output_size: int | Sequence[int] = 1,
        fill: str = "zero",
        temperature: float = 1.0,
        activation: str | None = "auto",
    ) -> None:
        super().__init__()
        self.output_size = _output_size(output_size)
        if fill not in _FILLS:
            raise ValueError(f"fill is one of {', '.join(map(repr, _FILLS))}, got {fill!r}.")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(map(repr, _ACTIVATIONS))}, got {activation!r}.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}.")
        self.fill = fill
        self.temperature = float(temperature)
        self.activation = activation

    def forward(self, label_maps: LabelMap | LabelMapBatch) -> Tensor:
        """See the class."""
        scores, classes, residual, view_boxes = _batched(label_maps)
        pooled = self.pool(scores, classes, residual, view_boxes, label_maps.num_classes, label_maps.score_kind)
        label = self.activate(pooled, label_maps.score_kind)
        return label if isinstance(label_maps, LabelMapBatch) else label[0]

    def pool(
        self,
        scores: Tensor,
        classes: Tensor,
        residual: Tensor | None,
        view_boxes: Tensor,
        num_classes: int,
        score_kind: str = "logit",
    ) -> Tensor:
        """The pooled scores before the activation, from the parts of a batch.

        Args:
            scores: ``[B, K, h, w]``.
            classes: ``[B, K, h, w]``.
            residual: ``[B, h, w]`` or None.
            view_boxes: ``[B, 4]``, xyxy, fractions of the annotated images.
            num_classes: ``C``.
            score_kind: ``"logit"`` or ``"probability"``.

        Returns:
            ``[B, C]``, or ``[B, C, gh, gw]`` for a grid, float32.

        Raises:
            ValueError: If ``fill="residual"`` and there is no residual.
        """
        b, k, h, w = scores.shape
        rows, columns = _cell_weights(view_boxes, (h, w), self.output_size)  # [B, gh, h], [B, gw, w]
        tokens = self.output_size[0] * self.output_size[1]
        # [B, gh, gw, h, w]: how much each cell counts for each token.
        weights = rows[:, :, None, :, None] * columns[:, None, :, None, :]
        scores = scores.float()
        pooled = scores.new_zeros(b, tokens, num_classes)
        if self.fill == "residual" and k < num_classes:
            base = _share_of_residual(residual, num_classes - k, score_kind)  # [B, h, w]
            pooled = pooled + (weights * base[:, None, None]).sum((3, 4)).reshape(b, tokens, 1)
            scores = scores - base[:, None]
        weighted = weights.reshape(b, tokens, 1, h * w) * scores.reshape(b, 1, k, h * w)
        index = classes.long().reshape(b, 1, k * h * w).expand(b, tokens, k * h * w)
        pooled = pooled.scatter_add(2, index, weighted.reshape(b, tokens, k * h * w))
        if self.output_size == (1, 1):
            return pooled[:, 0]
        return pooled.transpose(1, 2).reshape(b, num_classes, *self.output_size)

    def activate(self, pooled: Tensor, score_kind: str = "logit") -> Tensor:
        """Turn pooled scores, ``[B, C]`` or ``[B, C, gh, gw]``, into labels of the same shape.

        Raises:
            ValueError: If a temperature or ``activation="softmax"`` is asked of probabilities.
        """
        if score_kind == "probability" and (self.temperature != 1.0 or self.activation == "softmax"):
            raise ValueError(
                f"temperature={self.temperature} and activation={self.activation!r} are for logits, and this map holds "
                f"probabilities: use temperature=1.0 and activation='auto', which normalises them."
            )
        if self.activation is None:
            return pooled / self.temperature
        if self.activation == "argmax":
            best = pooled.argmax(1, keepdim=True)
            return torch.zeros_like(pooled).scatter(1, best, 1.0)
        if score_kind == "logit":
            return (pooled / self.temperature).softmax(1)
        total = pooled.sum(1, keepdim=True)
        return torch.where(total > 0, pooled / total.clamp(min=torch.finfo(pooled.dtype).tiny), 1 / pooled.shape[1])

    def extra_repr(self) -> str:
        """The arguments, for ``print(pooling)``."""
        return (
            f"output_size={self.output_size}, fill={self.fill!r}, temperature={self.temperature}, "
            f"activation={self.activation!r}"
        )


def dense_scores(label_maps: LabelMap | LabelMapBatch, fill: str = "zero") -> Tensor:
    """Write label maps out as dense ones: a score for every class in every cell.

    Args:
        label_maps: One map, or a batch of them.
        fill: As for :class:`LabelPooling`.

    Returns:
        ``[C, h, w]`` or ``[B, C, h, w]``, float32.

    Raises:
        ValueError: If ``fill="residual"`` and the maps have no residual.
    """
    scores, classes, residual, _ = _batched(label_maps)
    b, k, h, w = scores.shape
    dense = scores.new_zeros(b, label_maps.num_classes, h, w, dtype=torch.float32)
    if fill == "residual" and k < label_maps.num_classes:
        dense += _share_of_residual(residual, label_maps.num_classes - k, label_maps.score_kind)[:, None]
    dense.scatter_(1, classes.long(), scores.float())
    return dense if isinstance(label_maps, LabelMapBatch) else dense[0]


def pool_dense(label_maps: LabelMap | LabelMapBatch, pooling: LabelPooling | None = None) -> Tensor:
    """The slow reference of :class:`LabelPooling`: ``roi_align`` on the dense map, one image at a time.

    It needs ``C * h * w`` numbers an image and about a hundred times as long. The tests hold the fast way to it.

    Args:
        label_maps: One map, or a batch of them.
        pooling: Whose settings to use, by default ``LabelPooling()``.

    Returns:
        As :class:`LabelPooling`.
    """
    pooling = pooling or LabelPooling()
    if isinstance(label_maps, LabelMapBatch):
        return torch.stack([pool_dense(label_map, pooling) for label_map in label_maps])
    dense = dense_scores(label_maps, pooling.fill)
    h, w = label_maps.grid
    view_box = label_maps.view_box
    x1, x2 = (min(max(x, 0.0), 1.0) * w for x in sorted((view_box.x1, view_box.x2)))
    y1, y2 = (min(max(y, 0.0), 1.0) * h for y in sorted((view_box.y1, view_box.y2)))
    box_in_map = dense.new_tensor([[0.0, x1, y1, x2, y2]])
    pooled = roi_align(dense[None], box_in_map, pooling.output_size, aligned=True, sampling_ratio=-1)
    if x1 == x2 or y1 == y2:
        pooled = torch.zeros_like(pooled)
    if view_box.flipped_x:
        pooled = pooled.flip(3)
    if view_box.flipped_y:
        pooled = pooled.flip(2)
    if pooling.output_size == (1, 1):
        pooled = pooled[:, :, 0, 0]
    return pooling.activate(pooled, label_maps.score_kind)[0]


def _batched(label_maps: LabelMap | LabelMapBatch) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    if isinstance(label_maps, LabelMapBatch):
        return label_maps.scores, label_maps.classes, label_maps.residual, label_maps.view_boxes
    if isinstance(label_maps, LabelMap):
        scores, residual = label_maps.scores, label_maps.residual
        view_boxes = torch.tensor([tuple(label_maps.view_box)], device=scores.device)
        return scores[None], label_maps.classes[None], None if residual is None else residual[None], view_boxes
    raise TypeError(
        f"Only a LabelMap or a LabelMapBatch can be pooled, got {type(label_maps).__name__}. "
        f"If it is a soft label, it was pooled already."
    )


def _share_of_residual(residual: Tensor | None, others: int, score_kind: str) -> Tensor:
    """The score of each class that a cell does not keep, if ``others`` of them share its residual equally."""
    if residual is None:
        raise ValueError(
            "fill='residual' needs maps with a residual, and these have none. Annotate without --no-residual, "
            "or use fill='zero'."
        )
    if score_kind == "probability":
        return residual.float() / others
    return residual.float() - torch.tensor(float(others), device=residual.device).log()


def _cell_weights(view_boxes: Tensor, grid: tuple[int, int], output_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much each row and column of cells counts: ``[B, gh, h]`` and ``[B, gw, w]``, each summing to one.

    All zero where no part of a view lies inside its image.
    """
    view_boxes = view_boxes.float()
    ends = view_boxes.clamp(0, 1)
    inside = (ends[:, :2] != ends[:, 2:]).all(1)[:, None, None]
    rows = _weights_along(ends[:, 1], ends[:, 3], grid[0], output_size[0])
    columns = _weights_along(ends[:, 0], ends[:, 2], grid[1], output_size[1])
    return rows * inside, columns


def _weights_along(first: Tensor, last: Tensor, cells: int, bins: int) -> Tensor:
    """How much each cell counts in each of ``bins`` between two ends in 0..1, ``[B]`` each: ``[B, bins, cells]``.

    Channel ``i`` of the pooled map is one in cell ``i`` and zero elsewhere. The map is one cell wide across the axis,
    so that RoIAlign takes one sample there, and the two axes cost ``h + w`` samples instead of ``h * w``.
    """
    indicators = torch.eye(cells, device=first.device)[None, :, :, None]  # [1, channel, cell, 1]
    start, end = torch.minimum(first, last) * cells, torch.maximum(first, last) * cells
    nothing = torch.zeros_like(start)
    boxes_in_map = torch.stack([nothing, nothing, start, nothing + 1, end], 1)  # [B, 5]: index in batch, xyxy
    weights = roi_align(indicators, boxes_in_map, (bins, 1), aligned=True, sampling_ratio=-1)[..., 0]
    weights = weights.transpose(1, 2)
    if bins == 1:
        return weights
    return torch.where((first > last)[:, None, None], weights.flip(1), weights)


def _output_size(output_size: Any) -> tuple[int, int]:
    sides = (output_size, output_size) if isinstance(output_size, int) else tuple(output_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"output_size is 1, or the (height, width) of a grid of tokens, got {output_size!r}.")
    return sides
