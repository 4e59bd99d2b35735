"""Which image a published label map belongs to, as far as file names tell."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from torchrelabel.folders import disk_usage, walk

MAP_SUFFIX = ".pt"


@dataclass(frozen=True)
class MapFiles:
    """The label maps in a folder.

    Attributes:
        names: Paths relative to the folder, ``/`` separators, without ``.pt``, sorted.
        bytes: What they occupy on disk.
        others: How many files that are no ``.pt`` lie beside them.
        problems: Folders that could not be looked into, as (path, reason).
    """

    names: list[str]
    bytes: int
    others: int
    problems: list[tuple[str, str]]


@dataclass
class Matching:
    """Images and maps, put together by name.

    Attributes:
        pairs: Image -> name of its map.
        ambiguous: Image -> why it is unknown which map is its own.
        images_alone: Images without a map, sorted.
        maps_alone: Maps without an image, sorted.
    """

    pairs: dict[str, str]
    ambiguous: dict[str, str] = field(default_factory=dict)
    images_alone: list[str] = field(default_factory=list)
    maps_alone: list[str] = field(default_factory=list)


def find_map_files(root: str | os.PathLike[str]) -> MapFiles:
    """Find the ``.pt`` files of a folder and of the folders in it. Links to folders are followed, but not in circles.

    Raises:
        FileNotFoundError: If there is no such folder.
        NotADirectoryError: If it is a file.
        ValueError: If there is no ``.pt`` file.
    """
    files = walk(root, advice="This format is a folder of .pt files: extract an archive first.")
    root = Path(root)
    names = [name.removesuffix(MAP_SUFFIX) for name in files.names if name.endswith(MAP_SUFFIX)]
    if not names:
        seen = sorted(entry.name for entry in root.iterdir())[:4] if not files.problems else []
        raise ValueError(
            f"There is no .pt file in {str(root)!r} or the folders in it"
            + (f"; it holds {', '.join(seen)}" if seen else "")
            + "".join(f". Not looked into: {path} ({reason})" for path, reason in files.problems)
            + ". Give the folder that holds the class folders with the label maps."
        )
    used = disk_usage(os.path.join(root, name + MAP_SUFFIX) for name in names)
    return MapFiles(sorted(names), used, len(files.names) - len(names), files.problems)


def names_of_map(root: str) -> Callable[[str], list[str]]:
    """How the map of an image may be called in a tree of ReLabel's or TokenLabeling's, the best name first.

    Both projects name the map of ``<root>/n01/x.JPEG`` by the last two parts of the path, cut at the first dot:
    ``n01/x``. A name that keeps the dots of an image's own was given by somebody else, on purpose, and comes first.

    Args:
        root: Name of the images' folder, which is the last part but one of an image that lies directly in it.

    Source: ``'/'.join(path.split('/')[-2:]).split('.')[0]`` in naver-ai/relabel_imagenet
    (``utils/relabel_functions.py``) and in zihangJiang/TokenLabeling (``generate_label.py``).
    """

    def names(key: str) -> list[str]:
        last_two = "/".join(f"{root}/{key}".split("/")[-2:])
        return [posixpath.splitext(key)[0], last_two.split(".")[0]]

    return names


def match(maps: Collection[str], images: Iterable[str], names_of: Callable[[str], list[str]]) -> Matching:
    """Put images and maps together; what two images could claim goes to neither.

    Args:
        maps: Names of the maps.
        images: Keys of the images.
        names_of: The names that the map of an image may have; the first that there is counts.
    """
    maps = set(maps)
    claims: dict[str, list[str]] = defaultdict(list)
    alone = []
    for image in images:
        name = next((name for name in names_of(image) if name in maps), None)
        if name is None:
            alone.append(image)
        else:
            claims[name].append(image)
    matching = Matching({}, {}, sorted(alone), sorted(maps - claims.keys()))
    for name, claimed_by in claims.items():
        if len(claimed_by) == 1:
            matching.pairs[claimed_by[0]] = name
            continue
        for image in claimed_by:
            other = next(other for other in claimed_by if other != image)
            matching.ambiguous[image] = (
                f"the label map {name!r} could be that of {len(claimed_by)} images, {other!r} is another: their names "
                f"agree up to the first dot"
            )
    return matching
