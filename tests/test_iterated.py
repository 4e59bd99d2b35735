"""Iterated learning, against phases, labels and losses worked out by hand."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from torchrelabel.iterated import IteratedLearning

C = 5


class Says(nn.Module):
    """Gives the same logits for every image, which the tests set."""

    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(probabilities).logit())

    def forward(self, images: Tensor) -> Tensor:
        """``[B, ...]`` to ``[B, C]``."""
        return self.logits.expand(len(images), -1)


def learning(model: nn.Module, **settings: Any) -> IteratedLearning:
    return IteratedLearning(model, num_classes=C, **{"initial_bias": False, "threshold": 0.4, **settings})


def bce(probabilities: list[float], labels: list[float]) -> float:
    pairs = zip(probabilities, labels, strict=True)
    return -sum(y * math.log(p) + (1 - y) * math.log(1 - p) for p, y in pairs)


IMAGES = torch.zeros(2, 3, 4, 4)
P = [0.1, 0.5, 0.3, 0.7, 0.2]


def taught(model: Says, labels: list[float], **settings: Any) -> None:
    """Assert what the teacher's labels of a batch labelled 0 and 2 are, for both images."""
    criterion = learning(model, k1=1, k2=5, **settings)
    targets = torch.tensor([0, 2])
    first = criterion.loss(IMAGES, targets)
    given = [[1.0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0]]
    p = model.logits.sigmoid().tolist()
    assert first.item() == pytest.approx(sum(bce(p, each) for each in given) / 2, rel=1e-5)
    expected = given if labels == ["given"] else [labels] * 2
    if settings.get("keep_given"):
        expected = [[max(pair) for pair in zip(a, b, strict=True)] for a, b in zip(expected, given, strict=True)]
    second = criterion.loss(IMAGES, targets)
    assert second.item() == pytest.approx(sum(bce(p, each) for each in expected) / 2, rel=1e-5)


def test_the_teacher_labels_every_class_above_the_threshold() -> None:
    taught(Says(*P), [0, 1, 0, 1, 0])
    taught(Says(*P), [0, 1, 1, 1, 0], threshold=0.25)


def test_the_labels_given_can_be_kept_beside() -> None:
    taught(Says(*P), [0, 1, 0, 1, 0], keep_given=True)


def test_where_no_class_passes_the_best_is_the_label_or_the_one_given_or_none() -> None:
    taught(Says(*P), [0, 0, 0, 1, 0], threshold=0.9, empty="best")
    taught(Says(*P), ["given"], threshold=0.9)  # type: ignore[list-item]
    taught(Says(*P), [0, 0, 0, 0, 0], threshold=0.9, empty="zeros")


def test_phases_last_k1_and_k2_steps_each_with_a_teacher_of_its_own() -> None:
    model = Says(*P)
    criterion = learning(model, k1=3, k2=2, threshold=0.5)
    loud, quiet = torch.tensor([0.9] * C).logit(), torch.tensor([0.1] * C).logit()
    seen = []
    for step in range(10):
        with torch.no_grad():
            # Loud in the first cycle when the teacher is made, quiet in the second; something else right after.
            model.logits.copy_({3: loud, 8: quiet}.get(step, torch.zeros(C)))
        seen.append((criterion.imitating, round(criterion.loss(IMAGES, torch.tensor([0, 0])).item(), 4)))
    half = round(C * math.log(2), 4)
    assert [imitating for imitating, _ in seen] == [False] * 3 + [True] * 2 + [False] * 3 + [True] * 2
    assert seen[3][1] == pytest.approx(bce([0.9] * C, [1] * C), abs=1e-3)
    assert seen[4][1] == half  # whatever the labels are
    assert seen[8][1] == pytest.approx(bce([0.1] * C, [1, 0, 0, 0, 0]), abs=1e-3)


