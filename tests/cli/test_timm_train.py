"""``torchrelabel timm-train``, as it is typed."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.cli.test_annotate import invoke
from tests.painted import Painted, paint
from torchrelabel.annotate import annotate


@pytest.fixture
def painted(tmp_path: Path) -> Painted:
    return paint(tmp_path)


def script(folder: Path, text: str) -> str:
    (folder / "train.py").write_text(text)
    return str(folder / "train.py")


def test_the_script_gets_its_own_arguments_and_the_command_its_own(painted: Painted, tmp_path: Path) -> None:
    path = script(
        tmp_path,
        "import sys, timm.data\n"
        "print(sys.argv[1:])\n"
        f"dataset = timm.data.create_dataset('', root={str(painted.root)!r}, is_training=True)\n"
        "print(type(dataset).__name__, len(dataset), __name__)\n",
    )
    result = invoke("timm-train", "--label-maps", str(painted.store), path, "--model", "x", "-b", "4", "--label-maps=y")
    assert result.exit_code == 0, result.output
    assert "['--model', 'x', '-b', '4', '--label-maps=y']\nLabelMapDataset 7 __main__" in result.stdout
    assert "Training labels come from LabelStore" in result.stderr


def test_an_error_of_the_script_keeps_its_traceback(painted: Painted, tmp_path: Path) -> None:
    result = invoke("timm-train", "--label-maps", str(painted.store), script(tmp_path, "int('no number')\n"))
    assert result.exit_code == 1
    assert "Traceback" in result.stderr and "train.py" in result.stderr and "no number" in result.stderr


def test_the_exit_status_of_the_script_is_kept(painted: Painted, tmp_path: Path) -> None:
    result = invoke("timm-train", "--label-maps", str(painted.store), script(tmp_path, "raise SystemExit(7)\n"))
    assert result.exit_code == 7


def test_a_missing_map_is_one_message_with_the_key(painted: Painted, tmp_path: Path) -> None:
    text = f"import timm.data\ntimm.data.create_dataset('', root={str(painted.root)!r}, is_training=True)\n"
    path = script(tmp_path, text)
    options = ["--label-maps", str(painted.store), "--key-prefix", "train/"]
    result = invoke("timm-train", *options, path)
    assert result.exit_code == 1
    assert "no label map of 'train/000.class/image 0.png'" in result.stderr and "Traceback" not in result.stderr


def test_a_store_that_is_not_there_is_one_message(tmp_path: Path) -> None:
    result = invoke("timm-train", "--label-maps", str(tmp_path / "none"), script(tmp_path, ""))
    assert result.exit_code == 1 and "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "timm.create_model('resnet10t')\ntimm.data.create_dataset('', root={root!r}, is_training=True)\n",
            "Error: resnet10t has 1000 outputs, and the label maps have 7 classes.",
        ),
        (
            "timm.data.create_dataset('torch/mnist', root={mnist!r}, is_training=True, download=False)\n",
            "Error: The label maps have 7 classes and the dataset has 10.",
        ),
        ("pass\n", "train.py trains without a call of timm.data.create_dataset(..., is_training=True)"),
    ],
    ids=["outputs", "classes", "no dataset"],
)
def test_an_error_of_ours_is_one_message(painted: Painted, tmp_path: Path, text: str, words: str) -> None:
    mnist = write_mnist(tmp_path / "mnist")
    path = script(tmp_path, "import timm, timm.data\n" + text.format(root=str(painted.root), mnist=str(mnist)))
    result = invoke("timm-train", "--label-maps", str(painted.store), path)
    assert result.exit_code == 1
    assert words in result.stderr and "Traceback" not in result.stderr


def write_mnist(root: Path) -> Path:
    """Two images as MNIST's files have them."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        (folder / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 2051, 2, 28, 28) + bytes(2 * 28 * 28))
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 2049, 2) + bytes(2))
    return root


def test_a_script_that_takes_no_maps_is_stopped_before_its_first_step(painted: Painted, tmp_path: Path) -> None:
    """It trained to its end, on hard labels, before that was said."""
    text = (
        "import torch\n"
        "weight = torch.nn.Parameter(torch.zeros(1))\n"
        "optimizer = torch.optim.SGD([weight], 0.1)\n"
        "(weight + 1).sum().backward()\n"
        "print('before')\n"
        "optimizer.step()\n"
        "print('after')\n"
    )
    result = invoke("timm-train", "--label-maps", str(painted.store), script(tmp_path, text))
    assert result.exit_code == 1
    assert "before" in result.stdout and "after" not in result.stdout
    assert "trains without a call of timm.data.create_dataset" in result.stderr and "Traceback" not in result.stderr


