"""Overlap: what ground-truth boxes say about label maps and about random crops."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from torchrelabel.annotate.crops import draw_crops, pool_crops
from torchrelabel.annotate.images import ImagesFound, exif_of, load_image, reason_of
from torchrelabel.check.boxes import BoxFolder, OddXml, iou, read_boxes
from torchrelabel.check.orientation import Vote, transposed
from torchrelabel.data.records import label_map_of
from torchrelabel.label_map import LabelMap
from torchrelabel.store import LabelStore

BINS = 50  # of IoU, 0.02 wide, as in the paper's figures

_SQUASHED = 0.03  # a difference in W : H beyond the rounding of images that were made smaller


@dataclass(frozen=True)
class Overlap:
    """What the comparison with boxes found.

    Attributes:
        images: Images with boxes.
        boxes: How many boxes they have.
        crops: Random crops drawn of them.
        no_overlap: Share of the crops with IoU = 0.
        confidence_without: Their mean confidence; None if there are none.
        above_half: Share of the crops with IoU > 0.5.
        cdf: Share of the crops with an IoU below 0.02, 0.04, ..., 1.
        counts: Crops with an IoU in 0-0.02, 0.02-0.04, ...
        confidence: Their mean confidence, the largest share of the pooled label; None where there are no crops.
        other_shapes: Images whose shape (W : H) is not the one in their XML file.
        unknown: Boxes whose class is not among the store's, so that their cells are not looked at.
        votes: How many of the cells in an image's boxes have the class of the box on top, in both orders.
    """

    images: int
    boxes: int
    crops: int
    no_overlap: float
    confidence_without: float | None
    above_half: float
    cdf: tuple[float, ...]
    counts: tuple[int, ...]
    confidence: tuple[float | None, ...]
    other_shapes: tuple[str, ...]
    unknown: int
    votes: tuple[Vote, ...]


def compare_boxes(
    store: LabelStore,
    found: ImagesFound,
    keys: Iterable[str],
    folder: BoxFolder,
    table: Mapping[str, int],
    *,
    limit: int,
    crops: int,
    seed: int,
    broken: dict[str, str],
    bad_xml: dict[str, str],
) -> Overlap | None:
    """Compare label maps, and random crops, with ground-truth boxes.

    Args:
        store: The label maps.
        found: The images.
        keys: Images to look at, in this order.
        folder: Their boxes.
        table: From the name of a class, as boxes and class folders have it, to its index.
        limit: Images with boxes after which to stop.
        crops: Random crops an image.
        seed: Of the crops.
        broken: Receives the images that cannot be used, with the reason.
        bad_xml: Receives the XML files that cannot be used, with the reason; by key where no single file is at fault.

    Returns:
        The figures; None if no image has boxes.
    """
    images = boxes_seen = unknown = 0
    other_shapes: list[str] = []
    overlaps, confidences = [torch.empty(0)], [torch.empty(0)]
    votes: list[Vote] = []
    for key in keys:
        if images == limit:
            break
        path = None
        try:
            path = folder.file_of(key)
            if path is None:
                continue
            boxes = read_boxes(path)
            if not boxes.names:
                continue
            record = store[key]
            with found.open(key) as file:
                image = load_image(file, exif_of(store.header))
            boxes_in_image = boxes.in_image(image.height, image.width)
        except OddXml as error:
            bad_xml[key if path is None else str(path)] = str(error)
            continue
        except Exception as error:  # PIL raises nearly anything for damaged files
            broken[key] = reason_of(error)
            continue
        images += 1
        if boxes.size is not None and abs(boxes.size[0] * image.height / (boxes.size[1] * image.width) - 1) > _SQUASHED:
            other_shapes.append(key)
        boxes_seen += len(boxes.names)
        size = torch.tensor([image.width, image.height, image.width, image.height])
        drawn = draw_crops(image.height, image.width, crops, seed=seed, key=key)
        label_map = label_map_of(record, store.header, (image.height, image.width))
        # In pixels: the ratio of two areas is the same in fractions, but for rounding.
        overlaps.append(iou(drawn, boxes_in_image * size).amax(1))
        confidences.append(pool_crops(label_map, drawn / size).amax(1).exp())
        classes = _classes_of(boxes.names, found.folder_of(key), table)
        unknown += sum(index is None for index in classes)
        stored = _hits(label_map, boxes_in_image, classes)
        swapped = _hits(transposed(label_map), boxes_in_image, classes)
        votes.append(Vote(*stored, *swapped))
    if not images:
        return None
    overlap, confidence = torch.cat(overlaps), torch.cat(confidences).double()
    index = (overlap * BINS).long().clamp(max=BINS - 1)
    counts = torch.bincount(index, minlength=BINS)
    sums = torch.bincount(index, weights=confidence, minlength=BINS)
    return Overlap(
        images,
        boxes_seen,
        len(overlap),
        float((overlap == 0).double().mean()),
        float(confidence[overlap == 0].mean()) if (overlap == 0).any() else None,
        float((overlap > 0.5).double().mean()),
        tuple((counts.cumsum(0) / len(overlap)).tolist()),
        tuple(counts.tolist()),
        tuple(float(total / count) if count else None for total, count in zip(sums, counts, strict=True)),
        tuple(other_shapes),
        unknown,
        tuple(votes),
    )


def _classes_of(names: Iterable[str], folder: str, table: Mapping[str, int]) -> list[int | None]:
    """The class of each box; that of the image's folder where none of the names is one of the store's."""
    classes = [table.get(name) for name in names]
    if any(index is not None for index in classes):
        return classes
    return [table.get(folder)] * len(classes)


def _hits(label_map: LabelMap, boxes_in_image: Tensor, classes: Iterable[int | None]) -> tuple[int, int]:
    """How many cells with their centre in a box have the class of the box on top, and how many there are."""
    h, w = label_map.grid
    # Where the centre of a cell lies in the image; the view box is the image in the frame of the map.
    x1, y1, x2, y2 = label_map.view_box.corners
    x = ((torch.arange(w) + 0.5) / w - x1) / (x2 - x1)
    y = ((torch.arange(h) + 0.5) / h - y1) / (y2 - y1)
    hits = total = 0
    for box, index in zip(boxes_in_image.tolist(), classes, strict=True):
        if index is not None:
            inside = ((y >= box[1]) & (y < box[3]))[:, None] & ((x >= box[0]) & (x < box[2]))[None]
            total += int(inside.sum())
            hits += int((label_map.classes[0][inside] == index).sum())
    return hits, total
