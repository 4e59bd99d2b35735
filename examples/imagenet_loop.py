"""Train a torchvision model in a loop of one's own, in the shape of PyTorch's ImageNet example.

    python examples/imagenet_loop.py imagenet                                      # class indices, as ever
    python examples/imagenet_loop.py imagenet --label-maps imagenet/maps.lmdb      # a soft label for what a crop shows

The folder holds train and val, one folder a class in each. The changed lines are marked: two, and one in the accuracy.
Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, and the interfaces of torchvision.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms
from torchvision.datasets import ImageFolder

from torchrelabel import LabelMapDataset, hard  # changed line 1

NORMALIZE = transforms.Normalize(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])


def accuracy(output, target):
    """The percentage of samples whose class is the model's first guess."""
    target = hard(target)  # changed in the accuracy: soft labels count by their largest share
    return 100 * (output.argmax(1) == target).float().mean().item()


def evaluate(model, loader):
    """The accuracy on a validation set, which keeps its class indices."""
    model.eval()
    with torch.no_grad():
        hits = [accuracy(model(images), target) * len(images) for images, target in loader]
    return sum(hits) / len(loader.dataset)


def main(data, label_maps=None, arch="resnet18", size=224, batch_size=256, epochs=90, lr=0.1, workers=4):
    """Train a model, and return the loss of each step."""
    torch.manual_seed(0)
    augment = transforms.Compose(
        [transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), transforms.ToTensor(), NORMALIZE]
    )
    whole = transforms.Compose(
        [transforms.Resize(size * 8 // 7), transforms.CenterCrop(size), transforms.ToTensor(), NORMALIZE]
    )
    train_set = ImageFolder(Path(data) / "train", augment)
    val_set = ImageFolder(Path(data) / "val", whole)
    model = models.get_model(arch, num_classes=len(train_set.classes))
    if label_maps:
        train_set = LabelMapDataset(train_set, label_maps)  # changed line 2
    train_loader = DataLoader(train_set, batch_size, shuffle=True, num_workers=workers)
    val_loader = DataLoader(val_set, batch_size, num_workers=workers)

    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=1e-4)
    losses = []
    for epoch in range(epochs):
        model.train()
        for step, (images, target) in enumerate(train_loader):
            output = model(images)
            loss = loss_of(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % 10 == 0:
                print(f"epoch {epoch} step {step}: loss {losses[-1]:.4f}, accuracy {accuracy(output, target):.1f} %")
        print(f"epoch {epoch}: validation accuracy {evaluate(model, val_loader):.1f} %")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--label-maps")
    for option, default in {"size": 224, "batch-size": 256, "epochs": 90, "workers": 4}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    main(**vars(parser.parse_args()))
