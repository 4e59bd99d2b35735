"""The examples run as their pages say, and show what they claim."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from tests.painted import WRONG

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


def printed(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    (page,) = (path for path in EXAMPLES if path.name == name)
    runpy.run_path(str(page), run_name="__main__")
    return capsys.readouterr().out


def test_an_old_script_gets_the_labels_of_its_crops(capsys: pytest.CaptureFixture[str]) -> None:
    errors = dict(line.split() for line in printed("old_script.py", capsys).splitlines())
    assert list(errors) == ["v1", "v2", "timm", "lambda"]
    assert max(map(float, errors.values())) <= WRONG


def test_an_old_script_is_turned_by_two_lines() -> None:
    lines = (EXAMPLES[0].parent / "old_script.py").read_text().splitlines()
    assert sum("changed line" in line and "# <-" in line for line in lines) == 2


def test_a_joint_pipeline_trains_on_labels_pooled_as_a_batch(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed("joint_v2.py", capsys).split()
    first, last = (float(word) for word in words if word[0].isdigit())
    assert last < first / 3


def test_iterated_learning_finds_both_labels_of_images_that_have_one(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed("iterated_learning.py", capsys).split()
    plain, iterated = (float(word) for word in words if word[0].isdigit())
    assert plain < 0.7 < 0.95 < iterated


def test_iterated_learning_is_one_changed_line() -> None:
    lines = (EXAMPLES[0].parent / "iterated_learning.py").read_text().splitlines()
    changed = [line for line in lines if "# changed" in line]
    assert len(changed) == 1 and "criterion = IteratedLearning(" in changed[0]


def test_a_transformer_learns_the_labels_of_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed("token_labels.py", capsys).replace("%", "").split()
    first, last, right = (float(word) for word in words if word[0].isdigit())
    assert last < 0.7 * first
    assert right > 60


def test_a_volo_with_a_dense_head_learns_the_labels_of_its_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    words = printed("token_labels_volo.py", capsys).replace("%", "").split()
    first, last, right = (float(word) for word in words if word[0].isdigit())
    assert last < 0.7 * first
    assert right > 75


@pytest.mark.parametrize("page", EXAMPLES, ids=lambda page: page.name)
def test_an_example_is_a_page_that_names_its_command_and_its_paper(page: Path) -> None:
    text = page.read_text()
    assert len(text.splitlines()) <= 80
    assert f"\n    python examples/{page.name}" in text.split('"""')[1]
    assert "https://arxiv.org/abs/" in text.split('"""')[1]
