"""The images of a folder: found as torchvision's ImageFolder finds them, loaded as its loader loads them."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

from torchrelabel.folders import walk
from torchrelabel.store import StoreHeader
from torchrelabel.store.layout import is_store_file

Exif = Literal["ignore", "apply"]

# What Pillow reads beyond torchvision's list, where it was built for it, of the formats that photographs come in.
_MORE_EXTENSIONS = (".apng", ".avif", ".avifs", ".gif", ".heic", ".heif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpx")
# How files begin that are images whatever they are called.
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"II*\0", b"MM\0*")
_EXIF_ORIENTATION = 0x0112

_RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
    "lanczos": Image.Resampling.LANCZOS,
}


@dataclass(frozen=True)
class ImagesFound:
    """What a folder holds.

    Attributes:
        root: The folder.
        keys: Paths of the images relative to the folder, ``/`` separators, sorted.
        class_to_idx: Class folders (those that hold images) to indices, as torchvision's ``ImageFolder`` numbers them;
            None for a flat folder.
        problems: Folders that could not be looked into, as (path, reason).
        left_out: How many files are no images, by their extensions (``""`` for none).
        why_left_out: What is said of these.
    """

    root: Path
    keys: list[str]
    class_to_idx: dict[str, int] | None
    problems: list[tuple[str, str]]
    left_out: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    why_left_out: str = field(default="they are no images by their names", kw_only=True)

    def folder_of(self, key: str) -> str:
        """Return the name of the folder that says the class of an image; empty if it lies in none."""
        folder, separator, _ = key.partition("/")
        return folder if separator else ""

    def class_of(self, key: str) -> int | None:
        """Return the index of the class folder that an image lies in; None if it lies in none."""
        return self.class_to_idx.get(self.folder_of(key)) if self.class_to_idx else None

    def folders_are_classes(self, num_classes: int) -> bool:
        """Whether there is one class folder for each of so many classes."""
        folders = self.class_to_idx
        return (
            folders is not None
            and len(folders) == num_classes
            and any(self.class_of(key) is not None for key in self.keys[:1])
        )

    def open(self, key: str) -> IO[bytes]:
        """Open an image.

        Raises:
            OSError: If the file is none, or not a regular one.
        """
        return _open_regular(os.path.join(self.root, key))


def find_images(root: str | os.PathLike[str], skip: Iterable[str | os.PathLike[str]] = ()) -> ImagesFound:
    """Find the images of a folder and of the folders in it.

    Files count by their extension: torchvision's, and those that Pillow reads besides (.gif, .avif, ...). A file
    without any counts if it begins as images do. Hidden files count too.

    Args:
        root: The folder.
        skip: Folders to leave out, such as the store.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
    """
    files = walk(root, skip=skip, advice="Give the folder that holds the images.")
    extensions = (*IMG_EXTENSIONS, *more_extensions())
    keys: list[str] = []
    left_out: Counter[str] = Counter()
    for name in files.names:
        # A broken link counts as an image here, and fails by name when it is loaded.
        if name.lower().endswith(extensions):
            keys.append(name)
            continue
        extension = os.path.splitext(name)[1].lower()
        if not extension and _begins_as_an_image(os.path.join(root, name)):
            keys.append(name)
        elif not is_store_file(os.path.basename(name)):
            left_out[extension] += 1
    class_folders = sorted({key.partition("/")[0] for key in keys if "/" in key})
    class_to_idx = {name: index for index, name in enumerate(class_folders)} or None
    return ImagesFound(Path(root), keys, class_to_idx, files.problems, left_out=left_out)


def more_extensions() -> tuple[str, ...]:
    """The extensions beyond torchvision's that Pillow reads here."""
    readable = Image.registered_extensions()
    return tuple(extension for extension in _MORE_EXTENSIONS if readable.get(extension) in Image.OPEN)


def _begins_as_an_image(path: str) -> bool:
    try:
        with _open_regular(path) as file:
            beginning = file.read(12)
    except OSError:
        return False
    return beginning.startswith(_BEGINNINGS) or (beginning[:4] == b"RIFF" and beginning[8:] == b"WEBP")


