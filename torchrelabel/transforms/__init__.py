"""Transforms that keep a label map and its image together; importing this teaches torchvision's v2 about label maps."""

from typing import TYPE_CHECKING, Any

from torchrelabel.transforms import _kernels, _refusals  # noqa: F401 -- registers the kernels

if TYPE_CHECKING:
    from torchrelabel.transforms._check import Finding as Finding
    from torchrelabel.transforms._check import check_pipeline as check_pipeline
    from torchrelabel.transforms.crop import RandomResizedCropWithLabelMap as RandomResizedCropWithLabelMap
    from torchrelabel.transforms.mix import CutMixWithLabelMap as CutMixWithLabelMap
    from torchrelabel.transforms.mix import MixUpWithLabelMap as MixUpWithLabelMap
    from torchrelabel.transforms.pool import PoolLabelMap as PoolLabelMap

# Public name -> its module, loaded when the name is first used. label_map.py imports this package for the kernels, and
# pooling.py imports label_map.py: a transform that pools must not be asked for before pooling.py is through.
_PUBLIC = {
    "CutMixWithLabelMap": "mix",
    "Finding": "_check",
    "MixUpWithLabelMap": "mix",
    "PoolLabelMap": "pool",
    "RandomResizedCropWithLabelMap": "crop",
    "check_pipeline": "_check",
}

__all__ = [
    "CutMixWithLabelMap",
    "Finding",
    "MixUpWithLabelMap",
    "PoolLabelMap",
    "RandomResizedCropWithLabelMap",
    "check_pipeline",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torchrelabel.transforms' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"torchrelabel.transforms.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
