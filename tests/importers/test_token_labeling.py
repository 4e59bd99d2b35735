"""TokenLabeling's tree: each map covers the centre square of its image, and what lies outside is not invented."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torchvision.transforms import CenterCrop, Compose, Resize
from torchvision.transforms.functional import pil_to_tensor

from tests.importers.published import CLASSES, left_and_right, save, save_image, tensor
from torchrelabel import LabelPooling, LabelStore, ViewBox
from torchrelabel.data.records import label_map_of
from torchrelabel.importers import Summary, import_token_labeling
from torchrelabel.importers.trees import centre_square


def run(source: Path, output: Path, **options: Any) -> Summary:
    settings: dict[str, Any] = {"num_classes": CLASSES, "workers": 0, "progress": False}
    return import_token_labeling(source, output, **(settings | options))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("wide", "tall", "square"):
        save(tmp_path / f"labels/n01/{name}.pt", left_and_right(7, 6, left=3, right=8).half())
    return tmp_path / "labels"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    save_image(tmp_path / "train/n01/wide.JPEG", 40, 20)
    save_image(tmp_path / "train/n01/tall.JPEG", 10, 25)
    save_image(tmp_path / "train/n01/square.JPEG", 11, 11)
    return tmp_path / "train"


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "maps.lmdb"


def pooled(store: Path, name: str, *box: float) -> torch.Tensor:
    maps = LabelStore(store)
    label_map = label_map_of(maps[f"n01/{name}.JPEG"], maps.header, (11, 17), ViewBox(*box))
    return LabelPooling(activation=None)(label_map)


def test_each_record_covers_the_centre_square_of_its_image(tree: Path, images: Path, store: Path) -> None:
    run(tree, store, data=images)
    maps = LabelStore(store)
    assert maps["n01/wide.JPEG"].coverage == pytest.approx((0.25, 0, 0.75, 1))
    assert maps["n01/tall.JPEG"].coverage == pytest.approx((0, 0.3, 1, 0.7))
    assert maps["n01/square.JPEG"].coverage == (0, 0, 1, 1)
    assert maps.header.coverage == "record"
    assert maps.header.annotator["crop_pct"] == 1


@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
@pytest.mark.parametrize("size", [(500, 375), (300, 620)])
def test_the_square_is_what_resizing_and_cropping_leaves(
    tmp_path: Path, size: tuple[int, int], crop_pct: float
) -> None:
    # A picture whose pixels say where they are: red from left to right, green from top to bottom.
    from PIL import Image

    width, height = size
    x = torch.linspace(0, 255, width).expand(height, width)
    y = torch.linspace(0, 255, height)[:, None].expand(height, width)
    picture = Image.fromarray(torch.stack([x, y, y], 2).byte().numpy())
    picture.save(tmp_path / "x.png")
    seen = pil_to_tensor(Compose([Resize(int(224 / crop_pct)), CenterCrop(224)])(picture)).float() / 255
    x1, y1, x2, y2 = centre_square(str(tmp_path / "x.png"), crop_pct)
    assert (x1, x2) == pytest.approx((seen[0, 100, 0].item(), seen[0, 100, -1].item()), abs=0.012)
    assert (y1, y2) == pytest.approx((seen[1, 0, 100].item(), seen[1, -1, 100].item()), abs=0.012)


def test_a_view_of_the_left_of_the_square_gives_the_class_of_its_left(tree: Path, images: Path, store: Path) -> None:
    run(tree, store, data=images)
    label = pooled(store, "wide", 0.25, 0, 0.4, 1)
    assert label[3].item() == pytest.approx(9, abs=1e-4)
    assert label[8].item() == pytest.approx(0, abs=1e-4)


def test_a_view_that_reaches_outside_the_square_pools_only_what_is_inside(
    tree: Path, images: Path, store: Path
) -> None:
    run(tree, store, data=images)
    inside = pooled(store, "wide", 0.25, 0, 0.4, 1)
    assert torch.allclose(pooled(store, "wide", 0, 0, 0.4, 1), inside, atol=1e-4)
    whole = pooled(store, "wide", 0, 0, 1, 1)
    assert whole[3].item() == pytest.approx(4.5, abs=1e-4)


def test_the_summary_says_how_much_is_not_covered(tree: Path, images: Path, store: Path) -> None:
    summary = run(tree, store, data=images)
    assert summary.partly_covered == 2
    assert summary.share_not_covered == pytest.approx((0.5 + 0.6 + 0) / 3)


def test_a_smaller_crop_covers_less_of_every_image(tree: Path, images: Path, store: Path) -> None:
    summary = run(tree, store, data=images, crop_pct=0.8)
    assert LabelStore(store)["n01/square.JPEG"].coverage == pytest.approx((0.1, 0.1, 0.9, 0.9))
    assert summary.partly_covered == 3


def test_without_the_images_sizes_it_refuses(tree: Path, store: Path) -> None:
    with pytest.raises(
        ValueError, match=r"so the sizes of the images are needed: give their folder .DATA., or --assume-square"
    ):
        run(tree, store)
    assert not store.exists()


def test_sizes_and_the_assumption_exclude_each_other(tree: Path, images: Path, store: Path) -> None:
    with pytest.raises(ValueError, match="and not both"):
        run(tree, store, data=images, assume_square=True)


@pytest.mark.parametrize(("crop_pct", "coverage"), [(1.0, "whole"), (0.5, (0.25, 0.25, 0.75, 0.75))])
def test_assumed_squares_are_said_once_in_the_header(tree: Path, store: Path, crop_pct: float, coverage: Any) -> None:
    run(tree, store, assume_square=True, crop_pct=crop_pct)
    header = LabelStore(store).header
    assert header.coverage == coverage
    assert header.annotator["assume_square"] is True


@pytest.mark.parametrize("crop_pct", [0, 1.01, float("nan")])
def test_a_crop_that_is_no_part_of_the_image_is_refused(tree: Path, images: Path, store: Path, crop_pct: float) -> None:
    with pytest.raises(ValueError, match="crop_pct must be more than 0 and at most 1"):
        run(tree, store, data=images, crop_pct=crop_pct)


def test_an_image_whose_size_cannot_be_read_fails_by_name(tree: Path, images: Path, store: Path) -> None:
    (images / "n01/wide.JPEG").write_bytes(b"no image")
    summary = run(tree, store, data=images)
    assert summary.failed == [
        ("n01/wide.JPEG", "n01/wide.pt: the size of its image cannot be read (UnidentifiedImageError)")
    ]
    assert summary.imported == 2


def test_single_precision_is_an_error_that_names_the_other_format(tree: Path, images: Path, store: Path) -> None:
    for path in tree.rglob("*.pt"):
        save(path, tensor())
    with pytest.raises(ValueError) as caught:
        run(tree, store, data=images)
    assert "its numbers are float32, and this format has float16" in str(caught.value)
    assert "Folders of .pt files are also what relabel has." in str(caught.value)
