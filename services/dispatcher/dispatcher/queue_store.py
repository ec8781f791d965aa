"""The SQL of the queue: messages from send.funded to their end, campaigns, cancellations. As in store.py."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from asyncpg import Record as Row
from sendwhy.events import Reason, SendFunded
from sendwhy.postgres import Connection

from dispatcher.decide import CAMPAIGN, UPSTREAM, Lane, Message, Waiting
from dispatcher.limits import Throttle
from dispatcher.store import OBJECTS, Key

WAKE_SECONDS = 600

_MESSAGE_COLUMNS = """
m.workspace_id, m.message_id, m.sender_id, m.lane, m.queued_at, m.attempts, m.tries, m.slotted, m.waiting_for,
m.waiting_since, m.told, m.funded, m.state, m.in_flight_at, m.trace
"""


def _message(row: Row, paused_at: datetime | None = None, cancelled_by: str | None = None) -> Message:
    return Message(
        funded=SendFunded.model_validate_json(row["funded"]),
        sender_id=row["sender_id"] or "",
        lane=Lane(row["lane"]),
        queued_at=row["queued_at"],
        attempts=row["attempts"],
        tries=tuple(OBJECTS.validate_json(row["tries"])),
        slotted=row["slotted"],
        waiting_for=Waiting(row["waiting_for"]),
        waiting_since=row["waiting_since"],
        told=frozenset(Waiting(cause) for cause in row["told"]),
        campaign_paused_at=paused_at,
        cancelled_by=cancelled_by,
    )


@dataclass(frozen=True, slots=True)
class NewMessage:
    """A message as it enters the queue. `state` is "rejected" where it can't even wait (no sender, cancelled), and
    "unknown" where it was handled before a backup was restored."""

    message: Message
    campaign_id: str | None
    state: str
    outcome: str | None
    trace: bytes | None


_ADD_MESSAGES = """
insert into message (workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription,
                     not_before, expires_at, queued_at, state, outcome, funded, trace, template, in_flight_at)
select *, case when state = 'unknown' then clock_timestamp() end
from unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::text[], $6::text[], $7::text[],
                     $8::boolean[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[],
                     $13::text[], $14::bytea[], $15::bytea[], $16::text[])
  as new(workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription, not_before,
         expires_at, queued_at, state, outcome, funded, trace, template)
on conflict do nothing
returning workspace_id, message_id
"""


async def park_all(connection: Connection, funded_below: Mapping[int, int]) -> int:
    """After a restored backup: nobody knows what was sent since. What waits, and every send.funded below these
    offsets (by partition), is parked as unknown and never sent by itself. Returns how many waited."""
    partitions = sorted(funded_below)
    await connection.execute(
        "insert into parked_below (partition, next_offset) select * from unnest($1::int[], $2::bigint[])"
        " on conflict (partition) do update"
        " set next_offset = greatest(parked_below.next_offset, excluded.next_offset)",
        partitions,
        [funded_below[partition] for partition in partitions],
    )
    parked: str = await connection.execute(
        "update message set state = 'unknown', in_flight_at = clock_timestamp() where state in ('waiting', 'in_flight')"
    )
    return int(parked.rpartition(" ")[2])


async def parked_below(connection: Connection) -> dict[int, int]:
    rows = await connection.fetch("select partition, next_offset from parked_below")
    return {row["partition"]: row["next_offset"] for row in rows}


_ENTER_QUEUES = """
select pg_advisory_xact_lock_shared(hashtextextended('dispatcher.queue/' || workspace, 0))
from unnest($1::text[]) as workspace
"""
_CLOSE_QUEUES = _ENTER_QUEUES.replace("lock_shared", "lock")


async def enter_queues(connection: Connection, workspaces: Iterable[str]) -> None:
    """Until the transaction ends, nobody may take messages out by a person's state and miss those that come in now."""
    await connection.execute(_ENTER_QUEUES, sorted(set(workspaces)))


async def close_queues(connection: Connection, workspaces: Iterable[str]) -> None:
    """Wait for what is coming in, so that it is found, and let nothing in that doesn't see what is now stored."""
    await connection.execute(_CLOSE_QUEUES, sorted(set(workspaces)))


