from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references import matrices
from torchrelabel import ViewBox
from torchrelabel.view import AffineView, View

WHOLE = (17, 11)

fractions = st.fractions(-2, 3, max_denominator=64)


@st.composite
def boxes(draw):
    x1, y1, x2, y2 = (draw(fractions) for _ in range(4))
    return (x1, y1, x2 if x2 != x1 else x1 + 1, y2 if y2 != y1 else y1 + 1)


def as_matrix(box):
    """From fractions of the canvas to fractions of the image."""
    x1, y1, x2, y2 = (Fraction(end) for end in box)
    return matrices.matrix(x2 - x1, y2 - y1, x1, y1)


def assert_shows(view_box, view):
    expected = matrices.corners(view, image=(1, 1), canvas=(1, 1))
    (xx, xy, x0), (yx, yy, y0) = view_box.matrix
    assert xy == yx == 0
    assert (x0, y0, x0 + xx, y0 + yy) == pytest.approx([float(end) for end in expected], abs=1e-9)


@given(boxes(), boxes())
def test_a_crop_is_the_product_of_matrices(box, inner):
    assert_shows(ViewBox(*map(float, box)).crop(*map(float, inner)), as_matrix(box) @ as_matrix(inner))


@given(boxes(), boxes(), boxes())
def test_composing_is_the_product_of_matrices(first, second, third):
    composed = ViewBox(*map(float, first)).compose(ViewBox(*map(float, second))).compose(ViewBox(*map(float, third)))
    assert_shows(composed, as_matrix(first) @ as_matrix(second) @ as_matrix(third))


@given(boxes())
def test_a_horizontal_flip_is_the_product_of_matrices(box):
    assert_shows(ViewBox(*map(float, box)).flip_x(), as_matrix(box) @ matrices.flip_x((1, 1)))


@given(boxes())
def test_a_vertical_flip_is_the_product_of_matrices(box):
    assert_shows(ViewBox(*map(float, box)).flip_y(), as_matrix(box) @ matrices.flip_y((1, 1)))


@given(boxes())
def test_flipping_twice_changes_nothing(box):
    view_box = ViewBox(*map(float, box))
    assert view_box.flip_x().flip_x() == view_box
    assert view_box.flip_y().flip_y() == view_box


@given(boxes(), *[st.integers(0, 9)] * 4)
def test_a_pad_is_the_product_of_matrices(box, left, top, right, bottom):
    height, width = WHOLE
    padded = ViewBox(*map(float, box)).pad(left / width, top / height, right / width, bottom / height)
    grown = matrices.matrix(
        1 + Fraction(left + right, width),
        1 + Fraction(top + bottom, height),
        -Fraction(left, width),
        -Fraction(top, height),
    )
    assert_shows(padded, as_matrix(box) @ grown)


@given(boxes())
def test_the_area_is_the_determinant(box):
    matrix = as_matrix(box)
    assert ViewBox(*map(float, box)).area == pytest.approx(float(abs(matrix[0, 0] * matrix[1, 1])))


@given(boxes())
def test_it_knows_whether_it_is_flipped(box):
    view_box = ViewBox(*map(float, box))
    matrix = as_matrix(box)
    assert (view_box.flipped_x, view_box.flipped_y) == (matrix[0, 0] < 0, matrix[1, 1] < 0)


def test_without_arguments_it_shows_the_whole_image():
    assert tuple(ViewBox()) == (0, 0, 1, 1)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ViewBox().x1 = 0.5


@pytest.mark.parametrize("box", [(0.5, 0, 0.5, 1), (0, 0.25, 1, 0.25)])
def test_an_empty_box_is_an_error(box):
    with pytest.raises(
        ValueError, match=r"^A view box needs a width and a height, got \(x1, y1, x2, y2\) = \("
    ) as error:
        ViewBox(*box)
    assert str(box) in str(error.value)


