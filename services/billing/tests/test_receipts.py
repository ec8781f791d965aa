"""A receipt is read by a leaner parser: what is read says what the model says, and the model reads it (ADR 44)."""

import json
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from billing.stages import status_news, status_of
from billing_desk import NOW, status
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from sendwhy.events import Origin, OriginKind, Status, StatusUpdated, To
from sendwhy.plain import priced_receipt_of as receipt_of
from sendwhy.reasons import ReasonCode
from sendwhy.stage import Record
from sendwhy.topics import Topic

PRICING = {"billable": True, "pricing_model": "PMP", "type": "regular", "category": "marketing"}
SENT = status("m", Status.SENT)
ACCEPTED = status("m", Status.ACCEPTED).model_copy(
    update={
        "to": To(contact_id="shopify:7712", phone="+525512345678"),
        "origin": Origin(kind=OriginKind.CAMPAIGN, id="c", name="Otoño"),
        "metadata": {"order": "4711", "size": [1, 2.5, None]},
        "receipt_deadline": NOW + timedelta(hours=1),
        "template_category": "MARKETING",
    }
)
DELIVERED = SENT.model_copy(
    update={
        "status": Status.DELIVERED,
        "provider_message_id": "wamid.HBgM",
        "sender_id": "100000000000001",
        "pricing": PRICING,
        "conversation": {"id": "c", "origin": {"type": "marketing"}},
        "extra": {"new": [1, None]},
    }
)
PLAIN = [SENT, ACCEPTED, DELIVERED, status("m", Status.READ), status("m", Status.FAILED)]
FRAGMENTS = [
    *("null", "true", "0", "-1", "1.0", "1e999", "NaN", "9" * 30, "1" * 5_000, "01", "tru", "[]", "{}", "[1]"),
    *('{"a":1}', '{"a":NaN}', '{"a":1e999}', '{"type":7}', '{"billable":1}', '{"category":"é"}', '{"kind":"api"}'),
    *('""', '" "', '"a"', '"12345"', '"m 1"', '"m-1\\n"', '"a\\u0000b"', '"a\x01b"', '"\\ud800"', '"\\x"', '"é"'),
    *(f'"{"a" * length}"' for length in (64, 65, 128, 129, 256, 257, 512, 513)),
    *(f'{{"a":"{"a" * length}"}}' for length in (2_040, 2_041)),
    *('{"a":' * 100 + "1" + "}" * 100, '{"a":' * 250 + "1" + "}" * 250, "[" * 250 + "]" * 250),
    *('"failed"', '"played"', '"lost"', '"consent"', '"campaign"'),
    *('"6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77"', '"6F1F0F0A6D1C5B8E9C550A1D7B4C2E77"'),
    *('"1999-12-31T23:59:59Z"', '"2100-01-01T00:00:00Z"', '"2100-01-01T00:00:01Z"'),
    *('"2026-11-22T10:00:00"', '"2026-11-22T10:00:00+02:00"', '"2026-11-22T10:00:00.9999999Z"', '"2026-11-22"'),
]


def paths_of(value: Any, at: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Where values stand in this one."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield (*at, name)
        yield from paths_of(part, (*at, name))


def with_fragment(event: StatusUpdated, path: tuple[str | int, ...], fragment: str) -> bytes:
    told = json.loads(event.to_json())
    holder = told
    for name in path[:-1]:
        holder = holder[name]
    holder[path[-1]] = "here it stands"
    return json.dumps(told, ensure_ascii=False).replace('"here it stands"', fragment).encode(errors="surrogatepass")


def check(body: bytes) -> bool:
    """Whether it is read as a receipt; then it must say what the model says."""
    receipt = receipt_of(body)
    if receipt is None:
        return False
    assert list(status_news(receipt)) == list(status_news(StatusUpdated.model_validate_json(body)))
    return True


@pytest.mark.parametrize("event", PLAIN)
def test_a_receipt_says_what_the_model_says(event: StatusUpdated) -> None:
    assert check(event.to_json())


@pytest.mark.parametrize("event", PLAIN[1:3])
def test_whatever_stands_in_a_place_is_read_as_the_model_reads_it_or_not_at_all(event: StatusUpdated) -> None:
    for path in paths_of(json.loads(event.to_json())):
        for fragment in FRAGMENTS:
            check(with_fragment(event, path, fragment))


@given(st.data())
def test_so_is_whatever_is_wrong_with_the_bytes(data: st.DataObject) -> None:
    body = data.draw(st.sampled_from(PLAIN)).to_json()
    start = data.draw(st.integers(0, len(body)))
    end = data.draw(st.integers(start, min(start + 40, len(body))))
    check(body[:start] + data.draw(st.binary(max_size=4)) + body[end:])


def test_what_tells_a_reason_is_left_to_the_model() -> None:
    event = status("m", Status.FAILED, code=ReasonCode.NO_DELIVERY_RECEIPT)
    assert receipt_of(event.to_json()) is None
    assert status_of(Record(None, Topic.STATUS_UPDATED, 0, 7, NOW, b"m", event.to_json(), ())) == event


@pytest.mark.parametrize("body", [b"", b"{", b"null", b"{}", b"\xff", SENT.to_json().replace(b'"m"', b'"m 1"')])
def test_what_neither_reads_is_refused(body: bytes) -> None:
    with pytest.raises(ValidationError):
        status_of(Record(None, Topic.STATUS_UPDATED, 0, 7, NOW, b"m", body, ()))
