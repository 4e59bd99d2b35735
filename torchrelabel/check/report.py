"""Report: everything that a check found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torchrelabel.annotate import Commuting
from torchrelabel.check.agreement import Band
from torchrelabel.check.orientation import CANNOT_TELL, Orientation, verdict_of
from torchrelabel.check.overlap import Overlap


@dataclass(frozen=True)
class FolderAgreement:
    """Whether the label pooled over the whole image is that of the image's folder.

    Attributes:
        images: How many were compared.
        label_map: Share of them whose pooled label has the folder's class on top.
        model: Share of them that the model takes for the folder's class; None without a model.
        mistaken: What is most often on top of the pooled label instead: ``(folder's class, class on top, images)``.
    """

    images: int
    label_map: float
    model: float | None
    mistaken: tuple[tuple[str, str, int], ...]


@dataclass
class Report:
    """What ``torchrelabel check`` found.

    Attributes:
        store: The store.
        data: The folder of the images.
        seed: Of the sample and the crops.
        images: Images in the folder.
        without_map: Images in the folder without a label map.
        broken: Images of the sample that could not be used, with the reason.
        bad_xml: Files of boxes that were refused, with the reason.
        notes: What else is worth knowing.
        faults: What is certainly wrong, besides axes that are swapped.
        model: Name of the annotator; None without one.
        image_size: Side in pixels to which images and crops were squashed for it.
        commuting: Whether its head gives the same before and after pooling; None of windows.
        bands: Agreement by area of the crop.
        folder: Agreement with the folders' labels.
        folder_unknown: Why that cannot be told, or an empty string.
        overlap: What the boxes say.
        orientation: The evidence on the order of the axes.
    """

    store: str
    data: str
    seed: int
    images: int = 0
    without_map: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    bad_xml: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    model: str | None = None
    image_size: int | None = None
    commuting: Commuting | None = None
    bands: tuple[Band, ...] = ()
    folder: FolderAgreement | None = None
    folder_unknown: str = ""
    overlap: Overlap | None = None
    orientation: tuple[Orientation, ...] = ()

    @property
    def verdict(self) -> str:
        """``"as stored"``, ``"swapped"`` or ``"cannot tell"``, from all evidence."""
        return verdict_of(self.orientation)

    @property
    def contradictory(self) -> bool:
        """Whether one piece of evidence says as stored, and another one swapped."""
        return self.verdict == CANNOT_TELL and len({each.verdict for each in self.orientation} - {CANNOT_TELL}) > 1

    @property
    def losses(self) -> bool:
        """Whether images or boxes were lost: no map, broken, or odd XML."""
        return bool(self.without_map or self.broken or self.bad_xml)

    def figures(self) -> dict[str, Any]:
        """Everything as plain values, for JSON."""
        plain = asdict(self)
        if plain["overlap"] is not None:
            del plain["overlap"]["votes"]  # one for each image; their sum is in the orientation
        if self.commuting is not None:
            plain["commuting"]["commutes"] = self.commuting.commutes
        return {**plain, "verdict": self.verdict}
