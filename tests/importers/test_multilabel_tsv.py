"""MultiLabel-ImageNet's table: which rows are taken, which are refused and why, and what a store makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import torchrelabel.importers.multilabel_tsv
from tests.importers.published import CLASSES, save_image
from torchrelabel import LabelPooling, LabelStore, ViewBox
from torchrelabel.data.records import label_map_of
from torchrelabel.importers import Summary, import_multilabel_tsv
from torchrelabel.importers.multilabel_tsv import parse_row

# The example of the publication's README, with its indices; the second row is shorter.
ROWS = "n01/x.JPEG\t0\t0,39\t0.2654,1.0000\nn01/y.JPEG\t7\t7\t0.5\nn02/z.JPEG\t1\t4,2,3\t0.1,0.9,0.3\n"


def run(source: Path, output: Path, **options: Any) -> Summary:
    settings: dict[str, Any] = {"num_classes": CLASSES, "progress": False}
    return import_multilabel_tsv(source, output, **(settings | options))


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "labels.tsv"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def test_a_row_becomes_a_map_of_one_cell_with_its_classes_the_most_probable_first(tmp_path: Path, store: Path) -> None:
    summary = run(write(tmp_path, ROWS), store)
    maps = LabelStore(store)
    record = maps["n02/z.JPEG"]
    assert record.scores.shape == (3, 1, 1)
    assert record.classes.ravel().tolist() == [2, 3, 4]
    assert record.scores.ravel().tolist() == pytest.approx([0.9, 0.3, 0.1], abs=1e-3)
    assert (summary.imported, summary.failed, summary.top_k, summary.repaired) == (3, [], 3, {})
    header = maps.header
    assert (header.score_kind, header.residual, header.grid, header.complete) == ("probability", False, (1, 1), True)
    assert header.annotator["imported"] is True
    assert header.annotator["source"] == "labels.tsv"


def test_a_short_row_is_made_up_with_other_classes_at_probability_zero(tmp_path: Path, store: Path) -> None:
    run(write(tmp_path, ROWS), store)
    record = LabelStore(store)["n01/x.JPEG"]
    assert record.classes.ravel().tolist() == [39, 0, 1]
    assert record.scores.ravel().tolist() == pytest.approx([1, 0.2654, 0], abs=1e-3)


def test_any_crop_gets_the_normalised_probabilities(tmp_path: Path, store: Path) -> None:
    run(write(tmp_path, ROWS), store)
    maps = LabelStore(store)
    label = LabelPooling()(label_map_of(maps["n01/x.JPEG"], maps.header, (11, 17), ViewBox(0.6, 0.1, 0.9, 0.3)))
    assert label[39].item() == pytest.approx(1 / 1.2654, abs=1e-3)
    assert label[0].item() == pytest.approx(0.2654 / 1.2654, abs=1e-3)
    assert label.sum().item() == pytest.approx(1)
    assert label.count_nonzero() == 2


def test_topk_keeps_the_most_probable_and_counts_what_was_cut(tmp_path: Path, store: Path) -> None:
    summary = run(write(tmp_path, ROWS), store, top_k=2)
    assert LabelStore(store)["n02/z.JPEG"].classes.ravel().tolist() == [2, 3]
    assert summary.repaired == {"classes beyond K, the least probable, were left out": 1}


@pytest.mark.parametrize(
    "row",
    [
        "x\t0\t3,1\t0.5,0.25",
        "x\t0\t3,1\t0.5,0.25\r\n",
        "x\t0\t[3, 1]\t[0.5, 0.25]",
        "x\t0\t(1,3)\t(0.25,5e-1)",
        " x \t 0 \t 1 , 3 \t .25 , +0.50 ",
    ],
)
def test_lists_may_have_brackets_spaces_and_any_notation_of_decimals(row: str) -> None:
    assert parse_row(row.encode(), CLASSES) == ([3, 1], [0.5, 0.25])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("x\t0\t1", "a row has 4 cells, separated by tabs, got 3"),
        ("x\t0\t1\t0.5\tmore", "a row has 4 cells, separated by tabs, got 5"),
        ("x\tcat\t1\t0.5", "gt holds whole numbers, got 'cat'"),
        ("x\t40\t1\t0.5", "gt holds classes from 0 to 39, got 40"),
        ("x\t0\t1.0\t0.5", "idx_list holds whole numbers, got '1.0'"),
        ("x\t0\t1_0\t0.5", "idx_list holds whole numbers, got '1_0'"),
        ("x\t0\t-1\t0.5", "idx_list holds whole numbers, got '-1'"),
        ("x\t0\t\u0663\t0.5", "idx_list holds whole numbers, got '\u0663'"),
        ("x\t0\t40\t0.5", "idx_list holds classes from 0 to 39, got 40"),
        ("x\t0\t1,,2\t0.5,0.5,0.5", "idx_list holds whole numbers, got ''"),
        ("x\t0\t[1\t0.5", "idx_list holds whole numbers, got '[1'"),
        ("x\t0\t__import__('os')\t0.5", "idx_list holds whole numbers, got \"__import__('os')\""),
        ("x\t0\t1\t1.5", "prob_list holds probabilities from 0 to 1, got '1.5'"),
        ("x\t0\t1\t-0.5", "prob_list holds probabilities from 0 to 1, got '-0.5'"),
        ("x\t0\t1\tnan", "prob_list holds probabilities from 0 to 1, got 'nan'"),
        ("x\t0\t1\tinf", "prob_list holds probabilities from 0 to 1, got 'inf'"),
        ("x\t0\t1,2\t0.5", "idx_list has 2 entries, and prob_list 1"),
        ("x\t0\t1,1\t0.5,0.4", "the classes of a row are distinct, got 1 twice"),
        ("x\t0\t\t", "no class of it has a probability above 0"),
        ("x\t0\t[]\t[]", "no class of it has a probability above 0"),
        ("x\t0\t1,2\t0.0,0.0", "no class of it has a probability above 0"),
        ("x\t0\t1,2\t1e-20,0", "no class of it has a probability above 0 in half precision, got at most 1e-20"),
        ('"x\t0\t1\t0.5', "a row has 4 cells, separated by tabs, got 1"),
    ],
)
def test_a_bad_row_says_what_is_wrong(row: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_row(row.encode(), CLASSES)
    assert str(caught.value) == words


def test_bad_rows_are_listed_and_the_rest_is_imported(tmp_path: Path, store: Path) -> None:
    bad = "n03/a.JPEG\t0\t1,2\t0.5\nno tab at all\n\t0\t1\t0.5\n/absolute.JPEG\t0\t1\t0.5\nn03/cut.JPEG\t0\t1"
    summary = run(write(tmp_path, ROWS + bad), store)
    assert summary.imported == 3
    reasons = dict(summary.failed)
    assert reasons["n03/a.JPEG"] == "idx_list has 2 entries, and prob_list 1"
    assert reasons["line 5"] == "it has no path, or nothing behind it"
    assert reasons["line 6"] == "it has no path, or nothing behind it"
    assert "absolute path" in reasons["/absolute.JPEG"]
    assert reasons["n03/cut.JPEG"] == "a row has 4 cells, separated by tabs, got 3"
    assert set(LabelStore(store).failures) == {"n03/a.JPEG", "n03/cut.JPEG"}


def test_two_rows_of_one_image_must_agree(tmp_path: Path, store: Path) -> None:
    again = "n01/y.JPEG\t7\t7\t0.50\nn01/x.JPEG\t0\t0,39\t0.3,1.0\n"
    summary = run(write(tmp_path, ROWS + again), store)
    assert summary.repaired == {"the same row stood in the table again": 1}
    assert summary.failed == [("n01/x.JPEG", "line 5 says something else of it than a line before")]
    assert "n01/y.JPEG" in LabelStore(store)


@pytest.mark.parametrize(
    "first",
    [
        "filename\tgt_index\tidx_list\tprob_list\n",
        "\ufeffpath\tgt\tidx_list\tprob_list\r\n",
        "image\tlabel\tclasses\tprobabilities\n",
        '"image"\t"label"\t"top classes"\t"p1"\n',
        "\ufeff",
        "\n",
    ],
)
def test_a_first_line_of_titles_and_a_byte_order_mark_are_no_rows(tmp_path: Path, store: Path, first: str) -> None:
    assert run(write(tmp_path, first + ROWS), store).lossless
    assert list(LabelStore(store)) == ["n01/x.JPEG", "n01/y.JPEG", "n02/z.JPEG"]


def test_a_row_longer_than_the_bound_is_skipped_and_listed(
    tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrelabel.importers.multilabel_tsv, "_MAX_ROW_BYTES", 100)
    first, rest = ROWS.split("\n", 1)
    summary = run(write(tmp_path, f"{first}\n{'n09/' * 90}\t0\t1\t0.5\n{rest}"), store)
    assert summary.failed == [("line 2", "it has more than 100 bytes")]
    assert summary.imported == 3


@pytest.mark.parametrize(
    ("prefix", "folder"),
    [("", "train"), ("train/", "train"), ("", "elsewhere")],
    ids=["relative", "with root", "moved"],
)
def test_rows_are_put_together_with_images(tmp_path: Path, store: Path, prefix: str, folder: str) -> None:
    for key in ("n01/x.JPEG", "n01/y.JPEG", "n05/none.JPEG"):
        save_image(tmp_path / folder / key)
    rows = "".join(prefix + row for row in ROWS.splitlines(keepends=True))
    summary = run(write(tmp_path, rows), store, data=tmp_path / folder)
    assert list(LabelStore(store)) == ["n01/x.JPEG", "n01/y.JPEG"]
    assert summary.images_without_map == ["n05/none.JPEG"]
    assert summary.maps_without_image == [f"{prefix}n02/z.JPEG"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("a,b,c,d\n", "; the first: line 1: it has no path, or nothing behind it."),
        ("n01/x.JPEG\tcat\t1\t0.5\n", "; the first: line 1: gt holds whole numbers, got 'cat'."),
        (b"\x00\x01\x02" * 99, "; the first: line 1: it has no path, or nothing behind it."),
        ("words\n", "; the first: line 1: it has no path, or nothing behind it."),
        ("", ": it is empty."),
    ],
)
def test_a_file_of_another_format_is_an_error(tmp_path: Path, store: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        run(write(tmp_path, content), store)
    assert "is path, gt, idx_list and prob_list, separated by tabs" + words in str(caught.value)
    assert not store.exists()


def test_a_folder_is_no_table(tmp_path: Path, store: Path) -> None:
    with pytest.raises(IsADirectoryError, match="is a folder, and this format is one file of rows"):
        run(tmp_path, store)


def test_a_missing_file_is_named(tmp_path: Path, store: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no file '.*nowhere'"):
        run(tmp_path / "nowhere", store)


@pytest.mark.parametrize("top_k", [0, CLASSES + 1])
def test_topk_out_of_range_is_refused(tmp_path: Path, store: Path, top_k: int) -> None:
    with pytest.raises(ValueError, match=f"top_k must be 1 to num_classes = 40, got {top_k}"):
        run(write(tmp_path, ROWS), store, top_k=top_k)


def test_a_second_run_adds_nothing(tmp_path: Path, store: Path) -> None:
    source = write(tmp_path, ROWS)
    run(source, store)
    assert (run(source, store).imported, run(source, store).already_there) == (0, 3)


def test_paths_are_read_as_pandas_quotes_them_and_stored_as_keys_are_written(tmp_path: Path, store: Path) -> None:
    rows = (
        '"n01/a ""b"" c.JPEG"\t0\t0,39\t0.25,1.0\n'
        '"n01/tab\there.JPEG"\t0\t"0,39"\t"0.25,1.0"\n'
        "./n01//b.JPEG\t0\t0\t0.5\n"
        "n02\\c.JPEG\t0\t0\t0.5\n"
        "n02/c.JPEG\t0\t0\t0.5\n"
    )
    summary = run(write(tmp_path, rows), store)
    assert list(LabelStore(store)) == ['n01/a "b" c.JPEG', "n01/b.JPEG", "n01/tab\there.JPEG", "n02/c.JPEG"]
    assert summary.repaired == {"the same row stood in the table again": 1}
    assert summary.failed == []


def test_the_least_probability_that_half_precision_holds_is_kept(tmp_path: Path, store: Path) -> None:
    assert run(write(tmp_path, "n01/x.JPEG\t0\t7\t4e-8\n"), store).lossless
    assert LabelStore(store)["n01/x.JPEG"].scores.ravel().tolist() == [2**-24]


def test_a_csv_field_beyond_what_python_reads_is_listed(tmp_path: Path, store: Path) -> None:
    summary = run(write(tmp_path, f'{ROWS}"{"n" * 140_000}"\t0\t0\t0.5\n'), store)
    assert summary.failed == [("line 4", "it has no path, or nothing behind it")]
