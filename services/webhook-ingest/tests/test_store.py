"""The parsing half on a real PostgreSQL: repeats, orphans, numbers that become known, deadlines."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import permutations
from typing import Any

import asyncpg
import pytest
from ingest_webhooks import (
    APP,
    AT,
    NUMBER,
    OTHER_APP,
    PHONE,
    T0,
    USER,
    WABA,
    WORKSPACE,
    body,
    callback,
    delivery,
    status,
    statuses,
    value,
)
from sendwhy.events import (
    CustomerUpdated,
    Event,
    MessageReceived,
    PersonErasing,
    SenderUpdated,
    Status,
    StatusUpdated,
    To,
    event_id_of,
)
from sendwhy.postgres import Connection, connect_pool
from sendwhy.privacy import Tagger
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record
from sendwhy.topics import Outgoing, Topic
from webhook_ingest import erasures, parsing, store
from webhook_ingest.accepted import accepted_of
from webhook_ingest.decide import Message, MessageKey
from webhook_ingest.elements import Delivery
from webhook_ingest.receipts import fail_overdue

APPS = frozenset({APP, OTHER_APP})
EVENTS: dict[Topic, type[Event]] = {
    Topic.STATUS_UPDATED: StatusUpdated,
    Topic.MESSAGE_RECEIVED: MessageReceived,
    Topic.CUSTOMER_UPDATED: CustomerUpdated,
}

TAGGER = Tagger("a key of tests only")


class Desk:
    """The service's steps, each in a transaction of its own, and what they say."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self.pool = pool

    async def post(self, raw: bytes, offset: int = 0, signer: str = APP, only: str | None = None) -> list[Any]:
        return await self.read([delivery(raw, offset, signer)], only)

    async def read(self, deliveries: Sequence[Delivery], only: str | None = None) -> list[Any]:
        async with self.pool.acquire() as connection, connection.transaction():
            replayed = None if only is None else parsing.Replayed(only, AT + timedelta(days=3))
            outcome = await parsing.apply(connection, deliveries, APPS, replayed=replayed)
        return _events([*outcome.publish, *(record for _, record in outcome.from_outbox)])

    async def accept(self, wamid: str, message_id: str, day: float = 0, contact: str = "c-1") -> list[Any]:
        at = AT + timedelta(days=day)
        event = StatusUpdated(
            event_id=event_id_of(message_id, "accepted"),
            occurred_at=at,
            observed_at=at,
            message_id=message_id,
            workspace_id=WORKSPACE,
            sender_id=NUMBER,
            provider_message_id=wamid,
            service=Service.DISPATCHER,
            status=Status.ACCEPTED,
            to=To(contact_id=contact),
            receipt_deadline=at + timedelta(hours=1),
        )
        record = _record(Topic.STATUS_UPDATED, event.to_json())
        async with self.pool.acquire() as connection, connection.transaction():
            outcome = await parsing.accept(connection, [record_with(record, accepted_of(record))], TAGGER)
        return _events([record for _, record in outcome.from_outbox])

    async def know(
        self,
        number: str = NUMBER,
        app: str | None = APP,
        version: int = 1,
        workspace: str = WORKSPACE,
        synced_at: datetime | None = AT,
    ) -> None:
        state = SenderUpdated(
            event_id=event_id_of(number, str(version)),
            occurred_at=AT,
            sender_id=number,
            workspace_id=workspace,
            version=version,
            waba_id=WABA,
            app_id=app,
            default=True,
            synced_at=synced_at,
        )
        record = record_with(_record(Topic.SENDER_UPDATED, state.to_json(), number.encode()), state)
        async with self.pool.acquire() as connection, connection.transaction():
            await parsing.keep_senders(connection, [record])

    async def forget(self) -> None:
        record = record_with(_record(Topic.SENDER_UPDATED, None, NUMBER.encode()), None)
        async with self.pool.acquire() as connection, connection.transaction():
            await parsing.keep_senders(connection, [record])

    async def claim(self) -> list[Any]:
        async with self.pool.acquire() as connection, connection.transaction():
            outcome = await parsing.claim(connection, APPS)
        return _events([record for _, record in outcome.from_outbox])

    async def end_of(self, day: float) -> list[StatusUpdated]:
        now: datetime = AT + timedelta(days=day)
        async with self.pool.acquire() as connection:
            return await fail_overdue(connection, now, now, 3)

    async def outbox(self) -> set[str]:
        async with self.pool.acquire() as connection:
            return {str(row["event_id"]) for row in await connection.fetch("select event_id from outbox")}


