"""Painted images: the right label of any part of one can be read off its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from torchrelabel import LabelStoreWriter

# One colour a class. None is black, which is what padding adds and erasing leaves.
COLOURS = np.array(
    [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255], [255, 255, 255]], np.uint8
)
C = len(COLOURS)
BLOCK = 28  # pixels of one colour, each way
ROWS, COLUMNS = 3, 5  # blocks
H, W = ROWS * BLOCK, COLUMNS * BLOCK
CELLS = 4  # cells of the label map in a block, each way: none shows two colours

WRONG = 0.03  # a mean label error above this is a label of another part of the image


@dataclass(frozen=True)
class Painted:
    """A folder of painted images with the store of their label maps.

    Attributes:
        root: As for ``ImageFolder``: one folder a class.
        store: The label store.
        keys: One for each image, in ImageFolder's order.
        blocks: The class of every block of an image, by key, ``[ROWS, COLUMNS]``.
    """

    root: Path
    store: Path
    keys: list[str]
    blocks: dict[str, Any]


def paint(folder: Path, *, each: int = 1, suffix: str = ".png", classes: int = C) -> Painted:
    """Paint ``each`` images for every class folder, and write the store of their one-hot label maps."""
    rng = np.random.default_rng(7)
    root, store = folder / "images", folder / "maps.lmdb"
    blocks: dict[str, Any] = {}
    with LabelStoreWriter(store, num_classes=C, top_k=1, score_kind="probability") as writer:
        for number in range(classes * each):
            key = f"{number // each:03d}.class/image {number}{suffix}"
            blocks[key] = rng.integers(0, C, (ROWS, COLUMNS))
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            picture(blocks[key]).save(root / key, quality=95)
            cells = enlarged(blocks[key], CELLS)[None]
            writer.put(key, np.ones(cells.shape, np.float32), cells)
    return Painted(root, store, list(blocks), blocks)


def maps_of_the_folders(painted: Painted) -> Path:
    """Write a store whose label maps say the class of an image's folder in every cell."""
    path = painted.root.parent / "folders.lmdb"
    with LabelStoreWriter(path, num_classes=C, top_k=1, score_kind="probability") as writer:
        for key in painted.keys:
            classes = np.full((1, ROWS, COLUMNS), int(key[:3]))
            writer.put(key, np.ones(classes.shape, np.float32), classes)
    return path


def picture(blocks: Any) -> Image.Image:
    """The painted image of a grid of classes, W x H pixels."""
    return Image.fromarray(COLOURS[enlarged(blocks, BLOCK)])


def enlarged(blocks: Any, times: int) -> Any:
    """Every entry of a grid, that many times in each direction."""
    return blocks.repeat(times, 0).repeat(times, 1)


def label_of(image: Any) -> Any:
    """The share of each class among the painted pixels of an image, ``[C]``.

    Args:
        image: PIL, or a tensor ``[3, H, W]``, or an array with its channels first or last; 0 to 255, or floats 0 to 1.
    """
    pixels = np.asarray(image.detach() if isinstance(image, torch.Tensor) else image)
    if pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0)
    pixels = pixels.astype(np.float32) * (1 if pixels.dtype == np.uint8 else 255)
    painted = pixels[pixels.max(-1) > 96]
    distances = ((painted[:, None] - COLOURS.astype(np.float32)) ** 2).sum(-1)
    return np.bincount(distances.argmin(1), minlength=C) / max(len(painted), 1)


def label_error(image: Any, label: Any) -> float:
    """How much of a soft label lies on other classes than the pixels of its image: 0 to 1."""
    return float(np.abs(label_of(image) - np.asarray(label)).sum() / 2)
