"""Image folders of scenes on disk, laid out as ``torchvision.datasets.ImageFolder`` wants them."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from torchrelabel.demo.digits import Digits
from torchrelabel.demo.scenes import LARGE, Scene, draw_scene, wrong_labels

FORMAT = "torchrelabel demo scenes 1"


@dataclass(frozen=True)
class FolderSettings:
    """What decides every pixel and every label of a folder.

    Attributes:
        split: The digits to draw from, ``"train"`` or ``"test"``.
        count: Number of scenes; the large digits are 0, 1, 2, ... in turn.
        seed: Seed of the folder.
        small: Fewest and most small digits beside the large one.
        large: Shortest and longest side of the large digit, as a share of the scene's shorter side.
        wrong: Share of the scenes whose label names one of their small digits.
    """

    split: str
    count: int
    seed: int
    small: tuple[int, int] = (1, 3)
    large: tuple[float, float] = LARGE
    wrong: float = 0.0


@dataclass(frozen=True)
class SceneRecord:
    """What is known about one image of a folder.

    Attributes:
        label: The digit that the image is filed under, right or wrong.
        digits: The digits present, the large one first.
        boxes: Where they are, xyxy in pixels, in the same order.
        sources: Their indices in scikit-learn's ``load_digits``, in the same order.
        size: Height and width in pixels.
    """

    label: int
    digits: tuple[int, ...]
    boxes: tuple[tuple[int, int, int, int], ...]
    sources: tuple[int, ...]
    size: tuple[int, int]


@dataclass(frozen=True)
class SceneFolder:
    """An image folder of scenes.

    Attributes:
        root: The folder; its images are ``root/<label>/<name>.png``.
        records: What each image shows, by its path relative to ``root``.
    """

    root: Path
    records: dict[str, SceneRecord]


def make_scene_folder(
    root: Path, digits: Digits, settings: FolderSettings, progress: Callable[[Sequence[str]], Any] = iter
) -> SceneFolder:
    """Write a folder of scenes, or take the one that is there with the same settings.

    What the images show goes into ``<root>.json`` beside the folder, before the first image is written. Only files that
    it names are ever overwritten or deleted.

    Args:
        root: The folder to make.
        digits: The digits of ``settings.split``.
        settings: What to draw.
        progress: Wraps the file names that are written, for example ``tqdm``.

    Returns:
        The folder and what its images show.

    Raises:
        FileExistsError: If the folder holds files that the demo did not make.
    """
    description = root.with_name(root.name + ".json")
    own, old = _read_description(description)
    _refuse_foreign_files(root, own.records if own else {})
    wanted = {"format": FORMAT, "settings": json.loads(json.dumps(asdict(settings)))}
    if own and old == wanted and all((root / key).is_file() for key in own.records):
        return own

    scenes = _draw_scenes(digits, settings)
    records = {key: record for key, (_, record) in scenes.items()}
    known = dict(own.records if own else {}) | records
    # While images are being written, the description names the old ones too, so that a run that is cut short leaves no
    # file behind that nobody owns up to.
    _write_description(description, {"format": FORMAT, "settings": None}, known)
    for key in known.keys() - records.keys():
        (root / key).unlink(missing_ok=True)
    for key in progress(list(scenes)):
        (root / key).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(scenes[key][0].image).save(root / key, compress_level=1)
    _write_description(description, wanted, records)
    return SceneFolder(root, records)


def read_scene_folder(root: Path) -> SceneFolder:
    """Take the folder of scenes that an earlier demo made.

    Raises:
        FileNotFoundError: If there is none, naming the command that makes one.
        FileExistsError: If another version of the demo made it.
    """
    folder, _ = _read_description(root.with_name(root.name + ".json"))
    if folder is None:
        raise FileNotFoundError(f"{root} holds no scenes of the demo. Make them first: torchrelabel demo")
    return folder


def _draw_scenes(digits: Digits, settings: FolderSettings) -> dict[str, tuple[Scene, SceneRecord]]:
    rng = np.random.default_rng(settings.seed)
    wrong = wrong_labels(settings.count, settings.wrong, rng)
    scenes = {}
    for index in range(settings.count):
        scene = draw_scene(digits, (settings.seed, index), index % 10, small=settings.small, large=settings.large)
        present = tuple(placed.digit for placed in scene.digits)
        label = int(rng.choice(present[1:])) if wrong[index] else present[0]
        record = SceneRecord(
            label=label,
            digits=present,
            boxes=tuple(placed.box for placed in scene.digits),
            sources=tuple(placed.source for placed in scene.digits),
            size=(scene.image.shape[0], scene.image.shape[1]),
        )
        scenes[f"{label}/scene-{index:05d}.png"] = (scene, record)
    return scenes


def _refuse_foreign_files(root: Path, own: dict[str, SceneRecord]) -> None:
    if not root.exists():
        return
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.relative_to(root).as_posix() not in own:
            raise FileExistsError(
                f"the demo did not make {path}, and would train on it. Move it, or choose another folder with --output"
            )


def _write_description(path: Path, head: dict[str, Any], records: dict[str, SceneRecord]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(head | {"scenes": {key: asdict(record) for key, record in sorted(records.items())}})
    new = path.with_name(path.name + ".new")
    new.write_text(text, encoding="utf-8")
    new.replace(path)


def _read_description(path: Path) -> tuple[SceneFolder | None, dict[str, Any]]:
    """Read what an earlier run wrote: the folder and its head, or None and an empty head."""
    if not path.exists():
        return None, {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != FORMAT:
            raise ValueError(content["format"])
        records = {key: _record(fields) for key, fields in content["scenes"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileExistsError(
            f"{path} was not written by this version of the demo. Move it away, or choose another folder with --output"
        ) from error
    head = {"format": content["format"], "settings": content["settings"]}
    return SceneFolder(path.with_suffix(""), records), head


def _record(fields: dict[str, Any]) -> SceneRecord:
    return SceneRecord(
        label=fields["label"],
        digits=tuple(fields["digits"]),
        boxes=tuple((x1, y1, x2, y2) for x1, y1, x2, y2 in fields["boxes"]),
        sources=tuple(fields["sources"]),
        size=(fields["size"][0], fields["size"][1]),
    )
