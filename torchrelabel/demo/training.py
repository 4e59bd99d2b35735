"""Training and testing a classifier: the plain loop that every model of the demo goes through."""

from __future__ import annotations

import time
from collections.abc import Callable, Sized
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


@dataclass(frozen=True)
class Trained:
    """What a training run leaves.

    Attributes:
        losses: Mean training loss of each epoch.
        scores: What ``test`` returned after each epoch.
        seconds: Time spent training, without the tests.
    """

    losses: list[float]
    scores: list[float]
    seconds: float


def train(
    model: nn.Module,
    dataset: Dataset[Any],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
    criterion: nn.Module,
    workers: int,
    test: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[int, float, float | None], None] | None = None,
) -> Trained:
    """Train a model by AdamW with a one-cycle learning rate.

    The seed fixes the order of the images and every random crop, so two runs with one seed see the same pixels,
    whatever their labels are.

    Args:
        model: Classifier, ``[B, 3, S, S]`` to ``[B, C]``; trained in place.
        dataset: Gives ``(image [3, S, S], label)``; the label is a class index or a soft label ``[C]``.
        epochs: Passes over the dataset.
        batch_size: Images per step.
        learning_rate: Highest learning rate.
        seed: Seed of the order and of the crops.
        criterion: Loss of logits ``[B, C]`` and labels.
        workers: Processes that load images.
        test: Called with the model after each epoch; its result is kept.
        on_epoch: Called after each epoch with its number (from 1), the loss and the result of ``test``.

    Returns:
        The losses, test results and seconds.
    """
    torch.manual_seed(seed)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_size,
        shuffle=True,
        drop_last=len(cast(Sized, dataset)) >= batch_size,
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator().manual_seed(seed),
    )
    optimizer = torch.optim.AdamW(model.parameters(), learning_rate, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, learning_rate, total_steps=epochs * len(loader), pct_start=0.2
    )
    losses, scores, seconds = [], [], 0.0
    for epoch in range(1, epochs + 1):
        began = time.perf_counter()
        model.train()
        total = 0.0
        for images, labels in loader:
            loss = criterion(model(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            total += loss.item()
        losses.append(total / len(loader))
        seconds += time.perf_counter() - began
        if test is not None:
            scores.append(test(model))
        if on_epoch is not None:
            on_epoch(epoch, losses[-1], scores[-1] if scores else None)
    return Trained(losses, scores, seconds)


@torch.inference_mode()
def predict(model: nn.Module, images: Tensor) -> Tensor:
    """Predict the class of each image.

    Args:
        model: Classifier, ``[B, 3, S, S]`` to ``[B, C]``.
        images: ``[N, 3, S, S]``.

    Returns:
        Class indices, ``[N]``.
    """
    model.eval()
    return torch.cat([model(batch).argmax(dim=1) for batch in torch.split(images, 256)])
