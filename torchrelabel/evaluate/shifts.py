"""Other test sets for the same classes: ImageNetV2, ImageNet-A and -R, ImageNet-C."""

from __future__ import annotations

import os
import pkgutil
from pathlib import Path

# Parts of the folders' names, of the releases of today and of 2019, by the key of the measure.
_V2 = {
    "v2_matched_frequency": ("matched-frequency", "matched_frequency", "matchedfrequency", "b-33"),
    "v2_threshold": ("threshold",),
    "v2_top_images": ("top-images", "top_images", "topimages", "c-12"),
}
_V2_THRESHOLD_2019 = "a-44"

# Mean top-1 error of AlexNet over the five severities of each corruption, in the order of the paper (and of AugMix's
# code, which printed them with so many digits): what a corruption error is divided by.
ALEXNET_ERRORS = {
    "gaussian_noise": 0.886428,
    "shot_noise": 0.894468,
    "impulse_noise": 0.922640,
    "defocus_blur": 0.819880,
    "glass_blur": 0.826268,
    "motion_blur": 0.785948,
    "zoom_blur": 0.798360,
    "snow": 0.866816,
    "frost": 0.826572,
    "fog": 0.819324,
    "brightness": 0.564592,
    "contrast": 0.853204,
    "elastic_transform": 0.646056,
    "pixelate": 0.717840,
    "jpeg_compression": 0.606500,
}
EXTRA_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
SEVERITIES = ("1", "2", "3", "4", "5")


def v2_sets(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The sets of ImageNetV2 in a folder, by the key of their measure; ``{"v2": folder}`` if it is one itself.

    Raises:
        FileNotFoundError: If there is no such folder, or neither a set nor folders called by numbers in it.
    """
    root = _folder(folder)
    found: dict[str, Path] = {}
    for place in (root, *_folders_in(root)):
        key = _v2_key(place.name)
        if key is not None and any(each.name.isdecimal() for each in _folders_in(place)):
            found.setdefault(key, place)
    if not found and any(each.name.isdecimal() for each in _folders_in(root)):
        found["v2"] = root
    if not found:
        raise FileNotFoundError(
            f"There is no set of ImageNetV2 in {str(root)!r}. Give the folder that holds "
            f"imagenetv2-matched-frequency-format-val and the other two, or one of them."
        )
    return found


def _v2_key(name: str) -> str | None:
    name = name.lower()
    if _V2_THRESHOLD_2019 in name:
        return "v2_threshold"
    return next((key for key, parts in _V2.items() if any(part in name for part in parts)), None)


def classes_of_release(release: str) -> tuple[str, ...]:
    """The synsets of ImageNet-A (``"a"``) or ImageNet-R (``"r"``), 200 of ImageNet's 1000."""
    return tuple((pkgutil.get_data("timm.data", f"_info/imagenet_{release}_synsets.txt") or b"").decode().split())


def corruptions(folder: str | os.PathLike[str]) -> dict[str, dict[str, Path]]:
    """The folders of ImageNet-C: corruption to severity to folder, sorted.

    The corruptions lie in the folder itself, or, as the archives unpack, in ``noise``, ``blur``, ``weather`` and so on.
    The four that do not count (``extra``) are left out; others are taken for a user's own.

    Raises:
        FileNotFoundError: If there is no such folder, or no corruption in it.
    """
    root = _folder(folder)
    found: dict[str, dict[str, Path]] = {}
    for place in _folders_in(root):
        for candidate in (place, *_folders_in(place)):
            severities = {each.name: each for each in _folders_in(candidate) if each.name in SEVERITIES}
            if severities and candidate.name not in EXTRA_CORRUPTIONS:
                found.setdefault(candidate.name, dict(sorted(severities.items())))
    if not found:
        raise FileNotFoundError(
            f"There is no corruption in {str(root)!r}. Give the folder that holds gaussian_noise/1, gaussian_noise/2 "
            f"and so on."
        )
    order = [*ALEXNET_ERRORS, *sorted(found)]
    return {name: found[name] for name in dict.fromkeys(order) if name in found}


def corruption_error(top1: dict[str, dict[str, float]]) -> float | None:
    """mCE: the mean over the 15 corruptions of ``sum of errors / sum of AlexNet's``.

    Args:
        top1: Corruption to severity to top-1.

    Returns:
        0.767 is what papers print as 76.7; None unless all 15 were measured at all five severities.

    Source: Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261.
    """
    if any(set(top1.get(name, ())) != set(SEVERITIES) for name in ALEXNET_ERRORS):
        return None
    errors = {name: sum(1 - top1[name][severity] for severity in SEVERITIES) for name in ALEXNET_ERRORS}
    ratios = [errors[name] / (len(SEVERITIES) * theirs) for name, theirs in ALEXNET_ERRORS.items()]
    return sum(ratios) / len(ratios)


def _folder(folder: str | os.PathLike[str]) -> Path:
    root = Path(folder)
    if not root.is_dir():
        raise FileNotFoundError(f"There is no folder {str(root)!r}.")
    return root


def _folders_in(folder: Path) -> list[Path]:
    return sorted(each for each in folder.iterdir() if each.is_dir())
