"""A person who writes without their number, known by their WhatsApp user id alone."""

import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from dispatcher import facts, people_store, store, tier_store
from dispatcher.answers import NotTaken, not_taken
from dispatcher.calls import message_body
from dispatcher.clock import utc_now
from dispatcher.decide import Message, Reject, Send, decide
from dispatcher.erasures import Eraser
from dispatcher.explaining import explained
from dispatcher.facts_store import Known
from dispatcher.windows import Window, spelled
from dispatcher_cases import NOW, PHONE, SENDER, contact, message, text_content
from dispatcher_desk import ACME, Desk, data_of, record
from sendwhy.events import ContactUpdated, Inbound, MarketingState, MessageReceived, MetaError, PersonErasing, Purpose
from sendwhy.postgres import connect_pool
from sendwhy.privacy import ERASURE
from sendwhy.topics import Topic

USER = "MX.7004"
HOUR = timedelta(hours=1)
REPLY = message(text_content(), purpose=Purpose.CONVERSATION)
SPELLED = spelled(PHONE)


# (the window of the number, that of the contact's user id, the contact's number, what is known of the person)
KNOWN: list[tuple[str, Window | None, Window | None, str | None, Window | None]] = [
    ("neither", None, None, PHONE, None),
    ("the number's", Window(NOW), None, PHONE, Window(NOW)),
    ("the id's", None, Window(NOW), PHONE, Window(NOW)),
    ("the id's, the number spelled otherwise", None, Window(NOW), "+5215512345678", Window(NOW)),
    ("the id's, of a contact without a number", None, Window(NOW), None, Window(NOW)),
    ("not the id's of whom another number belongs to", None, Window(NOW), "+447700900123", None),
    ("the later", Window(NOW - HOUR, NOW - HOUR), Window(NOW), PHONE, Window(NOW, NOW - HOUR)),
    ("the later, the other way round", Window(NOW), Window(NOW - HOUR), PHONE, Window(NOW)),
]


@pytest.mark.parametrize(("name", "own", "users", "phone", "expected"), KNOWN, ids=[case[0] for case in KNOWN])
def test_the_window_is_the_later_of_a_persons(
    name: str, own: Window | None, users: Window | None, phone: str | None, expected: Window | None
) -> None:
    found = Known(contacts={"c-1": (phone, None)}, users={"c-1": USER})
    found.windows.update({} if own is None else {PHONE: own})
    found.user_windows.update({} if users is None else {"c-1": users})
    assert facts.window_of(REPLY, found, SPELLED) == expected


def wrote(at: datetime, user: str = USER) -> MessageReceived:
    return MessageReceived(
        event_id=uuid4(),
        occurred_at=at,
        workspace_id="acme",
        sender_id=SENDER.sender_id,
        wamid="wamid.in",
        user_id=user,
        kind=Inbound.TEXT,
        text="hola",
        raw={},
    )


def linked(version: int = 2, **changes: Any) -> ContactUpdated:
    return contact(MarketingState.SUBSCRIBED, version).model_copy(update={"user_id": USER, **changes})


async def hear(desk: Desk, *events: MessageReceived) -> None:
    await desk.stages.on_inbound(desk.connection, [record(Topic.MESSAGE_RECEIVED, one) for one in events])


async def learn(desk: Desk, *states: ContactUpdated) -> None:
    await desk.stages.on_contacts(desk.connection, [record(Topic.CONTACT_UPDATED, one) for one in states])


def queued() -> Message:
    life = {"send_at": utc_now(), "expires_at": utc_now() + 9 * HOUR}
    return replace(REPLY, funded=REPLY.funded.model_copy(update=life), queued_at=utc_now() - timedelta(minutes=5))


async def verdict(desk: Desk, message: Message | None = None) -> Any:
    one = message or queued()
    known = (await facts.load(desk.connection, SENDER, [one], "block"))[one.key]
    return decide(one, replace(known, inbound_read_until=utc_now()), utc_now())


@pytest.mark.postgres
@pytest.mark.parametrize("known_first", [True, False])
async def test_who_writes_under_their_user_id_alone_is_answered(desk: Desk, *, known_first: bool) -> None:
    await learn(desk, linked(1, user_id=None))
    if known_first:
        await learn(desk, linked())
    await hear(desk, wrote(utc_now() - HOUR), wrote(utc_now(), user="MX.7005"))
    if not known_first:
        assert isinstance(await verdict(desk), Reject)
        await learn(desk, linked())
    assert isinstance(await verdict(desk), Send)
    # What was told of them last says that the id is another's.
    await learn(desk, linked(3, user_id=None))
    assert isinstance(await verdict(desk), Reject)


def without_number(one: Message) -> Message:
    resolved = one.funded.resolved.model_copy(update={"phone": None, "user_id": USER})
    return replace(one, funded=one.funded.model_copy(update={"resolved": resolved}))


@pytest.mark.parametrize(
    ("one", "addressed"),
    [
        (REPLY, {"to": PHONE}),
        (without_number(REPLY), {"recipient": USER}),
        (message(), {"to": PHONE}),
        (without_number(message()), {"recipient": USER}),
    ],
)
def test_meta_is_told_the_number_or_the_user_id(one: Message, addressed: dict[str, str]) -> None:
    body = json.loads(message_body(one))
    assert {name: body[name] for name in ("to", "recipient") if name in body} == addressed


