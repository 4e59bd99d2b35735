"""Codecs: how the scores, classes and residual of one label map become the payload of a record."""

from __future__ import annotations

import struct
import zlib
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Classes = NDArray[np.int32]
Buffer = memoryview | bytes

_COUNT = struct.Struct("<I")
_RANGE = struct.Struct("<2f")
_REST = struct.Struct("<f")
_LARGEST_FLOAT16 = 65504.0
_STEPS = np.arange(256, dtype=np.float64)
_IMAGE_STEPS = 63


class Shape(NamedTuple):
    """What a payload does not say itself: it follows from the header and from the front of the record."""

    top_k: int
    rows: int
    columns: int
    num_classes: int
    residual: bool

    @property
    def cells(self) -> int:
        """Number of cells, ``h * w``."""
        return self.rows * self.columns


class Codec(Protocol):
    """Turns one label map into bytes and back.

    A codec encodes only what the store has checked: ``scores [K, h, w]`` float32 and finite, ``classes [K, h, w]``
    int32 in ``0 .. C-1``, ``residual [h, w]`` float32 and finite, or None. What it decodes may come from anyone: it
    checks sizes before it takes memory, and raises ``ValueError`` where the bytes do not fit the shape.
    """

    def encode(self, shape: Shape, scores: Scores, classes: Classes, residual: Scores | None) -> bytes:
        """The payload of a record."""

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """Fresh, writable, C-contiguous arrays."""


class Float16:
    """Exact to half precision.

    ====================  =============================================
    ``K*h*w`` float16     scores, plane after plane
    ``h*w`` float16       residual, if the header has one
    the rest              classes, see `encode_classes`
    ====================  =============================================
    """

    def encode(self, shape: Shape, scores: Scores, classes: Classes, residual: Scores | None) -> bytes:
        """See `Codec.encode`."""
        parts = [_to_float16("scores", scores)]
        if residual is not None:
            parts.append(_to_float16("residual", residual))
        return b"".join([*parts, encode_classes(shape, classes)])

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `Codec.decode`."""
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
    the rest              classes, see `encode_classes`
    ====================  =============================================

    A byte ``q`` stands for ``float32(lo + q * ((hi - lo) / 255))``, calculated in double precision.
    """

    def encode(self, shape: Shape, scores: Scores, classes: Classes, residual: Scores | None) -> bytes:
        """See `Codec.encode`."""
        arrays = [scores] if residual is None else [scores, residual]
        quantized = [_quantize(array) for array in arrays]
        return b"".join(
            [*(span for span, _ in quantized), *(steps for _, steps in quantized), encode_classes(shape, classes)]
        )

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `Codec.decode`."""
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


def encode_classes(shape: Shape, classes: Classes) -> bytes:
    """Write the classes of a map as a palette and deflated indices into it.

    ======================  ==========================================================================
    uint32                  ``P``, the number of distinct classes
    ``P`` uint16 or uint32  the classes, ascending; uint32 where ``C`` is above 65536
    the rest                raw deflate of ``h*w*K`` indices, cell after cell; uint8 where ``P`` is at
                            most 256, uint16 where it is at most 65536, else uint32
    ======================  ==========================================================================

    Cell after cell is the order that deflates best, since neighbouring cells repeat whole lists of classes: 452 bytes a
    map against 502 plane after plane (`python benchmarks/store.py --orders`; level 6 gives the same bytes as 9).
    """
    palette, indices = np.unique(classes, return_inverse=True)
    by_cell = indices.reshape(shape.top_k, shape.cells).T
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(
        [
            _COUNT.pack(len(palette)),
            palette.astype(_class_type(shape.num_classes)).tobytes(),
            deflate.compress(by_cell.astype(_index_type(len(palette))).tobytes()),
            deflate.flush(),
        ]
    )


def decode_classes(shape: Shape, payload: memoryview) -> Classes:
    """Read what `encode_classes` wrote, ``[K, h, w]``.

    Raises:
        ValueError: If the bytes do not describe ``K*h*w`` classes below ``C``.
    """
    top_k, rows, columns, num_classes, _ = shape
    if len(payload) < 4:
        raise ValueError(f"the palette's length needs 4 bytes, and {len(payload)} are left")
    (count,) = _COUNT.unpack_from(payload)
    class_type = _class_type(num_classes)
    end = 4 + count * class_type.itemsize
    if not 1 <= count <= top_k * rows * columns or len(payload) < end:
        raise ValueError(f"a palette of {count} classes does not fit {top_k} x {rows} x {columns} classes")
    palette = np.frombuffer(payload, class_type, count, 4)
    if int(palette.max()) >= num_classes:
        raise ValueError(f"the palette holds class {int(palette.max())} of {num_classes}")
    index_type = _index_type(count)
    size = top_k * rows * columns * index_type.itemsize
    indices = (
        np.frombuffer(_inflated("the class indices", payload[end:], size), index_type).reshape(rows * columns, top_k).T
    )
    try:
        classes = palette.astype(np.int32).take(indices)
    except IndexError:
        raise ValueError(f"class index {int(indices.max())} reaches past a palette of {count} classes") from None
    return classes.reshape(top_k, rows, columns)


def encode_image_scores(top_k: int, scores: Scores) -> bytes:
    """Write the scores of all classes for the whole image, less their logsumexp, of which the best ``T`` are kept.

    ======================  ==========================================================================
    2 float32               smallest and largest score kept
    float32                 logsumexp of the classes not kept, if ``T < C``
    ``T`` uint16 or uint32  the classes kept, ascending, if ``T < C``; uint32 where ``C`` is above 65536
    the rest                raw deflate of ``T`` bytes ``q``, one for each class kept, ascending: the
                            score is ``float32(lo + q * ((hi - lo) / 63))``
    ======================  ==========================================================================

    64 steps are far finer than labels need, and deflate to about 5 bits a class of 1,000.

    Args:
        top_k: ``T``, at most ``C``.
        scores: float32 ``[C]``, finite.
    """
    normalised = scores.astype(np.float64)
    normalised -= _logsumexp(normalised)
    kept = normalised = normalised.astype(np.float32)
    parts = []
    if top_k < len(scores):
        best = np.sort(np.argpartition(-normalised, top_k - 1)[:top_k])
        kept = normalised[best]
        parts = [
            _REST.pack(_logsumexp(np.delete(normalised, best).astype(np.float64))),
            best.astype(_class_type(len(scores))).tobytes(),
        ]
    low, high = float(kept.min()), float(kept.max())
    step = (high - low) / _IMAGE_STEPS
    levels = np.zeros(kept.shape) if step == 0 else np.rint((kept.astype(np.float64) - low) / step)
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return b"".join(
        [_RANGE.pack(low, high), *parts, deflate.compress(levels.astype(np.uint8).tobytes()), deflate.flush()]
    )


def _logsumexp(numbers: NDArray[np.float64]) -> float:
    highest = numbers.max()
    return float(highest + np.log(np.exp(numbers - highest).sum()))


def decode_image_scores(top_k: int, num_classes: int, payload: memoryview) -> Scores:
    """Read what `encode_image_scores` wrote: ``[C]``, where the classes not kept share their part evenly.

    Raises:
        ValueError: If the bytes do not describe ``T`` scores of classes below ``C``.
    """
    class_type = _class_type(num_classes)
    end = 8 + (4 + top_k * class_type.itemsize if top_k < num_classes else 0)
    if len(payload) < end:
        raise ValueError(f"the scores for the whole image have {len(payload)} bytes, and need at least {end}")
    steps = np.frombuffer(_inflated("the scores for the whole image", payload[end:], top_k), np.uint8)
    if steps.max() > _IMAGE_STEPS:
        raise ValueError(f"a score for the whole image is step {steps.max()} of {_IMAGE_STEPS}")
    kept = _levels(payload, 0, _IMAGE_STEPS)[steps]
    if top_k == num_classes:
        return kept
    (rest,) = _REST.unpack_from(payload, 8)
    classes = np.frombuffer(payload, class_type, top_k, 12)
    if not np.isfinite(rest) or classes[-1] >= num_classes or (classes[1:] <= classes[:-1]).any():
        raise ValueError(
            f"the scores for the whole image are of ascending classes below {num_classes}, the rest finite"
        )
    scores = np.full(num_classes, rest - np.log(num_classes - top_k), np.float32)
    scores[classes] = kept
    return scores


def _inflated(what: str, deflated: memoryview, size: int) -> bytes:
    """What a raw deflate stream of just ``size`` bytes holds."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    # One byte more than needed: a stream that goes on is noticed, and still takes no more memory than that.
    try:
        inflated = inflate.decompress(deflated, size + 1)
    except zlib.error as error:
        raise ValueError(f"{what} do not inflate: {error}") from None
    if len(inflated) != size or not inflate.eof or inflate.unused_data:
        raise ValueError(f"{what} must inflate to exactly {size} bytes and end there")
    return inflated


