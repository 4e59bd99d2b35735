"""Which map belongs to which image: the publishers' rule for names, what is ambiguous, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from torchrelabel.importers.names import find_map_files, match, names_of_map


def touch(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def publishers_rule(path: str) -> str:
    return "/".join(path.split("/")[-2:]).split(".")[0]


@pytest.mark.parametrize("key", ["n01/x.JPEG", "a/n01/x.JPEG", "x.JPEG", "n01/x.y.JPEG", "001.Bird/x.jpg", "n01/x"])
def test_the_last_name_tried_is_that_of_the_publishers(key: str) -> None:
    assert names_of_map("train")(key)[-1] == publishers_rule(f"/data/imagenet/train/{key}")


def test_maps_and_images_are_put_together_whatever_the_extension() -> None:
    matching = match(["n01/x", "n02/y"], ["n01/x.JPEG", "n02/y.png"], names_of_map("train"))
    assert matching.pairs == {"n01/x.JPEG": "n01/x", "n02/y.png": "n02/y"}
    assert (matching.ambiguous, matching.images_alone, matching.maps_alone) == ({}, [], [])


def test_what_matches_nothing_is_listed_on_both_sides() -> None:
    matching = match(["n01/x", "n03/z"], ["n01/x.JPEG", "n02/y.JPEG"], names_of_map("train"))
    assert matching.images_alone == ["n02/y.JPEG"]
    assert matching.maps_alone == ["n03/z"]


def test_a_name_cut_at_its_first_dot_is_found() -> None:
    assert match(["n01/x"], ["n01/x.crop.JPEG"], names_of_map("train")).pairs == {"n01/x.crop.JPEG": "n01/x"}


def test_a_map_that_two_images_share_goes_to_neither() -> None:
    matching = match(["n01/x"], ["n01/x.JPEG", "n01/x.crop.JPEG"], names_of_map("train"))
    assert matching.pairs == {}
    assert matching.ambiguous["n01/x.JPEG"] == (
        "the label map 'n01/x' could be that of 2 images, 'n01/x.crop.JPEG' is another: their names agree up to the "
        "first dot"
    )
    assert matching.ambiguous.keys() == {"n01/x.JPEG", "n01/x.crop.JPEG"}


def test_folders_with_dots_that_were_cut_leave_one_map_for_a_whole_folder() -> None:
    images = ["001.Albatross/a.jpg", "001.Albatross/b.jpg", "001.Albatross/c.jpg"]
    matching = match(["001"], images, names_of_map("CUB"))
    assert sorted(matching.ambiguous) == images


def test_a_map_that_kept_the_dots_of_its_image_comes_before_one_that_did_not() -> None:
    matching = match(["n01/x", "n01/x.crop"], ["n01/x.JPEG", "n01/x.crop.JPEG"], names_of_map("train"))
    assert matching.pairs == {"n01/x.JPEG": "n01/x", "n01/x.crop.JPEG": "n01/x.crop"}


def test_maps_are_found_in_folders_and_counted_apart_from_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "n02/b.pt", "n01/a.b.pt", "n01/readme.txt", "c.pt", "n01/.hidden.pt", "n01/UPPER.PT")
    found = find_map_files(tmp_path)
    assert found.names == ["c", "n01/.hidden", "n01/a.b", "n02/b"]
    assert (found.others, found.problems) == (2, [])
    assert found.bytes >= 4


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    touch(tmp_path, "real/n01/a.pt", "tree/n02/b.pt")
    (tmp_path / "tree/n01").symlink_to(tmp_path / "real/n01")
    (tmp_path / "tree/n02/c.pt").symlink_to(tmp_path / "tree/n02/b.pt")
    (tmp_path / "tree/n02/back").symlink_to(tmp_path / "tree")
    (tmp_path / "tree/n02/broken.pt").symlink_to(tmp_path / "nowhere")
    found = find_map_files(tmp_path / "tree")
    assert found.names == ["n01/a", "n02/b", "n02/broken", "n02/c"]
    assert [path for path, _ in found.problems] == ["n02/back"]
    assert "a link back to" in found.problems[0][1]


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no folder '.*nowhere'"):
        find_map_files(tmp_path / "nowhere")


def test_an_archive_is_to_be_extracted_first(tmp_path: Path) -> None:
    with pytest.raises(NotADirectoryError, match=r"is a file\. This format is a folder of \.pt files: extract"):
        find_map_files(touch(tmp_path, "relabel_imagenet.tar") / "relabel_imagenet.tar")


def test_a_folder_without_maps_says_what_it_holds_instead(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no \.pt file in .* it holds n01, readme\.txt\. Give the folder"):
        find_map_files(touch(tmp_path, "n01/x.JPEG", "readme.txt"))


def test_an_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"There is no \.pt file in '.*' or the folders in it\. Give"):
        find_map_files(tmp_path)
