import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid5

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError
from sendwhy import plain
from sendwhy.events import (
    CONTENT_TYPES,
    EARLIEST,
    LATEST,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateContent,
    To,
    Wire,
    event_id_of,
    reason,
)
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import fields_of
from sendwhy.topics import TOPICS, Outgoing, Topic, outgoing, topic_of

REQUEST: dict[str, Any] = {
    "message_id": "bf-2026-000017",
    "workspace_id": "acme",
    "sender_id": "415566778899001",
    "to": {"contact_id": "shopify:7712", "phone": "+525512345678"},
    "origin": {"kind": "campaign", "id": "black-friday", "name": "Black Friday"},
    "purpose": "marketing",
    "content": {"type": "template", "template": {"name": "autumn_sale", "language": {"code": "es_MX"}}},
    "requested_at": "2026-11-22T10:00:00Z",
    "send_at": None,
    "expires_at": None,
    "resend_of": None,
    "metadata": {"order": "4711"},
}


def read(**changes: Any) -> SendRequested:
    return SendRequested.model_validate_json(json.dumps(REQUEST | changes))


def test_null_says_the_same_as_leaving_a_field_out() -> None:
    optional = [name for name, field in SendRequested.model_fields.items() if not field.is_required()]
    whole = read(**dict.fromkeys(optional))
    assert whole == SendRequested.model_validate({k: v for k, v in REQUEST.items() if k not in optional}, strict=False)


def test_the_contracts_example_is_read() -> None:
    request = read()
    assert request.template is not None
    assert request.template.name == "autumn_sale"
    assert request.template_id == ("autumn_sale", "es_MX")
    assert read(something_new={"a": 1}) == request


WRONG: list[tuple[str, Any]] = [
    ("message_id", None),
    ("message_id", 17),
    ("message_id", ""),
    ("message_id", "a b"),
    ("message_id", "x" * 129),
    ("message_id", "ok\n"),
    ("workspace_id", "a.b"),
    ("workspace_id", "x" * 65),
    ("sender_id", 415566778899001),
    ("sender_id", "../me"),
    ("sender_id", ""),
    ("sender_id", "1" * 21),
    ("sender_id", "12\n"),
    ("to", None),
    ("to", {}),
    ("to", {"phone": ""}),
    ("to", {"contact_id": "a\u0000b"}),
    ("origin", {"kind": "carrier pigeon"}),
    ("origin", "campaign"),
    ("purpose", "spam"),
    ("content", {}),
    ("content", {"type": "text"}),
    ("content", {"type": "smoke", "smoke": {}}),
    ("content", {"type": "text", "text": "hi"}),
    ("content", {"type": "template", "template": {"name": "x"}}),
    ("content", {"type": "text", "text": {"body": "x" * 300_000}}),
    ("requested_at", 1795340000),
    ("requested_at", "2026-11-22T10:00:00"),
    ("requested_at", "9999-12-31T00:00:00Z"),
    ("requested_at", "yesterday"),
    ("metadata", {"x": "y" * 2048}),
    ("metadata", []),
]


@pytest.mark.parametrize("sender_id", ["1", "12345", "1" * 20])
def test_any_digits_may_name_a_sender(sender_id: str) -> None:
    """Whose number it is, or whether it is anybody's, is the dispatcher's to say: SENDER_NOT_AVAILABLE."""
    asked = read(sender_id=sender_id)
    assert asked.sender_id == sender_id
    assert plain.request_of(asked.to_json()) is not None


@pytest.mark.parametrize(("field", "value"), WRONG)
def test_a_wrong_field_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        read(**{field: value})
    assert any(told.startswith(field) for told in fields_of(caught.value))


@pytest.mark.parametrize("field", ["send_at", "expires_at"])
def test_nothing_lies_more_than_thirty_days_ahead(field: str) -> None:
    assert read(**{field: "2026-12-22T10:00:00Z"})
    with pytest.raises(ValidationError):
        read(**{field: "2026-12-22T10:00:01Z"})


@pytest.mark.parametrize("kind", sorted(CONTENT_TYPES - {"template"}))
def test_every_content_type_passes(kind: str) -> None:
    request = read(content={"type": kind, kind: [{}] if kind == "contacts" else {"id": "1"}})
    assert (request.template, request.template_id) == (None, None)


LINES = st.one_of(st.text(max_size=20), st.sampled_from(["x" * 16, "x" * 17, "x" * 512, "x" * 513, "a\x7f", "a\n"]))
ODD = st.one_of(st.none(), st.booleans(), st.integers(), LINES, st.just([]), st.just({}))
LANGUAGES = st.one_of(ODD, st.fixed_dictionaries({}, optional={"code": st.one_of(LINES, ODD), "more": ODD}))
COMPONENTS = st.one_of(ODD, st.lists(st.one_of(st.just({}), ODD), max_size=2), st.sampled_from([[{}] * 64, [{}] * 65]))


@given(
    st.fixed_dictionaries({}, optional={"name": st.one_of(LINES, ODD), "language": LANGUAGES, "components": COMPONENTS})
)
@example({"name": "a", "language": {"code": "en"}, "components": [{}] * 64})
@example({"name": "a", "language": {"code": "en"}, "components": [{}] * 65})
def test_a_template_passes_in_a_request_if_its_model_reads_it(template: dict[str, Any]) -> None:
    try:
        TemplateContent.model_validate(template)
        is_read = True
    except ValidationError:
        is_read = False
    try:
        read(content={"type": "template", "template": template})
        passes = True
    except ValidationError:
        passes = False
    assert passes == is_read


