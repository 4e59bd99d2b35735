"""demo: scenes, label maps, two kinds of students and a report, one after the other."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from torchrelabel._version import __version__
from torchrelabel.annotate import annotate
from torchrelabel.demo.annotator import MODEL, TRAINED_AT, agreement, annotator_top1, copy_annotator
from torchrelabel.demo.digits import load_digits_split, missing_extra
from torchrelabel.demo.folders import FolderSettings, make_scene_folder
from torchrelabel.demo.report import write_report
from torchrelabel.demo.result import DemoResult
from torchrelabel.demo.students import LABEL_KINDS, StudentRun, load_test_scenes, missing_digits, train_student
from torchrelabel.store import LabelStore
from torchrelabel.store.layout import HEADER_FILE, HEADER_LOCK_FILE

WRONG = 0.2
MARK = "demo.json"
MARK_FORMAT = "torchrelabel demo 1"


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    scenes: int
    test_scenes: int
    student_epochs: int
    crops_per_scene: int


FULL = Sizes(2500, 3000, 12, 4)
QUICK = Sizes(100, 50, 2, 1)


def demo(
    out: str | os.PathLike[str] = "torchrelabel-demo",
    *,
    seeds: int = 3,
    scene_seed: int = 0,
    quick: bool = False,
    progress: bool = True,
) -> DemoResult:
    """Train students on one-hot labels and on ReLabel's, on real digits, and report what comes out.

    Args:
        out: Folder for the scenes, the label maps and ``report.html``; made if it does not exist.
        seeds: Students per kind of labels.
        scene_seed: Seed of the scenes, those for training and those for testing.
        quick: Run everything in seconds, too small to mean anything.
        progress: Say on stderr what happens.

    Returns:
        What was measured.

    Raises:
        ModuleNotFoundError: If matplotlib or scikit-learn is missing, naming the pip command.
        FileExistsError: If ``out`` holds files that the demo did not make.
        TorchRelabelError: If timm is older than 1.0.10 and has no such annotator, naming the pip command.
        ValueError: If ``seeds`` is less than 1, or ``scene_seed`` is negative.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be 1 or more, got {seeds}.")
    if scene_seed < 0:
        raise ValueError(f"scene_seed must be 0 or more, got {scene_seed}.")
    try:
        import matplotlib  # noqa: F401  # before the first minute of work, not after the last
    except ModuleNotFoundError as error:
        raise missing_extra("matplotlib", error) from error
    training_digits, test_digits = load_digits_split()
    began = time.perf_counter()
    out = Path(out)
    sizes = QUICK if quick else FULL
    say = _Progress(progress, began)
    cores = _cores()
    workers = 1 if cores > 1 else 0
    _claim(out)
    checkpoint = out / "annotator.pth"
    copy_annotator(checkpoint)

    say(f"1/3 Scenes of real handwritten digits, in {out}")
    train_settings, test_settings = _scene_settings(sizes, scene_seed)
    train_folder = make_scene_folder(out / "train", training_digits, train_settings, say.bar)
    test_folder = make_scene_folder(out / "test", test_digits, test_settings, say.bar)

    # One core loads images while the others compute: more threads than cores spend their time waiting for each other.
    with _threads(max(1, cores - workers)):
        maps = out / "maps.lmdb"
        options: dict[str, Any] = {"model": MODEL, "checkpoint": checkpoint, "image_size": TRAINED_AT}
        annotate_command = shlex.join(
            ["torchrelabel", "annotate", str(train_folder.root), "-o", str(maps)]
            + [text for name, value in options.items() for text in (f"--{name.replace('_', '-')}", str(value))]
        )
        say(f"2/3 Label maps: {annotate_command}")
        _remove_store(maps)
        summary = annotate(train_folder.root, maps, device="cpu", workers=workers, progress=progress, **options)
        store = LabelStore(maps)
        right_large, right_small = agreement(train_folder, store)
        top1 = annotator_top1(checkpoint, test_folder)
        say(f"    The annotator's own top-1 on the test scenes: {top1:.1%}")
        none, less_than_half = missing_digits(train_folder, seed=0, crops_per_scene=sizes.crops_per_scene)

        test_scenes = load_test_scenes(test_folder)
        runs: list[StudentRun] = []
        for seed in range(seeds):
            for labels in LABEL_KINDS:
                say(f"3/3 Student {len(runs) + 1} of {seeds * len(LABEL_KINDS)}: {labels}, seed {seed}")
                run = train_student(
                    labels,
                    seed,
                    train_folder.root,
                    maps,
                    test_scenes,
                    epochs=sizes.student_epochs,
                    workers=workers,
                    on_epoch=say.epoch,
                )
                runs.append(run)

    result = DemoResult(
        quick=quick,
        command=shlex.join(
            ["torchrelabel", "demo", "--output", str(out), "--seeds", str(seeds), "--scene-seed", str(scene_seed)]
            + (["--quick"] if quick else [])
        ),
        annotate_command=annotate_command,
        sizes={name.replace("_", " "): value for name, value in asdict(sizes).items()},
        seeds=tuple(range(seeds)),
        scene_seed=scene_seed,
        annotator=summary.model,
        grid=summary.grid,
        annotator_top1=top1,
        annotate_seconds=summary.seconds,
        agreement_large=right_large,
        agreement_small=right_small,
        wrong_labels=sum(r.label != r.digits[0] for r in train_folder.records.values()) / len(train_folder.records),
        crops_without=none,
        crops_with_less_than_half=less_than_half,
        runs=tuple(runs),
        seconds=time.perf_counter() - began,
        versions=_versions(),
    )
    write_report(out / "report.html", result, train_folder, store)
    (out / MARK).write_text(json.dumps({"format": MARK_FORMAT, "result": result.as_dict()}, indent=2), encoding="utf-8")
    say(f"Done, with the report in {out / 'report.html'}")
    return result


