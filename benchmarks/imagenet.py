"""A store of ImageNet's size: how fast it is written, opened, read and looked through, and what a worker needs.

    python -m benchmarks.imagenet float16 --path /some/disk/maps.lmdb    # 1,281,167 records, about 5 GB
    python -m benchmarks.imagenet uint8 --count 20000                    # a small one

Records are `benchmarks.synthetic`'s maps in turn, with keys in sorted order. "Cold" is after the system was asked to
forget the store's pages (posix_fadvise). Each reading figure comes from a process of its own; one thread.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks import synthetic
from torchrelabel.store import LabelStore, LabelStoreWriter

_DIFFERENT_MAPS = 1000
_RANDOM_READS = 100_000
_COLD_READS = 2_000
_WARM_READS = 15_000


def write(path: Path, codec: str, count: int) -> dict[str, float]:
    """Write the store, and say how long it took and what it occupies."""
    maps, keys = synthetic.pool(_DIFFERENT_MAPS), synthetic.keys(count)
    started, busy = time.perf_counter(), time.process_time()
    with LabelStoreWriter(path, num_classes=1000, top_k=5, codec=codec, residual=True, grid=(15, 15)) as writer:
        for index, key in enumerate(keys):
            writer.put(key, *maps[index % _DIFFERENT_MAPS])
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    size = sum(file.stat().st_blocks * 512 for file in path.iterdir())
    return {
        "written a second": count / seconds,
        "written a CPU second": count / busy,
        "bytes an image on disk (du)": size / count,
    }


def timed(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def reading(what: str, path: Path, count: int) -> dict[str, float]:
    """One measurement of a store that is there; run in a process of its own."""
    keys = synthetic.keys(count)
    order = random.Random(0).choices(keys, k=min(_RANDOM_READS, 4 * count))
    import lmdb  # noqa: F401  # which takes longer to load than a store to open

    if what == "open":
        return {"open and find one key, ms": 1000 * timed(lambda: keys[count // 2] in LabelStore(path))}
    store = LabelStore(path)
    if what == "cold reads":
        some = order[: min(_COLD_READS, count // 4)]
        return {"random reads a second, cold": len(some) / timed(lambda: [store[key] for key in some])}
    if what == "cold disk":
        return {"the disk's own random reads of 8 KiB a second": raw_reads(path)}
    if what == "warm reads":
        # Few enough that a system which soon forgets pages keeps them from pass to pass.
        some = order[:_WARM_READS]
        for _ in range(2):
            for key in some:
                store[key]
        busy = time.process_time()
        seconds = timed(lambda: [None for key in some if store[key] is None])
        return {
            "random reads and decodes a second, warm": len(some) / seconds,
            "random reads and decodes a CPU second, warm": len(some) / (time.process_time() - busy),
        }
    if what == "memory":
        before = private_bytes()
        for key in order[:_WARM_READS]:
            store[key]
        return {"private memory that reading takes, MB": (private_bytes() - before) / 1e6}
    if what in ("in, all keys, cold", "in, all keys, warm"):
        if what.endswith("warm"):
            all(key in store for key in keys)
        return {f"{what}, s": timed(lambda: all(key in store for key in keys))}
    if what in ("iterate keys, cold", "iterate keys, warm"):
        if what.endswith("warm"):
            list(store)
        return {f"{what}, s": timed(lambda: sum(1 for _ in store))}
    if what == "len":
        return {"len, ms": 1000 * timed(lambda: len(store))}
    if what == "dataset":
        return dataset_figures(path, keys)
    raise ValueError(what)


class Samples:
    """A data set of a million samples that looks like an ImageFolder, and loads no image."""

    def __init__(self, root: str, keys: list[str]) -> None:
        self.root, self.transform = root, None
        self.samples = [(f"{root}/{key}", 0) for key in keys]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        import PIL.Image

        return PIL.Image.new("RGB", (20, 15)), 0


def dataset_figures(path: Path, keys: list[str]) -> dict[str, float]:
    """What a LabelMapDataset over all samples costs beside the data set that it wraps."""
    from torchvision.transforms import v2

    from torchrelabel import LabelMapDataset, RandomResizedCropWithLabelMap

    inner, made = Samples("/data/train", keys), []
    seconds = timed(
        lambda: made.append(LabelMapDataset(inner, path, transforms=v2.Compose([RandomResizedCropWithLabelMap(16)])))
    )
    dataset = made[0]
    sent = len(pickle.dumps(dataset)) - len(pickle.dumps(inner))
    reading, writing = os.pipe()
    if os.fork() == 0:
        before = private_bytes()
        for index in random.Random(0).choices(range(len(keys)), k=5000):
            dataset[index]
        os.write(writing, str(private_bytes() - before).encode())
        os._exit(0)
    os.wait()
    grown = int(os.read(reading, 100))
    return {
        "LabelMapDataset over all samples, s": seconds,
        "it adds to what a spawned worker is sent, KB": sent / 1e3,
        "a forked worker grows in 5,000 samples by, MB": grown / 1e6,
    }


def raw_reads(path: Path, seconds: float = 5.0) -> float:
    """What the disk gives, to compare cold reads with: 8 KiB from anywhere in the largest file of the store."""
    file = max(path.glob("*.mdb"), key=lambda each: each.stat().st_size)
    descriptor, rng, count = os.open(file, os.O_RDONLY), random.Random(1), 0
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
    pages, started = file.stat().st_size // 4096 - 1, time.perf_counter()
    while time.perf_counter() < started + seconds:
        os.pread(descriptor, 8192, 4096 * rng.randrange(pages))
        count += 1
    os.close(descriptor)
    return count / seconds


def private_bytes() -> int:
    """Memory that no file backs, of this process."""
    for line in Path("/proc/self/smaps_rollup").read_text().splitlines():
        if line.startswith("Anonymous:"):
            return 1024 * int(line.split()[1])
    raise OSError("the system does not tell")


def forget(path: Path) -> None:
    """Ask the system to drop the pages of the store from its cache."""
    for file in path.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


READINGS = [
    "open",
    "len",
    "iterate keys, cold",
    "iterate keys, warm",
    "in, all keys, cold",
    "in, all keys, warm",
    "cold disk",
    "cold reads",
    "warm reads",
    "memory",
    "dataset",
]


def commands(path: Path) -> dict[str, float]:
    """How long ``torchrelabel info`` and ``verify`` take."""
    figures = {}
    for command in ("info", "verify"):
        forget(path)
        call = [sys.executable, "-m", "torchrelabel", command, os.fspath(path)]
        figures[f"{command}, cold, s"] = timed(
            lambda call=call: subprocess.run(call, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # type: ignore[misc]
        )
    return figures


def measure(path: Path, codec: str, count: int, *, keep: bool = False, skip: Sequence[str] = ()) -> dict[str, float]:
    """All figures of one store."""
    figures: dict[str, float] = {}
    if not (path / "header.msgpack").exists():
        figures |= write(path, codec, count)
        show(codec, figures)
    try:
        for what in [reading for reading in READINGS if reading not in skip]:
            if what == "open" or "cold" in what:
                forget(path)
            call = [sys.executable, "-m", "benchmarks.imagenet", codec, "--path", os.fspath(path)]
            run = subprocess.run(
                [*call, "--count", str(count), "--only", what], check=True, stdout=subprocess.PIPE, text=True
            )
            found = json.loads(run.stdout)
            show(codec, found)
            figures |= found
        found = commands(path)
        show(codec, found)
        figures |= found
    finally:
        if not keep:
            shutil.rmtree(path)
    return figures


def show(codec: str, figures: dict[str, float]) -> None:
    for name, figure in figures.items():
        print(f"{codec:8} {name:48} {figure:12,.1f}", file=sys.stderr, flush=True)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("codec", choices=["float16", "uint8"])
    parser.add_argument("--path", type=Path, default=Path("benchmark-maps.lmdb"), help="where to write the store")
    parser.add_argument("--count", type=int, default=synthetic.IMAGES, help="number of records")
    parser.add_argument("--keep", action="store_true", help="do not delete the store; one that is there is measured")
    parser.add_argument("--json", type=Path, help="write the figures to this file, too")
    parser.add_argument("--skip", nargs="+", default=[], choices=READINGS, help="what not to measure")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        print(json.dumps(reading(given.only, given.path, given.count)))
        return
    figures = measure(given.path, given.codec, given.count, keep=given.keep, skip=given.skip)
    if given.json:
        given.json.write_text(json.dumps({"codec": given.codec, "records": given.count, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
