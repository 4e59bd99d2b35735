import multiprocessing
import os
import pickle
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.store.label_maps import editing, fill, flip_byte, make_map
from torchrelabel.errors import DamagedRecord, MissingLabelMap, StoreError
from torchrelabel.store import LabelStore, LabelStoreWriter, environments, parts
from torchrelabel.store.layout import record_key

SETTINGS = {"num_classes": 20, "top_k": 3}
KEYS = ["train/cat/1.JPEG", "train/cat/2.JPEG", "train/dog/001.Black_footed/x.v2.png", "train/dog/7.JPEG"]
ROOT = Path(__file__).parents[2]


def write(path, keys=KEYS, **given):
    with LabelStoreWriter(path, **SETTINGS, **given) as writer:
        fill(writer, keys)
    return path


@pytest.fixture
def path(tmp_path):
    return write(tmp_path / "maps.lmdb")


def test_it_is_a_mapping(path):
    store = LabelStore(path)
    assert isinstance(store, Mapping)
    assert len(store) == 4
    assert list(store) == KEYS
    assert [key for key, _ in store.items()] == KEYS
    assert KEYS[0] in store
    assert "cat" not in store
    assert 5 not in store
    assert "" not in store


def test_a_record_is_what_was_put(path):
    scores, classes, _ = make_map(2)
    record = LabelStore(path)[KEYS[2]]
    assert_array_equal(record.scores, scores.astype(np.float16))
    assert_array_equal(record.classes, classes)
    assert record.residual is None
    assert record.coverage == (0, 0, 1, 1)


def test_arrays_outlive_the_store_and_may_be_written(path):
    store = LabelStore(path)
    record = store[KEYS[0]]
    before = record.scores.copy()
    store.close()
    assert_array_equal(record.scores, before)
    record.scores[:] = 0
    assert_array_equal(LabelStore(path)[KEYS[0]].scores, before)


