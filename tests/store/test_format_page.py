"""docs/format.md is held to its word: its snippet reads what the library writes."""

import re
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from tests.store.label_maps import make_map
from torchrelabel.store import LabelStore, LabelStoreWriter
from torchrelabel.store.codecs import CODECS
from torchrelabel.store.header import SCORE_KINDS, StoreHeader
from torchrelabel.store.layout import MAX_HEADER_BYTES, MAX_KEY_BYTES, MAX_LMDB_KEY_BYTES, MAX_SHARDS, MAX_VALUES

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text(encoding="utf-8")


@pytest.fixture
def read():
    (snippet,) = re.findall(r"<!-- reading-begin -->\n```python\n(.*?)```\n<!-- reading-end -->", PAGE, re.S)
    names = {}
    exec(snippet, names)
    return names["read"]


@pytest.mark.parametrize("image_size", [None, (500, 375)])
@pytest.mark.parametrize("image_top_k", [0, 7])
@pytest.mark.parametrize("coverage", [None, (0, 0.25, 1, 0.75)])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("num_classes", [20, 70000])
def test_the_snippet_reads_what_the_library_writes(
    tmp_path, read, num_classes, residual, coverage, image_top_k, image_size
):
    path = tmp_path / "maps.lmdb"
    given = make_map(3, num_classes=num_classes, residual=residual)
    settings = {"num_classes": num_classes, "top_k": 3, "residual": residual, "image_top_k": image_top_k}
    of_image = np.linspace(-3, 5, num_classes) if image_top_k else None
    with LabelStoreWriter(path, shards=5, **settings) as writer:
        writer.put("n01/ä.JPEG", *make_map(4, num_classes=num_classes, residual=residual), image_scores=of_image)
        writer.put("n01/ü.JPEG", *given, coverage=coverage, image_scores=of_image, image_size=image_size)
    scores, classes, rest = read(path, "n01/ü.JPEG")
    assert_array_equal(scores, given[0].astype(np.float16))
    assert_array_equal(classes, given[1])
    assert rest.size == (35 if residual else 0)
    record = LabelStore(path)["n01/ü.JPEG"]
    assert_array_equal(scores, record.scores)
    if residual:
        assert_array_equal(rest.reshape(7, 5), record.residual)


def test_the_page_names_every_field_of_the_header():
    fields = re.findall(r"^\| `(\w+)` \|", PAGE.split("## Header")[1].split("## Keys")[0], re.M)
    stored = {"format", "version"} | set(StoreHeader.__dataclass_fields__) - {"extra", "format_version"}
    assert set(fields) == stored


def test_the_page_names_every_codec_and_score_kind():
    for name in [*CODECS, *SCORE_KINDS]:
        assert f'`"{name}"`' in PAGE


def test_the_page_s_limits_are_the_code_s():
    assert f"at most {MAX_HEADER_BYTES // 2**20} MiB" in PAGE
    assert f"1 to {MAX_SHARDS} " in PAGE
    assert f"{MAX_KEY_BYTES} bytes" in PAGE
    assert f"at most {MAX_LMDB_KEY_BYTES}" in PAGE
    assert f"at most 2^{MAX_VALUES.bit_length() - 1}" in PAGE
