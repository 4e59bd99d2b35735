"""Evaluations as a picture: bars for each measure, and occlusion curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torchrelabel.evaluate.words import LOWER_IS_BETTER, TITLES, measures_of
from torchrelabel.viz import require_matplotlib

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NOT_DRAWN = ("label_coverage",)


def draw_evaluations(figures: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Draw several evaluations beside each other.

    Args:
        figures: What ``Evaluation.figures`` gave for each.
        names: What to call each.

    Returns:
        A matplotlib figure, not yet saved.

    Raises:
        ImportError: If matplotlib is not installed.
        ValueError: If there is no measure to draw.
    """
    require_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import PercentFormatter

    measures = [name for name in measures_of(figures) if name not in _NOT_DRAWN]
    if not measures:
        raise ValueError("No measure was taken, so there is nothing to draw.")
    curves = any("occlusion" in each for each in figures)
    height = 1.6 + 0.22 * len(measures) * (len(figures) + 1)
    figure = Figure(figsize=(14 if curves else 8, max(3.2, height)), layout="constrained")
    axes = figure.subplots(1, 2 if curves else 1, squeeze=False)[0]
    _draw_bars(axes[0], figures, names, measures)
    if curves:
        _draw_curves(axes[1], figures, names)
        axes[1].yaxis.set_major_formatter(PercentFormatter(1, 0))
        axes[1].xaxis.set_major_formatter(PercentFormatter(1, 0))
    axes[0].xaxis.set_major_formatter(PercentFormatter(1))
    return figure


def _draw_bars(axis: Axes, figures: Sequence[Mapping[str, Any]], names: Sequence[str], measures: Sequence[str]) -> None:
    thick = 0.8 / len(figures)
    for number, (each, name) in enumerate(zip(figures, names, strict=True)):
        there = [row for row, measure in enumerate(measures) if measure in each]
        values = [each[measures[row]] for row in there]
        bars = axis.barh([row + number * thick for row in there], values, thick, label=name)
        axis.bar_label(bars, [f"{value:.1%}" for value in values], fontsize=7, padding=2)
    axis.set_yticks([row + 0.4 - thick / 2 for row in range(len(measures))], _titles(measures), fontsize=8)
    axis.invert_yaxis()
    axis.margins(x=0.12, y=0.02)
    axis.legend(fontsize=8)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _titles(measures: Sequence[str]) -> list[str]:
    """What to call each bar. The table's rows are indented below the one that they belong to, bars cannot be."""
    above = ""
    titles = {}
    for measure in dict.fromkeys([*TITLES, *measures]):
        title = TITLES.get(measure, measure)
        if title.startswith(" "):
            title = f"{above}, {title.strip()}"
        else:
            above = title
        titles[measure] = title + (" (lower is better)" if measure in LOWER_IS_BETTER else "")
    return [titles[measure] for measure in measures]


def _draw_curves(axis: Axes, figures: Sequence[Mapping[str, Any]], names: Sequence[str]) -> None:
    for number, (each, name) in enumerate(zip(figures, names, strict=True)):
        if "occlusion" in each:
            curves = each["occlusion"]
            axis.plot(curves["side"], curves["center"], ".-", color=f"C{number}", label=f"{name}, black inside")
            axis.plot(curves["side"], curves["boundary"], ".:", color=f"C{number}", label=f"{name}, black outside")
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="side of the square, as a share of the image's", ylabel="top-1")
    axis.legend(fontsize=8)
