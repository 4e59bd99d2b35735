"""``torchrelabel evaluate``: how good a classifier is, by the measures of the papers."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from torchrelabel.cli import DONE_WITH_LOSSES, Picture

_FOLDER = click.Path()


@click.command(
    short_help="Measure classifiers on many test sets.",
    epilog="Examples: torchrelabel evaluate resnet50 --checkpoint relabel.pth --checkpoint onehot.pth --data "
    "imagenet/val --real real.json --v2 imagenetv2 --plot both.svg. "
    "torchrelabel evaluate torchvision:resnet50 --data imagenet/val --json",
)
@click.argument("models", metavar="MODEL...", nargs=-1, required=True)
@click.option(
    "--checkpoint",
    "checkpoints",
    type=click.Path(),
    multiple=True,
    help="Weights for MODEL: a .safetensors file, or one of torch.save's. Several are compared.",
)
@click.option(
    "--state-dict-key", metavar="KEY", help="Where in --checkpoint the weights lie: ema, ... [default: found]"
)
@click.option("--strip-prefix", metavar="TEXT", help="Take the weights whose names begin so alone, without it.")
@click.option("--pretrained/--no-pretrained", default=True, show_default=True, help="The library's weights, or random.")
@click.option("--data", metavar="DIR", type=_FOLDER, help="Validation images, a folder for each class.")
@click.option("--real", metavar="FILE", type=click.Path(), help="ReaL's real.json; timm: the copy that timm brings.")
@click.option("--multilabel", metavar="FILE", type=click.Path(), help="Shankar's human_accuracy_v3.0.0.json.")
@click.option("--v2", metavar="DIR", type=_FOLDER, help="ImageNetV2: its three sets, or one of them.")
@click.option("--imagenet-a", metavar="DIR", type=_FOLDER, help="ImageNet-A.")
@click.option("--imagenet-r", metavar="DIR", type=_FOLDER, help="ImageNet-R.")
@click.option("--imagenet-c", metavar="DIR", type=_FOLDER, help="ImageNet-C.")
@click.option("--backgrounds", metavar="DIR", type=_FOLDER, help="The Backgrounds Challenge (ImageNet-9).")
@click.option("--in9", metavar="FILE", type=click.Path(), help="in_to_in9.json. [default: that in --backgrounds]")
@click.option("--fgsm", is_flag=True, help="Top-1 on images that the model's own gradient perturbs.")
@click.option(
    "--eps", type=click.FloatRange(0, min_open=True), metavar="EPS", help="By how much, of 1. [default: 8/255]"
)
@click.option("--occlusion", is_flag=True, help="Top-1 with the centre, and the boundary, blacked out.")
@click.option("--sigmoid", is_flag=True, help="The outputs are independent sigmoids (BCE, MILe) and no softmax.")
@click.option(
    "--threshold",
    default=0.5,
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    show_default=True,
    help="Above which probability a sigmoid predicts its class.",
)
@click.option(
    "--class-names",
    type=click.Path(),
    metavar="FILE",
    help="Names of the class folders in the model's order: one a line, or .json.",
)
@click.option(
    "--folder-order",
    type=click.Choice(["text", "number"]),
    default="text",
    show_default=True,
    help="How folders without known names are numbered: as torchvision does, or as timm does.",
)
@click.option("--num-classes", type=click.IntRange(1), metavar="C", help="[default: the checkpoint's, or the model's]")
@click.option("--image-size", type=click.IntRange(1), metavar="PX", help="[default: the model's]")
@click.option(
    "--crop-pct",
    type=click.FloatRange(0, 1, min_open=True),
    metavar="SHARE",
    help="Of the resized image's side, what is cut out. [default: the model's]",
)
@click.option("--mean", type=float, nargs=3, metavar="R G B", help="For images in 0..1. [default: the model's]")
@click.option("--std", type=float, nargs=3, metavar="R G B", help="For images in 0..1. [default: the model's]")
@click.option(
    "--interpolation",
    type=click.Choice(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    help="How images are resized. [default: the model's]",
)
@click.option("--batch-size", default=64, type=click.IntRange(1), show_default=True, help="Images per forward pass.")
@click.option(
    "--workers", type=click.IntRange(0), help="Processes that load images. [default: as many as cores, at most 8]"
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes CUDA if it can.")
@click.option("--amp/--no-amp", default=False, show_default=True, help="Compute in bfloat16.")
@click.option(
    "--compare", metavar="FILE", type=click.Path(), multiple=True, help="Show what an earlier run printed with --json."
)
@click.option("--plot", metavar="FILE", type=Picture(), help="Draw the figures; .png, .svg or .pdf.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON, fractions from 0 to 1.")
def evaluate(
    models: tuple[str, ...],
    checkpoints: tuple[str, ...],
    compare: tuple[str, ...],
    plot: str | None,
    as_json: bool,
    eps: float | None,
    **options: Any,
) -> None:
    """Measure MODEL on every data set that is given, by the definitions of the papers.

    MODEL is the name of a classifier of timm's, or of torchvision's where timm has none of that name
    (torchvision:NAME where it has), or a .pt2 or .onnx file. Several MODELs, or several --checkpoint of one, are
    measured one after the other and shown side by side.

    What does not apply is left out, and said. --json prints one object; of several models, one that holds them in
    "models".

    Exit status: 0 done, 1 failed, 3 done, but images could not be read, have no class, or got scores that are no
    numbers.
    """
    if len(models) > 1 and checkpoints:
        raise click.UsageError("Checkpoints are those of one MODEL. Give one MODEL, or leave --checkpoint out.")
    sets = ("data", "v2", "imagenet_a", "imagenet_r", "imagenet_c", "backgrounds")
    if all(options[name] is None for name in sets):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in sets)
        raise click.UsageError(f"There is nothing to measure on. Give one or more of {named}.")
    for name in ("real", "multilabel", "fgsm", "occlusion"):
        if options[name] and options["data"] is None:
            raise click.UsageError(f"--{name} is measured on the validation images. Give their folder with --data.")
    from tqdm import tqdm

    from torchrelabel.evaluate import evaluate as run
    from torchrelabel.evaluate.words import words

    def progress(batches: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(batches, total=total, desc=what, unit="batch", disable=None, leave=False)

    earlier = [figures for file in compare for figures in _read(file)]
    if eps is not None:
        options["eps"] = eps
    wanted: list[tuple[str, str | None]] = [(models[0], each) for each in checkpoints] or [
        (each, None) for each in models
    ]
    results = [run(model, checkpoint=each, progress=progress, **options) for model, each in wanted]
    figures = [result.figures() for result in results]
    if as_json:
        text = json.dumps(figures[0] if len(figures) == 1 else {"models": figures}, indent=2)
    else:
        text = words(earlier + figures, _names(earlier + figures))
    click.echo(_printable(text))
    if plot is not None:
        from torchrelabel.evaluate.plot import draw_evaluations
        from torchrelabel.viz import save_picture

        save_picture(draw_evaluations(earlier + figures, _names(earlier + figures)), plot)
        click.echo(f"Figures drawn in {plot}.", err=True)
    if any(result.losses for result in results):
        sys.exit(DONE_WITH_LOSSES)


def _names(figures: Sequence[Mapping[str, Any]]) -> list[str]:
    """What to call each model: its file of weights, or its name; with a number where that is not enough."""
    names: list[str] = []
    for each in figures:
        _, is_file, path = each["weights"].partition("checkpoint ")
        name = Path(path).stem if is_file else each["model"]
        again = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({again + 1})" if again else name)
    return names


def _read(file: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        found: list[dict[str, Any]] = content.get("models", [content])
        for each in found:
            if not isinstance(each["model"], str) or not isinstance(each["left_out"], dict):
                raise TypeError
    except FileNotFoundError:
        raise FileNotFoundError(f"There is no file {file!r} to compare with.") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise ValueError(f"{file!r} is not what torchrelabel evaluate --json prints.") from None
    return found


def _printable(text: str) -> str:
    """Text for the terminal: bytes of file names that are not UTF-8 are shown as escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
