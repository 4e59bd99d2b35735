"""The annotator that the package ships: what it can do, and what the demo says of it."""

import numpy as np
import pytest
import timm
import torch

from torchrelabel.annotate import annotate
from torchrelabel.demo.annotator import MODEL, TRAINED_AT, WEIGHTS, agreement, annotator_top1, copy_annotator
from torchrelabel.demo.digits import load_digits_split
from torchrelabel.demo.folders import FolderSettings, make_scene_folder
from torchrelabel.errors import TorchRelabelError
from torchrelabel.store import LabelStore, LabelStoreWriter

needs_model = pytest.mark.skipif(not timm.is_model(MODEL), reason=f"timm {timm.__version__} has no {MODEL}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hundred scenes of test digits, which the annotator has not seen."""
    root = tmp_path_factory.mktemp("annotator") / "test"
    return make_scene_folder(root, load_digits_split()[1], FolderSettings("test", 100, seed=4))


def test_the_weights_are_small_enough_to_ship():
    assert WEIGHTS.stat().st_size < 600_000


@needs_model
def test_the_annotator_names_large_digits_that_it_never_saw(folder):
    assert annotator_top1(WEIGHTS, folder) >= 0.9


@needs_model
def test_the_top1_of_a_model_that_always_says_3_is_the_share_of_threes(folder, tmp_path):
    model = timm.create_model(MODEL, num_classes=10)
    model.classifier.weight.data.zero_()
    model.classifier.bias.data.copy_(torch.eye(10)[3])
    torch.save(model.state_dict(), tmp_path / "three.pth")
    assert annotator_top1(tmp_path / "three.pth", folder) == pytest.approx(0.1)


@needs_model
def test_its_label_maps_know_where_the_digits_are(folder, tmp_path):
    annotate(
        folder.root,
        tmp_path / "maps.lmdb",
        model=MODEL,
        checkpoint=WEIGHTS,
        image_size=TRAINED_AT,
        device="cpu",
        workers=0,
        progress=False,
    )
    large, small = agreement(folder, LabelStore(tmp_path / "maps.lmdb"))
    assert large >= 0.9
    assert small >= 0.6


def test_agreement_counts_large_and_small_digits_apart(folder, tmp_path):
    """Maps that see the large digit everywhere are right for large digits and wrong for all others."""
    with LabelStoreWriter(tmp_path / "maps.lmdb", num_classes=10, top_k=1) as writer:
        for key, record in folder.records.items():
            writer.put(key, np.full((1, 2, 3), 9.0), np.full((1, 2, 3), record.digits[0]))
    assert agreement(folder, LabelStore(tmp_path / "maps.lmdb")) == (1, 0)


def test_a_timm_without_the_model_is_told_which_version_has_it(tmp_path, monkeypatch):
    monkeypatch.setattr(timm, "is_model", lambda name: False)
    with pytest.raises(TorchRelabelError, match=rf'{MODEL}, which timm {timm.__version__}.*"timm>=1\.0\.10"'):
        copy_annotator(tmp_path / "annotator.pth")
    assert not (tmp_path / "annotator.pth").exists()


@needs_model
def test_the_copied_weights_are_those_that_the_package_ships(tmp_path):
    copy_annotator(tmp_path / "annotator.pth")
    assert (tmp_path / "annotator.pth").read_bytes() == WEIGHTS.read_bytes()
