"""What a replica tells of its numbers, and how often."""

from typing import Any

import pytest
from dispatcher.driving import BUSY_IS_NEWS, BUSY_SECONDS, IDLE_SECONDS, IS_NEWS, Doing, Told, is_to_be_told
from dispatcher.rests import Series, Shared

REST = Series(Shared.APP, None, 100.0, 105.0)


@pytest.mark.parametrize(
    ("before", "after", "seconds"),
    [
        (Doing(0), Doing(0), IDLE_SECONDS),
        (Doing(9), Doing(9), BUSY_SECONDS),
        (Doing(0), Doing(1), BUSY_SECONDS),
        (Doing(1), Doing(0), BUSY_SECONDS),
        (Doing(0), Doing(0, REST), 0.0),
        (Doing(9, REST), Doing(9), 0.0),
        (Doing(0, REST), Doing(0, REST), IDLE_SECONDS),
    ],
)
def test_how_long_after_it_was_told_a_number_is_told_of_again(before: Doing, after: Doing, seconds: float) -> None:
    told = Told(before, 1000.0)
    assert is_to_be_told(told, after, 1000.0 + seconds)
    assert not seconds or not is_to_be_told(told, after, 1000.0 + seconds - 0.1)


@pytest.mark.parametrize("doing", [Doing(0), Doing(5), Doing(0, REST)])
def test_a_number_that_is_driven_anew_is_told_of(doing: Any) -> None:
    assert is_to_be_told(None, doing, 0.0)


def test_who_is_driven_is_never_taken_for_gone() -> None:
    a_look = 2.0
    assert IDLE_SECONDS + BUSY_SECONDS + a_look < IS_NEWS.total_seconds()
    assert BUSY_SECONDS + a_look < BUSY_IS_NEWS.total_seconds()
