"""One driver on real PostgreSQL, with a Meta that answers as told: no message is lost between mark, call and result."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import uuid4

import asyncpg
import pytest
from cryptography.fernet import Fernet
from dispatcher import holding, people_store, queue_store, store, sync_store, tier_store
from dispatcher.answers import Action, HoldScope, MaybeTaken, NotTaken, Outcome, Taken, not_taken
from dispatcher.clock import utc_now
from dispatcher.decide import RECEIPT_SLACK, Lane, Message, Stops, Waiting, expired
from dispatcher.driver import IDLE_SECONDS, QUIET_SECONDS, Driver
from dispatcher.erasures import Eraser
from dispatcher.fleet import Fleet
from dispatcher.holds import ANSWER, Refusal
from dispatcher.lease import Lease
from dispatcher.limits import SILENT_MAX, Budget
from dispatcher.queue_store import NewMessage
from dispatcher.receipts import Accepted
from dispatcher.rests import Rest, Shared, Shares
from dispatcher.settings import Settings
from dispatcher.store import NewSender, TemplateRow
from dispatcher.timers import Timers
from dispatcher.tokens import TokenVault
from dispatcher_cases import PHONE, SENDER, TEMPLATE, contact, funded, text_content
from pydantic import SecretStr
from sendwhy.events import (
    ContactUpdated,
    MarketingState,
    MetaError,
    PersonErasing,
    Purpose,
    Resolved,
    SendHeld,
    SendRejected,
    StatusUpdated,
    reason,
)
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool, unpublished
from sendwhy.privacy import alias_of
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
KEY = SecretStr(Fernet.generate_key().decode())
VAULT = TokenVault(KEY)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


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
            api_tokens=SecretStr(""),
            token_encryption_key=KEY,
            privacy_key=SecretStr("a key of tests only"),
        )
        self.answers: list[Any] = []
        self.calls: list[bytes] = []
        self.lease = Lease()
        self.accepted = Accepted()
        made_of: Any = (SENDER.sender_id, self, self.settings, self, VAULT, Budget(50))
        self.driver = Driver(*made_of, accepted=self.accepted)

    def publish_soon(self) -> None: ...

    def publish_committed(self, _events: Any) -> None: ...

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

    async def reach_but_one(self, state: str, of_one: str) -> None:
        """All messages are in `state`, but for one."""
        async with asyncio.timeout(30), self.pool.pool.acquire(timeout=5) as connection:
            while True:
                rows = await connection.fetch("select state from message")
                if Counter(row["state"] for row in rows) == {state: len(rows) - 1, of_one: 1}:
                    return
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
async def world(migrated_database: str) -> AsyncIterator[World]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
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
        message = Message(talk, SENDER.sender_id, Lane.CONVERSATION, utc_now(), trace=TRACE)
        await queue_store.add_messages(connection, [NewMessage(message, None, "waiting", None)])
    yield World(migrated_database, pool)
    await pool.close()


async def test_what_a_lost_commit_marked_in_flight_is_sent_once(world: World) -> None:
    async def marked() -> bool:
        return world.calls == [] and await world.states() == {"in_flight"}

    world.pool.breaks_after = marked
    async with world.driving():
        await world.reach("accepted")
        assert world.is_sure()
    assert len(world.calls) == 1


async def test_receipts_of_what_this_replica_stored_ask_nothing(world: World) -> None:
    async with world.driving():
        await until(lambda: ("acme", funded().message_id) in world.accepted)
    assert await world.states() == {"accepted"}


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


@pytest.mark.parametrize("code", [131049, 131026])
async def test_metas_cap_in_the_answer_lets_no_marketing_to_that_person_go_for_a_day(world: World, code: int) -> None:
    world.answers = [not_taken(MetaError(code=code), attempt=1, jitter=0)]
    async with world.driving(), world.pool.pool.acquire(timeout=5) as connection:
        await world.reach("rejected")
        until_when = await connection.fetchval("select until from marketing_cap where phone = $1", PHONE)
    lasts = until_when and timedelta(hours=24) - (until_when - utc_now())
    assert (lasts is None) if code != 131049 else (timedelta() <= lasts < timedelta(minutes=1))


async def test_metas_last_word_is_kept_for_the_message_that_waits_for_it_in_vain(world: World) -> None:
    down = MetaError(code=131016, title="Service unavailable", details="Try later.", http_status=503, fbtrace_id="F1")
    world.answers = [not_taken(down, attempt=1, jitter=0, retry_after_seconds=600)]
    async with world.driving(), world.pool.pool.acquire(timeout=5) as connection:
        async with asyncio.timeout(30):
            while await connection.fetchval("select waiting_for from message") != "retry":
                await asyncio.sleep(0.05)
        ((message, hold, rest),) = await queue_store.lock_expired(connection, utc_now() + timedelta(days=30), 10)
    assert expired(message, hold, rest).meta == down


@pytest.mark.parametrize(("code", "told"), [(131016, "TEMPORARY_FAILURE"), (131056, "RATE_LIMIT_EXCEEDED")])
async def test_what_could_only_be_tried_again_when_it_has_expired_fails_at_once(
    world: World, code: int, told: str
) -> None:
    said = MetaError(code=code, title="Not now", http_status=503)
    world.answers = [not_taken(said, attempt=1, jitter=0, retry_after_seconds=3600)]
    async with world.driving(), world.pool.pool.acquire(timeout=5) as connection:
        await world.reach("rejected")
        rows = await unpublished(connection, older_than_seconds=-1, limit=10)
    (event,) = [SendRejected.model_validate_json(one.value or b"") for one in rows.values()]
    assert (event.reason.code, event.reason.meta) == (told, said)
    assert [one["code"] for one in event.reason.evidence["tries"]] == [code]  # type: ignore[union-attr, call-overload, index]
    assert event.reason.evidence["next_try_at"] >= event.reason.evidence["expires_at"]  # type: ignore[operator]
    assert len(world.calls) == 1


@pytest.mark.parametrize("code", [134101, 130429])
async def test_what_may_end_sooner_than_its_wait_is_waited_for(world: World, code: int) -> None:
    world.answers = [not_taken(MetaError(code=code), attempt=1, jitter=0, retry_after_seconds=3600)]
    async with world.driving():
        await until(lambda: bool(world.calls))
        await world.reach("waiting")


async def test_a_call_that_fails_unexpectedly_is_an_unknown_outcome(world: World) -> None:
    world.answers = [ValueError("a bug")]
    async with world.driving():
        await world.reach("unknown")
    assert len(world.calls) == 1


async def test_a_call_of_unknown_outcome_waits_visibly_for_a_receipt_and_says_so_once(world: World) -> None:
    world.answers = [ValueError("a bug")]
    async with world.driving():
        await world.reach("unknown")
    timers = Timers(world, world.settings, utc_now)  # type: ignore[arg-type]
    async with world.pool.pool.acquire(timeout=5) as connection:
        # Most receipts come within seconds.
        await timers.see_to_unknown()
        assert await unpublished(connection, older_than_seconds=-1, limit=10) == {}
        called_at = await connection.fetchval(
            "update message set in_flight_at = date_trunc('second', in_flight_at) - interval '11 s'"
            " returning in_flight_at"
        )
        await timers.see_to_unknown()
        await timers.see_to_unknown()
        (told,) = (await unpublished(connection, older_than_seconds=-1, limit=10)).values()
    held = SendHeld.model_validate_json(told.value or b"")
    patience = timedelta(seconds=world.settings.unknown_outcome_seconds)
    assert (held.cause, held.scope.kind) == (ReasonCode.SEND_OUTCOME_UNKNOWN, "message")
    assert (held.since, held.until) == (called_at, called_at + patience)
    assert ("traceparent", TRACE) in told.headers


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
            [NewMessage(Message(offer, SENDER.sender_id, Lane.MARKETING, utc_now()), None, "waiting", None)],
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


async def put(world: World, ids: list[str], lane: Lane, campaign: str | None = None) -> None:
    """Free text to people whose windows are open; each to a number of its own."""
    rows: list[NewMessage] = []
    phones: list[str] = []
    for message_id in ids:
        number = f"+5255{10_000_000 + len(phones)}{lane}"
        life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1), "needs_subscription": False}
        one = funded(text_content(), purpose=Purpose.CONVERSATION, message_id=message_id).model_copy(update=life)
        one = one.model_copy(update={"resolved": one.resolved.model_copy(update={"phone": number})})
        phones.append(number)
        rows.append(NewMessage(Message(one, SENDER.sender_id, lane, utc_now()), campaign, "waiting", None))
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute(
            "insert into conversation_window select $1, unnest($2::text[]), clock_timestamp() on conflict do nothing",
            SENDER.sender_id,
            phones,
        )
        await queue_store.add_messages(connection, rows)


async def test_the_last_lanes_move_at_a_tenth_while_the_first_is_always_full(world: World) -> None:
    order: list[str] = []

    async def send(_sender: str, _token: str, body: bytes, **_: Any) -> Outcome:
        order.append(json.loads(body)["biz_opaque_callback_data"].rpartition(":")[2])
        return Taken(f"wamid.{len(order)}")

    world.send = send  # type: ignore[assignment,method-assign]
    await put(world, [f"offer-{number}" for number in range(400)], Lane.MARKETING)
    await put(world, [f"order-{number}" for number in range(400)], Lane.TRANSACTIONAL)
    await put(world, [f"talk-{number}" for number in range(1_000)], Lane.CONVERSATION)
    async with world.driving():
        await until(lambda: len(order) >= 300)
    kinds = Counter(one.partition("-")[0] for one in order[:300])
    assert kinds["offer"] >= 15
    assert kinds["order"] >= 15
    assert kinds["talk"] >= 200


async def test_a_reply_overtakes_a_campaign(world: World) -> None:
    seen: list[str] = []

    async def send(_sender: str, _token: str, body: bytes, **_: Any) -> Outcome:
        seen.append(json.loads(body)["biz_opaque_callback_data"].rpartition(":")[2])
        return Taken(f"wamid.{len(seen)}")

    world.send = send  # type: ignore[assignment,method-assign]
    await put(world, [f"offer-{number}" for number in range(2_000)], Lane.MARKETING)
    async with world.driving():
        await until(lambda: len(seen) >= 20)
        await put(world, ["reply"], Lane.CONVERSATION)
        started = len(seen)
        await until(lambda: "reply" in seen)
    # Two rounds that were claimed already, and one in ten that begins with the last lane.
    assert seen.index("reply") - started <= 40


async def test_nothing_goes_while_the_sender_is_paused_and_its_messages_are_not_looked_at(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await store.set_paused(connection, SENDER.sender_id, utc_now())
    before = world.driver._rounds
    async with world.driving():
        await until(lambda: world.driver._rounds >= before + 2)
        async with world.pool.pool.acquire(timeout=5) as connection:
            assert await connection.fetchval("select waiting_for from message") == "turn"
            await store.set_paused(connection, SENDER.sender_id, None)
        await world.reach("accepted")
    assert len(world.calls) == 1


async def test_the_try_of_a_hold_is_found_behind_many_that_are_rejected(world: World) -> None:
    ids = [f"late-{number}" for number in range(60)]
    await put(world, ids, Lane.CONVERSATION)
    async with world.pool.pool.acquire(timeout=5) as connection:
        # Nobody of these ever wrote: each is rejected as soon as it is looked at.
        await connection.execute("delete from conversation_window where phone <> $1", PHONE)
        await connection.execute(
            "update message set queued_at = queued_at - interval '1 hour', not_before = not_before - interval '1 hour'"
            " where message_id like 'late-%'"
        )
        row = (await store.senders(connection, [SENDER.sender_id]))[SENDER.sender_id]
        refusal = Refusal(reason(ReasonCode.META_PAYMENT_ISSUE, "no"), ANSWER, utc_now() - timedelta(minutes=9))
        at = utc_now() - timedelta(minutes=9)
        await holding.hold_sender(connection, row.sender.sender_id, HoldScope.SENDER, refusal, at, token_tag=None)
    async with world.driving():
        await until(lambda: bool(world.calls))
        assert world.driver._rounds < 20


async def test_who_finds_no_place_goes_when_a_refused_call_gives_one_back(world: World) -> None:
    """Two people, a limit of one: the first call is refused, so the second person is reached in its place."""
    refused = NotTaken(reason(ReasonCode.META_ERROR, "no"), Action.REJECT)
    released = asyncio.Event()

    async def send(_sender: str, _token: str, body: bytes, **_: Any) -> Outcome:
        world.calls.append(body)
        if len(world.calls) > 1:
            return Taken("wamid.2")
        await released.wait()
        return refused

    world.send = send  # type: ignore[assignment,method-assign]
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update message set state = 'accepted'")
        await connection.execute("update sender set messaging_limit = 1, templates_synced_at = clock_timestamp()")
        await store.save_templates(
            connection,
            "300",
            [
                TemplateRow(
                    "300", replace(TEMPLATE, category="UTILITY", said_at=utc_now()), "POSITIONAL", None, utc_now(), 1
                )
            ],
        )
        rows = []
        for number in range(3):
            life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1), "needs_subscription": False}
            one = funded(purpose=Purpose.TRANSACTIONAL, message_id=f"t-{number}").model_copy(update=life)
            one = one.model_copy(update={"resolved": one.resolved.model_copy(update={"phone": f"+5255987654{number}"})})
            message = Message(one, SENDER.sender_id, Lane.TRANSACTIONAL, utc_now())
            rows.append(NewMessage(message, None, "waiting", None))
        await queue_store.add_messages(connection, rows)
        async with world.driving():
            await until(lambda: bool(world.calls))
            async with asyncio.timeout(30):
                while await connection.fetchval("select count(*) from message where waiting_for = 'tier'") < 2:
                    await asyncio.sleep(0.05)
            moments = await connection.fetch("select not_before from message where waiting_for = 'tier'")
            assert len({row["not_before"] for row in moments}) == 2
            assert all(row["not_before"] > utc_now() + timedelta(hours=23) for row in moments)
            released.set()
            await until(lambda: len(world.calls) >= 2)
        assert await connection.fetchval("select count(*) from reached_person") == 1
    assert len(world.calls) == 2


async def test_a_silent_meta_holds_the_sender_and_one_answer_frees_it(world: World) -> None:
    """What was tried in silence is unknown and never tried again; then one message finds Meta back, and all follow."""
    silent: list[bytes] = []
    is_back = asyncio.Event()

    async def send(
        _sender: str, _token: str, body: bytes, *, may_start: Callable[[], bool], **_: Any
    ) -> Outcome | None:
        if not may_start():
            return None
        world.calls.append(body)
        if is_back.is_set():
            return Taken(f"wamid.{len(world.calls)}")
        silent.append(body)
        return MaybeTaken("unreadable answer", 502)

    world.send = send  # type: ignore[assignment,method-assign]
    await put(world, [f"talk-{number}" for number in range(60)], Lane.CONVERSATION)
    async with world.pool.pool.acquire(timeout=5) as connection:
        async with world.driving(), asyncio.timeout(30):
            while not (hold := await connection.fetchval("select hold from sender")):
                await asyncio.sleep(0.01)
            is_back.set()
            assert b"TEMPORARY_FAILURE" in hold
            assert b"HTTP 502" in hold
            while {"waiting", "in_flight"} & await world.states():
                await asyncio.sleep(0.05)
        rows = await connection.fetch("select state, count(*) as n from message group by 1")
        assert {row["state"]: row["n"] for row in rows} == {"unknown": SILENT_MAX, "accepted": 61 - SILENT_MAX}
        assert len(silent) == SILENT_MAX
        assert len(set(world.calls)) == len(world.calls)
        assert await connection.fetchval("select hold is null from sender")
        told = [
            one.value or b""
            for one in (await unpublished(connection, older_than_seconds=-1, limit=200)).values()
            if one.topic is Topic.SEND_HELD
        ]
    (held,) = told
    assert b'"cause":"TEMPORARY_FAILURE"' in held
    assert b'"kind":"sender"' in held


async def test_nobody_is_called_who_was_marked_while_the_circuit_opened(world: World) -> None:
    async def went_silent() -> bool:
        if await world.states() == {"in_flight"}:
            for _ in range(SILENT_MAX):
                world.driver._results.circuit.note(answered=False)
        return False

    world.pool.breaks_after = went_silent
    async with world.driving():
        await until(lambda: world.driver._results.circuit.is_open)
        await world.reach("waiting")
        assert world.calls == []
        world.pool.breaks_after = None
        await world.reach("accepted")
    assert len(world.calls) == 1


async def test_nobody_is_called_whose_time_ran_out_after_the_mark(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        expires_at = await connection.fetchval("select expires_at from message")
    send = world.send

    async def late(*call: Any, **may: Any) -> Outcome | None:
        utc_now.heard(expires_at)
        return await send(*call, **may)

    world.send = late  # type: ignore[method-assign]
    try:
        async with world.driving():
            await world.reach("rejected")
    finally:
        utc_now.heard(datetime.now(UTC))
    assert world.calls == []
    async with world.pool.pool.acquire(timeout=5) as connection:
        assert await connection.fetchval("select outcome from message") == ReasonCode.EXPIRED_BEFORE_SENDING


async def test_a_try_of_a_hold_that_did_not_start_is_made_by_the_next_message_at_once(world: World) -> None:
    """The lease of a try lasts longer than any call, for one whose outcome stayed open; this one had none."""
    async with world.pool.pool.acquire(timeout=5) as connection:
        told = Refusal(reason(ReasonCode.SENDER_NOT_AVAILABLE, "no"), ANSWER, utc_now())
        async with connection.transaction():
            await holding.hold_sender(connection, SENDER.sender_id, HoldScope.SENDER, told, utc_now(), token_tag=None)
            await connection.execute("update hold set probe_at = clock_timestamp()")
            await store.reflect_holds(connection, "acme")

        async def frozen() -> bool:
            if await world.states() == {"in_flight"}:
                world.lease.end()
            return False

        world.pool.breaks_after = frozen
        async with world.driving():
            await until(lambda: not world.lease.holds(0))
            await world.reach("waiting")
            assert await connection.fetchval("select probing_until is null from hold")
            world.pool.breaks_after = None
            world.lease.renew(float("inf"))
            await world.reach("accepted")
        assert await connection.fetchval("select hold is null from sender")
    assert len(world.calls) == 1


async def test_who_stands_still_looks_no_more_often_than_who_is_idle(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update message set not_before = clock_timestamp() + interval '300 ms'")
        async with world.driving():
            await until(lambda: world.driver._idle_seconds < IDLE_SECONDS)
            await store.set_paused(connection, SENDER.sender_id, utc_now())
            rounds = world.driver._rounds
            await until(lambda: world.driver._rounds >= rounds + 2)
            assert world.driver._idle_seconds == IDLE_SECONDS


async def test_where_nothing_waits_a_driver_hardly_looks_until_it_is_woken(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("delete from message")
        fence = await queue_store.take_over(connection, SENDER.sender_id)
    assert fence is not None
    driver = world.driver
    driver._fence, driver._lease = fence, world.lease
    world.lease.renew(float("inf"))
    assert await driver._round() == IDLE_SECONDS
    driver.rest(is_quiet=True)
    assert await driver._round() == QUIET_SECONDS
    assert not driver.wake.is_set()
    await put(world, ["another-replicas"], Lane.CONVERSATION)
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update message set not_before = clock_timestamp() + interval '400 ms'")
    assert await driver._round() < IDLE_SECONDS
    driver.rest(is_quiet=False)
    assert driver.wake.is_set()
    assert driver._sync is not None
    driver._sync.cancel()


class Resting:
    """What a fleet tells a driver."""

    is_quiet: bool | None = None

    def rest(self, *, is_quiet: bool) -> None:
        self.is_quiet = is_quiet


@pytest.mark.parametrize(
    ("change", "is_quiet"),
    [
        ("delete from message", True),
        ("update message set not_before = clock_timestamp() + interval '1 day'", False),
        ("update message set line = 'ccampaign', campaign_id = 'campaign'", False),
        ("update message set line = 'p'", True),
        ("update message set state = 'accepted'", True),
        ("delete from message; update sender set sync_wanted_at = clock_timestamp()", False),
        ("delete from message; update sender set templates_synced_at = null", False),
        (
            "delete from message;"
            " update sender set templates_synced_at = clock_timestamp() - interval '61 minutes', sync_wanted_at = null",
            False,
        ),
        ("delete from message; update sender set number_synced_at = null", False),
        (
            "delete from message; update sender set number_synced_at = clock_timestamp() - interval '61 minutes'",
            False,
        ),
        (
            "delete from message; update sender set account_numbers = 1000,"
            " number_synced_at = clock_timestamp() - interval '61 minutes'",
            True,
        ),
    ],
)
async def test_the_fleet_sees_for_whom_there_is_something_to_do(world: World, change: str, is_quiet: bool) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute(
            "update sender set templates_synced_at = clock_timestamp(), sync_wanted_at = now() - interval '1 s',"
            " number_synced_at = clock_timestamp()"
        )
        await connection.execute(change)
    fleet = Fleet(cast("Any", world), lambda _: world.driver)
    await fleet.look()
    resting, other = Resting(), Resting()
    ended = asyncio.get_running_loop().create_task(asyncio.sleep(0))
    fleet._drivers = {SENDER.sender_id: (cast("Driver", resting), ended), "99": (cast("Driver", other), ended)}
    await fleet.look_at_syncs()
    await fleet.look()
    assert (resting.is_quiet, other.is_quiet) == (is_quiet, True)
    await ended


async def told_of(world: World) -> Any:
    async with world.pool.pool.acquire(timeout=5) as connection:
        return await connection.fetchrow("select seen_at, rest from driving")


async def test_a_rest_is_told_to_all_replicas_and_what_stays_the_same_is_not(world: World) -> None:
    world.answers = [not_taken(MetaError(code=80007, title="Too many calls"), attempt=1, jitter=0.0)]
    fleet = Fleet(cast("Any", world), lambda _: world.driver)
    async with world.driving() as task:
        await until(lambda: world.driver._shares is not None and len(world.calls) == 1)
        fleet._drivers = {SENDER.sender_id: (world.driver, task)}
        await until(lambda: world.driver.resting() is not None)
        await fleet.tell()
        first = await told_of(world)
        rest = Rest.model_validate_json(first["rest"])
        assert (rest.limit, rest.meta and rest.meta.code) == (Shared.ACCOUNT, 80007)
        await fleet.tell()
        assert await told_of(world) == first
        world.driver._rests._known.clear()
        await fleet.tell()
        assert (await told_of(world))["rest"] is None


async def test_a_driver_that_finds_what_expired_in_a_rest_says_so(world: World) -> None:
    spent = MetaError(code=4, title="Too many calls")
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update sender set templates_synced_at = clock_timestamp()")
        fence = await queue_store.take_over(connection, SENDER.sender_id)
    assert fence is not None
    driver = world.driver
    driver._fence, driver._lease = fence, world.lease
    world.lease.renew(float("inf"))
    driver._shares = Shares.of("acme", SENDER.sender_id, "300", None, None)
    driver._rests.refused(driver._shares, spent, 60.0, time.monotonic() - 60.0)
    expires = {"send_at": utc_now() - timedelta(hours=1), "expires_at": utc_now() - timedelta(seconds=1)}
    async with world.pool.pool.acquire(timeout=5) as connection:
        late = funded(text_content(), purpose=Purpose.CONVERSATION).model_copy(update=expires)
        await connection.execute("update message set funded = $1", late.to_json())
    await driver._round()
    assert await world.states() == {"rejected"}
    async with world.pool.pool.acquire(timeout=5) as connection:
        assert await connection.fetchval("select outcome from message") == ReasonCode.RATE_LIMIT_EXCEEDED


async def test_what_expires_while_no_templates_can_be_read_says_so(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await sync_store.note_failure(connection, SENDER.sender_id, utc_now(), "Meta refused: No rights", 200)
        await connection.execute("update message set waiting_for = 'sync', expires_at = clock_timestamp()")
    await Timers(world, world.settings, utc_now).expire()  # type: ignore[arg-type]
    assert await world.states() == {"rejected"}
    async with world.pool.pool.acquire(timeout=5) as connection:
        outcomes = await connection.fetch("select distinct outcome from message")
    assert [row["outcome"] for row in outcomes] == [ReasonCode.SENDER_CREDENTIALS_REJECTED]


async def test_who_waits_for_a_place_is_not_forgotten_behind_a_fuller_lane(world: World) -> None:
    """There are places for all who wait for one, but the room of the round goes to a higher lane."""
    await put(world, [f"talk-{number}" for number in range(400)], Lane.CONVERSATION)
    await put(world, ["order-1", "order-2"], Lane.TRANSACTIONAL)
    order: list[str] = []

    async def send(_sender: str, _token: str, body: bytes, **_: Any) -> Outcome:
        order.append(json.loads(body)["biz_opaque_callback_data"].rpartition(":")[2])
        return Taken(f"wamid.{len(order)}")

    world.send = send  # type: ignore[assignment,method-assign]
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update sender set messaging_limit = 250")
        await connection.execute(
            "update message set waiting_for = 'tier', not_before = clock_timestamp() + interval '1 day'"
            " where message_id like 'order-%'"
        )
    async with world.driving():
        await until(lambda: {"order-1", "order-2"} <= set(order))
    assert len(order) < 400


async def test_who_waits_in_vain_for_a_place_is_told_how_many_there_are_and_when_one_is_free(world: World) -> None:
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update sender set messaging_limit = 1")
        await connection.execute("update message set waiting_for = 'tier', expires_at = clock_timestamp()")
        key = await store.tier_key_of(connection, SENDER.sender_id)
        (reached_at,) = await tier_store.add_reached(connection, key, ["+525500000001"], utc_now())
        await Timers(world, world.settings, utc_now).expire()  # type: ignore[arg-type]
        told = [one.value or b"" for one in (await unpublished(connection, older_than_seconds=-1, limit=10)).values()]
    (why,) = [one["reason"] for one in map(json.loads, told) if one.get("reason")]
    assert why["code"] == "MESSAGING_LIMIT_REACHED"
    room_at = datetime.fromisoformat(why["evidence"]["room_at"])
    assert (why["evidence"]["used"], why["evidence"]["limit"]) == (1, 1)
    assert timedelta() <= reached_at + timedelta(hours=24) - room_at < timedelta(seconds=1)


async def test_replies_go_while_what_a_business_begins_is_held(world: World) -> None:
    life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1), "needs_subscription": False}
    offers = [funded(message_id=f"offer-{number}").model_copy(update=life) for number in range(5)]
    async with world.pool.pool.acquire(timeout=5) as connection, connection.transaction():
        await queue_store.add_messages(
            connection,
            [
                NewMessage(Message(one, SENDER.sender_id, Lane.MARKETING, utc_now()), None, "waiting", None)
                for one in offers
            ],
        )
        refusal = Refusal(
            reason(ReasonCode.SENDER_NOT_AVAILABLE, "restricted"),
            "Meta",
            utc_now(),
            utc_now() + timedelta(days=1),
            is_account_event=True,
            stops=Stops.BUSINESS_INITIATED,
        )
        await holding.hold_account(connection, "300", ["acme"], HoldScope.RESTRICTION, refusal, utc_now())
    await put(world, ["told"], Lane.TRANSACTIONAL)
    async with world.driving():
        await until(lambda: len(world.calls) == 2)
        before = world.driver._rounds
        await until(lambda: world.driver._rounds >= before + 2)
        async with world.pool.pool.acquire(timeout=5) as connection:
            rows = await connection.fetch("select message_id, state, waiting_for from message order by message_id")
            states = {row["message_id"]: (row["state"], row["waiting_for"]) for row in rows}
    assert {name for name, (state, _) in states.items() if state == "accepted"} == {"m-1", "told"}
    # Nobody has walked over the campaign.
    assert {state for name, state in states.items() if name.startswith("offer")} == {("waiting", "turn")}


async def test_a_reply_that_is_refused_makes_the_hold_one_of_all(world: World) -> None:
    restricted = Refusal(
        reason(ReasonCode.SENDER_NOT_AVAILABLE, "restricted"),
        "Meta",
        utc_now(),
        utc_now() + timedelta(days=1),
        is_account_event=True,
        stops=Stops.BUSINESS_INITIATED,
    )
    async with world.pool.pool.acquire(timeout=5) as connection, connection.transaction():
        await holding.hold_account(connection, "300", ["acme"], HoldScope.RESTRICTION, restricted, utc_now())
        locked = replace(restricted, at=utc_now(), until=None, is_account_event=False, stops=Stops.ALL)
        await holding.hold_sender(connection, SENDER.sender_id, HoldScope.ACCOUNT, locked, utc_now(), token_tag=None)
        row = (await store.senders(connection, [SENDER.sender_id]))[SENDER.sender_id]
    assert row.sender.hold_stops is Stops.ALL


async def test_what_the_last_round_marked_by_a_lost_commit_is_given_back(world: World) -> None:
    async def stopped() -> bool:
        if await world.states() != {"in_flight"}:
            return False
        world.driver.stop()
        return True

    world.pool.breaks_after = stopped
    async with world.driving() as task:
        await asyncio.wait_for(asyncio.shield(task), 30)
    assert world.calls == []
    assert await world.states() == {"waiting"}


async def test_a_try_that_is_refused_for_its_own_fault_lets_the_next_one_try(world: World) -> None:
    await put(world, ["another"], Lane.CONVERSATION)
    world.answers = [REFUSED]
    at = utc_now() - timedelta(minutes=9)
    async with world.pool.pool.acquire(timeout=5) as connection, connection.transaction():
        refusal = Refusal(reason(ReasonCode.META_PAYMENT_ISSUE, "no"), ANSWER, at)
        await holding.hold_sender(connection, SENDER.sender_id, HoldScope.SENDER, refusal, at, token_tag=None)
    async with world.driving():
        # Before the lease of a try whose outcome stays open would be over.
        async with asyncio.timeout(20):
            while await world.states() != {"rejected", "accepted"}:
                await asyncio.sleep(0.05)
    assert len(world.calls) == 2


async def test_what_meta_took_is_awaited_as_long_as_its_template_lives(world: World) -> None:
    life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1), "needs_subscription": False}
    one = funded(purpose=Purpose.TRANSACTIONAL, message_id="t-1").model_copy(update=life)
    template = replace(TEMPLATE, category="UTILITY", said_at=utc_now(), ttl_seconds=30)
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("delete from message")
        await connection.execute("update sender set templates_synced_at = clock_timestamp()")
        await store.save_templates(connection, "300", [TemplateRow("300", template, "POSITIONAL", None, utc_now(), 1)])
        message = Message(one, SENDER.sender_id, Lane.TRANSACTIONAL, utc_now())
        await queue_store.add_messages(connection, [NewMessage(message, None, "waiting", None)])
        async with world.driving():
            await world.reach("accepted")
        (told,) = (await unpublished(connection, older_than_seconds=-1, limit=10)).values()
    accepted = StatusUpdated.model_validate_json(told.value or b"")
    assert accepted.receipt_deadline == accepted.occurred_at + timedelta(seconds=30) + RECEIPT_SLACK
