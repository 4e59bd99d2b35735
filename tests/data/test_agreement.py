"""A dataset, its label maps and the caller agree on the classes, or nothing is trained."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder

from tests.painted import WRONG, C, Painted, label_error, paint
from torchrelabel import LabelMapDataset, LabelStoreWriter

CROP = v1.Compose([v1.RandomResizedCrop(32), v1.ToTensor()])


@pytest.fixture
def painted(tmp_path: Path) -> Painted:
    return paint(tmp_path)


def store_that_knows_its_folders(painted: Painted, folder: Path) -> Path:
    path = folder / "known.lmdb"
    folders = {key.split("/")[0]: number for number, key in enumerate(painted.keys)}
    with LabelStoreWriter(path, num_classes=C, top_k=1, score_kind="probability", class_to_idx=folders) as writer:
        for key in painted.keys:
            cells = painted.blocks[key][None]
            writer.put(key, np.ones(cells.shape, np.float32), cells)
    return path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("wrap", [ImageFolder, ImageDataset])
@pytest.mark.parametrize("num_classes", [None, C])
def test_fewer_folders_than_were_annotated_have_other_numbers_and_are_refused(
    painted: Painted, tmp_path: Path, wrap: Any, num_classes: int | None
) -> None:
    """Validation accuracy was 0, and an error suggested the num_classes= that let it pass."""
    store = store_that_knows_its_folders(painted, tmp_path)
    for number in (0, 2, 4, 5):
        shutil.rmtree(painted.root / painted.keys[number].split("/")[0])
    with pytest.raises(ValueError, match=r"Class folder '001.class' had index 1 when .* and has 0 in this dataset"):
        LabelMapDataset(wrap(str(painted.root), transform=CROP), store, num_classes=num_classes)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_fewer_folders_whose_numbers_are_the_same_are_taken(painted: Painted, tmp_path: Path) -> None:
    store = store_that_knows_its_folders(painted, tmp_path)
    for number in (4, 5, 6):
        shutil.rmtree(painted.root / painted.keys[number].split("/")[0])
    dataset = LabelMapDataset(ImageFolder(painted.root, CROP), store, num_classes=C)
    assert np.mean([label_error(*dataset[i]) for i in range(4)]) < 10 * WRONG  # of blocks as cells
    assert len(LabelMapDataset(ImageDataset(str(painted.root), transform=CROP), store)) == 4


@pytest.mark.parametrize("outer", [lambda data: Subset(data, [1, 2]), lambda data: ConcatDataset([data, data])])
def test_a_target_transform_is_seen_through_subsets_and_concatenations(painted: Painted, outer: Any) -> None:
    images = ImageFolder(painted.root, CROP, target_transform=lambda target: C - 1 - target)
    with pytest.raises(ValueError, match="target_transform makes class"):
        LabelMapDataset(outer(images), painted.store)[0]


def test_a_target_transform_is_asked_once_for_each_image_that_is_loaded(painted: Painted) -> None:
    """It was called 14 times at construction, and the random states were put back."""
    calls: list[int] = []
    images = ImageFolder(painted.root, CROP, target_transform=lambda target: calls.append(target) or target)
    dataset = LabelMapDataset(images, painted.store)
    assert calls == []
    dataset[3]
    assert calls == [3]


class Holder(Dataset[Any]):
    """A dataset of the user's own, with attributes of any kind."""

    def __init__(self, painted: Painted, **attributes: Any) -> None:
        self.images = ImageFolder(painted.root)
        self.transform: Any = CROP
        self.__dict__.update(attributes)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image, target = self.images[index]
        return self.transform(image), target


