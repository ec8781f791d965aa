"""The tables of requests that are judged together (migration 0010): one statement for a piece of lines."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

from asyncpg import Record
from pydantic_core import to_json
from sendwhy.postgres import Connection

from message_log.audience import Outcome, Verdict
from message_log.audience_lines import Line

KEPT_FOR = timedelta(hours=24)
KEPT_MAX = 50
# A run tells every few seconds that it goes on.
BEAT_SECONDS = 5.0
SILENT_AFTER = timedelta(seconds=30)
_OWN = (Outcome.BROKEN, Outcome.REPEATED)


class Superseded(Exception):
    """The run was cancelled, or another one took its place: it may write nothing any more."""


@dataclass(frozen=True, slots=True)
class New:
    audience_id: UUID
    workspace: str
    kind: str
    name: str
    by_name: str
    matched: int


_ADD = """
insert into audience (audience_id, workspace_id, kind, name, by_name, expires_at, state, lines, matched)
values ($1, $2, $3, $4, $5, clock_timestamp() + $6::interval, 'new', 0, $7)
"""
_COUNT_LINES = """
update audience set lines = (select count(*) from audience_line where audience_id = $1) where audience_id = $1
returning lines
"""
_DROP_OLDEST = """
delete from audience where audience_id in (
    select audience_id from audience where workspace_id = $1 and state not in ('running', 'sending')
    order by created_at desc offset $2)
"""
_LINE_COLUMNS = (
    *("audience_id", "number", "message_id", "body", "outcome", "why", "cause"),
    *("service", "detail", "field", "until", "credits"),
)


async def add(connection: Connection, new: New) -> None:
    await connection.execute(
        _ADD, new.audience_id, new.workspace, new.kind, new.name, new.by_name, KEPT_FOR, new.matched
    )
    await connection.execute(_DROP_OLDEST, new.workspace, KEPT_MAX)


_RUNNING = """
select count(*) from audience
where workspace_id = $1 and state in ('running', 'sending') and beat_at > clock_timestamp() - $2::interval
"""


async def running(connection: Connection, workspace: str) -> int:
    """How many runs of the workspace go on."""
    return int(await connection.fetchval(_RUNNING, workspace, SILENT_AFTER))


async def count_lines(connection: Connection, audience_id: UUID) -> int:
    """Once all are added."""
    return int(await connection.fetchval(_COUNT_LINES, audience_id))


async def add_lines(connection: Connection, audience_id: UUID, lines: Sequence[Line]) -> None:
    rows = [(audience_id, one.number, one.message_id, one.body or None, *_columns_of(one.verdict)) for one in lines]
    await connection.copy_records_to_table("audience_line", records=rows, columns=_LINE_COLUMNS)


def _columns_of(verdict: Verdict | None) -> tuple[Any, ...]:
    if verdict is None:
        return (None, None, None, None, None, None, None, 0)
    service = verdict.service and str(verdict.service)
    return (
        str(verdict.outcome),
        verdict.why and str(verdict.why),
        verdict.cause and str(verdict.cause),
        service,
        verdict.detail,
        verdict.field,
        verdict.until,
        verdict.credits,
    )


# `is_silent`: it should run, and nobody tells that it does.
_READ = """
select *, state in ('new', 'running', 'sending') and coalesce(beat_at, created_at) < clock_timestamp() - $3::interval
    as is_silent
from audience where workspace_id = $1 and audience_id = $2
"""
_LIST = """
select *, state in ('new', 'running', 'sending') and coalesce(beat_at, created_at) < clock_timestamp() - $3::interval
    as is_silent
