"""Routes for operators: replay of raw webhooks."""

import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Annotated, Self

from aiokafka import AIOKafkaConsumer, TopicPartition
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator
from sendwhy.events import Moment
from sendwhy.http import Body, IdempotencyKey, Operator, body_schema, json_body, once
from sendwhy.problems import Problem
from sendwhy.service import Runtime
from sendwhy.stage import Record
from sendwhy.topics import EVENT_RETENTION_DAYS

from webhook_ingest.decide import Change, MessageKey, Shown, followed
from webhook_ingest.elements import Delivery
from webhook_ingest.parsing import Replayed, apply, delivery_of, hold_in_outbox
from webhook_ingest.settings import Settings
from webhook_ingest.stored import KafkaIsSlow, batches_of, span_of, stored

SPAN_MAX = timedelta(hours=24)
RETENTION = timedelta(days=EVENT_RETENTION_DAYS + 1)
CHANGES_SHOWN = 500
CHANGES_KEPT = 20_000
# Below the server's idle-in-transaction limit, within which the Idempotency-Key's row is held.
BUDGET_SECONDS = 40.0

DeliveryId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class ReplayRequest(Body):
    """A span of time by which Kafka stored the deliveries (`to` is exclusive), at most 24 hours; or the one delivery
    with that `delivery_id` (the SHA-256 of its body), which a span around it makes quick to find."""

    since: Moment | None = Field(default=None, alias="from")
    to: Moment | None = None
    delivery_id: DeliveryId | None = None

    @model_validator(mode="after")
    def _says_what(self) -> Self:
        if (self.since is None) != (self.to is None):
            raise ValueError("from and to belong together")
        if self.since is None and self.delivery_id is None:
            raise ValueError("needs from and to, or delivery_id")
        return self


class ShownState(BaseModel):
    """What people see of a message; both null: it was not known to be ours."""

    status: str | None
    reason: str | None


class ChangedMessage(BaseModel):
    """A message that stands differently: `from` as it was, `to` as it is, or in a dry run would be."""

    model_config = ConfigDict(populate_by_name=True)

    message_id: str | None
    sender_id: str
    provider_message_id: str
    before: ShownState = Field(serialization_alias="from")
    after: ShownState = Field(serialization_alias="to")


class ReplayAnswer(BaseModel):
    """`deliveries`: read again. `emitted`: new events by topic; what stands already says nothing. `changes`: the first
    500 of `changes_count` messages. `complete` false: time ran out; ask again with `from` set to `next_from`."""

    dry_run: bool
    deliveries: int
    emitted: dict[str, int]
    changes_count: int
    changes: list[ChangedMessage]
    complete: bool
    next_from: datetime | None


def routes(runtime: Runtime, settings: Settings) -> APIRouter:
    router = APIRouter()
    apps = frozenset(settings.app_secrets)

    @router.post(
        "/v1/workspaces/{w}/webhooks/replay", response_model=ReplayAnswer, openapi_extra=body_schema(ReplayRequest)
    )
    async def replay(
        caller: Operator,
        body: Annotated[ReplayRequest, json_body(ReplayRequest)],
        request: Request,
        key: IdempotencyKey = None,
        dry_run: Annotated[bool, Query()] = False,
    ) -> Response:
        """Parse this workspace's raw webhooks again: what is now read better than it was comes out as new events, what
        stands already says nothing. A dry run stores and emits nothing, and lists which messages would change."""
        now = datetime.now(UTC)
        since, to = body.since or now - RETENTION, body.to or now
        if since >= to or (body.delivery_id is None and to - since > SPAN_MAX):
            raise Problem(
                422, "The span must be longer than nothing and at most 24 hours.", errors={"to": "out of range"}
            )
        span = Replay(runtime, apps, Replayed(caller.workspace, now), delivery_id=body.delivery_id, dry_run=dry_run)

        async def act() -> tuple[int, bytes]:
            try:
                answer = await span.run(since, to)
            except KafkaIsSlow:
                raise Problem(503, "Kafka did not give the records in time; ask again.") from None
            return 200, answer.model_dump_json(by_alias=True).encode()

        async with runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            return await once(connection, request, caller, key, act)

    return router


class _DryRun(Exception):
    pass


class Replay:
    """One replay, of a span or of one delivery in it."""

    def __init__(
        self, runtime: Runtime, apps: frozenset[str], replayed: Replayed, *, delivery_id: str | None, dry_run: bool
    ) -> None:
        self._runtime, self._apps, self._replayed, self._dry_run = runtime, apps, replayed, dry_run
        self._key = None if delivery_id is None else delivery_id.encode()
        self._emitted: Counter[str] = Counter()
        self._changes: dict[MessageKey, Change] = {}
        self._deliveries = 0

    async def run(self, since: datetime, to: datetime) -> ReplayAnswer:
        stops: list[datetime] = []
        end = time.monotonic() + BUDGET_SECONDS
        async with stored(self._runtime.settings) as (consumer, places):
            for place in places:
                first, last = await span_of(consumer, place, since, to)
                stops += await self._read(consumer, place, first, last, end)
        is_found = self._key is not None and self._deliveries > 0
        changed = [change for change in self._changes.values() if change.before != change.after]
        return ReplayAnswer(
            dry_run=self._dry_run,
            deliveries=self._deliveries,
            emitted=dict(self._emitted),
            changes_count=len(changed),
            changes=[_changed(change) for change in changed[:CHANGES_SHOWN]],
            complete=is_found or not stops,
            next_from=max(since, min(stops)) if stops and not is_found else None,
        )

    async def _read(
        self, consumer: AIOKafkaConsumer, place: TopicPartition, first: int, last: int, end: float
    ) -> list[datetime]:
        """Replay offsets `first` to before `last`; returns where it had to stop if time or room ran out."""
        async for records in batches_of(consumer, place, first, last):
            if self._key is not None and self._deliveries:
                return []
            if records and (time.monotonic() > end or len(self._changes) > CHANGES_KEPT):
                return [records[0].at]
            # Meta repeats the same bytes: one of them says all.
            wanted = records if self._key is None else [one for one in records if one.key == self._key][:1]
            if wanted:
                await self._apply(_deliveries(wanted))
        return []

    async def _apply(self, deliveries: list[Delivery]) -> None:
        with suppress(_DryRun):
            async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                outcome = await apply(connection, deliveries, self._apps, replayed=self._replayed)
                await hold_in_outbox(connection, outcome)
                self._deliveries += len(deliveries)
                self._emitted.update(str(record.topic) for _, record in outcome.from_outbox)
                for key, change in outcome.changes.items():
                    self._changes[key] = followed(self._changes.get(key), change)
                if self._dry_run:
                    raise _DryRun
            self._runtime.publish_soon()
            outcome.count(self._runtime.metrics)


def _deliveries(records: Sequence[Record[None]]) -> list[Delivery]:
    """What the door wrote; anything else on the topic is in dead.letters already."""
    found = []
    for record in records:
        with suppress(ValueError):
            found.append(delivery_of(record))
    return found


def _changed(change: Change) -> ChangedMessage:
    message = change.message
    return ChangedMessage(
        message_id=message.message_id,
        sender_id=message.sender_id,
        provider_message_id=message.wamid,
        before=_shown(change.before),
        after=_shown(change.after),
    )


def _shown(shown: Shown) -> ShownState:
    return ShownState(status=shown.status, reason=shown.reason)
