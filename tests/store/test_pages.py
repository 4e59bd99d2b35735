"""LMDB's pages as they are read one by one, against LMDB itself, and damage that it would not survive."""

import random
import struct

import lmdb
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchrelabel.store.pages import DamagedPage, PageReader


def make(path, entries, batches=1):
    entries = sorted(entries.items())
    with lmdb.open(str(path), subdir=False, lock=False, map_size=2**26) as environment:
        for batch in range(batches):
            with environment.begin(write=True) as transaction:
                for key, value in entries[batch::batches]:
                    transaction.put(key, value)
    return path.read_bytes()


def reader(content):
    return PageReader(lambda size, offset: content[offset : offset + size])


def entries_of(count, seed=0):
    rng = random.Random(seed)
    return {
        b"%05d" % rng.randrange(10**5) + bytes(rng.randrange(40)): bytes(rng.choice([3, 900, 9000]))
        for _ in range(count)
    }


@pytest.mark.parametrize("batches", [1, 3])
@pytest.mark.parametrize("count", [0, 1, 5, 400])
def test_a_walk_gives_what_lmdb_gives(tmp_path, count, batches):
    entries = entries_of(count)
    pages = reader(make(tmp_path / "a.mdb", entries, batches))
    assert list(pages.walk(b"\0", values=True)) == sorted(entries.items())
    assert list(pages.walk(b"\0")) == [(key, b"") for key in sorted(entries)]


def test_places_lead_to_the_values(tmp_path):
    entries = entries_of(200)
    content = make(tmp_path / "a.mdb", entries, 3)
    places = list(reader(content).places(b"3"))
    assert [key for key, _, _ in places] == sorted(key for key in entries if key >= b"3")
    assert {len(content[offset : offset + size]) for _, offset, size in places} == {3, 900, 9000}
    marked = make(tmp_path / "b.mdb", {key: key * 500 for key in list(entries)[:20]})
    for key, offset, size in reader(marked).places(b"\0"):
        assert marked[offset : offset + size] == key * 500


@settings(max_examples=30, deadline=None)
@given(start=st.binary(max_size=8), seed=st.integers(0, 3))
def test_a_walk_may_start_and_look_back_anywhere(tmp_path_factory, start, seed):
    entries = entries_of(300, seed)
    pages = reader(make(tmp_path_factory.mktemp("lmdb") / "a.mdb", entries))
    for place in (start, *random.Random(seed).sample(sorted(entries), 5)):
        assert [key for key, _ in pages.walk(place)] == sorted(key for key in entries if key >= place)
        assert pages.last_before(place) == max((key for key in entries if key < place), default=None)


def tree_pages(content):
    """Numbers of all pages but the two in front."""
    return range(2, len(content) // 4096)


def test_each_zeroed_page_is_found_or_not_come_by(tmp_path):
    entries = entries_of(400)
    content = make(tmp_path / "a.mdb", entries, 3)
    found = 0
    for page in tree_pages(content):
        damaged = content[: page * 4096] + bytes(4096) + content[(page + 1) * 4096 :]
        try:
            keys = [key for key, _ in reader(damaged).walk(b"\0")]
        except DamagedPage:
            found += 1
        else:  # a page that is free, or one of a value
            assert keys == sorted(entries)
    assert found > 3


@pytest.mark.parametrize("seed", range(3))
def test_pages_that_were_exchanged_are_found_or_not_come_by(tmp_path, seed):
    entries = entries_of(400)
    content = make(tmp_path / "a.mdb", entries, 3)
    rng = random.Random(seed)
    for _ in range(40):
        one, other = rng.sample(tree_pages(content), 2)
        damaged = bytearray(content)
        damaged[one * 4096 : (one + 1) * 4096] = content[other * 4096 : (other + 1) * 4096]
        damaged[other * 4096 : (other + 1) * 4096] = content[one * 4096 : (one + 1) * 4096]
        try:
            assert list(reader(bytes(damaged)).walk(b"\0")) == [(key, b"") for key in sorted(entries)]
        except DamagedPage:
            pass


@pytest.mark.parametrize("seed", range(4))
def test_any_bytes_changed_end_in_keys_in_order_or_in_an_error(tmp_path, seed):
    content = make(tmp_path / "a.mdb", entries_of(60))
    rng = random.Random(seed)
    for _ in range(150):
        damaged = bytearray(content)
        for _ in range(rng.choice([1, 16])):
            page = rng.choice([0, 1, *tree_pages(content)])
            damaged[page * 4096 + rng.randrange(rng.choice([64, 4096]))] = rng.randrange(256)
        try:
            pages = reader(bytes(damaged))
            keys = [key for key, _ in pages.walk(b"\0", values=True)]
            pages.last_before(b"5")
        except DamagedPage:
            continue
        assert keys == sorted(set(keys))


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (16, b"\0\0\0\0", "has the signature 0x0"),
        (40, struct.pack("<I", 1000), "speaks of pages of 1000 bytes"),
        (40, struct.pack("<I", 8192), "its two front pages speak of pages of 8192 and 4096 bytes|a front page has"),
        (4096 + 94, struct.pack("<H", 40), "its tree has 40 levels, and LMDB's have at most 32"),
    ],
)
def test_a_front_page_that_is_none_is_refused(tmp_path, place, value, said):
    content = bytearray(make(tmp_path / "a.mdb", {b"a": b"1"}))  # the newest commit is the second page's
    content[place : place + len(value)] = value
    with pytest.raises(DamagedPage, match=said):
        reader(bytes(content))


@pytest.mark.parametrize("length", [0, 4095, 8191])
def test_a_file_cut_short_in_its_front_is_refused(tmp_path, length):
    with pytest.raises(DamagedPage, match="a front page has"):
        reader(make(tmp_path / "a.mdb", {b"a": b"1"})[:length])
