"""What is done to images before the classifier sees them: FGSM and occlusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from torchrelabel.evaluate.classifier import Classifier

EPS = 8 / 255


class Fgsm:
    """The fast gradient sign method: one step that makes the loss larger.

    ``x + eps * sign(dL/dx)``, with pixels in 0..1 before they are normalised, and clamped to 0..1 afterwards. L is the
    cross-entropy with the image's class; for sigmoids the binary one.

    Args:
        classifier: Whose loss: it attacks itself.
        labels: The class of each image, by key.
        eps: How far each value of each pixel may move.
        sigmoid: Whether its outputs are sigmoids.

    Source: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572, with the eps of CutMix, Yun et al. 2019,
    https://arxiv.org/abs/1905.04899.
    """

    def __init__(
        self, classifier: Classifier, labels: Mapping[str, int], eps: float = EPS, sigmoid: bool = False
    ) -> None:
        self.classifier, self.labels, self.eps, self.sigmoid = classifier, labels, eps, sigmoid

    def __call__(self, keys: Sequence[str], images: Tensor) -> Tensor:
        """Perturb images in 0..1, ``[N, 3, S, S]``."""
        with torch.enable_grad():
            images = images.detach().requires_grad_()
            scores = self.classifier(images)
            labels = torch.tensor([self.labels[key] for key in keys], device=scores.device)
            # Summed: each image's gradient is its own, and its size plays no part in its sign.
            if self.sigmoid:
                targets = F.one_hot(labels, scores.shape[1]).to(scores)
                loss = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
            else:
                loss = F.cross_entropy(scores, labels, reduction="sum")
            (gradient,) = torch.autograd.grad(loss, images)
        return (images.detach() + self.eps * gradient.sign()).clamp(0, 1)


class Occlusion:
    """Black inside a centred square of side s (``"center"``), or outside of it (``"boundary"``).

    Args:
        where: ``"center"`` or ``"boundary"``.
        side: s as a share of the image's side, 0 to 1.

    Source: Yun et al. 2019, https://arxiv.org/abs/1905.04899, section 4.4.
    """

    def __init__(self, where: str, side: float) -> None:
        self.where, self.side = where, side

    def __call__(self, keys: Sequence[str], images: Tensor) -> Tensor:
        """Occlude images in 0..1, ``[N, 3, S, S]``."""
        size = images.shape[-1]
        hole = round(self.side * size)
        start = (size - hole) // 2
        inside = torch.zeros(size, size, dtype=torch.bool, device=images.device)
        inside[start : start + hole, start : start + hole] = True
        return images.masked_fill(inside if self.where == "center" else ~inside, 0)
