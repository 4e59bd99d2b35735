"""Every way in which verify can find a store wanting, and that it finds nothing wrong with a sound one."""

import re
import struct

import numpy as np
import pytest

from tests.store.label_maps import CLASSES, TOP_K, editing, fill, flip_byte, make_map
from torchrelabel.store import LabelStore, LabelStoreWriter, inspection, shard_of
from torchrelabel.store import verify as verify_module
from torchrelabel.store.codecs import CODECS, Shape
from torchrelabel.store.layout import ABOUT_KEY, failure_key, fingerprint, pack_about, shard_file, unpack_about
from torchrelabel.store.parts import Part
from torchrelabel.store.record import pack_record, seal_record
from torchrelabel.store.verify import verify

KEYS = ["a.b/x.jpg", "a.b/y.jpg", "c d/z.jpg"]


class InThisProcess:
    """Stands in for another process, which takes a good part of a second to start."""

    ended = ""

    def __init__(self, path, files):
        self.given = path, files

    def __iter__(self):
        said = []
        inspection.inspect(*self.given, lambda kind, value: said.append((kind, value)))
        return iter(said)


@pytest.fixture(autouse=True)
def in_this_process(request, monkeypatch):
    if "another_process" not in request.fixturenames:
        monkeypatch.setattr(verify_module, "_Inspection", InThisProcess)


@pytest.fixture
def another_process():
    """The store is looked into as users have it."""


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "maps.lmdb"
    with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, dataset={"count": 3}) as writer:
        fill(writer, KEYS)
    return path


def test_a_sound_store_has_nothing_to_report(path):
    found = verify(LabelStore(path), KEYS)
    assert found.sound
    assert (found.records, found.grids) == (3, {(7, 5): 3})
    assert not (found.damaged or found.missing or found.surplus or found.failures)


def test_a_flipped_bit_is_found_and_the_other_maps_are_still_counted(path):
    flip_byte(path, KEYS[1], -1)
    found = verify(LabelStore(path))
    assert list(found.damaged) == [KEYS[1]]
    assert "checksum" in found.damaged[KEYS[1]]
    assert found.records == 2
    assert not found.sound


def test_images_without_a_map_and_maps_without_an_image_are_told_apart(path):
    found = verify(LabelStore(path), [*KEYS[:2], "new.jpg"])
    assert (found.missing, found.surplus) == (["new.jpg"], [KEYS[2]])
    assert not found.sound


def test_a_map_of_no_image_does_not_make_a_store_unsound(path):
    assert verify(LabelStore(path), KEYS[:2]).sound


