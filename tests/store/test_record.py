import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_array_equal

from tests.store.label_maps import make_map
from torchrelabel.errors import DamagedRecord
from torchrelabel.store.header import StoreHeader
from torchrelabel.store.record import pack_record, same_map, unpack_record

HEADER = StoreHeader(num_classes=20, top_k=3, residual=True)
PLAIN = StoreHeader(num_classes=20, top_k=3)
NAME = b"cat/1.jpg"


def signed(name, body):
    return struct.pack("<I", zlib.crc32(name + body)) + body


def test_the_front_of_a_record_is_byte_exact():
    record = pack_record(HEADER, NAME, *make_map(residual=True))
    assert record[:4] == zlib.crc32(NAME + record[4:]).to_bytes(4, "little")
    assert record[4:9] == b"\x07\x00\x05\x00\x00"  # 7 x 5 cells, no flags


def test_a_checksum_begins_with_the_identity_of_the_store():
    """A map of another store under the same key used to be taken for one's own."""
    header = StoreHeader(num_classes=20, top_k=3, identity=bytes(range(16)).hex())
    record = pack_record(header, NAME, *make_map())
    assert record[:4] == zlib.crc32(bytes(range(16)) + NAME + record[4:]).to_bytes(4, "little")
    with pytest.raises(DamagedRecord, match="or belongs to another key or store"):
        unpack_record(PLAIN, NAME, memoryview(record))


def test_the_size_of_an_image_is_byte_exact():
    record = pack_record(PLAIN, NAME, *make_map(), image_size=(500, 375), exif_turned=True)
    assert record[8:17] == b"\x0c" + bytes.fromhex("f4010000 77010000")
    assert record[17:] == pack_record(PLAIN, NAME, *make_map())[9:]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("size", [(500, 375), np.array([1, 2**32 - 1])])
def test_the_size_of_an_image_comes_back(size, turned):
    given = {"coverage": (0, 0, 0.5, 1), "image_scores": OF_IMAGE, "image_size": size, "exif_turned": turned}
    record = unpack_record(
        WITH_IMAGE, NAME, memoryview(pack_record(WITH_IMAGE, NAME, *make_map(residual=True), **given))
    )
    assert (record.image_size, record.exif_turned) == (tuple(size), turned)
    assert record.coverage == (0, 0, 0.5, 1)
    assert record.image_scores.shape == (20,)


def test_an_image_whose_size_was_not_told_has_none():
    record = unpack_record(PLAIN, NAME, memoryview(pack_record(PLAIN, NAME, *make_map())))
    assert (record.image_size, record.exif_turned) == (None, None)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image_size": (0, 5)}, r"1 to 4294967295 pixels each way, got \(0, 5\)"),
        ({"image_size": (5, 2**32)}, r"got \(5, 4294967296\)"),
        ({"image_size": (5, 5.0)}, r"image_size is \(W, H\) in whole pixels, got \(5, 5.0\)"),
        ({"image_size": (5,)}, r"in whole pixels, got \(5,\)"),
        ({"image_size": 5}, "in whole pixels, got 5"),
        ({"exif_turned": True}, r"exif_turned=True needs image_size=\(W, H\), got None"),
    ],
)
def test_a_size_that_no_image_has_is_refused(given, words):
    with pytest.raises(ValueError, match=words):
        pack_record(PLAIN, NAME, *make_map(), **given)


def test_another_size_is_another_map_and_an_unknown_one_is_not():
    records = [pack_record(PLAIN, NAME, *make_map(), image_size=size) for size in ((5, 7), (7, 5), None)]
    assert not same_map(PLAIN, NAME, *records[:2])
    assert same_map(PLAIN, NAME, *records[1:])


@pytest.mark.parametrize("top_k", [1, 3, 12])
def test_scores_in_any_order_are_sorted_with_their_classes(top_k):
    header = StoreHeader(num_classes=20, top_k=top_k)
    scores, classes, _ = make_map(top_k=top_k)
    order = np.random.default_rng(0).permuted(np.indices(scores.shape)[0], axis=0)
    shuffled = (np.take_along_axis(each, order, axis=0) for each in (scores, classes))
    assert pack_record(header, NAME, *shuffled) == pack_record(header, NAME, scores, classes)


def test_classes_repeated_among_many_are_refused():
    scores, classes, _ = make_map(top_k=12)
    classes[11, 3, 2] = classes[0, 3, 2]
    with pytest.raises(ValueError, match=r"distinct, got \d+ twice at cell \(3, 2\)"):
        pack_record(StoreHeader(num_classes=20, top_k=12), NAME, scores, classes)


