"""How label maps are made: a timm classifier looks at every image of a folder once."""

from torchrelabel.annotate.annotator import Annotator as Annotator
from torchrelabel.annotate.annotator import TopScores as TopScores
from torchrelabel.annotate.heads import CellHead as CellHead
from torchrelabel.annotate.heads import Commuting as Commuting
from torchrelabel.annotate.run import annotate as annotate
from torchrelabel.annotate.summary import Summary as Summary

__all__ = ["Annotator", "CellHead", "Commuting", "Summary", "TopScores", "annotate"]
