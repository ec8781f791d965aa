"""SQL, and functions that take a connection. One statement per table and batch; keys sorted, so that two replicas that
meet on the same messages can't lock each other out."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from asyncpg import Record
from sendwhy.events import SenderUpdated, StatusUpdated
from sendwhy.postgres import Connection, rows_locked

from webhook_ingest.accepted import Accepted
from webhook_ingest.decide import Message, MessageKey, Seen, Sender, StatusKey, Unclaimed
from webhook_ingest.elements import Delivery
from webhook_ingest.silence import Awaited

# The dedupe memory must outlive what Kafka may replay and Meta may still tell (design.md, "How a stage works").
KEEP_AFTER_DEADLINE = timedelta(days=45)
# Raw bodies of people whom no workspace knows go with the topics' retention.
KEEP_UNCLAIMED = timedelta(days=14)
# webhook.received's retention and a week: Kafka may be read again from its beginning, Meta repeats for 7 days.
KEEP_REPORTS = timedelta(days=21)
# Where `accepted` tells no deadline: Meta drops a message after 30 days at the latest.
RECEIPT_TTL = timedelta(days=30)
HISTORY_LIMIT = 50
# Whose receipts a healthy system has by now, and enough of them to be a share.
SHARE_SINCE, SHARE_UNTIL = timedelta(hours=24), timedelta(minutes=10)
SHARE_LIMIT = 10_000
PRUNE_LIMIT = 10_000

_SENDERS = "select sender_id, workspace_id, waba_id, app_id, is_proven from sender where sender_id = any($1)"
_SENDERS_OF_ACCOUNTS = "select sender_id, workspace_id, waba_id, app_id, is_proven from sender where waba_id = any($1)"


async def senders_of(connection: Connection, numbers: AbstractSet[str]) -> dict[str, Sender]:
    """The known ones of these senders, by number."""
    return {row["sender_id"]: Sender(**row) for row in await connection.fetch(_SENDERS, list(numbers))}


async def senders_of_accounts(connection: Connection, accounts: AbstractSet[str]) -> dict[str, list[Sender]]:
    """The known senders of these WhatsApp Business Accounts."""
    found: dict[str, list[Sender]] = defaultdict(list)
    for row in await connection.fetch(_SENDERS_OF_ACCOUNTS, list(accounts)) if accounts else ():
        found[row["waba_id"]].append(Sender(**row))
    return found


_SAVE_SENDERS = """
insert into sender (sender_id, workspace_id, waba_id, app_id, version, is_proven)
select * from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::bigint[], $6::boolean[])
on conflict (sender_id) do update
set workspace_id = excluded.workspace_id, waba_id = excluded.waba_id, app_id = excluded.app_id,
    version = excluded.version, is_proven = excluded.is_proven
where sender.version <= excluded.version
"""


async def save_senders(connection: Connection, states: Mapping[str, SenderUpdated | None]) -> None:
    """Keep the senders' last states; None is a tombstone."""
    gone = [sender_id for sender_id, state in states.items() if state is None]
    kept = sorted((state for state in states.values() if state is not None), key=lambda state: state.sender_id)
    await connection.execute("delete from sender where sender_id = any($1)", gone)
    await connection.execute(
        _SAVE_SENDERS,
        [state.sender_id for state in kept],
        [state.workspace_id for state in kept],
        [state.waba_id for state in kept],
        [state.app_id for state in kept],
        [state.version for state in kept],
        [state.synced_at is not None for state in kept],
    )


_MAKE_MESSAGES = """
insert into message (sender_id, wamid, prune_after)
select *, $3::timestamptz from unnest($1::text[], $2::text[])
on conflict do nothing
"""
_LOCK_MESSAGES = rows_locked(
    "m.sender_id, m.wamid, m.workspace_id, m.message_id, m.rank, m.failed, m.delivered_at, m.silence",
    "message",
    ("sender_id", "wamid"),
)


async def lock_messages(connection: Connection, keys: Iterable[MessageKey], at: datetime) -> dict[MessageKey, Message]:
    """Where these messages stand, held until the transaction's end; unknown ones get a row.

    The row is where a webhook and `accepted` of the same message meet: whoever comes second sees what the first did.
    """
    wanted = sorted(set(keys))
    columns = [key[0] for key in wanted], [key[1] for key in wanted]
    await connection.execute(_MAKE_MESSAGES, *columns, at + KEEP_AFTER_DEADLINE)
    rows = await connection.fetch(_LOCK_MESSAGES, *columns)
    return {(row["sender_id"], row["wamid"]): Message(**row) for row in rows}


