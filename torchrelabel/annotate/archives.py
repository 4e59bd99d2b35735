"""Images that timm reads by index: out of tar files, or of Hugging Face's data sets."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch.utils.data import IterableDataset

from torchrelabel.annotate.images import ImagesFound
from torchrelabel.data.keys import class_indices, reader_key

__all__ = ["ImagesRead", "read_dataset"]


@dataclass(frozen=True)
class ImagesRead(ImagesFound):
    """What a reader of timm's reads.

    Attributes:
        reader: Gives an open file and a class index by number.
        numbers: The number of each key.
    """

    reader: Any
    numbers: dict[str, int]

    def class_of(self, key: str) -> int | None:
        """Return the index of the folder that an image lies in; None if that is no class folder."""
        folder = os.path.basename(os.path.dirname(key))
        return self.class_to_idx.get(folder) if self.class_to_idx else None

    def open(self, key: str) -> IO[bytes]:
        """Open an image."""
        file: IO[bytes] = self.reader[self.numbers[key]][0]
        return file


def read_dataset(name: str, root: str | os.PathLike[str] | None = None, split: str = "train") -> ImagesRead:
    """Find the images of a data set by the name under which timm knows it.

    The keys are those that :class:`~torchrelabel.LabelMapDataset` looks up when it wraps the same data set: names in
    the archive. Where these are whole paths on this machine, their common folders are left out.

    Args:
        name: ``"hfds/..."``; empty for a tar file, or a folder of them.
        root: The tar file, or the folder where data sets are kept.
        split: Which part of the data set.

    Raises:
        TypeError: If its images have no names, or can only be read one after the other.
        ValueError: If two images have one name.
    """
    from timm.data.dataset_factory import create_dataset

    dataset = create_dataset(name, root=None if root is None else os.fspath(root), split=split)
    reader = getattr(dataset, "reader", None)
    if isinstance(dataset, IterableDataset) or not hasattr(reader, "filename"):
        raise TypeError(
            f"timm reads {name!r} one image after the other and does not tell their names, so that label maps would "
            f"have no keys. Use a folder, a tar file or hfds/."
        )
    numbers: dict[str, int] = {}
    for number, key in enumerate(_below_one_folder([reader_key(reader, number) for number in range(len(dataset))])):
        if key in numbers:
            raise ValueError(
                f"Images {numbers[key]} and {number} of {name!r} are both called {key!r}, and a label map is found by "
                f"that name. Give the images names of their own."
            )
        numbers[key] = number
    return ImagesRead(Path(root or name), sorted(numbers), class_indices(dataset), [], reader, numbers)


def _below_one_folder(names: list[str]) -> list[str]:
    """Names without the folders that all of them begin with, if these are folders of this machine."""
    common = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    if not common or not os.path.isdir(os.path.join(os.sep, common)):
        return names
    return [name[len(common) + 1 :] for name in names]
