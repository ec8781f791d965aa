"""Statements on a real PostgreSQL: they add up, whatever they are grouped by and however much has been rolled up."""

import csv
import io
from collections.abc import Sequence
from datetime import UTC, date, datetime, timedelta
from itertools import chain, combinations
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

import pytest
from billing import books, store
from billing.decide import adjust
from billing.statements import (
    JSON_ROWS_MAX,
    By,
    Figures,
    Question,
    StatementAnswer,
    TooManyRows,
    first_moment,
    statement,
    statement_lines,
)
from billing_desk import TEMPLATE, Desk, consented, rejected, status
from sendwhy.events import Origin, OriginKind, Status
from sendwhy.reasons import ReasonCode

TODAY = datetime.now(UTC).date()
GROUPS = [list(each) for each in chain.from_iterable(combinations(By, n) for n in range(1, len(By) + 1))]


def test_every_zones_midnight_is_on_a_quarter_of_an_hour() -> None:
    """What lets sums by quarter of an hour give days in any zone."""
    days = [date(year, month, 1) for year in range(2000, 2038) for month in (1, 7)]
    for name in sorted(available_timezones()):
        zone = ZoneInfo(name)
        assert all(first_moment(day, zone).timestamp() % 900 == 0 for day in days), name


def test_a_midnight_that_is_skipped_begins_when_the_clocks_go_forward() -> None:
    assert first_moment(date(2018, 11, 4), ZoneInfo("America/Sao_Paulo")) == datetime(2018, 11, 4, 3, tzinfo=UTC)


async def adjusted(desk: Desk, credits: int) -> None:
    async with desk.pool.acquire() as connection, connection.transaction():
        account = (await store.lock_accounts(connection, ["w"]))["w"]
        booked = adjust(account, credits, why="x", actor="a")
        assert isinstance(booked, tuple)
        await store.add_entries(connection, [booked[1]], at=datetime.now(UTC))
        await store.save_accounts(connection, [booked[0]])


async def much_happens(desk: Desk) -> None:
    """Every kind of entry, of two campaigns, an automation and an inbox, in three countries and two categories."""
    await desk.give(9)
    automation = Origin(kind=OriginKind.AUTOMATION, id="=cmd|' /C calc'!A0")
    await desk.fund(
        consented("read"),
        consented("failed"),
        consented("cancelled", content=TEMPLATE),
        consented("late", origin=automation),
        consented("open", origin=Origin(kind=OriginKind.INBOX)),
        consented("waived", origin=Origin(kind=OriginKind.CAMPAIGN, id="other")),
        consented("refused", workspace="poor"),
    )
    await desk.tell(status("read", Status.READ), status("failed", Status.SENT))
    await desk.tell(status("failed", Status.FAILED, code=ReasonCode.META_ERROR))
    await desk.tell(*[rejected(name, ReasonCode.CANCELLED) for name in ("cancelled", "late", "waived")])
    await desk.tell(status("late", Status.DELIVERED))
    await adjusted(desk, -int(await desk.balance()))
    await desk.tell(status("waived", Status.DELIVERED))
    await desk.give(100)
    await adjusted(desk, -7)


def question(by: Sequence[By] = (By.DAY,), zone: str = "UTC", **narrowed: str) -> Question:
    return Question("w", TODAY - timedelta(days=1), TODAY + timedelta(days=2), ZoneInfo(zone), by, **narrowed)


async def asked(desk: Desk, asked: Question) -> StatementAnswer:
    async with desk.pool.acquire() as connection:
        return await statement(connection, asked)


def added_up(rows: Sequence[Figures]) -> Figures:
    return Figures(**{name: sum(getattr(row, name) for row in rows) for name in Figures.model_fields})


@pytest.mark.postgres
async def test_a_statement_adds_up_whatever_it_is_grouped_by(desk: Desk) -> None:
    await much_happens(desk)
    balance = await desk.balance()
    expected = Figures(
        messages=6,
        reserved=6,
        captured=2,
        released=3,
        refunded=1,
        recaptured=1,
        waived=1,
        top_ups=109,
        adjustments=-13,
        net=balance,
    )
    for by in GROUPS:
        told = await asked(desk, question(by))
        assert told.totals == expected, by
        assert added_up(told.rows) == told.totals
        assert (told.opening_balance, told.closing_balance) == (0, balance)


@pytest.mark.postgres
@pytest.mark.parametrize("at_once", [1, 3, 1000])
async def test_a_statement_is_the_same_before_while_and_after_it_is_rolled_up(desk: Desk, at_once: int) -> None:
    await much_happens(desk)
    by = list(By)
    whole = await asked(desk, question(by))
    ledger = await desk.pool.fetchval("select count(*) from ledger where workspace_id = 'w'")
    async with desk.pool.acquire() as connection:
        for upto in range(0, ledger, 5):
            # As far as a replica had come that was killed then.
            await connection.execute("truncate turnover")
            await connection.execute("update reconciled set version = 0, total = 0, held = 0, entries = 0")
            await connection.execute("update account set version = $1 where workspace_id = 'w'", upto)
            await books.roll_up(connection, at_once=at_once)
            await connection.execute("update account set version = $1 where workspace_id = 'w'", ledger)
            assert await connection.fetchval("select version from reconciled where workspace_id = 'w'") == upto
            assert await asked(desk, question(by)) == whole
            assert await books.mismatches(connection) == 0
        await books.roll_up(connection, at_once=at_once)
        assert await books.mismatches(connection) == 0
    assert await asked(desk, question(by)) == whole