async def add_messages(connection: Connection, rows: Iterable[NewMessage]) -> set[Key]:
    """Queue messages; returns the keys of those that were not known before."""
    ordered = sorted(rows, key=lambda row: row.message.key)
    funded = [row.message.funded for row in ordered]
    added = await connection.fetch(
        _ADD_MESSAGES,
        [one.workspace_id for one in funded],
        [one.message_id for one in funded],
        [row.message.sender_id or None for row in ordered],
        [int(row.message.lane) for row in ordered],
        [row.campaign_id for row in ordered],
        [one.resolved.contact_id for one in funded],
        [one.resolved.phone for one in funded],
        [one.needs_subscription for one in funded],
        [one.send_at for one in funded],
        [one.expires_at for one in funded],
        [row.message.queued_at for row in ordered],
        [row.state for row in ordered],
        [row.outcome for row in ordered],
        [one.to_json() for one in funded],
        [row.trace for row in ordered],
        [template_name(one.name, one.language.code) if (one := row.message.template) else None for row in ordered],
    )
    return {(row["workspace_id"], row["message_id"]) for row in added}


def template_name(name: str, language: str) -> str:
    """As it stands in the column `template`."""
    return f"{name}/{language}"


async def cancelled(connection: Connection, keys: Sequence[Key]) -> dict[Key, str]:
    """Which of these were cancelled before they came, and by whom."""
    rows = await connection.fetch(
        "select c.workspace_id, c.message_id, c.cancelled_by from cancellation c"
        " join unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)"
        " on c.workspace_id = asked.workspace_id and c.message_id = asked.message_id",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )
    return {(row["workspace_id"], row["message_id"]): row["cancelled_by"] or UPSTREAM for row in rows}


async def remember_cancellations(
    connection: Connection, rows: Sequence[tuple[str, str, str | None]], now: datetime
) -> None:
    await connection.execute(
        "insert into cancellation (workspace_id, message_id, cancelled_by, at)"
        " select *, $4 from unnest($1::text[], $2::text[], $3::text[]) on conflict do nothing",
        [row[0] for row in rows],
        [row[1] for row in rows],
        [row[2] for row in rows],
        now,
    )


_DUE = f"""
select {_MESSAGE_COLUMNS}, c.campaign_id, c.paused_at, c.per_minute, c.per_day,
       case when x.message_id is not null then coalesce(x.cancelled_by, '{UPSTREAM}')
            when c.cancelled_at is not null then '{CAMPAIGN}' end as cancelled_by
from message m
left join campaign c on c.workspace_id = m.workspace_id and c.campaign_id = m.campaign_id
left join cancellation x on x.workspace_id = m.workspace_id and x.message_id = m.message_id
where m.state = 'waiting' and m.sender_id = $1 and m.not_before <= $2
order by m.lane, m.not_before
limit $3
for update of m skip locked
"""  # noqa: S608 - a constant

# One lane a statement: "order by lane desc" fits no index and would sort the whole queue.
_DUE_IN_LANE = _DUE.replace("order by m.lane,", "and m.lane = $4 order by")

# In a throttled campaign all that have no slot yet are due before those whose slot has come.
_DUE_SLOTTED = _DUE.replace("order by m.lane,", "and m.slotted order by m.lane,")

# Locked, so that a resume waits for this transaction and then finds what it lets wait, or is seen here.
_PAUSED_CAMPAIGNS = """
select c.workspace_id, c.campaign_id from campaign c
join unnest($1::text[], $2::text[]) as asked(workspace_id, campaign_id)
  on c.workspace_id = asked.workspace_id and c.campaign_id = asked.campaign_id
where c.paused_at is not null order by c.workspace_id, c.campaign_id for share of c
"""


@dataclass(frozen=True, slots=True)
class Due:
    """A message that may be looked at now, and whether a throttle is set on its campaign."""

    message: Message
    campaign_id: str | None
    throttled: bool
    trace: bytes | None


