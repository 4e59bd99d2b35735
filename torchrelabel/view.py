"""View: what the canvas shows now of the annotated image, an affine map. ViewBox is its axis-aligned case."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["AffineView", "Edge", "Matrix", "View", "ViewBox"]

# ((xx, xy, x0), (yx, yy, y0)) takes the point (u, v) of one frame to (xx * u + xy * v + x0, yx * u + yy * v + y0).
Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]

# (a, b, c): beyond a line. Nothing is shown of the points (x, y) of the image where a * x + b * y + c < 0.
Edge = tuple[float, float, float]

# Crops of crops do not meet the border of the image to the last bit. A ten thousandth of a pixel of a large one.
_ROUNDING = 1e-8


class View:
    """What the canvas shows now of the annotated image.

    A point ``(u, v)`` of the canvas, in fractions of its width and height, shows the point of the annotated image that
    ``matrix`` makes of it, in fractions too. Where that point lies outside the image, or beyond one of the ``edges``,
    the canvas shows nothing of the image: what a pad, a rotation or a shift has left blank. A view never changes: each
    method returns a new one, a :class:`ViewBox` wherever it is one.

    Attributes:
        matrix: 2 x 3, ``((xx, xy, x0), (yx, yy, y0))``.
        edges: ``(a, b, c)`` each: nothing is shown where ``a * x + b * y + c < 0``, though the image goes on there.

    Example:
        >>> turned = ViewBox().transform(((0.0, 1.0, 0.0), (-1.0, 0.0, 1.0)))  # a quarter turn, clockwise
        >>> turned.crop(0.0, 0.0, 1.0, 0.5).matrix  # the upper half of what is seen now: the left half of the image
        ((0.0, 0.5, 0.0), (-1.0, 0.0, 1.0))
    """

    matrix: Matrix
    edges: tuple[Edge, ...]

    @staticmethod
    def of(matrix: Matrix, edges: tuple[Edge, ...] = ()) -> View:
        """The view of a matrix and edges: a :class:`ViewBox` if the matrix is axis-aligned and there are no edges.

        Raises:
            ValueError: If an entry is not finite, or the matrix leaves nothing of the image.
        """
        (xx, xy, x0), (yx, yy, y0) = matrix
        if not edges and abs(xy) < _ROUNDING and abs(yx) < _ROUNDING:
            return ViewBox(x0, y0, x0 + xx, y0 + yy)
        return AffineView(matrix, edges)

    def transform(self, to_this_canvas: Matrix) -> View:
        """What is seen on a new canvas, of which each point shows a point of this one.

        Args:
            to_this_canvas: From fractions of the new canvas to fractions of this one. Where the new canvas reaches past
                this one, it shows nothing.
        """
        return View.of(_after(self.matrix, to_this_canvas), self.edges + self._sides_passed(to_this_canvas))

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> View:
        """What is seen after the canvas is cropped to a box, given as fractions of the canvas.

        The box may reach past 0..1, as it does when a canvas is padded.
        """
        return self.transform(((x2 - x1, 0.0, x1), (0.0, y2 - y1, y1)))

    def pad(self, left: float, top: float, right: float, bottom: float) -> View:
        """What is seen after the canvas grows on each side by a fraction of its width or height."""
        return self.crop(-left, -top, 1 + right, 1 + bottom)

    def flip_x(self) -> View:
        """What is seen after a horizontal flip."""
        return self.transform(((-1.0, 0.0, 1.0), (0.0, 1.0, 0.0)))

    def flip_y(self) -> View:
        """What is seen after a vertical flip."""
        return self.transform(((1.0, 0.0, 0.0), (0.0, -1.0, 1.0)))

    def compose(self, inner: View) -> View:
        """What is seen when ``inner``, a view in the frame of this view's canvas, is looked at through this one."""
        composed = self.transform(inner.matrix)
        to_canvas = _inverse(self.matrix)
        edges = tuple(_pulled_back(edge, to_canvas) for edge in inner.edges)
        return View.of(composed.matrix, composed.edges + edges) if edges else composed

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """What the top left and the bottom right corner of the canvas show, ``(x1, y1, x2, y2)``."""
        return *_at(self.matrix, 0.0, 0.0), *_at(self.matrix, 1.0, 1.0)

    @property
    def area(self) -> float:
        """The share of the annotated image that the canvas covers, at most one unless it reaches past the image."""
        (xx, xy, _), (yx, yy, _) = self.matrix
        return abs(xx * yy - xy * yx)

    def _sides_passed(self, to_this_canvas: Matrix) -> tuple[Edge, ...]:
        """The sides of this canvas, as edges, that a new canvas reaches past where the image goes on."""
        corners = [_at(to_this_canvas, u, v) for u in (0.0, 1.0) for v in (0.0, 1.0)]
        (left, right), (top, bottom) = ((min(axis), max(axis)) for axis in zip(*corners, strict=True))
        passed = []
        for past, side in (
            (left < -_ROUNDING, (1.0, 0.0, 0.0)),
            (right > 1 + _ROUNDING, (-1.0, 0.0, 1.0)),
            (top < -_ROUNDING, (0.0, 1.0, 0.0)),
            (bottom > 1 + _ROUNDING, (0.0, -1.0, 1.0)),
        ):
            if past:
                edge = _pulled_back(side, _inverse(self.matrix))
                if any(_beyond(edge, corner) for corner in ((0, 0), (0, 1), (1, 0), (1, 1))):
                    passed.append(edge)
        return tuple(passed)


