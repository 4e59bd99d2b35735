"""Imports point up the house: DESIGN.md, section 3."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import torchrelabel

PACKAGE = Path(torchrelabel.__file__).parent

# A part may import from its own floor and from those above it.
FLOORS = [
    {"errors", "view", "calibration", "remote", "_version"},
    {"label_map", "store"},
    {"visible_cells"},
    {"pooling", "folders"},
    {"following"},
    {"transforms", "targets", "token_labels", "iterated"},
    {"data"},
    {"annotate", "importers", "integrations", "viz"},
    {"check", "demo", "evaluate"},
    {"cli", "__main__"},
]
FLOOR = {part: number for number, parts in enumerate(FLOORS) for part in parts}

# A dataset of timm's is known when it is wrapped, and only then is timm told of soft labels.
EXCEPTIONS = {
    ("data/dataset.py", "torchrelabel.integrations.timm.soft_targets"),
    # One line for whoever has a store and a key. Nothing else in the store knows tensors.
    ("store/reader.py", "torchrelabel.data.records"),
    ("store/reader.py", "torchrelabel.pooling"),
}


def imports_of(source):
    """``(module, line)`` of every import of the package that runs, wherever it stands in a file."""
    for node in _running(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            names = [node.module]
            if node.module == "torchrelabel":
                names = [f"torchrelabel.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] == "torchrelabel" and "." in name:
                yield name, node.lineno


def _running(node):
    """Every node but those under ``if TYPE_CHECKING``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from _running(child)


def wrong_imports(path, source):
    part = path.parts[0].removesuffix(".py")
    return [
        f"{path}:{line} imports {name}"
        for name, line in imports_of(source)
        if FLOOR[name.split(".")[1]] > FLOOR[part] and (str(path), name) not in EXCEPTIONS
    ]


FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=str)
def test_imports_point_up_the_house(path):
    assert wrong_imports(path, (PACKAGE / path).read_text()) == []


def test_every_part_has_its_floor():
    assert {path.parts[0].removesuffix(".py") for path in FILES} <= set(FLOOR)


def test_an_import_that_points_down_is_found():
    source = "def f():\n    from torchrelabel.data.dataset import LabelMapDataset\n"
    assert wrong_imports(Path("store/reader.py"), source) == ["store/reader.py:2 imports torchrelabel.data.dataset"]


def test_the_package_itself_imports_only_the_top_floor():
    source = (PACKAGE / "__init__.py").read_text()
    assert {FLOOR[name.split(".")[1]] for name, _ in imports_of(source)} == {0}
