"""``torchrelabel check``: whether label maps say what they should."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import click

from torchrelabel.cli import DONE_WITH_LOSSES, FAILED

if TYPE_CHECKING:
    from torchrelabel.check import Report
    from torchrelabel.check.overlap import Overlap

_SHOWN = 20


@click.command(
    epilog="Examples: torchrelabel check maps.lmdb train --checkpoint annotator.pth. "
    "torchrelabel check val.lmdb imagenet/val --model tf_efficientnet_l2.ns_jft_in1k_475 --boxes ILSVRC/Annotations/val"
)
@click.argument("store", type=click.Path())
@click.argument("data", type=click.Path())
@click.option(
    "--model", metavar="NAME", help="The annotator, as timm names it. [default: the store's, if --checkpoint]"
)
@click.option("--checkpoint", type=click.Path(), help="Its weights: a .safetensors file, or one of torch.save's.")
@click.option("--image-size", type=int, metavar="PX", help="Side to which crops are squashed. [default: the store's]")
@click.option(
    "--boxes", metavar="DIR", type=click.Path(), help="Ground-truth boxes: XML as ImageNet's or Pascal VOC's."
)
@click.option("--crops", default=1000, show_default=True, help="Random crops that the model looks at, in all.")
@click.option("--box-images", default=1000, show_default=True, help="Images whose boxes are looked at, at most.")
@click.option("--seed", default=0, show_default=True, help="Of the sample of images and of the crops.")
@click.option("--batch-size", default=32, show_default=True, help="Crops per forward pass.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes CUDA if it can.")
@click.option("--plot", metavar="FILE", type=click.Path(), help="Draw the figures; .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def check(store: str, data: str, plot: str | None, as_json: bool, **options: Any) -> None:
    """Say whether the label maps in STORE show what they should of the images in DATA.

    With a model, the label pooled for random crops is held to the model's own prediction on each crop. With boxes, the
    top class of the cells in a box is held to the class of the box. Both are repeated with the axes of the maps
    exchanged, which gives a verdict on their orientation.

    Exit status: 0 done, 1 the axes are swapped, 3 done, but images or boxes could not be used.
    """
    if options["model"] is None and options["checkpoint"] is None and options["boxes"] is None:
        raise click.UsageError("There is nothing to hold the label maps to. Give --model, --checkpoint or --boxes.")
    for name in ("crops", "box_images", "batch_size"):
        if options[name] < 1:
            raise click.UsageError(f"--{name.replace('_', '-')} must be 1 or more, got {options[name]}.")
    if plot is not None:
        from torchrelabel.viz import require_matplotlib

        require_matplotlib()  # before the work, not after it
    from tqdm import tqdm

    from torchrelabel.check import check as run

    def progress(keys: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(keys, total=total, desc=what, unit="img", disable=None, leave=False)

    report = run(store, data, progress=progress, **options)
    click.echo(_printable(json.dumps(report.figures(), indent=2) if as_json else _words(report)))
    if plot is not None:
        from torchrelabel.check.plot import draw_report

        draw_report(report).savefig(plot, dpi=120)
        click.echo(f"Figures drawn in {plot}.", err=True)
    if report.verdict == "swapped":
        sys.exit(FAILED)
    if report.losses:
        sys.exit(DONE_WITH_LOSSES)


def _words(report: Report) -> str:
    lines = [
        f"{report.store}: maps of {report.images - report.without_map} of the {report.images} images in {report.data}"
    ]
    lines += [f"note: {note}" for note in report.notes]
    if report.bands:
        lines += ["", *_agreement(report)]
    if report.folder is not None:
        own = "" if report.folder.model is None else f"; the model's own prediction: {report.folder.model:.1%}"
        lines += [
            "",
            f"Top class of the whole image's pooled label is the folder's: {report.folder.label_map:.1%}{own}",
        ]
        lines[-1] += f" ({report.folder.images} images)."
    else:
        lines += ["", f"Agreement with the folders' labels cannot be told: {report.folder_unknown}."]
    if report.overlap is not None:
        lines += ["", *_overlap(report.overlap)]
    lines += ["", *_orientation(report)]
    if report.without_map:
        lines += ["", f"{report.without_map} images have no label map (torchrelabel verify --data lists them)."]
    lines += _listed("images could not be used:", report.broken)
    lines += _listed("files of boxes could not be used:", report.bad_xml)
    return "\n".join(lines)


def _agreement(report: Report) -> list[str]:
    assert report.commuting is not None  # measured on the images that the bands come from
    commuting = report.commuting
    residual = report.bands[0].kl_residual is not None
    titles = ["area of crop", "crops", "KL", "top-1", *(["KL res.", "top-1 res."] if residual else [])]
    lines = [
        f"Pooled label against {report.model}'s own prediction on the crop; KL(model || label) in nats"
        + (", res.: with fill='residual'" if residual else ""),
        _row([*titles, "transposed", "whole label"]),
    ]
    for band in report.bands:
        cells = [band.area, str(band.crops), f"{band.kl:.3f}", f"{band.top1:.1%}"]
        if band.kl_residual is not None and band.top1_residual is not None:
            cells += [f"{band.kl_residual:.3f}", f"{band.top1_residual:.1%}"]
        lines.append(_row([*cells, f"{band.top1_swapped:.1%}", f"{band.top1_whole:.1%}"]))
    lines.append("transposed: top-1 of the map with its axes exchanged; whole label: of one label for the whole image")
    how = "commutes" if commuting.commutes else "does not commute"
    lines.append(
        f"The head {how} with pooling: mean over cells and model differ by {commuting.relative_error:.1e} of the "
        f"largest logit, same top class for {commuting.same_top_class:.1%} of the images."
    )
    return lines


def _overlap(overlap: Overlap) -> list[str]:
    from torchrelabel.check import paper

    lines = [
        f"{overlap.crops} random crops of {overlap.images} images with {overlap.boxes} boxes; "
        f"IoU is the largest over an image's boxes (the paper does not say which it takes)",
        f"  IoU = 0:    {overlap.no_overlap:6.1%}   paper: {paper.NO_OVERLAP:.0%} (its first bin, IoU below .020)",
        f"  IoU > 0.5:  {overlap.above_half:6.1%}   paper: {paper.ABOVE_HALF:.1%} (its bin ends at .510; at .5 exactly "
        f"its figure gives about {paper.ABOVE_HALF_EXACT:.1%})",
        _row(["IoU", "crops", "confidence", "paper"]),
    ]
    step = len(overlap.counts) // 10
    for first in range(0, len(overlap.counts), step):
        bins = range(first, first + step)
        count = sum(overlap.counts[number] for number in bins)
        total = sum(overlap.counts[number] * (overlap.confidence[number] or 0.0) for number in bins)
        theirs = paper.CONFIDENCE[first : first + step]
        low, high = first / len(overlap.counts), (first + step) / len(overlap.counts)
        lines.append(
            _row(
                [
                    f"{low:.1f}-{high:.1f}",
                    str(count),
                    f"{total / count:.3f}" if count else "-",
                    f"{sum(theirs) / step:.3f}" if len(theirs) == step else "-",
                ]
            )
        )
    lines.append(
        "confidence: mean of the pooled label's largest share; the paper's rises to an IoU of 0.4, then is flat"
    )
    return lines


def _orientation(report: Report) -> list[str]:
    what = {"crops": "crops agree with the model", "boxes": "cells in boxes have the box's class on top"}
    lines = [
        f"Axes by {each.evidence}: {each.score_as_stored:.1%} of the {what[each.evidence]} as stored, "
        f"{each.score_swapped:.1%} transposed; images for each: {each.images_as_stored} to {each.images_swapped} "
        f"(p = {each.p_value:.2g}): {each.verdict}"
        for each in report.orientation
    ]
    meaning = {
        "as stored": "as stored. The maps lie as they should.",
        "swapped": "SWAPPED. The maps agree better with their axes exchanged: whoever wrote them mixed up rows and columns.",
        "cannot tell": "cannot tell"
        + (
            ": the crops and the boxes contradict each other."
            if report.contradictory
            else ". Try more --crops, or other images."
        ),
    }
    return [*lines, f"Verdict on orientation: {meaning[report.verdict]}"]


def _row(cells: list[str]) -> str:
    return "  " + cells[0].ljust(13) + "".join(cell.rjust(12) for cell in cells[1:])


def _listed(headline: str, items: dict[str, str]) -> list[str]:
    if not items:
        return []
    lines = [f"  {key}: {reason}" for key, reason in list(items.items())[:_SHOWN]]
    rest = len(items) - len(lines)
    return ["", f"{len(items)} {headline}", *lines, *([f"  ... and {rest} more"] if rest else [])]


def _printable(text: str) -> str:
    """Text for the terminal: bytes of file names that are not UTF-8 are shown as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
