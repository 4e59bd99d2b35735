"""Read many small files in several processes, in order, without running ahead of whoever uses what they read."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from torchrelabel.errors import TorchRelabelError

Item = TypeVar("Item")
Result = TypeVar("Result")

# Large enough that handing over costs little, small enough that an interrupt is quick and few results wait.
_ITEMS_AT_ONCE = 64
_CHUNKS_AHEAD = 3

# Starting a process costs as much as reading several thousand files, since it imports torch.
_WORTH_A_PROCESS = 5000


def read_all(
    read: Callable[[Item], Result], items: Sequence[Item], workers: int | None, label: Callable[[Item], str] = str
) -> Iterator[Result]:
    """Yield ``read(item)`` for each item, in order.

    Args:
        read: Picklable; what it raises ends everything.
        items: What to read.
        workers: Processes; 0 reads in this one. None: one for each core, at most 4, since one process writes what
            they read; this one if there is little to read.
        label: Names an item in an error.

    Raises:
        TorchRelabelError: If a process dies.
    """
    if workers is None:
        workers = min(_cores(), 4) if len(items) >= _WORTH_A_PROCESS else 0
    chunks = [items[start : start + _ITEMS_AT_ONCE] for start in range(0, len(items), _ITEMS_AT_ONCE)]
    workers = min(workers, len(chunks))
    if not workers:
        yield from map(read, items)
        return
    # Spawned, since a fork would inherit torch's threads and the open store.
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin)
    waiting: deque[tuple[Sequence[Item], Future[list[Result]]]] = deque()
    try:
        for chunk in chunks:
            waiting.append((chunk, pool.submit(_read_chunk, read, chunk)))
            if len(waiting) > _CHUNKS_AHEAD * workers:
                yield from _result(waiting.popleft(), label)
        while waiting:
            yield from _result(waiting.popleft(), label)
    finally:
        pool.shutdown(cancel_futures=True)


def _result(waiting: tuple[Sequence[Item], Future[list[Result]]], label: Callable[[Item], str]) -> list[Result]:
    chunk, future = waiting
    try:
        return future.result()
    except BrokenProcessPool:
        raise TorchRelabelError(
            f"A reading process died, perhaps of too little memory, while these were read: {label(chunk[0])} to "
            f"{label(chunk[-1])}, or what follows. The same command continues; --workers 0 reads in one process."
        ) from None


def _read_chunk(read: Callable[[Item], Result], chunk: Sequence[Item]) -> list[Result]:
    return [read(item) for item in chunk]


def _begin() -> None:
    # Ctrl-C reaches every process of the terminal; the main process stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
