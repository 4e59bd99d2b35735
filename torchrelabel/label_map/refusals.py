"""Torchvision functionals that a view cannot follow raise, by name, when they meet a label map."""

from __future__ import annotations

from functools import partial
from typing import Any, NoReturn

from torchvision.transforms.v2 import functional as F

from torchrelabel.errors import UntrackedTransformError
from torchrelabel.label_map.batch import MovingBatch
from torchrelabel.label_map.map import LabelMap

# functional -> (what it does, the transforms that call it)
REFUSED = {
    "perspective": ("tilts the image", "RandomPerspective"),
    "elastic": ("bends the image", "ElasticTransform"),
}


def refusal(functional: str) -> str:
    """Why a functional cannot take a label map, and what to do instead."""
    what, transform = REFUSED[functional]
    return (
        f"{functional} (v2.{transform}) {what}, and the view of a LabelMap is an affine map, so the label would no "
        f"longer match what is seen. Put PoolLabelMap() before it to keep the label of the crop, or leave it out."
    )


def refuse(functional: str, *_: Any, **__: Any) -> NoReturn:
    """Raise in place of a kernel.

    Raises:
        UntrackedTransformError: Always.
    """
    raise UntrackedTransformError(refusal(functional))


for _functional in REFUSED:
    for _kind in (LabelMap, MovingBatch):
        F.register_kernel(_functional, _kind)(partial(refuse, _functional))
