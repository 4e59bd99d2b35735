"""Label maps in Hugging Face's image classification scripts, with the Trainer or without."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import PIL.Image
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from torchrelabel.data.keys import KeyPrefix, find_key_prefix
from torchrelabel.data.records import label_map_of
from torchrelabel.data.tracked_image import TrackedImage
from torchrelabel.errors import CropNotSeen
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.transforms._loading import WAYS_OUT, LoadingSample, size_of

__all__ = ["model_loss", "relabel_transform", "soft_loss"]

Batch = dict[str, Any]


def relabel_transform(
    fn: Callable[[Batch], Batch],
    label_maps: str | os.PathLike[str] | LabelStore,
    image_column: str = "image",
    label_column: str = "label",
    *,
    key: Callable[[Batch], str] | None = None,
    pooling: LabelPooling = LabelPooling(),  # noqa: B008 -- it has no state
    missing: str = "error",
) -> Callable[[Batch], Batch]:
    """Wrap a function for ``dataset.set_transform`` so that it also gives soft labels for what its crops show.

    Each image of a batch goes through ``fn`` by itself, as a batch of one that knows which part of the original it
    shows. Pixels and random draws are those of ``fn``.

    Args:
        fn: Takes a batch, a dict of lists, and returns one, with the images transformed.
        label_maps: A store, or its path.
        image_column: Where the PIL images are.
        label_column: Where the class indices are; in the result, lists of C floats. A batch without this column, or
            without images in it, goes through ``fn`` alone.
        key: A function from an example (a dict without lists) to its key in the store. Without it the key is found by
            the name of the file that the image was opened from.
        pooling: How a map becomes a label.
        missing: ``"error"``, or ``"onehot"`` to give images without a map the one-hot label of their class.

    Returns:
        The function to give to ``set_transform`` or ``with_transform``.

    Raises:
        ValueError: If ``missing`` is neither.
        StoreError: If there is no such store.
        When called: MissingLabelMap, CropNotSeen, and TypeError for images that are no PIL images or have no name.

    Example:
        >>> train.set_transform(relabel_transform(train_transforms, "maps.lmdb"))
        >>> trainer = Trainer(model, args, compute_loss_func=soft_loss, train_dataset=train, ...)
    """
    if missing not in ("error", "onehot"):
        raise ValueError(f"missing is 'error' or 'onehot', got {missing!r}.")
    store = label_maps if isinstance(label_maps, LabelStore) else LabelStore(label_maps)
    return _Relabelled(fn, store, image_column, label_column, key, pooling, missing)


def soft_loss(outputs: Any, labels: Tensor, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy with soft labels or class indices: the Trainer's ``compute_loss_func``.

    Without it, float labels select binary cross entropy inside the models of transformers, without a word.

    Args:
        outputs: What the model returned: with ``logits`` ``[B, C]``, or a tuple that begins with them.
        labels: ``[B, C]`` floating, or ``[B]``.
        num_items_in_batch: What the Trainer counted over the batches of one optimizer step: entries of ``labels``.
            Soft labels have C of them for each image, which is taken into account.

    Returns:
        The mean over the images of the step.
    """
    if isinstance(outputs, Mapping):
        logits = outputs["logits"]
    else:
        logits = outputs.logits if hasattr(outputs, "logits") else outputs[0]
    return model_loss(labels, logits, num_items_in_batch=num_items_in_batch)


def model_loss(
    labels: Tensor, logits: Tensor, config: Any = None, num_items_in_batch: Tensor | int | None = None, **kwargs: Any
) -> Tensor:
    """Cross entropy with soft labels or class indices, to be set as ``model.loss_function`` of a model of transformers.

    For scripts without the Trainer, which take ``model(**batch).loss``. ``config`` is left as it is: the model's own
    loss would write the wrong ``problem_type`` into it at the first soft label, and fail at the next class index.

    Args:
        labels: ``[B, C]`` floating, or ``[B]``.
        logits: ``[B, C]``.
        config: Not used.
        num_items_in_batch: As for :func:`soft_loss`.
        **kwargs: Not used.

    Raises:
        ValueError: If the labels have another number of classes than the logits.
    """
    labels = labels.to(logits.device)
    if not labels.is_floating_point():
        labels = labels.view(-1)
    elif labels.shape != logits.shape:
        raise ValueError(
            f"The labels are {list(labels.shape)} and the logits {list(logits.shape)}. Make the model with as many "
            f"labels as the label maps have classes (num_labels={labels.shape[-1]})."
        )
    if num_items_in_batch is None:
        return cross_entropy(logits, labels)
    images = num_items_in_batch / logits.shape[-1] if labels.is_floating_point() else num_items_in_batch
    return cross_entropy(logits, labels, reduction="sum") / images


