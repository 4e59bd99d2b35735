"""Codecs: how the scores, classes and residual of one label map become the payload of a record."""

from __future__ import annotations

import struct
import zlib
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]
Classes = NDArray[np.int32]
Buffer = memoryview | bytes

_PALETTE = struct.Struct("<IB")
_RANGE = struct.Struct("<2f")
_REST = struct.Struct("<f")
_LARGEST_FLOAT16 = 65504.0
_LARGEST_SPAN = 3.4e38  # a little less than single precision holds
_LARGEST_TABLE = 2**20  # of classes; for more, sorting those of a map is quicker than a table of all
_IMAGE_STEPS = 63
_STEPS = np.arange(_IMAGE_STEPS + 1, dtype=np.float64)


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
    the rest              classes: their palette, then the deflated indices
    ====================  =============================================
    """

    def encode(self, shape: Shape, scores: Scores, classes: Classes, residual: Scores | None) -> bytes:
        """See `Codec.encode`."""
        parts = [_to_float16("scores", scores)]
        if residual is not None:
            parts.append(_to_float16("residual", residual))
        palette, indices = index_classes(shape, classes)
        return b"".join([*parts, pack_palette(palette), _deflated(indices)])

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `Codec.decode`."""
        top_k, rows, columns, _, has_residual = shape
        values = top_k * rows * columns
        end = 2 * (values + rows * columns) if has_residual else 2 * values
        if len(payload) < end:
            raise ValueError(f"the payload has {len(payload)} bytes, and its scores alone need {end}")
        numbers = np.frombuffer(payload, _FLOAT16, end // 2).astype(np.float32)
        scores = numbers[:values].reshape(top_k, rows, columns)
        residual = numbers[values:].reshape(rows, columns) if has_residual else None
        palette, start = unpack_palette(shape, payload, end)
        indices = _index_type(len(palette))
        inflated = inflate("the class indices", payload[start:], values * indices.itemsize)
        return scores, take_classes(shape, palette, np.frombuffer(inflated, indices)), residual


class UInt8:
    """256 levels between the smallest and the largest value of each map.

    ====================  ========================================================================================
    2 float32             smallest score, step
    2 float32             smallest residual, step, if there is a residual
    uint8                 ``D``, at most ``K // 2``
    ``(K-D)*h*w`` bytes   levels of the scores, plane after plane
    ``h*w`` bytes         levels of the residual, if there is one
    the rest              classes, as in `Float16`; before the indices the deflated stream holds, for each of the last
                          ``D`` planes, ``h*w`` bytes: by how much its levels are below those of the plane before
    ====================  ========================================================================================

    A level ``q`` stands for ``smallest + q * step``, calculated in single precision. Differences of planes deflate to
    two thirds and take time to inflate: of five planes, two save 129 bytes for 2 us a map, four 215 bytes for 5 us
    (52 classes a map; `python -m benchmarks.codecs`).
    """

    def encode(self, shape: Shape, scores: Scores, classes: Classes, residual: Scores | None) -> bytes:
        """See `Codec.encode`."""
        top_k, cells = shape.top_k, shape.cells
        as_they_are = top_k - top_k // 2
        span, levels = _quantize(scores)
        planes = levels.reshape(top_k, cells)
        differences = planes[as_they_are - 1 : -1] - planes[as_they_are:]
        parts = [span, bytes([top_k // 2]), planes[:as_they_are].tobytes()]
        if residual is not None:
            span, levels = _quantize(residual)
            parts.insert(1, span)
            parts.append(levels.tobytes())
        palette, indices = index_classes(shape, classes)
        return b"".join([*parts, pack_palette(palette), _deflated(differences, indices)])

    def decode(self, shape: Shape, payload: memoryview) -> tuple[Scores, Classes, Scores | None]:
        """See `Codec.decode`."""
        top_k, rows, columns, _, has_residual = shape
        cells = rows * columns
        start = 17 if has_residual else 9
        if len(payload) < start:
            raise ValueError(f"the payload has {len(payload)} bytes, and its ranges alone need {start}")
        differences = payload[start - 1]
        if differences > top_k // 2:
            raise ValueError(f"at most {top_k // 2} of {top_k} planes are differences, got {differences}")
        middle = start + (top_k - differences) * cells
        end = middle + cells if has_residual else middle
        if len(payload) < end:
            raise ValueError(f"the payload has {len(payload)} bytes, and its scores alone need {end}")
        palette, behind = unpack_palette(shape, payload, end)
        indices = _index_type(len(palette))
        inflated = inflate(
            "the class indices", payload[behind:], differences * cells + top_k * cells * indices.itemsize
        )
        if differences:
            levels = np.empty((top_k, cells), np.uint8)
            known = top_k - differences
            levels[:known] = np.frombuffer(payload, np.uint8, known * cells, start).reshape(known, cells)
            below = np.frombuffer(inflated, np.uint8, differences * cells).reshape(differences, cells)
            for plane in range(differences):
                np.subtract(levels[known + plane - 1], below[plane], out=levels[known + plane])
        else:
            levels = np.frombuffer(payload, np.uint8, top_k * cells, start)
        residual = None
        if has_residual:
            residual = _values(payload, 8, np.frombuffer(payload, np.uint8, cells, middle)).reshape(rows, columns)
        classes = take_classes(shape, palette, np.frombuffer(inflated, indices, offset=differences * cells))
        return _values(payload, 0, levels).reshape(top_k, rows, columns), classes, residual


def index_classes(shape: Shape, classes: Classes) -> tuple[NDArray[np.intp], NDArray[np.unsignedinteger]]:
    """The distinct classes of a map, ascending, and where in them those of each cell stand, cell after cell.

    Cell after cell is the order that deflates best, since neighbouring cells repeat whole lists of classes: 452 bytes a
    map against 502 plane after plane (`python -m benchmarks.codecs`).
    """
    # Indices of NumPy's own kind, converted once instead of at each use.
    by_cell = classes.reshape(shape.top_k, shape.cells).T.astype(np.intp, order="C").ravel()
    if shape.num_classes > _LARGEST_TABLE:
        palette, found = np.unique(by_cell, return_inverse=True)
        return palette, found.ravel().astype(_index_type(len(palette)))
    occurs = np.zeros(shape.num_classes, np.bool_)
    occurs[by_cell] = True
    palette = occurs.nonzero()[0]
    indices = _index_type(len(palette))
    place = np.empty(shape.num_classes, indices)
    place[palette] = np.arange(len(palette), dtype=indices)
    return palette, place.take(by_cell)


def pack_palette(palette: NDArray[Any]) -> bytes:
    """Write ascending classes as their number, the width of a difference in bytes, and their differences."""
    differences = palette.copy()
    differences[1:] -= palette[:-1]
    largest = differences.max()
    width = 1 if largest < 2**8 else 2 if largest < 2**16 else 4
    return _PALETTE.pack(len(palette), width) + differences.astype(_WIDTHS[width]).tobytes()


def unpack_palette(shape: Shape, payload: memoryview, start: int) -> tuple[NDArray[np.int32], int]:
    """Read what `pack_palette` wrote, and where it ends.

    Raises:
        ValueError: If the bytes do not describe ascending classes below ``C``.
    """
    if len(payload) < start + _PALETTE.size:
        raise ValueError(
            f"the palette's front needs {_PALETTE.size} bytes, and {max(len(payload) - start, 0)} are left"
        )
    count, width = _PALETTE.unpack_from(payload, start)
    start += _PALETTE.size
    kind = _WIDTHS.get(width)
    if kind is None:
        raise ValueError(f"the differences of a palette have 1, 2 or 4 bytes, got {width}")
    if not 1 <= count <= shape.top_k * shape.rows * shape.columns or len(payload) < start + count * width:
        raise ValueError(
            f"a palette of {count} classes does not fit {shape.top_k} x {shape.rows} x {shape.columns} classes"
        )
    differences = np.frombuffer(payload, kind, count, start)
    # As many bytes cannot sum up to more than 32 bits hold; all else is given the room.
    palette = np.add.accumulate(differences, dtype=np.int32 if width == 1 and count < 2**23 else np.int64)
    if palette[-1] >= shape.num_classes:
        raise ValueError(f"the palette holds class {palette[-1]} of {shape.num_classes}")
    return palette.astype(np.int32, copy=False), start + count * width


def take_classes(shape: Shape, palette: NDArray[np.int32], indices: NDArray[Any]) -> Classes:
    """The classes ``[K, h, w]`` of indices that lie cell after cell.

    Raises:
        ValueError: If an index reaches past the palette.
    """
    try:
        classes = palette.take(indices.reshape(shape.rows * shape.columns, shape.top_k).T)
    except IndexError:
        raise ValueError(f"class index {int(indices.max())} reaches past a palette of {len(palette)} classes") from None
    return classes.reshape(shape.top_k, shape.rows, shape.columns)


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
            best.astype(class_type_of(len(scores))).tobytes(),
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
    class_type = class_type_of(num_classes)
    end = 8 + (4 + top_k * class_type.itemsize if top_k < num_classes else 0)
    if len(payload) < end:
        raise ValueError(f"the scores for the whole image have {len(payload)} bytes, and need at least {end}")
    steps = np.frombuffer(inflate("the scores for the whole image", payload[end:], top_k), np.uint8)
    if steps.max() > _IMAGE_STEPS:
        raise ValueError(f"a score for the whole image is step {steps.max()} of {_IMAGE_STEPS}")
    kept = _image_levels(payload)[steps]
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


def inflate(what: str, deflated: memoryview, size: int) -> bytes:
    """What a raw deflate stream of just ``size`` bytes holds."""
    inflate = zlib.decompressobj(-zlib.MAX_WBITS)
    # More than needed: a stream that goes on is noticed, and takes no more memory than that. zlib's quick loop wants
    # room for a longest match behind each symbol.
    try:
        inflated = inflate.decompress(deflated, size + 258)
    except zlib.error as error:
        raise ValueError(f"{what} do not inflate: {error}") from None
    if len(inflated) != size or not inflate.eof or inflate.unused_data:
        raise ValueError(f"{what} must inflate to exactly {size} bytes and end there")
    return inflated


def class_type_of(num_classes: int) -> np.dtype[np.unsignedinteger]:
    return _UINT16 if num_classes <= 2**16 else _UINT32


def _index_type(count: int) -> np.dtype[np.unsignedinteger]:
    return _UINT8 if count <= 2**8 else _UINT16 if count <= 2**16 else _UINT32


def _to_float16(what: str, numbers: Scores) -> bytes:
    largest = float(np.abs(numbers).max())
    if largest >= 65520.0:  # the first number that rounds to infinity instead of to the largest half
        raise ValueError(
            f"{what} of the float16 codec reach from -{_LARGEST_FLOAT16:.0f} to {_LARGEST_FLOAT16:.0f}, "
            f"got magnitude {largest:g}; use codec='uint8' or scale the scores"
        )
    return numbers.astype(_FLOAT16).tobytes()


def _quantize(numbers: Scores) -> tuple[bytes, NDArray[np.uint8]]:
    """The smallest number and the step as bytes, and the level of each number."""
    low = float(numbers.min())
    # As the reader will have it, so that rounding does not add up.
    step = float(np.float32((float(numbers.max()) - low) / 255))
    if max(abs(low), 255 * step, abs(low + 255 * step)) > _LARGEST_SPAN:
        raise ValueError(
            f"numbers of the uint8 codec span at most {_LARGEST_SPAN:g}, got {low:g} and steps of {step:g}"
        )
    packed = _RANGE.pack(low, step)
    if step == 0:
        return packed, np.zeros(numbers.shape, np.uint8)
    levels = np.subtract(numbers, low, dtype=np.float64)
    levels *= 1 / step
    np.rint(levels, out=levels)
    return packed, np.minimum(levels, 255, out=levels).astype(np.uint8)


def _values(payload: memoryview, offset: int, levels: NDArray[np.uint8]) -> Scores:
    """What levels stand for, by the smallest number and the step that lie at an offset."""
    low, step = _RANGE.unpack_from(payload, offset)
    highest = low + 255 * step
    # A comparison with NaN is false, too.
    if not (step >= 0 and -_LARGEST_SPAN <= low <= highest <= _LARGEST_SPAN and 255 * step <= _LARGEST_SPAN):
        raise ValueError(f"a range has a finite smallest number and a step, got {low:g} and {step:g}")
    values: Scores = levels.astype(np.float32)
    values *= np.float32(step)
    values += np.float32(low)
    return values


def _deflated(*arrays: NDArray[Any]) -> bytes:
    # Levels 6 to 9 give the same bytes, since so few repeat so closely. A window of 4 KiB holds most maps. Of what fits
    # into one block, zlib makes the same bytes with more memory, and is a tenth quicker.
    content = b"".join([array.tobytes() for array in arrays])
    deflate = zlib.compressobj(6, zlib.DEFLATED, -12, 8 if len(content) < 4096 else 6)
    return deflate.compress(content) + deflate.flush()


def _image_levels(payload: memoryview) -> Scores:
    low, high = _RANGE.unpack_from(payload, 0)
    # not (a <= b) is also true where a bound is NaN; an infinite one would make every level NaN or infinite.
    if not -np.inf < low <= high < np.inf:
        raise ValueError(f"a range runs from its smaller to its larger finite end, got {low:g} to {high:g}")
    levels: Scores = (_STEPS * ((high - low) / _IMAGE_STEPS) + low).astype(np.float32)
    return levels


_UINT8: np.dtype[np.unsignedinteger] = np.dtype("u1")
_UINT16: np.dtype[np.unsignedinteger] = np.dtype("<u2")
_UINT32: np.dtype[np.unsignedinteger] = np.dtype("<u4")

_FLOAT16 = np.dtype("<f2")
_WIDTHS: dict[int, np.dtype[np.unsignedinteger]] = {1: _UINT8, 2: _UINT16, 4: _UINT32}

CODECS: dict[str, Codec] = {"float16": Float16(), "uint8": UInt8()}