def test_a_record_is_shown_in_one_line():
    given = {"coverage": (0, 0, 0.5, 1), "image_scores": OF_IMAGE, "image_size": (500, 375), "exif_turned": True}
    packed = pack_record(WITH_IMAGE, NAME, *make_map(residual=True), **given)
    assert repr(unpack_record(WITH_IMAGE, NAME, memoryview(packed))) == (
        "LabelRecord(3 classes in each of 7 x 5 cells, residual, coverage (0.0, 0.0, 0.5, 1.0), scores of the whole "
        "image for 20 classes, image of 500 x 375 px, turned by EXIF)"
    )


def test_a_coverage_box_is_byte_exact():
    record = pack_record(PLAIN, NAME, *make_map(), coverage=(0.125, 0.0, 0.875, 1.0))
    assert record[8:25] == b"\x01" + bytes.fromhex("0000003e 00000000 0000603f 0000803f")
    assert unpack_record(PLAIN, NAME, memoryview(record)).coverage == (0.125, 0.0, 0.875, 1.0)


@pytest.mark.parametrize("coverage, box", [("whole", (0, 0, 1, 1)), ((0.25, 0, 0.75, 1), (0.25, 0, 0.75, 1))])
def test_a_record_without_a_box_has_the_header_s(coverage, box):
    header = StoreHeader(num_classes=20, top_k=3, coverage=coverage)
    record = pack_record(header, NAME, *make_map())
    assert record[8] == 0
    assert unpack_record(header, NAME, memoryview(record)).coverage == box


def test_a_store_of_boxes_takes_no_map_without_one():
    header = StoreHeader(num_classes=20, top_k=3, coverage="record")
    with pytest.raises(ValueError, match=r"give coverage=\(x1, y1, x2, y2\) with each map"):
        pack_record(header, NAME, *make_map())


def test_a_record_that_lacks_its_box_is_damaged():
    record = pack_record(PLAIN, NAME, *make_map())
    header = StoreHeader(num_classes=20, top_k=3, coverage="record")
    with pytest.raises(DamagedRecord, match="has no coverage box"):
        unpack_record(header, NAME, memoryview(record))


@pytest.mark.parametrize(
    "box", [(0, 0, 1), (0, 0, 0, 1), (1, 0, 0, 1), (0, 0, np.nan, 1), (0, 0, np.inf, 1), "left", 3, (0, 0, 1e-60, 1)]
)
def test_a_box_that_is_none_is_refused(box):
    with pytest.raises(ValueError, match="coverage box"):
        pack_record(PLAIN, NAME, *make_map(), coverage=box)


def broken(**changes):
    scores, classes, residual = make_map(residual=True)
    given = {"scores": scores, "classes": classes, "residual": residual}
    for name, change in changes.items():
        given[name] = change(given[name])
    return given


