"""Stores written by earlier releases open as they were meant; golden/make.py says how they were made."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from tests.store.golden.make import GOLDEN_CALIBRATION, KEYS, golden_image_scores, golden_map
from torchrelabel.store import LabelStore

GOLDEN = Path(__file__).parent / "golden"
CODECS = ["float16", "uint8"]


@pytest.fixture(params=[f"v{version}-{codec}" for version in (1, 2) for codec in CODECS])
def store(request):
    return LabelStore(GOLDEN / request.param)


def test_the_header_is_as_it_was(store):
    header = store.header
    version = int(store.path.name[1])
    assert (header.format_version, header.num_classes, header.top_k, header.shards) == (version, 21841, 3, 2)
    assert (header.image_top_k, header.calibration) == [(0, None), (100, GOLDEN_CALIBRATION)][version - 1]
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
