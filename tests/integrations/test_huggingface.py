"""Batch functions of Hugging Face's scripts give soft labels for their crops, and losses that take them."""

from __future__ import annotations

import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy, one_hot
from torchvision import transforms as v1

from tests.painted import WRONG, C, Painted, label_error, paint
from torchrelabel import CropNotSeen, LabelStore, MissingLabelMap, RandomResizedCropWithLabelMap
from torchrelabel.integrations.huggingface import model_loss, relabel_transform, soft_loss

CROP = v1.Compose([v1.RandomResizedCrop(64), v1.RandomHorizontalFlip(), v1.ToTensor()])


def train_transforms(batch: dict[str, Any]) -> dict[str, Any]:
    """As in Hugging Face's example: the images stay in the batch, beside the pixels."""
    batch["pixel_values"] = [CROP(image.convert("RGB")) for image in batch["image"]]
    return batch


@pytest.fixture
def painted(tmp_path: Path) -> Painted:
    return paint(tmp_path)


def batch_of(painted: Painted, numbers: Any = range(C)) -> dict[str, Any]:
    images = []
    for number in numbers:
        image = Image.open(painted.root / painted.keys[number])
        image.load()
        images.append(image)
    return {"image": images, "label": list(numbers)}


def test_the_label_is_the_painted_share_of_the_crop(painted: Painted) -> None:
    transform = relabel_transform(train_transforms, painted.store)
    torch.manual_seed(0)
    errors = []
    for _ in range(5):
        batch = transform(batch_of(painted))
        errors += [label_error(*pair) for pair in zip(batch["pixel_values"], batch["label"], strict=True)]
    assert np.mean(errors) <= WRONG


def test_labels_are_lists_of_floats_as_a_collate_function_wants_them(painted: Painted) -> None:
    labels = relabel_transform(train_transforms, painted.store)(batch_of(painted))["label"]
    assert torch.tensor(labels).shape == (C, C)


def test_pixels_and_random_draws_are_those_of_the_function(painted: Painted) -> None:
    pixels = []
    for transform in (train_transforms, relabel_transform(train_transforms, painted.store)):
        torch.manual_seed(4)
        pixels.append((torch.stack(transform(batch_of(painted))["pixel_values"]), torch.rand(1)))
    assert torch.equal(pixels[0][0], pixels[1][0])
    assert torch.equal(pixels[0][1], pixels[1][1])


