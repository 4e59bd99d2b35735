"""The annotator that made a store, built once more from what its header says."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

import torch

from torchrelabel.annotate.annotator import Annotator, check_request
from torchrelabel.annotate.timm_models import canonical_name
from torchrelabel.store import StoreHeader

# What else than the model decides what it sees.
_INPUT = ("image_size", "interpolation", "mean", "std")


def check_annotator_of(
    header: StoreHeader,
    *,
    model: str | Annotator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    **options: Any,
) -> None:
    """Refuse what `annotator_of` would refuse, as far as that is known before a model is built.

    Raises:
        TypeError, ValueError, FileNotFoundError, TorchRelabelError: As `annotator_of`.
    """
    if isinstance(model, Annotator):
        return
    check_request(_name_of(header, model), checkpoint=checkpoint, **options)


def annotator_of(
    header: StoreHeader,
    *,
    model: str | Annotator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
    image_size: int | None = None,
    device: str | torch.device | None = None,
) -> Annotator:
    """Build the annotator that made a store once more, or another one to compare it with.

    Args:
        header: Of the store.
        model: A model of timm's by name, or an annotator; the one that the store names if None. By name, the one that
            made the store gets the store's mean, std, interpolation and sizes, and the same random weights if they
            were random.
        checkpoint: Weights for it.
        state_dict_key: Under which key of the checkpoint they lie.
        strip_prefix: What stands in front of their names there.
        image_size: Side in pixels; the store's, or the model's own, if None.
        device: Where it runs; CUDA where there is one, if None.

    Raises:
        ValueError: If the store names no model, or the model has another number of classes.
    """
    if not isinstance(model, Annotator):
        name = _name_of(header, model)
        made_by = header.annotator
        # Random weights are the same every time, as far as one release of timm and torch goes.
        random_weights = (
            checkpoint is None and made_by.get("weights") == "random" and canonical_name(name) == made_by.get("model")
        )
        build = partial(
            Annotator.from_timm,
            name,
            pretrained=not random_weights,
            checkpoint=checkpoint,
            state_dict_key=state_dict_key,
            strip_prefix=strip_prefix,
            device=device,
            windows=made_by.get("windows"),
        )
        model = build(image_size=image_size)
        # The store's settings are right for the model that made it, and no other: a name may also be an alias.
        if model.name == made_by.get("model"):
            own = model.description()
            settings = {setting: made_by[setting] for setting in _INPUT if setting in made_by}
            if image_size is not None:
                settings["image_size"] = image_size
            if any(value != own[setting] for setting, value in settings.items()):
                model = build(**settings)
            if image_size is None and model.windows is None and "map_size" in made_by:
                model = model.enlarged(made_by["map_size"] / model.image_size)
    if model.num_classes != header.num_classes:
        raise ValueError(
            f"{model.name} has {model.num_classes} classes and the label maps have {header.num_classes}, so they "
            f"cannot be compared. The store was made by {header.annotator.get('model', 'an unnamed model')}."
        )
    return model


def _name_of(header: StoreHeader, model: str | None) -> str:
    """The name of the model to be built.

    Raises:
        ValueError: If the store names none that timm could build.
    """
    if model is not None:
        return model
    name = header.annotator.get("model")
    if not isinstance(name, str):
        raise ValueError("The store does not name the model that made it. Give model= beside the checkpoint.")
    if header.annotator.get("weights") == "given":
        raise ValueError(
            f"The store was made by {name}, a model of its maker's own, which timm cannot build. From Python, give the "
            f"annotator itself: model=Annotator.from_model(...)."
        )
    return name


def differences(annotator: Annotator, header: StoreHeader) -> list[str]:
    """What differs between the annotator and the one that made the store."""
    notes = []
    made_by, here = header.annotator, annotator.description()
    digest = made_by.get("weights_sha256")
    if digest is None:
        notes.append("The store does not tell its annotator's weights, so whether they are these is unknown.")
    elif digest != annotator.weights_sha256:
        notes.append(
            f"The weights are not those that made the store (SHA-256 {annotator.weights_sha256[:12]}..., there "
            f"{str(digest)[:12]}...): what disagrees may be the models."
        )
    notes += [
        f"{name} is {here[name]!r} here, and was {made_by[name]!r} when the store was made."
        for name in _INPUT
        if name in made_by and made_by[name] != here[name]
    ]
    # Where the size of the input is another one, that for the cells follows from it.
    size = here["image_size"]
    then, now = (description.get("map_size", size) for description in (made_by, here))
    if made_by.get("image_size") == size and then != now:
        notes.append(f"map_size is {now} here, and was {then} when the store was made.")
    windows = made_by.get("windows")
    if windows != annotator.windows:
        then, now = (f"{n} x {n} windows" if n else "cells" for n in (windows, annotator.windows))
        notes.append(f"The maps here are of {now}, and were of {then} when the store was made.")
    return notes
