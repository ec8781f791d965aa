"""billing's handlers on a real PostgreSQL: what is stored, under repeats, twins and many writers."""

import asyncio
import json
import re
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from billing import store
from billing.decide import Cause, Entry, Kind, PriceRow, top_up
from billing.stages import consented_of, on_sender, on_template
from billing_desk import NOW, TEMPLATE, Desk, consented, record, rejected, sender, status, template
from sendwhy.events import AccountUpdated, Origin, OriginKind, SendConsented, SendFunded, SendRejected, Status, To
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import with_event
from sendwhy.topics import Outgoing, Topic

pytestmark = pytest.mark.postgres


async def test_a_message_is_funded_and_its_price_is_kept(desk: Desk) -> None:
    await desk.give(2)
    funded, account = await desk.fund(consented("a"))
    event = SendFunded.model_validate_json(funded.value or b"")
    assert (funded.topic, funded.key) == (Topic.SEND_FUNDED, b"a")
    assert dict(funded.headers)["traceparent"] == b"00-1"
    assert event.price.model_dump() == {"credits": 1, "category": "service", "calling_code": "52", "assumed": False}
    assert event.request == consented("a").request
    assert event.contact_version == 3
    state = AccountUpdated.model_validate_json(account.value or b"")
    assert (account.topic, account.key, state.balance, state.version) == (Topic.ACCOUNT_UPDATED, b"w", 1, 2)
    assert state.last_entry is not None
    assert {key: state.last_entry[key] for key in ("kind", "amount", "message_id", "origin_kind", "origin_id")} == {
        "kind": "reserve",
        "amount": -1,
        "message_id": "a",
        "origin_kind": "campaign",
        "origin_id": "black-friday",
    }


async def test_a_workspace_without_account_has_balance_0(desk: Desk) -> None:
    [rejected] = await desk.fund(consented("a"))
    event = SendRejected.model_validate_json(rejected.value or b"")
    assert (event.service, event.reason.code) == (Service.BILLING, ReasonCode.INSUFFICIENT_CREDITS)
    assert event.reason.evidence == {
        "balance": 0,
        "price": 1,
        "shortfall": 1,
        "currency": "credits",
        "scope": {"origin": {"kind": "campaign", "id": "black-friday"}, "funded": 0, "refused": 1},
    }
    assert event.metadata == {"order": "4711"}
    assert await desk.balance() == 0


async def test_the_same_request_twice_gives_the_same_bytes(desk: Desk) -> None:
    await desk.give(1)
    batch = [consented(name) for name in ("a", "b", "a")]
    first = await desk.fund(*batch)
    again = await desk.fund(*batch)
    assert [out.topic for out in first] == [Topic.SEND_FUNDED, Topic.SEND_REJECTED, Topic.ACCOUNT_UPDATED]
    assert again == first
    assert await desk.booked("a") == [("reserve", -1)]
    assert await desk.balance() == 0


async def test_a_refusal_stands_even_after_a_top_up(desk: Desk) -> None:
    [first] = await desk.fund(consented("a"))
    await desk.give(5)
    again = await desk.fund(consented("a"))
    assert again[0] == first
    assert await desk.balance() == 5


async def test_eight_writers_fund_exactly_what_the_balance_covers(desk: Desk) -> None:
    await desk.give(100)
    # Four batches of 50, each handled by two twins at once, as when a replica that was thought dead wakes up.
    batches = [[consented(f"m{batch}-{n}") for n in range(50)] for batch in range(4)]
    answers = await asyncio.gather(*(desk.fund(*batch) for batch in batches for _twin in range(2)))
    told = {(out.topic, out.key, out.value) for answer in answers for out in answer}
    topics = Counter(topic for topic, _, _ in told)
    assert (topics[Topic.SEND_FUNDED], topics[Topic.SEND_REJECTED]) == (100, 100)
    # Each refusal has a number of its own, whoever made it.
    scopes = [
        SendRejected.model_validate_json(value or b"").reason.evidence["scope"]
        for topic, _, value in told
        if topic is Topic.SEND_REJECTED
    ]
    assert {scope["refused"] for scope in scopes if isinstance(scope, dict)} == set(range(1, 101))
    [tally] = await desk.pool.fetch("select funded, refused from tally")
    assert tuple(tally) == (100, 100)
    assert await desk.balance() == 0
    assert await desk.pool.fetchval("select min(balance_after) from ledger") == 0


