"""annotate on a Ray cluster of several nodes: nothing is lost or written twice where one dies. Run by tox -e ray."""

from __future__ import annotations

import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.annotate.models import FourCorners, four_corners, make_folder
from torchrelabel.annotate import annotate, ray_engine
from torchrelabel.annotate.ray_engine import annotate_with_ray
from torchrelabel.store import LabelStore

ray = pytest.importorskip("ray", reason="of the extra [ray], which tox -e ray installs")
# Warnings are Ray's own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
KEYS = [f"{'rgbk'[number % 4]}/{number:03}.png" for number in range(239)]  # and a bad one
OPTIONS: dict[str, Any] = {"top_k": 2, "batch_size": 4, "progress": False}


class Slow(FourCorners):
    """Takes its time, so that there is a middle to die in, and tells on which nodes it was."""

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def forward_features(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            time.sleep(0.1)
            with self.log.open("a") as file:
                file.write(f"{ray.get_runtime_context().get_node_id()}\n")
        return super().forward_features(images)


def payloads(path: Path) -> dict[str, bytes]:
    """Records but for their checksum, which covers the store's identity."""
    store = LabelStore(path)
    return {key: store.raw_record(key.encode())[1][4:] for key in store}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ray's processes need to find the tests."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "images", KEYS)
    (tmp_path / "images" / "r" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def want(folder: Path, tmp_path: Path) -> Path:
    annotate(folder, tmp_path / "want", model=four_corners(), workers=0, **OPTIONS)
    return tmp_path / "want"


@pytest.mark.parametrize("dies", ["a node with annotators", "a node that decodes"])
def test_a_node_that_dies_loses_nothing(
    dies: str, folder: Path, want: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 * 10**6})
    nodes = [cluster.add_node(object_store_memory=100 * 10**6, **resources) for resources in (
        {"num_cpus": 0, "num_gpus": 2}, {"num_cpus": 1}, {"num_cpus": 0, "num_gpus": 2}, {"num_cpus": 1},
    )]  # fmt: skip
    victim = nodes[2 if "annotators" in dies else 3]
    ray.init(cluster.address, log_to_driver=False)
    enter, killed_after = ray_engine._Ledger.enter, list[int]()
    batches = (len(KEYS) + 1) // 4

    def enter_and_kill(ledger: Any, reply: Any) -> int:
        count = enter(ledger, reply)
        if len(ledger.entered) == batches // 3:
            cluster.remove_node(victim, allow_graceful=False)
            killed_after.append(len(ledger.keys))
        return count

    monkeypatch.setattr(ray_engine._Ledger, "enter", enter_and_kill)
    try:
        model = four_corners(model=Slow(tmp_path / "log"))
        summary = annotate_with_ray(folder, tmp_path / "maps", model=model, num_actors=4, **OPTIONS)
        dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
        driver = ray.get_runtime_context().get_node_id()
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(killed_after) == len(dead) == 1
    assert killed_after[0] < len(KEYS) // 2
    assert len(payloads(want)) == len(KEYS)
    assert (summary.annotated, [key for key, _ in summary.failed]) == (len(KEYS), ["r/bad.jpg"])
    assert payloads(tmp_path / "maps") == payloads(want)
    on = Counter((tmp_path / "log").read_text().split())
    del on[driver]  # which calibrates
    assert (dead[0] in on) == ("annotators" in dies)
    print(
        f"{dies.capitalize()} died when {killed_after[0]} of {len(KEYS) + 1} images were in the store. Of {batches} "
        f"batches, {on[dead[0]]} were annotated there and {on.total() - on[dead[0]]} elsewhere; the store has every "
        f"image once."
    )
