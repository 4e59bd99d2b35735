from __future__ import annotations

import copy
import io
import pickle
import re

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.references.label_maps import CANVAS, GRID, make_label_map
from torchrelabel import LabelMap, LabelMapBatch, ViewBox
from torchrelabel.calibration import Calibration

VIEW = ViewBox(0.75, 0.125, 0.25, 1.5)


CALIBRATION = Calibration((0.7, -0.2), (0.4, 0.3), 0.08)


def make(**settings):
    """A calibrated map, unless it could be none."""
    calibrated = settings.get("score_kind", "logit") == "logit" and settings.get("residual", True)
    return make_label_map(**{"view_box": VIEW, "calibration": CALIBRATION if calibrated else None, **settings})


def assert_same(actual, expected):
    """The same map in every respect, tensors by value."""
    assert type(actual) is LabelMap
    torch.testing.assert_close(actual.scores.cpu(), expected.scores.cpu(), rtol=0, atol=0)
    torch.testing.assert_close(actual.classes.cpu(), expected.classes.cpu(), rtol=0, atol=0)
    assert (actual.residual is None) == (expected.residual is None)
    if expected.residual is not None:
        torch.testing.assert_close(actual.residual.cpu(), expected.residual.cpu(), rtol=0, atol=0)
    assert (actual.image_scores is None) == (expected.image_scores is None)
    if expected.image_scores is not None:
        torch.testing.assert_close(actual.image_scores.cpu(), expected.image_scores.cpu(), rtol=0, atol=0)
    assert_same_attributes(actual, expected)


def assert_same_attributes(actual, expected):
    for name in ("num_classes", "canvas_size", "view_box", "score_kind", "calibration"):
        assert getattr(actual, name) == getattr(expected, name), name


class Maps(Dataset):
    """Two images with their maps."""

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return torch.zeros(3, *CANVAS), make(seed=index)


# --- what it survives ---


@pytest.mark.parametrize(
    "through",
    [
        lambda label_map: label_map.clone(),
        lambda label_map: label_map.to("cpu"),
        lambda label_map: label_map.to("cpu", copy=True),
        lambda label_map: label_map.to(torch.zeros(1)),
        lambda label_map: label_map.detach(),
        lambda label_map: label_map.requires_grad_(False),
        copy.copy,
        copy.deepcopy,
        lambda label_map: copy.deepcopy([label_map, 1])[0],
        lambda label_map: pickle.loads(pickle.dumps(label_map)),
        lambda label_map: label_map.with_view(label_map.view_box),
        v2.Identity(),
        v2.ToDtype({tv_tensors.Image: torch.float32, "others": None}),
        v2.ColorJitter(0.5),
        v2.Normalize([0.5], [0.5]),
        lambda label_map: v2.RandomErasing(p=1)(torch.zeros(3, 17, 11), label_map)[1],
    ],
)
@pytest.mark.parametrize("residual", [True, False])
def test_nothing_is_lost_by(through, residual):
    label_map = make(residual=residual)
    assert_same(through(label_map), label_map)


@pytest.mark.parametrize("residual", [True, False])
def test_nothing_is_lost_by_save_and_load(residual):
    label_map = make(residual=residual)
    file = io.BytesIO()
    torch.save({"map": label_map}, file)
    file.seek(0)
    assert_same(torch.load(file, weights_only=False)["map"], label_map)


@pytest.mark.skipif(
    not hasattr(tv_tensors.TVTensor, "wrap"), reason="no hook in tv_tensors.wrap before torchvision 0.28"
)
def test_nothing_is_lost_by_wrap():
    label_map = make()
    assert_same(tv_tensors.wrap(label_map.scores, like=label_map), label_map)


