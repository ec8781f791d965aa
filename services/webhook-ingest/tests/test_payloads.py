"""Payloads of every family, unlike the 58 examples: what each element comes to; and arbitrary ones, of which every
element is accounted for."""

import copy
import json
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ingest_webhooks import AT, NUMBER, PHONE, T0, USER, WABA, body, callback, delivery, status, statuses, value
from sendwhy.events import (
    CustomerUpdated,
    Inbound,
    MessageReceived,
    SenderReported,
    StatusUpdated,
    TemplateReported,
)
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import MAX_DEAD_LETTER_BYTES, outgoing
from webhook_ingest.decide import status_event, status_record
from webhook_ingest.elements import Delivery, Element, Origin, Reading, Report, StatusTold, Unreadable
from webhook_ingest.fragments import ARRAYS, PLAIN_KEYS, SHARED_KEYS, read, read_any
from webhook_ingest.usual import receipt_of

R = ReasonCode
PERSON = "447700900142"
LINES = (Path(__file__).parent / "meta-examples.jsonl").read_text().splitlines()
EXAMPLES: list[dict[str, Any]] = [json.loads(line)["payload"] for line in LINES]


def reading_of(payload: Any) -> Reading:
    return read(delivery(payload if isinstance(payload, bytes) else json.dumps(payload).encode()))


def one(payload: Any) -> Element:
    (element,) = reading_of(payload).elements
    return element


def event_of(payload: Any) -> Any:
    element = one(payload)
    assert isinstance(element, Report), element
    return element.event


def account(field: str, **told: Any) -> bytes:
    return body(told, field=field)


# (what, the element, its status, reason)
FAILURES: list[tuple[str, dict[str, Any], R]] = [
    ("an older client", {"errors": [{"code": 131026, "title": "t", "href": "https://x"}]}, R.RECIPIENT_NOT_ON_WHATSAPP),
    ("the window, as text", {"errors": [{"code": "131047"}]}, R.OUTSIDE_24_HOUR_WINDOW),
    ("a decimal", {"errors": [{"code": 131049.0}]}, R.MARKETING_CAP_REACHED),
    ("no list", {"errors": {"code": 131042, "error_data": {"details": "pay"}}}, R.META_PAYMENT_ISSUE),
    ("a flow", {"errors": [{"code": 132069}]}, R.TEMPLATE_POLICY_VIOLATION),
    ("media", {"errors": [{"code": 131053, "error_data": {"details": "HTTP 404"}}]}, R.MEDIA_FAILED),
    ("spam", {"errors": [{"code": 131048}]}, R.QUALITY_RATING_TOO_LOW),
    ("a permission", {"errors": [{"code": 230}]}, R.SENDER_CREDENTIALS_REJECTED),
    ("blocked by the business", {"errors": [{"code": 130403}]}, R.SENDER_BLOCKED_RECIPIENT),
    ("the number is gone", {"errors": [{"code": 100, "error_subcode": 33}]}, R.SENDER_NOT_AVAILABLE),
    ("a misclassified template", {"errors": [{"code": 131064}]}, R.MESSAGING_LIMIT_REACHED),
    ("identity", {"errors": [{"code": 137000}]}, R.RECIPIENT_NOT_ALLOWED),
    ("several, the first without code", {"errors": [{"title": "x"}, {"code": 132012}]}, R.TEMPLATE_PARAMETERS_MISMATCH),
    ("a code of tomorrow", {"errors": [{"code": 140001}]}, R.META_ERROR),
    ("no cause", {}, R.META_ERROR),
    ("a text", {"errors": "broken"}, R.META_ERROR),
]  # fmt: skip


@pytest.mark.parametrize(("more", "code"), [row[1:] for row in FAILURES], ids=[row[0] for row in FAILURES])
def test_a_failure_of_any_shape_has_its_reason_and_service(more: dict[str, Any], code: R) -> None:
    element = one(statuses(status("failed", **more)))
    assert isinstance(element, StatusTold)
    event = status_event(element, AT, None, None)
    assert event.reason is not None
    assert (event.status, event.reason.code, event.service) == ("failed", code, Service.WEBHOOK_INGEST)


