"""A sample being loaded knows the view of its latest image, and notices when it no longer does."""

from __future__ import annotations

import contextlib
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms as v1
from torchvision.transforms import v2

from tests.painted import COLOURS, picture
from torchrelabel import CropNotSeen, RandomResizedCropWithLabelMap, ViewBox
from torchrelabel.data.tracked_image import TrackedImage
from torchrelabel.transforms._loading import LoadingSample, View, loading_sample, same_box
from torchrelabel.transforms._steps import steps_of

BLOCKS = np.random.default_rng(0).integers(0, 7, (3, 5))
LEFT = ViewBox(0, 0, 0.5, 1)
RIGHT = ViewBox(0.5, 0, 1, 1)


def tensor() -> Tensor:
    return v1.functional.to_tensor(picture(BLOCKS))


def seen(image: Any) -> LoadingSample:
    """A sample whose latest image, without a crop, is this one."""
    sample = LoadingSample()
    sample.image = image
    return sample


def test_there_is_no_sample_outside_of_loading() -> None:
    assert loading_sample() is None
    with LoadingSample():
        pass
    assert loading_sample() is None


def test_a_sample_loaded_within_another_hands_back_to_it() -> None:
    with LoadingSample() as outer:
        with LoadingSample() as inner:
            assert loading_sample() is inner
        assert loading_sample() is outer


def test_an_error_while_loading_ends_the_sample() -> None:
    with pytest.raises(KeyError), LoadingSample():
        raise KeyError
    assert loading_sample() is None


def test_each_thread_loads_its_own_sample() -> None:
    seen_there = []
    with LoadingSample():
        thread = threading.Thread(target=lambda: seen_there.append(loading_sample()))
        thread.start()
        thread.join()
    assert seen_there == [None]


def test_a_chain_of_views_has_one_branch() -> None:
    sample = LoadingSample()
    first = sample.follow(sample.view, lambda _: LEFT, "a", crop=True)
    sample.follow(first, lambda _: RIGHT, "b", crop=False)
    assert not sample.branched
    assert sample.view.box == RIGHT
    assert sample.view.cropped


def test_two_views_of_one_image_are_branches() -> None:
    sample = LoadingSample()
    whole = sample.view
    sample.follow(whole, lambda _: LEFT, "a", crop=True)
    sample.follow(whole, lambda _: RIGHT, "b", crop=True)
    assert sample.branched


def test_two_crops_are_branches_even_if_the_first_showed_everything() -> None:
    """Views were told apart by their boxes: a first crop that showed the whole image passed as no crop."""
    sample = LoadingSample()
    whole = sample.view
    sample.follow(whole, lambda _: ViewBox(), "a", crop=True)
    sample.follow(whole, lambda _: RIGHT, "b", crop=True)
    assert sample.branched


def test_views_are_told_apart_by_identity() -> None:
    assert View(None, same_box, cropped=True) != View(None, same_box, cropped=True)


@pytest.mark.parametrize(
    "result",
    [
        torch.zeros(3, 84, 139),
        np.zeros((83, 140, 3)),
        Image.new("RGB", (84, 140)),
        (torch.zeros(3, 84, 140), torch.zeros(3, 20, 20)),
        {"pixel_values": torch.zeros(3, 20, 20)},
    ],
    ids=["tensor", "array", "PIL", "pair", "dict"],
)
def test_another_size_than_the_one_last_seen_is_refused(result: Any) -> None:
    with pytest.raises(
        CropNotSeen, match=r"^The end got an image of \d+ x \d+ pixels \(H x W\), and the one last seen"
    ):
        seen(picture(BLOCKS)).check_size(result, "The end")


@pytest.mark.parametrize("result", [torch.zeros(3, 84, 140), np.zeros((3, 84, 140)), [np.zeros((84, 140, 3))], 7])
def test_the_size_last_seen_passes(result: Any) -> None:
    seen(picture(BLOCKS)).check_size(result, "The end")


