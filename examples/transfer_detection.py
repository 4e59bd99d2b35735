"""Detect objects with a backbone that was trained on label maps: torchvision's Faster R-CNN, as in ReLabel's table 9.

    python examples/transfer_detection.py VOC resnet50 relabel.pth

The folder is Pascal VOC's, with VOCdevkit/VOC2012 in it. The paper trains on COCO, images of 1200 x 800 px.

Method: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022
"""

import sys
from functools import partial
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import VOCDetection
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.transforms.functional import to_tensor


class Backbone(nn.Module):
    """A network of timm's as the four feature maps that a detector takes."""

    def __init__(self, model, checkpoint=None, out_channels=256):
        super().__init__()
        trained = timm.create_model(model, checkpoint_path=checkpoint or "")
        self.body = timm.create_model(model, features_only=True, out_indices=(1, 2, 3, 4))
        wanting, _ = self.body.load_state_dict(trained.state_dict(), strict=False)  # all but what classifies
        assert not wanting, f"The weights lack {wanting}"
        self.pyramid = FeaturePyramidNetwork(self.body.feature_info.channels(), out_channels)
        self.out_channels = out_channels

    def forward(self, images):
        """Images [B, 3, H, W] to feature maps by name, of strides 4 to 32."""
        return self.pyramid({str(level): features for level, features in enumerate(self.body(images))})


def make_detector(model, num_classes, checkpoint=None, size=800, **settings):
    """Faster R-CNN for so many classes and the background; images are resized to ``size`` on their shorter side."""
    anchors = AnchorGenerator(((32,), (64,), (128,), (256,)), ((0.5, 1.0, 2.0),) * 4)
    settings = {"min_size": size, "max_size": size * 3 // 2, **settings}
    return FasterRCNN(Backbone(model, checkpoint), num_classes + 1, rpn_anchor_generator=anchors, **settings)


def as_target(image, annotation, classes):
    """What VOCDetection gives, as a detector takes it: pixels, and boxes xyxy with their classes from 1."""
    objects = annotation["annotation"]["object"]
    boxes = [[float(each["bndbox"][side]) for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects]
    labels = [1 + classes.index(each["name"]) for each in objects]
    return to_tensor(image), {"boxes": torch.tensor(boxes), "labels": torch.tensor(labels)}


def train(detector, loader, epochs=12, lr=0.02):
    """Train, and return the loss of each step."""
    optimizer = torch.optim.SGD(detector.train().parameters(), lr, momentum=0.9, weight_decay=1e-4)
    device = next(detector.parameters()).device
    losses = []
    for _ in range(epochs):
        for samples in loader:
            targets = [{name: value.to(device) for name, value in target.items()} for _, target in samples]
            loss = sum(detector([image.to(device) for image, _ in samples], targets).values())  # its four losses
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    return losses


if __name__ == "__main__":
    _, data, model, checkpoint = sys.argv
    lists = Path(data, "VOCdevkit/VOC2012/ImageSets/Main").glob("*_train.txt")
    classes = sorted(path.stem.removesuffix("_train") for path in lists)
    images = VOCDetection(data, image_set="train", transforms=partial(as_target, classes=classes))
    detector = make_detector(model, len(classes), checkpoint).to("cuda" if torch.cuda.is_available() else "cpu")
    train(detector, DataLoader(images, 8, shuffle=True, num_workers=4, collate_fn=list))
    torch.save(detector.state_dict(), "detector.pth")
