"""StoreHeader: what all records of a store share, and the file that holds it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import msgpack

from torchrelabel.calibration import Calibration
from torchrelabel.errors import StoreError
from torchrelabel.store.codecs import CODECS, Shape
from torchrelabel.store.files import replace_file
from torchrelabel.store.layout import (
    FIRST_VERSION_IN_BLOCKS,
    FORMAT_NAME,
    FORMAT_VERSION,
    HEADER_FILE,
    MAX_CLASSES,
    MAX_GRID_SIDE,
    MAX_HEADER_BYTES,
    MAX_PARTS,
    MAX_SHARDS,
)
from torchrelabel.store.old_codecs import Decoder
from torchrelabel.store.record import WHOLE_IMAGE, Box, check_box, decoder_of, flags_of

SCORE_KINDS = ("logit", "probability")

# What two runs that write to one store must agree on. The dataset is not among them: adding images changes it.
SETTINGS = ("num_classes", "top_k", "codec", "score_kind", "residual", "coverage", "shards", "image_top_k")

_IDENTITY = re.compile("(?:[0-9a-f]{32})?")

# Of two tables that differ, such as those of a thousand class folders.
_ENTRIES_SHOWN = 8


@dataclass(frozen=True)
class StoreHeader:
    """What all records of a store share.

    Attributes:
        num_classes: ``C``, the number of classes of the annotator.
        top_k: ``K``, the number of classes kept in each cell.
        codec: ``"float16"`` or ``"uint8"``, how records are encoded.
        score_kind: ``"logit"`` or ``"probability"``.
        residual: Whether each record has a residual.
        coverage: Part of each image that its map covers: ``"whole"``, a box ``(x1, y1, x2, y2)`` in fractions of the
            image, or ``"record"`` where every record has a box of its own. A record's own box always comes first.
        grid: ``(h, w)`` of the annotator's usual grid, or None; each record has its own.
        annotator: Who made the maps: model, weights digest, input size, resize mode, mean, std, interpolation, ...
        class_names: A name for each of the ``C`` classes, or None.
        class_to_idx: The dataset's folder-to-index table, or None.
        shards: Number of parts among which the keys are divided.
        finished: Numbers of the shards whose writers have finished.
        parts: How many LMDB files each shard has; only the last one of a shard that is not finished is ever written
            to. Empty before version 3, when each had one.
        identity: 32 hexadecimal digits drawn when the store was begun; empty before version 3.
        dataset: ``count`` and ``fingerprint`` of the annotated dataset, as far as known.
        image_top_k: ``T``, of how many classes each record keeps the score for the whole image; 0 for none.
        calibration: How the labels of crops follow from the records, as fitted to the annotator; or None.
        format_version: The version of the format of its records.
        extra: Fields that a later release of the same version added.

    Example:
        >>> header = StoreHeader(num_classes=1000, top_k=5)
        >>> header.codec, header.complete
        ('float16', False)
    """

    num_classes: int
    top_k: int
    codec: str = "float16"
    score_kind: str = "logit"
    residual: bool = False
    coverage: str | Box = "whole"
    grid: tuple[int, int] | None = None
    annotator: dict[str, Any] = field(default_factory=dict)
    class_names: tuple[str, ...] | None = None
    class_to_idx: dict[str, int] | None = None
    shards: int = 1
    finished: tuple[int, ...] = ()
    dataset: dict[str, Any] = field(default_factory=dict)
    image_top_k: int = 0
    calibration: Calibration | None = None
    parts: tuple[int, ...] = ()
    identity: str = ""
    format_version: int = FORMAT_VERSION
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what no reader could use.

        Raises:
            ValueError: If a field is out of its bounds, naming it.
        """
        if not _is_int(self.num_classes, 1, MAX_CLASSES):
            raise ValueError(f"num_classes is 1 to {MAX_CLASSES}, got {self.num_classes!r}")
        if not _is_int(self.top_k, 1, self.num_classes):
            raise ValueError(f"top_k is 1 to num_classes = {self.num_classes}, got {self.top_k!r}")
        if self.codec not in CODECS:
            raise ValueError(f"codec is one of {', '.join(map(repr, CODECS))}, got {self.codec!r}")
        if self.score_kind not in SCORE_KINDS:
            raise ValueError(f"score_kind is one of {', '.join(map(repr, SCORE_KINDS))}, got {self.score_kind!r}")
        if not isinstance(self.residual, bool):
            raise ValueError(f"residual is True or False, got {self.residual!r}")
        if self.residual and self.top_k == self.num_classes:
            raise ValueError(f"top_k = num_classes = {self.top_k} keeps every class, so residual must be False")
        if self.coverage not in ("whole", "record"):
            if isinstance(self.coverage, str):
                raise ValueError(f"coverage is 'whole', 'record' or a box (x1, y1, x2, y2), got {self.coverage!r}")
            object.__setattr__(self, "coverage", check_box(self.coverage))
        if self.grid is not None:
            object.__setattr__(self, "grid", _checked_grid(self.grid))
        if not _is_int(self.image_top_k, 0, self.num_classes):
            raise ValueError(f"image_top_k is 0 to num_classes = {self.num_classes}, got {self.image_top_k!r}")
        if self.image_top_k and self.score_kind != "logit":
            raise ValueError(
                f"scores for the whole image are logits, so image_top_k={self.image_top_k} needs score_kind='logit', "
                f"got {self.score_kind!r}"
            )
        if self.calibration is not None and not self.image_top_k:
            raise ValueError("a calibration needs scores for the whole image, and image_top_k is 0")
        if not isinstance(self.annotator, Mapping) or not isinstance(self.dataset, Mapping):
            raise ValueError(f"annotator and dataset are maps, got {self.annotator!r} and {self.dataset!r}")
        if self.class_names is not None:
            object.__setattr__(self, "class_names", _checked_names(self.class_names, self.num_classes))
        if self.class_to_idx is not None:
            _check_table(self.class_to_idx)
        if not _is_int(self.shards, 1, MAX_SHARDS):
            raise ValueError(f"shards is 1 to {MAX_SHARDS}, got {self.shards!r}")
        object.__setattr__(self, "finished", _checked_shards(self.finished, self.shards))
        if not _is_int(self.format_version, 1, FORMAT_VERSION):
            raise ValueError(f"format_version is 1 to {FORMAT_VERSION}, got {self.format_version!r}")
        parts = self.parts or (self.shards * (0,) if self.in_blocks else ())
        object.__setattr__(self, "parts", _checked_parts(parts, self.shards if self.in_blocks else 0))
        if not isinstance(self.identity, str) or not _IDENTITY.fullmatch(self.identity):
            raise ValueError(f"identity is 32 hexadecimal digits, or empty, got {_short(self.identity)}")

    @property
    def in_blocks(self) -> bool:
        """Whether records lie in blocks, and shards in parts: since version 3."""
        return self.format_version >= FIRST_VERSION_IN_BLOCKS

    @cached_property
    def checksum_seed(self) -> int:
        """Where the checksums of records begin: at that of the store's identity."""
        return zlib.crc32(bytes.fromhex(self.identity))

    @cached_property
    def record_flags(self) -> int:
        """The flags that a record may have."""
        return flags_of(self.format_version, self.image_top_k)

    @cached_property
    def decoder(self) -> Decoder:
        """What reads the payloads of records."""
        return decoder_of(self.format_version, self.codec)

    @cached_property
    def shapes(self) -> dict[tuple[int, int], Shape]:
        """The shapes of records that were read, by their grids."""
        return {}

    def is_final(self, shard: int, part: int) -> bool:
        """Whether an LMDB file will never be written to again."""
        return not self.in_blocks or shard in self.finished or part < self.parts[shard] - 1

    @property
    def complete(self) -> bool:
        """Whether every shard's writer has finished."""
        return len(self.finished) == self.shards

    @property
    def folders_are_classes(self) -> bool:
        """Whether there is one class folder for each class; only then can a folder's index be that of a class."""
        return self.class_to_idx is not None and len(self.class_to_idx) == self.num_classes

    @property
    def default_box(self) -> Box:
        """The part of the image that a map without a box of its own covers, xyxy in fractions."""
        return WHOLE_IMAGE if isinstance(self.coverage, str) else self.coverage

    def to_bytes(self) -> bytes:
        """The header as msgpack.

        Raises:
            TypeError: If ``annotator`` or ``dataset`` holds something that msgpack has no type for.
            ValueError: If the header is larger than 16 MiB.
        """
        named = {item.name: getattr(self, item.name) for item in fields(self) if item.name not in _RENAMED}
        optional = _OPTIONAL if self.in_blocks else _OPTIONAL | _SINCE_BLOCKS
        named = {name: value for name, value in named.items() if name not in optional or value}
        if self.calibration is not None:
            named["calibration"] = self.calibration.as_dict()
        content = {"format": FORMAT_NAME, "version": self.format_version, **named, **self.extra}
        try:
            packed: bytes = msgpack.packb(content, unicode_errors="surrogateescape")
        except (TypeError, OverflowError) as error:
            raise TypeError(
                f"a store's header holds strings, numbers, booleans, None, lists and maps of these: {error}"
            ) from None
        if len(packed) > MAX_HEADER_BYTES:
            raise ValueError(f"a store's header has at most {MAX_HEADER_BYTES} bytes, got {len(packed)}")
        return packed

    @classmethod
    def from_bytes(cls, content: bytes) -> StoreHeader:
        """Read what `to_bytes` wrote.

        Raises:
            ValueError: If the bytes are no header that this release understands.
        """
        try:
            values = msgpack.unpackb(
                content,
                unicode_errors="surrogateescape",
                max_str_len=2**20,
                max_bin_len=2**20,
                max_array_len=2**22,
                max_map_len=2**22,
                max_ext_len=0,
            )
        except (ValueError, msgpack.UnpackException) as error:  # ValueError covers msgpack's own format errors
            raise ValueError(f"it is no msgpack map ({type(error).__name__}: {error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"it holds a {type(values).__name__} instead of a map")
        name, version = values.pop("format", None), values.pop("version", None)
        if name != FORMAT_NAME:
            raise ValueError(f"its format is {name!r}, and a label store says {FORMAT_NAME!r}")
        if not _is_int(version, 1, FORMAT_VERSION):
            raise ValueError(
                f"its format version is {version!r}, and this release of torchrelabel reads up to version "
                f"{FORMAT_VERSION}; update torchrelabel"
            )
        in_blocks = version >= FIRST_VERSION_IN_BLOCKS
        known = {item.name for item in fields(cls)} - _RENAMED - (set() if in_blocks else _SINCE_BLOCKS)
        missing = sorted(known - _OPTIONAL - values.keys())
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
        extra = {name: values.pop(name) for name in list(values) if name not in known}
        if values.get("calibration") is not None:
            values["calibration"] = Calibration.from_dict(values["calibration"])
        try:
            header = cls(**values, format_version=version, extra=extra)
        except TypeError as error:  # a list where a string belongs, and the like
            raise ValueError(f"a field has a wrong type: {error}") from None
        if not in_blocks and version != (2 if header.image_top_k else 1):
            raise ValueError(f"its format version is {version}, and image_top_k={header.image_top_k} is of the other")
        return header

    def as_read(self) -> StoreHeader:
        """This header as it comes back from disk, where tuples among the descriptions have become lists."""
        return StoreHeader.from_bytes(self.to_bytes())

    def differences(self, given: StoreHeader) -> list[str]:
        """Every setting in which another header differs, as ``name: ours, now theirs``.

        A description that ``given`` leaves out (no annotator, no class names, ...) is no difference, nor are class
        names where there were none. Tables of class folders differ only where both have one folder for each class: the
        maps hold the annotator's classes, of which other tables say nothing.
        """
        different = [name for name in SETTINGS if getattr(self, name) != getattr(given, name)]
        lines = [f"{name}: {getattr(self, name)!r}, now {getattr(given, name)!r}" for name in different]
        if given.grid and self.grid != given.grid:
            lines.append(f"grid: {self.grid}, now {given.grid}")
        if given.annotator:
            lines += _differing("annotator.{}", self.annotator, given.annotator)
        if self.class_names and given.class_names:
            lines += _differing("class_names[{!r}]", *(dict(enumerate(h.class_names or ())) for h in (self, given)))
        if self.folders_are_classes and given.folders_are_classes:
            lines += _differing("class_to_idx[{!r}]", self.class_to_idx or {}, given.class_to_idx or {})
        return lines

    def continued_by(self, given: StoreHeader) -> StoreHeader:
        """This header, with what a writer that continues the store knows better.

        A table of one folder for each class is not replaced by one that says nothing of the classes.
        """
        keep_table = self.folders_are_classes or given.class_to_idx is None
        return replace(
            self,
            class_names=self.class_names or given.class_names,
            class_to_idx=self.class_to_idx if keep_table else given.class_to_idx,
            dataset=given.dataset or self.dataset,
        )


def class_for_people(index: int, class_names: Sequence[str] | None) -> str:
    """A class as people are shown it, with its name where there are names: ``"967 espresso"`` or ``"967"``."""
    if class_names is None:
        return str(index)
    # The name of a folder need not be UTF-8; its odd bytes become \udcXX rather than an error on printing.
    return f"{index} {class_names[index]}".encode("utf-8", "backslashreplace").decode()


# The fields that have no name, or another one, on disk.
_RENAMED = {"extra", "format_version"}
# Not known to versions 1 and 2.
_SINCE_BLOCKS = {"parts", "identity"}
# Not written where they say nothing; headers of the first version have no image_top_k.
_OPTIONAL = {"image_top_k", "calibration"}


def read_header(directory: Path) -> StoreHeader:
    """Read the header of a store.

    Raises:
        StoreError: If ``directory`` is no label store that this release understands, saying why.
    """
    path = directory / HEADER_FILE
    try:
        with path.open("rb") as file:
            content = file.read(MAX_HEADER_BYTES + 1)
    except FileNotFoundError:
        raise StoreError(_why_no_store(directory)) from None
    except NotADirectoryError:
        raise StoreError(_why_no_store(directory)) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be read: {error.strerror}") from error
    if len(content) > MAX_HEADER_BYTES:
        raise StoreError(f"{path} is larger than {MAX_HEADER_BYTES} bytes, which no label store's header is")
    try:
        return StoreHeader.from_bytes(content)
    except ValueError as error:
        raise StoreError(f"{path} is no header of a label store that can be read: {error}") from None


def write_header(directory: Path, header: StoreHeader) -> None:
    """Write the header of a store so that a crash leaves the old one or the new one, never half of one.

    Call it only while holding the header's lock.

    Raises:
        StoreError: If the file system refuses, for instance since no space is left.
    """
    replace_file(directory / HEADER_FILE, header.to_bytes())


def _why_no_store(directory: Path) -> str:
    if not directory.exists():
        return f"{directory} does not exist; give the directory of a label store, as `torchrelabel annotate` writes it"
    if not directory.is_dir():
        return f"{directory} is a file, and a label store is a directory that holds {HEADER_FILE}"
    names = sorted(entry.name for entry in directory.iterdir())[:4]
    if not names:
        return f"{directory} is an empty directory, and a label store holds {HEADER_FILE}"
    return f"{directory} is no label store: it holds no {HEADER_FILE}, but {', '.join(names)}"


def _is_int(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _checked_grid(grid: Any) -> tuple[int, int]:
    try:
        rows, columns = grid
    except (TypeError, ValueError):
        raise ValueError(f"grid is (h, w) or None, got {grid!r}") from None
    if not (_is_int(rows, 1, MAX_GRID_SIDE) and _is_int(columns, 1, MAX_GRID_SIDE)):
        raise ValueError(f"grid is (h, w) with 1 to {MAX_GRID_SIDE} cells each way, got {grid!r}")
    return rows, columns


def _checked_names(names: Any, num_classes: int) -> tuple[str, ...]:
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names are strings, got {_short(names)}")
    if len(names) != num_classes:
        raise ValueError(f"class_names has a name for each of the {num_classes} classes, got {len(names)}")
    return tuple(names)


def _check_table(table: Any) -> None:
    if not isinstance(table, dict):
        raise ValueError(f"class_to_idx is a map from folder to index, got {_short(table)}")
    for folder, index in table.items():
        if not isinstance(folder, str) or not _is_int(index, 0, MAX_CLASSES):
            raise ValueError(f"class_to_idx maps folder names to indices, got {folder!r}: {index!r}")


def _checked_shards(shards: Any, count: int) -> tuple[int, ...]:
    if not isinstance(shards, (list, tuple)) or not all(_is_int(shard, 0, count - 1) for shard in shards):
        raise ValueError(f"shard numbers are 0 to {count - 1}, got {_short(shards)}")
    return tuple(sorted(set(shards)))


def _differing(place: str, old: Mapping[Any, Any], new: Mapping[Any, Any]) -> list[str]:
    """The first entries in which two tables differ, each named by ``place``, and how many more there are."""
    names = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    lines = [
        f"{place.format(name)}: {_short(old.get(name))}, now {_short(new.get(name))}" for name in names[:_ENTRIES_SHOWN]
    ]
    rest = len(names) - len(lines)
    return lines + ([f"and {rest} more"] if rest else [])


def _checked_parts(parts: Any, count: int) -> tuple[int, ...]:
    if not isinstance(parts, (list, tuple)) or len(parts) != count:
        raise ValueError(f"parts has a number for each of {count} shards, got {_short(parts)}")
    if not all(_is_int(number, 0, MAX_PARTS) for number in parts):
        raise ValueError(f"a shard has 0 to {MAX_PARTS} parts, got {_short(parts)}")
    return tuple(parts)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
