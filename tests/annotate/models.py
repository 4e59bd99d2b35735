"""Small models and images for the tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor, nn

from torchrelabel.annotate import Annotator
from torchrelabel.store import LabelStore


def make_model(name: str, **options: Any) -> Any:
    """Build a model of timm's whose weights, random, are the same every time, and whose classifier is not zero."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = timm.create_model(name, pretrained=False, **options)
        classifiers = model.get_classifier()
        for classifier in classifiers if isinstance(classifiers, tuple) else (classifiers,):
            for parameter in classifier.parameters():
                nn.init.normal_(parameter, std=0.02)
    return model.eval()


def make_images(count: int, size: int) -> Tensor:
    """Return noise, ``[count, 3, size, size]``."""
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(1))


def make_folder(root: Path, keys: list[str], size: tuple[int, int] = (17, 11)) -> Path:
    """Write images of noise, ``size`` = (width, height) pixels, under these names."""
    for number, key in enumerate(keys):
        path = root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path, "PNG")  # whatever the extension: PIL looks at the content
    return root


class FourCorners(nn.Module):
    """A classifier of four classes that answers, per cell, with the mean of one colour: R, G, B, or none."""

    def __init__(self, poison: float | None = None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))
        self.poison = poison

    def forward_features(self, images: Tensor) -> Tensor:
        """Average the image over blocks of 4 x 4 pixels: ``[N, 3, S / 4, S / 4]``."""
        return nn.functional.avg_pool2d(images, 4) * self.gain

    def forward_head(self, features: Tensor) -> Tensor:
        """Return ``[N, 4]``: the colours' means, and 0."""
        logits = nn.functional.pad(features.mean(dim=(2, 3)), (0, 1))
        if self.poison is not None:
            logits = torch.where(logits[:, :1] > 0.9, torch.full_like(logits, self.poison), logits)
        return logits

    def forward(self, images: Tensor) -> Tensor:
        """Return ``[N, 4]``."""
        return self.forward_head(self.forward_features(images))


def four_corners(poison: float | None = None, amp: bool = False, model: FourCorners | None = None) -> Annotator:
    return Annotator(
        model or FourCorners(poison),
        name="four",
        image_size=12,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        interpolation="bilinear",
        weights="ours",
        device="cpu",
        amp=amp,
    )


def payloads(path: Path) -> dict[str, bytes]:
    """Records but for their checksum, which covers the store's identity."""
    store = LabelStore(path)
    return {key: store.raw_record(key.encode())[1][4:] for key in store}
