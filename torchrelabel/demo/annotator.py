"""The demo's annotator: a small model of timm's, trained on more and cleaner scenes than the student gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel.data.records import label_map_of
from torchrelabel.demo.folders import SceneFolder
from torchrelabel.demo.training import train
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.view_box import ViewBox

TRAINED_AT = 128
SCALE = (0.5, 1.0)  # mild: a crop without the large digit would teach the annotator to name what is not there
ANNOTATES_AT = 192  # crops show their digits larger than whole scenes do, so whole scenes are shown larger; 6 x 6 cells


def annotator_name() -> str:
    """Name the model of timm's that is trained."""
    # timm before 1.0.10 has no models made for tests; its smallest ResNet learns as well, in several times the time.
    # Delete once the oldest timm that is supported has test_efficientnet.
    return "test_efficientnet" if timm.is_model("test_efficientnet") else "resnet10t"


def train_annotator(
    clean: SceneFolder,
    checkpoint: Path,
    *,
    epochs: int,
    workers: int,
    on_epoch: Callable[[int, float, float | None], None] | None = None,
) -> float:
    """Train the annotator and save its weights.

    Args:
        clean: The folder to learn from, without wrong labels.
        checkpoint: The file to write.
        epochs: Passes over the folder.
        workers: Processes that load images.
        on_epoch: As for ``train``.

    Returns:
        Seconds of training.
    """
    torch.manual_seed(0)
    model: Any = timm.create_model(annotator_name(), num_classes=10)
    config = model.pretrained_cfg
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop(TRAINED_AT, scale=SCALE, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    trained = train(
        model,
        ImageFolder(str(clean.root), transform=pipeline),
        epochs=epochs,
        batch_size=32,
        learning_rate=1e-2,
        seed=0,
        criterion=nn.CrossEntropyLoss(),
        workers=workers,
        on_epoch=on_epoch,
    )
    torch.save(model.state_dict(), checkpoint)
    return trained.seconds


def agreement(folder: SceneFolder, store: LabelStore) -> tuple[float, float]:
    """Measure how well the label maps know where which digit is.

    Each digit's box is taken as a crop, and its label pooled from the map, as a random crop's label is in training.

    Args:
        folder: The folder that was annotated.
        store: Its label maps.

    Returns:
        For large and for small digits, the share whose own class is the largest in the label pooled over their box.
    """
    pooling, header = LabelPooling(), store.header
    right: dict[bool, list[bool]] = {True: [], False: []}
    for key, record in folder.records.items():
        height, width = record.size
        for number, (digit, (x1, y1, x2, y2)) in enumerate(zip(record.digits, record.boxes, strict=True)):
            box = ViewBox(x1 / width, y1 / height, x2 / width, y2 / height)
            label = pooling(label_map_of(store[key], header, record.size, box))
            right[number == 0].append(int(label.argmax()) == digit)
    return _share(right[True]), _share(right[False])


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)
