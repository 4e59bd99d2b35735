"""How near labels are to what the annotator says of the crop itself, and what that costs: rate against distortion.

    python benchmarks/fidelity.py IMAGES --model tf_efficientnet_lite2 --checkpoint WEIGHTS --plot fidelity.png

Prints a Markdown table with a row for each way to label random crops (RandomResizedCrop's defaults), the same for all:

- bytes an image: of its record, and on disk, as `du` counts a store's file (of 1,000 records, or of few large ones);
- annotator forwards an image, at the model's own size: an image twice as large counts as 4;
- KL(annotator on the crop || label) in nats, total variation, share of the crops with the same top class, each with its
  standard error (the mean of an image is one observation); and KL by area of the crop.

What has parameters was fitted on every other image and measured on the rest, then the other way round. "Nothing cut
off" keeps all classes of each cell: the limit of labels from such maps by this rule. One label for the whole image is
kept beside a map of one cell, since the format has no record without one. Several sizes are no setting of the product;
the whole image is counted once. FKD (https://arxiv.org/abs/2112.01528) stores labels of crops, and trains on just these
crops: here each crop gets the label of the stored one of the largest IoU, its top 10 kept and the rest even. Its bytes
are estimated: n x (4 x 2 for the box + 10 x 4 for the classes + 2).
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import kl_div
from torchvision.ops import box_iou

from torchrelabel.annotate.annotator import Annotator, TopScores
from torchrelabel.annotate.calibrate import fit_by_area, labels_by_area, pool_map_alone
from torchrelabel.annotate.crops import draw_crops, pool_crops
from torchrelabel.annotate.images import find_images, load_image, squashed
from torchrelabel.data.records import label_map_of
from torchrelabel.label_map import LabelMap
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.layout import encode_key, shard_file
from torchrelabel.store.record import pack_record

BANDS = (0.08, 0.2, 0.4, 0.6, 0.8, 1.0)
ENLARGE, WINDOWS, SEED = (1.0, 1.5, 2.0), (2, 3), 0
STORED_CROPS, STORED_CLASSES, RECORDS_ON_DISK = (4, 16), 10, 1000
BYTES_MARKED, MOST_BYTES_DRAWN = (200, 500, 1000, 2000, 5000, 10000), 20000
KL_MARKED = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.5, 2.0)
# Drawn in one colour each: the first of these words that the name of a row has.
FAMILIES = ("calibrated", "windows", "two sizes", "FKD", "paper", "one label")


@dataclass(frozen=True)
class Looks:
    """What the annotator says of n images, and of crops of them.

    Boxes are xyxy in fractions of the image, shares are logarithms. ``cells`` are all classes of each cell, by how the
    annotator took them: "x1.5" is enlarged, "2 x 2 windows" of windows, "one" has one cell only.
    """

    keys: list[str]
    canvases: list[tuple[int, int]]
    boxes: Tensor  # [n, crops, 4], of the crops to label
    area: Tensor  # [n, crops], of these, in shares of the image's
    live: Tensor  # [n, crops, C], the annotator's shares of these
    overlap: Tensor  # [n, 16, crops], IoU of these with other crops
    stored: Tensor  # [n, 16, C], the annotator's shares of those
    cells: dict[str, list[TopScores]]


@dataclass(frozen=True)
class Kept:
    """The label maps of n images as a store returns them, and the mean bytes of a record and of its place on disk."""

    maps: list[LabelMap]
    record_bytes: float
    disk_bytes: float


@dataclass(frozen=True)
class Row:
    """A way to label crops. Each measure is a mean and its standard error; a band that few images have has none."""

    name: str
    record_bytes: float
    disk_bytes: float | None
    forwards: float
    kl: tuple[float, float]
    tv: tuple[float, float]
    agreement: tuple[float, float]
    kl_by_area: list[tuple[float, float] | None]


def look(root: Path, annotators: dict[str, Annotator], crops: int, limit: int | None) -> Looks:
    """Show images and crops of them to the annotator, each once in each way; the first of these looks at crops."""
    annotator = next(iter(annotators.values()))
    found = find_images(root)
    keys, canvases, drawn, said = found.keys[:limit], [], [], []
    cells: dict[str, list[TopScores]] = {way: [] for way in ("one", *annotators)}
    for number, key in enumerate(keys, 1):
        with found.open(key) as file:
            image = load_image(file)
        canvases.append((image.height, image.width))
        counts = ((SEED, crops), (SEED + 1, STORED_CROPS[-1]))
        boxes = torch.cat([draw_crops(*canvases[-1], count, seed=seed, key=key) for seed, count in counts])
        pixels = [squashed(image, annotator.image_size, annotator.interpolation, box) for box in boxes.tolist()]
        said.append(annotator.whole(annotator.normalise(torch.stack(pixels))).log_softmax(1).cpu())
        drawn.append(boxes / torch.tensor([image.width, image.height] * 2))
        for way, each in annotators.items():
            sizes = (each.image_size, each.map_size)
            own, other = (each.normalise(squashed(image, size, each.interpolation)[None]) for size in sizes)
            top = each.top_scores(own, each.num_classes, enlarged=other)
            scores, classes, of_image = (part[0].cpu() for part in (top.scores, top.classes, top.image_scores))
            cells[way].append(TopScores(scores, classes, None, of_image))
        cells["one"].append(TopScores(scores[:, :1, :1], classes[:, :1, :1], None, of_image))
        print(f"looked at {number} of {len(keys)} images", file=sys.stderr)
    (boxes, others), (live, stored) = (torch.stack(all_).tensor_split([crops], 1) for all_ in (drawn, said))
    overlap = torch.stack([box_iou(*pair) for pair in zip(others, boxes, strict=True)])
    return Looks(keys, canvases, boxes, (boxes[..., 2:] - boxes[..., :2]).prod(-1), live, overlap, stored, cells)


def keep(looks: Looks, way: str, k: int, image_k: int, codec: str = "float16", residual: bool = True) -> Kept:
    """Write label maps with the top k of each cell and the top image_k of the whole image into a store; read them."""
    num_classes, puts = looks.live.shape[-1], []
    residual = residual and k < num_classes
    for top in looks.cells[way]:
        rest = top.scores[k:].logsumexp(0).numpy() if residual else None
        arrays = {"scores": top.scores[:k].numpy(), "classes": top.classes[:k].numpy(), "residual": rest}
        puts.append({**arrays, "image_scores": top.image_scores.numpy() if image_k else None})
    # Of a store of a few records, the pages that any store has would be a large part.
    copies = max(1, RECORDS_ON_DISK // len(puts)) if k < num_classes else 1
    settings = {"num_classes": num_classes, "top_k": k, "image_top_k": image_k, "codec": codec, "residual": residual}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "maps.lmdb"
        with LabelStoreWriter(path, **settings) as writer:
            for copy in range(copies):
                for key, put in zip(looks.keys, puts, strict=True):
                    writer.put(f"{copy:04}/{key}", **put)
        store, names = LabelStore(path), [f"0000/{key}" for key in looks.keys]
        maps = [label_map_of(store[name], store.header, size) for name, size in zip(names, looks.canvases, strict=True)]
        sizes = [len(pack_record(store.header, encode_key(name), **put)) for name, put in zip(names, puts, strict=True)]
        store.close()
        disk_bytes = (path / shard_file(0)).stat().st_blocks * 512
    return Kept(maps, sum(sizes) / len(sizes), disk_bytes / (copies * len(puts)))


def pooled(kept: Kept, looks: Looks, fill: str | None = None) -> Tensor:
    """The logits of each crop, ``[n, crops, C]``, of the map alone; or the label by a rule of LabelPooling."""
    pool = partial(pool_crops, fill=fill) if fill else pool_map_alone
    return torch.stack([pool(label_map, boxes) for label_map, boxes in zip(kept.maps, looks.boxes, strict=True)])


def whole(kept: Kept, looks: Looks) -> Tensor:
    """The logits of the whole image, for each crop, ``[n, crops, C]``."""
    return torch.stack([label_map.image_scores for label_map in kept.maps])[:, None].expand_as(looks.live)


def fitted(looks: Looks, *parts: Tensor) -> Tensor:
    """Labels joined from parts ``[n, crops, C]`` by area, those of each half fitted on the other half of the images."""
    labels, crops = torch.empty_like(looks.live), (looks.live, looks.area, *parts)
    for first in (0, 1):
        live, area, *others = (value[1 - first :: 2].flatten(0, 1) for value in crops)
        found = fit_by_area(others, live, area)
        _, area, *mine = (value[first::2].flatten(0, 1) for value in crops)
        labels[first::2] = labels_by_area(mine, area, *found).unflatten(0, (-1, labels.shape[1]))
    return labels


def nearest_stored(looks: Looks, count: int) -> Tensor:
    """The label of the nearest of ``count`` stored crops, ``[n, crops, C]``."""
    nearest = looks.overlap[:, :count].argmax(1)
    shares = looks.stored.gather(1, nearest[..., None].expand_as(looks.live)).exp()
    top = shares.topk(STORED_CLASSES)
    rest = (1 - top.values.sum(-1, keepdim=True)).clamp(min=1e-6) / (shares.shape[-1] - STORED_CLASSES)
    return rest.expand_as(shares).scatter(-1, top.indices, top.values).log().log_softmax(-1)


def forwards_of(way: str) -> float:
    """Annotator forwards an image, at the model's own size."""
    if "windows" in way:
        return 1 + int(way.split()[0]) ** 2
    enlarge = float(way[1:])
    return 1 + enlarge**2 if enlarge > 1 else 1


