"""Holds on real PostgreSQL: exactly the senders concerned, told once, one message tries, lifted as a whole."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import dispatcher
import pytest
from cryptography.fernet import Fernet
from dispatcher import hold_store, holding, queue_store, store
from dispatcher.answers import HoldScope, NotTaken, Outcome, Taken, read_answer
from dispatcher.api import Api, PutSender
from dispatcher.clock import utc_now
from dispatcher.decide import Lane, Message, Stops, Waiting, spares_replies, stands_still
from dispatcher.driver import Driver
from dispatcher.holds import ANSWER, Refusal
from dispatcher.lease import Lease
from dispatcher.limits import Budget
from dispatcher.queue_store import NewMessage
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.store import NewSender
from dispatcher.tokens import TokenVault, token_tag
from dispatcher_cases import PHONE, funded, text_content
from pydantic import SecretStr
from sendwhy.access import Role, Token
from sendwhy.events import MetaError, Purpose, SenderReported, Status, StatusUpdated, event_id_of, reason
from sendwhy.http import Caller
from sendwhy.metrics import Metrics
from sendwhy.postgres import Connection, add_to_outbox, connect_pool, migrate, unpublished
from sendwhy.reasons import ReasonCode, Service, reason_for_meta
from sendwhy.stage import Record
from sendwhy.tenancy import within
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
MIGRATIONS = Path(dispatcher.__file__).parent / "migrations"
KEY = SecretStr(Fernet.generate_key().decode())
VAULT = TokenVault(KEY)
ONE, TWO, OTHER, FOREIGN = "100000000000001", "100000000000002", "100000000000003", "900000000000001"
# (workspace, account, portfolio, token); FOREIGN is another workspace that names the same account and portfolio.
NUMBERS = {
    ONE: ("acme", "300", "200", "shared"),
    TWO: ("acme", "300", "200", "own"),
    OTHER: ("acme", "301", "200", "shared"),
    FOREIGN: ("evil", "300", "200", "shared"),
}
PAYMENT = reason(ReasonCode.META_PAYMENT_ISSUE, "Meta says: no card", meta=MetaError(code=131042))
OPERATOR = Caller(Token("ana", Role.ADMIN, "acme"), "acme")


class Company:
    """Four numbers on a database, and a Meta that answers as told; afterwards it takes everything."""

    service = Service.DISPATCHER

    def __init__(self, url: str, pool: asyncpg.Pool) -> None:
        self.metrics = Metrics(Service.DISPATCHER)
        self.pool = pool
        self.settings = Settings(
            kafka_bootstrap_servers="none",
            database_url=SecretStr(url),
            api_tokens=SecretStr(""),
            token_encryption_key=KEY,
            privacy_key=SecretStr("a key of tests only"),
        )
        self.calls: list[str] = []
        self.answer: Callable[[], Any] = lambda: Taken(f"wamid.{len(self.calls)}")
        self.stages = Stages(self, self.settings, self, utc_now)  # type: ignore[arg-type]
        self.api = Api(self, self.settings, self, VAULT, self, utc_now)  # type: ignore[arg-type]

    def within(self, workspace: str, *, wait_seconds: float) -> AbstractAsyncContextManager[Connection]:
        return within(self.pool, None, workspace, wait_seconds=wait_seconds)

    def publish_soon(self) -> None: ...

    def publish_committed(self, _events: Any) -> None: ...

    def wake(self, sender_id: str) -> None: ...

    async def send(self, sender_id: str, _token: Any, _body: bytes, *, attempt: int, **_: Any) -> Outcome:
        self.calls.append(sender_id)
        told = self.answer()
        outcome: Outcome = await told if asyncio.iscoroutine(told) else told
        return outcome

    async def number(self, *_: Any) -> Any:
        """A sync never ends, a proof at once."""
        if asyncio.current_task() in self.syncing():
            await asyncio.Event().wait()

    @staticmethod
    def syncing() -> set[Any]:
        return {task for task in asyncio.all_tasks() if "_synchronize" in str(task.get_coro())}

    @asynccontextmanager
    async def database(self) -> AsyncIterator[Connection]:
        async with self.pool.acquire(timeout=10) as connection, connection.transaction():
            yield connection

    async def held(self) -> dict[str, str]:
        """The cause by sender."""
        rows = await self.pool.fetch("select sender_id, hold from sender where hold is not null")
        return {row["sender_id"]: json.loads(row["hold"])["code"] for row in rows}

    async def told(self, topic: Topic) -> list[dict[str, Any]]:
        async with self.database() as connection:
            records = (await unpublished(connection, older_than_seconds=-1, limit=1000)).values()
        return [json.loads(one.value or b"") for one in records if one.topic is topic]

    async def told_scopes(self) -> list[tuple[str, str, str]]:
        events = [one for one in await self.told(Topic.SEND_HELD) if one["scope"]["kind"] != "message"]
        return sorted((one["workspace_id"], one["scope"]["kind"], one["scope"]["id"]) for one in events)

    async def refuse(self, sender_id: str, scope: HoldScope, at: datetime | None = None, **rest: Any) -> None:
        told = Refusal(PAYMENT, ANSWER, at or utc_now())
        async with self.database() as connection:
            announcements = await holding.hold_sender(
                connection, sender_id, scope, told, utc_now(), token_tag=rest.get("tag")
            )
            if announcements:
                await add_to_outbox(connection, announcements)

    async def due(self, scope: HoldScope) -> None:
        """Time passes: the next message may try."""
        await self.pool.execute(
            "update hold set probe_at = clock_timestamp() - interval '1 second' where scope = $1", scope.value
        )
        for workspace in ("acme", "evil"):
            async with self.database() as connection:
                await store.reflect_holds(connection, workspace)

    async def queue(self, sender_id: str, count: int) -> None:
        life = {"send_at": utc_now(), "expires_at": utc_now() + timedelta(hours=1)}
        rows = []
        for number in range(count):
            talk = funded(text_content(), purpose=Purpose.CONVERSATION, message_id=f"{sender_id}-{number}")
            talk = talk.model_copy(update=life)
            message = Message(talk, sender_id, Lane.CONVERSATION, utc_now())
            rows.append(NewMessage(message, None, "waiting", None))
        async with self.database() as connection:
            await connection.execute(
                "insert into conversation_window values ($1, $2, clock_timestamp())", sender_id, PHONE
            )
            await queue_store.add_messages(connection, rows)

    async def states(self) -> set[tuple[str, str]]:
        rows = await self.pool.fetch(
            f"select m.state, {queue_store.WAITS_FOR} as waiting_for from message m"
            " join sender s on s.sender_id = m.sender_id left join campaign c on c.campaign_id = m.campaign_id",
            utc_now(),
        )
        return {(row["state"], row["waiting_for"] if row["state"] == "waiting" else "") for row in rows}

    async def reach(self, *states: tuple[str, str]) -> None:
        async with asyncio.timeout(30):
            while await self.states() != set(states):
                await asyncio.sleep(0.02)

    async def called(self, times: int) -> None:
        """A message is in flight in the database a moment before its call is out."""
        async with asyncio.timeout(30):
            while len(self.calls) < times:
                await asyncio.sleep(0.02)

    @asynccontextmanager
    async def driving(self, *sender_ids: str) -> AsyncIterator[None]:
        drivers = [Driver(one, self, self.settings, self, VAULT, Budget(100)) for one in sender_ids]  # type: ignore[arg-type]
        lease = Lease()
        lease.renew(float("inf"))
        async with self.database() as connection:
            fences = [await queue_store.take_over(connection, one) or 0 for one in sender_ids]
        tasks = [asyncio.create_task(driver.run(fence, lease)) for driver, fence in zip(drivers, fences, strict=True)]
        yield
        for driver in drivers:
            driver.stop()
        await asyncio.gather(*tasks)


@pytest.fixture
async def company(migrated_database: str) -> AsyncIterator[Company]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        for sender_id, (workspace, waba, portfolio, token) in NUMBERS.items():
            sealed = VAULT.seal(workspace, sender_id, token)
            new = NewSender(sender_id, workspace, waba, portfolio, None, sender_id == ONE, sealed, token_tag(token))
            await store.put_sender(connection, new, utc_now())
    yield Company(migrated_database, pool)
    await pool.close()


SCOPES = [
    (HoldScope.SENDER, {ONE}, [("sender", ONE)]),
    (HoldScope.TOKEN, {ONE, OTHER}, [("sender", ONE), ("sender", OTHER)]),
    (HoldScope.ACCOUNT, {ONE, TWO}, [("account", "300")]),
    (HoldScope.PORTFOLIO, {ONE, TWO, OTHER}, [("account", "300"), ("account", "301")]),
]


@pytest.mark.parametrize(("scope", "concerned", "events"), SCOPES, ids=[case[0] for case in SCOPES])
async def test_exactly_those_concerned_are_held_told_once_and_lifted_together(
    company: Company, scope: HoldScope, concerned: set[str], events: list[tuple[str, str]]
) -> None:
    for sender_id in sorted(concerned):
        await company.refuse(sender_id if scope is not HoldScope.SENDER else ONE, scope)
    assert await company.held() == dict.fromkeys(concerned, "META_PAYMENT_ISSUE")
    assert await company.told_scopes() == [("acme", *event) for event in events]
    (first, *_) = await company.told(Topic.SEND_HELD)
    assert first["until"] is None
    updates = await company.told(Topic.SENDER_UPDATED)
    assert {one["sender_id"] for one in updates} == concerned
    assert all(one["hold"]["code"] == "META_PAYMENT_ISSUE" for one in updates)
    response = await company.api.resume(None, OPERATOR, max(concerned))  # type: ignore[arg-type]
    assert json.loads(bytes(response.body))["hold"] is None
    assert await company.held() == {}
    latest = {one["sender_id"]: one for one in await company.told(Topic.SENDER_UPDATED)}
    assert {one["hold"] for one in latest.values()} == {None}


async def test_an_operator_sees_cause_since_and_next_try(company: Company) -> None:
    await company.refuse(ONE, HoldScope.ACCOUNT)
    answer = await company.api.get_sender(OPERATOR, TWO)
    assert answer.hold is not None
    assert answer.hold["evidence"] == {"held": "account 300", "said_by": ANSWER}
    assert answer.hold_since is not None
    assert answer.hold_until is not None
    assert answer.hold_until - answer.hold_since >= timedelta(minutes=5)


async def test_numbers_are_listed_whole_or_page_by_page(company: Company) -> None:
    whole = await company.api.list_senders(OPERATOR)
    assert isinstance(whole, list)
    assert [one.sender_id for one in whole] == sorted({ONE, TWO, OTHER})
    pages, cursor = [], None
    for _ in range(9):
        page = await company.api.list_senders(OPERATOR, cursor=cursor, limit=2)
        assert not isinstance(page, list)
        pages.append(page.items)
        if (cursor := page.next_cursor) is None:
            break
    assert pages == [whole[:2], whole[2:]]


def put_body(token: str, waba: str = "300") -> PutSender:
    return PutSender(access_token=token, waba_id=waba, portfolio_id="200")


async def test_a_new_token_ends_a_tokens_hold_and_no_payments(company: Company) -> None:
    await company.refuse(ONE, HoldScope.TOKEN)
    await company.refuse(TWO, HoldScope.ACCOUNT)
    await company.api.put_sender(None, OPERATOR, ONE, put_body("new"))  # type: ignore[arg-type]
    # ONE waits for its account only; OTHER still uses the token that was refused.
    async with company.database() as connection:
        assert [one.scope for one in await hold_store.of_sender(connection, ONE, tuple(HoldScope))] == ["account"]
        assert [one.scope for one in await hold_store.of_sender(connection, OTHER, tuple(HoldScope))] == ["token"]
    await company.api.put_sender(None, OPERATOR, OTHER, put_body("shared", "301"))  # type: ignore[arg-type]
    assert await company.held() == dict.fromkeys((ONE, TWO), "META_PAYMENT_ISSUE")


async def test_a_number_that_joins_a_held_account_is_held_and_one_that_leaves_is_not(company: Company) -> None:
    await company.refuse(ONE, HoldScope.ACCOUNT)
    answer = await company.api.put_sender(None, OPERATOR, OTHER, put_body("own", "300"))  # type: ignore[arg-type]
    assert json.loads(bytes(answer.body))["hold"]["code"] == "META_PAYMENT_ISSUE"
    await company.api.put_sender(None, OPERATOR, TWO, put_body("own", "301"))  # type: ignore[arg-type]
    assert set(await company.held()) == {ONE, OTHER}


async def test_the_refusal_of_a_token_that_was_replaced_holds_nobody(company: Company) -> None:
    await company.refuse(ONE, HoldScope.TOKEN, tag=token_tag("a token of yesterday"))
    assert await company.held() == {}
    await company.refuse(ONE, HoldScope.TOKEN, tag=token_tag("shared"))
    assert set(await company.held()) == {ONE, OTHER}


async def test_over_all_senders_of_a_hold_one_message_tries(company: Company) -> None:
    await company.refuse(ONE, HoldScope.ACCOUNT)
    now, later = utc_now(), utc_now() + timedelta(minutes=1)
    async with company.database() as connection:
        assert not await hold_store.take_probe(connection, ONE, now, later)
    await company.due(HoldScope.ACCOUNT)
    async with company.database() as connection:
        assert await hold_store.take_probe(connection, ONE, now, later)
        async with company.database() as other:
            # Neither waits for the first nor tries beside it.
            assert not await hold_store.take_probe(other, TWO, now, later)
    async with company.database() as connection:
        assert not await hold_store.take_probe(connection, TWO, now, later)
        await hold_store.give_back_probe(connection, ONE)
        assert await hold_store.take_probe(connection, TWO, now, later)
        assert await hold_store.take_probe(connection, ONE, later, later + timedelta(minutes=1))


async def test_of_two_holds_both_must_be_due_before_one_message_tries(company: Company) -> None:
    await company.refuse(ONE, HoldScope.ACCOUNT)
    await company.refuse(ONE, HoldScope.SENDER)
    await company.due(HoldScope.ACCOUNT)
    async with company.database() as connection:
        assert not await hold_store.take_probe(connection, ONE, utc_now(), utc_now())
        assert await hold_store.take_probe(connection, TWO, utc_now(), utc_now())


def refused(code: int) -> NotTaken:
    raw = json.dumps({"error": {"message": f"(#{code}) no", "code": code}}).encode()
    outcome = read_answer(400, raw, attempt=1, jitter=0)
    assert isinstance(outcome, NotTaken)
    return outcome


async def test_a_campaign_of_two_numbers_waits_for_a_payment_and_goes_on_after_one_try(company: Company) -> None:
    await company.queue(ONE, 3)
    await company.queue(TWO, 3)
    company.answer = lambda: refused(131042)
    async with company.driving(ONE, TWO):
        await company.reach(("waiting", "hold"))
        refusals = len(company.calls)
        assert refusals <= 6
        # The first try finds the same: not told again, and the next one is later.
        await company.due(HoldScope.ACCOUNT)
        await company.pool.execute("update message set not_before = clock_timestamp()")
        async with asyncio.timeout(30):
            while not await company.pool.fetchval("select strikes from hold"):
                await asyncio.sleep(0.02)
        assert len(company.calls) == refusals + 1
        # The second one is out, and nothing goes beside it.
        answered = asyncio.Event()

        async def wait() -> Outcome:
            await answered.wait()
            return Taken(f"wamid.{len(company.calls)}")

        company.answer = wait
        await company.reach(("waiting", "hold"))
        await company.due(HoldScope.ACCOUNT)
        await company.pool.execute("update message set not_before = clock_timestamp()")
        await company.reach(("in_flight", ""), ("waiting", "hold"))
        await company.called(refusals + 2)
        assert await company.states() == {("in_flight", ""), ("waiting", "hold")}
        assert len(company.calls) == refusals + 2
        answered.set()
        await company.reach(("accepted", ""))
    assert await company.held() == {}
    assert await company.told_scopes() == [("acme", "account", "300")]


async def test_a_token_that_is_replaced_while_calls_are_out_goes_on_with_the_new_one(company: Company) -> None:
    await company.queue(ONE, 2)
    replaced = asyncio.Event()

    async def expire() -> Outcome:
        await replaced.wait()
        return refused(190)

    company.answer = expire
    async with company.driving(ONE):
        await company.called(2)
        await company.api.put_sender(None, OPERATOR, ONE, put_body("new"))  # type: ignore[arg-type]
        company.answer = lambda: Taken(f"wamid.{len(company.calls)}")
        replaced.set()
        await company.reach(("accepted", ""))
    assert len(company.calls) == 4
    assert await company.told_scopes() == []


async def test_a_window_that_meta_denies_against_our_books_is_tried_once_more(company: Company) -> None:
    await company.queue(ONE, 1)
    company.answer = lambda: refused(131047)
    async with company.driving(ONE):
        await company.reach(("waiting", "window"))
        assert len(company.calls) == 1
        await company.pool.execute("update message set not_before = clock_timestamp()")
        await company.reach(("rejected", ""))
    assert len(company.calls) == 2
    (rejected,) = await company.told(Topic.SEND_REJECTED)
    assert rejected["reason"]["code"] == "OUTSIDE_24_HOUR_WINDOW"
    assert rejected["reason"]["meta"]["code"] == 131047
    opened = await company.pool.fetchval("select opened_at from conversation_window")
    assert datetime.fromisoformat(rejected["reason"]["evidence"]["closed_at"]) == opened.replace(
        microsecond=0
    ) + timedelta(hours=24)


def failure(sender_id: str, code: int, at: datetime, name: str = "m-1") -> Record[Any]:
    why = reason(reason_for_meta(code), "so", meta=MetaError(code=code))
    event = StatusUpdated(
        event_id=event_id_of(name, "failed"),
        occurred_at=at,
        observed_at=at,
        message_id=name,
        workspace_id=NUMBERS[sender_id][0],
        sender_id=sender_id,
        provider_message_id=f"wamid.{name}",
        service=Service.WEBHOOK_INGEST,
        status=Status.FAILED,
        reason=why,
    )
    return Record(event, Topic.STATUS_UPDATED, 0, 0, at, None, None, ())


BY_WEBHOOK = [
    (131042, {ONE, TWO}),
    (131031, {ONE, TWO}),
    (131048, {ONE}),
    (131064, {ONE, TWO, OTHER}),
    (190, {ONE, OTHER}),
    (131026, set[str]()),
    (131047, set[str]()),
    (999_999, set[str]()),
]


@pytest.mark.parametrize(("code", "concerned"), BY_WEBHOOK, ids=[str(case[0]) for case in BY_WEBHOOK])
async def test_a_failure_that_a_webhook_tells_takes_the_same_table(
    company: Company, code: int, concerned: set[str]
) -> None:
    records = [failure(ONE, code, utc_now(), f"m-{number}") for number in range(5)]
    async with company.database() as connection:
        await company.stages.on_statuses(connection, records)
    assert set(await company.held()) == concerned


def receipt(message_id: str, at: datetime, status: Status = Status.SENT) -> Record[Any]:
    told = failure(ONE, 0, at, message_id)
    return replace(told, event=told.event.model_copy(update={"status": status, "reason": None}))


async def test_what_a_webhook_told_is_over_once_the_receipt_of_a_try_came_and_not_by_its_200(company: Company) -> None:
    """Meta takes what it can't charge, and tells by webhook that it failed: each try that lifted the hold by its 200
    alone would be followed by a campaign that fails."""
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [failure(ONE, 131042, utc_now())])
    await company.stages.look_at_holds()
    await company.queue(ONE, 3)
    await company.due(HoldScope.ACCOUNT)
    async with company.driving(ONE):
        await company.reach(("accepted", ""), ("waiting", "hold"))
        assert set(await company.held()) == {ONE, TWO}
        assert len(company.calls) == 1
        tried = await company.pool.fetchval("select message_id from message where state = 'accepted'")
        async with company.database() as connection:
            await company.stages.on_statuses(connection, [receipt(tried, utc_now())])
        assert await company.held() == {}
        await company.reach(("accepted", ""))


async def test_a_try_without_a_receipt_is_repeated_later_and_later(company: Company) -> None:
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [failure(ONE, 131042, utc_now())])
    await company.queue(ONE, 3)
    async with company.driving(ONE):
        for tries in (1, 2):
            await company.due(HoldScope.ACCOUNT)
            await company.called(tries)
            await company.reach(("accepted", ""), ("waiting", "hold"))
            async with asyncio.timeout(30):
                while await company.pool.fetchval("select strikes from hold") != tries:
                    await asyncio.sleep(0.02)
    assert len(company.calls) == 2
    delay = await company.pool.fetchval("select probe_at - clock_timestamp() from hold")
    assert timedelta(minutes=19) < delay <= timedelta(minutes=20)


@pytest.mark.parametrize("status", [Status.SENT, Status.DELIVERED])
async def test_receipts_of_what_was_called_before_the_hold_end_nothing(company: Company, status: Status) -> None:
    await company.queue(ONE, 1)
    await company.pool.execute("update message set state = 'accepted', in_flight_at = clock_timestamp()")
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [failure(ONE, 131042, utc_now())])
    await company.stages.look_at_holds()
    late = receipt(f"{ONE}-0", utc_now(), status)
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [late])
    await company.pool.execute("update hold set strikes = 1, probe_at = clock_timestamp() + interval '20 minutes'")
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [late])
    assert set(await company.held()) == {ONE, TWO}


@pytest.mark.parametrize("is_held", [False, True])
async def test_statuses_of_several_workspaces_take_these_in_one_order(company: Company, is_held: bool) -> None:
    """Whatever their numbers: else two replicas that hold, or free, numbers of both could wait for each other."""
    evils_first = NewSender("1", "evil", "301", "201", None, False, VAULT.seal("evil", "1", "own"), None)
    foreign, own = failure(FOREIGN, 131048, utc_now()), failure(ONE, 131048, utc_now())
    if is_held:
        async with company.database() as connection:
            await company.stages.on_statuses(connection, [own])
        await company.stages.look_at_holds()
        await company.due(HoldScope.SENDER)
        await company.queue(ONE, 1)
        await company.pool.execute("update message set state = 'accepted', in_flight_at = clock_timestamp()")
        own = receipt(f"{ONE}-0", utc_now())
    foreign = replace(foreign, event=foreign.event.model_copy(update={"sender_id": "1"}))

    waits = (
        "select exists (select from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock')"
    )

    async def tell() -> None:
        async with company.database() as connection:
            await company.stages.on_statuses(connection, [foreign, own])

    async with company.database() as connection:
        await store.put_sender(connection, evils_first, utc_now())
    async with company.database() as connection:
        await store.lock_workspace(connection, "acme")
        telling = asyncio.create_task(tell())
        async with asyncio.timeout(30):
            while not await company.pool.fetchval(waits):
                await asyncio.sleep(0.02)
        async with company.database() as another:
            await another.execute("select from sender where workspace_id = 'evil' for update nowait")
    await telling
    assert set(await company.held()) == ({"1"} if is_held else {"1", ONE})


async def test_late_webhooks_of_what_is_repaired_hold_nobody(company: Company) -> None:
    before = utc_now()
    await company.refuse(ONE, HoldScope.ACCOUNT)
    await company.api.resume(None, OPERATOR, TWO)  # type: ignore[arg-type]
    async with company.database() as connection:
        await company.stages.on_statuses(connection, [failure(ONE, 131042, before)])
    assert await company.held() == {}


def account_event(field: str, raw: dict[str, Any], at: datetime | None = None) -> Record[Any]:
    event = SenderReported(
        event_id=event_id_of(json.dumps(raw), "reported"),
        occurred_at=at or utc_now(),
        waba_id="300",
        field=field,
        raw=raw,
    )
    return Record(event, Topic.SENDER_REPORTED, 0, 0, utc_now(), None, None, ())


def restricted(until: datetime, at: datetime | None = None, what: str = "BIZ_INITIATED") -> Record[Any]:
    row = {"restriction_type": f"RESTRICTED_{what}_MESSAGING", "expiration": int(until.timestamp())}
    return account_event("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": [row]}, at)


DISABLED = {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "DISABLE"}}


LIFTING: list[tuple[str, dict[str, Any]]] = [
    ("account_update", {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "REINSTATE"}}),
    ("account_update", {"event": "ACCOUNT_RECONNECTED"}),
    ("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": []}),
    ("account_review_update", {"decision": "APPROVED"}),
]


@pytest.mark.parametrize(("field", "raw"), LIFTING, ids=["reinstated", "reconnected", "ended", "reviewed"])
async def test_a_restriction_holds_the_account_until_its_end_or_metas_word(
    company: Company, field: str, raw: dict[str, Any]
) -> None:
    until = utc_now() + timedelta(days=3)

    async def hear(record: Record[Any]) -> None:
        async with company.database() as connection:
            await company.stages.on_sender_reports(connection, [record])

    old = account_event(field, raw, utc_now() - timedelta(days=1))
    await hear(restricted(until))
    await hear(restricted(until))
    await hear(old)
    await hear(account_event("account_review_update", {"decision": "PENDING"}))
    # Meta signed it, so it is true in every workspace.
    assert set(await company.held()) == {ONE, TWO, FOREIGN}
    assert await company.told_scopes() == [("acme", "account", "300"), ("evil", "account", "300")]
    (event, _) = await company.told(Topic.SEND_HELD)
    assert datetime.fromisoformat(event["until"]) == until.replace(microsecond=0)
    await company.refuse(ONE, HoldScope.SENDER)
    await hear(account_event(field, raw))
    assert set(await company.held()) == {ONE}


async def test_metas_word_on_an_account_pays_no_bill(company: Company) -> None:
    await company.refuse(ONE, HoldScope.ACCOUNT)
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [account_event(*LIFTING[0])])
    assert set(await company.held()) == {ONE, TWO}


async def test_a_restriction_ends_no_other_cause_of_its_account(company: Company) -> None:
    """A payment's hold and a ban outlive it; each is lifted by what ends it."""

    async def hear(*records: Record[Any]) -> None:
        async with company.database() as connection:
            await company.stages.on_sender_reports(connection, records)

    now = utc_now()
    await company.refuse(ONE, HoldScope.ACCOUNT)
    await hear(restricted(now + timedelta(hours=1)))
    async with company.database() as connection:
        (row,) = (await store.senders(connection, [ONE])).values()
    # A restriction of what a business begins spares replies; the payment's hold doesn't.
    assert (row.sender.hold_stops, (await company.held())[ONE]) == (Stops.ALL, "META_PAYMENT_ISSUE")
    await hear(account_event(*LIFTING[2]))
    assert await company.held() == dict.fromkeys((ONE, TWO), "META_PAYMENT_ISSUE")

    await company.api.resume(None, OPERATOR, ONE)  # type: ignore[arg-type]
    await hear(account_event("account_update", DISABLED), restricted(utc_now() + timedelta(hours=1), what="CUSTOMER"))
    async with company.database() as connection:
        (row,) = (await store.senders(connection, [ONE])).values()
    assert (row.sender.hold_until, row.sender.hold_stops) == (None, Stops.ALL)
    assert {scope for _, _, scope in await company.told_scopes()} == {"300"}
    await hear(account_event(*LIFTING[0]))
    assert await company.held() == {}