async def test_writers_on_many_workspaces_do_not_lock_each_other_out(desk: Desk) -> None:
    names = [f"w{n}" for n in range(6)]
    for name in names:
        await desk.give(8, name)
    batches = [[consented(f"m{batch}", name) for name in names] for batch in range(8)]
    for batch in batches[::2]:
        batch.reverse()
    await asyncio.gather(*(desk.fund(*batch) for batch in batches))
    assert [await desk.balance(name) for name in names] == [0] * 6


async def test_a_batch_is_one_statement_a_table(desk: Desk) -> None:
    for name in ("w", "v"):
        await desk.give(1000, name)
    statements: list[str] = []
    async with desk.pool.acquire() as connection:
        # The first batch on a connection also asks PostgreSQL for the types of the arrays.
        for batch in range(2):
            records = [record(consented(f"m{batch}-{n}", "wv"[n % 2], content=TEMPLATE)) for n in range(500)]
            statements.clear()
            with connection.query_logger(lambda query: statements.append(query.query)):
                async with connection.transaction():
                    await desk.on_consented(connection, records)
    told = [re.split(r"write_\d as \(", line) for line in statements if not line.endswith(";")]
    assert [[" ".join(part.split()[:3]) for part in parts] for parts in told] == [
        ["select workspace_id, balance,"],
        ["select asked.workspace_id, asked.message_id,"],
        ["select workspace_id, category,"],
        ["select distinct on"],
        [
            "with",
            *("insert into ledger", "update account a", "insert into charge"),
            *("insert into tally", "insert into decision"),
        ],
    ]
    assert await desk.balance() == 500


CONSENTED = [
    consented("a"),
    consented("a", content=TEMPLATE, sender_id="100000000000001", requested_at=NOW + timedelta(milliseconds=7)),
    consented("a", origin=Origin(kind=OriginKind.INBOX, thread_id="t", agent="Inés"), metadata={"n": [1, 2.5, None]}),
    consented("a", to=To(contact_id="c-é")).model_copy(update={"contact_version": None}),
    consented("a", metadata={"event_id": "theirs", "a": ',"request":'}),
]


@pytest.mark.parametrize("event", CONSENTED)
@pytest.mark.parametrize("balance", [0, 5])
async def test_what_is_read_plainly_is_told_as_its_model_is(desk: Desk, event: SendConsented, balance: int) -> None:
    """By the byte, but for the time of the decision."""
    whole = record(event)
    lean = with_event(whole, consented_of(replace(whole, event=None)))
    told: list[Outgoing] = []
    for one in (whole, lean):
        async with desk.pool.acquire() as connection:
            transaction = connection.transaction()
            await transaction.start()
            if balance:
                accounts = await store.lock_or_open_accounts(connection, ["w"])
                account, entry = top_up(accounts["w"], balance, reference="r", actor="a")
                await store.book(connection, [entry], [account], at=NOW)
            told.append((await desk.on_consented(connection, [one]))[0])
            await transaction.rollback()
    assert [out.topic for out in told] == [Topic.SEND_FUNDED if balance else Topic.SEND_REJECTED] * 2
    kinds: dict[Topic, Any] = {Topic.SEND_FUNDED: SendFunded, Topic.SEND_REJECTED: SendRejected}
    first, second = (kinds[out.topic].model_validate_json(out.value or b"") for out in told)
    assert second.model_copy(update={"occurred_at": first.occurred_at}) == first
    assert second.to_json() == told[1].value
    assert [[one for one in out.headers if one[0] != "ce_time"] for out in told] == [
        [one for one in told[0].headers if one[0] != "ce_time"]
    ] * 2
    assert told[0].key == told[1].key


def test_plain_is_what_consent_writes() -> None:
    for event in CONSENTED:
        is_lean = not isinstance(consented_of(replace(record(event), event=None)), SendConsented)
        assert is_lean == ("event_id" not in event.request.metadata)
    written = record(CONSENTED[0])
    for body in (json.dumps(json.loads(written.value or b"")).encode(), (written.value or b"") + b" "):
        assert consented_of(replace(written, event=None, value=body)) == CONSENTED[0]


