"""Environments: the LMDB handles of this process, one for each file."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary

from torchrelabel.errors import StoreError
from torchrelabel.store.files import write_error
from torchrelabel.store.layout import ABOUT_BYTES_OF_FILE, ABOUT_KEY

if TYPE_CHECKING:
    import lmdb

# Address space, not disk: LMDB's file grows with its content, and the map doubles whenever it is full.
INITIAL_MAP_SIZE = 64 * 1024 * 1024

# A place is taken for the microseconds of one look only.
_MAX_READERS = 510
_LOCK_BYTES = 64 * (_MAX_READERS + 2)
_SECONDS_FOR_A_PLACE = 30.0
_SECONDS_BETWEEN_CHECKS = 0.1


class Environment:
    """One LMDB file, opened once in this process.

    A file that is ``final`` will never be written to again: it is read without a lock, from any disk, and noticed to
    have been changed all the same. Any other file is read and written under LMDB's own lock, which keeps the pages that
    a reader looks at from being used again.
    """

    def __init__(self, path: Path, *, write: bool, final: bool = False) -> None:
        import lmdb  # here, so that `import torchrelabel` does not load it

        self.path = path
        # Held for as long as a read transaction lasts: LMDB wants none of this process alive while the map is resized,
        # which a writer in another thread may do at any time, nor while the process forks.
        self.lock = threading.RLock()
        self.writable = write
        self.final = final
        self._lmdb: ModuleType = lmdb
        self.descriptor = -1
        self._seen: tuple[int, int] = (0, 0)
        self._about: bytes | None = None
        # Of a final file only: a transaction that stays open, and where in the file blocks lie, once somebody looked.
        self._standing: lmdb.Transaction | None = None
        self._checked = 0.0
        self.blocks: dict[int, tuple[int, int]] = {}
        self._open()

    def reading(self) -> _Reading:
        """``with environment.reading() as transaction``: a look at the newest commit, as memoryviews into the file.

        Keep it short and do not nest it. LMDB's errors come out as `StoreError`.
        """
        return _Reading(self)

    def look(self, *, anew: bool = False) -> lmdb.Transaction:
        """A transaction to read in while holding `lock`; give it to `leave` afterwards.

        A final file has one transaction for all looks. Each look notices that the file was cut short, which takes a
        fraction of a microsecond; that it was written over is noticed within a tenth of a second, or if ``anew``.

        Raises:
            StoreError: If the file was cut short or, though it is final, written over since it was opened. LMDB would
                not notice, and the process would die of a bus error or read what is not this store's.
        """
        if not self.final:
            return self.begin()
        now = time.monotonic()
        if (
            self._standing is None
            or anew
            or now > self._checked + _SECONDS_BETWEEN_CHECKS
            or os.lseek(self.descriptor, 0, os.SEEK_END) != self._seen[0]
        ):
            self._check()
            self._checked = now
            if self._standing is None:
                self._standing = self.handle.begin(buffers=True)
        return self._standing

    def pread(self, size: int, offset: int) -> bytes:
        """Bytes of a final file, fewer at its end.

        Raises:
            StoreError: As `look`.
        """
        with self.lock:
            self.look()
            return os.pread(self.descriptor, size, offset)

    def leave(self, transaction: lmdb.Transaction) -> None:
        """End a look."""
        if transaction is not self._standing:
            transaction.abort()

    def begin(self) -> lmdb.Transaction:
        """A read transaction on the newest commit, also where another process has grown the file since.

        Raises:
            StoreError: As `look`.
        """
        self._check()
        try:
            return self.handle.begin(buffers=True)
        except self._lmdb.MapResizedError:
            self.handle.set_mapsize(0)  # 0: as large as the file says
            self._check_length()
            return self.handle.begin(buffers=True)
        except self._lmdb.ReadersFullError:
            return self._begin_when_there_is_a_place()

    def read_error(self, error: BaseException) -> BaseException:
        """The `StoreError` to raise instead of an error of LMDB; other errors stay what they are."""
        if not isinstance(error, self._lmdb.Error):
            return error
        return StoreError(f"{self.path} cannot be read: {error}. Copy it again if it was copied, else it is damaged")

    def make_writable(self) -> None:
        """Open the file again for writing, if it was opened for reading only."""
        with self.lock:
            if not self.writable:
                self.close()
                self.writable, self.final = True, False
                self._open()

    def grow(self) -> None:
        """Double the map."""
        with self.lock:
            self.handle.set_mapsize(2 * int(self.handle.info()["map_size"]))

    def still_there(self) -> bool:
        """Whether the path still leads to the file that is open."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self.descriptor))
        except FileNotFoundError:
            return False

    def close(self) -> None:
        """Close the handle."""
        self.blocks.clear()
        self._standing = None
        self.handle.close()
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def _check(self) -> None:
        if self.descriptor < 0:  # an earlier look found it unreadable
            self._open()
        status = os.fstat(self.descriptor)
        if (status.st_size, status.st_mtime_ns) != self._seen:
            self._look_what_changed(status)

    def _look_what_changed(self, status: os.stat_result) -> None:
        if status.st_size < self._seen[0] and not self.final:
            raise StoreError(
                f"{self.path} was cut short while it was open: it has {status.st_size} bytes, and had {self._seen[0]}. "
                f"Copy it again"
            )
        self._seen = (status.st_size, status.st_mtime_ns)
        if not self.final:
            return
        before = self._about
        self._seen = (-1, -1)  # so that the next look comes here again, should this one fail
        self.close()
        self._open()
        if before is None or self._about != before:
            self._seen, self._about = (-1, -1), before
            raise StoreError(
                f"{self.path} was written over while it was open: another store was copied to its place, or it is "
                f"damaged. Open the store again"
            )

    def _read_about(self) -> bytes | None:
        """What the file says of whose it is, as far as that never changes."""
        transaction = self.handle.begin()
        try:
            about = transaction.get(ABOUT_KEY)
        finally:
            transaction.abort()
        return None if about is None else bytes(about[:ABOUT_BYTES_OF_FILE])

    def _begin_when_there_is_a_place(self) -> lmdb.Transaction:
        """Wait until one of the many others that look at this file has seen enough, or is known to be dead."""
        end = time.monotonic() + _SECONDS_FOR_A_PLACE
        while True:
            self.handle.reader_check()
            try:
                return self.handle.begin(buffers=True)
            except self._lmdb.ReadersFullError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.01)

    def _open(self) -> None:
        try:
            length = self.path.stat().st_size if self.path.exists() else 0
            # A size given for reading would be a waste of address space; LMDB takes what the file needs.
            size = {"map_size": max(INITIAL_MAP_SIZE, 2 * length)} if self.writable else {}
            if not self.final:
                self._reserve_lock()
            # Records are read in random order, where readahead would read 128 KiB for each 4. No reader keeps its place
            # from one look to the next, so that closing what a forked child inherited takes none from the parent.
            self.handle = self._lmdb.open(
                os.fsencode(self.path),
                subdir=False,
                lock=not self.final,
                readahead=False,
                readonly=not self.writable,
                create=self.writable,
                meminit=False,
                max_readers=_MAX_READERS,
                max_spare_txns=1 if self.final else 0,
                **size,
            )
        except (self._lmdb.Error, OSError) as error:
            if self.writable:
                raise write_error(self.path, error) from error
            if not self.final and isinstance(error, (PermissionError, self._lmdb.ReadonlyError)):
                raise StoreError(
                    f"{self.path} is not finished, so reading it takes a lock beside it, which is refused ({error}). "
                    f"Finish it, get the right to write there, or copy the store"
                ) from error
            raise self.read_error(error) from error
        try:
            self.descriptor = os.open(self.path, os.O_RDONLY)
            self._check_length()
            if self.final:
                self._about = self._read_about()
        except OSError as error:
            self.close()
            raise StoreError(f"{self.path} cannot be read: {error.strerror}") from error
        except self._lmdb.Error as error:
            self.close()
            raise self.read_error(error) from error

    def _reserve_lock(self) -> None:
        """Take the room for LMDB's lock, which it maps: on a full disk the process would die of a bus error."""
        lock = self.path.with_name(f"{self.path.name}-lock")
        if not hasattr(os, "posix_fallocate"):
            return
        try:
            if lock.stat().st_size:
                return
        except FileNotFoundError:
            pass
        try:
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o664)
        except OSError:
            return  # what LMDB makes of it decides: it reads from a file system that nobody can write to
        try:
            os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
        except OSError:
            lock.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)

    def _check_length(self) -> None:
        # LMDB would not notice, and the process would die of a bus error at the first page past the end.
        used = (self.handle.info()["last_pgno"] + 1) * self.handle.stat()["psize"]
        status = os.fstat(self.descriptor)
        self._seen = (status.st_size, status.st_mtime_ns)
        if status.st_size < used:
            self.close()
            raise StoreError(f"{self.path} is cut short: it has {status.st_size} of {used} bytes. Copy it again")

    def __del__(self) -> None:
        # lmdb 3 keeps a list of open files, from which only close() takes one.
        if getattr(self, "handle", None) is not None:
            self.close()


