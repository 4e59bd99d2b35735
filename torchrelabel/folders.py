"""Folders of files and the names in them: walked, measured and shown in one way by every part of the package."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Files", "disk_usage", "key_as_typed", "printable", "refused_keys", "walk"]


@dataclass(frozen=True)
class Files:
    """What lies in a folder and in the folders in it.

    Attributes:
        names: Paths of the files relative to the folder, ``/`` separators, sorted.
        problems: Folders that could not be looked into, as (path, reason), sorted.
    """

    names: list[str]
    problems: list[tuple[str, str]]


def walk(
    root: str | os.PathLike[str], *, skip: Iterable[str | os.PathLike[str]] = (), advice: str = "Give a folder."
) -> Files:
    """Find the files of a folder and of the folders in it, hidden ones too.

    Links to folders are followed; one that leads back to a folder that it lies in is reported instead. A broken link
    counts as a file.

    Args:
        root: The folder.
        skip: Folders to leave out.
        advice: What to do, for the error, where ``root`` is a file.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {str(root)!r}. Check the path.")
    if not root.is_dir():
        raise NotADirectoryError(f"{str(root)!r} is a file. {advice}")
    skipped = {os.path.realpath(path) for path in skip}
    names: list[str] = []
    problems: list[tuple[str, str]] = []
    # Folders still to look into: their prefix, and the real paths of the folder and of all above it.
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            # Closed before the next folder is opened, so that depth does not cost file handles.
            with os.scandir(os.path.join(root, prefix)) as entries:
                here = [(entry.name, _is_folder(entry)) for entry in entries]
        except OSError as error:
            problems.append((prefix.rstrip("/") or str(root), error.strerror or str(error)))
            continue
        for name, is_folder in here:
            if not is_folder:
                names.append(prefix + name)
                continue
            real = os.path.realpath(os.path.join(root, prefix, name))
            if real in above:
                problems.append((prefix + name, f"a link back to {real}, which it lies in"))
            elif real not in skipped:
                waiting.append((f"{prefix}{name}/", above | {real}))
    return Files(sorted(names), sorted(problems))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself is no folder, and no reason to lose the files beside it
        return False


def disk_usage(paths: Iterable[str | os.PathLike[str]]) -> int:
    """Bytes that files take up on disk, which is less than their length where they are sparse; 0 for a broken link."""
    total = 0
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        # Windows does not tell: blocks of 4 KiB, as on most file systems.
        total += getattr(status, "st_blocks", -(-status.st_size // 4096) * 8) * 512
    return total


def printable(text: str) -> str:
    """Text for the terminal: bytes of file names that are not UTF-8 are shown as escapes."""
    try:
        content = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half a character, as names on Windows may have
        content = text.encode("utf-8", "backslashreplace")
    return content.decode("utf-8", "backslashreplace")


def refused_keys(keys: Iterable[str]) -> dict[str, str]:
    """The keys that no store can hold, each with the reason."""
    # Here, since it imports lmdb, and what is above is for commands whose --help should be there at once.
    from torchrelabel.store.layout import encode_key

    refused = {}
    for key in keys:
        try:
            encode_key(key)
        except ValueError as error:
            refused[key] = str(error)
    return refused


def key_as_typed(typed: str, root: str | os.PathLike[str], known: Container[str]) -> str:
    """The key that somebody means who types a key, or the path of an image.

    Args:
        typed: A key; or a path, absolute or from here, that leads into the folder; or one that begins with the
            folder's own name or with ``./``.
        root: The folder that keys are relative to.
        known: The keys that there are.

    Returns:
        The first of these readings that is a known key. If none is, a path into the folder as the key that it would be,
        so that an error can name similar ones, and anything else as it is.
    """
    slashed = os.path.normpath(typed).replace(os.sep, "/")
    readings = [typed, slashed]
    unknown = typed
    for resolve in (os.path.abspath, os.path.realpath):
        try:
            inside = os.path.relpath(resolve(typed), resolve(root)).replace(os.sep, "/")
        except ValueError:  # another drive, on Windows
            continue
        readings.append(inside)
        if unknown == typed and not inside.startswith(".."):
            unknown = inside
    first, _, rest = slashed.partition("/")
    if first == os.path.basename(os.path.abspath(root)):
        readings.append(rest)
    return next((key for key in readings if key and key[0] != "/" and key in known), unknown)