@pytest.mark.parametrize(
    ("more", "known"),
    [
        ({"conversation": {"id": "c", "origin": {"type": "marketing"}}}, ["conversation"]),
        ({"pricing": {"category": "service", "type": "regular"}}, ["pricing"]),
        ({"pricing": "free", "conversation": 7}, ["extra"]),
        ({"errors": [{"code": 131000}]}, ["extra"]),
        ({"message_cost": {"amount": 1}}, ["extra"]),
        ({"recipient_id": None, "recipient_user_id": "GB.7", "parent_recipient_user_id": "GB.ENT.1"}, []),
        ({"recipient_type": "group", "recipient_participant_id": PERSON}, []),
    ],
)
def test_what_a_status_holds_besides_is_kept(more: dict[str, Any], known: list[str]) -> None:
    element = one(statuses(status("delivered", **more)))
    assert isinstance(element, StatusTold)
    kept = {name: getattr(element, name) for name in ("conversation", "pricing", "extra") if getattr(element, name)}
    assert list(kept) == known
    if known == ["extra"]:
        assert element.extra == more


def test_a_status_key_of_tomorrow_is_counted() -> None:
    assert +reading_of(statuses(status("sent", cost=1), status("read", cost=1))).unknown == {"field": 2}


def message(**more: Any) -> bytes:
    return body(value(messages=[{"id": "wamid.I", "from": PERSON, "timestamp": str(T0), **more}]))


@pytest.mark.parametrize(
    ("payload", "kind", "said"),
    [
        (message(type="text", text={"body": "fuera"}, referral={"source_type": "ad"}), Inbound.TEXT, "fuera"),
        (message(type="interactive", interactive={"type": "button_reply", "button_reply": {"title": "Yes"}}),
         Inbound.INTERACTIVE, "Yes"),
        (message(type="button", button={"text": "Baja"}), Inbound.BUTTON, "Baja"),
        (message(type="order", order={"catalog_id": "1", "product_items": []}), Inbound.OTHER, None),
        (message(type="location", location={"latitude": 1.5, "longitude": 2}), Inbound.OTHER, None),
        (message(type="contacts", contacts=[{"name": {"formatted_name": "X"}}]), Inbound.OTHER, None),
        (message(type="system", system={"type": "user_changed_number", "wa_id": "447700900143"}), Inbound.OTHER, None),
        (message(type="sticker", sticker={"id": "1", "animated": True}), Inbound.OTHER, None),
        (message(type="poll_of_tomorrow", poll_of_tomorrow=[]), Inbound.OTHER, None),
        (body(value(calls=[{"id": "wacid.1", "from": PERSON, "event": "connect"}]), field="calls"), Inbound.CALL, None),
    ],
)  # fmt: skip
def test_whatever_a_person_does_is_a_message_received(payload: bytes, kind: Inbound, said: str | None) -> None:
    event = event_of(payload)
    assert isinstance(event, MessageReceived)
    assert (event.kind, event.text, event.phone, event.sender_id) == (kind, said, f"+{PERSON}", NUMBER)
    assert event.free_entry_point is (True if "referral" in event.raw else None)


def test_an_error_in_a_persons_message_is_read_and_counted() -> None:
    reading = reading_of(message(type="image", errors=[{"code": 131052, "error_data": {"details": "too large"}}]))
    (element,) = reading.elements
    assert isinstance(element, Report)
    assert isinstance(element.event, MessageReceived)
    assert element.event.reason is not None
    assert element.event.reason.code is R.MEDIA_FAILED
    assert reading.errors == {("element", R.MEDIA_FAILED): 1}


@pytest.mark.parametrize(
    ("error", "code", "unknown"),
    [
        ({"code": 130429, "title": "Rate limit hit"}, R.RATE_LIMIT_EXCEEDED, {}),
        ({"code": 131031}, R.SENDER_NOT_AVAILABLE, {}),
        ({"code": 0, "title": "AuthException"}, R.SENDER_CREDENTIALS_REJECTED, {}),
        ({"code": 140001}, R.META_ERROR, {"code": 1}),
    ],
)
def test_an_error_of_no_message_is_about_the_number(error: dict[str, Any], code: R, unknown: dict[str, int]) -> None:
    reading = reading_of(body(value(errors=[error])))
    (element,) = reading.elements
    assert isinstance(element, Report)
    event = element.event
    assert isinstance(event, SenderReported)
    assert event.reason is not None
    assert (event.field, event.sender_id, event.waba_id, event.raw) == ("errors", NUMBER, WABA, error)
    assert event.reason.code is code
    assert reading.errors == {("value", code): 1}
    assert +reading.unknown == unknown


