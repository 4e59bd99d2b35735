import errno
import gc
import os
import subprocess
import sys
import threading

import lmdb
import pytest

from torchrelabel.errors import StoreError
from torchrelabel.store import environments
from torchrelabel.store.environments import open_environment
from torchrelabel.store.layout import ABOUT_KEY


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "shard.mdb"
    environment = open_environment(path, write=True)
    with environment.handle.begin(write=True) as transaction:
        transaction.put(b"a", b"1" * 3000)
    return path


def test_one_file_has_one_environment_in_a_process(path):
    assert open_environment(path) is open_environment(path)


def test_a_link_leads_to_the_same_environment(path, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path, target_is_directory=True)
    environment = open_environment(path)
    assert open_environment(tmp_path / "link" / "shard.mdb") is environment


def test_an_environment_is_closed_when_nobody_holds_it(path):
    environment = open_environment(path)
    handle = environment.handle
    del environment
    gc.collect()
    with pytest.raises(lmdb.Error, match="closed"):
        handle.begin()


def test_a_replaced_file_is_opened_anew(path, tmp_path):
    old = open_environment(path)
    other = tmp_path / "other.mdb"
    new = open_environment(other, write=True)
    with new.handle.begin(write=True) as transaction:
        transaction.put(b"a", b"2")
    other.replace(path)
    with open_environment(path).reading() as transaction:
        assert bytes(transaction.get(b"a")) == b"2"
    with old.reading() as transaction:
        assert bytes(transaction.get(b"a")) == b"1" * 3000


def test_a_reader_s_environment_becomes_writable_for_a_writer(path):
    reader = open_environment(path)
    assert not reader.writable
    writer = open_environment(path, write=True)
    assert writer is reader
    with writer.handle.begin(write=True) as transaction:
        transaction.put(b"b", b"2")
    with reader.reading() as transaction:
        assert bytes(transaction.get(b"b")) == b"2"


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"shard.mdb is missing: its writer has not begun, or the file was lost"):
        open_environment(tmp_path / "shard.mdb")


@pytest.mark.parametrize("content", [b"", b"not LMDB" * 2000])
def test_a_file_that_is_not_lmdb_s_is_named(tmp_path, content):
    path = tmp_path / "shard.mdb"
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"shard.mdb cannot be read: .*Copy it again"):
        open_environment(path)


def test_a_file_cut_short_is_noticed_before_it_kills_the_process(path):
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(StoreError, match=r"shard.mdb is cut short: it has \d+ of \d+ bytes. Copy it again"):
        open_environment(path)


def test_an_error_of_lmdb_while_reading_names_the_file(path):
    with (
        pytest.raises(StoreError, match=r"shard.mdb cannot be read: "),
        open_environment(path).reading() as transaction,
    ):
        transaction.get(b"")  # LMDB knows no empty key


def test_another_error_while_reading_stays_what_it_is(path):
    with pytest.raises(KeyError), open_environment(path).reading():
        raise KeyError("a")


def test_the_lock_is_free_after_an_error(path):
    environment = open_environment(path)
    with pytest.raises(KeyError), environment.reading():
        raise KeyError("a")
    assert not held_by_another_thread(environment.lock)


def held_by_another_thread(lock):
    got = []
    thread = threading.Thread(target=lambda: got.append(lock.acquire(blocking=False)))
    thread.start()
    thread.join()
    return not got[0]


def test_growing_waits_for_readers(path):
    environment = open_environment(path, write=True)
    before = environment.handle.info()["map_size"]
    thread = threading.Thread(target=environment.grow)
    with environment.reading():
        thread.start()
        thread.join(0.1)
        assert environment.handle.info()["map_size"] == before
    thread.join()
    assert environment.handle.info()["map_size"] == 2 * before


def test_a_file_that_grew_and_was_cut_short_is_noticed_before_it_kills_the_process(tmp_path, monkeypatch):
    monkeypatch.setattr(environments, "INITIAL_MAP_SIZE", 65536)
    path = tmp_path / "shard.mdb"
    open_environment(path, write=True).close()
    code = (
        "import lmdb, sys\n"
        "with lmdb.open(sys.argv[1], subdir=False, map_size=2**26) as environment:\n"
        "    with environment.begin(write=True) as transaction: transaction.put(b'b', bytes(2**24))\n"
    )
    environment = open_environment(path)
    mapped = environment.handle.info()["map_size"]
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=600)
    assert path.stat().st_size > mapped
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(StoreError, match=r"shard.mdb is cut short: it has \d+ of \d+ bytes. Copy it again"):
        environment.begin()


def test_a_look_at_a_file_that_is_written_keeps_its_pages_from_being_used_again(path):
    """LMDB used to reuse them two commits later, and then to end the process or to find no key."""
    environment = open_environment(path)
    code = (
        "import sys; from pathlib import Path; from torchrelabel.store.environments import open_environment\n"
        "environment = open_environment(Path(sys.argv[1]), write=True)\n"
        "for n in range(50):\n"
        "    with environment.handle.begin(write=True) as writing:\n"
        "        for key in range(40): writing.put(b'%02d' % key, b'%03d' % n * 300)\n"
    )
    with environment.reading() as transaction:
        subprocess.run([sys.executable, "-c", code, path], check=True, timeout=600)
        assert transaction.get(b"00") is None
        assert bytes(transaction.get(b"a")) == b"1" * 3000
    with environment.reading() as transaction:
        assert bytes(transaction.get(b"39")) == b"049" * 300


