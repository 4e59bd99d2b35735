"""What the names of a pipeline's steps say."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torchvision import transforms as v1
from torchvision.transforms import v2

from torchrelabel import RandomResizedCropWithLabelMap
from torchrelabel.transforms._steps import steps_of


class Recorded(v1.Compose):
    """A subclass of Compose, which may do more than its steps."""


class Preset:
    def __init__(self, *steps: Any) -> None:
        self.transforms = v1.Compose(steps)


@pytest.mark.parametrize(
    ("pipeline", "known"),
    [
        (v1.Compose([v1.RandomResizedCrop(9), v1.ToTensor(), v1.RandomErasing()]), True),
        (v2.Compose([v2.RandomResizedCrop(9), v2.Compose([v2.ToImage()]), v2.RandAugment()]), True),
        (v1.Compose([v1.Lambda(lambda image: image)]), False),
        (v1.RandomApply([v1.ToTensor(), v1.RandomSolarize(3)]), True),
        (v2.Compose([v2.RandomChoice([v2.Grayscale(3), v2.RandomApply([v2.GaussianBlur(3)])])]), True),
        (v2.Compose([RandomResizedCropWithLabelMap(9), v2.ToImage()]), True),
        (v1.RandomApply([v1.ToTensor(), lambda image: image]), False),
        (v2.RandomChoice([v2.CenterCrop(9)]), False),
        (v2.RandomOrder([v2.RandomHorizontalFlip()]), False),
        (torch.nn.Sequential(v1.CenterCrop(9)), False),
        (Recorded([v1.CenterCrop(9)]), False),
        (lambda image: image, False),
    ],
    ids=str,
)
def test_which_pipelines_are_told_by_their_names(pipeline: Any, known: bool) -> None:
    assert steps_of(pipeline).known is known


def crop_somehow(image: Any) -> Any:
    return image


@pytest.mark.parametrize(
    ("step", "kind"),
    [
        (v1.RandomResizedCrop(9), "crop"),
        (v2.RandomZoomOut(), "crop"),
        (v1.Pad(3), "crop"),
        (v1.Lambda(v1.CenterCrop(9)), "crop"),
        (v1.RandomApply([v1.RandomCrop(9)]), "crop"),
        (Preset(v1.ToTensor(), v1.RandomCrop(9)), "crop"),
        (torch.nn.Sequential(v1.RandomApply([v1.RandomCrop(9)])), "crop"),
        (partial(v1.functional.resized_crop, size=[9, 9]), "crop"),
        (v2.functional.pad, "crop"),
        (crop_somehow, "crop"),
        (v1.RandomHorizontalFlip(), "flip"),
        (v2.RandomVerticalFlip(), "flip"),
        (v1.RandomRotation(10), "move"),
        (v2.RandAugment(), "move"),
        (v2.ElasticTransform(), "move"),
        (v1.ToTensor(), None),
        (v1.ColorJitter(), None),
        (v1.RandomErasing(), None),
        (v1.Normalize((0,), (1,)), None),
        (v1.functional.to_tensor, None),
    ],
    ids=str,
)
def test_what_a_step_is_named_to_do(step: Any, kind: str | None) -> None:
    assert [told for _, told in steps_of(v1.Compose([step])).calls] == [kind]
