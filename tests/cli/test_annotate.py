"""The command ``torchrelabel annotate``: options, words and exit statuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from click.testing import CliRunner, Result

import torchrelabel.annotate.run
from tests.annotate.models import make_folder, make_model
from torchrelabel import __version__
from torchrelabel.cli import main
from torchrelabel.store import LabelStore, LabelStoreWriter

ROOT = Path(__file__).parents[2]


def invoke(*arguments: Any) -> Result:
    try:
        runner = CliRunner(mix_stderr=False)  # type: ignore[call-arg]  # what click before 8.2 needs
    except TypeError:
        runner = CliRunner()
    return runner.invoke(main, [str(argument) for argument in arguments])


def annotate(*arguments: Any) -> Result:
    small = ["--model", "resnet10t", "--no-pretrained", "--image-size", "64", "--workers", "0", "--device", "cpu"]
    return invoke("annotate", *arguments, *small)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", ["a/x.png", "b/y.png", "b/z.png"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def test_a_folder_is_annotated_and_summed_up_on_stdout(folder: Path, store: Path) -> None:
    result = annotate(folder, "-o", store)
    assert result.exit_code == 0
    assert f"{store}: 3 images annotated in " in result.stdout
    assert "resnet10t: 2 x 2 cells, top 5 of 1000 classes, " in result.stdout
    assert "WARNING: the weights of resnet10t are random" in result.stderr
    assert "3/3" in result.stderr  # tqdm
    assert len(LabelStore(store)) == 3


def test_windows_are_counted_as_windows_and_take_no_enlarging(folder: Path, store: Path) -> None:
    result = annotate(folder, "-o", store, "--windows", 2)
    assert result.exit_code == 0
    assert "resnet10t: 2 x 2 windows, top 100 of 1000 classes, " in result.stdout
    assert json.loads(annotate(folder, "-o", store, "--windows", 2, "--json").stdout)["windows"] == 2
    assert annotate(folder, "-o", store, "--windows", 1).exit_code == 2
    refused = annotate(folder, "-o", store, "--windows", 2, "--enlarge", 2)
    assert refused.exit_code == 1 and "enlarge has no say" in refused.stderr


def test_json_holds_the_figures_and_nothing_else_is_on_stdout(folder: Path, store: Path) -> None:
    figures = json.loads(annotate(folder, "-o", store, "--json", "--topk", 3, "--no-residual", "--shards", 2).stdout)
    assert (figures["images"], figures["annotated"], figures["failed"], figures["top_k"]) == (3, 3, [], 3)
    header = LabelStore(store).header
    assert (header.top_k, header.residual, header.shards) == (3, False, 2)


def test_a_finished_store_says_so(folder: Path, store: Path) -> None:
    annotate(folder, "-o", store)
    result = annotate(folder, "-o", store)
    assert result.exit_code == 0
    assert f"Nothing to do: all 3 images are in {store} already." in result.stdout


def test_losses_are_listed_up_to_twenty_and_give_status_three(folder: Path, store: Path) -> None:
    for number in range(22):
        (folder / f"bad{number:02}.png").write_bytes(b"no image")
    result = annotate(folder, "-o", store)
    assert result.exit_code == 3
    assert result.stdout.count("failed: bad") == 20
    assert "failed: bad00.png: UnidentifiedImageError: cannot identify image file" in result.stdout
    assert "and 2 more (--json lists them all)" in result.stdout


def test_losses_of_a_rank_do_not_make_torchrun_end_the_others(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    for number in range(9):  # some of them are this rank's
        (folder / f"bad{number}.png").write_bytes(b"no image")
    result = annotate(folder, "-o", store)
    assert result.exit_code == 0
    assert f"rank 0 of 2, {store}: " in result.stdout
    assert "failed: bad" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_a_bad_image_whose_name_is_not_utf_8_is_listed(folder: Path, store: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff.png")).write_bytes(b"no image")
    result = annotate(folder, "-o", store)
    assert result.exit_code == 3
    assert r"failed: \xff.png: " in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere"], "Error: There is no folder 'nowhere'."),
        (["{folder}", "--checkpoint", "nothing.pth"], "Error: There is no checkpoint 'nothing.pth'."),
        (["{folder}", "-o", "{folder}/a"], "exists and is no label store"),
    ],
    ids=["missing folder", "missing checkpoint", "no store"],
)
def test_an_error_is_one_message_on_stderr_and_status_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(folder.parent)
    result = annotate(*(argument.format(folder=folder) for argument in arguments))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_data_set_whose_images_have_no_names_is_an_error_of_one_message(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It used to be a traceback."""

    def refuse(*_: Any) -> None:
        raise TypeError("timm reads 'tfds/x' in sequence and does not tell the names of its images")

    monkeypatch.setattr("torchrelabel.annotate.archives.read_dataset", refuse)
    result = annotate(folder, "-o", store, "--dataset", "tfds/x")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Error: timm reads 'tfds/x' in sequence" in result.stderr


