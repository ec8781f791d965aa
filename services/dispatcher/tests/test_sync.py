"""Templates and numbers by sync and by webhooks, on real PostgreSQL: in Meta's order, whole or not at all, and told."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet
from dispatcher import facts, people_store, queue_store, reporting, store, sync_store, tier_store
from dispatcher.api import Api
from dispatcher.clock import utc_now
from dispatcher.decide import Lane, Message, Tier, Unread
from dispatcher.drift import Drift
from dispatcher.meta import PAGES_MAX, Listing, MetaRefused, MetaUnreachable, Number
from dispatcher.queue_store import NewMessage
from dispatcher.sender_api import SenderApi, stops
from dispatcher.settings import Settings
from dispatcher.store import NewSender, SenderRow
from dispatcher.sync import TEMPLATE_BYTES_MAX, TURN_LASTS, sync_due, sync_sender
from dispatcher.syncs import is_due
from dispatcher.tokens import Access, TokenVault
from dispatcher_cases import SENDER, contact, funded, message, template_content
from dispatcher_desk import meta_at, server
from fastapi import FastAPI
from pydantic import SecretStr
from sendwhy import problems
from sendwhy.events import (
    MarketingState,
    MetaError,
    Purpose,
    Resolved,
    SenderReported,
    TemplateReported,
    event_id_of,
    reason,
)
from sendwhy.postgres import connect_pool, unpublished
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Topic

pytestmark = pytest.mark.postgres
VAULT = TokenVault(SecretStr(Fernet.generate_key().decode()))
BODY = [{"type": "BODY", "text": "Hola {{1}}"}]
SALE = ("autumn_sale", "es_MX")
SECOND = timedelta(seconds=1)


def entry(
    name: str = "autumn_sale", status: str = "APPROVED", category: str = "UTILITY", **rest: Any
) -> dict[str, Any]:
    return {"name": name, "language": "es_MX", "status": status, "category": category, "components": BODY} | rest


@dataclass
class Desk:
    """A sender with a Meta that tells what it is told to tell."""

    pool: asyncpg.Pool
    number_told: Number = field(default_factory=lambda: Number("15550100000", "GREEN", 80, 250))
    listing: Any = field(default_factory=lambda: Listing([entry()]))
    while_reading: Any = None
    portfolio_told: str | None = None

    async def number(self, _sender_id: str, _access: Access) -> Number:
        return self.number_told

    async def portfolio(self, _waba_id: str, _access: Access) -> str | None:
        return self.portfolio_told

    async def templates(self, _waba_id: str, _access: Access) -> Listing:
        if self.while_reading is not None:
            await self.while_reading()
        if isinstance(self.listing, Exception):
            raise self.listing
        listing: Listing = self.listing
        return listing

    def publish_soon(self) -> None: ...

    def wake(self, _sender_id: str) -> None: ...

    async def row(self, sender_id: str = SENDER.sender_id) -> SenderRow:
        async with self.pool.acquire() as connection:
            return (await store.senders(connection, [sender_id]))[sender_id]

    async def sync(self, now: datetime | None = None) -> datetime:
        now = now or utc_now()
        await sync_sender(self.pool, self, VAULT, await self.row(), now)  # type: ignore[arg-type]
        return now

    async def template(self, *, field: str = "message_template_status_update", at: datetime, **raw: Any) -> None:
        event = TemplateReported(
            event_id=event_id_of(str(at), field),
            occurred_at=at,
            waba_id="300",
            name=SALE[0],
            language=SALE[1],
            field=field,
            raw=raw,
        )
        async with self.pool.acquire() as connection, connection.transaction():
            await reporting.template_report(connection, event, utc_now())

    async def report(self, field: str, at: datetime, **raw: Any) -> None:
        event = SenderReported(
            event_id=event_id_of(str(at), field), occurred_at=at, waba_id="300", field=field, raw=raw,
            display_phone_number=raw.get("display_phone_number"),
        )  # fmt: skip
        async with self.pool.acquire() as connection, connection.transaction():
            await reporting.sender_reports(connection, [event], utc_now())

    async def known(self) -> dict[tuple[str, str], str]:
        async with self.pool.acquire() as connection:
            return {key: row.template.status for key, row in (await store.templates_of(connection, "300")).items()}

    async def changes(self) -> list[tuple[str, str, Any, Any]]:
        async with self.pool.acquire() as connection:
            synced = await sync_store.synced(connection, "300")
        assert synced is not None
        return [(one.of, one.what, one.before, one.after) for one in synced.changes]

    async def wants_sync(self) -> bool:
        return is_due((await self.row()).read, utc_now())

    async def queue(self, message_id: str, contact_id: str) -> None:
        life = {"send_at": utc_now() + timedelta(hours=1), "expires_at": utc_now() + timedelta(hours=2)}
        person = Resolved(contact_id=contact_id, phone="+525512345678", purpose=Purpose.TRANSACTIONAL)
        one = funded(template_content("x"), purpose=Purpose.TRANSACTIONAL, message_id=message_id)
        message = Message(
            one.model_copy(update=life | {"resolved": person}), SENDER.sender_id, Lane.TRANSACTIONAL, utc_now()
        )
        async with self.pool.acquire() as connection:
            await queue_store.add_messages(connection, [NewMessage(message, None, "waiting", None)])


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    token = VAULT.seal("acme", SENDER.sender_id, "token")
    async with pool.acquire() as connection:
        new = NewSender(SENDER.sender_id, "acme", "300", "200", None, True, token)
        await store.put_sender(connection, new, utc_now() - timedelta(hours=1))
    yield Desk(pool)
    await pool.close()


async def test_a_sync_tells_what_it_changed(desk: Desk) -> None:
    await desk.sync()
    assert ("autumn_sale (es_MX)", "added", None, "APPROVED UTILITY") in await desk.changes()
    desk.number_told = replace(desk.number_told, quality="RED", messaging_limit=2000)
    desk.listing = Listing([entry(status="PAUSED", category="MARKETING"), entry("order_update")])
    first = await desk.sync()
    assert set(await desk.changes()) == {
        (SENDER.sender_id, "quality", "GREEN", "RED"),
        (SENDER.sender_id, "messaging_limit", 250, 2000),
        ("autumn_sale (es_MX)", "status", "APPROVED", "PAUSED"),
        ("autumn_sale (es_MX)", "category", "UTILITY", "MARKETING"),
        ("order_update (es_MX)", "added", None, "APPROVED UTILITY"),
    }
    # A sync that changes nothing leaves the last differences, with their time.
    await desk.sync()
    async with desk.pool.acquire() as connection:
        synced = await sync_store.synced(connection, "300")
    assert synced is not None
    assert synced.changed_at == first < synced.synced_at
    assert len(synced.changes) == 5


async def test_a_time_to_live_that_is_set_later_is_kept(desk: Desk) -> None:
    for told in (None, 30, -1):
        desk.listing = Listing([entry(message_send_ttl_seconds=told)])
        await desk.sync()
        async with desk.pool.acquire() as connection:
            row = (await store.templates_of(connection, "300"))[SALE]
        assert row.template.ttl_seconds == told


async def test_a_template_that_is_gone_is_a_tombstone(desk: Desk) -> None:
    await desk.sync()
    desk.listing = Listing([])
    await desk.sync()
    assert await desk.known() == {}
    assert await desk.changes() == [("autumn_sale (es_MX)", "removed", "APPROVED", None)]
    async with desk.pool.acquire() as connection:
        told = (await unpublished(connection, older_than_seconds=-1, limit=99)).values()
    assert [one for one in told if one.topic == Topic.TEMPLATE_UPDATED and one.value is None]


INCOMPLETE = [
    Listing([], "Meta has more than 200 pages of templates"),
    Listing([{"name": "autumn_sale", "language": "es_MX"}]),
    Listing([{"language": "es_MX", "status": "APPROVED"}]),
    Listing([entry(components=[{"type": "BODY", "text": "x" * TEMPLATE_BYTES_MAX}])]),
]
WHY = ["pages", "no status", "no name", "too large"]


@pytest.mark.parametrize("listing", INCOMPLETE, ids=WHY)
async def test_a_list_that_may_be_incomplete_deletes_nothing(desk: Desk, listing: Listing) -> None:
    await desk.sync()
    desk.listing = listing
    await desk.sync()
    assert await desk.known() == {SALE: "APPROVED"}
    assert await incomplete_for(desk, "another") is not None
    assert await incomplete_for(desk, "autumn_sale") is None
    desk.listing = Listing([])
    await desk.sync()
    assert await incomplete_for(desk, "another") is None


async def incomplete_for(desk: Desk, template: str) -> str | None:
    """What is known at a message's turn of the list in which its template should stand."""
    one = Message(funded(template_content("x", name=template)), SENDER.sender_id, Lane.MARKETING, utc_now())
    async with desk.pool.acquire() as connection:
        known = await facts.load(connection, (await desk.row()).sender, [one], "block")
    return known[one.key].listing_incomplete


