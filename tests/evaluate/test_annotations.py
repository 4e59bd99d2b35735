"""real.json and human_accuracy.json, as they are and as they should not be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.painted import val
from torchrelabel.evaluate.annotations import number_of, read_multilabel, read_real
from torchrelabel.evaluate.class_folders import DoesNotApply


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(content: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


@pytest.mark.parametrize(
    "key, number",
    [
        (val(7), 7),
        (f"n01440764/{val(50000)}", 50000),
        ("n01440764/ILSVRC2012_val_00000012_n01440764.JPEG", 12),
        ("ILSVRC2012_val_000000123.JPEG", None),
        ("ILSVRC2012_val_7.JPEG", None),
        ("n01440764/n01440764_10026.JPEG", None),
    ],
)
def test_an_image_is_known_by_the_number_in_its_name(key: str, number: int | None) -> None:
    assert number_of(key) == number


def test_the_first_entry_is_of_image_one(write: Any) -> None:
    real = read_real(write([[4], [], [2, 3]]), 5, [val(3)])
    assert real.right == {1: {4}, 2: frozenset(), 3: {2, 3}}


def test_timms_copy_is_that_of_the_paper() -> None:
    real = read_real("timm", 1000, [])
    # Counted on the file of google-research/reassessed-imagenet.
    sizes = [len(classes) for classes in real.right.values()]
    assert (len(sizes), sizes.count(0), sum(sizes)) == (50000, 3163, 57553)
    assert [sorted(real.right[number]) for number in (1, 2, 3)] == [[], [795, 970], [230, 231]]


def test_an_image_beyond_the_end_of_real_json_is_an_error(write: Any) -> None:
    with pytest.raises(ValueError, match=r"are 2 lists, and there is an image of number 3, ILSVRC2012_val_00000003\."):
        read_real(write([[0], [1]]), 5, [val(3)])


def test_images_without_numbers_have_no_labels(write: Any) -> None:
    with pytest.raises(ValueError, match=r"here they are called as 'a/x\.png'\. Keep the names"):
        read_real(write([[0]]), 5, ["a/x.png"])


@pytest.mark.parametrize("content", [{"a": 1}, [1, 2], [["n01440764"]], [[True]]])
def test_something_else_is_no_real_json(write: Any, content: Any) -> None:
    with pytest.raises(ValueError, match="must be a list that has a list of class numbers for each image"):
        read_real(write(content), 5, [])


def test_broken_json_is_said_to_be_so(write: Any) -> None:
    with pytest.raises(ValueError, match="are no JSON: Expecting"):
        read_real(write("[[1], "), 5, [])


def test_classes_that_the_model_has_not_do_not_apply(write: Any) -> None:
    with pytest.raises(DoesNotApply, match="name class 970, and the model has the classes 0 to 39"):
        read_real(write([[970]]), 40, [])


def test_no_file_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no file"):
        read_real(tmp_path / "real.json", 5, [])


SHANKAR = {
    "initial_annots": {
        val(1): {"correct": ["b"], "wrong": ["a"], "unclear": ["c"]},
        val(2): {"unclear": ["a"]},
        val(3): {"correct": ["a"]},
        "v2-12.jpeg": {"correct": ["elsewhere"]},
    },
    "problematic_images": {val(3): "drawing"},
}


def test_lenient_labels_have_those_that_experts_were_not_sure_of(write: Any) -> None:
    annotated = read_multilabel(write(SHANKAR), ["a", "b", "c"], [val(1)])
    assert annotated.right == {1: {1}, 2: frozenset(), 3: {0}}
    assert annotated.lenient == {1: {1, 2}, 2: {0}, 3: {0}}
    assert annotated.problematic == {3}


def test_annotations_of_other_classes_do_not_apply(write: Any) -> None:
    with pytest.raises(DoesNotApply, match=r"name 'c' for ILSVRC2012_val_00000001\.JPEG, which is none of the model's"):
        read_multilabel(write(SHANKAR), ["a", "b"], [val(1)])


def test_annotations_of_other_images_are_an_error(write: Any) -> None:
    with pytest.raises(ValueError, match="are of none of the 1 images"):
        read_multilabel(write(SHANKAR), ["a", "b", "c"], [val(9)])


def test_something_else_is_no_human_accuracy_json(write: Any) -> None:
    with pytest.raises(ValueError, match="must have an object 'initial_annots'"):
        read_multilabel(write([[1]]), ["a"], [val(1)])
