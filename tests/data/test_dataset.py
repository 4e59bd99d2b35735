"""LabelMapDataset gives (image, soft label) of any image dataset, or says what does not fit."""

from __future__ import annotations

import multiprocessing
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset, default_collate, random_split
from torchvision import transforms as v1
from torchvision.datasets import DatasetFolder, ImageFolder, Imagenette, OxfordIIITPet
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from tests.painted import BLOCK, CELLS, COLUMNS, ROWS, WRONG, C, H, Painted, W, enlarged, label_error, paint, picture
from torchrelabel import (
    CropNotSeen,
    LabelMap,
    LabelMapDataset,
    LabelPooling,
    LabelStore,
    LabelStoreWriter,
    MissingLabelMap,
    PoolLabelMap,
    RandomResizedCropWithLabelMap,
    UntrackedTransformError,
    ViewBox,
)
from torchrelabel.label_map import LabelMapBatch


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    return paint(Path(tmp_path_factory.mktemp("painted")))


@pytest.fixture
def store(painted: Painted) -> LabelStore:
    return LabelStore(painted.store)


def crop_left(image: Image.Image) -> Image.Image:
    """The left two of the five columns of blocks."""
    return image.crop((0, 0, 2 * BLOCK, H))


LEFT = v1.Compose([crop_left, v1.ToTensor()])
RANDOM = v1.Compose([v1.RandomResizedCrop(32), v1.RandomHorizontalFlip(), v1.ToTensor()])
JOINT = v2.Compose([v2.RandomResizedCrop(32), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])


def left_label(painted: Painted, number: int) -> Any:
    """The label of what crop_left leaves, counted by hand."""
    left = painted.blocks[painted.keys[number]][:, :2]
    return torch.from_numpy(np.bincount(left.ravel(), minlength=C) / left.size).float()


def folder(painted: Painted, transform: Any = LEFT) -> ImageFolder:
    return ImageFolder(painted.root, transform=transform)


class InMemory(Dataset[Any]):
    """A dataset that knows no files."""

    def __init__(self, painted: Painted, transform: Any = None, extra: bool = False) -> None:
        self.images = [picture(painted.blocks[key]) for key in painted.keys]
        self.transform = transform
        self.extra = extra

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Any:
        image = self.images[index] if self.transform is None else self.transform(self.images[index])
        return (image, index, {"index": index}) if self.extra else (image, index)


# What it gives.


def test_the_label_is_the_map_pooled_by_hand(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted), painted.store)
    for number in range(len(dataset)):
        image, label = dataset[number]
        assert label.shape == (C,)
        assert label.dtype == torch.float32
        torch.testing.assert_close(label, left_label(painted, number))
        assert label_error(image, label) < 1e-6


def test_whatever_else_the_dataset_gives_comes_along(painted: Painted) -> None:
    dataset = LabelMapDataset(InMemory(painted, LEFT, extra=True), painted.store, key=painted.keys)
    image, label, extra = dataset[3]
    assert image.shape == (3, H, 2 * BLOCK)
    torch.testing.assert_close(label, left_label(painted, 3))
    assert extra == {"index": 3}


def test_logits_are_pooled_and_then_become_a_label(tmp_path: Path, painted: Painted) -> None:
    key = painted.keys[0]
    cells = enlarged(painted.blocks[key], CELLS)[None]
    with LabelStoreWriter(tmp_path / "logits", num_classes=C, top_k=1) as writer:
        writer.put(key, np.full(cells.shape, 9, np.float32), cells)
    dataset = LabelMapDataset(Subset(folder(painted), [0]), tmp_path / "logits")
    torch.testing.assert_close(dataset[0][1], (9 * left_label(painted, 0)).softmax(0))


def test_a_map_of_a_part_of_the_image_is_pooled_in_its_own_frame(tmp_path: Path, painted: Painted) -> None:
    """The map covers columns 1 to 4 of blocks, so that the crop of columns 0 and 1 pools column 1."""
    key = painted.keys[0]
    cells = enlarged(painted.blocks[key][:, 1:], CELLS)[None]
    settings: dict[str, Any] = {"num_classes": C, "top_k": 1, "score_kind": "probability"}
    with LabelStoreWriter(tmp_path / "part", coverage=(0.2, 0, 1, 1), **settings) as writer:
        writer.put(key, np.ones(cells.shape, np.float32), cells)
    dataset = LabelMapDataset(Subset(folder(painted), [0]), tmp_path / "part")
    expected = np.bincount(painted.blocks[key][:, 1], minlength=C) / ROWS
    torch.testing.assert_close(dataset[0][1], torch.from_numpy(expected).float())


def test_a_mapping_of_label_maps_serves_as_a_store(painted: Painted) -> None:
    cells = torch.from_numpy(enlarged(painted.blocks[painted.keys[2]], CELLS)[None])
    label_map = LabelMap(torch.ones(cells.shape), cells, num_classes=C, canvas_size=(H, W), score_kind="probability")
    dataset = LabelMapDataset(Subset(folder(painted), [2]), {painted.keys[2]: label_map})
    torch.testing.assert_close(dataset[0][1], left_label(painted, 2))


def test_crop_full_pools_the_whole_image_whatever_is_cropped(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted), painted.store, crop="full")
    image, label = dataset[1]
    blocks = painted.blocks[painted.keys[1]]
    assert image.shape == (3, H, 2 * BLOCK)
    torch.testing.assert_close(label, torch.from_numpy(np.bincount(blocks.ravel(), minlength=C) / blocks.size).float())


@pytest.mark.parametrize(
    "transform",
    [
        v1.ToTensor(),
        v1.Compose([v1.ToTensor(), v1.RandomCrop(40)]),
        v1.Compose([RandomResizedCropWithLabelMap(20), v1.ToTensor()]),
        v1.FiveCrop(20),
    ],
)
def test_crop_full_takes_pipelines_whose_crop_cannot_be_seen(painted: Painted, transform: Any) -> None:
    _, label = LabelMapDataset(folder(painted, transform), painted.store, crop="full")[0]
    blocks = painted.blocks[painted.keys[0]]
    torch.testing.assert_close(label, torch.from_numpy(np.bincount(blocks.ravel(), minlength=C) / blocks.size).float())


