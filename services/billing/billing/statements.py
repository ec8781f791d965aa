"""Statements: what an account's credits went for, by day, campaign, category and country, with totals that add up."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from typing import Any
from zoneinfo import ZoneInfo

import asyncpg
from sendwhy.events import Moment, Wire
from sendwhy.postgres import Connection
from sendwhy.sheets import csv_text

DAYS_MAX = 400
JSON_ROWS_MAX = 10_000
CSV_ROWS_AT_ONCE = 1_000


class By(StrEnum):
    """What the rows of a statement are told apart by."""

    DAY = "day"
    CAMPAIGN = "campaign"
    CATEGORY = "category"
    COUNTRY = "country"


class Figures(Wire):
    """Sums over ledger entries. `messages` were reserved for; all else in credits: `reserved`, `recaptured` were taken,
    `released`, `refunded` given back, `captured` and `waived` moved nothing; `net` is what the balance changed by."""

    messages: int = 0
    reserved: int = 0
    captured: int = 0
    released: int = 0
    refunded: int = 0
    recaptured: int = 0
    waived: int = 0
    top_ups: int = 0
    adjustments: int = 0
    net: int = 0


class StatementRow(Figures):
    """Only what the statement is grouped by is there; null where the entries have none, as top-ups have no campaign.
    `origin_kind` and `origin_id` stand for the campaign, and for what else asked for messages."""

    day: date | None = None
    origin_kind: str | None = None
    origin_id: str | None = None
    category: str | None = None
    country: str | None = None


class StatementAnswer(Wire):
    """From the first moment of `from_day` to the first of `to_day`, in `zone`. The balances are null in a statement
    that is narrowed by campaign, category or country; else opening balance + `totals.net` = closing balance."""

    workspace_id: str
    zone: str
    from_day: date
    to_day: date
    from_moment: Moment
    to_moment: Moment
    by: list[By]
    opening_balance: int | None
    closing_balance: int | None
    rows: list[StatementRow]
    totals: Figures


@dataclass(frozen=True, slots=True)
class Question:
    """`from_day` is in it, `to_day` is not; `by` without repeats."""

    workspace: str
    from_day: date
    to_day: date
    zone: ZoneInfo
    by: Sequence[By]
    campaign: str | None = None
    category: str | None = None
    country: str | None = None

    @property
    def is_whole(self) -> bool:
        return self.campaign is None and self.category is None and self.country is None

    def midnights(self) -> list[datetime]:
        """The first moment of each day, and that after the last one."""
        days = (self.to_day - self.from_day).days
        return [first_moment(self.from_day + timedelta(days=n), self.zone) for n in range(days + 1)]


def first_moment(day: date, zone: ZoneInfo) -> datetime:
    """Where midnight is skipped, the moment that the clocks went forward."""
    return datetime.combine(day, time(), zone).astimezone(UTC)


class TooManyRows(Exception):
    pass


_FIGURES = """
coalesce(sum(entries) filter (where kind = 'reserve'), 0)::bigint as messages,
coalesce(sum(credits) filter (where kind = 'reserve'), 0)::bigint as reserved,
coalesce(sum(credits) filter (where kind = 'capture'), 0)::bigint as captured,
coalesce(sum(credits) filter (where kind = 'release'), 0)::bigint as released,
coalesce(sum(credits) filter (where kind = 'refund'), 0)::bigint as refunded,
coalesce(sum(credits) filter (where kind = 'recapture'), 0)::bigint as recaptured,
coalesce(sum(credits) filter (where kind = 'waive'), 0)::bigint as waived,
coalesce(sum(amount) filter (where kind = 'top_up'), 0)::bigint as top_ups,
coalesce(sum(amount) filter (where kind = 'adjustment'), 0)::bigint as adjustments,
coalesce(sum(amount), 0)::bigint as net
"""
_COLUMNS = {
    By.DAY: ("width_bucket(quarter, $2::timestamptz[]) as day",),
    By.CAMPAIGN: ("origin_kind", "origin_id"),
    By.CATEGORY: ("category",),
    By.COUNTRY: ("country",),
}
_OPENING = "select coalesce(sum(amount), 0)::bigint from movement where workspace_id = $1 and quarter < $2"


def _select(by: Sequence[By]) -> str:
    columns = [column for name in by for column in _COLUMNS[name]]
    keys = ", ".join(str(position) for position in range(1, len(columns) + 1))
    return f"""
