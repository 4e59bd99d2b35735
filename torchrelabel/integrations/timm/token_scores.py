"""Models of timm that say in training what each of their tokens shows.

Shape words: B images, C classes, D feature channels, N = gh x gw tokens, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from torchrelabel.errors import UnsupportedModel
from torchrelabel.token_labels import TokenLabelLoss

__all__ = ["TokenScores", "loss_of_tokens", "with_token_scores"]


class TokenScores(NamedTuple):
    """What a model says in training. torch's cross entropy takes it for the scores of one label an image.

    Attributes:
        class_logits: ``[B, C]``.
        token_logits: ``[B, N, C]``, from left to right and from top to bottom.
        box: ``(top, left, bottom, right)`` of the tokens that the model itself has pasted, or None.
    """

    class_logits: Tensor
    token_logits: Tensor
    box: tuple[int, int, int, int] | None = None

    @classmethod
    def __torch_function__(cls, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is not cross_entropy:
            raise TypeError(_OTHER_LOSS.format(getattr(function, "__name__", function)))
        return _cross_entropy(*args, **(kwargs or {}))

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(_OTHER_LOSS.format(f"what asks for their {name!r}"))


_OTHER_LOSS = (
    "Token labels are trained with cross entropy (of torch, or timm's SoftTargetCrossEntropy and "
    "LabelSmoothingCrossEntropy), and {} takes no scores of tokens. Leave out --bce-loss, --jsd-loss and the like."
)


def _cross_entropy(
    scores: TokenScores,
    labels: Tensor,
    weight: Tensor | None = None,
    *_: Any,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    **__: Any,
) -> Tensor:
    if weight is not None or reduction != "mean":
        raise TypeError("The cross entropy of token labels has no weights of classes, and reduction is 'mean'.")
    return loss_of_tokens(scores, labels, label_smoothing)


def loss_of_tokens(scores: TokenScores, labels: Tensor, smoothing: float = 0.0) -> Tensor:
    """The paper's loss: of the class token, plus half the mean of that of all tokens.

    Args:
        scores: Of a model of :func:`with_token_scores`.
        labels: ``[B, C, gh, gw]``.
        smoothing: Share of each label that goes to all classes evenly.

    Returns:
        A scalar.

    Raises:
        ValueError: If the grid of the labels is not that of the tokens.

    Source: TokenLabeling, Jiang et al. 2021, https://arxiv.org/abs/2104.10858, section 3.2.
    """
    smoothed = labels * (1 - smoothing) + smoothing / labels.shape[1]
    return TokenLabelLoss()(scores.class_logits, scores.token_logits, smoothed, box=scores.box)


def with_token_scores(model: nn.Module, grid: tuple[int, int]) -> nn.Module:
    """Let a model say in training what each of its tokens shows; in ``eval`` mode it does what it did.

    Its weights and their names stay what they are. VOLO has a dense head of its own, and where it was made with
    ``use_mix_token=True`` it mixes tokens. For any other model the head that it has sees each token of its last
    features as if it were an image, as ``torchrelabel annotate`` reads a classifier.

    Args:
        model: A classifier of timm.
        grid: ``(gh, gw)``.

    Returns:
        The model. Called in training it gives :class:`TokenScores`.

    Raises:
        UnsupportedModel: If it has no parts that can be called one by one, a VOLO without its dense head, or a head
            with batch norm, which would see the tokens of one image as a batch; and when called, if its tokens are
            not that grid.
    """
    name = type(model).__name__
    if not (hasattr(model, "forward_features") and hasattr(model, "forward_head")):
        raise UnsupportedModel(f"{name} has no forward_features and forward_head, so it gives no scores of tokens.")
    if hasattr(model, "aux_head") and hasattr(model, "forward_train"):
        if model.aux_head is None:
            raise UnsupportedModel(f"{name} was made without its dense head. Make it with use_aux_head=True.")
        kind: type = _OfVolo
    else:
        kind = _OfEachToken
        norms = [part for part, module in model.named_modules() if _is_norm_of_head(part, module)]
        if norms:
            raise UnsupportedModel(
                f"The head of {name} has batch norm ({', '.join(norms)}), which would see the tokens of an image as a "
                f"batch. Take a model without, such as vit_small_patch16_224 or volo_d1_224."
            )
    model.__class__ = type(name, (kind, type(model)), {})
    model.token_grid = grid  # type: ignore[assignment]
    return model


class _OfVolo(nn.Module):
    """VOLO, in training with its dense head."""

    token_grid: tuple[int, int]

    def forward(self, images: Tensor) -> Any:
        if not self.training:
            return super().forward(images)
        model: Any = self
        _check_images(model, images)
        features, token_logits, box = model.forward_train(images)
        _check_grid(model, images, token_logits.shape[1])
        # timm's forward_train leaves the head of the class token out (test_a_volo_without_mixing_...).
        return TokenScores(model.head(model.head_drop(features)), token_logits, box)


class _OfEachToken(nn.Module):
    """A model whose head sees each token as if it were an image, in training."""

    token_grid: tuple[int, int]

    def forward(self, images: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not self.training:
            return super().forward(images, *args, **kwargs)
        model: Any = self
        _check_images(model, images)
        features = model.forward_features(images, *args, **kwargs)
        tokens = self._tokens(features, images)
        token_logits = model.forward_head(tokens)
        return TokenScores(model.forward_head(features), token_logits.reshape(len(images), -1, token_logits.shape[-1]))

    def _tokens(self, features: Tensor, images: Tensor) -> Tensor:
        """Each token of B images as an image of one token, ``[B * N, ...]``."""
        gh, gw = self.token_grid
        if features.ndim == 3:
            prefix = int(getattr(self, "num_prefix_tokens", 0))
            _check_grid(self, images, features.shape[1] - prefix)
            patches = features[:, prefix:].reshape(-1, 1, features.shape[2])
            return patches.expand(-1, prefix + 1, -1)  # however the head pools, it pools copies of this token
        channels_last = getattr(self, "output_fmt", "NCHW") == "NHWC"
        if not channels_last:
            features = features.permute(0, 2, 3, 1)
        if tuple(features.shape[1:3]) != (gh, gw):
            _refuse_grid(self, images, f"{features.shape[1]} x {features.shape[2]}")
        shape = (1, 1, features.shape[3]) if channels_last else (features.shape[3], 1, 1)
        return features.reshape(-1, *shape)


def _check_images(model: Any, images: Any) -> None:
    if not isinstance(images, Tensor) or images.ndim != 4:
        raise UnsupportedModel(
            f"{type(model).__name__} was given a {type(images).__name__} and no images [B, 3, H, W]. Patches of "
            f"images of several sizes (--naflex-loader) have no one grid of tokens: train without --token-labels."
        )


def _check_grid(model: Any, images: Tensor, tokens: int) -> None:
    gh, gw = model.token_grid
    # Patches are square: a grid of as many tokens and another shape is that of other places.
    if tokens != gh * gw or gh * images.shape[3] != gw * images.shape[2]:
        _refuse_grid(model, images, str(tokens))


def _refuse_grid(model: Any, images: Tensor, tokens: str) -> None:
    gh, gw = model.token_grid
    raise UnsupportedModel(
        f"{type(model).__name__} has {tokens} tokens for images of {images.shape[2]} x {images.shape[3]} px, and the "
        f"labels are for {gh} x {gw}. Give the grid of its tokens, without class and register tokens: --token-labels."
    )


def _is_norm_of_head(part: str, module: nn.Module) -> bool:
    return part.split(".")[0] in ("head", "head_dist", "norm_head", "classifier", "fc") and isinstance(
        module, nn.modules.batchnorm._BatchNorm
    )
