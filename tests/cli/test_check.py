"""``torchrelabel check``, as it is typed."""

import json

import pytest

from tests.check.colours import paint_folder, write_block_store, write_boxes_of_blocks
from tests.cli.test_annotate import invoke


@pytest.fixture
def folder(tmp_path):
    blocks = paint_folder(tmp_path / "data")
    write_block_store(tmp_path / "maps.lmdb", blocks)
    write_block_store(tmp_path / "swapped.lmdb", blocks, swapped=True)
    write_boxes_of_blocks(tmp_path / "boxes", blocks)
    return tmp_path


def run(folder, store="maps.lmdb", *options):
    return invoke("check", str(folder / store), str(folder / "data"), "--boxes", str(folder / "boxes"), *options)


def test_a_right_store_is_status_0_with_both_scores_and_the_papers_figures(folder):
    result = run(folder)
    assert result.exit_code == 0
    for expected in ("100.0% of the cells in boxes", "Verdict on orientation: as stored", "8%", "23.5%", "24.7%"):
        assert expected in result.stdout


def test_a_swapped_store_is_status_1(folder):
    result = run(folder, "swapped.lmdb")
    assert result.exit_code == 1 and "Verdict on orientation: SWAPPED" in result.stdout


def test_an_image_without_a_map_is_status_3(folder):
    (folder / "data" / "new.png").write_bytes(b"")
    result = run(folder)
    assert result.exit_code == 3 and "Images without a label map: 1 (" in result.stdout


def test_json_holds_the_verdict(folder):
    assert json.loads(run(folder, "swapped.lmdb", "--json").stdout)["verdict"] == "swapped"


def test_a_picture_is_drawn(folder):
    result = run(folder, "maps.lmdb", "--plot", str(folder / "check.svg"))
    assert result.exit_code == 0 and (folder / "check.svg").read_text().startswith("<?xml")


def test_neither_model_nor_boxes_is_wrong_use(folder):
    result = invoke("check", str(folder / "maps.lmdb"), str(folder / "data"))
    assert result.exit_code == 2 and "Give --model, --checkpoint or --boxes" in result.stderr
