"""``torchrelabel annotate``: write the label maps of a folder of images."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from torchrelabel.cli import DONE_WITH_LOSSES, data_options
from torchrelabel.folders import printable

if TYPE_CHECKING:
    from torchrelabel.annotate import Summary

_FAILURES_SHOWN = 20

_OPTIONS_OF = {"torchrun": ("split", "workers"), "ray": ("num_actors", "image_column", "key_column")}


@click.command(
    short_help="Write the label maps of a folder of images.",
    epilog="Example: torchrelabel annotate imagenet/train --model tf_efficientnet_l2.ns_jft_in1k_475 "
    "-o imagenet.lmdb --amp. On four GPUs: torchrun --nproc-per-node 4 -m torchrelabel annotate ...",
)
@click.argument("data", default=".", type=click.Path())
@click.option(
    "--model",
    required=True,
    metavar="NAME",
    help="A classifier of timm's, with or without a tag; hf-hub:OWNER/NAME, or local-dir:FOLDER.",
)
@click.option("-o", "--output", default="maps.lmdb", show_default=True, type=click.Path(), help="The store to write.")
@data_options
@click.option("--checkpoint", type=click.Path(), help="Weights: a .safetensors file, or one of torch.save's.")
@click.option("--state-dict-key", metavar="KEY", help="Where in it the weights are. [default: where scripts keep them]")
@click.option("--strip-prefix", metavar="TEXT", help="What their names begin with, e.g. 'model.'. [default: found out]")
@click.option(
    "--exif",
    type=click.Choice(["ignore", "apply"]),
    default="ignore",
    show_default=True,
    help="Whether images are turned as EXIF says; torchvision's loader does not.",
)
@click.option("--pretrained/--no-pretrained", default=True, show_default=True, help="timm's weights, or random ones.")
@click.option(
    "--topk", "top_k", type=click.IntRange(1), metavar="K", help="Classes kept per cell. [default: 5; 100 per window]"
)
@click.option(
    "--image-size",
    type=click.IntRange(1),
    metavar="PX",
    help="Side to which every image is squashed. [default: model's]",
)
@click.option(
    "--enlarge",
    type=click.FloatRange(1),
    metavar="FACTOR",
    help="Show images so many times as large for their cells; costs its square in forward passes, besides one. "
    "[default: 1.5; 1 where the model takes one size only]",
)
@click.option(
    "--windows",
    type=click.IntRange(2),
    metavar="N",
    help="Instead of cells, classify N x N overlapping windows as the model classifies any image: labels of crops are "
    "nearer to it, and any classifier will do. Costs N * N forward passes, besides one.",
)
@click.option(
    "--mean", type=float, nargs=3, metavar="R G B", help="Of the training, for images in 0..1. [default: model's]"
)
@click.option(
    "--std", type=float, nargs=3, metavar="R G B", help="Of the training, for images in 0..1. [default: model's]"
)
@click.option(
    "--interpolation",
    type=click.Choice(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    help="How images are resized. [default: model's]",
)
@click.option("--batch-size", default=32, type=click.IntRange(1), show_default=True, help="Images per forward pass.")
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that load images. [default: as many as cores, at most 8]"
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes CUDA if it can.")
@click.option("--amp/--no-amp", default=False, show_default=True, help="Compute in bfloat16.")
@click.option(
    "--codec", type=click.Choice(["float16", "uint8"]), default="float16", show_default=True, help="Storage of scores."
)
@click.option("--residual/--no-residual", default=True, show_default=True, help="Keep the mass of the other classes.")
@click.option(
    "--image-topk",
    "image_top_k",
    type=click.IntRange(0),
    metavar="T",
    help="Classes kept of the whole image, for calibrated labels of crops; 0: maps as the paper has them. "
    "[default: all up to 1024 classes, 256 of more]",
)
@click.option("--shards", type=click.IntRange(1), help="LMDB files in the store. [default: one per rank]")
@click.option(
    "--class-names",
    type=click.Path(),
    metavar="FILE",
    help="One name a line, or a .json list or object. [default: the checkpoint's, the folders', ImageNet's]",
)
@click.option(
    "--engine",
    type=click.Choice(["torchrun", "ray"]),
    default="torchrun",
    show_default=True,
    help="What runs it: this process, or those that torchrun started; or Ray Data, on a cluster, from folders, "
    ".parquet and .tar files here or at a URL such as s3://bucket/folder.",
)
@click.option("--num-actors", type=click.IntRange(1), help="ray: how many annotators. [default: one per GPU]")
@click.option("--image-column", metavar="NAME", help="ray: of Parquet files, the images. [default: image]")
@click.option("--key-column", metavar="NAME", help="ray: of Parquet files, their names. [default: paths in the images]")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as JSON.")
def annotate(as_json: bool, data: str, output: str, engine: str, **options: Any) -> None:
    """Write the label maps of the images in DATA (a folder or a tar file, default: here) to a store.

    Every image is squashed to the model's input size; the model's own head classifies each cell of its last feature
    grid. The same command continues a run that was interrupted, tries failed images again and adds new ones. It
    replaces no label map, also where an image was exchanged for another of its name.
    """
    run = _engine(engine, options)
    try:
        summary = run(data, output, **options)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"What was annotated is in {output}; the same command continues.") from None
    click.echo(json.dumps(_figures(summary)) if as_json else _words(summary))
    # torchrun ends all other ranks when one returns another status than 0, however far they are.
    if summary.failed and summary.world == 1:
        sys.exit(DONE_WITH_LOSSES)


def _engine(engine: str, options: dict[str, Any]) -> Callable[..., Summary]:
    """What runs it; takes the other engine's options out, and refuses them if they were given."""
    context = click.get_current_context()
    for name in _OPTIONS_OF["torchrun" if engine == "ray" else "ray"]:
        if context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise click.UsageError(f"--{name.replace('_', '-')} is not for --engine {engine}. Leave it out.")
        del options[name]
    # After --help and wrong use, since torch and timm take seconds to import.
    if engine == "ray":
        from torchrelabel.annotate.ray_engine import annotate_with_ray

        options["image_column"] = options["image_column"] or "image"
        return annotate_with_ray
    from torchrelabel.annotate import annotate as run

    return run


