"""Class names: which ones are taken, and that none is taken for the name of another class."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import timm.data
import torch

import torchrelabel.annotate.class_names as module
from tests.annotate.models import FourCorners, four_corners, make_folder, make_model
from torchrelabel.annotate import Annotator, annotate
from torchrelabel.annotate.class_names import choose_class_names, imagenet_synsets, in_words, read_class_names
from torchrelabel.errors import SettingsDiffer
from torchrelabel.store import LabelStore

NAMES = ["red", "green", "blue", "none at all"]
FOLDERS = {"b": 0, "g": 1, "k": 2, "r": 3}


def write(path: Path, content: Any) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return path


def annotator_of(tmp_path: Path, content: Any, **options: Any) -> Annotator:
    """Annotate with a checkpoint of a small model of timm's, here with these contents beside its weights."""
    classes = options.pop("classes", 4)
    weights = make_model("resnet10t", num_classes=classes).state_dict()
    torch.save({"state_dict": weights, **content}, tmp_path / "w.pth")
    return Annotator.from_timm("resnet10t", checkpoint=tmp_path / "w.pth", image_size=64, device="cpu", **options)


# Files of names.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("names.txt", "red\ngreen\nblue\nnone at all\n"),
        ("windows.txt", "\ufeffred\r\ngreen\r\nblue\r\nnone at all\r\n\r\n"),
        ("no-newline", "red\ngreen\nblue\nnone at all"),
        ("list.json", NAMES),
        ("index-to-name.json", {"2": "blue", "0": "red", "3": "none at all", "1": "green"}),
        ("name-to-index.json", {"none at all": 3, "green": 1, "red": 0, "blue": 2}),
    ],
)
def test_a_file_of_names_is_read_in_the_order_of_the_classes(tmp_path: Path, name: str, content: Any) -> None:
    assert read_class_names(write(tmp_path / name, content)) == tuple(NAMES)


def test_names_that_are_numbers_are_told_from_indices_by_their_values(tmp_path: Path) -> None:
    """class_to_idx of the folders 10, 2 and 1, as torchvision numbers them."""
    assert read_class_names(write(tmp_path / "x.json", {"2": 2, "10": 1, "1": 0})) == ("1", "10", "2")
    assert read_class_names(write(tmp_path / "y.json", {"2": "2", "1": "10", "0": "1"})) == ("1", "10", "2")


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("x.txt", "red\n\nblue\n", r"x\.txt' must be words on one line, got '' for class 1"),
        ("x.txt", "", r"must be words on one line, got '' for class 0"),
        ("x.txt", "n01440764\ttench\n", r"must be words on one line, got 'n01440764\\ttench' for class 0"),
        ("x.txt", "red\ngreen\nred\n", r"must differ, and classes 0 and 2 are both 'red'\. Rename one"),
        ("x.json", ["red", 7], r"must be words on one line, got 7 for class 1"),
        ("x.json", "red\n", r"are no JSON: .*needs another name: \.txt"),
        ("x.json", '"red"', r"must be a list or an object with a name for each class, got 'red'"),
        ("x.json", {"0": "red", "2": "blue"}, r"have no name of index 1, and 2 names need the indices 0 to 1"),
        ("x.json", {"red": 0, "green": 0}, r"have no name of index 1, and 2 names"),
        ("x.json", {"0": "red", "00": "green"}, r"have no name of index 1, and 2 names"),
        ("x.json", {"red": 1, "green": 2}, r"have no name of index 0, and 2 names"),
        ("x.json", {"red": "a", "green": "b"}, r"a table from index to name or from name to index, got 'red': 'a'"),
        ("x.json", {"0": ["n01440764", "tench"]}, r"must be words on one line, got \['n01440764', 'tench'\] for class"),
    ],
)
def test_a_file_without_one_name_for_each_index_is_refused(tmp_path: Path, name: str, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        read_class_names(write(tmp_path / name, content))


def test_a_file_that_is_not_utf_8_or_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("rot\ngrün\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt' are not UTF-8 .* at byte 6\)\. Save the file as UTF-8"):
        read_class_names(tmp_path / "latin.txt")
    with pytest.raises(FileNotFoundError, match=r"There is no file of class names '.*nothing\.txt'"):
        read_class_names(tmp_path / "nothing.txt")


def test_other_names_than_the_model_has_classes_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "images", ["a.png"])
    with pytest.raises(ValueError, match="four has 4 classes, and 3 class names were given, from 'red' to 'blue'"):
        annotate(folder, tmp_path / "m", model=four_corners(), class_names=NAMES[:3], progress=False)
    assert not (tmp_path / "m").exists()