def put_at(place, value):
    def change(array):
        array = array.copy()
        array[place] = value
        return array

    return change


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"scores": put_at((0, 2, 4), np.nan)}, r"scores must be finite float32 numbers, got nan at cell \(2, 4\)"),
        ({"scores": put_at((2, 6, 0), -np.inf)}, r"got -inf at cell \(6, 0\)"),
        ({"scores": lambda s: s.astype(np.float64) * 1e300}, r"finite float32 numbers, got -?\d\.\d+e\+300 at cell"),
        ({"scores": lambda s: s[:2]}, r"scores are \[K, h, w\] with K = 3, got shape \[2, 7, 5\]"),
        ({"scores": lambda s: s[:, 0]}, r"with K = 3, got shape \[3, 5\]"),
        ({"scores": lambda s: s[:, :0]}, r"got shape \[3, 0, 5\]"),
        ({"scores": lambda s: s.astype(np.int64)}, "scores are floats, got dtype int64"),
        ({"scores": lambda s: s * 1e5}, r"float16 codec reach from -65504 to 65504, got magnitude"),
        ({"classes": put_at((1, 3, 2), 20)}, r"classes are 0 to 19, got 20 at cell \(3, 2\)"),
        ({"classes": put_at((1, 3, 2), -1)}, r"classes are 0 to 19, got -1 at cell \(3, 2\)"),
        ({"classes": lambda c: c * 1.0}, "classes are integers, got dtype float64"),
        ({"classes": lambda c: c > 3}, "classes are integers, got dtype bool"),
        ({"classes": lambda c: c.transpose(0, 2, 1)}, r"shape of scores, \[3, 7, 5\], got \[3, 5, 7\]"),
        ({"classes": lambda c: np.stack([c[0], c[1], c[0]])}, r"classes of a cell are distinct, got \d+ twice"),
        ({"residual": lambda r: None}, r"the store keeps a residual \(residual=True\), got None"),
        ({"residual": lambda r: r.T}, r"the residual is \[h, w\] = \[7, 5\], got shape \[5, 7\]"),
        ({"residual": lambda r: r.astype(int)}, "the residual is floats, got dtype int64"),
        ({"residual": put_at((6, 1), np.inf)}, r"residual must be finite float32 numbers, got inf at cell \(6, 1\)"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_its_value(changes, said):
    with pytest.raises(ValueError, match=said):
        pack_record(HEADER, NAME, **broken(**changes))


def test_a_residual_that_the_store_does_not_keep_is_refused():
    with pytest.raises(ValueError, match=r"keeps no residual \(residual=False\), got an array of shape \[7, 5\]"):
        pack_record(PLAIN, NAME, *make_map(residual=True))


def test_a_logit_is_no_probability():
    header = StoreHeader(num_classes=20, top_k=3, score_kind="probability")
    pack_record(header, NAME, *make_map(low=0, high=1))
    with pytest.raises(ValueError, match=r"score_kind='probability' are 0 to 1, got \d\.\d+ at cell \(0, 0\)"):
        pack_record(header, NAME, *make_map(low=2, high=9))


def test_a_residual_of_logits_is_no_probability():
    header = StoreHeader(num_classes=20, top_k=3, score_kind="probability", residual=True)
    scores, classes, residual = make_map(low=0, high=1, residual=True)
    pack_record(header, NAME, scores, classes, residual)
    residual[6, 1] = 1.5
    with pytest.raises(ValueError, match=r"residual of score_kind='probability' are 0 to 1, got 1.5 at cell \(6, 1\)"):
        pack_record(header, NAME, scores, classes, residual)


def test_a_grid_of_too_many_scores_is_refused():
    scores = np.broadcast_to(np.float32(0), (3, 60000, 60000))
    with pytest.raises(ValueError, match=r"at most 67108864 scores, got shape \[3, 60000, 60000\]"):
        pack_record(PLAIN, NAME, scores, np.broadcast_to(0, scores.shape))


def test_a_record_under_another_key_is_damaged():
    record = pack_record(PLAIN, NAME, *make_map())
    with pytest.raises(DamagedRecord, match="or belongs to another key or store"):
        unpack_record(PLAIN, b"cat/2.jpg", memoryview(record))


def test_every_flipped_bit_is_noticed():
    record = pack_record(HEADER, NAME, *make_map(residual=True))
    for place in range(8 * len(record)):
        flipped = bytearray(record)
        flipped[place // 8] ^= 1 << place % 8
        with pytest.raises(DamagedRecord):
            unpack_record(HEADER, NAME, memoryview(bytes(flipped)))


def test_every_truncation_is_noticed():
    record = pack_record(HEADER, NAME, *make_map(residual=True))
    for length in range(len(record)):
        with pytest.raises(DamagedRecord):
            unpack_record(HEADER, NAME, memoryview(record[:length]))


@pytest.mark.parametrize(
    "body, said",
    [
        (struct.pack("<HHB", 7, 5, 2), "its flags are 0x02, and a store of this version knows only 0x0d"),
        (struct.pack("<HHB", 7, 5, 16), "its flags are 0x10"),
        (struct.pack("<HHB", 7, 5, 8), "EXIF would turn an image whose size it does not tell"),
        (struct.pack("<HHB", 7, 5, 4) + bytes(7), "requires a buffer of"),
        (struct.pack("<HHB", 0, 5, 0), "its grid is 0 x 5"),
        (struct.pack("<HHB", 7, 0, 0), "its grid is 7 x 0"),
        (struct.pack("<HHB", 65535, 65535, 0), "its grid is 65535 x 65535, and K x h x w must be 1 to 67108864"),
        (struct.pack("<HHB", 7, 5, 1) + bytes(15), "requires a buffer of"),
        (struct.pack("<HHB4f", 7, 5, 1, 1, 0, 0, 1), "coverage box"),
        (struct.pack("<HHB", 4000, 4000, 0) + bytes(100), "the payload has 100 bytes, and its scores alone need"),
    ],
)
@pytest.mark.parametrize("codec", ["float16", "uint8"])
def test_a_record_that_contradicts_itself_is_damaged(body, said, codec):
    header = StoreHeader(num_classes=20, top_k=3, codec=codec)
    with pytest.raises(DamagedRecord, match=said):
        unpack_record(header, NAME, memoryview(signed(NAME, body)))


def test_a_hostile_record_takes_no_memory():
    # 4000 x 4000 cells need 192 MB, and the indices would inflate to 64 MiB.
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = deflate.compress(bytes(2**26)) + deflate.flush()
    large = signed(NAME, struct.pack("<HHB", 4000, 4000, 0) + bytes(100))
    bombed = signed(NAME, struct.pack("<HHB", 1, 1, 0) + bytes(6) + b"\x01\x00\x00\x00\x01\x03" + bomb)
    tracemalloc.start()
    for record in (large, bombed):
        with pytest.raises(DamagedRecord):
            unpack_record(PLAIN, NAME, memoryview(record))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=60), codec=st.sampled_from(["float16", "uint8"]))
