"""Trees of ``<class folder>/<stem>.pt``, the layout that ReLabel and TokenLabeling share."""

from __future__ import annotations

import os
import stat
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from PIL import Image

from torchrelabel.importers.names import MAP_SUFFIX, find_map_files, names_of_map
from torchrelabel.importers.processes import read_all
from torchrelabel.importers.run import Failed, Imported, Summary, check_settings, pair_up, say, spread, write_store
from torchrelabel.importers.tensor_file import DTYPES, LARGEST_EXACT_HALF, read_map

SORTED = "scores were not in descending order, and were sorted"

# So many files are tried, and so many sound ones are enough, to learn K and the grid.
_TRIED, _ENOUGH = 256, 16


@dataclass(frozen=True)
class TreeFormat:
    """What tells one format of this layout from another.

    Attributes:
        name: As in the command.
        model: What the publication says of the annotator.
        alike: The other format of the layout.
        centre_square: Whether a map covers only the centre square of its image.
    """

    name: str
    model: str
    alike: str
    centre_square: bool


@dataclass(frozen=True)
class TreeReader:
    """Reads the maps of a tree one by one; picklable, for it is called in other processes.

    Attributes:
        root: The tree.
        dtype: What its numbers are.
        num_classes: C.
        axes: ``"hw"`` or ``"wh"``.
        top_k: K that a map must have; None takes any.
        images: Folder of the images, if each map covers the centre square of its own; None if it need not be known.
        crop_pct: Side of that square, as a fraction of the image's short side.
    """

    root: str
    dtype: str
    num_classes: int
    axes: str = "hw"
    top_k: int | None = None
    images: str | None = None
    crop_pct: float = 1.0

    def __call__(self, item: tuple[str, str]) -> Imported | Failed:
        """Read one map, given as (image, name of its map)."""
        key, name = item
        try:
            decoded = read_map(self.path(name), dtype=self.dtype, num_classes=self.num_classes, axes=self.axes)
            kept = decoded.scores.shape[0]
            if self.top_k is not None and kept != self.top_k:
                raise ValueError(f"it keeps {kept} classes in each cell, and most of the others {self.top_k}")
            coverage = None if self.images is None else centre_square(os.path.join(self.images, key), self.crop_pct)
        except FileNotFoundError:
            return Failed(key, f"{name}{MAP_SUFFIX}: no such file, or a broken link")
        except (OSError, ValueError) as error:
            return Failed(key, f"{name}{MAP_SUFFIX}: {getattr(error, 'strerror', None) or error}")
        repairs = (SORTED,) if decoded.sorted else ()
        return Imported(key, decoded.scores, decoded.classes, coverage, repairs, decoded.checked)

    def path(self, name: str) -> str:
        """The file of a map."""
        return os.path.join(self.root, name + MAP_SUFFIX)


def import_tree(
    tree_format: TreeFormat,
    source: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None,
    suffix: str,
    num_classes: int,
    dtype: str,
    codec: str,
    workers: int | None,
    progress: bool,
    axes: str = "hw",
    crop_pct: float = 1.0,
) -> Summary:
    """Import a tree. Arguments, result and errors are those of `import_relabel` and `import_token_labeling`."""
    check_settings(num_classes, workers)
    if dtype not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if dtype == "float16" and num_classes - 1 > LARGEST_EXACT_HALF:
        raise ValueError(
            f"Class indices in float16 are exact up to {LARGEST_EXACT_HALF} only, so of {num_classes} classes some "
            f"were stored as others ({LARGEST_EXACT_HALF + 1} as {LARGEST_EXACT_HALF}), and they cannot be told "
            f"apart. Annotate the images instead."
        )
    summary = Summary(str(output), tree_format.name)
    files = find_map_files(source)
    summary.bytes_before = files.bytes
    for path, reason in files.problems:
        say(summary, f"Not looked into: {path} ({reason})", progress)
    if files.others:
        say(summary, f"{files.others} files in {os.fspath(source)!r} are no .pt files, and were left out.", progress)
    if data is None and not all("/" in name for name in files.names):
        say(
            summary,
            "Some maps lie in no class folder. If the images' folders have dots in their names, the maps' names were "
            "cut there; with the folder of the images (DATA) that is found out.",
            progress,
        )
    reader = TreeReader(os.fspath(source), dtype, num_classes, axes)
    top_k, grid = _learn(reader, files.names, tree_format)
    matching, images = pair_up(
        files.names,
        data,
        names_of=names_of_map,
        key_of=lambda name: name + suffix,
        num_classes=num_classes,
        summary=summary,
        skip=output,
    )
    per_image = tree_format.centre_square and images.root is not None
    reader = replace(reader, top_k=top_k, images=images.root if per_image else None, crop_pct=crop_pct)
    coverage: Any = "record" if per_image else _square(1, 1, crop_pct) if crop_pct < 1 else "whole"
    return write_store(
        summary,
        matching,
        images,
        partial(read_all, reader, workers=workers, label=_image_of),
        description={
            "model": tree_format.model,
            "format": tree_format.name,
            "source": os.path.basename(os.path.abspath(source)),
            "axes": axes,
            **(
                {"resize": "centre square", "crop_pct": crop_pct, "assume_square": not per_image}
                if tree_format.centre_square
                else {"resize": "squash"}
            ),
        },
        progress=progress,
        num_classes=num_classes,
        top_k=top_k,
        grid=grid,
        coverage=coverage,
        codec=codec,
    )


def centre_square(image: str, crop_pct: float) -> tuple[float, float, float, float]:
    """The centre square of an image, xyxy in fractions of it; only the image's header is read.

    Raises:
        ValueError: If the image's size cannot be had.
    """
    try:
        # Opening a named pipe would wait for ever.
        if not stat.S_ISREG(os.stat(image).st_mode):
            raise OSError("not a regular file")
        with warnings.catch_warnings():  # of huge images, of which nothing but the size is read
            warnings.simplefilter("ignore")
            with Image.open(image) as opened:
                width, height = opened.size
    except Exception as error:  # PIL raises nearly anything for damaged files
        raise ValueError(f"the size of its image cannot be read ({type(error).__name__})") from None
    return _square(width, height, crop_pct)


def _square(width: int, height: int, crop_pct: float) -> tuple[float, float, float, float]:
    side = crop_pct * min(width, height)
    x1, y1 = (1 - side / width) / 2, (1 - side / height) / 2
    return x1, y1, 1 - x1, 1 - y1


def _learn(reader: TreeReader, names: list[str], tree_format: TreeFormat) -> tuple[int, tuple[int, int]]:
    """K and the grid that most maps have.

    Raises:
        ValueError: If not one of the maps tried is sound.
    """
    top_ks: Counter[int] = Counter()
    grids: Counter[tuple[int, int]] = Counter()
    first, tried = "", 0
    for name in spread(names, _TRIED):
        tried += 1
        found = reader((name, name))
        if isinstance(found, Failed):
            first = first or found.reason
            continue
        top_k, rows, columns = found.scores.shape
        top_ks[top_k] += 1
        grids[rows, columns] += 1
        if top_ks.total() == _ENOUGH:
            break
    if not top_ks:
        raise ValueError(
            f"Not one of {tried} files tried in {reader.root!r} is a label map of the format {tree_format.name} "
            f"([2, K, h, w], {reader.dtype}). The first: {first}. "
            f"Folders of .pt files are also what {tree_format.alike} has."
        )
    return top_ks.most_common(1)[0][0], grids.most_common(1)[0][0]


def _image_of(item: tuple[str, str]) -> str:
    return item[0]
