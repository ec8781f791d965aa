"""For upstream systems: what an import needs, which outcome stands, and both ends against a real Kafka."""

import asyncio
import json
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.client import Outcome, Outcomes, Publisher, Why, _closing, outcome_of
from sendwhy.events import Origin, OriginKind, SendRejected, SendRequested, Status, StatusUpdated, To, reason
from sendwhy.kafka import create_topics
from sendwhy.reasons import ReasonCode, Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Topic, outgoing

# What `pip install sendwhy` brings, and `sendwhy[client]` besides.
PYDANTIC = {"pydantic", "pydantic_core", "annotated_types", "typing_extensions", "typing_inspection"}
AIOKAFKA = {"aiokafka", "async_timeout", "packaging"}
BLOCKED = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        known = {allowed!r} | sys.stdlib_module_names | {{"sendwhy"}}
        if top not in known and not top.startswith("_"):
            raise ImportError(name + " is not installed here")
sys.meta_path.insert(0, Only())
{statement}
"""
NOW = datetime(2026, 11, 22, 10, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("from sendwhy.events import SendRequested, SendRejected, StatusUpdated", PYDANTIC),
        ("from sendwhy.topics import outgoing", PYDANTIC),
        ("from sendwhy.reasons import CATALOGUE", set()),
        ("from sendwhy.client import Publisher, Outcomes", PYDANTIC | AIOKAFKA),
    ],
)
def test_an_import_needs_no_more_than_it_says(statement: str, allowed: set[str]) -> None:
    code = BLOCKED.format(allowed=allowed, statement=statement)
    # -S would lose the packages; -I leaves out the environment's.
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def outcome(status: str, *, code: str | None = None, by_meta: bool = False, observed: datetime = NOW) -> Outcome:
    return Outcome(
        workspace_id="acme",
        message_id="m",
        status=status,
        service="test",
        occurred_at=observed,
        observed_at=observed,
        reason=Why(code=code, meta={"code": 1} if by_meta else None) if code else None,
    )


LADDER = ["rejected", "accepted", "sent", "failed", "delivered", "read", "played"]


@pytest.mark.parametrize(("lower", "higher"), list(pairwise(LADDER)))
def test_the_higher_status_stands_whichever_comes_first(lower: str, higher: str) -> None:
    early, late = outcome(lower), outcome(higher)
    assert late.stands_before(early)
    assert not early.stands_before(late)
    assert not late.stands_before(late)


def test_of_two_failures_metas_word_stands_and_then_the_latest() -> None:
    inferred = outcome("failed", code="NO_DELIVERY_RECEIPT", observed=NOW + timedelta(hours=1))
    told = outcome("failed", code="MEDIA_FAILED", by_meta=True)
    again = outcome("failed", code="INVALID_CONTENT", by_meta=True, observed=NOW + timedelta(minutes=1))
    assert told.stands_before(inferred)
    assert again.stands_before(told)
    assert not told.stands_before(again)


@given(st.permutations([outcome(status) for status in LADDER]))
def test_any_order_ends_in_the_same_outcome(told: list[Outcome]) -> None:
    known: Outcome | None = None
    for one in told:
        known = one if one.stands_before(known) else known
    assert known is not None
    assert known.status == "played"


def test_a_newer_sendwhy_is_understood() -> None:
    body = {
        "event_id": str(uuid.uuid4()),
        "occurred_at": "2026-11-22T10:00:00Z",
        "workspace_id": "acme",
        "message_id": "m",
        "service": "a-new-service",
        "status": "listened",
        "reason": {"code": "A_NEW_REASON", "title": "New", "detail": "…", "recoverable": "sometimes", "new": 1},
    }
    told = outcome_of("status.updated", json.dumps(body).encode())
    assert told is not None
    assert (told.status, told.reason and told.reason.code, told.is_final) == ("listened", "A_NEW_REASON", False)
    assert not told.stands_before(outcome("accepted"))


@pytest.mark.parametrize(
    "value", [None, b"", b"{", b"[]", b'{"workspace_id": 7}', b'{"occurred_at": "2026-11-22T10:00:00Z"}']
)
def test_what_is_no_outcome_is_left_out(value: bytes | None) -> None:
    assert outcome_of("status.updated", value) is None


def request(message_id: str) -> SendRequested:
    return SendRequested(
        message_id=message_id,
        workspace_id="acme",
        to=To(contact_id="shopify:7712"),
        origin=Origin(kind=OriginKind.API),
        content={"type": "text", "text": {"body": "Hola"}},
        requested_at=NOW,
        metadata={"order": "4711"},
    )


def rejected(message_id: str) -> SendRejected:
    why = reason(ReasonCode.INSUFFICIENT_CREDITS, "balance 0")
    return SendRejected(
        event_id=uuid.uuid4(),
        occurred_at=NOW,
        message_id=message_id,
        workspace_id="acme",
        service=Service.BILLING,
        reason=why,
        metadata={"order": "4711"},
    )


def status(message_id: str | None, status: Status) -> StatusUpdated:
    return StatusUpdated(
        event_id=uuid.uuid4(),
        occurred_at=NOW,
        observed_at=NOW,
        message_id=message_id,
        workspace_id="acme" if message_id else None,
        provider_message_id="wamid.1",
        service=Service.WEBHOOK_INGEST,
        status=status,
    )


class NeverCloses:
    """A client of Kafka's over TLS, beside a broker whose last word doesn't come."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.acknowledged, self.last_word = asyncio.Event(), asyncio.Event()

    async def flush(self) -> None:
        await self.acknowledged.wait()
        self.said.append("acknowledged")

    async def stop(self) -> None:
        self.said.append("stop")
        await self.last_word.wait()
        self.said.append("closed")
        raise ConnectionResetError


