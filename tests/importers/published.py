"""Label maps as their publishers write them, small and never square."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

CLASSES = 40


def tensor(seed: int = 0, top_k: int = 5, rows: int = 7, columns: int = 5, classes: int = CLASSES) -> Tensor:
    """``[2, K, h, w]``: descending logits, and distinct classes in each cell."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(top_k, rows, columns, generator=generator).mul(10).sort(0, descending=True).values
    indices = torch.rand(classes, rows, columns, generator=generator).argsort(0)[:top_k]
    return torch.stack([scores, indices.float()])


def left_and_right(rows: int, columns: int, left: int, right: int) -> Tensor:
    """``[2, 2, h, w]``: class ``left`` at logit 9 in the left half of the columns, ``right`` in the right half."""
    indices = torch.empty(2, rows, columns)
    indices[0, :, : columns // 2], indices[1, :, : columns // 2] = left, right
    indices[0, :, columns // 2 :], indices[1, :, columns // 2 :] = right, left
    scores = torch.stack([torch.full((rows, columns), 9.0), torch.zeros(rows, columns)])
    return torch.stack([scores, indices])


def save(path: Path, content: Any, **options: Any) -> Path:
    """A file of torch.save, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path, **options)
    return path


def save_image(path: Path, width: int = 17, height: int = 11) -> Path:
    """An image file of a size, with its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height)).save(path, format="png")
    return path
