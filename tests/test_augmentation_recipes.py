"""The recipes of docs/recipes-augmentation.md, run as they stand there, on images whose pixels have known classes."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchrelabel import LabelStoreWriter

PAGE = Path(__file__).parents[1] / "docs" / "recipes-augmentation.md"
COLOURS = np.array([(220, 30, 30), (30, 200, 40), (40, 60, 230), (230, 210, 40), (200, 60, 210), (40, 210, 210)])
ROWS, COLUMNS = 4, 6


def recipe(title: str) -> str:
    """The code of a section."""
    section = PAGE.read_text(encoding="utf-8").split(f"## {title}", 1)[1].split("\n## ", 1)[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def changed(code: str, changes: dict[str, str]) -> str:
    for old, new in changes.items():
        assert old in code
        code = code.replace(old, new)
    return code


@pytest.fixture
def birds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[np.ndarray]:
    """Images of coloured blocks, one class a colour, and their label maps, under the names that the recipes have."""
    blocks = [np.random.default_rng(number).integers(0, len(COLOURS), (ROWS, COLUMNS)) for number in range(8)]
    with LabelStoreWriter(
        tmp_path / "birds.lmdb",
        num_classes=len(COLOURS),
        top_k=1,
        score_kind="probability",
        class_to_idx={name: index for index, name in enumerate("abcdef")},
    ) as writer:
        for number, classes in enumerate(blocks):
            key = f"{'abcdef'[number % 6]}/{number}.png"
            (tmp_path / "birds" / key).parent.mkdir(parents=True, exist_ok=True)
            pixels = COLOURS[classes.repeat(80, 0).repeat(70, 1)].astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "birds" / key)
            writer.put(key, np.ones((1, ROWS, COLUMNS)), classes[None])
        writer.finish(dataset={"count": len(blocks)})
    monkeypatch.chdir(tmp_path)
    return blocks


def shares(images: torch.Tensor) -> torch.Tensor:
    """How much of each image has which colour: ``[B, C]``, of images in 0..255."""
    colours, images = torch.from_numpy(COLOURS).to(images), images[:, :, ::2, ::2]
    nearest = torch.cdist(images.permute(0, 2, 3, 1).flatten(1, 2), colours.expand(len(images), -1, -1)).argmin(2)
    return torch.nn.functional.one_hot(nearest, len(COLOURS)).float().mean(1)


@pytest.fixture
def kornia() -> Any:
    with warnings.catch_warnings():  # of what else it imports
        warnings.simplefilter("ignore")
        return pytest.importorskip("kornia.augmentation", reason="kornia is not installed: its recipe was not run")


def test_kornias_crops_are_labelled_by_what_they_show(birds: list[np.ndarray], kornia: Any) -> None:
    # Colours are needed as they are, to be told apart; all else is the recipe's.
    changes = {"colour(flip(crop(images)))": "flip(crop(images))", "    ...\n": "    seen.append((images, targets))\n"}
    code = changed(recipe("kornia, on the device"), {**changes, "in loader:": "in list(loader) * 3:"})
    seen: list[Any] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        exec(code, {"seen": seen})
    images, targets = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert len(images) == 24
    error = (shares(images * 255) - targets).abs().sum(1) / 2
    assert error.mean() < 0.03
    assert error.max() < 0.08


@pytest.fixture
def albumentations(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("NO_ALBUMENTATIONS_UPDATE", "1")  # it asks for a newer version of itself
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("albumentations", reason="albumentations is not installed: its recipe was not run")


def test_crops_of_albumentations_are_labelled_by_what_they_show(birds: list[np.ndarray], albumentations: Any) -> None:
    nested = "A.OneOf([A.VerticalFlip(), A.GaussNoise((0.01, 0.02))], p=0.9)"
    changes = {"        A.Normalize(),\n": "", "A.OneOf([A.ColorJitter(), A.ToGray()], p=0.5)": nested}
    code = changed(recipe("albumentations"), changes)
    names: dict[str, Any] = {}
    exec(code, names)
    names["pipeline"].set_random_seed(0)
    images, labels = zip(*[names["dataset"][index % 8] for index in range(24)], strict=True)
    error = (shares(torch.stack(images).float()) - torch.stack(labels)).abs().sum(1) / 2
    assert error.mean() < 0.03
    assert error.max() < 0.08


def test_what_the_recipe_does_not_follow_is_refused(birds: list[np.ndarray], albumentations: Any) -> None:
    names: dict[str, Any] = {}
    exec(recipe("albumentations"), names)
    for step in (albumentations.Rotate(p=1), albumentations.PadIfNeeded(900, 900, p=1)):
        pipeline = albumentations.ReplayCompose([step, albumentations.pytorch.ToTensorV2()])
        dataset = names["LabelMapDataset"](
            names["ImageFolder"]("birds"), "birds.lmdb", transforms=names["Albumentations"](pipeline)
        )
        with pytest.raises(TypeError, match=f"{type(step).__name__} moves pixels in a way that this recipe does not"):
            dataset[0]
