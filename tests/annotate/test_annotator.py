"""Annotator: names, weights, sizes and scores."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.annotate.models import FourCorners, make_images, make_model
from torchrelabel.annotate import timm_models
from torchrelabel.annotate.annotator import Annotator, weights_digest
from torchrelabel.annotate.timm_models import canonical_name
from torchrelabel.errors import TorchRelabelError, UnsupportedModel


def make_annotator(model: nn.Module | None = None, size: int = 12, **options: Any) -> Annotator:
    settings: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "device": "cpu"} | options
    return Annotator(
        model or FourCorners(), name="four", image_size=size, interpolation="bilinear", weights="ours", **settings
    )


def test_the_old_name_of_the_papers_annotator_means_todays_without_a_warning() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert canonical_name("tf_efficientnet_l2_ns_475") == "tf_efficientnet_l2.ns_jft_in1k_475"


def test_an_unknown_model_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"knows no model 'resnet5O'. Nearest: .*resnet50"):
        canonical_name("resnet5O")


def test_an_unknown_tag_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ValueError, match=r"resnet50 has no weights called 'nope'. It has .*resnet50.a1_in1k"):
        canonical_name("resnet50.nope")


def test_preprocessing_is_the_models_own() -> None:
    annotator = Annotator.from_timm("vit_tiny_patch16_224", pretrained=False, device="cpu")
    config = timm.create_model("vit_tiny_patch16_224").pretrained_cfg
    assert annotator.mean == tuple(config["mean"])
    assert annotator.std == tuple(config["std"])
    assert annotator.interpolation == config["interpolation"]
    assert annotator.image_size == config["input_size"][1]


def test_statistics_and_interpolation_of_another_training_take_the_place_of_the_models_own() -> None:
    settings: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "lanczos"}
    annotator = Annotator.from_timm("resnet10t", pretrained=False, device="cpu", **settings)
    description = annotator.description()
    assert {name: description[name] for name in settings} == {
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "interpolation": "lanczos",
    }
    white = annotator.normalise(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8))
    assert_close(white.flatten(), torch.tensor([0.9 / 0.4, 0.8 / 0.5, 0.7 / 0.6]))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mean": (0.5,)}, r"mean must be three numbers from 0 to 1, .* got 0.5\."),
        ({"mean": (0.5, float("nan"), 0.5)}, r"mean must be three numbers from 0 to 1, .* got 0.5 nan 0.5\."),
        ({"mean": (123.7, 116.3, 103.5)}, r"three numbers from 0 to 1, as for images in 0..1, got 123.7 116.3 103.5\."),
        ({"std": (0.5, 0.5, 0.0)}, r"std must be three numbers above 0 and up to 1, .* got 0.5 0.5 0.0\."),
        ({"interpolation": "cubic"}, r"interpolation must be one of nearest, bilinear, .*got 'cubic'"),
    ],
)
def test_statistics_that_cannot_be_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Annotator.from_timm("resnet10t", pretrained=False, device="cpu", **settings)


@pytest.mark.parametrize(("name", "grid"), [("resnet10t", (3, 3)), ("vit_tiny_patch16_224", (6, 6))])
def test_another_image_size_changes_the_grid(name: str, grid: tuple[int, int]) -> None:
    annotator = Annotator.from_timm(name, pretrained=False, image_size=96, device="cpu")
    assert annotator.grid == grid
    assert annotator(make_images(2, 96)).shape == (2, 1000, *grid)


def test_a_size_that_the_model_cannot_take_is_refused() -> None:
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 .* 50 x 50 px"):
        Annotator.from_timm("vit_tiny_patch16_224", pretrained=False, image_size=50, device="cpu")


def test_a_size_of_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match=r"image_size must be a number of pixels, 1 or more, got 0"):
        Annotator.from_timm("resnet10t", pretrained=False, image_size=0)


def test_random_weights_are_the_same_every_time_and_leave_the_callers_random_numbers_alone() -> None:
    first = Annotator.from_timm("resnet10t", pretrained=False, device="cpu")
    torch.manual_seed(1)
    state = torch.get_rng_state()
    second = Annotator.from_timm("resnet10t", pretrained=False, device="cpu")
    assert first.weights_sha256 == second.weights_sha256
    assert first.weights == "random"
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_cannot_be_fetched_are_an_error_that_says_how_to_bring_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("cannot reach huggingface.co")

    monkeypatch.setattr(timm_models, "_hub_answers", lambda: True)
    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(TorchRelabelError) as caught:
        Annotator.from_timm("resnet10t", device="cpu")
    message = str(caught.value)
    for part in ("resnet10t", "cannot reach", "--checkpoint", "HF_HUB_CACHE", "--no-pretrained"):
        assert part in message


def test_another_number_of_classes_than_the_weights_have_is_refused() -> None:
    with pytest.raises(ValueError, match=r"trained for 1000 classes, so with num_classes=7 its classifier would be"):
        Annotator.from_timm("resnet10t", num_classes=7)


@pytest.mark.parametrize("num_classes", [-3, 0])
def test_less_than_one_class_is_refused(num_classes: int) -> None:
    with pytest.raises(ValueError, match=rf"num_classes must be 1 or more, got {num_classes}\."):
        Annotator.from_timm("resnet10t", pretrained=False, num_classes=num_classes, device="cpu")


def test_a_model_without_classifier_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"vit_small_patch14_dinov2 has no classifier"):
        Annotator.from_timm("vit_small_patch14_dinov2", pretrained=False, image_size=28, device="cpu")


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ValueError, match="There is no device 'bogus'"):
        Annotator.from_timm("resnet10t", pretrained=False, device="bogus")


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_is_refused_where_there_is_none() -> None:
    with pytest.raises(ValueError, match="'cuda:0' was asked for, but this machine has no usable CUDA"):
        Annotator.from_timm("resnet10t", pretrained=False, device="cuda:0")


def test_a_checkpoint_of_another_size_gets_its_position_embedding_resized(tmp_path: Path) -> None:
    torch.save(make_model("vit_tiny_patch16_224", num_classes=7).state_dict(), tmp_path / "weights.pth")
    annotator = Annotator.from_timm(
        "vit_tiny_patch16_224", checkpoint=tmp_path / "weights.pth", image_size=96, device="cpu"
    )
    assert annotator.grid == (6, 6)


def test_the_digest_of_the_weights_notices_a_name_a_type_a_shape_and_a_bit() -> None:
    def digest(**tensors: Tensor) -> str:
        module = nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    zeros = torch.zeros(2, 3)
    same = digest(a=zeros, b=torch.tensor(1))
    assert same == digest(b=torch.tensor(1), a=zeros.t().contiguous().t())
    one_bit = zeros.clone()
    one_bit[1, 2] = -0.0
    others = [
        digest(c=zeros, b=torch.tensor(1)),
        digest(a=zeros.int(), b=torch.tensor(1)),
        digest(a=zeros.reshape(3, 2), b=torch.tensor(1)),
        digest(a=one_bit, b=torch.tensor(1)),
    ]
    assert len({same, *others}) == 5


def test_the_description_holds_plain_values_only() -> None:
    description = make_annotator().description()
    assert description["model"] == "four"
    assert description["resize"] == "squash"
    assert {type(value) for value in description.values()} <= {str, int, list}


def test_normalising_on_the_device_is_totensor_and_normalize() -> None:
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    expected = Compose([ToTensor(), Normalize(mean, std)])(Image.fromarray(pixels))
    annotator = make_annotator(mean=mean, std=std)
    assert_close(annotator.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])[0], expected)


@pytest.mark.parametrize("shape", [(1, 3, 12, 11), (1, 1, 12, 12), (3, 12, 12)])
def test_images_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"four takes images \[N, 3, 12, 12\], got \[{', '.join(map(str, shape))}\]"):
        make_annotator()(torch.zeros(shape))


def test_pixels_that_were_not_normalised_are_refused() -> None:
    with pytest.raises(ValueError, match=r"takes normalised images, got torch.uint8; call normalise\(\)"):
        make_annotator()(torch.zeros(1, 3, 12, 12, dtype=torch.uint8))


def test_top_scores_and_residual_are_those_of_the_dense_logits() -> None:
    annotator = make_annotator(make_model("resnet10t", num_classes=9), size=96)
    images = make_images(2, 96)
    top = annotator.top_scores(images, 4)
    assert top.residual is not None
    dense = annotator(images).double().sort(dim=1, descending=True)
    assert_close(top.scores, dense.values[:, :4].float())
    assert_close(top.classes.long(), dense.indices[:, :4])
    assert_close(top.residual.double(), dense.values[:, 4:].exp().sum(dim=1).log(), rtol=1e-5, atol=1e-5)


def test_the_residual_of_large_logits_does_not_overflow() -> None:
    model = FourCorners()
    model.gain.data.fill_(1000)
    residual = make_annotator(model).top_scores(torch.ones(1, 3, 12, 12), 1).residual
    assert residual is not None
    assert_close(residual, torch.full((1, 3, 3), 1000 + float(np.log(2))))


@pytest.mark.parametrize(("k", "asked"), [(4, True), (2, False)])
def test_there_is_no_residual_if_all_classes_are_kept_or_it_was_not_asked_for(k: int, asked: bool) -> None:
    assert make_annotator().top_scores(torch.ones(1, 3, 12, 12), k, residual=asked).residual is None


def test_half_precision_gives_float32_logits_near_the_full_ones() -> None:
    model = make_model("resnet10t", num_classes=9)
    images = make_images(2, 96)
    full = make_annotator(model, size=96)(images)
    half = make_annotator(model, size=96, amp=True)(images)
    assert half.dtype == torch.float32
    assert not torch.equal(half, full)
    assert_close(half, full, rtol=0.05, atol=0.05 * float(full.abs().max()))


def test_half_precision_gives_float32_scores_of_enlarged_images() -> None:
    """The cells of an enlarged image were averaged in bfloat16, which NumPy does not know."""
    annotator = Annotator.from_timm("resnet10t", pretrained=False, image_size=64, device="cpu", enlarge=1.5, amp=True)
    top = annotator.top_scores(torch.randn(2, 3, 64, 64), 3, enlarged=torch.randn(2, 3, 96, 96))
    assert top.residual is not None
    assert (top.scores.dtype, top.residual.dtype, top.image_scores.dtype) == (torch.float32,) * 3


def test_the_callers_model_keeps_its_gradients() -> None:
    """It used to be left with requires_grad=False, and to train on without learning."""
    model = FourCorners()
    annotator = make_annotator(model)
    assert model.gain.requires_grad
    images = torch.ones(1, 3, 12, 12)
    assert not annotator(images).requires_grad
    assert not annotator.whole(images).requires_grad
    assert not annotator.top_scores(images, 2).scores.requires_grad


IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "device": "cpu"}


def torchvisions_resnet() -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(num_classes=7)


def by_modules(model: Any) -> dict[str, Any]:
    return {
        "features": nn.Sequential(*list(model.children())[:-2]),
        "head": nn.Sequential(model.avgpool, nn.Flatten(1), model.fc),
    }


def by_functions(model: Any) -> dict[str, Any]:
    features = nn.Sequential(*list(model.children())[:-2])
    return {"model": model, "features": lambda x: features(x), "head": lambda x: model.fc(x.mean(dim=(2, 3)))}


@pytest.mark.parametrize("parts", [by_modules, by_functions])
def test_a_model_of_torchvisions_is_an_annotator(parts: Any) -> None:
    model = torchvisions_resnet()
    annotator = Annotator.from_model(**parts(model), image_size=96, name="resnet18", **IMAGENET)
    assert (annotator.name, annotator.num_classes, annotator.grid) == ("resnet18", 7, (3, 3))
    assert annotator.head.commutes
    images = make_images(2, 96)
    with torch.no_grad():
        assert_close(annotator(images).mean(dim=(2, 3)), model.eval()(images), rtol=1e-4, atol=1e-5)
    assert annotator.enlarged(2).map_size == 192


def test_the_weights_of_a_given_model_are_in_its_digest() -> None:
    model = torchvisions_resnet()
    build = {"image_size": 64, **IMAGENET}
    before = Annotator.from_model(**by_functions(model), **build).weights_sha256
    model.fc.bias.data[3] += 1
    assert Annotator.from_model(**by_functions(model), **build).weights_sha256 != before


class PatchTokens(nn.Module):
    """A class token, then the means of patches of 4 x 4 px; the head reads the first token."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(3, 5)

    def tokens(self, images: Tensor) -> Tensor:
        patches = nn.functional.avg_pool2d(images, 4).flatten(2).transpose(1, 2)
        return torch.cat([patches.mean(1, keepdim=True), patches], 1)


