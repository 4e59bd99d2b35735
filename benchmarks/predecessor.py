"""How ReLabel's training code comes to a label, as a reference of our own: one file an image, and a dense map.

A file holds a float32 tensor ``[2, 5, 15, 15]``, scores and class indices. It is loaded with ``torch.load``, scattered
into zeros ``[1000, 15, 15]``, pooled with ``roi_align`` and put through softmax, sample by sample. Of the predecessors'
exchanged axes nothing is kept: boxes are right, and so are the labels.

Source: https://github.com/naver-ai/relabel_imagenet, utils/relabel_functions.py.
"""

from __future__ import annotations

from pathlib import Path

import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align

from benchmarks.synthetic import SyntheticMap


def save(path: Path, label_map: SyntheticMap) -> None:
    """Write a map as the published ones are."""
    scores, classes = (torch.from_numpy(each.astype("float32")) for each in label_map[:2])
    torch.save(torch.stack([scores, classes]), path)


def label(path: Path, box: tuple[float, float, float, float] | NDArray[object], num_classes: int = 1000) -> Tensor:
    """The soft label ``[C]`` of a box ``(x1, y1, x2, y2)`` in fractions of the image."""
    scores, classes = torch.load(path, weights_only=True)
    _, height, width = scores.shape
    dense = torch.zeros(1, num_classes, height, width).scatter_(1, classes[None].long(), scores[None])
    x1, y1, x2, y2 = box
    box_in_map = torch.tensor([[0, x1 * width, y1 * height, x2 * width, y2 * height]], dtype=torch.float32)
    pooled = roi_align(dense, box_in_map, (1, 1), aligned=True, sampling_ratio=-1)
    return pooled[0, :, 0, 0].softmax(0)
