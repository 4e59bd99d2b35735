"""The demo's annotator: a small model of timm's with weights that the package ships, as others ship theirs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import timm
import torch
from torchvision.datasets.folder import default_loader
from torchvision.transforms import v2

from torchrelabel.data.records import label_map_of
from torchrelabel.demo.folders import SceneFolder
from torchrelabel.errors import TorchRelabelError
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.view import ViewBox

MODEL = "test_efficientnet"
WEIGHTS = Path(__file__).with_name("annotator.pth")  # what make_annotator.py wrote
TRAINED_AT = 128


def copy_annotator(checkpoint: Path) -> None:
    """Put the annotator's weights where the command that annotates can be told to find them.

    Args:
        checkpoint: The file to write.

    Raises:
        TorchRelabelError: If timm is too old to have the model, naming the pip command.
    """
    # The package itself works with timm 1.0.3. Delete once the oldest timm that is supported has the model.
    if not timm.is_model(MODEL):
        raise TorchRelabelError(
            f"the demo's annotator is timm's {MODEL}, which timm {timm.__version__} does not have: timm 1.0.10 was the "
            'first. Install a newer one with: pip install --upgrade "timm>=1.0.10"'
        )
    shutil.copyfile(WEIGHTS, checkpoint)


@torch.inference_mode()
def annotator_top1(checkpoint: Path, folder: SceneFolder) -> float:
    """Measure the annotator as the classifier that it is, on whole scenes.

    Args:
        checkpoint: Its weights.
        folder: The test scenes.

    Returns:
        Share of scenes whose large digit it names.
    """
    model: Any = timm.create_model(MODEL, num_classes=10)
    model.load_state_dict(torch.load(checkpoint, map_location="cpu", weights_only=True))
    model.eval()
    config = model.pretrained_cfg
    pipeline = v2.Compose(
        [
            v2.Resize((TRAINED_AT, TRAINED_AT), v2.InterpolationMode.BICUBIC, antialias=True),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(config["mean"], config["std"]),
        ]
    )
    right: list[bool] = []
    keys = list(folder.records)
    for start in range(0, len(keys), 50):
        batch = keys[start : start + 50]
        images = torch.stack([pipeline(default_loader(str(folder.root / key))) for key in batch])
        large = torch.tensor([folder.records[key].digits[0] for key in batch])
        right += (model(images).argmax(dim=1) == large).tolist()
    return _share(right)


def agreement(folder: SceneFolder, store: LabelStore) -> tuple[float, float]:
    """Measure how well the label maps know where which digit is.

    Each digit's box is taken as a crop, and its label pooled from the map alone, by the paper's rule.

    Args:
        folder: The folder that was annotated.
        store: Its label maps.

    Returns:
        For large and for small digits, the share whose own class is the largest in the label pooled over their box.
    """
    # What the map alone says: calibrated labels are for crops of training, and most digits are smaller.
    pooling, header = LabelPooling(fill="zero"), store.header
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