def test_a_model_of_tokens_of_ones_own_is_an_annotator() -> None:
    model = PatchTokens()
    annotator = Annotator.from_model(
        features=model.tokens,
        head=lambda tokens: model.classifier(tokens[:, 0]),
        model=model,
        prefix_tokens=1,
        image_size=12,
        class_names=list("abcde"),
        **IMAGENET,
    )
    assert (annotator.name, annotator.grid, annotator.num_classes) == ("PatchTokens", (3, 3), 5)
    images = make_images(2, 12)
    expected = model.classifier(nn.functional.avg_pool2d(images, 4).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
    assert_close(annotator(images), expected)


def test_the_model_of_functions_must_be_given() -> None:
    with pytest.raises(
        TypeError, match=r"their weights are unknown\. Give the module that they belong to, too: model="
    ):
        Annotator.from_model(features=lambda x: x, head=nn.Flatten(), image_size=12, **IMAGENET)


def test_class_names_of_a_given_model_must_be_as_many_as_its_classes() -> None:
    with pytest.raises(ValueError, match="resnet18 has 7 classes, got 2 class names"):
        Annotator.from_model(
            **by_modules(torchvisions_resnet()), image_size=64, name="resnet18", class_names=["a", "b"], **IMAGENET
        )


def test_a_module_of_another_kind_is_told_how_to_become_an_annotator() -> None:
    with pytest.raises(UnsupportedModel, match=r"ResNet has no forward_features .* Annotator.from_model\(features="):
        make_annotator(torchvisions_resnet(), 64)


def test_a_copy_on_another_device_says_the_same_and_shares_no_weights() -> None:
    annotator = Annotator.from_timm("resnet10t", pretrained=False, image_size=64, device="cpu", enlarge=1.5)
    copied = annotator.on("cpu")
    images, enlarged = torch.randn(2, 3, 64, 64), torch.randn(2, 3, 96, 96)
    ours, theirs = (each.top_scores(images, 3, enlarged=enlarged) for each in (annotator, copied))
    assert copied.description() == annotator.description()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True) if a is not None and b is not None)
    pointers = {parameter.data_ptr() for parameter in annotator.head.model.parameters()}
    assert not pointers & {parameter.data_ptr() for parameter in copied.head.model.parameters()}
