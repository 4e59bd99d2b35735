"""What every importer does once it knows which map belongs to which image: write the store, and say what was lost."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from torchrelabel._version import __version__
from torchrelabel.folders import disk_usage, printable, refused_keys
from torchrelabel.importers.names import Matching, match
from torchrelabel.store import LabelStoreWriter
from torchrelabel.store.header import read_header
from torchrelabel.store.layout import HEADER_FILE, can_be_key, encode_key, fingerprint

NO_MAP = "no published label map belongs to it"


class Imported(NamedTuple):
    """One published map as it goes into the store.

    Attributes:
        key: The image.
        scores: ``[K, h, w]``, descending along ``K``.
        classes: ``[K, h, w]``.
        coverage: Part of the image that the map covers, xyxy in fractions, where maps differ in this.
        repairs: What was put right, in words.
        checked: Whether a checksum covers what was read.
    """

    key: str
    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    coverage: tuple[float, float, float, float] | None = None
    repairs: tuple[str, ...] = ()
    checked: bool = True


class Failed(NamedTuple):
    """A published map that cannot be used, and why."""

    key: str
    reason: str


@dataclass
class Summary:
    """What an import did.

    Attributes:
        output: The store.
        format: What was imported.
        imported: Maps written now.
        already_there: Maps that an earlier run wrote.
        failed: Image and reason of every map that could not be used.
        images_without_map: Images that no map belongs to.
        maps_without_image: Maps that belong to no image.
        repaired: What was put right -> in how many maps.
        unchecked: How many of the maps written now come from files without a checksum, whose damage is not noticed
            where it leaves a label map.
        notes: What else is worth knowing.
        num_classes: C.
        top_k: K.
        grids: ``(h, w)`` -> how many of the maps written now have it.
        partly_covered: Of the maps written now, how many cover only a part of their image.
        share_not_covered: The mean share of their image that the maps written now leave out.
        agreement: Of the maps written now, the share whose top class over all cells is that of their class folder; None
            unless there are as many folders as classes.
        bytes_before: What the source occupies on disk.
        bytes_after: What the store occupies on disk.
        seconds: Time for reading and writing, without looking for the files.
    """

    output: str
    format: str
    imported: int = 0
    already_there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    images_without_map: list[str] = field(default_factory=list)
    maps_without_image: list[str] = field(default_factory=list)
    repaired: Counter[str] = field(default_factory=Counter)
    unchecked: int = 0
    notes: list[str] = field(default_factory=list)
    num_classes: int = 0
    top_k: int = 0
    grids: Counter[tuple[int, int]] = field(default_factory=Counter)
    partly_covered: int = 0
    share_not_covered: float = 0.0
    agreement: float | None = None
    bytes_before: int = 0
    bytes_after: int = 0
    seconds: float = 0.0

    @property
    def maps_per_second(self) -> float:
        """Maps read now, sound or not, per second."""
        return (self.imported + len(self.failed)) / self.seconds if self.seconds else 0.0

    @property
    def lossless(self) -> bool:
        """Whether every map became a record and every image has one."""
        return not (self.failed or self.images_without_map or self.maps_without_image)


@dataclass(frozen=True)
class Images:
    """The images that maps are to be put together with.

    Attributes:
        root: Their folder; None where only the names of the maps are known.
        folders: Class folders to indices, if there are as many as classes.
        dataset: ``count`` and ``fingerprint`` for the header.
    """

    root: str | None
    folders: dict[str, int] | None
    dataset: dict[str, Any]


def check_settings(num_classes: int, workers: int | None = None) -> None:
    """Refuse settings out of their bounds.

    Raises:
        ValueError: Naming the one.
    """
    for name, value, lowest in (("num_classes", num_classes, 1), ("workers", workers, 0)):
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")


def pair_up(
    maps: Sequence[str],
    data: str | os.PathLike[str] | None,
    *,
    names_of: Callable[[str], Callable[[str], list[str]]],
    key_of: Callable[[str], str],
    num_classes: int,
    summary: Summary,
    skip: str | os.PathLike[str],
) -> tuple[Matching, Images]:
    """Find out which map belongs to which image.

    Args:
        maps: Names of the maps.
        data: Folder of the images; None to make their keys up from the names of the maps.
        names_of: Given the name of the images' folder, what the map of an image may be called.
        key_of: The image that a map belongs to, where there is no folder to look into.
        num_classes: C.
        summary: Gets what could not be put together.
        skip: The store, which may lie among the images.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If there is no image in it, or none that has a map.
    """
    if data is None:
        keys = {key_of(name): name for name in maps}
        folders = sorted({key.split("/")[0] for key in keys if "/" in key})
        table = {folder: index for index, folder in enumerate(folders)} if len(folders) == num_classes else None
        return Matching(keys), Images(None, table, {"count": sum(map(can_be_key, keys))})
    # Here, since it imports torchvision, which processes that only read need not wait for.
    from torchrelabel.annotate.images import find_images

    found = find_images(data, skip=[skip])
    if not found.keys:
        raise ValueError(
            f"There is no image in {str(data)!r} or the folders in it (.jpg, .png, .webp, ...). Give the folder of the "
            f"images."
        )
    matching = match(maps, found.keys, names_of(Path(os.path.abspath(data)).name))
    if not matching.pairs and not matching.ambiguous:
        raise ValueError(
            f"Not one of the {len(maps)} label maps belongs to one of the {len(found.keys)} images in {str(data)!r}: "
            f"the maps have names like {maps[0]!r}, the images like {found.keys[0]!r}."
        )
    summary.notes += [f"Not looked into: {path} ({reason})" for path, reason in found.problems]
    summary.maps_without_image = matching.maps_alone
    table = found.class_to_idx if found.class_to_idx and len(found.class_to_idx) == num_classes else None
    storable = [key for key in found.keys if can_be_key(key)]
    return matching, Images(str(data), table, {"count": len(storable), "fingerprint": fingerprint(storable)})


def write_store(
    summary: Summary,
    matching: Matching,
    images: Images,
    read: Callable[[list[tuple[str, str]]], Iterable[Imported | Failed]],
    *,
    description: Mapping[str, Any],
    progress: bool,
    **settings: Any,
) -> Summary:
    """Write the maps that belong to an image to a store; continue it if it is there.

    Args:
        summary: Of this import; gets what happens.
        matching: Which map belongs to which image.
        images: The images.
        read: Reads maps, given as (image, name of its map), in this order.
        description: Who made the maps, for the header.
        progress: Show progress on stderr.
        settings: Of `LabelStoreWriter`.

    Raises:
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreInUse: If another process writes to it.
        StoreError: If ``output`` is no store, or the file system refuses.
    """
    summary.num_classes, summary.top_k = settings["num_classes"], settings["top_k"]
    output = Path(summary.output)
    without = {**matching.ambiguous, **dict.fromkeys(matching.images_alone, NO_MAP)}
    refused = refused_keys([*matching.pairs, *without])
    summary.failed += refused.items()
    pairs = {key: name for key, name in matching.pairs.items() if key not in refused}
    without = {key: reason for key, reason in without.items() if key not in refused}
    # In the order of their bytes, in which pages of the store are filled.
    ordered = [(key, pairs[key]) for key in sorted(pairs, key=encode_key)]
    with LabelStoreWriter(
        output,
        annotator={**description, "imported": True, "torchrelabel": _version_that_began(output)},
        class_names=_class_names(output, images.folders),
        class_to_idx=images.folders,
        resume=True,
        **settings,
    ) as writer:
        todo = [(key, name) for key, name in ordered if key not in writer]
        summary.already_there = len(ordered) - len(todo)
        for key, reason in without.items():
            if key in writer:  # from another source, by an earlier import
                continue
            writer.put_failure(key, reason)
            if key in matching.ambiguous:
                summary.failed.append((key, reason))
            else:
                summary.images_without_map.append(key)
        started = time.perf_counter()
        hits = 0
        for item in tqdm(read(todo), total=len(todo), unit="maps", disable=not progress, desc="import", smoothing=0.1):
            written = _put(writer, item) if isinstance(item, Imported) else item
            if isinstance(written, Failed):
                writer.put_failure(*written)
                summary.failed.append(written)
                continue
            _, rows, columns = written.scores.shape
            x1, y1, x2, y2 = written.coverage or writer.header.default_box
            left_out = 1 - (x2 - x1) * (y2 - y1)
            summary.imported += 1
            summary.repaired.update(written.repairs)
            summary.unchecked += not written.checked
            summary.grids[rows, columns] += 1
            summary.partly_covered += left_out > 0
            summary.share_not_covered += left_out
            if images.folders:
                hits += images.folders.get(written.key.split("/")[0]) == _top_class(written, summary.num_classes)
        writer.finish(dataset=images.dataset)
    summary.seconds = time.perf_counter() - started
    if summary.imported:
        summary.share_not_covered /= summary.imported
        summary.agreement = hits / summary.imported if images.folders else None
    summary.bytes_after = disk_usage(output.iterdir())
    return summary


def _class_names(output: Path, folders: Mapping[str, int] | None) -> Sequence[str] | None:
    if not folders:
        return None
    # Here, since it imports timm, which takes seconds.
    from torchrelabel.annotate.class_names import in_words, names_to_store

    return names_to_store(output, in_words(sorted(folders, key=folders.__getitem__)))


def say(summary: Summary, text: str, progress: bool) -> None:
    """Keep what is worth knowing for the summary, and say it at once."""
    summary.notes.append(text)
    if progress:
        # Names of files need not be text that the terminal can show.
        tqdm.write(printable(text), file=sys.stderr)


def spread(items: Sequence[Any], count: int) -> Iterator[Any]:
    """Some items from all over a sequence, the first one included."""
    step = max(1, -(-len(items) // count))
    return (items[place] for place in range(0, len(items), step))


def _put(writer: LabelStoreWriter, item: Imported) -> Imported | Failed:
    """Put a map into the store, unless the store does not take it."""
    try:
        writer.put(item.key, item.scores, item.classes, coverage=item.coverage)
    except ValueError as error:  # such as a logit beyond half precision
        return Failed(item.key, str(error))
    return item


def _top_class(item: Imported, num_classes: int) -> int:
    """The top class of the whole map, classes not kept in a cell counting as 0, as in LabelPooling's default."""
    return int(np.bincount(item.classes.ravel(), weights=item.scores.ravel(), minlength=num_classes).argmax())


def _version_that_began(output: Path) -> str:
    """The release that began the store, so that a later one may continue it."""
    if (output / HEADER_FILE).exists():
        return str(read_header(output).annotator.get("torchrelabel", __version__))
    return __version__
