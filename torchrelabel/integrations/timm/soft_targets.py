"""timm's collates, mixers and losses, taking soft labels as well as class indices."""

from __future__ import annotations

import copy
import inspect
import threading
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

from torchrelabel.data.dataset import LabelMapDataset
from torchrelabel.integrations.timm.lazy_labels import FollowedTransform, UntransformedDataset, resolved
from torchrelabel.integrations.timm.token_mixing import again, is_white, mixed_tokens
from torchrelabel.integrations.timm.token_scores import TokenScores, loss_of_tokens

__all__ = ["accept_soft_targets", "fast_collate", "refuse_soft_targets"]

_LOCK = threading.RLock()
_ORIGINAL: dict[str, Callable[..., Any]] = {}
# What was changed: the owner, the name of the attribute, and what it was.
_CHANGED: list[tuple[Any, str, Any]] = []


def accept_soft_targets() -> None:
    """Let timm's own collates, mixers, losses and loaders take soft labels, in this process.

    Called by each :class:`~torchrelabel.LabelMapDataset` that wraps a dataset of timm's, also in a worker, and by
    ``torchrelabel timm-train``; for any other dataset in a loop of timm's, call it yourself. Without it timm 1.0.31's
    ``FastCollateMixup`` silently makes class indices, all 0 or 1, of soft labels, and others stop with errors. What is
    given class indices does what it did before, to the bit. docs/timm.md lists what is changed;
    :func:`refuse_soft_targets` undoes it.

    ``fast_collate`` and the mixers (``Mixup``, ``FastCollateMixup``, ``NaFlexMixup``) do not learn what to do with a
    soft label: they are run on the numbers of the samples, as if each were a class of its own. What they return says
    which sample contributes how much to which row, and the soft labels are combined by that. So it stays true for
    each version of timm, whatever it draws and mixes.

    A mixer's label smoothing is applied to the soft labels before mixing, and ``LabelSmoothingCrossEntropy`` smooths
    the soft labels it is given: ``t (1 - s) + s / C``, which for one-hot labels is what timm does with indices.

    Raises:
        ModuleNotFoundError: If timm is missing.
    """
    with _LOCK:
        if not _CHANGED:
            _change_timm()


def refuse_soft_targets() -> None:
    """Undo :func:`accept_soft_targets`: timm is as it was before. Loaders that exist already keep their collate."""
    with _LOCK:
        while _CHANGED:
            owner, name, original = _CHANGED.pop()
            setattr(owner, name, original)


def _change_timm() -> None:
    import timm.data
    import timm.data.loader
    import timm.data.mixup
    import timm.loss.asymmetric_loss
    import timm.loss.binary_cross_entropy
    import timm.loss.cross_entropy

    _ORIGINAL["fast_collate"] = timm.data.loader.fast_collate
    for module in (timm.data.loader, timm.data):
        if hasattr(module, "fast_collate"):
            _set(module, "fast_collate", fast_collate)
    _replace(timm.data.mixup.Mixup, "__call__", _mixup)
    _replace(timm.data.mixup.FastCollateMixup, "__call__", _collate_mixup)
    _replace(timm.loss.cross_entropy.LabelSmoothingCrossEntropy, "forward", _label_smoothing)
    _replace(timm.loss.cross_entropy.SoftTargetCrossEntropy, "forward", _soft_cross_entropy)
    _replace(timm.loss.asymmetric_loss.AsymmetricLossSingleLabel, "forward", _indices_only)
    try:
        from timm.data.scheduled_sampler import ScheduledTransformDataset
    except ImportError:  # an older timm
        pass
    else:
        _replace(ScheduledTransformDataset, "__init__", _scheduled)
    try:
        from timm.data.naflex_dataset import NaFlexCollator, NaFlexMapDatasetWrapper
        from timm.data.naflex_mixup import NaFlexMixup
    except ImportError:  # timm before 1.0.16
        return
    _replace(NaFlexMapDatasetWrapper, "__init__", _naflex_dataset)
    _replace(NaFlexCollator, "__call__", _naflex_collate)
    _replace(NaFlexMixup, "__call__", _naflex_mixup)


