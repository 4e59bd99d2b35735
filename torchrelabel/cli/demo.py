"""``torchrelabel demo``: the whole method in minutes, on real handwritten digits."""

from __future__ import annotations

import json
from pathlib import Path

import click


@click.command(
    short_help="See the method work, in minutes, without a GPU.", epilog="Example: torchrelabel demo --seeds 5"
)
@click.option(
    "-o",
    "--output",
    "out",
    default="torchrelabel-demo",
    show_default=True,
    type=click.Path(),
    help="Folder to write to.",
)
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="Students per kind of labels.")
@click.option("--scene-seed", default=0, show_default=True, type=click.IntRange(0), help="Draws other scenes.")
@click.option("--quick", is_flag=True, help="Everything in seconds, too small for its numbers to mean anything.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def demo(out: str, seeds: int, scene_seed: int, quick: bool, as_json: bool) -> None:
    """Compare one-hot labels with ReLabel's on scenes of real handwritten digits.

    Makes image folders, writes label maps with an annotator whose weights come with the package, trains the same
    student on each kind of labels, prints a table and writes report.html. Takes a few minutes on two cores, without a
    GPU.
    """
    # After --help and wrong use, since torch and timm take seconds to import.
    from torchrelabel.demo import demo as run
    from torchrelabel.demo.result import text_report

    result = run(out, seeds=seeds, scene_seed=scene_seed, quick=quick)
    if as_json:
        click.echo(json.dumps(result.as_dict(), indent=2))
        return
    click.echo(text_report(result))
    click.echo(f"The report, with pictures: {Path(out) / 'report.html'}")
