"""Views read off an image of coordinates: each pixel holds its own x and y, wherever a transform takes it."""

from __future__ import annotations

import numpy as np
import torch
from torchvision import tv_tensors


class Unreadable(Exception):
    """Too little of the image is left in view to tell where it is."""


def coordinate_image(height: int, width: int) -> tv_tensors.Image:
    """An image ``[3, H, W]`` of x and y of each pixel's centre, and of ones where it is an image and no padding."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return tv_tensors.Image(torch.stack([x, y, torch.ones_like(x)]).double())


def view_of(image: torch.Tensor, height: int, width: int) -> tuple[float, float, float, float]:
    """The view box of what became of ``coordinate_image(height, width)``.

    Raises:
        Unreadable: If too few pixels are left, or they do not lie on a line.
    """
    x, y, whole = image.as_subclass(torch.Tensor).numpy()
    whole = np.abs(whole - 1) < 1e-9  # a pixel interpolated between image and padding tells nothing
    x1, x2 = _ends(np.where(whole, x, np.nan))
    y1, y2 = _ends(np.where(whole, y, np.nan).T)
    return x1 / width, y1 / height, x2 / width, y2 / height


def _ends(coordinate: np.ndarray) -> tuple[float, float]:
    """A coordinate continued to the first and the last border of the canvas, along the rows."""
    line = coordinate[np.isfinite(coordinate).sum(1).argmax()]
    at = np.flatnonzero(np.isfinite(line))
    if len(at) < 5:
        raise Unreadable
    steps = np.diff(line[at]) / np.diff(at)
    slope = np.median(steps)
    # Pixels at a border are clamped when an image is enlarged: most of them must tell the truth, not all.
    offset = np.median(line[at] - slope * (at + 0.5))
    right = np.abs(line[at] - slope * (at + 0.5) - offset) < 1e-6
    if right.sum() < 4 or right.mean() < 0.6 or abs(slope) < 1e-6:
        raise Unreadable
    return offset, offset + slope * len(line)
