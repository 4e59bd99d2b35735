"""Random crops: drawn as torchvision draws them, and labelled by pooling."""

from __future__ import annotations

import zlib

import torch
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
