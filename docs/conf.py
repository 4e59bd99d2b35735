"""Sphinx configuration."""

import re

from docutils import nodes

from torchrelabel import __version__

project = "torchrelabel"
author = "the torchrelabel authors"
release = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_click",
]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = "torchrelabel"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
# It would make a dash of the two hyphens of every option.
smartquotes = False

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_custom_sections = ["Shape", "Source"]


def examples_as_code(app, context, lines):
    """Show the examples below a command's help as the commands that they are."""
    text = " ".join(line.strip() for line in lines).strip()
    if not (start := re.match("Examples?: ", text)):
        return
    code = []
    for example in re.split(r"\. (?=(?:[^:.]*: )?(?:torchrelabel|torchrun) )", text[start.end() :]):
        remark, colon, command = example.rpartition(": ")
        code += [f"# {remark}{colon}".rstrip(), command] if colon else [example]
    lines[:] = [".. code-block:: bash", "", *(f"   {line}" for line in code), ""]


def keep_errors_with_figures(app, name, source):
    """Put spaces that do not break a line around the plus-minus sign of standard errors."""
    source[0] = source[0].replace(" \u00b1 ", "\u00a0\u00b1\u00a0")


def dashes_between_parameters_and_their_meaning(app, doctree, page):
    """Set a dash where smart quotes would, which are off for the sake of options."""
    for text in list(doctree.findall(nodes.Text)):
        if text.astext() == " -- ":
            text.parent.replace(text, nodes.Text(" \u2013 "))


def setup(app):
    """Register what this file adds to Sphinx."""
    app.connect("source-read", keep_errors_with_figures)
    app.connect("doctree-resolved", dashes_between_parameters_and_their_meaning)
    app.connect("sphinx-click-process-epilog", examples_as_code)
