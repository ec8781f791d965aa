"""The queue on real PostgreSQL: what waits costs nobody anything; lanes, lines, pauses, cancels, throttles."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet
from dispatcher import claims, queue_store, store, sweeps, sync_store
from dispatcher.campaign_api import read_campaign
from dispatcher.claims import LANES, OpenLines
from dispatcher.clock import utc_now
from dispatcher.decide import Lane, Message, Waiting, expired
from dispatcher.limits import Throttle, throttle_take
from dispatcher.pacing import Pacing
from dispatcher.queue_api import QueueApi
from dispatcher.queue_store import NewMessage, NewWait, Result
from dispatcher.rests import Rest, Shared
from dispatcher.settings import Settings
from dispatcher.stages import CANCEL_STEPS_AT_ONCE
from dispatcher.store import Key
from dispatcher.sweeps import Kind, Sweep, Sweeps
from dispatcher_cases import SENDER, funded
from dispatcher_desk import ACME, Desk, open_lines, record
from fastapi import FastAPI
from pydantic import SecretStr
from sendwhy import problems
from sendwhy.events import MetaError, SendCancelled, SendHeld, reason
from sendwhy.postgres import mark_published, unpublished
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Topic, outgoing

pytestmark = pytest.mark.postgres
CAMPAIGN = ("acme", "black-friday")
LINE = "cblack-friday"
HOUR = timedelta(hours=1)


class OnePool:
    """A pool of the one connection that a test looks through."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    @asynccontextmanager
    async def acquire(self, **_bounds: float) -> AsyncIterator[Any]:
        yield self.connection


class Queue(Desk):
    """A desk with the sweeps, and messages of any lane and time."""

    def __init__(self, connection: asyncpg.Connection) -> None:
        super().__init__(connection)
        self.pool = OnePool(connection)
        self.now = utc_now()
        self.sweeps = Sweeps(self, self.stages.cancel, lambda: self.now)  # type: ignore[arg-type]

    async def put(self, *ids: str, lane: Lane = Lane.MARKETING, at: datetime | None = None, **changes: Any) -> None:
        sender_id = changes.pop("sender_id", SENDER.sender_id)
        rows = []
        for message_id in ids:
            life = {"send_at": at or self.now, "expires_at": self.now + 48 * HOUR} | changes
            one = funded(message_id=message_id).model_copy(update=life)
            rows.append(NewMessage(Message(one, sender_id, lane, self.now), "black-friday", "waiting", None))
        await queue_store.add_messages(self.connection, rows)

    async def look(self, limit: int = 100, lanes: tuple[Lane, ...] = LANES) -> list[str]:
        """What its driver would look at now, in its order."""
        lines = await open_lines(self.connection, SENDER.sender_id, self.now, limit)
        due = await claims.lock_due(self.connection, SENDER.sender_id, self.now, limit=limit, lanes=lanes, lines=lines)
        return [one.message.funded.message_id for one in due]

    async def waits(self) -> dict[str, int]:
        rows = await queue_store.queue_by_cause(self.connection, [SENDER.sender_id], self.now)
        return {row["waiting_for"]: row["messages"] for row in rows}

    async def throttle(self, per_minute: int | None, per_day: int | None = None) -> None:
        await queue_store.put_throttle(self.connection, *CAMPAIGN, per_minute, per_day)
        await sweeps.start(self.connection, Sweep("acme", Kind.LINE, "black-friday", None, self.now))

    async def held(self) -> list[SendHeld]:
        rows = await unpublished(self.connection, older_than_seconds=-1, limit=1000)
        told = [one.value or b"" for one in rows.values() if one.topic == Topic.SEND_HELD]
        return sorted((SendHeld.model_validate_json(one) for one in told), key=lambda one: one.message_id or "")

    async def sweep(self) -> None:
        while await self.connection.fetchval("select count(*) from sweep"):
            await self.sweeps.sweep()


@pytest.fixture
async def queue(connection: Any) -> Queue:
    return Queue(connection)


# --- lanes and times ---


