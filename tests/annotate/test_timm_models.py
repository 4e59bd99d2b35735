"""timm's models by name: found here without the Hub, and no minute lost where the Hub is out of reach."""

from __future__ import annotations

import io
import json
import threading
import urllib.error
from email.message import Message
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch

from tests.annotate.models import make_model
from torchrelabel.annotate import timm_models
from torchrelabel.annotate.annotator import Annotator, weights_digest
from torchrelabel.annotate.timm_models import canonical_name
from torchrelabel.errors import TorchRelabelError


def never(*_: Any, **__: Any) -> None:
    pytest.fail("it should not have been called")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the Hub's, and a Hub that is out of reach."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(timm_models, "_hub_answers", lambda: False)
    return tmp_path / "hub"


def keep(cache: Path, repository: str, model: Any, **config: Any) -> None:
    """Put a model into the cache as the Hub's library does."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    snapshot = folder / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("abc")
    safetensors.torch.save_file(model.state_dict(), snapshot / "model.safetensors")
    if config:
        (snapshot / "config.json").write_text(json.dumps(config))


def test_weights_that_were_fetched_before_are_taken_without_asking_the_hub(cache: Path) -> None:
    model = make_model("resnet10t")
    keep(cache, "timm/resnet10t.c3_in1k", model)
    annotator = Annotator.from_timm("resnet10t", image_size=64, device="cpu")
    assert (annotator.name, annotator.weights) == ("resnet10t.c3_in1k", "pretrained")
    assert annotator.weights_sha256 == weights_digest(model)


def test_weights_that_are_not_here_are_not_asked_for_in_vain(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Hub's library retries for a minute."""
    monkeypatch.setattr(timm, "create_model", never)
    with pytest.raises(TorchRelabelError, match=r"timm/resnet10t.c3_in1k is not in the cache .* the Hub does not answ"):
        Annotator.from_timm("resnet10t", device="cpu")


@pytest.mark.skipif(not timm_models._reads_folders(), reason="this timm reads no folders")
def test_a_model_of_the_hub_that_was_fetched_before_is_built_from_there(cache: Path) -> None:
    model = make_model("resnet10t", num_classes=7)
    keep(
        cache, "owner/birds", model, architecture="resnet10t", num_classes=7, pretrained_cfg=dict(model.pretrained_cfg)
    )
    annotator = Annotator.from_timm("hf-hub:owner/birds", image_size=64, device="cpu")
    assert (annotator.name, annotator.num_classes) == ("hf-hub:owner/birds", 7)
    assert annotator.weights_sha256 == weights_digest(model)


@pytest.mark.parametrize(
    ("answer", "answers"),
    [
        (urllib.error.URLError("Name or service not known"), False),
        (TimeoutError("timed out"), False),
        (urllib.error.HTTPError("https://x", 403, "forbidden", Message(), io.BytesIO()), True),
        (urllib.error.URLError("certificate verify failed"), True),
    ],
)
def test_whether_the_hub_answers(monkeypatch: pytest.MonkeyPatch, answer: Exception, answers: bool) -> None:
    def answer_so(*_: Any, **__: Any) -> None:
        raise answer

    monkeypatch.setattr("urllib.request.urlopen", answer_so)
    monkeypatch.setattr(timm_models, "_SECONDS_FOR_AN_ANSWER", 1.0)
    assert timm_models._hub_answers() is answers


def test_a_name_that_is_looked_up_for_long_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    released = threading.Event()

    def look_up(*_: Any, **__: Any) -> None:
        released.wait(30)
        raise TimeoutError

    monkeypatch.setattr("urllib.request.urlopen", look_up)
    monkeypatch.setattr(timm_models, "_SECONDS_FOR_AN_ANSWER", 0.05)
    assert not timm_models._hub_answers()
    released.set()


@pytest.mark.skipif(not timm_models._reads_folders(), reason="this timm reads no folders")
def test_a_folder_that_timm_saved_is_an_annotator(tmp_path: Path) -> None:
    model = make_model("resnet10t", num_classes=7)
    timm.models.save_for_hf(model, str(tmp_path / "saved"), model_args={}, safe_serialization=True)
    annotator = Annotator.from_timm(f"local-dir:{tmp_path / 'saved'}", image_size=64, device="cpu")
    assert (annotator.num_classes, annotator.weights) == (7, "pretrained")
    assert annotator.weights_sha256 == weights_digest(model)


@pytest.mark.skipif(not timm_models._reads_folders(), reason="this timm reads no folders")
@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda folder: None, FileNotFoundError, r"There is no folder '.*there'\. Give the one that holds config.json"),
        (
            lambda folder: folder.mkdir(),
            FileNotFoundError,
            r"there' holds no config.json, .* Name the model and give the file",
        ),
    ],
)
def test_a_folder_without_a_model_is_refused(tmp_path: Path, make: Any, error: type[Exception], words: str) -> None:
    make(tmp_path / "there")
    with pytest.raises(error, match=words):
        canonical_name(f"local-dir:{tmp_path / 'there'}")


@pytest.mark.skipif(not timm_models._reads_folders(), reason="this timm reads no folders")
def test_a_folder_of_transformers_is_told_the_way_from_python(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["ResNetForImageClassification"]}))
    with pytest.raises(TorchRelabelError, match=r"timm cannot build a model from local-dir:.*Annotator.from_model\("):
        Annotator.from_timm(f"local-dir:{tmp_path}", device="cpu")


def test_a_timm_that_reads_no_folders_is_said_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(timm_models, "_reads_folders", lambda: False)
    with pytest.raises(ValueError, match=r"does not read models from folders \(local-dir:\). Install a newer timm"):
        canonical_name(f"local-dir:{tmp_path}")


def test_a_path_given_as_a_name_is_told_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"A folder with a model is given as local-dir:/.*, a file .* --checkpoint"):
        canonical_name(str(tmp_path))


def test_a_module_given_as_a_name_is_told_how_to_give_it() -> None:
    """It used to be "argument of type 'ResNet' is not iterable"."""
    with pytest.raises(TypeError, match=r"by timm's name of it, got a Linear\. Annotator.from_model\(features="):
        Annotator.from_timm(torch.nn.Linear(1, 1))  # type: ignore[arg-type]


def test_building_a_model_leaves_the_random_numbers_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.manual_seed would also have changed those of CUDA devices, which are not kept here."""
    monkeypatch.setattr(torch.cuda, "manual_seed_all", never)
    before = torch.get_rng_state()
    timm_models.create_model("resnet10t", pretrained=False, image_size=None, classes=2)
    assert torch.equal(torch.get_rng_state(), before)
