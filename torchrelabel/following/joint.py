"""Pipelines of v2 that are called on an image and its label map: augmentations that look no kernel up are told to."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten
from torchvision import transforms as v1
from torchvision.transforms import v2

from torchrelabel.following.steps import MOVING_OPERATIONS, augments, with_attributes
from torchrelabel.label_map import LabelMap

__all__ = ["moving_label_maps"]

_CONTAINERS = (v1.Compose, v2.Compose, v2.RandomApply, v2.RandomChoice, v2.RandomOrder)


def moving_label_maps(pipeline: Any) -> Any:
    """A pipeline whose RandAugment, AutoAugment and TrivialAugmentWide move label maps with their images.

    torchvision's own pass everything but the image through. The draws and the pixels stay the same.

    Args:
        pipeline: Of v2, called on ``(image, label_map)``. It is not changed.

    Returns:
        The pipeline itself where there is none of them in it, else a copy.
    """
    if augments(type(pipeline)):
        return _Augmentation(pipeline)
    if type(pipeline) is nn.Sequential:
        inner = {name: moving_label_maps(module) for name, module in pipeline._modules.items()}
        changed = any(inner[name] is not module for name, module in pipeline._modules.items())
        return with_attributes(pipeline, {"_modules": inner}) if changed else pipeline
    if type(pipeline) in _CONTAINERS:
        steps = [moving_label_maps(step) for step in pipeline.transforms]
        changed = any(new is not old for new, old in zip(steps, pipeline.transforms, strict=True))
        return with_attributes(pipeline, {"transforms": steps}) if changed else pipeline
    return pipeline


class _Augmentation:
    """An augmentation of v2 with the label maps among its inputs."""

    def __init__(self, step: Any) -> None:
        self._step = step

    def __call__(self, *inputs: Any) -> Any:
        theirs = self._step._apply_image_or_video_transform
        flat, spec = tree_flatten(inputs if len(inputs) > 1 else inputs[0])
        places = [place for place, leaf in enumerate(flat) if isinstance(leaf, LabelMap)]
        maps = [flat[place] for place in places]

        def ours(image: Any, operation: str, *args: Any, **how: Any) -> Any:
            if operation in MOVING_OPERATIONS:
                maps[:] = [theirs(label_map, operation, *args, **how) for label_map in maps]
            return theirs(image, operation, *args, **how)

        step = with_attributes(self._step, {"_apply_image_or_video_transform": ours})
        outputs = step(tree_unflatten(flat, spec))
        flat, spec = tree_flatten(outputs)
        for place, label_map in zip(places, maps, strict=True):
            flat[place] = label_map
        return tree_unflatten(flat, spec)
