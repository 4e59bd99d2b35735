from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchvision.ops import roi_align
from torchvision.transforms.v2 import functional as F

from tests.references.label_maps import dense_by_loops, label_maps, make_label_map, view_boxes
from tests.references.sampling import pool_points, softmax
from torchrelabel import LabelMap, LabelMapBatch, LabelPooling, ViewBox
from torchrelabel.calibration import Calibration
from torchrelabel.pooling import dense_scores, pool_dense

OUTPUT_SIZES = st.one_of(st.just(1), st.tuples(st.integers(1, 4), st.integers(1, 4)))


def assert_close(actual, expected, atol=1e-5):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def exactly(view_box):
    """The view as it was meant: fractions of small denominators, of which floats are the nearest."""
    return tuple(Fraction(end).limit_denominator(10000) for end in view_box)


def label_by_points(label_map, fill="zero", bins=(1, 1)):
    """The label ``[C, gh, gw]`` of a view by the slow way: dense map by loops, points one by one, softmax in NumPy."""
    pooled = pool_points(dense_by_loops(label_map, fill), exactly(label_map.view_box), bins)
    if label_map.score_kind == "logit":
        return softmax(pooled)
    total = pooled.sum(0)
    return np.where(total > 0, pooled / np.where(total > 0, total, 1), 1 / label_map.num_classes)


def halves(axis, grid=(7, 5), canvas_size=(17, 11), view_box=ViewBox()):
    """A map with class 0 on its left or upper half and class 1 on the other, nothing at all in the middle."""
    scores = torch.zeros(1, *grid)
    classes = torch.zeros(1, *grid, dtype=torch.long)
    middle = grid[axis] // 2
    before, after = ((slice(None),) * (axis + 1) + (part,) for part in (slice(None, middle), slice(middle + 1, None)))
    scores[before], scores[after], classes[after] = 10.0, 10.0, 1
    return LabelMap(scores, classes, num_classes=3, canvas_size=canvas_size, view_box=view_box)


# --- the reference itself ---


@given(label_maps(), st.sampled_from(["zero", "residual"]))
@settings(max_examples=30)
def test_dense_scores_are_those_of_a_loop_over_all_cells(label_map, fill):
    assert_close(dense_scores(label_map, fill), dense_by_loops(label_map, fill), atol=1e-4)


def test_dense_scores_of_a_batch_are_those_of_its_maps():
    maps = [make_label_map(seed=seed) for seed in range(3)]
    assert_close(dense_scores(LabelMapBatch.stack(maps)), torch.stack([dense_scores(one) for one in maps]), atol=0)


@given(label_maps(), st.sampled_from(["zero", "residual"]), OUTPUT_SIZES)
@settings(max_examples=100)
def test_the_dense_way_equals_sampling_point_by_point(label_map, fill, output_size):
    pooling = LabelPooling(output_size, fill)
    bins = pooling.output_size
    label = pool_dense(label_map, pooling)
    expected = label_by_points(label_map, fill, bins)
    assert_close(label, expected if bins != (1, 1) else expected[:, 0, 0], atol=2e-5)


@pytest.mark.parametrize(
    "box", [(0.05, 0.1, 0.55, 0.5), (0, 0, 1, 1), (0.4, 0.2, 0.95, 1), (0.123, 0.456, 0.789, 0.999)]
)
def test_the_dense_way_equals_the_call_of_the_papers_code(box):
    # relabel_imagenet/utils/relabel_functions.py: fractions * 15 - 0.5 and aligned=False, softmax over the classes.
    label_map = make_label_map(grid=(15, 15), top_k=5, num_classes=50, view_box=ViewBox(*box))
    boxes_in_map = torch.tensor([[0.0, *box]])
    boxes_in_map[:, 1:] = boxes_in_map[:, 1:] * 15 - 0.5
    dense = torch.tensor(dense_by_loops(label_map), dtype=torch.float32)[None]
    papers = roi_align(dense, boxes_in_map, (1, 1), sampling_ratio=-1, aligned=False)[0, :, 0, 0].softmax(0)
    assert_close(pool_dense(label_map), papers)