def test_other_settings_are_an_error_that_names_them(folder: Path, store: Path) -> None:
    annotate(folder, "-o", store)
    result = annotate(folder, "-o", store, "--codec", "uint8")
    assert result.exit_code == 1
    assert "codec: 'float16', now 'uint8'" in result.stderr


def test_statistics_of_the_fine_tuning_are_given_as_to_timms_scripts_recorded_and_held_to(
    folder: Path, store: Path
) -> None:
    given = ["--mean", "0.1", "0.2", "0.3", "--std", "0.4", "0.5", "0.6", "--interpolation", "lanczos"]
    assert annotate(folder, "-o", store, *given).exit_code == 0
    made_by = LabelStore(store).header.annotator
    assert (made_by["mean"], made_by["std"], made_by["interpolation"]) == ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6], "lanczos")
    result = annotate(folder, "-o", store, *given, "--std", "0.4", "0.5", "0.7")
    assert result.exit_code == 1
    assert "[0.4, 0.5, 0.6]" in result.stderr and "[0.4, 0.5, 0.7]" in result.stderr


@pytest.mark.parametrize(
    ("model", "said"), [("resnet10t", False), ("convnext_atto", True), ("deit_tiny_patch16_224", True)]
)
def test_a_head_that_does_not_commute_with_pooling_is_said(folder: Path, store: Path, model: str, said: bool) -> None:
    torch.save(make_model(model, num_classes=7).state_dict(), folder.parent / "w.pth")
    small = ["--image-size", "64", "--workers", "0", "--device", "cpu"]
    result = invoke("annotate", folder, "-o", store, "--model", model, "--checkpoint", folder.parent / "w.pth", *small)
    assert result.exit_code == 0, result.stderr
    assert (
        f"The head of {model} does not commute with pooling: the mean of its cells is not " in result.stderr
    ) == said


def test_a_file_of_class_names_is_kept_in_the_store(folder: Path, store: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=3).state_dict(), folder.parent / "w.pth")
    names = folder.parent / "names.txt"
    names.write_text("tench\ncoffee mug\nespresso\n")
    result = annotate(folder, "-o", store, "--checkpoint", folder.parent / "w.pth", "--class-names", names)
    assert result.exit_code == 0, result.stderr
    assert LabelStore(store).header.class_names == ("tench", "coffee mug", "espresso")


def test_a_file_with_too_few_class_names_is_an_error_that_says_both_numbers(folder: Path, store: Path) -> None:
    names = folder.parent / "names.txt"
    names.write_text("tench\nespresso\n")
    result = annotate(folder, "-o", store, "--class-names", names)
    assert result.exit_code == 1
    assert "resnet10t has 1000 classes, and 2 class names were given, from 'tench' to 'espresso'." in result.stderr


def test_a_checkpoint_is_annotated_with_statistics_that_are_said(folder: Path, store: Path) -> None:
    torch.save(timm.create_model("resnet10t", num_classes=7).state_dict(), folder.parent / "w.pth")
    result = annotate(folder, "-o", store, "--checkpoint", folder.parent / "w.pth", "--std", "0.4", "0.5", "0.6")
    assert (
        "Images are resized with bicubic and normalised with mean 0.485 0.456 0.406 and std 0.4 0.5 0.6. If the "
        "checkpoint was trained with others, say so: --interpolation, --mean, --std." in result.stderr
    )


