"""Numbers that fall silent: what is known of each is judged every few seconds, by whichever replica comes first."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

import asyncpg
import structlog
from pydantic import JsonValue, TypeAdapter
from sendwhy.metrics import Metric
from sendwhy.postgres import Connection
from sendwhy.service import Runtime
from sendwhy.topics import Topic

from webhook_ingest.parsing import Beat, latest
from webhook_ingest.receipts import Mark, has_read_to, take_mark
from webhook_ingest.settings import Settings
from webhook_ingest.silence import READ_WITHIN, UNANSWERED_MIN, Cause, SenderFacts, SenderSilence, silence_of_sender
from webhook_ingest.stored import batches_of, span_of, stored

# Older messages without any word are each a silence of their own.
LOOK_BACK = timedelta(hours=24)
UNANSWERED_LIMIT = 1000
SENDERS_LIMIT = 1000
REFUSED_LIMIT = 200

log = structlog.get_logger("sendwhy")
_JSON: TypeAdapter[JsonValue] = TypeAdapter(JsonValue)

_NOTE_BEATS = """
insert into sender_pulse as p (sender_id, heard_at, late_seconds, foreign_at)
select b.* from unnest($1::text[], $2::timestamptz[], $3::float8[], $4::timestamptz[])
    as b(sender_id, heard_at, late_seconds, foreign_at)
join sender using (sender_id)
order by b.sender_id
on conflict (sender_id) do update
set heard_at = greatest(p.heard_at, excluded.heard_at),
    late_seconds = coalesce(excluded.late_seconds, p.late_seconds),
    foreign_at = greatest(p.foreign_at, excluded.foreign_at)
"""
# Senders with something unanswered, the loudest first; `waiting` and `unanswered` are bounded, more proves no more.
_FACTS = """
select s.sender_id, s.waba_id, p.heard_at, p.late_seconds, p.foreign_at,
       w.waiting, w.unanswered, w.unanswered_since,
       (select max(o.heard_at) from sender_pulse o where o.sender_id <> s.sender_id) as others_at
