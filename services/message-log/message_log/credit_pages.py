"""Credits: balance, ledger, statement, alerts, what failed for lack of them, top-up."""

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.events import Status
from sendwhy.problems import Problem
from sendwhy.reasons import ReasonCode, Service
from starlette.background import BackgroundTask

from message_log import api, login, queries, resend_store
from message_log.contact_api import csv_answer, service_csv
from message_log.language import decimal
from message_log.language import gettext as _
from message_log.login import Reader
from message_log.pages import Action, Pages, redirect
from message_log.queries import Filters
from message_log.services import ASK_SECONDS, Answer
from message_log.told import told_by
from message_log.view import MessageView

LEDGER_SHOWN = 50
ALERTS_SHOWN = 6
SHORT_DAYS = 30
SHORT_MAX = 1000
TOP_UP = Action("top up", Service.BILLING, Role.OPERATOR)
KINDS = ("top_up", "adjustment", "reserve", "capture", "release", "refund", "recapture", "waive")
_CREDITS = re.compile(r"[0-9][0-9,. _]{0,14}")
_KEY = re.compile(r"[0-9a-f-]{36}")
_MOVED = ("reserved", "captured", "released", "refunded", "recaptured", "waived", "top_ups", "adjustments")
_FIGURES = ("messages", *_MOVED, "net")

Part = Annotated[str | None, Query(max_length=64)]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """Messages of one origin that failed for lack of credits: how many, the balance at those moments, what they would
    have cost together."""

    origin: dict[str, Any]
    count: int
    balance_least: int
    balance_most: int
    price: int
    first: datetime
    last: datetime


def shortfalls(messages: Iterable[MessageView]) -> list[Shortfall]:
    """By origin, the latest first. Balance and price are what billing told with each."""
    found: dict[tuple[Any, Any], Shortfall] = {}
    for message in messages:
        evidence = message.reason.evidence if message.reason else {}
        balance, price = _whole(evidence.get("balance")), _whole(evidence.get("price"))
        origin = dict(message.origin or {})
        at = message.times.get(Status.FAILED) or message.updated_at
        before = found.get(key := (origin.get("kind"), origin.get("id")))
        found[key] = Shortfall(
            origin=before.origin if before else origin,
            count=(before.count if before else 0) + 1,
            balance_least=min(before.balance_least, balance) if before else balance,
            balance_most=max(before.balance_most, balance) if before else balance,
            price=(before.price if before else 0) + price,
            first=min(before.first, at) if before else at,
            last=max(before.last, at) if before else at,
        )
    return sorted(found.values(), key=lambda one: one.last, reverse=True)


