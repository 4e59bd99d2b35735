"""``torchrelabel import``: published label maps of others become a store."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from torchrelabel.cli import DONE_WITH_LOSSES
from torchrelabel.folders import printable

if TYPE_CHECKING:
    from torchrelabel.importers import Summary

_SHOWN = 20


@click.group(
    short_help="Turn published label maps into a store.",
    epilog="Example: torchrelabel import relabel relabel_imagenet imagenet/train -o maps.lmdb",
)
def import_() -> None:
    """Turn label maps that others have published into a store.

    SRC is what they have published, and DATA the folder of the images, from which their names are learnt.
    The same command continues an import that was interrupted. What cannot be used is listed, here and in the store.
    Exit status: 0 done, 1 failed, 2 wrong use, 3 done with losses: files that could not be used, images without a map,
    or maps without an image.
    """


def _shared(command: Callable[..., None]) -> Callable[..., None]:
    """The options of every format."""
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON."),
        click.option(
            "--codec",
            type=click.Choice(["float16", "uint8"]),
            default="float16",
            show_default=True,
            help="Storage of scores.",
        ),
        click.option(
            "--num-classes",
            default=1000,
            type=click.IntRange(1),
            show_default=True,
            help="Classes of the annotator.",
        ),
        click.option(
            "-o", "--output", default="maps.lmdb", show_default=True, type=click.Path(), help="The store to write."
        ),
        click.argument("data", required=False, type=click.Path()),
        click.argument("source", metavar="SRC", type=click.Path()),
    ):
        command = option(command)
    return command


def _tree(command: Callable[..., None]) -> Callable[..., None]:
    """The options of formats that are folders of files."""
    for option in (
        click.option(
            "--workers", type=click.IntRange(0), help="Processes that read. [default: as many as cores, at most 4]"
        ),
        click.option("--suffix", default=".JPEG", show_default=True, help="Extension of the images, without DATA."),
    ):
        command = option(command)
    return command


@import_.command(epilog="Example: torchrelabel import relabel relabel_imagenet imagenet/train -o maps.lmdb")
@_shared
@click.option(
    "--axes",
    type=click.Choice(["hw", "wh"]),
    default="hw",
    show_default=True,
    help="What the last two axes are: rows, columns, or columns, rows.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16"]),
    default="float32",
    show_default=True,
    help="Numbers of the files.",
)
@_tree
def relabel(as_json: bool, source: str, output: str, **options: Any) -> None:
    """Import ReLabel's maps of ImageNet from the folder SRC, which holds WNID/STEM.pt.

    Each file is a tensor [2, 5, 15, 15] of logits and class indices, and covers the whole image. Whether its last axis
    runs across or down is documented nowhere: see docs/importing.md.
    """
    from torchrelabel.importers import import_relabel

    _run(import_relabel, as_json, source, output, options)


@import_.command(
    epilog="Example: torchrelabel import token-labeling label_top5_train_nfnet imagenet/train -o maps.lmdb"
)
@_shared
@click.option("--assume-square", is_flag=True, help="All images are square; instead of DATA.")
@click.option(
    "--crop-pct",
    default=1.0,
    type=click.FloatRange(0, 1, min_open=True),
    show_default=True,
    help="Side of the centre square, by the short side.",
)
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float16",
    show_default=True,
    help="Numbers of the files.",
)
@_tree
def token_labeling(as_json: bool, source: str, output: str, **options: Any) -> None:
    """Import TokenLabeling's maps from the folder SRC, which holds WNID/STEM.pt.

    Each file is a tensor [2, 5, 18, 18] of logits and class indices, and covers the centre square of its image, so
    that the folder of the images, DATA, is needed for their sizes.
    """
    from torchrelabel.importers import import_token_labeling

    _run(import_token_labeling, as_json, source, output, options)


@import_.command(
    epilog="Example: torchrelabel import multilabel-tsv multilabel_annotations.tsv imagenet/train -o maps.lmdb"
)
@_shared
@click.option(
    "--topk",
    "top_k",
    type=click.IntRange(1),
    help="Classes kept of an image. [default: as many as the longest row has]",
)
def multilabel_tsv(as_json: bool, source: str, output: str, **options: Any) -> None:
    """Import MultiLabel-ImageNet's table from the file SRC: rows of path, gt, idx_list and prob_list.

    Its probabilities are for whole images, and become maps of one cell.
    """
    from torchrelabel.importers import import_multilabel_tsv

    _run(import_multilabel_tsv, as_json, source, output, options)


def _run(run: Callable[..., Summary], as_json: bool, source: str, output: str, options: dict[str, Any]) -> None:
    try:
        summary = run(source, output, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"What was imported is in {output}; the same command continues.") from None
    click.echo(json.dumps(_figures(summary), indent=2) if as_json else _words(summary))
    if not summary.lossless:
        sys.exit(DONE_WITH_LOSSES)


def _figures(summary: Summary) -> dict[str, Any]:
    return {
        "output": summary.output,
        "format": summary.format,
        "imported": summary.imported,
        "already_there": summary.already_there,
        "failed": [{"key": printable(key), "reason": printable(reason)} for key, reason in summary.failed],
        "images_without_map": [printable(key) for key in summary.images_without_map],
        "maps_without_image": [printable(name) for name in summary.maps_without_image],
        "repaired": dict(summary.repaired),
        "unchecked": summary.unchecked,
        "notes": [printable(note) for note in summary.notes],
        "num_classes": summary.num_classes,
        "top_k": summary.top_k,
        "grids": [{"grid": list(grid), "maps": count} for grid, count in sorted(summary.grids.items())],
        "partly_covered": summary.partly_covered,
        "share_not_covered": summary.share_not_covered,
        "agreement": summary.agreement,
        "bytes_before": summary.bytes_before,
        "bytes_after": summary.bytes_after,
        "maps_per_second": round(summary.maps_per_second, 1),
        "seconds": round(summary.seconds, 3),
    }


def _words(summary: Summary) -> str:
    grids = ", ".join(f"{count} of {h} x {w} cells" for (h, w), count in sorted(summary.grids.items()))
    lines = [
        f"{summary.output}: {summary.imported} label maps imported in {summary.seconds:.1f} s "
        f"({summary.maps_per_second:.0f} files/s), {summary.already_there} were there already, "
        f"{len(summary.failed)} failed.",
        f"{summary.format}: top {summary.top_k} of {summary.num_classes} classes{f', {grids}' if grids else ''}; "
        f"{summary.bytes_before / 1e6:.1f} MB before, {summary.bytes_after / 1e6:.1f} MB after.",
    ]
    if summary.partly_covered:
        lines.append(
            f"{summary.partly_covered} maps cover only a part of their image; on average over all, "
            f"{summary.share_not_covered:.1%} of an image is not covered, and never pooled."
        )
    if summary.agreement is not None:
        lines.append(f"The top class over a whole map is its folder's for {summary.agreement:.1%} of the maps.")
    lines += [f"{count} repaired: {what}." for what, count in sorted(summary.repaired.items())]
    if summary.unchecked:
        lines.append(
            f"WARNING: {summary.unchecked} maps come from .pt files as torch wrote before 1.6, without a checksum: "
            f"numbers that were damaged in them may have been taken for scores."
        )
    lines += _listed("failed:", [f"{key}: {reason}" for key, reason in summary.failed])
    lines += _listed("image without a map:", summary.images_without_map)
    lines += _listed("map without an image:", summary.maps_without_image)
    return "\n".join(lines)


def _listed(what: str, items: list[str]) -> list[str]:
    lines = [f"{what} {printable(item)}" for item in items[:_SHOWN]]
    if len(items) > _SHOWN:
        lines.append(f"and {len(items) - _SHOWN} more; --json lists them all.")
    return lines
