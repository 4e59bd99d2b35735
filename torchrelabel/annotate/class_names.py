"""Class names: what the classes of an annotator are called."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import timm.data

from torchrelabel.store.header import read_header
from torchrelabel.store.layout import HEADER_FILE

if TYPE_CHECKING:
    from torchrelabel.annotate.annotator import Annotator

# Where training scripts keep the names beside the weights, PyTorch Lightning one level deeper, and timm label_names.
_CHECKPOINT_KEYS = ("class_names", "classes", "class_to_idx", "idx_to_class", "names", "id2label", "label_names")
# Of timm itself, by name or from its place on the Hub. Whoever else publishes a model may have 1000 classes too.
_OF_TIMM = re.compile(r"(hf[-_]hub:timm/)?[^:]+")

# Which is not typed.
_timm_data: Any = timm.data


def choose_class_names(
    annotator: Annotator, folders: Mapping[str, int] | None, given: Sequence[str] | None
) -> tuple[str, ...] | None:
    """Decide what an annotator's classes are called.

    In this order: the names that were given; those that came with its weights; those of the class folders; ImageNet's.

    Args:
        annotator: The classifier.
        folders: From folder to index, where there is one folder for each class.
        given: Names that were asked for.

    Returns:
        A name for each class, all different; None if that is unknown.

    Raises:
        ValueError: If others than C names were given.
    """
    if given is not None:
        if len(given) != annotator.num_classes:
            raise ValueError(
                f"{annotator.name} has {annotator.num_classes} classes, and {len(given)} class names were given, from "
                f"{given[0]!r} to {given[-1]!r}. Give one for each class, in the order of the model's outputs."
            )
        return tuple(given)
    if annotator.class_names is not None:
        return in_words(annotator.class_names)
    if folders is not None:
        return in_words(sorted(folders, key=folders.__getitem__))
    return _names_by_convention(annotator)


def names_to_store(output: Path, names: Sequence[str] | None) -> Sequence[str] | None:
    """The names that a run found out by itself, or those that the store has already: they are not changed by guesses.

    Names where there were none are written, but are no reason to fail on a disk that is read-only.

    Raises:
        StoreError: If the store's header cannot be read.
    """
    if not (output / HEADER_FILE).exists():
        return names
    theirs = read_header(output).class_names
    return names if theirs is None and os.access(output, os.W_OK) else theirs


def read_class_names(source: str | os.PathLike[str] | Sequence[str]) -> tuple[str, ...]:
    """Read class names in the order of their indices.

    Args:
        source: The names; or a file of them: text with one name a line, or, if it is called ``.json``, a list, an
            object from index to name, or one from name to index.

    Returns:
        The names, all different.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is not UTF-8 or no JSON, an index has no name, or a name is blank or there twice.
    """
    if not isinstance(source, (str, os.PathLike)):
        return _in_order(list(source), "The class names")
    path = Path(source)
    if not path.is_file():
        raise FileNotFoundError(f"There is no file of class names {str(path)!r}.")
    what = f"The class names in {str(path)!r}"
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{what} are not UTF-8 ({error.reason} at byte {error.start}). Save the file as UTF-8."
        ) from None
    if path.suffix.lower() != ".json":
        return _in_order([line.strip() for line in text.rstrip().split("\n")], what)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{what} are no JSON: {error}. Text with one name a line needs another name: .txt.") from None
    return _in_order(content, what)


def names_held(content: Any) -> list[tuple[str, ...]]:
    """All lists of names that a checkpoint, or timm's configuration of a model, holds where those of classes are kept.

    Which of them names the model's classes is known by their number, once the model is built.
    """
    if not isinstance(content, Mapping):
        return []
    found = []
    deeper = content.get("hyper_parameters")
    for place in (content, deeper) if isinstance(deeper, Mapping) else (content,):
        for key in _CHECKPOINT_KEYS:
            try:
                found.append(_in_order(place.get(key), key))
            except ValueError:  # it is not there, or something else is called so
                continue
    return found


def imagenet_synsets(num_classes: int) -> list[str]:
    """The synsets (n01440764, ...), in order, of the release of ImageNet that has so many classes; [] if none has."""
    release = _timm_data.infer_imagenet_subset({"num_classes": num_classes})
    return [] if release is None else list(_timm_data.ImageNetInfo(release).label_names())


def in_words(names: Sequence[str]) -> tuple[str, ...]:
    """Names that are all ImageNet synsets as WordNet's first word for each; others as they are.

    Where several of them share their first word, as the two cranes, the synset stands behind it:
    ``"crane (n02012849)"``.
    """
    info = _timm_data.ImageNetInfo()
    try:
        words = [str(info.label_name_to_description(name)).split(",")[0] for name in names]
    except KeyError:  # not all of them are synsets
        return tuple(names)
    times = Counter(words)
    return tuple(word if times[word] == 1 else f"{word} ({name})" for word, name in zip(words, names, strict=True))


def _names_by_convention(annotator: Annotator) -> tuple[str, ...] | None:
    """ImageNet's names, where timm's own configuration of the model has as many classes as a release of ImageNet."""
    config = getattr(annotator.head.model, "pretrained_cfg", None) or {}
    trained = annotator.weights in ("pretrained", "checkpoint") and _OF_TIMM.fullmatch(annotator.name)
    if not trained or config.get("num_classes") != annotator.num_classes:
        return None
    synsets = imagenet_synsets(annotator.num_classes)
    return in_words(synsets) if synsets else None


def _in_order(names: Any, what: str) -> tuple[str, ...]:
    """Names by their index, each checked.

    Raises:
        ValueError: If there is not exactly one for each index, saying ``what`` they are and what to do.
    """
    if isinstance(names, Mapping):
        names = _by_index(names, what)
    if not isinstance(names, (list, tuple)) or not names:
        raise ValueError(f"{what} must be a list or an object with a name for each class, got {_short(names)}.")
    first: dict[str, int] = {}
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(f"{what} must be words on one line, got {_short(name)} for class {index}. Give it a name.")
        if first.setdefault(name, index) != index:
            raise ValueError(
                f"{what} must differ, and classes {first[name]} and {index} are both {name!r}. Rename one."
            )
    return tuple(names)


def _by_index(table: Mapping[Any, Any], what: str) -> list[Any]:
    # class_to_idx is the one kind of table whose values are numbers; its names may look like numbers, too.
    to_index = all(type(value) is int for value in table.values())
    pairs = [(value, key) if to_index else (_as_index(key), value) for key, value in table.items()]
    wrong = next((entry for entry, (index, _) in zip(table.items(), pairs, strict=True) if index is None), None)
    if wrong is not None:
        raise ValueError(
            f"{what} must be a table from index to name or from name to index, got {_short(wrong[0])}: "
            f"{_short(wrong[1])}."
        )
    by_index = dict(pairs)
    hole = next((index for index in range(len(pairs)) if index not in by_index), None)
    if hole is not None:
        raise ValueError(
            f"{what} have no name of index {hole}, and {len(pairs)} names need the indices 0 to {len(pairs) - 1}, each "
            f"once. Give every class one name."
        )
    return [by_index[index] for index in range(len(pairs))]


def _as_index(key: Any) -> int | None:
    if isinstance(key, str) and key.isdecimal() and len(key) < 10:
        return int(key)
    return key if type(key) is int else None


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