from audience where workspace_id = $1 and kind = $2 order by created_at desc limit 50
"""


async def read(connection: Connection, workspace: str, audience_id: UUID) -> Record | None:
    return await connection.fetchrow(_READ, workspace, audience_id, SILENT_AFTER)


async def listed(connection: Connection, workspace: str, kind: str) -> list[Record]:
    rows: list[Record] = await connection.fetch(_LIST, workspace, kind, SILENT_AFTER)
    return rows


_CLAIM = """
update audience set state = $3, run = run + 1, beat_at = clock_timestamp(), told = null,
    expires_at = clock_timestamp() + $5::interval
where workspace_id = $1 and audience_id = $2
  and (state = any($4::text[]) or state in ('running', 'sending') and beat_at < clock_timestamp() - $6::interval)
returning run, kind, lines
"""
_FENCE = """
update audience set beat_at = clock_timestamp()
where audience_id = $1 and run = $2 and state in ('running', 'sending') returning true
"""
_BEAT = """
update audience a set beat_at = clock_timestamp() from unnest($1::uuid[], $2::int[]) as r(audience_id, run)
where a.audience_id = r.audience_id and a.run = r.run
"""
_END = """
update audience set state = $3, facts = coalesce($4::jsonb, facts), told = $5, judged_at = coalesce($6, judged_at)
where audience_id = $1 and run = $2 and state in ('running', 'sending')
"""
_CANCEL = """
update audience set state = 'cancelled', told = $3
where workspace_id = $1 and audience_id = $2 and state in ('running', 'sending') returning true
"""


async def claim(
    connection: Connection, workspace: str, audience_id: UUID, state: str, before: Sequence[str]
) -> Record | None:
    """Begin a run, from one of the states `before` or after one that fell silent; None where that can't be."""
    return await connection.fetchrow(_CLAIM, workspace, audience_id, state, list(before), KEPT_FOR, SILENT_AFTER)


async def fence(connection: Connection, audience_id: UUID, run: int) -> None:
    """Raises Superseded. Within a transaction, nobody else ends or takes the run before it is committed."""
    if await connection.fetchval(_FENCE, audience_id, run) is None:
        raise Superseded


async def beat(connection: Connection, runs: Sequence[tuple[UUID, int]]) -> None:
    await connection.execute(_BEAT, [one for one, _ in runs], [run for _, run in runs])


async def end(
    connection: Connection,
    audience_id: UUID,
    run: int,
    state: str,
    *,
    facts: Mapping[str, Any] | None = None,
    told: str | None = None,
    judged_at: Any = None,
) -> None:
    stored = None if facts is None else to_json(facts).decode()
    await connection.execute(_END, audience_id, run, state, stored, told, judged_at)


async def cancel(connection: Connection, workspace: str, audience_id: UUID, who: str) -> bool:
    return bool(await connection.fetchval(_CANCEL, workspace, audience_id, f"{who} cancelled it."))


_RESET = """
update audience_line set outcome = null, why = null, cause = null, service = null, detail = null, until = null,
    credits = 0
where audience_id = $1 and outcome <> all($2::text[]) and sent_as is null
"""
_UNJUDGED = """
select number, message_id, body from audience_line
where audience_id = $1 and number > $2 and outcome is null order by number limit $3
"""
_PLANNED = """
select number, message_id, body, credits from audience_line
where audience_id = $1 and outcome = 'goes' and sent_as is null order by number
"""
_IDS = "select message_id from audience_line where audience_id = $1 order by number"
_VERDICTS = """
update audience_line l set outcome = n.outcome, why = n.why, cause = n.cause, service = n.service, detail = n.detail,
    field = n.field, until = n.until, credits = n.credits
from unnest($2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::timestamptz[],
            $10::int[]) as n(number, outcome, why, cause, service, detail, field, until, credits)
where l.audience_id = $1 and l.number = n.number
"""
_SENT = """
update audience_line l set sent_as = n.sent_as from unnest($2::int[], $3::text[]) as n(number, sent_as)
where l.audience_id = $1 and l.number = n.number
"""


async def reset(connection: Connection, audience_id: UUID) -> None:
    """Forget what the services said; what a line is by itself stays, and so does what was sent."""
    await connection.execute(_RESET, audience_id, [str(one) for one in _OWN])


