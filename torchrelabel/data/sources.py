"""Where the images of a dataset come from: which file each was read from, before anything was done to it."""

from __future__ import annotations

import copy
import os
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar, Token
from functools import partial
from typing import Any

import PIL.Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.vision import StandardTransform

from torchrelabel.data.keys import reader_key, relative_key, root_of
from torchrelabel.errors import CropNotSeen
from torchrelabel.following.follow import begin, track
from torchrelabel.following.sizes import size_of
from torchrelabel.following.steps import with_steps_followed
from torchrelabel.following.trace import CropTrace
from torchrelabel.following.tracked_image import TrackedImage

__all__ = ["Reading", "RecordingLoader", "RecordingReader", "layers", "takes_over", "without_transform"]

# Worker threads of one process read different images: each sees its own.
_current: ContextVar[Reading | None] = ContextVar("torchrelabel_reading", default=None)


class Reading:
    """What a dataset reads for one sample.

    A context manager, within which loaders and readers tell it what they open.

    Args:
        trace: Follows an image from where it is opened on; None if nobody wants to know.

    Attributes:
        keys: What gives the key of each image that was opened, where that is known; the last one was loaded.
        opened: These images, as they were opened, each with what gives its key.
        given: Each image that the dataset gave to its own transform.
    """

    def __init__(self, trace: CropTrace | None) -> None:
        self.trace = trace
        self.keys: list[Callable[[], str]] = []
        self.opened: list[tuple[Callable[[], str], Any]] = []
        self.given: list[Any] = []
        self._token: Token[Reading | None] | None = None

    def __enter__(self) -> Reading:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _current.reset(self._token)

    def keys_of(self, image: Any, dataset: Any) -> list[Callable[[], str]]:
        """What gives the key of an image that a dataset gave, the last one, and of those that it tried before.

        Raises:
            CropNotSeen: Unless it gave just the one image that it opened, for whose pixels the label map is.
        """
        if len(self.opened) == len(self.keys) == 1 and self.opened[0][1] is image and self.given in ([], [image]):
            return self.keys
        name = type(dataset).__name__
        if len(self.given) > 1:
            raise CropNotSeen(
                f"{name} gave {len(self.given)} images to its transform for one sample, so it is unknown which of "
                f"them the label should be for. Give LabelMapDataset a dataset of one image a sample."
            )
        if self.given and image is not self.given[0]:
            raise CropNotSeen(
                f"{name} changes an image after its transform, and LabelMapDataset runs that transform on what the "
                f"dataset gives: the order would be another. Make the change a part of the transform."
            )
        own = [key for key, opened in self.opened if opened is image]
        if own or not self.opened:
            return [key for key in self.keys if key not in own] + own
        if len(self.opened) > 1:
            raise CropNotSeen(
                f"{name} opened {len(self.opened)} images for one sample and gave none of them as it was, so it is "
                f"unknown which of them the label should be for. Change images in the transform only."
            )
        moved = (self.trace is not None and self.trace.cropped) or size_of(image) != size_of(self.opened[0][1])
        if moved and not isinstance(image, TrackedImage):
            raise CropNotSeen(
                f"{name} crops or resizes an image between opening and transforming it, in a way that could not be "
                f"followed, so the label is unknown. Make that a part of the transform, or do it with PIL."
            )
        return self.keys


class RecordingLoader:
    """The ``loader`` of torchvision's ``DatasetFolder``, telling which images it opens for a sample.

    A subclass may go on to another image where one is broken, or number its images in another way than ``samples``:
    the last one opened is the one that came.

    Args:
        loader: From path to image.
        root: The folder that the keys of a store are relative to.
        handled: Whether the dataset may do more with an image than give it to its transform.
    """

    def __init__(self, loader: Callable[[str], Any], root: str | os.PathLike[str], *, handled: bool) -> None:
        self._loader = loader
        self._root = root
        self._follow = track if handled else begin

    def __call__(self, path: str) -> Any:
        reading = _current.get()
        if reading is None:
            return self._loader(path)
        key = partial(relative_key, path, self._root)
        reading.keys.append(key)
        image = self._loader(path)
        if reading.trace is not None and isinstance(image, PIL.Image.Image):
            image = self._follow(image, reading.trace)
        reading.opened.append((key, image))
        return image


class RecordingReader:
    """The reader of timm's ``ImageDataset``, telling which images it opens for a sample.

    The dataset goes on to the next index where an image is broken, so that the index asked for does not tell which
    image came; the last one opened does.

    Args:
        reader: timm's, by index.
    """

    def __init__(self, reader: Any) -> None:
        self._reader = reader
        self._keys: dict[int, str] = {}

    def __getitem__(self, index: int) -> Any:
        reading = _current.get()
        if reading is not None:
            reading.keys.append(partial(self.key, index))
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


