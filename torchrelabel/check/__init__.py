"""Whether label maps say what they should: held to their annotator's view of crops, and to ground-truth boxes."""

from torchrelabel.check.report import Report as Report
from torchrelabel.check.run import check as check

__all__ = ["Report", "check"]
