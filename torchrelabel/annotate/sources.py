"""Where images come from: a folder, a tar file, or a data set that timm reads by name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torchrelabel.annotate.images import ImagesFound, find_images

__all__ = ["check_split", "find_data", "open_data"]

TRAIN = "train"
# What a name begins with, before its slash. timm takes any other for a folder, also one that was mistyped.
_KINDS = ("", "folder", "wds", "hfds", "hfids", "tfds", "torch")


def check_split(dataset: str | None, split: str) -> None:
    """Refuse a part of a data set where none is named, and a name that timm does not know.

    Raises:
        ValueError: If ``split``, or ``dataset``, would have no effect.
    """
    if dataset is not None and dataset.partition("/")[0].lower() not in _KINDS:
        raise ValueError(f"timm reads no data set {dataset!r}. Give folder, wds/NAME or hfds/NAME, or none.")
    if dataset is None and split != TRAIN:
        raise ValueError(
            f"split={split!r} is a part of a data set that timm reads by name, and there is no dataset=. Name one, or "
            f"give the folder of the part itself."
        )


def find_data(
    data: str | os.PathLike[str],
    dataset: str | None = None,
    split: str = TRAIN,
    *,
    skip: Iterable[str | os.PathLike[str]] = (),
) -> ImagesFound:
    """Find the images of a folder, of a tar file or of a data set that timm reads by name.

    Args:
        data: A folder, or a tar file; or where ``dataset`` is kept.
        dataset: The name of a data set, ``"wds/..."``, ``"hfds/..."``, ``"folder"``.
        split: Which part of it.
        skip: Folders in ``data`` to leave out, such as the store.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If ``data`` is a file, and no tar file.
        ValueError: If ``data`` is a URL, images have no names, two have one name, or timm cannot make anything of the
            arguments.
    """
    if "://" in os.fspath(data):
        raise ValueError(f"{os.fspath(data)!r} is a URL. annotate --engine ray reads it; or copy the images here.")
    if _is_folder(data, dataset):
        return find_images(data, skip=skip)
    from torchrelabel.annotate.archives import read_dataset  # imports timm, which takes seconds

    # Hugging Face keeps its data sets in a folder that it chooses, unless told otherwise.
    elsewhere = os.fspath(data) == "." and (dataset or "").lower().startswith("hfds/")
    try:
        return read_dataset(dataset or "", None if elsewhere else data, split)
    except TypeError as error:  # the data set does not tell the names of its images
        raise ValueError(str(error)) from error


def open_data(data: str | os.PathLike[str], dataset: str | None = None, split: str = TRAIN) -> ImagesFound:
    """What opens the images of ``data`` by their keys: as `find_data`, but a folder is not listed for that.

    Raises:
        ValueError: As `find_data`.
    """
    return ImagesFound(Path(data), [], None, []) if _is_folder(data, dataset) else find_data(data, dataset, split)


def _is_folder(data: str | os.PathLike[str], dataset: str | None) -> bool:
    return dataset is None and not (os.fspath(data).endswith(".tar") and os.path.isfile(data))
