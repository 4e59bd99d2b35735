"""Reading in several processes: order, a bounded lead, and a death that is reported."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import torchrelabel.importers.processes
from torchrelabel.errors import TorchRelabelError
from torchrelabel.importers.processes import read_all


def process_of(item: int) -> tuple[int, int]:
    return item, os.getpid()


def die_at_150(item: int) -> int:
    if item == 150:
        os._exit(9)
    return item


def test_one_process_reads_in_order_and_no_further_than_asked() -> None:
    read = []
    results = read_all(lambda item: read.append(item) or item, range(500), 0)
    assert [next(results), next(results)] == [0, 1]
    assert read == [0, 1]


def test_little_is_read_without_starting_processes() -> None:
    assert {process for _, process in read_all(process_of, range(500), None)} == {os.getpid()}


def test_other_processes_read_in_order() -> None:
    results = list(read_all(process_of, range(500), 2))
    assert [item for item, _ in results] == list(range(500))
    assert os.getpid() not in {process for _, process in results}


def test_processes_do_not_run_far_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted = []

    class Pool:
        def __init__(self, *_: object, **__: object) -> None: ...

        def submit(self, read: object, function: object, chunk: range) -> object:
            submitted.append(chunk)
            return self

        def result(self) -> Iterator[int]:
            return iter([0])

        def shutdown(self, **_: object) -> None: ...

    monkeypatch.setattr(torchrelabel.importers.processes, "ProcessPoolExecutor", Pool)
    next(read_all(process_of, range(64 * 100), 2))
    assert len(submitted) == 7  # three chunks for each process, and the one that is awaited


def test_a_process_that_dies_ends_the_import_with_the_place() -> None:
    with pytest.raises(TorchRelabelError, match=r"A reading process died, .* 128 to 191, or what follows. The same"):
        list(read_all(die_at_150, range(192), 1))
