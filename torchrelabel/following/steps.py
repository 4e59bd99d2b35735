"""How each kind of step of a pipeline is run so that its image is followed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache, partial
from types import CellType, FunctionType
from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor, nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from torchrelabel.errors import CropNotSeen, UntrackedTransformError
from torchrelabel.following.declare import rule_of
from torchrelabel.following.functionals import (
    adopt,
    call_followed,
    canvas_of,
    followed_functional,
    is_functional,
    knows_its_view,
    number_of,
    plain_of,
    probe_of,
    rebound,
    tracked,
)
from torchrelabel.following.sizes import images_in, size_of
from torchrelabel.following.trace import WAYS_OUT, Canvas, CropTrace, current_trace, short
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.label_map.kernels import KERNELS
from torchrelabel.view import View

__all__ = ["MOVING_OPERATIONS", "augments", "run", "run_own", "with_attributes", "with_steps_followed"]

_IN_ORDER = (v1.Compose, v2.Compose, nn.Sequential)
_CHOICES = (v1.RandomApply, v1.RandomChoice, v1.RandomOrder, v2.RandomApply, v2.RandomChoice, v2.RandomOrder)
# They blend copies of an image that have moved differently with the image itself, which keeps the largest share on
# average; the label stays that of the image.
_BLENDS = ("torchvision.transforms.autoaugment.AugMix", "torchvision.transforms.v2._auto_augment.AugMix",
           "timm.data.auto_augment.AugMixAugment")  # fmt: skip
_V2, _V1, _TIMM = "torchvision.transforms.v2.", "torchvision.transforms.", "timm.data."
_OPS = "timm.data.auto_augment."
# Transforms of v2 that draw, and then move each input by itself: those that only flip or resize, and others. (They
# move a tracked image by its own methods, too; those that are not here pad, which no method does, or tilt.)
_WHOLE = (v2.Resize, v2.RandomResize, v2.RandomShortestSize, v2.ScaleJitter,
          v2.RandomHorizontalFlip, v2.RandomVerticalFlip)  # fmt: skip
_ONE_BY_ONE = (*_WHOLE, v2.RandomResizedCrop, v2.RandomRotation, v2.RandomAffine)
# And those that move no pixels, of v1 and v2: these, and a few others that are left to find out for themselves.
_COLOURS = {
    getattr(library, name)
    for library in (v1, v2)
    for name in (
        *("ColorJitter", "Grayscale", "RandomGrayscale", "RGB", "RandomPhotometricDistort", "RandomChannelPermutation"),
        *("RandomAdjustSharpness", "RandomAutocontrast", "RandomEqualize", "RandomInvert", "RandomPosterize"),
        *("RandomSolarize", "GaussianBlur", "GaussianNoise", "JPEG", "RandomErasing", "Normalize", "Identity"),
        *("ToImage", "ToDtype", "ConvertImageDtype", "ToTensor", "PILToTensor", "ToPILImage", "ToPureTensor"),
    )
    if hasattr(library, name)  # of a newer torchvision
}
# What an augmentation of v2 calls the operations that move pixels.
MOVING_OPERATIONS = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def run(step: Any, image: Any, trace: CropTrace) -> Any:
    """Run a pipeline, or a step of one, on an image, while the trace learns what it shows.

    Args:
        step: Anything that is called with an image.
        image: A :class:`TrackedImage`, or a tensor or an array that shows the latest view of the trace.
        trace: Of the sample being loaded.

    Returns:
        What the step makes of the image: the same pixels as without a trace.

    Raises:
        CropNotSeen: If it cannot be known what the result shows.
    """
    kind = type(step)
    way = _WAYS.get(kind)
    if way is None:
        way = _WAYS[kind] = _way_of(kind)
    declared = rule_of(step)
    if declared is not None:
        way = partial(_run_declared, declared)
    try:
        result = way(step, image, trace)
    except UntrackedTransformError as error:
        raise CropNotSeen(
            f"{short(step)} tilts or bends the image, which a label map cannot follow. Leave it out. {WAYS_OUT}"
        ) from error
    return result if result is trace.latest or way is _run_in_order else _followed_on(step, result, trace)


def _is_network(step: Any) -> bool:
    """Whether a sequence of modules holds no step of a pipeline: its layers pad and stride as they like."""
    return type(step) is nn.Sequential and not any(_stand_in(inner, None) for inner in step)


_Way = Callable[[Any, Any, CropTrace], Any]
_WAYS: dict[type, _Way] = {}


def _way_of(kind: type) -> _Way:
    """How the steps of a class, of a library or of the user's own, are run."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind in _IN_ORDER:
        return _run_in_order
    if kind in _CHOICES:
        return _run_choice
    if kind in (v1.Lambda, v2.Lambda):
        return _run_lambda
    if name in _BLENDS or kind in _COLOURS:
        return _run_colours
    if augments(kind):
        return _run_augmentation
    if name.startswith(_V2):
        return _run_one_by_one if kind in _ONE_BY_ONE else _run_jointly
    if name.startswith(_OPS):
        return _run_operations
    if name.startswith((_V1, _TIMM)):
        return _run_by_functionals
    if kind in (FunctionType, partial):
        return _run_function
    return _run_own_transform if issubclass(kind, v2.Transform) else run_own