def layers(dataset: Any) -> Iterator[Any]:
    """A dataset and the datasets that it is made of."""
    yield dataset
    inner = dataset.datasets if isinstance(dataset, ConcatDataset) else [_wrapped(dataset)]
    for layer in inner:
        if layer is not None:
            yield from layers(layer)


def _wrapped(dataset: Any) -> Any:
    """The dataset that one wraps: the only one that it holds, under whatever name."""
    if isinstance(dataset, Subset):
        return dataset.dataset
    held = [value for value in getattr(dataset, "__dict__", {}).values() if isinstance(value, Dataset)]
    return held[0] if len(held) == 1 else None


def is_timms(dataset: Any) -> bool:
    """Whether a dataset is timm's ``ImageDataset``, where anybody has loaded timm."""
    module = sys.modules.get("timm.data.dataset")
    return module is not None and isinstance(dataset, module.ImageDataset)


def takes_over(dataset: Any) -> bool:
    """Whether the transform of a dataset, as :func:`without_transform` gives it, is ours to run."""
    return any(getattr(layer, "transform", None) is _as_read for layer in layers(dataset))


def without_transform(dataset: Any) -> tuple[Any, Callable[..., Any] | None]:
    """A shallow copy of a dataset that gives images as they are read, and the transform that it had.

    Raises:
        TypeError, ValueError: If the transform cannot be taken out, saying what to do.
    """
    wrapped = _wrapped(dataset)
    if wrapped is not None and getattr(dataset, "transform", None) is None:
        inner, transform = without_transform(wrapped)
        dataset = copy.copy(dataset)
        dataset.__dict__.update({name: inner for name, value in vars(dataset).items() if value is wrapped})
        return dataset, transform
    if isinstance(dataset, ConcatDataset):
        parts = [without_transform(part) for part in dataset.datasets]
        if any(transform is not parts[0][1] for _, transform in parts):
            raise ValueError(
                "The parts of this ConcatDataset have different transforms. Wrap each part in a LabelMapDataset and "
                "concatenate those."
            )
        dataset = copy.copy(dataset)
        dataset.datasets = [part for part, _ in parts]
        return dataset, parts[0][1]
    if not hasattr(dataset, "transform"):
        return with_steps_followed(dataset), None  # it transforms inside itself, if at all
    dataset = copy.copy(dataset)
    transform = dataset.transform
    if any(getattr(layer, "transform", None) is not None for layer in list(layers(dataset))[1:]):
        raise ValueError(
            f"{type(dataset).__name__} has a transform and wraps a dataset that has one too, whose crop would not be "
            f"seen. Give all of it to one of them."
        )
    try:
        dataset.transform = _as_read
    except AttributeError:
        raise TypeError(
            f"The transform of {type(dataset).__name__} cannot be replaced, and LabelMapDataset runs it itself. Make "
            f"it an attribute instead of a property."
        ) from None
    if isinstance(dataset, Subset):  # with a transform of its own: what it holds still opens the images
        dataset.dataset, _ = without_transform(dataset.dataset)
    root = root_of(dataset)
    if isinstance(dataset, DatasetFolder) and root is not None:
        handled = type(dataset).__getitem__ is not DatasetFolder.__getitem__
        dataset.loader = RecordingLoader(dataset.loader, root, handled=handled)
    if is_timms(dataset):
        dataset.reader = RecordingReader(dataset.reader)
    if isinstance(getattr(dataset, "transforms", None), StandardTransform):
        # torchvision keeps the transform in a second place, from where some of its datasets call it.
        dataset.transforms = StandardTransform(_as_read, dataset.target_transform)
    elif getattr(dataset, "transforms", None) is not None:
        raise ValueError(
            f"{type(dataset).__name__} was created with transforms=, for images and targets together. Give the "
            f"pipeline to LabelMapDataset(..., transforms=) instead, where it gets images and label maps together; or "
            f"call the attribute transform, if it gets images alone."
        )
    return dataset, transform


def _as_read(*images: Any, **named: Any) -> Any:
    """The transform of a dataset whose images are transformed by LabelMapDataset."""
    if len(images) != 1 or named:
        raise TypeError(
            f"A dataset's transform is called with an image alone, and this dataset calls it with "
            f"{', '.join([type(image).__name__ for image in images] + list(named))}. LabelMapDataset follows pipelines "
            f"like torchvision's; for others, crop with RandomResizedCropWithLabelMap within a function of the image."
        )
    (image,) = images
    reading = _current.get()
    if reading is not None and not any(image is given for given in reading.given):
        reading.given.append(image)
    return image
