"""The table and the closing words: computed from the runs, whichever way they went."""

import statistics
from dataclasses import replace

import pytest

from torchrelabel.demo.result import (
    DemoResult,
    conditions,
    gain_over_one_hot,
    mean_and_spread,
    table,
    text_report,
    verdict,
)
from torchrelabel.demo.students import StudentRun
from torchrelabel.demo.training import Trained


def run(labels, seed, top1, any_present=0.9):
    right = tuple(index < 80 * top1 for index in range(80))
    return StudentRun(labels, seed, right, any_present, Trained([2.0, 1.0], [0.1, top1], 7.25))


def result(one_hot, relabel, **changes):
    runs = [
        run(labels, seed, top1)
        for labels, values in (("one-hot", one_hot), ("ReLabel", relabel))
        for seed, top1 in enumerate(values)
    ]
    made = DemoResult(
        quick=False,
        command="torchrelabel demo",
        annotate_command="torchrelabel annotate",
        sizes={"test scenes": 1234, "student epochs": 2},
        seeds=tuple(range(len(one_hot))),
        scene_seed=0,
        annotator="test_resnet",
        grid=(7, 5),
        annotator_top1=0.987,
        annotate_seconds=2.0,
        agreement_large=0.8125,
        agreement_small=0.71,
        wrong_labels=0.2,
        crops_without=0.123,
        crops_with_less_than_half=0.456,
        runs=tuple(runs),
        seconds=3.0,
        versions={},
    )
    return replace(made, **changes)


def test_mean_and_spread_by_hand():
    assert mean_and_spread([1.0, 2.0, 3.0]) == "2.0 ± 1.0"


def test_one_value_has_no_spread():
    assert mean_and_spread([83.44]) == "83.4"


def test_the_table_holds_means_and_spreads_of_the_runs():
    rows = table(result([0.5, 0.6], [0.3, 0.5]))
    assert [(row.labels, row.top1) for row in rows] == [
        ("one-hot", "55.0 ± 7.1"),
        ("ReLabel", "40.0 ± 14.1"),
    ]
    assert {row.seconds for row in rows} == {"7.2"}
    assert {row.any_present for row in rows} == {"90.0 ± 0.0"}


@pytest.mark.parametrize(
    ("relabel", "words"),
    [
        ([0.625, 0.75], "+12.5 points against one-hot (by seed +12.5, +12.5;"),
        ([0.25, 0.5], "-18.8 points against one-hot (by seed -25.0, -12.5;"),
    ],
)
def test_the_verdict_says_what_came_out_also_if_relabel_lost(relabel, words):
    assert words in verdict(result([0.5, 0.625], relabel))


def test_the_errors_of_a_gain_by_hand():
    """Gains of 25 and 12.5 points; 20 of 80 scenes were won, by one seed, and 10 of them by the other too."""
    gain = gain_over_one_hot(result([0.5, 0.5], [0.75, 0.625]))
    assert (gain.other, gain.mean) == ("one-hot", 18.75)
    assert gain.by_seed == (25.0, 12.5)
    assert gain.error_seeds == pytest.approx(12.5 / 2)
    by_scene = [100.0] * 10 + [50.0] * 10 + [0.0] * 60
    assert gain.error_scenes == pytest.approx(statistics.stdev(by_scene) / 80**0.5)


def test_scenes_that_both_students_name_right_add_no_error():
    """The same scenes decide both, so the error is that of the differences, not of two independent shares."""
    gain = gain_over_one_hot(result([0.5], [0.5]))
    assert (gain.error_seeds, gain.error_scenes) == (None, 0)


def test_a_gain_within_two_of_its_errors_is_too_close_to_call():
    assert "too close to call" in verdict(result([0.5, 0.5], [0.525, 0.5]))
    assert "too close to call" not in verdict(result([0.25, 0.25], [0.525, 0.5]))


def test_the_lead_of_the_annotator_stands_beside_the_papers():
    assert "98.7% of the test scenes, 43.7 points more" in conditions(result([0.5, 0.6], [0.3, 0.5]))[0]


def test_a_quick_run_says_that_its_numbers_mean_nothing():
    quick = text_report(result([0.5], [0.7], quick=True))
    assert "mean nothing" in quick
    assert "points against" not in quick


def test_the_closing_lines_hold_every_measure():
    text = text_report(result([0.5, 0.6], [0.3, 0.5]))
    for figure in ("1,234", "20%", "12.3%", "45.6%", "7 x 5", "81.2%", "71.0%", "98.7%", "55.0 ± 7.1"):
        assert figure in text


def test_the_columns_of_the_table_line_up():
    lines = text_report(result([0.5, 0.6], [0.3, 0.5])).splitlines()[:4]
    assert len({len(line) for line in lines}) == 1
