"""A message's stages, read from its events: tables; time is an argument."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from message_log import journey
from message_log.journey import Journey, Place, State
from message_log.view import EventView, MessageDetail, ToView, WaitingView
from sendwhy.events import Reason, Status, reason
from sendwhy.reasons import ReasonCode, Service

T0 = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
R = ReasonCode
DONE, PASSED, HERE, WAITING, FAILED, AHEAD, SKIPPED = State


def event(kind: str, seconds: float, service: str = "dispatcher", **more: Any) -> EventView:
    at = T0 + timedelta(seconds=seconds)
    return EventView(at=at, service=service, kind=kind, event_id=UUID(int=1), note=None, **more)


REQUESTED = event("requested", 0, "upstream")
CONSENTED = event("consented", 0.2, "consent")
FUNDED = event("funded", 0.4, "billing")
ACCEPTED = event("accepted", 1.4)
SENT = event("sent", 1, "webhook-ingest")
DELIVERED = event("delivered", 2, "webhook-ingest")
READ = event("read", 3, "webhook-ingest")
TO_META = [REQUESTED, CONSENTED, FUNDED, ACCEPTED]


def message(
    status: str, events: list[EventView], why: Reason | None = None, service: str | None = None, **more: Any
) -> MessageDetail:
    fields: dict[str, Any] = {
        "message_id": "test-20261126T120000Z-0a0b0c0d",
        "workspace_id": "acme",
        "to": ToView(contact_id=None, phone="+5255••••5678"),
        "origin": {"kind": "test"},
        "requested_at": T0,
        "updated_at": T0,
        "metadata": {},
        "url": "http://log/w/acme/messages/x",
        "webhooks": [],
        "waiting": None,
        "times": {Status.FAILED: T0 + timedelta(seconds=5)} if why else {},
    }
    none = dict.fromkeys(("purpose", "template", "language", "sender_id", "provider_message_id"))
    return MessageDetail(status=status, events=events, reason=why, service=service, **(none | fields | more))  # type: ignore[arg-type]


def told(of: MessageDetail, seconds: float = 5) -> Journey:
    return journey.of_message(of, T0 + timedelta(seconds=seconds), "Do this.")


def states(of: Journey) -> list[State]:
    return [stage.state for stage in of.stages]


STOPPED = reason(R.CUSTOMER_IS_NOT_OPTED_IN, "stopped")
POOR = reason(R.INSUFFICIENT_CREDITS, "poor")
LATE = reason(R.EXPIRED_BEFORE_SENDING, "late")
REFUSED = reason(R.META_ERROR, "no", {"tries": [{"result": "refused", "code": 1}]})
NOBODY = reason(R.RECIPIENT_NOT_ON_WHATSAPP, "nobody")
HELD = WaitingView(cause=R.RATE_LIMIT_EXCEEDED, since=T0, until=T0 + timedelta(minutes=1))
CASES = [
    (message("sending", [REQUESTED]), [DONE, HERE] + [AHEAD] * 6, False),
    (message("sending", [REQUESTED, CONSENTED]), [DONE, DONE, HERE] + [AHEAD] * 5, False),
    (message("sending", [REQUESTED, CONSENTED, FUNDED]), [DONE, DONE, DONE, HERE] + [AHEAD] * 4, False),
    (
        message("waiting", [REQUESTED, CONSENTED, FUNDED], waiting=HELD),
        [DONE, DONE, DONE, WAITING] + [AHEAD] * 4,
        False,
    ),
    (message("sending", TO_META), [DONE, DONE, DONE, PASSED, DONE, HERE, AHEAD, AHEAD], False),
    (message("sent", [*TO_META, SENT]), [DONE, DONE, DONE, PASSED, DONE, DONE, HERE, AHEAD], False),
    (
        message("delivered", [*TO_META, SENT, DELIVERED]),
        [DONE, DONE, DONE, PASSED, DONE, DONE, DONE, HERE],
        True,
    ),
    # A receipt that comes before the others, or without them, has passed their stages.
    (message("read", [REQUESTED, READ]), [DONE, *[PASSED] * 6, DONE], True),
    (message("failed", [REQUESTED], STOPPED, "consent"), [DONE, FAILED] + [SKIPPED] * 6, True),
    (message("failed", [REQUESTED, CONSENTED], POOR, "billing"), [DONE, DONE, FAILED] + [SKIPPED] * 5, True),
    # Recalled: consent says no after billing has said yes.
    (
        message("failed", [REQUESTED, CONSENTED, FUNDED], STOPPED, "consent"),
        [DONE, DONE, DONE, FAILED] + [SKIPPED] * 4,
        True,
    ),
    (
        message("failed", [REQUESTED, CONSENTED, FUNDED], LATE, "dispatcher"),
        [DONE, DONE, DONE, FAILED] + [SKIPPED] * 4,
        True,
    ),
    (
        message("failed", [REQUESTED, CONSENTED, FUNDED], REFUSED, "dispatcher"),
        [DONE, DONE, DONE, PASSED, FAILED] + [SKIPPED] * 3,
        True,
    ),
    (
        message("failed", TO_META, NOBODY, "webhook-ingest"),
        [DONE, DONE, DONE, PASSED, DONE, FAILED, SKIPPED, SKIPPED],
        True,
    ),
]


@pytest.mark.parametrize(("of", "expected", "ended"), CASES)
def test_stages_are_read_from_events(of: MessageDetail, expected: list[State], ended: bool) -> None:
    found = told(of)
    assert (states(found), found.ended) == (expected, ended)
    assert found.hang is None


def test_times_gaps_and_metas_clock() -> None:
    stages = {stage.place: stage for stage in told(message("sent", [*TO_META, SENT])).stages}
    assert stages[Place.REQUESTED].seconds is None
    assert stages[Place.CONSENT].seconds == pytest.approx(0.2)
    assert stages[Place.META].seconds == pytest.approx(1.0)
    assert stages[Place.SENT].by_meta
    assert (stages[Place.QUEUE].at, stages[Place.QUEUE].seconds) == (None, None)


def test_a_failure_says_when_what_and_what_next() -> None:
    found = told(message("failed", [REQUESTED], STOPPED, "consent"))
    failed = found.stages[1]
    assert (failed.at, failed.note) == (T0 + timedelta(seconds=5), "Customer is not opted in")
    assert (found.reason, found.detail, found.next_step) == ("Customer is not opted in", "stopped", "Do this.")


@pytest.mark.parametrize(
    ("of", "patience", "place", "words"),
    [
        (message("sending", [REQUESTED]), 10, Place.CONSENT, "consent"),
        (message("sending", [REQUESTED, CONSENTED]), 10, Place.BILLING, "billing"),
        (message("sending", [REQUESTED, CONSENTED, FUNDED]), 20, Place.QUEUE, "dispatcher"),
        (message("sending", TO_META), 30, Place.SENT, "webhook"),
        (message("sent", [*TO_META, SENT]), 60, Place.DELIVERED, "phone"),
    ],
)
def test_without_progress_it_says_where_it_hangs(of: MessageDetail, patience: float, place: Place, words: str) -> None:
    moved = max(each.at for each in of.events)
    last = (moved - T0).total_seconds()
    assert told(of, last + patience).hang is None
    hang = told(of, last + patience + 1).hang
    assert hang is not None
    assert (hang.place, hang.seconds) == (place, patience + 1)
    assert words in hang.remedy


@pytest.mark.parametrize(
    "of",
    [
        message("delivered", [*TO_META, SENT, DELIVERED]),
        message("waiting", [REQUESTED, CONSENTED, FUNDED], waiting=HELD),
        message("failed", [REQUESTED], STOPPED, "consent"),
    ],
)
def test_what_has_ended_or_waits_for_a_cause_hangs_nowhere(of: MessageDetail) -> None:
    assert told(of, 3600).hang is None


@pytest.mark.parametrize(
    ("message_id", "seconds", "is_told"),
    [
        ("test-20261126T120000Z-0a0b0c0d", 0, True),
        ("test-20261126T120000Z-0a0b0c0d", 3599, True),
        ("test-20261126T120000Z-0a0b0c0d", 3600, False),
        ("test-20261126T120200Z-0a0b0c0d", 0, False),
        ("test-20269926T120000Z-0a0b0c0d", 0, False),
        ("test-20261126T120000Z-0a0b0c0d0", 0, False),
        ("bf-1", 0, False),
        ("test-20261126T120000Z-'; drop", 0, False),
    ],
)
def test_only_a_test_message_of_a_moment_ago_is_told_before_it_is_seen(
    message_id: str, seconds: float, is_told: bool
) -> None:
    found = journey.unseen(message_id, "u", T0 + timedelta(seconds=seconds))
    assert (found is not None) == is_told
    if found is not None:
        assert states(found) == [HERE] + [AHEAD] * 7
        assert (found.hang is None) == (seconds <= 10)


def test_an_id_tells_when_it_was_made() -> None:
    assert journey.made_at(journey.new_id(T0, "0a0b0c0dff")) == T0


def test_every_stage_names_whom_to_look_at() -> None:
    assert {row.service for row in journey._ROWS.values()} >= {Service.CONSENT, Service.BILLING, Service.DISPATCHER}
