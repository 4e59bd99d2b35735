"""WindowHead: overlapping windows of an image, each classified as an image of its own.

Shape words: N images, n windows along each side, C classes, S side of a window and M of the image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from torchrelabel.annotate.heads import model_name
from torchrelabel.errors import UnsupportedModel


class WindowHead:
    """Classify ``n x n`` windows of an image, of which each overlaps half of the next one.

    A window is ``2 / (n + 1)`` of the image's width and height, and is shown to the model at its own size: so it sees a
    window as it sees a crop, with nothing beyond its border. Any classifier will do, since its features are not needed.

    Args:
        model: The classifier. It is put into ``eval`` mode.
        image_size: S, the side in pixels of the square images that it takes.
        windows: n, 2 or more. It costs ``n ** 2`` forward passes.

    Attributes:
        grid: ``(n, n)``: each window stands for one cell of the label map.
        map_size: M, the side in pixels of the images that windows are cut out of: ``S * (n + 1) / 2``, rounded up.
        num_classes: C.

    Raises:
        UnsupportedModel: If the model does not return class scores.
        ValueError: If ``windows`` is less than 2, or the model cannot take images of this size.
    """

    stride = None
    commutes = True  # nothing is classified before it is pooled

    def __init__(self, model: nn.Module, image_size: int, windows: int) -> None:
        if windows < 2:
            raise ValueError(f"windows must be 2 or more along each side, got {windows}.")
        self.model: Any = model.eval()
        self.name = model_name(model)
        self.image_size = image_size
        self.grid = (windows, windows)
        self.map_size = -(-image_size * (windows + 1) // 2)
        device = next((parameter.device for parameter in model.parameters()), None)
        probe = torch.zeros(1, 3, image_size, image_size, device=device)
        with torch.inference_mode():
            try:
                logits = self.model(probe)
            except (RuntimeError, ValueError, IndexError, AssertionError) as error:
                raise ValueError(
                    f"{self.name} cannot take an image of {image_size} x {image_size} px: {error}. Give another size."
                ) from error
        classes = getattr(model, "num_classes", None)
        if not isinstance(logits, Tensor) or logits.dim() != 2 or (isinstance(classes, int) and classes < 1):
            got = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
            raise UnsupportedModel(
                f"{self.name} returns {got} for one image, and no row of class scores. Take a model fine-tuned for "
                f"classification, or a module around it that returns its logits, [N, C]."
            )
        self.num_classes = int(logits.shape[1])

    def classify(self, images: Tensor) -> Tensor:
        """What the model says of images ``[N, 3, S, S]``: logits ``[N, C]``, float32."""
        logits: Tensor = self.model(images)
        return logits.float()

    def chunks(self, images: Tensor) -> Iterator[Tensor]:
        """Classify the windows of images ``[N, 3, M, M]``: yields their logits ``[N, n, n, C]``, float32, at once."""
        n, s = self.grid[0], self.image_size
        begins = [round(i * (self.map_size - s) / (n - 1)) for i in range(n)]
        windows = [self.classify(images[..., y : y + s, x : x + s]) for y in begins for x in begins]
        yield torch.stack(windows, 1).reshape(len(images), n, n, self.num_classes)

    def __call__(self, images: Tensor) -> Tensor:
        """The same: logits ``[N, C, n, n]``."""
        (logits,) = self.chunks(images)
        return logits.permute(0, 3, 1, 2).contiguous()
