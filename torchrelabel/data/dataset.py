"""LabelMapDataset: an image dataset whose labels are pooled from label maps, for just the crop that is seen."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import one_hot
from torch.utils.data import Dataset, IterableDataset
from torchvision.transforms.v2 import functional as F

from torchrelabel.data.agreement import agreed_num_classes, check_size, check_target, class_of
from torchrelabel.data.keys import Key, KeyPrefix, check_distinct, find_key_prefix, key_of, root_below
from torchrelabel.data.records import SeenRecord, check_complete, label_map_of, pool_together
from torchrelabel.data.sources import Reading, RecordingReader, layers, takes_over, without_transform
from torchrelabel.errors import CropNotSeen, UntrackedTransformError
from torchrelabel.following.follow import plain, resume
from torchrelabel.following.joint import moving_label_maps
from torchrelabel.following.sizes import size_of
from torchrelabel.following.steps import run
from torchrelabel.following.trace import CropTrace
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.label_map import LabelMap
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.transforms.check import Finding, check_pipeline
from torchrelabel.view import View, ViewBox

__all__ = ["LabelMapDataset"]


@dataclass(slots=True)
class Sample:
    """A sample on its way to an item.

    Attributes:
        index: Which one was asked for, counted from the start.
        key: Of its image in the store; that which was asked for, until it is known which one was loaded.
        record: Of the key, None where there is none.
        opened: What gives the key of each image that was opened, where that is known; the last one was loaded.
        read: The size (H, W) of the image as read, None if that is not known.
        image: As read, and later as transformed.
        target: The dataset's own label.
        rest: What else the dataset gives.
        trace: What is known of the image's view; None where all of it is meant.
        error: Why there is no label, for those who cannot raise where they find out.
        label: A label map, what may be pooled of one, or a label.
    """

    index: int
    key: str
    record: Any = None
    opened: list[Callable[[], str]] = field(default_factory=list)
    read: tuple[int, int] | None = None
    image: Any = None
    target: Any = None
    rest: list[Any] = field(default_factory=list)
    trace: CropTrace | None = None
    error: Exception | None = None
    label: Any = None


class LabelMapDataset(Dataset[Any]):
    """Any map-style image dataset, with the label of each image pooled from its label map.

    An item is ``(image, soft label [C])``, followed by whatever else the dataset gives, so that a training loop
    stays as it is. The dataset is shallow-copied and never changed. Its public attributes (``classes``, ``samples``,
    ``set_epoch``, ...) are there on the wrapper too, and ``transform`` stays assignable.

    How the crop is learnt, either right or an error (docs/following.md):

    1. ``transforms``, a ``torchvision.transforms.v2`` pipeline, is called on ``(image, label_map)``.
    2. Otherwise the dataset's own pipeline (v1, v2, timm's, any function) runs on an image that knows what it shows of
       the original, and is followed step by step. Pixels and random numbers are what they would be without.
    3. What cannot be followed, or leaves several crops of one image: :class:`~torchrelabel.errors.CropNotSeen`.

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
            found a half of it worse on ImageNet, and docs/evidence.md no gain over calibrated labels.

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
        _check_arguments(dataset, label_maps, pooling, key, missing, crop, onehot)
        self._dataset, self.transform = without_transform(dataset)
        # A dataset without the attribute transforms its images by itself, if at all.
        self._transforms_inside = not takes_over(self._dataset) and crop != "full"
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
        self.num_classes = agreed_num_classes(self._dataset, self.label_maps, num_classes, takes_indices)
        if key is None:
            check_distinct(self._dataset)
        self._look_some_up(guess=key is None and key_prefix is None)
        readers = (getattr(layer, "reader", None) for layer in layers(self._dataset))
        self._timms_readers = [reader for reader in readers if isinstance(reader, RecordingReader)]
        self._prepare_timm()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._prepare_timm()  # a spawned worker has a timm of its own

    def _prepare_timm(self) -> None:
        """Let timm's collates, mixers and losses take soft labels, where it is timm's dataset that was wrapped."""
        if self._timms_readers:
            from torchrelabel.integrations.timm.soft_targets import accept_soft_targets

            accept_soft_targets()

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
        """Look up the records of a batch; load and transform its images; find what they show; pool it in one go.

        Between images, whose pixels drive all else out of the processor's caches, the rest takes several times as long.
        """
        samples = self.look_up(indices)
        jointly = None if self.transforms is None else moving_label_maps(self.transforms)
        for sample in samples:
            self.load(sample)
            if jointly is None:
                self._transform(sample)
            else:
                self._jointly(sample, jointly)
        for sample in samples:
            self.see(sample)
        return self.finish(samples)

    def look_up(self, indices: Sequence[int]) -> list[Sample]:
        """The samples of a batch, with the records of the images asked for."""
        self._check_one_pipeline()
        for reader in self._timms_readers:
            reader.forget()
        samples = []
        for index in map(self._from_start, indices):
            key = self._key_at(index)
            samples.append(Sample(index, key, self.label_maps.get(key)))
        return samples

    def load(self, sample: Sample) -> None:
        """Read the image of a sample."""
        trace = sample.trace = CropTrace() if self._crop != "full" else None
        with Reading(trace) as reading:
            if trace is not None and self._transforms_inside:
                with trace:
                    item = self._dataset[sample.index]
            else:
                item = self._dataset[sample.index]
            if not isinstance(item, (tuple, list)) or len(item) < 2 or isinstance(item[1], _NO_TARGETS):
                raise TypeError(
                    f"LabelMapDataset expects a dataset of (image, target, ...), and {type(self._dataset).__name__} "
                    f"returned {_kinds(item)}. Give it a dataset that returns them in this order, the target as a "
                    f"number: the soft label takes its place."
                )
            sample.image, sample.target, *sample.rest = item
            sample.opened = reading.keys_of(sample.image, self._dataset)
        sample.rest = plain(sample.rest) if sample.rest else sample.rest
        if reading.opened:
            sample.read = size_of(reading.opened[-1][1])
        elif trace is None or not trace.cropped:
            sample.read = size_of(sample.image)

    def _transform(self, sample: Sample) -> None:
        """Run the dataset's own pipeline on the image of a sample."""
        if sample.trace is None:
            with CropTrace():  # which nobody reads: the label is that of the whole image
                sample.image = sample.image if self.transform is None else self.transform(sample.image)
            return
        with sample.trace as trace:
            if self.transform is not None:
                sample.image = run(self.transform, resume(sample.image, trace), trace)
            elif not self._transforms_inside:
                sample.image = resume(sample.image, trace)
            elif not isinstance(sample.image, TrackedImage) and trace.noted(sample.image) is None:
                trace.trusted = self._dataset

    def _find(self, sample: Sample) -> None:
        """Find the record of the image that was read, and check that it is of this image."""
        if self._key is not None and len(sample.opened) > 1:
            raise ValueError(
                f"{type(self._dataset).__name__} loaded another image in place of number {sample.index}, which is "
                f"broken, and key= does not know of it. Take the broken image out of the dataset, or leave key= out."
            )
        if sample.opened and self._key is None:
            loaded = self._prefix(sample.opened[-1]())
            if loaded != sample.key:
                sample.key, sample.record = loaded, self.label_maps.get(loaded)
        if sample.record is None and self._missing != "onehot":
            sample.record = self.label_maps[sample.key]  # raises, unless it was written since
        check_size(sample.record, sample.read, sample.key, self.label_maps)
        if len(sample.opened) <= 1:
            own = class_of(self._dataset, sample.index)
            check_target(own, sample.target, self.num_classes, getattr(self.label_maps, "header", None))

    def see(self, sample: Sample) -> None:
        """Make of the record of a sample what its image, transformed, shows."""
        if self.transforms is not None:
            return  # the pipeline has done so
        self._find(sample)
        trace = sample.trace
        if trace is not None:
            trace.finish(sample.image, self.transform)
        view: View = ViewBox() if trace is None else trace.view
        canvas_size = (None if trace is None else trace.size) or size_of(sample.image) or (1, 1)
        sample.image = plain(sample.image)
        if sample.record is None:
            sample.label = self._without_map(sample.target)
        elif self.pooling is None or isinstance(sample.record, LabelMap):
            sample.label = self._map(sample.record, canvas_size, view)
        else:
            header = self.label_maps.header  # type: ignore[attr-defined] # a LabelStore
            sample.label = SeenRecord(sample.record, header, canvas_size, view)
        sample.trace = None

    def finish(self, samples: Sequence[Sample]) -> list[Any]:
        """The items of samples that have labels, pooled if they are to be."""
        labels = [sample.label for sample in samples]
        if self.pooling is not None:
            pool_together(labels, self.pooling)
        return [
            (sample.image, self._blended(label, sample.target), *sample.rest)
            for sample, label in zip(samples, labels, strict=True)
        ]

    def _from_start(self, index: int) -> int:
        """An index that may count from the end, from the start."""
        if not isinstance(index, int) or index >= 0:
            return index
        if index < -len(self):
            raise IndexError(f"There are {len(self)} images in this dataset, asked for number {index}.")
        return index + len(self)

    # Only what a script asks the dataset for by name. Dunder methods are looked up on the class and are not passed on:
    # the __getitems__ of a wrapped Subset, for one, would let a DataLoader fetch its hard labels.
    def __getattr__(self, name: str) -> Any:
        if name.startswith("_") or "_dataset" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return getattr(self._dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        dataset = self.__dict__.get("_dataset")
        if name[0] != "_" and name not in _OWN and not hasattr(type(self), name) and hasattr(dataset, name):
            raise AttributeError(
                f"{name!r} belongs to the {type(dataset).__name__} that this LabelMapDataset wraps, and changing it "
                f"here would change nothing there. Change the dataset, then wrap it."
            )
        super().__setattr__(name, value)

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

    def _jointly(self, sample: Sample, pipeline: Callable[..., Any]) -> None:
        """Transform an image and its map together; the label is a map still, or pooled by the pipeline itself."""
        self._find(sample)
        # A dataset may have cropped the image when it read it, or when it read it for an earlier sample.
        shown = ViewBox() if sample.trace is None else sample.trace.view
        if isinstance(sample.image, TrackedImage):
            shown = sample.image.view
        image = plain(sample.image)
        label_map = self._map(sample.record, F.get_size(image), shown)
        image, label = pipeline(image, label_map)
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
            label = label_map.with_view(label_map.view_box, label.canvas_size)
        sample.image, sample.label = image, self._without_map(sample.target) if sample.record is None else label

    def _blended(self, label: Any, target: Any) -> Any:
        """A pooled label with its share of the one-hot one."""
        if not self._onehot or not isinstance(label, Tensor):
            return label
        own = self._one_hot(target).to(label.device)
        return label.lerp(own.view(-1, *[1] * (label.ndim - 1)), self._onehot)

    def _without_map(self, target: Any) -> Tensor:
        """The one-hot label of an image, for each token where labels are pooled for tokens."""
        label = self._one_hot(target)
        grid = (1, 1) if self.pooling is None else self.pooling.output_size
        return label if grid == (1, 1) else label[:, None, None].repeat(1, *grid)

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

    def _map(self, record: Any, canvas_size: Sequence[int], view: View) -> LabelMap:
        """The label map of a record, for an image that shows ``view``."""
        canvas = (int(canvas_size[0]), int(canvas_size[1]))
        if record is None:  # an image without a map still takes part in the pipeline
            return _NO_MAP.with_view(view, canvas)
        if isinstance(record, LabelMap):
            return record.with_view(record.view_box.compose(view), canvas)
        header = self.label_maps.header  # type: ignore[attr-defined] # a LabelStore
        return label_map_of(record, header, canvas, view)

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


_OWN = ("transform", "transforms", "label_maps", "pooling", "num_classes")
_NO_TARGETS = (PIL.Image.Image, str, bytes, os.PathLike)
_NO_MAP = LabelMap(torch.zeros(1, 1, 1), torch.zeros(1, 1, 1, dtype=torch.long), num_classes=1, canvas_size=(1, 1))


def _check_arguments(
    dataset: Any, label_maps: Any, pooling: Any, key: Any, missing: str, crop: str, onehot: float
) -> None:
    """Raise for arguments that do not go together, before any of them is used."""
    if any(isinstance(layer, LabelMapDataset) for layer in layers(dataset)):
        raise TypeError("This dataset is a LabelMapDataset already. Wrap the image dataset once.")
    if type(dataset).__module__.startswith("datasets."):
        raise TypeError(
            "A data set of Hugging Face opens its images and transforms them in a function of its own. Wrap that: "
            "dataset.set_transform(relabel_transform(fn, label_maps)), of torchrelabel.integrations.huggingface."
        )
    if isinstance(dataset, IterableDataset) and hasattr(dataset, "reader"):
        raise TypeError(
            f"timm's {type(dataset.reader).__name__} reads images in sequence. Those of wds/ go into "
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


def _report(findings: Sequence[Finding]) -> None:
    """Raise for steps that a label map does not survive, warn of those that it follows only roughly."""
    broken = [str(finding) for finding in findings if finding.breaks]
    if broken:
        raise UntrackedTransformError("This pipeline would lose its label maps:\n" + "\n".join(broken))
    for finding in findings:
        if not finding.followed:
            warnings.warn(str(finding), stacklevel=3)


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
