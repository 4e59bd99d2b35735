"""Windows in place of cells: cut where they should be, classified as the model classifies any image."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from torchrelabel import LabelStore, UnsupportedModel
from torchrelabel.annotate import Annotator, annotate
from torchrelabel.annotate.calibrate import calibrate
from torchrelabel.annotate.images import find_images, load_image, squashed
from torchrelabel.annotate.made_by import annotator_of, differences
from torchrelabel.annotate.windows import WindowHead
from torchrelabel.check import check
from torchrelabel.check.words import words

NEUTRAL: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class MeanColours(nn.Module):
    """Says how red, green and blue an image is on average, and nothing of where: no features, no grid."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(4.0))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((2, 3)) * self.scale


def own_annotator(windows: int = 3, size: int = 8, **options: Any) -> Annotator:
    return Annotator.from_model(
        model=MeanColours(), image_size=size, windows=windows, device="cpu", **NEUTRAL, **options
    )


def noise(size: tuple[int, int] = (40, 28), seed: int = 0) -> Image.Image:
    # Blocks of 4 px, so that resizing does not level them.
    blocks = np.random.default_rng(seed).integers(0, 256, (size[1] // 4, size[0] // 4, 3), dtype=np.uint8)
    return Image.fromarray(blocks.repeat(4, 0).repeat(4, 1))


def save_images(root: Path, count: int) -> Path:
    for number in range(count):
        folder = root / f"class {number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        noise(seed=number).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize(("windows", "size"), [(2, 8), (2, 9), (3, 8), (4, 8), (5, 7)])
def test_windows_overlap_by_half_and_reach_every_border(windows: int, size: int) -> None:
    head = WindowHead(MeanColours(), size, windows)
    assert head.map_size == -(-size * (windows + 1) // 2)
    seen: list[tuple[int, int]] = []
    # The value of a pixel is its place, so that the least of a window is its corner.
    places = torch.arange(head.map_size**2, dtype=torch.float32).reshape(1, 1, head.map_size, -1).expand(1, 3, -1, -1)

    def corner(images: Tensor) -> Tensor:
        seen.append(divmod(int(images[0, 0].min()), head.map_size))
        assert images.shape == (1, 3, size, size)
        return torch.zeros(1, 3)

    head.model = corner
    head(places)
    rows, columns = sorted({y for y, _ in seen}), sorted({x for _, x in seen})
    assert seen == [(y, x) for y in rows for x in columns]  # row by row
    assert rows == columns and len(rows) == windows
    assert rows[0] == 0 and rows[-1] + size == head.map_size
    assert all(abs(after - before - size / 2) <= 1 for before, after in pairwise(rows))


def test_a_window_gets_what_the_model_says_of_it_as_an_image() -> None:
    annotator, image = own_annotator(), noise((64, 64))
    enlarged = annotator.normalise(squashed(image, 16, "bilinear")[None])
    small = annotator.normalise(squashed(image, 8, "bilinear")[None])
    top = annotator.top_scores(small, 3, enlarged=enlarged)
    dense = torch.zeros(3, 3, 3).scatter_(0, top.classes[0].long(), top.scores[0])
    for row in range(3):
        for column in range(3):
            window = enlarged[:, :, 4 * row : 4 * row + 8, 4 * column : 4 * column + 8]
            torch.testing.assert_close(dense[:, row, column], annotator.whole(window)[0])
    torch.testing.assert_close(top.image_scores, annotator.whole(small))
    torch.testing.assert_close(annotator(enlarged)[0], dense)
    assert top.residual is None  # nothing is left out


def test_the_rest_of_a_window_is_kept_as_that_of_a_cell() -> None:
    annotator = own_annotator(2)
    images = torch.randn(2, 3, 12, 12)
    top = annotator.top_scores(torch.randn(2, 3, 8, 8), 1, enlarged=images)
    dense = annotator(images)
    assert top.residual is not None
    torch.testing.assert_close(top.scores[:, 0], dense.amax(1))
    rest = dense.scatter(1, top.classes.long(), -torch.inf).logsumexp(1)
    torch.testing.assert_close(top.residual, rest)


@pytest.mark.parametrize("windows", [2, 3])
def test_any_classifier_annotates_by_windows_and_its_labels_are_calibrated(tmp_path: Path, windows: int) -> None:
    root = save_images(tmp_path / "images", 18)
    annotator = own_annotator(windows)
    summary = annotate(root, tmp_path / "maps.lmdb", model=annotator, workers=0, progress=False)
    assert (summary.grid, summary.windows, summary.top_k, summary.failed) == ((windows, windows), windows, 3, [])
    assert summary.crop_fit is not None and summary.crop_fit.pays
    assert not any("commute" in note for note in summary.notes)
    store = LabelStore(tmp_path / "maps.lmdb")
    assert store.header.annotator["windows"] == windows
    with find_images(root).open("class 1/3.png") as file:
        image = load_image(file)
    own = annotator.whole(annotator.normalise(squashed(image, annotator.map_size, "bilinear")[None][..., :8, :8]))
    record = store["class 1/3.png"]  # its first window
    dense = torch.zeros(3).scatter_(
        0, torch.tensor(record.classes[:, 0, 0]).long(), torch.tensor(record.scores[:, 0, 0])
    )
    torch.testing.assert_close(dense, own[0], atol=2e-3, rtol=1e-3)  # float16


def test_a_run_by_windows_goes_on_and_no_other_kind_of_run_continues_it(tmp_path: Path) -> None:
    from torchrelabel import SettingsDiffer

    root, options = save_images(tmp_path / "images", 2), {"model": "resnet10t", "pretrained": False, "device": "cpu"}
    options |= {"image_size": 64, "workers": 0, "progress": False}
    first = annotate(root, tmp_path / "maps.lmdb", windows=2, **options)
    assert (first.grid, first.top_k) == ((2, 2), 100)
    assert annotate(root, tmp_path / "maps.lmdb", windows=2, **options).already_there == 2
    with pytest.raises(SettingsDiffer, match="windows"):
        annotate(root, tmp_path / "maps.lmdb", windows=3, **options)
    with pytest.raises(SettingsDiffer, match="windows"):
        annotate(root, tmp_path / "maps.lmdb", top_k=100, **options)


def test_the_annotator_of_a_store_sees_windows_again(tmp_path: Path) -> None:
    root = save_images(tmp_path / "images", 2)
    options = {"pretrained": False, "device": "cpu", "image_size": 64, "workers": 0, "progress": False}
    annotate(root, tmp_path / "maps.lmdb", model="resnet10t", windows=2, **options)
    header = LabelStore(tmp_path / "maps.lmdb").header
    again = annotator_of(header, device="cpu")
    assert (again.windows, again.map_size, differences(again, header)) == (2, 96, [])
    cells = Annotator.from_timm("resnet10t", pretrained=False, image_size=64, device="cpu", enlarge=1.5)
    assert differences(cells, header) == [
        "The maps here are of cells, and were of 2 x 2 windows when the store was made."
    ]


def test_check_looks_at_windows_and_says_nothing_of_pooling_cells(tmp_path: Path) -> None:
    root, annotator = save_images(tmp_path / "images", 18), own_annotator()
    annotate(root, tmp_path / "maps.lmdb", model=annotator, workers=0, progress=False)
    report = check(tmp_path / "maps.lmdb", root, model=annotator, crops=36)
    assert report.faults == [] and report.commuting is None
    assert report.bands and "mean over cells" not in words(report)
    cells = next(each for each in report.orientation if each is not None and each.evidence == "cells")
    assert cells.score_as_stored == 1


def test_a_model_whose_features_are_no_grid_annotates_by_windows() -> None:
    with pytest.raises(UnsupportedModel, match=r"By windows \(--windows 3\) any classifier does"):
        Annotator.from_timm("pit_ti_224", pretrained=False, device="cpu")
    annotator = Annotator.from_timm("pit_ti_224", pretrained=False, device="cpu", windows=2)
    assert (annotator.grid, annotator.map_size, annotator.num_classes) == ((2, 2), 336, 1000)


def test_windows_in_half_precision_have_scores_in_float32(tmp_path: Path) -> None:
    root = save_images(tmp_path / "images", 2)
    options = {"pretrained": False, "device": "cpu", "image_size": 64, "workers": 0, "progress": False}
    annotate(root, tmp_path / "maps.lmdb", model="resnet10t", windows=2, amp=True, **options)
    annotator = annotator_of(LabelStore(tmp_path / "maps.lmdb").header, device="cpu")
    amp = Annotator.from_timm("resnet10t", pretrained=False, image_size=64, device="cpu", windows=2, amp=True)
    images = torch.randn(2, 3, 96, 96)
    assert amp(images).dtype == torch.float32
    torch.testing.assert_close(amp(images), annotator(images), atol=0.1, rtol=0.1)


def test_a_copy_on_another_device_sees_the_same_windows() -> None:
    annotator = own_annotator()
    images = torch.randn(1, 3, 16, 16)
    copied = annotator.on("cpu")
    assert copied.windows == 3
    torch.testing.assert_close(copied(images), annotator(images))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"windows": 1}, ValueError, "2 or more along each side, got 1"),
        ({"windows": 2, "enlarge": 2.0}, ValueError, "Leave one of them out"),
        ({"windows": 2, "head": nn.Identity()}, TypeError, "neither features nor head"),
        ({"windows": 2, "model": None}, TypeError, "give model="),
        ({"windows": 2, "model": nn.Conv2d(3, 4, 1)}, UnsupportedModel, r"returns \[1, 4, 8, 8\] for one image"),
        (
            {"windows": 2, "model": nn.Sequential(nn.Flatten(1), nn.Linear(5, 2))},
            ValueError,
            "cannot take an image of 8",
        ),
        ({}, TypeError, "give features= and head="),
    ],
)
def test_windows_that_cannot_be_are_refused(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        Annotator.from_model(**{"model": MeanColours(), "image_size": 8, "device": "cpu", **NEUTRAL, **options})


def test_an_annotator_of_windows_is_not_enlarged_and_asks_for_the_enlarged_image() -> None:
    with pytest.raises(ValueError, match="classifies windows"):
        own_annotator().enlarged(2)
    with pytest.raises(ValueError, match="give enlarged=, at 16 px"):
        own_annotator().top_scores(torch.zeros(1, 3, 8, 8), 1)


def test_calibrating_again_takes_the_windows_of_the_store(tmp_path: Path) -> None:
    root, annotator = save_images(tmp_path / "images", 18), own_annotator()
    annotate(root, tmp_path / "maps.lmdb", model=annotator, workers=0, progress=False)
    fit = calibrate(LabelStore(tmp_path / "maps.lmdb"), find_images(root), annotator)
    assert fit is not None and fit.images == 18
