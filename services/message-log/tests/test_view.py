from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from message_log import words
from message_log.view import WaitingView, mask, masked, timeline_order
from message_log_builders import after
from sendwhy.reasons import CATALOGUE, ReasonCode


@pytest.mark.parametrize(
    ("phone", "shown"),
    [
        ("+525512345678", "+5255••••5678"),
        ("447700900142", "4477••••0142"),
        ("5512345678", "55••••5678"),
        ("12345", "••••"),
        (None, None),
    ],
)
def test_a_masked_phone_can_be_recognised_and_not_called(phone: str | None, shown: str | None) -> None:
    assert mask(phone) == shown


def test_phones_are_masked_wherever_they_stand_in_an_event() -> None:
    event = {"to": {"phone": "+525512345678", "contact_id": "c"}, "raw": [{"wa_id": "525512345678", "from": "shop"}]}
    assert masked(event) == {
        "to": {"phone": "+5255••••5678", "contact_id": "c"},
        "raw": [{"wa_id": "5255••••5678", "from": "shop"}],
    }


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("+52 55 1234 5678", "+5255••••5678"),
        ("(55) 1234-5678", "55••••5678"),
        ("2026-11-22T10:00:00Z", "2026-11-22T10:00:00Z"),
        ("2026-11-22", "2026-11-22"),
        ("123456", "123456"),
    ],
)
def test_a_phone_is_masked_however_it_is_written_and_a_time_is_not(value: str, shown: str) -> None:
    assert masked({"to": value}) == {"to": shown}


def test_metas_whole_seconds_stand_after_our_own_times_of_that_second_in_the_order_of_the_ladder() -> None:
    def event(kind: str, service: str, seconds: float) -> dict[str, Any]:
        return {"kind": kind, "service": service, "occurred_at": after(0) + timedelta(seconds=seconds)}

    told = [
        event("delivered", "webhook-ingest", 0),
        event("accepted", "dispatcher", 0.8),
        event("sent", "webhook-ingest", 0),
        event("requested", "upstream", 0.1),
        event("read", "webhook-ingest", 1),
    ]
    kinds = [each["kind"] for each in sorted(told, key=timeline_order)]
    assert kinds == ["requested", "accepted", "sent", "delivered", "read"]


@pytest.mark.parametrize(
    ("cause", "ends"),
    [
        ("EXPIRED_BEFORE_SENDING", "somebody resumes it"),
        ("TEMPORARY_FAILURE", "it passes; Sendwhy tries now and then"),
        ("RATE_LIMIT_EXCEEDED", "it passes; Sendwhy tries now and then"),
        ("META_PAYMENT_ISSUE", "the cause is repaired; Sendwhy tries now and then"),
        ("A_CAUSE_OF_TOMORROW", "the cause is repaired; Sendwhy tries now and then"),
    ],
)
def test_a_wait_without_an_end_says_what_ends_it(cause: str, ends: str) -> None:
    assert words.open_end(cause) == ends


NOW = datetime(2026, 11, 27, 21, 33, tzinfo=UTC)


def wait(cause: str, until: datetime | None, *, scheduled: bool = False) -> WaitingView:
    return WaitingView(cause=cause, since=NOW, until=until, scheduled=scheduled)


def test_what_waits_is_not_told_as_expired_and_nobody_is_told_to_send_it_again() -> None:
    paused, aside = wait("EXPIRED_BEFORE_SENDING", None), wait("EXPIRED_BEFORE_SENDING", NOW)
    assert [words.wait_title(paused), words.wait_title(aside)] == ["Paused", "Put aside, to be tried again"]
    for one in (paused, aside):
        assert "Don’t send it again" in (words.wait_todo(one) or "")
    told = {"kind": "held", "cause": "EXPIRED_BEFORE_SENDING", "until": None}
    assert words.event_detail(told) == "Paused: it waits, until somebody resumes it"


def test_a_wait_says_what_to_do_unless_it_ends_by_itself() -> None:
    assert words.wait_todo(wait("META_PAYMENT_ISSUE", None)) == CATALOGUE[ReasonCode.META_PAYMENT_ISSUE].what_to_do
    for one in (wait("EXPIRED_BEFORE_SENDING", NOW, scheduled=True), wait("SEND_OUTCOME_UNKNOWN", NOW)):
        assert words.wait_todo(one) is None
    assert words.wait_todo(wait("A_CAUSE_OF_TOMORROW", None)) is None


def test_a_time_that_stands_alone_names_its_day_unless_that_is_today() -> None:
    assert words.day_time(NOW + timedelta(hours=2), NOW) == "23:33:00 UTC"
    assert words.day_time(NOW + timedelta(hours=3), NOW) == "2026-11-28 00:33:00 UTC"
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))
    assert words.day_time(elsewhere, NOW) == "21:33:00 UTC"
