"""torchvision's functionals, telling the trace of the sample being loaded what they do to its image.

The steps of torchvision.transforms (v1) and timm draw their random numbers and then call functionals of
``torchvision.transforms.functional``, a module that their own modules call ``F``. Their code is run here with these
functionals in place of ``F``: the same code, the same draws, the same pixels, and nothing of either library is changed.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import lru_cache, partial, wraps
from types import CellType, FunctionType, ModuleType
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torchvision.transforms import functional as v1

from torchrelabel.errors import CropNotSeen
from torchrelabel.following.trace import WAYS_OUT, Canvas, CropTrace, current_trace
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.label_map import LabelMap
from torchrelabel.label_map.kernels import KERNELS
from torchrelabel.label_map.refusals import REFUSED, refuse

__all__ = [
    "PROBE",
    "adopt",
    "call_followed",
    "canvas_of",
    "followed_functional",
    "is_functional",
    "known",
    "knows_its_view",
    "number_of",
    "plain_of",
    "probe_of",
    "rebound",
    "tracked",
]

# Those that move pixels, by their names in v1 and v2, and what they do to a label map.
_MOVING: dict[str, Callable[..., Any]] = {
    **KERNELS,
    **{name: partial(refuse, name) for name in REFUSED},
    "hflip": KERNELS["horizontal_flip"],
    "vflip": KERNELS["vertical_flip"],
    "elastic_transform": partial(refuse, "elastic"),
}
_SEVERAL = ("five_crop", "ten_crop")
_WHOLE = ("resize", "hflip", "vflip", "horizontal_flip", "vertical_flip")  # what they show, they show all of
_ALWAYS_REFUSED = (*REFUSED, "elastic_transform")


def call_followed(step: Any, image: Any) -> Any:
    """Call a step of torchvision's (v1) or timm's on an image, and let the trace know what it does to the image."""
    method = type(step).forward if isinstance(step, torch.nn.Module) else type(step).__call__
    return _with_our_functionals(method)(step, image)


@lru_cache(None)
def _with_our_functionals(method: FunctionType) -> FunctionType:
    """A function of another library as it is, but for what it calls F."""
    return rebound(method, _namespace_of(method.__module__))


@lru_cache(None)
def _namespace_of(module: str) -> dict[str, Any]:
    """The names of a module, in which F is ours, also for its functions."""
    theirs = vars(sys.modules[module])
    ours = {**theirs, "F": _Functionals(v1)}
    for name, value in theirs.items():
        if isinstance(value, FunctionType) and value.__globals__ is theirs:
            ours[name] = rebound(value, ours)
    return ours


def rebound(
    function: FunctionType, namespace: dict[str, Any], closure: tuple[CellType, ...] | None = None
) -> FunctionType:
    """A function with other globals, and with another closure where one is given."""
    closure = function.__closure__ if closure is None else closure
    copied = FunctionType(function.__code__, namespace, function.__name__, function.__defaults__, closure)
    copied.__kwdefaults__ = function.__kwdefaults__
    return copied


class _Functionals:
    """The module of functionals, each of which is followed."""

    def __init__(self, module: ModuleType) -> None:
        self._module = module

    def __getattr__(self, name: str) -> Any:
        theirs = getattr(self._module, name)
        ours = _followed(name, theirs) if isinstance(theirs, FunctionType) and name[0] != "_" else theirs
        setattr(self, name, ours)
        return ours


def _followed(name: str, functional: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(functional)
    def call(image: Any, *args: Any, **kwargs: Any) -> Any:
        trace = current_trace()
        if trace is None or not isinstance(image, _IMAGES):
            return functional(image, *args, **kwargs)
        if name in _SEVERAL:
            raise CropNotSeen(
                f"{name} makes several images of one, so it is unknown which of them the label should be for. "
                f"{WAYS_OUT}"
            )
        number = trace.number if image is trace.latest else number_of(image, trace, functional)
        result = functional(plain_of(image), *args, **kwargs)
        if not isinstance(result, _IMAGES):
            return result
        kernel = _MOVING.get(name)
        if kernel is not None:
            number = trace.see(number, kernel, *args, crop=name not in _WHOLE, **kwargs)
            if name in _ALWAYS_REFUSED:
                trace.canvas(number)
        return shown(result, image, number, trace)

    return call


def is_functional(step: Any) -> bool:
    """Whether a step is one of torchvision's functionals, with its other arguments fixed by name."""
    function = step.func if isinstance(step, partial) else step
    return isinstance(function, FunctionType) and function.__module__.startswith(
        ("torchvision.transforms.functional", "torchvision.transforms.v2.functional")
    )


