"""Erasure on a real database: what is ordered, what is left here, and what lay in Kafka when it came."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from consent import erasures
from consent_desk import PHONE, Desk, at, contact_in, customer, message, record, request
from sendwhy.erasure import report
from sendwhy.events import (
    PersonErased,
    PersonErasing,
    Price,
    SendConsented,
    SendFunded,
    SendRecalled,
    SendRejected,
)
from sendwhy.postgres import unpublished
from sendwhy.privacy import ERASED_PREFIX, Tagger
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Unreadable
from sendwhy.topics import Topic

TAGGER = Tagger("a key of tests only")
CANARIES = ("5512345678", "shopify:7712", '"4711"')


def redaction(seconds: float = 1, **more: Any) -> Any:
    """Shopify's customers/redact, after all that the test has told so far."""
    now = datetime.now(UTC) + timedelta(seconds=seconds)
    return customer(action="redact", marketing_state=None, **({"occurred_at": now} | more))


async def told(desk: Desk, topic: Topic) -> list[Any]:
    models: dict[Topic, Any] = {Topic.PERSON_ERASING: PersonErasing, Topic.PERSON_ERASED: PersonErased}
    async with desk.pool.acquire() as connection:
        rows = await unpublished(connection, older_than_seconds=-1, limit=1000)
    values = [one.value for one in rows.values() if one.topic == topic]
    assert not [one for one in CANARIES if one in str(values)]
    return [models[topic].model_validate_json(value) for value in values]


async def dump(desk: Desk, tables: Sequence[str]) -> str:
    return str([await desk.pool.fetch(f"select * from {table}") for table in tables])


async def test_an_erasure_is_ordered_once_with_messages_and_tags(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request("m-1"), request("m-2"))
    gone = redaction()
    await desk.tell(gone)
    await desk.tell(gone)
    (order,) = await told(desk, Topic.PERSON_ERASING)
    assert order.message_ids == ["m-1", "m-2"]
    for phone in ("+525512345678", "5215512345678"):
        assert TAGGER.of_person("acme", phone=phone)[0].hex() in order.tags
    assert TAGGER.of_person("acme", contact_id="shopify:7712")[0].hex() in order.tags
    (own,) = await told(desk, Topic.PERSON_ERASED)
    assert own.order_id == order.event_id
    rows = {(one.table, one.act): one.rows for one in own.tables}
    assert rows["contact", "erased"] == 1
    assert rows["decision", "blurred"] == 2
    tables = ("contact", "contact_history", "memory", "decision", "message_of", "privacy_request", "erasure")
    assert not [one for one in CANARIES if one in await dump(desk, tables)]


