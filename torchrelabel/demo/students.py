"""The demo's student: one small network, learning the same crops from two kinds of labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision.datasets import ImageFolder
from torchvision.transforms import RandomResizedCrop as CropParameters
from torchvision.transforms import v2

from torchrelabel.data.dataset import LabelMapDataset
from torchrelabel.demo.folders import SceneFolder
from torchrelabel.demo.training import Trained, predict, train
from torchrelabel.transforms import RandomResizedCropWithLabelMap

SIZE = 48
SCALE = (0.08, 1.0)  # torchvision's default, and the paper's
RATIO = (3 / 4, 4 / 3)
ONE_HOT, RELABEL = "one-hot", "ReLabel"
LABEL_KINDS = (ONE_HOT, RELABEL)
CURVE_STEP = 3  # after each epoch, every third test scene: enough for a curve


@dataclass(frozen=True)
class HeldOutScenes:
    """Test images in memory, with what counts as right.

    Attributes:
        images: ``[N, 3, S, S]``.
        large: The large digit of each, ``[N]``.
        present: True for each digit present, ``[N, 10]``.
    """

    images: Tensor
    large: Tensor
    present: Tensor

    def every(self, step: int) -> HeldOutScenes:
        """Take every ``step``-th scene."""
        return HeldOutScenes(self.images[::step], self.large[::step], self.present[::step])


@dataclass(frozen=True)
class StudentRun:
    """One student, trained.

    Attributes:
        labels: Kind of labels.
        seed: Seed of its weights, of the order of the images and of the crops.
        right: For each test scene, whether it names the large digit.
        any_present: Share of test scenes where it names a digit that is present.
        trained: Losses, top-1 on some of the test scenes after each epoch, seconds.
    """

    labels: str
    seed: int
    right: tuple[bool, ...]
    any_present: float
    trained: Trained

    @property
    def top1(self) -> float:
        """Share of test scenes whose large digit it names."""
        return sum(self.right) / len(self.right)


def make_student(seed: int) -> nn.Module:
    """Build the student, four convolutions and a linear layer; the same seed gives the same weights."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    channels = 3
    for width, stride in ((16, 2), (32, 1), (64, 2), (96, 1)):
        layers += [nn.Conv2d(channels, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
        channels = width
    # Maximum rather than mean: the digit covers few of the cells, and 460 steps are few to learn to ignore the rest.
    return nn.Sequential(*layers, nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def training_set(labels: str, folder: Path, label_maps: Path) -> tuple[Dataset[Any], nn.Module]:
    """Return the dataset of a kind of labels, and the loss that goes with it; the crops are the same for all kinds."""
    if labels == RELABEL:
        pipeline = v2.Compose([RandomResizedCropWithLabelMap(SIZE, SCALE, RATIO, antialias=True), *_to_input()])
        return LabelMapDataset(ImageFolder(str(folder)), label_maps, transforms=pipeline), nn.CrossEntropyLoss()
    pipeline = v2.Compose([v2.RandomResizedCrop(SIZE, SCALE, RATIO, antialias=True), *_to_input()])
    return ImageFolder(str(folder), transform=pipeline), nn.CrossEntropyLoss()


def load_test_scenes(folder: SceneFolder) -> HeldOutScenes:
    """Load the test scenes once, whole and squashed to the student's size."""
    dataset = ImageFolder(
        str(folder.root), transform=v2.Compose([v2.Resize((SIZE, SIZE), antialias=True), *_to_input()])
    )
    keys = [Path(path).relative_to(folder.root).as_posix() for path, _ in dataset.samples]
    present = torch.zeros(len(keys), 10, dtype=torch.bool)
    for index, key in enumerate(keys):
        present[index, list(folder.records[key].digits)] = True
    large = torch.tensor([folder.records[key].digits[0] for key in keys])
    return HeldOutScenes(torch.stack([image for image, _ in dataset]), large, present)


def train_student(
    labels: str,
    seed: int,
    folder: Path,
    label_maps: Path,
    test_scenes: HeldOutScenes,
    *,
    epochs: int,
    workers: int,
    on_epoch: Callable[[int, float, float | None], None] | None = None,
) -> StudentRun:
    """Train a student on one kind of labels and measure it.

    Args:
        labels: One of ``LABEL_KINDS``.
        seed: Seed of its weights, of the order of the images and of the crops.
        folder: The image folder to learn from.
        label_maps: The folder's label maps.
        test_scenes: What to measure on.
        epochs: Passes over the folder.
        workers: Processes that load images.
        on_epoch: As for ``train``.
    """
    dataset, criterion = training_set(labels, folder, label_maps)
    some = test_scenes.every(CURVE_STEP)
    student = make_student(seed)
    trained = train(
        student,
        dataset,
        epochs=epochs,
        batch_size=64,
        learning_rate=4e-3,
        seed=seed,
        criterion=criterion,
        workers=workers,
        test=lambda model: _right(model, some).float().mean().item(),
        on_epoch=on_epoch,
    )
    named = predict(student, test_scenes.images)
    any_present = test_scenes.present[torch.arange(len(named)), named].float().mean().item()
    return StudentRun(labels, seed, tuple((named == test_scenes.large).tolist()), any_present, trained)


def missing_digits(folder: SceneFolder, seed: int, crops_per_scene: int) -> tuple[float, float]:
    """Count the random crops whose label names a digit that they do not show.

    Args:
        folder: The folder that the students learn from.
        seed: Seed of the crops.
        crops_per_scene: Crops drawn of each scene, as the students' pipeline draws them.

    Returns:
        The share of crops without any pixel of the labelled digit's box, and the share with less than half of it.
    """
    torch.manual_seed(seed)
    none = less_than_half = 0
    for record in folder.records.values():
        labelled = record.boxes[record.digits.index(record.label)]
        for _ in range(crops_per_scene):
            visible = visible_share(labelled, draw_crop(record.size))
            none += visible == 0
            less_than_half += visible < 0.5
    crops = len(folder.records) * crops_per_scene
    return none / crops, less_than_half / crops


def draw_crop(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """Draw a crop of an image of ``size`` (H, W), as the students' pipeline does: xyxy in pixels."""
    top, left, height, width = CropParameters.get_params(torch.empty(3, *size), list(SCALE), list(RATIO))
    return left, top, left + width, top + height


def visible_share(box: Sequence[int], crop: Sequence[int]) -> float:
    """Return the share of a box's area that a crop shows, both xyxy in pixels."""
    width = min(box[2], crop[2]) - max(box[0], crop[0])
    height = min(box[3], crop[3]) - max(box[1], crop[1])
    return max(width, 0) * max(height, 0) / ((box[2] - box[0]) * (box[3] - box[1]))


def _to_input() -> list[nn.Module]:
    return [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.4] * 3, [0.2] * 3)]


def _right(model: nn.Module, test_scenes: HeldOutScenes) -> Tensor:
    return predict(model, test_scenes.images) == test_scenes.large
