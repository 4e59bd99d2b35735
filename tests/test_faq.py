"""The code of the questions and answers runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
import torch
from torch.testing import assert_close
from torchvision import transforms
from torchvision.transforms.v2 import functional as F

from tests.painted import Painted
from torchrelabel import LabelPooling, LabelStore, ViewBox

PAGE = Path(__file__).parents[1] / "docs" / "faq.md"


def answer(question: str) -> str:
    """The code below a heading that holds these words."""
    (section,) = (part for part in PAGE.read_text(encoding="utf-8").split("\n### ")[1:] if question in part[:80])
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    return code


def run(code: str, **names: Any) -> dict[str, Any]:
    exec(compile(code, str(PAGE), "exec"), names)
    return names


def test_a_pipeline_says_what_it_shows() -> None:
    image = PIL.Image.new("RGB", (71, 50))
    pipeline = transforms.Compose([transforms.CenterCrop((25, 35)), transforms.ToTensor()])
    view = run(answer("really cropped with the image"), pipeline=pipeline, image=image)["view"]
    assert view == ViewBox(18 / 71, 12 / 50, 53 / 71, 37 / 50)


def test_a_crop_in_i_j_h_w_has_the_label_of_its_box(painted: Painted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(painted.store.parent)  # where maps.lmdb is
    key = painted.keys[1]
    label = run(answer("gives me i, j, h, w"), key=key, height=84, width=140, i=7, j=70, h=42, w=35)["soft_label"]
    label_map = F.resize(LabelStore(painted.store).label_map(key), [84, 140])
    expected = LabelPooling()(F.resized_crop(label_map, 7, 70, 42, 35, [224, 224]))
    assert_close(torch.from_numpy(label), expected)
