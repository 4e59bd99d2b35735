"""annotate on a Ray cluster of several nodes: nothing is lost or written twice where one dies. Run by tox -e ray."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from tests.annotate.models import FourCorners, four_corners, make_folder, payloads
from torchrelabel.annotate import annotate, ray_engine
from torchrelabel.annotate.ray_engine import annotate_with_ray

ray = pytest.importorskip("ray", reason="of the extra [ray], which tox -e ray installs")
# Warnings are Ray's own.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]

ROOT = Path(__file__).parents[2]
KEYS = [f"{'rgbk'[number % 4]}/{number:03}.png" for number in range(239)]  # and a bad one
BATCHES = 60
OPTIONS: dict[str, Any] = {"top_k": 2, "batch_size": 4, "image_top_k": 0, "progress": False}


class Slow(FourCorners):
    """Takes its time, so that there is a middle, and tells on which nodes it was.

    Where there is a file ``hold`` beside the log, it waits for another node to take part, until that is 90 s old.
    """

    def __init__(self, log: Path) -> None:
        super().__init__()
        self.log = log

    def forward_features(self, images: Tensor) -> Tensor:
        if len(images) > 1:
            time.sleep(0.1)
            with self.log.open("a") as file:
                file.write(f"{ray.get_runtime_context().get_node_id()}\n")
            hold = self.log.with_name("hold")
            while hold.exists() and len(nodes_in(self.log)) < 2 and time.time() < hold.stat().st_mtime + 90:
                time.sleep(0.1)
        return super().forward_features(images)


def nodes_in(log: Path) -> Counter[str]:
    """How many batches were annotated on which node."""
    return Counter(log.read_text().split())


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


@contextmanager
def cluster_of(*nodes: dict[str, int]) -> Iterator[tuple[Any, list[Any]]]:
    """A cluster, and its nodes beside the one that this process is on, which has nothing."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200 * 10**6})
    try:
        begun = [cluster.add_node(object_store_memory=100 * 10**6, **resources) for resources in nodes]
        ray.init(cluster.address, log_to_driver=False)
        yield cluster, begun
    finally:
        ray.shutdown()
        cluster.shutdown()


def at_a_third(monkeypatch: pytest.MonkeyPatch, act: Callable[[], object]) -> list[int]:
    """Act when a third of the batches are in the store; how many images that are is put into the list."""
    enter, there = ray_engine._Ledger.enter, list[int]()

    def enter_and_act(ledger: Any, reply: Any) -> int:
        count = enter(ledger, reply)
        if len(ledger.entered) == BATCHES // 3:
            act()
            there.append(len(ledger.keys))
        return count

    monkeypatch.setattr(ray_engine._Ledger, "enter", enter_and_act)
    return there


def dead_nodes() -> list[str]:
    """The nodes that Ray knows to be dead, which it learns some seconds after their death."""
    end = time.monotonic() + 90
    while time.monotonic() < end:
        dead = [node["NodeID"] for node in ray.nodes() if not node["Alive"]]
        if dead:
            return dead
        time.sleep(0.2)
    return []


@pytest.mark.parametrize("dies", ["a node with annotators", "a node that decodes"])
def test_a_node_that_dies_loses_nothing(
    dies: str, folder: Path, want: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gpus, cores = {"num_cpus": 0, "num_gpus": 2}, {"num_cpus": 1}
    with cluster_of(gpus, cores, gpus, cores) as (cluster, nodes):
        victim = nodes[2 if "annotators" in dies else 3]
        there = at_a_third(monkeypatch, lambda: cluster.remove_node(victim, allow_graceful=False))
        model = four_corners(model=Slow(tmp_path / "log"))
        summary = annotate_with_ray(folder, tmp_path / "maps", model=model, num_actors=4, **OPTIONS)
        dead = dead_nodes()
    assert (len(there), len(dead)) == (1, 1)
    assert there[0] < len(KEYS) // 2
    assert len(payloads(want)) == len(KEYS)
    assert (summary.annotated, [key for key, _ in summary.failed]) == (len(KEYS), ["r/bad.jpg"])
    assert payloads(tmp_path / "maps") == payloads(want)
    on = nodes_in(tmp_path / "log")
    assert (dead[0] in on) == ("annotators" in dies)
    print(
        f"{dies.capitalize()} died when {there[0]} of {len(KEYS) + 1} images were in the store. Of {BATCHES} batches, "
        f"{on[dead[0]]} were annotated there and {on.total() - on[dead[0]]} elsewhere; the store has every image once."
    )


def test_a_node_that_comes_takes_part(
    folder: Path, want: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with cluster_of({"num_cpus": 4, "num_gpus": 1}) as (cluster, _):

        def come() -> None:
            (tmp_path / "hold").touch()
            cluster.add_node(num_cpus=0, num_gpus=1, object_store_memory=100 * 10**6)

        at_a_third(monkeypatch, come)
        model = four_corners(model=Slow(tmp_path / "log"))
        annotate_with_ray(folder, tmp_path / "maps", model=model, num_actors=2, **OPTIONS)
    on = nodes_in(tmp_path / "log")
    assert len(on) == 2
    assert payloads(tmp_path / "maps") == payloads(want)
    print(f"A node came when a third was done, and annotated {min(on.values())} of {BATCHES} batches.")
