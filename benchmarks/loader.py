"""What label maps cost a training loader: images a second with them, over the same without.

    python benchmarks/loader.py                    # 1600 JPEGs of 500 x 375, two workers, 11 pairs of runs
    python benchmarks/loader.py --images 640 --pairs 3

The images are smooth noise with grain, about 100 KB each as those of ImageNet; the maps are 15 x 15 x 5 of 1000 classes
with a residual. Runs with and without maps alternate, and the ratio is the median of those of the pairs, so that what
else the machine does meanwhile strikes both alike. Workers make that ratio vary by several hundredths; the same batches
loaded in turn in this one process give a steadier one. At the end: where the time of a sample goes.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from torch.utils.data import DataLoader
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, LabelPooling, LabelStore, LabelStoreWriter
from torchrelabel.data.records import label_map_of
from torchrelabel.following import follow
from torchrelabel.label_map import LabelMapBatch
from torchrelabel.view import ViewBox

WIDTH, HEIGHT = 500, 375
NORMALIZE = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
V1 = v1.Compose(
    [v1.RandomResizedCrop(224), v1.RandomHorizontalFlip(), v1.ToTensor(), v1.Normalize(*NORMALIZE)],
)
V2 = v2.Compose(
    [
        v2.RandomResizedCrop(224),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(*NORMALIZE),
    ]
)


def make_images(root: Path, count: int) -> float:
    """Write JPEGs into ten class folders; the mean size of a file in KB."""
    rng = np.random.default_rng(0)
    total = 0
    for number in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)).astype(np.float32)
        grain = rng.normal(0, 14, (HEIGHT, WIDTH, 1)).astype(np.float32)
        path = root / f"class {number % 10}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)).save(path, quality=90)
        total += path.stat().st_size
    return total / count / 1000


def make_maps(images: Path, store: Path) -> None:
    rng = np.random.default_rng(0)
    with LabelStoreWriter(store, num_classes=1000, top_k=5, residual=True) as writer:
        for path in sorted(images.rglob("*.jpg")):
            scores = np.sort(rng.normal(5, 3, (5, 15, 15)).astype(np.float32), 0)[::-1]
            classes = rng.permuted(np.arange(1000, dtype=np.int64)[:60])[: 5 * 9].reshape(5, 3, 3)
            residual = rng.normal(4, 1, (15, 15)).astype(np.float32)
            writer.put(path.relative_to(images).as_posix(), scores, classes.repeat(5, 1).repeat(5, 2), residual)


def torch_loader(dataset: Any, workers: int) -> Any:
    return DataLoader(dataset, batch_size=64, num_workers=workers, shuffle=True, drop_last=True)


def timm_loader(dataset: Any, workers: int, color_jitter: float = 0.4) -> Any:
    """As timm's train.py has it unless told otherwise: uint8 images, collated by timm, normalised by its prefetcher."""
    device = torch.device("cpu")
    return create_loader(
        dataset, (3, 224, 224), 64, True, color_jitter=color_jitter, num_workers=workers, device=device
    )


def timm_loader_bare(dataset: Any, workers: int) -> Any:
    """The same without colour jitter: nothing but a crop and a flip."""
    return timm_loader(dataset, workers, color_jitter=0.0)


def throughput(loader: Any) -> float:
    """Images a second of one pass, the start of the workers not counted."""
    batches = iter(loader)
    next(batches)
    start = time.perf_counter()
    count = sum(len(labels) for _, labels in batches)
    return count / (time.perf_counter() - start)


def in_one_process(with_maps: Any, without: Any, make_loader: Callable[..., Any]) -> tuple[float, float]:
    """Microseconds a sample without maps, and what they add: lower quartiles of 15 turns, a mean over five batches."""
    order = torch.randperm(len(without)).tolist()
    times = np.zeros((2, 5, 15))
    loaders = [make_loader(dataset, 0) for dataset in (without, with_maps)]
    for turn in range(15):
        for batch in range(5):
            indices = order[batch * 64 : batch * 64 + 64]
            for which in (0, 1) if (turn + batch) % 2 else (1, 0):
                dataset = loaders[which].dataset
                torch.manual_seed(batch)
                random.seed(batch)
                start = time.perf_counter()
                fetch = getattr(dataset, "__getitems__", None)
                getattr(loaders[which], "loader", loaders[which]).collate_fn(
                    fetch(indices) if fetch else [dataset[index] for index in indices]
                )
                times[which, batch, turn] = (time.perf_counter() - start) / 64 * 1e6
    plain, ours = np.percentile(times, 25, axis=2).mean(1)
    return float(plain), float(ours - plain)


