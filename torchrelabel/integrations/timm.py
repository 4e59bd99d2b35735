"""timm's train.py on label maps, without a changed line."""

from __future__ import annotations

import inspect
import itertools
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils.data import IterableDataset

from torchrelabel.data.dataset import LabelMapDataset
from torchrelabel.data.label_map_stream import LabelMapStream
from torchrelabel.data.timm_soft_targets import accept_soft_targets as accept_soft_targets
from torchrelabel.store import LabelStore

__all__ = ["LabelMapStream", "accept_soft_targets", "check_arguments", "run_script", "training_datasets_wrapped"]


def run_script(
    script: str | os.PathLike[str], arguments: Sequence[str], label_maps: str | os.PathLike[str], **options: Any
) -> None:
    """Run an unmodified training script, with every training dataset that it creates through timm wrapped.

    Args:
        script: timm's ``train.py``, or any that calls ``timm.data.create_dataset(..., is_training=True)``.
        arguments: The script's own, as on its command line.
        label_maps: The store.
        **options: For :class:`~torchrelabel.LabelMapDataset`.

    Raises:
        FileNotFoundError: If there is no such script.
        ValueError: If its ``--num-classes`` is not the number of classes of the label maps.
        RuntimeError: If it ran to its end without creating a training dataset: nothing was trained on label maps.
    """
    check_arguments(script, arguments, label_maps)
    script = os.fspath(script)
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(os.path.abspath(script))
    try:
        with training_datasets_wrapped(label_maps, **options) as wrapped:
            runpy.run_path(script, run_name="__main__")
    finally:
        sys.argv, sys.path[:] = before
    if not wrapped:
        raise RuntimeError(
            f"{script} ended without a call of timm.data.create_dataset(..., is_training=True), so that no training "
            f"dataset got label maps. Wrap the dataset in the script: LabelMapDataset(dataset, {str(label_maps)!r})."
        )


@contextmanager
def training_datasets_wrapped(
    label_maps: str | os.PathLike[str], **options: Any
) -> Iterator[list[LabelMapDataset | LabelMapStream]]:
    """Let ``timm.data.create_dataset`` wrap each training dataset.

    One that is read by index becomes a :class:`~torchrelabel.LabelMapDataset`, one of WebDataset shards a
    :class:`LabelMapStream`.

    Args:
        label_maps: The store.
        **options: For :class:`~torchrelabel.LabelMapDataset`.

    Yields:
        The datasets that were wrapped so far.
    """
    import timm.data
    import timm.data.dataset_factory

    original: Callable[..., Any] = timm.data.dataset_factory.create_dataset
    wrapped: list[LabelMapDataset | LabelMapStream] = []

    def create_dataset(*args: Any, **kwargs: Any) -> Any:
        dataset = original(*args, **kwargs)
        if not inspect.signature(original).bind(*args, **kwargs).arguments.get("is_training"):
            return dataset
        wrap = LabelMapStream if isinstance(dataset, IterableDataset) else LabelMapDataset
        dataset = wrap(dataset, label_maps, **options)
        wrapped.append(dataset)
        if os.environ.get("RANK", "0") == "0":
            print(f"Training labels come from {dataset.label_maps!r}: {dataset!r}", file=sys.stderr, flush=True)
        return dataset

    places = (timm.data, timm.data.dataset_factory)
    for place in places:
        place.create_dataset = create_dataset  # type: ignore[attr-defined]
    try:
        yield wrapped
    finally:
        for place in places:
            place.create_dataset = original  # type: ignore[attr-defined]


def check_arguments(
    script: str | os.PathLike[str], arguments: Sequence[str], label_maps: str | os.PathLike[str]
) -> None:
    """Find out now what would go wrong, and not from torch's words in the first step of training.

    Args:
        script: As for :func:`run_script`.
        arguments: As for :func:`run_script`.
        label_maps: The store.

    Raises:
        FileNotFoundError: If there is no such script.
        StoreError: If there is no such store.
        ValueError: If the script's ``--num-classes`` is not the number of classes of the label maps.
    """
    if not os.path.isfile(script):
        raise FileNotFoundError(
            f"There is no training script {os.fspath(script)!r}. Name timm's train.py, then its arguments."
        )
    stored = LabelStore(label_maps).header.num_classes
    words = " ".join(arguments).replace("=", " ").split()
    for option, value in itertools.pairwise(words):
        if option == "--num-classes" and value.isdigit() and int(value) != stored:
            raise ValueError(
                f"The script was given --num-classes {value}, and the label maps have {stored} classes. Train with "
                f"--num-classes {stored}, or annotate the images with a model of {value} classes."
            )
