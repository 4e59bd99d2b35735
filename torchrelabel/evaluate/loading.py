"""Which classifier a name or a file means: timm's, torchvision's, or one that was exported."""

from __future__ import annotations

import difflib
import math
import os
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

import timm
import timm.data
import torch
from torch import Tensor, nn
from torchvision import models

from torchrelabel.annotate.checkpoints import Checkpoint, first_line, fit, load_checkpoint
from torchrelabel.annotate.timm_models import build_timm
from torchrelabel.errors import TorchRelabelError, UnsupportedModel
from torchrelabel.evaluate.classifier import IMAGENET_MEAN, IMAGENET_STD, CentreCrop, Classifier, OfTimm
from torchrelabel.evaluate.exports import load_onnx, load_pt2

_TORCHVISION = "torchvision:"

# Which is not typed.
_timm_data: Any = timm.data


def load_classifier(
    model: str | os.PathLike[str] | nn.Module | Classifier,
    checkpoint: str | os.PathLike[str] | None = None,
    *,
    pretrained: bool = True,
    num_classes: int | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
    image_size: int | None = None,
    crop_pct: float | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    device: str | torch.device | None = None,
    amp: bool = False,
) -> Classifier:
    """Load a classifier.

    Args:
        model: The name of a model of timm's, or of torchvision's where timm has none of that name (``torchvision:NAME``
            where it has, with ``.WEIGHTS`` behind it to choose its weights); a ``.pt2`` file of ``torch.export.save``;
            an ``.onnx`` file; or a module.
        checkpoint: A file of weights for the model, read without executing code.
        pretrained: Load the library's own weights, if there is no checkpoint.
        num_classes: C; read off the checkpoint, or the model's own, if None.
        state_dict_key: Under which key of the checkpoint the weights lie, such as ``"ema"``; found out if None.
        strip_prefix: Take the weights whose names begin with this alone, without it.
        image_size: S in pixels; the model's own if None.
        crop_pct: The share of the resized image's shorter side that is cut out; the model's own if None.
        mean: Mean per channel, of images in 0..1; the model's own if None.
        std: Standard deviation per channel; the model's own if None.
        interpolation: How images are resized; the model's own if None.
        device: Where it runs; CUDA where there is one, if None.
        amp: Compute in bfloat16.

    Raises:
        ValueError: If nobody knows such a model, or an argument cannot be.
        FileNotFoundError: If there is no such file.
        UnsupportedModel: If it is no classifier of RGB images.
        TorchRelabelError: If the weights cannot be fetched, read, or do not fit.
        ImportError: If the model is an ONNX file, and onnxruntime is missing.
    """
    if crop_pct is not None and not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}.")
    given: dict[str, Any] = {"mean": mean, "std": std, "interpolation": interpolation}
    options: dict[str, Any] = {"device": device, "amp": amp}
    if isinstance(model, Classifier):
        return model
    name = os.fspath(model) if isinstance(model, (str, os.PathLike)) else ""
    exported = Path(name).suffix.lower() in (".pt2", ".onnx")
    if (exported or not name) and checkpoint is not None:
        raise ValueError(f"{name or 'A module'} brings its own weights. Leave the checkpoint {str(checkpoint)!r} out.")
    if exported:
        return _exported(Path(name), image_size, crop_pct, given, options)
    if isinstance(model, nn.Module):
        return _module(model, type(model).__name__, "given", image_size, crop_pct, given, options)
    wanted: dict[str, Any] = {
        "pretrained": pretrained,
        "num_classes": num_classes,
        "image_size": image_size,
        "state_dict_key": state_dict_key,
        "strip_prefix": strip_prefix,
    }
    if name.startswith(_TORCHVISION) or (
        ":" not in name and not timm.is_model(name.partition(".")[0]) and _is_torchvision(name)
    ):
        return _torchvision(name.removeprefix(_TORCHVISION), checkpoint, crop_pct, given, options, **wanted)
    built = build_timm(name, checkpoint=checkpoint, **wanted)
    # The accuracies that timm reports are at the larger size that some weights are tested at; whoever trained a
    # checkpoint knows the accuracy at the size of the training, by timm's train.py or by a paper's protocol.
    config = _timm_data.resolve_model_data_config(
        built.model,
        args={key: value for key, value in given.items() if value is not None},
        use_test_size=built.weights == "pretrained",
    )
    config["crop_pct"] = crop_pct or config["crop_pct"]
    if image_size is not None:
        config["input_size"] = (3, image_size, image_size)
    config.update({key: tuple(value) for key, value in given.items() if key in ("mean", "std") and value is not None})
    size = int(config["input_size"][-1])
    if config["input_size"][-2] != size:
        raise UnsupportedModel(f"{built.name} takes images of {config['input_size']}, and images here are square.")
    mode = str(config["crop_mode"])
    transform = OfTimm(
        _timm_data.create_transform(
            config["input_size"],
            is_training=False,
            use_prefetcher=True,
            interpolation=config["interpolation"],
            mean=config["mean"],
            std=config["std"],
            crop_pct=config["crop_pct"],
            crop_mode=mode,
        ),
        f"timm's transforms for evaluation: {size} px, crop {config['crop_pct']}, {mode}, {config['interpolation']}",
    )
    return Classifier(
        built.model,
        name=built.name,
        image_size=size,
        mean=config["mean"],
        std=config["std"],
        interpolation=config["interpolation"],
        transform=transform,
        weights=_with_file(built.weights, checkpoint),
        class_names=built.class_names,
        notes=built.notes,
        **options,
    )


