"""One driver on real PostgreSQL, with a Meta that answers as told: no message is lost between mark, call and result."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import dispatcher
import pytest
from cryptography.fernet import Fernet
from dispatcher import people_store, queue_store, store
from dispatcher.answers import Action, NotTaken, Outcome, Taken
from dispatcher.decide import Lane, Message, Waiting
from dispatcher.driver import Driver
from dispatcher.erasures import Eraser
from dispatcher.lease import Lease
from dispatcher.queue_store import NewMessage
from dispatcher.results import utc_now
from dispatcher.settings import Settings
from dispatcher.store import NewSender
from dispatcher.tokens import TokenVault
from dispatcher_cases import PHONE, SENDER, contact, funded, text_content
from pydantic import SecretStr
from sendwhy.events import ContactUpdated, MarketingState, MetaError, PersonErasing, Purpose, Resolved, reason
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool, migrate, unpublished
from sendwhy.privacy import alias_of
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
MIGRATIONS = Path(dispatcher.__file__).parent / "migrations"
KEY = SecretStr(Fernet.generate_key().decode())
VAULT = TokenVault(KEY)


class ForgetfulPool:
    """A pool whose connection may break just after a commit: the server has it, we don't know."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool
        self.breaks_after: Callable[[], Awaitable[bool]] | None = None

    @asynccontextmanager
    async def acquire(self, **bounds: float) -> AsyncIterator[Any]:
        async with self.pool.acquire(**bounds) as connection:
            yield connection
        if self.breaks_after is not None and await self.breaks_after():
            self.breaks_after = None
            raise asyncpg.ConnectionDoesNotExistError("the commit's answer was lost")


class Incomplete:
    """An answer that no code of ours expects."""


class World:
    """What a driver needs of the runtime and of Meta. `answers` are given in turn; after them Meta takes everything."""

    service = Service.DISPATCHER

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self.metrics = Metrics(Service.DISPATCHER)
        self.pool = ForgetfulPool(pool)
        self.settings = Settings(
            kafka_bootstrap_servers="none",
            database_url=SecretStr(url),
            token_encryption_key=KEY,
            privacy_key=SecretStr("a key of tests only"),
        )
        self.answers: list[Any] = []
        self.calls: list[bytes] = []
        self.lease = Lease()
        self.driver = Driver(SENDER.sender_id, self, self.settings, self, VAULT)  # type: ignore[arg-type]

    def publish_soon(self) -> None: ...

    async def send(
        self, _sender_id: str, _token: str, body: bytes, *, may_start: Callable[[], bool], **_: Any
    ) -> Outcome | None:
        if not may_start():
            return None
        self.calls.append(body)
        answer = self.answers.pop(0) if self.answers else Taken(f"wamid.{len(self.calls)}")
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def number(self, _sender_id: str, _token: str) -> Any:
        await asyncio.Event().wait()

    async def states(self) -> set[str]:
        async with self.pool.pool.acquire(timeout=5) as connection:
            return {row["state"] for row in await connection.fetch("select state from message")}

    async def reach(self, state: str) -> None:
        async with asyncio.timeout(30):
            while await self.states() != {state}:
                await asyncio.sleep(0.05)

    def is_sure(self) -> bool:
        return self.pool.breaks_after is None and not self.driver._commit_is_unsure

    @asynccontextmanager
    async def driving(self) -> AsyncIterator["asyncio.Task[None]"]:
        async with self.pool.pool.acquire(timeout=5) as connection:
            fence = await queue_store.take_over(connection, SENDER.sender_id)
        assert fence is not None
        self.lease.renew(float("inf"))
        task = asyncio.create_task(self.driver.run(fence, self.lease))
        yield task
        self.driver.stop()
        await asyncio.gather(task, return_exceptions=True)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


