"""PostgreSQL: the pool, migrations, and the four tables that every service has (migrations/0000_common.sql).

Nothing here wraps a transaction in a timeout of ours: cancelling during COMMIT can hang asyncpg
(reliability-security.md, section c). The server's own timeouts end what takes too long.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
from asyncpg.pool import PoolConnectionProxy
from asyncpg.protocol import protocol

from sendwhy.tenancy import changed, guard_rows, read_rights
from sendwhy.topics import Outgoing, Topic
from sendwhy.values import value_class

Connection = asyncpg.Connection | PoolConnectionProxy
# What may be passed as an array. asyncpg asks two abstract classes of each element whether it is an array in its turn,
# which takes a tenth of all that a stage does: two types answer in a third of the time.
for _name in ("IterableABC", "SizedABC"):
    setattr(protocol, _name, (list, tuple))

_PARAMETER = re.compile(r"\$(\d+)")
COMMON_MIGRATIONS = Path(__file__).parent / "migrations"
MIGRATION_LOCK = 0x53454E44
SERVER_SETTINGS = {
    "statement_timeout": "30s",
    "lock_timeout": "10s",
    "idle_in_transaction_session_timeout": "60s",
    "tcp_user_timeout": "30s",
    # Whatever the server's own is: a mark "in flight" that vanished in a crash would let a message go out twice.
    "synchronous_commit": "on",
    "timezone": "UTC",
}
# For a service that looks up batches by their keys in tables split by a hash of these (ADR 47). PostgreSQL adds up what
# it costs to look into each part, though each key is looked for in one of them, and takes all that isn't in its memory
# now for lying on a disk: so it reads whole tables, or whole indexes, for a batch of fifty.
KEYED_LOOKUPS = {"random_page_cost": "0.05", "cpu_operator_cost": "0.0001"}
# What a repeat of the same statement may get past: connections, resources, locks, an operator, a stale plan.
TRANSIENT_ERRORS: tuple[type[Exception], ...] = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
    asyncpg.InterfaceError,
    asyncpg.InvalidCachedStatementError,
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.TransactionTimeoutError,
    # What asyncpg makes of the server's last word to a session that was silent for too long, if a statement meets it.
    asyncpg.InternalClientError,
)
# What the database refuses because of the data itself (SQLSTATE classes 22, 23 and 54): the guilty row is put aside. Of
# class 54 is a row that no page of an index has room for.
DATA_ERRORS: tuple[type[BaseException], ...] = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.UntranslatableCharacterError,
    UnicodeEncodeError,
)


async def connect_pool(
    url: str, *, service: str, size: int = 10, server_settings: Mapping[str, str] = SERVER_SETTINGS
) -> asyncpg.Pool:
    pool: asyncpg.Pool = await asyncpg.create_pool(
        url,
        min_size=1,
        max_size=size,
        timeout=10,
        command_timeout=60,
        reset=leave_as_it_is,
        server_settings={**server_settings, "application_name": f"sendwhy-{service}"},
    )
    return pool


async def leave_as_it_is(_connection: asyncpg.Connection) -> None:
    """Before a connection goes back to the pool. asyncpg has rolled back what was open; beyond its transactions nothing
    of ours sets, locks or listens to anything in a session of the pool (fleet.py has connections of its own for that).
    asyncpg's own way is four statements more for every batch, to reset what is as it was."""


async def time_of(connection: Connection) -> datetime:
    """The database's clock. By it, and not by this machine's, goes what can't be taken back: what is deleted for its
    age, or given up. One machine's clock may be weeks off."""
    at: datetime = await connection.fetchval("select clock_timestamp()")
    return at


async def migrate(url: str, folder: Path) -> list[str]:
    """Apply the common and the service's migrations that are not applied yet, in order of name; returns their names.

    One transaction a file, one migrator at a time. Then the rows are guarded as the folder's rights say (tenancy.py).
    Raises RuntimeError, which names the file, if one fails or was changed after it had been applied.
    """
    files = [*sorted(COMMON_MIGRATIONS.glob("*.sql")), *sorted(folder.glob("*.sql"))]  # noqa: ASYNC240 - once, at deploy
    connection = await asyncpg.connect(url, timeout=30)
    try:
        await connection.execute("select pg_advisory_lock($1)", MIGRATION_LOCK)
        await connection.execute(
            "create table if not exists migration"
            " (name text primary key, digest text not null, applied_at timestamptz not null default now())"
        )
        rows = await connection.fetch("select name, digest from migration")
        known = {row["name"]: row["digest"] for row in rows}
        applied = [file.name for file in files if await _apply(connection, file, known.get(file.name))]
        if (rights := read_rights(folder)) is not None:
            await guard_rows(connection, rights)
        return applied
    finally:
        await connection.close()


