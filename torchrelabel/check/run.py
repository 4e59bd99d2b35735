"""check: label maps compared with their annotator's view of crops, and with ground-truth boxes."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import torch

from torchrelabel.annotate import Annotator
from torchrelabel.annotate.class_names import imagenet_synsets
from torchrelabel.annotate.crops import pool_crops
from torchrelabel.annotate.images import ImagesFound
from torchrelabel.annotate.made_by import annotator_of, check_annotator_of, differences
from torchrelabel.annotate.sources import check_split, find_data
from torchrelabel.check.agreement import compare_crops
from torchrelabel.check.boxes import BoxFolder, OddXml
from torchrelabel.check.orientation import orientation
from torchrelabel.check.overlap import compare_boxes
from torchrelabel.check.report import FolderAgreement, Report
from torchrelabel.data.records import label_map_of
from torchrelabel.errors import DamagedRecord
from torchrelabel.store import LabelStore, StoreHeader
from torchrelabel.store.header import class_for_people

CROPS_AN_IMAGE = 100  # of the box analyses, as in the paper

# Rounding in the store, and bfloat16, may exchange classes that are nearly equal; no more than that.
_SAME_CELLS = 0.9

_MISTAKEN_SHOWN = 3

Progress = Callable[[Iterable[Any], int, str], Iterable[Any]]


def check(
    store: LabelStore | str | os.PathLike[str],
    data: str | os.PathLike[str],
    *,
    dataset: str | None = None,
    split: str = "train",
    model: str | Annotator | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    state_dict_key: str | None = None,
    strip_prefix: str | None = None,
    image_size: int | None = None,
    device: str | torch.device | None = None,
    batch_size: int = 32,
    boxes: str | os.PathLike[str] | None = None,
    crops: int = 1000,
    box_images: int = 1000,
    seed: int = 0,
    progress: Progress = lambda keys, total, what: keys,
) -> Report:
    """Say whether label maps show what they should, by their annotator, by boxes, or by both.

    Args:
        store: The label maps.
        data: The folder of the images, or a tar file.
        dataset: A data set by the name under which timm reads it; ``data`` is then where it is kept.
        split: Which part of ``dataset``.
        model: A model of timm's by name, or an annotator. If left out while ``checkpoint`` is given, the one that the
            store names. By name, the one that made the store gets the store's mean, std and interpolation, and the
            same random weights if they were random.
        checkpoint: Weights for ``model``.
        state_dict_key: Under which key of the checkpoint they lie, if not where most scripts keep them.
        strip_prefix: What stands in front of their names there, if it is not found out.
        image_size: Side to which crops are squashed. If None, that of the store if the model is the one that made it,
            and the model's own if it is another.
        device: Where the model runs; CUDA where there is one, if None.
        batch_size: Crops per forward pass.
        boxes: Folder of XML files with boxes, as ImageNet and Pascal VOC have them.
        crops: How many random crops the model looks at in all, spread evenly over a sample of as many images.
        box_images: Of how many images the boxes are looked at, at most; with 100 random crops of each.
        seed: Of the sample and the crops.
        progress: Wraps a list of keys while they are gone through: ``progress(keys, total, what)``.

    Returns:
        Everything that was found.

    Raises:
        ValueError: If there is neither a model nor boxes, a number is not positive, or the model has another number of
            classes than the store.
        MissingLabelMap: If the store has no label map of any image in the folder, naming the nearest keys.
        FileNotFoundError: If there is no such folder, no image or no XML file in it, or no XML file of any image.
    """
    if model is None and checkpoint is None and boxes is None:
        raise ValueError("There is nothing to compare the label maps with. Give model=, checkpoint= or boxes=.")
    for name, value in (("crops", crops), ("box_images", box_images), ("batch_size", batch_size)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}.")
    check_split(dataset, split)
    store = store if isinstance(store, LabelStore) else LabelStore(store)
    header = store.header
    with_model = model is not None or checkpoint is not None
    build: dict[str, Any] = {
        "model": model,
        "checkpoint": checkpoint,
        "state_dict_key": state_dict_key,
        "strip_prefix": strip_prefix,
        "image_size": image_size,
        "device": device,
    }
    if with_model:  # a wrong name should not wait until a million files are listed
        check_annotator_of(header, **build)
    found = find_data(data, dataset, split, skip=[store.path])
    keys = _with_map(store, found)
    report = Report(str(store.path), os.fspath(data), seed, len(found.keys), len(found.keys) - len(keys))
    report.notes += [f"Not looked into: {path} ({reason})" for path, reason in found.problems]
    random.Random(seed).shuffle(keys)
    table, report.folder_unknown = _class_table(header)
    evidence = []
    box_folder = None if boxes is None else _box_folder(boxes, data, keys, found)

    if with_model:
        annotator = annotator_of(header, **build)
        report.model = annotator.name
        differing = differences(annotator, header)
        report.image_size = annotator.image_size
        report.notes += [*annotator.notes, *differing]
        if annotator.weights == header.annotator.get("weights") == "random":
            report.notes.append(
                "The weights that made the store are random (--no-pretrained), and were made again here."
            )
        sample = keys[:crops]
        # As evenly as whole numbers allow.
        share, rest = divmod(crops, len(sample))
        counts = [(key, share + (number < rest)) for number, key in enumerate(sample)]
        agreement = compare_crops(
            store,
            found,
            progress(counts, len(counts), "crops"),
            annotator,
            seed=seed,
            batch_size=batch_size,
            broken=report.broken,
        )
        if agreement is not None:
            report.bands, report.commuting = agreement.bands, agreement.commuting
            evidence.append(orientation("crops", agreement.votes))
            cells = orientation("cells", agreement.cell_votes)
            evidence.append(cells)
            if cells is not None and not differing and cells.score_as_stored < _SAME_CELLS:
                report.faults.append(
                    f"The weights and settings are those that made the store, and only {cells.score_as_stored:.1%} of "
                    f"the cells have the model's top class: these maps were changed, or are of other images."
                )
        top_classes = {} if agreement is None else agreement.top_classes
        report.folder = _folder_agreement(store, found, top_classes, top_classes, table, report.broken)
    else:
        report.folder = _folder_agreement(store, found, keys[:crops], None, table, report.broken)

    if boxes is not None and box_folder is not None:
        report.overlap = compare_boxes(
            store,
            found,
            progress(keys, min(len(keys), box_images), "boxes"),
            box_folder,
            # A name that the store gives to a class is as certain as a folder's.
            {**{name: index for index, name in enumerate(header.class_names or ())}, **table},
            limit=box_images,
            crops=CROPS_AN_IMAGE,
            seed=seed,
            broken=report.broken,
            bad_xml=report.bad_xml,
        )
        if report.overlap is None:
            report.notes.append(f"None of the images has boxes in {os.fspath(boxes)!r} that can be used.")
        else:
            evidence.append(orientation("boxes", report.overlap.votes))
            if report.overlap.other_shapes:
                report.notes.append(
                    f"{len(report.overlap.other_shapes)} of {report.overlap.images} images have another shape than "
                    f"their XML files say, the first {report.overlap.other_shapes[0]!r}. Unless they were squashed, "
                    f"their boxes are of other images."
                )
            if report.overlap.unknown:
                report.notes.append(
                    f"{report.overlap.unknown} of {report.overlap.boxes} boxes are of a class that the store does not "
                    f"name, so their cells say nothing about the maps."
                )
    report.orientation = tuple(each for each in evidence if each is not None)
    if report.folder is None and not report.folder_unknown:
        report.folder_unknown = "no image of the sample lies in a folder that the store names"
    return report


def _box_folder(
    boxes: str | os.PathLike[str], data: str | os.PathLike[str], keys: list[str], found: ImagesFound
) -> BoxFolder:
    """The folder of boxes, of which at least one is of one of the images: known before the first crop is looked at."""
    folder = BoxFolder(boxes, found.keys)

    def has_file(key: str) -> bool:
        try:
            return folder.file_of(key) is not None
        except OddXml:
            return True

    if not any(map(has_file, keys)):
        raise FileNotFoundError(
            f"None of the {len(keys)} images in {os.fspath(data)!r} has boxes in {os.fspath(boxes)!r}: those of "
            f"{keys[0]!r} would be in {PurePosixPath(keys[0]).stem}.xml. Give the folder of this data set's XML files."
        )
    return folder


def _with_map(store: LabelStore, found: ImagesFound) -> list[str]:
    if not found.keys:
        raise FileNotFoundError(
            f"There is no image in {str(found.root)!r} or the folders in it (.jpg, .png, ...). Give the folder "
            f"that was annotated."
        )
    keys = [key for key in found.keys if key in store]
    if not keys:
        store[found.keys[0]]  # raises, with the nearest keys
    return keys


def _class_table(header: StoreHeader) -> tuple[dict[str, int], str]:
    """From the name of a folder to its class index; empty where that cannot be known, with the reason."""
    folders = header.class_to_idx
    if folders is None:
        return {}, "the store does not say which folder is which class"
    if len(folders) != header.num_classes:
        synsets = _imagenet_indices(header.num_classes)
        if folders.keys() <= synsets.keys():
            return {name: synsets[name] for name in folders}, ""
        return {}, (
            f"the store knows {len(folders)} folders and {header.num_classes} classes, so a folder's number need not "
            f"be the model's"
        )
    return folders, ""


def _imagenet_indices(num_classes: int) -> dict[str, int]:
    """ImageNet's folders (n01440764, ...) with their class indices, for its releases that have so many classes.

    For folders that are a part of ImageNet, annotated with a model of all of it.
    """
    return {name: index for index, name in enumerate(imagenet_synsets(num_classes))}


def _folder_agreement(
    store: LabelStore,
    found: ImagesFound,
    keys: Iterable[str],
    top_classes: dict[str, int] | None,
    table: dict[str, int],
    broken: dict[str, str],
) -> FolderAgreement | None:
    whole = torch.tensor([[0.0, 0.0, 1.0, 1.0]])
    hits, model_hits = [], []
    mistaken: Counter[tuple[int, int]] = Counter()
    for key in keys:
        label = table.get(found.folder_of(key))
        if label is None:
            continue
        try:
            record = store[key]
        except DamagedRecord as error:
            broken[key] = str(error)
            continue
        pooled = pool_crops(label_map_of(record, store.header, (1, 1)), whole)[0]
        on_top = int(pooled.argmax())
        hits.append(on_top == label)
        mistaken[label, on_top] += on_top != label
        model_hits.append(top_classes is not None and top_classes[key] == label)
    if not hits:
        return None
    count = len(hits)
    shown = partial(class_for_people, class_names=store.header.class_names)
    return FolderAgreement(
        count,
        sum(hits) / count,
        None if top_classes is None else sum(model_hits) / count,
        tuple((shown(label), shown(top), n) for (label, top), n in mistaken.most_common(_MISTAKEN_SHOWN) if n),
    )
