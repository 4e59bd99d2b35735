"""Label maps on disk: NumPy arrays in LMDB files, read without torch."""

from torchrelabel.store.header import StoreHeader as StoreHeader
from torchrelabel.store.layout import shard_of as shard_of
from torchrelabel.store.reader import LabelStore as LabelStore
from torchrelabel.store.record import LabelRecord as LabelRecord
from torchrelabel.store.writer import LabelStoreWriter as LabelStoreWriter
from torchrelabel.store.writer import write_calibration as write_calibration
