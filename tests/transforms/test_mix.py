"""CutMix and MixUp with label maps: torchvision's draws and pixels, labels as a canvas sampled point by point has."""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torch.utils.data import DataLoader, default_collate
from torchvision import tv_tensors
from torchvision.transforms import v2

from tests.references.label_maps import dense_by_loops, make_label_map
from tests.references.sampling import softmax
from torchrelabel import CutMixWithLabelMap, LabelMap, LabelMapBatch, LabelPooling, MixUpWithLabelMap, ViewBox
from torchrelabel.calibration import Calibration
from torchrelabel.label_map.views import ViewBatch
from torchrelabel.transforms.mix import _boxes_per_sample
from torchrelabel.visible_cells import cells_in_box

H, W, C = 17, 11, 10
VIEWS = [
    ViewBox(),
    ViewBox(0.1, 0.3, 0.7, 0.9),
    ViewBox(0.9, 0.05, 0.2, 0.6),  # flipped left to right
    ViewBox(0.2, 0.8, 0.5, 0.1),  # upside down
    ViewBox(-0.3, 0.2, 0.6, 1.2),  # padded on the left and below
]


def make_batch(size=5, **given):
    return LabelMapBatch.stack(
        [make_label_map(view_box=VIEWS[i % len(VIEWS)], canvas_size=(H, W), seed=i, **given) for i in range(size)]
    )


def make_images(size=5):
    return torch.rand(size, 3, H, W)


def box_drawn(seed=0, alpha=1.0):
    """The box that v2.CutMix draws."""
    torch.manual_seed(seed)
    transform = v2.CutMix(alpha=alpha, num_classes=C)
    draw = getattr(transform, "make_params", None) or transform._get_params
    return draw([make_images_without_draws()])["box"]


def make_images_without_draws():
    return torch.zeros(5, 3, H, W)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(CutMixWithLabelMap(), v2.CutMix(num_classes=C)), (MixUpWithLabelMap(), v2.MixUp(num_classes=C))],
)
def test_pixels_and_random_numbers_are_those_of_torchvision(ours, theirs, seed):
    images, maps = make_images(), make_batch()
    torch.manual_seed(seed)
    expected, expected_labels = theirs(images, LabelPooling()(maps))
    after = torch.rand(3)
    torch.manual_seed(seed)
    mixed, labels = ours(images, maps)
    assert torch.equal(mixed, expected)
    assert_close(labels, expected_labels)
    assert torch.equal(torch.rand(3), after)


@pytest.mark.parametrize(("ours", "theirs"), [(CutMixWithLabelMap, v2.CutMix), (MixUpWithLabelMap, v2.MixUp)])
def test_class_indices_are_mixed_as_torchvision_mixes_them(ours, theirs):
    images, labels = make_images(), torch.tensor([3, 0, 9, 9, 1])
    torch.manual_seed(1)
    expected = theirs(num_classes=C)(images, labels)
    torch.manual_seed(1)
    got = ours(num_classes=C)(images, labels)
    assert torch.equal(got[0], expected[0])
    assert_close(got[1], expected[1])


def point_sampled(maps, box, fill="zero"):
    """The localized label of each mixed canvas, by looking at the canvas point by point.

    Each point of the canvas belongs to the patch or not, and shows a place of the partner's or of the own image.
    """
    x1, y1, x2, y2 = box
    # Multiples of W and H, so that the edges of the box lie between two points.
    v, u = np.meshgrid((np.arange(40 * H) + 0.5) / (40 * H), (np.arange(60 * W) + 0.5) / (60 * W), indexing="ij")
    in_box = (x1 <= u * W) & (u * W < x2) & (y1 <= v * H) & (v * H < y2)
    share = (x2 - x1) * (y2 - y1) / (W * H)
    labels = []
    for i, own in enumerate(maps):
        label = np.zeros(C)
        for shown, points, weight in ((maps[i - 1], in_box, share), (own, ~in_box, 1 - share)):
            view = shown.view_box
            x, y = view.x1 + u[points] * (view.x2 - view.x1), view.y1 + v[points] * (view.y2 - view.y1)
            inside = (x >= 0) & (x <= 1) & (y >= 0) & (y <= 1)
            if weight and inside.any():
                scores = bilinear(dense_by_loops(shown, fill), y[inside], x[inside])
                label += weight * softmax(scores.mean(1))
            elif weight:
                label += weight / C
        labels.append(label)
    return torch.tensor(np.array(labels), dtype=torch.float32)


