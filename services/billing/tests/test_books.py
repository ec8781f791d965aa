"""The books on a real PostgreSQL: histories at random with many writers, what is pruned, what is proven."""

import asyncio
import random
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import billing
import pytest
from billing import books, store
from billing.decide import Told, told_by
from billing.explain import charge_answer
from billing_desk import Desk, consented, rejected, status, verdict_is_paid
from sendwhy.events import SendRejected, Status
from sendwhy.postgres import DATA_ERRORS, connect_pool, migrate, prune
from sendwhy.reasons import ReasonCode

pytestmark = pytest.mark.postgres

MIGRATIONS = Path(billing.__file__).parent / "migrations"
NAMES = [f"m{n}" for n in range(40)]
STATUSES = [
    (Status.ACCEPTED, None),
    (Status.SENT, None),
    (Status.DELIVERED, None),
    (Status.READ, None),
    (Status.FAILED, ReasonCode.META_ERROR),
    (Status.FAILED, ReasonCode.NO_DELIVERY_RECEIPT),
]


def histories(chance: random.Random) -> list[Any]:
    """For each message any events, in any order, many of them twice."""
    told: list[Any] = []
    for name in NAMES:
        told += [status(name, said, code=code) for said, code in chance.choices(STATUSES, k=chance.randrange(5))]
        told += [rejected(name, ReasonCode.SEND_OUTCOME_UNKNOWN)] * chance.randrange(2)
    told += chance.choices(told, k=len(told) // 2)
    chance.shuffle(told)
    return told


@pytest.mark.parametrize("seed", range(4))
async def test_any_history_with_many_writers_ends_exact(desk: Desk, seed: int) -> None:
    chance = random.Random(seed)
    await desk.give(len(NAMES) * 2)
    requests = [consented(name) for name in NAMES]
    await asyncio.gather(*(desk.fund(*chance.sample(requests, len(requests))) for _ in range(4)))
    told = histories(chance)
    batches = [[one] for one in told[::3]] + [told[1::3], told[2::3]]

    async def tell(batch: list[Any]) -> None:
        for kind in (True, False):
            some = [one for one in batch if isinstance(one, SendRejected) == kind]
            if some:
                await desk.tell(*some)

    await asyncio.gather(*(tell(batch) for batch in batches), *(desk.give(1) for _ in range(3)))
    paid = 0
    for name in NAMES:
        of = [one for one in told if one.message_id == name]
        said = {Told.REJECTED if isinstance(one, SendRejected) else told_by(one) for one in of} - {None}
        booked = await desk.booked(name)
        kinds = [kind for kind, _ in booked]
        assert len(kinds) == len(set(kinds))
        due = verdict_is_paid({one for one in said if one is not None}) and "waive" not in kinds
        assert -sum(amount for _, amount in booked) == due, (said, booked)
        paid += due
    assert await desk.balance() == len(NAMES) * 2 + 3 - paid


async def pruned(desk: Desk) -> set[str]:
    """Prune all that may go; returns the messages whose charges are left."""
    async with desk.pool.acquire() as connection:
        await books.prune_charges(connection, at_once=1)
        await prune(connection)
    return {row["message_id"] for row in await desk.pool.fetch("select message_id from charge")}


async def test_charges_go_when_nothing_can_be_told_of_them_any_more(desk: Desk) -> None:
    await desk.give(9)
    names = ("captured", "released", "refunded", "open", "young")
    await desk.fund(*(consented(name) for name in names))
    await desk.tell(*(status(name, Status.SENT) for name in ("captured", "refunded", "young")))
    await desk.tell(status("refunded", Status.FAILED, code=ReasonCode.META_ERROR))
    await desk.tell(rejected("released", ReasonCode.CANCELLED))
    assert await pruned(desk) == set(names)
    past = datetime.now(UTC) - timedelta(seconds=1)
    await desk.pool.execute("update charge set prune_after = $1 where message_id <> 'young'", past)
    await desk.pool.execute("update decision set prune_after = $1 where message_id <> 'young'", past)
    # A reservation that is still open stays, since the account's `reserved` counts it.
    assert await pruned(desk) == {"open", "young"}
    before = await desk.pool.fetchval("select count(*) from ledger")
    balance = await desk.balance()
    late = [status(name, said, code=code) for name in ("captured", "released", "refunded") for said, code in STATUSES]
    await desk.tell(*late)
    await desk.tell(*(rejected(name, ReasonCode.SEND_OUTCOME_UNKNOWN) for name in ("captured", "refunded")))
    assert await desk.pool.fetchval("select count(*) from ledger") == before
    assert await desk.balance() == balance
    # The open one can still be settled, and goes then.
    await desk.tell(rejected("open", ReasonCode.SEND_OUTCOME_UNKNOWN))
    assert await desk.balance() == balance + 1
    assert await pruned(desk) == {"young"}


async def test_a_request_that_comes_again_after_all_was_pruned_is_put_aside_not_booked_twice(desk: Desk) -> None:
    await desk.give(9)
    await desk.fund(consented("a"))
    await desk.tell(status("a", Status.READ))
    for table in ("charge", "decision"):
        await desk.pool.execute(f"update {table} set prune_after = now() - interval '1 day'")
    assert await pruned(desk) == set()
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await desk.fund(consented("a"), consented("b"))
    # The stage halves a batch that fails so, down to the guilty record.
    assert isinstance(refused.value, DATA_ERRORS)
    await desk.fund(consented("b"))
    assert await desk.balance() == 7


@pytest.mark.parametrize("column", ["balance", "reserved", "version"])
async def test_an_account_that_left_its_ledger_is_counted(desk: Desk, column: str) -> None:
    await desk.give(9)
    await desk.fund(consented("a"), consented("b"))
    await desk.tell(status("a", Status.READ))
    assert await desk.mismatches() == 0
    await desk.pool.execute(f"update account set {column} = {column} + 1")
    assert await desk.mismatches() == 1


OLD_BOOKS = """
insert into account (workspace_id, balance, reserved, version, last_top_up) values ('w', 8, 1, 4, 10);
insert into ledger (workspace_id, version, kind, amount, balance_after, cause, message_id, category, calling_code,
                    price, assumed, origin_kind, origin_id, at)
values ('w', 1, 'top_up', 10, 10, 'r', null, null, null, null, null, null, null, now()),
       ('w', 2, 'reserve', -1, 9, 'c', 'a', 'service', '52', 1, false, 'campaign', 'black-friday', now()),
       ('w', 3, 'reserve', -1, 8, 'c', 'b', 'service', '52', 1, false, 'campaign', 'black-friday', now()),
       ('w', 4, 'capture', 0, 8, 'c', 'a', 'service', '52', 1, false, 'campaign', 'black-friday', now());
insert into charge (workspace_id, message_id, price, category, calling_code, assumed, origin_kind, origin_id, booked,
                    receipt, prune_after)
select 'w', m, 1, 'service', '52', false, 'campaign', 'black-friday', booked, receipt, now() + interval '47 days'
from (values ('a', array['reserve', 'capture'], 1), ('b', array['reserve'], 0)) as c(m, booked, receipt);
insert into reconciled (workspace_id, version, total) values ('w', 2, 9);
"""


async def test_books_from_before_are_taken_over(fresh_database: str, tmp_path: Path) -> None:
    shutil.copy(MIGRATIONS / "0001_billing.sql", tmp_path)
    await migrate(fresh_database, tmp_path)
    pool = await connect_pool(fresh_database, service="billing-test", size=2)
    try:
        await pool.execute(OLD_BOOKS)
        await migrate(fresh_database, MIGRATIONS)
        old = Desk(pool)
        assert await old.balance() == 8
        await old.tell(status("a", Status.READ), status("b", Status.FAILED, code=ReasonCode.META_ERROR))
        assert await old.booked("b") == [("reserve", -1), ("release", 1)]
        await old.fund(consented("c"))
        assert tuple(await pool.fetchrow("select funded, refused from tally") or ()) == (3, 0)
        assert await old.balance() == 8
        async with pool.acquire() as connection:
            entries = await store.ledger_page(connection, "w", message_id="a", limit=9)
        answer = charge_answer("w", entries[::-1], None, [])
        assert (answer.credits, answer.state, answer.entries[0].cause.kind) == (1, "captured", None)
        assert answer.price is not None
        assert answer.price.default is None
        assert answer.price.explanation == "A service message to +52 cost 1 credit."
    finally:
        await pool.close()
