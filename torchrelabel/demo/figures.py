"""The pictures of the demo's report, as matplotlib figures that read on white and on black."""

from __future__ import annotations

import base64
import io
import statistics
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from torchrelabel.data.records import label_map_of
from torchrelabel.demo.folders import SceneFolder, SceneRecord
from torchrelabel.demo.result import DemoResult
from torchrelabel.demo.students import LABEL_KINDS, ONE_HOT, RELABEL, draw_crop, visible_share
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.view import ViewBox
from torchrelabel.viz import cell_probabilities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GREY, RED, BLUE = "#858c96", "#e0523f", "#4f86d9"
COLOURS = {ONE_HOT: "#a06cd5", RELABEL: BLUE}
INCHES = 6.4


def draw_scenes(folder: SceneFolder) -> Figure:
    """Draw scenes with the label given and the digits present: four labelled right, four wrong."""
    wrong = [key for key, record in folder.records.items() if record.label != record.digits[0]]
    right = [key for key, record in folder.records.items() if record.label == record.digits[0]]
    figure, axes = _grid(2, 4, height=4.0)
    for axis, key in zip(axes.flat, [*_spread(right, 4), *_spread(wrong, 4)], strict=False):
        record = folder.records[key]
        axis.imshow(_pixels(folder, key))
        shown = ", ".join(map(str, record.digits))
        is_wrong = record.label != record.digits[0]
        axis.set_title(
            f"label {record.label}{' (wrong)' if is_wrong else ''}\nshows {shown}",
            color=RED if is_wrong else GREY,
            fontsize=10,
        )
    return figure


