import errno
import os
import stat

import pytest

from torchrelabel.errors import StoreError
from torchrelabel.store.files import replace_file, sync_directory, write_error


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "header"
    replace_file(path, b"old")
    replace_file(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failure_at_any_step_leaves_the_old_content(tmp_path, monkeypatch, step):
    path = tmp_path / "header"
    replace_file(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(StoreError, match="header: no space left to write"):
        replace_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_content_is_on_disk_before_its_name_is(tmp_path, monkeypatch):
    steps = []
    real_sync, real_replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *given: (steps.append("fsync"), real_sync(*given)))
    monkeypatch.setattr(os, "replace", lambda *given: (steps.append("replace"), real_replace(*given)))
    replace_file(tmp_path / "header", b"new")
    assert steps == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_a_directory_is_written_to_all_the_same(tmp_path, monkeypatch, code):
    real_sync = os.fsync

    def refuse_directories(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        real_sync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_directories)
    replace_file(tmp_path / "header", b"new")
    assert (tmp_path / "header").read_bytes() == b"new"


def test_a_directory_that_a_failing_disk_does_not_sync_is_an_error(tmp_path, monkeypatch):
    def fail(_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_directory(tmp_path)


def test_a_full_disk_is_told_apart_from_other_errors(tmp_path):
    full = write_error(tmp_path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    other = write_error(tmp_path, OSError(errno.EACCES, os.strerror(errno.EACCES)))
    assert "no space left" in str(full)
    assert "run the same command again (in Python, open the writer with resume=True)" in str(full)
    assert "no space left" not in str(other)


def test_the_words_of_lmdb_are_understood(tmp_path):
    # py-lmdb passes on the system's words, not its number.
    assert "no space left" in str(write_error(tmp_path, RuntimeError(f"mdb_txn_commit: {os.strerror(errno.ENOSPC)}")))


def test_a_write_cut_short_is_told_as_what_it_may_be(tmp_path):
    said = str(write_error(tmp_path, RuntimeError(f"mdb_txn_commit: {os.strerror(errno.EIO)}")))
    assert "no space left to write, or the disk fails (mdb_txn_commit: Input/output error)" in said
