"""verify: every record of a store is read and held to the header, and its keys to a list of images."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from torchrelabel.errors import DamagedRecord
from torchrelabel.store.reader import LabelStore

__all__ = ["Verification", "verify"]


@dataclass
class Verification:
    """What was found in a store.

    Attributes:
        records: Label maps that could be read and are sound.
        damaged: Key -> what is wrong with its label map.
        failures: Key -> why the annotator could make no map of the image.
        grids: ``(h, w)`` -> how many maps have it.
        missing: Images that were asked for and have neither a map nor a failure, sorted.
        surplus: Maps of images that were not asked for, sorted.
        incomplete: Whether a writer never finished.
        miscounted: What the header says of the number of images, where that is wrong; otherwise empty.
    """

    records: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    grids: dict[tuple[int, int], int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    surplus: list[str] = field(default_factory=list)
    incomplete: bool = False
    miscounted: str = ""

    @property
    def sound(self) -> bool:
        """Whether every map can be relied on and none is missing. Images that failed are no fault of the store."""
        return not (self.damaged or self.missing or self.incomplete or self.miscounted)


def verify(
    store: LabelStore,
    images: Iterable[str] | None = None,
    *,
    progress: Callable[[Iterable[str]], Iterable[str]] = iter,
) -> Verification:
    """Read every label map of a store and report what is wrong.

    Args:
        store: Which store.
        images: The keys that it should hold, such as those of a folder. None to ask only whether it is sound.
        progress: Wraps the iteration over the keys, as ``tqdm`` does.

    Returns:
        The findings. Damage is reported, not raised.

    Raises:
        StoreError: If a file of the store cannot be read at all.
    """
    header = store.header
    found = Verification(failures=store.failures, incomplete=not header.complete)
    keys = set()
    for key in progress(store):
        keys.add(key)
        try:
            record = store[key]
        except DamagedRecord as error:
            found.damaged[key] = str(error)
            continue
        problem = _problem(record.scores, record.classes, record.residual, header.num_classes)
        if problem:
            found.damaged[key] = problem
            continue
        found.records += 1
        grid = (record.scores.shape[1], record.scores.shape[2])
        found.grids[grid] = found.grids.get(grid, 0) + 1
    count = header.dataset.get("count")
    if header.complete and isinstance(count, int) and len(keys) + len(found.failures) < count:
        found.miscounted = (
            f"the header speaks of {count} images, and there are {len(keys)} label maps and "
            f"{len(found.failures)} images that failed"
        )
    if images is not None:
        asked = set(images)
        found.missing = sorted(asked - keys - found.failures.keys())
        found.surplus = sorted(keys - asked)
    return found


def _problem(scores: np.ndarray, classes: np.ndarray, residual: np.ndarray | None, num_classes: int) -> str:
    if not np.isfinite(scores).all() or (residual is not None and not np.isfinite(residual).all()):
        return "a score is not finite"
    if classes.min() < 0 or classes.max() >= num_classes:
        return f"a class is not within 0 to {num_classes - 1}"
    return ""
