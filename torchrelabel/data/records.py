"""A record of a store, as the label map of an image or of a batch of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.label_map.views import ViewBatch
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelRecord, StoreHeader
from torchrelabel.view import View, ViewBox

__all__ = ["SeenRecord", "check_complete", "label_map_of", "pool_together"]

_WHOLE = (0.0, 0.0, 1.0, 1.0)


def check_complete(label_maps: Mapping[str, Any]) -> None:
    """Refuse a store whose writer has not finished: training would stop at the first image that it has not reached.

    Raises:
        ValueError: If that is so.
    """
    header = getattr(label_maps, "header", None)
    if isinstance(header, StoreHeader) and not header.complete:
        raise ValueError(
            f"{label_maps!r} is still being written, or its writer was stopped: images that it has not reached have no "
            f"label maps. Wait for it or run the same command again; or say missing='onehot' to train those on their "
            f"class."
        )


class SeenRecord(NamedTuple):
    """A record, and what an image shows of it.

    Attributes:
        record: Of a store.
        header: Of the same store.
        canvas_size: Size (H, W) of the image in pixels.
        view: What is in view of the whole image, in fractions of it.
    """

    record: LabelRecord
    header: StoreHeader
    canvas_size: tuple[int, int]
    view: View

    @property
    def kind(self) -> tuple[Any, ...]:
        """What records must have in common to be stacked: those of two stores may differ in all of it."""
        record, header = self.record, self.header
        return record.scores.shape, record.residual is None, header.num_classes, header.score_kind, header.calibration

    @staticmethod
    def stack(seen: Sequence[SeenRecord]) -> LabelMapBatch:
        """The label maps of records of one kind, in a third of the time of making and stacking them."""
        records, header = [one.record for one in seen], seen[0].header
        grids = (len(records), *records[0].scores.shape)
        residuals = [record.residual for record in records if record.residual is not None]
        image_scores = [record.image_scores for record in records if record.image_scores is not None]
        views = [_view_of_map(one.record, one.view) for one in seen]
        return LabelMapBatch(
            torch.from_numpy(np.concatenate([record.scores for record in records]).reshape(grids)),
            # int64 is what pooling takes.
            torch.from_numpy(np.concatenate([record.classes for record in records], dtype=np.int64).reshape(grids)),
            num_classes=header.num_classes,
            view_boxes=ViewBatch.stack(views),
            canvas_sizes=[one.canvas_size for one in seen],
            residual=torch.from_numpy(np.stack(residuals)) if residuals else None,
            score_kind=header.score_kind,
            image_scores=torch.from_numpy(np.stack(image_scores)) if image_scores else None,
            calibration=header.calibration,
        )


def label_map_of(
    record: LabelRecord,
    header: StoreHeader,
    canvas_size: Sequence[int],
    view: View = ViewBox(),  # noqa: B008 -- it is immutable
) -> LabelMap:
    """The label map that a record holds, for an image that shows ``view``.

    Args:
        record: Of a store.
        header: Of the same store.
        canvas_size: Size (H, W) of the image in pixels.
        view: What is in view of the whole image, in fractions of it. Where the map covers only a part of
            the image (``record.coverage``), the map's own view box is in fractions of that part, and reaches past it
            where the image does.
    """
    return LabelMap._unchecked(
        torch.from_numpy(record.scores),
        torch.from_numpy(record.classes),
        None if record.residual is None else torch.from_numpy(record.residual),
        header.num_classes,
        (int(canvas_size[0]), int(canvas_size[1])),
        _view_of_map(record, view),
        header.score_kind,
        None if record.image_scores is None else torch.from_numpy(record.image_scores),
        header.calibration,
    )


def _view_of_map(record: LabelRecord, view: View) -> View:
    """The view of a record's map, in fractions of the part that it covers, from that of its image."""
    if record.coverage == _WHOLE:
        return view
    x1, y1, x2, y2 = record.coverage
    width, height = x2 - x1, y2 - y1
    return ViewBox(-x1 / width, -y1 / height, (1 - x1) / width, (1 - y1) / height).compose(view)


def pool_together(labels: list[Any], pooling: LabelPooling) -> None:
    """Replace each label map, or record, in a list by its pooled label, all those of one kind at once."""
    alike: dict[Any, list[int]] = {}
    for place, label in enumerate(labels):
        if isinstance(label, SeenRecord):
            alike.setdefault((SeenRecord, *label.kind), []).append(place)
        elif isinstance(label, LabelMap):
            kind = (LabelMapBatch, label.shape, label.residual is None, label.image_scores is None, label.calibration)
            alike.setdefault(kind, []).append(place)
    for (stacked, *_), places in alike.items():
        pooled = pooling(stacked.stack([labels[place] for place in places]))
        for place, label in zip(places, pooled, strict=True):
            labels[place] = label
