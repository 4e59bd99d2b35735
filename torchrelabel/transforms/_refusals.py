"""Torchvision functionals that a view box cannot follow raise, by name, when they meet a label map."""

from __future__ import annotations

from typing import Any, NoReturn

from torchvision.transforms.v2 import functional as F

from torchrelabel.errors import UntrackedTransformError
from torchrelabel.label_map import LabelMap

# functional -> (what it does, the transforms that call it)
REFUSED = {
    "rotate": ("rotates the image", "RandomRotation"),
    "affine": ("shears, rotates or shifts the image", "RandomAffine"),
    "perspective": ("tilts the image", "RandomPerspective"),
    "elastic": ("bends the image", "ElasticTransform"),
}


def refusal(functional: str) -> str:
    """Why a functional cannot take a label map, and what to do instead."""
    what, transform = REFUSED[functional]
    return (
        f"{functional} (v2.{transform}) {what}, and the view box of a LabelMap is axis-aligned, so the label would no "
        f"longer match what is seen. Put PoolLabelMap() before it to keep the label of the crop, or leave it out."
    )


def _refuse(functional: str) -> None:
    @F.register_kernel(functional, LabelMap)
    def refuse_label_map(label_map: LabelMap, *_: Any, **__: Any) -> NoReturn:
        raise UntrackedTransformError(refusal(functional))


for _functional in REFUSED:
    _refuse(_functional)
