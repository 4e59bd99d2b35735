"""Painted images in WebDataset shards."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

from tests.painted import Painted


def pack(painted: Painted, folder: Path, shards: int = 2) -> str:
    """Write painted images and their classes to shards; the split by which timm reads them."""
    folder.mkdir()
    for shard in range(shards):
        with tarfile.open(folder / f"train-{shard:03d}.tar", "w") as tar:
            for key in painted.keys[shard::shards]:
                add(tar, key, (painted.root / key).read_bytes())
                add(tar, f"{key.rpartition('.')[0]}.cls", str(int(key[:3])).encode())
    return f"train-{{000..{shards - 1:03d}}}.tar|{len(painted.keys)}"


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
