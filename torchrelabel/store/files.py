"""Files written so that a crash never leaves half of one, with errors that say why a write failed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from torchrelabel.errors import StoreError

_OUT_OF_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old content or the new one.

    One process at a time may do so: the temporary file has a fixed name, so that kills leave at most one behind.

    Raises:
        StoreError: If the file system refuses, for instance since no space is left.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise write_error(path, error) from error


def sync_directory(directory: Path) -> None:
    """Make new names in a directory survive a loss of power."""
    if os.name == "nt":  # Windows cannot open a directory; NTFS journals its names
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network and FUSE file systems sync no directories; they keep names in a way of their own.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_error(path: Path, error: Exception) -> StoreError:
    """The error to raise where a file of a store could not be written: why, and what to do if no space is left."""
    # LMDB's errors carry the system's words, not its number.
    codes = {code for code in (*_OUT_OF_SPACE, errno.EIO) if os.strerror(code) in str(error)}
    if not codes:
        return StoreError(f"{path} cannot be written: {error}")
    # LMDB calls it an input/output error when only a part of what it wrote found room.
    why = "no space left to write, or the disk fails" if codes == {errno.EIO} else "no space left to write"
    return StoreError(
        f"{path}: {why} ({error}). What was committed is safe and can be read; "
        f"free some space and run the same command again (in Python, open the writer with resume=True)"
    )
