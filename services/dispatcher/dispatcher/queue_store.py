"""The SQL of the queue: messages from send.funded to their end, campaigns, cancellations. As in store.py."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any
from uuid import UUID

from asyncpg import Record as Row
from sendwhy.erasure import KEEP_WAITING
from sendwhy.events import ContactUpdated, Reason, SendFunded
from sendwhy.postgres import Connection, outbox_columns, rows_locked
from sendwhy.privacy import ERASED_PREFIX, alias_of
from sendwhy.stage import Record
from sendwhy.topics import Outgoing
from sendwhy.values import value_class

from dispatcher import salvage
from dispatcher.decide import UPSTREAM, Lane, Message, Waiting, campaign_of
from dispatcher.driving import BUSY_IS_NEWS
from dispatcher.rests import Rest
from dispatcher.store import OBJECTS, Key

WAKE_AT_MOST = 5_000

MESSAGE_COLUMNS = """
m.workspace_id, m.message_id, m.sender_id, m.lane, m.queued_at, m.attempts, m.tries, m.waiting_for,
m.waiting_since, m.told, m.funded, m.state, m.in_flight_at, m.trace
"""


def message_of(row: Row, paused_at: datetime | None = None, cancelled_by: str | None = None) -> Message:
    funded, unreadable = salvage.read(row["funded"], row["workspace_id"], row["message_id"], row["queued_at"])
    return Message(
        funded=funded,
        sender_id=row["sender_id"] or "",
        lane=Lane(row["lane"]),
        queued_at=row["queued_at"],
        attempts=row["attempts"],
        tries=salvage.read_tries(row["tries"]),
        waiting_for=Waiting(row["waiting_for"]),
        waiting_since=row["waiting_since"],
        told=frozenset(Waiting(cause) for cause in row["told"]),
        campaign_paused_at=paused_at,
        cancelled_by=cancelled_by,
        unreadable=unreadable,
        trace=row["trace"],
    )


@value_class
class NewMessage:
    """A message as it enters the queue. `state` is "rejected" where it can't even wait (no sender, cancelled), and
    "unknown" where it was handled before a backup was restored. `lined`: in its campaign's own line. `body`: its
    send.funded as it came; None: as the message has it."""

    message: Message
    campaign_id: str | None
    state: str
    outcome: str | None
    lined: bool = False
    body: bytes | None = None


_ADD_MESSAGES = """
insert into message (workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription,
                     not_before, expires_at, queued_at, state, outcome, funded, trace, line, template,
                     in_flight_at)
select *, case when state = 'unknown' then clock_timestamp() end
from unnest($1::text[], $2::text[], $3::text[], $4::smallint[], $5::text[], $6::text[], $7::text[],
                     $8::boolean[], $9::timestamptz[], $10::timestamptz[], $11::timestamptz[], $12::text[],
                     $13::text[], $14::bytea[], $15::bytea[], $16::text[], $17::text[])
  as new(workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone, needs_subscription, not_before,
         expires_at, queued_at, state, outcome, funded, trace, line, template)
on conflict do nothing
returning workspace_id, message_id
"""


_ENTER_QUEUES = """
select pg_advisory_xact_lock_shared(hashtextextended('dispatcher.queue/' || workspace, 0))
from unnest($1::text[]) as workspace
"""
_CLOSE_QUEUES = _ENTER_QUEUES.replace("lock_shared", "lock")
_ENTER_QUEUES = f"{KEEP_WAITING} union all {_ENTER_QUEUES}"


async def enter_queues(connection: Connection, workspaces: Iterable[str]) -> None:
    """Until the transaction ends, nobody may take messages out by a person's state and miss those that come in now, and
    no erasure runs."""
    await connection.execute(_ENTER_QUEUES, sorted(set(workspaces)))


async def close_queues(connection: Connection, workspaces: Iterable[str]) -> None:
    """Wait for what is coming in, so that it is found, and let nothing in that doesn't see what is now stored."""
    await connection.execute(_CLOSE_QUEUES, sorted(set(workspaces)))


@value_class
class Arrival:
    """What stands against a message that comes in, or decides where it waits. `alias`: of its erased person;
    `sender_id`: the number that it names, or its workspace's default, if it has one; `category` of its template there;
    `stopped`: its person's state, where that is no subscription; `parked_below`: the first offset of its partition that
    was not handled before a backup was restored."""

    alias: str | None
    cancelled_by: str | None
    sender_id: str | None
    category: str | None
    campaign: "Stopped | None"
    stopped: ContactUpdated | None
    parked_below: int


