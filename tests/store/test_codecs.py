import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal

from tests.store.label_maps import make_map
from torchrelabel.store.codecs import CODECS, Shape, index_classes, pack_palette, unpack_palette

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
        b"\x02\x00\x00\x00\x01\x03\x06"  # two classes in differences of a byte: 3, and 6 more
    )
    assert payload[: len(head)] == head
    # cell after cell: cell 0 has classes 3, 9; cell 1 has 9, 3
    assert zlib.decompress(payload[len(head) :], wbits=-15) == b"\x00\x01\x01\x00"


STEPS = np.array([4.5 / 255, 8.25 / 255], "<f4").tobytes()


def test_uint8_is_byte_exact():
    payload = CODECS["uint8"].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    head = (
        b"\x00\x00\x00\xbf"
        + STEPS[:4]  # from -0.5 to 4
        + b"\x00\x00\x00\xc1"
        + STEPS[4:]  # from -8 to 0.25
        + b"\x01"  # one of two planes as differences
        + b"\xff\x8e"  # 4, 2: 255, 2.5 / 4.5 * 255 = 141.7
        + b"\xff\x00"
        + b"\x02\x00\x00\x00\x01\x03\x06"
    )
    assert payload[: len(head)] == head
    # 1, -0.5: 1.5 / 4.5 * 255 = 85, 0; so 255 - 85 = 170 and 142 - 0 below
    assert zlib.decompress(payload[len(head) :], wbits=-15) == b"\xaa\x8e\x00\x01\x01\x00"


