"""The quick demo from end to end, and the folders that it leaves alone."""

import base64
import builtins
import io
import json
import re
import shlex

import pytest
import timm
import torch
from PIL import Image

from torchrelabel.cli.annotate import annotate as annotate_command
from torchrelabel.demo import demo
from torchrelabel.demo.annotator import MODEL, WEIGHTS
from torchrelabel.demo.result import table
from torchrelabel.demo.run import QUICK, _scene_settings, _threads
from torchrelabel.store import LabelStore


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    if not timm.is_model(MODEL):
        pytest.skip(f"timm {timm.__version__} has no {MODEL}; test_annotator.py tests what the demo says then")
    out = tmp_path_factory.mktemp("quick") / "out"
    return out, demo(out, seeds=2, scene_seed=3, quick=True, progress=False)


def pictures(out):
    page = (out / "report.html").read_text(encoding="utf-8")
    encoded = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    return [Image.open(io.BytesIO(base64.b64decode(text))) for text in encoded]


def test_every_image_of_the_training_folder_has_a_label_map_of_4_x_4_cells(quick):
    out, result = quick
    store = LabelStore(out / "maps.lmdb")
    assert sorted(store) == sorted(path.relative_to(out / "train").as_posix() for path in out.glob("train/*/*.png"))
    assert store[next(iter(store))].scores.shape == (5, 4, 4)
    assert result.grid == (4, 4)


def test_every_kind_of_labels_was_learnt_with_every_seed(quick):
    _, result = quick
    assert [(run.labels, run.seed) for run in result.runs] == [
        (labels, seed) for seed in (0, 1) for labels in ("one-hot", "ReLabel")
    ]


def test_the_kinds_of_labels_were_learnt_differently(quick):
    _, result = quick
    assert len({tuple(run.trained.losses) for run in result.runs if run.seed == 0}) == 2


def test_the_report_has_its_four_pictures_and_each_shows_something(quick):
    shown = pictures(quick[0])
    assert len(shown) == 4
    # With the clearness that they have: on the curves' clear background nearly all that differs is how clear it is.
    assert all(picture.width > 700 and len(picture.convert("RGBA").getcolors(10**7)) > 100 for picture in shown)


def test_the_report_loads_nothing_from_elsewhere(quick):
    page = (quick[0] / "report.html").read_text(encoding="utf-8")
    assert not re.findall(r'(?:src|link[^>]*href)="(?!data:)', page)


def test_the_report_shows_the_table_and_that_it_means_nothing(quick):
    out, result = quick
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "mean nothing" in page
    for row in table(result):
        assert "".join(f"<td>{text}</td>" for text in vars(row).values()) in page


def test_the_printed_annotate_command_is_one_that_the_command_line_takes(quick):
    out, result = quick
    program, command, *arguments = shlex.split(result.annotate_command)
    options = annotate_command.make_context(command, arguments).params
    assert program == "torchrelabel"
    assert (options["data"], options["output"]) == (str(out / "train"), str(out / "maps.lmdb"))
    assert (options["model"], options["image_size"]) == (result.annotator, 128)


def test_the_annotate_command_gets_the_weights_that_the_package_ships(quick):
    out, result = quick
    _, command, *arguments = shlex.split(result.annotate_command)
    checkpoint = annotate_command.make_context(command, arguments).params["checkpoint"]
    assert checkpoint == str(out / "annotator.pth")
    assert (out / "annotator.pth").read_bytes() == WEIGHTS.read_bytes()


def test_another_scene_seed_draws_other_scenes_for_training_and_for_testing():
    seeds = [settings.seed for scene_seed in range(5) for settings in _scene_settings(QUICK, scene_seed)]
    assert len(set(seeds)) == 10


def test_the_command_and_its_scenes_have_the_scene_seed_that_was_asked_for(quick):
    out, result = quick
    assert "--scene-seed 3" in result.command
    train, test = _scene_settings(QUICK, 3)
    for settings in (train, test):
        assert json.loads((out / f"{settings.split}.json").read_text())["settings"]["seed"] == settings.seed


def test_the_same_command_gives_the_same_numbers_and_keeps_what_is_not_its_own(quick):
    out, first = quick
    (out / "notes.txt").write_text("mine")
    second = demo(out, seeds=1, scene_seed=3, quick=True, progress=False)
    for run in second.runs:
        (before,) = (earlier for earlier in first.runs_with(run.labels) if earlier.seed == run.seed)
        assert (run.top1, run.any_present, run.trained.losses) == (
            before.top1,
            before.any_present,
            before.trained.losses,
        )
    assert second.agreement_large == first.agreement_large
    assert (out / "notes.txt").read_text() == "mine"


def test_the_numbers_are_kept_as_json(quick):
    content = json.loads((quick[0] / "demo.json").read_text(encoding="utf-8"))
    assert content["result"]["agreement_small"] == quick[1].agreement_small


def test_torch_computes_with_as_many_threads_as_before():
    before = torch.get_num_threads()
    with _threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_folder_of_someone_else_is_refused_and_stays(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"was not made by the demo\. Choose another folder with --output"):
        demo(tmp_path, quick=True, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_demo_json_of_something_else_is_refused(tmp_path):
    (tmp_path / "demo.json").write_text("[]")
    with pytest.raises(FileExistsError, match=r"demo\.json was not written by this version"):
        demo(tmp_path, quick=True, progress=False)


def test_a_negative_scene_seed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="scene_seed must be 0 or more, got -1"):
        demo(tmp_path, scene_seed=-1, quick=True, progress=False)


def test_no_seeds_are_refused(tmp_path):
    with pytest.raises(ValueError, match="seeds must be 1 or more, got 0"):
        demo(tmp_path, seeds=0, quick=True, progress=False)


def test_a_missing_matplotlib_is_named_with_the_pip_command_before_anything_is_written(tmp_path, monkeypatch):
    original = builtins.__import__

    def without_matplotlib(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_matplotlib)
    with pytest.raises(ImportError, match=r'matplotlib.*pip install "torchrelabel\[demo\]"'):
        demo(tmp_path / "out", quick=True, progress=False)
    assert not (tmp_path / "out").exists()
