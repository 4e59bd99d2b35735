"""follow: what a pipeline's output shows, read off an image of coordinates; its pixels and draws are the pipeline's."""

from __future__ import annotations

import random
from functools import partial
from typing import Any

import numpy as np
import pytest
import timm.data.auto_augment as timm_augment
import timm.data.transforms as timm_transforms
import torch
from PIL import Image, ImageEnhance
from torchvision import transforms as v1
from torchvision.transforms import functional as F1
from torchvision.transforms import v2

from torchrelabel import CropNotSeen, ViewBox
from torchrelabel.following import Followed, follow, follows, moves_no_pixels

H, W = 120, 160
BILINEAR = v2.InterpolationMode.BILINEAR


def coordinates() -> Image.Image:
    """Red grows from left to right, green from top to bottom, and blue is full where there is an image."""
    y, x = np.mgrid[:H, :W]
    return Image.fromarray(np.stack([x, y, np.full_like(x, 255)], -1).astype(np.uint8))


def seed(number: int) -> None:
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


def streams() -> Any:
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def pixels_of(output: Any) -> Any:
    """``[H, W, 3]``, 0 to 255."""
    if isinstance(output, Image.Image):
        return np.asarray(output).astype(float)
    array = np.asarray(output, dtype=np.float64)
    array = array.transpose(1, 2, 0) if array.shape[0] == 3 else array
    floating = isinstance(output, torch.Tensor) and output.is_floating_point()
    return array * 255 if floating else array


def error_of(followed: Followed) -> tuple[float, float]:
    """How far the coordinates seen are from those of the view, in pixels; and the share of pixels wrongly seen."""
    pixels = pixels_of(followed.output)
    height, width = pixels.shape[:2]
    assert followed.canvas_size == (height, width)
    v, u = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    (xx, xy, x0), (yx, yy, y0) = followed.view.matrix
    x, y = xx * u + xy * v + x0, yx * u + yy * v + y0
    seen = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    for a, b, c in followed.view.edges:
        seen &= a * x + b * y + c > 0
    whole = pixels[..., 2] > 254.5
    both = whole & seen & (np.abs(x - 0.5) < 0.48) & (np.abs(y - 0.5) < 0.48)
    away = np.maximum(np.abs(pixels[..., 0] + 0.5 - x * W), np.abs(pixels[..., 1] + 0.5 - y * H))[both]
    wrong = (seen & (pixels[..., 2] < 0.5)) | (~seen & whole)
    return float(np.median(away)) if len(away) > 20 else 0.0, float(wrong.mean())


def followed_as_alone(step: Any, image: Any, number: int) -> Followed:
    """Follow a step, which gives the pixels and draws the numbers that it gives and draws without us."""
    seed(number)
    expected, drawn = step(image), streams()
    seed(number)
    followed = follow(step, image)
    assert streams() == drawn
    assert type(followed.output) is type(expected)
    np.testing.assert_array_equal(np.asarray(followed.output), np.asarray(expected))
    return followed


