"""Names, keys and limits of a label store: where each label map lies, before any codec looks at it."""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

FORMAT_NAME = "torchrelabel.store"
FORMAT_VERSION = 3  # 1: without scores for the whole image; 2: with them, each record a value of its own
FIRST_VERSION_IN_BLOCKS = 3

HEADER_FILE = "header.msgpack"
HEADER_LOCK_FILE = "header.lock"
SUMS_FILE = "SHA256SUMS"

MAX_HEADER_BYTES = 16 * 1024 * 1024
MAX_CLASSES = 2**31 - 1  # class indices are returned as int32
MAX_SHARDS = 4096
MAX_PARTS = 2**16 - 1  # files of one shard
MAX_GRID_SIDE = 2**16 - 1  # h and w are 16 bits wide
MAX_IMAGE_SIDE = 2**32 - 1
MAX_VALUES = 2**26  # K x h x w of one record
MAX_KEY_BYTES = 2**16 - 1  # a key's length is 16 bits wide where it stands in a value
MAX_LMDB_KEY_BYTES = 511  # LMDB's own limit, as it is compiled by default

BOOKKEEPING_PREFIX = b"\x00"
ABOUT_KEY = b"\x00a"
BLOCK_PREFIX = b"\x00b"
FAILURE_PREFIX = b"\x00f"
DIGEST_PREFIX = b"\x01"
FIRST_IMAGE_KEY = b"\x02"

_KEY_LENGTH = struct.Struct("<H")
_BLOCK_KEY = struct.Struct(">2sI")
_LOCATION = struct.Struct("<3I")
_ABOUT = struct.Struct("<16s2I2QI")
ABOUT_BYTES_OF_FILE = 24  # identity, shard and part; what comes after counts what was committed


Buffer = memoryview | bytes


class Location(NamedTuple):
    """Where a record lies: its block, its first byte in there, its length."""

    block: int
    start: int
    length: int


class About(NamedTuple):
    """What an LMDB file says of itself; written anew by every commit."""

    identity: bytes
    shard: int
    part: int
    records: int = 0
    failures: int = 0
    blocks: int = 0


def shard_file(shard: int, part: int = 0) -> str:
    """Name of an LMDB file of one shard, inside the store's directory."""
    return f"shard-{shard:05d}-{part:05d}.mdb" if part else f"shard-{shard:05d}.mdb"


def shard_files(directory: Path, shard: int) -> list[Path]:
    """The LMDB files of one shard that are there."""
    return sorted({*directory.glob(shard_file(shard)), *directory.glob(f"shard-{shard:05d}-?????.mdb")})


def shard_lock_file(shard: int) -> str:
    """Name of the file that the writer of one shard locks."""
    return f"shard-{shard:05d}.lock"


def is_store_file(name: str) -> bool:
    """Whether a file of this name belongs to a store.

    A store without a header may hold some already: a writer makes its locks first, and may have been stopped there.
    """
    return name.startswith(("header.", "shard-"))


def encode_key(key: str) -> bytes:
    """Turn an image's path into the bytes that name it in a store.

    Args:
        key: Path relative to the dataset root, ``/`` separators, extension kept. File names that are not UTF-8
            survive, since they carry their odd bytes as surrogates (``surrogateescape``, as ``os.fsdecode`` does).

    Raises:
        TypeError: If ``key`` is no string.
        ValueError: If ``key`` is empty, absolute, longer than 65535 bytes, holds a NUL, or begins with the byte 0x01.
    """
    if not isinstance(key, str):
        raise TypeError(f"a key is the path of an image as a string, got {type(key).__name__} {key!r}")
    if not key:
        raise ValueError("a key is the path of an image relative to the dataset root, got an empty string")
    if key[0] == "/":
        raise ValueError(f"a key is a path relative to the dataset root, got the absolute path {key!r}")
    if "\x00" in key or key[0] == "\x01":
        raise ValueError(f"a key must not hold a NUL nor begin with the byte 0x01, got {key!r}")
    try:
        name = key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ValueError(f"a key must be text that UTF-8 can hold, got {key!r}: {error.reason}") from None
    if len(name) > MAX_KEY_BYTES:
        raise ValueError(f"a key has at most {MAX_KEY_BYTES} bytes, got {len(name)} bytes: {key[:60]!r}...")
    return name