def test_crop_full_and_a_joint_pipeline(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted, None), painted.store, JOINT, crop="full")
    blocks = painted.blocks[painted.keys[4]]
    expected = torch.from_numpy(np.bincount(blocks.ravel(), minlength=C) / blocks.size).float()
    torch.testing.assert_close(dataset[4][1], expected)


def test_without_pooling_the_map_comes_with_its_view(painted: Painted) -> None:
    _, label_map = LabelMapDataset(folder(painted), painted.store, pooling=None)[1]
    assert isinstance(label_map, LabelMap)
    assert label_map.view_box == ViewBox(0, 0, 2 / COLUMNS, 1)
    assert label_map.canvas_size == (H, 2 * BLOCK)


def test_maps_are_collated_and_pooled_as_a_batch(painted: Painted) -> None:
    maps = LabelMapDataset(folder(painted), painted.store, pooling=None)
    _, batch = next(iter(DataLoader(maps, batch_size=7)))
    assert isinstance(batch, LabelMapBatch)
    expected = torch.stack([left_label(painted, number) for number in range(7)])
    torch.testing.assert_close(LabelPooling()(batch), expected)


def test_a_joint_pipeline_crops_map_and_image_alike(painted: Painted) -> None:
    pipeline = v2.Compose(
        [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.Pad(5),
            v2.Resize(70),
            v2.RandomResizedCrop((50, 60)),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
        ]
    )
    dataset = LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline)
    assert np.mean([label_error(*dataset[i]) for i in range(7) for _ in range(4)]) <= WRONG


def test_a_joint_pipeline_may_pool_by_itself(painted: Painted) -> None:
    pipeline = v2.Compose([v2.RandomResizedCrop(40), PoolLabelMap(), v2.RandomRotation(10), v2.ToImage()])
    _, label = LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline)[0]
    assert type(label) is torch.Tensor
    assert label.shape == (C,)


def test_joint_pixels_and_random_numbers_are_those_without_label_maps(painted: Painted) -> None:
    plain = folder(painted, v2.Compose([JOINT]))
    joint = LabelMapDataset(folder(painted, None), painted.store, transforms=JOINT)
    for number in range(4):
        torch.manual_seed(number)
        expected, drawn = plain[number][0], torch.get_rng_state()
        torch.manual_seed(number)
        image, _ = joint[number]
        assert torch.equal(image, expected)
        assert torch.equal(torch.get_rng_state(), drawn)


def test_token_labels_are_flipped_as_the_image_is(painted: Painted) -> None:
    def tokens(*steps: Any) -> Any:
        pipeline = v1.Compose([*steps, v1.CenterCrop((H, W)), v1.ToTensor()])
        return LabelMapDataset(folder(painted, pipeline), painted.store, pooling=LabelPooling((ROWS, COLUMNS)))[2][1]

    torch.testing.assert_close(tokens(v1.RandomHorizontalFlip(1)), tokens().flip(-1))
    expected = torch.nn.functional.one_hot(torch.from_numpy(painted.blocks[painted.keys[2]]), C).permute(2, 0, 1)
    torch.testing.assert_close(tokens(), expected.float(), atol=0.3, rtol=0)  # bilinear at the borders of the blocks


@pytest.mark.parametrize("pooling", [LabelPooling((3, 5)), None])
@pytest.mark.parametrize("flip", [v1.RandomHorizontalFlip(1), v2.RandomVerticalFlip(1)])
def test_a_flip_of_a_tensor_is_followed_where_the_label_depends_on_it(
    painted: Painted, pooling: Any, flip: Any
) -> None:
    def label(*steps: Any) -> Any:
        transform = v1.Compose([v1.CenterCrop(32), v1.ToTensor(), *steps])
        return LabelMapDataset(folder(painted, transform), painted.store, pooling=pooling)[0][1]

    if pooling is None:
        view_box = label().view_box
        assert label(flip).view_box in (view_box.flip_x(), view_box.flip_y())
    else:
        assert any(torch.allclose(label(flip), label().flip(axis)) for axis in (1, 2))
        assert not torch.allclose(label(flip), label())


def test_the_items_of_a_batch_are_those_one_by_one(painted: Painted) -> None:
    dataset = LabelMapDataset(InMemory(painted, RANDOM, extra=True), painted.store, key=painted.keys)
    torch.manual_seed(3)
    together = dataset.__getitems__([5, -1, 2, 5])
    torch.manual_seed(3)
    for (image, label, extra), (image_alone, label_alone, extra_alone) in zip(
        together, [dataset[i] for i in (5, -1, 2, 5)], strict=True
    ):
        assert torch.equal(image, image_alone)
        torch.testing.assert_close(label, label_alone)
        assert extra == extra_alone


@pytest.mark.parametrize("pooling", [LabelPooling((3, 5)), LabelPooling(activation="argmax"), None])
def test_a_batch_is_pooled_as_asked_for(painted: Painted, pooling: Any) -> None:
    dataset = LabelMapDataset(folder(painted), painted.store, pooling=pooling)
    for number, (_, label) in enumerate(dataset.__getitems__(range(7))):
        torch.testing.assert_close(label, dataset[number][1])
        assert isinstance(label, LabelMap) == (pooling is None)


def test_a_batch_may_hold_maps_of_several_grids_and_images_without_one(tmp_path: Path, painted: Painted) -> None:
    with LabelStoreWriter(tmp_path / "maps", num_classes=C, top_k=1, score_kind="probability") as writer:
        for number in (0, 1, 2, 4, 6):
            cells = enlarged(painted.blocks[painted.keys[number]], 1 + number % 3)[None]
            writer.put(painted.keys[number], np.ones(cells.shape, np.float32), cells)
    dataset = LabelMapDataset(folder(painted, LEFT), tmp_path / "maps", missing="onehot")
    for number, (_, label) in enumerate(dataset.__getitems__(range(7))):
        torch.testing.assert_close(label, dataset[number][1])


def test_an_image_that_comes_twice_in_a_batch_has_two_views(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted, RANDOM), painted.store, pooling=None)
    (_, first), (_, second) = dataset.__getitems__([2, 2])
    assert first.view_box != second.view_box
    assert torch.equal(first.classes, second.classes)


