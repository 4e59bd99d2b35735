"""Boxes: XML files from elsewhere, and IoU."""

import os

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from tests.check.colours import write_xml
from torchrelabel.check.boxes import BoxFolder, OddXml, iou, read_boxes


def area_by_pixels(boxes):
    canvas = np.zeros((17, 23), bool)
    for x1, y1, x2, y2 in boxes:
        canvas[y1:y2, x1:x2] = True
    return canvas


def test_iou_is_that_of_counted_pixels():
    rng = np.random.default_rng(0)
    corners = np.sort(rng.integers(0, 17, (40, 2, 2)), 1).reshape(40, 4)
    boxes = [tuple(map(int, box)) for box in corners if box[0] < box[2] and box[1] < box[3]]
    masks = [area_by_pixels([box]) for box in boxes]
    expected = torch.tensor([[(a & b).sum() / (a | b).sum() for b in masks] for a in masks], dtype=torch.float32)
    assert len(boxes) > 20
    assert_close(iou(torch.tensor(boxes).float(), torch.tensor(boxes).float()), expected)


def test_boxes_and_names_are_read_in_pixels_of_their_own_size(tmp_path):
    path = write_xml(tmp_path / "a.xml", [(7, 6, 35, 30)], size=(70, 60), names=["n00000003"])
    boxes = read_boxes(path)
    assert boxes.names == ("n00000003",)
    assert_close(boxes.in_image(30, 35), torch.tensor([[0.1, 0.1, 0.5, 0.5]]))


GOOD = "<annotation><object><name>a</name><bndbox>%s</bndbox></object></annotation>"
BOX = "<xmin>%s</xmin><ymin>2</ymin><xmax>9</xmax><ymax>8</ymax>"
BOMB = '<!DOCTYPE a [<!ENTITY b "bbbb"><!ENTITY c "&b;&b;&b;&b;">]><annotation>&c;</annotation>'


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (BOMB.encode(), "it has a DOCTYPE"),
        (BOMB.lower().encode(), "it has a DOCTYPE"),
        (b'<annotation><!ENTITY x SYSTEM "file:///etc/passwd"></annotation>', "it has a ENTITY"),
        (BOMB.encode("utf-16"), "not UTF-8"),
        (BOMB.encode("utf-16-le"), "not UTF-8"),
        (BOMB.encode("utf-16-be"), "not UTF-8"),
        (b"<annotation>" + b" " * 1_000_001 + b"</annotation>", "larger than 1000000 bytes"),
        (b"<annotation><object>", "not XML"),
        (b"<html></html>", "its root is <html>"),
        ((GOOD % (BOX % "one")).encode(), "is 'one', not a number"),
        ((GOOD % (BOX % "nan")).encode(), "not a finite number"),
        ((GOOD % (BOX % "9")).encode(), "no width or no height"),
        ((GOOD % "").encode(), "<bndbox/xmin> is None"),
    ],
)
def test_an_odd_file_is_refused_with_its_reason(tmp_path, content, reason):
    path = tmp_path / "odd.xml"
    path.write_bytes(content)
    with pytest.raises(OddXml) as error:
        read_boxes(path)
    assert reason in str(error.value)


def test_a_named_pipe_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.xml")
    with pytest.raises(OddXml, match="not a regular file"):
        read_boxes(tmp_path / "pipe.xml")


def test_a_box_outside_the_image_is_odd(tmp_path):
    boxes = read_boxes(write_xml(tmp_path / "a.xml", [(80, 2, 90, 9)], size=(70, 42)))
    with pytest.raises(OddXml, match="outside the image"):
        boxes.in_image(42, 70)


def test_a_file_is_found_in_the_folder_of_its_image_and_by_its_name_alone(tmp_path):
    for name in ("cat/1.xml", "dog/1.xml", "2.xml"):
        write_xml(tmp_path / name, [(1, 1, 2, 2)])
    folder = BoxFolder(tmp_path, ["cat/1.png", "dog/1.png", "cat/2.png"])
    found = [folder.file_of(key) for key in ("cat/1.png", "dog/1.png", "cat/2.png", "cat/3.png")]
    assert found == [tmp_path / "cat/1.xml", tmp_path / "dog/1.xml", tmp_path / "2.xml", None]


def test_a_file_that_would_serve_two_images_is_refused(tmp_path):
    write_xml(tmp_path / "1.xml", [(1, 1, 2, 2)])
    with pytest.raises(OddXml, match="2 images have this name"):
        BoxFolder(tmp_path, ["cat/1.png", "dog/1.png"]).file_of("cat/1.png")