def microseconds(work: Callable[[], Any], calls: int = 200, repeats: int = 7) -> float:
    """Median time of a call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(calls):
            work()
        times.append((time.perf_counter() - start) / calls * 1e6)
    return statistics.median(times)


def parts_of_a_sample(images: Path, store: Path) -> dict[str, float]:
    """Microseconds a sample for what label maps add."""
    maps = LabelStore(store)
    keys = list(maps)
    with Image.open(images / keys[0]) as opened:
        loaded = opened.convert("RGB")
    pixels = Image.new("RGB", (32, 24))  # small, so that tracking is seen beside the work on pixels
    record, pooling, turn = maps[keys[0]], LabelPooling(), iter(range(10**9))

    def steps(image: Image.Image) -> Any:
        return image.crop((3, 2, 30, 20)).resize((9, 9)).transpose(Image.Transpose.FLIP_LEFT_RIGHT)

    def tracked() -> Any:
        return follow(steps, pixels)

    label_map = label_map_of(record, maps.header, loaded.size[::-1], ViewBox(0.2, 0.1, 0.7, 0.8))
    return {
        "tracking": microseconds(tracked) - microseconds(lambda: steps(pixels)),
        "reading": microseconds(lambda: maps[keys[next(turn) % len(keys)]]),
        "pooling, alone": microseconds(lambda: pooling(label_map)),
        "pooling, 64 at once": microseconds(lambda: pooling(LabelMapBatch.stack([label_map] * 64))) / 64,
        "(decoding the JPEG)": microseconds(lambda: Image.open(images / keys[0]).convert("RGB"), calls=20),
        "(the v1 pipeline)": microseconds(lambda: V1(loaded), calls=20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1600)
    parser.add_argument("--pairs", type=int, default=11)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        images, store = Path(folder) / "images", Path(folder) / "maps.lmdb"
        print(f"{arguments.images} images of {make_images(images, arguments.images):.0f} KB")
        make_maps(images, store)
        joint = LabelMapDataset(ImageFolder(images), store, transforms=V2, num_classes=1000)
        followed = {
            name: LabelMapDataset(ImageFolder(images, transform=pipeline), store, num_classes=1000)
            for name, pipeline in (("v1", V1), ("v2", V2))
        }
        plain = {"v1": ImageFolder(images, transform=V1), "v2": ImageFolder(images, transform=V2)}
        timms = [
            LabelMapDataset(create_dataset("", str(images)), store, num_classes=1000),
            create_dataset("", str(images)),
        ]
        for name, dataset, without, loader in (
            ("v1, followed", followed["v1"], plain["v1"], torch_loader),
            ("v2, followed", followed["v2"], plain["v2"], torch_loader),
            ("v2, joint", joint, plain["v2"], torch_loader),
            ("timm, prefetcher", *timms, timm_loader),
            ("timm, no jitter", *timms, timm_loader_bare),
        ):
            speeds = []
            for pair in range(arguments.pairs):
                order = (dataset, without) if pair % 2 else (without, dataset)  # neither always goes first
                first, second = (throughput(loader(each, arguments.workers)) for each in order)
                speeds.append((first, second) if pair % 2 else (second, first))
            ratios = [ours / theirs for ours, theirs in speeds]
            print(
                f"{name:16} {statistics.median(s for s, _ in speeds):6.0f} images/s with maps, "
                f"{statistics.median(s for _, s in speeds):6.0f} without, ratio {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f} to {max(ratios):.3f})"
            )
            alone, added = in_one_process(dataset, without, loader)
            print(
                f"{'':16} in one process {alone:.0f} us a sample, {added:.0f} more with maps, "
                f"ratio {alone / (alone + added):.3f}"
            )
        for part, time_taken in parts_of_a_sample(images, store).items():
            print(f"{part:20} {time_taken:8.1f} us a sample")


if __name__ == "__main__":
    main()