_SAVE_MESSAGES = """
update message m
set workspace_id = new.workspace_id, message_id = new.message_id, rank = new.rank, failed = new.failed,
    delivered_at = new.delivered_at
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::smallint[], $6::boolean[], $7::timestamptz[])
     as new(sender_id, wamid, workspace_id, message_id, rank, failed, delivered_at)
where m.sender_id = new.sender_id and m.wamid = new.wamid
"""


async def save_messages(connection: Connection, messages: Sequence[Message]) -> None:
    """Store locked messages' new state."""
    await connection.execute(
        _SAVE_MESSAGES,
        [message.sender_id for message in messages],
        [message.wamid for message in messages],
        [message.workspace_id for message in messages],
        [message.message_id for message in messages],
        [message.rank for message in messages],
        [message.failed for message in messages],
        [message.delivered_at for message in messages],
    )


_SEEN = """
select s.sender_id, s.wamid, s.status, s.reading, s.kafka_partition, s.kafka_offset, s.observed_at, s.reason, s.body
from unnest($1::text[], $2::text[]) as asked(sender_id, wamid)
join seen_status s using (sender_id, wamid)
"""
_ADD_SEEN = """
insert into seen_status (sender_id, wamid, status, reading, kafka_partition, kafka_offset, observed_at, reason, body)
select * from unnest($1::text[], $2::text[], $3::text[], $4::bytea[], $5::int[], $6::bigint[], $7::timestamptz[],
                     $8::text[], $9::bytea[])
"""


async def seen_statuses(connection: Connection, keys: Iterable[MessageKey]) -> dict[StatusKey, Seen]:
    wanted = list(keys)
    if not wanted:
        return {}
    rows = await connection.fetch(_SEEN, [key[0] for key in wanted], [key[1] for key in wanted])
    return {
        (row["sender_id"], row["wamid"], row["status"], row["reading"]): Seen(
            row["kafka_partition"], row["kafka_offset"], row["observed_at"], row["reason"], row["body"]
        )
        for row in rows
    }


async def add_seen(connection: Connection, seen: Mapping[StatusKey, Seen]) -> None:
    """Store statuses of locked messages that are not there yet."""
    rows = sorted(seen.items(), key=lambda row: row[0])
    await connection.execute(
        _ADD_SEEN,
        *([key[place] for key, _ in rows] for place in range(4)),
        [entry.partition for _, entry in rows],
        [entry.offset for _, entry in rows],
        [entry.observed_at for _, entry in rows],
        [entry.reason for _, entry in rows],
        [entry.body for _, entry in rows],
    )


_ADD_REPORTS = """
insert into seen_report (event_id, kafka_partition, kafka_offset, seen_at)
select * from unnest($1::uuid[], $2::int[], $3::bigint[], $4::timestamptz[])
on conflict do nothing
returning event_id
"""
_REPORT_PLACES = "select event_id, kafka_partition, kafka_offset from seen_report where event_id = any($1)"


async def add_reports(
    connection: Connection, reports: Mapping[UUID, Delivery]
) -> tuple[set[UUID], dict[UUID, tuple[int, int]]]:
    """Remember what was told beside statuses; returns what is new, and for all of it which record told it first."""
    rows = sorted(reports.items(), key=lambda row: row[0])
    added = await connection.fetch(
        _ADD_REPORTS,
        [event_id for event_id, _ in rows],
        [delivery.partition for _, delivery in rows],
        [delivery.offset for _, delivery in rows],
        [delivery.at for _, delivery in rows],
    )
    # A second statement: within the first one a row that was committed meanwhile would not be visible.
    return {row["event_id"] for row in added}, _places(await connection.fetch(_REPORT_PLACES, list(reports)))


def _places(rows: Iterable[Record]) -> dict[UUID, tuple[int, int]]:
    return {row["event_id"]: (row["kafka_partition"], row["kafka_offset"]) for row in rows}


