"""Whoever shares a budget of calls with a number that was refused for it rests too, and so do its messages, which are
told so if they expire."""

from datetime import timedelta

import pytest
from dispatcher.answers import RETRY_AFTER_MAX_SECONDS
from dispatcher.decide import Waiting, expired
from dispatcher.rests import FIRST_SECONDS, MOST_SECONDS, TRIED_WITHIN_SECONDS, Rest, Rests, Shared, Shares
from dispatcher_cases import NOW, message
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import MetaError, reason
from sendwhy.reasons import ReasonCode

ME = Shares.of("acme", "1", "300", "app-1", "t-1")
OTHERS = {
    "number": ME,
    "account": Shares.of("acme", "2", "300", "app-2", "t-2"),
    "app": Shares.of("acme", "3", "301", "app-1", "t-3"),
    "another": Shares.of("acme", "4", "302", None, "t-4"),
    "who names them elsewhere": Shares.of("globex", "5", "300", "app-1", "t-1"),
}


def said(code: int | None) -> MetaError | None:
    return None if code is None else MetaError(code=code, title="Too many calls")


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
    rests.refused(ME, said(code), 0.0, 100.0)
    assert {name for name, shares in OTHERS.items() if rests.wait_seconds(shares, 101.0)} == resting


def test_whose_app_we_do_not_know_shares_it_with_its_token() -> None:
    rests = Rests()
    rests.refused(Shares.of("acme", "1", "300", None, "t-1"), said(4), 0.0, 100.0)
    assert rests.wait_seconds(Shares.of("acme", "2", "301", None, "t-1"), 101.0)
    assert not rests.wait_seconds(Shares.of("acme", "2", "301", None, None), 101.0)


@pytest.mark.parametrize("code", [4, 80007, 613, 130429, None])
def test_it_rests_as_long_as_meta_asks(code: int | None) -> None:
    rests = Rests()
    rests.refused(ME, said(code), RETRY_AFTER_MAX_SECONDS, 100.0)
    assert rests.wait_seconds(ME, 100.0) == RETRY_AFTER_MAX_SECONDS


@given(st.integers(1, 50))
def test_rests_one_after_the_other_grow_to_a_bound_and_end_with_what_is_taken(count: int) -> None:
    rests, now, before = Rests(), 100.0, 0.0
    for _ in range(count):
        for _ in range(3):
            # Those that were out together are one refusal.
            rests.refused(ME, said(4), 0.0, now)
        rests.taken(ME, now)
        seconds = rests.wait_seconds(ME, now)
        assert seconds == min(MOST_SECONDS, before * 2 or FIRST_SECONDS)
        now, before = now + seconds, seconds
    rests.taken(ME, now)
    rests.refused(ME, said(4), 0.0, now)
    assert rests.wait_seconds(ME, now) == FIRST_SECONDS


@pytest.mark.parametrize(
    ("code", "limit"), [(4, Shared.APP), (80007, Shared.ACCOUNT), (613, Shared.NUMBER), (130429, Shared.NUMBER)]
)
def test_a_rest_knows_which_limit_what_meta_said_since_when_and_until_when(code: int, limit: Shared) -> None:
    rests = Rests()
    rests.refused(ME, said(code), 30.0, 100.0)
    rests.refused(ME, said(code), 60.0, 130.0)
    series = rests.standing(ME, 131.0)
    assert series is not None
    seconds = timedelta(seconds=1)
    told = series.told(131.0, NOW)
    assert told == Rest(limit=limit, meta=said(code), since=NOW - 31 * seconds, until=NOW + 59 * seconds)
    assert rests.standing(ME, 190.0 + TRIED_WITHIN_SECONDS) is None
    rests.taken(ME, 190.0)
    assert rests.standing(ME, 190.0) is None


def test_a_pace_that_was_exceeded_without_a_wait_is_no_rest() -> None:
    rests = Rests()
    rests.refused(ME, said(130429), 0.0, 100.0)
    assert rests.standing(ME, 100.0) is None


def test_who_was_out_when_a_rest_began_does_not_become_its_cause() -> None:
    rests = Rests()
    rests.refused(ME, said(613), 60.0, 100.0)
    rests.refused(ME, said(130429), 1.0, 101.0)
    series = rests.standing(ME, 102.0)
    assert series is not None
    assert (series.meta, series.until) == (said(613), 160.0)


MINUTE = timedelta(minutes=1)
EXPIRES = message().funded.expires_at
SPENT = Rest(limit=Shared.ACCOUNT, meta=said(80007), since=EXPIRES - 9 * MINUTE, until=EXPIRES + MINUTE)
PAYMENT = reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says: no card")


@pytest.mark.parametrize("waiting_for", [Waiting.TURN, Waiting.RATE])
def test_who_expires_in_a_rest_is_told_which_limit_since_when_and_until_when(waiting_for: Waiting) -> None:
    why = expired(message(waiting_for=waiting_for), None, SPENT)
    assert (why.code, why.meta) == (ReasonCode.RATE_LIMIT_EXCEEDED, SPENT.meta)
    told = {"limit": "account", "limited_since": "2026-11-24T11:51:00Z", "limited_until": "2026-11-24T12:01:00Z"}
    assert why.evidence | told | {"waited_for": "rate", "waiting_since": "2026-11-24T11:51:00Z"} == why.evidence


@pytest.mark.parametrize(
    ("since", "until", "is_cause"),
    [
        (timedelta(), MINUTE, True),
        (MINUTE, 2 * MINUTE, False),
        (-9 * MINUTE, -timedelta(seconds=TRIED_WITHIN_SECONDS) / 2, True),
        (-9 * MINUTE, -timedelta(seconds=TRIED_WITHIN_SECONDS), False),
    ],
)
def test_a_rest_is_the_cause_of_who_expires_in_it_or_just_after(
    since: timedelta, until: timedelta, *, is_cause: bool
) -> None:
    rest = SPENT.model_copy(update={"since": EXPIRES + since, "until": EXPIRES + until})
    code = ReasonCode.RATE_LIMIT_EXCEEDED if is_cause else ReasonCode.EXPIRED_BEFORE_SENDING
    assert expired(message(), None, rest).code is code


@pytest.mark.parametrize(
    ("waiting_for", "code"),
    [
        (Waiting.TURN, ReasonCode.META_PAYMENT_ISSUE),
        (Waiting.HOLD, ReasonCode.META_PAYMENT_ISSUE),
        (Waiting.TIER, ReasonCode.MESSAGING_LIMIT_REACHED),
        (Waiting.PAUSED, ReasonCode.EXPIRED_BEFORE_SENDING),
    ],
)
def test_what_a_message_waits_for_beside_a_rest_stays_its_reason(waiting_for: Waiting, code: ReasonCode) -> None:
    assert expired(message(waiting_for=waiting_for), PAYMENT, SPENT).code is code
