"""Pictures of label maps: the image, what each cell is taken for, where each class is seen, and the label of a crop."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import PIL.Image
from torch import Tensor

from torchrelabel.label_map import LabelMap
from torchrelabel.pooling import LabelPooling, dense_scores
from torchrelabel.store.header import class_for_people

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, FigureBase

__all__ = [
    "Picture",
    "cell_probabilities",
    "draw_gallery",
    "draw_label_map",
    "require_matplotlib",
    "require_picture",
    "save_picture",
]

_BAR, _BOX, _OTHER = "#3b6fb6", "#e4572e", "#9a9a9a"
# Told apart by most people with any kind of colour vision (Okabe and Ito), and a few more.
_COLOURS = (
    "#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#6a3d9a", "#8c564b", "#17becf",
)  # fmt: skip
_WHOLE = (0.0, 0.0, 1.0, 1.0)
# A heat map of less would be dark all over.
_SMALLEST_SHARE = 0.005
_PANEL_AREA = 7.0  # in square inches
_LEGEND_WIDTH = 3.2
_LETTERS = 24
_GALLERY_WIDTH, _GALLERY_WORDS = 6.0, 1.1  # in inches, of each picture


@dataclass(frozen=True)
class Picture:
    """An image with its label map, to be drawn.

    Attributes:
        image: The whole image, as it was annotated.
        label_map: Its map; ``view_box`` is the crop to show, in the frame of the map.
        title: Written above.
        coverage: The part of the image that the map covers, xyxy in fractions.
    """

    image: PIL.Image.Image
    label_map: LabelMap
    title: str = ""
    coverage: tuple[float, float, float, float] = _WHOLE

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """Where the map lies on the image, in pixels: left, right, bottom, top."""
        x1, y1, x2, y2 = self.coverage
        width, height = self.image.size
        return x1 * width, x2 * width, y2 * height, y1 * height

    @property
    def crop(self) -> tuple[float, float, float, float]:
        """The crop, in pixels of the image, xyxy."""
        left, right, bottom, top = self.extent
        x1, y1, x2, y2 = self.label_map.view_box.corners
        across, down = right - left, bottom - top
        return (
            left + min(x1, x2) * across,
            top + min(y1, y2) * down,
            left + max(x1, x2) * across,
            top + max(y1, y2) * down,
        )


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
    """Write a figure to a file, without matplotlib's warnings about letters that its font lacks."""
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
    coverage: tuple[float, float, float, float] = _WHOLE,
) -> Figure:
    """Draw an image with the crop of its label map's view, the top class of every cell, heat maps, and the label.

    Args:
        image: The whole image, as it was annotated.
        label_map: Its map; ``view_box`` is the crop to show.
        class_names: A name for each class; numbers are shown without.
        pooling: How to pool the label of the crop.
        maps: How many classes get a heat map, at most: those with the largest share of the crop's label.
        bars: How many classes get a bar.
        title: Written on top.
        coverage: The part of the image that the map covers, xyxy in fractions.

    Returns:
        A matplotlib figure, not yet saved.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    picture = Picture(image, label_map, title or "", coverage)
    label = (pooling or LabelPooling())(label_map)
    ranked = label.topk(min(max(maps, bars), len(label))).indices.tolist()
    probabilities = cell_probabilities(label_map)
    # A label that says nothing leaves what most cells say.
    seen = [index for index in ranked if label[index] >= _SMALLEST_SHARE] or [i for i, _ in _top_classes(probabilities)]
    seen = seen[:maps]

    panels = 2 + len(seen)
    width, height = _panel_size(image.size)
    columns = min(panels, max(1, round(11 / width)))
    rows = math.ceil(panels / columns)
    # The legend and the bars stand to the right, and need some height however flat the image is.
    figure_height = max(rows * (height + 0.5) + 0.7, 4.2) + (0.3 if title else 0)
    figure = Figure(figsize=(columns * width + _LEGEND_WIDTH, figure_height), layout="constrained")
    # The scale has a row: attached to panels of several rows, it would push their titles over each other.
    grid = figure.add_gridspec(
        rows + 1,
        columns + 1,
        width_ratios=[*[width] * columns, _LEGEND_WIDTH],
        height_ratios=[*[height] * rows, 0.12],
    )
    axes = [figure.add_subplot(grid[divmod(number, columns)]) for number in range(panels)]
    _draw_image(axes[0], picture)
    axes[0].set_title("image and crop", fontsize=9)
    top = _draw_top_classes(axes[1], picture, probabilities, {})
    axes[1].set_title("top class of each cell\nfuller: more certain", fontsize=9)
    grey = np.asarray(image.convert("L"))
    for axis, index in zip(axes[2:], seen, strict=True):
        heat = axis.imshow(probabilities[index].numpy(), cmap="viridis", vmin=0, vmax=1, extent=picture.extent)
        axis.imshow(grey, cmap="gray", alpha=0.35, extent=(0, image.width, image.height, 0))
        _draw_box(axis, picture)
        axis.set_title(f"{_shown(index, class_names)}\nin the crop: {label[index]:.2f}", fontsize=9)
        axis.set_axis_off()
    if seen:
        bar = figure.colorbar(heat, cax=figure.add_subplot(grid[rows, :columns]), orientation="horizontal")
        bar.set_label("probability in the cell", fontsize=8)
        bar.ax.tick_params(labelsize=8)
    side = grid[:, columns].subgridspec(2, 1)
    _draw_legend(figure.add_subplot(side[0]), top, class_names)
    _draw_bars(figure.add_subplot(side[1]), ranked[:bars], label, class_names)
    if title:
        figure.suptitle(title, fontsize=10)
    return figure


def draw_gallery(
    pictures: Sequence[Picture],
    *,
    class_names: Sequence[str] | None = None,
    pooling: LabelPooling | None = None,
    bars: int = 3,
) -> Figure:
    """Draw several images, each beside the top class of every cell, with the label of its crop below.

    Args:
        pictures: The images with their label maps.
        class_names: A name for each class; numbers are shown without.
        pooling: How to pool the labels of the crops.
        bars: How many classes of the label are written.

    Returns:
        A matplotlib figure, not yet saved.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no picture.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    if not pictures:
        raise ValueError("A gallery needs one picture or more, got none.")
    columns = 2 if len(pictures) == 4 else min(len(pictures), 3)
    heights = [
        max(_gallery_height(picture.image) for picture in pictures[start : start + columns])
        for start in range(0, len(pictures), columns)
    ]
    figure = Figure(figsize=(_GALLERY_WIDTH * columns, sum(heights)), layout="constrained")
    frames = figure.subfigures(len(heights), columns, squeeze=False, height_ratios=heights)
    known: dict[int, str] = {}
    for frame, picture in zip(frames.flat, pictures, strict=False):
        _draw_in_gallery(frame, picture, class_names, pooling or LabelPooling(), bars, known)
    return figure


