"""LabelMap: a grid of class scores that knows which part of its image is in view."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision.tv_tensors import TVTensor

from torchrelabel.calibration import Calibration
from torchrelabel.label_map.parts import check_parts, yes_or_no
from torchrelabel.view import View, ViewBox

__all__ = ["LabelMap"]

_METADATA = (
    "classes",
    "residual",
    "num_classes",
    "canvas_size",
    "view_box",
    "score_kind",
    "image_scores",
    "calibration",
)


class LabelMap(TVTensor):
    """The top-k classes of every cell of an image, and the part of that image which the canvas shows now.

    A tv_tensor: the transforms of ``torchvision.transforms.v2`` that crop, resize, flip, pad, rotate, shift or shear an
    image also move the ``view_box`` of a label map given beside it. The scores stay as they are. Those that tilt or
    bend the image raise :class:`~torchrelabel.errors.UntrackedTransformError`.

    The map covers the whole image: cell ``(i, j)`` of ``h x w`` covers the fractions ``[j/w, (j+1)/w]`` of its width
    and ``[i/h, (i+1)/h]`` of its height.

    Args:
        scores: Scores of the kept classes per cell, ``[K, h, w]``, floating point. Raw logits, or probabilities.
        classes: Which classes they belong to, ``[K, h, w]``, integer, each from 0 to ``num_classes - 1``.
        num_classes: ``C``, how many classes the annotator knows.
        canvas_size: Size ``(H, W)`` of the image that the map goes with, in pixels.
        residual: ``[h, w]``: the logsumexp of all classes not kept in a cell, or their summed probability. Published
            maps have none.
        view_box: What the canvas shows of the annotated image, by default all of it: a :class:`~torchrelabel.ViewBox`,
            or a :class:`~torchrelabel.view.View` where it was rotated or sheared.
        score_kind: ``"logit"`` or ``"probability"``.
        image_scores: ``[C]``: the logits of the whole image, where the annotator was asked for them, less their
            logsumexp, so that they are logarithms of shares.
        calibration: How labels follow from both, as fitted to the annotator; needs ``image_scores``.

    Raises:
        TypeError: If the scores are not floating point or the classes not integers.
        ValueError: If shapes disagree, a class is out of range or an argument has an unknown value.

    Example:
        >>> scores = torch.tensor([[[9.0, 1.0]]])  # K=1 class in each of 1 x 2 cells
        >>> classes = torch.tensor([[[3, 7]]])
        >>> label_map = LabelMap(scores, classes, num_classes=10, canvas_size=(11, 17))
        >>> v2.functional.crop(label_map, top=0, left=0, height=11, width=8).view_box
        ViewBox(x1=0.0, y1=0.0, x2=0.47058823529411764, y2=1.0)

    Source: the label map of ReLabel, Yun et al. 2021, https://arxiv.org/abs/2101.05022, section 3.1. The residual is
    ours.
    """

    classes: Tensor
    residual: Tensor | None
    num_classes: int
    canvas_size: tuple[int, int]
    view_box: View
    score_kind: str
    image_scores: Tensor | None
    calibration: Calibration | None

    def __new__(
        cls,
        scores: Any,
        classes: Any,
        *,
        num_classes: int,
        canvas_size: Sequence[int],
        residual: Any = None,
        view_box: View = ViewBox(),  # noqa: B008 -- it is immutable
        score_kind: str = "logit",
        image_scores: Any = None,
        calibration: Calibration | None = None,
    ) -> LabelMap:
        scores = torch.as_tensor(scores)
        classes = torch.as_tensor(classes, device=scores.device)
        if residual is not None:
            residual = torch.as_tensor(residual, device=scores.device)
        if image_scores is not None:
            image_scores = torch.as_tensor(image_scores, device=scores.device)
            if image_scores.is_floating_point() and image_scores.ndim:
                image_scores = image_scores.float().log_softmax(-1).to(image_scores.dtype)
        check_parts(scores, classes, residual, num_classes, score_kind, image_scores, calibration)
        lowest, highest = (int(bound) for bound in classes.long().aminmax())
        if lowest < 0 or highest >= num_classes:
            raise ValueError(
                f"The classes of a label map go from 0 to num_classes - 1 = {num_classes - 1}, "
                f"got {lowest if lowest < 0 else highest}."
            )
        # A cell out of view has the weight 0, and 0 times infinity is no number.
        for numbers in (scores, residual, image_scores):
            if numbers is not None and not bool(numbers.isfinite().all()):
                raise ValueError(
                    "The scores and the residual of a label map are finite numbers, got NaN or infinity. Clamp them, "
                    "or leave the image out."
                )
        if not isinstance(canvas_size, Sequence) or len(canvas_size) != 2 or min(canvas_size) < 1:
            raise ValueError(f"canvas_size is the (H, W) of the image in pixels, got {canvas_size!r}.")
        if not isinstance(view_box, View):
            raise TypeError(f"view_box is a ViewBox, or another View, got {view_box!r}.")
        canvas_size = (int(canvas_size[0]), int(canvas_size[1]))
        return cls._unchecked(
            scores, classes, residual, int(num_classes), canvas_size, view_box, score_kind, image_scores, calibration
        )

    @classmethod
    def _unchecked(
        cls,
        scores: Tensor,
        classes: Tensor,
        residual: Tensor | None,
        num_classes: int,
        canvas_size: tuple[int, int],
        view_box: View,
        score_kind: str,
        image_scores: Tensor | None = None,
        calibration: Calibration | None = None,
    ) -> LabelMap:
        """A map from parts that are known to agree: of another map, or of a store, which checked them on writing."""
        label_map: LabelMap = scores.as_subclass(cls)
        label_map.classes = classes
        label_map.residual = residual
        label_map.num_classes = num_classes
        label_map.canvas_size = canvas_size
        label_map.view_box = view_box
        label_map.score_kind = score_kind
        label_map.image_scores = image_scores
        label_map.calibration = calibration
        return label_map

    @property
    def scores(self) -> Tensor:
        """The scores as a plain tensor, ``[K, h, w]``, sharing memory with the map."""
        with torch._C.DisableTorchFunctionSubclass():
            return self.as_subclass(Tensor)

    @property
    def grid(self) -> tuple[int, int]:
        """How many cells the map has, ``(h, w)``."""
        return self.shape[-2], self.shape[-1]

    def with_view(self, view_box: View, canvas_size: tuple[int, int] | None = None) -> LabelMap:
        """The same map with another view box, and with another canvas size (H, W) where one is given."""
        with torch._C.DisableTorchFunctionSubclass():
            moved = self.as_subclass(type(self))
        moved.__dict__.update(self.__dict__)
        moved.view_box, moved.canvas_size = view_box, canvas_size or self.canvas_size
        return moved

    # clone, to, detach and requires_grad_ return what this method makes of their plain result. The base class would
    # keep the type and lose the attributes.
    @classmethod
    def _wrap_output(
        cls, output: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:  # Any: what torch.Tensor operations return
        source = next((arg for arg in args if isinstance(arg, LabelMap)), None)
        if isinstance(output, LabelMap) and hasattr(output, "classes"):
            return output  # requires_grad_ returns its own argument
        if source is None or not isinstance(output, Tensor) or output.shape != source.shape:
            return output
        non_blocking = bool((kwargs or {}).get("non_blocking", False))
        classes = source.classes.to(output.device, non_blocking=non_blocking)
        residual, image_scores = (
            part if part is None else part.to(output.device, output.dtype, non_blocking=non_blocking)
            for part in (source.residual, source.image_scores)
        )
        return cls._unchecked(
            output,
            classes,
            residual,
            source.num_classes,
            source.canvas_size,
            source.view_box,
            source.score_kind,
            image_scores,
            source.calibration,
        )

    @classmethod
    def wrap(cls, tensor: Tensor, like: LabelMap, **changes: Any) -> LabelMap:
        """What ``torchvision.tv_tensors.wrap(tensor, like=label_map)`` gives since torchvision 0.28."""
        parts = {name: getattr(like, name) for name in _METADATA}
        return cls._unchecked(tensor, **{**parts, **changes})

    def clone(self, *, memory_format: torch.memory_format = torch.preserve_format) -> LabelMap:
        """A copy that shares no memory with this map."""
        cloned: LabelMap = super().clone(memory_format=memory_format)
        cloned.classes = self.classes.clone()
        cloned.residual = None if self.residual is None else self.residual.clone()
        cloned.image_scores = None if self.image_scores is None else self.image_scores.clone()
        return cloned

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelMap:
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        for name, value in vars(self).items():
            if name not in _METADATA:
                setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def pin_memory(self, device: Any = None) -> LabelMap:
        """A copy in page-locked memory, from which copies to a GPU are asynchronous."""
        residual, image_scores = (
            part if part is None else part.pin_memory() for part in (self.residual, self.image_scores)
        )
        return self._unchecked(
            self.scores.pin_memory(),
            self.classes.pin_memory(),
            residual,
            self.num_classes,
            self.canvas_size,
            self.view_box,
            self.score_kind,
            image_scores,
            self.calibration,
        )

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        k, h, w = self.shape
        return (
            f"LabelMap({k} of {self.num_classes} classes in {h} x {w} cells, score_kind={self.score_kind!r}, "
            f"residual={yes_or_no(self.residual)}, image_scores={yes_or_no(self.image_scores)}, "
            f"calibration={yes_or_no(self.calibration)}, canvas_size={self.canvas_size}, "
            f"view_box={tuple(self.view_box) if isinstance(self.view_box, ViewBox) else self.view_box})"
        )