class _Reading:
    """A read transaction under its environment's lock."""

    __slots__ = ("_environment", "_transaction")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> lmdb.Transaction:
        self._environment.lock.acquire()
        try:
            self._transaction = self._environment.look()
        except BaseException as error:
            self._environment.lock.release()
            if (told := self._environment.read_error(error)) is error:
                raise
            raise told from error
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._environment.leave(self._transaction)
        del self._transaction  # LMDB gives its place in the lock to others when nobody holds it
        self._environment.lock.release()
        if error is not None and (told := self._environment.read_error(error)) is not error:
            raise told from error


_environments: WeakValueDictionary[tuple[int, int], Environment] = WeakValueDictionary()
_lock = threading.RLock()
_held: list[Environment] = []


def open_environment(path: Path, *, write: bool = False, final: bool = False) -> Environment:
    """The environment of an LMDB file; all who ask for one file in one process share it.

    py-lmdb 3 refuses to open a file twice in one process. The environment is closed once nobody holds it.

    Args:
        path: The file.
        write: Whether to write to it.
        final: Whether nobody will ever write to it again, so that reading takes no lock.

    Raises:
        StoreError: If the file is missing (unless ``write``), cut short, or no LMDB file.
    """
    with _lock:
        # By device and inode, not by path: links lead to one environment, and a file that was replaced to a new one.
        identity = _identity(path)
        if identity is None and not write:
            raise StoreError(f"{path} is missing: its writer has not begun, or the file was lost")
        environment = _environments.get(identity) if identity else None
        if environment is None:
            environment = Environment(path, write=write, final=final)
            identity = _identity(path)
            if identity:
                _environments[identity] = environment
        elif write:
            environment.make_writable()
        return environment


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _wait_for_looks() -> None:
    """Let no transaction be open while the process forks: the child would end it for the parent, too."""
    _lock.acquire()
    _held[:] = list(_environments.values())
    for environment in _held:
        environment.lock.acquire()


def _go_on() -> None:
    for environment in _held:
        environment.lock.release()
    _held.clear()
    _lock.release()


def _forget_inherited() -> None:
    """Close the handles that a forked child has inherited, so that it can open the files for itself."""
    global _lock
    _lock = threading.RLock()
    for environment in _held:
        environment.lock = threading.RLock()
        environment.close()
    _held.clear()
    _environments.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_wait_for_looks, after_in_parent=_go_on, after_in_child=_forget_inherited)
