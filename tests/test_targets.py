"""Code written for class indices counts and mixes soft labels."""

from __future__ import annotations

import pickle
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.utils.data import default_collate
from torchvision.transforms import v2

from torchrelabel import LabelMapBatch, hard, mix_soft

B, C = 6, 9


@pytest.fixture
def soft() -> torch.Tensor:
    return torch.rand(B, C, generator=torch.Generator().manual_seed(1)).softmax(-1)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(B, 3, 11, 17, generator=torch.Generator().manual_seed(2))


# hard


def test_the_class_of_a_soft_label_is_its_largest_share() -> None:
    assert hard(torch.tensor([[0.1, 0.7, 0.2], [0.5, 0.3, 0.2]])).tolist() == [1, 0]


def test_one_label_has_one_class() -> None:
    assert hard(torch.tensor([0.1, 0.2, 0.7])).item() == 2


def test_labels_of_many_crops_have_a_class_each() -> None:
    labels = torch.tensor([[[0.1, 0.9], [0.8, 0.2], [0.6, 0.4]]])
    assert hard(labels).tolist() == [[1, 0, 0]]


def test_class_indices_are_returned_as_they_are() -> None:
    labels = torch.tensor([3, 1])
    assert hard(labels) is labels


@pytest.mark.parametrize(
    "target", [[1, 2], torch.tensor(0.5), torch.rand(4, 1), torch.ones(4, 2, dtype=torch.bool), torch.rand(2, 9, 3, 4)]
)
def test_what_is_no_label_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="hard takes"):
        hard(target)


# mix_soft


class ShiftMix(nn.Module):
    """A mixer of the kind that torchvision's references have: class indices only, now and then, one-hot labels."""

    def __init__(self, num_classes: int, p: float = 1.0) -> None:
        super().__init__()
        self.num_classes, self.p, self.calls = num_classes, p, 0

    def forward(self, batch: torch.Tensor, target: torch.Tensor) -> Any:
        if target.ndim != 1 or target.dtype != torch.int64:
            raise TypeError("class indices only")
        self.calls += 1
        labels = one_hot(target, self.num_classes).float()
        if torch.rand(1).item() >= self.p:
            return batch, labels
        share = torch.rand(1).item()
        return batch.lerp(batch.roll(1, 0), share), labels.lerp(labels.roll(1, 0), share)


class Unchanged(nn.Module):
    def forward(self, batch: torch.Tensor, target: torch.Tensor) -> Any:
        return batch, target


MIXERS = {
    "v2.MixUp": lambda classes: v2.MixUp(num_classes=classes),
    "v2.CutMix": lambda classes: v2.CutMix(num_classes=classes),
    "of one's own": lambda classes: ShiftMix(classes),
    "now and then": lambda classes: ShiftMix(classes, p=0.5),
    "one of several": lambda classes: v2.RandomChoice([ShiftMix(classes), v2.CutMix(num_classes=classes)]),
    "one or none": lambda classes: v2.RandomChoice([v2.MixUp(num_classes=classes), Unchanged()]),
}


@pytest.mark.parametrize("name", MIXERS)
@pytest.mark.parametrize("seed", range(4))
def test_a_soft_label_is_mixed_as_the_sum_of_its_classes_would_be(
    name: str, seed: int, soft: torch.Tensor, images: torch.Tensor
) -> None:
    """Mixing is linear: a mixer given all samples' labels as class c mixes their shares of c, whatever it does."""
    mixer = MIXERS[name](C)

    def mixed(labels: torch.Tensor, by: Any = mixer) -> Any:
        torch.manual_seed(seed)
        return by(images.clone(), labels)

    pixels, labels = mixed(soft, mix_soft(mixer))
    expected = torch.zeros(B, C)
    for sample in range(B):
        only = torch.zeros(B, dtype=torch.int64)
        only[sample] = 1
        share = mixed(only)[1]  # how much of this sample is in each image, in the column of class 1
        share = one_hot(share, C).float() if share.ndim == 1 else share
        expected += share[:, 1:2] * soft[sample]
    torch.testing.assert_close(labels, expected)
    assert torch.equal(pixels, mixed(torch.zeros(B, dtype=torch.int64))[0])


@pytest.mark.parametrize("name", MIXERS)
def test_class_indices_go_through_the_mixer_itself(name: str, images: torch.Tensor) -> None:
    results = []
    for wrap in (lambda mixer: mixer, mix_soft):
        torch.manual_seed(3)
        results.append(wrap(MIXERS[name](C))(images.clone(), torch.tensor([4, 4, 0, 8, 1, 2])))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_more_samples_than_classes_are_told_apart() -> None:
    images, labels = torch.rand(5, 3, 4, 7), torch.rand(5, 2).softmax(-1)
    torch.manual_seed(0)
    _, mixed = mix_soft(ShiftMix(2))(images, labels)
    torch.manual_seed(0)
    torch.rand(1)
    torch.testing.assert_close(mixed, labels.lerp(labels.roll(1, 0), torch.rand(1).item()))


