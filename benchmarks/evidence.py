"""Does a student feel the label rule? One small student, the same crops, and only the labels differ.

    torchrelabel demo                                # makes torchrelabel-demo/ with the scenes and the annotator
    python benchmarks/evidence.py torchrelabel-demo --seeds 3 --processes 2 --json evidence.json --plot evidence.png

Within a seed every rule gets the same first weights, the same crops and the same order. The crops, what the annotator
says of each crop (live), and its label maps of the whole scenes at several sizes, no class cut off, are made once, in
OUT/evidence/, and mapped into memory by every process. The students then train in bfloat16, channels last (--float32
to compare): 24 s of one core of a CPU with AMX for 15 epochs instead of 45. What the annotator says of crops is in
bfloat16, too (off by 0.01 on average, where logits spread by 2.4), its maps in float32.

Prints a Markdown table for each share of wrong labels: how far the label is from what the annotator says of the crop
(KL, in nats, shares below 1e-4 counted as 1e-4), top-1 on the large digit of 4,000 scenes of digits that neither
annotator nor student has seen, and the difference to the paper's rule by seed; mean and standard error over seeds.
--json keeps every run: one that is in there with the same settings and the same labels is not repeated.

To add a rule, add one function to RULES; its half with the folder's own label comes with it. --rules without any only
makes the cache. Source of the paper's rule: Yun et al. 2021, https://arxiv.org/abs/2101.05022, sections 3.1, 3.2.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from torchrelabel import LabelMapBatch, LabelPooling
from torchrelabel.annotate import Annotator
from torchrelabel.annotate.annotator import averaged
from torchrelabel.annotate.calibrate import fit_by_area
from torchrelabel.annotate.images import squashed
from torchrelabel.calibration import Calibration
from torchrelabel.demo.annotator import TRAINED_AT
from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.folders import FolderSettings, SceneFolder, make_scene_folder, read_scene_folder
from torchrelabel.demo.scenes import wrong_labels
from torchrelabel.demo.students import SIZE, draw_crop, make_student

CLASSES, BATCH = 10, 64
MODEL = "test_efficientnet"  # of timm's
MAP_SIZES = (128, 192, 256, 288, 400)  # px; cells of 32 px each
WINDOWS = (2, 3)  # along each side
TEST_SCENES, TEST_SEED = 4000, 5
KL_EPOCHS, SMALLEST_SHARE = 3, 1e-4

# ---------------------------------------------------------------------------------------------------------------------
# Rules: (scenes [B], boxes [B, 4] xyxy as fractions of the scene, live logits [B, 10], the folder's labels [B]) to soft
# labels [B, 10], for all crops of an epoch at once. cached("maps-192")[scenes] is dense logits, [B, 10, h, w].

Rule = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
PAPER = "paper"


def hot(given: Tensor) -> Tensor:
    """One-hot labels, [B, 10]."""
    return one_hot(given, CLASSES).float()


def maps(
    kind: str, scenes: Tensor, boxes: Tensor, top: int = CLASSES, grid: Sequence[int] | None = None
) -> LabelMapBatch:
    """The maps of some scenes as a store holds them, the best classes of each cell, seen through boxes."""
    dense = cached(kind)[scenes]
    if grid is not None:
        dense = averaged(dense, grid)
    best = dense.topk(top, dim=1)
    rest = dense.scatter(1, best.indices, -torch.inf).logsumexp(1) if top < CLASSES else None
    return LabelMapBatch(
        best.values,
        best.indices,
        num_classes=CLASSES,
        view_boxes=boxes,
        canvas_sizes=[(SIZE, SIZE)] * len(boxes),
        residual=rest,
    )


@lru_cache(None)
def calibration(kind: str) -> Calibration:
    """How labels follow from maps of a kind and the whole image, fitted to 512 crops as `annotate` does it."""
    scenes, boxes, live = (cached(f"{name}-0-0")[:512] for name in ("scenes", "boxes", "live"))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    alone = calibrated_maps(kind, scenes, boxes, Calibration((1.0,), (0.0,), 1.0))
    parts = (LabelPooling(activation=None)(alone), alone.image_scores)
    (of_map, of_image), smallest = fit_by_area(parts, live.log_softmax(1), area)
    return Calibration(tuple(of_map.tolist()), tuple(of_image.tolist()), smallest)


def calibrated_maps(kind: str, scenes: Tensor, boxes: Tensor, fitted: Calibration) -> LabelMapBatch:
    """Maps as `annotate` makes them: enlarged, averaged to the cells of the annotator's own size; or of windows."""
    whole = cached("whole")[scenes].log_softmax(1)
    grid = cached(f"maps-{TRAINED_AT}").shape[2:] if kind.startswith("maps") else None
    plain = maps(kind, scenes, boxes, 5, grid)
    return LabelMapBatch(
        plain.scores,
        plain.classes,
        num_classes=CLASSES,
        view_boxes=boxes,
        canvas_sizes=plain.canvas_sizes,
        residual=plain.residual,
        image_scores=whole,
        calibration=fitted,
    )