def _record(topic: Topic, raw: bytes | None, key: bytes | None = None) -> Record[None]:
    return Record(None, topic, 0, 0, AT, key, raw, ())


def record_with(record: Record[None], event: Any) -> Record[Any]:
    return Record(event, record.topic, 0, 0, record.at, record.key, record.value, ())


def _events(records: Sequence[Outgoing]) -> list[Any]:
    return [
        EVENTS[record.topic].model_validate_json(record.value or b"") if record.topic in EVENTS else record
        for record in records
    ]


def errors_of(records: Sequence[Any]) -> list[str]:
    return [dict(record.headers)["error"].decode().partition(":")[0] for record in records]


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="webhook-ingest-test", size=12)
    yield Desk(pool)
    await pool.close()


pytestmark = pytest.mark.postgres
MESSAGE = {"id": "wamid.I", "from": "447700900142", "timestamp": str(T0), "type": "text", "text": {"body": "STOP"}}


async def test_thrice_and_reversed_is_each_once(desk: Desk) -> None:
    await desk.know()
    names = ["read", "delivered", "sent"] * 3
    said = [event for offset, name in enumerate(names) for event in await desk.post(statuses(status(name)), offset)]
    assert [event.status for event in said] == ["read", "delivered", "sent"]


async def test_a_record_read_again_says_the_same(desk: Desk) -> None:
    await desk.know()
    raw = statuses(status("sent", **callback("m-1")), status("failed", errors=[{"code": 131026}]))
    first = await desk.post(raw, 7)
    assert first
    assert await desk.post(raw, 7) == first


@pytest.mark.parametrize("is_known", [True, False], ids=["of a number that we know", "of an unknown one"])
@pytest.mark.parametrize("order", [(5, 6, 7), (6, 7, 5), (7, 6, 5)])
async def test_what_a_record_said_first_is_said_again_wherever_it_stands_in_the_batch(
    desk: Desk, is_known: bool, order: tuple[int, ...]
) -> None:
    """The process died between its commit and Kafka; which record comes first, when all are read again, is chance."""
    if is_known:
        await desk.know()
    raw = body(value(messages=[MESSAGE], statuses=[status("read")]))
    first = await desk.post(raw, 6)
    assert {type(event) for event in first} == {MessageReceived, StatusUpdated}
    assert await desk.read([delivery(raw, offset) for offset in order]) == first
    assert await desk.read([delivery(raw, offset) for offset in order if offset != 6]) == []
    assert await desk.post(raw, 8) == []


async def test_a_status_that_came_before_accepted_is_told_again_with_its_message(desk: Desk) -> None:
    await desk.know()
    (orphan,) = await desk.post(statuses(status("delivered")))
    (found,) = await desk.accept("wamid.A", "m-1")
    assert (orphan.message_id, orphan.workspace_id) == (None, WORKSPACE)
    assert (found.message_id, found.workspace_id, found.status) == ("m-1", WORKSPACE, "delivered")
    assert found.event_id != orphan.event_id
    assert await desk.outbox() == {str(found.event_id)}
    assert await desk.accept("wamid.A", "m-1") == []
    assert await desk.post(statuses(status("delivered"))) == [orphan]


async def test_callback_data_names_earlier_statuses_too(desk: Desk) -> None:
    await desk.know()
    await desk.post(statuses(status("sent")), 1)
    said = await desk.post(statuses(status("read", **callback("m-1"))), 2)
    assert [(event.status, event.message_id) for event in said] == [("read", "m-1"), ("sent", "m-1")]


