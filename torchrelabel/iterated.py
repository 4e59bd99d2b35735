"""IteratedLearning: a network that learns several labels an image by learning from what it said itself (MILe)."""

from __future__ import annotations

import copy
import math
import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

EMPTY = ("given", "best", "zeros")


class IteratedLearning:
    """The loss of multi-label iterated learning, in place of a training loop's criterion.

    Each class is a sigmoid of its own. For ``k1`` steps the network learns the labels that are given. Then a frozen
    copy of it becomes the teacher, and for ``k2`` steps the network learns what the teacher, in eval mode, says of the
    same batch: every class whose probability is above the threshold. And again, with the labels that are given; the
    network and its optimizer go on as they are.

    ``criterion = IteratedLearning(model, num_classes=1000)`` is the one line to change in a loop that has
    ``output = model(images)`` and then ``loss = criterion(output, targets)``: it remembers the images that the model
    was last given. Where that cannot be, call ``criterion.loss(images, targets)`` instead of both.

    A step is a call while the model is in training mode; in eval mode the loss is that of the labels given. With
    gradients accumulated over n batches, ``k1`` and ``k2`` count n times.

    Args:
        model: The classifier, ``[B, ...]`` to logits ``[B, C]``; also in DistributedDataParallel, or compiled.
        num_classes: C.
        k1: Steps of each phase with the labels given.
        k2: Steps of each phase with the teacher's. 0: only the labels given, which is plain BCE.
        threshold: Above which probability the teacher's class is a label.
        empty: What the labels are where no class passes: ``"given"``, the labels given; ``"best"``, the teacher's best
            class, which a teacher that has learnt nothing yet makes the network memorise; or ``"zeros"``, none,
            as in the authors' code, which teaches the network to be silent.
        keep_given: Whether the labels given stay labels in addition to the teacher's.
        target_threshold: For soft labels given (label maps, mixing): above which share a class is a label; None learns
            the shares as they are.
        initial_bias: Set the bias of the model's last layer to -log C, such that every class begins with a probability
            of about 1 / C. Load a checkpoint of the model after this, not before.

    Raises:
        ValueError: If an argument cannot be, or the model has no last layer of C outputs with a bias to set.

    Source: MILe, Rajeswar et al. 2022, https://arxiv.org/abs/2111.12172; the defaults are those of the authors'
    configuration for ImageNet. Their phases are one step shorter than k1 and k2 say.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        num_classes: int,
        k1: int = 2000,
        k2: int = 2000,
        threshold: float = 0.5,
        empty: str = "given",
        keep_given: bool = False,
        target_threshold: float | None = None,
        initial_bias: bool = True,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, got {num_classes}.")
        if k1 < 1 or k2 < 0:
            raise ValueError(f"k1 must be 1 step or more and k2 0 or more, got {k1} and {k2}.")
        for name, value in (("threshold", threshold), ("target_threshold", target_threshold)):
            if value is not None and not 0 < value < 1:
                raise ValueError(f"{name} must be between 0 and 1, got {value}.")
        if empty not in EMPTY:
            raise ValueError(f"empty must be one of {', '.join(EMPTY)}, got {empty!r}.")
        self.model = model
        self.num_classes, self.k1, self.k2 = num_classes, k1, k2
        self.threshold, self.empty, self.keep_given = threshold, empty, keep_given
        self.target_threshold = target_threshold
        self.step = 0
        self.teacher: nn.Module | None = None
        self._images: Any = None
        if initial_bias:
            set_bias(_plain(model), num_classes)
        # A function and not a method: a copy of the model would copy the method's object, and so all of this.
        mine = weakref.ref(self)

        def remember(model: nn.Module, arguments: tuple[Any, ...]) -> None:
            learning = mine()
            if learning is not None and model.training and arguments:
                learning._images = arguments[0]

        self._hook = model.register_forward_pre_hook(remember)

    @property
    def imitating(self) -> bool:
        """Whether the next step learns the teacher's labels."""
        return self.step % (self.k1 + self.k2) >= self.k1

    def __call__(self, output: Tensor, targets: Tensor) -> Tensor:
        """The loss of what the model just said.

        Args:
            output: The logits that the model gave for the last images, ``[B, C]``.
            targets: Class indices ``[B]``, or labels ``[B, C]`` of 0 to 1.

        Raises:
            RuntimeError: If the model was not called before.
            ValueError: If the targets do not fit, or an image has none.
        """
        if not self.model.training:
            return self._bce(output, self._given(targets, output))
        if self._images is None:
            raise RuntimeError(
                "IteratedLearning needs the images that the output is of, and its model was not called in training "
                "mode before. Call the same object that it was given, or loss(images, targets)."
            )
        images, self._images = self._images, None
        return self.loss(images, targets, output)

    def loss(self, images: Tensor, targets: Tensor, output: Tensor | None = None) -> Tensor:
        """The loss of a batch: binary cross-entropy, summed over classes, averaged over images.

        Args:
            images: As the model takes them, ``[B, ...]``.
            targets: Class indices ``[B]``, or labels ``[B, C]`` of 0 to 1.
            output: What the model said of them, ``[B, C]``; the model is called if None.

        Raises:
            ValueError: If the targets do not fit, or an image has none.
        """
        if output is None:
            output = self.model(images)
            self._images = None
        labels = self._given(targets, output)
        if self.model.training:
            if self.imitating:
                if self.step % (self.k1 + self.k2) == self.k1 or self.teacher is None:
                    self._snapshot()
                labels = self._taught(images, labels)
            self.step += 1
        return self._bce(output, labels)

    def state_dict(self) -> dict[str, Any]:
        """Where the learning stands: the step, the settings and, while it is learnt from, the teacher's weights."""
        learnt_from = self.teacher is not None and self.imitating and self.step % (self.k1 + self.k2) != self.k1
        teacher = self.teacher.state_dict() if learnt_from and self.teacher is not None else None
        return {"step": self.step, "settings": self._settings(), "teacher": teacher}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on where another one stood; the model and its optimizer have state dicts of their own.

        Raises:
            ValueError: If it was learnt with other settings, naming them.
        """
        theirs, ours = state_dict["settings"], self._settings()
        differing = [
            f"{name} was {theirs.get(name)!r} and is {ours[name]!r}" for name in ours if theirs.get(name) != ours[name]
        ]
        if differing:
            raise ValueError(f"The learning began with other settings: {', '.join(differing)}. Give the same.")
        self.step = int(state_dict["step"])
        if state_dict["teacher"] is not None:
            self._snapshot()
            assert self.teacher is not None
            self.teacher.load_state_dict(state_dict["teacher"])

    def to(self, *_: Any, **__: Any) -> IteratedLearning:
        """Itself: it is where its model is. For loops that move their criterion."""
        return self

    def _settings(self) -> dict[str, Any]:
        names = ("num_classes", "k1", "k2", "threshold", "empty", "keep_given", "target_threshold")
        return {name: getattr(self, name) for name in names}

    def _snapshot(self) -> None:
        """Freeze the network as it is: the teacher of the next phase."""
        model = _plain(self.model)
        if self.teacher is None:
            self.teacher = copy.deepcopy(model)
            self.teacher._forward_pre_hooks.pop(self._hook.id, None)
            self.teacher.requires_grad_(False)
        else:
            self.teacher.load_state_dict(model.state_dict())
        self.teacher.eval()

    @torch.no_grad()
    def _taught(self, images: Tensor, given: Tensor) -> Tensor:
        assert self.teacher is not None
        logits = self.teacher(images)
        labels = (logits.float().sigmoid() > self.threshold).to(given)
        silent = ~labels.any(1, keepdim=True)
        if self.empty == "best":
            labels = labels.where(~silent, F.one_hot(logits.argmax(1), self.num_classes).to(given))
        elif self.empty == "given":
            labels = labels.where(~silent, given)
        return torch.maximum(labels, given) if self.keep_given else labels

    def _given(self, targets: Tensor, output: Tensor) -> Tensor:
        if output.dim() != 2 or output.shape[1] != self.num_classes:
            raise ValueError(f"The model must give logits [B, {self.num_classes}], got {list(output.shape)}.")
        if targets.dim() == 1 and not targets.is_floating_point() and len(targets) == len(output):
            if not 0 <= int(targets.min()) <= int(targets.max()) < self.num_classes:
                raise ValueError(
                    f"Class indices are 0 to {self.num_classes - 1}, got {int(targets.min())} to {int(targets.max())}."
                )
            return F.one_hot(targets.long(), self.num_classes).to(output.device, torch.float32)
        if targets.shape != output.shape:
            raise ValueError(
                f"Targets must be class indices [{len(output)}] or labels {list(output.shape)}, got "
                f"{targets.dtype} {list(targets.shape)}."
            )
        labels = targets.to(output.device, torch.float32)
        if self.target_threshold is not None:
            labels = (labels > self.target_threshold).float()
        wrong = ~(labels.sum(1) > 0)
        if bool(wrong.any()):
            first = int(wrong.nonzero()[0, 0])
            above = "" if self.target_threshold is None else f" above target_threshold={self.target_threshold}"
            raise ValueError(
                f"{int(wrong.sum())} of {len(labels)} images have no label{above}, the first is number {first} of the "
                f"batch: {_short(targets[first])}. Such images teach that nothing is anything; leave them out."
            )
        return labels

    def _bce(self, output: Tensor, labels: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(output.float(), labels, reduction="sum") / len(output)


def set_bias(model: nn.Module, num_classes: int) -> None:
    """Set the bias of a classifier's last layer to -log C.

    Args:
        model: With a linear layer, or a convolution, of C outputs.
        num_classes: C.

    Raises:
        ValueError: If it has none with a bias.
    """
    layers = [
        layer
        for layer in model.modules()
        if isinstance(layer, (nn.Linear, nn.modules.conv._ConvNd)) and layer.weight.shape[0] == num_classes
    ]
    if not layers or layers[-1].bias is None:
        raise ValueError(
            f"{type(model).__name__} has no last layer of {num_classes} outputs with a bias to begin at -log C. Give "
            f"initial_bias=False, and see to it that its first probabilities are small."
        )
    nn.init.constant_(layers[-1].bias, -math.log(num_classes))


def _plain(model: nn.Module) -> nn.Module:
    """The network itself, without what data parallelism and torch.compile put around it."""
    for _ in range(3):
        inner = model._modules.get("_orig_mod")
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            inner = model.module
        if inner is None:
            break
        model = inner
    return model


def _short(values: Tensor) -> str:
    text = str(values.tolist())
    return text if len(text) <= 80 else f"{text[:77]}..."
