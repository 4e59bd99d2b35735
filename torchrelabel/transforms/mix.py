"""CutMix and MixUp of batches whose labels are label maps, with torchvision's own draws and pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot
from torch.utils._pytree import keystr, tree_flatten_with_path, tree_unflatten
from torchvision import tv_tensors
from torchvision.transforms import v2

from torchrelabel.label_map import LabelMapBatch
from torchrelabel.pooling import LabelPooling
from torchrelabel.visible_cells import cells_in_box

__all__ = ["CutMixWithLabelMap", "MixUpWithLabelMap"]

_LABELS = ("mixed", "localized")
_NO_AREA = 1e-6  # of the canvas; less is rounding


class _Mix(nn.Module):
    """What CutMix and MixUp share: finding images and labels in a batch, soft labels, and when to mix at all."""

    def __init__(self, num_classes: int | None, prob: float, pooling: LabelPooling) -> None:
        super().__init__()
        if not 0 <= prob <= 1:
            raise ValueError(f"prob is between 0 and 1, got {prob!r}.")
        self.num_classes = num_classes
        self.prob = prob
        self.pooling = pooling
        # In shared memory, so that the switch reaches DataLoader workers that are alive already.
        self._switch = torch.ones(1, dtype=torch.bool).share_memory_()  # type: ignore[no-untyped-call]

    @property
    def enabled(self) -> bool:
        """Whether batches are mixed; False leaves the images as they are and only makes the labels soft.

        It may be switched at any time, also while a DataLoader's workers use this object in their collate function.
        """
        return bool(self._switch)

    @enabled.setter
    def enabled(self, enabled: bool) -> None:
        self._switch.fill_(enabled)

    def forward(self, *inputs: Any) -> Any:
        """Mix a batch: ``(images, labels)``, or any structure that holds them.

        Returns:
            The same structure, with mixed images and soft labels ``[B, C]``.
        """
        leaves, spec = tree_flatten_with_path(
            inputs if len(inputs) > 1 else inputs[0], is_leaf=lambda part: isinstance(part, LabelMapBatch)
        )
        flat = [leaf for _, leaf in leaves]
        image_at, label_at = _find(type(self).__name__, flat, [keystr(path).lower() for path, _ in leaves])
        images, labels = flat[image_at], flat[label_at]
        mixes = self.enabled and (self.prob == 1 or float(torch.rand(())) < self.prob)
        if mixes:
            flat[image_at], flat[label_at] = self._mix(images, labels)
        else:
            flat[label_at] = self._soft(labels)
        return tree_unflatten(flat, spec)

    def _mix(self, images: Tensor, labels: LabelMapBatch | Tensor) -> tuple[Tensor, Tensor]:
        raise NotImplementedError

    def _soft(self, labels: LabelMapBatch | Tensor) -> Tensor:
        """Soft labels ``[B, C]`` of label maps, soft labels or class indices."""
        if isinstance(labels, LabelMapBatch):
            if self.num_classes not in (None, labels.num_classes):
                raise ValueError(f"num_classes={self.num_classes}, and the label maps have {labels.num_classes}.")
            return self.pooling(labels)
        if labels.ndim in (2, 4):
            if self.num_classes not in (None, labels.shape[1]):
                raise ValueError(f"num_classes={self.num_classes}, and the soft labels have {labels.shape[1]}.")
            return labels.float() if not labels.is_floating_point() else labels
        if labels.is_floating_point():
            raise TypeError(
                f"Soft labels are [B, C] or [B, C, gh, gw], and class indices are integers, got {list(labels.shape)} "
                f"floats."
            )
        if self.num_classes is None:
            raise ValueError(f"Labels that are class indices need {type(self).__name__}(num_classes=...).")
        return one_hot(labels, self.num_classes).float()

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, prob={self.prob}, enabled={self.enabled}"


class CutMixWithLabelMap(_Mix):
    """CutMix for a batch of images with their label maps.

    Each image gets a rectangle of the image before it in the batch. The random draws and the pixels are those of
    ``torchvision.transforms.v2.CutMix``, under the same seed.

    Args:
        alpha: The share of the image kept is drawn from Beta(alpha, alpha). One is the paper's.
        num_classes: ``C``; needed only for labels that are class indices.
        labels: ``"mixed"``: the soft labels of the two crops, weighted by the area that each keeps; ReLabel's rule.
            ``"localized"``: the pasted rectangle is labelled by just the part of the other image that it shows, and the
            rest by what is left to be seen of the crop. The author of ReLabel found it "similar or slightly worse".
        prob: How often a batch is mixed at all.
        per_sample: Draw a rectangle for each image instead of one for the whole batch. v2.CutMix has no such mode, and
            the draws are then our own.
        pooling: How label maps become soft labels; with a grid of tokens, ``LabelPooling((14, 14))``, each token of
            the label is pasted by the share of it that lies in the rectangle, whatever ``labels`` says.

    Shape:
        - Images: ``[B, 3, H, W]``.
        - Labels: a :class:`LabelMapBatch` of ``B`` maps, soft labels ``[B, C]`` or ``[B, C, gh, gw]``, or class
          indices ``[B]`` (the CutMix of 2019).
        - Output: images of the same shape, soft labels ``[B, C]`` or ``[B, C, gh, gw]``.

    ``mix.enabled = False`` stops the mixing and keeps the soft labels: the published recipe does so for the last five
    of 300 epochs.

    Raises:
        TypeError, ValueError: If an argument is out of range, or images and labels do not go together.

    Example:
        >>> mix = CutMixWithLabelMap(labels="localized")
        >>> for images, label_maps in loader:  # of LabelMapDataset(..., pooling=None)
        ...     images, soft_labels = mix(images, label_maps)

    Source: Yun et al. 2019, https://arxiv.org/abs/1905.04899; with label maps, Yun et al. 2021,
    https://arxiv.org/abs/2101.05022, section 4.1. Localized labels are ours.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        num_classes: int | None = None,
        labels: str = "mixed",
        *,
        prob: float = 1.0,
        per_sample: bool = False,
        pooling: LabelPooling = LabelPooling(),  # noqa: B008 -- it has no state
    ) -> None:
        super().__init__(num_classes, prob, pooling)
        if labels not in _LABELS:
            raise ValueError(f"labels is one of {', '.join(map(repr, _LABELS))}, got {labels!r}.")
        self.alpha = _checked(alpha)
        self.labels = labels
        self.per_sample = per_sample
        self._torchvision = v2.CutMix(alpha=self.alpha, num_classes=num_classes)

    def _mix(self, images: Tensor, labels: LabelMapBatch | Tensor) -> tuple[Tensor, Tensor]:
        height, width = images.shape[-2:]
        if self.per_sample:
            boxes = _boxes_per_sample(self.alpha, len(images), height, width).to(images.device, non_blocking=True)
            mixed = torch.where(_inside(boxes, height, width), images.roll(1, 0), images)
            mixed = tv_tensors.wrap(mixed, like=images) if isinstance(images, tv_tensors.TVTensor) else mixed
        else:
            x1, y1, x2, y2 = _draw(self._torchvision, images)["box"]
            boxes = torch.tensor([[x1, y1, x2, y2]]).to(images.device, non_blocking=True)
            mixed = images.clone()
            mixed[..., y1:y2, x1:x2] = images[..., y1:y2, x1:x2].roll(1, 0)
        return mixed, self._mixed_labels(labels, boxes, height, width)

    def _mixed_labels(self, labels: LabelMapBatch | Tensor, boxes: Tensor, height: int, width: int) -> Tensor:
        boxes_in_canvas = torch.stack(
            [boxes[:, 0] / width, boxes[:, 1] / height, boxes[:, 2] / width, boxes[:, 3] / height], 1
        )
        pasted = ((boxes_in_canvas[:, 2:] - boxes_in_canvas[:, :2]).prod(1))[:, None]  # [B or 1, 1], share of the area
        if self.labels == "mixed" or self.pooling.output_size != (1, 1):
            soft = self._soft(labels)
            if soft.ndim == 4:  # of tokens, each of which lies in the patch by its own share
                pasted = _share_of_tokens(boxes_in_canvas.to(soft.device), soft.shape[2:])
            return soft.roll(1, 0) * pasted + soft * (1 - pasted)
        if not isinstance(labels, LabelMapBatch):
            raise ValueError(
                f"labels='localized' needs label maps, got a tensor of shape {tuple(labels.shape)}. Load the maps with "
                f"LabelMapDataset(..., pooling=None), or use labels='mixed'."
            )
        boxes_in_canvas = boxes_in_canvas.to(labels.device)
        canvas = torch.cat([torch.zeros_like(boxes_in_canvas[:1, :2]), torch.ones_like(boxes_in_canvas[:1, 2:])], 1)
        partners = labels.roll(1)
        whole = cells_in_box(labels.views, canvas, labels.grid)
        covered = cells_in_box(labels.views, boxes_in_canvas, labels.grid)
        own = self._label_of(labels, (whole - covered).clamp(min=0))
        theirs = self._label_of(partners, cells_in_box(partners.views, boxes_in_canvas, labels.grid))
        return theirs * pasted + own * (1 - pasted)

    def _label_of(self, label_maps: LabelMapBatch, cells: Tensor) -> Tensor:
        """The soft label of a region, given how much of the canvas shows each cell. An empty one favours no class."""
        of_canvas = cells.sum((1, 2), keepdim=True)
        weights = torch.where(of_canvas > _NO_AREA, cells / of_canvas.clamp(min=_NO_AREA), 0)
        of_image = of_canvas[:, 0, 0] * label_maps.views.areas
        return self.pooling.activate(self.pooling.pool_cells(label_maps, weights, of_image), label_maps.score_kind)

    def extra_repr(self) -> str:
        """The arguments, for ``print(mix)``."""
        return f"alpha={self.alpha}, labels={self.labels!r}, per_sample={self.per_sample}, {super().extra_repr()}"


