"""What an accountant asks over HTTP: why a message was charged, statements, alerts, where Meta's pricing differs."""

import asyncio
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import date
from functools import cache
from typing import Annotated, cast
from zoneinfo import ZoneInfo, available_timezones

import asyncpg
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from sendwhy.events import Line, MessageId, Moment, SendRejected, Wire
from sendwhy.http import Caller, Cursor, Viewer, cursor_of, position_of
from sendwhy.postgres import Connection, decisions_of
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime
from sendwhy.topics import Topic

from billing import books, store
from billing.explain import ChargeAnswer, charge_answer, difference_sentence, refused_answer
from billing.pricing import Difference
from billing.stages import STEP
from billing.statements import (
    DAYS_MAX,
    JSON_ROWS_MAX,
    By,
    Question,
    StatementAnswer,
    TooManyRows,
    statement,
    statement_lines,
)

ACQUIRE_SECONDS = 10
# Each holds a connection of the pool that the stages need as well, while its file is written.
CSV_AT_ONCE = 2
# Written and not read to their end: each lies in memory or on this process' disk for as long as its reader likes.
CSV_UNREAD_MAX, CSV_UNREAD_PER_WORKSPACE_MAX = 16, 4
CSV_BYTES_IN_MEMORY = 4 * 1024 * 1024
CSV_PIECE = 64 * 1024
CURSOR_DIGITS_MAX = 18

CsvFile = tempfile.SpooledTemporaryFile[str]
Limit = Annotated[int, Query(ge=1, le=500)]


class AlertAnswer(Wire):
    """`threshold` in percent of the last top-up; `version` is that of the ledger entry that reached it."""

    threshold: int
    balance: int
    last_top_up: int
    version: int
    at: Moment


class AlertsAnswer(Wire):
    items: list[AlertAnswer]
    next_cursor: str | None


class DifferenceAnswer(Wire):
    """`credits` and `category` are those of our charge, `is_charged` whether it stands; the rest is Meta's word."""

    message_id: str
    kind: Difference
    credits: int
    category: str
    is_charged: bool
    meta_category: str | None
    meta_type: str | None
    meta_pricing_model: str | None
    meta_billable: bool | None
    at: Moment
    explanation: str


class DifferencesAnswer(Wire):
    items: list[DifferenceAnswer]
    next_cursor: str | None


def report_routes(router: APIRouter, runtime: Runtime) -> None:
    _charge_routes(router, runtime)
    _list_routes(router, runtime)
    _statement_routes(router, runtime)


def numbers_of(cursor: str, count: int) -> list[int]:
    """The numbers in a cursor of ours; 422 for anything else."""
    parts = position_of(cursor).split(".")
    if len(parts) != count or not all(p.isascii() and p.isdigit() and len(p) <= CURSOR_DIGITS_MAX for p in parts):
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return [int(part) for part in parts]


def _charge_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.get("/workspaces/{w}/messages/{message_id}/charge")
    async def get_charge(caller: Viewer, message_id: MessageId) -> ChargeAnswer:
        """Why a message was charged, or not: what it costs now, the price and where that came from, each entry with its
        cause. 404 where billing never saw it."""
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS, snapshot=True) as connection:
            return await _charge(connection, caller.workspace, message_id)


async def _charge(connection: Connection, workspace: str, message_id: str) -> ChargeAnswer:
    key = (workspace, message_id)
    entries = await store.ledger_page(connection, workspace, message_id=message_id, limit=10)
    if not entries:
        refused = (await decisions_of(connection, STEP, [key])).get(key)
        if refused is None or refused.topic is not Topic.SEND_REJECTED:
            raise not_found("The message")
        told = None if refused.value is None else SendRejected.model_validate_json(refused.value)
        return refused_answer(workspace, message_id, None if told is None else told.reason)
    charges = await store.charges_of(connection, [key])
    charge = charges.get(workspace, {}).get(message_id)
    rows = await books.differences_page(connection, workspace, message_id=message_id, limit=len(Difference))
    meta = None if charge is None else charge.meta
    return charge_answer(workspace, entries[::-1], meta, [Difference(row["kind"]) for row in rows])


