"""TokenLabelLoss: the loss of a model that predicts a label for the image and one for each of its tokens."""

from __future__ import annotations

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
        - Class labels: ``[B, C]``, by default the mean of the token labels.
        - Output: a scalar.

    Raises:
        ValueError: If the weight is negative, or the grid of the labels does not have a label for each token.

    Example:
        >>> loss = TokenLabelLoss()(model.head(tokens[:, 0]), dense_head(tokens[:, 1:]), token_labels)

    Source: TokenLabeling, Jiang et al. 2021, https://arxiv.org/abs/2104.10858, section 3.2.
    """

    def __init__(self, dense_weight: float = 0.5) -> None:
        super().__init__()
        if not dense_weight >= 0:
            raise ValueError(f"dense_weight is at least 0, got {dense_weight!r}.")
        self.dense_weight = float(dense_weight)

    def forward(
        self, class_logits: Tensor, token_logits: Tensor, token_labels: Tensor, class_labels: Tensor | None = None
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
        if class_labels is None:
            class_labels = flat.mean(1)
        dense = cross_entropy(token_logits.reshape(-1, classes), flat.reshape(-1, classes))
        return cross_entropy(class_logits, class_labels) + self.dense_weight * dense

    def extra_repr(self) -> str:
        """The argument, for ``print(loss)``."""
        return f"dense_weight={self.dense_weight}"
