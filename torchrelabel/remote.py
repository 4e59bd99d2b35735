"""Files that lie elsewhere: a file system and a path in it, of a URL such as ``s3://bucket/maps.lmdb``."""

from __future__ import annotations

from typing import Any

__all__ = ["filesystem_of", "is_url"]


def is_url(path: str) -> bool:
    """Whether a path says how it is to be reached, as ``s3://bucket/folder`` does."""
    return "://" in path


def filesystem_of(url: str) -> tuple[Any, str]:
    """The file system of a URL or of a local path, by fsspec, and the path in it.

    Where fsspec lacks the package for a protocol (s3fs, gcsfs, ...), pyarrow's own file system is taken.

    Args:
        url: Such as ``s3://bucket/folder``, or a local path.

    Raises:
        ImportError: If fsspec is not installed, or neither has what the protocol needs.
        ValueError: If neither knows the protocol.
    """
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise ImportError(
            f"{url} is reached through fsspec, which is not installed: pip install 'torchrelabel[remote]'."
        ) from error
    try:
        filesystem, path = url_to_fs(url)
        return filesystem, path
    except ImportError as missing:
        try:
            from fsspec.implementations.arrow import ArrowFSWrapper
            from pyarrow.fs import FileSystem

            filesystem, path = FileSystem.from_uri(url)
        except (ImportError, ValueError):  # pyarrow's errors of what it cannot read are ValueErrors
            raise ImportError(f"{url}: {missing}. pyarrow opens some URLs, too.") from missing
        return ArrowFSWrapper(filesystem), path