@pytest.mark.parametrize(
    ("preference", "action"),
    [
        ({"wa_id": PERSON, "value": "stop", "timestamp": T0}, "stop"),
        ({"wa_id": int(PERSON), "value": "STOP", "timestamp": str(T0 * 1000)}, "stop"),
        ({"user_id": "GB.7", "value": "resume", "category": "marketing_messages"}, "resume"),
        ({"wa_id": PERSON, "value": "signup", "signup_id": "s"}, None),
        ({"wa_id": PERSON, "value": "stop", "category": "utility_messages"}, None),
    ],
)
def test_a_preference(preference: dict[str, Any], action: str | None) -> None:
    event = event_of(body(value(user_preferences=[preference]), field="user_preferences"))
    if action is None:
        assert isinstance(event, SenderReported)
    else:
        assert isinstance(event, CustomerUpdated)
        assert (event.action, event.phone or event.user_id) == (
            action,
            "GB.7" if "user_id" in preference else f"+{PERSON}",
        )


TEMPLATE = {"message_template_id": 7, "message_template_name": "autumn_sale", "message_template_language": "es_MX"}


@pytest.mark.parametrize(
    ("field", "told", "read_as"),
    [
        ("message_template_status_update", {"event": "paused", "other_info": {"title": "SECOND_PAUSE"}},
         "message_template_status_update"),
        ("message_template_status_update", {"event": "DISABLED", "disable_info": {"disable_date": "x"}, "reason": None},
         "message_template_status_update"),
        ("message_template_status_update", {"new_quality_score": "YELLOW"}, "message_template_quality_update"),
        ("message_template_quality_update", {"new_quality_score": "UNKNOWN"}, "message_template_quality_update"),
        ("template_category_update", {"new_category": "MARKETING", "previous_category": "UTILITY"},
         "template_category_update"),
        ("template_correct_category_detection", {"correct_category": "MARKETING"}, "template_category_update"),
        ("message_template_components_update", {"message_template_element": "Hi {{1}}"},
         "message_template_components_update"),
        ("message_template_pacing_of_tomorrow", {"held": 7}, "message_template_pacing_of_tomorrow"),
    ],
)  # fmt: skip
def test_a_template(field: str, told: dict[str, Any], read_as: str) -> None:
    event = event_of(account(field, **TEMPLATE, **told))
    assert isinstance(event, TemplateReported)
    assert (event.field, event.name, event.language, event.waba_id) == (read_as, "autumn_sale", "es_MX", WABA)


@pytest.mark.parametrize(
    "payload",
    [
        account("phone_number_name_update", display_phone_number="15557010123", decision="APPROVED"),
        account("phone_number_quality_update", display_phone_number="15557010123", event="DOWNGRADE"),
        account("account_update", event="DISABLED_UPDATE", ban_info={"waba_ban_state": "SCHEDULE_FOR_DISABLE"}),
        account("account_update", event="PARTNER_REMOVED"),
        account("account_alerts", entity_type="PHONE_NUMBER", alert_info={"alert_type": "OBA_APPROVED"}),
        account("account_review_update", decision="DEFERRED"),
        account("business_capability_update", max_daily_conversations_per_business="TIER_10K"),
        account("security", display_phone_number="15557010123", event="PIN_CHANGED"),
        account("payment_configuration_update", configuration_name="x"),
        body(value(message_echoes=[{"id": "wamid.E", "to": PERSON, "type": "text"}]), field="smb_message_echoes"),
        body(value(history=[{"metadata": {"phase": 0}, "threads": []}]), field="history"),
        body(value(history=[{"errors": [{"code": 2593109}]}]), field="history"),
        body(value(state_sync=[{"type": "contact", "action": "add"}]), field="smb_app_state_sync"),
    ],
)
def test_what_is_told_of_numbers_and_accounts(payload: bytes) -> None:
    event = event_of(payload)
    (change,) = json.loads(payload)["entry"][0]["changes"]
    assert isinstance(event, SenderReported)
    assert (event.field, event.waba_id) == (change["field"], WABA)
    assert json.dumps(event.raw)[1:-1] in payload.decode()


