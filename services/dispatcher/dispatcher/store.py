"""The dispatcher's SQL on senders and templates: constants and functions that take a connection and return values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from asyncpg import Record as Row
from pydantic import JsonValue, TypeAdapter
from sendwhy.events import Reason
from sendwhy.postgres import Connection

from dispatcher.decide import Sender, Stops, Template, Unread
from dispatcher.syncs import Read

Key = tuple[str, str]
TEMPLATES_KEPT = 500
OBJECTS: TypeAdapter[list[dict[str, JsonValue]]] = TypeAdapter(list[dict[str, JsonValue]])

SENDER_COLUMNS = """
sender_id, workspace_id, waba_id, portfolio_id, app_id, is_default, token, display_phone_number, quality,
messages_per_second, messaging_limit, paused_at, hold, hold_since, hold_until, hold_stops, hold_replies_from,
templates_synced_at, sync_wanted_at, token_tag, fence, version, tier_key, proven_portfolio_id, number_synced_at,
account_numbers, sync_failed_since, sync_error, sync_error_code
"""
COLUMNS_OF_S = ", ".join(f"s.{name.strip()}" for name in SENDER_COLUMNS.split(","))


@dataclass(frozen=True, slots=True)
class SenderRow:
    """A sender with what only the dispatcher's shell needs. `token` is sealed; senders with the same `token_tag` share
    it. `sender.hold` reflects what stands in the table hold."""

    sender: Sender
    app_id: str | None
    is_default: bool
    token: bytes
    token_tag: str | None
    display_phone_number: str | None
    sync_wanted_at: datetime | None
    fence: int
    version: int
    proven_portfolio_id: str | None = None
    number_synced_at: datetime | None = None
    account_numbers: int = 1

    @property
    def read(self) -> Read:
        sender = self.sender
        at = (sender.templates_synced_at, self.sync_wanted_at, self.number_synced_at)
        return Read(sender.sender_id, *at, self.account_numbers)


def sender_of(row: Row) -> SenderRow:
    return SenderRow(
        sender=Sender(
            sender_id=row["sender_id"],
            workspace_id=row["workspace_id"],
            waba_id=row["waba_id"],
            portfolio_id=row["portfolio_id"],
            tier_key=row["tier_key"],
            quality=row["quality"],
            paused_at=row["paused_at"],
            hold=Reason.model_validate_json(row["hold"]) if row["hold"] else None,
            hold_since=row["hold_since"],
            hold_until=row["hold_until"],
            hold_stops=Stops(row["hold_stops"]),
            hold_replies_from=row["hold_replies_from"],
            templates_synced_at=row["templates_synced_at"],
            messaging_limit=row["messaging_limit"],
            messages_per_second=row["messages_per_second"],
            unread=_unread(row),
        ),
        app_id=row["app_id"],
        is_default=row["is_default"],
        token=bytes(row["token"]),
        token_tag=row["token_tag"],
        display_phone_number=row["display_phone_number"],
        sync_wanted_at=row["sync_wanted_at"],
        fence=row["fence"],
        version=row["version"],
        proven_portfolio_id=row["proven_portfolio_id"],
        number_synced_at=row["number_synced_at"],
        account_numbers=row["account_numbers"],
    )


def _unread(row: Row) -> Unread | None:
    since = row["sync_failed_since"]
    return None if since is None else Unread(since, row["sync_error"], row["sync_error_code"])


async def senders(connection: Connection, sender_ids: Iterable[str]) -> dict[str, SenderRow]:
    query = f"select {SENDER_COLUMNS} from sender where sender_id = any($1::text[])"  # noqa: S608 - a constant
    rows = await connection.fetch(query, list(sender_ids))
    return {row["sender_id"]: sender_of(row) for row in rows}


async def senders_of(connection: Connection, column: str, value: str) -> list[SenderRow]:
    """All senders of a workspace, of an account, or with one count of people; `column` names which."""
    assert column in ("workspace_id", "waba_id", "tier_key")
    query = f"select {SENDER_COLUMNS} from sender where {column} = $1 order by sender_id"  # noqa: S608
    return [sender_of(row) for row in await connection.fetch(query, value)]


async def senders_page(connection: Connection, workspace_id: str, after: str, limit: int) -> list[SenderRow]:
    """Senders of a workspace by their ids, from behind `after`."""
    query = (
        f"select {SENDER_COLUMNS} from sender where workspace_id = $1 and sender_id > $2 order by sender_id limit $3"  # noqa: S608
    )
    return [sender_of(row) for row in await connection.fetch(query, workspace_id, after, limit)]


async def tier_key_of(connection: Connection, sender_id: str) -> str:
    key: str = await connection.fetchval("select tier_key from sender where sender_id = $1", sender_id)
    return key


async def sender_ids(connection: Connection) -> list[str]:
    return [row["sender_id"] for row in await connection.fetch("select sender_id from sender order by sender_id")]


async def sender_for_requests(connection: Connection, asked: Iterable[tuple[str, str | None]]) -> dict[Any, SenderRow]:
    """The senders that requests name, or the workspaces' defaults, by (workspace_id, named sender or None)."""
    pairs = list(dict.fromkeys(asked))
    query = f"""
    select asked.named, {COLUMNS_OF_S}
    from unnest($1::text[], $2::text[]) as asked(workspace_id, named)
    join sender s on s.workspace_id = asked.workspace_id
     and (s.sender_id = asked.named or (asked.named is null and s.is_default))
    """  # noqa: S608 - a constant
    rows = await connection.fetch(query, [pair[0] for pair in pairs], [pair[1] for pair in pairs])
    return {(row["workspace_id"], row["named"]): sender_of(row) for row in rows}