_ARRIVALS = f"""
select a.workspace_id, a.message_id, e.erasure_id,
       case when x.message_id is not null then coalesce(x.cancelled_by, '{UPSTREAM}') end as cancelled_by,
       s.sender_id, t.category, c.campaign_id, c.paused_at, c.cancelled_at, c.lined, p.body as stopped,
       coalesce(k.next_offset, 0) as parked_below
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::text[], $7::text[], $8::int[])
  as a(workspace_id, message_id, named, campaign_id, template, language, contact_id, partition)
left join erased_message e on e.workspace_id = a.workspace_id and e.message_id = a.message_id
left join cancellation x on x.workspace_id = a.workspace_id and x.message_id = a.message_id
left join sender s on s.workspace_id = a.workspace_id and s.sender_id = coalesce(
    a.named, (select d.sender_id from sender d where d.workspace_id = a.workspace_id and d.is_default))
left join template t on t.waba_id = s.waba_id and t.name = a.template and t.language = a.language
left join campaign c on c.workspace_id = a.workspace_id and c.campaign_id = a.campaign_id
left join contact p on p.workspace_id = a.workspace_id and p.contact_id = a.contact_id
  and p.marketing_state <> 'SUBSCRIBED'
left join parked_below k on k.partition = a.partition
"""  # noqa: S608 - a constant


async def arrivals(connection: Connection, records: Sequence[Record[SendFunded]]) -> dict[Key, Arrival]:
    """In one statement, since a small batch costs as many of them as a large one."""
    events = [record.event for record in records]
    templates = [event.request.template for event in events]
    rows = await connection.fetch(
        _ARRIVALS,
        [event.workspace_id for event in events],
        [event.message_id for event in events],
        [event.request.sender_id for event in events],
        [campaign_of(event.request.origin) for event in events],
        [one and one.name for one in templates],
        [one and one.language.code for one in templates],
        [event.resolved.contact_id for event in events],
        [record.partition for record in records],
    )
    return {
        (row["workspace_id"], row["message_id"]): Arrival(
            alias=row["erasure_id"] and alias_of(row["erasure_id"]),
            cancelled_by=row["cancelled_by"],
            sender_id=row["sender_id"],
            category=row["category"],
            campaign=row["campaign_id"] and Stopped(row["paused_at"], row["cancelled_at"], row["lined"]),
            stopped=row["stopped"] and ContactUpdated.model_validate_json(row["stopped"]),
            parked_below=row["parked_below"],
        )
        for row in rows
    }


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
        [one.resolved.address for one in funded],
        [one.needs_subscription for one in funded],
        [one.send_at for one in funded],
        [one.expires_at for one in funded],
        [row.message.queued_at for row in ordered],
        [row.state for row in ordered],
        [row.outcome for row in ordered],
        [row.body or row.message.funded.to_json() for row in ordered],
        [row.message.trace for row in ordered],
        [f"c{row.campaign_id}" if row.lined else "" for row in ordered],
        [template_name(one.name, one.language.code) if (one := row.message.template) else None for row in ordered],
    )
    return {(row["workspace_id"], row["message_id"]) for row in added}


def template_name(name: str, language: str) -> str:
    """As it stands in the column `template`."""
    return f"{name}/{language}"


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


_MARK_IN_FLIGHT = """
update message m set state = 'in_flight', attempts = m.attempts + 1, fence = $3, in_flight_at = clock_timestamp()
from unnest($1::text[], $2::text[]) as go(workspace_id, message_id)
where m.workspace_id = go.workspace_id and m.message_id = go.message_id
"""


async def mark_in_flight(connection: Connection, keys: Sequence[Key], fence: int) -> None:
    ordered = sorted(keys)
    await connection.execute(_MARK_IN_FLIGHT, [key[0] for key in ordered], [key[1] for key in ordered], fence)


@value_class
class NewWait:
    key: Key
    waiting_for: Waiting
    not_before: datetime | None
    told: bool


