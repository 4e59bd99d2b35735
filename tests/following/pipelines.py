"""The transform pipelines of real scripts, and of nobody yet, with what a LabelMapDataset must make of them."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageEnhance, ImageOps
from timm.data import create_transform
from torchvision import transforms as v1
from torchvision.transforms import v2

from torchrelabel import RandomResizedCropWithLabelMap

RIGHT, NOT_SEEN = "right", "not seen"
COLOURED = "coloured"  # never refused, and nothing can be read from the pixels
TRUSTED = "trusted"  # a function of the user's own that moves pixels without changing the size: taken at its word

timm = functools.partial(create_transform, mean=(0, 0, 0), std=(1, 1, 1), color_jitter=None, is_training=True)


class OwnCrop(v1.RandomResizedCrop):
    """A user's subclass that crops by itself."""

    def forward(self, img: Any) -> Any:
        top, left, height, width = self.get_params(img, self.scale, self.ratio)
        return v1.functional.resized_crop(img, top, left, height, width, self.size, self.interpolation)


class OwnCropToTensor(v1.RandomResizedCrop):
    """A user's subclass that goes on to a tensor."""

    def forward(self, img: Any) -> Any:
        return v1.functional.to_tensor(super().forward(img))


class Preset:
    """The shape of torchvision's ClassificationPresetTrain: an object that calls a Compose within."""

    def __init__(self, module: Any, backend: str) -> None:
        first = [module.PILToTensor()] if backend == "tensor" else []
        last = [module.PILToTensor()] if backend == "pil" else []
        self.transforms = module.Compose(
            [
                *first,
                module.RandomResizedCrop(64, antialias=True),
                module.RandomHorizontalFlip(),
                *last,
                module.ConvertImageDtype(torch.float),
            ]
        )

    def __call__(self, img: Any) -> Any:
        return self.transforms(img)


class OwnCompose(v1.Compose):
    """A user's subclass, which might do more than its steps."""


class Hidden:
    """An object that calls a Compose within."""

    def __init__(self, *steps: Any) -> None:
        self.transforms = v1.Compose(steps)

    def __call__(self, img: Any) -> Any:
        return self.transforms(img)


