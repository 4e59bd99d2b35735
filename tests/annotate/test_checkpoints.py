"""Checkpoints: the weights are found wherever training scripts leave them, and nothing in them is run."""

from __future__ import annotations

import argparse
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from tests.annotate.models import make_model
from tests.shards import add
from torchrelabel.annotate.annotator import Annotator, weights_digest
from torchrelabel.annotate.checkpoints import load_checkpoint
from torchrelabel.errors import TorchRelabelError


def plain(state: dict[str, Tensor]) -> Any:
    return state


def of_timms_training_script(state: dict[str, Tensor]) -> Any:
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    return {"epoch": 3, "args": argparse.Namespace(lr=0.1), "state_dict": zeros, "state_dict_ema": state}


def of_data_parallel(state: dict[str, Tensor]) -> Any:
    return {"model": {f"module.{name}": value for name, value in state.items()}, "optimizer": {}}


def of_torchvisions_references(state: dict[str, Tensor]) -> Any:
    """With --model-ema: torch's AveragedModel, which counts."""
    averaged = {"n_averaged": torch.tensor(5), **{f"module.{name}": value for name, value in state.items()}}
    return {"model": {name: torch.zeros_like(value) for name, value in state.items()}, "model_ema": averaged}


def of_lightning(state: dict[str, Tensor]) -> Any:
    weights = {f"model.{name}": value for name, value in state.items()} | {"criterion.weight": torch.ones(7)}
    return {"state_dict": weights, "hyper_parameters": {"root": Path("here"), "best": np.float64(0.5)}}


def of_pytorchs_tutorial(state: dict[str, Tensor]) -> Any:
    return {"epoch": 3, "model_state_dict": {f"net.{name}": value for name, value in state.items()}, "loss": 0.1}


def beside_a_configuration(state: dict[str, Tensor]) -> Any:
    return {"model": {"name": "resnet10t", "depth": 10}, "weights": state}


def below_several_prefixes(state: dict[str, Tensor]) -> Any:
    return {f"module.learner.backbone.{name}": value for name, value in state.items()}


def compiled(state: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"_orig_mod.{name}": value for name, value in state.items()}}


@pytest.mark.parametrize(
    "saved_as",
    [
        plain,
        of_timms_training_script,
        of_torchvisions_references,
        of_lightning,
        of_pytorchs_tutorial,
        of_data_parallel,
        beside_a_configuration,
        below_several_prefixes,
        compiled,
    ],
)
def test_a_checkpoint_brings_its_weights_and_number_of_classes(tmp_path: Path, saved_as: Any) -> None:
    if saved_as in (of_timms_training_script, of_lightning) and not hasattr(torch.serialization, "safe_globals"):
        pytest.skip("torch 2.4 cannot allow a class in one call only")
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


def from_checkpoint(path: Path, **options: Any) -> Annotator:
    return Annotator.from_timm("resnet10t", checkpoint=path, image_size=64, device="cpu", **options)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "safe_globals"), reason="torch before 2.5 opens no such checkpoint"
)
def test_what_was_dropped_and_what_was_not_used_is_noted(tmp_path: Path) -> None:
    state = make_model("resnet10t", num_classes=7).state_dict()
    torch.save(of_lightning(state), tmp_path / "last.ckpt")
    assert from_checkpoint(tmp_path / "last.ckpt").notes == (
        "The names of the weights in the checkpoint begin with 'model.', which was dropped; what does not "
        "begin so (criterion.weight) was not used.",
    )
    torch.save(of_torchvisions_references(state), tmp_path / "model.pth")
    assert from_checkpoint(tmp_path / "model.pth").notes == (
        "The weights are the checkpoint's model_ema, not its model: --state-dict-key chooses.",
    )


def two_models(tmp_path: Path, classes: tuple[int, int] = (7, 7)) -> tuple[Path, Any]:
    """A checkpoint of Lightning's with a student and its teacher, and the teacher."""
    student, teacher = (make_model("resnet10t", num_classes=number) for number in classes)
    teacher.fc.weight.data.add_(1)
    weights = {
        f"{prefix}.{name}": value
        for prefix, model in (("student", student), ("teacher", teacher))
        for name, value in model.state_dict().items()
    }
    torch.save({"state_dict": weights}, tmp_path / "both.ckpt")
    return tmp_path / "both.ckpt", teacher


@pytest.mark.parametrize("classes", [(7, 7), (7, 5)])
def test_of_two_models_that_fit_neither_is_guessed(tmp_path: Path, classes: tuple[int, int]) -> None:
    path, teacher = two_models(tmp_path, classes)
    with pytest.raises(
        TorchRelabelError, match=r"several models, under 'student.', 'teacher.'.*--strip-prefix student."
    ):
        from_checkpoint(path)
    assert from_checkpoint(path, strip_prefix="teacher.").weights_sha256 == weights_digest(teacher)


def test_a_prefix_that_no_weight_has_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    path, _ = two_models(tmp_path)
    with pytest.raises(TorchRelabelError, match=r"begins with 'tutor.': they are student.conv1.0.weight, .* more"):
        from_checkpoint(path, strip_prefix="tutor.")


@pytest.mark.parametrize("key", ["ema", "averaged.weights"])
def test_weights_are_read_from_where_they_are_said_to_lie(tmp_path: Path, key: str) -> None:
    model = make_model("resnet10t", num_classes=7)
    zeros = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    kept = {"ema": model.state_dict()} if key == "ema" else {"averaged": {"weights": model.state_dict()}}
    torch.save({"state_dict": zeros, **kept}, tmp_path / "w.pth")
    assert from_checkpoint(tmp_path / "w.pth", state_dict_key=key).weights_sha256 == weights_digest(model)
    with pytest.raises(TorchRelabelError, match=r"has no 'emma', but the keys 'state_dict', '\w+'\. Give one of its"):
        from_checkpoint(tmp_path / "w.pth", state_dict_key="emma")