_WAIT = """
update message m set waiting_for = w.waiting_for, not_before = coalesce(w.not_before, 'infinity'),
    told = case when w.told then m.told || w.waiting_for else m.told end,
    waiting_since = case when m.waiting_for = w.waiting_for and m.waiting_since is not null
                         then m.waiting_since else clock_timestamp() end
from unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[], $5::boolean[])
  as w(workspace_id, message_id, waiting_for, not_before, told)
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


@value_class
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


# As `_RECORD_RESULTS`, for what Meta took: with what is told of it, and so in one statement. Left out, and for the long
# way, is what was erased while it was out.
_RECORD_TAKEN = f"""
with changed as (
    update message m
    set state = 'accepted', waiting_for = 'turn', wamid = r.wamid, outcome = 'accepted', tries = r.tries
    from unnest($1::text[], $2::text[], $3::int[], $4::text[], $5::bytea[], $6::uuid[], $7::text[], $8::bytea[],
                $9::bytea[], $10::bytea[])
      as r(workspace_id, message_id, attempt, wamid, tries, event_id, topic, key, body, headers)
    where m.workspace_id = r.workspace_id and m.message_id = r.message_id and m.attempts = r.attempt
      and (m.state in ('in_flight', 'unknown') or m.state = 'rejected' and m.outcome = 'SEND_OUTCOME_UNKNOWN')
      and not starts_with(coalesce(m.contact_id, ''), '{ERASED_PREFIX}')
    returning m.workspace_id, m.message_id, r.event_id, r.topic, r.key, r.body, r.headers
), told as (
    insert into outbox (event_id, topic, key, body, headers)
    select event_id, topic, key, body, headers from changed on conflict do nothing
)
select workspace_id, message_id from changed
"""  # noqa: S608 - a constant


async def record_taken(connection: Connection, taken: Iterable[tuple[Result, tuple[UUID, Outgoing]]]) -> set[Key]:
    """Store that Meta took these, each with the event that tells it; returns the messages for which that was news."""
    pairs = sorted(taken, key=lambda pair: pair[0].key)
    rows = await connection.fetch(
        _RECORD_TAKEN,
        [row.key[0] for row, _ in pairs],
        [row.key[1] for row, _ in pairs],
        [row.attempt for row, _ in pairs],
        [row.wamid for row, _ in pairs],
        [OBJECTS.dump_json([dict(one) for one in row.tries]) for row, _ in pairs],
        *outbox_columns([told for _, told in pairs]),
    )
    return {(row["workspace_id"], row["message_id"]) for row in rows}


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
  and not exists (select from unnest($3::text[], $4::text[], $5::int[]) as called(workspace_id, message_id, attempt)
                  where called.workspace_id = m.workspace_id and called.message_id = m.message_id
                    and called.attempt = m.attempts)
"""


async def give_back(connection: Connection, sender_id: str, fence: int, called: Iterable[tuple[Key, int]]) -> None:
    """Let wait again what this driver marked in flight without calling, since it never learnt of its own commit.
    `called`: the tries (message, number) that it started; an earlier one of the same message is none of this one."""
    # A commit whose answer was lost may still be on its way; it holds a share lock on this row until it is there.
    await connection.execute("select from sender where sender_id = $1 for update", sender_id)
    tries = sorted(called)
    await connection.execute(
        _GIVE_BACK,
        sender_id,
        fence,
        [key[0] for key, _ in tries],
        [key[1] for key, _ in tries],
        [attempt for _, attempt in tries],
    )


# What a message waits for that nobody looks at, since its line is closed, or its sender stands still at `$1`.
WAITS_FOR = """
case when m.line = 'p' then 'paused'
     when m.not_before > $1 then m.waiting_for
     when c.paused_at is not null or s.paused_at is not null then 'paused'
     when s.hold is not null then 'hold'
     when m.waiting_for = 'turn' and m.line > 'c' and (c.per_minute is not null or c.per_day is not null)
         then 'throttle'
     else m.waiting_for end
"""
# The same of messages that were counted first, by whether what they wait for is `later`.
WAITS_FOR_OF_COUNTED = WAITS_FOR.replace("m.not_before > $1", "m.later")

