"""Images in archives have the keys under which training looks them up."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from timm.data import ImageDataset, create_dataset
from torch.utils.data import IterableDataset
from torchvision import transforms as v1

from tests.annotate.models import make_folder
from tests.shards import add
from torchrelabel import LabelMapDataset, LabelStore
from torchrelabel.annotate import annotate
from torchrelabel.annotate.archives import read_dataset
from torchrelabel.integrations.timm.stream import LabelMapStream

# timm leaves the archives open that it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

NAMES = ["001.a b/x.y.png", "001.a b/z.png", "b/ü.jpg"]
OPTIONS: dict[str, Any] = {
    "model": "resnet10t", "pretrained": False, "image_size": 64, "device": "cpu", "workers": 0, "progress": False,
}  # fmt: skip


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A tar file of images, the folder packed with its own name."""
    make_folder(tmp_path / "birds", NAMES, size=(40, 30))
    (tmp_path / "birds" / "b" / "broken.png").write_bytes(b"no image")
    with tarfile.open(tmp_path / "birds.tar", "w") as tar:
        tar.add(tmp_path / "birds", "birds")
    return tmp_path / "birds.tar"


def test_a_tar_file_is_annotated_as_the_folder_it_was_made_from(archive: Path, tmp_path: Path) -> None:
    packed = annotate(archive, tmp_path / "packed", **OPTIONS)
    unpacked = annotate(tmp_path / "birds", tmp_path / "unpacked", **OPTIONS)
    assert packed.annotated == unpacked.annotated == 3
    assert [key for key, _ in packed.failed] == ["birds/b/broken.png"]
    theirs = LabelStore(tmp_path / "unpacked")
    for key, record in LabelStore(tmp_path / "packed").items():
        assert (record.scores == theirs[key.removeprefix("birds/")].scores).all()


def test_timms_dataset_of_the_tar_file_finds_its_maps(archive: Path, tmp_path: Path) -> None:
    annotate(archive, tmp_path / "maps", **OPTIONS)
    images = ImageDataset(str(archive), transform=v1.Compose([v1.RandomResizedCrop(32), v1.ToTensor()]))
    dataset = LabelMapDataset(images, tmp_path / "maps", num_classes=1000)
    assert images.reader.filename(0) in LabelStore(tmp_path / "maps")
    assert dataset[0][1].shape == (1000,)


def test_images_of_a_tar_file_know_their_class_folders(archive: Path) -> None:
    found = read_dataset("", archive)
    assert found.class_to_idx == {"001.a b": 0, "b": 1}
    assert [found.class_of(key) for key in found.keys] == [0, 0, 1, 1]


def test_a_tar_file_of_a_folder_s_content_has_the_keys_of_the_folder(tmp_path: Path) -> None:
    """``tar -C birds -cf birds.tar .`` puts ``./`` in front of every name."""
    make_folder(tmp_path / "birds", NAMES, size=(40, 30))
    with tarfile.open(tmp_path / "birds.tar", "w") as tar:
        tar.add(tmp_path / "birds", ".")
    annotate(tmp_path / "birds.tar", tmp_path / "maps", **OPTIONS)
    assert set(LabelStore(tmp_path / "maps")) == set(NAMES)
    images = ImageDataset(str(tmp_path / "birds.tar"), transform=v1.Compose([v1.RandomResizedCrop(32), v1.ToTensor()]))
    dataset = LabelMapDataset(images, tmp_path / "maps", num_classes=1000)
    assert [dataset[index][1].shape for index in range(3)] == [(1000,)] * 3


def test_files_of_a_tar_file_that_timm_does_not_read_are_counted_and_said(tmp_path: Path) -> None:
    """Of a folder, .gif and .webp are annotated; of a tar file neither timm's training nor annotate takes them."""
    make_folder(tmp_path / "birds", [*NAMES, "b/x.gif", "b/y.webp", "b/z.GIF"], size=(40, 30))
    (tmp_path / "birds" / "notes").write_text("no image")
    for inside in (".", "birds"):
        with tarfile.open(tmp_path / "birds.tar", "w") as tar:
            tar.add(tmp_path / "birds", inside)
        found = read_dataset("", tmp_path / "birds.tar")
        assert len(found.keys) == 3
        assert found.left_out == {".gif": 2, ".webp": 1, "": 1}
    notes = annotate(tmp_path / "birds.tar", tmp_path / "maps", **OPTIONS).notes
    words = "Left out, since timm takes nothing but .jpeg, .jpg, .png out of tar files: 4 files (2 .gif, "
    assert [note for note in notes if note.startswith(words)]


def test_tar_files_in_a_tar_file_are_looked_into_and_not_left_out(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "outer.tar", "w") as tar:
        tar.add(archive, "birds.tar")
    found = read_dataset("", tmp_path / "outer.tar")
    assert len(found.keys) == 4
    assert found.left_out == {}


