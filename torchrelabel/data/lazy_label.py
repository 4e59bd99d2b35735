"""LazyLabel: the label of an image whose crop is still to come."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map

from torchrelabel.data.records import SeenRecord
from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.pooling import LabelPooling

__all__ = ["LazyLabel", "pool_together"]


class LazyLabel:
    """What a dataset gives as the label where its loader transforms images outside of the dataset.

    timm's loaders of scheduled sizes and of NaFlex batches do so. The crop is known once they have run, so the label is
    pooled when the batch is collated: by :func:`torch.utils.data.default_collate`, or by timm's own functions after
    :func:`~torchrelabel.data.timm_soft_targets.accept_soft_targets`. That is also where a missing map raises, since
    NaFlex turns all that goes wrong while a sample is loaded into a warning.

    Args:
        label: Gives the label map of what the image shows by then, a record to be pooled, or a soft label; called once.
        pooling: How to pool it, or None for the map itself.
        finish: What is done to the pooled label.
    """

    def __init__(
        self, label: Callable[[], Tensor | SeenRecord], pooling: LabelPooling | None, finish: Callable[[Tensor], Tensor]
    ) -> None:
        self.label = label
        self.pooling = pooling
        self.finish = finish


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


def resolved(labels: Sequence[Any]) -> list[Any]:
    """The labels of a batch, with those pooled that had to wait for their crop."""
    given = list(labels)
    waiting = [place for place, label in enumerate(given) if isinstance(label, LazyLabel)]
    if waiting:
        pooling = given[waiting[0]].pooling
        finish = [given[place].finish for place in waiting]
        for place in waiting:
            given[place] = given[place].label()
        if pooling is not None:
            pool_together(given, pooling)
        for place, finished in zip(waiting, finish, strict=True):
            given[place] = finished(given[place])
    return given


def _collate(batch: Sequence[LazyLabel], *, collate_fn_map: Mapping[Any, Any] | None = None) -> Tensor | LabelMapBatch:
    labels = resolved(batch)
    return LabelMapBatch.stack(labels) if isinstance(labels[0], LabelMap) else torch.stack(labels)


default_collate_fn_map[LazyLabel] = _collate
