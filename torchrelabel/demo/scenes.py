"""Scenes: one large handwritten digit among small ones on a textured background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchrelabel.demo.digits import Digits

SIDES = (64, 96)
LARGE = (0.36, 0.46)
SMALL = (0.18, 0.26)
GAP = 2


@dataclass(frozen=True)
class PlacedDigit:
    """One digit of a scene.

    Attributes:
        digit: 0 to 9.
        box: Where it is, xyxy in pixels.
        source: Its index in scikit-learn's ``load_digits``.
    """

    digit: int
    box: tuple[int, int, int, int]
    source: int


@dataclass(frozen=True)
class Scene:
    """An image with what it shows; the first digit is the large one, and no digit is shown twice.

    Attributes:
        image: RGB pixels, ``[H, W, 3]`` uint8.
        digits: The digits present, the large one first.
    """

    image: NDArray[np.uint8]
    digits: tuple[PlacedDigit, ...]


def draw_scene(
    digits: Digits,
    seed: tuple[int, ...],
    large_digit: int,
    *,
    small: tuple[int, int] = (1, 3),
    large: tuple[float, float] = LARGE,
    other: tuple[float, float] = SMALL,
) -> Scene:
    """Draw one scene; the same seed gives the same pixels.

    Args:
        digits: What to draw from.
        seed: Seed of this one scene, for example ``(seed of the folder, index)``.
        large_digit: Which digit is the large one, 0 to 9.
        small: Fewest and most small digits beside the large one.
        large: Shortest and longest side of the large digit, as a share of the scene's shorter side.
        other: The same for the small digits.

    Returns:
        A scene of 64 to 96 px a side.
    """
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(SIDES[0], SIDES[1] + 1, size=2))
    count = 1 + int(rng.integers(small[0], small[1] + 1))
    boxes = _place(rng, height, width, [large] + [other] * (count - 1))
    others = rng.permutation([digit for digit in range(10) if digit != large_digit])
    pixels = _background(rng, height, width)
    placed = []
    for digit, box in zip([large_digit, *others[: count - 1].tolist()], boxes, strict=True):
        index = int(rng.choice(np.flatnonzero(digits.labels == digit)))
        _draw(rng, pixels, digits.ink[index], box)
        placed.append(PlacedDigit(digit, box, int(digits.sources[index])))
    return Scene(pixels.clip(0, 255).astype(np.uint8), tuple(placed))


def wrong_labels(count: int, share: float, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Choose which scenes get a wrong label: exactly ``share`` of them, rounded, anywhere in the folder.

    Returns:
        True where the label shall be wrong, ``[count]``.
    """
    chosen = np.zeros(count, dtype=bool)
    chosen[rng.permutation(count)[: round(share * count)]] = True
    return chosen


def _place(
    rng: np.random.Generator, height: int, width: int, sides: list[tuple[float, float]]
) -> list[tuple[int, int, int, int]]:
    """Find a box for each digit, in the order of their ``sides``, such that they keep clear of each other."""
    while True:
        boxes: list[tuple[int, int, int, int]] = []
        for shortest_longest in sides:
            side = round(float(rng.uniform(*shortest_longest)) * min(height, width))
            for _ in range(20):
                x, y = int(rng.integers(0, width - side + 1)), int(rng.integers(0, height - side + 1))
                box = (x, y, x + side, y + side)
                if all(_apart(box, other) for other in boxes):
                    boxes.append(box)
                    break
        if len(boxes) == len(sides):
            return boxes


def _apart(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[2] + GAP <= b[0] or b[2] + GAP <= a[0] or a[3] + GAP <= b[1] or b[3] + GAP <= a[1]


def _background(rng: np.random.Generator, height: int, width: int) -> NDArray[np.float64]:
    """Paint coloured blotches, stripes and grain, ``[H, W, 3]`` around 90."""
    colour = rng.uniform(50, 130, size=3)
    blotches = _upscaled(rng.normal(size=(int(rng.integers(3, 8)), int(rng.integers(3, 8)))), height, width)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    y, x = np.mgrid[0:height, 0:width]
    stripes = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / period + rng.uniform(0, 2 * np.pi))
    tint = rng.uniform(0.5, 1.0, size=(2, 3))
    pattern = 10 * blotches[..., None] * tint[0] + rng.uniform(0, 9) * stripes[..., None] * tint[1]
    grain = rng.normal(scale=4, size=(height, width, 1))
    painted: NDArray[np.float64] = colour + pattern + grain
    return painted


def _draw(
    rng: np.random.Generator, pixels: NDArray[np.float64], ink: NDArray[np.float64], box: tuple[int, int, int, int]
) -> None:
    """Draw one digit into ``pixels``, in a lighter colour than what is under it."""
    x1, y1, x2, y2 = box
    alpha = _upscaled(ink, y2 - y1, x2 - x1).clip(0, 1)[..., None]
    under = pixels[y1:y2, x1:x2]
    ground = under.mean(axis=(0, 1))
    colour = ground + rng.uniform(65, 105) + rng.uniform(-25, 25, size=3)
    pixels[y1:y2, x1:x2] = alpha * colour + (1 - alpha) * under


def _upscaled(values: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    resized = Image.fromarray(values.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(resized, dtype=np.float64)