def _draw_in_gallery(
    frame: FigureBase,
    picture: Picture,
    class_names: Sequence[str] | None,
    pooling: LabelPooling,
    bars: int,
    known: dict[int, str],
) -> None:
    from matplotlib.patches import Patch

    axes = frame.subplots(*((2, 1) if _is_flat(picture.image) else (1, 2)))
    _draw_image(axes[0], picture)
    top = _draw_top_classes(axes[1], picture, cell_probabilities(picture.label_map), known)
    handles = [
        Patch(color=colour, label=f"{_shown(index, class_names)} {share:.0%}") for index, share, colour in top[:4]
    ]
    frame.legend(handles=handles, loc="outside lower center", ncols=2, fontsize=9, frameon=False)
    label = pooling(picture.label_map)
    best = label.topk(min(bars, len(label)))
    words = ", ".join(
        f"{_shown(index, class_names)} {share:.2f}"
        for index, share in zip(best.indices.tolist(), best.values.tolist(), strict=True)
    )
    frame.suptitle(f"{_cut(picture.title, 60)}\nlabel: {words}", fontsize=9)


def _is_flat(image: PIL.Image.Image) -> bool:
    """Whether an image and its map are drawn above each other, and not beside each other."""
    return image.width > 2 * image.height


def _gallery_height(image: PIL.Image.Image) -> float:
    """Height in inches of an image and its map in a gallery, with the words above and below."""
    across, down = (1, 2) if _is_flat(image) else (2, 1)
    return _GALLERY_WORDS + min(_GALLERY_WIDTH / across * image.height / image.width * down, _GALLERY_WIDTH / 2)


def _panel_size(size: tuple[int, int]) -> tuple[float, float]:
    """Width and height in inches of a panel for an image, whose area is much the same for every shape."""
    aspect = min(8.0, max(1 / 3, size[0] / size[1]))
    width = min(11.0, max(2.2, math.sqrt(_PANEL_AREA * aspect)))
    return width, width / aspect


def _draw_image(axis: Axes, picture: Picture) -> None:
    axis.imshow(np.asarray(picture.image.convert("RGB")))
    _draw_box(axis, picture)
    axis.set_axis_off()


