"""Class folders that timm and torchvision number differently."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import timm.data
from PIL import Image
from torchvision.datasets import ImageFolder

from tests.annotate.models import four_corners
from torchrelabel import LabelStore
from torchrelabel.annotate import annotate
from torchrelabel.annotate.folder_order import renumbered
from torchrelabel.cli.annotate import _words

# FourCorners says 0 of red, 1 of green, 2 of blue: right in timm's order (1, 2, 10, 11), as if it was trained there.
COLOURS = {"1": "red", "2": "green", "10": "blue", "11": "black"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, colour in COLOURS.items():
        (tmp_path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (17, 11), colour).save(tmp_path / "train" / name / "x.png")
    return tmp_path / "train"


def test_both_orders_are_those_of_the_libraries(folder: Path) -> None:
    torchvisions = ImageFolder(str(folder)).class_to_idx
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        timms = timm.data.create_dataset("", str(folder)).reader.class_to_idx
    assert timms != torchvisions
    assert renumbered(torchvisions) == {torchvisions[name]: timms[name] for name in COLOURS}
    assert renumbered(timms) == {timms[name]: torchvisions[name] for name in COLOURS}


@pytest.mark.parametrize(
    "names",
    [["n01440764", "n02102040"], ["001.a", "010.b"], ["2", "1"], ["1", "²", "10"]],
    ids=["alike", "padded", "neither", "not timm's"],
)
def test_folders_that_have_no_other_order_are_left_alone(names: list[str]) -> None:
    assert renumbered({name: index for index, name in enumerate(names)}) == {}


def test_a_checkpoint_in_timms_order_is_noticed_with_both_shares(folder: Path, tmp_path: Path) -> None:
    summary = annotate(folder, tmp_path / "maps", model=four_corners(), workers=0, progress=False)
    assert (summary.agreement, summary.agreement_renumbered) == (0.25, 0.75)
    assert (
        "WARNING: timm numbers these folders in another order than torchvision, in which it would be 75.0%. "
        "annotate --dataset folder takes timm's order, annotate alone torchvision's."
    ) in _words(summary).splitlines()


def test_a_folder_read_by_timm_has_timms_order_also_in_its_names(folder: Path, tmp_path: Path) -> None:
    summary = annotate(folder, tmp_path / "maps", model=four_corners(), dataset="folder", workers=0, progress=False)
    assert (summary.agreement, summary.agreement_renumbered) == (0.75, 0.25)
    assert (
        "timm numbers these folders in another order than torchvision, in which it would be 25.0%. "
        "annotate --dataset folder takes timm's order, annotate alone torchvision's."
    ) in _words(summary).splitlines()
    maps = LabelStore(tmp_path / "maps")
    assert maps.header.class_names == ("1", "2", "10", "11")
    assert list(maps) == ["1/x.png", "10/x.png", "11/x.png", "2/x.png"]