class MixUpWithLabelMap(_Mix):
    """MixUp for a batch of images with their label maps.

    Each image is blended with the image before it in the batch, and so are their soft labels. The random draws and
    the pixels are those of ``torchvision.transforms.v2.MixUp``, under the same seed.

    Args:
        alpha: The weight of the image itself is drawn from Beta(alpha, alpha).
        num_classes: ``C``; needed only for labels that are class indices.
        prob: How often a batch is mixed at all.
        pooling: How label maps become soft labels.

    Shape:
        As :class:`CutMixWithLabelMap`; the images are floating point.

    Raises:
        TypeError, ValueError: If an argument is out of range, or images and labels do not go together.

    Example:
        >>> mix = v2.RandomChoice([CutMixWithLabelMap(), MixUpWithLabelMap(alpha=0.2)])
        >>> images, soft_labels = mix(images, label_maps)

    Source: Zhang et al. 2018, https://arxiv.org/abs/1710.09412.
    """

    def __init__(
        self,
        alpha: float = 1.0,
        num_classes: int | None = None,
        *,
        prob: float = 1.0,
        pooling: LabelPooling = LabelPooling(),  # noqa: B008 -- it has no state
    ) -> None:
        super().__init__(num_classes, prob, pooling)
        self.alpha = _checked(alpha)
        self._torchvision = v2.MixUp(alpha=self.alpha, num_classes=num_classes)

    def _mix(self, images: Tensor, labels: LabelMapBatch | Tensor) -> tuple[Tensor, Tensor]:
        if not images.is_floating_point():
            raise TypeError(
                f"MixUpWithLabelMap blends floating point images, got {images.dtype}. Convert them first: "
                f"v2.ToDtype(torch.float32, scale=True)."
            )
        lam = _draw(self._torchvision, images)["lam"]
        soft = self._soft(labels)
        mixed = images.roll(1, 0).mul_(1 - lam).add_(images.mul(lam))
        mixed = tv_tensors.wrap(mixed, like=images) if isinstance(images, tv_tensors.TVTensor) else mixed
        return mixed, soft.roll(1, 0).mul_(1 - lam).add_(soft.mul(lam))

    def extra_repr(self) -> str:
        """The arguments, for ``print(mix)``."""
        return f"alpha={self.alpha}, {super().extra_repr()}"


