"""How fast are the two engines of ``annotate`` on one machine: two ranks of torchrun against two actors of Ray?

    python -m benchmarks.engines --model resnet18 --images 240

Noise images of 500 x 375 pixels as JPEG, random weights, one thread a process, each process loading its own images.
Each engine annotates ``--images`` and then three times as many, from the start of the command to its end: the rate is
that of the difference, the rest is what starting takes. Printed as JSON, with the CPU time of decoding an image, and of
entering what Ray's actors send into a store, on the disk of this folder.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.synthetic import keys, pool
from torchrelabel.annotate.images import find_images, read_image, squashed
from torchrelabel.annotate.ray_engine import _Ledger
from torchrelabel.annotate.ray_tasks import Reply
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.store import LabelStoreWriter
from torchrelabel.store.record import pack_record

ENGINES = {
    "torchrun, 2 ranks": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
    "ray, 2 actors": [],
}
OPTIONS = {"torchrun, 2 ranks": ["--workers", "0"], "ray, 2 actors": ["--engine", "ray", "--num-actors", "2"]}


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet18")
    parser.add_argument("--images", type=int, default=240)
    arguments = parser.parse_args()
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        counts = (arguments.images, 3 * arguments.images)
        for count in counts:
            write_images(Path(folder) / str(count), count)
        for name in ENGINES:
            seconds = [run(name, Path(folder) / str(count), arguments.model) for count in counts]
            rate = (counts[1] - counts[0]) / (seconds[1] - seconds[0])
            figures[f"{name}, images/s"] = round(rate, 1)
            figures[f"{name}, seconds to start and end"] = round(seconds[0] - counts[0] / rate, 1)
        for size in ((475, 712), (224, 336)):
            figures[f"decode and squash to {size[0]} and {size[1]} px, CPU ms an image"] = decoding(
                Path(folder) / str(counts[0]), size
            )
    print(json.dumps(figures | entering(), indent=1))


def write_images(root: Path, count: int) -> None:
    """As `benchmarks.annotate` does."""
    root.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        blocks = random.integers(0, 256, (47, 63, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((500, 375), Image.Resampling.BICUBIC).save(root / f"{number:05}.jpg")


def run(engine: str, images: Path, model: str) -> float:
    """Seconds that a command takes."""
    store = images.parent / f"{images.name} {engine}.lmdb"
    command = [sys.executable, *ENGINES[engine], "-m", "torchrelabel", "annotate", str(images), "-o", str(store)]
    command += ["--model", model, "--no-pretrained", "--device", "cpu", "--image-topk", "0", *OPTIONS[engine]]
    started = time.perf_counter()
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def decoding(root: Path, sizes: tuple[int, int]) -> float:
    """Milliseconds of CPU time that an image takes until a model could see it at two sizes."""
    keys = find_images(root).keys[:100]
    started = time.process_time()
    for key in keys:
        with open(root / key, "rb") as file:
            image, _ = read_image(file)
        for size in sizes:
            squashed(image, size, "bicubic")
    return round((time.process_time() - started) / len(keys) * 1000, 2)


def entering(count: int = 20_480) -> dict[str, float]:
    """How many records a second the one writer of the Ray engine takes, and their bytes."""
    maps, random = pool(100), np.random.default_rng(0)
    image_scores = random.normal(0, 2, (100, 1000)).astype(np.float32)
    settings = {"num_classes": 1000, "top_k": 5, "residual": True, "image_top_k": 1000}
    with tempfile.TemporaryDirectory(dir=".") as folder, LabelStoreWriter(f"{folder}/maps.lmdb", **settings) as writer:
        replies = [Reply(unit, 0, True, [], []) for unit in range(count // 32)]
        for number, key in enumerate(keys(count)):
            record = pack_record(
                writer.header, key.encode(), *maps[number % 100], None, image_scores[number % 100], (500, 375)
            )
            replies[number % len(replies)].records.append((key, record))
        sent = [pickle.dumps(reply) for reply in replies]
        summary = Summary(folder)
        ledger = _Ledger(writer, summary, Notes(summary, loud=False), None, [])
        wall, cpu = time.perf_counter(), time.process_time()
        for content in sent:
            ledger.enter(pickle.loads(content))
        writer.commit()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "records entered a second": round(count / wall),
        "records entered a CPU second": round(count / cpu),
        "bytes sent for a record": round(sum(map(len, sent)) / count),
    }


if __name__ == "__main__":
    main()
