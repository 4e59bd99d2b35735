"""TrackedImage: a PIL image that knows what it shows of the original."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from torchrelabel.following.trace import Canvas, CropTrace
from torchrelabel.view import Matrix, View

__all__ = ["TrackedImage"]


class TrackedImage(Image.Image):
    """A PIL image whose ``crop``, ``resize``, ``transpose``, ``rotate`` and ``transform`` tell what they show.

    Any pipeline that works on PIL images works on this one, with the same pixels, and no function of another library
    is changed. What cannot be followed (a tilt, a bend, whatever makes a new image) returns a plain
    ``PIL.Image.Image``, and tracking ends there.

    Attributes:
        trace: Where views are noted.
        number: Of the view in the trace.
        shown_size: Its size (W, H) then; another one means that somebody has exchanged its pixels, in place.
    """

    trace: CropTrace
    number: int
    shown_size: tuple[int, int]

    @classmethod
    def of(cls, image: Image.Image, trace: CropTrace, number: int) -> TrackedImage:
        """Begin to track an image, which is left as it is, and which shows the view of a number."""
        tracked = cls()
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
        tracked.trace, tracked.number, tracked.shown_size = trace, number, plain.size
        return tracked

    @classmethod
    def made(cls, image: Image.Image, trace: CropTrace, number: int) -> TrackedImage:
        """Track an image that was just made, and is nobody else's."""
        if type(image) is not Image.Image:
            image = image.copy() if not isinstance(image, cls) else image.plain()
        image.__class__ = cls
        tracked: Any = image
        tracked.trace, tracked.number, tracked.shown_size = trace, number, image.size
        made: TrackedImage = tracked
        return made

    @property
    def view(self) -> View:
        """What this image shows of the original."""
        canvas = self.trace.canvas(self.number)
        assert canvas is not None
        return canvas.view_box

    @property
    def knows_its_view(self) -> bool:
        """Whether its pixels are still those of its view."""
        return self.size == self.shown_size

    def plain(self) -> Image.Image:
        """The same image, which no longer tells anything; it shares the pixels."""
        plain = Image.Image.__new__(Image.Image)
        plain.__dict__.update(self.__dict__)
        for name in ("trace", "number", "shown_size"):
            del plain.__dict__[name]
        return plain

    def load(self) -> Any:
        """Access to the pixels. Whoever asks may write into them, so they are no longer shared from here on."""
        if self.readonly:
            self.im = self.im.copy()
            self.readonly = 0
        return super().load()

    # Each operation runs on the plain image: PIL may build it from others (RGBA is resized as RGBa), which are views of
    # nothing.
    def copy(self) -> Image.Image:
        """A copy that shows the same."""
        return self._same(self.plain().copy())

    def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
        """The same view in another mode."""
        return self._same(self.plain().convert(*args, **kwargs))

    def point(self, *args: Any, **kwargs: Any) -> Image.Image:
        """The same view in other colours."""
        return self._same(self.plain().point(*args, **kwargs))

    def filter(self, *args: Any, **kwargs: Any) -> Image.Image:
        """The same view, blurred or sharpened."""
        return self._same(self.plain().filter(*args, **kwargs))

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """The part within a box of pixels, (left, upper, right, lower); it may reach past the image."""
        if box is None:
            return self.copy()
        image = self.plain().crop(box)
        if 0 in image.size:
            return image  # nothing to see, and a pipeline that makes such an image fails by itself
        return self._cropped(image, [round(end) for end in box])  # as PIL rounds them

    def resize(
        self,
        size: Any,
        resample: Any = None,
        box: tuple[float, float, float, float] | None = None,
        reducing_gap: float | None = None,
    ) -> Image.Image:
        """The image, or the part within a box of pixels, at another size."""
        image = self.plain().resize(size, resample, box, reducing_gap)
        return self._seen(image, _resized_to) if box is None else self._cropped(image, box)

    def thumbnail(self, *args: Any, **kwargs: Any) -> None:
        """Make this image itself smaller, in place."""
        plain = self.plain()
        plain.thumbnail(*args, **kwargs)
        known = self.knows_its_view
        self.__dict__.update(plain.__dict__)
        if known:
            self.shown_size = self.size
            self.number = self.trace.see(self.number, _resized_to, (self.height, self.width), crop=False)

    def transpose(self, method: Any) -> Image.Image:
        """A flip, or a turn by quarters."""
        return self._moved(self.plain().transpose(method), _TRANSPOSED[Image.Transpose(method)])

    def transform(self, size: Any, method: Any, data: Any = None, *args: Any, **kwargs: Any) -> Image.Image:
        """An extent is a crop, perhaps a flipped one; an affine map may turn and shear; else tracking ends."""
        image = self.plain().transform(size, method, data, *args, **kwargs)
        if isinstance(method, Image.ImageTransformHandler) and hasattr(method, "getdata"):
            method, data = method.getdata()
        (old_width, old_height), (width, height) = self.size, image.size
        if method == Image.Transform.EXTENT and data[0] != data[2] and data[1] != data[3]:
            return self._cropped(image, data)
        if method == Image.Transform.AFFINE and data[0] * data[4] != data[1] * data[3]:
            a, b, c, d, e, f = data[:6]
            to_this_canvas = (
                (a * width / old_width, b * height / old_width, c / old_width),
                (d * width / old_height, e * height / old_height, f / old_height),
            )
            return self._moved(image, to_this_canvas)
        return image

    # Image.rotate works by copy, transpose and transform of this image.

    @property
    def __array_interface__(self) -> Any:
        """The pixels, of which an array or a tensor is made."""
        if self.number != self.trace.number:
            self.trace.ambiguous = True  # a later view was taken of the sample, and this one is used all the same
        return self.plain().__array_interface__

    def _cropped(self, image: Image.Image, box: Sequence[float]) -> Image.Image:
        """An image that shows a box of pixels, xyxy, of this one."""
        return self._seen(image, _cropped_to, tuple(box), crop=True)

    def _moved(self, image: Image.Image, to_this_canvas: Matrix) -> Image.Image:
        return self._seen(image, _moved_to, to_this_canvas, crop=to_this_canvas not in _FLIPS)

    def _seen(self, image: Image.Image, move: Any, *args: Any, crop: bool = False) -> Image.Image:
        """An image made of this one that shows another view, or the same at another size."""
        if not self.knows_its_view:
            return image
        number = self.trace.see(self.number, move, (image.height, image.width), *args, crop=crop)
        return TrackedImage.made(image, self.trace, number)

    def _same(self, image: Image.Image) -> Image.Image:
        if not self.knows_its_view or image.size != self.size:
            return image
        return TrackedImage.made(image, self.trace, self.number)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The sample being loaded stays in its process: a pickled image is a plain one.
        return Image.Image, (), self.__getstate__()


