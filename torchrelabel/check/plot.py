"""The figures of a report as one picture."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torchrelabel.check import paper
from torchrelabel.check.agreement import BANDS, Band
from torchrelabel.check.overlap import BINS, Overlap
from torchrelabel.check.report import Report
from torchrelabel.viz import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OWN, _OTHER, _SWAPPED, _PAPER = "#3b6fb6", "#2a9d6f", "#e4572e", "#888888"


def draw_report(report: Report) -> Figure:
    """Draw agreement and KL by area of the crop, and IoU and confidence by IoU, as far as the report has them.

    Returns:
        A matplotlib figure, not yet saved.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If the report has neither.
    """
    require_matplotlib()
    from matplotlib.figure import Figure

    names = {name for name, _ in BANDS}
    bands = [band for band in report.bands if band.area in names]
    rows = bool(bands) + (report.overlap is not None)
    if not rows:
        raise ValueError("There is nothing to draw: no image could be used.")
    figure = Figure(figsize=(9, 3.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 2, squeeze=False)
    if bands:
        _draw_agreement(axes[0][0], bands)
        _draw_kl(axes[0][1], bands)
    if report.overlap is not None:
        _draw_cdf(axes[-1][0], report.overlap)
        _draw_confidence(axes[-1][1], report.overlap)
    for axis in axes.flat:
        axis.legend(fontsize=8, frameon=False)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    figure.suptitle(f"axes of the label maps: {report.verdict}", fontsize=10)
    return figure


def _draw_agreement(axis: Axes, bands: list[Band]) -> None:
    areas = [band.area for band in bands]
    axis.plot(areas, [band.top1 for band in bands], "o-", color=_OWN, label="pooled label")
    residual = [band.top1_residual for band in bands if band.top1_residual is not None]
    if residual:
        axis.plot(areas, residual, "s-", color=_OTHER, label="with the residual")
    axis.plot(areas, [band.top1_swapped for band in bands], "x--", color=_SWAPPED, label="axes exchanged")
    axis.plot(areas, [band.top1_whole for band in bands], ":", color=_PAPER, label="one label an image")
    axis.set(ylim=(0, 1.02), xlabel="area of the crop", ylabel="top-1 agreement with the model")


def _draw_kl(axis: Axes, bands: list[Band]) -> None:
    areas = [band.area for band in bands]
    axis.plot(areas, [band.kl for band in bands], "o-", color=_OWN, label="pooled label")
    residual = [band.kl_residual for band in bands if band.kl_residual is not None]
    if residual:
        axis.plot(areas, residual, "s-", color=_OTHER, label="with the residual")
    axis.set(xlabel="area of the crop", ylabel="KL(model || label), nats")
    axis.set_ylim(bottom=0)


def _draw_cdf(axis: Axes, overlap: Overlap) -> None:
    edges = [(number + 1) / BINS for number in range(BINS)]
    axis.plot([0, *edges], [overlap.no_overlap, *overlap.cdf], color=_OWN, label=f"{overlap.crops} crops")
    edges = [(number + 1) / paper.CDF_BINS for number in range(len(paper.CDF))]
    axis.plot(edges, paper.CDF, ":", color=_PAPER, label="paper, figure 2 (ImageNet)")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="IoU of random crop and box", ylabel="share of the crops below")


def _draw_confidence(axis: Axes, overlap: Overlap) -> None:
    points = [((number + 0.5) / BINS, value) for number, value in enumerate(overlap.confidence) if value is not None]
    axis.plot([x for x, _ in points], [y for _, y in points], ".-", color=_OWN, label="largest share of the label")
    x = [number * paper.CONFIDENCE_STEP for number in range(len(paper.CONFIDENCE))]
    axis.plot(x, paper.CONFIDENCE, ":", color=_PAPER, label="paper, figure 5 (ImageNet)")
    axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="IoU of random crop and box", ylabel="mean confidence")
