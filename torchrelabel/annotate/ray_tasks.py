"""What runs on the nodes of a Ray cluster: tasks that read and decode images, actors that annotate them."""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from numpy.typing import ArrayLike

from torchrelabel.annotate.annotator import Annotator
from torchrelabel.annotate.images import Exif, ImagesFound, ImagesToAnnotate, LoadedBatch, PhotoFacts, collate
from torchrelabel.annotate.ray_sources import Batch, ImagesInMemory, KeysDone, Unit
from torchrelabel.annotate.recording import FolderLabels, Recorder
from torchrelabel.annotate.scoring import score_batches
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.folders import refused_keys
from torchrelabel.store import StoreHeader
from torchrelabel.store.layout import encode_key
from torchrelabel.store.record import pack_record

Rows = Mapping[str, Any]

# One image of each batch is a sample of many; where the first unit is all there is, a calibration needs more of it.
_SAMPLE_OF_FIRST_UNIT = 8


@dataclass(frozen=True)
class Loading:
    """How tasks load images.

    Attributes:
        batch_size: Images in a batch.
        done: Keys of images that need no map any more.
        size: Side in pixels.
        enlarged_size: Another size at which they are asked for too.
        interpolation: How they are resized.
        exif: Whether an EXIF orientation is followed.
        wants_sample: Whether the files of some images are wanted too.
    """

    batch_size: int
    done: KeysDone
    size: int
    enlarged_size: int | None
    interpolation: str
    exif: Exif
    wants_sample: bool


@dataclass(frozen=True)
class Annotating:
    """How actors annotate images.

    Attributes:
        annotator: On the CPU; each actor has a copy on its device.
        device: Where they run.
        header: Of the store, for which records are packed.
        labels: Counts agreement with the folders, if there is any.
        todo: How many images there are, if that is known.
        some_there: Whether the store holds any map, so that the model is known to give numbers.
    """

    annotator: Annotator
    device: str
    header: StoreHeader
    labels: FolderLabels | None
    todo: int | None
    some_there: bool


@dataclass
class Reply:
    """What came of a batch.

    Attributes:
        unit: Number of the unit that it belongs to.
        number: Its number in the unit.
        last: Whether it is the unit's last one.
        there: Keys of images that were done before.
        refused: Keys that no store can hold, and why.
        records: Keys and packed records.
        failed: Keys of images without a map, and why.
        notes: What PIL warned about.
        exif_turned: As in `Summary`.
        deep: As in `Summary`.
        hits: As in `FolderLabels`.
        other_hits: As in `FolderLabels`.
        sample: Keys and files of some images, if wanted.
    """

    unit: int
    number: int
    last: bool
    there: list[str]
    refused: list[tuple[str, str]]
    sample: list[tuple[str, bytes]] = field(default_factory=list)
    records: list[tuple[str, bytes]] = field(default_factory=list)
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    exif_turned: int = 0
    deep: int = 0
    hits: int = 0
    other_hits: int = 0


class _Packer:
    """Packs records instead of putting them into a store, which is not on this machine."""

    def __init__(self, header: StoreHeader) -> None:
        self.header = header
        self.records: list[tuple[str, bytes]] = []

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
        """As `LabelStoreWriter.put`, but for what is in the store already."""
        name = encode_key(key)
        try:
            record = pack_record(
                self.header, name, scores, classes, residual, None, image_scores, image_size, exif_turned
            )
        except ValueError as error:
            raise ValueError(f"label map of {key!r}: {error}") from None
        self.records.append((key, record))

    def put_failure(self, key: str, reason: str) -> None:
        """The recorder's summary has it."""


def load_batches(rows: Rows, loading: Loading) -> Iterator[dict[str, Any]]:
    """What a task does: yield the batches of units, a row for each; the same ones if it runs again."""
    for content, number in zip(rows["unit"], rows["number"], strict=True):
        unit: Unit = pickle.loads(content)
        for index, ((keys, there, found), last) in enumerate(
            _with_last(unit.batches(loading.batch_size, loading.done))
        ):
            refused = refused_keys(keys)
            images = ImagesToAnnotate(
                found,
                [key for key in keys if key not in refused],
                loading.size,
                loading.interpolation,
                loading.enlarged_size,
                loading.exif,
            )
            batch = collate([images[place] for place in range(len(images))])
            reply = Reply(int(number), index, last, there, list(refused.items()))
            if loading.wants_sample:
                reply.sample = _sample(found, batch.keys, 1 if number else _SAMPLE_OF_FIRST_UNIT)
            yield _row_of(batch, reply)


