"""merge: the label maps of several stores, or of a store of an older version, become one store."""

from __future__ import annotations

import heapq
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrelabel.errors import DamagedRecord, SettingsDiffer, StoreError
from torchrelabel.store.header import SETTINGS, StoreHeader
from torchrelabel.store.layout import HEADER_FILE, decode_key, encode_key
from torchrelabel.store.reader import LabelStore
from torchrelabel.store.record import carry_over
from torchrelabel.store.writer import LabelStoreWriter, write_calibration

# What the new store takes from the first one, besides its settings.
_DESCRIPTIONS = ("annotator", "grid", "class_names", "class_to_idx")


@dataclass(frozen=True)
class Merged:
    """What a merge came to.

    Attributes:
        records: Label maps in the new store.
        failures: Images that no store has a map of.
        complete: Whether all stores were complete, so that the new one is.
    """

    records: int
    failures: int
    complete: bool


def merge(
    stores: Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    shards: int | None = None,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Merged:
    """Copy the label maps of stores into a new one, in today's version of the format and in the order of their keys.

    Scores and classes stay the very same numbers. Descriptions (annotator, class names, ...) are those of the first
    store; a calibration, and what is known of the data set, are kept where all stores agree on it. An interrupted merge
    is continued by the same call.

    Args:
        stores: Made with the same settings by the same annotator.
        output: The new store.
        shards: Number of its shards; by default that of the first store.
        progress: Wraps the iteration over the keys, as ``tqdm`` does.

    Raises:
        SettingsDiffer: If the stores were made with different settings, naming each.
        StoreError: If a store cannot be read, two hold different maps of one image, or the output is another store.
    """
    sources = [LabelStore(store) for store in stores]
    headers = [source.header for source in sources]
    first = headers[0]
    for source in sources[1:]:
        differences = [line for line in first.differences(source.header) if not line.startswith("shards: ")]
        if differences:
            raise SettingsDiffer(f"{sources[0].path} and {source.path} cannot be one store. {'; '.join(differences)}")
    if Path(os.path.abspath(output)) in [source.path for source in sources]:
        raise StoreError(f"{os.fspath(output)} is one of the stores to merge; give a new path")
    there = LabelStore(output) if Path(output, HEADER_FILE).exists() else ()
    for key in there:
        if not any(key in source for source in sources):
            raise StoreError(f"{os.fspath(output)} holds another store, with a label map of {key!r}; give a new path")
    settings = {name: getattr(first, name) for name in (*SETTINGS, *_DESCRIPTIONS)} | {"shards": shards or first.shards}
    writer = LabelStoreWriter(output, **settings, dataset=_common(headers, "dataset") or {}, resume=True)
    complete = all(header.complete for header in headers)
    with writer:
        records = sum(1 for _ in progress(_copied(sources, writer)))
        failures = {key: reason for source in sources for key, reason in source.failures.items() if key not in writer}
        for key, reason in failures.items():
            writer.put_failure(key, reason)
        if not complete:
            writer.close()
    calibration = _common(headers, "calibration")
    if calibration is not None:
        write_calibration(output, calibration)
    return Merged(records, len(failures), complete)


def _copied(sources: Sequence[LabelStore], writer: LabelStoreWriter) -> Iterator[str]:
    """Put every map into the new store; yield each key once."""
    last = None
    for name, number in heapq.merge(*(_names(source, number) for number, source in enumerate(sources))):
        source, key = sources[number], decode_key(name)
        part, record = source.raw_record(name)
        try:
            writer.put_record(key, carry_over(part.header, writer.header, name, record))
        except (ValueError, DamagedRecord) as error:
            raise StoreError(f"{part.path}, label map of {key!r}: {error}") from None
        if name != last:
            yield key
        last = name


def _names(source: LabelStore, number: int) -> Iterator[tuple[bytes, int]]:
    return ((encode_key(key), number) for key in source)


def _common(headers: Sequence[StoreHeader], name: str) -> Any:
    """What all headers say; None if they differ."""
    said = [getattr(header, name) for header in headers]
    return said[0] if all(each == said[0] for each in said) else None