_TEMPLATES = """
select waba_id, name, language, status, category, parameter_format, components, quality, rejected_reason, said_by,
       said_at, synced_at, version, reported_at, ttl_seconds
from template where waba_id = $1
"""


@dataclass(frozen=True, slots=True)
class TemplateRow:
    waba_id: str
    template: Template
    parameter_format: str
    quality: str | None
    synced_at: datetime | None
    version: int
    reported_at: datetime | None = None


@lru_cache(TEMPLATES_KEPT)
def components_of(stored: bytes) -> Sequence[Mapping[str, JsonValue]]:
    """A template's components, parsed once: each round asks for the few that its messages go by."""
    return OBJECTS.validate_json(stored)


def _template(row: Row) -> TemplateRow:
    return TemplateRow(
        waba_id=row["waba_id"],
        template=Template(
            name=row["name"],
            language=row["language"],
            status=row["status"],
            category=row["category"],
            components=components_of(row["components"]),
            rejected_reason=row["rejected_reason"],
            said_by=row["said_by"],
            said_at=row["said_at"],
            ttl_seconds=row["ttl_seconds"],
        ),
        parameter_format=row["parameter_format"],
        quality=row["quality"],
        synced_at=row["synced_at"],
        version=row["version"],
        reported_at=row["reported_at"],
    )


async def templates_of(connection: Connection, waba_id: str) -> dict[tuple[str, str], TemplateRow]:
    rows = await connection.fetch(_TEMPLATES, waba_id)
    return {(row["name"], row["language"]): _template(row) for row in rows}


_TEMPLATE_POSITION = "(waba_id || '/' || name || '/' || language) collate \"C\""
_TEMPLATES_PAGE = (
    _TEMPLATES.replace("waba_id = $1", "waba_id = any($1::text[])")
    + f" and {_TEMPLATE_POSITION} > $2 and ($3::text is null or status = $3) and ($4::text is null or category = $4)"
    + f" order by {_TEMPLATE_POSITION} limit $5"
)


async def templates_page(
    connection: Connection, accounts: Sequence[str], after: str, limit: int, *, status: str | None, category: str | None
) -> list[TemplateRow]:
    """Templates of several accounts in the order of "account/name/language", from behind `after`."""
    rows = await connection.fetch(_TEMPLATES_PAGE, accounts, after, status, category, limit)
    return [_template(row) for row in rows]


_SAVE_TEMPLATES = """
insert into template (waba_id, name, language, status, category, parameter_format, components, quality,
                      rejected_reason, said_by, said_at, synced_at, reported_at, ttl_seconds)
select $1, * from unnest($2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::bytea[], $8::text[],
                         $9::text[], $10::text[], $11::timestamptz[], $12::timestamptz[], $13::timestamptz[],
                         $14::int[])
on conflict (waba_id, name, language) do update set
    status = excluded.status, category = excluded.category, parameter_format = excluded.parameter_format,
    components = excluded.components, quality = excluded.quality, rejected_reason = excluded.rejected_reason,
    said_by = excluded.said_by, said_at = excluded.said_at, synced_at = excluded.synced_at,
    reported_at = excluded.reported_at, ttl_seconds = excluded.ttl_seconds, version = template.version + 1
returning *
"""


