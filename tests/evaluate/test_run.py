"""One model on every kind of data set, tiny, with answers worked out by hand; and what is wrong with such folders."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo, RealLabelsImagenet

from tests.annotate.models import make_folder, make_model
from tests.evaluate.painted import Colours, Grey, classifier, colour, grey, paint, run, val
from tests.evaluate.test_backgrounds import make as make_backgrounds
from torchrelabel.errors import TorchRelabelError
from torchrelabel.evaluate import evaluate, shifts

SYNSETS = ImageNetInfo().label_names()


@pytest.fixture
def forty(tmp_path: Path) -> Path:
    """A folder for each of 40 classes; of 42 images, those of classes 3 and 4 look otherwise.

    Grey's top five of an image that looks like class c are c, c + 1, c - 1, c + 2, c - 2. So 3 looks like 5 and is
    among the five; 4 looks like 30 and is not; the last two images of class 0 look like 0 and 1.
    """
    looks = {class_: class_ for class_ in range(40)} | {3: 5, 4: 30}
    images = [(f"{class_:02}/a.png", grey(look)) for class_, look in looks.items()]
    return paint(tmp_path / "val", [*images, ("00/b.png", grey(0)), ("00/c.png", grey(1))])


@pytest.fixture
def four(tmp_path: Path) -> Path:
    """Four images of ImageNet's: the first two look like their class, the others like 7 and 0."""
    truth_and_look = [(1, 1), (2, 2), (3, 7), (999, 0)]
    return paint(
        tmp_path / "imagenet",
        [(f"{SYNSETS[truth]}/{val(n + 1)}", colour(look)) for n, (truth, look) in enumerate(truth_and_look)],
    )


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_forty_classes_have_their_top_1_and_top_5(forty: Path) -> None:
    result = run(Grey(), data=forty)
    assert result["top1"] == 39 / 42
    assert result["top5"] == 41 / 42
    assert result.images["top1"] == 42
    assert not result.losses


def test_the_calibration_error_is_that_of_the_softmax(forty: Path) -> None:
    pytest.importorskip("torchmetrics")
    # Scores of -0.1 for the class, -2.5 and -4.9 for its neighbours; all confidences lie in one bin of fifteen.
    inner = 1 / (1 + math.exp(-2.4) + math.exp(-4.8) + math.exp(-12) + math.exp(-16.8))
    assert 13 / 15 < inner < 14 / 15
    outer = 1 / (1 + math.exp(-2.4) + math.exp(-12))  # class 0 has a neighbour on one side only
    last = 1 / (1 + math.exp(-4.8) + math.exp(-16.8))
    confidences = [inner] * (38 + 1) + [outer] * 2 + [last]
    hits_in_bin, in_bin = 38, 41  # all but the last, which is alone in the bin above and right
    bin_error = abs(sum(confidences[:41]) / in_bin - hits_in_bin / in_bin) * in_bin / 42
    assert run(Grey(), data=forty)["calibration_error"] == pytest.approx(bin_error + (1 - last) / 42, abs=1e-4)


def test_up_to_five_classes_have_no_top_5(tmp_path: Path) -> None:
    result = run(Grey(5), data=paint(tmp_path, [(f"{class_}/a.png", grey(class_)) for class_ in range(5)]))
    assert result["top1"] == 1
    assert result.left_out["top5"] == "of 5 classes, it would be 100 %"
    with pytest.raises(KeyError, match="top5: of 5 classes"):
        result["top5"]


def test_real_accuracy_joins_images_and_labels_by_number(four: Path, tmp_path: Path) -> None:
    # Image 1 has no label; 2 looks like 2, not among its own; 3 like 7, which is; 4 like 0, which is among three.
    real = write(tmp_path / "real.json", [[], [5], [7, 8], [0, 10, 200]])
    result = run(Colours(), data=four, real=real)
    assert result["top1"] == 2 / 4
    assert result["real"] == 2 / 3
    assert result["real_f1"] == pytest.approx((0 + 2 / 3 + 2 / 4) / 3)
    assert result.images["real"] == 3


