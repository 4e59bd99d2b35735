"""The commands that look into a store: info, verify and show."""

import json
import os

import lmdb
import numpy as np
import PIL.Image
import pytest

import torchrelabel.store
from tests.cli.test_annotate import invoke
from torchrelabel.store import LabelStoreWriter

KEYS = ["001.Black bird/x.y.png", "002.Grün/z.png"]


@pytest.fixture
def folder(tmp_path):
    """Two images of 17 x 11 px, their maps of 2 x 3 cells (class 3 left, class 7 elsewhere), and a failure."""
    for key in KEYS:
        path = tmp_path / key
        path.parent.mkdir()
        PIL.Image.new("RGB", (17, 11), (200, 30, 30)).save(path)
    names = [f"class {i}" for i in range(9)] + ["ten"]
    with LabelStoreWriter(
        tmp_path / "maps.lmdb",
        num_classes=10,
        top_k=1,
        grid=(2, 3),
        residual=True,
        class_names=names,
        annotator={"model": "test_resnet", "image_size": 64},
        dataset={"count": 2},
    ) as writer:
        for key in KEYS:
            classes = np.array([[[3, 7, 7], [3, 7, 7]]])
            writer.put(key, np.full((1, 2, 3), 9.0), classes, np.full((2, 3), 2.0))
    return tmp_path


@pytest.fixture
def inside(folder, monkeypatch):
    monkeypatch.chdir(folder)
    return folder


def test_info_says_what_is_in_the_store_of_this_folder(inside):
    result = invoke("info")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "class names class 0, class 1, class 2, ... (10)" in words
    for expected in ("label maps 2", "classes 10", "grid (h x w) 2 x 3", "codec float16", "model test_resnet"):
        assert expected in words


def test_info_gives_the_same_as_json(inside):
    figures = json.loads(invoke("info", "maps.lmdb", "--json").stdout)
    assert (figures["records"], figures["num_classes"], figures["grid"]) == (2, 10, [2, 3])
    assert figures["class_names"] == [*(f"class {i}" for i in range(9)), "ten"]
    assert figures["bytes_per_map"] == figures["bytes"] / 2
    assert figures["annotator"] == {"model": "test_resnet", "image_size": 64}


def test_info_of_what_is_no_store_is_one_message_and_status_1(inside):
    result = invoke("info", "nowhere.lmdb")
    assert result.exit_code == 1
    assert "nowhere.lmdb" in result.stderr
    assert "Traceback" not in result.stderr


def test_verify_of_a_sound_store_and_its_folder_is_status_0(inside):
    result = invoke("verify", "maps.lmdb", ".")
    assert result.exit_code == 0
    assert result.stdout == "maps.lmdb: 2 label maps are sound (2 of 2 x 3 cells).\n"


def test_verify_names_an_image_without_a_map_and_is_status_1(inside):
    PIL.Image.new("L", (5, 3)).save(inside / "new.png")
    result = invoke("verify", "maps.lmdb", ".")
    assert result.exit_code == 1
    assert "Images of . without a label map: 1\n  new.png" in result.stdout