V1 = {
    "RandomResizedCrop": v1.RandomResizedCrop((60, 80), antialias=True),
    "RandomCrop": v1.RandomCrop((50, 90)),
    "RandomCrop, padded": v1.RandomCrop((110, 150), padding=(20, 30)),
    "RandomCrop, padded if needed": v1.RandomCrop((150, 120), pad_if_needed=True),
    "CenterCrop": v1.CenterCrop((60, 90)),
    "CenterCrop, larger": v1.CenterCrop((150, 171)),
    "Resize": v1.Resize((60, 70)),
    "Resize, one side": v1.Resize(70),
    "Pad": v1.Pad((5, 11)),
    "RandomHorizontalFlip": v1.RandomHorizontalFlip(1),
    "RandomVerticalFlip": v1.RandomVerticalFlip(1),
    "RandomRotation": v1.RandomRotation(40, BILINEAR),
    "RandomRotation, expanded": v1.RandomRotation(70, BILINEAR, expand=True),
    "RandomAffine": v1.RandomAffine(25, (0.2, 0.1), (0.8, 1.3), 15, BILINEAR),
    "RandomApply": v1.RandomApply([v1.RandomCrop(70), v1.RandomRotation(9)], p=0.5),
    "RandomChoice": v1.RandomChoice([v1.RandomCrop(70), v1.Resize((30, 40))]),
    "RandomOrder": v1.RandomOrder([v1.RandomCrop(70), v1.RandomAffine(0, (0.2, 0.2))]),
    "Lambda": v1.Lambda(partial(F1.crop, top=3, left=7, height=50, width=60)),
    "Sequential": torch.nn.Sequential(v1.RandomCrop(90), v1.RandomRotation(20)),
}
V2 = {
    "v2.RandomResizedCrop": v2.RandomResizedCrop((60, 80)),
    "v2.RandomCrop, padded": v2.RandomCrop((110, 150), padding=(20, 30)),
    "v2.RandomZoomOut": v2.RandomZoomOut(side_range=(1.0, 1.5), p=1),
    "v2.RandomRotation": v2.RandomRotation(40, BILINEAR, expand=True),
    "v2.RandomAffine": v2.RandomAffine(25, (0.2, 0.1), (0.8, 1.3), 15, BILINEAR),
    "v2.ScaleJitter": v2.ScaleJitter((80, 90)),
    "v2.RandomShortestSize": v2.RandomShortestSize([40, 70]),
    "v2.RandomApply": v2.RandomApply([v2.RandomCrop(70), v2.RandomRotation(9)], p=0.5),
    "v2.RandomChoice": v2.RandomChoice([v2.RandomCrop(70), v1.RandomCrop(60)]),
    "v2.Lambda": v2.Lambda(partial(v2.functional.horizontal_flip)),
}
TIMM = {
    "timm RandomResizedCropAndInterpolation": timm_transforms.RandomResizedCropAndInterpolation((60, 80)),
    "timm RandomCropOrPad": timm_transforms.RandomCropOrPad((150, 100)),
    "timm CenterCropOrPad": timm_transforms.CenterCropOrPad((100, 180)),
    "timm RandomPad": timm_transforms.RandomPad((170, 200)),
    "timm ResizeKeepRatio": timm_transforms.ResizeKeepRatio(64),
    "timm TrimBorder": timm_transforms.TrimBorder(9),
}
GEOMETRY = {**V1, **V2, **TIMM}


@pytest.mark.parametrize("form", ["PIL", "tensor"])
@pytest.mark.parametrize("name", GEOMETRY)
def test_a_step_is_followed_and_gives_the_pixels_and_draws_that_it_gives_alone(name: str, form: str) -> None:
    step = GEOMETRY[name]
    if form == "tensor" and name == "timm RandomPad":
        pytest.skip("takes PIL images alone")
    moved = 0
    for number in range(6):
        image: Any = coordinates() if form == "PIL" else F1.pil_to_tensor(coordinates())
        followed = followed_as_alone(step, image, number)
        away, wrong = error_of(followed)
        assert away <= 1.0
        assert wrong <= 0.06
        moved += followed.view != ViewBox() or followed.canvas_size != (H, W)
    assert moved > 0


def everything_but_colours(number: int) -> Any:
    """Steps of three libraries in one pipeline."""
    return v1.Compose(
        [
            timm_transforms.ResizeKeepRatio(100),
            v1.RandomRotation(30, BILINEAR),
            v1.PILToTensor(),
            v2.RandomResizedCrop(70, scale=(0.4, 1)),
            v1.RandomHorizontalFlip(),
            v1.RandomCrop(64, padding=6),
            v2.RandomAffine(20, (0.1, 0.1), interpolation=BILINEAR),
        ]
    )


@pytest.mark.parametrize("number", range(8))
def test_a_long_pipeline_is_followed(number: int) -> None:
    seed(number)
    away, wrong = error_of(follow(everything_but_colours(number), coordinates()))
    assert away <= 1.5
    assert wrong <= 0.08


# Augmentations that mix operations on colours with others. Their colour operations are made to leave colours alone.
AUGMENTS = {
    "v1.RandAugment": v1.RandAugment(3, 12),
    "v1.AutoAugment": v1.AutoAugment(v1.AutoAugmentPolicy.SVHN),
    "v1.TrivialAugmentWide": v1.TrivialAugmentWide(),
    "v2.RandAugment": v2.RandAugment(3, 12),
    "v2.AutoAugment": v2.AutoAugment(v2.AutoAugmentPolicy.SVHN),
    "v2.TrivialAugmentWide": v2.TrivialAugmentWide(),
    "timm RandAugment": timm_augment.rand_augment_transform("rand-m9-n3-mstd0.5", {"translate_const": 40}),
    "timm AutoAugment": timm_augment.auto_augment_transform("original-mstd0.5", {"translate_const": 40}),
}


