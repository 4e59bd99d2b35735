"""One label map in a file of ``torch.save``, read without running anything that the file may hold."""

from __future__ import annotations

import io
import os
import stat
import warnings
import zipfile
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# A map of 5 classes in 600 x 600 cells. Read no more than this, whatever a file claims.
MAX_FILE_BYTES = 16 * 2**20

DTYPES = {"float16": torch.float16, "float32": torch.float32}

_ZIP = b"PK\x03\x04"
# What torch.save wrote before torch 1.6: its magic number, pickled.
_BEFORE_ZIP = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."

# Every whole number up to here is exact in half precision, and 2049 is the first that is not.
LARGEST_EXACT_HALF = 2048


class Decoded(NamedTuple):
    """A label map as its file has it.

    Attributes:
        scores: float32 ``[K, h, w]``, descending along ``K``.
        classes: int32 ``[K, h, w]``.
        sorted: Whether the scores had to be put in order.
        checked: Whether the file has a checksum, which is right. Those of torch before 1.6 have none.
    """

    scores: NDArray[np.float32]
    classes: NDArray[np.int32]
    sorted: bool
    checked: bool = True


def read_map(path: str | os.PathLike[str], *, dtype: str, num_classes: int, axes: str = "hw") -> Decoded:
    """Read the label map ``[2, K, h, w]`` of a file: scores at ``[0]``, class indices as floats at ``[1]``.

    Args:
        path: The file.
        dtype: ``"float16"`` or ``"float32"``, what its numbers must be.
        num_classes: ``C``.
        axes: ``"hw"`` if the last axis runs across the image, ``"wh"`` if it runs down.

    Raises:
        ValueError: If the file holds no such map, saying what it holds instead.
        OSError: If it cannot be read.
    """
    tensor, nbytes, checked = _load(path)
    if tensor.dtype != DTYPES[dtype]:
        raise ValueError(f"its numbers are {str(tensor.dtype).removeprefix('torch.')}, and this format has {dtype}")
    if tensor.dim() != 4 or tensor.shape[0] != 2 or 0 in tensor.shape:
        raise ValueError(f"a label map is [2, K, h, w], got {list(tensor.shape)}")
    # A stride of zero makes any number of cells of a few bytes; older torch does not hold a storage to its file.
    if tensor.numel() * tensor.element_size() > nbytes or tensor.untyped_storage().nbytes() > nbytes:
        raise ValueError(f"its shape {list(tensor.shape)} claims more numbers than the file holds")
    numbers = tensor.detach().numpy()
    if axes == "wh":
        numbers = numbers.transpose(0, 1, 3, 2)
    return _checked(numbers[0].astype(np.float32), numbers[1], num_classes)._replace(checked=checked)


def _load(path: str | os.PathLike[str]) -> tuple[Tensor, int, bool]:
    """The tensor of a file, how many bytes of numbers the file holds at most, and whether a checksum covers them."""
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise ValueError("it is not a regular file")
    with open(path, "rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes, which no label map is")
    nbytes = _check_container(content)
    try:
        with warnings.catch_warnings():  # of torch's own past
            warnings.simplefilter("ignore")
            loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can make torch raise nearly anything
        raise ValueError(f"torch.load refuses it ({type(error).__name__}: {_first_line(error)})") from None
    if not isinstance(loaded, Tensor):
        raise ValueError(f"it holds a {type(loaded).__name__}, and a label map is one tensor [2, K, h, w]")
    if loaded.layout != torch.strided or loaded.device.type != "cpu" or loaded.is_neg() or loaded.is_conj():
        raise ValueError(f"it holds no plain tensor, got {loaded.layout} on {loaded.device}")
    return loaded, nbytes, content.startswith(_ZIP)


def _check_container(content: bytes) -> int:
    """Refuse what torch.save does not write, before torch.load takes memory for it."""
    if content.startswith(_BEFORE_ZIP):
        return len(content)
    if not content.startswith(_ZIP):
        raise ValueError("torch.save did not write it" if content else "it is empty")
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            parts = {part.filename.partition("/")[2]: part for part in archive.infolist()}
            if any(part.compress_type != zipfile.ZIP_STORED for part in parts.values()):
                raise ValueError("its parts are compressed, which torch.save never does")
            if "constants.pkl" in parts:
                raise ValueError("it holds a program (TorchScript)")
            if "byteorder" in parts and archive.read(parts["byteorder"]) != b"little":
                raise ValueError("its numbers are not little-endian")
            for name, part in parts.items():
                # Reading a part checks its CRC, which torch.load does not: a flipped bit would be a wrong label.
                if name.startswith(("data.pkl", "data/")):
                    archive.read(part)
    except ValueError:
        raise
    except Exception as error:  # a damaged file can make zipfile, too, raise nearly anything
        raise ValueError(f"it is damaged or cut off ({_first_line(error)})") from None
    storages = [part.file_size for name, part in parts.items() if name.startswith("data/")]
    if len(storages) != 1:
        raise ValueError(f"it holds {len(storages)} tensors, and a label map is one")
    return storages[0]


def _checked(scores: NDArray[np.float32], indices: NDArray[np.floating], num_classes: int) -> Decoded:
    """Hold scores and class indices ``[K, h, w]`` to what a store takes; only their order is put right."""
    if not np.isfinite(scores).all():
        raise ValueError("a score is not a finite number")
    with np.errstate(invalid="ignore"):  # of a signalling NaN, which rounding would warn of
        wrong = indices[~np.isfinite(indices) | (indices != np.rint(indices))]
    if wrong.size:
        raise ValueError(f"class indices are whole numbers, got {wrong[0]:g}")
    low, high = float(indices.min()), float(indices.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"class indices are 0 to {num_classes - 1}, got {low if low < 0 else high:g}")
    classes = indices.astype(np.int32)
    rising = bool((scores[1:] > scores[:-1]).any())
    if rising:
        order = np.argsort(-scores, axis=0, kind="stable")
        scores, classes = np.take_along_axis(scores, order, 0), np.take_along_axis(classes, order, 0)
    by_class = np.sort(classes, axis=0)
    repeated = by_class[1:] == by_class[:-1]
    if repeated.any():
        raise ValueError(f"the classes of a cell are distinct, got class {by_class[1:][repeated][0]} twice in a cell")
    return Decoded(np.ascontiguousarray(scores), np.ascontiguousarray(classes), rising)


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    line = text.splitlines()[0] if text else "no reason given"
    return line if len(line) <= 200 else f"{line[:197]}..."
