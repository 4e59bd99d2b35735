"""Every family of timm: do its features form a grid, and does its head commute with pooling?

Slow. Prints the table of docs/annotators.md; ``tox -e heads -- -s`` shows it.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import timm
import torch

from tests.annotate.models import make_images, make_model
from torchrelabel.annotate.heads import CellHead, Commuting
from torchrelabel.errors import UnsupportedModel

_MOST_PARAMETERS = 170_000_000


class Row(NamedTuple):
    """What one model of a family turned out to be."""

    family: str
    model: str
    image_size: int
    layout: str
    grid: str
    found: Commuting | None


def smallest_model(family: str) -> str | None:
    """Return the classifier with the fewest parameters; None if all are too large for a small machine."""
    sizes = []
    for name in timm.list_models(module=family):
        with torch.device("meta"):  # counts parameters without making them
            model = timm.create_model(name, pretrained=False, **classifier_for(name))
        # An encoder of a language model may have no room for a classifier at all.
        if getattr(model, "num_classes", 0):
            sizes.append((sum(parameter.numel() for parameter in model.parameters()), name))
    return min(sizes)[1] if sizes and min(sizes)[0] <= _MOST_PARAMETERS else None


def classifier_for(name: str) -> dict[str, int]:
    """Give a classifier to a model that comes without one, by default."""
    config = timm.models.get_pretrained_cfg(name)
    return {} if config is not None and config.num_classes else {"num_classes": 1000}


def row_of(family: str, name: str) -> Row:
    """Try a model at a small size, or at its own if it cannot take the small one."""
    model = make_model(name, **classifier_for(name))
    config = model.pretrained_cfg
    own = config["input_size"][-1]
    sizes = [own] if config.get("fixed_input_size") else [min(own, 160), own]
    for size in sizes:
        try:
            head = CellHead(model, size)
        except UnsupportedModel:
            return Row(family, name, size, "none", "", None)
        except ValueError:
            if size == sizes[-1]:
                raise
            continue
        h, w = head.grid
        return Row(family, name, size, head.layout, f"{h} x {w}", head.commuting(make_images(2, size)))
    raise AssertionError("unreachable: the last size either returns or raises")


def verdict(row: Row) -> str:
    """Say it as the table does."""
    if row.found is None:
        return "not usable: no grid"
    return f"yes ({row.found.relative_error:.0e})" if row.found.commutes else f"no ({row.found.relative_error:.0e})"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of timm's own, about names and kernels
def test_every_family_with_a_grid_can_be_read_cell_by_cell() -> None:
    rows, too_large = [], []
    for family in timm.list_modules():
        name = smallest_model(family)
        if name is None:
            too_large.append(family)
        else:
            rows.append(row_of(family, name))
    usable = [row for row in rows if row.found is not None]
    spatial = [row for row in usable if row.layout != "NLC"]
    commuting = [row for row in usable if row.found is not None and row.found.commutes]

    print("\n| family | model | px | features | grid | mean of the cells = the model's answer |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        print(f"| {row.family} | {row.model} | {row.image_size} | {row.layout} | {row.grid} | {verdict(row)} |")
    print(f"\ntimm {timm.__version__}: {len(rows)} families, {len(usable)} usable ({len(spatial)} of them spatial), ")
    print(f"{len(commuting)} commute; not tried, too large or empty: {', '.join(too_large)}")

    assert {row.family for row in rows if row.found is None} <= {"coat", "crossvit", "efficientvim", "pit"}
    if timm.__version__ == "1.0.31":
        assert (len(rows), len(usable), len(spatial), len(commuting)) == (97, 93, 73, 58)