def test_an_image_that_failed_is_not_missing(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        fill(writer, KEYS[:1])
        writer.put_failure("broken.jpg", "truncated")
    found = verify(LabelStore(tmp_path / "s"), [KEYS[0], "broken.jpg"])
    assert found.failures == {"broken.jpg": "truncated"}
    assert found.sound


def test_an_image_whose_name_can_be_no_key_has_failed_and_is_not_missing(path):
    """A folder that holds one used to be reported as incomplete for ever."""
    found = verify(LabelStore(path), [*KEYS, "\x01z.png"])
    assert found.sound
    assert "nor begin with the byte 0x01" in found.failures["\x01z.png"]


def test_a_store_whose_writer_never_finished_is_incomplete(tmp_path):
    with pytest.raises(RuntimeError, match="power cut"):
        with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
            writer.put(KEYS[0], *make_map())
            raise RuntimeError("power cut")
    found = verify(LabelStore(tmp_path / "s"))
    assert found.incomplete
    assert not found.sound


def test_a_header_that_counts_more_images_than_there_are_is_reported(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, dataset={"count": 4}) as writer:
        fill(writer, KEYS)
    found = verify(LabelStore(tmp_path / "s"))
    assert found.miscounted == ("the header speaks of 4 images, and there are 3 label maps and 0 images that failed")


def test_grids_that_differ_are_counted_apart(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        writer.put("a", *make_map(rows=7, columns=5))
        writer.put("b", *make_map(rows=2, columns=9))
    assert verify(LabelStore(tmp_path / "s")).grids == {(7, 5): 1, (2, 9): 1}


def test_progress_sees_every_key(path):
    seen = []

    def progress(keys):
        for key in keys:
            seen.append(key)
            yield key

    verify(LabelStore(path), progress=progress)
    assert seen == sorted(KEYS)


# Damage is reported, not raised


def edit(path, change, shard=0):
    """Let ``change`` loose on the transaction of a shard."""
    with editing(path, shard) as transaction:
        change(transaction)


def move(old, new):
    def change(transaction):
        value = transaction.get(old)
        transaction.delete(old)
        transaction.put(new, value)

    return change


def test_shards_that_were_exchanged_are_reported(tmp_path):
    """It used to end with a missing map: the keys were looked up in the other shard."""
    keys = [f"{index}.jpg" for index in range(9)]
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, shards=2) as writer:
        fill(writer, keys)
    first, second = (tmp_path / "s" / shard_file(shard) for shard in range(2))
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    found = verify(LabelStore(tmp_path / "s"), keys)
    assert list(found.damaged) == [shard_file(0), shard_file(1)]
    assert "it says that it is part 0 of shard 1 of store" in found.damaged[shard_file(0)]
    assert (found.records, found.sound) == (0, False)


def test_a_key_of_another_shard_is_reported(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, shards=2) as writer:
        number = shard_of("a.jpg", 2)
        writer._put_record("a.jpg", b"a.jpg", writer._shards[1 - number], packed(writer.header))
    (said,) = verify(LabelStore(tmp_path / "s")).damaged.values()
    assert said == f"it lies in shard {1 - number}, and its key belongs into shard {number}"


def packed(header, name=b"a.jpg"):
    return pack_record(header, name, *make_map())


def test_a_flipped_byte_of_a_key_is_reported(path):
    """It used to end with a missing map, or with a key that is none."""
    for flipped in (b"a.b/y.jpf", b"/.b/x.jpg"):
        edit(path, move({b"f": b"a.b/y.jpg", b"g": b"a.b/x.jpg"}[flipped[-1:]], flipped))
    found = verify(LabelStore(path), KEYS)
    assert list(found.damaged) == ["/.b/x.jpg", "a.b/y.jpf"]
    assert "a key is a path relative to the dataset root" in found.damaged["/.b/x.jpg"]
    assert "its checksum is" in found.damaged["a.b/y.jpf"]
    assert (found.records, found.missing) == (1, KEYS[:2])


@pytest.mark.parametrize(
    ("value", "said"),
    [(struct.pack("<H", 500) + b"b.jpg", "announces a key of 500 bytes"), (b"\x05\x00a.jpgno", "under another digest")],
)
def test_a_damaged_failure_is_reported_and_all_else_is_checked(path, value, said):
    """It used to end with an error."""
    edit(path, lambda transaction: transaction.put(failure_key(b"b.jpg"), value))
    flip_byte(path, KEYS[1], -1)
    found = verify(LabelStore(path))
    key, place = found.damaged
    assert (place[:12], key, found.records, found.failures) == ("failure 0066", KEYS[1], 2, {})
    assert said in found.damaged[place]


@pytest.mark.parametrize(
    ("value", "said"), [(b"\x01", "has 12 bytes, got 1"), (bytes(12) + b"a.jpg", "under another digest")]
)
def test_a_damaged_record_of_a_long_key_is_reported(path, value, said):
    edit(path, lambda transaction: transaction.put(b"\x01" + bytes(32), value))
    found = verify(LabelStore(path))
    assert said in found.damaged["digest 01" + 64 * "0"]
    assert found.records == 3


def test_a_sound_record_of_a_long_key_is_sound(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        fill(writer, [600 * "a", "b.jpg"])
    assert verify(LabelStore(tmp_path / "s"), [600 * "a", "b.jpg"]).sound


def test_a_shard_that_cannot_be_read_is_reported_and_the_others_are_checked(tmp_path):
    keys = [f"{index}.jpg" for index in range(9)]
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, shards=2) as writer:
        fill(writer, keys)
    (tmp_path / "s" / shard_file(0)).unlink()
    found = verify(LabelStore(tmp_path / "s"))
    assert list(found.damaged) == [shard_file(0)]
    assert "is missing" in found.damaged[shard_file(0)]
    assert found.records == sum(shard_of(key, 2) for key in keys) > 0


def test_a_failure_and_a_map_of_one_image_are_reported(path):
    edit(path, lambda transaction: transaction.put(failure_key(KEYS[0].encode()), b"\x09\x00" + KEYS[0].encode()))
    found = verify(LabelStore(path))
    assert found.damaged == {KEYS[0]: "it has a map and is noted as a failure too"}


def test_bookkeeping_of_a_later_release_is_ignored(path):
    edit(path, lambda transaction: transaction.put(b"\x00later", b"whatever"))
    assert verify(LabelStore(path), KEYS).sound


def put_unchecked(path, arrays, kind):
    """A store of one record that no caller of ours could put, with the right checksum."""
    shape = Shape(*arrays["scores"].shape, CLASSES + 1, True)
    payload = CODECS["float16"].encode(shape, arrays["scores"], arrays["classes"], arrays["residual"])
    with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, residual=True, score_kind=kind) as writer:
        record = seal_record(writer.header, b"a.jpg", struct.pack("<HHB", shape.rows, shape.columns, 0) + payload)
        writer._put_record("a.jpg", b"a.jpg", writer._shards[0], record)


