"""Every public functional of torchvision's v2 is accounted for, so that a new one fails by name."""

from __future__ import annotations

import pytest
from torchvision.transforms.v2 import functional as F

from tests.references.label_maps import make_label_map
from torchrelabel import LabelMap

FOLLOWED = {
    "center_crop",
    "affine",
    "crop",
    "five_crop",
    "hflip",
    "horizontal_flip",
    "pad",
    "resize",
    "resized_crop",
    "rotate",
    "ten_crop",
    "vertical_flip",
    "vflip",
}
REFUSED = {"elastic", "elastic_transform", "perspective"}
NOT_MOVING_PIXELS = {
    "adjust_brightness",
    "adjust_contrast",
    "adjust_gamma",
    "adjust_hue",
    "adjust_saturation",
    "adjust_sharpness",
    "autocontrast",
    "clamp_bounding_boxes",
    "clamp_keypoints",
    "convert_bounding_box_format",
    "convert_image_dtype",
    "equalize",
    "erase",  # shows less of the crop, and no other part
    "gaussian_blur",
    "gaussian_noise",
    "get_dimensions",
    "get_image_num_channels",
    "get_image_size",
    "get_num_channels",
    "get_num_frames",
    "get_size",
    "grayscale_to_rgb",
    "invert",
    "jpeg",
    "normalize",
    "permute_channels",
    "pil_to_tensor",
    "posterize",
    "rgb_to_grayscale",
    "sanitize_bounding_boxes",
    "sanitize_keypoints",
    "solarize",
    "to_dtype",
    "to_grayscale",
    "to_image",
    "to_image_pil",
    "to_image_tensor",
    "to_pil_image",
    "to_tensor",
    "uniform_temporal_subsample",  # frames of a video
}
NO_FUNCTIONALS = {"InterpolationMode", "is_pure_tensor", "register_kernel"}
# The kernels of torchvision's own types, such as crop_image and crop_bounding_boxes.
KERNEL_ENDINGS = ("image", "video", "mask", "bounding_boxes", "keypoints")


def functionals():
    """The public names of functionals, without the kernels that belong to them."""
    names = {name for name in dir(F) if not name.startswith("_") and callable(getattr(F, name))} - NO_FUNCTIONALS
    known = FOLLOWED | REFUSED | NOT_MOVING_PIXELS
    kernels = {f"{name}_{ending}" for name in names for ending in KERNEL_ENDINGS} - known
    return names - kernels


def test_every_functional_of_this_torchvision_is_accounted_for():
    unknown = functionals() - FOLLOWED - REFUSED - NOT_MOVING_PIXELS
    assert not unknown, (
        f"torchvision has functionals that this census does not know: {', '.join(sorted(unknown))}. If one moves "
        f"pixels, write a kernel in label_map/kernels.py or refuse it in label_map/refusals.py."
    )


def test_the_census_notices_a_functional_that_it_does_not_know(monkeypatch):
    monkeypatch.setattr(F, "swirl", lambda inpt: inpt, raising=False)
    monkeypatch.setattr(F, "swirl_image", lambda inpt: inpt, raising=False)
    with pytest.raises(AssertionError, match=r"does not know: swirl\."):
        test_every_functional_of_this_torchvision_is_accounted_for()


def test_no_functional_is_in_two_lists():
    assert not (FOLLOWED & REFUSED | FOLLOWED & NOT_MOVING_PIXELS | REFUSED & NOT_MOVING_PIXELS)


@pytest.mark.parametrize("name", sorted(FOLLOWED | REFUSED))
def test_a_functional_that_moves_pixels_has_a_kernel(name):
    kernels = F._utils._KERNEL_REGISTRY[getattr(F, name)]
    assert LabelMap in kernels


@pytest.mark.parametrize("name", sorted(NOT_MOVING_PIXELS & set(dir(F))))
def test_a_functional_that_moves_no_pixels_has_none_and_lets_the_map_through(name):
    kernels = F._utils._KERNEL_REGISTRY.get(getattr(F, name))
    if kernels is None:
        return  # it asks, converts or cleans up, and dispatches by no type
    label_map = make_label_map()
    assert LabelMap not in kernels
    assert F._utils._get_kernel(getattr(F, name), LabelMap, allow_passthrough=True)(label_map) is label_map