def _scene_settings(sizes: Sizes, scene_seed: int) -> tuple[FolderSettings, FolderSettings]:
    """Say which scenes to draw for training and for testing; no two seeds share any."""
    train = FolderSettings("train", sizes.scenes, seed=2 * scene_seed + 1, wrong=WRONG)
    return train, FolderSettings("test", sizes.test_scenes, seed=2 * scene_seed + 2)


class _Progress:
    """Says on stderr what happens, with the seconds since the start."""

    def __init__(self, loud: bool, began: float) -> None:
        self.loud = loud
        self.began = began

    def __call__(self, text: str) -> None:
        if self.loud:
            print(f"[{time.perf_counter() - self.began:4.0f} s] {text}", file=sys.stderr, flush=True)

    def bar(self, names: Sequence[str]) -> Iterator[str]:
        return iter(tqdm(names, unit="img", disable=not self.loud, leave=False, file=sys.stderr))

    def epoch(self, number: int, loss: float, top1: float | None) -> None:
        self(f"    epoch {number}: loss {loss:.3f}" + ("" if top1 is None else f", top-1 {top1:.1%}"))


def _claim(out: Path) -> None:
    """Mark a folder as the demo's, and refuse one with other files in it."""
    mark = out / MARK
    if mark.exists():
        try:
            known: Any = json.loads(mark.read_text(encoding="utf-8"))["format"]
        except (ValueError, KeyError, TypeError):
            known = None
        if known == MARK_FORMAT:
            return
        raise FileExistsError(
            f"{mark} was not written by this version of the demo. Choose another folder with --output"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and was not made by the demo. Choose another folder with --output")
    out.mkdir(parents=True, exist_ok=True)
    mark.write_text(json.dumps({"format": MARK_FORMAT}), encoding="utf-8")


def _remove_store(path: Path) -> None:
    """Delete the label maps of an earlier run, file by file, so that nothing else can go with them."""
    if not path.exists():
        return
    for pattern in (HEADER_FILE, HEADER_LOCK_FILE, "shard-*.mdb", "shard-*.lock"):
        for file in path.glob(pattern):
            file.unlink()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Let torch compute with this many threads, and with as many as before afterwards."""
    before = torch.get_num_threads()
    # Networks this small gain nothing from more.
    torch.set_num_threads(min(count, 4))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _cores() -> int:
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _versions() -> dict[str, str]:
    packages = ("torch", "torchvision", "timm", "numpy", "scikit-learn")
    return {
        "torchrelabel": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "machine": f"{platform.system()} {platform.machine()}, {_cores()} cores",
    }
