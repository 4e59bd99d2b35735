"""What a dataset reads its images with, telling which image was really loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import Any

import PIL.Image

from torchrelabel.data.keys import reader_key, relative_key
from torchrelabel.transforms._loading import loading_sample

__all__ = ["TellTaleLoader", "TellTaleReader"]


class TellTaleLoader:
    """The ``loader`` of torchvision's ``DatasetFolder``, telling the sample being loaded which images it opens.

    A subclass may go on to another image where one is broken, or number its images otherwise than ``samples`` does:
    the last one opened is the one that came.

    Args:
        loader: From path to image.
        root: The folder that the keys of a store are relative to.
    """

    def __init__(self, loader: Callable[[str], Any], root: str | os.PathLike[str]) -> None:
        self._loader = loader
        self._root = root

    def __call__(self, path: str) -> Any:
        sample = loading_sample()
        if sample is None:
            return self._loader(path)
        key = partial(relative_key, path, self._root)
        sample.read.append(key)
        image = self._loader(path)
        if sample.track is not None and isinstance(image, PIL.Image.Image):
            image = sample.track(image, sample)
        sample.opened.append((key, image))
        return image


class TellTaleReader:
    """A reader that tells the sample being loaded which images it opens.

    timm's ``ImageDataset`` goes on to the next index where an image is broken, so that the index asked for does not
    tell which image came; the last one opened does.

    Args:
        reader: timm's, by index.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._keys: dict[int, str] = {}

    def __getitem__(self, index: int) -> Any:
        sample = loading_sample()
        if sample is not None:
            sample.read.append(partial(self.key, index))
        return self._reader[index]

    def __len__(self) -> int:
        return len(self._reader)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._reader, name)

    def key(self, index: int) -> str:
        """The key of an image, see :func:`~torchrelabel.data.keys.reader_key`."""
        key = self._keys.get(index)
        if key is None:
            key = self._keys[index] = reader_key(self._reader, index)
        return key

    def forget(self) -> None:
        """Ask the reader anew for all keys.

        Within a batch each is asked for twice, and some readers load the image for its name; after that nobody knows
        what somebody else has made of the reader's list.
        """
        self._keys.clear()
