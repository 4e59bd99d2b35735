"""annotate_with_ray: images through annotators on the machines of a Ray cluster, which may come and go."""

from __future__ import annotations

import logging
import os
import time
from bisect import insort
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from torchrelabel.annotate.annotator import Annotator, TimmOptions
from torchrelabel.annotate.calibrate import IMAGES
from torchrelabel.annotate.class_names import read_class_names
from torchrelabel.annotate.images import Exif
from torchrelabel.annotate.plan import is_done, settle_shards, share_out, store_settings
from torchrelabel.annotate.rank import Rank
from torchrelabel.annotate.ray_sources import ImagesInMemory, KeysDone, find_source
from torchrelabel.annotate.ray_tasks import Annotating, Loading, Reply, rank_of, replies
from torchrelabel.annotate.recording import FolderLabels, Recorder
from torchrelabel.annotate.run import (
    calibrate_if_complete,
    check_arguments,
    plan_annotator,
    require_images,
    say_of_annotator,
    say_of_folder,
)
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.errors import StoreError, TorchRelabelError
from torchrelabel.folders import disk_usage
from torchrelabel.store import LabelStore, LabelStoreWriter, StoreHeader
from torchrelabel.store.layout import HEADER_FILE, fingerprint, shard_files

if TYPE_CHECKING:
    from typing_extensions import Unpack

_ALONE = Rank(0, 1, 0)


