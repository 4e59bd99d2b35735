"""Transforms that keep a label map and its image together."""

from torchrelabel.transforms.check import Finding as Finding
from torchrelabel.transforms.check import check_pipeline as check_pipeline
from torchrelabel.transforms.crop import RandomResizedCropWithLabelMap as RandomResizedCropWithLabelMap
from torchrelabel.transforms.mix import CutMixWithLabelMap as CutMixWithLabelMap
from torchrelabel.transforms.mix import MixUpWithLabelMap as MixUpWithLabelMap
from torchrelabel.transforms.pool import PoolLabelMap as PoolLabelMap
