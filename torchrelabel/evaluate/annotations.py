"""The several right classes of ImageNet's validation images: ReaL's real.json, and Shankar's human_accuracy.json."""

from __future__ import annotations

import json
import os
import pkgutil
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from torchrelabel.evaluate.class_folders import DoesNotApply

OF_TIMM = "timm"

_NUMBERED = re.compile(r"ILSVRC2012_val_(\d{8})(?!\d)")


@dataclass(frozen=True)
class Annotations:
    """The right classes of some of the images.

    Attributes:
        right: By the image's number, from 1; an empty set if experts found none.
        lenient: The same with those that the experts were not sure about. Equal to ``right`` for ReaL.
        problematic: Numbers of images that are not to be counted.
    """

    right: dict[int, frozenset[int]]
    lenient: dict[int, frozenset[int]]
    problematic: frozenset[int] = frozenset()


def number_of(key: str) -> int | None:
    """The number in the name of an image of ImageNet's validation set, from 1; None if it is called otherwise."""
    match = _NUMBERED.match(PurePosixPath(key).name)
    return int(match[1]) if match else None


def read_real(path: str | os.PathLike[str], num_classes: int, keys: Sequence[str]) -> Annotations:
    """Read ReaL labels.

    Args:
        path: real.json: a list with a list of classes for each validation image, in order; or ``"timm"`` for timm's.
        num_classes: C of the model.
        keys: The images that are to be found in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or ends before one of the images.
        DoesNotApply: If it is of other classes than the model's.

    Source: Beyer et al. 2020, https://arxiv.org/abs/2006.07159; google-research/reassessed-imagenet.
    """
    what = f"The ReaL labels in {os.fspath(path)!r}"
    content: Any
    if os.fspath(path) == OF_TIMM:
        content = json.loads(pkgutil.get_data("timm.data", "_info/imagenet_real_labels.json") or b"")
    else:
        content = _json(path, what)
    if not isinstance(content, list) or not all(
        isinstance(classes, list) and all(type(each) is int for each in classes) for classes in content
    ):
        raise ValueError(f"{what} must be a list that has a list of class numbers for each image.")
    _require_classes((each for classes in content for each in classes), num_classes, what)
    numbers = _numbers(keys, what)
    if numbers and (max(numbers) > len(content) or min(numbers) < 1):
        beyond = max(numbers) if max(numbers) > len(content) else min(numbers)
        raise ValueError(
            f"{what} are {len(content)} lists, and there is an image of number {beyond}, ILSVRC2012_val_{beyond:08d}. "
            f"The file is of another data set, or cut off."
        )
    right = {number + 1: frozenset(classes) for number, classes in enumerate(content)}
    return Annotations(right, right)


def read_multilabel(path: str | os.PathLike[str], class_names: Sequence[str], keys: Sequence[str]) -> Annotations:
    """Read the multi-label annotations of Shankar et al.

    Args:
        path: human_accuracy_v3.0.0.json, with ``initial_annots`` and ``problematic_images``.
        class_names: ImageNet's synsets in the model's order.
        keys: The images that are to be found in it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is something else, or has none of the images.
        DoesNotApply: If it names classes that the model has not.

    Source: Shankar et al. 2020, https://proceedings.mlr.press/v119/shankar20c.html; the format as TensorFlow Datasets'
    imagenet2012_multilabel reads it.
    """
    what = f"The multi-label annotations in {os.fspath(path)!r}"
    content = _json(path, what)
    annotations = content.get("initial_annots") if isinstance(content, dict) else None
    if not isinstance(annotations, dict) or not all(isinstance(each, dict) for each in annotations.values()):
        raise ValueError(f"{what} must have an object 'initial_annots' with one for each image.")
    index = {name: number for number, name in enumerate(class_names)}
    right, lenient = {}, {}
    for image, judgements in annotations.items():
        number = number_of(image)
        if number is None:  # the file may hold images of other sets, too
            continue
        sure, unsure = (judgements.get(kind, []) for kind in ("correct", "unclear"))
        unknown = [name for name in (*sure, *unsure) if name not in index]
        if unknown:
            raise DoesNotApply(f"{what} name {unknown[0]!r} for {image}, which is none of the model's classes.")
        right[number] = frozenset(index[name] for name in sure)
        lenient[number] = right[number] | {index[name] for name in unsure}
    numbers = _numbers(keys, what)
    if not right.keys() & set(numbers):
        raise ValueError(f"{what} are of none of the {len(keys)} images. Give the file for ImageNet's validation set.")
    problematic = frozenset(number_of(image) or 0 for image in content.get("problematic_images", ()))
    return Annotations(right, lenient, problematic)


def _numbers(keys: Sequence[str], what: str) -> list[int]:
    numbers = [number for number in map(number_of, keys) if number is not None]
    if not numbers and keys:
        raise ValueError(
            f"{what} go with images called ILSVRC2012_val_00000001 and so on; here they are called as {keys[0]!r}. "
            f"Keep the names that ImageNet's validation images have."
        )
    return numbers


def _require_classes(classes: Iterable[int], num_classes: int, what: str) -> None:
    wrong = next((each for each in classes if not 0 <= each < num_classes), None)
    if wrong is not None:
        raise DoesNotApply(f"{what} name class {wrong}, and the model has the classes 0 to {num_classes - 1}.")


def _json(path: str | os.PathLike[str], what: str) -> Any:
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no file {os.fspath(path)!r}.")
    with open(path, "rb") as file:
        try:
            return json.load(file)
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{what} are no JSON: {error}.") from None