# A number that is driven and sends most of what it may keeps its messages waiting by its pace.
_EXPIRED = f"""
select {MESSAGE_COLUMNS}, s.hold, d.rest, {WAITS_FOR} as waits_for,
       d.seen_at > clock_timestamp() - interval '{BUSY_IS_NEWS.seconds} s'
           and d.sent_last_minute >= 45 * s.messages_per_second as is_paced,
       case {WAITS_FOR} when 'paused' then coalesce(m.paused_at, c.paused_at, s.paused_at) when 'hold' then s.hold_since
            when 'throttle' then coalesce(m.waiting_since, m.not_before) else m.waiting_since end as waits_since
from message m
left join sender s on s.sender_id = m.sender_id
left join campaign c on c.workspace_id = m.workspace_id and c.campaign_id = m.campaign_id
left join driving d on d.sender_id = m.sender_id
where m.state = 'waiting' and m.expires_at <= $1 order by m.expires_at limit $2
for update of m skip locked
"""  # noqa: S608 - a constant


async def lock_expired(
    connection: Connection, now: datetime, limit: int
) -> list[tuple[Message, Reason | None, Rest | None]]:
    """Waiting messages whose time is over, with what they waited for, each with its sender's hold, and the last rest
    that its driver told."""
    return [
        (
            replace(message_of(row), waiting_for=_waited_for(row), waiting_since=row["waits_since"]),
            Reason.model_validate_json(row["hold"]) if row["hold"] else None,
            Rest.model_validate_json(row["rest"]) if row["rest"] else None,
        )
        for row in await connection.fetch(_EXPIRED, now, limit)
    ]


def _waited_for(row: Row) -> Waiting:
    waits_for = Waiting(row["waits_for"])
    return Waiting.RATE if waits_for is Waiting.TURN and row["is_paced"] else waits_for


def _unknown_where(condition: str) -> str:
    return f"""
select {MESSAGE_COLUMNS} from message m
where m.state = 'unknown' and m.in_flight_at <= $1 and {condition} order by m.in_flight_at limit $2
for update of m skip locked
"""  # noqa: S608 - of constants


_UNKNOWN_TOO_LONG = _unknown_where("true")


async def lock_unknown(connection: Connection, before: datetime, limit: int) -> list[tuple[Message, datetime]]:
    rows = await connection.fetch(_UNKNOWN_TOO_LONG, before, limit)
    return [(message_of(row), row["in_flight_at"]) for row in rows]


_UNKNOWN_UNTOLD = _unknown_where(f"not '{Waiting.OUTCOME}' = any(m.told)")
_TELL_UNKNOWN = f"""
update message m set told = m.told || '{Waiting.OUTCOME}'::text
from unnest($1::text[], $2::text[]) as t(workspace_id, message_id)
where m.workspace_id = t.workspace_id and m.message_id = t.message_id
"""  # noqa: S608 - a constant


async def tell_unknown(connection: Connection, before: datetime, limit: int) -> list[tuple[Message, datetime]]:
    """Mark as told, and return with when they were called, the messages of unknown outcome called before then."""
    rows = await connection.fetch(_UNKNOWN_UNTOLD, before, limit)
    if rows:
        keys = sorted((row["workspace_id"], row["message_id"]) for row in rows)
        await connection.execute(_TELL_UNKNOWN, *map(list, zip(*keys, strict=True)))
    return [(message_of(row), row["in_flight_at"]) for row in rows]


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


_ACCEPTED = """
select m.workspace_id, m.message_id from message m
join unnest($1::text[], $2::text[]) as asked(workspace_id, message_id)
  on m.workspace_id = asked.workspace_id and m.message_id = asked.message_id
where m.state = 'accepted'
"""


async def accepted(connection: Connection, keys: Iterable[Key]) -> set[Key]:
    """Those of these messages that Meta is known to have taken, which is for ever."""
    asked = sorted(keys)
    rows = await connection.fetch(_ACCEPTED, [key[0] for key in asked], [key[1] for key in asked])
    return {(row["workspace_id"], row["message_id"]) for row in rows}


_TAKEN_BY_WEBHOOK = f"""
update message m set state = 'accepted', wamid = t.wamid, outcome = 'accepted'
from unnest($1::text[], $2::text[], $3::text[]) as t(workspace_id, message_id, wamid)
where m.workspace_id = t.workspace_id and m.message_id = t.message_id
  and (m.state in ('in_flight', 'unknown') or m.state = 'waiting' and m.attempts > 0
       or m.state = 'rejected' and m.outcome = 'SEND_OUTCOME_UNKNOWN')
returning {MESSAGE_COLUMNS}
"""  # noqa: S608 - a constant