class AnnotateBatches:
    """What an actor does.

    Args:
        annotating: A reference to an `Annotating`, in a list so that Ray hands it on as it is.
    """

    def __init__(self, annotating: Sequence[Any]) -> None:
        import ray

        self.how: Annotating = ray.get(annotating[0])
        self.annotator = self.how.annotator.on(self.how.device if torch.cuda.is_available() else "cpu")
        self.annotated = int(self.how.some_there)
        self.without_numbers = 0

    def __call__(self, rows: Rows) -> dict[str, Any]:
        """Annotate batches: a packed `Reply` for each."""
        return {"reply": [pickle.dumps(self._reply(row)) for row in _unzipped(rows)]}

    def _reply(self, row: Rows) -> Reply:
        batch, reply = _batch_of(row)
        how, summary = self.how, Summary("", already_there=self.annotated)
        packer = _Packer(how.header)
        labels = None if how.labels is None else replace(how.labels)
        todo = 2**31 if how.todo is None else how.todo
        recorder = Recorder(packer, summary, Notes(summary, loud=False), labels, self.annotator, todo)
        recorder.without_numbers = self.without_numbers
        header = how.header
        for each, top in score_batches(self.annotator, [batch], header.top_k, header.residual):
            recorder.write(each, top)
        self.annotated += summary.annotated
        self.without_numbers = recorder.without_numbers
        return replace(
            reply,
            records=packer.records,
            failed=summary.failed,
            notes=summary.notes,
            exif_turned=summary.exif_turned,
            deep=summary.deep,
            hits=0 if labels is None else labels.hits,
            other_hits=0 if labels is None else labels.other_hits,
        )


def replies(units: Sequence[Unit], loading: Loading, annotating: Annotating, *, actors: int) -> Iterator[Reply]:
    """Have the cluster that this process is connected to annotate units; yield what came of each batch, in any order.

    Args:
        units: What is to be read.
        loading: How.
        annotating: How.
        actors: How many annotators there are.
    """
    if not units:
        return
    import ray
    import ray.data

    shipped = ray.put(annotating)
    rows = [{"unit": pickle.dumps(unit), "number": number} for number, unit in enumerate(units)]
    # On a cluster without GPUs both ask for the same and Ray makes one step of them, which saves copying the pixels.
    # Where there are, the GPU is what is scarce, and cores are left to those who decode.
    resources = {"num_cpus": 1} if annotating.device == "cpu" else {"num_cpus": 0, "num_gpus": 1}
    with _quiet():
        dataset = (
            ray.data.from_items(rows, override_num_blocks=len(rows))
            .map_batches(load_batches, batch_size=1, fn_kwargs={"loading": loading}, num_cpus=1)
            .map_batches(
                AnnotateBatches,
                batch_size=1,
                fn_constructor_args=([shipped],),
                compute=ray.data.ActorPoolStrategy(size=actors),
                **resources,
            )
        )
        for row in dataset.iter_rows():
            yield pickle.loads(row["reply"])


def rank_of(key: str) -> bytes:
    """Where an image stands among all, by chance and the same every time."""
    return hashlib.blake2b(key.encode("utf-8", "surrogateescape"), digest_size=8).digest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Ray Data's own bars and logs, which would lie over ours, and its words around errors."""
    from ray.data import DataContext

    context, logger = DataContext.get_current(), logging.getLogger("ray.data")
    before = context.enable_progress_bars, context.raise_original_map_exception, logger.level
    context.enable_progress_bars, context.raise_original_map_exception = False, True
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        context.enable_progress_bars, context.raise_original_map_exception = before[:2]
        logger.setLevel(before[2])


def _with_last(batches: Iterator[Batch]) -> Iterator[tuple[Batch, bool]]:
    """Each with whether it is the last one; one without images where there is none."""
    waiting = next(batches, ([], [], ImagesInMemory.of({})))
    for batch in batches:
        yield waiting, False
        waiting = batch
    yield waiting, True


def _sample(found: ImagesFound, keys: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    files = []
    for key in sorted(keys, key=rank_of)[:count]:
        with found.open(key) as file:
            files.append((key, file.read()))
    return files


def _row_of(batch: LoadedBatch, reply: Reply) -> dict[str, Any]:
    # Pixels as arrays, which Ray hands on without a copy.
    rest = (batch.keys, [tuple(facts) for facts in batch.facts], batch.failures, batch.warnings, reply)
    enlarged = batch.pixels[:0] if batch.enlarged is None else batch.enlarged
    return {
        "pixels": [batch.pixels.numpy()],
        "enlarged": [enlarged.numpy()],
        "rest": [pickle.dumps((batch.enlarged is not None, *rest))],
    }


def _batch_of(row: Rows) -> tuple[LoadedBatch, Reply]:
    has_enlarged, keys, facts, failures, warnings, reply = pickle.loads(row["rest"])
    enlarged = torch.from_numpy(row["enlarged"]) if has_enlarged else None
    batch = LoadedBatch(
        keys, torch.from_numpy(row["pixels"]), enlarged, [PhotoFacts(*each) for each in facts], failures, warnings
    )
    return batch, reply


def _unzipped(rows: Rows) -> Iterator[Rows]:
    for place in range(len(rows["rest"])):
        yield {name: values[place] for name, values in rows.items()}
