"""Judging many requests: a task of this process, piece by piece, whose lines are in the database. Nothing of it is
needed to show how far it is, and a run that this process takes with it can be begun anew by any other."""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from asyncpg import Record
from pydantic import JsonValue
from sendwhy.evaluation import EVALUATE_MAX
from sendwhy.events import Gate, SendRequested
from sendwhy.logs import describe
from sendwhy.postgres import TRANSIENT_ERRORS, Connection
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.service import Runtime

from message_log import accounts, api, resend_store
from message_log import audience_store as stored
from message_log.audience import Answers, Count, Outcome, Verdict
from message_log.audience_lines import request_of
from message_log.audience_store import Superseded
from message_log.eligibility import Evaluated, evaluate
from message_log.language import ENGLISH, speaking
from message_log.resend import Sum, excluded, has_changed, not_kept, repeat_of, sent_already
from message_log.services import OtherServices

# So many at once in this process; the others wait their turn.
RUNS_MAX = 2
# One call's requests, well below what a service takes as one body.
CALL_BYTES_MAX = 4 * 1024 * 1024
# What messages said is read from their events, and may be large.
REPEATS_AT_ONCE = 200
TRIES = 3
TRY_AGAIN_SECONDS = 1.0
BEGUN_FROM = ("new", "judged", "cancelled", "failed", "stopped")
CONFIRMED_FROM = ("judged", "stopped")