async def _apply(connection: asyncpg.Connection, file: Path, applied_digest: str | None) -> bool:
    script = file.read_bytes()  # noqa: ASYNC240 - once, at deploy
    digest = hashlib.sha256(script).hexdigest()
    if applied_digest is not None:
        if applied_digest != digest:
            raise RuntimeError(f"{file.name} was changed after it had been applied; add a new migration instead")
        return False
    noted = f"insert into migration (name, digest) values ('{file.name}', '{digest}')"  # noqa: S608 - both are ours
    try:
        await changed(connection, script.decode(), noted)
    except asyncpg.PostgresError as error:
        # Without its words, which hold the values of rows.
        raise RuntimeError(f"{file.name} failed, nothing of it stands: {type(error).__name__}") from error
    return True


# An insert, update or delete with its values.
Write = tuple[str, Sequence[Any]]


def rows_locked(columns: str, table: str, keys: tuple[str, str], where: str = "true") -> str:
    """A statement for rows of the table, which it calls m, by two arrays of their keys: each row is locked by a query
    of its own, in the order of the keys. A join of the two, sorted and then locked, loses rows of a partitioned table
    that another transaction changes meanwhile: PostgreSQL (18.4) looks at their new version only in the partition that
    the join looked into last."""
    first, second = keys
    return f"""
select {columns} from unnest($1::text[], $2::text[]) as asked({first}, {second})
cross join lateral (
    select * from {table} where {first} = asked.{first} and {second} = asked.{second} and {where} for update
) m
"""  # noqa: S608 - of constants


async def write_together(connection: Connection, *writes: Write, told: str = "select") -> list[asyncpg.Record]:
    """Several statements in one go; none sees what another does, and no row may be written by two of them. `told`: a
    query for what they return, the first one as write_0."""
    values = [value for _, each in writes for value in each]
    rows = await connection.fetch(_together(tuple(statement for statement, _ in writes), told), *values)
    return list(rows)


@cache
def _together(statements: tuple[str, ...], told: str) -> str:
    parts: list[str] = []
    taken = 0
    for name, statement in enumerate(statements):
        numbers = [int(number) for number in _PARAMETER.findall(statement)]
        shifted = _PARAMETER.sub(lambda found, by=taken: f"${int(found[1]) + by}", statement)  # type: ignore[misc]
        parts.append(f"write_{name} as ({shifted})")
        taken += max(numbers)
    return f"with {', '.join(parts)} {told}"


@value_class
class Decision:
    """What a stage decided on a message: the event it leads to. `step` tells a second decision from the first."""

    workspace_id: str
    message_id: str
    step: str
    event_id: UUID
    outgoing: Outgoing
    prune_after: datetime


_DECISIONS_OF = """
select d.workspace_id, d.message_id, d.topic, d.key, d.body, d.headers
from unnest($2::text[], $3::text[]) as asked(workspace_id, message_id)
join decision d on d.workspace_id = asked.workspace_id and d.message_id = asked.message_id and d.step = $1
"""

_ADD_DECISIONS = """
insert into decision (workspace_id, message_id, step, event_id, topic, key, body, headers, prune_after)
select * from unnest($1::text[], $2::text[], $3::text[], $4::uuid[], $5::text[], $6::bytea[], $7::bytea[],
                     $8::bytea[], $9::timestamptz[])
on conflict do nothing
returning workspace_id, message_id
"""

MessageKey = tuple[str, str]


async def decisions_of(connection: Connection, step: str, messages: Iterable[MessageKey]) -> dict[MessageKey, Outgoing]:
    """The events that already stand for these messages, by (workspace_id, message_id)."""
    keys = list(dict.fromkeys(messages))
    rows = await connection.fetch(_DECISIONS_OF, step, [key[0] for key in keys], [key[1] for key in keys])
    return {(row["workspace_id"], row["message_id"]): stored(row) for row in rows}


async def add_decisions(connection: Connection, decisions: Sequence[Decision]) -> set[MessageKey]:
    """Store decisions of one batch; returns the messages for which none stood before.

    For the others the caller reads what stands with `decisions_of`, in a second statement: within this one a row
    that was committed meanwhile would not be visible.
    """
    statement, columns = decisions_added(decisions)
    added = await connection.fetch(statement, *columns)
    return {(row["workspace_id"], row["message_id"]) for row in added}


def decisions_added(decisions: Sequence[Decision]) -> Write:
    """As `add_decisions`, to be written together with what belongs to them."""
    # Sorted, so that two replicas that meet on the same messages can't lock each other out.
    rows = sorted(decisions, key=lambda decision: (decision.workspace_id, decision.message_id, decision.step))
    return _ADD_DECISIONS, (
        [row.workspace_id for row in rows],
        [row.message_id for row in rows],
        [row.step for row in rows],
        [row.event_id for row in rows],
        [str(row.outgoing.topic) for row in rows],
        [row.outgoing.key for row in rows],
        [row.outgoing.value for row in rows],
        [_pack(row.outgoing) for row in rows],
        [row.prune_after for row in rows],
    )