async def save_templates(connection: Connection, waba_id: str, rows: Sequence[TemplateRow]) -> list[TemplateRow]:
    ordered = sorted(rows, key=lambda row: (row.template.name, row.template.language))
    saved = await connection.fetch(
        _SAVE_TEMPLATES,
        waba_id,
        [row.template.name for row in ordered],
        [row.template.language for row in ordered],
        [row.template.status for row in ordered],
        [row.template.category for row in ordered],
        [row.parameter_format for row in ordered],
        [OBJECTS.dump_json([dict(part) for part in row.template.components]) for row in ordered],
        [row.quality for row in ordered],
        [row.template.rejected_reason for row in ordered],
        [row.template.said_by for row in ordered],
        [row.template.said_at for row in ordered],
        [row.synced_at for row in ordered],
        [row.reported_at for row in ordered],
        [row.template.ttl_seconds for row in ordered],
    )
    return [_template(row) for row in saved]


async def delete_templates(connection: Connection, waba_id: str, gone: Sequence[tuple[str, str]]) -> None:
    await connection.execute(
        "delete from template using unnest($2::text[], $3::text[]) as gone(name, language)"
        " where waba_id = $1 and template.name = gone.name and template.language = gone.language",
        waba_id,
        [name for name, _ in gone],
        [language for _, language in gone],
    )


_TEMPLATES_NAMED = _TEMPLATES + " and name = any($2::text[])"


async def templates_named(
    connection: Connection, waba_id: str, names: Iterable[str]
) -> dict[tuple[str, str], TemplateRow]:
    rows = await connection.fetch(_TEMPLATES_NAMED, waba_id, list(names))
    return {(row["name"], row["language"]): _template(row) for row in rows}


_TEMPLATES_AT_SENDERS = """
select s.sender_id as at_sender, t.* from unnest($1::text[], $2::text[], $3::text[]) as a(sender_id, name, language)
join sender s on s.sender_id = a.sender_id
join template t on t.waba_id = s.waba_id and t.name = a.name and t.language = a.language
"""


async def templates_at_senders(
    connection: Connection, asked: Iterable[tuple[str, str, str]]
) -> dict[tuple[str, str, str], Template]:
    """Templates by (sender_id, name, language), as the account of each sender has them now."""
    keys = sorted(set(asked))
    rows = await connection.fetch(
        _TEMPLATES_AT_SENDERS, [key[0] for key in keys], [key[1] for key in keys], [key[2] for key in keys]
    )
    return {(row["at_sender"], row["name"], row["language"]): _template(row).template for row in rows}


async def template_names(connection: Connection, waba_id: str) -> list[tuple[str, str]]:
    rows = await connection.fetch("select name, language from template where waba_id = $1", waba_id)
    return [(row["name"], row["language"]) for row in rows]


async def _change(connection: Connection, assignments: str, condition: str, *values: Any) -> list[SenderRow]:
    rows = await connection.fetch(
        f"update sender set {assignments}, version = version + 1, updated_at = clock_timestamp()"  # noqa: S608
        f" where {condition} returning {SENDER_COLUMNS}",
        *values,
    )
    return [sender_of(row) for row in rows]


# Which senders a standing hold concerns.
CONCERNS = """
h.lifted_at is null and h.workspace_id = s.workspace_id and h.scope_id = case h.scope
    when 'sender' then s.sender_id when 'token' then s.token_tag
    when 'account' then s.waba_id when 'account_restriction' then s.waba_id when 'account_ban' then s.waba_id
    when 'portfolio' then s.portfolio_id end
"""

