"""WebDataset shards read by timm: the label of each image is that of its own crop."""

from __future__ import annotations

import random
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import FastCollateMixup, ImageDataset, IterableImageDataset, Mixup, create_dataset, create_loader
from timm.data.readers import reader_wds
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torchvision import transforms as v1

from tests.painted import WRONG, C, Painted, label_error, maps_of_the_folders, paint
from tests.shards import add, pack
from torchrelabel import LabelMap, LabelMapDataset, LabelStoreWriter
from torchrelabel.errors import CropNotSeen, MissingLabelMap
from torchrelabel.integrations.timm import stream as stream_module
from torchrelabel.integrations.timm.stream import LabelMapStream

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

MEAN, STD = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
V1 = v1.Compose([v1.RandomResizedCrop(40), v1.RandomHorizontalFlip(), v1.ToTensor()])


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    return paint(tmp_path_factory.mktemp("painted"), each=2)


@pytest.fixture(scope="module")
def shards(painted: Painted) -> tuple[Path, str]:
    folder = painted.root.parent / "shards"
    return folder, pack(painted, folder)


@pytest.fixture(scope="module")
def folder_maps(painted: Painted) -> Path:
    return maps_of_the_folders(painted)


def stream(shards: tuple[Path, str], training: bool = True, **options: Any) -> Any:
    folder, split = shards
    return create_dataset("wds/painted", root=str(folder), split=split, is_training=training, batch_size=2, **options)