def test_pixels_that_are_stacked_already_are_joined(painted: Painted) -> None:
    def stacked(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": torch.stack([CROP(image) for image in batch["image"]]), "labels": batch["label"]}

    batch = relabel_transform(stacked, painted.store)(batch_of(painted, [2, 5]))
    assert batch["pixel_values"].shape == (2, 3, 64, 64)
    assert batch["labels"] == [2, 5]
    assert len(batch["label"]) == 2


def test_the_images_that_stay_in_the_batch_are_plain_ones(painted: Painted) -> None:
    batch = relabel_transform(train_transforms, painted.store)(batch_of(painted))
    assert {type(image) for image in batch["image"]} == {Image.Image}


@pytest.mark.parametrize("missing", ["label", "image"])
def test_a_batch_without_labels_or_images_goes_through_the_function_alone(missing: str, painted: Painted) -> None:
    batch = batch_of(painted)
    del batch[missing]
    assert relabel_transform(dict, painted.store)(batch) == batch


def test_columns_may_have_other_names(painted: Painted) -> None:
    def transforms(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [CROP(image) for image in batch["img"]]}

    batch = batch_of(painted)
    renamed = {"img": batch["image"], "fine_label": batch["label"]}
    result = relabel_transform(transforms, painted.store, "img", "fine_label")(renamed)
    assert len(result["fine_label"][3]) == C


def test_a_drop_in_crop_tells_of_tensors_too(painted: Painted) -> None:
    crop = v1.Compose([v1.ToTensor(), RandomResizedCropWithLabelMap((48, 64), antialias=True)])

    def transforms(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [crop(image) for image in batch["image"]]}

    torch.manual_seed(1)
    batch = relabel_transform(transforms, painted.store)(batch_of(painted))
    assert np.mean([label_error(*p) for p in zip(batch["pixel_values"], batch["label"], strict=True)]) <= WRONG


@pytest.mark.parametrize(
    "steps",
    [
        [v1.Resize((64, 64)), v1.ToTensor()],
        [v1.ColorJitter(0.1), v1.RandomResizedCrop(64), v1.ToTensor()],
        [v1.RandomResizedCrop(64), v1.ToTensor(), v1.CenterCrop(32)],
    ],
    ids=["no crop", "a crop of a new image", "a second crop of the tensor"],
)
def test_a_crop_that_is_not_seen_is_refused(steps: Any, painted: Painted) -> None:
    pipeline = v1.Compose(steps)

    def transforms(batch: dict[str, Any]) -> dict[str, Any]:
        return {"pixel_values": [pipeline(image) for image in batch["image"]]}

    with pytest.raises(CropNotSeen):
        relabel_transform(transforms, painted.store)(batch_of(painted))


def test_images_without_a_name_need_a_key(painted: Painted) -> None:
    batch = batch_of(painted, [4, 1])
    batch["image"] = [image.convert("RGB") for image in batch["image"]]
    with pytest.raises(TypeError, match=r"does not know the file .*relabel_transform\(\.\.\., key=\)"):
        relabel_transform(train_transforms, painted.store)(dict(batch))
    transform = relabel_transform(train_transforms, painted.store, key=lambda row: painted.keys[row["label"]])
    result = transform(batch)
    assert np.mean([label_error(*p) for p in zip(result["pixel_values"], result["label"], strict=True)]) <= WRONG


def test_a_missing_map_is_named(painted: Painted) -> None:
    transform = relabel_transform(train_transforms, painted.store, key=lambda row: "nowhere.png")
    with pytest.raises(MissingLabelMap, match=r"nowhere\.png"):
        transform(batch_of(painted))


def test_a_missing_map_may_be_a_one_hot_label(painted: Painted) -> None:
    transform = relabel_transform(train_transforms, painted.store, key=lambda row: "nowhere", missing="onehot")
    assert transform(batch_of(painted, [5]))["label"] == [one_hot(torch.tensor(5), C).tolist()]


def test_images_that_are_not_decoded_are_refused(painted: Painted) -> None:
    batch = {"image": [{"path": "x.png", "bytes": None}], "label": [0]}
    with pytest.raises(TypeError, match=r"holds dict, .*cast_column\('image', datasets\.Image\(\)\)"):
        relabel_transform(train_transforms, painted.store)(batch)


def test_missing_is_one_of_two_words(painted: Painted) -> None:
    with pytest.raises(ValueError, match="missing is 'error' or 'onehot', got 'skip'"):
        relabel_transform(train_transforms, painted.store, missing="skip")


def test_it_is_pickled_for_workers(painted: Painted) -> None:
    transform = pickle.loads(pickle.dumps(relabel_transform(train_transforms, LabelStore(painted.store))))
    assert len(transform(batch_of(painted))["label"][0]) == C


# Losses


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(6, C, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "wrap",
    [lambda x: {"logits": x}, lambda x: SimpleNamespace(logits=x), lambda x: (x, "hidden states")],
    ids=["a mapping", "an object", "a tuple"],
)
def test_the_loss_of_one_hot_labels_is_that_of_their_classes(wrap: Any, logits: torch.Tensor) -> None:
    labels = torch.tensor([0, 3, 3, 6, 1, 2])
    expected = cross_entropy(logits, labels)
    torch.testing.assert_close(soft_loss(wrap(logits), labels), expected)
    torch.testing.assert_close(soft_loss(wrap(logits), one_hot(labels, C).float()), expected)


@pytest.mark.parametrize("soft", [False, True])
def test_accumulated_steps_add_up_to_the_mean_over_all_images(soft: bool, logits: torch.Tensor) -> None:
    """The Trainer counts the entries of all labels that are not -100, be they soft or not."""
    labels = torch.tensor([0, 3, 3, 6, 1, 2])
    targets = one_hot(labels, C).float() if soft else labels
    counted = targets.ne(-100).sum()
    parts = [soft_loss({"logits": logits[p]}, targets[p], counted) for p in (slice(0, 4), slice(4, 6))]
    torch.testing.assert_close(parts[0] + parts[1], cross_entropy(logits, labels))


def test_the_config_of_a_model_is_left_alone(logits: torch.Tensor) -> None:
    config = SimpleNamespace(problem_type=None, num_labels=C)
    model_loss(logits.softmax(-1), logits, config, unknown="yes")
    assert config.problem_type is None


def test_labels_of_other_classes_are_refused(logits: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"labels are \[6, 5\] and the logits \[6, 7\].*num_labels=5"):
        model_loss(torch.rand(6, 5), logits)


def test_a_model_of_transformers_takes_soft_labels_and_then_class_indices(logits: torch.Tensor) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=C, problem_type=None
    )
    model = transformers.ResNetForImageClassification(config).eval()
    model.loss_function = model_loss
    images, labels = torch.rand(6, 3, 32, 48), torch.tensor([0, 3, 3, 6, 1, 2])
    with torch.no_grad():
        soft = model(pixel_values=images, labels=one_hot(labels, C).float()).loss
        torch.testing.assert_close(soft, model(pixel_values=images, labels=labels).loss)
    assert config.problem_type is None