def test_a_final_file_is_read_without_a_lock(tmp_path, path):
    final = tmp_path / "final.mdb"
    final.write_bytes(path.read_bytes())
    assert bytes(look(open_environment(final, final=True))) == b"1" * 3000
    assert not (tmp_path / "final.mdb-lock").exists()


def look(environment):
    with environment.reading() as transaction:
        return bytes(transaction.get(b"a"))


def written(path, value, about=None):
    environment = open_environment(path, write=True)
    with environment.handle.begin(write=True) as transaction:
        transaction.put(b"a", value)
        if about:
            transaction.put(ABOUT_KEY, about)


@pytest.mark.parametrize("about", [None, b"of the store"])
def test_another_file_copied_over_a_final_one_is_noticed_at_every_look(tmp_path, about, monkeypatch):
    """Other images' maps used to be read without a word."""
    monkeypatch.setattr(environments, "_SECONDS_BETWEEN_CHECKS", 0)
    for name in ("final.mdb", "other.mdb"):
        written(tmp_path / name, name.encode() * 1000, about and about + name.encode())
    environment = open_environment(tmp_path / "final.mdb", final=True)
    assert look(environment)[:5] == b"final"
    (tmp_path / "final.mdb").write_bytes((tmp_path / "other.mdb").read_bytes())
    for _ in range(2):
        with pytest.raises(StoreError, match=r"final.mdb was written over while it was open: another store"):
            look(environment)


def test_a_key_that_a_final_file_lacks_is_looked_for_again_if_the_file_was_written_over(tmp_path):
    """Between two checks only a key that is missing could be answered wrong: a record's checksum tells its store."""
    for name in ("final.mdb", "other.mdb"):
        written(tmp_path / name, name.encode() * 1000, b"of the store" + name.encode())
    environment = open_environment(tmp_path / "final.mdb", final=True)
    assert look(environment)[:5] == b"final"
    (tmp_path / "final.mdb").write_bytes((tmp_path / "other.mdb").read_bytes())
    with environment.lock, pytest.raises(StoreError, match=r"final.mdb was written over while it was open"):
        environment.look(anew=True)


def test_the_same_file_copied_over_a_final_one_is_read_on(tmp_path):
    written(tmp_path / "final.mdb", b"final", b"of the store")
    content = (tmp_path / "final.mdb").read_bytes()
    environment = open_environment(tmp_path / "final.mdb", final=True)
    assert look(environment) == b"final"
    (tmp_path / "final.mdb").write_bytes(content)
    os.utime(tmp_path / "final.mdb", (1, 1))
    assert look(environment) == b"final"


@pytest.mark.parametrize(("final", "words"), [(True, "cannot be read"), (False, "was cut short while it was open")])
@pytest.mark.parametrize("length", [0, 4096])
def test_a_file_cut_short_while_it_is_open_is_noticed_before_it_kills_the_process(path, tmp_path, final, words, length):
    copy = tmp_path / "copy.mdb"
    copy.write_bytes(path.read_bytes())
    environment = open_environment(copy, final=final)
    assert look(environment)
    os.truncate(copy, length)
    for _ in range(2):
        with pytest.raises(StoreError, match=words):
            look(environment)


def test_an_unfinished_file_where_no_lock_may_be_made_says_why(path, monkeypatch):
    def refuse(*_, **__):
        raise lmdb.ReadonlyError("Permission denied")

    monkeypatch.setattr(lmdb, "open", refuse)
    with pytest.raises(StoreError, match="is not finished, so reading it takes a lock beside it, which is refused"):
        environments.Environment(path, write=False)


def test_a_full_disk_has_no_room_for_a_lock_and_says_so(tmp_path, monkeypatch):
    """LMDB maps its lock: the process would die of a bus error."""
    if not hasattr(os, "posix_fallocate"):
        pytest.skip("this system reserves no room for files")

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with pytest.raises(StoreError, match="no space left to write"):
        open_environment(tmp_path / "shard.mdb", write=True)
    assert not list(tmp_path.iterdir())


def test_a_look_waits_for_its_place_among_many(path, monkeypatch):
    monkeypatch.setattr(environments, "_MAX_READERS", 1)
    monkeypatch.setattr(environments, "_LOCK_BYTES", 192)
    (path.parent / "few.mdb").write_bytes(path.read_bytes())
    environment = open_environment(path.parent / "few.mdb")
    others = [environment.handle.begin()]
    threading.Timer(0.2, others.clear).start()
    assert look(environment) == b"1" * 3000


def test_a_path_that_is_not_utf_8_is_opened(tmp_path):
    """It used to be a UnicodeEncodeError."""
    try:
        folder = tmp_path / os.fsdecode(b"caf\xe9")
        folder.mkdir()
    except (OSError, ValueError):
        pytest.skip("this file system takes no such names")
    written(folder / "shard.mdb", b"1")
    assert look(open_environment(folder / "shard.mdb")) == b"1"


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_opens_afresh_and_leaves_the_parent_s_handle_alone(path, final):
    environment = open_environment(path, final=final)
    child = os.fork()
    if child == 0:
        try:
            assert not environments._environments
            with open_environment(path).reading() as transaction:
                os._exit(0 if bytes(transaction.get(b"a")) == b"1" * 3000 else 1)
        except BaseException:
            os._exit(2)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    with environment.reading() as transaction:
        assert bytes(transaction.get(b"a")) == b"1" * 3000