def test_other_softwares_messages_are_told_one_by_one() -> None:
    echoes = [{"id": f"wamid.{n}", "to": PERSON, "type": "text"} for n in range(3)]
    reading = reading_of(body(value(message_echoes=[*echoes, 7]), field="smb_message_echoes"))
    assert [isinstance(element, Report) for element in reading.elements] == [True, True, True, False]


def test_of_a_thousand_updates_one_broken_one_is_lost_alone() -> None:
    updates: list[Any] = [status("sent", f"wamid.{n}", **callback(f"m-{n}")) for n in range(1000)]
    updates[500] = {"status": "sent", "id": ["not an id"]}
    elements = reading_of(statuses(*updates)).elements
    dead = [element for element in elements if isinstance(element, Unreadable)]
    assert len(elements) == 1000
    assert [json.loads(element.fragment) for element in dead] == [updates[500]]


def test_a_payload_of_the_future_is_kept_whole() -> None:
    future = {
        "object": "whatsapp_business_account_2",
        "version": 99,
        "entry": [
            {
                "id": WABA,
                "epoch": "long",
                "changes": [
                    {"field": "thoughts", "value": {"metadata": {"phone_number_id": NUMBER}, "thoughts": [{"a": 1}]}},
                    {"field": "dreams", "value": ["as a list"]},
                    {"field": "messages", "value": value(statuses=[{"id": "wamid.F", "status": "dreamt"}], dreams=[2])},
                    {"field": "messages", "value": value(messages=[{"id": "w", "type": "smell", "smell": {}}]), "v": 3},
                ],
            },
            {"id": WABA, "mutations": [1, 2, 3]},
        ],
    }
    reading = reading_of(future)
    kept = b"".join(
        element.fragment if isinstance(element, Unreadable) else element.event.to_json()
        for element in reading.elements
        if not isinstance(element, StatusTold)
    )
    for told in (b"thoughts", b"as a list", b"dreamt", b'"dreams":[2]', b"smell", b"mutations", b'"epoch":"long"',
                 b'"version":99', b'"v":3'):  # fmt: skip
        assert told in kept, told
    assert +reading.unknown == {"field": 6, "status": 1, "type": 1}


def test_an_unreadable_part_is_kept_whole_up_to_the_largest_body() -> None:
    huge = {"id": "wamid.A", "status": "sent", "note": "x" * (2 * 1024 * 1024)}
    element = one(statuses(huge))
    assert isinstance(element, Unreadable)
    assert json.loads(element.fragment) == huge
    assert len(element.fragment) < MAX_DEAD_LETTER_BYTES


@pytest.mark.parametrize("control", [b"\x00", b"\x07", b"\n", b"\x1f"])
def test_a_bare_control_character_costs_nothing_else(control: bytes) -> None:
    raw = message(type="text", text={"body": "a@b"}).replace(b"@", control)
    assert event_of(raw).text == "a b"


def elements_in(payload: Any) -> int:
    """How many things a payload tells, counted as Meta's page has the levels, without our reader."""
    count = int(bool(payload.keys() - {"object", "entry"}))
    for entry in payload["entry"]:
        if not isinstance(entry, dict) or not isinstance(entry.get("changes"), list):
            count += 1
            continue
        count += bool(entry.keys() - {"id", "time", "changes"})
        count += sum(_elements_of(change) for change in entry["changes"])
    return count


def _elements_of(change: Any) -> int:
    if not isinstance(change, dict) or not isinstance(change.get("value"), dict):
        return 1
    value = change["value"]
    told = {name: part if isinstance(part, list) else [part] for name, part in value.items() if name in ARRAYS}
    told = {name: part for name, part in told.items() if value[name] is not None}
    rest = value.keys() - {*ARRAYS, *SHARED_KEYS}
    listed = sum(map(len, told.values())) - _is_told_by_its_value(told)
    return listed + (not told or bool(rest)) + bool(change.keys() - {"field", "value"})


