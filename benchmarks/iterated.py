"""Does iterated learning (MILe) find the labels that a folder does not have, and does it add to label maps?

    python benchmarks/iterated.py --out iterated --seeds 3 --json iterated.json

Scenes of the demo, of two kinds. "large": each shows one large digit and one to three small ones, its folder is the
large one's, and of every fifth scene a small one's, as in the demo. "either": each shows one large digit and one small
one, and its folder is either's. The same small student learns the same random crops from the folder's class (one-hot)
and from the labels that the scenes' maps give for the crops (ReLabel), each with plain BCE and with iterated learning,
and ReLabel's with the paper's softmax besides. Tested on whole scenes of digits that neither annotator nor student has
seen, of which all digits are known: top-1 (the large digit), multi-label accuracy (the first class is one of the digits
that are there), F1 (those whose sigmoid is above 0.25, or 0.5, and the first, against those that are there) and how
many classes are named at 0.25.

Prints a Markdown table, mean and standard error over seeds. Within a seed every row has the same first weights, crops
and order; another --scene-seed draws other scenes. Sources: MILe, Rajeswar et al. 2022,
https://arxiv.org/abs/2111.12172; ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2
from tqdm import tqdm

from torchrelabel import LabelMapDataset, RandomResizedCropWithLabelMap
from torchrelabel.annotate import annotate
from torchrelabel.demo.annotator import MODEL, TRAINED_AT, copy_annotator
from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.folders import FolderSettings, make_scene_folder
from torchrelabel.demo.students import RATIO, SCALE, SIZE, HeldOutScenes, load_test_scenes, make_student
from torchrelabel.evaluate.metrics import f1, in_set, top_k, with_best
from torchrelabel.iterated import IteratedLearning

CLASSES, BATCH = 10, 64
# Labels, and how they are learnt: "bce", "mile", "softmax".
ROWS = {
    "one-hot, BCE": ("one-hot", "bce"),
    "one-hot, MILe": ("one-hot", "mile"),
    "ReLabel, softmax": ("soft", "softmax"),
    "ReLabel, BCE": ("soft", "bce"),
    "ReLabel, MILe": ("soft", "mile"),
}
# Fewest and most small digits, and the share of folders that are a small one's.
KINDS = {"large": ((1, 3), 0.2), "either": ((1, 1), 0.5)}
MEASURES = ("top1", "multilabel", "f1_25", "f1_50", "named")


def make_scenes(out: Path, kind: str, scenes: int, test_scenes: int, seed: int) -> tuple[Path, Path, HeldOutScenes]:
    """The folder to learn from, its label maps, and the scenes to test on."""
    out.mkdir(parents=True, exist_ok=True)
    training_digits, test_digits = load_digits_split()
    small, wrong = KINDS[kind]
    settings = FolderSettings("train", scenes, seed, small=small, wrong=wrong)
    folder = make_scene_folder(out / "train", training_digits, settings)
    test = make_scene_folder(out / "test", test_digits, FolderSettings("test", test_scenes, seed + 1, small))
    copy_annotator(out / "annotator.pth")
    annotate(
        folder.root,
        out / "maps.lmdb",
        model=MODEL,
        checkpoint=out / "annotator.pth",
        image_size=TRAINED_AT,
        device="cpu",
        workers=0,
        progress=False,
    )
    return folder.root, out / "maps.lmdb", load_test_scenes(test)


def draw_crops(folder: Path, label_maps: Path, epochs: int) -> tuple[Tensor, Tensor, Tensor]:
    """All crops of all epochs, ``[E, N, 3, S, S]`` uint8, with the folder's class and the label of the crop."""
    torch.manual_seed(0)
    pipeline = v2.Compose([RandomResizedCropWithLabelMap(SIZE, SCALE, RATIO, antialias=True), v2.ToImage()])
    images = ImageFolder(str(folder))
    dataset = LabelMapDataset(images, label_maps, transforms=pipeline)
    crops = torch.empty(epochs, len(dataset), 3, SIZE, SIZE, dtype=torch.uint8)
    soft = torch.empty(epochs, len(dataset), CLASSES)
    for epoch in tqdm(range(epochs), desc="crops", disable=None, leave=False):
        for index in range(len(dataset)):
            crops[epoch, index], soft[epoch, index] = dataset[index][:2]
    return crops, torch.tensor(images.targets), soft


