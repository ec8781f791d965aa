"""The tables of imports. Every function works inside the caller's transaction, with one statement a table and batch."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
from pydantic_core import from_json, to_json
from sendwhy.postgres import Connection

from consent.import_job import Job

KEPT = timedelta(days=30)
# A process renews its imports' `heard_at` four times within this.
DEAD_AFTER = timedelta(seconds=20)
PRUNE_ROWS = 10_000
SHOWN = 100
INTERRUPTED = (
    "interrupted: the process that ran it ended. Send the file again: rows that are in already change nothing."
)

_ADD = """
insert into contact_import (import_id, workspace_id, state, key, digest, by, about, started_at)
values ($1, $2, 'waiting', $3, $4, $5, $6, $7)
on conflict (workspace_id, key) where state in ('waiting', 'running') do nothing returning *
"""
_WITHDRAW = "delete from contact_import where import_id = $1 and state = 'waiting'"
_TWIN = """
select * from contact_import where workspace_id = $1 and key = $2 and state in ('waiting', 'running')
"""
_CLAIM = """
update contact_import i set state = 'running', heard_at = clock_timestamp()
where i.import_id = $1 and i.state = 'waiting' and not exists (
    select from contact_import o where o.workspace_id = i.workspace_id and o.state in ('waiting', 'running')
    and o.number < i.number)
returning true
"""
_STATE = "select state from contact_import where import_id = $1"
_READ = "select read from contact_import where import_id = $1 and state = 'running'"
_GO_ON = """
update contact_import set bytes_read = $2, read = read + $3, imported = imported + $4, unchanged = unchanged + $5,
    refused_count = refused_count + $6, repeated_count = repeated_count + $7, heard_at = clock_timestamp()
where import_id = $1 and state = 'running' returning true
"""
_FINISH = """
update contact_import set state = 'done', about = $2, bytes_read = $3, finished_at = clock_timestamp()
where import_id = $1 and state = 'running' returning *
"""
_FAIL = """
update contact_import set state = 'failed', fault = $2, finished_at = clock_timestamp()
where import_id = any($1::uuid[]) and state in ('waiting', 'running') returning workspace_id, key
"""
_DEAD = """
select import_id from contact_import
where state in ('waiting', 'running') and heard_at < clock_timestamp() - $1::interval for update skip locked
"""
_FORGET_ANSWERS = """
delete from idempotency_key k using unnest($1::text[], $2::text[]) as gone(workspace_id, key)
where k.workspace_id = gone.workspace_id and k.key = gone.key
"""
_BEAT = """
update contact_import set heard_at = clock_timestamp()
where import_id = any($1::uuid[]) and state in ('waiting', 'running')
"""
_ADD_REFUSED = """
insert into contact_import_refused (import_id, row, workspace_id, field, detail, cells, tags, prune_after)
select $1, asked.row, $2, asked.field, asked.detail, asked.cells,
       array(select decode(tag, 'hex') from unnest(string_to_array(asked.tags, ',')) as tag), $3
from unnest($4::bigint[], $5::text[], $6::text[], $7::bytea[], $8::text[]) as asked(row, field, detail, cells, tags)
"""
_REFUSED = """
select row, field, detail, cells from contact_import_refused where import_id = $1 and row > $2 order by row limit $3
"""
_FORGET = "delete from contact_import_refused where tags && $2::bytea[] and workspace_id = $1"
_ONE = "select * from contact_import where workspace_id = $1 and import_id = $2"
_LIST = "select * from contact_import where workspace_id = $1 and number < $2 order by number desc limit $3"
_KEPT_ANSWER = "select digest, status, answer from idempotency_key where workspace_id = $1 and key = $2"
_KEEP_ANSWER = """
insert into idempotency_key (workspace_id, key, digest, status, answer) values ($1, $2, $3, $4, $5)
on conflict do nothing
"""
_PRUNE = (
    "delete from contact_import_refused where ctid in"
    " (select ctid from contact_import_refused where prune_after < $1 limit $2)",
    "delete from contact_import where ctid in (select ctid from contact_import"
    " where started_at < $1::timestamptz - interval '30 days' and state in ('done', 'failed') limit $2)",
)


async def add(connection: Connection, job: Job) -> asyncpg.Record | None:
    """Note an import that waits for its turn; None if another one runs under its Idempotency-Key."""
    caller = job.caller
    return await connection.fetchrow(
        _ADD,
        job.import_id,
        caller.workspace,
        job.key,
        job.upload.request_digest,
        caller.token.name,
        _about(job),
        job.started_at,
    )


async def withdraw(connection: Connection, import_id: UUID) -> None:
    """Take back a noted import that has not begun."""
    await connection.execute(_WITHDRAW, import_id)


def _about(job: Job, repeated: Sequence[tuple[int, int]] = ()) -> str:
    """What is known of the file itself, as JSON."""
    layout = job.layout
    about = {
        "encoding": layout.encoding,
        "separator": layout.separator,
        "mapping": layout.columns.mapping,
        "ignored": layout.columns.ignored,
        "header": layout.columns.header,
        "bytes_total": layout.size,
        "rows_total": layout.lines,
        "repeated": repeated,
    }
    return to_json(about).decode()


async def twin_of(connection: Connection, job: Job) -> asyncpg.Record | None:
    """The import that runs under this one's Idempotency-Key."""
    return await connection.fetchrow(_TWIN, job.caller.workspace, job.key)


