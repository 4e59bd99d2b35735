"""The rows of ``python -m benchmarks``: each measures ours and others on the same data."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import PIL.Image
import timm
import torch
from torch.utils.data import default_collate
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks import predecessor, synthetic
from torchrelabel import (
    CutMixWithLabelMap,
    LabelMapDataset,
    LabelPooling,
    LabelStore,
    LabelStoreWriter,
    RandomResizedCropWithLabelMap,
)
from torchrelabel.annotate import Annotator, annotate

BATCH = 32
TEACHER = "mobilenetv3_small_100"
CODECS = ("float16", "uint8")


@dataclass
class Row:
    """One line of the table: ``ratio`` says how many times better ours is. Without a unit, two figures of ours.

    ``ratios`` are the lowest and the highest of several runs, of which the figures are medians.
    """

    name: str
    unit: str
    ours: float
    other: str
    theirs: float
    more_is_better: bool = False
    ratios: tuple[float, float] | None = None

    @property
    def ratio(self) -> float | None:
        """How many times better ours is than the other; None where the two are not to be compared."""
        if not self.unit:
            return None
        return self.ours / self.theirs if self.more_is_better else self.theirs / self.ours

    def as_dict(self) -> dict[str, Any]:
        """The row for JSON."""
        return asdict(self) | {"ratio": self.ratio}


def middle(runs: Sequence[Row]) -> Row:
    """One row of the same row of several runs."""
    ratios = [run.ratio for run in runs if run.ratio is not None]
    return replace(
        runs[0],
        ours=statistics.median(run.ours for run in runs),
        theirs=statistics.median(run.theirs for run in runs),
        ratios=(min(ratios), max(ratios)) if ratios else None,
    )


class Data:
    """Images, their maps in a store of each codec, as files of the predecessors' and as msgpack."""

    def __init__(self, root: Path, images: int, maps: int) -> None:
        self.root = root
        self.images = root / "images"
        rng = np.random.default_rng(0)
        for index in range(images):
            path = self.images / f"{index % 10}" / f"{index:05d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            blocks = rng.integers(0, 256, (47, 63, 3), dtype=np.uint8)
            PIL.Image.fromarray(blocks).resize((500, 375), PIL.Image.Resampling.BICUBIC).save(path)
        self.image_keys = sorted(path.relative_to(self.images).as_posix() for path in self.images.rglob("*.jpg"))
        self.maps = synthetic.pool(maps)
        self.keys = [*self.image_keys, *(f"more/{index:06d}.jpg" for index in range(maps - images))]
        for codec in CODECS:
            with LabelStoreWriter(
                self.store(codec), num_classes=1000, top_k=5, codec=codec, residual=True, grid=(15, 15)
            ) as writer:
                for key, label_map in zip(self.keys, self.maps, strict=True):
                    writer.put(key, *label_map)
        for key, label_map in zip(self.keys, self.maps, strict=True):
            for kind in ("pt", "msgpack"):
                self.file(key, kind).parent.mkdir(parents=True, exist_ok=True)
            predecessor.save(self.file(key, "pt"), label_map)
            plain = {name: array.tobytes() for name, array in zip(label_map._fields, halved(label_map), strict=True)}
            self.file(key, "msgpack").write_bytes(msgpack.packb(plain))

    def store(self, codec: str) -> Path:
        return self.root / f"{codec}.lmdb"

    def file(self, key: str, kind: str) -> Path:
        return self.root / kind / f"{key}.{kind}"

    def on_disk(self, kind: str) -> float:
        """Bytes an image, as `du` counts them."""
        folder = self.store(kind) if kind in CODECS else self.root / kind
        return sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()) / len(self.keys)


def halved(label_map: synthetic.SyntheticMap) -> Iterator[np.ndarray[Any, Any]]:
    """Scores and residual in half precision, classes in 16 bits: what costs least without another thought."""
    return (array.astype(np.uint16 if array.dtype == np.int32 else np.float16) for array in label_map)


def median_us(work: Callable[[int], object], calls: int, repeats: int = 5) -> float:
    """Median CPU time of a call in microseconds: what else the machine does lengthens it little."""
    return medians_us([work], calls, repeats)[0]


def medians_us(works: Sequence[Callable[[int], object]], calls: int, repeats: int = 5) -> list[float]:
    """The same of each of several, in turn: what else the machine does lengthens all of them."""
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work(0)
    for _ in range(repeats):
        for work, own in zip(works, times, strict=True):
            started = time.process_time()
            for index in range(calls):
                work(index)
            own.append((time.process_time() - started) / calls * 1e6)
    return [statistics.median(own) for own in times]


