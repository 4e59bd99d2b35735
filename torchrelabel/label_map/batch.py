"""LabelMapBatch: label maps of one grid, stacked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import register_pytree_node
from torch.utils.data._utils.collate import default_collate_fn_map
from torchvision.transforms.v2 import functional as F
from torchvision.tv_tensors import TVTensor

from torchrelabel.calibration import Calibration
from torchrelabel.label_map.map import LabelMap
from torchrelabel.label_map.parts import check_parts, same, yes_or_no
from torchrelabel.label_map.views import ViewBatch

__all__ = ["LabelMapBatch", "MovingBatch", "move_batch"]


class LabelMapBatch:
    """Label maps of one grid, stacked: what ``torch.utils.data.default_collate`` makes of a list of label maps.

    ``batch[i]`` is the i-th :class:`LabelMap`; a slice, a list or an index tensor gives a smaller batch.

    A transform of v2 that moves a batch of images moves each of its label maps, too. Where each image of a batch moves
    in its own way, on the device say, :meth:`crop`, :meth:`horizontal_flip` and :meth:`vertical_flip` tell the maps.

    Args:
        scores: ``[B, K, h, w]``, floating point.
        classes: ``[B, K, h, w]``, integer.
        num_classes: ``C``.
        view_boxes: ``[B, 4]``, xyxy, fractions of each annotated image, flips as ``x1 > x2``; or a
            :class:`~torchrelabel.label_map.views.ViewBatch` where views are rotated or sheared.
        canvas_sizes: ``(H, W)`` in pixels for each map.
        residual: ``[B, h, w]`` or None.
        score_kind: ``"logit"`` or ``"probability"``.
        image_scores: ``[B, C]`` or None, as those of a :class:`LabelMap`.
        calibration: Of all of them, or None.

    Raises:
        TypeError, ValueError: As :class:`LabelMap`, but for the numbers of the classes: to look at them would wait for
            a GPU.
    """

    def __init__(
        self,
        scores: Tensor,
        classes: Tensor,
        *,
        num_classes: int,
        view_boxes: Tensor | ViewBatch,
        canvas_sizes: Sequence[tuple[int, int]],
        residual: Tensor | None = None,
        score_kind: str = "logit",
        image_scores: Tensor | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if scores.ndim != 4:
            raise ValueError(f"The scores of a batch of label maps are [B, K, h, w], got shape {tuple(scores.shape)}.")
        views = view_boxes if isinstance(view_boxes, ViewBatch) else ViewBatch(view_boxes)
        if not len(scores) == len(views) == len(canvas_sizes) or views.boxes.shape[1:] != (4,):
            raise ValueError(
                f"A batch of {scores.shape[0]} label maps needs as many view boxes [B, 4] and canvas sizes, "
                f"got {tuple(views.boxes.shape)} and {len(canvas_sizes)}."
            )
        check_parts(scores, classes, residual, num_classes, score_kind, image_scores, calibration, batch=True)
        self.scores = scores
        self.classes = classes
        self.residual = residual
        self.num_classes = num_classes
        self.views = views
        self.canvas_sizes = tuple(canvas_sizes)
        self.score_kind = score_kind
        self.image_scores = image_scores
        self.calibration = calibration

    @classmethod
    def stack(cls, label_maps: Sequence[LabelMap]) -> LabelMapBatch:
        """Stack label maps that agree in grid, kept classes, number of classes, score kind and residual.

        Raises:
            ValueError: If there are none, or they disagree, naming the first that does and in what.
        """
        if not label_maps:
            raise ValueError("A batch of label maps needs at least one.")
        first = label_maps[0]
        for i, label_map in enumerate(label_maps):
            for what, here, there in (
                ("K, h, w", tuple(label_map.shape), tuple(first.shape)),
                ("num_classes", label_map.num_classes, first.num_classes),
                ("score_kind", label_map.score_kind, first.score_kind),
                ("a residual", label_map.residual is not None, first.residual is not None),
                ("image_scores", label_map.image_scores is not None, first.image_scores is not None),
                ("calibration", label_map.calibration, first.calibration),
            ):
                if here != there:
                    raise ValueError(
                        f"Label maps of one batch must agree in {what}: map 0 has {there}, map {i} has {here}. "
                        f"Pool each map before collating instead (LabelMapDataset(..., pooling=LabelPooling()))."
                    )
        residuals = [label_map.residual for label_map in label_maps if label_map.residual is not None]
        image_scores = [label_map.image_scores for label_map in label_maps if label_map.image_scores is not None]
        return cls(
            torch.stack([label_map.scores for label_map in label_maps]),
            torch.stack([label_map.classes for label_map in label_maps]),
            num_classes=first.num_classes,
            view_boxes=ViewBatch.stack([label_map.view_box for label_map in label_maps], first.device),
            canvas_sizes=[label_map.canvas_size for label_map in label_maps],
            residual=torch.stack(residuals) if residuals else None,
            score_kind=first.score_kind,
            image_scores=torch.stack(image_scores) if image_scores else None,
            calibration=first.calibration,
        )

    @property
    def view_boxes(self) -> Tensor:
        """The boxes of the views, ``[B, 4]``; see :class:`~torchrelabel.label_map.views.ViewBatch`."""
        return self.views.boxes

    @property
    def device(self) -> torch.device:
        """Where the maps are."""
        return self.scores.device

    @property
    def grid(self) -> tuple[int, int]:
        """How many cells each map has, ``(h, w)``."""
        return self.scores.shape[-2], self.scores.shape[-1]

    def __len__(self) -> int:
        return self.scores.shape[0]

    def __iter__(self) -> Iterator[LabelMap]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, index: Any) -> Any:
        if hasattr(index, "__index__") and getattr(index, "ndim", 0) == 0:  # also of NumPy, and a tensor of one number
            index = int(index)
            if not -len(self) <= index < len(self):
                raise IndexError(f"There are {len(self)} label maps in this batch, asked for number {index}.")
            return LabelMap._unchecked(
                self.scores[index],
                self.classes[index],
                None if self.residual is None else self.residual[index],
                self.num_classes,
                self.canvas_sizes[index],
                self.views[index],
                self.score_kind,
                None if self.image_scores is None else self.image_scores[index],
                self.calibration,
            )
        kept = torch.arange(len(self))[index.cpu() if isinstance(index, Tensor) else index]
        return self._with(lambda part: part[index], [self.canvas_sizes[i] for i in kept.tolist()])

    def roll(self, shift: int) -> LabelMapBatch:
        """The same maps, each moved ``shift`` places on, the last ones to the front: the partners of a mixed batch."""
        size = max(len(self), 1)
        canvas_sizes = [self.canvas_sizes[(i - shift) % size] for i in range(len(self))]
        return self._with(lambda part: part.roll(shift, 0), canvas_sizes)

    def crop(self, boxes: Tensor, size: Sequence[int]) -> LabelMapBatch:
        """The maps after each image was cropped to a box of its own, for augmentation on the device.

        Args:
            boxes: ``[B, 4]``, xyxy, in pixels of each image as it was before.
            size: ``(H, W)`` in pixels of all images afterwards.

        Raises:
            ValueError: If there is not one box for each map, or one is empty or reaches past its image.
        """
        if boxes.shape != (len(self), 4):
            raise ValueError(f"{len(self)} label maps are cropped to as many boxes, [B, 4], got {list(boxes.shape)}.")
        sides = torch.tensor([(w, h) for h, w in self.canvas_sizes], dtype=torch.float32).to(self.device)
        boxes_in_canvas = boxes.to(self.device, torch.float32) / sides.repeat(1, 2)
        (x1, y1, x2, y2) = boxes_in_canvas.unbind(1)
        within = boxes_in_canvas.clamp(0, 1)
        if bool((torch.stack([x2 - x1, y2 - y1]) <= 0).any() or ((boxes_in_canvas - within).abs() > 1e-4).any()):
            raise ValueError(
                "A box of pixels, (x1, y1, x2, y2), lies within its image, and x1 < x2 and y1 < y2. Give boxes as they "
                "were cropped; crop images with their maps where they are padded, too (LabelMapDataset(transforms=))."
            )
        canvas_sizes = [(int(size[0]), int(size[1]))] * len(self)
        return self._with(lambda part: part, canvas_sizes, self.views.crop(within))

    def horizontal_flip(self, mask: Tensor | None = None) -> LabelMapBatch:
        """The maps after the images that a mask ``[B]`` chooses, by default all, were flipped left to right."""
        return self._with(lambda part: part, self.canvas_sizes, self.views.flip_x(self._mask(mask)))

    def vertical_flip(self, mask: Tensor | None = None) -> LabelMapBatch:
        """The same, top to bottom."""
        return self._with(lambda part: part, self.canvas_sizes, self.views.flip_y(self._mask(mask)))

    def _mask(self, mask: Tensor | None) -> Tensor:
        if mask is None:
            return torch.ones(len(self), dtype=torch.bool, device=self.device)
        if mask.shape != (len(self),) or mask.dtype != torch.bool:
            raise ValueError(f"A mask of {len(self)} label maps is boolean, [B], got {mask.dtype} {list(mask.shape)}.")
        return mask.to(self.device)

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> LabelMapBatch:
        """The batch on another device; a floating point dtype is given to the scores and the residual."""

        def move(part: Tensor) -> Tensor:
            return part.to(device, dtype if part.is_floating_point() else None, non_blocking=non_blocking)

        # Views keep single precision: in half precision a box in 15 x 15 cells is off by a hundredth of one.
        views = self.views.map(lambda part: part.to(device, non_blocking=non_blocking))
        return self._with(move, self.canvas_sizes, views)

    def pin_memory(self, device: Any = None) -> LabelMapBatch:
        """A copy in page-locked memory; a DataLoader with ``pin_memory=True`` calls this."""
        return self._with(lambda part: part.pin_memory(), self.canvas_sizes)

    def _with(
        self,
        change: Callable[[Tensor], Tensor],
        canvas_sizes: Sequence[tuple[int, int]],
        views: ViewBatch | None = None,
    ) -> LabelMapBatch:
        return LabelMapBatch(
            change(self.scores),
            change(self.classes),
            num_classes=self.num_classes,
            view_boxes=self.views.map(change) if views is None else views,
            canvas_sizes=canvas_sizes,
            residual=None if self.residual is None else change(self.residual),
            score_kind=self.score_kind,
            image_scores=None if self.image_scores is None else change(self.image_scores),
            calibration=self.calibration,
        )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LabelMapBatch):
            return NotImplemented
        return (
            same(self.residual, other.residual)
            and same(self.image_scores, other.image_scores)
            and self.calibration == other.calibration
            and self.num_classes == other.num_classes
            and self.score_kind == other.score_kind
            and self.canvas_sizes == other.canvas_sizes
            and self.scores.dtype == other.scores.dtype
            and self.views.equal(other.views)
            and torch.equal(self.scores, other.scores)
            and torch.equal(self.classes, other.classes)
        )

    __hash__ = None  # type: ignore[assignment] # compared by value, and its tensors can change

    def __repr__(self) -> str:
        b, k, h, w = self.scores.shape
        return (
            f"LabelMapBatch({b} maps, {k} of {self.num_classes} classes in {h} x {w} cells, "
            f"score_kind={self.score_kind!r}, residual={yes_or_no(self.residual)}, "
            f"image_scores={yes_or_no(self.image_scores)}, calibration={yes_or_no(self.calibration)}, "
            f"device={str(self.device)!r})"
        )


def _collate_label_maps(batch: Sequence[LabelMap], *, collate_fn_map: Mapping[Any, Any] | None = None) -> LabelMapBatch:
    return LabelMapBatch.stack(batch)


default_collate_fn_map[LabelMap] = _collate_label_maps


class MovingBatch(TVTensor):
    """A batch of label maps as torchvision's v2 sees it: a tensor without entries that carries the batch along."""

    batch: LabelMapBatch

    @classmethod
    def of(cls, batch: LabelMapBatch) -> MovingBatch:
        moving: MovingBatch = torch.empty(0).as_subclass(cls)
        moving.batch = batch
        return moving

    def to(self, *args: Any, **kwargs: Any) -> MovingBatch:
        """What moves all tensors of a structure to a device moves the batch."""
        return MovingBatch.of(self.batch.to(*args, **kwargs))


def _flatten(batch: LabelMapBatch) -> tuple[list[Any], None]:
    return [MovingBatch.of(batch)], None


def _unflatten(children: Any, _: None) -> Any:
    (child,) = children
    if not isinstance(child, MovingBatch):
        raise TypeError(
            f"A batch of label maps was made a {type(child).__name__} by something that changes all tensors of a "
            f"structure (v2.ToPureTensor?), and its labels would be lost. Pool it first: LabelPooling()(label_maps)."
        )
    return child.batch


# v2 passes what it does not know through unchanged: images were cropped, and the batch came back as it was.
register_pytree_node(LabelMapBatch, _flatten, _unflatten)


def move_batch(functional: str, kernel: Callable[..., LabelMap]) -> None:
    """Let a functional of v2 move each label map of a batch as its kernel moves one."""

    @F.register_kernel(functional, MovingBatch)
    def move(moving: MovingBatch, *args: Any, **kwargs: Any) -> MovingBatch:
        return MovingBatch.of(LabelMapBatch.stack([kernel(label_map, *args, **kwargs) for label_map in moving.batch]))