def test_where_weights_lie_is_refused_without_a_checkpoint() -> None:
    with pytest.raises(ValueError, match=r"strip_prefix='model.' says where weights lie in a checkpoint, and there is"):
        Annotator.from_timm("resnet10t", pretrained=False, strip_prefix="model.")


def test_a_checkpoint_of_another_model_is_refused_with_the_differences(tmp_path: Path) -> None:
    torch.save(make_model("mobilenetv2_050").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(
        TorchRelabelError,
        match=r"(?s)weights.pth' does not fit resnet10t\. .*  missing \(\d+\): "
        r"conv1.0.weight, .* and \d+ more\n  unexpected \(\d+\): conv_stem.weight, .* and \d+ more\n.*\nGive",
    ):
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
        (Evil(), r"holds objects of _pytest.*_Fail and is not opened, .* code\. Save .*torch.save\(model.state_dict"),
        ({"model": torch.nn.Linear(1, 1)}, r"holds objects of torch.nn.modules.linear.Linear and is not opened"),
        ([torch.ones(1)], r"holds no state dict, but list. It must be one, or hold one under state_dict_ema"),
        ({"epoch": 3}, r"holds no state dict, but the keys 'epoch'\. .*; say where with --state-dict-key"),
    ],
    ids=["code", "a whole model", "list", "no weights"],
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


def test_a_weight_that_was_changed_since_is_noticed(tmp_path: Path) -> None:
    """By the checksum in the file, which torch.load does not compare."""
    torch.save({"x": torch.zeros(1000)}, tmp_path / "weights.pth")
    content = bytearray((tmp_path / "weights.pth").read_bytes())
    content[content.index(bytes(4000)) + 2000] ^= 1
    (tmp_path / "weights.pth").write_bytes(content)
    assert torch.load(tmp_path / "weights.pth", weights_only=True)["x"].any()
    with pytest.raises(TorchRelabelError, match=r"weights.pth' cannot be read: the checksum of 'weights/data/0' in it"):
        load_checkpoint(tmp_path / "weights.pth")


def test_a_file_without_checksums_is_read(tmp_path: Path) -> None:
    without = getattr(torch.serialization, "set_crc32_options", None)
    if without is None:
        pytest.skip("torch before 2.6 always writes them")
    try:
        without(False)
        torch.save({"x": torch.ones(3)}, tmp_path / "weights.pth")
    finally:
        without(True)
    assert load_checkpoint(tmp_path / "weights.pth").state_dict["x"].tolist() == [1, 1, 1]


def test_a_file_that_would_unpack_to_more_than_it_has_is_not_unpacked(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "weights.pth")
    with zipfile.ZipFile(tmp_path / "weights.pth") as old:
        with zipfile.ZipFile(tmp_path / "packed.pth", "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                new.writestr(name, old.read(name))
    with pytest.raises(TorchRelabelError, match=r"packed.pth' cannot be read: its parts are compressed, which torch"):
        load_checkpoint(tmp_path / "packed.pth")


@pytest.mark.parametrize("part", ["version needed", "name"])
def test_an_archive_that_zipfile_refuses_oddly_is_refused_in_our_words(tmp_path: Path, part: str) -> None:
    torch.save({"x": torch.zeros(10)}, tmp_path / "weights.pth")
    content = bytearray((tmp_path / "weights.pth").read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + (6 if part == "version needed" else 50)] = 0xE3  # NotImplementedError, UnicodeDecodeError
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(TorchRelabelError, match=r"weights.pth' cannot be read: .* Copy it again, or give another"):
        load_checkpoint(tmp_path / "weights.pth")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"There is no checkpoint '.*nothing.pth'"):
        load_checkpoint(tmp_path / "nothing.pth")


def test_a_torchscript_file_is_refused_without_torchs_advice(tmp_path: Path) -> None:
    """torch advises weights_only=False, which would run the program in it."""
    with zipfile.ZipFile(tmp_path / "scripted.pt", "w") as archive:
        for name in ("data.pkl", "constants.pkl", "code/__torch__/net.py"):
            archive.writestr(f"scripted/{name}", "")
    with pytest.raises(TorchRelabelError, match=r"scripted.pt' is a TorchScript archive: .* not run here\.") as caught:
        load_checkpoint(tmp_path / "scripted.pt")
    assert "weights_only" not in str(caught.value)


@pytest.mark.parametrize("kind", ["a whole model", "tar, as torch before 0.2 wrote it"])
def test_torchs_advice_to_load_without_safety_is_not_passed_on(tmp_path: Path, kind: str) -> None:
    torch.save(torch.nn.Linear(1, 1), tmp_path / "whole.pth")
    if kind.startswith("tar"):
        with tarfile.open(tmp_path / "whole.pth", "w") as archive:
            for name in ("sys_info", "storages", "tensors", "pickle"):
                add(archive, name, b"\x80\x02}.")
    with pytest.raises(TorchRelabelError, match="is not opened, since loading it could run code") as caught:
        load_checkpoint(tmp_path / "whole.pth")
    assert "weights_only" not in str(caught.value)
    assert "safe_globals" not in str(caught.value)


def test_a_folder_given_as_a_checkpoint_is_told_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(TorchRelabelError, match=r"is a folder, and weights are a file.*--model local-dir:/"):
        load_checkpoint(tmp_path)