# What comes first.


def test_names_that_are_given_come_first_then_the_weights_own_then_the_folders() -> None:
    annotator = four_corners()
    assert choose_class_names(annotator, None, None) is None
    assert choose_class_names(annotator, FOLDERS, None) == ("b", "g", "k", "r")
    annotator.class_names = ("w", "x", "y", "z")
    assert choose_class_names(annotator, FOLDERS, None) == ("w", "x", "y", "z")
    assert choose_class_names(annotator, FOLDERS, NAMES) == tuple(NAMES)


def test_folders_are_named_in_the_order_of_their_indices() -> None:
    assert choose_class_names(four_corners(), {"1": 0, "2": 1, "10": 2, "11": 3}, None) == ("1", "2", "10", "11")


@pytest.mark.parametrize(
    "content",
    [
        {"class_names": NAMES},
        {"classes": tuple(NAMES)},
        {"class_to_idx": {"none at all": 3, "green": 1, "red": 0, "blue": 2}},
        {"names": {1: "green", 0: "red", 3: "none at all", 2: "blue"}},
        {"hyper_parameters": {"lr": 0.1, "class_names": NAMES}},
        {"classes": ["of", "something", "else"], "names": NAMES},
    ],
    ids=lambda content: "+".join(content),
)
def test_names_beside_the_weights_are_those_of_the_classes(tmp_path: Path, content: Any) -> None:
    assert annotator_of(tmp_path, content).class_names == tuple(NAMES)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"class_names": NAMES[:3]},
        {"class_names": ["red", "green", "blue", "red"]},
        {"class_names": [0, 1, 2, 3]},
        {"class_names": torch.arange(4)},
        {"class_names": "rgbk"},
        {"class_to_idx": {"red": 0, "green": 1, "blue": 2, "none at all": 4}},
        {"hyper_parameters": NAMES},
        {"notes": NAMES},
    ],
    ids=repr,
)
def test_what_is_not_exactly_a_name_for_each_class_is_not_used(tmp_path: Path, content: Any) -> None:
    assert annotator_of(tmp_path, content).class_names is None


def test_the_names_that_timm_knows_of_pretrained_weights_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model("resnet10t", num_classes=4)
    model.pretrained_cfg = {**model.pretrained_cfg, "label_names": NAMES}
    monkeypatch.setattr("timm.create_model", lambda *_, **__: model)
    monkeypatch.setattr("torchrelabel.annotate.timm_models._source_of_weights", lambda name: (name, {}))
    build = {"image_size": 64, "device": "cpu"}
    assert Annotator.from_timm("resnet10t", **build).class_names == tuple(NAMES)
    assert Annotator.from_timm("resnet10t", pretrained=False, **build).class_names is None


# ImageNet.


def test_a_thousand_classes_of_a_checkpoint_of_an_imagenet_model_are_imagenets(tmp_path: Path) -> None:
    names = choose_class_names(annotator_of(tmp_path, {}, classes=1000), None, None)
    assert names is not None
    assert (names[0], names[217], names[967], len(names)) == ("tench", "English springer", "espresso", 1000)


def test_folders_come_before_the_convention_that_a_thousand_classes_are_imagenets(tmp_path: Path) -> None:
    folders = {f"species {index:04}": index for index in range(1000)}
    names = choose_class_names(annotator_of(tmp_path, {}, classes=1000), folders, None)
    assert names == tuple(folders)


def test_random_weights_other_numbers_of_classes_and_other_peoples_models_are_no_imagenet(tmp_path: Path) -> None:
    assert choose_class_names(annotator_of(tmp_path, {}, classes=4), None, None) is None
    # As many as ImageNet-12k has, in an architecture whose weights are of 1000.
    assert choose_class_names(annotator_of(tmp_path, {}, classes=11821), None, None) is None
    random = Annotator.from_timm("resnet10t", pretrained=False, image_size=64, device="cpu")
    assert choose_class_names(random, None, None) is None
    trained = annotator_of(tmp_path, {}, classes=1000)
    for name, known in (("hf-hub:timm/resnet10t", True), ("hf-hub:someone/birds", False), ("local-dir:birds", False)):
        trained.name = name
        assert (choose_class_names(trained, None, None) is not None) == known


