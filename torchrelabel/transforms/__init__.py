"""Transforms that keep a label map and its image together; importing this teaches torchvision's v2 about label maps."""

from torchrelabel.transforms import _kernels, _refusals  # noqa: F401 -- registers the kernels
from torchrelabel.transforms._check import Finding as Finding
from torchrelabel.transforms._check import check_pipeline as check_pipeline
from torchrelabel.transforms.crop import RandomResizedCropWithLabelMap as RandomResizedCropWithLabelMap
from torchrelabel.transforms.pool import PoolLabelMap as PoolLabelMap

__all__ = ["Finding", "PoolLabelMap", "RandomResizedCropWithLabelMap", "check_pipeline"]
