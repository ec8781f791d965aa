"""What a million waiting messages cost the others: time and pages of the statements that a driver and the timers run.

    .venv/bin/python tests/bench/waiting.py --counts 1000 100000 1000000

For each kind of waiting and each count, the queue is filled with that many of the kind, and one message of another kind
becomes due at the same sender. Printed, never asserted: the best of five runs of each statement, with EXPLAIN (ANALYZE,
BUFFERS): milliseconds and pages of 8 kB; and the claim as its driver sees it, with the way there and back. Only
PostgreSQL is needed; it is started in a directory of its own.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import dispatcher
from dispatcher import claims, queue_store, store
from dispatcher.decide import Lane, Message, Waiting
from dispatcher.queue_store import NewMessage
from dispatcher.store import NewSender
from local_stack.postgres import Postgres
from rich.console import Console
from rich.table import Table
from sendwhy.events import Price, Purpose, Resolved, SendFunded, SendRequested, event_id_of
from sendwhy.postgres import migrate

SENDER, OTHER = "100000000000777", "100000000000778"
RUNS = 5
console = Console(width=170)

# What differs from a message that is due in the last lane.
KINDS: Mapping[str, str] = {
    "nothing": "",
    "later, first lane": "lane = 0, not_before = now() + interval '1 hour'",
    "sender held": "sender_id = '100000000000778'",
    "campaign paused": "line = 'cpaused', campaign_id = 'paused'",
    "throttled, a place now": "line = 'cslow', campaign_id = 'slow'",
    "throttled, used up": "line = 'cslow', campaign_id = 'slow', waiting_for = 'throttle', told = '{throttle}'",
    "messaging limit": "waiting_for = 'tier', not_before = now() + interval '1 day'",
    "sent, not vacuumed": "state = 'accepted'",
}


def message(message_id: str, lane: Lane, now: datetime) -> NewMessage:
    body = {
        "message_id": message_id,
        "workspace_id": "bench",
        "to": {"contact_id": f"c-{message_id}", "phone": "+525512345678"},
        "origin": {"kind": "campaign", "id": "black-friday"},
        "content": {"type": "text", "text": {"body": "The autumn collection is here. " * 8}},
        "requested_at": now.isoformat(),
    }
    funded = SendFunded(
        event_id=event_id_of(message_id, "funded"),
        occurred_at=now,
        request=SendRequested.model_validate_json(json.dumps(body)),
        resolved=Resolved(contact_id=f"c-{message_id}", phone="+525512345678", purpose=Purpose.MARKETING),
        needs_subscription=True,
        send_at=now,
        expires_at=now + timedelta(hours=48),
        price=Price(credits=1, category="marketing"),
    )
    return NewMessage(Message(funded, SENDER, lane, now), "black-friday", "waiting", None)


_COPY = """
insert into message (workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription,
                     not_before, expires_at, queued_at, state, funded)
select workspace_id, message_id || n, sender_id, lane, campaign_id, contact_id || n, phone, needs_subscription,
       not_before - interval '1 minute' + n * interval '1 microsecond', expires_at, queued_at, state, funded
