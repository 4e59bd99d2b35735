"""annotate: what gets into the store, what is said about the rest, and that no kill loses what was committed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

import torchrelabel.annotate.run
from tests.annotate.models import FourCorners, four_corners, make_folder
from torchrelabel.annotate import Annotator, annotate
from torchrelabel.errors import SettingsDiffer, StoreError, StoreInUse, TorchRelabelError
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.layout import fingerprint
from torchrelabel.store.verify import verify

KEYS = [f"{'rgbk'[number % 4]}/{number:02}.png" for number in range(60)]


def run(data: Path, output: Path, **options: Any) -> Any:
    settings: dict[str, Any] = {"model": four_corners(), "top_k": 2, "workers": 0, "progress": False}
    return annotate(data, output, **(settings | options))


def records(path: Path) -> dict[str, tuple[bytes, ...]]:
    store = LabelStore(path)
    try:
        return {
            key: (store[key].scores.tobytes(), store[key].classes.tobytes(), store[key].residual.tobytes())
            for key in store
        }
    finally:
        store.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path / "images", KEYS)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def test_the_store_holds_the_best_classes_of_every_cell(tmp_path: Path, store: Path) -> None:
    colours = np.zeros((12, 12, 3), np.uint8)
    colours[0:4, 8:12, 0] = 255  # red at cell (0, 2)
    colours[8:12, 4:8, 2] = 51  # some blue at cell (2, 1)
    Image.fromarray(colours).save(tmp_path / "x.png")
    run(tmp_path, store)
    record = LabelStore(store)["x.png"]
    assert record.scores.shape == record.classes.shape == (2, 3, 3)
    assert (record.classes[0, 0, 2], record.scores[0, 0, 2]) == (0, 1.0)
    assert record.classes[0, 2, 1] == 2
    np.testing.assert_allclose(record.scores[0, 2, 1], 0.2, rtol=1e-3)  # float16
    np.testing.assert_allclose(record.residual, np.log(2), rtol=1e-3)  # two zeros remain in every cell


def test_the_header_describes_the_run(folder: Path, store: Path) -> None:
    run(folder, store)
    header = LabelStore(store).header
    assert header.complete
    assert (header.num_classes, header.top_k, header.grid, header.residual) == (4, 2, (3, 3), True)
    assert header.annotator == four_corners().description()
    assert header.class_to_idx == {"b": 0, "g": 1, "k": 2, "r": 3}
    assert header.class_names == ("b", "g", "k", "r")
    assert header.dataset == {"count": 60, "fingerprint": fingerprint(KEYS)}


def test_the_summary_counts(folder: Path, store: Path) -> None:
    (folder / "r/bad.png").write_bytes(b"no image")
    summary = run(folder, store, batch_size=7)
    assert (summary.images, summary.annotated, summary.already_there) == (61, 60, 0)
    assert summary.failed == [("r/bad.png", "UnidentifiedImageError: cannot identify image file")]
    assert dict(LabelStore(store).failures) == dict(summary.failed)
    assert summary.bytes_per_image == pytest.approx(summary.bytes / 60)
    assert summary.bytes > 0
    assert summary.images_per_second == pytest.approx(60 / summary.seconds)


def test_agreement_is_the_share_of_images_whose_pooled_map_says_their_folder(tmp_path: Path, store: Path) -> None:
    # Folders in order are the classes red, green, blue, none.
    for folder, colour in (("0", "red"), ("1", "lime"), ("2", "red"), ("3", "blue")):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (17, 11), colour).save(tmp_path / folder / "x.png")
    assert run(tmp_path, store).agreement == 0.5


def test_there_is_no_agreement_unless_folders_are_as_many_as_classes(tmp_path: Path, store: Path) -> None:
    assert run(make_folder(tmp_path, ["a/x.png", "b/y.png"]), store).agreement is None


def test_a_finished_store_is_left_as_it_is(folder: Path, store: Path) -> None:
    run(folder, store)
    before = records(store)
    summary = run(folder, store)
    assert (summary.annotated, summary.already_there, summary.failed) == (0, 60, [])
    assert records(store) == before
    assert LabelStore(store).header.complete


def test_new_images_are_added(folder: Path, store: Path) -> None:
    run(folder, store)
    make_folder(folder, ["r/new.png"])
    summary = run(folder, store)
    assert (summary.annotated, summary.already_there) == (1, 60)
    assert LabelStore(store).header.dataset["count"] == 61


def test_a_failed_image_is_tried_again(folder: Path, store: Path) -> None:
    (folder / "r/late.png").write_bytes(b"")
    assert len(run(folder, store).failed) == 1
    assert len(run(folder, store).failed) == 1
    make_folder(folder, ["r/late.png"])
    assert run(folder, store).failed == []
    assert dict(LabelStore(store).failures) == {}


def test_the_failure_of_an_image_that_is_gone_is_forgotten(folder: Path, store: Path) -> None:
    """It used to stay for ever, and to make verify's status 3."""
    for name in ("bad", "gone"):
        (folder / f"r/{name}.png").write_bytes(b"")
    assert len(run(folder, store).failed) == 2
    (folder / "r/gone.png").unlink()
    run(folder, store)
    assert list(LabelStore(store).failures) == ["r/bad.png"]
    (folder / "r/bad.png").unlink()
    run(folder, store)
    assert LabelStore(store).failures == {}


