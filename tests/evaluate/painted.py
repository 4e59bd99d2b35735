"""A classifier whose answer can be read off an image's colour, and folders of such images."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from torchrelabel.evaluate import Classifier, Evaluation, evaluate

SIZE = 8
STEP = 6  # grey levels from one class to the next


class Grey(nn.Module):
    """Scores by the distance of an image's mean grey level to that of each class: 0, 6, 12, ...

    An image that is one level lighter than class c has the classes c, c + 1, c - 1, c + 2, c - 2 on top, in this order.
    """

    def __init__(self, classes: int = 40, poison: float | None = None) -> None:
        super().__init__()
        self.register_buffer("levels", torch.arange(classes) * float(STEP))
        self.gain = nn.Parameter(torch.ones(1))
        self.poison = poison

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, S, S]`` in 0..1 to ``[N, C]``."""
        level = images.mean((1, 2, 3), keepdim=True)[..., 0, 0] * 255
        scores = -((level - self.levels) ** 2) * self.gain / 10
        return scores if self.poison is None else scores.masked_fill(level > 250, self.poison)


class Colours(nn.Module):
    """The same for ImageNet's 1000 classes: class 123 is red 25, green 50, blue 75."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.tensor([[c // 100, c // 10 % 10, c % 10] for c in range(1000)]) * 25.0)
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, images: Tensor) -> Tensor:
        """``[N, 3, S, S]`` in 0..1 to ``[N, 1000]``."""
        return -((images.mean((2, 3))[:, None] * 255 - self.codes) ** 2).sum(-1) * self.gain / 10


def classifier(model: nn.Module, **options: Any) -> Classifier:
    given = {"image_size": SIZE, "mean": (0, 0, 0), "std": (1, 1, 1), "device": "cpu", "name": "painted"}
    return Classifier(model, **{**given, **options})


def run(model: nn.Module, **options: Any) -> Evaluation:
    return evaluate(classifier(model), workers=0, batch_size=3, **options)


def grey(class_: int, lighter: int = 1) -> tuple[int, int, int]:
    """The colour of an image that `Grey` takes for a class."""
    return (class_ * STEP + lighter,) * 3


def colour(class_: int) -> tuple[int, int, int]:
    """The colour of an image that `Colours` takes for a class."""
    return (class_ // 100 * 25, class_ // 10 % 10 * 25, class_ % 10 * 25)


def paint(root: Path, images: Iterable[tuple[str, tuple[int, int, int]]], size: tuple[int, int] = (SIZE, SIZE)) -> Path:
    """Write images of one colour each, ``size`` = (width, height); lossless, whatever they are called."""
    for key, rgb in images:
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((size[1], size[0], 3), rgb, np.uint8)).save(path, "PNG")
    return root


def val(number: int) -> str:
    return f"ILSVRC2012_val_{number:08d}.JPEG"
