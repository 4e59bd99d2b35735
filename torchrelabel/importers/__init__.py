"""Importers: label maps that others have published become a store."""

from torchrelabel.importers.multilabel_tsv import import_multilabel_tsv as import_multilabel_tsv
from torchrelabel.importers.relabel import import_relabel as import_relabel
from torchrelabel.importers.run import Summary as Summary
from torchrelabel.importers.token_labeling import import_token_labeling as import_token_labeling

__all__ = ["Summary", "import_multilabel_tsv", "import_relabel", "import_token_labeling"]
