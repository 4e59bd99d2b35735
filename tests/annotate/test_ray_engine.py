"""annotate_with_ray: folders, Parquet and tar files give the records of one process; what comes is entered once."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.annotate.models import four_corners, make_folder, payloads
from tests.shards import add
from tests.store.label_maps import make_map
from torchrelabel.annotate import annotate, ray_engine
from torchrelabel.annotate.ray_engine import annotate_with_ray
from torchrelabel.annotate.ray_tasks import Reply, rank_of
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.errors import StoreError, TorchRelabelError
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.record import pack_record

ROOT = Path(__file__).parents[2]
KEYS = [f"{'rgbk'[number % 4]}/{number:02}.png" for number in range(60)]
OPTIONS: dict[str, Any] = {"top_k": 2, "batch_size": 4, "progress": False}


# --- what comes back from the cluster, without one ---


class Ledger(ray_engine._Ledger):
    """Of a store of two classes."""

    def __init__(self, path: Path) -> None:
        self.store = LabelStoreWriter(path, num_classes=20, top_k=3)
        summary = Summary(str(path))
        super().__init__(self.store, summary, Notes(summary, loud=False), None, [])

    def reply(self, unit: int, number: int, key: str, *, last: bool = True) -> Reply:
        record = pack_record(self.store.header, key.encode(), *make_map())
        return Reply(unit, number, last, [], [], records=[(key, record)])


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(tmp_path / "maps.lmdb")
    yield ledger
    ledger.store.close()


def test_a_batch_that_comes_twice_is_entered_once(ledger: Ledger) -> None:
    assert [ledger.enter(ledger.reply(0, 0, "a.jpg")) for _ in range(2)] == [1, 0]
    assert ledger.summary.annotated == 1
    ledger.check_complete(1)


def test_two_images_of_one_name_are_refused(ledger: Ledger) -> None:
    ledger.enter(ledger.reply(0, 0, "a.jpg"))
    with pytest.raises(ValueError, match=r"Two images are called 'a.jpg'.*names of their own"):
        ledger.enter(ledger.reply(1, 0, "a.jpg"))


@pytest.mark.parametrize("came", [[], [(0, 0, False)], [(0, 1, True)], [(1, 0, True)]])
def test_a_batch_that_never_came_leaves_the_store_incomplete(ledger: Ledger, came: list[tuple[int, int, bool]]) -> None:
    for unit, number, last in came:
        ledger.enter(ledger.reply(unit, number, f"{unit}/{number}.jpg", last=last))
    with pytest.raises(StoreError, match=r"nothing back for 1 of . parts .* same command again"):
        ledger.check_complete(1 + any(unit for unit, *_ in came))


def test_the_sample_does_not_depend_on_the_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "IMAGES", 3)
    for number in (4, 0, 3, 1, 5, 2):
        ledger.enter(Reply(0, number, False, [], [], sample=[(f"{number}.jpg", b"")]))
    assert [key for _, key, _ in ledger.sample] == sorted(map("{}.jpg".format, range(6)), key=rank_of)[:3]


def test_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="without torchrun"):
        annotate_with_ray(tmp_path, tmp_path / "maps.lmdb", model="resnet18")


# --- with a cluster of one node ---


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray = pytest.importorskip("ray", reason="of the extra [ray], which tox -e ray installs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(num_cpus=2, object_store_memory=200 * 10**6, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def on_ray(data: Any, output: Path, **options: Any) -> Any:
    return annotate_with_ray(data, output, **({"model": four_corners(), "num_actors": 1} | OPTIONS | options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    make_folder(tmp_path / "images", KEYS)
    (tmp_path / "images" / "r" / "bad.jpg").write_bytes(b"no image")
    return tmp_path / "images"


@pytest.fixture
def want(folder: Path, tmp_path: Path) -> LabelStore:
    annotate(folder, tmp_path / "want", model=four_corners(), workers=0, **OPTIONS)
    return LabelStore(tmp_path / "want")


def parquet(folder: Path, path: Path, *, structs: bool) -> Path:
    import pyarrow
    import pyarrow.parquet

    path.mkdir()
    for number in range(2):
        names = [*KEYS, "r/bad.jpg"][number::2]
        files = [(folder / name).read_bytes() for name in names]
        images = [{"bytes": file, "path": name} for file, name in zip(files, names, strict=True)]
        columns = {"image": images} if structs else {"pixels": files, "name": names}
        pyarrow.parquet.write_table(pyarrow.table(columns), path / f"{number}.parquet", row_group_size=10)
    return path


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
class TestOnCluster:
    def test_a_folder_gives_the_records_of_one_process_and_is_continued(
        self, folder: Path, want: LabelStore, tmp_path: Path, cluster: None
    ) -> None:
        late = [(folder / key).rename(tmp_path / key.replace("/", "-")) for key in KEYS[:8]]
        first = on_ray(folder, tmp_path / "maps")
        for key, path in zip(KEYS, late, strict=False):
            path.rename(folder / key)
        summary = on_ray(folder, tmp_path / "maps")
        assert (first.annotated, summary.annotated, summary.already_there) == (52, 8, 52)
        assert on_ray(folder, tmp_path / "maps").annotated == 0
        store = LabelStore(tmp_path / "maps")
        assert payloads(tmp_path / "maps") == payloads(tmp_path / "want")
        assert store.failures == want.failures
        assert store.header.dataset == want.header.dataset
        assert summary.images == 61

    @pytest.mark.parametrize("kind", ["parquet", "structs in parquet", "tar"])
    def test_files_of_many_images_give_the_records_of_the_folder_and_are_continued(
        self, kind: str, folder: Path, want: LabelStore, tmp_path: Path, cluster: None
    ) -> None:
        options: dict[str, Any] = {}
        if kind == "tar":
            data = tmp_path / "images.tar"
            with tarfile.open(data, "w") as tar:
                tar.add(folder, ".")
        else:
            pytest.importorskip("pyarrow")
            data = parquet(folder, tmp_path / "tables", structs=kind.startswith("structs"))
            options = {} if kind.startswith("structs") else {"image_column": "pixels", "key_column": "name"}
        summary = on_ray(data.as_uri(), tmp_path / "maps", **options)
        assert (summary.annotated, summary.images, summary.failed) == (60, 61, want_failed(want))
        assert payloads(tmp_path / "maps") == payloads(tmp_path / "want")
        store = LabelStore(tmp_path / "maps")
        assert store.header.dataset == want.header.dataset
        assert store.header.calibration is not None
        again = on_ray(data, tmp_path / "maps", **options)
        assert (again.annotated, again.already_there, again.failed) == (0, 60, want_failed(want))

    def test_an_error_of_a_task_is_raised_as_what_it_is(self, folder: Path, tmp_path: Path, cluster: None) -> None:
        from ray.exceptions import RayError

        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w") as tar:
            for key in KEYS[:2]:
                add(tar, key, (folder / key).read_bytes())
        (tmp_path / "cut.tar").write_bytes(content.getvalue()[:800])
        with pytest.raises(OSError, match=r"cut.tar cannot be read as a tar file") as caught:
            on_ray(tmp_path / "cut.tar", tmp_path / "maps")
        assert not isinstance(caught.value, RayError)  # Ray's own are of both kinds, and hold a traceback of words
        (white := tmp_path / "white").mkdir()
        for number in range(16):
            Image.new("RGB", (12, 12), "white").save(white / f"{number}.png")
        with pytest.raises(TorchRelabelError, match=r"check the checkpoint"):
            on_ray(white, tmp_path / "nan", model=four_corners(poison=float("nan")))


def want_failed(want: LabelStore) -> list[tuple[str, str]]:
    return list(want.failures.items())