async def lock_due(
    connection: Connection, sender_id: str, now: datetime, *, limit: int, last_lane_first: bool
) -> list[Due]:
    rows: list[Row] = []
    for lane in (Lane.MARKETING, Lane.TRANSACTIONAL) if last_lane_first else ():
        rows = rows or await connection.fetch(_DUE_IN_LANE, sender_id, now, limit, int(lane))
    rows = rows or await connection.fetch(_DUE, sender_id, now, limit)
    free = limit - sum(map(_may_go, rows))
    if free and not all(map(_may_go, rows)):
        seen = {(row["workspace_id"], row["message_id"]) for row in rows}
        slotted = await connection.fetch(_DUE_SLOTTED, sender_id, now, limit)
        rows += [row for row in slotted if (row["workspace_id"], row["message_id"]) not in seen][:free]
    asked = {(row["workspace_id"], row["campaign_id"]) for row in rows if row["paused_at"]}
    paused = await _paused_campaigns(connection, asked) if asked else set()
    return [_due(row, paused) for row in rows]


def _may_go(row: Row) -> bool:
    """Whether it needs no slot any more: else it is only given one now."""
    return bool(row["slotted"]) or (row["per_minute"] is None and row["per_day"] is None)


async def _paused_campaigns(connection: Connection, asked: Iterable[Key]) -> set[Key]:
    keys = sorted(asked)
    rows = await connection.fetch(_PAUSED_CAMPAIGNS, [key[0] for key in keys], [key[1] for key in keys])
    return {(row["workspace_id"], row["campaign_id"]) for row in rows}


def _due(row: Row, paused: Container[Key]) -> Due:
    still_paused = (row["workspace_id"], row["campaign_id"]) in paused
    message = _message(row, row["paused_at"] if still_paused else None, row["cancelled_by"])
    throttled = row["per_minute"] is not None or row["per_day"] is not None
    origin = message.funded.request.origin
    return Due(message, origin.id, throttled, row["trace"])


_MARK_IN_FLIGHT = """
update message m set state = 'in_flight', attempts = m.attempts + 1, fence = $3, in_flight_at = clock_timestamp()
from unnest($1::text[], $2::text[]) as go(workspace_id, message_id)
where m.workspace_id = go.workspace_id and m.message_id = go.message_id
"""


async def mark_in_flight(connection: Connection, keys: Sequence[Key], fence: int) -> None:
    ordered = sorted(keys)
    await connection.execute(_MARK_IN_FLIGHT, [key[0] for key in ordered], [key[1] for key in ordered], fence)


@dataclass(frozen=True, slots=True)
class NewWait:
    key: Key
    waiting_for: Waiting
    not_before: datetime | None
    slotted: bool
    told: bool


_WAIT = """
update message m set waiting_for = w.waiting_for, not_before = coalesce(w.not_before, 'infinity'),
    slotted = m.slotted or w.slotted, told = case when w.told then m.told || w.waiting_for else m.told end,
    waiting_since = case when m.waiting_for = w.waiting_for and m.waiting_since is not null
                         then m.waiting_since else clock_timestamp() end
from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::boolean[], $6::boolean[])
  as w(workspace_id, message_id, waiting_for, not_before, slotted, told)
where m.workspace_id = w.workspace_id and m.message_id = w.message_id and m.state = 'waiting'
"""


async def set_waits(connection: Connection, waits: Iterable[NewWait]) -> None:
    rows = sorted(waits, key=lambda wait: wait.key)
    await connection.execute(
        _WAIT,
        [row.key[0] for row in rows],
        [row.key[1] for row in rows],
        [row.waiting_for.value for row in rows],
        [row.not_before for row in rows],
        [row.slotted for row in rows],
        [row.told for row in rows],
    )


_FINISH_WAITING = """
update message m set state = $3, outcome = f.outcome
from unnest($1::text[], $2::text[], $4::text[]) as f(workspace_id, message_id, outcome)
where m.workspace_id = f.workspace_id and m.message_id = f.message_id and m.state = 'waiting'
returning m.workspace_id, m.message_id
"""


async def finish_waiting(connection: Connection, state: str, outcomes: Mapping[Key, str]) -> set[Key]:
    """Move waiting messages to their end ("rejected", "recalled"); returns those that still waited."""
    keys = sorted(outcomes)
    rows = await connection.fetch(
        _FINISH_WAITING, [key[0] for key in keys], [key[1] for key in keys], state, [outcomes[key] for key in keys]
    )
    return {(row["workspace_id"], row["message_id"]) for row in rows}


