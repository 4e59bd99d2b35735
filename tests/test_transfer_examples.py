"""The transfer examples train on a handful of made images, and begin with the weights that they are given."""

from __future__ import annotations

import json
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from tests.annotate.models import make_model
from tests.painted import COLOURS

# An older timm loads weights in a way that torch 2.4 warns of.
pytestmark = pytest.mark.filterwarnings("ignore:You are using `torch.load`:FutureWarning")

EXAMPLES = Path(__file__).parent.parent / "examples"
NAME, PX = "resnet10t", 64


def example(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / f"{name}.py"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of 1000 classes, as label maps of ImageNet leave one."""
    path = tmp_path_factory.mktemp("weights") / "relabel.pth"
    torch.save({"state_dict": make_model(NAME).state_dict()}, path)
    return path


def paint(path: Path, left: int, right: int) -> None:
    """An image of two colours side by side."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(COLOURS[np.array([[left, right]]).repeat(PX, 0).repeat(PX // 2, 1)]).save(path)


def test_the_fine_grained_example_learns_to_tell_colours(tmp_path: Path, checkpoint: Path) -> None:
    for part in ("train", "val"):
        for number in range(12):
            paint(tmp_path / part / f"class {number % 3}" / f"{number}.png", number % 3, number % 3)
    settings = {"model": NAME, "size": PX, "batch_size": 6, "workers": 0}
    top1 = example("transfer_fine_grained")["main"](tmp_path, checkpoint, steps=8, lr=0.01, **settings)
    assert top1 > 0.6


def test_the_multi_label_example_learns_which_colours_are_there(tmp_path: Path, checkpoint: Path) -> None:
    table = {}
    for left in range(4):
        for right in range(4):
            paint(tmp_path / f"{left}{right}.png", left, right)
            table[f"{left}{right}.png"] = sorted({left, right})
    for name in ("train", "val"):
        (tmp_path / f"{name}.json").write_text(json.dumps(table))
    main = example("transfer_multilabel")["main"]
    tables = [tmp_path / "train.json", tmp_path / "val.json"]
    settings = {"model": NAME, "size": PX, "batch_size": 8, "workers": 0, "lr": 3e-3}
    before = main(tmp_path, *tables, checkpoint, epochs=0, **settings)
    assert main(tmp_path, *tables, checkpoint, epochs=4, **settings) > max(0.8, before)


def test_the_detection_example_begins_with_the_weights_and_its_loss_falls(checkpoint: Path) -> None:
    made = example("transfer_detection")
    torch.manual_seed(0)
    few = {"rpn_pre_nms_top_n_train": 32, "rpn_post_nms_top_n_train": 16, "box_batch_size_per_image": 16}
    detector = made["make_detector"](NAME, 2, str(checkpoint), size=PX, **few)
    body, trained = detector.backbone.body.state_dict(), timm.create_model(NAME, checkpoint_path=str(checkpoint))
    assert torch.equal(body["conv1.0.weight"], trained.state_dict()["conv1.0.weight"])
    assert torch.equal(body["layer4.0.conv2.weight"], trained.state_dict()["layer4.0.conv2.weight"])
    samples = []
    for number in range(2):
        pixels = torch.zeros(3, PX, PX + 16)
        pixels[number, 8:40, 16:56] = 1
        samples.append((pixels, {"boxes": torch.tensor([[16.0, 8, 56, 40]]), "labels": torch.tensor([number + 1])}))
    losses = made["train"](detector, [samples], epochs=3, lr=0.005)
    assert losses[-1] < losses[0]


def test_the_annotations_of_voc_become_boxes_and_classes() -> None:
    box = {"xmin": "1", "ymin": "2", "xmax": "30", "ymax": "40"}
    annotation = {"annotation": {"object": [{"name": "cat", "bndbox": box}]}}
    pixels, target = example("transfer_detection")["as_target"](Image.new("RGB", (50, 60)), annotation, ["bird", "cat"])
    assert pixels.shape == (3, 60, 50)
    assert (target["boxes"].tolist(), target["labels"].tolist()) == ([[1, 2, 30, 40]], [2])
