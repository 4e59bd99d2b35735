"""Recorder: scores become records of the store, and what became of each image is counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike

from torchrelabel.annotate.annotator import Annotator, TopScores
from torchrelabel.annotate.folder_order import renumbered
from torchrelabel.annotate.images import Exif, ImagesFound, LoadedBatch, PhotoFacts
from torchrelabel.annotate.scoring import arrays_of
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.errors import TorchRelabelError
from torchrelabel.store import StoreHeader

# A model that gives no number for so many images, and for none before them, gives none at all; one image may be bad.
_ENOUGH_WITHOUT_NUMBERS = 16


@dataclass
class FolderLabels:
    """How often the pooled map's top class is that of the image's folder, where folders are classes.

    Attributes:
        found: It knows the folders.
        num_classes: C.
        other_order: Each class with the one that the other of timm and torchvision gives its folder.
        hits: Images whose top class is their folder's.
        other_hits: The same in the other order.
    """

    found: ImagesFound
    num_classes: int
    other_order: Mapping[int, int]
    hits: int = 0
    other_hits: int = 0

    @classmethod
    def of(cls, found: ImagesFound, num_classes: int) -> FolderLabels | None:
        """None where folders are no classes."""
        if not found.folders_are_classes(num_classes):
            return None
        return cls(found, num_classes, renumbered(found.class_to_idx or {}))

    def count(self, key: str, scores: np.ndarray, classes: np.ndarray) -> None:
        # As LabelPooling's rule "zero": classes not kept in a cell count as 0.
        pooled = np.bincount(classes.ravel(), weights=scores.ravel(), minlength=self.num_classes)
        top_class, label = int(pooled.argmax()), self.found.class_of(key)
        self.hits += top_class == label
        self.other_hits += label is not None and top_class == self.other_order.get(label)


class TakesRecords(Protocol):
    """What a `LabelStoreWriter` is to a recorder."""

    @property
    def header(self) -> StoreHeader:
        """Of the store."""
        ...

    def put(
        self,
        key: str,
        scores: ArrayLike,
        classes: ArrayLike,
        residual: ArrayLike | None = None,
        *,
        image_scores: ArrayLike | None = None,
        image_size: Sequence[int] | None = None,
        exif_turned: bool = False,
    ) -> None:
        """Take a label map."""
        ...

    def put_failure(self, key: str, reason: str) -> None:
        """Take the reason why there is none."""
        ...


class Recorder:
    """Puts batches into the store, and counts what became of them.

    Args:
        writer: Of the store, or what stands in for it.
        summary: It gets what is counted.
        say: Says what PIL warned about.
        labels: Counts agreement with the folders, if there is any.
        annotator: It gives the scores.
        todo: How many images there will be.
    """

    def __init__(
        self,
        writer: TakesRecords,
        summary: Summary,
        say: Notes,
        labels: FolderLabels | None,
        annotator: Annotator,
        todo: int,
    ) -> None:
        self.writer = writer
        self.summary = summary
        self.say = say
        self.labels = labels
        self.annotator = annotator
        self.enough_without_numbers = min(_ENOUGH_WITHOUT_NUMBERS, todo)
        self.without_numbers = 0

    def write(self, batch: LoadedBatch, top: TopScores | None) -> None:
        """Put what has scores, and note what has none.

        Raises:
            TorchRelabelError: If no image at all gets scores, with what may help.
        """
        failures = list(batch.failures)
        for index, (key, facts) in enumerate(zip(batch.keys, batch.facts, strict=True)):
            assert top is not None  # there are keys, so there are scores
            reason = self._put(key, facts, *arrays_of(top, index))
            if reason is not None:
                failures.append((key, reason))
        if not (self.summary.annotated or self.summary.already_there):
            self._refuse_a_model_without_numbers()
        for key, reason in failures:
            self.writer.put_failure(key, reason)
            self.summary.failed.append((key, reason))
        for key, text in batch.warnings:
            self.say(f"{key}: {text}")

    def _put(
        self,
        key: str,
        facts: PhotoFacts,
        scores: np.ndarray,
        classes: np.ndarray,
        residual: np.ndarray | None,
        of_image: np.ndarray,
    ) -> str | None:
        """Put one image's map into the store; the reason if that cannot be."""
        if not all(np.isfinite(each).all() for each in (scores, residual, of_image) if each is not None):
            self.without_numbers += 1
            return "the model's scores for it are not finite numbers"
        image_scores = of_image if self.writer.header.image_top_k else None
        try:
            self.writer.put(
                key,
                scores,
                classes,
                residual,
                image_scores=image_scores,
                image_size=(facts.width, facts.height),
                exif_turned=facts.exif_turned,
            )
        except ValueError as error:  # such as a logit beyond half precision
            return str(error)
        self.summary.annotated += 1
        self.summary.exif_turned += facts.exif_turned
        self.summary.deep += facts.deep
        if self.labels is not None:
            self.labels.count(key, scores, classes)
        return None

    def _refuse_a_model_without_numbers(self) -> None:
        if self.without_numbers < self.enough_without_numbers:
            return
        remedy = (
            "It was computed in bfloat16: try --no-amp."
            if self.annotator.amp
            else "Its weights may be damaged, or made for another input: check the checkpoint."
        )
        raise TorchRelabelError(
            f"All scores that {self.annotator.name} gives for the first images are not finite numbers. {remedy}"
        )

    def conclude(self, exif: Exif) -> None:
        """Say what was counted."""
        summary = self.summary
        if summary.exif_turned:
            how = (
                "was ignored, as torchvision's loader does. If the loader of your training turns images, annotate into "
                "a new store with --exif apply"
                if exif == "ignore"
                else "was followed: the loader of your training has to turn these images, too"
            )
            self.say(f"With an EXIF orientation: {summary.exif_turned} of {summary.annotated} images. It {how}.")
        if summary.deep:
            self.say(
                f"With 16 bits a channel: {summary.deep} of {summary.annotated} images. They were scaled to 8. "
                f"Pillow's convert(\"RGB\"), so torchvision's loader, makes them white: train on copies of 8 bits."
            )
        if self.labels is not None and summary.annotated:
            summary.agreement = self.labels.hits / summary.annotated
            if self.labels.other_order:
                summary.agreement_renumbered = self.labels.other_hits / summary.annotated