def bilinear(dense, y, x):
    """A dense map [C, h, w] at points in fractions of the image, flat beyond the outermost centres: [C, points]."""
    h, w = dense.shape[1:]
    y, x = np.clip(y * h - 0.5, 0, h - 1), np.clip(x * w - 0.5, 0, w - 1)
    top, left = np.minimum(y.astype(int), h - 2), np.minimum(x.astype(int), w - 2)
    down, across = y - top, x - left
    above = dense[:, top, left] * (1 - across) + dense[:, top, left + 1] * across
    below = dense[:, top + 1, left] * (1 - across) + dense[:, top + 1, left + 1] * across
    return above * (1 - down) + below * down


@pytest.mark.parametrize("fill", ["zero", "residual"])
@pytest.mark.parametrize("seed", [0, 3])
def test_localized_labels_equal_the_mixed_canvas_sampled_point_by_point(seed, fill):
    maps = make_batch()
    box = box_drawn(seed)
    torch.manual_seed(seed)
    _, labels = CutMixWithLabelMap(labels="localized", pooling=LabelPooling(fill=fill))(
        make_images_without_draws(), maps
    )
    assert_close(labels, point_sampled(maps, box, fill), atol=1e-3, rtol=0)
    assert_close(labels.sum(1), torch.ones(5))


def test_the_cells_of_a_rectangle_are_integrals_of_the_interpolated_map():
    view = torch.tensor([[0.9, -0.2, 0.25, 0.7]])
    box = torch.tensor([[0.13, 0.31, 0.77, 0.94]])
    cells = cells_in_box(ViewBatch(view), box, (3, 4))[0]
    n = 2000
    u = torch.linspace(0.13, 0.77, 2 * n + 1, dtype=torch.float64)[1::2]
    v = torch.linspace(0.31, 0.94, 2 * n + 1, dtype=torch.float64)[1::2]

    def hats(places, count):
        inside = (places >= 0) & (places <= 1)
        at = (places * count - 0.5).clamp(0, count - 1)
        return (1 - (at[:, None] - torch.arange(count)).abs()).clamp(min=0) * inside[:, None]

    columns = hats(0.9 + u * (0.25 - 0.9), 4).mean(0) * (0.77 - 0.13)
    rows = hats(-0.2 + v * (0.7 + 0.2), 3).mean(0) * (0.94 - 0.31)
    assert_close(cells.double(), rows[:, None] * columns, atol=1e-5, rtol=0)


def test_the_cells_of_two_halves_add_up_to_those_of_the_whole():
    views = torch.tensor([list(view) for view in VIEWS])
    whole = cells_in_box(ViewBatch(views), torch.tensor([[0.0, 0, 1, 1]]), (7, 5))
    left = cells_in_box(ViewBatch(views), torch.tensor([[0.0, 0, 0.3, 1]]), (7, 5))
    right = cells_in_box(ViewBatch(views), torch.tensor([[0.3, 0, 1, 1]]), (7, 5))
    assert_close(left + right, whole)
    assert (whole - left).min() > -1e-6


def left_right_batch(views):
    """Maps of one row of two cells, class 0 left and class 1 right, as probabilities."""

    classes = torch.tensor([[[0, 1]]])
    return LabelMapBatch.stack(
        [
            LabelMap(
                torch.ones(1, 1, 2), classes, num_classes=3, canvas_size=(H, W), view_box=v, score_kind="probability"
            )
            for v in views
        ]
    )


