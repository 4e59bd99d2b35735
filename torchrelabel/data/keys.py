"""How the images of a dataset are named in a store."""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.utils.data import ConcatDataset, Subset

__all__ = [
    "Key",
    "KeyPrefix",
    "check_distinct",
    "class_indices",
    "find_key_prefix",
    "image_field",
    "key_of",
    "reader_key",
    "relative_key",
    "root_below",
    "root_of",
    "shard_key",
]

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
    root = root_of(dataset)
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


def root_of(dataset: Any) -> str | os.PathLike[str] | None:
    """The folder that the keys of a dataset's images are relative to, where it knows one."""
    # torchvision's ImageNet: its root holds the split folders, and a split is what is annotated and trained on.
    root: str | os.PathLike[str] | None = getattr(dataset, "split_folder", getattr(dataset, "root", None))
    return root


def root_below(dataset: Any) -> str | os.PathLike[str] | None:
    """The same for a subset of a dataset, and for what a reader of timm's reads."""
    while isinstance(dataset, Subset):
        dataset = dataset.dataset
    return root_of(getattr(dataset, "reader", dataset))


def reader_key(reader: Any, index: int) -> str:
    """The key of an image that a reader of timm's reads: its path relative to the root, or its name in the archive.

    Args:
        reader: timm's, by index.
        index: Which image.

    Raises:
        TypeError: If the reader does not tell, as for images kept as bytes without a name.
    """
    name = reader.filename(index)
    if not name:
        raise TypeError(
            f"{type(reader).__name__} has no file name for image {index}, so that its label map would have no key. "
            f"Give the images names; or train with LabelMapDataset(..., key=), a function from index to key."
        )
    return str(name).replace(os.sep, "/").removeprefix("./").lstrip("/")


def image_field(fields: Container[str], image_fields: str) -> str:
    """Which file of a sample in a WebDataset shard is the image, as timm's reader chooses.

    Args:
        fields: What follows the first dot in the name of each file of the sample, in lower case.
        image_fields: Those that may be the image, the first one first: ``"jpg;png;webp"``.
    """
    return next(field for field in image_fields.split(";") if field in fields)


def shard_key(stem: str, field: str) -> str:
    """The key of an image in a WebDataset shard: its name there.

    Args:
        stem: What the files of its sample share, up to the first dot of their name.
        field: What follows that dot in the name of the image, see :func:`image_field`.
    """
    return f"{stem}.{field}".removeprefix("./").lstrip("/")


def class_indices(dataset: Any) -> dict[str, int] | None:
    """Class folders to class indices, where a dataset, or timm's reader in it, numbers them."""
    for owner in (dataset, getattr(dataset, "reader", None)):
        for name in ("class_to_idx", "class_name_to_idx"):
            indices = getattr(owner, name, None)
            if isinstance(indices, dict) and indices:
                return dict(indices)
    return None


def _part_of(dataset: ConcatDataset[Any], index: int) -> tuple[int, int]:
    if index < 0:
        index += len(dataset)
    start = 0
    for part, stop in enumerate(dataset.cumulative_sizes):
        if index < stop:
            return part, index - start
        start = stop
    raise IndexError(index)


@dataclass(frozen=True)
class KeyPrefix:
    """How the keys of a store differ from those of a dataset whose root is another folder.

    Attributes:
        added: What the store's keys have in front, such as ``"train/"``.
        dropped: How many leading folders of the dataset's keys the store's lack.
    """

    added: str = ""
    dropped: int = 0

    def __call__(self, key: str) -> str:
        """The key in the store."""
        return self.added + (key.split("/", self.dropped)[-1] if self.dropped else key)


def find_key_prefix(
    keys: Sequence[str], label_maps: Mapping[str, Any], root: str | os.PathLike[str] | None = None
) -> KeyPrefix | None:
    """Find out by which leading folders the keys of a dataset and of a store differ.

    Args:
        keys: A few keys of the dataset.
        label_maps: A store.
        root: The folder that the keys are relative to, if it is known. Its own name tells which folder of the store it
            is, where several hold images of these names.

    Returns:
        None where no prefix, added or dropped, makes all of them keys of the store.

    Raises:
        ValueError: If several do, and the root does not tell which.
    """
    nearest = getattr(label_maps, "nearest", None)
    if nearest is None or not keys:
        return None
    folders = keys[0].split("/")
    above = [] if root is None else os.path.abspath(root).replace(os.sep, "/").strip("/").split("/")
    own = [KeyPrefix("/".join(above[start:]) + "/") for start in range(len(above))]
    told = []
    for candidate in nearest(keys[0], 8):
        for dropped in range(len(folders)):
            end = "/".join(folders[dropped:])
            if candidate == end or (dropped == 0 and candidate.endswith("/" + end)):
                told.append(KeyPrefix(candidate[: -len(end)], dropped))
    for candidates in (own, dict.fromkeys(told)):
        fitting = [prefix for prefix in candidates if all(prefix(key) in label_maps for key in keys)]
        if len(fitting) > 1:
            raise ValueError(
                f"The keys of {label_maps!r} differ from those of the dataset by their first folders, and several "
                f"fit: {keys[0]!r} may be {' or '.join(repr(prefix(keys[0])) for prefix in fitting)}. Say which: "
                f"key_prefix={fitting[0].added!r}."
            )
        if fitting:
            return fitting[0]
    return None


def check_distinct(dataset: Any) -> None:
    """Refuse a concatenation of folders in which different images have one key: one of them would get the other's map.

    Raises:
        ValueError: If that is so, naming the images.
    """
    if not isinstance(dataset, ConcatDataset):
        return
    roots = {os.path.abspath(root) for root in map(root_below, dataset.datasets) if root is not None}
    if len(roots) < 2:
        return
    seen: dict[str, str] = {}
    for start, stop, part in zip(
        [0, *dataset.cumulative_sizes], dataset.cumulative_sizes, dataset.datasets, strict=False
    ):
        root = os.path.abspath(root_below(part) or "")
        for index in range(stop - start):
            key = key_of(part, index)
            if seen.setdefault(key, root) != root:
                raise ValueError(
                    f"{seen[key]} and {root} each have an image {key!r}, and the label maps go by that name. Wrap each "
                    f"part in a LabelMapDataset of its own, with its own store or key_prefix=, and concatenate those."
                )
