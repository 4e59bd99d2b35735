"""The command ``torchrelabel demo``: options, words and exit statuses."""

import json

import pytest

import torchrelabel.demo
from tests.cli.test_annotate import invoke
from tests.demo.test_result import result


@pytest.fixture
def asked(monkeypatch):
    """What the command asked of the function of the same name, which then runs nothing."""
    calls = []

    def record(out, **options):
        calls.append((out, options))
        return result([0.5, 0.6], [0.3, 0.5])

    monkeypatch.setattr(torchrelabel.demo, "demo", record)
    return calls


def test_it_needs_no_arguments(asked):
    assert invoke("demo").exit_code == 0
    assert asked == [("torchrelabel-demo", {"seeds": 3, "scene_seed": 0, "quick": False})]


def test_options_reach_the_function(asked):
    invoke("demo", "--output", "there", "--seeds", "5", "--scene-seed", "4", "--quick")
    assert asked == [("there", {"seeds": 5, "scene_seed": 4, "quick": True})]


def test_it_ends_with_the_table_and_the_path_of_the_report(asked):
    lines = invoke("demo", "--output", "there").stdout.splitlines()
    assert lines[0].startswith("labels")
    assert "40.0 ± 14.1" in lines[3]
    assert lines[-1].endswith("there/report.html")


def test_json_holds_the_figures_and_nothing_else(asked):
    figures = json.loads(invoke("demo", "--json").stdout)
    assert figures["crops_without"] == 0.123
    assert figures["runs"][-1]["trained"]["scores"] == [0.1, 0.5]


def test_no_seeds_are_wrong_use(asked):
    assert invoke("demo", "--seeds", "0").exit_code == 2
    assert not asked


def test_a_folder_of_someone_else_is_one_message_and_status_1(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    outcome = invoke("demo", "--quick", "--output", tmp_path)
    assert outcome.exit_code == 1
    assert "Choose another folder with --output" in outcome.stderr
    assert "Traceback" not in outcome.stderr
