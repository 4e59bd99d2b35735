"""Random crops: drawn as torchvision draws them, cut out of images, and labelled by pooling."""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import RandomResizedCrop

from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.pooling import LabelPooling

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)

# Stands for a class that a map of probabilities gives no share at all, whose logarithm would be infinite.
_SMALLEST_SHARE = 1e-8


def draw_crops(height: int, width: int, count: int, *, seed: int, key: str) -> Tensor:
    """Draw crops of an image of H x W pixels, as ``RandomResizedCrop`` does with its defaults.

    The same seed and key give the same crops, whatever else is checked. PyTorch's own generator is left as it was.

    Returns:
        ``[count, 4]``, xyxy, in pixels, float32.
    """
    image = torch.empty(1).expand(1, height, width)
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(zlib.crc32(f"{seed}/{key}".encode("utf-8", "surrogateescape")))
    try:
        drawn = [RandomResizedCrop.get_params(image, list(SCALE), list(RATIO)) for _ in range(count)]
    finally:
        torch.set_rng_state(state)
    return torch.tensor([(left, top, left + w, top + h) for top, left, h, w in drawn]).float().reshape(-1, 4)


def pool_crops(label_map: LabelMap, boxes_in_image: Tensor, fill: str = "zero") -> Tensor:
    """The logarithm of the soft label of each crop.

    Args:
        label_map: Seen through the whole image.
        boxes_in_image: ``[N, 4]``, xyxy, in fractions of the image.
        fill: As for ``LabelPooling``.

    Returns:
        ``[N, C]``, float32. Of a map of probabilities, no share is below 1e-8.
    """
    count = len(boxes_in_image)
    views = [tuple(label_map.view_box.crop(*box)) for box in boxes_in_image.tolist()]
    residual = label_map.residual
    batch = LabelMapBatch(
        label_map.scores.expand(count, *label_map.shape),
        label_map.classes.expand(count, *label_map.shape),
        num_classes=label_map.num_classes,
        view_boxes=torch.tensor(views),
        canvas_sizes=[label_map.canvas_size] * count,
        residual=None if residual is None else residual.expand(count, *residual.shape),
        score_kind=label_map.score_kind,
    )
    if label_map.score_kind == "logit":
        return LabelPooling(fill=fill, activation=None)(batch).log_softmax(1)
    return LabelPooling(fill=fill)(batch).clamp(min=_SMALLEST_SHARE).log()


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Load an image as it was annotated: RGB, EXIF rotation ignored.

    Raises:
        OSError: If the file is none, or not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
        raise OSError("not a regular file")
    with open(path, "rb") as file, Image.open(file) as image:
        return image.convert("RGB")


def cut_out(image: Image.Image, box_in_pixels: Sequence[float], size: int, interpolation: str) -> Tensor:
    """The crop of an image, squashed to S x S pixels as an annotator squashes whole images: ``[3, S, S]``, uint8."""
    x1, y1, x2, y2 = (round(side) for side in box_in_pixels)
    crop = image.crop((x1, y1, x2, y2)).resize((size, size), Image.Resampling[interpolation.upper()])
    return torch.from_numpy(np.array(crop)).permute(2, 0, 1).contiguous()
