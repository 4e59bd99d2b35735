"""What users say of steps of their own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from torchrelabel.view import ViewBox

__all__ = ["Rule", "follows", "moves_no_pixels", "rule_of"]

T = TypeVar("T")

# From a step and an image to what the step makes of the image, and the box of the image that this shows.
Rule = Callable[[Any, Any], tuple[Any, ViewBox]]

_RULES: dict[Any, Rule] = {}


def follows(step: Any) -> Callable[[Rule], Rule]:
    """Declare how a step of your own moves the pixels of an image.

    Only needed for a step that crops, pads, flips or resizes arrays or tensors by itself: what it does through the
    methods of a PIL image, or through transforms of torchvision, is followed anyway. A step of a v2 pipeline that is
    called on ``(image, label_map)`` registers a kernel instead, as for any other tv_tensor:
    ``@torchvision.transforms.v2.functional.register_kernel(my_functional, LabelMap)``.

    Args:
        step: A class, all objects of which are meant, or a function.

    Returns:
        A decorator for the rule, a function that is called in place of the step, with the step and the image, and
        returns what the step makes of it, with the :class:`~torchrelabel.ViewBox` of the image given that it shows, in
        fractions of its width and height; ``ViewBox()`` where it is all of it.

    Raises:
        TypeError: If ``step`` is an object that is neither a class nor a function.

    Example:
        >>> @follows(NumpyCrop)
        ... def follow_numpy_crop(step, image):
        ...     height, width = image.shape[:2]
        ...     top, left = step.draw(height, width)
        ...     part = image[top : top + step.side, left : left + step.side]
        ...     x2, y2 = (left + step.side) / width, (top + step.side) / height
        ...     return part, ViewBox(left / width, top / height, x2, y2)
    """
    if not isinstance(step, type) and not hasattr(step, "__code__"):
        raise TypeError(f"follows() takes a class or a function, got {type(step).__name__}: declare its class.")

    def declare(rule: Rule) -> Rule:
        _RULES[step] = rule
        return rule

    return declare


def moves_no_pixels(step: T) -> T:
    """Declare, as a decorator, that a class of steps or a function changes colours at most.

    What comes out of it then shows what went in, whatever its size: it is no longer trusted by its size alone.

    Args:
        step: A class, or a function.

    Returns:
        The same.

    Raises:
        TypeError: If ``step`` is an object that is neither a class nor a function.

    Example:
        >>> @moves_no_pixels
        ... def sepia(image):
        ...     return ImageOps.colorize(ImageOps.grayscale(image), "black", "wheat").convert("RGB")
    """
    follows(step)(lambda own, image: (own(image), ViewBox()))
    return step


def rule_of(step: Any) -> Rule | None:
    """What was declared of a step, or of its class."""
    if not _RULES:
        return None
    for declared in (step, *type(step).__mro__):
        try:
            rule = _RULES.get(declared)
        except TypeError:  # not hashable
            continue
        if rule is not None:
            return rule
    return None
