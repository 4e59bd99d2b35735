"""check_pipeline: steps of a pipeline that would leave the label map behind, which torchvision does not say."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from torchrelabel.label_map.refusals import REFUSED, refusal
from torchrelabel.transforms.pool import PoolLabelMap

__all__ = ["Finding", "check_pipeline"]

_AUTO_AUGMENT = (
    "{name} moves pixels of the image alone (it shears, shifts and rotates), and torchvision does not tell the label "
    "map: the label stays that of the crop, as in the ReLabel paper. LabelMapDataset(..., transforms=) tells it."
)
_AUG_MIX = (
    "{name} blends copies of the image that were sheared, shifted and rotated. The label stays that of the image before"
    " it. Leave it in if that is what you want."
)
_LATE_CROP = (
    "{name} crops after PoolLabelMap(): the label is that of the image before this crop. Crop first, and pool last."
)
_MIXES = "{name} mixes images of a batch and does not know label maps. Use {name}WithLabelMap on the collated batch."
_PURE = "ToPureTensor strips the label map of its view box. Put PoolLabelMap() before it, or leave it out."
_V1 = (
    "{name} is a transform of torchvision.transforms, which takes an image alone. Use "
    "torchvision.transforms.v2.{name}, which takes the label map along."
)
_CROPS = (v2.RandomResizedCrop, v2.RandomCrop, v2.CenterCrop, v2.FiveCrop, v2.TenCrop, v2.RandomIoUCrop)
_KNOWN: dict[type, tuple[str, bool]] = {
    v2.RandAugment: (_AUTO_AUGMENT, False),
    v2.AutoAugment: (_AUTO_AUGMENT, False),
    v2.TrivialAugmentWide: (_AUTO_AUGMENT, False),
    v2.AugMix: (_AUG_MIX, False),
    v2.CutMix: (_MIXES, True),
    v2.MixUp: (_MIXES, True),
    v2.ToPureTensor: (_PURE, True),
    **{getattr(v2, transform): (refusal(functional), True) for functional, (_, transform) in REFUSED.items()},
}


@dataclass(frozen=True)
class Finding:
    """One step of a pipeline that a label map does not survive, or does not follow.

    Attributes:
        where: The step's place, such as ``"[2].transforms[0]"``.
        transform: Its class name.
        breaks: True if the label is lost or the step raises; False if the label is kept but is only approximate.
        followed: Whether a :class:`~torchrelabel.LabelMapDataset` follows the step all the same.
        message: What happens, and what to do.
    """

    where: str
    transform: str
    breaks: bool
    message: str
    followed: bool = False

    def __str__(self) -> str:
        return f"{self.where} {self.transform}: {self.message}"


def check_pipeline(pipeline: Any) -> list[Finding]:
    """Find the steps of a v2 pipeline that would not take a label map along.

    torchvision lets types that a transform does not know through unchanged and without a warning, and some transforms
    never look for a kernel. This walks containers (``Compose``, ``RandomApply``, ``RandomChoice``, ``RandomOrder``,
    ``nn.Sequential``, lists) in order; after :class:`PoolLabelMap` only crops are of interest. It cannot look into
    functions and lambdas.

    Args:
        pipeline: A transform, or a list of them.

    Returns:
        What was found, in the order of the pipeline; an empty list if every known step takes the map along.

    Example:
        >>> for finding in check_pipeline(v2.Compose([v2.ElasticTransform()])):
        ...     print(finding)
        [0] ElasticTransform: elastic (v2.ElasticTransform) bends the image, and the view of a LabelMap is ...
    """
    findings = []
    pooled = False
    for where, step in _steps(pipeline, ""):
        name = type(step).__name__
        if isinstance(step, PoolLabelMap):
            # In a branch that chance may pass by, what follows still meets label maps.
            pooled = pooled or ".transforms" not in where
            continue
        if pooled:  # the label is a tensor that nothing has to follow
            if isinstance(step, _CROPS):
                findings.append(Finding(where or "pipeline", name, False, _LATE_CROP.format(name=name)))
            continue
        for known, (message, breaks) in _KNOWN.items():
            if isinstance(step, known):
                findings.append(
                    Finding(where or "pipeline", name, breaks, message.format(name=name), message is _AUTO_AUGMENT)
                )
                break
        else:
            if type(step).__module__.startswith("torchvision.transforms.") and not isinstance(step, v2.Transform):
                findings.append(Finding(where or "pipeline", name, True, _V1.format(name=name)))
    return findings


def _steps(step: Any, where: str) -> Iterator[tuple[str, Any]]:
    """The leaves of a pipeline, each with its place."""
    if isinstance(step, (list, tuple, nn.Sequential, nn.ModuleList)):
        for i, inner in enumerate(step):
            yield from _steps(inner, f"{where}[{i}]")
    elif isinstance(step, (v1.Compose, v2.Compose)):
        yield from _steps(list(step.transforms), where)
    elif isinstance(getattr(step, "transforms", None), (list, tuple, nn.ModuleList)):
        yield from _steps(list(step.transforms), f"{where}.transforms")
    else:
        yield where, step
