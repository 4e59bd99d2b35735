"""Classifier: a model with what it wants to see of an image, whatever library it is from."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.functional import InterpolationMode, center_crop, resize

from torchrelabel.annotate.annotator import resolve_device, spaced
from torchrelabel.annotate.images import check_interpolation, squashed
from torchrelabel.errors import UnsupportedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class CentreCrop:
    """Resize the shorter side, cut out the middle: what a classifier is evaluated on since AlexNet.

    Args:
        size: S, the side of the square that is cut out, in pixels.
        resize: What the shorter side is resized to, in pixels.
        interpolation: ``"bilinear"``, ``"bicubic"``, ...; antialiased, as always with PIL.
    """

    def __init__(self, size: int, resize: int, interpolation: str) -> None:
        check_interpolation(interpolation)
        self.size, self.resize, self.interpolation = size, resize, interpolation

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels, ``[3, S, S]``, uint8."""
        resized = resize(image, [self.resize], InterpolationMode(self.interpolation))
        return _pixels(center_crop(resized, [self.size, self.size]))

    def __repr__(self) -> str:
        return f"shorter side to {self.resize} px ({self.interpolation}), centre {self.size} x {self.size} px"


class OfTimm:
    """timm's own transforms for evaluation, up to the pixels.

    Args:
        transform: What ``timm.data.create_transform(use_prefetcher=True)`` gives.
        description: What it does, in words.
    """

    def __init__(self, transform: Callable[[Image.Image], Any], description: str) -> None:
        self.transform, self.description = transform, description

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels, ``[3, S, S]``, uint8."""
        return _pixels(self.transform(image))

    def __repr__(self) -> str:
        return self.description


class AsItIs:
    """An image that was cropped by whoever made the data set: squashed only where the model takes another size.

    Args:
        size: S in pixels.
        interpolation: How, then.
    """

    def __init__(self, size: int, interpolation: str) -> None:
        self.size, self.interpolation = size, interpolation

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the pixels, ``[3, S, S]``, uint8."""
        return squashed(image, self.size, self.interpolation)


class Classifier:
    """A model, and what it wants to see of an image.

    Args:
        model: Normalised images ``[N, 3, S, S]`` to scores ``[N, C]``; modules are put in eval mode.
        name: What to call it.
        image_size: S in pixels.
        mean: Mean per channel, of images in 0..1.
        std: Standard deviation per channel.
        interpolation: How images are resized: ``"bilinear"``, ``"bicubic"``, ...
        transform: From a PIL image to pixels ``[3, S, S]``, uint8. If None: shorter side to S / 0.875, centre S x S.
        weights: Where its weights are from, in a word.
        device: Where it runs; CUDA where there is one, if None.
        amp: Compute in bfloat16.
        class_names: What its classes are called, if known.
        batch: The number of images that it takes at once, where it takes no other.
        differentiable: Whether scores have a gradient by the pixels.
        notes: What is worth knowing about its weights.

    Attributes:
        num_classes: C, found by showing it a black image.

    Raises:
        ValueError: If the statistics or the interpolation cannot be, or there is no such device.
        UnsupportedModel: If it does not give one row of scores for each image.
    """

    def __init__(
        self,
        model: Callable[[Tensor], Any],
        *,
        name: str = "model",
        image_size: int = 224,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        interpolation: str = "bilinear",
        transform: Callable[[Image.Image], Tensor] | None = None,
        weights: str = "given",
        device: str | torch.device | None = None,
        amp: bool = False,
        class_names: Sequence[str] | None = None,
        batch: int | None = None,
        differentiable: bool = True,
        notes: Sequence[str] = (),
    ) -> None:
        if len(mean) != 3 or not all(0 <= value <= 1 for value in mean):
            raise ValueError(f"mean must be three numbers from 0 to 1, as for images in 0..1, got {spaced(mean)}.")
        if len(std) != 3 or not all(0 < value <= 1 for value in std):
            raise ValueError(
                f"std must be three numbers above 0 and up to 1, as for images in 0..1, got {spaced(std)}."
            )
        check_interpolation(interpolation)
        self.device = resolve_device(device)
        self.name, self.weights, self.class_names = name, weights, class_names
        self.image_size, self.interpolation = image_size, interpolation
        self.mean, self.std = tuple(map(float, mean)), tuple(map(float, std))
        self.transform = transform or CentreCrop(image_size, int(image_size / 0.875), interpolation)
        self.notes = tuple(notes)
        self.amp, self.batch, self.differentiable = amp, batch, differentiable
        if isinstance(model, torch.nn.Module):
            model = model.to(self.device).requires_grad_(False)
            # The module of a .pt2 file has its mode built in, and refuses to be asked.
            with contextlib.suppress(NotImplementedError):
                model = model.eval()
        self.model = model
        self._mean = torch.tensor(self.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(self.std, device=self.device).view(1, 3, 1, 1)
        self.num_classes = self._probe()

    def __call__(self, images: Tensor) -> Tensor:
        """Score images.

        Args:
            images: In 0..1, not normalised, ``[N, 3, S, S]``, floating point. Where they require a gradient, so do the
                scores.

        Returns:
            Scores as the model gives them, ``[N, C]``, float32, on the classifier's device.
        """
        given = len(images)
        images = (images.to(self.device) - self._mean) / self._std
        if self.batch is not None and given < self.batch:
            images = torch.cat([images, images.new_zeros(self.batch - given, *images.shape[1:])])
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.amp):
            scores = self.model(images)
        scores = _scores(scores, self.name)
        if len(scores) != len(images):
            raise UnsupportedModel(f"{self.name} gave {len(scores)} rows of scores for {len(images)} images.")
        return scores[:given].float()

    @property
    def as_it_is(self) -> AsItIs:
        """What it sees of images that need no crop."""
        return AsItIs(self.image_size, self.interpolation)

    def description(self) -> dict[str, Any]:
        """The model and how it was shown images, as plain values."""
        return {
            "model": self.name,
            "weights": self.weights,
            "classes": self.num_classes,
            "image_size": self.image_size,
            "shown": repr(self.transform),
            "mean": list(self.mean),
            "std": list(self.std),
            "precision": "bfloat16" if self.amp else "float32",
        }

    def _probe(self) -> int:
        black = torch.zeros(self.batch or 1, 3, self.image_size, self.image_size, device=self.device)
        try:
            with torch.no_grad():
                return int(self(black).shape[1])
        except UnsupportedModel:
            raise
        except Exception as error:  # whatever a model raises that cannot take such an image
            said = str(error).strip().splitlines()
            raise UnsupportedModel(
                f"{self.name} cannot take an image of {self.image_size} x {self.image_size} px: "
                f"{said[0] if said else type(error).__name__}. Give its size (--image-size)."
            ) from error


def _scores(output: Any, name: str) -> Tensor:
    # Exported models give a list of outputs, Hugging Face's an object.
    if isinstance(output, (list, tuple)) and len(output) == 1:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor) or output.dim() != 2:
        got = f"shape {list(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise UnsupportedModel(f"{name} must give scores [N, C], and its output is {got}. Give a classifier.")
    return output


def _pixels(image: Any) -> Tensor:
    if isinstance(image, Tensor):
        return image
    if isinstance(image, np.ndarray):  # of an older timm, which moves the channels itself
        return torch.from_numpy(np.ascontiguousarray(image))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
