"""The process is killed between every two steps of a send: none is sent twice, and each ends in one outcome.

The proxies in front of PostgreSQL and Meta see where a send is; at the point of each case they kill the dispatcher, and
the next one, started at once, finishes what was left and meets the next point.
"""

import asyncio
import re
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
from dispatcher import queue_store
from dispatcher.decide import Lane, Message
from dispatcher.queue_store import NewMessage
from proxies import MetaProxy, PostgresProxy, Session, listening
from rig import Account, Dispatcher, Json, Rig, judge_calls, may_be_taken, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
FAR = "'infinity'"
# Name of a step -> what its statement looks like. A commit is told by what stands in its transaction.
STATEMENTS = {
    "the fence is held": r"where s\.sender_id = \$1 and s\.fence = \$2\s+for share of s",
    "what is due is locked": r"from message m .*not_before <= .*for update of m skip locked",
    "the facts are read": r"from conversation_window .*from template where waba_id",
    "the people reached are counted": r"^select phone from reached_person",
    "the people reached are noted": r"insert into reached_person",
    "it is marked in flight": r"set state = 'in_flight'",
    "the mark is committed": r"COMMIT.*set state = 'in_flight'",
    "the result is stored and told": r"set state = 'accepted'.*insert into outbox",
    "the outbox is emptied": r"delete from outbox",
    "the outbox is read": r"from outbox where created_at",
}
# Where nothing happens in between, to die before a step is to die after the one that went before it.
ONLY_AFTER = {
    "what is due is locked",
    "the facts are read",
    "the people reached are counted",
    "the people reached are noted",
    "it is marked in flight",
    "the outbox is read",
}
# Bytes that pass of the request, or of the answer; negative ones count from the end.
REQUEST = {"nothing": 0, "half a head": 60, "all but one byte": -1}
ANSWER = {"nothing": 0, "half a head": 40, "all but one byte": -1}


@dataclass(frozen=True)
class Point:
    """Where to kill. `side`: before the statement reaches the server, or after its answer came back."""

    step: str
    side: str

    @property
    def name(self) -> str:
        return f"{self.side} {self.step}"


POINTS = [
    *(Point(step, "before") for step in STATEMENTS if step not in ONLY_AFTER),
    *(Point(step, "after") for step in STATEMENTS),
    *(Point(f"{name} of the request", "after") for name in (*REQUEST, "the head", "half a body", "the whole")),
    *(Point(f"{name} of the answer", "after") for name in (*ANSWER, "the whole")),
]
# Where the mark isn't committed when the process dies, nothing can have been called: it is sent once after that.
BEFORE_THE_MARK = {f"{side} {step}" for step in list(STATEMENTS)[:6] for side in ("before", "after")} | {
    "before the mark is committed"
}
# Where the result is stored, which is one statement, it stands.
AFTER_THE_RESULT = {"after the result is stored and told"} | {
    f"{side} {step}" for step in list(STATEMENTS)[8:] for side in ("before", "after")
}


