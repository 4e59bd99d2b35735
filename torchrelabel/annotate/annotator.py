"""Annotator: a classifier that turns whole images into dense class scores."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor, nn

from torchrelabel.annotate.checkpoints import first_line, require_file
from torchrelabel.annotate.heads import CellHead, TwoParts
from torchrelabel.annotate.images import check_interpolation
from torchrelabel.annotate.timm_models import build_timm, canonical_name
from torchrelabel.annotate.windows import WindowHead


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


class TimmOptions(TypedDict, total=False):
    """What `Annotator.from_timm` takes besides a name, as `annotate` hands it on."""

    pretrained: bool
    checkpoint: str | os.PathLike[str] | None
    state_dict_key: str | None
    strip_prefix: str | None
    image_size: int | None
    device: str | torch.device | None
    amp: bool
    mean: Sequence[float] | None
    std: Sequence[float] | None
    interpolation: str | None


class Annotator:
    """Predict class scores for every cell of an image.

    Build one with ``Annotator.from_timm``, or of any other module with ``Annotator.from_model``; the constructor takes
    modules with ``forward_features`` and ``forward_head``.

    Args:
        model: The classifier, its weights loaded. It is moved to the device and put into ``eval`` mode, and not copied.
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
        windows: Instead of cells, classify as many overlapping windows along each side (`WindowHead`): what the model
            says of them is what it says of crops, and it may be any classifier. Costs ``windows ** 2`` forward passes,
            besides the one for the whole image.
        class_names: What the C classes are called, if the weights came with names.
        notes: What is worth knowing about the weights.

    Attributes:
        num_classes: C.
        grid: ``(h, w)`` in cells, of an image of ``image_size``. Those of enlarged images are averaged to as many.
        windows: How many windows along each side stand for the cells; None where cells are the model's own.
        map_size: Side in pixels of the images for the cells, ``image_size`` times ``enlarge``, or for the windows.
        head: The ``CellHead``, which also measures whether the head commutes with pooling; or the ``WindowHead``.
        device: Where it runs.
        weights_sha256: SHA-256 of the model's state dict.

    Raises:
        UnsupportedModel: If the model's features are no grid of cells that its head can classify; of windows, if it
            returns no class scores.
        ValueError: If the statistics or the interpolation cannot be, both ``enlarge`` and ``windows`` are given, or the
            model cannot take images of this size.
    """

    head: CellHead | WindowHead

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
        windows: int | None = None,
        class_names: Sequence[str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        _check_statistics(mean, std)
        check_interpolation(interpolation)
        self.name = name
        self.image_size = image_size
        self.mean = mean
        self.std = std
        self.interpolation = interpolation
        self.weights = weights
        self.amp = amp
        self.class_names = class_names
        self.notes = tuple(notes)
        self.device = resolve_device(device)
        self.weights_sha256 = weights_digest(model)
        # cuDNN's kernels for half precision want channels last; on a CPU the same would slow some models down.
        if self.device.type == "cuda":
            model = model.to(memory_format=torch.channels_last)
        model = model.to(self.device)
        self.windows = windows
        if windows is None:
            self.head = CellHead(model, image_size)
            self._enlarge(enlarge)
        else:
            if enlarge != 1:
                raise ValueError(
                    f"windows={windows} says how large images are shown, and enlarge={enlarge} says otherwise. Leave "
                    f"one of them out."
                )
            self.head = WindowHead(model, image_size, windows)
            self.map_size = self.head.map_size
        self.num_classes = self.head.num_classes
        self.grid = self.head.grid
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
        windows: int | None = None,
        state_dict_key: str | None = None,
        strip_prefix: str | None = None,
    ) -> Annotator:
        """Build an annotator from a model of timm.

        Args:
            name: As timm spells it, with or without a tag; old names are mapped to today's. ``hf-hub:owner/model`` is
                fetched from Hugging Face's Hub, ``local-dir:folder`` read from a folder of timm's.
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
            windows: Instead of cells, classify as many overlapping windows along each side.
            state_dict_key: Under which key of the checkpoint the weights lie, if not where most scripts keep them.
            strip_prefix: What stands in front of the weights' names in the checkpoint. If None, it is found out where
                only one model in it fits.

        Returns:
            The annotator, in eval mode.

        Raises:
            TypeError: If ``name`` is no name.
            ValueError: If timm knows no such model, an argument cannot be, or the size or the number of classes does
                not fit the model.
            FileNotFoundError: If there is no such checkpoint.
            UnsupportedModel: If the model has no classifier, or its features are no grid.
            TorchRelabelError: If the weights cannot be fetched, read, or do not fit the model.
        """
        name, device = check_request(
            name,
            checkpoint=checkpoint,
            image_size=image_size,
            device=device,
            mean=mean,
            std=std,
            interpolation=interpolation,
            state_dict_key=state_dict_key,
            strip_prefix=strip_prefix,
        )
        built = build_timm(
            name,
            pretrained=pretrained,
            checkpoint=checkpoint,
            image_size=image_size,
            num_classes=num_classes,
            state_dict_key=state_dict_key,
            strip_prefix=strip_prefix,
        )
        config: dict[str, Any] = built.model.pretrained_cfg
        return cls(
            built.model,
            name=built.name,
            image_size=image_size or int(config["input_size"][-1]),
            mean=tuple(map(float, config["mean"] if mean is None else mean)),
            std=tuple(map(float, config["std"] if std is None else std)),
            interpolation=str(config["interpolation"] if interpolation is None else interpolation),
            weights=built.weights,
            device=device,
            amp=amp,
            enlarge=enlarge,
            windows=windows,
            class_names=built.class_names,
            notes=built.notes,
        )

    @classmethod
    def from_model(
        cls,
        *,
        features: Callable[[Tensor], Tensor] | None = None,
        head: Callable[[Tensor], Tensor] | None = None,
        image_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        interpolation: str = "bilinear",
        model: nn.Module | None = None,
        name: str | None = None,
        prefix_tokens: int = 0,
        class_names: Sequence[str] | None = None,
        device: str | torch.device | None = None,
        amp: bool = False,
        enlarge: float = 1.0,
        windows: int | None = None,
    ) -> Annotator:
        """Build an annotator from two parts of any classifier: torchvision's, transformers', or one of your own.

        Args:
            features: From normalised images ``[N, 3, S, S]`` to the last features: a grid ``[N, d, h, w]`` or
                ``[N, h, w, d]``, or tokens ``[N, P + h * w, d]``. A module or a function. Not for ``windows``.
            head: From such features to class scores ``[N, C]``, with the pooling in it. It must also take features of
                one cell, and is called so. A module or a function. Not for ``windows``.
            image_size: S, the side in pixels to which every image is squashed.
            mean: Mean per channel of the model's training, of images in 0..1.
            std: Standard deviation per channel.
            interpolation: How images are resized, as in the model's training.
            model: The classifier that both are parts of. Needed where they are functions, for its weights; and for
                ``windows``, which it takes from images ``[N, 3, S, S]`` to class scores ``[N, C]``.
            name: What to call it in the store's header; the model's class if None.
            prefix_tokens: P, how many tokens (class, registers) stand before those of patches.
            class_names: What the C classes are called, in the order of the scores.
            device: Where it runs; CUDA where there is one, if None.
            amp: Compute in bfloat16.
            enlarge: How many times as large images are shown for their cells.
            windows: Instead of cells, classify as many overlapping windows along each side, with ``model``.

        Returns:
            The annotator. The modules are moved to the device and put into eval mode, and not copied.

        Raises:
            TypeError: If neither part is a module, and no ``model`` is given; or not what ``windows`` need.
            UnsupportedModel: If the features are no grid of cells that the head can classify.
            ValueError: If an argument cannot be, or the model cannot take images of this size.

        Example:
            >>> from torchvision.models import resnet18
            >>> resnet = resnet18().eval()
            >>> annotator = Annotator.from_model(
            ...     features=torch.nn.Sequential(*list(resnet.children())[:-2]),
            ...     head=torch.nn.Sequential(resnet.avgpool, torch.nn.Flatten(1), resnet.fc),
            ...     image_size=224, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), name="resnet18",
            ... )
        """
        if image_size < 1:
            raise ValueError(f"image_size must be a number of pixels, 1 or more, got {image_size}.")
        if windows is not None:
            if model is None or features is not None or head is not None:
                raise TypeError(
                    "windows are classified by the whole model: give model=, and neither features nor head."
                )
            classifier = model
        elif features is None or head is None:
            raise TypeError(
                "Cells are classified by parts of a model: give features= and head=. With windows=3, say, model= alone "
                "will do."
            )
        else:
            classifier = TwoParts(features, head, model, prefix_tokens)
        if name is None:
            name = type(classifier if model is None else model).__name__
        annotator = cls(
            classifier,
            name=name,
            image_size=image_size,
            mean=tuple(map(float, mean)),
            std=tuple(map(float, std)),
            interpolation=interpolation,
            weights="given",
            device=device,
            amp=amp,
            enlarge=enlarge,
            windows=windows,
            class_names=class_names,
        )
        if class_names is not None and len(class_names) != annotator.num_classes:
            raise ValueError(
                f"{name} has {annotator.num_classes} classes, got {len(class_names)} class names. Give one for each."
            )
        return annotator

    def enlarged(self, enlarge: float) -> Annotator:
        """The same annotator, which sees images ``enlarge`` times as large for their cells.

        Raises:
            ValueError: If it is less than 1, the model cannot take images of that size, or it classifies windows.
        """
        other = copy.copy(self)
        other._enlarge(enlarge)
        return other

    def on(self, device: str | torch.device | None) -> Annotator:
        """The same annotator with a copy of its model on another device; CUDA where there is one, if None."""
        return Annotator(
            copy.deepcopy(self.head.model),
            name=self.name,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            interpolation=self.interpolation,
            weights=self.weights,
            device=device,
            amp=self.amp,
            enlarge=1.0 if self.windows else self.map_size / self.image_size,
            windows=self.windows,
            class_names=self.class_names,
            notes=self.notes,
        )

    def _enlarge(self, enlarge: float) -> None:
        if not 1 <= enlarge < math.inf:
            raise ValueError(f"enlarge must be 1 or more, got {enlarge}.")
        if isinstance(self.head, WindowHead):
            raise ValueError(f"{self.name} classifies windows, whose number says how large images are shown.")
        self.map_size = round(self.image_size * enlarge)
        self._map_head = self.head if self.map_size == self.image_size else CellHead(self.head.model, self.map_size)

    def even_sizes(self) -> list[int]:
        """The sizes nearest to ``image_size``, below and above, whose cells share the image evenly.

        Returns:
            Nothing where those of ``image_size`` do, or the model does not tell its stride.
        """
        stride = self.head.stride
        if stride is None or self.image_size % stride == 0:
            return []
        below = self.image_size // stride * stride
        return [size for size in (below, below + stride) if size]

    def __call__(self, images: Tensor) -> Tensor:
        """Predict class scores for every cell of images of the model's own size; or for every window.

        Args:
            images: Normalised (``normalise``), ``[N, 3, S, S]``, floating point, on any device; for windows, S is
                ``map_size``.

        Returns:
            Logits, ``[N, C, h, w]``, float32, on the annotator's device.

        Raises:
            ValueError: If the images have another shape.
        """
        with torch.no_grad(), self._autocast():
            return self.head(self._checked(images, self.map_size if self.windows else self.image_size))

    def top_scores(self, images: Tensor, k: int, residual: bool = True, *, enlarged: Tensor | None = None) -> TopScores:
        """Predict the best classes of every cell without ever holding all scores of a large batch.

        Args:
            images: Normalised, ``[N, 3, S, S]``.
            k: K, at most C.
            residual: Also sum up the classes not kept.
            enlarged: The same images at ``map_size``, where that is another size, as always for windows.

        Returns:
            The K best per cell, on the annotator's device. A score that is not a number is sorted first.

        Raises:
            ValueError: If the images have another shape.
        """
        scores, classes, rest = [], [], []
        with torch.no_grad(), self._autocast():
            image_scores, parts = self._scores(images, enlarged)
            for logits in parts:
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

    def _scores(self, images: Tensor, enlarged: Tensor | None) -> tuple[Tensor, Iterator[Tensor]]:
        """Logits of the whole images, ``[N, C]``, and of their cells, ``[n, h, w, C]`` of a few images at a time."""
        images = self._checked(images)
        if self.map_size == self.image_size:
            enlarged = None
        elif enlarged is None:
            raise ValueError(f"The cells are those of enlarged images: give enlarged=, at {self.map_size} px.")
        else:
            enlarged = self._checked(enlarged, self.map_size)
        if isinstance(self.head, WindowHead):
            assert enlarged is not None  # windows make map_size another one
            return self.head.classify(images), self.head.chunks(enlarged)
        features = self.head.features(images)
        image_scores = self.head.whole(features)
        if enlarged is not None:
            features = self._map_head.features(enlarged)
        parts = self._map_head.chunks(features)
        return image_scores, (averaged(cells.permute(0, 3, 1, 2), self.grid).permute(0, 2, 3, 1) for cells in parts)

    def whole(self, images: Tensor) -> Tensor:
        """What the model says of images, or of crops of them, as a whole.

        Args:
            images: Normalised, ``[N, 3, S, S]``.

        Returns:
            Logits, ``[N, C]``, float32, on the annotator's device.
        """
        with torch.no_grad(), self._autocast():
            return self.head.classify(self._checked(images))

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
            **({} if self.windows is None else {"windows": self.windows}),
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


def averaged(cells: Tensor, grid: Sequence[int]) -> Tensor:
    """The cells of an enlarged image, ``[N, C, h', w']``, averaged to ``grid``, ``(h, w)``, by the area they share."""
    if tuple(cells.shape[2:]) == tuple(grid):
        return cells
    down, across = (_shares(to, of).to(cells) for to, of in zip(grid, cells.shape[2:], strict=True))
    with torch.autocast(cells.device.type, enabled=False):  # logits stay float32 where the model computes in less
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


def weights_digest(model: nn.Module) -> str:
    """Return the SHA-256 over names, types, shapes and bytes of a model's state dict, as hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}\0{tensor.dtype}\0{list(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def resolve_device(device: str | torch.device | None) -> torch.device:
    if device is None or device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        resolved = torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"There is no device {str(device)!r}: {first_line(error)}. Give cpu, cuda or cuda:1."
        ) from error
    if resolved.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            f"The device {str(device)!r} was asked for, but this machine has no usable CUDA device. Say cpu."
        )
    return resolved


