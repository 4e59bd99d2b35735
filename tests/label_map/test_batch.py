"""Batches of label maps that move: with their images in v2, or each on its own, on the device."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tests.references.label_maps import make_label_map
from torchrelabel import LabelMapBatch, UntrackedTransformError, ViewBox

SIZE = (20, 30)


def maps():
    views = [ViewBox(), ViewBox(0.1, 0.2, 0.6, 0.9), ViewBox(0.9, 0.2, 0.3, 0.7)]
    return [make_label_map(canvas_size=SIZE, view_box=view, seed=i) for i, view in enumerate(views)]


def turned():
    return [F.rotate(label_map, 20 * i) for i, label_map in enumerate(maps())]


def assert_views(batch, expected):
    for label_map, other in zip(batch, expected, strict=True):
        flat = [number for row in label_map.view_box.matrix for number in row]
        assert flat == pytest.approx([number for row in other.view_box.matrix for number in row], abs=1e-6)
        edges = [number for edge in label_map.view_box.edges for number in edge]
        assert edges == pytest.approx([number for edge in other.view_box.edges for number in edge], abs=1e-5)
        assert label_map.canvas_size == other.canvas_size


@pytest.mark.parametrize("make", [maps, turned])
def test_a_pipeline_of_v2_moves_each_map_of_a_batch(make):
    """The images were cropped, and the batch came back as it was."""
    pipeline = v2.Compose(
        [
            v2.RandomResizedCrop((9, 13)),
            v2.RandomHorizontalFlip(),
            v2.RandomRotation(30),
            v2.ColorJitter(0.1),
            v2.Pad(2),
        ]
    )
    images = torch.rand(3, 3, *SIZE)
    torch.manual_seed(0)
    moved, batch = pipeline(images, LabelMapBatch.stack(make()))
    torch.manual_seed(0)
    again, *one_by_one = pipeline(images, *make())
    assert torch.equal(moved, again)
    assert_views(batch, one_by_one)


@pytest.mark.parametrize("step", [v2.RandomPerspective(p=1), v2.ElasticTransform(sigma=1.0)])
def test_what_a_view_cannot_follow_is_refused_for_a_batch_too(step):
    with pytest.raises(UntrackedTransformError, match=r"the view of a LabelMap is an affine map"):
        step(torch.rand(3, 3, *SIZE), LabelMapBatch.stack(maps()))


def test_a_batch_that_is_made_a_tensor_is_an_error():
    with pytest.raises(TypeError, match=r"labels would be lost\. Pool it first"):
        v2.ToPureTensor()(torch.rand(3, 3, *SIZE), LabelMapBatch.stack(maps()))


def test_all_tensors_of_a_structure_go_to_a_device():
    from torch.utils._pytree import tree_map

    batch = LabelMapBatch.stack(maps())
    moved = tree_map(lambda part: part.to(torch.device("cpu")), {"maps": batch, "images": torch.rand(3)})
    assert moved["maps"] == batch


@pytest.mark.parametrize("make", [maps, turned])
def test_a_batch_is_cropped_to_a_box_for_each_map(make):
    boxes = torch.tensor([[3, 4, 20, 19], [0, 0, 30, 20], [5, 1, 6, 20]])
    batch = LabelMapBatch.stack(make()).crop(boxes, (9, 13))
    expected = [
        F.resized_crop(label_map, int(y1), int(x1), int(y2 - y1), int(x2 - x1), [9, 13])
        for label_map, (x1, y1, x2, y2) in zip(make(), boxes, strict=True)
    ]
    assert_views(batch, expected)


@pytest.mark.parametrize("make", [maps, turned])
@pytest.mark.parametrize("axis", ["horizontal", "vertical"])
@pytest.mark.parametrize("chosen", [[True, False, True], None])
def test_those_maps_are_flipped_that_a_mask_chooses(make, axis, chosen):
    mask = None if chosen is None else torch.tensor(chosen)
    flip = getattr(F, f"{axis}_flip")
    expected = [flip(one) if take else one for one, take in zip(make(), chosen or [True] * 3, strict=True)]
    assert_views(getattr(LabelMapBatch.stack(make()), f"{axis}_flip")(mask), expected)


@pytest.mark.parametrize(
    "boxes",
    [torch.zeros(2, 4), torch.tensor([[0, 0, 31, 20]] * 3), torch.tensor([[5, 5, 5, 9]] * 3)],
    ids=["too few", "past the image", "empty"],
)
def test_boxes_that_do_not_fit_are_refused(boxes):
    with pytest.raises(ValueError, match=r"cropped to as many boxes|lies within its image"):
        LabelMapBatch.stack(maps()).crop(boxes, (9, 13))


@pytest.mark.parametrize("mask", [torch.ones(2, dtype=torch.bool), torch.ones(3)])
def test_a_mask_that_does_not_fit_is_refused(mask):
    with pytest.raises(ValueError, match=r"A mask of 3 label maps is boolean, \[B\]"):
        LabelMapBatch.stack(maps()).horizontal_flip(mask)
