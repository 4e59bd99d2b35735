"""Mutated headers, records and LMDB files: nothing may crash, hang, grow or be answered wrong. Run by test_fuzz.py.

    python -m tests.store.fuzz 100000      # some hours; prints a summary as JSON

Of each hundred inputs, 40 are headers, 50 records, and 10 files of a finished store. A file is looked at in a forked
child: its keys, its length, its failures, each record, and verify's findings. What LMDB does to that child is counted,
since it trusts a page on the way to a key. Never allowed are: a record that is not what was put; an end in a walk
through keys or in a count, or a hang; and that verify calls sound what is not read as it was written.
"""

import collections
import json
import os
import random
import resource
import signal
import sys
import tempfile
from pathlib import Path

from tests.store.label_maps import make_map
from torchrelabel.errors import TorchRelabelError
from torchrelabel.store import LabelStore, LabelStoreWriter, StoreHeader
from torchrelabel.store.inspection import inspect
from torchrelabel.store.record import pack_record, unpack_record

PAGE = 4096
SECONDS = 60
KINDS = ["bit", "bits", "page header", "cut short", "zeros", "some zeros", "exchanged", "copied"]


def mutate(rng, content, kind=None):
    """One of the ways in which a file comes to harm."""
    kind = kind or rng.choice(KINDS)
    changed, pages = bytearray(content), max(len(content) // PAGE, 1)
    if kind in ("bit", "bits"):
        for _ in range(1 if kind == "bit" else 16):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "page header":
        place = rng.randrange(pages) * PAGE + rng.randrange(64)
        changed[place % len(changed)] = rng.randrange(256)
    elif kind == "cut short":
        del changed[rng.randrange(len(changed)) :]
    elif kind in ("zeros", "some zeros"):
        size = PAGE if kind == "zeros" else 512
        place = rng.randrange(max(len(changed) // size, 1)) * size
        changed[place : place + size] = bytes(len(changed[place : place + size]))
    elif kind == "exchanged":
        one, other = (rng.randrange(pages) * PAGE for _ in range(2))
        changed[one : one + PAGE], changed[other : other + PAGE] = (
            content[other : other + PAGE],
            content[one : one + PAGE],
        )
    else:
        size = rng.randrange(1, 4000)
        source, target = (rng.randrange(max(len(changed) - size, 1)) for _ in range(2))
        changed[target : target + size] = content[source : source + size]
    return kind, bytes(changed)


def limit(seconds):
    """End this process if it works for longer than that, or, however busy the machine is, waits for much longer."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.alarm(60 * seconds)


class Fuzz:
    """Mutates one store, and counts what comes of it."""

    def __init__(self, root, seed):
        self.rng = random.Random(seed)
        self.path = Path(root) / "maps.lmdb"
        with LabelStoreWriter(self.path, num_classes=20, top_k=3, codec="uint8", commit_every=70) as writer:
            for index in self.rng.sample(range(400), 400):
                writer.put(f"{index % 7}/{index:04d}.jpg", *make_map(index))
                if index % 20 == 0:
                    writer.put_failure(f"bad{index}.jpg", "cut short")
            writer.put("long/" * 120 + "x.jpg", *make_map(500))
        store = LabelStore(self.path)
        self.header = store.header
        self.content = store.header.to_bytes()
        self.want = {key: described(record) for key, record in store.items()}
        self.failures = store.failures
        store.close()
        self.file = self.path / "shard-00000.mdb"
        self.pages = self.file.read_bytes()
        self.record = pack_record(self.header, b"a.jpg", *make_map(), image_size=(5, 7))
        self.counts = collections.Counter()

    def run(self, count):
        for number in range(count):
            (self.headers if number % 10 < 4 else self.records if number % 10 < 9 else self.files)()
        return dict(sorted(self.counts.items()))

    def headers(self):
        _, content = mutate(self.rng, self.content)
        try:
            StoreHeader.from_bytes(content)
        except ValueError:
            self.counts["header refused"] += 1
        else:
            self.counts["header read" if content != self.content else "header unchanged"] += 1

    def records(self):
        _, content = mutate(self.rng, self.record)
        try:
            read = unpack_record(self.header, b"a.jpg", memoryview(content))
        except TorchRelabelError:
            self.counts["record refused"] += 1
        else:
            self.counts["record unchanged" if content == self.record else "WRONG record read"] += 1
            assert read.scores.shape == (3, 7, 5)

    def files(self):
        kind, content = mutate(self.rng, self.pages)
        self.file.write_bytes(content)
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                look(self, writing)
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            steps = pipe.read().decode().split(";")
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status < 0:
            name = signal.Signals(-status).name
            # LMDB trusts pages on the way to one key.
            allowed = steps[-1] in ("get", "verify") and name in ("SIGABRT", "SIGSEGV", "SIGBUS")
            self.counts[f"{'' if allowed else 'WRONG '}file, {kind}: {name} in {steps[-1]}"] += 1
        else:
            self.counts[f"file, {kind}: {steps[-1]}"] += 1


def described(record):
    return record.scores.tobytes(), record.classes.tobytes()


def look(fuzz, writing):
    """What a child does with a file; each step and the result are written to the pipe."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (4 * 2**30, 4 * 2**30))
    limit(SECONDS)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    found = set()

    def step(name, work):
        os.write(writing, f";{name}".encode())
        try:
            return work()
        except TorchRelabelError:
            found.add("an error")
        except Exception as error:
            found.add(f"WRONG {type(error).__name__} in {name}: {error}"[:120].replace(";", ","))

    store = LabelStore(fuzz.path)
    length = step("len", lambda: len(store))
    keys = step("iterate", lambda: list(store))
    failures = step("failures", lambda: store.failures)
    right = (
        keys == sorted(fuzz.want)
        and failures is not None
        and failures.keys() == fuzz.failures.keys()
        and length == len(keys)
    )
    if failures and failures != fuzz.failures:
        found.add("another reason")  # why there is no map: words that no checksum covers
    for key, want in fuzz.want.items():
        record = step("get", lambda key=key: store.get(key))
        if record is not None and described(record) != want:
            found.add("WRONG data")
        right = right and record is not None
    damaged, done = [], []
    # In this child, which may end: what verify's own process would do.
    step(
        "verify",
        lambda: inspect(
            fuzz.path, [(0, 0)], lambda kind, value: (damaged if says_damage(kind, value) else done).append(kind)
        ),
    )
    sound = not damaged and "file" in done
    if sound and not right:
        found.add("WRONG: sound, and not read as it was written")
    found.add("sound" if sound else "not sound")
    os.write(writing, f";{' and '.join(sorted(found))}".encode())


def says_damage(kind, value):
    return kind == "damaged" or (kind == "records" and any(problem for _, problem, _, _ in value))


def main(count, seed="0"):
    with tempfile.TemporaryDirectory() as folder:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        counts = Fuzz(folder, int(seed)).run(int(count))
        counts["peak growth, MB"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
    print(json.dumps(counts, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
