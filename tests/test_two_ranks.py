"""Two ranks under torchrun, workers started in each way: maps of the folder's class change no loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.painted import Painted

ROOT = Path(__file__).parent.parent


def losses(*arguments: str) -> dict[int, list[float]]:
    """The losses of each rank of the script."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *torchrun, str(ROOT / "tests" / "two_ranks.py"), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    ranks = (line.split() for line in done.stdout.splitlines() if line[:1].isdigit())
    return {int(rank): [float(loss) for loss in values] for rank, *values in ranks}


@pytest.mark.parametrize(("pipeline", "method"), [("v1", "spawn"), ("v2", "forkserver")])
def test_maps_of_the_folders_class_change_no_loss(
    pipeline: str, method: str, painted: Painted, folder_maps: Path
) -> None:
    ours = losses(str(painted.root), str(folder_maps), pipeline, method)
    theirs = losses(str(painted.root), "", pipeline, "fork")
    assert ours.keys() == theirs.keys() == {0, 1}
    assert len(ours[0]) == 8
    assert ours[0] != ours[1]
    assert all(ours[rank] == pytest.approx(theirs[rank], rel=1e-5) for rank in (0, 1))
