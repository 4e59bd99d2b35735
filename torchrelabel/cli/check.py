"""``torchrelabel check``: whether label maps say what they should."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import Any

import click

from torchrelabel.cli import DONE_WITH_LOSSES, FAILED, Picture, data_options
from torchrelabel.folders import printable


@click.command(
    short_help="Do the label maps show what they should?",
    epilog="Examples: torchrelabel check maps.lmdb train --checkpoint annotator.pth. "
    "torchrelabel check val.lmdb imagenet/val --model tf_efficientnet_l2.ns_jft_in1k_475 "
    "--boxes ILSVRC/Annotations/val",
)
@click.argument("store", type=click.Path())
@click.argument("data", type=click.Path())
@data_options
@click.option("--model", metavar="NAME", help="The annotator, by timm's name. [default: the store's, if --checkpoint]")
@click.option("--checkpoint", type=click.Path(), help="Its weights: a .safetensors file, or one of torch.save's.")
@click.option("--state-dict-key", metavar="KEY", help="Where in it the weights are. [default: where scripts keep them]")
@click.option("--strip-prefix", metavar="TEXT", help="What their names begin with, e.g. 'model.'. [default: found out]")
@click.option(
    "--image-size",
    type=click.IntRange(1),
    metavar="PX",
    help="Side to which crops are squashed. [default: the store's, or the model's]",
)
@click.option("--boxes", metavar="DIR", type=click.Path(), help="XML files with boxes, as ImageNet's or Pascal VOC's.")
@click.option(
    "--crops",
    default=1000,
    type=click.IntRange(1),
    show_default=True,
    help="Random crops that the model looks at, in all.",
)
@click.option(
    "--box-images",
    default=1000,
    type=click.IntRange(1),
    show_default=True,
    help="Images whose boxes are looked at, at most.",
)
@click.option("--seed", default=0, show_default=True, help="Of the sample of images and of the crops.")
@click.option("--batch-size", default=32, type=click.IntRange(1), show_default=True, help="Crops per forward pass.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes CUDA if it can.")
@click.option("--plot", metavar="FILE", type=Picture(), help="Draw the figures; .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def check(store: str, data: str, plot: str | None, as_json: bool, **options: Any) -> None:
    """Say whether the label maps in STORE show what they should of the images in DATA.

    DATA is what was annotated: a folder or a tar file, or with --dataset what timm reads.

    With a model, the label pooled for random crops is compared with the model's own prediction on each crop. With
    boxes, the top class of the cells in a box is compared with the class of the box. Both are repeated with the axes of
    the maps exchanged, which gives a verdict on their orientation.

    Exit status: 0 done, 1 the axes are swapped or the maps are not the model's, 3 done, but images or boxes could not
    be used.
    """
    if options["model"] is None and options["checkpoint"] is None and options["boxes"] is None:
        raise click.UsageError(
            "There is nothing to compare the label maps with. Give --model, --checkpoint or --boxes."
        )
    from tqdm import tqdm

    from torchrelabel.check import check as run
    from torchrelabel.check.words import words

    def progress(keys: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(keys, total=total, desc=what, unit="img", disable=None, leave=False)

    report = run(store, data, progress=progress, **options)
    click.echo(printable(json.dumps(report.figures(), indent=2) if as_json else words(report)))
    if plot is not None:
        from torchrelabel.check.plot import draw_report
        from torchrelabel.viz import save_picture

        save_picture(draw_report(report), plot)
        click.echo(f"Figures drawn in {plot}.", err=True)
    if report.verdict == "swapped" or report.faults:
        sys.exit(FAILED)
    if report.losses:
        sys.exit(DONE_WITH_LOSSES)
