"""copy: a store to an object store and back, interrupted and damaged on the way."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.store.label_maps import make_map
from torchrelabel.cli import main
from torchrelabel.errors import StoreError
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store import copy as copy_module
from torchrelabel.store.copy import copy

fsspec = pytest.importorskip("fsspec", reason="of the extra [remote]")

SHARDS = ["shard-00000.mdb", "shard-00001.mdb"]


def write(path: Path, count: int = 30) -> Path:
    with LabelStoreWriter(path, num_classes=20, top_k=3, shards=2) as writer:
        for number in range(count):
            writer.put(f"{number}.jpg", *make_map(number))
        writer.put_failure("bad.jpg", "cut short")
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return write(tmp_path / "maps.lmdb")


@pytest.fixture
def bucket(tmp_path: Path) -> Any:
    """A file system in memory, emptied."""
    memory = fsspec.filesystem("memory")
    memory.store.clear()
    return memory


URL = "memory://bucket/maps.lmdb"
TARGET = "/bucket/maps.lmdb"


def same(one: Path, other: Path) -> bool:
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in ("header.msgpack", *SHARDS))


def test_a_store_goes_to_a_bucket_and_comes_back_the_same(store: Path, bucket: Any, tmp_path: Path) -> None:
    assert copy(store, URL).checked == "maps"
    copied = copy(URL, tmp_path / "here.lmdb")
    assert (copied.files, copied.checked, copied.fetched) == (2, "checksums", copied.bytes)
    assert same(store, tmp_path / "here.lmdb")
    assert sorted(path.name for path in (tmp_path / "here.lmdb").iterdir()) == ["header.msgpack", *SHARDS]
    assert sorted(LabelStore(tmp_path / "here.lmdb").failures) == ["bad.jpg"]
    again = copy(URL, tmp_path / "here.lmdb")
    assert (again.fetched, again.checked) == (0, "sizes")


def test_a_copy_that_lacks_a_file_is_not_taken_for_one(store: Path, bucket: Any, tmp_path: Path) -> None:
    copy(store, URL)
    copy(URL, tmp_path / "here.lmdb")
    (tmp_path / "here.lmdb" / SHARDS[1]).write_bytes(b"")
    with pytest.raises(StoreError, match=r"lacks shard-00001.mdb, or a part of it"):
        copy(URL, tmp_path / "here.lmdb")


def test_its_checksums_are_those_of_sha256sum(store: Path, bucket: Any, tmp_path: Path) -> None:
    import hashlib

    copy(store, URL)
    want = [f"{hashlib.sha256((store / name).read_bytes()).hexdigest()}  {name}\n" for name in SHARDS]
    assert bucket.cat_file(f"{TARGET}/SHA256SUMS") == "".join(want).encode()


def test_the_header_goes_last(store: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError("no room")

    monkeypatch.setattr(bucket, "pipe_file", full)
    with pytest.raises(OSError, match="no room"):
        copy(store, URL)
    assert not bucket.exists(f"{TARGET}/header.msgpack")


class Cut:
    """A file whose connection ends after some bytes."""

    def __init__(self, file: Any, size: int) -> None:
        self.file = file
        self.left = size

    def __enter__(self) -> Cut:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def seek(self, place: int) -> None:
        self.file.seek(place)

    def read(self, size: int) -> bytes:
        if not self.left:
            raise OSError("connection reset")
        content: bytes = self.file.read(min(size, self.left))
        self.left -= len(content)
        return content


@pytest.mark.parametrize("sums", [True, False])
def test_an_interrupted_copy_is_continued(
    sums: bool, store: Path, bucket: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy(store, URL)
    if not sums:
        bucket.rm(f"{TARGET}/SHA256SUMS")
    size = (store / SHARDS[0]).stat().st_size
    with monkeypatch.context() as patch:
        patch.setattr(copy_module, "_BYTES_AT_ONCE", 4096)
        opened = bucket.open
        patch.setattr(bucket, "open", lambda path, mode="rb": Cut(opened(path, mode), size - 5000))
        with pytest.raises(OSError, match="connection reset"):
            copy(URL, tmp_path / "here.lmdb")
    assert not (tmp_path / "here.lmdb").exists()
    told: list[int] = []
    copied = copy(URL, tmp_path / "here.lmdb", begin=told.append, advance=told.append)
    assert copied.fetched == copied.bytes - (size - 5000)
    assert told[0] == copied.bytes == sum(told[1:])
    assert copied.checked == ("checksums" if sums else "maps")
    assert same(store, tmp_path / "here.lmdb")
    assert not (tmp_path / "here.lmdb.partial").exists()


def flip(bucket: Any, name: str) -> None:
    """Change a byte of a record."""
    content = bytearray(bucket.cat_file(f"{TARGET}/{name}"))
    content[content.index(make_map_bytes())] ^= 1
    bucket.pipe_file(f"{TARGET}/{name}", bytes(content))


def make_map_bytes() -> bytes:
    """Scores of one of the maps in shard 1, as they are stored."""
    scores: bytes = make_map(1)[0].astype("<f2").tobytes()[:64]
    return scores


@pytest.mark.parametrize(
    ("sums", "words"),
    [(True, r"shard-0000\d.mdb did not arrive as memory://.* has it"), (False, r"not sound: 1.jpg: .*checksum|CRC")],
)
def test_a_damaged_source_never_becomes_a_store(
    sums: bool, words: str, store: Path, bucket: Any, tmp_path: Path
) -> None:
    copy(store, URL)
    if not sums:
        bucket.rm(f"{TARGET}/SHA256SUMS")
    name = next(name for name in SHARDS if make_map_bytes() in (store / name).read_bytes())
    flip(bucket, name)
    for _ in range(2):
        with pytest.raises(StoreError, match=words):
            copy(URL, tmp_path / "here.lmdb")
    assert not (tmp_path / "here.lmdb").exists()
    bucket.pipe_file(f"{TARGET}/{name}", (store / name).read_bytes())
    copy(URL, tmp_path / "here.lmdb")
    assert same(store, tmp_path / "here.lmdb")


def test_what_was_begun_of_another_store_is_not_continued(store: Path, bucket: Any, tmp_path: Path) -> None:
    partial = tmp_path / "here.lmdb.partial"
    shutil.copytree(write(tmp_path / "other.lmdb", 40), partial)
    copy(store, URL)
    copy(URL, tmp_path / "here.lmdb")
    assert same(store, tmp_path / "here.lmdb")


def test_another_store_is_not_overwritten(store: Path, bucket: Any, tmp_path: Path) -> None:
    other = write(tmp_path / "other.lmdb")
    copy(store, URL)
    with pytest.raises(StoreError, match=r"other.lmdb exists and is not this store"):
        copy(URL, other)
    with pytest.raises(StoreError, match=r"memory://bucket/maps.lmdb holds another store"):
        copy(other, URL)


def test_what_is_not_there_or_not_complete_is_refused(store: Path, bucket: Any, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"memory://nowhere is no label store"):
        copy("memory://nowhere", tmp_path / "here.lmdb")
    with pytest.raises(FileNotFoundError, match=r"no folder .*to copy to"):
        copy(URL, tmp_path / "no" / "here.lmdb")
    with pytest.raises(ValueError, match="both lie elsewhere"):
        copy(URL, "memory://bucket/second.lmdb")
    copy(store, URL)
    bucket.rm(f"{TARGET}/{SHARDS[1]}")
    with pytest.raises(StoreError, match=r"lacks shard-00001.mdb"):
        copy(URL, tmp_path / "here.lmdb")
    bucket.pipe_file(f"{TARGET}/header.msgpack", b"no header")
    with pytest.raises(StoreError, match=r"header.msgpack of memory://bucket/maps.lmdb cannot be read"):
        copy(URL, tmp_path / "here.lmdb")
    with LabelStoreWriter(tmp_path / "begun.lmdb", num_classes=20, top_k=3) as writer:
        writer.close()
    with pytest.raises(StoreError, match=r"begun.lmdb is not complete"):
        copy(tmp_path / "begun.lmdb", URL)


def test_the_command_says_what_was_copied(store: Path, bucket: Any, tmp_path: Path) -> None:
    run = CliRunner().invoke
    assert run(main, ["copy", str(store), URL]).exit_code == 0
    result = run(main, ["copy", URL, str(tmp_path / "here.lmdb"), "--json"])
    assert json.loads(result.stdout)["checked"] == "checksums"
    assert "here.lmdb is there already: 2 files" in run(main, ["copy", URL, str(tmp_path / "here.lmdb")]).stdout


def test_pyarrow_is_asked_for_what_fsspec_lacks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow", reason="of the extra [ray]")
    from torchrelabel.remote import filesystem_of

    def lacks(url: str) -> Any:
        raise ImportError("Install s3fs to access S3")

    (tmp_path / "x").write_bytes(b"content")
    monkeypatch.setattr("fsspec.core.url_to_fs", lacks)
    filesystem, path = filesystem_of((tmp_path / "x").as_uri())
    assert filesystem.cat_file(path) == b"content"
    with pytest.raises(ImportError, match="Install s3fs"):
        filesystem_of("ftp://host/x")
