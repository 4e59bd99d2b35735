"""LabelStore: reads the label maps of a store by the path of their image."""

from __future__ import annotations

import heapq
import os
import posixpath
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from torchrelabel.errors import DamagedRecord, MissingLabelMap, StoreError
from torchrelabel.store.environments import Environment
from torchrelabel.store.header import StoreHeader, read_header
from torchrelabel.store.layout import FIRST_IMAGE_KEY, HEADER_FILE, decode_key, encode_key
from torchrelabel.store.parts import Part
from torchrelabel.store.record import LabelRecord

if TYPE_CHECKING:
    from torchrelabel.label_map import LabelMap

# How many keys `nearest` looks at that begin like the one asked for.
_NAMES_TO_TRY = 1000

# How many top-level folders `nearest` tries a key in.
_FOLDERS_TO_TRY = 1000


class LabelStore(Mapping[str, LabelRecord]):
    """A label store on disk, read by the path of an image; read-only.

    Making one reads only the header. The files are opened by the first read in each process, so that a store may be
    handed to DataLoader workers in any way: it survives fork, and is pickled as its path. It follows a store that is
    being written: what is not found is looked for again if the writer has meanwhile begun another file.

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
        >>> store.soft_label("cat/1.jpg", (0.0, 0.0, 0.5, 1.0)).shape
        (10,)
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        # Absolute, since a worker process may start in another directory.
        self._path = Path(os.path.abspath(os.fsdecode(path)))
        self._header_seen = self._header_state()
        self._header = self._newest = read_header(self._path)
        self._pid = os.getpid()
        self._parts: dict[int, list[Part]] = {}

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
        self._follow()
        found: dict[bytes, bytes] = {}
        for shard in range(self._header.shards):
            # The last part of a shard repeats what is true of the failures of those before.
            found.update(self._parts_of(shard)[-1].failures())
        return {decode_key(name): decode_key(found[name]) for name in sorted(found)}

    def __getitem__(self, key: str) -> LabelRecord:
        record = self._read(key)
        if record is None:
            raise MissingLabelMap(self._why_missing(key))
        return record

    def get(self, key: str, default: Any = None) -> Any:
        """The record of an image, or ``default``; cheap where there is none, since near keys are not looked for."""
        record = self._read(key)
        return default if record is None else record

    def _read(self, key: str) -> LabelRecord | None:
        try:
            name = encode_key(key)
        except ValueError:  # what can be no key is in no store
            return None
        shard = zlib.crc32(name) % self._header.shards
        while True:
            for part in self._parts_of(shard):
                try:
                    record = part.record(name)
                except DamagedRecord as error:
                    raise DamagedRecord(
                        f"{part.path}, label map of {key!r}: {error}. Copy the store again, or annotate it again"
                    ) from None
                if record is not None:
                    return record
            if not self._follow():
                return None

    def __contains__(self, key: object) -> bool:
        if not isinstance(key, str):
            return False
        try:
            name = encode_key(key)
        except ValueError:
            return False
        shard = zlib.crc32(name) % self._header.shards
        while not any(part.holds(name) for part in self._parts_of(shard)):
            if not self._follow():
                return False
        return True

    def __iter__(self) -> Iterator[str]:
        """The keys of all label maps, in the order of their bytes."""
        self._follow()
        # Keys that lie under a digest are few, and not in order.
        long = sorted(name for part in self._all_parts() for name in part.long_names())
        walks = self._walks(FIRST_IMAGE_KEY)
        return map(decode_key, walks[0] if len(walks) == 1 and not long else heapq.merge(long, *walks))

    def __len__(self) -> int:
        self._follow()
        return sum(part.count() for part in self._all_parts())

    def label_map(self, key: str, canvas_size: tuple[int, int] | None = None) -> LabelMap:
        """The label map of an image, to transform or to pool.

        Args:
            key: Of the image.
            canvas_size: Size ``(H, W)`` of the image in pixels, by default that of the annotated one, where the store
                knows it, or else ``(1, 1)``.

        Raises:
            MissingLabelMap: If there is none.
            StoreError: If the record cannot be read.
        """
        from torchrelabel.data.records import label_map_of

        record = self[key]
        width, height = record.image_size or (1, 1)
        return label_map_of(record, self.header, canvas_size or (height, width))

    def soft_label(self, key: str, box: Sequence[float] = (0.0, 0.0, 1.0, 1.0)) -> np.ndarray:
        """The soft label of a part of an image, ``[C]``, float32.

        Args:
            key: Of the image.
            box: ``(x1, y1, x2, y2)``, fractions of the image's width and height.

        Raises:
            MissingLabelMap, StoreError: As :meth:`label_map`.
            ValueError: If the box has no width or no height.
        """
        from torchrelabel.pooling import LabelPooling

        label_map = self.label_map(key)
        seen = label_map.with_view(label_map.view_box.crop(*box))
        return LabelPooling()(seen).numpy()

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

    @property
    def newest(self) -> StoreHeader:
        """The header as it was when this object last looked: `header`, but for what its writers have done since."""
        return self._newest

    def part_count(self, shard: int) -> int:
        """How many files a shard has, at least one."""
        return (self._newest.parts[shard] or 1) if self._newest.in_blocks else 1

    def raw_record(self, name: bytes) -> tuple[Part, bytes]:
        """The bytes of a record that is there, unchecked, and the file that they are in.

        Raises:
            MissingLabelMap: If there is none.
        """
        for part in self._parts_of(zlib.crc32(name) % self._header.shards):
            record = part.raw_record(name)
            if record is not None:
                return part, record
        raise MissingLabelMap(self._why_missing(decode_key(name)))

    def close(self) -> None:
        """Give the files back; the next read opens them again."""
        self._parts = {}

    def __reduce__(self) -> tuple[type[LabelStore], tuple[str]]:
        return type(self), (os.fspath(self._path),)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({os.fspath(self._path)!r})"

    # A Mapping compares by reading every value; a store is equal to itself, as an open file is.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def _parts_of(self, shard: int) -> list[Part]:
        if self._pid != os.getpid():  # what a forked child has inherited was closed by torchrelabel.store.environments
            self._parts = {}
            self._pid = os.getpid()
        parts = self._parts.get(shard)
        if parts is None:
            self._follow()
            try:
                parts = self._open_parts(shard)
            except StoreError:
                if not self._follow():  # a part to which nothing came was taken away, or is finished now
                    raise
                parts = self._open_parts(shard)
            self._parts[shard] = parts
        return parts

    def _open_parts(self, shard: int) -> list[Part]:
        # A shard without parts is missing, which opening its first one says.
        return [Part(self._path, self._newest, shard, part) for part in range(self.part_count(shard))]

    def _environment(self, shard: int) -> Environment:
        return self._parts_of(shard)[-1].environment

    def _all_parts(self) -> list[Part]:
        return [part for shard in range(self._header.shards) for part in self._parts_of(shard)]

    def _walks(self, start: bytes) -> list[Iterator[bytes]]:
        """The keys from ``start`` on, of each file in order."""
        return [(key for key, _ in part.walk(start)) for part in self._all_parts()]

    def _header_state(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._path / HEADER_FILE)
        except OSError:  # reading it tells why
            return 0, 0, 0
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _follow(self) -> bool:
        """Whether the files of the store are others than when this was last asked.

        Raises:
            StoreError: If the store is gone, or another one lies in its place: then nobody can tell what it holds.
        """
        state = self._header_state()
        if state == self._header_seen:
            return False
        newest = read_header(self._path)
        ours, theirs = ((it.identity, it.shards, it.format_version) for it in (self._header, newest))
        if ours != theirs:
            raise StoreError(f"{self._path} holds another label store than when it was opened; open it again")
        before, self._newest, self._header_seen = self._newest, newest, state
        if (newest.parts, newest.finished) == (before.parts, before.finished):
            return False
        self._parts = {
            shard: parts for shard, parts in self._parts.items() if newest.parts[shard] == before.parts[shard]
        }
        return True

    def _why_missing(self, key: str) -> str:
        message = f"no label map of {key!r} in {self._path}"
        try:
            name = encode_key(key)
        except ValueError as error:
            return f"{message}: {error}"
        reason = self._parts_of(zlib.crc32(name) % self._header.shards)[-1].failure(name)
        if reason is not None:
            return f"{message}: it could not be annotated ({reason})"
        nearest = self.nearest(key)
        if nearest:
            message += f"; nearest keys: {', '.join(map(repr, nearest))}"
        else:
            message += ", which is empty"
        if not self._newest.complete:
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
        # `a.b.jpg` lies between `a.JPG` and `a.png`, and has another stem than they have.
        for name in islice(heapq.merge(*self._walks(prefix)), _NAMES_TO_TRY):
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
        found = [part.around(start)[0] for part in self._all_parts()]
        return min((name for name in found if name), default=None)

    def _neighbours(self, key: str) -> Iterator[str]:
        name = key.encode("utf-8", "surrogateescape")
        found = (near for part in self._all_parts() for near in part.around(name or FIRST_IMAGE_KEY))
        around = [near for near in found if near >= FIRST_IMAGE_KEY]
        around.sort(key=lambda near: (-_shared(near, name), near))
        return map(decode_key, around)


def _shared(first: bytes, second: bytes) -> int:
    """How many bytes two keys begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(first, second, strict=False)))
