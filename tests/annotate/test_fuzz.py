"""A small share of what fuzz.py does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_checkpoints_are_refused_or_load_as_they_were(count):
    command = [sys.executable, "-m", "tests.annotate.fuzz", str(count), "1"]
    counts = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    print(json.dumps(counts, indent=1))
    assert not [what for what in counts if "WRONG" in what], counts
    assert sum(counts[what] for what in counts if what.endswith(("refused", "as it was", "other content"))) == count
    assert counts["today's: refused"] > 0.15 * count
    assert counts["peak growth, MB"] < 100
