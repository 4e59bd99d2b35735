"""How versions 1 and 2 of the format kept the scores, classes and residual of a map; they are read, not written."""

from __future__ import annotations

import struct
from typing import Protocol

import numpy as np

from torchrelabel.store.codecs import Classes, Scores, Shape, class_type_of, inflate

_COUNT = struct.Struct("<I")
_RANGE = struct.Struct("<2f")
_STEPS = np.arange(256, dtype=np.float64)


class Decoder(Protocol):
    """Turns the payload of a record into a label map, as `torchrelabel.store.codecs.Codec` does."""

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """Fresh, writable, C-contiguous arrays."""


class Float16:
    """Exact to half precision.

    ====================  =============================================
    ``K*h*w`` float16     scores, plane after plane
    ``h*w`` float16       residual, if the header has one
    the rest              classes, see `decode_classes`
    ====================  =============================================
    """

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `torchrelabel.store.codecs.Codec.decode`."""
        top_k, rows, columns, _, has_residual = shape
        values = top_k * rows * columns
        end = 2 * (values + rows * columns) if has_residual else 2 * values
        if len(payload) < end:
            raise ValueError(f"the payload has {len(payload)} bytes, and its scores alone need {end}")
        numbers = np.frombuffer(payload, "<f2", end // 2).astype(np.float32)
        scores = numbers[:values].reshape(top_k, rows, columns)
        residual = numbers[values:].reshape(rows, columns) if has_residual else None
        return scores, decode_classes(shape, payload[end:]), residual


class UInt8:
    """256 steps between the smallest and the largest value of each map.

    ====================  =============================================
    2 float32             smallest and largest score
    2 float32             smallest and largest residual, if there is one
    ``K*h*w`` bytes       scores, plane after plane
    ``h*w`` bytes         residual, if there is one
    the rest              classes, see `decode_classes`
    ====================  =============================================

    A byte ``q`` stands for ``float32(lo + q * ((hi - lo) / 255))``, calculated in double precision.
    """

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `torchrelabel.store.codecs.Codec.decode`."""
        top_k, rows, columns, _, has_residual = shape
        values = top_k * rows * columns
        start = 16 if has_residual else 8
        middle = start + values
        end = middle + rows * columns if has_residual else middle
        if len(payload) < end:
            raise ValueError(f"the payload has {len(payload)} bytes, and its scores alone need {end}")
        steps = np.frombuffer(payload, np.uint8, end)
        scores = _levels(payload, 0).take(steps[start:middle]).reshape(top_k, rows, columns)
        residual = _levels(payload, 8).take(steps[middle:]).reshape(rows, columns) if has_residual else None
        return scores, decode_classes(shape, payload[end:]), residual


def decode_classes(shape: Shape, payload: memoryview) -> Classes:
    """Read the classes of a map, ``[K, h, w]``: a palette, then deflated indices into it, cell after cell.

    Raises:
        ValueError: If the bytes do not describe ``K*h*w`` classes below ``C``.
    """
    top_k, rows, columns, num_classes, _ = shape
    if len(payload) < 4:
        raise ValueError(f"the palette's length needs 4 bytes, and {len(payload)} are left")
    (count,) = _COUNT.unpack_from(payload)
    class_type = class_type_of(num_classes)
    end = 4 + count * class_type.itemsize
    if not 1 <= count <= top_k * rows * columns or len(payload) < end:
        raise ValueError(f"a palette of {count} classes does not fit {top_k} x {rows} x {columns} classes")
    palette = np.frombuffer(payload, class_type, count, 4)
    if int(palette.max()) >= num_classes:
        raise ValueError(f"the palette holds class {int(palette.max())} of {num_classes}")
    index_type = _index_type(count)
    size = top_k * rows * columns * index_type.itemsize
    indices = (
        np.frombuffer(inflate("the class indices", payload[end:], size), index_type).reshape(rows * columns, top_k).T
    )
    try:
        classes = palette.astype(np.int32).take(indices)
    except IndexError:
        raise ValueError(f"class index {int(indices.max())} reaches past a palette of {count} classes") from None
    return classes.reshape(top_k, rows, columns)


def _levels(payload: memoryview, offset: int) -> Scores:
    low, high = _RANGE.unpack_from(payload, offset)
    # not (a <= b) is also true where a bound is NaN; an infinite one would make every level NaN or infinite.
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"a range runs from its smaller to its larger finite end, got {low:g} to {high:g}")
    levels: Scores = (_STEPS * ((high - low) / 255) + low).astype(np.float32)
    return levels


def _index_type(count: int) -> np.dtype[np.unsignedinteger]:
    return np.dtype("u1" if count <= 2**8 else "<u2" if count <= 2**16 else "<u4")


OLD_CODECS: dict[str, Decoder] = {"float16": Float16(), "uint8": UInt8()}