async def claim(connection: Connection, import_id: UUID) -> bool:
    """Begin, if no older import of the workspace is under way."""
    try:
        async with connection.transaction():
            return bool(await connection.fetchval(_CLAIM, import_id))
    except asyncpg.UniqueViolationError:
        return False


async def state_of(connection: Connection, import_id: UUID) -> str | None:
    state: str | None = await connection.fetchval(_STATE, import_id)
    return state


async def read_of(connection: Connection, import_id: UUID) -> int | None:
    """How many rows a running import has read; None if it is not running."""
    read: int | None = await connection.fetchval(_READ, import_id)
    return read


async def go_on(connection: Connection, import_id: UUID, bytes_read: int, counts: Sequence[int]) -> bool:
    """Add a batch's read, imported, unchanged, refused and repeated rows; False if the import was given up."""
    return bool(await connection.fetchval(_GO_ON, import_id, bytes_read, *counts))


async def finish(connection: Connection, job: Job, repeated: Sequence[tuple[int, int]]) -> asyncpg.Record | None:
    return await connection.fetchrow(_FINISH, job.import_id, _about(job, repeated), job.layout.size)


async def fail(connection: Connection, import_ids: Iterable[UUID], fault: str) -> int:
    """Give imports up, and the answers kept for them: a repeat under the same Idempotency-Key starts anew."""
    rows = await connection.fetch(_FAIL, sorted(import_ids), fault)
    keyed = [(row["workspace_id"], row["key"]) for row in rows if row["key"] is not None]
    if keyed:
        await connection.execute(_FORGET_ANSWERS, [w for w, _ in keyed], [key for _, key in keyed])
    return len(rows)


async def give_up_dead(connection: Connection) -> int:
    """Fail the imports of processes that are no more."""
    rows = await connection.fetch(_DEAD, DEAD_AFTER)
    return await fail(connection, [row["import_id"] for row in rows], INTERRUPTED) if rows else 0


async def beat(connection: Connection, import_ids: Iterable[UUID]) -> None:
    await connection.execute(_BEAT, sorted(import_ids))


RefusedLine = tuple[int, str, str, tuple[str, ...], tuple[bytes, ...]]


async def add_refused(
    connection: Connection, import_id: UUID, workspace: str, lines: Sequence[RefusedLine], now: datetime
) -> None:
    """Keep refused rows: (row, field, detail, cells, tags of whom it speaks)."""
    await connection.execute(
        _ADD_REFUSED,
        import_id,
        workspace,
        now + KEPT,
        [row for row, *_ in lines],
        [field for _, field, *_ in lines],
        [detail for _, _, detail, *_ in lines],
        [to_json(cells) for _, _, _, cells, _ in lines],
        [",".join(tag.hex() for tag in tags) for *_, tags in lines],
    )


async def refused_of(
    connection: Connection, import_id: UUID, after: int, limit: int
) -> list[tuple[int, str, str, list[str]]]:
    rows = await connection.fetch(_REFUSED, import_id, after, limit)
    return [(row["row"], row["field"], row["detail"], from_json(row["cells"])) for row in rows]


async def forget_import_rows(connection: Connection, workspace: str, tags: Sequence[bytes]) -> str:
    """Delete the refused rows that speak of an erased person, by the keyed tags of contact id and phone (Tagger);
    returns PostgreSQL's word on it."""
    return await connection.execute(_FORGET, workspace, list(tags))


async def one(connection: Connection, workspace: str, import_id: UUID) -> asyncpg.Record | None:
    return await connection.fetchrow(_ONE, workspace, import_id)


async def imports_of(connection: Connection, workspace: str, before: int, limit: int) -> list[asyncpg.Record]:
    """A workspace's imports, newest first, of numbers below `before`."""
    return list(await connection.fetch(_LIST, workspace, before, limit))


async def kept_answer(connection: Connection, workspace: str, key: str) -> asyncpg.Record | None:
    """`digest` of the request, `status` and `answer` that stand under an Idempotency-Key."""
    return await connection.fetchrow(_KEPT_ANSWER, workspace, key)


async def keep_answer(connection: Connection, job: Job, status: int, answer: bytes) -> None:
    workspace, digest = job.caller.workspace, job.upload.request_digest
    await connection.execute(_KEEP_ANSWER, workspace, job.key, digest, status, answer)


async def prune(connection: Connection, now: datetime) -> None:
    for statement in _PRUNE:
        await connection.execute(statement, now, PRUNE_ROWS)
