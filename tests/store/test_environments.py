import gc
import os
import subprocess
import sys
import threading

import lmdb
import pytest

from torchrelabel.errors import DamagedRecord, StoreError
from torchrelabel.store import environments
from torchrelabel.store.environments import open_environment


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
    assert not environment.lock.locked()


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
    subprocess.run([sys.executable, "-c", code, path], check=True, timeout=60)
    assert path.stat().st_size > mapped
    os.truncate(path, path.stat().st_size - 4096)
    with pytest.raises(StoreError, match=r"shard.mdb is cut short: it has \d+ of \d+ bytes. Copy it again"):
        environment.begin()


def test_a_look_at_pages_that_are_reused_meanwhile_is_repeated(path):
    """A writer that commits twice meanwhile may have reused a page: what was seen there is of no commit."""
    environment, seen = open_environment(path, write=True), []

    def look(transaction):
        if not seen:
            for value in (b"2", b"3"):
                with environment.handle.begin(write=True) as writing:
                    writing.put(b"a", value)
        seen.append(bytes(transaction.get(b"a")))
        return seen[-1]

    assert environment.read(look) == b"3"
    assert len(seen) == 2


@pytest.mark.parametrize("error", [lmdb.PageNotFoundError, DamagedRecord])
def test_what_looks_like_damage_is_looked_at_again(path, error):
    """Another process that commits reuses pages; LMDB then finds none, or a record does not match its checksum."""
    errors = [error("no page"), error("no page")]

    def look(transaction):
        if errors:
            raise errors.pop()
        return bytes(transaction.get(b"a"))

    assert open_environment(path).read(look) == b"1" * 3000


def test_what_is_damaged_at_every_look_is_damaged(path):
    looks = []

    def look(transaction):
        looks.append(transaction)
        raise lmdb.PageNotFoundError("no page")

    with pytest.raises(StoreError, match=r"shard.mdb cannot be read: .*no page.*else it is damaged"):
        open_environment(path).read(look)
    assert len(looks) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_opens_afresh_and_leaves_the_parent_s_handle_alone(path):
    environment = open_environment(path)
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
