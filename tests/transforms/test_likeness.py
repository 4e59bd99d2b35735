"""The size of an image of any kind, and whether one image is another."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchrelabel.transforms._likeness import alike, flipped, same_pixels, size_of


@pytest.mark.parametrize(
    ("image", "size"),
    [
        (Image.new("L", (17, 11)), (11, 17)),
        (torch.zeros(3, 11, 17), (11, 17)),
        (torch.zeros(2, 11, 17), (11, 17)),
        (np.zeros((11, 17, 3)), (11, 17)),
        (np.zeros((3, 11, 17)), (11, 17)),
        (np.zeros((11, 17)), (11, 17)),
        ({"pixels": [torch.zeros(1, 11, 17)], "label": torch.tensor(3)}, (11, 17)),
        (torch.tensor(3), None),
        ("text", None),
        (None, None),
    ],
    ids=str,
)
def test_the_size_of_an_image_of_any_kind(image: Any, size: Any) -> None:
    assert size_of(image) == size


PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (3, 5, 3), np.uint8)).resize((140, 84), 0)


def test_an_image_is_like_itself_in_other_colours() -> None:
    grey = torch.from_numpy(np.array(PICTURE.convert("L")))[None].float()
    assert alike(PICTURE, 255 - grey)
    assert not flipped(PICTURE, grey)


def test_an_image_is_not_like_its_half_or_its_mirror_image() -> None:
    half = PICTURE.crop((70, 0, 140, 84)).resize((140, 84))
    assert not alike(PICTURE, half)
    assert flipped(PICTURE, PICTURE.transpose(Image.Transpose.FLIP_LEFT_RIGHT))


def test_an_image_without_structure_is_like_any_other() -> None:
    assert alike(PICTURE, torch.zeros(3, 84, 140))


def test_a_grey_image_with_transparency_has_one_channel() -> None:
    """Two channels could not be made three."""
    assert alike(PICTURE.convert("L"), np.array(PICTURE.convert("LA")))
    assert flipped(PICTURE.convert("L"), np.array(PICTURE.convert("LA"))[:, ::-1])


def test_tensors_of_one_memory_are_the_same_pixels() -> None:
    image = torch.rand(3, 4, 6)
    assert same_pixels(image, image.as_subclass(torch.Tensor).detach())
    assert not same_pixels(image, image.clone())
    assert not same_pixels(image, image[:, :2])
    assert same_pixels(PICTURE, PICTURE)
    assert not same_pixels(PICTURE, PICTURE.copy())
