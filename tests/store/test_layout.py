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