@dataclass
class Killer:
    """Kills the present dispatcher at the armed point, once."""

    victim: Dispatcher | None = None
    point: Point | None = None
    key: str = ""
    is_stored: bool = False
    fired: asyncio.Event = field(default_factory=asyncio.Event)

    def arm(self, victim: Dispatcher, point: Point, key: str) -> None:
        self.victim, self.point, self.key, self.is_stored = victim, point, key, False
        self.fired = asyncio.Event()

    def kill(self) -> None:
        assert self.victim is not None
        self.point = None
        self.victim.signal(signal.SIGKILL)
        self.fired.set()

    def on_step(self, session: Session, query: str, side: str, _body: bytes) -> bool:
        if self.point is None or self.point.step not in STATEMENTS:
            return True
        text = query + (" " + " ".join(session.transaction) if query.startswith("COMMIT") else "")
        if not re.search(STATEMENTS[self.point.step], text, re.DOTALL):
            self.is_stored |= side == "after" and bool(
                re.search(STATEMENTS["the result is stored and told"], text, re.DOTALL)
            )
            return True
        if self.point.side != side:
            return True
        # The outbox is swept all the time: only what comes behind the result is a step of this send.
        if self.point.step.startswith("the outbox") and not self.is_stored:
            return True
        self.kill()
        return False

    def cut(self, key: str, request: bytes) -> tuple[int | None, int | None]:
        if self.point is None or self.point.step in STATEMENTS or key != self.key:
            return None, None
        what, _, of = self.point.step.rpartition(" of the ")
        head = request.index(b"\r\n\r\n") + 4
        places = REQUEST | {"the head": head, "half a body": (head + len(request)) // 2, "the whole": len(request)}
        if of == "request":
            return places[what], None
        return None, ANSWER.get(what, 1_000_000)

    def on_cut(self) -> None:
        if self.point is not None:
            self.kill()


@dataclass
class Outcomes:
    calls: dict[str, list[Json]]
    events: dict[str, dict[str, list[Json]]]
    states: dict[str, tuple[str, str | None]]
    workspace: str


async def queue(rig: Rig, account: Account) -> None:
    """One message a point, none of them due."""
    connection = await asyncpg_connect(rig)
    try:
        new = []
        for number, _ in enumerate(POINTS):
            event = account.funded(number)
            message = Message(event, account.sender_id, Lane.MARKETING, event.send_at)
            new.append(NewMessage(message, "autumn", "waiting", None))
        await queue_store.add_messages(connection, new)
        await connection.execute(f"update message set not_before = {FAR}")
    finally:
        await connection.close()


async def asyncpg_connect(rig: Rig) -> Any:
    import asyncpg

    return await asyncpg.connect(rig.database_url)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes(chaos: Rig) -> AsyncIterator[Outcomes]:
    """All points in turn, and what became of their messages."""
    killer = Killer()
    postgres = PostgresProxy(("127.0.0.1", urlsplit(chaos.database_url).port or 0), killer.on_step)
    meta = MetaProxy(("127.0.0.1", int(chaos.meta_url.rpartition(":")[2])))
    meta.cut, meta.on_cut = killer.cut, killer.on_cut
    async with AsyncExitStack() as stack:
        for proxy in (postgres, meta):
            await stack.enter_async_context(listening(proxy))

        async def start() -> Dispatcher:
            ways: dict[str, Any] = {"meta_url": meta.url, "postgres_port": postgres.port}
            return await chaos.start("one", unknown_outcome_seconds=1, **ways)

        victim = await chaos.ready(await start())
        await chaos.sim("PUT", "/settings", {"latency_ms": 0})
        account = await chaos.account(victim, limit=100_000)
        await queue(chaos, account)
        for number, point in enumerate(POINTS):
            victim = await meet(chaos, account, killer, victim, point, number, start)

        async def all_settled() -> bool:
            states = await chaos.states(account)
            return states["accepted"] + states["rejected"] == len(POINTS)

        await until(all_settled, "all settled", 30)
        await until(lambda: outbox_is_empty(chaos), "all is told", 30)
        rows = await chaos.sql("select message_id, state, outcome from message")
        states = {row["message_id"]: (row["state"], row["outcome"]) for row in rows}
        yield Outcomes(await chaos.calls(account), await chaos.events(account), states, account.workspace)
        await chaos.stop(victim)


async def outbox_is_empty(rig: Rig) -> bool:
    return not await rig.sql("select from outbox limit 1")


async def meet(
    rig: Rig,
    account: Account,
    killer: Killer,
    victim: Dispatcher,
    point: Point,
    number: int,
    start: Callable[[], Any],
) -> Dispatcher:
    """Let the message become due, the dispatcher die at the point, and the next one take over."""
    message_id = f"m{number}"

    async def drives() -> bool:
        return any(line["event"] == "driving sender" for line in victim.said())

    async def has_finished() -> bool:
        left = "select from message where state = 'in_flight' or state = 'waiting' and not_before < 'infinity' limit 1"
        return not await rig.sql(left)

    await until(drives, f"{point.name}: the next dispatcher drives", 30)
    await until(has_finished, f"{point.name}: the next dispatcher has finished what was left", 30)
    killer.arm(victim, point, f"{account.workspace}:{message_id}")
    await rig.sql("update message set not_before = now() where message_id = $1", message_id)
    try:
        await asyncio.wait_for(killer.fired.wait(), 20)
    except TimeoutError:
        raise AssertionError(f"no send comes by this point: {point.name}") from None
    await rig.bury(victim)
    following: Dispatcher = await start()
    return following


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", range(len(POINTS)), ids=[point.name for point in POINTS])
async def test_a_process_that_is_killed(outcomes: Outcomes, number: int) -> None:
    key = f"{outcomes.workspace}:m{number}"
    calls = outcomes.calls.get(key, [])
    state, outcome = outcomes.states[f"m{number}"]
    rejections = outcomes.events["send.rejected"].get(key, [])
    statuses = outcomes.events["status.updated"].get(key, [])
    assert not judge_calls(key, calls)
    assert len([call for call in calls if call["whole"]]) <= 1
    if state == "accepted":
        assert (len(rejections), len(statuses)) == (0, 1)
        assert [call["wamid"] for call in calls if may_be_taken(call)] == [statuses[0]["provider_message_id"]]
    else:
        assert (state, outcome) == ("rejected", "SEND_OUTCOME_UNKNOWN")
        assert (len(rejections), len(statuses)) == (1, 0)
        assert rejections[0]["reason"]["evidence"]["called_at"]
    name = POINTS[number].name
    if name in BEFORE_THE_MARK | AFTER_THE_RESULT:
        assert state == "accepted", name
    elif POINTS[number].side == "after" and "the result" not in name:
        assert state == "rejected", name
