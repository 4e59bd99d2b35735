"""What a pipeline calls one after the other, and what the names of these steps say."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple, cast

from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

__all__ = ["CROP", "FLIP", "MOVE", "Steps", "kind_of", "short", "steps_of"]

# What torchvision, timm and their users call the steps that take a part of an image or add to it, that mirror it, and
# that move what is in it otherwise.
_CROPS = re.compile("Crop|Pad|ZoomOut")
_FLIPS = re.compile("Flip|Mirror")
_MOVES = re.compile("Rotat|Affine|Perspective|Elastic|Shear|Translat|Augment|AugMix")
_CROPPING_FUNCTIONS = re.compile("crop|pad($|_)|zoom_out")

CROP, FLIP, MOVE = "crop", "flip", "move"

_COMPOSE = (v1.Compose, v2.Compose)
_LISTS = (nn.Sequential, nn.ModuleList)

# Modules of the steps whose names tell all that they do; of these, Lambda and what holds other steps do not.
_LIBRARIES = ("torchvision.transforms.", "timm.data.", "torchrelabel.transforms.")


class Steps(NamedTuple):
    """What a pipeline calls one after the other.

    Attributes:
        calls: Each with what its name says that it does to an image: "crop" (or pad), "flip", "move", or None.
        known: Whether their names tell all that they do, since each is a plain step of torchvision's or timm's.
    """

    calls: Sequence[tuple[Callable[[Any], Any], str | None]]
    known: bool


def short(pipeline: Any) -> str:
    """A pipeline or a step of it, in a line of a message."""
    text = " ".join(repr(pipeline).split())
    return text if len(text) <= 300 else text[:297] + "..."


def steps_of(pipeline: Any) -> Steps:
    """The steps of a pipeline. A subclass of Compose may do more than call its transforms, and is one step."""
    calls = list(_calls(pipeline))
    return Steps([(step, _kind(step)) for step in calls], all(map(_is_known, calls)))


def _calls(pipeline: Any) -> Iterator[Any]:
    if type(pipeline) not in _COMPOSE:
        yield pipeline
        return
    for step in pipeline.transforms:
        yield from _calls(step)


def _is_known(step: Any) -> bool:
    library = type(step).__module__.startswith(_LIBRARIES) or type(step) in _LISTS
    # A choice of colours is as good as one of them; which of several crops was taken, its name does not tell.
    return library and not hasattr(step, "lambd") and all(_is_known(one) and _kind(one) is None for one in _inner(step))


def _kind(step: Any) -> str | None:
    """What the name of a step, or of one within it, says that it does."""
    return CROP if _is_crop(step) else kind_of(step.__class__)


def _is_crop(step: Any) -> bool:
    """Whether a step, or one within it, is named as one that crops or pads."""
    if isinstance(step, partial):
        return _is_crop(step.func)
    if kind_of(step.__class__) == CROP or _CROPPING_FUNCTIONS.search(getattr(step, "__name__", "")):
        return True
    if hasattr(step, "lambd"):
        return _is_crop(step.lambd)
    return any(map(_is_crop, _inner(step)))


def _inner(step: Any) -> Iterator[Any]:
    """The steps that one holds, in its attribute ``transforms`` or as a list."""
    inner = getattr(step, "transforms", step)
    if isinstance(inner, _COMPOSE):
        inner = inner.transforms
    return iter(inner if isinstance(inner, (list, tuple, *_LISTS)) else ())


@cache
def kind_of(kind: Hashable) -> str | None:
    """What the name of a class says that it does."""
    names = [base.__name__ for base in cast(type, kind).__mro__]
    kinds = {CROP: _CROPS, FLIP: _FLIPS, MOVE: _MOVES}
    return next((what for what, pattern in kinds.items() if any(map(pattern.search, names))), None)
