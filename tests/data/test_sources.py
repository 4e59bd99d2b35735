"""The label belongs to the image that timm really loaded, not to the index that was asked for."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from timm.data import AugMixDataset, ImageDataset, create_dataset, create_loader, create_transform
from torch.utils.data import Subset
from torchvision import transforms as v1
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from tests.painted import WRONG, H, Painted, W, label_error, paint
from torchrelabel import CropNotSeen, LabelMapDataset, LabelStoreWriter
from torchrelabel.data.sources import RecordingReader
from torchrelabel.following.tracked_image import TrackedImage

# timm leaves the files open that it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

WHOLE = v1.Compose([v1.CenterCrop((H, W)), v1.ToTensor()])


@pytest.fixture
def painted(tmp_path: Path) -> Painted:
    return paint(tmp_path)


def break_image(painted: Painted, number: int) -> None:
    (painted.root / painted.keys[number]).write_bytes(b"not an image")


def test_timms_dataset_is_wrapped_like_any_other(painted: Painted) -> None:
    dataset = LabelMapDataset(create_dataset("", root=str(painted.root), transform=WHOLE), painted.store, num_classes=7)
    assert max(label_error(*dataset[i]) for i in range(len(dataset))) < 0.01


class FlippedAsArray(ImageFolder):
    """Mirrors each image when it is read, and gives what it made of the pixels: an image that says nothing."""

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        path, target = self.samples[index]
        image = Image.fromarray(np.array(ImageOps.mirror(self.loader(path))))
        return (image if self.transform is None else self.transform(image)), target


def test_what_a_dataset_does_to_an_image_stays_known_when_its_pixels_go_on_without_it(painted: Painted) -> None:
    left = v1.Compose([lambda image: image.crop((0, 0, image.width // 2, image.height)), v1.ToTensor()])
    dataset = LabelMapDataset(FlippedAsArray(str(painted.root), left), painted.store, num_classes=7)
    assert max(label_error(*dataset[i]) for i in range(len(dataset))) < 0.01


def test_folders_that_timm_numbers_in_another_order_are_refused(painted: Painted, tmp_path: Path) -> None:
    """timm sorts numbers in names by their value, torchvision and annotate by their digits."""
    for number, name in enumerate(sorted(os.listdir(painted.root))):
        os.rename(painted.root / name, painted.root / str(4 * number))
    keys = [os.path.relpath(path, painted.root) for path in sorted(painted.root.rglob("*.png"))]
    folders = {name: index for index, name in enumerate(sorted(os.listdir(painted.root)))}
    with LabelStoreWriter(tmp_path / "maps", num_classes=7, top_k=1, class_to_idx=folders) as writer:
        for key in keys:
            writer.put(key, np.ones((1, 3, 5), np.float32), np.zeros((1, 3, 5), np.int64))
    LabelMapDataset(ImageFolder(str(painted.root), WHOLE), tmp_path / "maps")
    with pytest.raises(ValueError, match=r"Class folder '12' had index 1 when .* and has 3 in .*--class-map"):
        LabelMapDataset(ImageDataset(str(painted.root), transform=WHOLE), tmp_path / "maps")


@pytest.mark.parametrize("subset", [False, True])
def test_a_broken_image_gets_the_label_of_the_one_loaded_in_its_place(painted: Painted, subset: bool) -> None:
    break_image(painted, 3)
    images = ImageDataset(str(painted.root), transform=WHOLE)
    dataset = LabelMapDataset(Subset(images, [3]) if subset else images, painted.store, num_classes=7)
    index = 0 if subset else 3
    for image, label in (dataset[index], *dataset.__getitems__([index])):
        assert label_error(image, label) < 0.01


def test_a_broken_image_is_refused_where_the_keys_were_given(painted: Painted) -> None:
    break_image(painted, 3)
    images = ImageDataset(str(painted.root), transform=WHOLE)
    dataset = LabelMapDataset(images, painted.store, num_classes=7, key=painted.keys)
    dataset[2]
    with pytest.raises(ValueError, match=r"another image in place of number 3.*leave key= out"):
        dataset[3]


def test_the_given_dataset_keeps_its_reader(painted: Painted) -> None:
    images = ImageDataset(str(painted.root), transform=WHOLE)
    LabelMapDataset(images, painted.store, num_classes=7)
    assert not isinstance(images.reader, RecordingReader)
    assert images.transform is WHOLE


def test_the_reader_gives_what_timms_gives(painted: Painted) -> None:
    reader = ImageDataset(str(painted.root)).reader
    teller = pickle.loads(pickle.dumps(RecordingReader(reader)))
    assert len(teller) == len(reader)
    assert teller.filename(2) == reader.filename(2)
    assert teller.class_to_idx == reader.class_to_idx


def test_a_loader_that_assigns_the_transform_later_is_followed(painted: Painted) -> None:
    dataset = LabelMapDataset(ImageDataset(str(painted.root)), painted.store, num_classes=7)
    create_loader(
        dataset,
        (3, 48, 64),
        batch_size=2,
        is_training=True,
        no_aug=False,
        num_workers=0,
        use_prefetcher=False,
        mean=(0, 0, 0),
        std=(1, 1, 1),
        color_jitter=None,
        re_prob=0,
        pin_memory=False,
        persistent_workers=False,
    )
    assert dataset.transform is not None
    assert sum(label_error(*dataset[i]) for i in range(7)) / 7 <= WRONG


def test_the_splits_of_augmix_share_the_label_of_their_base(painted: Painted) -> None:
    dataset = AugMixDataset(
        LabelMapDataset(ImageDataset(str(painted.root)), painted.store, num_classes=7), num_splits=3
    )
    dataset.transform = create_transform(
        64, is_training=True, separate=True, mean=(0, 0, 0), std=(1, 1, 1), color_jitter=None
    )
    images, label = dataset[1]
    assert len(images) == 3
    assert max(label_error(image, label) for image in images) < 0.1


def test_a_reader_tells_each_name_once_a_batch_and_anew_in_the_next(
    painted: Painted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hugging Face's reader loads the image to tell its name; and a list of files may be changed between epochs."""
    images = ImageDataset(str(painted.root), transform=WHOLE)
    dataset = LabelMapDataset(images, painted.store, num_classes=7)
    told, tell = [], images.reader.filename
    monkeypatch.setattr(images.reader, "filename", lambda index, *rest: told.append(index) or tell(index, *rest))
    dataset.__getitems__([0, 3, 4])
    assert told == [0, 3, 4]
    images.reader.samples.reverse()
    assert all(label_error(image, label) < 0.01 for image, label in dataset.__getitems__([0, 3, 4]))