def test_a_subclass_says_what_the_items_of_a_batch_are(painted: Painted) -> None:
    class Named(LabelMapDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return {"pixel_values": image, "labels": label}

    batch = next(iter(DataLoader(Named(folder(painted), painted.store), batch_size=2)))
    torch.testing.assert_close(batch["labels"], torch.stack([left_label(painted, 0), left_label(painted, 1)]))


def test_a_missing_map_of_a_batch_is_named(painted: Painted, tmp_path: Path) -> None:
    dataset = LabelMapDataset(folder(without_a_map(painted, tmp_path)), painted.store)
    with pytest.raises(MissingLabelMap, match=r"no label map of '000\.class/image 00\.png'"):
        dataset.__getitems__([0, 1])


def test_a_subset_of_the_wrapped_dataset_gives_its_labels(painted: Painted) -> None:
    subset = Subset(LabelMapDataset(folder(painted), painted.store), [6, 3])
    _, labels = next(iter(DataLoader(subset, batch_size=2)))
    torch.testing.assert_close(labels, torch.stack([left_label(painted, 6), left_label(painted, 3)]))


# A share of the one-hot label.


@pytest.mark.parametrize("pooling", [LabelPooling(), LabelPooling((2, 3))], ids=["a label", "token labels"])
def test_a_label_may_have_a_share_of_the_one_hot_one(painted: Painted, pooling: Any) -> None:
    alone = LabelMapDataset(folder(painted, LEFT), painted.store, pooling=pooling)
    blended = LabelMapDataset(folder(painted, LEFT), painted.store, pooling=pooling, onehot=0.25)
    own = torch.zeros_like(alone[4][1])
    own[4] = 1
    torch.testing.assert_close(blended[4][1], 0.75 * alone[4][1] + 0.25 * own)
    torch.testing.assert_close(blended.__getitems__([4])[0][1], 0.75 * alone[4][1] + 0.25 * own)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"onehot": 1.5}, r"onehot is a share of the label, 0 to 1, got 1\.5"),
        ({"onehot": 0.5, "pooling": None}, "it needs a pooling"),
    ],
)
def test_a_share_that_makes_no_sense_is_refused(painted: Painted, options: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LabelMapDataset(folder(painted), painted.store, **options)


# Roots that differ.


def below(painted: Painted, tmp_path: Path, name: str) -> Path:
    """The same maps, as if the folder above had been annotated."""
    maps = LabelStore(painted.store)
    with LabelStoreWriter(tmp_path / "below", num_classes=C, top_k=1, score_kind="probability") as writer:
        for key, record in maps.items():
            writer.put(name + key, record.scores, record.classes)
    return tmp_path / "below"


def test_a_store_of_the_folder_above_is_found_out_and_said(painted: Painted, tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"'000\.class/image 0\.png' is taken to be 'train/000\.class/image 0\.png'"):
        dataset = LabelMapDataset(folder(painted, LEFT), below(painted, tmp_path, "train/"))
    _, labels = next(iter(DataLoader(dataset, batch_size=7)))
    torch.testing.assert_close(labels, torch.stack([left_label(painted, n) for n in range(7)]))


def test_a_key_prefix_that_is_given_is_used_without_a_word(painted: Painted, tmp_path: Path) -> None:
    store = below(painted, tmp_path, "train/")
    dataset = LabelMapDataset(folder(painted, LEFT), store, key_prefix="train/")
    torch.testing.assert_close(dataset[3][1], left_label(painted, 3))


def test_a_wrong_key_prefix_is_refused_with_the_nearest_keys(painted: Painted, tmp_path: Path) -> None:
    with pytest.raises(
        MissingLabelMap, match=r"no label map of 'val/000.*nearest keys: 'train/000\.class/image 0\.png'"
    ):
        LabelMapDataset(folder(painted, LEFT), below(painted, tmp_path, "train/"), key_prefix="val/")


# What it can wrap.


@pytest.mark.parametrize("index", [0, 3, 6, -1, -7])
def test_indices_count_from_either_end(painted: Painted, index: int) -> None:
    shared = folder(painted)
    for dataset in (
        LabelMapDataset(folder(painted), painted.store),
        LabelMapDataset(Subset(folder(painted), range(7)), painted.store),
        LabelMapDataset(ConcatDataset([Subset(shared, range(3)), Subset(shared, range(3, 7))]), painted.store),
        LabelMapDataset(InMemory(painted, LEFT), painted.store, key=lambda number: painted.keys[number]),
    ):
        torch.testing.assert_close(dataset[index][1], left_label(painted, index % 7))


def test_a_key_function_gets_no_negative_index(painted: Painted) -> None:
    """``dataset[-1]`` asked the function for the key of image -1."""
    asked: list[int] = []

    def key(index: int) -> str:
        asked.append(index)
        return painted.keys[index]

    LabelMapDataset(InMemory(painted, LEFT), painted.store, key=key)[-2]
    assert asked[-1] == 5


def test_an_index_before_the_first_is_an_index_error(painted: Painted) -> None:
    with pytest.raises(IndexError, match="There are 7 images in this dataset, asked for number -8"):
        LabelMapDataset(folder(painted), painted.store)[-8]


def test_a_loop_over_the_dataset_ends(painted: Painted) -> None:
    assert len(list(LabelMapDataset(folder(painted), painted.store))) == 7


def test_subsets_of_subsets(painted: Painted) -> None:
    inner = Subset(Subset(folder(painted), [6, 5, 4, 3]), [3, 1])
    torch.testing.assert_close(LabelMapDataset(inner, painted.store)[1][1], left_label(painted, 5))


def test_a_random_split(painted: Painted) -> None:
    for part in random_split(folder(painted), [4, 3]):
        dataset = LabelMapDataset(part, painted.store)
        for i, number in enumerate(part.indices):
            torch.testing.assert_close(dataset[i][1], left_label(painted, number))


def test_a_concatenation(painted: Painted) -> None:
    shared = folder(painted)
    both = LabelMapDataset(ConcatDataset([Subset(shared, [1]), Subset(shared, [6, 5])]), painted.store)
    for i, number in enumerate([1, 6, 5]):
        torch.testing.assert_close(both[i][1], left_label(painted, number))


def test_a_concatenation_of_wrapped_parts(painted: Painted) -> None:
    parts = [LabelMapDataset(Subset(folder(painted), [number]), painted.store) for number in (2, 4)]
    torch.testing.assert_close(ConcatDataset(parts)[1][1], left_label(painted, 4))


def test_a_dataset_folder_with_a_loader_of_its_own(painted: Painted) -> None:
    dataset = DatasetFolder(str(painted.root), loader=default_loader, extensions=(".png",), transform=LEFT)
    torch.testing.assert_close(LabelMapDataset(dataset, painted.store)[3][1], left_label(painted, 3))


def test_lazily_opened_images(painted: Painted) -> None:
    dataset = DatasetFolder(str(painted.root), loader=Image.open, extensions=(".png",), transform=LEFT)
    torch.testing.assert_close(LabelMapDataset(dataset, painted.store)[3][1], left_label(painted, 3))


def test_imagenette_without_its_download(painted: Painted) -> None:
    dataset = Imagenette.__new__(Imagenette)
    samples = ImageFolder(painted.root).samples
    dataset.__dict__.update(
        root=painted.root,
        _samples=samples,
        transform=LEFT,
        target_transform=None,
        transforms=None,
        _split="train",
        _size="full",
        loader=default_loader,
    )
    torch.testing.assert_close(LabelMapDataset(dataset, painted.store)[5][1], left_label(painted, 5))


def test_a_dataset_that_transforms_image_and_target_in_a_second_place(painted: Painted) -> None:
    """OxfordIIITPet calls ``transforms``, into which torchvision has put ``transform``."""
    dataset = OxfordIIITPet.__new__(OxfordIIITPet)
    images = [path for path, _ in ImageFolder(painted.root).samples]
    super(OxfordIIITPet, dataset).__init__(str(painted.root), transform=LEFT)
    dataset.__dict__.update(_images=images, _labels=list(range(7)), _target_types=["category"])
    torch.testing.assert_close(LabelMapDataset(dataset, painted.store)[5][1], left_label(painted, 5))


def test_a_dataset_that_transforms_inside_itself_is_followed_in_the_steps_that_it_holds(painted: Painted) -> None:
    class Inside(InMemory):
        def __getitem__(self, index: int) -> Any:
            return self.crop(v1.functional.to_tensor(self.images[index])), index

    inside = Inside(painted)
    del inside.transform
    inside.crop = RandomResizedCropWithLabelMap((40, 50))
    dataset = LabelMapDataset(inside, painted.store, key=painted.keys)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG
    inside.crop = v1.RandomResizedCrop((40, 50))
    followed = LabelMapDataset(inside, painted.store, key=painted.keys)
    assert np.mean([label_error(*followed[i]) for i in range(7)]) <= WRONG
    inside.crop = lambda image: image[:, 8:48, 9:59]
    with pytest.raises(CropNotSeen, match=r"No crop was seen.* and what .*Inside.* does to an image is unknown"):
        LabelMapDataset(inside, painted.store, key=painted.keys)[0]


def test_a_subset_with_a_transform_of_its_own(painted: Painted) -> None:
    """A common recipe; its images were handed to the transform before they were tracked."""

    class TransformedSubset(Subset[Any]):
        transform: Any = LEFT

        def __getitem__(self, index: int) -> Any:
            image, target = super().__getitem__(index)
            return self.transform(image), target

        def __getitems__(self, indices: list[int]) -> list[Any]:
            return [self[index] for index in indices]

    subset = TransformedSubset(folder(painted, None), [4, 2])
    torch.testing.assert_close(LabelMapDataset(subset, painted.store)[1][1], left_label(painted, 2))
    with pytest.raises(ValueError, match="TransformedSubset has a transform and wraps a dataset that has one too"):
        LabelMapDataset(TransformedSubset(folder(painted), [4, 2]), painted.store)


def test_images_that_are_kept_in_memory_are_not_changed(painted: Painted) -> None:
    def spoil(image: Image.Image) -> Image.Image:
        image.paste((0, 0, 0), (0, 0, W, H))
        return image.crop((0, 0, 20, 20))

    memory = InMemory(painted, spoil)
    dataset = LabelMapDataset(memory, painted.store, key=painted.keys)
    dataset[0], dataset[0]
    assert memory.images[0] == picture(painted.blocks[painted.keys[0]])


def test_threads_that_load_at_once_keep_their_views_apart(painted: Painted) -> None:
    pipeline = v1.Compose([v1.ToTensor(), RandomResizedCropWithLabelMap(32)])
    dataset = LabelMapDataset(folder(painted, pipeline), painted.store)
    with ThreadPoolExecutor(4) as pool:
        samples = list(pool.map(dataset.__getitem__, list(range(7)) * 6))
    assert np.mean([label_error(*sample) for sample in samples]) <= WRONG


def test_a_pipeline_that_loads_other_samples_keeps_its_own_label(painted: Painted) -> None:
    other = LabelMapDataset(folder(painted, RANDOM), painted.store)
    pasted: list[Any] = []

    def beside(image: Any) -> Any:
        pasted.append(other[0])
        return image

    for pipeline in ([beside, crop_left], [crop_left, beside]):
        dataset = LabelMapDataset(folder(painted, v1.Compose([*pipeline, v1.ToTensor()])), painted.store)
        torch.testing.assert_close(dataset[5][1], left_label(painted, 5))
    assert len(pasted) == 2


# What it leaves alone, and what it passes on.


def test_the_given_dataset_is_not_changed(painted: Painted) -> None:
    shared = folder(painted)
    before = dict(shared.__dict__)
    subset = Subset(shared, [1, 2])
    LabelMapDataset(subset, painted.store)[0]
    assert shared.__dict__ == before
    assert subset.dataset is shared
    assert shared[0][1] == 0


def test_training_and_validation_may_share_one_folder(painted: Painted) -> None:
    shared = folder(painted)
    train = LabelMapDataset(Subset(shared, [0, 1, 2]), painted.store)
    again = LabelMapDataset(Subset(shared, [3, 4]), painted.store)
    val = Subset(shared, [5, 6])
    torch.testing.assert_close(train[1][1], left_label(painted, 1))
    torch.testing.assert_close(again[1][1], left_label(painted, 4))
    assert val[0][1] == 5


def test_public_attributes_are_there_on_the_wrapper(painted: Painted) -> None:
    inner = folder(painted)
    inner.epochs = []  # type: ignore[attr-defined]
    inner.set_epoch = inner.epochs.append  # type: ignore[attr-defined]
    dataset = LabelMapDataset(inner, painted.store)
    dataset.set_epoch(3)
    assert inner.epochs == [3]  # type: ignore[attr-defined]
    assert dataset.classes == inner.classes
    assert dataset.class_to_idx == inner.class_to_idx
    assert dataset.samples == inner.samples
    assert len(dataset) == len(inner)


def test_dunder_methods_are_not_passed_on(painted: Painted) -> None:
    """A DataLoader prefers ``__getitems__``: that of the wrapped Subset would fetch hard labels."""
    dataset = LabelMapDataset(Subset(folder(painted), range(7)), painted.store)
    assert hasattr(Subset, "__getitems__")
    assert LabelMapDataset.__getitems__ is not Subset.__getitems__
    _, labels = next(iter(DataLoader(dataset, batch_size=2)))
    torch.testing.assert_close(labels, torch.stack([left_label(painted, 0), left_label(painted, 1)]))


@pytest.mark.parametrize("name", ["_private", "__array__", "nowhere"])
def test_an_attribute_that_is_nowhere_is_an_attribute_error(painted: Painted, name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(LabelMapDataset(folder(painted), painted.store), name)


def test_the_transform_may_be_assigned_later(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted, None), painted.store)
    dataset.transform = LEFT
    torch.testing.assert_close(dataset[1][1], left_label(painted, 1))


def test_the_repr_names_images_dataset_and_store(painted: Painted) -> None:
    shown = repr(LabelMapDataset(folder(painted), painted.store))
    assert shown == f"LabelMapDataset(7 images of ImageFolder, LabelStore({str(painted.store)!r}))"


# Processes.


def test_a_pickled_dataset_gives_the_same(painted: Painted) -> None:
    dataset = pickle.loads(pickle.dumps(LabelMapDataset(folder(painted), painted.store)))
    torch.testing.assert_close(dataset[1][1], left_label(painted, 1))
    assert dataset.classes == folder(painted).classes


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_workers_give_the_labels_of_their_images(painted: Painted, method: str) -> None:
    dataset = LabelMapDataset(folder(painted), painted.store)
    dataset[0]  # the parent has opened the store before it forks
    again = LabelMapDataset(folder(painted), painted.store)
    loaders = [
        DataLoader(
            part, batch_size=4, num_workers=1, multiprocessing_context=method, persistent_workers=method == "fork"
        )
        for part in ([dataset, again] if method == "fork" else [dataset])
    ]
    expected = torch.stack([left_label(painted, number) for number in range(7)])
    for _ in range(2 if method == "fork" else 1):
        for loader in loaders:
            torch.testing.assert_close(torch.cat([labels for _, labels in loader]), expected)
    torch.testing.assert_close(dataset[1][1], left_label(painted, 1))


def test_workers_collate_maps(painted: Painted) -> None:
    maps = LabelMapDataset(folder(painted), painted.store, pooling=None)
    batches = [batch for _, batch in DataLoader(maps, batch_size=4, num_workers=1)]
    expected = torch.stack([left_label(painted, number) for number in range(7)])
    torch.testing.assert_close(torch.cat([LabelPooling()(batch) for batch in batches]), expected)


def without_a_map(painted: Painted, folder_of: Path) -> Painted:
    """The same images, with one in the second place that has no map."""
    shutil.copytree(painted.root, folder_of / "images")
    first = folder_of / "images" / painted.keys[0]
    shutil.copy(first, first.with_name("image 00.png"))
    return Painted(folder_of / "images", painted.store, painted.keys, painted.blocks)


def test_a_missing_map_in_a_worker_keeps_its_type_and_words(painted: Painted, tmp_path: Path) -> None:
    dataset = LabelMapDataset(folder(without_a_map(painted, tmp_path)), painted.store)
    with pytest.raises(
        MissingLabelMap, match=r"no label map of '000.class/image 00.png' in .*maps.lmdb; nearest keys: "
    ):
        list(DataLoader(dataset, num_workers=1))


def test_an_unseen_crop_in_a_worker_keeps_its_type_and_words(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted, np.asarray), painted.store)
    with pytest.raises(CropNotSeen, match=r"No crop was seen while the pipeline <.*asarray> ran.*crop='full'"):
        list(DataLoader(dataset, num_workers=1))


