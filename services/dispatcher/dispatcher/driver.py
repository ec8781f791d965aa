"""One driver per sender, over any number of replicas: claims what is due, calls Meta, records how it ended.

The lock that makes a driver the only one lives on a connection of its own outside the pool (asyncpg's pool gives
session locks back). The lock can be lost without the driver knowing, so every claim also checks the fence: a number
that each take-over raises.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import structlog
from sendwhy.events import ContactUpdated, MetaError, Reason, reason
from sendwhy.logs import describe
from sendwhy.metrics import Metric
from sendwhy.postgres import TRANSIENT_ERRORS, Connection, add_to_outbox
from sendwhy.privacy import is_alias, redacted, spellings
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime
from sendwhy.topics import TOPICS, Topic

from dispatcher import announce, store
from dispatcher.answers import Action, MaybeTaken, NotTaken, Outcome, Taken
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
    names_of,
    withdraws,
)
from dispatcher.erasures import blur
from dispatcher.limits import Pace, PairPace, Throttle, next_slot
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.settings import Settings
from dispatcher.store import Due, Key, NewWait, Result, SenderRow
from dispatcher.sync import sync_sender
from dispatcher.tokens import TokenUnreadable, TokenVault

CALL_STARTS_WITHIN_SECONDS = 5.0
LOOK_AT_MOST = 100
IDLE_SECONDS = 0.5
LOCK_SECONDS = 1.0
ALIVE_SECONDS = 5.0
RESULTS_AT_MOST = 200
RESULTS_WITHIN_SECONDS = 0.01
SYNC_EVERY = timedelta(hours=1)
SYNC_AGAIN_SECONDS = 5.0
TRIES_KEPT = 20
HOLD_FIRST = timedelta(minutes=5)
HOLD_MAX = timedelta(hours=1)
LAST_LANE_EVERY = 10
PACE_REST_SECONDS = 1.0
SYNC_FAILURES: tuple[type[BaseException], ...] = (MetaUnreachable, TokenUnreadable, *TRANSIENT_ERRORS)

log = structlog.get_logger("sendwhy")
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    return datetime.now(UTC)


class Lost(Exception):
    """Another driver has taken over."""


@dataclass(frozen=True, slots=True)
class Go:
    """A message that was marked in flight, with the try's number and the category of its template."""

    due: Due
    attempt: int
    category: str | None


@dataclass(frozen=True, slots=True)
class Ended:
    """How one try ended; `made` is False where the call was not started in time."""

    go: Go
    outcome: Outcome | None
    at: datetime