async def test_what_meta_repeats_late_neither_ends_nor_shortens_a_later_restriction(company: Company) -> None:
    now = utc_now()
    newer = restricted(now + timedelta(days=5), now - timedelta(days=2))
    older = restricted(now - timedelta(days=1), now - timedelta(days=4))
    lift = account_event(*LIFTING[0], now - timedelta(days=3))
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [older, newer, older, lift])
        (row,) = (await store.senders(connection, [ONE])).values()
    assert row.sender.hold_until == (now + timedelta(days=5)).replace(microsecond=0)


@pytest.mark.parametrize(("field", "raw"), LIFTING, ids=["reinstated", "reconnected", "ended", "reviewed"])
async def test_a_lift_that_comes_before_its_restriction_ends_it(
    company: Company, field: str, raw: dict[str, Any]
) -> None:
    minute = timedelta(minutes=1)
    lifted_at = (utc_now() - timedelta(hours=1)).replace(microsecond=0)

    async def hear(*records: Record[Any]) -> set[str]:
        async with company.database() as connection:
            await company.stages.on_sender_reports(connection, records)
        return set(await company.held())

    await hear(account_event(field, raw, lifted_at), account_event(field, raw, lifted_at - 9 * minute))
    ban = account_event("account_update", DISABLED, lifted_at - minute)
    assert await hear(ban, restricted(utc_now() + timedelta(days=3), lifted_at)) == set()
    assert await company.told(Topic.SEND_HELD) == []
    assert await hear(restricted(utc_now() + timedelta(days=3), lifted_at + minute)) == {ONE, TWO, FOREIGN}


