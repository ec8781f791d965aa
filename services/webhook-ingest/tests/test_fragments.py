"""Every shape that Meta is known to send, and the oddities: what is understood, kept, counted, put aside."""

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from ingest_webhooks import AT, NUMBER, PHONE, T0, USER, WABA, body, callback, delivery, status, statuses, value
from sendwhy.events import CustomerUpdated, Inbound, MessageReceived, SenderReported, Status, TemplateReported
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Topic, topic_of
from webhook_ingest.decide import status_event
from webhook_ingest.elements import Delivery, Reading, Report, StatusTold, Unreadable
from webhook_ingest.fragments import ARRAYS, DEPTH_MAX, ELEMENTS_MAX, read
from webhook_ingest.values import AHEAD_MAX, moment_of

NOT_ON_WHATSAPP = ReasonCode.RECIPIENT_NOT_ON_WHATSAPP
EXAMPLES: dict[str, dict[str, Any]] = {
    example["name"]: example["payload"]
    for example in map(json.loads, (Path(__file__).parent / "meta-examples.jsonl").read_text().splitlines())
}
# By the beginning of an example's name: what it is read as, and what it counts as unknown.
UNDERSTOOD: dict[str, tuple[str, dict[str, int]]] = {
    "status_deleted": ("statuses", {"status": 1}),
    "status_failed_unknown_code": ("failed", {"code": 1}),
    "status_failed": ("failed", {}),
    "status_sent": ("sent", {}),
    "status_delivered": ("delivered", {}),
    "status_read": ("read", {}),
    "status_identity": ("delivered", {}),
    "status_played": ("played", {}),
    "value_errors": ("errors", {}),
    "inbound_text": ("text", {}),
    "inbound_button": ("button", {}),
    "inbound_interactive": ("interactive", {}),
    "inbound_": ("other", {}),
    "user_preferences_stop": ("stop", {}),
    "user_preferences_resume": ("resume", {}),
    "template_status": ("message_template_status_update", {}),
    "template_quality": ("message_template_quality_update", {}),
    "template_category": ("template_category_update", {}),
    "template_components": ("message_template_components_update", {}),
    "phone_number_quality": ("phone_number_quality_update", {}),
    "business_capability": ("business_capability_update", {}),
    "account_update": ("account_update", {}),
    "account_alerts": ("account_alerts", {}),
    "account_review": ("account_review_update", {}),
    "security": ("security", {}),
}


# Every example that tells of an error, with its reason; the others have none.
REASONS = {
    "status_failed_131026_undeliverable": ReasonCode.RECIPIENT_NOT_ON_WHATSAPP,
    "status_failed_131049_ecosystem": ReasonCode.MARKETING_CAP_REACHED,
    "status_failed_131050_marketing_opt_out": ReasonCode.RECIPIENT_STOPPED_MARKETING,
    "status_failed_130472_experiment": ReasonCode.RECIPIENT_IN_META_EXPERIMENT,
    "status_failed_131031_account_locked": ReasonCode.SENDER_NOT_AVAILABLE,
    "status_failed_132015_held_then_dropped": ReasonCode.TEMPLATE_NOT_APPROVED,
    "status_failed_131000_unknown": ReasonCode.TEMPORARY_FAILURE,
    "status_failed_unknown_code": ReasonCode.META_ERROR,
    "status_failed_with_callback_data": ReasonCode.RECIPIENT_NOT_ON_WHATSAPP,
    "status_failed_with_contacts_array": ReasonCode.RECIPIENT_IN_META_EXPERIMENT,
    "value_errors_130429_system_level": ReasonCode.RATE_LIMIT_EXCEEDED,
    "inbound_unsupported_131051": ReasonCode.INVALID_CONTENT,
}
# By the beginning of its name: the topic that an example ends on.
TOPICS = {
    "status_deleted": Topic.SENDER_REPORTED,
    "status_": Topic.STATUS_UPDATED,
    "inbound_": Topic.MESSAGE_RECEIVED,
    "user_preferences_": Topic.CUSTOMER_UPDATED,
    "template_": Topic.TEMPLATE_REPORTED,
    "": Topic.SENDER_REPORTED,
}


