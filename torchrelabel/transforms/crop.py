"""RandomResizedCropWithLabelMap: torchvision's random crop, which crops the label map, too, or says that it cannot."""

from __future__ import annotations

from typing import Any

from torch.utils._pytree import tree_flatten
from torchvision.transforms import v2

from torchrelabel.following.functionals import adopt, plain_of, probe_of
from torchrelabel.following.sizes import images_in
from torchrelabel.following.trace import current_trace
from torchrelabel.label_map import LabelMap, LabelMapBatch

__all__ = ["RandomResizedCropWithLabelMap"]


class RandomResizedCropWithLabelMap(v2.RandomResizedCrop):
    """``torchvision.transforms.v2.RandomResizedCrop`` that crops the label map with the image, or says that it cannot.

    The arguments, the random draws and so the pixels are those of ``v2.RandomResizedCrop``, bit for bit under the
    same seed.

    - Called on ``(image, label_map)``, in any structure that v2 takes, it crops both.
    - Called on an image alone while a :class:`~torchrelabel.LabelMapDataset` loads a sample, as happens inside
      a ``transforms.Compose`` of an old script, it crops that sample's map.
    - Called on an image alone anywhere else it raises, since the label of the crop would be lost.

    Args:
        size, scale, ratio, interpolation, antialias: As for ``v2.RandomResizedCrop``.

    Raises:
        TypeError: If there is no label map to crop.

    Example:
        >>> pipeline = v2.Compose([RandomResizedCropWithLabelMap(224), v2.RandomHorizontalFlip(), v2.ToImage()])
        >>> dataset = LabelMapDataset(ImageFolder("train"), "maps.lmdb", transforms=pipeline)
    """

    def forward(self, *inputs: Any) -> Any:
        """Crop what v2 crops; see the class for what is asked of the inputs."""
        flat, _ = tree_flatten(inputs, is_leaf=lambda part: isinstance(part, LabelMapBatch))
        if any(isinstance(leaf, LabelMapBatch) for leaf in flat):
            raise TypeError(
                "RandomResizedCropWithLabelMap cannot crop a LabelMapBatch: crop each image with its own map before "
                "they are collated, in the dataset's pipeline."
            )
        if any(isinstance(leaf, LabelMap) for leaf in flat):
            return super().forward(*inputs)
        trace = current_trace()
        kinds = ", ".join(type(leaf).__name__ for leaf in flat) or "nothing"
        if trace is None:
            raise TypeError(
                f"RandomResizedCropWithLabelMap got {kinds} without a LabelMap, outside a LabelMapDataset: the label "
                f"of this crop would be lost. Call it on (image, label_map), wrap the dataset in LabelMapDataset, or "
                f"use v2.RandomResizedCrop for images without label maps."
            )
        if len(inputs) != 1 or len(flat) != 1 or not images_in(flat):
            raise TypeError(f"RandomResizedCropWithLabelMap takes one image here, got {kinds}.")
        (image,) = inputs
        cropped, probe = super().forward(plain_of(image), probe_of(image, trace, self))
        return adopt(cropped, image, probe, trace)
