"""``torchrelabel show``: pictures of label maps and of the soft labels of crops."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import click

from torchrelabel.cli import Picture, data_options
from torchrelabel.folders import key_as_typed, printable

if TYPE_CHECKING:
    from torchrelabel.annotate.images import ImagesFound
    from torchrelabel.store import LabelStore


class _Box(click.ParamType):  # type: ignore[type-arg, unused-ignore] # generic since click 8.4
    name = "X1,Y1,X2,Y2"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, float, float, float]:
        if isinstance(value, tuple):
            return value
        try:
            x1, y1, x2, y2 = (float(part) for part in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not four numbers separated by commas, such as 0.5,0,1,1 for the right half", param)
        if not (0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1):
            self.fail(
                f"{value!r} is no part of the image: the numbers are fractions of the image's width and height, "
                f"0 <= X1 < X2 <= 1 and 0 <= Y1 < Y2 <= 1, such as 0.5,0,1,1 for the right half",
                param,
            )
        return x1, y1, x2, y2


@click.command(
    short_help="Draw label maps over their images.",
    epilog="Examples: torchrelabel show maps.lmdb imagenet/train n01440764/n01440764_10026.JPEG --crop 0.5,0,1,1. "
    "torchrelabel show maps.lmdb birds --random 12 -o gallery.png",
)
@click.argument("store", type=click.Path())
@click.argument("data", type=click.Path())
@click.argument("keys", metavar="[KEY]...", nargs=-1)
@data_options
@click.option("--random", "count", type=click.IntRange(1), metavar="N", help="Draw N images of the store at random.")
@click.option("--seed", default=0, show_default=True, help="Of the choice of --random.")
@click.option("--crop", type=_Box(), default="0,0,1,1", show_default=True, help="In fractions of the image.")
@click.option(
    "-o",
    "--output",
    default="label-map.svg",
    show_default=True,
    type=Picture(),
    help="The picture; .png, .svg or .pdf.",
)
@click.option(
    "--fill",
    type=click.Choice(["auto", "zero", "residual"]),
    default="auto",
    show_default=True,
    help="How the label follows from the map; auto: as calibrated, where the store is. zero: the paper's rule.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the soft labels' largest shares as JSON.")
def show(
    store: str,
    data: str,
    keys: tuple[str, ...],
    dataset: str | None,
    split: str,
    count: int | None,
    seed: int,
    crop: tuple[float, float, float, float],
    output: str,
    fill: str,
    as_json: bool,
) -> None:
    """Draw images of DATA with their label maps in STORE, and the soft label of a crop.

    DATA is what was annotated: a folder or a tar file, or with --dataset what timm reads. KEY is an image's path
    relative to DATA, as in the store, or any path that leads to it. One image is drawn with the top class of every cell
    and a heat map for each class that the crop shows; several become a gallery.
    """
    if bool(keys) == (count is not None):
        raise click.UsageError("Name the images to draw (KEY ...), or give --random N, and not both.")
    from torchrelabel.annotate.sources import check_split, open_data
    from torchrelabel.pooling import LabelPooling
    from torchrelabel.store import LabelStore
    from torchrelabel.viz import draw_gallery, draw_label_map, save_picture

    check_split(dataset, split)
    label_store = LabelStore(store)
    names = label_store.header.class_names
    if count is not None:
        chosen = sorted(label_store)
        chosen = sorted(random.Random(seed).sample(chosen, min(count, len(chosen))))
        if not chosen:
            raise ValueError(f"{store} holds no label maps, so that there is nothing to draw. Annotate images first.")
    else:
        chosen = [key_as_typed(key, data, label_store) for key in keys]
    images = open_data(data, dataset, split)
    pictures = [_picture(label_store, images, key, crop) for key in chosen]
    pooling = LabelPooling(fill=fill)
    if len(pictures) == 1:
        (one,) = pictures
        figure = draw_label_map(
            one.image, one.label_map, class_names=names, pooling=pooling, title=one.title, coverage=one.coverage
        )
    else:
        figure = draw_gallery(pictures, class_names=names, pooling=pooling)
    save_picture(figure, output)
    labels = [_shares(pooling(picture.label_map), label_store.header.top_k, names) for picture in pictures]
    if as_json:
        figures = [
            {"key": printable(key), "crop": list(crop), "picture": output, "label": label}
            for key, label in zip(chosen, labels, strict=True)
        ]
        click.echo(json.dumps(figures[0] if len(figures) == 1 else figures, indent=2))
        return
    _print_words(output, crop, chosen, labels, names)


def _picture(store: LabelStore, images: ImagesFound, key: str, crop: tuple[float, float, float, float]) -> Any:
    """An image with its label map, seen through the crop."""
    from torchrelabel.annotate.images import exif_of, load_image
    from torchrelabel.data.agreement import check_size
    from torchrelabel.data.records import label_map_of
    from torchrelabel.view import ViewBox
    from torchrelabel.viz import Picture

    record = store[key]
    try:
        with images.open(key) as file:
            image = load_image(file, exif_of(store.header))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"There is no {printable(key)} in {printable(str(images.root))}. Give what was annotated into {store.path} "
            f"(DATA)."
        ) from None
    check_size(record, (image.height, image.width), key, store)
    label_map = label_map_of(record, store.header, (image.height, image.width), ViewBox(*crop))
    return Picture(image, label_map, printable(key), record.coverage)


def _shares(label: Any, count: int, names: tuple[str, ...] | None) -> list[dict[str, Any]]:
    """The largest shares of a soft label, plain values."""
    top = label.topk(min(count, len(label)))
    return [
        {"class": index, "name": names and names[index], "share": round(share, 4)}
        for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _print_words(
    output: str,
    crop: tuple[float, float, float, float],
    keys: list[str],
    labels: list[list[dict[str, Any]]],
    names: tuple[str, ...] | None,
) -> None:
    from torchrelabel.store.header import class_for_people

    for key, label in zip(keys, labels, strict=True):
        click.echo(f"{output}: {printable(key)}, crop {crop}")
        for entry in label:
            click.echo(f"  {entry['share']:7.4f}  {class_for_people(entry['class'], names)}")