@pytest.mark.skipif(
    not hasattr(tv_tensors.TVTensor, "wrap"), reason="no hook in tv_tensors.wrap before torchvision 0.28"
)
def test_wrap_changes_what_it_is_told_to():
    wrapped = tv_tensors.wrap(make().scores, like=make(), view_box=ViewBox(), canvas_size=(3, 4))
    assert (wrapped.view_box, wrapped.canvas_size, wrapped.num_classes) == (ViewBox(), (3, 4), 10)


def test_another_type_of_score_keeps_the_rest():
    label_map = make()
    half = label_map.to(torch.float16)
    assert_same_attributes(half, label_map)
    assert (half.dtype, half.residual.dtype, half.classes.dtype) == (torch.float16, torch.float16, torch.int64)


def test_another_device_takes_all_parts_along():
    label_map = make()
    moved = label_map.to("meta")
    assert {moved.device.type, moved.classes.device.type, moved.residual.device.type} == {"meta"}
    assert_same_attributes(moved, label_map)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA HERE: moves to a GPU and back are not tested")
def test_nothing_is_lost_by_a_gpu():
    label_map = make()
    moved = label_map.to("cuda", non_blocking=True)
    assert {moved.device.type, moved.classes.device.type, moved.residual.device.type} == {"cuda"}
    assert_same(moved.cpu() if isinstance(moved.cpu(), LabelMap) else moved.to("cpu"), label_map)


def test_gradients_reach_the_scores():
    label_map = make().requires_grad_()
    assert label_map.requires_grad
    assert isinstance(label_map, LabelMap)
    (label_map * 2).sum().backward()
    torch.testing.assert_close(label_map.grad, torch.full_like(label_map.scores, 2))


def test_a_deep_copy_still_requires_gradients():
    assert copy.deepcopy(make().requires_grad_()).requires_grad


@pytest.mark.parametrize("copied", [lambda label_map: label_map.clone(), copy.deepcopy])
def test_a_copy_shares_no_memory(copied):
    label_map, expected = make(), make()
    twin = copied(label_map)
    twin.scores.zero_(), twin.classes.zero_(), twin.residual.zero_()
    assert_same(label_map, expected)


def test_a_deep_copy_keeps_attributes_of_a_caller():
    label_map = make()
    label_map.note = ["mine"]
    twin = copy.deepcopy(label_map)
    assert twin.note == ["mine"]
    assert twin.note is not label_map.note


@pytest.mark.parametrize(
    "operation", [lambda x: x + 1, lambda x: x * x, lambda x: x[0], lambda x: x.sum(), torch.exp, lambda x: x.flip(1)]
)
def test_an_operation_gives_a_plain_tensor(operation):
    label_map = make()
    result = operation(label_map)
    assert type(result) is torch.Tensor
    torch.testing.assert_close(result, operation(label_map.scores))


def test_set_return_type_keeps_everything():
    label_map = make()
    with tv_tensors.set_return_type("TVTensor"):
        doubled = label_map * 2
        cells = label_map[0]
    torch.testing.assert_close(doubled.scores, label_map.scores * 2)
    assert_same_attributes(doubled, label_map)
    torch.testing.assert_close(doubled.classes, label_map.classes)
    assert type(cells) is torch.Tensor  # what has lost its classes is no map any more


def test_an_operation_in_place_leaves_the_map_whole():
    label_map, expected = make(), make()
    label_map.add_(1)
    torch.testing.assert_close(label_map.scores, expected.scores + 1)
    assert_same_attributes(label_map, expected)


# --- DataLoader ---


@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_nothing_is_lost_on_the_way_from_a_worker(context):
    loader = DataLoader(Maps(), batch_size=None, num_workers=1, multiprocessing_context=context)
    for index, (_, label_map) in enumerate(loader):
        assert_same(label_map, make(seed=index))


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork:DeprecationWarning")
def test_a_worker_collates_a_batch():
    ((_, batch),) = DataLoader(Maps(), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert batch == LabelMapBatch.stack([make(seed=0), make(seed=1)])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA HERE: pinned memory is not tested")
def test_a_loader_pins_a_batch():
    ((_, batch),) = DataLoader(Maps(), batch_size=2, pin_memory=True)
    assert all(part.is_pinned() for part in (batch.scores, batch.classes, batch.residual, batch.view_boxes))


@pytest.mark.parametrize("residual", [True, False])
def test_pin_memory_pins_every_part(monkeypatch, residual):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(part.dtype) or part.clone())
    label_map = make(residual=residual)
    assert_same(label_map.pin_memory(), label_map)
    assert len(pinned) == (4 if residual else 2)