class _Relabelled:
    """What :func:`relabel_transform` returns; a class, so that it can be pickled where ``fn`` can."""

    def __init__(
        self,
        fn: Callable[[Batch], Batch],
        store: LabelStore,
        image_column: str,
        label_column: str,
        key: Callable[[Batch], str] | None,
        pooling: LabelPooling,
        missing: str,
    ) -> None:
        self.fn = fn
        self.label_maps = store
        self.image_column = image_column
        self.label_column = label_column
        self.key = key
        self.pooling = pooling
        self.missing = missing
        self._prefix: KeyPrefix | None = None

    def __call__(self, batch: Batch) -> Batch:
        if self.label_column not in batch or not batch.get(self.image_column):
            return self.fn(batch)
        count = len(batch[self.image_column])
        results = [self._one({name: column[number] for name, column in batch.items()}) for number in range(count)]
        return {name: _joined([result[name] for result in results]) for name in results[0]}

    def _one(self, example: Batch) -> Batch:
        """Transform one example; every column of the result has one entry."""
        image = example[self.image_column]
        if not isinstance(image, PIL.Image.Image):
            raise TypeError(
                f"Column {self.image_column!r} holds {type(image).__name__}, and crops are followed of PIL images. Let "
                f"the dataset decode them: cast_column({self.image_column!r}, datasets.Image())."
            )
        key = self._key_of(example)
        record = self.label_maps.get(key) if self.missing == "onehot" else self.label_maps[key]
        with LoadingSample() as sample:
            tracked = TrackedImage.of(image, sample)
            result = dict(self.fn({**{name: [value] for name, value in example.items()}, self.image_column: [tracked]}))
            label = self._label(result, example, record, sample)
        for name, column in result.items():
            if isinstance(column, list):
                result[name] = [entry.plain() if isinstance(entry, TrackedImage) else entry for entry in column]
        result[self.label_column] = [label.tolist()]
        return result

    def _label(self, result: Batch, example: Batch, record: Any, sample: LoadingSample) -> Tensor:
        header = self.label_maps.header
        if record is None:
            return one_hot(torch.tensor(int(example[self.label_column])), header.num_classes).float()
        if sample.branched:
            raise CropNotSeen(f"Several crops were taken of one image, so it is unknown which is meant. {WAYS_OUT}")
        if not sample.view.cropped:
            raise CropNotSeen(f"No crop was seen while {self.fn!r} ran, so the label is unknown. {WAYS_OUT}")
        for name, column in result.items():
            if name not in example:  # the pixels for the model; the image itself may still be there too
                sample.check_size(column[0], f"Column {name!r}")
        canvas_size = size_of(sample.image) or (1, 1)
        label: Tensor = self.pooling(label_map_of(record, header, canvas_size, sample.view.box))
        return label

    def _key_of(self, example: Batch) -> str:
        if self.key is not None:
            return self.key(example)
        name = getattr(example[self.image_column], "filename", "")
        if not name:
            raise TypeError(
                f"The image in column {self.image_column!r} does not know the file it was opened from, so its label "
                f"map cannot be found. Give relabel_transform(..., key=), a function from an example to its key."
            )
        key = os.fspath(name).replace(os.sep, "/").lstrip("/")
        if self._prefix is None:
            self._prefix = KeyPrefix() if key in self.label_maps else find_key_prefix([key], self.label_maps)
        return key if self._prefix is None else self._prefix(key)


def _joined(columns: list[Any]) -> Any:
    """One column out of those of single examples."""
    if isinstance(columns[0], Tensor):
        return torch.cat(columns)
    if isinstance(columns[0], (list, tuple)):
        return [entry for column in columns for entry in column]
    return columns[0]  # no column but a setting, the same for every example