def test_options_of_the_dataset_reach_it(painted: Painted, tmp_path: Path) -> None:
    text = (
        "import timm.data\n"
        f"dataset = timm.data.create_dataset('', root={str(painted.root)!r}, is_training=True)\n"
        "print(dataset.pooling.fill, dataset._crop, dataset._onehot)\n"
    )
    options = ["--crop", "full", "--fill", "zero", "--onehot", "0.5"]
    result = invoke("timm-train", "--label-maps", str(painted.store), *options, script(tmp_path, text))
    assert result.exit_code == 0, result.output
    assert "zero full 0.5" in result.stdout


LOOP = """
import torch
from timm.data import create_dataset, create_loader
from timm.models import create_model

torch.manual_seed(0)
size = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
model = create_model("vit_tiny_patch16_224", num_classes=7, **size)
dataset = create_dataset("", root=ROOT, is_training=True)
options = {"mean": (0.5,) * 3, "std": (0.3,) * 3, "num_workers": 0, "persistent_workers": False}
options["device"] = torch.device("cpu")
train = create_loader(dataset, (3, 32, 32), 7, is_training=True, **options)
val = create_loader(create_dataset("", root=ROOT), (3, 32, 32), 7, **options)
optimizer, loss_of = torch.optim.AdamW(model.parameters(), lr=1e-2), torch.nn.CrossEntropyLoss()
for epoch in range(50):
    model.train()
    for images, labels in train:
        loss = loss_of(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print("loss", loss.item(), tuple(labels.shape))
model.eval()
print("val", *(tuple(model(images).shape) for images, _ in val))
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_unmodified_loop_trains_on_the_labels_of_tokens(painted: Painted, tmp_path: Path) -> None:
    text = LOOP.replace("ROOT", repr(str(painted.root)))
    result = invoke("timm-train", "--label-maps", str(painted.store), "--token-labels", "4", script(tmp_path, text))
    assert result.exit_code == 0, result.output
    losses = [float(line.split()[1]) for line in result.stdout.splitlines() if line.startswith("loss")]
    assert sum(losses[-10:]) / 10 < 0.85 * losses[0]
    assert "(7, 7, 4, 4)" in result.stdout
    assert "val (7, 7)" in result.stdout


BATCH = """
import torch
from timm.data import create_dataset, create_loader
from timm.models import create_model

size = {"img_size": (32, 16), "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 2}
model = create_model("vit_tiny_patch16_224", num_classes=7, **size)
dataset = create_dataset("", root=ROOT, is_training=True)
options = {"num_workers": 0, "persistent_workers": False, "device": torch.device("cpu")}
images, labels = next(iter(create_loader(dataset, (3, 32, 16), 7, is_training=True, **options)))
print(tuple(labels.shape), torch.nn.CrossEntropyLoss()(model(images), labels).item() > 0)
"""


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_grid_is_rows_then_columns(painted: Painted, tmp_path: Path) -> None:
    path = script(tmp_path, BATCH.replace("ROOT", repr(str(painted.root))))
    result = invoke("timm-train", "--label-maps", str(painted.store), "--token-labels", "4x2", path)
    assert result.exit_code == 0, result.output
    assert "(7, 7, 4, 2) True" in result.stdout


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_grid_that_the_model_does_not_have_is_one_message(painted: Painted, tmp_path: Path) -> None:
    text = LOOP.replace("ROOT", repr(str(painted.root)))
    result = invoke("timm-train", "--label-maps", str(painted.store), "--token-labels", "14", script(tmp_path, text))
    assert result.exit_code == 1
    assert "has 16 tokens for images of 32 x 32 px, and the labels are for 14 x 14" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_token_labels_of_windows_are_warned_of(painted: Painted, tmp_path: Path) -> None:
    options = {"pretrained": False, "device": "cpu", "image_size": 64, "workers": 0, "progress": False}
    annotate(painted.root, tmp_path / "windows.lmdb", model="resnet10t", windows=2, **options)
    text = f"import timm.data\ntimm.data.create_dataset('', root={str(painted.root)!r}, is_training=True)\n"
    words = "WARNING: these label maps are of 2 x 2 windows"
    for tokens, warned in ((["--token-labels", "4"], True), ([], False)):
        result = invoke("timm-train", "--label-maps", str(tmp_path / "windows.lmdb"), *tokens, script(tmp_path, text))
        assert result.exit_code == 0, result.output
        assert (words in result.stderr) == warned


@pytest.mark.parametrize("grid", ["1", "14x", "0x4", "14x14x14", "-4", "1.5"])
def test_what_is_no_grid_of_tokens_is_wrong_use(grid: str, painted: Painted, tmp_path: Path) -> None:
    result = invoke("timm-train", "--label-maps", str(painted.store), "--token-labels", grid, script(tmp_path, ""))
    assert result.exit_code == 2
    assert f"{grid!r} is no grid of tokens: 14, or 14x10" in result.stderr
