"""LabelMapDataset: an image dataset whose labels are pooled from label maps, for just the crop that is seen."""

from __future__ import annotations

import copy
import os
import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils._pytree import tree_map
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset
from torchvision.datasets import DatasetFolder
from torchvision.datasets.vision import StandardTransform
from torchvision.transforms.v2 import functional as F

from torchrelabel.data.keys import (
    Key,
    KeyPrefix,
    check_distinct,
    class_indices,
    find_key_prefix,
    key_of,
    root_below,
    root_of,
)
from torchrelabel.data.lazy_label import LazyLabel, pool_together
from torchrelabel.data.records import SeenRecord, check_complete, label_map_of
from torchrelabel.data.tell_tale_reader import TellTaleLoader, TellTaleReader
from torchrelabel.data.timm_soft_targets import accept_soft_targets_if_loaded
from torchrelabel.data.tracked_image import TrackedImage
from torchrelabel.errors import CropNotSeen, UntrackedTransformError
from torchrelabel.label_map import LabelMap
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.store.header import class_for_people
from torchrelabel.transforms import Finding, check_pipeline
from torchrelabel.transforms._likeness import size_of
from torchrelabel.transforms._loading import LoadingSample, loading_sample
from torchrelabel.transforms._steps import Steps, steps_of
from torchrelabel.view_box import ViewBox

__all__ = ["LabelMapDataset"]


