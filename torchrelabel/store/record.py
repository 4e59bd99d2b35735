"""Records: one label map as the bytes of an LMDB value, checked on the way in and on the way out."""

from __future__ import annotations

import operator
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
from torchrelabel.store.layout import FIRST_VERSION_IN_BLOCKS, MAX_GRID_SIDE, MAX_IMAGE_SIDE, MAX_VALUES
from torchrelabel.store.old_codecs import OLD_CODECS, Decoder

if TYPE_CHECKING:
    from torchrelabel.store.header import StoreHeader

Box = tuple[float, float, float, float]

WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)

_CRC = struct.Struct("<I")
_FRONT = struct.Struct("<IHHB")
_AFTER_CRC = struct.Struct("<HHB")
_BOX = struct.Struct("<4f")
_IMAGE_LENGTH = struct.Struct("<I")
_IMAGE_SIZE = struct.Struct("<2I")
_HAS_COVERAGE = 0x01
_HAS_IMAGE_SCORES = 0x02
_HAS_IMAGE_SIZE = 0x04
_EXIF_TURNED = 0x08

# Most stores have one grid; one that has many need not fill the memory with them.
_SHAPES_KEPT = 100

_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}

# For so many, comparing each with each is quicker than sorting.
_FEW_CLASSES = 8

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
        image_size: Width and height of the image that was annotated, in pixels, as its file holds them. None where the
            writer did not tell.
        exif_turned: Whether that image's EXIF orientation would turn or mirror it. None without ``image_size``.

    Example:
        >>> LabelRecord(np.ones((2, 7, 5), np.float32), np.zeros((2, 7, 5), np.int32), None, WHOLE_IMAGE)
        LabelRecord(2 classes in each of 7 x 5 cells)
    """

    scores: Scores
    classes: Classes
    residual: Scores | None
    coverage: Box
    image_scores: Scores | None = None
    image_size: tuple[int, int] | None = None
    exif_turned: bool | None = None

    def __repr__(self) -> str:
        top_k, rows, columns = self.scores.shape
        said = [f"{top_k} classes in each of {rows} x {columns} cells"]
        said += ["residual"] if self.residual is not None else []
        said += [f"coverage {self.coverage}"] if self.coverage != WHOLE_IMAGE else []
        if self.image_scores is not None:
            said.append(f"scores of the whole image for {len(self.image_scores)} classes")
        if self.image_size is not None:
            said.append("image of {} x {} px".format(*self.image_size) + ", turned by EXIF" * bool(self.exif_turned))
        return f"{type(self).__name__}({', '.join(said)})"


def pack_record(
    header: StoreHeader,
    name: bytes,
    scores: ArrayLike,
    classes: ArrayLike,
    residual: ArrayLike | None = None,
    coverage: Sequence[float] | None = None,
    image_scores: ArrayLike | None = None,
    image_size: Sequence[int] | None = None,
    exif_turned: bool = False,
) -> bytes:
    """Check a label map against a store's header and write it as a record of today's version.

    Args:
        header: Of the store.
        name: The key's bytes; the checksum covers them.
        scores: Floats ``[K, h, w]``; put into descending order along ``K``.
        classes: Integers ``[K, h, w]``, distinct in each cell.
        residual: Floats ``[h, w]``, exactly if the header has a residual.
        coverage: Part of the image that this map covers, xyxy in fractions; None for the header's.
        image_scores: Floats ``[C]``, the logits of the whole image, exactly if the header has an ``image_top_k``.
        image_size: Width and height of the annotated image in pixels, if they are known.
        exif_turned: Whether its EXIF orientation would turn or mirror it; needs ``image_size``.

    Raises:
        ValueError: If anything does not fit, naming the value.
    """
    kept = _checked_scores(header, scores)
    top_k, rows, columns = kept.shape
    shape = Shape(top_k, rows, columns, header.num_classes, header.residual)
    kept_classes = _checked_classes(header, kept, classes)
    if np.count_nonzero(kept[1:] > kept[:-1]):
        order = np.argsort(-kept, axis=0, kind="stable")
        kept = np.take_along_axis(kept, order, axis=0)
        kept_classes = np.take_along_axis(kept_classes, order, axis=0)
    payload = CODECS[header.codec].encode(shape, kept, kept_classes, _checked_residual(header, kept, residual))
    box = _checked_coverage(header, coverage)
    size, size_flags = _checked_image_size(image_size, exif_turned)
    image = _checked_image_scores(header, image_scores)
    flags = (_HAS_COVERAGE if box else 0) | (_HAS_IMAGE_SCORES if image else 0) | size_flags
    return seal_record(header, name, _AFTER_CRC.pack(rows, columns, flags) + box + size + image + payload)


def seal_record(header: StoreHeader, name: bytes, body: bytes) -> bytes:
    """Put its checksum in front of what else a record holds; it covers the store's identity and the key, too."""
    return _CRC.pack(zlib.crc32(body, zlib.crc32(name, header.checksum_seed))) + body


