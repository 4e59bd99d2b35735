"""Predictions: what a classifier says of the images of a folder, and which of them it could not be asked about."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from torchrelabel.annotate.images import ImagesFound, ImagesToAnnotate, LoadedBatch, collate
from torchrelabel.annotate.scoring import default_workers, ignore_interrupt
from torchrelabel.evaluate.classifier import Classifier

BEST = 5

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]
# Keys of the images, and images in 0..1, [N, 3, S, S], to other images.
Perturbation = Callable[[Sequence[str], Tensor], Tensor]


@dataclass
class Predictions:
    """What a classifier said of images.

    Attributes:
        keys: Those of the N images that could be read.
        top: The classes with the largest scores, descending, ``[N, 5]`` or fewer; -1 where a score was not a number.
        confidence: The probability that it gives to the first, ``[N]``: of the softmax, or its own sigmoid.
        above: For sigmoids, the classes whose probability is above the threshold, one tuple for each image.
        unreadable: Images that could not be read, with the reason.
        not_numbers: Images whose scores were no numbers.
        warnings: What PIL warned about, by image.
    """

    keys: list[str] = field(default_factory=list)
    top: Tensor = field(default_factory=lambda: torch.empty(0, BEST, dtype=torch.long))
    confidence: Tensor = field(default_factory=lambda: torch.empty(0))
    above: list[tuple[int, ...]] | None = None
    unreadable: dict[str, str] = field(default_factory=dict)
    not_numbers: list[str] = field(default_factory=list)
    warnings: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Settings:
    """How images are gone through.

    Attributes:
        batch_size: Images per forward pass.
        workers: Processes that load images; as many as cores, at most 8, if None.
        threshold: For outputs that are sigmoids, above which probability a class counts as predicted; None for softmax.
        progress: Wraps what is gone through: ``progress(batches, number of batches, what)``.
    """

    batch_size: int = 64
    workers: int | None = None
    threshold: float | None = None
    progress: Progress = lambda batches, total, what: batches


class ImagesToEvaluate(ImagesToAnnotate):
    """Images as a classifier sees them. A bad image is a value, not an error.

    Args:
        found: The folder.
        keys: Which of its images.
        transform: From a PIL image to pixels ``[3, S, S]``, uint8.
    """

    def __init__(self, found: ImagesFound, keys: Sequence[str], transform: Callable[[Image.Image], Tensor]) -> None:
        self.found = replace(found, keys=[])
        self.keys = keys
        self.transform = transform
        self.enlarged_size = None
        self.exif = "ignore"  # as torchvision's loader and timm's

    def seen(self, image: Image.Image) -> Tensor:
        """What the classifier gets: ``[3, S, S]``, uint8."""
        return self.transform(image)


def batches(
    classifier: Classifier,
    found: ImagesFound,
    keys: Sequence[str],
    settings: Settings,
    what: str,
    transform: Callable[[Image.Image], Tensor] | None = None,
) -> Iterable[LoadedBatch]:
    """The images of a folder, in order, as the classifier sees them; those that cannot be read apart."""
    size = min(settings.batch_size, classifier.batch or settings.batch_size)
    loader: DataLoader[Any] = DataLoader(
        ImagesToEvaluate(found, keys, transform or classifier.transform),
        batch_size=size,
        num_workers=min(default_workers() if settings.workers is None else settings.workers, -(-len(keys) // size)),
        collate_fn=collate,
        pin_memory=classifier.device.type == "cuda",
        worker_init_fn=ignore_interrupt,
    )
    return settings.progress(loader, len(loader), what)


def predict(
    classifier: Classifier,
    found: ImagesFound,
    keys: Sequence[str],
    settings: Settings,
    what: str,
    *,
    columns: Sequence[int] | None = None,
    transform: Callable[[Image.Image], Tensor] | None = None,
    perturb: Perturbation | None = None,
) -> Predictions:
    """Ask a classifier about the images of a folder.

    Args:
        classifier: Whom.
        found: The folder.
        keys: Which of its images.
        settings: How they are gone through.
        what: What to call this for people who wait.
        columns: The classes among which it may choose; all, if None.
        transform: What it sees of an image; its own, if None.
        perturb: Changes batches of images in 0..1, with their keys, before it sees them.
    """
    found_out = Predictions(above=None if settings.threshold is None else [])
    tops, confidences = [], []
    chosen = None if columns is None else torch.tensor(columns, device=classifier.device)
    for batch in batches(classifier, found, keys, settings, what, transform):
        found_out.unreadable.update(batch.failures)
        found_out.warnings += batch.warnings
        if not batch.keys:
            continue
        images = batch.pixels.to(classifier.device, non_blocking=True).float() / 255
        if perturb is not None:
            images = perturb(batch.keys, images)
        with torch.no_grad():
            scores = classifier(images)
        if chosen is not None:
            scores = scores[:, chosen]
        wrong = without_numbers(scores)
        best = scores.masked_fill(wrong[:, None], 0).topk(min(BEST, scores.shape[1]))
        probabilities = scores.softmax(1) if settings.threshold is None else scores.sigmoid()
        confidences.append(probabilities.gather(1, best.indices[:, :1])[:, 0].cpu())
        classes = best.indices if chosen is None else chosen[best.indices]
        tops.append(classes.masked_fill(wrong[:, None], -1).cpu())
        if found_out.above is not None and settings.threshold is not None:
            for row in (probabilities > settings.threshold).cpu():
                found_out.above.append(tuple(row.nonzero()[:, 0].tolist()))
        found_out.keys += batch.keys
        found_out.not_numbers += [key for key, bad in zip(batch.keys, wrong.tolist(), strict=True) if bad]
    if tops:
        found_out.top, found_out.confidence = torch.cat(tops), torch.cat(confidences)
    return found_out


def without_numbers(scores: Tensor) -> Tensor:
    """Which rows ``[N]`` of scores ``[N, C]`` have no largest score: one is NaN or infinite, or all are -infinite."""
    return scores.isnan().any(1) | scores.isposinf().any(1) | scores.isneginf().all(1)
