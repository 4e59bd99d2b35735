"""The students: the same crops and weights whatever the labels, and measures that can be checked by hand."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.folders import FolderSettings, SceneFolder, SceneRecord, make_scene_folder
from torchrelabel.demo.students import (
    LABEL_KINDS,
    ONE_HOT,
    RELABEL,
    SIZE,
    load_test_scenes,
    make_student,
    missing_digits,
    train_student,
    training_set,
    visible_share,
)
from torchrelabel.store import LabelStoreWriter


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Thirty scenes, with maps of 2 x 3 cells that see a 7 everywhere."""
    root = tmp_path_factory.mktemp("demo") / "train"
    folder = make_scene_folder(root, load_digits_split()[0], FolderSettings("train", 30, seed=4))
    with LabelStoreWriter(root.parent / "maps.lmdb", num_classes=10, top_k=1) as writer:
        for key in folder.records:
            writer.put(key, np.full((1, 2, 3), 9.0), np.full((1, 2, 3), 7))
    return folder


def sample(folder, labels, index=3):
    dataset, criterion = training_set(labels, folder.root, folder.root.parent / "maps.lmdb")
    torch.manual_seed(11)
    return *dataset[index], criterion


def test_all_kinds_of_labels_see_the_same_crops(folder):
    one_hot, relabel = (sample(folder, labels)[0] for labels in LABEL_KINDS)
    assert_close(one_hot, relabel.as_subclass(torch.Tensor), rtol=0, atol=0)


def test_only_relabel_takes_its_labels_from_the_maps(folder):
    assert sample(folder, ONE_HOT)[1] == 1
    assert sample(folder, RELABEL)[1].argmax() == 7


def test_the_same_seed_builds_the_same_student():
    for first, second in zip(make_student(3).parameters(), make_student(3).parameters(), strict=True):
        assert_close(first, second, rtol=0, atol=0)


def test_test_scenes_know_their_large_digit_and_all_digits_present(folder):
    scenes = load_test_scenes(folder)
    records = [folder.records[key] for key in sorted(folder.records)]
    assert scenes.large.tolist() == [record.digits[0] for record in records]
    assert [set(row.nonzero()[:, 0].tolist()) for row in scenes.present] == [set(record.digits) for record in records]
    assert scenes.images.shape == (30, 3, SIZE, SIZE)


def test_every_third_test_scene_is_every_third(folder):
    scenes = load_test_scenes(folder)
    third = scenes.every(3)
    assert third.large.tolist() == scenes.large.tolist()[::3]
    assert_close(third.images[4], scenes.images[12])
    assert_close(third.present[4], scenes.present[12])


def test_a_student_is_measured_on_all_test_scenes_and_its_curve_on_some(folder):
    scenes = load_test_scenes(folder)
    maps = folder.root.parent / "maps.lmdb"
    run = train_student(ONE_HOT, 2, folder.root, maps, scenes, epochs=2, workers=0)
    assert len(run.right) == 30
    assert run.top1 == sum(run.right) / 30
    assert all(10 * score == pytest.approx(round(10 * score)) for score in run.trained.scores)
    assert run.trained.scores[-1] == pytest.approx(sum(run.right[::3]) / 10)


@pytest.mark.parametrize(
    ("crop", "share"), [((0, 0, 50, 50), 1), ((0, 0, 15, 50), 0.5), ((15, 22, 50, 50), 0.4), ((20, 0, 50, 50), 0)]
)
def test_visible_share_is_the_area_in_view(crop, share):
    assert visible_share((10, 20, 20, 30), crop) == pytest.approx(share)


def one_scene(tmp_path, box):
    record = SceneRecord(label=4, digits=(8, 4), boxes=((0, 0, 1, 1), box), sources=(0, 1), size=(70, 90))
    return SceneFolder(tmp_path, {"4/a.png": record})


def test_a_labelled_digit_that_fills_the_scene_is_never_missing(tmp_path):
    none, less_than_half = missing_digits(one_scene(tmp_path, (0, 0, 90, 70)), seed=0, crops_per_scene=50)
    assert none == 0
    assert 0.2 < less_than_half < 0.8  # crops of 8 to 100 % of the scene


def test_a_labelled_digit_in_the_corner_is_often_missing(tmp_path):
    none, less_than_half = missing_digits(one_scene(tmp_path, (80, 60, 90, 70)), seed=0, crops_per_scene=50)
    assert 0.5 < none <= less_than_half < 1