FLIPS = {
    "horizontal": lambda image: image.flip(-1),
    "vertical": lambda image: image.flip(-2),
    "both": lambda image: image.flip(-1, -2),
}
# Each changes colours only, and none may pass for a flip.
COLOURINGS = {
    "none": lambda image: image,
    "normalised": v1.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "jittered": v1.ColorJitter(0.4, 0.4, 0.4, 0.1),
    "inverted": lambda image: 1 - image,
    "grey": v1.Grayscale(3),
    "blurred": v1.GaussianBlur(5),
    "posterised": v2.RandomPosterize(2, p=1),
    "erased": v1.RandomErasing(p=1),
    "uint8": v2.ToDtype(torch.uint8, scale=True),
    "BGR": lambda image: image.flip(0),
}


@pytest.mark.parametrize("colouring", COLOURINGS)
@pytest.mark.parametrize("flip", FLIPS)
def test_a_flip_is_noticed_whatever_became_of_the_colours(flip: str, colouring: str) -> None:
    image = tensor()
    changed = image if colouring == "posterised" else COLOURINGS[colouring](image)
    with pytest.raises(CropNotSeen, match="flipped in a way that could not be followed"):
        seen(picture(BLOCKS)).check_unmoved(FLIPS[flip](changed), "The end")


@pytest.mark.parametrize("colouring", COLOURINGS)
def test_other_colours_are_no_flip(colouring: str) -> None:
    image = (tensor() * 255).byte() if colouring == "posterised" else tensor()
    seen(picture(BLOCKS)).check_unmoved(COLOURINGS[colouring](image), "The end")


@pytest.mark.parametrize("as_array", [True, False])
def test_a_flip_between_colours_of_one_brightness_is_noticed(as_array: bool) -> None:
    """Thumbnails were grey: a red and a blue half looked alike, and their exchange was no flip."""
    image = Image.fromarray(COLOURS[np.repeat([[0, 2]], 8, 0).repeat(8, 1)])
    flipped: Any = np.asarray(image)[:, ::-1]
    with pytest.raises(CropNotSeen, match="flipped"):
        seen(image).check_unmoved(flipped if as_array else v1.functional.to_tensor(flipped.copy()), "The end")


def test_a_flip_of_a_picture_that_is_its_own_negative_is_noticed() -> None:
    """Without the sign of the correlation, black and white halves and their mirror image looked the same."""
    image = torch.zeros(3, 16, 16)
    image[..., 8:] = 1
    with pytest.raises(CropNotSeen, match="flipped"):
        seen(image).check_unmoved(image.flip(-1), "The end")


@pytest.mark.parametrize("image", [torch.zeros(3, 11, 17), torch.ones(1, 11, 17)])
def test_an_image_without_structure_cannot_be_flipped(image: Tensor) -> None:
    seen(image).check_unmoved(image.flip(-1), "The end")


def test_our_crop_of_a_tensor_is_told() -> None:
    with LoadingSample() as sample:
        sample.image = image = tensor()
        cropped = RandomResizedCropWithLabelMap(24)(image)
        assert sample.view.cropped
        assert sample.image is cropped
        assert sample.view.box != ViewBox()


def test_our_crop_of_another_image_of_the_same_size_is_refused() -> None:
    """A mosaic that crops a second image while the first is being loaded."""
    other = v1.functional.to_tensor(picture(np.random.default_rng(1).integers(0, 7, (3, 5))))
    with LoadingSample() as sample:
        RandomResizedCropWithLabelMap((84, 140))(tensor())
        with pytest.raises(CropNotSeen, match="another image than the one last seen"):
            RandomResizedCropWithLabelMap(24)(other)
        assert sample.view.cropped


def test_our_crop_of_an_image_and_a_target_says_what_it_takes() -> None:
    with LoadingSample(), pytest.raises(TypeError, match="takes one image here, got Tensor, int"):
        RandomResizedCropWithLabelMap(24)(tensor(), 3)


class Recorded(v1.Compose):
    """A subclass of Compose, which may do more than its steps."""

    def __call__(self, img: Any) -> Any:
        return super().__call__(img).mul(2)


def test_a_subclass_of_compose_is_called_as_a_whole() -> None:
    with LoadingSample() as sample:
        image = TrackedImage.of(picture(BLOCKS), sample)
        assert sample.run(steps_of(Recorded([v1.CenterCrop(20), v1.ToTensor()])), image).max() == 2


