"""LabelStore: reads the label maps of a store by the path of their image."""

from __future__ import annotations

import heapq
import os
import posixpath
from collections.abc import Iterator, Mapping
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchrelabel.errors import DamagedRecord, MissingLabelMap
from torchrelabel.store.environments import Environment, open_environment
from torchrelabel.store.header import StoreHeader, read_header
from torchrelabel.store.layout import (
    BOOKKEEPING_PREFIX,
    DIGEST_PREFIX,
    FAILURE_PREFIX,
    FIRST_IMAGE_KEY,
    decode_key,
    encode_key,
    failure_key,
    is_long,
    record_key,
    shard_file,
    shard_of,
    split_named,
)
from torchrelabel.store.record import LabelRecord, unpack_record

if TYPE_CHECKING:
    import lmdb

# Keys are walked in transactions of this many, with no more bytes of values than these and one, so that none lives long
# enough for a writer to reuse its pages: where that happens LMDB may end the process by an assertion.
_KEYS_AT_ONCE = 100
_BYTES_AT_ONCE = 256 * 1024

# How many keys `nearest` looks at that begin like the one asked for.
_NAMES_TO_TRY = 1000

# How many top-level folders `nearest` tries a key in.
_FOLDERS_TO_TRY = 1000


class LabelStore(Mapping[str, LabelRecord]):
    """A label store on disk, read by the path of an image; read-only.

    Making one reads only the header. The files are opened by the first read in each process, so that a store may be
    handed to DataLoader workers in any way: it survives fork, and is pickled as its path.

    Args:
        path: Directory of the store.

    Raises:
        StoreError: If ``path`` is no label store that this release understands.

    Example:
        >>> import numpy as np, tempfile
        >>> from torchrelabel.store import LabelStoreWriter
        >>> path = tempfile.mkdtemp() + "/maps.lmdb"
        >>> with LabelStoreWriter(path, num_classes=10, top_k=2) as writer:
        ...     writer.put("cat/1.jpg", np.ones((2, 7, 5), np.float32), np.indices((2, 7, 5))[0])
        >>> store = LabelStore(path)
        >>> len(store), list(store), store.header.num_classes
        (1, ['cat/1.jpg'], 10)
        >>> record = store["cat/1.jpg"]
        >>> record.scores.shape, record.classes.dtype
        ((2, 7, 5), dtype('int32'))
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, since a worker process may start in another directory.
        self._path = Path(os.path.abspath(path))
        self._header = read_header(self._path)
        self._pid = os.getpid()
        self._environments: dict[int, Environment] = {}

    @property
    def path(self) -> Path:
        """Directory of the store."""
        return self._path

    @property
    def header(self) -> StoreHeader:
        """What all records share, as it was when this object was made."""
        return self._header

    @property
    def failures(self) -> dict[str, str]:
        """The images that have no label map because they could not be annotated, with the reason of each."""
        found = {}
        for shard in range(self._header.shards):
            for key, value in self._walk(shard, FAILURE_PREFIX, values=True):
                if not key.startswith(FAILURE_PREFIX):
                    break
                try:
                    name, reason = split_named(memoryview(value))
                except ValueError as error:
                    raise DamagedRecord(f"{self._file(shard)}, failure {key.hex()}: {error}") from None
                found[name] = decode_key(bytes(reason))
        return {decode_key(name): found[name] for name in sorted(found)}

    def __getitem__(self, key: str) -> LabelRecord:
        record = self._read(key)
        if record is None:
            raise MissingLabelMap(self._why_missing(key))
        return record

    def get(self, key: str, default: Any = None) -> Any:
        """The record of an image, or ``default``; cheap where there is none, since nobody looks for near keys."""
        record = self._read(key)
        return default if record is None else record

    def _read(self, key: str) -> LabelRecord | None:
        try:
            name = encode_key(key)
        except ValueError:  # what can be no key is in no store
            return None
        lmdb_key = record_key(name)

        def look(transaction: lmdb.Transaction) -> LabelRecord | None:
            value = transaction.get(lmdb_key)
            return None if value is None else unpack_record(self._header, name, self._record(name, value))

        environment = self._environment(shard_of(name, self._header.shards))
        try:
            return environment.read(look)
        except DamagedRecord as error:
            raise DamagedRecord(
                f"{environment.path}, label map of {key!r}: {error}. Copy the store again, or annotate it again"
            ) from None

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        try:
            name = encode_key(key)
        except ValueError:
            return False
        environment = self._environment(shard_of(name, self._header.shards))
        return environment.read(lambda transaction: transaction.get(record_key(name)) is not None)

    def __iter__(self) -> Iterator[str]:
        """The keys of all label maps, in the order of their bytes."""
        shards = range(self._header.shards)
        # Keys that lie under a digest are few, and not in order.
        long = sorted(name for shard in shards for name in self._long_names(shard))
        names = [(key for key, _ in self._walk(shard, FIRST_IMAGE_KEY)) for shard in shards]
        return (decode_key(name) for name in heapq.merge(long, *names))

    def __len__(self) -> int:
        return sum(self._environment(shard).read(_count_records) for shard in range(self._header.shards))

    def nearest(self, key: str, n: int = 3) -> list[str]:
        """Keys of this store that a missing key was perhaps meant to be, the likeliest first.

        These are: the key without its first folders, or in another case; the same name with another extension; the key
        inside each top-level folder of the store, or with its first folder exchanged for one; the neighbours in sorted
        order.

        Args:
            key: A key that the store does not hold.
            n: Largest number of suggestions.
        """
        found: dict[str, None] = {}
        for candidate in self._candidates(key.replace("\\", "/").lstrip("/")):
            found[candidate] = None
            if len(found) >= n:
                break
        return list(found)

    def close(self) -> None:
        """Give the files back; the next read opens them again."""
        self._environments = {}

    def __reduce__(self) -> tuple[type[LabelStore], tuple[str]]:
        return type(self), (os.fspath(self._path),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({os.fspath(self._path)!r})"

    # A Mapping compares by reading every value; a store is equal to itself, as an open file is.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _environment(self, shard: int) -> Environment:
        if self._pid != os.getpid():  # what a forked child has inherited was closed by torchrelabel.store.environments
            self._environments = {}
            self._pid = os.getpid()
        environment = self._environments.get(shard)
        if environment is None:
            environment = self._environments[shard] = open_environment(self._file(shard))
        return environment

    def _file(self, shard: int) -> Path:
        return self._path / shard_file(shard)

    @staticmethod
    def _record(name: bytes, value: Any) -> memoryview:
        if not is_long(name):
            return value
        try:
            stored, record = split_named(value)
        except ValueError as error:
            raise DamagedRecord(str(error)) from None
        if stored != name:
            raise DamagedRecord(f"its digest leads to the key {decode_key(stored)!r}")
        return record

    def _walk(self, shard: int, start: bytes, *, values: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """LMDB's keys from ``start`` on, in order, with their values if wanted."""
        environment = self._environment(shard)
        while batch := environment.read(partial(_some_from, start, values)):
            yield from batch
            start = batch[-1][0] + b"\x00"

    def _long_names(self, shard: int) -> Iterator[bytes]:
        for key, value in self._walk(shard, DIGEST_PREFIX, values=True):
            if not key.startswith(DIGEST_PREFIX):
                return
            try:
                yield split_named(memoryview(value))[0]
            except ValueError as error:
                raise DamagedRecord(f"{self._file(shard)}, digest {key.hex()}: {error}") from None

    def _failure(self, name: bytes) -> str | None:
        environment = self._environment(shard_of(name, self._header.shards))
        value = environment.read(lambda transaction: _copied(transaction.get(failure_key(name))))
        return None if value is None else decode_key(value[2 + len(name) :])

    def _why_missing(self, key: str) -> str:
        message = f"no label map of {key!r} in {self._path}"
        try:
            name = encode_key(key)
        except ValueError as error:
            return f"{message}: {error}"
        reason = self._failure(name)
        if reason is not None:
            return f"{message}: it could not be annotated ({reason})"
        nearest = self.nearest(key)
        if nearest:
            message += f"; nearest keys: {', '.join(map(repr, nearest))}"
        else:
            message += ", which is empty"
        if not self._header.complete:
            message += ". The store is incomplete: run the same annotate command again to continue it"
        return message

    def _candidates(self, key: str) -> Iterator[str]:
        folders = key.split("/")
        for start in range(len(folders)):
            shorter = "/".join(folders[start:])
            for candidate in (shorter, shorter.lower(), shorter.upper()):
                if candidate in self:
                    yield candidate
        yield from self._same_stem(key)
        for folder in self._top_folders():
            for inner in dict.fromkeys([key, "/".join(folders[1:])]):
                if inner and f"{folder}/{inner}" in self:
                    yield f"{folder}/{inner}"
        yield from self._neighbours(key)

    def _same_stem(self, key: str) -> Iterator[str]:
        stem, _ = posixpath.splitext(key)
        prefix = stem.encode("utf-8", "surrogateescape") + b"."
        walks = [self._walk(shard, prefix) for shard in range(self._header.shards)]
        # `a.b.jpg` lies between `a.JPG` and `a.png`, and has another stem than they have.
        for name, _ in islice(heapq.merge(*walks), _NAMES_TO_TRY):
            if not name.startswith(prefix):
                return
            found = decode_key(name)
            if posixpath.splitext(found)[0] == stem:
                yield found

    def _top_folders(self) -> Iterator[str]:
        start = FIRST_IMAGE_KEY
        for _ in range(_FOLDERS_TO_TRY):
            name = self._first_from(start)
            if name is None:
                return
            folder, slash, _ = name.partition(b"/")
            if slash:
                yield decode_key(folder)
            # "0" is the byte after "/", so this is behind all that the folder holds.
            start = folder + b"0" if slash else name + b"\x00"

    def _first_from(self, start: bytes) -> bytes | None:
        """The first key at or after ``start``."""
        found = []
        for shard in range(self._header.shards):
            found += self._environment(shard).read(partial(_around, start))[:1]
        return min((name for name in found if name), default=None)

    def _neighbours(self, key: str) -> Iterator[str]:
        name = key.encode("utf-8", "surrogateescape")
        around: list[bytes] = []
        for shard in range(self._header.shards):
            around += self._environment(shard).read(partial(_around, name or FIRST_IMAGE_KEY))
        around = [near for near in around if near >= FIRST_IMAGE_KEY]
        around.sort(key=lambda near: (-_shared(near, name), near))
        return map(decode_key, around)


