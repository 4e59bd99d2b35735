"""verify: every record of a store is read and compared with the format, and its keys to a list of images."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import msgpack

from torchrelabel.store.layout import decode_key, encode_key, fingerprint, shard_file
from torchrelabel.store.reader import LabelStore

__all__ = ["Verification", "verify"]

_SHA256 = re.compile("[0-9a-f]{64}")

# A record is checked in microseconds; who says nothing for so long goes round in a damaged file.
_SECONDS_OF_SILENCE = 120.0


@dataclass
class Verification:
    """What was found in a store.

    Attributes:
        records: Label maps that could be read and are sound.
        damaged: What is wrong, and with which label map: its key; where a key cannot be known, LMDB's in hex, as
            ``digest 01...``, or ``failure 0066...`` for a note that an image failed; or the name of a whole file.
        failures: Key -> why the annotator could make no map of the image.
        grids: ``(h, w)`` -> how many maps have it.
        missing: Images that were asked for and have neither a map nor a failure, sorted.
        surplus: Maps of images that were not asked for, sorted.
        incomplete: Whether a writer never finished.
        miscounted: What the header says of the images, where that is wrong; otherwise empty.
    """

    records: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    grids: dict[tuple[int, int], int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    incomplete: bool = False
    miscounted: str = ""

    @property
    def sound(self) -> bool:
        """Whether every map can be relied on and none is missing. Images that failed are no fault of the store."""
        return not (self.damaged or self.missing or self.incomplete or self.miscounted)


def verify(
    store: LabelStore,
    images: Iterable[str] | None = None,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Verification:
    """Read every label map of a store and report what is wrong.

    Each key is looked up as a training run would, besides being walked to. LMDB ends a process that follows a damaged
    page, so that another process looks into the files, and how it ended is among the findings.

    Args:
        store: Which store.
        images: The keys that it should hold, such as those of a folder. None to ask only whether it is sound.
        progress: Wraps the iteration over the keys, as ``tqdm`` does.

    Returns:
        The findings. Damage is reported, not raised.
    """
    store = LabelStore(store.path)  # as it is now
    found = Verification(incomplete=not store.header.complete)
    keys = set(progress(_check(store, found)))
    if store.header.complete:
        found.miscounted = _miscounted(store, keys, found.failures)
    if images is not None:
        asked = set(images)
        for key in asked - keys - found.failures.keys():
            try:
                encode_key(key)
            except ValueError as error:  # the annotator could not put it into the store, not even as a failure
                found.failures[key] = str(error)
        found.missing = sorted(asked - keys - found.failures.keys())
        found.surplus = sorted(keys - asked)
    found.damaged = dict(sorted(found.damaged.items()))
    found.failures = dict(sorted(found.failures.items()))
    return found


def _check(store: LabelStore, found: Verification) -> Iterator[str]:
    """Note what is found, file by file; yield the key of every label map, sound or not."""
    header = store.header
    files = [(shard, part) for shard in range(header.shards) for part in range(store.part_count(shard))]
    while files:
        # One process for all files, and another one for those that are left when it was ended.
        inspection = _Inspection(store.path, files)
        for kind, value in inspection:
            if kind == "records":
                for name, problem, rows, columns in value:
                    key = decode_key(name)
                    yield key
                    if problem:
                        found.damaged[key] = problem
                    else:
                        found.records += 1
                        found.grids[rows, columns] = found.grids.get((rows, columns), 0) + 1
            elif kind == "damaged":
                found.damaged[decode_key(value[0])] = value[1]
            elif kind == "failures":
                found.failures |= {decode_key(name): decode_key(reason) for name, reason in value}
            else:  # a file is done with
                files = files[1:]
        if files:
            found.damaged[shard_file(*files[0])] = inspection.ended or "the process that checked it left it out"
            files = files[1:]


class _Inspection:
    """Another process that looks into files of a store, and what it says: pairs of a kind and a value."""

    def __init__(self, path: Path, files: list[tuple[int, int]]) -> None:
        self._arguments = [os.fspath(path), *(f"{shard}:{part}" for shard, part in files)]
        self.ended = ""

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        environment = os.environ | {
            "PYTHONPATH": os.pathsep.join(place for place in sys.path if place),
            "PYTHONFAULTHANDLER": "",
        }
        with tempfile.TemporaryFile() as errors:
            with subprocess.Popen(
                [sys.executable, "-c", _START, *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            ) as process:
                try:
                    yield from self._said(process)
                except BaseException:
                    process.kill()
                    raise
                if self.ended:
                    process.kill()
            errors.seek(0)
            last_words = errors.read().decode("utf-8", "replace").strip().splitlines()[-1:]
        if process.returncode and not self.ended:
            how = f"exit status {process.returncode}"
            if process.returncode < 0:
                how = signal.Signals(-process.returncode).name
            self.ended = f"LMDB ended the process that checked it ({': '.join([how, *last_words])}); copy it again"

    def _said(self, process: subprocess.Popen[bytes]) -> Iterator[tuple[str, Any]]:
        assert process.stdout is not None
        unpacker = msgpack.Unpacker(raw=False, max_buffer_size=2**31 - 1)
        said: queue.SimpleQueue[bytes] = queue.SimpleQueue()
        # A thread, since Windows waits for no pipe with a time limit.
        threading.Thread(target=_pass_on, args=(process.stdout, said), daemon=True).start()
        while True:
            try:
                piece = said.get(timeout=_SECONDS_OF_SILENCE)
            except queue.Empty:
                self.ended = f"checking it came to no end in {_SECONDS_OF_SILENCE:.0f} s: LMDB goes round in it"
                return
            if not piece:
                return
            unpacker.feed(piece)
            yield from unpacker


def _pass_on(pipe: IO[bytes], said: queue.SimpleQueue[bytes]) -> None:
    while piece := os.read(pipe.fileno(), 2**20):
        said.put(piece)
    said.put(b"")


# A core file of each damaged shard would help nobody.
_START = """
try:
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
except (ImportError, OSError, ValueError):
    pass
from torchrelabel.store.inspection import main
main()
"""


def _miscounted(store: LabelStore, keys: set[str], failures: dict[str, str]) -> str:
    dataset, there = store.header.dataset, keys | failures.keys()
    count, digest = dataset.get("count"), dataset.get("fingerprint")
    if not isinstance(count, int):
        return ""
    if len(there) < count:
        return (
            f"the header speaks of {count} images, and there are {len(keys)} label maps and "
            f"{len(failures)} images that failed"
        )
    # More than were counted are no fault: images are deleted, and their maps stay.
    comparable = len(there) == count and isinstance(digest, str) and _SHA256.fullmatch(digest)
    if comparable and fingerprint(there) != digest:
        return (
            f"the header speaks of {count} images, and those of the {len(keys)} label maps and {len(failures)} "
            f"failures are not those of which the header has the fingerprint: at least one was lost"
        )
    return ""