from sender s
left join sender_pulse p using (sender_id)
cross join lateral (
    select count(*) as waiting,
           count(*) filter (where p.heard_at is null or m.accepted_at > p.heard_at) as unanswered,
           min(m.accepted_at) filter (where p.heard_at is null or m.accepted_at > p.heard_at) as unanswered_since
    from (
        select accepted_at from message
        where sender_id = s.sender_id and accepted_at > $1 and accepted_at < $2
          and accepted_at is not null and rank = 0 and not failed and overdue_at is null
        order by accepted_at desc limit $3
    ) m
) w
where w.waiting >= $5
order by w.waiting desc limit $4
"""
_SILENT_NOW = "select sender_id, cause from silent_sender"
_SAVE_SILENT = """
insert into silent_sender (sender_id, cause, since, evidence, judged_at)
select sender_id, cause, since, evidence::jsonb, $5
from unnest($1::text[], $2::text[], $3::timestamptz[], $4::text[]) as new(sender_id, cause, since, evidence)
on conflict (sender_id) do update
set cause = excluded.cause, since = excluded.since, evidence = excluded.evidence, judged_at = excluded.judged_at
"""
_END_SILENT = "delete from silent_sender where sender_id <> all($1::text[])"


class Pulse:
    """When numbers were heard of, in memory until the next tick: a row of each in every batch would be waited for by
    all replicas. What a dying process forgets is heard again."""

    def __init__(self) -> None:
        self._beats: dict[str, Beat] = {}

    def note(self, beats: Mapping[str, Beat]) -> None:
        for number, beat in beats.items():
            self._beats[number] = self._beats[number].with_later(beat) if number in self._beats else beat

    def take(self) -> dict[str, Beat]:
        beats, self._beats = self._beats, {}
        return beats


async def note_beats(connection: Connection, beats: Mapping[str, Beat]) -> None:
    """Store when known numbers were heard of."""
    await connection.execute(
        _NOTE_BEATS,
        list(beats),
        [beat.heard_at for beat in beats.values()],
        [beat.late_seconds for beat in beats.values()],
        [beat.foreign_at for beat in beats.values()],
    )


class Watch:
    """The timer: notes the pulses, judges the numbers, tells of what has changed."""

    def __init__(self, runtime: Runtime, settings: Settings, pulse: Pulse) -> None:
        self._runtime, self._pulse = runtime, pulse
        self._patience = timedelta(seconds=settings.silent_after_seconds)
        self._mark: Mark | None = None
        self._needed_since: datetime | None = None
        self._read_until: datetime | None = None

    async def tick(self) -> None:
        await self._note_beats()
        await self.judge(datetime.now(UTC))

    async def judge(self, now: datetime) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            rows = await unanswered(connection, now, self._patience)
        read_until = await self._look_how_far_we_read(now, is_needed=bool(rows))
        if read_until is None:
            return
        refused = await self._refused(rows, now) if rows else {}
        judged = {
            row["sender_id"]: silence_of_sender(
                facts_of(row, now, read_until, refused.get(row["sender_id"])), self._patience
            )
            for row in rows
        }
        silent = {number: told for number, told in judged.items() if told is not None}
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            before = await save_silent(connection, silent, now)
        self._tell(before, silent)

    async def _note_beats(self) -> None:
        beats = self._pulse.take()
        if not beats:
            return
        try:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                await note_beats(connection, beats)
        except BaseException:
            self._pulse.note(beats)
            raise

    async def _look_how_far_we_read(self, now: datetime, *, is_needed: bool) -> datetime | None:
        """Up to when webhook.received has been read for sure: to a mark's moment once its offsets are reached.

        None while that is not known yet; after a while not to know is to know that we are behind.
        """
        if not is_needed:
            self._mark = self._needed_since = self._read_until = None
            return now
        self._needed_since = self._needed_since or now
        mark = self._mark or await take_mark(self._runtime.settings, now)
        async with self._runtime.pool.acquire(timeout=30) as connection:
            is_read = await has_read_to(self._runtime, connection, mark)
        self._mark = None if is_read else mark
        if is_read:
            self._read_until = mark.at
        elif self._read_until is None and now - self._needed_since > READ_WITHIN:
            return self._needed_since
        return self._read_until

    async def _refused(self, rows: Sequence[asyncpg.Record], now: datetime) -> dict[str, datetime]:
        """When a webhook that names one of these numbers or their accounts was last refused for its signature.

        Anybody can post such a body: it proves nothing, and is only a reason to look at the secrets first.
        """
        found: dict[str, datetime] = {}
        for at, body in await _refused_bodies(self._runtime, now - LOOK_BACK, now):
            for row in rows:
                if row["sender_id"].encode() in body or row["waba_id"].encode() in body:
                    found[row["sender_id"]] = max(at, found.get(row["sender_id"], at))
        return found

    def _tell(self, before: Mapping[str, str], silent: Mapping[str, SenderSilence]) -> None:
        for number, told in silent.items():
            if before.get(number) != told.cause:
                log.warning("a number is silent", sender_id=number, cause=told.cause, since=told.since.isoformat())
        for number in before.keys() - silent.keys():
            log.info("a number is heard of again", sender_id=number)
        causes = [told.cause for told in silent.values()]
        for cause in Cause:
            self._runtime.metrics.set(Metric.SENDERS_SILENT, causes.count(cause), cause=cause)


async def _refused_bodies(runtime: Runtime, since: datetime, to: datetime) -> list[tuple[datetime, bytes]]:
    """The last deliveries that were refused, cut as they are kept."""
    found: list[tuple[datetime, bytes]] = []
    async with stored(runtime.settings, Topic.WEBHOOK_REFUSED) as (consumer, places):
        for place in places:
            first, last = await span_of(consumer, place, since, to)
            async for batch in batches_of(consumer, place, max(first, last - REFUSED_LIMIT), last):
                found += [(record.at, record.value or b"") for record in batch]
    return found


async def unanswered(connection: Connection, now: datetime, patience: timedelta) -> list[asyncpg.Record]:
    """Numbers with messages that Meta took longer than `patience` ago and of which nothing at all was heard."""
    return await connection.fetch(
        _FACTS, now - LOOK_BACK, now - patience, UNANSWERED_LIMIT, SENDERS_LIMIT, UNANSWERED_MIN
    )


def facts_of(row: asyncpg.Record, now: datetime, read_until: datetime, refused_at: datetime | None) -> SenderFacts:
    late = row["late_seconds"]
    return SenderFacts(
        now=now,
        waiting=row["waiting"],
        unanswered=row["unanswered"],
        unanswered_since=row["unanswered_since"],
        heard_at=row["heard_at"],
        late=None if late is None else timedelta(seconds=late),
        read_until=read_until,
        refused_at=latest(refused_at, row["foreign_at"]),
        others_at=row["others_at"],
    )


async def save_silent(connection: Connection, silent: Mapping[str, SenderSilence], now: datetime) -> dict[str, str]:
    """Store the whole picture; returns the causes that stood before. One replica at a time."""
    await connection.execute("select pg_advisory_xact_lock(hashtextextended('webhook-ingest.watch', 0))")
    before = {row["sender_id"]: row["cause"] for row in await connection.fetch(_SILENT_NOW)}
    if silent or before:
        await connection.execute(_END_SILENT, list(silent))
        await connection.execute(
            _SAVE_SILENT,
            list(silent),
            [told.cause for told in silent.values()],
            [told.since for told in silent.values()],
            [_JSON.dump_json(told.evidence).decode() for told in silent.values()],
            now,
        )
    return before
