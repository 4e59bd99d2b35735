"""PoolLabelMap: the last step of a pipeline, label map in and soft label out."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from torchrelabel.label_map import LabelMap, LabelMapBatch
from torchrelabel.pooling import LabelPooling

__all__ = ["PoolLabelMap"]


class PoolLabelMap(nn.Module):
    """Replace every label map of a sample by the soft label of what its canvas shows.

    Args:
        pooling: How to pool.

    Raises:
        TypeError: If a sample holds no label map.

    Example:
        >>> pipeline = v2.Compose([RandomResizedCropWithLabelMap(224), v2.RandomHorizontalFlip(), PoolLabelMap()])
        >>> image, soft_label = pipeline(image, label_map)
    """

    def __init__(self, pooling: LabelPooling | None = None) -> None:
        super().__init__()
        self.pooling = pooling or LabelPooling()

    def forward(self, *inputs: Any) -> Any:
        """Take any structure of inputs, as v2 transforms do, and give back the same with labels for maps."""
        flat, spec = tree_flatten(
            inputs[0] if len(inputs) == 1 else inputs, is_leaf=lambda part: isinstance(part, LabelMapBatch)
        )
        if not any(isinstance(leaf, (LabelMap, LabelMapBatch)) for leaf in flat):
            kinds = ", ".join(type(leaf).__name__ for leaf in flat) or "nothing"
            raise TypeError(
                f"PoolLabelMap found no LabelMap to pool in a sample of {kinds}. "
                f"Call the pipeline on (image, label_map), as LabelMapDataset(..., transforms=pipeline) does."
            )
        pooled = [self.pooling(leaf) if isinstance(leaf, (LabelMap, LabelMapBatch)) else leaf for leaf in flat]
        return tree_unflatten(pooled, spec)
