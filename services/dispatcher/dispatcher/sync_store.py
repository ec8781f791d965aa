"""The SQL on what was synced and reported of senders, and on who drives them. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncpg import Record as Row
from pydantic import JsonValue, TypeAdapter
from sendwhy.events import Moment, Wire
from sendwhy.postgres import Connection

CHANGES_MAX = 200


class Change(Wire):
    """One difference that a sync found. `of`: "name (language)" of a template, or a number's id; `what`: added,
    removed, or the field that changed."""

    of: str
    what: str
    before: JsonValue
    after: JsonValue


_CHANGES: TypeAdapter[list[Change]] = TypeAdapter(list[Change])


class Synced(Wire):
    """An account's last sync, and what the last sync that changed something changed; `more` are not in the list."""

    sender_id: str
    synced_at: Moment
    templates: int
    incomplete: str | None
    changed_at: Moment | None
    changes: list[Change]
    more: int


async def save_synced(
    connection: Connection,
    waba_id: str,
    sender_id: str,
    at: datetime,
    *,
    templates: int,
    incomplete: str | None,
    changes: Sequence[Change],
) -> None:
    await connection.execute(
        "insert into account_sync (waba_id, sender_id, synced_at, templates, incomplete, changed_at, changes, more)"
        " values ($1, $2, $3, $4, $5, case when $8 then $3::timestamptz end, $6, $7)"
        " on conflict (waba_id) do update set sender_id = $2, synced_at = $3, templates = $4, incomplete = $5,"
        " changed_at = case when $8 then $3 else account_sync.changed_at end,"
        " changes = case when $8 then $6 else account_sync.changes end,"
        " more = case when $8 then $7 else account_sync.more end where account_sync.synced_at <= $3",
        waba_id,
        sender_id,
        at,
        templates,
        incomplete,
        _CHANGES.dump_json(list(changes[:CHANGES_MAX])),
        max(0, len(changes) - CHANGES_MAX),
        bool(changes),
    )
    await connection.execute(
        "update sender set sync_failed_since = null, sync_failed_at = null, sync_error = null"
        " where sender_id = $1 and sync_failed_since is not null",
        sender_id,
    )


async def note_failure(connection: Connection, sender_id: str, at: datetime, error: str) -> None:
    await connection.execute(
        "update sender set sync_failed_since = coalesce(sync_failed_since, $2), sync_failed_at = $2, sync_error = $3"
        " where sender_id = $1",
        sender_id,
        at,
        error[:500],
    )


async def synced(connection: Connection, waba_id: str) -> Synced | None:
    row = await connection.fetchrow(
        "select sender_id, synced_at, templates, incomplete, changed_at, changes, more from account_sync"
        " where waba_id = $1",
        waba_id,
    )
    return Synced(**dict(row) | {"changes": _CHANGES.validate_json(row["changes"])}) if row else None


async def incomplete(connection: Connection, waba_id: str) -> str | None:
    """Why the account may have more templates than its last list told; None where that was whole."""
    why: str | None = await connection.fetchval("select incomplete from account_sync where waba_id = $1", waba_id)
    return why


@dataclass(frozen=True, slots=True)
class Failure:
    since: datetime
    at: datetime
    error: str


async def failure(connection: Connection, sender_id: str) -> Failure | None:
    """Since when reading from Meta by this sender's token fails."""
    row = await connection.fetchrow(
        "select sync_failed_since, sync_failed_at, sync_error from sender"
        " where sender_id = $1 and sync_failed_since is not null",
        sender_id,
    )
    return Failure(*row) if row else None


class Report(Wire):
    """What Meta last told by one kind of webhook; `known`: whether we know what it means."""

    field: str
    at: Moment
    event: str
    detail: str
    known: bool


async def save_reports(connection: Connection, told: Iterable[tuple[str, Report]]) -> None:
    """Keep the newest of each (sender, field)."""
    newest: dict[tuple[str, str], Report] = {}
    for sender_id, report in told:
        before = newest.get((sender_id, report.field), report)
        newest[sender_id, report.field] = report if report.at >= before.at else before
    keys = sorted(newest)
    await connection.execute(
        "insert into sender_report (sender_id, field, at, event, detail, known) select * from"
        " unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[], $5::text[], $6::boolean[])"
        " on conflict (sender_id, field) do update set at = excluded.at, event = excluded.event,"
        " detail = excluded.detail, known = excluded.known where sender_report.at <= excluded.at",
        [key[0] for key in keys],
        [key[1] for key in keys],
        [newest[key].at for key in keys],
        [newest[key].event for key in keys],
        [newest[key].detail for key in keys],
        [newest[key].known for key in keys],
    )


async def reports(connection: Connection, sender_id: str) -> list[Report]:
    rows = await connection.fetch(
        "select field, at, event, detail, known from sender_report where sender_id = $1 order by at desc, field",
        sender_id,
    )
    return [Report(**dict(row)) for row in rows]


async def tell_driving(connection: Connection, replica: str, sent: Mapping[str, int]) -> None:
    ids = sorted(sent)
    await connection.execute(
        "insert into driving (sender_id, replica, seen_at, sent_last_minute)"
        " select sender_id, $1, clock_timestamp(), count from unnest($2::text[], $3::int[]) as t(sender_id, count)"
        " on conflict (sender_id) do update set replica = excluded.replica, seen_at = excluded.seen_at,"
        " sent_last_minute = excluded.sent_last_minute",
        replica,
        ids,
        [sent[one] for one in ids],
    )


async def driving(connection: Connection, sender_id: str) -> Row | None:
    return await connection.fetchrow(
        "select replica, seen_at, sent_last_minute from driving where sender_id = $1", sender_id
    )
