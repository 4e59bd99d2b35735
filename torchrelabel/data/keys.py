"""How the images of a dataset are named in a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import ConcatDataset, Subset

__all__ = ["Key", "key_of", "relative_key"]

Key = Callable[[int], str] | Sequence[str]

# Where torchvision's datasets keep the paths of their images: ImageFolder and its children, Imagenette, Food101 with
# Flowers102, DTD and FGVCAircraft, OxfordIIITPet.
_PATH_ATTRIBUTES = ("samples", "_samples", "_image_files", "_images")


def relative_key(path: str | os.PathLike[str], root: str | os.PathLike[str]) -> str:
    """The key of an image: its path relative to the root of its dataset, with ``/`` between folders.

    Args:
        path: The image's path.
        root: The folder that was annotated.

    Raises:
        ValueError: If the image does not lie below the root.
    """
    path, root = os.fspath(path), os.path.join(root, "")
    inside = path[len(root) :].replace(os.sep, "/")
    if path.startswith(root) and not {"", ".", ".."} & set(inside.split("/")):
        return inside  # as ImageFolder writes it, and ten times as fast
    absolute, root = os.path.abspath(path), os.path.abspath(root)
    if os.path.commonpath([absolute, root]) != root or absolute == root:
        raise ValueError(f"{os.fspath(path)!r} does not lie below {root!r}, so it has no key there.")
    return os.path.relpath(absolute, root).replace(os.sep, "/")


def key_of(dataset: Any, index: int, key: Key | None = None) -> str:
    """The name under which a store keeps the map of an image of a dataset.

    Args:
        dataset: A dataset that knows the paths of its images, or a ``Subset`` or ``ConcatDataset`` of such.
        index: Which image.
        key: A function from index to key, or one key for each index, where the dataset cannot tell.

    Raises:
        TypeError: If neither the dataset nor ``key`` tells.
    """
    if key is not None:
        return key(index) if callable(key) else key[index]
    if isinstance(dataset, Subset):
        return key_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part, inner = _part_of(dataset, index)
        return key_of(dataset.datasets[part], inner)
    # torchvision's ImageNet: its root holds the split folders, and a split is what is annotated and trained on.
    root = getattr(dataset, "split_folder", getattr(dataset, "root", None))
    for attribute in _PATH_ATTRIBUTES:
        items = getattr(dataset, attribute, None)
        if isinstance(items, (list, tuple)) and items and root is not None:
            item = items[index]
            path = item[0] if isinstance(item, (list, tuple)) else item
            if isinstance(path, (str, os.PathLike)):
                return relative_key(path, root)
    if hasattr(getattr(dataset, "reader", None), "key"):
        return str(dataset.reader.key(index))
    raise TypeError(
        f"{type(dataset).__name__} does not say which file an image comes from. Give LabelMapDataset(..., key=): "
        f"a function from index to the key in the store (the image's path relative to the annotated folder), or one "
        f"key for each index."
    )


def _part_of(dataset: ConcatDataset[Any], index: int) -> tuple[int, int]:
    if index < 0:
        index += len(dataset)
    start = 0
    for part, stop in enumerate(dataset.cumulative_sizes):
        if index < stop:
            return part, index - start
        start = stop
    raise IndexError(index)
