"""Images that timm reads out of tar files, WebDataset shards, or Hugging Face's data sets."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from torch.utils.data import IterableDataset

from torchrelabel.annotate.images import ImagesFound
from torchrelabel.data.keys import class_indices, image_field, reader_key, shard_key
from torchrelabel.folders import printable

__all__ = ["ImagesInShards", "ImagesRead", "read_dataset"]


@dataclass(frozen=True)
class ImagesRead(ImagesFound):
    """What a reader of timm's reads.

    Attributes:
        reader: Gives an open file and a class index by number.
        numbers: The number of each key.
    """

    reader: Any
    numbers: dict[str, int]

    def folder_of(self, key: str) -> str:
        """Return the name of the folder that an image lies in, which timm's readers take for its class."""
        return os.path.basename(os.path.dirname(key))

    def open(self, key: str) -> IO[bytes]:
        """Open an image.

        Raises:
            FileNotFoundError: If it is not in the data set.
        """
        if key not in self.numbers:
            raise FileNotFoundError(f"{printable(key)} is not in {self.root}.")
        file: IO[bytes] = self.reader[self.numbers[key]][0]
        return file


@dataclass(frozen=True)
class ImagesInShards(ImagesFound):
    """The images of WebDataset shards.

    Attributes:
        places: Where each image lies: a shard, and the first and the number of its bytes there.
    """

    places: dict[str, tuple[str, int, int]]

    def open(self, key: str) -> IO[bytes]:
        """Open an image.

        Raises:
            FileNotFoundError: If it is in none of the shards.
        """
        if key not in self.places:
            raise FileNotFoundError(f"{printable(key)} is not in {self.root}.")
        shard, start, size = self.places[key]
        with open(shard, "rb") as file:
            file.seek(start)
            return io.BytesIO(file.read(size))


def read_dataset(name: str, root: str | os.PathLike[str] | None = None, split: str = "train") -> ImagesFound:
    """Find the images of a data set by the name under which timm knows it.

    The keys are those that :class:`~torchrelabel.LabelMapDataset` (for shards,
    :class:`~torchrelabel.integrations.timm.LabelMapStream`) looks up when it wraps the same data set: names in the
    archive. Where these are whole paths on this machine, their common folders are left out.

    Args:
        name: ``"hfds/..."``, ``"wds/..."``; empty for a tar file, or a folder of them.
        root: The tar file, or the folder where data sets are kept.
        split: Which part of the data set.

    Raises:
        TypeError: If its images have no names, or can only be read in sequence.
        ValueError: If two images have one name, or timm cannot make anything of the arguments.
        OSError: If a shard cannot be read.
    """
    from timm.data.dataset_factory import create_dataset
    from timm.data.readers import img_extensions
    from timm.data.readers.reader_wds import ReaderWds

    if name.lower().startswith("wds/") and ".tar" in split and "|" not in split:
        split += "|1"  # older timm must be told how many images there are; nothing comes of it here
    try:
        dataset = create_dataset(name, root=None if root is None else os.fspath(root), split=split)
    except (RuntimeError, AssertionError) as error:  # what timm's readers raise for wrong arguments
        where = "" if root is None else f" in {os.fspath(root)!r}"
        shards = " Shards are given as --split 'train-{000..146}.tar'." if name.lower().startswith("wds/") else ""
        raise ValueError(f"timm cannot read {name!r}, split {split!r}{where}: {error}.{shards}") from error
    reader = getattr(dataset, "reader", None)
    if isinstance(reader, ReaderWds):
        return _read_shards(reader, Path(root or name))
    if isinstance(dataset, IterableDataset) or not hasattr(reader, "filename"):
        raise TypeError(
            f"timm reads {name!r} in sequence and does not tell the names of its images, so that label maps would "
            f"have no keys. Use a folder, a tar file, wds/ or hfds/."
        )
    numbers: dict[str, int] = {}
    names = [_without_dot(reader_key(reader, number)) for number in range(len(dataset))]
    for number, key in enumerate(_below_one_folder(names)):
        if key in numbers:
            raise ValueError(
                f"Images {numbers[key]} and {number} of {name!r} are both called {key!r}, and a label map is found by "
                f"that name. Give the images names of their own."
            )
        numbers[key] = number
    left_out: Counter[str] = Counter()
    if not name and root is not None and os.path.isfile(root):
        left_out = _left_out(root, set(names))
    return ImagesRead(
        Path(root or name),
        sorted(numbers),
        class_indices(dataset),
        [],
        reader,
        numbers,
        left_out=left_out,
        why_left_out=f"timm takes nothing but {', '.join(sorted(img_extensions.IMG_EXTENSIONS))} out of tar files",
    )


def _left_out(archive: str | os.PathLike[str], images: set[str]) -> Counter[str]:
    """How many files of a tar file are none of its images, by their extensions; tar files in it are looked into."""
    with tarfile.open(archive) as tar:
        others = [member.name for member in tar if member.isfile() and _without_dot(member.name) not in images]
    extensions = Counter(os.path.splitext(name)[1].lower() for name in others)
    del extensions[".tar"]
    return extensions


def _read_shards(reader: Any, root: Path) -> ImagesInShards:
    """Find the images of WebDataset shards as timm's reader of them names and chooses them."""
    places: dict[str, tuple[str, int, int]] = {}
    image_fields = reader.input_key.split(";")
    for name in reader.split_info.filenames:
        shard = os.path.join(reader.root, name)
        for stem, files in _samples(shard):
            if not files.keys() & set(image_fields):
                continue
            field = image_field(files, reader.input_key)
            key = shard_key(stem, field)
            if key in places:
                raise ValueError(
                    f"Images in {places[key][0]} and {shard} are both called {key!r}, and a label map is found by that "
                    f"name. Give the images names of their own."
                )
            places[key] = (shard, *files[field])
    return ImagesInShards(root, sorted(places), class_indices(reader), [], places)


def _samples(shard: str) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
    """The samples of a shard: files that follow each other and share a name up to its first dot.

    Yields:
        What they share; and for what follows the dot in each, in lower case, the first and the number of its bytes.
    """
    stem, files = "", dict[str, tuple[int, int]]()
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                folder, slash, name = member.name.rpartition("/")
                start, dot, field = name.partition(".")
                if not member.isfile() or not start or not dot:
                    continue
                if folder + slash + start != stem:
                    yield stem, files
                    stem, files = folder + slash + start, {}
                # Of two files of one name, WebDataset keeps the first.
                files.setdefault(field.lower(), (member.offset_data, member.size))
    except tarfile.TarError as error:
        raise OSError(
            f"{shard} cannot be read as a tar file without compression: {error}. Unpack it, or copy it again."
        ) from error
    yield stem, files


def _without_dot(name: str) -> str:
    """A name as the folder would give it, of an archive that ``tar -C folder .`` has packed."""
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name


def _below_one_folder(names: list[str]) -> list[str]:
    """Names without the folders that all of them begin with, if these are folders of this machine."""
    common = os.path.commonpath([os.path.dirname(name) for name in names]) if names else ""
    if not common or not os.path.isdir(os.path.join(os.sep, common)):
        return names
    return [name[len(common) + 1 :] for name in names]
