"""check: maps compared with a model whose answers are known, and with boxes."""

import json
import shutil
import zlib

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision.transforms import RandomResizedCrop

from tests.check.colours import (
    NAMES,
    SIZE,
    C,
    ColourModel,
    colour_annotator,
    paint_folder,
    write_block_store,
    write_boxes_of_blocks,
    write_store,
)
from torchrelabel import LabelPooling, LabelStore, LabelStoreWriter, MissingLabelMap, ViewBox
from torchrelabel.annotate import annotate
from torchrelabel.annotate.class_names import imagenet_synsets, in_words
from torchrelabel.annotate.crops import draw_crops, pool_crops
from torchrelabel.check import check
from torchrelabel.check.run import _class_table
from torchrelabel.check.words import words
from torchrelabel.data.records import label_map_of
from torchrelabel.errors import TorchRelabelError
from torchrelabel.store import StoreHeader


@pytest.fixture(scope="module")
def painted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("painted")
    blocks = paint_folder(folder / "data")
    keys = list(blocks)
    write_store(folder / "maps.lmdb", folder / "data", keys)
    write_store(folder / "swapped.lmdb", folder / "data", keys, swapped=True)
    write_block_store(folder / "blocks.lmdb", blocks)
    write_block_store(folder / "swapped-blocks.lmdb", blocks, swapped=True)
    write_boxes_of_blocks(folder / "boxes", blocks)
    return folder


def run(folder, store="maps.lmdb", **options):
    return check(folder / store, folder / "data", **{"crops": 120, **options})


@pytest.mark.parametrize("size", [(42, 70), (375, 500), (7, 4000), (4000, 7), (1, 1), (3, 2)])
def test_crops_are_drawn_as_torchvision_draws_them(size):
    key, seed = "a.png", 3
    boxes = draw_crops(*size, 200, seed=seed, key=key)
    with torch.random.fork_rng():
        torch.manual_seed(zlib.crc32(f"{seed}/{key}".encode()))
        image = torch.empty(1).expand(3, *size)
        expected = [RandomResizedCrop.get_params(image, [0.08, 1], [3 / 4, 4 / 3]) for _ in range(200)]
    assert_close(boxes, torch.tensor([(x, y, x + w, y + h) for y, x, h, w in expected]).float(), rtol=0, atol=0)


def test_a_check_never_touches_torchs_own_generator(painted, monkeypatch):
    """It used to seed it for each image, and to put it back: a race with whatever else draws meanwhile."""

    def never(*_):
        pytest.fail("torch's own generator was changed")

    monkeypatch.setattr(torch, "set_rng_state", never)
    monkeypatch.setattr(torch, "manual_seed", never)
    before = torch.get_rng_state()
    run(painted, model=colour_annotator(), crops=30, boxes=painted / "boxes")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("fill", ["zero", "residual"])
def test_pooled_crops_are_what_label_pooling_gives_one_by_one(painted, fill):
    store = LabelStore(painted / "maps.lmdb")
    key = next(iter(store))
    boxes = torch.tensor([[0.1, 0.2, 0.7, 0.9], [0.0, 0.0, 1.0, 1.0]])
    pooled = pool_crops(label_map_of(store[key], store.header, (42, 70)), boxes, fill)
    views = [label_map_of(store[key], store.header, (42, 70), ViewBox(*box)) for box in boxes.tolist()]
    assert_close(pooled.exp(), torch.stack([LabelPooling(fill=fill)(view) for view in views]))


def test_a_right_store_agrees_with_its_annotator_and_is_as_stored(painted):
    report = run(painted, model=colour_annotator())
    assert report.verdict == "as stored"
    everything = next(band for band in report.bands if band.area == "all crops")
    assert everything.crops == 120 and everything.top1 > 0.7 > 0.5 > everything.top1_swapped
    assert sum(band.crops for band in report.bands if band.area[0] == "0") == 120
    assert report.commuting.commutes


def test_swapped_maps_are_called_out_with_both_scores_exchanged(painted):
    right, swapped = (run(painted, store, model=colour_annotator()) for store in ("maps.lmdb", "swapped.lmdb"))
    assert swapped.verdict == "swapped"
    for one, other in zip(right.orientation, swapped.orientation, strict=True):
        assert_close((one.score_as_stored, one.score_swapped), (other.score_swapped, other.score_as_stored))