@pytest.mark.parametrize(
    ("error", "words", "code"),
    [
        (MetaUnreachable("HTTP 502"), "Meta could not be reached: HTTP 502", None),
        (MetaRefused(MetaError(code=190, title="Token expired")), "Meta refused: Token expired (code 190)", 190),
    ],
)
async def test_a_sync_that_fails_changes_nothing_and_is_told_until_one_succeeds(
    desk: Desk, error: Exception, words: str, code: int | None
) -> None:
    synced = await desk.sync()
    desk.listing, desk.number_told = error, replace(desk.number_told, quality="RED")
    failing = []
    for _ in range(2):
        failing.append(utc_now())
        with pytest.raises(type(error)):
            await desk.sync(failing[-1])
    assert await desk.known() == {SALE: "APPROVED"}
    row = await desk.row()
    assert (row.sender.quality, row.sender.templates_synced_at) == ("GREEN", synced)
    assert row.sender.unread == Unread(failing[0], words, code)
    async with desk.pool.acquire() as connection:
        assert await sync_store.failure(connection, SENDER.sender_id) == sync_store.Failure(
            failing[0], failing[1], words
        )
        desk.listing = Listing([entry()])
        await desk.sync()
        assert await sync_store.failure(connection, SENDER.sender_id) is None
    assert (await desk.row()).sender.unread is None