def train(
    crops: Tensor, labels: Tensor, how: str, seed: int, *, k1: int, k2: int, threshold: float, rate: float
) -> nn.Module:
    """Train a student, on labels ``[N]`` or ``[E, N, C]``."""
    model = make_student(seed).to(memory_format=torch.channels_last)
    criterion: Any = nn.CrossEntropyLoss()
    if how != "softmax":
        criterion = IteratedLearning(
            model, num_classes=CLASSES, k1=k1, k2=k2 if how == "mile" else 0, threshold=threshold
        )

    def loss(images: Tensor, epoch: int, batch: Tensor) -> Tensor:
        target = labels[batch] if labels.dim() == 1 else labels[epoch, batch]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return criterion(model(images).float(), target)  # type: ignore[no-any-return]

    return fit(model, crops, loss, seed, rate)


def fit(
    model: nn.Module, crops: Tensor, loss: Callable[[Tensor, int, Tensor], Tensor], seed: int, rate: float
) -> nn.Module:
    """Train a model on crops ``[E, N, 3, S, S]``, uint8, by a loss of images, epoch and scene numbers."""
    epochs, count = crops.shape[:2]
    steps = count // BATCH
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.2)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        order = torch.randperm(count, generator=generator)
        for batch in order[: steps * BATCH].split(BATCH):
            images = (crops[epoch, batch].float() / 255 - 0.4) / 0.2
            value = loss(images.contiguous(memory_format=torch.channels_last), epoch, batch)
            optimizer.zero_grad()
            value.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
    return model.eval()


@torch.inference_mode()
def measure(model: nn.Module, how: str, test: HeldOutScenes) -> dict[str, float]:
    """The measures of a student; of a softmax its own probabilities are held to the thresholds."""
    scores = torch.cat([model(images) for images in test.images.split(256)])
    top = scores.topk(1).indices
    right = [set(row.nonzero()[:, 0].tolist()) for row in test.present]
    probabilities = scores.softmax(1) if how == "softmax" else scores.sigmoid()
    named = {}
    for percent in (25, 50):
        above = [tuple(row.nonzero()[:, 0].tolist()) for row in probabilities > percent / 100]
        named[percent] = with_best(top, above)
    return {
        "top1": top_k(top, test.large.tolist(), 1),
        "multilabel": in_set(top, right),
        "f1_25": f1(named[25], right),
        "f1_50": f1(named[50], right),
        "named": sum(map(len, named[25])) / len(named[25]),
    }


def table(runs: list[dict[str, Any]]) -> str:
    """Mean and standard error over seeds, as Markdown."""
    lines = [
        "| labels and loss | top-1 | multi-label | F1 at .25 | F1 at .5 | above .25 |",
        "|---|---|---|---|---|---|",
    ]
    for row in ROWS:
        cells = []
        for name in MEASURES:
            values = [run[name] * (1 if name == "named" else 100) for run in runs if run["row"] == row]
            if values:
                error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
                cells.append(f"{statistics.mean(values):.2f} ± {error:.2f}")
        if cells:
            lines.append(f"| {row} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("iterated"))
    numbers = {"scenes": 2500, "test-scenes": 3000, "scene-seed": 1, "epochs": 12, "seeds": 3, "first-seed": 0}
    for option, default in numbers.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--k1", type=int, help="[default: those of an epoch]")
    parser.add_argument("--k2", type=int, help="[default: those of an epoch]")
    parser.add_argument("--threshold", type=float, default=0.25)
    parser.add_argument("--rate", type=float, default=4e-3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    epoch = given.scenes // BATCH
    settings = {"k1": given.k1 or epoch, "k2": given.k2 or epoch, "threshold": given.threshold}
    runs: list[dict[str, Any]] = []
    for kind in given.kinds:
        drawn = (given.scenes, given.test_scenes, given.scene_seed)
        folder, label_maps, test = make_scenes(given.out / kind, kind, *drawn)
        crops, hot, soft = draw_crops(folder, label_maps, given.epochs)
        for seed in range(given.first_seed, given.first_seed + given.seeds):
            for row in given.rows:
                labels, how = ROWS[row]
                began = time.perf_counter()
                model = train(crops, hot if labels == "one-hot" else soft, how, seed, rate=given.rate, **settings)
                runs.append({"kind": kind, "row": row, "seed": seed, **measure(model, how, test)})
                print(f"{runs[-1]}, {time.perf_counter() - began:.0f} s", flush=True)
    print(f"\n{given.scenes} scenes, {given.test_scenes} test scenes, {given.epochs} epochs, {settings}")
    for kind in given.kinds:
        print(f"\n{kind}\n\n{table([run for run in runs if run['kind'] == kind])}")
    if given.json is not None:
        given.json.write_text(json.dumps({"settings": settings, "runs": runs}, indent=2))


if __name__ == "__main__":
    main()
