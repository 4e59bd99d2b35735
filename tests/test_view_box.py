from __future__ import annotations

import dataclasses
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.references import matrices
from torchrelabel import ViewBox

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
    assert tuple(view_box) == pytest.approx([float(end) for end in expected], abs=1e-9)


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
