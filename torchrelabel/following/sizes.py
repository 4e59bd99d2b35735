"""How large images are, in whatever form a pipeline has them."""

from __future__ import annotations

from typing import Any

import numpy as np
import PIL.Image
from torch import Tensor
from torch.utils._pytree import tree_flatten

__all__ = ["images_in", "size_of", "sizes_of"]


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


def images_in(result: Any) -> list[Any]:
    """The images in what a pipeline gives: a structure of them, or one."""
    leaves = [result] if isinstance(result, Tensor) else tree_flatten(result)[0]
    return [leaf for leaf in leaves if sizes_of(leaf)]
