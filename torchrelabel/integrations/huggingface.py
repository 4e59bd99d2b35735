"""Soft labels in the training scripts of Hugging Face's datasets and transformers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from io import BytesIO
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as nn_functional
from torch.utils._pytree import tree_flatten, tree_map

from torchrelabel.data.records import check_complete, label_map_of, pool_together
from torchrelabel.errors import MissingLabelMap
from torchrelabel.following.follow import track
from torchrelabel.following.functionals import plain_of
from torchrelabel.following.sizes import images_in, size_of
from torchrelabel.following.steps import run_own
from torchrelabel.following.trace import CropTrace, short
from torchrelabel.following.tracked_image import TrackedImage
from torchrelabel.pooling import LabelPooling
from torchrelabel.store import LabelStore
from torchrelabel.view import ViewBox

__all__ = ["model_loss", "relabel_transform", "soft_loss"]

Columns = Mapping[str, Any]

_WAYS_OUT = (
    "Crop a PIL image, before it becomes a tensor and before steps that make a new image (ColorJitter); crop with "
    "RandomResizedCropWithLabelMap; or give relabel_transform(..., crop='full') to pool the whole image on purpose."
)
_KEY = (
    "Give relabel_transform(..., key=), a function from an example (a dict with a value for each column) to its key, "
    "the path relative to the annotated folder. Where the image does not know its path (kept as bytes, or with an EXIF "
    "orientation), leave the column undecoded: dataset.cast_column('image', datasets.Image(decode=False))."
)


def relabel_transform(
    fn: Callable[[dict[str, Any]], Columns],
    label_maps: str | os.PathLike[str] | LabelStore,
    image_column: str = "image",
    label_column: str = "label",
    *,
    key: Callable[[dict[str, Any]], str] | None = None,
    num_classes: int | None = None,
    pooling: LabelPooling = LabelPooling(),  # noqa: B008 -- it has no state
    missing: str = "error",
    crop: str = "auto",
) -> Callable[[Columns], Columns]:
    """Let a function for ``set_transform`` or ``with_transform`` give soft labels for what its random crops show.

    The function gets one image after the other, as a batch of one: a PIL image that knows which part of the original it
    shows. Its pixels and random draws are what they would be, as long as it treats the images of a batch one by one.
    What it returns as the label column, or as a new column ``labels``, is replaced by soft labels ``[C]``: lists of
    floats, or tensors where it returns tensors. A batch without the label column is left to the function alone.

    Images are found in the store by their path, of which an end must be a key; what stands before it in the first
    image's path is taken to be the annotated folder, and all other images must lie in there. Images that were not
    decoded (``cast_column("image", datasets.Image(decode=False))``) are decoded here, as the annotator did: without the
    rotation that ``datasets`` does by EXIF.

    Args:
        fn: From a dict of lists to a dict of lists, such as ``{"image": [...], "label": [...]}``.
        label_maps: A store, or its path.
        image_column: Name of the column of images.
        label_column: Name of the column of class indices.
        key: From an example, a dict with one value for each column, to its key in the store.
        num_classes: ``C``, checked against the store.
        pooling: How to pool.
        missing: ``"error"``, or ``"onehot"`` to give images without a map the one-hot label of the dataset.
        crop: ``"auto"``, or ``"full"`` to pool the whole image whatever is cropped.

    Raises:
        TypeError, ValueError: If an argument does not fit, and when called on an image whose key is unknown.
        MissingLabelMap: When called on an image that has no map.
        CropNotSeen: When called, if no crop, or no single one, was seen while ``fn`` ran.

    Example:
        >>> train.set_transform(relabel_transform(preprocess_train, "maps.lmdb"))
        >>> trainer = Trainer(model, train_dataset=train, compute_loss_func=soft_loss, ...)

    Source: ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.2.
    """
    if not callable(fn):
        raise TypeError(f"fn is the function that set_transform gets, relabel_transform(fn, label_maps); got {fn!r}.")
    if missing not in ("error", "onehot"):
        raise ValueError(f"missing is 'error' or 'onehot', got {missing!r}.")
    if crop not in ("auto", "full"):
        raise ValueError(f"crop is 'auto' or 'full', got {crop!r}.")
    if not isinstance(pooling, LabelPooling):
        raise TypeError(f"pooling is a LabelPooling, got {type(pooling).__name__}.")
    store = label_maps if isinstance(label_maps, LabelStore) else LabelStore(label_maps)
    if missing == "error":
        check_complete(store)
    if num_classes is not None and num_classes != store.header.num_classes:
        raise ValueError(
            f"num_classes={num_classes} was asked for, and the label maps have {store.header.num_classes} classes. The "
            f"model to be trained needs as many outputs as they have: from_pretrained(..., "
            f"num_labels={store.header.num_classes}, ignore_mismatched_sizes=True)."
        )
    return _Relabelled(fn, store, image_column, label_column, key, pooling, missing == "onehot", crop == "full")


def soft_loss(outputs: Any, labels: Tensor | None, num_items_in_batch: Tensor | int | None = None) -> Tensor:
    """Cross entropy of soft labels, for ``Trainer(compute_loss_func=soft_loss)`` or a loop of one's own.

    Args:
        outputs: Of a model that was not given the labels: with ``logits`` ``[B, C]``, or a tuple that begins with them.
        labels: Soft labels ``[B, C]``, or class indices ``[B]`` as in evaluation.
        num_items_in_batch: What ``Trainer`` counts over the batches whose gradients it accumulates: the entries of
            their ``labels``. The loss is then the sum over this batch, divided by the number of samples in all of them.

    Returns:
        A scalar.

    Raises:
        ValueError: If there are no labels, or the model has another number of classes.
    """
    if isinstance(outputs, (tuple, list)):
        logits = outputs[0]
    else:
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
    return _cross_entropy(logits, labels, num_items_in_batch)


def model_loss(
    labels: Tensor,
    logits: Tensor | None = None,
    config: Any = None,
    *,
    pooled_logits: Tensor | None = None,
    num_items_in_batch: Tensor | int | None = None,
    **_: Any,
) -> Tensor:
    """Cross entropy of soft labels, for ``model.loss_function = model_loss``.

    For loops that read ``model(**batch).loss``. The models' own loss takes floating labels for those of many classes at
    once, silently computes a binary cross entropy, and notes in ``config.problem_type`` to do so from then on.

    Args:
        labels: Soft labels ``[B, C]``, or class indices ``[B]`` as in evaluation.
        logits: ``[B, C]``.
        config: The model's; neither read nor changed.
        pooled_logits: What some models call their logits.
        num_items_in_batch: As for :func:`soft_loss`.

    Returns:
        A scalar.

    Raises:
        ValueError: If the model has another number of classes than the labels.
    """
    logits = pooled_logits if logits is None else logits
    if logits is None:
        raise ValueError("model_loss needs the logits of the model, and was given labels alone.")
    return _cross_entropy(logits, labels, num_items_in_batch)


def _cross_entropy(logits: Tensor, labels: Tensor | None, num_items_in_batch: Tensor | int | None) -> Tensor:
    if labels is None:
        raise ValueError(
            "The batch has no labels. Let the collate function return them as 'labels', and keep their column: "
            "TrainingArguments(remove_unused_columns=False)."
        )
    labels = labels.to(logits.device)
    if not labels.is_floating_point():
        labels = labels.view(-1)
    elif labels.shape != logits.shape:
        raise ValueError(
            f"The soft labels have shape {list(labels.shape)} and the model's logits {list(logits.shape)}. The model "
            f"needs an output for each class of the label maps: from_pretrained(..., num_labels={labels.shape[-1]}, "
            f"ignore_mismatched_sizes=True)."
        )
    if num_items_in_batch is None:
        return nn_functional.cross_entropy(logits, labels)
    if isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(logits.device)
    # Trainer counts what is not -100 in the labels: C entries for each soft label.
    samples = num_items_in_batch / labels.shape[1] if labels.is_floating_point() else num_items_in_batch
    return nn_functional.cross_entropy(logits, labels, reduction="sum") / samples


class _Relabelled:
    """What :func:`relabel_transform` returns."""

    def __init__(
        self,
        fn: Callable[[dict[str, Any]], Columns],
        store: LabelStore,
        image_column: str,
        label_column: str,
        key: Callable[[dict[str, Any]], str] | None,
        pooling: LabelPooling,
        onehot: bool,
        full: bool,
    ) -> None:
        self.fn = fn
        self.store = store
        self.image_column = image_column
        self.label_column = label_column
        self.key = key
        self.pooling = pooling
        self.onehot = onehot
        self.full = full
        self._root: str | None = None

    def __repr__(self) -> str:
        return f"relabel_transform({self.fn!r}, {self.store!r})"

    def __call__(self, batch: Columns) -> Columns:
        if self.label_column not in batch and "labels" in batch:
            raise ValueError(
                f"There is a column 'labels' and no column {self.label_column!r}, so that training would go on with "
                f"class indices. If it holds the labels, say so: relabel_transform(..., label_column='labels')."
            )
        if self.label_column not in batch:
            if set(batch) != {self.image_column}:
                warnings.warn(
                    f"No soft labels: there is no label column {self.label_column!r} among {sorted(batch)}. If one of "
                    f"them holds the labels, say so: relabel_transform(..., label_column=).",
                    stacklevel=2,
                )
            return self.fn(dict(batch))
        if self.image_column not in batch:
            raise ValueError(
                f"There is no image column {self.image_column!r} among {sorted(batch)}: give relabel_transform(..., "
                f"image_column=)."
            )
        results, labels = [], []
        for row in range(len(batch[self.label_column])):
            result, label = self._one({name: batch[name][row : row + 1] for name in batch})
            results.append(result)
            labels.append(label)
        if not results:
            return self.fn(dict(batch))
        pool_together(labels, self.pooling)
        columns = {name: _joined([result[name] for result in results]) for name in results[0]}
        for name in self._label_columns(batch, columns):
            columns[name] = _in_the_form_of(columns[name], torch.stack(labels))
        return columns

    def _label_columns(self, batch: Columns, columns: Columns) -> Iterator[str]:
        names = [self.label_column] + (["labels"] if "labels" not in batch else [])
        if not any(name in columns for name in names):
            raise ValueError(
                f"{short(self.fn)} returns the columns {sorted(columns)} and no label. Let it return the label of each "
                f"image as {self.label_column!r} or 'labels', to be replaced by the soft one."
            )
        yield from (name for name in names if name in columns)

    def _one(self, row: dict[str, Any]) -> tuple[dict[str, Any], Tensor]:
        """What the function makes of one example, and the label map of what it shows, or a one-hot label."""
        example = {name: column[0] for name, column in row.items()}
        stored = example[self.image_column]
        image, path = _opened(stored) if isinstance(stored, Mapping) else (stored, getattr(stored, "filename", ""))
        if not isinstance(image, PIL.Image.Image):
            raise TypeError(
                f"Column {self.image_column!r} holds {type(image).__name__} where PIL images were expected. "
                f"relabel_transform wraps the function that gets them: cast_column({self.image_column!r}, "
                f"datasets.Image())."
            )
        record = self._record(example, os.fspath(path or ""))
        trace = CropTrace()
        with nullcontext() if self.full else trace:
            given = image if self.full else track(image, trace)
            before = {**row, self.image_column: [given]}
            result = self.fn(dict(before)) if self.full else run_own(self.fn, dict(before), trace)
            if not isinstance(result, Mapping) or any(len(column) != 1 for column in result.values()):
                raise TypeError(f"{short(self.fn)} must return a dict with a list for each column, an entry an image.")
            made = {name: column for name, column in result.items() if column is not before.get(name)}
            leaves = [leaf for leaf in tree_flatten(made)[0] if leaf is not given]
            if not self.full:
                for leaf in images_in(leaves):
                    if not isinstance(leaf, TrackedImage):
                        trace.accept(leaf, self.fn)
                trace.finish(leaves, self.fn, _WAYS_OUT)
            canvas_size, view = size_of(leaves) or (1, 1), ViewBox() if self.full else trace.view
        columns = tree_map(lambda leaf: stored if leaf is given else plain_of(leaf), dict(result))
        if record is None:
            index = torch.tensor(int(example[self.label_column]))
            return columns, nn_functional.one_hot(index, self.store.header.num_classes).float()
        return columns, label_map_of(record, self.store.header, canvas_size, view)

    def _record(self, example: dict[str, Any], path: str) -> Any:
        """The record of an example, None where a missing one is allowed."""
        key = self._key_of_path(path.replace(os.sep, "/")) if self.key is None else self.key(example)
        if self.onehot:
            return None if key is None else self.store.get(key)
        if key is None:
            near = self.store.nearest(path, 1)
            raise MissingLabelMap(f"{self.store!r} holds no map for any end of {path!r}; a near key is {near}. {_KEY}")
        return self.store[key]

    def _key_of_path(self, path: str) -> str | None:
        """The end of a path that is its key: for the first one, that which the store holds."""
        if not path:
            raise TypeError(f"The image does not say which file it comes from, so its label map is unknown. {_KEY}")
        if self._root is None:
            folders = path.split("/")
            keys = [end for start in range(len(folders)) if (end := "/".join(folders[start:])) and end in self.store]
            if len(keys) > 1:
                raise ValueError(f"{path!r} ends with {len(keys)} keys of {self.store!r}: {keys}. {_KEY}")
            if not keys:
                return None
            self._root = path[: len(path) - len(keys[0])]
        if not path.startswith(self._root):
            raise ValueError(
                f"{path!r} does not lie in {self._root!r}, where the images seen before have their keys. {_KEY}"
            )
        return path[len(self._root) :]


def _opened(stored: Mapping[str, Any]) -> tuple[PIL.Image.Image, str]:
    """An image of a column that was not decoded, and its path."""
    image = PIL.Image.open(stored["path"] if stored["bytes"] is None else BytesIO(stored["bytes"]))
    image.load()
    return image, stored["path"] or ""


def _joined(columns: list[Any]) -> Any:
    """The columns of single examples as one."""
    if isinstance(columns[0], Tensor):
        return torch.cat(columns)
    if isinstance(columns[0], np.ndarray):
        return np.concatenate(columns)
    return [column[0] for column in columns]


def _in_the_form_of(column: Any, labels: Tensor) -> Any:
    """Soft labels ``[n, C]`` in the form of a column of class indices: a tensor, an array, a list of tensors or not."""
    if isinstance(column, Tensor):
        return labels
    if isinstance(column, np.ndarray):
        return labels.numpy()
    return list(labels) if isinstance(column[0], Tensor) else labels.tolist()