def test_a_part_of_the_images_has_a_part_of_the_real_labels_and_that_is_said(four: Path, tmp_path: Path) -> None:
    real = write(tmp_path / "real.json", [[], [5], [7, 8], [0], [1], []])
    assert "real: 3 of the 4 images with ReaL labels are here." in run(Colours(), data=four, real=real).notes


def test_what_pil_warns_about_is_said_once(forty: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.Image.MAX_IMAGE_PIXELS", 40)  # of 64: more than allowed, less than twice as many
    result = run(Grey(), data=forty, occlusion=True)
    (note,) = [note for note in result.notes if "PIL" in note]
    assert note.startswith("data: PIL warned about 42 images; 00/a.png: Image size (64 pixels) exceeds limit of 40")


def test_real_top_5_counts_the_five_nearest(four: Path, tmp_path: Path) -> None:
    # 0 looks like black: 1, 10 and 100 are as near as each other, 11, 101 and 110 farther away than 4 places allow.
    real = write(tmp_path / "real.json", [[], [], [], [100, 500]])
    result = run(Colours(), data=four, real=real)
    assert (result["real"], result["real_top5"]) == (0, 1)


def test_sigmoids_predict_what_passes_the_threshold(four: Path, tmp_path: Path) -> None:
    class Some(Colours):
        """Of every image, classes 0 and 7 with probabilities .6 and .3, and none else."""

        def forward(self, images):
            scores = torch.full((len(images), 1000), -20.0)
            scores[:, 0], scores[:, 7] = math.log(0.6 / 0.4), math.log(0.3 / 0.7)
            return scores

    real = write(tmp_path / "real.json", [[], [0], [0, 7], [7]])
    half = run(Some(), data=four, real=real, sigmoid=True)
    assert half["real_f1"] == pytest.approx((1 + 2 / 3 + 0) / 3)
    assert half["label_coverage"] == 1
    quarter = run(Some(), data=four, real=real, sigmoid=True, threshold=0.25)
    assert quarter["real_f1"] == pytest.approx((2 / 3 + 1 + 2 / 3) / 3)
    assert quarter["label_coverage"] == 2
    above = run(Some(), data=four, real=real, sigmoid=True, threshold=0.9)
    assert above["real_f1"] == half["real_f1"]  # the best class counts even then


def test_real_accuracies_are_those_of_timm(tmp_path: Path) -> None:
    model = make_model("mobilenetv3_small_050")
    keys = [f"{SYNSETS[number * 31]}/{val(number + 1)}" for number in range(24)]
    make_folder(tmp_path / "val", keys, size=(41, 33))
    ours = classifier(model, image_size=32)
    with torch.no_grad():
        from torchrelabel.annotate.images import find_images, open_image

        keys = find_images(tmp_path / "val").keys
        scores = torch.cat(
            [ours((ours.transform(open_image(tmp_path / "val" / key)).float() / 255)[None]) for key in keys]
        )
    # Labels that are right for some, so that the shares are neither 0 nor 1.
    rng = np.random.default_rng(3)
    top = dict(zip(keys, scores.topk(9).indices.tolist(), strict=True))
    labels = []
    for number in range(24):
        row = top[next(key for key in keys if key.endswith(val(number + 1)))]
        labels.append([] if number % 5 == 4 else sorted({int(rng.integers(1000)), row[int(rng.integers(9))]}))
    real = write(tmp_path / "real.json", labels)
    theirs = RealLabelsImagenet(keys, real_json=str(real))
    theirs.add_result(scores)
    result = evaluate(ours, data=tmp_path / "val", real=real, workers=0)
    assert result["real"] * 100 == pytest.approx(theirs.get_accuracy(1))
    assert result["real_top5"] * 100 == pytest.approx(theirs.get_accuracy(5))
    assert 0 < result["real"] < result["real_top5"] < 1


def shankar(**images: Any) -> dict[str, Any]:
    annotations = {
        val(int(number[1:])): {kind: [SYNSETS[c] for c in classes] for kind, classes in each.items()}
        for number, each in images.items()
    }
    return {"initial_annots": annotations, "problematic_images": {val(4): "drawing"}}


def test_shankars_accuracy_is_lenient_and_strict_over_images_and_over_classes(tmp_path: Path) -> None:
    # Two images of class 1 that look like 1 and 5, one of class 2 that looks like 6, a problematic one, one without.
    data = paint(
        tmp_path / "val",
        [
            (f"{SYNSETS[truth]}/{val(number)}", colour(look))
            for number, truth, look in [(1, 1, 1), (2, 1, 5), (3, 2, 6), (4, 2, 2), (5, 2, 2)]
        ],
    )
    file = shankar(_1={"correct": [1]}, _2={"correct": [1], "wrong": [5]}, _3={"correct": [2], "unclear": [6]},
                   _4={"correct": [2]})  # fmt: skip
    result = run(Colours(), data=data, multilabel=write(tmp_path / "human.json", file))
    assert result["multilabel"] == 2 / 3
    assert result["multilabel_strict"] == 1 / 3
    assert result["multilabel_per_class"] == (1 / 2 + 1) / 2
    assert result["multilabel_strict_per_class"] == (1 / 2 + 0) / 2
    assert result.images["multilabel"] == 3


def test_each_set_of_imagenet_v2_is_measured_by_the_numbers_of_its_folders(tmp_path: Path) -> None:
    # In the alphabet, 2 comes after 10: as the third of its folders it would be wrong.
    paint(tmp_path / "imagenetv2-matched-frequency-format-val",
          [(f"{number}/a.jpeg", grey(number)) for number in range(12)])  # fmt: skip
    paint(tmp_path / "imagenetv2-top-images-format-val", [("2/a.jpeg", grey(2)), ("10/a.jpeg", grey(3))])
    result = run(Grey(), v2=tmp_path)
    assert (result["v2_matched_frequency"], result["v2_top_images"]) == (1, 0.5)
    assert "v2_threshold" not in result.values


def test_imagenet_v2_is_left_out_for_other_classes_and_that_is_said(tmp_path: Path) -> None:
    result = run(Grey(), v2=paint(tmp_path, [("999/a.jpeg", grey(2))]))
    assert "v2" not in result.values
    assert "has a folder '999', and the model the classes 0 to 39" in result.left_out["v2"]


@pytest.mark.parametrize("release, option", [("a", "imagenet_a"), ("r", "imagenet_r")])
def test_imagenet_a_and_r_choose_among_their_own_classes(tmp_path: Path, release: str, option: str) -> None:
    own = [SYNSETS.index(name) for name in shifts.classes_of_release(release)]
    here = next(class_ for class_ in own if class_ + 1 not in own and class_ % 10 < 9)
    other = next(class_ for class_ in range(1000) if class_ not in own)
    data = paint(
        tmp_path,
        [
            # Looks like a class that is not of the release, and next to it like its own.
            (f"{SYNSETS[here]}/a.png", tuple(np.add(colour(here + 1), (0, 0, -1)).tolist())),
            (f"{SYNSETS[other]}/b.png", colour(other)),
        ],
    )
    result = run(Colours(), **{option: data})
    assert result[option] == 1
    assert list(result.unreadable[option]) == [f"{SYNSETS[other]}/b.png"]
    assert result.losses


def test_a_restricted_set_of_other_classes_is_restricted_to_its_folders(forty: Path, tmp_path: Path) -> None:
    # 12 looks like 13: wrong among all, right among 3 and 12. The names of the folders are those of --data.
    data = paint(tmp_path / "a", [("12/a.png", grey(13)), ("03/a.png", grey(3))])
    assert run(Grey(), data=forty, imagenet_a=data)["imagenet_a"] == 1


def test_corruptions_give_the_mean_top_1_and_of_all_75_the_mean_corruption_error(tmp_path: Path) -> None:
    name = SYNSETS[5]
    for corruption in shifts.ALEXNET_ERRORS:
        for severity in shifts.SEVERITIES:
            wrong = corruption == "fog" and severity == "5"
            paint(tmp_path / corruption / severity, [(f"{name}/a.JPEG", colour(6 if wrong else 5))])
    result = run(Colours(), imagenet_c=tmp_path)
    assert result["imagenet_c"] == pytest.approx(74 / 75)
    assert result["imagenet_c_mce"] == pytest.approx(1 / (5 * 0.819324) / 15)
    assert result["imagenet_c_corruptions"]["fog"] == {"1": 1, "2": 1, "3": 1, "4": 1, "5": 0}
    (note,) = (note for note in result.notes if "have no image" in note)
    assert "999 of 1000 classes have no image in" in note and note.endswith("; 74 more sets lack classes, too")


def test_corruptions_of_forty_classes_have_no_mean_corruption_error(forty: Path, tmp_path: Path) -> None:
    data = tmp_path / "c"
    paint(data / "fog/1", [("12/a.png", grey(12)), ("13/a.png", grey(12))])
    paint(data / "mine/1", [("12/a.png", grey(12))])
    result = run(Grey(), data=forty, imagenet_c=data)
    assert result["imagenet_c"] == (1 / 2 + 1) / 2  # sets count alike, however many images they have
    assert "of 1000 classes" in result.left_out["imagenet_c_mce"]


def test_fgsm_lets_the_model_mislead_itself(tmp_path: Path) -> None:
    # Images are one level lighter than their class: 8 levels bring them to one of the next, and 1 does not.
    data = paint(tmp_path, [(f"{class_:02}/a.png", grey(class_)) for class_ in range(40)])
    assert run(Grey(), data=data, fgsm=True)["fgsm"] == 0
    result = run(Grey(), data=data, fgsm=True, eps=1 / 255)
    assert (result["fgsm"], result["fgsm_eps"]) == (1, 1 / 255)


def test_occlusion_gives_curves_from_the_whole_image_to_none_of_it(tmp_path: Path) -> None:
    # With a share of it black, an image's level is lower by this share. Odd levels leave no two classes equally near.
    data = paint(tmp_path, [(f"{class_:02}/a.png", grey(class_)) for class_ in range(40)])
    curves = run(Grey(), data=data, occlusion=True)["occlusion"]
    assert curves["side"] == [step / 8 for step in range(9)]
    for step in range(9):
        for where, black in (("center", (step / 8) ** 2), ("boundary", 1 - (step / 8) ** 2)):
            right = sum(round((class_ + 1 / 6) * (1 - black)) == class_ for class_ in range(40))
            assert curves[where][step] == right / 40, (where, step)


def test_imagenet_9_gives_the_challenge_the_gap_and_the_variations(tmp_path: Path) -> None:
    root = make_backgrounds(tmp_path, [("light", 39), ("dark", 0)])
    paint(root / "mixed_same/val", [("00_dog/a.JPEG", grey(3)), ("01_bird/a.JPEG", grey(30))])
    paint(root / "mixed_rand/val", [("00_dog/a.JPEG", grey(3)), ("01_bird/a.JPEG", grey(3))])
    mapping = write(tmp_path / "m.json", {str(class_): class_ // 20 for class_ in range(40)})
    result = run(Grey(), backgrounds=root, in9=mapping)
    assert result["background_challenge"] == 0.5
    assert (result["in9"], result["in9_mixed_same"], result["in9_mixed_rand"]) == (1, 1, 0.5)
    assert result["bg_gap"] == 0.5


def test_imagenet_9_is_left_out_for_other_classes(forty: Path) -> None:
    result = run(Grey(), data=forty, backgrounds=forty)
    assert "and the model has 40" in result.left_out["background_challenge"]


def test_images_that_cannot_be_read_are_listed_and_do_not_count(forty: Path) -> None:
    (forty / "07/bad.png").write_bytes(b"no image")
    (forty / "07/gone.png").symlink_to("nowhere")
    result = run(Grey(), data=forty)
    assert (result["top1"], result.images["top1"]) == (39 / 42, 42)
    assert list(result.unreadable["data"]) == ["07/bad.png", "07/gone.png"]
    assert result.losses


def test_scores_that_are_no_numbers_are_wrong_and_listed(forty: Path) -> None:
    paint(forty, [("00/white.png", (255, 255, 255))])
    for poison in (float("nan"), float("inf")):
        result = run(Grey(poison=poison), data=forty)
        assert result["top1"] == 39 / 43
        assert result.not_numbers == {"data": ["00/white.png"]}
        assert result.losses
        if "calibration_error" in result.values:
            assert result.images["calibration_error"] == 42


def test_scores_that_are_all_no_numbers_are_an_error(tmp_path: Path) -> None:
    data = paint(tmp_path, [("0/a.png", (255,) * 3), ("1/a.png", (254,) * 3)])
    with pytest.raises(TorchRelabelError, match=r"are not numbers \(NaN or infinite\) for all of the 2 images"):
        run(Grey(2, poison=float("nan")), data=data)


def test_a_folder_of_which_nothing_can_be_read_is_an_error(tmp_path: Path) -> None:
    for class_ in "01":
        (tmp_path / class_).mkdir()
        (tmp_path / class_ / "a.png").write_bytes(b"")
    with pytest.raises(TorchRelabelError, match=r"None of the 2 images in .* can be read; 0/a\.png: "):
        run(Grey(2), data=tmp_path)


def test_a_flat_folder_has_real_labels_and_no_top_1(tmp_path: Path) -> None:
    data = paint(tmp_path / "val", [(val(1), colour(4)), (val(2), colour(5)), ("other.png", colour(5))])
    result = run(Colours(), data=data, real=write(tmp_path / "real.json", [[4], [4]]), fgsm=True, occlusion=True)
    assert result["real"] == 0.5
    assert {"top1", "top5", "fgsm", "occlusion"} <= result.left_out.keys()
    assert "1 images have no number in their name, and so no ReaL label." in result.notes


def test_folders_that_are_numbered_otherwise_are_noticed(tmp_path: Path) -> None:
    data = paint(tmp_path, [(f"{class_}/a.png", grey(class_)) for class_ in range(40)])
    by_text = run(Grey(), data=data)
    assert by_text["top1"] < 0.1
    assert any("top-1 would be 100.0% instead of 5.0%" in note for note in by_text.notes), by_text.notes
    by_number = run(Grey(), data=data, folder_order="number")
    assert by_number["top1"] == 1
    assert not any("WARNING" in note for note in by_number.notes)


def test_real_labels_of_other_classes_are_left_out_and_those_of_other_images_are_an_error(
    forty: Path, four: Path, tmp_path: Path
) -> None:
    result = run(Grey(), data=forty, real=write(tmp_path / "real.json", [[970]]))
    assert "name class 970" in result.left_out["real"]
    with pytest.raises(ValueError, match="are 3 lists, and there is an image of number 4"):
        run(Colours(), data=four, real=write(tmp_path / "real.json", [[1], [2], [3]]))


@pytest.mark.parametrize(
    "options, said",
    [
        ({}, "There is nothing to measure"),
        ({"v2": ".", "real": "timm"}, r"real is measured on the validation images\. Give their folder"),
        ({"data": ".", "batch_size": 0}, "batch_size must be 1 or more, got 0"),
        ({"data": ".", "workers": -1}, "workers must be 0 or more, got -1"),
        ({"data": ".", "threshold": 1.0}, r"threshold must be a probability between 0 and 1, got 1\.0"),
        ({"data": ".", "eps": 0}, "eps must be above 0, got 0"),
        ({"data": ".", "folder_order": "random"}, "folder_order must be 'text' or 'number', got 'random'"),
    ],
)
def test_wrong_arguments_are_said_before_anything_is_loaded(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        evaluate("no model of this name", **options)


def test_names_of_other_classes_are_an_error(forty: Path) -> None:
    with pytest.raises(ValueError, match="painted has 40 classes, and 2 class names were given"):
        run(Grey(), data=forty, class_names=["a", "b"])


def test_the_progress_of_each_set_can_be_watched(forty: Path) -> None:
    seen: list[tuple[int, str]] = []

    def progress(batches: Any, total: int, what: str) -> Any:
        seen.append((total, what))
        return batches

    run(Grey(), data=forty, progress=progress)
    assert seen == [(14, "data")]
