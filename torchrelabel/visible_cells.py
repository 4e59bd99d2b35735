"""How much each cell of a map counts in a rectangle of the canvas that shows it."""

from __future__ import annotations

import torch
from torch import Tensor

from torchrelabel.label_map.views import ViewBatch

__all__ = ["cells_in_box", "sampled_cells"]

# Points a side at which a canvas is looked at, where its view is no box: tests/test_visible_cells.py holds the worst of
# its rough maps to 1e-3 of the label, for which 48 are too few.
SAMPLES = 64


def cells_in_box(views: ViewBatch, box_in_canvas: Tensor, grid: tuple[int, int]) -> Tensor:
    """Integrate the bilinear interpolation of a map over a rectangle of the canvas that shows it.

    Integrals add up, where RoIAlign's averages over a few samples do not: the cells of a crop less those of a part of
    it are never negative, so that the remainder of a crop can be pooled.

    Args:
        views: Of ``B`` maps.
        box_in_canvas: ``[B, 4]`` or ``[1, 4]``, xyxy, fractions of the canvas.
        grid: ``(h, w)``.

    Returns:
        ``[B, h, w]``: the share of the canvas that shows each cell. The shares of a rectangle sum to its area, as far
        as the image is seen there. Exact for views that are boxes, see :func:`sampled_cells` for others.
    """
    h, w = grid
    boxes = views.boxes.float()
    columns = _cells_between(boxes[:, 0], boxes[:, 2], box_in_canvas[:, 0], box_in_canvas[:, 2], w)
    rows = _cells_between(boxes[:, 1], boxes[:, 3], box_in_canvas[:, 1], box_in_canvas[:, 3], h)
    cells = rows[:, :, None] * columns[:, None, :]
    if views.shears is None:
        return cells
    areas = (box_in_canvas[:, 2:] - box_in_canvas[:, :2]).prod(1)
    sampled = sampled_cells(views, box_in_canvas[:, None], grid)[:, 0] * areas[:, None, None]
    return torch.where(views.no_boxes[:, None, None], sampled, cells)


def sampled_cells(views: ViewBatch, boxes_in_canvas: Tensor, grid: tuple[int, int], samples: int = SAMPLES) -> Tensor:
    """The same for any view, by looking at a grid of points in each of several rectangles of the canvas.

    A point that lies on the border of what is seen counts by the part of its pixel that is inside.

    Args:
        views: Of ``B`` maps.
        boxes_in_canvas: ``[B, T, 4]`` or ``[1, T, 4]``, xyxy, fractions of the canvas.
        grid: ``(h, w)``.
        samples: Points a side of each rectangle.

    Returns:
        ``[B, T, h, w]``: the share of each rectangle that shows each cell.
    """
    h, w = grid
    x0, y0, x2, y2 = views.boxes.float()[:, :, None, None, None].unbind(1)  # [B, 1, 1, 1], as all that follows
    xx, yy = x2 - x0, y2 - y0
    if views.shears is None or views.edges is None:
        xy = yx = torch.zeros_like(xx)
        edges = views.boxes.new_zeros(len(views), 0, 3)
    else:
        xy, yx = views.shears.float()[:, :, None, None, None].unbind(1)
        edges = views.edges.float()
    ends = boxes_in_canvas.float()[..., None, None]  # [B, T, 4, 1, 1]
    step_u, step_v = (ends[:, :, 2] - ends[:, :, 0]) / samples, (ends[:, :, 3] - ends[:, :, 1]) / samples
    places = torch.arange(samples, device=ends.device) + 0.5
    u, v = ends[:, :, 0] + places * step_u, ends[:, :, 1] + places[:, None] * step_v  # [B, T, 1, S], [B, T, S, 1]
    x, y = xx * u + xy * v + x0, yx * u + yy * v + y0  # [B, T, S, S]
    # How far inside of the nearest border, in pixels.
    inside = torch.minimum(
        torch.minimum(x, 1 - x) / _change(xx * step_u, xy * step_v),
        torch.minimum(y, 1 - y) / _change(yx * step_u, yy * step_v),
    )
    for edge in edges.unbind(1):
        a, b, c = edge[:, :, None, None, None].unbind(1)
        change = _change((a * xx + b * yx) * step_u, (a * xy + b * yy) * step_v)
        inside = torch.minimum(inside, (a * x + b * y + c) / change)
    seen = (inside + 0.5).clamp(0, 1)
    top, down = _between_cells(y, h)
    left, across = _between_cells(x, w)
    cells = seen.new_zeros(*seen.shape[:2], h * w)
    for row, share_of_row in ((top, 1 - down), ((top + 1).clamp(max=h - 1), down)):
        for column, share_of_column in ((left, 1 - across), ((left + 1).clamp(max=w - 1), across)):
            shares = (seen * share_of_row * share_of_column).flatten(2)
            cells.scatter_add_(2, (row * w + column).flatten(2), shares)
    return cells.reshape(*cells.shape[:2], h, w) / samples**2


def _change(across: Tensor, down: Tensor) -> Tensor:
    """How much a distance changes from one corner of a pixel to the opposite one, never zero."""
    return (across.abs() + down.abs()).clamp(min=1e-12)


def _between_cells(at: Tensor, cells: int) -> tuple[Tensor, Tensor]:
    """The cell before each point along an axis, and how far the point is on the way to the next one."""
    # The edge cells go on to the border of the image, as in RoIAlign's interpolation.
    place = (at * cells - 0.5).clamp(0, cells - 1)
    before = place.long()
    return before, place - before


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
