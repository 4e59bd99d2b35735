"""One kernel per torchvision functional that a view box can follow.

The only place where boxes are (top, left, height, width), as in torchvision.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torchvision.transforms.v2 import functional as F

from torchrelabel.errors import UntrackedTransformError
from torchrelabel.label_map import LabelMap

Canvas = tuple[int, int]


@F.register_kernel("crop", LabelMap)
def crop_label_map(label_map: LabelMap, top: int, left: int, height: int, width: int, **_: Any) -> LabelMap:
    """Crop, or pad where the box reaches past the canvas."""
    h, w = label_map.canvas_size
    box_in_canvas = (left / w, top / h, (left + width) / w, (top + height) / h)
    if label_map.view_box.hides(*box_in_canvas):
        raise UntrackedTransformError(
            f"A canvas of {h} x {w} pixels (H x W) that shows a crop was padded: top {top}, left {left}, {height} x "
            f"{width} pixels of it are asked for. They show padding where the image goes on, which a view box cannot "
            f"express. Pad before the crop (v2.Pad, v2.RandomZoomOut, v2.RandomCrop(padding=)), or leave it out."
        )
    return label_map.seen_through(label_map.view_box.crop(*box_in_canvas), (height, width))


@F.register_kernel("resize", LabelMap)
def resize_label_map(
    label_map: LabelMap, size: int | Sequence[int] | None, max_size: int | None = None, **_: Any
) -> LabelMap:
    """Only the canvas changes: a view box is in fractions."""
    return label_map.seen_through(label_map.view_box, _resized(label_map.canvas_size, size, max_size))


@F.register_kernel("resized_crop", LabelMap)
def resized_crop_label_map(
    label_map: LabelMap, top: int, left: int, height: int, width: int, size: int | Sequence[int], **_: Any
) -> LabelMap:
    """Crop, then resize."""
    return resize_label_map(crop_label_map(label_map, top, left, height, width), size)


@F.register_kernel("horizontal_flip", LabelMap)
def horizontal_flip_label_map(label_map: LabelMap, **_: Any) -> LabelMap:
    """Exchange the ends of the view box in x."""
    return label_map.seen_through(label_map.view_box.flip_x())


@F.register_kernel("vertical_flip", LabelMap)
def vertical_flip_label_map(label_map: LabelMap, **_: Any) -> LabelMap:
    """Exchange the ends of the view box in y."""
    return label_map.seen_through(label_map.view_box.flip_y())


@F.register_kernel("pad", LabelMap)
def pad_label_map(
    label_map: LabelMap, padding: int | Sequence[int], fill: Any = None, padding_mode: str = "constant", **_: Any
) -> LabelMap:
    """Let the view box reach past the image."""
    if padding_mode != "constant":
        raise UntrackedTransformError(
            f"pad with padding_mode={padding_mode!r} shows parts of the image twice, which a view box cannot express. "
            f"Pad with padding_mode='constant', or pool before it (PoolLabelMap)."
        )
    left, top, right, bottom = _sides(padding)
    h, w = label_map.canvas_size
    return crop_label_map(label_map, -top, -left, h + top + bottom, w + left + right)


@F.register_kernel("center_crop", LabelMap)
def center_crop_label_map(label_map: LabelMap, output_size: int | Sequence[int], **_: Any) -> LabelMap:
    """Crop around the centre; a side that is too short is padded first, as torchvision does."""
    height, width = _pair(output_size)
    h, w = label_map.canvas_size
    # torchvision pads the odd pixel at the end, and rounds the crop's corner half to even.
    top = -((height - h) // 2) if height > h else round((h - height) / 2.0)
    left = -((width - w) // 2) if width > w else round((w - width) / 2.0)
    return crop_label_map(label_map, top, left, height, width)


@F.register_kernel("five_crop", LabelMap)
def five_crop_label_map(label_map: LabelMap, size: int | Sequence[int], **_: Any) -> tuple[LabelMap, ...]:
    """Top left, top right, bottom left, bottom right and centre."""
    height, width = _pair(size)
    h, w = label_map.canvas_size
    corners = [(top, left) for top in (0, h - height) for left in (0, w - width)]
    return (
        *(crop_label_map(label_map, top, left, height, width) for top, left in corners),
        center_crop_label_map(label_map, (height, width)),
    )


@F.register_kernel("ten_crop", LabelMap)
def ten_crop_label_map(
    label_map: LabelMap, size: int | Sequence[int], vertical_flip: bool = False, **_: Any
) -> tuple[LabelMap, ...]:
    """The five crops of the canvas, and those of the flipped canvas."""
    flip = vertical_flip_label_map if vertical_flip else horizontal_flip_label_map
    return five_crop_label_map(label_map, size) + five_crop_label_map(flip(label_map), size)


def _resized(canvas: Canvas, size: int | Sequence[int] | None, max_size: int | None) -> Canvas:
    """The size (H, W) that torchvision's resize gives an image of size ``canvas``."""
    h, w = canvas
    if size is not None and not isinstance(size, int) and len(size) == 2:
        return int(size[0]), int(size[1])
    short, long = (w, h) if w <= h else (h, w)
    if size is None:  # the longer side becomes max_size
        assert max_size is not None
        new_short, new_long = int(max_size * short / long), max_size
    else:
        new_short = size if isinstance(size, int) else int(size[0])
        new_long = int(new_short * long / short)
        if max_size is not None and new_long > max_size:
            new_short, new_long = int(max_size * new_short / new_long), max_size
    return (new_long, new_short) if w <= h else (new_short, new_long)


def _sides(padding: int | Sequence[int]) -> tuple[int, int, int, int]:
    sides = (padding,) if isinstance(padding, int) else tuple(padding)
    left, top, right, bottom = {1: sides * 4, 2: sides * 2, 4: sides}[len(sides)]
    return left, top, right, bottom


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    sides = (size,) if isinstance(size, int) else tuple(size)
    return int(sides[0]), int(sides[-1])
