"""``torchrelabel verify``: read every label map of a store, and compare it with a folder."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from torchrelabel.cli import DONE_WITH_LOSSES, FAILED, data_options

if TYPE_CHECKING:
    from torchrelabel.store.verify import Verification

_SHOWN = 20


@click.command(
    short_help="Read every label map of a store.", epilog="Example: torchrelabel verify imagenet.lmdb imagenet/train"
)
@click.argument("store", default="maps.lmdb", type=click.Path())
@click.argument("data", required=False, type=click.Path())
@data_options
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def verify(store: str, data: str | None, dataset: str | None, split: str, as_json: bool) -> None:
    """Read every label map of the store STORE (default: maps.lmdb) and say what is wrong.

    Checksums, grids, scores, classes, keys and counts are compared with the format and the header; and the keys with
    the images in DATA, if it is given: a folder or a tar file, or with --dataset what timm reads.

    Exit status: 0 all is sound, 1 something is wrong, 3 sound, but some images could not be annotated or are not in
    DATA.
    """
    from tqdm import tqdm

    from torchrelabel.errors import StoreError
    from torchrelabel.store import LabelStore
    from torchrelabel.store.verify import verify as run

    if data is None and dataset is not None:
        raise click.UsageError(f"Say where {dataset} is kept: torchrelabel verify {store} DATA --dataset {dataset}.")
    label_store = LabelStore(store)
    images = None if data is None else _keys_of(data, dataset, split, store)

    def progress(keys: Iterable[str]) -> Iterable[str]:
        try:
            total = len(label_store)
        except StoreError:  # a shard cannot be read, which will be among the findings
            total = None
        return tqdm(keys, total=total, unit="maps", disable=None, leave=False)

    found = run(label_store, images, progress=progress)
    click.echo(json.dumps(_figures(found), indent=2) if as_json else _words(store, data, found))
    if not found.sound:
        sys.exit(FAILED)
    if found.failures or found.surplus:
        sys.exit(DONE_WITH_LOSSES)


def _keys_of(data: str, dataset: str | None, split: str, store: str) -> list[str]:
    from torchrelabel.annotate.sources import check_split, find_data

    check_split(dataset, split)
    return find_data(data, dataset, split, skip=[store]).keys


def _figures(found: Verification) -> dict[str, Any]:
    return {
        "sound": found.sound,
        "records": found.records,
        "grids": [{"grid": list(grid), "records": count} for grid, count in sorted(found.grids.items())],
        "damaged": {_printable(key): reason for key, reason in found.damaged.items()},
        "failures": {_printable(key): reason for key, reason in found.failures.items()},
        "missing": [_printable(key) for key in found.missing],
        "surplus": [_printable(key) for key in found.surplus],
        "incomplete": found.incomplete,
        "miscounted": found.miscounted,
    }


def _words(store: str, data: str | None, found: Verification) -> str:
    grids = ", ".join(f"{count} of {h} x {w} cells" for (h, w), count in sorted(found.grids.items()))
    lines = [f"{_printable(store)}: {found.records} label maps are sound{f' ({grids})' if grids else ''}."]
    if found.incomplete:
        lines.append("The store is not complete: its writer has not finished. The same annotate command continues.")
    if found.miscounted:
        lines.append(f"The counts disagree: {found.miscounted}.")
    lines += _listed(
        f"{len(found.damaged)} entries are damaged; copy the store again, or annotate into a new one:", found.damaged
    )
    lines += _listed(f"{len(found.failures)} images could not be annotated:", found.failures)
    lines += _listed(
        f"{len(found.missing)} images of {_printable(data or '')} have no label map:", dict.fromkeys(found.missing, "")
    )
    lines += _listed(
        f"{len(found.surplus)} label maps are of no image in {_printable(data or '')}:",
        dict.fromkeys(found.surplus, ""),
    )
    return "\n".join(lines)


def _listed(headline: str, items: dict[str, str]) -> list[str]:
    if not items:
        return []
    lines = [f"  {_printable(key)}{f': {reason}' if reason else ''}" for key, reason in list(items.items())[:_SHOWN]]
    rest = len(items) - len(lines)
    return [headline, *lines, *([f"  ... and {rest} more"] if rest else [])]


def _printable(key: str) -> str:
    """A key for the terminal: bytes that are not UTF-8 are shown as escapes."""
    return key.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
