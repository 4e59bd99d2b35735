"""Pictures of label maps: what is drawn where."""

import builtins

import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from torchrelabel import LabelMap, LabelPooling, ViewBox
from torchrelabel.viz import cell_probabilities, draw_label_map


@pytest.fixture
def label_map():
    """Class 3 on the left, class 7 on the right, 2 x 3 cells, seen through the left third."""
    classes = torch.tensor([[[3, 3, 7], [3, 3, 7]]])
    return LabelMap(
        torch.full((1, 2, 3), 9.0),
        classes,
        num_classes=10,
        canvas_size=(11, 17),
        residual=torch.full((2, 3), 5.0),
        view_box=ViewBox(0, 0, 1 / 3, 1),
    )


def test_cell_probabilities_are_exact_where_the_residual_is_known(label_map):
    probabilities = cell_probabilities(label_map)
    assert_close(probabilities.sum(0), torch.ones(2, 3))
    expected = torch.tensor([9.0, 5.0]).softmax(0)[0]  # one kept logit against the logsumexp of all others
    assert_close(probabilities[3, 0, 0], expected)


def test_the_crop_is_drawn_where_the_view_box_says(label_map):
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map)
    (box,) = figure.axes[0].patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((0, 0, 20, 40))


def test_the_bars_are_the_pooled_label_largest_first(label_map):
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map, bars=2, class_names=[f"c{i}" for i in range(10)])
    bars = next(axis for axis in figure.axes if axis.get_title().startswith("soft label"))
    widths = [patch.get_width() for patch in bars.patches]
    assert widths == pytest.approx(LabelPooling()(label_map).topk(2).values.tolist())
    assert [text.get_text() for text in bars.get_yticklabels()][0] == "3 c3"


def test_bars_of_names_that_are_cut_to_the_same_letters_stay_apart(label_map):
    names = [f"a name much too long for the picture, {i}" for i in range(10)]
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map, bars=2, class_names=names)
    bars = next(axis for axis in figure.axes if axis.get_title().startswith("soft label"))
    assert [text.get_text()[:8] for text in bars.get_yticklabels()] == ["3 a name", "7 a name"]
    assert figure.axes[1].get_title().startswith("3 a name")


def test_a_heat_map_is_the_probability_in_each_cell(label_map):
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map, maps=1)
    heat = figure.axes[1].images[0]
    assert_close(torch.from_numpy(heat.get_array().data.copy()), cell_probabilities(label_map)[3])


def test_a_missing_matplotlib_is_named_with_the_command_that_installs_it(label_map, monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"pip install 'torchrelabel\[viz\]'"):
        draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map)
