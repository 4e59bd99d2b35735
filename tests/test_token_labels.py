from __future__ import annotations

import pytest
import torch
from timm.models.volo import VOLO

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


@pytest.mark.parametrize("given", [False, True])
def test_a_box_that_the_model_pasted_gives_the_class_token_the_label_of_what_it_saw(given):
    class_logits, token_logits, labels = parts()
    class_labels = torch.rand(B, C).softmax(1) if given else None
    top, left, bottom, right = box = (0, 1, 2, 3)
    seen = labels.clone()
    for b in range(B):
        for i in range(top, bottom):
            for j in range(left, right):
                seen[b, :, i, j] = labels[B - 1 - b, :, i, j]
    target = seen.mean((2, 3)) if class_labels is None else class_labels / 2 + class_labels.flip(0) / 2
    tokens = TokenLabelLoss(1)(torch.zeros(B, C), token_logits, labels) - torch.tensor(float(C)).log()
    of_class = -(target * class_logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(
        TokenLabelLoss(1)(class_logits, token_logits, labels, class_labels, box=box), of_class + tokens
    )


@pytest.mark.parametrize("box", [(0, 0, 3, 1), (0, 3, 1, 5), (1, 0, 0, 1), (-1, 0, 1, 1)])
def test_a_box_outside_the_grid_is_an_error(box):
    with pytest.raises(ValueError, match=r"box is \(top, left, bottom, right\) within the 2 x 4 tokens, got"):
        TokenLabelLoss()(*parts(), box=box)


# --- timm's VOLO ---


def tiny_volo(**given):
    """Of 2 x 4 tokens, for images of 16 x 32 pixels."""
    return VOLO(
        layers=(1, 1),
        embed_dims=(8, 16),
        num_heads=(1, 2),
        mlp_ratio=2.0,
        downsamples=(True, False),
        outlook_attention=(True, False),
        stem_hidden_dim=8,
        patch_size=4,
        img_size=(16, 32),
        num_classes=C,
        **given,
    )


def test_a_volo_without_mixing_says_in_training_what_its_head_and_its_dense_head_say():
    model = tiny_volo().train()
    images = torch.rand(2, 3, 16, 32)
    features, token_logits, box = model.forward_train(images)
    tokens = model.forward_features(images)
    # timm's forward_train leaves the head of the class token out. When it no longer does, say so in the example.
    torch.testing.assert_close(features, tokens[:, 0])
    torch.testing.assert_close(token_logits, model.aux_head(tokens[:, 1:]))
    torch.testing.assert_close(model(images), model.head(features) + token_logits.amax(1) / 2)
    assert TokenLabelLoss()(model.head(features), token_logits, parts()[2][:2], box=box).isfinite()


def test_the_box_of_volo_is_where_its_class_token_saw_the_other_image():
    model = tiny_volo(use_mix_token=True).train()
    seen = []
    # Patches for tokens, so that what was pasted can be read off them; the class token sees all of them.
    model.forward_tokens = lambda patches: seen.append(patches) or patches[:, ::2, ::2].flatten(1, 2)
    model.patch_embed.forward = lambda images: images[:, :1, ::4, ::4].expand(-1, 16, -1, -1)
    model.forward_cls = lambda tokens: torch.cat([tokens[:, :1], tokens], 1)
    model.norm = model.aux_head = torch.nn.Identity()
    images = torch.arange(1.0, 4)[:, None, None, None].expand(3, 3, 16, 32)
    boxes = set()
    for seed in range(12):
        torch.manual_seed(seed)
        _, tokens, (top, left, bottom, right) = model.forward_train(images)
        pasted = seen[-1][:, ::2, ::2, 0]
        expected = images[:, 0, ::8, ::8].clone()
        expected[:, top:bottom, left:right] = expected.flip(0)[:, top:bottom, left:right]
        torch.testing.assert_close(pasted, expected)
        # Put back: each token's scores are those of the image that it is part of.
        torch.testing.assert_close(tokens[..., 0], images[:, 0, ::8, ::8].flatten(1))
        boxes.add((top, left, bottom, right))
    assert len(boxes) > 4


def test_a_grid_that_does_not_fit_volo_is_an_error():
    model = tiny_volo(use_mix_token=True).train()
    features, token_logits, box = model.forward_train(torch.rand(B, 3, 16, 32))
    with pytest.raises(ValueError, match=r"The model has 8 tokens .* for 4 x 4 tokens"):
        TokenLabelLoss()(model.head(features), token_logits, torch.ones(B, C, 4, 4) / C, box=box)