@pytest.mark.parametrize("form", ["PIL", "tensor"])
@pytest.mark.parametrize("name", AUGMENTS)
def test_an_augmentation_is_followed_through_its_colours(name: str, form: str) -> None:
    """The label stayed that of the image before; where a colour came first, the rotation after it was not seen."""
    step = AUGMENTS[name]
    if form == "tensor" and "timm" in name:
        pytest.skip("takes PIL images alone")
    mask = Image.new("RGB", (W, H), "white")
    moved = 0
    for number in range(40):
        image: Any = coordinates() if form == "PIL" else F1.pil_to_tensor(coordinates())
        followed = followed_as_alone(step, image, number)
        if followed.view == ViewBox():
            continue
        moved += 1
        # The same draws on a canvas of white: what is black then came from outside, whatever the colours are.
        if form == "PIL" and "timm" not in name:
            seed(number)
            canvas = np.asarray(step(mask)).astype(int)
            v, u = (np.mgrid[:H, :W] + 0.5) / np.array([H, W])[:, None, None]
            (xx, xy, x0), (yx, yy, y0) = followed.view.matrix
            x, y = xx * u + xy * v + x0, yx * u + yy * v + y0
            seen = (x > 0) & (x < 1) & (y > 0) & (y < 1)
            for a, b, c in followed.view.edges:
                seen &= a * x + b * y + c > 0
            if seen.mean() < 0.97 and len(np.unique(canvas.sum(-1))) == 2:
                inside, outside = canvas[seen].sum(-1), canvas[~seen].sum(-1)
                assert np.mean(inside != np.median(outside)) > 0.9
    assert moved >= 5


def test_a_rotation_after_a_colour_is_followed() -> None:
    ops = [timm_augment.AugmentOp(name, prob=1, magnitude=9) for name in ("Brightness", "Rotate", "Color", "ShearX")]
    seed(3)
    view = follow(c(*ops[1::2]), coordinates()).view  # the colours draw no numbers
    assert view.matrix[0][1] != 0
    seed(3)
    assert follow(c(*ops), coordinates()).view == view
    assert follow(timm_augment.AutoAugment([ops]), coordinates()).view.matrix[0][1] != 0


def test_a_lambda_for_other_types_leaves_the_image_alone() -> None:
    """It was applied to every image."""
    for types in ((torch.Tensor,), (Image.Image,)):
        step = v2.Lambda(lambda image: image.crop((0, 0, 80, 120)), *types)
        expected = ViewBox(0, 0, 0.5, 1) if types == (Image.Image,) else ViewBox()
        assert followed_as_alone(step, coordinates(), 0).view == expected


def c(*steps: Any) -> Any:
    return v1.Compose(list(steps))


COLOURS = [
    v1.ColorJitter(0.4, 0.4, 0.4, 0.1),
    v1.Grayscale(3),
    v1.RandomGrayscale(1),
    v1.GaussianBlur(3),
    v1.RandomInvert(1),
    v1.RandomPosterize(3, 1),
    v1.RandomSolarize(100, 1),
    v1.RandomAdjustSharpness(2, 1),
    v1.RandomAutocontrast(1),
    v1.RandomEqualize(1),
    v2.ColorJitter(0.4, 0.4, 0.4, 0.1),
    v2.RandomPhotometricDistort(p=1),
    v2.RandomChannelPermutation(),
    v2.GaussianBlur(3),
    v1.AugMix(),
    v2.AugMix(),
    timm_augment.augment_and_mix_transform("augmix-m5", {}),
]


