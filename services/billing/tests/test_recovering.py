"""A restored backup's books: what was told after it is booked again, once, and nothing below zero."""

from typing import Any

import pytest
from billing import store
from billing.explain import charge_answer
from billing.recovering import COVER, adopt_funded, adopt_refused, book_again
from billing_desk import Desk, consented, record, rejected
from sendwhy.events import SendFunded
from sendwhy.reasons import ReasonCode, Service
from sendwhy.topics import Outgoing

pytestmark = pytest.mark.postgres
TOP_UP = {"kind": "top_up", "amount": 5, "cause": "invoice 8", "actor": "ab12", "at": "2026-11-22T10:00:00Z"}
TAKEN = TOP_UP | {"kind": "adjustment", "amount": -2, "cause": "a mistake"}


async def lost(desk: Desk, *message_ids: str) -> list[tuple[Any, SendFunded]]:
    """What billing told of these messages in a life of which this database knows nothing."""
    async with desk.pool.acquire() as connection:
        transaction = connection.transaction()
        await transaction.start()
        # It had more credits than this one knows of.
        await connection.execute("update account set balance = 100")
        told: list[Outgoing] = await _fund(desk, connection, message_ids)
        await transaction.rollback()
    events = [SendFunded.model_validate_json(one.value or b"") for one in told if one.topic == "send.funded"]
    return [(record(event), event) for event in events]


async def _fund(desk: Desk, connection: Any, message_ids: tuple[str, ...]) -> list[Outgoing]:
    return await desk.on_consented(connection, [record(consented(one)) for one in message_ids])


async def test_what_was_funded_after_the_backup_is_charged_once_and_told_byte_for_byte(desk: Desk) -> None:
    await desk.give(3)
    told = await lost(desk, "a", "b")
    async with desk.pool.acquire() as connection:
        for _ in range(2):
            async with connection.transaction():
                await adopt_funded(connection, told)
        async with connection.transaction():
            again = await _fund(desk, connection, ("a", "b"))
        entries = await store.ledger_page(connection, "w", limit=10)
    assert [one.value for one in again if one.topic == "send.funded"] == [event.to_json() for _, event in told]
    assert [(one.message_id, one.kind.value) for one in reversed(entries)] == [
        (None, "top_up"),
        ("a", "reserve"),
        ("b", "reserve"),
    ]


async def test_a_price_that_is_booked_again_is_not_called_the_default(desk: Desk) -> None:
    """Which row gave it is not told with what was funded."""
    await desk.give(9)
    (_, event), *_ = await lost(desk, "a")
    dear = event.model_copy(update={"price": event.price.model_copy(update={"credits": 3})})
    async with desk.pool.acquire() as connection, connection.transaction():
        await adopt_funded(connection, [(record(dear), dear)])
        charge = charge_answer("w", await store.ledger_page(connection, "w", message_id="a", limit=10), None, [])
    assert charge.price is not None
    assert charge.price.default is None
    assert charge.price.explanation == "A service message to +52 costs 3 credits."


async def test_credits_that_are_missing_are_lent_visibly(desk: Desk) -> None:
    await desk.give(1)
    told = await lost(desk, "a", "b", "c")
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await adopt_funded(connection, told) == (3, 2)
        cover = (await store.ledger_page(connection, "w", kind="adjustment", limit=10))[0]
        assert (cover.amount, cover.cause) == (2, COVER)
    assert await desk.balance() == 0


async def test_top_ups_after_the_backup_are_booked_once_and_before_what_takes(desk: Desk) -> None:
    async with desk.pool.acquire() as connection:
        for booked in (2, 0):
            async with connection.transaction():
                assert await book_again(connection, {"w": {7: TAKEN, 9: TOP_UP}}) == booked
        assert (await store.accounts(connection, ["w"]))["w"].balance == 3


async def test_what_the_ledger_has_is_not_booked_again(desk: Desk) -> None:
    await desk.give(3)
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await book_again(connection, {"w": {1: TOP_UP}}) == 0


async def test_a_refusal_stays_one_whatever_was_bought_since(desk: Desk) -> None:
    refusal = rejected("a", ReasonCode.INSUFFICIENT_CREDITS, service=Service.BILLING)
    await desk.give(3)
    async with desk.pool.acquire() as connection, connection.transaction():
        assert await adopt_refused(connection, [(record(refusal), refusal)]) == 1
        again = await _fund(desk, connection, ("a",))
        assert [one.value for one in again if one.topic == "send.rejected"] == [refusal.to_json()]
        assert (await store.accounts(connection, ["w"]))["w"].balance == 3
