"""Pictures of label maps: what is drawn where."""

import builtins

import PIL.Image
import pytest
import torch
from torch.testing import assert_close

from torchrelabel import LabelMap, LabelPooling, ViewBox
from torchrelabel.viz import Picture, cell_probabilities, draw_gallery, draw_label_map


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
    assert figure.axes[2].get_title().startswith("3 a name")


def test_a_heat_map_is_the_probability_in_each_cell(label_map):
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map, maps=1)
    heat = figure.axes[2].images[0]
    assert_close(torch.from_numpy(heat.get_array().data.copy()), cell_probabilities(label_map)[3])


def colours_of_cells(axis):
    """The colours, without how full they are, and the extent of the picture of top classes in a panel."""
    return axis.images[1].get_array().data[..., :3], axis.images[1].get_extent()


def legend_of(figure):
    axis = next(axis for axis in figure.axes if axis.get_legend() is not None)
    handles = axis.get_legend().get_patches()
    return {
        text.get_text(): handle.get_facecolor()[:3]
        for text, handle in zip(axis.get_legend().get_texts(), handles, strict=True)
    }


def test_each_cell_has_the_colour_that_its_top_class_has_in_the_legend(label_map):
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map)
    colours, extent = colours_of_cells(figure.axes[1])
    legend = legend_of(figure)
    assert list(legend) == ["3 67%", "7 33%"]
    for row in range(2):
        assert [tuple(colour) for colour in colours[row]] == [legend["3 67%"], legend["3 67%"], legend["7 33%"]]
    assert extent == [0, 60, 40, 0]


def test_a_cell_is_the_fuller_the_more_certain_it_is(label_map):
    label_map.scores[0, 0, 0] = 5.5
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map)
    fullness = figure.axes[1].images[1].get_array().data[..., 3]
    assert fullness[0, 0] < fullness[0, 1] == fullness[1, 1]


def test_a_map_of_a_part_of_the_image_is_drawn_on_this_part(label_map):
    """It used to be stretched over the whole image, and the crop with it."""
    figure = draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map, coverage=(0.25, 0, 0.75, 1))
    assert colours_of_cells(figure.axes[1])[1] == [15, 45, 40, 0]
    assert list(figure.axes[2].images[0].get_extent()) == [15, 45, 40, 0]
    (box,) = figure.axes[0].patches
    assert (box.get_x(), box.get_y(), box.get_width(), box.get_height()) == pytest.approx((15, 0, 10, 40))


def test_classes_that_the_crop_does_not_show_get_no_heat_map(label_map):
    """There used to be three, some of them in the crop with .00."""
    titles = [axis.get_title() for axis in draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map).axes]
    assert [title for title in titles if "in the crop" in title] == ["3\nin the crop: 1.00"]


def test_more_classes_than_there_are_colours_are_summed_up():
    classes = torch.arange(30).reshape(1, 5, 6)
    label_map = LabelMap(torch.full((1, 5, 6), 9.0), classes, num_classes=30, canvas_size=(5, 6))
    legend = legend_of(draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map))
    assert list(legend)[-1] == "20 others 67%"
    assert len(legend) == 11


@pytest.mark.parametrize("size", [(2000, 250), (600, 400), (200, 900)])
def test_panels_are_readable_whatever_the_shape_of_the_image(label_map, size):
    """Of a panorama they used to be strips of a few millimetres."""
    figure = draw_label_map(PIL.Image.new("RGB", size), label_map)
    figure.draw_without_rendering()
    for axis in figure.axes[:3]:
        box = axis.get_window_extent()
        assert min(box.width, box.height) / figure.dpi > 0.8
        assert box.width / box.height == pytest.approx(size[0] / size[1], rel=0.01)


def test_a_gallery_has_each_image_beside_its_cells(label_map):
    images = [PIL.Image.new("RGB", size) for size in ((60, 40), (400, 40), (30, 90), (60, 40), (60, 40))]
    pictures = [Picture(image, label_map, f"{number}.png") for number, image in enumerate(images)]
    figure = draw_gallery(pictures, class_names=[f"c{i}" for i in range(10)])
    frames = figure.subfigs
    assert len(frames) == 6
    for frame, picture in zip(frames, pictures, strict=False):
        assert frame.get_suptitle().startswith(f"{picture.title}\nlabel: 3 c3 1.00, ")
        image, cells = frame.axes
        assert image.images[0].get_array().shape[:2] == picture.image.size[::-1]
        assert colours_of_cells(cells)[0].shape == (2, 3, 3)
        assert [text.get_text() for text in frame.legends[0].get_texts()] == ["3 c3 67%", "7 c7 33%"]
    assert frames[5].axes == []


def test_a_class_has_one_colour_in_a_gallery_whichever_is_the_most_frequent():
    def map_of(*classes):
        return LabelMap(torch.full((1, 1, 3), 9.0), torch.tensor([[classes]]), num_classes=10, canvas_size=(40, 60))

    maps = [map_of(4, 4, 2), map_of(2, 2, 4), map_of(7, 7, 2)]
    figure = draw_gallery([Picture(PIL.Image.new("RGB", (60, 40)), label_map) for label_map in maps])
    colours = {}
    for frame in figure.subfigs:
        (legend,) = frame.legends
        for text, handle in zip(legend.get_texts(), legend.legend_handles, strict=True):
            colours.setdefault(text.get_text().split()[0], set()).add(handle.get_facecolor())
    assert sorted(colours) == ["2", "4", "7"]
    assert len(set.union(*colours.values())) == len(colours)


def test_a_gallery_of_flat_images_is_as_low_as_they_are(label_map):
    flat, square = (
        draw_gallery([Picture(PIL.Image.new("RGB", size), label_map)] * 4) for size in ((180, 100), (100, 100))
    )
    assert len(flat.subfigs) == 4  # two by two
    assert flat.get_figheight() < square.get_figheight()
    for figure in (flat, square):
        figure.draw_without_rendering()
        assert figure.axes[0].get_window_extent().width > 0.42 * figure.bbox.width / 2


def test_a_gallery_of_nothing_is_refused():
    with pytest.raises(ValueError, match="A gallery needs one picture or more"):
        draw_gallery([])


def test_a_missing_matplotlib_is_named_with_the_command_that_installs_it(label_map, monkeypatch):
    real_import = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r"pip install 'torchrelabel\[viz\]'"):
        draw_label_map(PIL.Image.new("RGB", (60, 40)), label_map)
