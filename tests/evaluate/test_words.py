"""The table and the picture of evaluations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from torchrelabel.evaluate.plot import draw_evaluations
from torchrelabel.evaluate.result import Evaluation
from torchrelabel.evaluate.words import measures_of, words
from torchrelabel.viz import save_picture


def figures(model: str = "one", **values: Any) -> dict[str, Any]:
    described = {"model": model, "weights": "given", "classes": 9, "image_size": 8, "shown": "as it is"}
    return Evaluation(described, values).figures()


def test_measures_stand_in_the_order_of_the_papers_and_unknown_ones_behind() -> None:
    both = [figures(real=0.5, fgsm_eps=0.03), figures(top1=0.25, mine=1.0, real=0.5)]
    assert measures_of(both) == ["top1", "real", "mine"]


def test_each_model_has_a_column_and_what_was_not_measured_a_dash() -> None:
    table = words([figures(top1=0.25), figures("two", top1=0.5, calibration_error=0.125)], ["one", "two"])
    lines = [" ".join(line.split()) for line in table.splitlines()]
    assert "top-1 25.00% 50.00%" in lines
    assert "calibration error - 12.50% (lower is better)" in lines
    assert "one: one, given, 9 classes; as it is" in lines


def test_what_was_left_out_or_lost_is_said() -> None:
    each = figures(top1=0.5)
    each["left_out"] = {"top5": "too few"}
    each["unreadable"] = {"data": {f"{number}.png": "bad" for number in range(22)}}
    each["not_numbers"] = {"v2": ["x.png"]}
    table = words([each], ["one"])
    assert "left out: top5: too few" in table
    assert "22 images of data could not be used:" in table and table.count(".png: bad") == 20
    assert "... and 2 more (--json lists them all)" in table
    assert "1 image of v2 got scores that are not numbers, and count as wrong:\n  x.png" in table


def test_what_is_true_of_all_models_is_said_once() -> None:
    both = [figures(top1=0.5), figures("two", top1=0.5)]
    for each in both:
        each["notes"] = ["the folders have no names"]
    assert words(both, ["one", "two"]).count("note: the folders have no names") == 1
    both[1]["notes"] = ["other weights"]
    assert "two: note: other weights" in words(both, ["one", "two"])


def test_a_picture_has_bars_for_each_model_and_the_curves(tmp_path: Path) -> None:
    curves = {"side": [0.0, 1.0], "center": [0.5, 0.0], "boundary": [0.0, 0.5]}
    figure = draw_evaluations([figures(top1=0.5, occlusion=curves), figures(top1=0.25, real=0.75)], ["one", "two"])
    bars, lines = figure.axes
    assert sorted(round(bar.get_width(), 3) for bar in bars.patches) == [0.25, 0.5, 0.75]
    assert [text.get_text() for text in bars.get_legend().get_texts()] == ["one", "two"]
    assert len(lines.lines) == 2
    figure.draw_without_rendering()
    axes = (bars.xaxis, lines.xaxis, lines.yaxis)
    assert all(label.get_text().endswith("%") for axis in axes for label in axis.get_ticklabels())
    save_picture(figure, tmp_path / "both.png")
    assert (tmp_path / "both.png").stat().st_size > 0


def test_bars_are_named_by_the_set_that_they_are_of() -> None:
    values = {"v2_top_images": 0.5, "v2_top_images_top5": 0.75, "in9_mixed_rand": 0.1, "mine": 0.5}
    figure = draw_evaluations([figures(**values)], ["one"])
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == ["V2 TopImages", "V2 TopImages, top-5", "ImageNet-9, Mixed-Rand", "mine"]


def test_nothing_measured_is_nothing_to_draw() -> None:
    with pytest.raises(ValueError, match="No measure was taken"):
        draw_evaluations([figures()], ["one"])