@pytest.mark.parametrize("residual", [True, False])
def test_pin_memory_of_a_batch_pins_every_part(monkeypatch, residual):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda part: pinned.append(part.dtype) or part.clone())
    batch = make_batch(residual=residual)
    assert batch.pin_memory() == batch
    assert len(pinned) == (5 if residual else 3)


# --- construction ---


def test_it_takes_arrays():
    scores, classes = np.ones((2, *GRID), np.float32), np.zeros((2, *GRID), np.int32)
    label_map = LabelMap(scores, classes, num_classes=3, canvas_size=list(CANVAS), residual=np.zeros(GRID, np.float32))
    assert (label_map.grid, label_map.canvas_size, label_map.view_box) == (GRID, CANVAS, ViewBox())
    assert (label_map.dtype, label_map.classes.dtype) == (torch.float32, torch.int32)


def test_its_scores_are_plain_and_share_its_memory():
    label_map = make()
    assert type(label_map.scores) is torch.Tensor
    assert label_map.scores.data_ptr() == label_map.data_ptr()


def test_it_describes_itself():
    assert repr(make()) == (
        "LabelMap(3 of 10 classes in 7 x 5 cells, score_kind='logit', residual=yes, image_scores=yes, "
        "calibration=yes, canvas_size=(17, 11), view_box=(0.75, 0.125, 0.25, 1.5))"
    )


PARTS = {
    "scores": torch.zeros(2, *GRID),
    "classes": torch.zeros(2, *GRID, dtype=torch.long),
    "num_classes": 4,
    "canvas_size": CANVAS,
}


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (
            {"scores": torch.zeros(2, *GRID, dtype=torch.int32)},
            TypeError,
            "The scores of a label map are floating point, got torch.int32.",
        ),
        (
            {"classes": torch.zeros(2, *GRID, dtype=torch.float16)},
            TypeError,
            "The classes of a label map are integers, got torch.float16. Indices kept as floating point are exact only "
            "up to 2048 in half precision: convert them with .long() after checking that.",
        ),
        (
            {"classes": torch.zeros(2, *GRID, dtype=torch.bool)},
            TypeError,
            "The classes of a label map are integers, got torch.bool. Indices kept as floating point are exact only "
            "up to 2048 in half precision: convert them with .long() after checking that.",
        ),
        (
            {"scores": torch.zeros(1, 2, *GRID)},
            ValueError,
            "Scores and classes of a label map have one shape [K, h, w], got (1, 2, 7, 5) and (2, 7, 5).",
        ),
        (
            {"classes": torch.zeros(2, 5, 7, dtype=torch.long)},
            ValueError,
            "Scores and classes of a label map have one shape [K, h, w], got (2, 7, 5) and (2, 5, 7).",
        ),
        (
            {"scores": torch.zeros(2, 0, 5), "classes": torch.zeros(2, 0, 5, dtype=torch.long)},
            ValueError,
            "Scores and classes of a label map have one shape [K, h, w], got (2, 0, 5) and (2, 0, 5).",
        ),
        (
            {"residual": torch.zeros(5, 7)},
            ValueError,
            "The residual of a label map has the shape of its grid, [h, w] = (7, 5), got (5, 7).",
        ),
        ({"score_kind": "logits"}, ValueError, "score_kind is one of 'logit', 'probability', got 'logits'."),
        ({"num_classes": 1}, ValueError, "A label map cannot keep 2 classes a cell out of 1."),
        (
            {"classes": torch.full((2, *GRID), 4)},
            ValueError,
            "The classes of a label map go from 0 to num_classes - 1 = 3, got 4.",
        ),
        (
            {"classes": torch.full((2, *GRID), -1)},
            ValueError,
            "The classes of a label map go from 0 to num_classes - 1 = 3, got -1.",
        ),
        (
            {"canvas_size": (17, 11, 3)},
            ValueError,
            "canvas_size is the (H, W) of the image in pixels, got (17, 11, 3).",
        ),
        ({"canvas_size": (17, 0)}, ValueError, "canvas_size is the (H, W) of the image in pixels, got (17, 0)."),
        ({"canvas_size": 17}, ValueError, "canvas_size is the (H, W) of the image in pixels, got 17."),
        ({"view_box": (0, 0, 1, 1)}, TypeError, "view_box is a ViewBox, or another View, got (0, 0, 1, 1)."),
    ],
)
def test_a_wrong_part_is_an_error(wrong, error, words):
    with pytest.raises(error, match=f"^{re.escape(words)}$"):
        LabelMap(**{**PARTS, **wrong})


