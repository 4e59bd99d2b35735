"""copy: a finished store to or from an object store, with checksums, continued where it was interrupted."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from torchrelabel.errors import StoreError
from torchrelabel.remote import filesystem_of, is_url
from torchrelabel.store.files import replace_file, sync_directory, write_error
from torchrelabel.store.header import StoreHeader, read_header
from torchrelabel.store.layout import HEADER_FILE, SUMS_FILE, shard_file
from torchrelabel.store.reader import LabelStore
from torchrelabel.store.verify import verify

__all__ = ["Copied", "copy"]

_BYTES_AT_ONCE = 4 * 1024 * 1024

# Called with the number of bytes of all files once, and then with that of each piece.
Progress = Callable[[int], object]


@dataclass(frozen=True)
class Copied:
    """What a copy came to.

    Attributes:
        files: Of the store.
        bytes: Of these.
        fetched: How many bytes were copied now.
        checked: ``"checksums"``; ``"maps"`` where the source has none, so that each map was read; or ``"sizes"`` where
            the copy was there already, since it was checked before it got its name.
    """

    files: int
    bytes: int
    fetched: int
    checked: str


def copy(
    source: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    begin: Progress = lambda total: None,
    advance: Progress = lambda size: None,
) -> Copied:
    """Copy a complete store, so that either all of it is there in the end, and sound, or nothing under its name.

    To an object store, it is verified first, and goes with a file of checksums (``SHA256SUMS``) and its header last.
    From one, what arrives is held to these checksums; where there are none, every map is read. What was copied when
    the call was interrupted is kept in ``TARGET.partial``, and the same call continues. Several processes of a machine
    may make the same call; one of them copies.

    Args:
        source: A store, or the URL of one, such as ``s3://bucket/maps.lmdb``.
        target: A new path or URL. One of both is a path.
        begin: Told the bytes of all files.
        advance: Told the bytes of each piece that is copied, or was there.

    Raises:
        ValueError: If both are URLs.
        ImportError: If what a URL needs is not installed.
        FileNotFoundError: If the source is no store, or the target's folder does not exist.
        StoreError: If the store is not complete, not sound, was damaged on the way, or the target is another one.
    """
    source, target = os.fspath(source), os.fspath(target)
    if is_url(source) and is_url(target):
        raise ValueError(f"{source} and {target} both lie elsewhere. Copy to a path first, and from there.")
    if is_url(target):
        return _upload(Path(source), target, begin, advance)
    path = Path(os.path.abspath(target))
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to copy to. Make it, or give another path.")
    # Not beside the store, where it would stay.
    lock = hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()
    with FileLock(Path(tempfile.gettempdir(), f"torchrelabel-{lock[:16]}.lock")):
        return _download(source, path, begin, advance)


def _download(source: str, target: Path, begin: Progress, advance: Progress) -> Copied:
    filesystem, root = filesystem_of(source)
    header = _read(filesystem, root, HEADER_FILE)
    if header is None:
        raise FileNotFoundError(f"{source} is no label store: it has no {HEADER_FILE}. Check the path.")
    names = _files_of(source, _understood(source, header))
    sizes = {name: _size(filesystem, root, source, name) for name in names}
    begin(sum(sizes.values()))
    there = target.exists()
    if there and ((target / HEADER_FILE).read_bytes() if (target / HEADER_FILE).exists() else None) != header:
        raise StoreError(f"{target} exists and is not this store. Give a new path, or delete it")
    if there:
        wrong = [name for name, size in sizes.items() if not _has_size(target / name, size)]
        if wrong:
            raise StoreError(f"{target} lacks {', '.join(wrong)}, or a part of it. Delete it, and copy it again")
        return Copied(len(names), sum(sizes.values()), 0, "sizes")
    sums = _parsed(_read(filesystem, root, SUMS_FILE) or b"", source)
    place = target.with_name(f"{target.name}.partial")
    _begin(place, header)
    fetched = 0
    for name, size in sizes.items():
        fetched += _fetch(filesystem, f"{root.rstrip('/')}/{name}", place / name, size, advance)
    _check(place, source, sizes, sums)
    os.rename(place, target)
    sync_directory(target.parent)
    return Copied(len(names), sum(sizes.values()), fetched, "checksums" if sums.keys() >= sizes.keys() else "maps")


def _has_size(file: Path, size: int) -> bool:
    return file.exists() and file.stat().st_size == size


def _begin(place: Path, header: bytes) -> None:
    """Go on with what there is of this very store, or begin anew."""
    try:
        if place.exists() and (not (place / HEADER_FILE).exists() or (place / HEADER_FILE).read_bytes() != header):
            shutil.rmtree(place)
        place.mkdir(exist_ok=True)
    except OSError as error:
        raise write_error(place, error) from error
    replace_file(place / HEADER_FILE, header)


def _fetch(filesystem: Any, path: str, file: Path, size: int, advance: Progress) -> int:
    """Copy what is missing of a file; the number of bytes that were."""
    with file.open("ab") as local:
        have = local.tell()
        if have > size:
            local.truncate(have := 0)
        advance(have)
        with filesystem.open(path, "rb") as remote:
            remote.seek(have)
            for content in _pieces(remote, size - have):
                try:
                    local.write(content)
                except OSError as error:
                    raise write_error(file, error) from error
                advance(len(content))
        local.flush()
        os.fsync(local.fileno())
    return size - have


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    while size and (content := file.read(min(size, _BYTES_AT_ONCE))):
        yield content
        size -= len(content)


def _check(place: Path, source: str, sizes: Mapping[str, int], sums: Mapping[str, str]) -> None:
    """Refuse what is not what the source has, and delete it, so that the next call copies it again.

    Raises:
        StoreError: Naming what is wrong.
    """
    again = f"The same command copies that again; if it stays wrong, {source} itself is damaged"
    short = [name for name, size in sizes.items() if not _has_size(place / name, size)]
    wrong = short or [name for name in sizes if sums.get(name) not in (None, _sum_of(place / name))]
    if wrong:
        _forget(place, [] if short else wrong)
        raise StoreError(f"{', '.join(wrong)} did not arrive as {source} has it. {again}")
    if sums.keys() >= sizes.keys():
        return
    store = LabelStore(place)
    found = verify(store)
    store.close()
    if found.damaged or found.miscounted or found.incomplete:
        what = "; ".join([f"{key}: {why}" for key, why in list(found.damaged.items())[:3]] or [found.miscounted])
        _forget(place, list(sizes))
        raise StoreError(f"What arrived of {source} is not sound: {what}. {again}")


def _forget(place: Path, names: list[str]) -> None:
    """Delete files of a copy that is not finished."""
    for name in names:
        (place / name).unlink()


def _upload(source: Path, target: str, begin: Progress, advance: Progress) -> Copied:
    header = read_header(source)
    names = _files_of(str(source), header)
    content = (source / HEADER_FILE).read_bytes()
    filesystem, root = filesystem_of(target)
    there = _read(filesystem, root, HEADER_FILE)
    # Of one that was calibrated anew, the header is another one.
    if there not in (None, content) and _understood(target, there or b"").identity != (header.identity or None):
        raise StoreError(f"{target} holds another store. Give a new path, or delete it")
    found = verify(LabelStore(source))
    if found.damaged or found.miscounted:
        raise StoreError(f"{source} is not sound, see `torchrelabel verify {source}`. Nothing was copied")
    begin(sum((source / name).stat().st_size for name in names))
    sums = []
    filesystem.makedirs(root, exist_ok=True)
    for name in names:
        digest = hashlib.sha256()
        with (source / name).open("rb") as local, filesystem.open(f"{root.rstrip('/')}/{name}", "wb") as remote:
            for piece in _pieces(local, (source / name).stat().st_size):
                digest.update(piece)
                remote.write(piece)
                advance(len(piece))
        sums.append(f"{digest.hexdigest()}  {name}\n")
    filesystem.pipe_file(f"{root.rstrip('/')}/{SUMS_FILE}", "".join(sums).encode())
    # Last: what has no header is no store yet.
    filesystem.pipe_file(f"{root.rstrip('/')}/{HEADER_FILE}", content)
    size = sum((source / name).stat().st_size for name in names)
    return Copied(len(names), size, size, "maps")


def _understood(store: str, header: bytes) -> StoreHeader:
    try:
        return StoreHeader.from_bytes(header)
    except ValueError as error:
        raise StoreError(f"{HEADER_FILE} of {store} cannot be read: {error}") from None


def _files_of(store: str, header: StoreHeader) -> list[str]:
    """The names of a store's LMDB files.

    Raises:
        StoreError: If it is not complete.
    """
    if not header.complete:
        raise StoreError(f"{store} is not complete: its writer has not finished. Finish it first")
    parts = header.parts if header.in_blocks else (1,) * header.shards
    return [shard_file(shard, part) for shard in range(header.shards) for part in range(parts[shard])]


def _read(filesystem: Any, root: str, name: str) -> bytes | None:
    """The content of a small file; None if there is none."""
    try:
        content: bytes = filesystem.cat_file(f"{root.rstrip('/')}/{name}")
    except FileNotFoundError:
        return None
    return content


def _size(filesystem: Any, root: str, source: str, name: str) -> int:
    try:
        return int(filesystem.info(f"{root.rstrip('/')}/{name}")["size"])
    except FileNotFoundError:
        raise StoreError(f"{source} lacks {name}, so that it is not all there. Copy it there again") from None


def _parsed(content: bytes, source: str) -> dict[str, str]:
    """Checksums by name, as ``sha256sum`` writes them."""
    sums = {}
    for line in content.decode("utf-8", "replace").splitlines():
        digest, separator, name = line.partition("  ")
        if not separator or len(digest) != 64:
            raise StoreError(f"{SUMS_FILE} of {source} cannot be read: {line[:80]!r}. Delete it, or copy it again")
        sums[name] = digest
    return sums


def _sum_of(file: Path) -> str:
    with file.open("rb") as content:
        digest = hashlib.sha256()
        while piece := content.read(_BYTES_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