def _is_torchvision(name: str) -> bool:
    return name.partition(".")[0] in models.list_models(module=models)


def _torchvision(
    name: str,
    checkpoint: str | os.PathLike[str] | None,
    crop_pct: float | None,
    given: dict[str, Any],
    options: dict[str, Any],
    *,
    pretrained: bool,
    num_classes: int | None,
    image_size: int | None,
    state_dict_key: str | None,
    strip_prefix: str | None,
) -> Classifier:
    architecture, _, tag = name.partition(".")
    if not _is_torchvision(architecture):
        known = models.list_models(module=models)
        nearest = ", ".join(difflib.get_close_matches(architecture, known, n=3)) or "torchvision.models.list_models()"
        raise ValueError(f"torchvision has no classifier {architecture!r}. Nearest: {nearest}.")
    enum = models.get_model_weights(architecture)
    if tag and tag not in enum.__members__:
        raise ValueError(
            f"{architecture} has no weights called {tag!r} in torchvision. It has {', '.join(enum.__members__)}."
        )
    # A checkpoint was more likely trained with the recipe that a paper has than with the one that came later.
    weights: Any = enum[tag] if tag else enum["DEFAULT"] if checkpoint is None else next(iter(enum))
    held: Checkpoint | None = None
    if checkpoint is not None:
        held = load_checkpoint(checkpoint, key=state_dict_key, strip_prefix=strip_prefix)
        num_classes = num_classes or _rows_of_last_weight(held.state_dict)
    classes: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            load = weights if pretrained and held is None else None
            model = models.get_model(architecture, weights=load, **classes)
    except Exception as error:  # it raises many kinds where it cannot download
        raise TorchRelabelError(
            f"torchvision could not build {architecture}"
            + (f" with the weights {weights.name}" if load is not None else "")
            + f": {first_line(error)}\nGive a file of weights with --checkpoint, or bring torchvision's to "
            f"{torch.hub.get_dir()}/checkpoints."
        ) from error
    notes = [] if held is None else fit(held, model, architecture)
    return _module(
        model,
        f"torchvision:{architecture}" + (f".{weights.name}" if load is not None else ""),
        _with_file("checkpoint" if held is not None else "pretrained" if load is not None else "random", checkpoint),
        image_size,
        crop_pct,
        given,
        options,
        preset=weights,
        class_names=next((names for names in (held.class_names if held else ()) if len(names) == num_classes), None),
        notes=notes,
    )


def _module(
    model: Any,
    name: str,
    weights: str,
    image_size: int | None,
    crop_pct: float | None,
    given: dict[str, Any],
    options: dict[str, Any],
    *,
    preset: Enum | None = None,
    **more: Any,
) -> Classifier:
    """A classifier that is shown images as one of torchvision's presets says, or as ImageNet's models are."""
    shown: dict[str, Any] = {
        "size": 224,
        "resize": 256,
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
        "interpolation": "bilinear",
    }
    if preset is not None:
        transforms: Any = preset.value.transforms()  # its preset for evaluation
        shown = {
            "size": transforms.crop_size[0],
            "resize": transforms.resize_size[0],
            "mean": transforms.mean,
            "std": transforms.std,
            "interpolation": transforms.interpolation.value,
        }
    shown.update({key: value for key, value in given.items() if value is not None})
    size = image_size or shown["size"]
    resize = math.floor(size / (crop_pct or shown["size"] / shown["resize"]))
    return Classifier(
        model,
        name=name,
        image_size=size,
        mean=shown["mean"],
        std=shown["std"],
        interpolation=shown["interpolation"],
        transform=CentreCrop(size, resize, shown["interpolation"]),
        weights=weights,
        **options,
        **more,
    )


def _exported(
    path: Path, image_size: int | None, crop_pct: float | None, given: dict[str, Any], options: dict[str, Any]
) -> Classifier:
    if not path.is_file():
        raise FileNotFoundError(f"There is no exported model {str(path)!r}.")
    export = load_pt2(path) if path.suffix.lower() == ".pt2" else load_onnx(path, options["device"])
    if export.image_size is not None and image_size not in (None, export.image_size):
        raise ValueError(f"{str(path)!r} was exported for {export.image_size} px, and image_size is {image_size}.")
    return _module(
        export.model,
        path.name,
        "exported",
        image_size or export.image_size,
        crop_pct,
        given,
        options,
        batch=export.batch,
        differentiable=export.differentiable,
    )


def _with_file(weights: str, checkpoint: str | os.PathLike[str] | None) -> str:
    return weights if checkpoint is None else f"checkpoint {os.fspath(checkpoint)}"


def _rows_of_last_weight(state_dict: dict[str, Tensor]) -> int | None:
    """C: every classifier of torchvision's ends in a linear layer, or in a convolution of 1 x 1 (SqueezeNet)."""
    weights = [value for name, value in state_dict.items() if name.endswith("weight") and value.dim() in (2, 4)]
    return int(weights[-1].shape[0]) if weights else None
