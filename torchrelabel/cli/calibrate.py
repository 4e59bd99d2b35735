"""``torchrelabel calibrate``: fit the labels of crops to the annotator again."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import click

from torchrelabel.cli import data_options


@click.command(
    short_help="Fit the labels of crops to the annotator again.",
    epilog="Example: torchrelabel calibrate maps.lmdb birds --checkpoint resnet50.pth --images 512",
)
@click.argument("store", type=click.Path())
@click.argument("data", type=click.Path())
@data_options
@click.option("--model", metavar="NAME", help="The annotator, by timm's name. [default: the one that the store names]")
@click.option("--checkpoint", type=click.Path(), help="Its weights, where they are not timm's.")
@click.option("--state-dict-key", metavar="KEY", help="Where in it the weights are. [default: where scripts keep them]")
@click.option("--strip-prefix", metavar="TEXT", help="What their names begin with, e.g. 'model.'. [default: found out]")
@click.option(
    "--images", default=128, type=click.IntRange(16), show_default=True, help="Of how many 4 crops each are looked at."
)
@click.option("--seed", default=0, show_default=True, help="Of the sample of images and of the crops.")
@click.option("--batch-size", default=32, type=click.IntRange(1), show_default=True, help="Crops per forward pass.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, cuda:1, ...; auto takes CUDA if it can.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def calibrate(
    store: str,
    data: str,
    dataset: str | None,
    split: str,
    images: int,
    seed: int,
    batch_size: int,
    as_json: bool,
    **options: Any,
) -> None:
    """Fit how the labels of crops follow from the label maps in STORE, on crops of the images in DATA.

    DATA is what was annotated: a folder or a tar file, or with --dataset what timm reads.

    ``annotate`` does so when it ends. Do it again for more certainty, with more images, or after many were added.
    Trainings that run already keep the labels that they began with.
    """
    from tqdm import tqdm

    from torchrelabel.annotate.calibrate import FEWEST_IMAGES
    from torchrelabel.annotate.calibrate import calibrate as run
    from torchrelabel.annotate.made_by import annotator_of, check_annotator_of
    from torchrelabel.annotate.sources import check_split, find_data
    from torchrelabel.store import LabelStore

    def progress(keys: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(keys, total=total, desc=what, unit="img", disable=None, leave=False)

    check_split(dataset, split)
    label_store = LabelStore(store)
    check_annotator_of(label_store.header, **options)
    found = find_data(data, dataset, split, skip=[store])
    annotator = annotator_of(label_store.header, **options)
    for note in annotator.notes:
        click.echo(note, err=True)
    fit = run(label_store, found, annotator, images=images, seed=seed, batch_size=batch_size, progress=progress)
    if fit is None:
        raise click.ClickException(
            f"Fewer than {FEWEST_IMAGES} of the images in {data} are those of a label map in {store}, too few to "
            f"calibrate labels on. Give what was annotated, or annotate more."
        )
    click.echo(json.dumps(asdict(fit), indent=2) if as_json else str(fit))
