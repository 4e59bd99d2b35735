"""A TrackedImage has the pixels of a plain image, knows what it shows, and leaves the image it was made of alone."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter, ImageOps

from torchrelabel import ViewBox
from torchrelabel.following.follow import track as track_in
from torchrelabel.following.trace import CropTrace
from torchrelabel.following.tracked_image import TrackedImage

W, H = 17, 11
MODES = ("RGB", "L", "RGBA", "LA", "P", "1", "I;16", "F", "CMYK")


def noise(mode: str = "RGB", size: tuple[int, int] = (W, H)) -> Image.Image:
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    if mode == "I;16":
        return Image.fromarray(pixels[..., 0].astype(np.uint16) * 200)
    image = Image.fromarray(pixels, "RGBA") if mode in ("RGBA", "LA") else Image.fromarray(pixels[..., :3].copy())
    return image.convert(mode)


def coordinates() -> Image.Image:
    """Red grows from left to right, green from top to bottom: what a pixel shows is where it was."""
    x, y = np.meshgrid(np.arange(W * 8), np.arange(H * 8))
    return Image.fromarray(np.stack([x, y, 0 * x], -1).astype(np.uint8))


def track(image: Image.Image) -> TrackedImage:
    tracked: TrackedImage = track_in(image, CropTrace())
    return tracked


def same(first: Any, second: Any) -> None:
    assert (first.mode, first.size) == (second.mode, second.size)
    assert first.getpalette() == second.getpalette()
    assert first.tobytes() == second.tobytes()


# name -> (operation, whether its result is still tracked; None if that depends on the mode)
OPERATIONS: dict[str, tuple[Callable[[Image.Image], Any], bool | None]] = {
    "crop inside": (lambda im: im.crop((2, 3, 11, 8)), True),
    "crop past the edges": (lambda im: im.crop((-3, -2, 20, 14)), True),
    "crop by floats": (lambda im: im.crop((2.5, 3.5, 10.5, 7.4)), True),
    "crop of nothing": (lambda im: im.crop((3, 3, 3, 8)), False),
    "crop None": (lambda im: im.crop(None), True),
    "resize": (lambda im: im.resize((9, 13)), True),
    "resize to the same size": (lambda im: im.resize((W, H)), True),
    "resize bilinear": (lambda im: im.resize((9, 13), Image.Resampling.BILINEAR), True),
    "resize by keywords": (lambda im: im.resize(size=(9, 13), resample=Image.Resampling.NEAREST), True),
    "resize a box": (lambda im: im.resize((9, 13), box=(1.5, 2.25, 12, 9)), True),
    "resize a box with a gap": (
        lambda im: im.resize((3, 2), Image.Resampling.BICUBIC, box=(1, 2, 17, 11), reducing_gap=1.1),
        True,
    ),
    **{
        f"transpose {method.name}": (lambda im, method=method: im.transpose(method), True) for method in Image.Transpose
    },
    "convert": (lambda im: im.convert("RGB"), True),
    "convert to the same mode": (lambda im: im.convert(im.mode), True),
    "copy": (lambda im: im.copy(), True),
    "rotate 0": (lambda im: im.rotate(0), True),
    "rotate 180": (lambda im: im.rotate(180), True),
    "rotate 90": (lambda im: im.rotate(90, expand=True), True),
    "rotate 33": (lambda im: im.rotate(33), True),
    "rotate 33 expanded": (lambda im: im.rotate(33, expand=True), True),
    "reduce": (lambda im: im.reduce(2), False),
    "affine": (lambda im: im.transform((9, 13), Image.Transform.AFFINE, (1, 0.2, 0, 0.1, 1, 2)), True),
    "extent": (lambda im: im.transform((9, 13), Image.Transform.EXTENT, (3, 1, 12, 9)), True),
    "quad": (lambda im: im.transform((9, 13), Image.Transform.QUAD, (0, 0, 0, 9, 9, 8, 7, 0)), False),
    "point": (lambda im: im.point(lambda v: v * 1 + 0), True),
    "split": (lambda im: im.split()[0], None),  # of a single channel PIL makes a copy
    "getchannel": (lambda im: im.getchannel(0), False),
}
COLOUR_OPERATIONS: dict[str, Callable[[Image.Image], Any]] = {
    "filter": lambda im: im.filter(ImageFilter.GaussianBlur(1)),
    "mirror": ImageOps.mirror,
    "flip": ImageOps.flip,
    "invert": ImageOps.invert,
    "solarize": lambda im: ImageOps.solarize(im, 100),
    "posterize": lambda im: ImageOps.posterize(im, 3),
    "equalize": ImageOps.equalize,
    "autocontrast": ImageOps.autocontrast,
    "expand": lambda im: ImageOps.expand(im, 3, 7),
    "fit": lambda im: ImageOps.fit(im, (7, 5), centering=(0.2, 0.9)),
    "pad": lambda im: ImageOps.pad(im, (20, 20)),
    "scale": lambda im: ImageOps.scale(im, 1.5),
    "exif_transpose": ImageOps.exif_transpose,
    "brightness": lambda im: ImageEnhance.Brightness(im).enhance(0.6),
    "contrast": lambda im: ImageEnhance.Contrast(im).enhance(1.6),
    "colour": lambda im: ImageEnhance.Color(im).enhance(1.6),
    "sharpness": lambda im: ImageEnhance.Sharpness(im).enhance(1.6),
    "blend": lambda im: Image.blend(im, im.transpose(Image.Transpose.FLIP_LEFT_RIGHT), 0.3),
    "array": lambda im: Image.fromarray(np.asarray(im)),
    "getdata": lambda im: Image.frombytes(im.mode, im.size, im.tobytes()),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_are_those_of_a_plain_image(name: str, mode: str) -> None:
    operation, tracked = OPERATIONS[name]
    try:
        expected = operation(noise(mode))
    except (ValueError, TypeError, OSError) as error:
        with pytest.raises(type(error)):
            operation(track(noise(mode)))
        return
    result = operation(track(noise(mode)))
    same(result, expected)
    assert tracked is None or isinstance(result, TrackedImage) == tracked


@pytest.mark.parametrize("name", COLOUR_OPERATIONS)
def test_pixels_are_those_of_a_plain_image_in_the_modules_of_pil(name: str) -> None:
    same(COLOUR_OPERATIONS[name](track(noise())), COLOUR_OPERATIONS[name](noise()))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [(5, 9), (17, 11), (40, 40)])
def test_a_thumbnail_is_made_in_place(mode: str, size: tuple[int, int]) -> None:
    expected, image = noise(mode), track(noise(mode))
    try:
        expected.thumbnail(size)
    except ValueError:
        with pytest.raises(ValueError):
            image.thumbnail(size)
        return
    image.thumbnail(size)
    same(image, expected)


def test_an_image_of_one_pixel() -> None:
    image = track(noise(size=(1, 1)))
    same(image.resize((5, 3)).crop((1, 1, 4, 2)), noise(size=(1, 1)).resize((5, 3)).crop((1, 1, 4, 2)))


# Each a chain whose view is read off the coordinate image.
CHAINS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "crop": lambda im: im.crop((16, 8, 104, 72)),
    "crop by floats": lambda im: im.crop((16.5, 7.5, 103.5, 72.4)),
    "crop of a crop": lambda im: im.crop((16, 8, 104, 72)).crop((8, 16, 64, 56)),
    "flips around a crop": lambda im: ImageOps.flip(ImageOps.mirror(im).crop((16, 8, 104, 72))),
    "half turn, crop": lambda im: im.transpose(Image.Transpose.ROTATE_180).crop((16, 8, 104, 72)),
    "box of a resize": lambda im: im.resize((90, 70), Image.Resampling.BILINEAR, box=(10.5, 4.25, 120.5, 80)),
    "resize, crop": lambda im: im.resize((68, 44)).crop((4, 8, 60, 40)),
    "rotate 180, crop": lambda im: im.rotate(180).crop((16, 8, 104, 72)),
    "fit": lambda im: ImageOps.fit(im, (40, 40), centering=(0.8, 0.5)),
    "thumbnail, crop": lambda im: _thumbnail(im).crop((4, 8, 60, 40)),
    "extent": lambda im: im.transform((50, 40), Image.Transform.EXTENT, (16, 8, 104, 72)),
    "mirrored extent": lambda im: im.transform((50, 40), Image.Transform.EXTENT, (104, 8, 16, 72)),
    "rotation": lambda im: im.rotate(30),
    "rotation of a crop": lambda im: im.crop((16, 8, 120, 80)).rotate(-20, expand=True, translate=(3, 2)),
    "crop of a rotation": lambda im: im.rotate(45, center=(60, 40)).crop((30, 20, 100, 70)),
    "quarter turn": lambda im: im.transpose(Image.Transpose.ROTATE_90).crop((10, 12, 80, 110)),
    "three quarter turns": lambda im: im.transpose(Image.Transpose.ROTATE_270),
    "transposed": lambda im: im.transpose(Image.Transpose.TRANSPOSE).resize((66, 102)),
    "transverse": lambda im: im.transpose(Image.Transpose.TRANSVERSE),
    "shear": lambda im: im.transform((100, 80), Image.Transform.AFFINE, (1, 0.2, 4, -0.1, 1.1, 6)),
    "shift": lambda im: im.transform(im.size, Image.Transform.AFFINE, (1, 0, 30, 0, 1, 0)),
    "turned by exif": lambda im: ImageOps.exif_transpose(_with_exif(im)),
    "as L and back, crop": lambda im: im.convert("RGB").copy().crop((16, 8, 104, 72)),
}


def _with_exif(image: Image.Image) -> Image.Image:
    exif = Image.Exif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    return image


def _thumbnail(image: Image.Image) -> Image.Image:
    image.thumbnail((68, 44))
    return image


@pytest.mark.parametrize("name", CHAINS)
def test_the_view_is_where_the_pixels_were(name: str) -> None:
    image = CHAINS[name](track(coordinates()))
    assert isinstance(image, TrackedImage)
    pixels = np.asarray(image.convert("RGB")).astype(float)
    h, w = pixels.shape[:2]
    (xx, xy, x0), (yx, yy, y0) = image.view.matrix
    # Away from the borders, where a resize has no neighbours, a pixel shows the coordinate at its centre.
    for row, column in ((h // 3, w // 3), (h // 2, w // 4), (2 * h // 3, 2 * w // 3)):
        u, v = (column + 0.5) / w, (row + 0.5) / h
        x = (xx * u + xy * v + x0) * coordinates().width - 0.5
        y = (yx * u + yy * v + y0) * coordinates().height - 0.5
        assert abs(pixels[row, column, 0] - x) <= 1
        assert abs(pixels[row, column, 1] - y) <= 1
    assert image.trace.view is image.view


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_pil_builds_a_resize_of_other_images_and_they_are_nobodys_view(mode: str) -> None:
    """RGBA is resized as RGBa; a box was noted twice then, and the sample taken to be ambiguous."""
    image = track(noise(mode))
    resized = image.resize((5, 4), box=(0, 0, 8.5, 11))
    assert isinstance(resized, TrackedImage)
    assert resized.view == ViewBox(0, 0, 0.5, 1)
    assert not image.trace.ambiguous


def _pixel_access(image: Image.Image) -> None:
    image.load()[0, 0] = (1, 2, 3)  # type: ignore[index]


IN_PLACE: dict[str, Callable[[Image.Image], Any]] = {
    "paste": lambda im: im.paste((1, 2, 3), (0, 0, 5, 5)),
    "putpixel": lambda im: im.putpixel((0, 0), (1, 2, 3)),
    "draw": lambda im: ImageDraw.Draw(im).rectangle((0, 0, 5, 5), fill=(1, 2, 3)),
    "putalpha": lambda im: im.putalpha(7),
    "putdata": lambda im: im.putdata([(1, 2, 3)] * (W * H)),
    "thumbnail": lambda im: im.thumbnail((5, 5)),
    "thumbnail, paste": lambda im: (im.thumbnail((W, H)), im.paste((1, 2, 3), (0, 0, 5, 5))),
    "pixel access": _pixel_access,
    "info": lambda im: im.info.update(seen=True),
}


@pytest.mark.parametrize("name", IN_PLACE)
def test_writing_into_a_tracked_image_leaves_the_original_alone(name: str) -> None:
    original, expected = noise(), noise()
    tracked = track(original)
    IN_PLACE[name](tracked)
    same(original, expected)
    assert original.info == expected.info
    assert type(original) is Image.Image
    IN_PLACE[name](expected)
    same(tracked, expected)


@pytest.mark.parametrize("mode", ["L", "P"])
def test_a_new_palette_leaves_the_original_alone(mode: str) -> None:
    original = noise(mode)
    tracked = track(original)
    tracked.putpalette(list(range(256)) * 3)
    tracked.load()
    same(original, noise(mode))
    assert original.convert("RGB").tobytes() == noise(mode).convert("RGB").tobytes()


def test_a_colour_drawn_into_a_palette_leaves_the_original_alone() -> None:
    """PIL puts a new colour into the palette object, which was that of the original."""
    original = noise().convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    before = original.convert("RGB").tobytes()
    assert original.palette is not None
    colours = dict(original.palette.colors)
    ImageDraw.Draw(track(original)).point((0, 0), fill=(1, 2, 3))
    assert original.palette.colors == colours
    assert original.convert("RGB").tobytes() == before


def test_copies_of_a_tracked_image_may_be_written_into() -> None:
    original = noise()
    copied = track(original).copy()
    copied.paste((1, 2, 3), (0, 0, 5, 5))
    same(original, noise())


@pytest.mark.parametrize("form", ["PNG", "JPEG", "TIFF", "GIF", "BMP"])
def test_an_image_that_was_opened_and_not_loaded(form: str) -> None:
    file = io.BytesIO()
    noise().save(file, form)
    expected = Image.open(io.BytesIO(file.getvalue()))
    image = track(Image.open(io.BytesIO(file.getvalue())))
    assert image.format == form
    same(image.convert("RGB").crop((3, 2, 12, 9)), expected.convert("RGB").crop((3, 2, 12, 9)))


def test_an_image_turned_by_its_exif_is_turned_and_tracked() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = io.BytesIO()
    noise().save(file, "JPEG", exif=exif)
    turned = ImageOps.exif_transpose(track(Image.open(file)))
    assert turned is not None
    same(turned, ImageOps.exif_transpose(Image.open(file)))
    assert isinstance(turned, TrackedImage)


def test_what_a_file_tells_of_itself_stays_readable(tmp_path: Any) -> None:
    path = tmp_path / "image.png"
    noise().save(path)
    with Image.open(path) as opened:
        tracked = track(opened)
    assert tracked.filename == str(path)  # type: ignore[attr-defined] # only images from files have it


@pytest.mark.parametrize("mode", ["RGB", "P", "L"])
def test_a_pickled_image_is_a_plain_one(mode: str) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        restored = pickle.loads(pickle.dumps(track(noise(mode)).crop((1, 2, 9, 10)), protocol))
        assert type(restored) is Image.Image
        same(restored, noise(mode).crop((1, 2, 9, 10)))


def test_a_pickle_needs_nothing_of_this_library() -> None:
    assert b"torchrelabel" not in pickle.dumps(track(noise()))


def test_the_plain_image_is_no_longer_tracked() -> None:
    plain = track(noise()).crop((1, 2, 9, 10)).plain()  # type: ignore[attr-defined] # a TrackedImage
    assert type(plain) is Image.Image
    assert plain == noise().crop((1, 2, 9, 10))


@pytest.mark.parametrize("operation", ["crop", "resize", "transform"])
def test_a_box_that_is_changed_afterwards_does_not_move_the_view(operation: str) -> None:
    """A pipeline may fill one list again for each image, and views are worked out after all images of a batch."""
    box = [2, 3, 11, 8]
    seen = {
        "crop": lambda im: im.crop(box),
        "resize": lambda im: im.resize((9, 5), box=box),
        "transform": lambda im: im.transform((9, 5), Image.Transform.EXTENT, box),
    }[operation](track(noise()))
    box[:] = [0, 0, 1, 1]
    assert tuple(seen.view) == pytest.approx((2 / W, 3 / H, 11 / W, 8 / H))
