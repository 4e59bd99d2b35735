"""Images for a cluster: found and read in the same batches every time, without those that are done."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.annotate.models import make_folder
from tests.shards import add
from torchrelabel.annotate.images import ImagesFound
from torchrelabel.annotate.ray_sources import Files, KeysDone, Source, Tar, find_source

pytest.importorskip("fsspec", reason="of the extra [ray]")

NOTHING = KeysDone([])


def batches(unit: Any, size: int = 2, done: KeysDone = NOTHING) -> list[tuple[list[str], list[str]]]:
    return [(keys, there) for keys, there, _ in unit.batches(size, done)]


def find(data: Any, **options: Any) -> Source:
    return find_source(str(data), **({"dataset": None, "image_column": "image", "key_column": None} | options))


def test_keys_done_are_known_and_others_are_not() -> None:
    keys = [f"{number}\udcff.jpg" for number in range(500)]
    done = KeysDone(keys[::2])
    assert [key for key in keys if key in done] == keys[::2]
    assert "a" not in NOTHING


def test_units_of_a_folder_hold_whole_batches(tmp_path: Path) -> None:
    source = Source(ImagesFound(tmp_path, [], None, []), [])
    keys = [f"{number:03}.jpg" for number in range(100)]
    units = source.todo(keys, 8, tasks=4)
    assert [len(unit.keys) for unit in units if isinstance(unit, Files)] == [24, 24, 24, 24, 4]
    assert [key for unit in units for some, _ in batches(unit, 8) for key in some] == keys


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        for name in ("./a/1.x.JPG", "./a/1.cls", "./a/2.png", "./a/2.jpg", "./b/no", "./b/3.jpg", "./b/4.txt"):
            add(archive, name, name.encode())
    return tmp_path / "x.tar"


def test_a_tar_file_gives_its_images_by_their_names(tar: Path) -> None:
    (unit,) = find(tar).units
    assert batches(unit) == [(["a/1.x.JPG", "a/2.png"], []), (["a/2.jpg", "b/3.jpg"], [])]
    assert batches(unit, done=KeysDone(["a/2.jpg"])) == [(["a/1.x.JPG", "a/2.png"], []), (["b/3.jpg"], ["a/2.jpg"])]
    _, _, found = next(iter(unit.batches(2, NOTHING)))
    with found.open("a/2.png") as file:
        assert file.read() == b"./a/2.png"


def test_a_webdataset_shard_gives_one_image_a_sample_as_timm_names_it(tar: Path) -> None:
    (unit,) = find(tar.parent, dataset="wds/").units
    assert isinstance(unit, Tar)
    assert batches(unit) == [(["a/2.jpg", "b/3.jpg"], [])]


def test_a_folder_of_an_object_store_is_found_and_read(tmp_path: Path) -> None:
    from fsspec.implementations.memory import MemoryFileSystem

    memory = MemoryFileSystem()
    for key in ("b/2.png", "a/1.JPEG", "a/note.txt"):
        memory.pipe(f"/bucket/images/{key}", key.encode())
    found = find("memory://bucket/images").found
    assert (found.keys, found.class_to_idx) == (["a/1.JPEG", "b/2.png"], {"a": 0, "b": 1})
    with found.open("b/2.png") as file:
        assert file.read() == b"b/2.png"
    memory.rm("/bucket/images/a/1.JPEG")
    ((keys, _, fetched),) = Files(found, found.keys).batches(2, NOTHING)
    with fetched.open(keys[1]) as file:
        assert file.read() == b"b/2.png"
    with pytest.raises(FileNotFoundError):
        fetched.open(keys[0])


def test_an_archive_beside_images_is_no_source(tar: Path) -> None:
    make_folder(tar.parent, ["a/1.jpg"])
    source = find(tar.parent)
    assert (source.found.keys, source.units) == (["a/1.jpg"], [])


def test_a_folder_here_is_found_as_without_ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "images", ["a/1.jpg"])
    monkeypatch.chdir(tmp_path)
    found = find("images").found
    assert (found.root, found.keys) == (tmp_path / "images", ["a/1.jpg"])


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no 'memory://bucket/nowhere'"):
        find("memory://bucket/nowhere")
    (tmp_path / "x.zip").touch()
    with pytest.raises(ValueError, match=r"x.zip' is no folder of images"):
        find(tmp_path / "x.zip")
    with pytest.raises(ValueError, match=r"and dataset='wds/...', not 'hfds/x'"):
        find(tmp_path, dataset="hfds/x")


def test_columns_that_are_missing_are_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="of the extra [ray]")
    from pyarrow.parquet import write_table

    write_table(pyarrow.table({"pixels": [b""], "name": ["a"]}), tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"has the columns pixels, name.*--image-column NAME"):
        find(tmp_path)
    with pytest.raises(ValueError, match=r"'pixels' of .* does not name its images.*--key-column NAME"):
        find(tmp_path, image_column="pixels")


def test_row_groups_give_what_is_not_done(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="of the extra [ray]")
    from pyarrow.parquet import write_table

    images = [{"bytes": bytes([number]), "path": f"{number}.jpg"} for number in range(5)]
    write_table(pyarrow.table({"image": images}), tmp_path / "x.parquet", row_group_size=3)
    units = find(tmp_path).units
    assert [batches(unit, done=KeysDone(["1.jpg", "3.jpg", "4.jpg"])) for unit in units] == [
        [(["0.jpg", "2.jpg"], ["1.jpg"])],
        [([], ["3.jpg", "4.jpg"])],
    ]