class Net(nn.Module):
    """A network with everything that differs between training and evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(24, C)
        )

    def forward(self, images: Tensor) -> Tensor:
        """``[B, 3, 4, 4]`` to ``[B, C]``."""
        return self.layers(images)


def test_the_teacher_is_in_eval_mode_frozen_and_leaves_no_trace_in_the_network() -> None:
    torch.manual_seed(0)
    model = Net()
    criterion = learning(model, k1=1, k2=9, threshold=0.3)
    images, targets = torch.randn(8, 3, 4, 4), torch.randint(0, C, (8,))
    criterion.loss(images, targets)
    frozen = copy.deepcopy(model).eval()
    before = copy.deepcopy(model.state_dict())
    output = model(images)
    with torch.no_grad():
        said = frozen(images)
    labels = (said.sigmoid() > 0.3).float()
    labels = torch.where(labels.any(1, keepdim=True), labels, nn.functional.one_hot(targets, C).float())
    expected = nn.functional.binary_cross_entropy_with_logits(output, labels, reduction="sum") / 8
    assert_close(criterion.loss(images, targets, output), expected)
    assert criterion.teacher is not None
    assert not criterion.teacher.training
    assert not any(parameter.requires_grad for parameter in criterion.teacher.parameters())
    # Its running statistics have moved once for the one forward pass, and not for the teacher's.
    moved = model.state_dict()["layers.1.num_batches_tracked"] - before["layers.1.num_batches_tracked"]
    assert int(moved) == 1


def steps(model: nn.Module, criterion: IteratedLearning, optimizer: torch.optim.Optimizer, of: range) -> list[float]:
    """Train in the words of PyTorch's example, on batches that follow from the step's number alone."""
    losses = []
    for step in of:
        torch.manual_seed(100 + step)
        images, targets = torch.randn(8, 3, 4, 4), torch.randint(0, C, (8,))
        output = model(images)
        loss = criterion(output, targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def made(**settings: Any) -> tuple[nn.Module, IteratedLearning, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net()
    criterion = IteratedLearning(model, num_classes=C, **{"k1": 3, "k2": 4, "threshold": 0.3, **settings})
    return model, criterion, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)


@pytest.mark.parametrize("stopped_after", [2, 3, 5, 7, 9])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(stopped_after: int) -> None:
    whole = steps(*made(), range(16))
    first = made()
    losses = steps(*first, range(stopped_after))
    file = io.BytesIO()
    torch.save([each.state_dict() for each in first], file)
    file.seek(0)
    second = made()
    for each, state in zip(second, torch.load(file, weights_only=True), strict=True):
        each.load_state_dict(state)
    assert losses + steps(*second, range(stopped_after, 16)) == whole


def test_a_criterion_and_a_loss_are_the_same() -> None:
    model, criterion, optimizer = made()
    _, learner, its = made()
    losses = []
    for step in range(9):
        torch.manual_seed(100 + step)
        images, targets = torch.randn(8, 3, 4, 4), torch.randint(0, C, (8,))
        loss = learner.loss(images, targets)
        its.zero_grad()
        loss.backward()
        its.step()
        losses.append(loss.item())
    assert steps(model, criterion, optimizer, range(9)) == losses


def test_without_a_second_phase_it_is_plain_bce() -> None:
    model, criterion, optimizer = made(k2=0)
    losses = steps(model, criterion, optimizer, range(9))
    plain, _, its = made()
    expected = []
    for step in range(9):
        torch.manual_seed(100 + step)
        images, targets = torch.randn(8, 3, 4, 4), torch.randint(0, C, (8,))
        hot = nn.functional.one_hot(targets, C).float()
        loss = nn.functional.binary_cross_entropy_with_logits(plain(images), hot, reduction="sum") / 8
        its.zero_grad()
        loss.backward()
        its.step()
        expected.append(loss.item())
    assert losses == pytest.approx(expected, rel=1e-6)
    assert criterion.teacher is None


def test_validation_does_not_count_and_is_of_the_labels_given() -> None:
    model = Says(*P)
    criterion = learning(model, k1=1, k2=5)
    criterion.loss(IMAGES, torch.tensor([0, 0]))
    model.eval()
    value = criterion(model(IMAGES), torch.tensor([3, 3]))
    assert value.item() == pytest.approx(bce(P, [0, 0, 0, 1, 0]), rel=1e-5)
    assert criterion.step == 1


def test_soft_labels_are_learnt_as_they_are_or_above_a_threshold() -> None:
    soft = torch.tensor([[0.6, 0.3, 0.1, 0, 0]])
    as_they_are = learning(Says(*P)).loss(IMAGES[:1], soft)
    assert as_they_are.item() == pytest.approx(bce(P, [0.6, 0.3, 0.1, 0, 0]), rel=1e-5)
    above = learning(Says(*P), target_threshold=0.2).loss(IMAGES[:1], soft)
    assert above.item() == pytest.approx(bce(P, [1, 1, 0, 0, 0]), rel=1e-5)


def test_the_last_layer_begins_at_one_in_c() -> None:
    model, _, _ = made()
    assert_close(model.layers[5].bias.sigmoid(), torch.full((C,), 1 / (C + 1)))  # type: ignore[index,union-attr]
    assert not torch.allclose(Net().layers[5].bias, torch.full((C,), -math.log(C)))  # type: ignore[arg-type]


def test_a_compiled_network_is_copied_without_what_is_around_it() -> None:
    model = Net()
    criterion = learning(torch.compile(model, backend="eager"), k1=1, k2=1)
    for _ in range(2):
        criterion.loss(torch.randn(4, 3, 4, 4), torch.randint(0, C, (4,)))
    assert type(criterion.teacher) is Net


def test_a_network_in_data_parallelism_is_copied_without_it(tmp_path: Path) -> None:
    plain = steps(*made(), range(9))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        torch.manual_seed(0)
        model = nn.parallel.DistributedDataParallel(Net())
        criterion = IteratedLearning(model, num_classes=C, k1=3, k2=4, threshold=0.3)
        losses = steps(model, criterion, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), range(9))
    finally:
        torch.distributed.destroy_process_group()
    assert type(criterion.teacher) is Net
    assert losses == pytest.approx(plain, rel=1e-5)


def test_the_teacher_and_a_copy_of_the_network_do_not_carry_the_learning_along() -> None:
    model = Says(*P)
    criterion = learning(model, k1=1, k2=5)
    for _ in range(2):
        criterion.loss(IMAGES, torch.tensor([0, 0]))
    assert criterion.teacher is not None and not criterion.teacher._forward_pre_hooks
    assert copy.deepcopy(model)(IMAGES).shape == (2, C)  # as for an exponential moving average


def test_a_network_that_was_not_called_is_an_error() -> None:
    criterion = learning(Says(*P))
    with pytest.raises(RuntimeError, match="its model was not called in training mode before"):
        criterion(torch.zeros(2, C), torch.tensor([0, 1]))


def test_images_of_validation_are_not_remembered() -> None:
    model = Says(*P)
    criterion = learning(model)
    model.eval()
    output = model(IMAGES)
    model.train()
    with pytest.raises(RuntimeError, match="was not called in training mode"):
        criterion(output, torch.tensor([0, 1]))


def test_images_are_used_once() -> None:
    model = Says(*P)
    criterion = learning(model)
    output = model(IMAGES)
    criterion(output, torch.tensor([0, 1]))
    with pytest.raises(RuntimeError, match="was not called"):
        criterion(output, torch.tensor([0, 1]))


@pytest.mark.parametrize("empty", [0.0, float("nan")])
def test_an_image_without_any_label_is_an_error_that_names_it(empty: float) -> None:
    targets = torch.tensor([[1.0, 0, 0, 0, 0], [empty] * C])
    with pytest.raises(ValueError, match="1 of 2 images have no label, the first is number 1 of the batch"):
        learning(Says(*P)).loss(IMAGES, targets)
    with pytest.raises(
        ValueError, match=r"2 of 2 images have no label above target_threshold=0\.5, the first is number 0"
    ):
        learning(Says(*P), target_threshold=0.5).loss(IMAGES, torch.full((2, C), 0.2))


@pytest.mark.parametrize("targets", [torch.zeros(3, dtype=torch.long), torch.zeros(2), torch.ones(2, 4)])
def test_targets_of_another_shape_are_an_error(targets: Tensor) -> None:
    with pytest.raises(ValueError, match=r"Targets must be class indices \[2\] or labels \[2, 5\], got"):
        learning(Says(*P)).loss(IMAGES, targets)


@pytest.mark.parametrize(("targets", "range_"), [([0, C], "0 to 5"), ([-1, 2], "-1 to 2")])
def test_class_indices_out_of_range_are_an_error(targets: list[int], range_: str) -> None:
    with pytest.raises(ValueError, match=rf"Class indices are 0 to 4, got {range_}"):
        learning(Says(*P)).loss(IMAGES, torch.tensor(targets))


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_class_indices_of_any_integer_type_are_the_same(kind: torch.dtype) -> None:
    losses = [learning(Says(*P)).loss(IMAGES, torch.tensor([4, 1], dtype=each)) for each in (torch.int64, kind)]
    assert losses[0] == losses[1]


def test_a_model_of_other_classes_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"The model must give logits \[B, 5\], got \[2, 2\]"):
        learning(Says(0.1, 0.2)).loss(IMAGES, torch.tensor([0, 1]))


@pytest.mark.parametrize(
    "settings, said",
    [
        ({"num_classes": 0}, "num_classes must be 1 or more, got 0"),
        ({"k1": 0}, "k1 must be 1 step or more and k2 0 or more, got 0 and 2000"),
        ({"threshold": 1.0}, r"threshold must be between 0 and 1, got 1\.0"),
        ({"target_threshold": 0.0}, r"target_threshold must be between 0 and 1, got 0\.0"),
        ({"empty": "none"}, "empty must be one of given, best, zeros, got 'none'"),
        ({"initial_bias": True}, "Says has no last layer of 5 outputs with a bias to begin at -log C"),
    ],
)
def test_settings_that_cannot_be_are_an_error(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        IteratedLearning(Says(*P), **{"num_classes": C, "initial_bias": False, **settings})


def test_a_state_of_other_settings_is_refused_by_name() -> None:
    state = learning(Says(*P), k1=7).state_dict()
    with pytest.raises(ValueError, match="k1 was 7 and is 2000"):
        learning(Says(*P)).load_state_dict(state)
