"""Annotator: a timm classifier that turns whole images into dense class scores."""

from __future__ import annotations

import argparse
import contextlib
import copy
import difflib
import hashlib
import math
import os
import pickle
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import timm
import timm.models
import torch
from torch import Tensor, nn

from torchrelabel.annotate.class_names import names_held
from torchrelabel.annotate.heads import CellHead
from torchrelabel.annotate.images import check_interpolation
from torchrelabel.errors import TorchRelabelError, UnsupportedModel

# Where timm's own training script, and most others, keep the weights; the averaged ones first, as timm's validation.
_STATE_DICT_KEYS = ("state_dict_ema", "model_ema", "state_dict", "model")
# What data parallelism and torch.compile put in front of every name.
_WRAPPER_PREFIXES = ("_orig_mod.", "module.", "_orig_mod.")


class TopScores(NamedTuple):
    """The best K classes of every cell.

    Attributes:
        scores: Logits, descending, ``[N, K, h, w]``, float32.
        classes: Their indices, ``[N, K, h, w]``, int32.
        residual: Logsumexp of the classes not kept, ``[N, h, w]``, float32; None if not asked for, or if all are kept.
        image_scores: Logits of the whole images, ``[N, C]``, float32.
    """

    scores: Tensor
    classes: Tensor
    residual: Tensor | None
    image_scores: Tensor


class Checkpoint(NamedTuple):
    """What a file of weights holds.

    Attributes:
        state_dict: Names, without the prefixes of data parallelism and torch.compile, to tensors on the CPU.
        class_names: Every list of names beside the weights that may be that of the classes.
    """

    state_dict: dict[str, Tensor]
    class_names: list[tuple[str, ...]]


class BuiltModel(NamedTuple):
    """A classifier of timm's with its weights.

    Attributes:
        model: In training mode, on the CPU; its configuration is ``pretrained_cfg``.
        name: As timm spells it today, with the tag of the weights where timm chose them.
        weights: ``"pretrained"``, ``"checkpoint"`` or ``"random"``.
        class_names: What its classes are called, if the weights came with names.
    """

    model: Any
    name: str
    weights: str
    class_names: tuple[str, ...] | None


