"""Views that are no boxes: how much each cell counts, and the labels that come of it, against dense references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from tests.references.label_maps import dense_by_loops, make_label_map
from tests.references.sampling import _value
from torchrelabel import CutMixWithLabelMap, LabelMapBatch, LabelPooling, ViewBox
from torchrelabel.label_map.views import ViewBatch
from torchrelabel.pooling import pool_dense
from torchrelabel.view import AffineView
from torchrelabel.visible_cells import cells_in_box, sampled_cells

WHOLE = torch.tensor([[[0.0, 0, 1, 1]]])


def turned(angle=25.0, shear=(8.0, 0.0), box=(0.1, 0.2, 0.8, 0.9), flip=False, size=(31, 45)):
    """A map that was cropped, then turned and sheared: its view has edges where the crop ended."""
    label_map = make_label_map(num_classes=6, grid=(7, 5), canvas_size=size)
    label_map = label_map.with_view(ViewBox(*box))
    label_map = F.affine(label_map, angle, [3, -2], 1.1, list(shear))
    return F.horizontal_flip(label_map) if flip else label_map


def by_points(label_map, count=64, tokens=(1, 1)):
    """The mean of dense scores over the points of the canvas that show the image, ``[C, gh, gw]``."""
    dense, view = dense_by_loops(label_map), label_map.view_box
    h, w = dense.shape[1:]
    (xx, xy, x0), (yx, yy, y0) = view.matrix
    sums, counts = np.zeros((len(dense), *tokens)), np.zeros(tokens)
    for i in range(count):
        for j in range(count):
            u, v = (j + 0.5) / count, (i + 0.5) / count
            x, y = xx * u + xy * v + x0, yx * u + yy * v + y0
            if 0 <= x <= 1 and 0 <= y <= 1 and all(a * x + b * y + c >= 0 for a, b, c in view.edges):
                token = i * tokens[0] // count, j * tokens[1] // count
                sums[:, token[0], token[1]] += _value(dense, y * h, x * w)
                counts[token] += 1
    return sums / np.maximum(counts, 1), counts / (count * count / math.prod(tokens))


@pytest.mark.parametrize("angle", [-170, -40, 3, 45, 90, 135])
@pytest.mark.parametrize("flip", [False, True])
def test_the_label_of_a_turned_view_is_that_of_its_points(angle, flip):
    label_map = turned(angle, flip=flip)
    assert isinstance(label_map.view_box, AffineView)
    expected, _ = by_points(label_map, 128)
    shares = torch.tensor(expected[:, 0, 0]).softmax(0)
    label = LabelPooling(fill="zero")(label_map).double()
    assert (label - shares).abs().max() < 1e-3
    assert (pool_dense(label_map, LabelPooling(fill="zero")).double() - shares).abs().max() < 1e-3


def test_the_whole_image_is_another_label():
    """The limit of the test above has teeth."""
    label_map = turned(45)
    whole = LabelPooling(fill="zero")(label_map.with_view(ViewBox()))
    assert (LabelPooling(fill="zero")(label_map) - whole).abs().max() > 0.01


@given(
    st.floats(-180, 180),
    st.tuples(st.floats(-30, 30), st.floats(-30, 30)),
    st.tuples(*[st.floats(0, 0.4)] * 2, *[st.floats(0.6, 1)] * 2),
    st.booleans(),
)
@settings(max_examples=100)
def test_any_turned_view_is_right_to_a_thousandth(angle, shear, box, flip):
    label_map = turned(angle, shear, box, flip)
    fast, dense = (LabelPooling(fill="zero")(label_map), pool_dense(label_map, LabelPooling(fill="zero")))
    assert (fast - dense).abs().max() < 1e-3


def test_the_tokens_of_a_turned_view_are_those_of_its_points():
    label_map = turned(30)
    expected, seen = by_points(label_map, 96, (3, 4))
    pooled = LabelPooling((3, 4), fill="zero", activation=None)(label_map).numpy()
    full = seen > 0.5
    assert full.sum() > 5
    np.testing.assert_allclose(pooled[:, full], expected[:, full], atol=0.05)


def test_a_quarter_turn_of_tokens_is_a_turned_grid():
    label_map = make_label_map(canvas_size=(20, 20), grid=(6, 6))
    tokens = LabelPooling((3, 3), activation=None)
    # By points, too: RoIAlign looks at the centres of the cells alone.
    expected = pool_dense(label_map.with_view(AffineView(ViewBox().matrix)), tokens)
    torch.testing.assert_close(tokens(F.rotate(label_map, 90)), expected.rot90(1, (1, 2)), atol=0.02, rtol=0)


def test_a_map_alone_and_in_a_batch_of_boxes_has_one_label():
    maps = [turned(20), turned(20).with_view(ViewBox(0.1, 0.3, 0.9, 0.4)), turned(-60, flip=True)]
    together = LabelPooling()(LabelMapBatch.stack(maps))
    for label_map, label in zip(maps, together, strict=True):
        torch.testing.assert_close(LabelPooling()(label_map), label, rtol=0, atol=2e-6)


def test_a_box_in_a_batch_with_turned_views_is_pooled_as_ever():
    box = turned(20).with_view(ViewBox(0.1, 0.3, 0.9, 0.4))
    mixed = LabelPooling()(LabelMapBatch.stack([turned(20), box]))[1]
    assert torch.equal(mixed, LabelPooling()(LabelMapBatch.stack([box, box]))[1])


def test_a_view_that_shows_nothing_gives_every_class_the_same():
    label_map = F.affine(turned(0, (0, 0)), 20, [400, 0], 1.0, [0, 0])
    torch.testing.assert_close(LabelPooling()(label_map), torch.full((6,), 1 / 6))


def test_the_cells_of_parts_add_up_to_those_of_the_whole():
    views = LabelMapBatch.stack([turned(20), turned(-70)]).views
    left = cells_in_box(views, torch.tensor([[0.0, 0, 0.3, 1]]), (7, 5))
    right = cells_in_box(views, torch.tensor([[0.3, 0, 1, 1]]), (7, 5))
    whole = cells_in_box(views, torch.tensor([[0.0, 0, 1, 1]]), (7, 5))
    torch.testing.assert_close(left + right, whole, atol=1e-3, rtol=0)


def test_for_a_box_points_and_integrals_agree():
    views = ViewBatch(torch.tensor([[0.1, 0.2, 0.7, 1.1], [0.9, -0.1, 0.3, 0.6]]))
    exact = cells_in_box(views, WHOLE[0], (7, 5))
    torch.testing.assert_close(sampled_cells(views, WHOLE, (7, 5))[:, 0], exact, atol=1e-3, rtol=0)


def test_localized_labels_of_turned_views_are_those_of_their_parts():
    """A patch over the left half: its label is that of the partner's left half, turned as it is."""
    maps = LabelMapBatch.stack([turned(15), turned(-50, flip=True)])
    mix = CutMixWithLabelMap(labels="localized", pooling=LabelPooling(fill="zero"))
    boxes = torch.tensor([[0, 0, 10, 20]])
    labels = mix._mixed_labels(maps, boxes, 20, 20)
    partner = maps[1]
    left = LabelPooling(fill="zero")(partner.with_view(partner.view_box.crop(0, 0, 0.5, 1)))
    right = LabelPooling(fill="zero")(maps[0].with_view(maps[0].view_box.crop(0.5, 0, 1, 1)))
    torch.testing.assert_close(labels[0], 0.5 * left + 0.5 * right, atol=2e-3, rtol=0)


def test_views_survive_collating_and_indexing():
    maps = [turned(20), turned(20).with_view(ViewBox(0.1, 0.3, 0.9, 0.4))]
    batch = LabelMapBatch.stack(maps)
    assert batch[1].view_box == ViewBox(*torch.tensor([0.1, 0.3, 0.9, 0.4]).tolist())
    flat = [number for part in (*batch[0].view_box.matrix, *batch[0].view_box.edges) for number in part]
    expected = [number for part in (*maps[0].view_box.matrix, *maps[0].view_box.edges) for number in part]
    assert flat == pytest.approx(expected, abs=1e-6)
    assert batch.roll(1)[1].view_box == batch[0].view_box
    assert batch == LabelMapBatch.stack(maps) != LabelMapBatch.stack(maps[::-1])
    assert batch.to(torch.device("cpu"), torch.float16).views.shears.dtype == torch.float32
