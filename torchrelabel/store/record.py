"""Records: one label map as the bytes of an LMDB value, checked on the way in and on the way out."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchrelabel.errors import DamagedRecord
from torchrelabel.store.codecs import (
    CODECS,
    Classes,
    Scores,
    Shape,
    decode_image_scores,
    encode_image_scores,
)
from torchrelabel.store.layout import MAX_GRID_SIDE, MAX_VALUES

if TYPE_CHECKING:
    from torchrelabel.store.header import StoreHeader

Box = tuple[float, float, float, float]

WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)

_FRONT = struct.Struct("<IHHB")
_AFTER_CRC = struct.Struct("<HHB")
_BOX = struct.Struct("<4f")
_IMAGE_LENGTH = struct.Struct("<I")
_HAS_COVERAGE = 0x01
_HAS_IMAGE_SCORES = 0x02

# Softmax in half precision overshoots 1 by up to 2**-11; a logit is caught all the same.
_PROBABILITY_SLACK = 1e-3


class LabelRecord(NamedTuple):
    """One label map, as a store returns it.

    Attributes:
        scores: float32 ``[K, h, w]``, descending along ``K``; fresh, writable, C-contiguous, as all three arrays are.
        classes: int32 ``[K, h, w]``, the class that each score belongs to.
        residual: float32 ``[h, w]``, what the classes not kept in a cell come to: the logsumexp of their logits, or the
            sum of their probabilities. None where the store keeps none.
        coverage: Part of the image that the map covers, ``(x1, y1, x2, y2)`` in fractions of the image.
        image_scores: float32 ``[C]``, the logits of the whole image less their logsumexp, so that they are logarithms
            of shares, to 64 steps; classes beyond the best ``T`` share evenly what together they come to. None where
            the store keeps none.

    Example:
        >>> record = LabelRecord(np.ones((2, 7, 5), np.float32), np.zeros((2, 7, 5), np.int32), None, WHOLE_IMAGE)
        >>> record.scores.shape, record.coverage
        ((2, 7, 5), (0.0, 0.0, 1.0, 1.0))
    """

    scores: Scores
    classes: Classes
    residual: Scores | None
    coverage: Box
    image_scores: Scores | None = None


def pack_record(
    header: StoreHeader,
    name: bytes,
    scores: ArrayLike,
    classes: ArrayLike,
    residual: ArrayLike | None = None,
    coverage: Sequence[float] | None = None,
    image_scores: ArrayLike | None = None,
) -> bytes:
    """Check a label map against a store's header and write it as a record.

    Args:
        header: Of the store.
        name: The key's bytes; the checksum covers them.
        scores: Floats ``[K, h, w]``, descending along ``K``.
        classes: Integers ``[K, h, w]``, distinct in each cell.
        residual: Floats ``[h, w]``, exactly if the header has a residual.
        coverage: Part of the image that this map covers, xyxy in fractions; None for the header's.
        image_scores: Floats ``[C]``, the logits of the whole image, exactly if the header has an ``image_top_k``.

    Raises:
        ValueError: If anything does not fit, naming the value.
    """
    kept = _checked_scores(header, scores)
    top_k, rows, columns = kept.shape
    shape = Shape(top_k, rows, columns, header.num_classes, header.residual)
    payload = CODECS[header.codec].encode(
        shape, kept, _checked_classes(header, kept, classes), _checked_residual(header, kept, residual)
    )
    box = _checked_coverage(header, coverage)
    image = _checked_image_scores(header, image_scores)
    flags = (_HAS_COVERAGE if box else 0) | (_HAS_IMAGE_SCORES if image else 0)
    body = _AFTER_CRC.pack(rows, columns, flags) + box + image + payload
    return struct.pack("<I", zlib.crc32(body, zlib.crc32(name))) + body


def unpack_record(header: StoreHeader, name: bytes, record: memoryview) -> LabelRecord:
    """Read a record.

    Raises:
        DamagedRecord: If the record does not match its checksum, its key or its own description.
    """
    if len(record) < _FRONT.size:
        raise DamagedRecord(f"a record has at least {_FRONT.size} bytes, got {len(record)}")
    crc, rows, columns, flags = _FRONT.unpack_from(record)
    actual = zlib.crc32(record[4:], zlib.crc32(name))
    if crc != actual:
        raise DamagedRecord(
            f"its checksum is {crc:#010x}, and its bytes under this key give {actual:#010x}: the record was changed, "
            f"or lies under a wrong key"
        )
    top_k = header.top_k
    known = _HAS_COVERAGE | (_HAS_IMAGE_SCORES if header.image_top_k else 0)
    if flags & ~known:
        raise DamagedRecord(f"its flags are {flags:#04x}, and a store of this version knows only {known:#04x}")
    if not rows or not columns or top_k * rows * columns > MAX_VALUES:
        raise DamagedRecord(f"its grid is {rows} x {columns}, and K x h x w must be 1 to {MAX_VALUES} with K = {top_k}")
    try:
        payload = record[_FRONT.size :]
        coverage = header.default_box
        if flags & _HAS_COVERAGE:
            coverage = check_box(_BOX.unpack_from(payload))
            payload = payload[_BOX.size :]
        elif header.coverage == "record":
            raise ValueError("it has no coverage box, and the header says that every record has its own")
        image_scores = None
        if flags & _HAS_IMAGE_SCORES:
            (length,) = _IMAGE_LENGTH.unpack_from(payload)
            end = _IMAGE_LENGTH.size + length
            image_scores = decode_image_scores(
                header.image_top_k, header.num_classes, payload[_IMAGE_LENGTH.size : end]
            )
            payload = payload[end:]
        elif header.image_top_k:
            raise ValueError("it has no scores for the whole image, and the header says that every record has")
        shape = Shape(top_k, rows, columns, header.num_classes, header.residual)
        return LabelRecord(*CODECS[header.codec].decode(shape, payload), coverage, image_scores)
    except (ValueError, struct.error) as error:
        raise DamagedRecord(str(error)) from None


def check_numbers(header: StoreHeader, record: LabelRecord) -> None:
    """Hold the numbers of a record to what the format asks of them, which reading takes no time to check.

    Raises:
        ValueError: If one is not finite or no probability, if scores rise along ``K``, or if a cell repeats a class.
    """
    _check_descending(_finite_float32("scores", record.scores))
    _check_probabilities(header, "scores", record.scores)
    _check_distinct(record.classes)
    if record.residual is not None:
        _check_probabilities(header, "residual", _finite_float32("residual", record.residual))


def same_map(header: StoreHeader, name: bytes, first: bytes, second: bytes) -> bool:
    """Whether two records under one key hold the same map; zlib's releases deflate the same indices differently."""
    if first == second:
        return True
    one, other = (unpack_record(header, name, memoryview(record)) for record in (first, second))
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None)