@pytest.mark.parametrize("colour", COLOURS, ids=lambda step: f"{type(step).__module__}.{type(step).__name__}")
@pytest.mark.parametrize("to_tensor", [False, True])
def test_colours_never_end_tracking(colour: Any, to_tensor: bool) -> None:
    """A ColorJitter before the crop was refused."""
    if to_tensor and type(colour).__module__.startswith("timm"):
        pytest.skip("takes PIL images alone")
    seed(1)
    try:
        colour(coordinates())
    except ValueError:
        pytest.skip("this timm's own AugMix takes square images alone")
    seed(1)
    crop = v1.CenterCrop((60, 80))
    followed = follow(
        c(*[v1.PILToTensor()] * to_tensor, colour, crop, colour, v1.RandomHorizontalFlip(1)), coordinates()
    )
    assert followed.view == ViewBox(0.75, 0.25, 0.25, 0.75)


@pytest.mark.parametrize("step", [v1.RandomPerspective(p=1), v2.RandomPerspective(p=1), v1.ElasticTransform()])
def test_a_tilt_and_a_bend_are_refused_by_name(step: Any) -> None:
    with pytest.raises(CropNotSeen, match=rf"^{type(step).__name__}\(.* tilts or bends the image"):
        follow(c(v1.RandomResizedCrop(50), step), coordinates())


def test_a_choice_of_crops_is_followed_whichever_it_takes() -> None:
    """RandomChoice([RandomResizedCrop, Resize]) failed."""
    seen = set()
    for number in range(12):
        seed(number)
        followed = follow(v1.RandomChoice([v1.RandomResizedCrop(60), v1.Resize((60, 60))]), coordinates())
        seen.add(followed.view == ViewBox())
        assert error_of(followed)[0] <= 1.5
    assert seen == {True, False}


# --- the user's own ---


def mirror(array: Any) -> Any:
    return np.ascontiguousarray(array[:, ::-1])


def test_a_function_that_changes_the_size_unseen_is_refused() -> None:
    with pytest.raises(CropNotSeen, match=r"image of 50 x 160 pixels .* the one last seen had 120 x 160"):
        follow(c(v1.RandomHorizontalFlip(), lambda image: np.asarray(image)[:50], v1.ToTensor()), coordinates())


def test_a_function_of_colours_between_steps_is_trusted() -> None:
    """An identity before our own crop was refused on fine texture, 20 times of 20."""
    rng = np.random.default_rng(0)
    texture = Image.fromarray(rng.integers(0, 255, (H, W, 3), dtype=np.uint8))
    pipeline = c(v1.ToTensor(), v1.Lambda(lambda image: image), v1.CenterCrop((60, 80)))
    assert follow(pipeline, texture).view == ViewBox(0.25, 0.25, 0.75, 0.75)


def test_no_decision_depends_on_the_values_of_pixels() -> None:
    """A mirror in NumPy was refused on 11 landscapes and silently wrong on 9."""
    pipeline = c(np.asarray, mirror, v1.ToPILImage(), v1.CenterCrop((60, 80)))
    rng = np.random.default_rng(0)
    for image in (coordinates(), Image.new("RGB", (W, H)), Image.fromarray(rng.integers(0, 255, (H, W, 3), np.uint8))):
        assert follow(pipeline, image).view == ViewBox(0.25, 0.25, 0.75, 0.75)


def test_a_brightness_of_the_users_own_before_a_crop_is_trusted() -> None:
    pipeline = c(lambda image: ImageEnhance.Brightness(image).enhance(0.9), v1.CenterCrop((60, 80)))
    assert follow(pipeline, coordinates()).view == ViewBox(0.25, 0.25, 0.75, 0.75)


def test_without_a_crop_a_function_that_cannot_be_followed_is_refused_and_a_pipeline_that_can_is_not() -> None:
    with pytest.raises(CropNotSeen, match="No crop was seen"):
        follow(lambda image: np.asarray(image), coordinates())
    assert follow(c(v1.Resize((96, 96)), v1.ToTensor()), coordinates())[1:] == (ViewBox(), (96, 96))


def test_a_pipeline_of_timms_without_a_crop_shows_the_whole_image() -> None:
    pipeline = c(
        v1.Resize((48, 64)),
        getattr(timm_transforms, "MaybeToTensor", v1.ToTensor)(),
        v1.Normalize((0, 0, 0), (1, 1, 1)),
    )
    assert follow(pipeline, coordinates())[1:] == (ViewBox(), (48, 64))
    assert follow(c(v1.Resize((48, 64)), timm_transforms.ToNumpy()), coordinates())[1:] == (ViewBox(), (48, 64))


