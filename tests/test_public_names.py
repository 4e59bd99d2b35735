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
        "TokenLabelLoss",
        "TorchRelabelError",
        "UnsupportedModel",
        "UntrackedTransformError",
        "ViewBox",
        "__version__",
        "check_pipeline",
        "hard",
        "mix_soft",
    }
    assert set(torchrelabel.__all__) == promised


@pytest.mark.parametrize("name", torchrelabel.__all__)
def test_a_public_name_is_there(name):
    assert getattr(torchrelabel, name) is not None
    assert name in dir(torchrelabel)


# torch is loaded once, and each line of code runs in a process of its own that has not seen torchrelabel.
EACH_AFRESH = """
import os, sys, traceback
import torch, torchvision
for code in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        status = 0
        try:
            exec(code)
        except BaseException:
            traceback.print_exc()
            status = 1
        os._exit(status)
    if os.waitpid(child, 0)[1] != 0:
        print(code)
"""


def failing_afresh(*codes):
    """Those of some lines of code that fail where nothing of torchrelabel was imported before."""
    done = subprocess.run([sys.executable, "-c", EACH_AFRESH, *codes], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_every_public_name_can_be_the_first_one_asked_for():
    # LabelPooling used to end in a circular import.
    names = [name for name in torchrelabel.__all__ if name != "__version__"]
    assert failing_afresh(*[f"from torchrelabel import {name}" for name in names]) == []


def test_every_module_imported_first_has_the_kernels_registered():
    modules = ["label_map", "label_map.map", "label_map.kernels", "pooling", "transforms", "transforms.mix"]
    check = (
        "from torchvision.transforms.v2.functional import _utils, crop, rotate; "
        "from torchrelabel.label_map import LabelMap; "
        "assert LabelMap in _utils._KERNEL_REGISTRY[crop] and LabelMap in _utils._KERNEL_REGISTRY[rotate]"
    )
    assert failing_afresh(*[f"import torchrelabel.{module}; {check}" for module in modules]) == []


def test_a_line_that_fails_is_reported():
    codes = ["from torchrelabel import LabelMap", "import torchrelabel.label_mop"]
    assert failing_afresh(*codes) == ["import torchrelabel.label_mop"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"^module 'torchrelabel' has no attribute 'LabelMop'$"):
        torchrelabel.LabelMop  # noqa: B018 -- to ask is the test


def test_importing_it_loads_nothing_heavy():
    assert loaded_after("import torchrelabel") == []


def test_the_dataset_loads_neither_timm_nor_lmdb():
    loaded = loaded_after("import torchrelabel; torchrelabel.LabelMapDataset")
    assert "timm" not in loaded
    assert "lmdb" not in loaded


def test_the_two_tests_above_can_fail():
    assert "lmdb" in loaded_after("import torchrelabel, lmdb")
    assert "torch" in loaded_after("import torchrelabel; torchrelabel.LabelMapDataset")
