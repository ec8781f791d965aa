"""Which messages should have an outcome by now and have none: the promise that every message ends, looked at from
outside of who keeps it.

Open messages are walked workspace by workspace, the oldest first, a bounded part at a time; a pass over few of them is
one step. What waits by word of the dispatcher is left out: such a wait ends at the message's expiry at the latest.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sendwhy.events import LIFE_BY_ORIGIN
from sendwhy.metrics import Metric, Metrics
from sendwhy.postgres import Connection

from message_log.freshness import Freshness

# Above the 10 minutes that a call of unknown outcome waits for its receipt (UNKNOWN_OUTCOME_SECONDS).
GRACE = timedelta(minutes=15)
AT_ONCE = 2000
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
# Nobody lives shorter, unless the request says so.
YOUNG = GRACE + min(LIFE_BY_ORIGIN.values())

_NEXT_WORKSPACE = """
select workspace_id from message where outcome in ('open', 'accepted') and workspace_id > $1
order by workspace_id limit 1
"""
_LOOK = """
with oldest as (
    select message_id, at, waiting_until from message
    where workspace_id = $1 and outcome = 'open' and at < $2 and (at, message_id) > ($3, $4)
    order by at, message_id limit $5
), judged as (
    select s.at, s.message_id,
           case when s.waiting_until is null or s.waiting_until < $6 then
               (convert_from(m.state, 'UTF8')::jsonb #>> '{facts,expires_at,value}')::timestamptz end as expires_at
    from oldest s join message m on m.workspace_id = $1 and m.message_id = s.message_id
)
select count(*) as looked_at, count(*) filter (where expires_at < $6) as overdue,
       min(expires_at) filter (where expires_at < $6) as oldest, max(at) as at,
       (array_agg(message_id order by at desc, message_id desc))[1] as message_id
from judged
"""


@dataclass(frozen=True, slots=True)
class Found:
    """How many are overdue, and the earliest expiry of them."""

    messages: int = 0
    oldest: datetime | None = None

    def and_also(self, messages: int, oldest: datetime | None) -> "Found":
        known = [moment for moment in (self.oldest, oldest) if moment is not None]
        return Found(self.messages + messages, min(known, default=None))


@dataclass(frozen=True, slots=True)
class Place:
    """How far a pass has come: all of `workspace` up to this message has been looked at."""

    workspace: str = ""
    at: datetime = BEGINNING
    message_id: str = ""


@dataclass(slots=True)
class Pass:
    """One walk over all open messages, in as many steps as it takes."""

    place: Place = field(default_factory=Place)
    found: Found = field(default_factory=Found)
    is_over: bool = False

    async def step(self, connection: Connection, now: datetime, at_once: int = AT_ONCE) -> None:
        """Look at up to so many messages more."""
        left = at_once
        while left > 0 and not self.is_over:
            if not self.place.workspace:
                await self._enter_next(connection, "")
                continue
            row = await connection.fetchrow(
                _LOOK,
                self.place.workspace,
                now - YOUNG,
                self.place.at,
                self.place.message_id,
                left,
                now - GRACE,
            )
            assert row is not None
            self.found = self.found.and_also(row["overdue"], row["oldest"])
            if row["looked_at"] < left:
                await self._enter_next(connection, self.place.workspace)
            else:
                self.place = replace(self.place, at=row["at"], message_id=row["message_id"])
            left -= row["looked_at"] + 1

    async def _enter_next(self, connection: Connection, after: str) -> None:
        workspace = await connection.fetchval(_NEXT_WORKSPACE, after)
        self.is_over = workspace is None
        self.place = Place(workspace or "")


class Overdue:
    """Measures by what this log has read: while it is behind, by the time that it has come to."""

    def __init__(self, metrics: Metrics, freshness: Freshness, connect: Callable[[], Any]) -> None:
        self._metrics, self._freshness, self._connect = metrics, freshness, connect
        self._pass, self._last = Pass(), Found()

    async def measure(self) -> None:
        as_of = self._freshness.as_of()
        now = as_of.at - timedelta(seconds=as_of.behind_seconds)
        async with self._connect() as connection:
            await self._pass.step(connection, now)
        found = self._pass.found
        if self._pass.is_over:
            self._pass, self._last = Pass(), found
        elif found.messages < self._last.messages:
            # A pass that isn't over tells no good news.
            found = self._last
        self._metrics.set(Metric.OUTCOMES_OVERDUE, found.messages)
        late = (now - found.oldest).total_seconds() if found.oldest else 0.0
        self._metrics.set(Metric.OUTCOME_OVERDUE_SECONDS, late)
