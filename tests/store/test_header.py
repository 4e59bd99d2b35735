import msgpack
import pytest

from torchrelabel.calibration import Calibration
from torchrelabel.errors import StoreError
from torchrelabel.store import header as header_module
from torchrelabel.store.header import StoreHeader, read_header, write_header

FULL = StoreHeader(
    num_classes=3,
    top_k=2,
    codec="uint8",
    score_kind="probability",
    residual=True,
    coverage=(0.125, 0.0, 0.875, 1.0),
    grid=(7, 5),
    annotator={"model": "resnet18", "mean": (0.5, 0.5, 0.5), "input size": 475, "ema": None},
    class_names=("cat", "dog", "caf\udce9"),
    class_to_idx={"a": 0, "b": 1},
    shards=4,
    finished=(0, 3),
    dataset={"count": 12, "fingerprint": "abc"},
)


def fields_of(header):
    return msgpack.unpackb(header.to_bytes(), unicode_errors="surrogateescape")


def test_the_smallest_header_is_byte_exact():
    expected = (
        b"\xde\x00\x11"  # a map of 17
        b"\xa6format\xb2torchrelabel.store"
        b"\xa7version\x03"
        b"\xabnum_classes\xcd\x03\xe8"
        b"\xa5top_k\x05"
        b"\xa5codec\xa7float16"
        b"\xaascore_kind\xa5logit"
        b"\xa8residual\xc2"
        b"\xa8coverage\xa5whole"
        b"\xa4grid\xc0"
        b"\xa9annotator\x80"
        b"\xabclass_names\xc0"
        b"\xacclass_to_idx\xc0"
        b"\xa6shards\x01"
        b"\xa8finished\x90"
        b"\xa7dataset\x80"
        b"\xa5parts\x91\x00"
        b"\xa8identity\xd9\x20000102030405060708090a0b0c0d0e0f"
    )
    assert StoreHeader(num_classes=1000, top_k=5, identity=bytes(range(16)).hex()).to_bytes() == expected


def test_a_header_comes_back():
    back = StoreHeader.from_bytes(FULL.to_bytes())
    assert back.annotator.pop("mean") == [0.5, 0.5, 0.5]
    FULL_annotator = {name: value for name, value in FULL.annotator.items() if name != "mean"}
    assert back.annotator == FULL_annotator
    for name in ("coverage", "grid", "class_names", "class_to_idx", "finished", "dataset", "shards", "residual"):
        assert getattr(back, name) == getattr(FULL, name), name


def test_a_store_is_complete_when_all_shards_are():
    assert not FULL.complete
    assert StoreHeader(num_classes=3, top_k=2, shards=2, finished=(1, 0)).complete


def test_a_field_of_a_later_release_is_kept():
    content = msgpack.packb({**fields_of(FULL), "licence": "CC-0"}, unicode_errors="surrogateescape")
    header = StoreHeader.from_bytes(content)
    assert header.extra == {"licence": "CC-0"}
    assert fields_of(header)["licence"] == "CC-0"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"num_classes": 0}, "num_classes is 1 to 2147483647, got 0"),
        ({"num_classes": 2**31}, "got 2147483648"),
        ({"num_classes": True}, "num_classes is 1 to 2147483647, got True"),
        ({"top_k": 4}, "top_k is 1 to num_classes = 3, got 4"),
        ({"top_k": 0}, "got 0"),
        ({"top_k": 2.0}, "got 2.0"),
        ({"top_k": 3}, "top_k = num_classes = 3 keeps every class, so residual must be False"),
        ({"codec": "bfloat16"}, "codec is one of 'float16', 'uint8', got 'bfloat16'"),
        ({"score_kind": "odds"}, "score_kind is one of 'logit', 'probability', got 'odds'"),
        ({"residual": 1}, "residual is True or False, got 1"),
        ({"coverage": "centre"}, "coverage is 'whole', 'record' or a box .*, got 'centre'"),
        ({"coverage": [0, 0, 1]}, r"a coverage box is four numbers .*, got \[0, 0, 1\]"),
        ({"coverage": [1, 0, 0, 1]}, "x1 < x2"),
        ({"grid": [7, 0]}, r"grid is \(h, w\) with 1 to 65535 cells each way, got \[7, 0\]"),
        ({"grid": 7}, "got 7"),
        ({"annotator": "resnet18"}, "annotator and dataset are maps, got 'resnet18'"),
        ({"class_names": ["cat"]}, "a name for each of the 3 classes, got 1"),
        ({"class_names": "cat"}, "class_names are strings"),
        ({"class_names": [1, 2, 3]}, "class_names are strings"),
        ({"class_to_idx": {"a": -1}}, "class_to_idx maps folder names to indices, got 'a': -1"),
        ({"class_to_idx": [0]}, "class_to_idx is a map"),
        ({"shards": 0}, "shards is 1 to 4096, got 0"),
        ({"shards": 4097}, "got 4097"),
        ({"finished": [4]}, r"shard numbers are 0 to 3, got \[4\]"),
        ({"parts": [1, 2]}, r"parts has a number for each of 4 shards, got \[1, 2\]"),
        ({"parts": [1, 2, 3, -1]}, r"a shard has 0 to 65535 parts, got \[1, 2, 3, -1\]"),
        ({"identity": "abc"}, "identity is 32 hexadecimal digits, or empty, got 'abc'"),
        ({"identity": 5}, "identity is 32 hexadecimal digits, or empty, got 5"),
    ],
)
def test_a_field_out_of_bounds_is_refused_on_both_ways(changes, said):
    with pytest.raises(ValueError, match=said):
        StoreHeader(**{**FULL.__dict__, **changes})
    content = msgpack.packb({**fields_of(FULL), **changes}, unicode_errors="surrogateescape")
    with pytest.raises(ValueError, match=said):
        StoreHeader.from_bytes(content)


