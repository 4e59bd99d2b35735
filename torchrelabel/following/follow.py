"""follow: run a pipeline on an image, and find out what its output shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import PIL.Image
from torch import Tensor
from torch.utils._pytree import tree_map

from torchrelabel.following.functionals import known, plain_of, tracked
from torchrelabel.following.sizes import size_of
from torchrelabel.following.steps import run
from torchrelabel.following.trace import WAYS_OUT, Canvas, CropTrace
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.view import View

__all__ = ["Followed", "begin", "follow", "plain", "resume", "track"]


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
    """Follow an image that was just read through steps; one that is followed already shows what it showed."""
    if not isinstance(image, TrackedImage):
        trace.begin(size_of(image))
        return trace.note(image)
    plain = image.plain()
    if not image.knows_its_view:
        trace.accept(plain, "The dataset")
    elif image.trace is trace:
        trace.return_to(image.number)
    else:  # of another sample: a dataset keeps its images, and some of them were cropped when they were read
        trace.begin((image.height, image.width))
        trace.see(trace.number, known, Canvas(image.view, (image.height, image.width)), crop=True)
    return trace.note(plain)


def resume(image: Any, trace: CropTrace) -> Any:
    """Follow an image through steps that a dataset gives, which may have opened it within this trace.

    Raises:
        CropNotSeen: If it says nothing of its view, and has another size than the one last seen.
    """
    if isinstance(image, TrackedImage) or trace.size is None:
        return begin(image, trace)
    if trace.noted(image) is None:
        trace.check_size(image, "The dataset")
    return trace.note(image)


def track(image: Any, trace: CropTrace) -> Any:
    """The same for whatever a dataset or a function of the user's own does with the image."""
    return tracked(begin(image, trace), trace, "The dataset")


def plain(output: Any) -> Any:
    """What a pipeline gives, without anything of ours in it."""
    if isinstance(output, (Tensor, PIL.Image.Image)):
        return plain_of(output)
    return tree_map(plain_of, output)
