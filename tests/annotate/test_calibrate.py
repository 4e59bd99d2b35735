"""Labels fitted to an annotator whose view of every crop is known: the mean colours of what the crop shows."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from tests.annotate.models import four_corners
from torchrelabel import LabelPooling, LabelStore, ViewBox
from torchrelabel.annotate import annotate
from torchrelabel.annotate.annotator import Annotator
from torchrelabel.annotate.calibrate import FEWEST_IMAGES, calibrate
from torchrelabel.annotate.images import find_images
from torchrelabel.annotate.made_by import annotator_of, differences
from torchrelabel.data.records import label_map_of
from torchrelabel.errors import SettingsDiffer


def paint(root, count, seed=0):
    """Pictures of 3 x 3 blocks of colours, 63 x 45 px: one block has nothing to do with the next."""
    root.mkdir()
    rng = np.random.default_rng(seed)
    for number in range(count):
        blocks = rng.integers(0, 256, (3, 3, 3), dtype=np.uint8)
        Image.fromarray(blocks.repeat(15, 0).repeat(21, 1)).save(root / f"{number:03}.png")
    return root


SETTINGS = {"workers": 0, "progress": False, "top_k": 2}


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    """A folder with its store; the annotator is so sure of colours that labels differ."""
    root = paint(tmp_path_factory.mktemp("painted") / "images", 40)
    output = root.parent / "maps.lmdb"
    return root, output, annotate(root, output, model=sure_annotator(), **SETTINGS)


def sure_annotator():
    annotator = four_corners()
    with torch.no_grad():
        annotator.head.model.gain.fill_(9.0)
    return annotator


def test_annotate_ends_with_a_calibration_that_the_store_keeps(painted):
    _, output, summary = painted
    calibration = LabelStore(output).header.calibration
    assert (summary.crop_fit.images, summary.crop_fit.crops) == (40, 160)
    assert calibration.fit["kl"] == summary.crop_fit.kl
    assert 0.05 < calibration.smallest_area < 0.2


def test_labels_are_nearer_to_the_annotator_than_those_of_the_whole_image_and_of_the_paper(painted):
    root, output, summary = painted
    store, annotator = LabelStore(output), sure_annotator()
    rng = np.random.default_rng(1)
    distances = {"auto": [], "zero": []}
    for key in store:
        image = Image.open(root / key)
        x1, y1 = rng.uniform(0, 0.6, 2)
        box = (x1, y1, x1 + 0.4, y1 + 0.4)
        crop = image.resize((12, 12), Image.Resampling.BILINEAR, tuple(np.multiply(box, (63, 45, 63, 45))))
        pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)[None]
        own = annotator.whole(annotator.normalise(pixels)).log_softmax(1)[0]
        label_map = label_map_of(store[key], store.header, (45, 63), ViewBox(*box))
        for fill, found in distances.items():
            label = LabelPooling(fill=fill)(label_map)
            found.append(float((own.exp() * (own - label.log())).sum()))
    assert np.mean(distances["auto"]) < 0.5 * np.mean(distances["zero"])
    assert summary.crop_fit.kl < 0.5 * summary.crop_fit.kl_whole
    assert summary.crop_fit.agreement > summary.crop_fit.agreement_whole + 0.1
    assert np.mean(distances["auto"]) == pytest.approx(summary.crop_fit.kl, abs=0.3)


def test_the_same_seed_calibrates_alike_and_another_one_otherwise(painted, tmp_path):
    root, output, _ = painted
    copy = shutil.copytree(output, tmp_path / "maps.lmdb")
    fitted = []
    for seed in (0, 0, 1):
        calibrate(LabelStore(copy), find_images(root), sure_annotator(), seed=seed)
        fitted.append(LabelStore(copy).header.calibration)
    assert fitted[0] == fitted[1] == LabelStore(output).header.calibration
    assert fitted[2] != fitted[0]


def test_calibrating_changes_no_record(painted, tmp_path):
    root, output, _ = painted
    copy = shutil.copytree(output, tmp_path / "maps.lmdb")
    before = (copy / "shard-00000.mdb").read_bytes()
    calibrate(LabelStore(copy), find_images(root), sure_annotator(), seed=3)
    assert (copy / "shard-00000.mdb").read_bytes() == before
    assert LabelStore(copy).header.complete


def test_a_folder_of_too_few_images_follows_the_papers_rule_and_says_so(tmp_path):
    root = paint(tmp_path / "images", FEWEST_IMAGES - 1)
    summary = annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), **SETTINGS)
    assert summary.crop_fit is None
    assert any(f"{FEWEST_IMAGES} images are needed" in note for note in summary.notes)
    assert LabelStore(tmp_path / "maps.lmdb").header.calibration is None


def test_images_added_later_bring_the_calibration(tmp_path):
    root = paint(tmp_path / "images", FEWEST_IMAGES - 1)
    annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), **SETTINGS)
    shutil.copy(root / "000.png", root / "one more.png")
    summary = annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), **SETTINGS)
    assert summary.crop_fit.images == FEWEST_IMAGES


def test_a_calibration_stays_when_images_are_added(painted, tmp_path):
    root, output, _ = painted
    images, copy = shutil.copytree(root, tmp_path / "images"), shutil.copytree(output, tmp_path / "maps.lmdb")
    shutil.copy(images / "000.png", images / "one more.png")
    summary = annotate(images, copy, model=sure_annotator(), **SETTINGS)
    assert (summary.annotated, summary.crop_fit) == (1, None)
    assert LabelStore(copy).header.calibration == LabelStore(output).header.calibration


def test_a_run_that_was_killed_before_its_calibration_makes_up_for_it(tmp_path, monkeypatch):
    root = paint(tmp_path / "images", FEWEST_IMAGES)
    monkeypatch.setattr(
        "torchrelabel.annotate.run.calibrate", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), **SETTINGS)
    monkeypatch.undo()
    summary = annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), **SETTINGS)
    assert (summary.annotated, summary.crop_fit.images) == (0, FEWEST_IMAGES)


def test_an_image_that_is_gone_since_is_left_out(painted, tmp_path):
    root, output, _ = painted
    images, copy = shutil.copytree(root, tmp_path / "images"), shutil.copytree(output, tmp_path / "maps.lmdb")
    found = find_images(images)
    (images / "007.png").write_bytes(b"no image")
    (images / "008.png").unlink()
    assert calibrate(LabelStore(copy), found, sure_annotator()).images == 38


def test_labels_are_not_fitted_to_other_images_of_the_same_names(painted, tmp_path):
    root, output, _ = painted
    images, copy = shutil.copytree(root, tmp_path / "images"), shutil.copytree(output, tmp_path / "maps.lmdb")
    for path in sorted(images.iterdir())[:5]:
        Image.new("RGB", (45, 63)).save(path)
    assert calibrate(LabelStore(copy), find_images(images), sure_annotator()).images == 35


def test_another_annotator_is_refused(painted):
    root, output, _ = painted
    other = four_corners()
    other.weights_sha256 = "0" * 64
    with pytest.raises(ValueError, match=r"was made by another annotator .*Calibrate it with the one that made it"):
        calibrate(LabelStore(output), find_images(root), other)


def test_a_store_without_scores_of_whole_images_is_refused(painted, tmp_path):
    root, _, _ = painted
    annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), image_top_k=0, **SETTINGS)
    with pytest.raises(ValueError, match="keeps no scores for whole images"):
        calibrate(LabelStore(tmp_path / "maps.lmdb"), find_images(root), sure_annotator())


def test_maps_without_scores_of_whole_images_are_the_papers(painted, tmp_path):
    root, output, _ = painted
    annotate(root, tmp_path / "maps.lmdb", model=sure_annotator(), image_top_k=0, **SETTINGS)
    plain, calibrated = LabelStore(tmp_path / "maps.lmdb"), LabelStore(output)
    assert (plain.header.image_top_k, calibrated.header.image_top_k > 0) == (0, True)
    assert plain["000.png"].image_scores is None
    np.testing.assert_array_equal(plain["000.png"].scores, calibrated["000.png"].scores)


def test_a_store_without_scores_of_whole_images_is_continued_by_the_settings_that_it_was_begun_with(tmp_path):
    root = paint(tmp_path / "images", 3)
    options = {"model": "resnet10t", "pretrained": False, "image_size": 64, "device": "cpu", **SETTINGS}
    annotate(root, tmp_path / "maps.lmdb", image_top_k=0, enlarge=1, **options)
    header = LabelStore(tmp_path / "maps.lmdb").header
    assert (header.image_top_k, "map_size" in header.annotator) == (0, False)
    shutil.copy(root / "000.png", root / "one more.png")
    assert annotate(root, tmp_path / "maps.lmdb", image_top_k=0, enlarge=1, **options).annotated == 1
    with pytest.raises(SettingsDiffer, match=r"image_top_k: 0, now 1000.*annotator.map_size: None, now 96"):
        annotate(root, tmp_path / "maps.lmdb", **options)


def test_the_annotator_of_a_store_sees_images_as_much_enlarged_again(tmp_path):
    root = paint(tmp_path / "images", 2)
    options = {"model": "resnet10t", "pretrained": False, "image_size": 64, "device": "cpu", **SETTINGS}
    annotate(root, tmp_path / "maps.lmdb", **options)
    header = LabelStore(tmp_path / "maps.lmdb").header
    annotator = annotator_of(header, device="cpu")
    assert (annotator.image_size, annotator.map_size) == (64, 96)
    assert differences(annotator, header) == []
    assert differences(annotator.enlarged(2), header) == ["map_size is 128 here, and was 96 when the store was made."]


def test_the_words_warn_where_one_label_an_image_does_as_well(painted):
    _, _, summary = painted
    fit = summary.crop_fit
    assert str(fit).startswith("Labels of 160 random crops of 40 images")
    worse = type(fit)(**{**vars(fit), "kl": fit.kl_whole + 0.01})
    assert str(worse).startswith("WARNING: these maps are no better than one label an image.")


def test_cells_of_an_enlarged_image_are_averaged_to_the_models_own_grid():
    # 18 px give 4 cells of 4 px with 2 px left over; 24 give 6, two for each of the 3 of 12 px.
    annotator = Annotator(
        four_corners().head.model, name="four", image_size=12, mean=(0.0,) * 3, std=(1.0,) * 3,
        interpolation="bilinear", weights="ours", device="cpu", enlarge=2,
    )  # fmt: skip
    pixels = torch.randint(0, 256, (2, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    small = torch.zeros(2, 3, 12, 12, dtype=torch.uint8)
    top = annotator.top_scores(annotator.normalise(small), 4, enlarged=annotator.normalise(pixels))
    dense = torch.zeros(2, 4, 3, 3).scatter(1, top.classes.long(), top.scores)
    expected = torch.nn.functional.avg_pool2d(pixels.float() / 255, 8)
    torch.testing.assert_close(dense[:, :3], expected)
    torch.testing.assert_close(top.image_scores, torch.zeros(2, 4))


def test_cells_that_do_not_divide_count_by_the_area_that_they_share():
    annotator = four_corners().enlarged(5 / 3)  # 20 px, 5 x 5 cells for 3 x 3
    pixels = torch.zeros(1, 3, 20, 20)
    pixels[..., 4:8] = 1.0  # the second of five columns lies to two thirds in the first of three
    top = annotator.top_scores(torch.zeros(1, 3, 12, 12), 4, enlarged=pixels)
    dense = torch.zeros(1, 4, 3, 3).scatter(1, top.classes.long(), top.scores)
    torch.testing.assert_close(dense[0, 0, 1], torch.tensor([2 / 5, 1 / 5, 0.0]))


def test_an_annotator_of_enlarged_images_asks_for_them():
    with pytest.raises(ValueError, match="give enlarged=, at 24 px"):
        four_corners().enlarged(2).top_scores(torch.zeros(1, 3, 12, 12), 4)


@pytest.mark.parametrize("enlarge", [0.5, float("inf"), float("nan")])
def test_images_cannot_be_enlarged_to_less(enlarge):
    with pytest.raises(ValueError, match=f"enlarge must be 1 or more, got {enlarge}"):
        four_corners().enlarged(enlarge)


def test_what_the_whole_image_says_is_the_models_own_answer():
    annotator = sure_annotator()
    images = torch.rand(3, 3, 12, 12)
    expected = annotator.head.model(images)
    torch.testing.assert_close(annotator.whole(images), expected)
    torch.testing.assert_close(annotator.top_scores(images, 2).image_scores, expected)


def test_a_model_that_takes_one_size_only_is_not_enlarged_and_says_so(tmp_path):
    root = paint(tmp_path / "images", 2)
    options = {"model": "vit_tiny_patch16_224", "pretrained": False, "image_size": 32, "device": "cpu"}
    summary = annotate(root, tmp_path / "maps.lmdb", **options, **SETTINGS)
    assert "map_size" not in LabelStore(tmp_path / "maps.lmdb").header.annotator
    assert any("without enlarging them" in note for note in summary.notes)
    with pytest.raises(ValueError, match="cannot take an image of 64 x 64 px"):
        annotate(root, tmp_path / "other.lmdb", enlarge=2, **options, **SETTINGS)
