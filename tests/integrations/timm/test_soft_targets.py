"""timm's own pieces take soft labels, and do with class indices what they did before."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import timm.data
import timm.loss
import torch
from timm.data import FastCollateMixup, Mixup, create_dataset
from timm.loss import LabelSmoothingCrossEntropy
from timm.utils import random_seed
from torch.nn.functional import cross_entropy, one_hot

from tests.painted import WRONG, C, Painted, label_error
from torchrelabel import LabelMapDataset, LabelStoreWriter, MissingLabelMap
from torchrelabel.integrations.timm import soft_targets as timm_soft_targets
from torchrelabel.integrations.timm.soft_targets import accept_soft_targets

# timm leaves the files open that it reads.
pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

ROOT = Path(__file__).parents[3]
MODEL = "test_resnet" if timm.is_model("test_resnet") else "resnet10t"
# Slowly: with norms over four images, five steps of the usual size make a tenth of a loss of its seventh digit.
train = partial(runpy.run_path(str(ROOT / "examples" / "timm_train.py"))["train"], model=MODEL, learning_rate=1e-4)
MIX = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0}
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

OPTIONS: dict[str, dict[str, Any]] = {
    "cross entropy": {"smoothing": 0.0},
    "label smoothing": {},
    "mixup": {"mixup": MIX},
    "mixup, pair": {"mixup": {**MIX, "mode": "pair"}},
    "mixup, elem": {"mixup": {**MIX, "mode": "elem"}},
    "mixup, half": {"mixup": {**MIX, "mode": "half"}},
    "mixup, off in epoch 1": {"mixup": MIX, "epochs": 2, "mixup_off_epoch": 1},
    "BCE with mixup": {"loss": "bce", "mixup": MIX},
    "BCE": {"loss": "bce", "smoothing": 0.0},
    "no prefetcher": {"prefetch": False},
    "no prefetcher, mixup": {"prefetch": False, "mixup": MIX},
    "no prefetcher, mixup, pair": {"prefetch": False, "mixup": {**MIX, "mode": "pair"}},
    "no prefetcher, mixup, elem": {"prefetch": False, "mixup": {**MIX, "mode": "elem"}},
    "AugMix, JSD": {"loss": "jsd", "splits": 3, "auto_augment": "augmix-m3-w2"},
    "AugMix, JSD, no smoothing": {"loss": "jsd", "splits": 3, "smoothing": 0.0, "auto_augment": "augmix-m3-w2"},
    "RandAugment": {"auto_augment": "rand-m9-mstd0.5"},
    "random erasing": {"re_prob": 0.9, "re_mode": "pixel"},
    "no augmentation": {"no_aug": True},
    "random interpolation": {"interpolation": "random"},
    "multi-epochs loader": {"use_multi_epochs_loader": True, "workers": 1, "epochs": 2},
}
SCHEDULED = {"scheduled sizes": {"input_size_choices": [64, 96]}}
SCHEDULED["scheduled sizes, mixup"] = {**SCHEDULED["scheduled sizes"], "mixup": MIX}  # type: ignore[dict-item]
if hasattr(timm.data.loader, "ScheduledTransformDataset"):  # timm 1.0.30 and later
    OPTIONS.update(SCHEDULED)


@pytest.mark.parametrize("name", OPTIONS)
def test_maps_of_the_folders_class_change_no_loss(name: str, painted: Painted, folder_maps: Path) -> None:
    unmodified = train(str(painted.root), **OPTIONS[name])
    assert train(str(painted.root), folder_maps, **OPTIONS[name]) == pytest.approx(unmodified, rel=1e-5)


def test_other_maps_change_the_losses(painted: Painted) -> None:
    unmodified = train(str(painted.root))
    assert train(str(painted.root), painted.store) != pytest.approx(unmodified, rel=1e-2)


@pytest.mark.parametrize("name", ["label smoothing", "no prefetcher", "no augmentation", "scheduled sizes"])
def test_the_label_is_the_painted_share_of_the_crop(name: str, painted: Painted) -> None:
    if name not in OPTIONS:
        pytest.skip(f"this timm has no {name}")
    errors: list[float] = []

    def watch(images: Any, labels: Any) -> None:
        pixels = (images * STD + MEAN).clamp(0, 1)
        errors.extend(label_error(image, label) for image, label in zip(pixels, labels, strict=True))

    train(str(painted.root), painted.store, watch=watch, epochs=4, size=64, color_jitter=0.0, **OPTIONS[name])
    assert len(errors) >= 40
    assert np.mean(errors) <= WRONG


def test_spawned_workers_accept_soft_targets_too(painted: Painted, folder_maps: Path) -> None:
    program = (
        "import multiprocessing, runpy, sys\n"
        "if __name__ == '__main__':\n"
        "    multiprocessing.set_start_method('spawn')\n"
        "    train = runpy.run_path(sys.argv[1])['train']\n"
        f"    print(*train(sys.argv[2], sys.argv[3], workers=1, mixup={MIX}, model={MODEL!r}, learning_rate=1e-4))\n"
    )
    script = painted.root.parent / "spawn.py"
    script.write_text(program)
    arguments = [script, ROOT / "examples" / "timm_train.py", painted.root, folder_maps]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spawned = list(map(float, done.stdout.splitlines()[-1].split()))
    assert spawned == pytest.approx(train(str(painted.root), workers=1, mixup=MIX), rel=1e-5)


@pytest.mark.parametrize(("mixer", "early"), [("FastCollateMixup", False), ("Mixup", True)])
def test_timms_mixers_mix_the_soft_labels_of_torchvisions_datasets(
    mixer: str, early: bool, painted: Painted, folder_maps: Path
) -> None:
    """Without the explicit call, FastCollateMixup makes class 0 of every label of an ImageFolder."""
    program = f"""
