"""Random crops: drawn as torchvision draws them, and labelled by pooling."""

from __future__ import annotations

import math
import zlib

import torch
from torch import Tensor

from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.pooling import LabelPooling

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
_TRIES = 10

# Stands for a class that a map of probabilities gives no share at all, whose logarithm would be infinite.
_SMALLEST_SHARE = 1e-8


def draw_crops(height: int, width: int, count: int, *, seed: int, key: str) -> Tensor:
    """Draw crops of an image of H x W pixels, with the distribution and the numbers of ``RandomResizedCrop``.

    The same seed and key give the same crops, whatever else is checked. PyTorch's own generator is not used.

    Returns:
        ``[count, 4]``, xyxy, in pixels, float32.
    """
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed}/{key}".encode("utf-8", "surrogateescape")))
    return torch.tensor([_draw_crop(height, width, generator) for _ in range(count)]).float().reshape(-1, 4)


def _draw_crop(height: int, width: int, generator: torch.Generator) -> tuple[int, int, int, int]:
    """What ``RandomResizedCrop.get_params`` gives where PyTorch's own generator is in the state of this one."""

    def uniform(low: float, high: float) -> float:
        return torch.empty(1).uniform_(low, high, generator=generator).item()

    def whole(below: int) -> int:
        return int(torch.randint(below, (1,), generator=generator).item())

    narrowest, widest = torch.tensor(RATIO).log()
    for _ in range(_TRIES):
        area = height * width * uniform(*SCALE)
        # In single precision, as torchvision does it: the last pixel depends on it.
        ratio = torch.empty(1).uniform_(float(narrowest), float(widest), generator=generator).exp().item()
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            top, left = whole(height - down + 1), whole(width - across + 1)
            return left, top, left + across, top + down
    # Images longer than 4 to 3 may have no crop of such an area: then as much of the middle as the ratios allow.
    across, down = width, height
    if width / height < RATIO[0]:
        down = round(width / RATIO[0])
    elif width / height > RATIO[1]:
        across = round(height * RATIO[1])
    top, left = (height - down) // 2, (width - across) // 2
    return left, top, left + across, top + down


def pool_crops(label_map: LabelMap, boxes_in_image: Tensor, fill: str = "auto") -> Tensor:
    """The logarithm of the soft label of each crop.

    Args:
        label_map: Seen through the whole image.
        boxes_in_image: ``[N, 4]``, xyxy, in fractions of the image.
        fill: As for ``LabelPooling``.

    Returns:
        ``[N, C]``, float32. Of a map of probabilities, no share is below 1e-8.
    """
    count = len(boxes_in_image)
    views = [label_map.view_box.crop(*box).corners for box in boxes_in_image.tolist()]
    residual, image_scores = label_map.residual, label_map.image_scores
    batch = LabelMapBatch(
        label_map.scores.expand(count, *label_map.shape),
        label_map.classes.expand(count, *label_map.shape),
        num_classes=label_map.num_classes,
        view_boxes=torch.tensor(views),
        canvas_sizes=[label_map.canvas_size] * count,
        residual=None if residual is None else residual.expand(count, *residual.shape),
        score_kind=label_map.score_kind,
        image_scores=None if image_scores is None else image_scores.expand(count, -1),
        calibration=label_map.calibration,
    )
    if label_map.score_kind == "logit":
        return LabelPooling(fill=fill, activation=None)(batch).log_softmax(1)
    return LabelPooling(fill=fill)(batch).clamp(min=_SMALLEST_SHARE).log()
