"""Names and files, and the classifiers that they mean: the scores are those of the libraries' own code."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_model_data_config
from torch.testing import assert_close

from tests.annotate.models import make_model
from tests.evaluate.painted import SIZE, Grey, classifier
from torchrelabel.annotate.timm_models import BuiltModel
from torchrelabel.errors import TorchRelabelError, UnsupportedModel
from torchrelabel.evaluate.classifier import Classifier
from torchrelabel.evaluate.loading import load_classifier


def photograph(width: int = 171, height: int = 110) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)


def scores_of(model: Classifier, image: Image.Image) -> torch.Tensor:
    with torch.no_grad():
        return model((model.transform(image).float() / 255)[None])


@pytest.mark.parametrize(
    "name, options", [("mobilenetv3_small_050", {}), ("tf_efficientnet_lite0", {"num_classes": 7})]
)
def test_a_model_of_timms_sees_what_timms_validation_shows_it(tmp_path: Path, name: str, options: Any) -> None:
    model = make_model(name, **options)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "w.pth")
    ours = load_classifier(name, tmp_path / "w.pth", image_size=64, device="cpu")
    assert ours.num_classes == options.get("num_classes", 1000)
    config = {**resolve_model_data_config(model), "input_size": (3, 64, 64)}
    theirs = create_transform(**config, is_training=False)
    with torch.no_grad():
        assert_close(scores_of(ours, photograph()), model(theirs(photograph())[None]), atol=1e-5, rtol=1e-5)


def test_timms_weights_are_shown_images_of_the_size_that_timm_reports_and_a_checkpoint_those_it_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("resnet10t")
    assert model.pretrained_cfg["input_size"] == (3, 176, 176) and model.pretrained_cfg["test_input_size"] == (
        3,
        224,
        224,
    )
    torch.save(model.state_dict(), tmp_path / "w.pth")
    assert load_classifier("resnet10t", tmp_path / "w.pth", device="cpu").image_size == 176
    built = BuiltModel(model, "resnet10t.c3_in1k", "pretrained", None)
    monkeypatch.setattr("torchrelabel.evaluate.loading.build_timm", lambda *_, **__: built)
    assert load_classifier("resnet10t", device="cpu").image_size == 224


def test_a_model_of_torchvisions_sees_what_its_preset_shows_it(tmp_path: Path) -> None:
    model = torchvision.models.shufflenet_v2_x0_5(num_classes=6).eval()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    ours = load_classifier("shufflenet_v2_x0_5", tmp_path / "w.pth", device="cpu")
    assert ours.num_classes == 6
    preset = torchvision.models.ShuffleNet_V2_X0_5_Weights.IMAGENET1K_V1.transforms()
    image = photograph(301, 410)
    with torch.no_grad():
        assert_close(scores_of(ours, image), model(preset(image)[None]), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["resnet10t", "torchvision:shufflenet_v2_x0_5"])
def test_a_prefix_of_the_names_in_a_checkpoint_is_dropped_and_that_is_said(tmp_path: Path, name: str) -> None:
    model = (
        torchvision.models.shufflenet_v2_x0_5(num_classes=6)
        if name.startswith("torchvision")
        else make_model(name, num_classes=6)
    )
    torch.save({"state_dict": {f"net.{key}": value for key, value in model.state_dict().items()}}, tmp_path / "w.pth")
    ours = load_classifier(name, tmp_path / "w.pth", image_size=32, device="cpu")
    assert ours.num_classes == 6
    assert "begin with 'net.', which was dropped" in ours.notes[0]


def test_a_name_that_both_libraries_know_is_timms_unless_torchvision_is_said() -> None:
    assert timm.is_model("resnet18")
    ours = load_classifier("resnet18", pretrained=False, image_size=32, device="cpu")
    theirs = load_classifier("torchvision:resnet18", pretrained=False, image_size=32, device="cpu")
    assert (ours.name, theirs.name, theirs.weights) == ("resnet18", "torchvision:resnet18", "random")


def test_what_is_given_comes_before_what_the_model_says() -> None:
    given: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "bicubic"}
    for name in ("mobilenetv3_small_050", "torchvision:shufflenet_v2_x0_5"):
        ours = load_classifier(name, pretrained=False, image_size=48, crop_pct=0.5, device="cpu", **given)
        assert (ours.image_size, ours.mean, ours.std) == (48, given["mean"], given["std"])
        # Half of the shorter side: the corners of the crop are a quarter away from its ends.
        seen = ours.transform(photograph(171, 110)).float()
        expected = np.asarray(photograph(171, 110).resize((149, 96), Image.Resampling.BICUBIC), np.float32)
        assert_close(seen, torch.from_numpy(expected[24:72, 50:98].copy()).permute(2, 0, 1), atol=3, rtol=0)


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Grey, exported for batches of any size, and of two."""
    folder = tmp_path_factory.mktemp("exports")
    images = torch.rand(2, 3, SIZE, SIZE)
    shapes = ({0: torch.export.Dim("n", min=1, max=512)},)
    torch.export.save(torch.export.export(Grey(), (images,), dynamic_shapes=shapes), folder / "any.pt2")
    torch.export.save(torch.export.export(Grey(), (images,)), folder / "two.pt2")
    return folder