@dataclass(frozen=True, slots=True)
class Result:
    """How one try ended: the next state, and for a waiting one what for and until when."""

    key: Key
    attempt: int
    state: str
    waiting_for: Waiting
    not_before: datetime | None
    wamid: str | None
    outcome: str | None
    tries: Sequence[Mapping[str, Any]]
    told: bool = False


# A try's result counts once, and only for the row's last try: a driver that was replaced meanwhile changes nothing
# that its successor has done, and what it knows of its own try is still true. Meta's word that it took the message
# comes first even where the outcome was given up.
_RECORD_RESULTS = """
update message m set state = r.state, waiting_for = r.waiting_for, wamid = r.wamid, outcome = r.outcome,
    not_before = coalesce(r.not_before, m.not_before), tries = r.tries,
    told = case when r.told then m.told || r.waiting_for else m.told end,
    waiting_since = case when r.state <> 'waiting' or m.waiting_for = r.waiting_for and m.waiting_since is not null
                         then m.waiting_since else clock_timestamp() end
from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::text[], $6::timestamptz[], $7::text[], $8::text[],
            $9::bytea[], $10::boolean[])
  as r(workspace_id, message_id, attempt, state, waiting_for, not_before, wamid, outcome, tries, told)
where m.workspace_id = r.workspace_id and m.message_id = r.message_id and m.attempts = r.attempt
  and (m.state in ('in_flight', 'unknown')
       or r.state = 'accepted' and m.state = 'rejected' and m.outcome = 'SEND_OUTCOME_UNKNOWN')
returning m.workspace_id, m.message_id, m.contact_id
"""


async def record_results(connection: Connection, results: Iterable[Result]) -> dict[Key, str | None]:
    """Store how tries ended; returns the messages for which that was news, and for which contact each now is."""
    rows = sorted(results, key=lambda result: result.key)
    changed = await connection.fetch(
        _RECORD_RESULTS,
        [row.key[0] for row in rows],
        [row.key[1] for row in rows],
        [row.attempt for row in rows],
        [row.state for row in rows],
        [row.waiting_for.value for row in rows],
        [row.not_before for row in rows],
        [row.wamid for row in rows],
        [row.outcome for row in rows],
        [OBJECTS.dump_json([dict(one) for one in row.tries]) for row in rows],
        [row.told for row in rows],
    )
    return {(row["workspace_id"], row["message_id"]): row["contact_id"] for row in changed}


_PARK = """
update message set state = 'unknown', in_flight_at = coalesce(in_flight_at, clock_timestamp())
where sender_id = $1 and state = 'in_flight' and fence < $2
"""


async def take_over(connection: Connection, sender_id: str) -> int | None:
    """Become the sender's driver: a new fence, and what its former driver left in flight is parked as unknown."""
    fence: int | None = await connection.fetchval(
        "update sender set fence = fence + 1 where sender_id = $1 returning fence", sender_id
    )
    if fence is not None:
        await connection.execute(_PARK, sender_id, fence)
    return fence


_GIVE_BACK = """
update message m set state = 'waiting'
where m.sender_id = $1 and m.state = 'in_flight' and m.fence = $2
  and not exists (select from unnest($3::text[], $4::text[]) as called(workspace_id, message_id)
                  where called.workspace_id = m.workspace_id and called.message_id = m.message_id)
"""


async def give_back(connection: Connection, sender_id: str, fence: int, called: Iterable[Key]) -> None:
    """Let wait again what this driver marked in flight without calling, since it never learnt of its own commit."""
    # A commit whose answer was lost may still be on its way; it holds a share lock on this row until it is there.
    await connection.execute("select from sender where sender_id = $1 for update", sender_id)
    keys = sorted(called)
    await connection.execute(_GIVE_BACK, sender_id, fence, [key[0] for key in keys], [key[1] for key in keys])


_EXPIRED = f"""
select {_MESSAGE_COLUMNS}, s.hold from message m left join sender s on s.sender_id = m.sender_id
where m.state = 'waiting' and m.expires_at <= $1 order by m.expires_at limit $2
for update of m skip locked
"""  # noqa: S608 - a constant


