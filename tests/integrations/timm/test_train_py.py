"""timm's train.py itself on label maps, where TIMM_TRAIN says where a copy of it is: pip installs none."""

from __future__ import annotations

import csv
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.painted import C, Painted

SCRIPT = os.environ.get("TIMM_TRAIN", "")
pytestmark = pytest.mark.skipif(not SCRIPT, reason="needs TIMM_TRAIN, a copy of timm's train.py")

ROOT = Path(__file__).parents[3]
COMMON = f"--model resnet10t --num-classes {C} --input-size 3 64 64 --batch-size 4 --workers 0 --device cpu"
SCHEDULE = "--epochs 2 --warmup-epochs 0 --lr 0.01 --experiment run"


def losses(folder: Path, painted: Painted, launcher: list[str], options: str) -> list[float]:
    """The training loss of each epoch."""
    data = f"--data-dir {painted.root.parent} --train-split images --val-split images --output {folder}"
    given = f"{data} {COMMON} {SCHEDULE} {options}".split()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *launcher, SCRIPT, *given], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with open(folder / "run" / "summary.csv") as file:
        return [float(row["train_loss"]) for row in csv.DictReader(file)]


def launcher(store: Path, *options: str) -> list[str]:
    return ["-m", "torchrelabel", "timm-train", "--label-maps", str(store), *options]


@pytest.mark.parametrize(
    "options",
    [
        "--smoothing 0.1",
        "--mixup 0.8 --cutmix 1.0 --mixup-off-epoch 1",
        "--mixup 0.8 --mixup-mode elem --no-prefetcher",
        "--bce-loss --bce-target-thresh 0.2 --cutmix 1.0",
        "--aug-splits 3 --jsd-loss --aa augmix-m3",
        "--aa rand-m9-mstd0.5 --reprob 0.25 --smoothing 0 --workers 1",
    ],
)
def test_maps_of_the_folders_class_change_no_loss(
    options: str, painted: Painted, folder_maps: Path, tmp_path: Path
) -> None:
    plain = losses(tmp_path / "plain", painted, [], options)
    ours = losses(tmp_path / "ours", painted, launcher(folder_maps), options)
    assert ours == pytest.approx(plain, rel=1e-5)
    assert len(set(plain)) == 2


def test_maps_of_what_is_painted_and_their_tokens_change_the_losses(painted: Painted, tmp_path: Path) -> None:
    plain = losses(tmp_path / "plain", painted, [], "--smoothing 0")
    ours = losses(tmp_path / "ours", painted, launcher(painted.store), "--smoothing 0")
    tokens = losses(tmp_path / "tokens", painted, launcher(painted.store, "--token-labels", "2"), "--smoothing 0")
    assert all(map(math.isfinite, ours + tokens))
    assert ours[0] != pytest.approx(plain[0], rel=1e-3) and tokens[0] != pytest.approx(ours[0], rel=1e-3)


def test_a_run_is_resumed_to_its_last_epoch(painted: Painted, tmp_path: Path) -> None:
    losses(tmp_path / "first", painted, launcher(painted.store), "--smoothing 0")
    resume = f"--smoothing 0 --epochs 4 --resume {tmp_path / 'first' / 'run' / 'last.pth.tar'}"
    assert len(losses(tmp_path / "second", painted, launcher(painted.store), resume)) == 2
