from __future__ import annotations

import re

import pytest
import torch
from torchvision.transforms import v2

from tests.references.label_maps import make_label_map
from torchrelabel import LabelMapBatch, LabelPooling, PoolLabelMap, RandomResizedCropWithLabelMap, ViewBox

VIEW = ViewBox(0.1, 0.2, 0.7, 0.9)


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_it_ends_a_pipeline():
    crop = RandomResizedCropWithLabelMap(9)
    image, label_map = torch.rand(3, 17, 11), make_label_map()
    torch.manual_seed(1)
    cropped, moved = crop(image, label_map)
    torch.manual_seed(1)
    out, label = v2.Compose([crop, PoolLabelMap()])(image, label_map)
    torch.testing.assert_close(out, cropped, rtol=0, atol=0)
    assert_close(label, LabelPooling()(moved))
    assert type(label) is torch.Tensor


def test_every_map_of_any_structure_is_pooled():
    first, second = make_label_map(seed=1, view_box=VIEW), make_label_map(seed=2)
    out = PoolLabelMap()({"image": "kept", "maps": (first, [second, 3])})
    assert (out["image"], out["maps"][1][1]) == ("kept", 3)
    assert_close(out["maps"][0], LabelPooling()(first))
    assert_close(out["maps"][1][0], LabelPooling()(second))


def test_a_map_alone_gives_its_label():
    label_map = make_label_map(view_box=VIEW)
    assert_close(PoolLabelMap()(label_map), LabelPooling()(label_map))


def test_a_batch_gives_a_batch_of_labels():
    batch = LabelMapBatch.stack([make_label_map(seed=0, view_box=VIEW), make_label_map(seed=1)])
    _, labels = PoolLabelMap()(torch.zeros(2, 3, 17, 11), batch)
    assert_close(labels, LabelPooling()(batch))


def test_it_pools_as_it_is_told_to():
    pooling = LabelPooling((3, 2), fill="residual", temperature=2.0)
    label_map = make_label_map(view_box=VIEW)
    assert_close(PoolLabelMap(pooling)(label_map), pooling(label_map))


@pytest.mark.parametrize("inputs", [(torch.zeros(3, 17, 11), torch.zeros(10)), ([torch.zeros(1), torch.zeros(1)],)])
def test_a_sample_without_a_map_is_an_error(inputs):
    words = (
        "PoolLabelMap found no LabelMap to pool in a sample of Tensor, Tensor. Call the pipeline on (image, "
        "label_map), as LabelMapDataset(..., transforms=pipeline) does."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(words)}$"):
        PoolLabelMap()(*inputs)


@pytest.mark.parametrize("inputs", [(), ([],)])
def test_nothing_at_all_is_an_error(inputs):
    with pytest.raises(TypeError, match=r"^PoolLabelMap found no LabelMap to pool in a sample of nothing\."):
        PoolLabelMap()(*inputs)


def test_pooling_twice_is_an_error():
    with pytest.raises(TypeError, match="found no LabelMap to pool in a sample of Tensor"):
        v2.Compose([PoolLabelMap(), PoolLabelMap()])(make_label_map())


def test_it_prints_its_pooling():
    assert "fill='residual'" in repr(PoolLabelMap(LabelPooling(fill="residual")))