def test_another_format_is_refused_by_its_name():
    with pytest.raises(ValueError, match=r"its format is 'zip', and a label store says 'torchrelabel.store'"):
        StoreHeader.from_bytes(msgpack.packb({**fields_of(StoreHeader(5, 2)), "format": "zip"}))


@pytest.mark.parametrize("version", [4, 0, "1", None])
def test_a_later_version_is_refused_naming_both(version):
    said = rf"its format version is {version!r}, and this release of torchrelabel reads up to version 3; update"
    with pytest.raises(ValueError, match=said):
        StoreHeader.from_bytes(msgpack.packb({"format": "torchrelabel.store", "version": version}))


def test_missing_fields_are_named():
    fields = fields_of(StoreHeader(5, 2))
    del fields["top_k"], fields["grid"]
    with pytest.raises(ValueError, match="it lacks grid, top_k"):
        StoreHeader.from_bytes(msgpack.packb(fields))


@pytest.mark.parametrize(
    "content, said",
    [
        (b"", "no msgpack map"),
        (b"\xc1", "no msgpack map"),
        (b"\x80\x80", "no msgpack map"),
        (b"\x91" * 2000, "no msgpack map"),
        (b"\xdf\xff\xff\xff\xff", "no msgpack map"),
        (b"\x81\xa1a\xd6\xff\x00\x00\x00\x00", "no msgpack map"),
        (b"\x81\x01\x02", "no msgpack map"),
        (b"\x93\x01\x02\x03", "holds a list instead of a map"),
    ],
)
def test_bytes_that_are_no_header_are_refused(content, said):
    with pytest.raises(ValueError, match=said):
        StoreHeader.from_bytes(content)


@pytest.mark.parametrize("name", ["codec", "score_kind", "coverage", "class_names", "dataset", "shards", "finished"])
@pytest.mark.parametrize("value", [[[]], {}, {"a": 1}, 5, b"x", None])
def test_a_field_of_a_wrong_type_is_refused_or_read_and_nothing_else(name, value):
    fields = {**fields_of(StoreHeader(5, 2)), name: value}
    try:
        StoreHeader.from_bytes(msgpack.packb(fields))
    except ValueError:
        pass


def test_an_annotator_that_msgpack_cannot_hold_is_refused():
    with pytest.raises(TypeError, match="holds strings, numbers, booleans, None, lists and maps"):
        StoreHeader(5, 2, annotator={"model": object()}).to_bytes()


def test_a_header_file_comes_back_and_leaves_nothing_beside(tmp_path):
    write_header(tmp_path, FULL)
    assert read_header(tmp_path).class_names == FULL.class_names
    assert [entry.name for entry in tmp_path.iterdir()] == ["header.msgpack"]


def test_a_header_file_too_large_is_refused_before_it_is_parsed(tmp_path, monkeypatch):
    write_header(tmp_path, FULL)
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 50)
    with pytest.raises(StoreError, match="larger than 50 bytes"):
        read_header(tmp_path)


def test_a_header_too_large_is_not_written(monkeypatch):
    monkeypatch.setattr(header_module, "MAX_HEADER_BYTES", 50)
    with pytest.raises(ValueError, match=r"at most 50 bytes, got \d+"):
        FULL.to_bytes()


def test_a_header_cut_short_is_refused_naming_the_file(tmp_path):
    write_header(tmp_path, FULL)
    path = tmp_path / "header.msgpack"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(
        StoreError, match=r"header.msgpack is no header of a label store that can be read: it is no msgp"
    ):
        read_header(tmp_path)