log = structlog.get_logger("sendwhy")
Rights = Callable[[], str]


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a run. `rights`: the Authorization with which services are asked now."""

    workspace: str
    who: str
    rights: Rights


@dataclass(slots=True)
class Run:
    """One run. `rights` as in Asked. `is_only`: it has one line. `planned`: what was confirmed, of a run that sends.
    `faults`: why a service is not asked any more in this run."""

    audience_id: UUID
    workspace: str
    kind: str
    number: int
    who: str
    rights: Rights
    is_only: bool = False
    planned: Sum | None = None
    faults: dict[Service, str] = field(default_factory=dict)
    count: Count = field(default_factory=Count)

    @property
    def is_again(self) -> bool:
        return self.kind == "again"

    def facts(self) -> dict[str, Any]:
        people = [
            {"portfolio": name, "limit": one.limit, "used": one.used, "taken": one.taken, "left": one.left}
            for name, one in sorted(self.count.people.items())
        ]
        return {"balance": self.count.balance, "people": people, "faults": self.faults}


async def claim(connection: Connection, asked: Asked, audience_id: UUID, planned: Sum | None = None) -> Run:
    """Take the next run, within the caller's transaction: one that judges all lines anew, or sends again what was
    `planned`. Raises Problem 409 where a run goes on, or all is sent."""
    state, before = ("running", BEGUN_FROM) if planned is None else ("sending", CONFIRMED_FROM)
    workspace = asked.workspace
    row = await stored.claim(connection, workspace, audience_id, state, before)
    if row is None:
        raise Problem(409, "It runs already, or has ended. Look at it again.")
    if planned is None:
        await stored.reset(connection, audience_id)
    count = Count(
        # Of those that are sent again only the ones that go at once are asked for.
        holds_credits=row["kind"] == "file",
        portfolios=await stored.portfolios(connection, workspace),
    )
    is_only = row["lines"] == 1
    return Run(audience_id, workspace, row["kind"], row["run"], asked.who, asked.rights, is_only, planned, count=count)


class Audiences:
    """The runs of this process."""

    def __init__(self, runtime: Runtime, services: OtherServices, try_again_seconds: float = TRY_AGAIN_SECONDS) -> None:
        self._runtime, self._services, self._try_again_seconds = runtime, services, try_again_seconds
        self._turn = asyncio.Semaphore(RUNS_MAX)
        self._running: dict[asyncio.Task[None], Run] = {}

    def start(self, run: Run) -> None:
        """Begin a run that was claimed, once that is committed."""
        act = self._judge_all if run.planned is None else self._send
        task = asyncio.create_task(self._guard(run, act), name=f"audience {run.audience_id}")
        self._running[task] = run
        task.add_done_callback(lambda done: self._running.pop(done, None))

    async def beat(self) -> None:
        """Tell that the runs go on."""
        runs = [(run.audience_id, run.number) for run in self._running.values()]
        if runs:
            async with self._runtime.pool.acquire(timeout=10) as connection:
                await stored.beat(connection, runs)

    async def close(self) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    async def _guard(self, run: Run, act: Callable[[Run], Awaitable[None]]) -> None:
        try:
            # What is kept of a run is read by others than who began it.
            with speaking(ENGLISH):
                async with self._turn:
                    await act(run)
        except Superseded:
            log.info("a run of many requests was ended from elsewhere", audience=str(run.audience_id))
        except Exception as error:
            log.error("a run of many requests broke off", audience=str(run.audience_id), exc_info=error)
            with contextlib.suppress(*TRANSIENT_ERRORS):
                await self._end(run, "failed", told=f"It broke off: {describe(error)}")

    async def _judge_all(self, run: Run) -> None:
        already = await self._already(run)
        last, size = 0, REPEATS_AT_ONCE if run.is_again else EVALUATE_MAX
        while True:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                rows = await stored.unjudged(connection, run.audience_id, last, size)
            if not rows:
                break
            last = rows[-1]["number"]
            await self._judge(run, rows, already)
        await self._end(run, "judged", judged=True)

    async def _already(self, run: Run) -> dict[str, Verdict]:
        """Which messages of a plan are not to go, since their families have others."""
        if not run.is_again:
            return {}
        async with self._runtime.pool.acquire(timeout=30) as connection:
            ids = await stored.ids_of(connection, run.audience_id)
            roots, members = await resend_store.families(connection, run.workspace, ids)
        return sent_already(ids, roots, members)

    async def _judge(self, run: Run, rows: Sequence[Record], already: dict[str, Verdict]) -> dict[int, Verdict]:
        """Judge these lines, and store what they come to."""
        requests, verdicts = await (self._repeats(run, rows, already) if run.is_again else self._requests(run, rows))
        for piece in _pieces(requests):
            answers = await self._ask(run, [request for _, request, _ in piece])
            judged = run.count.judge(answers)
            verdicts |= {number: verdict for (number, _, _), verdict in zip(piece, judged, strict=True)}
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await stored.fence(connection, run.audience_id, run.number)
            await stored.write_verdicts(connection, run.audience_id, verdicts)
        return verdicts

    async def _requests(
        self, run: Run, rows: Sequence[Record]
    ) -> tuple[list[tuple[int, SendRequested]], dict[int, Verdict]]:
        """The requests of a file's lines; and what is known of the others."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            used = await stored.used_ids(connection, run.workspace, [row["message_id"] for row in rows])
        detail = "A message has this id already; Sendwhy answers a repeat with what stands, and sends nothing."
        verdicts = {row["number"]: Verdict(Outcome.USED, detail=detail) for row in rows if row["message_id"] in used}
        fresh = [row for row in rows if row["number"] not in verdicts]
        parsed = await asyncio.to_thread(lambda: [request_of(row["body"]) for row in fresh])
        return [(row["number"], request) for row, request in zip(fresh, parsed, strict=True)], verdicts

    async def _repeats(
        self, run: Run, rows: Sequence[Record], already: dict[str, Verdict]
    ) -> tuple[list[tuple[int, SendRequested]], dict[int, Verdict]]:
        """The requests that would send these messages again; and why the others are not sent again."""
        ids = [row["message_id"] for row in rows]
        async with self._runtime.pool.acquire(timeout=30) as connection:
            failed = await resend_store.failed(connection, run.workspace, ids, is_only=run.is_only)
            kept = await resend_store.requests_of(connection, run.workspace, ids)
        requests: list[tuple[int, SendRequested]] = []
        verdicts: dict[int, Verdict] = {}
        now = datetime.now(UTC)
        for row in rows:
            name, number = row["message_id"], row["number"]
            verdict = (excluded(failed[name]) if name in failed else not_kept()) or already.get(name)
            if verdict is not None or name not in kept:
                verdicts[number] = verdict or not_kept()
            else:
                requests.append((number, repeat_of(kept[name], run.audience_id, now)))
        return requests, verdicts

    async def _ask(self, run: Run, requests: Sequence[SendRequested]) -> list[Answers]:
        dumped = [request.model_dump(mode="json", exclude_none=True) for request in requests]
        consent = await self._say(run, Service.CONSENT, dumped, None)
        if isinstance(consent, str):
            return [Answers(None, faults=run.faults) for _ in requests]
        passing = [
            place
            for place, one in enumerate(consent)
            if one.resolved is not None and all(gate.passed is not False for gate in one.gates)
        ]
        asked = [dumped[place] for place in passing]
        resolved = [consent[place].resolved or {} for place in passing]
        billing, dispatcher = await asyncio.gather(
            self._say(run, Service.BILLING, asked, resolved), self._say(run, Service.DISPATCHER, asked, resolved)
        )
        later = {
            place: (_gates_in(billing, position), _gates_in(dispatcher, position))
            for position, place in enumerate(passing)
        }
        return [
            Answers(
                one.gates,
                billing=later.get(place, _UNASKED)[0],
                dispatcher=later.get(place, _UNASKED)[1],
                address=_address(one.resolved or {}),
                is_template=requests[place].template is not None,
                faults=run.faults,
            )
            for place, one in enumerate(consent)
        ]

    async def _say(
        self,
        run: Run,
        service: Service,
        requests: Sequence[dict[str, JsonValue]],
        resolved: Sequence[dict[str, JsonValue]] | None,
    ) -> list[Evaluated] | str:
        """A service that can't be asked even after some tries is not asked any more in this run."""
        if service in run.faults:
            return run.faults[service]
        if not requests:
            return []
        told: list[Evaluated] | str = ""
        for left in reversed(range(TRIES)):
            told = await evaluate(self._services, service, run.rights(), requests, resolved)
            if not isinstance(told, str):
                return told
            if left:
                await asyncio.sleep(self._try_again_seconds)
        run.faults[service] = str(told)
        return str(told)

    async def _send(self, run: Run) -> None:
        """Judge once more what is to go, and send it if that is still what was confirmed."""
        assert run.planned is not None
        async with self._runtime.pool.acquire(timeout=30) as connection:
            rows = await stored.planned(connection, run.audience_id)
        planned = Sum(len(rows), sum(row["credits"] for row in rows))
        if has_changed(run.planned, planned) or planned.messages > run.planned.messages:
            await self._stop(run, run.planned, planned)
            return
        going: list[tuple[int, str]] = []
        credits = 0
        for start in range(0, len(rows), REPEATS_AT_ONCE):
            verdicts = await self._judge(run, rows[start : start + REPEATS_AT_ONCE], {})
            gone = {number: one for number, one in verdicts.items() if one.outcome is Outcome.GOES}
            credits += sum(one.credits for one in gone.values())
            going += [(row["number"], row["message_id"]) for row in rows if row["number"] in gone]
        now = Sum(len(going), credits)
        if has_changed(planned, now):
            await self._stop(run, planned, now)
            return
        sent = 0
        for start in range(0, len(going), REPEATS_AT_ONCE):
            sent += await self._hand_over(run, dict(going[start : start + REPEATS_AT_ONCE]))
            self._runtime.publish_soon()
        told = f"{sent:,} of {planned.messages:,} planned messages were asked for again, for up to {credits:,} credits."
        await self._end(run, "sent", told=told)
        await self._note(run, told)

    async def _stop(self, run: Run, planned: Sum, now: Sum) -> None:
        missing = " ".join(f"{service} could not be asked: {why}" for service, why in run.faults.items())
        told = (
            f"Nothing was sent, since it is not what you saw any more: then {planned.messages:,} messages for"
            f" {planned.credits:,} credits, now {now.messages:,} for {now.credits:,}. {missing}"
        ).strip()
        await self._end(run, "stopped", told=told)
        await self._note(run, told)

    async def _hand_over(self, run: Run, going: dict[int, str]) -> int:
        """Publish these repeats, together with the record of it; returns how many. Nobody else sends messages of the
        workspace again meanwhile, so that none goes by two plans."""
        ids = list(going.values())
        async with self._runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            await stored.fence(connection, run.audience_id, run.number)
            await resend_store.one_at_a_time(connection, run.workspace)
            already = sent_already(ids, *await resend_store.families(connection, run.workspace, ids))
            failed = await resend_store.failed(connection, run.workspace, ids, is_only=True)
            kept = await resend_store.requests_of(connection, run.workspace, ids)
            now = datetime.now(UTC)
            refused = {
                number: already.get(name) or excluded(failed[name]) or not_kept()
                for number, name in going.items()
                if name in already or excluded(failed[name]) or name not in kept
            }
            repeats = {
                number: repeat_of(kept[name], run.audience_id, now)
                for number, name in going.items()
                if number not in refused
            }
            await resend_store.note(connection, run.workspace, list(repeats.values()), run.who)
            await api.hand_over(connection, *repeats.values())
            await stored.write_verdicts(connection, run.audience_id, refused)
            await stored.note_sent(connection, run.audience_id, {n: one.message_id for n, one in repeats.items()})
        return len(repeats)

    async def _end(self, run: Run, state: str, *, told: str | None = None, judged: bool = False) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            await stored.end(
                connection,
                run.audience_id,
                run.number,
                state,
                facts=run.facts() if judged or run.faults else None,
                told=told,
                judged_at=datetime.now(UTC) if judged else None,
            )

    async def _note(self, run: Run, told: str) -> None:
        async with self._runtime.pool.acquire(timeout=30) as connection:
            await accounts.note(connection, run.workspace, run.who, "send again", str(run.audience_id), told)


_UNASKED: tuple[None, None] = (None, None)


def _address(resolved: Mapping[str, JsonValue]) -> str | None:
    told = resolved.get("phone") or resolved.get("user_id")
    return None if told is None else str(told)


def _gates_in(told: list[Evaluated] | str, position: int) -> list[Gate] | None:
    return None if isinstance(told, str) else told[position].gates


def _pieces(requests: Sequence[tuple[int, SendRequested]]) -> Iterator[list[tuple[int, SendRequested, int]]]:
    """What fits into one call each, in the order."""
    piece: list[tuple[int, SendRequested, int]] = []
    size = 0
    for number, request in requests:
        length = len(request.to_json())
        if piece and size + length > CALL_BYTES_MAX:
            yield piece
            piece, size = [], 0
        piece.append((number, request, length))
        size += length
    if piece:
        yield piece
