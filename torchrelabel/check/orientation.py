"""Orientation: whether label maps agree better as they are stored, or with their axes exchanged."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from torchrelabel.label_map import LabelMap

AS_STORED, SWAPPED, CANNOT_TELL = "as stored", "swapped", "cannot tell"

# Two-sided. Eight images that all vote for one order are enough (2 / 2**8 = 0.008).
_SIGNIFICANT = 0.01


@dataclass(frozen=True)
class Orientation:
    """One piece of evidence on the order of the axes.

    Attributes:
        evidence: ``"crops"``, ``"cells"`` or ``"boxes"``.
        score_as_stored: Share that agrees with the maps as they are: of the crops, or of the cells.
        score_swapped: The same with every map transposed.
        images_as_stored: Images that agree better as stored.
        images_swapped: Images that agree better transposed. The others agree equally and do not vote.
        p_value: Of the two-sided sign test over the images that vote.
        verdict: ``"as stored"``, ``"swapped"`` or ``"cannot tell"``.
    """

    evidence: str
    score_as_stored: float
    score_swapped: float
    images_as_stored: int
    images_swapped: int
    p_value: float
    verdict: str


@dataclass(frozen=True)
class Vote:
    """What one image says.

    Attributes:
        as_stored: How many of its crops, or cells, agree as stored.
        of_stored: How many there are.
        swapped: How many agree transposed.
        of_swapped: How many there are then; a box need not hold as many cells of the transposed grid.
    """

    as_stored: int
    of_stored: int
    swapped: int
    of_swapped: int


def orientation(evidence: str, votes: Iterable[Vote]) -> Orientation | None:
    """Weigh the two orders against each other, one vote an image, since crops of one image are no independent trials.

    Args:
        evidence: What was compared.
        votes: One for each image.

    Returns:
        The scores and the verdict; None if there was nothing to compare.
    """
    counted = [vote for vote in votes if vote.of_stored and vote.of_swapped]
    if not counted:
        return None
    # Of two fractions the larger, in whole numbers.
    leads = [vote.as_stored * vote.of_swapped - vote.swapped * vote.of_stored for vote in counted]
    stored, swapped = sum(lead > 0 for lead in leads), sum(lead < 0 for lead in leads)
    p_value = sign_test(stored, swapped)
    verdict = CANNOT_TELL if p_value >= _SIGNIFICANT else AS_STORED if stored > swapped else SWAPPED
    return Orientation(
        evidence,
        sum(vote.as_stored for vote in counted) / sum(vote.of_stored for vote in counted),
        sum(vote.swapped for vote in counted) / sum(vote.of_swapped for vote in counted),
        stored,
        swapped,
        p_value,
        verdict,
    )


def verdict_of(pieces: Iterable[Orientation]) -> str:
    """The verdict of all evidence together: what is said without contradiction."""
    said = {piece.verdict for piece in pieces} - {CANNOT_TELL}
    return said.pop() if len(said) == 1 else CANNOT_TELL


def sign_test(first: int, second: int) -> float:
    """The two-sided p-value of so uneven a vote if both sides were equally likely; exact."""
    n = first + second
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(first, second) + 1)]
    return min(1.0, 2 * math.fsum(math.exp(log - n * math.log(2)) for log in logs))


def transposed(label_map: LabelMap) -> LabelMap:
    """The map with rows and columns of cells exchanged, ``[K, w, h]``, seen through the same view box."""
    return LabelMap(
        label_map.scores.transpose(1, 2).contiguous(),
        label_map.classes.transpose(1, 2).contiguous(),
        num_classes=label_map.num_classes,
        canvas_size=label_map.canvas_size,
        residual=None if label_map.residual is None else label_map.residual.T.contiguous(),
        view_box=label_map.view_box,
        score_kind=label_map.score_kind,
        image_scores=label_map.image_scores,
        calibration=label_map.calibration,
    )