def followed_functional(step: Any) -> Callable[..., Any]:
    """The same step, followed."""
    if isinstance(step, partial):
        return partial(followed_functional(step.func), *step.args, **step.keywords)
    return _followed(step.__name__, step)


def plain_of(image: Any) -> Any:
    """An image that tells nothing."""
    return image.plain() if isinstance(image, TrackedImage) else image


def number_of(image: Any, trace: CropTrace, by: Any) -> int:
    """The number of the view that an image shows.

    Raises:
        CropNotSeen: If the image says nothing of its view, and has another size than the one last seen.
    """
    return image.number if knows_its_view(image, trace) else trace.accept(image, by)


def canvas_of(image: Any, trace: CropTrace, by: Any) -> Canvas:
    """What an image shows.

    Raises:
        CropNotSeen: As :func:`number_of`.
    """
    canvas = trace.canvas(number_of(image, trace, by))
    assert canvas is not None
    return canvas


def probe_of(image: Any, trace: CropTrace, by: Any) -> LabelMap:
    """The same as a label map of one cell, for transforms of v2 to move with the image."""
    canvas = canvas_of(image, trace, by)
    return PROBE.with_view(canvas.view_box, canvas.canvas_size)


def adopt(result: Any, image: Any, canvas: Canvas | LabelMap | None, trace: CropTrace) -> Any:
    """Take a result for what a step has made of an image, and shows what a canvas does by now.

    Args:
        result: A PIL image, a tensor or an array.
        image: What the step got.
        canvas: Its :func:`canvas_of` or :func:`probe_of` after the step; None where the step moves nothing.
        trace: Of the sample.
    """
    number = number_of(image, trace, "A step")
    if canvas is not None:
        before = canvas_of(image, trace, "A step")
        view, size = canvas.view_box, canvas.canvas_size
        if view is not before.view_box or size != before.canvas_size:
            whole = before.view_box
            flips = (whole, whole.flip_x(), whole.flip_y(), whole.flip_x().flip_y())
            number = trace.see(number, known, Canvas(view, size), crop=view not in flips)
    return shown(result, image, number, trace)


def known(_: Canvas, canvas: Canvas) -> Canvas:
    """What is known already, in place of a kernel."""
    return canvas


def shown(result: Any, image: Any, number: int, trace: CropTrace) -> Any:
    """A result that shows the view of a number: it tells so itself where the image that it was made of did."""
    if isinstance(image, TrackedImage) and isinstance(result, PIL.Image.Image):
        return TrackedImage.made(result, trace, number)
    return trace.note(result, number)


def tracked(image: Any, trace: CropTrace, by: Any) -> Any:
    """An image for code that is not a step of torchvision's or timm's: a PIL image knows what it shows from here on."""
    if not isinstance(image, PIL.Image.Image) or isinstance(image, TrackedImage):
        return image
    return TrackedImage.of(image, trace, trace.accept(image, by))


def knows_its_view(image: Any, trace: CropTrace) -> bool:
    """Whether an image itself tells the trace of a sample what it shows."""
    return isinstance(image, TrackedImage) and image.trace is trace and image.knows_its_view


_IMAGES = (PIL.Image.Image, Tensor, np.ndarray)
PROBE = LabelMap(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long), num_classes=1, canvas_size=(1, 1))
