"""Draw the pictures of the gallery page, from photographs that may be shipped.

The photographs are scikit-image's, all in the public domain: ``astronaut.png`` (Eileen Collins, by NASA),
``chelsea.png`` (a cat, by Stefan van der Walt), ``coffee.png`` (by Rachel Michetti, courtesy of Pikolo Espresso Bar)
and ``rocket.jpg`` (by SpaceX). The store is made as ``make_picture.py`` says, and then::

    python docs/make_gallery.py $PHOTOS --store maps.lmdb -o docs
"""

from __future__ import annotations

import argparse
from pathlib import Path

import PIL.Image
import torch
from make_picture import GREY, INK, save
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.transforms import v2

from torchrelabel import CutMixWithLabelMap, LabelPooling, LabelStore, RandomResizedCropWithLabelMap
from torchrelabel.viz import Picture, draw_gallery, draw_label_map

PHOTOGRAPHS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
SIDE = 256  # pixels of an augmented image
SHOWN = 3  # classes with a bar
PIXELS = 1280  # the width of a picture


def photograph(folder: Path, name: str) -> PIL.Image.Image:
    """A photograph in RGB."""
    with PIL.Image.open(folder / name) as file:
        return file.convert("RGB")


def draw_maps(folder: Path, store: LabelStore) -> Figure:
    """What ``torchrelabel show`` draws of several images."""
    pictures = [Picture(photograph(folder, name), store.label_map(name), name) for name in PHOTOGRAPHS]
    return draw_gallery(pictures, class_names=store.header.class_names)


def draw_one(folder: Path, store: LabelStore) -> Figure:
    """What ``torchrelabel show`` draws of one image."""
    name = "chelsea.png"
    return draw_label_map(
        photograph(folder, name), store.label_map(name), class_names=store.header.class_names, title=name
    )


def draw_augmented(folder: Path, store: LabelStore) -> Figure:
    """One photograph through pipelines of torchvision's, with the label of what each leaves to be seen."""
    crop = RandomResizedCropWithLabelMap(SIDE, scale=(0.15, 0.4))
    pipelines = {
        "the whole photograph": v2.Resize((SIDE, SIDE)),
        "RandomResizedCrop, flipped": v2.Compose([crop, v2.RandomHorizontalFlip(1)]),
        "RandomResizedCrop, ColorJitter": v2.Compose([crop, v2.ColorJitter(0.5, 0.5, 0.5)]),
        "RandomAffine": v2.Compose([v2.RandomAffine(30, (0.2, 0.2), (1.1, 1.6), 15), v2.Resize((SIDE, SIDE))]),
    }
    torch.manual_seed(3)
    name = "coffee.png"
    shown = [
        (title, *pipeline(v2.functional.pil_to_tensor(photograph(folder, name)), store.label_map(name)))
        for title, pipeline in pipelines.items()
    ]
    rows = [(title, image, LabelPooling()(label_map)) for title, image, label_map in shown]
    return _rows(rows, store.header.class_names)


def draw_mixed(folder: Path, store: LabelStore) -> Figure:
    """A CutMix image, with its label by area and by what each part shows."""
    whole = v2.Resize((SIDE, SIDE))
    batch = torch.utils.data.default_collate(
        [
            whole(v2.functional.pil_to_tensor(photograph(folder, name)), store.label_map(name))
            for name in ("chelsea.png", "coffee.png")
        ]
    )
    rows = []
    for what, seed in (("the cup", 19), ("the saucer", 26)):
        for labels, rule in (("mixed", "by area"), ("localized", "localized")):
            torch.manual_seed(seed)
            images, targets = CutMixWithLabelMap(labels=labels)(*batch)
            rows.append((f"{what} pasted: {rule}", images[0], targets[0]))
    return _rows(rows, store.header.class_names)


def _rows(rows: list[tuple[str, Tensor, Tensor]], names: tuple[str, ...]) -> Figure:
    """Images side by side, the bars of their labels below."""
    figure = Figure(figsize=(4.1 * len(rows), 5.6), facecolor="white", layout="constrained")
    axes = figure.subplots(2, len(rows), height_ratios=(3, 1.3), squeeze=False)
    for (title, image, label), top, bottom in zip(rows, *axes, strict=True):
        top.set_title(title, fontsize=15, color=INK)
        top.imshow(image.permute(1, 2, 0).numpy())
        top.set_axis_off()
        _draw_bars(bottom, label, names)
    return figure


def _draw_bars(axis: Axes, label: Tensor, names: tuple[str, ...]) -> None:
    best = label.topk(SHOWN)
    shares = [*best.values.tolist(), 1 - float(best.values.sum())]
    words = [*(names[index] for index in best.indices.tolist()), f"{len(names) - SHOWN} others"]
    axis.barh(range(len(shares)), shares, height=0.3, color=["#0a7ea4"] * SHOWN + [GREY])
    axis.set(xlim=(0, 1), ylim=(len(shares) - 0.6, -0.9))
    axis.set_axis_off()
    for row, (word, share) in enumerate(zip(words, shares, strict=True)):
        axis.text(0, row - 0.2, f"{word} {100 * share:.0f}%", fontsize=14, color=INK, va="bottom")


def main() -> None:
    """Read the arguments, draw and write."""
    parser = argparse.ArgumentParser(description="Draw the pictures of the gallery; the file says how they were made.")
    parser.add_argument("photographs", type=Path, metavar="PHOTOS")
    parser.add_argument("--store", type=Path, required=True, help="their label maps")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs"), help="a folder")
    args = parser.parse_args()
    store = LabelStore(args.store)
    for name, draw in (
        ("gallery-maps", draw_maps),
        ("gallery-one", draw_one),
        ("gallery-augmented", draw_augmented),
        ("gallery-mixed", draw_mixed),
    ):
        save(draw(args.photographs, store), args.output / f"{name}.jpg", PIXELS)


if __name__ == "__main__":
    main()
