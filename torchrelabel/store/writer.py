"""LabelStoreWriter: puts label maps into a store, so that a kill at any moment loses at most the last batch."""

from __future__ import annotations

import os
import time
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
    FAILURE_PREFIX,
    HEADER_FILE,
    HEADER_LOCK_FILE,
    encode_key,
    failure_key,
    is_long,
    is_store_file,
    join_named,
    record_key,
    shard_file,
    shard_lock_file,
    shard_of,
)
from torchrelabel.store.record import pack_record, same_map

# However slowly maps come, a kill loses no more work than this.
_SECONDS_BETWEEN_COMMITS = 10.0

# Header writes of other ranks take milliseconds; who waits this long waits for a lock that a file system lost.
_SECONDS_FOR_HEADER_LOCK = 60.0

# Loader processes forked by a writer hold its locks too. When it is killed they notice within five seconds.
_SECONDS_FOR_ORPHANS_TO_END = 8.0


class LabelStoreWriter:
    """Writes a label store.

    Leaving the ``with`` block marks the store as complete; leaving it by an exception commits what was put and leaves
    the store incomplete, to be continued with ``resume=True``. Maps put in sorted order of their keys take the least
    space.

    Several processes may write to one store at once if each names its own ``write_shards``; the store is complete when
    all of its shards are.

    Args:
        path: Directory of the store; made if missing.
        num_classes: ``C``, the number of classes of the annotator.
        top_k: ``K``, the number of classes kept in each cell.
        codec: ``"float16"``, exact to half precision, or ``"uint8"``, 256 steps over the range of each map.
        score_kind: ``"logit"`` or ``"probability"``.
        residual: Whether each map comes with a residual.
        shards: Number of LMDB files.
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
        StoreError: If ``path`` exists and is no store, or is one and ``resume`` is False.
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
        self._path = Path(os.path.abspath(path))
        self._commit_every = commit_every
        self._pending = 0
        self._last_commit = time.monotonic()
        self._pid = os.getpid()
        self._closed = False
        self._shards: dict[int, _Shard] = {}
        with ExitStack() as stack:
            self._header = self._join(stack, given, numbers, whole=write_shards is None, resume=resume)
            for number in numbers:
                self._shards[number] = _Shard(self._path / shard_file(number))
            self._locks = stack.pop_all()
        try:
            sync_directory(self._path)
        except OSError as error:
            self._locks.close()
            raise write_error(self._path, error) from error

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
    ) -> None:
        """Put the label map of one image.

        Putting the same map under the same key again changes nothing. A failure noted for the key is forgotten.

        Args:
            key: The image's path relative to the dataset root, ``/`` separators, extension kept.
            scores: Floats ``[K, h, w]``, descending along ``K``.
            classes: Integers ``[K, h, w]``, distinct in each cell.
            residual: Floats ``[h, w]``, if the store has a residual.
            coverage: Part of this image that the map covers, ``(x1, y1, x2, y2)`` in fractions, if it differs from the
                store's.
            image_scores: Floats ``[C]``, the logits of the whole image, if the store keeps any.

        Raises:
            ValueError: If the map does not fit the store, if the key belongs to a shard of another writer, or if the
                store holds another map under this key.
            StoreError: If the file system refuses.
        """
        name, shard = self._locate(key)
        try:
            record = pack_record(self._header, name, scores, classes, residual, coverage, image_scores)
        except ValueError as error:
            raise ValueError(f"label map of {key!r}: {error}") from None
        stored = shard.find(name)
        if stored is not None:
            if not same_map(self._header, name, stored, record):
                raise ValueError(
                    f"{self._path} holds another label map of {key!r} already; a map is never replaced: "
                    f"skip images for which `key in writer` is true, or write a new store"
                )
            return
        shard.put(name, record)
        self._count()

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
            StoreError: If the file system refuses, for instance since no space is left; what was committed before is
                safe.
        """
        self._check_usable()
        for shard in self._shards.values():
            shard.commit()
        self._pending = 0
        self._last_commit = time.monotonic()

    def finish(self, dataset: Mapping[str, Any] | None = None) -> None:
        """Commit, mark this writer's shards as finished, and close; the store is complete once all shards are.

        Args:
            dataset: ``count`` and ``fingerprint`` of the annotated dataset; replaces what the header holds.
        """
        self.commit()
        with self._header_lock():
            header = read_header(self._path)
            self._header = replace(
                header,
                finished=tuple({*header.finished, *self._shards}),
                dataset=dict(header.dataset if dataset is None else dataset),
            )
            write_header(self._path, self._header)
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
                write_header(self._path, given)
                return given
            header = read_header(self._path)
            begun = [number for number in numbers if (self._path / shard_file(number)).exists()]
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
            continued = replace(header.continued_by(given), finished=tuple(set(header.finished) - set(numbers)))
            if continued != header:
                write_header(self._path, continued)
            return continued

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
        number = shard_of(name, self._header.shards)
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

    def _count(self) -> None:
        self._pending += 1
        if self._pending >= self._commit_every or time.monotonic() - self._last_commit > _SECONDS_BETWEEN_COMMITS:
            self.commit()

    def _release(self) -> None:
        self._closed = True
        self._shards = {}
        self._locks.close()


