"""How much each cell of a map counts in a rectangle of the canvas, by exact integration."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["cells_in_box"]


def cells_in_box(view_boxes: Tensor, box_in_canvas: Tensor, grid: tuple[int, int]) -> Tensor:
    """Integrate the bilinear interpolation of a map over a rectangle of the canvas that shows it.

    Integrals add up, where RoIAlign's averages over a few samples do not: the cells of a crop less those of a part of
    it are never negative, so that the remainder of a crop can be pooled.

    Args:
        view_boxes: ``[B, 4]``, xyxy, fractions of the annotated images, flips as ``x1 > x2``.
        box_in_canvas: ``[B, 4]`` or ``[1, 4]``, xyxy, fractions of the canvas.
        grid: ``(h, w)``.

    Returns:
        ``[B, h, w]``: the share of the canvas that shows each cell. The shares of a rectangle sum to its area, as far
        as it lies inside the image.
    """
    h, w = grid
    columns = _cells_between(view_boxes[:, 0], view_boxes[:, 2], box_in_canvas[:, 0], box_in_canvas[:, 2], w)
    rows = _cells_between(view_boxes[:, 1], view_boxes[:, 3], box_in_canvas[:, 1], box_in_canvas[:, 3], h)
    return rows[:, :, None] * columns[:, None, :]


def _cells_between(view_first: Tensor, view_last: Tensor, first: Tensor, last: Tensor, cells: int) -> Tensor:
    """The same along one axis, ``[B, cells]``: the share of the canvas's side that shows each cell."""
    extent = view_last - view_first
    ends = torch.stack([view_first + first * extent, view_first + last * extent])  # [2, B], fractions of the image
    ends = ends.sort(0).values.clamp(0, 1) * cells
    # One cell more on each side: the edge cells go on to the border of the image, as in RoIAlign's interpolation.
    centres = torch.arange(-1, cells + 1, device=ends.device) + 0.5
    offset = (ends[..., None] - centres).clamp(-1, 1)  # [2, B, cells + 2]
    # The integral of the triangle of width two around each centre, up to each end.
    below = torch.where(offset < 0, (1 + offset).square() / 2, 1 - (1 - offset).square() / 2)
    share = below[1] - below[0]
    inner = share[:, 1:-1].clone()
    inner[:, 0] += share[:, 0]
    inner[:, -1] += share[:, -1]
    return inner / (extent.abs() * cells)[:, None]