async def test_an_event_from_before_a_sync_does_not_undo_it(desk: Desk) -> None:
    now = await desk.sync()
    await desk.template(at=now - timedelta(hours=1), event="PAUSED")
    assert (await desk.known(), await desk.wants_sync()) == ({SALE: "APPROVED"}, False)
    # So close that the clocks may disagree: Meta is asked.
    await desk.template(at=now - timedelta(seconds=20), event="PAUSED")
    assert (await desk.known(), await desk.wants_sync()) == ({SALE: "APPROVED"}, True)
    await desk.template(at=now.replace(microsecond=0), event="PAUSED")
    assert await desk.known() == {SALE: "PAUSED"}
    await desk.template(at=now - SECOND, event="REJECTED")
    assert await desk.known() == {SALE: "PAUSED"}


async def test_a_list_from_before_an_event_does_not_undo_it(desk: Desk) -> None:
    await desk.sync(utc_now() - timedelta(minutes=5))

    async def meanwhile() -> None:
        await desk.template(at=utc_now().replace(microsecond=0) - SECOND, event="PAUSED")
        await desk.report(
            "business_capability_update",
            utc_now().replace(microsecond=0) - SECOND,
            max_daily_conversations_per_business=10_000,
        )

    desk.while_reading = meanwhile
    await desk.sync()
    assert await desk.known() == {SALE: "PAUSED"}
    assert (await desk.row()).sender.messaging_limit == 10_000
    assert await desk.wants_sync()
    desk.while_reading = None
    await desk.sync(utc_now() + SECOND)
    assert (await desk.known(), (await desk.row()).sender.messaging_limit) == ({SALE: "APPROVED"}, 250)


