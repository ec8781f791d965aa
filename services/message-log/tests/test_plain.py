"""What comes plainly is read by leaner parsers: they say what the models say, and read nothing that those refuse."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from message_log.decide import tells
from message_log.projection import event_row, parser_of
from message_log.store import bytes_of
from message_log_builders import MESSAGE, T0, after, consented, requested, status
from pydantic import ValidationError
from sendwhy import plain
from sendwhy.events import (
    Origin,
    OriginKind,
    Price,
    Purpose,
    SendConsented,
    SendFunded,
    SendRequested,
    Status,
    StatusUpdated,
    To,
    Wire,
)
from sendwhy.reasons import ReasonCode
from sendwhy.stage import Record, with_event
from sendwhy.topics import Topic

Json = Any
Path = tuple[str | int, ...]
MODELS: dict[Topic, tuple[type[Wire], Callable[[bytes], plain.Plain | None]]] = {
    Topic.SEND_REQUESTED: (SendRequested, plain.request_of),
    Topic.SEND_CONSENTED: (SendConsented, plain.consented_of),
    Topic.SEND_FUNDED: (SendFunded, plain.funded_of),
    Topic.STATUS_UPDATED: (StatusUpdated, plain.receipt_of),
}
TEXT = requested(
    content={"type": "text", "text": {"body": "Hola, ¿qué tal?"}},
    origin=Origin(kind=OriginKind.INBOX, thread_id="t-1", agent="Ana"),
    to=To(phone="+525512345678"),
    purpose=Purpose.CONVERSATION,
    sender_id="100000000000001",
    send_at=after(60),
    expires_at=after(600),
    resend_of="bf-0",
    metadata={"order": "4711", "size": [1, 2.5, 10**30, None, {"é": True}]},
)
TEMPLATE = {
    "name": "autumn_sale",
    "language": {"code": "es_MX"},
    "components": [{"type": "body", "parameters": [{"type": "text", "text": "Inés"}]}],
}
FUNDED = SendFunded(**dict(consented()), price=Price(credits=1, category="marketing", calling_code="52"))
ACCEPTED = status(
    Status.ACCEPTED,
    to=To(contact_id="shopify:7712", phone="+525512345678"),
    origin=requested().origin,
    metadata={"order": "4711"},
    receipt_deadline=after(3600),
    template_category="MARKETING",
)
DELIVERED = status(
    Status.DELIVERED,
    pricing={"billable": True, "type": "regular"},
    conversation={"id": "c", "origin": {"type": "marketing"}},
    extra={"new": [1, None]},
)
PLAIN: list[tuple[Topic, Wire]] = [
    (Topic.SEND_REQUESTED, requested(content={"type": "template", "template": TEMPLATE})),
    (Topic.SEND_REQUESTED, TEXT),
    (Topic.SEND_CONSENTED, consented()),
    (Topic.SEND_FUNDED, FUNDED),
    (Topic.STATUS_UPDATED, ACCEPTED),
    (Topic.STATUS_UPDATED, DELIVERED),
]
# As they stand in a record, some of them no JSON.
FRAGMENTS: list[str] = [
    *("null", "true", "0", "1", "-1", "1.0", "-0", "1e3", "1e999", "NaN", "9" * 30, "1000001", "01", "1.", "tru"),
    *(
        "[]",
        "{}",
        "[1]",
        "[{}]",
        '{"a":1}',
        '{"a":NaN}',
        '{"a":1e999}',
        '{"type":"text"}',
        '{"a":[1,]}',
        "[" + "{}," * 70 + "{}]",
    ),
    *('""', '" "', '"a"', '"ab"', '"1234"', '"12345"', '"a\\nb"', '"a\\u0000b"', '"a\\u007fb"', '"a\x7fb"', '"a\x01b"'),
    *(
        '"é"',
        '"\\u00e9"',
        '"\\ud83d\\ude00"',
        '"\\ud800"',
        '"\\ud800x"',
        '"\\x"',
        '"\u2028"',
        '"\u0085"',
        '"m 1"',
        '"m-1\\n"',
    ),
    *(f'"{"a" * length}"' for length in (16, 17, 64, 65, 128, 129, 256, 257, 512, 513)),
    *(f'"{"é" * length}"' for length in (64, 65, 128, 129, 256, 257)),
    *(f'{{"a":"{"a" * length}"}}' for length in (200, 248, 2040, 2041)),
    '{"a":[' + "1e15," * 130 + "1]}",
    "[" * 250 + "]" * 250,
    '{"a":' * 100 + "1" + "}" * 100,
    '{"a":' * 250 + "1" + "}" * 250,
    "1" * 5000,
    *(
        '"text"',
        '"template"',
        '"contacts"',
        '"image"',
        '"campaign"',
        '"marketing"',
        '"failed"',
        '"played"',
        '"consent"',
    ),
    *(
        '"6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77"',
        '"6F1F0F0A6D1C5B8E9C550A1D7B4C2E77"',
        '"{6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77}"',
    ),
    *(
        f'"{moment}"'
        for moment in (
            *("2026-11-22T10:00:00Z", "2026-11-22t10:00:00z", "2026-11-22 10:00:00Z", "2026-11-22_10:00:00Z"),
            *("2026-11-22T10:00:00.5Z", "2026-11-22T10:00:00,5Z", "2026-11-22T10:00:00.1234567Z"),
            *("2026-11-22T10:00:00.9999999Z", "2026-11-22T10:00:00.000001Z", "2026-11-22T10:00:00"),
            *("2026-11-22T10:00:00+02:00", "2026-11-22T10:00:00-00:00", "2026-11-22T10:00:00+0200", "2026-11-22"),
            *("2026-11-22T10:00:60Z", "2026-11-22T24:00:00Z", "2026-02-29T10:00:00Z", "1700000000"),
            *("1999-12-31T23:59:59Z", "2000-01-01T00:00:00Z", "2100-01-01T00:00:00Z", "2100-01-01T00:00:01Z"),
            *("2026-12-22T10:00:00Z", "2026-12-22T10:00:00.001Z", "0001-01-01T00:00:00+23:00", "soon"),
        )
    ),
]
MARK = "here it stands"


def paths_of(value: Json, at: Path = ()) -> Iterator[Path]:
    """Where values stand in this one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*at, name)
        yield from paths_of(part, (*at, name))


