"""Train the demo's annotator, whose weights the package ships: python -m torchrelabel.demo.make_annotator FILE.

An annotator is a classifier that others trained, for longer and on more than the student gets, and this one is trained
as classifiers of ImageNet are: one label per picture, all of them right, random resized crops. Photographs of ImageNet
show their object at every scale, often with other things beside it, and so do these scenes, which are drawn afresh for
every step. Their digits are those of the training split: the annotator knows no digit of the demo's test scenes.

The same seed and the same versions on the same machine give the same weights; elsewhere sums are rounded differently,
and the weights are others that are as good. The shipped ones took 11 minutes on one core that computes in bfloat16.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import cross_entropy

from torchrelabel.demo.annotator import MODEL
from torchrelabel.demo.digits import Digits, load_digits_split
from torchrelabel.demo.scenes import draw_scene

SIZES = (96, 96, 128)  # px: a third of the steps each, as smaller pictures teach more in the same time
AREAS = (0.3, 1.0)  # of a crop, as a share of the scene; crops without the digit teach to name what is not there
RATIOS = (3 / 4, 4 / 3)
SIDES = (0.2, 0.95)  # of the labelled digit, as a share of the scene's shorter side: every scale as often
OTHERS = (0.4, 0.7)  # of the other digits, as a share of the labelled digit's side
ROOM = 0.5  # a labelled digit larger than this stands alone: others might not fit beside it
POOL, FRESH, BATCH = 1000, 8, 32  # scenes to take crops of, those drawn anew for each step, crops in a step
LEARNING_RATE = 1e-2


def draw_labelled(digits: Digits, rng: np.random.Generator) -> tuple[Image.Image, int]:
    """Draw a scene, and tell its largest digit."""
    digit, side = int(rng.integers(10)), float(np.exp(rng.uniform(*np.log(SIDES))))
    scene = draw_scene(
        digits,
        (int(rng.integers(2**62)),),
        digit,
        small=(0, 3) if side <= ROOM else (0, 0),
        large=(side, side),
        other=(OTHERS[0] * side, OTHERS[1] * side),
    )
    return Image.fromarray(scene.image), digit


def crop(image: Image.Image, rng: np.random.Generator, size: int) -> NDArray[np.uint8]:
    """Take a random resized crop, ``[size, size, 3]``."""
    area = rng.uniform(*AREAS) * image.width * image.height
    ratio = np.exp(rng.uniform(*np.log(RATIOS)))
    width, height = min(np.sqrt(area * ratio), image.width), min(np.sqrt(area / ratio), image.height)
    x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + width, y + height)))


def batches(digits: Digits, rng: np.random.Generator, steps: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pixels, ``[B, 3, S, S]`` uint8, and labels, ``[B]``; a scene serves for some 125 steps."""
    pool = [draw_labelled(digits, rng) for _ in range(POOL)]
    for step in range(steps):
        for place in rng.integers(POOL, size=FRESH):
            pool[place] = draw_labelled(digits, rng)
        chosen = [pool[place] for place in rng.choice(POOL, BATCH, replace=False)]
        size = SIZES[step * len(SIZES) // steps]
        pixels = np.stack([crop(image, rng, size) for image, _ in chosen])
        yield torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([digit for _, digit in chosen])


def make_annotator(path: Path, *, steps: int, seed: int) -> None:
    """Train the annotator and save its state dict.

    Args:
        path: The file to write.
        steps: Batches to learn from.
        seed: Seed of the weights, the scenes and the crops.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    digits, _ = load_digits_split()  # never the test digits
    model: Any = timm.create_model(MODEL, num_classes=10).to(memory_format=torch.channels_last).train()
    mean, std = (torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std"))
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, weight_decay=0.02, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps, pct_start=0.1)
    began, losses = time.process_time(), []
    for step, (pixels, labels) in enumerate(batches(digits, rng, steps), start=1):
        images = (pixels / 255 - mean) / std
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        loss: Any = cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if step % 25 == 0 or step == steps:
            recent = sum(losses[-50:]) / len(losses[-50:])
            seconds = time.process_time() - began
            print(f"step {step} of {steps}: loss {recent:.3f}, {seconds:.0f} s of one core", flush=True)
            torch.save(model.state_dict(), path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="Where to save the weights.")
    parser.add_argument("--steps", type=int, default=3500, help="Batches of 32 pictures.")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_annotator(arguments.file, steps=arguments.steps, seed=arguments.seed)