def can_be_key(key: str) -> bool:
    """Whether `encode_key` takes a path."""
    try:
        encode_key(key)
    except ValueError:
        return False
    return True


def decode_key(name: bytes) -> str:
    """Turn the bytes that name an image back into its path; the inverse of `encode_key`."""
    return name.decode("utf-8", "surrogateescape")


def shard_of(key: str | bytes, shards: int) -> int:
    """Number of the shard that holds an image's label map: ``crc32(key) % shards``.

    Example:
        >>> shard_of("n01440764/n01440764_10026.JPEG", 8)
        5
    """
    name = key if isinstance(key, bytes) else encode_key(key)
    return zlib.crc32(name) % shards


def fingerprint(keys: Iterable[str]) -> str:
    """Return the SHA-256 over the sorted keys, each followed by a NUL, as hex digits."""
    digest = hashlib.sha256()
    for key in sorted(keys):
        digest.update(key.encode("utf-8", errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def is_long(name: bytes) -> bool:
    """Whether a key is too long for LMDB, so that its digest stands in for it."""
    return len(name) > MAX_LMDB_KEY_BYTES


def record_key(name: bytes) -> bytes:
    """The LMDB key of a record: the key's own bytes, or ``01`` and their SHA-256 where LMDB's limit is."""
    return name if len(name) <= MAX_LMDB_KEY_BYTES else DIGEST_PREFIX + hashlib.sha256(name).digest()


def failure_key(name: bytes) -> bytes:
    """The LMDB key of a failure: ``00 66`` and the SHA-256 of the key's bytes."""
    return FAILURE_PREFIX + hashlib.sha256(name).digest()


def join_named(name: bytes, rest: bytes) -> bytes:
    """Put a key in front of a value, for values whose LMDB key is a digest."""
    return _KEY_LENGTH.pack(len(name)) + name + rest


def split_named(value: Buffer) -> tuple[bytes, memoryview]:
    """Split a value made by `join_named` into the key and the rest.

    Raises:
        ValueError: If the value is shorter than the key that it announces.
    """
    if len(value) < 2:
        raise ValueError(f"a value that carries its key has at least 2 bytes, got {len(value)}")
    (length,) = _KEY_LENGTH.unpack_from(value)
    if len(value) < 2 + length:
        raise ValueError(f"the value announces a key of {length} bytes and has {len(value) - 2} left")
    return bytes(value[2 : 2 + length]), memoryview(value)[2 + length :]


def block_key(block: int) -> bytes:
    """The LMDB key of a block of records: ``00 62`` and its number, the highest byte first."""
    return _BLOCK_KEY.pack(BLOCK_PREFIX, block)


def block_number(key: bytes) -> int:
    """The number of the block that lies under an LMDB key."""
    return int.from_bytes(key[len(BLOCK_PREFIX) :], "big")


def pack_location(location: Location, name: bytes) -> bytes:
    """The value that lies under a record's LMDB key; it carries the key where that is too long for LMDB."""
    packed = _LOCATION.pack(*location)
    return packed + name if is_long(name) else packed


def unpack_location(value: Buffer) -> Location:
    """Where the record lies of which this is the value under its LMDB key.

    Raises:
        ValueError: If the value is shorter than a location.
    """
    try:
        return Location._make(_LOCATION.unpack_from(value))
    except struct.error:
        raise ValueError(f"the place of a record has {_LOCATION.size} bytes, got {len(value)}") from None


def name_behind_location(value: Buffer) -> bytes:
    """The key of a record whose LMDB key is a digest."""
    return bytes(value[_LOCATION.size :])


def pack_about(about: About) -> bytes:
    """The value under `ABOUT_KEY`."""
    return _ABOUT.pack(*about)


def unpack_about(value: Buffer) -> About:
    """Read what `pack_about` wrote.

    Raises:
        ValueError: If the value has another length.
    """
    if len(value) != _ABOUT.size:
        raise ValueError(f"what a shard's file says of itself has {_ABOUT.size} bytes, got {len(value)}")
    return About(*_ABOUT.unpack(value))
