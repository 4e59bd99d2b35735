"""Ground-truth boxes as ImageNet and Pascal VOC publish them: one XML file an image."""

from __future__ import annotations

import math
import os
import stat
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from torchrelabel.folders import walk

_ADVICE = "Give the folder that holds the XML files of the boxes."
_MAX_BYTES = 1_000_000  # ImageNet's largest files have a few tens of kilobytes


class OddXml(Exception):
    """A file of boxes that is refused; the message is the reason."""


@dataclass(frozen=True)
class Boxes:
    """The boxes of one image.

    Attributes:
        names: What each box shows: a WordNet id in ImageNet.
        xyxy: ``[N, 4]``, in pixels of ``size``.
        size: (W, H) of the image that the boxes were drawn on, or None where the file does not say.
    """

    names: tuple[str, ...]
    xyxy: Tensor
    size: tuple[float, float] | None

    def in_image(self, height: int, width: int) -> Tensor:
        """The boxes in fractions of an image of H x W pixels, cut off at its border, ``[N, 4]``.

        Raises:
            OddXml: If one lies outside.
        """
        across, down = self.size or (width, height)
        boxes = (self.xyxy / torch.tensor([across, down, across, down])).clamp(0, 1)
        if ((boxes[:, 2:] - boxes[:, :2]) <= 0).any():
            raise OddXml("a box lies outside the image")
        return boxes


class BoxFolder:
    """The XML files of a folder and of the folders in it, found by the name of their image.

    ``n01440764/x.JPEG`` has its boxes in ``n01440764/x.xml``, or in the one ``x.xml`` that there is anywhere.

    Args:
        root: The folder.
        keys: All images, to refuse an ``x.xml`` that would serve two of them.

    Raises:
        NotADirectoryError: If it is a file.
        FileNotFoundError: If there is no such folder, or no XML file in it.
    """

    def __init__(self, root: str | os.PathLike[str], keys: Iterable[str]) -> None:
        self._exact: dict[str, Path] = {}
        self._by_stem: dict[str, list[Path]] = {}
        for name in walk(root, advice=_ADVICE).names:
            if name.endswith(".xml"):
                path = Path(root, name)
                self._exact[name.removesuffix(".xml")] = path
                self._by_stem.setdefault(path.stem, []).append(path)
        if not self._exact:
            raise FileNotFoundError(f"There is no .xml file in {str(root)!r} or the folders in it. {_ADVICE}")
        self._images_of_stem = Counter(PurePosixPath(key).stem for key in keys)

    def file_of(self, key: str) -> Path | None:
        """The XML file of an image, or None.

        Raises:
            OddXml: If there are several, or it would serve several images.
        """
        image = PurePosixPath(key)
        path = self._exact.get(str(image.with_suffix("")))
        if path is not None and image.parent != PurePosixPath("."):
            return path
        found = self._by_stem.get(image.stem, [])
        if len(found) > 1:
            raise OddXml(f"{len(found)} files have this name, and none lies in the image's folder")
        if found and self._images_of_stem[image.stem] > 1:
            raise OddXml(f"{self._images_of_stem[image.stem]} images have this name: sort the files into their folders")
        return found[0] if found else None


def read_boxes(path: Path) -> Boxes:
    """Read the boxes of one image.

    A document type or an entity is refused before anything is parsed: entities can make a small file huge, or read
    other files.

    Raises:
        OddXml: If the file is refused, saying why.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a named pipe would wait for ever
            raise OddXml("not a regular file")
        with open(path, "rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise OddXml(error.strerror or str(error)) from None
    if len(content) > _MAX_BYTES:
        raise OddXml(f"larger than {_MAX_BYTES} bytes")
    try:
        # As text, so that no other encoding can hide what is looked for.
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise OddXml("not UTF-8") from None
    # UTF-16 without a byte order mark is also UTF-8, full of NULs, and expat reads it as UTF-16 all the same.
    if "\0" in text:
        raise OddXml("not UTF-8")
    for word in ("<!doctype", "<!entity"):
        if word in text.lower():
            raise OddXml(f"it has a {word[2:].upper()}, which is not read")
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        raise OddXml(f"not XML: {error}") from None
    if root.tag != "annotation":
        raise OddXml(f"its root is <{root.tag[:40]}>, not <annotation>")
    objects = root.findall("object")
    size = root.find("size")
    sides = None if size is None else (_number(size, "width"), _number(size, "height"))
    if sides is not None and min(sides) <= 0:
        sides = None  # some tools write zeros
    boxes = [[_number(each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")] for each in objects]
    for x1, y1, x2, y2 in boxes:
        if x1 >= x2 or y1 >= y2:
            raise OddXml(f"a box has no width or no height: {x1:g}, {y1:g}, {x2:g}, {y2:g}")
    names = tuple((each.findtext("name") or "").strip() for each in objects)
    return Boxes(names, torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), sides)


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of every box of one list with every box of another.

    Args:
        first: ``[N, 4]``, xyxy.
        second: ``[M, 4]``, xyxy, in the same frame.

    Returns:
        ``[N, M]``.
    """
    sides = torch.minimum(first[:, None, 2:], second[None, :, 2:]) - torch.maximum(
        first[:, None, :2], second[None, :, :2]
    )
    shared = sides.clamp(min=0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (first, second)]
    return shared / (areas[0][:, None] + areas[1][None] - shared)


def _number(element: ElementTree.Element, path: str) -> float:
    text = element.findtext(path)
    try:
        value = float(text or "")
    except ValueError:
        raise OddXml(f"<{path}> is {text!r:.60}, not a number") from None
    if not math.isfinite(value):
        raise OddXml(f"<{path}> is {text!r:.60}, not a finite number")
    return value
