"""Agreement of the labels pooled for random crops with what the annotator itself says about these crops."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from torchrelabel.annotate import Annotator, CellHead, Commuting
from torchrelabel.annotate.crops import draw_crops, pool_crops
from torchrelabel.annotate.images import ImagesFound, exif_of, load_image, reason_of, squashed
from torchrelabel.check.orientation import Vote, transposed
from torchrelabel.data.agreement import check_size
from torchrelabel.data.records import label_map_of
from torchrelabel.store import LabelStore
from torchrelabel.store.record import WHOLE_IMAGE as WHOLE_COVERAGE

_IMAGES_FOR_COMMUTING = 64
_WHOLE = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
# Upper ends in area; what the first takes in below 0.08 comes of rounding, and of images longer than 4 to 3.
BANDS = (("0.08-0.2", 0.2), ("0.2-0.4", 0.4), ("0.4-0.6", 0.6), ("0.6-0.8", 0.8), ("0.8-1", float("inf")))
WHOLE_IMAGE = "whole image"


@dataclass(frozen=True)
class Band:
    """The crops of about one size.

    Attributes:
        area: In shares of the image's area, or ``"whole image"``.
        crops: How many there are.
        kl: Mean KL(model || pooled label), in nats.
        top1: Share of the crops for which both have the same top class.
        kl_residual: As ``kl``, with ``fill="residual"``; None where the store keeps no residual.
        top1_residual: As ``top1``, with ``fill="residual"``.
        top1_swapped: As ``top1``, with the map's axes exchanged.
        top1_whole: As ``top1``, for the label pooled over the whole image: what one label an image would give.
    """

    area: str
    crops: int
    kl: float
    top1: float
    kl_residual: float | None
    top1_residual: float | None
    top1_swapped: float
    top1_whole: float


@dataclass(frozen=True)
class Agreement:
    """What the comparison of crops found.

    Attributes:
        bands: By area of the crop, then all crops together, then whole images.
        commuting: Whether the model's head gives the same before and after pooling; None of windows, which are pooled
            as any image.
        top_classes: What the model takes each whole image for, by key.
        votes: What the crops of each image say about the order of the axes.
        cell_votes: The same of its cells, whose top class in the map is compared with the model's in the same cell; of
            maps of the whole image on the model's own grid.
    """

    bands: tuple[Band, ...]
    commuting: Commuting | None
    top_classes: dict[str, int]
    votes: tuple[Vote, ...]
    cell_votes: tuple[Vote, ...]


@dataclass
class _View:
    """One crop, or a whole image, with the logarithms of its pooled labels, each ``[C]``; ``cells`` if whole."""

    key: str
    area: float | None
    pixels: Tensor
    label: Tensor
    residual: Tensor | None
    swapped: Tensor
    whole: Tensor
    cells: Tensor | None
    enlarged: Tensor | None


def compare_crops(
    store: LabelStore,
    found: ImagesFound,
    keys: Iterable[tuple[str, int]],
    annotator: Annotator,
    *,
    seed: int,
    batch_size: int,
    broken: dict[str, str],
) -> Agreement | None:
    """Compare pooled labels with the annotator's own predictions.

    Args:
        store: The label maps.
        found: The images.
        keys: Images, each with the number of crops to draw.
        annotator: It predicts on every crop, squashed to its input size.
        seed: Of the crops.
        batch_size: Crops per forward pass.
        broken: Receives the images that cannot be used, with the reason.

    Returns:
        The figures; None if no image could be used.
    """
    rows: dict[str, list[Tensor]] = {}
    votes: dict[str, Tensor] = {}
    cell_votes: list[Vote] = []
    top_classes: dict[str, int] = {}
    commuting: list[tuple[int, Commuting]] = []
    for views in _batches(_views(store, found, keys, annotator, seed, broken), batch_size):
        images = annotator.normalise(torch.stack([view.pixels for view in views]))
        with torch.inference_mode():
            predicted = annotator.head.model(images).float().log_softmax(1).cpu()
        measured = sum(count for count, _ in commuting)
        whole = [number for number, view in enumerate(views) if view.area is None][: _IMAGES_FOR_COMMUTING - measured]
        if whole and isinstance(annotator.head, CellHead):
            commuting.append((len(whole), annotator.head.commuting(images[whole])))
        cell_votes += _compare_cells(annotator, views, images)
        for view, own in zip(views, predicted, strict=True):
            row = _compare(view, own)
            if view.area is None:
                rows.setdefault(WHOLE_IMAGE, []).append(row)
                top_classes[view.key] = int(own.argmax())
            else:
                area = view.area
                rows.setdefault(next(name for name, end in BANDS if area < end), []).append(row)
                both = torch.stack([row[1], row[4], torch.tensor(1.0)])
                votes[view.key] = votes.get(view.key, torch.zeros(3)) + both
    if not top_classes:
        return None
    crops = [row for name, _ in BANDS for row in rows.get(name, [])]
    names = [name for name, _ in BANDS if name in rows]
    bands = [*((name, rows[name]) for name in names), ("all crops", crops), (WHOLE_IMAGE, rows[WHOLE_IMAGE])]
    return Agreement(
        tuple(_band(name, values) for name, values in bands if values),
        _over_all(commuting),
        top_classes,
        tuple(Vote(int(a), int(n), int(b), int(n)) for a, b, n in (vote.tolist() for vote in votes.values())),
        tuple(cell_votes),
    )


def _views(
    store: LabelStore,
    found: ImagesFound,
    keys: Iterable[tuple[str, int]],
    annotator: Annotator,
    seed: int,
    broken: dict[str, str],
) -> Iterator[_View]:
    """Each image as a whole, then its crops."""
    for key, count in keys:
        try:
            record = store[key]
            with found.open(key) as file:
                image = load_image(file, exif_of(store.header))
            check_size(record, (image.height, image.width), key, store)
        except Exception as error:  # PIL raises nearly anything for damaged files
            broken[key] = reason_of(error)
            continue
        size = torch.tensor([image.width, image.height, image.width, image.height])
        boxes = torch.cat([_WHOLE * size, draw_crops(image.height, image.width, count, seed=seed, key=key)])
        fractions = boxes / size
        label_map = label_map_of(record, store.header, (image.height, image.width))
        labels = pool_crops(label_map, fractions)
        residual = None if label_map.residual is None else pool_crops(label_map, fractions, "residual")
        swapped = pool_crops(transposed(label_map), fractions)
        areas = (fractions[:, 2:] - fractions[:, :2]).prod(1).tolist()
        for number, box in enumerate(boxes.tolist()):
            yield _View(
                key,
                areas[number] if number else None,
                squashed(image, annotator.image_size, annotator.interpolation, box),
                labels[number],
                None if residual is None else residual[number],
                swapped[number],
                labels[0],
                None if number or record.coverage != WHOLE_COVERAGE else torch.from_numpy(record.classes[0]),
                None
                if number or annotator.map_size == annotator.image_size
                else squashed(image, annotator.map_size, annotator.interpolation),
            )


def _batches(views: Iterator[_View], size: int) -> Iterator[list[_View]]:
    batch: list[_View] = []
    for view in views:
        batch.append(view)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _compare(view: _View, own: Tensor) -> Tensor:
    """KL and top-1 of the label, KL and top-1 with the residual, top-1 transposed, top-1 of the whole: ``[6]``."""
    top = own.argmax()
    missing = torch.tensor(float("nan"))
    return torch.stack(
        [
            _kl(own, view.label),
            (view.label.argmax() == top).float(),
            missing if view.residual is None else _kl(own, view.residual),
            missing if view.residual is None else (view.residual.argmax() == top).float(),
            (view.swapped.argmax() == top).float(),
            (view.whole.argmax() == top).float(),
        ]
    )


def _compare_cells(annotator: Annotator, views: list[_View], images: Tensor) -> list[Vote]:
    """The map's top class of every cell against the model's, for the whole images of a batch."""
    grid = annotator.grid
    chosen = [
        (number, view.cells)
        for number, view in enumerate(views)
        if view.cells is not None and tuple(view.cells.shape) == grid
    ]
    # An image is squashed to a square, so that a model's grid is one, and its transpose has the same shape.
    if not chosen or grid[0] != grid[1]:
        return []
    numbers = [number for number, _ in chosen]
    larger = [pixels for number in numbers if (pixels := views[number].enlarged) is not None]
    enlarged = annotator.normalise(torch.stack(larger)) if larger else None
    own = annotator.top_scores(images[numbers], 1, residual=False, enlarged=enlarged).classes[:, 0].cpu()
    return [
        Vote(int((cells == there).sum()), cells.numel(), int((there == cells.T).sum()), cells.numel())
        for (_, cells), there in zip(chosen, own, strict=True)
    ]


def _over_all(commuting: list[tuple[int, Commuting]]) -> Commuting | None:
    """One measure, of those of several batches and how many images each had; None of none."""
    if not commuting:
        return None
    count = sum(images for images, _ in commuting)
    return Commuting(
        max(each.relative_error for _, each in commuting),
        sum(images * each.same_top_class for images, each in commuting) / count,
    )


def _kl(own: Tensor, label: Tensor) -> Tensor:
    return kl_div(label, own, reduction="sum", log_target=True)


def _band(name: str, rows: list[Tensor]) -> Band:
    kl, top1, kl_residual, top1_residual, swapped, whole = torch.stack(rows).double().mean(0).tolist()
    has_residual = kl_residual == kl_residual  # not a number where the store keeps none
    return Band(
        name,
        len(rows),
        kl,
        top1,
        kl_residual if has_residual else None,
        top1_residual if has_residual else None,
        swapped,
        whole,
    )
