"""Images of coloured blocks, and an annotator that reads their colours: every answer is known."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from torchrelabel import LabelStoreWriter
from torchrelabel.annotate import Annotator

COLOURS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 0], [0, 255, 255], [255, 0, 255]], np.uint8)
C = len(COLOURS)
SIZE, GRID = 48, 6
NAMES = [f"n{number:08d}" for number in range(C)]


class ColourModel(nn.Module):
    """Average colours over a grid; the logit of a class is how like its colour a cell is, above 0. A linear head."""

    def __init__(self, gain=8.0):
        super().__init__()
        signs = torch.from_numpy(COLOURS.astype(np.float32)) / 127.5 - 1
        self.weight = nn.Parameter(gain * signs)
        self.bias = nn.Parameter(gain * (2 - signs.clamp(min=0).sum(1)))

    def forward_features(self, images):
        return nn.functional.avg_pool2d(images, SIZE // GRID)

    def forward_head(self, features):
        return features.mean((2, 3)) @ self.weight.T + self.bias

    def forward(self, images):
        return self.forward_head(self.forward_features(images))


def colour_annotator(gain=8.0, model=None, **settings):
    usual = {
        "image_size": SIZE,
        "mean": (0.0, 0.0, 0.0),
        "std": (1.0, 1.0, 1.0),
        "interpolation": "bilinear",
    }
    return Annotator(
        model or ColourModel(gain), name="colours", weights="made by hand", device="cpu", **(usual | settings)
    )


def paint_folder(root, images=12, rows=3, columns=5, block=14):
    """Write ``images`` pictures of 42 x 70 px; give the class of every block by key."""
    blocks = {}
    for number in range(images):
        key = f"{NAMES[number % C]}/picture {number}.png"
        blocks[key] = np.random.default_rng(number).integers(0, C, (rows, columns))
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS[blocks[key].repeat(block, 0).repeat(block, 1)]).save(root / key)
    return blocks


def write_store(path, root, keys, *, swapped=False, annotator=None, residual=True, class_to_idx=True, grid=None):
    """Annotate with the colour model; ``swapped`` exchanges h and w of every map, ``grid`` writes blocks instead."""
    annotator = annotator or colour_annotator()
    with LabelStoreWriter(
        path,
        num_classes=C,
        top_k=3,
        residual=residual,
        annotator=annotator.description(),
        class_to_idx={name: number for number, name in enumerate(NAMES)} if class_to_idx else None,
    ) as writer:
        for key in keys:
            with Image.open(root / key) as image:
                pixels = np.array(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))
            images = annotator.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
            top = annotator.top_scores(images, 3)
            parts = [part[0].numpy() for part in top[:3] if part is not None]
            if swapped:
                parts = [part.swapaxes(-1, -2) for part in parts]
            writer.put(key, parts[0], parts[1], parts[2] if residual else None)
    return path


def write_block_store(path, blocks, *, swapped=False, class_names=None):
    """One-hot maps of h x w = 3 x 5 cells, one a block; ``swapped``: 5 x 3."""
    with LabelStoreWriter(
        path,
        num_classes=C,
        top_k=1,
        score_kind="probability",
        class_names=class_names,
        class_to_idx={name: number for number, name in enumerate(NAMES)},
    ) as writer:
        for key, classes in blocks.items():
            cells = (classes.T if swapped else classes)[None]
            writer.put(key, np.ones(cells.shape, np.float32), cells)
    return path


def write_xml(path, boxes, size=(70, 42), names=None):
    """Boxes xyxy in pixels; ``size`` is (W, H)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        f"</bndbox></object>"
        for name, (x1, y1, x2, y2) in zip(names or [NAMES[0]] * len(boxes), boxes, strict=True)
    )
    size_element = f"<size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>"
    path.write_text(f"<annotation>{size_element}{objects}</annotation>")
    return path


def write_boxes_of_blocks(folder, blocks, block=14):
    """An XML file an image, with a box around every block of its classes."""
    for key, classes in blocks.items():
        places = list(np.ndindex(classes.shape))
        write_xml(
            (folder / key).with_suffix(".xml"),
            [(column * block, row * block, (column + 1) * block, (row + 1) * block) for row, column in places],
            names=[NAMES[classes[place]] for place in places],
        )
    return folder