def check_box(box: Any) -> Box:
    """A coverage box as four floats.

    Raises:
        ValueError: If it is no ``(x1, y1, x2, y2)`` of finite numbers with ``x1 < x2`` and ``y1 < y2``.
    """
    try:
        x1, y1, x2, y2 = (float(side) for side in box)
    except (TypeError, ValueError):
        raise ValueError(f"a coverage box is four numbers (x1, y1, x2, y2), got {box!r}") from None
    if not (-np.inf < x1 < x2 < np.inf and -np.inf < y1 < y2 < np.inf):
        raise ValueError(f"a coverage box (x1, y1, x2, y2) has finite x1 < x2 and y1 < y2, got {(x1, y1, x2, y2)}")
    return x1, y1, x2, y2


def _checked_scores(header: StoreHeader, scores: ArrayLike) -> Scores:
    given = np.asarray(scores)
    if given.dtype.kind != "f":
        raise ValueError(f"scores are floats, got dtype {given.dtype}")
    if given.ndim != 3 or given.shape[0] != header.top_k:
        raise ValueError(f"scores are [K, h, w] with K = {header.top_k}, got shape {list(given.shape)}")
    _, rows, columns = given.shape
    if not (1 <= rows <= MAX_GRID_SIDE and 1 <= columns <= MAX_GRID_SIDE and given.size <= MAX_VALUES):
        raise ValueError(
            f"a grid is 1 to {MAX_GRID_SIDE} cells high and wide with at most {MAX_VALUES} scores, "
            f"got shape {list(given.shape)}"
        )
    kept = _finite_float32("scores", given)
    _check_descending(kept)
    _check_probabilities(header, "scores", kept)
    return kept