async def test_who_names_anothers_account_learns_and_changes_nothing(desk: Desk) -> None:
    """A PUT is believed; that the account is one's own is proven by a sync with one's own token."""
    stranger, own = "100000000000999", "999"
    async with desk.pool.acquire() as connection:
        token = VAULT.seal("other", stranger, "token")
        new = NewSender(stranger, "other", "300", "200", None, True, token)
        await store.put_sender(connection, new, utc_now() - timedelta(hours=1))
    await desk.sync()
    claimed = (await desk.row(stranger)).sender
    assert claimed.templates_synced_at is None
    asked = message(template_content("Ines"))
    async with desk.pool.acquire() as connection:
        for sender, is_seen in ((SENDER, True), (claimed, False)):
            known = await facts.load(connection, sender, [asked], "block")
            assert (known[asked.key].template is not None) == is_seen
        await store.put_sender(connection, replace(new, waba_id=own), utc_now())
        await store.mark_synced(connection, "other", own, utc_now())
        await connection.execute("update sender set messaging_limit = 250")
        event = SenderReported(
            event_id=event_id_of(own, "limit"), occurred_at=utc_now(), waba_id=own, display_phone_number=None,
            field="business_capability_update", raw={"max_daily_conversations_per_business": 50},
        )  # fmt: skip
        await reporting.sender_reports(connection, [event], utc_now())
    limits = [(await desk.row(one)).sender.messaging_limit for one in (SENDER.sender_id, stranger)]
    assert limits == [250, 50]


async def test_the_sync_that_began_later_stands(desk: Desk) -> None:
    now = await desk.sync()
    desk.listing = Listing([entry(status="PAUSED")])
    await desk.sync(now - SECOND)
    assert await desk.known() == {SALE: "APPROVED"}
    assert (await desk.row()).sender.templates_synced_at == now


OTHER = "100000000000002"


