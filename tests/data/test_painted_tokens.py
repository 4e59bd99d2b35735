"""The label of each token is what its pixels show, whatever was done to the image and its label map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import default_collate
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, v2

from tests.painted import WRONG, C, Painted, label_of
from torchrelabel import (
    CutMixWithLabelMap,
    LabelMapDataset,
    LabelPooling,
    MixUpWithLabelMap,
    PoolLabelMap,
)

GRID, SIZE = (2, 3), (80, 120)
TOKEN = (SIZE[0] // GRID[0], SIZE[1] // GRID[1])
POOLING = LabelPooling(GRID)
NEAREST = InterpolationMode.NEAREST
ENDS = {v1: [v1.ToTensor()], v2: [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]}

STEPS = {
    "a crop": lambda t: [t.RandomResizedCrop(SIZE, (0.3, 1))],
    "flips": lambda t: [t.RandomResizedCrop(SIZE, (0.3, 1)), t.RandomHorizontalFlip(), t.RandomVerticalFlip()],
    "a rotation": lambda t: [t.RandomRotation(45, NEAREST), t.RandomResizedCrop(SIZE, (0.3, 1))],
    "a rotation of the crop": lambda t: [t.RandomResizedCrop(SIZE, (0.3, 1)), t.RandomRotation((20, 70), NEAREST)],
    "a shear": lambda t: [
        t.RandomAffine(30, (0.2, 0.1), (0.7, 1.3), 20, NEAREST),
        t.RandomResizedCrop(SIZE, (0.3, 1)),
        t.RandomHorizontalFlip(1),
    ],
    "a padded crop": lambda t: [t.Resize(SIZE), t.RandomCrop(SIZE, padding=(30, 10))],
}


def tokens_of(image: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """What the pixels of each token show, ``[C, gh, gw]``, and how much of it is painted at all."""
    pixels = np.asarray(image).reshape(3, GRID[0], TOKEN[0], GRID[1], TOKEN[1])
    labels = [[label_of(pixels[:, i, :, j]) for j in range(GRID[1])] for i in range(GRID[0])]
    painted = (pixels.max(0) > 96 / 255).mean((1, 3))
    return torch.from_numpy(np.array(labels)).permute(2, 0, 1), torch.from_numpy(painted)


def mean_error(images: Any, labels: Any) -> float:
    """The mean share of a token's label that lies on classes that it does not show."""
    errors = []
    for image, label in zip(images, labels, strict=True):
        shown, painted = tokens_of(image)
        errors.append(((shown - label).abs().sum(0) / 2)[painted > 0.2])  # in less, the edges are all there is
    return float(torch.cat(errors).mean())


def batch(way: str, steps: Any, painted: Painted, pooling: Any = POOLING, repeats: int = 2) -> Any:
    """Images and labels of all painted images, through the dataset's own pipeline or one of image and label map."""
    version = v1 if way == "v1" else v2
    pipeline = version.Compose([*steps(version), *ENDS[version]])
    if way == "joint":
        dataset = LabelMapDataset(ImageFolder(painted.root), painted.store, transforms=pipeline, pooling=pooling)
    elif way == "joint, pooled within":
        pipeline = v2.Compose([*pipeline.transforms, PoolLabelMap(pooling)])
        dataset = LabelMapDataset(ImageFolder(painted.root), painted.store, transforms=pipeline)
    else:
        dataset = LabelMapDataset(ImageFolder(painted.root, transform=pipeline), painted.store, pooling=pooling)
    return default_collate([dataset[i] for _ in range(repeats) for i in range(len(dataset))])


@pytest.mark.parametrize("way", ["v1", "v2", "joint", "joint, pooled within"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_token_has_the_label_of_its_pixels(steps: Any, way: str, painted: Painted) -> None:
    images, labels = batch(way, steps, painted)
    assert labels.shape == (4 * C, C, *GRID)
    assert mean_error(images, labels) < 1.5 * WRONG
    # The proof can fail: labels of other places are far off.
    assert mean_error(images, labels.flip(2)) > 5 * WRONG
    assert mean_error(images, labels.flip(3)) > 5 * WRONG


@pytest.mark.parametrize("mixer", [CutMixWithLabelMap, MixUpWithLabelMap])
@pytest.mark.parametrize("way", ["v1", "joint"])
@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_each_token_of_a_mixed_batch_has_the_label_of_both_images(
    steps: Any, way: str, mixer: Any, painted: Painted
) -> None:
    """Token by token: of a batch of constant images the same draw tells how much of each comes from the partner."""
    images, maps = batch(way, steps, painted, pooling=None)
    shown, seen = (torch.stack(parts) for parts in zip(*map(tokens_of, images), strict=True))
    known = (seen > 0.2) & (seen.roll(1, 0) > 0.2)
    mix = mixer(pooling=POOLING)
    errors, others = [], []
    for seed in range(4):
        torch.manual_seed(seed)
        _, labels = mix(images, maps)
        torch.manual_seed(seed)
        constant = torch.arange(float(len(images)))[:, None, None, None].expand(-1, 3, *SIZE).clone()
        mixed, _ = mix(constant, maps)
        theirs = adaptive_avg_pool2d((mixed - constant)[:, :1] / (constant.roll(1, 0) - constant)[:, :1], GRID)
        expected = shown.roll(1, 0) * theirs + shown * (1 - theirs)
        errors.append(((labels - expected).abs().sum(1) / 2)[known])
        others.append(((labels.roll(1, 0) - expected).abs().sum(1) / 2)[known])
    assert torch.cat(errors).mean() < 1.5 * WRONG
    assert torch.cat(others).mean() > 5 * WRONG


@pytest.mark.parametrize("labels", ["mixed", "localized"])
def test_tokens_within_or_outside_a_pasted_patch_show_what_their_labels_say(labels: str, painted: Painted) -> None:
    images, maps = batch("joint", STEPS["flips"], painted, pooling=None)
    mix = CutMixWithLabelMap(pooling=POOLING, labels=labels, per_sample=True)
    errors, within = [], 0
    for seed in range(4):
        torch.manual_seed(seed)
        mixed, soft = mix(images, maps)
        torch.manual_seed(seed)
        constant = torch.arange(float(len(images)))[:, None, None, None].expand(-1, 3, *SIZE).clone()
        pasted = adaptive_avg_pool2d((mix(constant, maps)[0] != constant)[:, 0].float(), GRID)
        for image, label, share in zip(mixed, soft, pasted, strict=True):
            shown, _ = tokens_of(image)
            errors.append(((shown - label).abs().sum(0) / 2)[(share == 0) | (share == 1)])
            within += int((share == 1).sum())
    assert within > 30
    assert torch.cat(errors).mean() < 1.5 * WRONG