def _is_told_by_its_value(told: dict[str, list[Any]]) -> bool:
    """Whether the only error beside the only status is that one's: one element of both."""
    (failed, *more), (error, *others) = (told.get(name) or [None] for name in ("statuses", "errors"))
    is_lone = isinstance(failed, dict) and isinstance(error, dict) and not more and not others
    return is_lone and str(failed.get("status")).strip().lower() == "failed" and not failed.get("errors")


def check_accounts(payload: Any) -> None:
    """Every element becomes one event or one dead letter, which can be published and read by itself."""
    reading = reading_of(payload)
    assert len(reading.elements) == elements_in(payload)
    assert all(number >= 0 for number in Counter(reading.unknown).values())
    for element in reading.elements:
        if isinstance(element, StatusTold):
            check_status(element)
        elif isinstance(element, Report):
            type(element.event).model_validate_json(element.event.to_json())
        if not isinstance(element, Unreadable):
            element.origin.alone()


def check_status(element: StatusTold) -> None:
    """What is written of it is the event, to the byte, and can be read again."""
    event = status_event(element, AT, "acme", "m-1")
    assert StatusUpdated.model_validate(dict(event)).to_json() == event.to_json()
    for workspace, message in ((None, None), ("acme", None), ("acme", "m-1")):
        event = status_event(element, AT, workspace, message)
        for trace in (None, b"00-trace"):
            written = outgoing(event, source=Service.WEBHOOK_INGEST, trace=trace)
            assert status_record(element, AT, workspace, message, trace) == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["sent", str(T0)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def places_in(payload: Any) -> list[tuple[Any, Any]]:
    """Every container with each of its keys."""
    if isinstance(payload, dict):
        return [place for key, part in payload.items() for place in [(payload, key), *places_in(part)]]
    if isinstance(payload, list):
        return [place for key, part in enumerate(payload) for place in [(payload, key), *places_in(part)]]
    return []


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """Examples joined into one payload, with parts replaced, dropped, added, or swapped for those of others."""
    payload: dict[str, Any] = copy.deepcopy(draw(st.sampled_from(EXAMPLES)))
    payload["entry"] += copy.deepcopy(draw(st.sampled_from(EXAMPLES)))["entry"]
    for _ in range(draw(st.integers(0, 4))):
        container, key = draw(st.sampled_from(places_in(payload)))
        if container is payload:
            continue
        match draw(st.sampled_from(["replace", "drop", "add", "graft"])):
            case "replace":
                container[key] = draw(JSON)
            case "drop":
                del container[key]
            case "add" if isinstance(container, dict):
                container[draw(st.text(max_size=8) | st.sampled_from(ARRAYS))] = draw(JSON)
            case _:
                other, place = draw(st.sampled_from(places_in(draw(st.sampled_from(EXAMPLES)))))
                container[key] = copy.deepcopy(other[place])
    return payload


@settings(max_examples=400, deadline=None)
@given(mutated())
def test_every_element_of_a_mutated_payload_is_accounted_for(payload: dict[str, Any]) -> None:
    raw = json.loads(json.dumps(payload, allow_nan=False, default=str)) if _is_plain(payload) else None
    if raw is not None:
        check_accounts(raw)


def _is_plain(payload: Any) -> bool:
    """Whether it is JSON at all, of keys and texts that UTF-8 can hold, and of numbers that a parser takes."""
    try:
        json.dumps(payload, allow_nan=False, ensure_ascii=False).encode()
    except ValueError:
        return False
    return True


@given(st.binary(max_size=200) | JSON.map(lambda told: json.dumps(told).encode()), st.sampled_from(["meta", "shopify"]))
def test_no_bytes_let_an_exception_escape(raw: bytes, source: Any) -> None:
    for topic in ("customers/update", "customers/redact", "shop/redact", "orders/paid"):
        with suppress(ValueError):
            read(Delivery(source, "acme", raw, AT, 0, 0, topic))


RECEIPT = {**status("delivered", **callback("m-1")), "pricing": {"billable": True, "category": "utility"}}
LINKING = {**RECEIPT, "recipient_user_id": USER, "recipient_type": "individual"}


@pytest.mark.parametrize("key", sorted(PLAIN_KEYS - {"conversation", "type"}))
def test_a_receipt_with_any_known_name_is_usual(key: str) -> None:
    receipt = {**RECEIPT, key: RECEIPT.get(key, "GB.7")}
    assert receipt_of(statuses(receipt), AT, bytes) is not None


def is_read_alike(raw: bytes) -> None:
    """As a usual webhook or not, it is read as the same, and kept as the same where it is kept."""
    one, other = read(delivery(raw)), read_any(delivery(raw))
    assert [told_of(element) for element in one.elements] == [told_of(element) for element in other.elements]
    assert (+one.unknown, +one.errors) == (+other.unknown, +other.errors)


def told_of(element: Element) -> Any:
    if not isinstance(element, StatusTold):
        return element
    place = element.origin
    return replace(element, origin=Origin("", None, "", {}, "", None)), (place.number, place.waba, place.alone())


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_usual_webhook_is_read_as_any_other(data: st.DataObject) -> None:
    payload = json.loads(statuses(copy.deepcopy(data.draw(st.sampled_from([RECEIPT, LINKING])))))
    for _ in range(data.draw(st.integers(0, 2))):
        container, key = data.draw(st.sampled_from(places_in(payload)))
        match data.draw(st.sampled_from(["replace", "drop", "add"])):
            case "replace":
                container[key] = data.draw(JSON | st.sampled_from(ODD))
            case "drop":
                del container[key]
            case _ if isinstance(container, dict):
                container[data.draw(st.sampled_from([*PLAIN_KEYS, "errors", "time", "x"]))] = data.draw(JSON)
    if _is_plain(payload):
        with suppress(ValueError):
            is_read_alike(json.dumps(payload, ensure_ascii=data.draw(st.booleans())).encode())


ODD = [
    "",
    " 1",
    "1 ",
    "-1",
    "1e3",
    "9" * 30,
    "1795340008.5",
    "1795340008000",
    "played",
    "accepted",
    "SENT",
    "a\tb",
    "\x7f",
    "individual",
    "group",
    USER,
    f" {USER}",
    "gb.7",
    PHONE,
    f"+{PHONE}",
    int(PHONE),
]


@pytest.mark.parametrize(
    "control", [b"\x00", b"\t", b"\n", b"\x7f", b"\xff", b"\\u0000", b"\\ud800", b"\\n", b"\xc3\xa9"]
)
@pytest.mark.parametrize("place", [b"wamid", b"sw1", b"1795", b"447700", b"GB", b"individual", b"utility", b"whatsapp"])
def test_odd_bytes_anywhere_in_it_make_no_difference(control: bytes, place: bytes) -> None:
    raw = statuses({**LINKING, "timestamp": "1795340008"})
    is_read_alike(raw.replace(place, place + control))
    is_read_alike(raw.replace(place, control + place))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"recipient_type": None},
        {"recipient_type": "group"},
        {"recipient_id": None},
        {"recipient_id": f"+{PHONE}"},
        {"recipient_id": int(PHONE)},
        {"recipient_id": "9" * 21},
        {"recipient_user_id": f"{USER} "},
        {"recipient_user_id": "MX." + "7" * 125},
        {"recipient_user_id": "MX." + "7" * 126},
        {"status": "sent"},
    ],
)
def test_who_is_named_by_both_is_read_alike(change: dict[str, Any]) -> None:
    is_read_alike(statuses({**LINKING, **change}))


def test_a_receipt_that_names_its_person_by_both_is_usual() -> None:
    for receipt in (LINKING, {key: part for key, part in LINKING.items() if key != "recipient_type"}):
        told = receipt_of(statuses(receipt), AT, bytes)
        assert told is not None
        assert told.link == (f"+{PHONE}", USER)


@pytest.mark.parametrize("payload", EXAMPLES)
def test_an_example_is_read_alike(payload: Any) -> None:
    is_read_alike(json.dumps(payload).encode())
    is_read_alike(json.dumps(payload, separators=(",", ":")).encode())


@pytest.mark.parametrize("seconds", [-1, 300, 301, 86_400, 10**10])
def test_a_time_ahead_of_ours_is_not_believed_in_a_usual_webhook_either(seconds: int) -> None:
    is_read_alike(statuses({**RECEIPT, "timestamp": str(int(AT.timestamp()) + seconds)}))


def test_the_receipts_among_the_examples_are_usual() -> None:
    usual = sum(receipt_of(json.dumps(payload).encode(), AT, bytes) is not None for payload in EXAMPLES)
    assert usual >= 5
