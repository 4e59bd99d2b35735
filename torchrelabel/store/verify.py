"""verify: every record of a store is read and held to the format, and its keys to a list of images."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from torchrelabel.errors import DamagedRecord, StoreError
from torchrelabel.store.layout import (
    BOOKKEEPING_PREFIX,
    DIGEST_PREFIX,
    FAILURE_PREFIX,
    decode_key,
    encode_key,
    failure_key,
    fingerprint,
    record_key,
    shard_file,
    shard_of,
    split_named,
)
from torchrelabel.store.reader import LabelStore
from torchrelabel.store.record import check_numbers, unpack_record

__all__ = ["Verification", "verify"]

_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass
class Verification:
    """What was found in a store.

    Attributes:
        records: Label maps that could be read and are sound.
        damaged: What is wrong, and with which label map: its key; where a key cannot be known, LMDB's in hex, as
            ``digest 01...``, or ``failure 0066...`` for a note that an image failed; or the name of a whole shard.
        failures: Key -> why the annotator could make no map of the image.
        grids: ``(h, w)`` -> how many maps have it.
        missing: Images that were asked for and have neither a map nor a failure, sorted.
        surplus: Maps of images that were not asked for, sorted.
        incomplete: Whether a writer never finished.
        miscounted: What the header says of the images, where that is wrong; otherwise empty.
    """

    records: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    grids: dict[tuple[int, int], int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    incomplete: bool = False
    miscounted: str = ""

    @property
    def sound(self) -> bool:
        """Whether every map can be relied on and none is missing. Images that failed are no fault of the store."""
        return not (self.damaged or self.missing or self.incomplete or self.miscounted)


def verify(
    store: LabelStore,
    images: Iterable[str] | None = None,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Verification:
    """Read every label map of a store and report what is wrong.

    Args:
        store: Which store.
        images: The keys that it should hold, such as those of a folder. None to ask only whether it is sound.
        progress: Wraps the iteration over the keys, as ``tqdm`` does.

    Returns:
        The findings. Damage is reported, not raised.
    """
    found = Verification(incomplete=not store.header.complete)
    keys = set(progress(_check(store, found)))
    if store.header.complete:
        found.miscounted = _miscounted(store, keys, found.failures)
    if images is not None:
        asked = set(images)
        for key in asked - keys - found.failures.keys():
            try:
                encode_key(key)
            except ValueError as error:  # the annotator could not put it into the store, not even as a failure
                found.failures[key] = str(error)
        found.missing = sorted(asked - keys - found.failures.keys())
        found.surplus = sorted(keys - asked)
    found.damaged = dict(sorted(found.damaged.items()))
    found.failures = dict(sorted(found.failures.items()))
    return found


def _check(store: LabelStore, found: Verification) -> Iterator[str]:
    """Note what is found, shard by shard; yield the key of every label map, sound or not."""
    for shard in range(store.header.shards):
        try:
            yield from _check_shard(store, shard, found)
        except StoreError as error:
            found.damaged[shard_file(shard)] = str(error)


def _check_shard(store: LabelStore, shard: int, found: Verification) -> Iterator[str]:
    header = store.header
    for lmdb_key, value in store._walk(shard, BOOKKEEPING_PREFIX, values=True):  # failures are the first
        is_failure = lmdb_key.startswith(FAILURE_PREFIX)
        if lmdb_key.startswith(BOOKKEEPING_PREFIX) and not is_failure:
            continue
        try:
            name, content = _split(lmdb_key, memoryview(value))
        except ValueError as error:
            found.damaged[f"{'failure' if is_failure else 'digest'} {lmdb_key.hex()}"] = str(error)
            continue
        key = decode_key(name)
        if not is_failure:
            yield key
        try:
            if (right := shard_of(encode_key(key), header.shards)) != shard:
                raise ValueError(f"it lies in shard {shard}, and its key belongs into shard {right}")
            if is_failure:
                found.failures[key] = decode_key(bytes(content))
                continue
            if key in found.failures:
                raise ValueError("it has a map and is noted as a failure too")
            # Under the key where it lies, and not by looking that up: a damaged key would lead nowhere.
            record = unpack_record(header, name, content)
            check_numbers(header, record)
        except (ValueError, DamagedRecord) as error:
            found.damaged[key] = str(error)
            continue
        found.records += 1
        _, rows, columns = record.scores.shape
        found.grids[rows, columns] = found.grids.get((rows, columns), 0) + 1


def _split(lmdb_key: bytes, value: memoryview) -> tuple[bytes, memoryview]:
    """The key's bytes, which stand in the value where LMDB's key is a digest, and what lies under it."""
    if lmdb_key[:1] not in (BOOKKEEPING_PREFIX, DIGEST_PREFIX):
        return lmdb_key, value
    name, content = split_named(value)
    if lmdb_key not in (record_key(name), failure_key(name)):
        raise ValueError(f"it lies under another digest than that of its key {decode_key(name)!r}")
    return name, content


def _miscounted(store: LabelStore, keys: set[str], failures: dict[str, str]) -> str:
    dataset, there = store.header.dataset, keys | failures.keys()
    count, digest = dataset.get("count"), dataset.get("fingerprint")
    if not isinstance(count, int):
        return ""
    if len(there) < count:
        return (
            f"the header speaks of {count} images, and there are {len(keys)} label maps and "
            f"{len(failures)} images that failed"
        )
    # More than were counted are no fault: images are deleted, and their maps stay.
    comparable = len(there) == count and isinstance(digest, str) and _SHA256.fullmatch(digest)
    if comparable and fingerprint(there) != digest:
        return (
            f"the header speaks of {count} images, and those of the {len(keys)} label maps and {len(failures)} "
            f"failures are not those of which the header has the fingerprint: at least one was lost"
        )
    return ""
