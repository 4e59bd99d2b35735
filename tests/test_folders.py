"""Folders and names, as every part of the package looks at them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from torchrelabel.folders import disk_usage, key_as_typed, printable, refused_keys, walk


def test_walking_finds_every_file_but_those_of_skipped_folders(tmp_path: Path) -> None:
    for name in ("b/.hidden", "b/x.txt", "a.jpg", "store/shard.mdb"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert walk(tmp_path, skip=[tmp_path / "store"]).names == ["a.jpg", "b/.hidden", "b/x.txt"]


def test_walking_a_file_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "x").touch()
    with pytest.raises(NotADirectoryError, match=r"x' is a file\. Extract it\."):
        walk(tmp_path / "x", advice="Extract it.")


@pytest.mark.skipif(sys.platform != "linux", reason="sparse files differ elsewhere")
def test_disk_usage_is_what_is_allocated_and_nothing_for_a_broken_link(tmp_path: Path) -> None:
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(10_000_000)
    (tmp_path / "full").write_bytes(bytes(5000))
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere")
    assert disk_usage(tmp_path.iterdir()) == sum(os.stat(tmp_path / n).st_blocks * 512 for n in ("sparse", "full"))
    assert disk_usage(tmp_path.iterdir()) < 1_000_000


@pytest.mark.parametrize(("text", "shown"), [("ü", "ü"), ("\udcff.png", r"\xff.png"), ("\ud800", r"\ud800")])
def test_what_is_no_text_is_shown_as_escapes(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_keys_that_no_store_can_hold_are_named_with_the_reason() -> None:
    refused = refused_keys(["a/x.png", "\x01x.png", "y" * 70000])
    assert list(refused) == ["\x01x.png", "y" * 70000]
    assert "must not hold a NUL nor begin with the byte 0x01" in refused["\x01x.png"]


KEYS = {"a/x.png", "birds/y.png", "./odd.png"}


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("a/x.png", "a/x.png"),
        ("./a/x.png", "a/x.png"),
        ("a//./x.png", "a/x.png"),
        ("{root}/a/x.png", "a/x.png"),
        ("{root}/../birds/a/x.png", "a/x.png"),
        ("{link}/a/x.png", "a/x.png"),
        ("birds/a/x.png", "a/x.png"),  # the folder's own name
        ("birds/y.png", "birds/y.png"),  # a folder in it that is called the same
        ("./odd.png", "./odd.png"),  # as some tar files name their images
        ("a/z.png", "a/z.png"),
    ],
)
def test_a_key_is_found_however_it_is_typed(tmp_path: Path, typed: str, key: str) -> None:
    (tmp_path / "birds").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "birds")
    typed = typed.format(root=tmp_path / "birds", link=tmp_path / "link")
    assert key_as_typed(typed, tmp_path / "birds", KEYS) == key


def test_a_path_from_here_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "birds" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "birds" / "a")
    assert key_as_typed("x.png", "..", KEYS) == "a/x.png"


def test_a_path_into_the_folder_that_is_no_known_key_is_the_key_that_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise an error names the keys that are nearest to the path of the folder."""
    (tmp_path / "birds" / "a").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert key_as_typed("birds/a/z.png", "birds", KEYS) == "a/z.png"
    assert key_as_typed("elsewhere/z.png", "birds", KEYS) == "elsewhere/z.png"