@pytest.mark.postgres
async def test_a_reply_goes_to_the_user_id_within_the_window_that_it_opened(desk: Desk) -> None:
    reply = without_number(queued())
    assert isinstance(await verdict(desk, reply), Reject)
    await hear(desk, wrote(utc_now(), user="MX.7005"))
    assert isinstance(await verdict(desk, reply), Reject)
    await hear(desk, wrote(utc_now()))
    assert isinstance(await verdict(desk, reply), Send)


@pytest.mark.postgres
async def test_who_stops_under_a_user_id_takes_out_what_goes_there_whoever_has_it_by_now(desk: Desk) -> None:
    """As by a number: the contact that the message is for has lost the id meanwhile."""
    campaign = without_number(replace(message(), funded=queued().funded))

    async def state_that_stops() -> ContactUpdated | None:
        return (await facts.load(desk.connection, SENDER, [campaign], "block"))[campaign.key].contact

    await learn(desk, linked(phone=None))
    assert await state_that_stops() is None
    stopped = contact(MarketingState.UNSUBSCRIBED, 9).model_copy(update={"contact_id": "wa-1", "user_id": USER})
    await learn(desk, stopped.model_copy(update={"phone": None}))
    assert await state_that_stops() is None, "whose id it still is has the newest state itself"
    await learn(desk, linked(3, phone=None, user_id=None))
    state = await state_that_stops()
    assert state is not None
    assert state.contact_id == "wa-1"


@pytest.mark.postgres
async def test_metas_cap_on_marketing_holds_for_the_user_id(desk: Desk) -> None:
    campaign = without_number(replace(message(), funded=queued().funded))
    await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, campaign.funded)])
    await people_store.set_caps(desk.connection, {campaign.key: utc_now() + HOUR})
    known = (await facts.load(desk.connection, SENDER, [campaign], "block"))[campaign.key]
    assert known.capped_until is not None


@pytest.mark.postgres
async def test_an_erased_user_id_leaves_the_windows_the_caps_and_the_counts(desk: Desk) -> None:
    await store.put_sender(desk.connection, ACME, utc_now())
    await hear(desk, wrote(utc_now()), wrote(utc_now(), user="MX.7005"))
    await tier_store.add_reached(desk.connection, SENDER.tier_key, [USER, "MX.7005"], utc_now())
    waits = without_number(queued()).funded
    other = waits.model_copy(
        update={
            "request": waits.request.model_copy(update={"message_id": "m-2"}),
            "resolved": waits.resolved.model_copy(update={"user_id": "MX.7005"}),
        }
    )
    await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, one) for one in (waits, other)])
    await people_store.set_caps(desk.connection, {("acme", name): utc_now() + HOUR for name in ("m-1", "m-2")})
    order = PersonErasing(
        event_id=uuid4(),
        occurred_at=utc_now(),
        workspace_id="acme",
        erasure_id=uuid4(),
        erased_at=utc_now(),
        tags=[],
        message_ids=["m-1"],
    )
    tables = ("conversation_window", "marketing_cap", "reached_person", "message")

    async def kept() -> list[set[str | None]]:
        rows = [await desk.connection.fetch(f"select phone from {table}") for table in tables]
        return [{row["phone"] for row in several} & {USER, "MX.7005"} for several in rows]

    assert await kept() == [{USER, "MX.7005"}] * 4
    async with desk.connection.transaction():
        await Eraser(utc_now, desk.publish_soon).erase(desk.connection, order)
    assert await kept() == [{"MX.7005"}] * 4


@pytest.mark.postgres
async def test_a_closed_window_is_told_by_the_last_message_whatever_it_came_under(desk: Desk) -> None:
    last = utc_now() - 30 * HOUR
    await learn(desk, linked())
    await hear(desk, wrote(last), wrote(last - HOUR).model_copy(update={"phone": PHONE}))
    ours = await verdict(desk)
    assert isinstance(ours, Reject)
    closed_at = (last + 24 * HOUR).isoformat(timespec="seconds").replace("+00:00", "Z")
    assert ours.reason.evidence["closed_at"] == closed_at
    told = await explained(desk.connection, queued(), not_taken(MetaError(code=131047), attempt=1, jitter=0.0))
    assert isinstance(told, NotTaken)
    assert told.reason.evidence["closed_at"] == closed_at


@pytest.mark.postgres
async def test_an_erased_persons_user_id_is_forgotten_with_what_it_opened(desk: Desk) -> None:
    now = utc_now()
    await hear(desk, wrote(now - HOUR), wrote(now - HOUR, user="MX.7005"))
    gone = {"phone": None, "user_id": None, "source": ERASURE, "occurred_at": now}
    await learn(desk, linked(), contact(MarketingState.UNSUBSCRIBED, 3).model_copy(update=gone))
    assert [row["phone"] for row in await desk.connection.fetch("select phone from conversation_window")] == ["MX.7005"]
    assert await desk.connection.fetchval("select count(*) from contact where user_id is not null") == 0


@pytest.mark.postgres
async def test_a_persons_data_have_the_window_of_their_user_id(migrated_database: str) -> None:
    opened = utc_now()
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        columns = "sender_id, workspace_id, waba_id, portfolio_id, token"
        await connection.execute(f"insert into sender ({columns}) values ('5', 'acme', '3', '2', '')")
        await people_store.save_contacts(connection, [linked()])
        await people_store.open_windows(connection, {("5", USER): Window(opened), ("5", "MX.1"): Window(opened)})

    answer = await data_of(pool, "c-1")
    await pool.close()
    assert [one["phone"] for one in answer.json()["windows"]] == [USER]
