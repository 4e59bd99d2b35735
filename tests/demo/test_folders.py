"""Image folders of scenes: what is on disk, and what is never touched."""

import json

import numpy as np
import pytest
from PIL import Image
from torchvision.datasets import ImageFolder

from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.folders import FolderSettings, make_scene_folder, read_scene_folder
from torchrelabel.demo.scenes import draw_scene

SETTINGS = FolderSettings("train", 50, seed=4, wrong=0.2)


@pytest.fixture(scope="module")
def digits():
    return load_digits_split()[0]


def contents(root):
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*.png")}


def test_image_folder_reads_ten_classes(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    dataset = ImageFolder(str(folder.root))
    assert dataset.classes == [str(digit) for digit in range(10)]
    assert len(dataset) == 50


def test_the_class_folder_is_the_label_and_right_for_four_fifths(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert all(int(key.split("/")[0]) == record.label for key, record in folder.records.items())
    assert sum(record.label == record.digits[0] for record in folder.records.values()) == 40


def test_a_wrong_label_names_a_small_digit_of_the_scene(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    wrong = [record for record in folder.records.values() if record.label != record.digits[0]]
    assert len(wrong) == 10
    assert all(record.label in record.digits[1:] for record in wrong)


def test_files_and_records_are_those_of_the_scene(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    (key,) = (key for key in folder.records if key.endswith("scene-00017.png"))
    scene = draw_scene(digits, (4, 17), 7)
    np.testing.assert_array_equal(np.asarray(Image.open(folder.root / key)), scene.image)
    assert folder.records[key].boxes == tuple(placed.box for placed in scene.digits)
    assert folder.records[key].size == scene.image.shape[:2]


def test_two_folders_with_the_same_settings_are_equal_byte_for_byte(tmp_path, digits):
    first = make_scene_folder(tmp_path / "a", digits, SETTINGS)
    second = make_scene_folder(tmp_path / "b", digits, SETTINGS)
    assert contents(first.root) == contents(second.root)
    assert first.records == second.records


def test_a_second_run_reuses_the_folder(tmp_path, digits):
    first = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    times = {path: path.stat().st_mtime_ns for path in first.root.rglob("*.png")}
    second = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert {path: path.stat().st_mtime_ns for path in second.root.rglob("*.png")} == times
    assert second == first


def test_a_lost_image_is_written_again(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    before = contents(folder.root)
    (folder.root / next(iter(folder.records))).unlink()
    make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert contents(folder.root) == before


def test_other_settings_replace_the_images(tmp_path, digits):
    make_scene_folder(tmp_path / "train", digits, SETTINGS)
    folder = make_scene_folder(tmp_path / "train", digits, FolderSettings("train", 20, seed=9))
    assert set(contents(folder.root)) == set(folder.records)
    assert len(folder.records) == 20


def test_a_file_of_someone_else_is_refused_and_stays(tmp_path, digits):
    make_scene_folder(tmp_path / "train", digits, SETTINGS)
    mine = tmp_path / "train" / "3" / "mine.png"
    mine.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"did not make .*mine\.png.*--output"):
        make_scene_folder(tmp_path / "train", digits, FolderSettings("train", 20, seed=9))
    assert mine.read_bytes() == b"mine"
    assert len(contents(tmp_path / "train")) == 51


def test_a_run_cut_short_is_continued(tmp_path, digits):
    class PowerCut(Exception):
        pass

    def cut_short(keys):
        yield from keys[:7]
        raise PowerCut

    make_scene_folder(tmp_path / "train", digits, FolderSettings("train", 20, seed=9))
    with pytest.raises(PowerCut):
        make_scene_folder(tmp_path / "train", digits, SETTINGS, cut_short)
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert contents(folder.root) == contents(make_scene_folder(tmp_path / "other", digits, SETTINGS).root)


@pytest.mark.parametrize("text", ["{", "[]", '{"format": "another", "scenes": {}}'])
def test_a_description_of_something_else_is_refused(tmp_path, digits, text):
    (tmp_path / "train.json").write_text(text)
    with pytest.raises(FileExistsError, match=r"train\.json was not written by this version"):
        make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert (tmp_path / "train.json").read_text() == text


def test_the_description_names_every_image_with_its_digits(tmp_path, digits):
    folder = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    scenes = json.loads((tmp_path / "train.json").read_text())["scenes"]
    assert {key: tuple(scene["digits"]) for key, scene in scenes.items()} == {
        key: record.digits for key, record in folder.records.items()
    }


def test_scenes_made_before_are_read_back(tmp_path, digits):
    made = make_scene_folder(tmp_path / "train", digits, SETTINGS)
    assert read_scene_folder(tmp_path / "train") == made


def test_scenes_that_nobody_made_are_missed_with_the_command_that_makes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="torchrelabel demo"):
        read_scene_folder(tmp_path / "train")
