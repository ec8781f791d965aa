"""How tries ended: stored in one transaction with what is told of it, in batches, in the order in which they ended."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import structlog
from sendwhy.events import MetaError, reason
from sendwhy.kafka import busy_rest
from sendwhy.logs import describe
from sendwhy.metrics import Metric
from sendwhy.postgres import TRANSIENT_ERRORS, Connection, add_to_outbox
from sendwhy.privacy import is_alias, redacted
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime
from sendwhy.values import value_class

from dispatcher import announce, hold_store, holding, people_store, queue_store, store, tier_store
from dispatcher.answers import HoldScope, MaybeTaken, NotTaken, Outcome, Taken, is_answered, outage
from dispatcher.claims import Due
from dispatcher.clock import utc_now
from dispatcher.decide import Waiting, receipt_deadline, without_another_try
from dispatcher.erasures import CAP, blur
from dispatcher.explaining import explained
from dispatcher.holds import ANSWER, SILENCE, Refusal
from dispatcher.limits import Circuit
from dispatcher.queue_store import Result
from dispatcher.receipts import Accepted
from dispatcher.settings import Settings
from dispatcher.store import Key

RESULTS_AT_MOST = 400
RESULTS_WITHIN_SECONDS = 0.01
# A busy sender's results are stored in fewer transactions; the longer one takes, the more of them meet in the next.
BUSY_RESULTS, BUSY_WITHIN_SECONDS, BUSY_AT_MOST_SECONDS = 5, 0.04, 0.2
TRIES_KEPT = 20

log = structlog.get_logger("sendwhy")


@value_class
class Go:
    """A message that was marked in flight, with the try's number, the category of its template, which token it goes
    with, and whether it is to try if a hold still stands. `reached_at`: by which moment the call counts for the
    messaging limit, if it does. `template_seconds`: the time to live that its template sets."""

    due: Due
    attempt: int
    category: str | None
    token_tag: str | None = None
    is_probe: bool = False
    reached_at: datetime | None = None
    template_seconds: int | None = None


@value_class
class Ended:
    """How one try ended; `made` is False where the call was not started in time."""

    go: Go
    outcome: Outcome | None
    at: datetime


class Results:
    """The results of one sender's tries. `called`: tries (message, number) that were started and are not stored yet.
    `accepted`: messages whose taking is stored, by which their receipts are known to be no news.
    `fence` is the driver's: how a try ended stays true after it lost the sender, but holds are its successor's then."""

    def __init__(
        self, sender_id: str, runtime: Runtime, settings: Settings, wake: asyncio.Event, accepted: Accepted
    ) -> None:
        self.called: set[tuple[Key, int]] = set()
        self.accepted = accepted
        self.fence = 0
        self.circuit = Circuit()
        self._sender_id, self._runtime, self._settings, self._wake = sender_id, runtime, settings, wake
        self._ended: asyncio.Queue[Ended] = asyncio.Queue()

    def put(self, ended: Ended) -> None:
        if ended.outcome is not None:
            self.circuit.note(answered=is_answered(ended.outcome))
        self._ended.put_nowait(ended)

    async def stored(self) -> None:
        """Wait until all that ended is stored."""
        await self._ended.join()

    async def run(self) -> None:
        # The loop's own clock, by which it also sleeps.
        clock, took = asyncio.get_running_loop().time, 0.0
        while True:
            batch = [await self._ended.get()]
            await asyncio.sleep(RESULTS_WITHIN_SECONDS)
            if BUSY_RESULTS <= self._ended.qsize() < RESULTS_AT_MOST - 1:
                await asyncio.sleep(max(BUSY_WITHIN_SECONDS, busy_rest(took, BUSY_AT_MOST_SECONDS)))
            begins = clock()
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
            took = clock() - begins
            for _ in batch:
                self._ended.task_done()

    async def _store_results(self, batch: Sequence[Ended]) -> None:
        taken = [
            (ended, ended.outcome) for ended in batch if isinstance(ended.outcome, Taken) and not ended.go.is_probe
        ]
        if len(taken) == len(batch) and not self.circuit.is_open:
            stored = await self._store_taken(taken)
            self.called -= {(ended.go.due.message.key, ended.go.attempt) for ended in batch}
            batch = [ended for ended in batch if ended.go.due.message.key not in stored]
        if batch:
            await self._store_others(batch)

    async def _store_taken(self, taken: Sequence[tuple[Ended, Taken]]) -> set[Key]:
        """What nearly all tries come to, in one statement; returns the messages for which it was news."""
        told = [(self._result(ended), self._accepted(ended, outcome)) for ended, outcome in taken]
        async with self._runtime.pool.acquire(timeout=30) as connection:
            stored = await queue_store.record_taken(connection, told)
        self._runtime.publish_committed([event for result, event in told if result.key in stored])
        self.accepted.add(stored)
        return stored

    async def _store_others(self, batch: Sequence[Ended]) -> None:
        known_ends = [_given_up(ended) for ended in batch]
        results = {ended.go.due.message.key: self._result(ended) for ended in known_ends}
        was_open = self.circuit.is_open
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            holding = await self._hold_or_lift(connection, batch)
            changed = await queue_store.record_results(connection, results.values())
            announcements = list(holding)
            for ended in [await _explained(connection, one) for one in known_ends]:
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
            capped = _capped(batch, changed)
            if capped:
                await people_store.set_caps(connection, capped)
            await self._give_places_back(connection, batch)
        if was_open:
            self.circuit.close()
        self.called -= {(ended.go.due.message.key, ended.go.attempt) for ended in batch}
        for ended in known_ends:
            if isinstance(ended.outcome, NotTaken) and ended.outcome.waiting_for is None:
                self._runtime.metrics.inc(
                    Metric.REJECTED, service=self._runtime.service, reason=ended.outcome.reason.code
                )
        self._runtime.publish_soon()

    async def _give_places_back(self, connection: Connection, batch: Sequence[Ended]) -> None:
        """Whose call Meta surely didn't take doesn't count for its messaging limit. Last, as that lock is shared."""
        calls = [
            (ended.go.due.message.address, ended.go.reached_at)
            for ended in batch
            if ended.go.reached_at is not None and (ended.outcome is None or isinstance(ended.outcome, NotTaken))
        ]
        if calls:
            key = await store.tier_key_of(connection, self._sender_id)
            await tier_store.give_back(connection, key, calls)

    def _result(self, ended: Ended) -> Result:
        message, outcome = ended.go.due.message, ended.outcome
        tries = _tries(ended)

        if isinstance(outcome, Taken):
            key, attempt = message.key, ended.go.attempt
            return Result(key, attempt, "accepted", Waiting.TURN, None, outcome.wamid, "accepted", tries)

        def result(state: str, waiting_for: Waiting = Waiting.TURN, **rest: Any) -> Result:
            blank: dict[str, Any] = {"not_before": None, "wamid": None, "outcome": None}
            return Result(message.key, ended.go.attempt, state, waiting_for, tries=tries, **(blank | rest))

        if outcome is None:
            return result("waiting", message.waiting_for, not_before=ended.at)
        if isinstance(outcome, MaybeTaken):
            return result("unknown")
        if outcome.waiting_for is None:
            return result("rejected", outcome=outcome.reason.code)
        # What met a hold is looked at again at once, and waits for the hold's end if that still stands.
        delay = outcome.delay or timedelta()
        told = bool(_held_by_answer(ended))
        return result("waiting", outcome.waiting_for, not_before=ended.at + delay, told=told)

    def _announcements(self, ended: Ended) -> list[announce.Announcement]:
        outcome, due = ended.outcome, ended.go.due
        if isinstance(outcome, Taken):
            return [self._accepted(ended, outcome)]
        if isinstance(outcome, NotTaken) and outcome.waiting_for is None:
            return [announce.rejected(due.message, outcome.reason, ended.at)]
        return _held_by_answer(ended)

    def _accepted(self, ended: Ended, taken: Taken) -> announce.Announcement:
        go = ended.go
        ttl = timedelta(seconds=self._settings.receipt_ttl_seconds)
        return announce.accepted(
            go.due.message,
            taken,
            at=ended.at,
            now=ended.at,
            category=go.category,
            deadline=receipt_deadline(ended.at, go.category, ttl, go.template_seconds),
        )

    async def _hold_or_lift(self, connection: Connection, batch: Sequence[Ended]) -> list[announce.Announcement]:
        refusals = _refusals(batch)
        silent = [ended.outcome for ended in batch if ended.outcome is not None] if self.circuit.is_open else []
        probes = [ended.outcome for ended in batch if ended.go.is_probe and ended.outcome is not None]
        if any(ended.go.is_probe and ended.outcome is None for ended in batch):
            # Nothing was tried: whoever is next need not wait until a lost try would be over.
            await hold_store.give_back_probe(connection, self._sender_id)
        if not (refusals or silent or probes):
            return []
        now = utc_now()
        row = (await store.senders(connection, [self._sender_id])).get(self._sender_id)
        if row is None or row.fence != self.fence:
            return []
        announcements: list[announce.Announcement] = []
        for (scope, token_tag), told in refusals:
            announcements += await holding.hold_sender(
                connection, self._sender_id, scope, told, now, token_tag=token_tag
            )
        if refusals:
            return announcements
        if silent:
            told = Refusal(outage(silent[-1]), SILENCE, now)
            return await holding.hold_sender(connection, self._sender_id, HoldScope.SENDER, told, now, token_tag=None)
        scopes = _freed(row, probes)
        if scopes:
            lifted = await holding.tried(connection, row, scopes, now)
            announcements += announce.senders_updated(lifted, now)
            self._wake.set()
        elif probes and not any(isinstance(outcome, MaybeTaken) for outcome in probes):
            # Refused for the message's own fault, which tells nothing of the hold: the next one may try.
            await hold_store.give_back_probe(connection, self._sender_id)
        return announcements


def _given_up(ended: Ended) -> Ended:
    """A try after which the next one would come too late: with the message's end as its outcome. Not where the wait is
    for a sync, or for a pace that all share: these may end before their time."""
    outcome, message = ended.outcome, ended.go.due.message
    if not isinstance(outcome, NotTaken) or outcome.waiting_for not in (Waiting.RETRY, Waiting.PAIR):
        return ended
    next_at = ended.at + (outcome.delay or timedelta())
    if next_at < message.funded.expires_at:
        return ended
    is_going_on = message.waiting_for is outcome.waiting_for
    since = (message.waiting_since if is_going_on else None) or ended.at
    tried = replace(
        message,
        attempts=ended.go.attempt,
        tries=tuple(_tries(ended)),
        waiting_for=outcome.waiting_for,
        waiting_since=since,
    )
    return replace(ended, outcome=replace(outcome, reason=without_another_try(tried, next_at), waiting_for=None))


async def _explained(connection: Connection, ended: Ended) -> Ended:
    outcome = await explained(connection, ended.go.due.message, ended.outcome)
    return ended if outcome is ended.outcome else replace(ended, outcome=outcome)


def _refusals(batch: Sequence[Ended]) -> list[tuple[tuple[HoldScope, str | None], Refusal]]:
    """What is refused, each scope and token once."""
    found: dict[tuple[HoldScope, str | None], Refusal] = {}
    for ended in batch:
        outcome = ended.outcome
        if isinstance(outcome, NotTaken) and outcome.holds_sender:
            name = (outcome.scope or HoldScope.SENDER, ended.go.token_tag)
            found.setdefault(name, Refusal(outcome.reason, ANSWER, ended.at))
    return sorted(found.items(), key=lambda pair: pair[0][0])


def _capped(batch: Sequence[Ended], changed: Mapping[Key, str | None]) -> dict[Key, datetime]:
    """Whose person gets no marketing until when, as Meta's answer was its cap (131049). A failure that a webhook tells
    does the same (stages.py)."""
    return {
        ended.go.due.message.key: ended.at + CAP
        for ended in batch
        if isinstance(ended.outcome, NotTaken)
        and ended.outcome.reason.code is ReasonCode.MARKETING_CAP_REACHED
        and ended.go.due.message.key in changed
    }


def _freed(row: store.SenderRow, probes: Sequence[Outcome]) -> tuple[HoldScope, ...]:
    """Which holds the tries of a held sender tell something of: all if one was taken; an outage's at any answer of
    Meta's."""
    if any(isinstance(outcome, Taken) for outcome in probes):
        return tuple(HoldScope)
    in_outage = row.sender.hold is not None and row.sender.hold.code is ReasonCode.TEMPORARY_FAILURE
    return (HoldScope.SENDER,) if in_outage and any(map(is_answered, probes)) else ()


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


def _tries(ended: Ended) -> list[Mapping[str, Any]]:
    return [*ended.go.due.message.tries, _try(ended)][-TRIES_KEPT:]


def _try(ended: Ended) -> dict[str, Any]:
    """One try as evidence: when, and what was answered."""
    outcome = ended.outcome
    told: dict[str, Any] = {"at": ended.at.isoformat(timespec="milliseconds").replace("+00:00", "Z")}
    if outcome is None:
        return told | {"result": "not started in time"}
    if isinstance(outcome, Taken):
        held = {"message_status": outcome.message_status} if outcome.message_status else {}
        return told | {"result": "taken"} | held
    if isinstance(outcome, MaybeTaken):
        return told | {"result": "unknown", "cause": outcome.cause, "http_status": outcome.http_status}
    meta = outcome.reason.meta or MetaError()
    words = {"result": outcome.action.value, "code": None, "http_status": None, "detail": outcome.reason.detail}
    return told | words | meta.model_dump(exclude_none=True)
