"""Measuring: one model going through data sets, each of which adds to the result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchrelabel.annotate.class_names import imagenet_synsets
from torchrelabel.annotate.images import ImagesFound
from torchrelabel.errors import TorchRelabelError
from torchrelabel.evaluate import backgrounds as background_sets
from torchrelabel.evaluate import metrics, shifts
from torchrelabel.evaluate.annotations import Annotations, number_of
from torchrelabel.evaluate.class_folders import (
    DoesNotApply,
    LabelledFolder,
    label_folder,
    number_folder,
    require_images,
)
from torchrelabel.evaluate.classifier import Classifier
from torchrelabel.evaluate.perturbations import Fgsm, Occlusion
from torchrelabel.evaluate.predictions import BEST, Predictions, Settings, predict
from torchrelabel.evaluate.result import Evaluation

# Of the sides of the occluded square, as shares of the image's.
OCCLUSION_STEPS = 8

# So much better with folders in the other order, and the folders are in the other order.
_BETTER_RENUMBERED = 0.1


class Measuring:
    """One model going through data sets.

    Args:
        classifier: The model.
        settings: How images are gone through.
        result: What every measure adds to.
    """

    def __init__(self, classifier: Classifier, settings: Settings, result: Evaluation) -> None:
        self.classifier, self.settings, self.result = classifier, settings, result

    def validation(
        self, found: ImagesFound, labelled: LabelledFolder | None, annotations: dict[str, Annotations]
    ) -> None:
        """Top-1, top-5 and calibration by the folders' classes; ReaL and Shankar's by the images' numbers."""
        keys = found.keys if labelled is None else labelled.keys
        predictions = self.predict("data", found, keys)
        if labelled is None:
            for measure in ("top1", "top5", "calibration_error"):
                self.result.left_out[measure] = "the images lie in no class folders"
        else:
            self.lose(labelled)
            labels = _labels_of(labelled, predictions)
            clean = metrics.top_k(predictions.top, labels, 1)
            self.result.put("top1", clean, len(labels))
            self.top5("top5", labels, predictions)
            self.calibration(labels, predictions)
            if labelled.other_order:
                other = metrics.top_k(predictions.top, [labelled.other_order[label] for label in labels], 1)
                if other > clean + _BETTER_RENUMBERED:
                    self.result.notes.append(
                        f"WARNING: with its folders numbered as the other of torchvision and timm numbers them, top-1 "
                        f"would be {other:.1%} instead of {clean:.1%}. Ask for that order (--folder-order)."
                    )
        if "real" in annotations:
            self.real(annotations["real"], predictions)
        if "multilabel" in annotations:
            self.multilabel(annotations["multilabel"], predictions, labelled)

    def real(self, real: Annotations, predictions: Predictions) -> None:
        """ReaL accuracy, its F1 and, for sigmoids, how many classes are predicted an image."""
        rows, right = _annotated(real.right, real, predictions.keys)
        if not rows:
            self.result.left_out["real"] = "none of the images has a ReaL label"
            return
        top = predictions.top[rows]
        self.result.put("real", metrics.in_set(top, right), len(rows))
        if self.classifier.num_classes > BEST:
            self.result.put("real_top5", metrics.in_set(top, right, BEST), len(rows))
        above = None if predictions.above is None else [predictions.above[row] for row in rows]
        predicted = metrics.with_best(top, above)
        self.result.put("real_f1", metrics.f1(predicted, right), len(rows))
        if above is not None:
            self.result.put("label_coverage", sum(map(len, predicted)) / len(predicted), len(rows))
        labelled = sum(map(bool, real.right.values()))
        if labelled > len(rows):
            self.result.notes.append(f"real: {len(rows)} of the {labelled} images with ReaL labels are here.")
        without = sum(number_of(key) is None for key in predictions.keys)
        if without:
            self.result.notes.append(f"{without} images have no number in their name, and so no ReaL label.")

    def multilabel(self, annotated: Annotations, predictions: Predictions, labelled: LabelledFolder | None) -> None:
        """Shankar's accuracy: strict and lenient, over images and over classes."""
        rows, lenient = _annotated(annotated.lenient, annotated, predictions.keys)
        if not rows:
            self.result.left_out["multilabel"] = "all of the annotated images are problematic, or without any class"
            return
        numbers = [number_of(predictions.keys[row]) or 0 for row in rows]
        strict = [annotated.right[number] for number in numbers]
        top = predictions.top[rows]
        self.result.put("multilabel", metrics.in_set(top, lenient), len(rows))
        self.result.put("multilabel_strict", metrics.in_set(top, strict), len(rows))
        if labelled is None:
            self.result.left_out["multilabel_per_class"] = "the images lie in no class folders"
            return
        labels = _labels_of(labelled, predictions)
        labels = [labels[row] for row in rows]
        self.result.put("multilabel_per_class", metrics.in_set_per_class(top, lenient, labels), len(rows))
        self.result.put("multilabel_strict_per_class", metrics.in_set_per_class(top, strict, labels), len(rows))

    def fgsm(self, labelled: LabelledFolder, eps: float) -> None:
        """Top-1 under the model's own gradient."""
        if not self.classifier.differentiable:
            self.result.left_out["fgsm"] = "an ONNX file gives no gradient"
            return
        labels = dict(zip(labelled.keys, labelled.labels, strict=True))
        attack = Fgsm(self.classifier, labels, eps, self.settings.threshold is not None)
        try:
            predictions = self.predict("fgsm", labelled.found, labelled.keys, perturb=attack)
        except RuntimeError as error:
            if "does not require grad" not in str(error) and "not have been used in the graph" not in str(error):
                raise
            self.result.left_out["fgsm"] = "the model gives no gradient by the pixels"
            return
        self.top1("fgsm", labelled, predictions)
        self.result.values["fgsm_eps"] = eps

    def occlusion(self, labelled: LabelledFolder) -> None:
        """Top-1 by the side of a black square in the centre, and of one that alone is left."""
        sides = [step / OCCLUSION_STEPS for step in range(OCCLUSION_STEPS + 1)]

        def occluded(where: str, side: float) -> float:
            predictions = self.predict(
                "occlusion", labelled.found, labelled.keys, perturb=Occlusion(where, side), say=f"{where} {side:.0%}"
            )
            return metrics.top_k(predictions.top, _labels_of(labelled, predictions), 1)

        clean, black = self.result.values["top1"], occluded("center", 1)
        center = [clean, *(occluded("center", side) for side in sides[1:-1]), black]
        boundary = [black, *(occluded("boundary", side) for side in sides[1:-1]), clean]
        self.result.values["occlusion"] = {"side": sides, "center": center, "boundary": boundary}
        self.result.images["occlusion"] = self.result.images["top1"]

    def numbered(self, key: str, found: ImagesFound) -> None:
        """Top-1 and top-5 of a set whose folders are called by the numbers of the classes: ImageNetV2."""
        try:
            labelled = number_folder(found, self.classifier.num_classes)
        except DoesNotApply as error:
            self.result.left_out[key] = str(error)
            return
        predictions = self.predict(key, labelled.found, labelled.keys)
        labels = self.top1(key, labelled, predictions)
        self.top5(f"{key}_top5", labels, predictions)

    def restricted(self, key: str, found: ImagesFound, names: Sequence[str] | None) -> None:
        """ImageNet-A or -R: top-1 among the set's own classes."""
        try:
            labelled = label_folder(found, self.classifier.num_classes, names)
        except DoesNotApply as error:
            self.result.left_out[key] = str(error)
            return
        table = {name: index for index, name in enumerate(names or imagenet_synsets(self.classifier.num_classes))}
        release = shifts.classes_of_release(key[-1])
        if table.keys() >= set(release):
            allowed = {table[name] for name in release}
            labelled = labelled.only(allowed, f"none of the {len(release)} classes of ImageNet-{key[-1].upper()}")
        else:
            allowed = set(labelled.labels)
            self.result.notes.append(f"{key}: the model chooses among the {len(allowed)} classes that have a folder.")
        if not labelled.keys:
            self.result.left_out[key] = f"no image in {str(found.root)!r} is of one of its classes"
            return
        predictions = self.predict(key, found, labelled.keys, columns=sorted(allowed))
        self.top1(key, labelled, predictions)

    def corrupted(self, folders: dict[str, dict[str, Path]], names: Sequence[str] | None) -> None:
        """ImageNet-C: the mean of the top-1 of all corruptions and severities, and mCE."""
        table: dict[str, dict[str, float]] = {}
        notes: list[str] = []
        images = 0
        for corruption, severities in folders.items():
            for severity, folder in severities.items():
                what = f"imagenet_c/{corruption}/{severity}"
                try:
                    labelled = label_folder(require_images(folder), self.classifier.num_classes, names)
                except DoesNotApply as error:
                    self.result.left_out["imagenet_c"] = str(error)
                    return
                predictions = self.predict(what, labelled.found, labelled.keys, transform=self.classifier.as_it_is)
                notes += labelled.notes
                self.lose(replace(labelled, notes=()), what)
                top1 = metrics.top_k(predictions.top, _labels_of(labelled, predictions), 1)
                table.setdefault(corruption, {})[severity] = top1
                images += len(predictions.keys)
        if notes:  # once, not 75 times
            others = f"; {len(notes) - 1} more sets lack classes, too" if len(notes) > 1 else ""
            self.result.notes.append(f"{notes[0]}{others}")
        rates = [top1 for severities in table.values() for top1 in severities.values()]
        self.result.put("imagenet_c", sum(rates) / len(rates), images)
        self.result.values["imagenet_c_corruptions"] = table
        missing = [name for name in shifts.ALEXNET_ERRORS if set(table.get(name, ())) != set(shifts.SEVERITIES)]
        mce = shifts.corruption_error(table)
        if self.classifier.num_classes != 1000:
            self.result.left_out["imagenet_c_mce"] = "AlexNet's errors, which it divides by, are of 1000 classes"
        elif mce is None:
            self.result.left_out["imagenet_c_mce"] = f"not all five severities are there of {', '.join(missing)}"
        else:
            self.result.put("imagenet_c_mce", mce, images)
        if missing:
            self.result.notes.append(
                f"imagenet_c: the mean over the {len(rates)} sets that are there, of the release's 75."
            )

    def super_classes(self, folder: str | os.PathLike[str], in9: str | os.PathLike[str] | None) -> Tensor | None:
        """Which of ImageNet-9's classes each class is, known before the first image is looked at; None if none is.

        Raises:
            FileNotFoundError: If there is no such folder, or no mapping.
            ValueError: If the mapping is of other classes.
        """
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"There is no folder {os.fspath(folder)!r}.")
        if self.classifier.num_classes not in (1000, background_sets.SUPER_CLASSES) and in9 is None:
            reason = f"ImageNet-9 is of ImageNet's classes, and the model has {self.classifier.num_classes}"
            self.result.left_out["background_challenge"] = reason
            return None
        return background_sets.read_mapping(folder, in9, self.classifier.num_classes)

    def backgrounds(self, folder: str | os.PathLike[str], mapping: Tensor) -> None:
        """The Backgrounds Challenge, and top-1 on the variations of ImageNet-9."""
        for name, key in (("original", "in9"), ("mixed_same", "in9_mixed_same"), ("mixed_rand", "in9_mixed_rand")):
            found = background_sets.variation(folder, name)
            if found is None:
                self.result.left_out[key] = f"there is no folder {name!r}"
                continue
            targets = torch.tensor([background_sets.super_class(found, each) for each in found.keys])
            predictions = self.predict(key, found, found.keys, transform=self.classifier.as_it_is)
            by_key = dict(zip(found.keys, targets.tolist(), strict=True))
            first = predictions.top[:, :1]
            mapped = mapping[first.clamp(min=0)].masked_fill(first < 0, -1)
            labels = [by_key[each] for each in predictions.keys]
            self.result.put(key, metrics.top_k(mapped, labels, 1), len(labels))
        values = self.result.values
        if "in9_mixed_same" in values and "in9_mixed_rand" in values:
            self.result.put(
                "bg_gap", values["in9_mixed_same"] - values["in9_mixed_rand"], self.result.images["in9_mixed_rand"]
            )
        outcome = background_sets.challenge(self.classifier, folder, mapping, self.settings)
        if outcome is None:
            self.result.left_out["background_challenge"] = "it needs the folders fg_mask, original and only_bg_t"
            return
        if outcome.unreadable:
            self.result.unreadable["background_challenge"] = outcome.unreadable
        if outcome.foregrounds:
            self.result.put("background_challenge", outcome.robust / outcome.foregrounds, outcome.foregrounds)
        else:
            self.result.left_out["background_challenge"] = "none of the foregrounds could be used"

    def predict(
        self, what: str, found: ImagesFound, keys: Sequence[str], say: str | None = None, **more: Any
    ) -> Predictions:
        """Ask the model, and note which images were lost.

        Raises:
            TorchRelabelError: If nothing is left.
        """
        if not keys:
            raise TorchRelabelError(f"None of the images in {str(found.root)!r} is of one of the model's classes.")
        predictions = predict(self.classifier, found, keys, self.settings, say or what, **more)
        if predictions.unreadable:
            self.result.unreadable.setdefault(what, {}).update(predictions.unreadable)
        if not predictions.keys:
            key, reason = next(iter(predictions.unreadable.items()))
            raise TorchRelabelError(
                f"None of the {len(keys)} images in {str(found.root)!r} can be read; {key}: {reason}"
            )
        if len(predictions.not_numbers) == len(predictions.keys):
            raise TorchRelabelError(
                f"The scores of {self.classifier.name} are not numbers (NaN or infinite) for all of the "
                f"{len(predictions.keys)} images in {str(found.root)!r}. Its weights are broken, or it overflows in "
                f"bfloat16 (--no-amp)."
            )
        if predictions.not_numbers:
            self.result.not_numbers[what] = predictions.not_numbers
        if predictions.warnings and "perturb" not in more:  # once for the same images
            key, text = predictions.warnings[0]
            self.result.notes.append(f"{what}: PIL warned about {len(predictions.warnings)} images; {key}: {text}")
        return predictions

    def lose(self, labelled: LabelledFolder, what: str = "data") -> None:
        """Note the images that have no class, and the classes that have no image."""
        if labelled.no_class:
            self.result.unreadable.setdefault(what, {}).update(labelled.no_class)
        self.result.notes += labelled.notes

    def top1(self, key: str, labelled: LabelledFolder, predictions: Predictions) -> list[int]:
        """Note top-1 under a name, and return the images' classes."""
        if key != "fgsm":
            self.lose(labelled, key)
        labels = _labels_of(labelled, predictions)
        self.result.put(key, metrics.top_k(predictions.top, labels, 1), len(labels))
        return labels

    def top5(self, key: str, labels: Sequence[int], predictions: Predictions) -> None:
        """Note top-5, where there are more than five classes."""
        if self.classifier.num_classes > BEST:
            self.result.put(key, metrics.top_k(predictions.top, labels, BEST), len(labels))
        else:
            self.result.left_out[key] = f"of {self.classifier.num_classes} classes, it would be 100 %"

    def calibration(self, labels: Sequence[int], predictions: Predictions) -> None:
        """Note the calibration error over the images with a confidence."""
        good = predictions.top[:, 0] >= 0
        hits = predictions.top[good, 0] == torch.tensor(labels)[good]
        try:
            error = metrics.calibration_error(predictions.confidence[good], hits)
        except ImportError as missing:
            self.result.left_out["calibration_error"] = str(missing)
        else:
            self.result.put("calibration_error", error, int(good.sum()))


def _labels_of(labelled: LabelledFolder, predictions: Predictions) -> list[int]:
    by_key = dict(zip(labelled.keys, labelled.labels, strict=True))
    return [by_key[key] for key in predictions.keys]


def _annotated(
    classes: dict[int, frozenset[int]], annotations: Annotations, keys: Sequence[str]
) -> tuple[list[int], list[frozenset[int]]]:
    """Which predictions count, those of images that have classes and are not problematic, and these classes."""
    rows, right = [], []
    for row, key in enumerate(keys):
        number = number_of(key)
        if number is not None and number not in annotations.problematic and classes.get(number):
            rows.append(row)
            right.append(classes[number])
    return rows, right
