"""Ours against others, in one table, as JSON and as a plot.

    python -m benchmarks                                         # under 10 minutes on two cores
    python -m benchmarks --json table.json --plot table.png
    python -m benchmarks --only on_disk label_path --images 32   # some of the rows

Everything runs in one thread. Times are CPU times of this process, medians of several runs of the whole table, and each
of them a median of its repeats; what the ratio was from run to run stands beside it. Label maps are those of
`benchmarks.synthetic`; images are noise of 500 x 375 pixels; models have random weights.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import torch

from benchmarks import rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [part.__name__ for part in rows.ALL]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="which groups of rows")
    parser.add_argument("--images", type=int, default=64, help="number of JPEGs")
    parser.add_argument("--maps", type=int, default=1000, help="number of label maps")
    parser.add_argument("--runs", type=int, default=3, help="how often everything is measured")
    parser.add_argument("--json", type=Path, help="write the table to this file, too")
    parser.add_argument("--plot", type=Path, help="draw the ratios into this file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    started, parts = time.perf_counter(), [part for part in rows.ALL if part.__name__ in given.only]
    with tempfile.TemporaryDirectory() as folder:
        data = rows.Data(Path(folder), given.images, given.maps)
        # Run after run, so that what else the machine does for a minute is not in all figures of a row.
        runs = [[row for part in parts for row in part(data)] for _ in range(given.runs)]
    found = [rows.middle(same) for same in zip(*runs, strict=True)]
    print(f"{'':55} {'ours':>12} {'other':>12}  times better (in the runs) than")
    for row in found:
        what = f"{row.name} [{row.unit}]" if row.unit else row.name
        ratio = "{:.2f} ({:.2f} to {:.2f})".format(row.ratio, *row.ratios) if row.ratios else ""
        print(f"{what:55} {row.ours:12.5g} {row.theirs:12.5g}  {ratio:>22}  {row.other}")
    seconds = time.perf_counter() - started
    print(f"{seconds:.0f} s, medians of {given.runs} runs, torch {torch.__version__}, {platform.machine()}")
    if given.json:
        table = {"rows": [row.as_dict() for row in found], "seconds": seconds, "torch": torch.__version__}
        given.json.write_text(json.dumps(table, indent=2) + "\n")
    if given.plot:
        draw(found, given.plot)


_TICKS = [0.1, 0.2, 0.5, 1, 2, 5, 10, 20]


def draw(found: list[rows.Row], path: Path) -> None:
    """How many times better ours is, row by row, on a logarithmic scale."""
    from matplotlib.figure import Figure

    shown = [row for row in found if row.ratio is not None]
    figure = Figure(figsize=(8, 1 + 0.4 * len(shown)), layout="constrained")
    axes = figure.subplots()
    labels = [f"{row.name}\nagainst {row.other}" for row in shown]
    bars = axes.barh(labels, [row.ratio for row in shown], color=["C0" if row.ratio >= 1 else "C1" for row in shown])
    axes.bar_label(bars, [f"{row.ratio:.2f}" for row in shown], fontsize=9, padding=2)
    axes.set_xscale("log")
    axes.set_xticks(_TICKS, [f"{tick:g}" for tick in _TICKS])
    axes.set_xticks([], minor=True)
    axes.axvline(1, color="black", linewidth=0.8)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=9)
    axes.set_xlabel("times better")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
