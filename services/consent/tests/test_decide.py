from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from consent.contacts import Contact, Key, Person, Word
from consent.decide import Facts, decide, evaluate, purpose_of
from consent.fields import Fields
from sendwhy.events import MarketingState, Purpose, SendConsented, SendRejected, SendRequested
from sendwhy.reasons import ReasonCode
from sendwhy.requests import Completed, Invalid, complete
from sendwhy.topics import outgoing

NOW = datetime(2026, 11, 22, 10, 0, 0, 210_000, tzinfo=UTC)
SAID = datetime(2026, 11, 20, 8, 12, 9, tzinfo=UTC)
KEY, UID = Key("acme", "shopify:7712"), UUID(int=7712)
R, P = ReasonCode, Purpose
TEMPLATE: dict[str, Any] = {
    "type": "template",
    "template": {"name": "autumn_sale", "language": {"code": "es_MX"}},
}


def request(**more: Any) -> SendRequested:
    body: dict[str, Any] = {
        "message_id": "bf-17",
        "workspace_id": "acme",
        "to": {"contact_id": "shopify:7712"},
        "origin": {"kind": "campaign", "id": "black-friday"},
        "content": TEMPLATE,
        "requested_at": NOW,
    } | more
    return SendRequested.model_validate(body, strict=False)


def contact(state: MarketingState | None = None, source: str = "import", **fields: Any) -> Contact:
    word = Word(state, SAID, source) if state else None
    given = Fields(**({"phone": "+525512345678"} | fields))
    return Contact(KEY, given, None, word, 3, SAID, SAID, SAID, UID, Person(UID, None, word))


def facts(found: Contact | None, **more: Any) -> Facts:
    return Facts(contact=found, standing=found.word if found else None, **more)


S = MarketingState
SUBSCRIBED = contact(S.SUBSCRIBED)


@pytest.mark.parametrize(
    ("kind", "said", "category", "believed", "purpose"),
    [
        ("campaign", None, None, False, P.MARKETING),
        ("automation", None, "UTILITY", True, P.MARKETING),
        ("inbox", None, None, False, P.CONVERSATION),
        ("api", None, None, False, P.TRANSACTIONAL),
        ("test", None, None, False, P.TRANSACTIONAL),
        ("campaign", "transactional", "UTILITY", False, P.MARKETING),
        ("campaign", "transactional", "UTILITY", True, P.TRANSACTIONAL),
        ("automation", "transactional", "AUTHENTICATION", True, P.TRANSACTIONAL),
        ("campaign", "conversation", "UTILITY", False, P.MARKETING),
        ("campaign", "transactional", "MARKETING", True, P.MARKETING),
        ("campaign", "transactional", None, True, P.MARKETING),
        ("api", "marketing", "UTILITY", False, P.MARKETING),
        ("inbox", "transactional", None, False, P.TRANSACTIONAL),
    ],
)
def test_purpose(kind: str, said: str | None, category: str | None, believed: bool, purpose: Purpose) -> None:
    asked = request(origin={"kind": kind}, purpose=said)
    assert purpose_of(asked, Facts(category=category, may_say_transactional=believed)) == purpose


