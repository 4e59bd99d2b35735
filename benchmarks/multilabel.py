"""What do the digits of a crop, read off label maps, teach a network of several labels?

    python benchmarks/multilabel.py --out multilabel --seeds 3 --json multilabel.json

Scenes of the demo: one large digit and one to three small ones; the folder knows one of them, of every fifth scene a
small one, and the scene itself all. The same small student learns the same random crops by binary cross entropy, from
seven kinds of labels. Tested on whole scenes of digits that neither annotator nor student has seen: mAP, the mean over
digits of the area under precision and recall (torchmetrics), of a scene's digits.

Prints a Markdown table, mean and standard error over seeds. Within a seed every row has the same first weights, crops
and order; another --scene-seed draws other scenes. Source: ReLabel, Yun et al. 2021,
https://arxiv.org/abs/2101.05022, table 10, which does not say how a map becomes a target of several classes.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, one_hot
from torchmetrics.classification import MultilabelAveragePrecision
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from benchmarks.iterated import BATCH, CLASSES, fit, make_scenes
from torchrelabel import LabelMapDataset, LabelPooling, RandomResizedCropWithLabelMap, ViewBox
from torchrelabel.demo.folders import SceneRecord, read_scene_folder
from torchrelabel.demo.students import RATIO, SCALE, make_student, visible_share
from torchrelabel.label_map import LabelMapBatch

ROWS = {
    "folder": "the folder's one label",
    "image": "all digits of the scene, by hand",
    "whole": "multi-hot of the whole image, from maps",
    "crop": "multi-hot of the crop, from maps",
    "shares": "shares of the crop, from maps",
    "tokens": "what one of 4 x 4 tokens of the crop shows, from maps",
    "boxes": "all digits of the crop, by their boxes",
}


def digits_within(record: SceneRecord, view: ViewBox) -> Tensor:
    """A one for each digit of which a crop shows half or more, ``[C]``."""
    height, width = record.size
    crop = (view.x1 * width, view.y1 * height, view.x2 * width, view.y2 * height)
    shown = [digit for digit, box in zip(record.digits, record.boxes, strict=True) if visible_share(box, crop) >= 0.5]
    return torch.zeros(CLASSES).index_fill(0, torch.tensor(shown, dtype=torch.long), 1)


def draw_crops(folder: Path, label_maps: Path, epochs: int, size: int, threshold: float) -> tuple[Tensor, Any]:
    """All crops of all epochs, ``[E, N, 3, S, S]`` uint8, and their labels of each kind, ``[E, N, C]``."""
    torch.manual_seed(0)
    pipeline = v2.Compose([RandomResizedCropWithLabelMap(size, SCALE, RATIO, antialias=True), v2.ToImage()])
    images = ImageFolder(str(folder))
    dataset = LabelMapDataset(images, label_maps, transforms=pipeline, pooling=None)
    records = read_scene_folder(folder).records
    known = [records[Path(path).relative_to(folder).as_posix()] for path, _ in images.samples]
    hot, shares = LabelPooling(activation="multi-hot", threshold=threshold), LabelPooling()
    tokens = LabelPooling((4, 4), activation="multi-hot", threshold=0.5)
    crops = torch.empty(epochs, len(dataset), 3, size, size, dtype=torch.uint8)
    labels = {row: torch.empty(epochs, len(dataset), CLASSES) for row in ROWS}
    labels["folder"][:] = one_hot(torch.tensor(images.targets), CLASSES)
    labels["image"][:] = torch.stack([digits_within(record, ViewBox()) for record in known])
    for epoch in tqdm(range(epochs), desc="crops", disable=None, leave=False):
        maps = []
        for index, record in enumerate(known):
            crops[epoch, index], label_map = dataset[index][:2]
            maps.append(label_map)
            labels["boxes"][epoch, index] = digits_within(record, label_map.view_box)
        batch = LabelMapBatch.stack(maps)
        whole = LabelMapBatch.stack([each.with_view(ViewBox(), each.canvas_size) for each in maps])
        labels["crop"][epoch], labels["shares"][epoch] = hot(batch), shares(batch)
        labels["whole"][epoch] = hot(whole)
        labels["tokens"][epoch] = tokens(batch).amax((2, 3))
    return crops, labels


def train(crops: Tensor, labels: Tensor, seed: int, rate: float) -> nn.Module:
    """Train a student on labels ``[E, N, C]``."""
    model = make_student(seed).to(memory_format=torch.channels_last)

    def loss(images: Tensor, epoch: int, batch: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits = model(images).float()
        return binary_cross_entropy_with_logits(logits, labels[epoch, batch], reduction="sum") / BATCH

    return fit(model, crops, loss, seed, rate)


def load_scenes(folder: Path, size: int) -> tuple[Tensor, Tensor]:
    """Whole test scenes ``[N, 3, S, S]``, and a one for each of their digits ``[N, C]``."""
    steps = [v2.ToImage(), v2.Resize((size, size), antialias=True), v2.ToDtype(torch.float32, scale=True)]
    images = ImageFolder(str(folder), transform=v2.Compose([*steps, v2.Normalize([0.4] * 3, [0.2] * 3)]))
    records = read_scene_folder(folder).records
    keys = [Path(path).relative_to(folder).as_posix() for path, _ in images.samples]
    present = torch.stack([digits_within(records[key], ViewBox()) for key in keys])
    return torch.stack([image for image, _ in images]), present.long()


@torch.inference_mode()
def measure(model: nn.Module, images: Tensor, present: Tensor) -> dict[str, float]:
    """mAP, and the mean number of digits above one half."""
    scores = torch.cat([model(batch) for batch in images.split(256)]).sigmoid()
    mean_precision = MultilabelAveragePrecision(num_labels=CLASSES, average="macro")
    return {"map": float(mean_precision(scores, present)), "named": float((scores > 0.5).sum(1).float().mean())}


def quality(labels: Tensor, boxes: Tensor) -> tuple[float, float, float]:
    """How much of the labels is right, how much of what the boxes say they find, and how many there are a crop."""
    both = float((labels * boxes).sum())
    return both / float(labels.sum()), both / float(boxes.sum()), float(labels.sum(-1).mean())


def table(runs: list[dict[str, Any]], truth: dict[str, tuple[float, float, float]]) -> str:
    """Mean and standard error over seeds, as Markdown."""
    lines = ["| labels | right, found | a crop | mAP |", "|---|---|---|---|"]
    for row, words in ROWS.items():
        values = [100 * run["map"] for run in runs if run["row"] == row]
        if values:
            error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            right, found, count = truth[row]
            lines.append(
                f"| {words} | {right:.0%}, {found:.0%} | {count:.2f} | {statistics.mean(values):.1f} ± {error:.1f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("multilabel"))
    numbers = {"scenes": 2500, "test-scenes": 3000, "scene-seed": 1, "epochs": 12, "seeds": 3, "size": 64}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--threshold", type=float, default=0.1, help="of multi-hot labels [default: %(default)s]")
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    folder, label_maps, _ = make_scenes(given.out, "large", given.scenes, given.test_scenes, given.scene_seed)
    images, present = load_scenes(given.out / "test", given.size)
    crops, labels = draw_crops(folder, label_maps, given.epochs, given.size, given.threshold)
    truth = {row: quality(label, labels["boxes"]) for row, label in labels.items()}
    runs: list[dict[str, Any]] = []
    for seed in range(given.seeds):
        for row in given.rows:
            began = time.perf_counter()
            model = train(crops, labels[row], seed, given.rate)
            runs.append({"row": row, "seed": seed, **measure(model, images, present)})
            print(f"{runs[-1]}, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{given.scenes} scenes, {given.test_scenes} test scenes, {given.epochs} epochs, {given.size} px\n")
    print(table(runs, truth))
    if given.json is not None:
        given.json.write_text(json.dumps({"right, found, a crop": truth, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