# Of several holds one that stops all, and of those the one that ends last.
_REFLECT_HOLDS = f"""
update sender set hold = now.cause, hold_since = now.since, hold_until = now.probe_at, hold_stops = now.stops,
    hold_replies_from = now.replies_from, version = version + 1, updated_at = clock_timestamp()
from (select distinct on (s.sender_id) s.sender_id as concerned, h.cause, h.since, h.probe_at, h.replies_from,
             coalesce(h.stops, 'all') as stops
      from sender s left join hold h on {CONCERNS} where s.workspace_id = $1
      order by s.sender_id, h.stops, h.probe_at desc nulls first, h.scope) as now
where sender_id = now.concerned
  and (hold, hold_since, hold_until, hold_stops, hold_replies_from)
      is distinct from (now.cause, now.since, now.probe_at, now.stops, now.replies_from)
returning {SENDER_COLUMNS}
"""  # noqa: S608 - a constant


async def lock_workspace(connection: Connection, workspace_id: str) -> None:
    """Lock all its senders: a hold may concern any of them, and two that are set or lifted at once take turns."""
    await connection.execute("select from sender where workspace_id = $1 order by sender_id for update", workspace_id)


async def reflect_holds(connection: Connection, workspace_id: str) -> list[SenderRow]:
    """Write what stands into the senders that it concerns; returns those for which that is a change."""
    return [sender_of(row) for row in await connection.fetch(_REFLECT_HOLDS, workspace_id)]


async def set_paused(connection: Connection, sender_id: str, paused_at: datetime | None) -> list[SenderRow]:
    """Pause or resume; what is paused already stays so since it was, and nothing is returned."""
    condition = "sender_id = $1 and ($2::timestamptz is null or paused_at is null)"
    return await _change(connection, "paused_at = $2", condition, sender_id, paused_at)


@dataclass(frozen=True, slots=True)
class NumberState:
    """What Meta told of a number; None leaves what is known. `unlimited` clears the messaging limit."""

    display_phone_number: str | None = None
    quality: str | None = None
    messages_per_second: int | None = None
    messaging_limit: int | None = None
    unlimited: bool = False


_FROM_SYNC = (
    "(number_reported_at is null or number_reported_at < $7) and (number_said_at is null or number_said_at <= $7)"
)
_FROM_EVENT = "(number_said_at is null or date_trunc('second', number_said_at) <= $7)"


async def save_number(
    connection: Connection, sender_id: str, told: NumberState, *, said_at: datetime, reported_at: datetime | None = None
) -> list[SenderRow]:
    """Store what Meta told at `said_at`; by an event (whole seconds of Meta's clock) where `reported_at` is our time.
    Returns nothing, and changes nothing, where newer is known."""
    condition = _FROM_SYNC if reported_at is None else _FROM_EVENT
    return await _change(
        connection,
        "display_phone_number = coalesce($2, display_phone_number), quality = coalesce($3, quality),"
        " messages_per_second = coalesce($4, messages_per_second),"
        " messaging_limit = case when $6 then null else coalesce($5, messaging_limit) end,"
        " number_said_at = $7, number_reported_at = coalesce($8, number_reported_at),"
        " number_synced_at = case when $8::timestamptz is null then $7 else number_synced_at end",
        f"sender_id = $1 and {condition}",
        sender_id,
        told.display_phone_number,
        told.quality,
        told.messages_per_second,
        told.messaging_limit,
        told.unlimited,
        said_at,
        reported_at,
    )


async def lock_account(connection: Connection, waba_id: str) -> None:
    """Two syncs of one account, each by another of its senders, take turns instead of locking each other out."""
    await connection.execute("select from sender where waba_id = $1 order by sender_id for update", waba_id)


async def mark_synced(
    connection: Connection, workspace_id: str, waba_id: str, at: datetime, portfolio_id: str | None = None
) -> list[SenderRow]:
    """Anybody may name another's account or portfolio in a PUT: that it is a workspace's own is proven by a sync with
    its token, and only for that workspace. `portfolio_id` None: Meta didn't tell."""
    condition = "waba_id = $1 and workspace_id = $3"
    proven = (
        "templates_synced_at = $2, proven_portfolio_id = coalesce($4, proven_portfolio_id),"
        " account_numbers = (select count(*) from sender other where other.waba_id = $1)"
    )
    return await _change(connection, proven, condition, waba_id, at, workspace_id, portfolio_id)


async def want_account_sync(connection: Connection, waba_id: str, now: datetime) -> None:
    """One of the account's senders reads it anew, one whose token works if there is one."""
    await connection.execute(
        "update sender set sync_wanted_at = $2 where sender_id = (select sender_id from sender where waba_id = $1"
        " order by sync_failed_since is not null, sender_id limit 1)",
        waba_id,
        now,
    )