def test_verify_names_a_map_without_an_image_and_is_status_3(inside):
    (inside / KEYS[0]).unlink()
    result = invoke("verify", "maps.lmdb", ".", "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["surplus"] == [KEYS[0]]


def test_verify_names_what_is_damaged_and_checks_the_rest(inside):
    """A damaged note of a failure used to end it with an error."""
    with lmdb.open("maps.lmdb/shard-00000.mdb", subdir=False, map_size=2**24) as environment:
        with environment.begin(write=True) as transaction:
            transaction.put(b"\x00f" + bytes(32), b"\xff\xff")
    result = invoke("verify")
    assert result.exit_code == 1
    assert "maps.lmdb: 2 label maps are sound" in result.stdout
    assert (
        f"Damaged entries: 1. Copy the store again, or annotate into a new one.\n  failure 0066{64 * '0'}: the v"
        in (result.stdout)
    )


def test_verify_of_a_store_that_lost_a_shard_names_it(inside):
    (inside / "maps.lmdb/shard-00000.mdb").unlink()
    result = invoke("verify", "--json")
    assert result.exit_code == 1
    assert "is missing" in json.loads(result.stdout)["damaged"]["shard-00000.mdb"]


@pytest.mark.parametrize("crop", ["0,0,1,1", "0,0,0.333,1"])
def test_show_draws_a_picture_and_prints_the_label_of_the_crop(inside, crop):
    result = invoke("show", "maps.lmdb", ".", KEYS[1], "--crop", crop, "--fill", "residual")
    assert result.exit_code == 0, result.stderr
    assert (inside / "label-map.svg").read_text().startswith("<?xml")
    top = result.stdout.splitlines()[1]
    assert ("7 class 7" if crop == "0,0,1,1" else "3 class 3") in top


def test_show_names_a_class_and_its_index_in_words_in_json_and_in_the_picture(inside):
    entry = json.loads(invoke("show", "maps.lmdb", ".", KEYS[1], "--json", "--crop", "0,0,0.333,1").stdout)["label"][0]
    assert (entry["class"], entry["name"]) == (3, "class 3")
    assert "<!-- 3 class 3 -->" in (inside / "label-map.svg").read_text()


def test_show_guesses_no_names_of_a_store_without_them(inside):
    image = inside / "x.png"
    PIL.Image.new("RGB", (17, 11)).save(image)
    with LabelStoreWriter(inside / "old.lmdb", num_classes=1000, top_k=1, annotator={"model": "resnet50"}) as writer:
        writer.put("x.png", np.full((1, 2, 3), 9.0), np.full((1, 2, 3), 967))
    assert invoke("show", "old.lmdb", ".", "x.png").stdout.splitlines()[1].split()[1:] == ["967"]
    (entry,) = json.loads(invoke("show", "old.lmdb", ".", "x.png", "--json").stdout)["label"]
    assert (entry["class"], entry["name"]) == (967, None)
    assert "<!-- 967 -->" in (inside / "label-map.svg").read_text()
    assert "class names -" in " ".join(invoke("info", "old.lmdb").stdout.split())
    assert json.loads(invoke("info", "old.lmdb", "--json").stdout)["class_names"] is None


@pytest.mark.parametrize("typed", ["./{key}", "{root}/{key}", "{folder}/{key}", "002.Grün/../{key}"])
def test_show_finds_a_key_however_it_is_typed(inside, typed):
    typed = typed.format(key=KEYS[1], root=inside, folder=inside.name)
    result = invoke("show", "maps.lmdb", inside, typed)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"label-map.svg: {KEYS[1]}, crop ")


def test_show_of_several_images_is_a_gallery(inside):
    result = invoke("show", "maps.lmdb", ".", *KEYS, "--json", "-o", "gallery.svg")
    assert [entry["key"] for entry in json.loads(result.stdout)] == KEYS
    picture = (inside / "gallery.svg").read_text()
    assert all(f"<!-- {key} -->" in picture for key in KEYS)


def test_show_of_random_images_chooses_the_same_by_the_same_seed(inside):
    def chosen(seed):
        result = invoke("show", "maps.lmdb", ".", "--random", "1", "--seed", str(seed), "--json")
        return json.loads(result.stdout)["key"]

    assert chosen(3) == chosen(3)
    assert {chosen(seed) for seed in range(6)} == set(KEYS)
    result = invoke("show", "maps.lmdb", ".", "--random", "12", "--json")
    assert [entry["key"] for entry in json.loads(result.stdout)] == KEYS  # there are no more


@pytest.mark.parametrize("arguments", [[], [KEYS[0], "--random", "2"]])
def test_show_wants_keys_or_a_number(inside, arguments):
    result = invoke("show", "maps.lmdb", ".", *arguments)
    assert result.exit_code == 2
    assert "Name the images to draw (KEY ...), or give --random N, and not both." in " ".join(result.stderr.split())


def test_show_turns_an_image_as_it_was_turned_for_its_map(inside):
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (17, 11)).save(inside / "turned.jpg", exif=exif)
    for name, annotator in (("ignored", {}), ("applied", {"exif": "apply"})):
        with LabelStoreWriter(inside / f"{name}.lmdb", num_classes=9, top_k=1, annotator=annotator) as writer:
            writer.put("turned.jpg", np.full((1, 2, 3), 9.0), np.full((1, 2, 3), 7))
        invoke("show", f"{name}.lmdb", ".", "turned.jpg", "-o", f"{name}.png")
    shapes = []
    for name in ("ignored", "applied"):
        with PIL.Image.open(inside / f"{name}.png") as picture:
            shapes.append(picture.width / picture.height)
    assert shapes[0] > shapes[1]


def test_show_does_not_draw_a_map_over_another_image_of_the_same_name(inside):
    with LabelStoreWriter("sized.lmdb", num_classes=9, top_k=1) as writer:
        writer.put(KEYS[0], np.full((1, 2, 3), 9.0), np.full((1, 2, 3), 7), image_size=(30, 40))
    result = invoke("show", "sized.lmdb", ".", KEYS[0])
    assert result.exit_code == 1
    assert "is 17 x 11 pixels (W x H) here, and the image of that name" in result.stderr


def test_a_picture_in_the_annotated_folder_does_not_become_one_of_its_images(inside):
    invoke("show", "maps.lmdb", ".", KEYS[1])
    assert invoke("verify", "maps.lmdb", ".").exit_code == 0