@pytest.mark.parametrize(
    ("code", "seconds", "concerned"), [(131031, 0, set[str]()), (131031, 1, {ONE, TWO}), (131042, -1, {ONE, TWO})]
)
async def test_a_lift_ends_what_late_webhooks_on_messages_tell_of_before_but_no_bill(
    company: Company, code: int, seconds: int, concerned: set[str]
) -> None:
    lifted_at = utc_now() - timedelta(hours=1)
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [account_event(*LIFTING[0], lifted_at)])
        late = failure(ONE, code, lifted_at + timedelta(seconds=seconds))
        await company.stages.on_statuses(connection, [late])
    assert set(await company.held()) == concerned


async def test_a_reply_may_try_while_a_restriction_of_what_a_business_begins_stands(company: Company) -> None:
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [restricted(utc_now() + timedelta(days=3))])
        now = utc_now()
        assert not await hold_store.take_probe(connection, ONE, now, now)
    await company.refuse(ONE, HoldScope.ACCOUNT)
    await company.due(HoldScope.ACCOUNT)
    async with company.database() as connection:
        assert await hold_store.take_probe(connection, ONE, utc_now(), utc_now())


async def test_replies_wait_for_the_end_of_what_stops_them_alone(company: Company) -> None:
    now = utc_now()
    ends = {"BIZ": now + timedelta(days=30), "CUSTOMER": now + timedelta(hours=1)}
    rows = [
        {"restriction_type": f"RESTRICTED_{who}_INITIATED_MESSAGING", "expiration": int(end.timestamp())}
        for who, end in ends.items()
    ]
    event = account_event("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": rows})
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [event])
        (row,) = (await store.senders(connection, [ONE])).values()
    later = now + timedelta(hours=1)
    assert (stands_still(row.sender, now), spares_replies(row.sender, now)) == (True, False)
    assert (stands_still(row.sender, later), spares_replies(row.sender, later)) == (False, True)
    # Another's hold that stops all shows, and no reply tries it before replies may go.
    await company.refuse(ONE, HoldScope.ACCOUNT)
    assert (await company.held())[ONE] == "META_PAYMENT_ISSUE"
    await company.due(HoldScope.ACCOUNT)
    async with company.database() as connection:
        assert not await hold_store.take_probe(connection, ONE, utc_now(), utc_now())
        assert await hold_store.take_probe(connection, ONE, later, later)