def _draw_top_classes(
    axis: Axes, picture: Picture, probabilities: Tensor, known: dict[int, str]
) -> list[tuple[int, float, str]]:
    """Colour each cell by its top class, the more certain the fuller.

    Args:
        axis: Where to draw.
        picture: The image.
        probabilities: Of its cells, ``[C, h, w]``.
        known: The colours of classes in the pictures before; those of this one are added.

    Returns:
        Class, share of the cells, and colour, the most frequent first.
    """
    from matplotlib.colors import to_rgb

    share, classes = probabilities.max(0)
    frequent = _top_classes(probabilities)
    colours_of = _choose_colours([index for index, _ in frequent], known)
    top = [(index, of_cells, colour) for (index, of_cells), colour in zip(frequent, colours_of, strict=True)]
    colours = np.zeros((*classes.shape, 4))
    for index, _, colour in top:
        colours[(classes == index).numpy(), :3] = to_rgb(colour)
    colours[..., 3] = 0.25 + 0.6 * share.numpy()
    grey = np.asarray(picture.image.convert("L"))
    axis.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=(0, picture.image.width, picture.image.height, 0))
    axis.imshow(colours, extent=picture.extent, interpolation="nearest")
    left, right, bottom, top_side = picture.extent
    rows, columns = classes.shape
    axis.hlines(np.linspace(top_side, bottom, rows + 1), left, right, color="white", linewidth=0.4, alpha=0.6)
    axis.vlines(np.linspace(left, right, columns + 1), top_side, bottom, color="white", linewidth=0.4, alpha=0.6)
    _draw_box(axis, picture)
    axis.set_axis_off()
    return top


def _choose_colours(classes: Sequence[int], known: dict[int, str]) -> list[str]:
    """A colour for each class of a picture: the one that it has had, or one that says nothing else if there is any."""
    chosen: list[str] = []
    for index in classes:
        colour = known.get(index)
        if colour is None or colour in chosen:
            free = [each for each in _COLOURS if each not in chosen]
            to_come = {known.get(other) for other in classes}
            colour = next(
                (each for taken in (known.values(), to_come, ()) for each in free if each not in taken), _OTHER
            )
        chosen.append(colour)
        if colour != _OTHER:
            known.setdefault(index, colour)
    return chosen


def _top_classes(probabilities: Tensor) -> list[tuple[int, float]]:
    """The classes that are on top in a cell, with their share of the cells, the most frequent first."""
    counts = probabilities.argmax(0).flatten().bincount()
    order = counts.argsort(descending=True, stable=True).tolist()
    return [(index, int(counts[index]) / int(counts.sum())) for index in order if counts[index]]


def _draw_legend(axis: Axes, top: Sequence[tuple[int, float, str]], class_names: Sequence[str] | None) -> None:
    from matplotlib.patches import Patch

    own = [entry for entry in top if entry[2] != _OTHER]
    rest = [entry for entry in top if entry[2] == _OTHER]
    handles = [Patch(color=colour, label=f"{_shown(index, class_names)} {share:.0%}") for index, share, colour in own]
    if rest:
        handles.append(Patch(color=_OTHER, label=f"{len(rest)} others {sum(share for _, share, _ in rest):.0%}"))
    axis.legend(
        handles=handles, loc="upper left", title="top class of cells", fontsize=8, title_fontsize=9, frameon=False
    )
    axis.set_axis_off()


def _draw_box(axis: Axes, picture: Picture) -> None:
    from matplotlib.patches import Rectangle

    x1, y1, x2, y2 = picture.crop
    axis.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=_BOX, linewidth=2))
    axis.set(xlim=(0, picture.image.width), ylim=(picture.image.height, 0))


def _draw_bars(axis: Axes, classes: Sequence[int], label: Tensor, class_names: Sequence[str] | None) -> None:
    shares = [float(label[index]) for index in classes]
    axis.bar_label(
        axis.barh([_shown(index, class_names) for index in classes], shares, color=_BAR),
        labels=[f"{share:.2f}" for share in shares],
        padding=3,
        fontsize=8,
    )
    axis.invert_yaxis()
    axis.set_xlim(0, 1.15)
    axis.set_xticks([0, 0.5, 1])
    axis.set_title("soft label of the crop", fontsize=10)
    axis.tick_params(labelsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _shown(index: int, class_names: Sequence[str] | None) -> str:
    # With its index in front, for bars of equal names would be drawn as one.
    return _cut(class_for_people(index, class_names), _LETTERS)


def _cut(name: str, letters: int) -> str:
    return name if len(name) <= letters else name[: letters - 1] + "…"