@pytest.mark.parametrize("kind", ["logit", "probability"])
@pytest.mark.parametrize(
    ("name", "place", "value", "said"),
    [
        (None, None, None, None),
        ("scores", (0, 2, 4), np.nan, r"scores must be finite float32 numbers, got nan at cell \(2, 4\)"),
        ("residual", (6, 1), np.nan, r"residual must be finite float32 numbers, got nan at cell \(6, 1\)"),
        ("scores", (1, 2, 4), 1.0, r"scores descend along K, got .* before 1 at cell \(2, 4\)"),
        ("classes", (1, 3, 2), "classes[0]", r"the classes of a cell are distinct, got \d+ twice at cell \(3, 2\)"),
        ("scores", (0, 6, 0), 1.01, r"probability: scores of .* are 0 to 1, got 1.0\d+ at cell \(6, 0\)"),
        ("scores", (2, 6, 0), -0.01, r"probability: scores of .* are 0 to 1, got -0.0\d+ at cell \(6, 0\)"),
        ("residual", (6, 1), 1.01, r"probability: residual of .* are 0 to 1, got 1.0\d+ at cell \(6, 1\)"),
    ],
)
def test_numbers_that_break_the_format_are_reported(tmp_path, kind, name, place, value, said):
    """A checksum tells what was changed since, not what was wrong when it was written; they used to be sound."""
    arrays = dict(zip(("scores", "classes", "residual"), make_map(residual=True, low=0.1, high=0.9), strict=True))
    if name:
        arrays[name][place] = arrays["classes"][(0, *place[1:])] if value == "classes[0]" else value
    put_unchecked(tmp_path / "s", arrays, kind)
    found = verify(LabelStore(tmp_path / "s"))
    of_probabilities, words = (said or "").startswith("probability: "), (said or "").removeprefix("probability: ")
    if said is None or (of_probabilities and kind == "logit"):
        assert found.sound
    else:
        assert list(found.damaged) == ["a.jpg"]
        assert re.fullmatch(words, found.damaged["a.jpg"])
        assert found.records == 0


def test_a_class_beyond_the_header_s_is_reported(tmp_path):
    scores, classes, residual = make_map(residual=True)
    put_unchecked(tmp_path / "s", {"scores": scores, "classes": classes + 1, "residual": residual}, "logit")
    assert verify(LabelStore(tmp_path / "s")).damaged == {"a.jpg": f"the palette holds class {CLASSES} of {CLASSES}"}


def test_a_count_that_is_wrong_is_reported(path):
    def change(transaction):
        transaction.put(ABOUT_KEY, pack_about(unpack_about(transaction.get(ABOUT_KEY))._replace(records=5)))

    edit(path, change)
    said = "it says that it holds 5 label maps and 0 failures, and 3 and 0 are found"
    assert verify(LabelStore(path)).damaged == {shard_file(0): said}


def test_a_map_in_two_parts_is_reported(path):
    with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, resume=True) as writer:
        writer._shards[0].put(KEYS[0].encode(), packed(writer.header, KEYS[0].encode()))
    found = verify(LabelStore(path))
    assert (found.damaged, found.records) == ({KEYS[0]: "it has a map in two files"}, 3)


def test_a_store_of_many_parts_is_not_looked_through_part_by_part_for_each_key(path, monkeypatch):
    parts = 12
    for number in range(parts):
        with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, resume=True) as writer:
            writer.put(f"more/{number}.jpg", *make_map(number))
    looks = []
    holds = Part.holds
    monkeypatch.setattr(Part, "holds", lambda part, name: looks.append(name) or holds(part, name))
    said = []
    store = LabelStore(path)
    inspection.inspect(path, [(0, part) for part in range(store.part_count(0))], lambda *what: said.append(what))
    assert sum(len(records) for kind, records in said if kind == "records") == parts + len(KEYS)
    assert not looks


def test_a_failure_of_the_last_part_and_a_map_of_an_earlier_one_are_reported(path):
    with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, resume=True) as writer:
        writer._shards[0].put_failure(KEYS[0].encode(), b"no image")
    assert verify(LabelStore(path)).damaged == {KEYS[0]: "it has a map and is noted as a failure too"}


