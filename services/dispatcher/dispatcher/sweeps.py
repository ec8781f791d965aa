"""What is done to many waiting messages, in steps of their own transactions: nobody else waits longer than for a step,
and a crash loses no more than one. What is left to do stands in the table `sweep`."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime

from dispatcher import announce, claims, queue_store
from dispatcher.decide import UPSTREAM, Message, Waiting
from dispatcher.limits import throttle_within
from dispatcher.store import Key

STEP = 1_000
LINE_STEP = 5_000
STEPS_AT_ONCE = 50
# What finds nothing to do, since all of it is locked or out, lets the others go first.
IDLE = timedelta(seconds=1)
TOLD_ABOVE_SECONDS = announce.HELD_ABOVE.total_seconds()

Cancel = Callable[[Connection, Sequence[Message], dict[Key, str]], Awaitable[int]]


class Kind(StrEnum):
    LINE = "line"
    CANCEL_CAMPAIGN = "cancel_campaign"
    CANCEL_SENDER = "cancel_sender"


@dataclass(frozen=True, slots=True)
class Sweep:
    """`target`: a campaign or a sender; `at`: of a sender, only what came until then is cancelled."""

    workspace_id: str
    kind: Kind
    target: str
    by: str | None
    at: datetime


# A sender that is cancelled again while it still is: what came in between too.
_START = """
insert into sweep (workspace_id, kind, target, by_whom, at) values ($1, $2, $3, $4, $5)
on conflict (workspace_id, kind, target) do update set at = greatest(sweep.at, excluded.at),
    stepped_at = least(sweep.stepped_at, clock_timestamp())
"""
_NEXT = """
select workspace_id, kind, target, by_whom, at from sweep where stepped_at <= clock_timestamp()
order by stepped_at limit 1 for update skip locked
"""
_LINE_UP = """
with next as (
    select workspace_id, message_id from message
    where state = 'waiting' and workspace_id = $1 and campaign_id = $2 and line = ''
    limit $3 for update skip locked
)
update message m set line = 'c' || m.campaign_id
from next where m.workspace_id = next.workspace_id and m.message_id = next.message_id
"""
_LEFT = {
    Kind.LINE: "m.workspace_id = $1 and m.campaign_id = $2 and m.line = ''",
    Kind.CANCEL_CAMPAIGN: "m.workspace_id = $1 and m.campaign_id = $2",
    Kind.CANCEL_SENDER: "m.workspace_id = $1 and m.sender_id = $2 and m.queued_at <= $3",
}


async def start(connection: Connection, sweep: Sweep) -> None:
    await connection.execute(_START, sweep.workspace_id, sweep.kind, sweep.target, sweep.by, sweep.at)


async def cancel_step(connection: Connection, sweep: Sweep, cancel: Cancel) -> int:
    """Cancel some of what is left; returns how many."""
    if sweep.kind is Kind.CANCEL_CAMPAIGN:
        messages = await queue_store.lock_some_of_campaign(connection, (sweep.workspace_id, sweep.target), STEP)
    else:
        messages = await queue_store.lock_some_of_sender(connection, sweep.target, sweep.at, STEP)
    return await cancel(connection, messages, {message.key: sweep.by or UPSTREAM for message in messages})


class Sweeps:
    def __init__(self, runtime: Runtime, cancel: Cancel, clock: Callable[[], datetime]) -> None:
        self._runtime, self._cancel, self._clock = runtime, cancel, clock

    def register(self) -> None:
        self._runtime.every(0.5, "sweeps", self.sweep)
        self._runtime.every(1.0, "told of throttles", self.tell_throttled)

    async def sweep(self) -> None:
        for _ in range(STEPS_AT_ONCE):
            if not await self._step():
                break

    async def _step(self) -> bool:
        """Whether there may be more to do at once."""
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            row = await connection.fetchrow(_NEXT)
            if row is None:
                return False
            kind = Kind(row["kind"])
            sweep = Sweep(row["workspace_id"], kind, row["target"], row["by_whom"], row["at"])
            place = (sweep.workspace_id, sweep.kind, sweep.target)
            if kind is Kind.LINE:
                tag = await connection.execute(_LINE_UP, sweep.workspace_id, sweep.target, LINE_STEP)
                done = int(tag.rpartition(" ")[2])
            else:
                done = await cancel_step(connection, sweep, self._cancel)
            if done == 0 and not await _is_left(connection, sweep):
                await connection.execute(
                    "delete from sweep where workspace_id = $1 and kind = $2 and target = $3", *place
                )
                return True
            await connection.execute(
                "update sweep set stepped_at = clock_timestamp() + $4::interval"
                " where workspace_id = $1 and kind = $2 and target = $3",
                *place,
                timedelta() if done else IDLE,
            )
        return True

    async def tell_throttled(self) -> None:
        """Who stands in a throttled campaign's line and won't go within 10 s is told of, each once."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            campaigns = await connection.fetch(_THROTTLED)
        for row in campaigns:
            for _ in range(STEPS_AT_ONCE):
                if await self._tell_some((row["workspace_id"], row["campaign_id"])) < STEP:
                    break

    async def _tell_some(self, campaign: Key) -> int:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            now = self._clock()
            throttles = await claims.read_throttles(connection, campaign[0], [campaign[1]], now)
            soon = throttle_within(throttles[campaign[1]], TOLD_ABOVE_SECONDS, now) if throttles else 0
            rows = await connection.fetch(_UNTOLD, *campaign, now, soon, STEP)
            messages = [queue_store.message_of(row) for row in rows]
            held = []
            for message in messages:
                until = message.funded.expires_at
                told = announce.held(message, ReasonCode.RATE_LIMIT_EXCEEDED, Waiting.THROTTLE, now, until)
                held += [told] if told else []
            keys = [message.key for message in messages]
            await connection.execute(_TOLD, [key[0] for key in keys], [key[1] for key in keys])
            if held:
                await add_to_outbox(connection, held)
        if held:
            self._runtime.publish_soon()
        return len(messages)


