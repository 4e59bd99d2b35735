"""Models of timm learn the labels of their tokens."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.data import FastCollateMixup, Mixup, create_dataset, create_loader
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models.volo import VOLO
from timm.utils import random_seed

from tests.painted import WRONG, C, Painted, label_error
from torchrelabel import LabelMapDataset, LabelPooling, TokenLabelLoss
from torchrelabel.annotate.heads import CellHead
from torchrelabel.errors import UnsupportedModel
from torchrelabel.integrations.timm import TokenScores, accept_soft_targets, with_token_scores
from torchrelabel.integrations.timm.token_mixing import mixed_tokens

# timm's readers leave files open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}


def tiny_vit(**given: Any) -> Any:
    return timm.create_model("vit_tiny_patch16_224", num_classes=C, **{**VIT, **given})


def tiny_volo(**given: Any) -> Any:
    """Of 2 x 4 tokens, for images of 16 x 32 pixels."""
    stages = {"layers": (1, 1), "downsamples": (True, False), "outlook_attention": (True, False), "mlp_ratio": 2.0}
    widths = {"embed_dims": (8, 16), "num_heads": (1, 2), "stem_hidden_dim": 8, "patch_size": 4}
    return VOLO(img_size=(16, 32), num_classes=C, **stages, **widths, **given)


@pytest.fixture(autouse=True)
def accepted() -> None:
    accept_soft_targets()


MODELS: dict[str, Any] = {
    "a class token": tiny_vit,
    "registers": lambda: tiny_vit(reg_tokens=4),
    "tokens averaged beside a class token": lambda: tiny_vit(global_pool="avg", class_token=True),
    "tokens averaged": lambda: tiny_vit(global_pool="avg", class_token=False),
    "channels first": lambda: timm.create_model("resnet10t", num_classes=C),
    "channels last": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", num_classes=C, img_size=64, depths=(1, 1, 1, 1), embed_dim=12, window_size=2
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_each_token_has_the_scores_that_an_annotator_reads(name: str) -> None:
    model = MODELS[name]()
    size = 64 if "channels" in name else 32
    head = CellHead(model, size)
    images = torch.rand(2, 3, size, size)
    with torch.no_grad():
        expected, whole = head(images), model(images)
        for module in with_token_scores(model, head.grid).modules():
            module.training = False  # norms and dropout as in the annotator
        model.training = True
        scores = model(images)
    assert isinstance(scores, TokenScores) and scores.box is None
    torch.testing.assert_close(scores.token_logits, expected.flatten(2).mT, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(scores.class_logits, whole, atol=1e-5, rtol=1e-4)


def test_volo_has_its_own_dense_head_and_mixes_tokens_itself() -> None:
    model, images = tiny_volo(use_mix_token=True).train(), torch.rand(3, 3, 16, 32)
    random_seed(1)
    features, token_logits, box = model.forward_train(images)
    random_seed(1)
    scores = with_token_scores(model, (2, 4))(images)
    torch.testing.assert_close(scores.class_logits, model.head(features))
    torch.testing.assert_close(scores.token_logits, token_logits)
    assert scores.box == box and box != (0, 0, 0, 0)


@pytest.mark.parametrize("make", [tiny_vit, tiny_volo])
def test_a_model_keeps_its_weights_and_what_it_says_in_evaluation(make: Any) -> None:
    model = make().eval()
    names = list(model.state_dict())
    images = torch.rand(2, 3, 16, 32) if make is tiny_volo else torch.rand(2, 3, 32, 32)
    before = model(images)
    assert with_token_scores(model, (2, 4) if make is tiny_volo else (4, 4)) is model
    assert list(model.state_dict()) == names
    assert isinstance(model, type(make()))
    torch.testing.assert_close(model(images), before)
    average = copy.deepcopy(model)  # as timm's moving averages are made
    torch.testing.assert_close(average(images), before)
    assert isinstance(average.train()(images), TokenScores)


def test_losses_of_torch_and_timm_are_those_of_token_labels() -> None:
    labels = torch.rand(3, C, 2, 4).softmax(1)
    for box in (None, (0, 1, 2, 3)):
        scores = TokenScores(torch.randn(3, C), torch.randn(3, 8, C), box)
        expected = TokenLabelLoss()(*scores[:2], labels, box=box)
        torch.testing.assert_close(torch.nn.CrossEntropyLoss()(scores, labels), expected)
        torch.testing.assert_close(SoftTargetCrossEntropy()(scores, labels), expected)
        smoothed = TokenLabelLoss()(*scores[:2], labels * 0.8 + 0.2 / C, box=box)
        torch.testing.assert_close(LabelSmoothingCrossEntropy(0.2)(scores, labels), smoothed)
        torch.testing.assert_close(torch.nn.CrossEntropyLoss(label_smoothing=0.2)(scores, labels), smoothed)


@pytest.mark.parametrize("options", [{}, {"soft_targets": True}, {"smoothing": 0.2}])
def test_a_task_of_timms_trains_on_the_labels_of_tokens(options: Any) -> None:
    """What newer versions of timm train with."""
    task = pytest.importorskip("timm.task")
    model = with_token_scores(tiny_vit(), (4, 4)).train()
    labels = torch.rand(3, C, 4, 4).softmax(1)
    images = torch.rand(3, 3, 32, 32)
    result = task.ClassificationTask(model, criterion_kwargs=options, verbose=False)(images, labels)
    share = options.get("smoothing", 0)
    expected = TokenLabelLoss()(*model(images)[:2], labels * (1 - share) + share / C)
    torch.testing.assert_close(result["loss"], expected)


@pytest.mark.parametrize("loss", [BinaryCrossEntropy(), JsdCrossEntropy(), torch.nn.BCEWithLogitsLoss()])
def test_other_losses_are_refused(loss: Any) -> None:
    scores = TokenScores(torch.randn(3, C), torch.randn(3, 8, C))
    with pytest.raises((TypeError, AttributeError), match="Token labels are trained with cross entropy"):
        loss(scores, torch.rand(3, C, 2, 4))
    with pytest.raises(TypeError, match="has no weights of classes"):
        torch.nn.CrossEntropyLoss(torch.ones(C))(scores, torch.rand(3, C, 2, 4))


@pytest.mark.parametrize(
    ("make", "grid", "words"),
    [
        (
            tiny_vit,
            (14, 14),
            r"VisionTransformer has 16 tokens for images of 32 x 32 px, and the labels are for 14 x 14",
        ),
        (tiny_vit, (2, 8), r"16 tokens for images of 32 x 32 px, and the labels are for 2 x 8"),
        (
            tiny_volo,
            (4, 4),
            r"VOLO has 8 tokens for images of 16 x 32 px, and the labels are for 4 x 4.*--token-labels",
        ),
        (tiny_volo, (4, 2), r"8 tokens for images of 16 x 32 px, and the labels are for 4 x 2"),
        (MODELS["channels first"], (2, 2), r"ResNet has 1 x 1 tokens for images of 32 x 32 px, .* for 2 x 2"),
    ],
)
def test_a_grid_that_does_not_fit_is_an_error(make: Any, grid: tuple[int, int], words: str) -> None:
    model = with_token_scores(make(), grid).train()
    with pytest.raises(UnsupportedModel, match=words):
        model(torch.rand(2, 3, 16 if make is tiny_volo else 32, 32))


@pytest.mark.parametrize("make", [tiny_vit, tiny_volo])
def test_patches_of_several_sizes_are_refused(make: Any) -> None:
    with pytest.raises(UnsupportedModel, match=r"was given a dict and no images \[B, 3, H, W\].*--naflex-loader"):
        with_token_scores(make(), (4, 4)).train()({"patches": torch.rand(2, 16, 192)})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: tiny_volo(use_aux_head=False), "VOLO was made without its dense head. Make it with use_aux_head=True"),
        (lambda: timm.create_model("repvit_m1"), r"The head of RepVit has batch norm \(head.head.bn"),
        (lambda: torch.nn.Linear(2, 2), "Linear has no forward_features and forward_head"),
    ],
)
def test_a_model_without_scores_of_tokens_is_an_error(make: Any, words: str) -> None:
    with pytest.raises(UnsupportedModel, match=words):
        with_token_scores(make(), (2, 4))


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_mixup_blends_the_labels_of_tokens(mode: str) -> None:
    labels, values = torch.rand(6, C, 2, 3).softmax(1), torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    images = values[:, None, None, None].expand(6, 3, 17, 11).clone()
    random_seed(5)
    mixed, soft = Mixup(mixup_alpha=0.8, mode=mode, num_classes=C, label_smoothing=0.1)(images, labels)
    own = ((mixed.mean((1, 2, 3)) - values.flip(0)) / (values - values.flip(0)))[:, None, None, None]
    smooth = labels * 0.9 + 0.1 / C
    torch.testing.assert_close(soft, smooth * own + smooth.flip(0) * (1 - own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
def test_mixup_while_collating_blends_the_labels_of_tokens(mode: str) -> None:
    labels, values = torch.rand(6, C, 2, 3).softmax(1), torch.tensor([0.0, 40.0, 80.0, 120.0, 160.0, 255.0])
    images = [np.full((3, 17, 11), value, np.uint8) for value in values]
    random_seed(5)
    mixer = FastCollateMixup(mixup_alpha=0.8, mode=mode, num_classes=C, label_smoothing=0.0)
    mixed, soft = mixer(list(zip(images, labels, strict=True)))
    count = len(mixed)
    others = values.flip(0)[:count]
    own = ((mixed.float().mean((1, 2, 3)) - others) / (values[:count] - others))[:, None, None, None]
    expected = labels[:count] * own + labels.flip(0)[:count] * (1 - own)
    torch.testing.assert_close(soft.float(), expected, atol=0.01, rtol=0)  # the pixels are rounded


CUTMIX = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": C}


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("seed", range(4))
def test_cutmix_pastes_tokens_by_the_share_of_each_in_the_patch(mode: str, seed: int) -> None:
    labels, values = torch.rand(6, C, 2, 3).softmax(1), torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    images = values[:, None, None, None].expand(6, 3, 16, 12).clone()
    random_seed(seed)
    mixed, soft = Mixup(**CUTMIX, mode=mode, label_smoothing=0.1)(images, labels)
    others = values.flip(0)[:, None, None, None]
    theirs = (mixed[:, :1] - values[:, None, None, None]) / (others - values[:, None, None, None])
    share = torch.nn.functional.adaptive_avg_pool2d(theirs, (2, 3))
    smooth = labels * 0.9 + 0.1 / C
    torch.testing.assert_close(soft, smooth.flip(0) * share + smooth * (1 - share), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
@pytest.mark.parametrize("seed", range(4))
def test_cutmix_while_collating_pastes_tokens_by_the_share_of_each(mode: str, seed: int) -> None:
    labels, values = torch.rand(6, C, 2, 3).softmax(1), torch.tensor([0.0, 40.0, 80.0, 120.0, 160.0, 255.0])
    images = [np.full((3, 16, 12), value, np.uint8) for value in values]
    random_seed(seed)
    mixer = FastCollateMixup(**CUTMIX, mode=mode, label_smoothing=0.0)
    mixed, soft = mixer(list(zip(images, labels, strict=True)))
    count = len(mixed)
    own, others = (each[:count, None, None, None] for each in (values, values.flip(0)))
    share = torch.nn.functional.adaptive_avg_pool2d((mixed.float()[:, :1] - own) / (others - own), (2, 3))
    expected = labels[:count] * (1 - share) + labels.flip(0)[:count] * share
    torch.testing.assert_close(soft.float(), expected, atol=0.01, rtol=0)  # the pixels of MixUp are rounded


@pytest.mark.parametrize("kind", [Mixup, FastCollateMixup])
def test_labels_of_tokens_change_no_pixel_and_no_draw(kind: Any) -> None:
    labels, images = torch.rand(6, C, 2, 3).softmax(1), torch.rand(6, 3, 16, 12)
    results = []
    for target in (labels, labels[..., 0, 0]):
        random_seed(2)
        if kind is Mixup:
            pixels = Mixup(**CUTMIX)(images.clone(), target)[0]
        else:
            samples = [((image * 255).byte().numpy(), label) for image, label in zip(images, target, strict=True)]
            pixels = FastCollateMixup(**CUTMIX)(samples)[0]
        results.append((pixels, np.random.rand(), torch.rand(())))
    assert torch.equal(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]


def test_a_mixer_of_another_order_is_refused_for_tokens() -> None:
    rows = torch.rand(4, C, 2, 3)
    with pytest.raises(TypeError, match="mixes images in another order than those known"):
        mixed_tokens(rows, torch.eye(4) / 2 + torch.eye(4).roll(1, 1) / 2, torch.zeros(4, 8, 8))


def test_timms_loader_gives_each_token_the_label_of_its_pixels(painted: Painted) -> None:
    pooling = LabelPooling((2, 3))
    dataset = LabelMapDataset(create_dataset("", str(painted.root), is_training=True), painted.store, pooling=pooling)
    loader = create_loader(
        dataset, (3, 80, 120), 7, is_training=True, hflip=0.5, vflip=0.5, color_jitter=None, mean=(0, 0, 0),
        std=(1, 1, 1), interpolation="bilinear", device=torch.device("cpu"), num_workers=0,
        persistent_workers=False,
    )  # fmt: skip
    errors = [
        label_error(image[:, 40 * i : 40 * i + 40, 40 * j : 40 * j + 40], label[:, i, j])
        for images, labels in loader
        for image, label in zip(images, labels, strict=True)
        for i in range(2)
        for j in range(3)
    ]
    assert len(errors) == 6 * 14
    assert sum(errors) / len(errors) < WRONG
