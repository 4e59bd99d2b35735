"""A small vision transformer that learns a label for the image and one for each of its tokens.

LabelPooling((gh, gw)) gives a soft label for each token of a grid, flipped and rotated as the image is. CutMix pastes
tokens by their share in the patch, and TokenLabelLoss adds the tokens' cross entropy to that of the class token. The
images are painted, as those of joint_v2.py; each half is a class.

    python examples/token_labels.py

Method: TokenLabeling, Jiang et al. 2021, https://arxiv.org/abs/2104.10858
"""

import runpy
import tempfile
from pathlib import Path

import timm
import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import CutMixWithLabelMap, LabelMapDataset, LabelPooling, TokenLabelLoss

CLASSES, SIZE, PATCH, GRID = 4, 32, 8, (4, 4)
PIPELINE = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.3, 1)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(20),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)


class TokenViT(nn.Module):
    """timm's vision transformer, with a second head for its patch tokens."""

    def __init__(self) -> None:
        super().__init__()
        size = {"img_size": SIZE, "patch_size": PATCH, "embed_dim": 48, "depth": 2, "num_heads": 3}
        self.vit = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES, **size)
        self.dense_head = nn.Linear(48, CLASSES)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        tokens = self.vit.forward_features(images)  # [B, 1 + N, D], the class token first
        return self.vit.forward_head(tokens), self.dense_head(tokens[:, 1:])


def train(images_in: Path, maps: Path, epochs: int = 30) -> tuple[list[float], float]:
    """Train, and give the mean loss of each epoch and the share of tokens named right in the last one."""
    dataset = LabelMapDataset(ImageFolder(images_in), maps, transforms=PIPELINE, pooling=None)
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    mix, loss_of, model = CutMixWithLabelMap(pooling=LabelPooling(GRID), prob=0.5), TokenLabelLoss(), TokenViT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    history = []
    for _ in range(epochs):
        losses, hits = [], []
        for images, label_maps in loader:
            images, token_labels = mix(images, label_maps)  # [B, C, 4, 4]
            class_logits, token_logits = model(images)
            optimizer.zero_grad()
            loss = loss_of(class_logits, token_logits, token_labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            hits.append((token_logits.argmax(2) == token_labels.flatten(2).argmax(1)).float().mean().item())
        history.append(sum(losses) / len(losses))
    return history, sum(hits) / len(hits)


if __name__ == "__main__":
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as temporary:
        paint_folder = runpy.run_path(str(Path(__file__).with_name("joint_v2.py")))["paint_folder"]
        losses, right = train(*paint_folder(Path(temporary)))
    print(
        f"loss {losses[0]:.3f} in the first epoch, {losses[-1]:.3f} in the last; {right:.0%} of the tokens named right"
    )