import sys
if {early}:
    import timm.data
import torch
from torchvision import transforms
from torchvision.datasets import ImageFolder
from torchrelabel import LabelMapDataset

to_array = transforms.Compose([transforms.RandomResizedCrop(32), transforms.PILToTensor(), lambda x: x.numpy()])
plain = ImageFolder({str(painted.root)!r}, to_array)
wrapped = LabelMapDataset(plain, {str(folder_maps)!r})
import timm.data
from torchrelabel.integrations.timm import accept_soft_targets
accept_soft_targets()

results = []
for dataset in (plain, wrapped):
    torch.manual_seed(0)
    timm.data.mixup.np.random.seed(0)
    mix = timm.data.{mixer}(mixup_alpha=0.8, cutmix_alpha=1.0, num_classes=7, mode="elem")
    indices = [5, 1, 3, 0]
    batch = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else [dataset[i] for i in indices]
    if {mixer!r} == "Mixup":
        images, labels = timm.data.loader.fast_collate(batch)
        results.append(mix(images.float(), labels)[1])
    else:
        results.append(mix(batch)[1])
assert results[0].shape == (4, 7), results[0].shape
assert (results[0].sum(0) > 0.05).sum() >= 4, results[0]
torch.testing.assert_close(*results)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# NaFlex: images are transformed outside the dataset, and what goes wrong there becomes a warning.


def naflex(dataset: Any, mixed: bool = False) -> list[tuple[Any, Any]]:
    loaders = pytest.importorskip("timm.data.naflex_loader")
    mixer = None
    if mixed:
        mixers = pytest.importorskip("timm.data.naflex_mixup")
        mixer = mixers.NaFlexMixup(num_classes=C, mixup_alpha=0.8, label_smoothing=0.1)
    random_seed(0)
    loader = loaders.create_naflex_loader(
        dataset,
        patch_size=8,
        train_seq_lens=(16, 25),
        batch_size=6,
        max_seq_len=25,
        is_training=True,
        num_workers=0,
        use_prefetcher=False,
        device=torch.device("cpu"),
        mixup_fn=mixer,
        pin_memory=False,
        persistent_workers=False,
        color_jitter=0.0,
    )
    return list(loader)


