import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tests.store.label_maps import make_map
from torchrelabel.store.codecs import CODECS, Shape, decode_classes, encode_classes

SCORES = np.array([[[4.0, 2.0]], [[1.0, -0.5]]], np.float32)  # K = 2, 1 x 2 cells
CLASSES = np.array([[[3, 9]], [[9, 3]]], np.int32)
RESIDUAL = np.array([[0.25, -8.0]], np.float32)
SMALL = Shape(2, 1, 2, 10, True)


def stored(raw):
    """Raw deflate with one stored block, as RFC 1951 spells it: independent of zlib's choices."""
    return b"\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw


def test_float16_is_byte_exact():
    payload = CODECS["float16"].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    head = (
        b"\x00\x44\x00\x40"  # 4, 2
        b"\x00\x3c\x00\xb8"  # 1, -0.5
        b"\x00\x34\x00\xc8"  # residual 0.25, -8
        b"\x02\x00\x00\x00\x03\x00\x09\x00"  # two classes: 3, 9
    )
    assert payload[: len(head)] == head
    # cell after cell: cell 0 has classes 3, 9; cell 1 has 9, 3
    assert zlib.decompress(payload[len(head) :], wbits=-15) == b"\x00\x01\x01\x00"


def test_uint8_is_byte_exact():
    payload = CODECS["uint8"].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    head = (
        b"\x00\x00\x00\xbf\x00\x00\x80\x40"  # -0.5 to 4
        b"\x00\x00\x00\xc1\x00\x00\x80\x3e"  # -8 to 0.25
        b"\xff\x8e\x55\x00"  # (4, 2), (1, -0.5): 255, 2.5 / 4.5 * 255 = 141.7, 1.5 / 4.5 * 255 = 85, 0
        b"\xff\x00"
        b"\x02\x00\x00\x00\x03\x00\x09\x00"
    )
    assert payload[: len(head)] == head
    assert zlib.decompress(payload[len(head) :], wbits=-15) == b"\x00\x01\x01\x00"


def test_a_payload_written_by_hand_is_read():
    payload = bytes.fromhex("0044 0040 003c 00b8 0034 00c8 02000000 0300 0900") + stored(b"\x00\x01\x01\x00")
    scores, classes, residual = CODECS["float16"].decode(SMALL, memoryview(payload))
    assert_array_equal(scores, SCORES)
    assert_array_equal(classes, CLASSES)
    assert_array_equal(residual, RESIDUAL)


def test_classes_above_16_bits_make_a_palette_of_32_bits():
    classes = np.array([[[69999, 1]]])
    assert encode_classes(Shape(1, 1, 2, 70000, False), classes)[:12] == bytes.fromhex("02000000 01000000 6f110100")


def test_65536_classes_still_make_a_palette_of_16_bits():
    payload = encode_classes(Shape(1, 1, 1, 65536, False), np.array([[[65535]]]))
    assert payload[:6] == bytes.fromhex("01000000 ffff")
    assert zlib.decompress(payload[6:], wbits=-15) == b"\x00"


@pytest.mark.parametrize("count, width", [(256, 1), (257, 2), (65536, 2), (65537, 4)])
def test_indices_are_as_wide_as_the_palette_needs(count, width):
    shape = Shape(1, 1, count, 70000, False)
    payload = encode_classes(shape, np.arange(count, dtype=np.int32).reshape(1, 1, count))
    assert len(zlib.decompress(payload[4 + 4 * count :], wbits=-15)) == width * count
    assert_array_equal(decode_classes(shape, memoryview(payload))[0, 0], np.arange(count))


