"""Sending again: who is left out and why, of a family at most one goes, and what the repeat asks for."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log.resend import Failed, Member, Sum, excluded, has_changed, repeat_id, repeat_of, sent_already
from message_log_builders import requested
from sendwhy.events import MAX_HORIZON, SendRequested
from sendwhy.reasons import CATALOGUE, ReasonCode, Recoverable

R = ReasonCode
PLAN, OTHER_PLAN = UUID(int=1), UUID(int=2)
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("message", "why"),
    [
        (Failed("m", R.INSUFFICIENT_CREDITS, is_erased=False), None),
        (Failed("m", None, is_erased=False), None),
        (Failed("m", R.RECIPIENT_NOT_ON_WHATSAPP, is_erased=False), "never"),
        (Failed("m", R.CANCELLED, is_erased=False), "never"),
        (Failed("m", R.INSUFFICIENT_CREDITS, is_erased=True), "erased"),
        (Failed("m", R.INSUFFICIENT_CREDITS, is_erased=False, outcome="delivered"), "not_failed"),
        (Failed("m", R.SEND_OUTCOME_UNKNOWN, is_erased=False), "uncertain"),
        (Failed("m", R.SEND_OUTCOME_UNKNOWN, is_erased=False, is_only=True), None),
    ],
)
def test_who_is_never_sent_again_and_why(message: Failed, why: str | None) -> None:
    verdict = excluded(message)
    assert (verdict.why if verdict else None) == why


@pytest.mark.parametrize("code", [one for one in R if CATALOGUE[one].recoverable is Recoverable.NEVER])
def test_what_the_catalogue_calls_never_is_never_sent_again(code: ReasonCode) -> None:
    verdict = excluded(Failed("m", code, is_erased=False, is_only=True))
    assert verdict is not None
    assert verdict.why == "never"


@pytest.mark.parametrize(
    ("asked", "members", "left_out"),
    [
        (["a"], [("a", "a", "failed")], set()),
        (["a"], [("a", "a", "failed"), ("a", "b", "read")], {"a"}),
        (["b"], [("a", "a", None), ("a", "b", "failed")], set()),
        (["a"], [("a", "a", "failed"), ("a", "b", "open")], {"a"}),
        (["a"], [("a", "a", "failed"), ("a", "b", "failed")], set()),
        (["a", "b"], [("a", "a", "failed"), ("a", "b", "failed")], {"a"}),
        # Its first form arrived late, after the repeat failed.
        (["b"], [("a", "a", "delivered"), ("a", "b", "failed")], {"b"}),
        (["a", "x"], [("a", "a", "failed"), ("a", "b", "read"), ("x", "x", "failed")], {"a"}),
    ],
)
def test_a_message_goes_again_only_if_none_of_its_family_is_on_its_way_or_arrived(
    asked: list[str], members: list[tuple[str, str, str | None]], left_out: set[str]
) -> None:
    roots = {name: root for root, name, _ in members}
    found = sent_already(asked, roots, [Member(*one) for one in members])
    assert set(found) == left_out
    assert {one.why for one in found.values()} <= {"sent_again"}


@given(st.dictionaries(st.integers(0, 20), st.tuples(st.integers(0, 4), st.sampled_from(["failed", "read", None]))))
def test_of_a_family_at_most_one_goes(known: dict[int, tuple[int, str | None]]) -> None:
    members = [Member(f"r{root}", f"m{name}", outcome) for name, (root, outcome) in known.items()]
    asked = [one.message_id for one in members if one.outcome == "failed"]
    roots = {one.message_id: one.root for one in members}
    going = [roots[one] for one in asked if one not in sent_already(asked, roots, members)]
    assert len(going) == len(set(going))
    assert not {one.root for one in members if one.outcome == "read"} & set(going)


def hours(number: float) -> datetime:
    return NOW + timedelta(hours=number)


@pytest.mark.parametrize(
    ("old", "send_at", "expires_at"),
    [
        ({}, None, None),
        ({"send_at": hours(-5)}, None, None),
        ({"send_at": hours(5)}, hours(5), None),
        ({"expires_at": hours(-1)}, None, None),
        ({"expires_at": hours(1)}, None, hours(1)),
        ({"send_at": hours(5), "expires_at": hours(1)}, hours(5), None),
        ({"send_at": hours(-5), "expires_at": hours(1)}, None, hours(1)),
    ],
)
def test_times_that_are_over_are_dropped_and_those_ahead_kept(
    old: dict[str, Any], send_at: datetime | None, expires_at: datetime | None
) -> None:
    again = repeat_of(requested(**old, requested_at=hours(-6)), PLAN, NOW)
    assert (again.send_at, again.expires_at, again.requested_at) == (send_at, expires_at, NOW)


@given(st.integers(-800, 800), st.integers(-800, 800))
def test_every_repeat_is_a_valid_request_that_says_the_same(send: int, expire: int) -> None:
    old = requested(send_at=hours(send), expires_at=hours(expire), requested_at=hours(800) - MAX_HORIZON)
    again = repeat_of(old, PLAN, NOW)
    assert SendRequested.model_validate_json(again.to_json()) == again
    assert (again.resend_of, again.to, again.content) == (old.message_id, old.to, old.content)
    assert (again.origin, again.metadata, again.sender_id) == (old.origin, old.metadata, old.sender_id)


def test_a_plan_gives_a_message_one_new_id_however_often_and_another_plan_another() -> None:
    assert repeat_id(PLAN, "m") == repeat_id(PLAN, "m") != repeat_id(OTHER_PLAN, "m")
    assert repeat_id(PLAN, "m") != repeat_id(PLAN, "n")
    assert repeat_of(requested(message_id="m" * 128), PLAN, NOW).message_id == repeat_id(PLAN, "m" * 128)


@pytest.mark.parametrize(
    ("planned", "now", "changed"),
    [
        (Sum(100, 100), Sum(100, 100), False),
        (Sum(100, 100), Sum(99, 99), False),
        (Sum(100, 100), Sum(98, 98), True),
        (Sum(99, 99), Sum(98, 98), True),
        (Sum(100, 100), Sum(99, 101), True),
        (Sum(1, 1), Sum(0, 0), True),
        (Sum(0, 0), Sum(0, 0), True),
    ],
)
def test_a_plan_stands_unless_it_is_dearer_or_more_than_one_of_a_hundred_fell_out(
    planned: Sum, now: Sum, changed: bool
) -> None:
    assert has_changed(planned, now) is changed
