"""timm's VOLO, which has a dense head of its own and mixes tokens itself, on labels for each of its tokens.

With use_mix_token=True, forward_train pastes the tokens of other images of the batch, puts their scores back to the
image that they came from, and returns the box: the labels of tokens stay those of the images as loaded, and
TokenLabelLoss(box=) mixes the label of the class token. The scores of the class token are what VOLO's head says of the
features that forward_train returns. A small VOLO here; timm.create_model("volo_d1_224", use_mix_token=True) is trained
the same way, with GRID = (14, 14). The images are painted, as those of joint_v2.py; each half is a class.

    python examples/token_labels_volo.py

Methods: VOLO, Yuan et al. 2021, https://arxiv.org/abs/2106.13112; TokenLabeling, https://arxiv.org/abs/2104.10858
"""

import runpy
import tempfile
from pathlib import Path

import torch
from timm.models.volo import VOLO
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from torchrelabel import LabelMapDataset, LabelPooling, TokenLabelLoss

CLASSES, SIZE, GRID = 4, 32, (4, 4)
PIPELINE = v2.Compose(
    [
        v2.RandomResizedCrop(SIZE, scale=(0.3, 1)),
        v2.RandomHorizontalFlip(),
        v2.RandomRotation(20),
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
    ]
)
SMALL = {"layers": (1, 1), "embed_dims": (24, 48), "num_heads": (1, 2), "stem_hidden_dim": 8, "patch_size": 4}
STAGES = {"downsamples": (True, False), "outlook_attention": (True, False), "mlp_ratio": 2.0}


def train(images_in: Path, maps: Path, epochs: int = 40) -> tuple[list[float], float]:
    """Train, and give the mean loss of each epoch and the share of tokens named right in the last one."""
    dataset = LabelMapDataset(ImageFolder(images_in), maps, transforms=PIPELINE, pooling=LabelPooling(GRID))
    loader = DataLoader(dataset, batch_size=8, shuffle=True)
    model = VOLO(img_size=SIZE, num_classes=CLASSES, use_mix_token=True, **SMALL, **STAGES)
    loss_of, optimizer = TokenLabelLoss(), torch.optim.AdamW(model.parameters(), lr=3e-3)
    history = []
    for _ in range(epochs):
        losses, hits = [], []
        for images, token_labels in loader:  # [B, C, 4, 4]
            features, token_logits, box = model.forward_train(images)
            loss = loss_of(model.head(features), token_logits, token_labels, box=box)
            optimizer.zero_grad()
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