class Annotator:
    """Predict class scores for every cell of an image.

    Build one with ``Annotator.from_timm``; the constructor takes any module with ``forward_features`` and
    ``forward_head``.

    Args:
        model: The classifier, its weights loaded.
        name: What to call it in the store's header.
        image_size: Side S in pixels of the square images that it gets.
        mean: Mean per channel, of images in 0..1.
        std: Standard deviation per channel.
        interpolation: How images are resized: ``"bilinear"``, ``"bicubic"``, ...
        weights: Where the weights are from: ``"pretrained"``, ``"checkpoint"``, ``"random"``, or words of your own.
        device: Where it runs; CUDA where there is one, if None.
        amp: Compute in bfloat16 where autocast finds it safe. Logits are float32 either way.
        enlarge: How many times as large images are shown for their cells. A crop is seen enlarged, too: what the model
            says of it is nearer to what it says of the cells of an enlarged image. Costs ``enlarge ** 2`` forward
            passes, besides the one for the whole image; 1 takes both from one.
        class_names: What the C classes are called, if the weights came with names.

    Attributes:
        num_classes: C.
        grid: ``(h, w)`` in cells, of an image of ``image_size``. Those of enlarged images are averaged to as many.
        map_size: Side in pixels of the images for the cells, ``image_size`` times ``enlarge``.
        head: The ``CellHead``, which also measures whether the head commutes with pooling.
        device: Where it runs.
        weights_sha256: SHA-256 of the model's state dict.

    Raises:
        UnsupportedModel: If the model's features are no grid of cells that its head can classify.
        ValueError: If the statistics or the interpolation cannot be, or the model cannot take images of this size.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        image_size: int,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        interpolation: str,
        weights: str,
        device: str | torch.device | None = None,
        amp: bool = False,
        enlarge: float = 1.0,
        class_names: Sequence[str] | None = None,
    ) -> None:
        if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean must be three numbers from 0 to 1, as for images in 0..1, got {spaced(mean)}.")
        if len(std) != 3 or not all(0 < value <= 1 for value in std):
            raise ValueError(
                f"std must be three numbers above 0 and up to 1, as for images in 0..1, got {spaced(std)}."
            )
        check_interpolation(interpolation)
        self.name = name
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.weights = weights
        self.amp = amp
        self.class_names = class_names
        self.device = resolve_device(device)
        self.weights_sha256 = weights_digest(model)
        # cuDNN's kernels for half precision want channels last; on a CPU the same would slow some models down.
        if self.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        self.head = CellHead(model.to(self.device).requires_grad_(False), image_size)
        self.num_classes = self.head.num_classes
        self.grid = self.head.grid
        self._enlarge(enlarge)
        self._mean = torch.tensor(mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(std, device=self.device).view(1, 3, 1, 1)

    @classmethod
    def from_timm(
        cls,
        name: str,
        pretrained: bool = True,
        checkpoint: str | os.PathLike[str] | None = None,
        image_size: int | None = None,
        device: str | torch.device | None = None,
        num_classes: int | None = None,
        amp: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        interpolation: str | None = None,
        enlarge: float = 1.0,
    ) -> Annotator:
        """Build an annotator from a model of timm.

        Args:
            name: As timm spells it, with or without a tag; old names are mapped to today's.
            pretrained: Load timm's weights. Ignored if ``checkpoint`` is given.
            checkpoint: A file of weights for this model: a state dict, or a training checkpoint that holds one;
                safetensors, or what ``torch.save`` wrote. Read without executing code.
            image_size: Side in pixels; the model's own if None.
            device: Where it runs; CUDA where there is one, if None.
            num_classes: C; read off the checkpoint's classifier, or the model's own, if None.
            amp: Compute in bfloat16.
            mean: Mean per channel, of images in 0..1; the model's own if None. A checkpoint may have been trained with
                another, as with the next two.
            std: Standard deviation per channel; the model's own if None.
            interpolation: How images are resized, ``"bilinear"``, ``"bicubic"``, ...; the model's own if None.
            enlarge: How many times as large images are shown for their cells.

        Returns:
            The annotator, in eval mode.

        Raises:
            ValueError: If timm knows no such model, an argument cannot be, or the size or the number of classes does
                not fit the model.
            FileNotFoundError: If there is no such checkpoint.
            UnsupportedModel: If the model has no classifier, or its features are no grid.
            TorchRelabelError: If the weights cannot be fetched, read, or do not fit the model.
        """
        device = resolve_device(device)
        built = build_timm(
            name, pretrained=pretrained, checkpoint=checkpoint, image_size=image_size, num_classes=num_classes
        )
        model, name = built.model, built.name
        config: dict[str, Any] = model.pretrained_cfg
        return cls(
            model,
            name=name,
            image_size=image_size or int(config["input_size"][-1]),
            mean=tuple(map(float, config["mean"] if mean is None else mean)),
            std=tuple(map(float, config["std"] if std is None else std)),
            interpolation=str(config["interpolation"] if interpolation is None else interpolation),
            weights=built.weights,
            device=device,
            amp=amp,
            enlarge=enlarge,
            class_names=built.class_names,
        )

    def enlarged(self, enlarge: float) -> Annotator:
        """The same annotator, which sees images ``enlarge`` times as large for their cells.

        Raises:
            ValueError: If it is less than 1, or the model cannot take images of that size.
        """
        other = copy.copy(self)
        other._enlarge(enlarge)
        return other

    def _enlarge(self, enlarge: float) -> None:
        if not 1 <= enlarge < math.inf:
            raise ValueError(f"enlarge must be 1 or more, got {enlarge}.")
        self.map_size = round(self.image_size * enlarge)
        self._map_head = self.head if self.map_size == self.image_size else CellHead(self.head.model, self.map_size)

    def __call__(self, images: Tensor) -> Tensor:
        """Predict class scores for every cell of images of the model's own size.

        Args:
            images: Normalised (``normalise``), ``[N, 3, S, S]``, floating point, on any device.

        Returns:
            Logits, ``[N, C, h, w]``, float32, on the annotator's device.

        Raises:
            ValueError: If the images have another shape.
        """
        with torch.no_grad(), self._autocast():
            return self.head(self._checked(images))

    def top_scores(self, images: Tensor, k: int, residual: bool = True, *, enlarged: Tensor | None = None) -> TopScores:
        """Predict the best classes of every cell without ever holding all scores of a large batch.

        Args:
            images: Normalised, ``[N, 3, S, S]``.
            k: K, at most C.
            residual: Also sum up the classes not kept.
            enlarged: The same images at ``map_size``, where that is another size.

        Returns:
            The K best per cell, on the annotator's device. A score that is not a number is sorted first.

        Raises:
            ValueError: If the images have another shape.
        """
        scores, classes, rest = [], [], []
        with torch.no_grad(), self._autocast():
            features = self.head.features(self._checked(images))
            image_scores = self.head.whole(features)
            if self.map_size != self.image_size:
                if enlarged is None:
                    raise ValueError(f"The cells are those of enlarged images: give enlarged=, at {self.map_size} px.")
                features = self._map_head.features(self._checked(enlarged, self.map_size))
            for logits in self._map_head.chunks(features):
                logits = averaged(logits.permute(0, 3, 1, 2), self.grid).permute(0, 2, 3, 1)
                top = logits.topk(k, dim=-1)
                scores.append(top.values)
                classes.append(top.indices.int())
                if residual and k < self.num_classes:
                    rest.append(logits.scatter_(-1, top.indices, -torch.inf).logsumexp(-1))
        return TopScores(
            torch.cat(scores).permute(0, 3, 1, 2).contiguous(),
            torch.cat(classes).permute(0, 3, 1, 2).contiguous(),
            torch.cat(rest) if rest else None,
            image_scores,
        )

    def whole(self, images: Tensor) -> Tensor:
        """What the model says of images, or of crops of them, as a whole.

        Args:
            images: Normalised, ``[N, 3, S, S]``.

        Returns:
            Logits, ``[N, C]``, float32, on the annotator's device.
        """
        with torch.no_grad(), self._autocast():
            return self.head.whole(self.head.features(self._checked(images)))

    def normalise(self, images: Tensor) -> Tensor:
        """Do what torchvision's ToTensor and Normalize do, for a batch on the annotator's device.

        Args:
            images: Pixels, ``[N, 3, S, S]``, uint8.

        Returns:
            ``(images / 255 - mean) / std``, float32.
        """
        # In place: on a CPU, four fresh arrays a batch would cost more than the arithmetic.
        return images.to(self.device, non_blocking=True).float().div_(255).sub_(self._mean).div_(self._std)

    def description(self) -> dict[str, Any]:
        """Say how the maps were made, for the header of a store: plain values only."""
        return {
            "model": self.name,
            "weights": self.weights,
            "weights_sha256": self.weights_sha256,
            "image_size": self.image_size,
            **({} if self.map_size == self.image_size else {"map_size": self.map_size}),
            "resize": "squash",
            "interpolation": self.interpolation,
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": "bfloat16" if self.amp else "float32",
        }

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp)

    def _checked(self, images: Tensor, size: int | None = None) -> Tensor:
        size = size or self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise ValueError(f"{self.name} takes images [N, 3, {size}, {size}], got {list(images.shape)}.")
        if not images.is_floating_point():
            raise ValueError(f"The annotator takes normalised images, got {images.dtype}; call normalise() on them.")
        return images.to(self.device)


def build_timm(
    name: str,
    *,
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> BuiltModel:
    """Build a classifier of timm's for RGB images, and load its weights; arguments and errors as `Annotator.from_timm`.

    Raises:
        ValueError: If timm knows no such model, or the size or the number of classes does not fit it.
        FileNotFoundError: If there is no such checkpoint.
        UnsupportedModel: If it does not take RGB images.
        TorchRelabelError: If the weights cannot be fetched, read, or do not fit the model.
    """
    name = canonical_name(name)
    state_dict: dict[str, Tensor] | None = None
    named: list[tuple[str, ...]] = []
    cfg = None if ":" in name else timm.models.get_pretrained_cfg(name)
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be a number of pixels, 1 or more, got {image_size}.")
    if num_classes is not None and num_classes < 1:
        raise ValueError(f"num_classes must be 1 or more, got {num_classes}.")
    if checkpoint is not None:
        state_dict, named = load_checkpoint(checkpoint)
        if num_classes is None and cfg is not None:
            num_classes = _classes_in(state_dict, cfg.classifier)
    elif num_classes is not None and pretrained and cfg is not None and num_classes != cfg.num_classes:
        raise ValueError(
            f"{name} was trained for {cfg.num_classes} classes, so with num_classes={num_classes} its classifier "
            f"would be random. Leave num_classes out, or give a checkpoint with {num_classes} classes."
        )
    model = _create(name, pretrained=pretrained and state_dict is None, image_size=image_size, classes=num_classes)
    if state_dict is not None:
        load_into(model, state_dict, name, checkpoint)
    config: dict[str, Any] = model.pretrained_cfg
    if config["input_size"][0] != 3:
        raise UnsupportedModel(f"{name} takes {config['input_size'][0]} channels, and images here have 3 (RGB).")
    if state_dict is None and pretrained:
        named = names_held(config)
    if state_dict is None and pretrained and ":" not in name and "." not in name and config.get("tag"):
        name = f"{name}.{config['tag']}"  # the weights that timm takes today when none are named
    return BuiltModel(
        model,
        name,
        "checkpoint" if state_dict is not None else "pretrained" if pretrained else "random",
        next((names for names in named if len(names) == model.num_classes), None),
    )


def averaged(cells: Tensor, grid: Sequence[int]) -> Tensor:
    """The cells of an enlarged image, ``[N, C, h', w']``, averaged to ``grid``, ``(h, w)``, by the area they share."""
    if tuple(cells.shape[2:]) == tuple(grid):
        return cells
    down, across = (_shares(to, of).to(cells) for to, of in zip(grid, cells.shape[2:], strict=True))
    return torch.einsum("ir,jc,nkrc->nkij", down, across, cells)


def _shares(to: int, of: int) -> Tensor:
    """How much each of ``of`` cells along an axis counts in each of ``to`` on the same stretch: ``[to, of]``."""
    ends = torch.arange(to + 1) * (of / to)
    cells = torch.arange(of)
    shared = torch.minimum(ends[1:, None], cells + 1) - torch.maximum(ends[:-1, None], cells)
    return shared.clamp(min=0) * (to / of)


def spaced(values: Iterable[float]) -> str:
    """Numbers as they are given on a command line."""
    return " ".join(map(str, values))


def canonical_name(name: str) -> str:
    """Map an old name of timm's to today's, and refuse unknown ones with the nearest that exist.

    Raises:
        ValueError: If timm knows no such model, no such tag, or has removed it.
    """
    if ":" in name:
        return name  # hf-hub:owner/model and local-dir:folder are timm's to resolve
    # Asked first, since timm warns about every old name that it maps itself.
    deprecated = timm.models.get_deprecated_models()
    if name in deprecated:
        current = deprecated[name]
        if not current:
            raise ValueError(f"timm {timm.__version__} has removed the model {name!r} without a successor.")
        return str(current)
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.5)
        hint = f"Nearest: {', '.join(nearest)}." if nearest else "timm.list_models() lists them."
        raise ValueError(f"timm {timm.__version__} knows no model {name!r}. {hint}")
    try:
        timm.models.get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = sorted(cfg_name for cfg_name in timm.list_pretrained(f"{architecture}.*"))
        known = f"It has {', '.join(tags)}." if tags else "It has no weights of timm's."
        raise ValueError(f"{architecture} has no weights called {tag!r}. {known}") from error
    return name


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a model's state dict, as hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read the weights out of a checkpoint, and the names beside them, without executing code.

    Args:
        path: A ``.safetensors`` file, or what ``torch.save`` wrote: a state dict, or a dict that holds one under
            ``state_dict_ema``, ``model_ema``, ``state_dict`` or ``model`` (the first of these).

    Raises:
        FileNotFoundError: If there is no such file.
        TorchRelabelError: If it cannot be read, or holds no weights.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no checkpoint {str(path)!r}.")
    content: Any
    try:
        if path.suffix == ".safetensors":
            # A dependency of timm's, imported here since few runs need it.
            from safetensors.torch import load_file

            content = load_file(path)
        else:
            with _namespaces_allowed():
                content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise TorchRelabelError(
            f"The checkpoint {str(path)!r} holds more than tensors, or is no checkpoint, and is not opened, since "
            f"loading it could run code ({first_line(error)}). "
            f"Save the weights alone where they come from: torch.save(model.state_dict(), file)."
        ) from error
    except Exception as error:  # safetensors and torch raise many kinds for a damaged file
        raise TorchRelabelError(f"The checkpoint {str(path)!r} cannot be read: {first_line(error)}") from error
    class_names = names_held(content)
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        got = f"the keys {sorted(map(str, content))[:8]}" if isinstance(content, Mapping) else type(content).__name__
        raise TorchRelabelError(
            f"The checkpoint {str(path)!r} holds no state dict, but {got}. It must be one, or hold one under "
            f"{', '.join(_STATE_DICT_KEYS)}."
        )
    state_dict = {_unwrapped(str(name)): value for name, value in content.items() if isinstance(value, Tensor)}
    return Checkpoint(state_dict, class_names)


def _namespaces_allowed() -> contextlib.AbstractContextManager[Any]:
    # timm's training script keeps its arguments, a plain argparse.Namespace, beside the weights.
    # torch before 2.5 has no safe_globals; there such a checkpoint is refused with the error that says what to do.
    safe_globals = getattr(torch.serialization, "safe_globals", None)
    return safe_globals([argparse.Namespace]) if safe_globals else contextlib.nullcontext()


def _unwrapped(name: str) -> str:
    for prefix in _WRAPPER_PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _classes_in(state_dict: Mapping[str, Tensor], classifier: Any) -> int | None:
    """Read C off the classifier's weight, whose first axis it is; None if the checkpoint does not have it."""
    for name in (classifier,) if isinstance(classifier, str) else tuple(classifier or ()):
        weight = state_dict.get(f"{name}.weight")
        if weight is not None and weight.dim():
            return int(weight.shape[0])
    return None


