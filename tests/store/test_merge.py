"""Stores that become one, the numbers unchanged."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.store.golden.make import GOLDEN_CALIBRATION, KEYS
from tests.store.label_maps import flip_byte, make_map
from torchrelabel.errors import SettingsDiffer, StoreError
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.merge import Merged, merge

GOLDEN = Path(__file__).parent / "golden"
SETTINGS = {"num_classes": 20, "top_k": 3}


def write(path, seeds, failures=(), **given):
    with LabelStoreWriter(path, **SETTINGS, **given) as writer:
        for seed in seeds:
            writer.put(f"{seed:02d}.jpg", *make_map(seed), image_size=(seed + 1, 7))
        for key in failures:
            writer.put_failure(key, "cut short")
    return path


def assert_same(one, other):
    for first, second in zip(one, other, strict=True):
        assert_array_equal(first, second)


def test_stores_of_several_ranks_become_one(tmp_path):
    ranks = [
        write(tmp_path / f"{rank}", range(rank, 12, 3), [["bad.jpg", "01.jpg"], ["bad.jpg"], []][rank])
        for rank in range(3)
    ]
    assert merge(ranks, tmp_path / "all", shards=2) == Merged(12, 1, True)
    store = LabelStore(tmp_path / "all")
    assert list(store) == [f"{seed:02d}.jpg" for seed in range(12)]
    assert (store.failures, store.header.shards, store.header.complete) == ({"bad.jpg": "cut short"}, 2, True)
    for seed in range(12):
        assert_same(store[f"{seed:02d}.jpg"], LabelStore(ranks[seed % 3])[f"{seed:02d}.jpg"])


@pytest.mark.parametrize("golden", sorted(path.name for path in GOLDEN.glob("v*")))
def test_a_store_of_any_version_becomes_one_of_today_s_with_the_same_numbers(tmp_path, golden):
    merge([GOLDEN / golden], tmp_path / "new")
    old, new = LabelStore(GOLDEN / golden), LabelStore(tmp_path / "new")
    assert set(new) == set(KEYS)
    for key in KEYS:
        exact = golden != "v1-uint8" and golden != "v2-uint8"
        for first, second in zip(old[key], new[key], strict=True):
            if exact or first is None:
                assert_array_equal(first, second)
            else:  # levels are the same; what they stand for is rounded in single precision now
                np.testing.assert_allclose(first, second, rtol=0, atol=1e-6)
    for name in ("annotator", "class_to_idx", "dataset", "calibration", "coverage", "grid", "image_top_k"):
        assert getattr(new.header, name) == getattr(old.header, name)
    assert new.header.calibration == (None if golden[1] == "1" else GOLDEN_CALIBRATION)
    assert new.failures == old.failures
    assert (new.header.format_version, new.header.parts) == (3, (1, 1))


def test_a_merge_of_what_is_not_complete_is_not_complete_and_goes_on(tmp_path):
    write(tmp_path / "a", range(3))
    with LabelStoreWriter(tmp_path / "b", **SETTINGS) as writer:
        writer.put("09.jpg", *make_map(9))
        writer.close()
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == Merged(4, 0, False)
    assert not LabelStore(tmp_path / "all").header.complete
    with LabelStoreWriter(tmp_path / "b", **SETTINGS, resume=True) as writer:
        writer.put("08.jpg", *make_map(8))
    assert merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all") == Merged(5, 0, True)
    assert list(LabelStore(tmp_path / "all")) == ["00.jpg", "01.jpg", "02.jpg", "08.jpg", "09.jpg"]


def test_different_maps_of_one_image_are_no_merge(tmp_path):
    write(tmp_path / "a", [1])
    with LabelStoreWriter(tmp_path / "b", **SETTINGS) as writer:
        writer.put("01.jpg", *make_map(2))
    with pytest.raises(StoreError, match=r"b.shard-00000.mdb, label map of '01.jpg': .* holds another label map"):
        merge([tmp_path / "a", tmp_path / "b"], tmp_path / "all")


def test_different_settings_are_no_merge(tmp_path):
    with pytest.raises(SettingsDiffer, match=r"a and .*b cannot be one store. codec: 'float16', now 'uint8'$"):
        merge([write(tmp_path / "a", [1]), write(tmp_path / "b", [2], codec="uint8", shards=3)], tmp_path / "all")


def test_a_damaged_map_is_named(tmp_path):
    write(tmp_path / "a", [1])
    flip_byte(tmp_path / "a", "01.jpg", 30)
    with pytest.raises(StoreError, match=r"a.shard-00000.mdb, label map of '01.jpg': its checksum is"):
        merge([tmp_path / "a"], tmp_path / "all")


def test_a_store_does_not_become_itself(tmp_path):
    write(tmp_path / "a", [1])
    with pytest.raises(StoreError, match="is one of the stores to merge; give a new path"):
        merge([tmp_path / "a"], tmp_path / "a")


def test_maps_are_not_added_to_a_store_of_others(tmp_path):
    one, other = write(tmp_path / "one", range(3)), write(tmp_path / "other", range(2, 5))
    with pytest.raises(StoreError, match=r"other holds another store, with a label map of '03.jpg'; give a new path"):
        merge([one], other)
    assert len(LabelStore(other)) == 3


def test_a_store_in_many_parts_becomes_one_file_a_shard(tmp_path):
    for seed in range(3):
        with LabelStoreWriter(tmp_path / "a", **SETTINGS, resume=True) as writer:
            writer.put(f"{seed}.jpg", *make_map(seed))
    assert LabelStore(tmp_path / "a").header.parts == (3,)
    merge([tmp_path / "a"], tmp_path / "b")
    shutil.rmtree(tmp_path / "a")
    store = LabelStore(tmp_path / "b")
    assert (list(store), store.header.parts) == (["0.jpg", "1.jpg", "2.jpg"], (1,))
