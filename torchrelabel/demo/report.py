"""report.html: what a demo run found, in one file that needs nothing else."""

from __future__ import annotations

import math
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from torchrelabel.demo import figures
from torchrelabel.demo.folders import SceneFolder
from torchrelabel.demo.result import HEAD, QUICK_NOTE, DemoResult, conditions, facts, table, verdict
from torchrelabel.demo.students import CURVE_STEP
from torchrelabel.store import LabelStore

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2127; --soft: #5b636e; --line: #d9dde3; --paper: #fff; --mark: #fff3d6; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #a2aab4; --line: #343a42; --paper: #14171b; --mark: #463a1c; }
}
body { font: 17px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper);
       max-width: 44rem; margin: 0 auto; padding: 1rem 1rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .5rem; border-bottom: 1px solid var(--line); text-align: right; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; } .small { color: var(--soft); font-size: .9rem; }
img { width: 100%; height: auto; } figure { margin: 1rem 0; }
figcaption { color: var(--soft); font-size: .9rem; }
pre { overflow-x: auto; padding: .7rem; border: 1px solid var(--line); border-radius: 6px; font-size: .85rem; }
.warning { background: var(--mark); padding: .6rem .8rem; border-radius: 6px; font-weight: 600; }
"""


def write_report(path: Path, result: DemoResult, folder: SceneFolder, store: LabelStore) -> None:
    """Write the report.

    Args:
        path: The file to write.
        result: What was measured.
        folder: The folder that the students learnt from.
        store: Its label maps.
    """
    sizes = result.sizes
    body = [
        "<h1>Labels for what the crop shows: a demo on handwritten digits</h1>",
        f'<p class="warning">{QUICK_NOTE}</p>' if result.quick else "",
        "<p>Each image below shows one large digit, which is its label, and one to three small ones. Training takes "
        "random crops, as small as 8 % of the image. A crop may show another digit, or none, but an ordinary label "
        "does not change with the crop. With ReLabel it does: an annotator says once for every place of the image "
        "which digit it sees there, and each crop gets the label of just its part.</p>",
        "<h2>What came out</h2>",
        _table(result),
        f'<p class="small">Per cent of {sizes["test scenes"]:,} test scenes, with other handwritten digits than in '
        f"training; mean ± standard deviation over the seeds {', '.join(map(str, result.seeds))}. The students differ "
        "in nothing but their labels: same network, same first weights, same order of images, same crops. Seconds are "
        f"for training one student for {sizes['student epochs']} epochs.</p>",
        f"<p>{escape(verdict(result))}</p>" if not result.quick else "",
        *(f"<p>{escape(fact)}</p>" for fact in facts(result)),
        _figure(
            figures.draw_curves(result),
            f"Top-1 after each epoch, on {math.ceil(sizes['test scenes'] / CURVE_STEP):,} of the test scenes. "
            "Lines: mean over the seeds; bands: lowest to highest.",
        ),
        "<h2>The scenes</h2>",
        f"<p>{sizes['scenes']:,} images, made of the real digits that come with scikit-learn. "
        f"{result.wrong_labels:.0%} of them have a wrong label: that of a small digit.</p>",
        _figure(figures.draw_scenes(folder), "Top: labelled right. Bottom: labelled wrong."),
        "<h2>What the conditions stand for</h2>",
        "<ul>" + "".join(f"<li>{escape(text)}</li>" for text in conditions(result)) + "</ul>",
        "<h2>The label maps</h2>",
        f"<p>The annotator, timm's {escape(result.annotator)}, comes with the package, trained before: in practice, "
        "too, an annotator is a classifier that others trained, for longer and on more. It learnt from scenes with "
        "digits of every size, all labelled right, and has seen none of the test scenes' digits. It annotated the "
        f"students' folder in {result.annotate_seconds:.0f} s with what this command runs:</p>",
        f"<pre>{escape(result.annotate_command)}</pre>",
        _figure(
            figures.draw_maps(folder, store),
            f"Bright: the annotator is sure to see the digit in this cell ({result.grid[0]} x {result.grid[1]} cells).",
        ),
        "<h2>Crops and their labels</h2>",
        _figure(
            figures.draw_crops(folder, store),
            "Random crops (white boxes). Blue: the label pooled from the map for this crop. Red: the one-hot label. "
            "From top to bottom: crops that show the labelled digit, only other digits, no digit (the first two of "
            "each kind that were drawn; a digit counts as shown if half of its box is).",
        ),
        "<h2>How it was made</h2>",
        f"<pre>{escape(result.command)}</pre>",
        f'<p class="small">{result.seconds:.0f} s in total. '
        + escape(", ".join(f"{name} {value}" for name, value in result.versions.items()))
        + ". "
        + escape(", ".join(f"{name}: {value:,}" for name, value in sizes.items()))
        + ". Method: ReLabel, Yun et al., CVPR 2021, "
        '<a href="https://arxiv.org/abs/2101.05022">arXiv 2101.05022</a>.</p>',
    ]
    page = (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>torchrelabel demo</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + "\n</body>\n</html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _table(result: DemoResult) -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in vars(HEAD).values())
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in vars(row).values()) + "</tr>" for row in table(result)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _figure(figure: Figure, caption: str) -> str:
    return (
        f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{figures.as_png(figure)}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
