"""Images and label maps through one v2 pipeline, pooled as a batch in the training loop.

A LabelMap is a tv_tensor: torchvision.transforms.v2 crops, flips and pads it together with its image. Without pooling
in the dataset (pooling=None) the loader collates the maps, and LabelPooling makes the soft labels of the whole batch at
once, on the device. The images are painted: each of the two halves shows one of four colours, the classes. The folder
knows only the class of the left half, the label map both, and so the model learns what is in a crop.

    python examples/joint_v2.py

Method: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, LabelPooling, LabelStoreWriter, RandomResizedCropWithLabelMap

COLOURS = np.array([[230, 60, 60], [60, 200, 60], [60, 80, 230], [230, 230, 60]], np.uint8)

PIPELINE = v2.Compose(
    [
        RandomResizedCropWithLabelMap(32, scale=(0.1, 0.6)),
        v2.RandomHorizontalFlip(),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.25] * 3),  # a label map has no colours: it is left alone
    ]
)


def paint_folder(folder: Path) -> tuple[Path, Path]:
    """Paint images of two colours, and write down their label maps of 2 x 4 cells, as an annotator would."""
    maps = folder / "maps.lmdb"
    with LabelStoreWriter(maps, num_classes=len(COLOURS), top_k=1) as writer:
        for left in range(len(COLOURS)):
            for right in range(len(COLOURS)):
                key = f"class {left}/beside {right}.png"
                halves = np.array([[left, right]])
                (folder / "train" / key).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(COLOURS[halves.repeat(48, 0).repeat(40, 1)]).save(folder / "train" / key)
                cells = halves.repeat(2, 0).repeat(2, 1)[None]
                writer.put(key, np.full(cells.shape, 8, np.float32), cells)  # a logit of 8 for the class of the cell
    return folder / "train", maps


def train(images_in: Path, maps: Path, epochs: int = 40) -> list[float]:
    """Train a small model, and give the mean loss of each epoch."""
    dataset = LabelMapDataset(ImageFolder(images_in), maps, transforms=PIPELINE, pooling=None)
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    pooling = LabelPooling()
    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(16, len(COLOURS)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    history = []
    for _ in range(epochs):
        losses = []
        for images, label_maps in loader:  # [B, 3, 32, 32] and a LabelMapBatch of B maps
            soft_labels = pooling(label_maps)  # [B, C]; on a GPU: pooling(label_maps.to(device, non_blocking=True))
            loss = nn.functional.cross_entropy(model(images), soft_labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        history.append(sum(losses) / len(losses))
    return history


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        losses = train(*paint_folder(Path(temporary)))
    print(f"cross entropy with the soft labels: {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last")