API = {"kind": "api"}
GATES = [
    # request, facts → the reason, None for consent
    ({}, facts(SUBSCRIBED), None),
    ({}, facts(None), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({}, facts(contact()), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({}, facts(contact(S.UNSUBSCRIBED)), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({}, facts(contact(S.NOT_SUBSCRIBED)), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({"origin": API}, facts(contact(S.UNSUBSCRIBED), category="UTILITY"), None),
    ({"origin": API}, facts(contact(S.UNSUBSCRIBED), category="MARKETING"), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({"origin": API}, facts(None), R.CONTACT_HAS_NO_PHONE),
    ({"origin": API, "to": {"phone": "+525512345678"}}, facts(None), None),
    ({"origin": API, "to": {"phone": "5512345678"}}, facts(None), R.CUSTOMER_IS_MISSING_CALLING_CODE),
    ({"origin": API, "to": {"phone": "+5255"}}, facts(None), R.PHONE_NUMBER_IMPOSSIBLE),
    ({}, facts(contact(S.SUBSCRIBED, phone=None)), R.CONTACT_HAS_NO_PHONE),
    ({}, facts(contact(S.SUBSCRIBED, phone=None, user_id="MX.1")), None),
    ({}, facts(contact(S.UNSUBSCRIBED, phone=None, user_id="MX.1")), R.CUSTOMER_IS_NOT_OPTED_IN),
    ({"origin": API}, facts(contact(phone=None, user_id="MX.1"), category="UTILITY"), None),
    ({"origin": API}, facts(contact(phone=None, user_id="MX.1"), category="AUTHENTICATION"), R.CONTACT_HAS_NO_PHONE),
    (
        {"origin": API, "to": {"contact_id": "shopify:7712", "phone": "5512345678"}},
        facts(contact(phone=None, user_id="MX.1")),
        R.CUSTOMER_IS_MISSING_CALLING_CODE,
    ),
    ({}, facts(contact(S.SUBSCRIBED, phone="5512345678")), R.CUSTOMER_IS_MISSING_CALLING_CODE),
    ({}, facts(contact(S.SUBSCRIBED, phone="5512345678", country_code="MX")), R.CUSTOMER_IS_MISSING_CALLING_CODE),
    ({}, facts(contact(S.SUBSCRIBED, phone="5512345678", calling_code="52")), None),
    ({}, facts(contact(S.SUBSCRIBED, phone="+999999999")), R.PHONE_NUMBER_IMPOSSIBLE),
    ({}, facts(contact(phone="5512345678")), R.CUSTOMER_IS_NOT_OPTED_IN),
]


@pytest.mark.parametrize(("asked", "known", "code"), GATES)
def test_the_first_failing_gate_decides(asked: dict[str, Any], known: Facts, code: ReasonCode | None) -> None:
    completed = complete(request(**asked), NOW)
    assert isinstance(completed, Completed)
    event = decide(completed, known, NOW)
    assert (event.reason.code if isinstance(event, SendRejected) else None) == code
    verdict = evaluate(completed.request, known)
    failures = [gate.reason.code for gate in verdict.gates if gate.reason]
    assert (failures[0] if failures else None) == code
    if isinstance(event, SendConsented):
        assert (event.resolved, event.needs_subscription) == (verdict.resolved, verdict.needs_subscription)
    assert [gate.gate for gate in verdict.gates] == ["marketing_state", "phone_known", "calling_code", "phone_possible"]
    assert outgoing(event, source="consent").value


def test_a_rejection_reads_as_the_contract_shows_it() -> None:
    stop = Word(S.UNSUBSCRIBED, SAID, "stop_reply", "wamid.1", own=True)
    known = facts(replace(SUBSCRIBED, person=Person(UID, stop, SUBSCRIBED.told), version=4))
    completed = complete(request(sender_id="415566778899001", metadata={"order": "4711"}), NOW)
    assert isinstance(completed, Completed)
    event = decide(completed, known, NOW)
    assert isinstance(event, SendRejected)
    assert event.reason.detail == "marketing_state is UNSUBSCRIBED since 2026-11-20T08:12:09Z (replied STOP)"
    assert event.reason.evidence == {
        "marketing_state": "UNSUBSCRIBED",
        "since": "2026-11-20T08:12:09Z",
        "source": "stop_reply",
    }
    assert (event.sender_id, event.metadata) == ("415566778899001", {"order": "4711"})


def test_a_missing_calling_code_shows_all_three_fields_and_a_suggestion() -> None:
    verdict = evaluate(request(), facts(contact(S.SUBSCRIBED, phone="5512345678", country_code="MX")))
    assert verdict.failure is not None
    assert verdict.failure.evidence == {
        "phone": "5512345678",
        "phone_country_code": "MX",
        "phone_calling_code": None,
        "suggestion": {"calling_code": "52", "phone": "+525512345678", "ground": "phone_country_code MX"},
    }
    assert verdict.resolved.phone is None


def test_the_stored_phone_wins_over_the_given_one() -> None:
    to = {"contact_id": "shopify:7712", "phone": "+12025550123"}
    assert evaluate(request(to=to), facts(SUBSCRIBED)).resolved.phone == "+525512345678"
    assert evaluate(request(to=to), facts(contact(S.SUBSCRIBED, phone=None))).resolved.phone == "+12025550123"


@pytest.mark.parametrize(
    ("fields", "to", "address", "place"),
    [
        ({"phone": None, "user_id": "MX.1"}, {}, ("", "MX.1"), ("MX", "52")),
        ({"phone": None, "user_id": "US.ENT.11"}, {}, ("", "US.ENT.11"), ("US", "1")),
        ({"phone": None, "user_id": "elsewhere"}, {}, ("", "elsewhere"), (None, None)),
        ({"phone": None, "user_id": "ZZ.1"}, {}, ("", "ZZ.1"), (None, None)),
        ({"phone": None, "user_id": "MX.1"}, {"phone": "+447700900123"}, ("+447700900123", ""), ("GB", "44")),
        ({"user_id": "GB.1"}, {"phone": "+447700900123"}, ("+525512345678", ""), ("MX", "52")),
    ],
)
def test_a_user_id_is_written_to_only_where_there_is_no_number(
    fields: dict[str, Any], to: dict[str, Any], address: tuple[str, str], place: tuple[str | None, str | None]
) -> None:
    asked = request(origin=API, to={"contact_id": "shopify:7712"} | to)
    verdict = evaluate(asked, facts(contact(**fields)))
    resolved = verdict.resolved
    assert (resolved.phone or "", resolved.user_id or "") == address
    assert (resolved.country, resolved.calling_code) == place
    assert [gate.passed for gate in verdict.gates] == [True] * 4


def test_a_past_moment_has_no_history_of_phones() -> None:
    verdict = evaluate(request(), Facts(contact=SUBSCRIBED, standing=None, is_past=True))
    assert [gate.passed for gate in verdict.gates] == [False, None, None, None]


HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.mark.parametrize(
    ("kind", "times", "send_at", "expires_at"),
    [
        ("campaign", {}, NOW, NOW + 2 * DAY),
        ("automation", {}, NOW, NOW + DAY),
        ("inbox", {}, NOW, NOW + timedelta(minutes=15)),
        ("test", {}, NOW, NOW + timedelta(minutes=5)),
        ("api", {"requested_at": None}, NOW, NOW + DAY),
        ("api", {"send_at": NOW + HOUR}, NOW + HOUR, NOW + HOUR + DAY),
        ("api", {"send_at": NOW - HOUR}, NOW - HOUR, NOW + DAY),
        ("api", {"send_at": NOW + HOUR, "expires_at": NOW + HOUR}, NOW + HOUR, NOW + HOUR),
        ("campaign", {"send_at": NOW + 30 * DAY}, NOW + 30 * DAY, NOW + 30 * DAY),
    ],
)
def test_times_are_filled_in(kind: str, times: dict[str, Any], send_at: datetime, expires_at: datetime) -> None:
    completed = complete(request(origin={"kind": kind}, **times), NOW)
    assert isinstance(completed, Completed)
    assert (completed.send_at, completed.expires_at) == (send_at, expires_at)
    assert completed.request.requested_at == NOW
    event = decide(completed, facts(SUBSCRIBED), NOW)
    assert isinstance(event, SendConsented)
    assert (event.contact_version, event.request.requested_at) == (3, NOW)


def test_who_asks_for_no_moment_waits_for_none_though_upstreams_clock_is_ahead() -> None:
    completed = complete(request(origin={"kind": "inbox"}, requested_at=NOW + HOUR), NOW)
    assert isinstance(completed, Completed)
    assert (completed.send_at, completed.expires_at) == (NOW, NOW + HOUR + timedelta(minutes=15))


@pytest.mark.parametrize(
    ("times", "field"),
    [
        ({"expires_at": NOW - HOUR}, "expires_at"),
        ({"send_at": NOW + HOUR, "expires_at": NOW}, "expires_at"),
        ({"requested_at": None, "send_at": NOW + 31 * DAY}, "send_at"),
        ({"requested_at": None, "expires_at": NOW + 31 * DAY}, "expires_at"),
        ({"requested_at": NOW + 31 * DAY}, "requested_at"),
    ],
)
def test_impossible_times_are_named(times: dict[str, Any], field: str) -> None:
    invalid = complete(request(**times), NOW)
    assert isinstance(invalid, Invalid)
    assert field in [line.partition(":")[0] for line in invalid.fields]
    assert invalid.reason.code == R.INVALID_REQUEST


@pytest.mark.parametrize("other", ["send_at", "requested_at"])
def test_an_early_expiry_is_told_with_the_time_that_was_given(other: str) -> None:
    invalid = complete(request(**{"requested_at": NOW, other: NOW, "expires_at": NOW - HOUR}), NOW)
    assert invalid == Invalid((f"expires_at: must not be before {other}",))