def read_as(element: object) -> str:
    if isinstance(element, StatusTold):
        return element.status
    assert isinstance(element, Report), element
    event = element.event
    if isinstance(event, MessageReceived):
        return event.kind
    if isinstance(event, CustomerUpdated):
        return event.action
    assert isinstance(event, TemplateReported | SenderReported)
    return event.field


def reading_of(raw: bytes) -> Reading:
    return read(delivery(raw))


def only_status(raw: bytes) -> StatusTold:
    (element,) = reading_of(raw).elements
    assert isinstance(element, StatusTold), element
    return element


def only_event(raw: bytes) -> Any:
    (element,) = reading_of(raw).elements
    assert isinstance(element, Report), element
    return element.event


def test_there_are_58_examples() -> None:
    assert len(EXAMPLES) == 58


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_understood(name: str) -> None:
    kind, unknown = next(entry for start, entry in UNDERSTOOD.items() if name.startswith(start))
    reading = reading_of(json.dumps(EXAMPLES[name]).encode())
    assert [read_as(element) for element in reading.elements] == [kind]
    assert +reading.unknown == unknown


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_ends_in_its_event_with_reason_and_service(name: str) -> None:
    (element,) = reading_of(json.dumps(EXAMPLES[name]).encode()).elements
    assert not isinstance(element, Unreadable)
    event = status_event(element, AT, None, None) if isinstance(element, StatusTold) else element.event
    assert topic_of(type(event)) == next(topic for start, topic in TOPICS.items() if name.startswith(start))
    why = getattr(event, "reason", None)
    assert (why and why.code) == REASONS.get(name)
    assert getattr(event, "service", Service.WEBHOOK_INGEST) is Service.WEBHOOK_INGEST


def test_every_reason_belongs_to_an_example() -> None:
    assert REASONS.keys() <= EXAMPLES.keys()


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_element_alone_reads_as_it_did(name: str) -> None:
    (element,) = reading_of(json.dumps(EXAMPLES[name]).encode()).elements
    assert not isinstance(element, Unreadable)
    (again,) = reading_of(element.origin.alone()).elements
    if isinstance(element, Report) and not element.is_personal:
        assert isinstance(again, Report)
        # By Meta's time the dispatcher orders what is told of accounts and templates.
        assert (type(again.event), again.event.occurred_at) == (type(element.event), element.event.occurred_at)
    elif isinstance(element, StatusTold):
        assert isinstance(again, StatusTold)
        assert (again.link, again.wamid, again.status, again.occurred_at, again.reason, again.pricing) == (
            element.link,
            element.wamid,
            element.status,
            element.occurred_at,
            element.reason,
            element.pricing,
        )
    else:
        assert isinstance(again, Report)
        assert again.event == element.event


@pytest.mark.parametrize("time", [{"a": "x" * 10_000}, ["x" * 10_000], "1" * 10_000])
def test_a_time_that_is_none_is_not_kept_with_each_element(time: Any) -> None:
    payload = EXAMPLES["account_update_restriction"]
    whole = payload | {"entry": [payload["entry"][0] | {"time": time}]}
    (element,) = reading_of(json.dumps(whole).encode()).elements
    assert not isinstance(element, Unreadable)
    assert len(element.origin.alone()) < 2_000


@pytest.mark.parametrize(
    ("told", "ahead"),
    [
        (str(T0), -60),
        (T0, -60),
        (float(T0), -60),
        (str(T0 * 1000), -60),
        (T0 * 1000, -60),
        (T0 + 60 + 299, 299),
        (T0 + 3600, 0),
        (None, 0),
        (True, 0),
        ("soon", 0),
        ("", 0),
        ("nan", 0),
        ("1e999", 0),
        (10**400, 0),
        (-5, 0),
        (0, 0),
        (4102444801, 0),
        (T0 + 60 + AHEAD_MAX.total_seconds() + 1, 0),
        ({}, 0),
    ],
)
def test_times(told: Any, ahead: int) -> None:
    assert moment_of(told, AT) == AT + timedelta(seconds=ahead)


