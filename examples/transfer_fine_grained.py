"""Take a network that was trained on label maps to another, finer data set, as in ReLabel's table 8.

    python examples/transfer_fine_grained.py food101 --model resnet50 --checkpoint relabel.pth

The folder holds train and val, one folder a class in each. The classifier is replaced, and everything is trained for
5,000 steps of SGD with a cosine learning rate. The paper searches the learning rate and the weight decay for each data
set and reports the best: search on a part of train, as val is what you report.

Method: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022
"""

import argparse
import itertools
from pathlib import Path

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder


def make_loaders(data, model, size, batch_size, workers):
    """Random crops to train on and centre crops to test on, as the network was trained."""
    config = {**resolve_model_data_config(model), "input_size": (3, size, size)}
    train = ImageFolder(Path(data) / "train", create_transform(**config, is_training=True, color_jitter=None))
    val = ImageFolder(Path(data) / "val", create_transform(**config, is_training=False))
    return (
        DataLoader(train, batch_size, shuffle=True, drop_last=len(train) > batch_size, num_workers=workers),
        DataLoader(val, batch_size, num_workers=workers),
    )


def main(
    data, checkpoint=None, model="resnet50", steps=5000, lr=0.01, weight_decay=1e-4, size=224, batch_size=64, workers=4
):
    """Train, and return the top-1 on val."""
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = timm.create_model(model, checkpoint_path=checkpoint or "")  # with the classifier that it was trained with
    train_loader, val_loader = make_loaders(data, network, size, batch_size, workers)
    network.reset_classifier(len(train_loader.dataset.classes))
    network.to(device)

    optimizer = torch.optim.SGD(network.parameters(), lr, momentum=0.9, weight_decay=weight_decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    batches = itertools.chain.from_iterable(itertools.repeat(train_loader))
    for step, (images, labels) in enumerate(itertools.islice(batches, steps)):
        loss = cross_entropy(network(images.to(device)), labels.to(device))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"step {step}: loss {loss.item():.3f}")

    network.eval()
    right = 0
    with torch.no_grad():
        for images, labels in val_loader:
            right += (network(images.to(device)).argmax(1).cpu() == labels).sum().item()
    print(f"top-1: {right / len(val_loader.dataset):.1%}")
    return right / len(val_loader.dataset)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--checkpoint")
    parser.add_argument("--model", default="resnet50")
    for option, default in {"steps": 5000, "size": 224, "batch-size": 64, "workers": 4}.items():
        parser.add_argument(f"--{option}", type=int, default=default)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    main(**vars(parser.parse_args()))