def by_image(values: Tensor, chosen: Tensor) -> tuple[float, float] | None:
    """Mean and standard error of values ``[n, crops]`` over those chosen; the mean of an image is one observation."""
    counts = chosen.sum(1)
    means = ((values * chosen).sum(1) / counts)[counts > 0]
    return (float(means.mean()), float(means.std() / len(means) ** 0.5)) if len(means) > 1 else None


def measure(looks: Looks) -> list[Row]:
    """Label the crops in every way."""
    rows: list[Row] = []
    all_classes = looks.live.shape[-1]
    area = looks.area.clamp(BANDS[0] + 1e-4, BANDS[-1])  # crops of whole pixels may be a little less than .08

    def add(name: str, kept: Sequence[Kept], forwards: float, label: Tensor, bytes_: float | None = None) -> None:
        kl = kl_div(label, looks.live, reduction="none", log_target=True).sum(-1)
        tv = (label.exp() - looks.live.exp()).abs().sum(-1) / 2
        same = (label.argmax(-1) == looks.live.argmax(-1)).float()
        overall = [by_image(values, area > 0) for values in (kl, tv, same)]
        bands = [by_image(kl, (area > low) & (area <= high)) for low, high in pairwise(BANDS)]
        sizes = (bytes_ or sum(one.record_bytes for one in kept), sum(one.disk_bytes for one in kept) or None)
        rows.append(Row(name, *sizes, forwards, *overall, bands))

    def add_calibrated(words: str, way: str, k: int, image_k: int, codec: str = "float16") -> None:
        kept = keep(looks, way, min(k, all_classes), image_k, codec)
        label = fitted(looks, pooled(kept, looks), whole(kept, looks))
        add(f"{way if 'windows' in way else f'calibrated, {way}'}, {words}", [kept], forwards_of(way), label)

    one = keep(looks, "one", 1, all_classes)
    add("one label for the whole image", [one], 1, whole(one, looks).log_softmax(-1))
    add("one label, temperature by area", [one], 1, fitted(looks, whole(one, looks)))
    for fill, residual in (("zero", False), ("residual", True)):
        kept = keep(looks, "x1", 5, 0, residual=residual)
        add(f'paper\'s rule, top 5, fill="{fill}"', [kept], 1, pooled(kept, looks, fill))
    for way, k in (("x1.5", 5), ("x1", 5), ("x2", 5), ("x1.5", 20)):
        add_calibrated(f"top {k}, float16", way, k, all_classes)
    for way, k in (("x1.5", 5), ("x2", 5), ("x1.5", 10), ("x2", 10), ("x1.5", 20)):
        add_calibrated(f"top {k}, uint8", way, k, all_classes, "uint8")
    for image_k, codec in ((250, "float16"), (100, "float16"), (100, "uint8")):
        add_calibrated(f"top 5, {codec}, {image_k} of the image", "x1.5", 5, min(image_k, all_classes), codec)
    add_calibrated("nothing cut off", "x1.5", all_classes, all_classes)
    for n in WINDOWS:
        for k, codec in ((100, "float16"), (100, "uint8"), (30, "uint8")):
            add_calibrated(f"top {k}, {codec}", f"{n} x {n} windows", k, all_classes, codec)
        add_calibrated("nothing cut off", f"{n} x {n} windows", all_classes, all_classes)
    for k, words in ((5, "top 5"), (all_classes, "all classes")):
        small, large = (keep(looks, way, k, all_classes) for way in ("x1", "x2"))
        label = fitted(looks, pooled(small, looks), pooled(large, looks), whole(small, looks))
        add(f"two sizes, x1 and x2, {words}", [small, keep(looks, "x2", k, 0)], 5, label)
    for count in STORED_CROPS:
        estimate = count * (4 * 2 + STORED_CLASSES * 4 + 2)
        add(f"FKD, {count} crops (estimate)", [], count, nearest_stored(looks, count), estimate)
    return rows