def _create(name: str, *, pretrained: bool, image_size: int | None, classes: int | None) -> Any:
    options: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    sized: dict[str, Any] = {} if image_size is None else {"img_size": image_size}
    # Random weights must be the same in every run and on every rank, or no run could continue another.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            try:
                return timm.create_model(name, pretrained=pretrained, **options, **sized)
            except TypeError as error:
                # Only models of fixed size (ViT, Swin) are built for one; the others take any.
                if "img_size" not in str(error):
                    raise
                return timm.create_model(name, pretrained=pretrained, **options)
        except Exception as error:
            if not pretrained:
                size = "" if image_size is None else f" at {image_size} px"
                raise ValueError(f"timm cannot build {name}{size}: {first_line(error)}") from error
            raise TorchRelabelError(
                f"timm could not load the pretrained weights of {name}: {first_line(error)}\n"
                f'Ways to bring them: download them on a machine with internet access (python -c "import timm; '
                f"timm.create_model('{name}', pretrained=True)\") and copy its Hugging Face cache (HF_HUB_CACHE, by "
                f"default ~/.cache/huggingface/hub) here; or give a file of weights with --checkpoint. "
                f"torchrelabel annotate --no-pretrained tries everything else out, with random weights."
            ) from error


def load_into(model: Any, state_dict: dict[str, Tensor], name: str, path: str | os.PathLike[str] | None) -> None:
    """Load weights into a model, adapted as timm adapts those that were published under other names or for other sizes.

    Raises:
        TorchRelabelError: If they do not fit, with the first differences.
    """
    differences = _differences(model, state_dict)
    if differences:
        # timm's families keep what adapts published weights (names, position embeddings of another size) under this
        # name in the module of the model.
        adapt = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        if adapt is not None:
            try:
                adapted = adapt(dict(state_dict), model)
            except Exception:  # made for other weights than these: the differences already found are reported
                adapted = state_dict
            if not _differences(model, adapted):
                state_dict, differences = adapted, []
    if differences:
        shown = "\n".join(f"  {line}" for line in differences[:8])
        more = f"\n  and {len(differences) - 8} more" if len(differences) > 8 else ""
        raise TorchRelabelError(
            f"The checkpoint {os.fspath(path or '')!r} does not fit {name}:\n{shown}{more}\n"
            f"Give the model that the weights were trained as (--model), and its size (--image-size)."
        )
    model.load_state_dict(state_dict)


def _differences(model: nn.Module, state_dict: Mapping[str, Tensor]) -> list[str]:
    own = model.state_dict()
    lines = [f"missing: {name} {list(own[name].shape)}" for name in own if name not in state_dict]
    lines += [f"unexpected: {name}" for name in state_dict if name not in own]
    lines += [
        f"{name}: {list(value.shape)} in the checkpoint, {list(own[name].shape)} in the model"
        for name, value in state_dict.items()
        if name in own and value.shape != own[name].shape
    ]
    return lines


def resolve_device(device: str | torch.device | None) -> torch.device:
    """The device of this name; CUDA where there is one, if None or ``"auto"``.

    Raises:
        ValueError: If there is none.
    """
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"There is no device {str(device)!r}: {first_line(error)}") from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"The device {str(device)!r} was asked for, but this machine has no usable CUDA device.")
    return resolved


def first_line(error: BaseException) -> str:
    """What an error says on its first line, or its type if it says nothing."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