async def test_answers_to_what_an_event_stopped_are_no_news(company: Company) -> None:
    async with company.database() as connection:
        await company.stages.on_sender_reports(connection, [account_event("account_update", DISABLED)])
        told = Refusal(reason(ReasonCode.SENDER_NOT_AVAILABLE, "locked"), ANSWER, utc_now())
        held = await holding.hold_sender(connection, ONE, HoldScope.ACCOUNT, told, utc_now(), token_tag=None)
        assert held == []
        assert [one.scope for one in await hold_store.of_sender(connection, ONE, tuple(HoldScope))] == [HoldScope.BAN]


async def test_what_expires_in_an_accounts_hold_has_its_reason(company: Company) -> None:
    await company.queue(TWO, 1)
    await company.refuse(ONE, HoldScope.ACCOUNT)
    async with company.driving(TWO):
        await company.reach(("waiting", Waiting.HOLD))
    async with company.database() as connection:
        ((message, hold, _),) = await queue_store.lock_expired(connection, utc_now() + timedelta(hours=2), 10)
    assert message.waiting_for is Waiting.HOLD
    assert hold is not None
    assert hold.code is ReasonCode.META_PAYMENT_ISSUE
    assert company.calls == []


async def test_what_was_held_before_the_table_came_stays_held(fresh_database: str, tmp_path: Path) -> None:
    before = [path for path in sorted(MIGRATIONS.glob("*.sql")) if path.name < "0008"]
    for path in before:
        (tmp_path / path.name).write_text(path.read_text())
    await migrate(fresh_database, tmp_path)
    connection = await asyncpg.connect(fresh_database)
    await connection.execute(
        "insert into sender (sender_id, workspace_id, waba_id, portfolio_id, token, hold, hold_since, hold_until,"
        " hold_strikes) values ($1, 'acme', '300', '200', '', $2, $3, $3, 2)",
        ONE,
        PAYMENT.model_dump_json().encode(),
        utc_now(),
    )
    await migrate(fresh_database, MIGRATIONS)
    row = (await store.senders(connection, [ONE]))[ONE]
    assert await store.reflect_holds(connection, "acme") == []
    assert await hold_store.take_probe(connection, ONE, utc_now(), utc_now())
    await holding.tried(connection, row, tuple(HoldScope), utc_now())
    assert (await store.senders(connection, [ONE]))[ONE].sender.hold is None
    await connection.close()
