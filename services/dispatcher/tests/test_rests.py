"""Whoever shares a budget of calls with a number that was refused for it rests too."""

import pytest
from dispatcher.answers import RETRY_AFTER_MAX_SECONDS
from dispatcher.rests import FIRST_SECONDS, MOST_SECONDS, Rests, Shares
from hypothesis import given
from hypothesis import strategies as st

ME = Shares.of("acme", "1", "300", "app-1", "t-1")
OTHERS = {
    "number": ME,
    "account": Shares.of("acme", "2", "300", "app-2", "t-2"),
    "app": Shares.of("acme", "3", "301", "app-1", "t-3"),
    "another": Shares.of("acme", "4", "302", None, "t-4"),
    "who names them elsewhere": Shares.of("globex", "5", "300", "app-1", "t-1"),
}


@pytest.mark.parametrize(
    ("code", "resting"),
    [
        (4, {"number", "app"}),
        (80007, {"number", "account"}),
        (80008, {"number", "account"}),
        (613, {"number"}),
        (130429, set()),
        (None, set()),
    ],
)
def test_who_rests_after_a_refusal(code: int | None, resting: set[str]) -> None:
    rests = Rests()
    rests.refused(ME, code, 0.0, 100.0)
    assert {name for name, shares in OTHERS.items() if rests.wait_seconds(shares, 101.0)} == resting


def test_whose_app_we_do_not_know_shares_it_with_its_token() -> None:
    rests = Rests()
    rests.refused(Shares.of("acme", "1", "300", None, "t-1"), 4, 0.0, 100.0)
    assert rests.wait_seconds(Shares.of("acme", "2", "301", None, "t-1"), 101.0)
    assert not rests.wait_seconds(Shares.of("acme", "2", "301", None, None), 101.0)


@pytest.mark.parametrize("code", [4, 80007, 613, 130429, None])
def test_it_rests_as_long_as_meta_asks(code: int | None) -> None:
    rests = Rests()
    rests.refused(ME, code, RETRY_AFTER_MAX_SECONDS, 100.0)
    assert rests.wait_seconds(ME, 100.0) == RETRY_AFTER_MAX_SECONDS


@given(st.integers(1, 50))
def test_rests_one_after_the_other_grow_to_a_bound_and_end_with_what_is_taken(count: int) -> None:
    rests, now, before = Rests(), 100.0, 0.0
    for _ in range(count):
        for _ in range(3):
            # Those that were out together are one refusal.
            rests.refused(ME, 4, 0.0, now)
        rests.taken(ME, now)
        seconds = rests.wait_seconds(ME, now)
        assert seconds == min(MOST_SECONDS, before * 2 or FIRST_SECONDS)
        now, before = now + seconds, seconds
    rests.taken(ME, now)
    rests.refused(ME, 4, 0.0, now)
    assert rests.wait_seconds(ME, now) == FIRST_SECONDS
