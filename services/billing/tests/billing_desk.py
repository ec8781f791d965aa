"""Events as other services publish them, and a desk: billing's handlers on a database."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import NAMESPACE_URL, uuid5

import asyncpg
from billing import books, store
from billing.decide import Told, top_up
from billing.stages import Funder, Settler
from sendwhy.events import (
    Origin,
    OriginKind,
    Purpose,
    Resolved,
    SendConsented,
    SenderUpdated,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    TemplateUpdated,
    To,
    Wire,
    reason,
)
from sendwhy.metrics import Metrics
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic, topic_of

Handler = Callable[[Any, Sequence[Record[Any]]], Awaitable[Sequence[Outgoing]]]
NOW = datetime(2026, 11, 22, 10, tzinfo=UTC)
TEXT = {"type": "text", "text": {"body": "hi"}}
TEMPLATE = {"type": "template", "template": {"name": "sale", "language": {"code": "en_US"}}}


def consented(message_id: str, workspace: str = "w", **request: Any) -> SendConsented:
    fields: dict[str, Any] = {
        "to": To(phone="+525512345678"),
        "origin": Origin(kind=OriginKind.CAMPAIGN, id="black-friday"),
        "content": TEXT,
        "requested_at": NOW,
        "metadata": {"order": "4711"},
    }
    return SendConsented(
        event_id=uuid5(NAMESPACE_URL, f"consented/{workspace}/{message_id}"),
        occurred_at=NOW,
        request=SendRequested(message_id=message_id, workspace_id=workspace, **(fields | request)),
        resolved=Resolved(phone="+525512345678", calling_code="52", purpose=Purpose.MARKETING),
        contact_version=3,
        needs_subscription=True,
        send_at=NOW,
        expires_at=NOW + timedelta(hours=48),
    )


def status(message_id: str, status: Status, workspace: str = "w", code: ReasonCode | None = None) -> StatusUpdated:
    return StatusUpdated(
        event_id=uuid5(NAMESPACE_URL, f"{status}/{workspace}/{message_id}"),
        occurred_at=NOW,
        observed_at=NOW,
        message_id=message_id,
        workspace_id=workspace,
        service=Service.WEBHOOK_INGEST,
        status=status,
        reason=None if code is None else reason(code, "so"),
    )


def rejected(
    message_id: str, code: ReasonCode, workspace: str = "w", service: Service = Service.DISPATCHER
) -> SendRejected:
    return SendRejected(
        event_id=uuid5(NAMESPACE_URL, f"rejected/{workspace}/{message_id}"),
        occurred_at=NOW,
        message_id=message_id,
        workspace_id=workspace,
        service=service,
        reason=reason(code, "so"),
    )


def sender(sender_id: str, workspace: str, *, waba: str, default: bool, version: int = 1) -> SenderUpdated:
    return SenderUpdated(
        event_id=uuid5(NAMESPACE_URL, f"{sender_id}/{version}"),
        occurred_at=NOW,
        sender_id=sender_id,
        workspace_id=workspace,
        version=version,
        waba_id=waba,
        default=default,
    )


def template(waba: str, name: str, category: str, *, version: int = 1) -> TemplateUpdated:
    return TemplateUpdated(
        event_id=uuid5(NAMESPACE_URL, f"{waba}/{name}/{version}"),
        occurred_at=NOW,
        waba_id=waba,
        name=name,
        language="en_US",
        version=version,
        status="APPROVED",
        category=category,
        parameter_format="POSITIONAL",
        components=[],
        said_by="sync",
        said_at=NOW,
    )


def record(event: Any, topic: Topic | None = None, key: str | None = None) -> Record[Any]:
    """A record as the stage loop hands it over; without an event a tombstone."""
    where = topic or topic_of(type(event))
    value = event.to_json() if isinstance(event, Wire) else None
    return Record(event, where, 0, 0, NOW, None if key is None else key.encode(), value, (("traceparent", b"00-1"),))


def verdict_is_paid(told: set[Told]) -> bool:
    """The contract's reading rule, over everything that was ever told of a message."""
    if Told.DELIVERED in told:
        return True
    if Told.SENT in told:
        return Told.FAILED not in told
    return not told & {Told.FAILED, Told.REJECTED}


class Desk:
    """billing's handlers, each call one transaction as in the stage loop."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.metrics = Metrics(Service.BILLING)
        self.on_consented = Funder(self.metrics).on_consented
        self.settler = Settler(self.metrics)

    async def run(self, handle: Handler, records: Sequence[Record[Any]]) -> Sequence[Outgoing]:
        async with self.pool.acquire() as connection, connection.transaction():
            return await handle(connection, records)

    async def fund(self, *requests: SendConsented) -> Sequence[Outgoing]:
        return await self.run(self.on_consented, [record(event) for event in requests])

    async def tell(self, *told: StatusUpdated | SendRejected) -> Sequence[Outgoing]:
        """One batch: statuses, or else rejections."""
        handle: Handler = self.settler.on_status if isinstance(told[0], StatusUpdated) else self.settler.on_rejected
        return await self.run(handle, [record(event) for event in told])

    async def give(self, credits: int, workspace: str = "w") -> None:
        async with self.pool.acquire() as connection, connection.transaction():
            accounts = await store.lock_or_open_accounts(connection, [workspace])
            account, entry = top_up(accounts[workspace], credits, reference="r", actor="a")
            await store.add_entries(connection, [entry], at=datetime.now(UTC))
            await store.save_accounts(connection, [account])

    async def mismatches(self) -> int:
        async with self.pool.acquire() as connection:
            found = await books.mismatches(connection)
            await books.roll_up(connection)
            assert await books.mismatches(connection) == found
            return found

    async def balance(self, workspace: str = "w") -> int:
        """The balance, once all are proven to be the sum of their ledgers."""
        assert await self.mismatches() == 0
        return int(await self.pool.fetchval("select balance from account where workspace_id = $1", workspace))

    async def booked(self, message_id: str) -> list[tuple[str, int]]:
        rows = await self.pool.fetch(
            "select kind, amount from ledger where message_id = $1 order by version", message_id
        )
        return [(row["kind"], row["amount"]) for row in rows]