def calibrated(kind: str, scenes: Tensor, boxes: Tensor) -> Tensor:
    """The labels of maps by the rule that was fitted for their kind."""
    return AUTO(calibrated_maps(kind, scenes, boxes, calibration(kind)))


ZERO, RESIDUAL, AUTO = LabelPooling(fill="zero"), LabelPooling(fill="residual"), LabelPooling()

RULES: dict[str, Rule] = {
    # One label for the whole image.
    "whole": lambda scenes, boxes, live, given: cached("whole")[scenes].softmax(1),
    # Maps at 192 px: the paper's rule, its top 5 with the others at zero or sharing the residual; no class cut off.
    PAPER: lambda scenes, boxes, live, given: ZERO(maps("maps-192", scenes, boxes, 5)),
    "residual": lambda scenes, boxes, live, given: RESIDUAL(maps("maps-192", scenes, boxes, 5)),
    "all classes": lambda scenes, boxes, live, given: ZERO(maps("maps-192", scenes, boxes)),
    # The default: the whole image's logits and the map's, joined as fitted to the annotator. Enlarged 1.5 and 2 times.
    "calibrated": lambda scenes, boxes, live, given: calibrated("maps-192", scenes, boxes),
    "calibrated, twice": lambda scenes, boxes, live, given: calibrated("maps-256", scenes, boxes),
    # The same with overlapping windows for cells (--windows).
    "2 x 2 windows": lambda scenes, boxes, live, given: calibrated("windows-2", scenes, boxes),
    "3 x 3 windows": lambda scenes, boxes, live, given: calibrated("windows-3", scenes, boxes),
    # The annotator looks at each crop.
    "live": lambda scenes, boxes, live, given: live.softmax(1),
}


def half(rule: Rule) -> Rule:
    """Half a rule's label and half the folder's own."""
    return lambda scenes, boxes, live, given: 0.5 * rule(scenes, boxes, live, given) + 0.5 * hot(given)


RULES = {
    "one-hot": lambda scenes, boxes, live, given: hot(given),
    "smoothing": lambda scenes, boxes, live, given: 0.9 * hot(given) + 0.1 / CLASSES,
    **RULES,
    **{f"half {name}": half(rule) for name, rule in RULES.items()},
}

# ---------------------------------------------------------------------------------------------------------------------
# What every rule shares, made once

_out, _checkpoint = Path(), Path()


def begin(out: Path, checkpoint: Path) -> None:
    """Tell this process where everything is."""
    global _out, _checkpoint
    _out, _checkpoint = out, checkpoint
    torch.set_num_threads(1)


def path_of(name: str) -> Path:
    return _out / "evidence" / f"{name}.npy"


@lru_cache(None)
def cached(name: str) -> Tensor:
    """An array of the cache, mapped into memory, never to be written to."""
    return torch.from_numpy(np.load(path_of(name), mmap_mode="c"))