def refuse_to_write(*_: Any, **__: Any) -> None:
    pytest.fail("the store was opened for writing")


def test_a_store_that_has_everything_is_not_opened_for_writing(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a disk that is read-only the same command used to fail, since it could not make its lock."""
    first = run(folder, store, shards=2)
    for lock in store.glob("*.lock"):
        lock.unlink()
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(torchrelabel.annotate.run, "LabelStoreWriter", refuse_to_write)
        again = run(folder, store)
    assert (again.annotated, again.already_there, again.failed) == (0, 60, [])
    assert (again.bytes, again.grid, again.num_classes) == (first.bytes, (3, 3), 4)
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in store.iterdir()} == before


def lose_an_image(folder: Path, store: Path) -> None:
    (folder / KEYS[0]).unlink()


def lose_a_map(folder: Path, store: Path) -> None:
    with lmdb.open(str(store / "shard-00000.mdb"), subdir=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            assert transaction.delete(KEYS[0].encode())


def lose_a_shard(folder: Path, store: Path) -> None:
    (store / "shard-00000.mdb").unlink()


def add_a_class_folder(folder: Path, store: Path) -> None:
    make_folder(folder, ["z/new.png"])


def fail_an_image_that_is_gone(folder: Path, store: Path) -> None:
    with LabelStoreWriter(store, num_classes=4, top_k=2, residual=True, image_top_k=4, resume=True) as writer:
        writer.put_failure("gone.png", "no image")


def begin_and_stop(folder: Path, store: Path) -> None:
    LabelStoreWriter(store, num_classes=4, top_k=2, residual=True, image_top_k=4, resume=True).close()


@pytest.mark.parametrize(
    "change",
    [lose_an_image, lose_a_map, lose_a_shard, add_a_class_folder, fail_an_image_that_is_gone, begin_and_stop],
)
def test_a_store_in_which_something_is_to_be_done_is_opened_for_writing(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, Path], None]
) -> None:
    run(folder, store)
    change(folder, store)
    monkeypatch.setattr(torchrelabel.annotate.run, "LabelStoreWriter", refuse_to_write)
    with pytest.raises(pytest.fail.Exception, match="was opened for writing"):
        run(folder, store)


@pytest.mark.parametrize("name", [".cache", "a", "z"])
def test_an_empty_folder_more_does_not_keep_a_store_from_being_continued(folder: Path, store: Path, name: str) -> None:
    """It used to be a class folder, which moved the indices of others."""
    run(folder, store)
    (folder / name).mkdir()
    make_folder(folder, ["r/new.png"])
    assert run(folder, store).annotated == 1
    assert LabelStore(store).header.class_to_idx == {"b": 0, "g": 1, "k": 2, "r": 3}


def test_a_class_folder_more_than_the_model_has_classes_does_not_keep_a_store_from_being_continued(
    folder: Path, store: Path
) -> None:
    """Its maps hold the model's classes, so that they do not depend on the folders."""
    run(folder, store)
    make_folder(folder, ["a/new.png"])
    assert run(folder, store).annotated == 1
    header = LabelStore(store).header
    # That there were as many folders as classes is known still, and which was which.
    assert header.class_to_idx == {"b": 0, "g": 1, "k": 2, "r": 3}
    assert header.class_names == ("b", "g", "k", "r")


def test_folders_become_the_model_s_classes_when_they_are_all_there(tmp_path: Path, store: Path) -> None:
    make_folder(tmp_path / "images", ["b/x.png", "g/x.png"])
    run(tmp_path / "images", store)
    assert (LabelStore(store).header.class_to_idx, LabelStore(store).header.class_names) == ({"b": 0, "g": 1}, None)
    make_folder(tmp_path / "images", ["a/x.png", "r/x.png"])
    assert run(tmp_path / "images", store).annotated == 2
    header = LabelStore(store).header
    assert header.class_to_idx == {"a": 0, "b": 1, "g": 2, "r": 3}
    assert header.class_names == ("a", "b", "g", "r")


def test_other_folders_in_place_of_the_model_s_classes_are_refused(folder: Path, store: Path) -> None:
    run(folder, store)
    (folder / "b").rename(folder / "z")
    with pytest.raises(SettingsDiffer, match=r"class_to_idx\['b'\]: 0, now None"):
        run(folder, store)


def test_two_runs_write_the_same_records_whatever_the_batches_and_workers(folder: Path, tmp_path: Path) -> None:
    run(folder, tmp_path / "a.lmdb", batch_size=7)
    run(folder, tmp_path / "b.lmdb", batch_size=32, workers=2, shards=3)
    assert len(records(tmp_path / "a.lmdb")) == 60
    assert records(tmp_path / "a.lmdb") == records(tmp_path / "b.lmdb")


def test_the_default_output_inside_the_folder_is_not_taken_for_images(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    run(Path("."), Path("maps.lmdb"))
    assert run(Path("."), Path("maps.lmdb")).already_there == 60
    assert LabelStore("maps.lmdb").header.class_to_idx == {"b": 0, "g": 1, "k": 2, "r": 3}


def test_other_settings_are_named(folder: Path, store: Path) -> None:
    run(folder, store)
    with pytest.raises(SettingsDiffer, match=r"top_k: 2, now 1.*codec: 'float16', now 'uint8'"):
        run(folder, store, top_k=1, codec="uint8")


def test_more_classes_than_there_are_become_all_of_them_with_a_word(folder: Path, store: Path) -> None:
    summary = run(folder, store, top_k=9)
    assert "All 4 classes are kept in each cell, not 9: the model has no more." in summary.notes
    assert (LabelStore(store).header.top_k, LabelStore(store).header.residual) == (4, False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"top_k": 0}, "top_k must be 1 or more, got 0"),
        ({"batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"workers": -1}, "workers must be 0 or more, got -1"),
        ({"shards": 0}, "shards must be 1 or more, got 0"),
        ({"codec": "float8"}, "codec is one of .*'float16'.*, got 'float8'"),
    ],
)
def test_an_argument_out_of_range_is_refused(folder: Path, store: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        run(folder, store, **options)
    assert not (store / "header.msgpack").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"checkpoint": "/no/such", "image_size": 999}, "checkpoint='/no/such', image_size=999 would have no effect"),
        ({"enlarge": 2.0}, "enlarge=2.0 would have no effect"),
        ({"windows": 3}, "windows=3 would have no effect"),
        ({"device": "cpu", "pretrained": False}, "device='cpu', pretrained=False would have no effect"),
    ],
)
def test_what_an_annotator_has_decided_already_is_refused(
    folder: Path, store: Path, options: dict[str, Any], words: str
) -> None:
    """It used to be ignored."""
    with pytest.raises(ValueError, match=rf"model is an Annotator, which was built with its settings, so that {words}"):
        run(folder, store, **options)