class FixedBox(CutMixWithLabelMap):
    """A CutMix whose box is given."""

    def __init__(self, box, **given):
        super().__init__(**given)
        self._torchvision = self
        self.box = box

    def make_params(self, images):
        return {"box": self.box}


@pytest.mark.parametrize("flipped", [False, True])
def test_a_pasted_patch_has_the_label_of_the_side_it_shows_flips_included(flipped):
    partner_view = ViewBox(1, 0, 0, 1) if flipped else ViewBox()
    maps = left_right_batch([partner_view, ViewBox(0, 0, 0.25, 1)])  # image 1 shows only its left: class 0
    box = (6, 0, W, H)  # the right part of the canvas
    _, labels = FixedBox(box, labels="localized")(torch.zeros(2, 3, H, W), maps)
    pasted = 5 / 11
    # Image 1 gets the right part of image 0, which shows class 1, or class 0 where it is flipped.
    expected = torch.tensor([1.0, 0, 0]) if flipped else torch.tensor([1 - pasted, pasted, 0])
    assert_close(labels[1], expected, atol=0.05, rtol=0)  # the map is interpolated between its two cells


def test_what_a_patch_hides_does_not_count():
    maps = left_right_batch([ViewBox(0, 0, 0.25, 1), ViewBox()])  # image 0: class 0 alone; image 1: both sides
    box = (5, 0, W, H)
    _, labels = FixedBox(box, labels="localized")(torch.zeros(2, 3, H, W), maps)
    assert labels[1, 1] < 0.05  # its right side, class 1, is under the patch
    _, mixed = FixedBox(box, labels="mixed")(torch.zeros(2, 3, H, W), maps)
    assert mixed[1, 1] > 0.2


@pytest.mark.parametrize("labels", ["mixed", "localized"])
def test_a_patch_of_no_area_leaves_the_label_of_the_crop(labels):
    maps = make_batch()
    images = make_images()
    mixed, got = FixedBox((4, 6, 4, 9), labels=labels)(images, maps)
    assert torch.equal(mixed, images)
    # Exact integration and RoIAlign's few samples differ a little.
    assert_close(got, LabelPooling()(maps), atol=1e-6 if labels == "mixed" else 0.1, rtol=0)


@pytest.mark.parametrize("labels", ["mixed", "localized"])
def test_a_patch_of_the_whole_canvas_leaves_the_label_of_the_partner(labels):
    maps = make_batch()
    images = make_images()
    mixed, got = FixedBox((0, 0, W, H), labels=labels)(images, maps)
    assert torch.equal(mixed, images.roll(1, 0))
    assert_close(got, LabelPooling()(maps).roll(1, 0), atol=1e-6 if labels == "mixed" else 0.1, rtol=0)
    assert torch.isfinite(got).all()