# torchvision's DatasetFolder, by its loader


class SkipsBroken(ImageFolder):
    """A common recipe."""

    def __getitem__(self, index: int) -> Any:
        try:
            return super().__getitem__(index)
        except OSError:
            return self[(index + 1) % len(self)]


class Permuted(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__((3 * index + 1) % len(self))


class FromTheEnd(Subset[Any]):
    def __getitem__(self, index: int) -> Any:
        return self.dataset[self.indices[-1 - index]]

    def __getitems__(self, indices: list[int]) -> list[Any]:
        return [self[index] for index in indices]


def test_a_folder_that_skips_broken_images_gives_the_label_of_the_next(painted: Painted) -> None:
    """The label was that of the index asked for."""
    break_image(painted, 3)
    dataset = LabelMapDataset(SkipsBroken(painted.root, WHOLE), painted.store)
    for image, label in (dataset[3], *dataset.__getitems__([3])):
        assert label_error(image, label) < 0.01


def test_a_folder_that_skips_broken_images_is_refused_where_the_keys_were_given(painted: Painted) -> None:
    """The label was that of the broken image, which key= goes on to name."""
    break_image(painted, 3)
    dataset = LabelMapDataset(SkipsBroken(painted.root, WHOLE), painted.store, key=painted.keys)
    dataset[2]
    with pytest.raises(ValueError, match=r"another image in place of number 3.*leave key= out"):
        dataset[3]


@pytest.mark.parametrize(
    "make",
    [lambda root: Permuted(root, WHOLE), lambda root: FromTheEnd(ImageFolder(root, WHOLE), [1, 2, 4])],
    ids=["folder", "subset"],
)
def test_a_dataset_that_numbers_its_images_otherwise_gives_their_labels(painted: Painted, make: Any) -> None:
    dataset = LabelMapDataset(make(painted.root), painted.store)
    assert max(label_error(*dataset[i]) for i in range(len(dataset))) < 0.01


class Pair(ImageDataset):
    """Two images a sample."""

    def __getitem__(self, index: int) -> Any:
        first, target = super().__getitem__(index)
        second, _ = super().__getitem__((index + 1) % len(self))
        return first, target, second


class FolderPair(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        first, target = super().__getitem__(index)
        return first, target, super().__getitem__((index + 1) % len(self))[0]


@pytest.mark.parametrize("kind", [Pair, FolderPair])
@pytest.mark.parametrize("crop", ["auto", "full"])
def test_a_dataset_of_two_images_a_sample_is_refused(painted: Painted, kind: Any, crop: str) -> None:
    """The label was that of the second image."""
    dataset = LabelMapDataset(kind(str(painted.root), transform=WHOLE), painted.store, num_classes=7, crop=crop)
    with pytest.raises(CropNotSeen, match=rf"^{kind.__name__} gave 2 images to its transform for one sample"):
        dataset[0]


class CropsBefore(ImageFolder):
    """As for a data set with a box for each image."""

    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        return self.transform(self.loader(path).crop((70, 0, 140, 84)).resize((140, 84))), target


class TurnsBefore(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        return self.transform(ImageOps.mirror(self.loader(path)).convert("RGBA")), target


class Caches(ImageFolder):
    cache: dict[int, Any]

    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        if index not in self.cache:
            self.cache[index] = self.loader(path).crop((70, 0, 140, 84))
        image = self.cache[index]
        return image if self.transform is None else self.transform(image), target


class Colours(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        return self.transform(ImageOps.solarize(self.loader(path).convert("L")).filter(ImageFilter.CONTOUR)), target


class ReadsAnother(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        image, other = self.loader(path), self.loader(self.samples[(index + 1) % len(self)][0])
        return self.transform(image), target, np.asarray(other), other


CROP = v1.Compose([v1.RandomResizedCrop(60), v1.ToTensor()])


@pytest.mark.parametrize("kind", [CropsBefore, TurnsBefore, Caches, ReadsAnother])
def test_what_a_dataset_does_to_the_images_that_it_opens_is_followed(painted: Painted, kind: Any) -> None:
    """The label was that of the whole image, or of another one."""
    images = kind(painted.root, CROP)
    images.cache = {}
    dataset = LabelMapDataset(images, painted.store)
    for _ in range(3):
        items = [dataset[i] for i in range(7)]
        assert np.mean([label_error(image[:3], label) for image, label, *_ in items]) <= WRONG
    assert not any(isinstance(extra, TrackedImage) for _, _, *rest in items for extra in rest)


def test_an_image_cached_by_a_dataset_shows_the_same_in_a_joint_pipeline(painted: Painted) -> None:
    images = Caches(painted.root, CROP)
    images.cache = {}
    followed = LabelMapDataset(images, painted.store)
    assert len([followed[i] for i in range(7)]) == len(images.cache)
    images.transform = None
    images.transforms = None
    joint = v2.Compose([v2.RandomResizedCrop(60), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
    dataset = LabelMapDataset(images, painted.store, transforms=joint)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG


def test_colours_may_change_before_the_transform(painted: Painted) -> None:
    """Thumbnails were compared, and contours or solarized colours were taken for another image."""
    whole = LabelMapDataset(ImageFolder(painted.root, WHOLE), painted.store)
    dataset = LabelMapDataset(Colours(painted.root, WHOLE), painted.store)
    assert all(torch.equal(dataset[i][1], whole[i][1]) for i in range(7))


class CropsArrays(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        return self.transform(Image.fromarray(np.asarray(self.loader(path))[:60, :60])), target


class BlendsTwo(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        image, other = self.loader(path), self.loader(self.samples[(index + 1) % len(self)][0])
        return self.transform(Image.blend(image, other, 0.5)), target


class CropsAfter(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        image, target = super().__getitem__(index)
        return v1.functional.center_crop(image, 40), target


class Albumentations(ImageFolder):
    def __getitem__(self, index: int) -> Any:
        path, target = self.samples[index]
        return self.transform(image=np.asarray(self.loader(path)))["image"], target


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (CropsArrays, CropNotSeen, "CropsArrays crops or resizes an image between opening and transforming it"),
        (BlendsTwo, CropNotSeen, "BlendsTwo opened 2 images for one sample and gave none of them as it was"),
        (CropsAfter, CropNotSeen, "CropsAfter changes an image after its transform"),
        (Albumentations, TypeError, "transform is called with an image alone, and this dataset calls it with image"),
    ],
)
def test_a_dataset_whose_changes_cannot_be_followed_is_refused(
    painted: Painted, kind: Any, error: Any, words: str
) -> None:
    with pytest.raises(error, match=words):
        LabelMapDataset(kind(painted.root, WHOLE), painted.store)[0]
