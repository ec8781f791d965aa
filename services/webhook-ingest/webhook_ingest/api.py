"""Routes for operators: replay of raw webhooks."""

import time
from collections import Counter
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Annotated, Any

from aiokafka import AIOKafkaConsumer, ConsumerRecord, TopicPartition
from fastapi import APIRouter, Query, Request, Response
from pydantic import AwareDatetime, BaseModel, Field
from sendwhy.http import Body, IdempotencyKey, Operator, body_schema, json_body, once
from sendwhy.problems import Problem
from sendwhy.service import Runtime
from sendwhy.stage import Record
from sendwhy.topics import Topic, utc_from_ms

from webhook_ingest.fragments import Delivery
from webhook_ingest.parsing import apply, delivery_of
from webhook_ingest.receipts import raw_webhooks
from webhook_ingest.settings import Settings

SPAN_MAX = timedelta(hours=24)
BATCH_MAX_RECORDS = 500
# Below the server's idle-in-transaction limit, within which the Idempotency-Key's row is held.
BUDGET_SECONDS = 40.0
POLL_MS = 5000


class ReplayRequest(Body):
    """A span of time by which Kafka stored the deliveries; `to` is exclusive."""

    since: AwareDatetime = Field(alias="from")
    to: AwareDatetime


class ReplayAnswer(BaseModel):
    """`emitted` by topic. `complete` false: time ran out; ask again with `from` set to `next_from`."""

    dry_run: bool
    deliveries: int
    emitted: dict[str, int]
    complete: bool
    next_from: datetime | None


def routes(runtime: Runtime, settings: Settings) -> APIRouter:
    router = APIRouter()
    apps = frozenset(settings.app_secrets)

    @router.post(
        "/v1/workspaces/{w}/webhooks/replay", response_model=ReplayAnswer, openapi_extra=body_schema(ReplayRequest)
    )
    async def replay(
        body: Annotated[ReplayRequest, json_body(ReplayRequest)],
        caller: Operator,
        request: Request,
        key: IdempotencyKey = None,
        dry_run: Annotated[bool, Query()] = False,
    ) -> Response:
        """Parse this workspace's raw webhooks of a span again; what was emitted before comes out the same."""
        if not timedelta(0) < body.to - body.since <= SPAN_MAX:
            raise Problem(
                422, "The span must be longer than nothing and at most 24 hours.", errors={"to": "out of range"}
            )
        span = Replay(runtime, apps, caller.workspace, dry_run=dry_run)

        async def act() -> tuple[int, bytes]:
            answer = await span.run(body.since, body.to)
            return 200, answer.model_dump_json().encode()

        async with runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            return await once(connection, request, caller, key, act)

    return router


class _DryRun(Exception):
    pass


class Replay:
    """One replay: reads the topic beside the group, so that the stage's own progress stays as it is."""

    def __init__(self, runtime: Runtime, apps: frozenset[str], workspace: str, *, dry_run: bool) -> None:
        self._runtime, self._apps, self._workspace, self._dry_run = runtime, apps, workspace, dry_run
        self._emitted: Counter[str] = Counter()
        self._deliveries = 0

    async def run(self, since: datetime, to: datetime) -> ReplayAnswer:
        stops: list[datetime] = []
        end = time.monotonic() + BUDGET_SECONDS
        async with raw_webhooks(self._runtime.settings) as (consumer, places):
            for place in places:
                first, last = await _span(consumer, place, since, to)
                stops += await self._read(consumer, place, first, last, end)
        return ReplayAnswer(
            dry_run=self._dry_run,
            deliveries=self._deliveries,
            emitted=dict(self._emitted),
            complete=not stops,
            next_from=max(since, min(stops)) if stops else None,
        )

    async def _read(
        self, consumer: AIOKafkaConsumer, place: TopicPartition, first: int, last: int, end: float
    ) -> list[datetime]:
        """Replay offsets `first` to before `last`; returns where it had to stop if time ran out."""
        consumer.seek(place, first)
        while first < last:
            batches = await consumer.getmany(place, timeout_ms=POLL_MS, max_records=BATCH_MAX_RECORDS)
            entries = batches.get(place, [])
            if not entries:
                raise Problem(503, "Kafka did not give the records in time; ask again.")
            if time.monotonic() > end:
                return [utc_from_ms(entries[0].timestamp)]
            await self._apply([delivery_of(_record(entry)) for entry in entries if entry.offset < last])
            first = entries[-1].offset + 1
        return []

    async def _apply(self, deliveries: list[Delivery]) -> None:
        with suppress(_DryRun):
            async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                outcome = await apply(connection, deliveries, self._apps, only_workspace=self._workspace)
                records = [*outcome.publish, *(record for _, record in outcome.from_outbox)]
                self._deliveries += len(deliveries)
                self._emitted.update(str(record.topic) for record in records)
                if self._dry_run:
                    raise _DryRun
            await self._runtime.producer.publish(outcome.publish)


async def _span(consumer: AIOKafkaConsumer, place: TopicPartition, since: datetime, to: datetime) -> tuple[int, int]:
    """The first offset stored at or after `since`, and the one before which `to` ends."""
    end: int = (await consumer.end_offsets([place]))[place]
    offsets = [
        (await consumer.offsets_for_times({place: int(moment.timestamp() * 1000)}))[place] for moment in (since, to)
    ]
    first, last = (end if found is None else int(found.offset) for found in offsets)
    return first, last


def _record(entry: ConsumerRecord[Any, Any]) -> Record[None]:
    return Record(
        None,
        Topic.WEBHOOK_RECEIVED,
        entry.partition,
        entry.offset,
        utc_from_ms(entry.timestamp),
        entry.key,
        entry.value,
        tuple(entry.headers),
    )
