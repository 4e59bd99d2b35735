"""MultiLabel-ImageNet's labels, a table of probabilities for whole images, as maps of one cell."""

from __future__ import annotations

import csv
import os
import posixpath
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from torchrelabel.folders import disk_usage
from torchrelabel.importers.run import Failed, Imported, Summary, check_settings, pair_up, write_store

_MODEL = "DINOv3 with a small labeler on MaskCut proposals, as published"

# A row of all 1000 classes has some 12,000 bytes.
_MAX_ROW_BYTES = 2**20

_WHOLE = re.compile(r"[0-9]{1,10}")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_TITLE = re.compile(r"[^\W\d][\w ]*")

# Half precision rounds this, and what is below it, to 0.
_NOTHING = 2.0**-25

CUT = "classes beyond K, the least probable, were left out"
REPEATED = "the same row stood in the table again"


@dataclass
class Table:
    """What a first pass over the file has found.

    Attributes:
        places: Path in a row -> byte at which the row begins, sound or not.
        conflicts: Path -> why it is unknown which of its rows to take.
        nameless: Line and reason of the rows that do not even have a path.
        repeated: Rows that say the same as one before.
        longest: Most classes in a sound row; 0 if there is none.
        problem: What is wrong with the first row that is not sound.
    """

    places: dict[str, int] = field(default_factory=dict)
    conflicts: dict[str, str] = field(default_factory=dict)
    nameless: list[tuple[str, str]] = field(default_factory=list)
    repeated: int = 0
    longest: int = 0
    problem: str = ""


def import_multilabel_tsv(
    source: str | os.PathLike[str],
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    data: str | os.PathLike[str] | None = None,
    top_k: int | None = None,
    num_classes: int = 1000,
    codec: str = "float16",
    progress: bool = True,
) -> Summary:
    """Import rows ``path, gt, idx_list, prob_list``, separated by tabs, as maps of 1 x 1 cells of probabilities.

    The labels are for whole images: whatever a crop shows, it gets the same label. The lists are separated by commas,
    in brackets or not. The image's single label ``gt`` is checked for its bounds and not stored. Each class has its own
    probability, so those of an image may well sum to more than one.

    A store keeps K classes of every image: shorter lists are made up with other classes at probability 0, which says
    what the table says; longer ones lose their least probable classes.

    Args:
        source: The file.
        output: The store; begun if it does not exist.
        data: Folder of the images, to learn their real names. None: the paths in the rows are the names.
        top_k: K; None for as many as the longest row has.
        num_classes: C.
        codec: How records are stored, ``"float16"`` or ``"uint8"``.
        progress: Show progress and notes on stderr.

    Returns:
        What was done.

    Raises:
        FileNotFoundError, IsADirectoryError: If ``source`` is no file.
        ValueError: If an argument is out of range, if not one row is as it should be, or if none belongs to an image.
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreError: If the store cannot be written.

    Source: https://github.com/jchen175/MultiLabel-ImageNet, ``multilabel/README.md`` and ``convert_labels.py``.
    """
    check_settings(num_classes)
    if top_k is not None and not 1 <= top_k <= num_classes:
        raise ValueError(f"top_k must be 1 to num_classes = {num_classes}, got {top_k}.")
    source = Path(source)
    if source.is_dir():
        raise IsADirectoryError(f"{str(source)!r} is a folder, and this format is one file of rows separated by tabs.")
    if not source.is_file():
        raise FileNotFoundError(f"There is no file {str(source)!r}.")
    table = scan(source, num_classes)
    if not table.longest:
        raise ValueError(
            f"Not one row of {str(source)!r} is path, gt, idx_list and prob_list, separated by tabs"
            + (f"; the first: {table.problem}." if table.problem else ": it is empty.")
        )
    summary = Summary(str(output), "multilabel-tsv", bytes_before=disk_usage([source]))
    summary.repaired.update({REPEATED: table.repeated} if table.repeated else {})
    summary.failed += table.nameless
    matching, images = pair_up(
        sorted(table.places),
        data,
        names_of=lambda root: lambda key: [key, f"{root}/{key}"],
        key_of=str,
        num_classes=num_classes,
        summary=summary,
        skip=output,
    )
    kept = top_k or table.longest

    def read(todo: Iterable[tuple[str, str]]) -> Iterator[Imported | Failed]:
        with source.open("rb") as file:
            for key, path in todo:
                file.seek(table.places[path])
                yield _as_map(key, path, file.readline(), table, kept, num_classes)

    return write_store(
        summary,
        matching,
        images,
        read,
        description={"model": _MODEL, "format": "multilabel-tsv", "source": source.name},
        progress=progress,
        num_classes=num_classes,
        top_k=kept,
        grid=(1, 1),
        score_kind="probability",
        codec=codec,
    )


