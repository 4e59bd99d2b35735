"""``torchrelabel show``: a picture of one image's label map and the soft label of a crop."""

from __future__ import annotations

import json
from pathlib import Path

import click

from torchrelabel.cli import Picture


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


@click.command(epilog="Example: torchrelabel show n01440764/n01440764_10026.JPEG --crop 0.5,0,1,1 -o right-half.svg")
@click.argument("key")
@click.option("--store", default="maps.lmdb", show_default=True, type=click.Path(), help="Where its label map is.")
@click.option("--data", default=".", show_default=True, type=click.Path(), help="The folder that was annotated.")
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
@click.option("--json", "as_json", is_flag=True, help="Print the soft label's largest shares as JSON.")
def show(
    key: str,
    store: str,
    data: str,
    crop: tuple[float, float, float, float],
    output: str,
    fill: str,
    as_json: bool,
) -> None:
    """Draw the image KEY with its label map: where each class is seen, and the soft label of a crop.

    KEY is the image's path relative to the annotated folder, as in the store.
    """
    from PIL import Image

    from torchrelabel.data.records import label_map_of
    from torchrelabel.pooling import LabelPooling
    from torchrelabel.store import LabelStore
    from torchrelabel.store.header import class_for_people
    from torchrelabel.view import ViewBox
    from torchrelabel.viz import draw_label_map, save_picture

    label_store = LabelStore(store)
    record = label_store[key]
    path = Path(data) / key
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist. Say with --data which folder was annotated into {store}.")
    with Image.open(path) as file:
        image = file.convert("RGB")
    header = label_store.header
    label_map = label_map_of(record, header, (image.height, image.width), ViewBox(*crop))
    pooling = LabelPooling(fill=fill)
    figure = draw_label_map(image, label_map, class_names=header.class_names, pooling=pooling, title=key)
    save_picture(figure, output)
    label = pooling(label_map)
    top = label.topk(min(header.top_k, header.num_classes))
    names = header.class_names
    shares = [
        {"class": index, "name": names and names[index], "share": round(share, 4)}
        for index, share in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
    if as_json:
        click.echo(json.dumps({"key": key, "crop": list(crop), "picture": output, "label": shares}, indent=2))
        return
    click.echo(f"{output}: {key}, crop {crop}")
    for entry in shares:
        click.echo(f"  {entry['share']:7.4f}  {class_for_people(entry['class'], names)}")
