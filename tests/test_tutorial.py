"""The tutorial runs as its page says, on tiny pictures and with tiny networks."""

from __future__ import annotations

import re
import runpy
import shlex
from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import timm
import torch

from tests.cli.test_annotate import invoke

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"

# What is changed so that it takes seconds and downloads nothing. All of it must stand on the page.
CHANGES = {
    " --pretrained --epochs 10": " --epochs 1",
    "default=30": "default=1",
    '"--workers", type=int, default=4': '"--workers", type=int, default=0',
    "RandomResizedCrop(224)": "RandomResizedCrop(64)",
    "resnet50": "test_resnet",
    "resnet18": "test_efficientnet",
    "--crops 200": "--crops 24",
}
# What is added to commands, to load images in this process.
ADDED = {"annotate": ["--workers", "0"], "evaluate": ["--workers", "0"]}


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Noisy pictures of two classes, redder and bluer, with names as people give them."""
    rng = np.random.default_rng(0)
    for split, count in (("train", 9), ("val", 2)):
        for name, colour in (("001.Robin", (200, 60, 40)), ("002.Grüner Wren", (40, 60, 200))):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.normal(colour, 40, (48, 66, 3)).clip(0, 255).astype(np.uint8)
                PIL.Image.fromarray(pixels).save(folder / f"photo {number}.v1.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def blocks() -> list[tuple[str, str]]:
    """The language and the text of each block of code, made small."""
    text = PAGE.read_text(encoding="utf-8")
    for old, new in CHANGES.items():
        assert old in text, old
        text = text.replace(old, new)
    return re.findall(r"```(python|bash)\n(.*?)```", text, re.DOTALL)


@pytest.mark.skipif(not timm.is_model("test_resnet"), reason=f"timm {timm.__version__} has no small models for tests")
def test_the_tutorial_leads_from_photographs_to_a_measured_student(
    photos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    said: dict[str, str] = {}
    labels: list[torch.dtype] = []
    forward = torch.nn.CrossEntropyLoss.forward

    def seen(self: torch.nn.CrossEntropyLoss, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        labels.append(target.dtype)
        return forward(self, output, target)

    monkeypatch.setattr(torch.nn.CrossEntropyLoss, "forward", seen)
    for language, text in blocks():
        if language == "python" and "def main" in text:
            (photos / "fit.py").write_text(text, encoding="utf-8")
        elif language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            for line in text.splitlines():
                said[line] = run(shlex.split(line), monkeypatch, capsys)
    assert "18 label maps are sound" in said["torchrelabel verify maps.lmdb photos/train"]
    (trained,) = (text for line, text in said.items() if "--label-maps" in line)
    assert re.fullmatch(r"epoch 1: loss \d\.\d+, accuracy \d+\.\d%\n", trained)
    # The annotator, the student on the folders' labels, and the student on label maps.
    assert labels == [torch.int64, torch.int64, torch.float32]
    (compared,) = (text for line, text in said.items() if line.count("--checkpoint") == 2)
    assert all(word in compared for word in ("onehot", "student", "top-1"))
    assert (photos / "maps.png").exists()


def run(words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    """What a line of the page prints; it must succeed."""
    if words[:2] == ["python", "fit.py"]:
        monkeypatch.setattr("sys.argv", words[1:])
        capsys.readouterr()
        runpy.run_path("fit.py", run_name="__main__")
        return capsys.readouterr().out
    assert words[0] == "torchrelabel"
    result = invoke(*words[1:], *ADDED.get(words[1], []))
    assert result.exit_code == 0, (words, result.output, result.exception)
    return result.stdout
