"""How fast is ``annotate`` against the bare forward pass of its model, and where does the rest go?

    python benchmarks/annotate.py --model resnet18 --images 256 --threads 1 --workers 1
    python benchmarks/annotate.py --model resnet50 --images 4096 --batch-size 128 --device cuda --amp --workers 12

Noise images of 500 x 375 pixels (ImageNet's average size is close to it) are written to a temporary folder as JPEG;
weights are random, which costs the same. Every figure is the best of ``--repeats``; model building is left out.
Loading runs in the workers, so CPU time of this process is what the run adds to the forward pass on a busy machine.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from torchrelabel.annotate import Annotator, annotate
from torchrelabel.annotate.images import ImagesToAnnotate, collate, find_images
from torchrelabel.store import LabelStoreWriter


def best(repeats: int, runs: dict[str, Callable[[], object]]) -> dict[str, tuple[float, float]]:
    """Return the shortest wall time and the least CPU time of this process per run, in seconds.

    The runs take turns, so that a busy moment of the machine does not fall on one of them alone.
    """
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: (min(wall for wall, _ in pairs), min(cpu for _, cpu in pairs)) for name, pairs in times.items()}


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1, help="of the forward pass")
    parser.add_argument("--workers", type=int, default=1, help="processes that load images")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--amp", action="store_true")
    parser.add_argument("--top-k", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    annotator = Annotator.from_timm(arguments.model, pretrained=False, device=arguments.device, amp=arguments.amp)

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "images"
        root.mkdir()
        random = np.random.default_rng(0)
        for number in range(arguments.images):
            blocks = random.integers(0, 256, (47, 63, 3), dtype=np.uint8)
            Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC).save(root / f"{number:05}.jpg")
        dataset = ImagesToAnnotate(
            find_images(root), find_images(root).keys, annotator.image_size, annotator.interpolation
        )
        indices = range(0, len(dataset), arguments.batch_size)

        def load() -> list[torch.Tensor]:
            return [
                collate([dataset[i] for i in range(start, min(start + arguments.batch_size, len(dataset)))]).pixels
                for start in indices
            ]

        pixels = load()
        batches = [annotator.normalise(batch) for batch in pixels]

        def wait() -> None:
            if annotator.device.type == "cuda":
                torch.cuda.synchronize()

        def bare() -> None:
            with torch.no_grad(), torch.autocast(annotator.device.type, torch.bfloat16, enabled=arguments.amp):
                for batch in batches:
                    annotator.head.model(batch)
            wait()

        def cells() -> None:
            for batch in batches:
                annotator.top_scores(batch, arguments.top_k)
            wait()

        tops = [annotator.top_scores(batch, arguments.top_k) for batch in batches]
        arrays = [[part.cpu().numpy() for part in top if part is not None] for top in tops]
        stores = iter(range(10**6))

        def write() -> None:
            path = Path(folder) / f"write{next(stores)}.lmdb"
            options = {"num_classes": annotator.num_classes, "top_k": arguments.top_k, "residual": True}
            with LabelStoreWriter(path, **options) as writer:
                number = 0
                for batch in arrays:
                    for record in zip(*batch, strict=True):
                        writer.put(dataset.keys[number], *record)
                        number += 1

        def whole() -> None:
            annotate(
                root,
                Path(folder) / f"run{next(stores)}.lmdb",
                model=annotator,
                top_k=arguments.top_k,
                batch_size=arguments.batch_size,
                workers=arguments.workers,
                progress=False,
            )

        bare()  # the first pass pays for memory and kernels
        runs = {"bare": bare, "cells": cells, "load": load, "write": write, "whole": whole}
        seconds = best(arguments.repeats, runs)
    names = {
        "bare": "bare forward, images preloaded",
        "cells": "every cell, top-k and residual",
        "load": "loading alone, in this process",
        "write": "encoding and writing alone",
        "whole": "the whole run",
    }
    print(f"{annotator.name} on {annotator.device}, {arguments.images} images at {annotator.image_size} px, ", end="")
    print(f"grid {annotator.grid}, {arguments.threads} threads, {arguments.workers} workers, torch {torch.__version__}")
    for name, (wall, cpu) in seconds.items():
        print(f"{names[name]:32}{arguments.images / wall:9.1f} images/s", end="")
        print(f"{1e3 * wall / arguments.images:9.3f} ms an image, CPU time here {1e3 * cpu / arguments.images:.3f} ms")
    (bare_wall, bare_cpu), (whole_wall, whole_cpu) = seconds["bare"], seconds["whole"]
    print(f"whole run / bare forward: {bare_wall / whole_wall:.3f}, by CPU time here {bare_cpu / whole_cpu:.3f}")


if __name__ == "__main__":
    main()
