"""Stores written by earlier releases open as they were meant; golden/make.py says how they were made."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.store.golden.make import (
    GOLDEN_CALIBRATION,
    GOLDEN_IDENTITY,
    GOLDEN_SIZES,
    KEYS,
    golden_image_scores,
    golden_map,
)
from torchrelabel.store import LabelStore, shard_of, write_calibration
from torchrelabel.store.verify import verify

GOLDEN = Path(__file__).parent / "golden"
CODECS = ["float16", "uint8"]


@pytest.fixture(params=[f"v{version}-{codec}" for version in (1, 2, 3) for codec in CODECS])
def store(request):
    return LabelStore(GOLDEN / request.param)


def test_the_header_is_as_it_was(store):
    header = store.header
    version = int(store.path.name[1])
    assert (header.format_version, header.num_classes, header.top_k, header.shards) == (version, 21841, 3, 2)
    assert (header.image_top_k, header.calibration) == ((0, None) if version == 1 else (100, GOLDEN_CALIBRATION))
    last = shard_of(KEYS[3], 2)
    assert (header.parts, header.identity) == (
        ((1 + (last == 0), 1 + (last == 1)), GOLDEN_IDENTITY) if version == 3 else ((), "")
    )
    assert (header.score_kind, header.residual, header.grid) == ("logit", True, (7, 5))
    assert header.coverage == (0.125, 0, 0.875, 1)
    assert header.annotator == {"model": "golden", "mean": [0.5, 0.25, 0.125], "image_size": 475}
    assert header.class_to_idx == {"n01440764": 0, "caf\udce9": 1}
    assert header.dataset == {"count": 5, "fingerprint": "golden"}
    assert header.complete


def test_the_keys_are_as_they_were(store):
    assert set(store) == set(KEYS)
    assert len(store) == 4
    assert store.failures == {"broken.jpg": "the file is cut short"}


@pytest.mark.parametrize("place", range(4))
def test_the_maps_are_as_they_were(store, place):
    scores, classes, residual = golden_map(place)
    record = store[KEYS[place]]
    # the widest range is 7.25, of which uint8 keeps 255 steps
    tolerance = 0 if store.header.codec == "float16" else 7.25 / 255 / 2 + 1e-6
    assert_allclose(record.scores, scores, rtol=0, atol=tolerance)
    assert_allclose(record.residual, residual, rtol=0, atol=tolerance)
    assert_array_equal(record.classes, classes)
    sizes = (GOLDEN_SIZES[place], None if place == 1 else place == 2) if store.path.name[1] == "3" else (None, None)
    assert (record.image_size, record.exif_turned) == sizes
    assert record.coverage == ((0, 0.25, 1, 0.75) if place == 1 else (0.125, 0, 0.875, 1))


def test_uint8_scores_are_the_very_same_numbers():
    record = LabelStore(GOLDEN / "v1-uint8")[KEYS[0]]
    column = record.scores[:, 0, 0]
    # lo = -9/4, hi = 5; bytes 185, 79, 53 in 255 steps over 7.25
    expected = [-2.25 + byte * (7.25 / 255) for byte in (185, 79, 53)]
    assert_array_equal(column, np.array(expected).astype(np.float32))


@pytest.mark.parametrize("place", range(4))
def test_the_scores_of_whole_images_are_as_they_were(store, place):
    got = store[KEYS[place]].image_scores
    if store.header.format_version == 1:
        assert got is None
        return
    given = golden_image_scores(place)
    given -= np.log(np.exp(given).sum())
    best = given > given.min()
    assert_allclose(got[best], given[best], rtol=0, atol=8 / 63 / 2 + 1e-6)
    assert_allclose(got[~best], given.min(), rtol=0, atol=1e-5)


def test_they_are_sound(store):
    assert verify(store, KEYS).damaged == {}


def test_a_calibration_is_written_into_the_header_alone(store, tmp_path):
    if store.header.format_version == 1:
        pytest.skip("version 1 has no calibration")
    shutil.copytree(store.path, tmp_path / "copy")
    before = {file.name: file.read_bytes() for file in (tmp_path / "copy").glob("*.mdb")}
    calibration = replace(GOLDEN_CALIBRATION, smallest_area=0.5)
    write_calibration(tmp_path / "copy", calibration)
    header = LabelStore(tmp_path / "copy").header
    assert header == replace(store.header, calibration=calibration)
    assert {file.name: file.read_bytes() for file in (tmp_path / "copy").glob("*.mdb")} == before


def test_uint8_scores_of_the_third_version_are_the_very_same_numbers():
    column = LabelStore(GOLDEN / "v3-uint8")[KEYS[0]].scores[:, 0, 0]
    # lo = -9/4, hi = 5; levels 185, 79, 53 of 255, and all arithmetic in single precision
    step = np.float32(7.25 / 255)
    assert_array_equal(column, np.array([185, 79, 53], np.float32) * step + np.float32(-2.25))
