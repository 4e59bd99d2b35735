"""follow: run a pipeline on an image, and find out what its output shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import PIL.Image
from torch import Tensor
from torch.utils._pytree import tree_map

from torchrelabel.following.functionals import plain_of
from torchrelabel.following.sizes import size_of
from torchrelabel.following.steps import run
from torchrelabel.following.trace import WAYS_OUT, CropTrace
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.view import View

__all__ = ["Followed", "begin", "follow", "plain"]


class Followed(NamedTuple):
    """The output of a pipeline, and what it shows.

    Attributes:
        output: What the pipeline gives, without anything of ours in it.
        view: What its image shows of the original.
        canvas_size: The size (H, W) of its image in pixels.
    """

    output: Any
    view: View
    canvas_size: tuple[int, int]


def follow(pipeline: Callable[[Any], Any], image: Any, *, ways_out: str = WAYS_OUT) -> Followed:
    """Run a pipeline on an image, and find out which part of the image its output shows.

    The pixels and the random draws are those of ``pipeline(image)``. The rules are in docs/following.md: torchvision's
    and timm's steps are followed exactly, as are the methods of PIL images; a function of the user's own that changes
    no size is trusted; all else is refused. No decision depends on the values of pixels.

    Args:
        pipeline: Of v1, v2, timm, or any function of an image.
        image: A PIL image, or a tensor ``[..., H, W]``.
        ways_out: What the user may do instead, for the messages.

    Raises:
        CropNotSeen: If it cannot be known what the output shows.

    Example:
        >>> output, view, canvas_size = follow(v1.RandomResizedCrop(224), image)
    """
    with CropTrace() as trace:
        given = begin(image, trace)
        output = run(pipeline, given, trace)
        trace.finish(output, pipeline, ways_out)
        return Followed(plain(output), trace.view, trace.size or size_of(output) or (1, 1))


def begin(image: Any, trace: CropTrace) -> Any:
    """Follow an image from here on; a PIL image that is followed already still shows what it showed."""
    if isinstance(image, TrackedImage) and image.knows_its_view:
        size = (image.height, image.width)
        if image.trace is trace:
            trace.return_to(image.view, size, image.number)
            return image
        # Of another sample: a dataset keeps its images, and some of them were cropped when they were read.
        number = trace.see(image.view, size, trace.number, crop=True)
        return TrackedImage.made(image.plain(), image.view, trace, number)
    if isinstance(image, PIL.Image.Image):
        return TrackedImage.of(image, trace)
    trace.size = size_of(image)
    return trace.note(image)


def plain(output: Any) -> Any:
    """What a pipeline gives, without anything of ours in it."""
    if isinstance(output, (Tensor, PIL.Image.Image)):
        return plain_of(output)
    return tree_map(plain_of, output)
