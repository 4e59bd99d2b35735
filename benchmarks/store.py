"""What a label map costs: bytes on disk and time to read, for each codec.

    python benchmarks/store.py             # 20,000 maps of 15 x 15 x 5 of 1000 classes with a residual
    python benchmarks/store.py --orders    # bytes of deflated class indices, by order and level

The maps are those of an annotator that sees two to four objects: each lifts the logits of a dozen related classes where
a smooth field says that it is, over a bed of class biases and noise. One thread, warm cache, median of the repeats.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.layout import shard_file

Floats = NDArray[np.float64]


def smooth_field(rng: np.random.Generator, rows: int, columns: int) -> Floats:
    """A random field ``[rows, columns]`` with about three hills and valleys each way."""
    coarse = rng.normal(size=(4, 4))
    down, across = (interpolation(count) for count in (rows, columns))
    return down @ coarse @ across.T


def interpolation(count: int) -> Floats:
    """Weights ``[count, 4]`` of four knots, eased so that hills are round."""
    place = np.linspace(0, 3, count)
    knot = np.minimum(place.astype(int), 2)
    fraction = place - knot
    eased = fraction * fraction * (3 - 2 * fraction)
    weights = np.zeros((count, 4))
    weights[np.arange(count), knot] = 1 - eased
    weights[np.arange(count), knot + 1] += eased
    return weights


def realistic_map(
    rng: np.random.Generator, rows: int, columns: int, top_k: int, num_classes: int, noise: float
) -> tuple[Floats, NDArray[np.int64], Floats]:
    """Scores and classes ``[K, h, w]`` and residual ``[h, w]`` of an image with two to four objects."""
    logits = rng.normal(0, 0.7, (num_classes, 1, 1)) + rng.normal(0, noise, (num_classes, rows, columns))
    for _ in range(rng.integers(2, 5)):
        presence = np.clip(smooth_field(rng, rows, columns) + 0.6, 0, None)
        for related, height in zip(rng.choice(num_classes, 12, replace=False), np.linspace(6, 2, 12), strict=True):
            logits[related] += height * presence + 0.5 * smooth_field(rng, rows, columns)
    order = np.argsort(-logits, axis=0)
    ordered = np.take_along_axis(logits, order, axis=0)
    return ordered[:top_k], order[:top_k], np.logaddexp.reduce(ordered[top_k:], axis=0)


def measure(codec: str, maps: list[tuple[Floats, NDArray[np.int64], Floats]], count: int, repeats: int) -> str:
    """Write ``count`` maps in sorted order, read them all, and say what it cost."""
    keys = [f"n{index // 1300:08d}/n{index // 1300:08d}_{index:05d}.JPEG" for index in range(count)]
    top_k = len(maps[0][0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maps.lmdb"
        started = time.perf_counter()
        with LabelStoreWriter(path, num_classes=1000, top_k=top_k, codec=codec, residual=True) as writer:
            for index, key in enumerate(keys):
                writer.put(key, *maps[index % len(maps)])
        written = (time.perf_counter() - started) / count
        size = (path / shard_file(0)).stat().st_size / count
        store = LabelStore(path)
        times = []
        for _ in range(repeats + 1):
            started = time.perf_counter()
            for key in keys:
                store[key]
            times.append((time.perf_counter() - started) / count)
        store.close()
    read = statistics.median(times[1:])  # the first pass warms the cache
    return (
        f"{codec:8} {size:6.0f} bytes a map on disk, 1.28 M maps {size * 1281167 / 1e9:.2f} GB; "
        f"read and decode {read * 1e6:.1f} us (fastest pass {min(times) * 1e6:.1f}); write {written * 1e6:.0f} us"
    )


def compare_orders(maps: list[tuple[Floats, NDArray[np.int64], Floats]]) -> None:
    """Print how many bytes the indices of one map deflate to, by order and level."""
    orders = {"plane after plane": (0, 1, 2), "cell after cell": (1, 2, 0), "row after row": (1, 0, 2)}
    for name, axes in orders.items():
        for level in (1, 6, 9):
            total = 0
            for _, classes, _ in maps:
                _, indices = np.unique(classes, return_inverse=True)
                planes = indices.reshape(classes.shape).astype(np.uint8).transpose(axes)
                deflate = zlib.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS)
                total += len(deflate.compress(planes.tobytes()) + deflate.flush())
            print(f"{name:18} level {level}: {total / len(maps):.0f} bytes")


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=20000, help="number of maps in the store")
    parser.add_argument("--repeats", type=int, default=5, help="number of timed passes over the store")
    parser.add_argument("--noise", type=float, default=0.15, help="standard deviation of the noise on every logit")
    parser.add_argument("--orders", action="store_true", help="compare orders of the class indices instead")
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    maps = [realistic_map(rng, 15, 15, 5, 1000, arguments.noise) for _ in range(100)]
    if arguments.orders:
        compare_orders(maps)
        return
    for codec in ("float16", "uint8"):
        print(measure(codec, maps, arguments.maps, arguments.repeats), flush=True)


if __name__ == "__main__":
    main()