def test_stored_cells_are_those_of_the_annotator(painted):
    cells = {each.evidence: each for each in run(painted, model=colour_annotator()).orientation}["cells"]
    assert (cells.score_as_stored, cells.images_as_stored, cells.images_swapped) == (1.0, 12, 0)


def test_with_all_classes_kept_the_whole_image_is_what_a_linear_head_says(painted, tmp_path):
    annotator = colour_annotator()
    keys = list(LabelStore(painted / "maps.lmdb"))
    with LabelStoreWriter(tmp_path / "all.lmdb", num_classes=C, top_k=C) as writer:
        for key in keys:
            pixels = np.array(Image.open(painted / "data" / key).resize((48, 48), Image.Resampling.BILINEAR))
            top = annotator.top_scores(annotator.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None]), C)
            writer.put(key, top.scores[0].numpy(), top.classes[0].numpy())
    whole = check(tmp_path / "all.lmdb", painted / "data", model=annotator, crops=12).bands[-1]
    assert whole.area == "whole image" and whole.top1 == 1 and abs(whole.kl) < 1e-3 and whole.kl_residual is None


@pytest.mark.parametrize(("store", "verdict"), [("blocks.lmdb", "as stored"), ("swapped-blocks.lmdb", "swapped")])
def test_boxes_tell_the_order_of_axes_of_3_x_5_cells_without_a_model(painted, store, verdict):
    report = run(painted, store, boxes=painted / "boxes")
    assert report.verdict == verdict
    scores = (report.orientation[0].score_as_stored, report.orientation[0].score_swapped)
    assert max(scores) == 1.0 and min(scores) < 0.5


def test_crops_of_boxes_that_fill_the_image_have_their_area_as_iou(painted, tmp_path):
    from tests.check.colours import write_xml

    key = next(iter(LabelStore(painted / "maps.lmdb")))
    write_xml((tmp_path / key).with_suffix(".xml"), [(0, 0, 70, 42)])
    overlap = run(painted, boxes=tmp_path).overlap
    drawn = draw_crops(42, 70, 100, seed=0, key=key)
    areas = (drawn[:, 2:] - drawn[:, :2]).prod(1) / (42 * 70)
    assert (overlap.images, overlap.crops, overlap.no_overlap) == (1, 100, 0.0)
    assert_close(overlap.above_half, float((areas > 0.5).double().mean()))
    assert_close(overlap.cdf[24], float((areas < 0.5).double().mean()))


def test_broken_images_images_without_a_map_and_odd_xml_are_counted_and_not_fatal(tmp_path):
    blocks = paint_folder(tmp_path / "data", images=10)
    keys = list(blocks)
    write_store(tmp_path / "maps.lmdb", tmp_path / "data", keys[:-1])
    (tmp_path / "data" / keys[0]).write_bytes(b"no image")
    write_boxes_of_blocks(tmp_path / "boxes", blocks)
    odd = (tmp_path / "boxes" / keys[1]).with_suffix(".xml")
    odd.write_text("<!DOCTYPE x><annotation/>")
    report = run(tmp_path, model=colour_annotator(), boxes=tmp_path / "boxes")
    assert report.without_map == 1
    assert list(report.broken) == [keys[0]] and "cannot identify image file" in report.broken[keys[0]]
    assert report.bad_xml == {str(odd): "it has a DOCTYPE, which is not read"}
    assert report.losses and report.overlap.images == 7


def test_an_image_of_another_shape_than_the_annotated_one_is_named_and_not_compared(tmp_path):
    keys = list(paint_folder(tmp_path / "data", images=3))
    annotate(tmp_path / "data", tmp_path / "maps.lmdb", model=colour_annotator(), workers=0, progress=False)
    Image.new("RGB", (30, 90)).save(tmp_path / "data" / keys[1])
    report = run(tmp_path, model=colour_annotator(), crops=6)
    assert list(report.broken) == [keys[1]] and "is 30 x 90 pixels (W x H) here" in report.broken[keys[1]]


def test_another_folder_is_an_error_with_the_nearest_keys(painted, tmp_path):
    paint_folder(tmp_path / "elsewhere" / "deep", images=1)
    with pytest.raises(MissingLabelMap, match=r"nearest keys: 'n00000000/picture 0\.png'"):
        check(painted / "maps.lmdb", tmp_path / "elsewhere", model=colour_annotator())