def test_any_signed_bytes_are_read_or_damaged(body, codec):
    header = StoreHeader(num_classes=20, top_k=1, codec=codec)
    try:
        unpack_record(header, NAME, memoryview(signed(NAME, body)))
    except DamagedRecord:
        pass


def test_two_ways_to_deflate_one_map_are_the_same_map():
    scores, classes, _ = make_map()
    record = pack_record(PLAIN, NAME, scores, classes, None)
    palette_end = 9 + 2 * scores.size + 5 + len(np.unique(classes))
    raw = zlib.decompress(record[palette_end:], wbits=-15)
    other = signed(NAME, record[4:palette_end] + b"\x01" + struct.pack("<HH", len(raw), len(raw) ^ 0xFFFF) + raw)
    assert other != record
    assert same_map(PLAIN, NAME, record, other)
    assert not same_map(PLAIN, NAME, record, pack_record(PLAIN, NAME, *make_map(1)))


def test_another_coverage_is_another_map():
    boxes = [(0, 0, 1, 1), (0, 0, 0.5, 1)]
    records = [pack_record(PLAIN, NAME, *make_map(), coverage=box) for box in boxes]
    assert not same_map(PLAIN, NAME, *records)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_scores_may_be_any_float(dtype):
    scores, classes, _ = make_map()
    back = unpack_record(PLAIN, NAME, memoryview(pack_record(PLAIN, NAME, scores.astype(dtype), classes)))
    assert_array_equal(back.scores, scores.astype(np.float16).astype(np.float32))


WITH_IMAGE = StoreHeader(num_classes=20, top_k=3, residual=True, image_top_k=20)
OF_IMAGE = np.linspace(-2, 4.3, 20)[::-1]  # 64 steps of a tenth
OF_IMAGE = OF_IMAGE - np.log(np.exp(OF_IMAGE).sum())


def test_the_scores_of_a_whole_image_are_byte_exact():
    record = pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=OF_IMAGE)
    (length,) = struct.unpack_from("<I", record, 9)
    section = record[13 : 13 + length]
    assert record[8] == 2
    assert struct.unpack_from("<2f", section) == (np.float32(OF_IMAGE[-1]), np.float32(OF_IMAGE[0]))
    steps = zlib.decompress(section[8:], wbits=-15)
    assert list(steps) == [round(63 * place / 19) for place in range(19, -1, -1)]
    unread = unpack_record(HEADER, NAME, memoryview(pack_record(HEADER, NAME, *make_map(residual=True))))
    assert_array_equal(unpack_record(WITH_IMAGE, NAME, memoryview(record)).scores, unread.scores)


def test_the_scores_of_a_whole_image_come_back_to_half_a_step():
    record = pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=OF_IMAGE)
    got = unpack_record(WITH_IMAGE, NAME, memoryview(record)).image_scores
    assert got.shape == (20,) and got.dtype == np.float32
    assert np.abs(got - OF_IMAGE).max() <= 6.3 / 63 / 2 + 1e-6
    assert np.abs(got - OF_IMAGE).max() > 1e-3  # that they are rounded at all


