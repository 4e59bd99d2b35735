"""timm's train.py on label maps, without a changed line."""

from __future__ import annotations

import inspect
import itertools
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import IterableDataset

from torchrelabel.data.dataset import LabelMapDataset
from torchrelabel.errors import TorchRelabelError
from torchrelabel.integrations.timm.stream import LabelMapStream
from torchrelabel.integrations.timm.token_scores import with_token_scores
from torchrelabel.store import LabelStore

__all__ = ["check_arguments", "run_script", "training_datasets_wrapped"]


def run_script(
    script: str | os.PathLike[str], arguments: Sequence[str], label_maps: str | os.PathLike[str], **options: Any
) -> None:
    """Run an unmodified training script, with every training dataset that it creates through timm wrapped.

    Args:
        script: timm's ``train.py``, or any that calls ``timm.data.create_dataset(..., is_training=True)``.
        arguments: The script's own, as on its command line.
        label_maps: The store.
        **options: For :class:`~torchrelabel.LabelMapDataset`. With ``pooling=LabelPooling((gh, gw))`` the models that
            the script makes through timm learn the labels of their tokens, too.

    Raises:
        FileNotFoundError: If there is no such script.
        ValueError: If its ``--num-classes`` is not the number of classes of the label maps.
        UnsupportedModel: If a model has no scores of tokens, or another grid of them.
        TorchRelabelError: If a training dataset cannot be wrapped, or the model before it has other outputs than the
            label maps have classes; or before the first step of training if none was created.
    """
    check_arguments(script, arguments, label_maps)
    script = os.fspath(script)
    before = sys.argv, sys.path[:]
    sys.argv, sys.path[0] = [script, *arguments], os.path.dirname(os.path.abspath(script))
    try:
        with training_datasets_wrapped(label_maps, **options) as wrapped:
            refuse = register_optimizer_step_pre_hook(partial(_check_wrapped, wrapped, script, label_maps))
            try:
                runpy.run_path(script, run_name="__main__")
            finally:
                refuse.remove()
    finally:
        sys.argv, sys.path[:] = before
    _check_wrapped(wrapped, script, label_maps)


def _check_wrapped(wrapped: Sequence[Any], script: str, label_maps: Any, *_: Any) -> None:
    """Raise before the first step of an optimizer, or at the end, if no dataset was wrapped."""
    if not wrapped:
        raise TorchRelabelError(
            f"{script} trains without a call of timm.data.create_dataset(..., is_training=True), so that no training "
            f"dataset got label maps. Wrap the dataset in the script: LabelMapDataset(dataset, {str(label_maps)!r})."
        )


@contextmanager
def training_datasets_wrapped(
    label_maps: str | os.PathLike[str], **options: Any
) -> Iterator[list[LabelMapDataset | LabelMapStream]]:
    """Let ``timm.data.create_dataset`` wrap each training dataset.

    One that is read by index becomes a :class:`~torchrelabel.LabelMapDataset`, one of WebDataset shards a
    :class:`LabelMapStream`. Where labels are pooled for a grid of tokens, ``timm.create_model`` makes models that say
    in training what each token shows.

    Args:
        label_maps: The store.
        **options: For :class:`~torchrelabel.LabelMapDataset`.

    Yields:
        The datasets that were wrapped so far.

    Raises:
        TorchRelabelError: From ``create_dataset``, if the dataset cannot be wrapped, or if no model that
            ``timm.create_model`` made before it has as many outputs as the label maps have classes.
    """
    import timm.data
    import timm.data.dataset_factory
    import timm.models

    original: Callable[..., Any] = timm.data.dataset_factory.create_dataset
    original_model: Callable[..., Any] = timm.models.create_model
    wrapped: list[LabelMapDataset | LabelMapStream] = []
    models: list[Any] = []

    pooling = options.get("pooling")
    grid: tuple[int, int] = (1, 1) if pooling is None else pooling.output_size

    def create_model(*args: Any, **kwargs: Any) -> Any:
        model = original_model(*args, **kwargs)
        models.append(model if grid == (1, 1) else with_token_scores(model, grid))
        return models[-1]

    def create_dataset(*args: Any, **kwargs: Any) -> Any:
        dataset = original(*args, **kwargs)
        if not inspect.signature(original).bind(*args, **kwargs).arguments.get("is_training"):
            return dataset
        wrap = LabelMapStream if isinstance(dataset, IterableDataset) else LabelMapDataset
        try:
            dataset = wrap(dataset, label_maps, **options)
        except TorchRelabelError:
            raise
        except (TypeError, ValueError) as error:  # of a kind that tells our words from the script's own errors
            raise TorchRelabelError(str(error)) from error
        _check_outputs(models, dataset.num_classes)
        wrapped.append(dataset)
        if os.environ.get("RANK", "0") == "0":
            print(f"Training labels come from {dataset.label_maps!r}: {dataset!r}", file=sys.stderr, flush=True)
            windows = LabelStore(label_maps).header.annotator.get("windows")
            if windows and grid != (1, 1):
                print(
                    f"WARNING: these label maps are of {windows} x {windows} windows, so that the label of a token is "
                    f"that of a wide window around it. For token labels annotate cells, without --windows.",
                    file=sys.stderr,
                    flush=True,
                )
        return dataset

    places: list[tuple[Any, str, Any, Any]] = [
        (timm.data, "create_dataset", create_dataset, original),
        (timm.data.dataset_factory, "create_dataset", create_dataset, original),
        (timm, "create_model", create_model, original_model),
        (timm.models, "create_model", create_model, original_model),
    ]
    for place, name, ours, _ in places:
        setattr(place, name, ours)
    try:
        yield wrapped
    finally:
        for place, name, _, theirs in places:
            setattr(place, name, theirs)


def _check_outputs(models: Sequence[Any], num_classes: int) -> None:
    """Refuse models of which none can learn from the label maps: torch's words for it name neither number."""
    outputs = {_outputs(model): model for model in models}
    outputs.pop(0, None)  # a backbone, to which the script adds a classifier of its own
    if outputs and num_classes not in outputs:
        count, model = outputs.popitem()
        name = getattr(model, "pretrained_cfg", {}).get("architecture", type(model).__name__)
        raise TorchRelabelError(
            f"{name} has {count} outputs, and the label maps have {num_classes} classes. Give the script "
            f"--num-classes {num_classes}, or annotate the images with a model of {count} classes."
        )


def _outputs(model: Any) -> int:
    # A layer that the script put in place of the model's own is where the classifier is, and num_classes not changed.
    classifier = model.get_classifier() if hasattr(model, "get_classifier") else None
    return int(getattr(classifier, "out_features", getattr(model, "num_classes", None) or 0))


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
            f"There is no training script {os.fspath(script)!r}. Name timm's train.py, then its arguments. pip does "
            f"not install it; yours is https://raw.githubusercontent.com/huggingface/pytorch-image-models/v{version('timm')}"
            f"/train.py"
        )
    stored = LabelStore(label_maps).header.num_classes
    words = " ".join(arguments).replace("=", " ").split()
    for option, value in itertools.pairwise(words):
        if option == "--num-classes" and value.isdigit() and int(value) != stored:
            raise ValueError(
                f"The script was given --num-classes {value}, and the label maps have {stored} classes. Train with "
                f"--num-classes {stored}, or annotate the images with a model of {value} classes."
            )