@pytest.mark.parametrize("step", [v1.Pad(4), v1.RandomCrop(24, padding=4), v2.RandomZoomOut(p=1), v1.CenterCrop(200)])
def test_a_step_that_pads_is_named(step: Any) -> None:
    with LoadingSample() as sample, pytest.raises(CropNotSeen) as error:
        sample.run(steps_of(v1.Compose([v1.CenterCrop(80), step])), TrackedImage.of(picture(BLOCKS), sample))
    assert str(error.value).startswith(f"{type(step).__name__}(")
    assert "got a PIL image and cropped or padded it" in str(error.value)


def test_a_crop_within_a_container_is_looked_for() -> None:
    inner = torch.nn.Sequential(v1.RandomApply([v1.RandomCrop(24)], p=0))
    with LoadingSample() as sample, pytest.raises(CropNotSeen, match=r"^Sequential\(.* got Tensor and cropped"):
        sample.run(
            steps_of(v1.Compose([v1.CenterCrop(80), v1.ToTensor(), inner])), TrackedImage.of(picture(BLOCKS), sample)
        )


def test_a_known_pipeline_may_solarize_where_flips_matter() -> None:
    """Thumbnails were compared, and every second solarized image passed for a flipped one."""
    steps = steps_of(v1.Compose([v1.RandomResizedCrop(64), v1.ToTensor(), v1.RandomSolarize(0.5, p=1)]))
    refused = 0
    for seed in range(40):
        torch.manual_seed(seed)
        with LoadingSample() as sample:
            image = picture(np.random.default_rng(seed).integers(0, 7, (3, 5)))
            result = sample.run(steps, TrackedImage.of(image, sample))
            sample.check_unmoved(result, "The end")
            sample._known = False
            try:
                sample.check_unmoved(result, "The end")
            except CropNotSeen:
                refused += 1
    assert refused  # or this test would not tell anything


def test_a_flip_under_an_eraser_is_noticed_by_its_name() -> None:
    """Thumbnails were compared, and a large erased patch could hide the flip."""
    steps = steps_of(v1.Compose([v1.CenterCrop(60), v1.ToTensor(), v1.RandomHorizontalFlip(1)]))
    with LoadingSample() as sample:
        result = sample.run(steps, TrackedImage.of(picture(BLOCKS), sample))
        with pytest.raises(CropNotSeen, match=r"image that RandomHorizontalFlip\(p=1\) had flipped"):
            sample.check_unmoved(torch.zeros_like(result), "The end")


def test_modules_that_other_threads_run_are_nobodys_step() -> None:
    with LoadingSample() as sample, sample.listening():
        thread = threading.Thread(target=lambda: v1.CenterCrop(3)(tensor()))
        thread.start()
        thread.join()
        with pytest.raises(CropNotSeen, match=r"^CenterCrop\(size=\(3, 3\)\) got Tensor and cropped"):
            v1.CenterCrop(3)(tensor())


def test_nobody_listens_once_a_sample_is_loaded() -> None:
    with LoadingSample() as sample, pytest.raises(CropNotSeen), sample.listening():
        v1.CenterCrop(3)(tensor())
    with LoadingSample():
        v1.CenterCrop(3)(tensor())
    assert not torch.nn.modules.module._global_forward_hooks
    assert not torch.nn.modules.module._global_forward_pre_hooks


def test_a_step_that_failed_leaves_the_others_in_order() -> None:
    class Fails(v1.CenterCrop):
        def forward(self, img: Any) -> Any:
            raise OSError

    class CropAndTry(torch.nn.Module):
        def forward(self, img: Any) -> Any:
            crop = v1.CenterCrop(40)(img)
            with contextlib.suppress(OSError):
                Fails(3)(crop)
            return v1.functional.to_tensor(crop)

    with LoadingSample() as sample, sample.listening():
        crop = CropAndTry()(TrackedImage.of(picture(BLOCKS), sample))
        with pytest.raises(CropNotSeen, match=r"^RandomCrop"):
            v1.RandomCrop(20)(crop)
