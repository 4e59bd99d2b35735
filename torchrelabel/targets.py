"""Soft labels in code that was written for class indices."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchrelabel.label_map import LabelMap, LabelMapBatch

__all__ = ["hard", "mix_soft"]


def hard(target: Tensor) -> Tensor:
    """The class index of each label: for accuracy, and whatever else counts hits.

    Args:
        target: Soft labels ``[C]``, ``[B, C]`` or ``[B, N, C]``, floating; or class indices, integers of any shape.

    Returns:
        The class of the largest share, ``[]``, ``[B]`` or ``[B, N]``, int64; class indices are returned as they are.

    Raises:
        TypeError: If it is neither, or a label map that is not pooled yet.

    Example:
        >>> correct = (output.argmax(1) == hard(target)).float().mean()
    """
    if isinstance(target, (LabelMap, LabelMapBatch)):
        raise TypeError(f"hard takes labels, got a {type(target).__name__}. Pool it first: LabelPooling()(label_maps).")
    if not isinstance(target, Tensor):
        raise TypeError(f"hard takes a tensor of soft labels or class indices, got {type(target).__name__}.")
    if target.is_complex() or target.dtype == torch.bool:
        raise TypeError(f"hard takes soft labels (floating) or class indices (integers), got {target.dtype}.")
    if not target.is_floating_point():
        return target
    if not 1 <= target.ndim <= 3 or target.shape[-1] < 2:
        raise TypeError(
            f"hard takes soft labels [C], [B, C] or [B, N, C] with C of 2 or more, got a floating tensor of shape "
            f"{list(target.shape)}. Labels of token grids, [B, C, gh, gw], have their classes elsewhere: "
            f"target.flatten(2).mT."
        )
    return target.argmax(-1)


def mix_soft(mixer: Callable[..., Any], num_classes: int | None = None) -> Callable[[Tensor, Tensor], Any]:
    """Let a batch mixer that was written for class indices mix soft labels, exactly.

    The mixer is run on the numbers of the samples, as if each were a class of its own. The labels that it returns say
    how much of which sample is in which image, and the soft labels are combined by that. So any mixer will do that
    mixes labels linearly: the ``RandomMixUp`` and ``RandomCutMix`` of torchvision's references, ``v2.MixUp`` and
    ``v2.CutMix``, a ``v2.RandomChoice`` of them. Pixels and random draws are its own.

    Args:
        mixer: Takes ``(images, labels)`` and returns both mixed. While it mixes soft labels, its attribute
            ``num_classes``, and that of each transform within it, is larger than the batch, and restored afterwards.
        num_classes: C, for a mixer whose number of classes is no such attribute (a function, say): its batches may
            then have no more than C samples.

    Returns:
        A function of ``(images, labels)``, which can be pickled if the mixer can. Soft labels ``[B, C]`` come back
        mixed. Class indices ``[B]`` go to the mixer itself, with all that it does to them.

    Raises:
        TypeError: When called with label maps, or when the mixer cannot be told of the samples.
        ValueError: When called with a batch of more samples than the mixer can tell apart, or if it smooths labels.

    Example:
        >>> mixer = mix_soft(v2.RandomChoice([v2.MixUp(num_classes=1000), v2.CutMix(num_classes=1000)]))
        >>> loader = DataLoader(dataset, collate_fn=lambda batch: mixer(*default_collate(batch)))
    """
    return partial(_mixed, mixer, num_classes)


# Loader threads may share a mixer, which knows of another number of classes while it mixes soft labels.
_LOCK = threading.Lock()


def _mixed(mixer: Callable[..., Any], num_classes: int | None, images: Tensor, labels: Tensor) -> Any:
    if isinstance(labels, (LabelMap, LabelMapBatch)):
        raise TypeError(
            f"This mixer mixes labels, got a {type(labels).__name__}. Pool it first (LabelPooling), or mix with "
            f"CutMixWithLabelMap or MixUpWithLabelMap."
        )
    if not isinstance(labels, Tensor):
        raise TypeError(f"Labels are a tensor, soft labels [B, C] or class indices [B], got {type(labels).__name__}.")
    if not labels.is_floating_point():
        with _LOCK:
            return mixer(images, labels)
    if labels.ndim != 2:
        raise TypeError(f"Soft labels are [B, C], got a tensor of shape {list(labels.shape)}.")
    count = len(labels)
    with _LOCK, _told_of_samples(mixer, count, num_classes) as classes:
        result = mixer(images, torch.arange(count, device=labels.device))
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        got = f"{len(result)} values" if isinstance(result, (tuple, list)) else type(result).__name__
        raise TypeError(f"mix_soft wraps a mixer that returns (images, labels), and this one returned {got}.")
    images, mixing = result
    if mixing.ndim == 1:  # it left this batch alone, or exchanged whole samples
        return images, labels[mixing]
    if mixing.shape[1] != classes:
        raise TypeError(
            f"The mixer made labels of {mixing.shape[1]} classes where {classes} were expected. Give "
            f"mix_soft(mixer, num_classes=), the number that it was made with."
        )
    if mixing[:, count:].any():
        raise ValueError(
            "The mixer gives classes to samples that none of the batch has: it smooths labels. Make it without, and "
            "smooth in the loss (CrossEntropyLoss(label_smoothing=))."
        )
    with torch.autocast(labels.device.type, enabled=False):  # it would round them to half precision
        return images, mixing[:, :count].to(labels.dtype) @ labels


@contextmanager
def _told_of_samples(mixer: Callable[..., Any], count: int, num_classes: int | None) -> Iterator[int]:
    """Let a mixer tell ``count`` samples apart meanwhile; gives the number of classes that it makes labels for.

    Not a copy of the mixer: what it counts, or draws from a generator of its own, has to go on.
    """
    if num_classes is not None:
        if count > num_classes:
            raise ValueError(
                f"This mixer has {num_classes} classes and cannot tell {count} samples apart. Use batches of at most "
                f"{num_classes}, or a mixer with an attribute num_classes."
            )
        yield num_classes
        return
    parts = {id(part): part for part in _parts(mixer) if hasattr(part, "num_classes")}.values()
    if not parts:
        raise TypeError(
            f"{mixer!r} has no attribute num_classes, so it cannot be told of {count} samples. Give "
            f"mix_soft(mixer, num_classes=), the number of classes that it was made with."
        )
    classes = count + 1  # one more than there are samples: nothing but label smoothing gives it a share
    before = [(part, part.num_classes) for part in parts]
    try:
        for part in parts:
            part.num_classes = classes
        yield classes
    finally:
        for part, number in before:
            part.num_classes = number


def _parts(mixer: Any) -> Iterator[Any]:
    """A mixer, and those that it is made of."""
    yield mixer
    inner = getattr(mixer, "transforms", ())
    children = mixer.children() if isinstance(mixer, torch.nn.Module) else ()
    for part in (*(inner if isinstance(inner, (list, tuple)) else ()), *children):
        yield from _parts(part)