async def test_accepted_and_a_status_at_once_always_meet(desk: Desk) -> None:
    await desk.know()

    async def both(wamid: str, message_id: str) -> set[str | None]:
        told, joined = await asyncio.gather(
            desk.post(statuses(status("delivered", wamid))), desk.accept(wamid, message_id)
        )
        return {event.message_id for event in [*told, *joined]}

    found = await asyncio.gather(*(both(f"wamid.{n}", f"m-{n}") for n in range(40)))
    assert all(f"m-{n}" in ids for n, ids in enumerate(found))


async def test_batches_of_the_same_messages_at_once_say_each_status_once(desk: Desk) -> None:
    await desk.know()
    wamids = [f"wamid.{n}" for n in range(30)]
    batches = [statuses(*(status("sent", wamid) for wamid in order)) for order in [wamids, wamids[::-1]] * 4]
    said = await asyncio.gather(*(desk.post(raw, offset) for offset, raw in enumerate(batches)))
    assert sorted(event.provider_message_id for events in said for event in events) == sorted(wamids)


async def test_who_waited_for_a_message_sees_it_as_it_is_then(desk: Desk) -> None:
    """Also with a row of another partition beside it, by the plan that large tables have."""
    wamids = [f"wamid.{number}" for number in range(8)]
    async with desk.pool.acquire() as one, desk.pool.acquire() as other:
        await other.execute("set enable_hashjoin = off; set enable_mergejoin = off; set enable_seqscan = off")
        for wamid, beside in permutations(wamids, 2):
            keys = [(NUMBER, wamid), (NUMBER, beside)]
            await store.lock_messages(one, keys, AT)
            async with one.transaction():
                (changed,) = (await store.lock_messages(one, keys[:1], AT)).values()
                waits = asyncio.create_task(_locked(other, keys))
                await _until_it_waits(one, other)
                await store.save_messages(one, [replace(changed, rank=changed.rank + 1)])
            assert (await waits)[NUMBER, wamid].rank == changed.rank + 1


async def _locked(connection: Connection, keys: Sequence[MessageKey]) -> Mapping[MessageKey, Message]:
    async with connection.transaction():
        return await store.lock_messages(connection, keys, AT)


async def _until_it_waits(one: Connection, other: Connection) -> None:
    while not await one.fetchval("select cardinality(pg_blocking_pids($1)) > 0", other.get_server_pid()):
        await asyncio.sleep(0.001)


async def test_what_an_unknown_number_says_waits_for_its_sender(desk: Desk) -> None:
    raw = body(value(statuses=[status("read", **callback("m-1"))], messages=[MESSAGE]))
    first = await desk.post(raw, 3)
    assert {(type(event).__name__, event.workspace_id) for event in first} == {
        ("StatusUpdated", None),
        ("MessageReceived", None),
    }
    assert await desk.post(raw, 3) == first
    assert await desk.post(raw, 4) == []
    assert await desk.claim() == []
    await desk.know()
    claimed = await desk.claim()
    assert {(type(event).__name__, event.workspace_id) for event in claimed} == {
        ("StatusUpdated", WORKSPACE),
        ("MessageReceived", WORKSPACE),
    }
    assert await desk.outbox() == {str(event.event_id) for event in claimed}
    assert {event.event_id for event in claimed}.isdisjoint(event.event_id for event in first)
    assert await desk.claim() == []


async def test_what_another_app_said_of_a_number_is_put_aside_once_the_number_is_known(desk: Desk) -> None:
    await desk.post(body(value(messages=[MESSAGE])), signer=OTHER_APP)
    await desk.know(app=APP)
    assert errors_of(await desk.claim()) == ["foreign"]


async def test_a_number_whose_app_nobody_told_waits_where_several_apps_are_configured(desk: Desk) -> None:
    await desk.know(app=None)
    (event,) = await desk.post(body(value(messages=[MESSAGE])))
    assert event.workspace_id is None
    assert await desk.claim() == []
    await desk.know(app=APP, version=2)
    (claimed,) = await desk.claim()
    assert claimed.workspace_id == WORKSPACE


