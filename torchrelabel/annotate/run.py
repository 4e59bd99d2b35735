"""annotate: every image of a folder through an annotator, into a store."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from torchrelabel.annotate.annotator import Annotator, TopScores, spaced
from torchrelabel.annotate.archives import read_dataset
from torchrelabel.annotate.calibrate import FEWEST_IMAGES, CropFit, calibrate
from torchrelabel.annotate.class_names import choose_class_names, names_to_store, read_class_names
from torchrelabel.annotate.folder_order import renumbered
from torchrelabel.annotate.images import ImagesFound, ImagesToAnnotate, LoadedBatch, collate, find_images
from torchrelabel.errors import StoreError, TorchRelabelError, UnsupportedModel
from torchrelabel.store import LabelStore, LabelStoreWriter, StoreHeader
from torchrelabel.store.header import read_header
from torchrelabel.store.layout import HEADER_FILE, encode_key, fingerprint, is_store_file, shard_files, shard_of

# Of photographs, labels from cells seen 1.5 times enlarged are as near to the annotator as from twice, at 3.25 forward
# passes instead of 5 (docs/evidence.md).
ENLARGE = 1.5

# The logits of a whole image cost 5 bits a class; of many classes only the best are worth theirs.
_ALL_OF_IMAGE, _BEST_OF_IMAGE = 1024, 256

# A model that gives no number for so many images, and for none before them, gives none at all; one image may be bad.
_ENOUGH_WITHOUT_NUMBERS = 16


@dataclass
class Summary:
    """What a run did. Of a distributed run, what this rank did.

    Attributes:
        output: The store.
        images: Images in the folder (of this rank's shards).
        annotated: Annotated now.
        already_there: Annotated by an earlier run.
        failed: Key and reason of every image that could not be annotated.
        notes: What else is worth knowing: folders that could not be read, warnings of PIL's.
        model: The annotator's name.
        grid: ``(h, w)`` in cells.
        num_classes: C.
        top_k: K.
        bytes: Size of the store on disk (of this rank's shards).
        seconds: Time for images and store, without building the model.
        agreement: Of the images annotated now, the share whose pooled map has its highest score at the index of their
            class folder; None unless there are as many folders as classes.
        agreement_renumbered: The same, if the folders were numbered as the other of timm and torchvision numbers them;
            None where both number them alike.
        crop_fit: How near the labels of random crops are to the annotator's own view of them, where this run fitted
            them.
        rank: Number of this process among those that torchrun started.
        world: How many these are; 1 without torchrun.
    """

    output: str
    images: int = 0
    annotated: int = 0
    already_there: int = 0
    failed: list[tuple[str, str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    model: str = ""
    grid: tuple[int, int] = (0, 0)
    num_classes: int = 0
    top_k: int = 0
    bytes: int = 0
    seconds: float = 0.0
    agreement: float | None = None
    agreement_renumbered: float | None = None
    crop_fit: CropFit | None = None
    rank: int = 0
    world: int = 1

    @property
    def bytes_per_image(self) -> float:
        """Bytes on disk per label map, whoever wrote it; 0 without any."""
        maps = self.annotated + self.already_there
        return self.bytes / maps if maps else 0.0

    @property
    def images_per_second(self) -> float:
        """Images annotated now, per second."""
        return self.annotated / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class _Rank:
    """This process among those that torchrun started; alone without torchrun."""

    rank: int
    world: int
    local: int

    @classmethod
    def from_environment(cls) -> _Rank:
        """Read what torchrun sets. No process group is needed: the ranks share nothing but the folder."""
        try:
            rank, world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
            local = int(os.environ.get("LOCAL_RANK", str(rank)))
        except ValueError as error:
            raise ValueError(
                f"RANK, WORLD_SIZE and LOCAL_RANK must be numbers, as torchrun sets them: {error}"
            ) from None
        if not 0 <= rank < world:
            raise ValueError(f"RANK must be 0 to WORLD_SIZE - 1, got RANK={rank} and WORLD_SIZE={world}.")
        return cls(rank, world, local)

    def owns(self, shard: int) -> bool:
        """Whether this rank writes the shard."""
        return shard % self.world == self.rank


def annotate(
    data: str | os.PathLike[str] = ".",
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    model: str | Annotator,
    dataset: str | None = None,
    split: str = "train",
    pretrained: bool = True,
    checkpoint: str | os.PathLike[str] | None = None,
    top_k: int = 5,
    image_size: int | None = None,
    batch_size: int = 32,
    workers: int | None = None,
    device: str | torch.device | None = None,
    amp: bool = False,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    interpolation: str | None = None,
    codec: str = "float16",
    residual: bool = True,
    enlarge: float | None = None,
    image_top_k: int | None = None,
    shards: int | None = None,
    class_names: str | os.PathLike[str] | Sequence[str] | None = None,
    progress: bool = True,
) -> Summary:
    """Write the label maps of a folder's images to a store.

    The same call continues an interrupted run, tries images again that failed, and adds those that are new. Under
    torchrun every rank writes its own shards.

    Args:
        data: Folder of images, with or without class folders; or a tar file.
        output: The store; begun if it does not exist.
        model: A name of timm's, or an ``Annotator``, which then decides weights, size, device and precision.
        dataset: A data set by the name under which timm reads it, ``"hfds/..."``; ``data`` is then where it is kept.
        split: Which part of ``dataset``.
        pretrained: Load timm's weights.
        checkpoint: File of weights instead.
        top_k: K, classes kept per cell.
        image_size: Side in pixels to which every image is squashed; the model's own if None.
        batch_size: Images per forward pass.
        workers: Processes that load images; as many as cores, at most 8, if None; 0 loads in this process.
        device: ``"cpu"``, ``"cuda"``, ...; CUDA where there is one, if None or ``"auto"``.
        amp: Compute in bfloat16.
        mean: Mean per channel, of images in 0..1; the model's own if None.
        std: Standard deviation per channel; the model's own if None.
        interpolation: How images are resized, ``"bilinear"``, ``"bicubic"``, ...; the model's own if None.
        codec: How records are stored: ``"float16"`` or ``"uint8"``.
        residual: Also keep, per cell, the logsumexp of the classes not kept.
        enlarge: How many times as large as the model's own size images are shown for their cells, which costs the
            square of it in forward passes, besides one; 1 takes all from one. If None, 1.5, or 1 for models that take
            no other size than their own.
        image_top_k: T, of how many classes the logit for the whole image is kept too, from which labels of crops are
            calibrated; 0 for none, which makes label maps as the paper has them. If None: all up to 1,024 classes, 256
            of more, and 0 without a residual.
        shards: LMDB files in the store; one per rank, or as the existing store has, if None.
        class_names: What the classes are called, in the order of the model's outputs; or a file of names: one a line,
            or a JSON list or object. If None, the names that the checkpoint holds, those of the class folders, or
            ImageNet's.
        progress: Show progress and notes on stderr (rank 0 only).

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If the folder, the checkpoint or the file of class names does not exist.
        NotADirectoryError: If ``data`` is a file.
        ValueError: If an argument is out of range, the folder holds no image, or there is not one name for each class.
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreInUse: If another process writes to it.
        StoreError: If ``output`` exists and is no store.
        UnsupportedModel: If the model cannot classify cells.
        TorchRelabelError: If the weights cannot be had, or the model gives no numbers.
    """
    for name, value, lowest in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    rank = _Rank.from_environment()
    output = Path(output)
    given_names = None if class_names is None else read_class_names(class_names)
    shards = _shards(output, shards, rank)
    found = _find(data, output, dataset, split)
    if not found.keys:
        raise ValueError(_nothing_found(found))
    summary = Summary(output=str(output), rank=rank.rank, world=rank.world)
    storable = [key for key in found.keys if _can_be_stored(key, summary)]
    keys = [key for key in storable if rank.owns(shard_of(key, shards))]
    summary.images = len(keys) + len(summary.failed)
    say = _Notes(summary, loud=progress and rank.rank == 0)
    for path, reason in found.problems:
        say(f"Not looked into: {path} ({reason})")
    if found.class_to_idx and os.path.realpath(output.absolute().parent) == os.path.realpath(found.root):
        say(
            f"{output.name} will lie among the class folders, and ImageFolder would take it for one of them: move it "
            f"elsewhere before training, or write it elsewhere with -o."
        )

    if isinstance(model, Annotator):
        annotator = model
    else:
        annotator = Annotator.from_timm(
            model,
            pretrained=pretrained,
            checkpoint=checkpoint,
            image_size=image_size,
            device=_own_device(device, rank),
            amp=amp,
            mean=mean,
            std=std,
            interpolation=interpolation,
        )
        annotator = _enlarged(annotator, enlarge, say)
    if annotator.weights == "random":
        say(f"WARNING: the weights of {annotator.name} are random (--no-pretrained): these label maps mean nothing.")
    if annotator.weights == "checkpoint":
        say(
            f"Images are resized with {annotator.interpolation} and normalised with mean {spaced(annotator.mean)} and "
            f"std {spaced(annotator.std)}. If the checkpoint was trained with others, say so: --interpolation, --mean, "
            f"--std."
        )
    if not annotator.head.commutes:
        say(
            f"The head of {annotator.name} does not commute with pooling: the mean of its cells is not what it says of "
            f"the image. torchrelabel check measures what that means for these images."
        )
    classes = annotator.num_classes
    if top_k > classes:
        say(f"top_k is {classes}, not {top_k}: the model has no more classes.")
        top_k = classes
    summary.model, summary.grid, summary.num_classes, summary.top_k = annotator.name, annotator.grid, classes, top_k
    if image_top_k is None:
        complete = residual or top_k == classes
        image_top_k = 0 if not complete else classes if classes <= _ALL_OF_IMAGE else min(_BEST_OF_IMAGE, classes)
    residual = residual and top_k < classes
    folders = found.class_to_idx
    folders_are_classes = (
        folders is not None and len(folders) == classes and any(found.class_of(key) is not None for key in keys[:1])
    )

    names: Sequence[str] | None = choose_class_names(annotator, folders if folders_are_classes else None, given_names)
    if given_names is None:
        names = names_to_store(output, names)
    other_order = renumbered(folders) if folders and folders_are_classes else {}
    own = [shard for shard in range(shards) if rank.owns(shard)]
    settings: dict[str, Any] = {
        "num_classes": classes,
        "top_k": top_k,
        "codec": codec,
        "residual": residual,
        "shards": shards,
        "annotator": annotator.description(),
        "grid": annotator.grid,
        "image_top_k": image_top_k,
        "class_names": names,
        "class_to_idx": folders,
    }
    counted = {"count": len(storable), "fingerprint": fingerprint(storable)}
    if _is_done(output, StoreHeader(**settings, dataset=counted), keys, own):
        summary.already_there = len(keys)
        summary.bytes = _bytes_on_disk(output, own)
        summary.crop_fit = _calibrate(output, found, annotator, batch_size, say)
        return summary

    started = time.perf_counter()
    with LabelStoreWriter(output, **settings, write_shards=own, resume=True) as writer:
        todo = [key for key in keys if key not in writer]
        summary.already_there = len(keys) - len(todo)
        loader = _loader(annotator, found, todo, batch_size, workers)
        hits = other_hits = without_numbers = 0
        with tqdm(total=len(todo), unit="img", disable=not say.loud, desc="annotate", smoothing=0.1) as bar:
            for batch, top in _score(annotator, loader, top_k, residual):
                failures = list(batch.failures)
                for index, key in enumerate(batch.keys):
                    scores, label_classes, rest, of_image = _arrays(top, index)
                    if not all(np.isfinite(each).all() for each in (scores, rest, of_image) if each is not None):
                        failures.append((key, "the model's scores for it are not finite numbers"))
                        without_numbers += 1
                        continue
                    try:
                        writer.put(key, scores, label_classes, rest, image_scores=of_image if image_top_k else None)
                    except ValueError as error:  # such as a logit beyond half precision
                        failures.append((key, str(error)))
                        continue
                    summary.annotated += 1
                    if folders_are_classes:
                        top_class, label = _pooled_top(scores, label_classes, classes), found.class_of(key)
                        hits += top_class == label
                        other_hits += label is not None and top_class == other_order.get(label)
                some = summary.annotated or summary.already_there
                if not some and without_numbers >= min(_ENOUGH_WITHOUT_NUMBERS, len(todo)):
                    raise TorchRelabelError(_no_numbers(annotator))
                for key, reason in failures:
                    writer.put_failure(key, reason)
                    summary.failed.append((key, reason))
                for key, text in batch.warnings:
                    say(f"{key}: {text}")
                bar.update(len(batch.keys) + len(batch.failures))
        writer.keep_failures_of(keys)
        writer.finish(dataset=counted)
    summary.seconds = time.perf_counter() - started
    summary.bytes = _bytes_on_disk(output, own)
    summary.crop_fit = _calibrate(output, found, annotator, batch_size, say)
    if folders_are_classes and summary.annotated:
        summary.agreement = hits / summary.annotated
        summary.agreement_renumbered = other_hits / summary.annotated if other_order else None
    return summary


def _enlarged(annotator: Annotator, enlarge: float | None, say: _Notes) -> Annotator:
    """Let the annotator see images enlarged for their cells; by default as far as its model takes them."""
    if enlarge is not None:
        return annotator.enlarged(enlarge)
    try:
        return annotator.enlarged(ENLARGE)
    except (ValueError, UnsupportedModel) as error:
        say(f"Cells are taken from images of the model's own size, without enlarging them: {error}")
        return annotator


def _calibrate(output: Path, found: ImagesFound, annotator: Annotator, batch_size: int, say: _Notes) -> CropFit | None:
    """Fit the labels of crops once the store is complete, by whichever rank completes it."""
    store = LabelStore(output)
    header = store.header
    if not header.complete or not header.image_top_k or header.calibration is not None:
        return None

    def progress(keys: Iterable[Any], total: int, what: str) -> Iterable[Any]:
        return tqdm(keys, total=total, unit="img", disable=not say.loud, desc=what, leave=False)

    fit = calibrate(store, found, annotator, batch_size=batch_size, progress=progress)
    if fit is None:
        say(
            f"Labels are not calibrated, since {FEWEST_IMAGES} images are needed for it: they follow the paper's rule. "
            f"Add images and run the same command again."
        )
    return fit


def _find(data: str | os.PathLike[str], output: Path, dataset: str | None, split: str) -> ImagesFound:
    """Find the images of a folder, of a tar file or of a data set that timm knows by name."""
    if dataset is None and not (os.fspath(data).endswith(".tar") and os.path.isfile(data)):
        return find_images(data, skip=[output])
    # Hugging Face keeps its data sets in a place of its own unless told otherwise.
    elsewhere = os.fspath(data) == "." and (dataset or "").lower().startswith("hfds/")
    return read_dataset(dataset or "", None if elsewhere else data, split)


class _Notes:
    """Keep what is worth knowing for the summary, and say it at once."""

    def __init__(self, summary: Summary, loud: bool) -> None:
        self.summary = summary
        self.loud = loud

    def __call__(self, text: str) -> None:
        self.summary.notes.append(text)
        if self.loud:
            # Names of files need not be text that the terminal can show.
            tqdm.write(text.encode("utf-8", "backslashreplace").decode(), file=sys.stderr)


def _shards(output: Path, shards: int | None, rank: _Rank) -> int:
    """Settle the number of shards before anything expensive, which also finds out whether ``output`` is a store."""
    if shards is not None and shards < 1:
        raise ValueError(f"shards must be 1 or more, got {shards}.")
    if (output / HEADER_FILE).exists():
        shards = read_header(output).shards if shards is None else shards
    elif output.exists() and not (output.is_dir() and all(is_store_file(entry.name) for entry in output.iterdir())):
        raise StoreError(f"{str(output)!r} exists and is no label store. Give another path with -o, or remove it.")
    elif not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(output.absolute().parent)!r} to write the store to.")
    shards = rank.world if shards is None else shards
    if shards < rank.world:
        raise ValueError(
            f"{str(output)!r} has {shards} shards, too few for {rank.world} ranks, since a shard has one writer. "
            f"Start at most {shards} ranks, or begin a store with --shards {rank.world} or more."
        )
    return shards


def _is_done(output: Path, given: StoreHeader, keys: list[str], shards: list[int]) -> bool:
    """Whether an earlier run has left nothing to do in these shards, so that even a read-only disk will do."""
    try:
        store = LabelStore(output)
        return (
            set(shards) <= set(store.header.finished)
            and not store.header.differences(given.as_read())
            and store.header.continued_by(given) == store.header
            and all(key in store for key in keys)
            and not store.failures
        )
    except StoreError:  # it is not begun, or something of it is lost, which the writer will say or mend
        return False


def _can_be_stored(key: str, summary: Summary) -> bool:
    try:
        encode_key(key)
    except ValueError as error:
        summary.failed.append((key, str(error)))
        return False
    return True


def _nothing_found(found: ImagesFound) -> str:
    reasons = "".join(f"\nNot looked into: {path} ({reason})" for path, reason in found.problems)
    return f"There is no image in {str(found.root)!r} or the folders in it (.jpg, .png, .webp, ...).{reasons}"


def _own_device(device: str | torch.device | None, rank: _Rank) -> str | torch.device | None:
    """Give every rank of a machine its own CUDA device, unless one was named by number."""
    wants_cuda = device in (None, "auto") and torch.cuda.is_available()
    if rank.world > 1 and (wants_cuda or str(device) == "cuda"):
        return f"cuda:{rank.local % max(1, torch.cuda.device_count())}"
    return device


def _loader(
    annotator: Annotator, found: ImagesFound, keys: list[str], batch_size: int, workers: int | None
) -> DataLoader[Any]:
    larger = annotator.map_size if annotator.map_size != annotator.image_size else None
    dataset = ImagesToAnnotate(found, keys, annotator.image_size, annotator.interpolation, larger)
    batches = -(-len(keys) // batch_size)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=min(_default_workers() if workers is None else workers, batches),
        collate_fn=collate,
        pin_memory=annotator.device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
    )


def _default_workers() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, 8)


def _ignore_interrupt(_worker: int) -> None:
    # Ctrl-C reaches every process of the terminal; the main process stops its workers in order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _score(
    annotator: Annotator, loader: DataLoader[Any], top_k: int, residual: bool
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


def _arrays(top: TopScores | None, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray]:
    assert top is not None  # there are keys, so there are scores
    rest = None if top.residual is None else top.residual[index].numpy()
    return top.scores[index].numpy(), top.classes[index].numpy(), rest, top.image_scores[index].numpy()


def _pooled_top(scores: np.ndarray, label_classes: np.ndarray, num_classes: int) -> int:
    """Return the top class of the whole map, classes not kept in a cell counting as 0, as LabelPooling's default."""
    return int(np.bincount(label_classes.ravel(), weights=scores.ravel(), minlength=num_classes).argmax())


def _no_numbers(annotator: Annotator) -> str:
    remedy = (
        "It was computed in bfloat16: try --no-amp."
        if annotator.amp
        else "Its weights may be damaged, or made for another input: check the checkpoint."
    )
    return f"All scores that {annotator.name} gives for the first images are not finite numbers. {remedy}"


def _bytes_on_disk(output: Path, shards: list[int]) -> int:
    # st_blocks counts what is allocated: a memory map's file is sparse.
    sizes = [file.stat() for shard in shards for file in shard_files(output, shard)]
    return sum(int(getattr(size, "st_blocks", -(-size.st_size // 512))) * 512 for size in sizes)
