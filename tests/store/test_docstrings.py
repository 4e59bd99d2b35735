import doctest
import importlib

import pytest

from torchrelabel import store


@pytest.mark.parametrize("module", ["header", "layout", "reader", "record", "writer"])
def test_examples_in_docstrings_do_what_they_say(module):
    found = doctest.testmod(importlib.import_module(f"{store.__name__}.{module}"))
    assert found.attempted
    assert not found.failed
