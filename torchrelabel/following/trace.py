"""CropTrace: what the image of the sample being loaded shows of the original, from step to step."""

from __future__ import annotations

import math
from contextvars import ContextVar, Token
from typing import Any

import numpy as np
from torch import Tensor

from torchrelabel.errors import CropNotSeen
from torchrelabel.following.sizes import images_in, size_of, sizes_of
from torchrelabel.view import View, ViewBox

__all__ = ["WAYS_OUT", "CropTrace", "current_trace", "short"]

WAYS_OUT = (
    "Crop with RandomResizedCropWithLabelMap, declare the step (docs: Following a crop), pass a v2 pipeline as "
    "LabelMapDataset(..., transforms=), or say crop='full' to pool the whole image on purpose."
)

# Worker threads of one process load different samples: each sees its own.
_current: ContextVar[CropTrace | None] = ContextVar("torchrelabel_crop_trace", default=None)


def current_trace() -> CropTrace | None:
    """The trace of the sample that is loaded now in this thread, None outside of one."""
    return _current.get()


def short(pipeline: Any) -> str:
    """A pipeline or a step of it, in a line of a message."""
    text = " ".join(repr(pipeline).split())
    return text if len(text) <= 300 else text[:297] + "..."


class CropTrace:
    """The latest view known of one sample while its pipeline runs.

    A context manager: within it, :func:`current_trace` gives this object.

    Attributes:
        view: What the latest image shows.
        size: The size (H, W) of that image, None as long as no image was seen.
        cropped: Whether a crop, or anything else that moves pixels, has been seen.
        ambiguous: Whether two views were taken of one image, so that it is unknown which one was kept.
        trusted: The latest step of the user's own whose result could not be followed further than by its size.
        error: Why the view is unknown, for those who cannot raise where they find out.
        number: Of the latest view; each image that knows its view carries the number of that.
    """

    def __init__(self) -> None:
        self.view: View = ViewBox()
        self.size: tuple[int, int] | None = None
        self.cropped = False
        self.ambiguous = False
        self.trusted: Any = None
        self.error: Exception | None = None
        self.number = 0
        self._views = 0
        self._arrays: list[tuple[Any, int]] = []  # tensors and arrays that showed a view, with its number
        self._token: Token[CropTrace | None] | None = None

    def __enter__(self) -> CropTrace:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _current.reset(self._token)
        self._arrays = []

    def see(self, view: View, size: tuple[int, int], parent: int, *, crop: bool) -> int:
        """Take note of a new view, made of an image that showed the view of number ``parent``; return its number."""
        if parent != self.number:
            self.ambiguous = True
        self.cropped = self.cropped or crop
        self.view, self.size = view, size
        self._views += 1
        self.number = self._views
        return self.number

    def return_to(self, view: View, size: tuple[int, int], number: int) -> None:
        """Go on from an image that knows what it shows, whatever else was made of its parents."""
        self.view, self.size, self.number, self.ambiguous = view, size, number, False

    def note(self, array: Any, number: int | None = None) -> Any:
        """Take note that a tensor or an array shows the view of a number, by default the latest."""
        self._arrays.append((array, self.number if number is None else number))
        return array

    def number_of(self, array: Any) -> int:
        """The number of the view that a tensor or an array shows, as far as that was noted; else the latest."""
        return next((number for noted, number in reversed(self._arrays) if noted is array), self.number)

    def accept(self, image: Any, by: Any) -> None:
        """Take an image that says nothing of its view for one that shows the latest, if its size allows that.

        Raises:
            CropNotSeen: If it has another size, is several images, or is an earlier one than the latest seen.
        """
        if self.knows(image):
            if self.number_of(image) != self.number:
                self.ambiguous = True
            return
        if self.size is None:  # the first image of the sample, as it was read
            self.size = size_of(image)
        else:
            self.check_size(image, by)
            self.trusted = by
        self.note(image)

    def knows_latest(self, image: Any) -> bool:
        """Whether a tensor or an array is that which shows the latest view."""
        noted, number = self._arrays[-1] if self._arrays else (None, -1)
        return noted is image and number == self.number

    def knows(self, image: Any) -> bool:
        """Whether it was noted what a tensor or an array shows."""
        return any(noted is image for noted, _ in self._arrays)

    def check_size(self, result: Any, by: Any) -> None:
        """Raise if an image has another size than the one last seen, or is several: it was changed unseen.

        Args:
            result: An image, or any structure of images.
            by: What gave it, a step or words, for the message.
        """
        if self.size is None:
            return
        for image in images_in(result):
            sizes = sizes_of(image)
            several = math.prod(image.shape[:-3]) if isinstance(image, (Tensor, np.ndarray)) else 1
            if several == 1 and self.size in sizes:
                continue
            by = by if isinstance(by, str) else short(by)
            if several > 1:
                raise CropNotSeen(
                    f"{by} gave {several} images in one, {list(image.shape)}, so it is unknown which of them the label "
                    f"should be for. {WAYS_OUT}"
                )
            raise CropNotSeen(
                f"{by} gave an image of {sizes[0][0]} x {sizes[0][1]} pixels (H x W), and the one last seen had "
                f"{self.size[0]} x {self.size[1]}: it was cropped or resized in a way that could not be followed, "
                f"so the label is unknown. {WAYS_OUT}"
            )

    def finish(self, result: Any, pipeline: Any, ways_out: str = WAYS_OUT) -> None:
        """Check that the result of a pipeline, None for an unknown one, shows the latest view.

        Raises:
            CropNotSeen: If that cannot be known.
        """
        if self.ambiguous:
            raise CropNotSeen(
                f"Several crops were taken of one image by {_named(pipeline)}, so it is unknown which of them the "
                f"label should be for. {ways_out}"
            )
        if self.trusted is not None and not self.cropped:
            raise CropNotSeen(
                f"No crop was seen while {_named(pipeline)} ran, and what {short(self.trusted)} does to an image is "
                f"unknown, so the label is, too. {ways_out}"
            )
        self.check_size(result, "The end of the pipeline")
        if self.size is None:
            self.size = size_of(result)


def _named(pipeline: Any) -> str:
    return "the pipeline" if pipeline is None else f"the pipeline {short(pipeline)}"