# What does not fit.


def test_missing_onehot_gives_the_label_of_the_dataset(painted: Painted, tmp_path: Path) -> None:
    dataset = LabelMapDataset(folder(without_a_map(painted, tmp_path)), painted.store, missing="onehot")
    assert dataset[1][1].tolist() == [1, 0, 0, 0, 0, 0, 0]
    torch.testing.assert_close(dataset[2][1], left_label(painted, 1))


def test_missing_onehot_and_a_joint_pipeline(painted: Painted, tmp_path: Path) -> None:
    images = folder(without_a_map(painted, tmp_path), None)
    image, label = LabelMapDataset(images, painted.store, JOINT, missing="onehot")[1]
    assert image.shape == (3, 32, 32)
    assert label.tolist() == [1, 0, 0, 0, 0, 0, 0]


def test_missing_onehot_is_the_label_of_each_token(painted: Painted, tmp_path: Path) -> None:
    images = folder(without_a_map(painted, tmp_path))
    dataset = LabelMapDataset(images, painted.store, missing="onehot", pooling=LabelPooling((2, 3)), onehot=0.5)
    _, labels = default_collate([dataset[i] for i in range(3)])
    assert labels.shape == (3, C, 2, 3)
    assert labels[1, 0].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_missing_onehot_of_other_classes_is_refused(painted: Painted, tmp_path: Path) -> None:
    """Folder 0 of three is not class 0 of the seven that the maps have."""
    for key in painted.keys[:3]:
        (tmp_path / key).parent.mkdir(parents=True)
        shutil.copy(painted.root / key, tmp_path / key)
    images = ImageFolder(tmp_path, transform=LEFT)
    with pytest.raises(ValueError, match=r"missing='onehot' takes the class index of the dataset, which has 3 classes"):
        LabelMapDataset(images, painted.store, num_classes=C, missing="onehot")