class Unnamed:
    """A reader as timm's of Hugging Face's data sets."""

    def __init__(self, names: list[str | None]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def filename(self, index: int) -> str | None:
        return self.names[index]


class Stream(IterableDataset[Any]):
    reader = Unnamed(["a"])

    def __iter__(self) -> Any:
        raise AssertionError("nobody needs to read it")


# --- shards ---


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """Two shards in the way of WebDataset, with an image that has a smaller copy, a label alone, and odd names."""
    make_folder(tmp_path / "birds", NAMES, size=(40, 30))
    (tmp_path / "shards").mkdir()
    for shard, names in enumerate((NAMES[:2], NAMES[2:])):
        with tarfile.open(tmp_path / "shards" / f"train-{shard}.tar", "w") as tar:
            add(tar, "__meta__", b"of no sample")
            add(tar, f"only/a label {shard}.cls", b"0")
            for name in names:
                folder, _, file = name.partition("/")
                stem, suffix = file.split(".", 1)
                suffix = suffix.split(".")[-1]
                add(tar, f"{folder}/{stem}.webp", b"not looked at, since there is a png or a jpg")
                add(tar, f"{folder}/{stem}.{suffix.upper()}", (tmp_path / "birds" / name).read_bytes())
                add(tar, f"{folder}/{stem}.cls", b"1")
    return tmp_path / "shards"


SHARDS: dict[str, Any] = {"dataset": "wds/birds", "split": "train-{0..1}.tar"}


def test_shards_are_annotated_under_the_names_that_training_looks_up(shards: Path, tmp_path: Path) -> None:
    summary = annotate(shards, tmp_path / "packed", **SHARDS, **OPTIONS)
    assert (summary.annotated, summary.failed) == (3, [])
    ours, theirs = LabelStore(tmp_path / "packed"), tmp_path / "unpacked"
    assert set(ours) == {"001.a b/x.png", "001.a b/z.png", "b/ü.jpg"}
    annotate(tmp_path / "birds", theirs, **OPTIONS)
    assert (ours["b/ü.jpg"].scores == LabelStore(theirs)["b/ü.jpg"].scores).all()
    images = create_dataset("wds/birds", root=str(shards), split="train-{0..1}.tar|3", is_training=False)
    stream = LabelMapStream(images, tmp_path / "packed")
    stream.transform = v1.Compose([v1.RandomResizedCrop(32), v1.ToTensor()])
    assert [label.shape for _, label in stream] == [(1000,)] * 3
    assert annotate(shards, tmp_path / "packed", **SHARDS, **OPTIONS).annotated == 0


def test_shards_that_cannot_be_read_are_named(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"timm cannot read 'wds/birds', split 'train' in .* --split 'train-"):
        annotate(shards, tmp_path / "maps", **{**SHARDS, "split": "train"}, **OPTIONS)
    with pytest.raises(FileNotFoundError, match=r"train-2\.tar"):
        annotate(shards, tmp_path / "maps", **{**SHARDS, "split": "train-{0..2}.tar"}, **OPTIONS)
    (shards / "train-1.tar").write_bytes(gzip.compress((shards / "train-1.tar").read_bytes()))
    with pytest.raises(OSError, match=r"train-1\.tar cannot be read as a tar file without compression"):
        annotate(shards, tmp_path / "maps", **SHARDS, **OPTIONS)
    assert not (tmp_path / "maps").exists()


def test_of_two_files_of_one_name_the_map_is_of_the_one_that_is_trained_on(tmp_path: Path) -> None:
    """WebDataset keeps the first of a sample, and neither the case of an extension nor a leading slash makes a name."""
    make_folder(tmp_path / "birds", ["first.jpg", "second.jpg"], size=(40, 30))
    (tmp_path / "shards").mkdir()
    with tarfile.open(tmp_path / "shards" / "train-0.tar", "w") as tar:
        for name, file in (("/a/x.jpg", "first.jpg"), ("/a/x.JPG", "second.jpg")):
            add(tar, name, (tmp_path / "birds" / file).read_bytes())
        add(tar, "/a/x.cls", b"0")
    found = read_dataset("wds/birds", tmp_path / "shards", "train-0.tar|1")
    assert found.keys == ["a/x.jpg"]
    assert found.open("a/x.jpg").read() == (tmp_path / "birds" / "first.jpg").read_bytes()
    annotate(tmp_path / "shards", tmp_path / "maps", **{**SHARDS, "split": "train-0.tar|1"}, **OPTIONS)
    images = create_dataset("wds/birds", root=str(tmp_path / "shards"), split="train-0.tar|1", is_training=False)
    stream = LabelMapStream(images, tmp_path / "maps")
    stream.transform = v1.Compose([v1.CenterCrop(30), v1.PILToTensor()])
    with Image.open(tmp_path / "birds" / "first.jpg") as first:
        expected = stream.transform(first.convert("RGB"))
    assert [bool((image == expected).all()) for image, _ in stream] == [True]


def test_two_images_of_one_name_in_shards_are_refused(shards: Path, tmp_path: Path) -> None:
    shutil.copy(shards / "train-0.tar", shards / "train-1.tar")
    with pytest.raises(ValueError, match=r"train-0\.tar and .*train-1\.tar are both called '001\.a b/x\.png'"):
        annotate(shards, tmp_path / "maps", **SHARDS, **OPTIONS)


def test_paths_on_this_machine_are_no_part_of_a_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hugging Face's image folders name their images so; a store has to work on another machine."""
    make_folder(tmp_path / "birds", ["a/x.png", "b.c/y.png"])
    names: list[str | None] = [str(tmp_path / "birds" / name) for name in ("a/x.png", "b.c/y.png")]
    dataset = ImageDataset(str(tmp_path), reader=Unnamed(names))
    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", lambda *args, **options: dataset)
    assert read_dataset("hfds/x").keys == ["a/x.png", "b.c/y.png"]


@pytest.mark.parametrize(
    ("dataset", "error", "words"),
    [
        (Stream(), ValueError, "in sequence"),
        (["a", None], ValueError, "Unnamed has no file name for image 1"),
        (["a.png", "b.png", "a.png"], ValueError, "Images 0 and 2 of 'hfds/x' are both called 'a.png'"),
    ],
)
def test_images_that_cannot_be_told_apart_are_refused(
    dataset: Any, error: type[Exception], words: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if isinstance(dataset, list):
        dataset = ImageDataset(str(tmp_path), reader=Unnamed(dataset))
    monkeypatch.setattr("timm.data.dataset_factory.create_dataset", lambda *args, **options: dataset)
    with pytest.raises(error, match=words):
        annotate(dataset="hfds/x", **OPTIONS)