class PhotoFacts(NamedTuple):
    """What a label map needs to know of the image it was made of.

    Attributes:
        width: In pixels, as it was annotated.
        height: In pixels, as it was annotated.
        exif_turned: Whether its EXIF orientation says that it be turned, or mirrored, to be looked at.
        deep: Whether it has 16 bits a channel, scaled to 8.
    """

    width: int
    height: int
    exif_turned: bool = False
    deep: bool = False


def read_image(file: IO[bytes], exif: Exif = "ignore") -> tuple[Image.Image, PhotoFacts]:
    """Load an image in RGB, and what is to be known of it.

    It is what torchvision's ``pil_loader`` gives, but for images of one channel of 16 bits: these are scaled, where
    Pillow's ``convert("RGB")`` makes all of them white.

    Args:
        file: The open file.
        exif: Whether an EXIF orientation is followed; torchvision's loader ignores it.

    Raises:
        OSError: If it is not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    with Image.open(file) as image:
        image.load()  # of TIFF files, Pillow follows the orientation here, whoever asks
        turned = _is_turned(image)
        deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PNG")
        upright = ImageOps.exif_transpose(image) if turned and exif == "apply" else image
        if deep:
            shown = _from_16_bits(upright)
        else:
            _refuse_unknown_white(upright)
            shown = upright.convert("RGB")
    return shown, PhotoFacts(shown.width, shown.height, turned, deep)


def load_image(file: IO[bytes], exif: Exif = "ignore") -> Image.Image:
    """The image alone, of what `read_image` gives.

    Raises:
        OSError: If it is not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    return read_image(file, exif)[0]


