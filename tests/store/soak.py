"""A store that is written, killed, starved of disk and read at once, for as long as wanted. Run by test_soak.py.

    python -m tests.store.soak 600      # ten minutes; prints a summary as JSON

One writer at a time puts maps in an order that is not sorted, notes failures and takes them away, finishes now and then
and goes on in a new part. It is killed at random, or its file may not grow any more as on a full disk. What it has
committed it writes down beside the store. Three readers ask for keys, lengths, failures and all keys meanwhile, and are
stopped for a while or killed. Never allowed are: a reader that ends by itself, an answer that lacks what was written
down before the question, a map that is not what was put, and a store that in the end is not sound.
"""

import collections
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from tests.store.label_maps import make_map
from torchrelabel.errors import StoreError, TorchRelabelError
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.verify import verify

SETTINGS = {"num_classes": 20, "top_k": 3, "shards": 2}
DIFFERENT = 50


def key_of(index):
    return f"{index * 7919 % 1000:03d}/{index}.jpg"


def committed(path):
    try:
        return int(path.with_suffix(".committed").read_text() or 0)
    except FileNotFoundError:
        return 0


def write(path, seed):
    """Put maps, and write down how many are committed, until somebody or a full disk ends it."""
    rng, maps = random.Random(seed), [make_map(index) for index in range(DIFFERENT)]
    note = path.with_suffix(".committed")
    while True:
        with LabelStoreWriter(path, **SETTINGS, commit_every=10**9, resume=True) as writer:
            index = committed(path)
            for _ in range(rng.randrange(1, 60)):
                for _ in range(rng.randrange(1, 200)):
                    writer.put(key_of(index), *maps[index % DIFFERENT])
                    writer.put_failure(f"bad/{index % 300}.jpg", "cut short" * rng.randrange(9))
                    index += 1
                writer.commit()
                temporary = note.with_suffix(".new")
                temporary.write_text(str(index))
                temporary.replace(note)


def read(path, seed, seconds):
    """Ask until the time is over; print what came of it."""
    rng, maps = random.Random(seed), [make_map(index) for index in range(DIFFERENT)]
    counts, end = collections.Counter(), time.monotonic() + seconds
    while not committed(path):
        time.sleep(0.05)
    store = LabelStore(path)
    while time.monotonic() < end:
        known, what = committed(path), rng.choice(["get"] * 40 + ["in"] * 20 + ["len", "keys", "failures", "missing"])
        index = rng.randrange(known)
        try:
            if what == "get":
                record = store.get(key_of(index))
                want = maps[index % DIFFERENT]
                right = record is not None and np.array_equal(record.classes, want[1])
                right = right and np.array_equal(record.scores, want[0].astype(np.float16))
            elif what == "in":
                right = key_of(index) in store
            elif what == "missing":
                right = "nobody.jpg" not in store and store.get("nobody.jpg") is None
            elif what == "len":
                right = len(store) >= known
            elif what == "keys":
                keys = list(store)
                right = keys == sorted(set(keys)) and {key_of(index) for index in range(known)} <= set(keys)
            else:
                right = len(store.failures) <= 300
            counts[what if right else f"WRONG {what}"] += 1
        except TorchRelabelError as error:
            counts[f"WRONG {what}: {type(error).__name__} {error}"[:200]] += 1
    print(json.dumps(counts))


def start(path, *arguments, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.soak", *map(str, arguments), os.fspath(path)], **options
    )


def soak(folder, seconds, seed=0):
    """Run it all; return what was counted."""
    rng, path = random.Random(seed), Path(folder) / "maps.lmdb"
    counts, end = collections.Counter(), time.monotonic() + seconds
    readers = []
    turn = 0
    while time.monotonic() < end:
        turn += 1
        full = rng.random() < 0.3
        room = sum(file.stat().st_size for file in path.glob("*.mdb")) + 400_000 if full else 0
        writer = start(path, "write", turn, room, stderr=subprocess.PIPE, text=True)
        while len(readers) < 3:
            left = max(end - time.monotonic(), 1)
            readers.append(
                start(path, "read", turn * 10 + len(readers), min(left, 60), stdout=subprocess.PIPE, text=True)
            )
        until = min(time.monotonic() + rng.uniform(1, 8), end)
        while time.monotonic() < until and writer.poll() is None and readers:
            reader = rng.choice(readers)
            if reader.poll() is None and rng.random() < 0.3:
                reader.send_signal(signal.SIGSTOP)
                time.sleep(rng.uniform(0.01, 0.5))
                reader.send_signal(signal.SIGCONT)
            elif rng.random() < 0.02:
                reader.kill()
                counts["readers killed"] += 1
            time.sleep(0.02)
            for done in [each for each in readers if each.poll() is not None]:
                readers.remove(done)
                count_reader(done, counts)
        if writer.poll() is None:
            writer.kill()
            counts["writers killed"] += 1
        said = writer.communicate()[1]
        if writer.returncode == 3 and "no space left to write" in said:
            counts["writers without room"] += 1
        elif writer.returncode != -signal.SIGKILL:
            counts[f"WRONG end of a writer: {writer.returncode} {said[-300:]}"] += 1
    for reader in readers:
        reader.wait(120)
        count_reader(reader, counts)
    with LabelStoreWriter(path, **SETTINGS, resume=True):
        pass
    store, known = LabelStore(path), committed(path)
    found = verify(store, [key_of(index) for index in range(known)])
    if not found.sound:
        counts[f"WRONG in the end: {found.damaged} {found.missing[:5]} {found.miscounted}"[:400]] += 1
    header = store.header
    return dict(sorted(counts.items())) | {"maps": known, "files": sum(header.parts), "shards": header.shards}


def count_reader(reader, counts):
    said = reader.communicate()[0]
    if reader.returncode == 0:
        counts.update(json.loads(said))
    elif reader.returncode != -signal.SIGKILL:
        counts[f"WRONG end of a reader: {reader.returncode}"] += 1


def main(what, *arguments):
    if what == "read":
        seed, seconds, path = arguments
        read(Path(path), int(seed), float(seconds))
    elif what == "write":
        seed, room, path = arguments
        if int(room):
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (int(room), int(room)))
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        try:
            write(Path(path), int(seed))
        except StoreError as error:
            print(error, file=sys.stderr)
            sys.exit(3)
    else:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(soak(folder, float(what)), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
