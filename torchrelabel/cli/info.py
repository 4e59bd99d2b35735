"""``torchrelabel info``: what a store holds, and how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

_LABELS = {
    "records": "label maps",
    "failures": "images that failed",
    "complete": "complete",
    "num_classes": "classes",
    "class_names": "class names",
    "top_k": "classes kept per cell",
    "residual": "residual",
    "image_top_k": "classes of whole images",
    "calibration": "labels calibrated",
    "score_kind": "scores",
    "grid": "grid (h x w)",
    "coverage": "part of the image covered",
    "codec": "codec",
    "shards": "shards",
    "files": "files",
    "bytes": "bytes on disk",
    "bytes_per_map": "bytes per label map",
    "dataset": "dataset",
    "class_folders": "class folders",
    "format_version": "format version",
}

_NAMES_SHOWN = 3


@click.command(short_help="What a store holds, and how it was made.", epilog="Example: torchrelabel info imagenet.lmdb")
@click.argument("store", default="maps.lmdb", type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def info(store: str, as_json: bool) -> None:
    """Say what the store STORE (default: maps.lmdb) holds and how it was made."""
    figures = _figures(store)
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    click.echo(click.format_filename(store))
    figures["class_names"] = figures["class_names"] and _first(figures["class_names"])
    figures["calibration"] = figures["calibration"] and _fit(figures["calibration"])
    for name, label in _LABELS.items():
        click.echo(f"  {label:26} {_shown(figures[name])}")
    click.echo("  annotator")
    for name, value in figures["annotator"].items():
        click.echo(f"    {name:24} {_shown(value)}")


def _figures(path: str) -> dict[str, Any]:
    from torchrelabel.store import LabelStore

    store = LabelStore(path)
    header = store.header
    records = len(store)
    size = sum(_allocated(file) for file in Path(path).iterdir() if file.suffix == ".mdb")
    return {
        "store": click.format_filename(store.path),
        "records": records,
        "failures": len(store.failures),
        "complete": header.complete,
        "num_classes": header.num_classes,
        "class_names": header.class_names and list(header.class_names),
        "top_k": header.top_k,
        "residual": header.residual,
        "image_top_k": header.image_top_k,
        "calibration": None if header.calibration is None else header.calibration.as_dict(),
        "score_kind": header.score_kind,
        "grid": list(header.grid) if header.grid else None,
        "coverage": header.coverage if isinstance(header.coverage, str) else list(header.coverage),
        "codec": header.codec,
        "shards": header.shards,
        "files": sum(1 for file in Path(path).iterdir() if file.suffix == ".mdb"),
        "bytes": size,
        "bytes_per_map": round(size / records, 1) if records else None,
        "dataset": header.dataset,
        "class_folders": len(header.class_to_idx) if header.class_to_idx else 0,
        "format_version": header.format_version,
        "annotator": header.annotator,
    }


def _allocated(file: Path) -> int:
    """Bytes that a file occupies; LMDB files may be sparse. Windows does not tell, and has no sparse ones here."""
    status = file.stat()
    return getattr(status, "st_blocks", -(-status.st_size // 512)) * 512


def _first(names: list[str]) -> str:
    # The name of a folder need not be UTF-8.
    shown = ", ".join(names[:_NAMES_SHOWN]).encode("utf-8", "backslashreplace").decode()
    return f"{shown}{', ...' if len(names) > _NAMES_SHOWN else ''} ({len(names)})"


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", " ")
    if isinstance(value, (list, tuple)):
        return " x ".join(map(str, value)) if len(value) == 2 else ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items()) or "-"
    return str(value)


def _fit(calibration: dict[str, Any]) -> str:
    """How near calibrated labels are to the annotator, as far as that was kept."""
    fit = calibration["fit"]
    if not fit:
        return "yes"
    return (
        f"KL {fit['kl']:.2f}, same top class {fit['agreement']:.0%} (one label an image: {fit['kl_whole']:.2f}, "
        f"{fit['agreement_whole']:.0%})"
    )