def losses(dataset: Any, *, mixed: bool = False, collate: bool = True, **options: Any) -> list[float]:
    """What a timm script would print, with random logits for a model."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    arguments = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "label_smoothing": 0.1, "num_classes": C}
    mixer = Mixup(**arguments) if mixed and not collate else None
    loader = create_loader(
        dataset, (3, 32, 32), 2, is_training=True, device=torch.device("cpu"), use_prefetcher=collate,
        collate_fn=FastCollateMixup(**arguments) if mixed and collate else None, persistent_workers=False,
        **{"num_workers": 0, **options},
    )  # fmt: skip
    loss_of = SoftTargetCrossEntropy() if mixed else LabelSmoothingCrossEntropy(0.1)
    found = []
    for epoch in range(2):
        dataset.set_epoch(epoch)
        for images, labels in loader:
            if mixer is not None:
                images, labels = mixer(images, labels)
            generator = torch.Generator().manual_seed(len(found))
            logits = images.mean((1, 2, 3))[:, None] * torch.randn(len(images), C, generator=generator)
            found.append(loss_of(logits, labels).item())
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        {"mixed": True},
        {"mixed": True, "num_workers": 1},
        {"mixed": True, "collate": False},
        {"re_prob": 0.5, "auto_augment": "rand-m9-mstd0.5"},
    ],
    ids=str,
)
def test_maps_of_the_folders_class_change_no_loss(
    options: dict[str, Any], folder_maps: Path, shards: tuple[Path, str]
) -> None:
    ours = losses(LabelMapStream(stream(shards), folder_maps), **options)
    assert len(ours) >= 14
    assert ours == pytest.approx(losses(stream(shards), **options), rel=1e-5)


def test_the_label_is_the_painted_share_of_the_crop(painted: Painted, shards: tuple[Path, str]) -> None:
    dataset = LabelMapStream(stream(shards), painted.store)
    loader = create_loader(
        dataset, (3, 64, 64), 2, is_training=True, device=torch.device("cpu"), color_jitter=0.0, num_workers=1
    )
    errors = [
        label_error(image, label)
        for _ in range(3)
        for images, labels in loader
        for image, label in zip((images * STD + MEAN).clamp(0, 1), labels, strict=True)
    ]
    assert len(errors) >= 40
    assert np.mean(errors) <= WRONG


def test_validation_goes_through_shards_in_order_and_without_maps_there_are_maps(
    painted: Painted, shards: tuple[Path, str]
) -> None:
    dataset = LabelMapStream(stream(shards, training=False), painted.store, pooling=None)
    dataset.transform = V1
    maps = [label for _, label in dataset]
    assert len(maps) == len(dataset) == len(painted.keys)
    assert all(isinstance(one, LabelMap) for one in maps)


def test_it_is_still_timms_dataset_and_the_one_wrapped_is_left_alone(
    painted: Painted, shards: tuple[Path, str]
) -> None:
    plain = stream(shards)
    dataset = LabelMapStream(plain, painted.store)
    dataset.transform = V1
    assert isinstance(dataset, IterableImageDataset)
    assert plain.transform is None
    assert repr(dataset).startswith(f"LabelMapStream({len(plain)} images of ReaderWds, ")


@pytest.mark.parametrize("missing", ["error", "onehot"])
def test_an_image_without_a_map_stops_the_run_or_keeps_its_class(
    missing: str, painted: Painted, shards: tuple[Path, str], tmp_path: Path
) -> None:
    with LabelStoreWriter(tmp_path / "other.lmdb", num_classes=C, top_k=1) as writer:
        writer.put("else.png", np.ones((1, 2, 3), np.float32), np.zeros((1, 2, 3), int))
    dataset = LabelMapStream(stream(shards, training=False), tmp_path / "other.lmdb", missing=missing)
    dataset.transform = V1
    if missing == "error":
        with pytest.raises(MissingLabelMap, match=r"no label map of '000\.class/image 0\.png'"):
            next(iter(dataset))
    else:
        assert [int(label.argmax()) for _, label in dataset][:2] == [0, 1]


def test_names_may_differ_from_keys(painted: Painted, shards: tuple[Path, str], tmp_path: Path) -> None:
    with LabelStoreWriter(tmp_path / "renamed.lmdb", num_classes=C, top_k=1) as writer:
        for key in painted.keys:
            writer.put(f"train/{key[4:]}.JPEG", np.ones((1, 2, 3), np.float32), np.zeros((1, 2, 3), int))
    dataset = LabelMapStream(
        stream(shards), tmp_path / "renamed.lmdb", key=lambda name: f"{name[4:]}.JPEG", key_prefix="train/"
    )
    dataset.transform = V1
    assert next(iter(dataset))[1].argmax() == 0


def test_a_pipeline_that_cannot_be_followed_is_an_error_and_the_whole_image_a_choice(
    painted: Painted, shards: tuple[Path, str]
) -> None:
    dataset = LabelMapStream(stream(shards), painted.store)
    dataset.transform = np.asarray
    with pytest.raises(CropNotSeen, match=r"while the pipeline <.*asarray> ran"):
        next(iter(dataset))
    for options, transform in (({"crop": "full"}, np.asarray), ({}, v1.ToTensor())):
        dataset = LabelMapStream(stream(shards), painted.store, **options)
        dataset.transform = transform
        image, label = next(iter(dataset))
        assert label_error(image, label) <= WRONG


@pytest.mark.parametrize("case", ["a folder", "another reader", "read before"])
def test_what_does_not_tell_names_is_refused(
    case: str, painted: Painted, shards: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if case == "read before":
        monkeypatch.setattr(reader_wds, "_decode", stream_module._decode)  # as in a process of its own
        dataset = stream(shards)
        next(iter(dataset))
        dataset = LabelMapStream(dataset, painted.store)
        with pytest.raises(TypeError, match="Wrap the dataset before anything is read from it"):
            next(iter(dataset))
        return
    dataset = ImageDataset(str(painted.root))
    if case == "another reader":
        dataset = IterableImageDataset(str(painted.root), reader=dataset.reader)
    with pytest.raises(
        TypeError, match=r"^LabelMapStream wraps timm's dataset of WebDataset shards \(wds/\.\.\.\), got"
    ):
        LabelMapStream(dataset, painted.store)


def test_a_label_map_dataset_of_shards_names_the_stream(painted: Painted, shards: tuple[Path, str]) -> None:
    with pytest.raises(TypeError, match=r"go into torchrelabel\.integrations\.timm\.LabelMapStream"):
        LabelMapDataset(stream(shards), painted.store)


def test_one_broken_image_does_not_shift_the_names(painted: Painted, tmp_path: Path) -> None:
    """timm goes on to the next image; its label has to be its own."""
    with tarfile.open(tmp_path / "train-0.tar", "w") as tar:
        for key in painted.keys[:4]:
            broken = key == painted.keys[1]
            add(tar, key, b"no image" if broken else (painted.root / key).read_bytes())
            add(tar, f"{key.rpartition('.')[0]}.cls", b"0")
    dataset = LabelMapStream(stream((tmp_path, "train-0.tar|4"), training=False), painted.store)
    dataset.transform = V1
    errors = [label_error(image, label) for image, label in dataset]
    assert len(errors) == 3
    assert np.mean(errors) <= 2 * WRONG