def _list_routes(router: APIRouter, runtime: Runtime) -> None:
    @router.get("/workspaces/{w}/alerts")
    async def get_alerts(caller: Viewer, cursor: Cursor = None, limit: Limit = 100) -> AlertsAnswer:
        """The thresholds (20, 10, 0 % of the last top-up) that the balance reached, each once a top-up; the latest
        first."""
        after = None if cursor is None else cast(tuple[int, int], tuple(numbers_of(cursor, 2)))
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            rows = await books.alerts_page(connection, caller.workspace, after=after, limit=limit + 1)
        items = [_alert(row) for row in rows[:limit]]
        more = cursor_of(f"{items[-1].version}.{items[-1].threshold}") if len(rows) > limit else None
        return AlertsAnswer(items=items, next_cursor=more)

    @router.get("/workspaces/{w}/pricing-differences")
    async def get_pricing_differences(
        caller: Viewer,
        kind: Difference | None = None,
        message_id: MessageId | None = None,
        cursor: Cursor = None,
        limit: Limit = 100,
    ) -> DifferencesAnswer:
        """Messages of which Meta's webhooks told another category than we priced, that they were free while we charged,
        or that they are billed while we gave the credits back; the latest first."""
        before = None if cursor is None else numbers_of(cursor, 1)[0]
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            rows = await books.differences_page(
                connection, caller.workspace, before=before, kind=kind, message_id=message_id, limit=limit + 1
            )
        more = cursor_of(str(rows[limit - 1]["position"])) if len(rows) > limit else None
        return DifferencesAnswer(items=[_difference(row) for row in rows[:limit]], next_cursor=more)


def _alert(row: asyncpg.Record) -> AlertAnswer:
    return AlertAnswer(
        threshold=row["percent"],
        balance=row["balance"],
        last_top_up=row["last_top_up"],
        version=row["version"],
        at=row["at"],
    )


def _difference(row: asyncpg.Record) -> DifferenceAnswer:
    kind = Difference(row["kind"])
    return DifferenceAnswer(
        message_id=row["message_id"],
        kind=kind,
        credits=row["credits"],
        category=row["category"],
        is_charged=row["is_charged"],
        meta_category=row["meta_category"],
        meta_type=row["meta_type"],
        meta_pricing_model=row["meta_model"],
        meta_billable=row["meta_billable"],
        at=row["at"],
        explanation=difference_sentence(kind, row["credits"], row["category"], row["meta_category"]),
    )


def _day(text: str) -> str:
    try:
        day = date.fromisoformat(text)
    except ValueError:
        raise ValueError("must be a day, as in 2026-11-01") from None
    if not 2001 <= day.year < 2100:
        raise ValueError("must lie between 2001 and 2100")
    return text


@cache
def _zones() -> frozenset[str]:
    # Those two are whatever the server's own clock is set to.
    return frozenset(available_timezones()) - {"localtime", "Factory"}


def _zone(name: str) -> str:
    if name not in _zones():
        raise ValueError("must be a time zone of the IANA database, as in Europe/Berlin")
    return name


def _by(text: str) -> str:
    names = text.split(",")
    if not set(names) <= set(By) or len(names) != len(set(names)):
        raise ValueError(f"must be some of {','.join(By)}, each once, with commas")
    return text


Day = Annotated[str, StringConstraints(pattern=r"^\d{4}-\d{2}-\d{2}$"), AfterValidator(_day)]
Word = Annotated[Line, StringConstraints(min_length=1, max_length=256)]