AHEAD = str(T0 + 20 * 3600)


@pytest.mark.parametrize(
    ("raw", "kind"),
    [
        (statuses(status("delivered", timestamp=AHEAD)), "delivered"),
        (statuses(status("delivered", timestamp=AHEAD, errors=[])), "delivered"),
        (body(value(messages=[{"id": "wamid.I", "from": "447700900142", "timestamp": AHEAD, "type": "text"}])), "text"),
        (
            body(
                value(user_preferences=[{"wa_id": "447700900142", "value": "stop", "timestamp": AHEAD}]),
                field="user_preferences",
            ),
            "stop",
        ),
    ],
)
def test_what_lies_ahead_is_of_when_it_was_observed_and_its_repeat_is_still_one(raw: bytes, kind: str) -> None:
    first, again = (read(replace(delivery(raw), at=at)).elements[0] for at in (AT, AT + timedelta(hours=1)))
    assert read_as(first) == kind
    if isinstance(first, StatusTold):
        assert isinstance(again, StatusTold)
        assert (first.occurred_at, first.reading) == (AT, again.reading)
    else:
        assert isinstance(first, Report)
        assert isinstance(again, Report)
        assert (first.event.occurred_at, first.cause) == (AT, again.cause)
        assert first.event.event_id == again.event.event_id


@pytest.mark.parametrize(
    ("given", "understood"),
    [
        ("sw1:acme:bf-2026:17", ("acme", "bf-2026:17")),
        ("sw1:acme:", None),
        ("sw1::m", None),
        ("sw2:acme:m", None),
        ("snd_01JD6Y8Q2Z7N4V", None),
        ("sw1:acme:m\n", None),
        (7, None),
        (None, None),
    ],
)
def test_callback_data(given: Any, understood: tuple[str, str] | None) -> None:
    assert only_status(statuses(status("sent", biz_opaque_callback_data=given))).callback == understood


@pytest.mark.parametrize(
    ("errors", "code", "meta_code", "details"),
    [
        ([{"code": 131026, "title": "t", "error_data": {"details": "d"}}], NOT_ON_WHATSAPP, 131026, "d"),
        ([{"code": 131026, "title": "t", "error_data": "plain text"}], NOT_ON_WHATSAPP, 131026, "plain text"),
        ([{"code": 131026, "details": "beside the code"}], NOT_ON_WHATSAPP, 131026, "beside the code"),
        ([{"code": "131047"}], ReasonCode.OUTSIDE_24_HOUR_WINDOW, 131047, None),
        ([{"title": "no code"}, {"code": 131047}], ReasonCode.OUTSIDE_24_HOUR_WINDOW, 131047, None),
        ([{"code": 100, "error_subcode": 33}], ReasonCode.SENDER_NOT_AVAILABLE, 100, None),
        ([{"code": "100", "error_subcode": "33"}], ReasonCode.SENDER_NOT_AVAILABLE, 100, None),
        ([{"code": 139999}], ReasonCode.META_ERROR, 139999, None),
        ([{"code": 10**30}], ReasonCode.META_ERROR, None, None),
        ([{"code": True}], ReasonCode.META_ERROR, None, None),
        ([7, None], ReasonCode.META_ERROR, None, None),
        ("text", ReasonCode.META_ERROR, None, None),
        (None, ReasonCode.META_ERROR, None, None),
    ],
)  # fmt: skip
def test_why_a_message_failed(errors: Any, code: ReasonCode, meta_code: int | None, details: str | None) -> None:
    why = only_status(statuses(status("failed", errors=errors))).reason
    assert why is not None
    assert why.code is code
    assert (why.meta and why.meta.code, why.meta and why.meta.details) == (meta_code, details)


