"""The SQL on what was synced and reported of senders, and on who drives them. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from asyncpg import Record as Row
from pydantic import JsonValue, TypeAdapter
from sendwhy.events import Moment, Wire
from sendwhy.postgres import Connection

from dispatcher.rests import Rest
from dispatcher.store import Key
from dispatcher.syncs import Read, again_after

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


async def note_changes(connection: Connection, waba_id: str, at: datetime, changes: Sequence[Change]) -> None:
    """What was found when a number alone was read."""
    await connection.execute(
        "update account_sync set changed_at = $2, changes = $3, more = $4 where waba_id = $1",
        waba_id,
        at,
        _CHANGES.dump_json(list(changes[:CHANGES_MAX])),
        max(0, len(changes) - CHANGES_MAX),
    )


async def reads(connection: Connection, sender_ids: Sequence[str]) -> list[Read]:
    rows = await connection.fetch(
        "select sender_id, templates_synced_at, sync_wanted_at, number_synced_at, account_numbers from sender"
        " where sender_id = any($1::text[])",
        sender_ids,
    )
    return [Read(*row) for row in rows]


_TAKE_TURN = """
insert into sync_turn (workspace_id, waba_id, until) values ($1, $2, $4)
on conflict (workspace_id, waba_id) do update set until = $4 where sync_turn.until <= $3
returning true
"""


async def take_turn(connection: Connection, account: Key, now: datetime, until: datetime) -> datetime | None:
    """Become the one of a workspace's numbers that reads the account, until then at the longest. None: it is; else from
    when on another may."""
    if await connection.fetchval(_TAKE_TURN, *account, now, until):
        return None
    taken: datetime | None = await connection.fetchval(
        "select until from sync_turn where workspace_id = $1 and waba_id = $2", *account
    )
    return taken or now


async def end_turn(connection: Connection, account: Key, now: datetime, *, failed: bool) -> None:
    """Whoever reads next waits a little, and longer after each failure."""
    before: int | None = await connection.fetchval(
        "select failures from sync_turn where workspace_id = $1 and waba_id = $2 for update", *account
    )
    failures = (before or 0) + 1 if failed else 0
    await connection.execute(
        "update sync_turn set until = $3, failures = $4 where workspace_id = $1 and waba_id = $2",
        *account,
        now + again_after(max(0, failures - 1)),
        failures,
    )


async def forget_failure(connection: Connection, sender_id: str) -> None:
    await connection.execute(
        "update sender set sync_failed_since = null, sync_failed_at = null, sync_error = null, sync_error_code = null"
        " where sender_id = $1 and sync_failed_since is not null",
        sender_id,
    )


async def note_failure(connection: Connection, sender_id: str, at: datetime, error: str, code: int | None) -> None:
    """`code`: Meta's, where it refused."""
    await connection.execute(
        "update sender set sync_failed_since = coalesce(sync_failed_since, $2), sync_failed_at = $2, sync_error = $3,"
        " sync_error_code = $4 where sender_id = $1",
        sender_id,
        at,
        error[:500],
        code,
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
        "select field, at, event, case when known then detail else '' end as detail, known"
        " from sender_report where sender_id = $1 order by at desc, field",
        sender_id,
    )
    return [Report(**dict(row)) for row in rows]


async def tell_driving(
    connection: Connection, replica: str, sent: Mapping[str, int], rests: Mapping[str, Rest] | None = None
) -> None:
    """How much each number sent in the last minute, and the rest that it keeps, if it does."""
    ids, kept = sorted(sent), rests or {}
    await connection.execute(
        "insert into driving (sender_id, replica, seen_at, sent_last_minute, rest)"
        " select sender_id, $1, clock_timestamp(), count, rest"
        " from unnest($2::text[], $3::int[], $4::bytea[]) as t(sender_id, count, rest)"
        " on conflict (sender_id) do update set replica = excluded.replica, seen_at = excluded.seen_at,"
        " sent_last_minute = excluded.sent_last_minute, rest = excluded.rest",
        replica,
        ids,
        [sent[one] for one in ids],
        [kept[one].to_json() if one in kept else None for one in ids],
    )


async def driving(connection: Connection, sender_id: str) -> Row | None:
    return await connection.fetchrow(
        "select replica, seen_at, sent_last_minute from driving where sender_id = $1", sender_id
    )