async def lock_expired(connection: Connection, now: datetime, limit: int) -> list[tuple[Message, Reason | None]]:
    """Waiting messages whose time is over, each with its sender's hold."""
    rows = await connection.fetch(_EXPIRED, now, limit)
    return [(_message(row), Reason.model_validate_json(row["hold"]) if row["hold"] else None) for row in rows]


_UNKNOWN_TOO_LONG = f"""
select {_MESSAGE_COLUMNS} from message m
where m.state = 'unknown' and m.in_flight_at <= $1 order by m.in_flight_at limit $2
for update of m skip locked
"""  # noqa: S608 - a constant


async def lock_unknown(connection: Connection, before: datetime, limit: int) -> list[tuple[Message, datetime]]:
    rows = await connection.fetch(_UNKNOWN_TOO_LONG, before, limit)
    return [(_message(row), row["in_flight_at"]) for row in rows]


async def finish_unknown(connection: Connection, outcomes: Mapping[Key, str]) -> None:
    keys = sorted(outcomes)
    await connection.execute(
        "update message m set state = 'rejected', outcome = f.outcome"
        " from unnest($1::text[], $2::text[], $3::text[]) as f(workspace_id, message_id, outcome)"
        " where m.workspace_id = f.workspace_id and m.message_id = f.message_id and m.state = 'unknown'",
        [key[0] for key in keys],
        [key[1] for key in keys],
        [outcomes[key] for key in keys],
    )


_TAKEN_BY_WEBHOOK = f"""
update message m set state = 'accepted', wamid = t.wamid, outcome = 'accepted'
from unnest($1::text[], $2::text[], $3::text[]) as t(workspace_id, message_id, wamid)
where m.workspace_id = t.workspace_id and m.message_id = t.message_id
  and (m.state in ('in_flight', 'unknown') or m.state = 'waiting' and m.attempts > 0
       or m.state = 'rejected' and m.outcome = 'SEND_OUTCOME_UNKNOWN')
returning {_MESSAGE_COLUMNS}
"""  # noqa: S608 - a constant


async def taken_by_webhook(connection: Connection, told: Mapping[Key, str]) -> list[tuple[Message, bytes | None]]:
    """Messages that Meta's webhook proves to be taken, of those whose fate was open; with their traces."""
    keys = sorted(told)
    rows = await connection.fetch(
        _TAKEN_BY_WEBHOOK, [key[0] for key in keys], [key[1] for key in keys], [told[key] for key in keys]
    )
    return [(_message(row), row["trace"]) for row in rows]


_LOCK_WAITING = f"""
select {_MESSAGE_COLUMNS} from message m
join unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)
  on m.workspace_id = asked.workspace_id and m.message_id = asked.message_id
where m.state = 'waiting' order by m.workspace_id, m.message_id for update of m
"""  # noqa: S608 - a constant

_LOCK_MESSAGES = _LOCK_WAITING.replace("where m.state = 'waiting' order by", "order by")
_READ_MESSAGES = _LOCK_MESSAGES.replace("for update of m", "")

_LOCK_WAITING_OF_CONTACTS = f"""
select {_MESSAGE_COLUMNS} from message m
join unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
  on m.workspace_id = asked.workspace_id and m.contact_id = asked.contact_id
where m.state = 'waiting' and (m.needs_subscription or m.lane = 2)
order by m.workspace_id, m.message_id for update of m
"""  # noqa: S608 - a constant

_LOCK_WAITING_OF_CAMPAIGN = f"""
select {_MESSAGE_COLUMNS} from message m
where m.state = 'waiting' and m.workspace_id = $1 and m.campaign_id = $2
order by m.workspace_id, m.message_id limit $3 for update of m
"""  # noqa: S608 - a constant


async def lock_waiting(connection: Connection, keys: Sequence[Key]) -> list[Message]:
    rows = await connection.fetch(_LOCK_WAITING, [key[0] for key in keys], [key[1] for key in keys])
    return [_message(row) for row in rows]


@dataclass(frozen=True, slots=True)
class Locked:
    """A message with its state and trace."""

    message: Message
    state: str
    trace: bytes | None


