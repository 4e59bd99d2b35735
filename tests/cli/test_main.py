"""``torchrelabel --help``: every command in one line."""

from pathlib import Path

import click
import pytest

from tests.cli.test_annotate import invoke
from torchrelabel.cli import main

PAGES = Path(__file__).parents[2] / "docs" / "cli"


def test_every_command_is_described_in_a_line_that_is_not_cut_off():
    lines = invoke("--help").stdout.split("Commands:\n")[1].splitlines()
    assert [line.split()[0] for line in lines] == sorted({page.stem for page in PAGES.glob("*.md")} - {"index"})
    assert [line for line in lines if line.endswith("...")] == []


@pytest.mark.parametrize("name", main.list_commands(click.Context(main)))
def test_every_command_has_an_example(name):
    assert f"torchrelabel {name}" in " ".join(invoke(name, "--help").stdout.split("Example")[1].split())
