"""`python -m message_log rebuild`: empties what is folded from the topics, and has them read from the beginning."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from aiokafka.errors import KafkaError
from asyncpg import LockNotAvailableError
from fastapi import FastAPI
from sendwhy.logs import describe
from sendwhy.postgres import Connection, connect_pool
from sendwhy.service import Runtime
from sendwhy.topics import EVENT_RETENTION_DAYS

CONFIRMATION = "--yes"
# Every table of the database stands in one of the three (a test compares them with what there is).
DERIVED = (
    "message",
    "event",
    "event_of",
    "webhook",
    "webhook_part",
    "inbound",
    "known_state",
    "sender",
    "hold",
    "calling_code_seen",
)
# A trigger empties them with `message`.
CELLS = ("message_cell", "message_hour", "message_cell_change")
# Who may log in, what people did, what is still to be published, which requests were answered, and whose data must not
# come back: an order to erase may have left its topic before the last of what it erased.
KEPT = (
    "account",
    "account_role",
    "audience",
    "audience_line",
    "audit",
    "decision",
    "erased_person",
    "idempotency_key",
    "migration",
    "outbox",
    "reached",
    "resend",
    "session",
)

log = structlog.get_logger("sendwhy")


@dataclass(frozen=True, slots=True)
class Lost:
    """Messages that the topics no longer tell of: `count` of them, asked for before `before`."""

    count: int
    before: datetime


class StillRunning(Exception):
    """A replica of the message log reads the topics or writes the tables."""


_LOST = "select count(*) from message where at < $1"
_MARKS = "select workspace_id, message_id, erased_at from message where erased_at is not null"
_SET_MARKS = """
insert into message (workspace_id, message_id, erased_at)
select * from unnest($1::text[], $2::text[], $3::timestamptz[])
"""


async def lost_by(connection: Connection, now: datetime) -> Lost:
    before = now - timedelta(days=EVENT_RETENTION_DAYS)
    return Lost(await connection.fetchval(_LOST, before), before)


async def rebuild(runtime: Runtime, connection: Connection) -> None:
    """Empty the derived tables and set the offsets to the beginning. Raises StillRunning, and has changed nothing but
    perhaps offsets, which only lets what is known be read again."""
    try:
        async with connection.transaction():
            await connection.execute("set local statement_timeout = 0")
            # Locked first: no mark is set between the reading of them and the end.
            await connection.execute("lock table message in access exclusive mode")
            marks = await connection.fetch(_MARKS)
            await connection.execute(f"truncate {', '.join(DERIVED)}")
            names = ("workspace_id", "message_id", "erased_at")
            await connection.execute(_SET_MARKS, *([mark[name] for mark in marks] for name in names))
            await connection.execute("delete from reached where consumer_group = $1", runtime.group)
            # Last, and within the transaction: a replica that starts now waits for the tables, then reads from there.
            await runtime.read_from_the_beginning()
    except (KafkaError, LockNotAvailableError, TimeoutError) as error:
        raise StillRunning(describe(error)) from error


async def rebuild_command(app: FastAPI, words: Sequence[str]) -> int:
    runtime: Runtime = app.state.runtime
    pool = await connect_pool(runtime.settings.database_url.get_secret_value(), service=runtime.service)
    try:
        async with pool.acquire() as connection:
            lost = await lost_by(connection, datetime.now(UTC))
            if list(words) != [CONFIRMATION]:
                log.error(
                    "nothing was done: a rebuilt log knows only what the topics still hold",
                    messages_lost=lost.count,
                    asked_for_before=f"{lost.before:%Y-%m-%d}",
                    remedy=f"`python -m message_log rebuild {CONFIRMATION}`, with no replica running",
                )
                return 2
            await rebuild(runtime, connection)
    except StillRunning as error:
        log.error(
            "nothing was rebuilt: a replica still runs, or Kafka doesn't answer",
            error=str(error),
            remedy="stop all replicas of the message log, wait until Kafka has noticed (10 s), and repeat",
        )
        return 1
    finally:
        await pool.close()
    log.info("the log is empty; start it, and it reads the topics from the beginning", messages_lost=lost.count)
    return 0