async def beside_a_silent_broker(client: Publisher | Outcomes, name: str) -> NeverCloses:
    silent = NeverCloses()
    await getattr(client, name).stop()
    setattr(client, name, silent)
    return silent


async def test_a_publisher_waits_for_what_is_on_its_way_and_for_no_last_word() -> None:
    publisher = Publisher("nowhere:9092")
    silent = await beside_a_silent_broker(publisher, "_producer")
    ending = asyncio.create_task(publisher.__aexit__())
    await asyncio.sleep(0)
    assert silent.said == []
    silent.acknowledged.set()
    # Less than the half minute of event loops.
    await asyncio.wait_for(ending, 15)
    assert silent.said == ["acknowledged", "stop"]


async def test_outcomes_go_on_leaving_their_group_when_nobody_waits_for_it_any_more() -> None:
    outcomes = Outcomes("nowhere:9092", group_id="upstream.shop")
    silent = await beside_a_silent_broker(outcomes, "_consumer")
    await asyncio.wait_for(outcomes.__aexit__(None, None, None), 15)
    assert silent.said == ["stop"]
    silent.last_word.set()
    await asyncio.wait(_closing)
    assert silent.said == ["stop", "closed"]


@pytest.fixture
async def kafka(kafka_bootstrap: str) -> str:
    await create_topics(KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap))
    return kafka_bootstrap


async def records(kafka: str, topic: str, message_id: str) -> list[Any]:
    """All records of a topic whose body names the message, once there is one."""
    async with AIOKafkaConsumer(topic, bootstrap_servers=kafka, auto_offset_reset="earliest") as consumer:
        while True:
            batches = await consumer.getmany(timeout_ms=1000)
            found = [one for batch in batches.values() for one in batch if message_id.encode() in one.value]
            if found:
                return found


async def tell(kafka: str, *events: Any) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka) as producer:
        for event in events:
            record = outgoing(event, source="test")
            # One partition each: order is kept within it.
            await producer.send_and_wait(record.topic, record.value, key=b"one", headers=list(record.headers))


async def heard(outcomes: Outcomes, wanted: str, until: str) -> list[tuple[str, str]]:
    found = []
    async for one in outcomes:
        if one.message_id.startswith(wanted):
            found.append((one.message_id.removeprefix(wanted), one.status))
        if one.message_id == f"{wanted}{until}":
            return found
    raise AssertionError("not reached")


@pytest.mark.kafka
async def test_a_request_is_published_as_the_contract_asks(kafka: str) -> None:
    message_id = f"client-{uuid.uuid4().hex}"
    async with Publisher(kafka) as publisher:
        await publisher.send(request(message_id))
    [record] = await records(kafka, Topic.SEND_REQUESTED, message_id)
    assert record.key == b"shopify:7712"
    assert SendRequested.model_validate_json(record.value) == request(message_id)


@pytest.mark.kafka
async def test_outcomes_tell_what_changes_and_go_on_where_they_ended(kafka: str) -> None:
    prefix = f"client-{uuid.uuid4().hex}-"
    group = f"upstream.{prefix}"
    await tell(
        kafka,
        status(f"{prefix}a", Status.ACCEPTED),
        status(f"{prefix}a", Status.READ),
        status(None, Status.READ),
        status(f"{prefix}a", Status.DELIVERED),
        status(f"{prefix}a", Status.READ),
        status(f"{prefix}b", Status.SENT),
    )
    async with Outcomes(kafka, group_id=group) as outcomes:
        found = await heard(outcomes, prefix, until="b")
    assert found == [("a", "accepted"), ("a", "read"), ("b", "sent")]
    await tell(kafka, rejected(f"{prefix}c"))
    async with Outcomes(kafka, group_id=group) as outcomes:
        assert await heard(outcomes, prefix, until="c") == [("c", "rejected")]


class WorkFailedError(Exception):
    pass


async def fail_at(kafka: str, group: str, message_id: str) -> None:
    async with Outcomes(kafka, group_id=group) as outcomes:
        async for one in outcomes:
            if one.message_id == message_id:
                raise WorkFailedError


@pytest.mark.kafka
async def test_an_outcome_whose_work_failed_is_told_again(kafka: str) -> None:
    message_id = f"client-{uuid.uuid4().hex}"
    group = f"upstream.{message_id}"
    await tell(kafka, rejected(message_id))
    for _ in range(2):
        with pytest.raises(WorkFailedError):
            await fail_at(kafka, group, message_id)
