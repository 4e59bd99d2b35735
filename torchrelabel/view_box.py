"""ViewBox: which part of the annotated image the canvas shows now."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["ViewBox"]

# Crops of crops do not meet the border of the image to the last bit. A ten thousandth of a pixel of a large one.
_ROUNDING = 1e-8


@dataclass(frozen=True)
class ViewBox:
    """The part of the annotated image that the canvas shows, as fractions of the annotated image.

    ``(x1, y1)`` is what the top left corner of the canvas shows and ``(x2, y2)`` what its bottom right corner shows.
    A horizontal flip exchanges ``x1`` and ``x2`` (so ``x1 > x2``), and a vertical one ``y1`` and ``y2``. Where the
    image was padded, the box reaches past 0 or 1. A view box never changes: each method returns a new one.

    Example:
        >>> view_box = ViewBox().crop(0.5, 0.0, 1.0, 1.0).flip_x()  # the right half, mirrored
        >>> view_box
        ViewBox(x1=1.0, y1=0.0, x2=0.5, y2=1.0)
        >>> view_box.crop(0.0, 0.0, 0.5, 1.0)  # the left half of what is seen now
        ViewBox(x1=1.0, y1=0.0, x2=0.75, y2=1.0)

    Raises:
        ValueError: If a coordinate is not finite, or the box has no width or no height.
    """

    x1: float = 0.0
    y1: float = 0.0
    x2: float = 1.0
    y2: float = 1.0

    def __post_init__(self) -> None:
        # An infinite or missing coordinate makes this sum infinite or NaN: one test instead of four.
        if not math.isfinite(self.x1 + self.y1 + self.x2 + self.y2):
            raise ValueError(f"A view box needs four finite coordinates, got {tuple(self)}.")
        if self.x1 == self.x2 or self.y1 == self.y2:
            raise ValueError(f"A view box needs a width and a height, got (x1, y1, x2, y2) = {tuple(self)}.")

    def __iter__(self) -> Iterator[float]:
        return iter((self.x1, self.y1, self.x2, self.y2))

    def crop(self, x1: float, y1: float, x2: float, y2: float) -> ViewBox:
        """What is seen after the canvas is cropped to a box, given as fractions of the canvas.

        The box may reach past 0..1, as it does when a canvas is padded.
        """
        width, height = self.x2 - self.x1, self.y2 - self.y1
        return ViewBox(self.x1 + x1 * width, self.y1 + y1 * height, self.x1 + x2 * width, self.y1 + y2 * height)

    def hides(self, x1: float, y1: float, x2: float, y2: float) -> bool:
        """Whether a crop to a box would show padding where the image goes on.

        That is so where the box reaches past an edge of the canvas within the image, as when a crop is padded. What is
        seen then is no longer a box of the image.
        """
        ends = ((x1 < 0, self.x1), (y1 < 0, self.y1), (x2 > 1, self.x2), (y2 > 1, self.y2))
        return any(past and _ROUNDING < edge < 1 - _ROUNDING for past, edge in ends)

    def pad(self, left: float, top: float, right: float, bottom: float) -> ViewBox:
        """What is seen after the canvas grows on each side by a fraction of its width or height."""
        return self.crop(-left, -top, 1 + right, 1 + bottom)

    def flip_x(self) -> ViewBox:
        """What is seen after a horizontal flip."""
        return ViewBox(self.x2, self.y1, self.x1, self.y2)

    def flip_y(self) -> ViewBox:
        """What is seen after a vertical flip."""
        return ViewBox(self.x1, self.y2, self.x2, self.y1)

    def compose(self, inner: ViewBox) -> ViewBox:
        """What is seen when ``inner``, a view box in the frame of this view's canvas, is looked at through this one."""
        return self.crop(*inner)

    @property
    def flipped_x(self) -> bool:
        """Whether the canvas shows the image mirrored left to right."""
        return self.x1 > self.x2

    @property
    def flipped_y(self) -> bool:
        """Whether the canvas shows the image upside down."""
        return self.y1 > self.y2

    @property
    def area(self) -> float:
        """The share of the annotated image that the box covers, at most one unless the image was padded."""
        return abs((self.x2 - self.x1) * (self.y2 - self.y1))
