"""What every test can rely on: the same random numbers each time, and a folder of painted images."""

from __future__ import annotations

import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from tests.painted import Painted, maps_of_the_folders, paint

# The same examples each time, on machines of any speed. To explore: pytest --hypothesis-profile=default.
hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Reset every generator that a transform may draw from."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


@pytest.fixture(scope="module")
def painted(tmp_path_factory: pytest.TempPathFactory) -> Painted:
    """A folder of painted images, two of each class; modules that need others have a fixture of their own."""
    return paint(tmp_path_factory.mktemp("painted"), each=2)


@pytest.fixture(scope="module")
def folder_maps(painted: Painted) -> Path:
    """A store whose maps say the class of each image's folder."""
    return maps_of_the_folders(painted)
