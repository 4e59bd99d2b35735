"""Evaluations as a table for the terminal: a row for each measure, a column for each model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

_SHOWN = 20

# In the order of the papers' tables, with what people call them. Others come behind, under their own names.
TITLES = {
    "top1": "top-1",
    "top5": "top-5",
    "calibration_error": "calibration error",
    "real": "ReaL",
    "real_top5": "ReaL top-5",
    "real_f1": "ReaL-F1",
    "label_coverage": "labels an image",
    "multilabel": "multi-label (Shankar)",
    "multilabel_per_class": "  per class",
    "multilabel_strict": "  strict",
    "multilabel_strict_per_class": "  strict, per class",
    "v2_top_images": "V2 TopImages",
    "v2_top_images_top5": "  top-5",
    "v2_matched_frequency": "V2 MatchedFrequency",
    "v2_matched_frequency_top5": "  top-5",
    "v2_threshold": "V2 Threshold0.7",
    "v2_threshold_top5": "  top-5",
    "v2": "V2",
    "v2_top5": "  top-5",
    "imagenet_a": "ImageNet-A",
    "imagenet_r": "ImageNet-R",
    "imagenet_c": "ImageNet-C, top-1",
    "imagenet_c_mce": "ImageNet-C, mCE",
    "fgsm": "FGSM",
    "background_challenge": "Background Challenge",
    "bg_gap": "BG-gap",
    "in9": "ImageNet-9",
    "in9_mixed_same": "  Mixed-Same",
    "in9_mixed_rand": "  Mixed-Rand",
}
LOWER_IS_BETTER = ("calibration_error", "imagenet_c_mce", "bg_gap")
# Not fractions of anything.
_PLAIN = ("label_coverage",)
_NO_MEASURES = ("fgsm_eps", "classes", "image_size")


def measures_of(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """The measures that are one number, of any of the models, in the order of the table."""
    there = {
        name
        for each in figures
        for name, value in each.items()
        if isinstance(value, float) and not isinstance(value, bool) and name not in _NO_MEASURES
    }
    return [name for name in TITLES if name in there] + sorted(there - TITLES.keys())


def words(figures: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The table of several evaluations, and what was left out, lost or is worth knowing of each.

    Args:
        figures: What ``Evaluation.figures`` gave for each.
        names: What to call each.
    """
    lines = []
    for name, each in zip(names, figures, strict=True):
        lines.append(f"{name}: {each['model']}, {each['weights']}, {each['classes']} classes; {each['shown']}")
    widths = [max(12, len(name) + 2) for name in names]
    lines += ["", _row("", names, widths)]
    for measure in measures_of(figures):
        cells = [_cell(measure, each.get(measure)) for each in figures]
        better = " (lower is better)" if measure in LOWER_IS_BETTER else ""
        lines.append(_row(TITLES.get(measure, measure), cells, widths) + better)
    for name, each in zip(names, figures, strict=True):
        if "occlusion" in each:
            lines += ["", *_occlusion(name, each["occlusion"])]
    said = [_remarks("", each) for each in figures]
    if all(remarks == said[0] for remarks in said):  # once, whatever number of models it is true of
        lines += said[0]
    else:
        for name, each in zip(names, figures, strict=True):
            lines += _remarks(name, each)
    return "\n".join(lines)


def _remarks(name: str, figures: Mapping[str, Any]) -> list[str]:
    before = f"{name}: " if name else ""
    lines = [f"{before}note: {note}" for note in figures["notes"]]
    lines += [f"{before}left out: {measure}: {reason}" for measure, reason in figures["left_out"].items()]
    for what, failures in figures["unreadable"].items():
        if failures:
            lines.append(f"{before}{_images(failures)} of {what} could not be used:")
            lines += [f"  {key}: {reason}" for key, reason in list(failures.items())[:_SHOWN]]
            lines += [f"  ... and {len(failures) - _SHOWN} more (--json lists them all)"] * (len(failures) > _SHOWN)
    for what, keys in figures["not_numbers"].items():
        lines.append(f"{before}{_images(keys)} of {what} got scores that are not numbers, and count as wrong:")
        lines += [f"  {key}" for key in keys[:_SHOWN]]
        lines += [f"  ... and {len(keys) - _SHOWN} more (--json lists them all)"] * (len(keys) > _SHOWN)
    return ["", *lines] if lines else []


def _images(some: Sized) -> str:
    return "1 image" if len(some) == 1 else f"{len(some)} images"


def _occlusion(name: str, curves: Mapping[str, Sequence[float]]) -> list[str]:
    return [
        f"{name}: top-1 by the side of the square, as a share of the image's",
        "  side                    " + "".join(f"{side:8.1%}" for side in curves["side"]),
        "  black inside (center)   " + "".join(f"{top1:8.1%}" for top1 in curves["center"]),
        "  black outside (boundary)" + "".join(f"{top1:8.1%}" for top1 in curves["boundary"]),
    ]


def _cell(measure: str, value: Any) -> str:
    if not isinstance(value, float):
        return "-"
    return f"{value:.2f}" if measure in _PLAIN else f"{value:.2%}"


def _row(title: str, cells: Sequence[str], widths: Sequence[int]) -> str:
    return f"  {title:24}" + "".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
