"""ViewBatch: the views of a batch of label maps, as tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrelabel.view import View, ViewBox

__all__ = ["ViewBatch"]

_NO_EDGE = (0.0, 0.0, 1.0)  # everything is on its near side


@dataclass(frozen=True, eq=False)
class ViewBatch:
    """The views of ``B`` label maps.

    Attributes:
        boxes: ``[B, 4]``, xyxy: what the top left and the bottom right corner of each canvas show, but for the shear;
            for a :class:`~torchrelabel.ViewBox` its coordinates.
        shears: ``[B, 2]``, the entries ``xy`` and ``yx`` of each :attr:`View.matrix <torchrelabel.view.View.matrix>`.
            None where all views are boxes, which are pooled by a faster way.
        edges: ``[B, E, 3]``, those of each view, filled up with such that hide nothing. None where ``shears`` is.
    """

    boxes: Tensor
    shears: Tensor | None = None
    edges: Tensor | None = None

    @staticmethod
    def stack(views: Sequence[View], device: torch.device | None = None) -> ViewBatch:
        """The tensors of some views."""
        if all(isinstance(view, ViewBox) for view in views):
            boxes = torch.tensor([view.corners for view in views], dtype=torch.float32, device=device)
            return ViewBatch(boxes)
        matrices = [view.matrix for view in views]
        count = max(1, *(len(view.edges) for view in views))
        return ViewBatch(
            torch.tensor([(x0, y0, x0 + xx, y0 + yy) for (xx, _, x0), (_, yy, y0) in matrices], device=device),
            torch.tensor([(xy, yx) for (_, xy, _), (yx, _, _) in matrices], device=device),
            torch.tensor([(*view.edges, *[_NO_EDGE] * (count - len(view.edges))) for view in views], device=device),
        )

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, index: int) -> View:
        x0, y0, x2, y2 = self.boxes[index].tolist()
        if self.shears is None or self.edges is None:
            return ViewBox(x0, y0, x2, y2)
        xy, yx = self.shears[index].tolist()
        edges = [(a, b, c) for a, b, c in self.edges[index].tolist() if a or b]
        return View.of(((x2 - x0, xy, x0), (yx, y2 - y0, y0)), tuple(edges))

    def map(self, change: Callable[[Tensor], Tensor]) -> ViewBatch:
        """The views with each tensor changed."""
        shears, edges = (part if part is None else change(part) for part in (self.shears, self.edges))
        return ViewBatch(change(self.boxes), shears, edges)

    @property
    def no_boxes(self) -> Tensor:
        """Which views are no boxes, ``[B]``."""
        if self.shears is None or self.edges is None:
            return torch.zeros(len(self), dtype=torch.bool, device=self.boxes.device)
        return (self.shears != 0).any(1) | (self.edges[..., :2] != 0).flatten(1).any(1)

    @property
    def areas(self) -> Tensor:
        """The share of its image that each canvas covers, the parts of it that show nothing included: ``[B]``."""
        x1, y1, x2, y2 = self.boxes.float().unbind(1)
        area = (x2 - x1) * (y2 - y1)
        return area.abs() if self.shears is None else (area - self.shears.float().prod(1)).abs()

    def crop(self, boxes_in_canvas: Tensor) -> ViewBatch:
        """What is seen after each canvas is cropped to a box within it, ``[B, 4]``, xyxy, fractions of the canvas."""
        x0, y0, x2, y2 = self.boxes.unbind(1)
        u1, v1, u2, v2 = boxes_in_canvas.to(self.boxes).unbind(1)
        xx, yy = x2 - x0, y2 - y0
        if self.shears is None:
            return ViewBatch(torch.stack([x0 + u1 * xx, y0 + v1 * yy, x0 + u2 * xx, y0 + v2 * yy], 1))
        xy, yx = self.shears.unbind(1)
        left, top = x0 + u1 * xx + v1 * xy, y0 + u1 * yx + v1 * yy
        boxes = torch.stack([left, top, left + (u2 - u1) * xx, top + (v2 - v1) * yy], 1)
        return ViewBatch(boxes, torch.stack([xy * (v2 - v1), yx * (u2 - u1)], 1), self.edges)

    def flip_x(self, mask: Tensor) -> ViewBatch:
        """What is seen after those canvases that a mask ``[B]`` chooses are flipped left to right."""
        x0, y0, x2, y2 = self.boxes.unbind(1)
        if self.shears is None:
            flipped = torch.stack([x2, y0, x0, y2], 1)
            return ViewBatch(torch.where(mask[:, None], flipped, self.boxes))
        xy, yx = self.shears.unbind(1)
        flipped = torch.stack([x2, y0 + yx, x0, y2 + yx], 1)
        shears = torch.where(mask[:, None], torch.stack([xy, -yx], 1), self.shears)
        return ViewBatch(torch.where(mask[:, None], flipped, self.boxes), shears, self.edges)

    def flip_y(self, mask: Tensor) -> ViewBatch:
        """The same, top to bottom."""
        return self._transposed().flip_x(mask)._transposed()

    def _transposed(self) -> ViewBatch:
        """The views of canvases and images of which rows and columns are exchanged."""
        if self.shears is None or self.edges is None:
            return ViewBatch(self.boxes[:, [1, 0, 3, 2]])
        return ViewBatch(self.boxes[:, [1, 0, 3, 2]], self.shears.flip(1), self.edges[..., [1, 0, 2]])

    def equal(self, other: ViewBatch) -> bool:
        """Whether all tensors are equal, by value."""
        return torch.equal(self.boxes, other.boxes) and (
            list(map(self.__getitem__, range(len(self)))) == list(map(other.__getitem__, range(len(other))))
        )