async def test_lanes_go_in_the_order_that_is_asked_for_and_each_by_its_time(queue: Queue) -> None:
    await queue.put("offer-2", at=queue.now - timedelta(seconds=1))
    await queue.put("offer-1", at=queue.now - timedelta(seconds=2))
    await queue.put("order", lane=Lane.TRANSACTIONAL)
    await queue.put("talk", lane=Lane.CONVERSATION)
    assert await queue.look() == ["talk", "order", "offer-1", "offer-2"]
    assert await queue.look(1) == ["talk"]
    assert await queue.look(3) == ["talk", "order", "offer-1"]
    assert await queue.look(2, (Lane.MARKETING, Lane.TRANSACTIONAL, Lane.CONVERSATION)) == ["offer-1", "offer-2"]
    assert await queue.look(2, (Lane.TRANSACTIONAL, Lane.CONVERSATION, Lane.MARKETING)) == ["order", "talk"]


async def test_what_is_sent_later_is_due_at_its_moment_and_expires_at_its_moment(queue: Queue) -> None:
    await queue.put("later", at=queue.now + HOUR, expires_at=queue.now + 2 * HOUR)
    for seconds, due in ((3599.999, []), (3600, ["later"])):
        lines = OpenLines({"": 9})
        at = queue.now + timedelta(seconds=seconds)
        found = await claims.lock_due(queue.connection, SENDER.sender_id, at, limit=9, lines=lines)
        assert [one.message.funded.message_id for one in found] == due
        ahead = await claims.next_due(queue.connection, SENDER.sender_id, at, lines)
        assert ahead == (None if due else queue.now + HOUR)
    end = queue.now + 2 * HOUR
    assert await queue_store.lock_expired(queue.connection, end - timedelta(microseconds=1), 9) == []
    assert len(await queue_store.lock_expired(queue.connection, end, 9)) == 1


# A plan that walks over what waits for something else would read its rows.
ASIDE = 3_000


@pytest.mark.parametrize("kind", ["later in the first lane", "paused campaign", "used-up throttle", "tier"])
async def test_the_claim_reads_no_more_for_thousands_that_wait_for_something_else(queue: Queue, kind: str) -> None:
    async def read() -> int:
        await queue.connection.execute("analyze message")
        lines = await open_lines(queue.connection, SENDER.sender_id, queue.now, 10)
        before = await queue.connection.fetchval(
            "select sum(idx_tup_fetch + seq_tup_read) from pg_stat_xact_user_tables"
        )
        due = await claims.lock_due(queue.connection, SENDER.sender_id, queue.now, limit=10, lines=lines)
        after = await queue.connection.fetchval(
            "select sum(idx_tup_fetch + seq_tup_read) from pg_stat_xact_user_tables"
        )
        assert [one.message.funded.message_id for one in due] == ["due"]
        return int(after - before)

    await queue.put(*(f"w{number}" for number in range(ASIDE)), at=queue.now - HOUR)
    await queue.put("due")
    changes = {
        "later in the first lane": "lane = 0, not_before = now() + interval '1 hour'",
        "paused campaign": f"line = '{LINE}'",
        "used-up throttle": f"line = '{LINE}'",
        "tier": "waiting_for = 'tier', not_before = now() + interval '1 day'",
    }
    await queue.connection.execute(f"update message set {changes[kind]} where message_id like 'w%'")
    if kind == "paused campaign":
        await queue_store.pause_campaign(queue.connection, *CAMPAIGN, queue.now)
        await queue.connection.execute("update message set campaign_id = null where message_id = 'due'")
    if kind == "used-up throttle":
        await queue_store.put_throttle(queue.connection, *CAMPAIGN, 1, None)
        used = throttle_take(Throttle(1, None), queue.now)
        await claims.save_throttle(queue.connection, *CAMPAIGN, used, 1, queue.now)
    async with queue.connection.transaction():
        assert await read() < ASIDE / 10


# --- campaigns: pause, throttle, cancel ---