class Preset:
    """The shape of torchvision's ClassificationPresetTrain."""

    def __init__(self, *steps: Any) -> None:
        self.transforms = c(*steps)
        self.calls = 0

    def __call__(self, image: Any) -> Any:
        self.calls += 1
        return self.transforms(image)


class Module(torch.nn.Module):
    def __init__(self, *steps: Any) -> None:
        super().__init__()
        self.first, self.rest = steps[0], list(steps[1:])

    def forward(self, image: Any) -> Any:
        image = self.first(image)
        for step in self.rest:
            image = step(image)
        return image


STEPS = (v1.ColorJitter(0.3), v1.RandAugment(2, 9), v1.RandomResizedCrop(60), v1.PILToTensor(), v1.RandomRotation(9))
GLOBAL = c(*STEPS)


def by_global_name(image: Any) -> Any:
    return GLOBAL(image.convert("RGB"))


def by_closure(pipeline: Any) -> Any:
    def transform(image: Any) -> Any:
        return pipeline(image.convert("RGB"))

    return transform


class OwnCompose(v1.Compose):
    """A subclass, which might do more than its steps, with a function among them."""

    def __init__(self, *steps: Any) -> None:
        super().__init__([*steps, lambda image: image])


@pytest.mark.parametrize(
    "own",
    [OwnCompose(*STEPS), Preset(*STEPS), Module(*STEPS), by_global_name, by_closure(GLOBAL), v1.Lambda(by_global_name)],
    ids=["compose", "preset", "module", "global", "closure", "lambda"],
)
def test_the_steps_that_a_function_or_an_object_holds_are_followed(own: Any) -> None:
    for number in range(5):
        seed(number)
        expected = follow(GLOBAL, coordinates())
        seed(number)
        followed = follow(own, coordinates())
        assert followed.view == expected.view
        assert torch.equal(followed.output, expected.output)


def test_what_an_object_counts_it_goes_on_counting() -> None:
    preset = Preset(*STEPS)
    for _ in range(3):
        follow(preset, coordinates())
    assert preset.calls == 3
    assert isinstance(preset.transforms, v1.Compose)


# --- what users declare ---


class Strip:
    """The left part of an array."""

    def __init__(self, width: int) -> None:
        self.width = width

    def __call__(self, array: Any) -> Any:
        return np.array(array)[:, : self.width]


class DeclaredStrip(Strip):
    pass


@follows(DeclaredStrip)
def follow_strip(step: Any, image: Any) -> Any:
    width = np.asarray(image).shape[1]
    return step(image), ViewBox(0, 0, step.width / width, 1)


def test_a_declared_step_is_followed() -> None:
    with pytest.raises(CropNotSeen):
        follow(c(Strip(40), v1.ToTensor()), coordinates())
    followed = follow(c(v1.RandomHorizontalFlip(1), DeclaredStrip(40), v1.ToTensor()), coordinates())
    assert followed.view == ViewBox(1, 0, 0.75, 1)
    assert error_of(followed)[0] <= 1


def test_a_declared_step_is_followed_within_an_object() -> None:
    assert follow(Preset(DeclaredStrip(80)), coordinates()).view == ViewBox(0, 0, 0.5, 1)


def test_a_rule_that_gives_no_box_is_an_error() -> None:
    class Wrong:
        def __call__(self, image: Any) -> Any:
            return image

    follows(Wrong)(lambda step, image: (image, (0, 0, 1, 1)))
    with pytest.raises(TypeError, match="returns an image and the ViewBox that it shows"):
        follow(Wrong(), coordinates())


def test_a_function_that_is_declared_to_move_nothing_needs_no_trust() -> None:
    @moves_no_pixels
    def halved(image: Any) -> Any:
        return np.array(image)[::2, ::2]  # of all of it, at another size

    assert follow(c(halved, v1.ToTensor()), coordinates())[1:] == (ViewBox(), (H // 2, W // 2))


def test_an_object_cannot_be_declared() -> None:
    with pytest.raises(TypeError, match=r"takes a class or a function, got Strip: declare its class"):
        follows(Strip(3))