def test_a_calibrated_patch_is_labelled_by_the_area_that_it_shows():
    # The map says class 0 and the whole image class 1. A crop of all is labelled as the image, a small one as the map.
    one = LabelMap(
        torch.full((1, 7, 5), 9.0),
        torch.zeros(1, 7, 5, dtype=torch.long),
        num_classes=3,
        canvas_size=(H, W),
        residual=torch.zeros(7, 5),
        image_scores=torch.tensor([0.0, 9.0, 0.0]),
        calibration=Calibration((0.0, -1.0), (1.0, 0.4), 0.05),
    )
    maps = LabelMapBatch.stack([one, one.with_view(ViewBox(0, 0, 0.25, 0.25))])
    whole_canvas = (0, 0, W, H)
    _, labels = FixedBox(whole_canvas, labels="localized")(torch.zeros(2, 3, H, W), maps)
    assert_close(labels, LabelPooling()(maps).roll(1, 0), atol=1e-4, rtol=0)
    assert labels[1, 1] > 0.9 > 0.1 > labels[0, 1]
    # A tenth of the canvas that shows all of an image is a tenth of that image, and is labelled as the map says.
    _, labels = FixedBox((0, 0, W, H // 10), labels="localized")(torch.zeros(2, 3, H, W), maps)
    share = (H // 10) / H
    small = LabelPooling()(one.with_view(ViewBox(0, 0, 1, share)))
    own = LabelPooling()(maps[1])
    assert_close(labels[1], share * small + (1 - share) * own, atol=0.02, rtol=0)


def test_a_view_outside_the_image_has_no_favourite_class():
    maps = LabelMapBatch.stack(
        [make_label_map(view_box=ViewBox(1.5, 0, 2, 1)), make_label_map(view_box=ViewBox(-3, 0, -1, 1))]
    )
    _, labels = FixedBox((0, 0, 5, 9), labels="localized")(torch.zeros(2, 3, H, W), maps)
    assert_close(labels, torch.full((2, C), 1 / C))


@pytest.mark.parametrize("labels", ["mixed", "localized"])
def test_a_batch_of_one_is_mixed_with_itself(labels):
    images, got = CutMixWithLabelMap(labels=labels)(make_images(1), make_batch(1))
    assert images.shape == (1, 3, H, W)
    assert_close(got.sum(1), torch.ones(1))


def test_boxes_per_sample_differ_and_their_labels_follow_their_area():
    maps = make_batch()
    torch.manual_seed(2)
    boxes = _boxes_per_sample(1.0, 5, H, W)
    assert len({tuple(box) for box in boxes.tolist()}) > 1
    assert (boxes[:, 2:] >= boxes[:, :2]).all()
    assert (boxes >= 0).all()
    assert (boxes <= torch.tensor([W, H, W, H])).all()
    torch.manual_seed(2)
    images = make_images_without_draws() + torch.arange(5.0)[:, None, None, None]
    mixed, labels = CutMixWithLabelMap(per_sample=True)(images, maps)
    soft = LabelPooling()(maps)
    for i in range(5):
        x1, y1, x2, y2 = boxes[i].tolist()
        expected = images[i].clone()
        expected[:, y1:y2, x1:x2] = images[i - 1][:, y1:y2, x1:x2]
        assert torch.equal(mixed[i], expected)
        share = (x2 - x1) * (y2 - y1) / (H * W)
        assert_close(labels[i], (1 - share) * soft[i] + share * soft[i - 1])


def test_localized_labels_of_boxes_per_sample_equal_those_of_one_box_at_a_time():
    maps = make_batch()
    torch.manual_seed(2)
    boxes = _boxes_per_sample(1.0, 5, H, W).tolist()
    torch.manual_seed(2)
    _, labels = CutMixWithLabelMap(labels="localized", per_sample=True)(make_images_without_draws(), maps)
    for i, box in enumerate(boxes):
        _, expected = FixedBox(tuple(box), labels="localized")(make_images_without_draws(), maps)
        assert_close(labels[i], expected[i])


def test_prob_says_how_often_a_batch_is_mixed():
    mix = CutMixWithLabelMap(prob=0.3, num_classes=C)
    images, labels = make_images_without_draws() + torch.arange(5.0)[:, None, None, None], torch.arange(5)
    mixed = sum(not torch.equal(mix(images, labels)[0], images) for _ in range(400))
    assert 80 < mixed < 150  # some boxes have no area


@pytest.mark.parametrize("mix", [CutMixWithLabelMap(), MixUpWithLabelMap()])
def test_switched_off_it_only_makes_labels_soft(mix):
    mix = copy.deepcopy(mix)
    images, maps = make_images(), make_batch()
    mix.enabled = False
    same, labels = mix(images, maps)
    assert same is images
    assert torch.equal(labels, LabelPooling()(maps))
    mix.enabled = True
    assert not torch.equal(mix(images, maps)[0], images)


class Collate:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, samples):
        return self.mix(*default_collate(samples))


def test_the_switch_reaches_workers_that_are_alive():
    mix = CutMixWithLabelMap(num_classes=C)
    samples = [(torch.full((3, H, W), float(i)), i) for i in range(4)]
    loader = DataLoader(samples, 4, num_workers=1, collate_fn=Collate(mix), persistent_workers=True)

    def epochs_that_mix(count):
        return sum(bool((images != images[:, :1, :1, :1]).any()) for _ in range(count) for images, _ in loader)

    assert epochs_that_mix(8) > 0
    mix.enabled = False
    next(iter(loader))
    assert epochs_that_mix(8) == 0


def test_it_works_inside_random_choice_and_keeps_the_structure_of_a_batch():
    mix = v2.RandomChoice([CutMixWithLabelMap(), MixUpWithLabelMap()])
    batch = {"image": make_images(), "label": make_batch(), "index": torch.arange(5)[:, None, None]}
    mixed = mix(batch)
    assert mixed.keys() == batch.keys()
    assert mixed["label"].shape == (5, C)
    assert torch.equal(mixed["index"], batch["index"])


@pytest.mark.parametrize("name", ["label", "labels", "soft_targets"])
def test_the_labels_of_a_dict_are_found_by_their_name(name):
    """The first tensor of two dimensions was mixed, and the labels came back as they were."""
    soft = make_batch().scores.new_ones(5, C).softmax(1) * torch.rand(5, C)
    batch = {"size": torch.full((5, 2), 7), "image": make_images(), name: soft}
    mixed = MixUpWithLabelMap()(batch)
    assert torch.equal(mixed["size"], batch["size"])
    assert not torch.equal(mixed[name], soft)


def test_a_dict_without_a_name_that_tells_the_labels_is_refused():
    batch = {"size": torch.full((5, 2), 7), "image": make_images(), "y": torch.rand(5, C)}
    with pytest.raises(
        TypeError, match=r"cannot tell which of \['size'\], \['y'\] are the labels.*one of them 'label'"
    ):
        MixUpWithLabelMap()(batch)


def test_the_labels_of_a_tuple_come_first():
    indices = torch.arange(5)
    _, mixed, rest = CutMixWithLabelMap()(make_images(), torch.rand(5, C), indices)
    assert torch.equal(rest, indices)
    assert mixed.shape == (5, C)


@pytest.mark.parametrize("kind", [CutMixWithLabelMap, MixUpWithLabelMap])
def test_alpha_may_be_a_whole_number(kind):
    """torch draws from no Beta distribution of whole numbers, and said so after the first batch was loaded."""
    torch.manual_seed(0)
    whole = kind(alpha=1)(make_images(), make_batch())
    torch.manual_seed(0)
    assert torch.equal(kind(alpha=1.0)(make_images(), make_batch())[1], whole[1])


def test_an_image_tv_tensor_stays_one():
    images = tv_tensors.Image(make_images())
    for mix in (CutMixWithLabelMap(), CutMixWithLabelMap(per_sample=True), MixUpWithLabelMap()):
        assert type(mix(images, make_batch())[0]) is tv_tensors.Image


def test_half_precision_images_and_scores_give_labels_in_single_precision():
    images, labels = CutMixWithLabelMap(labels="localized")(make_images().half(), make_batch(dtype=torch.float16))
    assert images.dtype == torch.float16
    assert labels.dtype == torch.float32


def test_it_survives_pickling_and_prints_its_settings():
    mix = CutMixWithLabelMap(0.5, labels="localized", prob=0.7)
    again = pickle.loads(pickle.dumps(mix))
    assert "alpha=0.5, labels='localized', per_sample=False, num_classes=None, prob=0.7, enabled=True" in repr(again)
    torch.save(mix.state_dict(), io.BytesIO())


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: CutMixWithLabelMap(alpha=0), ValueError, "alpha is a positive number, got 0"),
        (lambda: CutMixWithLabelMap(torch.ones(1)), ValueError, "alpha is a positive number, got tensor"),
        (
            lambda: MixUpWithLabelMap()(make_images(), torch.rand(5)),
            TypeError,
            r"class indices are integers, got \[5\] floats",
        ),
        (lambda: CutMixWithLabelMap(labels="soft"), ValueError, "labels is one of 'mixed', 'localized', got 'soft'"),
        (lambda: MixUpWithLabelMap(prob=1.5), ValueError, "prob is between 0 and 1, got 1.5"),
        (lambda: CutMixWithLabelMap()(make_images()), TypeError, "needs labels beside the images"),
        (lambda: CutMixWithLabelMap()(make_batch()), TypeError, r"mixes a batch of images \[B, 3, H, W\]"),
        (lambda: CutMixWithLabelMap()(make_images(4), make_batch(5)), ValueError, "got 4 images and 5 labels"),
        (
            lambda: CutMixWithLabelMap()(make_images(), torch.arange(5)),
            ValueError,
            "class indices need CutMixWithLabelMap",
        ),
        (lambda: CutMixWithLabelMap(num_classes=9)(make_images(), make_batch()), ValueError, "the label maps have 10"),
        (
            lambda: CutMixWithLabelMap(labels="localized", num_classes=C)(make_images(), torch.arange(5)),
            ValueError,
            "labels='localized' needs label maps",
        ),
        (
            lambda: MixUpWithLabelMap()(torch.zeros(5, 3, H, W, dtype=torch.uint8), make_batch()),
            TypeError,
            "blends floating point images, got torch.uint8",
        ),
    ],
)
def test_wrong_use_says_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call()