def test_arguments_that_say_nothing_are_no_offence(folder: Path, store: Path) -> None:
    assert run(folder, store, checkpoint=None, image_size=None, pretrained=True, amp=False).annotated == 60


def test_a_split_of_no_data_set_is_refused(folder: Path, store: Path) -> None:
    with pytest.raises(ValueError, match=r"split='val' is a part of a data set .* and there is no dataset="):
        run(folder, store, split="val")


def test_a_module_is_told_how_to_become_an_annotator(folder: Path, store: Path) -> None:
    with pytest.raises(
        TypeError, match=r"a name of timm's or an Annotator, got a FourCorners\. Annotator.from_model\("
    ):
        run(folder, store, model=FourCorners())


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"model": "resnet5O"}, ValueError, "knows no model 'resnet5O'"),
        ({"device": "bogus"}, ValueError, "There is no device 'bogus'"),
        ({"checkpoint": "/no/such.pth"}, FileNotFoundError, "There is no checkpoint '/no/such.pth'"),
        ({"image_size": 0}, ValueError, "image_size must be a number of pixels"),
        ({"mean": (1, 2, 3)}, ValueError, "mean must be three numbers from 0 to 1"),
        ({"interpolation": "cubic"}, ValueError, "interpolation must be one of"),
        ({"enlarge": 0.5}, ValueError, "enlarge must be 1 or more, got 0.5"),
        ({"windows": 1}, ValueError, "windows must be 2 or more"),
        ({"windows": 2, "enlarge": 2.0}, ValueError, "so that enlarge has no say"),
        ({"pretrained": True}, TorchRelabelError, "is not in the cache of Hugging Face's Hub on this machine, and the"),
        ({"class_names": "/no/such.txt"}, FileNotFoundError, "There is no file of class names"),
        ({"exif": "maybe"}, ValueError, "exif must be 'ignore' or 'apply', got 'maybe'"),
        ({"strip_prefix": "net."}, ValueError, "says where weights lie in a checkpoint, and there is none"),
    ],
)
def test_a_wrong_model_is_refused_before_the_images_are_listed(
    folder: Path,
    store: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    """Of a million files that takes minutes."""
    monkeypatch.setattr("torchrelabel.annotate.timm_models._hub_answers", lambda: False)
    monkeypatch.setattr("torchrelabel.annotate.timm_models._kept", lambda *_: None)
    monkeypatch.setattr(torchrelabel.annotate.run, "find_data", lambda *_, **__: pytest.fail("images were listed"))
    with pytest.raises(error, match=words):
        run(folder, store, **({"model": "resnet10t", "pretrained": False} | options))


@pytest.mark.parametrize(("size", "words"), [(100, "--image-size 96 or 128."), (20, "--image-size 32.")])
def test_a_size_that_cells_do_not_share_evenly_is_pointed_out(folder: Path, store: Path, size: int, words: str) -> None:
    options = {"model": "resnet10t", "pretrained": False, "device": "cpu", "enlarge": 1}
    notes = run(folder, store, image_size=size, **options).notes
    assert any(note.startswith(f"WARNING: images of {size} px are not shared evenly by") for note in notes)
    assert any(words in note for note in notes)


def test_a_size_that_cells_share_evenly_is_not(folder: Path, store: Path) -> None:
    options = {"model": "resnet10t", "pretrained": False, "device": "cpu", "enlarge": 1}
    assert not any("evenly" in note for note in run(folder, store, image_size=96, **options).notes)


def refuse_to_build(*_: Any, **__: Any) -> None:
    pytest.fail("the model was built before the cheap checks")


@pytest.mark.parametrize(
    ("data", "output", "error", "words"),
    [
        ("nowhere", "maps.lmdb", FileNotFoundError, "There is no folder '.*nowhere'"),
        ("images/r/00.png", "maps.lmdb", NotADirectoryError, "00.png' is a file. Give the folder"),
        ("empty", "maps.lmdb", ValueError, "There is no image in '.*empty' or the folders in it"),
        ("images", "images/r/00.png", StoreError, "00.png' exists and is no label store. Give another path with -o"),
        ("images", "images/r", StoreError, "r' exists and is no label store"),
        ("images", "nowhere/maps.lmdb", FileNotFoundError, "There is no folder '.*nowhere' to write the store to"),
    ],
)
def test_a_wrong_path_is_refused_before_the_model_is_built(
    folder: Path, monkeypatch: pytest.MonkeyPatch, data: str, output: str, error: type[Exception], words: str
) -> None:
    (folder.parent / "empty").mkdir()
    monkeypatch.setattr(Annotator, "from_timm", refuse_to_build)
    with pytest.raises(error, match=words):
        run(folder.parent / data, folder.parent / output, model="resnet10t", pretrained=False)


def test_an_image_whose_scores_are_not_numbers_is_a_failure(tmp_path: Path, store: Path) -> None:
    for name, colour in (("a", "black"), ("b", "red")):
        Image.new("RGB", (17, 11), colour).save(tmp_path / f"{name}.png")
    summary = run(tmp_path, store, model=four_corners(poison=float("nan")))
    assert summary.failed == [("b.png", "the model's scores for it are not finite numbers")]
    assert list(LabelStore(store)) == ["a.png"]


@pytest.mark.parametrize(("amp", "remedy"), [(True, "try --no-amp"), (False, "check the checkpoint")])
def test_a_model_that_gives_no_numbers_at_all_ends_the_run(tmp_path: Path, store: Path, amp: bool, remedy: str) -> None:
    Image.new("RGB", (17, 11), "red").save(tmp_path / "x.png")
    with pytest.raises(TorchRelabelError, match=f"All scores that four gives for the first images .*{remedy}"):
        run(tmp_path, store, model=four_corners(poison=float("inf"), amp=amp))


class Poisoned(FourCorners):
    """Gives one value for the images of these numbers, in the order in which they come."""

    def __init__(self, numbers: range, poison: float = float("nan")) -> None:
        super().__init__()
        self.numbers, self.value, self.seen = numbers, poison, 0

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        features = super().forward_features(images)
        for image in features:
            if self.seen in self.numbers:
                image.fill_(self.value)
            self.seen += 1
        return features


def poisoned(numbers: range, poison: float = float("nan")) -> Annotator:
    model = Poisoned(numbers, poison)
    annotator = four_corners(model=model)
    model.seen = 0  # the annotator has tried it
    return annotator


@pytest.mark.parametrize("batch_size", [1, 4, 60])
def test_a_bad_first_image_does_not_end_a_run(folder: Path, store: Path, batch_size: int) -> None:
    """With batches of one image it used to: all scores of the first batch were not finite."""
    summary = run(folder, store, model=poisoned(range(15)), batch_size=batch_size)
    assert (summary.annotated, len(summary.failed)) == (45, 15)
    assert LabelStore(store).header.complete


@pytest.mark.parametrize("batch_size", [1, 4, 60])
def test_sixteen_images_without_numbers_and_none_with_end_a_run(folder: Path, store: Path, batch_size: int) -> None:
    with pytest.raises(TorchRelabelError, match="All scores that four gives for the first images are not finite"):
        run(folder, store, model=poisoned(range(60)), batch_size=batch_size)
    assert len(LabelStore(store).failures) == {1: 15, 4: 12, 60: 0}[batch_size]  # of the batches before
    assert not LabelStore(store).header.complete


def test_a_model_that_gave_numbers_once_is_not_given_up(folder: Path, store: Path) -> None:
    summary = run(folder, store, model=poisoned(range(1, 60)), batch_size=1)
    assert (summary.annotated, len(summary.failed)) == (1, 59)


def test_a_store_whose_last_image_gives_no_numbers_can_be_run_again(folder: Path, store: Path) -> None:
    """It used to end with an error, and left the store incomplete."""
    run(folder, store)
    make_folder(folder, ["r/new.png"])
    for _ in range(2):
        assert run(folder, store, model=poisoned(range(60))).failed == [
            ("r/new.png", "the model's scores for it are not finite numbers")
        ]
        assert LabelStore(store).header.complete


def test_files_that_are_no_images_are_not_taken_for_a_model_without_numbers(tmp_path: Path, store: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.png").write_bytes(b"no image")
    assert len(run(tmp_path, store).failed) == 20


def test_a_score_beyond_half_precision_is_its_image_s_failure(folder: Path, store: Path) -> None:
    """It used to end every run."""
    (reason,) = [reason for _, reason in run(folder, store, model=poisoned(range(30, 31), 7e4)).failed]
    assert "scores of the float16 codec reach from -65504 to 65504, got magnitude 70000; use codec='uint8'" in reason
    assert len(LabelStore(store)) == 59
    assert LabelStore(store).header.complete


def test_a_run_that_was_stopped_before_its_header_can_be_started_again(folder: Path, store: Path) -> None:
    """Its locks, or those of another rank, used to make the folder no label store."""
    store.mkdir()
    for name in ("header.lock", "header.msgpack.tmp", "shard-00000.lock"):
        (store / name).touch()
    assert run(folder, store).annotated == 60


def test_random_weights_are_announced(folder: Path, store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = {"model": "resnet10t", "pretrained": False, "image_size": 32, "device": "cpu", "batch_size": 60}
    annotate(folder, store, workers=0, **options)  # type: ignore[arg-type]
    assert "WARNING: the weights of resnet10t are random (--no-pretrained)" in capsys.readouterr().err


def test_a_name_that_cannot_be_a_key_is_a_failure(tmp_path: Path, store: Path) -> None:
    make_folder(tmp_path, ["ok.png", "\x01odd.png"])
    summary = run(tmp_path, store)
    assert summary.annotated == 1
    assert summary.failed[0][0] == "\x01odd.png"
    # What the store cannot hold must not be counted as something that it has lost.
    assert LabelStore(store).header.dataset == {"count": 1, "fingerprint": fingerprint(["ok.png"])}
    assert verify(LabelStore(store)).sound


def test_a_folder_name_that_is_not_utf_8_is_annotated(tmp_path: Path, store: Path) -> None:
    make_folder(tmp_path / "images", ["a/x.png"])
    os.rename(tmp_path / "images/a", os.fsencode(tmp_path) + b"/images/\xff")
    assert run(tmp_path / "images", store).annotated == 1
    assert list(LabelStore(store)) == ["\udcff/x.png"]


def test_a_store_among_the_class_folders_is_pointed_out(folder: Path, tmp_path: Path) -> None:
    """ImageFolder takes it for a class without images, and stops."""
    (note,) = run(folder, folder / "maps.lmdb").notes
    assert note.startswith("maps.lmdb will lie among the class folders, and ImageFolder would take it for one of them")
    assert run(folder, tmp_path / "maps.lmdb").notes == []


def test_a_second_run_on_one_output_is_refused(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchrelabel.store.writer._SECONDS_FOR_ORPHANS_TO_END", 0.1)
    with LabelStoreWriter(store, num_classes=4, top_k=2, residual=True), pytest.raises(StoreInUse):
        run(folder, store)


def test_an_interrupted_run_keeps_what_it_had_and_is_continued(
    folder: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupting(LabelStoreWriter):
        def put(self, key: str, *arrays: Any, **options: Any) -> None:
            if key == "g/33.png":
                raise KeyboardInterrupt
            super().put(key, *arrays, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torchrelabel.annotate.run, "LabelStoreWriter", Interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(folder, store, batch_size=4)
    kept = len(LabelStore(store))
    assert 0 < kept < 60
    assert not LabelStore(store).header.complete
    assert run(folder, store).already_there == kept
    run(folder, tmp_path / "whole.lmdb")
    assert records(store) == records(tmp_path / "whole.lmdb")


# What a subprocess runs: the same settings as run() above.
SCRIPT = """
import os, signal, sys
import torchrelabel.annotate.run as module
from tests.annotate.test_run import run
from pathlib import Path

class Killing(module.LabelStoreWriter):
    puts = 0
    def put(self, *arguments, **options):
        super().put(*arguments, **options)
        self.puts += 1
        if self.puts == int(sys.argv[3]):
            os.kill(os.getpid(), signal.SIGKILL)

module.LabelStoreWriter = lambda *a, **k: Killing(*a, **k, commit_every=8)
run(Path(sys.argv[1]), Path(sys.argv[2]), batch_size=5, workers=1)
"""


def start(folder: Path, store: Path, kill_after: int, **environment: str) -> subprocess.Popen[bytes]:
    root = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder), str(store), str(kill_after)],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
    )


def test_a_killed_run_continues_to_the_same_store_as_an_uninterrupted_one(
    folder: Path, store: Path, tmp_path: Path
) -> None:
    assert start(folder, store, kill_after=30).wait(timeout=600) == -signal.SIGKILL
    assert len(LabelStore(store)) == 24  # three commits of eight
    assert not LabelStore(store).header.complete
    summary = run(folder, store)
    assert (summary.already_there, summary.annotated) == (24, 36)
    assert LabelStore(store).header.complete
    run(folder, tmp_path / "whole.lmdb")
    assert records(store) == records(tmp_path / "whole.lmdb")


def test_two_ranks_write_what_one_process_would(folder: Path, store: Path, tmp_path: Path) -> None:
    ranks = [start(folder, store, kill_after=99, RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    assert [rank.wait(timeout=600) for rank in ranks] == [0, 0]
    header = LabelStore(store).header
    assert (header.shards, header.complete, header.dataset["count"]) == (2, True, 60)
    run(folder, tmp_path / "whole.lmdb")
    assert records(store) == records(tmp_path / "whole.lmdb")


def test_a_rank_that_died_loses_nothing_and_leaves_the_store_incomplete(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = run(folder, store)
    assert 0 < first.annotated == first.images < 60
    assert not LabelStore(store).header.complete
    monkeypatch.setenv("RANK", "1")
    second = run(folder, store)
    assert first.annotated + second.annotated == 60
    assert (first.rank, second.rank, second.world) == (0, 1, 2)
    assert first.bytes + second.bytes == sum(file.stat().st_blocks * 512 for file in store.glob("*.mdb"))
    assert LabelStore(store).header.complete


def test_more_ranks_than_shards_are_refused(folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(folder, store, shards=2)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(ValueError, match=r"has 2 shards, too few for 3 ranks.*--shards 3 or more"):
        run(folder, store)


@pytest.mark.parametrize(
    ("rank", "world", "words"), [("2", "2", "RANK must be 0 to WORLD_SIZE - 1"), ("x", "2", "must be numbers")]
)
def test_a_rank_that_cannot_be_is_refused(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str, words: str
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world)
    with pytest.raises(ValueError, match=words):
        run(folder, store)


def test_a_name_that_no_store_can_hold_is_the_loss_of_one_rank(
    folder: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every rank used to count it."""
    make_folder(folder, ["\x01odd.png"])
    monkeypatch.setenv("WORLD_SIZE", "2")
    summaries = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        summaries.append(run(folder, store))
    assert [[key for key, _ in summary.failed] for summary in summaries] == [["\x01odd.png"], []]
    assert sum(summary.images for summary in summaries) == 61
    assert LabelStore(store).header.dataset["count"] == 60


def test_images_that_exif_would_turn_are_counted_and_seen_as_asked(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((12, 12, 3), np.uint8)
    pixels[:, :4, 0] = 255  # red on the left; turned as its orientation says, on top
    (tmp_path / "images").mkdir()
    Image.fromarray(pixels).save(tmp_path / "images/x.png", exif=exif)
    Image.new("RGB", (12, 12)).save(tmp_path / "images/y.png")
    ignored = run(tmp_path / "images", tmp_path / "ignored.lmdb")
    applied = run(tmp_path / "images", tmp_path / "applied.lmdb", exif="apply")
    assert (ignored.exif_turned, applied.exif_turned) == (1, 1)
    assert any(note.startswith("With an EXIF orientation: 1 of 2 images. It was ignored, as") for note in ignored.notes)
    assert any("It was followed: the loader of your training has to turn" in note for note in applied.notes)
    red = [LabelStore(tmp_path / f"{name}.lmdb")["x.png"].classes[0] == 0 for name in ("ignored", "applied")]
    assert red[0][:, 0].all() and not red[0][:, 1:].any()
    assert np.array_equal(red[1], red[0].T)
    headers = [LabelStore(tmp_path / f"{name}.lmdb").header.annotator for name in ("ignored", "applied")]
    assert "exif" not in headers[0] and headers[1]["exif"] == "apply"
    with pytest.raises(SettingsDiffer, match=r"annotator.exif: None, now 'apply'"):
        run(tmp_path / "images", tmp_path / "ignored.lmdb", exif="apply")


def test_images_of_16_bits_and_files_that_are_no_images_are_counted(tmp_path: Path, store: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(np.full((12, 12), 65535, np.uint16)).save(tmp_path / "images/white.png")
    Image.fromarray(np.full((12, 12), 25700, np.uint16)).save(tmp_path / "images/grey.png")
    for name in ("a.txt", "b.txt", "README"):
        (tmp_path / "images" / name).write_text("words")
    summary = run(tmp_path / "images", store)
    assert (summary.annotated, summary.deep, summary.left_out) == (2, 2, {".txt": 2, "": 1})
    assert "Left out, since they are no images by their names: 3 files (2 .txt, 1 without extension)." in summary.notes
    assert any(
        note.startswith("With 16 bits a channel: 2 of 2 images. They were scaled to 8.") for note in summary.notes
    )
    np.testing.assert_allclose(LabelStore(store)["grey.png"].scores[0], 100 / 255, rtol=1e-3)


def test_a_folder_without_images_says_what_it_holds(tmp_path: Path, store: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.npy").touch()
    with pytest.raises(ValueError, match=r"There is no image in .* It holds 3 files \(3 .npy\)\. Give the folder"):
        run(tmp_path, store)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_cuda_device_gives_the_scores_of_the_cpu(folder: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"model": "resnet10t", "pretrained": False, "image_size": 96, "batch_size": 7}
    annotate(folder, tmp_path / "cpu.lmdb", device="cpu", workers=0, progress=False, **options)
    annotate(folder, tmp_path / "cuda.lmdb", device="cuda", workers=2, progress=False, **options)
    on_cpu, on_cuda = LabelStore(tmp_path / "cpu.lmdb"), LabelStore(tmp_path / "cuda.lmdb")
    assert len(on_cuda) == 60
    for key in KEYS:
        np.testing.assert_allclose(on_cuda[key].scores, on_cpu[key].scores, rtol=0.02, atol=0.02)
