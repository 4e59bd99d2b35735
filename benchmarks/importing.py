"""What importing a tree of ReLabel's layout costs: files a second, bytes on disk before and after.

    python benchmarks/importing.py                    # 20,000 files of [2, 5, 15, 15], some of them damaged
    python benchmarks/importing.py --workers 1 2 4

The files have just been written, so they are read from a warm cache; a cold disk may need longer to find 1.28 M files
than everything measured here takes. Bytes are those that files occupy, in blocks of the file system.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from store import realistic_map

from torchrelabel.importers import import_relabel

_DAMAGED_EACH = 500


def write_tree(root: Path, count: int) -> int:
    """Write ``count`` files, every 500th damaged in one of four ways; return how many are damaged."""
    rng = np.random.default_rng(0)
    maps = [realistic_map(rng, 15, 15, 5, 1000, 0.15) for _ in range(100)]
    tensors = [torch.from_numpy(np.stack([scores, classes]).astype(np.float32)) for scores, classes, _ in maps]
    damaged = 0
    for index in range(count):
        folder = root / f"n{index // 100:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{folder.name}_{index}.pt"
        tensor = tensors[index % len(tensors)]
        if index % _DAMAGED_EACH:
            torch.save(tensor, path)
            continue
        way = damaged % 4
        damaged += 1
        if way == 0:
            torch.save(tensor, path)
            path.write_bytes(path.read_bytes()[:5000])
        elif way == 1:
            path.write_bytes(b"")
        elif way == 2:
            torch.save({"scores": tensor}, path)
        else:
            torch.save(tensor + 0.25, path)
    return damaged


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=20000, help="number of files")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2], help="numbers of reading processes")
    parser.add_argument("--codec", default="float16", help="how records are stored")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        damaged = write_tree(Path(folder) / "tree", arguments.files)
        print(f"{arguments.files} files, {damaged} of them damaged", flush=True)
        for workers in arguments.workers:
            started = time.perf_counter()
            summary = import_relabel(
                Path(folder) / "tree",
                Path(folder) / f"{workers}.lmdb",
                workers=workers,
                codec=arguments.codec,
                progress=False,
            )
            seconds = time.perf_counter() - started
            print(
                f"workers {workers}: {summary.maps_per_second:.0f} files/s, {seconds:.1f} s in all; "
                f"{summary.imported} imported, {len(summary.failed)} failed; "
                f"{summary.bytes_before / 1e6:.1f} MB before, {summary.bytes_after / 1e6:.1f} MB after",
                flush=True,
            )


if __name__ == "__main__":
    main()