# --- calibrated labels ---

CALIBRATION = Calibration((0.7, -0.2, 0.1), (0.4, 0.3, 0.05), 0.08)


def calibrated_by_loops(label_map, bins=(1, 1)):
    """Labels ``[C, gh, gw]`` by the slow way: the dense map by loops, points one by one, weights by hand."""
    x1, y1, x2, y2 = (min(max(end, 0.0), 1.0) for end in label_map.view_box)
    area = abs((x2 - x1) * (y2 - y1))
    if bins != (1, 1):  # tokens: the map alone
        return softmax(pool_points(dense_by_loops(label_map, "auto"), exactly(label_map.view_box), bins))
    if area == 0:
        return np.full((label_map.num_classes, *bins), 1 / label_map.num_classes)
    log_area = np.log(max(area, 0.08))
    of_map = 0.7 - 0.2 * log_area + 0.1 * log_area**2
    of_image = 0.4 + 0.3 * log_area + 0.05 * log_area**2
    pooled = pool_points(dense_by_loops(label_map, "auto"), exactly(label_map.view_box), bins)
    return softmax(of_map * pooled + of_image * label_map.image_scores.double().numpy()[:, None, None])


@given(label_maps(score_kind="logit", calibration=CALIBRATION, dtype=torch.float32), OUTPUT_SIZES)
@settings(max_examples=100)
def test_a_calibrated_label_is_that_of_the_slow_way(label_map, output_size):
    pooling = LabelPooling(output_size)
    expected = calibrated_by_loops(label_map, pooling.output_size)
    expected = expected if pooling.output_size != (1, 1) else expected[:, 0, 0]
    # What the classes not kept have of the whole image is one less what the others have, in single precision.
    assert_close(pooling(label_map), expected, atol=1e-4)
    assert_close(pool_dense(label_map, pooling), expected, atol=1e-4)


@given(st.data(), st.integers(1, 5), OUTPUT_SIZES)
@settings(max_examples=50)
def test_a_calibrated_batch_gives_what_its_maps_give(data, size, output_size):
    first = data.draw(label_maps(score_kind="logit", calibration=CALIBRATION))
    boxes = [data.draw(view_boxes()) for _ in range(size)]
    maps = [first.with_view(box) for box in boxes]
    pooling = LabelPooling(output_size)
    assert_close(pooling(LabelMapBatch.stack(maps)), torch.stack([pooling(one) for one in maps]))


