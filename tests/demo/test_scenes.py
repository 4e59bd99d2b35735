"""Scenes: what is drawn is what is said to be drawn."""

import numpy as np
import pytest
from PIL import Image

from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.scenes import draw_scene, wrong_labels


@pytest.fixture(scope="module")
def digits():
    return load_digits_split()[0]


@pytest.fixture(scope="module")
def scenes(digits):
    return [draw_scene(digits, (5, index), index % 10) for index in range(60)]


def test_the_same_seed_draws_the_same_scene(digits, scenes):
    again = draw_scene(digits, (5, 7), 7)
    np.testing.assert_array_equal(again.image, scenes[7].image)
    assert again.digits == scenes[7].digits


def test_another_seed_draws_another_scene(digits, scenes):
    assert draw_scene(digits, (6, 7), 7).digits != scenes[7].digits


def test_sides_are_64_to_96_px(scenes):
    sides = [side for scene in scenes for side in scene.image.shape[:2]]
    assert 64 <= min(sides) <= 68
    assert 92 <= max(sides) <= 96


def test_one_to_three_small_digits_stand_beside_the_large_one(scenes):
    assert {len(scene.digits) - 1 for scene in scenes} == {1, 2, 3}


def test_the_first_digit_is_the_one_asked_for_and_clearly_the_largest(scenes):
    for index, scene in enumerate(scenes):
        widths = [placed.box[2] - placed.box[0] for placed in scene.digits]
        assert scene.digits[0].digit == index % 10
        assert widths[0] > 1.25 * max(widths[1:])


def test_the_small_digits_have_the_size_asked_for(digits):
    scene = draw_scene(digits, (5, 2), 2, small=(3, 3), large=(0.3, 0.3), other=(0.1, 0.1))
    side = min(scene.image.shape[:2])
    assert [placed.box[2] - placed.box[0] for placed in scene.digits] == [round(0.3 * side)] + [round(0.1 * side)] * 3


def test_no_digit_is_shown_twice(scenes):
    for scene in scenes:
        assert len({placed.digit for placed in scene.digits}) == len(scene.digits)


def test_boxes_lie_inside_and_apart(scenes):
    for scene in scenes:
        covered = np.zeros(scene.image.shape[:2], dtype=int)
        for placed in scene.digits:
            x1, y1, x2, y2 = placed.box
            assert covered[y1:y2, x1:x2].shape == (y2 - y1, x2 - x1)
            covered[y1:y2, x1:x2] += 1
        assert covered.max() == 1


def test_the_pixels_of_a_box_look_most_like_the_digit_that_is_said_to_be_there(digits, scenes):
    templates = digits.ink.reshape(len(digits), -1)
    templates = templates - templates.mean(axis=1, keepdims=True)
    templates /= np.linalg.norm(templates, axis=1, keepdims=True)
    right = []
    for scene in scenes:
        for placed in scene.digits:
            shrunk = Image.fromarray(scene.image).convert("L").resize((8, 8), Image.Resampling.BOX, box=placed.box)
            pixels = np.asarray(shrunk, dtype=float).ravel()
            best = int((templates @ (pixels - pixels.mean())).argmax())
            right.append(int(digits.sources[best]) == placed.source)
    # A textured background hides which of 1258 digits it is now and then.
    assert np.mean(right) > 0.6


@pytest.mark.parametrize("count", [50, 333])
def test_a_fifth_of_the_labels_is_wrong(count):
    chosen = wrong_labels(count, 0.2, np.random.default_rng(3))
    assert chosen.sum() == round(count / 5)


def test_wrong_labels_are_spread_over_the_folder():
    chosen = wrong_labels(1000, 0.2, np.random.default_rng(3))
    assert 60 < chosen[:500].sum() < 140