@pytest.mark.parametrize("name, batch", [("any.pt2", None), ("two.pt2", 2)])
def test_an_exported_program_gives_the_scores_of_its_model(exports: Path, name: str, batch: int | None) -> None:
    ours = load_classifier(exports / name, mean=(0, 0, 0), std=(1, 1, 1), device="cpu")
    assert (ours.num_classes, ours.image_size, ours.batch) == (40, SIZE, batch)
    images = torch.rand(1, 3, SIZE, SIZE, requires_grad=True)
    scores = ours(images)
    assert_close(scores, classifier(Grey())(images))
    (gradient,) = torch.autograd.grad(scores[0, 3], images)
    assert gradient.abs().sum() > 0


def test_an_onnx_file_gives_the_scores_of_its_model(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    weights = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    helper = onnx.helper
    graph = helper.make_graph(
        [
            helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
            helper.make_node("Flatten", ["pooled"], ["flat"]),
            helper.make_node("MatMul", ["flat", "w"], ["scores"]),
        ],
        "five",
        [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", onnx.TensorProto.FLOAT, ["n", 5])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), tmp_path / "m.onnx")
    ours = load_classifier(tmp_path / "m.onnx", mean=(0, 0, 0), std=(1, 1, 1), device="cpu")
    assert (ours.num_classes, ours.image_size, ours.batch, ours.differentiable) == (5, SIZE, None, False)
    images = torch.rand(2, 3, SIZE, SIZE)
    assert_close(ours(images), images.mean((2, 3)) @ torch.from_numpy(weights))


def test_without_onnxruntime_the_command_that_brings_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.onnx").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"^ONNX files need onnxruntime: pip install 'torchrelabel\[evaluate\]'$"):
        load_classifier(tmp_path / "m.onnx")


def test_a_file_that_is_no_onnx_is_an_error(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    with pytest.raises(TorchRelabelError, match=r"onnxruntime cannot read .*m\.onnx"):
        load_classifier(tmp_path / "m.onnx", device="cpu")


def test_an_export_of_one_size_takes_no_other(exports: Path) -> None:
    with pytest.raises(ValueError, match="was exported for 8 px, and image_size is 16"):
        load_classifier(exports / "any.pt2", image_size=16)


def test_an_export_brings_its_own_weights(exports: Path) -> None:
    with pytest.raises(ValueError, match=r"any\.pt2 brings its own weights"):
        load_classifier(exports / "any.pt2", "w.pth")


def test_a_file_that_is_no_export_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"nothing")
    with pytest.raises(TorchRelabelError, match=r"torch\.export\.load cannot read .*m\.pt2"):
        load_classifier(tmp_path / "m.pt2")
    with pytest.raises(FileNotFoundError, match=r"There is no exported model 'none\.pt2'"):
        load_classifier("none.pt2")


def test_a_checkpoint_of_another_model_is_an_error_that_says_what_differs(tmp_path: Path) -> None:
    torch.save(torchvision.models.shufflenet_v2_x1_0(num_classes=6).state_dict(), tmp_path / "w.pth")
    with pytest.raises(TorchRelabelError, match=r"does not fit shufflenet_v2_x0_5\."):
        load_classifier("shufflenet_v2_x0_5", tmp_path / "w.pth")


def test_a_name_that_nobody_knows_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"knows no model 'resnet5o'\. Nearest: resnet5"):
        load_classifier("resnet5o")
    with pytest.raises(ValueError, match=r"torchvision has no classifier 'resnet5o'\. Nearest: resnet50"):
        load_classifier("torchvision:resnet5o")
    with pytest.raises(
        ValueError, match=r"no weights called 'V9' in torchvision\. It has IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        load_classifier("torchvision:resnet50.V9")


def test_a_model_that_gives_no_scores_is_no_classifier() -> None:
    with pytest.raises(UnsupportedModel, match=r"must give scores \[N, C\], and its output is shape \[1, 3, 8, 8\]"):
        classifier(torch.nn.Identity())


def test_a_model_that_cannot_take_the_size_is_said_so() -> None:
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(10, 2))
    with pytest.raises(UnsupportedModel, match=r"cannot take an image of 8 x 8 px: .*Give its size"):
        classifier(model)
