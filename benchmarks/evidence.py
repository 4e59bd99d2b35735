"""Which label rule trains the better student? Every rule on the demo's scenes, with the same crops and weights.

    torchrelabel demo                                # makes torchrelabel-demo/ with scenes, annotator and label maps
    python benchmarks/evidence.py torchrelabel-demo --seeds 3 --processes 2

Prints a Markdown table: top-1 on the large digit of the test scenes, and the share of test scenes where the student
names any digit that is present. docs/evidence.md has a table that this script printed, and says what it does not show.
Source of the rules: Yun et al. 2021, https://arxiv.org/abs/2101.05022, tables 2 and 5 and section 4.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import (
    CutMixWithLabelMap,
    LabelMapBatch,
    LabelMapDataset,
    LabelPooling,
    LabelStore,
    MixUpWithLabelMap,
    RandomResizedCropWithLabelMap,
)
from torchrelabel.data.keys import relative_key
from torchrelabel.data.records import label_map_of
from torchrelabel.demo.folders import read_scene_folder
from torchrelabel.demo.students import RATIO, SCALE, SIZE, load_test_scenes, make_student
from torchrelabel.demo.training import predict

CLASSES = 10
Batch = tuple[Tensor, Tensor]
Rule = Callable[[Tensor, LabelMapBatch, Tensor], Batch]


def whole_images(maps: LabelMapBatch) -> LabelMapBatch:
    """The same maps, each looked at whole, whatever the crop shows."""
    return with_views(maps, torch.tensor([[0.0, 0.0, 1.0, 1.0]]).expand(len(maps), 4))


def swapped_axes(maps: LabelMapBatch) -> LabelMapBatch:
    """The mistake of the published implementations: (top, left, bottom, right) read as (x1, y1, x2, y2)."""
    return with_views(maps, maps.view_boxes[:, [1, 0, 3, 2]])


def with_views(maps: LabelMapBatch, view_boxes: Tensor) -> LabelMapBatch:
    """The same maps, seen through other boxes."""
    return LabelMapBatch(
        maps.scores,
        maps.classes,
        num_classes=maps.num_classes,
        view_boxes=view_boxes,
        canvas_sizes=maps.canvas_sizes,
        residual=maps.residual,
        score_kind=maps.score_kind,
    )


ZERO, RESIDUAL, SINGLE = LabelPooling(), LabelPooling(fill="residual"), LabelPooling(activation="argmax")


def hot(targets: Tensor) -> Tensor:
    """One-hot labels, [B, C]."""
    return one_hot(targets, CLASSES).float()


RULES: dict[str, Rule] = {
    "one-hot": lambda x, maps, y: (x, hot(y)),
    "label smoothing 0.1": lambda x, maps, y: (x, hot(y) * 0.9 + 0.1 / CLASSES),
    "CutMix": lambda x, maps, y: CutMixWithLabelMap(num_classes=CLASSES)(x, y),
    "MixUp (alpha 0.2)": lambda x, maps, y: MixUpWithLabelMap(0.2, num_classes=CLASSES)(x, y),
    "ReLabel = localized, multi": lambda x, maps, y: (x, ZERO(maps)),
    "localized, single": lambda x, maps, y: (x, SINGLE(maps)),
    "global, multi": lambda x, maps, y: (x, ZERO(whole_images(maps))),
    "global, single": lambda x, maps, y: (x, SINGLE(whole_images(maps))),
    "ReLabel, fill=residual": lambda x, maps, y: (x, RESIDUAL(maps)),
    "ReLabel, axes swapped": lambda x, maps, y: (x, ZERO(swapped_axes(maps))),
    "half ReLabel, half one-hot": lambda x, maps, y: (x, 0.5 * ZERO(maps) + 0.5 * hot(y)),
    "ReLabel + CutMix, mixed": lambda x, maps, y: CutMixWithLabelMap()(x, maps),
    "ReLabel + CutMix, localized": lambda x, maps, y: CutMixWithLabelMap(labels="localized")(x, maps),
    "ReLabel, fill=residual + CutMix, mixed": lambda x, maps, y: CutMixWithLabelMap(pooling=RESIDUAL)(x, maps),
    "ReLabel, fill=residual + CutMix, localized": lambda x, maps, y: CutMixWithLabelMap(
        labels="localized", pooling=RESIDUAL
    )(x, maps),
    "ReLabel + MixUp (alpha 0.2)": lambda x, maps, y: MixUpWithLabelMap(0.2)(x, maps),
}


class InMemory(Dataset):
    """The scenes of a folder, decoded once: (image, label, label)."""

    def __init__(self, root: Path) -> None:
        folder = ImageFolder(str(root))
        self.keys = [relative_key(path, root) for path, _ in folder.samples]
        self.items = [(image.copy(), label, label) for image, label in folder]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> tuple:
        return self.items[index]


_data: tuple = ()


def load(out: Path) -> None:
    """Load scenes, maps and test scenes into this process."""
    global _data
    torch.set_num_threads(1)
    scenes = InMemory(out / "train")
    store = LabelStore(out / "maps.lmdb")
    maps = {
        key: label_map_of(store[key], store.header, image.size[::-1])
        for key, (image, _, _) in zip(scenes.keys, scenes.items, strict=True)
    }
    pipeline = v2.Compose(
        [
            RandomResizedCropWithLabelMap(SIZE, SCALE, RATIO, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.4] * 3, [0.2] * 3),
        ]
    )
    dataset = LabelMapDataset(scenes, maps, transforms=pipeline, pooling=None, key=scenes.keys)
    _data = dataset, load_test_scenes(read_scene_folder(out / "test"))


def run(task: tuple[str, int, int]) -> tuple[str, int, float, float, float]:
    """Train one student by one rule: (rule, seed, top-1, any digit present, seconds)."""
    name, seed, epochs = task
    dataset, test = _data
    rule = RULES[name]
    began = time.perf_counter()
    student = make_student(seed)
    loader = DataLoader(dataset, 64, shuffle=True, drop_last=True, generator=torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW(student.parameters(), 4e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * len(loader), pct_start=0.2)
    crops = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        student.train()
        # Mixing draws random numbers, too: each epoch begins its crops anew, so that they are the same for every rule.
        torch.manual_seed(int(torch.randint(2**62, (), generator=crops)))
        batches = iter(loader)
        for _ in range(len(loader)):
            images, maps, targets = next(batches)
            state = torch.get_rng_state()
            images, labels = rule(images, maps, targets)
            torch.set_rng_state(state)
            loss = cross_entropy(student(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    named = predict(student, test.images)
    top1 = (named == test.large).float().mean().item()
    present = test.present[torch.arange(len(named)), named].float().mean().item()
    return name, seed, 100 * top1, 100 * present, time.perf_counter() - began


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="torchrelabel-demo", type=Path, help="made by `torchrelabel demo`")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES))
    parser.add_argument("--json", type=Path, help="write every run here")
    arguments = parser.parse_args()
    tasks = [(name, seed, arguments.epochs) for seed in range(arguments.seeds) for name in arguments.rules]
    results = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, load, (arguments.out,)) as pool:
        for result in pool.imap_unordered(run, tasks):
            results.append(result)
            print(f"# {result[0]}, seed {result[1]}: {result[2]:.1f} {result[3]:.1f}, {result[4]:.0f} s", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))
    print(f"\n{arguments.seeds} seeds, {arguments.epochs} epochs, mean and (standard deviation)\n")
    print("| labels | top-1 | names a digit present |\n|---|---|---|")
    for name in arguments.rules:
        columns = []
        for which in (2, 3):
            values = [result[which] for result in results if result[0] == name]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            columns.append(f"{statistics.mean(values):.1f} ({spread:.1f})")
        print(f"| {name} | {' | '.join(columns)} |")


if __name__ == "__main__":
    main()