@pytest.mark.parametrize("end", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", range(4))
def test_a_coordinate_that_is_not_finite_is_an_error(end, at):
    box = [0.0, 0.0, 1.0, 1.0]
    box[at] = end
    with pytest.raises(ValueError, match=rf"^A view box needs four finite coordinates, got \(.*{end}.*\)\.$"):
        ViewBox(*box)


def test_opposite_infinities_do_not_pass_as_finite():
    with pytest.raises(ValueError, match="four finite coordinates"):
        ViewBox(-float("inf"), 0, float("inf"), 1)


def test_an_empty_crop_is_an_error():
    with pytest.raises(ValueError, match="needs a width and a height"):
        ViewBox(0.1, 0.2, 0.3, 0.4).crop(0.5, 0, 0.5, 1)


# --- views that are no boxes ---

numbers = st.floats(-2, 2, allow_nan=False).map(lambda number: round(number, 3))


@st.composite
def inner_matrices(draw):
    (a, b, x0), (c, d, y0) = ((draw(numbers), draw(numbers), draw(numbers)) for _ in range(2))
    return ((a, b, x0), (c, d, y0)) if abs(a * d - b * c) > 0.1 else ((1.0, b, x0), (0.0, 1.0, y0))


def at(matrix, u, v):
    (a, b, x0), (c, d, y0) = matrix
    return a * u + b * v + x0, c * u + d * v + y0


def shown(views_and_matrices, u, v):
    """Follow a point of the last canvas back to the image, canvas by canvas; None where one of them was blank."""
    for matrix in reversed(views_and_matrices):
        u, v = at(matrix, u, v)
        if not (0 <= u <= 1 and 0 <= v <= 1):
            return None
    return u, v


@given(st.lists(inner_matrices(), min_size=1, max_size=4))
def test_a_view_shows_what_the_canvases_before_it_left(steps):
    view = ViewBox()
    for step in steps:
        view = view.transform(step)
    for u in (0.03, 0.37, 0.71, 0.98):
        for v in (0.02, 0.41, 0.66, 0.97):
            x, y = at(view.matrix, u, v)
            seen = 0 <= x <= 1 and 0 <= y <= 1 and all(a * x + b * y + c >= 0 for a, b, c in view.edges)
            expected = shown(steps, u, v)
            margin = min([abs(x), abs(1 - x), abs(y), abs(1 - y)] + [abs(a * x + b * y + c) for a, b, c in view.edges])
            if margin < 1e-6:
                continue  # on an edge
            assert seen == (expected is not None)
            if expected:
                assert (x, y) == pytest.approx(expected, abs=1e-6)


def test_a_view_whose_matrix_is_axis_aligned_and_has_no_edges_is_a_box():
    turned = ViewBox(0.25, 0, 0.75, 0.5).transform(((0.0, 1.0, 0.0), (-1.0, 0.0, 1.0)))
    assert isinstance(turned, AffineView)
    back = turned.transform(((0.0, -1.0, 1.0), (1.0, 0.0, 0.0)))
    assert back == ViewBox(0.25, 0, 0.75, 0.5)


def test_an_edge_is_kept_only_where_the_image_goes_on():
    assert ViewBox().pad(0.5, 0, 0, 0.25) == ViewBox(-0.5, 0, 1, 1.25)
    half = ViewBox(0, 0, 0.5, 1)  # beyond its right end the image goes on
    assert half.pad(0.5, 0.5, 0, 0).edges == ()
    assert len(half.pad(0, 0, 0.5, 0).edges) == 1


def test_composing_takes_the_edges_of_the_inner_view_along():
    inner = ViewBox(0, 0, 0.5, 1).pad(0, 0, 1, 0)
    composed = ViewBox(0.5, 0, 1, 1).compose(inner)
    assert composed.matrix == ((0.5, 0.0, 0.5), (0.0, 1.0, 0.0))
    ((a, b, c),) = composed.edges
    assert a * 0.75 + c == pytest.approx(0)
    assert b == 0 and a < 0


@pytest.mark.parametrize("matrix", [((1.0, 1.0, 0.0), (1.0, 1.0, 0.0)), ((0.0, 0.0, 0.0), (0.0, 1.0, 0.0))])
def test_a_matrix_that_leaves_nothing_is_an_error(matrix):
    with pytest.raises(ValueError, match="needs a width and a height"):
        View.of(matrix)


def test_a_number_that_is_not_finite_is_an_error():
    with pytest.raises(ValueError, match="needs finite numbers"):
        AffineView(((1.0, float("nan"), 0.0), (0.0, 1.0, 0.0)))
