"""CropTrace: what the image of the sample being loaded shows of the original, from step to step."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from torchrelabel.errors import CropNotSeen
from torchrelabel.following.sizes import images_in, size_of, sizes_of
from torchrelabel.view import View, ViewBox

__all__ = ["WAYS_OUT", "Canvas", "CropTrace", "current_trace", "short"]

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


class Canvas(NamedTuple):
    """What an image shows, and its size (H, W): all that the kernels of functionals ask a label map for."""

    view_box: View
    canvas_size: tuple[int, int]

    def with_view(self, view: View, canvas_size: tuple[int, int] | None = None) -> Canvas:
        """As :meth:`LabelMap.with_view <torchrelabel.LabelMap.with_view>`."""
        return Canvas(view, canvas_size or self.canvas_size)


class CropTrace:
    """The latest view known of one sample while its pipeline runs.

    A context manager: within it, :func:`current_trace` gives this object. Views have numbers. While images are worked
    on, only what was done to each is written down; what it shows is found out when somebody asks.

    Attributes:
        cropped: Whether a crop, or anything else that moves pixels, has been seen.
        ambiguous: Whether two views were taken of one image, so that it is unknown which one was kept.
        trusted: The latest step of the user's own whose result could not be followed further than by its size.
        error: Why the view is unknown, for those who cannot raise where they find out.
        number: Of the latest view.
        latest: The image, tensor or array that shows it; None where an image that knows its own number does.
    """

    def __init__(self) -> None:
        self.cropped = False
        self.ambiguous = False
        self.trusted: Any = None
        self.error: Exception | None = None
        self.number = 0
        self.latest: Any = None
        # Move n - 1 made view n.
        self._moves: list[tuple[int, Callable[..., Canvas], tuple[Any, ...], dict[str, Any]]] = []
        self._canvases: dict[int, Canvas] = {}
        # Weak, so that the memory of an image is free for the next one.
        self._earlier: list[tuple[weakref.ref[Any], int]] = []
        self._token: Token[CropTrace | None] | None = None

    def __enter__(self) -> CropTrace:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _current.reset(self._token)

    def begin(self, size: tuple[int, int] | None) -> None:
        """Take note of the size (H, W) of an image that was just read, and shows all of the original."""
        if size is None:
            return
        if self._canvases:
            self._moves.append((0, Canvas.with_view, (), {}))  # never called: what this image shows is known
            self._replace(None)
            self.number = len(self._moves)
        self._canvases[self.number] = Canvas(ViewBox(), size)

    def canvas(self, number: int | None = None) -> Canvas | None:
        """What the view of a number shows, by default the latest; None as long as no image was seen."""
        wanted = number = self.number if number is None else number
        if not self._canvases:
            return None
        made = []
        while number not in self._canvases:
            made.append(number)
            number = self._moves[number - 1][0]
        canvas = self._canvases[number]
        for number in reversed(made):
            _, move, args, kwargs = self._moves[number - 1]
            canvas = self._canvases[number] = move(canvas, *args, **kwargs)
        return self._canvases[wanted]

    @property
    def view(self) -> View:
        """What the latest image shows."""
        canvas = self.canvas()
        return ViewBox() if canvas is None else canvas.view_box

    @property
    def size(self) -> tuple[int, int] | None:
        """The size (H, W) of the latest image, None as long as no image was seen."""
        canvas = self.canvas()
        return None if canvas is None else canvas.canvas_size

    def see(self, parent: int, move: Callable[..., Any], *args: Any, crop: bool, **kwargs: Any) -> int:
        """Take note of a new view, made of the view of number ``parent``; return its number.

        Args:
            parent: Of the image that something was done to.
            move: What was done, a kernel: from the :class:`Canvas` of that image to that of the new one.
            *args: Of the kernel, which come after the canvas.
            crop: Whether this moves pixels other than by a flip or a resize.
            **kwargs: Of the kernel.
        """
        if parent != self.number:
            self.ambiguous = True
        self.cropped = self.cropped or crop
        self._moves.append((parent, move, args, kwargs))
        self._replace(None)
        self.number = len(self._moves)
        return self.number

    def return_to(self, number: int) -> None:
        """Go on from an image that knows what it shows, whatever else was made of its parents."""
        if number != self.number:
            self._replace(None)
        self.number, self.ambiguous = number, False

    def note(self, image: Any, number: int | None = None) -> Any:
        """Take note that an image, a tensor or an array shows the view of a number, by default the latest."""
        if number is None or number == self.number:
            self._replace(image)
        else:
            self._earlier.append((weakref.ref(image), number))
        return image

    def _replace(self, latest: Any) -> None:
        if self.latest is not None and self.latest is not latest:
            self._earlier.append((weakref.ref(self.latest), self.number))
        self.latest = latest

    def noted(self, image: Any) -> int | None:
        """The number of the view that an image, a tensor or an array shows, None where that was not noted."""
        if image is self.latest:
            return self.number
        return next((number for known, number in reversed(self._earlier) if known() is image), None)

    def accept(self, image: Any, by: Any) -> int:
        """The number of the view that an image shows; one that says nothing of it is taken to show the latest.

        Raises:
            CropNotSeen: If its size says that it does not, or it is several images.
        """
        number = self.noted(image)
        if number is not None:
            self.ambiguous = self.ambiguous or number != self.number
            return number
        if not self._canvases:  # the first image of the sample, as it was read
            self.begin(size_of(image))
        else:
            self.check_size(image, by)
            self.trusted = by
        self.note(image)
        return self.number

    def check_size(self, result: Any, by: Any) -> None:
        """Raise if an image has another size than the one last seen, or is several: it was changed unseen.

        Args:
            result: An image, or any structure of images.
            by: What gave it, a step or words, for the message.
        """
        size = self.size
        if size is None or (isinstance(result, Tensor) and result.ndim == 3 and result.shape[1:] == size):
            return
        for image in images_in(result):
            sizes = sizes_of(image)
            several = math.prod(image.shape[:-3]) if isinstance(image, (Tensor, np.ndarray)) else 1
            if several == 1 and size in sizes:
                continue
            by = by if isinstance(by, str) else short(by)
            if several > 1:
                raise CropNotSeen(
                    f"{by} gave {several} images in one, {list(image.shape)}, so it is unknown which of them the label "
                    f"should be for. {WAYS_OUT}"
                )
            raise CropNotSeen(
                f"{by} gave an image of {sizes[0][0]} x {sizes[0][1]} pixels (H x W), and the one last seen had "
                f"{size[0]} x {size[1]}: it was cropped or resized in a way that could not be followed, "
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
        if not self._canvases:
            self.begin(size_of(result))


def _named(pipeline: Any) -> str:
    return "the pipeline" if pipeline is None else f"the pipeline {short(pipeline)}"
