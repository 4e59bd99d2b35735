"""Images as torchvision's ImageFolder and pil_loader see them."""

from __future__ import annotations

import io
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode, Resize

from tests.annotate.models import make_folder
from torchrelabel.annotate.images import (
    ImagesFound,
    ImagesToAnnotate,
    collate,
    find_images,
    load_image,
    open_image,
    read_image,
    squashed,
)


def listed(root: Path) -> ImagesFound:
    """A folder that nobody looked into."""
    return ImagesFound(root, [], None, [])


def to_annotate(root: Path, keys: Sequence[str], size: int, interpolation: str) -> ImagesToAnnotate:
    return ImagesToAnnotate(listed(root), keys, size, interpolation)


def test_keys_and_indices_are_those_of_image_folder(tmp_path: Path) -> None:
    names = ["001.Black_footed_Albatross/a.b.jpg", "b/deep/er/x.JPEG", "b/.hidden.png", "a b/ü.webp", "b/note.txt"]
    make_folder(tmp_path, names)
    found, torchvisions = find_images(tmp_path), ImageFolder(str(tmp_path))
    assert found.class_to_idx == torchvisions.class_to_idx
    by_torchvision = {os.path.relpath(path, tmp_path): label for path, label in torchvisions.samples}
    assert {key: found.class_of(key) for key in found.keys} == by_torchvision
    assert found.keys == sorted(by_torchvision)


