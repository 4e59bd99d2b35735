"""TrackedImage: a PIL image that knows which part of the original it shows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from PIL import Image

from torchrelabel.errors import CropNotSeen
from torchrelabel.transforms._loading import WAYS_OUT, LoadingSample, View, same_box
from torchrelabel.view_box import ViewBox

__all__ = ["TrackedImage"]


class TrackedImage(Image.Image):
    """A PIL image whose ``crop``, ``resize`` and ``transpose`` tell the sample being loaded what they show.

    Any pipeline that works on PIL images works on this one, with the same pixels, and no function of another library
    is changed. What cannot be followed (``rotate`` by an odd angle, a quarter turn, ``transform`` but for a plain
    extent, whatever makes a new image) returns a plain ``PIL.Image.Image``, and tracking ends there.

    Attributes:
        view: The part of the original that this image shows.
        sample: Where the views are written down.
        shown_size: Its size (W, H) then; another one means that somebody has exchanged its pixels, in place.
    """

    view: View
    sample: LoadingSample
    shown_size: tuple[int, int]

    @classmethod
    def of(cls, image: Image.Image, sample: LoadingSample) -> TrackedImage:
        """Begin to track an image, which is left as it is; one that was tracked before still shows what it showed."""
        tracked = cls()
        view = image.view if isinstance(image, cls) else sample.view
        image = image.plain() if isinstance(image, cls) else image
        # A plain image shares its pixels, until somebody writes into them (see load). The subclasses that PIL opens
        # files with hold open files and decoders besides: their pixels are copied, and what they tell of the file.
        plain = image if type(image) is Image.Image else image.copy()
        if plain is not image:
            tracked.__dict__.update({k: v for k, v in image.__dict__.items() if k[0] != "_" and k not in _OF_THE_FILE})
            tracked.format = image.format
        tracked.__dict__.update(plain.__dict__)
        tracked.info = dict(plain.info)
        tracked.palette = plain.palette and plain.palette.copy()
        tracked.readonly = 1
        tracked.view, tracked.sample, tracked.shown_size = view, sample, plain.size
        sample.view, sample.image = view, tracked
        return tracked

    @property
    def view_box(self) -> ViewBox:
        """The part of the original that this image shows."""
        return self.view.box

    def plain(self) -> Image.Image:
        """The same image, which no longer tells anything; it shares the pixels."""
        plain = Image.Image.__new__(Image.Image)
        plain.__dict__.update(self.__dict__)
        del plain.__dict__["view"], plain.__dict__["sample"], plain.__dict__["shown_size"]
        return plain

    def load(self) -> Any:
        """Access to the pixels. Whoever asks may write into them, so they are no longer shared from here on."""
        if self.readonly:
            self.im = self.im.copy()
            self.readonly = 0
        return super().load()

    # Each operation runs on the plain image: PIL may build it from others (RGBA is resized as RGBa), which are nobody's
    # view.
    def copy(self) -> Image.Image:
        """A copy that shows the same."""
        return self._tracked(self.plain().copy(), self.view)

    def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
        """The same view in another mode."""
        return self._tracked(self.plain().convert(*args, **kwargs), self.view)

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """The part within a box of pixels, (left, upper, right, lower); it may reach past the image."""
        if box is None:
            return self.copy()
        image = self.plain().crop(box)
        if 0 in image.size:
            return image  # nothing to see, and a pipeline that makes such an image fails by itself
        return self._seen(image, partial(_of_whole_pixels, self.size, tuple(box)), crop=True)

    def resize(
        self,
        size: Any,
        resample: Any = None,
        box: tuple[float, float, float, float] | None = None,
        reducing_gap: float | None = None,
    ) -> Image.Image:
        """The image, or the part within a box of pixels, at another size."""
        image = self.plain().resize(size, resample, box, reducing_gap)
        if box is None:
            return self._seen(image, same_box)
        return self._seen(image, partial(_of_pixels, self.size, tuple(box)), crop=True)

    def thumbnail(self, *args: Any, **kwargs: Any) -> None:
        """Make this image itself smaller, in place."""
        plain = self.plain()
        plain.thumbnail(*args, **kwargs)
        as_before = self.size == self.shown_size
        self.__dict__.update(plain.__dict__)
        if as_before:
            self.shown_size = self.size
            self._seen(self, same_box)

    def transpose(self, method: Any) -> Image.Image:
        """A flip or a half turn is followed; a quarter turn exchanges the axes and ends the tracking."""
        image = self.plain().transpose(method)
        return self._seen(image, _FLIPS[method]) if method in _FLIPS else image

    def transform(self, size: Any, method: Any, data: Any = None, *args: Any, **kwargs: Any) -> Image.Image:
        """An extent is a crop, perhaps a flipped one, and followed; anything else ends the tracking."""
        image = self.plain().transform(size, method, data, *args, **kwargs)
        if isinstance(method, Image.ImageTransformHandler) and hasattr(method, "getdata"):
            method, data = method.getdata()
        if method != Image.Transform.EXTENT or data[0] == data[2] or data[1] == data[3]:
            return image
        return self._seen(image, partial(_of_pixels, self.size, tuple(data)), crop=True)

    @property
    def __array_interface__(self) -> Any:
        """The pixels, of which an array or a tensor is made."""
        if self.view is not self.sample.view:
            self.sample.branched = True  # a later view was taken of the sample, and this one is used all the same
        return self.plain().__array_interface__

    def _seen(self, image: Any, step: Callable[[ViewBox], ViewBox], *, crop: bool = False) -> Image.Image:
        if self.size != self.shown_size:
            return image
        return self._tracked(image, self.sample.follow(self.view, step, image, crop=crop))

    def _tracked(self, image: Any, view: View) -> TrackedImage:
        image.__class__ = TrackedImage
        image.view, image.sample, image.shown_size = view, self.sample, image.size
        tracked: TrackedImage = image
        return tracked

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The sample being loaded stays in its process: a pickled image is a plain one.
        return Image.Image, (), self.__getstate__()


def _of_pixels(size: tuple[int, int], box: Sequence[float], view_box: ViewBox) -> ViewBox:
    """What a box of pixels, xyxy, of an image of a size (W, H) shows, where the image shows ``view_box``."""
    (x1, y1, x2, y2), (width, height) = box, size
    box_in_canvas = (x1 / width, y1 / height, x2 / width, y2 / height)
    if view_box.hides(*box_in_canvas):
        raise CropNotSeen(
            f"A crop was cropped again, to {tuple(box)} of {width} x {height} pixels (W x H): it shows padding where "
            f"the image goes on, which a label map cannot follow. {WAYS_OUT}"
        )
    return view_box.crop(*box_in_canvas)


def _of_whole_pixels(size: tuple[int, int], box: Sequence[float], view_box: ViewBox) -> ViewBox:
    """The same for a box that PIL rounds."""
    return _of_pixels(size, [round(end) for end in box], view_box)


def _half_turn(view_box: ViewBox) -> ViewBox:
    return view_box.flip_x().flip_y()


_FLIPS = {
    Image.Transpose.FLIP_LEFT_RIGHT: ViewBox.flip_x,
    Image.Transpose.FLIP_TOP_BOTTOM: ViewBox.flip_y,
    Image.Transpose.ROTATE_180: _half_turn,
}

# Attributes of an image opened from a file that belong to the open file.
_OF_THE_FILE = ("fp", "tile", "im", "map", "decoderconfig", "decodermaxblock")