def _some_from(start: bytes, values: bool, transaction: lmdb.Transaction) -> list[tuple[bytes, bytes]]:
    """The next of LMDB's keys from ``start`` on, with their values if wanted; none at the end."""
    cursor = transaction.cursor()
    some: list[tuple[bytes, bytes]] = []
    size = 0
    if cursor.set_range(start):
        for key in cursor.iternext(values=False):
            some.append((bytes(key), bytes(cursor.value()) if values else b""))
            size += len(some[-1][1])
            if len(some) == _KEYS_AT_ONCE or size >= _BYTES_AT_ONCE:
                break
    return some


def _count_records(transaction: lmdb.Transaction) -> int:
    total = int(transaction.stat()["entries"])
    cursor = transaction.cursor()
    if cursor.first():
        for key in cursor.iternext(values=False):
            if bytes(key[:1]) != BOOKKEEPING_PREFIX:
                break
            total -= 1
    return total


def _around(start: bytes, transaction: lmdb.Transaction) -> list[bytes]:
    """The first of LMDB's keys at or after ``start``, empty if there is none, and the last one before it, if any."""
    cursor = transaction.cursor()
    after = bytes(cursor.key()) if cursor.set_range(start) else b""
    before = cursor.prev() if after else cursor.last()
    return [after, *([bytes(cursor.key())] if before else [])]


def _copied(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes two keys begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