def keep(name: str, array: Any) -> None:
    """Add an array to the cache, all of it or nothing."""
    new = path_of(name).with_suffix(".new")
    with new.open("wb") as file:
        np.save(file, np.asarray(array))
    new.replace(path_of(name))


@lru_cache(None)
def scenes_of(root: Path) -> tuple[SceneFolder, list[str], list[Image.Image]]:
    """A folder of scenes: its records, their keys in the order of drawing, whatever the label, and the images."""
    folder = read_scene_folder(root)
    keys = sorted(folder.records, key=lambda key: key.split("/")[1])
    return folder, keys, [Image.open(root / key).convert("RGB") for key in keys]


@lru_cache(None)
def annotator_at(size: int) -> Annotator:
    annotator = Annotator.from_timm(MODEL, checkpoint=_checkpoint, image_size=size, device="cpu")
    annotator.head.model.to(memory_format=torch.channels_last)
    return annotator


def resized(image: Image.Image, size: int, interpolation: str = "bilinear") -> np.ndarray:
    """An image squashed to a square, as v2.Resize does it to a PIL image: antialiased, [S, S, 3] uint8."""
    return np.asarray(image.resize((size, size), Image.Resampling[interpolation.upper()]))


def pixels_for(annotator: Annotator, images: list[Image.Image]) -> Tensor:
    """What an annotator gets to see of images: [N, 3, S, S], normalised."""
    stacked = np.stack([resized(image, annotator.image_size, annotator.interpolation) for image in images])
    return annotator.normalise(torch.from_numpy(stacked).permute(0, 3, 1, 2))


@torch.inference_mode()
def said_of(images: list[Image.Image], bfloat16: bool) -> Tensor:
    """What the annotator says of images at the size it was trained at: logits, [N, 10]."""
    annotator, said = annotator_at(TRAINED_AT), []
    model = annotator.head.model
    for i in range(0, len(images), BATCH):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            features = model.forward_features(pixels_for(annotator, images[i : i + BATCH]))
        said.append(model.forward_head(features.float()))
    return torch.cat(said)


@torch.inference_mode()
def make_maps(size: int) -> None:
    """Keep the dense label map of every training scene, [N, 10, h, w]; float32."""
    images, annotator = scenes_of(_out / "train")[2], annotator_at(size)
    parts = [annotator(pixels_for(annotator, images[i : i + 32])) for i in range(0, len(images), 32)]
    keep(f"maps-{size}", torch.cat(parts))


@torch.inference_mode()
def make_windows(n: int) -> None:
    """Keep what the annotator says of n x n windows of every training scene, [N, 10, n, n]; float32."""
    annotator = Annotator.from_timm(MODEL, checkpoint=_checkpoint, image_size=TRAINED_AT, device="cpu", windows=n)
    annotator.head.model.to(memory_format=torch.channels_last)
    images = scenes_of(_out / "train")[2]
    parts = []
    for i in range(0, len(images), 32):
        pixels = [squashed(image, annotator.map_size, annotator.interpolation) for image in images[i : i + 32]]
        parts.append(annotator(annotator.normalise(torch.stack(pixels))))
    keep(f"windows-{n}", torch.cat(parts))


def make_whole() -> None:
    keep("whole", said_of(scenes_of(_out / "train")[2], bfloat16=False))


def make_test() -> None:
    """Keep the test scenes, whole and squashed to the student's size, and their large digits."""
    root = _out / "evidence" / "test"
    make_scene_folder(root, load_digits_split()[1], FolderSettings("test", TEST_SCENES, TEST_SEED))
    folder, keys, images = scenes_of(root)
    keep("test-large", [folder.records[key].digits[0] for key in keys])
    keep("test", np.stack([resized(image, SIZE) for image in images]))