class _Shard:
    """One LMDB file that this process writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._environment: Environment = open_environment(path, write=True)
        self._records: dict[bytes, bytes] = {}
        self._failures: dict[bytes, bytes] = {}
        self._forgotten: list[bytes] = []
        # Most stores have no failure, and then no record needs to look for one to delete.
        self._any_failed = self._has_failures()

    def find(self, name: bytes) -> bytes | None:
        """The record of a key, committed or not."""
        pending = self._records.get(name)
        if pending is not None:
            return pending
        with self._environment.reading() as transaction:
            value = transaction.get(record_key(name))
            if value is None:
                return None
            return bytes(value[2 + len(name) :] if is_long(name) else value)

    def put(self, name: bytes, record: bytes) -> None:
        self._records[name] = record
        self._failures.pop(name, None)

    def put_failure(self, name: bytes, reason: bytes) -> None:
        self._failures[name] = reason

    def keep_failures_of(self, names: set[bytes]) -> None:
        kept = {failure_key(name) for name in names} if self._any_failed else set()
        with self._environment.reading() as transaction:
            cursor = transaction.cursor()
            found = cursor.iternext(values=False) if cursor.set_range(FAILURE_PREFIX) else ()
            failed = takewhile(lambda key: key.startswith(FAILURE_PREFIX), map(bytes, found))
            self._forgotten = [key for key in failed if key not in kept]
        self._failures = {name: reason for name, reason in self._failures.items() if name in names}

    def commit(self) -> None:
        """Write what is pending in one transaction, with a larger map as often as it needs one."""
        if not (self._records or self._failures or self._forgotten):
            return
        import lmdb

        while True:
            try:
                self._write()
                break
            except lmdb.MapFullError:
                self._environment.grow()
            except lmdb.Error as error:
                raise write_error(self._path, error) from error
        self._any_failed = self._any_failed or bool(self._failures)
        self._records.clear()
        self._failures.clear()
        self._forgotten.clear()

    def _write(self) -> None:
        records = sorted(
            (record_key(name), join_named(name, record) if is_long(name) else record)
            for name, record in self._records.items()
        )
        with self._environment.handle.begin(write=True) as transaction:
            cursor = transaction.cursor()
            last = cursor.key() if cursor.last() else b""
            cursor.close()
            for key, value in records:
                # Appending fills pages; putting in order without saying so splits each full page in half.
                append = key > last
                transaction.put(key, value, append=append)
                last = key if append else last
            for key in self._forgotten:
                transaction.delete(key)
            for name in self._records if self._any_failed else ():
                transaction.delete(failure_key(name))
            for name, reason in self._failures.items():
                transaction.put(failure_key(name), join_named(name, reason))

    def _has_failures(self) -> bool:
        with self._environment.reading() as transaction:
            cursor = transaction.cursor()
            return bool(cursor.set_range(FAILURE_PREFIX)) and bytes(cursor.key()[:2]) == FAILURE_PREFIX


def write_calibration(path: str | os.PathLike[str], calibration: Calibration) -> None:
    """Write into a store's header how the labels of crops follow from its records; takes the place of an older one.

    Raises:
        StoreError: If ``path`` is no store, or the file system refuses.
        StoreInUse: If the header stays locked.
        ValueError: If the store keeps no scores for the whole image.
    """
    path = Path(os.path.abspath(path))
    with _header_lock(path):
        write_header(path, replace(read_header(path), calibration=calibration))


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