@pytest.fixture
async def world(fresh_database: str) -> AsyncIterator[World]:
    await migrate(fresh_database, MIGRATIONS)
    pool = await connect_pool(fresh_database, service="dispatcher-test")
    sealed = VAULT.seal("acme", SENDER.sender_id, "token")
    life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1)}
    talk = funded(text_content(), purpose=Purpose.CONVERSATION).model_copy(update=life)
    async with pool.acquire() as connection:
        await store.put_sender(
            connection,
            NewSender(SENDER.sender_id, "acme", "300", "200", None, True, sealed),
            utc_now(),
        )
        phone = talk.resolved.phone or ""
        await connection.execute(
            "insert into conversation_window values ($1, $2, clock_timestamp())", SENDER.sender_id, phone
        )
        message = Message(talk, SENDER.sender_id, Lane.CONVERSATION, utc_now())
        await queue_store.add_messages(connection, [NewMessage(message, None, "waiting", None, None)])
    yield World(fresh_database, pool)
    await pool.close()


async def test_what_a_lost_commit_marked_in_flight_is_sent_once(world: World) -> None:
    async def marked() -> bool:
        return world.calls == [] and await world.states() == {"in_flight"}

    world.pool.breaks_after = marked
    async with world.driving():
        await world.reach("accepted")
        assert world.is_sure()
    assert len(world.calls) == 1


async def test_a_call_that_is_out_is_not_given_back(world: World) -> None:
    answered = asyncio.Event()

    async def send(*_: Any, **__: Any) -> Outcome:
        world.calls.append(b"")
        await answered.wait()
        return Taken("wamid.1")

    async def is_out() -> bool:
        return bool(world.calls)

    world.send = send  # type: ignore[method-assign]
    async with world.driving():
        await until(lambda: bool(world.calls))
        world.pool.breaks_after = is_out
        await until(world.is_sure)
        answered.set()
        await world.reach("accepted")
    assert len(world.calls) == 1


async def test_who_wakes_after_its_commit_calls_nobody_and_gives_back(world: World) -> None:
    async def frozen() -> bool:
        if await world.states() == {"in_flight"}:
            world.lease.end()
        return False

    world.pool.breaks_after = frozen
    async with world.driving():
        await until(lambda: not world.lease.holds(0))
        await world.reach("waiting")
        assert world.calls == []
        world.pool.breaks_after = None
        world.lease.renew(float("inf"))
        await world.reach("accepted")
    assert len(world.calls) == 1


async def test_who_lost_its_sender_tells_how_its_call_ended_but_holds_nobody(world: World) -> None:
    answered = asyncio.Event()

    async def send(*_: Any, **__: Any) -> Outcome:
        world.calls.append(b"")
        await answered.wait()
        why = reason(ReasonCode.SENDER_CREDENTIALS_REJECTED, "by the former token", meta=MetaError(code=190))
        return NotTaken(why, Action.HOLD, Waiting.HOLD, timedelta())

    world.send = send  # type: ignore[method-assign]
    async with world.driving(), world.pool.pool.acquire(timeout=5) as connection:
        await until(lambda: bool(world.calls))
        await queue_store.take_over(connection, SENDER.sender_id)
        assert await world.states() == {"unknown"}
        answered.set()
        await world.reach("waiting")
        assert await connection.fetchval("select hold is null from sender")


REFUSED = NotTaken(
    reason(ReasonCode.META_ERROR, f"{PHONE} is not wanted", meta=MetaError(code=131000, details=f"{PHONE} is not")),
    Action.REJECT,
)