@pytest.mark.parametrize(
    ("change", "link"),
    [
        ({}, (f"+{PHONE}", USER)),
        ({"recipient_type": "individual"}, (f"+{PHONE}", USER)),
        ({"recipient_type": None, "recipient_id": f"+{PHONE}"}, (f"+{PHONE}", USER)),
        ({"recipient_id": int(PHONE)}, (f"+{PHONE}", USER)),
        ({"recipient_user_id": "US.ENT.118"}, (f"+{PHONE}", "US.ENT.118")),
        ({"recipient_user_id": "MX." + "7" * 125}, (f"+{PHONE}", "MX." + "7" * 125)),
        ({"recipient_user_id": "MX." + "7" * 126}, None),
        ({"recipient_user_id": "gb.7"}, None),
        ({"recipient_user_id": "GBR.7"}, None),
        ({"recipient_user_id": "GB."}, None),
        ({"recipient_user_id": "GB.7\n"}, None),
        ({"recipient_user_id": 7}, None),
        ({"recipient_user_id": None}, None),
        ({"recipient_id": None}, None),
        ({"recipient_id": USER}, None),
        ({"recipient_id": "123"}, None),
        ({"recipient_type": "group"}, None),
        ({"recipient_type": ["individual"]}, None),
        ({"status": "sent"}, None),
        ({"status": "read"}, None),
        ({"status": "failed"}, None),
    ],
)
def test_whom_a_delivered_message_reached_is_told_by_phone_and_user_id(
    change: dict[str, Any], link: tuple[str, str] | None
) -> None:
    told = only_status(statuses({**status("delivered", recipient_user_id=USER), **change}))
    assert told.link == link
    plain = only_status(statuses({**status("delivered"), **change, "recipient_user_id": "GB.8"}))
    assert plain.reading == told.reading


def test_a_failure_without_errors_says_that_meta_gave_no_cause() -> None:
    why = only_status(statuses(status("failed"))).reason
    assert why is not None
    assert why.detail == "Meta says that the message failed, and gives no cause."


UNDELIVERABLE = {"code": 131026, "title": "Message undeliverable", "error_data": {"details": "d"}}


@pytest.mark.parametrize("own", [{}, {"errors": []}, {"errors": None}])
def test_a_failures_error_may_have_the_name_that_answers_to_calls_have_for_it(own: Any) -> None:
    told = only_status(statuses(status("failed", error={"code": 131026, "message": "Undeliverable"}, **own)))
    assert told.reason is not None
    assert told.reason.code is ReasonCode.RECIPIENT_NOT_ON_WHATSAPP
    assert told.extra == {"error": {"code": 131026, "message": "Undeliverable"}}


@pytest.mark.parametrize("own", [{}, {"errors": []}, {"errors": None}])
@pytest.mark.parametrize("beside", [[UNDELIVERABLE], UNDELIVERABLE])
def test_a_lone_failure_without_errors_has_its_values_only_one(own: Any, beside: Any) -> None:
    raw = body(value(statuses=[status("failed", **own)], errors=beside))
    told = only_status(raw)
    assert told.reason is not None
    assert (told.reason.code, told.reason.meta and told.reason.meta.details) == (NOT_ON_WHATSAPP, "d")
    alone = only_status(told.origin.alone())
    assert (alone.reason, alone.reading, alone.extra) == (told.reason, told.reading, None)
    assert not reading_of(raw).errors


@pytest.mark.parametrize(
    ("told", "errors"),
    [
        ([status("failed"), status("failed", "wamid.B")], [UNDELIVERABLE]),
        ([status("failed")], [UNDELIVERABLE, {"code": 130429}]),
        ([status("failed", errors=[{"code": 131000}])], [UNDELIVERABLE]),
        ([status("read")], [UNDELIVERABLE]),
    ],
)
def test_a_values_error_that_may_be_anothers_is_no_statuses(told: list[Any], errors: list[Any]) -> None:
    reading = reading_of(body(value(statuses=told, errors=errors)))
    assert [read_as(element) for element in reading.elements] == [
        *(one["status"] for one in told),
        *["errors"] * len(errors),
    ]
    assert not any(
        isinstance(each, StatusTold) and each.reason and each.reason.code is NOT_ON_WHATSAPP
        for each in reading.elements
    )