def unpack_record(header: StoreHeader, name: bytes, record: memoryview) -> LabelRecord:
    """Read a record.

    Raises:
        DamagedRecord: If the record does not match its checksum, its key or its own description.
    """
    if len(record) < _FRONT.size:
        raise DamagedRecord(f"a record has at least {_FRONT.size} bytes, got {len(record)}")
    crc, rows, columns, flags = _FRONT.unpack_from(record)
    actual = zlib.crc32(record[4:], zlib.crc32(name, header.checksum_seed))
    if crc != actual:
        raise DamagedRecord(
            f"its checksum is {crc:#010x}, and its bytes under this key give {actual:#010x}: the record was changed, "
            f"or belongs to another key or store"
        )
    top_k = header.top_k
    if flags and flags & ~header.record_flags:
        raise DamagedRecord(
            f"its flags are {flags:#04x}, and a store of this version knows only {header.record_flags:#04x}"
        )
    if not rows or not columns or top_k * rows * columns > MAX_VALUES:
        raise DamagedRecord(f"its grid is {rows} x {columns}, and K x h x w must be 1 to {MAX_VALUES} with K = {top_k}")
    coverage, image_scores, image_size, exif_turned = header.default_box, None, None, None
    start = _FRONT.size
    try:
        if flags & _HAS_COVERAGE:
            coverage = check_box(_BOX.unpack_from(record, start))
            start += _BOX.size
        elif header.coverage == "record":
            raise ValueError("it has no coverage box, and the header says that every record has its own")
        if flags & _HAS_IMAGE_SIZE:
            image_size = _IMAGE_SIZE.unpack_from(record, start)
            exif_turned = bool(flags & _EXIF_TURNED)
            start += _IMAGE_SIZE.size
        elif flags & _EXIF_TURNED:
            raise ValueError("it says that EXIF would turn an image whose size it does not tell")
        if flags & _HAS_IMAGE_SCORES:
            (length,) = _IMAGE_LENGTH.unpack_from(record, start)
            start += _IMAGE_LENGTH.size
            image_scores = decode_image_scores(header.image_top_k, header.num_classes, record[start : start + length])
            start += length
        elif header.image_top_k:
            raise ValueError("it has no scores for the whole image, and the header says that every record has")
        shape = header.shapes.get((rows, columns))
        if shape is None:
            shape = Shape(top_k, rows, columns, header.num_classes, header.residual)
            if len(header.shapes) < _SHAPES_KEPT:
                header.shapes[rows, columns] = shape
        scores, classes, residual = header.decoder.decode(shape, record[start:])
    except (ValueError, struct.error) as error:
        raise DamagedRecord(str(error)) from None
    return LabelRecord._make((scores, classes, residual, coverage, image_scores, image_size, exif_turned))


