"""``torchrelabel timm-train``: timm's train.py on label maps, without a changed line."""

from __future__ import annotations

import re
import sys
import traceback
from typing import Any

import click

from torchrelabel.cli import FAILED
from torchrelabel.errors import TorchRelabelError


class Grid(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    """``14`` or ``14x10``: rows, then columns, of tokens."""

    name = "rows[xcolumns]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Refuse what is no grid."""
        match = re.fullmatch(r"(\d+)(?:x(\d+))?", str(value))
        rows, columns = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if rows * columns < 2:
            self.fail(f"{value!r} is no grid of tokens: 14, or 14x10 for 14 rows and 10 columns.", param, ctx)
        return rows, columns


@click.command(
    "timm-train",
    short_help="Run timm's train.py on label maps.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Examples: torchrelabel timm-train --label-maps maps.lmdb train.py --data-dir imagenet --model resnet50. "
    "torchrun --nproc-per-node 4 -m torchrelabel timm-train --label-maps maps.lmdb train.py --data-dir imagenet",
)
@click.option("--label-maps", required=True, metavar="STORE", type=click.Path(), help="What annotate wrote.")
@click.option("--key-prefix", metavar="TEXT", help="What the store's keys have in front, such as train/.")
@click.option(
    "--missing",
    type=click.Choice(["error", "onehot"]),
    default="error",
    show_default=True,
    help="What to do with an image without a label map.",
)
@click.option(
    "--crop",
    type=click.Choice(["auto", "full"]),
    default="auto",
    show_default=True,
    help="full: the label of the whole image, whatever is cropped.",
)
@click.option(
    "--fill",
    type=click.Choice(["auto", "zero", "residual"]),
    default="auto",
    show_default=True,
    help="How to pool: zero is the paper's method.",
)
@click.option(
    "--onehot", type=click.FloatRange(0, 1), default=0.0, show_default=True, help="Share of the folder's own label."
)
@click.option(
    "--token-labels",
    type=Grid(),
    metavar="GRID",
    help="Train the model on a label for each of its tokens, too: their grid, such as 14 for 14 x 14.",
)
@click.argument("script", type=click.Path())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def timm_train(
    label_maps: str,
    script: str,
    arguments: tuple[str, ...],
    fill: str,
    token_labels: tuple[int, int] | None,
    **options: Any,
) -> None:
    """Run SCRIPT, timm's train.py, with ARGUMENTS of its own, on soft labels from label maps.

    The training dataset is wrapped as it is created; validation and all else stay as they are. Accuracy on the training
    set is not printed by timm, the training loss is that of soft labels.
    """
    from torchrelabel.integrations.timm import check_arguments, run_script
    from torchrelabel.pooling import LabelPooling

    check_arguments(script, arguments, label_maps)
    try:
        run_script(script, arguments, label_maps, pooling=LabelPooling(token_labels or 1, fill=fill), **options)
    except TorchRelabelError:
        raise
    except Exception:  # of the script: whoever wrote it wants to see where
        click.echo(traceback.format_exc(), err=True)
        sys.exit(FAILED)
