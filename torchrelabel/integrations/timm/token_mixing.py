"""Labels of tokens under timm's mixers: which of them lie in a pasted patch.

A mixer returns how much of which image is in which, and not where. So it is run a second time, with the same random
draws, on black and white images, of which each is mixed with one of the other kind; what has changed its colour came
from the other image. Shape words: B samples, M mixed images (B, or half as many), C classes.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

__all__ = ["again", "is_white", "mixed_tokens"]


def again() -> Callable[[], None]:
    """Gives a function that lets all generators draw once more what they draw from now on."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()

    def set_back() -> None:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

    return set_back


def is_white(count: int) -> Tensor:
    """Which samples are white, ``[B]``: the second half, with which timm mixes the first."""
    return torch.arange(count) >= count // 2


def mixed_tokens(rows: Tensor, mixing: Tensor, seen: Tensor) -> Tensor:
    """The labels of the tokens of mixed images.

    Args:
        rows: Token labels of the samples, ``[B, C, gh, gw]``.
        mixing: How much of which sample is in which image, ``[M, B]``. Image m is sample m, mixed with one other.
        seen: The black and white images, mixed, ``[M, H, W]``, 0 to 1.

    Returns:
        ``[M, C, gh, gw]``: of each token, both labels by the share that each image has of it.

    Raises:
        TypeError: If an image was mixed with one of its own colour, or with more than one.
    """
    count, samples = mixing.shape
    own = torch.arange(count, device=mixing.device)
    others = mixing.scatter(1, own[:, None], 0.0)
    partners = torch.where(others.amax(1) > 0, others.argmax(1), own)
    white = is_white(samples).to(mixing.device)
    if ((others > 0).sum(1) > 1).any() or ((white[partners] == white[:count]) & (partners != own)).any():
        raise TypeError(
            "This version of timm mixes images in another order than those known, so that it cannot be told which "
            "tokens it has pasted. Leave out --mixup and --cutmix."
        )
    theirs = (seen - white[:count, None, None].to(seen)).abs()
    blended = ((theirs > 0.02) & (theirs < 0.98)).flatten(1).any(1)  # MixUp, whose weights are rounded in 8 bits
    theirs = torch.where(blended[:, None, None], others.sum(1)[:, None, None].to(theirs), theirs)
    share = adaptive_avg_pool2d(theirs[:, None], (rows.shape[2], rows.shape[3])).to(rows)
    return rows[:count] * (1 - share) + rows[partners] * share