# --- batches ---


def make_batch(size=4, **settings):
    boxes = [ViewBox(0, 0, 0.5, 1), ViewBox(1, 0.25, 0.5, 0.75), ViewBox(0.125, 1, 0.5, 0), ViewBox(-0.5, 0, 1, 1.5)]
    maps = [make(seed=i, view_box=boxes[i], canvas_size=(17 + i, 11 + i), **settings) for i in range(size)]
    return LabelMapBatch.stack(maps)


def test_default_collate_makes_a_batch():
    images, batch = default_collate([(torch.zeros(3, *CANVAS), make(seed=0)), (torch.zeros(3, *CANVAS), make(seed=1))])
    assert images.shape == (2, 3, *CANVAS)
    assert type(batch) is LabelMapBatch
    assert (len(batch), batch.grid, batch.device) == (2, GRID, torch.device("cpu"))
    assert_same(batch[0], make(seed=0))
    assert_same(batch[1], make(seed=1))


@pytest.mark.parametrize("residual", [True, False])
def test_a_batch_of_one_is_a_batch(residual):
    batch = default_collate([make(residual=residual)])
    assert tuple(batch.scores.shape) == (1, 3, *GRID)
    assert_same(batch[0], make(residual=residual))


def test_a_batch_gives_back_its_maps_in_order():
    batch = make_batch()
    for label_map, index in zip(batch, range(4), strict=True):
        assert_same(label_map, batch[index])
    assert [label_map.canvas_size for label_map in batch] == [(17, 11), (18, 12), (19, 13), (20, 14)]


@pytest.mark.parametrize("index", [-1, np.int64(3), torch.tensor(3)])
def test_one_number_gives_one_map(index):
    assert_same(make_batch()[index], make_batch()[3])


@pytest.mark.parametrize(
    "index, kept",
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([3, 1], [3, 1]),
        (torch.tensor([2, 2, 0]), [2, 2, 0]),
        (torch.tensor([True, False, False, True]), [0, 3]),
        ([True, False, False, True], [0, 3]),
        (np.array([2, 3]), [2, 3]),
        (torch.tensor([1]), [1]),
    ],
)
def test_several_numbers_give_a_batch(index, kept):
    batch = make_batch()
    assert batch[index] == LabelMapBatch.stack([batch[i] for i in kept])


def test_no_number_gives_an_empty_batch():
    empty = make_batch()[[]]
    assert (len(empty), empty.canvas_sizes, list(empty)) == (0, (), [])
    assert empty.roll(1) == empty


@pytest.mark.parametrize("index", [4, -5])
def test_a_number_out_of_range_is_an_error(index):
    with pytest.raises(IndexError, match=rf"^There are 4 label maps in this batch, asked for number {index}\.$"):
        make_batch()[index]