RESTRICTED = body({"event": "ACCOUNT_DELETED"}, field="account_update", waba=WABA)


async def test_what_is_told_of_an_account_that_nobody_registered_is_kept_until_somebody_does(desk: Desk) -> None:
    # The dispatcher may know the account by now: until it is known here too, nobody knows who may speak for it.
    assert await desk.post(RESTRICTED, 1) == []
    assert await desk.post(RESTRICTED, 2) == []
    assert await desk.claim() == []
    await desk.know()
    (told,) = await desk.claim()
    assert told.topic == Topic.SENDER_REPORTED
    assert json.loads(told.value)["raw"] == {"event": "ACCOUNT_DELETED"}
    assert await desk.claim() == []
    # As if it had come once its account was known: a repeat of it is one.
    assert await desk.post(RESTRICTED, 3) == []


SECOND = "415566778899002"


@pytest.mark.parametrize("number", [None, SECOND])
async def test_who_names_anothers_account_at_a_number_of_their_own_tells_nothing_of_it(
    desk: Desk, number: str | None
) -> None:
    """Not its templates, nor its hold: a PUT proves the number, and not the account that it names."""
    await desk.know()
    await desk.know(SECOND, OTHER_APP, workspace="globex", synced_at=None)
    beside = {"metadata": {"phone_number_id": number}} if number else {}
    forged = body({"event": "ACCOUNT_DELETED", **beside}, field="account_update", waba=WABA)
    assert await desk.post(forged, signer=OTHER_APP) == []
    assert await desk.claim() == []
    (told,) = await desk.post(RESTRICTED, 1)
    assert told.topic == Topic.SENDER_REPORTED


@pytest.mark.parametrize("number", [None, NUMBER])
async def test_what_is_told_of_an_account_before_meta_has_shown_it_is_kept_until_then(
    desk: Desk, number: str | None
) -> None:
    await desk.know(synced_at=None)
    beside = {"metadata": {"phone_number_id": number}} if number else {}
    assert await desk.post(body({"event": "ACCOUNT_DELETED", **beside}, field="account_update", waba=WABA)) == []
    assert await desk.claim() == []
    await desk.know(version=2)
    (told,) = await desk.claim()
    assert told.topic == Topic.SENDER_REPORTED
    assert await desk.claim() == []


async def test_a_status_without_a_number_finds_the_only_one_of_its_workspace(desk: Desk) -> None:
    await desk.know()
    await desk.know(SECOND, workspace="globex")
    (told,) = await desk.post(statuses(status("read", **callback("m-1")), number=None))
    assert (told.sender_id, told.workspace_id, told.message_id) == (NUMBER, WORKSPACE, "m-1")
    (foreign,) = await desk.post(statuses(status("read", "wamid.B", **callback("m-1", "initech")), number=None), 1)
    assert (foreign.sender_id, foreign.workspace_id) == (None, None)


async def test_a_status_without_a_number_finds_its_message_by_its_id_alone_once_that_is_known(desk: Desk) -> None:
    await desk.know()
    await desk.know(SECOND)
    raw = statuses(status("read"), number=None)
    (first,) = await desk.post(raw)
    assert first.workspace_id is None
    assert await desk.claim() == []
    await desk.accept("wamid.A", "m-1")
    (told,) = await desk.claim()
    assert (told.sender_id, told.message_id) == (NUMBER, "m-1")
    assert await desk.claim() == []


