"""Where the other test sets lie, and what a corruption error is."""

from __future__ import annotations

from pathlib import Path

import pytest
from timm.data import ImageNetInfo

from torchrelabel.evaluate import shifts


def make(root: Path, *folders: str) -> Path:
    for folder in folders:
        (root / folder).mkdir(parents=True)
    return root


@pytest.mark.parametrize(
    "names",
    [
        (
            "imagenetv2-matched-frequency-format-val",
            "imagenetv2-threshold0.7-format-val",
            "imagenetv2-top-images-format-val",
        ),
        ("imagenetv2-b-33", "imagenetv2-a-44", "imagenetv2-c-12"),
        ("imagenetv2-matched-frequency", "imagenetv2-threshold-0.7", "imagenetv2-topimages"),
    ],
)
def test_each_set_of_imagenet_v2_has_its_key(tmp_path: Path, names: tuple[str, ...]) -> None:
    sets = shifts.v2_sets(make(tmp_path, *[f"{name}/0" for name in names]))
    keys = ("v2_matched_frequency", "v2_threshold", "v2_top_images")
    assert sets == {key: tmp_path / name for key, name in zip(keys, names, strict=True)}


def test_one_set_can_be_given_alone(tmp_path: Path) -> None:
    make(tmp_path, "imagenetv2-matched-frequency-format-val/0", "mine/0")
    assert list(shifts.v2_sets(tmp_path / "imagenetv2-matched-frequency-format-val")) == ["v2_matched_frequency"]
    assert shifts.v2_sets(tmp_path / "mine") == {"v2": tmp_path / "mine"}


def test_a_folder_without_a_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no set of ImageNetV2 in "):
        shifts.v2_sets(make(tmp_path, "imagenetv2-matched-frequency-format-val"))


def test_the_classes_of_imagenet_a_are_the_two_hundred_of_its_authors() -> None:
    synsets = ImageNetInfo().label_names()
    indices = [synsets.index(name) for name in shifts.classes_of_release("a")]
    # From eval.py of hendrycks/natural-adv-examples: its first, last, number and sum.
    assert (indices[:5], indices[-3:], len(indices)) == ([6, 11, 13, 15, 17], [986, 987, 988], 200)
    assert indices == sorted(indices)
    assert len(set(shifts.classes_of_release("r"))) == 200


def test_corruptions_lie_in_the_folder_or_in_those_of_the_archives(tmp_path: Path) -> None:
    make(tmp_path, "blur/glass_blur/1/a", "blur/glass_blur/5/a", "fog/3/a", "extra/spatter/1/a", "mine/2/a", "fog/9")
    found = shifts.corruptions(tmp_path)
    assert {name: list(severities) for name, severities in found.items()} == {
        "glass_blur": ["1", "5"],
        "fog": ["3"],
        "mine": ["2"],
    }
    assert found["glass_blur"]["5"] == tmp_path / "blur/glass_blur/5"


def test_a_folder_without_corruptions_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="There is no corruption in "):
        shifts.corruptions(tmp_path)


def test_alexnet_has_a_corruption_error_of_one() -> None:
    top1 = {name: dict.fromkeys(shifts.SEVERITIES, 1 - error) for name, error in shifts.ALEXNET_ERRORS.items()}
    assert shifts.corruption_error(top1) == pytest.approx(1)


def test_errors_are_summed_over_severities_before_they_are_divided() -> None:
    top1 = {name: dict.fromkeys(shifts.SEVERITIES, 1.0) for name in shifts.ALEXNET_ERRORS}
    top1["fog"] = dict(zip(shifts.SEVERITIES, (1, 1, 1, 1, 0), strict=True))
    assert shifts.corruption_error(top1) == pytest.approx(1 / (5 * 0.819324) / 15)


def test_without_all_75_sets_there_is_no_mean_corruption_error() -> None:
    top1 = {name: dict.fromkeys(shifts.SEVERITIES, 1.0) for name in shifts.ALEXNET_ERRORS}
    del top1["snow"]["5"]
    assert shifts.corruption_error(top1) is None
