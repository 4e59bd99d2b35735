"""How label maps are made: a classifier looks at every image of a folder once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrelabel.annotate.annotator import Annotator as Annotator
    from torchrelabel.annotate.annotator import TopScores as TopScores
    from torchrelabel.annotate.heads import CellHead as CellHead
    from torchrelabel.annotate.heads import Commuting as Commuting
    from torchrelabel.annotate.run import annotate as annotate
    from torchrelabel.annotate.summary import Summary as Summary

# Public name -> the module that defines it, loaded when the name is first used: `verify` and `show` want images found
# and opened, and need not wait for timm.
_PUBLIC = {
    "Annotator": "annotator",
    "CellHead": "heads",
    "Commuting": "heads",
    "Summary": "summary",
    "TopScores": "annotator",
    "annotate": "run",
}

__all__ = ["Annotator", "CellHead", "Commuting", "Summary", "TopScores", "annotate"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_PUBLIC})
