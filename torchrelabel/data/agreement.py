"""Whether a dataset, its label maps and the caller agree on the classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils.data import ConcatDataset, Subset

from torchrelabel.data.keys import class_indices
from torchrelabel.store.header import class_for_people

__all__ = ["agreed_num_classes", "check_size", "check_target", "class_of"]


def agreed_num_classes(
    dataset: Any, label_maps: Mapping[str, Any], num_classes: int | None, takes_indices: str | None
) -> int:
    """How many classes a label has, if dataset, label maps and caller agree.

    Args:
        dataset: The one wrapped.
        label_maps: A store, or a mapping of label maps.
        num_classes: What the caller said, None if nothing.
        takes_indices: The argument because of which class indices of the dataset become part of a label, if any.

    Raises:
        TypeError: If the mapping holds something else than label maps.
        ValueError: If they disagree, saying in what.
    """
    header = getattr(label_maps, "header", None)
    if header is None:
        header = next(iter(label_maps.values()), None)
    if header is None:
        raise ValueError("There are no label maps in the mapping given.")
    if not hasattr(header, "num_classes"):
        raise TypeError(
            f"A mapping of label maps holds LabelMap objects, or is a LabelStore; this one holds "
            f"{type(header).__name__}. Give the store itself."
        )
    stored = int(header.num_classes)
    if num_classes is not None and num_classes != stored:
        raise ValueError(
            f"num_classes={num_classes} was asked for, and the label maps have {stored} classes. The model to be "
            f"trained needs {stored} outputs, or the images need an annotator of {num_classes} classes."
        )
    leaf = _leaf(dataset)
    _check_class_numbers(getattr(header, "class_to_idx", None), class_indices(leaf), stored)
    classes = getattr(leaf, "classes", None)
    if num_classes is None and classes is not None and len(classes) != stored:
        raise ValueError(
            f"The label maps have {stored} classes and the dataset has {len(classes)}. If the model to be trained has "
            f"{stored} outputs, say so: LabelMapDataset(..., num_classes={stored}). Otherwise annotate the images with "
            f"a model of {len(classes)} classes."
        )
    own = len(classes) if classes is not None else len(class_indices(leaf) or ()) or stored
    if takes_indices and own != stored:
        raise ValueError(
            f"{takes_indices} takes the class index of the dataset, which has {own} classes, and the label maps have "
            f"{stored}: the same index would mean another class. Annotate the images with a model of {own} classes."
        )
    return stored


def _check_class_numbers(theirs: Mapping[str, int] | None, ours: Mapping[str, int] | None, stored: int) -> None:
    """Raise if a class folder that both know has two numbers, however many of them either has."""
    if not theirs or not ours or len(theirs) != stored:
        return  # folders are the annotator's classes only where there is one for each
    for name in sorted(theirs.keys() & ours.keys()):
        if theirs[name] != ours[name]:
            raise ValueError(
                f"Class folder {name!r} had index {theirs[name]} when the images were annotated and has "
                f"{ours[name]} in this dataset, so its labels would mean other classes. Use the folders "
                f"that were annotated ({_and_more(sorted(theirs))}; here are {_and_more(sorted(ours))}), or annotate "
                f"these. timm sorts numbers in names by value, torchvision by their digits: give timm a class map "
                f"(--class-map)."
            )


def _and_more(names: list[str]) -> str:
    shown = ", ".join(map(repr, names[:3]))
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def class_of(dataset: Any, index: int) -> int | None:
    """The class number of an image in the dataset's own list, None where it keeps none."""
    if isinstance(dataset, Subset):
        return class_of(dataset.dataset, dataset.indices[index])
    if isinstance(dataset, ConcatDataset):
        part = next(i for i, stop in enumerate(dataset.cumulative_sizes) if index < stop)
        return class_of(dataset.datasets[part], index - ([0, *dataset.cumulative_sizes][part]))
    targets = getattr(dataset, "targets", None)
    if getattr(dataset, "target_transform", None) is None or not isinstance(targets, (list, tuple)):
        return None
    return targets[index] if isinstance(targets[index], int) else None


def check_target(own: int | None, target: Any, num_classes: int, header: Any) -> None:
    """Raise if a ``target_transform`` gives an image another class number than the dataset's list.

    A soft label never passes through it, and keeps the numbers of the annotator's classes.
    """
    if own is None or isinstance(target, bool) or not isinstance(target, (int, torch.Tensor)):
        return
    made = torch.as_tensor(target)
    if made.is_floating_point() or made.numel() != 1 or not 0 <= int(made) < num_classes or int(made) == own:
        return
    names = getattr(header, "class_names", None)
    raise ValueError(
        f"The dataset's target_transform makes class {class_for_people(int(made), names)} of class "
        f"{class_for_people(own, names)}, and the soft labels keep the numbers of the annotator's classes. "
        f"Leave it out, or annotate with a model of that order."
    )


def check_size(record: Any, size: tuple[int, int] | None, key: str, label_maps: Any) -> None:
    """Raise if an image is not shaped as the one whose map it would get: another image of that name, or a crop of it.

    Copies at another size, to the rounding of a pixel, show the same and are taken.

    Args:
        record: Of a store, or a label map, or None.
        size: Of the image as it was read, (H, W), None if that is not known.
        key: Of the record.
        label_maps: Where it is from.

    Raises:
        ValueError: If that is so.
    """
    annotated = getattr(record, "image_size", None)
    if annotated is None or size is None:
        return
    (width, height), (h, w) = annotated, size
    # The sides of a copy are rounded to whole pixels, so that its shape is right to a pixel of either.
    if abs(w * height - h * width) <= max(width, height):
        return
    turned = abs(h * height - w * width) <= max(width, height)
    exif = (
        " One of them seems to be turned by its EXIF orientation: read images as they were annotated (annotate --exif)."
        if turned and record.exif_turned
        else ""
    )
    raise ValueError(
        f"{key!r} is {w} x {h} pixels (W x H) here, and the image of that name that {label_maps!r} has a label map of "
        f"was {width} x {height}: it is another image, or a part of it. Use the folder that was annotated, or annotate "
        f"this one.{exif}"
    )


def _leaf(dataset: Any) -> Any:
    while isinstance(dataset, (Subset, ConcatDataset)):
        dataset = dataset.dataset if isinstance(dataset, Subset) else dataset.datasets[0]
    return dataset
