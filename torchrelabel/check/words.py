"""A report as text for the terminal."""

from __future__ import annotations

from torchrelabel.check import paper
from torchrelabel.check.overlap import Overlap
from torchrelabel.check.report import Report

_SHOWN = 20


def words(report: Report) -> str:
    """The report as a table with its verdict; file names as they are, surrogates included."""
    maps = report.images - report.without_map
    lines = [f"{report.store}: maps of {maps} of the {report.images} images in {report.data}"]
    lines += [f"note: {note}" for note in report.notes]
    if report.bands:
        lines += ["", *_agreement(report)]
    if report.folder is not None:
        own = "" if report.folder.model is None else f"; that of the model's own prediction: {report.folder.model:.1%}"
        lines += [
            "",
            f"Of {report.folder.images} whole images, the top class of the pooled label is the folder's: "
            f"{report.folder.label_map:.1%}{own}",
            *(f"  {on_top} on top in {folder}: {images} images" for folder, on_top, images in report.folder.mistaken),
        ]
    else:
        lines += ["", f"Agreement with the folders' labels cannot be told: {report.folder_unknown}."]
    if report.overlap is not None:
        lines += ["", *_overlap(report.overlap)]
    lines += ["", *_orientation(report)]
    lines += [f"FAULT: {fault}" for fault in report.faults]
    if report.without_map:
        lines += ["", f"Images without a label map: {report.without_map} (torchrelabel verify STORE DATA lists them)."]
    lines += _listed("images could not be used:", report.broken)
    lines += _listed("files of boxes could not be used:", report.bad_xml)
    return "\n".join(lines)


def _agreement(report: Report) -> list[str]:
    commuting = report.commuting
    residual = report.bands[0].kl_residual is not None
    titles = ["area of crop", "crops", "KL", "top-1", *(["KL res.", "top-1 res."] if residual else [])]
    lines = [
        f"Pooled label against {report.model}'s own prediction on the crop, squashed to {report.image_size} px; "
        "KL(model || label) in nats" + (", res.: with fill='residual'" if residual else ""),
        _row([*titles, "transposed", "whole label"]),
    ]
    for band in report.bands:
        cells = [band.area, str(band.crops), f"{band.kl:.3f}", f"{band.top1:.1%}"]
        if band.kl_residual is not None and band.top1_residual is not None:
            cells += [f"{band.kl_residual:.3f}", f"{band.top1_residual:.1%}"]
        lines.append(_row([*cells, f"{band.top1_swapped:.1%}", f"{band.top1_whole:.1%}"]))
    lines.append("transposed: top-1 of the map with its axes exchanged; whole label: of one label for the whole image")
    if commuting is None:
        return lines
    how = "commutes" if commuting.commutes else "does not commute"
    return [
        *lines,
        f"The head {how} with pooling: mean over cells and model differ by {commuting.relative_error:.1e} of the "
        f"largest logit, same top class for {commuting.same_top_class:.1%} of the images.",
    ]


def _overlap(overlap: Overlap) -> list[str]:
    lines = [
        f"{overlap.crops} random crops of {overlap.images} images with {overlap.boxes} boxes; "
        f"IoU is the largest over an image's boxes (the paper does not say which it takes)",
        f"  IoU = 0:    {overlap.no_overlap:6.1%}   paper: {paper.NO_OVERLAP:.0%} (its first bin, IoU below .020)"
        + ("" if overlap.confidence_without is None else f"; confidence {overlap.confidence_without:.3f}"),
        f"  IoU > 0.5:  {overlap.above_half:6.1%}   paper: {paper.ABOVE_HALF:.1%} (its bin ends at .510; at .5 exactly "
        f"its figure gives about {paper.ABOVE_HALF_EXACT:.1%})",
        _row(["IoU", "crops", "confidence", "paper"]),
    ]
    bins = len(overlap.counts)
    step = bins // 10
    for first in range(0, bins, step):
        count = sum(overlap.counts[first : first + step])
        total = sum(overlap.counts[number] * (overlap.confidence[number] or 0) for number in range(first, first + step))
        theirs = paper.CONFIDENCE[first : first + step]
        lines.append(
            _row(
                [
                    f"{first / bins:.1f}-{(first + step) / bins:.1f}",
                    str(count),
                    f"{total / count:.3f}" if count else "-",
                    f"{sum(theirs) / step:.3f}" if len(theirs) == step else "-",
                ]
            )
        )
    lines.append("confidence: the pooled label's largest share, mean; the paper's rises to an IoU of 0.4, then is flat")
    return lines


def _orientation(report: Report) -> list[str]:
    what = {
        "crops": "crops agree with the model",
        "cells": "cells have the model's top class",
        "boxes": "cells in boxes have the box's class on top",
    }
    lines = [
        f"Axes by {each.evidence}: {each.score_as_stored:.1%} of the {what[each.evidence]} as stored, "
        f"{each.score_swapped:.1%} transposed; images for each: {each.images_as_stored} to {each.images_swapped} "
        f"(p = {each.p_value:.2g}): {each.verdict}"
        for each in report.orientation
    ]
    hint = "the pieces of evidence contradict each other." if report.contradictory else "try more images, or boxes."
    meaning = {
        "as stored": "as stored. The maps lie as they should.",
        "swapped": "SWAPPED. The maps agree better transposed: whoever wrote them exchanged rows and columns.",
        "cannot tell": f"cannot tell; {hint}",
    }
    return [*lines, f"Verdict on orientation: {meaning[report.verdict]}"]


def _row(cells: list[str]) -> str:
    return "  " + cells[0].ljust(12) + "".join(cell.rjust(12) for cell in cells[1:])


def _listed(headline: str, items: dict[str, str]) -> list[str]:
    if not items:
        return []
    lines = [f"  {key}: {reason}" for key, reason in list(items.items())[:_SHOWN]]
    rest = len(items) - len(lines)
    return ["", f"{len(items)} {headline}", *lines, *([f"  ... and {rest} more"] if rest else [])]
