"""What soak.py does, for ten minutes; run by its own tox environment."""

import json
import os

import pytest

from tests.store.soak import soak


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are stopped and killed")
def test_nothing_is_lost_or_answered_wrong_while_all_goes_wrong(tmp_path):
    counts = soak(tmp_path, float(os.environ.get("SOAK_SECONDS", "600")))
    print(json.dumps(counts, indent=1))
    assert not [what for what in counts if "WRONG" in what], counts
    assert counts["writers killed"] > 3
    assert counts["get"] > 100