def test_a_failure_that_a_later_part_takes_away_is_none(path):
    for put in (lambda writer: writer.put_failure("b.jpg", "no"), lambda writer: writer.put("b.jpg", *make_map())):
        with LabelStoreWriter(path, num_classes=CLASSES, top_k=TOP_K, resume=True) as writer:
            put(writer)
    found = verify(LabelStore(path))
    assert (found.damaged, found.failures, found.records) == ({}, {}, 4)


# In a process of its own


@pytest.mark.parametrize("where", ["first leaf", "all pages"])
def test_damaged_pages_are_reported_and_end_nothing(path, where, another_process):
    """LMDB used to end the process, or to go round for ever."""
    file = path / shard_file(0)
    content = bytearray(file.read_bytes())
    pages = range(2, len(content) // 4096)
    for page in pages if where == "all pages" else [page for page in pages if content[page * 4096 + 10] == 2]:
        content[page * 4096 : (page + 1) * 4096] = bytes(4096)
    file.write_bytes(content)
    found = verify(LabelStore(path), KEYS)
    assert list(found.damaged) == [shard_file(0)]
    assert not found.sound


@pytest.mark.parametrize("how", ["SIGABRT", "SIGKILL", "an error"])
def test_the_end_of_the_other_process_is_reported_and_other_files_are_checked(
    tmp_path, how, another_process, monkeypatch
):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K, shards=2) as writer:
        fill(writer, [f"{index}.jpg" for index in range(9)])
    end = {"SIGABRT": "os.abort()", "SIGKILL": "os.kill(os.getpid(), 9)", "an error": "raise KeyError('what')"}[how]
    start = f"import os, sys\nif sys.argv[2] == '0:0': {end}\n"
    monkeypatch.setattr(verify_module, "_START", start + verify_module._START)
    found = verify(LabelStore(tmp_path / "s"))
    assert list(found.damaged) == [shard_file(0)]
    assert {"an error": "exit status 1: KeyError: 'what'"}.get(how, how) in found.damaged[shard_file(0)]
    assert found.records == sum(shard_of(f"{index}.jpg", 2) for index in range(9)) > 0


def test_a_process_that_goes_round_is_ended(path, another_process, monkeypatch):
    monkeypatch.setattr(verify_module, "_SECONDS_OF_SILENCE", 0.5)
    monkeypatch.setattr(verify_module, "_START", "import time; time.sleep(1000)")
    assert "came to no end in 0 s" in verify(LabelStore(path)).damaged[shard_file(0)]


def test_the_other_process_says_the_same(annotated, another_process):
    found = verify(LabelStore(annotated), [*KEYS, "\udcff.jpg"])
    assert (found.sound, found.records, found.failures) == (True, 3, {"\udcff.jpg": "no image"})


# Lost records


@pytest.fixture
def annotated(tmp_path):
    """A store as annotate leaves it: it knows the fingerprint of its images, of which one failed."""
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        fill(writer, KEYS)
        writer.put_failure("\udcff.jpg", "no image")
        writer.finish(dataset={"count": 4, "fingerprint": fingerprint([*KEYS, "\udcff.jpg"])})
    return tmp_path / "s"


def test_the_images_that_were_annotated_are_sound(annotated):
    assert verify(LabelStore(annotated)).sound


@pytest.mark.parametrize("stranger", [failure_key(b"old.jpg"), None])
def test_a_lost_record_is_noticed_though_the_count_is_right(annotated, stranger):
    """A failure of an image that is gone used to hide it, and so did a map of one."""
    with LabelStoreWriter(annotated, num_classes=CLASSES, top_k=TOP_K, resume=True) as writer:
        if stranger:
            writer.put_failure("old.jpg", "no image")
        else:
            writer.put("old.jpg", *make_map())
    assert verify(LabelStore(annotated)).sound  # more than were counted: images may be deleted
    edit(annotated, lambda transaction: transaction.delete(KEYS[1].encode()))
    found = verify(LabelStore(annotated))
    assert "are not those of which the header has the fingerprint" in found.miscounted
    assert not found.sound


def test_a_fingerprint_of_another_kind_says_nothing(tmp_path):
    with LabelStoreWriter(tmp_path / "s", num_classes=CLASSES, top_k=TOP_K) as writer:
        fill(writer, KEYS)
        writer.finish(dataset={"count": 3, "fingerprint": "of my own"})
    assert verify(LabelStore(tmp_path / "s")).sound
