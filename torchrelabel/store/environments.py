"""Environments: the LMDB handles of this process, one for each file."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType, TracebackType
from typing import TYPE_CHECKING, TypeVar
from weakref import WeakValueDictionary

from torchrelabel.errors import DamagedRecord, StoreError
from torchrelabel.store.files import write_error

if TYPE_CHECKING:
    import lmdb

# Address space, not disk: LMDB's file grows with its content, and the map doubles whenever it is full.
INITIAL_MAP_SIZE = 64 * 1024 * 1024

# Two commits take milliseconds and a look some microseconds: who is overtaken so often reads a file that is damaged.
_LOOKS = 4

T = TypeVar("T")


class Environment:
    """One LMDB file, opened once in this process."""

    def __init__(self, path: Path, *, write: bool) -> None:
        import lmdb  # here, so that `import torchrelabel` does not load it

        self.path = path
        # Held for as long as a read transaction lasts: LMDB wants none of this process alive while the map is resized,
        # which a writer in another thread may do at any time.
        self.lock = threading.Lock()
        self.writable = write
        self._lmdb: ModuleType = lmdb
        self._open()

    def reading(self) -> _Reading:
        """``with environment.reading() as transaction``: a look at the newest commit, as memoryviews into the file.

        Keep it short and do not nest it. LMDB's errors come out as `StoreError`.
        """
        return _Reading(self)

    def read(self, look: Callable[[lmdb.Transaction], T]) -> T:
        """What ``look`` makes of the newest commit.

        It is called again, a few times, if two commits overtook it: the second may reuse pages that it was looking at,
        which then seem to be damaged, or to lack a key.
        """
        for _ in range(_LOOKS - 1):
            with self.reading() as transaction, suppress(self._lmdb.Error, DamagedRecord):
                seen = look(transaction)
                if self.handle.info()["last_txnid"] <= transaction.id() + 1:
                    return seen
        with self.reading() as transaction:
            return look(transaction)

    def begin(self) -> lmdb.Transaction:
        """A read transaction on the newest commit, also where another process has grown the file since."""
        try:
            return self.handle.begin(buffers=True)
        except self._lmdb.MapResizedError:
            self.handle.set_mapsize(0)  # 0: as large as the file says
            self._check_length()
            return self.handle.begin(buffers=True)

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
                self.writable = True
                self._open()

    def grow(self) -> None:
        """Double the map."""
        with self.lock:
            self.handle.set_mapsize(2 * int(self.handle.info()["map_size"]))

    def close(self) -> None:
        """Close the handle."""
        self.handle.close()

    def _open(self) -> None:
        try:
            length = self.path.stat().st_size if self.path.exists() else 0
            # A size given for reading would be a waste of address space; LMDB takes what the file needs.
            size = {"map_size": max(INITIAL_MAP_SIZE, 2 * length)} if self.writable else {}
            # The writer's own lock file keeps writers apart, and `read` looks again where two commits, after which LMDB
            # reuses a page, were faster, so that LMDB's lock, which needs a writable directory, is not needed. Records
            # are read in random order, where readahead would read 128 KiB for each 4.
            self.handle = self._lmdb.open(
                os.fspath(self.path),
                subdir=False,
                lock=False,
                readahead=False,
                readonly=not self.writable,
                create=self.writable,
                meminit=False,
                **size,
            )
        except self._lmdb.Error as error:
            raise (write_error(self.path, error) if self.writable else self.read_error(error)) from error
        self._check_length()

    def _check_length(self) -> None:
        # LMDB would not notice, and the process would die of a bus error at the first page past the end.
        used = (self.handle.info()["last_pgno"] + 1) * self.handle.stat()["psize"]
        length = self.path.stat().st_size
        if length < used:
            self.handle.close()
            raise StoreError(f"{self.path} is cut short: it has {length} of {used} bytes. Copy it again")

    def __del__(self) -> None:
        # lmdb 3 keeps a list of open files, from which only close() takes one.
        handle = getattr(self, "handle", None)
        if handle is not None:
            handle.close()


class _Reading:
    """A read transaction under its environment's lock."""

    __slots__ = ("_environment", "_transaction")

    def __init__(self, environment: Environment) -> None:
        self._environment = environment

    def __enter__(self) -> lmdb.Transaction:
        self._environment.lock.acquire()
        try:
            self._transaction = self._environment.begin()
        except BaseException as error:
            self._environment.lock.release()
            if (told := self._environment.read_error(error)) is error:
                raise
            raise told from error
        return self._transaction

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._transaction.abort()
        self._environment.lock.release()
        if error is not None and (told := self._environment.read_error(error)) is not error:
            raise told from error


_environments: WeakValueDictionary[tuple[int, int], Environment] = WeakValueDictionary()
_lock = threading.Lock()


def open_environment(path: Path, *, write: bool = False) -> Environment:
    """The environment of an LMDB file; all who ask for one file in one process share it.

    py-lmdb 3 refuses to open a file twice in one process. The environment is closed once nobody holds it.

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
            environment = Environment(path, write=write)
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


def _forget_inherited() -> None:
    """Close the handles that a forked child has inherited, so that it can open the files for itself."""
    global _lock
    _lock = threading.Lock()  # a thread of the parent may have held the old one
    for environment in list(_environments.values()):
        environment.close()
    _environments.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited)