@pytest.mark.parametrize("mixed", [False, True])
def test_maps_of_the_folders_class_change_no_naflex_batch(mixed: bool, painted: Painted, folder_maps: Path) -> None:
    unmodified = naflex(create_dataset("", root=str(painted.root)), mixed)
    with_maps = naflex(LabelMapDataset(create_dataset("", root=str(painted.root)), folder_maps, num_classes=C), mixed)
    assert max(len(labels) for _, labels in unmodified) > 1
    for (images, labels), (same_images, soft) in zip(unmodified, with_maps, strict=True):
        assert torch.equal(images["patches"], same_images["patches"])
        torch.testing.assert_close(soft, labels if mixed else one_hot(labels, C).float())


def test_a_missing_map_stops_naflex_which_makes_warnings_of_errors(painted: Painted, tmp_path: Path) -> None:
    with LabelStoreWriter(tmp_path / "maps", num_classes=C, top_k=1, score_kind="probability") as writer:
        for number in (0, (len(painted.keys) - 1) // 2, len(painted.keys) - 1):  # those looked up at the start
            writer.put(painted.keys[number], np.ones((1, 3, 5), np.float32), np.zeros((1, 3, 5), np.int64))
    dataset = LabelMapDataset(create_dataset("", root=str(painted.root)), tmp_path / "maps", num_classes=C)
    with pytest.raises(MissingLabelMap, match="no label map of '00"):
        naflex(dataset)


@pytest.mark.skipif("scheduled sizes" not in OPTIONS, reason="this timm has no scheduled sizes")
def test_a_label_that_waits_for_its_crop_gets_its_share_of_the_one_hot_one(painted: Painted) -> None:
    images = create_dataset("", root=str(painted.root))
    dataset = LabelMapDataset(images, painted.store, num_classes=C, onehot=1.0)
    loader = timm.data.create_loader(
        dataset, (3, 64, 64), 2, is_training=True, use_prefetcher=False, num_workers=0, persistent_workers=False,
        input_size_choices=[64, 96],
    )  # fmt: skip
    labels = torch.cat([labels for _, labels in loader])
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert (labels.sum(1) == 1).all()


# The pieces by themselves.


@pytest.fixture
def rows() -> torch.Tensor:
    accept_soft_targets()
    return torch.rand(6, C, generator=torch.Generator().manual_seed(3)).softmax(-1)


def test_accepting_twice_replaces_once() -> None:
    accept_soft_targets()
    call = Mixup.__call__
    accept_soft_targets()
    assert Mixup.__call__ is call


def test_fast_collate_is_replaced_where_the_loader_looks_for_it() -> None:
    accept_soft_targets()
    assert timm.data.loader.fast_collate is timm_soft_targets.fast_collate


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_class_indices_are_mixed_as_before_to_the_bit(mode: str, rows: torch.Tensor) -> None:
    labels, images = torch.tensor([3, 0, 6, 6, 1, 2]), torch.rand(6, 3, 17, 11)
    results = []
    for call in (Mixup.__call__, Mixup.__call__.__wrapped__):  # type: ignore[attr-defined]
        random_seed(5)
        results.append(call(Mixup(**MIX, mode=mode, num_classes=C), images.clone(), labels))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def shares(values: torch.Tensor, mixed: torch.Tensor) -> torch.Tensor:
    """How much of each image is its own, read off images that had one value each. Partners are the batch reversed."""
    others = values.flip(0)[: len(mixed)]
    return ((mixed.float().mean((1, 2, 3)) - others) / (values[: len(mixed)] - others))[:, None]


@pytest.mark.parametrize("options", [{"mixup_alpha": 0.8}, {"cutmix_alpha": 1.0}], ids=["mixup", "cutmix"])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_soft_labels_are_mixed_by_the_share_of_each_image(mode: str, options: Any, rows: torch.Tensor) -> None:
    values = torch.tensor([0.0, 1.0, 2.0, 4.0, 8.0, 16.0])
    images = values[:, None, None, None].expand(6, 3, 17, 11).clone()
    mixer = Mixup(**{"mixup_alpha": 0.0, **options}, mode=mode, num_classes=C, label_smoothing=0.1)
    random_seed(5)
    mixed, labels = mixer(images, rows)
    smooth, own = rows * 0.9 + 0.1 / C, shares(values, mixed)
    assert own.min() < 0.95
    torch.testing.assert_close(labels, smooth * own + smooth.flip(0) * (1 - own), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["batch", "pair", "elem", "half"])
def test_soft_labels_are_collated_by_the_share_of_each_image(mode: str, rows: torch.Tensor) -> None:
    values = torch.tensor([0.0, 40.0, 80.0, 120.0, 160.0, 255.0])
    images = [np.full((3, 17, 11), value, np.uint8) for value in values]
    mixer = FastCollateMixup(mixup_alpha=0.8, mode=mode, num_classes=C, label_smoothing=0.0)
    random_seed(5)
    mixed, labels = mixer(list(zip(images, rows, strict=True)))
    own = shares(values, mixed)
    assert len(labels) == len(mixed) == (3 if mode == "half" else 6)
    expected = rows[: len(mixed)] * own + rows.flip(0)[: len(mixed)] * (1 - own)
    torch.testing.assert_close(labels.float(), expected, atol=0.01, rtol=0)  # the pixels are rounded


def test_a_mixer_made_for_other_classes_is_refused(rows: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"Mixup was made for 1000 classes, and the labels have 7. .*--num-classes 7"):
        Mixup(**MIX)(torch.rand(6, 3, 17, 11), rows)


def test_a_mixer_is_left_as_it_was(rows: torch.Tensor) -> None:
    mixer = Mixup(**MIX, num_classes=C, label_smoothing=0.1)
    before = dict(vars(mixer))
    mixer(torch.rand(6, 3, 17, 11), rows)
    assert vars(mixer) == before


def test_splits_repeat_their_soft_labels_in_order(rows: torch.Tensor) -> None:
    images = [tuple(np.full((3, 5, 7), 10 * i + j, np.uint8) for j in range(2)) for i in range(6)]
    collated, labels = timm_soft_targets.fast_collate(list(zip(images, rows, strict=True)))
    for image, label in zip(collated, labels, strict=True):
        assert torch.equal(label, rows[int(image[0, 0, 0]) // 10])


def test_label_smoothing_of_soft_labels_is_that_of_torch(rows: torch.Tensor) -> None:
    logits = torch.randn(6, C)
    ours = LabelSmoothingCrossEntropy(0.2)(logits, rows)
    torch.testing.assert_close(ours, cross_entropy(logits, rows, label_smoothing=0.2))


def test_label_smoothing_of_class_indices_is_timms_own(rows: torch.Tensor) -> None:
    logits, labels = torch.randn(6, C), torch.tensor([3, 0, 6, 6, 1, 2])
    original = LabelSmoothingCrossEntropy.forward.__wrapped__  # type: ignore[attr-defined]
    loss = LabelSmoothingCrossEntropy(0.2)
    assert torch.equal(loss(logits, labels), original(loss, logits, labels))


def test_a_loss_that_counts_class_indices_is_refused(rows: torch.Tensor) -> None:
    loss = timm.loss.asymmetric_loss.AsymmetricLossSingleLabel()  # type: ignore[attr-defined]
    with pytest.raises(TypeError, match="AsymmetricLossSingleLabel needs class indices and got soft labels"):
        loss(torch.randn(6, C), rows)


UNCHANGED = """
import timm.data, timm.loss
from torchvision.datasets import ImageFolder
from torchrelabel import LabelMapDataset
places = [timm.data.loader, timm.data.Mixup, timm.data.FastCollateMixup, timm.loss.LabelSmoothingCrossEntropy]
before = [dict(vars(place)) for place in places]
dataset = LabelMapDataset(ImageFolder({root!r}), {maps!r})
dataset[0]
assert [dict(vars(place)) for place in places] == before
from timm.data import ImageDataset
LabelMapDataset(ImageDataset({root!r}), {maps!r}, num_classes=7)
assert [dict(vars(place)) for place in places] != before
from torchrelabel.integrations.timm import refuse_soft_targets
refuse_soft_targets()
assert [dict(vars(place)) for place in places] == before
"""


def test_wrapping_torchvisions_dataset_changes_nothing_of_timm_and_what_is_changed_can_be_undone(
    painted: Painted, folder_maps: Path
) -> None:
    """To import timm was enough: its loss was replaced as soon as any dataset was wrapped."""
    program = UNCHANGED.format(root=str(painted.root), maps=str(folder_maps))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
