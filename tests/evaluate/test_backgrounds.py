"""The Backgrounds Challenge on painted objects: who is misled can be told by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.evaluate.painted import SIZE, Grey, classifier, grey, paint
from torchrelabel.evaluate.backgrounds import challenge, read_mapping, super_class, variation
from torchrelabel.evaluate.predictions import Settings

FOLDERS = ("00_dog", "01_bird")
SETTINGS = Settings(batch_size=2, workers=0)


def make(root: Path, backgrounds: list[tuple[str, int]]) -> Path:
    """Two objects, a dog of class 0 and a bird of class 20 of 40, each covering three quarters of its image."""
    paint(root / "original/val", [(f"{FOLDERS[0]}/dog.JPEG", grey(0, 0)), (f"{FOLDERS[1]}/bird.JPEG", grey(20, 0))])
    paint(root / "only_bg_t/val", [(f"{FOLDERS[0]}/{name}.JPEG", grey(class_, 0)) for name, class_ in backgrounds])
    mask = np.ones((SIZE, SIZE), bool)
    mask[:, : SIZE // 4] = False
    for folder, name in zip(FOLDERS, ("dog", "bird"), strict=True):
        (root / "fg_mask/val" / folder).mkdir(parents=True)
        np.save(root / f"fg_mask/val/{folder}/{name}.npy", mask)
    return root


def halves() -> torch.Tensor:
    """The first twenty of 40 classes are dogs, the others birds."""
    return torch.tensor([0] * 20 + [1] * 20)


def test_an_object_counts_if_no_background_misleads(tmp_path: Path) -> None:
    # 3/4 of 0 and 1/4 of 39 is class 9.75: still a dog. 3/4 of 20 and 1/4 of 0 is 15: a bird taken for a dog.
    root = make(tmp_path, [("light", 39), ("dark", 0), ("middle", 20)])
    outcome = challenge(classifier(Grey()), root, halves(), SETTINGS)
    assert outcome is not None
    assert (outcome.foregrounds, outcome.robust, outcome.unreadable) == (2, 1, {})


def test_backgrounds_that_mislead_nobody_leave_both(tmp_path: Path) -> None:
    outcome = challenge(classifier(Grey()), make(tmp_path, [("light", 39)]), halves(), SETTINGS)
    assert outcome is not None and outcome.robust == 2


def test_a_class_that_is_none_of_the_nine_is_wrong(tmp_path: Path) -> None:
    outcome = challenge(classifier(Grey()), make(tmp_path, [("light", 39)]), torch.full((40,), -1), SETTINGS)
    assert outcome is not None and outcome.robust == 0


def test_scores_that_are_no_numbers_are_wrong(tmp_path: Path) -> None:
    class Broken(Grey):
        def forward(self, images):
            return super().forward(images).masked_fill(images.mean() > 0, float("nan"))

    outcome = challenge(classifier(Broken()), make(tmp_path, [("light", 39)]), halves(), SETTINGS)
    assert outcome is not None and outcome.robust == 0


def test_files_that_cannot_be_used_are_listed(tmp_path: Path) -> None:
    root = make(tmp_path, [("light", 39), ("bad", 0)])
    (root / f"only_bg_t/val/{FOLDERS[0]}/bad.JPEG").write_bytes(b"no image")
    np.save(root / f"fg_mask/val/{FOLDERS[0]}/dog.npy", np.ones((3, 3)))
    np.save(root / f"fg_mask/val/{FOLDERS[1]}/no.npy", np.ones((SIZE, SIZE)))
    outcome = challenge(classifier(Grey()), root, halves(), SETTINGS)
    assert outcome is not None and outcome.foregrounds == 1
    assert [key.split(":")[0] for key in outcome.unreadable] == ["only_bg_t", "fg_mask", "fg_mask"]
    assert outcome.unreadable["fg_mask: 00_dog/dog.npy"] == "the mask is [3, 3] and the image [8, 8]"
    assert outcome.unreadable["fg_mask: 01_bird/no.npy"] == "01_bird/no.JPEG is not in original"


def test_a_mask_that_would_run_code_is_not_loaded(tmp_path: Path) -> None:
    root = make(tmp_path, [("light", 39)])
    np.save(root / f"fg_mask/val/{FOLDERS[0]}/dog.npy", np.array([print], dtype=object), allow_pickle=True)
    outcome = challenge(classifier(Grey()), root, halves(), SETTINGS)
    assert outcome is not None and "Object arrays cannot be loaded" in outcome.unreadable["fg_mask: 00_dog/dog.npy"]


def test_without_its_three_folders_there_is_no_challenge(tmp_path: Path) -> None:
    assert challenge(classifier(Grey()), tmp_path, halves(), SETTINGS) is None


def write_mapping(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_the_mapping_lies_in_the_folder_or_is_given(tmp_path: Path) -> None:
    write_mapping(tmp_path / "in_to_in9.json", {"0": 3, "1": -1})
    given = write_mapping(tmp_path / "mine.json", {"0": 8, "1": 0})
    assert read_mapping(tmp_path, None, 2).tolist() == [3, -1]
    assert read_mapping(tmp_path, given, 2).tolist() == [8, 0]


def test_a_model_of_the_nine_classes_needs_no_mapping(tmp_path: Path) -> None:
    assert read_mapping(tmp_path, None, 9).tolist() == list(range(9))


@pytest.mark.parametrize("content", [{"0": 1}, {"0": 9, "1": 0}, {"0": 0, "1": 0, "2": 0}, [0, 1], {"0": 0, "1": "x"}])
def test_another_mapping_is_an_error(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="must map each of the model's 2 classes, '0' to '1', to one of 0 to 8, or to"):
        read_mapping(tmp_path, write_mapping(tmp_path / "m.json", content), 2)


def test_without_a_mapping_it_is_said_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"comes with MadryLab/backgrounds_challenge; copy it there, or give it"
    ):
        read_mapping(tmp_path, None, 1000)


def test_a_folder_without_a_number_is_no_super_class(tmp_path: Path) -> None:
    found = variation(make(tmp_path, [("light", 39)]), "original")
    assert found is not None
    assert [super_class(found, key) for key in found.keys] == [0, 1]
    with pytest.raises(ValueError, match=r"must be called 00_dog to 08_instrument, and 'dog/x\.png' lies elsewhere"):
        super_class(found, "dog/x.png")