async def test_a_paused_campaign_is_looked_at_no_more_and_goes_on_where_it_stood(queue: Queue) -> None:
    await queue.put("m1", at=queue.now - timedelta(seconds=1))
    await queue.put("later", at=queue.now + HOUR)
    await queue_store.pause_campaign(queue.connection, *CAMPAIGN, queue.now)
    await sweeps.start(queue.connection, Sweep("acme", Kind.LINE, "black-friday", None, queue.now))
    await queue.sweep()
    await queue.queue("m2")
    assert await queue.look() == []
    assert await queue.waits() == {"paused": 2, "turn": 1}
    (row, *_) = await queue_store.queue_by_cause(queue.connection, [SENDER.sender_id], queue.now)
    assert row["since"] == queue.now
    told = (await read_campaign(queue.connection, CAMPAIGN)).waiting
    assert [(each.waiting_for, each.messages) for each in told] == [("paused", 2), ("turn", 1)]
    await queue_store.resume_campaign(queue.connection, *CAMPAIGN)
    assert sorted(await queue.look()) == ["m1", "m2"]
    queue.now += HOUR
    assert sorted(await queue.look()) == ["later", "m1", "m2"]


async def test_a_driver_that_meets_a_paused_campaign_first_sends_it_to_its_line(queue: Queue) -> None:
    await queue.put("m1")
    await queue_store.pause_campaign(queue.connection, *CAMPAIGN, queue.now)
    assert await queue.look() == ["m1"]
    await claims.line_up(queue.connection, [("acme", "m1")])
    assert await queue.look() == []
    await queue_store.resume_campaign(queue.connection, *CAMPAIGN)
    assert await queue.look() == ["m1"]


async def test_a_throttled_line_gives_as_many_as_may_go_and_others_pass(queue: Queue) -> None:
    for number in range(20):
        await queue.put(f"m{number:02}", at=queue.now - HOUR + timedelta(seconds=number))
    await queue.throttle(180)
    await queue.sweep()
    await queue.put("other", lane=Lane.MARKETING)
    assert await queue.look(5) == ["m00", "m01", "m02", "other"]
    throttle = Throttle(180, None)
    for _ in range(3):
        throttle = throttle_take(throttle, queue.now)
    await claims.save_throttle(queue.connection, *CAMPAIGN, throttle, 3, queue.now)
    assert await queue.look(5) == ["other"]
    lines = await open_lines(queue.connection, SENDER.sender_id, queue.now, 5)
    assert lines.next_at is not None
    queue.now = lines.next_at - timedelta(microseconds=1)
    assert await queue.look(5) == ["other"]
    queue.now = lines.next_at
    assert await queue.look(5) == ["m00", "other"]


async def test_a_day_of_a_throttle_moves(queue: Queue) -> None:
    """Calls at the end of one day count at the beginning of the next, to the minute."""
    per_day, sent = 5, list[datetime]()
    await queue.throttle(None, per_day)
    await queue.sweep()
    start = datetime(2026, 11, 26, tzinfo=UTC)
    for minutes in (0, 600, 1439, 1440, 1441, 1442, 2039, 2040, 2041, 2042, 2880, 2881, 2882, 4000):
        queue.now = start + timedelta(minutes=minutes, seconds=30)
        async with queue.connection.transaction():
            throttles = await claims.lock_throttles(queue.connection, "acme", ["black-friday"], queue.now)
            throttle = throttles["black-friday"]
            count = min(per_day - throttle.day_used, 3)
            for _ in range(count):
                throttle = throttle_take(throttle, queue.now)
            await claims.save_throttle(queue.connection, *CAMPAIGN, throttle, count, queue.now)
        sent += [queue.now] * count
    for moment in sent:
        assert sum(moment <= one < moment + timedelta(hours=24) for one in sent) <= per_day
    assert len(sent) >= 3 * per_day


async def test_who_waits_above_ten_seconds_for_a_throttle_is_told_of_once(queue: Queue) -> None:
    await queue.put(*(f"m{number:02}" for number in range(15)), expires_at=queue.now + HOUR)
    await queue.throttle(60)
    await queue.sweep()
    for _ in range(2):
        await queue.sweeps.tell_throttled()
    held = await queue.held()
    assert len(held) == 15 - 11
    assert {one.cause for one in held} == {ReasonCode.RATE_LIMIT_EXCEEDED}
    assert {one.scope.kind for one in held} == {"message"}
    assert await queue.waits() == {"throttle": 15}
    ((one, *_), *_) = await queue_store.lock_expired(queue.connection, queue.now + HOUR, 9)
    assert one.waiting_for is Waiting.THROTTLE
    assert one.waiting_since is not None