def test_a_store_of_other_images_is_noticed_at_once(painted: Painted, tmp_path: Path) -> None:
    cells = enlarged(painted.blocks[painted.keys[0]], CELLS)[None]
    with LabelStoreWriter(tmp_path / "others", num_classes=C, top_k=1) as writer:
        for key in painted.keys:
            writer.put(key.replace(".png", ".jpg"), np.ones(cells.shape, np.float32), cells)
    with pytest.raises(MissingLabelMap, match=r"no label map of '000.class/image 0.png'.*'000.class/image 0.jpg'"):
        LabelMapDataset(folder(painted), tmp_path / "others")


@pytest.mark.parametrize("position", [0, 3, 6])
def test_the_first_the_middle_and_the_last_image_are_looked_up(painted: Painted, position: int) -> None:
    keys = list(painted.keys)
    keys[position] = "nowhere.png"
    with pytest.raises(MissingLabelMap, match=r"nowhere\.png"):
        LabelMapDataset(InMemory(painted), painted.store, key=keys)


def test_an_empty_dataset_is_no_mistake(painted: Painted) -> None:
    assert len(LabelMapDataset(Subset(folder(painted), []), painted.store)) == 0


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(())

    def __len__(self) -> int:
        return 1


class Endless(Dataset[Any]):
    def __getitem__(self, index: int) -> Any:
        return index


