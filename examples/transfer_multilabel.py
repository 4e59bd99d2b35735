"""Take a network that was trained on label maps to images with several labels, as in ReLabel's table 10.

    python examples/transfer_multilabel.py coco train.json val.json --model resnet50 --checkpoint relabel.pth

train.json and val.json are objects from an image's path in the folder to the list of the numbers of its classes. The
classifier is replaced by one of independent sigmoids; binary cross-entropy, AdamP and a cosine learning rate, as in the
paper (ResNet-50 at 224 px: mAP 69.0 from one-hot weights, 72.7 with ReLabel).

Method: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022
"""

import argparse
import json
from pathlib import Path

import timm
import torch
from sklearn.metrics import average_precision_score
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.data import DataLoader
from torchvision.datasets.folder import default_loader


def make_loader(data, table, num_classes, transform, batch_size, **options):
    """Batches of images [B, 3, S, S] with a 1 for each of their classes [B, C]."""

    def collate(items):
        images = [transform(default_loader(str(Path(data) / path))) for path, _ in items]
        labels = [torch.zeros(num_classes).index_fill(0, torch.tensor(classes).long(), 1) for _, classes in items]
        return torch.stack(images), torch.stack(labels)

    return DataLoader(list(table.items()), batch_size, collate_fn=collate, **options)


def mean_average_precision(network, loader, device):
    """The mean over classes of the area under precision and recall."""
    network.eval()
    with torch.no_grad():
        pairs = [(network(images.to(device)).sigmoid().cpu(), labels) for images, labels in loader]
    scores, labels = (torch.cat(each).numpy() for each in zip(*pairs, strict=True))
    return float(average_precision_score(labels, scores, average="macro"))


def main(data, train, val, checkpoint=None, model="resnet50", epochs=30, size=224, batch_size=128, workers=4, lr=2e-4):
    """Train, and return the mAP on val."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    train, val = (json.loads(Path(table).read_text()) for table in (train, val))
    num_classes = 1 + max(number for classes in train.values() for number in classes)
    network = timm.create_model(model, checkpoint_path=checkpoint or "")
    config = {**resolve_model_data_config(network), "input_size": (3, size, size)}
    network.reset_classifier(num_classes)
    network.to(device)
    augment = create_transform(**config, is_training=True, color_jitter=None)
    train_loader = make_loader(data, train, num_classes, augment, batch_size, shuffle=True, num_workers=workers)
    whole = create_transform(**config, is_training=False)
    val_loader = make_loader(data, val, num_classes, whole, batch_size, num_workers=workers)
    optimizer = create_optimizer_v2(network, opt="adamp", lr=lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train_loader))
    for _ in range(epochs):
        network.train()
        for images, labels in train_loader:
            loss = binary_cross_entropy_with_logits(network(images.to(device)), labels.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    result = mean_average_precision(network, val_loader, device)
    print(f"mAP: {result:.3f}")
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("data", "train", "val", "--checkpoint"):
        parser.add_argument(name)
    parser.add_argument("--model", default="resnet50")
    main(**vars(parser.parse_args()))