@pytest.mark.parametrize("num_classes", [20, 70000])
def test_classes_beyond_the_best_of_a_whole_image_share_what_they_come_to(num_classes):
    header = StoreHeader(num_classes=num_classes, top_k=3, residual=True, image_top_k=4)
    scores = np.random.default_rng(0).permutation(np.linspace(-3, 6, num_classes))
    scores -= np.log(np.exp(scores).sum())
    record = pack_record(header, NAME, *make_map(residual=True), image_scores=scores)
    got = unpack_record(header, NAME, memoryview(record)).image_scores.astype(np.float64)
    best = np.argsort(scores)[-4:]
    others = np.setdiff1d(np.arange(num_classes), best)
    assert np.abs(got[best] - scores[best]).max() <= 9 / 63 / 2
    assert len(set(got[others])) == 1
    assert np.exp(got[others]).sum() == pytest.approx(np.exp(scores[others]).sum(), rel=1e-5)


def test_scores_of_a_whole_image_that_are_all_the_same_come_back():
    record = pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=np.full(20, 1.5))
    got = unpack_record(WITH_IMAGE, NAME, memoryview(record)).image_scores
    assert_array_equal(got, np.full(20, -np.log(20), np.float32))


def test_scores_of_a_whole_image_are_kept_less_their_logsumexp():
    one, other = (
        pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=OF_IMAGE + shift) for shift in (0.0, 50.0)
    )
    first, second = (unpack_record(WITH_IMAGE, NAME, memoryview(record)).image_scores for record in (one, other))
    np.testing.assert_allclose(first, second, atol=1e-5)


@pytest.mark.parametrize(
    "scores, words",
    [
        (None, r"image_top_k=20\), got None: give image_scores="),
        (np.ones(19), r"are \[C\] = \[20\], got shape \[19\]"),
        (np.ones(20, int), "are floats, got dtype int"),
        (np.full(20, np.nan), "must be finite float32 numbers, got nan at class 0"),
    ],
)
def test_scores_of_a_whole_image_that_do_not_fit_are_refused(scores, words):
    with pytest.raises(ValueError, match=words):
        pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=scores)


def test_a_store_without_scores_of_whole_images_takes_none():
    with pytest.raises(ValueError, match=r"keeps no scores for the whole image \(image_top_k=0\)"):
        pack_record(HEADER, NAME, *make_map(residual=True), image_scores=np.ones(20))


def _damaged(change):
    """A record with 4 of 20 classes of the whole image, whose section ``change`` alters."""
    header = StoreHeader(num_classes=20, top_k=3, residual=True, image_top_k=4)
    record = pack_record(header, NAME, *make_map(residual=True), image_scores=OF_IMAGE)
    (length,) = struct.unpack_from("<I", record, 9)
    section = change(record[13 : 13 + length])
    body = record[4:9] + struct.pack("<I", len(section)) + section + record[13 + length :]
    return header, signed(NAME, body)


def _deflated(levels):
    deflate = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflate.compress(bytes(levels)) + deflate.flush()


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda section: section[:10], "have 10 bytes, and need at least 20"),
        (lambda section: section[:20] + _deflated([1, 2, 3]), "must inflate to exactly 4 bytes"),
        (lambda section: section[:20] + _deflated([1, 2, 3, 4, 5]), "must inflate to exactly 4 bytes"),
        (lambda section: section[:20] + _deflated([1, 2, 3, 64]), "is step 64 of 63"),
        (lambda section: section[:20] + b"\xff\xff", "do not inflate"),
        (lambda section: section[:12] + struct.pack("<4H", 3, 2, 5, 6) + section[20:], "ascending classes below 20"),
        (lambda section: section[:12] + struct.pack("<4H", 1, 2, 5, 20) + section[20:], "ascending classes below 20"),
        (lambda section: section[:8] + struct.pack("<f", np.nan) + section[12:], "ascending classes below 20"),
        (lambda section: struct.pack("<2f", 2, 1) + section[8:], "from its smaller to its larger"),
    ],
)
def test_damaged_scores_of_a_whole_image_are_noticed(change, words):
    header, record = _damaged(change)
    with pytest.raises(DamagedRecord, match=words):
        unpack_record(header, NAME, memoryview(record))


def test_a_record_without_its_scores_of_the_whole_image_is_damaged():
    record = pack_record(HEADER, NAME, *make_map(residual=True))
    with pytest.raises(DamagedRecord, match="has no scores for the whole image"):
        unpack_record(WITH_IMAGE, NAME, memoryview(record))


def test_a_record_of_the_first_version_has_no_scores_of_the_whole_image():
    record = pack_record(WITH_IMAGE, NAME, *make_map(residual=True), image_scores=OF_IMAGE)
    with pytest.raises(DamagedRecord, match="its flags are 0x02, and a store of this version knows only 0x0d"):
        unpack_record(HEADER, NAME, memoryview(record))