TOLD: list[tuple[list[Any], list[tuple[str, int]], int]] = [
    ([Status.ACCEPTED], [], 9),
    ([Status.ACCEPTED, Status.SENT, Status.DELIVERED, Status.READ], [("capture", 0)], 9),
    ([Status.READ], [("capture", 0)], 9),
    ([(Status.FAILED, ReasonCode.RECIPIENT_NOT_ON_WHATSAPP)], [("release", 1)], 10),
    ([Status.SENT, (Status.FAILED, ReasonCode.META_ERROR)], [("capture", 0), ("refund", 1)], 10),
    ([Status.SENT, (Status.FAILED, ReasonCode.NO_DELIVERY_RECEIPT)], [("capture", 0)], 9),
    ([Status.SENT, (Status.FAILED, ReasonCode.RECIPIENT_PROBABLY_BLOCKED_SENDER)], [("capture", 0)], 9),
    ([ReasonCode.CANCELLED], [("release", 1)], 10),
    ([ReasonCode.SEND_OUTCOME_UNKNOWN, Status.SENT], [("release", 1), ("recapture", -1)], 9),
    (
        [Status.SENT, (Status.FAILED, ReasonCode.META_ERROR), Status.DELIVERED],
        [("capture", 0), ("refund", 1), ("recapture", -1)],
        9,
    ),
]


@pytest.mark.parametrize(("told", "entries", "left"), TOLD)
@pytest.mark.parametrize("repeats", [1, 2])
async def test_what_is_told_later_is_booked_once(
    told: list[Any], entries: list[tuple[str, int]], left: int, repeats: int, desk: Desk
) -> None:
    await desk.give(10)
    await desk.fund(consented("a"))
    for _ in range(repeats):
        for one in told:
            if isinstance(one, ReasonCode):
                await desk.tell(*[rejected("a", one)] * repeats)
            else:
                said, code = one if isinstance(one, tuple) else (one, None)
                await desk.tell(*[status("a", said, code=code)] * repeats)
    assert await desk.booked("a") == [("reserve", -1), *entries]
    assert await desk.balance() == left
    assert await desk.pool.fetchval("select reserved from account") == (1 if not entries else 0)


async def test_a_whole_life_in_one_batch_is_folded(desk: Desk) -> None:
    await desk.give(10)
    await desk.fund(consented("a"), consented("b"))
    batch = [status(name, said) for name in ("a", "b") for said in (Status.SENT, Status.FAILED, Status.DELIVERED)]
    first = await desk.tell(*batch)
    kinds = [("reserve", -1), ("capture", 0), ("refund", 1), ("recapture", -1)]
    assert [await desk.booked(name) for name in ("a", "b")] == [kinds, kinds]
    assert [out.topic for out in first] == [Topic.ACCOUNT_UPDATED]
    assert await desk.tell(*batch) == first


async def test_a_recapture_without_credits_is_waived(desk: Desk) -> None:
    await desk.give(1)
    await desk.fund(consented("a"))
    await desk.tell(rejected("a", ReasonCode.SEND_OUTCOME_UNKNOWN))
    await desk.fund(consented("b"))
    await desk.tell(status("a", Status.DELIVERED))
    assert await desk.booked("a") == [("reserve", -1), ("release", 1), ("waive", 0)]
    assert await desk.balance() == 0


async def test_the_refusal_of_an_unusable_request_takes_nothing_from_the_corrected_one(desk: Desk) -> None:
    """Both have the same id. The refusal comes on another topic, and so perhaps after the reservation."""
    await desk.give(10)
    await desk.fund(consented("a"))
    assert await desk.tell(rejected("a", ReasonCode.INVALID_REQUEST, service=Service.CONSENT)) == []
    assert await desk.booked("a") == [("reserve", -1)]
    await desk.tell(status("a", Status.SENT))
    assert await desk.booked("a") == [("reserve", -1), ("capture", 0)]


async def test_news_of_messages_that_were_never_funded_change_nothing(desk: Desk) -> None:
    await desk.fund(consented("refused"))
    own = rejected("refused", ReasonCode.INSUFFICIENT_CREDITS, service=Service.BILLING)
    foreign = rejected("never", ReasonCode.CUSTOMER_IS_NOT_OPTED_IN, "nobody", Service.CONSENT)
    unknown = status("x", Status.DELIVERED).model_copy(update={"message_id": None, "workspace_id": None})
    assert await desk.tell(own, foreign) == []
    assert await desk.tell(unknown, status("never", Status.SENT)) == []
    assert await desk.pool.fetchval("select count(*) from ledger") == 0