async def lock_messages(connection: Connection, keys: Sequence[Key]) -> list[Locked]:
    """These messages, whatever their state."""
    return await read_messages(connection, keys, statement=_LOCK_MESSAGES)


async def read_messages(
    connection: Connection, keys: Sequence[Key], *, statement: str = _READ_MESSAGES
) -> list[Locked]:
    rows = await connection.fetch(statement, [key[0] for key in keys], [key[1] for key in keys])
    return [Locked(_message(row), row["state"], row["trace"]) for row in rows]


async def lock_waiting_of_contacts(connection: Connection, contacts: Sequence[Key]) -> list[Message]:
    """Waiting messages to these (workspace_id, contact_id) that need a subscription."""
    rows = await connection.fetch(_LOCK_WAITING_OF_CONTACTS, [key[0] for key in contacts], [key[1] for key in contacts])
    return [_message(row) for row in rows]


async def lock_waiting_of_campaign(
    connection: Connection, workspace_id: str, campaign_id: str, limit: int
) -> list[Message]:
    rows = await connection.fetch(_LOCK_WAITING_OF_CAMPAIGN, workspace_id, campaign_id, limit)
    return [_message(row) for row in rows]


# What is locked is being decided on right now, by facts that are as new.
_WAKE = """
with woken as (
    select workspace_id, message_id from message
    where state = 'waiting' and waiting_for = any($1::text[]) and {whose} for update skip locked
)
update message m set not_before = clock_timestamp(), slotted = false
from woken where m.workspace_id = woken.workspace_id and m.message_id = woken.message_id
"""
_WAKE_OF_SENDER = _WAKE.format(whose="sender_id = $2")
_WAKE_OF_CAMPAIGN = _WAKE.format(whose="workspace_id = $2 and campaign_id = $3")


async def wake_waiting(
    connection: Connection, waiting_for: Sequence[Waiting], *, sender_id: str | None = None, campaign: Key | None = None
) -> None:
    """Look again, now, at what waits for these causes at a sender or in a campaign."""
    causes = [cause.value for cause in waiting_for]
    # A million rows take longer than what other statements are allowed.
    await connection.execute(f"set local statement_timeout = '{WAKE_SECONDS}s'")
    if sender_id is not None:
        await connection.execute(_WAKE_OF_SENDER, causes, sender_id, timeout=WAKE_SECONDS)
    if campaign is not None:
        await connection.execute(_WAKE_OF_CAMPAIGN, causes, *campaign, timeout=WAKE_SECONDS)


async def lock_throttle(connection: Connection, workspace_id: str, campaign_id: str) -> Throttle:
    row = await connection.fetchrow(
        "select per_minute, per_day, next_slot_at, day_start, day_count from campaign"
        " where workspace_id = $1 and campaign_id = $2 for update",
        workspace_id,
        campaign_id,
    )
    assert row is not None
    return Throttle(**dict(row))


async def read_throttles(connection: Connection, campaigns: Iterable[Key]) -> dict[Key, Throttle]:
    """The throttles of those campaigns that have one."""
    keys = sorted(campaigns)
    rows = await connection.fetch(
        "select c.* from campaign c join unnest($1::text[], $2::text[]) as asked(workspace_id, campaign_id)"
        " on c.workspace_id = asked.workspace_id and c.campaign_id = asked.campaign_id"
        " where c.per_minute is not null or c.per_day is not null",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )
    fields = ("per_minute", "per_day", "next_slot_at", "day_start", "day_count")
    return {(row["workspace_id"], row["campaign_id"]): Throttle(*(row[field] for field in fields)) for row in rows}


async def save_throttle(connection: Connection, workspace_id: str, campaign_id: str, throttle: Throttle) -> None:
    await connection.execute(
        "update campaign set next_slot_at = $3, day_start = $4, day_count = $5"
        " where workspace_id = $1 and campaign_id = $2",
        workspace_id,
        campaign_id,
        throttle.next_slot_at,
        throttle.day_start,
        throttle.day_count,
    )


