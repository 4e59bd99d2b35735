"""LabelMap, a grid of class scores that knows which part of its image is in view, with its collated form."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import default_collate_fn_map
from torchvision.tv_tensors import TVTensor

from torchrelabel.calibration import Calibration
from torchrelabel.view_box import ViewBox

__all__ = ["SCORE_KINDS", "LabelMap", "LabelMapBatch"]

SCORE_KINDS = ("logit", "probability")

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

    A tv_tensor: the geometric transforms of ``torchvision.transforms.v2`` that crop, resize, flip or pad an image
    also move the ``view_box`` of a label map given beside it. The scores stay as they are. Those that rotate or bend
    the image raise :class:`~torchrelabel.errors.UntrackedTransformError`.

    The map covers the whole image: cell ``(i, j)`` of ``h x w`` covers the fractions ``[j/w, (j+1)/w]`` of its width
    and ``[i/h, (i+1)/h]`` of its height.

    Args:
        scores: Scores of the kept classes per cell, ``[K, h, w]``, floating point. Raw logits, or probabilities.
        classes: Which classes they belong to, ``[K, h, w]``, integer, each from 0 to ``num_classes - 1``.
        num_classes: ``C``, how many classes the annotator knows.
        canvas_size: Size ``(H, W)`` of the image that the map goes with, in pixels.
        residual: ``[h, w]``: the logsumexp of all classes not kept in a cell, or their summed probability. Published
            maps have none.
        view_box: The part of the annotated image that the canvas shows, by default all of it.
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
    view_box: ViewBox
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
        view_box: ViewBox = ViewBox(),  # noqa: B008 -- it is immutable
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
        _check_parts(scores, classes, residual, num_classes, score_kind, image_scores, calibration)
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
        if not isinstance(view_box, ViewBox):
            raise TypeError(f"view_box must be a ViewBox, got {view_box!r}.")
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
        view_box: ViewBox,
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

    def seen_through(self, view_box: ViewBox, canvas_size: tuple[int, int] | None = None) -> LabelMap:
        """The same map with another view box, and with another canvas size (H, W) where one is given."""
        return self._unchecked(
            self.scores,
            self.classes,
            self.residual,
            self.num_classes,
            canvas_size or self.canvas_size,
            view_box,
            self.score_kind,
            self.image_scores,
            self.calibration,
        )

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
            f"residual={_yes(self.residual)}, image_scores={_yes(self.image_scores)}, "
            f"calibration={_yes(self.calibration)}, canvas_size={self.canvas_size}, view_box={tuple(self.view_box)})"
        )


class LabelMapBatch:
    """Label maps of one grid, stacked: what ``torch.utils.data.default_collate`` makes of a list of label maps.

    ``batch[i]`` is the i-th :class:`LabelMap`; a slice, a list or an index tensor gives a smaller batch.

    Geometric transforms follow a :class:`LabelMap`, not a batch: transform images and maps together before they are
    collated.

    Args:
        scores: ``[B, K, h, w]``, floating point.
        classes: ``[B, K, h, w]``, integer.
        num_classes: ``C``.
        view_boxes: ``[B, 4]``, xyxy, fractions of each annotated image, flips as ``x1 > x2``.
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
        view_boxes: Tensor,
        canvas_sizes: Sequence[tuple[int, int]],
        residual: Tensor | None = None,
        score_kind: str = "logit",
        image_scores: Tensor | None = None,
        calibration: Calibration | None = None,
    ) -> None:
        if scores.ndim != 4:
            raise ValueError(f"The scores of a batch of label maps are [B, K, h, w], got shape {tuple(scores.shape)}.")
        if scores.shape[0] != len(view_boxes) or view_boxes.shape[1:] != (4,) or scores.shape[0] != len(canvas_sizes):
            raise ValueError(
                f"A batch of {scores.shape[0]} label maps needs as many view boxes [B, 4] and canvas sizes, "
                f"got {tuple(view_boxes.shape)} and {len(canvas_sizes)}."
            )
        _check_parts(scores, classes, residual, num_classes, score_kind, image_scores, calibration, batch=True)
        self.scores = scores
        self.classes = classes
        self.residual = residual
        self.num_classes = num_classes
        self.view_boxes = view_boxes
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
            view_boxes=torch.tensor(
                [tuple(label_map.view_box) for label_map in label_maps], dtype=torch.float32, device=first.device
            ),
            canvas_sizes=[label_map.canvas_size for label_map in label_maps],
            residual=torch.stack(residuals) if residuals else None,
            score_kind=first.score_kind,
            image_scores=torch.stack(image_scores) if image_scores else None,
            calibration=first.calibration,
        )

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
                ViewBox(*self.view_boxes[index].tolist()),
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

    def to(
        self,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        non_blocking: bool = False,
    ) -> LabelMapBatch:
        """The batch on another device; a floating point dtype is given to the scores and the residual."""

        def move(part: Tensor) -> Tensor:
            # View boxes keep single precision: in half precision a box in 15 x 15 cells is off by a hundredth of one.
            scores_like = part.is_floating_point() and part is not self.view_boxes
            return part.to(device, dtype if scores_like else None, non_blocking=non_blocking)

        return self._with(move, self.canvas_sizes)

    def pin_memory(self, device: Any = None) -> LabelMapBatch:
        """A copy in page-locked memory; a DataLoader with ``pin_memory=True`` calls this."""
        return self._with(lambda part: part.pin_memory(), self.canvas_sizes)

    def _with(self, change: Callable[[Tensor], Tensor], canvas_sizes: Sequence[tuple[int, int]]) -> LabelMapBatch:
        return LabelMapBatch(
            change(self.scores),
            change(self.classes),
            num_classes=self.num_classes,
            view_boxes=change(self.view_boxes),
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
            _same(self.residual, other.residual)
            and _same(self.image_scores, other.image_scores)
            and self.calibration == other.calibration
            and self.num_classes == other.num_classes
            and self.score_kind == other.score_kind
            and self.canvas_sizes == other.canvas_sizes
            and self.scores.dtype == other.scores.dtype
            and torch.equal(self.view_boxes, other.view_boxes)
            and torch.equal(self.scores, other.scores)
            and torch.equal(self.classes, other.classes)
        )

    __hash__ = None  # type: ignore[assignment] # compared by value, and its tensors can change

    def __repr__(self) -> str:
        b, k, h, w = self.scores.shape
        return (
            f"LabelMapBatch({b} maps, {k} of {self.num_classes} classes in {h} x {w} cells, "
            f"score_kind={self.score_kind!r}, residual={_yes(self.residual)}, "
            f"image_scores={_yes(self.image_scores)}, calibration={_yes(self.calibration)}, "
            f"device={str(self.device)!r})"
        )


