"""Scores of many images, on the host, while the device computes those of the next."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from torchrelabel.annotate.annotator import Annotator, TopScores
from torchrelabel.annotate.images import Exif, ImagesFound, ImagesToAnnotate, LoadedBatch, collate


def load_images(
    annotator: Annotator,
    found: ImagesFound,
    keys: Sequence[str],
    *,
    batch_size: int,
    workers: int | None,
    exif: Exif = "ignore",
) -> DataLoader[Any]:
    """A loader of images as the annotator takes them, in batches of `LoadedBatch`.

    Args:
        annotator: It says the sizes and the interpolation.
        found: Where the images are.
        keys: Which of them.
        batch_size: Images in a batch.
        workers: Processes that load; as many as cores, at most 8, if None.
        exif: Whether an EXIF orientation is followed.
    """
    larger = annotator.map_size if annotator.map_size != annotator.image_size else None
    dataset = ImagesToAnnotate(found, keys, annotator.image_size, annotator.interpolation, larger, exif)
    batches = -(-len(keys) // batch_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=min(default_workers() if workers is None else workers, batches),
        collate_fn=collate,
        pin_memory=annotator.device.type == "cuda",
        worker_init_fn=ignore_interrupt,
    )


def score_batches(
    annotator: Annotator, loader: Iterable[LoadedBatch], top_k: int, residual: bool
) -> Iterator[tuple[LoadedBatch, TopScores | None]]:
    """Yield every batch with its scores on the host, one batch late.

    On a CUDA device the next batch is already being computed while the caller writes this one.
    """
    waiting: tuple[LoadedBatch, TopScores | None, Any] | None = None
    for batch in loader:
        top, ready = None, None
        if batch.keys:
            enlarged = None if batch.enlarged is None else annotator.normalise(batch.enlarged)
            top = annotator.top_scores(annotator.normalise(batch.pixels), top_k, residual, enlarged=enlarged)
            top = _to_host(top)
            if annotator.device.type == "cuda":
                ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
                ready.record(torch.cuda.current_stream(annotator.device))
        if waiting is not None:
            yield _arrived(*waiting)
        waiting = batch, top, ready
    if waiting is not None:
        yield _arrived(*waiting)


def arrays_of(top: TopScores, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    """Scores, classes, residual, and scores of the whole image, of one image of a batch."""
    rest = None if top.residual is None else top.residual[index].numpy()
    return top.scores[index].numpy(), top.classes[index].numpy(), rest, top.image_scores[index].numpy()


def default_workers() -> int:
    """As many processes as this one may use cores, at most 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def ignore_interrupt(_worker: int) -> None:
    """What each process that loads images begins with."""
    # Ctrl-C reaches every process of the terminal; the main process stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _to_host(top: TopScores) -> TopScores:
    residual = top.residual
    return TopScores(
        top.scores.to("cpu", non_blocking=True),
        top.classes.to("cpu", non_blocking=True),
        None if residual is None else residual.to("cpu", non_blocking=True),
        top.image_scores.to("cpu", non_blocking=True),
    )


def _arrived(batch: LoadedBatch, top: TopScores | None, ready: Any) -> tuple[LoadedBatch, TopScores | None]:
    if ready is not None:
        ready.synchronize()
    return batch, top
