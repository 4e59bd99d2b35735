"""Whether an image shows the same as another, with other colours at most."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils._pytree import tree_flatten

__all__ = ["alike", "flipped", "same_pixels", "size_of", "sizes_of"]


def size_of(image: Any) -> tuple[int, int] | None:
    """The size (H, W) of an image, or of the first one in a structure; None if there is none."""
    sizes = sizes_of(image)
    if sizes:
        return sizes[0]
    return next((sizes[0] for leaf in tree_flatten(image)[0] if (sizes := sizes_of(leaf))), None)


def sizes_of(image: Any) -> list[tuple[int, int]]:
    """The sizes (H, W) that an image may have: it has its channels first or last."""
    if isinstance(image, PIL.Image.Image):
        return [(image.height, image.width)]
    shape = tuple(image.shape) if isinstance(image, (Tensor, np.ndarray)) else ()
    if len(shape) < 2:
        return []
    if len(shape) == 2 or (isinstance(image, Tensor) and shape[-1] > 4):
        return [shape[-2:]]
    first, last = shape[-2:], shape[-3:-1]
    return [first, last] if isinstance(image, Tensor) or shape[-1] > 4 else [last, first]


def same_pixels(image: Any, other: Any) -> bool:
    """Whether two images are one object, or tensors that share their memory."""
    if not isinstance(image, Tensor) or not isinstance(other, Tensor):
        return image is other
    return image.shape == other.shape and image.data_ptr() == other.data_ptr()


def flipped(reference: Any, image: Any) -> bool:
    """Whether an image looks more like a mirror image of the reference than like the reference itself.

    Colours may differ in any way. Only where a flip and a change of colours have the same result, as for an image that
    is half black and half white, it is held to be a flip.
    """
    before, after = _thumbnail(reference), _thumbnail(image)
    mirrored = [before[:, :, ::-1], before[:, ::-1], before[:, ::-1, ::-1]]
    likeness, signed = _likeness(np.stack([before, *mirrored]), after)
    likeness += 0.03 * (signed > 0)
    return bool(likeness[1:].max() > likeness[0] + 0.02)


def alike(reference: Any, image: Any) -> bool:
    """Whether an image may be the reference with other colours; one without any structure always may be."""
    before, after = _thumbnail(reference), _thumbnail(image)
    return not before.any() or not after.any() or bool(_likeness(before[None], after)[0] > 0.5)


def _likeness(candidates: Any, image: Any) -> tuple[Any, Any]:
    """How well thumbnails ``[N, 3, 16, 16]`` correlate with another: 0 to 1 whichever channels are compared, and sign.

    The candidates are mirror images of each other.
    """
    first, second = candidates.reshape(len(candidates), 3, -1), image.reshape(3, -1)
    products = first @ second.T
    norm = np.linalg.norm(first[0] @ first[0].T) * np.linalg.norm(second @ second.T)
    likeness = np.sqrt(np.square(products).sum((1, 2)) / norm) if norm > 0 else np.zeros(len(first))
    return likeness, np.trace(products, axis1=1, axis2=2)


def _thumbnail(image: Any) -> Any:
    """Three channels of 16 x 16, each centred on zero. A TrackedImage takes no note of it."""
    if isinstance(image, PIL.Image.Image):
        image = image if image.mode in ("RGB", "L") else image.convert("RGB")
        # PIL reduces fast, and to a plain image. A tenth of the pixels is enough, here as below.
        image = np.asarray(image.reduce((max(image.width // 64, 1), max(image.height // 64, 1))))
    if isinstance(image, np.ndarray):
        channels_last = image.ndim == 3 and image.shape[-1] <= 4
        image = torch.from_numpy((image.transpose(2, 0, 1) if channels_last else image).copy())
    pixels = image.as_subclass(Tensor).detach()
    pixels = pixels.reshape(-1, *pixels.shape[-2:])
    pixels = pixels[: 3 if len(pixels) > 2 else 1]  # without the transparency of a grey image
    down, across = (max(side // 64, 1) for side in pixels.shape[-2:])
    pixels = pixels[:, down // 2 :: down, across // 2 :: across].float()
    pixels = adaptive_avg_pool2d(pixels, 16).expand(3, 16, 16).numpy()
    return pixels - pixels.mean((1, 2), keepdims=True)
