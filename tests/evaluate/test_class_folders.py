"""Which class is the folder that an image lies in?"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.evaluate.painted import grey, paint
from torchrelabel.annotate.images import ImagesFound, find_images
from torchrelabel.evaluate.class_folders import DoesNotApply, label_folder, number_folder, require_images


def folder(root: Path, *names: str) -> ImagesFound:
    return find_images(paint(root, [(f"{name}/x.png", grey(0)) for name in names]))


def labels_of(labelled):
    return dict(zip((key.split("/")[0] for key in labelled.keys), labelled.labels, strict=True))


def test_as_many_folders_as_classes_are_in_torchvisions_order(tmp_path: Path) -> None:
    labelled = label_folder(folder(tmp_path, "10", "2", "b"), 3)
    assert labels_of(labelled) == {"10": 0, "2": 1, "b": 2}
    assert labelled.table == ("10", "2", "b")


def test_timms_order_is_that_of_the_numbers(tmp_path: Path) -> None:
    labelled = label_folder(folder(tmp_path, "10", "2", "b"), 3, order="number")
    assert labels_of(labelled) == {"2": 0, "10": 1, "b": 2}
    assert labelled.other_order == {0: 1, 1: 0, 2: 2}


def test_synsets_are_known_by_name_however_few_there_are(tmp_path: Path) -> None:
    labelled = label_folder(folder(tmp_path, "n01443537", "n15075141"), 1000)
    assert labels_of(labelled) == {"n01443537": 1, "n15075141": 999}
    assert labelled.notes[0].startswith("998 of 1000 classes have no image in ")
    assert labelled.notes[0].endswith(": 0, 2, 3, ...")


def test_given_names_come_before_any_order(tmp_path: Path) -> None:
    labelled = label_folder(folder(tmp_path, "b", "a"), 2, ["b", "a"])
    assert labels_of(labelled) == {"b": 0, "a": 1}


def test_a_folder_that_is_none_of_the_classes_is_lost_by_name(tmp_path: Path) -> None:
    labelled = label_folder(folder(tmp_path, "n01443537", "n99999999"), 1000)
    assert labelled.no_class == {"n99999999/x.png": "'n99999999' is none of the model's classes"}


def test_an_image_beside_the_folders_has_no_class(tmp_path: Path) -> None:
    folder(tmp_path, "a", "b")
    paint(tmp_path, [("stray.png", grey(0))])
    assert label_folder(find_images(tmp_path), 2).no_class == {"stray.png": "lies in no class folder"}


@pytest.mark.parametrize("names", [("a",), ("a", "b", "c")])
def test_missing_and_extra_folders_without_names_are_an_error(tmp_path: Path, names: tuple[str, ...]) -> None:
    with pytest.raises(DoesNotApply, match=rf"has {len(names)} folders with images, and the model 2 classes.*--class-"):
        label_folder(folder(tmp_path, *names), 2)


def test_images_without_folders_have_no_classes(tmp_path: Path) -> None:
    with pytest.raises(DoesNotApply, match="lie in no class folders"):
        label_folder(find_images(paint(tmp_path, [("x.png", grey(0))])), 2)


def test_the_folders_of_imagenet_v2_are_numbers_and_not_places_in_the_alphabet(tmp_path: Path) -> None:
    labelled = number_folder(folder(tmp_path, *map(str, range(12))), 40)
    assert labels_of(labelled) == {str(number): number for number in range(12)}


def test_numbers_that_the_model_has_not_do_not_apply(tmp_path: Path) -> None:
    with pytest.raises(DoesNotApply, match="has a folder '40', and the model the classes 0 to 39"):
        number_folder(folder(tmp_path, "9", "40"), 40)


def test_folders_that_are_no_numbers_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must be called by the numbers of their classes; 'cat' is none"):
        number_folder(folder(tmp_path, "1", "cat"), 40)


def test_an_empty_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no image in "):
        require_images(tmp_path)