def _share_of_tokens(boxes_in_canvas: Tensor, grid: Sequence[int]) -> Tensor:
    """How much of each token of a grid lies in a box, ``[B or 1, 1, gh, gw]``."""

    def along(first: Tensor, last: Tensor, tokens: int) -> Tensor:
        start = torch.arange(tokens, device=first.device) / tokens
        end = start + 1 / tokens
        shared = torch.minimum(last[:, None], end) - torch.maximum(first[:, None], start)
        return shared.clamp(min=0) * tokens

    x1, y1, x2, y2 = boxes_in_canvas.T
    rows, columns = along(y1, y2, grid[0]), along(x1, x2, grid[1])
    return (rows[:, :, None] * columns[:, None, :])[:, None]


def _find(name: str, flat: list[Any], places: list[str]) -> tuple[int, int]:
    """Where the images and the labels are among the leaves of a batch, each with its place, such as ``['label']``."""
    shapes = ", ".join(str(tuple(leaf.shape)) if isinstance(leaf, Tensor) else type(leaf).__name__ for leaf in flat)
    image_at = next((i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.ndim == 4), None)
    if image_at is None:
        raise TypeError(f"{name} mixes a batch of images [B, 3, H, W], got {shapes or 'nothing'}.")
    size = len(flat[image_at])
    maps = [i for i, leaf in enumerate(flat) if isinstance(leaf, LabelMapBatch)]
    tensors = [
        i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.ndim in (1, 2, 4) and i != image_at
    ]
    named = [i for i in tensors if "label" in places[i] or "target" in places[i]]
    found = maps or named or tensors
    if not found:
        raise TypeError(f"{name} needs labels beside the images: a LabelMapBatch, [B, C] or [B], got {shapes}.")
    # In a tuple the labels come first, as torchvision has it; the entries of a dict have no order.
    if len(found) > 1 and "'" in places[found[0]]:
        raise TypeError(
            f"{name} cannot tell which of {', '.join(places[i] for i in found)} are the labels. Give it (images, "
            f"labels) alone, or call one of them 'label'."
        )
    label_at = found[0]
    if len(flat[label_at]) != size:
        raise ValueError(f"{name} got {size} images and {len(flat[label_at])} labels.")
    return image_at, label_at