@pytest.mark.parametrize("key", [*ARRAYS, "contacts"])
def test_null_for_an_array_is_as_good_as_absent(key: str) -> None:
    message = {"id": "wamid.I", "from": "447700900142", "timestamp": str(T0), "type": "text", "text": {"body": "a"}}
    told: dict[str, Any] = {"statuses": [status("read")], "messages": [message], key: None}
    reading = reading_of(body(value(**told)))
    assert [read_as(element) for element in reading.elements] == [
        *(["read"] if key != "statuses" else []),
        *(["text"] if key != "messages" else []),
    ]
    assert not +reading.unknown


@pytest.mark.parametrize(
    "change",
    [
        {"recipient_id": None},
        {"recipient_id": 7},
        {"pricing": []},
        {"pricing": "free"},
        {"conversation": None},
        {"status": "SENT"},
        {"timestamp": None},
        {"recipient_user_id": "GB.7"},
        {"errors": []},
        {"new_field": {"a": [1]}},
    ],
)
def test_oddities_that_cost_a_status_nothing(change: dict[str, Any]) -> None:
    assert only_status(statuses({**status("sent"), **change})).status is Status.SENT


@pytest.mark.parametrize(
    "item",
    [
        None,
        7,
        "text",
        [],
        {"status": "sent"},
        {**status("sent"), "id": 7},
        {**status("sent"), "id": ""},
        {**status("sent"), "id": "w" * 513},
        {**status("sent"), "id": "wamid.\u0001"},
        {**status("sent"), "note": json.loads("[" * DEPTH_MAX + "]" * DEPTH_MAX)},
        {**status("sent"), "note": "x" * 1024 * 1024},
    ],
)
def test_an_unreadable_element_costs_only_itself(item: Any) -> None:
    before, bad, after = reading_of(statuses(status("sent"), item, status("read"))).elements
    assert [read_as(before), read_as(after)] == ["sent", "read"]
    assert isinstance(bad, Unreadable)