async def test_a_campaign_is_cancelled_in_steps_and_a_crash_loses_none(queue: Queue) -> None:
    ids = [f"m{number}" for number in range(sweeps.STEP + 5)]
    await queue.put(*ids)
    cancel = SendCancelled(workspace_id="acme", campaign_id="black-friday", by="shop")
    await queue.stages.on_cancelled(queue.connection, [record(Topic.SEND_CANCELLED, cancel)])
    assert set((await queue.states()).values()) == {"waiting"}

    async def dies(connection: Any, messages: Any, by: Any) -> int:
        await queue.stages.cancel(connection, messages, by)
        raise asyncpg.ConnectionDoesNotExistError

    with pytest.raises(asyncpg.ConnectionDoesNotExistError):
        await Sweeps(queue, dies, utc_now).sweep()  # type: ignore[arg-type]
    assert set((await queue.states()).values()) == {"waiting"}
    await queue.sweep()
    assert set((await queue.states()).values()) == {"rejected"}
    await queue.queue("came-later")
    assert (await queue.states())["came-later"] == "rejected"


async def test_what_was_out_when_its_sender_was_cancelled_is_cancelled_when_it_comes_back(queue: Queue) -> None:
    await queue.put("m1")
    fence = await queue_store.take_over(queue.connection, SENDER.sender_id)
    assert fence is not None
    assert await queue.claim(fence) == ["m1"]
    cancel = Sweep("acme", Kind.CANCEL_SENDER, SENDER.sender_id, "ops", queue.now + HOUR)
    await queue.stages.cancel_all(queue.connection, cancel)
    await queue.sweeps.sweep()
    assert await queue.states() == {"m1": "in_flight"}
    back = Result(("acme", "m1"), 1, "waiting", Waiting.RETRY, queue.now, None, None, [])
    await queue_store.record_results(queue.connection, [back])
    await queue.connection.execute("update sweep set stepped_at = stepped_at - interval '1 minute'")
    await queue.sweeps.sweep()
    assert await queue.states() == {"m1": "rejected"}
    await queue.connection.execute("update sweep set stepped_at = stepped_at - interval '1 minute'")
    await queue.sweeps.sweep()
    assert await queue.connection.fetchval("select count(*) from sweep") == 0


async def test_what_is_paused_already_stays_so_since_it_was(queue: Queue) -> None:
    first, later = queue.now, queue.now + HOUR
    (row,) = await store.set_paused(queue.connection, SENDER.sender_id, first)
    assert row.sender.paused_at == first
    assert await store.set_paused(queue.connection, SENDER.sender_id, later) == []
    assert await queue_store.pause_campaign(queue.connection, *CAMPAIGN, first)
    assert not await queue_store.pause_campaign(queue.connection, *CAMPAIGN, later)
    stopped = await queue_store.stopped_campaigns(queue.connection, [CAMPAIGN])
    assert stopped[CAMPAIGN].paused_at == first
    assert await queue_store.resume_campaign(queue.connection, *CAMPAIGN)
    assert not await queue_store.resume_campaign(queue.connection, *CAMPAIGN)
    (row,) = await store.set_paused(queue.connection, SENDER.sender_id, None)
    assert row.sender.paused_at is None


async def test_a_number_that_is_behind_its_pace_is_told_of_once_and_when_it_is_over(queue: Queue) -> None:
    await queue.connection.execute("update sender set messages_per_second = 1")
    await queue.put(*(f"m{number}" for number in range(10)))
    pacing = Pacing(queue, lambda: queue.now)  # type: ignore[arg-type]

    async def told() -> list[dict[str, Any]]:
        await pacing.tell()
        rows = await unpublished(queue.connection, older_than_seconds=-1, limit=99)
        await mark_published(queue.connection, rows)
        return [json.loads(one.value or b"") for one in rows.values()]

    await queue.put("m10")
    # Nobody drives it: it waits for that.
    assert await told() == []
    await sync_store.tell_driving(queue.connection, "a", {SENDER.sender_id: 60})
    (held,) = await told()
    assert (held["cause"], held["scope"]) == ("RATE_LIMIT_EXCEEDED", {"kind": "sender", "id": SENDER.sender_id})
    queue.now += timedelta(minutes=5)
    assert await told() == []
    queue.now = datetime.fromisoformat(held["until"])
    (again,) = await told()
    await queue.connection.execute("update message set state = 'accepted' where message_id = 'm3'")
    (over,) = await told()
    assert (over["since"], over["until"]) == (again["since"], over["occurred_at"])
    assert await told() == []
    await queue.put("m11")
    await store.set_paused(queue.connection, SENDER.sender_id, queue.now)
    assert await told() == []


