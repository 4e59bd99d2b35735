"""Images of a folder, a tar file and shards are found, and opened, in one way."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path
from typing import Any

import PIL.Image
import pytest

from tests.check.colours import NAMES, paint_folder, write_block_store, write_boxes_of_blocks
from tests.cli.test_annotate import invoke
from tests.shards import add
from torchrelabel.annotate.images import load_image
from torchrelabel.annotate.sources import find_data, open_data
from torchrelabel.check import check

# timm leaves the archives open that it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# How each kind of data is given, below the folder that the fixture makes.
KINDS: dict[str, tuple[str, dict[str, str]]] = {
    "folder": ("data", {}),
    "tar": ("data.tar", {}),
    "shards": ("shards", {"dataset": "wds/blocks", "split": "train-{0..1}.tar"}),
}


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve images of blocks as a folder, a tar file and two shards, with their maps and boxes."""
    root = tmp_path_factory.mktemp("painted")
    blocks = paint_folder(root / "data")
    write_block_store(root / "maps.lmdb", blocks)
    write_boxes_of_blocks(root / "boxes", blocks)
    with tarfile.open(root / "data.tar", "w") as tar:
        tar.add(root / "data", ".")
    (root / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(root / "shards" / f"train-{shard}.tar", "w") as tar:
            for key in list(blocks)[shard::2]:
                add(tar, key, (root / "data" / key).read_bytes())
                add(tar, f"{key.removesuffix('.png')}.cls", str(NAMES.index(key.split("/")[0])).encode())
    return root


def given(painted: Path, kind: str) -> list[str]:
    """DATA and the options of a command."""
    data, options = KINDS[kind]
    return [str(painted / data), *(word for name, value in options.items() for word in (f"--{name}", value))]


def test_a_url_is_refused_with_what_reads_it() -> None:
    with pytest.raises(ValueError, match=r"'s3://bucket/birds' is a URL. annotate --engine ray reads it"):
        find_data("s3://bucket/birds")


@pytest.mark.parametrize("name", ["brids", "wsd/birds"])
def test_a_mistyped_data_set_is_not_taken_for_a_folder(painted: Path, name: str) -> None:
    result = invoke("verify", str(painted / "maps.lmdb"), str(painted / "data"), "--dataset", name)
    assert result.exit_code == 1
    assert f"timm reads no data set {name!r}. Give folder, wds/NAME or hfds/NAME" in result.stderr


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_of_data_have_the_same_keys_and_images(painted: Path, kind: str) -> None:
    data, options = KINDS[kind]
    expected = find_data(painted / "data")
    assert find_data(painted / data, **options).keys == expected.keys
    opened = open_data(painted / data, **options)
    for key in expected.keys[:3]:
        with opened.open(key) as file, expected.open(key) as theirs:
            assert load_image(file).tobytes() == load_image(theirs).tobytes()


def test_a_folder_is_not_listed_to_open_one_of_its_images(painted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrelabel.annotate.sources.find_images", lambda *_, **__: pytest.fail("it was listed"))
    assert open_data(painted / "data").keys == []


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_that_is_not_there_is_a_file_not_found(painted: Path, kind: str) -> None:
    data, options = KINDS[kind]
    with pytest.raises(FileNotFoundError, match=r"no such\.png"):
        open_data(painted / data, **options).open("no such.png")


@pytest.mark.parametrize("kind", ["tar", "shards"])
def test_verify_compares_a_store_with_an_archive(painted: Path, kind: str) -> None:
    result = invoke("verify", str(painted / "maps.lmdb"), *given(painted, kind))
    assert result.exit_code == 0, result.output
    assert "12 label maps are sound" in result.stdout


@pytest.mark.parametrize("kind", ["tar", "shards"])
def test_show_draws_an_image_of_an_archive(painted: Path, kind: str, tmp_path: Path) -> None:
    key, *_ = find_data(painted / "data").keys
    store, data, *options = str(painted / "maps.lmdb"), *given(painted, kind)
    result = invoke("show", store, data, key, *options, "-o", str(tmp_path / "x.png"))
    assert result.exit_code == 0, result.output
    expected = invoke("show", store, str(painted / "data"), key, "-o", str(tmp_path / "y.png"))
    assert result.stdout.splitlines()[1:] == expected.stdout.splitlines()[1:]
    with PIL.Image.open(tmp_path / "x.png") as one, PIL.Image.open(tmp_path / "y.png") as other:
        assert one.convert("RGB").tobytes() == other.convert("RGB").tobytes()


@pytest.mark.parametrize("kind", ["tar", "shards"])
def test_check_reads_an_archive_as_the_folder_it_was_made_of(painted: Path, kind: str) -> None:
    data, options = KINDS[kind]
    found, theirs = (
        check(painted / "maps.lmdb", painted / where, boxes=painted / "boxes", **settings).figures()
        for where, settings in ((data, options), ("data", {}))
    )
    assert found.pop("data") != theirs.pop("data")
    assert found == theirs
    typed = invoke(
        "check", str(painted / "maps.lmdb"), *given(painted, kind), "--boxes", str(painted / "boxes"), "--json"
    )
    assert json.loads(typed.stdout)["verdict"] == "as stored"


@pytest.mark.parametrize("kind", ["tar", "shards"])
def test_calibrate_looks_at_the_images_of_an_archive(painted: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("torchrelabel.annotate.calibrate.calibrate", lambda store, found, *_, **__: seen.append(found))
    monkeypatch.setattr("torchrelabel.annotate.made_by.check_annotator_of", lambda *_, **__: None)
    monkeypatch.setattr("torchrelabel.annotate.made_by.annotator_of", lambda *_, **__: Notes)
    result = invoke("calibrate", str(painted / "maps.lmdb"), *given(painted, kind))
    assert "Give what was annotated, or annotate more." in result.stderr
    (found,) = seen
    assert found.keys == find_data(painted / "data").keys


class Notes:
    """Stands for an annotator; only what it has to say is asked for."""

    notes: tuple[str, ...] = ()


@pytest.mark.parametrize("command", ["check", "calibrate", "verify", "show"])
def test_a_split_of_a_plain_folder_is_refused(painted: Path, command: str) -> None:
    more = {"check": ["--boxes", str(painted / "boxes")], "show": ["--random", "1"]}.get(command, [])
    result = invoke(command, str(painted / "maps.lmdb"), str(painted / "data"), "--split", "val", *more)
    assert result.exit_code == 1
    assert "split='val' is a part of a data set that timm reads by name" in result.stderr


def test_verify_asks_where_a_data_set_is_kept(painted: Path) -> None:
    result = invoke("verify", str(painted / "maps.lmdb"), "--dataset", "wds/blocks")
    assert result.exit_code == 2
    assert "Say where wds/blocks is kept" in result.stderr


@pytest.mark.parametrize("command", ["check", "calibrate", "verify", "show"])
def test_a_data_set_whose_images_have_no_names_is_an_error_of_one_message(
    painted: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise TypeError("timm reads 'tfds/x' in sequence and does not tell the names of its images")

    monkeypatch.setattr("torchrelabel.annotate.archives.read_dataset", refuse)
    monkeypatch.setattr("torchrelabel.annotate.made_by.check_annotator_of", lambda *_, **__: None)
    more = {"check": ["--boxes", str(painted / "boxes")], "show": ["--random", "1"]}.get(command, [])
    result = invoke(command, str(painted / "maps.lmdb"), str(painted), "--dataset", "tfds/x", *more)
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: timm reads 'tfds/x' in sequence" in result.stderr
