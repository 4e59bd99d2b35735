"""Scripts written for class indices train on label maps, and on maps of the folder's class as they did before."""

from __future__ import annotations

import importlib.util
import json
import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.painted import COLUMNS, ROWS, C, Painted, paint
from torchrelabel import LabelStoreWriter

ROOT = Path(__file__).parent.parent
SMALL = {"size": 64, "batch_size": 4, "epochs": 1, "arch": "shufflenet_v2_x0_5"}
SCRIPTS = ["imagenet_loop", "references_v2"]


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    painted = paint(tmp_path_factory.mktemp("painted"), each=2)
    painted.root.rename(painted.root.parent / "train")
    (painted.root.parent / "val").symlink_to("train")
    return painted


@pytest.fixture(scope="module")
def folder_maps(painted: Painted) -> Path:
    """Label maps that say the folder's class in every cell."""
    path = painted.root.parent / "folder.lmdb"
    with LabelStoreWriter(path, num_classes=C, top_k=1, score_kind="probability") as writer:
        for key in painted.keys:
            classes = np.full((1, ROWS, COLUMNS), int(key[:3]))
            writer.put(key, np.ones(classes.shape, np.float32), classes)
    return path


def script(name: str) -> Callable[..., list[float]]:
    main: Callable[..., list[float]] = runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]
    return main


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("name", SCRIPTS)
def test_maps_of_the_folders_class_change_no_loss(
    name: str, workers: int, painted: Painted, folder_maps: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    losses: list[list[float]] = []
    reports: list[str] = []
    for label_maps in (None, folder_maps):
        losses.append(script(name)(painted.root.parent, label_maps, workers=workers, **SMALL))
        reports.append(capsys.readouterr().out)
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert reports[1] == reports[0]
    assert len(set(losses[0])) == len(losses[0]) > 2


@pytest.mark.parametrize("name", SCRIPTS)
def test_maps_of_what_is_painted_change_the_losses(name: str, painted: Painted) -> None:
    folder, maps = (script(name)(painted.root.parent, maps, workers=0, **SMALL) for maps in (None, painted.store))
    assert all(ours != pytest.approx(theirs, rel=1e-3) for ours, theirs in zip(maps, folder, strict=True))


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_by_the_command_on_its_page(name: str, painted: Painted) -> None:
    options = f"--label-maps {painted.store} --size 64 --batch-size 7 --epochs 1 --workers 0"
    done = run([ROOT / "examples" / f"{name}.py", painted.root.parent, *options.split()])
    assert "epoch 0" in done.stdout


LOG = """
import json, runpy, sys
main = runpy.run_path(sys.argv[1])["main"]
print(json.dumps([main(sys.argv[2], label_maps or None, epochs=2, batch_size=4) for label_maps in sys.argv[3:]]))
"""


@pytest.fixture(scope="module")
def trainer_logs(painted: Painted, folder_maps: Path, tmp_path_factory: pytest.TempPathFactory) -> list[list[Any]]:
    """What the Trainer's example logs on class indices, on maps of the folder's class, on maps of what is painted."""
    for package in ("transformers", "datasets", "accelerate"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"needs {package}")
    example = ROOT / "examples" / "huggingface_trainer.py"
    cache = str(tmp_path_factory.mktemp("cache"))
    stores = ["", folder_maps, painted.store]
    done = run(["-c", LOG, example, painted.root.parent / "train", *stores], HF_HOME=cache, HF_HUB_OFFLINE="1")
    names = ("loss", "eval_loss", "eval_accuracy")
    logs: list[list[dict[str, Any]]] = json.loads(done.stdout.splitlines()[-1])
    return [[entry[name] for entry in log for name in names if name in entry] for log in logs]


def test_maps_of_the_folders_class_change_nothing_that_trainer_logs(trainer_logs: list[list[Any]]) -> None:
    indices, folders, _ = trainer_logs
    assert folders == pytest.approx(indices, rel=1e-5)
    assert len(indices) > 6


def test_maps_of_what_is_painted_change_the_losses_of_trainer(trainer_logs: list[list[Any]]) -> None:
    indices, _, painted = trainer_logs
    assert painted[0] != pytest.approx(indices[0], rel=1e-3)


@pytest.mark.parametrize("name", [*SCRIPTS, "huggingface_trainer"])
def test_a_script_is_turned_by_two_lines_and_one_more(name: str) -> None:
    lines = (ROOT / "examples" / f"{name}.py").read_text().splitlines()
    changed = [line for line in lines if "# changed" in line]
    assert len(changed) == 3
    assert ["torchrelabel" in line.split("#")[0] and "import" in line for line in changed] == [True, False, False]


def run(arguments: list[Any], **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python on something in a process of its own."""
    done = subprocess.run(
        [sys.executable, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done