async def put_throttle(
    connection: Connection, workspace_id: str, campaign_id: str, per_minute: int | None, per_day: int | None
) -> None:
    await connection.execute(
        "insert into campaign (workspace_id, campaign_id, per_minute, per_day) values ($1, $2, $3, $4)"
        " on conflict (workspace_id, campaign_id) do update"
        " set per_minute = $3, per_day = $4, next_slot_at = null, day_start = null, day_count = 0",
        workspace_id,
        campaign_id,
        per_minute,
        per_day,
    )


async def pause_campaign(
    connection: Connection, workspace_id: str, campaign_id: str, paused_at: datetime | None
) -> None:
    await connection.execute(
        "insert into campaign (workspace_id, campaign_id, paused_at) values ($1, $2, $3)"
        " on conflict (workspace_id, campaign_id) do update set paused_at = $3",
        workspace_id,
        campaign_id,
        paused_at,
    )


async def cancel_campaign(connection: Connection, workspace_id: str, campaign_id: str, now: datetime) -> None:
    await connection.execute(
        "insert into campaign (workspace_id, campaign_id, cancelled_at) values ($1, $2, $3)"
        " on conflict (workspace_id, campaign_id) do update set cancelled_at = $3",
        workspace_id,
        campaign_id,
        now,
    )


@dataclass(frozen=True, slots=True)
class Stopped:
    """Since when a campaign is paused, or cancelled."""

    paused_at: datetime | None
    cancelled_at: datetime | None


async def stopped_campaigns(connection: Connection, campaigns: Iterable[Key]) -> dict[Key, Stopped]:
    keys = sorted(campaigns)
    rows = await connection.fetch(
        "select c.workspace_id, c.campaign_id, c.paused_at, c.cancelled_at from campaign c"
        " join unnest($1::text[], $2::text[]) as asked(workspace_id, campaign_id)"
        " on c.workspace_id = asked.workspace_id and c.campaign_id = asked.campaign_id"
        " where c.paused_at is not null or c.cancelled_at is not null",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )
    return {(row["workspace_id"], row["campaign_id"]): Stopped(row["paused_at"], row["cancelled_at"]) for row in rows}


async def queue_by_cause(connection: Connection, workspace_id: str | None) -> list[Row]:
    rows: list[Row] = await connection.fetch(
        "select lane, case when state = 'waiting' then waiting_for else state end as waiting_for,"
        " count(*) as messages, min(queued_at) as oldest from message"
        " where state in ('waiting', 'in_flight', 'unknown') and ($1::text is null or workspace_id = $1)"
        " group by 1, 2 order by 1, 2",
        workspace_id,
    )
    return rows


_LOCK_WAITING_OF_TEMPLATE = f"""
select {_MESSAGE_COLUMNS} from message m
where m.state = 'waiting' and not m.needs_subscription and m.sender_id = any($1::text[]) and m.template = $2
order by m.workspace_id, m.message_id limit $3 for update of m skip locked
"""  # noqa: S608 - a constant


async def lock_waiting_of_template(
    connection: Connection, sender_ids: Sequence[str], template: str, limit: int
) -> list[Message]:
    """Some of what waits by this template and needs no subscription; what a driver decides on now is left out."""
    return [_message(row) for row in await connection.fetch(_LOCK_WAITING_OF_TEMPLATE, sender_ids, template, limit)]


async def any_waiting_of_template(connection: Connection, sender_ids: Sequence[str], template: str) -> bool:
    found: bool = await connection.fetchval(
        "select exists (select from message where state = 'waiting' and not needs_subscription"
        " and sender_id = any($1::text[]) and template = $2)",
        sender_ids,
        template,
    )
    return found


async def need_subscription(connection: Connection, keys: Sequence[Key]) -> None:
    """From now on these are marketing, and a STOP takes them out."""
    await connection.execute(
        "update message m set needs_subscription = true, lane = case when m.lane = $3 then $4 else m.lane end"
        " from unnest($1::text[], $2::text[]) as t(workspace_id, message_id)"
        " where m.workspace_id = t.workspace_id and m.message_id = t.message_id",
        [key[0] for key in keys],
        [key[1] for key in keys],
        int(Lane.TRANSACTIONAL),
        int(Lane.MARKETING),
    )


async def message_state(connection: Connection, key: Key) -> str | None:
    state: str | None = await connection.fetchval(
        "select state from message where workspace_id = $1 and message_id = $2", *key
    )
    return state