_ACCEPT = """
insert into message as m (sender_id, wamid, workspace_id, message_id, recipient, accepted_at, deadline, rank,
                          prune_after)
select *, 0, deadline + $8::interval
from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $6::timestamptz[], $7::timestamptz[])
     as new(sender_id, wamid, workspace_id, message_id, recipient, accepted_at, deadline)
on conflict (sender_id, wamid) do update
set workspace_id = coalesce(m.workspace_id, excluded.workspace_id),
    message_id = coalesce(m.message_id, excluded.message_id),
    recipient = excluded.recipient, accepted_at = excluded.accepted_at, deadline = excluded.deadline,
    rank = greatest(m.rank, 0), prune_after = greatest(m.prune_after, excluded.prune_after)
"""


async def accept(
    connection: Connection, accepted: Mapping[MessageKey, Accepted], recipients: Mapping[MessageKey, str | None]
) -> None:
    """Register messages that Meta took, for whom (a tag), and until when their receipts are awaited."""
    rows = sorted(accepted.items())
    await connection.execute(
        _ACCEPT,
        [key[0] for key, _ in rows],
        [key[1] for key, _ in rows],
        [event.workspace_id for _, event in rows],
        [event.message_id for _, event in rows],
        [recipients[key] for key, _ in rows],
        [event.occurred_at for _, event in rows],
        [event.receipt_deadline or event.occurred_at + RECEIPT_TTL for _, event in rows],
        KEEP_AFTER_DEADLINE,
    )


_JOIN = """
update seen_status s set joined = true
from unnest($1::text[], $2::text[]) as asked(sender_id, wamid)
join message m using (sender_id, wamid)
where s.sender_id = asked.sender_id and s.wamid = asked.wamid and s.body is not null and not s.joined
returning s.body, s.reading, m.workspace_id, m.message_id
"""


async def join(connection: Connection, keys: Sequence[MessageKey]) -> list[tuple[StatusUpdated, bytes, str, str]]:
    """The statuses that went out without these messages' ids, once each: with reading, workspace_id, message_id."""
    rows = await connection.fetch(_JOIN, [key[0] for key in keys], [key[1] for key in keys])
    return [
        (StatusUpdated.model_validate_json(row["body"]), row["reading"], row["workspace_id"], row["message_id"])
        for row in rows
    ]


_ADD_UNCLAIMED = """
insert into unclaimed (event_id, sender_id, app_id, kafka_partition, kafka_offset, received_at, body, waba_id,
                       wamid)
select * from unnest($1::uuid[], $2::text[], $3::text[], $4::int[], $5::bigint[], $6::timestamptz[], $7::bytea[],
                     $8::text[], $9::text[])
on conflict do nothing
"""
_UNCLAIMED_PLACES = "select event_id, kafka_partition, kafka_offset from unclaimed where event_id = any($1)"


async def add_unclaimed(
    connection: Connection, unclaimed: Mapping[UUID, Sequence[Unclaimed]]
) -> dict[UUID, tuple[int, int]]:
    """Keep what was told about unknown numbers and accounts; returns which record told it first."""
    rows = [(event_id, unclaimed[event_id][0]) for event_id in sorted(unclaimed)]
    await connection.execute(
        _ADD_UNCLAIMED,
        [event_id for event_id, _ in rows],
        [entry.number for _, entry in rows],
        [entry.delivery.signer for _, entry in rows],
        [entry.delivery.partition for _, entry in rows],
        [entry.delivery.offset for _, entry in rows],
        [entry.delivery.at for _, entry in rows],
        [entry.body for _, entry in rows],
        [entry.waba for _, entry in rows],
        [entry.wamid for _, entry in rows],
    )
    return _places(await connection.fetch(_UNCLAIMED_PLACES, list(unclaimed)))