def _whole(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def install(router: APIRouter, pages: Pages) -> None:
    _account_routes(router, pages)
    _statement_routes(router, pages)


def _account_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/credits")
    async def credits_page(
        request: Request,
        reader: Reader = reader_dependency,
        kind: Part = None,
        cursor: api.Cursor = None,
        done: Annotated[str, Query(max_length=20)] = "",
    ) -> Response:
        return await _show(pages, request, reader, kind=kind, cursor=cursor, done=done)

    @router.post("/w/{w}/credits")
    async def top_up(request: Request, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        form = await login.form_of(request)
        body, problem = top_up_in(form)
        if body is None:
            return await _show(pages, request, reader, status=422, problem=problem, given=form)
        try:
            answer = await pages.act(request, reader, TOP_UP, "top-ups", body=body, key=form["key"])
        except Problem as fault:
            if fault.status_code < 500:
                raise
            # It may have been booked: only the same key makes the next try harmless.
            detail = f"{fault.detail} If it was booked all the same, the same form adds nothing twice."
            status = fault.status_code
            return await _show(pages, request, reader, status=status, problem=detail, given=form, key=form["key"])
        if not answer.is_good:
            return await _show(pages, request, reader, status=answer.status, problem=answer.refusal, given=form)
        return redirect(f"/w/{reader.workspace}/credits?done={body['credits']}", request)


def _statement_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/ledger.csv")
    async def ledger_csv(reader: Reader = reader_dependency) -> StreamingResponse:
        async def ask(asked: Sequence[tuple[str, str]]) -> Answer:
            return await pages.ask(reader, Service.BILLING, "ledger", asked=asked, seconds=ASK_SECONDS)

        return await service_csv("ledger", reader.workspace, ask)

    @router.get("/w/{w}/credits/statement")
    async def statement_page(request: Request, reader: Reader = reader_dependency) -> Response:
        asked = statement_in(dict(request.query_params), datetime.now(UTC).date())
        # It is the whole page, and of months of messages billing reckons for longer than a part may take.
        query = _statement_query(asked)
        told = await told_by(pages, reader, Service.BILLING, "statements", asked=query, seconds=ASK_SECONDS)
        return pages.render(
            "statement.html",
            status=200 if told.body else told.status,
            reader=reader,
            section="credits",
            asked=asked,
            told=told,
            figures=_FIGURES,
            query=query,
        )

    @router.get("/w/{w}/credits/statement.csv")
    async def statement_csv(request: Request, reader: Reader = reader_dependency) -> StreamingResponse:
        asked = statement_in(dict(request.query_params), datetime.now(UTC).date())
        file = await pages.file(reader, Service.BILLING, "statements.csv", asked=_statement_query(asked))
        answer = csv_answer("statement", reader.workspace, file.aiter_text())
        # Also where its reader has gone before it began.
        answer.background = BackgroundTask(file.aclose)
        return answer


def top_up_in(form: dict[str, str]) -> tuple[dict[str, Any] | None, str | None]:
    """What a form wants to add, or why it can't be read. Its key makes a second press of the button harmless."""
    text, reference = form.get("credits", ""), form.get("reference", "")
    credits = int(re.sub(r"[^0-9]", "", text)) if _CREDITS.fullmatch(text) else 0
    if not 1 <= credits <= 1_000_000_000:
        return None, _("Credits: give a whole number from 1 to %(most)s.", most=decimal(1_000_000_000))
    if not 1 <= len(reference) <= 200:
        return None, _("Reference: say what was paid, as an invoice’s number (1 to 200 characters).")
    if not _KEY.fullmatch(form.get("key", "")):
        return None, _("This form is not whole; try again.")
    return {"credits": credits, "reference": reference}, None


def statement_in(given: dict[str, str], today: date) -> dict[str, str]:
    """A statement's question: this month by day unless asked otherwise. `to` is the last day, as people say it."""
    first = today.replace(day=1)
    return {
        "from": given.get("from") or first.isoformat(),
        "to": given.get("to") or today.isoformat(),
        "by": given.get("by") or "day",
        "zone": given.get("zone") or "UTC",
    }


def _statement_query(asked: dict[str, str]) -> list[tuple[str, str]]:
    """Billing's `to` is the day after the last one; what is no day it refuses itself."""
    try:
        after = (date.fromisoformat(asked["to"]) + timedelta(days=1)).isoformat()
    except (ValueError, OverflowError):
        after = asked["to"]
    return [("from", asked["from"]), ("to", after), ("by", asked["by"]), ("zone", asked["zone"])]


async def _show(
    pages: Pages,
    request: Request,
    reader: Reader,
    *,
    status: int = 200,
    kind: str | None = None,
    cursor: str | None = None,
    **more: Any,
) -> Response:
    since = datetime.now(UTC) - timedelta(days=SHORT_DAYS)
    lacking = Filters(status="failed", reason=ReasonCode.INSUFFICIENT_CREDITS, since=since)
    async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
        failed = await queries.list_messages(connection, reader.workspace, lacking, limit=SHORT_MAX)
        ids = [row["message_id"] for row in failed.rows]
        again = await resend_store.sent_again(connection, reader.workspace, ids)
    listed = [("limit", str(LEDGER_SHOWN))]
    listed += [(name, value) for name, value in (("kind", kind), ("cursor", cursor)) if value]
    account, ledger, alerts = await asyncio.gather(
        told_by(pages, reader, Service.BILLING, "account"),
        told_by(pages, reader, Service.BILLING, "ledger", asked=listed),
        told_by(pages, reader, Service.BILLING, "alerts", asked=[("limit", str(ALERTS_SHOWN))]),
    )
    viewer = pages.viewer(request, reader)
    # What was sent again has its outcome there: it is nothing to top up for.
    short = shortfalls(viewer.message(row) for row in failed.rows if row["message_id"] not in again)
    values = {"problem": None, "done": "", "given": {}, "key": str(uuid4())} | more
    return pages.render(
        "credits.html",
        status=status,
        reader=reader,
        section="credits",
        account=account,
        ledger=ledger,
        alerts=alerts,
        kinds=KINDS,
        kind=kind,
        cursor=cursor,
        short=short,
        short_count=sum(one.count for one in short),
        short_price=sum(one.price for one in short),
        short_days=SHORT_DAYS,
        more_short=failed.next_cursor is not None,
        asked=statement_in({}, datetime.now(UTC).date()),
        **values,
    )
