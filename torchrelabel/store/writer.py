"""LabelStoreWriter: puts label maps into a store, so that a kill at any moment loses at most the last batch."""

from __future__ import annotations

import os
import secrets
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from types import TracebackType
from typing import Any

from filelock import FileLock, Timeout
from numpy.typing import ArrayLike

from torchrelabel.calibration import Calibration
from torchrelabel.errors import SettingsDiffer, StoreError, StoreInUse
from torchrelabel.store.environments import Environment, open_environment
from torchrelabel.store.files import sync_directory, write_error
from torchrelabel.store.header import StoreHeader, read_header, write_header
from torchrelabel.store.layout import (
    ABOUT_KEY,
    FAILURE_PREFIX,
    FORMAT_VERSION,
    HEADER_FILE,
    HEADER_LOCK_FILE,
    MAX_PARTS,
    About,
    Location,
    block_key,
    encode_key,
    failure_key,
    is_store_file,
    join_named,
    pack_about,
    pack_location,
    record_key,
    shard_file,
    shard_files,
    shard_lock_file,
    unpack_about,
)
from torchrelabel.store.parts import Part, record_bytes
from torchrelabel.store.record import pack_record, same_map

# However slowly maps come, a kill loses no more work than this.
_SECONDS_BETWEEN_COMMITS = 10.0

# Header writes of other ranks take milliseconds; who waits this long waits for a lock that a file system lost.
_SECONDS_FOR_HEADER_LOCK = 60.0

# Loader processes forked by a writer hold its locks too. When it is killed they notice within five seconds.
_SECONDS_FOR_ORPHANS_TO_END = 8.0

# A larger block of records begins another one, so that a block is written in one piece of memory.
_BYTES_OF_BLOCK = 1024 * 1024

# Large maps are committed before they fill the memory.
_BYTES_BETWEEN_COMMITS = 64 * 1024 * 1024