def carry_over(source: StoreHeader, target: StoreHeader, name: bytes, record: bytes) -> bytes:
    """A record of one store as a record of another one with the same settings: the same numbers, sealed anew.

    Raises:
        DamagedRecord: If the record is none.
    """
    read = unpack_record(source, name, memoryview(record))
    if source.format_version >= FIRST_VERSION_IN_BLOCKS:
        return seal_record(target, name, record[4:])
    # Older versions had another payload, behind the same front.
    end = _FRONT.size + (_BOX.size if record[_FRONT.size - 1] & _HAS_COVERAGE else 0)
    if record[_FRONT.size - 1] & _HAS_IMAGE_SCORES:
        end += _IMAGE_LENGTH.size + _IMAGE_LENGTH.unpack_from(record, end)[0]
    top_k, rows, columns = read.scores.shape
    shape = Shape(top_k, rows, columns, source.num_classes, source.residual)
    payload = CODECS[target.codec].encode(shape, read.scores, read.classes, read.residual)
    return seal_record(target, name, record[4:end] + payload)


def decoder_of(version: int, codec: str) -> Decoder:
    """What reads the payload of a record of a version of the format."""
    return CODECS[codec] if version >= FIRST_VERSION_IN_BLOCKS else OLD_CODECS[codec]


def flags_of(version: int, image_top_k: int) -> int:
    """The flags that a record of a store may have."""
    flags = _HAS_COVERAGE | (_HAS_IMAGE_SCORES if image_top_k else 0)
    return flags | _HAS_IMAGE_SIZE | _EXIF_TURNED if version >= FIRST_VERSION_IN_BLOCKS else flags


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
    _check_probabilities(header, "scores", kept)
    return kept


def _checked_classes(header: StoreHeader, scores: Scores, classes: ArrayLike) -> Classes:
    given = np.asarray(classes)
    if given.dtype.kind not in "iu":
        raise ValueError(f"classes are integers, got dtype {given.dtype}")
    if given.shape != scores.shape:
        raise ValueError(f"classes have the shape of scores, {list(scores.shape)}, got {list(given.shape)}")
    # Without its sign, a negative number is a large one.
    if given.view(_UNSIGNED[given.dtype.itemsize]).max() >= header.num_classes:
        k, row, column = _first((given < 0) | (given >= header.num_classes))
        raise ValueError(
            f"classes are 0 to {header.num_classes - 1}, got {given[k, row, column]} at cell ({row}, {column})"
        )
    kept = np.ascontiguousarray(given, dtype=np.int32)
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


def _checked_image_size(image_size: Sequence[int] | None, exif_turned: bool) -> tuple[bytes, int]:
    """The bytes of an image's size, and the flags that go with them."""
    if image_size is None:
        if exif_turned:
            raise ValueError("exif_turned=True needs image_size=(W, H), got None")
        return b"", 0
    try:
        width, height = (operator.index(side) for side in image_size)
    except (TypeError, ValueError):
        raise ValueError(f"image_size is (W, H) in whole pixels, got {image_size!r}") from None
    if not (1 <= width <= MAX_IMAGE_SIDE and 1 <= height <= MAX_IMAGE_SIDE):
        raise ValueError(f"image_size is (W, H) with 1 to {MAX_IMAGE_SIDE} pixels each way, got {(width, height)}")
    return _IMAGE_SIZE.pack(width, height), _HAS_IMAGE_SIZE | (_EXIF_TURNED if exif_turned else 0)


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
    if given.dtype == np.float32:
        kept = np.ascontiguousarray(given)
    else:
        with np.errstate(over="ignore"):  # a double beyond float32 becomes infinite, and is refused by its value below
            kept = np.ascontiguousarray(given, dtype=np.float32)
    finite = np.isfinite(kept)
    if np.count_nonzero(finite) < kept.size:
        place = _first(~finite)
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
    # Each of few with each: equal to itself alone.
    if len(classes) <= _FEW_CLASSES and np.count_nonzero(classes[:, None] == classes) == classes.size:
        return
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
