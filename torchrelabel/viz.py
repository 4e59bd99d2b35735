"""Pictures of a label map: the image, where each class is seen, and the soft label of a crop."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL.Image
from torch import Tensor

from torchrelabel.label_map import LabelMap
from torchrelabel.pooling import LabelPooling, dense_scores
from torchrelabel.store.header import class_for_people

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["cell_probabilities", "draw_label_map", "require_matplotlib", "require_picture", "save_picture"]

_BAR, _BOX = "#3b6fb6", "#e4572e"


def require_matplotlib() -> None:
    """Raise an error that says how to install matplotlib, where it is missing.

    Raises:
        ImportError: With the command.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("Pictures need matplotlib: pip install 'torchrelabel[viz]'") from None


def require_picture(path: str | os.PathLike[str]) -> None:
    """Raise an error where a picture could not be written, before the work that it is to show.

    Args:
        path: The picture.

    Raises:
        ValueError: If matplotlib has no format of this extension.
        FileNotFoundError: If there is no folder to write it to.
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    if os.path.splitext(path)[1][1:].lower() not in FigureCanvasBase.get_supported_filetypes():
        raise ValueError(
            f"The name of a picture says its format, and matplotlib has none for {os.fspath(path)!r}. "
            f"Give one that ends in .png, .svg or .pdf."
        )
    folder = os.path.dirname(path)
    if folder and not os.path.isdir(folder):
        raise FileNotFoundError(f"There is no folder {folder!r} for the picture. Make it first, or write elsewhere.")


def save_picture(figure: Figure, path: str | os.PathLike[str]) -> None:
    """Write a figure to a file, without a word about names that matplotlib's font has no signs for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph .* missing from", UserWarning)
        figure.savefig(path, dpi=120)


def cell_probabilities(label_map: LabelMap) -> Tensor:
    """The probability of every class in every cell, ``[C, h, w]``.

    Exact for the kept classes where the map has a residual; otherwise the classes not kept count as logit 0, as in
    the paper, or as probability 0.
    """
    dense = dense_scores(label_map, "residual" if label_map.residual is not None else "zero")
    return dense.softmax(0) if label_map.score_kind == "logit" else dense


def draw_label_map(
    image: PIL.Image.Image,
    label_map: LabelMap,
    *,
    class_names: Sequence[str] | None = None,
    pooling: LabelPooling | None = None,
    maps: int = 3,
    bars: int = 6,
    title: str | None = None,
) -> Figure:
    """Draw an image with the box of its label map's view, heat maps of the top classes, and the pooled label.

    Args:
        image: The whole image, as it was annotated.
        label_map: Its map; ``view_box`` is the crop to show.
        class_names: A name for each class; numbers are shown without.
        pooling: How to pool the label of the crop.
        maps: How many classes get a heat map: those with the largest share of the crop's label.
        bars: How many classes get a bar.
        title: Written on top.

    Returns:
        A matplotlib figure, not yet saved.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    label = (pooling or LabelPooling())(label_map)
    shown = label.topk(min(max(maps, bars), len(label)))
    classes = shown.indices.tolist()
    probabilities = cell_probabilities(label_map)
    figure = Figure(figsize=(3.1 * (2 + maps), 3.6), layout="constrained")
    axes = figure.subplots(1, 2 + maps, squeeze=False)[0]
    pixels = np.asarray(image.convert("RGB"))
    _draw_image(axes[0], pixels, label_map)
    axes[0].set_title("image and crop", fontsize=10)
    for axis, index in zip(axes[1:], classes[:maps], strict=False):
        heat = axis.imshow(
            probabilities[index].numpy(), cmap="viridis", vmin=0, vmax=1, extent=(0, image.width, image.height, 0)
        )
        axis.imshow(pixels.mean(2), cmap="gray", alpha=0.35, extent=(0, image.width, image.height, 0))
        _draw_box(axis, image.size, label_map)
        axis.set_title(f"{_shown(index, class_names)}: in the crop {label[index]:.2f}", fontsize=10)
        axis.set_axis_off()
    for axis in axes[1 + len(classes[:maps]) : -1]:
        axis.set_axis_off()
    if classes[:maps]:
        figure.colorbar(heat, ax=list(axes[1:-1]), shrink=0.7, label="probability in the cell")
    _draw_bars(axes[-1], classes[:bars], label, class_names)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def _draw_image(axis: Axes, pixels: Any, label_map: LabelMap) -> None:
    axis.imshow(pixels)
    _draw_box(axis, (pixels.shape[1], pixels.shape[0]), label_map)
    axis.set_axis_off()


def _draw_box(axis: Axes, size: tuple[int, int], label_map: LabelMap) -> None:
    from matplotlib.patches import Rectangle

    width, height = size
    x1, y1, x2, y2 = label_map.view_box.corners
    axis.add_patch(
        Rectangle(
            (min(x1, x2) * width, min(y1, y2) * height),
            abs(x2 - x1) * width,
            abs(y2 - y1) * height,
            fill=False,
            edgecolor=_BOX,
            linewidth=2,
        )
    )


def _draw_bars(axis: Axes, classes: Sequence[int], label: Tensor, class_names: Sequence[str] | None) -> None:
    axis.barh([_shown(index, class_names) for index in classes], [float(label[index]) for index in classes], color=_BAR)
    axis.invert_yaxis()
    axis.set_xlim(0, 1)
    axis.set_title("soft label of the crop", fontsize=10)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _shown(index: int, class_names: Sequence[str] | None) -> str:
    # With its index in front, for bars of equal names would be drawn as one.
    name = class_for_people(index, class_names)
    return name if len(name) <= 22 else name[:21] + "…"