def draw_maps(folder: SceneFolder, store: LabelStore) -> Figure:
    """Draw scenes beside heat maps, one for each of the first three digits present."""
    rows = 4
    figure, axes = _grid(rows, 4, height=6.8)
    crowded = [key for key, record in folder.records.items() if len(record.digits) >= 3]
    for row, key in zip(axes, _spread(crowded or list(folder.records), rows), strict=False):
        record = folder.records[key]
        pixels = _pixels(folder, key)
        probabilities = cell_probabilities(label_map_of(store[key], store.header, record.size)).numpy()
        row[0].imshow(pixels)
        row[0].set_title(f"shows {', '.join(map(str, record.digits))}", color=GREY, fontsize=10)
        for axis, digit in zip(row[1:], record.digits, strict=False):
            axis.imshow(pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
            height, width = record.size
            heat = probabilities[digit]
            axis.imshow(heat, cmap="inferno", vmin=0, vmax=1, alpha=0.65, extent=(0, width, height, 0))
            axis.set_title(f"where is {digit}?", color=GREY, fontsize=10)
    return figure


def draw_crops(folder: SceneFolder, store: LabelStore) -> Figure:
    """Draw random crops beside the label pooled for each: of the labelled digit, of others only, and of none."""
    crops = _pick_crops(folder)
    figure, axes = _grid(len(crops), 3, height=1.75 * len(crops) + 0.3, widths=(1, 1, 1.5))
    pooling = LabelPooling()
    for row, (key, crop) in zip(axes, crops, strict=True):
        record = folder.records[key]
        height, width = record.size
        x1, y1, x2, y2 = crop
        view = ViewBox(x1 / width, y1 / height, x2 / width, y2 / height)
        label = pooling(label_map_of(store[key], store.header, record.size, view))
        pixels = _pixels(folder, key)
        row[0].imshow(pixels)
        row[0].add_patch(_rectangle(crop))
        row[0].set_title(f"given label {record.label}", color=GREY, fontsize=10)
        row[1].imshow(pixels[y1:y2, x1:x2])
        row[1].set_title(f"crop: {_seen(record, crop)}", color=GREY, fontsize=10)
        _draw_label(row[2], label, record.label)
    axes[0][2].set_title("pooled label; dashed: one-hot", color=GREY, fontsize=10)
    return figure


def draw_curves(result: DemoResult) -> Figure:
    """Draw top-1 on the test scenes after each epoch, as the mean over the seeds, with their lowest and highest."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, 4.0), layout="constrained")
    axis = figure.subplots()
    for labels in LABEL_KINDS:
        by_epoch = list(zip(*(run.trained.scores for run in result.runs_with(labels)), strict=True))
        epochs = range(1, len(by_epoch) + 1)
        means = [100 * statistics.mean(scores) for scores in by_epoch]
        axis.plot(epochs, means, color=COLOURS[labels], marker="o", markersize=3, label=labels)
        lowest, highest = ([100 * pick(scores) for scores in by_epoch] for pick in (min, max))
        axis.fill_between(epochs, lowest, highest, color=COLOURS[labels], alpha=0.2, linewidth=0)
    axis.set_xlabel("epoch")
    axis.set_ylabel("top-1, per cent")
    axis.legend(frameon=False, labelcolor="linecolor")
    _quiet(axis)
    return figure


def as_png(figure: Figure) -> str:
    """Encode a figure as a PNG with a clear background, in Base64."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, transparent=True)
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _pick_crops(folder: SceneFolder) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Draw one random crop of each scene in turn, and keep the first two of each kind."""
    torch.manual_seed(0)
    kept: dict[str, list[tuple[str, tuple[int, int, int, int]]]] = {"labelled": [], "others": [], "nothing": []}
    for key, record in folder.records.items():
        crop = draw_crop(record.size)
        seen = _digits_in(record, crop)
        touched = any(visible_share(box, crop) > 0 for box in record.boxes)
        kind = "labelled" if record.label in seen else "others" if seen else "" if touched else "nothing"
        if kind and len(kept[kind]) < 2 and (kind != "others" or not _partly(record, crop)):
            kept[kind].append((key, crop))
    return [crop for crops in kept.values() for crop in crops]


def _digits_in(record: SceneRecord, crop: tuple[int, int, int, int]) -> list[int]:
    return [d for d, box in zip(record.digits, record.boxes, strict=True) if visible_share(box, crop) >= 0.5]


def _partly(record: SceneRecord, crop: tuple[int, int, int, int]) -> bool:
    """Whether a crop shows some of the labelled digit."""
    return visible_share(record.boxes[record.digits.index(record.label)], crop) > 0


def _seen(record: SceneRecord, crop: tuple[int, int, int, int]) -> str:
    seen = _digits_in(record, crop)
    return "shows " + ", ".join(map(str, seen)) if seen else "no digit"


def _draw_label(axis: Axes, label: torch.Tensor, given: int) -> None:
    axis.set_axis_on()
    axis.set_aspect("auto")
    axis.bar(range(10), label.tolist(), color=BLUE, width=0.8)
    axis.bar([given], [1.0], fill=False, edgecolor=RED, linestyle="--", width=0.8)
    axis.set_ylim(0, 1.08)
    axis.set_xticks(range(10))
    axis.set_yticks([0, 1])
    _quiet(axis)


def _quiet(axis: Axes) -> None:
    axis.tick_params(colors=GREY, labelsize=9)
    axis.xaxis.label.set_color(GREY)
    axis.yaxis.label.set_color(GREY)
    for name, spine in axis.spines.items():
        spine.set_visible(name in ("left", "bottom"))
        spine.set_color(GREY)


def _grid(rows: int, columns: int, height: float, widths: tuple[float, ...] | None = None) -> tuple[Figure, Any]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(INCHES, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, width_ratios=widths)
    for axis in axes.flat:
        axis.set_axis_off()
    return figure, axes


def _rectangle(box: tuple[int, int, int, int]) -> Any:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = box
    return Rectangle((x1 - 0.5, y1 - 0.5), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=2)


def _spread(keys: list[str], count: int) -> list[str]:
    """Take ``count`` keys from all over a list, so that not all are of the first class folder."""
    return keys[:: max(1, len(keys) // count)][:count]


def _pixels(folder: SceneFolder, key: str) -> NDArray[np.uint8]:
    with Image.open(folder.root / key) as image:
        return np.asarray(image.convert("RGB"))
