from __future__ import annotations

import pytest
import torch

from torchrelabel import TokenLabelLoss

B, C, GRID = 3, 5, (2, 4)


def parts(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.rand(B, C, *GRID, generator=generator)
    return (
        torch.randn(B, C, generator=generator),
        torch.randn(B, GRID[0] * GRID[1], C, generator=generator),
        labels / labels.sum(1, keepdim=True),
    )


@pytest.mark.parametrize("weight", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("given", [False, True])
def test_it_is_the_loss_of_the_class_token_plus_the_mean_of_those_of_the_tokens(weight, given):
    class_logits, token_logits, labels = parts()
    class_labels = torch.rand(B, C).softmax(1) if given else None
    of_tokens = [
        -(labels[b, :, i, j] * token_logits[b, i * GRID[1] + j].log_softmax(0)).sum()
        for b in range(B)
        for i in range(GRID[0])
        for j in range(GRID[1])
    ]
    target = labels.mean((2, 3)) if class_labels is None else class_labels
    of_class = -(target * class_logits.log_softmax(1)).sum(1).mean()
    expected = of_class + weight * torch.stack(of_tokens).mean()
    torch.testing.assert_close(TokenLabelLoss(weight)(class_logits, token_logits, labels, class_labels), expected)


def test_a_grid_that_does_not_fit_the_model_is_an_error():
    class_logits, token_logits, labels = parts()
    with pytest.raises(ValueError, match=r"The model has 7 tokens .* the labels are for 2 x 4 tokens"):
        TokenLabelLoss()(class_logits, token_logits[:, 1:], labels)
    with pytest.raises(ValueError, match=r"Token labels are \[B, C, gh, gw\]"):
        TokenLabelLoss()(class_logits, token_logits, labels.mean((2, 3)))


def test_a_negative_weight_is_an_error():
    with pytest.raises(ValueError, match=r"dense_weight is at least 0, got -1"):
        TokenLabelLoss(-1)
