"""ReLabel's tree: what gets into the store, what is said about the rest, and that a crop pools what it shows."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchrelabel.importers.run
from tests.importers.published import CLASSES, left_and_right, save, save_image, tensor
from torchrelabel import LabelPooling, LabelStore, LabelStoreWriter, ViewBox
from torchrelabel._version import __version__
from torchrelabel.data.records import label_map_of
from torchrelabel.errors import MissingLabelMap, SettingsDiffer, StoreError
from torchrelabel.importers import Summary, import_relabel
from torchrelabel.store.verify import verify

ROOT = Path(__file__).parents[2]
NAMES = [f"n{number % 3:02}/n{number % 3:02}_{number}" for number in range(12)]


def run(source: Path, output: Path, **options: Any) -> Summary:
    settings: dict[str, Any] = {"num_classes": CLASSES, "workers": 0, "progress": False}
    return import_relabel(source, output, **(settings | options))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for seed, name in enumerate(NAMES):
        save(tmp_path / f"relabel/{name}.pt", tensor(seed))
    return tmp_path / "relabel"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in NAMES:
        save_image(tmp_path / f"train/{name}.JPEG")
    return tmp_path / "train"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def test_a_damaged_file_is_listed_whatever_zipfile_raises_for_it(tree: Path, store: Path) -> None:
    # The first one, which is also looked at to learn the grid.
    content = bytearray((tree / f"{NAMES[0]}.pt").read_bytes())
    content[-43] = 0xFF  # OverflowError
    (tree / f"{NAMES[0]}.pt").write_bytes(content)
    summary = run(tree, store)
    assert [key for key, _ in summary.failed] == [f"{NAMES[0]}.JPEG"]
    assert "it is damaged or cut off" in summary.failed[0][1]
    assert summary.imported == len(NAMES) - 1


def test_every_map_becomes_the_record_of_its_image(tree: Path, store: Path) -> None:
    summary = run(tree, store)
    maps = LabelStore(store)
    assert list(maps) == sorted(f"{name}.JPEG" for name in NAMES)
    for seed, name in enumerate(NAMES):
        record, content = maps[f"{name}.JPEG"], tensor(seed)
        assert record.scores.tolist() == content[0].half().tolist()  # the codec's precision
        assert record.classes.tolist() == content[1].tolist()
        assert (record.residual, record.coverage) == (None, (0, 0, 1, 1))
    assert (summary.imported, summary.already_there, summary.failed) == (12, 0, [])
    assert (summary.num_classes, summary.top_k, summary.grids) == (CLASSES, 5, {(7, 5): 12})
    assert (summary.partly_covered, summary.share_not_covered) == (0, 0)


def test_the_header_says_what_was_imported(tree: Path, store: Path) -> None:
    run(tree, store, axes="wh")
    header = LabelStore(store).header
    assert header.annotator == {
        "imported": True,
        "format": "relabel",
        "model": "EfficientNet-L2 (noisy student, JFT), 475 px, as published",
        "source": "relabel",
        "axes": "wh",
        "resize": "squash",
        "torchrelabel": __version__,
    }
    assert (header.score_kind, header.residual, header.coverage) == ("logit", False, "whole")
    assert (header.grid, header.complete, header.dataset) == ((5, 7), True, {"count": 12})
    assert header.class_to_idx is None  # three folders tell nothing about the order of forty classes


@pytest.mark.parametrize("axes", ["hw", "wh"])
def test_a_crop_of_the_left_half_gives_the_class_of_the_left_half(tmp_path: Path, store: Path, axes: str) -> None:
    content = left_and_right(7, 6, left=3, right=8)
    save(tmp_path / "relabel/n01/x.pt", content if axes == "hw" else content.transpose(2, 3))
    run(tmp_path / "relabel", store, axes=axes)
    maps = LabelStore(store)
    label_map = label_map_of(maps["n01/x.JPEG"], maps.header, (11, 17), ViewBox(0, 0, 1 / 3, 1))
    pooled = LabelPooling(activation=None)(label_map)
    assert pooled[3].item() == pytest.approx(9, abs=1e-5)
    assert pooled[8].item() == pytest.approx(0, abs=1e-5)


def test_the_wrong_axes_would_give_half_of_each(tmp_path: Path, store: Path) -> None:
    save(tmp_path / "relabel/n01/x.pt", left_and_right(7, 6, left=3, right=8))
    run(tmp_path / "relabel", store, axes="wh")
    maps = LabelStore(store)
    label_map = label_map_of(maps["n01/x.JPEG"], maps.header, (11, 17), ViewBox(0, 0, 1 / 3, 1))
    pooled = LabelPooling(activation=None)(label_map)
    assert pooled[3].item() == pytest.approx(4.5, abs=1e-5)


def test_an_image_whose_name_can_be_no_key_is_not_counted(tree: Path, images: Path, store: Path) -> None:
    """verify missed it for ever."""
    save_image(images / "\x01z.png")
    run(tree, store, data=images)
    maps = LabelStore(store)
    assert maps.header.dataset["count"] == 12
    assert verify(maps).sound


def test_names_come_from_the_images_where_they_are_given(tree: Path, images: Path, store: Path) -> None:
    (images / f"{NAMES[0]}.JPEG").rename(images / f"{NAMES[0]}.crop.png")
    assert run(tree, store, data=images).lossless
    maps = LabelStore(store)
    assert f"{NAMES[0]}.crop.png" in maps
    assert maps.header.dataset["count"] == 12
    assert verify(maps, maps.keys()).sound


def test_what_matches_nothing_is_reported_on_both_sides(tree: Path, images: Path, store: Path) -> None:
    (images / f"{NAMES[0]}.JPEG").unlink()
    (tree / f"{NAMES[1]}.pt").unlink()
    summary = run(tree, store, data=images)
    assert summary.maps_without_image == [NAMES[0]]
    assert summary.images_without_map == [f"{NAMES[1]}.JPEG"]
    assert (summary.imported, summary.failed, summary.lossless) == (10, [], False)
    with pytest.raises(MissingLabelMap, match="no published label map belongs to it"):
        LabelStore(store)[f"{NAMES[1]}.JPEG"]
    assert verify(LabelStore(store)).miscounted == ""


def test_images_that_share_a_map_fail_by_name(tree: Path, images: Path, store: Path) -> None:
    shutil.copy(images / f"{NAMES[0]}.JPEG", images / f"{NAMES[0]}.copy.JPEG")
    summary = run(tree, store, data=images)
    assert [key for key, _ in summary.failed] == [f"{NAMES[0]}.JPEG", f"{NAMES[0]}.copy.JPEG"]
    assert "their names agree up to the first dot" in LabelStore(store).failures[f"{NAMES[0]}.JPEG"]


def test_folders_of_other_images_are_an_error_that_shows_the_names(tree: Path, tmp_path: Path, store: Path) -> None:
    save_image(tmp_path / "dogs/rex/1.png")
    with pytest.raises(ValueError) as caught:
        run(tree, store, data=tmp_path / "dogs")
    assert "Not one of the 12 label maps belongs to one of the 1 images in " in str(caught.value)
    assert "the maps have names like 'n00/n00_0', the images like 'rex/1.png'" in str(caught.value)
    assert not store.exists()


def test_bad_files_are_listed_and_the_rest_is_imported(tree: Path, store: Path) -> None:
    (tree / f"{NAMES[0]}.pt").write_bytes(b"")
    save(tree / f"{NAMES[1]}.pt", tensor(top_k=3))
    save(tree / f"{NAMES[2]}.pt", {"scores": tensor()})
    (tree / f"{NAMES[3]}.pt").write_bytes(pickle.dumps(print))
    too_large = tensor()
    too_large[0, 0] = 70000
    save(tree / f"{NAMES[4]}.pt", too_large)
    summary = run(tree, store)
    assert summary.imported == 7
    reasons = dict(summary.failed)
    assert reasons[f"{NAMES[0]}.JPEG"] == f"{NAMES[0]}.pt: it is empty"
    assert reasons[f"{NAMES[1]}.JPEG"] == f"{NAMES[1]}.pt: it keeps 3 classes in each cell, and most of the others 5"
    assert "it holds a dict" in reasons[f"{NAMES[2]}.JPEG"]
    assert "torch.save did not write it" in reasons[f"{NAMES[3]}.JPEG"]
    assert "magnitude 70000" in reasons[f"{NAMES[4]}.JPEG"]
    assert LabelStore(store).failures == reasons
    assert LabelStore(store).header.complete


@pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege there")
def test_a_broken_link_and_an_unreadable_file_are_listed(tree: Path, store: Path) -> None:
    (tree / f"{NAMES[0]}.pt").unlink()
    (tree / f"{NAMES[0]}.pt").symlink_to("nowhere")
    (tree / f"{NAMES[1]}.pt").unlink()
    (tree / f"{NAMES[1]}.pt").symlink_to(f"{Path(NAMES[1]).name}.pt")  # to itself
    reasons = dict(run(tree, store).failed)
    assert reasons[f"{NAMES[0]}.JPEG"] == f"{NAMES[0]}.pt: no such file, or a broken link"
    assert "Too many levels of symbolic links" in reasons[f"{NAMES[1]}.JPEG"]


def test_grids_may_differ_and_are_counted(tree: Path, store: Path) -> None:
    save(tree / f"{NAMES[0]}.pt", tensor(rows=3, columns=9))
    summary = run(tree, store)
    assert summary.grids == {(7, 5): 11, (3, 9): 1}
    assert LabelStore(store)[f"{NAMES[0]}.JPEG"].scores.shape == (5, 3, 9)
    assert LabelStore(store).header.grid == (7, 5)


def test_unsorted_scores_are_repaired_and_counted(tree: Path, store: Path) -> None:
    save(tree / f"{NAMES[0]}.pt", tensor().flip(1))
    summary = run(tree, store)
    assert summary.repaired == {"scores were not in descending order, and were sorted": 1}
    assert LabelStore(store)[f"{NAMES[0]}.JPEG"].classes.tolist() == tensor()[1].tolist()


def test_as_many_folders_as_classes_name_the_classes_and_are_compared(tmp_path: Path, store: Path) -> None:
    for index, folder in enumerate(["ant", "bee", "cat"]):
        content = torch.stack([torch.full((1, 7, 5), 9.0), torch.full((1, 7, 5), float(index))])
        save(tmp_path / f"tree/{folder}/x.pt", content)
    shutil.copy(tmp_path / "tree/ant/x.pt", tmp_path / "tree/bee/y.pt")
    summary = run(tmp_path / "tree", store, num_classes=3)
    header = LabelStore(store).header
    assert header.class_names == ("ant", "bee", "cat")
    assert header.class_to_idx == {"ant": 0, "bee": 1, "cat": 2}
    assert summary.agreement == 0.75


def test_class_folders_that_are_imagenets_are_named_in_words(tmp_path: Path, store: Path) -> None:
    for folder in ("n02102040", "n07920052", "n01440764"):
        save(tmp_path / f"tree/{folder}/x.pt", torch.zeros(2, 1, 7, 5))
    run(tmp_path / "tree", store, num_classes=3)
    header = LabelStore(store).header
    assert header.class_names == ("tench", "English springer", "espresso")
    assert header.class_to_idx == {"n01440764": 0, "n02102040": 1, "n07920052": 2}


def test_a_tree_of_the_other_format_is_an_error_that_names_it(tree: Path, store: Path) -> None:
    for seed, name in enumerate(NAMES):
        save(tree / f"{name}.pt", tensor(seed).half())
    with pytest.raises(ValueError) as caught:
        run(tree, store)
    assert "Not one of 12 files tried in " in str(caught.value)
    assert "is a label map of the format relabel ([2, K, h, w], float32). The first: n00/n00_0.pt: " in str(
        caught.value
    )
    assert "its numbers are float16, and this format has float32" in str(caught.value)
    assert "Folders of .pt files are also what token-labeling has." in str(caught.value)
    assert not store.exists()


def test_other_numbers_are_read_on_demand(tree: Path, store: Path) -> None:
    for seed, name in enumerate(NAMES):
        save(tree / f"{name}.pt", tensor(seed).half())
    assert run(tree, store, dtype="float16").imported == 12


def test_more_classes_than_half_precision_can_tell_apart_are_refused(tree: Path, store: Path) -> None:
    with pytest.raises(ValueError, match="exact up to 2048 only, so of 2050 classes some were stored as others"):
        run(tree, store, dtype="float16", num_classes=2050)
    assert torch.tensor(2049.0).half().item() == 2048


def test_notes_tell_of_other_files_and_of_maps_without_a_folder(tree: Path, store: Path) -> None:
    (tree / "README.md").write_bytes(b"x")
    save(tree / "001.pt", tensor())
    notes = run(tree, store).notes
    assert notes[0].startswith("1 files in ")
    assert "Some maps lie in no class folder." in notes[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"axes": "xy"}, "axes must be one of hw, wh, got 'xy'"),
        ({"dtype": "float64"}, "dtype must be one of float16, float32, got 'float64'"),
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"codec": "float8"}, "codec is one of 'float16', 'uint8', got 'float8'"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_out_of_range_is_named(tree: Path, store: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(tree, store, **options)
    assert words in str(caught.value)


def test_a_second_run_adds_nothing_and_a_repaired_file_is_tried_again(tree: Path, store: Path) -> None:
    path = tree / f"{NAMES[5]}.pt"
    path.write_bytes(b"")
    run(tree, store)
    save(path, tensor(5))
    summary = run(tree, store)
    assert (summary.imported, summary.already_there, summary.failed) == (1, 11, [])
    assert LabelStore(store).failures == {}
    assert (run(tree, store).imported, run(tree, store).already_there) == (0, 12)


def test_an_interrupted_import_continues_to_the_same_store(
    tree: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(LabelStoreWriter):
        def put(self, key: str, *arrays: Any, **options: Any) -> None:
            if key == f"{NAMES[1]}.JPEG":
                raise KeyboardInterrupt
            super().put(key, *arrays, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torchrelabel.importers.run, "LabelStoreWriter", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(tree, store)
    assert not LabelStore(store).header.complete
    assert len(LabelStore(store)) == 4  # the folder n00 comes first
    assert run(tree, store).already_there == 4
    run(tree, tmp_path / "whole.lmdb")
    for key, record in LabelStore(tmp_path / "whole.lmdb").items():
        assert LabelStore(store)[key].scores.tolist() == record.scores.tolist()


def test_other_axes_do_not_continue_a_store(tree: Path, store: Path) -> None:
    run(tree, store)
    with pytest.raises(SettingsDiffer, match=r"annotator\.axes: 'hw', now 'wh'"):
        run(tree, store, axes="wh")


def test_a_later_release_continues_a_store(tree: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tree, store)
    monkeypatch.setattr(torchrelabel.importers.run, "__version__", "99.0")
    assert run(tree, store).already_there == 12


def test_an_output_that_is_no_store_is_refused(tree: Path) -> None:
    with pytest.raises(StoreError, match="is no label store"):
        run(tree, tree)


def test_processes_give_the_same_store(tree: Path, store: Path, tmp_path: Path) -> None:
    (tree / f"{NAMES[2]}.pt").write_bytes(b"")
    run(tree, store, workers=1)
    run(tree, tmp_path / "alone.lmdb")
    ours, theirs = LabelStore(store), LabelStore(tmp_path / "alone.lmdb")
    assert list(ours) == list(theirs)
    assert ours.failures == theirs.failures
    assert all(np.array_equal(ours[key].classes, theirs[key].classes) for key in ours)


@pytest.mark.skipif(sys.platform != "linux", reason="file names are bytes on Linux only")
def test_names_that_are_not_utf_8_survive(tree: Path, store: Path) -> None:
    odd = os.fsdecode(b"n00/\xff")
    shutil.copy(tree / f"{NAMES[0]}.pt", tree / f"{odd}.pt")
    run(tree, store)
    assert f"{odd}.JPEG" in LabelStore(store)


def test_importers_import_neither_timm_nor_matplotlib() -> None:
    script = "import sys, torchrelabel.importers; sys.exit(bool({'timm', 'matplotlib', 'lmdb'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", script], cwd=ROOT, check=False).returncode == 0