def boxes(count: int) -> list[tuple[float, float, float, float]]:
    """Boxes of random resized crops of a 500 x 375 image, in fractions."""
    torch.manual_seed(0)
    image = torch.empty(3, 375, 500)
    drawn = v2.RandomResizedCrop(224)
    found = []
    for _ in range(count):
        params = drawn.make_params([image])
        top, left, height, width = (params[name] for name in ("top", "left", "height", "width"))
        found.append((left / 500, top / 375, (left + width) / 500, (top + height) / 375))
    return found


def label_path(data: Data) -> Iterator[Row]:
    """From a key and a crop to a label."""
    seen, count = boxes(len(data.keys)), len(data.keys)
    theirs = median_us(lambda i: predecessor.label(data.file(data.keys[i % count], "pt"), seen[i % count]), 300)
    for codec in CODECS:
        store = LabelStore(data.store(codec))
        ours = median_us(lambda i: store[data.keys[i % count]], 2000)  # noqa: B023 -- called before the next turn
        only_load = median_us(lambda i: torch.load(data.file(data.keys[i % count], "pt"), weights_only=True), 300)
        yield Row(f"read and decode a map, {codec}", "us", ours, "torch.load of a .pt file", only_load)
    dataset = LabelMapDataset(Blank(data, PLAIN), data.store("float16"), num_classes=1000)
    bare = Blank(data)
    some = [list(range(start, start + BATCH)) for start in range(0, count - BATCH + 1, BATCH)]
    with_maps = median_us(lambda i: fetch(dataset, some[i % len(some)]), 8) / BATCH
    cost = with_maps - median_us(lambda i: PLAIN(bare[i % count][0]), 400)
    yield Row("label of a crop, followed and pooled in the worker", "us", cost, "predecessors' way", theirs)
    unpooled = LabelMapDataset(Blank(data), data.store("float16"), transforms=CROP, num_classes=1000, pooling=None)
    pooling, size = LabelPooling(fill="zero"), 256

    def batch(turn: int) -> object:
        return pooling(default_collate(fetch(unpooled, [(turn * size + i) % count for i in range(size)]))[1])

    def plain(turn: int) -> object:
        return default_collate([PLAIN(bare[(turn * size + i) % count][0]) for i in range(size)])

    cost = (median_us(batch, 2, 3) - median_us(plain, 2, 3)) / size
    yield Row("label of a crop, moved with its map, pooled on the batch", "us", cost, "predecessors' way", theirs)


CROP = v2.Compose([RandomResizedCropWithLabelMap(16), v2.ToImage()])
PLAIN = v2.Compose([v2.RandomResizedCrop(16), v2.ToImage()])


class Blank:
    """A data set of the keys of all maps, its images as small as images can be."""

    def __init__(self, data: Data, transform: Any = None) -> None:
        self.samples = [(os.fspath(data.images / key), 0) for key in data.keys]
        self.root = os.fspath(data.images)
        self.image = PIL.Image.new("RGB", (20, 15))
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[PIL.Image.Image, int]:
        return self.image, 0