@pytest.mark.parametrize("fill", ["zero", "residual"])
def test_the_papers_rule_is_one_argument_away_from_a_calibrated_map(fill):
    calibrated = make_label_map(calibration=CALIBRATION, view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    plain = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    assert torch.equal(calibrated.scores, plain.scores)
    assert_close(LabelPooling(fill=fill)(calibrated), LabelPooling(fill=fill)(plain), atol=0)
    assert not torch.allclose(LabelPooling()(calibrated), LabelPooling(fill=fill)(plain), atol=0.01)


def test_maps_that_nobody_calibrated_follow_the_papers_rule():
    label_map = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    assert_close(LabelPooling()(label_map), LabelPooling(fill="zero")(label_map), atol=0)


def test_the_smaller_a_crop_the_more_counts_what_its_cells_say():
    corner = Calibration((1.0, -1.0), (1.0, 1.0), 0.05)
    settings = {"num_classes": 3, "canvas_size": (17, 11), "calibration": corner}
    scores, classes = torch.tensor([[[6.0]]]), torch.tensor([[[1]]])  # one cell, which is class 1
    label_map = LabelMap(
        scores, classes, residual=torch.tensor([[0.0]]), image_scores=torch.tensor([6.0, 0.0, 0.0]), **settings
    )
    whole, half, tenth = (LabelPooling()(label_map.with_view(ViewBox(0, 0, 1, side))) for side in (1.0, 0.5, 0.1))
    assert whole[1] < half[1] < tenth[1]
    assert whole[0] > half[0] > tenth[0]


def test_a_crop_smaller_than_those_of_the_calibration_counts_as_the_smallest():
    label_map = make_label_map(grid=(1, 1), calibration=CALIBRATION)
    one, other = (LabelPooling()(label_map.with_view(ViewBox(0, 0, side, side))) for side in (0.08**0.5, 0.01))
    assert_close(one, other)


def test_a_sure_image_leaves_a_finite_label():
    # The class that the cell keeps has all but 1e-18 of the whole image, so that nothing is left for the others.
    label_map = LabelMap(
        torch.tensor([[[40.0]]]),
        torch.tensor([[[0]]]),
        num_classes=3,
        canvas_size=(17, 11),
        residual=torch.tensor([[-2.0]]),
        image_scores=torch.tensor([40.0, -2.0, -3.0]),
        calibration=CALIBRATION,
    )
    label = LabelPooling()(label_map)
    assert label.isfinite().all()
    assert label[0] > 0.99


def test_probabilities_cannot_be_calibrated():
    with pytest.raises(ValueError, match="The image_scores of a label map are logits"):
        make_label_map(score_kind="probability", calibration=CALIBRATION)


def test_a_calibration_needs_the_residual():
    with pytest.raises(ValueError, match="needs its image_scores, and its residual unless K = C"):
        make_label_map(residual=False, calibration=CALIBRATION)


# --- the fast way ---


@given(label_maps(), st.sampled_from(["zero", "residual"]), OUTPUT_SIZES)
@settings(max_examples=200)
def test_one_map_equals_the_dense_way(label_map, fill, output_size):
    pooling = LabelPooling(output_size, fill)
    label = pooling(label_map)
    assert label.dtype == torch.float32
    assert_close(label, pool_dense(label_map, pooling))


@given(st.data(), st.integers(1, 6), st.sampled_from(["zero", "residual"]), OUTPUT_SIZES)
@settings(max_examples=100)
def test_a_batch_equals_the_dense_way_for_each_of_its_maps(data, size, fill, output_size):
    first = data.draw(label_maps())
    maps = [first]
    for seed in range(1, size):
        again = make_label_map(
            grid=first.grid,
            top_k=first.shape[0],
            num_classes=first.num_classes,
            score_kind=first.score_kind,
            dtype=first.dtype,
            classes_dtype=first.classes.dtype,
            view_box=data.draw(view_boxes()),
            seed=seed,
        )
        maps.append(again)
    pooling = LabelPooling(output_size, fill)
    labels = pooling(LabelMapBatch.stack(maps))
    assert_close(labels, torch.stack([pool_dense(one, pooling) for one in maps]))


@given(label_maps(score_kind="logit"), st.floats(0.1, 10), st.sampled_from(["auto", "softmax", "argmax", None]))
@settings(max_examples=60)
def test_every_activation_and_temperature_equals_the_dense_way(label_map, temperature, activation):
    pooling = LabelPooling(temperature=temperature, activation=activation)
    label, expected = pooling(label_map), pool_dense(label_map, LabelPooling(temperature=temperature, activation=None))
    if activation is None:
        assert_close(label * temperature, expected * temperature)
    elif activation == "argmax":
        assume(expected.max() > expected.min())  # a view that lies outside of the image shows no class
        assert sorted(label.tolist()) == [0.0] * (label_map.num_classes - 1) + [1.0]
        assert float((label * expected).sum()) == pytest.approx(float(expected.max()), abs=1e-4)
    else:
        assert_close(label, softmax(expected.double().numpy()))


def test_a_temperature_divides_the_pooled_logits():
    label_map = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    pooled = LabelPooling(activation=None)(label_map)
    assert_close(LabelPooling(temperature=4.0)(label_map), softmax(pooled.numpy() / 4))


def test_pooling_comes_before_the_softmax():
    label_map = LabelMap(torch.tensor([[[8.0, 0.0]]]), torch.tensor([[[0, 1]]]), num_classes=3, canvas_size=(17, 11))
    assert_close(LabelPooling()(label_map), softmax(np.array([4.0, 0, 0])))


@given(label_maps(), st.sampled_from(["zero", "residual"]))
@settings(max_examples=50)
def test_the_whole_image_is_the_mean_of_all_cells(label_map, fill):
    whole = label_map.with_view(ViewBox())
    pooled = LabelPooling(fill=fill, activation=None)(whole)
    assert_close(pooled, dense_by_loops(whole, fill).mean((1, 2)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.bfloat16])
def test_labels_are_single_precision_whatever_the_scores_are(dtype):
    label_map = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9)).to(dtype)
    label = LabelPooling(fill="residual")(label_map)
    assert label.dtype == torch.float32
    assert_close(label, label_by_points(label_map, "residual")[:, 0, 0])


