import math

import pytest

from torchrelabel.calibration import Calibration

CALIBRATION = Calibration((0.5, -0.25), (0.125, 2.0), 0.0625, {"kl": 0.5})


@pytest.mark.parametrize("area", [1.0, 0.5, 0.0625])
def test_weights_are_polynomials_of_the_logarithm_of_the_area(area):
    expected = (0.5 - 0.25 * math.log(area), 0.125 + 2 * math.log(area))
    assert CALIBRATION.weights(area) == pytest.approx(expected)


@pytest.mark.parametrize("area, counts_as", [(0.0, 0.0625), (0.01, 0.0625), (1.2, 1.0)])
def test_an_area_that_was_not_fitted_counts_as_the_nearest_that_was(area, counts_as):
    assert CALIBRATION.weights(area) == CALIBRATION.weights(counts_as)


def test_it_survives_a_header():
    assert Calibration.from_dict(CALIBRATION.as_dict()) == CALIBRATION


@pytest.mark.parametrize(
    "arguments, words",
    [
        (((), (), 0.5), "map_weights of a calibration are finite numbers, got"),
        (((1.0,), (float("nan"),), 0.5), "image_weights of a calibration are finite numbers, got"),
        (((1.0, 2.0), (1.0,), 0.5), "as many map_weights as image_weights"),
        (((1.0,), (1.0,), 0.0), "smallest_area is a share of an image's area, above 0 to 1, got 0.0"),
        (((1.0,), (1.0,), 1.5), "smallest_area is a share of an image's area, above 0 to 1, got 1.5"),
    ],
)
def test_one_that_cannot_be_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        Calibration(*arguments)
