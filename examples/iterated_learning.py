"""Find both labels of images that have one: iterated learning (MILe) in the place of a loop's criterion.

The images are made: each shows two of eight patterns, and its label is one of the two, whichever. A network with plain
BCE learns to be half sure of both. With iterated learning it is taught, from time to time, by a frozen copy of itself,
for which what it is a quarter sure of is there: then it names both. The loop is that of PyTorch's ImageNet example,
and the changed line is marked.

    python examples/iterated_learning.py

Method: MILe, Rajeswar et al. 2022, https://arxiv.org/abs/2111.12172
"""

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from torchrelabel.iterated import IteratedLearning

CLASSES = 8


def make_images(count, generator):
    """Images [N, 3, 8, 16] of two patterns side by side, one of the two classes [N], and both [N, 2]."""
    patterns = torch.randn(CLASSES, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    both = torch.stack([torch.randperm(CLASSES, generator=generator)[:2] for _ in range(count)])
    images = torch.cat([patterns[both[:, 0]], patterns[both[:, 1]]], 3)
    images = images + 0.7 * torch.randn(images.shape, generator=generator)
    one = both[torch.arange(count), torch.randint(2, (count,), generator=generator)]
    return images, one, both


def make_model():
    """Eight detectors for patterns of 8 x 8, of which the strongest response in the image counts."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 8, stride=8), nn.ReLU(), nn.Conv2d(32, CLASSES, 1), nn.AdaptiveMaxPool2d(1), nn.Flatten()
    )


def train(images, target, epochs=6, **settings):
    """Train a network, and return it."""
    torch.manual_seed(0)
    model = make_model()
    criterion = IteratedLearning(model, num_classes=CLASSES, **settings)  # changed: was nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(epochs):
        model.train()
        for batch, labels in DataLoader(TensorDataset(images, target), batch_size=32, shuffle=True):
            output = model(batch)
            loss = criterion(output, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return model


def found(model, images, both):
    """The F1 of the classes that have a probability above a half and those that are there."""
    model.eval()
    with torch.no_grad():
        named = model(images).sigmoid() > 0.5
    right = named.gather(1, both).sum(1)
    return (2 * right / (named.sum(1) + 2)).mean().item()


def main():
    """Train with plain BCE and with iterated learning on the same labels, and return the F1 of both."""
    generator = torch.Generator().manual_seed(1)
    images, one, _ = make_images(2048, generator)
    test_images, _, both = make_images(512, generator)
    plain = found(train(images, one, k1=1, k2=0), test_images, both)
    # An epoch of each, in turn; the last one is learnt from the teacher.
    iterated = found(train(images, one, k1=64, k2=64, threshold=0.25), test_images, both)
    print(f"F1 of the classes named: {plain:.3f} with plain BCE, {iterated:.3f} with iterated learning")
    return plain, iterated


if __name__ == "__main__":
    main()