def test_a_flat_folder_has_no_classes(tmp_path: Path) -> None:
    found = find_images(make_folder(tmp_path, ["b.png", "a.jpg"]))
    assert found.keys == ["a.jpg", "b.png"]
    assert found.class_to_idx is None
    assert found.class_of("a.jpg") is None


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_name_that_is_not_utf_8_survives(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/x.png"])
    os.rename(tmp_path / "a/x.png", os.fsencode(tmp_path) + b"/a/\xff\xfe.png")
    (key,) = find_images(tmp_path).keys
    assert key.encode("utf-8", "surrogateescape") == b"a/\xff\xfe.png"
    assert to_annotate(tmp_path, [key], 8, "bilinear")[0].pixels is not None


def test_linked_folders_are_followed_and_loops_are_reported(tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", ["x.png"])
    root = make_folder(tmp_path / "root", ["a/y.png"])
    (root / "linked").symlink_to(elsewhere)
    (root / "a/loop").symlink_to(root)
    found = find_images(root)
    assert found.keys == ["a/y.png", "linked/x.png"]
    assert found.problems == [("a/loop", f"a link back to {root.resolve()}, which it lies in")]


def test_a_folder_linked_twice_is_no_loop(tmp_path: Path) -> None:
    elsewhere = make_folder(tmp_path / "elsewhere", ["x.png"])
    for name in ("a", "b"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "linked").symlink_to(elsewhere)
    found = find_images(tmp_path / "root")
    assert (found.keys, found.problems) == (["a/linked/x.png", "b/linked/x.png"], [])


def test_an_unreadable_folder_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, ["a/x.png", "secret/y.png"])
    scandir = os.scandir

    # Not by its mode: the tests may run as root, who may read everything.
    def refuse(path: str) -> object:
        if path.rstrip("/").endswith("secret"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find_images(tmp_path)
    assert (found.keys, found.problems) == (["a/x.png"], [("secret", "Permission denied")])


def test_the_store_itself_is_skipped(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/x.png", "maps.lmdb/y.png"])
    found = find_images(tmp_path, skip=[tmp_path / "maps.lmdb"])
    assert found.keys == ["a/x.png"]
    assert found.class_to_idx == {"a": 0}


def test_only_folders_that_hold_images_are_classes(tmp_path: Path) -> None:
    make_folder(tmp_path, ["b/x.png", "c/deep/y.png", ".hidden/z.png"])
    for name in (".cache", "a", "d/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "a/note.txt").touch()
    assert find_images(tmp_path).class_to_idx == {".hidden": 0, "b": 1, "c": 2}


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*nowhere'"):
        find_images(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    make_folder(tmp_path, ["x.png"])
    with pytest.raises(NotADirectoryError, match=r"x.png' is a file. Give the folder"):
        find_images(tmp_path / "x.png")


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_an_image_is_squashed_as_torchvision_does(tmp_path: Path, interpolation: str) -> None:
    make_folder(tmp_path, ["x.png"], size=(170, 111))
    with Image.open(tmp_path / "x.png") as image:
        expected = Resize((13, 13), InterpolationMode(interpolation))(image.convert("RGB"))
    with listed(tmp_path).open("x.png") as file:
        assert np.array_equal(squashed(load_image(file), 13, interpolation).permute(1, 2, 0), expected)


def write_png(path: Path, kind: str) -> None:
    gradient = np.arange(17 * 11).reshape(11, 17)
    if kind == "1x1":
        Image.new("RGB", (1, 1), (1, 2, 3)).save(path, "PNG")
    elif kind == "CMYK":
        Image.fromarray(np.stack([gradient] * 4, -1).astype(np.uint8), "CMYK").save(path, "JPEG")
    elif kind == "palette with transparency":
        Image.fromarray(gradient.astype(np.uint8)).convert("P").save(path, "PNG", transparency=bytes(range(200)))
    elif kind == "animated":
        frames = [Image.new("RGB", (17, 11), colour) for colour in ("red", "blue")]
        frames[0].save(path, "PNG", save_all=True, append_images=frames[1:])
    elif kind == "EXIF-rotated":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(gradient.astype(np.uint8)).save(path, "JPEG", exif=exif)
    else:
        raise ValueError(kind)


@pytest.mark.parametrize("kind", ["1x1", "CMYK", "palette with transparency", "animated", "EXIF-rotated"])
@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated:DeprecationWarning")
def test_an_unusual_image_is_seen_as_torchvisions_loader_sees_it(tmp_path: Path, kind: str) -> None:
    make_folder(tmp_path, ["a/x.png"])
    write_png(tmp_path / "a/x.png", kind)
    loaded = to_annotate(tmp_path, ["a/x.png"], 6, "bilinear")[0]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image, _ = ImageFolder(str(tmp_path), transform=Resize((6, 6)))[0]
    assert loaded.reason == ""
    assert loaded.pixels is not None
    assert np.array_equal(loaded.pixels.permute(1, 2, 0), np.asarray(image))


def test_an_image_of_16_bits_is_scaled_where_torchvisions_loader_makes_it_white(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/x.png"])
    values = np.linspace(0, 65535, 17 * 11).round().astype(np.uint16).reshape(11, 17)
    Image.fromarray(values).save(tmp_path / "a/x.png")
    with open(tmp_path / "a/x.png", "rb") as file:
        image, facts = read_image(file)
    assert facts == (17, 11, False, True)
    assert np.abs(np.asarray(image) - (values / 257)[..., None]).max() <= 0.5
    white, _ = ImageFolder(str(tmp_path))[0]
    assert (np.asarray(white) == 255).mean() > 0.99


def test_an_image_of_32_bits_is_refused_unless_it_holds_8() -> None:
    def read(highest: int) -> Image.Image:
        file = io.BytesIO()
        Image.fromarray(np.array([[0, highest]], np.int32)).save(file, "TIFF")
        file.seek(0)
        return load_image(file)

    assert np.asarray(read(200)).max() == 200
    with pytest.raises(OSError, match="its pixels are numbers from 0 to 70000, and nothing tells which is white; save"):
        read(70000)


def oriented(path: Path, orientation: int | None, image_format: str = "JPEG") -> Path:
    """An image that is red on the left, with an EXIF orientation; 17 x 11 px."""
    exif = Image.Exif()
    if orientation is not None:
        exif[0x0112] = orientation
    pixels = np.zeros((11, 17, 3), np.uint8)
    pixels[:, :9, 0] = 255
    Image.fromarray(pixels).save(path, image_format, exif=exif)
    return path


@pytest.mark.parametrize(("orientation", "turned"), [(None, False), (1, False), (3, True), (6, True), (9, False)])
def test_an_exif_orientation_is_noticed(tmp_path: Path, orientation: int | None, turned: bool) -> None:
    with open(oriented(tmp_path / "x.jpg", orientation), "rb") as file:
        assert read_image(file)[1] == (17, 11, turned, False)


def test_an_exif_orientation_is_ignored_unless_it_is_to_be_applied(tmp_path: Path) -> None:
    path = oriented(tmp_path / "x.jpg", 6)  # to be turned clockwise by a quarter: red comes to the top
    as_stored, upright = open_image(path), open_image(path, "apply")
    assert (as_stored.size, upright.size) == ((17, 11), (11, 17))
    assert np.asarray(as_stored)[5, 2, 0] > 200 > 50 > np.asarray(as_stored)[5, 14, 0]
    assert np.asarray(upright)[2, 5, 0] > 200 > 50 > np.asarray(upright)[14, 5, 0]
    loaded = ImagesToAnnotate(listed(tmp_path), ["x.jpg"], 6, "bilinear", exif="apply")[0]
    assert loaded.facts == (11, 17, True, False)
    assert loaded.pixels is not None and loaded.pixels[0, 0].min() > 200 > 50 > loaded.pixels[0, 5].max()


def test_a_tiff_that_pillow_turns_by_itself_is_not_turned_twice(tmp_path: Path) -> None:
    with open(oriented(tmp_path / "x.tif", 6, "TIFF"), "rb") as file:
        image, _ = read_image(file, "apply")
    assert image.size == (11, 17)
    assert np.asarray(image)[2, 5, 0] > 200 > 50 > np.asarray(image)[14, 5, 0]


def test_damaged_exif_data_does_not_lose_an_image(tmp_path: Path) -> None:
    Image.new("RGB", (17, 11)).save(tmp_path / "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    loaded = to_annotate(tmp_path, ["x.jpg"], 6, "bilinear")[0]
    assert (loaded.reason, loaded.facts) == ("", (17, 11, False, False))


def test_what_pillow_reads_beyond_torchvisions_list_is_found(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (17, 11), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    kinds = ["gif"]
    if ".avif" in Image.registered_extensions():
        frames[0].save(tmp_path / "x.avif")
        kinds.append("avif")
    assert find_images(tmp_path).keys == sorted(f"x.{kind}" for kind in kinds)
    for kind in kinds:  # the first frame
        assert np.asarray(open_image(tmp_path / f"x.{kind}"))[5, 8].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_a_file_without_extension_is_an_image_if_it_begins_as_one(tmp_path: Path) -> None:
    for number, kind in enumerate(("JPEG", "PNG", "WEBP", "GIF", "TIFF")):
        Image.new("RGB", (17, 11)).save(tmp_path / f"n01440764_{number}", kind)
    (tmp_path / "LICENSE").write_text("Permission is hereby granted")
    (tmp_path / "RIFF").write_bytes(b"RIFF1234WAVE")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
    found = find_images(tmp_path)
    assert found.keys == [f"n01440764_{number}" for number in range(5)]


def test_files_that_are_no_images_are_counted_by_their_extensions(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/x.png", "a/note.txt", "b/NOTE.TXT", "b/x.xml", "labels"])
    (tmp_path / "labels").write_text("no image")
    assert find_images(tmp_path).left_out == {".txt": 2, ".xml": 1, "": 1}


def truncated_jpeg() -> bytes:
    file = io.BytesIO()
    Image.effect_noise((170, 110), 90).save(file, "JPEG")
    return file.getvalue()[:2000]


def broken_png() -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    size = chunk(b"IHDR", struct.pack(">IIBBBBB", 17, 11, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + size + chunk(b"IDAT", b"no deflate stream") + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "UnidentifiedImageError: cannot identify image file"),
        (b"not an image", "UnidentifiedImageError: cannot identify image file"),
        (truncated_jpeg(), "OSError: image file is truncated"),
        (broken_png(), "OSError: "),
    ],
    ids=["empty", "text", "truncated", "broken"],
)
def test_a_bad_image_is_a_value_with_its_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.png").write_bytes(content)
    loaded = to_annotate(tmp_path, ["x.png"], 6, "bilinear")[0]
    assert loaded.pixels is None
    assert loaded.reason.startswith(reason)


def test_a_broken_link_is_a_failure(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "gone.png")
    assert find_images(tmp_path).keys == ["x.png"]
    assert to_annotate(tmp_path, ["x.png"], 6, "bilinear")[0].reason == "no such file, or a broken link"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_named_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.png")
    assert to_annotate(tmp_path, ["x.png"], 6, "bilinear")[0].reason == "OSError: not a regular file"


def test_a_decompression_bomb_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, ["x.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    assert "DecompressionBombError" in to_annotate(tmp_path, ["x.png"], 6, "bilinear")[0].reason


def test_a_warning_of_pils_is_kept_and_the_image_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path, ["x.png"])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    loaded = to_annotate(tmp_path, ["x.png"], 6, "bilinear")[0]
    assert loaded.pixels is not None
    assert "exceeds limit of 150 pixels" in loaded.warnings[0]


def test_a_batch_keeps_good_and_bad_images_apart(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a.png", "c.png"])
    (tmp_path / "b.png").write_bytes(b"no")
    dataset = to_annotate(tmp_path, ["a.png", "b.png", "c.png"], 6, "bilinear")
    batch = collate([dataset[index] for index in range(len(dataset))])
    assert batch.keys == ["a.png", "c.png"]
    assert [key for key, _ in batch.failures] == ["b.png"]
    assert batch.pixels.shape == (2, 3, 6, 6)
    assert batch.pixels.dtype == torch.uint8


def test_an_unknown_interpolation_is_refused_with_those_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must be one of nearest, bilinear, .* got 'random'"):
        to_annotate(tmp_path, [], 6, "random")


def test_a_link_to_itself_does_not_lose_the_images_beside_it(tmp_path: Path) -> None:
    make_folder(tmp_path, ["a/x.png"])
    (tmp_path / "a" / "ring").symlink_to(tmp_path / "a" / "ring")
    found = find_images(tmp_path)
    assert found.keys == ["a/x.png"]
    assert found.problems == []