@settings(max_examples=60, deadline=None)
@given(
    codec=st.sampled_from(sorted(CODECS)),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    classes=st.sampled_from([1, 2, 7, 300, 1000, 21841, 70000]),
    top_k=st.integers(1, 7),
    residual=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_map_comes_back(codec, rows, columns, classes, top_k, residual, seed):
    top_k = min(top_k, classes)
    scores, kept, rest = make_map(seed, rows=rows, columns=columns, top_k=top_k, num_classes=classes, residual=residual)
    shape = Shape(top_k, rows, columns, classes, residual)
    payload = CODECS[codec].encode(shape, scores, kept.astype(np.int32), rest)
    scores_back, classes_back, residual_back = CODECS[codec].decode(shape, memoryview(payload))
    assert_array_equal(classes_back, kept)
    for before, after in [(scores, scores_back), (rest, residual_back)]:
        if before is None:
            assert after is None
        elif codec == "float16":
            assert_array_equal(after, before.astype(np.float16).astype(np.float32))
        else:
            # half a step of the map's own range, and float32's rounding
            assert_allclose(after, before, rtol=1e-6, atol=np.ptp(before) / 255 / 2 + 1e-6)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_every_class_may_be_kept(codec):
    scores, classes, _ = make_map(rows=2, columns=3, top_k=400, num_classes=400)
    shape = Shape(400, 2, 3, 400, False)
    payload = CODECS[codec].encode(shape, scores, classes.astype(np.int32), None)
    assert_array_equal(CODECS[codec].decode(shape, memoryview(payload))[1], classes)


@pytest.mark.parametrize("codec", sorted(CODECS))
def test_arrays_are_writable_contiguous_and_typed(codec):
    payload = CODECS[codec].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    arrays = CODECS[codec].decode(SMALL, memoryview(payload))
    assert [array.dtype for array in arrays] == [np.float32, np.int32, np.float32]
    assert all(array.flags.writeable and array.flags.c_contiguous for array in arrays)


def test_uint8_keeps_the_order_of_scores():
    scores, classes, _ = make_map(4)
    shape = Shape(3, 7, 5, 20, False)
    payload = CODECS["uint8"].encode(shape, scores, classes.astype(np.int32), None)
    back, _, _ = CODECS["uint8"].decode(shape, memoryview(payload))
    assert np.diff(back, axis=0).max() <= 0


def test_uint8_returns_both_ends_of_the_range_exactly():
    scores = np.array([[[3.3]], [[-1.7]]], np.float32)
    shape = Shape(2, 1, 1, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.array([[[1]], [[2]]], np.int32), None)
    assert_array_equal(CODECS["uint8"].decode(shape, memoryview(payload))[0], scores)


def test_uint8_keeps_a_constant_map():
    scores = np.full((1, 2, 3), 1.1, np.float32)
    shape = Shape(1, 2, 3, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.ones((1, 2, 3), np.int32), None)
    assert_array_equal(CODECS["uint8"].decode(shape, memoryview(payload))[0], scores)


def test_uint8_takes_the_whole_range_of_float32():
    largest = np.finfo(np.float32).max
    scores = np.array([[[largest]], [[-largest]]], np.float32)
    shape = Shape(2, 1, 1, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.array([[[1]], [[2]]], np.int32), None)
    assert_array_equal(CODECS["uint8"].decode(shape, memoryview(payload))[0], scores)


def test_float16_keeps_its_largest_number():
    scores = np.full((1, 1, 1), 65519.0, np.float32)
    payload = CODECS["float16"].encode(Shape(1, 1, 1, 5, False), scores, np.ones((1, 1, 1), np.int32), None)
    assert payload[:2] == b"\xff\x7b"


@pytest.mark.parametrize("score", [65520.0, -70000.0])
def test_float16_refuses_what_it_cannot_hold(score):
    scores = np.full((1, 1, 1), score, np.float32)
    with pytest.raises(ValueError, match=rf"magnitude {abs(score):g}; use codec='uint8'"):
        CODECS["float16"].encode(Shape(1, 1, 1, 5, False), scores, np.ones((1, 1, 1), np.int32), None)


def classes_payload(palette=(3, 9), indices=b"\x00\x01\x01\x00", count=None, deflated=None):
    count = len(palette) if count is None else count
    deflated = stored(indices) if deflated is None else deflated
    return struct.pack("<I", count) + np.array(palette, "<u2").tobytes() + deflated


def bomb(size):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(size)) + deflate.flush()


@pytest.mark.parametrize(
    "payload, said",
    [
        (b"\x02\x00\x00", "needs 4 bytes, and 3 are left"),
        (classes_payload(count=0), "palette of 0 classes"),
        (classes_payload(count=5), "palette of 5 classes does not fit 2 x 1 x 2"),
        (classes_payload(count=2**32 - 1), "palette of 4294967295 classes"),
        (struct.pack("<I", 4) + b"\x01\x00\x02\x00", "palette of 4 classes"),
        (classes_payload(palette=(3, 10)), "class 10 of 10"),
        (classes_payload(indices=b"\x00\x01\x02\x00"), "class index 2 reaches past a palette of 2"),
        (classes_payload(indices=b"\x00\x01\x01"), "inflate to exactly 4 bytes"),
        (classes_payload(indices=b"\x00\x01\x01\x00\x00"), "inflate to exactly 4 bytes"),
        (classes_payload() + b"\x00", "and end there"),
        (classes_payload(deflated=b""), "inflate to exactly 4 bytes"),
        (classes_payload(deflated=stored(b"\x00\x01\x01\x00")[:-1]), "inflate to exactly 4 bytes"),
        (classes_payload(deflated=b"\x07"), "do not inflate"),
        (classes_payload(deflated=bomb(2**20)), "inflate to exactly 4 bytes"),
    ],
)
def test_classes_that_do_not_fit_are_refused(payload, said):
    with pytest.raises(ValueError, match=said):
        decode_classes(SMALL, memoryview(payload))


@pytest.mark.parametrize("codec, length", [("float16", 11), ("uint8", 21)])
def test_scores_cut_short_are_refused(codec, length):
    payload = CODECS[codec].encode(SMALL, SCORES, CLASSES, RESIDUAL)[:length]
    with pytest.raises(ValueError, match=f"{length} bytes, and its scores alone need {length + 1}"):
        CODECS[codec].decode(SMALL, memoryview(payload))


@pytest.mark.parametrize("low, high", [(2.0, 1.0), (np.nan, 1.0), (0.0, np.nan), (-np.inf, 0.0), (0.0, np.inf)])
def test_a_range_that_is_none_is_refused(low, high):
    payload = CODECS["uint8"].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    with pytest.raises(ValueError, match="a range runs from its smaller to its larger finite end"):
        CODECS["uint8"].decode(SMALL, memoryview(struct.pack("<2f", low, high) + payload[8:]))


@settings(max_examples=150, deadline=None)
@given(codec=st.sampled_from(sorted(CODECS)), payload=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused_with_value_error(codec, payload):
    try:
        CODECS[codec].decode(SMALL, memoryview(payload))
    except ValueError:
        pass