def check_request(
    name: str,
    *,
    checkpoint: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
    **_: Any,
) -> tuple[str, torch.device]:
    """Refuse what `Annotator.from_timm` would refuse, as far as that is known before a model is built.

    Returns:
        The model's canonical name, and the device.

    Raises:
        TypeError, ValueError, FileNotFoundError, TorchRelabelError: As `Annotator.from_timm`.
    """
    name, resolved = canonical_name(name), resolve_device(device)
    if checkpoint is not None:
        require_file(checkpoint)
    else:
        for option, value in (("state_dict_key", state_dict_key), ("strip_prefix", strip_prefix)):
            if value is not None:
                raise ValueError(
                    f"{option}={value!r} says where weights lie in a checkpoint, and there is none. Give "
                    f"checkpoint= too, or leave it out."
                )
    if image_size is not None and image_size < 1:
        raise ValueError(f"image_size must be a number of pixels, 1 or more, got {image_size}.")
    _check_statistics(mean if mean is not None else (0.5,) * 3, std if std is not None else (0.5,) * 3)
    if interpolation is not None:
        check_interpolation(interpolation)
    return name, resolved


def _check_statistics(mean: Sequence[float], std: Sequence[float]) -> None:
    if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
        raise ValueError(f"mean must be three numbers from 0 to 1, as for images in 0..1, got {spaced(mean)}.")
    if len(std) != 3 or not all(0 < value <= 1 for value in std):
        raise ValueError(f"std must be three numbers above 0 and up to 1, as for images in 0..1, got {spaced(std)}.")
