"""LabelPooling: the soft label of what a view shows, pooled from a label map."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from torchvision.ops import roi_align

from torchrelabel.calibration import Calibration
from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.label_map.views import ViewBatch
from torchrelabel.view import View, ViewBox
from torchrelabel.visible_cells import SAMPLES, sampled_cells

__all__ = ["LabelPooling", "dense_scores", "pool_dense"]

_FILLS = ("auto", "zero", "residual")
_ACTIVATIONS = ("auto", "softmax", "argmax", "sigmoid", "multi-hot", None)

# RoIAlign takes as many samples along a side as it has cells, rounded up, so that by a rounding error a side of just
# three cells would take four. Each end of a box is therefore moved inwards by this fraction of the image, about the
# error of single precision (test_a_side_of_just_three_cells_takes_three_samples_wherever_it_lies).
_HAIR = 1e-7

# Less of a token in view than this is rounding.
_NOTHING = 1e-6


class LabelPooling(nn.Module):
    """Pool label maps over the part of the image in view, and turn the pooled scores into a soft label.

    RoIAlign is linear in the map and separable in x and y. One ``roi_align`` call for the whole batch gives the weight
    of every row and of every column of cells (two calls, where a grid is not square), their product is the weight of
    each cell, and one ``scatter_add`` of the weighted scores gives the pooled ones: the dense map of ``C`` channels is
    never built.

    Args:
        output_size: 1 for one label an image, or ``(gh, gw)`` for a label for each token of a grid on the canvas,
            flipped as the view is.
        fill: What the classes not kept in a cell count as. ``"zero"``: logit 0, the paper's method. ``"residual"``:
            they share the cell's residual equally, so that no probability is invented. ``"auto"``: where maps have a
            :class:`~torchrelabel.calibration.Calibration`, as those of ``torchrelabel annotate`` have, they share the
            residual as they do in the whole image, and the pooled logits are joined with those of the whole image as
            fitted to the annotator; where they have none, ``"zero"``. Tokens of a grid are smaller than any crop that
            was looked at, and get what the map alone says.
        temperature: Divides the pooled logits before the softmax. One is the paper's. Probabilities have none.
        activation: ``"auto"``: softmax for logits, and probabilities pooled as they are and normalised to sum to one.
            ``"softmax"`` demands logits. ``"argmax"``: a one-hot label (the paper's "localized single-label").
            ``"sigmoid"``: a probability for each class on its own, of an annotator trained with binary cross entropy.
            ``"multi-hot"``: one for each class whose share of the label, of its softmax or normalised probabilities,
            reaches ``threshold``, for training with binary cross entropy. None: the pooled scores.
        threshold: Of ``activation="multi-hot"``. Where the paper trains on COCO, it does not say how a map becomes a
            target of several classes; this is ours.

    Shape:
        - Input: a :class:`LabelMap`, or a :class:`LabelMapBatch` of ``B`` maps, on any device.
        - Output: ``[C]`` or ``[B, C]``, with a grid ``[C, gh, gw]`` or ``[B, C, gh, gw]``, float32.

    A view that reaches outside the image pools only the part inside. One that lies outside altogether shows nothing,
    and every class gets the same. A view that is no box (rotated, sheared, or blank where the image goes on) is looked
    at in 64 x 64 points, and its label is right to 0.001.

    Raises:
        ValueError: If an argument has an unknown value, ``fill="residual"`` meets maps without residual, or a
            temperature, a softmax or a sigmoid meets probabilities.

    Example:
        >>> pooling = LabelPooling()
        >>> soft_label = pooling(label_map)  # [C], sums to one

    Source: LabelPooling, Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.2 and algorithm A1. Cells are
    sampled at their centres (``aligned=True``), where the authors subtract half a cell by hand.
    """

    def __init__(
        self,
        output_size: int | Sequence[int] = 1,
        fill: str = "auto",
        temperature: float = 1.0,
        activation: str | None = "auto",
        threshold: float = 0.1,
    ) -> None:
        super().__init__()
        self.output_size = _output_size(output_size)
        if fill not in _FILLS:
            raise ValueError(f"fill is one of {', '.join(map(repr, _FILLS))}, got {fill!r}.")
        if activation not in _ACTIVATIONS:
            raise ValueError(f"activation is one of {', '.join(map(repr, _ACTIVATIONS))}, got {activation!r}.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be positive and finite, got {temperature!r}.")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold is a share of the label, above 0 and at most 1, got {threshold!r}.")
        self.fill = fill
        self.temperature = float(temperature)
        self.activation = activation
        self.threshold = float(threshold)

    def forward(self, label_maps: LabelMap | LabelMapBatch) -> Tensor:
        """See the class."""
        _check_type(label_maps)
        weights, area = _cells_seen(label_maps, self.output_size)
        if self._calibrated(label_maps):
            # Tokens are far smaller than any crop that the calibration has looked at.
            pooled = _pool_calibrated(label_maps, weights, area if self.output_size == (1, 1) else None)
        else:
            pooled = self._pool(label_maps, weights)
        if self.output_size == (1, 1):
            pooled = pooled[:, 0]
        else:
            pooled = pooled.transpose(1, 2).reshape(pooled.shape[0], label_maps.num_classes, *self.output_size)
        label = self.activate(pooled, label_maps.score_kind)
        return label if isinstance(label_maps, LabelMapBatch) else label[0]

    def pool_cells(self, label_maps: LabelMap | LabelMapBatch, weights: Tensor, area: Tensor) -> Tensor:
        """The pooled scores of a region that is no box, from how much each cell counts in it.

        Args:
            label_maps: One map, or a batch of them.
            weights: ``[h, w]``, or ``[B, h, w]`` for a batch, summing to one.
            area: The share of the annotated image that the region covers, ``[]`` or ``[B]``.

        Returns:
            ``[C]`` or ``[B, C]``, float32, before the activation.

        Raises:
            ValueError: If ``fill="residual"`` and there is no residual.
        """
        _check_type(label_maps)
        batched = isinstance(label_maps, LabelMapBatch)
        weights = weights.flatten(1)[:, None] if batched else weights.reshape(1, 1, -1)
        if self._calibrated(label_maps):
            pooled = _pool_calibrated(label_maps, weights, area.reshape(-1))
        else:
            pooled = self._pool(label_maps, weights)
        return pooled[:, 0] if batched else pooled[0, 0]

    def _calibrated(self, label_maps: LabelMap | LabelMapBatch) -> bool:
        return self.fill == "auto" and label_maps.calibration is not None

    def _pool(self, label_maps: LabelMap | LabelMapBatch, weights: Tensor) -> Tensor:
        """Sum the scores of each class over the cells, weighted by ``[B, T, h * w]`` for T tokens: ``[B, T, C]``."""
        b, tokens, cells = weights.shape
        k, num_classes = label_maps.scores.shape[-3], label_maps.num_classes
        scores = label_maps.scores.float().reshape(b, 1, k, cells)
        pooled = scores.new_zeros(b, tokens, num_classes)
        if self.fill == "residual" and k < num_classes:
            base = _share_of_residual(label_maps, num_classes - k).reshape(b, 1, cells)
            pooled = pooled + (weights * base).sum(2, keepdim=True)
            scores = scores - base[:, None]
        weighted = (weights[:, :, None] * scores).reshape(b, tokens, k * cells)
        index = label_maps.classes.long().reshape(b, 1, k * cells).expand(b, tokens, k * cells)
        return pooled.scatter_add(2, index, weighted)

    def activate(self, pooled: Tensor, score_kind: str = "logit") -> Tensor:
        """Turn pooled scores, ``[B, C]`` or ``[B, C, gh, gw]``, into labels of the same shape.

        Raises:
            ValueError: If a temperature, or a softmax or a sigmoid, is asked of probabilities.
        """
        if score_kind == "probability" and (self.temperature != 1.0 or self.activation in ("softmax", "sigmoid")):
            raise ValueError(
                f"temperature={self.temperature} and activation={self.activation!r} are for logits, and this map holds "
                f"probabilities: use temperature=1.0 and activation='auto', which normalises them."
            )
        if self.activation is None:
            return pooled / self.temperature
        if self.activation == "argmax":
            best = pooled.argmax(1, keepdim=True)
            nothing = pooled.amax(1, keepdim=True) == pooled.amin(1, keepdim=True)
            return torch.where(nothing, 1 / pooled.shape[1], torch.zeros_like(pooled).scatter(1, best, 1.0))
        if self.activation == "sigmoid":
            return (pooled / self.temperature).sigmoid()
        shares = self._shares(pooled, score_kind)
        return (shares >= self.threshold).to(shares) if self.activation == "multi-hot" else shares

    def _shares(self, pooled: Tensor, score_kind: str) -> Tensor:
        """The share of each class in the label."""
        if score_kind == "logit":
            return (pooled / self.temperature).softmax(1)
        total = pooled.sum(1, keepdim=True)
        return torch.where(total > 0, pooled / total.clamp(min=torch.finfo(pooled.dtype).tiny), 1 / pooled.shape[1])

    def extra_repr(self) -> str:
        """The arguments, for ``print(pooling)``."""
        return (
            f"output_size={self.output_size}, fill={self.fill!r}, temperature={self.temperature}, "
            f"activation={self.activation!r}"
        ) + (f", threshold={self.threshold}" if self.activation == "multi-hot" else "")


def dense_scores(label_maps: LabelMap | LabelMapBatch, fill: str = "auto") -> Tensor:
    """Write label maps out as dense ones: a score for every class in every cell.

    Args:
        label_maps: One map, or a batch of them.
        fill: As for :class:`LabelPooling`.

    Returns:
        ``[C, h, w]`` or ``[B, C, h, w]``, float32.

    Raises:
        ValueError: If ``fill="residual"`` and the maps have no residual.
    """
    _check_type(label_maps)
    scores, others = label_maps.scores, label_maps.num_classes - label_maps.scores.shape[-3]
    batch, grid = scores.shape[:-3], scores.shape[-2:]
    dense = scores.new_zeros(*batch, label_maps.num_classes, *grid, dtype=torch.float32)
    if others == 0:
        pass  # every class is kept
    elif fill == "auto" and label_maps.calibration is not None:
        of_image = _of_image(label_maps)
        kept = label_maps.classes.long().reshape(len(of_image), -1)
        base = _base_of_tail(label_maps, of_image.gather(1, kept).reshape(len(of_image), scores.shape[-3], -1))
        dense += base.reshape(*batch, 1, *grid) + of_image.reshape(*batch, -1, 1, 1)
    elif fill == "residual":
        dense += _share_of_residual(label_maps, others).unsqueeze(-3)
    return dense.scatter_(-3, label_maps.classes.long(), scores.float())


def pool_dense(label_maps: LabelMap | LabelMapBatch, pooling: LabelPooling | None = None) -> Tensor:
    """The slow reference of :class:`LabelPooling`: ``roi_align`` on the dense map, one image at a time.

    It needs ``C * h * w`` numbers an image and about a hundred times as long. The tests compare the fast way with it.

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
    gh, gw = pooling.output_size
    view = label_maps.view_box
    if isinstance(view, ViewBox):
        rows = _parts_of_one(view.y1, view.y2, h, gh)
        columns = _parts_of_one(view.x1, view.x2, w, gw)
        boxes_in_map = dense.new_tensor([(0, x1, y1, x2, y2) for y1, y2 in rows for x1, x2 in columns])
        pooled = roi_align(dense[None], boxes_in_map, (1, 1), aligned=True, sampling_ratio=-1)  # [gh * gw, C, 1, 1]
        area = _area_of_box(view)
    else:
        pooled, area = _pool_points(dense, view, gh, gw)
    if pooling._calibrated(label_maps):
        if pooling.output_size != (1, 1):
            of_map, of_image = 1.0, 0.0
        else:
            of_map, of_image = label_maps.calibration.weights(area) if area else (0.0, 0.0)  # type: ignore[union-attr]
        pooled = of_map * pooled + of_image * label_maps.image_scores.float()[:, None, None]  # type: ignore[union-attr]
    pooled = pooled.reshape(gh, gw, -1).permute(2, 0, 1)
    if pooling.output_size == (1, 1):
        pooled = pooled[:, 0, 0]
    return pooling.activate(pooled[None], label_maps.score_kind)[0]


def _pool_points(dense: Tensor, view: View, gh: int, gw: int, points: int = 256) -> tuple[Tensor, float]:
    """The means of dense scores over what the tokens of a grid show, ``[gh * gw, C, 1, 1]``, and the area seen."""
    sides = [(torch.arange(bins * points) + 0.5) / (bins * points) for bins in (gh, gw)]
    v, u = torch.meshgrid(*sides, indexing="ij")
    (xx, xy, x0), (yx, yy, y0) = view.matrix
    x, y = xx * u + xy * v + x0, yx * u + yy * v + y0
    seen = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
    for a, b, c in view.edges:
        seen = seen & (a * x + b * y + c >= 0)
    at = torch.stack([x, y], -1)[None] * 2 - 1
    scores = grid_sample(dense[None], at.to(dense), padding_mode="border", align_corners=False)[
        0
    ]  # [C, gh * points, ...]
    by_token = (scores * seen).reshape(-1, gh, points, gw, points).sum((2, 4))
    counts = seen.reshape(gh, points, gw, points).sum((1, 3))
    pooled = (by_token / counts.clamp(min=1)).reshape(len(dense), -1).T[..., None, None]
    return pooled, seen.float().mean().item() * view.area


def _check_type(label_maps: Any) -> None:
    if not isinstance(label_maps, (LabelMap, LabelMapBatch)):
        raise TypeError(
            f"Only a LabelMap or a LabelMapBatch can be pooled, got {type(label_maps).__name__}. "
            f"If it is a soft label, it was pooled already. Of a store's records, store.label_map(key) and "
            f"store.soft_label(key, box) give maps and labels."
        )


def _share_of_residual(label_maps: LabelMap | LabelMapBatch, others: int) -> Tensor:
    """The score of each class that a cell does not keep, if ``others`` of them share its residual equally."""
    if label_maps.residual is None:
        raise ValueError(
            "fill='residual' needs maps with a residual, and these have none. Annotate without --no-residual, "
            "or use fill='zero'."
        )
    residual = label_maps.residual.float()
    return residual / others if label_maps.score_kind == "probability" else residual - math.log(others)


def _pool_calibrated(label_maps: LabelMap | LabelMapBatch, weights: Tensor, area: Tensor | None) -> Tensor:
    """The logits of regions by the rule that the maps were calibrated for, ``[B, T, C]``.

    Args:
        label_maps: With a calibration.
        weights: How much each cell counts for each token, ``[B, T, h * w]``.
        area: The share of the annotated image that each region covers, ``[B]``; where it is 0, all classes get the
            same. None: the map alone.
    """
    b, tokens, cells = weights.shape
    k, num_classes = label_maps.scores.shape[-3], label_maps.num_classes
    if area is None:
        of_map, of_image = weights.new_ones(b, 1), weights.new_zeros(b, 1)
    else:
        of_map, of_image = _weights_of(label_maps.calibration, area[:, None])  # [B, 1]
    image_scores, kept = _of_image(label_maps), label_maps.classes.long().reshape(b, k * cells)
    scores = label_maps.scores.float().reshape(b, k, cells)
    if k < num_classes:
        image_scores_kept = image_scores.gather(1, kept).reshape(b, k, cells)
        base = _base_of_tail(label_maps, image_scores_kept)
        # A class has the score base + image_scores in the cells that do not keep it. So that only those that do need be
        # gone through, it has that everywhere, and a cell that keeps it adds the difference.
        scores = scores - base[:, None] - image_scores_kept
        everywhere = of_map * (weights * base[:, None]).sum(2)
        of_image = of_image + of_map * weights.sum(2)
    else:
        everywhere = torch.zeros_like(of_map)
    weighted = (weights[:, :, None] * scores[:, None]).reshape(b, tokens, k * cells)
    pooled = weighted.new_zeros(b, tokens, num_classes)
    pooled.scatter_add_(2, kept[:, None].expand(b, tokens, k * cells), weighted)
    pooled.mul_(of_map[..., None]).addcmul_(of_image[..., None], image_scores[:, None])
    return pooled.add_(everywhere[..., None])


def _weights_of(calibration: Calibration | None, area: Tensor) -> tuple[Tensor, Tensor]:
    """As `Calibration.weights`, for a tensor of areas."""
    assert calibration is not None
    log_area = area.clamp(calibration.smallest_area, 1).log()
    powers = torch.stack([log_area**power for power in range(len(calibration.map_weights))])
    both = torch.tensor([calibration.map_weights, calibration.image_weights], dtype=area.dtype).to(area.device)
    of_map, of_image = torch.tensordot(both, powers, 1) * (area > 0)
    return of_map, of_image


def _of_image(label_maps: LabelMap | LabelMapBatch) -> Tensor:
    """The scores of whole images, ``[B, C]``."""
    assert label_maps.image_scores is not None  # without which there is no calibration
    return label_maps.image_scores.float().reshape(-1, label_maps.num_classes)


def _base_of_tail(label_maps: LabelMap | LabelMapBatch, image_scores_kept: Tensor) -> Tensor:
    """What to add to a class's score for the whole image where a cell does not keep it, ``[B, h * w]``.

    The classes that a cell does not keep have its residual together, in the proportions of the whole image.

    Args:
        label_maps: With a calibration.
        image_scores_kept: Scores for the whole image of the classes that each cell keeps, ``[B, K, h * w]``.
    """
    assert label_maps.residual is not None  # without which there is no calibration
    # Single precision leaves nothing of a rest below 1e-6; such an image is sure of what the cell keeps.
    rest = (1 - image_scores_kept.exp().sum(1)).clamp(min=1e-6).log()
    return label_maps.residual.float().reshape(len(rest), -1) - rest


def _cells_seen(label_maps: LabelMap | LabelMapBatch, output_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """How much each cell counts for each token, ``[B, gh * gw, h * w]``, and the share of the image in view, ``[B]``.

    The weights of a token sum to one, or are all zero where it shows nothing.
    """
    if isinstance(label_maps, LabelMap):
        view = label_maps.view_box
        if not isinstance(view, ViewBox):
            return _cells_sampled(ViewBatch.stack([view], label_maps.device), label_maps.grid, output_size)
        weights = _cells_of_box(view, label_maps, output_size)
        return weights, torch.tensor([_area_of_box(view)], device=label_maps.device)
    views = label_maps.views
    weights = _cells_of_boxes(views.boxes.float(), label_maps.grid, output_size)
    ends = views.boxes.float().clamp(0, 1)
    area = (ends[:, 2:] - ends[:, :2]).prod(1).abs()
    if views.shears is None:
        return weights, area
    no_boxes = views.no_boxes
    if weights.is_cuda:  # to look for them would wait for it
        sampled, area_sampled = _cells_sampled(views, label_maps.grid, output_size)
        return torch.where(no_boxes[:, None, None], sampled, weights), torch.where(no_boxes, area_sampled, area)
    tilted = views.map(lambda part: part[no_boxes])
    weights[no_boxes], area[no_boxes] = _cells_sampled(tilted, label_maps.grid, output_size)
    return weights, area


def _cells_sampled(views: ViewBatch, grid: tuple[int, int], output_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same for views that are no boxes."""
    gh, gw = output_size
    top, left = torch.meshgrid(torch.arange(gh), torch.arange(gw), indexing="ij")
    tokens = torch.stack([left / gw, top / gh, (left + 1) / gw, (top + 1) / gh], -1).reshape(1, -1, 4)
    # About as many points on the canvas for a grid of tokens as for one label, and at least four a side of each.
    samples = max(4, -(-SAMPLES // max(gh, gw)))
    cells = sampled_cells(views, tokens.to(views.boxes.device), grid, samples).flatten(2)
    seen = cells.sum(2, keepdim=True)
    area = seen.mean((1, 2)) * views.areas
    return torch.where(seen > _NOTHING, cells / seen.clamp(min=_NOTHING), 0), area


def _area_of_box(view_box: ViewBox) -> float:
    """The share of the annotated image that is in view."""
    x1, y1, x2, y2 = (min(max(end, 0.0), 1.0) for end in view_box)
    return abs((x2 - x1) * (y2 - y1))


def _cells_of_boxes(view_boxes: Tensor, grid: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """How much each cell counts for each token of views that are boxes, ``[B, gh * gw, h * w]``."""
    (h, w), (gh, gw) = grid, output_size
    x1, y1, x2, y2 = view_boxes.unbind(1)
    if h == w and gh == gw:  # both axes at once: half as many operations on a few numbers each
        parts = _parts(torch.cat([y1, x1]), torch.cat([y2, x2]), h, gh)
    else:
        parts = torch.cat([_parts(y1, y2, h, gh), _parts(x1, x2, w, gw)])
    return _outer(parts, len(view_boxes), grid, output_size)


def _cells_of_box(view_box: ViewBox, label_map: LabelMap, output_size: tuple[int, int]) -> Tensor:
    """The same for one view.

    In plain Python, as a dozen operations on tensors of one number would take longer than all the rest.
    """
    (h, w), (gh, gw) = label_map.grid, output_size
    ends = _parts_of_one(view_box.y1, view_box.y2, h, gh) + _parts_of_one(view_box.x1, view_box.x2, w, gw)
    boxes = [(0, low, 0, high, 1) for low, high in ends]
    parts = torch.tensor(boxes, dtype=torch.float32, device=label_map.device)
    return _outer(parts, 1, label_map.grid, output_size)


def _outer(parts: Tensor, b: int, grid: tuple[int, int], output_size: tuple[int, int]) -> Tensor:
    """The weights of cells, from the parts of rows and, after them, of columns that tokens show."""
    (h, w), (gh, gw) = grid, output_size
    if h == w:
        weights = _weights_along(parts, h)
        rows, columns = weights[: b * gh], weights[b * gh :]
    else:
        rows, columns = _weights_along(parts[: b * gh], h), _weights_along(parts[b * gh :], w)
    return (rows.reshape(b, gh, 1, h, 1) * columns.reshape(b, 1, gw, 1, w)).reshape(b, gh * gw, h * w)


def _parts(first: Tensor, last: Tensor, cells: int, bins: int) -> Tensor:
    """What each of ``bins`` tokens shows along one axis, as boxes in a strip of cells: ``[N * bins, 5]``.

    Index of the strip (there is but one), x1, y1, x2, y2. The ends of the views, ``[N]``, are fractions of the image.
    Where a token shows nothing, its box has no width.
    """
    shares = torch.linspace(0, 1, bins + 1, device=first.device)
    ends = (first[:, None] + (last - first)[:, None] * shares).clamp(0, 1)
    low = (torch.minimum(ends[:, :-1], ends[:, 1:]) + _HAIR) * cells
    high = (torch.maximum(ends[:, :-1], ends[:, 1:]) - _HAIR) * cells
    nothing = torch.zeros_like(low)
    return torch.stack([nothing, low, nothing, high, nothing + 1], 2).reshape(-1, 5)


def _parts_of_one(first: float, last: float, cells: int, bins: int) -> list[tuple[float, float]]:
    """The same for one view: where each part begins and ends."""
    ends = [min(max(first + (last - first) * i / bins, 0.0), 1.0) for i in range(bins + 1)]
    return [((min(pair) + _HAIR) * cells, (max(pair) - _HAIR) * cells) for pair in pairwise(ends)]


def _weights_along(parts: Tensor, cells: int) -> Tensor:
    """How much each cell of a strip counts in each part of it, ``[parts, cells, 1, 1]``.

    Channel ``i`` of the pooled map is one in cell ``i`` and zero elsewhere. The strip is one cell high, so that
    RoIAlign takes one sample across it, and the two axes cost ``h + w`` samples instead of ``h * w``.
    """
    indicators = torch.eye(cells, device=parts.device).reshape(1, cells, 1, cells)
    return roi_align(indicators, parts, (1, 1), aligned=True, sampling_ratio=-1)


def _output_size(output_size: Any) -> tuple[int, int]:
    sides = tuple(output_size) if isinstance(output_size, Sequence) else (output_size, output_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ValueError(f"output_size is 1, or the (height, width) of a grid of tokens, got {output_size!r}.")
    return sides