async def taken_by_webhook(connection: Connection, told: Mapping[Key, str]) -> list[Message]:
    """Messages that Meta's webhook proves to be taken, of those whose fate was open."""
    keys = sorted(told)
    rows = await connection.fetch(
        _TAKEN_BY_WEBHOOK, [key[0] for key in keys], [key[1] for key in keys], [told[key] for key in keys]
    )
    return [message_of(row) for row in rows]


_KEY = ("workspace_id", "message_id")
_LOCK_WAITING = rows_locked(MESSAGE_COLUMNS, "message", _KEY, "state = 'waiting'")
_LOCK_MESSAGES = rows_locked(MESSAGE_COLUMNS, "message", _KEY)
_READ_MESSAGES = _LOCK_MESSAGES.replace("for update", "")

_LOCK_WAITING_OF_CONTACTS = f"""
select {MESSAGE_COLUMNS} from message m
join unnest($1::text[], $2::text[]) as asked(workspace_id, contact_id)
  on m.workspace_id = asked.workspace_id and m.contact_id = asked.contact_id
where m.state = 'waiting' and (m.needs_subscription or m.lane = 2)
order by m.workspace_id, m.message_id for update of m
"""  # noqa: S608 - a constant


async def lock_waiting(connection: Connection, keys: Sequence[Key]) -> list[Message]:
    return [message_of(row) for row in await connection.fetch(_LOCK_WAITING, *_in_order(keys))]


def _in_order(keys: Iterable[Key]) -> tuple[list[str], list[str]]:
    """In which all lock messages, so that nobody waits for somebody who waits for them."""
    ordered = sorted(set(keys))
    return [key[0] for key in ordered], [key[1] for key in ordered]


@value_class
class Locked:
    """A message with its state."""

    message: Message
    state: str


async def lock_messages(connection: Connection, keys: Sequence[Key]) -> list[Locked]:
    """These messages, whatever their state."""
    return await read_messages(connection, keys, statement=_LOCK_MESSAGES)


async def read_messages(
    connection: Connection, keys: Sequence[Key], *, statement: str = _READ_MESSAGES
) -> list[Locked]:
    rows = await connection.fetch(statement, *_in_order(keys))
    return [Locked(message_of(row), row["state"]) for row in rows]


async def lock_waiting_of_contacts(connection: Connection, contacts: Sequence[Key]) -> list[Message]:
    """Waiting messages to these (workspace_id, contact_id) that need a subscription."""
    rows = await connection.fetch(_LOCK_WAITING_OF_CONTACTS, [key[0] for key in contacts], [key[1] for key in contacts])
    return [message_of(row) for row in rows]


# What is locked is being decided on right now, by facts that are as new.
_WAKE = """
with woken as (
    select workspace_id, message_id from message
    where state = 'waiting' and waiting_for in ('hold', 'sync') and waiting_for = any($1::text[]) and sender_id = $2
    limit $3 for update skip locked
)
update message m set not_before = clock_timestamp()
from woken where m.workspace_id = woken.workspace_id and m.message_id = woken.message_id
"""


async def wake_waiting(connection: Connection, waiting_for: Sequence[Waiting], *, sender_id: str) -> None:
    """Look again, now, at what a call left waiting for a hold, and at what waits for the first sync."""
    await connection.execute(_WAKE, [cause.value for cause in waiting_for], sender_id, WAKE_AT_MOST)


# A new throttle of the minute starts anew; the calls of the day stand.
_PUT_THROTTLE = """
insert into campaign (workspace_id, campaign_id, per_minute, per_day, lined) values ($1, $2, $3, $4, true)
on conflict (workspace_id, campaign_id) do update set per_minute = $3, per_day = $4, lined = true,
    next_slot_at = case when campaign.per_minute is not distinct from $3 then campaign.next_slot_at end
"""


async def put_throttle(
    connection: Connection, workspace_id: str, campaign_id: str, per_minute: int | None, per_day: int | None
) -> None:
    await connection.execute(_PUT_THROTTLE, workspace_id, campaign_id, per_minute, per_day)