class Table:
    """Stands for a DataFrame, which has a method of that name."""

    def transform(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("attributes", [{"reader": lambda path: path}, {"dataset": Table()}], ids=["reader", "dataset"])
def test_an_attribute_may_have_any_name(painted: Painted, attributes: dict[str, Any]) -> None:
    """A reader of the user's own was wrapped and could not be called; a DataFrame was refused for its method."""
    given = Holder(painted, **attributes)
    dataset = LabelMapDataset(given, painted.store, key=painted.keys)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG
    for name, value in attributes.items():
        assert getattr(dataset, name) is value


def test_a_wrapper_without_a_transform_of_its_own_gives_way_to_the_one_within(painted: Painted) -> None:
    """It was told that it had a transform, which was None."""

    class Wrapper(Dataset[Any]):
        def __init__(self, inner: Any) -> None:
            self.inner, self.transform = inner, None

        def __len__(self) -> int:
            return len(self.inner)

        def __getitem__(self, index: int) -> Any:
            return self.inner[index]

    dataset = LabelMapDataset(Wrapper(ImageFolder(painted.root, CROP)), painted.store, key=painted.keys)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG


@pytest.mark.parametrize("name", ["samples", "loader", "target_transform"])
def test_attributes_of_the_dataset_within_are_not_changed_from_outside(painted: Painted, name: str) -> None:
    """``wrapped.samples = wrapped.samples[:2]`` left everything as it was."""
    dataset = LabelMapDataset(ImageFolder(painted.root, CROP), painted.store)
    with pytest.raises(AttributeError, match=rf"^'{name}' belongs to the ImageFolder .* Change the dataset, then wrap"):
        setattr(dataset, name, None)
    dataset.note = "of the user's own"
    dataset.transform = v1.ToTensor()
    assert dataset[0][0].shape == (3, 84, 140)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_an_untransformed_dataset_of_timms_gives_an_image_and_a_label(painted: Painted) -> None:
    """It gave a TrackedImage and a LazyLabel."""
    image, label = LabelMapDataset(ImageDataset(str(painted.root)), painted.store, num_classes=C)[2]
    assert type(image).__name__ == "Image" and type(image).__module__ == "PIL.Image"
    assert label_error(image, label) < 0.01


# --- the right image ---


def store_that_knows_sizes(painted: Painted, folder: Path) -> Path:
    path = folder / "sized.lmdb"
    with LabelStoreWriter(path, num_classes=C, top_k=1, score_kind="probability") as writer:
        for key in painted.keys:
            cells = painted.blocks[key][None]
            writer.put(key, np.ones(cells.shape, np.float32), cells, image_size=(140, 84), exif_turned=key < "003")
    return path


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("wrap", [ImageFolder, ImageDataset])
@pytest.mark.parametrize("box", [(10, 0, 74, 64), (0, 0, 140, 82)], ids=["centre", "a little less"])
def test_the_maps_of_another_image_of_that_name_are_refused(
    painted: Painted, tmp_path: Path, wrap: Any, box: Any
) -> None:
    """A centre-cropped copy of the folder got the maps of the whole images."""
    store = store_that_knows_sizes(painted, tmp_path)
    path = painted.root / painted.keys[4]
    whole = LabelMapDataset(wrap(str(painted.root), transform=CROP), store, num_classes=C)[4]
    assert whole[1].shape == (C,)
    with Image.open(path) as image:
        image.crop(box).save(path)
    size = f"{box[2] - box[0]} x {box[3] - box[1]}"
    dataset = LabelMapDataset(wrap(str(painted.root), transform=CROP), store, num_classes=C)
    with pytest.raises(ValueError, match=rf"'004.class/image 4.png' is {size} pixels .* was 140 x 84: it is another"):
        dataset[4]
    assert dataset[3][1].shape == (C,)


@pytest.mark.parametrize("size", [(280, 168), (64, 38), (107, 64)])
def test_copies_at_another_size_show_the_same(painted: Painted, tmp_path: Path, size: tuple[int, int]) -> None:
    store = store_that_knows_sizes(painted, tmp_path)
    path = painted.root / painted.keys[4]
    with Image.open(path) as image:
        image.resize(size).save(path)
    assert LabelMapDataset(ImageFolder(painted.root, CROP), store)[4][1].shape == (C,)


def test_an_image_that_a_loader_turns_by_its_exif_is_told_apart(painted: Painted, tmp_path: Path) -> None:
    store = store_that_knows_sizes(painted, tmp_path)

    def turning(path: str) -> Any:
        return Image.open(path).convert("RGB").transpose(Image.Transpose.ROTATE_90)

    dataset = LabelMapDataset(ImageFolder(painted.root, CROP, loader=turning), store)
    with pytest.raises(ValueError, match=r"84 x 140 pixels .* EXIF orientation: read images as they were annotated"):
        dataset[0]


def test_a_crop_that_the_dataset_takes_before_its_transform_is_no_other_image(painted: Painted, tmp_path: Path) -> None:
    class Boxes(ImageFolder):
        def __getitem__(self, index: int) -> Any:
            path, target = self.samples[index]
            return self.transform(self.loader(path).crop((20, 10, 90, 70))), target

    dataset = LabelMapDataset(Boxes(str(painted.root), CROP), store_that_knows_sizes(painted, tmp_path))
    assert dataset[2][1].shape == (C,)
