"""Files of label maps: what is read, what is put right, and every way in which a file is refused."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import torchrelabel.importers.tensor_file
from tests.importers.published import CLASSES, save, tensor
from torchrelabel.importers.tensor_file import Decoded, read_map


def read(path: Path, dtype: str = "float32", axes: str = "hw", num_classes: int = CLASSES) -> Decoded:
    return read_map(path, dtype=dtype, num_classes=num_classes, axes=axes)


def changed(place: Any, value: float) -> torch.Tensor:
    content = tensor()
    content[place] = value
    return content


def test_scores_and_classes_are_those_of_the_file(tmp_path: Path) -> None:
    content = tensor()
    decoded = read(save(tmp_path / "x.pt", content))
    assert decoded.scores.shape == decoded.classes.shape == (5, 7, 5)
    assert (decoded.scores.dtype, decoded.classes.dtype) == (np.float32, np.int32)
    assert decoded.scores.tolist() == content[0].tolist()
    assert decoded.classes.tolist() == content[1].tolist()
    assert not decoded.sorted


def test_axes_wh_exchanges_rows_and_columns(tmp_path: Path) -> None:
    content = tensor()
    decoded = read(save(tmp_path / "x.pt", content), axes="wh")
    assert decoded.scores.shape == (5, 5, 7)
    assert decoded.scores[2, 4, 6] == content[0, 2, 6, 4]
    assert decoded.classes[2, 4, 6] == content[1, 2, 6, 4]


def test_a_half_tensor_saved_with_permuted_strides_reads_as_it_looks(tmp_path: Path) -> None:
    # TokenLabeling's generator permutes [2, H, W, K] and saves without making it contiguous.
    content = tensor().half().permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    assert not content.is_contiguous()
    decoded = read(save(tmp_path / "x.pt", content), dtype="float16")
    assert decoded.scores.tolist() == content[0].tolist()
    assert decoded.classes.tolist() == content[1].tolist()


def test_files_of_torch_before_1_6_are_read(tmp_path: Path) -> None:
    content = tensor()
    path = save(tmp_path / "x.pt", content, _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    assert read(path).scores.tolist() == content[0].tolist()


@pytest.mark.parametrize("old", [True, False])
def test_only_files_of_today_s_torch_have_a_checksum(tmp_path: Path, old: bool) -> None:
    path = save(tmp_path / "x.pt", tensor(), _use_new_zipfile_serialization=not old)
    assert read_map(path, dtype="float32", num_classes=CLASSES).checked != old


def test_scores_in_another_order_are_sorted_together_with_their_classes(tmp_path: Path) -> None:
    content = tensor()
    decoded = read(save(tmp_path / "x.pt", content.flip(1)))
    assert decoded.sorted
    assert decoded.scores.tolist() == content[0].tolist()
    assert decoded.classes.tolist() == content[1].tolist()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (tensor().half(), "its numbers are float16, and this format has float32"),
        (tensor().double(), "its numbers are float64, and this format has float32"),
        (tensor()[0], "a label map is [2, K, h, w], got [5, 7, 5]"),
        (tensor().repeat(2, 1, 1, 1), "a label map is [2, K, h, w], got [4, 5, 7, 5]"),
        (tensor()[:, :0], "a label map is [2, K, h, w], got [2, 0, 7, 5]"),
        ({"logits": tensor()}, "it holds a dict, and a label map is one tensor"),
        ([tensor(), tensor()], "it holds 2 tensors, and a label map is one"),
        ("text", "it holds 0 tensors"),
        (tensor().to_sparse(), "tensors, and a label map is one"),
        (changed((0, 0, 0, 0), float("nan")), "a score is not a finite number"),
        (changed((0, 0, 0, 0), float("inf")), "a score is not a finite number"),
        (changed((1, 2, 3, 4), 3.5), "class indices are whole numbers, got 3.5"),
        (changed((1, 2, 3, 4), float("nan")), "class indices are whole numbers, got nan"),
        (changed((1, 2, 3, 4), float("inf")), "class indices are whole numbers, got inf"),
        (changed((1, 2, 3, 4), -1), "class indices are 0 to 39, got -1"),
        (changed((1, 2, 3, 4), CLASSES), "class indices are 0 to 39, got 40"),
        (changed((1, slice(1, 3), 3, 4), 7), "the classes of a cell are distinct, got class 7 twice in a cell"),
        (tensor()[:1, :1, :1, :1].expand(2, 5, 70, 50), "claims more numbers than the file holds"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_file_that_is_no_label_map_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        read(save(tmp_path / "x.pt", content))
    assert words in str(caught.value)


def test_a_pickle_that_runs_code_is_refused_and_runs_nothing(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = save(tmp_path / "x.pt", [tensor(), Bomb()])
    with pytest.raises(ValueError, match=r"torch\.load refuses it \(UnpicklingError: "):
        read(path)
    assert not (tmp_path / "ran").exists()
    with path.open("rb") as file:
        torch.load(file, weights_only=False)  # it would have run
    assert (tmp_path / "ran").exists()


def test_a_plain_pickle_is_refused_unread(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"torch\.save did not write it"):
        read(tmp_path / "x.pt")


def repacked(path: Path, change: Callable[[str, bytes], bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """The same archive with its parts changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for part in old.infolist():
            new.writestr(part.filename, change(part.filename, old.read(part)))
    path.write_bytes(buffer.getvalue())
    return path