# An app_id that the dispatcher wasn't told speaks for nobody unless there is only one app.
_LOCK_CLAIMABLE = """
select event_id, app_id, kafka_partition, kafka_offset, received_at, body from unclaimed where event_id in (
    select u.event_id from sender s
    join lateral (
        select event_id from unclaimed
        where (sender_id = s.sender_id or sender_id is null and waba_id = s.waba_id) and not is_left
          and (s.app_id is not null or app_id = $2)
        order by received_at limit $1
        for update skip locked
    ) u on true
    limit $1
)
"""
_DROP_CLAIMED = "delete from unclaimed where event_id = any($1)"
_LEAVE = "update unclaimed set is_left = true where event_id = any($1)"
# Without `is_left`: what a claim looks at just now is locked, and is to be looked at again after it.
_LOOK_AGAIN_AT_SENDERS = """
update unclaimed set is_left = false
where sender_id = any($1) or sender_id is null and waba_id = any($2)
"""
_LOOK_AGAIN_AT_MESSAGES = "update unclaimed set is_left = false where sender_id is null and wamid = any($1)"


async def lock_claimable(connection: Connection, *, only_app: str | None, limit: int) -> dict[UUID, Delivery]:
    """What was told about numbers and accounts that have become known meanwhile, held until the transaction's end;
    `only_app`: if just one is configured."""
    rows = await connection.fetch(_LOCK_CLAIMABLE, limit, only_app)
    return {
        row["event_id"]: Delivery(
            "meta", row["app_id"], row["body"], row["received_at"], row["kafka_partition"], row["kafka_offset"]
        )
        for row in rows
    }


async def settle_claim(connection: Connection, claimed: AbstractSet[UUID], left: AbstractSet[UUID]) -> None:
    """Forget what has found its owner, and leave the rest until `look_again`."""
    await connection.execute(_DROP_CLAIMED, sorted(claimed))
    await connection.execute(_LEAVE, sorted(left))


async def look_again_at_senders(connection: Connection, numbers: AbstractSet[str], accounts: AbstractSet[str]) -> None:
    await connection.execute(_LOOK_AGAIN_AT_SENDERS, sorted(numbers), sorted(accounts))


async def look_again_at_messages(connection: Connection, wamids: AbstractSet[str]) -> None:
    """Before these messages' own rows are written: a claim locks them in this order, too."""
    await connection.execute(_LOOK_AGAIN_AT_MESSAGES, sorted(wamids))


_KNOWN_BY_WAMID = "select sender_id, wamid from message where sender_id = any($1) and wamid = any($2)"


async def known_messages(
    connection: Connection, numbers: AbstractSet[str], wamids: AbstractSet[str]
) -> set[MessageKey]:
    """Which of these ids are of messages of these numbers."""
    rows = await connection.fetch(_KNOWN_BY_WAMID, sorted(numbers), sorted(wamids))
    return {(row["sender_id"], row["wamid"]) for row in rows}


# The same condition as the partial index on deadline.
_DUE = """
select exists (
    select from message
    where deadline is not null and rank < 2 and not failed and overdue_at is null and deadline <= $1
)
"""
_TAKE_OVERDUE = """
select sender_id, wamid, workspace_id, message_id, recipient, rank, failed, delivered_at, accepted_at, deadline
from message
where deadline is not null and rank < 2 and not failed and overdue_at is null and deadline <= $1
order by deadline
limit $2
for update skip locked
"""
_MARK_OVERDUE = """
update message m set overdue_at = $1, silence = over.reason
from unnest($2::text[], $3::text[], $4::text[]) as over(sender_id, wamid, reason)
where m.sender_id = over.sender_id and m.wamid = over.wamid
"""
_HISTORY = """
select asked.sender_id, asked.workspace_id, asked.recipient,
       m.wamid, m.rank, m.failed, m.accepted_at, m.deadline, m.delivered_at
from unnest($1::text[], $2::text[], $3::text[]) as asked(sender_id, workspace_id, recipient)
cross join lateral (
    select * from message
    where sender_id = asked.sender_id and recipient = asked.recipient and workspace_id = asked.workspace_id
    order by accepted_at desc limit $4
) m
"""
Pair = tuple[str, str, str]  # (sender_id, workspace_id, recipient)


async def any_due(connection: Connection, until: datetime) -> bool:
    return bool(await connection.fetchval(_DUE, until))


async def take_overdue(
    connection: Connection, until: datetime, limit: int
) -> list[tuple[Message, Awaited, str | None]]:
    """Messages without a receipt whose deadline passed before `until`, locked, with their recipient."""
    rows = await connection.fetch(_TAKE_OVERDUE, until, limit)
    return [
        (
            Message(row["sender_id"], row["wamid"], row["workspace_id"], row["message_id"], row["rank"]),
            Awaited(row["wamid"], row["rank"], row["failed"], row["accepted_at"], row["deadline"], row["delivered_at"]),
            row["recipient"],
        )
        for row in rows
    ]