@dataclass(frozen=True)
class AffineView(View):
    """A view that is no box: rotated, sheared, or with edges. See :class:`View`.

    Raises:
        ValueError: If an entry is not finite, or the matrix leaves nothing of the image.
    """

    matrix: Matrix
    edges: tuple[Edge, ...] = ()

    def __post_init__(self) -> None:
        if not math.isfinite(sum(map(sum, self.matrix)) + sum(map(sum, self.edges))):
            raise ValueError(f"A view needs finite numbers, got the matrix {self.matrix} and the edges {self.edges}.")
        if self.area == 0:
            raise ValueError(f"A view needs a width and a height, got the matrix {self.matrix}.")


@dataclass(frozen=True)
class ViewBox(View):
    """The part of the annotated image that the canvas shows, as fractions of the annotated image.

    ``(x1, y1)`` is what the top left corner of the canvas shows and ``(x2, y2)`` what its bottom right corner shows.
    A horizontal flip exchanges ``x1`` and ``x2`` (so ``x1 > x2``), and a vertical one ``y1`` and ``y2``. Where the
    image was padded, the box reaches past 0 or 1. A view box never changes: each method returns a new one.

    Example:
        >>> view_box = ViewBox().crop(0.5, 0.0, 1.0, 1.0).flip_x()  # the right half, mirrored
        >>> view_box
        ViewBox(x1=1.0, y1=0.0, x2=0.5, y2=1.0)
        >>> view_box.crop(0.0, 0.0, 0.5, 1.0)  # the left half of what is seen now
        ViewBox(x1=1.0, y1=0.0, x2=0.75, y2=1.0)

    Raises:
        ValueError: If a coordinate is not finite, or the box has no width or no height.
    """

    x1: float = 0.0
    y1: float = 0.0
    x2: float = 1.0
    y2: float = 1.0

    edges = ()

    def __post_init__(self) -> None:
        # An infinite or missing coordinate makes this sum infinite or NaN: one test instead of four.
        if not math.isfinite(self.x1 + self.y1 + self.x2 + self.y2):
            raise ValueError(f"A view box needs four finite coordinates, got {tuple(self)}.")
        if self.x1 == self.x2 or self.y1 == self.y2:
            raise ValueError(f"A view box needs a width and a height, got (x1, y1, x2, y2) = {tuple(self)}.")

    def __iter__(self) -> Iterator[float]:
        return iter((self.x1, self.y1, self.x2, self.y2))

    @property
    def corners(self) -> tuple[float, float, float, float]:
        """The four coordinates."""
        return self.x1, self.y1, self.x2, self.y2

    @property
    def matrix(self) -> Matrix:  # type: ignore[override] # never assigned to
        """As of any :class:`View`."""
        return (self.x2 - self.x1, 0.0, self.x1), (0.0, self.y2 - self.y1, self.y1)

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> View:
        """See :meth:`View.crop`. The same numbers for each end as for a corner of a larger box: no rounding between."""
        if self._hides(x1, y1, x2, y2):
            return super().crop(x1, y1, x2, y2)
        width, height = self.x2 - self.x1, self.y2 - self.y1
        return ViewBox(self.x1 + x1 * width, self.y1 + y1 * height, self.x1 + x2 * width, self.y1 + y2 * height)

    def _hides(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        """Whether a crop to a box would show nothing where the image goes on: past an edge of an earlier crop."""
        ends = ((x1 < 0, self.x1), (y1 < 0, self.y1), (x2 > 1, self.x2), (y2 > 1, self.y2))
        return any(past and _ROUNDING < edge < 1 - _ROUNDING for past, edge in ends)

    def flip_x(self) -> ViewBox:
        """What is seen after a horizontal flip."""
        return ViewBox(self.x2, self.y1, self.x1, self.y2)

    def flip_y(self) -> ViewBox:
        """What is seen after a vertical flip."""
        return ViewBox(self.x1, self.y2, self.x2, self.y1)

    @property
    def flipped_x(self) -> bool:
        """Whether the canvas shows the image mirrored left to right."""
        return self.x1 > self.x2

    @property
    def flipped_y(self) -> bool:
        """Whether the canvas shows the image upside down."""
        return self.y1 > self.y2


def _at(matrix: Matrix, u: float, v: float) -> tuple[float, float]:
    (xx, xy, x0), (yx, yy, y0) = matrix
    return xx * u + xy * v + x0, yx * u + yy * v + y0


def _after(outer: Matrix, inner: Matrix) -> Matrix:
    """The matrix that applies ``inner`` first."""
    (xx, xy, _), (yx, yy, _) = outer
    (a, b, _), (c, d, _) = inner
    x0, y0 = _at(outer, inner[0][2], inner[1][2])
    return (xx * a + xy * c, xx * b + xy * d, x0), (yx * a + yy * c, yx * b + yy * d, y0)


def _inverse(matrix: Matrix) -> Matrix:
    (xx, xy, x0), (yx, yy, y0) = matrix
    det = xx * yy - xy * yx
    a, b, c, d = yy / det, -xy / det, -yx / det, xx / det
    return (a, b, -a * x0 - b * y0), (c, d, -c * x0 - d * y0)


def _pulled_back(edge: Edge, to_canvas: Matrix) -> Edge:
    """A half plane of the canvas as one of the image."""
    (xx, xy, x0), (yx, yy, y0) = to_canvas
    a, b, c = edge
    return a * xx + b * yx, a * xy + b * yy, a * x0 + b * y0 + c


def _beyond(edge: Edge, point: tuple[float, float]) -> bool:
    a, b, c = edge
    return a * point[0] + b * point[1] + c < -_ROUNDING * (abs(a) + abs(b) + abs(c))
