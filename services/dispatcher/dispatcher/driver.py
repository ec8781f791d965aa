"""One driver per sender, over any number of replicas: claims what is due, calls Meta, records how it ended.

The lock that makes a driver the only one lives on a connection of its own outside the pool (asyncpg's pool gives
session locks back). The lock can be lost without the driver knowing, so every claim also checks the fence: a number
that each take-over raises. Meta checks no fence, so a call starts only while the lease lasts, which ends before anybody
else can have the lock (ADR 20): a driver that was frozen and wakes calls nobody.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import structlog
from asyncpg import PostgresError
from sendwhy.events import Reason, reason
from sendwhy.logs import describe
from sendwhy.metrics import Metric
from sendwhy.postgres import DATA_ERRORS, TRANSIENT_ERRORS, Connection, add_to_outbox
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime

from dispatcher import announce, claims, facts, hold_store, queue_store, syncs, tier_store
from dispatcher.allowances import Allowance
from dispatcher.answers import Action, MaybeTaken, NotTaken, Outcome, Taken, code_label, in_light_of
from dispatcher.blame import ALL, Blame
from dispatcher.calls import message_body
from dispatcher.claims import Due, Line, OpenLines
from dispatcher.clock import utc_now
from dispatcher.decide import (
    SYNC_INTERVAL,
    Facts,
    Lane,
    Message,
    Reject,
    Send,
    Template,
    Verdict,
    Wait,
    Waiting,
    spares_replies,
    stands_still,
    wait_for_repair,
)
from dispatcher.lease import Lease
from dispatcher.limits import Budget, LastMinute, PairPace
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.queue_store import NewWait
from dispatcher.receipts import Accepted
from dispatcher.rests import Rests, Series, Shares
from dispatcher.results import Ended, Go, Results
from dispatcher.settings import Settings
from dispatcher.starts import AHEAD_SECONDS, Marked, Starts
from dispatcher.store import Key, SenderRow
from dispatcher.sync import sync_due
from dispatcher.tokens import Access, TokenUnreadable, TokenVault

IDLE_SECONDS = 0.5
# Where nothing waits: whatever comes is told by `Driver.wake`, or found by `Fleet.look`.
QUIET_SECONDS = 30.0
LOCK_SECONDS = 1.0
ALIVE_SECONDS = 5.0
# Of ten rounds one begins with the last lane, and one with the middle one.
LAST_LANE_EVERY = 10
_LANES_BY_ROUND = {
    0: (Lane.MARKETING, Lane.TRANSACTIONAL, Lane.CONVERSATION),
    5: (Lane.TRANSACTIONAL, Lane.CONVERSATION, Lane.MARKETING),
}
LOOK_WIDE = 500
# Who waits for a place may have been overlooked, as its row was locked or the round failed: asked anew once in a while.
TIER_LOOK_EVERY = 100
PACE_REST_SECONDS = 1.0

log = structlog.get_logger("sendwhy")


class Lost(Exception):
    """Another driver has taken over."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a round looks at: of those who are `due`, `called` wait for a place in the messaging limit."""

    due: Sequence[Due]
    called: Sequence[Due]
    lines: OpenLines


def _waits_for_tier(verdict: Verdict) -> bool:
    return isinstance(verdict, Wait) and verdict.waiting_for is Waiting.TIER


def _go(due: Due, template: Template | None) -> Go:
    attempt = due.message.attempts + 1
    if template is None:
        return Go(due, attempt, None)
    return Go(due, attempt, template.category, template_seconds=template.ttl_seconds)


