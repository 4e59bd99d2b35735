"""timm's train.py runs on label maps without a changed line."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import timm
import timm.data
import timm.models
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from tests.painted import C, Painted
from tests.shards import pack
from torchrelabel.errors import StoreError, TorchRelabelError
from torchrelabel.integrations.timm import check_arguments, run_script, training_datasets_wrapped

ROOT = Path(__file__).parents[3]
SCRIPT = Path(__file__).parent / "unmodified_train.py"


def losses(painted: Painted, launcher: list[str], *options: str) -> dict[int, list[float]]:
    """The losses of each rank of the script."""
    given = ["--data-dir", str(painted.root), "--num-classes", str(C), *options]
    command = [sys.executable, *launcher, str(SCRIPT), *given]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "script unmodified_train.py" in done.stderr
    ranks = (line.split() for line in done.stdout.splitlines() if line[:1].isdigit())
    return {int(rank): [float(loss) for loss in values] for rank, *values in ranks}


def launcher(store: Path) -> list[str]:
    return ["-m", "torchrelabel", "timm-train", "--label-maps", str(store)]


def test_maps_of_the_folders_class_change_no_loss_of_an_unmodified_script(painted: Painted, folder_maps: Path) -> None:
    options = ("--workers", "1", "--mixup", "0.8")
    assert losses(painted, launcher(folder_maps), *options)[0] == pytest.approx(
        losses(painted, [], *options)[0], rel=1e-5
    )


def test_an_unmodified_script_spawns_workers_that_know_the_maps(painted: Painted, folder_maps: Path) -> None:
    spawned = losses(painted, launcher(folder_maps), "--workers", "1", "--start-method", "spawn")[0]
    assert spawned == pytest.approx(losses(painted, [], "--workers", "1")[0], rel=1e-5)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_shards_are_read_with_their_maps(method: str, painted: Painted, folder_maps: Path, tmp_path: Path) -> None:
    split = pack(painted, tmp_path / "shards")
    options = ["--dataset", "wds/painted", "--data-dir", str(tmp_path / "shards"), "--train-split", split]
    options += ["--val-dir", str(painted.root), "--workers", "1", "--start-method", method]
    ours = losses(painted, launcher(folder_maps), *options)[0]
    assert len(ours) == C
    assert ours == pytest.approx(losses(painted, [], *options)[0], rel=1e-5)


def test_two_ranks_with_repeated_augmentation_change_no_loss(painted: Painted, folder_maps: Path) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    # timm before 1.0.9 leaves so few images without a batch when they are repeated.
    repeats = len(RepeatAugSampler(range(2 * C), num_replicas=2, rank=0, num_repeats=2)) and 2
    options = ("--aug-repeats", str(repeats))
    ours = losses(painted, [*torchrun, *launcher(folder_maps)], *options)
    theirs = losses(painted, torchrun, *options)
    assert ours.keys() == theirs.keys() == {0, 1}
    assert all(ours[rank] == pytest.approx(theirs[rank], rel=1e-5) for rank in (0, 1))


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_only_training_datasets_are_wrapped_and_only_meanwhile(painted: Painted) -> None:
    before = timm.data.create_dataset
    with training_datasets_wrapped(painted.store) as wrapped:
        train = timm.data.create_dataset("", str(painted.root), "train", is_training=True)
        val = timm.data.create_dataset("", root=str(painted.root), split="train", is_training=False)
    assert wrapped == [train]
    assert train is not val and type(val).__name__ == "ImageDataset"
    assert timm.data.create_dataset is before


def test_a_script_without_a_training_dataset_is_told_so(painted: Painted) -> None:
    arguments = ["--no-dataset"]
    before = (sys.argv, list(sys.path))
    with pytest.raises(
        TorchRelabelError, match=r"unmodified_train\.py trains without a call of timm\.data\.create_dataset"
    ):
        run_script(SCRIPT, arguments, painted.store)
    assert (sys.argv, sys.path) == before


@pytest.mark.parametrize("arguments", [["--num-classes", "10"], ["--lr=1", "--num-classes=10"]])
def test_a_model_of_other_classes_is_noticed_before_it_is_made(arguments: list[str], painted: Painted) -> None:
    with pytest.raises(ValueError, match="given --num-classes 10, and the label maps have 7 classes"):
        check_arguments(SCRIPT, arguments, painted.store)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_model_of_other_outputs_is_noticed_where_no_number_of_classes_was_given(painted: Painted) -> None:
    with training_datasets_wrapped(painted.store):
        timm.create_model("resnet10t")
        with pytest.raises(TorchRelabelError, match=r"resnet10t has 1000 outputs, .* have 7 classes.* --num-classes 7"):
            timm.data.create_dataset("", str(painted.root), is_training=True)


def a_backbone(**options: int) -> None:
    timm.create_model("resnet10t", **options)


def a_teacher() -> None:
    timm.models.create_model("resnet10t")
    timm.models.create_model("resnet10t", num_classes=C)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("make", [partial(a_backbone, num_classes=0), partial(a_backbone, num_classes=C), a_teacher])
def test_models_that_may_learn_from_the_maps_are_let_through(painted: Painted, make: Callable[[], None]) -> None:
    before = timm.create_model
    with training_datasets_wrapped(painted.store) as wrapped:
        make()
        timm.data.create_dataset("", str(painted.root), is_training=True)
    assert len(wrapped) == 1
    assert timm.create_model is timm.models.create_model is before


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_classifier_put_on_by_hand_counts(painted: Painted) -> None:
    with training_datasets_wrapped(painted.store) as wrapped:
        model = timm.create_model("resnet10t")
        model.fc = torch.nn.Linear(96, C)
        timm.data.create_dataset("", str(painted.root), is_training=True)
    assert len(wrapped) == 1


def test_a_script_that_is_not_there_is_named(painted: Painted) -> None:
    with pytest.raises(FileNotFoundError, match=r"no training script 'nowhere/train\.py'.*/v\d+\.\d+\.\d+/train\.py"):
        check_arguments("nowhere/train.py", [], painted.store)


def test_a_store_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="maps"):
        check_arguments(SCRIPT, [], tmp_path / "maps")