@pytest.mark.parametrize("shift", [1, -1, 3, 4, 5])
def test_roll_moves_each_map_on(shift):
    batch = make_batch()
    rolled = batch.roll(shift)
    for i in range(4):
        assert_same(rolled[(i + shift) % 4], batch[i])


def test_a_batch_on_another_device_takes_all_parts_along():
    moved = make_batch().to("meta", non_blocking=True)
    parts = (moved.scores, moved.classes, moved.residual, moved.view_boxes)
    assert {part.device.type for part in parts} == {"meta"}
    assert moved.canvas_sizes == make_batch().canvas_sizes


def test_a_batch_of_half_precision_keeps_its_view_boxes_exact():
    half = make_batch().to(dtype=torch.float16)
    assert (half.scores.dtype, half.residual.dtype) == (torch.float16, torch.float16)
    assert (half.classes.dtype, half.view_boxes.dtype) == (torch.int64, torch.float32)


@pytest.mark.parametrize("through", [copy.deepcopy, lambda batch: pickle.loads(pickle.dumps(batch))])
def test_a_batch_survives(through):
    assert through(make_batch()) == make_batch()


def test_batches_are_equal_by_value():
    assert make_batch() == make_batch()
    assert make_batch(residual=False) == make_batch(residual=False)


@pytest.mark.parametrize(
    "change",
    [
        lambda batch: batch.scores.add_(1),
        lambda batch: batch.classes.zero_(),
        lambda batch: batch.residual.add_(1),
        lambda batch: batch.view_boxes.add_(1),
        lambda batch: setattr(batch, "residual", None),
        lambda batch: setattr(batch, "num_classes", 11),
        lambda batch: setattr(batch, "score_kind", "probability"),
        lambda batch: setattr(batch, "canvas_sizes", ((1, 1),) * 4),
        lambda batch: setattr(batch, "scores", batch.scores.double()),
    ],
)
def test_batches_that_differ_in_one_thing_are_not_equal(change):
    other = make_batch()
    change(other)
    assert make_batch() != other


def test_a_batch_is_equal_to_nothing_else():
    assert make_batch() != 3


def test_a_batch_describes_itself():
    assert repr(make_batch()) == (
        "LabelMapBatch(4 maps, 3 of 10 classes in 7 x 5 cells, score_kind='logit', residual=yes, image_scores=yes, "
        "calibration=yes, device='cpu')"
    )