def fast_collate(batch: Any) -> Any:
    """Collate as timm's ``fast_collate`` does, soft labels too.

    Args:
        batch: Samples ``(image, label)``, or ``((image, ...), label)`` with augmentation splits.

    Returns:
        Images as timm collates them, and labels ``[B]`` or ``[B, C]``, repeated for each split.
    """
    accept_soft_targets()  # a spawned worker may unpickle this function before the dataset
    original = _ORIGINAL["fast_collate"]
    rows = _rows([sample[1] for sample in batch])
    if rows is None:
        return original(batch)
    images, numbers = original(_numbered(batch))
    return images, rows[numbers]


def _mixup(original: Callable[..., Any], mixer: Any, images: Tensor, target: Tensor) -> Any:
    if not _soft(target) or target.ndim not in (2, 4) or getattr(mixer, "multi_label", False):
        return original(mixer, images, target)
    numbers, size = torch.arange(len(target), device=target.device), images.shape[-2:]
    mixer_of_samples = _mixer_of_samples(mixer, len(target))
    set_back = again()
    images, mixing = original(mixer_of_samples, images, numbers)
    if target.ndim == 2:
        return images, _mixed(mixing, target, mixer, mixer.label_smoothing)
    set_back()
    probe = is_white(len(target)).to(target.device, torch.float32)[:, None, None, None].repeat(1, 1, *size)
    seen, _ = original(mixer_of_samples, probe, numbers)
    return images, _mixed_tokens(mixing, target, mixer, seen[:, 0])


def _collate_mixup(original: Callable[..., Any], mixer: Any, batch: Any, *rest: Any) -> Any:
    rows = None if getattr(mixer, "multi_label", False) else _rows([sample[1] for sample in batch])
    if rows is None:
        return original(mixer, batch, *rest)
    mixer_of_samples = _mixer_of_samples(mixer, len(batch))
    set_back = again()
    images, mixing = original(mixer_of_samples, _numbered(batch), *rest)
    if rows.ndim == 2:
        return images, _mixed(mixing, rows, mixer, mixer.label_smoothing)
    set_back()
    white = is_white(len(batch)).tolist()
    probes = [(image * 0 + 255 * one, *others) for (image, *others), one in zip(batch, white, strict=True)]
    seen, _ = original(mixer_of_samples, _numbered(probes), *rest)
    return images, _mixed_tokens(mixing, rows, mixer, seen[:, 0].float() / 255)


def _naflex_mixup(original: Callable[..., Any], mixer: Any, images: Any, targets: Any) -> Any:
    rows = None if getattr(mixer, "multi_label", False) else _rows(targets)
    if rows is None:
        return original(mixer, images, targets)
    if rows.ndim == 4:
        raise TypeError("Labels of tokens cannot be mixed where images have several sizes (NaFlex).")
    images, mixing = original(_mixer_of_samples(mixer, len(rows)), images, torch.arange(len(rows)))
    return images, _mixed(torch.stack(list(mixing)), rows, mixer, mixer.smoothing).unbind(0)


def _naflex_collate(original: Callable[..., Any], collator: Any, batch: Any) -> Any:
    labels = resolved([sample[1] for sample in batch])
    return original(collator, [(image, label) for (image, _), label in zip(batch, labels, strict=True)])


def _scheduled(original: Callable[..., Any], self: Any, dataset: Any, transforms: Any) -> None:
    if isinstance(dataset, LabelMapDataset):
        dataset, transforms = UntransformedDataset(dataset), [FollowedTransform(one) for one in transforms]
    original(self, dataset, transforms)


def _naflex_dataset(original: Callable[..., Any], self: Any, base_dataset: Any, *args: Any, **kwargs: Any) -> None:
    if isinstance(base_dataset, LabelMapDataset):
        given = inspect.signature(original).bind(self, base_dataset, *args, **kwargs)
        factory = given.arguments.get("transform_factory")
        given.arguments["base_dataset"] = UntransformedDataset(base_dataset)
        if factory is not None:
            given.arguments["transform_factory"] = lambda **sizes: FollowedTransform(factory(**sizes))
        original(*given.args, **given.kwargs)
    else:
        original(self, base_dataset, *args, **kwargs)


