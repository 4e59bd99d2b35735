"""Every way in which verify can find a store wanting, and that it finds nothing wrong with a sound one."""

import lmdb
import numpy as np
import pytest

from tests.store.label_maps import CLASSES, TOP_K, fill, make_map
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.layout import shard_file
from torchrelabel.store.verify import verify

KEYS = ["a.b/x.jpg", "a.b/y.jpg", "c d/z.jpg"]


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "maps.lmdb"
    with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, dataset={"count": 3}) as writer:
        fill(writer, KEYS)
    return path


def flip_last_byte(path, key):
    with lmdb.open(str(path / shard_file(0)), subdir=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            value = bytearray(transaction.get(key.encode()))
            value[-1] ^= 1
            transaction.put(key.encode(), bytes(value))


def test_a_sound_store_has_nothing_to_report(path):
    found = verify(LabelStore(path), KEYS)
    assert found.sound
    assert (found.records, found.grids) == (3, {(7, 5): 3})
    assert not (found.damaged or found.missing or found.surplus or found.failures)


def test_a_flipped_bit_is_found_and_the_other_maps_are_still_counted(path):
    flip_last_byte(path, KEYS[1])
    found = verify(LabelStore(path))
    assert list(found.damaged) == [KEYS[1]]
    assert "checksum" in found.damaged[KEYS[1]]
    assert found.records == 2
    assert not found.sound


def test_images_without_a_map_and_maps_without_an_image_are_told_apart(path):
    found = verify(LabelStore(path), [*KEYS[:2], "new.jpg"])
    assert (found.missing, found.surplus) == (["new.jpg"], [KEYS[2]])
    assert not found.sound


def test_a_map_of_no_image_does_not_make_a_store_unsound(path):
    assert verify(LabelStore(path), KEYS[:2]).sound


def test_an_image_that_failed_is_not_missing(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        fill(writer, KEYS[:1])
        writer.put_failure("broken.jpg", "truncated")
    found = verify(LabelStore(tmp_path / "s"), [KEYS[0], "broken.jpg"])
    assert found.failures == {"broken.jpg": "truncated"}
    assert found.sound


def test_a_store_whose_writer_never_finished_is_incomplete(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
            writer.put(KEYS[0], *make_map())
            raise RuntimeError("power cut")
    found = verify(LabelStore(tmp_path / "s"))
    assert found.incomplete
    assert not found.sound


def test_a_header_that_counts_more_images_than_there_are_is_reported(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, dataset={"count": 4}) as writer:
        fill(writer, KEYS)
    found = verify(LabelStore(tmp_path / "s"))
    assert found.miscounted == ("the header speaks of 4 images, and there are 3 label maps and 0 images that failed")


def test_grids_that_differ_are_counted_apart(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        writer.put("a", *make_map(rows=7, columns=5))
        writer.put("b", *make_map(rows=2, columns=9))
    assert verify(LabelStore(tmp_path / "s")).grids == {(7, 5): 1, (2, 9): 1}


def test_progress_sees_every_key(path):
    seen = []

    def progress(keys):
        for key in keys:
            seen.append(key)
            yield key

    verify(LabelStore(path), progress=progress)
    assert seen == sorted(KEYS)


def test_classes_are_within_range_in_what_verify_accepts(path):
    store = LabelStore(path)
    assert all(np.all(store[key].classes < store.header.num_classes) for key in store)
