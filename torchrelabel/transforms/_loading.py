"""LoadingSample: what is known of the view of the sample that a LabelMapDataset loads now."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar, Token
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._pytree import tree_flatten
from torchvision.transforms.v2 import functional as F

from torchrelabel.errors import CropNotSeen
from torchrelabel.label_map import LabelMap
from torchrelabel.transforms._likeness import alike, flipped, same_pixels, size_of, sizes_of
from torchrelabel.transforms._steps import CROP, FLIP, Steps, kind_of, short
from torchrelabel.view_box import ViewBox

__all__ = ["WAYS_OUT", "LoadingSample", "View", "loading_sample", "same_box"]

WAYS_OUT = (
    "Crop with RandomResizedCropWithLabelMap, pass a v2 pipeline as LabelMapDataset(..., transforms=), or say "
    "crop='full' to pool the whole image on purpose."
)

# Worker threads of one process load different samples: each sees its own.
_current: ContextVar[LoadingSample | None] = ContextVar("torchrelabel_loading_sample", default=None)


def loading_sample() -> LoadingSample | None:
    """The sample that a LabelMapDataset loads now in this thread, None outside of one."""
    return _current.get()


class View:
    """What an image shows. Two images share one View only if one is the other with its colours changed.

    Args:
        parent: What the image that this one was made of shows; None for an original.
        step: The box of this image from that of its parent. It is called when the box is asked for: while a pipeline
            works on pixels, which drive all else out of the processor's caches, each line of Python takes several times
            as long as between batches.
        cropped: Whether a crop led to this image.
    """

    __slots__ = ("_box", "_parent", "_step", "cropped")

    def __init__(self, parent: View | None, step: Callable[[ViewBox], ViewBox], *, cropped: bool) -> None:
        self._parent = parent
        self._step = step
        self._box: ViewBox | None = None
        self.cropped = cropped

    @property
    def box(self) -> ViewBox:
        """The part of the original."""
        if self._box is None:
            self._box = self._step(ViewBox() if self._parent is None else self._parent.box)
        return self._box


def same_box(view_box: ViewBox) -> ViewBox:
    """The step of an image that was resized."""
    return view_box


def _is_to_pil(step: Any) -> bool:
    return type(step).__name__ == "ToPILImage"


_WHOLE = View(None, same_box, cropped=False)


class LoadingSample:
    """The view of one sample while its pipeline runs, told by a TrackedImage or by RandomResizedCropWithLabelMap.

    A context manager: within it, :func:`loading_sample` gives this object.

    Attributes:
        view: The latest view known.
        image: The latest image known to show that view, None once the pipeline has run.
        size: Its size (H, W), None if there is no such image.
        branched: Whether two views were taken of one image, so that nobody can tell which one was kept.
        read: What gives the key of each image that the dataset opened, where it tells; the last one was loaded.
        opened: These images, as they were opened, each with what gives its key; empty once the pipeline has run.
        given: Each image that the dataset gave to its own transform, as long as the pipeline runs.
        track: What follows an image from where it is opened on; None if nobody wants to know.
        moved: The latest step that flipped or moved an image unseen, None if none did.
        flipped: The same for a flip.
    """

    def __init__(self, track: Callable[[Any, LoadingSample], Any] | None = None) -> None:
        self.track = track
        self.view = _WHOLE
        self.image: Any = None
        self.branched = False
        self.read: list[Callable[[], str]] = []
        self.opened: list[tuple[Callable[[], str], Any]] = []
        self.given: list[Any] = []
        self.moved: Any = None
        self.flipped: Any = None
        self._size: tuple[int, int] | None = None
        self._crops = 0
        self._cropped: list[Any] = []
        self._known = False
        self._token: Token[LoadingSample | None] | None = None

    def __enter__(self) -> LoadingSample:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _current.reset(self._token)
        self._size = size_of(self.image)
        # They know this sample: as a cycle, their pixels would wait for the garbage collector.
        self.image = None
        self.opened, self.given, self._cropped = [], [], []

    @property
    def size(self) -> tuple[int, int] | None:
        """See the class."""
        return self._size if self.image is None else size_of(self.image)

    def follow(self, parent: View, step: Callable[[ViewBox], ViewBox], image: Any, *, crop: bool) -> View:
        """Take note that ``image``, made from one that showed ``parent``, shows what ``step`` makes of that."""
        if parent is not self.view:
            self.branched = True
        self._crops += crop
        self.view, self.image = View(parent, step, cropped=parent.cropped or crop), image
        return self.view

    def run(self, steps: Steps, image: Any) -> Any:
        """Run the :class:`Steps` of a pipeline on an image.

        Raises:
            CropNotSeen: If a step whose name says that it crops or pads did so unseen, since the image is a tensor by
                then, or since the step pads. An image of the expected size may come out of it, so this is the moment
                to notice.
        """
        with nullcontext() if steps.known else self.listening():
            self._known = steps.known
            for step, kind in steps.calls:
                crops, given = self._crops, image
                image = step(image)
                if not isinstance(image, Tensor) and getattr(image, "sample", None) is self:
                    # A TrackedImage: it knows best what it shows.
                    if kind == CROP and image is given:
                        image.view = View(image.view, same_box, cropped=True)  # it was small enough as it was
                    self.view, self.image, self.branched = image.view, image, False
                elif self.track is not None and _is_to_pil(step) and given is self.image and not self._crops:
                    image = self.track(image, self)
                elif kind is not None and image is not self.image and (kind == CROP or image is not given):
                    self._unseen(step, kind, given, crops)
        return image

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Notice the steps within functions and objects that nobody can look into, where these steps are modules.

        Raises:
            CropNotSeen: As :meth:`run`.
        """
        begun: list[tuple[nn.Module, int]] = []

        def before(module: nn.Module, _: Any) -> None:
            if loading_sample() is self:  # and not a model that another thread runs
                begun.append((module, self._crops))

        def after(module: Any, args: Any, result: Any) -> None:
            if loading_sample() is not self:
                return
            crops = self._crops
            while begun:  # those on top of this one have raised, and somebody went on
                started, crops = begun.pop()
                if started is module:
                    break
            kind = kind_of(module.__class__)
            if kind is None or module.__class__.__module__.startswith("torch.nn."):
                return  # layers of a network pad what is no image, or is one that the network gives back as large
            given: Any = args[0] if args else None
            image: Any = result[0] if isinstance(result, (tuple, list)) and result else result
            if getattr(image, "sample", None) is self:
                if kind == CROP and image is given:
                    self.view = image.view = View(image.view, same_box, cropped=True)
                return
            if sizes_of(image) and image is not given and image is not self.image:
                self._unseen(module, kind, given, crops)

        handles = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _unseen(self, step: Any, kind: str, given: Any, crops: int) -> None:
        """Raise, or take note, if a step whose name says what it does was not seen doing it.

        Args:
            step: What made a new image.
            kind: Of :attr:`Steps.calls`.
            given: What it was called on.
            crops: How many crops had been seen before.
        """
        if self._crops != crops or self.branched:
            return
        if kind == CROP:
            what = "a PIL image" if isinstance(given, PIL.Image.Image) else type(given).__name__
            raise CropNotSeen(
                f"{short(step)} got {what} and cropped or padded it in a way that could not be followed, so the "
                f"label is unknown. Crops are seen of PIL images, before they become tensors and before steps that "
                f"make a new image (ColorJitter, rotations, padding). {WAYS_OUT}"
            )
        self.moved = step
        if kind == FLIP:
            self.flipped = step

    def check_one_crop(self, pipeline: Any, ways_out: str = WAYS_OUT) -> None:
        """Raise unless one crop was seen while a pipeline, None for an unknown one, ran."""
        if not self.branched and self.view.cropped:
            return
        name = "the pipeline" if pipeline is None else f"the pipeline {short(pipeline)}"
        if self.branched:
            raise CropNotSeen(
                f"Several crops were taken of one image by {name}, so it is unknown which of them the label should be "
                f"for. {ways_out}"
            )
        raise CropNotSeen(f"No crop was seen while {name} ran, so the label is unknown. {ways_out}")

    def crop_untold(self, crop: Callable[..., Any], inputs: tuple[Any, ...]) -> Any:
        """Run a v2 crop on an image that may not know its own view, and take note of what it shows.

        Raises:
            CropNotSeen: If the image is not the one last seen, since it was resized, cropped or flipped meanwhile.
        """
        image = inputs[0]
        if getattr(image, "sample", None) is self:
            return crop(*inputs)  # a TrackedImage tells its crop by itself
        if len(inputs) > 1 or not isinstance(image, (Tensor, PIL.Image.Image)):
            raise TypeError(
                f"RandomResizedCropWithLabelMap takes one image here, got "
                f"{', '.join(type(inpt).__name__ for inpt in inputs)}."
            )
        self.check_size(image, "RandomResizedCropWithLabelMap")
        if self.moved is not None:
            raise CropNotSeen(
                f"RandomResizedCropWithLabelMap got an image whose pixels {short(self.moved)} had moved in a way that "
                f"could not be followed, so the label is unknown. Crop first. {WAYS_OUT}"
            )
        if not self._known:
            if sizes_of(self.image) and not alike(self.image, image):
                raise CropNotSeen(
                    f"RandomResizedCropWithLabelMap got another image than the one last seen of this sample, or one "
                    f"that was moved, so the label is unknown. Crop first. {WAYS_OUT}"
                )
            self.check_unmoved(image, "RandomResizedCropWithLabelMap")
        if any(same_pixels(image, before) for before in self._cropped):
            self.branched = True
        self._cropped.append(image)
        # A map of one cell with the view known so far rides along, and comes back with the crop's.
        probe = LabelMap(
            torch.zeros(1, 1, 1),
            torch.zeros(1, 1, 1, dtype=torch.long),
            num_classes=1,
            canvas_size=F.get_size(image),
            view_box=self.view.box,
        )
        cropped, probe = crop(image, probe)
        self.follow(self.view, lambda _: probe.view_box, cropped, crop=True)
        return cropped

    def check_size(self, result: Any, by: str) -> None:
        """Raise if an image has another size than the one last seen, or is several: it was changed unseen.

        Args:
            result: An image, or any structure of images.
            by: Who asks, for the message.
        """
        was = self.size
        if was is None:
            return
        for image in [result] if isinstance(result, Tensor) else tree_flatten(result)[0]:
            sizes = sizes_of(image)
            views = math.prod(image.shape[:-3]) if sizes and isinstance(image, (Tensor, np.ndarray)) else 1
            if views > 1:
                raise CropNotSeen(
                    f"{by} got {views} images in one, {list(image.shape)}, so it is unknown which of them the label "
                    f"should be for. {WAYS_OUT}"
                )
            if sizes and was not in sizes:
                raise CropNotSeen(
                    f"{by} got an image of {sizes[0][0]} x {sizes[0][1]} pixels (H x W), and the one last seen had "
                    f"{was[0]} x {was[1]}: it was cropped or resized in a way that could not be followed, so the label "
                    f"is unknown. Crop and resize while it is a PIL image, before it becomes a tensor and before steps "
                    f"that make a new image (ColorJitter); or pass a v2 pipeline as LabelMapDataset(..., transforms=)."
                )

    def check_unmoved(self, result: Any, by: str) -> None:
        """Raise if an image is not the one last seen but for its colours: other in size, or flipped."""
        self.check_size(result, by)
        if self.flipped is not None:
            raise CropNotSeen(
                f"{by} got an image that {short(self.flipped)} had flipped in a way that could not be followed. Flip "
                f"while it is a PIL image; or pass a v2 pipeline as LabelMapDataset(..., transforms=)."
            )
        if self._known:
            return  # the names of all steps were read: none else flips
        for image in tree_flatten(result)[0] if sizes_of(self.image) else ():
            if sizes_of(image) and image is not self.image and flipped(self.image, image):
                raise CropNotSeen(
                    f"{by} got an image that was flipped in a way that could not be followed, so the label is unknown. "
                    f"Flip while it is a PIL image; or pass a v2 pipeline as LabelMapDataset(..., transforms=)."
                )