class LabelStoreWriter:
    """Writes a label store.

    Leaving the ``with`` block marks the store as complete; leaving it by an exception commits what was put and leaves
    the store incomplete, to be continued with ``resume=True``. What has been finished is never written to again: what a
    later writer adds lies in files of its own. Maps put in sorted order of their keys take the least space.

    Several processes may write to one store at once if each names its own ``write_shards``; the store is complete when
    all of its shards are.

    Args:
        path: Directory of the store; made if missing.
        num_classes: ``C``, the number of classes of the annotator.
        top_k: ``K``, the number of classes kept in each cell.
        codec: ``"float16"``, exact to half precision, or ``"uint8"``, 256 steps over the range of each map.
        score_kind: ``"logit"`` or ``"probability"``.
        residual: Whether each map comes with a residual.
        shards: Number of parts that several processes may write at once.
        coverage: Part of each image that its map covers: ``"whole"``, a box ``(x1, y1, x2, y2)`` in fractions of the
            image, or ``"record"`` if every `put` gives a box.
        annotator: Who makes the maps, a map of strings, numbers and lists.
        grid: ``(h, w)`` of the annotator's usual grid.
        class_names: A name for each class.
        class_to_idx: The dataset's folder-to-index table.
        dataset: ``count`` and ``fingerprint`` of the dataset.
        image_top_k: ``T``: each map comes with the logits of the whole image, of which the best ``T`` are kept; 0 for
            none.
        write_shards: Numbers of the shards that this writer writes; all by default.
        commit_every: Number of maps after which they are committed; 10 s after a commit the next put commits too.
        resume: Whether to continue a store that exists. Its settings must be the ones given; ``annotator``, ``grid``,
            ``class_names`` and ``class_to_idx`` need not be given again. A ``class_to_idx`` that has not one folder for
            each class says nothing of the maps, and may be another one.

    Raises:
        StoreInUse: If another writer has one of the shards.
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreError: If ``path`` exists and is no store, is one and ``resume`` is False, or is one of an older version of
            the format, which is read, and not continued.
        ValueError: If a setting is out of its bounds.

    Example:
        >>> import numpy as np, tempfile
        >>> path = tempfile.mkdtemp() + "/maps.lmdb"
        >>> with LabelStoreWriter(path, num_classes=10, top_k=2) as writer:
        ...     writer.put("cat/1.jpg", np.ones((2, 7, 5), np.float32), np.indices((2, 7, 5))[0])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        num_classes: int,
        top_k: int,
        codec: str = "float16",
        score_kind: str = "logit",
        residual: bool = False,
        shards: int = 1,
        coverage: str | Sequence[float] = "whole",
        annotator: Mapping[str, Any] | None = None,
        grid: Sequence[int] | None = None,
        class_names: Sequence[str] | None = None,
        class_to_idx: Mapping[str, int] | None = None,
        dataset: Mapping[str, Any] | None = None,
        image_top_k: int = 0,
        write_shards: Iterable[int] | None = None,
        commit_every: int = 256,
        resume: bool = False,
    ) -> None:
        if commit_every < 1:
            raise ValueError(f"commit_every is at least 1, got {commit_every}")
        given = StoreHeader(
            num_classes=num_classes,
            top_k=top_k,
            codec=codec,
            score_kind=score_kind,
            residual=residual,
            coverage=coverage,  # type: ignore[arg-type]  # the header makes it a tuple of four floats
            grid=grid,  # type: ignore[arg-type]  # and this one of two integers
            annotator=dict(annotator or {}),
            class_names=class_names,  # type: ignore[arg-type]  # and this one of strings
            class_to_idx=dict(class_to_idx) if class_to_idx is not None else None,
            shards=shards,
            dataset=dict(dataset or {}),
            image_top_k=image_top_k,
        )
        given = given.as_read()  # so that what is compared with a stored header went the same way
        numbers = sorted(set(range(shards) if write_shards is None else write_shards))
        if not numbers or not 0 <= numbers[0] <= numbers[-1] < shards:
            raise ValueError(f"write_shards names some of the shards 0 to {shards - 1}, got {numbers}")
        self._path = Path(os.path.abspath(os.fsdecode(path)))
        self._commit_every = commit_every
        self._pending = 0
        self._pending_bytes = 0
        self._last_commit = time.monotonic()
        self._pid = os.getpid()
        self._closed = False
        self._shards: dict[int, _Shard] = {}
        with ExitStack() as stack:
            self._header = self._join(stack, given, numbers, whole=write_shards is None, resume=resume)
            self._locks = stack.pop_all()

    @property
    def path(self) -> Path:
        """Directory of the store."""
        return self._path

    @property
    def header(self) -> StoreHeader:
        """The header as this writer last wrote or read it."""
        return self._header

    def put(
        self,
        key: str,
        scores: ArrayLike,
        classes: ArrayLike,
        residual: ArrayLike | None = None,
        *,
        coverage: Sequence[float] | None = None,
        image_scores: ArrayLike | None = None,
        image_size: Sequence[int] | None = None,
        exif_turned: bool = False,
    ) -> None:
        """Put the label map of one image.

        Putting the same map under the same key again changes nothing. A failure noted for the key is forgotten.

        Args:
            key: The image's path relative to the dataset root, ``/`` separators, extension kept.
            scores: Floats ``[K, h, w]``; in each cell they are put into descending order, and their classes with them.
            classes: Integers ``[K, h, w]``, distinct in each cell.
            residual: Floats ``[h, w]``, if the store has a residual.
            coverage: Part of this image that the map covers, ``(x1, y1, x2, y2)`` in fractions, if it differs from the
                store's.
            image_scores: Floats ``[C]``, the logits of the whole image, if the store keeps any.
            image_size: Width and height of the image that was annotated, in pixels, if they are known.
            exif_turned: Whether its EXIF orientation would turn or mirror it; needs ``image_size``.

        Raises:
            ValueError: If the map does not fit the store, if the key belongs to a shard of another writer, or if the
                store holds another map under this key.
            StoreError: If the file system refuses.
        """
        name, shard = self._locate(key)
        try:
            record = pack_record(
                self._header, name, scores, classes, residual, coverage, image_scores, image_size, exif_turned
            )
        except ValueError as error:
            raise ValueError(f"label map of {key!r}: {error}") from None
        self._put_record(key, name, shard, record)

    def put_record(self, key: str, record: bytes) -> None:
        """Put a record that was packed for this store's header, as `torchrelabel.store.record.carry_over` does.

        Raises:
            ValueError: As `put`.
            StoreError: If the file system refuses.
        """
        name, shard = self._locate(key)
        self._put_record(key, name, shard, record)

    def _put_record(self, key: str, name: bytes, shard: _Shard, record: bytes) -> None:
        stored = shard.find(name)
        if stored is not None:
            if not same_map(self._header, name, stored, record):
                raise ValueError(
                    f"{self._path} holds another label map of {key!r} already; a map is never replaced: "
                    f"skip images for which `key in writer` is true, or write a new store"
                )
            return
        shard.put(name, record)
        self._count(len(record))

    def put_failure(self, key: str, reason: str) -> None:
        """Note that an image has no label map and why; a later `put` of the key forgets it.

        Raises:
            ValueError: If the store holds a label map of the image.
        """
        name, shard = self._locate(key)
        if shard.find(name) is not None:
            raise ValueError(f"{self._path} holds a label map of {key!r}, so it cannot have failed")
        shard.put_failure(name, reason.encode("utf-8", "surrogateescape"))
        self._count()

    def keep_failures_of(self, keys: Iterable[str]) -> None:
        """Forget the failures, in this writer's shards, of all other images: they no longer exist."""
        self._check_usable()
        names = {encode_key(key) for key in keys}
        for shard in self._shards.values():
            shard.keep_failures_of(names)

    def key_done(self, key: str) -> bool:
        """Whether a label map of the image is stored, committed or not; a failure is not done."""
        name, shard = self._locate(key)
        return shard.find(name) is not None

    def __contains__(self, key: str) -> bool:
        return self.key_done(key)

    def commit(self) -> None:
        """Make everything put so far survive a kill and a loss of power.

        Raises:
            StoreError: If the file system refuses, for instance since no space is left, or if the store was moved,
                deleted or replaced; what was committed before is safe.
        """
        self._check_usable()
        for shard in self._shards.values():
            shard.commit()
        self._pending = self._pending_bytes = 0
        self._last_commit = time.monotonic()

    def finish(self, dataset: Mapping[str, Any] | None = None) -> None:
        """Commit, mark this writer's shards as finished, and close; the store is complete once all shards are.

        Args:
            dataset: ``count`` and ``fingerprint`` of the annotated dataset; replaces what the header holds.
        """
        self.commit()
        with self._header_lock():
            header = read_header(self._path)
            # A file that this writer began, and to which nothing came, goes away again.
            empty = [number for number, shard in self._shards.items() if shard.adds_nothing()]
            parts = [count - (number in empty) for number, count in enumerate(header.parts)]
            self._header = replace(
                header,
                parts=tuple(parts),
                finished=tuple({*header.finished, *self._shards}),
                dataset=dict(header.dataset if dataset is None else dataset),
            )
            write_header(self._path, self._header)
            for number, shard in self._shards.items():
                _remove(shard.path, lock_only=number not in empty)
        self._release()

    def close(self) -> None:
        """Commit, and close without marking anything as finished; closing again does nothing."""
        if self._closed:
            return
        try:
            self.commit()
        finally:
            self._release()

    def __enter__(self) -> LabelStoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._closed:
            return
        if kind is None:
            try:
                self.finish()
            finally:
                self._release()
            return
        try:
            self.close()
        except StoreError:
            pass  # the exception that ended the block says more: often it is the same full disk

    def _join(
        self, stack: ExitStack, given: StoreHeader, numbers: Sequence[int], *, whole: bool, resume: bool
    ) -> StoreHeader:
        """Lock the shards, then begin the store or check that it is the one that was meant."""
        try:
            self._path.mkdir(parents=True, exist_ok=True)
        except FileExistsError:
            raise StoreError(f"{self._path} is a file, and a label store is a directory; give another path") from None
        except OSError as error:
            raise write_error(self._path, error) from error
        exists = (self._path / HEADER_FILE).exists()
        # Before anything is made in it.
        strangers = sorted(entry.name for entry in self._path.iterdir() if not is_store_file(entry.name))
        if strangers and not exists:
            raise StoreError(
                f"{self._path} is no label store, and not empty: it holds {', '.join(strangers[:4])}; give a new path"
            )
        with self._header_lock():
            for number in numbers:
                stack.enter_context(self._shard_lock(number))
            if not (self._path / HEADER_FILE).exists():
                self._refuse_orphans()
                header = replace(given, identity=secrets.token_hex(16))
                # Before any shard, so that a file of a shard always belongs to a store.
                write_header(self._path, header)
                return self._begin(header, numbers)
            header = read_header(self._path)
            begun = [number for number in numbers if shard_files(self._path, number)]
            if not resume and (whole or begun):
                state = "complete" if header.complete else "incomplete"
                raise StoreError(
                    f"{self._path} holds a label store already ({state}). Continue it with resume=True, "
                    f"give another path, or delete it"
                )
            differences = header.differences(given)
            if differences:
                raise SettingsDiffer(
                    f"{self._path} was begun with other settings. "
                    + "; ".join(differences)
                    + ". Give the old settings to continue it, or another path"
                )
            if not header.in_blocks:
                raise StoreError(
                    f"{self._path} is a label store of format version {header.format_version}, which this release "
                    f"reads, and does not add to: it writes version {FORMAT_VERSION}. Copy it into that with "
                    f"`torchrelabel merge {self._path} -o NEW`, and continue the copy"
                )
            return self._begin(header.continued_by(given), numbers)

    def _begin(self, header: StoreHeader, numbers: Sequence[int]) -> StoreHeader:
        """Open the last file of each shard, a new one where that is finished, and then say so in the header."""
        parts = list(header.parts)
        for number in numbers:
            if number in header.finished or not parts[number]:
                if parts[number] == MAX_PARTS:
                    raise StoreError(f"shard {number} of {self._path} has {MAX_PARTS} files; merge the store first")
                parts[number] += 1
            for leftover in shard_files(self._path, number):
                # What a writer began that was killed before it could say so.
                if leftover.name not in {shard_file(number, part) for part in range(header.parts[number])}:
                    _remove(leftover)
        begun = replace(header, parts=tuple(parts), finished=tuple(set(header.finished) - set(numbers)))
        for number in numbers:
            self._shards[number] = _Shard(self._path, begun, number, fresh=parts[number] > header.parts[number])
        try:
            sync_directory(self._path)
        except OSError as error:
            raise write_error(self._path, error) from error
        write_header(self._path, begun)
        return begun

    def _refuse_orphans(self) -> None:
        orphans = sorted(entry.name for entry in self._path.glob("shard-*.mdb"))
        if orphans:
            raise StoreError(
                f"{self._path} holds {orphans[0]} but no {HEADER_FILE}, so nobody can tell what it holds; "
                f"give a new path"
            )

    def _header_lock(self) -> AbstractContextManager[None]:
        return _header_lock(self._path)

    def _shard_lock(self, number: int) -> AbstractContextManager[None]:
        name = shard_lock_file(number)
        return _locked(self._path, name, _SECONDS_FOR_ORPHANS_TO_END, f"{name} is held")

    def _locate(self, key: str) -> tuple[bytes, _Shard]:
        self._check_usable()
        name = encode_key(key)
        number = zlib.crc32(name) % self._header.shards
        shard = self._shards.get(number)
        if shard is None:
            raise ValueError(
                f"{key!r} belongs to shard {number}, and this writer writes shards {sorted(self._shards)}; "
                f"shard_of(key, {self._header.shards}) tells which writer a key belongs to"
            )
        return name, shard

    def _check_usable(self) -> None:
        if self._closed:
            raise ValueError(f"the writer of {self._path} is closed; open it again with resume=True to add maps")
        if os.getpid() != self._pid:
            raise ValueError(f"the writer of {self._path} belongs to process {self._pid}; write from there")

    def _count(self, size: int = 0) -> None:
        self._pending += 1
        self._pending_bytes += size
        enough = self._pending >= self._commit_every or self._pending_bytes >= _BYTES_BETWEEN_COMMITS
        if enough or time.monotonic() - self._last_commit > _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def _release(self) -> None:
        self._closed = True
        self._shards = {}
        self._locks.close()