async def pause_campaign(connection: Connection, workspace_id: str, campaign_id: str, paused_at: datetime) -> bool:
    """Returns whether that is news: what is paused already stays so since it was."""
    changed: bool | None = await connection.fetchval(
        "insert into campaign (workspace_id, campaign_id, paused_at, lined) values ($1, $2, $3, true)"
        " on conflict (workspace_id, campaign_id) do update set paused_at = $3, lined = true"
        " where campaign.paused_at is null returning true",
        workspace_id,
        campaign_id,
        paused_at,
    )
    return changed is not None


async def resume_campaign(connection: Connection, workspace_id: str, campaign_id: str) -> bool:
    """Returns whether it was paused."""
    changed: bool | None = await connection.fetchval(
        "update campaign set paused_at = null"
        " where workspace_id = $1 and campaign_id = $2 and paused_at is not null returning true",
        workspace_id,
        campaign_id,
    )
    return changed is not None


async def cancel_campaign(connection: Connection, workspace_id: str, campaign_id: str, now: datetime) -> None:
    await connection.execute(
        "insert into campaign (workspace_id, campaign_id, cancelled_at) values ($1, $2, $3)"
        " on conflict (workspace_id, campaign_id) do update set cancelled_at = $3",
        workspace_id,
        campaign_id,
        now,
    )


@value_class
class Stopped:
    """Since when a campaign is paused, or cancelled; `lined`: it has a line of its own."""

    paused_at: datetime | None
    cancelled_at: datetime | None
    lined: bool = False


async def stopped_campaigns(connection: Connection, campaigns: Iterable[Key]) -> dict[Key, Stopped]:
    """Those of these campaigns that are, or were, slowed down or stopped."""
    keys = sorted(campaigns)
    rows = await connection.fetch(
        "select c.workspace_id, c.campaign_id, c.paused_at, c.cancelled_at, c.lined from campaign c"
        " join unnest($1::text[], $2::text[]) as asked(workspace_id, campaign_id)"
        " on c.workspace_id = asked.workspace_id and c.campaign_id = asked.campaign_id",
        [key[0] for key in keys],
        [key[1] for key in keys],
    )
    return {
        (row["workspace_id"], row["campaign_id"]): Stopped(row["paused_at"], row["cancelled_at"], row["lined"])
        for row in rows
    }


_ALL = "$2::text[] is null"
# Read out of indices alone: a million messages are a few dozen megabytes of them, and a gigabyte of rows.
_QUEUE = f"""
with counted as materialized (
    select m.sender_id, m.line, m.lane, m.waiting_for, m.not_before > $1 as later, count(*) as messages,
           min(m.queued_at) as oldest
    from message m where m.state = 'waiting' and {_ALL}
    group by 1, 2, 3, 4, 5
), waiting as (
    select m.lane, {WAITS_FOR_OF_COUNTED} as waiting_for,
           case when m.line = 'p' or m.later then null when c.paused_at is not null then c.paused_at
                else coalesce(s.paused_at, s.hold_since) end as since,
           m.messages, m.oldest
    from counted m
    left join sender s on s.sender_id = m.sender_id
    left join campaign c on c.workspace_id = s.workspace_id and m.line > 'c' and c.campaign_id = substr(m.line, 2)
), out as (
    select m.lane, m.state as waiting_for, null::timestamptz as since, count(*) as messages, min(m.queued_at) as oldest
    from message m where m.state in ('in_flight', 'unknown') and {_ALL}
    group by 1, 2
)
select lane, waiting_for, sum(messages)::bigint as messages, min(oldest) as oldest,
       case when waiting_for in ('paused', 'hold') then min(since) end as since
from (select * from waiting union all select * from out) found
group by 1, 2 order by 1, 2
"""  # noqa: S608 - a constant


_OF_SENDERS = "m.sender_id = any($2::text[])"
_QUEUE_OF_SENDERS = _QUEUE.replace(_ALL, _OF_SENDERS)
_QUEUE_OF_CAMPAIGN = _QUEUE.replace(_ALL, f"{_OF_SENDERS} and m.workspace_id = $3 and m.campaign_id = $4")