def test_folders_are_compared_only_where_their_numbers_are_the_models(painted, tmp_path):
    write_store(tmp_path / "s.lmdb", painted / "data", list(LabelStore(painted / "maps.lmdb")), class_to_idx=False)
    report = check(tmp_path / "s.lmdb", painted / "data", model=colour_annotator(), crops=12)
    assert report.folder is None and report.folder_unknown == "the store does not say which folder is which class"
    assert run(painted, model=colour_annotator()).folder.images == 12


@pytest.mark.parametrize(
    ("folders", "num_classes", "expected"),
    [
        (["n02102040", "n03000684"], 1000, {"n02102040": 217, "n03000684": 491}),
        (["n02102040", "birds"], 1000, {}),
        (["n02102040", "n03000684"], 40, {}),
    ],
)
def test_a_part_of_imagenet_has_the_class_numbers_of_all_of_it(folders, num_classes, expected):
    header = StoreHeader(num_classes=num_classes, top_k=1, class_to_idx={name: i for i, name in enumerate(folders)})
    table, why_not = _class_table(header)
    assert table == expected
    assert why_not == "" if expected else "the store knows 2 folders" in why_not


@pytest.mark.parametrize("of", ["folders", "words"])
def test_boxes_named_by_folder_or_by_word_are_found_in_a_store_whose_classes_have_words(painted, tmp_path, of):
    words_of = {name: f"word {number}" for number, name in enumerate(NAMES)}
    blocks = paint_folder(tmp_path / "data")
    write_block_store(tmp_path / "maps.lmdb", blocks, class_names=list(words_of.values()))
    write_boxes_of_blocks(tmp_path / "boxes", blocks)
    if of == "words":
        for path in (tmp_path / "boxes").rglob("*.xml"):
            text = path.read_text()
            for name, word in words_of.items():
                text = text.replace(f"<name>{name}</name>", f"<name>{word}</name>")
            path.write_text(text)
    report = run(tmp_path, boxes=tmp_path / "boxes")
    assert (report.overlap.unknown, report.overlap.boxes) == (0, 12 * 15)
    assert report.orientation[0].score_as_stored == 1.0


def test_a_part_of_imagenet_whose_classes_have_words_has_the_class_numbers_of_all_of_it():
    header = StoreHeader(
        num_classes=1000,
        top_k=1,
        class_names=in_words(imagenet_synsets(1000)),
        class_to_idx={"n02102040": 0, "n03000684": 1},
    )
    assert _class_table(header) == ({"n02102040": 217, "n03000684": 491}, "")


@pytest.mark.parametrize(
    ("class_names", "folder", "on_top"), [(None, "1", "4"), ([*"abcdef"], "1 b", "4 e")], ids=["numbers", "names"]
)
def test_what_is_most_often_on_top_instead_of_the_folders_class_is_named(tmp_path, class_names, folder, on_top):
    blocks = {key: np.full((3, 5), number % C) for number, key in enumerate(paint_folder(tmp_path / "data"))}
    wrong = [key for key in blocks if key.startswith(NAMES[1])]
    for key in wrong:
        blocks[key] = np.full((3, 5), 4)
    write_block_store(tmp_path / "maps.lmdb", blocks, class_names=class_names)
    boxes = write_boxes_of_blocks(tmp_path / "boxes", blocks)
    report = run(tmp_path, boxes=boxes)
    assert report.folder.mistaken == ((folder, on_top, 2),)
    assert report.folder.label_map == 10 / 12
    assert f"  {on_top} on top in {folder}: 2 images" in words(report)


def test_other_weights_are_noted(painted):
    assert run(painted, model=colour_annotator(), crops=12).notes == []
    notes = run(painted, model=colour_annotator(gain=2.0), crops=12).notes
    assert len(notes) == 1 and "The weights are not those that made the store" in notes[0]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("image_size", 96, "image_size is 96 here, and was 48"),
        ("interpolation", "bicubic", "interpolation is 'bicubic' here, and was 'bilinear'"),
        ("mean", (0.5, 0.0, 0.0), "mean is [0.5, 0.0, 0.0] here, and was [0.0, 0.0, 0.0]"),
        ("std", (1.0, 0.5, 1.0), "std is [1.0, 0.5, 1.0] here, and was [1.0, 1.0, 1.0]"),
    ],
)
def test_another_setting_of_the_input_is_noted(painted, name, value, said):
    notes = run(painted, model=colour_annotator(**{name: value}), crops=12).notes
    assert notes == [f"{said} when the store was made."]