def test_a_compressed_archive_is_refused_before_it_is_inflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "x.pt", torch.zeros(2, 5, 700, 500))
    repacked(path, lambda _, part: part, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 20000
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match=r"its parts are compressed, which torch\.save never does"):
        read(path)


def test_a_pickle_that_claims_more_numbers_than_are_stored_is_refused(tmp_path: Path) -> None:
    # 5 x 5 x 5 x 2 = 250 numbers are stored; K\xfa is 250 in a pickle, and M\xf4\x01 is 500.
    path = save(tmp_path / "x.pt", tensor(rows=5))
    claimed = []

    def change(name: str, part: bytes) -> bytes:
        if not name.endswith("data.pkl"):
            return part
        claimed.append(part.count(b"K\xfa"))
        return part.replace(b"K\xfa", b"M\xf4\x01")

    repacked(path, change)
    assert claimed == [1]
    with pytest.raises(ValueError, match=r"torch\.load refuses it|claims more numbers than the file holds"):
        read(path)


def test_a_big_endian_archive_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tensor())
    repacked(path, lambda name, part: b"big" if name.endswith("byteorder") else part)
    with pytest.raises(ValueError, match="its numbers are not little-endian"):
        read(path)


def test_a_program_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tensor())
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x/constants.pkl", b"")
    with pytest.raises(ValueError, match="it holds a program"):
        read(path)


def test_a_file_beyond_the_bound_is_refused_before_it_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "x.pt", tensor())
    monkeypatch.setattr(torchrelabel.importers.tensor_file, "MAX_FILE_BYTES", path.stat().st_size - 1)
    monkeypatch.setattr(torch, "load", None)
    with pytest.raises(ValueError, match="it is larger than "):
        read(path)


@pytest.mark.parametrize("kept", [0, 3, 60, 700, -1])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, kept: int) -> None:
    path = save(tmp_path / "x.pt", tensor())
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"it is empty|torch\.save did not write it|it is damaged or cut off"):
        read(path)


def test_a_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tensor())
    content = bytearray(path.read_bytes())
    content[content.find(tensor().numpy().tobytes()[:64]) + 1] ^= 1
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True), tensor())  # torch itself does not notice
    with pytest.raises(ValueError, match="it is damaged or cut off \\(Bad CRC-32"):
        read(path)


def test_a_cut_file_of_old_torch_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tensor(), _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(ValueError, match=r"torch\.load refuses it"):
        read(path)


def test_damage_anywhere_in_the_table_of_contents_is_a_refusal_and_nothing_else(tmp_path: Path) -> None:
    path = save(tmp_path / "x.pt", tensor())
    content = path.read_bytes()
    for place in range(content.find(b"PK\x01\x02"), len(content)):
        for byte in (0xFF, 0x80):  # zipfile raises an OverflowError for one of these
            path.write_bytes(content[:place] + bytes([byte]) + content[place + 1 :])
            with contextlib.suppress(ValueError):  # what is not read, such as a date, may be anything
                read(path)


def test_a_signalling_nan_among_the_indices_is_refused_without_a_warning(tmp_path: Path) -> None:
    content = tensor().numpy()
    content.view(np.int32)[1, 2, 3, 4] = 0x7FA00000
    with pytest.raises(ValueError, match="class indices are whole numbers, got nan"):  # warnings are errors here
        read(save(tmp_path / "x.pt", torch.from_numpy(content)))


@pytest.mark.skipif(sys.platform == "win32", reason="no named pipes")
def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="it is not a regular file"):
        read(tmp_path / "x.pt")