class _Shard:
    """The last file of a shard, which this process writes, and those before it, which nobody writes any more."""

    def __init__(self, directory: Path, header: StoreHeader, number: int, *, fresh: bool) -> None:
        parts = header.parts[number]
        self.path = directory / shard_file(number, parts - 1)
        self._header = header
        self._fresh = fresh
        before = [Part(directory, header, number, part) for part in range(parts - 1)]
        self._environment: Environment = open_environment(self.path, write=True)
        self._records: dict[bytes, bytes] = {}
        self._failures: dict[bytes, bytes] = {}
        self._forgotten: set[bytes] = set()
        self._failures_before: dict[bytes, bytes] = {}
        if self._fresh:
            self._failures_before = dict(before[-1].failures(lenient=True)) if before else {}
            self._about = About(bytes.fromhex(header.identity), number, parts - 1)
            self._failures.update(self._failures_before)
            self.commit(begin=True)
        else:
            # A writer that is killed while it commits may leave LMDB's lock one commit behind the file, and readers see
            # what the lock says. Taking the lock for writing mends it.
            with self._environment.handle.begin(write=True):
                pass
        self._part = Part(directory, header, number, parts - 1)
        self._about = self._part.about()
        # The files to look a key up in, with LMDB's last key of each: most keys come in order, behind it.
        self._looks = [(part.environment, self._last_key(part.environment)) for part in [*before, self._part]]

    def find(self, name: bytes) -> bytes | None:
        """The record of a key, committed or not."""
        pending = self._records.get(name)
        if pending is not None:
            return pending
        key = record_key(name)
        for environment, last in self._looks:
            if key > last:
                continue
            with environment.reading() as transaction:
                value = transaction.get(key)
                if value is not None:
                    return bytes(record_bytes(self._header, transaction, name, value))
        return None

    def put(self, name: bytes, record: bytes) -> None:
        self._records[name] = record
        self._failures.pop(name, None)

    def put_failure(self, name: bytes, reason: bytes) -> None:
        self._failures[name] = reason

    def keep_failures_of(self, names: set[bytes]) -> None:
        walked = (key for key, _ in self._part.walk(FAILURE_PREFIX))
        failed = set(takewhile(lambda key: key.startswith(FAILURE_PREFIX), walked))
        self._forgotten = failed - {failure_key(name) for name in names} if failed else failed
        self._failures = {name: reason for name, reason in self._failures.items() if name in names}

    def adds_nothing(self) -> bool:
        """Whether this file, begun by this writer, says nothing that those before it do not say."""
        return (
            self._fresh
            and self._about.part > 0
            and not self._about.records
            and dict(self._part.failures(lenient=True)) == self._failures_before
        )

    def commit(self, *, begin: bool = False) -> None:
        """Write what is pending in one transaction, with a larger map as often as it needs one."""
        if not (self._records or self._failures or self._forgotten or begin):
            return
        import lmdb

        if not self._environment.still_there():
            raise StoreError(
                f"{self.path} was moved, deleted or replaced while it was written. What was committed lies where it "
                f"is now; what came since the last commit is lost. Put it back, or write a new store"
            )
        while True:
            try:
                # The process does not fork meanwhile, nor does a thread look at a map that is resized.
                with self._environment.lock:
                    self._about = self._write()
                break
            except lmdb.MapFullError:
                self._environment.grow()
            except lmdb.Error as error:
                raise write_error(self.path, error) from error
        if self._records and not begin:
            environment, last = self._looks[-1]
            self._looks[-1] = environment, max(last, max(map(record_key, self._records)))
        self._records.clear()
        self._failures.clear()
        self._forgotten.clear()

    def _write(self) -> About:
        records = sorted((record_key(name), name, record) for name, record in self._records.items())
        with self._environment.handle.begin(write=True) as transaction:
            # As this transaction has it, and not as this object remembers it: a block is never written twice.
            stored = transaction.get(ABOUT_KEY)
            about = self._about if stored is None else unpack_about(stored)
            failures = about.failures
            blocks: list[list[bytes]] = []
            places: list[tuple[bytes, bytes]] = []
            room = start = 0
            for key, name, record in records:
                if not blocks or len(record) > room:
                    blocks.append([])
                    room, start = _BYTES_OF_BLOCK, 0
                location = Location(about.blocks + len(blocks) - 1, start, len(record))
                places.append((key, pack_location(location, name)))
                blocks[-1].append(record)
                room, start = room - len(record), start + len(record)
            for number, block in enumerate(blocks, about.blocks):
                transaction.put(block_key(number), b"".join(block))
            with transaction.cursor() as cursor:
                # Appending fills pages; putting in order without saying so splits each full page in half.
                last = bytes(cursor.key()) if cursor.last() else b""
                behind = [place for place in places if place[0] > last]
                cursor.putmulti([place for place in places if place[0] <= last])
                cursor.putmulti(behind, append=True)
            for key in self._forgotten:
                failures -= transaction.delete(key)
            # Most stores have no failure, and then no record needs to look for one to delete.
            for name in self._records if failures else ():
                failures -= transaction.delete(failure_key(name))
            for name, reason in self._failures.items():
                failures += transaction.get(failure_key(name)) is None
                transaction.put(failure_key(name), join_named(name, reason))
            about = about._replace(
                records=about.records + len(places), failures=max(failures, 0), blocks=about.blocks + len(blocks)
            )
            transaction.put(ABOUT_KEY, pack_about(about))
        # Places in LMDB's lock that killed readers held would keep pages from being used again.
        self._environment.handle.reader_check()
        return about

    @staticmethod
    def _last_key(environment: Environment) -> bytes:
        with environment.reading() as transaction, transaction.cursor() as cursor:
            return bytes(cursor.key()) if cursor.last() else b""


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write into a store's header how the labels of crops follow from its records; takes the place of an older one.

    Raises:
        StoreError: If ``path`` is no store, or the file system refuses.
        StoreInUse: If the header stays locked.
        ValueError: If the store keeps no scores for the whole image.
    """
    path = Path(os.path.abspath(os.fsdecode(path)))
    with _header_lock(path):
        write_header(path, replace(read_header(path), calibration=calibration))


def _remove(path: Path, *, lock_only: bool = False) -> None:
    """Remove an LMDB file that nobody needs, and LMDB's lock beside it, which nobody needs for a final one either."""
    for needless in [path.with_name(f"{path.name}-lock"), *([] if lock_only else [path])]:
        try:
            needless.unlink(missing_ok=True)
        except OSError:  # such as on Windows, where another process may have it open; it does no harm
            pass


def _header_lock(path: Path) -> AbstractContextManager[None]:
    held = f"{HEADER_LOCK_FILE} is held for more than {_SECONDS_FOR_HEADER_LOCK:.0f} s"
    return _locked(path, HEADER_LOCK_FILE, _SECONDS_FOR_HEADER_LOCK, held)


@contextmanager
def _locked(path: Path, name: str, seconds: float, held: str) -> Iterator[None]:
    lock = FileLock(path / name, timeout=seconds, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise StoreInUse(
            f"another writer writes to {path} ({held}). Wait for it to end, or give another path"
        ) from None
    except OSError as error:
        raise write_error(Path(lock.lock_file), error) from error
    try:
        yield
    finally:
        lock.release()