def test_a_side_of_just_three_cells_takes_three_samples_wherever_it_lies():
    # In single precision one box in seven is a hair more than three cells wide, and took a fourth sample.
    scores = torch.arange(15.0).square().expand(1, 3, 15).clone()
    classes = torch.zeros(1, 3, 15, dtype=torch.long)
    for hundredth in range(80):
        left = Fraction(hundredth, 100)
        view = (left, Fraction(0), left + Fraction(1, 5), Fraction(1))
        label_map = LabelMap(
            scores, classes, num_classes=2, canvas_size=(17, 11), view_box=ViewBox(*(float(end) for end in view))
        )
        expected = pool_points(dense_by_loops(label_map), view)[:, 0, 0]
        pooling = LabelPooling(activation=None)
        batch = LabelMapBatch.stack([label_map])
        for pooled in (pooling(label_map), pooling(batch)[0], pool_dense(label_map, pooling)):
            torch.testing.assert_close(pooled.double(), torch.tensor(expected), rtol=1e-5, atol=1e-4)


# --- x is x and y is y ---


@pytest.mark.parametrize("axis, box", [(1, (0, 0, 5, 17)), (0, (0, 0, 11, 8))])
@pytest.mark.parametrize("pool", [LabelPooling(), pool_dense])
def test_cropping_to_a_half_gives_the_class_of_that_half_alone(pool, axis, box):
    x1, y1, x2, y2 = box
    for grid in ((7, 5), (5, 7)):
        seen = F.crop(halves(axis, grid), y1, x1, y2 - y1, x2 - x1)
        first = pool(seen)
        assert first.argmax() == 0
        # The crop ends in the empty middle, where neither class is: the other class gets what class 2 gets.
        assert_close(first[1], first[2])


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("pool", [LabelPooling(), pool_dense])
def test_cropping_to_the_other_half_gives_the_other_class_alone(pool, axis):
    top, left, height, width = ((9, 0, 8, 11), (0, 6, 17, 5))[axis]
    last = pool(F.crop(halves(axis), top, left, height, width))
    assert last.argmax() == 1
    assert_close(last[0], last[2])


@pytest.mark.parametrize("axis", [0, 1])
def test_the_swapped_axes_of_the_predecessors_would_fail_these_tests(axis):
    # They build (top/H, left/W, ...) and hand it on as (x1, y1, ...): half and half, instead of one class alone.
    height, width = ((8, 11), (17, 5))[axis]
    seen = F.crop(halves(axis), 0, 0, height, width)
    x1, y1, x2, y2 = seen.view_box
    swapped = LabelPooling()(seen.with_view(ViewBox(y1, x1, y2, x2)))
    assert abs(float(swapped[0] - swapped[1])) < 0.2
    assert abs(float(swapped[1] - swapped[2])) > 0.2


