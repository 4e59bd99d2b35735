"""The picture of a report."""

import pytest

from tests.check.test_run import painted, run  # noqa: F401 -- a fixture
from torchrelabel.check.plot import draw_report
from torchrelabel.check.report import Report


def test_the_curve_of_agreement_is_that_of_the_report(painted):  # noqa: F811
    from tests.check.colours import colour_annotator

    report = run(painted, model=colour_annotator(), boxes=painted / "boxes")
    figure = draw_report(report)
    assert len(figure.axes) == 4
    assert list(figure.axes[0].lines[0].get_ydata()) == [band.top1 for band in report.bands[:-2]]


def test_a_report_without_figures_is_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        draw_report(Report("s", "d", 0))