async def queue_by_cause(
    connection: Connection, senders: Sequence[str] | None, now: datetime, campaign: Key | None = None
) -> list[Row]:
    """How many messages wait in each lane, and for what: of these senders, or of all; of one campaign, or of all."""
    # Statements of their own: a plan that is made once for all values could not leave out the messages of others.
    if campaign is not None:
        rows: list[Row] = await connection.fetch(_QUEUE_OF_CAMPAIGN, now, senders, *campaign)
    else:
        rows = await connection.fetch(_QUEUE if senders is None else _QUEUE_OF_SENDERS, now, senders)
    return rows


# Deeper than a step of a sweep, nothing is sorted; what another transaction decides on is taken by a later step.
_LOCK_SOME = f"""
select {MESSAGE_COLUMNS} from message m where m.state = 'waiting' and {{whose}} limit {{most}} for update skip locked
"""  # noqa: S608 - a constant


async def lock_some_of_campaign(connection: Connection, campaign: Key, most: int) -> list[Message]:
    statement = _LOCK_SOME.format(whose="m.workspace_id = $1 and m.campaign_id = $2", most="$3")
    return [message_of(row) for row in await connection.fetch(statement, *campaign, most)]


async def lock_some_of_sender(connection: Connection, sender_id: str, until: datetime, most: int) -> list[Message]:
    """Messages of a sender that were there at `until`."""
    statement = _LOCK_SOME.format(whose="m.sender_id = $1 and m.queued_at <= $2", most="$3")
    return [message_of(row) for row in await connection.fetch(statement, sender_id, until, most)]


_COUNTS = """
select (select count(*) from message m where m.state = 'waiting' and {whose}) as waiting,
       (select count(*) from message m where m.state in ('in_flight', 'unknown') and {whose}) as out
"""
_OUT_OF_WORKSPACE = "m.sender_id in (select sender_id from sender where workspace_id = $1)"


async def counts_of_campaign(connection: Connection, campaign: Key) -> tuple[int, int]:
    """How many of a campaign still wait, and how many were called and have no outcome yet."""
    whose = "m.workspace_id = $1 and m.campaign_id = $2"
    out = f"{_OUT_OF_WORKSPACE} and m.campaign_id = $2"
    row = await connection.fetchrow(_COUNTS.replace("{whose}", whose, 1).replace("{whose}", out), *campaign)
    return _two(row)


async def counts_of_sender(connection: Connection, sender_id: str) -> tuple[int, int]:
    row = await connection.fetchrow(_COUNTS.replace("{whose}", "m.sender_id = $1"), sender_id)
    return _two(row)


def _two(row: Row | None) -> tuple[int, int]:
    assert row is not None
    return row["waiting"], row["out"]


_PAUSE = """
update message set line = 'p', paused_at = $3, told = case when $4 then told || 'paused'::text else told end
where workspace_id = $1 and message_id = $2 and state = 'waiting'
"""
# Its driver may have stopped calling those that wait for a place: this one is looked at anew.
_RESUME = """
update message set line = '', paused_at = null,
    not_before = case when waiting_for = 'tier' then least(not_before, clock_timestamp()) else not_before end
where workspace_id = $1 and message_id = $2 and state = 'waiting' and line = 'p'
"""


async def pause_message(connection: Connection, key: Key, at: datetime, *, told: bool) -> None:
    """Let a waiting message stand aside; its time stays its time."""
    await connection.execute(_PAUSE, *key, at, told)


async def resume_message(connection: Connection, key: Key) -> None:
    """Back into the ordinary line, from where its driver sends it into its campaign's, if that has one."""
    await connection.execute(_RESUME, *key)


async def paused_at(connection: Connection, key: Key) -> datetime | None:
    at: datetime | None = await connection.fetchval(
        "select paused_at from message where workspace_id = $1 and message_id = $2", *key
    )
    return at


_LOCK_WAITING_OF_TEMPLATE = f"""
select {MESSAGE_COLUMNS} from message m
where m.state = 'waiting' and not m.needs_subscription and m.sender_id = any($1::text[]) and m.template = $2
order by m.workspace_id, m.message_id limit $3 for update of m skip locked
"""  # noqa: S608 - a constant


async def lock_waiting_of_template(
    connection: Connection, sender_ids: Sequence[str], template: str, limit: int
) -> list[Message]:
    """Some of what waits by this template and needs no subscription; what a driver decides on now is left out."""
    return [message_of(row) for row in await connection.fetch(_LOCK_WAITING_OF_TEMPLATE, sender_ids, template, limit)]


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
