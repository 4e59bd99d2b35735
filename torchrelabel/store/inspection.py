"""inspect: looks into the files of a store, in a process of its own, since LMDB may end it; `verify` asks."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import msgpack

from torchrelabel.errors import StoreError
from torchrelabel.store.layout import (
    BOOKKEEPING_PREFIX,
    DIGEST_PREFIX,
    FAILURE_PREFIX,
    Buffer,
    decode_key,
    encode_key,
    failure_key,
    record_key,
    shard_file,
    shard_of,
    split_named,
)
from torchrelabel.store.parts import Part, long_name
from torchrelabel.store.reader import LabelStore
from torchrelabel.store.record import check_numbers, unpack_record

Say = Callable[[str, Any], None]

_RECORDS_AT_ONCE = 256


def main() -> None:
    """Inspect the files of a store that the command line names, and write what is found to stdout as msgpack."""
    path, *files = sys.argv[1:]
    out = sys.stdout.buffer

    def say(kind: str, value: Any) -> None:
        out.write(msgpack.packb((kind, value)))
        out.flush()

    inspect(path, [(int(shard), int(part)) for shard, part in (file.split(":") for file in files)], say)


def inspect(path: str | os.PathLike[str], files: Sequence[tuple[int, int]], say: Say) -> None:
    """Say what is in some files of a store, each given as the numbers of its shard and of its part.

    ``records`` come as lists of ``(key's bytes, what is wrong or "", h, w)``, ``failures`` as lists of ``(key's bytes,
    reason)``, what is ``damaged`` as ``(its name, what is wrong)``, and ``file`` says that one is done with.
    """
    store = LabelStore(path)
    before: _KeysBefore | None = None
    for shard, part in files:
        if before is None or before.shard != shard:
            before = _KeysBefore(store, shard)
        try:
            _Inspector(store, shard, part, before.up_to(part), say).inspect()
        except StoreError as error:
            say("damaged", (shard_file(shard, part).encode(), str(error)))
        say("file", (shard, part))


class _KeysBefore:
    """The keys of the label maps in the parts of a shard that come before the one being inspected.

    A hash of each, since a look into every part for every key takes hours where there are many parts.
    """

    def __init__(self, store: LabelStore, shard: int) -> None:
        self.shard = shard
        self._store = store
        self._parts: list[Part] = []
        self._hashes: set[int] = set()

    def up_to(self, part: int) -> _KeysBefore:
        """The same, once the parts before this one are among them."""
        while len(self._parts) < part:
            earlier = Part(self._store.path, self._store.newest, self.shard, len(self._parts))
            self._parts.append(earlier)
            with contextlib.suppress(StoreError):  # what is damaged was said when that part was inspected
                self._hashes.update(hash(key) for key, _ in earlier.walk(BOOKKEEPING_PREFIX))
        return self

    def __contains__(self, name: bytes) -> bool:
        return hash(record_key(name)) in self._hashes and any(part.holds(name) for part in self._parts)


class _Inspector:
    """Looks into one LMDB file."""

    def __init__(self, store: LabelStore, shard: int, part: int, before: _KeysBefore, say: Say) -> None:
        self._header = store.header
        self._shard = shard
        self._say = say
        self._is_last = part + 1 == store.part_count(shard)
        self._part = Part(store.path, store.newest, shard, part)
        self._before = before
        self._failed: set[bytes] = set()
        self._failures = 0
        self._records = 0
        self._sound = True
        self._said: list[tuple[bytes, str, int, int]] = []

    def inspect(self) -> None:
        """Say what is there, entry by entry."""
        before = self._part.about() if self._header.in_blocks else None
        try:
            # Failures are among the first; blocks, which come before them, are read where records lie in them.
            for lmdb_key, value in self._part.walk(BOOKKEEPING_PREFIX, values=not self._header.in_blocks):
                self._inspect_entry(lmdb_key, value)
        finally:
            self._say("records", self._said)
        # What cannot be read may be what is missing, and a writer may have added to what was counted.
        if before is not None and self._sound:
            about = self._part.about()
            if about == before and (about.records, about.failures) != (self._records, self._failures):
                raise StoreError(
                    f"it says that it holds {about.records} label maps and {about.failures} failures, and "
                    f"{self._records} and {self._failures} are found"
                )

    def _inspect_entry(self, lmdb_key: bytes, value: bytes) -> None:
        is_failure = lmdb_key.startswith(FAILURE_PREFIX)
        is_record = not lmdb_key.startswith(BOOKKEEPING_PREFIX)
        self._failures += is_failure
        self._records += is_record
        if not (is_failure or is_record):
            return
        with self._part.environment.reading() as transaction:
            there = transaction.get(lmdb_key)
            if there is None:
                place = f"{'failure' if is_failure else 'key'} {lmdb_key.hex()}"
                self._damaged(place.encode(), "it is walked to, and not found when it is looked up")
                return
            if value and bytes(there) != value:
                self._damaged(f"key {lmdb_key.hex()}".encode(), "it has two values")
                return
            try:
                name = self._name(lmdb_key, there)
            except ValueError as error:
                self._damaged(f"{'failure' if is_failure else 'digest'} {lmdb_key.hex()}".encode(), str(error))
                return
            if is_failure:
                reason = bytes(split_named(there)[1])
                problem = self._misplaced(name)
                if not problem and name in self._before:
                    problem = "it has a map and is noted as a failure too"
                if problem:
                    self._damaged(name, problem)
                else:
                    self._failed.add(name)
                    if self._is_last:
                        self._say("failures", [(name, reason)])
                return
            rows = columns = 0
            problem = self._misplaced(name)
            if not problem and name in self._failed:
                problem = "it has a map and is noted as a failure too"
            if not problem and name in self._before:
                problem = "it has a map in two files"
            if not problem:
                try:
                    record = unpack_record(self._header, name, self._part.bytes_at(transaction, name, there))
                    check_numbers(self._header, record)
                    _, rows, columns = record.scores.shape
                except (ValueError, StoreError) as error:
                    problem = str(error)
        self._sound = self._sound and not problem
        self._said.append((name, problem, rows, columns))
        if len(self._said) >= _RECORDS_AT_ONCE:
            self._say("records", self._said)
            self._said = []

    def _damaged(self, name: bytes, problem: str) -> None:
        self._sound = False
        self._say("damaged", (name, problem))

    def _name(self, lmdb_key: bytes, value: Buffer) -> bytes:
        """The key's bytes, which stand in the value where LMDB's key is a digest."""
        if lmdb_key[:1] not in (BOOKKEEPING_PREFIX, DIGEST_PREFIX):
            return lmdb_key
        is_failure = lmdb_key.startswith(FAILURE_PREFIX)
        name = split_named(value)[0] if is_failure else long_name(self._header, value)
        if lmdb_key not in (record_key(name), failure_key(name)):
            raise ValueError(f"it lies under another digest than that of its key {decode_key(name)!r}")
        return name

    def _misplaced(self, name: bytes) -> str:
        """Why a key belongs elsewhere, or nowhere; empty if it does not."""
        try:
            right = shard_of(encode_key(decode_key(name)), self._header.shards)
        except ValueError as error:
            return str(error)
        return "" if right == self._shard else f"it lies in shard {self._shard}, and its key belongs into shard {right}"