from message, generate_series($1::int, $2::int) n where message_id = 'seed'
"""


async def fill(connection: asyncpg.Connection, kind: str, count: int) -> None:
    now = datetime.now(UTC)
    await connection.execute("truncate message, campaign, campaign_use, sweep")
    await queue_store.pause_campaign(connection, "bench", "paused", now)
    await queue_store.put_throttle(connection, "bench", "slow", 600, 20_000)
    if kind == "throttled, used up":
        await connection.execute(
            "update campaign set next_slot_at = now() + interval '1 day' where campaign_id = 'slow'"
        )
    await queue_store.add_messages(connection, [message("seed", Lane.MARKETING, now)])
    for start in range(0, count, 50_000):
        await connection.execute(_COPY, start, min(count, start + 50_000) - 1)
    await connection.execute("delete from message where message_id = 'seed'")
    if KINDS[kind]:
        if kind != "sent, not vacuumed":
            # As they would have come in: without the traces of a change.
            await connection.execute(f"update message set {KINDS[kind]}")
            await connection.execute("vacuum analyze message")
        else:
            await connection.execute("vacuum analyze message")
            await connection.execute(f"update message set {KINDS[kind]}")
    else:
        await connection.execute("vacuum analyze message")
    await queue_store.add_messages(connection, [message("due", Lane.TRANSACTIONAL, now)])


class Explained:
    """A connection whose reads are explained, so that what is measured is what the dispatcher runs."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.milliseconds, self.pages = 0.0, 0

    async def fetch(self, query: str, *values: Any) -> list[Any]:
        found: list[Any] = await self.connection.fetch(query, *values)
        plan = json.loads(await self.connection.fetchval(f"explain (analyze, buffers, format json) {query}", *values))[
            0
        ]
        self.milliseconds += plan["Execution Time"]
        self.pages += plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"]
        return found

    fetchrow = fetch

    async def execute(self, query: str, *values: Any) -> str:
        await self.fetch(query, *values)
        return ""


async def best(connection: asyncpg.Connection, statement: Any) -> str:
    took = []
    for _ in range(RUNS):
        transaction = connection.transaction()
        await transaction.start()
        explained = Explained(connection)
        await statement(explained)
        took.append((explained.milliseconds, explained.pages))
        await transaction.rollback()
    milliseconds, pages = min(took)
    return f"{milliseconds:.2f} ms, {pages:,} p"


async def median_wall(connection: asyncpg.Connection, statement: Any) -> str:
    """As a driver runs it, over and over on one connection, by when PostgreSQL plans without looking at values."""
    took = []
    for _ in range(21):
        async with connection.transaction():
            started = time.perf_counter()
            await statement(connection)
            took.append(time.perf_counter() - started)
    return f"{sorted(took)[10] * 1000:.2f} ms"


def statements(now: datetime) -> dict[str, Any]:
    async def claim(connection: Any) -> None:
        held = await claims.hold_fence(connection, SENDER, 0)
        assert held is not None
        lines = await claims.open_lines(connection, "bench", held[1], now, 10)
        await claims.lock_due(connection, SENDER, now, limit=10, lines=lines)

    return {
        "claim": claim,
        "places": lambda one: claims.lock_tier_waits(one, SENDER, 1),
        "expiry": lambda one: queue_store.lock_expired(one, now, 500),
        "gauges": lambda one: queue_store.queue_by_cause(one, None, now),
        "wake": lambda one: queue_store.wake_waiting(one, list(Waiting), sender_id=SENDER),
        "a person's": lambda one: queue_store.lock_waiting_of_contacts(one, [("bench", "c-seed5")]),
        "cancel, a step": lambda one: queue_store.lock_some_of_campaign(one, ("bench", "black-friday"), 1_000),
        "pause": lambda one: queue_store.pause_campaign(one, "bench", "black-friday", now),
    }


async def main(counts: list[int]) -> None:
    async with Postgres(Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))) as postgres:
        url = await postgres.ensure_database("dispatcher")
        await migrate(url, Path(dispatcher.__file__).parent / "migrations")
        connection = await asyncpg.connect(url, command_timeout=900)
        for sender_id in (SENDER, OTHER):
            new = NewSender(sender_id, "bench", "300", "200", None, sender_id == SENDER, b"sealed")
            await store.put_sender(connection, new, datetime.now(UTC))
        table = Table(
            "kind of waiting", "messages", "claim, as seen", *statements(datetime.now(UTC)), title="Best of five"
        )
        for kind in KINDS:
            for count in counts:
                await fill(connection, kind, count)
                now = datetime.now(UTC) + timedelta(seconds=1)
                asked = statements(now)
                cells = [await median_wall(connection, asked["claim"])]
                cells += [await best(connection, one) for one in asked.values()]
                console.print(kind, f"{count:,}", *cells, sep=" | ")
                table.add_row(kind, f"{count:,}", *cells)
        console.print(table)
        await connection.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 100_000, 1_000_000])
    asyncio.run(main(parser.parse_args().counts))