async def want_number(connection: Connection, sender_id: str) -> None:
    """The number is read anew."""
    await connection.execute("update sender set number_synced_at = null where sender_id = $1", sender_id)


@dataclass(frozen=True, slots=True)
class NewSender:
    sender_id: str
    workspace_id: str
    waba_id: str
    portfolio_id: str
    app_id: str | None
    is_default: bool
    token: bytes
    token_tag: str | None = None


async def put_sender(connection: Connection, new: NewSender, now: datetime) -> list[SenderRow]:
    """Create or replace a sender; a new default takes the place of the former. Returns all changed senders, the one
    that was put last; none if the number belongs to another workspace. Its holds are the caller's."""
    former = []
    # Two defaults at once would wait for, or break, each other's.
    await connection.execute("select pg_advisory_xact_lock(hashtextextended($1, 0))", f"default of {new.workspace_id}")
    if new.is_default:
        former = await _change(
            connection,
            "is_default = false",
            "workspace_id = $1 and is_default and sender_id <> $2",
            new.workspace_id,
            new.sender_id,
        )
    rows = await connection.fetch(
        "insert into sender (sender_id, workspace_id, waba_id, portfolio_id, app_id, is_default, token, sync_wanted_at,"  # noqa: S608
        " token_tag) values ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
        " on conflict (sender_id) do update set waba_id = excluded.waba_id, portfolio_id = excluded.portfolio_id,"
        " app_id = excluded.app_id, is_default = excluded.is_default, token = excluded.token,"
        " sync_wanted_at = excluded.sync_wanted_at, token_tag = excluded.token_tag,"
        " version = sender.version + 1, updated_at = clock_timestamp(), number_synced_at = null, templates_synced_at ="
        " case when sender.waba_id = excluded.waba_id then sender.templates_synced_at end, proven_portfolio_id ="
        " case when sender.waba_id = excluded.waba_id then sender.proven_portfolio_id end"
        f" where sender.workspace_id = excluded.workspace_id returning {SENDER_COLUMNS}",
        new.sender_id,
        new.workspace_id,
        new.waba_id,
        new.portfolio_id,
        new.app_id,
        new.is_default,
        new.token,
        now,
        new.token_tag,
    )
    # Another token may read what the former could not.
    await connection.execute(
        "delete from sync_turn where workspace_id = $1 and waba_id = $2", new.workspace_id, new.waba_id
    )
    return [*former, *(sender_of(row) for row in rows)] if rows else []


@dataclass(frozen=True, slots=True)
class SealedToken:
    sender_id: str
    workspace_id: str
    token: bytes
    tag: str | None


async def sealed_tokens(connection: Connection, after: str, limit: int) -> list[SealedToken]:
    """Tokens by sender_id, page by page."""
    rows = await connection.fetch(
        "select sender_id, workspace_id, token, token_tag as tag from sender where sender_id > $1"
        " order by sender_id limit $2",
        after,
        limit,
    )
    return [SealedToken(**dict(row)) for row in rows]


async def replace_tokens(connection: Connection, pairs: Sequence[tuple[SealedToken, SealedToken]]) -> int:
    """Put each second in place of its first, where that still stands; returns how many were."""
    if not pairs:
        return 0
    done: str = await connection.execute(
        "update sender s set token = new.token, token_tag = new.tag"
        " from unnest($1::text[], $2::bytea[], $3::bytea[], $4::text[]) as new(sender_id, former, token, tag)"
        " where s.sender_id = new.sender_id and s.token = new.former",
        [new.sender_id for _, new in pairs],
        [old.token for old, _ in pairs],
        [new.token for _, new in pairs],
        [new.tag for _, new in pairs],
    )
    return int(done.rpartition(" ")[2])


async def seen_replicas(connection: Connection, name: str, alive_seconds: float) -> int:
    """Note that this replica lives; returns how many do."""
    await connection.execute(
        "insert into replica (name, seen_at) values ($1, clock_timestamp())"
        " on conflict (name) do update set seen_at = excluded.seen_at",
        name,
    )
    alive: int = await connection.fetchval(
        "select count(*) from replica where seen_at > clock_timestamp() - make_interval(secs => $1)", alive_seconds
    )
    return alive