@pytest.mark.parametrize(
    ("entry", "errors"),
    [
        (7, 1),
        ({"id": WABA}, 1),
        ({"id": WABA, "changes": {}}, 1),
        ({"id": WABA, "changes": [7]}, 1),
        ({"id": WABA, "changes": [{"field": "messages"}]}, 1),
        ({"id": WABA, "changes": [{"field": "messages", "value": []}]}, 1),
        ({"id": WABA, "changes": [{"field": "messages", "value": {"statuses": 7}}]}, 1),
        ({"id": WABA, "changes": []}, 0),
    ],
)
def test_an_unreadable_level_costs_only_itself(entry: Any, errors: int) -> None:
    whole = json.loads(statuses(status("sent")))
    whole["entry"] = [*whole["entry"], entry, *whole["entry"]]
    elements = reading_of(json.dumps(whole).encode()).elements
    assert [isinstance(element, Unreadable) for element in elements] == [False, *[True] * errors, False]


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"null",
        b"[]",
        b"{}",
        b'{"entry": {}}',
        b'{"entry": [' + b"[" * 300 + b"]" * 300 + b"]}",
        b"\x00\x01",
        "{}".encode("utf-16"),
    ],
)
def test_a_body_of_the_wrong_shape_is_refused_whole(raw: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        reading_of(raw)


@pytest.mark.parametrize(
    ("escaped", "text"),
    [
        (rb"a\u0000b", "a\ufffdb"),
        (rb"a\ud800b", "a\ufffdb"),
        (rb"\udc00", "\ufffd"),
        (rb"\ud83d\udc4b", "👋"),
        (rb"\\u0000", "\\u0000"),
        (rb"\\\ud800", "\\\ufffd"),
        (rb"\ud800\ud83d\udc4b", "\ufffd👋"),
        (b"\xff", "\ufffd"),
        (b"<b>&amp;\\/", "<b>&amp;/"),
        ("Grüße — مرحبا".encode(), "Grüße — مرحبا"),
        (rb"line\nline", "line\nline"),
    ],
)
def test_texts_that_would_poison_what_comes_after(escaped: bytes, text: str) -> None:
    message = {"id": "wamid.I", "from": "447700900142", "timestamp": str(T0), "type": "text", "text": {"body": "@@"}}
    event = only_event(body(value(messages=[message])).replace(b"@@", escaped))
    assert event.text == text
    MessageReceived.model_validate_json(event.to_json())


def test_a_byte_order_mark_is_no_obstacle() -> None:
    assert len(reading_of(b"\xef\xbb\xbf" + statuses(status("sent"))).elements) == 1


def test_every_level_is_read_to_its_end() -> None:
    message = {"id": "wamid.I", "from": "447700900142", "timestamp": str(T0), "type": "text", "text": {"body": "a"}}
    whole = json.loads(body(value(statuses=[status("sent"), status("read")], messages=[message]), {"decision": "X"}))
    whole["entry"] += json.loads(body(value(errors=[{"code": 130429}]), field="messages", waba="77"))["entry"]
    elements = reading_of(json.dumps(whole).encode()).elements
    assert [read_as(element) for element in elements] == ["sent", "read", "text", "messages", "errors"]


@pytest.mark.parametrize(
    ("message", "kind", "text", "payload"),
    [
        ({"type": "text", "text": {"body": "STOP"}}, Inbound.TEXT, "STOP", None),
        ({"type": "text", "text": "STOP"}, Inbound.TEXT, None, None),
        ({"type": "button", "button": {"text": "Stop", "payload": "p"}}, Inbound.BUTTON, "Stop", "p"),
        (
            {"type": "interactive", "interactive": {"type": "list_reply", "list_reply": {"id": "i", "title": "t"}}},
            Inbound.INTERACTIVE,
            "t",
            "i",
        ),
        (
            {"type": "interactive", "interactive": {"type": "nfm_reply", "nfm_reply": {"body": "b"}}},
            Inbound.INTERACTIVE,
            "b",
            None,
        ),
        ({"type": "system", "system": {"type": "user_changed_number", "wa_id": "1"}}, Inbound.OTHER, None, None),
        (
            {"type": "edit", "edit": {"message": {"type": "text", "text": {"body": "STOP"}}}},
            Inbound.TEXT,
            "STOP",
            None,
        ),
        ({"type": "edit", "edit": {"message": {"type": "image", "image": {}}}}, Inbound.OTHER, None, None),
        ({"type": "edit", "edit": {"message": {"type": "edit", "edit": "?"}}}, Inbound.OTHER, None, None),
        ({"type": "edit"}, Inbound.OTHER, None, None),
        ({"type": "hologram"}, Inbound.OTHER, None, None),
        ({}, Inbound.OTHER, None, None),
        ({"type": 7}, Inbound.OTHER, None, None),
    ],
)
def test_what_a_person_said(message: dict[str, Any], kind: str, text: str | None, payload: str | None) -> None:
    contacts = [{"wa_id": "447700900142", "user_id": "GB.7", "profile": {"name": "Inés\nCalder"}}]
    item = {"id": "wamid.I", "from": "447700900142", "timestamp": str(T0), "context": {"id": "wamid.C"}, **message}
    event = only_event(body(value(contacts=contacts, messages=[item])))
    assert (event.kind, event.text, event.payload) == (kind, text, payload)
    assert (event.phone, event.user_id, event.profile_name) == ("+447700900142", "GB.7", "Inés Calder")
    assert (event.sender_id, event.context_wamid, event.raw) == (NUMBER, "wamid.C", item)


def test_a_message_of_no_number_is_put_aside() -> None:
    message = {"id": "wamid.I", "from": "447700900142", "type": "text", "text": {"body": "a"}}
    (element,) = reading_of(body(value(None, messages=[message]))).elements
    assert isinstance(element, Unreadable)


@pytest.mark.parametrize(
    ("call", "kind"),
    [
        ({"event": "connect", "direction": "USER_INITIATED"}, "call"),
        ({"event": "connect"}, "call"),
        ({"event": "connect", "direction": "BUSINESS_INITIATED"}, "calls"),
    ],
)
def test_a_call_from_a_person_is_a_message_and_ours_is_none(call: dict[str, Any], kind: str) -> None:
    raw = body(value(calls=[{"id": "wacid.A", "from": "447700900142", **call}]), field="calls")
    assert [read_as(element) for element in reading_of(raw).elements] == [kind]


def test_a_calls_status_is_no_messages_status() -> None:
    reading = reading_of(body(value(statuses=[status("delivered")]), field="calls"))
    assert [read_as(element) for element in reading.elements] == ["statuses"]
    assert +reading.unknown == {"status": 1}


def test_accepted_is_never_believed_of_a_webhook() -> None:
    assert [read_as(element) for element in reading_of(statuses(status("accepted"))).elements] == ["statuses"]


@pytest.mark.parametrize(
    ("raw", "field", "unknown"),
    [
        (body({"a": 1}, field="a_field_of_tomorrow"), "a_field_of_tomorrow", {"field": 1}),
        (body(value(groups=[1])), "messages", {"field": 1}),
        (body({"event": "ACCOUNT_DELETED"}, field="account_update"), "account_update", {}),
        (body({"event": "FLOW_STATUS_CHANGE"}, field="flows"), "flows", {}),
        (body(value(groups=[{"group_id": "g"}]), field="group_lifecycle_update"), "group_lifecycle_update", {}),
        (body(value(control_passed={}), field="messaging_handovers"), "messaging_handovers", {}),
    ],
)
def test_fields_without_any_array_that_we_know(raw: bytes, field: str, unknown: dict[str, int]) -> None:
    reading = reading_of(raw)
    assert [read_as(element) for element in reading.elements] == [field]
    assert +reading.unknown == unknown


@pytest.mark.parametrize(
    ("topic", "customer", "expected"),
    [
        (
            "customers/update",
            {"id": 7712, "phone": "+525512345678", "first_name": "Inés", "updated_at": "2026-11-22T04:00:00-06:00"},
            {"action": "update", "contact_id": "shopify:7712", "phone": "+525512345678", "name": "Inés"},
        ),
        (
            "customers/create",
            {"id": 7712, "phone": None, "default_address": {"phone": "5512345678", "country_code": "MX"}},
            {
                "action": "update",
                "phone": "5512345678",
                "phone_country_code": "MX",
                "address_country": "MX",
                "name": None,
            },
        ),
        ("customers/delete", {"id": 7712}, {"action": "delete", "contact_id": "shopify:7712"}),
        (
            "customers/redact",
            {"shop_id": 1, "customer": {"id": 7712, "phone": "+525512345678"}},
            {"action": "redact", "contact_id": "shopify:7712", "phone": "+525512345678"},
        ),
        (
            "customers/data_request",
            {"shop_id": 1, "customer": {"id": 7712, "phone": "+525512345678"}, "data_request": {"id": 9}},
            {"action": "data_request", "contact_id": "shopify:7712", "phone": None},
        ),
        ("shop/redact", {"shop_id": 1, "shop_domain": "s.example"}, {"action": "shop_redact", "contact_id": None}),
    ],
)
def test_a_shops_customer(topic: str, customer: dict[str, Any], expected: dict[str, Any]) -> None:
    raw = json.dumps(customer).encode()
    (element,) = read(Delivery("shopify", "acme", raw, AT, 0, 0, topic)).elements
    assert isinstance(element, Report)
    assert isinstance(element.event, CustomerUpdated)
    assert element.event.model_dump(include=set(expected)) == expected
    assert (element.event.workspace_id, element.event.marketing_state, element.event.occurred_at) == ("acme", None, AT)


def test_a_shops_other_topics_are_counted() -> None:
    assert read(Delivery("shopify", "acme", b"{}", AT, 0, 0, "orders/paid")).unknown == {"field": 1}


def test_event_ids_are_those_of_the_content() -> None:
    first, again = (only_event(json.dumps(EXAMPLES["template_status_approved"]).encode()) for _ in range(2))
    other = only_event(json.dumps(EXAMPLES["template_status_pending"]).encode())
    assert first == again
    assert first.event_id != other.event_id


def test_callback_of_a_failed_message_is_read() -> None:
    assert only_status(statuses(status("failed", **callback("m-1")))).callback == ("acme", "m-1")


@pytest.mark.parametrize(
    "more",
    [
        {"value": "STOP"},
        {"value": "stop", "category": None},
        {"value": "stop", "category": "MARKETING_MESSAGES"},
        {"value": " stop "},
    ],
)
def test_a_stop_counts_however_it_is_written(more: dict[str, Any]) -> None:
    wish = {"wa_id": "447700900142", "timestamp": T0, **more}
    event = only_event(body(value(user_preferences=[wish]), field="user_preferences"))
    assert isinstance(event, CustomerUpdated)
    assert (event.action, event.phone) == ("stop", "+447700900142")


@pytest.mark.parametrize("kind", ["payment", "call"])
def test_a_payment_or_call_that_failed_is_no_message_that_failed(kind: str) -> None:
    reading = reading_of(statuses(status("failed", type=kind, errors=[{"code": 131026}]), status("failed", "wamid.B")))
    first, second = reading.elements
    assert isinstance(first, Report)
    assert isinstance(first.event, SenderReported)
    assert first.event.raw["status"] == "failed"
    assert isinstance(second, StatusTold)
    assert reading.unknown["status"] == 1


def test_too_many_elements_cost_none_that_could_be_read() -> None:
    flood = body(value(state_sync=[{}] * (ELEMENTS_MAX + 1)), value(statuses=[status("read")]))
    told = reading_of(flood).elements
    assert [type(element) for element in told] == [Unreadable, StatusTold]
    places = json.loads(statuses(status("read")))["entry"]
    raw = json.dumps({"entry": [*places, *[1] * ELEMENTS_MAX]}).encode()
    first, *_, last = reading_of(raw).elements
    assert isinstance(first, StatusTold)
    assert isinstance(last, Unreadable)
    assert last.fragment == raw


CODED = {"code": 131026, "title": "T", "message": "T", "error_data": {"details": "D"}, "href": "https://x"}
UNTOLD: list[tuple[Any, dict[str, int]]] = [
    ([{**CODED, "code": 5000000000}], {"code": 1}),
    ([{**CODED, "error_data": {"details": {"deep": 1}}}], {}),
    ([{**CODED, "is_transient": True}], {"field": 1}),
    ([{**CODED, "fbtrace_id": "A1"}], {"field": 1}),
    ([{**CODED, "message": "says more"}], {}),
    ([CODED, {"code": 1, "title": "another"}], {}),
    ([CODED, "a text"], {}),
]


@pytest.mark.parametrize(("errors", "counted"), UNTOLD)
def test_what_a_reason_does_not_tell_of_its_errors_is_kept_and_what_is_new_counted(
    errors: Any, counted: dict[str, int]
) -> None:
    reading = reading_of(statuses(status("failed", errors=errors)))
    (told,) = reading.elements
    assert isinstance(told, StatusTold)
    assert told.extra == {"errors": errors}
    assert dict(+reading.unknown) == counted


@pytest.mark.parametrize("errors", [[CODED], CODED, [CODED, {"code": 1}], [{"code": 131026}]])
def test_errors_that_the_reason_tells_whole_are_not_kept_twice(errors: Any) -> None:
    assert only_status(statuses(status("failed", errors=errors))).extra is None


def test_what_is_kept_of_errors_has_its_bound_and_makes_no_other_reading() -> None:
    plain = only_status(statuses(status("failed", errors=[CODED])))
    long = only_status(statuses(status("failed", errors=[{**CODED, "fbtrace_id": "A" * 100_000}])))
    assert long.reading == plain.reading
    assert long.extra is not None
    assert len(str(long.extra["errors"])) <= 16 * 1024


@pytest.mark.parametrize("code", ["#131026", " 131026", "131026", 131026.0])
def test_a_code_is_read_however_it_is_written(code: Any) -> None:
    told = only_status(statuses(status("failed", errors=[{**CODED, "code": code}])))
    assert told.reason is not None
    assert told.reason.meta is not None
    assert told.reason.meta.code == 131026
    assert told.extra is None