async def test_nobody_elses_app_finds_a_number_for_a_status(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    raw = statuses(status("read", **callback("m-1")), number=None)
    assert errors_of(await desk.post(raw, signer=OTHER_APP)) == ["foreign"]


async def test_what_a_claim_leaves_is_not_taken_again_until_its_account_changes(desk: Desk) -> None:
    await desk.know()
    await desk.know(SECOND, workspace="globex")
    wish = {"wa_id": "447700900142", "value": "stop", "category": "marketing_messages", "timestamp": str(T0)}
    raw = body(value(None, user_preferences=[wish]), field="user_preferences")
    await desk.post(raw)
    assert await desk.claim() == []
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await store.lock_claimable(connection, only_app=None, limit=10) == {}
    await desk.know(version=2)
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await store.lock_claimable(connection, only_app=None, limit=10) == {}
    await desk.know(SECOND, version=2)
    (told,) = await desk.claim()
    assert told.workspace_id == WORKSPACE
    assert await desk.claim() == []


async def test_what_another_app_told_of_an_account_is_put_aside_once_the_account_is_known(desk: Desk) -> None:
    assert await desk.post(RESTRICTED, signer=OTHER_APP) == []
    await desk.know()
    assert errors_of(await desk.claim()) == ["foreign"]


async def test_a_foreign_app_changes_nothing(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    forged = statuses(status("read", **callback("m-1")), status("failed", "wamid.B"))
    assert errors_of(await desk.post(forged, signer=OTHER_APP)) == ["foreign", "foreign"]
    (event,) = await desk.post(statuses(status("read")), 9)
    assert event.message_id == "m-1"


async def test_a_senders_older_state_does_not_come_back_and_a_tombstone_removes_it(desk: Desk) -> None:
    await desk.know(app=APP, version=5)
    await desk.know(app=OTHER_APP, version=4)
    (event,) = await desk.post(statuses(status("sent")))
    assert event.workspace_id == WORKSPACE
    await desk.forget()
    (event,) = await desk.post(statuses(status("sent", "wamid.B")), 1)
    assert event.workspace_id is None


async def test_bad_elements_and_bad_bodies_cost_their_neighbours_nothing(desk: Desk) -> None:
    await desk.know()
    deliveries = [
        delivery(b"{", 1),
        delivery(statuses(status("sent"), 7, status("read", "wamid.\u0000")), 2),
        delivery(statuses(status("delivered")), 3),
    ]
    said = await desk.read(deliveries)
    dead = [entry for entry in said if isinstance(entry, Outgoing)]
    assert [entry.value for entry in dead][:2] == [b"{", b"7"]
    assert [dict(entry.headers)["offset"] for entry in dead] == [b"1", b"2"]
    assert [event.status for event in said if isinstance(event, StatusUpdated)] == ["sent", "read", "delivered"]


async def test_replay_is_limited_to_its_workspace(desk: Desk) -> None:
    await desk.know()
    raw = statuses(status("sent", **callback("m-1")))
    first = await desk.post(raw, 7)
    assert len(first) == 1
    assert await desk.post(raw, 7, only="globex") == []
    assert await desk.post(statuses(7, status("sent"), number="99999999"), 8, only=WORKSPACE) == []


async def test_what_was_told_beside_statuses_is_told_once(desk: Desk) -> None:
    """A message, a preference, a template, a number: repeats say nothing, their own record says the same."""
    await desk.know()
    preference = {"wa_id": "447700900142", "value": "stop", "timestamp": T0}
    whole = json.loads(body(value(messages=[MESSAGE], user_preferences=[preference])))
    template = {"event": "PAUSED", "message_template_name": "autumn_sale", "message_template_language": "es_MX"}
    whole["entry"][0] |= {"time": T0}
    whole["entry"][0]["changes"] += [
        {"field": "message_template_status_update", "value": template},
        {"field": "account_update", "value": {"event": "ACCOUNT_DELETED"}},
    ]
    raw = json.dumps(whole).encode()
    first = await desk.post(raw, 3)
    assert len(first) == 4
    assert await desk.post(raw, 3) == first
    assert await desk.post(raw, 4) == []
    assert await desk.post(raw, 3, only=WORKSPACE) == []
    assert len(await desk.read([delivery(raw.replace(b"STOP", b"START"), number) for number in (5, 6)])) == 1


def receipt(wamid: str = "wamid.A", name: str = "delivered", **more: Any) -> bytes:
    return statuses({**status(name, wamid, recipient_user_id=USER, **callback(wamid)), **more})


def links_of(events: Sequence[Any]) -> list[CustomerUpdated]:
    return [event for event in events if isinstance(event, CustomerUpdated)]


async def test_which_user_id_belongs_to_a_phone_is_told_once_by_metas_delivered(desk: Desk) -> None:
    await desk.know()
    assert links_of(await desk.post(receipt(name="sent"), 1)) == []
    first = await desk.post(receipt(), 2)
    (link,) = links_of(first)
    assert (link.action, link.source, link.workspace_id, link.sender_id) == ("link", "meta", WORKSPACE, NUMBER)
    assert (link.phone, link.user_id, link.contact_id, link.raw) == (f"+{PHONE}", USER, None, {})
    assert (link.occurred_at, link.observed_at) == (AT - timedelta(seconds=60), AT)
    assert await desk.post(receipt(), 2) == first, "its own record says the same"
    assert links_of(await desk.post(receipt(name="read"), 3)) == []
    assert links_of(await desk.post(receipt("wamid.B"), 4)) == []
    assert links_of(await desk.read([delivery(receipt("wamid.B"), 4), delivery(receipt(), 2)])) == [link]
    assert len(links_of(await desk.post(receipt("wamid.C", recipient_user_id="GB.8"), 5))) == 1


async def test_a_batch_asks_for_its_links_with_its_other_reports(desk: Desk) -> None:
    await desk.know()
    asked: list[str] = []
    async with desk.pool.acquire() as connection, connection.transaction():
        with connection.query_logger(lambda query: asked.append(query.query)):
            plain = statuses(*(status("delivered", f"wamid.{n}") for n in range(3)))
            await parsing.apply(connection, [delivery(plain, 1)], APPS)
            without = len(asked)
            linking = [status("delivered", f"wamid.{n}", recipient_user_id=USER) for n in range(3, 6)]
            raw = body(value(statuses=linking, messages=[MESSAGE]))
            await parsing.apply(connection, [delivery(raw, 2)], APPS)
    assert not any("seen_report" in query for query in asked[:without])
    assert sum("seen_report" in query for query in asked[without:]) == 2


async def test_a_replay_learns_who_is_who_from_what_was_read_before(desk: Desk) -> None:
    await desk.know()
    await desk.post(receipt(), 2)
    assert await desk.post(receipt(), 2, only=WORKSPACE) == []
    async with desk.pool.acquire() as connection:
        await connection.execute("delete from seen_report")
    assert await desk.post(receipt(), 2, only="globex") == []
    (link,) = await desk.post(receipt(), 2, only=WORKSPACE)
    assert (link.action, link.user_id) == ("link", USER)


async def test_who_is_who_at_an_unknown_number_is_learnt_once_the_number_is_known(desk: Desk) -> None:
    assert links_of(await desk.post(receipt(), 2)) == []
    assert await desk.post(receipt("wamid.B"), 3, signer=OTHER_APP)
    await desk.know()
    (link,) = links_of(await desk.claim())
    assert (link.workspace_id, link.phone, link.user_id) == (WORKSPACE, f"+{PHONE}", USER)
    assert links_of(await desk.post(receipt("wamid.C"), 4)) == []


async def test_repeats_of_reports_at_once_are_told_once(desk: Desk) -> None:
    await desk.know()
    messages = [{**MESSAGE, "id": f"wamid.{n}"} for n in range(20)]
    batches = [body(value(messages=order)) for order in [messages, messages[::-1]] * 4]
    said = await asyncio.gather(*(desk.post(raw, offset) for offset, raw in enumerate(batches)))
    assert sorted(event.wamid for events in said for event in events) == [
        f"wamid.{n}" for n in sorted(range(20), key=str)
    ]


async def test_a_replay_says_what_was_read_worse_and_nothing_else(desk: Desk) -> None:
    await desk.know()
    raw = statuses(status("sent", **callback("m-1")), status("failed", errors=[{"code": 131026}]))
    sent, failed = await desk.post(raw, 7)
    assert await desk.post(raw, 7, only=WORKSPACE) == []
    async with desk.pool.acquire() as connection:
        await connection.execute("update seen_status set reading = 'of old' where status = 'failed'")
    (better,) = await desk.post(raw, 7, only=WORKSPACE)
    assert (better.status, better.reason, better.message_id) == ("failed", failed.reason, "m-1")
    assert better.observed_at > failed.observed_at
    assert await desk.post(raw, 7, only=WORKSPACE) == []
    # The record itself, read again after a restored backup, says all that it has been read to say.
    assert await desk.post(raw, 7) == [sent, better]


async def test_a_status_that_could_not_be_read_before_is_told_by_a_replay(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    (event,) = await desk.post(statuses(status("read")), 7, only=WORKSPACE)
    assert (event.message_id, event.status, event.observed_at) == ("m-1", "read", AT)


@pytest.mark.parametrize("late", ["delivered", "failed"])
async def test_an_inferred_silence_is_overtaken_by_what_comes_after_all(desk: Desk, late: str) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    (silent,) = await desk.end_of(1)
    assert silent.reason is not None
    (event,) = await desk.post(statuses(status(late, errors=[{"code": 131026}] if late == "failed" else [])), 3)
    assert (event.message_id, event.status) == ("m-1", late)
    assert event.event_id != silent.event_id
    assert await desk.end_of(2) == []


async def test_silence_ends_as_failed_once(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    assert await desk.end_of(0) == []
    (event,) = await desk.end_of(1)
    assert event.reason is not None
    assert (event.message_id, event.status, event.service) == ("m-1", "failed", "webhook-ingest")
    assert (event.reason.code, event.reason.evidence["inferred"]) == (ReasonCode.NO_DELIVERY_RECEIPT, True)
    assert event.occurred_at == AT + timedelta(hours=1)
    assert await desk.outbox() == {str(event.event_id)}
    assert await desk.end_of(2) == []


@pytest.mark.parametrize("name", ["delivered", "read", "played", "failed"])
async def test_a_receipt_in_time_ends_the_wait(desk: Desk, name: str) -> None:
    await desk.know()
    await desk.post(statuses(status(name)))
    await desk.accept("wamid.A", "m-1")
    assert await desk.end_of(1) == []


async def test_a_receipt_after_the_deadline_is_told_as_usual(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    await desk.end_of(1)
    (event,) = await desk.post(statuses(status("delivered")))
    assert (event.message_id, event.status) == ("m-1", "delivered")


async def test_from_the_third_silent_message_on_it_is_probably_a_block(desk: Desk) -> None:
    await desk.know()
    for day in range(5):
        await desk.accept(f"wamid.{day}", f"m-{day}", day)
        await desk.post(statuses(status("delivered" if day == 0 else "sent", f"wamid.{day}")), day)
    await desk.accept("wamid.X", "m-x", 4, contact="c-2")
    await desk.post(statuses(status("sent", "wamid.X")), 9)
    codes = {event.message_id: event.reason and event.reason.code for event in await desk.end_of(9)}
    silent, blocked = ReasonCode.NO_DELIVERY_RECEIPT, ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER
    assert codes == {"m-1": silent, "m-2": silent, "m-3": blocked, "m-4": blocked, "m-x": silent}


async def test_two_replicas_end_each_message_once(desk: Desk) -> None:
    await desk.know()
    for number in range(20):
        await desk.accept(f"wamid.{number}", f"m-{number}")
    both = await asyncio.gather(*(desk.end_of(1) for _ in range(4)))
    assert sorted(event.message_id or "" for events in both for event in events) == sorted(
        f"m-{number}" for number in range(20)
    )


async def test_unclaimed_elements_are_pruned_in_steps(desk: Desk) -> None:
    await desk.post(body(value(messages=[{**MESSAGE, "id": f"wamid.{n}"} for n in range(5)])))
    later = AT + store.KEEP_UNCLAIMED + timedelta(seconds=1)
    async with desk.pool.acquire() as connection:
        left = []
        while await store.prune(connection, later, limit=3):
            left.append(await connection.fetchval("select count(*) from unclaimed"))
        left.append(await connection.fetchval("select count(*) from unclaimed"))
    assert left == [2, 0]


async def test_pruning_goes_on_until_all_is_gone(desk: Desk) -> None:
    await desk.know()
    await desk.post(body(value(messages=[{**MESSAGE, "id": f"wamid.{n}"} for n in range(5)])))
    await desk.post(statuses(*(status("sent", f"wamid.{n}") for n in range(5))))
    later = AT + store.KEEP_AFTER_DEADLINE + timedelta(seconds=1)
    async with desk.pool.acquire() as connection:
        assert not await store.prune(connection, AT + timedelta(days=20), limit=3)
        assert await store.prune(connection, later, limit=3)
        assert not await store.prune(connection, later, limit=3)
        for table in ("message", "seen_status", "seen_report"):
            assert await connection.fetchval(f"select count(*) from {table}") == 0


async def test_pruning_forgets_only_what_cannot_come_back(desk: Desk) -> None:
    await desk.know()
    for wamid in ("wamid.A", "wamid.B"):
        await desk.post(statuses(status("sent", wamid)))
    async with desk.pool.acquire() as connection:
        await connection.execute("update message set prune_after = now() - interval '1 day' where wamid = 'wamid.A'")
        await connection.execute("update message set prune_after = now() + interval '1 day' where wamid = 'wamid.B'")
        await store.prune(connection, datetime.now(UTC))
        for table in ("message", "seen_status"):
            assert await connection.fetchval(f"select array_agg(wamid) from {table}") == ["wamid.B"]


async def test_what_comes_after_delivered_stands_by_its_status_alone(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1")
    versions = "select ctid, rank from message"
    async with desk.pool.acquire() as connection:
        await desk.post(statuses(status("delivered")), offset=1)
        before = await connection.fetch(versions)
        (read,) = await desk.post(statuses(status("read")), offset=2)
        assert await connection.fetch(versions) == before
        # All the same it is known.
        assert await desk.post(statuses(status("read")), offset=3) == []
        assert await desk.post(statuses(status("read")), offset=2) == [read]
        async with connection.transaction():
            played = await parsing.apply(connection, [delivery(statuses(status("played", errors=[])), 4)], APPS)
        assert played.verdict.applied == {("played", "yes"): 1}
        async with connection.transaction():
            late = await parsing.apply(connection, [delivery(statuses(status("delivered", pricing={})), 5)], APPS)
        assert late.verdict.applied == {("delivered", "stale"): 1}
        tag = TAGGER.of_person(WORKSPACE, contact_id="c-1")[0].hex()
        rows = await connection.fetch(erasures._MESSAGES, WORKSPACE, [tag], 10)
        assert [row["rank"] for row in rows] == [4]


async def test_whom_a_message_was_for_is_a_tag_that_an_order_takes_away(desk: Desk) -> None:
    await desk.know()
    await desk.accept("wamid.A", "m-1", contact="shopify:7712")
    await desk.accept("wamid.B", "m-2", contact="shopify:1")
    tag = TAGGER.of_person(WORKSPACE, contact_id="shopify:7712")[0].hex()
    kept = "select wamid, recipient from message order by wamid"
    async with desk.pool.acquire() as connection:
        assert (await connection.fetch(kept))[0]["recipient"] == tag
        order = PersonErasing(
            event_id=event_id_of("order", "x"),
            occurred_at=AT,
            workspace_id=WORKSPACE,
            erasure_id=event_id_of("erasure", "x"),
            erased_at=AT,
            tags=[tag],
            message_ids=["m-1"],
        )
        rows = await erasures.erase(connection, order)
        assert (rows[0].table, rows[0].act, rows[0].rows) == ("message", "blurred", 1)
        assert [bool(row["recipient"]) for row in await connection.fetch(kept)] == [False, True]
        assert "shopify" not in str(await connection.fetch("select * from message"))
