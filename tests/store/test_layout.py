import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchrelabel.store import layout


def test_a_short_key_is_its_own_lmdb_key():
    assert layout.record_key("n01/ü.JPEG".encode()) == b"n01/\xc3\xbc.JPEG"


def test_a_key_of_511_bytes_is_short_and_one_of_512_is_a_digest():
    assert layout.record_key(b"a" * 511) == b"a" * 511
    assert layout.record_key(b"a" * 512) == b"\x01" + hashlib.sha256(b"a" * 512).digest()


def test_a_failure_lies_under_a_reserved_digest():
    assert layout.failure_key(b"a.jpg") == b"\x00f" + hashlib.sha256(b"a.jpg").digest()


def test_the_shard_is_the_crc_of_the_key():
    # The check value of CRC-32 is that of "123456789": 0xcbf43926.
    assert layout.shard_of("123456789", 1000) == 0xCBF43926 % 1000


def test_a_file_name_that_is_not_utf8_survives():
    assert layout.encode_key(b"caf\xe9.jpg".decode("utf-8", "surrogateescape")) == b"caf\xe9.jpg"


def test_a_backslash_is_a_character():
    assert layout.encode_key("a\\b.jpg") == b"a\\b.jpg"


@given(st.binary(min_size=1, max_size=80).filter(lambda name: b"\0" not in name and name[:1] not in (b"/", b"\1")))
def test_every_file_name_comes_back(name):
    assert layout.encode_key(layout.decode_key(name)) == name


@pytest.mark.parametrize(
    "key, said",
    [
        ("", "empty string"),
        ("/data/a.jpg", "absolute path '/data/a.jpg'"),
        ("a\x00b", "NUL"),
        ("\x01a", "0x01"),
        ("a" * 65536, "at most 65535 bytes, got 65536"),
        ("\ud800", "UTF-8"),
    ],
)
def test_a_key_that_no_image_has_is_refused(key, said):
    with pytest.raises(ValueError, match=said):
        layout.encode_key(key)


def test_a_key_is_a_string():
    with pytest.raises(TypeError, match=r"as a string, got bytes b'a.jpg'"):
        layout.encode_key(b"a.jpg")


def test_a_named_value_is_byte_exact():
    assert layout.join_named(b"abc", b"xy") == b"\x03\x00abcxy"
    name, rest = layout.split_named(memoryview(b"\x03\x00abcxy"))
    assert (name, bytes(rest)) == (b"abc", b"xy")


@pytest.mark.parametrize("value", [b"", b"\x03", b"\x03\x00ab", b"\xff\xffabc"])
def test_a_named_value_cut_short_is_refused(value):
    with pytest.raises(ValueError, match="bytes"):
        layout.split_named(memoryview(value))


@pytest.mark.parametrize(("key", "can"), [("a/b.jpg", True), ("", False), ("/a.jpg", False), ("\x01z.png", False)])
def test_which_paths_can_be_keys(key, can):
    assert layout.can_be_key(key) is can


def test_the_place_of_a_record_is_byte_exact():
    place = layout.Location(block=1, start=515, length=70000)
    packed = bytes.fromhex("01000000 03020000 70110100")
    assert layout.pack_location(place, b"a.jpg") == packed
    assert layout.pack_location(place, 600 * b"a") == packed + 600 * b"a"
    assert layout.unpack_location(packed + b"a") == place
    assert layout.name_behind_location(packed + b"a.jpg") == b"a.jpg"


def test_what_a_file_says_of_itself_is_byte_exact():
    about = layout.About(bytes(range(16)), shard=1, part=2, records=3, failures=4, blocks=5)
    packed = bytes(range(16)) + bytes.fromhex("01000000 02000000 0300000000000000 0400000000000000 05000000")
    assert layout.pack_about(about) == packed
    assert layout.unpack_about(packed) == about
    assert len(packed[: layout.ABOUT_BYTES_OF_FILE]) == 24
    with pytest.raises(ValueError, match="has 44 bytes, got 43"):
        layout.unpack_about(packed[:-1])


def test_blocks_are_in_the_order_of_their_numbers():
    assert layout.block_key(258) == b"\0b\0\0\1\2"
    assert layout.block_number(layout.block_key(2**32 - 1)) == 2**32 - 1
    assert layout.block_key(255) < layout.block_key(256)


def test_the_files_of_a_shard_are_its_parts(tmp_path):
    names = ["shard-00001.mdb", "shard-00001-00001.mdb", "shard-00001-00012.mdb"]
    for name in [*names, "shard-00010.mdb", "shard-00001.lock", "shard-00001.mdb-lock"]:
        (tmp_path / name).touch()
    assert {file.name for file in layout.shard_files(tmp_path, 1)} == set(names)
    assert [layout.shard_file(1, part) for part in (0, 1, 12)] == names