@pytest.mark.parametrize(("planes", "differences"), [(b"\xff\x8e\x55\x00", b""), (b"\xff\x8e", b"\xaa\x8e")])
def test_uint8_written_by_hand_is_read_with_and_without_differences(planes, differences):
    ranges = struct.pack("<4f", -0.5, 0.25, -8, 0.5)
    payload = ranges + bytes([len(differences) // 2]) + planes + b"\xff\x01" + bytes.fromhex("02000000 01 03 06")
    payload += stored(differences + b"\x00\x01\x01\x00")
    scores, classes, residual = CODECS["uint8"].decode(SMALL, memoryview(payload))
    assert_array_equal(scores, np.array([[[63.25, 35.0]], [[20.75, -0.5]]]))
    assert_array_equal(classes, CLASSES)
    assert_array_equal(residual, np.array([[119.5, -7.5]]))


def test_a_payload_written_by_hand_is_read():
    payload = bytes.fromhex("0044 0040 003c 00b8 0034 00c8 02000000 01 03 06") + stored(b"\x00\x01\x01\x00")
    scores, classes, residual = CODECS["float16"].decode(SMALL, memoryview(payload))
    assert_array_equal(scores, SCORES)
    assert_array_equal(classes, CLASSES)
    assert_array_equal(residual, RESIDUAL)


@pytest.mark.parametrize(
    ("classes", "packed"),
    [
        ([0], "01000000 01 00"),
        ([255, 510, 600], "03000000 01 ff ff 5a"),
        ([256, 257], "02000000 02 0001 0100"),
        ([1, 65536], "02000000 02 0100 ffff"),
        ([0, 65536], "02000000 04 00000000 00000100"),
        ([2**31 - 2], "01000000 04 feffff7f"),
    ],
)
def test_a_palette_is_as_wide_as_its_differences_need(classes, packed):
    shape = Shape(1, 1, 3, 2**31 - 1, False)
    assert pack_palette(np.array(classes)) == bytes.fromhex(packed)
    palette, end = unpack_palette(shape, memoryview(b"xx" + bytes.fromhex(packed)), 2)
    assert (palette.tolist(), palette.dtype, end) == (classes, np.int32, 2 + len(bytes.fromhex(packed)))


@pytest.mark.parametrize("count, width", [(256, 1), (257, 2), (65536, 2), (65537, 4)])
@pytest.mark.parametrize("num_classes", [70000, 2**21])
def test_indices_are_as_wide_as_the_palette_needs(count, width, num_classes):
    shape = Shape(1, 1, count, num_classes, False)
    classes = np.arange(count, dtype=np.int32).reshape(1, 1, count)
    palette, indices = index_classes(shape, classes)
    assert indices.dtype.itemsize == width
    assert_array_equal(palette[indices], classes.ravel())
    payload = CODECS["float16"].encode(shape, np.zeros(classes.shape, np.float32), classes, None)
    assert_array_equal(CODECS["float16"].decode(shape, memoryview(payload))[1], classes)


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
            # half a step of the map's own range, and single precision's rounding
            assert_allclose(after, before, rtol=2e-6, atol=np.ptp(before) / 255 / 2 + 1e-6)


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


def test_uint8_returns_both_ends_of_the_range():
    scores = np.array([[[3.3]], [[-1.7]]], np.float32)
    shape = Shape(2, 1, 1, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.array([[[1]], [[2]]], np.int32), None)
    high, low = CODECS["uint8"].decode(shape, memoryview(payload))[0].ravel()
    assert low == np.float32(-1.7)
    assert high == pytest.approx(3.3, rel=1e-6)


def test_uint8_keeps_a_constant_map():
    scores = np.full((1, 2, 3), 1.1, np.float32)
    shape = Shape(1, 2, 3, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.ones((1, 2, 3), np.int32), None)
    assert_array_equal(CODECS["uint8"].decode(shape, memoryview(payload))[0], scores)


@pytest.mark.parametrize("ends", [(1e38, -2e38), (1e-45, 0), (1 + 1e-7, 1)])
def test_uint8_takes_ranges_of_any_size(ends):
    scores = np.array(ends, np.float32).reshape(2, 1, 1)
    shape = Shape(2, 1, 1, 5, False)
    payload = CODECS["uint8"].encode(shape, scores, np.array([[[1]], [[2]]], np.int32), None)
    assert_allclose(CODECS["uint8"].decode(shape, memoryview(payload))[0], scores, rtol=1e-6, atol=2e-45)


@pytest.mark.parametrize("ends", [(3.4e38, -3.4e38), (3.401e38, 3.0e38), (-3e38, -3.401e38)])
def test_uint8_refuses_a_range_that_single_precision_does_not_hold(ends):
    scores = np.array(ends, np.float32).reshape(2, 1, 1)
    with pytest.raises(ValueError, match=r"numbers of the uint8 codec span at most 3.4e\+38, got "):
        CODECS["uint8"].encode(Shape(2, 1, 1, 5, False), scores, np.array([[[1]], [[2]]], np.int32), None)


def test_float16_keeps_its_largest_number():
    scores = np.full((1, 1, 1), 65519.0, np.float32)
    payload = CODECS["float16"].encode(Shape(1, 1, 1, 5, False), scores, np.ones((1, 1, 1), np.int32), None)
    assert payload[:2] == b"\xff\x7b"


@pytest.mark.parametrize("score", [65520.0, -70000.0])
def test_float16_refuses_what_it_cannot_hold(score):
    scores = np.full((1, 1, 1), score, np.float32)
    with pytest.raises(ValueError, match=rf"magnitude {abs(score):g}; use codec='uint8'"):
        CODECS["float16"].encode(Shape(1, 1, 1, 5, False), scores, np.ones((1, 1, 1), np.int32), None)


FLOATS = bytes.fromhex("0044 0040 003c 00b8 0034 00c8")


def with_classes(palette=b"\x03\x06", indices=b"\x00\x01\x01\x00", count=None, width=1, deflated=None):
    count = len(palette) if count is None else count
    return FLOATS + struct.pack("<IB", count, width) + palette + (stored(indices) if deflated is None else deflated)


def bomb(size):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(size)) + deflate.flush()


@pytest.mark.parametrize(
    "payload, said",
    [
        (FLOATS + b"\x02\x00\x00\x00", "front needs 5 bytes, and 4 are left"),
        (with_classes(count=0), "palette of 0 classes"),
        (with_classes(count=5), "palette of 5 classes does not fit 2 x 1 x 2"),
        (with_classes(count=2**32 - 1), "palette of 4294967295 classes"),
        (FLOATS + struct.pack("<IB", 4, 1) + b"\x01\x02", "palette of 4 classes"),
        (with_classes(width=3), "have 1, 2 or 4 bytes, got 3"),
        (with_classes(palette=b"\x03\x07"), "class 10 of 10"),
        (with_classes(palette=b"\xff\xff\xff\xff" * 2, count=2, width=4), "class 8589934590 of 10"),
        (with_classes(indices=b"\x00\x01\x02\x00"), "class index 2 reaches past a palette of 2"),
        (with_classes(indices=b"\x00\x01\x01"), "inflate to exactly 4 bytes"),
        (with_classes(indices=b"\x00\x01\x01\x00\x00"), "inflate to exactly 4 bytes"),
        (with_classes() + b"\x00", "and end there"),
        (with_classes(deflated=b""), "inflate to exactly 4 bytes"),
        (with_classes(deflated=stored(b"\x00\x01\x01\x00")[:-1]), "inflate to exactly 4 bytes"),
        (with_classes(deflated=b"\x07"), "do not inflate"),
        (with_classes(deflated=bomb(2**20)), "inflate to exactly 4 bytes"),
    ],
)
def test_classes_that_do_not_fit_are_refused(payload, said):
    with pytest.raises(ValueError, match=said):
        CODECS["float16"].decode(SMALL, memoryview(payload))


@pytest.mark.parametrize("codec, length", [("float16", 11), ("uint8", 20)])
def test_scores_cut_short_are_refused(codec, length):
    payload = CODECS[codec].encode(SMALL, SCORES, CLASSES, RESIDUAL)[:length]
    with pytest.raises(ValueError, match=f"{length} bytes, and its scores alone need {length + 1}"):
        CODECS[codec].decode(SMALL, memoryview(payload))


def test_ranges_cut_short_are_refused():
    with pytest.raises(ValueError, match="has 16 bytes, and its ranges alone need 17"):
        CODECS["uint8"].decode(SMALL, memoryview(bytes(16)))


def test_more_differences_than_half_the_planes_are_refused():
    """What is inflated is bounded by what lies there as it is."""
    payload = bytearray(CODECS["uint8"].encode(SMALL, SCORES, CLASSES, RESIDUAL))
    payload[16] = 2
    with pytest.raises(ValueError, match="at most 1 of 2 planes are differences, got 2"):
        CODECS["uint8"].decode(SMALL, memoryview(payload))


@pytest.mark.parametrize(
    "low, step", [(2.0, -1.0), (np.nan, 1.0), (0.0, np.nan), (-np.inf, 0.0), (0.0, np.inf), (0, 1e37), (3.4e38, 1e36)]
)
def test_a_range_that_is_none_is_refused(low, step):
    payload = CODECS["uint8"].encode(SMALL, SCORES, CLASSES, RESIDUAL)
    with pytest.raises(ValueError, match="a range has a finite smallest number and a step"):
        CODECS["uint8"].decode(SMALL, memoryview(struct.pack("<2f", low, step) + payload[8:]))


@settings(max_examples=150, deadline=None)
@given(codec=st.sampled_from(sorted(CODECS)), payload=st.binary(max_size=80))
def test_any_bytes_are_read_or_refused_with_value_error(codec, payload):
    try:
        CODECS[codec].decode(SMALL, memoryview(payload))
    except ValueError:
        pass
