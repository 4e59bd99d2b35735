"""calibrate: fit the labels of random crops to what the annotator says of these crops itself."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import kl_div

from torchrelabel.annotate.annotator import Annotator
from torchrelabel.annotate.crops import draw_crops, pool_crops
from torchrelabel.annotate.images import ImagesFound, exif_of, load_image, squashed
from torchrelabel.calibration import Calibration
from torchrelabel.data.agreement import check_size
from torchrelabel.data.records import label_map_of
from torchrelabel.errors import DamagedRecord
from torchrelabel.label_map import LabelMap
from torchrelabel.store import LabelStore, write_calibration

# Six coefficients want more crops than a handful of images has; a folder for trying things out has none.
FEWEST_IMAGES = 16
IMAGES = 128
CROPS_AN_IMAGE = 4
# Of the polynomials of log(area): a quadratic.
_COEFFICIENTS = 3

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


@dataclass(frozen=True)
class CropFit:
    """How near the labels of random crops are to what the annotator says of these crops itself.

    Fitted on every other image and measured on the rest, then the other way round.

    Attributes:
        images: How many images were looked at.
        crops: How many crops of them.
        kl: Mean KL(annotator || label), in nats.
        kl_whole: The same of one label for each image: the annotator's of the whole image.
        agreement: Share of the crops with the same top class.
        agreement_whole: The same of one label for each image.
        largest: Mean largest share of a label.
        entropy: Mean entropy of a label, in nats.
    """

    images: int
    crops: int
    kl: float
    kl_whole: float
    agreement: float
    agreement_whole: float
    largest: float
    entropy: float

    @property
    def pays(self) -> bool:
        """Whether the maps are worth their bytes: nearer to the annotator than one label an image."""
        return self.kl < self.kl_whole

    def __str__(self) -> str:
        warning = (
            ""
            if self.pays
            else "WARNING: these maps are no better than one label an image. Do the images show one thing each, does "
            "the model fit them (--image-size, --mean, --std), or are their cells too coarse (--enlarge)? "
        )
        return (
            f"{warning}Labels of {self.crops} random crops of {self.images} images against the annotator's own view of "
            f"each: KL {self.kl:.2f} (one label an image: {self.kl_whole:.2f}), same top class "
            f"{self.agreement:.0%} ({self.agreement_whole:.0%}); largest share {self.largest:.2f}, entropy "
            f"{self.entropy:.1f} nats, on average."
        )


@dataclass(frozen=True)
class _Crops:
    """Crops with what their labels are made of, and what the annotator says of them.

    Attributes:
        of_map: Logits pooled from the maps, ``[N, C]``.
        of_image: Logits of the whole images, ``[N, C]``.
        live: Logarithms of the annotator's own shares, ``[N, C]``.
        area: In shares of the image's, ``[N]``.
        image: Number of the image that each is of, ``[N]``.
    """

    of_map: Tensor
    of_image: Tensor
    live: Tensor
    area: Tensor
    image: Tensor

    def __getitem__(self, chosen: Tensor) -> _Crops:
        return _Crops(*(getattr(self, part.name)[chosen] for part in fields(self)))


def calibrate(
    store: LabelStore,
    found: ImagesFound,
    annotator: Annotator,
    *,
    images: int = IMAGES,
    seed: int = 0,
    batch_size: int = 32,
    progress: Progress = lambda keys, total, what: keys,
) -> CropFit | None:
    """Fit how labels follow from the records of a store, and write it into the store's header.

    Random crops are drawn as ``RandomResizedCrop`` draws them, and shown to the annotator.

    Args:
        store: With scores for the whole image.
        found: The images that it was made of.
        annotator: The one that made it.
        images: Of how many of them, at most, 4 crops are looked at.
        seed: Of the choice of images and of the crops.
        batch_size: Crops per forward pass.
        progress: Wraps a list of keys while they are gone through: ``progress(keys, total, what)``.

    Returns:
        How near the labels are; None if fewer than 16 images can be used: then nothing is written, and labels follow
        the paper's rule.

    Raises:
        ValueError: If the store keeps no scores for the whole image, or the annotator is another one.
        StoreError: If the header cannot be written.
    """
    header = store.header
    if not header.image_top_k:
        raise ValueError(
            f"{store.path} keeps no scores for whole images, which labels are calibrated with. Annotate the images "
            f"into a new store (torchrelabel annotate)."
        )
    digest = header.annotator.get("weights_sha256")
    if digest != annotator.weights_sha256:
        raise ValueError(
            f"{store.path} was made by another annotator ({header.annotator.get('model')}, weights {str(digest)[:12]}, "
            f"here {annotator.name}, {annotator.weights_sha256[:12]}). Calibrate it with the one that made it."
        )
    # Looked up one by one until there are enough: a million lookups would read the whole store.
    shuffled = random.Random(seed).sample(sorted(found.keys), len(found.keys))
    keys = list(islice((key for key in shuffled if key in store), images))
    crops = _look(store, found, progress(keys, len(keys), "calibrate"), annotator, seed, batch_size)
    count = 0 if crops is None else len(set(crops.image.tolist()))
    if crops is None or count < FEWEST_IMAGES:
        return None
    even = crops.image % 2 == 0
    halves = [_distances(_fit(crops[~half]), crops[half]) for half in (even, ~even)]
    kl, agreement, kl_whole, agreement_whole, largest, entropy = torch.cat(halves, 1).mean(1).tolist()
    result = CropFit(count, len(crops.area), kl, kl_whole, agreement, agreement_whole, largest, entropy)
    fitted = _fit(crops)
    write_calibration(
        store.path, Calibration(fitted.map_weights, fitted.image_weights, fitted.smallest_area, asdict(result))
    )
    return result


def _look(
    store: LabelStore,
    found: ImagesFound,
    keys: Iterable[str],
    annotator: Annotator,
    seed: int,
    batch_size: int,
) -> _Crops | None:
    """Draw crops of images, and show them to the annotator."""
    rows: list[tuple[Tensor, Tensor, float, int]] = []
    pixels: list[Tensor] = []
    live: list[Tensor] = []
    for number, key in enumerate(keys):
        try:
            record = store[key]
            with found.open(key) as file:
                image = load_image(file, exif_of(store.header))
            check_size(record, (image.height, image.width), key, store)
        except DamagedRecord:
            raise
        except Exception:  # an image that is gone, damaged or replaced since; PIL raises nearly anything
            continue
        assert record.image_scores is not None  # the header says so
        boxes = draw_crops(image.height, image.width, CROPS_AN_IMAGE, seed=seed, key=key)
        fractions = boxes / torch.tensor([image.width, image.height] * 2)
        label_map = label_map_of(record, store.header, (image.height, image.width))
        pooled = pool_map_alone(label_map, fractions)
        areas = (fractions[:, 2:] - fractions[:, :2]).prod(1).tolist()
        for row, area, box in zip(pooled, areas, boxes.tolist(), strict=True):
            rows.append((row, torch.from_numpy(record.image_scores), area, number))
            pixels.append(squashed(image, annotator.image_size, annotator.interpolation, box))
        if len(pixels) >= batch_size:
            live.append(_own(annotator, pixels))
            pixels = []
    if not rows:
        return None
    if pixels:
        live.append(_own(annotator, pixels))
    of_map, of_image, area, image_number = zip(*rows, strict=True)
    return _Crops(
        torch.stack(of_map), torch.stack(of_image), torch.cat(live), torch.tensor(area), torch.tensor(image_number)
    )


def pool_map_alone(label_map: LabelMap, boxes_in_image: Tensor) -> Tensor:
    """The logits of the map alone, pooled over crops ``[N, 4]``, xyxy in fractions of the image: ``[N, C]``.

    The classes that a cell does not keep share its residual as they do in the whole image.
    """
    return pool_crops(LabelMap.wrap(label_map.scores, label_map, calibration=_MAP_ALONE), boxes_in_image)


def _own(annotator: Annotator, pixels: Sequence[Tensor]) -> Tensor:
    """What the annotator says of crops: logarithms of shares, ``[N, C]``."""
    return annotator.whole(annotator.normalise(torch.stack(list(pixels)))).log_softmax(1).cpu()


_MAP_ALONE = Calibration((1.0,), (0.0,), 1.0)


def fit_by_area(parts: Sequence[Tensor], live: Tensor, area: Tensor) -> tuple[Tensor, float]:
    """How much each of several logits counts in the label of a crop, so that labels are nearest to the annotator's.

    The weights are polynomials of the logarithm of the crop's area, fitted by mean KL divergence.

    Args:
        parts: What labels are joined from, such as the logits of the map and of the whole image, each ``[N, C]``.
        live: Logarithms of the annotator's own shares, ``[N, C]``.
        area: Of the crops, in shares of the image's, ``[N]``.

    Returns:
        The coefficients, a row for each part, and the smallest area; a smaller one counts as this.
    """
    smallest = min(1.0, float(area.min()))
    coefficients = torch.zeros(len(parts), _COEFFICIENTS)
    coefficients[:, 0] = 1 / len(parts)
    coefficients.requires_grad_()
    # KL is convex in the weights, which logits depend on linearly: wherever this begins it ends at the same place.
    optimizer = torch.optim.LBFGS([coefficients], max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Any:
        optimizer.zero_grad()
        labels = labels_by_area(parts, area, coefficients, smallest)
        value = kl_div(labels, live, reduction="batchmean", log_target=True)
        # Keeps the weights of crops that say nothing of them from growing without end.
        value = value + 1e-4 * coefficients.square().sum()
        value.backward()  # type: ignore[no-untyped-call]
        return value

    with torch.enable_grad():
        optimizer.step(loss)  # type: ignore[no-untyped-call]
    return coefficients.detach(), smallest


def labels_by_area(parts: Sequence[Tensor], area: Tensor, coefficients: Tensor, smallest: float) -> Tensor:
    """Logarithms of the labels of crops, ``[N, C]``, with what `fit_by_area` returned."""
    log_area = area.clamp(smallest, 1).log()
    powers = torch.stack([log_area**power for power in range(coefficients.shape[1])], 1)
    return _labels(parts, powers @ coefficients.T)


def _fit(crops: _Crops) -> Calibration:
    """The calibration whose labels are nearest to the annotator's, by mean KL divergence."""
    coefficients, smallest = fit_by_area((crops.of_map, crops.of_image), crops.live, crops.area)
    of_map, of_image = coefficients.tolist()
    return Calibration(tuple(of_map), tuple(of_image), smallest)


def _labels(parts: Sequence[Tensor], weights: Tensor) -> Tensor:
    """Logarithms of the labels of crops, ``[N, C]``, in which the parts count as in ``[N, parts]``."""
    joined = sum(weight[:, None] * part for weight, part in zip(weights.unbind(1), parts, strict=True))
    assert isinstance(joined, Tensor)  # there is at least one part
    return joined.log_softmax(1)


def _distances(calibration: Calibration, crops: _Crops) -> Tensor:
    """For each crop KL and agreement, those of one label an image, largest share and entropy: ``[6, N]``."""
    weights = torch.tensor([calibration.weights(area) for area in crops.area.tolist()])
    label, whole = _labels((crops.of_map, crops.of_image), weights), crops.of_image.log_softmax(1)
    top = crops.live.argmax(1)
    rows = []
    for shares in (label, whole):
        rows.append(kl_div(shares, crops.live, reduction="none", log_target=True).sum(1))
        rows.append((shares.argmax(1) == top).float())
    rows += [label.amax(1).exp(), -(label.exp() * label).sum(1)]
    return torch.stack(rows)