@pytest.mark.parametrize(
    "other, what, there, here",
    [
        ({"grid": (5, 7)}, "K, h, w", "(3, 7, 5)", "(3, 5, 7)"),
        ({"top_k": 2}, "K, h, w", "(3, 7, 5)", "(2, 7, 5)"),
        ({"num_classes": 11}, "num_classes", "10", "11"),
        ({"score_kind": "probability"}, "score_kind", "logit", "probability"),
        ({"residual": False}, "a residual", "True", "False"),
    ],
)
def test_maps_that_disagree_make_no_batch(other, what, there, here):
    words = (
        f"Label maps of one batch must agree in {what}: map 0 has {there}, map 2 has {here}. "
        f"Pool each map before collating instead (LabelMapDataset(..., pooling=LabelPooling()))."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        default_collate([make(), make(), make(**other)])


def test_no_maps_make_no_batch():
    with pytest.raises(ValueError, match=r"^A batch of label maps needs at least one\.$"):
        LabelMapBatch.stack([])


BATCH_PARTS = {
    "scores": torch.zeros(3, 2, *GRID),
    "classes": torch.zeros(3, 2, *GRID, dtype=torch.long),
    "num_classes": 4,
    "view_boxes": torch.tensor([[0.0, 0, 1, 1]] * 3),
    "canvas_sizes": [CANVAS] * 3,
}


@pytest.mark.parametrize(
    "wrong, error, words",
    [
        (
            {"scores": torch.zeros(2, *GRID)},
            ValueError,
            "The scores of a batch of label maps are [B, K, h, w], got shape (2, 7, 5).",
        ),
        (
            {"view_boxes": torch.zeros(2, 4)},
            ValueError,
            "A batch of 3 label maps needs as many view boxes [B, 4] and canvas sizes, got (2, 4) and 3.",
        ),
        (
            {"view_boxes": torch.zeros(3, 5)},
            ValueError,
            "A batch of 3 label maps needs as many view boxes [B, 4] and canvas sizes, got (3, 5) and 3.",
        ),
        (
            {"canvas_sizes": [CANVAS]},
            ValueError,
            "A batch of 3 label maps needs as many view boxes [B, 4] and canvas sizes, got (3, 4) and 1.",
        ),
        ({"scores": torch.zeros(3, 2, *GRID).long()}, TypeError, "are floating point, got torch.int64."),
        (
            {"classes": torch.zeros(3, 2, *GRID)},
            TypeError,
            "The classes of a label map are integers, got torch.float32.",
        ),
        (
            {"classes": torch.zeros(3, 2, 5, 7, dtype=torch.long)},
            ValueError,
            "Scores and classes of a batch of label maps have one shape [B, K, h, w], "
            "got (3, 2, 7, 5) and (3, 2, 5, 7).",
        ),
        (
            {"residual": torch.zeros(3, 5, 7)},
            ValueError,
            "The residual of a batch of label maps has the shape of its grid, [B, h, w] = (3, 7, 5), got (3, 5, 7).",
        ),
        ({"score_kind": "odds"}, ValueError, "score_kind is one of 'logit', 'probability', got 'odds'."),
        ({"num_classes": 1}, ValueError, "A label map cannot keep 2 classes a cell out of 1."),
    ],
)
def test_a_wrong_part_of_a_batch_is_an_error(wrong, error, words):
    with pytest.raises(error, match=re.escape(words)):
        LabelMapBatch(**{**BATCH_PARTS, **wrong})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["scores", "residual"])
def test_a_map_of_finite_numbers_only(part, value):
    """An infinite score in a cell that was out of view made a label of NaN."""
    parts = {"scores": torch.zeros(1, 2, 3), "residual": torch.zeros(2, 3)}
    parts[part][..., 0] = value
    with pytest.raises(ValueError, match=r"scores and the residual of a label map are finite numbers"):
        LabelMap(classes=torch.zeros(1, 2, 3, dtype=torch.long), num_classes=2, canvas_size=(4, 6), **parts)


def test_the_scores_of_a_whole_image_become_logarithms_of_shares():
    scores = torch.tensor([2.0, 0.0, 1.0])
    settings = {"num_classes": 3, "canvas_size": CANVAS, "image_scores": scores}
    label_map = LabelMap(torch.zeros(1, *GRID), torch.zeros(1, *GRID, dtype=torch.long), **settings)
    torch.testing.assert_close(label_map.image_scores, scores.log_softmax(0))


@pytest.mark.parametrize(
    "image_scores, words",
    [
        (torch.zeros(9), r"The image_scores of a label map are floating point, \[C\] = \(10,\), got .*\(9,\)"),
        (torch.zeros(10, dtype=torch.int), r"are floating point, \[C\] = \(10,\), got torch.int32 \(10,\)"),
        (torch.full((10,), float("nan")), "are finite numbers, got NaN or infinity"),
    ],
)
def test_scores_of_a_whole_image_that_do_not_fit_are_refused(image_scores, words):
    one = make()
    with pytest.raises(ValueError, match=words):
        LabelMap(one.scores, one.classes, num_classes=10, canvas_size=CANVAS, image_scores=image_scores)


def test_calibrated_maps_and_others_make_no_batch():
    with pytest.raises(ValueError, match="must agree in image_scores: map 0 has True, map 1 has False"):
        LabelMapBatch.stack([make(), make(calibration=None)])
