"""Whether label maps say what they should, by their annotator's view of crops, and by ground-truth boxes."""

from torchrelabel.check.report import Report as Report
from torchrelabel.check.run import check as check

__all__ = ["Report", "check"]
