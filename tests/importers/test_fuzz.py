"""A small share of what fuzz.py does."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("count", [500, pytest.param(100_000, marks=pytest.mark.slow)])
def test_damaged_files_are_refused_or_harmless(count):
    command = [sys.executable, "-m", "tests.importers.fuzz", str(count), "1"]
    counts = json.loads(subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout)
    print(json.dumps(counts, indent=1))
    assert not [what for what in counts if "WRONG" in what], counts
    assert counts[".pt of today: refused"] > 0.2 * count
    assert counts["table: every row read"] > 0.01 * count
    assert counts["peak growth, MB"] < 50