def test_a_head_that_does_not_commute_is_reported_with_its_error(painted):
    class Squares(ColourModel):
        def forward_head(self, features):
            return super().forward_head(features).square()

    annotator = colour_annotator(model=Squares())
    report = run(painted, model=annotator, crops=1, batch_size=2)  # one image and one crop of it: one batch
    errors = []
    for path in (painted / "data").rglob("*.png"):
        pixels = np.array(Image.open(path).resize((SIZE, SIZE), Image.Resampling.BILINEAR))
        image = annotator.normalise(torch.from_numpy(pixels).permute(2, 0, 1)[None])
        own, mean = annotator.whole(image), annotator(image).mean((2, 3))
        errors.append(float((mean - own).abs().max() / own.abs().max()))
    assert min(errors) > 1e-2
    assert any(abs(report.commuting.relative_error - error) < 1e-6 for error in errors)
    assert "The head does not commute with pooling" in words(report)


def test_neither_model_nor_boxes_is_an_error(painted):
    with pytest.raises(ValueError, match="Give model=, checkpoint= or boxes="):
        run(painted)


def test_the_figures_survive_json(painted):
    report = run(painted, model=colour_annotator(), boxes=painted / "boxes")
    figures = json.loads(json.dumps(report.figures(), allow_nan=False))
    assert figures["verdict"] == "as stored" and figures["overlap"]["crops"] == 1200
    assert figures["commuting"]["commutes"] is True


# Faults that are no swapped axes.


def test_maps_of_other_images_by_the_same_model_are_a_fault(painted, tmp_path):
    """Each map under the key of the next image: as many votes for either order, and still nothing is right."""
    maps = LabelStore(painted / "maps.lmdb")
    keys = list(maps)
    header = maps.header
    with LabelStoreWriter(
        tmp_path / "shifted", num_classes=C, top_k=3, residual=True, annotator=header.annotator
    ) as writer:
        for key, other in zip(keys, keys[1:] + keys[:1], strict=True):
            writer.put(key, maps[other].scores, maps[other].classes, maps[other].residual)
    report = check(tmp_path / "shifted", painted / "data", model=colour_annotator(), crops=24)
    assert len(report.faults) == 1
    assert report.faults[0].startswith("The weights and settings are those that made the store, and only ")
    assert "FAULT: The weights" in words(report)


def test_maps_of_the_model_itself_are_no_fault(painted):
    assert run(painted, model=colour_annotator(), crops=24).faults == []


def test_maps_of_another_model_are_no_fault(painted):
    """They may differ as much as models do."""
    assert run(painted, model=colour_annotator(gain=-8.0), crops=24).faults == []


def test_boxes_of_another_data_set_are_noticed_before_any_crop_is_looked_at(painted, tmp_path):
    (tmp_path / "n1.xml").write_text("<annotation/>")
    said = r"None of the 12 images in .* has boxes in .*: those of '.*picture \d+\.png' would be in picture \d+\.xml"
    with pytest.raises(FileNotFoundError, match=said):
        run(painted, boxes=tmp_path, model=colour_annotator(), progress=None)


def test_boxes_drawn_on_an_image_of_another_shape_are_noted(painted, tmp_path):
    shutil.copytree(painted / "boxes", tmp_path / "boxes")
    first = min(path for path in (tmp_path / "boxes").rglob("*.xml"))
    text = first.read_text()
    assert "<width>70</width><height>42</height>" in text.replace("\n", "").replace(" ", "")
    first.write_text(text.replace("<height>42", "<height>70"))
    notes = run(painted, store="blocks.lmdb", boxes=tmp_path / "boxes").notes
    assert [note[:50] for note in notes] == ["1 of 12 images have another shape than their XML fi"[:50]]


def test_images_that_were_made_smaller_have_the_shape_of_their_boxes(painted):
    assert run(painted, store="blocks.lmdb", boxes=painted / "boxes").overlap.other_shapes == ()