def table(rows: Sequence[Row]) -> str:
    """The rows in Markdown."""
    bands = [f"KL, {low:g}-{high:g}" for low, high in pairwise(BANDS)]
    head = ["#", "label", "bytes", "on disk", "forwards", "KL", "TV", "same top class", *bands]
    lines = [head, ["---"] * len(head)]
    for number, row in enumerate(rows, 1):
        sizes = ["" if size is None else f"{size:,.0f}" for size in (row.record_bytes, row.disk_bytes)]
        overall = [f"{mean:.3f} ± {error:.3f}" for mean, error in (row.kl, row.tv, row.agreement)]
        by_area = ["" if band is None else f"{band[0]:.2f}" for band in row.kl_by_area]
        lines.append([str(number), row.name, *sizes, f"{row.forwards:g}", *overall, *by_area])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw(rows: Sequence[Row], path: Path, title: str) -> None:
    """Draw KL and agreement against bytes, by the number of the row, and KL by area."""
    from matplotlib.figure import Figure

    figure, drawn = Figure(figsize=(16, 7), layout="constrained"), set()
    against_kl, against_top, by_area = figure.subplots(1, 3)
    for number, row in enumerate(rows, 1):
        colour = next(f"C{index}" for index, words in enumerate(FAMILIES) if words in row.name)
        for axis, (mean, error) in ((against_kl, row.kl), (against_top, row.agreement)):
            if row.record_bytes > MOST_BYTES_DRAWN:
                axis.axhline(mean, color=colour, ls="--", lw=1)
                axis.annotate(str(number), (1, mean), (-14, 3), axis.get_yaxis_transform(), "offset points", fontsize=8)
                continue
            axis.errorbar(row.record_bytes, mean, error, fmt="o", color=colour, ms=5, elinewidth=0.3)
            axis.plot([row.record_bytes, row.disk_bytes or row.record_bytes], [mean] * 2, "-|", color=colour, lw=0.6)
            axis.annotate(str(number), (row.record_bytes, mean), (5, 3), textcoords="offset points", fontsize=8)
        means = [band[0] if band else float("nan") for band in row.kl_by_area]
        by_area.plot(means, "-" if colour in drawn else "o-", color=colour, lw=0.4 if colour in drawn else 1.6, ms=4)
        drawn.add(colour)
        against_kl.plot([], [], "o", color=colour, ms=5, label=f"{number} {row.name}")
    against_kl.set(yscale="log", yticks=KL_MARKED, yticklabels=KL_MARKED)
    for axis, words in ((against_kl, "KL(annotator on the crop || label), nats"), (against_top, "same top class")):
        axis.set(xscale="log", xticks=BYTES_MARKED, xticklabels=BYTES_MARKED, ylabel=words)
        axis.set_xlabel("bytes an image: record (dot), on disk (bar); dashed: beyond")
        axis.minorticks_off()
    by_area.set_xticks(range(len(BANDS) - 1), [f"{low:g}-{high:g}" for low, high in pairwise(BANDS)])
    by_area.set(xlabel="area of the crop", ylabel="KL, nats (thick: the first row of a colour)")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8, frameon=False)
    figure.suptitle(title)
    figure.savefig(path)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path, help="folder of images")
    parser.add_argument("--model", required=True, help="a name of timm's")
    parser.add_argument("--checkpoint", type=Path, required=True, help="file of weights for it")
    parser.add_argument("--image-size", type=int, help="side in pixels, by default the model's own")
    parser.add_argument("--crops", type=int, default=12, help="crops of each image")
    parser.add_argument("--limit", type=int, help="look at no more images than this")
    parser.add_argument("--json", type=Path, help="write all numbers here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    arguments = parser.parse_args()
    build = partial(
        Annotator.from_timm, arguments.model, checkpoint=arguments.checkpoint, image_size=arguments.image_size
    )
    annotator = build()
    annotators = {f"x{enlarge:g}": annotator.enlarged(enlarge) for enlarge in ENLARGE}
    annotators |= {f"{n} x {n} windows": build(windows=n) for n in WINDOWS}
    for each in annotators.values():
        each.head.model.to(memory_format=torch.channels_last)
    rows = measure(looks := look(arguments.images, annotators, arguments.crops, arguments.limit))
    title = f"{annotator.name} at {annotator.image_size} px, {len(looks.keys)} images, {arguments.crops} crops of each"
    print(f"{title}:\n\n{table(rows)}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"of": title, "bands": BANDS, "rows": list(map(asdict, rows))}, indent=1))
    if arguments.plot:
        draw(rows, arguments.plot, title)


if __name__ == "__main__":
    main()
