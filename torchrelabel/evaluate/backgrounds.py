"""Backgrounds Challenge: ImageNet-9's objects on backgrounds that are chosen to mislead."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from torchrelabel.annotate.images import ImagesFound, open_image
from torchrelabel.evaluate.class_folders import require_images
from torchrelabel.evaluate.classifier import Classifier
from torchrelabel.evaluate.predictions import ImagesToEvaluate, Settings, without_numbers

SUPER_CLASSES = 9
MAPPING = "in_to_in9.json"


@dataclass(frozen=True)
class Challenge:
    """What came out of the challenge.

    Attributes:
        foregrounds: How many objects were put on backgrounds.
        robust: How many of them no background misled.
        unreadable: Files that could not be used, with the reason.
    """

    foregrounds: int
    robust: int
    unreadable: dict[str, str]


def read_mapping(folder: str | os.PathLike[str], path: str | os.PathLike[str] | None, num_classes: int) -> Tensor:
    """Read which of the nine super-classes each class is, ``[C]``; -1 for none of them.

    A model of the nine classes themselves needs no mapping.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it does not map the model's classes.
    """
    if num_classes == SUPER_CLASSES and path is None:
        return torch.arange(SUPER_CLASSES)
    file = Path(folder) / MAPPING if path is None else Path(path)
    if not file.is_file():
        raise FileNotFoundError(
            f"There is no file {str(file)!r}, which says which of the nine classes ImageNet's belong to. It comes with "
            f"MadryLab/backgrounds_challenge; copy it there, or give it (--in9)."
        )
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
        mapping = torch.tensor([int(content[str(index)]) for index in range(num_classes)])
        good = len(content) == num_classes and bool(((mapping >= -1) & (mapping < SUPER_CLASSES)).all())
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{str(file)!r} must map each of the model's {num_classes} classes, '0' to '{num_classes - 1}', to one of "
            f"0 to {SUPER_CLASSES - 1}, or to -1."
        )
    return mapping


def variation(folder: str | os.PathLike[str], name: str) -> ImagesFound | None:
    """The images of ``mixed_same``, ``mixed_rand``, ``original`` or another one; None if the folder has it not."""
    place = _val(Path(folder) / name)
    return require_images(place) if place.is_dir() else None


def super_class(found: ImagesFound, key: str) -> int:
    """The super-class of an image, by its folder: 00_dog is 0.

    Raises:
        ValueError: If the folder's name has no number of a super-class in front.
    """
    number = key.split("/")[-2].partition("_")[0] if "/" in key else ""
    if not number.isdecimal() or int(number) >= SUPER_CLASSES:
        raise ValueError(
            f"The folders in {str(found.root)!r} must be called 00_dog to 08_instrument, and {key!r} lies elsewhere."
        )
    return int(number)


def challenge(
    classifier: Classifier, folder: str | os.PathLike[str], mapping: Tensor, settings: Settings
) -> Challenge | None:
    """Put each object on each background, and count those that none of the backgrounds misleads about.

    Args:
        classifier: Who is misled.
        folder: With ``fg_mask``, ``original`` and ``only_bg_t``, as the release has them.
        mapping: As `read_mapping` gives it.
        settings: How images are gone through.

    Returns:
        None if the folder has not all three.

    Raises:
        FileNotFoundError: If one of the three holds nothing.

    Source: Xiao et al. 2020, https://arxiv.org/abs/2006.09994; MadryLab/backgrounds_challenge.
    """
    masks, originals = _val(Path(folder) / "fg_mask"), _val(Path(folder) / "original")
    backgrounds = variation(folder, "only_bg_t")
    if backgrounds is None or not masks.is_dir() or not originals.is_dir():
        return None
    mask_files = sorted(path.relative_to(masks).as_posix() for path in masks.rglob("*.npy"))
    if not mask_files:
        raise FileNotFoundError(f"There is no mask in {str(masks)!r} (00_dog/....npy).")
    unreadable: dict[str, str] = {}
    # Kept as they are, since every object goes on each: 600 MB for the 4,050 backgrounds of the release.
    pixels = []
    whole = ImagesToEvaluate(backgrounds, backgrounds.keys, _own_pixels)
    for number in settings.progress(range(len(whole)), len(whole), "backgrounds"):
        loaded = whole[number]
        if loaded.pixels is None:
            unreadable[f"only_bg_t: {loaded.key}"] = loaded.reason
        else:
            pixels.append(loaded.pixels)
    mapping = mapping.to(classifier.device)
    robust = computed = 0
    for name in settings.progress(mask_files, len(mask_files), "foregrounds"):
        found = ImagesFound(masks, [name], None, [])
        target = super_class(found, name)
        try:
            mask, original = _foreground(masks / name, originals, name)
            if {tuple(each.shape) for each in pixels} != {tuple(original.shape)}:
                raise ValueError("the backgrounds have another size")
        except Exception as error:  # NumPy and PIL raise nearly anything for damaged files
            unreadable[f"fg_mask: {name}"] = str(error) or type(error).__name__
            continue
        computed += 1
        robust += not _misled(classifier, mask, original, pixels, mapping, target, settings.batch_size)
    return Challenge(computed, robust, unreadable)


def _misled(
    classifier: Classifier,
    mask: Tensor,
    original: Tensor,
    backgrounds: Sequence[Tensor],
    mapping: Tensor,
    target: int,
    batch_size: int,
) -> bool:
    size = min(batch_size, classifier.batch or batch_size)
    for start in range(0, len(backgrounds), size):
        under = torch.stack(list(backgrounds[start : start + size])).to(classifier.device).float() / 255
        images = under * (1 - mask.to(under)) + original.to(under) / 255 * mask.to(under)
        if images.shape[-2:] != (classifier.image_size, classifier.image_size):
            # As an image would be that was saved like this.
            images = F.interpolate(
                images, (classifier.image_size, classifier.image_size), mode="bilinear", antialias=True
            )
        with torch.no_grad():
            scores = classifier(images)
        answers = mapping[scores.nan_to_num().argmax(1)].masked_fill(without_numbers(scores), -1)
        if bool((answers != target).any()):
            return True
    return False


def _foreground(mask_file: Path, originals: Path, name: str) -> tuple[Tensor, Tensor]:
    stem = name.removesuffix(".npy")
    candidates = [originals / f"{stem}{end}" for end in (".JPEG", ".jpg", ".png")]
    image = next((path for path in candidates if path.exists()), None)
    if image is None:
        raise FileNotFoundError(f"{stem}.JPEG is not in original")
    pixels = _own_pixels(open_image(image)).float()
    # allow_pickle is off, so that a mask cannot run code.
    mask = torch.from_numpy(np.load(mask_file, allow_pickle=False) != 0).float()
    if mask.shape != pixels.shape[1:]:
        raise ValueError(f"the mask is {list(mask.shape)} and the image {list(pixels.shape[1:])}")
    return mask, pixels


def _val(folder: Path) -> Path:
    return folder / "val" if (folder / "val").is_dir() else folder


def _own_pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
