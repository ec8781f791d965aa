"""When a hold begins, what a try changes of it, and what of that is told. Pure."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from dispatcher.answers import HoldScope
from dispatcher.decide import Stops
from dispatcher.holds import (
    ANSWER,
    WEBHOOK,
    Hold,
    Refusal,
    after,
    after_taken_try,
    is_news,
    is_told_by_event,
    is_tried_by,
    probe_delay,
)
from dispatcher_cases import NOW
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import reason
from sendwhy.reasons import ReasonCode

MINUTE = timedelta(minutes=1)
NAME = ("acme", HoldScope.ACCOUNT, "300")
PAYMENT = reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says: no card")
LOCKED = reason(ReasonCode.SENDER_NOT_AVAILABLE, "Meta says: locked")


def refusal(**changes: Any) -> Refusal:
    return replace(Refusal(PAYMENT, ANSWER, NOW), **changes)


def first() -> Hold:
    hold = after(None, NAME, refusal(), NOW)
    assert hold is not None
    return hold


def test_a_hold_says_cause_since_who_and_what() -> None:
    hold = first()
    assert (hold.cause.code, hold.since, hold.until, hold.said_by) == (PAYMENT.code, NOW, None, ANSWER)
    assert hold.probe_at == NOW + 5 * MINUTE
    assert hold.cause.evidence == {"held": "account 300", "said_by": ANSWER}


def test_a_token_is_told_only_as_one() -> None:
    hold = after(None, ("acme", HoldScope.TOKEN, "f00"), refusal(), NOW)
    assert hold is not None
    assert hold.cause.evidence["held"] == "token"


def test_tries_come_after_5_minutes_then_twice_as_late_and_at_least_every_hour() -> None:
    hold: Hold | None = first()
    delays = []
    for _ in range(6):
        assert hold is not None
        assert hold.probe_at is not None
        at = hold.probe_at
        hold = after(hold, NAME, refusal(at=at), at)
        assert hold is not None
        assert hold.probe_at is not None
        assert hold.since == NOW
        delays.append((hold.probe_at - at) / MINUTE)
    assert delays == [10, 20, 40, 60, 60, 60]


@given(st.integers(0, 10**6))
def test_a_try_is_never_far(strikes: int) -> None:
    assert 5 * MINUTE <= probe_delay(strikes) <= 60 * MINUTE


def test_while_it_stands_others_answers_change_nothing() -> None:
    hold = first()
    assert after(hold, NAME, refusal(at=NOW + 4 * MINUTE), NOW + 4 * MINUTE) is None
    # A webhook that comes late, of a message that went before the try was due.
    assert after(hold, NAME, refusal(at=NOW), NOW + 9 * MINUTE) is None


def test_what_was_told_before_it_was_lifted_is_over() -> None:
    lifted = replace(first(), lifted_at=NOW + MINUTE)
    assert after(lifted, NAME, refusal(at=NOW + MINUTE), NOW + 2 * MINUTE) is None
    again = after(lifted, NAME, refusal(at=NOW + 2 * MINUTE), NOW + 2 * MINUTE)
    assert again is not None
    assert (again.since, again.strikes, again.lifted_at) == (NOW + 2 * MINUTE, 0, None)
    assert is_news(lifted, again)


EVENT = {"cause": LOCKED, "said_by": "Meta's account_update", "is_account_event": True}
DAY = timedelta(days=1)


@pytest.mark.parametrize(("days", "is_believed"), [(-2, False), (0, True), (1, True)])
def test_an_older_word_of_metas_changes_no_newer_one(days: int, is_believed: bool) -> None:
    newer = after(None, NAME, refusal(**EVENT, until=NOW + 7 * DAY), NOW)
    told = refusal(**EVENT, at=NOW + days * DAY, until=NOW + days * DAY + DAY, stops=Stops.BUSINESS_INITIATED)
    hold = after(newer, NAME, told, NOW + DAY)
    assert (hold is not None) == is_believed
    assert hold is None or (hold.until, hold.said_at, hold.since) == (told.until, told.at, NOW)


def test_a_lift_ends_only_what_was_told_before_it() -> None:
    first_word = after(None, NAME, refusal(**EVENT), NOW)
    newer = after(first_word, NAME, refusal(**EVENT, at=NOW + 2 * DAY), NOW + 2 * DAY)
    assert newer is not None
    assert not newer.is_ended_by(NOW + DAY)
    assert newer.is_ended_by(NOW + 2 * DAY)
    assert not first().is_ended_by(NOW + DAY)


@pytest.mark.parametrize(
    ("changes", "at", "is_told"),
    [
        ({}, NOW, True),
        ({"until": NOW + DAY}, NOW, True),
        ({"until": NOW + DAY}, NOW + DAY, False),
        ({"stops": Stops.BUSINESS_INITIATED}, NOW, False),
        ({"stops": Stops.BUSINESS_INITIATED, "replies_from": NOW + DAY}, NOW, True),
        ({"stops": Stops.BUSINESS_INITIATED, "replies_from": NOW + DAY}, NOW + DAY, False),
        ({"cause": PAYMENT}, NOW, False),
    ],
)
def test_an_answer_repeats_an_event_that_stops_all_for_the_same_cause(
    changes: dict[str, Any], at: Any, is_told: bool
) -> None:
    event = after(None, NAME, refusal(**EVENT | changes), NOW)
    assert event is not None
    assert is_told_by_event([event], refusal(cause=LOCKED, at=at)) is is_told


@pytest.mark.parametrize("until", [NOW + 60 * MINUTE, None])
def test_metas_event_knows_better_than_an_answer(until: Any) -> None:
    event = refusal(cause=LOCKED, said_by="Meta's account_update", until=until, is_account_event=True)
    hold = after(first(), NAME, event, NOW)
    assert hold is not None
    # It ends when Meta said, or when somebody repairs it: no message tries before.
    assert (hold.until, hold.probe_at, hold.since) == (until, until, NOW)
    assert is_news(first(), hold)
    assert after(hold, NAME, event, NOW + MINUTE) is None
    assert after(hold, NAME, refusal(at=NOW + 2 * MINUTE), NOW + 2 * MINUTE) is None


def test_a_try_that_finds_the_same_is_told_nobody() -> None:
    hold = first()
    at = NOW + 5 * MINUTE
    same = after(hold, NAME, refusal(at=at), at)
    other = after(hold, NAME, refusal(at=at, cause=LOCKED), at)
    assert same is not None
    assert other is not None
    assert not is_news(hold, same)
    assert is_news(hold, other)


def test_a_200_ends_what_an_answer_told_and_only_delays_what_a_webhook_did() -> None:
    assert after_taken_try(first(), NOW) is None
    hold = after(None, NAME, refusal(said_by=WEBHOOK), NOW)
    for minutes in (10, 20, 40, 60, 60):
        assert hold is not None
        hold = after_taken_try(hold, NOW)
        assert hold is not None
        assert (hold.cause, hold.since, hold.probe_at) == (first_by_webhook().cause, NOW, NOW + minutes * MINUTE)


def first_by_webhook() -> Hold:
    hold = after(None, NAME, refusal(said_by=WEBHOOK), NOW)
    assert hold is not None
    return hold


def test_a_receipt_tells_of_a_hold_if_its_message_was_called_to_try_it() -> None:
    hold, due = first_by_webhook(), NOW + 5 * MINUTE
    assert not is_tried_by(hold, NOW, NOW + MINUTE)
    # The receipt comes before the answer is stored.
    assert is_tried_by(hold, due, due)
    assert not is_tried_by(hold, NOW + 4 * MINUTE, due)
    tried = after_taken_try(hold, due + timedelta(seconds=30))
    assert tried is not None
    assert is_tried_by(tried, due, due + MINUTE)
    assert not is_tried_by(tried, NOW, due + MINUTE)
    assert not is_tried_by(replace(tried, probe_at=None), due, due + MINUTE)
