"""The code of docs/annotators.md for models that are not timm's, run as it stands there."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from tests.annotate.models import make_folder, make_images
from torchrelabel import LabelStore
from torchrelabel.annotate import Annotator

PAGE = Path(__file__).parents[2] / "docs" / "annotators.md"
TORCHVISIONS, TRANSFORMERS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def test_a_model_of_torchvisions_annotates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_folder(tmp_path / "birds", ["a/x.png", "b/y.png"])
    monkeypatch.chdir(tmp_path)
    exec(TORCHVISIONS.replace("model=annotator)", "model=annotator, workers=0, progress=False)"), {})
    header = LabelStore("birds.lmdb").header
    assert (header.annotator["model"], header.num_classes, header.grid) == ("resnet18", 40, (7, 7))


def test_models_of_transformers_are_annotators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="transformers is not installed: its code was not run")
        sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        vit = transformers.ViTForImageClassification(transformers.ViTConfig(num_labels=5, **sizes))
        shape = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1], "num_labels": 5}
        resnet = transformers.ResNetForImageClassification(transformers.ResNetConfig(**shape))
        monkeypatch.chdir(tmp_path)
        vit.save_pretrained("vit")
        resnet.save_pretrained("resnet")
        built: list[Annotator] = []
        code = TRANSFORMERS.replace("annotator = Annotator.from_model(", "built += [Annotator.from_model(")
        exec(re.sub(r"^\)$", ")]", code, flags=re.MULTILINE), {"Annotator": Annotator, "built": built})
    of_resnet, of_vit = built
    images = make_images(1, 224)
    with torch.no_grad():
        expected = resnet.eval()(images).logits
    assert_close(of_resnet(images).mean(dim=(2, 3)).cpu(), expected, rtol=1e-4, atol=1e-5)
    assert (of_resnet.grid, of_resnet.name, len(of_resnet.class_names or ())) == (
        (7, 7),
        "ResNetForImageClassification",
        5,
    )
    assert (of_vit.grid, of_vit.head.prefix_tokens, of_vit.num_classes) == ((14, 14), 1, 5)
    with torch.no_grad():
        assert_close(of_vit.whole(images).cpu(), vit.eval()(images).logits)
