"""What the webhook log reads. `everything`: also what belongs to no known workspace, and what was refused; for those
who see all workspaces."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import asyncpg
from pydantic import BaseModel, ConfigDict, Field, model_validator
from sendwhy.postgres import Connection

from message_log.queries import Page, Text, When, as_uuid, from_cursor, page_of


class WebhookFilters(BaseModel):
    """`wamid`: Meta's id of a message in it. `refused`: only those that were not taken. Times are Kafka's."""

    model_config = ConfigDict(frozen=True, populate_by_name=True, extra="ignore")

    wamid: Text | None = None
    refused: bool | None = None
    since: When | None = Field(default=None, alias="from")
    until: When | None = Field(default=None, alias="to")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_none(cls, given: Any) -> Any:
        """A form sends every field, the empty ones too."""
        return {name: value or None for name, value in given.items()} if isinstance(given, dict) else given


# Which ones: each kind is read along an index in the order of time, so that a page costs what it shows.
_KIND = """(
select distinct received_at, webhook_id from {table} where {tests}
  and (received_at, webhook_id) < (coalesce($3, 'infinity'::timestamptz), $4::uuid)
  and received_at >= coalesce($6, '-infinity'::timestamptz) and received_at < coalesce($7, 'infinity'::timestamptz)
order by received_at desc, webhook_id desc limit $5)"""
_LIST_WEBHOOKS = """
with found as materialized (select * from ({found}) every order by received_at desc, webhook_id desc limit $5)
select w.webhook_id, w.received_at, w.source, w.app, w.refused, w.size,
       array(select p.kind from webhook_part p where p.webhook_id = w.webhook_id and p.received_at = w.received_at
             and (p.workspace_id = $1 or $2 and p.workspace_id is null) order by p.position limit 20) as kinds
from found f join webhook w on w.webhook_id = f.webhook_id and w.received_at = f.received_at
order by w.received_at desc, w.webhook_id desc
"""


def _found(filters: WebhookFilters, *, everything: bool) -> str:
    """The statements that together find what fits, "" where nothing can. What was refused has no parts."""
    wamid = "wamid = $8" if filters.wamid is not None else "$8::text is null"
    owners = ["workspace_id = $1", *(["workspace_id is null"] if everything else [])]
    kinds = [("webhook_part", f"{owner} and {wamid}") for owner in owners if not filters.refused]
    if everything and filters.refused is not False:
        kinds.append(("webhook", "refused is not null and $8::text is null"))
    return " union ".join(_KIND.format(table=table, tests=tests) for table, tests in kinds)


async def list_webhooks(
    connection: Connection,
    workspace: str,
    filters: WebhookFilters,
    *,
    everything: bool,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    found = _found(filters, everything=everything)
    if not found:
        return Page((), None)
    rows = await connection.fetch(
        _LIST_WEBHOOKS.format(found=found),
        workspace,
        everything,
        at,
        as_uuid(key) if key else None,
        limit + 1,
        filters.since,
        filters.until,
        filters.wamid,
    )
    return page_of(rows, limit, "received_at", "webhook_id")


# The bytes are for those who see everything: they may tell of several workspaces.
_READ_WEBHOOK = """
select w.webhook_id, w.received_at, w.source, w.app, w.refused, w.size, w.headers, {body} as body,
       exists (select from webhook_part p where p.webhook_id = w.webhook_id and p.received_at = w.received_at
                    and p.workspace_id = $2) as own
from webhook w where w.webhook_id = $1
"""
# What webhook-ingest made of a part, as far as this log can tell: the status, or the message that came in.
_MADE = """
left join lateral (
    select e.event_id, e.kind, e.occurred_at from event e
    where p.message_id is not null and e.workspace_id = p.workspace_id and e.message_id = p.message_id
      and e.service = 'webhook-ingest' and p.kind = 'status ' || e.kind
    union all
    select e.event_id, e.kind, e.occurred_at from message m
    join event e on e.workspace_id = m.workspace_id and e.message_id = m.message_id
    where p.message_id is null and m.wamid = p.wamid and m.workspace_id = p.workspace_id
      and e.service = 'webhook-ingest' and p.kind = 'status ' || e.kind
    union all
    select e.event_id, e.kind, e.occurred_at from event e
    where e.message_id is null and e.wamid = p.wamid and e.service = 'webhook-ingest' and p.kind = 'status ' || e.kind
      and e.workspace_id = p.workspace_id
    union all
    select i.event_id, 'message.received', i.at from inbound i
    where i.sender_id = p.sender_id and i.wamid = p.wamid and p.kind like 'message %'
    union all
    select e.event_id, e.kind, e.occurred_at from nobodys_events(p.wamid) e
    where p.kind like 'status %' and e.service = 'webhook-ingest' and p.kind = 'status ' || e.kind
    limit 1
) made on p.wamid is not null
"""
# The message that nobody's part names may be anybody's.
_READ_PARTS = f"""
select p.kind, p.workspace_id, p.sender_id, p.waba_id, p.wamid,
       case when p.workspace_id is not null then p.message_id end as message_id,
       made.event_id as made_id, made.kind as made_kind, made.occurred_at as made_at
from webhook_part p {_MADE}
where p.webhook_id = $1 and p.received_at = $2 and (p.workspace_id = $3 or $4 and p.workspace_id is null)
order by p.position limit 2000
"""  # noqa: S608 - only the text above


async def read_webhook(
    connection: Connection, workspace: str, webhook_id: str, *, everything: bool
) -> tuple[asyncpg.Record, Sequence[asyncpg.Record]] | None:
    """A delivery with the parts that this workspace may see; None where none of it is its own."""
    key = as_uuid(webhook_id)
    statement = _READ_WEBHOOK.format(body="w.body" if everything else "null::bytea")
    row = None if key is None else await connection.fetchrow(statement, key, workspace)
    if row is None or not (row["own"] or everything):
        return None
    parts: list[asyncpg.Record] = await connection.fetch(
        _READ_PARTS, row["webhook_id"], row["received_at"], workspace, everything
    )
    return row, parts


_COUNT_PARTS = f"""
select p.kind, count(*) as count, count(*) filter (where made.event_id is null) as without
from webhook_part p {_MADE}
where p.workspace_id = $1 and p.received_at >= $2 and p.received_at < $3
group by p.kind order by p.kind
"""  # noqa: S608 - only the text above


@dataclass(frozen=True, slots=True)
class PartCount:
    """`without`: of which this log knows no event. For parts other than statuses and messages that says nothing."""

    kind: str
    count: int
    without: int

    @property
    def is_known_by_event(self) -> bool:
        return self.kind.startswith(("status ", "message "))


async def count_parts(connection: Connection, workspace: str, since: datetime, until: datetime) -> list[PartCount]:
    """What the deliveries of a span hold of a workspace, by kind."""
    rows = await connection.fetch(_COUNT_PARTS, workspace, since, until)
    return [PartCount(row["kind"], row["count"], row["without"]) for row in rows]