def with_fragment(value: Json, path: Path, fragment: str) -> bytes:
    copy = json.loads(json.dumps(value))
    holder = copy
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = MARK
    return json.dumps(copy, ensure_ascii=False).replace(f'"{MARK}"', fragment).encode()


def without(value: Json, path: Path) -> bytes:
    copy = json.loads(json.dumps(value))
    holder = copy
    for name in path[:-1]:
        holder = holder[name]
    del holder[path[-1]]
    return json.dumps(copy).encode()


def check(topic: Topic, body: bytes) -> bool:
    """Whether it is plain; then it must say what the model says."""
    model, read = MODELS[topic]
    event = read(body)
    if event is None:
        return False
    record = Record(None, topic, 0, 7, after(30), b"key", body, ())
    told = model.model_validate_json(body)
    lean, full = tells(event, record.at), tells(told, record.at)
    assert lean is not None
    assert full is not None
    assert (lean, bytes_of(lean)) == (full, bytes_of(full))
    assert event_row(record, event) == event_row(record, told)
    return True


@pytest.mark.parametrize(("topic", "event"), PLAIN)
def test_what_services_write_is_plain(topic: Topic, event: Wire) -> None:
    assert check(topic, event.to_json())


@pytest.mark.parametrize(("topic", "event"), PLAIN)
def test_whatever_stands_in_a_place_is_read_as_the_model_reads_it_or_not_at_all(topic: Topic, event: Wire) -> None:
    value = json.loads(event.to_json())
    for path in paths_of(value):
        check(topic, without(value, path))
        for fragment in FRAGMENTS:
            check(topic, with_fragment(value, path, fragment))


@given(st.data())
def test_so_is_whatever_is_wrong_with_the_bytes(data: st.DataObject) -> None:
    topic, event = data.draw(st.sampled_from(PLAIN))
    body = event.to_json()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(start + 40, len(body))))
    check(topic, body[:start] + data.draw(st.binary(max_size=4)) + body[end:])


@given(st.data())
def test_and_any_text_in_any_place(data: st.DataObject) -> None:
    topic, event = data.draw(st.sampled_from(PLAIN))
    value = json.loads(event.to_json())
    text = data.draw(st.text(max_size=300) | st.datetimes().map(lambda at: at.isoformat() + "Z"))
    for path in data.draw(st.lists(st.sampled_from(sorted(paths_of(value), key=str)), min_size=1, max_size=2)):
        check(topic, with_fragment(value, path, json.dumps(text)))


LEFT_TO_THE_MODEL: list[tuple[Topic, Wire]] = [
    (Topic.STATUS_UPDATED, status(Status.FAILED, code=ReasonCode.META_ERROR)),
    (Topic.SEND_REQUESTED, requested(content={"type": "image", "image": {"id": "1"}})),
    (Topic.SEND_REQUESTED, requested(content={"type": "text", "text": {"body": "a" * 5_000}})),
    (Topic.SEND_CONSENTED, consented(content={"type": "contacts", "contacts": [{}]})),
]


@pytest.mark.parametrize(("topic", "event"), LEFT_TO_THE_MODEL)
def test_the_rest_is_left_to_the_model(topic: Topic, event: Wire) -> None:
    body = event.to_json()
    assert not check(topic, body)
    record = Record(None, topic, 0, 7, T0, b"key", body, ())
    assert with_event(record, parser_of(topic)(record)).event == event


def test_what_neither_reads_is_refused_as_before() -> None:
    for topic in (Topic.SEND_CONSENTED, Topic.SEND_FUNDED, Topic.STATUS_UPDATED):
        for body in (b"", b"{", b"null", b"{}", b"\xff", DELIVERED.to_json().replace(MESSAGE.encode(), b"m 1")):
            with pytest.raises(ValidationError):
                parser_of(topic)(Record(None, topic, 0, 7, T0, b"key", body, ()))