@pytest.mark.postgres
async def test_rows_have_what_they_are_grouped_by(desk: Desk) -> None:
    await much_happens(desk)
    rows = (await asked(desk, question([By.CAMPAIGN, By.CATEGORY, By.COUNTRY]))).rows
    assert {(row.origin_kind, row.origin_id, row.category, row.country, row.messages) for row in rows} == {
        ("campaign", "black-friday", "service", "MX", 2),
        ("campaign", "black-friday", "marketing", "MX", 1),
        ("campaign", "other", "service", "MX", 1),
        ("automation", "=cmd|' /C calc'!A0", "service", "MX", 1),
        ("inbox", None, "service", "MX", 1),
        (None, None, None, None, 0),
    }
    narrowed = await asked(desk, question(campaign="black-friday"))
    assert (narrowed.totals.messages, narrowed.opening_balance, narrowed.closing_balance) == (3, None, None)
    assert (await asked(desk, question(country="DE"))).rows == []
    assert (await asked(desk, question(category="marketing"))).totals.released == 1


@pytest.mark.postgres
async def test_days_are_those_of_the_zone(desk: Desk) -> None:
    await desk.give(1)
    # 22:59 and 23:00 UTC lie on two days in Berlin, on one in UTC; 18:29 and 18:30 in Kolkata.
    moments = [(22, 59, 5), (23, 0, 7), (18, 29, 11), (18, 30, 13)]
    async with desk.pool.acquire() as connection:
        for hour, minute, credits in moments:
            account = (await store.lock_accounts(connection, ["w"]))["w"]
            booked = adjust(account, credits, why="x", actor="a")
            assert isinstance(booked, tuple)
            at = datetime(2025, 11, 2, hour, minute, tzinfo=UTC)
            await store.add_entries(connection, [booked[1]], at=at)
            await store.save_accounts(connection, [booked[0]])
    for zone, first, second in [("UTC", 36, 0), ("Europe/Berlin", 29, 7), ("Asia/Kolkata", 11, 25)]:
        told = await asked(desk, Question("w", date(2025, 11, 1), date(2025, 12, 1), ZoneInfo(zone), [By.DAY]))
        days = {row.day: row.net for row in told.rows}
        assert days == {date(2025, 11, day): net for day, net in [(2, first), (3, second)] if net}, zone
    # What came before is the opening balance, and statements of neighbouring ranges join.
    before = await asked(desk, Question("w", date(2025, 11, 1), date(2025, 11, 3), ZoneInfo("Asia/Kolkata"), [By.DAY]))
    after = await asked(desk, Question("w", date(2025, 11, 3), date(2025, 11, 9), ZoneInfo("Asia/Kolkata"), [By.DAY]))
    assert before.closing_balance == after.opening_balance == 11
    assert after.closing_balance == 36


@pytest.mark.postgres
async def test_csv_has_the_same_figures_and_no_formulas(desk: Desk) -> None:
    await much_happens(desk)
    by = list(By)
    told = await asked(desk, question(by))
    async with desk.pool.acquire() as connection:
        text = "".join([line async for line in statement_lines(connection, question(by))])
    rows: list[dict[str, Any]] = list(csv.DictReader(io.StringIO(text)))
    assert [row["line"] for row in rows] == ["opening", *["row"] * len(told.rows), "total", "closing"]
    assert (rows[0]["balance"], rows[-1]["balance"]) == ("0", str(told.closing_balance))
    assert {name: int(rows[-2][name]) for name in Figures.model_fields} == told.totals.model_dump()
    assert [int(row["net"]) for row in rows[1:-2]] == [row.net for row in told.rows]
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@", "|"))]
    assert {row["origin_id"] for row in rows if row["origin_kind"] == "automation"} == {"'=cmd|' /C calc'!A0"}


@pytest.mark.postgres
async def test_a_statement_of_too_many_rows_is_refused_as_json_and_whole_as_csv(desk: Desk) -> None:
    await desk.give(1)
    await desk.pool.execute(
        "insert into turnover select 'w', date_bin('15 minutes', now(), '2000-01-01Z'), 'reserve', 'campaign', n::text,"
        " 'utility', 'MX', 1, 1, -1 from generate_series(1, $1) n",
        JSON_ROWS_MAX,
    )
    with pytest.raises(TooManyRows):
        await asked(desk, question([By.CAMPAIGN]))
    assert len((await asked(desk, question([By.COUNTRY]))).rows) == 2
    async with desk.pool.acquire() as connection:
        text = "".join([line async for line in statement_lines(connection, question([By.CAMPAIGN]))])
    assert text.count("\nrow,") == JSON_ROWS_MAX + 1
