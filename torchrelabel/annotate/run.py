"""annotate: every image of a folder through an annotator, into a store."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from torchrelabel.annotate.annotator import Annotator, TimmOptions, check_request, spaced
from torchrelabel.annotate.calibrate import FEWEST_IMAGES, CropFit, calibrate
from torchrelabel.annotate.class_names import read_class_names
from torchrelabel.annotate.images import Exif, ImagesFound
from torchrelabel.annotate.plan import is_done, settle_shards, share_out, store_settings
from torchrelabel.annotate.rank import Rank
from torchrelabel.annotate.recording import FolderLabels, Recorder
from torchrelabel.annotate.scoring import load_images, score_batches
from torchrelabel.annotate.sources import check_split, find_data
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.annotate.timm_models import require_weights
from torchrelabel.errors import UnsupportedModel
from torchrelabel.folders import disk_usage
from torchrelabel.store import LabelStore, LabelStoreWriter, StoreHeader
from torchrelabel.store.layout import shard_files

if TYPE_CHECKING:
    from typing_extensions import Unpack

# Of photographs, labels from cells seen 1.5 times enlarged are as near to the annotator as from twice, at 3.25 forward
# passes instead of 5 (docs/evidence.md).
ENLARGE = 1.5

_KINDS_SHOWN = 5


def annotate(
    data: str | os.PathLike[str] = ".",
    output: str | os.PathLike[str] = "maps.lmdb",
    *,
    model: str | Annotator,
    dataset: str | None = None,
    split: str = "train",
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
    workers: int | None = None,
    progress: bool = True,
    **options: Unpack[TimmOptions],
) -> Summary:
    """Write the label maps of a folder's images to a store.

    The same call continues an interrupted run, tries images again that failed, and adds those that are new. Under
    torchrun every rank writes its own shards.

    Args:
        data: Folder of images, with or without class folders; or a tar file.
        output: The store; begun if it does not exist.
        model: A name of timm's; or an ``Annotator``, which then decides on weights, sizes, device and precision.
        dataset: A data set by the name under which timm reads it, ``"hfds/..."``; ``data`` is then where it is kept.
        split: Which part of ``dataset``.
        exif: ``"ignore"``: images are seen as they are stored, as torchvision's loader gives them. ``"apply"``: turned
            as their EXIF orientation says, for a training whose loader does so too.
        top_k: K, classes kept per cell; if None, 5, or 100 per window.
        codec: How records are stored: ``"float16"`` or ``"uint8"``.
        residual: Also keep, per cell, the logsumexp of the classes not kept.
        image_top_k: T, of how many classes the logit for the whole image is kept too, from which labels of crops are
            calibrated; 0 for none, which makes label maps as the paper has them. If None: all up to 1,024 classes, 256
            of more, and 0 without a residual.
        enlarge: How many times as large as the model's own size images are shown for their cells, which costs the
            square of it in forward passes, besides one; 1 takes all from one. If None, 1.5, or 1 for models that take
            no other size than their own.
        windows: Instead of cells, classify as many overlapping windows along each side, as the model classifies any
            image, which costs the square of it in forward passes, besides one. Labels of crops are nearer to the
            annotator, and any classifier will do; what small regions show is less exact, as for token labels.
        shards: LMDB files in the store; one per rank, or as the existing store has, if None.
        class_names: What the classes are called, in the order of the model's outputs; or a file of names: one a line,
            or a JSON list or object. If None, the names that the checkpoint holds, those of the class folders, or
            ImageNet's.
        batch_size: Images per forward pass.
        workers: Processes that load images; as many as cores, at most 8, if None; 0 loads in this process.
        progress: Show progress and notes on stderr (rank 0 only).
        options: Where ``model`` is a name, what `Annotator.from_timm` takes: ``pretrained``, ``checkpoint``,
            ``state_dict_key``, ``strip_prefix``, ``image_size``, ``device``, ``amp``, ``mean``, ``std``,
            ``interpolation``.

    Returns:
        What was done.

    Raises:
        FileNotFoundError: If the folder, the checkpoint or the file of class names does not exist.
        NotADirectoryError: If ``data`` is a file.
        TypeError: If ``model`` is neither a name nor an ``Annotator``.
        ValueError: If an argument is out of range or has no effect, the folder holds no image, or there is not one
            name for each class.
        SettingsDiffer: If the store was begun with other settings, naming each.
        StoreInUse: If another process writes to it.
        StoreError: If ``output`` exists and is no store.
        UnsupportedModel: If the model cannot classify cells.
        TorchRelabelError: If the weights cannot be had, or the model gives no numbers.
    """
    # What is cheap to know first: a wrong name should not wait until a million files are listed.
    check_arguments(top_k=top_k, batch_size=batch_size, workers=workers, exif=exif, dataset=dataset, split=split)
    rank, output = Rank.from_environment(), Path(output)
    build = plan_annotator(model, enlarge, windows, options, rank)
    given_names = None if class_names is None else read_class_names(class_names)
    shards = settle_shards(output, shards, rank)

    found = find_data(data, dataset, split, skip=[output])
    require_images(found)
    summary = Summary(str(output), rank=rank.rank, world=rank.world)
    say = Notes(summary, loud=progress and rank.is_first)
    work = share_out(found, shards, rank, summary)
    say_of_folder(say, found, output)

    annotator = build(say)
    say_of_annotator(say, annotator)
    settings = store_settings(
        annotator,
        found,
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

    if is_done(output, StoreHeader(**settings, dataset=work.dataset), work):
        summary.already_there = len(work.keys)
    else:
        started = time.perf_counter()
        with LabelStoreWriter(output, **settings, write_shards=work.shards, resume=True) as writer:
            todo = [key for key in work.keys if key not in writer]
            summary.already_there = len(work.keys) - len(todo)
            loader = load_images(annotator, found, todo, batch_size=batch_size, workers=workers, exif=exif)
            labels = FolderLabels.of(found, annotator.num_classes)
            recorder = Recorder(writer, summary, say, labels, annotator, len(todo))
            with tqdm(total=len(todo), unit="img", disable=not say.loud, desc="annotate", smoothing=0.1) as bar:
                for batch, top in score_batches(annotator, loader, settings["top_k"], settings["residual"]):
                    recorder.write(batch, top)
                    bar.update(len(batch.keys) + len(batch.failures))
            writer.keep_failures_of(work.keys)
            writer.finish(dataset=work.dataset)
        summary.seconds = time.perf_counter() - started
        recorder.conclude(exif)
    summary.bytes = disk_usage(file for shard in work.shards for file in shard_files(output, shard))
    summary.crop_fit = calibrate_if_complete(output, found, annotator, batch_size, say)
    return summary


def check_arguments(
    *, top_k: int | None, batch_size: int, workers: int | None, exif: str, dataset: str | None, split: str
) -> None:
    """Refuse arguments that cannot be."""
    for name, value, lowest in (("top_k", top_k, 1), ("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and value < lowest:
            raise ValueError(f"{name} must be {lowest} or more, got {value}.")
    if exif not in ("ignore", "apply"):
        raise ValueError(f"exif must be 'ignore' or 'apply', got {exif!r}.")
    check_split(dataset, split)


def plan_annotator(
    model: str | Annotator, enlarge: float | None, windows: int | None, options: TimmOptions, rank: Rank
) -> Callable[[Notes], Annotator]:
    """What builds the annotator once the images are known, after all was refused that can be refused before."""
    if isinstance(model, Annotator):
        neutral = {"pretrained": True, "amp": False}
        given = {name: value for name, value in options.items() if value != neutral.get(name)}
        given |= {name: value for name, value in (("enlarge", enlarge), ("windows", windows)) if value is not None}
        if given:
            raise ValueError(
                f"model is an Annotator, which was built with its settings, so that "
                f"{', '.join(f'{name}={value!r}' for name, value in given.items())} would have no effect. Give them "
                f"where it is built, or give the model by its name."
            )
        return lambda say: model
    if not isinstance(model, str):
        raise TypeError(
            f"model must be a name of timm's or an Annotator, got a {type(model).__name__}. "
            f"Annotator.from_model(features=..., head=..., ...) makes an annotator of any module."
        )
    if enlarge is not None and not 1 <= enlarge < float("inf"):
        raise ValueError(f"enlarge must be 1 or more, got {enlarge}.")
    if windows is not None and (windows < 2 or enlarge is not None):
        raise ValueError(
            f"windows must be 2 or more along each side, and say how large images are shown, so that enlarge has no "
            f"say; got windows={windows}, enlarge={enlarge}."
        )
    options["device"] = rank.own_device(options.get("device"))
    name, _ = check_request(model, **options)
    if options.get("pretrained", True) and options.get("checkpoint") is None:
        require_weights(name)

    def build(say: Notes) -> Annotator:
        annotator = Annotator.from_timm(model, windows=windows, **options)
        if windows is not None:
            return annotator
        sizes = annotator.even_sizes() if options.get("image_size") is not None else []
        if sizes:
            say(
                f"WARNING: images of {annotator.image_size} px are not shared evenly by {annotator.grid[0]} x "
                f"{annotator.grid[1]} cells of {annotator.head.stride} px, so that cells lie beside what they show. "
                f"The nearest sizes that are: --image-size {' or '.join(map(str, sizes))}."
            )
        return _enlarged(annotator, enlarge, say)

    return build


def _enlarged(annotator: Annotator, enlarge: float | None, say: Notes) -> Annotator:
    """Let the annotator see images enlarged for their cells; by default as far as its model takes them."""
    if enlarge is not None:
        return annotator.enlarged(enlarge)
    try:
        return annotator.enlarged(ENLARGE)
    except (ValueError, UnsupportedModel) as error:
        say(
            f"Cells are taken from images of the model's own size, without enlarging them: {error} With --windows 2 it "
            f"would see parts of them enlarged."
        )
        return annotator


def require_images(found: ImagesFound) -> None:
    """Refuse a folder without images.

    Raises:
        ValueError: If there is none.
    """
    if not found.keys:
        reasons = "".join(f"\nNot looked into: {path} ({reason})" for path, reason in found.problems)
        others = f" It holds {_kinds(found.left_out)}." if found.left_out else ""
        raise ValueError(
            f"There is no image in {str(found.root)!r} or the folders in it (.jpg, .png, .webp, ...).{others} Give the "
            f"folder of the images.{reasons}"
        )


def say_of_folder(say: Notes, found: ImagesFound, output: Path) -> None:
    """Say what is odd about a folder."""
    for path, reason in found.problems:
        say(f"Not looked into: {path} ({reason})")
    if found.left_out:
        say(f"Left out, since {found.why_left_out}: {_kinds(found.left_out)}.")
    if found.class_to_idx and os.path.realpath(output.absolute().parent) == os.path.realpath(found.root):
        say(
            f"{output.name} will lie among the class folders, and ImageFolder would take it for one of them: move it "
            f"elsewhere before training, or write it elsewhere with -o."
        )


def _kinds(left_out: Mapping[str, int]) -> str:
    """How many files of which kind: ``"12 files (10 .txt, 2 without extension)"``."""
    ordered = sorted(left_out.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{count} {extension or 'without extension'}" for extension, count in ordered[:_KINDS_SHOWN]]
    rest = sum(count for _, count in ordered[_KINDS_SHOWN:])
    return f"{sum(left_out.values())} files ({', '.join(shown)}{f', {rest} others' if rest else ''})"


def say_of_annotator(say: Notes, annotator: Annotator) -> None:
    """Say what is odd about an annotator."""
    for note in annotator.notes:
        say(note)
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


def calibrate_if_complete(
    output: Path, found: ImagesFound, annotator: Annotator, batch_size: int, say: Notes
) -> CropFit | None:
    """Fit the labels of crops once the store is complete, by whichever rank completes it."""
    store = LabelStore(output)
    header = store.header
    if not header.complete or not header.image_top_k or header.calibration is not None:
        return None
    progress = partial(_shown_progress, loud=say.loud)
    fit = calibrate(store, found, annotator, batch_size=batch_size, progress=progress)
    if fit is None:
        say(
            f"Labels are not calibrated, since {FEWEST_IMAGES} images are needed for it: they follow the paper's rule. "
            f"Add images and run the same command again."
        )
    return fit


def _shown_progress(keys: Iterable[Any], total: int, what: str, *, loud: bool) -> Iterable[Any]:
    return tqdm(keys, total=total, unit="img", disable=not loud, desc=what, leave=False)
