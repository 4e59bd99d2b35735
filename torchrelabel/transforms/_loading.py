"""LoadingSample: what is known of the view of the sample that a LabelMapDataset loads now."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar, Token
from typing import Any

import numpy as np
import PIL.Image
import torch
from torch import Tensor
from torch.nn import functional as nn_functional
from torchvision.transforms.v2 import functional as F

from torchrelabel.errors import CropNotSeen
from torchrelabel.label_map import LabelMap
from torchrelabel.view_box import ViewBox

__all__ = ["LoadingSample", "loading_sample"]

# Worker threads of one process load different samples: each sees its own.
_current: ContextVar[LoadingSample | None] = ContextVar("torchrelabel_loading_sample", default=None)


def loading_sample() -> LoadingSample | None:
    """The sample that a LabelMapDataset loads now in this thread, None outside of one."""
    return _current.get()


class LoadingSample:
    """The view of one sample while its pipeline runs, told by a TrackedImage or by RandomResizedCropWithLabelMap.

    A context manager: within it, :func:`loading_sample` gives this object.

    Attributes:
        view_box: The latest view known.
        image: The latest image known to show that view; its size and orientation are what later steps are held to.
        cropped: Whether a crop was seen.
        branched: Whether two views were taken of one image, so that nobody can tell which one was kept.
    """

    def __init__(self) -> None:
        self.view_box = ViewBox()
        self.image: Any = None
        self.cropped = False
        self.branched = False
        self._token: Token[LoadingSample | None] | None = None

    def __enter__(self) -> LoadingSample:
        self._token = _current.set(self)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        _current.reset(self._token)

    def follow(self, parent: ViewBox, view_box: ViewBox, image: Any, *, crop: bool) -> None:
        """Take note that ``image``, made from one that showed ``parent``, shows ``view_box``."""
        if parent != self.view_box:
            self.branched = True
        self.view_box = view_box
        self.image = image
        self.cropped = self.cropped or crop

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
        self.check_unmoved(image, "RandomResizedCropWithLabelMap")
        canvas = F.get_size(image)
        # A map of one cell with the view known so far rides along, and comes back with the crop's.
        probe = LabelMap(
            torch.zeros(1, 1, 1),
            torch.zeros(1, 1, 1, dtype=torch.long),
            num_classes=1,
            canvas_size=canvas,
            view_box=self.view_box,
        )
        cropped, probe = crop(image, probe)
        self.follow(self.view_box, probe.view_box, cropped, crop=True)
        return cropped

    def check_size(self, image: Any, by: str) -> None:
        """Raise if an image has another size than the one last seen: it was cropped or resized unseen."""
        if self.image is None or not isinstance(image, (Tensor, PIL.Image.Image)):
            return
        was, now = F.get_size(self.image), F.get_size(image)
        if was != now:
            raise CropNotSeen(
                f"{by} got an image of {now[0]} x {now[1]} pixels (H x W), and the one last seen had {was[0]} x "
                f"{was[1]}: it was cropped or resized in a way that could not be followed, so the label is unknown. "
                f"Crop and resize while it is a PIL image, before it becomes a tensor and before steps that make a new "
                f"image (ColorJitter); or pass a v2 pipeline as LabelMapDataset(..., transforms=)."
            )

    def check_unmoved(self, image: Any, by: str) -> None:
        """Raise if an image is not the one last seen but for its colours: other in size, or flipped."""
        self.check_size(image, by)
        if self.image is not None and isinstance(image, (Tensor, PIL.Image.Image)) and _flipped(self.image, image):
            raise CropNotSeen(
                f"{by} got an image that was flipped in a way that could not be followed, so the place of the crop is "
                f"unknown. Flip while it is a PIL image, or after the crop; or pass a v2 pipeline as "
                f"LabelMapDataset(..., transforms=)."
            )


def _flipped(reference: Any, image: Any) -> bool:
    """Whether an image looks more like a mirror image of the reference than like the reference itself.

    Colours may differ (jitter, normalisation, inversion), hence the correlation, without its sign, of thumbnails.
    """
    before, after = _thumbnail(reference), _thumbnail(image)

    def likeness(candidate: Any) -> float:
        norm = float(np.linalg.norm(candidate) * np.linalg.norm(after))
        return abs(float((candidate * after).sum())) / norm if norm > 0 else 0.0

    mirrored = max(likeness(np.flip(before, axes)) for axes in ((0,), (1,), (0, 1)))
    return mirrored > likeness(before) + 0.02


def _thumbnail(image: Any) -> Any:
    """A 16 x 16 picture in grey, centred on zero."""
    if isinstance(image, PIL.Image.Image):
        # Called on the base class, so that a TrackedImage takes no note of it.
        grey = PIL.Image.Image.resize(image, (16, 16), PIL.Image.Resampling.BOX).convert("L")
        pixels = np.asarray(grey, dtype=np.float32)
    else:
        plain = image.as_subclass(Tensor).float()
        grey = plain.reshape(-1, 1, *plain.shape[-2:]).mean(0, keepdim=True)
        pixels = nn_functional.adaptive_avg_pool2d(grey, 16)[0, 0].numpy()
    return pixels - pixels.mean()
