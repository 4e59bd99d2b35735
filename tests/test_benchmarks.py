"""The benchmarks run: not how fast, but that each row comes out of it."""

import json
import os
import sys

import numpy as np
import pytest
import torch

from benchmarks import __main__ as table_of
from benchmarks import imagenet, multilabel, rows
from benchmarks.synthetic import keys, pool
from torchrelabel import ViewBox
from torchrelabel.demo.folders import SceneRecord


def test_the_table_is_printed_and_written(tmp_path, monkeypatch, capsys):
    files = ["--json", tmp_path / "table.json", "--plot", tmp_path / "table.svg"]
    given = ["--only", "on_disk", "--images", 2, "--maps", 20, "--runs", 2, *files]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *map(str, given)])
    threads = torch.get_num_threads()
    table_of.main()
    torch.set_num_threads(threads)
    table, said = json.loads((tmp_path / "table.json").read_text()), capsys.readouterr().out
    assert len(table["rows"]) == 6
    assert all(row["name"] in said for row in table["rows"])
    for row in table["rows"]:
        assert row["ratio"] == (row["theirs"] / row["ours"] if row["unit"] else None)
    assert (tmp_path / "table.svg").read_text().startswith("<?xml")


def test_a_row_of_several_runs_has_their_medians_and_how_the_ratio_varied():
    runs = [rows.Row("label", "us", ours, "theirs", theirs) for ours, theirs in ((1, 10), (4, 12), (2, 16))]
    row = rows.middle(runs)
    assert (row.ours, row.theirs, row.ratio, row.ratios) == (2, 12, 6, (3, 10))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="the page cache cannot be emptied")
def test_a_store_of_any_size_is_measured(tmp_path):
    path = tmp_path / "maps.lmdb"
    figures = imagenet.write(path, "uint8", 60)
    imagenet.forget(path)
    for what in imagenet.READINGS:
        if what not in ("cold disk", "memory", "dataset"):  # seconds, and figures of a whole process
            figures |= imagenet.reading(what, path, 60)
    assert len(figures) == 12
    assert all(figure > 0 for figure in figures.values())


def test_synthetic_maps_are_as_they_are_described():
    counts = [len(np.unique(each.classes)) for each in pool(60)]
    assert 45 < np.median(counts) < 75
    for each in pool(5):
        assert (np.diff(each.scores, axis=0) <= 0).all()
        assert (np.diff(np.sort(each.classes, axis=0), axis=0) > 0).all()
        assert np.isfinite(each.residual).all()
    assert (len(keys(20_000)), keys(20_000)) == (20_000, sorted(set(keys(20_000))))


def test_a_digit_is_within_a_crop_that_shows_half_of_its_box():
    record = SceneRecord(3, (3, 7, 1), ((0, 0, 20, 20), (60, 10, 80, 40), (40, 0, 50, 10)), (0, 1, 2), (40, 80))
    assert multilabel.digits_within(record, ViewBox()).nonzero()[:, 0].tolist() == [1, 3, 7]
    # From x = 10 to 44 and over the whole height: half of the 3, four tenths of the 1, none of the 7.
    assert multilabel.digits_within(record, ViewBox(10 / 80, 0, 44 / 80, 1)).nonzero()[:, 0].tolist() == [3]


def test_labels_are_held_to_those_of_the_boxes():
    boxes, labels = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]), torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1]])
    assert multilabel.quality(labels, boxes) == (3 / 4, 3 / 4, 2)