def _class_type(num_classes: int) -> np.dtype[np.unsignedinteger]:
    return _UINT16 if num_classes <= 2**16 else _UINT32


def _index_type(count: int) -> np.dtype[np.unsignedinteger]:
    return _UINT8 if count <= 2**8 else _UINT16 if count <= 2**16 else _UINT32


def _to_float16(what: str, numbers: Scores) -> bytes:
    largest = float(np.abs(numbers).max())
    # 65520 is the first number that rounds to infinity instead of to the largest half.
    if largest >= 65520.0:
        raise ValueError(
            f"{what} of the float16 codec reach from -{_LARGEST_FLOAT16:.0f} to {_LARGEST_FLOAT16:.0f}, "
            f"got magnitude {largest:g}; use codec='uint8' or scale the scores"
        )
    return numbers.astype("<f2").tobytes()


def _quantize(numbers: Scores) -> tuple[bytes, bytes]:
    low, high = float(numbers.min()), float(numbers.max())
    step = (high - low) / 255
    steps = np.zeros(numbers.shape) if step == 0 else np.rint((numbers.astype(np.float64) - low) / step)
    return _RANGE.pack(low, high), steps.astype(np.uint8).tobytes()


def _levels(payload: memoryview, offset: int, steps: int = 255) -> Scores:
    low, high = _RANGE.unpack_from(payload, offset)
    # not (a <= b) is also true where a bound is NaN; an infinite one would make every level NaN or infinite.
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"a range runs from its smaller to its larger finite end, got {low:g} to {high:g}")
    levels: Scores = (_STEPS[: steps + 1] * ((high - low) / steps) + low).astype(np.float32)
    return levels


_UINT8: np.dtype[np.unsignedinteger] = np.dtype("u1")
_UINT16: np.dtype[np.unsignedinteger] = np.dtype("<u2")
_UINT32: np.dtype[np.unsignedinteger] = np.dtype("<u4")

CODECS: dict[str, Codec] = {"float16": Float16(), "uint8": UInt8()}