def test_show_of_an_unknown_key_names_the_nearest(inside):
    result = invoke("show", "maps.lmdb", ".", "z.png")
    assert result.exit_code == 1
    assert KEYS[1] in result.stderr


def test_show_without_the_image_says_what_helps(inside):
    result = invoke("show", "maps.lmdb", "elsewhere", KEYS[1])
    assert result.exit_code == 1
    assert "in elsewhere. Give what was annotated into " in result.stderr


def test_a_crop_that_is_no_box_is_wrong_use(inside):
    result = invoke("show", "maps.lmdb", ".", KEYS[1], "--crop", "left")
    assert result.exit_code == 2
    assert "'left' is not four numbers separated by commas" in result.stderr


@pytest.mark.parametrize("crop", ["10,10,50,50", "2,2,3,3", "1,0,0,1", "0,0,0,1", "-0.1,0,1,1", "nan,0,1,1"])
def test_a_crop_that_is_not_in_fractions_of_the_image_is_wrong_use(inside, crop):
    result = invoke("show", "maps.lmdb", ".", KEYS[1], "--crop", crop)
    assert result.exit_code == 2
    assert "fractions of the image's width and height, 0 <= X1 < X2 <= 1 and 0 <= Y1 < Y2 <= 1" in result.stderr
    assert not (inside / "label-map.svg").exists()


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("label-map.xyz", "Give one that ends in .png, .svg or .pdf."),
        ("label-map", "Give one that ends in .png, .svg or .pdf."),
        ("nowhere/label-map.svg", "There is no folder 'nowhere' for the picture."),
    ],
)
def test_a_picture_that_cannot_be_written_is_wrong_use_before_anything_is_read(tmp_path, output, words, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command in (
        ["show", "none.lmdb", ".", "x", "-o", output],
        ["check", "none.lmdb", ".", "--boxes", ".", "--plot", output],
    ):
        result = invoke(*command)
        assert result.exit_code == 2
        assert words in " ".join(result.stderr.split())


@pytest.mark.parametrize(
    "command", [["info"], ["verify"], ["show", "maps.lmdb", ".", KEYS[1]], ["check", "maps.lmdb", ".", "--boxes", "."]]
)
def test_an_interrupt_is_status_130_in_every_command(inside, command, monkeypatch):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(torchrelabel.store.LabelStore, "__init__", interrupt)
    result = invoke(*command)
    assert result.exit_code == 130
    assert result.stderr == "Stopped.\n"


@pytest.mark.parametrize("output", ["label-map.svg", "label-map.png"])
def test_a_name_that_the_font_lacks_is_drawn_without_a_word(inside, output):
    path = inside / "001.\u732b" / "x.png"
    path.parent.mkdir()
    PIL.Image.new("RGB", (17, 11)).save(path)
    with LabelStoreWriter(
        inside / "cjk.lmdb", num_classes=2, top_k=2, grid=(2, 3), class_names=["\u732b", "dog"]
    ) as writer:
        classes = np.array([np.zeros((2, 3), int), np.ones((2, 3), int)])
        writer.put("001.\u732b/x.png", np.array([np.full((2, 3), 9.0), np.zeros((2, 3))]), classes)
    result = invoke("show", "cjk.lmdb", ".", "001.\u732b/x.png", "-o", output)  # warnings are errors in tests
    assert result.exit_code == 0, result.exception
    assert (inside / output).exists()
    assert result.stderr == ""


def test_merge_makes_one_store_of_two(inside):
    for name in ("x.png", "y.png"):
        with LabelStoreWriter(inside / f"{name}.lmdb", num_classes=10, top_k=1) as writer:
            writer.put(name, np.full((1, 2, 3), 9.0), np.full((1, 2, 3), 4))
    result = invoke("merge", "x.png.lmdb", "y.png.lmdb", "-o", "all.lmdb")
    assert (result.exit_code, result.stdout) == (0, "all.lmdb: 2 label maps.\n")
    assert json.loads(invoke("info", "all.lmdb", "--json").stdout)["records"] == 2
    again = json.loads(invoke("merge", "all.lmdb", "-o", "again.lmdb", "--shards", "3", "--json").stdout)
    assert again == {"records": 2, "failures": 0, "complete": True}


def test_a_store_whose_path_is_not_utf_8_is_described(inside):
    """It used to be a UnicodeEncodeError."""
    path = os.fsdecode(b"caf\xe9.lmdb")
    try:
        (inside / "maps.lmdb").rename(inside / path)
    except OSError:
        pytest.skip("this file system takes no such names")
    for command in ("info", "verify"):
        result = invoke(command, path)
        assert result.exit_code == 0, result.exception
        assert result.stdout.startswith("caf")