async def _is_left(connection: Connection, sweep: Sweep) -> bool:
    values = [sweep.workspace_id, sweep.target, *([sweep.at] if sweep.kind is Kind.CANCEL_SENDER else [])]
    statement = f"select exists (select from message m where m.state = 'waiting' and {_LEFT[sweep.kind]})"  # noqa: S608
    if await connection.fetchval(statement, *values):
        return True
    # A campaign stays cancelled; of a sender, what is out now and comes back to wait was meant as well.
    return sweep.kind is Kind.CANCEL_SENDER and bool(await connection.fetchval(_OUT, sweep.target, sweep.at))


_OUT = """
select exists (select from message where state in ('in_flight', 'unknown') and sender_id = $1 and queued_at <= $2)
"""


_THROTTLED = """
select c.workspace_id, c.campaign_id from campaign c
where (c.per_minute is not null or c.per_day is not null) and c.paused_at is null and c.cancelled_at is null
  and exists (select from message m where m.state = 'waiting' and m.waiting_for = 'turn' and m.line > 'c'
              and m.workspace_id = c.workspace_id and m.campaign_id = c.campaign_id)
order by c.workspace_id, c.campaign_id
"""
_UNTOLD = f"""
with soon as materialized (
    select m.workspace_id, m.message_id from message m
    where m.state = 'waiting' and m.workspace_id = $1 and m.campaign_id = $2 and m.line = 'c' || $2
      and m.not_before <= $3
    order by m.not_before limit $4
)
select {queue_store.MESSAGE_COLUMNS} from message m
where m.state = 'waiting' and m.waiting_for = 'turn' and m.line > 'c' and m.line <> 'p'
  and m.workspace_id = $1 and m.campaign_id = $2 and m.not_before <= $3
  and (m.workspace_id, m.message_id) not in (select workspace_id, message_id from soon)
order by m.not_before limit $5
for update of m skip locked
"""  # noqa: S608 - a constant
_TOLD = """
update message m set waiting_for = 'throttle', told = m.told || 'throttle'::text,
    waiting_since = greatest(m.not_before, m.queued_at)
from unnest($1::text[], $2::text[]) as l(workspace_id, message_id)
where m.workspace_id = l.workspace_id and m.message_id = l.message_id and m.state = 'waiting'
"""
