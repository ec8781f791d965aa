"""Who waits for a number's own pace. A campaign of a million behind one number is told of by one event for the number,
renewed while it lasts, and not by a million (ADR 29)."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from asyncpg import Record as Row
from sendwhy.postgres import add_to_outbox
from sendwhy.service import Runtime

from dispatcher import announce, claims
from dispatcher.driving import IS_NEWS

LASTS = timedelta(minutes=10)
RENEW_BEFORE = timedelta(seconds=30)
LOOK_SECONDS = 5.0

# Held or paused it waits for that, and where nobody drives it, for nobody's pace.
_DRIVEN = f"""
select s.sender_id, s.workspace_id, s.messages_per_second, s.paced_since, s.paced_until
from sender s
join driving d on d.sender_id = s.sender_id and d.seen_at > clock_timestamp() - interval '{IS_NEWS.seconds} s'
where s.paused_at is null and s.hold is null
order by s.sender_id
"""  # noqa: S608 - a constant
_IS_BEHIND = """
select exists (select from message m where m.state = 'waiting' and m.sender_id = $1 and m.line = any($2::text[])
               and m.not_before <= $3 offset $4)
"""
# What holds the number from now on is told after this, and counts.
_TELL = """
update sender set paced_since = $2, paced_until = $3
where sender_id = $1 and paused_at is null and hold is null and paced_until is not distinct from $4
returning sender_id
"""


@dataclass(frozen=True, slots=True)
class Paced:
    """Since when, and as far as told until when, messages wait for their number's pace."""

    since: datetime
    until: datetime


def news(known: Paced | None, now: datetime, *, is_behind: bool) -> Paced | None:
    """What is to be told now; None where that is known."""
    stands = known is not None and known.until > now
    if not is_behind:
        return Paced(known.since, now) if known is not None and stands else None
    if known is None or not stands:
        return Paced(now, now + LASTS)
    return Paced(known.since, now + LASTS) if known.until - now <= RENEW_BEFORE else None


class Pacing:
    def __init__(self, runtime: Runtime, clock: Callable[[], datetime]) -> None:
        self._runtime, self._clock = runtime, clock

    def register(self) -> None:
        self._runtime.every(LOOK_SECONDS, "told of paces", self.tell)

    async def tell(self) -> None:
        """A number whose last message won't go within 10 s."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            rows = await connection.fetch(_DRIVEN)
        for row in rows:
            await self._tell(row)

    async def _tell(self, row: Row) -> None:
        sender_id, now = row["sender_id"], self._clock()
        soon = int(row["messages_per_second"] * announce.HELD_ABOVE.total_seconds())
        known = Paced(row["paced_since"], row["paced_until"]) if row["paced_until"] is not None else None
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            lines = await claims.free_lines(connection, sender_id, row["workspace_id"])
            is_behind = await connection.fetchval(_IS_BEHIND, sender_id, lines, now, soon)
            told = news(known, now, is_behind=is_behind)
            if told is None:
                return
            former = known.until if known is not None else None
            if await connection.fetchval(_TELL, sender_id, told.since, told.until, former) is None:
                return
            event = announce.sender_paced(row["workspace_id"], sender_id, told.since, told.until, now)
            await add_to_outbox(connection, [event])
        self._runtime.publish_soon()