@pytest.mark.parametrize("answer", [Taken("wamid.1"), REFUSED])
async def test_what_is_answered_after_an_erasure_names_nobody(world: World, answer: Outcome) -> None:
    erased = asyncio.Event()

    async def send(*_: Any, **__: Any) -> Outcome:
        world.calls.append(b"")
        await erased.wait()
        return answer

    world.send = send  # type: ignore[method-assign]
    now = utc_now()
    async with world.driving(), world.pool.pool.acquire(timeout=5) as connection:
        await until(lambda: bool(world.calls))
        message_id = await connection.fetchval("select message_id from message")
        order = PersonErasing(
            event_id=uuid4(),
            occurred_at=now,
            workspace_id="acme",
            erasure_id=uuid4(),
            erased_at=now,
            tags=[],
            message_ids=[message_id],
        )
        async with connection.transaction():
            await Eraser(utc_now, world.publish_soon).erase(connection, order)
        erased.set()
        await world.reach("accepted" if isinstance(answer, Taken) else "rejected")
        (told,) = [
            one.value or b""
            for one in (await unpublished(connection, older_than_seconds=-1, limit=10)).values()
            if one.topic in (Topic.STATUS_UPDATED, Topic.SEND_REJECTED)
        ]
        left = str([told, *await connection.fetch("select * from message")])
    assert alias_of(order.erasure_id) in told.decode()
    assert not [one for one in (PHONE.strip("+"), '"c-1"', '"metadata":{"') if one in left]


async def test_a_call_that_fails_unexpectedly_is_an_unknown_outcome(world: World) -> None:
    world.answers = [ValueError("a bug")]
    async with world.driving():
        await world.reach("unknown")
    assert len(world.calls) == 1


async def test_a_result_that_can_not_be_stored_ends_the_driver_loudly(world: World) -> None:
    world.answers = [Incomplete()]
    async with world.driving() as task:
        with pytest.raises(AttributeError):
            await asyncio.wait_for(asyncio.shield(task), 30)


async def test_a_driver_that_is_stopped_leaves_nothing_in_flight(world: World) -> None:
    async with world.driving():
        world.driver.stop()
    assert await world.states() <= {"waiting", "accepted"}


async def queue_for_x(world: World) -> None:
    """A marketing message that names X, of whom no number is stored; it goes to the number that the request gave."""
    life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1)}
    resolved = Resolved(contact_id="x", phone=PHONE, country="MX", calling_code="52", purpose=Purpose.MARKETING)
    offer = funded(text_content(), message_id="m-2", to={"contact_id": "x", "phone": PHONE})
    offer = offer.model_copy(update=life | {"resolved": resolved})
    async with world.pool.pool.acquire(timeout=5) as connection:
        await queue_store.add_messages(
            connection,
            [NewMessage(Message(offer, SENDER.sender_id, Lane.MARKETING, utc_now()), None, "waiting", None, None)],
        )


def state_of(contact_id: str, state: MarketingState, phone: str | None) -> ContactUpdated:
    return contact(state).model_copy(update={"contact_id": contact_id, "phone": phone})


@pytest.mark.parametrize(
    ("known", "is_sent"),
    [
        ([], True),
        ([state_of("x", MarketingState.SUBSCRIBED, None)], True),
        ([state_of("wa-1", MarketingState.UNSUBSCRIBED, "+447700900142")], True),
        ([state_of("wa-1", MarketingState.UNSUBSCRIBED, PHONE)], False),
        # The same number as Meta writes it.
        ([state_of("wa-1", MarketingState.UNSUBSCRIBED, "+5215512345678")], False),
        ([state_of("x", MarketingState.UNSUBSCRIBED, None)], False),
        # X has the number, so X's own state is that of whoever has it, and the newest.
        ([state_of("x", MarketingState.SUBSCRIBED, PHONE), state_of("wa-1", MarketingState.UNSUBSCRIBED, PHONE)], True),
    ],
)
async def test_who_opted_out_at_the_number_gets_nothing_by_another_contact(
    world: World, known: list[ContactUpdated], is_sent: bool
) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await people_store.save_contacts(connection, known)
    await queue_for_x(world)
    async with world.driving(), asyncio.timeout(30):
        while {"in_flight", "waiting"} & await world.states():
            await asyncio.sleep(0.05)
    assert await world.states() == ({"accepted"} if is_sent else {"accepted", "recalled"})
    assert len(world.calls) == 1 + is_sent
