"""The images of a folder: found as torchvision's ImageFolder finds them, loaded as its loader loads them."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS

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
    """

    root: Path
    keys: list[str]
    class_to_idx: dict[str, int] | None
    problems: list[tuple[str, str]]

    def class_of(self, key: str) -> int | None:
        """Return the index of the class folder that an image lies in; None if it lies in none."""
        folder, separator, _ = key.partition("/")
        return self.class_to_idx.get(folder) if self.class_to_idx and separator else None

    def open(self, key: str) -> IO[bytes]:
        """Open an image.

        Raises:
            OSError: If the file is none, or not a regular one.
        """
        return _open_regular(os.path.join(self.root, key))


def find_images(root: str | os.PathLike[str], skip: Iterable[str | os.PathLike[str]] = ()) -> ImagesFound:
    """Find the images of a folder and of the folders in it.

    Files count by their extension, as in torchvision, hidden ones too. Links to folders are followed; one that leads
    back to a folder it lies in is reported instead.

    Args:
        root: The folder.
        skip: Folders to leave out, such as the store.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {str(root)!r}.")
    if not root.is_dir():
        raise NotADirectoryError(f"{str(root)!r} is a file. Give the folder that holds the images.")
    skipped = {os.path.realpath(path) for path in skip}
    keys: list[str] = []
    problems: list[tuple[str, str]] = []
    # Folders still to look into: key prefix, and the real paths of the folder and of all above it.
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            # Closed before the next folder is opened, so that depth does not cost file handles.
            with os.scandir(os.path.join(root, prefix)) as entries:
                here = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError as error:
            problems.append((prefix.rstrip("/") or str(root), error.strerror or str(error)))
            continue
        for name, is_folder in here:
            if not is_folder:
                # A broken link counts as an image here, and fails by name when it is loaded.
                if name.lower().endswith(IMG_EXTENSIONS):
                    keys.append(prefix + name)
                continue
            real = os.path.realpath(os.path.join(root, prefix, name))
            if real in skipped:
                continue
            if real in above:
                problems.append((prefix + name, f"a link back to {real}, which it lies in"))
                continue
            waiting.append((f"{prefix}{name}/", above | {real}))
    class_folders = sorted({key.partition("/")[0] for key in keys if "/" in key})
    class_to_idx = {name: index for index, name in enumerate(class_folders)} or None
    return ImagesFound(root, sorted(keys), class_to_idx, sorted(problems))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself is no folder, and no reason to lose the files beside it
        return False


def load_image(file: IO[bytes]) -> Image.Image:
    """Load an image as torchvision's ``pil_loader`` does (RGB, EXIF rotation ignored).

    Args:
        file: The open file.

    Raises:
        OSError: If it is not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    with Image.open(file) as image:
        rgb: Image.Image = image.convert("RGB")
    return rgb


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Load an image of a folder as `load_image` does.

    Raises:
        OSError: If the file is none, not a regular one, or not an image.
        Exception: Whatever else PIL raises for damaged files.
    """
    with _open_regular(path) as file:
        return load_image(file)


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
        reason: Why not.
        warnings: What PIL warned about.
    """

    key: str
    pixels: Tensor | None = None
    enlarged: Tensor | None = None
    reason: str = ""
    warnings: list[str] = field(default_factory=list)


@dataclass
class LoadedBatch:
    """Several images side by side, those that failed apart.

    Attributes:
        keys: N keys.
        pixels: ``[N, 3, S, S]`` uint8.
        enlarged: The same at another size, if asked for.
        failures: Key and reason of those that could not be loaded.
        warnings: Key and text of what PIL warned about.
    """

    keys: list[str]
    pixels: Tensor
    enlarged: Tensor | None
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
    """

    def __init__(
        self,
        found: ImagesFound,
        keys: Sequence[str],
        size: int,
        interpolation: str,
        enlarged_size: int | None = None,
    ) -> None:
        check_interpolation(interpolation)
        self.found = replace(found, keys=[])  # a worker that is spawned need not get all the keys twice
        self.keys = keys
        self.size = size
        self.interpolation = interpolation
        self.enlarged_size = enlarged_size

    def __len__(self) -> int:
        return len(self.keys)

    def __getitem__(self, index: int) -> LoadedImage:
        key = self.keys[index]
        # Recorded, so that a warning of PIL's (a huge image, damaged EXIF) is neither lost nor, under -W error, fatal.
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                with self.found.open(key) as file:
                    image = load_image(file)
                pixels = self.seen(image)
                larger = self.enlarged_size and squashed(image, self.enlarged_size, self.interpolation)
            except Exception as error:  # PIL raises nearly anything for damaged files: OSError, SyntaxError, ...
                return LoadedImage(key, reason=_reason(error), warnings=_texts(caught))
        return LoadedImage(key, pixels, larger if isinstance(larger, Tensor) else None, warnings=_texts(caught))

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
        failures=[(image.key, image.reason) for image in images if image.pixels is None],
        warnings=[(image.key, text) for image in images for text in image.warnings],
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such file, or a broken link"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # PIL puts the file object's repr into some messages: "cannot identify image file <_io.BufferedReader ...>".
    text = str(error).split(" <_io.")[0].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _texts(caught: Sequence[warnings.WarningMessage]) -> list[str]:
    return sorted({str(warning.message) for warning in caught})