@pytest.mark.parametrize("dataset", [Stream(), Endless(), iter(()), None])
def test_only_datasets_with_index_and_length(painted: Painted, dataset: Any) -> None:
    with pytest.raises(TypeError, match=rf"map-style dataset, one with .* got {type(dataset).__name__}\.$"):
        LabelMapDataset(dataset, painted.store)


@pytest.mark.parametrize("within", [lambda d: d, lambda d: Subset(d, [0]), lambda d: ConcatDataset([d])])
def test_a_wrapped_dataset_is_not_wrapped_again(painted: Painted, within: Any) -> None:
    dataset = LabelMapDataset(folder(painted), painted.store)
    with pytest.raises(TypeError, match=r"a LabelMapDataset already\. Wrap the image dataset once"):
        LabelMapDataset(within(dataset), painted.store)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"missing": "zero"}, "missing is 'error' or 'onehot', got 'zero'"),
        ({"crop": "whole"}, "crop is 'auto' or 'full', got 'whole'"),
        ({"missing": "onehot", "pooling": None}, "it needs a pooling, got pooling=None"),
        ({"num_classes": 1000}, "num_classes=1000 was asked for, and the label maps have 7 classes"),
        ({"transforms": JOINT}, "transforms= replaces the dataset's own transform, and this dataset has one"),
        ({"label_maps": {}}, "There are no label maps in the mapping given"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_argument_that_does_not_fit_is_named(painted: Painted, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words.replace("(", r"\(")):
        LabelMapDataset(folder(painted), **{"label_maps": painted.store, **arguments})


def test_another_number_of_classes_is_refused_with_the_way_to_say_so(painted: Painted, tmp_path: Path) -> None:
    for key in painted.keys[:3]:
        (tmp_path / key).parent.mkdir(parents=True)
        shutil.copy(painted.root / key, tmp_path / key)
    images = ImageFolder(tmp_path, transform=LEFT)
    with pytest.raises(ValueError, match=r"maps have 7 classes and the dataset has 3\..*num_classes=7\)"):
        LabelMapDataset(images, painted.store)
    assert LabelMapDataset(images, painted.store, num_classes=7)[0][1].shape == (7,)


def test_folders_that_were_numbered_otherwise_are_refused(painted: Painted, tmp_path: Path) -> None:
    cells = enlarged(painted.blocks[painted.keys[0]], CELLS)[None]
    names = sorted(f"{number:03d}.class" for number in range(C))
    indices = dict(zip(names, [1, 0, *range(2, C)], strict=True))
    with LabelStoreWriter(tmp_path / "other", num_classes=C, top_k=1, class_to_idx=indices) as writer:
        for key in painted.keys:
            writer.put(key, np.ones(cells.shape, np.float32), cells)
    with pytest.raises(ValueError, match=r"Class folder '000.class' had index 1 when .* has 0 in this dataset"):
        LabelMapDataset(folder(painted), tmp_path / "other")


def test_a_transform_assigned_beside_a_joint_pipeline_is_refused(painted: Painted) -> None:
    """A loader that assigns ``dataset.transform`` was ignored without a word."""
    dataset = LabelMapDataset(folder(painted, None), painted.store, transforms=JOINT)
    dataset.transform = LEFT
    with pytest.raises(ValueError, match="transforms= replaces the dataset's own transform"):
        dataset[0]


def test_parts_with_different_transforms_are_wrapped_one_by_one(painted: Painted) -> None:
    both = ConcatDataset([folder(painted, LEFT), folder(painted, RANDOM)])
    with pytest.raises(ValueError, match="Wrap each part in a LabelMapDataset and concatenate those"):
        LabelMapDataset(both, painted.store)


def test_a_dataset_with_transforms_of_image_and_target_is_refused(painted: Painted) -> None:
    dataset = folder(painted, None)
    dataset.transforms = lambda image, target: (image, target)
    with pytest.raises(ValueError, match=r"created with transforms=.*Give the pipeline to LabelMapDataset"):
        LabelMapDataset(dataset, painted.store)


class Gives(InMemory):
    def __init__(self, painted: Painted, item: Any) -> None:
        super().__init__(painted)
        self.item = item

    def __getitem__(self, index: int) -> Any:
        return self.item


@pytest.mark.parametrize(
    ("item", "kinds"),
    [
        ({"image": 1}, "dict"),
        (Image.new("RGB", (4, 4)), "Image"),
        ((Image.new("RGB", (4, 4)),), r"\(Image\)"),
        ((Image.new("RGB", (4, 4)), Image.new("RGB", (4, 4)), 3), r"\(Image, Image, int\)"),
        ((Image.new("RGB", (4, 4)), "a/b.jpg", 3), r"\(Image, str, int\)"),
    ],
    ids=["dict", "image", "only an image", "two views", "the path second"],
)
def test_an_item_that_is_no_image_and_target_is_refused(painted: Painted, item: Any, kinds: str) -> None:
    dataset = LabelMapDataset(Gives(painted, item), painted.store, key=painted.keys)
    with pytest.raises(TypeError, match=rf"expects a dataset of \(image, target, ...\), and Gives returned {kinds}\. "):
        dataset[0]


def test_a_dataset_that_does_not_know_its_files_asks_for_key(painted: Painted) -> None:
    with pytest.raises(TypeError, match="InMemory does not say which file"):
        LabelMapDataset(InMemory(painted), painted.store)


@pytest.mark.parametrize(
    "step", [v2.RandomPerspective(), v2.CutMix(num_classes=C), v2.ToPureTensor(), v1.CenterCrop(8)]
)
def test_a_joint_pipeline_that_loses_the_map_is_refused_at_once(painted: Painted, step: Any) -> None:
    pipeline = v2.Compose([v2.RandomResizedCrop(32), step])
    with pytest.raises(UntrackedTransformError, match=rf"would lose its label maps:\n\[1\] {type(step).__name__}"):
        LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline)


