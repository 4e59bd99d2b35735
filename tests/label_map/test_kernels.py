"""Label maps against torchvision itself: what it does to an image of coordinates, and 3 x 3 matrices."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tests.references import matrices
from tests.references.coordinates import Unreadable, coordinate_image, view_of
from tests.references.label_maps import dense_by_loops, make_label_map
from tests.references.sampling import pool_points, softmax
from torchrelabel import LabelPooling, ViewBox

H, W = 17, 11

MAX_SIZE_ALONE = "allow_size_none" in inspect.signature(v1.functional._compute_resized_output_size).parameters


def make(height=H, width=W):
    return make_label_map(canvas_size=(height, width))


# --- any chain of functionals, with what each does to the frame as a matrix ---


@st.composite
def crops(draw, canvas):
    """A box that shows some of the canvas, and may reach outside."""
    height, width = (draw(st.integers(side // 3 + 1, side + 3)) for side in canvas)
    top = draw(st.integers(-height // 3, canvas[0] - height // 2))
    left = draw(st.integers(-width // 3, canvas[1] - width // 2))
    return {"top": top, "left": left, "height": height, "width": width}


@st.composite
def sizes(draw, canvas):
    """What resize takes: a pair, one number with and without max_size, or only max_size."""
    short = min(canvas)
    one = st.integers(short // 2 + 2, short * 2)
    forms = [
        st.tuples(one, one).map(lambda pair: {"size": list(pair)}),
        one.map(lambda size: {"size": size}),
        one.map(lambda size: {"size": [size]}),
        one.map(lambda size: {"size": size, "max_size": size + 3}),
    ]
    if MAX_SIZE_ALONE:
        forms.append(one.map(lambda size: {"size": None, "max_size": size + 3}))
    return draw(st.one_of(forms))


def paddings():
    side = st.integers(0, 5)
    return st.one_of(
        side,
        side.map(lambda one: [one]),
        st.lists(side, min_size=2, max_size=2),
        st.lists(side, min_size=4, max_size=4),
    )


@st.composite
def steps(draw, canvas):
    """A functional and its arguments."""
    name = draw(
        st.sampled_from(["crop", "resize", "resized_crop", "horizontal_flip", "vertical_flip", "pad", "center_crop"])
    )
    arguments = {
        "crop": lambda: draw(crops(canvas)),
        "resize": lambda: {**draw(sizes(canvas)), "antialias": False},
        "resized_crop": lambda: {
            **draw(crops(canvas)),
            "size": draw(st.lists(st.integers(9, 30), min_size=2, max_size=2)),
            "antialias": False,
        },
        "horizontal_flip": dict,
        "vertical_flip": dict,
        "pad": lambda: {"padding": draw(paddings())},
        "center_crop": lambda: {
            "output_size": draw(st.lists(st.integers(min(canvas) // 2 + 1, max(canvas) + 4), min_size=1, max_size=2))
        },
    }[name]()
    return name, arguments


def matrix_of(name, arguments, old, new):
    """What a step does to a canvas of size ``old``, which torchvision gives the size ``new``."""
    if name == "crop":
        return matrices.crop(arguments["left"], arguments["top"])
    if name == "resize":
        return matrices.resize(old, new)
    if name == "resized_crop":
        cropped = (arguments["height"], arguments["width"])
        return matrices.crop(arguments["left"], arguments["top"]) @ matrices.resize(cropped, new)
    if name == "horizontal_flip":
        return matrices.flip_x(old)
    if name == "vertical_flip":
        return matrices.flip_y(old)
    if name == "pad":
        padding = arguments["padding"]
        sides = [padding] if isinstance(padding, int) else padding
        return matrices.crop(-sides[0], -sides[1 % len(sides)])
    assert name == "center_crop"
    # torchvision's rounding is its own business: look where the first pixel went.
    x, y, whole = F.center_crop(coordinate_image(*old), arguments["output_size"]).numpy()
    i, j = np.argwhere(whole == 1)[0]
    return matrices.crop(int(x[i, j] - 0.5) - int(j), int(y[i, j] - 0.5) - int(i))


@st.composite
def chains(draw):
    """An image of coordinates and a label map that went the same way, and that way as a matrix."""
    image_size = canvas = draw(st.tuples(st.integers(14, 40), st.integers(14, 40)))
    image, label_map, view = coordinate_image(*canvas), make_label_map(canvas_size=canvas), matrices.matrix()
    for _ in range(draw(st.integers(1, 5))):
        if min(canvas) < 6:
            break
        name, arguments = draw(steps(canvas))
        label_map = getattr(F, name)(label_map, **arguments)
        image = getattr(F, name)(image, **arguments)
        new = tuple(F.get_size(image))
        view, canvas = view @ matrix_of(name, arguments, canvas, new), new
    return image_size, image, label_map, view


def corners_of(view):
    """What the corners of the canvas show, ``(x1, y1, x2, y2)``."""
    (xx, _, x0), (_, yy, y0) = view.matrix
    return x0, y0, x0 + xx, y0 + yy


def seen_by(view, height, width):
    """Which pixels of a canvas show the image, by a view, and where in the image they lie: ``[H, W]`` each."""
    v, u = (np.mgrid[:height, :width] + 0.5) / np.array([height, width])[:, None, None]
    (xx, xy, x0), (yx, yy, y0) = view.matrix
    x, y = xx * u + xy * v + x0, yx * u + yy * v + y0
    seen = (x > 0) & (x < 1) & (y > 0) & (y < 1)
    for a, b, c in view.edges:
        seen &= a * x + b * y + c > 0
    return seen, x, y


@given(st.data())
@settings(max_examples=300)
def test_after_any_chain_a_view_shows_what_the_canvas_shows_and_no_more(data):
    """A crop that was padded shows blank where the image goes on: beyond an edge of its view."""
    canvas = data.draw(st.tuples(st.integers(14, 40), st.integers(14, 40)))
    image, label_map = coordinate_image(*canvas), make_label_map(canvas_size=canvas)
    for _ in range(data.draw(st.integers(1, 5))):
        # Without resizes, so that a pixel is of the image or is not.
        name, arguments = data.draw(steps(tuple(F.get_size(image))).filter(lambda step: "resize" not in step[0]))
        image, label_map = (getattr(F, name)(each, **arguments) for each in (image, label_map))
        seen, _, _ = seen_by(label_map.view_box, *F.get_size(image))
        np.testing.assert_array_equal(seen, image[2].numpy() == 1)


@given(chains())
@settings(max_examples=300)
def test_after_any_chain_the_view_box_is_the_product_of_matrices(chain):
    image_size, image, label_map, view = chain
    expected = matrices.corners(view, image_size, tuple(F.get_size(image)))
    assert corners_of(label_map.view_box) == pytest.approx([float(end) for end in expected], abs=1e-9)


@given(chains())
@settings(max_examples=300)
def test_after_any_chain_the_canvas_has_the_size_of_the_image(chain):
    _, image, label_map, _ = chain
    assert label_map.canvas_size == tuple(F.get_size(image))


@given(chains())
@settings(max_examples=300)
def test_after_any_chain_the_view_box_is_where_the_pixels_come_from(chain):
    image_size, image, label_map, _ = chain
    try:
        expected = view_of(image, *image_size)
    except Unreadable:
        assume(False)
    assert corners_of(label_map.view_box) == pytest.approx(expected, abs=1e-5)


@given(chains())
@settings(max_examples=300)
def test_pooling_after_any_chain_of_crops_flips_resizes_and_pads_equals_pooling_the_visible_region(chain):
    image_size, image, label_map, view = chain
    assume(isinstance(label_map.view_box, ViewBox))  # others: tests/test_pooling_of_views.py
    visible = matrices.corners(view, image_size, tuple(F.get_size(image)))
    expected = softmax(pool_points(dense_by_loops(label_map), visible)[:, 0, 0])
    torch.testing.assert_close(LabelPooling()(label_map).double(), torch.tensor(expected), rtol=0, atol=2e-5)


@given(chains())
@settings(max_examples=100)
def test_token_labels_after_any_chain_equal_pooling_what_each_token_shows(chain):
    image_size, image, label_map, view = chain
    assume(isinstance(label_map.view_box, ViewBox))  # others: tests/test_pooling_of_views.py
    visible = matrices.corners(view, image_size, tuple(F.get_size(image)))
    expected = softmax(pool_points(dense_by_loops(label_map), visible, (3, 2)))
    torch.testing.assert_close(LabelPooling((3, 2))(label_map).double(), torch.tensor(expected), rtol=0, atol=2e-5)


# --- the transforms themselves, which draw their own random numbers ---

TRANSFORMS = {
    "RandomResizedCrop": v2.RandomResizedCrop((13, 19), scale=(0.3, 1.0), antialias=False),
    "RandomCrop": v2.RandomCrop((15, 9), pad_if_needed=True),
    "RandomCrop-padding": v2.RandomCrop((24, 17), padding=[1, 2, 3, 4], pad_if_needed=True),
    "RandomCrop-pad_if_needed": v2.RandomCrop((41, 12), pad_if_needed=True),
    "CenterCrop-smaller": v2.CenterCrop((14, 11)),
    "CenterCrop-larger": v2.CenterCrop((37, 42)),
    "CenterCrop-wider": v2.CenterCrop((13, 40)),
    "CenterCrop-one-number": v2.CenterCrop(16),
    "Resize-pair": v2.Resize((29, 18), antialias=False),
    "Resize-one-number": v2.Resize(14, antialias=False),
    "Resize-max_size": v2.Resize(25, max_size=27, antialias=False),
    "RandomShortestSize": v2.RandomShortestSize([14, 21], max_size=30, antialias=False),
    "RandomResize": v2.RandomResize(14, 30, antialias=False),
    "ScaleJitter": v2.ScaleJitter((24, 33), scale_range=(0.6, 1.5), antialias=False),
    "RandomZoomOut": v2.RandomZoomOut(side_range=(1.0, 1.5), p=1),
    "RandomHorizontalFlip": v2.RandomHorizontalFlip(0.5),
    "RandomVerticalFlip": v2.RandomVerticalFlip(0.5),
    "Pad-one": v2.Pad(3),
    "Pad-two": v2.Pad([2, 5]),
    "Pad-four": v2.Pad([1, 2, 3, 4]),
}
ENDS = {"FiveCrop": v2.FiveCrop((13, 9)), "TenCrop": v2.TenCrop((12, 10)), "TenCrop-vertical": v2.TenCrop(11, True)}


def assert_follows(pipeline, height, width):
    """The map goes where the pixels go, in every view of a pipeline; says in how many of them that could be read."""
    images, label_maps = pipeline(coordinate_image(height, width), make(height, width))
    if not isinstance(images, tuple):
        images, label_maps = (images,), (label_maps,)
    assert len(images) == len(label_maps)
    read = 0
    for image, label_map in zip(images, label_maps, strict=True):
        assert label_map.canvas_size == tuple(F.get_size(image))
        try:
            expected = view_of(image, height, width)
        except Unreadable:
            continue
        read += 1
        assert corners_of(label_map.view_box) == pytest.approx(expected, abs=1e-5)
    return read


@pytest.mark.parametrize("name", [*TRANSFORMS, *ENDS])
@pytest.mark.parametrize("size", [(33, 26), (22, 31)])
def test_the_map_follows_the_pixels_through(name, size):
    transform = {**TRANSFORMS, **ENDS}[name]
    for seed in range(5):
        torch.manual_seed(seed)
        assert assert_follows(transform, *size) > 0


@pytest.mark.skipif(not MAX_SIZE_ALONE, reason="torchvision 0.19 cannot resize to max_size alone")
def test_the_map_follows_the_pixels_through_a_resize_to_max_size():
    assert assert_follows(v2.Resize(None, max_size=37, antialias=False), 33, 26) == 1


@given(
    st.lists(st.sampled_from(sorted(TRANSFORMS)), min_size=1, max_size=3),
    st.none() | st.sampled_from(sorted(ENDS)),
    st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_the_map_follows_the_pixels_through_any_pipeline(names, end, seed):
    pipeline = [TRANSFORMS[name] for name in names]
    if end is not None:
        pipeline += [v2.CenterCrop((17, 15)), ENDS[end]]
    torch.manual_seed(seed)
    assume(assert_follows(v2.Compose(pipeline), 34, 27) > 0)


@pytest.mark.parametrize("crop", [3, [4], [5, 2], (16, 11), (17, 10)])
@pytest.mark.parametrize("functional", [F.five_crop, F.ten_crop])
def test_five_and_ten_crops_are_those_of_the_image(functional, crop):
    for image, label_map in zip(functional(coordinate_image(H, W), crop), functional(make(), crop), strict=True):
        x, y, _ = image.numpy()
        sizes_in_image = np.array([W, H, W, H])
        step_x = np.sign(x[0, -1] - x[0, 0]) or np.sign(label_map.view_box.x2 - label_map.view_box.x1)
        step_y = np.sign(y[-1, 0] - y[0, 0]) or np.sign(label_map.view_box.y2 - label_map.view_box.y1)
        ends = x[0, 0] - step_x / 2, y[0, 0] - step_y / 2, x[0, -1] + step_x / 2, y[-1, 0] + step_y / 2
        assert tuple(label_map.view_box) == pytest.approx(ends / sizes_in_image)
        assert label_map.canvas_size == tuple(F.get_size(image))


def test_a_kernel_touches_no_score():
    label_map = make()
    moved = F.resized_crop(F.pad(F.horizontal_flip(label_map), [1, 2]), 1, 2, 9, 7, [13, 19])
    assert moved.scores.data_ptr() == label_map.scores.data_ptr()
    assert moved.classes is label_map.classes
    assert moved.residual is label_map.residual
    assert (moved.num_classes, moved.score_kind) == (label_map.num_classes, label_map.score_kind)


@pytest.mark.parametrize("alias", ["hflip", "vflip"])
def test_an_old_name_of_a_flip_works(alias):
    full = {"hflip": "horizontal_flip", "vflip": "vertical_flip"}[alias]
    assert getattr(F, alias)(make()).view_box == getattr(F, full)(make()).view_box != make().view_box


@pytest.mark.parametrize("mode", ["edge", "reflect", "symmetric"])
def test_what_a_border_mirrors_or_repeats_is_seen_once(mode):
    pad = v2.Pad([1, 2, 3, 4], padding_mode=mode)
    image, label_map = pad(coordinate_image(H, W), make())
    assert label_map.view_box == F.pad(make(), [1, 2, 3, 4]).view_box
    assert label_map.canvas_size == tuple(F.get_size(image))


# --- rotations and shears: where each pixel of the canvas comes from ---

BILINEAR = v2.InterpolationMode.BILINEAR
TURNS = {
    "RandomRotation": v2.RandomRotation(40, BILINEAR),
    "RandomRotation-expand": v2.RandomRotation((-70, 120), BILINEAR, expand=True),
    "RandomRotation-quarter": v2.RandomRotation((90, 90), BILINEAR, expand=True),
    "RandomRotation-centre": v2.RandomRotation(30, BILINEAR, center=[5, 19]),
    "RandomAffine": v2.RandomAffine(30, (0.2, 0.1), (0.7, 1.4), 20, BILINEAR),
    "RandomAffine-both-shears": v2.RandomAffine(9, (0.1, 0.2), None, [-15, 15, -25, 25], BILINEAR),
    "RandomAffine-centre": v2.RandomAffine(20, (0.1, 0.1), (1.2, 1.3), 10, BILINEAR, center=[3, 8]),
}


@given(
    st.sampled_from(sorted(TURNS)),
    st.lists(st.sampled_from(sorted({**TRANSFORMS, **TURNS})), max_size=2),
    st.lists(st.sampled_from(sorted(TRANSFORMS)), max_size=1),
    st.integers(0, 2**16),
)
@settings(max_examples=200)
def test_a_turned_map_shows_what_the_pixels_show(turn, after, before, seed):
    height, width = 34, 27
    steps = {**TRANSFORMS, **TURNS}
    torch.manual_seed(seed)
    pipeline = v2.Compose([steps[name] for name in (*before, turn, *after)])
    image, label_map = pipeline(coordinate_image(height, width), make(height, width))
    assert label_map.canvas_size == tuple(F.get_size(image))
    seen, x, y = seen_by(label_map.view_box, *F.get_size(image))
    x_seen, y_seen, whole = image.numpy()
    # Where a pixel is interpolated of the image alone, and away from the borders, at which torchvision repeats pixels.
    inner = np.abs(whole - 1) < 1e-6
    inner &= (np.abs(x - 0.5) < 0.5 - 2 / width) & (np.abs(y - 0.5) < 0.5 - 2 / height)
    crops_first = any("Resize" in name or "Scale" in name or "Random" in name for name in (*before, *after))
    if not crops_first:  # an antialiased or repeated pixel at the border of an inner crop tells nothing
        np.testing.assert_allclose(x_seen[inner], x[inner] * width, atol=1e-3)
        np.testing.assert_allclose(y_seen[inner], y[inner] * height, atol=1e-3)
    elif inner.sum() > 30:
        assert np.median(np.abs(x_seen[inner] - x[inner] * width)) < 1e-3
        assert np.median(np.abs(y_seen[inner] - y[inner] * height)) < 1e-3
    blank = whole < 1e-6
    assert (seen & blank).mean() < 0.06  # none but along the borders
    assert (~seen & inner).mean() < 0.06


@pytest.mark.parametrize("expand", [False, True])
@pytest.mark.parametrize("size", [(34, 27), (20, 31), (9, 9)])
def test_a_pil_image_and_its_map_have_one_size_after_a_rotation(size, expand):
    for angle in (-135, -90, -33.3, 0, 12, 45, 90, 180, 200):
        image = Image.new("L", size[::-1])
        turned, label_map = (F.rotate(each, angle, expand=expand) for each in (image, make(*size)))
        assert label_map.canvas_size == (turned.height, turned.width)
