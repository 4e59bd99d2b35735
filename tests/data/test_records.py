"""Records as label maps: the frame of a map that covers only a part of its image."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from torchrelabel import LabelMapBatch, LabelPooling, ViewBox
from torchrelabel.data.records import SeenRecord, label_map_of, pool_together
from torchrelabel.store import LabelRecord, StoreHeader

HEADER = StoreHeader(num_classes=4, top_k=1, score_kind="probability")


def left_right(coverage):
    """One row of two cells, class 0 on the left and class 1 on the right, over a part of the image."""
    return LabelRecord(
        np.ones((1, 1, 2), np.float32), np.array([[[0, 1]]], np.int32), None, tuple(map(float, coverage))
    )


def test_a_map_of_the_whole_image_has_the_view_box_that_it_is_given():
    label_map = label_map_of(left_right((0, 0, 1, 1)), HEADER, (11, 17), ViewBox(0.1, 0.2, 0.6, 0.9))
    assert_close(tuple(label_map.view_box), (0.1, 0.2, 0.6, 0.9))
    assert label_map.canvas_size == (11, 17)
    assert label_map.num_classes == 4
    assert label_map.score_kind == "probability"


def test_a_view_is_moved_into_the_part_that_the_map_covers():
    # The map covers the middle half of the width: its left cell is 0.25..0.5 of the image, its right one 0.5..0.75.
    record = left_right((0.25, 0, 0.75, 1))
    label = LabelPooling()(label_map_of(record, HEADER, (11, 17), ViewBox(0.5, 0, 0.75, 1)))
    assert label[1] > 0.85
    label = LabelPooling()(label_map_of(record, HEADER, (11, 17), ViewBox(0.25, 0, 0.5, 1)))
    assert label[0] > 0.85


def test_what_lies_outside_the_covered_part_is_not_invented():
    record = left_right((0.25, 0, 0.75, 1))
    whole = LabelPooling()(label_map_of(record, HEADER, (11, 17)))
    assert_close(whole, torch.tensor([0.5, 0.5, 0.0, 0.0]))
    nothing = LabelPooling()(label_map_of(record, HEADER, (11, 17), ViewBox(0.8, 0, 1.0, 1)))
    assert_close(nothing, torch.full((4,), 0.25))


def some_records(grid, count, residual):
    rng = np.random.default_rng(7)
    scores = -np.sort(-rng.normal(size=(count, 2, *grid)).astype(np.float32), 1)
    classes = rng.permuted(np.tile(np.arange(2, dtype=np.int32)[:, None, None], (1, *grid)), axis=0)
    boxes = [(0.0, 0.0, 1.0, 1.0), (0.25, 0.0, 0.75, 1.0)] * count
    left = rng.normal(size=grid).astype(np.float32) if residual else None
    return [LabelRecord(one, classes + i % 3, left, boxes[i]) for i, one in enumerate(scores)]


@pytest.mark.parametrize("residual", [False, True])
def test_records_are_stacked_as_their_label_maps_are(residual):
    header = StoreHeader(num_classes=4, top_k=2, residual=residual)
    seen = [
        SeenRecord(record, header, (11, 17 + i), ViewBox(0.1 * i, 0.2, 1.0, 0.9))
        for i, record in enumerate(some_records((3, 5), 4, residual))
    ]
    batch, expected = SeenRecord.stack(seen), LabelMapBatch.stack([label_map_of(*one) for one in seen])
    assert batch == expected
    assert batch.canvas_sizes == ((11, 17), (11, 18), (11, 19), (11, 20))


def test_records_of_several_grids_label_maps_and_labels_are_pooled_in_their_places():
    header = StoreHeader(num_classes=4, top_k=2)
    small, large = some_records((3, 5), 2, False), some_records((4, 4), 2, False)
    seen = [SeenRecord(record, header, (11, 17), ViewBox(0.3, 0.2, 1.0, 0.9)) for record in (*small, *large)]
    label = torch.full((4,), 0.25)
    labels = [seen[0], seen[2], label, label_map_of(*seen[1]), seen[3]]
    pool_together(labels, LabelPooling())
    expected = [LabelPooling()(label_map_of(*seen[i])) for i in (0, 2, 1, 3)]
    assert labels[2] is label
    assert_close(torch.stack([*labels[:2], *labels[3:]]), torch.stack(expected))


def test_records_of_several_stores_are_each_pooled_as_their_store_says():
    """A ConcatDataset of two wrapped datasets, collated together, may bring them into one batch."""
    record, other = some_records((3, 5), 2, False)
    left = some_records((3, 5), 1, True)[0]
    seen = [
        SeenRecord(record, StoreHeader(num_classes=4, top_k=2), (11, 17), ViewBox()),
        SeenRecord(
            other._replace(scores=np.abs(other.scores)),
            StoreHeader(num_classes=4, top_k=2, score_kind="probability"),
            (11, 17),
            ViewBox(),
        ),
        SeenRecord(left, StoreHeader(num_classes=4, top_k=2, residual=True), (11, 17), ViewBox()),
        SeenRecord(record, StoreHeader(num_classes=6, top_k=2), (11, 17), ViewBox()),
    ]
    labels = list(seen)
    pool_together(labels, LabelPooling())
    for label, one in zip(labels, seen, strict=True):
        assert_close(label, LabelPooling()(label_map_of(*one)))
