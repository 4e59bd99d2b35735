from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn
from torchvision import transforms as v1
from torchvision.transforms import v2

from tests.references.label_maps import make_label_map
from torchrelabel import LabelMapBatch, PoolLabelMap, RandomResizedCropWithLabelMap, check_pipeline
from torchrelabel.transforms import Finding

AUTO_AUGMENTS = [v2.RandAugment(), v2.AutoAugment(), v2.TrivialAugmentWide()]
MIXES = [v2.CutMix(num_classes=10), v2.MixUp(num_classes=10)]
REFUSED = [v2.RandomPerspective(), v2.ElasticTransform(sigma=1.0)]


def name_of(transform):
    return type(transform).__name__


def found(pipeline):
    return [(finding.where, finding.transform, finding.breaks) for finding in check_pipeline(pipeline)]


def test_nothing_is_found_in_a_pipeline_that_takes_the_map_along():
    pipeline = v2.Compose(
        [
            v2.ToImage(),
            RandomResizedCropWithLabelMap(9),
            v2.RandomHorizontalFlip(),
            v2.RandomApply([v2.ColorJitter(0.4)], p=0.5),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.5], [0.5]),
            v2.RandomErasing(),
            PoolLabelMap(),
        ]
    )
    assert check_pipeline(pipeline) == []


@pytest.mark.parametrize("transform", AUTO_AUGMENTS, ids=name_of)
def test_an_auto_augment_is_found_and_breaks_nothing(transform):
    name = name_of(transform)
    message = (
        f"{name} moves pixels of the image alone (it shears, shifts and rotates), and torchvision does not tell the "
        f"label map: the label stays that of the crop, as in the ReLabel paper. LabelMapDataset(..., transforms=) "
        f"tells it."
    )
    assert check_pipeline(v2.Compose([transform])) == [Finding("[0]", name, False, message, followed=True)]


def test_aug_mix_is_found_and_breaks_nothing():
    message = (
        "AugMix blends copies of the image that were sheared, shifted and rotated. The label stays that of the image "
        "before it. Leave it in if that is what you want."
    )
    assert check_pipeline(v2.Compose([v2.AugMix()])) == [Finding("[0]", "AugMix", False, message)]


@pytest.mark.parametrize("transform", MIXES, ids=name_of)
def test_a_mix_of_torchvision_is_found(transform):
    name = name_of(transform)
    message = (
        f"{name} mixes images of a batch and does not know label maps. Use {name}WithLabelMap on the collated batch."
    )
    assert check_pipeline(v2.Compose([transform])) == [Finding("[0]", name, True, message)]


def test_to_pure_tensor_is_found():
    message = "ToPureTensor strips the label map of its view box. Put PoolLabelMap() before it, or leave it out."
    assert check_pipeline(v2.Compose([v2.ToPureTensor()])) == [Finding("[0]", "ToPureTensor", True, message)]


@pytest.mark.parametrize("transform", REFUSED, ids=name_of)
def test_a_transform_that_a_box_cannot_follow_is_found_in_the_words_of_its_error(transform):
    (finding,) = check_pipeline(v2.Compose([transform]))
    always = copy.deepcopy(transform)
    always.p = 1
    with pytest.raises(TypeError, match=f"^{re.escape(finding.message)}$"):
        always(torch.zeros(3, 17, 11), make_label_map())
    assert (finding.where, finding.transform, finding.breaks) == ("[0]", name_of(transform), True)


@pytest.mark.parametrize("transform", [v1.RandomResizedCrop(9), v1.RandomHorizontalFlip(), v1.ToTensor()], ids=name_of)
def test_a_transform_of_the_old_namespace_is_found(transform):
    name = name_of(transform)
    message = (
        f"{name} is a transform of torchvision.transforms, which takes an image alone. Use "
        f"torchvision.transforms.v2.{name}, which takes the label map along."
    )
    assert check_pipeline(v1.Compose([transform])) == [Finding("[0]", name, True, message)]


def test_a_subclass_of_a_known_transform_is_found_by_its_own_name():
    class Mine(v2.RandAugment):
        pass

    assert found([Mine()]) == [("[0]", "Mine", False)]


# --- where ---


