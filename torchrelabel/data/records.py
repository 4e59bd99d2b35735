"""A record of a store, as the label map of an image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from torchrelabel.label_map import LabelMap
from torchrelabel.view_box import ViewBox

if TYPE_CHECKING:
    from torchrelabel.store import LabelRecord, StoreHeader

__all__ = ["label_map_of"]

_WHOLE = (0.0, 0.0, 1.0, 1.0)


def label_map_of(
    record: LabelRecord,
    header: StoreHeader,
    canvas_size: Sequence[int],
    view_box: ViewBox = ViewBox(),  # noqa: B008 -- it is immutable
) -> LabelMap:
    """The label map that a record holds, for an image that shows ``view_box``.

    Args:
        record: Of a store.
        header: Of the same store.
        canvas_size: Size (H, W) of the image in pixels.
        view_box: The part of the whole image that is in view, in fractions of it. Where the map covers only a part of
            the image (``record.coverage``), the map's own view box is in fractions of that part, and reaches past it
            where the image does.
    """
    if record.coverage != _WHOLE:
        x1, y1, x2, y2 = record.coverage
        width, height = x2 - x1, y2 - y1
        whole_image = ViewBox(-x1 / width, -y1 / height, (1 - x1) / width, (1 - y1) / height)
        view_box = whole_image.compose(view_box)
    return LabelMap._unchecked(
        torch.from_numpy(record.scores),
        torch.from_numpy(record.classes),
        None if record.residual is None else torch.from_numpy(record.residual),
        header.num_classes,
        (int(canvas_size[0]), int(canvas_size[1])),
        view_box,
        header.score_kind,
    )
