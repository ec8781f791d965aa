"""Consent's stages on a real database: repeats, opt-outs, copies, erasure."""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import consent
import pytest
from consent import keyword_store, store
from consent.contacts import Key, Mark
from consent.keywords import Kept, Keywords
from consent.stages import parse_stopped
from consent_desk import (
    NOON,
    PHONE,
    SENDER,
    TAGGER,
    Desk,
    at,
    contact_in,
    customer,
    message,
    record,
    request,
    sender,
    template,
)
from pydantic import ValidationError
from sendwhy.events import (
    ContactUpdated,
    CustomerUpdated,
    Inbound,
    MarketingState,
    Price,
    SendConsented,
    SendFunded,
    SendRecalled,
    SendRejected,
    SendRequested,
    Status,
    StatusUpdated,
    reason,
)
from sendwhy.postgres import connect_pool, migrate
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record, Unreadable
from sendwhy.topics import Outgoing, Topic

pytestmark = pytest.mark.postgres
S, R = MarketingState, ReasonCode
MIGRATIONS = Path(consent.__file__).parent / "migrations"


def link(minutes: float, **more: Any) -> CustomerUpdated:
    """webhook-ingest's word on a status `delivered` that names its person by both."""
    told = {"source": "meta", "action": "link", "contact_id": None, "marketing_state": None, "sender_id": SENDER}
    return customer(minutes, **told, **{"phone": "+5215512345678", "user_id": "MX.118", **more})


def codes(published: list[Outgoing]) -> list[ReasonCode | None]:
    return [
        SendRejected.model_validate_json(one.value or b"").reason.code if one.topic == Topic.SEND_REJECTED else None
        for one in published
    ]


