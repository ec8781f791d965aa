"""Erasure in the message log, on a real PostgreSQL: whatever comes before the order or after it names nobody."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import asyncpg
import message_log
import pytest
from message_log import projection
from message_log.erasures import People
from message_log.projection import write_contacts, write_customers, write_events, write_inbound
from message_log.settings import MessageLogSettings
from message_log.store import SenderRow as KnownSender
from message_log.store import set_senders, without_person
from message_log_builders import MESSAGE, WORKSPACE, after, consented, rejected, requested, status
from pydantic import SecretStr
from sendwhy.events import (
    ContactUpdated,
    CustomerUpdated,
    Inbound,
    MarketingState,
    MessageReceived,
    PersonErasing,
    Status,
    Wire,
)
from sendwhy.postgres import migrate
from sendwhy.privacy import Tagger
from sendwhy.reasons import ReasonCode
from sendwhy.stage import Record
from sendwhy.topics import Topic, topic_of

pytestmark = pytest.mark.postgres
KEY = "a key of tests only"
CONTACT, PHONE, BSUID = "shopify:7712", "+525512345678", "MX.77"
CANARIES = ("5512345678", "shopify:7712", '"4711"', "Ines", BSUID, "hola")
SETTINGS = MessageLogSettings(
    kafka_bootstrap_servers="nowhere:9092",
    database_url=SecretStr("postgresql://nowhere"),
    api_tokens=SecretStr(""),
    privacy_key=SecretStr(KEY),
)
PEOPLE = People(SETTINGS)


def order() -> PersonErasing:
    at = after(100)
    tagger = Tagger(KEY)
    tags = tagger.of_person(WORKSPACE, contact_id=CONTACT, phone=PHONE, user_id=BSUID)
    tags += tagger.of_person(WORKSPACE, phone="5215512345678")
    return PersonErasing(
        event_id=uuid4(),
        occurred_at=at,
        workspace_id=WORKSPACE,
        erasure_id=uuid4(),
        erased_at=at,
        tags=[tag.hex() for tag in tags],
        message_ids=[MESSAGE],
    )


def record(event: Wire | None, topic: Topic | None = None, key: str | None = None) -> Any:
    where = topic or topic_of(type(event))  # type: ignore[arg-type]
    value = event.to_json() if event else None
    return Record(event, where, 0, uuid4().int % 10**9, after(50), key.encode() if key else None, value, ())


def wrote(seconds: float) -> MessageReceived:
    return MessageReceived(
        event_id=uuid4(),
        occurred_at=after(seconds),
        workspace_id=WORKSPACE,
        sender_id="415566778899001",
        wamid=f"wamid.in.{seconds}",
        phone="+5215512345678",
        user_id=BSUID,
        profile_name="Ines",
        kind=Inbound.TEXT,
        text="hola",
        raw={"text": {"body": "hola"}},
    )


def customer(seconds: float, contact_id: str = CONTACT) -> CustomerUpdated:
    return CustomerUpdated(
        event_id=uuid4(),
        occurred_at=after(seconds),
        source="shopify",
        action="update",
        workspace_id=WORKSPACE,
        contact_id=contact_id,
        phone=PHONE,
        name="Ines",
    )


def state(version: int, seconds: float, contact_id: str = CONTACT) -> ContactUpdated:
    return ContactUpdated(
        event_id=uuid4(),
        occurred_at=after(seconds),
        workspace_id=WORKSPACE,
        contact_id=contact_id,
        version=version,
        phone=PHONE,
        name="Ines",
        marketing_state=MarketingState.SUBSCRIBED,
        since=after(seconds),
        source="import",
    )


class Log:
    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection

    async def tell(self, *events: Wire) -> None:
        for event in events:
            async with self.connection.transaction():
                if isinstance(event, MessageReceived):
                    await write_inbound(self.connection, [record(event)], PEOPLE)
                elif isinstance(event, CustomerUpdated):
                    await write_customers(self.connection, [record(event)], PEOPLE)
                elif isinstance(event, ContactUpdated):
                    key = f"{WORKSPACE}/{event.contact_id}"
                    await write_contacts(self.connection, [record(event, key=key)], PEOPLE)
                else:
                    await write_events(self.connection, [record(event)])

    async def bury(self) -> None:
        tombstone = record(None, Topic.CONTACT_UPDATED, f"{WORKSPACE}/{CONTACT}")
        async with self.connection.transaction():
            await write_contacts(self.connection, [tombstone], PEOPLE)

    async def erase(self, given: PersonErasing) -> dict[tuple[str, str], int]:
        async with self.connection.transaction():
            rows = await PEOPLE.erase(self.connection, given)
        return {(one.table, one.act): one.rows for one in rows if one.act != "kept"}

    async def dump(self) -> str:
        """Everything, as text; bytes as they are."""
        tables = ("message", "event", "inbound", "known_state", "event_of", "erased_person")
        return str([await self.connection.fetch(f"table {table}") for table in tables])


@pytest.fixture
async def log(migrated_database: str) -> AsyncIterator[Log]:
    connection = await asyncpg.connect(migrated_database)
    yield Log(connection)
    await connection.close()


def life() -> list[Wire]:
    impossible = rejected(ReasonCode.PHONE_NUMBER_IMPOSSIBLE, seconds=2)
    evidence = impossible.reason.model_copy(update={"detail": f"{PHONE} can't exist", "evidence": {"phone": PHONE}})
    return [
        state(1, 0),
        customer(1),
        requested(),
        consented(),
        impossible.model_copy(update={"reason": evidence}),
        status(Status.ACCEPTED, 3),
        wrote(4),
    ]


@pytest.mark.parametrize("tombstone_first", [True, False])
async def test_an_order_after_the_life_leaves_nothing(log: Log, tombstone_first: bool) -> None:
    await log.tell(*life())
    assert "5512345678" in await log.dump()
    if tombstone_first:
        await log.bury()
    rows = await log.erase(order())
    await log.bury()
    assert not [one for one in CANARIES if one in await log.dump()]
    assert rows["message", "blurred"] == 1
    assert rows["event", "erased"] == 7
    assert rows["inbound", "erased"] == 1
    (row,) = await log.connection.fetch("select outcome, wamid from message")
    assert tuple(row) == ("accepted", "wamid.HBgM1")


async def test_an_order_before_the_life_leaves_nothing_either(log: Log) -> None:
    await log.erase(order())
    assert await log.connection.fetchval("select count(*) from message_now") == 0
    await log.tell(*life())
    await log.bury()
    assert not [one for one in CANARIES if one in await log.dump()]
    assert await log.connection.fetchval("select count(*) from event") == 7
    assert await log.connection.fetchval("select count(*) from inbound") == 0
    assert await without_person(log.connection, [(WORKSPACE, MESSAGE)]) == {(WORKSPACE, MESSAGE)}


async def test_a_state_that_comes_behind_the_tombstone_brings_nobody_back(log: Log) -> None:
    await log.tell(state(1, 0))
    await log.erase(order())
    await log.bury()
    await log.tell(state(2, 4))
    assert not [one for one in CANARIES if one in await log.dump()]
    await log.tell(state(5, 300))
    assert await log.connection.fetchval("select version from known_state") == 5


async def test_who_comes_back_is_new_and_who_shares_a_number_stays(log: Log) -> None:
    other = state(1, 0, "shopify:1")
    await log.tell(other, state(1, 0))
    await log.erase(order())
    await log.tell(requested(message_id="new"), consented(message_id="new"), wrote(200))
    # Nothing orders the topics: the tombstone may be the last that is read.
    await log.bury()
    await log.tell(customer(150))
    assert await log.connection.fetchval("select count(*) from inbound") == 1
    assert await without_person(log.connection, [(WORKSPACE, "new")]) == set()
    assert await log.connection.fetchval("select contact_id from message where message_id = 'new'") == CONTACT
    bodies = "select count(*) from event where body is not null and kind = $1"
    assert await log.connection.fetchval(bodies, "contact.updated") == 1
    assert await log.connection.fetchval(bodies, "message.received") == 1
    assert await log.connection.fetchval(bodies, "requested") == 1
    # A shop that goes on telling of the person brings nothing back, until consent has them again.
    assert await log.connection.fetchval(bodies, "customer.updated") == 0
    await log.tell(state(3, 300), customer(301))
    assert await log.connection.fetchval(bodies, "customer.updated") == 1


async def test_dead_letters_of_an_erased_message_have_no_bytes(log: Log) -> None:
    await log.erase(order())
    value = requested().to_json()
    headers = (("service", b"consent"), ("topic", b"send.requested"), ("error", b"unreadable: x"))
    dead = Record(None, Topic.DEAD_LETTERS, 0, 1, after(1), None, value, headers)
    async with log.connection.transaction():
        await projection.write_dead_letters(log.connection, [dead])
    assert await log.connection.fetchval("select body from event") is None


async def test_what_a_person_wrote_stands_once_however_often_it_is_told(log: Log) -> None:
    first = wrote(4).model_copy(update={"kind": Inbound.OTHER, "text": None})
    again = first.model_copy(update={"event_id": uuid4(), "kind": Inbound.BUTTON, "text": "Stop"})
    other_number = wrote(4).model_copy(update={"sender_id": "415566778899002", "text": "hola"})
    await log.tell(first, again, again, other_number)
    # Read by an older parser once more.
    await log.tell(first)
    rows = await log.connection.fetch("select kind, text from inbound order by sender_id")
    assert [tuple(row) for row in rows] == [("button", "Stop"), ("text", "hola")]
    await log.erase(order())
    assert await log.connection.fetchval("select count(*) from inbound") == 0


async def test_what_came_under_a_user_id_alone_is_the_persons_too(log: Log) -> None:
    alone = wrote(4).model_copy(update={"phone": None})
    await log.tell(alone, state(1, 5).model_copy(update={"user_id": BSUID}))
    assert await log.connection.fetchval("select phone from inbound") == BSUID
    await log.erase(order())
    await log.bury()
    await log.tell(alone)
    assert BSUID not in await log.dump()
    # What is said to a group stands in no thread.
    await log.tell(wrote(200).model_copy(update={"phone": None, "raw": {"group_id": "Y2Fw"}}))
    assert await log.connection.fetchval("select phone from inbound") is None


async def test_what_an_unknown_number_was_told_is_nobodys_until_it_is_claimed(log: Log) -> None:
    told = wrote(4)
    await log.tell(told.model_copy(update={"workspace_id": None, "text": "forged"}))
    number = KnownSender(told.sender_id, WORKSPACE, "77", 1, is_default=True, free_since=None)
    await set_senders(log.connection, [number], [])
    assert await log.connection.fetchval("select count(*) from inbound") == 0
    await log.tell(told.model_copy(update={"event_id": uuid4()}))
    assert await log.connection.fetchval("select text from inbound") == "hola"


async def test_messages_that_stood_twice_stand_once_after_the_upgrade(fresh_database: str, tmp_path: Path) -> None:
    migrations = Path(message_log.__file__ or "").parent / "migrations"
    before = tmp_path / "before"
    before.mkdir()
    for file in migrations.glob("*.sql"):
        if file.name < "0009":
            (before / file.name).write_text(file.read_text())
    await migrate(fresh_database, before)
    connection = await asyncpg.connect(fresh_database)
    add = "insert into inbound values ($1, $2, '41', '52', $3, now(), $4, $5)"
    for workspace, wamid, kind, text in [
        (WORKSPACE, "a", "other", None),
        (WORKSPACE, "a", "text", "hola"),
        (WORKSPACE, "b", "text", "hi"),
        (None, "c", "text", "whose?"),
    ]:
        await connection.execute(add, uuid4(), workspace, wamid, kind, text)
    await migrate(fresh_database, migrations)
    rows = await connection.fetch("select wamid, text from inbound order by wamid")
    assert [tuple(row) for row in rows] == [("a", "hola"), ("b", "hi")]
    await connection.close()