def test_a_joint_pipeline_that_blends_moved_images_warns(painted: Painted) -> None:
    pipeline = v2.Compose([v2.RandomResizedCrop(32), v2.AugMix()])
    with pytest.warns(UserWarning, match=r"\[1\] AugMix: AugMix blends copies of the image"):
        LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline)


def first_only(image: Any, label_map: Any) -> Any:
    return image.crop((0, 0, 20, 20)), label_map


def sliced(image: Any, label_map: Any) -> Any:
    return image, label_map[:, :2, :2]


def test_a_joint_pipeline_that_crops_the_image_alone_is_noticed(painted: Painted) -> None:
    dataset = LabelMapDataset(folder(painted, None), painted.store, transforms=first_only)
    with pytest.raises(CropNotSeen, match=r"image of 20 x 20 pixels \(H x W\) and a label map for 84 x 140"):
        dataset[0]


@pytest.mark.parametrize(
    ("pipeline", "got"),
    [(sliced, r"a tensor of shape \(1, 2, 2\)"), (lambda image, label_map: (image, None), "NoneType")],
    ids=["sliced", "None"],
)
def test_a_joint_pipeline_that_gives_no_map_is_noticed(painted: Painted, pipeline: Any, got: str) -> None:
    dataset = LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline)
    with pytest.raises(TypeError, match=rf"The v2 pipeline made {got} of the label map"):
        dataset[0]


def test_crop_full_needs_the_map_at_the_end_of_a_joint_pipeline(painted: Painted) -> None:
    pipeline = v2.Compose([v2.RandomResizedCrop(32), PoolLabelMap()])
    dataset = LabelMapDataset(folder(painted, None), painted.store, transforms=pipeline, crop="full")
    with pytest.raises(ValueError, match=r"take PoolLabelMap\(\) out of it"):
        dataset[0]


