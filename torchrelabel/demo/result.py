"""What a demo run found, as figures and as a table."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchrelabel.demo.students import LABEL_KINDS, ONE_HOT, RELABEL, StudentRun

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
        scene_seed: Seed of the scenes.
        annotator: The annotator's name.
        grid: Cells of a label map, ``(h, w)``.
        annotator_top1: Share of test scenes whose large digit the annotator names.
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
    scene_seed: int
    annotator: str
    grid: tuple[int, int]
    annotator_top1: float
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
        figures = asdict(self)
        for run, entry in zip(self.runs, figures["runs"], strict=True):
            del entry["right"]  # thousands of lines
            entry["top1"] = run.top1
        figures["gain"] = asdict(gain_over_one_hot(self))
        return figures


@dataclass(frozen=True)
class Gain:
    """How much better ReLabel's students are than the others with the same seeds, in points of top-1.

    Attributes:
        other: The other kind of labels.
        by_seed: The difference for each seed.
        mean: Their mean.
        error_seeds: Standard error of the mean that other seeds of the students would show; None for a single seed.
        error_scenes: Standard error of the mean that other test scenes would show.
    """

    other: str
    by_seed: tuple[float, ...]
    mean: float
    error_seeds: float | None
    error_scenes: float

    @property
    def error(self) -> float:
        """Both errors together."""
        return math.hypot(self.error_seeds or 0.0, self.error_scenes)


def gain_over_one_hot(result: DemoResult) -> Gain:
    """Compare ReLabel's students with those of one-hot labels, seed by seed and scene by scene."""
    differences = 100 * (_right(result, RELABEL) - _right(result, ONE_HOT))  # [seeds, test scenes]: -100, 0 or 100
    by_seed, by_scene = differences.mean(axis=1), differences.mean(axis=0)
    return Gain(
        ONE_HOT,
        tuple(by_seed.tolist()),
        float(by_seed.mean()),
        _standard_error(by_seed) if len(by_seed) > 1 else None,
        _standard_error(by_scene),
    )


def _right(result: DemoResult, labels: str) -> NDArray[np.float64]:
    return np.array([run.right for run in result.runs_with(labels)], dtype=np.float64)


def _standard_error(values: NDArray[np.float64]) -> float:
    return float(values.std(ddof=1) / math.sqrt(len(values)))


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
    return f"ReLabel's top-1: {_words(gain_over_one_hot(result))}."


def _words(gain: Gain) -> str:
    by_seed = ", ".join(f"{value:+.1f}" for value in gain.by_seed)
    errors = f"{gain.error_scenes:.1f} from the test scenes"
    if gain.error_seeds is not None:
        errors = f"{gain.error_seeds:.1f} from the seeds, {errors}"
    clear = abs(gain.mean) >= 2 * gain.error
    return (
        f"{gain.mean:+.1f} points against {gain.other} (by seed {by_seed}; standard error {errors}"
        f"{'' if clear else ': too close to call'})"
    )


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
        f"The annotator's own top-1 is {result.annotator_top1:.1%}.",
        f"{result.wrong_labels:.0%} of the labels are wrong. Of the random crops, {result.crops_without:.1%} show "
        f"nothing of the labelled digit, and {result.crops_with_less_than_half:.1%} less than half of it.",
        f"The label maps ({result.grid[0]} x {result.grid[1]} cells) name {result.agreement_large:.1%} of the large "
        f"and {result.agreement_small:.1%} of the small digits right, where they are.",
    ]


def conditions(result: DemoResult) -> list[str]:
    """Say what the conditions stand for, a sentence or two each."""
    one_hot = statistics.mean(run.top1 for run in result.runs_with(ONE_HOT))
    lead = 100 * (result.annotator_top1 - one_hot)
    return [
        f"An annotator that others trained. It names the large digit in {result.annotator_top1:.1%} of the test "
        f"scenes, {abs(lead):.1f} points {'more' if lead >= 0 else 'less'} than the student on one-hot labels. In the "
        "paper the annotator has 88.2% and the student 77.5%: 10.7 points.",
        "The small digits stand for the other objects of a photograph, which a random crop may show instead of the "
        "labelled one.",
        f"The {result.wrong_labels:.0%} of wrong labels stand for photographs whose one label names a lesser object: "
        "each names a small digit that the scene shows.",
        "The test counts the large digit alone, as ImageNet's single label does. Its scenes have other handwritten "
        "digits than those for training, and no wrong labels.",
        f"The student sees each scene {result.sizes['student epochs']} times, in crops of 8 to 100% of its area, as is "
        "the default of torchvision and timm, and the paper's choice. All kinds of labels share one learning rate.",
    ]
