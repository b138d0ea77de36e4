"""What an actor of a pool holds of the prompts."""

import itertools
import math

import pytest

from qaray.engines.pool import Share


@pytest.mark.parametrize(
    ("slots", "ahead", "actors", "expected", "share"),
    [
        (16, 1.5, 1, None, Share(4, 6, 7)),  # a CPU: half as many prompts again as slots, and a block that waits
        (64, 1.5, 8, None, Share(16, 6, 7)),
        (1024, 1.5, 1, None, Share(64, 24, 25)),
        (16, 1.5, 1, 100_000, Share(4, 6, 7)),
        (16, 1.5, 2, 16, Share(4, 2, 2)),
        (16, 1.5, 2, 18, Share(3, 3, 3)),
        (64, 1.5, 2, 34, Share(9, 2, 2)),
        (64, 1.5, 8, 100, Share(13, 1, 1)),
        (64, 1.5, 8, 3, Share(1, 1, 1)),
        (1, 1.5, 1, 0, Share(1, 1, 1)),
    ],
)
def test_shares(slots, ahead, actors, expected, share):
    assert Share.of(slots, ahead, actors, expected) == share


def test_no_actor_holds_much_more_than_an_even_share_and_none_is_starved():
    for slots, actors, expected in itertools.product((1, 4, 16, 64, 256), (1, 2, 3, 8), range(1, 400, 7)):
        share = Share.of(slots, 1.5, actors, expected)
        own = math.ceil(expected / actors)
        assert share.rows * share.in_flight < own + share.in_flight  # what rounding adds is less than a row a block
        assert share.rows * share.in_flight >= min(own, slots)
        assert 1 <= share.calls <= share.in_flight <= share.calls + 1
