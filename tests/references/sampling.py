"""Pooling by looking at one point after the other."""

from __future__ import annotations

import math
from typing import Any

import numpy as np


def pool_points(dense: np.ndarray, view: tuple[Any, Any, Any, Any], bins: tuple[int, int] = (1, 1)) -> np.ndarray:
    """Average a dense map ``[C, h, w]`` over what each token of a view shows of the image: ``[C, gh, gw]``.

    Each token is cut to the part inside the image and sampled at the centres of equal pieces, as many as it has cells
    along each side, rounded up. A token that shows nothing of the image is zero. Give the view as exact fractions.
    """
    x1, y1, x2, y2 = view
    pooled = np.zeros((dense.shape[0], *bins))
    for i in range(bins[0]):
        for j in range(bins[1]):
            rows = _points(y1 + (y2 - y1) * i / bins[0], y1 + (y2 - y1) * (i + 1) / bins[0], dense.shape[1])
            columns = _points(x1 + (x2 - x1) * j / bins[1], x1 + (x2 - x1) * (j + 1) / bins[1], dense.shape[2])
            values = [_value(dense, y, x) for y in rows for x in columns]
            if values:
                pooled[:, i, j] = np.mean(values, axis=0)
    return pooled


def _points(first: Any, last: Any, cells: int) -> list[float]:
    low, high = (min(max(end, 0), 1) * cells for end in sorted((first, last)))
    count = math.ceil(high - low)
    return [float(low + (high - low) * (2 * k + 1) / (2 * count)) for k in range(count)]


def _value(dense: np.ndarray, y: float, x: float) -> np.ndarray:
    """Bilinear interpolation between the centres of cells; beyond the outermost centres the map is flat."""
    y = min(max(y - 0.5, 0.0), dense.shape[1] - 1.0)
    x = min(max(x - 0.5, 0.0), dense.shape[2] - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, dense.shape[1] - 1), min(left + 1, dense.shape[2] - 1)
    down, across = y - top, x - left
    above = dense[:, top, left] * (1 - across) + dense[:, top, right] * across
    below = dense[:, bottom, left] * (1 - across) + dense[:, bottom, right] * across
    return above * (1 - down) + below * down


def softmax(scores: np.ndarray) -> np.ndarray:
    """Softmax over the first axis."""
    powers = np.exp(scores - scores.max(0))
    return powers / powers.sum(0)
