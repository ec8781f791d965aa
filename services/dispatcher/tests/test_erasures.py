"""Erasure in the dispatcher: nothing that waits goes out, and nothing that is kept names the person."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from dispatcher import people_store, queue_store, tier_store
from dispatcher.clock import utc_now
from dispatcher.decide import Recall, decide
from dispatcher.erasures import CAP, Eraser, prune
from dispatcher.stages import Stages
from dispatcher.store import NewSender
from dispatcher.windows import Window
from dispatcher_cases import FACTS, NOW, PHONE, SENDER, contact, funded, message, template_content, text_content
from dispatcher_desk import data_of, known_of
from pydantic import SecretStr
from sendwhy.events import (
    ContactUpdated,
    Inbound,
    MarketingState,
    MessageReceived,
    PersonErasing,
    Purpose,
    SendRecalled,
)
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool, unpublished
from sendwhy.privacy import ERASURE, Tagger, alias_of, is_alias, redacted
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
ACME = NewSender(SENDER.sender_id, "acme", "300", "200", None, True, b"sealed")
KEY = "a key of tests only"
CANARIES = ("5512345678", '"c-1"', "Ines")


class Desk:
    metrics = Metrics(Service.DISPATCHER)
    settings = type("Settings", (), {"receipt_ttl_seconds": 60, "privacy_key": SecretStr(KEY)})()

    def __init__(self, connection: Any) -> None:
        self.connection: asyncpg.Connection = connection
        self.stages = Stages(self, self.settings, self, utc_now)  # type: ignore[arg-type]

    def publish_soon(self) -> None: ...

    def wake(self, sender_id: str) -> None: ...

    async def queue(self, **by_name: Purpose) -> None:
        events = [
            funded(template_content("Ines"), purpose=purpose, message_id=name) for name, purpose in by_name.items()
        ]
        await self.stages.on_funded(self.connection, [record(Topic.SEND_FUNDED, event) for event in events])

    async def erase(self, order: PersonErasing) -> dict[tuple[str, str], int]:
        async with self.connection.transaction():
            rows = await Eraser(utc_now, self.publish_soon).erase(self.connection, order)
        return {(one.table, one.act): one.rows for one in rows if one.act != "kept"}

    async def recalled(self) -> dict[str, SendRecalled]:
        rows = await unpublished(self.connection, older_than_seconds=-1, limit=1000)
        values = [one.value or b"" for one in rows.values() if one.topic == Topic.SEND_RECALLED]
        events = [SendRecalled.model_validate_json(value) for value in values]
        return {event.message_id: event for event in events}

    async def states(self) -> dict[str, str]:
        return {row["message_id"]: row["state"] for row in await self.connection.fetch("select * from message")}

    async def dump(self) -> str:
        tables = ("message", "contact", "conversation_window", "marketing_cap", "reached_person", "outbox")
        return str([await self.connection.fetch(f"select * from {table}") for table in tables])


def record(topic: Topic, event: Any, key: bytes | None = None) -> Record[Any]:
    return Record(event, topic, 0, 0, datetime.now(UTC), key, None, ())


def ordered(*message_ids: str) -> PersonErasing:
    tags = Tagger(KEY).of_person("acme", contact_id="c-1", phone="5215512345678")
    return PersonErasing(
        event_id=uuid4(),
        occurred_at=utc_now(),
        workspace_id="acme",
        erasure_id=uuid4(),
        erased_at=utc_now(),
        tags=[tag.hex() for tag in tags],
        message_ids=list(message_ids),
    )


def wrote(at: datetime) -> MessageReceived:
    return MessageReceived(
        event_id=uuid4(),
        occurred_at=at,
        workspace_id="acme",
        sender_id=SENDER.sender_id,
        wamid="wamid.in",
        phone="+5215512345678",
        kind=Inbound.TEXT,
        text="hola",
        raw={},
    )


@pytest.fixture
async def desk(connection: Any) -> Desk:
    return Desk(connection)


async def test_all_that_waits_is_recalled_and_all_that_is_kept_is_blurred(desk: Desk) -> None:
    await desk.queue(sent=Purpose.TRANSACTIONAL, out=Purpose.MARKETING)
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await queue_store.mark_in_flight(desk.connection, [("acme", "sent"), ("acme", "out")], fence)
    taken = queue_store.Result(("acme", "sent"), 1, "accepted", message().waiting_for, None, "wamid.A", "accepted", [])
    await queue_store.record_results(desk.connection, [taken])
    await desk.queue(marketing=Purpose.MARKETING, transactional=Purpose.TRANSACTIONAL, reply=Purpose.CONVERSATION)
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, wrote(utc_now()))])
    await people_store.set_caps(desk.connection, {("acme", "sent"): utc_now() + timedelta(hours=1)})
    await tier_store.add_reached(desk.connection, "acme/200", [PHONE], utc_now())
    order = ordered("sent", "out", "marketing", "transactional", "reply", "unknown-here")
    assert await desk.erase(order) == {
        ("message", "recalled"): 3,
        ("message", "blurred"): 5,
        ("contact", "erased"): 0,
        ("conversation_window", "erased"): 2,
        ("marketing_cap", "erased"): 1,
        ("reached_person", "blurred"): 1,
    }
    waiting = dict.fromkeys(("marketing", "transactional", "reply"), "recalled")
    assert await desk.states() == {"sent": "accepted", "out": "in_flight", **waiting}
    assert {(one.contact.source, one.funded.resolved.phone) for one in (await desk.recalled()).values()} == {
        (ERASURE, None)
    }
    assert not [one for one in CANARIES if one in await desk.dump()]
    # Meta counts the person too.
    assert await desk.connection.fetchval("select count(*) from reached_person") == 1
    again = await desk.erase(order.model_copy(update={"event_id": uuid4()}))
    assert again["message", "blurred"] == 0


async def test_what_comes_later_than_the_order_is_recalled_at_once_without_its_person(desk: Desk) -> None:
    order = ordered("late")
    await desk.erase(order)
    await desk.queue(late=Purpose.TRANSACTIONAL, other=Purpose.TRANSACTIONAL)
    assert await desk.states() == {"late": "recalled", "other": "waiting"}
    recalled = (await desk.recalled())["late"]
    assert recalled.contact.contact_id == alias_of(order.erasure_id)
    assert recalled.funded.resolved.contact_id == alias_of(order.erasure_id)


def test_a_try_that_comes_back_after_the_erasure_is_not_made_again() -> None:
    for content in (template_content("Ines"), text_content()):
        blurred = message(redacted(funded(content), alias_of(uuid4())).request.content)
        blurred = type(blurred)(
            redacted(funded(content), alias_of(uuid4())), SENDER.sender_id, blurred.lane, blurred.queued_at
        )
        verdict = decide(blurred, FACTS, NOW)
        assert isinstance(verdict, Recall)
        assert is_alias(verdict.contact.contact_id)


async def test_what_the_person_wrote_before_opens_no_window_again(desk: Desk) -> None:
    before, order = utc_now() - timedelta(minutes=5), ordered()
    await desk.erase(order)
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, wrote(before))])
    assert await desk.connection.fetchval("select count(*) from conversation_window") == 0
    anew = wrote(order.erased_at + timedelta(seconds=1))
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, anew)])
    assert (await known_of(desk.connection)).windows == {PHONE: Window(anew.occurred_at)}


async def test_the_copy_of_a_contact_leads_to_its_windows_whichever_comes_first(desk: Desk) -> None:
    state = contact(MarketingState.SUBSCRIBED, 1)
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, wrote(utc_now()))])
    batch = [record(Topic.CONTACT_UPDATED, one, b"acme/c-1") for one in (state, last_state(utc_now()), None)]
    await desk.stages.on_contacts(desk.connection, batch)
    assert "5512345678" not in await desk.dump()


@pytest.mark.parametrize("batches", [[1, 1], [2]], ids=["each alone", "together"])
async def test_a_state_that_comes_behind_the_tombstone_brings_nobody_back(desk: Desk, batches: list[int]) -> None:
    first = contact(MarketingState.SUBSCRIBED, 1)
    await desk.stages.on_contacts(desk.connection, [record(Topic.CONTACT_UPDATED, first)])
    order = ordered()
    await desk.erase(order)
    late = first.model_copy(update={"version": 2, "occurred_at": order.erased_at - timedelta(seconds=1)})
    told = [record(Topic.CONTACT_UPDATED, one, b"acme/c-1") for one in (None, late)]
    for count in batches:
        await desk.stages.on_contacts(desk.connection, told[:count])
        told = told[count:]
    assert not [one for one in CANARIES if one in await desk.dump()]
    anew = first.model_copy(update={"version": 4, "occurred_at": order.erased_at + timedelta(seconds=1)})
    await desk.stages.on_contacts(desk.connection, [record(Topic.CONTACT_UPDATED, anew)])
    assert (await people_store.contacts(desk.connection, [("acme", "c-1")])).keys() == {("acme", "c-1")}


def last_state(erased_at: datetime) -> ContactUpdated:
    told = {"phone": None, "source": ERASURE, "occurred_at": erased_at}
    return contact(MarketingState.UNSUBSCRIBED, 2).model_copy(update=told)


@pytest.mark.parametrize("told_by", ["order", "contact"])
async def test_what_began_after_the_erasure_stays(desk: Desk, told_by: str) -> None:
    order = ordered("before")
    await desk.queue(before=Purpose.TRANSACTIONAL)
    await desk.stages.on_contacts(
        desk.connection, [record(Topic.CONTACT_UPDATED, contact(MarketingState.SUBSCRIBED, 1), b"acme/c-1")]
    )
    later = order.erased_at + timedelta(seconds=1)
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, wrote(later))])
    await people_store.set_caps(desk.connection, {("acme", "before"): later + CAP})
    await tier_store.add_reached(desk.connection, "acme/200", [PHONE], later)
    if told_by == "order":
        await desk.erase(order)
    else:
        batch = [record(Topic.CONTACT_UPDATED, one, b"acme/c-1") for one in (last_state(order.erased_at), None)]
        await desk.stages.on_contacts(desk.connection, batch)
    assert (await known_of(desk.connection)).windows == {PHONE: Window(later)}
    assert (await known_of(desk.connection)).caps == {PHONE: later + CAP}
    assert await tier_store.reached_people(desk.connection, "acme/200", [PHONE], later) == {PHONE}


async def test_numbers_are_kept_no_longer_than_their_limits_last(desk: Desk) -> None:
    old = utc_now() - timedelta(hours=49)
    await people_store.open_windows(
        desk.connection, {(SENDER.sender_id, PHONE): Window(old), (SENDER.sender_id, "+1"): Window(utc_now())}
    )
    await tier_store.add_reached(desk.connection, "acme/200", [PHONE], old)
    await prune(desk.connection, utc_now())
    assert await desk.connection.fetchval("select count(*) from conversation_window") == 1
    assert "5512345678" not in await desk.dump()


async def test_a_persons_data_are_found_by_an_id_with_slashes(migrated_database: str) -> None:
    contact_id = "gid://shop/5"
    state = contact(MarketingState.SUBSCRIBED, 1).model_copy(update={"contact_id": contact_id})
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        await people_store.save_contacts(connection, [state])

    answer = await data_of(pool, contact_id)
    await pool.close()
    assert answer.status_code == 200, answer.text
    assert answer.json()["contact"]["contact_id"] == contact_id
