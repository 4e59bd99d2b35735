"""How the annotator is trained: what its pictures show, and that a seed decides all."""

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close

from torchrelabel.demo import make_annotator as script
from torchrelabel.demo.annotator import MODEL
from torchrelabel.demo.digits import load_digits_split

needs_model = pytest.mark.skipif(not timm.is_model(MODEL), reason=f"timm {timm.__version__} has no {MODEL}")


@pytest.fixture(scope="module")
def digits():
    return load_digits_split()[0]


@pytest.fixture
def drawn(monkeypatch):
    """Every scene that is drawn, and a pool of 40 of them."""
    scenes = []
    draw_scene = script.draw_scene

    def record(*arguments, **options):
        scenes.append(draw_scene(*arguments, **options))
        return scenes[-1]

    monkeypatch.setattr(script, "draw_scene", record)
    monkeypatch.setattr(script, "POOL", 40)
    return scenes


def test_the_labelled_digit_has_any_size_and_is_the_largest(digits, drawn):
    rng = np.random.default_rng(0)
    labels = [script.draw_labelled(digits, rng)[1] for _ in range(300)]
    sides = [[placed.box[2] - placed.box[0] for placed in scene.digits] for scene in drawn]
    shares = [widths[0] / min(scene.image.shape[:2]) for widths, scene in zip(sides, drawn, strict=True)]
    assert 0.19 < min(shares) < 0.22
    assert 0.9 < max(shares) < 0.96
    assert 0.4 < np.median(shares) < 0.48  # every scale as often: the middle of them is 0.44
    assert all(widths[0] > max(widths[1:], default=0) for widths in sides)
    assert {len(widths) for widths in sides} == {1, 2, 3, 4}
    assert labels == [scene.digits[0].digit for scene in drawn]


def test_a_crop_shows_a_part_of_the_picture_enlarged():
    """The picture's red rises from left to right and its green from top to bottom, so a crop tells where it was."""
    y, x = np.mgrid[0:70, 0:90]
    image = Image.fromarray(np.stack([2 * x, 2 * y, 0 * x], axis=2).astype(np.uint8))
    rng = np.random.default_rng(0)
    areas = []
    for _ in range(200):
        pixels = script.crop(image, rng, 48).astype(float) / 2
        assert pixels.shape == (48, 48, 3)
        width, height = pixels[24, -1, 0] - pixels[24, 0, 0], pixels[-1, 24, 1] - pixels[0, 24, 1]
        areas.append(width * height / (90 * 70))
    assert 0.25 < min(areas) < 0.4
    assert 0.85 < max(areas) <= 1


def test_batches_grow_in_size_and_are_of_fresh_scenes(digits, drawn):
    found = list(script.batches(digits, np.random.default_rng(0), steps=6))
    assert [pixels.shape[2:] for pixels, _ in found] == [(size, size) for size in script.SIZES for _ in range(2)]
    assert all(len(pixels) == len(labels) == script.BATCH for pixels, labels in found)
    assert len(drawn) == 40 + 6 * script.FRESH


def test_each_crop_has_the_label_of_its_scene(digits, monkeypatch):
    def plain(_, rng):
        digit = int(rng.integers(10))
        return Image.new("RGB", (70, 90), (20 * digit, 0, 0)), digit

    monkeypatch.setattr(script, "POOL", 40)
    monkeypatch.setattr(script, "draw_labelled", plain)
    for pixels, labels in script.batches(digits, np.random.default_rng(0), steps=3):
        assert (pixels[:, 0, 5, 7] / 20).tolist() == labels.tolist()


@needs_model
def test_only_training_digits_are_shown(drawn, tmp_path):
    script.make_annotator(tmp_path / "a.pth", steps=2, seed=0)
    assert {p.source for scene in drawn for p in scene.digits} <= set(load_digits_split()[0].sources.tolist())


@needs_model
def test_the_same_seed_gives_the_same_weights_and_another_seed_others(drawn, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        script.make_annotator(tmp_path / f"{name}.pth", steps=2, seed=seed)
    first, second, other = (torch.load(tmp_path / f"{name}.pth", weights_only=True) for name in "abc")
    assert_close(first, second, rtol=0, atol=0)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
