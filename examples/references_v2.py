"""Train with presets, MixUp and CutMix, in the shape of torchvision's classification references.

    python examples/references_v2.py imagenet                                      # class indices, as ever
    python examples/references_v2.py imagenet --label-maps imagenet/maps.lmdb      # a soft label for what a crop shows

The changed lines are marked: two, and one around the mixers. Evaluation stays as it is.
Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, and the interfaces of torchvision.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, default_collate
from torchvision import models
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, mix_soft  # changed line 1


class TrainingPreset:
    """What happens to an image, as one callable."""

    def __init__(self, size, flip=0.5, erase=0.1):
        self.steps = v2.Compose(
            [
                v2.RandomResizedCrop(size, antialias=True),
                v2.RandomHorizontalFlip(flip),
                v2.TrivialAugmentWide(),
                v2.PILToTensor(),
                v2.ToDtype(torch.float, scale=True),
                v2.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
                v2.RandomErasing(erase),
            ]
        )

    def __call__(self, image):
        return self.steps(image)


def main(
    data, label_maps=None, arch="resnet18", size=176, batch_size=128, epochs=100, workers=4, seed=0, smoothing=0.1
):
    """Train a model, and return the loss of each step."""
    torch.manual_seed(0)
    train_set = ImageFolder(Path(data) / "train", TrainingPreset(size))
    classes = len(train_set.classes)
    if label_maps:
        train_set = LabelMapDataset(train_set, label_maps)  # changed line 2
    mixer = v2.RandomChoice([v2.MixUp(alpha=0.2, num_classes=classes), v2.CutMix(num_classes=classes)])
    mixer = mix_soft(mixer)  # changed around the mixers: soft labels are mixed as class indices are

    def collate(batch):
        return mixer(*default_collate(batch))

    loader = DataLoader(train_set, batch_size, shuffle=True, num_workers=workers, collate_fn=collate, drop_last=True)
    model = models.get_model(arch, num_classes=classes)
    loss_of = nn.CrossEntropyLoss(label_smoothing=smoothing)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=2e-5)
    losses = []
    for epoch in range(epochs):
        for images, target in loader:
            loss = loss_of(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--label-maps")
    for option, default in {"size": 176, "batch-size": 128, "epochs": 100, "workers": 4}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    main(**vars(parser.parse_args()))
