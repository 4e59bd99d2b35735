"""Images are named by their path relative to the folder that was annotated, whatever dataset they come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.utils.data import ConcatDataset, Subset
from torchvision import datasets

from torchrelabel import LabelStore, LabelStoreWriter
from torchrelabel.data.keys import KeyPrefix, check_distinct, find_key_prefix, key_of, relative_key


def bare(kind: type, **attributes: Any) -> Any:
    """A dataset as torchvision leaves it after a download, without the download."""
    dataset = kind.__new__(kind)
    dataset.__dict__.update(attributes)
    return dataset


def test_a_key_has_slashes_and_keeps_dots_and_the_extension() -> None:
    assert relative_key("/data/train/001.Black_footed/a.b.JPEG", "/data/train") == "001.Black_footed/a.b.JPEG"


@pytest.mark.parametrize("path", ["/data/./train/x/1.png", "/data/train//x/1.png", "/data/train/./y/../x/1.png"])
@pytest.mark.parametrize("root", ["/data/train", "/data/train/", "/data/val/../train/"])
def test_a_key_does_not_depend_on_how_path_and_root_are_written(path: str, root: str) -> None:
    assert relative_key(path, root) == "x/1.png"


@pytest.mark.parametrize(
    "path", ["/data/other/1.png", "/data/training/1.png", "/data/train", "/data/train/", "/data/train/../val/1.png"]
)
def test_an_image_outside_the_root_has_no_key(path: str) -> None:
    with pytest.raises(ValueError, match="does not lie below"):
        relative_key(path, "/data/train")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (bare(datasets.ImageFolder, root="/d", samples=[("/d/a/0.png", 0), ("/d/b/1.png", 1)]), "b/1.png"),
        (bare(datasets.DatasetFolder, root="/d", samples=[("/d/a/0.x", 0), ("/d/b/1.x", 1)]), "b/1.x"),
        (bare(datasets.Imagenette, root="/d", _samples=[("/d/i/a.JPEG", 0), ("/d/i/b.JPEG", 1)]), "i/b.JPEG"),
        (bare(datasets.Food101, root=Path("/d"), _image_files=[Path("/d/f/0.jpg"), Path("/d/f/1.jpg")]), "f/1.jpg"),
        (bare(datasets.OxfordIIITPet, root="/d", _images=[Path("/d/p/0.jpg"), Path("/d/p/1.jpg")]), "p/1.jpg"),
        (bare(datasets.ImageNet, root="/d", split="train", samples=[("/d/train/n0/0.JPEG", 0)] * 2), "n0/0.JPEG"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_torchvisions_datasets_tell_the_key_of_an_image(dataset: Any, expected: str) -> None:
    assert key_of(dataset, 1) == expected


FOLDER = bare(datasets.ImageFolder, root="/d", samples=[(f"/d/a/{i}.png", 0) for i in range(5)])


def test_the_key_of_a_subset_is_that_of_its_index() -> None:
    assert key_of(Subset(Subset(FOLDER, [4, 3, 2]), [2, 0]), 0) == "a/2.png"


@pytest.mark.parametrize(("index", "expected"), [(0, "0"), (4, "4"), (5, "3"), (6, "1"), (-1, "1"), (-7, "0")])
def test_the_key_of_a_concatenation_is_that_of_its_part(index: int, expected: str) -> None:
    both = ConcatDataset([FOLDER, Subset(FOLDER, [3, 1])])
    assert key_of(both, index) == f"a/{expected}.png"


def test_an_index_past_a_concatenation_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        key_of(ConcatDataset([FOLDER]), 5)


def test_a_key_may_be_a_function_or_one_key_for_each_index() -> None:
    assert key_of(object(), 3, lambda index: f"image {index}") == "image 3"
    assert key_of(object(), 1, ["first", "second"]) == "second"


def test_the_key_that_is_given_goes_before_the_dataset() -> None:
    assert key_of(FOLDER, 1, lambda index: "mine") == "mine"


@pytest.mark.parametrize("dataset", [[1, 2], bare(datasets.CIFAR10, root="/d", data=[1, 2])], ids=["list", "CIFAR10"])
def test_a_dataset_that_does_not_know_its_files_asks_for_key(dataset: Any) -> None:
    with pytest.raises(
        TypeError, match=rf"^{type(dataset).__name__} does not say which file .* LabelMapDataset\(\.\.\."
    ):
        key_of(dataset, 0)


# Roots that differ.

STORED = ["train/a/1.png", "train/a/2.png", "train/b.c/1.png"]


@pytest.mark.parametrize(
    ("stored", "keys", "expected"),
    [
        (STORED, ["a/1.png", "b.c/1.png"], KeyPrefix("train/")),
        (["images/" + key for key in STORED], ["a/1.png", "b.c/1.png"], KeyPrefix("images/train/")),
        (["a/1.png", "b.c/1.png"], STORED, KeyPrefix(dropped=1)),
        (["a/1.png", "a/2.png", "b.c/1.png"], ["data/images/" + key for key in STORED], KeyPrefix(dropped=3)),
        (["1.png", "2.png"], ["a/1.png", "b/2.png"], KeyPrefix(dropped=1)),
    ],
)
def test_the_folders_are_found_by_which_keys_differ(stored, keys, expected, tmp_path):
    with LabelStoreWriter(tmp_path / "maps", num_classes=2, top_k=1) as writer:
        for key in stored:
            writer.put(key, np.zeros((1, 2, 3)), np.zeros((1, 2, 3), np.int64))
    store = LabelStore(tmp_path / "maps")
    prefix = find_key_prefix([key for key in keys if "a/2" not in key], store)
    assert prefix == expected
    assert all(prefix(key) in store for key in keys if "a/2" not in key)


@pytest.mark.parametrize(
    "keys",
    [["val/a/1.png", "val/a/2.png"], ["a/1.png", "a/9.png"], ["c/1.png"]],
    ids=["another split", "one that is missing", "another folder"],
)
def test_keys_of_other_images_are_not_made_to_fit(keys, tmp_path):
    with LabelStoreWriter(tmp_path / "maps", num_classes=2, top_k=1) as writer:
        for key in STORED:
            writer.put(key, np.zeros((1, 2, 3)), np.zeros((1, 2, 3), np.int64))
    assert find_key_prefix(keys, LabelStore(tmp_path / "maps")) is None


def store_of(names, path):
    with LabelStoreWriter(path, num_classes=2, top_k=1) as writer:
        for key in names:
            writer.put(key, np.zeros((1, 2, 3)), np.zeros((1, 2, 3), np.int64))
    return LabelStore(path)


TWO_DAYS = ["day1/a/1.png", "day1/b/2.png", "day2/a/1.png", "day2/b/2.png"]


def test_one_of_several_folders_with_the_same_names_is_not_guessed(tmp_path):
    """The first one in the store was taken."""
    store = store_of(TWO_DAYS, tmp_path / "maps")
    with pytest.raises(ValueError, match=r"'a/1\.png' may be 'day\d/a/1\.png' or 'day\d/a/1\.png'.* key_prefix='day"):
        find_key_prefix(["a/1.png", "b/2.png"], store)


@pytest.mark.parametrize("root", ["/data/shoot/day2", "shoot/day2/", "day2"])
def test_the_name_of_the_root_tells_which_folder_of_the_store_it_is(root, tmp_path):
    store = store_of(TWO_DAYS, tmp_path / "maps")
    assert find_key_prefix(["a/1.png", "b/2.png"], store, root) == KeyPrefix("day2/")


def test_the_name_of_the_root_finds_a_folder_deep_in_the_store(tmp_path):
    store = store_of([f"x/{name}" for name in TWO_DAYS], tmp_path / "maps")
    assert find_key_prefix(["a/1.png"], store, "/d/x/day2") == KeyPrefix("x/day2/")


def test_two_folders_with_an_image_of_one_name_are_refused(tmp_path):
    """Both got the map of the same image."""
    one, other = (
        bare(datasets.ImageFolder, root=f"/d/{day}", samples=[(f"/d/{day}/a/{n}.png", 0)])
        for day, n in (("day1", 1), ("day2", 1))
    )
    with pytest.raises(ValueError, match=r"/d/day1 and /d/day2 each have an image 'a/1\.png'.*key_prefix="):
        check_distinct(ConcatDataset([one, Subset(other, [0])]))
    check_distinct(ConcatDataset([one, one]))
    check_distinct(ConcatDataset([one, bare(datasets.ImageFolder, root="/d/day2", samples=[("/d/day2/a/7.png", 0)])]))