def test_where_the_weights_lie_can_be_said(folder: Path, store: Path) -> None:
    state = timm.create_model("resnet10t", num_classes=7).state_dict()
    both = {f"{name}.{key}": value for name in ("net", "ema_net") for key, value in state.items()}
    torch.save({"mine": both}, folder.parent / "w.ckpt")
    options = ["-o", store, "--checkpoint", folder.parent / "w.ckpt", "--state-dict-key", "mine"]
    assert "--strip-prefix ema_net." in annotate(folder, *options).stderr
    result = annotate(folder, *options, "--strip-prefix", "net.")
    assert result.exit_code == 0, result.stderr
    assert LabelStore(store).header.num_classes == 7


def test_exif_and_files_that_are_no_images_are_told_in_json(folder: Path, store: Path) -> None:
    (folder / "note.txt").touch()
    figures = json.loads(annotate(folder, "-o", store, "--exif", "apply", "--json").stdout)
    assert (figures["exif_turned"], figures["deep"], figures["left_out"]) == (0, 0, {".txt": 1})
    assert LabelStore(store).header.annotator["exif"] == "apply"


def test_the_traceback_is_there_for_whoever_asks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHRELABEL_TRACEBACK", "1")
    assert isinstance(annotate("nowhere").exception, FileNotFoundError)


@pytest.mark.parametrize("arguments", [["annotate"], ["annotate", "--model", "x", "--codec", "float8"], ["no-such"]])
def test_wrong_use_gives_status_two(arguments: list[str]) -> None:
    assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [
        *(
            ["annotate", "--model", "x", option, value]
            for option, value in [
                ("--topk", "0"),
                ("--image-size", "0"),
                ("--batch-size", "0"),
                ("--workers", "-1"),
                ("--shards", "0"),
            ]
        ),
        *(
            ["check", "s", "d", "--boxes", "b", option, "0"]
            for option in ("--image-size", "--crops", "--box-images", "--batch-size")
        ),
        *(
            ["import", "token-labeling", "s", option, value]
            for option, value in [("--num-classes", "0"), ("--workers", "-1"), ("--crop-pct", "0"), ("--crop-pct", "2")]
        ),
        ["import", "multilabel-tsv", "s", "--topk", "0"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-2]} {arguments[-1]}",
)
def test_a_number_out_of_its_range_gives_status_two(arguments: list[str]) -> None:
    result = invoke(*arguments)
    assert result.exit_code == 2
    assert f"'{arguments[-2]}'" in result.stderr


def test_an_interrupt_says_how_to_continue_and_gives_status_130(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(LabelStoreWriter):
        def put(self, key: str, *arrays: Any, **options: Any) -> None:
            if key == "b/z.png":
                raise KeyboardInterrupt
            super().put(key, *arrays, **options)

    monkeypatch.setattr(torchrelabel.annotate.run, "LabelStoreWriter", Interrupting)
    result = annotate(folder, "-o", store)
    assert result.exit_code == 130
    assert f"Stopped. What was annotated is in {store}; the same command continues." in result.stderr
    assert len(LabelStore(store)) == 2


def test_help_shows_an_example() -> None:
    assert "Example: torchrelabel annotate" in invoke("annotate", "--help").stdout


def test_the_version_is_printed() -> None:
    assert invoke("--version").stdout == f"torchrelabel, version {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["annotate", "--help"]])
def test_help_imports_neither_torch_nor_timm(arguments: list[str]) -> None:
    script = (
        "import sys; from torchrelabel.cli import main; main(sys.argv[1:], standalone_mode=False); "
        "sys.exit(bool({'torch', 'timm', 'PIL', 'lmdb'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, check=False).returncode == 0


def test_the_package_can_be_run_as_a_module(folder: Path) -> None:
    command = [sys.executable, "-m", "torchrelabel", "--version"]
    assert subprocess.check_output(command, cwd=ROOT, text=True) == f"torchrelabel, version {__version__}\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--num-actors", "2"], "--num-actors is not for --engine torchrun"),
        (["--key-column", "name"], "--key-column is not for --engine torchrun"),
        (["--engine", "ray", "--workers", "2"], "--workers is not for --engine ray"),
        (["--engine", "ray", "--split", "train"], "--split is not for --engine ray"),
    ],
)
def test_an_option_of_the_other_engine_is_wrong_use(options: list[str], words: str) -> None:
    result = CliRunner().invoke(main, ["annotate", "images", "--model", "resnet18", *options])
    assert result.exit_code == 2
    assert words in result.output
