"""What a demo run found, as figures and as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torchrelabel.demo.students import LABEL_KINDS, ONE_HOT, RELABEL, SMOOTHED, StudentRun

QUICK_NOTE = "This was a quick run: too few scenes and epochs to learn anything. Its numbers mean nothing."


@dataclass(frozen=True)
class DemoResult:
    """Everything that a demo run measured.

    Attributes:
        quick: Whether the run was too small to mean anything.
        command: The command line that does the same.
        annotate_command: The command line that makes the same label maps.
        sizes: Numbers of scenes and epochs.
        seeds: Seeds of the students.
        annotator: The annotator's name.
        grid: Cells of a label map, ``(h, w)``.
        annotator_seconds: Time to train the annotator.
        annotate_seconds: Time to annotate.
        agreement_large: Share of large digits that the label maps name right in their place.
        agreement_small: The same for small digits.
        wrong_labels: Share of the students' scenes with a wrong label.
        crops_without: Share of random crops without any part of the labelled digit.
        crops_with_less_than_half: Share of random crops with less than half of the labelled digit's box.
        runs: The students.
        seconds: The whole run.
        versions: Of Python, torch, ...
    """

    quick: bool
    command: str
    annotate_command: str
    sizes: dict[str, int]
    seeds: tuple[int, ...]
    annotator: str
    grid: tuple[int, int]
    annotator_seconds: float
    annotate_seconds: float
    agreement_large: float
    agreement_small: float
    wrong_labels: float
    crops_without: float
    crops_with_less_than_half: float
    runs: tuple[StudentRun, ...]
    seconds: float
    versions: dict[str, str]

    def runs_with(self, labels: str) -> list[StudentRun]:
        """Return the students of one kind of labels, in the order of their seeds."""
        return [run for run in self.runs if run.labels == labels]

    def as_dict(self) -> dict[str, Any]:
        """Return all figures, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Row:
    """One line of the table: the cells as text."""

    labels: str
    top1: str
    any_present: str
    seconds: str


HEAD = Row("labels", "top-1 (large digit)", "names any digit present", "seconds")


def table(result: DemoResult) -> list[Row]:
    """Return mean and spread over the seeds for each kind of labels, in per cent and seconds."""
    rows = []
    for labels in LABEL_KINDS:
        runs = result.runs_with(labels)
        rows.append(
            Row(
                labels,
                mean_and_spread([100 * run.top1 for run in runs]),
                mean_and_spread([100 * run.any_present for run in runs]),
                f"{statistics.mean(run.trained.seconds for run in runs):.1f}",
            )
        )
    return rows


def mean_and_spread(values: Sequence[float]) -> str:
    """Write ``mean ± standard deviation``; the mean alone for a single value.

    >>> mean_and_spread([83.0, 85.0])
    '84.0 ± 1.4'
    """
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def verdict(result: DemoResult) -> str:
    """Say in one sentence what came out, whichever way it went."""
    if result.quick:
        return QUICK_NOTE
    differences = []
    for other in (ONE_HOT, SMOOTHED):
        pairs = zip(result.runs_with(RELABEL), result.runs_with(other), strict=True)
        differences.append([100 * (relabel.top1 - plain.top1) for relabel, plain in pairs])
    texts = [
        f"{statistics.mean(by_seed):+.1f} points against {other} "
        f"(by seed: {', '.join(f'{value:+.1f}' for value in by_seed)})"
        for other, by_seed in zip((ONE_HOT, SMOOTHED), differences, strict=True)
    ]
    return f"ReLabel's top-1: {texts[0]}, {texts[1]}."


def text_report(result: DemoResult) -> str:
    """Write the closing lines of the command."""
    rows = [HEAD, *table(result)]
    widths = [max(len(getattr(row, name)) for row in rows) for name in asdict(HEAD)]
    lines = []
    for row in rows:
        first, *others = zip(asdict(row).values(), widths, strict=True)
        lines.append("  ".join([first[0].ljust(first[1]), *(text.rjust(width) for text, width in others)]))
    lines.insert(1, "  ".join("-" * width for width in widths))
    seeds = ", ".join(map(str, result.seeds))
    return "\n".join(
        [
            *lines,
            "",
            f"Per cent of {result.sizes['test scenes']:,} test scenes; mean ± standard deviation over seeds {seeds}.",
            *facts(result),
            verdict(result),
        ]
    )


def facts(result: DemoResult) -> list[str]:
    """Return what else was measured, a sentence each."""
    return [
        f"{result.wrong_labels:.0%} of the labels are wrong. Of the random crops, {result.crops_without:.1%} show "
        f"nothing of the labelled digit, and {result.crops_with_less_than_half:.1%} less than half of it.",
        f"The label maps ({result.grid[0]} x {result.grid[1]} cells) name {result.agreement_large:.1%} of the large "
        f"and {result.agreement_small:.1%} of the small digits right, where they are.",
    ]
