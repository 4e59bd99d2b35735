"""Views as 3 x 3 matrices: from pixels of the canvas to pixels of the annotated image, in exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np

Size = tuple[int, int]  # (H, W)


def matrix(scale_x: Any = 1, scale_y: Any = 1, shift_x: Any = 0, shift_y: Any = 0) -> np.ndarray:
    """``x -> scale_x * x + shift_x`` and the same in y, for column vectors (x, y, 1)."""
    rows = [[scale_x, 0, shift_x], [0, scale_y, shift_y], [0, 0, 1]]
    return np.array([[Fraction(entry) for entry in row] for row in rows], dtype=object)


def crop(left: Any, top: Any) -> np.ndarray:
    """A crop, or a pad if negative: pixel 0 of the new canvas was at (left, top) of the old one."""
    return matrix(shift_x=left, shift_y=top)


def flip_x(size: Size) -> np.ndarray:
    """A horizontal flip of a canvas of this size."""
    return matrix(scale_x=-1, shift_x=size[1])


def flip_y(size: Size) -> np.ndarray:
    """A vertical flip of a canvas of this size."""
    return matrix(scale_y=-1, shift_y=size[0])


def resize(old: Size, new: Size) -> np.ndarray:
    """The whole of a canvas of size ``old`` shown on one of size ``new``."""
    return matrix(scale_x=Fraction(old[1], new[1]), scale_y=Fraction(old[0], new[0]))


def corners(view: np.ndarray, image: Size, canvas: Size) -> tuple[Fraction, Fraction, Fraction, Fraction]:
    """What the corners of the canvas show, ``(x1, y1, x2, y2)``, as fractions of the annotated image."""
    first = view @ np.array([0, 0, 1], dtype=object)
    last = view @ np.array([canvas[1], canvas[0], 1], dtype=object)
    return first[0] / image[1], first[1] / image[0], last[0] / image[1], last[1] / image[0]
