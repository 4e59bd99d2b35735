"""TrackedImage: a PIL image that knows which part of the original it shows."""

from __future__ import annotations

from typing import Any

from PIL import Image

from torchrelabel.transforms._loading import LoadingSample
from torchrelabel.view_box import ViewBox

__all__ = ["TrackedImage"]

_FLIPS = {
    Image.Transpose.FLIP_LEFT_RIGHT: (True, False),
    Image.Transpose.FLIP_TOP_BOTTOM: (False, True),
    Image.Transpose.ROTATE_180: (True, True),
}


class TrackedImage(Image.Image):
    """A PIL image whose ``crop``, ``resize`` and ``transpose`` tell the sample being loaded what they show.

    Any pipeline that works on PIL images works on this one, with the same pixels, and no function of another library
    is changed. What cannot be followed (``transform``, ``rotate`` by an odd angle, a quarter turn, whatever makes
    a new image) returns a plain ``PIL.Image.Image``, and tracking ends there.

    Attributes:
        view_box: The part of the original that this image shows.
        sample: Where the views are written down.
    """

    view_box: ViewBox
    sample: LoadingSample

    @classmethod
    def of(cls, image: Image.Image, sample: LoadingSample) -> TrackedImage:
        """Begin to track an image, which is left as it is."""
        tracked = cls()
        # A plain image shares its pixels, marked read-only so that whoever writes into them makes a copy first. The
        # subclasses that PIL opens files with hold open files and decoders besides: they are copied.
        plain = image if type(image) is Image.Image else image.copy()
        tracked.__dict__.update(plain.__dict__)
        tracked.readonly = 1
        tracked.view_box = sample.view_box
        tracked.sample = sample
        sample.image = tracked
        return tracked

    def _showing(self, image: Image.Image, view_box: ViewBox, *, crop: bool = False) -> Image.Image:
        if not isinstance(image, TrackedImage):
            image.__class__ = TrackedImage
        assert isinstance(image, TrackedImage)
        image.view_box = view_box
        image.sample = self.sample
        self.sample.follow(self.view_box, view_box, image, crop=crop)
        return image

    def copy(self) -> Image.Image:
        """A copy that shows the same."""
        image = super().copy()
        image.__class__ = TrackedImage
        assert isinstance(image, TrackedImage)
        image.view_box, image.sample = self.view_box, self.sample
        return image

    def convert(self, *args: Any, **kwargs: Any) -> Image.Image:
        """The same view in another mode."""
        image = super().convert(*args, **kwargs)
        if type(image) is Image.Image:
            image.__class__ = TrackedImage
        assert isinstance(image, TrackedImage)
        image.view_box, image.sample = self.view_box, self.sample
        return image

    def crop(self, box: tuple[float, float, float, float] | None = None) -> Image.Image:
        """The part within a box of pixels, (left, upper, right, lower); it may reach past the image."""
        image = super().crop(box)
        if box is None:
            return self._showing(image, self.view_box, crop=True)
        left, upper, right, lower = (round(end) for end in box)
        if image.width == 0 or image.height == 0:
            return image  # nothing to see, and a pipeline that makes such an image fails by itself
        view_box = self.view_box.crop(left / self.width, upper / self.height, right / self.width, lower / self.height)
        return self._showing(image, view_box, crop=True)

    def resize(
        self,
        size: Any,
        resample: Any = None,
        box: tuple[float, float, float, float] | None = None,
        reducing_gap: float | None = None,
    ) -> Image.Image:
        """The image, or the part within a box of pixels, at another size."""
        image = super().resize(size, resample, box, reducing_gap)
        view_box = self.view_box
        if box is not None:
            left, upper, right, lower = box
            view_box = view_box.crop(left / self.width, upper / self.height, right / self.width, lower / self.height)
        return self._showing(image, view_box, crop=box is not None)

    def transpose(self, method: Any) -> Image.Image:
        """A flip or a half turn is followed; a quarter turn exchanges the axes and ends the tracking."""
        image = super().transpose(method)
        if method not in _FLIPS:
            return image
        flip_x, flip_y = _FLIPS[method]
        view_box = self.view_box.flip_x() if flip_x else self.view_box
        return self._showing(image, view_box.flip_y() if flip_y else view_box)

    def __reduce__(self) -> Any:
        # The sample being loaded stays in its process: a pickled image is a plain one.
        plain = Image.Image()
        plain.__dict__.update({k: v for k, v in self.__dict__.items() if k not in ("view_box", "sample")})
        return _restore, (plain.__getstate__(),)


def _restore(state: Any) -> Image.Image:
    image = Image.Image()
    image.__setstate__(state)
    return image