class StatementQuery(BaseModel):
    """`from` is the first day, `to` the day after the last one, both in `zone`; `by` some of day, campaign, category
    and country with commas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    from_: Annotated[Day, Field(alias="from")]
    to: Day
    by: Annotated[str, StringConstraints(max_length=64), AfterValidator(_by)] = By.DAY.value
    zone: Annotated[str, StringConstraints(max_length=64), AfterValidator(_zone)] = "UTC"
    campaign: Word | None = None
    category: Word | None = None
    country: Word | None = None


Asked = Annotated[StatementQuery, Query()]


def _question(caller: Caller, query: StatementQuery) -> Question:
    first, end = date.fromisoformat(query.from_), date.fromisoformat(query.to)
    if not 1 <= (end - first).days <= DAYS_MAX:
        detail = f"A statement is of 1 to {DAYS_MAX} days; `to` is the day after the last one."
        raise Problem(422, detail, errors={"to": f"must be 1 to {DAYS_MAX} days after from"})
    names = [By(name) for name in query.by.split(",")]
    zone = ZoneInfo(query.zone)
    return Question(caller.workspace, first, end, zone, names, query.campaign, query.category, query.country)


class Unread:
    """The statements as CSV that this process writes, or holds until they are read: not too many, nor too many of one
    workspace."""

    def __init__(self) -> None:
        self._of: Counter[str] = Counter()

    async def place(self, caller: Viewer, request: Request) -> AsyncIterator[None]:
        """A dependency: one place until the answer is read, or its reader gone. What is no CSV needs none."""
        if not _is_csv(request):
            yield
            return
        if self._of[caller.workspace] >= CSV_UNREAD_PER_WORKSPACE_MAX or self._of.total() >= CSV_UNREAD_MAX:
            raise _later("As many statements as may be are being read just now; read those to their end, or try again.")
        self._of[caller.workspace] += 1
        try:
            yield
        finally:
            self._of[caller.workspace] -= 1
            self._of += Counter()


def _is_csv(request: Request) -> bool:
    return request.url.path.endswith(".csv") or "text/csv" in request.headers.get("accept", "")


def _later(detail: str) -> Problem:
    return Problem(503, detail, headers={"retry-after": "5"})


def _statement_routes(router: APIRouter, runtime: Runtime) -> None:
    streams, unread = asyncio.Semaphore(CSV_AT_ONCE), Unread()

    @router.get(
        "/workspaces/{w}/statements",
        response_model=StatementAnswer,
        response_model_exclude_unset=True,
        responses={200: {"content": {"text/csv": {}}}},
        dependencies=[Depends(unread.place)],
    )
    async def get_statement(caller: Viewer, query: Asked, request: Request) -> StatementAnswer | StreamingResponse:
        """What the credits went for, from a day to a day of a time zone; as CSV with `Accept: text/csv`."""
        asked = _question(caller, query)
        if _is_csv(request):
            return await _csv(runtime, streams, asked)
        async with runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS, snapshot=True) as connection:
            try:
                return await statement(connection, asked)
            except TooManyRows:
                detail = f"The statement has more than {JSON_ROWS_MAX} rows: group by less, or take the CSV."
                raise Problem(422, detail, errors={"by": "gives too many rows"}) from None

    @router.get(
        "/workspaces/{w}/statements.csv", response_class=StreamingResponse, dependencies=[Depends(unread.place)]
    )
    async def get_statement_csv(caller: Viewer, query: Asked) -> StreamingResponse:
        """The same as CSV: a line `opening`, the rows, the lines `total` and `closing`."""
        return await _csv(runtime, streams, _question(caller, query))


async def _csv(runtime: Runtime, streams: asyncio.Semaphore, asked: Question) -> StreamingResponse:
    if streams.locked():
        raise _later(f"{CSV_AT_ONCE} statements are being written just now; try again.")
    name = f"sendwhy-statement-{asked.workspace}-{asked.from_day}-{asked.to_day}.csv"
    headers = {"content-disposition": f'attachment; filename="{name}"', "cache-control": "no-store"}
    file = await _written(runtime, streams, asked)
    return StreamingResponse(_pieces(file), media_type="text/csv; charset=utf-8", headers=headers)


async def _written(runtime: Runtime, streams: asyncio.Semaphore, asked: Question) -> CsvFile:
    """The whole statement in a file: a slow reader must hold neither a connection nor its transaction."""
    file: CsvFile = tempfile.SpooledTemporaryFile(CSV_BYTES_IN_MEMORY, "w+", encoding="utf-8", newline="")  # noqa: SIM115
    async with (
        streams,
        runtime.within(asked.workspace, wait_seconds=ACQUIRE_SECONDS, snapshot=True) as connection,
        aclosing(statement_lines(connection, asked)) as lines,
    ):
        async for text in lines:
            file.write(text)
    file.seek(0)
    return file


async def _pieces(file: CsvFile) -> AsyncIterator[str]:
    with file:
        while text := file.read(CSV_PIECE):
            yield text