class LabelMapDataset(Dataset[Any]):
    """Any map-style image dataset, with the label of each image pooled from its label map.

    An item is ``(image, soft label [C])``, followed by whatever else the dataset gives, so that a training loop
    stays as it is. The dataset is shallow-copied and never changed. Its public attributes (``classes``, ``samples``,
    ``set_epoch``, ...) are there on the wrapper too, and ``transform`` stays assignable.

    How the crop is learnt, in this order, and either right or an error:

    1. ``transforms``, a ``torchvision.transforms.v2`` pipeline, is called on ``(image, label_map)``.
    2. Otherwise the dataset's own pipeline (v1, v2, timm's, any function) gets a PIL image that knows which part of
       the original it shows. Pixels and random numbers are what they would be without.
    3. :class:`~torchrelabel.RandomResizedCropWithLabelMap` in that pipeline tells its crop, also of tensors.
    4. No crop, or several crops of one image: :class:`~torchrelabel.errors.CropNotSeen`.

    Args:
        dataset: ``ImageFolder`` and its friends, also within ``Subset``, ``random_split`` or ``ConcatDataset``;
            anything else together with ``key``.
        label_maps: A store's path, a :class:`~torchrelabel.LabelStore`, or a mapping from keys to
            :class:`~torchrelabel.LabelMap` objects.
        transforms: A v2 pipeline for images and label maps together. The dataset must then have none of its own.
        pooling: How to pool. None gives ``(image, LabelMap)``, to pool or mix whole batches later.
        num_classes: ``C``, the outputs of the model to be trained. Only needed where it differs from the number of
            classes of the dataset, such as an annotator of 1000 classes and a folder of 40 of them.
        key: A function from index to key in the store, or one key for each index, for datasets that do not know
            their files.
        key_prefix: What the store's keys have in front of the dataset's, such as ``"train/"`` where the folder above
            was annotated. If None is given and leading folders are all that keeps the keys from fitting, they are
            added or dropped, and a warning says so.
        missing: ``"error"``, or ``"onehot"`` to give images without a map the one-hot label of the dataset.
        crop: ``"auto"``, or ``"full"`` to pool the whole image whatever is cropped (the paper's "global" labels).
        onehot: Share, 0 to 1, of the dataset's own one-hot label in each label; the rest is the pooled one. The paper
            found a half of it worse on ImageNet, docs/evidence.md found it better on a small data set.

    Raises:
        TypeError, ValueError: If an argument does not fit the dataset or the store, saying which and what to do.
        MissingLabelMap: If the store lacks the map of the first, the middle or the last image, and later that of any.
        CropNotSeen: When an image is loaded of which no crop, or no single one, was seen.

    Example:
        >>> dataset = ImageFolder("train", transform=transform)
        >>> dataset = LabelMapDataset(dataset, "maps.lmdb")
        >>> image, soft_label = dataset[0]

    Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.2.
    """

    def __init__(
        self,
        dataset: Any,
        label_maps: str | os.PathLike[str] | Mapping[str, Any],
        transforms: Callable[..., Any] | None = None,
        *,
        pooling: LabelPooling | None = LabelPooling(),  # noqa: B008 -- it has no state
        num_classes: int | None = None,
        key: Key | None = None,
        key_prefix: str | None = None,
        missing: str = "error",
        crop: str = "auto",
        onehot: float = 0.0,
    ) -> None:
        if any(isinstance(layer, LabelMapDataset) for layer in _layers(dataset)):
            raise TypeError("This dataset is a LabelMapDataset already. Wrap the image dataset once.")
        if isinstance(dataset, IterableDataset) and hasattr(dataset, "reader"):
            raise TypeError(
                f"timm's {type(dataset.reader).__name__} gives its images one after the other. Those of wds/ go into "
                f"torchrelabel.integrations.timm.LabelMapStream(dataset, ...); others do not tell the names of their "
                f"images, so that no label maps can be found: read them from a folder, a tar file, wds/ or hfds/."
            )
        indexed = hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
        if not indexed or isinstance(dataset, IterableDataset):
            raise TypeError(
                f"LabelMapDataset wraps a map-style dataset, one with __getitem__ and __len__, "
                f"got {type(dataset).__name__}."
            )
        if not isinstance(label_maps, (str, os.PathLike, Mapping)):
            raise TypeError(
                f"label_maps is the path of a store, a LabelStore or a mapping, got {type(label_maps).__name__}: "
                f"LabelMapDataset(dataset, label_maps)."
            )
        if pooling is not None and not isinstance(pooling, LabelPooling):
            raise TypeError(f"pooling is a LabelPooling() or None, got {pooling!r}.")
        if isinstance(key, Sequence) and len(key) != len(dataset):
            raise ValueError(f"key= has {len(key)} keys for a dataset of {len(dataset)} images: give one for each.")
        if missing not in ("error", "onehot"):
            raise ValueError(f"missing is 'error' or 'onehot', got {missing!r}.")
        if crop not in ("auto", "full"):
            raise ValueError(f"crop is 'auto' or 'full', got {crop!r}.")
        if missing == "onehot" and pooling is None:
            raise ValueError("missing='onehot' makes a label, not a map: it needs a pooling, got pooling=None.")
        if not 0 <= onehot <= 1:
            raise ValueError(f"onehot is a share of the label, 0 to 1, got {onehot!r}.")
        if onehot and pooling is None:
            raise ValueError("onehot= changes labels, not maps: it needs a pooling, got pooling=None.")
        self._dataset, self.transform = _without_transform(dataset)
        # A dataset without that attribute changes its images in a place of its own, if at all.
        taken = any(getattr(layer, "transform", None) is _as_loaded for layer in _layers(self._dataset))
        self._transforms_inside = not taken and crop != "full"
        self.transforms = transforms
        self._check_one_pipeline()
        if transforms is not None:
            _report(check_pipeline(transforms))
        self.label_maps: Mapping[str, Any] = (
            LabelStore(label_maps) if isinstance(label_maps, (str, os.PathLike)) else label_maps
        )
        if missing == "error":
            check_complete(self.label_maps)
        self.pooling = pooling
        self._key = key
        self._prefix = KeyPrefix(key_prefix or "")
        self._missing = missing
        self._crop = crop
        self._onehot = onehot
        takes_indices = f"onehot={onehot}" if onehot else "missing='onehot'" if missing == "onehot" else None
        self.num_classes = _agreed_num_classes(self._dataset, self.label_maps, num_classes, takes_indices)
        if key is None:
            check_distinct(self._dataset)
        self._look_some_up(guess=key is None and key_prefix is None)
        readers = (getattr(layer, "reader", None) for layer in _layers(self._dataset))
        self._timms_readers = [reader for reader in readers if isinstance(reader, TellTaleReader)]
        accept_soft_targets_if_loaded()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        accept_soft_targets_if_loaded()  # a spawned worker has a timm of its own

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Any:
        return self._items([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Any]:
        """The items of a batch: what a DataLoader asks for."""
        if type(self).__getitem__ is not LabelMapDataset.__getitem__:
            return [self[index] for index in indices]  # a subclass says what an item is
        return self._items(indices)

    def _items(self, indices: Sequence[int]) -> list[Any]:
        """Load images; read their maps before, in one go, and make and pool those of their crops after, in one go.

        Between images, whose pixels drive all else out of the processor's caches, the same work takes several times as
        long.
        """
        self._check_one_pipeline()
        accept_soft_targets_if_loaded()  # a script may load timm's collates after it has made the dataset
        for reader in self._timms_readers:
            reader.forget()
        indices = [self._from_start(index) for index in indices]
        keys = [self._key_at(index) for index in indices]
        records = [self.label_maps.get(key) for key in keys]
        steps = None if self.transform is None else steps_of(self.transform)
        items = [self._load(*asked, steps) for asked in zip(indices, keys, records, strict=True)]
        labels = [label() if isinstance(label, partial) else label for _, label, *_ in items]
        if self.pooling is not None:
            pool_together(labels, self.pooling)
        return [
            (image, self._blended(label, target), *rest)
            for (image, _, target, *rest), label in zip(items, labels, strict=True)
        ]

    def _from_start(self, index: int) -> int:
        """An index that may count from the end, from the start."""
        if not isinstance(index, int) or index >= 0:
            return index
        if index < -len(self):
            raise IndexError(f"There are {len(self)} images in this dataset, asked for number {index}.")
        return index + len(self)

    def _load(self, index: int, key: str, record: Any, steps: Steps | None) -> Any:
        """An item, with its label, or its label map, or what makes one of them, followed by the dataset's own target.

        ``key`` and ``record``, None for a missing one, are those of the image asked for.
        """
        follows = self.transforms is None and self._crop != "full"
        with LoadingSample(TrackedImage.of if follows else None) as sample:
            item = self._listened_to(index, sample) if self._transforms_inside else self._dataset[index]
            if not isinstance(item, (tuple, list)) or len(item) < 2 or isinstance(item[1], _NO_TARGETS):
                raise TypeError(
                    f"LabelMapDataset expects a dataset of (image, target, ...), and {type(self._dataset).__name__} "
                    f"returned {_kinds(item)}. Give it a dataset that returns them in this order, the target as a "
                    f"number: the soft label takes its place."
                )
            image, target, *rest = item
            read = self._read_by(image, sample)
            found = partial(self._record_of_loaded, index, key, record, read)
            rest = tree_map(_plain, rest) if rest else rest
            label: Any
            if self.transforms is not None:
                image, label = self._jointly(image, found(), target)
            elif self._crop == "full":
                image = image if self.transform is None else self.transform(image)
                label = partial(self._label, found, target, image)
            elif self._timms_readers and self.transform is None:
                image = TrackedImage.of(image, sample)
                late = partial(self._label, found, target, None, sample)
                label = LazyLabel(late, self.pooling, partial(self._blended, target=target))
            else:
                image = self._followed(image, steps, sample)
                label = partial(self._label, found, target, image, sample)
        return (image, label, target, *rest)

    def _listened_to(self, index: int, sample: LoadingSample) -> Any:
        """The item of a dataset that transforms its images in a place of its own."""
        try:
            with sample.listening():
                return self._dataset[index]
        except CropNotSeen as error:
            raise CropNotSeen(
                f"{error} {type(self._dataset).__name__} has no attribute transform, whose crops could be followed: "
                f"wrap the dataset within it, if there is one, or give its pipeline that name."
            ) from None

    def _read_by(self, image: Any, sample: LoadingSample) -> Sequence[Callable[[], str]]:
        """What gives the key of the image that the dataset opened and gave, and of those that it tried before.

        Raises:
            CropNotSeen: Unless it gave just the one image that it opened, for whose pixels the label map is.
        """
        name = type(self._dataset).__name__
        if len(sample.given) > 1:
            raise CropNotSeen(
                f"{name} gave {len(sample.given)} images to its transform for one sample, so it is unknown which of "
                f"them the label should be for. Give LabelMapDataset a dataset of one image a sample."
            )
        if sample.given and image is not sample.given[0]:
            raise CropNotSeen(
                f"{name} changes an image after its transform, and LabelMapDataset runs that transform on what the "
                f"dataset gives: the order would be another. Make the change a part of the transform."
            )
        own = [key for key, opened in sample.opened if opened is image]
        if own or not sample.opened:
            return [key for key in sample.read if key not in own] + own
        if len(sample.opened) > 1:
            raise CropNotSeen(
                f"{name} opened {len(sample.opened)} images for one sample and gave none of them as it was, so it is "
                f"unknown which of them the label should be for. Change images in the transform only."
            )
        unchanged = not sample.view.cropped and size_of(image) == size_of(sample.opened[0][1])
        if not unchanged and not isinstance(image, TrackedImage):
            raise CropNotSeen(
                f"{name} crops or resizes an image between opening and transforming it, in a way that could not be "
                f"followed, so the label is unknown. Make that a part of the transform, or do it with PIL."
            )
        return sample.read

    # Only what a script asks the dataset for by name. Dunder methods are looked up on the class and are not passed on:
    # the __getitems__ of a wrapped Subset, for one, would let a DataLoader fetch its hard labels.
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "_dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._dataset, name)

    def __repr__(self) -> str:
        return f"LabelMapDataset({len(self)} images of {type(self._dataset).__name__}, {self.label_maps!r})"

    def _check_one_pipeline(self) -> None:
        if self.transforms is not None and self.transform is not None:
            raise ValueError(
                "transforms= replaces the dataset's own transform, and this dataset has one. Create the dataset "
                "without a transform, or leave transforms= out and let its own be followed."
            )

    def _key_at(self, index: int) -> str:
        """The key, in the store, of the image that an index asks for."""
        return self._prefix(key_of(self._dataset, index, self._key))

    def _record_of_loaded(self, index: int, key: str, record: Any, read: Sequence[Callable[[], str]]) -> Any:
        """The record of the image that was loaded, None where a missing one is allowed.

        That image is the last of those ``read``, where the dataset tells, and else the one asked for.
        """
        if self._key is not None and len(read) > 1:
            raise ValueError(
                f"{type(self._dataset).__name__} loaded another image in place of number {index}, which is broken, and "
                f"key= does not know of it. Take the broken image out of the dataset, or leave key= out."
            )
        loaded = self._prefix(read[-1]()) if read and self._key is None else key
        if record is not None and loaded == key:
            return record
        return self.label_maps.get(loaded) if self._missing == "onehot" else self.label_maps[loaded]

    def _jointly(self, image: Any, record: Any, target: Any) -> tuple[Any, Any]:
        """Transform an image and its map together; the label is a map still, or pooled by the pipeline itself."""
        assert self.transforms is not None
        shown = image.view_box if isinstance(image, TrackedImage) else ViewBox()  # of a cache, followed elsewhere
        image = _plain(image)
        label_map = self._map(record, F.get_size(image), shown)
        image, label = self.transforms(image, label_map)
        if not isinstance(label, LabelMap) and not _is_label_of(label_map, label):
            got = f"a tensor of shape {tuple(label.shape)}" if isinstance(label, Tensor) else type(label).__name__
            raise TypeError(
                f"The v2 pipeline made {got} of the label map. It must give back (image, LabelMap), or (image, soft "
                f"label) with PoolLabelMap() in it."
            )
        size = size_of(image)
        if isinstance(label, LabelMap) and size is not None and size != label.canvas_size:
            raise CropNotSeen(
                f"The v2 pipeline gave an image of {size[0]} x {size[1]} pixels (H x W) and a label map for "
                f"{label.canvas_size[0]} x {label.canvas_size[1]}: a step of it cropped or resized the image alone, so "
                f"the label is unknown. Do that with transforms of torchvision.transforms.v2."
            )
        if self._crop == "full":
            if not isinstance(label, LabelMap):
                raise ValueError("crop='full' pools the whole image after the pipeline: take PoolLabelMap() out of it.")
            label = label_map.seen_through(label_map.view_box, label.canvas_size)
        return image, self._one_hot(target) if record is None else label

    def _followed(self, image: Any, steps: Steps | None, sample: LoadingSample) -> Any:
        """Run the dataset's own pipeline while the sample finds out what it leaves to be seen."""
        if steps is not None:
            if isinstance(image, TrackedImage) and image.sample is sample:
                sample.view, sample.image, sample.branched = image.view, image, False
            elif isinstance(image, PIL.Image.Image):
                image = TrackedImage.of(image, sample)
            else:
                sample.image = image
            image = sample.run(steps, image)
        if self.pooling is None or self.pooling.output_size != (1, 1):
            # Here the label depends on flips after the crop too, and the pixels that tell are not kept.
            sample.check_one_crop(self.transform)
            sample.check_unmoved(image, _THE_END)
        return _plain(image)

    def _label(
        self, found: Callable[[], Any], target: Any, image: Any, sample: LoadingSample | None = None
    ) -> Tensor | SeenRecord:
        """The label map of what an image shows; its record, if it is to be pooled; or a one-hot label without a map.

        Args:
            found: Gives the record.
            target: The dataset's own label.
            image: None for one that the loader has transformed.
            sample: What is known of the view, None for all of the image.
        """
        canvas_size, view_box = size_of(image), ViewBox()
        if sample is not None:
            sample.check_one_crop(self.transform)
            sample.check_size(image, _THE_END)
            canvas_size, view_box = canvas_size or sample.size, sample.view.box
            sample.image = None  # a lazy label's, which knows this sample: a cycle
        record, canvas_size = found(), canvas_size or (1, 1)
        if record is None:
            return self._one_hot(target)
        if self.pooling is None or isinstance(record, LabelMap):
            return self._map(record, canvas_size, view_box)
        header = self.label_maps.header  # type: ignore[attr-defined] # a LabelStore
        return SeenRecord(record, header, canvas_size, view_box)

    def _blended(self, label: Any, target: Any) -> Any:
        """A pooled label with its share of the one-hot one."""
        if not self._onehot or not isinstance(label, Tensor):
            return label
        own = self._one_hot(target).to(label.device)
        return label.lerp(own.view(-1, *[1] * (label.ndim - 1)), self._onehot)

    def _one_hot(self, target: Any) -> Tensor:
        try:
            given = torch.as_tensor(target)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(
                f"The dataset's own label is a class index, got {target!r}. Give the dataset a target_transform that "
                f"makes one, or leave out onehot= and missing=."
            ) from None
        if given.numel() == 1:
            return one_hot(given.long().view(()), self.num_classes).float()
        if given.shape != (self.num_classes,):
            raise TypeError(
                f"The dataset's own label is a class index, or {self.num_classes} numbers, one for each class; got "
                f"{list(given.shape)} numbers."
            )
        return given.float()

    def _map(self, record: Any, canvas_size: Sequence[int], view_box: ViewBox) -> LabelMap:
        """The label map of a record, for an image that shows ``view_box``."""
        canvas = (int(canvas_size[0]), int(canvas_size[1]))
        if record is None:  # an image without a map still takes part in the pipeline
            return _NO_MAP.seen_through(view_box, canvas)
        if isinstance(record, LabelMap):
            return record.seen_through(record.view_box.compose(view_box), canvas)
        header = self.label_maps.header  # type: ignore[attr-defined] # a LabelStore
        return label_map_of(record, header, canvas, view_box)

    def _look_some_up(self, guess: bool) -> None:
        """Find out about a store of other images now, and not in a worker after an hour."""
        last = len(self) - 1
        if last < 0:
            return
        missing = [key for key in map(self._key_at, (0, last // 2, last)) if key not in self.label_maps]
        if not missing:
            return
        keys = [self._key_at(last * part // 6) for part in range(7)]
        prefix = find_key_prefix(keys, self.label_maps, root_below(self._dataset)) if guess else None
        if prefix is not None:
            self._prefix = prefix
            warnings.warn(
                f"The keys of {self.label_maps!r} differ from those of the dataset by their first folders: {keys[0]!r} "
                f"is taken to be {prefix(keys[0])!r}.",
                stacklevel=3,
            )
        elif self._missing != "onehot":
            self.label_maps[missing[0]]


_THE_END = "The end of the pipeline"
_NO_TARGETS = (PIL.Image.Image, str, bytes, os.PathLike)
_NO_MAP = LabelMap(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long), num_classes=1, canvas_size=(1, 1))


def _plain(image: Any) -> Any:
    return image.plain() if isinstance(image, TrackedImage) else image


def _as_loaded(*images: Any, **named: Any) -> Any:
    """The transform of a dataset whose images are transformed by LabelMapDataset."""
    if len(images) != 1 or named:
        raise TypeError(
            f"A dataset's transform is called with an image alone, and this dataset calls it with "
            f"{', '.join([type(image).__name__ for image in images] + list(named))}. LabelMapDataset follows pipelines "
            f"like torchvision's; for others, crop with RandomResizedCropWithLabelMap within a function of the image."
        )
    (image,) = images
    sample = loading_sample()
    if sample is not None and not any(image is given for given in sample.given):
        sample.given.append(image)
    return image


def _layers(dataset: Any) -> Iterator[Any]:
    """A dataset and what it is made of."""
    yield dataset
    inner = dataset.datasets if isinstance(dataset, ConcatDataset) else [getattr(dataset, "dataset", None)]
    for layer in inner:
        if layer is not None:
            yield from _layers(layer)


def _without_transform(dataset: Any) -> tuple[Any, Callable[..., Any] | None]:
    """A shallow copy of a dataset that gives images as they are loaded, and the transform that it had."""
    if isinstance(dataset, Subset) and not hasattr(dataset, "transform"):
        inner, transform = _without_transform(dataset.dataset)
        dataset = copy.copy(dataset)
        dataset.dataset = inner
        return dataset, transform
    if isinstance(dataset, ConcatDataset):
        parts = [_without_transform(part) for part in dataset.datasets]
        if any(transform is not parts[0][1] for _, transform in parts):
            raise ValueError(
                "The parts of this ConcatDataset have different transforms. Wrap each part in a LabelMapDataset and "
                "concatenate those."
            )
        dataset = copy.copy(dataset)
        dataset.datasets = [part for part, _ in parts]
        return dataset, parts[0][1]
    if not hasattr(dataset, "transform"):
        return dataset, None  # it transforms inside itself, if at all: RandomResizedCropWithLabelMap tells its crop
    dataset = copy.copy(dataset)
    transform = dataset.transform
    if any(getattr(layer, "transform", None) is not None for layer in list(_layers(dataset))[1:]):
        raise ValueError(
            f"{type(dataset).__name__} has a transform and wraps a dataset that has one too, whose crop would not be "
            f"seen. Give all of it to one of them."
        )
    try:
        dataset.transform = _as_loaded
    except AttributeError:
        raise TypeError(
            f"The transform of {type(dataset).__name__} cannot be replaced, and LabelMapDataset runs it itself. Make "
            f"it an attribute instead of a property."
        ) from None
    if isinstance(dataset, Subset):  # with a transform of its own: what it holds still opens the images
        dataset.dataset, _ = _without_transform(dataset.dataset)
    root = root_of(dataset)
    if isinstance(dataset, DatasetFolder) and root is not None:
        dataset.loader = TellTaleLoader(dataset.loader, root)
    if hasattr(dataset, "reader"):
        dataset.reader = TellTaleReader(dataset.reader)
    if isinstance(getattr(dataset, "transforms", None), StandardTransform):
        # torchvision keeps the transform in a second place, from where some of its datasets call it.
        dataset.transforms = StandardTransform(_as_loaded, dataset.target_transform)
    elif getattr(dataset, "transforms", None) is not None:
        raise ValueError(
            f"{type(dataset).__name__} was created with transforms=, for images and targets together. Give the "
            f"pipeline to LabelMapDataset(..., transforms=) instead, where it gets images and label maps together; or "
            f"call the attribute transform, if it gets images alone."
        )
    return dataset, transform


def _report(findings: Sequence[Finding]) -> None:
    """Raise for steps that a label map does not survive, warn of those that it follows only roughly."""
    broken = [str(finding) for finding in findings if finding.breaks]
    if broken:
        raise UntrackedTransformError("This pipeline would lose its label maps:\n" + "\n".join(broken))
    for finding in findings:
        warnings.warn(str(finding), stacklevel=3)


def _agreed_num_classes(
    dataset: Any, label_maps: Mapping[str, Any], num_classes: int | None, takes_indices: str | None
) -> int:
    """How many classes a label has, if dataset, store and caller agree."""
    header = getattr(label_maps, "header", None)
    if header is None:
        header = next(iter(label_maps.values()), None)
    if header is None:
        raise ValueError("There are no label maps in the mapping given.")
    if not hasattr(header, "num_classes"):
        raise TypeError(
            f"A mapping of label maps holds LabelMap objects, or is a LabelStore; this one holds "
            f"{type(header).__name__}. Give the store itself."
        )
    stored = int(header.num_classes)
    if num_classes is not None and num_classes != stored:
        raise ValueError(
            f"num_classes={num_classes} was asked for, and the label maps have {stored} classes. The model to be "
            f"trained needs {stored} outputs, or the images need an annotator of {num_classes} classes."
        )
    leaf = dataset
    while isinstance(leaf, (Subset, ConcatDataset)):
        leaf = leaf.dataset if isinstance(leaf, Subset) else leaf.datasets[0]
    classes = getattr(leaf, "classes", None)
    if num_classes is None and classes is not None and len(classes) != stored:
        raise ValueError(
            f"The label maps have {stored} classes and the dataset has {len(classes)}. If the model to be trained has "
            f"{stored} outputs, say so: LabelMapDataset(..., num_classes={stored}). Otherwise annotate the images with "
            f"a model of {len(classes)} classes."
        )
    theirs, ours = getattr(header, "class_to_idx", None), class_indices(leaf)
    own = len(classes) if classes is not None else len(ours or ()) or stored
    if takes_indices and own != stored:
        raise ValueError(
            f"{takes_indices} takes the class index of the dataset, which has {own} classes, and the label maps have "
            f"{stored}: the same index would mean another class. Annotate the images with a model of {own} classes."
        )
    if classes is not None and own == stored:
        _check_target_transform(getattr(leaf, "target_transform", None), own, getattr(header, "class_names", None))
    # Folders are classes only where there is one for each.
    if theirs and ours and len(theirs) == len(ours) == stored and (classes is None or len(classes) == stored):
        for name in sorted(theirs.keys() & ours.keys()):
            if theirs[name] != ours[name]:
                raise ValueError(
                    f"Class folder {name!r} had index {theirs[name]} when the images were annotated and has "
                    f"{ours[name]} in this dataset, so its labels would mean other classes. Use the folders "
                    f"that were annotated ({len(theirs)} of them, here are {len(ours)}), or annotate these. timm sorts "
                    f"numbers in names by value, torchvision by their digits: give timm a class map (--class-map)."
                )
    return stored


def _check_target_transform(target_transform: Any, num_classes: int, class_names: Sequence[str] | None) -> None:
    """Raise if it numbers the classes otherwise: a soft label never passes through it."""
    if not callable(target_transform):
        return
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        first, again = (
            [int(made) if made.numel() == 1 else int(made.argmax()) for made in map(torch.as_tensor, indices)]
            for indices in ([target_transform(index) for index in range(num_classes)] for _ in range(2))
        )
    except Exception:
        return  # no class index nor a vector, so no other numbering of the classes
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
    if first == again and sorted(first) == list(range(num_classes)) != first:
        index = next(index for index, made in enumerate(first) if made != index)
        raise ValueError(
            f"The dataset's target_transform makes class {class_for_people(first[index], class_names)} of class "
            f"{class_for_people(index, class_names)}, and the soft labels keep the numbers of the annotator's classes. "
            f"Leave it out, or annotate with a model of that order."
        )


def _is_label_of(label_map: LabelMap, label: Any) -> bool:
    """Whether something may be the pooled label of a map, ``[C]`` or ``[C, gh, gw]``."""
    if not isinstance(label, Tensor) or label.ndim not in (1, 3) or len(label) != label_map.num_classes:
        return False
    # Where a map keeps all its classes, its bare scores have that form too.
    return label.shape != label_map.shape or bool(torch.isclose(label.sum(0), torch.ones(())).all())


def _kinds(item: Any) -> str:
    if isinstance(item, (tuple, list)):
        return f"({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__