@pytest.mark.parametrize("num_classes", [1000, 11221, 11821, 21841, 21842, 21843])
def test_the_words_of_every_release_of_imagenet_tell_its_classes_apart(num_classes: int) -> None:
    names = in_words(imagenet_synsets(num_classes))
    assert len(set(names)) == len(names) == num_classes


def test_synsets_are_said_in_their_first_word_and_by_number_where_two_share_it() -> None:
    """Their order is the folders', not that of any release."""
    synsets = ["n03126707", "n01440764", "n02012849"]
    assert in_words(synsets) == ("crane (n03126707)", "tench", "crane (n02012849)")
    assert in_words(synsets[:2]) == ("crane", "tench")


@pytest.mark.parametrize("names", [["n01440764", "birds"], ["n01440764", "n99999999"], ["n014407641", "n01440764"]])
def test_names_that_are_not_all_synsets_stay_as_they_are(names: list[str]) -> None:
    assert in_words(names) == tuple(names)


def test_the_words_are_timms() -> None:
    info: Any = timm.data.ImageNetInfo()
    descriptions = info.label_descriptions()
    names = in_words(imagenet_synsets(1000))
    assert all(text.split(", ")[0] == name.split(" (n")[0] for text, name in zip(descriptions, names, strict=True))


# What the store keeps.


def run(folder: Path, store: Path, **options: Any) -> Any:
    return annotate(folder, store, model=four_corners(), top_k=2, workers=0, progress=False, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", ["x.png", "y.png", "z.png"])


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def names_of(store: Path) -> tuple[str, ...] | None:
    return LabelStore(store).header.class_names


def test_names_given_later_are_written_though_nothing_else_is_left_to_do(folder: Path, store: Path) -> None:
    run(folder, store)
    assert names_of(store) is None
    names = write(folder.parent / "names.txt", "\n".join(NAMES))
    assert run(folder, store, class_names=names).already_there == 3
    assert names_of(store) == tuple(NAMES)
    assert run(folder, store).already_there == 3
    assert names_of(store) == tuple(NAMES)


def test_other_names_than_the_stores_are_refused_by_name(folder: Path, store: Path) -> None:
    run(folder, store, class_names=NAMES)
    with pytest.raises(SettingsDiffer, match=r"class_names\[1\]: 'green', now 'GREEN'"):
        run(folder, store, class_names=["red", "GREEN", "blue", "none at all"])


def test_a_store_named_by_its_folders_is_continued_though_they_have_words_now(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stores of the first releases have the synsets themselves for names."""
    synsets = ["n01440764", "n01443537", "n01484850", "n01491361"]
    folder = make_folder(tmp_path / "images", [f"{synset}/x.png" for synset in synsets])
    with monkeypatch.context() as patch:
        patch.setattr(module, "in_words", tuple)
        run(folder, store)
    assert names_of(store) == tuple(synsets)
    make_folder(folder, ["n01440764/new.png"])
    assert run(folder, store).annotated == 1
    assert names_of(store) == tuple(synsets)
    run(folder, tmp_path / "new.lmdb")
    assert names_of(tmp_path / "new.lmdb") == ("tench", "goldfish", "great white shark", "tiger shark")


def test_names_found_out_later_do_not_stop_a_store_on_a_read_only_disk(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(folder, store)
    named = four_corners(model=FourCorners())
    named.class_names = tuple(NAMES)
    with monkeypatch.context() as patch:
        # A test may run as root, who may write anywhere but to a disk that is read-only.
        patch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
        patch.setattr("torchrelabel.annotate.run.LabelStoreWriter", lambda *_, **__: pytest.fail("it was written to"))
        again = annotate(folder, store, model=named, top_k=2, workers=0, progress=False)
    assert again.already_there == 3
    annotate(folder, store, model=named, top_k=2, workers=0, progress=False)
    assert names_of(store) == tuple(NAMES)
