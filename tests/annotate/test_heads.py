"""CellHead against each model's own answer, and against heads written out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import torchrelabel.annotate.heads
from tests.annotate.models import FourCorners, make_images, make_model
from torchrelabel.annotate.heads import CellHead
from torchrelabel.errors import UnsupportedModel

# Head, layout, side in pixels, grid, prefix tokens.
LINEAR = [
    ("resnet10t", "NCHW", 96, (3, 3), 0),
    ("mobilenetv2_050", "NCHW", 96, (3, 3), 0),  # 1 x 1 convolution before pooling
    ("dpn48b", "NCHW", 64, (2, 2), 0),  # the classifier is a convolution
    ("swin_tiny_patch4_window7_224", "NHWC", 224, (7, 7), 0),
    ("levit_128s", "NLC", 224, (4, 4), 0),  # tokens without a class token
]
NOT_LINEAR = [
    ("convnext_atto", "NCHW", 96, (3, 3), 0),  # the head normalises after pooling
    ("edgenext_xx_small", "NCHW", 96, (3, 3), 0),  # likewise
    ("mobilenetv3_small_050", "NCHW", 96, (3, 3), 0),  # convolution and activation after pooling
    ("vit_tiny_patch16_224", "NLC", 96, (6, 6), 1),  # the class token
    ("vit_tiny_r_s16_p8_224", "NLC", 224, (7, 7), 1),
]


# As slim as they can be built, so that the tests stay fast.
SWIN = "swin_tiny_patch4_window7_224"
SLIM: dict[str, dict[str, Any]] = {
    SWIN: {"embed_dim": 16, "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)},
    "vit_tiny_r_s16_p8_224": {"depth": 2},
    "vit_tiny_patch16_224": {"depth": 2, "img_size": 96},
}


def build(name: str, size: int) -> CellHead:
    return CellHead(make_model(name, num_classes=9, **SLIM.get(name, {})), size)


@pytest.mark.parametrize(("name", "layout", "size", "grid", "prefix"), LINEAR + NOT_LINEAR)
def test_cells_form_the_grid(name: str, layout: str, size: int, grid: tuple[int, int], prefix: int) -> None:
    head = build(name, size)
    assert (head.layout, head.grid, head.prefix_tokens, head.num_classes) == (layout, grid, prefix, 9)
    assert head(make_images(1, size)).shape == (1, 9, *grid)


@pytest.mark.parametrize(("name", "size"), [(name, size) for name, _, size, _, _ in LINEAR])
def test_mean_of_the_cells_of_a_linear_head_is_the_models_own_answer(name: str, size: int) -> None:
    head = build(name, size)
    images = make_images(2, size)
    with torch.no_grad():
        assert_close(head(images).mean(dim=(2, 3)), head.model(images), rtol=1e-4, atol=1e-5)
    assert head.commuting(images).commutes
    assert head.commutes


@pytest.mark.parametrize("name", ["convnext_atto", "edgenext_xx_small"])
def test_a_head_that_normalises_after_pooling_is_reported_as_not_commuting(name: str) -> None:
    head = build(name, 96)
    found = head.commuting(make_images(3, 96))
    assert not found.commutes
    assert not head.commutes
    assert found.relative_error > 1e-2


def test_a_cell_of_a_convnext_gets_the_head_norm_that_the_image_would() -> None:
    model = make_model("convnext_atto", num_classes=9)
    images = make_images(2, 96)
    with torch.no_grad():
        features = model.forward_features(images)
        by_hand = model.head.fc(model.head.norm(features).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        assert_close(CellHead(model, 96)(images), by_hand)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_patch_token_is_classified_whatever_the_head_pools(pool: str) -> None:
    model = make_model("vit_tiny_patch16_224", num_classes=9, img_size=96, global_pool=pool)
    images = make_images(2, 96)
    with torch.no_grad():
        patches = model.forward_features(images)[:, 1:]
        by_hand = model.head(model.fc_norm(patches)).reshape(2, 6, 6, 9).permute(0, 3, 1, 2)
        assert_close(CellHead(model, 96)(images), by_hand)


def test_a_patch_token_passes_the_attention_pooling_of_its_head() -> None:
    model = make_model("vit_tiny_patch16_224", num_classes=9, img_size=96, global_pool="map", class_token=False)
    images = make_images(2, 96)
    with torch.no_grad():
        patches = model.forward_features(images)
        by_hand = torch.stack([model.forward_head(patches[:, [cell]]) for cell in range(36)], dim=-1)
        assert_close(CellHead(model, 96)(images), by_hand.reshape(2, 9, 6, 6))


def test_rows_and_columns_keep_their_places() -> None:
    images = torch.zeros(1, 3, 12, 12)
    images[0, 0, 0:4, 8:12] = 1  # red in the first row of cells, third column
    images[0, 1, 8:12, 0:4] = 1  # green in the third row, first column
    cells = CellHead(FourCorners(), 12)(images)
    assert cells[0, 0].nonzero().tolist() == [[0, 2]]
    assert cells[0, 1].nonzero().tolist() == [[2, 0]]


def test_cells_do_not_depend_on_how_many_fit_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    head = build("resnet10t", 96)
    images = make_images(5, 96)
    with torch.no_grad():
        at_once = head(images)
        monkeypatch.setattr(torchrelabel.annotate.heads, "_CHUNK_NUMBERS", 1)
        parts = list(head.chunks(head.features(images)))
        assert len(parts) == 5
        assert_close(torch.cat(parts).permute(0, 3, 1, 2), at_once)


@pytest.mark.parametrize(
    ("name", "size", "numbers"),
    [("resnet10t", 96, 3 * 3 * 512), ("vit_tiny_patch16_224", 96, 6 * 6 * 2 * 192), ("swin_wide", 224, 7 * 7 * 999)],
)
def test_a_part_holds_as_many_images_as_there_is_room_for_their_features_and_scores(
    monkeypatch: pytest.MonkeyPatch, name: str, size: int, numbers: int
) -> None:
    wide = name == "swin_wide"  # more classes than channels
    head = CellHead(make_model(SWIN, num_classes=999, **SLIM[SWIN]), size) if wide else build(name, size)
    monkeypatch.setattr(torchrelabel.annotate.heads, "_CHUNK_NUMBERS", 2 * numbers)
    with torch.no_grad():
        assert [len(part) for part in head.chunks(head.features(make_images(3, size)))] == [2, 1]
    monkeypatch.setattr(torchrelabel.annotate.heads, "_CHUNK_NUMBERS", 2 * numbers - 1)
    with torch.no_grad():
        assert [len(part) for part in head.chunks(head.features(make_images(3, size)))] == [1, 1, 1]


def test_dropout_is_off() -> None:
    model = make_model("resnet10t", num_classes=9, drop_rate=0.5).train()
    head = CellHead(model, 96)
    images = make_images(1, 96)
    with torch.no_grad():
        assert_close(head(images), head(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["crossvit_tiny_240", "pit_ti_224"])
def test_features_that_are_no_grid_are_refused(name: str) -> None:
    model = make_model(name)
    with pytest.raises(UnsupportedModel, match=rf"{name} returns .*Models that work: .*resnet50"):
        CellHead(model, model.pretrained_cfg["input_size"][-1])


def test_a_vector_of_features_is_refused_with_its_shape() -> None:
    model = FourCorners()
    model.forward_features = lambda images: images.mean(dim=(2, 3))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match=r"FourCorners returns features of shape \[1, 3\].* no grid"):
        CellHead(model, 12)


def test_a_head_that_needs_the_whole_grid_is_refused() -> None:
    model = FourCorners()
    classifier = nn.Linear(27, 4)
    model.forward_head = lambda features: classifier(features.flatten(1))  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match=r"FourCorners cannot classify one cell alone \(features \[3, 1, 1\]\)"):
        CellHead(model, 12)


def test_a_head_that_keeps_the_cells_is_refused() -> None:
    model = FourCorners()
    model.forward_head = lambda features: features  # type: ignore[method-assign]
    with pytest.raises(UnsupportedModel, match=r"returns \[1, 3, 1, 1\] for 1 cells"):
        CellHead(model, 12)


def test_a_module_that_is_no_timm_classifier_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"Conv2d has no forward_features"):
        CellHead(nn.Conv2d(3, 4, 1), 12)


def test_a_size_that_cuts_through_patches_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 cannot take an image of 50 x 50 px: .*multiple of 16"):
        CellHead(make_model("vit_tiny_patch16_224", depth=2, img_size=50), 50)


def test_a_size_that_the_model_was_not_built_for_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 cannot take an image of 96 x 96 px: .*another size"):
        CellHead(make_model("vit_tiny_patch16_224", depth=2), 96)


@pytest.mark.parametrize(("kernel", "padding"), [(7, 0), (7, 3), (4, 1)])
def test_patches_that_overlap_or_have_a_margin_take_any_size(kernel: int, padding: int) -> None:
    model: Any = FourCorners()
    model.patch_embed = nn.Module()
    model.patch_embed.proj = nn.Conv2d(3, 3, kernel, stride=4, padding=padding)
    assert CellHead(model, 14).grid == (3, 3)


@pytest.mark.parametrize("pool", ["token", "avg"])
def test_a_size_of_a_single_patch_is_refused_as_too_small(pool: str) -> None:
    model = make_model("vit_tiny_patch16_224", depth=2, img_size=16, global_pool=pool)
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 sees an image of 16 x 16 px as one cell, .* larger"):
        CellHead(model, 16)


def test_a_model_whose_classifier_was_taken_off_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"resnet10t has no classifier \(num_classes is 0\)"):
        CellHead(make_model("resnet10t", num_classes=0), 64)