def _draw(transform: Any, images: Tensor) -> dict[str, Any]:
    # Public since torchvision 0.21; before, it was called _get_params. Delete with support for 0.20.
    make_params = getattr(transform, "make_params", None) or transform._get_params
    params: dict[str, Any] = make_params([images])
    return params


def _boxes_per_sample(alpha: float, size: int, height: int, width: int) -> Tensor:
    """A rectangle of pixels for each image, ``[B, 4]``, drawn as v2.CutMix draws its one."""
    kept = torch.distributions.Beta(alpha, alpha).sample((size,))
    half_side = 0.5 * (1 - kept).sqrt()
    centre_x, centre_y = torch.randint(width, (size,)), torch.randint(height, (size,))
    half_width, half_height = (half_side * width).long(), (half_side * height).long()
    return torch.stack(
        [
            (centre_x - half_width).clamp(min=0),
            (centre_y - half_height).clamp(min=0),
            (centre_x + half_width).clamp(max=width),
            (centre_y + half_height).clamp(max=height),
        ],
        1,
    )


def _inside(boxes: Tensor, height: int, width: int) -> Tensor:
    """Which pixels lie in each box, ``[B, 1, H, W]``."""
    x1, y1, x2, y2 = boxes.T[:, :, None]
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    inside_x, inside_y = (x >= x1) & (x < x2), (y >= y1) & (y < y2)
    return (inside_y[:, :, None] & inside_x[:, None, :])[:, None]


def _checked(alpha: float) -> float:
    if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha is a positive number, got {alpha!r}.")
    return float(alpha)  # torch draws from no distribution with whole numbers