def scan(source: Path, num_classes: int) -> Table:
    """Read the file once, to know where each image's row is and how long the longest is."""
    table = Table()
    with source.open("rb") as file, source.open("rb") as again:
        line, place = 0, 0
        while content := file.readline(_MAX_ROW_BYTES + 1):
            line, begin, place = line + 1, place, place + len(content)
            problem = ""
            if len(content) > _MAX_ROW_BYTES:
                while content and not content.endswith(b"\n"):  # the rest of it
                    content = file.readline(_MAX_ROW_BYTES)
                    place += len(content)
                problem = f"it has more than {_MAX_ROW_BYTES} bytes"
                table.nameless.append((f"line {line}", problem))
            elif content.strip() and not (line == 1 and _are_titles(_cells(content))):
                problem = _note(table, content, begin, line, again, num_classes)
            if problem and not table.problem:
                table.problem = f"line {line}: {problem}"
    return table


def _note(table: Table, content: bytes, place: int, line: int, again: BinaryIO, num_classes: int) -> str:
    """Take a row into the table; what is wrong with it, if anything."""
    path = _path(content)
    if not path:
        problem = "it has no path, or nothing behind it"
        table.nameless.append((f"line {line}", problem))
        return problem
    problem = ""
    row = None
    try:
        row = parse_row(content, num_classes)
        table.longest = max(table.longest, len(row[0]))
    except ValueError as error:
        problem = str(error)
    if path not in table.places:
        table.places[path] = place
        return problem
    again.seek(table.places[path])
    try:
        same = row is not None and row == parse_row(again.readline(), num_classes)
    except ValueError:
        same = False
    if same:
        table.repeated += 1
        return ""
    table.conflicts[path] = f"line {line} says something else of it than a line before"
    return problem or table.conflicts[path]


def parse_row(content: bytes, num_classes: int) -> tuple[list[int], list[float]]:
    """The classes of a row and their probabilities, the most probable first.

    Raises:
        ValueError: If it is not ``path, gt, idx_list, prob_list``, naming the value.
    """
    cells = _cells(content)
    if len(cells) != 4:
        raise ValueError(f"a row has 4 cells, separated by tabs, got {len(cells)}")
    _index(cells[1], "gt", num_classes)
    classes = [_index(entry, "idx_list", num_classes) for entry in _entries(cells[2])]
    probabilities = [_probability(entry) for entry in _entries(cells[3])]
    if len(classes) != len(probabilities):
        raise ValueError(f"idx_list has {len(classes)} entries, and prob_list {len(probabilities)}")
    largest = max(probabilities, default=0.0)
    if largest <= _NOTHING:
        rounded = f" in half precision, got at most {largest:g}" if largest else ""
        raise ValueError(f"no class of it has a probability above 0{rounded}")
    if len(set(classes)) < len(classes):
        twice = next(index for index in classes if classes.count(index) > 1)
        raise ValueError(f"the classes of a row are distinct, got {twice} twice")
    best_first = sorted(zip(probabilities, classes, strict=True), key=lambda pair: -pair[0])
    return [index for _, index in best_first], [probability for probability, _ in best_first]


def _as_map(key: str, path: str, content: bytes, table: Table, top_k: int, num_classes: int) -> Imported | Failed:
    if path in table.conflicts:
        return Failed(key, table.conflicts[path])
    try:
        classes, probabilities = parse_row(content, num_classes)
    except ValueError as error:
        return Failed(key, str(error))
    repairs = (CUT,) if len(classes) > top_k else ()
    classes, probabilities = classes[:top_k], probabilities[:top_k]
    taken = set(classes)
    free = (index for index in range(num_classes) if index not in taken)
    missing = top_k - len(classes)
    classes += [next(free) for _ in range(missing)]
    probabilities += [0.0] * missing
    return Imported(
        key,
        np.array(probabilities, np.float32).reshape(top_k, 1, 1),
        np.array(classes, np.int32).reshape(top_k, 1, 1),
        repairs=repairs,
    )


def _cells(content: bytes) -> list[str]:
    """The cells of a row, out of their quotes where a writer such as pandas has put them into some."""
    # File names need not be UTF-8; a byte order mark may begin the file.
    text = content.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n").decode("utf-8", "surrogateescape")
    if '"' not in text:
        cells = text.split("\t")
    else:
        try:
            cells = next(csv.reader([text], delimiter="\t"))
        except csv.Error:  # a cell beyond the bound of csv
            cells = [text]
    return [cell.strip() for cell in cells]


def _are_titles(cells: list[str]) -> bool:
    return len(cells) > 1 and all(map(_TITLE.fullmatch, cells))


def _path(content: bytes) -> str:
    """The path of a row as keys are written; empty if it has none, or nothing behind it."""
    path, *rest = _cells(content)
    return posixpath.normpath(path.replace("\\", "/")) if path and rest else ""


def _entries(cell: str) -> list[str]:
    """The entries of ``0,391`` or ``[0, 391]``; none of an empty list."""
    if cell[:1] + cell[-1:] in ("[]", "()"):
        cell = cell[1:-1].strip()
    return [entry.strip() for entry in cell.split(",")] if cell else []


def _index(text: str, column: str, num_classes: int) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError(f"{column} holds whole numbers, got {text[:40]!r}")
    if int(text) >= num_classes:
        raise ValueError(f"{column} holds classes from 0 to {num_classes - 1}, got {text}")
    return int(text)


def _probability(text: str) -> float:
    if not _DECIMAL.fullmatch(text) or not 0 <= float(text) <= 1:
        raise ValueError(f"prob_list holds probabilities from 0 to 1, got {text[:40]!r}")
    return float(text)
