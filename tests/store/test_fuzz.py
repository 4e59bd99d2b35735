"""A small share of what fuzz.py does in hours."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(count, seed):
    done = subprocess.run(
        [sys.executable, "-m", "tests.store.fuzz", str(count), str(seed)], cwd=ROOT, stdout=subprocess.PIPE, check=True
    )
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="files are looked at in forked children")
@pytest.mark.parametrize("count", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_nothing_that_is_damaged_is_taken_for_something_else(count):
    counts = run(count, seed=1)
    print(json.dumps(counts, indent=1))
    assert not [what for what in counts if "WRONG" in what], counts
    assert sum(counts[what] for what in counts if what.startswith("file")) == count // 10
    assert counts["record refused"] > 0.3 * count
    assert counts["peak growth, MB"] < 100