async def test_a_repeat_gets_the_same_bytes_also_when_the_world_has_changed(desk: Desk) -> None:
    await desk.tell(customer())
    first = await desk.request(request())
    assert codes(first) == [None]
    await desk.tell(message("STOP", 1))
    assert await desk.request(request(), request("m-2"), request()) == [*first, *(await desk.request(request("m-2")))]
    assert codes(await desk.request(request("m-2"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]


async def test_a_rejection_counts_once(desk: Desk) -> None:
    await desk.request(request(), request())
    await desk.request(request())
    text = desk.metrics.text().decode()
    assert 'sendwhy_messages_rejected_total{reason="CUSTOMER_IS_NOT_OPTED_IN",service="consent"} 1.0' in text
    assert 'sendwhy_requests_total{origin_kind="campaign",result="duplicate"} 2.0' in text


async def test_an_invalid_request_leaves_its_id_free(desk: Desk) -> None:
    await desk.tell(customer())
    wrong = record(request(expires_at=at(-60)))
    refused = await desk.handle(desk.stages.on_requested, wrong)
    assert codes(refused) == [R.INVALID_REQUEST, None]
    assert await desk.handle(desk.stages.on_requested, wrong) == refused
    assert codes(await desk.request(request())) == [None]
    assert codes(await desk.request(request(expires_at=at(-60)))) == [None]


async def test_a_request_that_cannot_be_used_is_put_aside_as_it_came(desk: Desk) -> None:
    """Also one that can be parsed; without another letter for each time that its record is read."""
    wrong = record(request(send_at=at(100), expires_at=at(50)), key=b"shopify:7712")
    told = await desk.handle(desk.stages.on_requested, wrong)
    (letter,) = [one for one in told if one.topic == Topic.DEAD_LETTERS]
    assert (letter.key, letter.value) == (b"shopify:7712", wrong.value)
    assert {name: value.decode() for name, value in letter.headers} == {
        "service": "consent",
        "topic": "send.requested",
        "partition": "0",
        "offset": str(wrong.offset),
        "error": "invalid: expires_at: must not be before send_at",
    }
    assert await desk.handle(desk.stages.on_requested, wrong) == told
    counted = 'sendwhy_dead_letters_total{error="invalid",topic="send.requested"} 2.0'
    assert counted in desk.metrics.text().decode()


async def test_an_unreadable_request_is_told_as_far_as_its_ids_can_be_read(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request("taken"))
    fields = ("to: Field required",)
    entries = [
        Unreadable(record(None, value=b'{"message_id":"m-1","workspace_id":"acme","to":7}'), "unreadable", fields),
        Unreadable(record(None, value=b'{"message_id":"taken","workspace_id":"acme"}'), "unreadable", fields),
        Unreadable(record(None, value=b'{"message_id":"m-1"'), "unreadable", fields),
        Unreadable(record(None, value=None), "unreadable", fields),
    ]
    async with desk.pool.acquire() as connection:
        published = list(await desk.stages.on_unreadable(connection, entries, []))
        assert published == list(await desk.stages.on_unreadable(connection, entries, []))
    assert codes(published) == [R.INVALID_REQUEST]
    event = SendRejected.model_validate_json(published[0].value or b"")
    assert event.reason.evidence == {"fields": ["to: Field required"]}
    assert codes(await desk.request(request())) == [None]


ECHOED: dict[str, Any] = {
    "sender_id": SENDER,
    "to": {"contact_id": "shopify:7712", "phone": PHONE},
    "origin": {"kind": "campaign", "id": "black-friday", "name": "Black Friday"},
    "metadata": {"k": 1, "deep": [{"er": None}]},
}


@pytest.mark.parametrize(
    ("wrong", "lost"),
    [
        ({"purpose": "spam"}, {}),
        ({"content": None}, {}),
        ({"sender_id": 415566778899001}, {"sender_id": None}),
        ({"to": {}}, {"to": None}),
        ({"to": {"contact_id": "shopify:7712", "phone": 52}}, {"to": None}),
        ({"origin": {"kind": "spam"}}, {"origin": None}),
        ({"metadata": {"k": "x" * 2048}}, {"metadata": {}}),
        ({"metadata": "k", "to": 7, "origin": [], "sender_id": "me"}, dict.fromkeys(ECHOED) | {"metadata": {}}),
    ],
    ids=lambda case: " ".join(case) or "nothing",
)
async def test_an_unreadable_request_is_echoed_as_far_as_it_is_right(
    desk: Desk, wrong: dict[str, Any], lost: dict[str, Any]
) -> None:
    body = json.loads(request().to_json()) | ECHOED | wrong
    with pytest.raises(ValidationError):
        SendRequested.model_validate(body, strict=False)
    entry = Unreadable(record(None, value=json.dumps(body).encode()), "unreadable", ("purpose: is wrong",))
    (told,) = await desk.handle(lambda connection, _: desk.stages.on_unreadable(connection, [entry], []))
    event = SendRejected.model_validate_json(told.value or b"").model_dump(mode="json", exclude_none=True)
    due = {name: value for name, value in (ECHOED | lost).items() if value is not None}
    assert {name: event[name] for name in ECHOED if name in event} == due


Handed = tuple[Record[Any], tuple[str, ...] | None]


def asked_in(workspace: str, *kinds: str) -> list[Handed]:
    """Records of one message, in this order: usable, invalid or unreadable, these with what is wrong in them."""
    made: list[Handed] = []
    for kind in kinds:
        one = request(workspace_id=workspace, expires_at=at(-60) if kind == "invalid" else None)
        body = one.to_json() if kind != "unreadable" else one.to_json().replace(b'"campaign"', b'"spam"')
        made.append((record(one, value=body), ("origin.kind: is wrong",) if kind == "unreadable" else None))
    return made


async def handled(desk: Desk, batch: Sequence[Handed]) -> list[Outgoing]:
    """As a stage hands over a batch: first what of it can't be read."""
    bad = [Unreadable(one, "unreadable", fields) for one, fields in batch if fields]
    good = [one for one, fields in batch if not fields]
    told: list[Outgoing] = []
    if bad:
        told += await desk.handle(lambda connection, _: desk.stages.on_unreadable(connection, bad, good))
    return told + (await desk.handle(desk.stages.on_requested, *good) if good else [])


ORDERS = [
    (("unreadable", "usable"), 1),
    (("invalid", "usable"), 1),
    (("usable", "unreadable"), 0),
    (("usable", "invalid"), 0),
    (("invalid", "unreadable", "usable", "unreadable", "invalid", "usable"), 2),
    (("unreadable", "invalid", "unreadable"), 3),
]


@pytest.mark.parametrize(
    ("kinds", "refusals"), ORDERS, ids=lambda case: " ".join(map(str, case)) if isinstance(case, tuple) else ""
)
async def test_each_request_gets_what_it_deserves_however_the_topic_is_cut(
    desk: Desk, kinds: tuple[str, ...], refusals: int
) -> None:
    """What can't be used is refused where nothing was decided before it, in whatever batches it comes; a batch that is
    handled again (its offsets, or what it told, were lost) tells the same."""
    cuts = range(2 ** (len(kinds) - 1))
    for cut in cuts:
        records = asked_in(f"w-{cut}", *kinds)
        ends = [number + 1 for number in range(len(kinds) - 1) if cut >> number & 1] + [len(kinds)]
        batches = [records[start:end] for start, end in zip([0, *ends], ends, strict=False)]
        told: list[Outgoing] = []
        for batch in batches:
            first = await handled(desk, batch)
            assert await handled(desk, batch) == first
            told += first
        events = {
            event.event_id: event.reason.code
            for one in told
            if one.topic == Topic.SEND_REJECTED
            for event in [SendRejected.model_validate_json(one.value or b"")]
        }
        counted = Counter(events.values())
        assert counted[R.INVALID_REQUEST] == refusals, batches
        assert counted[R.CUSTOMER_IS_NOT_OPTED_IN] == ("usable" in kinds)


async def test_stop_then_a_replayed_old_start_stays_unsubscribed(desk: Desk) -> None:
    await desk.tell(customer(0))
    start, stop = message("START", 5), message("STOP", 10)
    assert contact_in(await desk.tell(start)).marketing_state == S.SUBSCRIBED
    stopped = await desk.tell(stop)
    assert contact_in(stopped).marketing_state == S.UNSUBSCRIBED
    assert [one.value for one in await desk.tell(start)] == [one.value for one in stopped]
    assert contact_in(await desk.tell(customer(20))).marketing_state == S.UNSUBSCRIBED
    assert contact_in(await desk.tell(message("start", 30))).marketing_state == S.SUBSCRIBED
    rows = await desk.pool.fetch(
        "select stood_state from contact_history where contact_id = 'shopify:7712' order by id"
    )
    states = [row["stood_state"] for row in rows]
    assert states == ["SUBSCRIBED", "SUBSCRIBED", "UNSUBSCRIBED", "UNSUBSCRIBED", "SUBSCRIBED"]


async def test_a_stop_from_a_stranger_makes_a_contact_and_small_talk_makes_none(desk: Desk) -> None:
    assert await desk.tell(message("hello", 1), message("please don't stop", 2)) == []
    assert await desk.tell(message("STOP", 1, workspace_id=None)) == []
    contact = contact_in(await desk.tell(message("Baja", 3)))
    assert contact.contact_id.startswith("wa-")
    assert (contact.phone, contact.source) == (PHONE, "stop_reply")
    assert contact_in(await desk.tell(customer(9))).marketing_state == S.UNSUBSCRIBED


async def test_a_quick_reply_button_counts(desk: Desk) -> None:
    await desk.tell(customer())
    tapped = message("No more of this", 1, kind=Inbound.BUTTON, payload="STOP")
    assert contact_in(await desk.tell(tapped)).source == "stop_button"
    booking = message("Cancel", 2, kind=Inbound.BUTTON, payload="cancel")
    assert await desk.tell(booking) == []


async def test_each_workspace_has_its_own_words(desk: Desk) -> None:
    async with desk.pool.acquire() as connection, connection.transaction():
        keywords = Keywords(stop=("fuera",), start_buttons=("PREF_1",), ignore=("baja",))
        await keyword_store.add_keywords(connection, "acme", Kept(keywords, 1, "ana", at(0)))
        await keyword_store.add_keywords(connection, "acme", Kept(replace(keywords, ignore=("alta",)), 2, "ana", at(0)))
    assert await desk.tell(message("alta", 1)) == []
    assert await desk.tell(message("Fuera", 2, workspace_id="globex")) == []
    published = await desk.handle(
        desk.stages.on_message, message("Fuera!", 3), message("Alta", 4), message("Alta", 5, workspace_id="globex")
    )
    states = {event.workspace_id: event for event in map(contact_in, ([one] for one in published))}
    assert (states["acme"].marketing_state, states["acme"].source) == (S.UNSUBSCRIBED, "stop_reply")
    assert states["globex"].marketing_state == S.SUBSCRIBED
    tapped = message("Sí", 6, kind=Inbound.BUTTON, payload="pref_1")
    assert contact_in(await desk.tell(tapped)).source == "start_button"
    assert contact_in(await desk.tell(message("Baja", 7))).marketing_state == S.UNSUBSCRIBED


async def test_one_query_finds_the_words_of_all_workspaces_in_a_batch(desk: Desk) -> None:
    batch = [record(message("hello", i, workspace_id=f"w-{i}", phone=None)) for i in range(500)]
    statements: list[str] = []
    async with desk.pool.acquire() as connection, connection.transaction():
        with connection.query_logger(lambda query: statements.append(query.query)):
            assert await desk.stages.on_message(connection, batch) == []
    assert len(statements) == 1


async def test_a_stop_tells_when_its_webhook_came(desk: Desk) -> None:
    await desk.tell(customer())
    came = at(1.5)
    for event in (message("STOP", 1, observed_at=came), customer(2, action="stop", observed_at=came)):
        (told,) = await desk.tell(event)
        assert dict(told.headers)["received_at"] == came.isoformat().encode()
        assert await desk.tell(event) == [told]
    for event in (message("start", 3, observed_at=came), message("hello", 4, user_id="MX.7", observed_at=came)):
        (told,) = await desk.tell(event)
        assert "received_at" not in dict(told.headers)


async def test_metas_own_stop_control(desk: Desk) -> None:
    await desk.tell(customer())
    control = {"source": "meta", "contact_id": None, "marketing_state": None}
    stop = customer(1, action="stop", sender_id=SENDER, phone="525512345678", **control)
    assert contact_in(await desk.tell(stop)).source == "user_preferences"
    resume = customer(2, action="resume", sender_id=SENDER, phone="525512345678", **control)
    assert contact_in(await desk.tell(resume)).marketing_state == S.SUBSCRIBED


async def test_metas_own_stop_control_needs_no_phone_and_an_old_resume_undoes_nothing(desk: Desk) -> None:
    await desk.tell(customer(user_id="MX.118"))
    control = {"source": "meta", "contact_id": None, "marketing_state": None, "phone": None}
    by_user = {"sender_id": SENDER, "user_id": "MX.118", **control}
    stopped = contact_in(await desk.tell(customer(5, action="stop", **by_user)))
    assert (stopped.contact_id, stopped.marketing_state) == ("shopify:7712", S.UNSUBSCRIBED)
    assert contact_in(await desk.tell(customer(4, action="resume", **by_user))).marketing_state == S.UNSUBSCRIBED
    assert contact_in(await desk.tell(customer(6))).marketing_state == S.UNSUBSCRIBED
    nobody = {**by_user, "user_id": None}
    assert await desk.tell(customer(8, action="resume", **nobody)) == []


@pytest.mark.parametrize("action", ["stop", "resume"])
async def test_what_a_number_that_nobody_had_registered_tells_is_not_believed(desk: Desk, action: str) -> None:
    """Any app's secret makes webhook-ingest tell it, as a fragment of nobody's: it may name another tenant's number."""
    await desk.tell(sender(), customer())
    told = {"source": "meta", "contact_id": None, "marketing_state": None, "phone": "525512345678"}
    forged = customer(1, action=action, sender_id=SENDER, workspace_id=None, **told)
    assert await desk.tell(forged) == []
    claimed = customer(1, action=action, sender_id=SENDER, **told)
    assert contact_in(await desk.tell(claimed)).source == "user_preferences"


async def test_a_user_id_is_learnt_from_a_message_and_then_stands_for_the_person(desk: Desk) -> None:
    await desk.tell(customer())
    linked = await desk.tell(message("hello", 1, user_id="MX.118"))
    assert contact_in(linked).user_id == "MX.118"
    assert await desk.tell(message("hello", 2, user_id="MX.118")) == []
    stopped = contact_in(await desk.tell(message("STOP", 3, user_id="MX.118", phone=None)))
    assert (stopped.contact_id, stopped.marketing_state) == ("shopify:7712", S.UNSUBSCRIBED)


async def test_a_user_id_is_learnt_from_a_receipt_as_from_a_message(desk: Desk) -> None:
    await desk.tell(customer())
    linked = contact_in(await desk.tell(link(1)))
    assert (linked.contact_id, linked.user_id, linked.marketing_state) == ("shopify:7712", "MX.118", S.SUBSCRIBED)
    assert await desk.tell(link(1)) == []
    assert await desk.tell(message("hello", 2, user_id="MX.118")) == []
    stopped = contact_in(await desk.tell(message("STOP", 3, user_id="MX.118", phone=None)))
    assert (stopped.contact_id, stopped.marketing_state) == ("shopify:7712", S.UNSUBSCRIBED)
    assert codes(await desk.request(request())) == [R.CUSTOMER_IS_NOT_OPTED_IN]


async def test_a_receipt_of_nobodys_makes_no_contact_and_is_remembered(desk: Desk) -> None:
    assert await desk.tell(link(1)) == []
    assert await desk.pool.fetchval("select count(*) from contact") == 0
    assert contact_in(await desk.tell(customer(2))).user_id == "MX.118"
    stopped = contact_in(await desk.tell(message("STOP", 3, user_id="MX.118", phone=None)))
    assert (stopped.contact_id, stopped.marketing_state) == ("shopify:7712", S.UNSUBSCRIBED)


async def test_a_stop_under_the_user_id_that_came_before_the_receipt_counts(desk: Desk) -> None:
    came = at(4.5)
    await desk.tell(customer(), message("STOP", 3, user_id="MX.118", phone=None))
    assert codes(await desk.request(request())) == [None]
    told = [one for one in await desk.tell(link(4, observed_at=came)) if b"shopify:7712" in (one.key or b"")]
    assert contact_in(told).marketing_state == S.UNSUBSCRIBED
    assert dict(told[-1].headers)["received_at"] == came.isoformat().encode()
    notes = await desk.pool.fetch("select distinct note from contact_history where kind = 'merged'")
    assert [row["note"] for row in notes] == [
        "Meta's receipt of a message named both the phone number and the WhatsApp user id"
    ]


async def test_a_receipt_that_names_nobody_by_both_tells_nothing(desk: Desk) -> None:
    await desk.tell(customer())
    for fields in ({"phone": None}, {"user_id": None}, {"phone": "+0000000"}, {"workspace_id": None}):
        assert await desk.tell(link(1, **fields)) == []
    assert await desk.pool.fetchval("select count(*) from contact where user_id is not null") == 0


async def test_error_131050_unsubscribes(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request())
    failed = StatusUpdated(
        event_id=uuid4(),
        occurred_at=at(5),
        observed_at=at(5),
        message_id="m-1",
        workspace_id="acme",
        service=Service.WEBHOOK_INGEST,
        status=Status.FAILED,
        reason=reason(R.RECIPIENT_STOPPED_MARKETING, "Meta said so"),
    )
    other = failed.model_copy(update={"reason": reason(R.MEDIA_FAILED, "no such file")})
    parse = parse_stopped(StatusUpdated)
    assert parse(record(None, Topic.STATUS_UPDATED, other.to_json())) is None
    event = parse(record(None, Topic.STATUS_UPDATED, failed.to_json()))
    contact = contact_in(await desk.handle(desk.stages.on_stopped, event))
    assert (contact.contact_id, contact.marketing_state, contact.source) == (
        "shopify:7712",
        S.UNSUBSCRIBED,
        "error_131050",
    )


def refused_by_meta(message_id: str) -> SendRejected:
    """With error 131050, in the answer to the call."""
    return SendRejected(
        event_id=uuid4(),
        occurred_at=at(5),
        message_id=message_id,
        workspace_id="acme",
        service=Service.DISPATCHER,
        reason=reason(R.RECIPIENT_STOPPED_MARKETING, "Meta said so"),
    )


async def test_error_131050_is_of_whom_the_message_went_to(desk: Desk) -> None:
    """Not of the contact that had their number by mistake, which was corrected while the message was out."""
    await desk.tell(customer())
    await desk.request(request())
    await desk.tell(customer(1, phone="+525587654321"), customer(2, contact_id="shopify:7713"))
    contact = contact_in(await desk.handle(desk.stages.on_stopped, refused_by_meta("m-1")))
    assert (contact.contact_id, contact.marketing_state) == ("shopify:7713", S.UNSUBSCRIBED)
    theirs, others = request("m-2", to={"contact_id": "shopify:7713"}), request("m-3")
    assert codes(await desk.request(theirs, others)) == [R.CUSTOMER_IS_NOT_OPTED_IN, None]


async def test_error_131050_in_the_answer_to_the_call_unsubscribes_too(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request())
    parse = parse_stopped(SendRejected)

    async def refuse(message_id: str) -> list[Outgoing]:
        told = parse(record(None, Topic.SEND_REJECTED, refused_by_meta(message_id).to_json()))
        return await desk.handle(desk.stages.on_stopped, record(told, Topic.SEND_REJECTED))

    assert await refuse("never-heard-of") == []
    stopped = contact_in(await refuse("m-1"))
    assert (stopped.marketing_state, stopped.source, stopped.proof) == (S.UNSUBSCRIBED, "error_131050", "m-1")
    assert codes(await desk.request(request("m-2"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]
    assert contact_in(await desk.tell(message("START", 6))).marketing_state == S.SUBSCRIBED


async def test_a_marketing_template_needs_a_subscription_whatever_its_purpose(desk: Desk) -> None:
    await desk.tell(sender(), template("MARKETING"))
    api = {"origin": {"kind": "api"}}
    assert codes(await desk.request(request("m-1", **api))) == [R.CUSTOMER_IS_NOT_OPTED_IN]
    await desk.tell(template("UTILITY", 2), template("MARKETING", 1))
    assert codes(await desk.request(request("m-2", **api))) == [None]
    assert codes(await desk.request(request("m-3", purpose="transactional"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]


async def test_a_workspace_may_be_believed(desk: Desk) -> None:
    desk = Desk(desk.pool, transactional_workspaces="other, acme")
    await desk.tell(sender(), template("UTILITY"))
    assert codes(await desk.request(request("m-1", purpose="transactional"))) == [None]
    assert codes(await desk.request(request("m-2"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]


async def test_the_default_sender_is_named_in_a_rejection(desk: Desk) -> None:
    await desk.tell(sender())
    published = await desk.request(request(sender_id=None))
    assert SendRejected.model_validate_json(published[0].value or b"").sender_id == SENDER


async def test_a_recall_is_always_answered_and_once(desk: Desk) -> None:
    await desk.tell(customer())
    consented = SendConsented.model_validate_json((await desk.request(request()))[0].value or b"")
    state = contact_in(await desk.tell(message("STOP", 5)))
    funded = SendFunded(**dict(consented), price=Price(credits=1, category="MARKETING"))
    recalled = SendRecalled(event_id=uuid4(), occurred_at=at(6), funded=funded, contact=state)
    first = await desk.handle(desk.stages.on_recalled, recalled, recalled)
    assert first == await desk.handle(desk.stages.on_recalled, recalled)
    event = SendRejected.model_validate_json(first[0].value or b"")
    assert event.reason.evidence["source"] == "stop_reply"
    assert event.metadata == {"order": "4711"}
    assert event.event_id != consented.event_id


async def test_the_default_sender_is_named_where_a_message_was_recalled(desk: Desk) -> None:
    await desk.tell(sender())
    await desk.tell(customer())
    consented = SendConsented.model_validate_json((await desk.request(request(sender_id=None)))[0].value or b"")
    state = contact_in(await desk.tell(message("STOP", 5)))
    funded = SendFunded(**dict(consented), price=Price(credits=1, category="MARKETING"))
    told = await desk.handle(
        desk.stages.on_recalled, SendRecalled(event_id=uuid4(), occurred_at=at(6), funded=funded, contact=state)
    )
    assert SendRejected.model_validate_json(told[0].value or b"").sender_id == SENDER


async def test_a_deleted_customer_is_erased_with_their_decisions(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.request(request())
    await desk.tell(message("Darme de baja, por favor", 5))
    proofs = await desk.pool.fetch("select firm_proof from contact")
    assert "Darme de baja" in str(proofs)
    gone = customer(10, action="delete", marketing_state=None)
    published = await desk.tell(gone)
    assert [one.value is None for one in published] == [False, True]
    assert contact_in(published).phone is None
    assert await desk.tell(gone) == published
    assert await desk.request(request()) == []
    assert await desk.tell(customer(20)) == []
    assert await desk.tell(message("STOP", 5)) == []
    tables = ("contact", "contact_name", "contact_history", "memory", "decision", "message_of")
    dump = str([await desk.pool.fetch(f"select * from {table}") for table in tables])
    assert "5512345678" not in dump
    assert "shopify:7712" not in dump
    assert "baja" not in dump


async def test_an_erased_record_is_named_by_no_other_of_its_person(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.put("crm:55", phone=PHONE, external_ids=("erp:1",))
    await desk.tell(customer(10, action="delete", marketing_state=None))
    dump = str(await desk.pool.fetch("select * from contact_history"))
    assert ("crm:55" in dump, "shopify:7712" in dump) == (True, False)
    async with desk.pool.acquire() as connection:
        found = await store.contacts_named(connection, [Mark("acme", "contact", "erp:1")])
    assert [one.key.contact_id for one in found] == ["crm:55"]


async def test_an_old_deletion_doesnt_take_a_newer_contact(desk: Desk) -> None:
    await desk.tell(customer(10))
    assert await desk.tell(customer(5, action="delete")) == []
    assert codes(await desk.request(request())) == [None]


async def test_a_whole_batch_is_decided_at_once(desk: Desk) -> None:
    await desk.tell(sender(), template("MARKETING"), customer())
    batch = [request(f"m-{i}") for i in range(500)]
    await desk.request(*batch[:1])
    assert len(await desk.request(*batch)) == 500


async def test_a_request_may_name_any_of_a_persons_names(desk: Desk) -> None:
    await desk.tell(customer())
    book = await desk.put("crm:55", external_ids=("erp:1",), phone=PHONE)
    person = str(book.contacts[Key("acme", "crm:55")].person.id)
    names = ["crm:55", "erp:1", "shopify:7712", person]
    published = await desk.request(*(request(f"m-{i}", to={"contact_id": name}) for i, name in enumerate(names)))
    resolved = [SendConsented.model_validate_json(one.value or b"").resolved for one in published]
    assert [one.contact_id for one in resolved] == ["crm:55", "crm:55", "shopify:7712", resolved[3].contact_id]
    assert {one.phone for one in resolved} == {PHONE}
    stopped = await desk.tell(message("STOP", 5))
    states = [ContactUpdated.model_validate_json(one.value or b"") for one in stopped]
    told = {one.contact_id: (one.marketing_state, one.person_id) for one in states}
    assert told == dict.fromkeys(["crm:55", "shopify:7712"], (S.UNSUBSCRIBED, person)), "what the dispatcher recalls by"


async def test_a_name_that_was_taken_back_finds_nobody(desk: Desk) -> None:
    await desk.put("crm:55", external_ids=("erp:1", "erp:2"), phone=PHONE)
    await desk.put("crm:55", external_ids=("erp:2",), phone=PHONE)
    for name, found in (("erp:1", []), ("erp:2", ["crm:55"])):
        async with desk.pool.acquire() as connection:
            contacts = await store.contacts_named(connection, [Mark("acme", "contact", name)])
        assert [contact.key.contact_id for contact in contacts] == found


async def test_a_record_without_a_phone_is_written_to_at_the_persons(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.put("crm:55", external_ids=("shopify:7712",))
    (consented,) = await desk.request(request(to={"contact_id": "crm:55"}))
    resolved = SendConsented.model_validate_json(consented.value or b"").resolved
    assert (resolved.contact_id, resolved.phone) == ("crm:55", PHONE)


async def test_a_record_of_a_person_without_any_phone_is_written_to_at_the_persons_user_id(desk: Desk) -> None:
    await desk.tell(customer(phone=None, user_id="MX.7004"))
    await desk.put("crm:55", external_ids=("shopify:7712",))
    (consented,) = await desk.request(request(to={"contact_id": "crm:55"}))
    resolved = SendConsented.model_validate_json(consented.value or b"").resolved
    assert (resolved.contact_id, resolved.phone, resolved.user_id) == ("crm:55", None, "MX.7004")
    stopped = await desk.tell(message("STOP", 5, phone=None, user_id="MX.7004"))
    states = [ContactUpdated.model_validate_json(one.value or b"") for one in stopped]
    assert {one.contact_id: one.marketing_state for one in states} == dict.fromkeys(
        ["crm:55", "shopify:7712"], S.UNSUBSCRIBED
    )


async def test_error_131050_to_a_message_to_a_user_id_is_of_whose_that_is(desk: Desk) -> None:
    await desk.tell(customer(phone=None, user_id="MX.7004"))
    await desk.request(request("m-1", to={"contact_id": "shopify:7712"}))
    contact = contact_in(await desk.handle(desk.stages.on_stopped, refused_by_meta("m-1")))
    assert (contact.contact_id, contact.marketing_state) == ("shopify:7712", S.UNSUBSCRIBED)


async def test_a_stop_of_who_has_the_given_phone_outweighs_who_is_named_without_one(desk: Desk) -> None:
    await desk.tell(customer(phone=None), customer(contact_id="s-1"))
    assert codes(await desk.request(request("m-0"))) == [None]
    await desk.tell(message("STOP", 5))
    (refused,) = await desk.request(request("m-1"))
    evidence = SendRejected.model_validate_json(refused.value or b"").reason.evidence
    assert (evidence["marketing_state"], evidence["source"]) == ("UNSUBSCRIBED", "stop_reply")
    nobody = request("m-2", to={"contact_id": "nobody", "phone": PHONE})
    (refused,) = await desk.request(nobody)
    assert SendRejected.model_validate_json(refused.value or b"").reason.evidence == evidence


async def test_with_a_given_phone_both_its_own_contact_and_the_one_named_must_have_agreed(desk: Desk) -> None:
    await desk.tell(customer(phone=None, marketing_state="UNSUBSCRIBED"), customer(contact_id="s-1"))
    assert codes(await desk.request(request("m-1"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]
    await desk.tell(customer(5, phone=None), customer(5, contact_id="s-1", marketing_state="NOT_SUBSCRIBED"))
    assert codes(await desk.request(request("m-2"))) == [R.CUSTOMER_IS_NOT_OPTED_IN]


async def test_a_given_phone_resolves_to_its_own_contact_so_that_its_later_stop_recalls_the_message(desk: Desk) -> None:
    await desk.tell(customer(phone=None), customer(contact_id="s-1"))
    (told,) = await desk.request(request("m-1"))
    consented = SendConsented.model_validate_json(told.value or b"")
    stopped = contact_in(await desk.tell(message("STOP", 5)))
    assert (consented.resolved.contact_id, consented.resolved.phone) == (stopped.contact_id, PHONE) == ("s-1", PHONE)
    assert consented.contact_version == stopped.version - 1
    kept = {row["tag"] for row in await desk.pool.fetch("select tag from message_of where message_id = 'm-1'")}
    assert kept == {TAGGER(Mark("acme", "contact", name)) for name in ("s-1", "shopify:7712")}


@pytest.mark.parametrize("to", [{"phone": PHONE}, {"contact_id": "x", "phone": PHONE}], ids=["phone", "both"])
async def test_a_stop_that_outlived_its_contact_stands_for_its_phone(desk: Desk, to: dict[str, str]) -> None:
    await desk.tell(customer(), customer(contact_id="x", phone=None), message("STOP", 5))
    await desk.tell(customer(10, action="delete", marketing_state=None))
    later = replace(record(request("m-1", to=to)), at=at(20))
    (refused,) = await desk.handle(desk.stages.on_requested, later)
    evidence = SendRejected.model_validate_json(refused.value or b"").reason.evidence
    assert (evidence["marketing_state"], evidence["source"]) == ("UNSUBSCRIBED", "stop_reply")


async def test_a_given_phone_costs_no_query_where_the_contact_has_its_own(desk: Desk) -> None:
    await desk.tell(customer())
    costs = []
    for number, to in enumerate(({"contact_id": "shopify:7712"}, {"contact_id": "shopify:7712", "phone": PHONE})):
        asked: list[str] = []
        async with desk.pool.acquire() as connection, connection.transaction():
            with connection.query_logger(lambda query, asked=asked: asked.append(query.query)):
                await desk.stages.on_requested(connection, [record(request(f"m-{number}", to=to))])
        costs.append(len(asked))
    assert costs[0] == costs[1] > 0


async def test_a_missing_code_is_suggested_by_the_shops_country(desk: Desk) -> None:
    await desk.tell(customer(phone="5512345678"))
    async with desk.pool.acquire() as connection:
        await store.save_setting(connection, "acme", "MX", "alice")
    (rejected,) = await desk.request(request(to={"contact_id": "shopify:7712"}))
    event = SendRejected.model_validate_json(rejected.value or b"")
    assert event.reason.evidence["suggestion"] == {
        "calling_code": "52",
        "phone": PHONE,
        "ground": "the shop's country MX",
    }


async def test_history_is_read_again_as_it_was_written(desk: Desk) -> None:
    await desk.tell(customer())
    await desk.put("shopify:7712", phone="+12025550123")
    await desk.tell(customer(60 * 24 * 365))
    rows = await desk.pool.fetch("select kind, origin, fields, overwrote from contact_history order by id")
    assert [(row["kind"], row["origin"]) for row in rows] == [("consent", "sync"), ("phone", "put"), ("phone", "sync")]
    assert [bool(row["overwrote"]) for row in rows] == [False, False, True]
    async with desk.pool.acquire() as connection:
        (contact,) = await store.contacts_of(connection, [Mark("acme", "contact", "shopify:7712")])
    assert contact.phone_setter is not None
    assert (contact.phone_setter.origin, contact.fields.phone) == ("sync", PHONE)


async def test_records_of_before_become_people(fresh_database: str, tmp_path: Path) -> None:
    first, *_ = sorted(MIGRATIONS.glob("*.sql"))
    shutil.copy(first, tmp_path)
    await migrate(fresh_database, tmp_path)
    pool = await connect_pool(fresh_database, service="consent-test", size=2)
    await pool.executemany(
        "insert into contact (workspace_id, contact_id, phone_key, told_state, told_at, told_source, version,"
        " created_at, fields_at, updated_at) values ('w', $1, $2, 'SUBSCRIBED', now(), 'import', 3, $3, now(), now())",
        [("a", "525512345678", at(2)), ("b", "525512345678", at(1)), ("c", None, at(0))],
    )
    await migrate(fresh_database, MIGRATIONS)
    async with pool.acquire() as connection:
        found = await store.contacts_of(connection, [Mark("w", "contact", name) for name in "abc"])
    people = {contact.key.contact_id: contact for contact in found}
    assert people["a"].person.id == people["b"].person.id == people["b"].uid
    assert people["c"].person.id == people["c"].uid
    assert {contact.word.state for contact in found} == {S.SUBSCRIBED}
    await pool.close()


async def test_whose_messages_were_is_forgotten_however_many_are_due(desk: Desk) -> None:
    await desk.pool.execute(
        "insert into message_of (workspace_id, tag, message_id, prune_after)"
        " select 'acme', '\\x00', n::text, $1::timestamptz + case when n = 1 then interval '1 h' else '-1 h' end"
        " from generate_series(1, 10002) n",
        NOON,
    )
    async with desk.pool.acquire() as connection:
        await store.prune(connection, NOON)
    assert [row["message_id"] for row in await desk.pool.fetch("select message_id from message_of")] == ["1"]