def loading(data: Data) -> Iterator[Row]:
    """A training loader's work in one process: decode, crop, flip, normalise, label."""
    steps = [v2.RandomResizedCrop(224), v2.RandomHorizontalFlip(), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    steps.append(v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pipeline = v2.Compose(steps)
    plain = ImageFolder(os.fspath(data.images), transform=pipeline)
    ours = LabelMapDataset(
        ImageFolder(os.fspath(data.images), transform=pipeline), data.store("float16"), num_classes=1000
    )
    seen, count = boxes(len(plain)), len(plain)
    teacher = timm.create_model(TEACHER, pretrained=False, num_classes=1000).eval()

    def some(index: int) -> list[int]:
        return [(BATCH * index + i) % count for i in range(BATCH)]

    def with_files(index: int) -> object:
        return [(plain[i][0], predecessor.label(data.file(data.image_keys[i], "pt"), seen[i])) for i in some(index)]

    def with_teacher(index: int) -> object:
        images = torch.stack([plain[i][0] for i in some(index)])
        with torch.no_grad():
            return teacher(images).softmax(1)

    works = [lambda i: fetch(ours, some(i)), lambda i: fetch(plain, some(i)), with_files, with_teacher]
    with_maps, *others = (1e6 * BATCH / each for each in medians_us(works, 2))
    for other, speed in zip(("without maps", "with .pt files", f"live teacher {TEACHER}"), others, strict=True):
        yield Row("loader with maps, one process", "images/s", with_maps, other, speed, True)


def fetch(dataset: Any, indices: list[int]) -> Any:
    """The samples of a batch as a DataLoader's worker has them."""
    at_once = getattr(dataset, "__getitems__", None)
    return at_once(indices) if at_once else [dataset[index] for index in indices]


def mixing(data: Data) -> Iterator[Row]:
    """CutMix of a batch of 256, and labels for a grid of tokens."""
    dataset = LabelMapDataset(Blank(data), data.store("float16"), transforms=CROP, num_classes=1000, pooling=None)
    maps = default_collate([(torch.zeros(3, 16, 16), dataset[i % len(dataset)][1]) for i in range(256)])
    images, soft = maps[0], torch.full((256, 1000), 1e-3)
    mixed, localized = CutMixWithLabelMap(labels="mixed"), CutMixWithLabelMap(labels="localized")
    ready = v2.CutMix(num_classes=1000)
    times = medians_us([lambda _: mixed(*maps), lambda _: localized(*maps), lambda _: ready(images, soft)], 10)
    for labels, ours in zip(("mixed", "localized"), times, strict=False):
        row = f"CutMix, {labels}, pooling included"
        yield Row(row, "us", ours / 256, "v2.CutMix of ready labels", times[-1] / 256)
    batch, pooling = maps[1][torch.arange(8)], LabelPooling((14, 14), "zero")
    works = [lambda _: pooling(batch), lambda _: [dense_tokens(label_map) for label_map in data.maps[:8]]]
    ours, theirs = (each / 8 for each in medians_us(works, 5))
    yield Row("14 x 14 token labels", "us", ours, "dense map and roi_align", theirs)


def dense_tokens(label_map: synthetic.SyntheticMap) -> torch.Tensor:
    """Labels of 14 x 14 tokens of a whole image, the dense way."""
    scores, classes = torch.from_numpy(label_map.scores), torch.from_numpy(label_map.classes).long()
    dense = torch.zeros(1000, 15, 15).scatter_(0, classes, scores)
    box = torch.tensor([[0.0, 0.0, 0.0, 15.0, 15.0]])
    return predecessor.roi_align(dense[None], box, (14, 14), aligned=True, sampling_ratio=-1)[0].softmax(0)


def on_disk(data: Data) -> Iterator[Row]:
    """Bytes an image, and what rounding does to labels."""
    for codec in CODECS:
        for kind, words in (("pt", "a .pt file"), ("msgpack", "a msgpack file")):
            yield Row(f"on disk, {codec}", "bytes an image", data.on_disk(codec), words, data.on_disk(kind))
    for codec in CODECS:
        store = LabelStore(data.store(codec))
        apart = np.array([distance(store[key], given) for key, given in zip(data.keys, data.maps, strict=True)])
        mean, worst = float(apart.mean()), float(apart.max())
        yield Row(f"total variation of labels by rounding, {codec}, mean", "", mean, "the worst map", worst)


def distance(record: Any, given: synthetic.SyntheticMap) -> float:
    """Total variation between the whole image's labels of a record and of what was put, zeros for what is not kept."""
    labels = []
    for scores, classes in ((record.scores, record.classes), (given.scores, given.classes)):
        logits = np.bincount(classes.ravel(), scores.ravel(), 1000) / scores[0].size
        shares = np.exp(logits - logits.max())
        labels.append(shares / shares.sum())
    return float(np.abs(labels[0] - labels[1]).sum() / 2)


def annotating(data: Data) -> Iterator[Row]:
    """The whole of annotate against the bare forward pass of its model, by CPU time of this process."""
    annotator = Annotator.from_timm("resnet18", pretrained=False)
    pixels = torch.randn(32, 3, annotator.image_size, annotator.image_size)
    batches = -(-len(data.image_keys) // 32)

    def bare(_: int) -> None:
        with torch.no_grad():
            for _ in range(batches):
                annotator.head.model(pixels)

    def whole(_: int) -> None:
        out = tempfile.mkdtemp(dir=data.root)
        annotate(data.images, out, model=annotator, batch_size=32, workers=1, progress=False, image_top_k=0)

    ours, theirs = medians_us([whole, bare], 1, 3)
    per_second = 1e6 * len(data.image_keys) / ours, 1e6 * 32 * batches / theirs
    yield Row("annotate, resnet18, workers apart", "images a CPU s", per_second[0], "bare forward", per_second[1], True)


def memory(data: Data) -> Iterator[Row]:
    """The peak of a process that loads batches with maps, and of one that does without."""
    peaks = []
    for maps in (os.fspath(data.store("float16")), ""):
        call = [sys.executable, "-m", "benchmarks.worker", os.fspath(data.images), maps]
        peaks.append(json.loads(subprocess.run(call, check=True, stdout=subprocess.PIPE).stdout)["peak"] / 1e6)
    yield Row("peak memory of a loading process", "MB", peaks[0], "without maps", peaks[1])


ALL: list[Callable[[Data], Iterator[Row]]] = [label_path, loading, mixing, on_disk, annotating, memory]
