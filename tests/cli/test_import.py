"""The command ``torchrelabel import``: options, words and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

import torchrelabel.importers.run
from tests.cli.test_annotate import invoke
from tests.importers.published import save, save_image, tensor
from torchrelabel.store import LabelStore, LabelStoreWriter

ROOT = Path(__file__).parents[2]
FORMATS = ["relabel", "token-labeling", "multilabel-tsv"]


def run(*arguments: Any) -> Result:
    return invoke("import", *arguments)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed in range(3):
        save(tmp_path / f"relabel/n01/{seed}.pt", tensor(seed))
    return tmp_path / "relabel"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def test_an_import_is_summed_up_on_stdout(tree: Path, store: Path) -> None:
    result = run("relabel", tree, "-o", store, "--workers", 0, "--axes", "wh", "--suffix", ".png", "--codec", "uint8")
    assert result.exit_code == 0
    assert f"{store}: 3 label maps imported in " in result.stdout
    assert "files/s), 0 were there already, 0 failed." in result.stdout
    assert "relabel: top 5 of 1000 classes, 3 of 5 x 7 cells; " in result.stdout
    assert "MB before, " in result.stdout
    assert "3/3" in result.stderr  # tqdm
    maps = LabelStore(store)
    assert list(maps) == ["n01/0.png", "n01/1.png", "n01/2.png"]
    assert (maps.header.codec, maps.header.annotator["axes"]) == ("uint8", "wh")


def test_losses_are_listed_and_give_status_three(tree: Path, store: Path) -> None:
    for number in range(22):
        save(tree / f"n02/{number}.pt", "text")
    result = run("relabel", tree, "-o", store)
    assert result.exit_code == 3
    assert result.stdout.count("failed: n02/") == 20
    assert "failed: n02/0.JPEG: n02/0.pt: it holds 0 tensors, and a label map is one" in result.stdout
    assert "and 2 more; --json lists them all." in result.stdout


def test_what_matches_nothing_gives_status_three(tree: Path, store: Path) -> None:
    save_image(tree.parent / "train/n01/0.JPEG")
    save_image(tree.parent / "train/n01/new.JPEG")
    result = run("relabel", tree, tree.parent / "train", "-o", store)
    assert result.exit_code == 3
    assert "image without a map: n01/new.JPEG" in result.stdout
    assert "map without an image: n01/1\n" in result.stdout


def test_json_holds_the_figures_and_nothing_else_is_on_stdout(tree: Path, store: Path) -> None:
    save(tree / "n01/0.pt", tensor().flip(1))
    (tree / "n01/bad.pt").write_bytes(b"")
    figures = json.loads(run("relabel", tree, "-o", store, "--json").stdout)
    assert (figures["imported"], figures["top_k"], figures["num_classes"]) == (3, 5, 1000)
    assert figures["failed"] == [{"key": "n01/bad.JPEG", "reason": "n01/bad.pt: it is empty"}]
    assert figures["repaired"] == {"scores were not in descending order, and were sorted": 1}
    assert figures["grids"] == [{"grid": [7, 5], "maps": 3}]
    assert figures["bytes_before"] > 0
    assert figures["bytes_after"] > 0


def test_files_without_a_checksum_are_counted(tree: Path, store: Path) -> None:
    save(tree / "n01/0.pt", tensor(), _use_new_zipfile_serialization=False)
    result = run("relabel", tree, "-o", store)
    assert result.exit_code == 0
    assert "WARNING: 1 maps come from .pt files as torch wrote before 1.6, without a checksum" in result.stdout
    assert json.loads(run("relabel", tree, "-o", f"{store}2", "--json").stdout)["unchecked"] == 1


def test_token_labeling_says_how_much_is_not_covered(tree: Path, store: Path) -> None:
    for seed in range(3):
        save(tree / f"n01/{seed}.pt", tensor(seed).half())
        save_image(tree.parent / f"train/n01/{seed}.JPEG", 40, 10)
    result = run("token-labeling", tree, tree.parent / "train", "-o", store)
    assert result.exit_code == 0
    assert "3 maps cover only a part of their image; on average over all, 75.0% of an image is not" in result.stdout


def test_token_labeling_takes_squares_on_trust(tree: Path, store: Path) -> None:
    result = run("token-labeling", tree, "-o", store, "--assume-square", "--crop-pct", 0.5, "--dtype", "float32")
    assert result.exit_code == 0
    assert LabelStore(store).header.coverage == (0.25, 0.25, 0.75, 0.75)


def test_a_table_is_imported(tmp_path: Path, store: Path) -> None:
    (tmp_path / "labels.tsv").write_text("n01/x.JPEG\t0\t0,391\t0.2654,1.0000\n")
    result = run("multilabel-tsv", tmp_path / "labels.tsv", "-o", store, "--topk", 1)
    assert result.exit_code == 0
    assert "1 repaired: classes beyond K, the least probable, were left out." in result.stdout
    assert LabelStore(store)["n01/x.JPEG"].classes.item() == 391


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["relabel", "nowhere"], "Error: There is no folder 'nowhere'."),
        (["relabel", "relabel", "--num-classes", "3"], "Error: Not one of 3 files tried in 'relabel' is a label map"),
        (["relabel", "relabel", "-o", "relabel"], "is no label store"),
        (["token-labeling", "relabel"], "so the sizes of the images are needed: give their folder (DATA)"),
        (["multilabel-tsv", "relabel"], "Error: 'relabel' is a folder, and this format is one file"),
    ],
    ids=["missing", "another format", "no store", "no sizes", "folder"],
)
def test_an_error_is_one_message_on_stderr_and_status_one(
    tree: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tree.parent)
    result = run(*arguments)
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("arguments", [["other-format", "x"], ["relabel"], ["multilabel-tsv", "x", "--axes", "hw"]])
def test_wrong_use_gives_status_two(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2


def test_an_interrupt_says_how_to_continue_and_gives_status_130(
    tree: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(LabelStoreWriter):
        def put(self, key: str, *arrays: Any, **options: Any) -> None:
            if key == "n01/1.JPEG":
                raise KeyboardInterrupt
            super().put(key, *arrays, **options)

    monkeypatch.setattr(torchrelabel.importers.run, "LabelStoreWriter", Interrupting)
    result = run("relabel", tree, "-o", store)
    assert result.exit_code == 130
    assert f"Stopped. What was imported is in {store}; the same command continues." in result.stderr
    assert len(LabelStore(store)) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_bad_file_whose_name_is_not_utf_8_is_listed(tree: Path, store: Path) -> None:
    Path(os.fsdecode(os.fsencode(tree) + b"/n01/\xff.pt")).write_bytes(b"")
    result = run("relabel", tree, "-o", store)
    assert result.exit_code == 3
    assert r"failed: n01/\xff.JPEG: n01/\xff.pt: it is empty" in result.stdout


@pytest.mark.parametrize("arguments", [[], *([name] for name in FORMATS)])
def test_help_shows_an_example(arguments: list[str]) -> None:
    assert "Example: torchrelabel import " in run(*arguments, "--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["relabel", "--help"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    script = (
        "import sys; from torchrelabel.cli import main; main(['import', *sys.argv[1:]], standalone_mode=False); "
        "sys.exit(bool({'torch', 'PIL', 'lmdb'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=False).returncode == 0
