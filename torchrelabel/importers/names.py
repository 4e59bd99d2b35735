"""Which image a published label map belongs to, as far as file names tell."""

from __future__ import annotations

import os
import posixpath
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path

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
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"There is no folder {str(root)!r}.")
    if not root.is_dir():
        raise NotADirectoryError(
            f"{str(root)!r} is a file, and this format is a folder of .pt files. Extract an archive first."
        )
    names: list[str] = []
    total = others = 0
    problems: list[tuple[str, str]] = []
    # Folders still to look into: their prefix, and the real paths of the folder and of all above it.
    waiting: list[tuple[str, frozenset[str]]] = [("", frozenset({os.path.realpath(root)}))]
    while waiting:
        prefix, above = waiting.pop()
        try:
            with os.scandir(os.path.join(root, prefix)) as entries:
                for entry in entries:
                    if _is_folder(entry):
                        real = os.path.realpath(entry.path)
                        if real in above:
                            problems.append((prefix + entry.name, f"a link back to {real}, which it lies in"))
                        else:
                            waiting.append((f"{prefix}{entry.name}/", above | {real}))
                    elif entry.name.endswith(MAP_SUFFIX):
                        names.append(prefix + entry.name.removesuffix(MAP_SUFFIX))
                        total += occupied(entry)
                    else:
                        others += 1
        except OSError as error:
            problems.append((prefix.rstrip("/") or str(root), error.strerror or str(error)))
    if not names:
        seen = sorted(entry.name for entry in root.iterdir())[:4] if not problems else []
        raise ValueError(
            f"There is no .pt file in {str(root)!r} or the folders in it"
            + (f"; it holds {', '.join(seen)}" if seen else "")
            + "".join(f". Not looked into: {path} ({reason})" for path, reason in sorted(problems))
            + ". Give the folder that holds the class folders with the label maps."
        )
    return MapFiles(sorted(names), total, others, sorted(problems))


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


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: no folder, and no reason to leave the others unseen
        return False


def occupied(path: str | os.PathLike[str]) -> int:
    """Bytes that a file takes up on disk, which is less than its length where it is sparse; 0 for a broken link."""
    try:
        status = os.stat(path)
    except OSError:
        return 0
    # Windows does not tell: blocks of 4 KiB, as on most file systems.
    return getattr(status, "st_blocks", -(-status.st_size // 4096) * 8) * 512