def test_a_store_that_is_still_being_written_is_refused(painted: Painted, tmp_path: Path) -> None:
    """The first, the middle and the last image may be there already, and the run would stop hours later."""
    with LabelStoreWriter(tmp_path / "maps.lmdb", num_classes=C, top_k=1, score_kind="probability") as writer:
        for key in (painted.keys[0], painted.keys[len(painted.keys) // 2], painted.keys[-1]):
            cells = enlarged(painted.blocks[key], CELLS)[None]
            writer.put(key, np.ones(cells.shape, np.float32), cells)
        writer.commit()
        with pytest.raises(ValueError, match=r"maps\.lmdb.* is still being written, or its writer was stopped"):
            LabelMapDataset(folder(painted), tmp_path / "maps.lmdb")
        assert len(LabelMapDataset(folder(painted), tmp_path / "maps.lmdb", missing="onehot")) == len(painted.keys)
    assert len(LabelMapDataset(folder(painted), tmp_path / "maps.lmdb")) == len(painted.keys)


# What silently meant something else.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"label_maps": 3}, r"label_maps is the path of a store.* got int: LabelMapDataset\(dataset, label_maps\)"),
        ({"label_maps": {"a": object()}}, "holds LabelMap objects, or is a LabelStore; this one holds object"),
        ({"pooling": LabelPooling}, r"pooling is a LabelPooling\(\) or None, got <class"),
    ],
    ids=["maps", "mapping", "class"],
)
def test_an_argument_of_another_type_is_named(painted: Painted, arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(TypeError, match=words):
        LabelMapDataset(folder(painted), **{"label_maps": painted.store, **arguments})


def test_arguments_in_the_wrong_order_are_told(painted: Painted) -> None:
    with pytest.raises(TypeError, match=r"got ImageFolder: LabelMapDataset\(dataset, label_maps\)"):
        LabelMapDataset([1], folder(painted))


@pytest.mark.parametrize("keys", [lambda keys: keys[:-1], lambda keys: keys * 2], ids=["too few", "too many"])
def test_a_list_of_keys_has_one_for_each_image(painted: Painted, keys: Any) -> None:
    with pytest.raises(ValueError, match=r"key= has \d+ keys for a dataset of 7 images"):
        LabelMapDataset(folder(painted), painted.store, key=keys(painted.keys))


def test_a_target_transform_that_numbers_the_classes_otherwise_is_refused(painted: Painted) -> None:
    """The soft labels never passed through it, and kept the order of the annotator."""
    images = ImageFolder(painted.root, LEFT, target_transform=lambda target: (target + 1) % C)
    with pytest.raises(ValueError, match="target_transform makes class 1 of class 0"):
        LabelMapDataset(images, painted.store)[0]


def test_classes_in_that_error_have_the_names_that_the_store_gives_them(painted: Painted, tmp_path: Path) -> None:
    names = [f"name {index}" for index in range(C)]
    with LabelStoreWriter(tmp_path / "named.lmdb", num_classes=C, top_k=1, class_names=names) as writer:
        for key in painted.keys:
            writer.put(key, np.ones((1, 1, 1), np.float32), np.zeros((1, 1, 1), np.int64))
    images = ImageFolder(painted.root, LEFT, target_transform=lambda target: (target + 1) % C)
    with pytest.raises(ValueError, match="target_transform makes class 1 name 1 of class 0 name 0, and the soft"):
        LabelMapDataset(images, tmp_path / "named.lmdb")[0]


def test_a_transform_that_cannot_be_replaced_is_named(painted: Painted) -> None:
    class Fixed(Dataset[Any]):
        transform = property(lambda self: RANDOM)

        def __len__(self) -> int:
            return 7

        def __getitem__(self, index: int) -> Any:
            return self.transform(picture(painted.blocks[painted.keys[index]])), index

    with pytest.raises(TypeError, match="The transform of Fixed cannot be replaced"):
        LabelMapDataset(Fixed(), painted.store, key=painted.keys)


@pytest.mark.parametrize("kind", ["array", "tensor"])
def test_arrays_and_tensors_that_become_images_first_are_followed(painted: Painted, kind: str) -> None:
    """The crop of the new image was not seen."""
    images = InMemory(painted, v1.Compose([v1.ToPILImage(), v1.RandomResizedCrop(50), v1.ToTensor()]))
    arrays = [np.array(image) for image in images.images]
    images.images = arrays if kind == "array" else [torch.from_numpy(a).permute(2, 0, 1) for a in arrays]
    dataset = LabelMapDataset(images, painted.store, key=painted.keys)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG


def test_tensors_may_have_their_channels_last(painted: Painted) -> None:
    """Their size was read off the width and the channels."""
    transform = v1.Compose([v1.RandomResizedCrop(50), lambda image: torch.from_numpy(np.array(image))])
    dataset = LabelMapDataset(folder(painted, transform), painted.store)
    items = [dataset[i] for i in range(7)]
    assert np.mean([label_error(image.permute(2, 0, 1) / 255, label) for image, label in items]) <= WRONG


def test_a_dataset_within_another_is_found_under_any_name(painted: Painted) -> None:
    class Repeated(Dataset[Any]):
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def __len__(self) -> int:
            return 2 * len(self.inner)

        def __getitem__(self, index: int) -> Any:
            return self.inner[index % len(self.inner)]

    dataset = LabelMapDataset(Repeated(folder(painted, RANDOM)), painted.store, key=painted.keys * 2)
    assert np.mean([label_error(*dataset[i]) for i in range(14)]) <= WRONG


@pytest.mark.parametrize("onehot", [0.0, 1.0])
@pytest.mark.parametrize(
    "target_transform",
    [float, torch.tensor, lambda target: torch.eye(C)[target], lambda target: np.eye(C)[target].tolist()],
    ids=["float", "tensor", "vector", "list"],
)
def test_a_target_may_be_an_index_or_a_vector(painted: Painted, target_transform: Any, onehot: float) -> None:
    images = ImageFolder(painted.root, LEFT, target_transform=target_transform)
    label = LabelMapDataset(images, painted.store, onehot=onehot)[4][1]
    torch.testing.assert_close(label, torch.eye(C)[4] if onehot else left_label(painted, 4))


def test_a_target_of_other_classes_has_no_share_in_a_label(painted: Painted) -> None:
    images = ImageFolder(painted.root, LEFT, target_transform=lambda target: [0.0, 1.0, 0.0])
    with pytest.raises((TypeError, ValueError), match=r"class index, or 7 numbers|target_transform makes class"):
        LabelMapDataset(images, painted.store, onehot=0.5)[0]


def test_bare_scores_are_no_label_where_a_map_keeps_all_classes(painted: Painted, tmp_path: Path) -> None:
    """With K = C the shape of a map that lost its type is that of token labels."""
    with LabelStoreWriter(tmp_path / "all", num_classes=C, top_k=C) as writer:
        for key in painted.keys:
            writer.put(key, np.zeros((C, ROWS, COLUMNS)), np.indices((C, ROWS, COLUMNS))[0])
    images = folder(painted, None)
    with pytest.raises(TypeError, match=r"The v2 pipeline made a tensor of shape \(7, 3, 5\) of the label map"):
        LabelMapDataset(images, tmp_path / "all", transforms=lambda image, maps: (image, maps.flip(-1)))[0]
    pooled = v2.Compose([v2.RandomResizedCrop(32), PoolLabelMap(LabelPooling((ROWS, COLUMNS)))])
    assert LabelMapDataset(images, tmp_path / "all", transforms=pooled)[0][1].shape == (C, ROWS, COLUMNS)


def test_the_parts_of_a_concatenation_have_names_of_their_own(painted: Painted, tmp_path: Path) -> None:
    shutil.copytree(painted.root, tmp_path / "other")
    both = ConcatDataset([folder(painted), ImageFolder(tmp_path / "other", LEFT)])
    with pytest.raises(ValueError, match=r"each have an image '000\.class/image 0\.png', and the label maps"):
        LabelMapDataset(both, painted.store)


def test_a_crop_within_a_dataset_is_followed_beside_a_joint_pipeline(painted: Painted) -> None:
    """Its pixels were those of the crop, and the joint pipeline began with the label of the whole."""

    class Inside(InMemory):
        def __getitem__(self, index: int) -> Any:
            return self.crop(self.images[index]), index

    inside = Inside(painted)
    del inside.transform
    inside.crop = v1.CenterCrop(60)
    dataset = LabelMapDataset(inside, painted.store, transforms=JOINT, key=painted.keys)
    assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG
    whole = LabelMapDataset(inside, painted.store, crop="full", key=painted.keys)[0][1]
    torch.testing.assert_close(whole, LabelMapDataset(folder(painted), painted.store, crop="full")[0][1])


@pytest.mark.parametrize("step", [v1.CenterCrop(60), v1.RandomHorizontalFlip(1), v1.RandomAffine(0, (0.2, 0.2))])
def test_all_steps_within_a_dataset_are_followed(painted: Painted, step: Any) -> None:
    """Whatever came before our crop, or cropped the tensor after it, was refused."""

    class Inside(InMemory):
        def __getitem__(self, index: int) -> Any:
            return self.steps(self.images[index]), index

    inside = Inside(painted)
    del inside.transform
    ours = RandomResizedCropWithLabelMap((40, 50))
    for steps in ([step, ours, v1.ToTensor()], [ours, v1.ToTensor(), v1.RandomCrop((40, 50), padding=20)]):
        inside.steps = v1.Compose(steps)
        dataset = LabelMapDataset(inside, painted.store, key=painted.keys)
        assert np.mean([label_error(*dataset[i]) for i in range(7)]) <= WRONG


def test_a_data_set_of_hugging_face_is_shown_the_way(painted: Painted) -> None:
    arrow = type("Dataset", (), {"__module__": "datasets.arrow_dataset", "__len__": lambda self: 0})()
    with pytest.raises(TypeError, match=r"set_transform\(relabel_transform\(fn, label_maps\)\)"):
        LabelMapDataset(arrow, painted.store)
