"""For upstream systems: publish requests, and hear what became of each. Needs `sendwhy[client]`: pydantic, aiokafka.

`Outcome` reads only what it needs, as text: a reason or a status that a newer Sendwhy knows is told, not refused.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Literal, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRecord, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError
from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue, ValidationError

from sendwhy.events import SendCancelled, SendRequested
from sendwhy.topics import MAX_RECORD_BYTES, Outgoing, Topic, outgoing

ACKNOWLEDGED_WITHIN_SECONDS = 30.0
REMEMBERED = 100_000
POLL_MS = 1_000
# Over TLS a broker's last word doesn't always come, and event loops wait half a minute for it.
CLOSE_SECONDS = 2.0
FINAL = frozenset({"rejected", "failed", "delivered", "read", "played"})
# What stands when events come in any order: the highest (contract.md, "How to read them").
_RANKS = {
    name: rank
    for rank, name in enumerate(("rejected", "accepted", "sent", "failed", "delivered", "read", "played"), start=1)
}

log = logging.getLogger("sendwhy.client")
_closing: set[asyncio.Task[None]] = set()


async def _let_go(stop: Coroutine[Any, Any, None]) -> None:
    """Wait a moment and no longer until a client that has nothing left to tell is closed. It goes on by itself: a
    consumer that were cut off before it has left its group would keep its partitions from the others."""
    closing = asyncio.create_task(stop)
    _closing.add(closing)
    closing.add_done_callback(_closed)
    await asyncio.wait([closing], timeout=CLOSE_SECONDS)


def _closed(closing: asyncio.Task[None]) -> None:
    _closing.discard(closing)
    if not closing.cancelled() and (error := closing.exception()) is not None:
        log.warning("a connection to Kafka did not close well: %r", error)


class Publisher:
    """`async with Publisher("kafka:9092") as publisher: await publisher.send(request)`.

    `options` are aiokafka's (`security_protocol="SASL_SSL"`, `sasl_mechanism=…`, `ssl_context=…`).
    """

    def __init__(self, bootstrap_servers: str, **options: Any) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=bootstrap_servers,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            max_request_size=MAX_RECORD_BYTES,
            **options,
        )

    async def __aenter__(self) -> Self:
        try:
            await self._producer.start()
        except BaseException:
            await _let_go(self._producer.stop())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            # However long: what a `send` that was cancelled has left is on its way, too.
            await self._producer.flush()
        finally:
            await _let_go(self._producer.stop())

    async def send(self, *requests: SendRequested | SendCancelled) -> None:
        """Returns when Kafka has all of them.

        Raises aiokafka's KafkaError or TimeoutError (after 30 s): then any of them may be missing. Sending the same
        again is right and harmless: a message_id counts once.
        """
        async with asyncio.timeout(ACKNOWLEDGED_WITHIN_SECONDS):
            acknowledged = [await self._sent(outgoing(request, source="upstream")) for request in requests]
            await asyncio.gather(*acknowledged)

    async def _sent(self, record: Outgoing) -> asyncio.Future[Any]:
        sent: asyncio.Future[Any] = await self._producer.send(
            record.topic, record.value, key=record.key, headers=list(record.headers)
        )
        return sent


class _Read(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Why(_Read):
    """The reason of a failure; `code` has its page in docs/reasons. `meta`: what Meta said, word for word."""

    code: str
    title: str = ""
    detail: str = ""
    evidence: dict[str, JsonValue] = {}
    recoverable: str = "unknown"
    meta: dict[str, JsonValue] | None = None


class _Told(_Read):
    workspace_id: str | None = None
    message_id: str | None = None
    status: str | None = None
    service: str = ""
    occurred_at: AwareDatetime
    observed_at: AwareDatetime | None = None
    provider_message_id: str | None = None
    reason: Why | None = None
    metadata: dict[str, JsonValue] | None = None


class Outcome(_Told):
    """What an event tells of one message. `status` is rejected (Meta never took it), accepted, sent, delivered, read,
    played or failed; `metadata` is what the request gave, with rejected and accepted only."""

    workspace_id: str
    message_id: str
    status: str
    service: str

    @property
    def is_final(self) -> bool:
        """Whether only a later receipt can change it: rejected, failed, or delivered and better."""
        return self.status in FINAL

    def stands_before(self, known: Outcome | None) -> bool:
        """Whether this one stands when both have been told. A repeat of what is known doesn't."""
        return known is None or self._order > known._order

    @property
    def _order(self) -> tuple[int, bool, datetime]:
        # Of two failures: Meta's own word before one that was inferred, then the one observed last.
        if self.status not in ("failed", "rejected"):
            return (_RANKS.get(self.status, 0), False, datetime.min.replace(tzinfo=self.occurred_at.tzinfo))
        by_meta = self.reason is not None and self.reason.meta is not None
        return (_RANKS[self.status], by_meta, self.observed_at or self.occurred_at)