def make_epoch(seed: int, epoch: int) -> None:
    """Keep the crops of an epoch in the order of training, with their scenes, boxes and the annotator's logits."""
    images = scenes_of(_out / "train")[2]
    torch.manual_seed(1000 * seed + epoch)
    order = torch.randperm(len(images))[: len(images) // BATCH * BATCH].tolist()
    drawn = [draw_crop(images[scene].size[::-1]) for scene in order]
    crops = [images[scene].crop(box) for scene, box in zip(order, drawn, strict=True)]
    sizes = np.array([images[scene].size * 2 for scene in order])
    keep(f"scenes-{seed}-{epoch}", order)
    keep(f"boxes-{seed}-{epoch}", (np.array(drawn) / sizes).astype(np.float32))
    keep(f"live-{seed}-{epoch}", said_of(crops, bfloat16=True))
    keep(f"crops-{seed}-{epoch}", np.stack([resized(crop, SIZE) for crop in crops]))  # the last: now it is complete


MAKERS: dict[str, Callable[..., None]] = {
    "test": make_test,
    "whole": make_whole,
    "maps": make_maps,
    "windows": make_windows,
    "crops": make_epoch,
}


def make(name: str) -> str:
    """Make a part of the cache, such as "maps-192" or "crops-SEED-EPOCH"."""
    kind, *numbers = name.split("-")
    MAKERS[kind](*map(int, numbers))
    return name


def claim() -> None:
    """Refuse a cache that was made of other scenes or by another annotator."""
    settings = json.loads((_out / "train.json").read_text())["settings"]
    wanted = {"scenes": settings, "annotator": annotator_at(TRAINED_AT).weights_sha256}
    file = _out / "evidence" / "made-of.json"
    file.parent.mkdir(exist_ok=True)
    if file.exists() and json.loads(file.read_text()) != wanted:
        raise SystemExit(f"{file.parent} was made of other scenes or by another annotator. Delete it first.")
    file.write_text(json.dumps(wanted))


@lru_cache(None)
def folder_labels(wrong: float) -> Tensor:
    """The labels of the training scenes, this share of them naming a small digit, [N]; the folder's own share as is."""
    folder, keys, _ = scenes_of(_out / "train")
    settings = json.loads((_out / "train.json").read_text())["settings"]
    records = [folder.records[key] for key in keys]
    if wrong == settings["wrong"]:
        return torch.tensor([record.label for record in records])
    rng = np.random.default_rng(settings["seed"])
    chosen = wrong_labels(len(records), wrong, rng)
    return torch.tensor(
        [
            int(rng.choice(record.digits[1:])) if is_wrong else record.digits[0]
            for record, is_wrong in zip(records, chosen, strict=True)
        ]
    )


# ---------------------------------------------------------------------------------------------------------------------
# Runs


def labels_of(rule: str, seed: int, epoch: int, wrong: float) -> Tensor:
    """The soft labels of an epoch's crops, [B, 10]."""
    scenes, boxes, live = (cached(f"{name}-{seed}-{epoch}") for name in ("scenes", "boxes", "live"))
    return RULES[rule](scenes, boxes, live, folder_labels(wrong)[scenes])


def distance(live: Tensor, labels: Tensor) -> float:
    """Mean KL(annotator on the crop || label) in nats."""
    said = live.log_softmax(1)
    return (said.exp() * (said - labels.clamp(min=SMALLEST_SHARE).log())).sum(1).mean().clamp(min=0).item()


def to_input(pixels: Tensor) -> Tensor:
    """uint8 [B, S, S, 3] to what the student takes, [B, 3, S, S]: mean 0.4 and standard deviation 0.2 of 0..1."""
    return pixels.permute(0, 3, 1, 2).float() / 51 - 2


def train(seed: int, labels: list[Tensor], float32: bool) -> float:
    """Train a student on the labels of each epoch, and return its top-1 in per cent."""

    def student_says(pixels: Tensor) -> Tensor:
        with nullcontext() if float32 else torch.autocast("cpu", torch.bfloat16):
            return student(to_input(pixels)).float()

    student = make_student(seed).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(student.parameters(), 4e-3, weight_decay=0.02)
    steps = sum(len(soft) // BATCH for soft in labels)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.2)
    for epoch, soft in enumerate(labels):
        for pixels, targets in zip(cached(f"crops-{seed}-{epoch}").split(BATCH), soft.split(BATCH), strict=True):
            loss = cross_entropy(student_says(pixels), targets)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    student.eval()
    with torch.inference_mode():
        named = torch.cat([student_says(pixels).argmax(1) for pixels in cached("test").split(256)])
    return 100 * (named == cached("test-large")).double().mean().item()


def run(task: tuple[dict[str, Any], dict[str, Any] | None]) -> dict[str, Any]:
    """Train one student by one rule, unless an earlier run had the same settings and labels."""
    settings, earlier = task
    rule, seed, wrong, epochs = (settings[name] for name in ("rule", "seed", "wrong", "epochs"))
    began, cpu_began = time.perf_counter(), time.process_time()
    first = labels_of(rule, seed, 0, wrong)
    digest = hashlib.sha256((1000 * first).round().short().numpy().tobytes()).hexdigest()[:12]
    if earlier and earlier["labels"] == digest:
        return earlier
    labels = [first, *(labels_of(rule, seed, epoch, wrong) for epoch in range(1, epochs))]
    kl = statistics.mean(distance(cached(f"live-{seed}-{e}"), soft) for e, soft in enumerate(labels[:KL_EPOCHS]))
    top1 = train(seed, labels, settings["float32"])
    seconds = {"seconds": time.perf_counter() - began, "cpu_seconds": time.process_time() - cpu_began}
    return settings | {"labels": digest, "kl": kl, "top1": top1} | seconds


# ---------------------------------------------------------------------------------------------------------------------
# Tables


def key_of(record: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(record[name] for name in ("rule", "seed", "epochs", "wrong", "float32"))


def read(file: Path | None) -> dict[tuple[Any, ...], dict[str, Any]]:
    records = json.loads(file.read_text()) if file and file.exists() else []
    return {key_of(record): record for record in records}


def write(file: Path, record: dict[str, Any]) -> None:
    """Add a run to the file, which another process may have written to since it was read."""
    records = read(file) | {key_of(record): record}
    new = file.with_name(file.name + ".new")
    new.write_text("[\n" + ",\n".join(json.dumps(each) for each in records.values()) + "\n]\n")
    new.replace(file)


def mean_and_error(values: list[float]) -> tuple[float, float]:
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.mean(values), error


def print_table(records: list[dict[str, Any]], rules: list[str]) -> None:
    by_rule = {rule: {record["seed"]: record for record in records if record["rule"] == rule} for rule in rules}
    paper = by_rule.get(PAPER, {})
    print("| label | KL to live | top-1 | to the paper's | by seed |\n|---|---|---|---|---|")
    for rule, runs in by_rule.items():
        top1, error = mean_and_error([record["top1"] for record in runs.values()])
        columns = [f"{statistics.mean(record['kl'] for record in runs.values()):.2f}", f"{top1:.2f} ± {error:.2f}"]
        differences = [runs[seed]["top1"] - paper[seed]["top1"] for seed in sorted(runs.keys() & paper.keys())]
        if rule == PAPER or not differences:
            columns += ["", ""]
        else:
            difference, error = mean_and_error(differences)
            columns += [f"{difference:+.2f} ± {error:.2f}", " ".join(f"{each:+.1f}" for each in differences)]
        print(f"| {rule} | {' | '.join(columns)} |")


def plot(file: Path, tables: dict[float, list[dict[str, Any]]], rules: list[str]) -> None:
    """Draw top-1 against KL, one point a rule, one panel for each share of wrong labels."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = (3.8 * len(tables) + 0.4, 4.2)
    figure, axes = pyplot.subplots(1, len(tables), figsize=size, squeeze=False, layout="constrained")
    for panel, (wrong, records) in zip(axes[0], tables.items(), strict=True):
        for rule in rules:
            runs = [record for record in records if record["rule"] == rule]
            kl = statistics.mean(record["kl"] for record in runs)
            top1, error = mean_and_error([record["top1"] for record in runs])
            colour = "tab:orange" if rule.startswith("half ") else "tab:blue"
            panel.errorbar(kl, top1, 0 if math.isnan(error) else error, fmt="o", capsize=3, color=colour)
            left = rule in (PAPER, "half live", "one-hot")  # where others are near on the right
            place: dict[str, Any] = {"xytext": (-7, -4), "ha": "right"} if left else {"xytext": (7, -4)}
            panel.annotate(rule, (kl, top1), textcoords="offset points", color=colour, **place)
        # A step to the right is a factor, since most labels are near each other and one-hot ones far away.
        panel.set_xscale("function", functions=(lambda kl: (kl + 0.2).clip(0.01) ** 0.5, lambda root: root**2 - 0.2))
        panel.margins(x=0.3)
        panel.set_xticks([0, 0.5, 1, 2, 3, 4])
        panel.set(xlabel="KL(annotator on the crop || label), nats", title=f"{wrong:.0%} wrong labels")
    axes[0][0].set_ylabel("top-1, %")
    figure.savefig(file, dpi=130)


def main() -> None:
    """Make the cache, train the students that are missing, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", default="torchrelabel-demo", type=Path, help="made by `torchrelabel demo`")
    parser.add_argument("--checkpoint", type=Path, help="the annotator's weights, by default OUT/annotator.pth")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.2], help="shares of the folder's labels")
    parser.add_argument("--rules", nargs="*", default=list(RULES), choices=list(RULES), metavar="RULE")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="train in float32, twice as long")
    parser.add_argument("--json", type=Path, help="add every run to this file; what is in there is not repeated")
    parser.add_argument("--plot", type=Path, help="draw top-1 against KL here")
    arguments = parser.parse_args()
    begin(arguments.out, arguments.checkpoint or arguments.out / "annotator.pth")
    claim()
    parts = ["test", "whole", *(f"maps-{size}" for size in MAP_SIZES), *(f"windows-{n}" for n in WINDOWS)]
    parts += [f"crops-{seed}-{epoch}" for seed in range(arguments.seeds) for epoch in range(arguments.epochs)]
    missing = [name for name in parts if not path_of(name).exists()]
    earlier = read(arguments.json)
    tasks = []
    for wrong in arguments.wrong:
        for seed in range(arguments.seeds):
            for rule in arguments.rules:
                settings = {"rule": rule, "seed": seed, "epochs": arguments.epochs, "wrong": wrong}
                settings["float32"] = arguments.float32
                tasks.append((settings, earlier.get(key_of(settings))))
    records = []
    with multiprocessing.get_context("spawn").Pool(arguments.processes, begin, (_out, _checkpoint)) as pool:
        for name in pool.imap_unordered(make, missing):
            print(f"# made {name}", flush=True)
        for record in pool.imap_unordered(run, tasks):
            records.append(record)
            if record == earlier.get(key_of(record)):
                continue
            print(
                f"# {record['rule']}, {record['wrong']:.0%} wrong, seed {record['seed']}: {record['top1']:.2f}, "
                f"{record['seconds']:.0f} s, of one core {record['cpu_seconds']:.0f} s",
                flush=True,
            )
            if arguments.json:
                write(arguments.json, record)
    if not records:
        return
    tables = {wrong: [record for record in records if record["wrong"] == wrong] for wrong in arguments.wrong}
    for wrong, table in tables.items():
        print(f"\n{wrong:.0%} wrong labels, {arguments.seeds} seeds, {arguments.epochs} epochs\n")
        print_table(table, arguments.rules)
    if arguments.plot:
        plot(arguments.plot, tables, arguments.rules)


if __name__ == "__main__":
    main()
