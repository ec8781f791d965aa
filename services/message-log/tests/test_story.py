"""Waits and tries, read from a message's events."""

from typing import Any

from message_log.fixes import fixes_of, why_of
from message_log.story import content_of, tries_of, waits_of
from message_log.view import EventView, MessageDetail, ToView, WaitingView
from message_log_builders import MESSAGE, T0, WORKSPACE, after, consented, event_id, held, requested, status
from sendwhy.events import MetaError, Reason, Status, Wire, reason
from sendwhy.reasons import ReasonCode, Service

TRIES = [
    {"at": "2026-11-22T10:00:01.000Z", "result": "retry", "code": 131000, "http_status": 500, "detail": "later"},
    {"at": "2026-11-22T10:00:05.000Z", "result": "unknown", "cause": "read timeout", "http_status": None},
]


def shown(kind: str, seconds: float, service: str, event: Wire) -> EventView:
    told = event.model_dump(mode="json")
    own = {"at": after(seconds), "service": service, "kind": kind, "event_id": event_id(kind), "note": None}
    return EventView(**(told | own))


def message(events: list[EventView], **given: Any) -> MessageDetail:
    fields: dict[str, Any] = dict.fromkeys(
        ("service", "reason", "waiting", "purpose", "template", "language", "sender_id", "provider_message_id")
    )
    fields |= {
        "message_id": MESSAGE,
        "workspace_id": WORKSPACE,
        "status": "sending",
        "to": ToView(contact_id="c-1", phone=None),
        "origin": {"kind": "campaign", "id": "spring"},
        "requested_at": T0,
        "updated_at": T0,
        "times": {},
        "metadata": {},
        "url": "",
        "events": events,
        "webhooks": [],
    }
    return MessageDetail(**(fields | given))


def failure(code: ReasonCode, evidence: dict[str, Any], meta: MetaError | None = None) -> Reason:
    return reason(code, "because", evidence, meta)


def test_each_wait_has_its_cause_and_its_end() -> None:
    events = [
        shown("requested", 0, "upstream", requested()),
        shown("held", 2, "dispatcher", held(ReasonCode.RATE_LIMIT_EXCEEDED, until=30)),
        shown("accepted", 20, "dispatcher", status(Status.ACCEPTED)),
    ]
    (wait,) = waits_of(message(events))
    assert (wait.cause, wait.since, wait.until, wait.ended) == (
        "RATE_LIMIT_EXCEEDED",
        after(2),
        after(30),
        after(20),
    )


def test_a_hold_of_many_is_a_wait_of_each() -> None:
    now = WaitingView(cause="SENDER_CREDENTIALS_REJECTED", since=after(5), until=None)
    (wait,) = waits_of(message([], status="waiting", waiting=now))
    assert (wait.cause, wait.until, wait.ended) == ("SENDER_CREDENTIALS_REJECTED", None, None)


def test_a_message_before_its_time_waits_and_there_is_nothing_to_repair() -> None:
    now = WaitingView(cause="EXPIRED_BEFORE_SENDING", since=T0, until=after(3600), scheduled=True)
    shown_now = message([shown("requested", 0, "upstream", requested())], status="waiting", waiting=now)
    (wait,) = waits_of(shown_now)
    assert (wait.scope, wait.since, wait.until, wait.scheduled) == ("message", T0, after(3600), True)
    assert fixes_of(shown_now) == []
    held_now = shown_now.model_copy(update={"waiting": now.model_copy(update={"scheduled": False})})
    assert fixes_of(held_now) != []


def test_a_pause_leads_to_what_may_be_paused() -> None:
    now = WaitingView(cause="EXPIRED_BEFORE_SENDING", since=T0, until=None)
    of_campaign = {"kind": "campaign", "id": "sale"}
    paused = message([], status="waiting", waiting=now, sender_id="7", origin=of_campaign)
    assert [fix.path.rpartition(f"/w/{WORKSPACE}/")[2] for fix in fixes_of(paused)] == ["senders/7", "campaigns/sale"]
    alone = message([], status="waiting", waiting=now, origin={"kind": "api"})
    assert [fix.label for fix in fixes_of(alone)] == ["Look at the number"]


def test_only_a_campaigns_message_leads_to_a_campaign() -> None:
    for kind, places in {"campaign": ["campaigns/welcome"], "automation": ["senders/7"], "api": ["senders/7"]}.items():
        slow = failure(ReasonCode.RATE_LIMIT_EXCEEDED, {})
        failed = message([], reason=slow, status="failed", sender_id="7", origin={"kind": kind, "id": "welcome"})
        assert [fix.path.rpartition(f"/w/{WORKSPACE}/")[2] for fix in fixes_of(failed)] == places


def test_as_long_as_a_receipt_may_tell_what_became_of_a_call_there_is_nothing_to_do() -> None:
    now = WaitingView(cause="SEND_OUTCOME_UNKNOWN", since=T0, until=after(600))
    waits = message([], status="waiting", waiting=now)
    assert why_of(waits) is None
    given_up = failure(ReasonCode.SEND_OUTCOME_UNKNOWN, {"called_at": "x", "last_try": TRIES[1]})
    assert why_of(message([], reason=given_up, status="failed")) == "SEND_OUTCOME_UNKNOWN"


def test_tries_are_told_by_evidence_by_meta_s_answer_and_by_accepted() -> None:
    dispatcher: dict[str, Any] = {"status": "failed", "service": Service.DISPATCHER}
    many = failure(ReasonCode.TEMPORARY_FAILURE, {"tries": TRIES})
    assert [one["result"] for one in tries_of(message([], reason=many, **dispatcher))] == ["retry", "unknown"]
    last = failure(ReasonCode.SEND_OUTCOME_UNKNOWN, {"called_at": "x", "last_try": TRIES[1]})
    assert [one["cause"] for one in tries_of(message([], reason=last, **dispatcher))] == ["read timeout"]
    refused = failure(ReasonCode.META_ERROR, {}, MetaError(code=100, http_status=400))
    assert tries_of(message([], reason=refused, **dispatcher))[0]["code"] == 100
    taken = message([shown("accepted", 3, "dispatcher", status(Status.ACCEPTED))])
    assert [(one["result"], one["wamid"]) for one in tries_of(taken)] == [("taken", "wamid.HBgM1")]
    assert tries_of(message([], reason=failure(ReasonCode.CANCELLED, {}), **dispatcher)) == []


def test_evidence_of_another_shape_is_no_try() -> None:
    odd_ones: list[dict[str, Any]] = [
        {"tries": []},
        {"tries": "many"},
        {"tries": [1, None, {}]},
        {"last_try": {}},
        {"last_try": None},
    ]
    for odd in odd_ones:
        assert tries_of(message([], reason=failure(ReasonCode.CANCELLED, odd), service="dispatcher")) == []


def test_what_is_sent_is_what_the_last_service_passed_on() -> None:
    events = [shown("requested", 0, "upstream", requested()), shown("consented", 1, "consent", consented())]
    content: Any = content_of(message(events))
    assert content["template"]["name"] == "autumn_sale"
    assert content_of(message([])) is None


def test_no_link_leads_to_a_page_that_is_not_there() -> None:
    missing = failure(ReasonCode.CANCELLED, {})
    assert fixes_of(message([], reason=missing)) == []
    assert fixes_of(message([])) == []
