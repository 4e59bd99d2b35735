"""What choices of the codecs cost: bytes of deflated class indices by order and level, and of planes as differences.

    python -m benchmarks.codecs

Bytes a map and microseconds a map (CPU time, fastest of the repeats), over 300 of `benchmarks.synthetic`'s maps.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable

import numpy as np

from benchmarks.synthetic import pool
from torchrelabel.store.codecs import Shape, _quantize, index_classes

SHAPE = Shape(5, 15, 15, 1000, True)


def deflated(content: bytes, level: int = 6) -> bytes:
    deflate = zlib.compressobj(level, zlib.DEFLATED, -12, 6)
    return deflate.compress(content) + deflate.flush()


def fastest_us(work: Callable[[], object], count: int, repeats: int = 20) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = time.process_time()
        work()
        best = min(best, time.process_time() - started)
    return best / count * 1e6


def report(name: str, contents: list[bytes], level: int = 6) -> None:
    streams = [deflated(content, level) for content in contents]
    size = np.mean([len(stream) for stream in streams])
    write = fastest_us(lambda: [deflated(content, level) for content in contents], len(contents))
    read = fastest_us(lambda: [zlib.decompress(stream, -15) for stream in streams], len(contents))
    print(f"{name:42} {size:7.0f} bytes, deflate {write:5.1f} us, inflate {read:5.1f} us")


def main() -> None:
    maps = pool(300)
    indices = [index_classes(SHAPE, each.classes)[1] for each in maps]
    print(f"{'distinct classes a map':42} {np.mean([int(each.max()) + 1 for each in indices]):7.0f}")
    for level in (1, 6, 9):
        report(f"indices cell after cell, level {level}", [each.tobytes() for each in indices], level)
    report("indices plane after plane", [each.reshape(225, 5).T.tobytes() for each in indices])
    report("indices row after row", [each.reshape(15, 15, 5).transpose(0, 2, 1).tobytes() for each in indices])
    levels = [_quantize(each.scores)[1].reshape(5, 225) for each in maps]
    for count in (0, 1, 2, 4):
        contents = [
            (planes[4 - count : 4] - planes[5 - count :]).tobytes() + each.tobytes()
            for planes, each in zip(levels, indices, strict=True)
        ]
        report(f"indices and {count} planes (of 225 bytes) less", contents)


if __name__ == "__main__":
    main()