def _run_in_order(step: Any, image: Any, trace: CropTrace) -> Any:
    if _is_network(step):
        return _followed_on(step, run_own(step, image, trace), trace)
    for inner in getattr(step, "transforms", step):
        image = run(inner, image, trace)
    return image


def _run_choice(step: Any, image: Any, trace: CropTrace) -> Any:
    return with_attributes(step, {"transforms": [_StandIn(inner, trace) for inner in step.transforms]})(image)


def augments(kind: type) -> bool:
    """Whether a class is RandAugment of v2, or its like, of which each operation that it draws can be followed."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name.startswith(_V2) and name not in _BLENDS and hasattr(kind, "_apply_image_or_video_transform")


def _followed_on(step: Any, result: Any, trace: CropTrace) -> Any:
    """Go on from the result of a step."""
    if knows_its_view(result, trace):
        trace.return_to(result.number)
        return result
    if trace.ambiguous:
        raise CropNotSeen(
            f"{short(step)} took several crops of one image, so it is unknown which of them the label should be for. "
            f"{WAYS_OUT}"
        )
    images = images_in(result)
    if len(images) > 1:
        raise CropNotSeen(
            f"{short(step)} makes {len(images)} images of one, so it is unknown which of them the label should be for. "
            f"{WAYS_OUT}"
        )
    if not images:
        return result
    trace.accept(images[0], step)
    return result


def _run_declared(rule: Callable[[Any, Any], Any], step: Any, image: Any, trace: CropTrace) -> Any:
    canvas = canvas_of(image, trace, step)
    result, view = rule(step, plain_of(image))
    size = size_of(result)
    if size is None or not isinstance(view, View):
        raise TypeError(
            f"The rule declared for {short(step)} returns an image and the ViewBox that it shows of the image given, "
            f"got {type(result).__name__} and {type(view).__name__}."
        )
    return adopt(result, image, canvas.with_view(canvas.view_box.compose(view), size), trace)


def _run_lambda(step: Any, image: Any, trace: CropTrace) -> Any:
    # v2's may be for some types alone, and lets others through.
    return run(step.lambd, image, trace) if isinstance(image, getattr(step, "types", object)) else image


def _run_by_functionals(step: Any, image: Any, trace: CropTrace) -> Any:
    result = call_followed(step, image)
    if result is trace.latest or not isinstance(result, (Tensor, np.ndarray)):
        return result
    # timm's ToTensor calls that of torchvision, or NumPy.
    return trace.note(result) if size_of(result) == trace.size else result


def _run_function(step: Any, image: Any, trace: CropTrace) -> Any:
    return followed_functional(step)(image) if is_functional(step) else run_own(step, image, trace)


def _run_colours(step: Any, image: Any, trace: CropTrace) -> Any:
    if image is trace.latest:
        return trace.note(step(image))
    return adopt(step(plain_of(image)), image, None, trace)


def _run_jointly(step: Any, image: Any, trace: CropTrace) -> Any:
    """A transform of v2 moves a label map with the image."""
    probe = probe_of(image, trace, step)
    result, moved = step(plain_of(image), probe)
    if isinstance(moved, (tuple, list)):
        return result  # FiveCrop and TenCrop
    return adopt(result, image, moved if isinstance(moved, type(probe)) else None, trace)


def _run_one_by_one(step: Any, image: Any, trace: CropTrace) -> Any:
    """A transform of v2 that draws, and then moves each input by itself: later, if asked for, also a label map."""
    return step(image) if isinstance(image, TrackedImage) else _telling(step)(image)


def _run_own_transform(step: Any, image: Any, trace: CropTrace) -> Any:
    """A transform of the user's own that is one of v2's: it works by the methods of a PIL image, or by kernels."""
    run_one = run_own if isinstance(image, PIL.Image.Image) else _run_jointly
    return run_one(step, image, trace)


def _telling(step: Any) -> Any:
    """A transform of v2 that tells the sample being loaded what it has drawn. It has the attributes of the step."""
    kind: Any = type(step)
    telling: Any = object.__new__(_telling_class(kind))
    object.__setattr__(telling, "__dict__", step.__dict__)
    return telling


@lru_cache(None)
def _telling_class(kind: Any) -> Any:
    name = "transform" if hasattr(kind, "transform") else "_transform"  # before torchvision 0.21
    theirs = getattr(kind, name)

    def transform(self: Any, image: Any, params: dict[str, Any]) -> Any:
        trace = current_trace()
        assert trace is not None
        number = number_of(image, trace, self)
        result = theirs(self, image, params)
        return trace.note(result, trace.see(number, move, self, params, crop=kind not in _WHOLE))

    def move(canvas: Canvas, step: Any, params: dict[str, Any]) -> Any:
        return theirs(step, canvas, params)

    def call_kernel(self: Any, functional: Any, given: Any, *args: Any, **kwargs: Any) -> Any:
        # A canvas in place of a label map, which takes four times as long to make.
        if isinstance(given, Canvas):
            return KERNELS[functional.__name__](given, *args, **kwargs)
        return kind._call_kernel(self, functional, given, *args, **kwargs)

    members = {name: transform, "_call_kernel": call_kernel, "__module__": kind.__module__}
    return type(kind.__name__, (kind,), members)


def _run_augmentation(step: Any, image: Any, trace: CropTrace) -> Any:
    """RandAugment and its kind, of v2: each operation that it draws is one of these."""
    theirs = step._apply_image_or_video_transform

    def ours(image: Any, operation: str, *args: Any, **how: Any) -> Any:
        if operation not in MOVING_OPERATIONS:
            return adopt(theirs(plain_of(image), operation, *args, **how), image, None, trace)
        moved = theirs(probe_of(image, trace, step), operation, *args, **how)
        return adopt(theirs(plain_of(image), operation, *args, **how), image, moved, trace)

    return with_attributes(step, {"_apply_image_or_video_transform": ours})(image)


def _run_operations(step: Any, image: Any, trace: CropTrace) -> Any:
    """RandAugment and its kind, of timm: the operations that move pixels are methods of a PIL image."""
    if hasattr(step, "aug_fn"):
        image = tracked(image, trace, step)
        result = step(image)
        moved = isinstance(result, TrackedImage)
        return result if moved else adopt(result, image, None, trace)
    return with_attributes(step, _stand_ins(vars(step), trace))(image)


def run_own(step: Any, image: Any, trace: CropTrace) -> Any:
    """Call a function or an object of the user's own, and follow the steps of torchvision's and timm's that it holds.

    These are the steps in a function's closure and under the global names that it uses, and among an object's
    attributes.

    Args:
        step: Of the user's own.
        image: What it is called with.
        trace: Of the sample being loaded.
    """
    image = tracked(image, trace, step)
    if isinstance(step, FunctionType):
        return _with_steps(step, trace)(image)
    if isinstance(step, partial) and isinstance(step.func, FunctionType):
        return _with_steps(step.func, trace)(*step.args, image, **step.keywords)
    held = _stand_ins(getattr(step, "__dict__", {}), trace)
    if not held:
        return step(image)
    copied = with_attributes(step, held)
    try:
        return copied(image)
    finally:
        # What the step keeps count of, it keeps count of.
        for name, value in vars(copied).items():
            if name not in held and vars(step).get(name) is not value:
                vars(step)[name] = value


def with_steps_followed(owner: Any) -> Any:
    """A shallow copy of an object whose steps of torchvision's and timm's tell the sample being loaded what they do."""
    held = _stand_ins(getattr(owner, "__dict__", {}), None)
    return with_attributes(owner, held) if held else owner


def _with_steps(function: FunctionType, trace: CropTrace) -> Callable[..., Any]:
    """A function that finds followed steps where its closure, or a global name that it uses, holds steps."""
    cells = function.__closure__ or ()
    held = [_stand_in(_content(cell), trace) for cell in cells]
    names = function.__code__.co_names
    found = {name: _stand_in(function.__globals__.get(name), trace) for name in names}
    found = {name: stand_in for name, stand_in in found.items() if stand_in is not None}
    if not found and all(stand_in is None for stand_in in held):
        return function
    closure = tuple(cell if new is None else CellType(new) for cell, new in zip(cells, held, strict=True))
    return rebound(function, {**function.__globals__, **found} if found else function.__globals__, closure)


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _stand_ins(held: dict[str, Any], trace: CropTrace | None) -> dict[str, Any]:
    """Followed steps for those among the attributes of an object; modules within a module are found, too."""
    everything = {**held.get("_modules", {}), **held}
    found = {name: _stand_in(value, trace) for name, value in everything.items()}
    return {name: stand_in for name, stand_in in found.items() if stand_in is not None}


def _stand_in(value: Any, trace: CropTrace | None) -> Any:
    """A followed step for a step, or a list in which steps (or lists of them) are followed; None for anything else."""
    if isinstance(value, (list, tuple)) and not hasattr(value, "_fields"):
        inner = [_stand_in(one, trace) for one in value]
        if all(stand_in is None for stand_in in inner):
            return None
        return type(value)(new or old for new, old in zip(inner, value, strict=True))
    kind = type(value)
    library = f"{kind.__module__}.".startswith((_V1, _TIMM)) or rule_of(value) is not None
    library = library or (kind is nn.Sequential and not _is_network(value))
    if not library or not callable(value) or isinstance(value, type):
        return None
    return _StandIn(value, trace)


def with_attributes(step: Any, changes: dict[str, Any]) -> Any:
    """A shallow copy of a step with other attributes, also where these are modules of a module."""
    copied = copy.copy(step)
    copied.__dict__ = {**step.__dict__, **changes}
    return copied


class _StandIn:
    """Called in place of a step.

    Args:
        step: Of torchvision's or timm's, or declared.
        trace: Of the sample being loaded; None for the one that is loaded when the step is called.
    """

    def __init__(self, step: Any, trace: CropTrace | None) -> None:
        self._step = step
        self._trace = trace

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        trace = self._trace or current_trace()
        if trace is None or len(args) != 1 or kwargs or not images_in(args[0]):
            return self._step(*args, **kwargs)
        return run(self._step, args[0], trace)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._step, name)
