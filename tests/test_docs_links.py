"""The pages of the documentation hang together, on the site and on the repository's own pages."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

from torchrelabel.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^(```+).*?^\1 *$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"!?\[[^]]*\]\(([^)\s]+)\)")


def prose(page: Path) -> str:
    """A page without its blocks of code, and without code in the line."""
    return re.sub(r"`[^`\n]+`", "code", FENCE.sub("", page.read_text(encoding="utf-8")))


def anchors(page: Path) -> list[str]:
    """What the headings of a page are called in links, as GitHub and MyST name them, down to the third level."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,3} (.+)$", FENCE.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")
        found.append(slug)
    return found


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_relative_link_leads_to_a_file_and_an_anchor(page: Path) -> None:
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.is_file(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_uses_no_roles_which_the_repository_would_show_as_they_are(page: Path) -> None:
    assert not re.findall(r"\{[a-z:]+\}code", prose(page))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_headings_have_names_of_their_own(page: Path) -> None:
    """Of two that are called alike, only the first can be linked to for sure."""
    assert len(set(anchors(page))) == len(anchors(page))


def test_every_command_has_a_page() -> None:
    pages = {page.stem for page in (ROOT / "docs" / "cli").glob("*.md")} - {"index"}
    assert pages == set(main.list_commands(None))  # type: ignore[arg-type]


def test_every_command_is_named_in_the_list_of_commands() -> None:
    index = (ROOT / "docs" / "cli" / "index.md").read_text(encoding="utf-8")
    for command in main.list_commands(None):  # type: ignore[arg-type]
        assert f"| [`{command}`]({command}.md) |" in index


def test_the_figures_of_the_readme_are_those_of_the_evidence() -> None:
    """A measurement is repeated on one page, and must not stay behind on the other."""
    figures = re.findall(r"\d+\.\d ± \.\d", (ROOT / "README.md").read_text(encoding="utf-8"))
    evidence = (ROOT / "docs" / "evidence.md").read_text(encoding="utf-8")
    assert len(figures) >= 3
    assert [figure for figure in figures if figure not in evidence] == []


def test_the_install_page_names_every_extra() -> None:
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg", encoding="utf-8")
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == list(settings["options.extras_require"])