def _yes(part: Any) -> str:
    return "no" if part is None else "yes"


def _same(one: Tensor | None, other: Tensor | None) -> bool:
    return one is other or (one is not None and other is not None and torch.equal(one, other))


def _check_parts(
    scores: Tensor,
    classes: Tensor,
    residual: Tensor | None,
    num_classes: int,
    score_kind: str,
    image_scores: Tensor | None,
    calibration: Calibration | None,
    *,
    batch: bool = False,
) -> None:
    """Raise if types or shapes disagree. Values are not looked at: on a GPU that would wait for it."""
    what, first = ("a batch of label maps", "B, ") if batch else ("a label map", "")
    if not scores.is_floating_point():
        raise TypeError(f"The scores of a label map are floating point, got {scores.dtype}.")
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(
            f"The classes of a label map are integers, got {classes.dtype}. Indices kept as floating point are exact "
            f"only up to 2048 in half precision: convert them with .long() after checking that."
        )
    if scores.ndim != 3 + batch or 0 in scores.shape[-3:] or scores.shape != classes.shape:
        raise ValueError(
            f"Scores and classes of {what} have one shape [{first}K, h, w], "
            f"got {tuple(scores.shape)} and {tuple(classes.shape)}."
        )
    k, grid = scores.shape[-3], (*scores.shape[:-3], *scores.shape[-2:])
    if residual is not None and residual.shape != grid:
        raise ValueError(
            f"The residual of {what} has the shape of its grid, [{first}h, w] = {grid}, got {tuple(residual.shape)}."
        )
    if score_kind not in SCORE_KINDS:
        raise ValueError(f"score_kind is one of {', '.join(map(repr, SCORE_KINDS))}, got {score_kind!r}.")
    if num_classes < k:
        raise ValueError(f"A label map cannot keep {k} classes a cell out of {num_classes}.")
    if image_scores is not None:
        shape = (*scores.shape[:-3], num_classes)
        if not image_scores.is_floating_point() or image_scores.shape != shape:
            raise ValueError(
                f"The image_scores of {what} are floating point, [{first}C] = {shape}, got {image_scores.dtype} "
                f"{tuple(image_scores.shape)}."
            )
        if score_kind != "logit":
            raise ValueError(f"The image_scores of {what} are logits, and its score_kind is {score_kind!r}.")
    if calibration is not None and (image_scores is None or (residual is None and k < num_classes)):
        raise ValueError(f"The calibration of {what} needs its image_scores, and its residual unless K = C.")


def _collate_label_maps(batch: Sequence[LabelMap], *, collate_fn_map: Mapping[Any, Any] | None = None) -> LabelMapBatch:
    return LabelMapBatch.stack(batch)


default_collate_fn_map[LabelMap] = _collate_label_maps

# A LabelMap whose kernels nobody registered would pass every v2 transform unchanged and without a word, so there is
# none without them. The one import that points down the house; it stands last since the kernels need the class.
from torchrelabel.transforms import _kernels, _refusals  # noqa: E402, F401
