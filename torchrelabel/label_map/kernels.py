"""One kernel per torchvision functional that a view can follow.

The only place where boxes are (top, left, height, width), as in torchvision. Arguments stand in the order of v1's
functionals, which its transforms call by position.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from torchvision.transforms.v2 import functional as F

from torchrelabel.label_map.batch import move_batch
from torchrelabel.label_map.map import LabelMap

Canvas = tuple[int, int]


@F.register_kernel("crop", LabelMap)
def crop_label_map(label_map: LabelMap, top: int, left: int, height: int, width: int, **_: Any) -> LabelMap:
    """Crop, or pad where the box reaches past the canvas."""
    h, w = label_map.canvas_size
    box_in_canvas = (left / w, top / h, (left + width) / w, (top + height) / h)
    return label_map.with_view(label_map.view_box.crop(*box_in_canvas), (height, width))


@F.register_kernel("resize", LabelMap)
def resize_label_map(
    label_map: LabelMap,
    size: int | Sequence[int] | None,
    interpolation: Any = None,
    max_size: int | None = None,
    antialias: Any = None,
    **_: Any,
) -> LabelMap:
    """Only the canvas changes: a view is in fractions."""
    return label_map.with_view(label_map.view_box, _resized(label_map.canvas_size, size, max_size))


@F.register_kernel("resized_crop", LabelMap)
def resized_crop_label_map(
    label_map: LabelMap, top: int, left: int, height: int, width: int, size: int | Sequence[int], *_: Any, **__: Any
) -> LabelMap:
    """Crop, then resize."""
    return resize_label_map(crop_label_map(label_map, top, left, height, width), size)


@F.register_kernel("horizontal_flip", LabelMap)
def horizontal_flip_label_map(label_map: LabelMap, **_: Any) -> LabelMap:
    """Mirror the view left to right."""
    return label_map.with_view(label_map.view_box.flip_x())


@F.register_kernel("vertical_flip", LabelMap)
def vertical_flip_label_map(label_map: LabelMap, **_: Any) -> LabelMap:
    """Mirror the view top to bottom."""
    return label_map.with_view(label_map.view_box.flip_y())


@F.register_kernel("pad", LabelMap)
def pad_label_map(label_map: LabelMap, padding: int | Sequence[int], *_: Any, **__: Any) -> LabelMap:
    """Let the view reach past the canvas. What a border mirrors or repeats of the image is seen once, inside."""
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


@F.register_kernel("affine", LabelMap)
def affine_label_map(
    label_map: LabelMap,
    angle: float,
    translate: Sequence[float],
    scale: float,
    shear: float | Sequence[float],
    center: Sequence[float] | None = None,
    **_: Any,
) -> LabelMap:
    """Turn, shear, enlarge and shift; what comes in from outside the canvas is blank."""
    h, w = label_map.canvas_size
    shears = (shear, 0.0) if isinstance(shear, (int, float)) else (shear[0], shear[-1])
    centre = (w / 2, h / 2) if center is None else (center[0], center[1])
    to_old = _inverse_affine(angle, scale, shears)
    # A pixel of the new canvas, less the shift, shows the pixel that the inverse makes of it around the centre.
    origin = (centre[0] + translate[0], centre[1] + translate[1])
    return _moved(label_map, to_old, origin, centre, (h, w))


@F.register_kernel("rotate", LabelMap)
def rotate_label_map(
    label_map: LabelMap,
    angle: float,
    interpolation: Any = None,
    expand: bool = False,
    center: Sequence[float] | None = None,
    *_: Any,
    **__: Any,
) -> LabelMap:
    """Turn, counter-clockwise; with ``expand`` the canvas grows, and torchvision then ignores the centre."""
    h, w = label_map.canvas_size
    to_old = _inverse_affine(-angle, 1.0, (0.0, 0.0))
    centre = (center[0], center[1]) if center is not None and not expand else (w / 2, h / 2)
    if not expand:
        return _moved(label_map, to_old, centre, centre, (h, w))
    height, width = ((h, w), (w, h))[int(angle // 90) % 2] if angle % 90 == 0 else _size_of_turned((h, w), to_old)
    return _moved(label_map, to_old, (width / 2, height / 2), centre, (height, width))


def _inverse_affine(angle: float, scale: float, shear: Sequence[float]) -> tuple[float, float, float, float]:
    """The inverse of turning by ``angle`` degrees, clockwise, shearing and scaling: rows of a 2 x 2 matrix.

    Source: ``RotateScaleShear`` as torchvision's ``functional.affine`` documents it, of determinant ``scale ** 2``.
    """
    turn, shear_x, shear_y = math.radians(angle), math.radians(shear[0]), math.radians(shear[1])
    a = math.cos(turn - shear_y) / math.cos(shear_y)
    b = -a * math.tan(shear_x) - math.sin(turn)
    c = math.sin(turn - shear_y) / math.cos(shear_y)
    d = -c * math.tan(shear_x) + math.cos(turn)
    return d / scale, -b / scale, -c / scale, a / scale


def _moved(
    label_map: LabelMap,
    to_old: tuple[float, float, float, float],
    origin: tuple[float, float],
    centre: tuple[float, float],
    canvas: Canvas,
) -> LabelMap:
    """A map for a new canvas, whose pixel ``origin + d`` shows the pixel ``centre + to_old d`` of the present one."""
    (a, b, c, d), (h, w), (height, width) = to_old, label_map.canvas_size, canvas
    x0 = centre[0] - a * origin[0] - b * origin[1]
    y0 = centre[1] - c * origin[0] - d * origin[1]
    to_this_canvas = (
        (a * width / w, b * height / w, x0 / w),
        (c * width / h, d * height / h, y0 / h),
    )
    return label_map.with_view(label_map.view_box.transform(to_this_canvas), canvas)


def _size_of_turned(canvas: Canvas, to_old: tuple[float, float, float, float]) -> Canvas:
    """The size (H, W) of a canvas that holds all of a turned one, in whole pixels."""
    a, b, c, d = to_old  # of a rotation, whose inverse is its transpose
    h, w = canvas
    width, height = abs(a) * w + abs(c) * h, abs(b) * w + abs(d) * h
    return _whole(height, h), _whole(width, w)


def _whole(side: float, before: int) -> int:
    """A side rounded up so that its pixels lie as those of the side before it."""
    # Both ends go outwards to a border of pixels; what PIL and torchvision take for a rounding error is none.
    return before + 2 * math.ceil((side - before) / 2 - 1e-4)


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


# By the functional that each follows.
KERNELS: dict[str, Callable[..., Any]] = {
    "crop": crop_label_map,
    "resize": resize_label_map,
    "resized_crop": resized_crop_label_map,
    "horizontal_flip": horizontal_flip_label_map,
    "vertical_flip": vertical_flip_label_map,
    "pad": pad_label_map,
    "center_crop": center_crop_label_map,
    "affine": affine_label_map,
    "rotate": rotate_label_map,
}
for _functional, _kernel in KERNELS.items():
    move_batch(_functional, _kernel)