def _figures(summary: Summary) -> dict[str, Any]:
    return {
        "output": summary.output,
        "rank": summary.rank,
        "world": summary.world,
        "model": summary.model,
        "grid": list(summary.grid),
        "windows": summary.windows,
        "num_classes": summary.num_classes,
        "top_k": summary.top_k,
        "images": summary.images,
        "annotated": summary.annotated,
        "already_there": summary.already_there,
        "failed": [{"key": printable(key), "reason": printable(reason)} for key, reason in summary.failed],
        "left_out": {printable(extension): count for extension, count in summary.left_out.items()},
        "exif_turned": summary.exif_turned,
        "deep": summary.deep,
        "notes": [printable(note) for note in summary.notes],
        "bytes": summary.bytes,
        "bytes_per_image": round(summary.bytes_per_image, 1),
        "images_per_second": round(summary.images_per_second, 2),
        "seconds": round(summary.seconds, 3),
        "agreement": summary.agreement,
        "agreement_renumbered": summary.agreement_renumbered,
        "crop_fit": None if summary.crop_fit is None else asdict(summary.crop_fit),
    }


def _words(summary: Summary) -> str:
    h, w = summary.grid
    rank = f"rank {summary.rank} of {summary.world}, " if summary.world > 1 else ""
    if not summary.annotated and not summary.failed:
        lines = [f"{rank}Nothing to do: all {summary.images} images are in {summary.output} already."]
    else:
        lines = [
            f"{rank}{summary.output}: {summary.annotated} images annotated in {summary.seconds:.1f} s "
            f"({summary.images_per_second:.1f} images/s), {summary.already_there} were there already, "
            f"{len(summary.failed)} failed.",
        ]
    kind = "cells" if summary.windows is None else "windows"
    lines.append(
        f"{summary.model}: {h} x {w} {kind}, top {summary.top_k} of {summary.num_classes} classes, "
        f"{summary.bytes / 1e6:.1f} MB, {summary.bytes_per_image:.0f} bytes an image."
    )
    if summary.agreement is not None:
        lines.append(
            f"The pooled map's top class is the folder's for {summary.agreement:.1%} of the images annotated now."
        )
        if summary.agreement_renumbered is not None:
            lines.append(
                f"{'WARNING: ' if summary.agreement_renumbered > summary.agreement else ''}"
                f"timm numbers these folders in another order than torchvision, in which it would be "
                f"{summary.agreement_renumbered:.1%}. annotate --dataset folder takes timm's order, annotate alone "
                f"torchvision's."
            )
    if summary.crop_fit is not None:
        lines.append(str(summary.crop_fit))
    for key, reason in summary.failed[:_FAILURES_SHOWN]:
        lines.append(f"failed: {printable(key)}: {printable(reason)}")
    if len(summary.failed) > _FAILURES_SHOWN:
        lines.append(f"and {len(summary.failed) - _FAILURES_SHOWN} more (--json lists them all).")
    return "\n".join(lines)
