"""What happens because time passed: messages expire, unknown outcomes are given up, gauges are read."""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

import structlog
from sendwhy.events import Reason, reason
from sendwhy.metrics import Metric
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.reasons import ReasonCode, Service
from sendwhy.service import Runtime
from sendwhy.topics import Topic

from dispatcher import announce, erasures, forgetting, hold_store, people_store, queue_store, store, tier_store
from dispatcher.answers import RULES
from dispatcher.decide import Lane, Message, Sender, Tier, Unread, Waiting, expired
from dispatcher.settings import Settings

SWEEP_AT_MOST = 500
SYNC_FAILURE_CAUSES = ("refused", "unreachable", "token", "database")
# A hundred codes, of which Meta uses a few: these count from their first one on.
REFUSED_RIGHTS = range(200, 300)
MEASURE_SECONDS = 5.0
MEASURE_SHARE = 50
LIVE_LANES = [lane.name.lower() for lane in Lane]

log = structlog.get_logger("sendwhy")


class Timers:
    def __init__(self, runtime: Runtime, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._runtime, self._settings, self._clock = runtime, settings, clock
        self._measure_at = 0.0

    def register(self) -> None:
        for cause in SYNC_FAILURE_CAUSES:
            self._runtime.metrics.inc(Metric.SYNC_FAILURES, 0, cause=cause)
        for code, rule in RULES.items():
            if code not in REFUSED_RIGHTS:
                self._runtime.metrics.inc(Metric.META_ERRORS, 0, code=str(code), action=rule.action)
        self._runtime.every(1.0, "expiry", self.expire)
        self._runtime.every(1.0, "unknown outcomes", self.see_to_unknown)
        self._runtime.every(1.0, "inbound read", self.note_inbound_read)
        self._runtime.every(MEASURE_SECONDS, "queue gauges", self.measure)
        self._runtime.every(600.0, "forget", self.forget)

    async def expire(self) -> None:
        count = SWEEP_AT_MOST
        while count == SWEEP_AT_MOST:
            async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                now = self._clock()
                rows = await queue_store.lock_expired(connection, now, SWEEP_AT_MOST)
                tiers = await _tiers(connection, [message for message, *_ in rows], now)
                unread = await _unread(connection, [message for message, *_ in rows])
                reasons = {
                    message.key: expired(
                        message, hold, rest, tiers.get(message.sender_id), unread.get(message.sender_id)
                    )
                    for message, hold, rest in rows
                }
                if rows:
                    codes = {key: why.code for key, why in reasons.items()}
                    await queue_store.finish_waiting(connection, "rejected", codes)
                    told = [announce.rejected(message, reasons[message.key], now) for message, *_ in rows]
                    await add_to_outbox(connection, told)
            count = len(rows)
            self._tell(list(reasons.values()))

    async def see_to_unknown(self) -> None:
        """Calls of which nobody knows whether Meta took them: wait visibly for a receipt, and are given up at last."""
        patience = timedelta(seconds=self._settings.unknown_outcome_seconds)
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            now = self._clock()
            rows = await queue_store.lock_unknown(connection, now - patience, SWEEP_AT_MOST)
            reasons = {message.key: _unknown(message, since) for message, since in rows}
            if rows:
                await queue_store.finish_unknown(connection, {key: why.code for key, why in reasons.items()})
                await add_to_outbox(connection, [announce.rejected(one, reasons[one.key], now) for one, _ in rows])
            wait = patience > announce.HELD_ABOVE
            told = await queue_store.tell_unknown(connection, now - announce.HELD_ABOVE, SWEEP_AT_MOST) if wait else []
            if told:
                held = [announce.outcome_awaited(message, at, at + patience, now) for message, at in told]
                await add_to_outbox(connection, held)
                self._runtime.publish_soon()
        self._tell(list(reasons.values()))

    def _tell(self, reasons: list[Reason]) -> None:
        for why in reasons:
            self._runtime.metrics.inc(Metric.REJECTED, service=Service.DISPATCHER, reason=why.code)
        if reasons:
            self._runtime.publish_soon()

    async def note_inbound_read(self) -> None:
        """Up to when this replica has read its partitions of message.received: a closed window is believed then."""
        stage = next(stage for stage in self._runtime.stages if stage.topic is Topic.MESSAGE_RECEIVED)
        read_until = await stage.read_until()
        if read_until:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                await people_store.note_inbound_read(connection, read_until)

    async def forget(self) -> None:
        """Numbers of people are kept no longer than what they are kept for, and messages no longer than repeats."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            await erasures.prune(connection, self._clock())
            await forgetting.prune_messages(connection, self._clock())
            await forgetting.prune_cancellations(connection, self._clock())

    async def measure(self) -> None:
        """At most a fiftieth of the time goes into counting: a million waiting messages are counted twice a minute."""
        if time.monotonic() < self._measure_at:
            return
        started, now = time.monotonic(), self._clock()
        async with self._runtime.pool.acquire(timeout=30) as connection:
            rows = await queue_store.queue_by_cause(connection, None, now)
            holds = await hold_store.standing(connection)
        took = time.monotonic() - started
        self._measure_at = started + MEASURE_SHARE * took
        if MEASURE_SHARE * took > MEASURE_SECONDS:
            log.info("the queue is counted less often", seconds=round(MEASURE_SHARE * took))
        counts = [
            ({"lane": LIVE_LANES[row["lane"]], "waiting_for": row["waiting_for"]}, float(row["messages"]))
            for row in rows
        ]
        ages: dict[str, float] = {}
        for row in rows:
            age = (now - row["oldest"]).total_seconds()
            ages[LIVE_LANES[row["lane"]]] = max(age, ages.get(LIVE_LANES[row["lane"]], 0.0))
        self._runtime.metrics.replace(Metric.QUEUE_MESSAGES, counts)
        held = Counter((hold.cause.code.value, hold.scope.held.value) for hold in holds)
        self._runtime.metrics.replace(
            Metric.HOLDS, [({"cause": cause, "scope": scope}, float(count)) for (cause, scope), count in held.items()]
        )
        self._runtime.metrics.replace(
            Metric.QUEUE_OLDEST_SECONDS, [({"lane": lane}, age) for lane, age in ages.items()]
        )


async def _tiers(connection: Connection, messages: Iterable[Message], now: datetime) -> dict[str, Tier]:
    """The messaging limits, by sender, that some of these messages waited for."""
    return {
        sender.sender_id: await tier_store.read_tier(connection, sender.tier_key, sender.messaging_limit, now)
        for sender in await _senders(connection, messages, Waiting.TIER)
    }


async def _unread(connection: Connection, messages: Iterable[Message]) -> dict[str, Unread]:
    """Why no templates could be read, by sender, for which some of these messages waited."""
    senders = await _senders(connection, messages, Waiting.SYNC)
    return {sender.sender_id: sender.unread for sender in senders if sender.unread is not None}


async def _senders(connection: Connection, messages: Iterable[Message], cause: Waiting) -> list[Sender]:
    """Of the messages that waited for that."""
    waited = {message.sender_id for message in messages if message.waiting_for is cause}
    return [row.sender for row in (await store.senders(connection, waited)).values()] if waited else []


def _unknown(message: Message, since: datetime) -> Reason:
    last = dict(message.tries[-1]) if message.tries else {}
    told = f"The call of {since.isoformat(timespec='seconds')} may or may not have been taken, and no receipt came"
    return reason(ReasonCode.SEND_OUTCOME_UNKNOWN, told, {"called_at": since.isoformat(), "last_try": last})