select {", ".join([*columns, _FIGURES])} from movement
where workspace_id = $1 and quarter >= ($2::timestamptz[])[1] and quarter < ($2::timestamptz[])[cardinality($2)]
  and ($3::text is null or (origin_kind = 'campaign' and origin_id = $3)) and ($4::text is null or category = $4)
  and ($5::text is null or country = $5)
{f"group by {keys} order by {keys}" if keys else ""}
"""  # noqa: S608 - the columns are constants


def _arguments(question: Question) -> tuple[Any, ...]:
    return question.workspace, question.midnights(), question.campaign, question.category, question.country


async def _opening(connection: Connection, question: Question) -> int | None:
    if not question.is_whole:
        return None
    return int(await connection.fetchval(_OPENING, question.workspace, question.midnights()[0]))


def _row(question: Question, row: asyncpg.Record) -> StatementRow:
    values = dict(row)
    if By.DAY in question.by:
        values["day"] = question.from_day + timedelta(days=row["day"] - 1)
    return StatementRow(**values)


@dataclass(slots=True)
class Sum:
    """The totals of the rows added so far."""

    values: dict[str, int] = field(default_factory=lambda: dict.fromkeys(Figures.model_fields, 0))

    def add(self, row: Figures) -> None:
        for name in self.values:
            self.values[name] += getattr(row, name)


async def statement(connection: Connection, question: Question) -> StatementAnswer:
    """The whole statement, as of one moment. Raises TooManyRows beyond `JSON_ROWS_MAX`."""
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        opening = await _opening(connection, question)
        cursor = await connection.cursor(_select(question.by), *_arguments(question))
        rows = await cursor.fetch(JSON_ROWS_MAX + 1)
    if len(rows) > JSON_ROWS_MAX:
        raise TooManyRows
    total = Sum()
    shown = [_row(question, row) for row in rows]
    for row in shown:
        total.add(row)
    midnights = question.midnights()
    return StatementAnswer(
        workspace_id=question.workspace,
        zone=question.zone.key,
        from_day=question.from_day,
        to_day=question.to_day,
        from_moment=midnights[0],
        to_moment=midnights[-1],
        by=list(question.by),
        opening_balance=opening,
        closing_balance=None if opening is None else opening + total.values["net"],
        rows=shown,
        totals=Figures(**total.values),
    )


async def statement_lines(connection: Connection, question: Question) -> AsyncGenerator[str, None]:
    """The same as CSV, a piece at a time: a line `opening`, the rows, and lines `total` and `closing`."""
    keys = [name for by in question.by for name in _key_fields(by)]
    figures = list(Figures.model_fields)
    blank = [None] * len(keys)
    total = Sum()
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        opening = await _opening(connection, question)
        yield csv_text([["line", *keys, *figures, "balance"]])
        if opening is not None:
            yield csv_text([["opening", *blank, *[None] * len(figures), opening]])
        cursor = await connection.cursor(_select(question.by), *_arguments(question))
        while rows := await cursor.fetch(CSV_ROWS_AT_ONCE):
            lines = []
            for row in (_row(question, each) for each in rows):
                total.add(row)
                lines.append(["row", *(getattr(row, name) for name in [*keys, *figures]), None])
            yield csv_text(lines)
    yield csv_text([["total", *blank, *total.values.values(), None]])
    if opening is not None:
        yield csv_text([["closing", *blank, *[None] * len(figures), opening + total.values["net"]]])


def _key_fields(by: By) -> Sequence[str]:
    return ("origin_kind", "origin_id") if by is By.CAMPAIGN else (by.value,)
