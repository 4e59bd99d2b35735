"""Labels of images that a loader of timm's transforms outside of their dataset: pooled when the batch is collated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torch.utils.data._utils.collate import default_collate_fn_map

from torchrelabel.data.dataset import LabelMapDataset, Sample
from torchrelabel.errors import CropNotSeen
from torchrelabel.following.follow import plain, resume
from torchrelabel.following.functionals import tracked
from torchrelabel.following.steps import run
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.label_map import LabelMap, LabelMapBatch

__all__ = ["FollowedTransform", "LazyLabel", "UntransformedDataset", "resolved"]


class UntransformedDataset(Dataset[Any]):
    """A :class:`~torchrelabel.LabelMapDataset` whose images are transformed by the loader around it.

    timm's loaders of scheduled sizes and of NaFlex batches do so. An item is an image that knows what it shows, and a
    :class:`LazyLabel`.

    Args:
        dataset: Without a transform.
    """

    def __init__(self, dataset: LabelMapDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Any:
        (sample,) = self.dataset.look_up([index])
        try:
            self.dataset.load(sample)
        except CropNotSeen as error:
            if sample.image is None:
                raise
            sample.error = error
        image, sample.image = sample.image, None
        if sample.trace is not None:
            image = tracked(resume(image, sample.trace), sample.trace, self.dataset)
        return (image, LazyLabel(self.dataset, sample), *sample.rest)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self.dataset, name)


class FollowedTransform:
    """A transform of a loader that follows images of an :class:`UntransformedDataset`.

    What cannot be followed raises when the batch is collated, as a missing label map does: NaFlex turns all that goes
    wrong while a sample is loaded into a warning.

    Args:
        transform: The loader's own.
    """

    def __init__(self, transform: Callable[[Any], Any]) -> None:
        self.transform = transform

    def __call__(self, image: Any) -> Any:
        if not isinstance(image, TrackedImage):
            return self.transform(image)
        with image.trace as trace:
            try:
                output = run(self.transform, resume(image, trace), trace)
                trace.finish(output, self.transform)
            except CropNotSeen as error:
                trace.error = error
                return self.transform(image.plain())
            return plain(output)

    def __repr__(self) -> str:
        return repr(self.transform)


class LazyLabel:
    """The label of an image whose crop is still to come.

    It is pooled when the batch is collated, by :func:`torch.utils.data.default_collate` or by timm's own functions
    after :func:`~torchrelabel.integrations.timm.soft_targets.accept_soft_targets`.

    Args:
        dataset: What knows how.
        sample: Of the dataset, loaded but for its transform.
    """

    def __init__(self, dataset: LabelMapDataset, sample: Sample) -> None:
        self.dataset = dataset
        self.sample = sample


def resolved(labels: Sequence[Any]) -> list[Any]:
    """The labels of a batch, with those pooled that had to wait for their crop.

    Raises:
        CropNotSeen, MissingLabelMap: If an image of the batch has no label.
    """
    given = list(labels)
    waiting = [place for place, label in enumerate(given) if isinstance(label, LazyLabel)]
    if not waiting:
        return given
    samples = [given[place].sample for place in waiting]
    dataset = given[waiting[0]].dataset
    for sample in samples:
        error = sample.error or (sample.trace and sample.trace.error)
        if error is not None:
            raise error
        dataset.see(sample)
    for place, item in zip(waiting, dataset.finish(samples), strict=True):
        given[place] = item[1]
    return given


def _collate(batch: Sequence[LazyLabel], *, collate_fn_map: Mapping[Any, Any] | None = None) -> Tensor | LabelMapBatch:
    labels = resolved(batch)
    return LabelMapBatch.stack(labels) if isinstance(labels[0], LabelMap) else torch.stack(labels)


default_collate_fn_map[LazyLabel] = _collate