# --- labels of tokens ---


def tokens_of_pixels(images, mixed, grid):
    """How much of each token of a mixed image, of constant images 1, 2, ..., comes from the image before it."""
    own = images[:, 0, 0, 0]
    theirs = own.roll(1)
    share = (mixed[:, :1] - own[:, None, None, None]) / (theirs - own)[:, None, None, None]
    return torch.nn.functional.adaptive_avg_pool2d(share, grid)


@pytest.mark.parametrize("per_sample", [False, True])
@pytest.mark.parametrize("given", ["maps", "labels"])
@pytest.mark.parametrize("labels", ["mixed", "localized"])
def test_cutmix_pastes_each_token_by_the_share_of_it_that_lies_in_the_patch(per_sample, given, labels):
    pooling = LabelPooling((3, 5))
    batch = LabelMapBatch.stack([make_label_map(seed=seed, canvas_size=(12, 20)) for seed in range(4)])
    images = torch.arange(1.0, 5)[:, None, None, None].expand(4, 3, 12, 20).clone()
    own = pooling(batch)
    mix = CutMixWithLabelMap(pooling=pooling, per_sample=per_sample, labels=labels)
    for seed in range(5):
        torch.manual_seed(seed)
        mixed, soft = mix(images, batch if given == "maps" else own)
        share = tokens_of_pixels(images, mixed, (3, 5))
        torch.testing.assert_close(soft, own.roll(1, 0) * share + own * (1 - share), atol=1e-5, rtol=0)


def test_mixup_blends_the_labels_of_tokens():
    pooling = LabelPooling((3, 5))
    batch = LabelMapBatch.stack([make_label_map(seed=seed, canvas_size=(12, 20)) for seed in range(4)])
    images = torch.arange(1.0, 5)[:, None, None, None].expand(4, 3, 12, 20).clone()
    torch.manual_seed(0)
    mixed, soft = MixUpWithLabelMap(pooling=pooling)(images, batch)
    share = tokens_of_pixels(images, mixed, (3, 5))
    own = pooling(batch)
    torch.testing.assert_close(soft, own.roll(1, 0) * share + own * (1 - share), atol=1e-5, rtol=0)