def test_crops_that_miss_every_box_have_a_confidence_of_their_own(painted, tmp_path):
    overlap = run(painted, store="blocks.lmdb", boxes=painted / "boxes").overlap
    assert (overlap.confidence_without is None) == (overlap.no_overlap == 0)


@pytest.mark.parametrize(("made_by", "expected"), [("resnet10t", 64), ("resnet18", 176)])
def test_the_stores_size_is_only_for_the_model_that_made_it(painted, tmp_path, made_by, expected):
    model = timm.create_model("resnet10t", num_classes=C)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    maps = LabelStore(painted / "maps.lmdb")
    description = {"model": made_by, "image_size": 64}
    with LabelStoreWriter(tmp_path / "maps", num_classes=C, top_k=3, residual=True, annotator=description) as writer:
        for key, record in maps.items():
            writer.put(key, record.scores, record.classes, record.residual)
    options = {"model": "resnet10t", "checkpoint": tmp_path / "weights.pth", "device": "cpu", "crops": 2}
    report = check(tmp_path / "maps", painted / "data", **options)
    assert report.image_size == expected
    assert f"squashed to {expected} px" in words(report)


def test_random_weights_and_settings_of_a_store_are_made_again_and_are_the_same(tmp_path):
    paint_folder(tmp_path / "data", images=3)
    settings = {"pretrained": False, "image_size": 64, "device": "cpu", "workers": 0, "progress": False}
    settings |= {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "interpolation": "nearest"}
    annotate(tmp_path / "data", tmp_path / "maps", model="resnet10t", **settings)
    report = check(tmp_path / "maps", tmp_path / "data", model="resnet10t", device="cpu", crops=3)
    assert report.notes == ["The weights that made the store are random (--no-pretrained), and were made again here."]
    cells = next(each for each in report.orientation if each.evidence == "cells")
    assert cells.score_as_stored > 0.99


def test_weights_that_cannot_be_fetched_name_no_option_that_check_does_not_have(painted, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("cannot reach huggingface.co")

    monkeypatch.setattr(timm, "create_model", unreachable)
    with pytest.raises(TorchRelabelError, match=r"give a file of weights with --checkpoint\..*") as caught:
        run(painted, model="resnet10t")
    assert "torchrelabel annotate --no-pretrained" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "resnet5O"}, "knows no model 'resnet5O'"),
        ({"model": "resnet10t", "checkpoint": "/no/such.pth"}, "There is no checkpoint '/no/such.pth'"),
        ({"model": "resnet10t", "device": "bogus"}, "There is no device 'bogus'"),
        ({"model": "resnet10t", "strip_prefix": "net."}, "says where weights lie in a checkpoint, and there is none"),
    ],
)
def test_a_wrong_model_is_refused_before_the_images_are_listed(painted, monkeypatch, options, words):
    monkeypatch.setattr("torchrelabel.check.run.find_data", lambda *_, **__: pytest.fail("images were listed"))
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        run(painted, **options)


def test_a_store_of_a_model_that_timm_cannot_build_says_how_to_give_it(tmp_path):
    with LabelStoreWriter(tmp_path / "m", num_classes=2, top_k=1, annotator={"model": "mine", "weights": "given"}) as w:
        w.put("a/x.png", np.ones((1, 1, 1)), np.ones((1, 1, 1), int))
    with pytest.raises(ValueError, match=r"made by mine, a model of its maker's own.*model=Annotator.from_model\("):
        check(tmp_path / "m", tmp_path, checkpoint=tmp_path / "w.pth")


def test_images_are_turned_for_a_check_as_they_were_for_their_maps(painted, tmp_path):
    """Maps of images that were turned, checked on images that are not, would seem swapped."""
    (tmp_path / "data").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, path in enumerate(sorted((painted / "data").rglob("*.png"))):
        with Image.open(path) as image:
            image.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "data" / f"{number}.png", exif=exif)
    annotator = colour_annotator()
    annotate(tmp_path / "data", tmp_path / "m", model=annotator, exif="apply", workers=0, progress=False)
    report = check(tmp_path / "m", tmp_path / "data", model=annotator, crops=120)
    (cells,) = (each for each in report.orientation if each.evidence == "cells")
    assert (report.faults, cells.score_as_stored) == ([], 1.0)
