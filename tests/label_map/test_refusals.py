from __future__ import annotations

import re

import pytest
import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from tests.references.label_maps import make_label_map
from torchrelabel import UntrackedTransformError

REFUSED = {
    "perspective": (
        lambda label_map: F.perspective(label_map, None, None, coefficients=[1] * 8),
        v2.RandomPerspective(p=1),
        "tilts the image",
    ),
    "elastic": (
        lambda label_map: F.elastic(label_map, torch.zeros(1, 17, 11, 2)),
        v2.ElasticTransform(sigma=1.0),
        "bends the image",
    ),
}


def words_for(name):
    _, transform, what = REFUSED[name]
    return (
        f"{name} (v2.{type(transform).__name__}) {what}, and the view of a LabelMap is an affine map, so the label "
        f"would no longer match what is seen. Put PoolLabelMap() before it to keep the label of the crop, or leave it "
        f"out."
    )


@pytest.mark.parametrize("name", REFUSED)
def test_a_functional_that_a_view_cannot_follow_is_refused(name):
    with pytest.raises(UntrackedTransformError, match=f"^{re.escape(words_for(name))}$"):
        REFUSED[name][0](make_label_map())


@pytest.mark.parametrize("name", REFUSED)
def test_a_transform_that_a_view_cannot_follow_is_refused(name):
    with pytest.raises(UntrackedTransformError, match=f"^{re.escape(words_for(name))}$"):
        REFUSED[name][1](torch.zeros(3, 17, 11), make_label_map())


def test_the_other_name_of_elastic_is_refused():
    with pytest.raises(UntrackedTransformError, match=r"^elastic \(v2\.ElasticTransform\) bends the image"):
        F.elastic_transform(make_label_map(), torch.zeros(1, 17, 11, 2))


def test_a_refusal_is_a_type_error():
    assert issubclass(UntrackedTransformError, TypeError)
