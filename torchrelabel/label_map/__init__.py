"""Label maps; importing this teaches ``torchvision.transforms.v2`` about them.

A label map whose kernels nobody registered would pass every v2 transform unchanged, so there is none without them.
"""

from torchrelabel.label_map.batch import LabelMapBatch as LabelMapBatch
from torchrelabel.label_map.map import LabelMap as LabelMap

from torchrelabel.label_map import kernels as kernels  # isort: skip -- the kernels need the class
from torchrelabel.label_map import refusals as refusals  # isort: skip