@given(
    st.one_of(
        st.datetimes(datetime(1990, 1, 1), datetime(2110, 1, 1)),  # noqa: DTZ001 - the offset is added
        st.sampled_from([EARLIEST, LATEST]).flatmap(
            lambda edge: st.timedeltas(timedelta(days=-1), timedelta(days=1)).map(
                lambda by: edge.replace(tzinfo=None) + by
            )
        ),
    ),
    st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(
        lambda by: timezone(timedelta(minutes=by // timedelta(minutes=1)))
    ),
)
@example(EARLIEST.replace(tzinfo=None), UTC)
@example(LATEST.replace(tzinfo=None), UTC)
def test_a_moment_is_in_utc_and_between_the_bounds(naive: datetime, zone: timezone) -> None:
    moment = naive.replace(tzinfo=zone)
    if EARLIEST <= moment <= LATEST:
        told = read(requested_at=moment.isoformat()).requested_at
        assert (told, told and told.tzinfo) == (moment, UTC)
    else:
        with pytest.raises(ValidationError, match="must lie between 2000 and 2100"):
            read(requested_at=moment.isoformat())


def test_values_are_not_in_error_messages() -> None:
    with pytest.raises(ValidationError) as caught:
        read(to={"phone": 525512345678})
    assert "5512345678" not in str(fields_of(caught.value))


@given(st.text(), st.text())
def test_ids_are_the_same_for_the_same_cause_and_kind(cause: str, kind: str) -> None:
    assert event_id_of(cause, kind) == event_id_of(cause, kind)
    assert event_id_of(cause, kind) != event_id_of(cause, kind + "x")


@given(st.text(), st.text())
def test_ids_are_what_uuid5_makes(cause: str, kind: str) -> None:
    assert event_id_of(cause, kind) == uuid5(UUID("6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77"), f"{cause}/{kind}")


def rejection(detail: str = "no") -> SendRejected:
    return SendRejected(
        event_id=event_id_of("x", "y"),
        occurred_at=datetime(2026, 11, 22, 10, tzinfo=UTC),
        message_id="m-1",
        workspace_id="acme",
        to=To(phone="+525512345678"),
        service=Service.CONSENT,
        reason=reason(ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, detail),
        metadata={"order": "4711"},
    )


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_what_is_written_is_read_again(detail: str) -> None:
    event = rejection(detail)
    assert SendRejected.model_validate_json(event.to_json()) == event


def test_a_record_carries_cloud_events_headers_and_its_key() -> None:
    record = outgoing(rejection(), source=Service.CONSENT, trace=b"00-abc-def-01")
    headers = dict(record.headers)
    assert record.topic is Topic.SEND_REJECTED
    assert record.key == b"m-1"
    assert headers["ce_type"] == b"sendwhy.send.rejected.v1"
    assert headers["ce_time"] == b"2026-11-22T10:00:00Z"
    assert headers["traceparent"] == b"00-abc-def-01"
    assert json.loads(record.value or b"")["occurred_at"] == "2026-11-22T10:00:00.000Z"


def test_the_cloud_events_library_reads_our_records() -> None:
    from cloudevents.core.bindings.kafka import KafkaMessage, from_binary_event
    from cloudevents.core.formats.json import JSONFormat

    record: Outgoing = outgoing(rejection(), source=Service.CONSENT)
    message = KafkaMessage(headers=dict(record.headers), key=record.key, value=record.value or b"")
    event = from_binary_event(message, JSONFormat())
    assert event.get_type() == "sendwhy.send.rejected.v1"


def test_an_unknown_wamid_has_no_message_id() -> None:
    event = StatusUpdated(
        event_id=event_id_of("w", "sent"),
        occurred_at=datetime(2026, 11, 22, tzinfo=UTC),
        observed_at=datetime(2026, 11, 22, tzinfo=UTC),
        provider_message_id="wamid.A",
        service=Service.WEBHOOK_INGEST,
        status=Status.SENT,
    )
    assert outgoing(event, source="webhook-ingest").key == b"wamid.A"


def test_every_topic_is_in_the_table() -> None:
    assert set(TOPICS) == set(Topic)
    assert all(spec.config()["message.timestamp.type"] == "LogAppendTime" for spec in TOPICS.values())
    assert TOPICS[Topic.WEBHOOK_RECEIVED].config()["flush.messages"] == "1"


def test_every_event_has_a_topic() -> None:
    def leaves(model: type[Wire]) -> list[type[Wire]]:
        return [model, *(leaf for child in model.__subclasses__() for leaf in leaves(child))]

    for model in leaves(Wire):
        if model.__module__ == "sendwhy.events" and "event_id" in model.model_fields and model.__name__ != "Event":
            assert topic_of(model) in Topic


@pytest.mark.parametrize("place", ["metadata", "content"])
def test_a_lone_surrogate_makes_the_whole_json_unreadable(place: str) -> None:
    body = json.dumps(REQUEST | {place: REQUEST[place] | {"x": "\ud800"}})
    with pytest.raises(ValidationError, match="Invalid JSON"):
        SendRequested.model_validate_json(body)
