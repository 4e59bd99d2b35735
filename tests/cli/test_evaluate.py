"""``torchrelabel evaluate``, as it is typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from click.testing import Result

from tests.annotate.models import make_model
from tests.cli.test_annotate import invoke
from tests.evaluate.painted import SIZE, Grey, grey, paint
from torchrelabel.cli.evaluate import evaluate as command


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty classes by their grey level, as an exported program."""
    path = tmp_path_factory.mktemp("model") / "grey.pt2"
    torch.export.save(torch.export.export(Grey(), (torch.rand(4, 3, SIZE, SIZE),)), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Forty images, of which that of class 4 looks like class 30."""
    looks = {class_: class_ for class_ in range(40)} | {4: 30}
    return paint(tmp_path / "val", [(f"{class_:02}/a.png", grey(look)) for class_, look in looks.items()])


def run(*arguments: Any) -> Result:
    plain = ["--mean", 0, 0, 0, "--std", 1, 1, 1, "--workers", 0, "--device", "cpu"]
    return invoke("evaluate", *arguments, *plain)


def test_json_is_one_object_of_fractions_on_stdout(model: Path, data: Path) -> None:
    result = run(model, "--data", data, "--json")
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert (figures["top1"], figures["top5"], figures["model"]) == (39 / 40, 39 / 40, "grey.pt2")
    assert figures["images"]["top1"] == 40


def test_the_table_has_percents(model: Path, data: Path) -> None:
    result = run(model, "--data", data)
    assert result.exit_code == 0
    assert " ".join(result.stdout.split()).count("top-1 97.50%") == 1


def test_fgsm_goes_through_an_exported_program(model: Path, data: Path) -> None:
    figures = json.loads(run(model, "--data", data, "--fgsm", "--json").stdout)
    assert figures["fgsm"] == 0  # 8 levels are more than the way to the next class


def test_what_does_not_apply_is_said_and_no_failure(model: Path, data: Path) -> None:
    result = run(model, "--data", data, "--real", "timm")
    assert result.exit_code == 0
    assert "left out: real: The ReaL labels in 'timm' name class" in result.stdout


def test_lost_images_are_status_3(model: Path, data: Path) -> None:
    (data / "00/bad.png").write_bytes(b"no image")
    result = run(model, "--data", data)
    assert result.exit_code == 3
    assert "1 image of data could not be used:\n  00/bad.png: UnidentifiedImageError" in result.stdout


def test_a_folder_with_a_class_too_many_is_status_1(model: Path, data: Path) -> None:
    paint(data, [("40/a.png", grey(0))])
    result = run(model, "--data", data)
    assert result.exit_code == 1
    assert "has 41 folders with images, and the model 40 classes" in result.stderr


def test_several_checkpoints_stand_side_by_side_and_in_one_picture(data: Path, tmp_path: Path) -> None:
    for name in ("first", "second"):
        weights = make_model("resnet10t", num_classes=40).state_dict()
        torch.save(weights, tmp_path / f"{name}.pth")
    both = ["--checkpoint", tmp_path / "first.pth", "--checkpoint", tmp_path / "second.pth", "--image-size", 32]
    result = run("resnet10t", *both, "--data", data, "--plot", tmp_path / "both.svg")
    assert result.exit_code == 0, result.output
    assert ["first", "second"] in [line.split() for line in result.stdout.splitlines()]
    assert (tmp_path / "both.svg").read_text().startswith("<?xml")
    models = json.loads(run("resnet10t", *both, "--data", data, "--json").stdout)["models"]
    assert [Path(each["weights"].removeprefix("checkpoint ")).stem for each in models] == ["first", "second"]


def test_an_earlier_run_can_be_compared_with(model: Path, data: Path, tmp_path: Path) -> None:
    earlier = tmp_path / "earlier.json"
    earlier.write_text(run(model, "--data", data, "--json").stdout)
    result = run(model, "--data", data, "--compare", earlier)
    assert ["grey.pt2", "grey.pt2", "(2)"] in [line.split() for line in result.stdout.splitlines()]
    assert " ".join(result.stdout.split()).count("top-1 97.50% 97.50%") == 1


@pytest.mark.parametrize("content", ["[1]", "{}", "nothing", '{"models": [{"model": 1}]}'])
def test_something_else_cannot_be_compared_with(model: Path, data: Path, tmp_path: Path, content: str) -> None:
    (tmp_path / "other.json").write_text(content)
    result = run(model, "--data", data, "--compare", tmp_path / "other.json")
    assert result.exit_code == 1
    assert "is not what torchrelabel evaluate --json prints" in result.stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["resnet18"], "There is nothing to measure on. Give one or more of --data"),
        (["resnet18", "--v2", "x", "--fgsm"], "--fgsm is measured on the validation images"),
        (["resnet18", "resnet34", "--checkpoint", "x.pth", "--data", "x"], "Checkpoints are those of one MODEL"),
        ([], "Missing argument 'MODEL...'"),
    ],
)
def test_wrong_use_is_status_2(arguments: list[str], said: str) -> None:
    result = invoke("evaluate", *arguments)
    assert result.exit_code == 2
    assert said in " ".join(result.stderr.split())


def test_the_help_of_every_option_says_something() -> None:
    assert all(option.help for option in command.params if isinstance(option, click.Option))