# --- fills ---


def test_a_lone_logit_of_8_among_zeros_gets_three_quarters_of_1000_classes():
    # e^8 / (e^8 + 999) = 0.749: the other quarter is an artefact of the zeros.
    lone = LabelMap(torch.full((1, 7, 5), 8.0), torch.full((1, 7, 5), 3), num_classes=1000, canvas_size=(17, 11))
    assert float(LabelPooling()(lone)[3]) == pytest.approx(0.749, abs=5e-4)


@given(label_maps(score_kind="logit", view_box=ViewBox(0.3, 0.1, 0.9, 0.8)))
@settings(max_examples=40)
def test_the_residual_is_exact_where_all_other_classes_are_equal(label_map):
    # Build a true dense map whose classes outside the top k are equal in each cell, and keep its residual.
    k, num_classes = label_map.shape[0], label_map.num_classes
    rng = np.random.default_rng(0)
    truth = np.tile(rng.normal(0, 2, (1, *label_map.grid)), (num_classes, 1, 1))
    np.put_along_axis(truth, label_map.classes.long().numpy(), label_map.scores.double().numpy(), axis=0)
    others = np.ones_like(truth, dtype=bool)
    np.put_along_axis(others, label_map.classes.long().numpy(), False, axis=0)
    left = np.log(np.where(others, np.exp(truth), 0).sum(0)) if k < num_classes else np.zeros(label_map.grid)
    kept = LabelMap(
        label_map.scores,
        label_map.classes,
        num_classes=num_classes,
        canvas_size=(17, 11),
        residual=torch.tensor(left, dtype=torch.float32),
        view_box=label_map.view_box,
    )
    expected = softmax(pool_points(truth, exactly(kept.view_box))[:, 0, 0])
    assert_close(LabelPooling(fill="residual")(kept), expected)


def test_the_residual_invents_no_mass():
    # One cell whose 1000 true logits are known: a logit of 8 is nearly certain among classes of -4.
    left = -4 + np.log(999)
    one = LabelMap(
        torch.tensor([[[8.0]]]),
        torch.tensor([[[3]]]),
        num_classes=1000,
        canvas_size=(17, 11),
        residual=torch.tensor([[left]], dtype=torch.float32),
    )
    truth = np.full(1000, -4.0)
    truth[3] = 8
    assert_close(LabelPooling(fill="residual")(one), softmax(truth))
    assert float(LabelPooling(fill="residual")(one)[3]) > 0.99 > float(LabelPooling(fill="zero")(one)[3])


def test_a_residual_is_not_asked_for_where_every_class_is_kept():
    label_map = make_label_map(top_k=4, num_classes=4, residual=False)
    assert_close(LabelPooling(fill="residual")(label_map), LabelPooling()(label_map), atol=0)