class Driver:
    """Drives one sender until it loses the sender or is stopped."""

    def __init__(self, sender_id: str, runtime: Runtime, settings: Settings, meta: Meta, vault: TokenVault) -> None:
        self.sender_id = sender_id
        self.wake = asyncio.Event()
        self._runtime, self._settings, self._meta, self._vault = runtime, settings, meta, vault
        self._fence = 0
        self._pace: Pace | None = None
        self._per_second = 0
        self._pairs = PairPace()
        self._rounds = 0
        self._calls: set[asyncio.Task[None]] = set()
        # Tries (message, number) whose call was started and whose result is not stored yet.
        self._called: set[tuple[Key, int]] = set()
        self._commit_is_unsure = False
        self._stopping = False
        self._ended: asyncio.Queue[Ended] = asyncio.Queue()
        self._sync: asyncio.Task[None] | None = None
        self._sync_now = False
        self._sync_not_before = 0.0

    async def run(self) -> None:
        writer = asyncio.create_task(self._write_results())
        try:
            await self._take_over()
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

    async def _take_over(self) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            fence = await store.take_over(connection, self.sender_id)
        if fence is None:
            raise Lost
        self._fence = fence
        log.info("driving sender", sender=self.sender_id, fence=fence)

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
            await asyncio.wait_for(self._ended.join(), 5)
        writer.cancel()
        await asyncio.gather(writer, return_exceptions=True)

    # --- one round: look at what is due, decide, mark, call ---

    async def _round(self) -> float:
        """Returns the seconds until the next look; `IDLE_SECONDS` when nothing is due."""
        if self._commit_is_unsure:
            await self._give_back()
        now_seconds = time.monotonic()
        pace = self._pace
        free = self._settings.calls_in_flight_max - len(self._calls)
        room = LOOK_AT_MOST if pace is None else min(pace.available(now_seconds), free, LOOK_AT_MOST)
        if room <= 0:
            return max(0.005, pace.wait_seconds(now_seconds) if pace and free > 0 else 0.02)
        self._rounds += 1
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            row, looked_at, going = await self._claim(connection, room)
        marked_at = time.monotonic()
        self._start_sync(row)
        if looked_at:
            self._runtime.publish_soon()
        if going:
            assert self._pace is not None
            self._pace.take(len(going), marked_at)
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
            await store.give_back(connection, self.sender_id, self._fence, {key for key, _ in self._called})
        self._commit_is_unsure = False

    async def _claim(self, connection: Connection, room: int) -> tuple[SenderRow, int, list[Go]]:
        row = await store.hold_fence(connection, self.sender_id, self._fence)
        if row is None:
            raise Lost
        self._adjust_pace(row.sender.messages_per_second)
        assert self._pace is not None
        room = min(room, self._pace.available(time.monotonic()))
        # A sender that was held is tried with one message first: it tells whether the others may follow.
        limit = 1 if row.hold_strikes and row.sender.hold_until and row.sender.hold_until <= utc_now() else room
        now = utc_now()
        last_first = self._rounds % LAST_LANE_EVERY == 0
        due = await store.lock_due(connection, self.sender_id, now, limit=limit, last_lane_first=last_first)
        if not due:
            return row, 0, []
        verdicts, categories = await self._decide_all(connection, row, due, now)
        going = await self._apply(connection, due, verdicts, categories, now)
        return row, len(due), going

    def _adjust_pace(self, per_second: int) -> None:
        if self._pace is None or per_second != self._per_second:
            self._per_second = per_second
            self._pace = Pace.start(per_second, time.monotonic())

    async def _decide_all(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> tuple[dict[Key, Verdict], dict[Key, str | None]]:
        facts = await self._facts(connection, row, due, now)
        throttles: dict[Key, Throttle] = {}
        tier, reached = await self._tier(connection, row, due, now)
        verdicts: dict[Key, Verdict] = {}
        for one in due:
            message = one.message
            known = replace(
                facts[message.key],
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
            await store.save_throttle(connection, workspace_id, campaign_id, throttle)
        await self._remember_reached(connection, row, due, verdicts, now)
        categories = {key: known.template.category if known.template else None for key, known in facts.items()}
        return verdicts, categories

    async def _facts(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> dict[Key, Facts]:
        sender = row.sender
        messages = [one.message for one in due]
        names = {message.template.name for message in messages if message.template}
        templates = await store.templates_named(connection, sender.waba_id, names) if names else {}
        missing = any(
            (message.template.name, message.template.language.code) not in templates
            for message in messages
            if message.template
        )
        known_templates = await store.template_names(connection, sender.waba_id) if missing else []
        # A template that isn't found triggers one sync of the account, at most one a minute.
        synced = sender.templates_synced_at
        self._sync_now |= missing and (synced is None or now - synced >= SYNC_INTERVAL)
        phones = {message.phone for message in messages}
        windows = await store.windows(connection, sender.sender_id, phones)
        free_form = any(message.template is None for message in messages)
        read_until = None
        if free_form:
            read_until = await store.inbound_read_until(connection, TOPICS[Topic.MESSAGE_RECEIVED].partitions)
        capped = await store.capped(connection, sender.workspace_id, phones)
        contacts = await self._contacts(connection, sender.workspace_id, messages)
        return {
            message.key: Facts(
                sender=sender,
                template=_template_of(message, templates),
                known_templates=known_templates,
                window_opened_at=windows.get(message.phone),
                inbound_read_until=read_until,
                contact=contacts.get(message.key),
                capped_until=capped.get(message.phone),
                quality_policy=self._settings.quality_policy,
            )
            for message in messages
        }

    async def _contacts(
        self, connection: Connection, workspace_id: str, messages: Sequence[Message]
    ) -> dict[Key, ContactUpdated]:
        """By message, the state that its gate asks: the one that takes it out of the person it goes to, the contact it
        names, and who has opted out at its number, where that is not the person's own."""
        asked = {(message.funded.workspace_id, name) for message in messages for name in names_of(message)}
        known = await store.contacts(connection, asked) if asked else {}
        phones = {message.key: [f"+{digits}" for digits in spellings(message.phone)] for message in messages}
        stopped = await store.stopped_at(connection, workspace_id, {one for each in phones.values() for one in each})
        found: dict[Key, ContactUpdated] = {}
        for message in messages:
            named = [known.get((message.funded.workspace_id, name)) for name in names_of(message)]
            own = [one for one in named if one is not None]
            # Whose number it is shares their words with all records of it: their own state is the newest.
            has_it = any(one.phone in phones[message.key] for one in own)
            there = [] if has_it else [stopped[phone] for phone in phones[message.key] if phone in stopped]
            asks = [one for one in (*own, *there) if withdraws(one, message)] or own
            if asks:
                found[message.key] = asks[0]
        return found

    async def _tier(
        self, connection: Connection, row: SenderRow, due: Sequence[Due], now: datetime
    ) -> tuple[Tier, set[str]]:
        sender = row.sender
        if sender.messaging_limit is None or not any(one.message.template for one in due):
            return Tier(), set()
        tier = await store.lock_tier(connection, sender.portfolio_id, sender.messaging_limit, now)
        phones = {one.message.phone for one in due}
        return tier, await store.reached_people(connection, sender.portfolio_id, phones, now)

    async def _slot(self, connection: Connection, one: Due, throttles: dict[Key, Throttle], now: datetime) -> datetime:
        campaign = (one.message.funded.workspace_id, one.campaign_id or "")
        if campaign not in throttles:
            throttles[campaign] = await store.lock_throttle(connection, *campaign)
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
            await store.add_reached(connection, row.sender.portfolio_id, phones, now)

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
            await store.mark_in_flight(connection, [go.due.message.key for go in going], self._fence)
        if waits:
            await store.set_waits(connection, waits)
        for state, outcomes in (("rejected", rejected), ("recalled", recalled)):
            if outcomes:
                await store.finish_waiting(connection, state, outcomes)
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
        try:
            token = self._vault.open(row.sender.workspace_id, self.sender_id, row.token)
        except TokenUnreadable:
            token = None
            log.error("the stored token can't be decrypted", sender=self.sender_id)
        for go in going:
            self._called.add((go.due.message.key, go.attempt))
            task = asyncio.create_task(self._call(go, token, marked_at))
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)

    async def _call(self, go: Go, token: str | None, marked_at: float) -> None:
        try:
            outcome = await self._outcome(go, token, marked_at)
        except Exception as error:
            log.error("a call failed unexpectedly", sender=self.sender_id, exc_info=error)
            outcome = MaybeTaken(type(error).__name__)
        if isinstance(outcome, NotTaken) and outcome.action is Action.PACE and self._pace is not None:
            self._pace.rest(PACE_REST_SECONDS, time.monotonic())
        if outcome is None or (isinstance(outcome, NotTaken) and outcome.action is not Action.PAIR):
            self._pairs.give_back(go.due.message.phone)
        self._ended.put_nowait(Ended(go, outcome, utc_now()))

    async def _outcome(self, go: Go, token: str | None, marked_at: float) -> Outcome | None:
        """How the call ended; None where it was not made in time."""
        if token is None:
            why = reason(ReasonCode.SENDER_CREDENTIALS_REJECTED, "The stored token can't be decrypted with our keys")
            return NotTaken(why, Action.HOLD, waiting_for=Waiting.HOLD, delay=timedelta())
        body = message_body(go.due.message)
        started = time.monotonic()
        if started - marked_at > CALL_STARTS_WITHIN_SECONDS:
            return None
        outcome = await self._meta.send(self.sender_id, token, body, attempt=go.attempt)
        self._observe(outcome, time.monotonic() - started)
        return outcome

    def _observe(self, outcome: Outcome, seconds: float) -> None:
        metrics = self._runtime.metrics
        name = "taken" if isinstance(outcome, Taken) else "refused" if isinstance(outcome, NotTaken) else "unknown"
        metrics.observe(Metric.META_CALL_SECONDS, seconds, outcome=name)
        if isinstance(outcome, NotTaken):
            code = outcome.reason.meta.code if outcome.reason.meta else None
            known = code is not None and outcome.reason.code is not ReasonCode.META_ERROR
            metrics.inc(Metric.META_ERRORS, code=str(code) if known else "other", action=outcome.action)
        elif isinstance(outcome, MaybeTaken):
            metrics.inc(Metric.META_ERRORS, code=outcome.cause, action="unknown")

    # --- results ---

    async def _write_results(self) -> None:
        while True:
            batch = [await self._ended.get()]
            await asyncio.sleep(RESULTS_WITHIN_SECONDS)
            while len(batch) < RESULTS_AT_MOST and not self._ended.empty():
                batch.append(self._ended.get_nowait())
            pause = 0.1
            while True:
                try:
                    await self._store_results(batch)
                    break
                except TRANSIENT_ERRORS as error:
                    log.warning("results are stored again", count=len(batch), error=describe(error))
                    await asyncio.sleep(pause)
                    pause = min(5.0, pause * 2)
            for _ in batch:
                self._ended.task_done()

    async def _store_results(self, batch: Sequence[Ended]) -> None:
        results = {ended.go.due.message.key: self._result(ended) for ended in batch}
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            holding = await self._hold_or_clear(connection, batch)
            changed = await store.record_results(connection, results.values())
            announcements = list(holding)
            for ended in batch:
                key = ended.go.due.message.key
                contact_id = changed.get(key)
                if contact_id is not None and is_alias(contact_id):
                    # Erased while the call was out: what we remember of the message names its person.
                    tried = replace(ended.go.due.message, tries=tuple(results[key].tries))
                    await blur(connection, key[0], contact_id, [tried])
                    announcements += self._announcements(_without_person(ended, contact_id))
                elif key in changed:
                    announcements += self._announcements(ended)
            if announcements:
                await add_to_outbox(connection, announcements)
        self._called -= {(ended.go.due.message.key, ended.go.attempt) for ended in batch}
        for ended in batch:
            if isinstance(ended.outcome, NotTaken) and ended.outcome.waiting_for is None:
                self._count(ended.outcome.reason)
        self._runtime.publish_soon()

    def _result(self, ended: Ended) -> Result:
        message, outcome = ended.go.due.message, ended.outcome
        tries = [*message.tries, _try(ended)][-TRIES_KEPT:]

        def result(state: str, waiting_for: Waiting = Waiting.TURN, **rest: Any) -> Result:
            blank: dict[str, Any] = {"not_before": None, "wamid": None, "outcome": None}
            return Result(message.key, ended.go.attempt, state, waiting_for, tries=tries, **(blank | rest))

        if outcome is None:
            return result("waiting", message.waiting_for, not_before=ended.at)
        if isinstance(outcome, Taken):
            return result("accepted", wamid=outcome.wamid, outcome="accepted")
        if isinstance(outcome, MaybeTaken):
            return result("unknown")
        if outcome.waiting_for is None:
            return result("rejected", outcome=outcome.reason.code)
        delay = _hold_delay(0) if outcome.holds_sender else outcome.delay or timedelta()
        told = bool(_held_by_answer(ended))
        return result("waiting", outcome.waiting_for, not_before=ended.at + delay, told=told)

    def _announcements(self, ended: Ended) -> list[announce.Announcement]:
        message, outcome, trace = ended.go.due.message, ended.outcome, ended.go.due.trace
        if isinstance(outcome, Taken):
            ttl = timedelta(seconds=self._settings.receipt_ttl_seconds)
            told = announce.accepted(
                message, outcome.wamid, at=ended.at, now=ended.at, category=ended.go.category, ttl=ttl, trace=trace
            )
            return [told]
        if isinstance(outcome, NotTaken) and outcome.waiting_for is None:
            return [announce.rejected(message, outcome.reason, ended.at, trace)]
        return _held_by_answer(ended)

    async def _hold_or_clear(self, connection: Connection, batch: Sequence[Ended]) -> list[announce.Announcement]:
        refusals = [e for e in batch if isinstance(e.outcome, NotTaken) and e.outcome.holds_sender]
        taken = any(isinstance(ended.outcome, Taken) for ended in batch)
        if not refusals and not taken:
            return []
        now = utc_now()
        if refusals:
            known = (await store.senders(connection, [self.sender_id])).get(self.sender_id)
            outcome = refusals[0].outcome
            assert isinstance(outcome, NotTaken)
            until = now + _hold_delay(known.hold_strikes if known else 0)
            changed = await store.set_hold(connection, self.sender_id, outcome.reason, now, until)
            if changed:
                log.warning("sender is held", sender=self.sender_id, cause=outcome.reason.code)
            return [
                *announce.senders_updated(changed, now),
                *(announce.sender_held(row, now) for row in changed),
            ]
        changed = await store.clear_hold(connection, self.sender_id) if await self._was_held(connection) else []
        if changed:
            await store.wake_waiting(connection, [Waiting.HOLD], sender_id=self.sender_id)
            self.wake.set()
        return announce.senders_updated(changed, now)

    async def _was_held(self, connection: Connection) -> bool:
        known = (await store.senders(connection, [self.sender_id])).get(self.sender_id)
        # A hold without an end is ended by whoever repairs it, not by a call that was out when it came.
        until = known.sender.hold_until if known else None
        return known is not None and known.hold_strikes > 0 and until is not None and until <= utc_now()

    # --- sync ---

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
            token = self._vault.open(row.sender.workspace_id, self.sender_id, row.token)
            count = await sync_sender(self._runtime.pool, self._meta, row, token, now)
            log.info("sender is synced", sender=self.sender_id, templates=count)
            self._runtime.publish_soon()
            self.wake.set()
        except MetaRefused as refused:
            log.warning("Meta refused the sync", sender=self.sender_id, code=refused.error.code)
        except SYNC_FAILURES as error:
            log.warning("the sync failed, it is tried again", sender=self.sender_id, error=describe(error))


def _template_of(message: Message, templates: Mapping[tuple[str, str], store.TemplateRow]) -> Any:
    wanted = message.template
    row = templates.get((wanted.name, wanted.language.code)) if wanted else None
    return row.template if row else None


def _hold_delay(strikes: int) -> timedelta:
    """How long until a held sender is probed with one message: 5 min, then twice as long each time, 1 h at most."""
    return min(HOLD_MAX, HOLD_FIRST * (1 << min(strikes, 8)))


def _held_by_answer(ended: Ended) -> list[announce.Announcement]:
    outcome = ended.outcome
    if not isinstance(outcome, NotTaken) or outcome.holds_sender or outcome.waiting_for is None:
        return []
    until = ended.at + (outcome.delay or timedelta())
    held = announce.held(ended.go.due.message, outcome.reason.code, outcome.waiting_for, ended.at, until)
    return [held] if held else []


def _without_person(ended: Ended, alias: str) -> Ended:
    """The try of an erased person's message; Meta's words, which may quote them, are left out."""
    due, outcome = ended.go.due, ended.outcome
    message = replace(due.message, funded=redacted(due.message.funded, alias))
    if isinstance(outcome, NotTaken):
        meta = outcome.reason.meta and MetaError(
            code=outcome.reason.meta.code, http_status=outcome.reason.meta.http_status
        )
        why = reason(outcome.reason.code, "Meta refused the message, whose person was erased meanwhile", meta=meta)
        outcome = replace(outcome, reason=why)
    return replace(ended, go=replace(ended.go, due=replace(due, message=message)), outcome=outcome)


def _try(ended: Ended) -> dict[str, Any]:
    """One try as evidence: when, and what was answered."""
    outcome = ended.outcome
    told: dict[str, Any] = {"at": ended.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    if outcome is None:
        return told | {"result": "not started in time"}
    if isinstance(outcome, Taken):
        return told | {"result": "taken"}
    if isinstance(outcome, MaybeTaken):
        return told | {"result": "unknown", "cause": outcome.cause, "http_status": outcome.http_status}
    meta = outcome.reason.meta
    return told | {
        "result": outcome.action.value,
        "code": meta.code if meta else None,
        "http_status": meta.http_status if meta else None,
        "detail": outcome.reason.detail,
    }