def test_the_mixer_is_itself_again_and_has_counted(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = ShiftMix(C)
    mix_soft(mixer)(images, soft)
    assert (mixer.num_classes, mixer.calls) == (C, 1)


def test_the_mixer_is_itself_again_after_an_error(soft: torch.Tensor) -> None:
    mixer = v2.MixUp(num_classes=C)
    with pytest.raises(ValueError, match="batched input"):
        mix_soft(mixer)(torch.rand(3, 5, 7), soft)
    assert mixer.num_classes == C


def test_a_function_is_told_its_number_of_classes(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = ShiftMix(C)
    torch.manual_seed(5)
    _, expected = mix_soft(mixer)(images, soft)
    torch.manual_seed(5)
    _, labels = mix_soft(lambda batch, target: mixer(batch, target), num_classes=C)(images, soft)
    torch.testing.assert_close(labels, expected)


def test_a_function_that_hides_its_number_of_classes_is_refused(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = ShiftMix(C)
    with pytest.raises(TypeError, match=r"has no attribute num_classes.*mix_soft\(mixer, num_classes=\)"):
        mix_soft(lambda batch, target: mixer(batch, target))(images, soft)


def test_a_wrong_number_of_classes_is_refused(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = ShiftMix(C)
    with pytest.raises(TypeError, match="made labels of 9 classes where 20 were expected"):
        mix_soft(lambda batch, target: mixer(batch, target), num_classes=20)(images, soft)


def test_a_batch_that_a_function_cannot_tell_apart_is_refused(soft: torch.Tensor, images: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="has 4 classes and cannot tell 6 samples apart"):
        mix_soft(lambda batch, target: (batch, target), num_classes=4)(images, soft)


def test_a_mixer_that_smooths_labels_is_refused(soft: torch.Tensor, images: torch.Tensor) -> None:
    """Its labels hold classes of which no sample has a share, so they do not say how the samples were mixed."""

    class Smoothing(ShiftMix):
        def forward(self, batch: torch.Tensor, target: torch.Tensor) -> Any:
            batch, labels = super().forward(batch, target)
            return batch, labels * 0.9 + 0.1 / self.num_classes

    with pytest.raises(ValueError, match=r"it smooths labels.*CrossEntropyLoss\(label_smoothing=\)"):
        mix_soft(Smoothing(C))(images, soft)


def test_a_mixer_that_leaves_the_mixing_to_the_loss_is_refused(soft: torch.Tensor, images: torch.Tensor) -> None:
    def mixer(batch: torch.Tensor, target: torch.Tensor) -> Any:
        return batch, target, target.flip(0), 0.3

    with pytest.raises(TypeError, match=r"returns \(images, labels\), and this one returned 4 values"):
        mix_soft(mixer, num_classes=C)(images, soft)


def test_soft_labels_of_several_crops_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"Soft labels are \[B, C\], got a tensor of shape \[6, 2, 9\]"):
        mix_soft(v2.MixUp(num_classes=C))(images, torch.rand(B, 2, C))


def test_labels_that_are_no_tensor_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=r"Labels are a tensor.*got list"):
        mix_soft(v2.MixUp(num_classes=C))(images, [1] * B)  # type: ignore[arg-type]


def test_it_can_be_sent_to_a_spawned_worker(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = mix_soft(v2.CutMix(num_classes=C))
    results = []
    for each in (mixer, pickle.loads(pickle.dumps(mixer))):
        torch.manual_seed(4)
        results.append(each(images, soft)[1])
    assert torch.equal(*results)


def test_label_maps_are_refused_with_the_mixers_for_them(images: torch.Tensor) -> None:
    maps = LabelMapBatch(
        torch.ones(B, 1, 3, 5), torch.zeros(B, 1, 3, 5, dtype=torch.int64), num_classes=C, view_boxes=torch.rand(B, 4),
        canvas_sizes=[(11, 17)] * B,
    )  # fmt: skip
    with pytest.raises(TypeError, match="CutMixWithLabelMap"):
        mix_soft(v2.MixUp(num_classes=C))(images, maps)


def test_it_mixes_in_a_collate_function(soft: torch.Tensor, images: torch.Tensor) -> None:
    mixer = mix_soft(v2.CutMix(num_classes=C))
    _, labels = mixer(*default_collate(list(zip(images, soft, strict=True))))
    torch.testing.assert_close(labels.sum(1), torch.ones(B))


def test_labels_keep_their_precision_under_autocast(soft: torch.Tensor, images: torch.Tensor) -> None:
    """Matrix products are of half precision there, and the labels were."""
    mixer = mix_soft(v2.MixUp(num_classes=C))
    torch.manual_seed(0)
    expected = mixer(images, soft)[1]
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = mixer(images, soft)[1]
    assert mixed.dtype == torch.float32
    assert torch.equal(mixed, expected)