async def unjudged(connection: Connection, audience_id: UUID, after: int, limit: int) -> list[Record]:
    rows: list[Record] = await connection.fetch(_UNJUDGED, audience_id, after, limit)
    return rows


async def planned(connection: Connection, audience_id: UUID) -> list[Record]:
    """The lines that would go and have not been sent."""
    rows: list[Record] = await connection.fetch(_PLANNED, audience_id)
    return rows


async def ids_of(connection: Connection, audience_id: UUID) -> list[str]:
    return [row["message_id"] for row in await connection.fetch(_IDS, audience_id)]


async def write_verdicts(connection: Connection, audience_id: UUID, verdicts: Mapping[int, Verdict]) -> None:
    if verdicts:
        rows = [(number, *_columns_of(verdicts[number])) for number in sorted(verdicts)]
        await connection.execute(_VERDICTS, audience_id, *map(list, zip(*rows, strict=True)))


async def note_sent(connection: Connection, audience_id: UUID, sent: Mapping[int, str]) -> None:
    await connection.execute(_SENT, audience_id, list(sent), list(sent.values()))


_GROUPS = """
select outcome, why, cause, service, count(*)::int as count,
       coalesce(sum(credits) filter (where sent_as is null), 0)::bigint as credits,
       count(sent_as)::int as sent, min(until) as until_first, max(until) as until_last, min(number) as first
from audience_line where audience_id = $1 and outcome is not null
group by outcome, why, cause, service
"""
_EXAMPLES = """
select number, message_id, detail, field from audience_line where audience_id = $1 and number = any($2::int[])
"""
_MATCHES = "($2::text is null or concat_ws('.', outcome, why, cause) = $2 or outcome = $2)"
_LINES = f"""
select number, message_id, body, outcome, why, cause, service, detail, field, until, credits, sent_as
from audience_line where audience_id = $1 and outcome is not null and {_MATCHES} and number > $3
order by number limit $4
"""  # noqa: S608


async def groups(connection: Connection, audience_id: UUID) -> list[Record]:
    rows: list[Record] = await connection.fetch(_GROUPS, audience_id)
    return rows


async def examples(connection: Connection, audience_id: UUID, numbers: Sequence[int]) -> dict[int, Record]:
    rows = await connection.fetch(_EXAMPLES, audience_id, list(numbers))
    return {row["number"]: row for row in rows}


async def lines(connection: Connection, audience_id: UUID, group: str | None, after: int, limit: int) -> list[Record]:
    """Lines of a group, or of all groups of an outcome."""
    rows: list[Record] = await connection.fetch(_LINES, audience_id, group, after, limit)
    return rows


_USED = "select message_id from message where workspace_id = $1 and message_id = any($2::text[]) and at is not null"
_PORTFOLIOS = """
select key, convert_from(body, 'utf8')::json ->> 'portfolio_id' as portfolio from known_state
where topic = 'sender.updated' and workspace_id = $1 limit 1000
"""


async def used_ids(connection: Connection, workspace: str, ids: Sequence[str]) -> set[str]:
    return {row["message_id"] for row in await connection.fetch(_USED, workspace, list(ids))}


async def portfolios(connection: Connection, workspace: str) -> dict[str, str]:
    """By sender id."""
    rows = await connection.fetch(_PORTFOLIOS, workspace)
    return {row["key"]: row["portfolio"] for row in rows if row["portfolio"]}


_PRUNE = """
delete from audience where expires_at < clock_timestamp()
  and (state not in ('running', 'sending') or beat_at < clock_timestamp() - $1::interval)
"""


async def prune(connection: Connection) -> None:
    await connection.execute(_PRUNE, SILENT_AFTER)
    # By now the request has come back, with what it repeats.
    await connection.execute("delete from resend where at < clock_timestamp() - interval '30 days'")
