"""Plan: what a run has to do, and the store that it does it in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchrelabel.annotate.annotator import Annotator
from torchrelabel.annotate.class_names import choose_class_names, names_to_store
from torchrelabel.annotate.images import Exif, ImagesFound
from torchrelabel.annotate.rank import Rank
from torchrelabel.annotate.summary import Notes, Summary
from torchrelabel.errors import StoreError
from torchrelabel.folders import refused_keys
from torchrelabel.store import LabelStore, StoreHeader
from torchrelabel.store.header import read_header
from torchrelabel.store.layout import HEADER_FILE, fingerprint, is_store_file, shard_of

# The logits of a whole image cost 5 bits a class; of many classes only the best are worth theirs.
_ALL_OF_IMAGE, _BEST_OF_IMAGE = 1024, 256
# Four or nine windows keep many classes in the bytes of few classes of many cells (docs/evidence.md).
_TOP_OF_CELL, _TOP_OF_WINDOW = 5, 100


def settle_shards(output: Path, shards: int | None, rank: Rank) -> int:
    """Settle the number of shards before anything expensive, which also finds out whether ``output`` is a store."""
    if shards is not None and shards < 1:
        raise ValueError(f"shards must be 1 or more, got {shards}.")
    if (output / HEADER_FILE).exists():
        shards = read_header(output).shards if shards is None else shards
    elif output.exists() and not (output.is_dir() and all(is_store_file(entry.name) for entry in output.iterdir())):
        raise StoreError(f"{str(output)!r} exists and is no label store. Give another path with -o, or remove it.")
    elif not output.absolute().parent.is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(output.absolute().parent)!r} to write the store to. Make it, or write elsewhere."
        )
    shards = rank.world if shards is None else shards
    if shards < rank.world:
        raise ValueError(
            f"{str(output)!r} has {shards} shards, too few for {rank.world} ranks, since a shard has one writer. "
            f"Start at most {shards} ranks, or begin a store with --shards {rank.world} or more."
        )
    return shards


@dataclass(frozen=True)
class Work:
    """What there is to be annotated.

    Attributes:
        keys: The images of this rank.
        shards: The shards that it writes.
        dataset: Count and fingerprint of all images, for the header.
    """

    keys: list[str]
    shards: list[int]
    dataset: dict[str, Any]


def share_out(found: ImagesFound, shards: int, rank: Rank, summary: Summary) -> Work:
    """Divide the images among the ranks; those that no store can hold belong to none, and are the first one's loss."""
    refused = refused_keys(found.keys)
    storable = [key for key in found.keys if key not in refused]
    keys = [key for key in storable if rank.owns(shard_of(key, shards))]
    if rank.is_first:
        summary.failed += refused.items()
    summary.images = len(keys) + len(summary.failed)
    summary.left_out = dict(found.left_out)
    return Work(
        keys,
        [shard for shard in range(shards) if rank.owns(shard)],
        {"count": len(storable), "fingerprint": fingerprint(storable)},
    )


def store_settings(
    annotator: Annotator,
    found: ImagesFound,
    output: Path,
    say: Notes,
    *,
    top_k: int | None,
    codec: str,
    residual: bool,
    image_top_k: int | None,
    shards: int,
    class_names: Sequence[str] | None,
    exif: Exif,
) -> dict[str, Any]:
    """The settings of the store, as its writer takes them."""
    classes = annotator.num_classes
    if top_k is None:
        top_k = _TOP_OF_CELL if annotator.windows is None else min(_TOP_OF_WINDOW, classes)
    if top_k > classes:
        say(f"All {classes} classes are kept in each cell, not {top_k}: the model has no more.")
        top_k = classes
    if image_top_k is None:
        complete = residual or top_k == classes
        image_top_k = 0 if not complete else classes if classes <= _ALL_OF_IMAGE else min(_BEST_OF_IMAGE, classes)
    folders = found.class_to_idx if found.folders_are_classes(classes) else None
    names = choose_class_names(annotator, folders, class_names)
    return {
        "num_classes": classes,
        "top_k": top_k,
        "codec": codec,
        "residual": residual and top_k < classes,
        "shards": shards,
        # Images as torchvision's loader gives them need no word, so that stores from before go on.
        "annotator": {**annotator.description(), **({} if exif == "ignore" else {"exif": exif})},
        "grid": annotator.grid,
        "image_top_k": image_top_k,
        "class_names": names if class_names is not None else names_to_store(output, names),
        "class_to_idx": found.class_to_idx,
    }


def is_done(output: Path, given: StoreHeader, work: Work) -> bool:
    """Whether an earlier run has left nothing to do in these shards, so that even a read-only disk will do."""
    try:
        store = LabelStore(output)
        return (
            set(work.shards) <= set(store.header.finished)
            and not store.header.differences(given.as_read())
            and store.header.continued_by(given) == store.header
            and all(key in store for key in work.keys)
            and not store.failures
        )
    except StoreError:  # it is not begun, or something of it is lost, which the writer will say or mend
        return False