def test_what_is_no_store_says_why(tmp_path):
    with pytest.raises(StoreError, match=r"nowhere does not exist; give the directory of a label store"):
        read_header(tmp_path / "nowhere")
    with pytest.raises(StoreError, match=r"is an empty directory, and a label store holds header.msgpack"):
        read_header(tmp_path)
    (tmp_path / "a.jpg").write_bytes(b"")
    with pytest.raises(StoreError, match=r"is no label store: it holds no header.msgpack, but a.jpg"):
        read_header(tmp_path)
    with pytest.raises(StoreError, match=r"a.jpg is a file, and a label store is a directory"):
        read_header(tmp_path / "a.jpg")


def test_differences_name_every_setting_with_both_values():
    other = StoreHeader(
        num_classes=4, top_k=2, codec="float16", score_kind="probability", residual=True, annotator={"model": "vit"}
    )
    said = FULL.differences(other)
    assert said[:4] == [
        "num_classes: 3, now 4",
        "codec: 'uint8', now 'float16'",
        "coverage: (0.125, 0.0, 0.875, 1.0), now 'whole'",
        "shards: 4, now 1",
    ]
    assert "annotator.model: 'resnet18', now 'vit'" in said
    assert "annotator.input size: 475, now None" in said


def test_a_description_that_is_not_given_is_no_difference():
    same = {name: getattr(FULL, name) for name in header_module.SETTINGS}
    assert FULL.differences(StoreHeader(**same)) == []


def test_of_long_tables_only_entries_that_differ_are_shown():
    """They used to be cut off, so that both looked the same."""
    names = tuple(f"class {index}" for index in range(1000))
    other = (*names[:990], *(name.upper() for name in names[990:]))
    headers = [StoreHeader(num_classes=1000, top_k=5, class_names=each) for each in (names, other)]
    said = headers[0].differences(headers[1])
    assert said[0] == "class_names[990]: 'class 990', now 'CLASS 990'"
    assert said[7:] == ["class_names[997]: 'class 997', now 'CLASS 997'", "and 2 more"]


@pytest.mark.parametrize(("version", "image_top_k"), [(1, 0), (2, 7), (3, 0), (3, 7)])
def test_a_header_stays_of_the_version_that_it_is(version, image_top_k):
    header = StoreHeader(num_classes=20, top_k=3, image_top_k=image_top_k, format_version=version)
    fields = msgpack.unpackb(header.to_bytes())
    assert (header.as_read().format_version, fields["version"]) == (version, version)
    assert ({"parts", "identity"} <= fields.keys()) == (version == 3)
    assert ("image_top_k" in fields) == bool(image_top_k)


def test_only_the_last_part_of_a_shard_that_is_not_finished_is_ever_written_to():
    header = StoreHeader(num_classes=20, top_k=3, shards=2, finished=(1,), parts=(3, 2))
    assert [[header.is_final(shard, part) for part in range(3)] for shard in (0, 1)] == [
        [True, True, False],
        [True, True, True],
    ]


def test_a_header_survives_with_its_calibration():
    calibration = Calibration((0.5, -0.25), (0.125, 2.0), 0.0625, {"kl": 0.5})
    header = StoreHeader(num_classes=20, top_k=3, residual=True, image_top_k=7, calibration=calibration)
    fields = msgpack.unpackb(header.to_bytes())
    assert fields["image_top_k"] == 7
    assert fields["calibration"] == {
        "rule": "log-linear",
        "map_weights": [0.5, -0.25],
        "image_weights": [0.125, 2.0],
        "smallest_area": 0.0625,
        "fit": {"kl": 0.5},
    }
    assert header.as_read() == header


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"image_top_k": 21}, "image_top_k is 0 to num_classes = 20, got 21"),
        ({"image_top_k": 5, "score_kind": "probability"}, "needs score_kind='logit'"),
        ({"calibration": Calibration((1.0,), (0.0,), 0.5)}, "a calibration needs scores for the whole image"),
    ],
)
def test_scores_for_whole_images_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        StoreHeader(**{"num_classes": 20, "top_k": 3, **changes})


@pytest.mark.parametrize(
    "field, value, words",
    [
        ("version", 1, "its format version is 1, and image_top_k=7 is of the other"),
        ("calibration", {"rule": "a later one"}, "calibrated for the rule 'a later one'.*update torchrelabel"),
        ("calibration", {"rule": "log-linear"}, "its calibration is incomplete"),
        ("calibration", [1, 2], "a calibration is a map, got list"),
    ],
)
def test_a_header_that_says_two_things_of_whole_images_is_refused(field, value, words):
    fields = msgpack.unpackb(StoreHeader(num_classes=20, top_k=3, image_top_k=7).to_bytes())
    with pytest.raises(ValueError, match=words):
        StoreHeader.from_bytes(msgpack.packb(fields | {field: value}))
