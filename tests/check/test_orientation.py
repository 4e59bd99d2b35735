"""The verdict on the order of the axes."""

import itertools

import pytest
from torch.testing import assert_close

from torchrelabel.check.orientation import Vote, orientation, sign_test, verdict_of


@pytest.mark.parametrize(("first", "second"), [(0, 0), (3, 1), (1, 6), (4, 4), (9, 1)])
def test_the_sign_test_counts_all_outcomes_at_least_as_uneven(first, second):
    n = first + second
    uneven = [abs(2 * sum(votes) - n) >= abs(first - second) for votes in itertools.product((0, 1), repeat=n)]
    assert_close(sign_test(first, second), sum(uneven) / len(uneven))


def test_many_crops_of_one_image_are_one_vote():
    found = orientation("crops", [Vote(900, 1000, 100, 1000)])
    assert (found.images_as_stored, found.images_swapped, found.verdict) == (1, 0, "cannot tell")


def test_images_with_equal_shares_do_not_vote():
    found = orientation("boxes", [Vote(2, 4, 3, 6)] * 50)
    assert (found.images_as_stored, found.images_swapped, found.p_value) == (0, 0, 1.0)


def test_evidence_that_contradicts_itself_gives_no_verdict():
    stored, swapped = (orientation("x", [Vote(*vote)] * 9) for vote in ((3, 4, 1, 4), (1, 4, 3, 4)))
    assert (stored.verdict, swapped.verdict) == ("as stored", "swapped")
    assert verdict_of([stored, swapped]) == "cannot tell"