async def test_many_messages_are_several_orders(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(*(request(f"m-{number}") for number in range(erasures.MESSAGES_PER_ORDER + 1)))
    await desk.tell(redaction())
    orders = await told(desk, Topic.PERSON_ERASING)
    assert sorted(len(one.message_ids) for one in orders) == [1, erasures.MESSAGES_PER_ORDER]
    assert len({one.erasure_id for one in orders}) == 1
    assert len(await told(desk, Topic.PERSON_ERASED)) == 2


async def test_a_person_who_is_known_by_messages_only_can_be_erased_by_a_shop(desk: Desk) -> None:
    transactional = {"origin": {"kind": "api"}, "content": {"type": "text", "text": {"body": "hi"}}}
    await desk.request(request("m-1", **transactional))
    await desk.tell(redaction())
    (order,) = await told(desk, Topic.PERSON_ERASING)
    assert order.message_ids == ["m-1"]
    assert "5512345678" not in await dump(desk, ("decision",))


async def test_an_old_redaction_that_is_read_again_leaves_who_came_after_it(desk: Desk) -> None:
    await desk.put("shopify:7712", phone=PHONE)
    assert await desk.tell(redaction(-3600)) == []
    assert await told(desk, Topic.PERSON_ERASING) == []
    assert await desk.pool.fetchval("select count(*) from contact") == 1


async def test_a_redaction_that_waited_in_kafka_takes_who_waited_there_with_it(desk: Desk) -> None:
    """As after an outage, or when a restored database reads its topics again."""
    await desk.tell(customer(occurred_at=datetime.now(UTC) - timedelta(hours=2)))
    await desk.tell(redaction(-3600))
    assert len(await told(desk, Topic.PERSON_ERASING)) == 1
    assert await desk.pool.fetchval("select count(*) from contact") == 0


@pytest.mark.parametrize("is_deleted", [True, False])
async def test_a_redaction_finds_the_person_by_phone_where_the_shops_own_record_is_gone_or_never_was(
    desk: Desk, is_deleted: bool
) -> None:
    if is_deleted:
        await desk.tell(customer(), customer(1, action="delete", marketing_state=None))
    await desk.tell(message("START", 5))
    await desk.put("crm:9", phone=PHONE)
    await desk.request(request("m-1", to={"phone": PHONE}))
    gone = redaction()
    published = await desk.tell(gone)
    assert {one.key for one in published if one.value is None} >= {b"acme/crm:9"}
    assert await desk.pool.fetchval("select count(*) from contact") == 0
    order = (await told(desk, Topic.PERSON_ERASING))[-1]
    assert order.message_ids == ["m-1"]
    proof: UUID = await desk.pool.fetchval("select erasure_id from privacy_request where kind = 'redact'")
    assert proof == order.erasure_id
    orders = len(await told(desk, Topic.PERSON_ERASING))
    await desk.tell(gone)
    assert len(await told(desk, Topic.PERSON_ERASING)) == orders, "a repeat orders nothing twice"
    assert not [one for one in CANARIES if one in await dump(desk, ("contact", "contact_history", "decision"))]


async def test_what_lay_in_kafka_when_its_person_was_erased_is_refused_whatever_its_purpose(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.tell(redaction())
    ((erasure_id, at),) = await desk.pool.fetch("select erasure_id, erased_at from erasure, memory limit 1")
    transactional = {"origin": {"kind": "api"}, "content": {"type": "text", "text": {"body": "hi"}}}
    published = await desk.request(request("late", **transactional))
    (refusal,) = [SendRejected.model_validate_json(one.value or b"") for one in published]
    assert refusal.reason.code == ReasonCode.CUSTOMER_IS_NOT_OPTED_IN
    assert refusal.reason.evidence["source"] == "erasure"
    assert refusal.to is not None
    assert refusal.to.contact_id == f"{ERASED_PREFIX}{erasure_id}"
    assert await desk.request(request("late", **transactional)) == published
    assert "5512345678" not in await dump(desk, ("decision",))
    orders = await told(desk, Topic.PERSON_ERASING)
    assert [one.message_ids for one in orders if one.message_ids] == [["late"]]
    # What upstream asks for afterwards is its own new word.
    after = record(request("after", **transactional))
    after = type(after)(after.event, after.topic, 0, after.offset, at + timedelta(seconds=1), None, after.value, ())
    (answer,) = await desk.handle(desk.stages.on_requested, after)
    assert answer.topic == Topic.SEND_CONSENTED


async def test_what_lay_in_kafka_is_refused_by_its_phone_too(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.tell(redaction())
    transactional = {"origin": {"kind": "api"}, "content": {"type": "text", "text": {"body": "hi"}}}
    (answer,) = await desk.request(request("late", to={"contact_id": "crm:9", "phone": PHONE}, **transactional))
    assert answer.topic == Topic.SEND_REJECTED
    assert not [one for one in (*CANARIES, "crm:9") if one in await dump(desk, ("decision",))]


async def test_a_recall_that_lay_in_kafka_when_its_person_was_erased_is_answered_without_them(desk: Desk) -> None:
    await desk.tell(customer())
    consented = SendConsented.model_validate_json((await desk.request(request()))[0].value or b"")
    stopped = contact_in(await desk.tell(message("STOP", 5)))
    funded = SendFunded(**dict(consented), price=Price(credits=1, category="MARKETING"))
    recalled = SendRecalled(event_id=uuid4(), occurred_at=at(6), funded=funded, contact=stopped)
    await desk.tell(redaction())
    erasure_id = await desk.pool.fetchval("select erasure_id from erasure")
    answer = await desk.handle(desk.stages.on_recalled, recalled)
    rejection = SendRejected.model_validate_json(answer[0].value or b"")
    assert rejection.to is not None
    assert (rejection.to.contact_id, rejection.to.phone) == (f"{ERASED_PREFIX}{erasure_id}", None)
    assert rejection.reason.code == ReasonCode.CUSTOMER_IS_NOT_OPTED_IN
    assert not [one for one in CANARIES if one in await dump(desk, ("decision", "message_of"))]
    assert await desk.pool.fetchval("select count(*) from message_of") == 0
    assert await desk.handle(desk.stages.on_recalled, recalled) == answer


async def test_a_stop_and_an_erasure_outlive_the_contact(desk: Desk) -> None:
    await desk.tell(customer(), message("STOP", 5))
    await desk.tell(redaction())
    assert await desk.tell(customer(20)) == []
    words = await desk.pool.fetch("select word_state, erased_at from memory")
    assert {row["word_state"] for row in words} == {"UNSUBSCRIBED"}
    assert all(row["erased_at"] for row in words)


async def test_a_shops_requests_are_kept_and_forgotten_with_the_person(desk: Desk) -> None:
    await desk.tell(customer())
    now = datetime.now(UTC)
    await desk.tell(customer(action="data_request", marketing_state=None, phone=None, occurred_at=now))
    await desk.tell(customer(action="shop_redact", marketing_state=None, contact_id=None, phone=None, occurred_at=now))
    rows = await desk.pool.fetch("select kind, contact_id from privacy_request order by number")
    assert [tuple(row) for row in rows] == [("data_request", "shopify:7712"), ("shop_redact", None)]
    assert await desk.pool.fetchval("select count(*) from contact") == 1
    await desk.tell(redaction())
    rows = await desk.pool.fetch("select kind, contact_id, erasure_id from privacy_request order by number")
    erasure_id: UUID = await desk.pool.fetchval("select erasure_id from erasure")
    assert [tuple(row) for row in rows] == [
        ("data_request", None, erasure_id),
        ("shop_redact", None, None),
        ("redact", None, erasure_id),
    ]
    assert PHONE not in await dump(desk, ("privacy_request",))


async def test_an_erasure_that_is_asked_for_again_orders_the_same_messages_again(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request("m-1"))
    await desk.tell(redaction())
    await desk.tell(redaction(2))
    orders = await told(desk, Topic.PERSON_ERASING)
    assert len({one.erasure_id for one in orders}) == 1
    assert sorted(one.message_ids for one in orders) == [[], ["m-1"], ["m-1"]]
    assert len({one.event_id for one in orders}) == 2


async def test_an_erasure_that_nobody_finishes_is_counted(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.tell(redaction())
    now = datetime.now(UTC)
    async with desk.pool.acquire() as connection:
        assert await erasures.count_unfinished(connection, now) == 0
        assert await erasures.count_unfinished(connection, now + timedelta(minutes=11)) == 1
        (order,) = await told(desk, Topic.PERSON_ERASING)
        others = [service for service in Service if service is not Service.CONSENT]
        await erasures.keep_reports(connection, [report(order, service, [], now) for service in others])
        assert await erasures.count_unfinished(connection, now + timedelta(minutes=11)) == 0


def refused(desk: Desk, message_id: str, key: bytes | None = None, **wrong: Any) -> Any:
    """An unreadable request, handed over as the stage does."""
    body = json.loads(request(message_id).to_json()) | {"purpose": "spam"} | wrong
    entry = Unreadable(record(None, value=json.dumps(body).encode(), key=key), "unreadable", ("purpose: is wrong",))
    return desk.handle(lambda connection, _: desk.stages.on_unreadable(connection, [entry], []))


RECOGNIZED: list[tuple[bytes | None, dict[str, Any]]] = [
    (None, {}),
    (None, {"to": {"contact_id": "shopify:7712"}}),
    (None, {"to": {"phone": PHONE}}),
    (b"shopify:7712", {"to": 7}),
    (PHONE.encode(), {"to": {"contact_id": 7, "phone": PHONE}}),
]


@pytest.mark.parametrize(("key", "wrong"), RECOGNIZED, ids=lambda case: str(case)[:50])
async def test_a_refused_request_is_erased_with_whom_it_was_for(
    desk: Desk, key: bytes | None, wrong: dict[str, Any]
) -> None:
    """As far as that can be read of it, or is its record's key: the others erase what they have of the message."""
    await desk.tell(customer())
    (rejection,) = await refused(desk, "m-1", key, **wrong)
    assert rejection.value
    await desk.tell(redaction())
    (order,) = await told(desk, Topic.PERSON_ERASING)
    assert order.message_ids == ["m-1"]
    assert not [one for one in CANARIES if one in await dump(desk, ("decision", "message_of"))]


async def test_an_invalid_request_is_erased_too_and_its_rejection_is_told_no_more(desk: Desk) -> None:
    await desk.tell(customer())
    wrong = record(request("m-1", expires_at=at(-60)))
    first = await desk.handle(desk.stages.on_requested, wrong)
    await desk.tell(redaction())
    (order,) = await told(desk, Topic.PERSON_ERASING)
    assert order.message_ids == ["m-1"]
    again = await desk.handle(desk.stages.on_requested, wrong)
    assert [one.topic for one in first] == [Topic.SEND_REJECTED, Topic.DEAD_LETTERS]
    assert [one.topic for one in again] == [Topic.DEAD_LETTERS]


async def test_a_refused_request_that_lay_in_kafka_names_nobody(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.tell(redaction())
    erasure_id = await desk.pool.fetchval("select erasure_id from erasure")
    (rejection,) = await refused(desk, "late")
    refusal = SendRejected.model_validate_json(rejection.value or b"")
    assert refusal.reason.code == ReasonCode.INVALID_REQUEST
    assert refusal.to is not None
    assert (refusal.to.contact_id, refusal.to.phone) == (f"{ERASED_PREFIX}{erasure_id}", None)
    assert refusal.metadata == {}
    orders = await told(desk, Topic.PERSON_ERASING)
    assert [one.message_ids for one in orders if one.message_ids] == [["late"]]


async def test_the_corrected_request_of_another_person_is_not_erased_with_the_first(desk: Desk) -> None:
    await desk.tell(customer())
    await refused(desk, "m-1")
    (decided,) = await desk.request(request("m-1", to={"contact_id": "another"}))
    await desk.tell(redaction())
    (order,) = await told(desk, Topic.PERSON_ERASING)
    assert order.message_ids == []
    assert await desk.request(request("m-1", to={"contact_id": "another"})) == [decided]
    assert not [one for one in CANARIES if one in await dump(desk, ("message_of",))]
    rows = await desk.pool.fetch("select body from decision where starts_with(step, $1)", erasures.REFUSAL)
    assert [row["body"] for row in rows] == [None]
