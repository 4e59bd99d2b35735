"""The few errors that a caller may want to catch.

Every error takes its message as the only argument, because a DataLoader rebuilds an error that a worker raised as
``type(error)(message)``.
"""

__all__ = [
    "CropNotSeen",
    "DamagedRecord",
    "MissingLabelMap",
    "SettingsDiffer",
    "StoreError",
    "StoreInUse",
    "TorchRelabelError",
    "UnsupportedModel",
    "UntrackedTransformError",
]


class TorchRelabelError(Exception):
    """Base of the errors that torchrelabel raises on purpose; wrong arguments are ``TypeError`` or ``ValueError``."""


class StoreError(TorchRelabelError):
    """A label store cannot be opened, read or written: not a store, another version, damaged, or no space left."""


class DamagedRecord(StoreError):
    """One record of a store does not match its checksum or its own description."""


class StoreInUse(StoreError):
    """Another process writes to the store."""


class SettingsDiffer(StoreError):
    """A store exists already, and was begun with other settings than the ones given now."""


class MissingLabelMap(TorchRelabelError, KeyError):
    """A store holds no label map for an image."""

    # KeyError shows the repr of its argument, which turns a message of two lines into one with a literal "\\n".
    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class UntrackedTransformError(TorchRelabelError, TypeError):
    """A transform moves pixels in a way that a view box, which is axis-aligned, cannot follow."""


class CropNotSeen(TorchRelabelError):
    """No crop, or no single crop, was seen while a sample was transformed, so its label is unknown."""


class UnsupportedModel(TorchRelabelError):
    """A model cannot serve as annotator, since its features are no grid of cells that its head can classify."""