@pytest.mark.parametrize("batch", [True, False])
def test_a_residual_that_is_not_there_is_an_error(batch):
    label_map = make_label_map(residual=False)
    words = (
        "fill='residual' needs maps with a residual, and these have none. Annotate without --no-residual, "
        "or use fill='zero'."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        LabelPooling(fill="residual")(LabelMapBatch.stack([label_map]) if batch else label_map)


# --- what a label is ---


@given(label_maps(), st.sampled_from(["zero", "residual"]), OUTPUT_SIZES)
@settings(max_examples=60)
def test_a_label_sums_to_one_and_has_nothing_negative(label_map, fill, output_size):
    label = LabelPooling(output_size, fill)(label_map)
    assert_close(label.sum(0), torch.ones(label.shape[1:]))
    assert float(label.min()) >= 0


def test_probabilities_are_pooled_as_they_are():
    probabilities = torch.tensor([[[0.5, 0.25]], [[0.25, 0.25]]])
    classes = torch.tensor([[[0, 1]], [[1, 2]]])
    label_map = LabelMap(probabilities, classes, num_classes=4, canvas_size=(17, 11), score_kind="probability")
    assert_close(LabelPooling(activation=None)(label_map), [0.25, 0.25, 0.125, 0])
    assert_close(LabelPooling()(label_map), [0.4, 0.4, 0.2, 0])


def test_argmax_is_the_localized_single_label_of_the_paper():
    label_map = halves(1)
    assert LabelPooling(activation="argmax")(F.crop(label_map, 0, 6, 17, 5)).tolist() == [0, 1, 0]


def test_the_whole_image_is_the_global_label_of_the_paper():
    label_map = halves(1, grid=(4, 7))
    seen = F.crop(label_map, 0, 6, 17, 5)
    label = LabelPooling()(seen.with_view(ViewBox()))
    assert_close(label, softmax(np.array([30 / 7, 30 / 7, 0])))


@given(label_maps(), st.sampled_from([(1.25, 2), (-3, 0), (2, 1.5), (1, 1.5)]), st.booleans(), OUTPUT_SIZES)
@settings(max_examples=60)
def test_a_view_outside_the_image_shows_every_class_alike(label_map, ends, across, output_size):
    view_box = ViewBox(*((ends[0], 0.2, ends[1], 0.7) if across else (0.2, ends[0], 0.7, ends[1])))
    for activation in ("auto", "argmax"):
        label = LabelPooling(output_size, activation=activation)(label_map.with_view(view_box))
        assert_close(label, torch.full_like(label, 1 / label_map.num_classes))


@given(label_maps())
@settings(max_examples=60)
def test_a_view_that_reaches_outside_pools_only_the_part_inside(label_map):
    x1, y1, x2, y2 = (min(max(end, 0.0), 1.0) for end in label_map.view_box)
    if x1 == x2 or y1 == y2:
        return  # nothing inside: the test above
    inside = label_map.with_view(ViewBox(x1, y1, x2, y2))
    assert_close(LabelPooling()(label_map), LabelPooling()(inside))


# --- token grids ---


def test_token_labels_flip_with_the_view():
    label_map = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    pooling = LabelPooling((3, 2))
    assert_close(pooling(F.horizontal_flip(label_map)), pooling(label_map).flip(2))
    assert_close(pooling(F.vertical_flip(label_map)), pooling(label_map).flip(1))


def test_token_labels_of_a_padded_view_stay_with_their_tokens():
    # The box was cut to the image first and then divided, which moved every label towards the padding.
    label_map = make_label_map(grid=(4, 6))
    pooling = LabelPooling((4, 6))
    whole = pooling(label_map)
    padded = LabelPooling((6, 10))(label_map.with_view(ViewBox(-2 / 6, -1 / 4, 8 / 6, 5 / 4)))
    assert_close(padded[:, 1:5, 2:8], whole)
    assert_close(padded[:, 0], torch.full((10, 10), 0.1))
    assert_close(padded[:, :, 8:], torch.full((10, 6, 2), 0.1))


def test_a_token_for_each_cell_is_the_softmax_of_that_cell():
    label_map = make_label_map(grid=(7, 5))
    assert_close(LabelPooling((7, 5))(label_map), softmax(dense_by_loops(label_map)))


def test_one_number_means_as_many_tokens_each_way():
    label_map = make_label_map()
    assert_close(LabelPooling(3)(label_map), LabelPooling((3, 3))(label_map), atol=0)


# --- regions that are no box ---


@pytest.mark.parametrize("fill", ["zero", "residual"])
def test_pool_cells_is_the_weighted_mean_of_the_dense_map(fill):
    maps = [make_label_map(seed=seed) for seed in range(3)]
    weights = torch.rand(3, 7, 5)
    weights = weights / weights.sum((1, 2), keepdim=True)
    pooled = LabelPooling(fill=fill).pool_cells(LabelMapBatch.stack(maps), weights, torch.ones(len(maps)))
    expected = [
        (dense_by_loops(one, fill) * share.numpy()).sum((1, 2)) for one, share in zip(maps, weights, strict=True)
    ]
    assert_close(pooled, np.stack(expected))
    assert_close(LabelPooling(fill=fill).pool_cells(maps[1], weights[1], torch.ones(())), expected[1])


# --- as a module ---


@given(st.sampled_from(["zero", "residual"]), OUTPUT_SIZES, st.sampled_from(["logit", "probability"]))
@settings(max_examples=10)
def test_an_empty_batch_gives_no_labels(fill, output_size, score_kind):
    batch = LabelMapBatch.stack([make_label_map(score_kind=score_kind)])[[]]
    pooling = LabelPooling(output_size, fill)
    grid = () if pooling.output_size == (1, 1) else pooling.output_size
    assert pooling(batch).shape == (0, 10, *grid)


def test_autocast_changes_nothing():
    batch = LabelMapBatch.stack([make_label_map(seed=seed, view_box=ViewBox(0.1, 0.2, 0.7, 0.9)) for seed in range(3)])
    expected = LabelPooling()(batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        label = LabelPooling()(batch)
    assert label.dtype == torch.float32
    assert_close(label, expected, atol=0)


def test_gradients_reach_the_scores_as_through_the_dense_way():
    label_map = make_label_map(view_box=ViewBox(0.1, 0.2, 0.7, 0.9))
    gradients = []
    for pool in (LabelPooling(), pool_dense):
        scores = label_map.scores.clone().requires_grad_()
        mine = LabelMap(scores, label_map.classes, num_classes=10, canvas_size=(17, 11), view_box=label_map.view_box)
        pool(mine)[2].backward()
        gradients.append(scores.grad)
    assert_close(*gradients)


def test_inference_mode_leaves_nothing_behind_that_training_stumbles_over():
    with torch.inference_mode():
        LabelPooling()(make_label_map())
    scores = make_label_map().scores.clone().requires_grad_()
    mine = LabelMap(scores, make_label_map().classes, num_classes=10, canvas_size=(17, 11))
    LabelPooling()(mine)[0].backward()
    assert float(scores.grad.abs().sum()) > 0


@pytest.mark.parametrize("fill", ["zero", "residual"])
@pytest.mark.parametrize("output_size", [1, (3, 2)])
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("default::DeprecationWarning")
def test_it_compiles_into_one_graph(backend, output_size, fill):
    boxes = [ViewBox(0.1, 0.2, 0.7, 0.9), ViewBox(1, 0, 0.5, 1.5)]
    batch = LabelMapBatch.stack([make_label_map(seed=i, view_box=box) for i, box in enumerate(boxes)])
    pooling = LabelPooling(output_size, fill)
    torch.compiler.reset()
    assert_close(torch.compile(pooling, fullgraph=True, backend=backend)(batch), pooling(batch))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="NO CUDA HERE: pooling on a GPU is not tested")
@pytest.mark.parametrize("fill", ["zero", "residual"])
@pytest.mark.parametrize("output_size", [1, (3, 2)])
def test_a_gpu_gives_the_same_labels(fill, output_size):
    boxes = [ViewBox(0.1, 0.2, 0.7, 0.9), ViewBox(1, 0, 0.5, 1.5), ViewBox(0.2, 0.2, 0.8, 0.6)]
    batch = LabelMapBatch.stack([make_label_map(seed=i, view_box=box) for i, box in enumerate(boxes)])
    pooling = LabelPooling(output_size, fill)
    assert_close(pooling(batch.to("cuda")).cpu(), pooling(batch))
    assert_close(pooling(batch[0].to("cuda")).cpu(), pooling(batch[0]))


def test_it_has_no_parameters_and_no_state():
    assert not list(LabelPooling().parameters())
    assert not LabelPooling().state_dict()


def test_it_prints_its_settings():
    assert repr(LabelPooling((3, 2), "residual", 2, None)) == (
        "LabelPooling(output_size=(3, 2), fill='residual', temperature=2.0, activation=None)"
    )


# --- errors ---


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"fill": "zeros"}, "fill is one of 'auto', 'zero', 'residual', got 'zeros'."),
        (
            {"activation": "tanh"},
            "activation is one of 'auto', 'softmax', 'argmax', 'sigmoid', 'multi-hot', None, got 'tanh'.",
        ),
        ({"temperature": 0}, "temperature must be positive and finite, got 0."),
        ({"temperature": -1.5}, "temperature must be positive and finite, got -1.5."),
        ({"temperature": float("inf")}, "temperature must be positive and finite, got inf."),
        ({"temperature": float("nan")}, "temperature must be positive and finite, got nan."),
        ({"output_size": 0}, "output_size is 1, or the (height, width) of a grid of tokens, got 0."),
        ({"output_size": (3,)}, "output_size is 1, or the (height, width) of a grid of tokens, got (3,)."),
        ({"output_size": (3, -2)}, "output_size is 1, or the (height, width) of a grid of tokens, got (3, -2)."),
        ({"output_size": (3, 2.0)}, "output_size is 1, or the (height, width) of a grid of tokens, got (3, 2.0)."),
        ({"output_size": 1.0}, "output_size is 1, or the (height, width) of a grid of tokens, got 1.0."),
    ],
)
def test_a_wrong_argument_is_an_error(arguments, words):
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        LabelPooling(**arguments)