def _resized_to(canvas: Canvas, size: tuple[int, int]) -> Canvas:
    return canvas.with_view(canvas.view_box, size)


def _cropped_to(canvas: Canvas, size: tuple[int, int], box: tuple[float, float, float, float]) -> Canvas:
    (height, width), (x1, y1, x2, y2) = canvas.canvas_size, box
    return canvas.with_view(canvas.view_box.crop(x1 / width, y1 / height, x2 / width, y2 / height), size)


def _moved_to(canvas: Canvas, size: tuple[int, int], to_this_canvas: Matrix) -> Canvas:
    return canvas.with_view(canvas.view_box.transform(to_this_canvas), size)


# What each point of the new canvas shows of the old one.
_TRANSPOSED: dict[Image.Transpose, Matrix] = {
    Image.Transpose.FLIP_LEFT_RIGHT: ((-1.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    Image.Transpose.FLIP_TOP_BOTTOM: ((1.0, 0.0, 0.0), (0.0, -1.0, 1.0)),
    Image.Transpose.ROTATE_180: ((-1.0, 0.0, 1.0), (0.0, -1.0, 1.0)),
    Image.Transpose.ROTATE_90: ((0.0, -1.0, 1.0), (1.0, 0.0, 0.0)),
    Image.Transpose.ROTATE_270: ((0.0, 1.0, 0.0), (-1.0, 0.0, 1.0)),
    Image.Transpose.TRANSPOSE: ((0.0, 1.0, 0.0), (1.0, 0.0, 0.0)),
    Image.Transpose.TRANSVERSE: ((0.0, -1.0, 1.0), (-1.0, 0.0, 1.0)),
}
_FLIPS = [
    _TRANSPOSED[turn]
    for turn in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM, Image.Transpose.ROTATE_180)
]

# Attributes of an image opened from a file that belong to the open file.
_OF_THE_FILE = ("fp", "tile", "im", "map", "decoderconfig", "decodermaxblock")
