"""What every test can rely on: the same random numbers each time."""

from __future__ import annotations

import random

import hypothesis
import numpy as np
import pytest
import torch

# The same examples each time, on machines of any speed. To explore: pytest --hypothesis-profile=default.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Reset every generator that a transform may draw from."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
