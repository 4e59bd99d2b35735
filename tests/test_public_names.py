from __future__ import annotations

import subprocess
import sys

import pytest

import torchrelabel

HEAVY = ("torch", "torchvision", "timm", "lmdb")


def loaded_after(code, names=HEAVY):
    """Which of the modules a fresh interpreter has loaded after some code."""
    code += f"\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_the_public_names_are_those_of_the_design():
    # DESIGN: section 13. One that goes, or changes, breaks somebody's script.
    promised = {
        "CropNotSeen",
        "CutMixWithLabelMap",
        "DamagedRecord",
        "LabelMap",
        "LabelMapBatch",
        "LabelMapDataset",
        "LabelPooling",
        "LabelStore",
        "LabelStoreWriter",
        "MissingLabelMap",
        "MixUpWithLabelMap",
        "PoolLabelMap",
        "RandomResizedCropWithLabelMap",
        "SettingsDiffer",
        "StoreError",
        "StoreInUse",
        "TorchRelabelError",
        "UnsupportedModel",
        "UntrackedTransformError",
        "ViewBox",
        "__version__",
        "check_pipeline",
    }
    assert set(torchrelabel.__all__) == promised


@pytest.mark.parametrize("name", torchrelabel.__all__)
def test_a_public_name_is_there(name):
    assert getattr(torchrelabel, name) is not None
    assert name in dir(torchrelabel)


# One by one in a fresh interpreter: LabelPooling alone used to end in a circular import.
@pytest.mark.parametrize("name", ["LabelMap", "LabelPooling", "PoolLabelMap", "check_pipeline", "LabelMapDataset"])
def test_a_public_name_can_be_the_first_one_asked_for(name):
    assert "torch" in loaded_after(f"from torchrelabel import {name}")


@pytest.mark.parametrize(
    "module", ["label_map", "pooling", "transforms", "transforms._kernels", "transforms.pool", "transforms.crop"]
)
def test_a_module_imported_first_has_the_kernels_registered(module):
    code = (
        f"import torchrelabel.{module}\n"
        "from torchvision.transforms.v2.functional import _utils, crop, rotate\n"
        "from torchrelabel.label_map import LabelMap\n"
        "assert LabelMap in _utils._KERNEL_REGISTRY[crop] and LabelMap in _utils._KERNEL_REGISTRY[rotate]"
    )
    assert "torch" in loaded_after(code)


@pytest.mark.parametrize("module", [torchrelabel, __import__("torchrelabel.transforms").transforms])
def test_an_unknown_name_is_an_attribute_error(module):
    with pytest.raises(AttributeError, match=rf"^module '{module.__name__}' has no attribute 'LabelMop'$"):
        module.LabelMop  # noqa: B018 -- to ask is the test


def test_the_public_names_of_transforms_are_there():
    for name in torchrelabel.transforms.__all__:
        assert getattr(torchrelabel.transforms, name) is not None
        assert name in dir(torchrelabel.transforms)


def test_importing_it_loads_nothing_heavy():
    assert loaded_after("import torchrelabel") == []


def test_the_dataset_loads_neither_timm_nor_lmdb():
    loaded = loaded_after("import torchrelabel; torchrelabel.LabelMapDataset")
    assert "timm" not in loaded
    assert "lmdb" not in loaded


def test_the_two_tests_above_can_fail():
    assert "lmdb" in loaded_after("import torchrelabel, lmdb")
    assert "torch" in loaded_after("import torchrelabel; torchrelabel.LabelMapDataset")
