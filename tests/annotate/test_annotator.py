"""Annotator: names, weights, sizes and scores."""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.testing import assert_close
from torchvision.transforms import Compose, Normalize, ToTensor

from tests.annotate.models import FourCorners, make_images, make_model
from torchrelabel.annotate.annotator import Annotator, weights_digest
from torchrelabel.annotate.checkpoints import load_checkpoint
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


def plain(state: dict[str, Tensor]) -> Any:
    return state


def of_timms_training_script(state: dict[str, Tensor]) -> Any:
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": zeros, "state_dict_ema": state}


def of_data_parallel(state: dict[str, Tensor]) -> Any:
    return {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}}


def compiled(state: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"_orig_mod.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize("saved_as", [plain, of_timms_training_script, of_data_parallel, compiled])
def test_a_checkpoint_brings_its_weights_and_number_of_classes(tmp_path: Path, saved_as: Any) -> None:
    if saved_as is of_timms_training_script and not hasattr(torch.serialization, "safe_globals"):
        pytest.skip("torch 2.4 cannot allow a Namespace in one call only")
    model = make_model("resnet10t", num_classes=7)
    torch.save(saved_as(model.state_dict()), tmp_path / "weights.pth")
    annotator = Annotator.from_timm("resnet10t", checkpoint=tmp_path / "weights.pth", device="cpu")
    assert (annotator.num_classes, annotator.weights, annotator.name) == (7, "checkpoint", "resnet10t")
    assert annotator.weights_sha256 == weights_digest(model)


def test_a_safetensors_checkpoint_is_read(tmp_path: Path) -> None:
    model = make_model("resnet10t", num_classes=7)
    safetensors.torch.save_file(model.state_dict(), tmp_path / "weights.safetensors")
    annotator = Annotator.from_timm("resnet10t", checkpoint=tmp_path / "weights.safetensors", device="cpu")
    assert annotator.weights_sha256 == weights_digest(model)


def test_a_checkpoint_of_another_size_gets_its_position_embedding_resized(tmp_path: Path) -> None:
    torch.save(make_model("vit_tiny_patch16_224", num_classes=7).state_dict(), tmp_path / "weights.pth")
    annotator = Annotator.from_timm(
        "vit_tiny_patch16_224", checkpoint=tmp_path / "weights.pth", image_size=96, device="cpu"
    )
    assert annotator.grid == (6, 6)


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(tmp_path: Path) -> None:
    torch.save(make_model("mobilenetv2_050").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(TorchRelabelError, match=r"(?s)weights.pth' does not fit resnet10t:.*missing: .* more\nGive"):
        Annotator.from_timm("resnet10t", checkpoint=tmp_path / "weights.pth", device="cpu")


def test_a_checkpoint_with_another_number_of_classes_is_refused_with_both(tmp_path: Path) -> None:
    torch.save(make_model("resnet10t", num_classes=7).state_dict(), tmp_path / "weights.pth")
    with pytest.raises(TorchRelabelError, match=r"fc.weight: \[7, \d+\] in the checkpoint, \[9, \d+\] in the model"):
        Annotator.from_timm("resnet10t", checkpoint=tmp_path / "weights.pth", num_classes=9, device="cpu")


class Evil:
    """Whoever unpickles it without care runs code."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("code of the checkpoint ran",))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (Evil(), r"holds more than tensors, or is no checkpoint, and is not opened.*torch.save\(model.state_dict"),
        ([torch.ones(1)], r"holds no state dict, but list. It must be one, or hold one under state_dict_ema"),
        ({"epoch": 3}, r"holds no state dict, but the keys \['epoch'\]"),
    ],
    ids=["code", "list", "no weights"],
)
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "weights.pth")
    with pytest.raises(TorchRelabelError, match=words):
        load_checkpoint(tmp_path / "weights.pth")


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_damaged_checkpoint_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00damaged\x00" * 5)
    with pytest.raises(TorchRelabelError, match=rf"The checkpoint '.*{name}'"):
        load_checkpoint(tmp_path / name)


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint '.*nothing.pth'"):
        load_checkpoint(tmp_path / "nothing.pth")


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