def annotate_with_ray(
    data: str | os.PathLike[str] = ".",
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    model: str | Annotator,
    num_actors: int | None = None,
    dataset: str | None = None,
    image_column: str = "image",
    key_column: str | None = None,
    exif: Exif = "ignore",
    top_k: int | None = None,
    codec: str = "float16",
    residual: bool = True,
    image_top_k: int | None = None,
    enlarge: float | None = None,
    windows: int | None = None,
    shards: int | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    batch_size: int = 32,
    progress: bool = True,
    **options: Unpack[TimmOptions],
) -> Summary:
    """Write label maps of images to a store, with Ray Data: as `annotate` does, on a cluster.

    Tasks read and decode images, actors annotate them, and this process alone writes: a map is a hundredth of its
    image. What a node had in work when it died is done again by others. The same call continues a run that ended with
    this process.

    Args:
        data: A folder of images, a ``.parquet`` or ``.tar`` file, or a folder of such; a path that all nodes have, or a
            URL such as ``s3://bucket/folder``.
        output: The store, on a disk of the machine that this runs on.
        model: A name of timm's, or an ``Annotator``, on whatever device. Its weights are read here, and sent to the
            actors.
        num_actors: How many annotators there are, at most. If None, one for each GPU of the cluster; or one for each
            two CPU cores of a cluster without.
        dataset: ``"wds/"`` if tar files are shards as WebDataset writes them.
        image_column: Of Parquet files: bytes of images, or structs of ``bytes`` and ``path``.
        key_column: Of Parquet files: the names of images. If None, the paths in the structs.
        exif: As for `annotate`, and so are the rest.
        top_k: K, classes kept per cell; if None, 5, or 100 per window.
        codec: ``"float16"`` or ``"uint8"``.
        residual: Also keep, per cell, the logsumexp of the classes not kept.
        image_top_k: T, of how many classes the logit for the whole image is kept too.
        enlarge: How many times as large as the model's own size images are shown for their cells.
        windows: Instead of cells, classify as many overlapping windows along each side.
        shards: LMDB files in the store; one, or as the existing store has, if None.
        class_names: What the classes are called.
        batch_size: Images per forward pass.
        progress: Show progress and notes on stderr.
        options: Where ``model`` is a name, what `Annotator.from_timm` takes. ``device`` may be ``"cpu"``, which leaves
            the GPUs of the cluster alone.

    Returns:
        What was done.

    Raises:
        ImportError: If Ray, pyarrow or what a URL needs is not installed.
        ValueError: As `annotate`; if two images have one name; or if torchrun started this.
        StoreError: As `annotate`, or if the cluster lost batches; the same call does these again.
        Exception: What else `annotate` raises.
    """
    _require_ray(num_actors)
    check_arguments(top_k=top_k, batch_size=batch_size, workers=None, exif=exif, dataset=None, split="train")
    output = Path(output)
    wants_cpu = str(options.get("device")) == "cpu"
    if isinstance(model, str):
        options["device"] = "cpu"  # here; the actors have theirs
    build = plan_annotator(model, enlarge, windows, options, _ALONE)
    given_names = None if class_names is None else read_class_names(class_names)
    shards = settle_shards(output, shards, _ALONE)

    source = find_source(os.fspath(data), [output], dataset=dataset, image_column=image_column, key_column=key_column)
    if not source.units:
        require_images(source.found)
    summary = Summary(str(output))
    say = Notes(summary, loud=progress)
    work = share_out(source.found, shards, _ALONE, summary)
    say_of_folder(say, source.found, output)
    annotator = build(say)
    say_of_annotator(say, annotator)
    settings = store_settings(
        annotator,
        source.found,
        output,
        say,
        top_k=top_k,
        codec=codec,
        residual=residual,
        image_top_k=image_top_k,
        shards=shards,
        class_names=given_names,
        exif=exif,
    )
    summary.model, summary.grid, summary.windows = annotator.name, annotator.grid, annotator.windows
    summary.num_classes, summary.top_k = annotator.num_classes, settings["top_k"]

    sample: list[tuple[bytes, str, bytes]] = []
    if not source.units and is_done(output, StoreHeader(**settings, dataset=work.dataset), work):
        summary.already_there = len(work.keys)
    else:
        started = time.perf_counter()
        done = KeysDone(LabelStore(output) if source.units and (output / HEADER_FILE).exists() else [])
        with LabelStoreWriter(output, **settings, resume=True) as writer, _cluster() as resources:
            todo = [key for key in work.keys if key not in writer]
            summary.already_there = len(work.keys) - len(todo)
            cores, gpus = int(resources.get("CPU", 1)), 0 if wants_cpu else int(resources.get("GPU", 0))
            labels = FolderLabels.of(source.found, annotator.num_classes)
            units = source.todo(todo, batch_size, tasks=4 * max(1, cores))
            loading = Loading(
                batch_size,
                done,
                annotator.image_size,
                annotator.map_size if annotator.map_size != annotator.image_size else None,
                annotator.interpolation,
                exif,
                wants_sample=bool(source.units),
            )
            annotating = Annotating(
                annotator if annotator.device.type == "cpu" else annotator.on("cpu"),
                "cuda" if gpus else "cpu",
                writer.header,
                None if labels is None else replace(labels, found=replace(labels.found, keys=[])),
                None if source.units else len(todo),
                some_there=len(done) > 0 or summary.already_there > 0,
            )
            ledger = _Ledger(writer, summary, say, labels, sample)
            total = None if source.units else len(todo)
            with tqdm(total=total, unit="img", disable=not say.loud, desc="annotate", smoothing=0.1) as bar:
                for reply in replies(units, loading, annotating, actors=num_actors or gpus or max(1, cores // 2)):
                    bar.update(ledger.enter(reply))
            ledger.check_complete(len(units))
            keys = ledger.keys if source.units else work.keys
            writer.keep_failures_of(keys)
            writer.finish(
                dataset={"count": len(keys), "fingerprint": fingerprint(keys)} if source.units else work.dataset
            )
        summary.seconds = time.perf_counter() - started
        Recorder(writer, summary, say, labels, annotator, 0).conclude(exif)
    summary.bytes = disk_usage(file for shard in work.shards for file in shard_files(output, shard))
    found = ImagesInMemory.of({key: file for _, key, file in sample}) if source.units else source.found
    if not wants_cpu and annotator.device.type == "cpu" and torch.cuda.is_available():
        annotator = annotator.on("cuda")
    summary.crop_fit = calibrate_if_complete(output, found, annotator, batch_size, say)
    return summary


class _Ledger:
    """Enters what comes back from the cluster into the store and the summary, each batch once.

    Args:
        writer: Of the store.
        summary: It gets what is counted.
        say: Says what PIL warned about.
        labels: Counts agreement with the folders, if there is any.
        sample: It gets files of images chosen by chance, for a calibration.

    Attributes:
        keys: Of all images that came back.
    """

    def __init__(
        self,
        writer: LabelStoreWriter,
        summary: Summary,
        say: Notes,
        labels: FolderLabels | None,
        sample: list[tuple[bytes, str, bytes]],
    ) -> None:
        self.writer = writer
        self.summary = summary
        self.say = say
        self.labels = labels
        self.sample = sample
        self.keys: set[str] = set()
        self.entered: set[tuple[int, int]] = set()
        self.batches: dict[int, int] = {}

    def enter(self, reply: Reply) -> int:
        """Enter a batch.

        Returns:
            The number of images that were annotated, or failed.

        Raises:
            ValueError: If an image has the name of another one.
        """
        if (reply.unit, reply.number) in self.entered:
            return 0
        self.entered.add((reply.unit, reply.number))
        if reply.last:
            self.batches[reply.unit] = reply.number + 1
        for key in (*reply.there, *(key for key, _ in (*reply.records, *reply.failed))):
            if key in self.keys:
                raise ValueError(
                    f"Two images are called {key!r}, and a label map is found by that name. Give the images names of "
                    f"their own."
                )
            self.keys.add(key)
        for key, record in reply.records:
            self.writer.put_record(key, record)
        for key, reason in reply.failed:
            self.writer.put_failure(key, reason)
        for note in reply.notes:
            self.say(note)
        self._count(reply)
        for key, file in reply.sample:
            insort(self.sample, (rank_of(key), key, file))
        del self.sample[IMAGES:]
        return len(reply.records) + len(reply.failed)

    def _count(self, reply: Reply) -> None:
        summary = self.summary
        summary.failed += reply.failed + reply.refused
        summary.annotated += len(reply.records)
        summary.already_there += len(reply.there)
        summary.exif_turned += reply.exif_turned
        summary.deep += reply.deep
        summary.images = summary.annotated + summary.already_there + len(summary.failed)
        if self.labels is not None:
            self.labels.hits += reply.hits
            self.labels.other_hits += reply.other_hits

    def check_complete(self, units: int) -> None:
        """Refuse to call a store complete of which batches never came back.

        Raises:
            StoreError: If any is missing.
        """
        missing = [
            unit
            for unit in range(units)
            if any((unit, number) not in self.entered for number in range(self.batches.get(unit, 1)))
            or unit not in self.batches
        ]
        if missing:
            raise StoreError(
                f"The cluster gave nothing back for {len(missing)} of {units} parts of the images. What came is in "
                f"{self.writer.path}; run the same command again"
            )


def _require_ray(num_actors: int | None) -> None:
    """Refuse what cannot be before anything else is done."""
    if num_actors is not None and num_actors < 1:
        raise ValueError(f"num_actors must be 1 or more, got {num_actors}.")
    if Rank.from_environment().world > 1:
        raise ValueError("Ray starts the processes that it needs: run the command once, without torchrun.")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise ImportError(f"The Ray engine needs more packages ({error}): pip install 'torchrelabel[ray]'.") from error


@contextmanager
def _cluster() -> Iterator[dict[str, Any]]:
    """Connect to the cluster that there is, or begin one on this machine alone; give its resources.

    What a task of the cluster raised is raised as what it was.
    """
    import ray

    begun = not ray.is_initialized()
    if begun:
        ray.init(log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    try:
        yield ray.cluster_resources()
    except ray.exceptions.RayError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, (TorchRelabelError, ValueError, OSError, ImportError)) and not isinstance(
                cause, ray.exceptions.RayError
            ):
                raise cause from None
            cause = getattr(cause, "cause", None) or cause.__cause__
        raise
    finally:
        if begun:
            ray.shutdown()