class Boxed:
    """A user's class without torchvision."""

    def __call__(self, img: Image.Image) -> Image.Image:
        left = random.randint(0, img.width // 2)
        return img.crop((left, 5, left + img.width // 2, img.height - 5)).resize((64, 48))


def closure(crop: Any) -> Callable[[Any], Any]:
    def transform(img: Any) -> Any:
        return v1.functional.to_tensor(crop(img.convert("RGB")))

    return transform


def on_new_canvas(img: Image.Image) -> Image.Image:
    crop = img.crop((0, 0, img.width // 2, img.height))
    canvas = Image.new("RGB", img.size)
    canvas.paste(crop, (img.width // 4, 0))
    return canvas


def jittered(img: Any) -> Any:
    return ImageEnhance.Brightness(img).enhance(0.97)


def discarded(img: Image.Image) -> Image.Image:
    """The image returned is not the one that was cropped last."""
    kept = img.crop((0, 0, 56, 84))
    img.crop((70, 0, 126, 84))
    return kept


def discarded_to_tensor(img: Image.Image) -> Any:
    return v1.functional.to_tensor(discarded(img))


def whole_then_part(img: Image.Image) -> Any:
    """The first crop is of the whole image, so that its view is that of the image."""
    whole, _ = img.crop((0, 0, 140, 84)).resize((56, 56)), img.crop((0, 0, 56, 56))
    return v1.functional.to_tensor(whole)


def deeper_discarded(img: Image.Image) -> Any:
    """As large as the crop that is kept."""
    kept = img.crop((0, 0, 50, 50))
    kept.crop((0, 0, 20, 20)).resize((50, 50))
    return v1.functional.to_tensor(kept)


class Blur:
    """Pads within, as a layer of a network does."""

    def __init__(self) -> None:
        self.blur = torch.nn.Sequential(torch.nn.ReflectionPad2d(1), torch.nn.AvgPool2d(3, 1))

    def __call__(self, img: Any) -> Any:
        return self.blur(v1.functional.to_tensor(img))


def looked_at_first(img: Image.Image) -> Any:
    assert np.asarray(img).mean() > 0
    return v1.functional.to_tensor(img.crop((0, 0, 50, 50)))


def turned_in_place(img: Image.Image) -> Image.Image:
    exif = Image.Exif()
    exif[0x112] = 6
    img.info["exif"] = exif.tobytes()
    ImageOps.exif_transpose(img, in_place=True)
    return img


def crop_and_crop_of_it(img: Image.Image) -> Any:
    crop = RRC()(img)
    return torch.stack([v1.functional.to_tensor(crop), v1.functional.to_tensor(RRC()(crop))])


def two_of_ours(img: Any) -> Any:
    """Two crops of one tensor of the size of a crop, so that the second looks much like one of the first."""
    return torch.stack([OURS(scale=(0.5, 1))(img), OURS(scale=(0.5, 1))(img)])


def thumbnail_kept(img: Image.Image) -> Any:
    small = img.resize((56, 56))
    img.crop((0, 0, 56, 56))
    return v1.functional.to_tensor(small)


def thumbnail_in_place_kept(img: Image.Image) -> Any:
    img.crop((0, 0, 70, 42))
    img.thumbnail((70, 42))  # as large as the crop
    return v1.functional.to_tensor(img)


def in_place_thumbnail(img: Image.Image) -> Image.Image:
    img.thumbnail((100, 70))
    return img.crop((10, 0, 60, 40))


def drawn_on(img: Image.Image) -> Image.Image:
    img = img.crop((0, 0, 70, 84))
    img.paste((0, 0, 0), (5, 5, 12, 12))
    return img


def numpy_slices(img: Any) -> Any:
    return np.asarray(img)[10:60, 20:90]


RRC = functools.partial(v1.RandomResizedCrop, 64)
RRC2 = functools.partial(v2.RandomResizedCrop, 64)
OURS = functools.partial(RandomResizedCropWithLabelMap, 64)


def c1(*steps: Any) -> Any:
    return v1.Compose(list(steps))


def c2(*steps: Any) -> Any:
    return v2.Compose(list(steps))


def turned(img: Any) -> Any:
    return img.transpose(Image.Transpose.ROTATE_90)


# name -> (makes the pipeline, what must come of it)
PIPELINES: dict[str, tuple[Callable[[], Any], str]] = {
    # as in scripts
    "v1": (lambda: c1(RRC(), v1.RandomHorizontalFlip(), v1.ToTensor()), RIGHT),
    "v1 with normalize": (lambda: c1(RRC(), v1.ToTensor(), v1.Normalize((0, 0, 0), (1, 1, 1))), RIGHT),
    "v1 wide": (lambda: c1(v1.RandomResizedCrop((48, 80), scale=(0.2, 1)), v1.ToTensor()), RIGHT),
    "v1 resize, random crop": (lambda: c1(v1.Resize(100), v1.RandomCrop(64), v1.ToTensor()), RIGHT),
    "v1 centre crop": (lambda: c1(v1.Resize(80), v1.CenterCrop(64), v1.ToTensor()), RIGHT),
    "v1 flip first": (lambda: c1(v1.RandomHorizontalFlip(), v1.RandomVerticalFlip(), RRC(), v1.ToTensor()), RIGHT),
    "v1 two crops": (lambda: c1(v1.RandomCrop(72), RRC(), v1.ToTensor()), RIGHT),
    "v1 nested": (lambda: c1(c1(v1.Resize(90), c1(RRC())), v1.ToTensor()), RIGHT),
    "v1 random choice": (lambda: c1(v1.RandomChoice([RRC(), v1.RandomCrop(64)]), v1.ToTensor()), RIGHT),
    "v1 random apply": (lambda: c1(v1.RandomApply([v1.RandomCrop(70)]), RRC(), v1.ToTensor()), RIGHT),
    "v1 random order": (lambda: c1(v1.RandomOrder([v1.RandomHorizontalFlip(), RRC()]), v1.ToTensor()), RIGHT),
    "v1 grayscale off": (lambda: c1(RRC(), v1.RandomGrayscale(p=0), v1.ToTensor()), RIGHT),
    "v1 colour jitter after": (lambda: c1(RRC(), v1.ColorJitter(0.02, 0.02), v1.ToTensor()), RIGHT),
    "v1 erasing": (lambda: c1(RRC(), v1.ToTensor(), v1.RandomErasing(p=0)), RIGHT),
    "v1 to PIL": (lambda: RRC(), RIGHT),
    "v1 sequential": (lambda: torch.nn.Sequential(RRC(), v1.RandomHorizontalFlip()), RIGHT),
    "v2": (lambda: c2(RRC2(), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, True)), RIGHT),
    "v2 flip first": (lambda: c2(v2.RandomHorizontalFlip(1), RRC2(), v2.PILToTensor()), RIGHT),
    "v2 random crop": (lambda: c2(v2.Resize((70, 90)), v2.RandomCrop(64), v2.ToImage()), RIGHT),
    "v2 tensor flip after": (lambda: c2(RRC2(), v2.ToImage(), v2.RandomHorizontalFlip(1)), RIGHT),
    "v2 random choice": (lambda: c2(v2.RandomChoice([RRC2(), v2.CenterCrop(64)]), v2.ToImage()), RIGHT),
    "v2 nothing to crop": (lambda: c2(v2.Resize((64, 64)), v2.RandomCrop(64), v2.ToImage()), RIGHT),
    "v2 nothing to crop, in a lambda": (
        lambda: lambda img: c2(v2.Resize((64, 64)), v2.RandomCrop(64), v2.ToImage())(img),
        NOT_SEEN,
    ),
    "a layer that pads, after the crop": (lambda: c1(RRC(), Blur()), RIGHT),
    "v2 no crop needed": (lambda: c2(RRC2(), v2.RandomCrop(64), v2.ToImage()), RIGHT),
    "preset v1, PIL": (lambda: Preset(v1, "pil"), RIGHT),
    "preset v1, tensor": (lambda: Preset(v1, "tensor"), RIGHT),
    "preset v2, PIL": (lambda: Preset(v2, "pil"), RIGHT),
    "preset v2, tensor": (lambda: Preset(v2, "tensor"), RIGHT),
    "timm": (lambda: timm(64), RIGHT),
    "timm random interpolation": (lambda: timm(64, interpolation="random"), RIGHT),
    "timm to arrays": (lambda: timm(64, use_prefetcher=True), RIGHT),
    "timm no aug": (lambda: timm(64, no_aug=True), RIGHT),
    "timm rkrc": (lambda: timm(64, train_crop_mode="rkrc"), RIGHT),
    "timm rkrr": (lambda: timm(64, train_crop_mode="rkrr"), RIGHT),
    "timm aug split, base": (lambda: timm(64, separate=True)[0], RIGHT),
    "timm aug split, joined": (lambda: c1(*timm(64, separate=True)), RIGHT),
    "lambda": (lambda: lambda img: v1.functional.to_tensor(img.crop((10, 20, 90, 80)).resize((50, 40))), RIGHT),
    "v1.Lambda": (lambda: c1(v1.Lambda(lambda img: img.crop((10, 0, 90, 80))), v1.ToTensor()), RIGHT),
    "partial": (
        lambda: functools.partial(v1.functional.resized_crop, top=3, left=9, height=50, width=70, size=64),
        RIGHT,
    ),
    "partial of a method": (
        lambda: functools.partial(Image.Image.resize, size=(64, 48), box=(3, 10, 99, 70)),
        NOT_SEEN,
    ),
    "closure": (lambda: closure(RRC()), RIGHT),
    "own subclass": (lambda: c1(OwnCrop(64), v1.ToTensor()), RIGHT),
    "own subclass to tensor": (lambda: c1(OwnCropToTensor(64)), RIGHT),
    "own class": (lambda: c1(Boxed(), v1.ToTensor()), RIGHT),
    "functional": (lambda: lambda img: v1.functional.to_tensor(v1.functional.crop(img, 3, 40, 60, 50)), RIGHT),
    "ImageOps.fit": (lambda: c1(lambda img: ImageOps.fit(img, (64, 64), centering=(0.1, 0.5)), v1.ToTensor()), RIGHT),
    "ImageOps.crop": (lambda: c1(lambda img: ImageOps.crop(img, (40, 5, 1, 9)), v1.ToTensor()), RIGHT),
    "ImageOps.mirror": (lambda: c1(ImageOps.mirror, v1.CenterCrop(64), ImageOps.flip), RIGHT),
    "extent": (lambda: lambda img: img.transform((64, 64), Image.Transform.EXTENT, (60, 0, 140, 80)), RIGHT),
    "extent, flipped": (lambda: lambda img: img.transform((64, 64), Image.Transform.EXTENT, (80, 0, 10, 80)), RIGHT),
    "resize to the same size with a box": (lambda: lambda img: img.resize(img.size, box=(0, 0, 70, 84)), RIGHT),
    "half turn": (lambda: c1(lambda img: img.rotate(180), v1.RandomCrop(64), v1.ToTensor()), RIGHT),
    "thumbnail in place": (lambda: c1(in_place_thumbnail, v1.ToTensor()), RIGHT),
    "painted over in place": (lambda: drawn_on, RIGHT),
    "copies": (lambda: lambda img: img.copy().crop((0, 0, 50, 80)).copy().convert("RGB"), RIGHT),
    "the other crop was thrown away": (lambda: discarded, RIGHT),
    "the other crop was thrown away, then a step": (lambda: c1(discarded, v1.ToTensor()), RIGHT),
    # ours
    "ours": (lambda: c1(OURS(), v1.ToTensor()), RIGHT),
    "ours on tensors": (lambda: c1(v1.ToTensor(), OURS(), v1.RandomHorizontalFlip()), RIGHT),
    "ours on v2 tensors": (lambda: c2(v2.ToImage(), OURS(), v2.RandomHorizontalFlip()), RIGHT),
    "ours after jitter": (lambda: c1(v1.ColorJitter(0.01), OURS(), v1.ToTensor()), RIGHT),
    "ours twice": (lambda: c1(OURS(), v1.ToTensor(), OURS()), RIGHT),
    "ours after a crop": (lambda: c1(v1.RandomCrop(72), v1.ToTensor(), OURS()), RIGHT),
    "ours after strange colours": (
        lambda: c2(
            v2.ToImage(), v2.RandomErasing(1), v2.ColorJitter(0.8, 0.8, 0.8, 0.5), v2.RandomSolarize(99), OURS()
        ),
        COLOURED,
    ),
    "ours in a lambda": (lambda: c1(v1.ToTensor(), v1.Lambda(OURS())), RIGHT),
    "ours after a flip": (lambda: c1(v1.ToTensor(), v1.RandomHorizontalFlip(1), OURS()), RIGHT),
    "ours after a resize": (lambda: c1(v1.ToTensor(), v1.Resize(50), OURS()), RIGHT),
    "ours, then a crop": (lambda: c1(v1.ToTensor(), OURS(), v1.RandomResizedCrop(64)), RIGHT),
    "ours after a rotation": (lambda: c1(v1.RandomRotation((90, 90)), OURS(), v1.ToTensor()), RIGHT),
    "ours after a shift": (lambda: c1(v1.RandomAffine(0, (0.2, 0.2)), OURS(), v1.ToTensor()), RIGHT),
    "ours after a shift of a tensor": (
        lambda: c2(v2.ToImage(), v2.RandomAffine(0, (0.2, 0.2)), OURS()),
        RIGHT,
    ),
    "ours after a flip in a lambda": (
        lambda: lambda img: OURS()(v1.RandomHorizontalFlip(1)(v1.functional.to_tensor(img))),
        TRUSTED,
    ),
    "ours after RandAugment": (lambda: c1(v1.RandAugment(2, 15), OURS(), v1.ToTensor()), COLOURED),
    "ours after jitter on tensors": (lambda: c2(v2.ToImage(), v2.ColorJitter(0.01), OURS()), RIGHT),
    "ours twice of one tensor": (lambda: c1(v1.Resize((64, 64)), v1.ToTensor(), two_of_ours), NOT_SEEN),
    # what cannot be seen
    "no crop": (lambda: c1(v1.Resize((64, 64)), v1.ToTensor()), RIGHT),
    "a copy is no crop": (lambda: lambda img: img.crop(), RIGHT),
    "tensor first": (lambda: c1(v1.ToTensor(), RRC()), RIGHT),
    "v2 tensor first": (lambda: c2(v2.ToImage(), RRC2()), RIGHT),
    "jitter first": (lambda: c1(v1.ColorJitter(0.1, 0.1, 0.1), RRC(), v1.ToTensor()), RIGHT),
    "padded crop": (lambda: c1(v1.RandomCrop(84, padding=8), v1.ToTensor()), RIGHT),
    "padded crop, reflected": (lambda: c1(v1.RandomCrop(84, padding=8, padding_mode="reflect")), RIGHT),
    "padded crop of the size of a crop": (lambda: c1(RRC(), v1.RandomCrop(64, padding=24), v1.ToTensor()), RIGHT),
    "padded tensor crop of the size of a crop": (lambda: c1(RRC(), v1.ToTensor(), v1.RandomCrop(64, 24)), RIGHT),
    "padded v2 crop of the size of a crop": (lambda: c2(RRC2(), v2.ToImage(), v2.RandomCrop(64, 24)), RIGHT),
    "second crop on a tensor": (lambda: c1(RRC(), v1.ToTensor(), v1.RandomResizedCrop(64)), RIGHT),
    "second crop on a tensor, maybe": (
        lambda: c1(RRC(), v1.ToTensor(), v1.RandomApply([v1.RandomResizedCrop(64, scale=(0.1, 0.2))])),
        RIGHT,
    ),
    "second crop in a lambda": (lambda: lambda img: c1(RRC(), v1.ToTensor(), RRC())(img), TRUSTED),
    "second crop in an object": (lambda: Hidden(RRC(), v1.ToTensor(), RRC()), RIGHT),
    "second crop in an own Compose": (lambda: OwnCompose([RRC(), v1.ToTensor(), RRC()]), RIGHT),
    "second crop in a sequential": (lambda: torch.nn.Sequential(RRC(), v1.ColorJitter(0.1), RRC()), RIGHT),
    "second crop in a RandomApply": (lambda: v1.RandomApply([RRC(), v1.ColorJitter(0.1), RRC()], p=1), RIGHT),
    "second crop in v1.Lambda": (lambda: c1(RRC(), v1.ToTensor(), v1.Lambda(RRC())), RIGHT),
    "second crop by a functional": (
        lambda: c1(
            RRC(),
            v1.ToTensor(),
            functools.partial(v1.functional.resized_crop, top=9, left=9, height=30, width=30, size=[64, 64]),
        ),
        RIGHT,
    ),
    "padded crop in an object": (
        lambda: Hidden(RRC(), v1.ColorJitter(0.1), v1.RandomCrop(64, padding=24), v1.ToTensor()),
        RIGHT,
    ),
    "a crop kept, and a crop of it thrown away": (lambda: deeper_discarded, NOT_SEEN),
    "looked at before the crop": (lambda: looked_at_first, RIGHT),
    "a crop and a crop of it": (lambda: crop_and_crop_of_it, NOT_SEEN),
    "second crop after jitter": (lambda: c1(RRC(), v1.ColorJitter(0.1), RRC(), v1.ToTensor()), RIGHT),
    "second crop after a quarter turn": (lambda: c1(RRC(), turned, RRC(), v1.ToTensor()), RIGHT),
    "crop after a quarter turn": (lambda: c1(turned, RRC(), v1.ToTensor()), RIGHT),
    "crop after a rotation": (lambda: c1(v1.RandomRotation((5, 10)), RRC(), v1.ToTensor()), RIGHT),
    "crop after a perspective": (lambda: c1(v1.RandomPerspective(p=1), RRC(), v1.ToTensor()), NOT_SEEN),
    "zoomed out after the crop": (lambda: c2(RRC2(), v2.RandomZoomOut(p=1), v2.Resize((64, 64))), RIGHT),
    "padded after the crop": (lambda: c1(RRC(), v1.Pad(16), v1.ToTensor()), RIGHT),
    "padded and resized after the crop": (lambda: c1(RRC(), v1.Pad(16), v1.Resize(64), v1.ToTensor()), RIGHT),
    "padded as a tensor": (lambda: c1(RRC(), v1.ToTensor(), v1.Pad(16)), RIGHT),
    "padded and resized as a tensor": (lambda: c1(RRC(), v1.ToTensor(), v1.Pad(16), v1.Resize(64)), RIGHT),
    "pad by ImageOps": (lambda: lambda img: ImageOps.pad(img.crop((0, 0, 50, 80)), (80, 80)), NOT_SEEN),
    "pasted into a new canvas": (lambda: c1(on_new_canvas, v1.ToTensor()), NOT_SEEN),
    "quad": (lambda: lambda img: img.transform((64, 64), Image.Transform.QUAD, (0, 0, 0, 50, 70, 50, 70, 0)), NOT_SEEN),
    "reduced by box": (lambda: lambda img: img.reduce(2, box=(0, 0, 70, 84)), NOT_SEEN),
    "a crop, padded by a crop": (lambda: lambda img: img.crop((10, 10, 60, 60)).crop((-5, -5, 45, 45)), RIGHT),
    "a crop, padded by a functional": (
        lambda: c1(v1.RandomResizedCrop(40, scale=(0.1, 0.3)), lambda img: v1.functional.crop(img, -9, -9, 40, 40)),
        RIGHT,
    ),
    "the whole, padded by a crop": (lambda: lambda img: img.crop((-9, -9, 100, 100)).crop((3, 3, 60, 80)), RIGHT),
    "numpy slices": (lambda: numpy_slices, NOT_SEEN),
    "numpy slices after a crop": (lambda: c1(v1.CenterCrop(80), lambda img: np.asarray(img)[8:72, 8:72]), NOT_SEEN),
    "numpy slices, back to PIL": (lambda: lambda img: Image.fromarray(numpy_slices(img)), NOT_SEEN),
    "five crops": (lambda: v1.FiveCrop(50), NOT_SEEN),
    "five crops, stacked": (
        lambda: c1(v1.FiveCrop(50), v1.Lambda(lambda crops: torch.stack([v1.functional.to_tensor(c) for c in crops]))),
        NOT_SEEN,
    ),
    "two views": (lambda: lambda img: (RRC()(img), RRC()(img)), NOT_SEEN),
    "the crop and the whole": (lambda: lambda img: (img.crop((0, 0, 60, 60)), img), NOT_SEEN),
    "the whole, cropped, and then a part": (lambda: whole_then_part, NOT_SEEN),
    "a thumbnail kept, and a crop thrown away": (lambda: thumbnail_kept, NOT_SEEN),
    "a thumbnail in place kept, and a crop thrown away": (lambda: thumbnail_in_place_kept, NOT_SEEN),
    "the other crop was thrown away, to tensor": (lambda: discarded_to_tensor, NOT_SEEN),
}

if tuple(map(int, PIL.__version__.split(".")[:2])) >= (11, 3):  # of an older one it is followed
    PIPELINES["turned in place"] = (lambda: c1(turned_in_place, v1.RandomCrop(60), v1.ToTensor()), NOT_SEEN)
