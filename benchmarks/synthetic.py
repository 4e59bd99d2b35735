"""Label maps like an annotator's, as many as ImageNet has images, and the keys of ImageNet's training set.

Each map is of an image with three to five objects on a smooth background. An object lifts twelve to eighteen classes
that are confusable with it, by less the less likely they are, where a smooth field says that it is; the background does
so weakly with fourteen classes. On each logit lies noise. The rest of the classes are a floor that only the residual
knows. With 15 x 15 cells and the best 5 of 1000 classes, a map holds about 45 to 75 distinct classes.

    python -m benchmarks.synthetic  # how many classes they hold
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.store import interpolation

IMAGES = 1_281_167  # ImageNet's training set
FOLDERS = 1000

_FLOOR = -2.0
_NOISE = 0.9


class SyntheticMap(NamedTuple):
    """What `LabelStoreWriter.put` takes: scores and classes ``[K, h, w]`` and residual ``[h, w]``."""

    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    residual: NDArray[np.float32]


def pool(
    count: int, *, rows: int = 15, columns: int = 15, top_k: int = 5, num_classes: int = 1000
) -> list[SyntheticMap]:
    """So many different maps, the same at every call; records in turn are made of these."""
    rng = np.random.default_rng(0)
    return [_one(rng, rows, columns, top_k, num_classes) for _ in range(count)]


def keys(count: int = IMAGES) -> list[str]:
    """Keys in sorted order, as ImageNet's files are called, evenly in a thousand folders."""
    return [
        f"n{folder:08d}/n{folder:08d}_{place:07d}.JPEG"
        for folder in range(FOLDERS)
        for place in range(count * folder // FOLDERS, count * (folder + 1) // FOLDERS)
    ]


def _one(rng: np.random.Generator, rows: int, columns: int, top_k: int, num_classes: int) -> SyntheticMap:
    lifts = [np.linspace(9, 5, rng.integers(12, 19)) for _ in range(rng.integers(3, 6))] + [np.linspace(6, 5, 14)]
    classes = rng.choice(num_classes, sum(map(len, lifts)), replace=False)
    logits = rng.normal(0, _NOISE, (len(classes), rows, columns))
    start = 0
    for place, lift in enumerate(lifts):
        part = slice(start, start + len(lift))
        presence = 1.0 if place + 1 == len(lifts) else np.clip(_smooth(rng, 1, rows, columns) + 0.5, 0, 1.5)
        logits[part] += lift[:, None, None] * presence + 1.6 * _smooth(rng, len(lift), rows, columns)
        start = part.stop
    order = np.argsort(-logits, axis=0)
    ordered = np.take_along_axis(logits, order, axis=0)
    floor = _FLOOR + np.log(num_classes - len(classes))
    residual = np.logaddexp(np.logaddexp.reduce(ordered[top_k:], axis=0), floor)
    return SyntheticMap(
        ordered[:top_k].astype(np.float32), classes[order[:top_k]].astype(np.int32), residual.astype(np.float32)
    )


def _smooth(rng: np.random.Generator, count: int, rows: int, columns: int) -> NDArray[np.float64]:
    """Random fields ``[count, rows, columns]`` with about three hills and valleys each way."""
    down, across = (interpolation(length) for length in (rows, columns))
    return down @ rng.normal(size=(count, 4, 4)) @ across.T


if __name__ == "__main__":
    counts = np.array([len(np.unique(each.classes)) for each in pool(500)])
    print(f"distinct classes a map: median {np.median(counts):.0f}, 90 % of maps {np.percentile(counts, [5, 95])}")