def test_a_relative_path_outlives_a_change_of_directory(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = LabelStore("maps.lmdb")
    monkeypatch.chdir("/")
    assert len(store) == 4


def test_making_one_opens_no_shard(path):
    (path / "shard-00000.mdb").unlink()
    assert LabelStore(path).header.top_k == 3


def test_keys_are_sorted_across_shards(tmp_path):
    keys = [f"{index:03d}.jpg" for index in range(100)]
    path = write(tmp_path / "maps.lmdb", keys, shards=7)
    store = LabelStore(path)
    assert len(list(path.glob("shard-*.mdb"))) == 7
    assert (list(store), len(store)) == (keys, 100)
    assert_array_equal(store["042.jpg"].classes, make_map(42)[1])


def test_iteration_goes_on_from_batch_to_batch(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "KEYS_AT_ONCE", 3)
    keys = [f"{index:02d}.jpg" for index in range(12)]
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        fill(writer, keys)
        writer.close()
    assert list(LabelStore(tmp_path / "maps.lmdb")) == keys


def test_large_values_are_not_all_in_memory_when_they_are_walked(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "BYTES_AT_ONCE", 1000)
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        for index in range(12):
            writer.put_failure(f"{index:02d}.jpg", 300 * "x")
        writer.close()
    looks, some = [], parts.Part._some_from

    def counted(*given):
        looks.append(some(*given))
        return looks[-1]

    monkeypatch.setattr(parts.Part, "_some_from", counted)
    assert len(LabelStore(tmp_path / "maps.lmdb").failures) == 12
    assert len(looks) > 3


def test_keys_are_listed_and_counted_without_a_look_at_records(path, monkeypatch):
    monkeypatch.setattr(parts, "record_bytes", lambda *_: pytest.fail("a record was read"))
    store = LabelStore(path)
    assert (len(store), list(store), KEYS[0] in store, "x" in store) == (4, KEYS, True, False)


def test_grids_may_differ_from_record_to_record(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        for columns in range(1, 6):
            writer.put(f"{columns}.jpg", *make_map(rows=2 * columns, columns=columns))
    store = LabelStore(tmp_path / "maps.lmdb")
    assert [store[key].scores.shape for key in store] == [(3, 2 * n, n) for n in range(1, 6)]


def test_coverage_comes_back_with_each_record(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS, coverage=(0.125, 0, 0.875, 1)) as writer:
        writer.put("a.jpg", *make_map())
        writer.put("b.jpg", *make_map(), coverage=(0, 0.25, 1, 0.75))
    store = LabelStore(tmp_path / "maps.lmdb")
    assert store.header.coverage == (0.125, 0, 0.875, 1)
    assert [store[key].coverage for key in store] == [(0.125, 0, 0.875, 1), (0, 0.25, 1, 0.75)]


@settings(max_examples=15, deadline=None)
@given(
    keys=st.sets(
        st.text(st.characters(blacklist_characters="\0", blacklist_categories=("Cs",)), min_size=1, max_size=200)
        .map(lambda text: text * (1 + 3 * (len(text) > 150)))
        .filter(lambda text: text[0] not in "/\x01"),
        max_size=8,
    ),
    shards=st.integers(1, 3),
)
def test_any_paths_come_back_sorted(tmp_path_factory, keys, shards):
    store = LabelStore(write(tmp_path_factory.mktemp("store") / "maps.lmdb", sorted(keys), shards=shards))
    assert list(store) == sorted(keys, key=str.encode)
    assert all(key in store for key in keys)


# Missing keys


def test_a_missing_key_names_itself_the_store_and_the_nearest(path):
    with pytest.raises(MissingLabelMap) as error:
        LabelStore(path)["cat/1.JPEG"]
    nearest = "'train/cat/1.JPEG'"
    assert str(error.value) == f"no label map of 'cat/1.JPEG' in {path}; nearest keys: {nearest}"


@pytest.mark.parametrize(
    "asked, meant",
    [
        ("data/train/cat/1.JPEG", "train/cat/1.JPEG"),
        ("/data/train/cat/1.JPEG", "train/cat/1.JPEG"),
        ("cat/1.JPEG", "train/cat/1.JPEG"),
        ("val/cat/1.JPEG", "train/cat/1.JPEG"),
        ("train/cat/1.jpg", "train/cat/1.JPEG"),
        ("train/cat/1", "train/cat/1.JPEG"),
        ("train\\cat\\1.JPEG", "train/cat/1.JPEG"),
        ("train/dog/001.Black_footed/x.v2.jpg", "train/dog/001.Black_footed/x.v2.png"),
        ("train/dog/8.JPEG", "train/dog/7.JPEG"),
    ],
)
def test_the_nearest_key_is_the_one_that_was_meant(path, asked, meant):
    assert LabelStore(path).nearest(asked, 1) == [meant]


def test_a_folder_may_be_missing_in_front_in_any_of_many(tmp_path):
    keys = [f"class{index:03d}/{index}.jpg" for index in range(150)]
    store = LabelStore(write(tmp_path / "maps.lmdb", keys, shards=3))
    assert store.nearest("117.jpg", 1) == ["class117/117.jpg"]


def test_another_case_is_near(tmp_path):
    store = LabelStore(write(tmp_path / "maps.lmdb", ["aaa.jpg", "img_001.jpg", "zzz.jpg"]))
    assert store.nearest("IMG_001.JPG", 1) == ["img_001.jpg"]


def test_of_the_neighbours_the_one_with_more_in_common_comes_first(tmp_path):
    store = LabelStore(write(tmp_path / "maps.lmdb", ["a/1.jpg", "b/9.jpg"]))
    assert store.nearest("b/5.jpg") == ["b/9.jpg", "a/1.jpg"]


def test_suggestions_are_distinct_and_as_many_as_asked_for(path):
    near = LabelStore(path).nearest("train/cat/3.JPEG", 2)
    assert len(set(near)) == len(near) == 2


def test_an_empty_store_has_nothing_near(tmp_path):
    store = LabelStore(write(tmp_path / "maps.lmdb", []))
    assert store.nearest("a.jpg") == []
    with pytest.raises(MissingLabelMap, match="which is empty"):
        store["a.jpg"]


def test_get_gives_a_default(path):
    store = LabelStore(path)
    assert store.get("cat/1.JPEG") is None
    assert store.get(KEYS[0]).scores.shape == (3, 7, 5)


def test_a_failed_image_is_missing_for_its_reason(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        writer.put_failure("a.jpg", "the file is cut short")
    with pytest.raises(MissingLabelMap, match=r"it could not be annotated \(the file is cut short\)"):
        LabelStore(tmp_path / "maps.lmdb")["a.jpg"]


def test_a_key_missing_in_an_incomplete_store_says_so(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        fill(writer, KEYS)
        writer.close()
    with pytest.raises(MissingLabelMap, match="The store is incomplete: run the same annotate command again"):
        LabelStore(tmp_path / "maps.lmdb")["a.jpg"]


@pytest.mark.parametrize(
    "key, reason",
    [
        ("", "got an empty string"),
        ("/a", "got the absolute path '/a'"),
        ("\x01a", "must not hold a NUL nor begin with the byte 0x01"),
        ("a\0b", "must not hold a NUL"),
        ("\ud800", "must be text that UTF-8 can hold"),
        (70000 * "a", "has at most 65535 bytes, got 70000"),
    ],
)
def test_what_can_be_no_key_is_missing(path, key, reason):
    """It used to be a ValueError, though ``in`` says that it is not there."""
    store = LabelStore(path)
    assert key not in store
    assert store.get(key, 5) == 5
    with pytest.raises(MissingLabelMap, match=reason):
        store[key]


def test_what_is_no_string_is_a_type_error(path):
    store = LabelStore(path)
    for look in (store.get, store.__getitem__):
        with pytest.raises(TypeError, match="got int 5"):
            look(5)


def test_a_missing_long_key_is_missing(path):
    with pytest.raises(MissingLabelMap, match="nearest keys"):
        LabelStore(path)[600 * "a" + ".jpg"]


# Processes and threads


def test_two_stores_on_one_path_share_a_handle(path):
    first, second = LabelStore(path), LabelStore(os.path.relpath(path))
    assert_array_equal(first[KEYS[0]].scores, second[KEYS[0]].scores)
    assert len(environments._environments) == 1
    first.close()
    assert_array_equal(second[KEYS[0]].classes, make_map(0)[1])
    assert_array_equal(first[KEYS[0]].classes, make_map(0)[1])


def test_a_store_pickles_as_its_path(path):
    store = LabelStore(path)
    assert len(store) == 4
    pickled = pickle.dumps(store)
    assert len(pickled) < 500
    assert pickle.loads(pickled).path == path


def look(store, keys, queue=None):
    found = [int(store[key].classes.sum()) for key in keys]
    if queue is not None:
        queue.put(found)
    return found


@pytest.mark.parametrize(
    "method, opened_before", [("fork", True), ("fork", False), ("spawn", True), ("forkserver", True)]
)
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_process_reads_what_its_parent_reads(path, method, opened_before):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"this system does not {method}")
    store, other = LabelStore(path), LabelStore(path)
    if opened_before:
        look(store, KEYS)
        look(other, KEYS)
    context = multiprocessing.get_context(method)
    queue = context.Queue()
    workers = [context.Process(target=look, args=(each, KEYS, queue)) for each in (store, other)]
    for worker in workers:
        worker.start()
    results = [queue.get(timeout=600) for _ in workers]
    for worker in workers:
        worker.join()
    queue.close()
    assert results == 2 * [[int(make_map(seed)[1].sum()) for seed in range(4)]]
    assert look(store, KEYS) == results[0]


def test_threads_may_share_a_store(path):
    store, results = LabelStore(path), []
    threads = [threading.Thread(target=lambda: results.append(look(store, 50 * KEYS))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == 4 * [look(store, 50 * KEYS)]


def test_a_reader_in_the_writer_s_process_sees_what_is_committed(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        store = LabelStore(tmp_path / "maps.lmdb")
        writer.put("a.jpg", *make_map())
        assert "a.jpg" not in store
        writer.commit()
        assert_array_equal(store["a.jpg"].classes, make_map()[1])


def test_a_writer_may_begin_where_a_reader_of_this_process_is(path):
    store = LabelStore(path)
    assert len(store) == 4
    with LabelStoreWriter(path, **SETTINGS, resume=True) as writer:
        writer.put("z.jpg", *make_map())
    assert_array_equal(store["z.jpg"].classes, make_map()[1])


def test_a_reader_follows_a_store_that_another_process_grows(tmp_path):
    path = tmp_path / "maps.lmdb"
    with LabelStoreWriter(path, **SETTINGS) as writer:
        fill(writer, KEYS)
        writer.close()
    store = LabelStore(path)
    assert len(store) == 4
    mapped = store._environment(0).handle.info()["map_size"]
    # A large map costs the other process nothing to make: it repeats the rows of a small one.
    code = (
        "import sys, numpy as np; from torchrelabel.store import *; from tests.store.label_maps import make_map\n"
        "with LabelStoreWriter(sys.argv[1], num_classes=20, top_k=3, resume=True) as writer:\n"
        "    for n in range(12): writer.put(f'z{n:03d}.jpg', *[np.repeat(a, 9000, 1) for a in make_map(n)[:2]])\n"
        "    writer.close()\n"
    )
    subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True, timeout=600)
    assert (path / "shard-00000.mdb").stat().st_size > mapped
    assert len(store) == 16
    assert store["z011.jpg"].scores.shape == (3, 63000, 5)


def test_importing_the_store_loads_no_lmdb_until_a_file_is_opened(path):
    code = (
        "import sys; from torchrelabel.store import LabelStore; store = LabelStore(sys.argv[1])\n"
        "before = 'lmdb' in sys.modules; len(store); print(before, 'lmdb' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code, path], cwd=ROOT, check=True, capture_output=True, text=True)
    assert run.stdout.split() == ["False", "True"]


# Damage


def test_a_missing_shard_is_named(path):
    (path / "shard-00000.mdb").unlink()
    with pytest.raises(StoreError, match=r"shard-00000.mdb is missing"):
        LabelStore(path)[KEYS[0]]


def test_a_shard_cut_short_is_named(path):
    os.truncate(path / "shard-00000.mdb", (path / "shard-00000.mdb").stat().st_size // 2)
    with pytest.raises(StoreError, match=r"shard-00000.mdb is cut short"):
        LabelStore(path)[KEYS[0]]


def test_a_flipped_byte_names_file_and_key(path):
    flip_byte(path, KEYS[1], 40)
    store = LabelStore(path)
    with pytest.raises(DamagedRecord, match=rf"shard-00000.mdb, label map of '{KEYS[1]}': its checksum is .* Copy the"):
        store[KEYS[1]]
    assert_array_equal(store[KEYS[0]].classes, make_map(0)[1])


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"\0" * 11, "the place of a record has 12 bytes, got 11"),
        (struct.pack("<3I", 7, 0, 5), "it lies at bytes 0 to 5 of block 7, which is missing"),
        (struct.pack("<3I", 0, 5, 2**32 - 1), r"bytes 5 to 4294967300 of block 0, which has \d+"),
        (struct.pack("<3I", 0, 0, 0), "a record has at least 9 bytes, got 0"),
    ],
)
def test_a_place_that_is_none_is_named(path, value, said):
    tamper(path, KEYS[1].encode(), value)
    with pytest.raises(DamagedRecord, match=rf"label map of '{KEYS[1]}': .*{said}"):
        LabelStore(path)[KEYS[1]]


@pytest.mark.parametrize("length", [0, 4096, 12288])
def test_a_store_cut_short_while_it_is_read_is_an_error_and_no_bus_error(path, length):
    store = LabelStore(path)
    assert KEYS[0] in store
    os.truncate(path / "shard-00000.mdb", length)
    for look in (store.get, store.__contains__, lambda _: list(store), lambda _: store.failures):
        with pytest.raises(StoreError, match=r"cut short|cannot be read"):
            look(KEYS[1])


def test_another_store_copied_over_an_open_one_is_no_answer(path, tmp_path, monkeypatch):
    """Other images' maps used to be read without a word."""
    monkeypatch.setattr(environments, "_SECONDS_BETWEEN_CHECKS", 10**6)  # the worst: nobody looks
    other = write(tmp_path / "other.lmdb", KEYS[::-1])
    store = LabelStore(path)
    assert_array_equal(store[KEYS[0]].classes, make_map(0)[1])
    (path / "shard-00000.mdb").write_bytes((other / "shard-00000.mdb").read_bytes())
    for key in [*KEYS, "nobody.jpg"]:
        with pytest.raises(StoreError):
            store.get(key)


def tamper(path, key, value):
    with editing(path) as transaction:
        transaction.put(key, value)


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda value: value[:1], "the place of a record has 12 bytes, got 1"),
        (lambda value: value[:12] + b"b" + value[13:], "its digest leads to the key 'baaa"),
    ],
)
def test_a_damaged_digest_record_is_named(tmp_path, change, said):
    key = 600 * "a"
    path = write(tmp_path / "maps.lmdb", [key])
    with editing(path) as transaction:
        digest = record_key(key.encode())
        transaction.put(digest, change(transaction.get(digest)))
    with pytest.raises(DamagedRecord, match=said):
        LabelStore(path)[key]


def test_a_damaged_failure_is_named(path):
    tamper(path, b"\x00f" + bytes(32), struct.pack("<H", 500) + b"a.jpg")
    with pytest.raises(DamagedRecord, match=r"shard-00000.mdb, failure 0066000.*announces a key of 500 bytes"):
        LabelStore(path).failures  # noqa: B018


def test_a_damaged_name_of_a_long_key_is_named(path):
    tamper(path, b"\x01" + bytes(32), b"\x01")
    with pytest.raises(DamagedRecord, match=r"shard-00000.mdb, digest 0100.*has 12 bytes, got 1"):
        list(LabelStore(path))


def test_bookkeeping_of_a_later_release_is_ignored(path):
    tamper(path, b"\x00later", b"whatever")
    store = LabelStore(path)
    assert (len(store), list(store), store.failures) == (4, KEYS, {})


def test_a_store_may_be_copied_and_read_without_the_right_to_write(path, tmp_path):
    shutil.copytree(path, tmp_path / "copy")
    for lock in (tmp_path / "copy").glob("*.lock"):
        lock.unlink()
    (tmp_path / "copy").chmod(0o555)
    before = sorted(os.listdir(tmp_path / "copy"))
    assert list(LabelStore(tmp_path / "copy")) == KEYS
    assert sorted(os.listdir(tmp_path / "copy")) == before
    (tmp_path / "copy").chmod(0o755)


def test_a_string_in_place_of_a_store_is_told_what_it_is(tmp_path):
    with pytest.raises(StoreError, match="does not exist"):
        LabelStore(str(tmp_path / "nowhere"))


# A store that is continued


def finish(path, keys, **given):
    with LabelStoreWriter(path, **SETTINGS, **given, resume=True) as writer:
        for key in keys:
            writer.put(key, *make_map())


def test_what_is_finished_is_never_written_to_again(path):
    before = (path / "shard-00000.mdb").read_bytes()
    finish(path, ["z.jpg", "a.jpg"])
    assert (path / "shard-00000.mdb").read_bytes() == before
    store = LabelStore(path)
    assert (list(store), len(store)) == (sorted([*KEYS, "z.jpg", "a.jpg"]), 6)
    assert_array_equal(store[KEYS[2]].classes, make_map(2)[1])
    assert_array_equal(store["a.jpg"].classes, make_map()[1])


def test_a_reader_follows_a_store_to_which_files_are_added(path):
    store = LabelStore(path)
    assert "z.jpg" not in store
    finish(path, ["z.jpg"])
    finish(path, ["y.jpg"])
    assert "z.jpg" in store
    finish(path, ["x.jpg"])
    assert store.get("x.jpg") is not None
    finish(path, ["w.jpg"])
    assert (len(store), [*store][-4:]) == (8, ["w.jpg", "x.jpg", "y.jpg", "z.jpg"])


def test_a_key_that_is_missed_while_the_store_is_deleted_or_exchanged_is_no_answer(path, tmp_path):
    store = LabelStore(path)
    assert KEYS[0] in store
    path.rename(tmp_path / "moved.lmdb")
    assert_array_equal(store[KEYS[0]].classes, make_map(0)[1])
    for look in (store.get, store.__contains__, store.__getitem__):
        with pytest.raises(StoreError, match="does not exist"):
            look("nowhere.jpg")
    write(path)
    for look in (store.get, store.__contains__, store.__getitem__):
        with pytest.raises(StoreError, match="holds another label store than when it was opened; open it again"):
            look("nowhere.jpg")


@pytest.mark.parametrize("number", [0, 1])
def test_a_shard_of_another_store_is_refused(tmp_path, number):
    paths = [write(tmp_path / name, [f"{n}.jpg" for n in range(9)], shards=2) for name in ("a.lmdb", "b.lmdb")]
    shutil.copy(paths[1] / f"shard-0000{number}.mdb", paths[0] / f"shard-0000{number}.mdb")
    with pytest.raises(StoreError, match=rf"shard-0000{number}.mdb belongs to another store or shard"):
        len(LabelStore(paths[0]))


def test_a_path_that_is_not_utf_8_holds_a_store(tmp_path):
    """It used to be a UnicodeEncodeError."""
    path = tmp_path / os.fsdecode(b"caf\xe9.lmdb")
    try:
        write(path)
    except OSError:
        pytest.skip("this file system takes no such names")
    assert list(LabelStore(path)) == KEYS
    assert list(LabelStore(os.fsencode(path))) == KEYS


def test_the_sizes_of_images_come_back(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", **SETTINGS) as writer:
        writer.put("a.jpg", *make_map(), image_size=(500, 375))
        writer.put("b.jpg", *make_map(), image_size=(3, 4), exif_turned=True)
        writer.put("c.jpg", *make_map())
    found = [(record.image_size, record.exif_turned) for record in LabelStore(tmp_path / "maps.lmdb").values()]
    assert found == [((500, 375), False), ((3, 4), True), (None, None)]


def test_a_soft_label_and_a_label_map_are_a_line_away(tmp_path):
    with LabelStoreWriter(tmp_path / "maps.lmdb", num_classes=4, top_k=1, score_kind="probability") as writer:
        classes = np.array([[[0, 1], [2, 3]]])
        writer.put("a/1.png", np.ones((1, 2, 2), np.float32), classes, image_size=(30, 20))
        writer.put("a/2.png", np.ones((1, 2, 2), np.float32), classes)
    store = LabelStore(tmp_path / "maps.lmdb")
    assert store.soft_label("a/1.png").tolist() == pytest.approx([0.25] * 4)
    assert store.soft_label("a/1.png", (0, 0, 0.25, 1)).tolist() == pytest.approx([0.5, 0, 0.5, 0])
    label_map = store.label_map("a/1.png")
    assert (label_map.canvas_size, label_map.classes.tolist()) == ((20, 30), classes.tolist())
    assert store.label_map("a/2.png").canvas_size == (1, 1)
    assert store.label_map("a/2.png", (5, 6)).canvas_size == (5, 6)
    with pytest.raises(MissingLabelMap):
        store.soft_label("a/3.png")
    with pytest.raises(ValueError, match="needs a width and a height"):
        store.soft_label("a/1.png", (0.5, 0, 0.5, 1))