async def test_of_a_sender_only_what_waits_is_cancelled(queue: Queue) -> None:
    await queue.put("m1", "m2")
    other = replace(ACME, sender_id="100000000000009", is_default=False)
    await store.put_sender(queue.connection, other, queue.now)
    await queue.put("theirs", sender_id="100000000000009")
    for workspace in ("acme", "other"):
        cancel = SendCancelled(workspace_id=workspace, sender_id=SENDER.sender_id)
        told = replace(record(Topic.SEND_CANCELLED, cancel), at=queue.now)
        await queue.stages.on_cancelled(queue.connection, [told])
    # Until its step comes, a driver that meets it knows.
    due = await claims.lock_due(queue.connection, SENDER.sender_id, queue.now, limit=9)
    assert {one.message.cancelled_by for one in due} == {"upstream"}
    queue.now += timedelta(seconds=1)
    await queue.put("came-later")
    await queue.sweep()
    assert await queue.states() == {
        "m1": "rejected",
        "m2": "rejected",
        "theirs": "waiting",
        "came-later": "waiting",
    }
    assert await queue_store.counts_of_sender(queue.connection, SENDER.sender_id) == (1, 0)


@pytest.mark.parametrize(
    "named", [{}, {"message_id": "m1", "campaign_id": "c"}, {"campaign_id": "c", "sender_id": SENDER.sender_id}]
)
def test_a_cancel_names_exactly_one(named: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        SendCancelled(workspace_id="acme", **named)  # type: ignore[arg-type]


def test_a_cancel_is_keyed_by_what_it_names() -> None:
    for named in ({"message_id": "m1"}, {"campaign_id": "spring"}, {"sender_id": SENDER.sender_id}):
        sent = outgoing(SendCancelled(workspace_id="acme", **named), source="upstream")  # type: ignore[arg-type]
        assert (sent.key or b"").decode() in named.values()


# --- messages and senders ---


async def test_a_paused_message_stands_aside_and_keeps_its_time(queue: Queue) -> None:
    await queue.put("m1", at=queue.now + HOUR)
    await queue_store.pause_message(queue.connection, ("acme", "m1"), queue.now, told=True)
    assert await queue.waits() == {"paused": 1}
    queue.now += 2 * HOUR
    assert await queue.look() == []
    ((one, *_),) = await queue_store.lock_expired(queue.connection, queue.now + 48 * HOUR, 9)
    assert one.waiting_for is Waiting.PAUSED
    queue.now -= 2 * HOUR
    await queue_store.resume_message(queue.connection, ("acme", "m1"))
    assert await queue.look() == []
    queue.now += HOUR
    assert await queue.look() == ["m1"]


async def test_who_waited_for_a_place_when_paused_is_looked_at_when_resumed(queue: Queue) -> None:
    """Its driver stops calling those that wait for a place when there seem to be none."""
    await queue.put("m1")
    wait = NewWait(("acme", "m1"), Waiting.TIER, queue.now + 24 * HOUR, told=True)
    await queue_store.set_waits(queue.connection, [wait])
    await queue_store.pause_message(queue.connection, ("acme", "m1"), queue.now, told=True)
    assert await claims.lock_tier_waits(queue.connection, SENDER.sender_id, 9) == []
    await queue_store.resume_message(queue.connection, ("acme", "m1"))
    queue.now = utc_now()
    assert await queue.look() == ["m1"]


async def test_only_the_try_that_was_called_is_not_given_back(queue: Queue) -> None:
    """What is known of a message's first call tells nothing of a second mark, whose commit was lost."""
    fence = await queue_store.take_over(queue.connection, SENDER.sender_id)
    assert fence is not None
    await queue.put("m1", "m2")
    keys: list[Key] = [("acme", "m1"), ("acme", "m2")]
    await queue_store.mark_in_flight(queue.connection, keys, fence)
    await queue.connection.execute("update message set attempts = 2 where message_id = 'm1'")
    await queue_store.give_back(queue.connection, SENDER.sender_id, fence, {(key, 1) for key in keys})
    rows = await queue.connection.fetch("select message_id, state from message order by message_id")
    assert [tuple(row) for row in rows] == [("m1", "waiting"), ("m2", "in_flight")]


async def test_what_waits_at_a_sender_that_stands_still_says_so_unseen(queue: Queue) -> None:
    await queue.put("m1")
    why = reason(ReasonCode.META_PAYMENT_ISSUE, "The card is refused")
    held = "update sender set hold = $1, hold_since = $2, hold_until = $2"
    await queue.connection.execute(held, why.model_dump_json().encode(), queue.now)
    assert await queue.waits() == {"hold": 1}
    ((one, hold, _),) = await queue_store.lock_expired(queue.connection, queue.now + 48 * HOUR, 9)
    assert hold == why
    assert (one.waiting_for, one.waiting_since) == (Waiting.HOLD, queue.now)
    await store.set_paused(queue.connection, SENDER.sender_id, queue.now)
    assert await queue.waits() == {"paused": 1}


@pytest.mark.parametrize(
    ("sent", "seconds_ago", "waited_for"),
    [
        (80 * 60, 5, Waiting.RATE),
        (80 * 45, 5, Waiting.RATE),
        (80 * 45 - 1, 5, Waiting.TURN),
        (80 * 60, 60, Waiting.TURN),
    ],
)
async def test_who_expires_behind_a_number_that_sends_all_it_may_waited_for_its_pace(
    queue: Queue, sent: int, seconds_ago: int, waited_for: Waiting
) -> None:
    await queue.put("m1")
    await queue.connection.execute(
        "insert into driving values ($1, 'a', clock_timestamp() - make_interval(secs => $2), $3)",
        SENDER.sender_id,
        seconds_ago,
        sent,
    )
    ((one, *_),) = await queue_store.lock_expired(queue.connection, queue.now + 48 * HOUR, 9)
    assert one.waiting_for is waited_for
    code = ReasonCode.RATE_LIMIT_EXCEEDED if waited_for is Waiting.RATE else ReasonCode.EXPIRED_BEFORE_SENDING
    assert expired(one).code is code


async def test_who_expires_while_its_number_rests_waited_for_that(queue: Queue) -> None:
    await queue.put("m1")
    now = utc_now().replace(microsecond=0)
    since, until = now - HOUR, now + 50 * HOUR
    rest = Rest(limit=Shared.APP, meta=MetaError(code=4, title="Too many calls"), since=since, until=until)
    await sync_store.tell_driving(queue.connection, "a", {SENDER.sender_id: 0}, {SENDER.sender_id: rest})
    ((one, hold, told),) = await queue_store.lock_expired(queue.connection, queue.now + 48 * HOUR, 9)
    assert (told, hold) == (rest, None)
    assert expired(one, hold, told).meta == rest.meta
    await sync_store.tell_driving(queue.connection, "a", {SENDER.sender_id: 0})
    ((one, hold, told),) = await queue_store.lock_expired(queue.connection, queue.now + 48 * HOUR, 9)
    assert expired(one, hold, told).code is ReasonCode.EXPIRED_BEFORE_SENDING


async def test_who_waits_for_a_place_is_called_by_lane_then_by_arrival(queue: Queue) -> None:
    await queue.put("offer-1", "offer-2")
    await queue.put("code", lane=Lane.CONVERSATION)
    keys: list[Key] = [("acme", one) for one in ("offer-1", "offer-2", "code")]
    waits = [NewWait(key, Waiting.TIER, queue.now + 24 * HOUR, told=True) for key in keys]
    await queue_store.set_waits(queue.connection, waits)
    assert await queue.look() == []
    called = await claims.lock_tier_waits(queue.connection, SENDER.sender_id, 2)
    assert called[0].message.funded.message_id == "code"
    assert len(called) == 2


# --- over HTTP ---


@pytest.fixture
async def http(queue: Queue) -> AsyncIterator[httpx.AsyncClient]:
    settings = Settings(
        kafka_bootstrap_servers="none",
        database_url=SecretStr("postgresql://none"),
        token_encryption_key=SecretStr(Fernet.generate_key().decode()),
        privacy_key=SecretStr("a key of tests only"),
        api_tokens=SecretStr("operator-token-1:operator:acme,operator-token-2:operator:other"),
    )
    app = FastAPI()
    app.state.tokens = settings.tokens
    problems.install(app)
    app.include_router(QueueApi(queue, queue, queue.stages, lambda: queue.now).routes())  # type: ignore[arg-type]
    headers = {"authorization": "Bearer operator-token-1"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://d", headers=headers) as client:
        yield client


async def test_a_message_is_paused_told_of_once_and_resumed(queue: Queue, http: httpx.AsyncClient) -> None:
    await queue.put("m1")
    path = "/v1/workspaces/acme/messages/m1"
    first = (await http.post(f"{path}/pause")).json()
    queue.now += HOUR
    again = (await http.post(f"{path}/pause")).json()
    assert again == first
    assert (await http.get("/v1/workspaces/acme/queue")).json()["items"][0]["waiting_for"] == "paused"
    assert (await http.post(f"{path}/resume")).json() == {"message_id": "m1", "paused_at": None}
    assert await queue.look() == ["m1"]
    await http.post(f"{path}/pause")
    held = await queue.held()
    assert [(one.cause, one.scope.kind, one.until) for one in held] == [
        (ReasonCode.EXPIRED_BEFORE_SENDING, "message", None)
    ]


async def test_only_news_of_a_campaigns_pause_is_told(queue: Queue, http: httpx.AsyncClient) -> None:
    for act in ("resume", "pause", "pause", "resume", "resume"):
        assert (await http.post(f"/v1/workspaces/acme/campaigns/black-friday/{act}")).status_code == 204
        queue.now += HOUR
    assert [one.until is None for one in await queue.held()] == [True, False]


async def test_what_was_called_already_can_not_be_paused_or_called_back(queue: Queue, http: httpx.AsyncClient) -> None:
    await queue.put("out", "waits")
    fence = await queue_store.take_over(queue.connection, SENDER.sender_id)
    assert fence is not None
    await queue_store.mark_in_flight(queue.connection, [("acme", "out")], fence)
    for act in ("pause", "resume", "cancel"):
        answer = await http.post(f"/v1/workspaces/acme/messages/out/{act}")
        assert (answer.status_code, "in_flight" in answer.json()["detail"]) == (409, True)
    for path in ("campaigns/black-friday", f"senders/{SENDER.sender_id}"):
        answer = await http.post(f"/v1/workspaces/acme/{path}/cancel")
        cancelled = 1 if path.startswith("campaigns") else 0
        assert answer.json() == {"cancelled": cancelled, "cancelling": 0, "in_flight": 1}


async def test_another_workspaces_messages_and_senders_are_unknown(queue: Queue, http: httpx.AsyncClient) -> None:
    await queue.put("m1")
    http.headers["authorization"] = "Bearer operator-token-2"
    for path in ("messages/m1/pause", "messages/m1/resume", f"senders/{SENDER.sender_id}/cancel"):
        assert (await http.post(f"/v1/workspaces/other/{path}")).status_code == 404
    assert await queue.states() == {"m1": "waiting"}


async def test_a_cancel_of_more_than_some_steps_goes_on_by_itself(queue: Queue, http: httpx.AsyncClient) -> None:
    now, later = CANCEL_STEPS_AT_ONCE * sweeps.STEP, 7
    await queue.put(*(f"m{number}" for number in range(now + later)))
    answer = await http.post(f"/v1/workspaces/acme/senders/{SENDER.sender_id}/cancel")
    assert answer.json() == {"cancelled": now, "cancelling": later, "in_flight": 0}
    await queue.sweep()
    assert set((await queue.states()).values()) == {"rejected"}
