from __future__ import annotations

import inspect
import random
import re

import numpy as np
import PIL.Image
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional as F

from tests.references.coordinates import coordinate_image, view_of
from tests.references.label_maps import make_label_map
from torchrelabel import LabelMap, LabelMapBatch, RandomResizedCropWithLabelMap, ViewBox
from torchrelabel.following.follow import plain
from torchrelabel.following.trace import CropTrace

H, W = 37, 23


def pixels():
    return torch.randint(0, 256, (3, H, W), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def as_pil():
    return PIL.Image.fromarray(pixels().permute(1, 2, 0).numpy())


IMAGES = {"PIL": as_pil, "tensor": pixels, "tv_tensor": lambda: tv_tensors.Image(pixels())}

SETTINGS = [
    {"size": (9, 13)},
    {"size": 8, "scale": (0.05, 0.3), "ratio": (0.5, 2.0)},
    {"size": (9, 13), "interpolation": InterpolationMode.BICUBIC, "antialias": False},
    {"size": (9, 13), "interpolation": InterpolationMode.NEAREST},
]


def assert_identical(image, expected):
    assert type(image) is type(expected)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def random_state():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.filterwarnings("ignore:Anti-alias option is always applied for PIL")
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("arguments", SETTINGS)
def test_beside_a_map_the_pixels_and_the_random_stream_are_torchvisions(kind, arguments):
    mine, torchvisions = RandomResizedCropWithLabelMap(**arguments), v2.RandomResizedCrop(**arguments)
    for seed in range(5):
        torch.manual_seed(seed)
        expected, after = torchvisions(IMAGES[kind]()), random_state()
        torch.manual_seed(seed)
        image, label_map = mine(IMAGES[kind](), make_label_map(canvas_size=(H, W)))
        assert_identical(image, expected)
        assert random_state() == after
        assert label_map.canvas_size == tuple(F.get_size(image))


@pytest.mark.filterwarnings("ignore:Anti-alias option is always applied for PIL")
@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("arguments", SETTINGS)
def test_alone_while_a_sample_loads_the_pixels_and_the_random_stream_are_torchvisions(kind, arguments):
    mine, torchvisions = RandomResizedCropWithLabelMap(**arguments), v2.RandomResizedCrop(**arguments)
    for seed in range(5):
        torch.manual_seed(seed)
        expected, after = torchvisions(IMAGES[kind]()), random_state()
        torch.manual_seed(seed)
        with CropTrace():
            image = plain(mine(IMAGES[kind]()))
        assert_identical(image, expected)
        assert random_state() == after


def test_the_map_is_cropped_to_the_pixels():
    crop = RandomResizedCropWithLabelMap((30, 41), scale=(0.3, 1.0), antialias=False)
    for seed in range(10):
        torch.manual_seed(seed)
        image, label_map = crop(coordinate_image(H, W), make_label_map(canvas_size=(H, W)))
        assert tuple(label_map.view_box) == pytest.approx(view_of(image, H, W), abs=1e-6)


def test_the_sample_that_loads_is_told_of_the_crop():
    crop = RandomResizedCropWithLabelMap((30, 41), scale=(0.3, 1.0), antialias=False)
    with CropTrace() as trace:
        image = crop(coordinate_image(H, W))
    assert trace.cropped
    assert not trace.ambiguous
    assert tuple(trace.view) == pytest.approx(view_of(image, H, W), abs=1e-6)


def test_any_structure_is_cropped():
    sample = {"image": pixels(), "rest": [make_label_map(canvas_size=(H, W)), 7]}
    out = RandomResizedCropWithLabelMap((9, 13))(sample)
    assert out["image"].shape == (3, 9, 13)
    assert isinstance(out["rest"][0], LabelMap)
    assert out["rest"][0].canvas_size == (9, 13)
    assert out["rest"][0].view_box != ViewBox()
    assert out["rest"][1] == 7


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_alone_outside_a_dataset_is_an_error(kind):
    words = (
        f"RandomResizedCropWithLabelMap got {type(IMAGES[kind]()).__name__} without a LabelMap, outside a "
        f"LabelMapDataset: the label of this crop would be lost. Call it on (image, label_map), wrap the dataset in "
        f"LabelMapDataset, or use v2.RandomResizedCrop for images without label maps."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(words)}$"):
        RandomResizedCropWithLabelMap(9)(IMAGES[kind]())


def test_the_error_names_everything_that_was_given():
    with pytest.raises(TypeError, match="got Tensor, Mask, str without a LabelMap"):
        RandomResizedCropWithLabelMap(9)(pixels(), {"mask": tv_tensors.Mask(pixels()), "name": "a"})


def test_nothing_at_all_is_an_error():
    with pytest.raises(TypeError, match="got nothing without a LabelMap"):
        RandomResizedCropWithLabelMap(9)()


def test_a_batch_of_maps_is_an_error():
    words = (
        "RandomResizedCropWithLabelMap cannot crop a LabelMapBatch: crop each image with its own map before they are "
        "collated, in the dataset's pipeline."
    )
    batch = LabelMapBatch.stack([make_label_map()])
    with pytest.raises(TypeError, match=f"^{re.escape(words)}$"):
        RandomResizedCropWithLabelMap(9)(pixels()[None], batch)


def test_two_things_without_a_map_while_a_sample_loads_are_an_error():
    with CropTrace(), pytest.raises(TypeError, match=r"takes one image here, got Tensor, Mask\.$"):
        RandomResizedCropWithLabelMap(9)(pixels(), tv_tensors.Mask(pixels()))


def test_the_signature_is_torchvisions():
    assert inspect.signature(RandomResizedCropWithLabelMap) == inspect.signature(v2.RandomResizedCrop)


def test_it_prints_as_torchvisions_does():
    mine = repr(RandomResizedCropWithLabelMap(9, scale=(0.3, 1)))
    assert mine == repr(v2.RandomResizedCrop(9, scale=(0.3, 1))).replace(
        "RandomResizedCrop", "RandomResizedCropWithLabelMap"
    )
