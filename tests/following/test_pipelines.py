"""Every pipeline gives the label of what its image shows, or an error, and the pixels are those without label maps."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils._pytree import tree_flatten
from torchvision.datasets import ImageFolder

from tests.following import pipelines
from tests.following.pipelines import COLOURED, NOT_SEEN, PIPELINES, RIGHT, TRUSTED
from tests.painted import WRONG, Painted, label_error, paint
from torchrelabel import CropNotSeen, LabelMapDataset
from torchrelabel.following.follow import track
from torchrelabel.following.trace import CropTrace

WAYS_OUT = ("RandomResizedCropWithLabelMap", "transforms=")


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    return paint(Path(tmp_path_factory.mktemp("painted")))


def outcome(dataset: LabelMapDataset, repeats: int = 4) -> tuple[list[float], list[str]]:
    """The label errors of the samples that came, and the messages of the others."""
    errors, messages = [], []
    for _ in range(repeats):
        for i in range(len(dataset)):
            try:
                image, label = dataset[i][:2]
            except CropNotSeen as error:
                messages.append(str(error))
            else:
                errors.append(label_error(image, label))
    return errors, messages


@pytest.mark.parametrize("name", PIPELINES)
def test_a_label_is_that_of_the_pixels_or_refused(name: str, painted: Painted) -> None:
    make, expected = PIPELINES[name]
    dataset = LabelMapDataset(ImageFolder(painted.root, transform=make()), painted.store)
    errors, messages = outcome(dataset)
    if expected in (COLOURED, TRUSTED):
        assert errors and not messages
        return
    if errors:
        assert np.mean(errors) <= WRONG
        assert max(errors) <= 0.12
    for message in messages:
        assert any(way in message for way in WAYS_OUT), message
    assert (expected == RIGHT) == (not messages)
    assert (expected == NOT_SEEN) == (not errors)


def test_labels_of_other_parts_would_be_noticed(painted: Painted) -> None:
    """The limit on the label error has teeth: the whole image's label is not that of a crop."""
    make, _ = PIPELINES["v1"]
    dataset = LabelMapDataset(ImageFolder(painted.root, transform=make()), painted.store, crop="full")
    assert np.mean(outcome(dataset)[0]) > 5 * WRONG


def streams(seed: int | None = None) -> Any:
    """The states of the random streams, after seeding them if asked to."""
    if seed is not None:
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
    return random.getstate(), str(np.random.get_state()), torch.get_rng_state().tolist()


def pixels(result: Any) -> list[Any]:
    leaves = tree_flatten(result)[0]
    return [np.asarray(leaf).tolist() for leaf in leaves]


@pytest.mark.parametrize("name", [name for name, (_, expected) in PIPELINES.items() if expected == RIGHT])
def test_pixels_and_random_numbers_are_those_without_label_maps(
    name: str, painted: Painted, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, _ = PIPELINES[name]
    wrapped = LabelMapDataset(ImageFolder(painted.root, transform=make()), painted.store)
    monkeypatch.setattr(pipelines, "OURS", pipelines.RRC2)  # ours has no place outside a LabelMapDataset
    plain = ImageFolder(painted.root, transform=make())
    for i in range(2):
        streams(seed=i)
        expected, drawn = plain[i][0], streams()
        streams(seed=i)
        image, _ = wrapped[i]
        assert streams() == drawn
        assert type(image) is type(expected)
        assert pixels(image) == pixels(expected)


# Ours has no place outside a LabelMapDataset.
UNSEEN = [name for name, (_, expected) in PIPELINES.items() if expected != RIGHT and not name.startswith("ours")]


@pytest.mark.parametrize("name", UNSEEN)
def test_a_tracked_image_has_the_pixels_of_a_plain_one_in_any_pipeline(name: str, painted: Painted) -> None:
    make, _ = PIPELINES[name]
    image = Image.open(painted.root / painted.keys[0]).convert("RGB")
    for seed in range(2):
        streams(seed)
        expected, drawn = make()(image.copy()), streams()
        streams(seed)
        with CropTrace() as sample:
            result = make()(track(image, sample))
        assert streams() == drawn
        assert pixels(result) == pixels(expected)
