"""evaluate: one model on every data set that is there."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from torchrelabel.annotate.class_names import imagenet_synsets, read_class_names
from torchrelabel.evaluate import shifts
from torchrelabel.evaluate.annotations import Annotations, read_multilabel, read_real
from torchrelabel.evaluate.class_folders import DoesNotApply, label_folder, require_images
from torchrelabel.evaluate.classifier import Classifier
from torchrelabel.evaluate.loading import load_classifier
from torchrelabel.evaluate.measuring import Measuring
from torchrelabel.evaluate.perturbations import EPS
from torchrelabel.evaluate.predictions import Progress, Settings
from torchrelabel.evaluate.result import Evaluation

_Path = str | os.PathLike[str]


def evaluate(
    model: _Path | nn.Module | Classifier,
    *,
    checkpoint: _Path | None = None,
    data: _Path | None = None,
    real: _Path | None = None,
    multilabel: _Path | None = None,
    v2: _Path | None = None,
    imagenet_a: _Path | None = None,
    imagenet_r: _Path | None = None,
    imagenet_c: _Path | None = None,
    backgrounds: _Path | None = None,
    in9: _Path | None = None,
    fgsm: bool = False,
    eps: float = EPS,
    occlusion: bool = False,
    sigmoid: bool = False,
    threshold: float = 0.5,
    class_names: _Path | Sequence[str] | None = None,
    folder_order: str = "text",
    batch_size: int = 64,
    workers: int | None = None,
    progress: Progress = lambda batches, total, what: batches,
    **loading: Any,
) -> Evaluation:
    """Measure one model on every data set that is there.

    Args:
        model: The name of a model of timm's or torchvision's, a ``.pt2`` or ``.onnx`` file, a module, or a
            ``Classifier``.
        checkpoint: Weights for it.
        data: Folder of the validation images, one folder for each class: top-1, top-5, calibration error.
        real: ReaL's real.json, or ``"timm"`` for the copy that timm brings: ReaL accuracy and ReaL-F1.
        multilabel: human_accuracy_v3.0.0.json: Shankar's multi-label accuracy.
        v2: Folder of ImageNetV2's sets, or of one of them.
        imagenet_a: Folder of ImageNet-A.
        imagenet_r: Folder of ImageNet-R.
        imagenet_c: Folder of ImageNet-C.
        backgrounds: Folder of the Backgrounds Challenge.
        in9: in_to_in9.json, if it does not lie there.
        fgsm: Also measure top-1 on images that the model's own gradient perturbs.
        eps: By how much, in pixels of 0..1.
        occlusion: Also measure top-1 with the centre, and with the boundary, of the images blacked out.
        sigmoid: The outputs are independent sigmoids (BCE, MILe) instead of a softmax.
        threshold: Above which probability a sigmoid predicts its class.
        class_names: The names of the class folders in the model's order, or a file of them.
        folder_order: How class folders without known names are numbered: ``"text"`` as torchvision does, ``"number"``
            as timm does.
        batch_size: Images per forward pass.
        workers: Processes that load images; as many as cores, at most 8, if None.
        progress: Wraps the batches of a data set while they are gone through: ``progress(batches, total, what)``.
        **loading: ``pretrained``, ``num_classes``, ``state_dict_key``, ``strip_prefix``, ``image_size``, ``crop_pct``,
            ``mean``, ``std``, ``interpolation``, ``device`` and ``amp``, as `load_classifier` takes them.

    Returns:
        What was measured, what was left out, and which images were lost.

    Raises:
        ValueError: If there is nothing to measure, an argument cannot be, or the folders' classes are not known.
        FileNotFoundError: If a folder or file is missing, or a folder has no images.
        UnsupportedModel: If the model is no classifier of RGB images.
        TorchRelabelError: If its weights cannot be loaded, no image can be read, or all of its scores are no numbers.
    """
    sets = {"v2": v2, "imagenet_a": imagenet_a, "imagenet_r": imagenet_r, "imagenet_c": imagenet_c}
    if data is None and backgrounds is None and not any(sets.values()):
        raise ValueError("There is nothing to measure. Give data=, the folder of the validation images, or another.")
    needs = {"real": real, "multilabel": multilabel, "fgsm": fgsm, "occlusion": occlusion}
    for name, asked in needs.items():
        if asked and data is None:
            raise ValueError(f"{name} is measured on the validation images. Give their folder (data=).")
    if batch_size < 1:
        raise ValueError(f"batch_size must be 1 or more, got {batch_size}.")
    if workers is not None and workers < 0:
        raise ValueError(f"workers must be 0 or more, got {workers}.")
    if not 0 < threshold < 1:
        raise ValueError(f"threshold must be a probability between 0 and 1, got {threshold}.")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}.")
    if folder_order not in ("text", "number"):
        raise ValueError(f"folder_order must be 'text' or 'number', got {folder_order!r}.")
    # What is missing is known before the weights are loaded, and what does not fit before the first image is.
    found = None if data is None else require_images(data)
    v2_found = {} if v2 is None else {key: require_images(place) for key, place in shifts.v2_sets(v2).items()}
    corrupted = {} if imagenet_c is None else shifts.corruptions(imagenet_c)
    others = {
        key: require_images(place) for key, place in (("imagenet_a", imagenet_a), ("imagenet_r", imagenet_r)) if place
    }
    names = None if class_names is None else read_class_names(class_names)

    classifier = load_classifier(model, checkpoint, **loading)
    settings = Settings(batch_size, workers, threshold if sigmoid else None, progress)
    result = Evaluation(classifier.description(), notes=list(classifier.notes))
    if classifier.weights == "random":
        result.notes.append("The weights are random.")
    if names is not None and len(names) != classifier.num_classes:
        raise ValueError(
            f"{classifier.name} has {classifier.num_classes} classes, and {len(names)} class names were given. Give "
            f"one for each class, in the order of the model's outputs."
        )
    names = names or (None if classifier.class_names is None else tuple(classifier.class_names))
    measuring = Measuring(classifier, settings, result)

    mapping = None if backgrounds is None else measuring.super_classes(backgrounds, in9)
    if found is not None:
        labelled = None
        if found.class_to_idx is not None:
            labelled = label_folder(found, classifier.num_classes, names, folder_order)
            result.notes.append(f"The classes of the folders in {str(found.root)!r} are known {labelled.how}.")
            if labelled.table is not None:
                names = labelled.table
        keys = found.keys if labelled is None else labelled.keys
        annotations: dict[str, Annotations] = {}
        try:
            if real is not None:
                annotations["real"] = read_real(real, classifier.num_classes, keys)
        except DoesNotApply as error:
            result.left_out["real"] = str(error)
        try:
            if multilabel is not None:
                synsets = names or imagenet_synsets(classifier.num_classes)
                annotations["multilabel"] = read_multilabel(multilabel, synsets, keys)
        except DoesNotApply as error:
            result.left_out["multilabel"] = str(error)
        measuring.validation(found, labelled, annotations)
        if labelled is None:
            for measure in ("fgsm", "occlusion"):
                if needs[measure]:
                    result.left_out[measure] = "the images lie in no class folders"
        else:
            if fgsm:
                measuring.fgsm(labelled, eps)
            if occlusion:
                measuring.occlusion(labelled)
    for key, images in v2_found.items():
        measuring.numbered(key, images)
    for key, images in others.items():
        measuring.restricted(key, images, names)
    if corrupted:
        measuring.corrupted(corrupted, names)
    if backgrounds is not None and mapping is not None:
        measuring.backgrounds(backgrounds, mapping)
    return result
