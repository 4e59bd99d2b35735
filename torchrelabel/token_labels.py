"""TokenLabelLoss: the loss of a model that predicts a label for the image and one for each of its tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

__all__ = ["TokenLabelLoss"]


class TokenLabelLoss(nn.Module):
    """Cross entropy of the class token, plus a weighted mean of that of all patch tokens.

    Args:
        dense_weight: Of the tokens. The paper's is 0.5.

    Shape:
        - Class logits: ``[B, C]``.
        - Token logits: ``[B, N, C]``, of the patches from left to right and from top to bottom.
        - Token labels: ``[B, C, gh, gw]`` with ``gh * gw = N``, as ``LabelPooling((gh, gw))`` gives them.
        - Class labels: ``[B, C]``, by default the mean of the labels of the tokens that the class token has seen.
        - Box: ``(top, left, bottom, right)`` in tokens, where the model itself has pasted tokens, each image those of
          the batch in reverse order, and has put the pasted tokens' logits back to their own image, as timm's VOLO
          does with ``use_mix_token=True``. The token labels are those of the images as loaded; the class token has
          seen a mixed image, and gets the label of that: class labels are weighted by the area that each image has.
        - Output: a scalar.

    Raises:
        ValueError: If the weight is negative, the grid of the labels does not have a label for each token, or the box
            does not lie in it.

    Example:
        >>> loss = TokenLabelLoss()(model.head(tokens[:, 0]), dense_head(tokens[:, 1:]), token_labels)
        >>> features, token_logits, box = volo.forward_train(images)  # timm's, without its head for the class token
        >>> loss = TokenLabelLoss()(volo.head(features), token_logits, token_labels, box=box)

    Source: TokenLabeling, Jiang et al. 2021, https://arxiv.org/abs/2104.10858, section 3.2.
    """

    def __init__(self, dense_weight: float = 0.5) -> None:
        super().__init__()
        if not dense_weight >= 0:
            raise ValueError(f"dense_weight is at least 0, got {dense_weight!r}.")
        self.dense_weight = float(dense_weight)

    def forward(
        self,
        class_logits: Tensor,
        token_logits: Tensor,
        token_labels: Tensor,
        class_labels: Tensor | None = None,
        *,
        box: Sequence[int] | None = None,
    ) -> Tensor:
        """See the class."""
        if token_labels.ndim != 4 or token_logits.ndim != 3 or token_labels.shape[1] != token_logits.shape[2]:
            raise ValueError(
                f"Token labels are [B, C, gh, gw] and token logits [B, N, C], got {list(token_labels.shape)} and "
                f"{list(token_logits.shape)}. Pool label maps with LabelPooling((gh, gw))."
            )
        batch, tokens, classes = token_logits.shape
        grid = tuple(token_labels.shape[2:])
        if grid[0] * grid[1] != tokens or len(token_labels) != batch:
            raise ValueError(
                f"The model has {tokens} tokens for each of {batch} images, and the labels are for {grid[0]} x "
                f"{grid[1]} tokens of {len(token_labels)}. Pool with a grid of {tokens}, without the class token."
            )
        flat = token_labels.flatten(2).mT  # [B, N, C]
        if box is not None:
            class_labels = _of_mixed(token_labels, class_labels, box)
        elif class_labels is None:
            class_labels = flat.mean(1)
        dense = cross_entropy(token_logits.reshape(-1, classes), flat.reshape(-1, classes))
        return cross_entropy(class_logits, class_labels) + self.dense_weight * dense

    def extra_repr(self) -> str:
        """The argument, for ``print(loss)``."""
        return f"dense_weight={self.dense_weight}"


def _of_mixed(token_labels: Tensor, class_labels: Tensor | None, box: Sequence[int]) -> Tensor:
    """The label of an image of which a box of tokens is that of the batch in reverse order, ``[B, C]``."""
    top, left, bottom, right = box
    gh, gw = token_labels.shape[2:]
    if not (0 <= top <= bottom <= gh and 0 <= left <= right <= gw):
        raise ValueError(
            f"box is (top, left, bottom, right) within the {gh} x {gw} tokens, got {tuple(box)}. Is it in tokens, as "
            f"VOLO.forward_train returns it, and not in pixels?"
        )
    if class_labels is not None:
        share = (bottom - top) * (right - left) / (gh * gw)
        return class_labels * (1 - share) + class_labels.flip(0) * share
    pasted = token_labels.clone()
    pasted[:, :, top:bottom, left:right] = token_labels.flip(0)[:, :, top:bottom, left:right]
    return pasted.mean((2, 3))