def outcome_of(topic: str, value: bytes | None) -> Outcome | None:
    """What a record of send.rejected or status.updated tells; None where that is about no message of ours."""
    try:
        told = _Told.model_validate_json(value or b"")
    except ValidationError as error:
        log.warning("a record of %s can't be read: %s", topic, error.errors(include_input=False)[0]["msg"])
        return None
    if told.workspace_id is None or told.message_id is None:
        return None
    status = "rejected" if topic == Topic.SEND_REJECTED else told.status
    return Outcome.model_validate({**dict(told), "status": status or "unknown"})


class Outcomes:
    """`async with Outcomes("kafka:9092", group_id="upstream.shop") as outcomes: async for outcome in outcomes: …`.

    Yields what changes: repeats, and receipts that come after a better one, are left out as long as the message is
    among the last `remember`. After a restart some may be told again, none is left out: an outcome counts as heard
    when the next one is asked for, or at the end of `async with` without an exception. A group that is new begins
    with the oldest event there is (14 days at most), or with `since="latest"` at now.
    """

    def __init__(
        self,
        bootstrap_servers: str,
        *,
        group_id: str,
        since: Literal["earliest", "latest"] = "earliest",
        remember: int = REMEMBERED,
        **options: Any,
    ) -> None:
        self._consumer = AIOKafkaConsumer(
            Topic.SEND_REJECTED,
            Topic.STATUS_UPDATED,
            bootstrap_servers=bootstrap_servers,
            group_id=group_id,
            enable_auto_commit=False,
            auto_offset_reset=since,
            **options,
        )
        self._remember = remember
        self._known: OrderedDict[tuple[str, str], Outcome] = OrderedDict()
        self._waiting: deque[ConsumerRecord[Any, Any]] = deque()
        self._heard: dict[TopicPartition, int] = {}

    async def __aenter__(self) -> Self:
        try:
            await self._consumer.start()
        except BaseException:
            await _let_go(self._consumer.stop())
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                await self._commit()
        finally:
            await _let_go(self._consumer.stop())

    def __aiter__(self) -> AsyncIterator[Outcome]:
        return self

    async def __anext__(self) -> Outcome:
        while True:
            while self._waiting:
                record = self._waiting.popleft()
                self._heard[TopicPartition(record.topic, record.partition)] = record.offset + 1
                outcome = self._news(record)
                if outcome is not None:
                    return outcome
            await self._commit()
            batches: dict[TopicPartition, Sequence[ConsumerRecord[Any, Any]]] = await self._consumer.getmany(
                timeout_ms=POLL_MS
            )
            for records in batches.values():
                self._waiting.extend(records)

    def _news(self, record: ConsumerRecord[Any, Any]) -> Outcome | None:
        outcome = outcome_of(record.topic, record.value)
        if outcome is None:
            return None
        key = (outcome.workspace_id, outcome.message_id)
        if not outcome.stands_before(self._known.get(key)):
            return None
        self._known[key] = outcome
        self._known.move_to_end(key)
        if len(self._known) > self._remember:
            self._known.popitem(last=False)
        return outcome

    async def _commit(self) -> None:
        heard, self._heard = self._heard, {}
        # Another member of the group has the partition by now: it tells them again.
        with suppress(CommitFailedError, IllegalStateError):
            if heard:
                await self._consumer.commit(heard)
