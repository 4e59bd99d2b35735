"""The picture of the README is there, and small."""

import re
from pathlib import Path

import PIL.Image
import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md", "docs/gallery.md"])
def test_the_pictures_of_a_page_are_files_of_at_most_150_kb(page):
    path = ROOT / page
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", path.read_text("utf-8"))
    assert pictures
    for name in pictures:
        picture = path.parent / name
        assert picture.stat().st_size <= 150_000
        with PIL.Image.open(picture) as image:
            assert image.width >= 1200  # README pages are 830 pixels wide, and screens have more to a pixel
