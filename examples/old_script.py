"""An old training script, turned to soft labels by two lines.

The pipelines below were written for torchvision.transforms, torchvision.transforms.v2 and timm, and one is a lambda.
None of them knows label maps. LabelMapDataset follows their crops and gives, for each image, the label of just the part
that is seen. The images are painted, one colour a class, so that the right label can be read off the pixels of any
crop: the numbers printed are the share of a label that lies on the wrong classes, on average.

    python examples/old_script.py

Method: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022
"""

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, LabelStoreWriter  # <- the first changed line (the writer is for this page)

COLOURS = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]]) / 255


def paint_folder(folder: Path) -> tuple[Path, Path]:
    """Paint one image of 3 x 4 coloured blocks for each class, and write down their label maps, as an annotator would.

    With real images this is one command: torchrelabel annotate folder --model NAME -o maps.lmdb
    """
    rng = np.random.default_rng(0)
    maps = folder / "maps.lmdb"
    with LabelStoreWriter(maps, num_classes=len(COLOURS), top_k=1, score_kind="probability") as writer:
        for number in range(len(COLOURS)):
            key = f"class {number}/painted.png"  # the key of a map is the path of its image
            blocks = rng.integers(0, len(COLOURS), (3, 4))
            pixels = (COLOURS.numpy() * 255).astype(np.uint8)[blocks.repeat(64, 0).repeat(64, 1)]
            (folder / "train" / key).parent.mkdir(parents=True)
            Image.fromarray(pixels).save(folder / "train" / key)
            cells = blocks.repeat(4, 0).repeat(4, 1)[None]  # 12 x 16 cells
            writer.put(key, np.ones(cells.shape, np.float32), cells)
    return folder / "train", maps


def wrong_share(images: torch.Tensor, labels: torch.Tensor) -> float:
    """How much of the labels [B, C] lies on other classes than the pixels of the images [B, 3, H, W]."""
    nearest = (images[:, None] - COLOURS[None, :, :, None, None]).square().sum(2).argmin(1)
    seen = torch.nn.functional.one_hot(nearest, len(COLOURS)).float().mean((1, 2))
    return float((seen - labels).abs().sum(1).mean() / 2)


PIPELINES = {
    "v1": transforms.Compose(
        [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    ),
    "v2": v2.Compose([v2.RandomResizedCrop(224), v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]),
    "timm": create_transform(224, is_training=True, mean=(0, 0, 0), std=(1, 1, 1), color_jitter=None),
    "lambda": lambda image: transforms.functional.to_tensor(image.crop((30, 20, 200, 180)).resize((224, 224))),
}


def main() -> None:
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        train, maps = paint_folder(Path(folder))
        for name, pipeline in PIPELINES.items():
            dataset = ImageFolder(train, transform=pipeline)
            dataset = LabelMapDataset(dataset, maps)  # <- the second changed line
            loader = DataLoader(dataset, batch_size=len(COLOURS))
            errors = [wrong_share(images, labels) for _ in range(10) for images, labels in loader]
            print(f"{name:8} {sum(errors) / len(errors):.4f}")


if __name__ == "__main__":
    main()
