"""Edges in time, right to the second: windows, expiry, caps, belief in a closed window, and syncs."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from dispatcher.decide import WEBHOOK_TRAVELS, Reject, Send, Wait, Waiting, decide, evaluate, in_the_past
from dispatcher.limits import LastMinute
from dispatcher.windows import Window, opened_at, opened_by
from dispatcher_cases import FACTS, NOW, PHONE, SENDER, message, template_content, text_content
from hypothesis import example, given
from hypothesis import strategies as st
from sendwhy.events import Inbound, MessageReceived, Purpose, event_id_of
from sendwhy.reasons import ReasonCode

DAY = timedelta(hours=24)
MICROSECOND = timedelta(microseconds=1)
Property = Callable[[timedelta], None]
MICROS = st.integers(0, 2 * 86_400 * 10**6 - 1).map(lambda micros: timedelta(microseconds=micros))
FREE = message(text_content(), purpose=Purpose.CONVERSATION)
READ = replace(FACTS, template=None, inbound_read_until=NOW + 10 * DAY)


def at_edges(edge: timedelta) -> Callable[[Property], Property]:
    """A property over time that always looks just before, at, and after its edge."""

    def with_examples(test: Property) -> Property:
        for micros in (-1, 0, 1):
            test = example(edge + timedelta(microseconds=micros))(test)
        return given(MICROS)(test)

    return with_examples


@at_edges(DAY)
def test_a_window_is_open_until_exactly_24_hours_after(since: timedelta) -> None:
    facts = replace(READ, window_opened_at=NOW - since)
    verdict = decide(FREE, facts, NOW)
    assert isinstance(verdict, Send if since < DAY else Reject)
    # The same moment ends the time in which a template counts for no tier.
    counted = decide(message(), replace(FACTS, window_opened_at=NOW - since), NOW)
    assert counted == Send(counts_for_tier=since >= DAY)


@at_edges(timedelta(hours=48))
def test_nothing_is_sent_at_or_after_its_expiry(since: timedelta) -> None:
    waiting = message()
    assert waiting.funded.expires_at == NOW + timedelta(hours=48)
    assert isinstance(decide(waiting, FACTS, NOW + since), Send if since < timedelta(hours=48) else Reject)


@at_edges(DAY)
def test_a_cap_lasts_24_hours(since: timedelta) -> None:
    verdict = decide(message(), replace(FACTS, capped_until=NOW + DAY), NOW + since)
    assert isinstance(verdict, Wait if since < DAY else Send)


@at_edges(timedelta(hours=48))
def test_who_expires_within_a_cap_fails_at_once(until: timedelta) -> None:
    waiting = message()
    assert waiting.funded.expires_at == NOW + timedelta(hours=48)
    verdict = decide(waiting, replace(FACTS, capped_until=NOW + until), NOW)
    assert isinstance(verdict, Reject) == (until >= timedelta(hours=48))
    if isinstance(verdict, Reject):
        assert verdict.reason.code is ReasonCode.MARKETING_CAP_REACHED


@at_edges(timedelta(seconds=10))
def test_a_closed_window_is_believed_once_read_or_after_ten_seconds(waited: timedelta) -> None:
    unread = replace(READ, inbound_read_until=NOW - MICROSECOND)
    verdict = decide(FREE, unread, NOW + waited)
    assert isinstance(verdict, Wait if waited < timedelta(seconds=10) else Reject)
    if isinstance(verdict, Wait):
        assert verdict.until is not None
        assert NOW + waited < verdict.until <= NOW + timedelta(seconds=10)
    read_far_enough = NOW + min(WEBHOOK_TRAVELS, waited)
    for read_until in (read_far_enough, read_far_enough - MICROSECOND):
        verdict = decide(FREE, replace(unread, inbound_read_until=read_until), NOW + waited)
        is_believed = read_until == read_far_enough or waited >= timedelta(seconds=10)
        assert isinstance(verdict, Reject) == is_believed


@at_edges(timedelta(minutes=1))
def test_a_template_is_not_found_only_by_a_sync_that_is_new_enough(since: timedelta) -> None:
    facts = replace(FACTS, sender=replace(SENDER, templates_synced_at=NOW - since), template=None)
    waiting = message(template_content("x", name="unheard"), queued_at=NOW)
    verdict = decide(waiting, facts, NOW)
    assert isinstance(verdict, Reject if since < timedelta(minutes=1) else Wait)
    if isinstance(verdict, Wait):
        assert verdict.waiting_for is Waiting.SYNC
    # A sync that began after it came is new enough whenever it is looked at.
    assert isinstance(decide(replace(waiting, queued_at=NOW - since), facts, NOW), Reject)


@given(MICROS, MICROS)
def test_the_past_is_told_only_where_it_is_known(opened: timedelta, asked: timedelta) -> None:
    facts, at = replace(READ, window_opened_at=NOW - opened), NOW - asked
    (check,) = [one for one in evaluate(FREE, facts, at) if one.gate == "window"]
    passed = in_the_past(FREE, facts, at, check).passed
    # What came after that moment may have hidden what stood then.
    assert passed == (None if opened < asked else opened - asked < DAY)


def test_other_gates_do_not_know_the_past() -> None:
    gates = {one.gate: in_the_past(message(), FACTS, NOW, one).passed for one in evaluate(message(), FACTS, NOW)}
    assert {name for name, passed in gates.items() if passed is not None} == {"expiry", "window"}


# --- what opens a window ---


def inbound(kind: Inbound = Inbound.OTHER, at: datetime = NOW, **raw: Any) -> MessageReceived:
    return MessageReceived(
        event_id=event_id_of("x", "y"),
        occurred_at=at,
        sender_id=SENDER.sender_id,
        wamid="wamid.I",
        phone=PHONE,
        kind=kind,
        raw=raw,
    )


OPENING = [
    ("a text", inbound(Inbound.TEXT, type="text"), NOW),
    ("a button", inbound(Inbound.BUTTON, type="button"), NOW),
    ("a reaction", inbound(type="reaction"), NOW),
    ("a kind that Meta shows nobody", inbound(type="unsupported"), NOW),
    ("a changed number", inbound(type="system"), None),
    ("a message written anew", inbound(Inbound.TEXT, type="edit"), NOW),
    ("a message taken back, up to two days later", inbound(type="revoke"), None),
    ("a text to a group, whose window is the group's", inbound(Inbound.TEXT, type="text", group_id="Y2Fw"), None),
    ("a call", inbound(Inbound.CALL, event="connect"), NOW),
    (
        "a call's end",
        inbound(Inbound.CALL, event="terminate", start_time=str(int(NOW.timestamp()) - 60)),
        NOW - timedelta(minutes=1),
    ),
    ("a call's end without its start", inbound(Inbound.CALL, event="terminate", start_time="²"), NOW),
    ("a call of ours", inbound(Inbound.CALL, direction="BUSINESS_INITIATED"), None),
]


@pytest.mark.parametrize(("name", "event", "opened"), OPENING, ids=[case[0] for case in OPENING])
def test_what_a_person_says_opens_the_window(name: str, event: MessageReceived, opened: datetime | None) -> None:
    assert opened_at(event) == opened


def test_windows_move_forward_and_keep_the_ad_that_led_there() -> None:
    events = [
        inbound(Inbound.TEXT, NOW - timedelta(hours=1), referral={"source_type": "ad"}),
        inbound(Inbound.TEXT),
        inbound(Inbound.TEXT, NOW - DAY),
    ]
    found = opened_by(events)
    assert found[SENDER.sender_id, PHONE] == Window(NOW, NOW - timedelta(hours=1))
    # Mexico has two spellings of one number.
    assert found[SENDER.sender_id, "+5215512345678"] == found[SENDER.sender_id, PHONE]


WINDOWS_OF = [
    ("a number in each spelling", (PHONE, None), {PHONE, "+5215512345678"}),
    ("a number, and the id that goes with it", (PHONE, "MX.7004"), {PHONE, "+5215512345678", "MX.7004"}),
    ("an id alone", (None, "MX.7004"), {"MX.7004"}),
    ("nobody", (None, None), set()),
]


@pytest.mark.parametrize(("name", "who", "opened"), WINDOWS_OF, ids=[case[0] for case in WINDOWS_OF])
def test_whose_window_it_opens(name: str, who: tuple[str | None, str | None], opened: set[str]) -> None:
    wrote = inbound(Inbound.TEXT).model_copy(update={"phone": who[0], "user_id": who[1]})
    assert opened_by([wrote]) == {(SENDER.sender_id, each): Window(NOW) for each in opened}


def test_a_free_entry_point_is_evidence_and_opens_nothing() -> None:
    facts = replace(READ, window_opened_at=NOW - DAY, free_entry_at=NOW - timedelta(hours=30))
    verdict = decide(FREE, facts, NOW)
    assert isinstance(verdict, Reject)
    assert verdict.reason.code is ReasonCode.OUTSIDE_24_HOUR_WINDOW
    assert verdict.reason.evidence["free_entry_point_at"]


@given(st.lists(st.tuples(st.floats(0, 500), st.integers(1, 50)), max_size=30))
def test_the_last_minute_counts_sixty_seconds(sent: list[tuple[float, int]]) -> None:
    counter, now = LastMinute(), 0.0
    for at, count in sorted(sent):
        counter.add(count, at)
        now = at
    assert counter.count(now) == sum(count for at, count in sent if int(at) > int(now) - 60)