_ADD_TO_OUTBOX = """
insert into outbox (event_id, topic, key, body, headers)
select * from unnest($1::uuid[], $2::text[], $3::bytea[], $4::bytea[], $5::bytea[])
on conflict do nothing
"""

_UNPUBLISHED = """
select event_id, topic, key, body, headers from outbox
where created_at < clock_timestamp() - make_interval(secs => $1)
order by created_at limit $2
"""


async def add_to_outbox(connection: Connection, events: Sequence[tuple[UUID, Outgoing]]) -> None:
    """Remember events that no Kafka record stands behind, until `mark_published`; the sweep publishes the rest."""
    await connection.execute(_ADD_TO_OUTBOX, *outbox_columns(events))


def outbox_columns(events: Sequence[tuple[UUID, Outgoing]]) -> tuple[list[Any], ...]:
    """The columns event_id, topic, key, body and headers of these rows of the outbox."""
    return (
        [event_id for event_id, _ in events],
        [str(record.topic) for _, record in events],
        [record.key for _, record in events],
        [record.value for _, record in events],
        [_pack(record) for _, record in events],
    )


async def unpublished(connection: Connection, *, older_than_seconds: float, limit: int) -> dict[UUID, Outgoing]:
    rows = await connection.fetch(_UNPUBLISHED, older_than_seconds, limit)
    return {row["event_id"]: stored(row) for row in rows}


async def mark_published(connection: Connection, event_ids: Iterable[UUID]) -> None:
    await connection.execute("delete from outbox where event_id = any($1::uuid[])", list(event_ids))


_REACHED = """
insert into reached (consumer_group, topic, partition, next_offset)
select $1, * from unnest($2::text[], $3::int[], $4::bigint[])
on conflict (consumer_group, topic, partition)
do update set next_offset = greatest(reached.next_offset, excluded.next_offset)
"""

Position = tuple[str, int]


async def store_reached(connection: Connection, group: str, next_offsets: dict[Position, int]) -> None:
    """Note in the caller's transaction how far each (topic, partition) has been handled."""
    positions = sorted(next_offsets)
    await connection.execute(
        _REACHED,
        group,
        [topic for topic, _ in positions],
        [partition for _, partition in positions],
        [next_offsets[position] for position in positions],
    )


async def load_reached(connection: Connection, group: str) -> dict[Position, int]:
    rows = await connection.fetch("select topic, partition, next_offset from reached where consumer_group = $1", group)
    return {(row["topic"], row["partition"]): row["next_offset"] for row in rows}


PRUNE_AT_ONCE = 5000


async def delete_in_steps(
    connection: Connection, statement: str, *values: object, at_once: int = PRUNE_AT_ONCE, at_most: int | None = None
) -> int:
    """Run a `delete` whose last parameter is how many rows it may take, until none are left or `at_most` steps are
    done; returns how many rows went."""
    gone = 0
    for _ in count() if at_most is None else range(at_most):
        async with connection.transaction():
            # A plan for whatever values reads whole tables for the few rows that are due.
            await connection.execute("set local plan_cache_mode = force_custom_plan")
            step = int((await connection.execute(statement, *values, at_once)).removeprefix("DELETE "))
        gone += step
        if step < at_once:
            break
    return gone


_PRUNE_KEYS = """
delete from idempotency_key where ctid = any(array(
    select ctid from idempotency_key where created_at < clock_timestamp() - interval '7 days' limit $1))
"""
_PRUNE_DECISIONS = """
delete from decision where (workspace_id, message_id, step) in
 (select workspace_id, message_id, step from decision where prune_after < clock_timestamp() limit $1)
"""


async def prune(connection: Connection) -> int:
    """Forget what no repeat can ask for any more: old Idempotency-Keys, and decisions past their `prune_after`; returns
    how many rows went."""
    keys = await delete_in_steps(connection, _PRUNE_KEYS)
    return keys + await delete_in_steps(connection, _PRUNE_DECISIONS)


_UNIT, _RECORD = b"\x1f", b"\x1e"


def _pack(record: Outgoing) -> bytes:
    return _RECORD.join(name.encode() + _UNIT + value for name, value in record.headers)


def stored(row: asyncpg.Record) -> Outgoing:
    """The record in a row's columns topic, key, body and headers."""
    pairs = (part.partition(_UNIT) for part in row["headers"].split(_RECORD) if part)
    headers = tuple((name.decode(), value) for name, _, value in pairs)
    return Outgoing(Topic(row["topic"]), row["key"], row["body"], headers)
