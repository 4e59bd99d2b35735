import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import filelock
import lmdb
import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.store.label_maps import fill, make_map
from torchrelabel.errors import SettingsDiffer, StoreError, StoreInUse
from torchrelabel.store import LabelStore, LabelStoreWriter, environments, shard_of
from torchrelabel.store import writer as writer_module
from torchrelabel.store.record import pack_record

SETTINGS = {"num_classes": 20, "top_k": 3}
KEYS = [f"cat/{index}.jpg" for index in range(9)]
ROOT = Path(__file__).parents[2]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "maps.lmdb"


def python(code, *arguments, **options):
    """Start ``code`` in a fresh interpreter that can import the package and these tests."""
    start = "import sys\nfrom tests.store.label_maps import *\nfrom torchrelabel.store import *\n"
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", start + textwrap.dedent(code), *map(str, arguments)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def result(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, err
    return out


def test_maps_come_back(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
    store = LabelStore(path)
    assert list(store) == KEYS
    for seed, key in enumerate(KEYS):
        scores, classes, _ = make_map(seed)
        assert_array_equal(store[key].scores, scores.astype(np.float16))
        assert_array_equal(store[key].classes, classes)


def test_leaving_the_block_marks_the_store_complete(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        assert not LabelStore(path).header.complete
    assert LabelStore(path).header.complete


def test_leaving_the_block_by_an_exception_keeps_the_maps_and_marks_nothing(path):
    def interrupted():
        with LabelStoreWriter(path, **SETTINGS) as writer:
            fill(writer, KEYS)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(LabelStore(path)) == 9
    assert not LabelStore(path).header.complete


def test_a_commit_that_fails_does_not_hide_why_the_block_ended(path, monkeypatch):
    def fail():
        raise StoreError("no space left")

    def interrupted():
        with LabelStoreWriter(path, **SETTINGS) as writer:
            monkeypatch.setattr(writer, "commit", fail)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    LabelStoreWriter(path, **SETTINGS, resume=True).close()  # and its locks are free


def test_closing_keeps_the_maps_and_marks_nothing(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        writer.close()
    assert len(LabelStore(path)) == 9
    assert not LabelStore(path).header.complete


def test_a_closed_writer_takes_nothing_more(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.finish()
        with pytest.raises(ValueError, match="is closed; open it again with resume=True"):
            writer.put("a.jpg", *make_map())


def test_finishing_tells_the_dataset(path):
    with LabelStoreWriter(path, **SETTINGS, dataset={"count": 1}) as writer:
        writer.finish(dataset={"count": 9, "fingerprint": "f"})
    assert LabelStore(path).header.dataset == {"count": 9, "fingerprint": "f"}


def test_the_header_says_what_was_given(path):
    given = {"annotator": {"model": "m"}, "grid": (7, 5), "class_names": [*"abcdefghijklmnopqrst"]}
    with LabelStoreWriter(path, **SETTINGS, **given, class_to_idx={"cat": 0}, dataset={"count": 2}) as writer:
        assert writer.path == path
        assert writer.header.grid == (7, 5)
    header = LabelStore(path).header
    assert (header.annotator, header.grid, header.class_to_idx) == ({"model": "m"}, (7, 5), {"cat": 0})
    assert header.class_names == tuple("abcdefghijklmnopqrst")


def test_the_header_is_there_before_the_first_map(path):
    LabelStoreWriter(path, **SETTINGS).close()
    assert LabelStore(path).header.top_k == 3


def test_maps_are_committed_in_batches(path):
    with LabelStoreWriter(path, **SETTINGS, commit_every=4) as writer:
        counts = []
        for seed, key in enumerate(KEYS):
            writer.put(key, *make_map(seed))
            counts.append(len(LabelStore(path)))
    assert counts == [0, 0, 0, 4, 4, 4, 4, 8, 8]


def test_a_slow_writer_commits_by_the_clock(path, monkeypatch):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.put(KEYS[0], *make_map())
        assert len(LabelStore(path)) == 0
        now = time.monotonic()
        monkeypatch.setattr(writer_module.time, "monotonic", lambda: now + 11)
        writer.put(KEYS[1], *make_map())
        assert len(LabelStore(path)) == 2


def test_a_writer_knows_what_it_has_stored_and_what_waits(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS[:2])
        writer.commit()
        writer.put(KEYS[2], *make_map())
        assert [key in writer for key in KEYS[:4]] == [True, True, True, False]


def test_a_wrong_map_names_its_key(path):
    scores, classes, _ = make_map()
    with LabelStoreWriter(path, **SETTINGS) as writer:
        with pytest.raises(ValueError, match=r"label map of 'cat/1.jpg': classes are 0 to 19, got 40 at cell \(0, 0\)"):
            writer.put("cat/1.jpg", scores, classes + 40 - classes[0, 0, 0])
        assert "cat/1.jpg" not in writer


@pytest.mark.parametrize("committed", [False, True])
def test_the_same_map_again_changes_nothing_and_another_is_refused(path, committed):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.put("a.jpg", *make_map(0))
        if committed:
            writer.commit()
        writer.put("a.jpg", *make_map(0))
        with pytest.raises(ValueError, match=r"holds another label map of 'a.jpg' already; a map is never replaced"):
            writer.put("a.jpg", *make_map(1))
    assert_array_equal(LabelStore(path)["a.jpg"].classes, make_map(0)[1])


def test_a_long_path_is_stored_under_its_own_name(path):
    keys = ["a/" + 300 * "ä" + f"/{index}.jpg" for index in range(3)]
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, [*keys, "z.jpg"])
        writer.put(keys[0], *make_map(0))
        writer.commit()
        writer.put(keys[0], *make_map(0))
    store = LabelStore(path)
    assert list(store) == [*keys, "z.jpg"]
    assert_array_equal(store[keys[2]].classes, make_map(2)[1])


def test_a_failure_is_noted_until_the_image_succeeds(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.put_failure("b.jpg", "cut short")
        writer.put_failure("a.jpg", "not an image: caf\udce9")
        writer.put_failure("c.jpg", "cut short")
        writer.put("c.jpg", *make_map())
        assert "a.jpg" not in writer
    assert LabelStore(path).failures == {"a.jpg": "not an image: caf\udce9", "b.jpg": "cut short"}
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("a.jpg", *make_map())
    store = LabelStore(path)
    assert store.failures == {"b.jpg": "cut short"}
    assert (list(store), len(store)) == (["a.jpg", "c.jpg"], 2)


def test_a_failure_of_an_earlier_batch_is_forgotten_too(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.put_failure("a.jpg", "cut short")
        writer.commit()
        writer.put("a.jpg", *make_map())
    assert LabelStore(path).failures == {}


def test_failures_of_other_images_than_those_kept_are_forgotten(path):
    with LabelStoreWriter(path, **SETTINGS, shards=2) as writer:
        for key in ("a.jpg", "b.jpg", 600 * "c", "d.jpg"):
            writer.put_failure(key, "cut short")
        writer.commit()
        writer.put_failure("e.jpg", "cut short")
        writer.keep_failures_of(["a.jpg", "new.jpg"])
        writer.put_failure("new.jpg", "cut short")
    assert list(LabelStore(path).failures) == ["a.jpg", "new.jpg"]


def test_a_failure_that_nobody_can_read_is_forgotten(path):
    LabelStoreWriter(path, **SETTINGS).close()
    with lmdb.open(str(path / "shard-00000.mdb"), subdir=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"\x00f" + bytes(32), b"\xff\xff")
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.keep_failures_of([])
    assert LabelStore(path).failures == {}


def test_a_stored_image_cannot_fail(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        writer.put("a.jpg", *make_map())
        with pytest.raises(ValueError, match=r"holds a label map of 'a.jpg', so it cannot have failed"):
            writer.put_failure("a.jpg", "no")


@pytest.mark.parametrize("codec", ["float16", "uint8"])
def test_the_map_grows_by_itself_and_loses_nothing(path, codec, monkeypatch):
    monkeypatch.setattr(environments, "INITIAL_MAP_SIZE", 32768)
    keys = [f"{index:04d}.jpg" for index in range(400)]
    with LabelStoreWriter(path, **SETTINGS, codec=codec, commit_every=150) as writer:
        fill(writer, keys)
    store = LabelStore(path)
    assert list(store) == keys
    assert_array_equal(store["0399.jpg"].classes, make_map(399)[1])


@pytest.mark.parametrize("codec", ["float16", "uint8"])
@pytest.mark.parametrize("order", [1, 7])  # 7: in no order
def test_a_map_takes_little_more_than_its_record(path, codec, order):
    """A map of the uint8 codec used to take a page for itself, as one of the float16 codec did."""
    scores, _, residual = make_map(rows=15, columns=15, top_k=5, num_classes=1000, residual=True)
    classes = np.arange(5).reshape(5, 1, 1) + 100 * (np.arange(15) > 7) + np.zeros((15, 1), int)
    keys = [f"n01440764/{index * order % 1000:05d}.JPEG" for index in range(1000)]
    with LabelStoreWriter(path, num_classes=1000, top_k=5, codec=codec, residual=True) as writer:
        for key in keys:
            writer.put(key, scores, classes, residual)
        record = len(pack_record(writer.header, keys[0].encode(), scores, classes, residual))
    assert (path / "shard-00000.mdb").stat().st_size / 1000 < record + {1: 120, 7: 200}[order]


def test_maps_in_any_order_come_back_sorted(path):
    order = np.random.default_rng(0).permutation(200)
    with LabelStoreWriter(path, **SETTINGS, commit_every=7) as writer:
        for place in order:
            writer.put(f"{place:03d}.jpg", *make_map(place))
    store = LabelStore(path)
    assert list(store) == [f"{place:03d}.jpg" for place in range(200)]
    assert_array_equal(store["017.jpg"].classes, make_map(17)[1])


# An existing store


def test_an_existing_store_is_not_touched_without_resume(path):
    LabelStoreWriter(path, **SETTINGS).close()
    said = r"holds a label store already \(incomplete\). Continue it with resume=True, give another path, or delete it"
    with pytest.raises(StoreError, match=said):
        LabelStoreWriter(path, **SETTINGS)


def test_resuming_appends_and_makes_a_complete_store_incomplete_until_it_ends(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS[:5])
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        assert not LabelStore(path).header.complete
        assert KEYS[4] in writer
        fill(writer, KEYS)
    assert list(LabelStore(path)) == KEYS
    assert LabelStore(path).header.complete


def test_resuming_what_does_not_exist_begins_it(path):
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        fill(writer, KEYS)
    assert len(LabelStore(path)) == 9


def test_resuming_with_other_settings_names_every_difference(path):
    LabelStoreWriter(path, **SETTINGS, annotator={"model": "a", "size": 475}).close()
    with pytest.raises(SettingsDiffer) as error:
        LabelStoreWriter(path, num_classes=20, top_k=2, codec="uint8", annotator={"model": "b"}, resume=True)
    for said in [
        "was begun with other settings. top_k: 3, now 2; codec: 'float16', now 'uint8'; annotator.model: 'a', now 'b'",
        "annotator.size: 475, now None. Give the old settings to continue it, or another path",
    ]:
        assert said in str(error.value)


TABLES = {
    "class_names": [*"abcdefghijklmnopqrst"],
    "class_to_idx": {name: i for i, name in enumerate([*"abcdefghijklmnopqrst"])},
}


def resumed(path, first, then):
    """The class table that a store has after two writers."""
    LabelStoreWriter(path, **SETTINGS, **first).close()
    LabelStoreWriter(path, **SETTINGS, **then, resume=True).close()
    header = LabelStore(path).header
    return {"class_names": header.class_names and [*header.class_names], "class_to_idx": header.class_to_idx}


def test_a_table_of_other_folders_than_classes_never_blocks_and_the_newest_is_kept(path):
    given = {"class_to_idx": {"a": 0, "b": 1}}, {"class_to_idx": {"0": 0, "a": 1, "b": 2}}
    assert resumed(path, *given)["class_to_idx"] == {"0": 0, "a": 1, "b": 2}


@pytest.mark.parametrize("other", [{"class_to_idx": {"a": 0, "b": 1}}, {}])
def test_a_table_of_one_folder_for_each_class_is_kept_and_taken_over(path, tmp_path, other):
    assert resumed(path, TABLES, other) == TABLES
    assert resumed(tmp_path / "other.lmdb", other, TABLES) == TABLES


def test_another_table_of_one_folder_for_each_class_is_refused(path):
    LabelStoreWriter(path, **SETTINGS, **TABLES).close()
    table = {**TABLES["class_to_idx"], "s": 19, "t": 18}
    said = r"other settings. class_to_idx\['s'\]: 18, now 19; class_to_idx\['t'\]: 19, now 18. Give"
    with pytest.raises(SettingsDiffer, match=said):
        LabelStoreWriter(path, **SETTINGS, class_to_idx=table, resume=True)


def test_resuming_keeps_descriptions_and_unknown_fields(path):
    LabelStoreWriter(path, **SETTINGS, annotator={"mean": (0.5, 0.25)}, dataset={"count": 3}).close()
    LabelStoreWriter(path, **SETTINGS, annotator={"mean": (0.5, 0.25)}, resume=True).close()
    LabelStoreWriter(path, **SETTINGS, resume=True).finish()
    header = LabelStore(path).header
    assert header.annotator == {"mean": [0.5, 0.25]}
    assert header.dataset == {"count": 3}


@pytest.mark.parametrize("resume", [False, True])
def test_a_directory_of_something_else_is_refused_and_left_alone(tmp_path, resume):
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"is no label store, and not empty: it holds photo.jpg; give a new path"):
        LabelStoreWriter(tmp_path, **SETTINGS, resume=resume)
    assert [entry.name for entry in tmp_path.iterdir()] == ["photo.jpg"]


def test_a_file_is_refused(path):
    path.write_bytes(b"")
    with pytest.raises(StoreError, match="is a file, and a label store is a directory; give another path"):
        LabelStoreWriter(path, **SETTINGS)


def test_shards_without_a_header_are_refused(path):
    LabelStoreWriter(path, **SETTINGS).close()
    (path / "header.msgpack").unlink()
    with pytest.raises(StoreError, match=r"holds shard-00000.mdb but no header.msgpack"):
        LabelStoreWriter(path, **SETTINGS)


@pytest.mark.parametrize(
    "given, said",
    [
        ({"write_shards": [2]}, r"write_shards names some of the shards 0 to 1, got \[2\]"),
        ({"write_shards": []}, r"got \[\]"),
        ({"commit_every": 0}, "commit_every is at least 1, got 0"),
        ({"top_k": 21}, "top_k is 1 to num_classes = 20, got 21"),
    ],
)
def test_wrong_settings_make_no_directory(path, given, said):
    with pytest.raises(ValueError, match=said):
        LabelStoreWriter(path, **{**SETTINGS, "shards": 2, **given})
    assert not path.exists()


def test_a_writer_that_adds_nothing_leaves_no_file(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        writer.put_failure("bad.jpg", "cut short")
    before = sorted(entry.name for entry in path.iterdir()), LabelStore(path).header
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        assert (path / "shard-00000-00001.mdb").exists()
        writer.put_failure("bad.jpg", "cut short")
        fill(writer, KEYS)
    assert (sorted(entry.name for entry in path.iterdir()), LabelStore(path).header) == before


def test_failures_are_those_of_the_last_file(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        for key in ("a.jpg", "b.jpg", "c.jpg"):
            writer.put_failure(key, "cut short")
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("a.jpg", *make_map())
        writer.put_failure("c.jpg", "no image")
        writer.keep_failures_of(["a.jpg", "c.jpg"])
    store = LabelStore(path)
    assert store.failures == {"c.jpg": "no image"}
    assert (list(store), store.header.parts) == (["a.jpg"], (2,))


def test_an_unfinished_file_is_continued_and_not_another_one_begun(path):
    for seed, key in enumerate(KEYS):
        with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
            writer.put(key, *make_map(seed))
            writer.close()
    store = LabelStore(path)
    assert (list(store), store.header.parts) == (KEYS, (1,))
    assert [file.name for file in path.glob("*.mdb")] == ["shard-00000.mdb"]


def test_a_file_that_a_killed_writer_began_and_never_named_is_begun_again(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
    (path / "shard-00000-00001.mdb").write_bytes(b"half of a page")
    assert list(LabelStore(path)) == KEYS
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("z.jpg", *make_map())
    assert list(LabelStore(path)) == [*KEYS, "z.jpg"]


def test_a_store_of_an_older_version_is_not_added_to(tmp_path):
    golden = Path(__file__).parent / "golden" / "v2-float16"
    shutil.copytree(golden, tmp_path / "old.lmdb")
    header = LabelStore(golden).header
    given = {name: getattr(header, name) for name in ("num_classes", "top_k", "residual", "shards", "image_top_k")}
    with pytest.raises(StoreError, match=r"format version 2, which this release reads, and does not add to: .* merge"):
        LabelStoreWriter(tmp_path / "old.lmdb", **given, coverage=header.coverage, resume=True)
    assert len(LabelStore(tmp_path / "old.lmdb")) == 4


@pytest.mark.parametrize("what", ["moved", "deleted", "replaced"])
def test_a_store_that_is_moved_or_deleted_is_noticed_at_the_next_commit(path, tmp_path, what):
    """It used to be noticed at the end only, hours later."""
    with LabelStoreWriter(path, **SETTINGS, commit_every=2) as writer:
        fill(writer, KEYS[:2])
        if what == "deleted":
            shutil.rmtree(path)
        else:
            path.rename(tmp_path / "elsewhere.lmdb")
        if what == "replaced":
            LabelStoreWriter(path, **SETTINGS).close()
        writer.put(KEYS[2], *make_map())
        with pytest.raises(StoreError, match=r"shard-00000.mdb was moved, deleted or replaced while it was written"):
            writer.put(KEYS[3], *make_map())
        with pytest.raises(StoreError):
            writer.close()
    if what != "deleted":
        assert list(LabelStore(tmp_path / "elsewhere.lmdb")) == KEYS[:2]


def test_large_maps_are_committed_before_they_fill_the_memory(path, monkeypatch):
    monkeypatch.setattr(writer_module, "_BYTES_BETWEEN_COMMITS", 1000)
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        assert len(LabelStore(path)) > 4


def test_a_batch_is_written_in_blocks_and_a_record_larger_than_a_block_is_one(path, monkeypatch):
    monkeypatch.setattr(writer_module, "_BYTES_OF_BLOCK", 700)
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        writer.put("large.jpg", *make_map(rows=20, columns=9))
        writer.commit()
        assert writer._shards[0]._about.blocks > 4
    store = LabelStore(path)
    assert [int(store[key].classes.sum()) for key in KEYS] == [int(make_map(n)[1].sum()) for n in range(len(KEYS))]
    assert_array_equal(store["large.jpg"].classes, make_map(rows=20, columns=9)[1])


def test_a_block_is_never_written_twice_even_if_a_writer_remembers_fewer(path):
    """A killed writer may leave the next one to see the commit before its last."""
    with LabelStoreWriter(path, **SETTINGS) as writer:
        before = writer._shards[0]._about
        fill(writer, KEYS)
        writer.commit()
        writer._shards[0]._about = before
        writer.put("z.jpg", *make_map())
        writer.commit()
        assert (writer._shards[0]._about.blocks, writer._shards[0]._about.records) == (2, len(KEYS) + 1)
    store = LabelStore(path)
    assert [int(store[key].classes.sum()) for key in KEYS] == [int(make_map(n)[1].sum()) for n in range(len(KEYS))]


def test_places_of_killed_readers_are_freed(path):
    code = """
        store = LabelStore(sys.argv[1])
        look = store._environment(0).reading().__enter__()
        print("looking", flush=True)
        sys.stdin.read()
    """
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS[:1])
        writer.commit()
        with python(code, path, stdin=subprocess.PIPE) as reader:
            assert reader.stdout.readline() == "looking\n"
            reader.kill()
        fill(writer, KEYS)
        writer.commit()
        assert writer._shards[0]._environment.handle.reader_check() == 0


# Several writers


def test_a_second_writer_is_told_that_the_store_is_in_use(path, monkeypatch):
    monkeypatch.setattr("torchrelabel.store.writer._SECONDS_FOR_ORPHANS_TO_END", 0.1)
    with LabelStoreWriter(path, **SETTINGS):
        for resume in (False, True):
            with pytest.raises(StoreInUse, match=r"another writer writes to .*maps.lmdb \(shard-00000.lock is held\)"):
                LabelStoreWriter(path, **SETTINGS, resume=resume)


def test_a_writer_in_another_process_is_seen(path):
    code = """
        import torchrelabel.store.writer
        torchrelabel.store.writer._SECONDS_FOR_ORPHANS_TO_END = 0.1
        try:
            LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3, resume=True)
        except Exception as error:
            print(type(error).__name__, error)
    """
    with LabelStoreWriter(path, **SETTINGS):
        said = result(python(code, path))
    assert said.startswith("StoreInUse another writer writes to")
    assert str(path) in said


def test_a_killed_writers_loaders_end_before_the_store_is_said_to_be_in_use(path, monkeypatch):
    """They are forked with its locks, and used to make a run that was started again at once fail."""
    monkeypatch.setattr("torchrelabel.store.writer._SECONDS_FOR_ORPHANS_TO_END", 600)  # on however busy a machine
    code = """
        import os, time
        writer = LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3)
        if os.fork() == 0:
            time.sleep(1.5)
            os._exit(0)
        print("began", flush=True)
        os.kill(os.getpid(), 9)
    """
    killed = python(code, path)
    assert killed.stdout.readline() == "began\n"
    assert killed.wait() == -9
    LabelStoreWriter(path, **SETTINGS, resume=True).close()
    killed.communicate()


def test_a_failed_writer_leaves_no_lock(path):
    LabelStoreWriter(path, **SETTINGS).close()
    with pytest.raises(SettingsDiffer):
        LabelStoreWriter(path, num_classes=20, top_k=2, resume=True)
    LabelStoreWriter(path, **SETTINGS, resume=True).close()


@pytest.fixture(params=[filelock.FileLock, filelock.SoftFileLock])
def locks(request, monkeypatch):
    """Every lock that a writer makes, kept, so that none is freed by being forgotten.

    Soft locks are what filelock falls back to where the file system has no flock.
    """
    kept = []

    class Kept(request.param):
        def __init__(self, *given, **options):
            super().__init__(*given, **options)
            kept.append(self)

    monkeypatch.setattr(writer_module, "FileLock", Kept)
    monkeypatch.setattr(writer_module, "_SECONDS_FOR_HEADER_LOCK", 0.1)
    monkeypatch.setattr(writer_module, "_SECONDS_FOR_ORPHANS_TO_END", 0.1)
    return kept


def test_the_header_s_lock_is_free_after_its_block_and_all_are_after_the_writer_s(path, locks):
    """It used to be acquired twice and released once, so that a writer with soft locks blocked itself."""
    with LabelStoreWriter(path, **SETTINGS, shards=2) as writer:
        held = {Path(lock.lock_file).name: lock.lock_counter for lock in locks}
        assert held == {"header.lock": 0, "shard-00000.lock": 1, "shard-00001.lock": 1}
        writer.put("a.jpg", *make_map())
    assert [lock.lock_counter for lock in locks] == 4 * [0]


def test_a_writer_that_is_refused_frees_its_locks_at_once(path, locks):
    LabelStoreWriter(path, **SETTINGS).close()
    with pytest.raises(SettingsDiffer):
        LabelStoreWriter(path, num_classes=20, top_k=2, resume=True)
    assert not any(lock.is_locked for lock in locks)


def test_ranks_write_their_own_shards_and_the_last_makes_it_complete(path):
    code = """
        rank, keys = int(sys.argv[2]), [f"{index:03d}.jpg" for index in range(120)]
        with LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3, shards=3, write_shards=[rank]) as writer:
            for seed, key in enumerate(keys):
                if shard_of(key, 3) == rank:
                    writer.put(key, *make_map(seed))
    """
    for process in [python(code, path, rank) for rank in (0, 1)]:
        result(process)
    assert LabelStore(path).header.finished == (0, 1)
    result(python(code, path, 2))
    store = LabelStore(path)
    assert store.header.complete
    assert list(store) == [f"{index:03d}.jpg" for index in range(120)]
    assert_array_equal(store["117.jpg"].classes, make_map(117)[1])


def test_ranks_with_other_settings_do_not_join(path):
    with (
        LabelStoreWriter(path, **SETTINGS, shards=2, write_shards=[0]),
        pytest.raises(SettingsDiffer, match="codec: 'float16', now 'uint8'"),
    ):
        LabelStoreWriter(path, **SETTINGS, shards=2, write_shards=[1], codec="uint8")


def test_a_rank_does_not_begin_a_shard_twice_without_resume(path):
    LabelStoreWriter(path, **SETTINGS, shards=2, write_shards=[0]).finish()
    with pytest.raises(StoreError, match="holds a label store already"):
        LabelStoreWriter(path, **SETTINGS, shards=2, write_shards=[0])


def test_a_rank_takes_only_keys_of_its_shards(path):
    key = next(key for key in KEYS if shard_of(key, 2) == 1)
    with (
        LabelStoreWriter(path, **SETTINGS, shards=2, write_shards=[0]) as writer,
        pytest.raises(ValueError, match=rf"'{key}' belongs to shard 1, and this writer writes shards \[0\]"),
    ):
        writer.put(key, *make_map())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_does_not_write_with_its_parent_s_writer(path):
    with LabelStoreWriter(path, **SETTINGS) as writer:
        child = os.fork()
        if child == 0:
            try:
                writer.put("a.jpg", *make_map())
            except ValueError as error:
                os._exit(0 if "belongs to process" in str(error) else 1)
            os._exit(2)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0
        fill(writer, KEYS)
    assert len(LabelStore(path)) == 9


# Kills and full disks


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_a_kill_loses_at_most_the_last_batch_and_frees_the_lock(path):
    code = """
        writer = LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3, commit_every=10)
        for seed in range(100000):
            writer.put(f"{seed:06d}.jpg", *make_map(seed % 50))
            print(seed, flush=True)
    """
    with python(code, path) as process:
        for line in process.stdout:
            if int(line) == 137:
                break
        process.kill()
        put = 1 + int([line, *process.stdout][-1])
    store = LabelStore(path)
    kept = list(store)
    assert put - 11 <= len(kept) <= put + 1
    assert kept == [f"{seed:06d}.jpg" for seed in range(len(kept))]
    for seed, key in enumerate(kept):
        assert_array_equal(store[key].classes, make_map(seed % 50)[1])
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("z.jpg", *make_map())
    assert len(LabelStore(path)) == len(kept) + 1


def test_a_full_disk_is_a_clear_error_and_what_was_committed_is_read(path):
    # A limit on the size of files stands in for the disk: it needs no rights, and fails the same system calls.
    pytest.importorskip("resource")
    code = """
        import json, resource
        from torchrelabel.errors import StoreError
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        committed = 0
        try:
            with LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3, commit_every=10) as writer:
                for seed in range(10000):
                    writer.put(f"{seed:05d}.jpg", *make_map(seed % 50))
                    if seed % 10 == 9:
                        committed = seed + 1
        except StoreError as error:
            print(json.dumps([committed, str(error)]))
    """
    committed, said = json.loads(result(python(code, path)))
    assert "shard-00000.mdb: no space left to write" in said
    assert "What was committed is safe and can be read; free some space and run the same command again" in said
    store = LabelStore(path)
    assert committed > 100
    assert list(store) == [f"{seed:05d}.jpg" for seed in range(committed)]
    assert not store.header.complete
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("z.jpg", *make_map())
    assert len(LabelStore(path)) == committed + 1


@pytest.fixture
def small_disk(tmp_path):
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root on Linux; the limit on file sizes is tested all the same")
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", tmp_path], capture_output=True)
    if mount.returncode:
        pytest.skip(f"mount refuses: {mount.stderr!r}; the limit on file sizes is tested all the same")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_file_system_that_is_full_is_a_clear_error_and_can_be_continued(small_disk):
    path = small_disk / "maps.lmdb"
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(250_000))

    def write_too_much():
        with LabelStoreWriter(path, **SETTINGS, commit_every=10) as writer:
            fill(writer, [f"{seed:05d}.jpg" for seed in range(10000)])

    with pytest.raises(StoreError, match=r"shard-00000.mdb: no space left to write"):
        write_too_much()
    kept = len(LabelStore(path))
    assert kept > 100
    ballast.unlink()
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("z.jpg", *make_map())
    store = LabelStore(path)
    assert len(store) == kept + 1
    assert_array_equal(store["z.jpg"].classes, make_map()[1])
    store.close()


def test_a_disk_too_full_for_the_header_is_a_clear_error(small_disk):
    try:
        (small_disk / "ballast").write_bytes(bytes(2**20))
    except OSError:
        pass
    with pytest.raises(StoreError, match="no space left to write"):
        LabelStoreWriter(small_disk / "maps.lmdb", **SETTINGS)