class Driver:
    """Drives one sender until it loses the sender or is stopped."""

    def __init__(  # noqa: PLR0913 - wired in one place
        self,
        sender_id: str,
        runtime: Runtime,
        settings: Settings,
        meta: Meta,
        vault: TokenVault,
        budget: Budget,
        clock: Callable[[], float] = time.monotonic,
        *,
        accepted: Accepted | None = None,
        rests: Rests | None = None,
    ) -> None:
        self.sender_id = sender_id
        self.wake = asyncio.Event()
        self._runtime, self._settings, self._meta, self._vault = runtime, settings, meta, vault
        self._fence = 0
        self._lease = Lease()
        self._clock, self._budget = clock, budget
        # Longer than any call takes, so that a second one only tries after a first whose outcome stayed open.
        call_seconds = settings.meta_connect_timeout_seconds + settings.meta_read_timeout_seconds
        self._probe_lease = timedelta(seconds=call_seconds + 15)
        self._pairs = PairPace(AHEAD_SECONDS)
        self._sent = LastMinute()
        self._rests = rests or Rests()
        self._shares: Shares | None = None
        self._rounds = 0
        self._look_wide = False
        self._idle_seconds = IDLE_SECONDS
        self._is_quiet = False
        self._some_wait_for_tier = True
        self._starts = Starts(sender_id, budget, clock, self._call, self._not_started)
        self._commit_is_unsure = False
        self._opened: tuple[bytes, str | None, Access] | None = None
        self._blame = Blame()
        self._looked_at: Sequence[Due] = ()
        self._told: Sequence[announce.Announcement] = ()
        self._allowance: Allowance | None = None
        self._stopping = False
        self._results = Results(sender_id, runtime, settings, self.wake, accepted or Accepted())
        self._sync: asyncio.Task[None] | None = None
        self._sync_now = False
        self._sync_not_before = 0.0
        self._sync_failures = 0

    async def run(self, fence: int, lease: Lease) -> None:
        """`fence` is of the take-over that made this driver the sender's."""
        self._fence = self._results.fence = fence
        self._lease = lease
        log.info("driving sender", sender=self.sender_id, fence=fence)
        self._budget.join(self.sender_id)
        writer = asyncio.create_task(self._results.run())
        writer.add_done_callback(lambda _: self.wake.set())
        try:
            while not self._stopping:
                try:
                    pause = await self._round()
                except TRANSIENT_ERRORS as error:
                    log.warning("a round failed, it is tried again", sender=self.sender_id, error=describe(error))
                    self._commit_is_unsure = True
                    pause = IDLE_SECONDS
                except Lost:
                    raise
                except Exception as error:  # noqa: BLE001 - whatever it is, one message's fault must not stop the others
                    pause = await self._failed(error)
                await self._pause(pause)
                if writer.done():
                    await writer
        except Lost:
            log.info("another driver has taken over", sender=self.sender_id)
            self._starts.drop()
        finally:
            await self._finish(writer)

    def stop(self) -> None:
        """End after this round: cancelled within its commit, it would leave messages in flight that nobody sends."""
        self._stopping = True
        self.wake.set()

    def rest(self, *, is_quiet: bool) -> None:
        """Whether nothing is to be done for the sender, as the fleet has seen of all its senders at once: as long as
        that holds, the driver looks by itself only every `QUIET_SECONDS`."""
        if self._is_quiet and not is_quiet:
            self.wake.set()
        self._is_quiet = is_quiet

    def pairs(self) -> PairPace:
        """A copy of what is borrowed and paid back with each person."""
        return self._pairs.copy()

    def sent_last_minute(self) -> int:
        return self._sent.count(self._clock())

    def resting(self) -> Series | None:
        """Why nothing goes, or went until just now, where Meta refused for the sum of calls."""
        return None if self._shares is None else self._rests.standing(self._shares, self._clock())

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
        self._budget.leave(self.sender_id)
        await self._starts.ended(8)
        self._starts.drop()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._results.stored(), 5)
        if self._commit_is_unsure:
            # No round comes that would give back what the last one marked: its fate would be unknown without need.
            with suppress(*TRANSIENT_ERRORS):
                await self._give_back()
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    # --- one round: look at what is due, decide, mark, call ---

    async def _round(self) -> float:
        """Returns the seconds until the next look; `IDLE_SECONDS` when nothing is due, more where nothing waits."""
        if not self._lease.holds(self._clock()) or self._results.circuit.is_open:
            # In a moment it is known whether the sender still is ours, or the hold is stored.
            return IDLE_SECONDS
        if self._commit_is_unsure:
            await self._give_back()
        if self._is_resting(self._clock()):
            return IDLE_SECONDS
        room = self._starts.reserve()
        if room <= 0:
            return min(IDLE_SECONDS / 2, self._starts.worth_a_claim_in())
        self._rounds += 1
        self._looked_at, self._allowance, self._told = (), None, ()
        marked: list[Marked] = []
        try:
            async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
                # Before the mark, not behind its commit: a process may freeze in between.
                marked_at = self._clock()
                row, looked_at, going = await self._claim(connection, room)
            sender = row.sender
            self._starts.set_limit(sender.messages_per_second)
            self._shares = Shares.of(sender.workspace_id, sender.sender_id, sender.waba_id, row.app_id, row.token_tag)
            marked = self._marked(row, going, marked_at)
        except Exception:
            self._undo()
            raise
        finally:
            self._starts.claimed(marked)
        self._start_sync(row)
        self._publish()
        is_all = looked_at < min(room, self._blame.most)
        self._blame.passed()
        if self._is_quiet and not looked_at and self._idle_seconds == IDLE_SECONDS:
            return QUIET_SECONDS
        return self._idle_seconds if is_all else 0.0

    def _publish(self) -> None:
        if self._told:
            self._runtime.publish_committed(self._told)

    def _undo(self) -> None:
        if self._allowance is not None:
            self._allowance.undo()

    async def _failed(self, error: Exception) -> float:
        """Our own code failed, or the database refuses what a message is made of; whatever else the database says is
        about no single one. Returns the seconds until the next round."""
        self._commit_is_unsure = True
        log.error("a round failed unexpectedly, it is tried again", sender=self.sender_id, exc_info=error)
        is_of_a_message = isinstance(error, DATA_ERRORS) or not isinstance(error, PostgresError)
        keys = {one.message.key for one in self._looked_at} if is_of_a_message else set()
        is_known = any(one.message.waiting_for is Waiting.REPAIR for one in self._looked_at)
        guilty = self._blame.failed(keys, is_known=is_known)
        if guilty is not None:
            try:
                await self._put_aside(guilty, error)
            except TRANSIENT_ERRORS as passing:
                log.warning("a message is put aside later", sender=self.sender_id, error=describe(passing))
        return self._blame.pause(keys)

    async def _put_aside(self, key: Key, error: Exception) -> None:
        """It waits, visibly, for a version that can handle it. Only what waits, and so was surely not called: what may
        have been is in flight, and no round looks at that."""
        now = utc_now()
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            if await claims.hold_fence(connection, self.sender_id, self._fence) is None:
                raise Lost
            for message in await queue_store.lock_waiting(connection, [key]):
                wait = wait_for_repair(message, now)
                held = self._held(message, wait, now)
                await queue_store.set_waits(connection, [NewWait(key, wait.waiting_for, wait.until, bool(held))])
                await add_to_outbox(connection, held)
        log.error("a message was put aside", sender=self.sender_id, message_id=key[1], error=describe(error))

    async def _give_back(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await queue_store.give_back(connection, self.sender_id, self._fence, self._results.called)
        # Who was called out of the wait for a place waits for it again.
        self._some_wait_for_tier = True
        self._commit_is_unsure = False

    async def _claim(self, connection: Connection, room: int) -> tuple[SenderRow, int, list[Go]]:
        """The sender, how many messages were looked at, and what of them is now marked in flight."""
        held = await claims.hold_fence(connection, self.sender_id, self._fence)
        if held is None:
            raise Lost
        now = utc_now()
        row, known_lines = self._with_rest(held[0], now), held[1]
        self._idle_seconds = IDLE_SECONDS
        # One message tries whether a hold still stands, whichever of its senders has one first.
        is_due = row.sender.hold_until is not None and row.sender.hold_until <= now
        if stands_still(row.sender, now) or (is_due and self._starts.is_busy):
            return row, 0, []
        if is_due:
            self._results.circuit.suspect()
        room = 1 if is_due else min(room, self._blame.most)
        look = await self._look(connection, row, known_lines, room, now)
        self._looked_at = look.due
        if not look.due:
            self._look_wide = False
            await self._look_ahead(connection, now, look.lines)
            return row, 0, []
        is_probe = is_due and await hold_store.take_probe(connection, self.sender_id, now, now + self._probe_lease)
        if is_due and not is_probe:
            return row, 0, []
        going = await self._judge(connection, row, look, room, now)
        if is_probe and not going:
            await hold_store.give_back_probe(connection, self.sender_id)
        return row, len(look.due), [replace(go, is_probe=True) for go in going] if is_probe else going

    async def _look(
        self, connection: Connection, row: SenderRow, known_lines: Sequence[Line], room: int, now: datetime
    ) -> Look:
        # Where most only learn what they wait for, many are looked at; of those no more go than there is room for.
        limit = min(max(room, LOOK_WIDE) if self._look_wide else room, self._blame.most)
        lanes = _LANES_BY_ROUND.get(self._rounds % LAST_LANE_EVERY, claims.LANES)
        lines = await claims.open_lines(connection, row.sender.workspace_id, known_lines, now, limit)
        only_replies = spares_replies(row.sender, now)
        called = [] if only_replies else await self._called_by_tier(connection, row, room, now)
        known = {one.message.key for one in called}
        left = limit if self._blame.most == ALL else limit - len(called)
        found = await claims.lock_due(
            connection, self.sender_id, now, limit=left, lanes=None if only_replies else lanes, lines=lines
        )
        due = [*called, *(one for one in found if one.message.key not in known)]
        due.sort(key=lambda one: lanes.index(one.message.lane))
        return Look(due, called, lines)

    async def _judge(self, connection: Connection, row: SenderRow, look: Look, room: int, now: datetime) -> list[Go]:
        """Decide on what is looked at, and store that; returns what is now marked in flight."""
        due = look.due
        known_of = await self._facts(connection, row, due, now)
        allowance = self._allowance = Allowance(room, self._pairs, dict(look.lines.throttles), self._clock)
        await allowance.load_tier(connection, row.sender, due, now)
        judged = {one.message.key: allowance.judge(one, known_of[one.message.key], now) for one in due}
        verdicts = {key: verdict for key, verdict in judged.items() if verdict is not None}
        reached = await allowance.save(connection, row.sender, due, verdicts, now)
        templates = {key: known.template for key, known in known_of.items()}
        going = await self._apply(connection, due, verdicts, templates, now)
        self._look_wide = len(going) < room <= len(due)
        # Who was called and found no room, behind a fuller lane, is called again.
        self._some_wait_for_tier |= any(one.message.key not in verdicts for one in look.called) or any(
            map(_waits_for_tier, verdicts.values())
        )
        return [replace(go, token_tag=row.token_tag, reached_at=reached.get(go.due.message.key)) for go in going]

    def _with_rest(self, row: SenderRow, now: datetime) -> SenderRow:
        rest = self.resting()
        return row if rest is None else replace(row, sender=replace(row.sender, rest=rest.told(self._clock(), now)))

    async def _look_ahead(self, connection: Connection, now: datetime, lines: OpenLines) -> None:
        """What is to be sent at a moment is looked at at that moment."""
        at = await claims.next_due(connection, self.sender_id, now, lines)
        if at is not None and at - now < timedelta(seconds=IDLE_SECONDS):
            self._idle_seconds = max(0.001, (at - now).total_seconds())

    async def _called_by_tier(self, connection: Connection, row: SenderRow, room: int, now: datetime) -> list[Due]:
        """Who waits for a place in the messaging limit, as far as there are places."""
        if not self._some_wait_for_tier and self._rounds % TIER_LOOK_EVERY:
            return []
        sender = row.sender
        tier = await tier_store.read_tier(connection, sender.tier_key, sender.messaging_limit, now)
        places = min(room, tier.places)
        called = await claims.lock_tier_waits(connection, self.sender_id, places) if places else []
        self._some_wait_for_tier = len(called) == places
        if not self._some_wait_for_tier:
            await tier_store.forget_promises(connection, sender.tier_key)
        return called

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

    async def _apply(
        self,
        connection: Connection,
        due: Sequence[Due],
        verdicts: Mapping[Key, Verdict],
        templates: Mapping[Key, Template | None],
        now: datetime,
    ) -> list[Go]:
        """Store what was decided, in one statement a kind; returns what is now marked in flight."""
        going: list[Go] = []
        waits: list[NewWait] = []
        aside: list[Key] = []
        rejected: dict[Key, str] = {}
        recalled: dict[Key, str] = {}
        announcements: list[announce.Announcement] = []
        for one in due:
            message = one.message
            verdict = verdicts.get(message.key)
            if verdict is None:
                continue
            if isinstance(verdict, Send):
                going.append(_go(one, templates[message.key]))
            elif isinstance(verdict, Wait):
                announcements += self._let_wait(message, verdict, now, waits, aside)
            elif isinstance(verdict, Reject):
                rejected[message.key] = verdict.reason.code
                announcements.append(announce.rejected(message, verdict.reason, now))
                self._count(verdict.reason)
            else:
                recalled[message.key] = "recalled"
                announcements.append(announce.recalled(message, verdict, now))
        if going:
            await queue_store.mark_in_flight(connection, [go.due.message.key for go in going], self._fence)
        await self._store_waits(connection, waits, aside)
        for state, outcomes in (("rejected", rejected), ("recalled", recalled)):
            if outcomes:
                await queue_store.finish_waiting(connection, state, outcomes)
        if announcements:
            await add_to_outbox(connection, announcements)
        self._told = announcements
        return going

    def _let_wait(
        self, message: Message, verdict: Wait, now: datetime, waits: list[NewWait], aside: list[Key]
    ) -> list[announce.Announcement]:
        """Note in `waits` or, for what stands in its campaign's line, `aside` what a message waits for."""
        if verdict.waiting_for in (Waiting.PAUSED, Waiting.THROTTLE):
            aside.append(message.key)
            return []
        held = self._held(message, verdict, now)
        waits.append(NewWait(message.key, verdict.waiting_for, verdict.until, bool(held)))
        return held

    @staticmethod
    async def _store_waits(connection: Connection, waits: Sequence[NewWait], aside: Sequence[Key]) -> None:
        if aside:
            await claims.line_up(connection, aside)
        if waits:
            await queue_store.set_waits(connection, waits)

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

    def _marked(self, row: SenderRow, going: Sequence[Go], marked_at: float) -> list[Marked]:
        if not going:
            return []
        access = None
        try:
            access = self._access(row)
        except TokenUnreadable:
            log.error("the stored token can't be decrypted", sender=self.sender_id)
        self._results.called.update((go.due.message.key, go.attempt) for go in going)
        return [Marked(go, access, marked_at) for go in going]

    def _access(self, row: SenderRow) -> Access:
        # Decrypted once, and anew when another token or app is set.
        if self._opened is None or self._opened[:2] != (row.token, row.app_id):
            token = self._vault.open(row.sender.workspace_id, self.sender_id, row.token)
            self._opened = (row.token, row.app_id, self._vault.access(token, row.app_id))
        return self._opened[2]

    async def _call(self, marked: Marked) -> None:
        metrics = self._runtime.metrics
        metrics.inc(Metric.META_CALLS_IN_FLIGHT)
        self._sent.add(1, self._clock())
        try:
            outcome = await self._outcome(marked)
        except Exception as error:
            log.error("a call failed unexpectedly", sender=self.sender_id, exc_info=error)
            outcome = MaybeTaken(type(error).__name__)
        finally:
            metrics.inc(Metric.META_CALLS_IN_FLIGHT, -1)
        self._ended(marked, outcome)
        self._rest(outcome)
        is_held = isinstance(outcome, NotTaken) and outcome.action is Action.HOLD
        if is_held or self._results.circuit.is_open:
            # The others would fare no better; they wait again as soon as the hold is stored.
            self._starts.drop()

    def _rest(self, outcome: Outcome | None) -> None:
        now, shares = self._clock(), self._shares
        if isinstance(outcome, NotTaken) and outcome.action is Action.PACE:
            self._starts.rest(PACE_REST_SECONDS)
            if shares is not None:
                self._rests.refused(shares, outcome.reason.meta, outcome.asked.total_seconds(), now)
        elif isinstance(outcome, Taken) and shares is not None:
            self._rests.taken(shares, now)

    def _is_resting(self, now: float) -> bool:
        return self._shares is not None and self._rests.wait_seconds(self._shares, now) > 0

    def _not_started(self, marked: Marked) -> None:
        self._ended(marked, None)

    def _ended(self, marked: Marked, outcome: Outcome | None) -> None:
        if outcome is None or (isinstance(outcome, NotTaken) and outcome.action is not Action.PAIR):
            self._pairs.give_back(marked.go.due.message.address)
        self._results.put(Ended(marked.go, outcome, utc_now()))

    async def _outcome(self, marked: Marked) -> Outcome | None:
        """How the call ended; None where it was not made in time."""
        if marked.access is None:
            why = reason(ReasonCode.SENDER_CREDENTIALS_REJECTED, "The stored token can't be decrypted with our keys")
            return NotTaken(why, Action.HOLD, waiting_for=Waiting.HOLD, delay=timedelta())
        go = marked.go
        body = message_body(go.due.message)
        started, at = self._clock(), utc_now()

        def may_start() -> bool:
            now = self._clock()
            # The circuit may have opened, a rest begun, or its time run out, while this one was being marked.
            if self._is_resting(now) or self._results.circuit.is_open or utc_now() >= go.due.message.funded.expires_at:
                return False
            return marked.may_start(now) and self._lease.holds(now)

        outcome = await self._meta.send(self.sender_id, marked.access, body, attempt=go.attempt, may_start=may_start)
        if outcome is None:
            return None
        self._observe(outcome, self._clock() - started)
        if go.attempt == 1:
            self._runtime.metrics.observe(
                Metric.REQUEST_TO_META_SECONDS, go.due.message.waited(at), lane=go.due.message.lane.name.lower()
            )
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
        is_running = self._sync is not None and not self._sync.done()
        is_wanted = self._sync_now or syncs.is_due(row.read, utc_now())
        if not is_wanted or is_running or self._clock() < self._sync_not_before:
            return
        is_template_missing, self._sync_now = self._sync_now, False
        self._sync_not_before = self._clock() + syncs.AGAIN.total_seconds()
        self._sync = asyncio.create_task(self._synchronize(is_template_missing=is_template_missing))

    async def _synchronize(self, *, is_template_missing: bool) -> None:
        now = utc_now()
        try:
            ended = await sync_due(
                self._runtime.pool,
                self._meta,
                self._vault,
                self.sender_id,
                now,
                is_template_missing=is_template_missing,
            )
            self._sync_failures = 0
            if ended.again_at is not None:
                wait = (ended.again_at - now).total_seconds()
                self._sync_not_before = max(self._sync_not_before, self._clock() + wait)
            else:
                log.info("sender is synced", sender=self.sender_id, templates=ended.templates)
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
        self._sync_not_before = self._clock() + syncs.again_after(self._sync_failures).total_seconds()
        self._sync_failures += 1