@pytest.mark.parametrize("arguments", [{"temperature": 2.0}, {"activation": "softmax"}])
def test_probabilities_have_no_temperature_and_no_softmax(arguments):
    pooling = LabelPooling(**arguments)
    words = (
        f"temperature={pooling.temperature} and activation={pooling.activation!r} are for logits, and this map holds "
        f"probabilities: use temperature=1.0 and activation='auto', which normalises them."
    )
    with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
        pooling(make_label_map(score_kind="probability"))


@pytest.mark.parametrize("pool", [LabelPooling(), pool_dense])
def test_only_label_maps_can_be_pooled(pool):
    words = (
        "Only a LabelMap or a LabelMapBatch can be pooled, got Tensor. If it is a soft label, it was pooled already. "
        "Of a store's records, store.label_map(key) and store.soft_label(key, box) give maps and labels."
    )
    with pytest.raises(TypeError, match=f"^{re.escape(words)}"):
        pool(torch.zeros(10))


# --- several classes at once ---


def test_multi_hot_is_one_where_the_share_reaches_the_threshold():
    for kind in ("logit", "probability"):
        label_map = make_label_map(score_kind=kind)
        shares = LabelPooling(fill="residual")(label_map)
        threshold = shares.sort().values[-3].item() - 1e-6
        multi_hot = LabelPooling(fill="residual", activation="multi-hot", threshold=threshold)(label_map)
        assert multi_hot.tolist() == (shares >= threshold).float().tolist()
        assert multi_hot.sum() == 3


def test_sigmoid_takes_each_class_on_its_own():
    label_map = make_label_map()
    pooled = LabelPooling(activation=None)(label_map)
    torch.testing.assert_close(LabelPooling(activation="sigmoid")(label_map), pooled.sigmoid())
    with pytest.raises(ValueError, match="activation='sigmoid' are for logits"):
        LabelPooling(activation="sigmoid")(make_label_map(score_kind="probability"))


@pytest.mark.parametrize("threshold", [0, -0.1, 1.5, float("nan")])
def test_a_threshold_that_is_no_share_is_an_error(threshold):
    with pytest.raises(ValueError, match="threshold is a share of the label"):
        LabelPooling(activation="multi-hot", threshold=threshold)
