"""Records as label maps: the frame of a map that covers only a part of its image."""

import numpy as np
import torch
from torch.testing import assert_close

from torchrelabel import LabelPooling, ViewBox
from torchrelabel.data.records import label_map_of
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