def open_image(path: str | os.PathLike[str], exif: Exif = "ignore") -> Image.Image:
    """Load an image of a folder as `load_image` does.

    Raises:
        OSError: If the file is none, not a regular one, or not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    with _open_regular(path) as file:
        return load_image(file, exif)


def exif_of(header: StoreHeader) -> Exif:
    """How the images of a store were opened."""
    return "apply" if header.annotator.get("exif") == "apply" else "ignore"


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION) in range(2, 9)
    except Exception:  # damaged EXIF data, which torchvision's loader does not even look at
        return False


def _from_16_bits(image: Image.Image) -> Image.Image:
    """An image of one channel of 16 bits in RGB; Pillow would cut its numbers off at 255."""
    values = np.asarray(image).astype(np.uint32)
    return Image.fromarray(((values + 128) // 257).astype(np.uint8)).convert("RGB")


def _refuse_unknown_white(image: Image.Image) -> None:
    """Refuse an image of 32 bits a channel that would be cut off at 255."""
    if image.mode != "I":
        return
    lowest, highest = image.getextrema()
    if isinstance(lowest, (int, float)) and isinstance(highest, (int, float)) and not 0 <= lowest <= highest <= 255:
        raise OSError(
            f"its pixels are numbers from {lowest} to {highest}, and nothing tells which is white; save it with 8 or "
            f"16 bits"
        )


def _open_regular(path: str | os.PathLike[str]) -> IO[bytes]:
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("not a regular file")
    return open(path, "rb")


def squashed(image: Image.Image, size: int, interpolation: str, box: Sequence[float] | None = None) -> Tensor:
    """An image, or a crop of it, squashed to a square, as ``torchvision.transforms.Resize((S, S))`` does it.

    Args:
        image: In RGB.
        size: S in pixels.
        interpolation: ``"bilinear"``, ``"bicubic"``, ...; antialiased, as always with PIL.
        box: The crop, xyxy in pixels; all of the image if None.

    Returns:
        ``[3, S, S]``, uint8.
    """
    if box is None:
        shown = image
    else:
        x1, y1, x2, y2 = (round(side) for side in box)
        shown = image.crop((x1, y1, x2, y2))
    if shown.size != (size, size):
        shown = shown.resize((size, size), _RESAMPLING[interpolation])
    return torch.from_numpy(np.array(shown)).permute(2, 0, 1).contiguous()


def check_interpolation(interpolation: str) -> None:
    """Refuse an interpolation that PIL does not have.

    Raises:
        ValueError: If it is unknown.
    """
    if interpolation not in _RESAMPLING:
        raise ValueError(f"interpolation must be one of {', '.join(_RESAMPLING)}, got {interpolation!r}.")


@dataclass
class LoadedImage:
    """One image, or the reason why there is none.

    Attributes:
        key: Its path relative to the root.
        pixels: ``[3, S, S]`` uint8; None if it could not be loaded.
        enlarged: The same at another size, if asked for.
        facts: Its size, and what else there is to know.
        reason: Why not.
        warnings: What PIL warned about.
    """

    key: str
    pixels: Tensor | None = None
    enlarged: Tensor | None = None
    facts: PhotoFacts | None = None
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass
class LoadedBatch:
    """Several images side by side, those that failed apart.

    Attributes:
        keys: N keys.
        pixels: ``[N, 3, S, S]`` uint8.
        enlarged: The same at another size, if asked for.
        facts: Their sizes, and what else there is to know, N of them.
        failures: Key and reason of those that could not be loaded.
        warnings: Key and text of what PIL warned about.
    """

    keys: list[str]
    pixels: Tensor
    enlarged: Tensor | None
    facts: list[PhotoFacts]
    failures: list[tuple[str, str]]
    warnings: list[tuple[str, str]]

    def pin_memory(self) -> LoadedBatch:
        """Copy the pixels to page-locked memory; a DataLoader calls this."""
        enlarged = None if self.enlarged is None else self.enlarged.pin_memory()
        return replace(self, pixels=self.pixels.pin_memory(), enlarged=enlarged)


class ImagesToAnnotate(Dataset[LoadedImage]):
    """Images as pixels of one size. A bad image is a value, not an error: an error would end the whole run.

    Args:
        found: The folder, or what else opens images by their keys.
        keys: Which of its images.
        size: S in pixels.
        interpolation: How they are resized.
        enlarged_size: Another size at which they are asked for too, in pixels.
        exif: Whether an EXIF orientation is followed.
    """

    def __init__(
        self,
        found: ImagesFound,
        keys: Sequence[str],
        size: int,
        interpolation: str,
        enlarged_size: int | None = None,
        exif: Exif = "ignore",
    ) -> None:
        check_interpolation(interpolation)
        self.found = replace(found, keys=[])  # a worker that is spawned need not get all the keys twice
        self.keys = keys
        self.size = size
        self.interpolation = interpolation
        self.enlarged_size = enlarged_size
        self.exif: Exif = exif

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> LoadedImage:
        key = self.keys[index]
        # Recorded, so that a warning of PIL's (a huge image, damaged EXIF) is neither lost nor, under -W error, fatal.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with self.found.open(key) as file:
                    image, facts = read_image(file, self.exif)
                pixels = self.seen(image)
                larger = self.enlarged_size and squashed(image, self.enlarged_size, self.interpolation)
            except Exception as error:  # PIL raises nearly anything for damaged files: OSError, SyntaxError, ...
                return LoadedImage(key, reason=reason_of(error), warnings=_texts(caught))
        enlarged = larger if isinstance(larger, Tensor) else None
        return LoadedImage(key, pixels, enlarged, facts, warnings=_texts(caught))

    def seen(self, image: Image.Image) -> Tensor:
        """What the model gets of an image: ``[3, S, S]``, uint8."""
        return squashed(image, self.size, self.interpolation)


def collate(images: list[LoadedImage]) -> LoadedBatch:
    """Put images side by side; in a worker process, so that one block of shared memory carries them all."""
    pixels = [image.pixels for image in images if image.pixels is not None]
    enlarged = [image.enlarged for image in images if image.enlarged is not None]
    return LoadedBatch(
        keys=[image.key for image in images if image.pixels is not None],
        pixels=torch.stack(pixels) if pixels else torch.empty(0, 3, 0, 0, dtype=torch.uint8),
        enlarged=torch.stack(enlarged) if enlarged else None,
        facts=[image.facts for image in images if image.facts is not None],
        failures=[(image.key, image.reason) for image in images if image.pixels is None],
        warnings=[(image.key, text) for image in images for text in image.warnings],
    )


def reason_of(error: Exception) -> str:
    """Why an image cannot be used, in one line."""
    if isinstance(error, FileNotFoundError):
        return "no such file, or a broken link"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # PIL puts the file object's repr into some messages: "cannot identify image file <_io.BufferedReader ...>".
    text = str(error).split(" <_io.")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _texts(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return sorted({str(warning.message) for warning in caught})