async def put_other(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        token = VAULT.seal("acme", OTHER, "token")
        await store.put_sender(
            connection, NewSender(OTHER, "acme", "300", "200", None, False, token), utc_now() - timedelta(minutes=59)
        )


@dataclass
class Counting:
    """A Meta that counts what it is asked for; `reading` waits where one is to be overtaken."""

    asked: Counter[str] = field(default_factory=Counter)
    refuses: MetaRefused | None = None
    reading: asyncio.Event | None = None

    async def number(self, sender_id: str, _access: Access) -> Number:
        self.asked[sender_id] += 1
        return Number("15550100000", "GREEN", 80, 250)

    async def portfolio(self, _waba_id: str, _access: Access) -> str | None:
        return None

    async def templates(self, waba_id: str, _access: Access) -> Listing:
        self.asked[waba_id] += 1
        if self.reading is not None:
            await self.reading.wait()
        if self.refuses is not None:
            raise self.refuses
        return Listing([entry()])


async def test_of_an_accounts_numbers_one_reads_its_templates_and_each_itself(desk: Desk) -> None:
    meta, now = Counting(reading=asyncio.Event()), utc_now()
    await put_other(desk)

    async def due(sender_id: str, *, is_template_missing: bool = False) -> Any:
        told: Any = meta
        return await sync_due(desk.pool, told, VAULT, sender_id, now, is_template_missing=is_template_missing)

    first = asyncio.create_task(due(SENDER.sender_id))
    async with asyncio.timeout(30):
        while not meta.asked["300"]:
            await asyncio.sleep(0.01)
    other = await due(OTHER)
    assert (other.templates, other.again_at) == (None, now + TURN_LASTS)
    assert meta.reading is not None
    meta.reading.set()
    assert (await first).templates == 1
    await due(OTHER, is_template_missing=True)
    assert meta.asked == {"300": 1, SENDER.sender_id: 1, OTHER: 1}
    row = await desk.row(OTHER)
    assert (row.sender.templates_synced_at, row.account_numbers) == (now, 2)
    assert not is_due(row.read, now)


async def test_another_number_reads_where_ones_token_fails_and_later_each_time(desk: Desk) -> None:
    refused = MetaRefused(MetaError(code=190, title="expired"))
    meta: Any = Counting(refuses=refused)
    await put_other(desk)
    pauses = []
    for _ in range(3):
        with pytest.raises(MetaRefused):
            await sync_due(desk.pool, meta, VAULT, SENDER.sender_id, utc_now(), is_template_missing=False)
        ended = await sync_due(desk.pool, meta, VAULT, OTHER, utc_now(), is_template_missing=False)
        assert ended.again_at is not None
        pauses.append(round((ended.again_at - utc_now()).total_seconds() / 5))
        await desk.pool.execute("update sync_turn set until = clock_timestamp() - interval '1 second'")
    assert pauses == [1, 2, 4]
    meta.refuses = None
    assert (await sync_due(desk.pool, meta, VAULT, OTHER, utc_now(), is_template_missing=False)).templates == 1
    assert (await desk.row()).sender.templates_synced_at is not None


async def test_what_is_found_of_a_number_alone_is_told_too(desk: Desk) -> None:
    await desk.sync()
    meta: Any = desk
    desk.number_told = Number("15550100000", "RED", 80, 250)
    await desk.pool.execute("update sender set number_synced_at = null")
    ended = await sync_due(desk.pool, meta, VAULT, SENDER.sender_id, utc_now(), is_template_missing=False)
    assert ended.templates is None
    assert await desk.changes() == [(SENDER.sender_id, "quality", "GREEN", "RED")]
    assert (await desk.row()).sender.quality == "RED"


async def test_a_number_follows_the_newest_word(desk: Desk) -> None:
    now = await desk.sync()
    old = {"event": "ONBOARDING", "display_phone_number": "15550100000", "current_limit": "TIER_50"}
    await desk.report("phone_number_quality_update", now - timedelta(hours=1), **old)
    assert (await desk.row()).sender.messaging_limit == 250
    raised = old | {"event": "THROUGHPUT_UPGRADE", "current_limit": "TIER_UNLIMITED"}
    await desk.report("phone_number_quality_update", now + SECOND, **raised)
    row = await desk.row()
    assert (row.sender.messages_per_second, row.sender.messaging_limit) == (1000, None)


@pytest.mark.parametrize(("unlimited", "limit"), [(False, 250), (True, None)])
async def test_a_limit_that_meta_does_not_tell_stays_as_it_is(desk: Desk, unlimited: bool, limit: int | None) -> None:
    await desk.sync()
    desk.number_told = replace(desk.number_told, messaging_limit=None, unlimited=unlimited)
    await desk.sync()
    assert (await desk.row()).sender.messaging_limit == limit


async def tier_of(desk: Desk, sender_id: str) -> Tier:
    sender = (await desk.row(sender_id)).sender
    async with desk.pool.acquire() as connection, connection.transaction():
        return await tier_store.lock_tier(connection, sender.tier_key, 250, utc_now())


async def test_only_metas_word_makes_two_workspaces_share_a_messaging_limit(desk: Desk) -> None:
    stranger = "100000000000009"
    token = VAULT.seal("other", stranger, "token")
    async with desk.pool.acquire() as connection, connection.transaction():
        # The stranger names the portfolio of the first, and uses its limit up.
        await store.put_sender(connection, NewSender(stranger, "other", "301", "200", None, True, token), utc_now())
        key = await store.tier_key_of(connection, stranger)
        await tier_store.lock_tier(connection, key, 250, utc_now())
        await tier_store.add_reached(connection, key, [f"+52551{number:07}" for number in range(250)], utc_now())
    assert (await tier_of(desk, stranger)).used == 250
    assert (await tier_of(desk, SENDER.sender_id)).used == 0
    # Both are of one portfolio by Meta's own answer: what was counted before counts for both.
    desk.portfolio_told = "200"
    await desk.sync()
    assert (await tier_of(desk, SENDER.sender_id)).used == 0
    await sync_sender(desk.pool, desk, VAULT, await desk.row(stranger), utc_now())  # type: ignore[arg-type]
    assert (await tier_of(desk, SENDER.sender_id)).used == 250
    # Another account, of which nothing is proven.
    async with desk.pool.acquire() as connection, connection.transaction():
        await store.put_sender(connection, NewSender(stranger, "other", "302", "200", None, True, token), utc_now())
    assert (await desk.row(stranger)).sender.tier_key == "other/200"


async def test_a_limit_is_told_to_whom_it_is_proven(desk: Desk) -> None:
    stranger = "100000000000009"
    async with desk.pool.acquire() as connection, connection.transaction():
        new = NewSender(stranger, "other", "301", "200", None, True, VAULT.seal("other", stranger, "token"))
        await store.put_sender(connection, new, utc_now())
    desk.portfolio_told = "200"
    await desk.sync()
    await desk.report("business_capability_update", utc_now() + SECOND, max_daily_conversations_per_business=2000)
    assert (await desk.row()).sender.messaging_limit == 2000
    assert (await desk.row(stranger)).sender.messaging_limit is None


async def test_an_error_beside_all_messages_is_seen_at_its_number_and_holds_nobody(desk: Desk) -> None:
    at = utc_now()
    event = SenderReported(
        event_id=event_id_of("errors", "1"),
        occurred_at=at,
        waba_id="300",
        sender_id=SENDER.sender_id,
        field="errors",
        reason=reason(ReasonCode.SENDER_NOT_AVAILABLE, "Meta: Business account locked (131031)"),
        raw={"code": 131031, "title": "Business account locked"},
    )
    async with desk.pool.acquire() as connection, connection.transaction():
        await reporting.sender_reports(connection, [event], utc_now())
        (told,) = await sync_store.reports(connection, SENDER.sender_id)
    assert (told.field, told.event, told.known) == ("errors", "SENDER_NOT_AVAILABLE", True)
    assert told.detail == "Meta: Business account locked (131031)"
    assert (await desk.row()).sender.hold is None


async def test_an_older_restriction_holds_nobody_again(desk: Desk) -> None:
    now = utc_now() - timedelta(minutes=1)
    await desk.report("account_update", now - 2 * SECOND, event="ACCOUNT_DELETED")
    await desk.report("account_update", now, event="ACCOUNT_RECONNECTED")
    await desk.report("account_update", now - SECOND, event="ACCOUNT_DELETED")
    assert (await desk.row()).sender.hold is None
    await desk.report("account_update", now + SECOND, event="ACCOUNT_DELETED")
    assert (await desk.row()).sender.hold is not None
    await desk.report("account_update", now + 2 * SECOND, event="ACCOUNT_RECONNECTED")
    assert (await desk.row()).sender.hold is None


async def test_what_we_do_not_know_is_told_and_asked_for(desk: Desk) -> None:
    now = await desk.sync()
    await desk.template(at=now + SECOND, event="BEWITCHED")
    assert (await desk.known(), await desk.wants_sync()) == ({SALE: "APPROVED"}, True)
    await desk.report("moon_phase_update", now + 2 * SECOND, phase="full")
    await desk.report("security", now, event="PIN_CHANGED")
    async with desk.pool.acquire() as connection:
        told = await sync_store.reports(connection, SENDER.sender_id)
    assert [(one.field, one.event, one.known) for one in told] == [
        ("unknown", "moon_phase_update", False),
        ("security", "PIN_CHANGED", True),
    ]
    async with desk.pool.acquire() as connection:
        # As it was kept before only what is known was told on.
        await connection.execute("update sender_report set detail = 'body: private words'")
        told = await sync_store.reports(connection, SENDER.sender_id)
    assert [one.detail for one in told] == ["", "body: private words"]


async def test_a_template_that_moves_to_marketing_takes_out_whoever_is_not_subscribed(desk: Desk) -> None:
    now = await desk.sync()
    states = {
        "yes": MarketingState.SUBSCRIBED,
        "no": MarketingState.UNSUBSCRIBED,
        "never": MarketingState.NOT_SUBSCRIBED,
    }
    async with desk.pool.acquire() as connection:
        people = [
            contact(state).model_copy(update={"contact_id": name, "phone": None}) for name, state in states.items()
        ]
        await people_store.save_contacts(connection, people)
    for name in (*states, "stranger"):
        await desk.queue(name, name)
    await desk.template(
        field="template_category_update", at=now + SECOND, previous_category="UTILITY", new_category="MARKETING"
    )
    look = Drift(desk, utc_now).look  # type: ignore[arg-type]
    await look()
    async with desk.pool.acquire() as connection:
        rows = await connection.fetch("select message_id, state, needs_subscription, lane from message order by 1")
        assert [tuple(row) for row in rows] == [
            ("never", "recalled", False, 1),
            ("no", "recalled", False, 1),
            ("stranger", "recalled", False, 1),
            ("yes", "waiting", True, 2),
        ]
        # Whoever stays is marked: a STOP finds them, and nothing is looked at twice.
        assert len(await queue_store.lock_waiting_of_contacts(connection, [("acme", "yes")])) == 1
        await look()
        assert await connection.fetchval("select count(*) from moved_template") == 0


async def test_templates_are_told_page_by_page(desk: Desk) -> None:
    names = ["a", "Z", "b_1", "b-1", "é"]
    desk.listing = Listing([entry(name, status="PAUSED" if name == "Z" else "APPROVED") for name in names])
    await desk.sync()
    async with desk.pool.acquire() as connection:
        found, after = list[str](), ""
        while rows := await store.templates_page(connection, ["300"], after, 2, status=None, category=None):
            found += [row.template.name for row in rows]
            after = f"300/{rows[-1].template.name}/es_MX"
        paused = await store.templates_page(connection, ["300"], "", 9, status="PAUSED", category="UTILITY")
    assert found == sorted(names)
    assert [row.template.name for row in paused] == ["Z"]


def test_what_would_stop_a_message_now() -> None:
    now = utc_now()
    held = replace(SENDER, paused_at=now, quality="RED", templates_synced_at=None)
    row = SenderRow(held, None, True, b"", None, None, None, 0, 1)
    found = stops(row, Tier(250, 250, room_at=now + SECOND), "block", None, now)
    assert [(one.gate, one.stops) for one in found] == [
        ("paused", "all"),
        ("quality", "marketing"),
        ("template", "templates"),
        ("tier", "templates"),
    ]
    assert stops(replace(row, sender=SENDER), Tier(250, 249), "block", None, now) == []


async def test_operators_see_how_a_number_does(desk: Desk) -> None:
    await desk.sync()
    await desk.report("account_alerts", utc_now(), alert_info={"alert_type": "OBA_APPROVED"})
    async with desk.pool.acquire() as connection:
        await sync_store.tell_driving(connection, "r1", {SENDER.sender_id: 42})
        await tier_store.add_reached(connection, "acme/200", ["+1", "+2"], utc_now())
    settings = Settings(
        kafka_bootstrap_servers="none",
        database_url=SecretStr("postgresql://none"),
        token_encryption_key=SecretStr(Fernet.generate_key().decode()),
        privacy_key=SecretStr("a key of tests only"),
        api_tokens=SecretStr("v" * 32 + ":viewer:acme," + "o" * 32 + ":viewer:other"),
    )
    app = FastAPI()
    app.state.tokens = settings.tokens
    problems.install(app)
    app.include_router(SenderApi(desk, settings, utc_now).routes())  # type: ignore[arg-type]
    base = f"/v1/workspaces/acme/senders/{SENDER.sender_id}"
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        mine = {"authorization": "Bearer " + "v" * 32}
        health = (await http.get(f"{base}/health", headers=mine)).json()
        sync = (await http.get(f"{base}/sync", headers=mine)).json()
        others = await http.get(
            f"/v1/workspaces/other/senders/{SENDER.sender_id}/health", headers={"authorization": "Bearer " + "o" * 32}
        )
    assert others.status_code == 404
    assert health["stopped_by"] == []
    assert {name: health["tier"][name] for name in ("limit", "used", "left")} == {"limit": 250, "used": 2, "left": 248}
    assert (health["throughput"]["allowed_per_second"], health["throughput"]["sent_last_minute"]) == (80, 42)
    assert health["reports"][0]["event"] == "OBA_APPROVED"
    assert sync == health["sync"]
    assert sync["last"]["templates"] == 1


async def test_a_sync_of_one_key_asks_meta_once(desk: Desk) -> None:
    """As other writes: the same key has the same answer, and is no other request's; without one Meta is asked again."""
    token = "o" * 32
    settings = Settings(
        kafka_bootstrap_servers="none",
        database_url=SecretStr("postgresql://none"),
        token_encryption_key=SecretStr(Fernet.generate_key().decode()),
        privacy_key=SecretStr("a key of tests only"),
        api_tokens=SecretStr(f"{token}:operator:acme"),
    )
    app = FastAPI()
    app.state.tokens = settings.tokens
    problems.install(app)
    app.include_router(Api(desk, settings, desk, VAULT, desk, utc_now).routes())  # type: ignore[arg-type]
    asked = 0

    async def count() -> None:
        nonlocal asked
        asked += 1

    desk.while_reading = count
    base = f"/v1/workspaces/acme/senders/{SENDER.sender_id}"
    headers = {"authorization": f"Bearer {token}"}
    keyed = headers | {"idempotency-key": "k-1"}
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        desk.listing, listing = MetaUnreachable("gone"), desk.listing
        assert (await http.post(f"{base}/sync", headers=keyed)).status_code == 503
        desk.listing = listing
        first, again = [await http.post(f"{base}/sync", headers=keyed) for _ in range(2)]
        assert (first.status_code, first.json()["templates"]) == (200, 1)
        assert again.content == first.content
        assert (again.headers["idempotent-replayed"], asked) == ("true", 2)
        assert (await http.post(f"{base}/sync?x=1", headers=keyed)).status_code == 409
        assert (await http.post(f"{base}/sync", headers=headers)).json()["synced_at"] > first.json()["synced_at"]
        assert asked == 3


# --- pages, over real sockets ---


async def read_pages(pages: dict[str, Any], base: str = "") -> tuple[Listing, int]:
    """What is read of pages by their `after`, and how many were asked for."""
    asked = 0

    async def behave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked += 1
        after = head.split(" ")[1].partition("after=")[2]
        page = pages.get(after) or pages["*"](after)
        url = f"http://{head.partition('ost: ')[2].split(chr(13))[0]}"
        body = json.dumps(page).replace("BASE", base or url).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()

    async with server(behave) as url:
        meta = meta_at(url)
        try:
            return await meta.templates("300", Access("token")), asked
        finally:
            await meta.close()


def page(name: str, after: str | None) -> dict[str, Any]:
    paging = {"next": f"BASE/v25.0/300/message_templates?after={after}"} if after else {}
    return {"data": [entry(name)], "paging": paging}


async def test_all_pages_are_read() -> None:
    listing, _ = await read_pages({"": page("a", "1"), "1": page("b", "2"), "2": page("c", None)})
    assert ([one["name"] for one in listing.entries], listing.incomplete) == (["a", "b", "c"], None)


async def test_who_does_not_know_the_time_to_live_is_asked_without_it() -> None:
    told = "(#100) Tried accessing nonexisting field (message_send_ttl_seconds) on node type (MessageTemplate)"
    answers = iter([{"error": {"code": 100, "message": told}}, page("a", None)])
    listing, asked = await read_pages({"*": lambda _after: next(answers)})
    assert ([one["name"] for one in listing.entries], asked) == (["a"], 2)


@pytest.mark.parametrize("error", [{"code": 100, "message": "(#100) Param limit"}, {"code": 190, "message": "token"}])
async def test_any_other_refusal_of_the_templates_is_one(error: dict[str, Any]) -> None:
    with pytest.raises(MetaRefused):
        await read_pages({"*": lambda _after: {"error": error}})


async def test_the_same_cursor_twice_ends() -> None:
    listing, asked = await read_pages({"": page("a", "1"), "1": page("b", "1")})
    assert asked == 2
    assert listing.incomplete is not None


async def test_a_page_elsewhere_is_not_asked_for() -> None:
    listing, asked = await read_pages({"": page("a", "1")}, base="http://127.0.0.1:9")
    assert asked == 1
    assert listing.incomplete is not None


@pytest.mark.parametrize("paging", ["next", ["next"], {"next": 7}, {"next": {}}])
async def test_a_page_that_does_not_say_whether_it_is_the_last_is_not(paging: Any) -> None:
    listing, _ = await read_pages({"": page("a", None) | {"paging": paging}})
    assert listing.incomplete is not None


async def test_more_pages_than_we_read_are_told() -> None:
    listing, asked = await read_pages({"": page("a", "1"), "*": lambda after: page(after, str(int(after) + 1))})
    assert asked == PAGES_MAX
    assert listing.incomplete is not None


@pytest.mark.parametrize("second", [{"data": None}, {"data": {"name": "x"}}, {"error": {"code": 1, "message": "x"}}])
async def test_a_page_that_fails_midway_is_no_list(second: dict[str, Any]) -> None:
    with pytest.raises((MetaUnreachable, MetaRefused)):
        await read_pages({"": page("a", "1"), "1": second})
