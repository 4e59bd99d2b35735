"""Images in archives have the keys under which training looks them up."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any

import pytest
from timm.data import ImageDataset
from torch.utils.data import IterableDataset
from torchvision import transforms as v1

from tests.annotate.models import make_folder
from torchrelabel import LabelMapDataset, LabelStore
from torchrelabel.annotate import annotate
from torchrelabel.annotate.archives import read_dataset

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
        (Stream(), TypeError, "one image after the other"),
        (["a", None], TypeError, "Unnamed has no file name for image 1"),
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
