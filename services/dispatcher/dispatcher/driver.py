"""One driver per sender, over any number of replicas: claims what is due, calls Meta, records how it ended.

The lock that makes a driver the only one lives on a connection of its own outside the pool (asyncpg's pool gives
session locks back). The lock can be lost without the driver knowing, so every claim also checks the fence: a number
that each take-over raises. Meta checks no fence, so a call starts only while the lease lasts, which ends before anybody
else can have the lock (ADR 17): a driver that was frozen and wakes calls nobody.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta

import structlog
from sendwhy.events import Reason, reason
from sendwhy.logs import describe
from sendwhy.metrics import Metric
from sendwhy.postgres import TRANSIENT_ERRORS, Connection, add_to_outbox
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime

from dispatcher import announce, facts, hold_store, people_store, queue_store, store
from dispatcher.answers import Action, MaybeTaken, NotTaken, Outcome, Taken, code_label, in_light_of
from dispatcher.calls import message_body
from dispatcher.decide import (
    SYNC_INTERVAL,
    Facts,
    Message,
    Reject,
    Send,
    Tier,
    Verdict,
    Wait,
    Waiting,
    decide,
    in_outage,
)
from dispatcher.lease import Lease
from dispatcher.limits import Pace, PairPace, Throttle, next_slot
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.queue_store import Due, NewWait
from dispatcher.results import Ended, Go, Results, utc_now
from dispatcher.settings import Settings
from dispatcher.store import Key, SenderRow
from dispatcher.sync import sync_sender
from dispatcher.tokens import Access, TokenUnreadable, TokenVault

CALL_STARTS_WITHIN_SECONDS = 5.0
LOOK_AT_MOST = 100
IDLE_SECONDS = 0.5
LOCK_SECONDS = 1.0
ALIVE_SECONDS = 5.0
SYNC_EVERY = timedelta(hours=1)
SYNC_AGAIN_SECONDS = 5.0
LAST_LANE_EVERY = 10
PACE_REST_SECONDS = 1.0
PROBED_ELSEWHERE = timedelta(seconds=10)

log = structlog.get_logger("sendwhy")


class Lost(Exception):
    """Another driver has taken over."""


class Driver:
    """Drives one sender until it loses the sender or is stopped."""

    def __init__(self, sender_id: str, runtime: Runtime, settings: Settings, meta: Meta, vault: TokenVault) -> None:
        self.sender_id = sender_id
        self.wake = asyncio.Event()
        self._runtime, self._settings, self._meta, self._vault = runtime, settings, meta, vault
        self._fence = 0
        self._lease = Lease()
        # Longer than any call takes, so that a second one only tries after a first whose outcome stayed open.
        call_seconds = settings.meta_connect_timeout_seconds + settings.meta_read_timeout_seconds
        self._probe_lease = timedelta(seconds=call_seconds + 15)
        self._pace: Pace | None = None
        self._per_second = 0
        self._pairs = PairPace()
        self._rounds = 0
        self._calls: set[asyncio.Task[None]] = set()
        self._commit_is_unsure = False
        self._stopping = False
        self._results = Results(sender_id, runtime, settings, self.wake)
        self._sync: asyncio.Task[None] | None = None
        self._sync_now = False
        self._sync_not_before = 0.0

    async def run(self, fence: int, lease: Lease) -> None:
        """`fence` is of the take-over that made this driver the sender's."""
        self._fence = self._results.fence = fence
        self._lease = lease
        log.info("driving sender", sender=self.sender_id, fence=fence)
        writer = asyncio.create_task(self._results.run())
        try:
            while not self._stopping:
                try:
                    pause = await self._round()
                except TRANSIENT_ERRORS as error:
                    log.warning("a round failed, it is tried again", sender=self.sender_id, error=describe(error))
                    self._commit_is_unsure = True
                    pause = IDLE_SECONDS
                await self._pause(pause)
                if writer.done():
                    await writer
        except Lost:
            log.info("another driver has taken over", sender=self.sender_id)
        finally:
            await self._finish(writer)

    def stop(self) -> None:
        """End after this round: cancelled within its commit, it would leave messages in flight that nobody sends."""
        self._stopping = True
        self.wake.set()

    async def _pause(self, seconds: float) -> None:
        if seconds < IDLE_SECONDS:
            await asyncio.sleep(seconds)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.wake.wait()
        self.wake.clear()

    async def _finish(self, writer: "asyncio.Task[None]") -> None:
        """Let the calls that are out end, and store how; what doesn't end in time is parked by the next driver."""
        if self._sync is not None:
            self._sync.cancel()
        if self._calls:
            await asyncio.wait(self._calls, timeout=8)
        with suppress(TimeoutError):
            await asyncio.wait_for(self._results.stored(), 5)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    # --- one round: look at what is due, decide, mark, call ---

    async def _round(self) -> float:
        """Returns the seconds until the next look; `IDLE_SECONDS` when nothing is due."""
        now_seconds = time.monotonic()
        if not self._lease.holds(now_seconds) or self._results.circuit.is_open:
            # In a moment it is known whether the sender still is ours, or the hold is stored.
            return IDLE_SECONDS
        if self._commit_is_unsure:
            await self._give_back()
        pace = self._pace
        free = self._settings.calls_in_flight_max - len(self._calls)
        room = LOOK_AT_MOST if pace is None else min(pace.available(now_seconds), free, LOOK_AT_MOST)
        if room <= 0:
            return max(0.005, pace.wait_seconds(now_seconds) if pace and free > 0 else 0.02)
        self._rounds += 1
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            # Before the mark, not behind its commit: a process may freeze in between.
            marked_at = time.monotonic()
            row, looked_at, going = await self._claim(connection, room)
        self._start_sync(row)
        if looked_at:
            self._runtime.publish_soon()
        if going:
            assert self._pace is not None
            self._pace.take(len(going), time.monotonic())
            self._start_calls(row, going, marked_at)
        if looked_at < room:
            return IDLE_SECONDS
        return self._until_worth_a_round(now_seconds) if going else 0.0

    def _until_worth_a_round(self, started: float) -> float:
        """A round costs the same for one message as for a burst: wait until about a burst may go again, counted from
        the start of the last round, so that its own time is not lost."""
        assert self._pace is not None
        now = time.monotonic()
        return max(self._pace.wait_seconds(now), self._pace.tolerance - (now - started), 0.0)

    async def _give_back(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await queue_store.give_back(
                connection, self.sender_id, self._fence, {key for key, _ in self._results.called}
            )
        self._commit_is_unsure = False

    async def _claim(self, connection: Connection, room: int) -> tuple[SenderRow, int, list[Go]]:
        row = await store.hold_fence(connection, self.sender_id, self._fence)
        if row is None:
            raise Lost
        self._adjust_pace(row.sender.messages_per_second)
        assert self._pace is not None
        room = min(room, self._pace.available(time.monotonic()))
        now = utc_now()
        if in_outage(row.sender, now):
            return row, 0, []
        # One message tries whether a hold still stands, whichever of its senders has one first.
        is_due = row.sender.hold_until is not None and row.sender.hold_until <= now
        if is_due:
            self._results.circuit.suspect()
        limit = 1 if is_due else room
        last_first = self._rounds % LAST_LANE_EVERY == 0
        due = await queue_store.lock_due(connection, self.sender_id, now, limit=limit, last_lane_first=last_first)
        if not due:
            return row, 0, []
        is_probe = is_due and await hold_store.take_probe(connection, self.sender_id, now, now + self._probe_lease)
        if is_due and not is_probe:
            row = replace(row, sender=replace(row.sender, hold_until=now + PROBED_ELSEWHERE))
        verdicts, categories = await self._decide_all(connection, row, due, now)
        going = await self._apply(connection, due, verdicts, categories, now)
        if is_probe and not going:
            await hold_store.give_back_probe(connection, self.sender_id)
        return row, len(due), [replace(go, token_tag=row.token_tag, is_probe=is_probe) for go in going]

    def _adjust_pace(self, per_second: int) -> None:
        if self._pace is None or per_second != self._per_second:
            self._per_second = per_second
            self._pace = Pace.start(per_second, time.monotonic())

    async def _decide_all(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> tuple[dict[Key, Verdict], dict[Key, str | None]]:
        known_of = await self._facts(connection, row, due, now)
        throttles: dict[Key, Throttle] = {}
        tier, reached = await self._tier(connection, row, due, now)
        verdicts: dict[Key, Verdict] = {}
        for one in due:
            message = one.message
            known = replace(
                known_of[message.key],
                pair_wait=timedelta(seconds=self._pairs.wait_seconds(message.phone, time.monotonic())),
                tier=replace(tier, already_reached=message.phone in reached),
            )
            verdict = decide(message, known, now)
            if isinstance(verdict, Send) and one.throttled and not message.slotted:
                slot = await self._slot(connection, one, throttles, now)
                verdict = decide(message, replace(known, slot_at=slot), now)
            if isinstance(verdict, Send):
                self._pairs.take(message.phone, time.monotonic())
                if verdict.counts_for_tier and message.phone not in reached:
                    reached.add(message.phone)
                    tier = replace(tier, used=tier.used + 1)
            verdicts[message.key] = verdict
        for (workspace_id, campaign_id), throttle in throttles.items():
            await queue_store.save_throttle(connection, workspace_id, campaign_id, throttle)
        await self._remember_reached(connection, row, due, verdicts, now)
        categories = {key: known.template.category if known.template else None for key, known in known_of.items()}
        return verdicts, categories

    async def _facts(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> dict[Key, Facts]:
        messages = [one.message for one in due]
        found = await facts.load(connection, row.sender, messages, self._settings.quality_policy)
        # A template that isn't found triggers one sync of the account, at most one a minute.
        missing = any(message.template and found[message.key].template is None for message in messages)
        synced = row.sender.templates_synced_at
        self._sync_now |= missing and (synced is None or now - synced >= SYNC_INTERVAL)
        return found

    async def _tier(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> tuple[Tier, set[str]]:
        sender = row.sender
        if sender.messaging_limit is None or not any(one.message.template for one in due):
            return Tier(), set()
        tier = await people_store.lock_tier(connection, sender.portfolio_id, sender.messaging_limit, now)
        phones = {one.message.phone for one in due}
        return tier, await people_store.reached_people(connection, sender.portfolio_id, phones, now)

    async def _slot(self, connection: Connection, one: Due, throttles: dict[Key, Throttle], now: datetime) -> datetime:
        campaign = (one.message.funded.workspace_id, one.campaign_id or "")
        if campaign not in throttles:
            throttles[campaign] = await queue_store.lock_throttle(connection, *campaign)
        slot, throttles[campaign] = next_slot(throttles[campaign], now)
        return slot

    async def _remember_reached(
        self,
        connection: Connection,
        row: SenderRow,
        due: Sequence[Due],
        verdicts: Mapping[Key, Verdict],
        now: datetime,
    ) -> None:
        phones = {
            one.message.phone
            for one in due
            if isinstance(verdict := verdicts[one.message.key], Send) and verdict.counts_for_tier
        }
        if phones and row.sender.messaging_limit is not None:
            await people_store.add_reached(connection, row.sender.portfolio_id, phones, now)

    async def _apply(
        self,
        connection: Connection,
        due: Sequence[Due],
        verdicts: Mapping[Key, Verdict],
        categories: Mapping[Key, str | None],
        now: datetime,
    ) -> list[Go]:
        """Store what was decided, in one statement a kind; returns what is now marked in flight."""
        going: list[Go] = []
        waits: list[NewWait] = []
        rejected: dict[Key, str] = {}
        recalled: dict[Key, str] = {}
        announcements: list[announce.Announcement] = []
        for one in due:
            message = one.message
            verdict = verdicts[message.key]
            if isinstance(verdict, Send):
                going.append(Go(one, message.attempts + 1, categories[message.key]))
            elif isinstance(verdict, Wait):
                held = self._held(message, verdict, now)
                waits.append(NewWait(message.key, verdict.waiting_for, verdict.until, verdict.slotted, bool(held)))
                announcements += held
            elif isinstance(verdict, Reject):
                rejected[message.key] = verdict.reason.code
                announcements.append(announce.rejected(message, verdict.reason, now, one.trace))
                self._count(verdict.reason)
            else:
                recalled[message.key] = "recalled"
                announcements.append(announce.recalled(message, verdict, now, one.trace))
        if going:
            await queue_store.mark_in_flight(connection, [go.due.message.key for go in going], self._fence)
        if waits:
            await queue_store.set_waits(connection, waits)
        for state, outcomes in (("rejected", rejected), ("recalled", recalled)):
            if outcomes:
                await queue_store.finish_waiting(connection, state, outcomes)
        if announcements:
            await add_to_outbox(connection, announcements)
        return going

    @staticmethod
    def _held(message: Message, wait: Wait, now: datetime) -> list[announce.Announcement]:
        # A hold of the sender and a pause are told once, by whoever sets them.
        if wait.waiting_for in (Waiting.HOLD, Waiting.PAUSED):
            return []
        told = announce.held(message, wait.cause, wait.waiting_for, now, wait.until)
        return [told] if told else []

    def _count(self, why: Reason) -> None:
        self._runtime.metrics.inc(Metric.REJECTED, service=self._runtime.service, reason=why.code)

    # --- calls ---

    def _start_calls(self, row: SenderRow, going: Sequence[Go], marked_at: float) -> None:
        access = None
        try:
            access = self._access(row)
        except TokenUnreadable:
            log.error("the stored token can't be decrypted", sender=self.sender_id)
        for go in going:
            self._results.called.add((go.due.message.key, go.attempt))
            task = asyncio.create_task(self._call(go, access, marked_at))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    def _access(self, row: SenderRow) -> Access:
        token = self._vault.open(row.sender.workspace_id, self.sender_id, row.token)
        return self._vault.access(token, row.app_id)

    async def _call(self, go: Go, access: Access | None, marked_at: float) -> None:
        try:
            outcome = await self._outcome(go, access, marked_at)
        except Exception as error:
            log.error("a call failed unexpectedly", sender=self.sender_id, exc_info=error)
            outcome = MaybeTaken(type(error).__name__)
        if isinstance(outcome, NotTaken) and outcome.action is Action.PACE and self._pace is not None:
            self._pace.rest(PACE_REST_SECONDS, time.monotonic())
        if outcome is None or (isinstance(outcome, NotTaken) and outcome.action is not Action.PAIR):
            self._pairs.give_back(go.due.message.phone)
        self._results.put(Ended(go, outcome, utc_now()))

    async def _outcome(self, go: Go, access: Access | None, marked_at: float) -> Outcome | None:
        """How the call ended; None where it was not made in time."""
        if access is None:
            why = reason(ReasonCode.SENDER_CREDENTIALS_REJECTED, "The stored token can't be decrypted with our keys")
            return NotTaken(why, Action.HOLD, waiting_for=Waiting.HOLD, delay=timedelta())
        body = message_body(go.due.message)
        started = time.monotonic()

        def may_start() -> bool:
            now = time.monotonic()
            return now - marked_at <= CALL_STARTS_WITHIN_SECONDS and self._lease.holds(now)

        outcome = await self._meta.send(self.sender_id, access, body, attempt=go.attempt, may_start=may_start)
        if outcome is None:
            return None
        self._observe(outcome, time.monotonic() - started)
        return in_light_of(outcome, go.due.message)

    def _observe(self, outcome: Outcome, seconds: float) -> None:
        metrics = self._runtime.metrics
        name = "taken" if isinstance(outcome, Taken) else "refused" if isinstance(outcome, NotTaken) else "unknown"
        metrics.observe(Metric.META_CALL_SECONDS, seconds, outcome=name)
        if isinstance(outcome, NotTaken):
            metrics.inc(Metric.META_ERRORS, code=code_label(outcome.reason.meta), action=outcome.action)
        elif isinstance(outcome, MaybeTaken):
            metrics.inc(Metric.META_ERRORS, code=outcome.cause, action="unknown")

    # --- results ---

    def _start_sync(self, row: SenderRow) -> None:
        synced, wanted = row.sender.templates_synced_at, row.sync_wanted_at
        due = synced is None or utc_now() - synced > SYNC_EVERY or (wanted is not None and wanted > synced)
        running = self._sync is not None and not self._sync.done()
        if (due or self._sync_now) and not running and time.monotonic() >= self._sync_not_before:
            self._sync_now = False
            self._sync_not_before = time.monotonic() + SYNC_AGAIN_SECONDS
            self._sync = asyncio.create_task(self._synchronize(row))

    async def _synchronize(self, row: SenderRow) -> None:
        now = utc_now()
        try:
            count = await sync_sender(self._runtime.pool, self._meta, row, self._access(row), now)
            log.info("sender is synced", sender=self.sender_id, templates=count)
            self._runtime.publish_soon()
            self.wake.set()
        except MetaRefused as refused:
            self._sync_failed("refused")
            log.warning("Meta refused the sync", sender=self.sender_id, code=refused.error.code)
        except MetaUnreachable as error:
            self._sync_failed("unreachable")
            log.warning("the sync failed, it is tried again", sender=self.sender_id, error=str(error))
        except TokenUnreadable:
            self._sync_failed("token")
            log.error("the stored token can't be decrypted", sender=self.sender_id)
        except TRANSIENT_ERRORS as error:
            self._sync_failed("database")
            log.warning("the sync failed, it is tried again", sender=self.sender_id, error=describe(error))

    def _sync_failed(self, cause: str) -> None:
        self._runtime.metrics.inc(Metric.SYNC_FAILURES, cause=cause)
