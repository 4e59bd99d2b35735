"""Part: one LMDB file of a shard, and where in it records, failures and counts lie."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from torchrelabel.errors import DamagedRecord, StoreError
from torchrelabel.store.environments import Environment, open_environment
from torchrelabel.store.header import StoreHeader
from torchrelabel.store.layout import (
    ABOUT_KEY,
    BLOCK_PREFIX,
    BOOKKEEPING_PREFIX,
    DIGEST_PREFIX,
    FAILURE_PREFIX,
    MAX_LMDB_KEY_BYTES,
    About,
    Buffer,
    block_key,
    block_number,
    decode_key,
    failure_key,
    is_long,
    name_behind_location,
    record_key,
    shard_file,
    split_named,
    unpack_about,
    unpack_location,
)
from torchrelabel.store.pages import DamagedPage, PageReader
from torchrelabel.store.record import LabelRecord, unpack_record

if TYPE_CHECKING:
    import lmdb

# Keys are walked in transactions of this many, with no more bytes of values than these and one, so that a slow walk
# keeps no writer from using pages again.
KEYS_AT_ONCE = 1000
BYTES_AT_ONCE = 256 * 1024


class Part:
    """One LMDB file of a store, for reading.

    Args:
        directory: Of the store.
        header: Of the store.
        shard: Number of the shard.
        part: Number of the file in its shard.

    Raises:
        StoreError: If the file is missing, damaged, or belongs to another store or shard.
    """

    def __init__(self, directory: Path, header: StoreHeader, shard: int, part: int = 0) -> None:
        self.header = header
        self.shard = shard
        self.path = directory / shard_file(shard, part)
        if header.in_blocks and not header.parts[shard]:
            raise StoreError(f"{self.path} is missing: its writer has not begun")
        self.environment: Environment = open_environment(self.path, final=header.is_final(shard, part))
        self._reads_blocks = header.in_blocks and self._pages_can_be_read()
        if header.in_blocks:
            about = self.about()
            if (about.identity.hex(), about.shard, about.part) != (header.identity, shard, part):
                raise StoreError(
                    f"{self.path} belongs to another store or shard: it says that it is part {about.part} of shard "
                    f"{about.shard} of store {about.identity.hex()[:8]}, and part {part} of shard {shard} of store "
                    f"{header.identity[:8]} belongs there. Copy the whole store again"
                )

    def about(self) -> About:
        """What the file says of itself, as of the newest commit."""
        with self.environment.reading() as transaction:
            value = transaction.get(ABOUT_KEY)
            try:
                return unpack_about(b"" if value is None else value)
            except ValueError as error:
                raise StoreError(f"{self.path} is no shard of a label store, or it is damaged: {error}") from None

    def record(self, name: bytes) -> LabelRecord | None:
        """The label map under a key's bytes, or None.

        Raises:
            DamagedRecord: If what lies there is none.
        """
        environment, key = self.environment, record_key(name)
        # What `reading` does, without its calls: this is read for every sample of a training run.
        with environment.lock:
            try:
                transaction = environment.look()
                try:
                    value = transaction.get(key)
                    if value is None and environment.final:
                        transaction = environment.look(anew=True)
                        value = transaction.get(key)
                    if value is None:
                        return None
                    record = self.bytes_at(transaction, name, value)
                    if not self._reads_blocks:  # the bytes are LMDB's, which they are no longer behind the transaction
                        return unpack_record(self.header, name, record)
                finally:
                    environment.leave(transaction)
            except ValueError as error:
                raise DamagedRecord(str(error)) from None
            except Exception as error:
                if (told := environment.read_error(error)) is error:
                    raise
                raise told from error
        return unpack_record(self.header, name, record)

    def bytes_at(self, transaction: lmdb.Transaction, name: bytes, value: Buffer) -> memoryview:
        """The record of a key, given the value under its LMDB key in a transaction, and as long as that lasts.

        Raises:
            ValueError: If the value leads nowhere, or to another key.
            StoreError: If the file is damaged or too short.
        """
        if self._reads_blocks and len(name) <= MAX_LMDB_KEY_BYTES:
            return memoryview(self._pread(value))
        record = record_bytes(self.header, transaction, name, value)
        return memoryview(bytes(record)) if self._reads_blocks else record

    def _pread(self, value: Buffer) -> bytes:
        """The record of which this is the place, in one request of both its pages and without mapping them.

        Raises:
            ValueError: If the place is none.
            StoreError: If the file is damaged or too short.
        """
        environment = self.environment
        block, start, length = unpack_location(value)
        if not environment.blocks:
            environment.blocks = self._blocks()
        offset, size = environment.blocks.get(block, (0, -1))
        if size < start + length:
            raise ValueError(_no_place(block, start, length, size if size >= 0 else None))
        record = os.pread(environment.descriptor, length, offset + start)
        if len(record) < length:
            raise self._damaged(f"block {block} ends before byte {start + length}")
        return record

    def _blocks(self) -> dict[int, tuple[int, int]]:
        """Offset in the file and size of each block."""
        try:
            places = PageReader(self.environment.pread).places(BLOCK_PREFIX)
            of_blocks = takewhile(lambda place: place[0].startswith(BLOCK_PREFIX), places)
            return {block_number(key): (offset, size) for key, offset, size in of_blocks}
        except DamagedPage as error:
            raise self._damaged(error) from None

    def raw_record(self, name: bytes) -> bytes | None:
        """The bytes of the record under a key's bytes, unchecked, or None."""
        with self.environment.reading() as transaction:
            value = transaction.get(record_key(name))
            try:
                return None if value is None else bytes(self.bytes_at(transaction, name, value))
            except ValueError as error:
                raise DamagedRecord(f"{self.path}, label map of {decode_key(name)!r}: {error}") from None

    def holds(self, name: bytes) -> bool:
        """Whether there is a label map under a key's bytes; reads none."""
        environment = self.environment
        with environment.reading() as transaction:
            if transaction.get(record_key(name)) is not None:
                return True
            return environment.final and environment.look(anew=True).get(record_key(name)) is not None

    def count(self) -> int:
        """The number of label maps."""
        if self.header.in_blocks:
            return self.about().records
        with self.environment.reading() as transaction:
            total = int(transaction.stat()["entries"])
        walked = self.walk(BOOKKEEPING_PREFIX)
        return total - sum(1 for _ in takewhile(lambda entry: entry[0].startswith(BOOKKEEPING_PREFIX), walked))

    def failure(self, name: bytes) -> str | None:
        """Why there is no label map under a key's bytes, if that was noted."""
        with self.environment.reading() as transaction:
            value = transaction.get(failure_key(name))
            return None if value is None else decode_key(bytes(value[2 + len(name) :]))

    def failures(self, *, lenient: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """The bytes of all keys that failed, with the reason of each.

        Args:
            lenient: Whether to leave out what cannot be read.

        Raises:
            DamagedRecord: If what lies there is none.
        """
        for key, value in self.walk(FAILURE_PREFIX, values=True):
            if not key.startswith(FAILURE_PREFIX):
                return
            try:
                name, reason = split_named(memoryview(value))
            except ValueError as error:
                if lenient:
                    continue
                raise DamagedRecord(f"{self.path}, failure {key.hex()}: {error}") from None
            yield name, bytes(reason)

    def long_names(self) -> Iterator[bytes]:
        """The bytes of all keys that are too long for LMDB, in no order."""
        for key, value in self.walk(DIGEST_PREFIX, values=True):
            if not key.startswith(DIGEST_PREFIX):
                return
            try:
                yield long_name(self.header, memoryview(value))
            except ValueError as error:
                raise DamagedRecord(f"{self.path}, digest {key.hex()}: {error}") from None

    def walk(self, start: bytes, *, values: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """LMDB's keys from ``start`` on, in order, with their values if wanted.

        Raises:
            StoreError: If the file is damaged: keys in no order would make a walk go round for ever.
        """
        if self._pages_can_be_read():
            try:
                yield from PageReader(self.environment.pread).walk(start, values=values)
            except DamagedPage as error:
                raise self._damaged(error) from None
            return
        while batch := self._some_from(start, values):
            for key, value in batch:
                if key < start:
                    raise self._damaged(f"after {start[:60]!r} comes {key[:60]!r}, which is not in order")
                yield key, value
                start = key + b"\x00"

    def around(self, start: bytes) -> list[bytes]:
        """LMDB's first key at or after ``start``, empty if there is none, and the last one before it, if any.

        Raises:
            StoreError: If the file is damaged.
        """
        if self._pages_can_be_read():
            try:
                pages = PageReader(self.environment.pread)
                after, before = next((key for key, _ in pages.walk(start)), b""), pages.last_before(start)
            except DamagedPage as error:
                raise self._damaged(error) from None
            return [after, *([before] if before is not None else [])]
        with self.environment.reading() as transaction:
            cursor = transaction.cursor()
            found = [bytes(cursor.key()) if cursor.set_range(start) else b""]
            behind = cursor.prev() if found[0] else cursor.last()
            return found + ([bytes(cursor.key())] if behind else [])

    def _pages_can_be_read(self) -> bool:
        """Whether walks go through pages that are checked, and not through LMDB, which trusts them."""
        return self.environment.final and hasattr(os, "pread") and PageReader.understands()

    def _damaged(self, why: object) -> StoreError:
        return StoreError(f"{self.path} is damaged: {why}. Copy it again if it was copied, or annotate again")

    def _some_from(self, start: bytes, values: bool) -> list[tuple[bytes, bytes]]:
        some: list[tuple[bytes, bytes]] = []
        size = 0
        with self.environment.reading() as transaction:
            cursor = transaction.cursor()
            if not cursor.set_range(start):
                return some
            if not values:
                keys = cursor.iternext(values=False)
                return [(bytes(key), b"") for key, _ in zip(keys, range(KEYS_AT_ONCE), strict=False)]
            for key, value in cursor.iternext():
                some.append((bytes(key), bytes(value)))
                size += len(some[-1][1])
                if len(some) == KEYS_AT_ONCE or size >= BYTES_AT_ONCE:
                    break
        return some


def record_bytes(header: StoreHeader, transaction: lmdb.Transaction, name: bytes, value: Buffer) -> memoryview:
    """The record of a key, given the value under its LMDB key.

    Raises:
        ValueError: If the value leads nowhere, or to another key.
    """
    if is_long(name) and (found := long_name(header, value)) != name:
        raise ValueError(f"its digest leads to the key {decode_key(found)!r}")
    if not header.in_blocks:
        return split_named(value)[1] if is_long(name) else memoryview(value)
    block, start, length = unpack_location(value)
    content = transaction.get(block_key(block))
    if content is None or len(content) < start + length:
        raise ValueError(_no_place(block, start, length, None if content is None else len(content)))
    return memoryview(content)[start : start + length]


def _no_place(block: int, start: int, length: int, size: int | None) -> str:
    there = "which is missing" if size is None else f"which has {size}"
    return f"it lies at bytes {start} to {start + length} of block {block}, {there}"


def long_name(header: StoreHeader, value: Buffer) -> bytes:
    """The key that lies under a digest, given the value there.

    Raises:
        ValueError: If the value is too short to hold one.
    """
    if not header.in_blocks:
        return split_named(value)[0]
    unpack_location(value)
    return name_behind_location(value)
