"""CellHead: a timm classifier read cell by cell instead of pooled.

Shape words: N images, d feature channels, h, w cells, C classes, L tokens, P prefix tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from torchrelabel.errors import UnsupportedModel

Layout = Literal["NCHW", "NHWC", "NLC"]

# Room for what the head reads and writes at once: 2**25 float32 numbers are 128 MiB.
_CHUNK_NUMBERS = 2**25
_WHAT_WORKS = (
    "Models that work: tf_efficientnet_l2.ns_jft_in1k_475, resnet50, convnext_base, swin_base_patch4_window7_224. By "
    "windows (--windows 3) any classifier does."
)


@dataclass(frozen=True)
class Commuting:
    """Whether classifying cells, then averaging, equals what the model itself says about the image.

    Attributes:
        relative_error: Largest difference between ``mean over cells of the logits`` and ``model(x)``, divided by the
            largest absolute value of ``model(x)``.
        same_top_class: Share of the images whose top class is the same both ways, 0 to 1.
    """

    relative_error: float
    same_top_class: float

    @property
    def commutes(self) -> bool:
        """True for a head that is linear after its pooling.

        1e-5 lies between what float32 leaves of equality (at most 6e-7 over timm's families) and the smallest error of
        a head that is not linear (7e-5, FasterNet with random weights): docs/annotators.md.
        """
        return self.relative_error <= 1e-5


class CellHead:
    """Classify every cell of a model's last feature grid with the model's own head.

    ``forward_features`` gives the grid; ``forward_head`` then sees every cell as if it were an image of 1 x 1 cells.
    Norms, MLPs and convolutions in the head stay what they are, and no weight is touched. For token models (ViT) the
    prefix tokens are dropped, and a patch token fills the whole sequence: however the head pools (first token, mean,
    attention), it pools copies of this token.

    Args:
        model: A timm classifier. It is put into ``eval`` mode, so that norms use their running statistics and dropout
            is off.
        image_size: Side in pixels, S, of the square images that it will get.

    Attributes:
        layout: How the features come: ``"NCHW"``, ``"NHWC"``, or ``"NLC"`` for tokens.
        grid: ``(h, w)`` in cells, at ``image_size``.
        prefix_tokens: P, the class and register tokens in front of the patch tokens.
        num_classes: C.
        stride: Side in pixels of what one cell stands for, where the model tells; None otherwise.
        commutes: Whether the mean over the cells of noise is what the head says of their pooled features.

    Raises:
        UnsupportedModel: If there is no classifier, the features are no grid, or the head refuses a single cell.
        ValueError: If the model cannot take images of this size.

    Source: Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.1, where the classifier's weights become a
    1 x 1 convolution. For a linear head that is the same; docs/annotators.md lists the families for which it is not.
    """

    def __init__(self, model: nn.Module, image_size: int) -> None:
        self.model: Any = model.eval()
        self.name = model_name(model)
        # timm's models have this, and without a classifier give their features for class scores.
        classes = getattr(model, "num_classes", None)
        if isinstance(classes, int) and classes < 1:
            raise UnsupportedModel(
                f"{self.name} has no classifier (num_classes is {classes}), so it cannot say what a cell shows. "
                f"Take a model fine-tuned for classification, or give a checkpoint of one."
            )
        self._refuse_cut_patches(image_size)
        # Noise rather than zeros: a norm of a constant image could divide by nothing.
        probe = torch.randn(
            1, 3, image_size, image_size, generator=torch.Generator().manual_seed(0), dtype=torch.float32
        ).to(next(model.parameters()).device)
        with torch.inference_mode():
            try:
                features = self.features(probe)
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise ValueError(
                    f"{self.name} cannot take an image of {image_size} x {image_size} px: {error}. Give another size."
                ) from error
            self.layout, self.grid, self.prefix_tokens = self._layout(features, image_size)
            logits = self._head(self._cells(features)[:1])
            self.commutes = self._commutes_on(features)
        self.channels = int(features.shape[1 if self.layout == "NCHW" else -1])
        self.num_classes = int(logits.shape[-1])
        self.stride = self._stride(image_size)

    def __call__(self, images: Tensor) -> Tensor:
        """Classify every cell.

        Args:
            images: Normalised, ``[N, 3, S, S]``.

        Returns:
            Logits per cell, ``[N, C, h, w]``, float32.
        """
        return torch.cat(list(self.chunks(self.features(images)))).permute(0, 3, 1, 2).contiguous()

    def classify(self, images: Tensor) -> Tensor:
        """What the model says of whole images ``[N, 3, S, S]``: logits ``[N, C]``, float32."""
        return self.whole(self.features(images))

    def whole(self, features: Tensor) -> Tensor:
        """What the model says of whole images: logits ``[N, C]``, float32, of features as `features` gives them."""
        logits: Tensor = self.model.forward_head(features)
        return logits.float()

    def chunks(self, features: Tensor) -> Iterator[Tensor]:
        """Classify every cell, a few images at a time, so that memory stays bounded when C is large.

        Args:
            features: Of N images, as `features` gives them.

        Yields:
            Logits of the next ``n`` images, ``[n, h, w, C]``, float32, classes last; the n add up to N.
        """
        h, w = self.grid
        numbers_per_image = h * w * max(self.num_classes, self.channels * (self.prefix_tokens + 1))
        for part in torch.split(features, max(1, _CHUNK_NUMBERS // numbers_per_image)):
            yield self._head(self._cells(part)).float().view(len(part), h, w, self.num_classes)

    def commuting(self, images: Tensor) -> Commuting:
        """Measure how far the mean over the cells is from the model's own answer.

        Args:
            images: Normalised, ``[N, 3, S, S]``.

        Returns:
            The largest relative difference, and how often the top class agrees.
        """
        with torch.inference_mode():
            return _compared(self(images).mean(dim=(2, 3)), self.model(images))

    def _commutes_on(self, features: Tensor) -> bool:
        """Whether the mean over the cells of one image is what the head says of their pooled features."""
        mean = self._head(self._cells(features)).float().mean(0, keepdim=True)
        return _compared(mean, self.model.forward_head(features)).commutes

    def _refuse_cut_patches(self, image_size: int) -> None:
        """Refuse a size that leaves a rest beside the last patch: no cell would see it, and all others would be off."""
        patches = getattr(self.model, "patch_embed", None)
        projection = getattr(patches, "proj", None)
        if not isinstance(projection, nn.Conv2d) or getattr(patches, "dynamic_img_pad", False):
            return
        side = projection.stride[0]
        if projection.kernel_size == projection.stride and projection.padding == (0, 0) and image_size % side:
            raise ValueError(
                f"{self.name} cannot take an image of {image_size} x {image_size} px: it cuts images into patches of "
                f"{side} x {side} px. Give a multiple of {side}."
            )

    def _stride(self, image_size: int) -> int | None:
        """What timm notes beside the last stage of a model, if the grid is what follows from it."""
        try:
            stride = int(self.model.feature_info[-1]["reduction"])
        except (AttributeError, TypeError, KeyError, IndexError, ValueError):
            return None
        return stride if stride > 0 and self.grid[0] in (image_size // stride, -(-image_size // stride)) else None

    def features(self, images: Tensor) -> Tensor:
        """The model's last features, in its own layout, of normalised images ``[N, 3, S, S]``.

        Raises:
            UnsupportedModel: If it gives none, or not as one grid.
        """
        if not (hasattr(self.model, "forward_features") and hasattr(self.model, "forward_head")):
            raise UnsupportedModel(
                f"{self.name} has no forward_features and forward_head, which timm's classifiers have. "
                f"Annotator.from_model(features=..., head=..., ...) takes any other module. {_WHAT_WORKS}"
            )
        features = self.model.forward_features(images)
        if not isinstance(features, Tensor):
            raise UnsupportedModel(
                f"{self.name} returns its features as a {type(features).__name__}, not as one grid of cells. "
                f"{_WHAT_WORKS}"
            )
        return features

    def _layout(self, features: Tensor, image_size: int) -> tuple[Layout, tuple[int, int], int]:
        """Read layout, grid and number of prefix tokens off the features of one square image."""
        shape = tuple(features.shape)
        if len(shape) == 4:
            # The image is square, so its grid is, and the two equal axes are the grid. The attribute decides where
            # there happen to be as many channels as rows.
            channels_last = getattr(self.model, "output_fmt", "NCHW") == "NHWC" and shape[1] == shape[2]
            if shape[2] == shape[3] and not channels_last:
                return "NCHW", (shape[2], shape[3]), 0
            if shape[1] == shape[2]:
                return "NHWC", (shape[1], shape[2]), 0
        if len(shape) == 3:
            if shape[1] - getattr(self.model, "num_prefix_tokens", shape[1]) == 1:
                raise ValueError(
                    f"{self.name} sees an image of {image_size} x {image_size} px as one cell, which says nothing "
                    f"about places. Give a larger size."
                )
            # CoaT says nothing about its class token, so where the model does not tell, none and one are tried.
            for prefix in (int(getattr(self.model, "num_prefix_tokens", 0)), 0, 1):
                side = math.isqrt(max(0, shape[1] - prefix))
                # A single token is the class token alone (PiT), which says nothing about places.
                if side > 1 and side * side == shape[1] - prefix:
                    return "NLC", (side, side), prefix
        raise UnsupportedModel(
            f"{self.name} returns features of shape {list(shape)} for one image, which is no grid of cells. "
            f"{_WHAT_WORKS}"
        )

    def _cells(self, features: Tensor) -> Tensor:
        """Turn the cells of N images into N * h * w images of one cell, row by row."""
        if self.layout == "NCHW":
            return features.permute(0, 2, 3, 1).reshape(-1, features.shape[1], 1, 1)
        if self.layout == "NHWC":
            return features.reshape(-1, 1, 1, features.shape[3])
        patches = features[:, self.prefix_tokens :]
        return patches.reshape(-1, 1, patches.shape[2]).expand(-1, self.prefix_tokens + 1, -1)

    def _head(self, cells: Tensor) -> Tensor:
        try:
            logits = self.model.forward_head(cells)
        except torch.cuda.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, IndexError, AssertionError) as error:
            raise UnsupportedModel(
                f"The head of {self.name} cannot classify one cell alone (features {list(cells.shape[1:])}): "
                f"{error}. {_WHAT_WORKS}"
            ) from error
        if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(cells) or not logits.shape[1]:
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModel(
                f"The head of {self.name} returns {got} for {len(cells)} cells, not one row of class scores each. "
                f"{_WHAT_WORKS}"
            )
        return logits


class TwoParts(nn.Module):
    """A classifier in the two parts that a `CellHead` calls.

    Args:
        features: From images to their last features.
        head: From features to class scores.
        model: What both belong to; None if they are modules themselves.
        prefix_tokens: P.

    Raises:
        TypeError: If there is no module at all.
    """

    def __init__(
        self,
        features: Callable[[Tensor], Tensor],
        head: Callable[[Tensor], Tensor],
        model: nn.Module | None = None,
        prefix_tokens: int = 0,
    ) -> None:
        super().__init__()
        for part, what in ((features, "features"), (head, "head")):
            if not callable(part):
                raise TypeError(f"{what} must be a module or a function, got {type(part).__name__}.")
        modules = [part for part in (features, head) if isinstance(part, nn.Module)]
        if model is None and len(modules) < 2:
            raise TypeError(
                "features and head are functions, so that their weights are unknown. Give the module that they "
                "belong to, too: model=."
            )
        # Held as modules, they are moved and put into eval mode with this one, and their weights are its own.
        self.of = nn.ModuleList(modules if model is None else [model, *modules])
        self.parts = (features, head)  # a tuple, which registers nothing once more
        self.num_prefix_tokens = prefix_tokens

    def forward_features(self, images: Tensor) -> Tensor:
        """The last features of normalised images ``[N, 3, S, S]``."""
        return self.parts[0](images)

    def forward_head(self, features: Tensor) -> Tensor:
        """Class scores ``[N, C]``."""
        return self.parts[1](features)

    def forward(self, images: Tensor) -> Tensor:
        """Class scores ``[N, C]``."""
        return self.forward_head(self.forward_features(images))


def _compared(mean: Tensor, own: Tensor) -> Commuting:
    """Compare the mean over the cells with the model's own answer, each ``[N, C]``."""
    own = own.float()
    difference = (mean - own).abs().max() / own.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return Commuting(float(difference), float((mean.argmax(1) == own.argmax(1)).float().mean()))


def model_name(model: nn.Module) -> str:
    """What messages call a model."""
    cfg = getattr(model, "pretrained_cfg", None)
    return str(cfg.get("architecture", type(model).__name__)) if isinstance(cfg, dict) else type(model).__name__
