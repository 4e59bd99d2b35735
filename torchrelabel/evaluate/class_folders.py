"""Which class of the model is the folder that an image lies in?"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace

from timm.utils.misc import natural_key

from torchrelabel.annotate.class_names import imagenet_synsets
from torchrelabel.annotate.folder_order import renumbered
from torchrelabel.annotate.images import ImagesFound, find_images


class DoesNotApply(ValueError):
    """A data set is of other classes than the model's: it is left out, and that is said."""


@dataclass(frozen=True)
class LabelledFolder:
    """A folder of images with the class of each.

    Attributes:
        found: Its images.
        keys: Those with a class, in order.
        labels: Their classes.
        how: How the classes are known, in words.
        no_class: Those without one, with the reason.
        table: The names of all classes, in order, where the folders are them.
        other_order: Class by class, the number that the other of torchvision and timm would give, where they differ.
        notes: What else is worth knowing.
    """

    found: ImagesFound
    keys: list[str]
    labels: list[int]
    how: str
    no_class: dict[str, str]
    table: tuple[str, ...] | None = None
    other_order: dict[int, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def only(self, classes: Collection[int], reason: str) -> LabelledFolder:
        """The same without the images of other classes, which are lost for this reason."""
        pairs = list(zip(self.keys, self.labels, strict=True))
        lost = {key: reason for key, label in pairs if label not in classes}
        kept = [(key, label) for key, label in pairs if label in classes]
        return replace(
            self,
            keys=[key for key, _ in kept],
            labels=[label for _, label in kept],
            no_class={**self.no_class, **lost},
            notes=(),
        )


def require_images(folder: str | os.PathLike[str]) -> ImagesFound:
    """Find the images of a folder, of which there must be some.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        NotADirectoryError: If it is a file.
    """
    found = find_images(folder)
    if not found.keys:
        raise FileNotFoundError(f"There is no image in {str(found.root)!r} or the folders in it (.jpg, .png, ...).")
    return found


def label_folder(
    found: ImagesFound, num_classes: int, class_names: Sequence[str] | None = None, order: str = "text"
) -> LabelledFolder:
    """Tell the class of each image by the folder that it lies in.

    By name, where the folders are called as classes are: as those of ``class_names``, or as ImageNet's synsets. Else by
    order, where there are as many folders as classes.

    Args:
        found: The images.
        num_classes: C of the model.
        class_names: What the model's classes are called.
        order: How folders are numbered: ``"text"`` as torchvision's ``ImageFolder`` does, ``"number"`` as timm does.

    Raises:
        DoesNotApply: If it cannot be told.
    """
    folders = found.class_to_idx
    if folders is None:
        raise DoesNotApply(
            f"The images in {str(found.root)!r} lie in no class folders, so their classes are not known. Put each "
            f"into the folder of its class."
        )
    no_folder = {key: "lies in no class folder" for key in found.keys if "/" not in key}
    for names, how in (
        (class_names, "the names of the classes"),
        (imagenet_synsets(num_classes), "ImageNet's synsets"),
    ):
        table = {name: index for index, name in enumerate(names or ())}
        if table.keys() & folders.keys():
            return _by_name(found, table, f"by {how}", no_folder)
    if len(folders) != num_classes:
        raise DoesNotApply(
            f"{str(found.root)!r} has {len(folders)} folders with images, and the model {num_classes} classes, so it "
            f"is not known which is which. Give the names of the classes in the model's order (--class-names), "
            f"which are the names of the folders that it was trained on."
        )
    by_text = {name: index for index, name in enumerate(sorted(folders))}
    table = by_text
    if order == "number":
        table = {name: index for index, name in enumerate(sorted(folders, key=natural_key))}
    how = "by the order of the folders, " + ("as torchvision sorts them" if order == "text" else "as timm sorts them")
    labelled = _by_name(found, table, how, no_folder)
    return replace(labelled, table=tuple(sorted(table, key=table.__getitem__)), other_order=renumbered(table))


def number_folder(found: ImagesFound, num_classes: int) -> LabelledFolder:
    """Tell the class of each image by the folder's name, which is its number: 0, 1, ..., 10 is not the third.

    Raises:
        ValueError: If the folders are called otherwise.
        DoesNotApply: If they have numbers that the model has not.
    """
    folders = found.class_to_idx or {}
    others = sorted(name for name in folders if not name.isdecimal())
    if others or not folders:
        got = f"{others[0]!r} is none" if others else "there are none"
        raise ValueError(f"The folders in {str(found.root)!r} must be called by the numbers of their classes; {got}.")
    largest = max(folders, key=int)
    if int(largest) >= num_classes:
        raise DoesNotApply(
            f"{str(found.root)!r} has a folder {largest!r}, and the model the classes 0 to {num_classes - 1}."
        )
    no_folder = {key: "lies in no class folder" for key in found.keys if "/" not in key}
    return _by_name(found, {name: int(name) for name in folders}, "by the numbers of the folders", no_folder)


def _by_name(found: ImagesFound, table: dict[str, int], how: str, no_class: dict[str, str]) -> LabelledFolder:
    keys, labels = [], []
    no_class = dict(no_class)
    for key in found.keys:
        folder, separator, _ = key.partition("/")
        if not separator:
            continue
        if folder in table:
            keys.append(key)
            labels.append(table[folder])
        else:
            no_class[key] = f"{folder!r} is none of the model's classes"
    empty = sorted(set(table.values()) - set(labels))
    notes = []
    if empty and keys:
        first = ", ".join(map(str, empty[:3])) + (", ..." if len(empty) > 3 else "")
        notes.append(f"{len(empty)} of {len(table)} classes have no image in {str(found.root)!r}: {first}")
    return LabelledFolder(found, keys, labels, how, no_class, notes=tuple(notes))