async def test_a_price_comes_from_the_templates_category_at_the_senders_account(desk: Desk) -> None:
    await desk.give(1000)
    async with desk.pool.acquire() as connection, connection.transaction():
        yesterday = datetime(2026, 11, 21, tzinfo=UTC)
        rows = [("marketing", None, 5), ("marketing", "52", 7), ("utility", None, 2), ("service", None, 3)]
        await store.replace_prices(connection, "w", [PriceRow(*row, yesterday) for row in rows])
    senders = [
        sender("10001", "w", waba="A", default=False),
        sender("10002", "w", waba="B", default=True),
        sender("10003", "other", waba="C", default=True),
    ]
    templates = [template("A", "sale", "MARKETING"), template("B", "sale", "UTILITY")]
    await desk.run(on_sender, [record(one, key=one.sender_id) for one in senders])
    await desk.run(on_template, [record(one, key=f"{one.waba_id}/sale/en_US") for one in templates])
    batch = [
        consented("named", sender_id="10001", content=TEMPLATE),
        consented("default", content=TEMPLATE),
        consented("foreign", sender_id="10003", content=TEMPLATE),
        consented("text"),
        consented("before", sender_id="10001", content=TEMPLATE, requested_at=yesterday - timedelta(hours=1)),
    ]
    published = await desk.fund(*batch)
    funded = [SendFunded.model_validate_json(out.value or b"") for out in published if out.topic is Topic.SEND_FUNDED]
    assert {event.message_id: (event.price.category, event.price.credits, event.price.assumed) for event in funded} == {
        "named": ("marketing", 7, False),
        "default": ("utility", 2, False),
        "foreign": ("marketing", 7, True),
        "text": ("service", 3, False),
        "before": ("marketing", 1, False),
    }


async def test_copies_only_move_forward_and_tombstones_delete(desk: Desk) -> None:
    new, old = template("A", "sale", "MARKETING", version=2), template("A", "sale", "UTILITY")
    key = "A/sale/en_US"
    await desk.run(on_template, [record(old, key=key), record(new, key=key)])
    await desk.run(on_template, [record(old, key=key)])
    assert await desk.pool.fetchval("select category from template") == "MARKETING"
    await desk.run(on_template, [record(None, Topic.TEMPLATE_UPDATED, key)])
    assert await desk.pool.fetchval("select count(*) from template") == 0
    await desk.run(on_sender, [record(sender("10001", "w", waba="A", default=True), key="10001")])
    await desk.run(on_sender, [record(None, Topic.SENDER_UPDATED, "10001")])
    assert await desk.pool.fetchval("select count(*) from sender") == 0


@pytest.mark.parametrize(
    "change",
    ["update ledger set amount = 5", "delete from ledger", "truncate ledger", "update account set balance = -1"],
)
async def test_the_database_itself_guards_the_ledger(change: str, desk: Desk) -> None:
    await desk.give(1)
    with pytest.raises(asyncpg.PostgresError):
        await desk.pool.execute(change)


async def test_no_kind_stands_twice_for_a_message(desk: Desk) -> None:
    await desk.give(5)
    await desk.fund(consented("a"))
    async with desk.pool.acquire() as connection:
        charge = (await store.charges_of(connection, [("w", "a")]))["w"]["a"]
        again = Entry("w", 99, Kind.RESERVE, -1, 3, Cause("again", "test"), charge)
        with pytest.raises(asyncpg.UniqueViolationError):
            await store.add_entries(connection, [again], at=NOW)


async def test_a_balance_that_left_its_ledger_is_counted_until_it_is_right_again(desk: Desk) -> None:
    await desk.give(3)
    await desk.give(4, "v")
    assert await desk.mismatches() == 0
    await desk.pool.execute("update account set balance = 2 where workspace_id = 'w'")
    await desk.give(1)
    assert [await desk.mismatches() for _ in range(2)] == [1, 1]
    await desk.pool.execute("update account set balance = 4 where workspace_id = 'w'")
    assert await desk.mismatches() == 0
