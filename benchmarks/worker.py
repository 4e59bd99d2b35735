"""Loads batches of images with or without label maps, and prints the peak of this process's memory in bytes."""

from __future__ import annotations

import json
import resource
import sys

from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset


def main(images: str, maps: str) -> None:
    dataset = ImageFolder(images, transform=v2.Compose([v2.RandomResizedCrop(224), v2.ToImage()]))
    samples = LabelMapDataset(dataset, maps, num_classes=1000) if maps else dataset
    for index in range(len(dataset)):
        samples[index]
    print(json.dumps({"peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}))


if __name__ == "__main__":
    main(*sys.argv[1:])
