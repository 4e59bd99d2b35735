"""Train a timm model on soft labels, in the shape of timm's train.py: its datasets, loader, mixers and losses.

    python examples/timm_train.py images/train                           # class indices, as ever
    python examples/timm_train.py images/train --label-maps maps.lmdb    # a soft label for what each crop shows

The two changed lines are marked. timm's own train.py needs none at all, see docs/migrating.md.
Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, and the interfaces of timm.
"""

import argparse

import torch
from timm import create_model
from timm.data import AugMixDataset, FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.utils import random_seed
from torch import nn

from torchrelabel import LabelMapDataset  # changed line 1


def criterion(kind, smoothing, mixing, splits):
    """The loss that timm's train.py would choose."""
    if kind == "jsd":
        return JsdCrossEntropy(num_splits=splits, smoothing=smoothing)
    if kind == "bce":
        return BinaryCrossEntropy() if mixing else BinaryCrossEntropy(smoothing=smoothing)
    if mixing:
        return SoftTargetCrossEntropy()
    return LabelSmoothingCrossEntropy(smoothing) if smoothing else nn.CrossEntropyLoss()


def train(data_dir, label_maps=None, *, classes=7, model="resnet18", size=32, batch_size=4, epochs=1, workers=0,
          loss="ce", smoothing=0.1, mixup=None, mixup_off_epoch=None, splits=0, prefetch=True, watch=None,
          learning_rate=0.05, **options):  # fmt: skip
    """Train a model and return the loss of each step; ``options`` go to timm's create_loader."""
    random_seed(0)
    network = create_model(model, num_classes=classes)
    dataset = create_dataset("", root=data_dir, is_training=True)
    if label_maps:
        dataset = LabelMapDataset(dataset, label_maps, num_classes=classes)  # changed line 2
    if splits:
        dataset = AugMixDataset(dataset, num_splits=splits)
    if mixup is not None:
        mixer = (FastCollateMixup if prefetch else Mixup)(**mixup, label_smoothing=smoothing, num_classes=classes)
    loader = create_loader(
        dataset, (3, size, size), batch_size, is_training=True, num_workers=workers, num_aug_splits=splits,
        use_prefetcher=prefetch, collate_fn=mixer if mixup and prefetch else None, device=torch.device("cpu"),
        persistent_workers=workers > 0, **options,
    )  # fmt: skip
    optimizer = torch.optim.SGD(network.parameters(), learning_rate)
    loss_of, losses = criterion(loss, smoothing, mixup is not None, splits), []
    for epoch in range(epochs):
        if mixup is not None and epoch == mixup_off_epoch:
            (loader if prefetch else mixer).mixup_enabled = False
        for images, target in loader:
            if mixup is not None and not prefetch:
                images, target = mixer(images, target)
            if watch is not None:
                watch(images, target)
            step = loss_of(network(images), target)
            optimizer.zero_grad()
            step.backward()
            optimizer.step()
            losses.append(step.item())
        print(f"epoch {epoch}: loss {losses[-1]:.4f}")
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--label-maps")
    parser.add_argument("--classes", type=int, default=7)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--workers", type=int, default=0)
    train(**vars(parser.parse_args()))
