"""FGSM and occlusion, against steps worked out by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from tests.evaluate.painted import SIZE, Grey, classifier
from torchrelabel.evaluate.perturbations import EPS, Fgsm, Occlusion


def test_each_pixel_moves_by_eps_away_from_the_class() -> None:
    # Level 31 is nearest to class 5 (30). Its loss grows fastest by going lighter, towards class 6.
    images = torch.full((1, 3, SIZE, SIZE), 31 / 255)
    attacked = Fgsm(classifier(Grey()), {"x": 5})(["x"], images)
    assert EPS == 8 / 255
    assert_close(attacked, torch.full_like(images, 39 / 255))


def test_pixels_stay_between_black_and_white() -> None:
    images = torch.full((1, 3, SIZE, SIZE), 3 / 255)
    attacked = Fgsm(classifier(Grey()), {"x": 5})(["x"], images)  # away from 30 is darker
    assert_close(attacked, torch.zeros_like(images))


def test_the_step_is_one_in_pixels_whatever_the_normalisation() -> None:
    images = torch.rand(2, 3, SIZE, SIZE) * 0.8 + 0.1
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    attacked = Fgsm(classifier(model, mean=(0.5, 0.4, 0.3), std=(0.1, 0.2, 0.3)), {"x": 1, "y": 3}, 0.01)(
        ["x", "y"], images
    )
    moved = (attacked - images).abs()
    assert_close(moved, torch.full_like(moved, 0.01), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sigmoid", [False, True])
def test_the_gradient_is_that_of_the_loss_the_model_was_trained_with(sigmoid: bool) -> None:
    torch.manual_seed(1)
    images = torch.rand(2, 3, SIZE, SIZE)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 4))
    attacked = Fgsm(classifier(model), {"x": 1, "y": 3}, 0.01, sigmoid=sigmoid)(["x", "y"], images)
    pixels = images.clone().requires_grad_()
    labels = torch.tensor([1, 3])
    scores = model(pixels)
    loss: Tensor = nn.functional.cross_entropy(scores, labels)
    if sigmoid:
        loss = nn.functional.binary_cross_entropy_with_logits(scores, torch.eye(4)[labels])
    loss.backward()
    assert pixels.grad is not None
    assert_close(attacked, (images + 0.01 * pixels.grad.sign()).clamp(0, 1))


@pytest.mark.parametrize("side, black", [(0, 0), (0.25, 4), (0.5, 16), (1, 64)])
def test_a_black_square_lies_in_the_centre_and_its_complement_around_it(side: float, black: int) -> None:
    images = torch.ones(2, 3, 8, 8)
    center, boundary = (Occlusion(where, side)(["x", "y"], images) for where in ("center", "boundary"))
    assert int((center[0, 0] == 0).sum()) == black
    assert_close(center + boundary, images)
    assert_close(center, center.flip(2).flip(3))
    assert_close(center[0], center[1])
