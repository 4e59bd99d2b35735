"""Label maps for torchvision and timm: soft labels for exactly what a random crop shows."""

from typing import TYPE_CHECKING, Any

from torchrelabel._version import __version__ as __version__
from torchrelabel.errors import CropNotSeen as CropNotSeen
from torchrelabel.errors import DamagedRecord as DamagedRecord
from torchrelabel.errors import MissingLabelMap as MissingLabelMap
from torchrelabel.errors import SettingsDiffer as SettingsDiffer
from torchrelabel.errors import StoreError as StoreError
from torchrelabel.errors import StoreInUse as StoreInUse
from torchrelabel.errors import TorchRelabelError as TorchRelabelError
from torchrelabel.errors import UnsupportedModel as UnsupportedModel
from torchrelabel.errors import UntrackedTransformError as UntrackedTransformError

if TYPE_CHECKING:
    from torchrelabel.data.dataset import LabelMapDataset as LabelMapDataset
    from torchrelabel.label_map import LabelMap as LabelMap
    from torchrelabel.label_map import LabelMapBatch as LabelMapBatch
    from torchrelabel.pooling import LabelPooling as LabelPooling
    from torchrelabel.store import LabelStore as LabelStore
    from torchrelabel.store import LabelStoreWriter as LabelStoreWriter
    from torchrelabel.targets import hard as hard
    from torchrelabel.targets import mix_soft as mix_soft
    from torchrelabel.token_labels import TokenLabelLoss as TokenLabelLoss
    from torchrelabel.transforms import CutMixWithLabelMap as CutMixWithLabelMap
    from torchrelabel.transforms import MixUpWithLabelMap as MixUpWithLabelMap
    from torchrelabel.transforms import PoolLabelMap as PoolLabelMap
    from torchrelabel.transforms import RandomResizedCropWithLabelMap as RandomResizedCropWithLabelMap
    from torchrelabel.transforms import check_pipeline as check_pipeline
    from torchrelabel.view import ViewBox as ViewBox

# Public name -> the module that defines it, loaded when the name is first used: `torchrelabel info` needs no torch, and
# a training script needs neither timm nor lmdb before it opens a store.
_PUBLIC = {
    "CutMixWithLabelMap": "torchrelabel.transforms",
    "LabelMap": "torchrelabel.label_map",
    "LabelMapBatch": "torchrelabel.label_map",
    "LabelMapDataset": "torchrelabel.data.dataset",
    "LabelPooling": "torchrelabel.pooling",
    "LabelStore": "torchrelabel.store",
    "LabelStoreWriter": "torchrelabel.store",
    "MixUpWithLabelMap": "torchrelabel.transforms",
    "PoolLabelMap": "torchrelabel.transforms",
    "RandomResizedCropWithLabelMap": "torchrelabel.transforms",
    "TokenLabelLoss": "torchrelabel.token_labels",
    "ViewBox": "torchrelabel.view",
    "check_pipeline": "torchrelabel.transforms",
    "hard": "torchrelabel.targets",
    "mix_soft": "torchrelabel.targets",
}

__all__ = [
    "CropNotSeen",
    "CutMixWithLabelMap",
    "DamagedRecord",
    "LabelMap",
    "LabelMapBatch",
    "LabelMapDataset",
    "LabelPooling",
    "LabelStore",
    "LabelStoreWriter",
    "MissingLabelMap",
    "MixUpWithLabelMap",
    "PoolLabelMap",
    "RandomResizedCropWithLabelMap",
    "SettingsDiffer",
    "StoreError",
    "StoreInUse",
    "TokenLabelLoss",
    "TorchRelabelError",
    "UnsupportedModel",
    "UntrackedTransformError",
    "ViewBox",
    "__version__",
    "check_pipeline",
    "hard",
    "mix_soft",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'torchrelabel' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(_PUBLIC[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