@pytest.mark.parametrize(
    "pipeline, where",
    [
        (v2.RandomPerspective(p=1), "pipeline"),
        ([v2.Identity(), v2.RandomPerspective(p=1)], "[1]"),
        ((v2.Identity(), v2.RandomPerspective(p=1)), "[1]"),
        (v2.Compose([v2.Identity(), v2.RandomPerspective(p=1)]), "[1]"),
        (v1.Compose([v2.Identity(), v2.RandomPerspective(p=1)]), "[1]"),
        (nn.Sequential(v2.Identity(), v2.RandomPerspective(p=1)), "[1]"),
        (v2.Compose([v2.RandomApply([v2.RandomPerspective(p=1)])]), "[0].transforms[0]"),
        (v2.Compose([v2.RandomApply(nn.ModuleList([v2.RandomPerspective(p=1)]))]), "[0].transforms[0]"),
        (v2.RandomChoice([v2.Identity(), v2.RandomPerspective(p=1)]), ".transforms[1]"),
        (v2.RandomOrder([v2.Identity(), v2.RandomPerspective(p=1)]), ".transforms[1]"),
        (v1.RandomApply([v2.RandomPerspective(p=1)]), ".transforms[0]"),
        (v2.Compose([v2.Identity(), v2.Compose([v2.Identity(), v2.RandomPerspective(p=1)])]), "[1][1]"),
        (
            [v2.Compose([v2.RandomChoice([v2.Identity(), v2.Compose([v2.RandomPerspective(p=1)])])])],
            "[0][0].transforms[1][0]",
        ),
    ],
)
def test_a_step_is_found_in_every_container(pipeline, where):
    assert found(pipeline) == [(where, "RandomPerspective", True)]


def test_findings_come_in_the_order_of_the_pipeline():
    pipeline = [
        v2.AugMix(),
        v2.RandomApply([v2.RandomPerspective(p=1)]),
        v2.RandAugment(),
        v1.ToTensor(),
        v2.ToPureTensor(),
    ]
    assert found(pipeline) == [
        ("[0]", "AugMix", False),
        ("[1].transforms[0]", "RandomPerspective", True),
        ("[2]", "RandAugment", False),
        ("[3]", "ToTensor", True),
        ("[4]", "ToPureTensor", True),
    ]


def test_what_comes_after_pooling_is_free():
    assert found([v2.RandAugment(), PoolLabelMap(), v2.RandomPerspective(p=1), v2.ToPureTensor()]) == [
        ("[0]", "RandAugment", False)
    ]


@pytest.mark.parametrize("crop", [v2.RandomResizedCrop(9), v2.CenterCrop(9), v2.RandomCrop(9)], ids=name_of)
def test_a_crop_after_pooling_is_found(crop):
    """The label was that of the whole image, and nobody said so."""
    assert found([PoolLabelMap(), crop]) == [("[1]", name_of(crop), False)]
    assert "Crop first, and pool last" in str(check_pipeline([PoolLabelMap(), crop])[0])
    assert found([crop, PoolLabelMap()]) == []


def test_pooling_in_one_branch_of_a_choice_does_not_free_the_others():
    pipeline = [v2.RandomChoice([PoolLabelMap(), v2.Identity()]), v2.ToPureTensor()]
    assert ("[1]", "ToPureTensor", True) in found(pipeline)


def test_functions_are_not_looked_into():
    assert check_pipeline([lambda image, label_map: (image, label_map), v2.Lambda(lambda inpt: inpt)]) == []


def test_a_finding_reads_as_one_line():
    assert str(Finding("[2]", "AugMix", False, "Why, and what to do.")) == "[2] AugMix: Why, and what to do."


# --- is the list honest? ---


@pytest.mark.parametrize("transform", AUTO_AUGMENTS, ids=name_of)
def test_an_auto_augment_really_leaves_the_map_as_it_was(transform):
    label_map = make_label_map()
    image = torch.arange(3 * 17 * 11, dtype=torch.uint8).reshape(3, 17, 11)
    moved = False
    for _ in range(20):
        out, same = transform(image, label_map)
        assert same is label_map
        moved = moved or not torch.equal(out, image)
    assert moved


@pytest.mark.parametrize("transform", MIXES, ids=name_of)
def test_a_mix_of_torchvision_really_leaves_the_batch_as_it_was(transform):
    batch = LabelMapBatch.stack([make_label_map(seed=0), make_label_map(seed=1)])
    images = torch.rand(2, 3, 17, 11)
    mixed, _, same = transform(images, torch.tensor([0, 1]), batch)
    assert same is batch
    assert not torch.equal(mixed, images)


def test_to_pure_tensor_really_strips_the_map():
    _, stripped = v2.ToPureTensor()(torch.zeros(3, 17, 11), make_label_map())
    assert type(stripped) is torch.Tensor


def test_a_transform_of_the_old_namespace_really_takes_an_image_alone():
    with pytest.raises(TypeError):
        v1.RandomResizedCrop(9)(torch.zeros(3, 17, 11), make_label_map())