async def mark_overdue(connection: Connection, reasons: Mapping[MessageKey, str], now: datetime) -> None:
    """Note by which reason these locked messages ended."""
    rows = list(reasons.items())
    columns = [key[0] for key, _ in rows], [key[1] for key, _ in rows], [code for _, code in rows]
    await connection.execute(_MARK_OVERDUE, now, *columns)


async def histories(connection: Connection, pairs: Iterable[Pair]) -> dict[Pair, list[Awaited]]:
    """Each person's last messages from that sender, newest first."""
    wanted = sorted(set(pairs))
    rows = await connection.fetch(_HISTORY, *([pair[place] for pair in wanted] for place in range(3)), HISTORY_LIMIT)
    found: dict[Pair, list[Awaited]] = defaultdict(list)
    for row in rows:
        found[row["sender_id"], row["workspace_id"], row["recipient"]].append(
            Awaited(row["wamid"], row["rank"], row["failed"], row["accepted_at"], row["deadline"], row["delivered_at"])
        )
    return found


_COUNT_AWAITED = """
select count(*) as messages, min(accepted_at) as oldest_at
from message where deadline is not null and rank < 2 and not failed and overdue_at is null
"""
_SHARE_AWAITED = """
select count(*) as messages, count(*) filter (where rank < 2 and not failed) as without
from sender s cross join lateral (
    select rank, failed from message
    where sender_id = s.sender_id and accepted_at > $1 and accepted_at < $2
    order by accepted_at desc limit $3
) m
"""


@dataclass(frozen=True, slots=True)
class Missing:
    """How many receipts are awaited, since when the oldest one; and which share of the latest messages has none."""

    messages: int
    oldest_seconds: float
    share: float


async def count_awaited(connection: Connection, now: datetime) -> Missing:
    awaited = await connection.fetchrow(_COUNT_AWAITED)
    latest = await connection.fetchrow(_SHARE_AWAITED, now - SHARE_SINCE, now - SHARE_UNTIL, SHARE_LIMIT)
    assert awaited is not None
    assert latest is not None
    oldest = (now - awaited["oldest_at"]).total_seconds() if awaited["oldest_at"] else 0.0
    share = latest["without"] / latest["messages"] if latest["messages"] else 0.0
    return Missing(awaited["messages"], max(0.0, oldest), share)


_PRUNE_MESSAGES = """
with gone as (
    delete from message
    where (sender_id, wamid) in (select sender_id, wamid from message where prune_after < $1 limit $2)
    returning sender_id, wamid
), statuses as (
    delete from seen_status s using gone where s.sender_id = gone.sender_id and s.wamid = gone.wamid
)
select count(*) from gone
"""
_PRUNE_REPORTS = """
with gone as (
    delete from seen_report where event_id in (select event_id from seen_report where seen_at < $1 limit $2)
    returning event_id
)
select count(*) from gone
"""


# What has no use for others when it goes: found by its time, and taken out by where it stands.
_PRUNE_UNCLAIMED = """
with gone as (
    delete from unclaimed where ctid = any(array(
        select ctid from unclaimed where received_at < $1 limit $2 for update skip locked))
    returning 1
)
select count(*) from gone
"""


async def prune(connection: Connection, now: datetime, limit: int = PRUNE_LIMIT) -> bool:
    """Forget what can't come back; one bounded step. Returns whether there may be more."""
    messages = await connection.fetchval(_PRUNE_MESSAGES, now, limit)
    reports = await connection.fetchval(_PRUNE_REPORTS, now - KEEP_REPORTS, limit)
    unclaimed = await connection.fetchval(_PRUNE_UNCLAIMED, now - KEEP_UNCLAIMED, limit)
    return limit in (messages, reports, unclaimed)


async def reached(connection: Connection, group: str, topic: str) -> dict[int, int]:
    rows = await connection.fetch(
        "select partition, next_offset from reached where consumer_group = $1 and topic = $2", group, topic
    )
    return {row["partition"]: row["next_offset"] for row in rows}