def _soft_cross_entropy(original: Callable[..., Any], loss: Any, logits: Any, target: Tensor) -> Any:
    return loss_of_tokens(logits, target) if isinstance(logits, TokenScores) else original(loss, logits, target)


def _label_smoothing(original: Callable[..., Any], loss: Any, logits: Any, target: Tensor) -> Any:
    if isinstance(logits, TokenScores):
        return loss_of_tokens(logits, target, loss.smoothing)
    if not _soft(target) or target.ndim != logits.ndim:
        return original(loss, logits, target)
    smoothed = _smoothed(target, loss.smoothing)
    return -(smoothed * log_softmax(logits, dim=-1)).sum(dim=-1).mean()


def _indices_only(original: Callable[..., Any], loss: Any, logits: Tensor, target: Tensor, *rest: Any) -> Any:
    if _soft(target):
        raise TypeError(
            f"{type(loss).__name__} needs class indices and got soft labels {list(target.shape)} of a "
            f"LabelMapDataset. Train with cross entropy, BCE or the poly loss."
        )
    return original(loss, logits, target, *rest)


def _replace(owner: type, name: str, method: Callable[..., Any]) -> None:
    """Let a method of timm's go through ``method``, which gets the original one first."""
    original = getattr(owner, name)

    @wraps(original)
    def replaced(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(original, self, *args, **kwargs)

    _set(owner, name, replaced)


def _set(owner: Any, name: str, value: Any) -> None:
    _CHANGED.append((owner, name, getattr(owner, name)))
    setattr(owner, name, value)


def _mixer_of_samples(mixer: Any, count: int) -> Any:
    """A mixer that draws and mixes the same, for samples of which each is a class of its own."""
    mixer = copy.copy(mixer)
    mixer.num_classes = count
    mixer.label_smoothing = mixer.smoothing = 0.0
    return mixer


def _numbered(batch: Any) -> list[Any]:
    return [(sample[0], number, *sample[2:]) for number, sample in enumerate(batch)]


def _mixed_tokens(mixing: Tensor, rows: Tensor, mixer: Any, seen: Tensor) -> Tensor:
    """Labels of tokens ``[B, C, gh, gw]``, of which those pasted are seen on images of two colours, ``[M, H, W]``."""
    _check_classes(rows, mixer)
    return mixed_tokens(_smoothed(rows, mixer.label_smoothing), mixing, seen)


def _mixed(mixing: Tensor, rows: Tensor, mixer: Any, smoothing: float) -> Tensor:
    """The soft labels ``[B, C]`` combined by a mixing matrix ``[M, B]``."""
    _check_classes(rows, mixer)
    # timm before 1.0.24 mixes half batches in double precision.
    dtype = torch.promote_types(mixing.dtype, rows.dtype)
    return mixing.to(dtype) @ _smoothed(rows, smoothing).to(dtype)


def _check_classes(rows: Tensor, mixer: Any) -> None:
    if rows.shape[1] != mixer.num_classes:
        raise ValueError(
            f"{type(mixer).__name__} was made for {mixer.num_classes} classes, and the labels have {rows.shape[1]}. "
            f"Train a model with as many outputs as the label maps have classes (--num-classes {rows.shape[1]})."
        )


def _smoothed(rows: Tensor, smoothing: float) -> Tensor:
    return rows * (1 - smoothing) + smoothing / rows.shape[1]


def _soft(target: Any) -> bool:
    return isinstance(target, Tensor) and target.is_floating_point()


def _rows(labels: Any) -> Tensor | None:
    """The labels of a batch as ``[B, C]``, of tokens as ``[B, C, gh, gw]``, or None where they are not soft labels."""
    labels = resolved(labels)
    if not all(_soft(label) and label.ndim in (1, 3) for label in labels):
        return None
    return torch.stack(labels)