def _checked_classes(header: StoreHeader, scores: Scores, classes: ArrayLike) -> Classes:
    given = np.asarray(classes)
    if given.dtype.kind not in "iu":
        raise ValueError(f"classes are integers, got dtype {given.dtype}")
    if given.shape != scores.shape:
        raise ValueError(f"classes have the shape of scores, {list(scores.shape)}, got {list(given.shape)}")
    outside = (given < 0) | (given >= header.num_classes)
    if outside.any():
        k, row, column = _first(outside)
        raise ValueError(
            f"classes are 0 to {header.num_classes - 1}, got {given[k, row, column]} at cell ({row}, {column})"
        )
    kept = given.astype(np.int32)
    _check_distinct(kept)
    return kept


def _checked_residual(header: StoreHeader, scores: Scores, residual: ArrayLike | None) -> Scores | None:
    if residual is None:
        if header.residual:
            raise ValueError("the store keeps a residual (residual=True), got None")
        return None
    given = np.asarray(residual)
    if not header.residual:
        raise ValueError(f"the store keeps no residual (residual=False), got an array of shape {list(given.shape)}")
    if given.dtype.kind != "f":
        raise ValueError(f"the residual is floats, got dtype {given.dtype}")
    if given.shape != scores.shape[1:]:
        raise ValueError(f"the residual is [h, w] = {list(scores.shape[1:])}, got shape {list(given.shape)}")
    kept = _finite_float32("residual", given)
    _check_probabilities(header, "residual", kept)
    return kept


def _checked_coverage(header: StoreHeader, coverage: Sequence[float] | None) -> bytes:
    if coverage is None:
        if header.coverage == "record":
            raise ValueError("the store was begun with coverage='record': give coverage=(x1, y1, x2, y2) with each map")
        return b""
    packed = _BOX.pack(*check_box(coverage))
    check_box(_BOX.unpack(packed))  # a box narrower than float32 can tell would not be readable
    return packed


def _checked_image_scores(header: StoreHeader, scores: ArrayLike | None) -> bytes:
    if scores is None:
        if header.image_top_k:
            raise ValueError(
                f"the store keeps scores for the whole image (image_top_k={header.image_top_k}), got None: give "
                f"image_scores=, a logit for each class"
            )
        return b""
    given = np.asarray(scores)
    if not header.image_top_k:
        raise ValueError(
            f"the store keeps no scores for the whole image (image_top_k=0), got an array of shape {list(given.shape)}"
        )
    if given.dtype.kind != "f":
        raise ValueError(f"the scores for the whole image are floats, got dtype {given.dtype}")
    if given.shape != (header.num_classes,):
        raise ValueError(
            f"the scores for the whole image are [C] = [{header.num_classes}], got shape {list(given.shape)}"
        )
    packed = encode_image_scores(header.image_top_k, _finite_float32("the scores for the whole image", given))
    return _IMAGE_LENGTH.pack(len(packed)) + packed


def _finite_float32(what: str, given: NDArray[Any]) -> Scores:
    with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused by its own value below
        kept = np.ascontiguousarray(given, dtype=np.float32)
    infinite = ~np.isfinite(kept)
    if infinite.any():
        place = _first(infinite)
        where = f"cell {place[-2:]}" if len(place) > 1 else f"class {place[0]}"
        raise ValueError(f"{what} must be finite float32 numbers, got {given[place]} at {where}")
    return kept


def _check_descending(scores: Scores) -> None:
    rising = scores[1:] > scores[:-1]
    if rising.any():
        k, row, column = _first(rising)
        raise ValueError(
            f"scores descend along K, got {scores[k, row, column]:g} before {scores[k + 1, row, column]:g} "
            f"at cell ({row}, {column})"
        )


def _check_distinct(classes: Classes) -> None:
    ordered = np.sort(classes, axis=0)
    repeated = ordered[1:] == ordered[:-1]
    if repeated.any():
        k, row, column = _first(repeated)
        raise ValueError(
            f"the classes of a cell are distinct, got {ordered[k, row, column]} twice at cell ({row}, {column})"
        )


def _check_probabilities(header: StoreHeader, what: str, kept: Scores) -> None:
    if header.score_kind != "probability":
        return
    outside = (kept < 0) | (kept > 1 + _PROBABILITY_SLACK)
    if outside.any():
        place = _first(outside)
        raise ValueError(f"{what} of score_kind='probability' are 0 to 1, got {kept[place]:g} at cell {place[-2:]}")


def _first(flags: NDArray[np.bool_]) -> tuple[int, ...]:
    return tuple(int(place) for place in np.unravel_index(int(flags.argmax()), flags.shape))
