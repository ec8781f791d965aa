"""Campaigns: the list, one of them with its course and what of it waits, and what people set at the dispatcher."""

import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.events import OriginKind
from sendwhy.problems import Problem
from sendwhy.reasons import Service

from message_log import api, campaign_api, login
from message_log import campaign_queries as stored
from message_log.campaign_api import Part
from message_log.campaign_queries import Group
from message_log.campaign_story import Throttle, progress_of, rates_of, stacked, statuses_in
from message_log.language import decimal, told
from message_log.language import gettext as _
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Action, Pages, redirect, wants_part

KIND = OriginKind.CAMPAIGN
FAILED_SHOWN = 10
# The dispatcher's word for what waits for its turn or its time.
TURN = "turn"
Waits = Sequence[stored.Wait | campaign_api.WaitCount]

# By the form's `do`; each is a POST to the campaign at the dispatcher, but for the throttle.
ACTIONS = {
    "pause": Action("pause campaign", Service.DISPATCHER, Role.OPERATOR),
    "resume": Action("resume campaign", Service.DISPATCHER, Role.OPERATOR),
    "cancel": Action("cancel campaign", Service.DISPATCHER, Role.OPERATOR),
    "throttle": Action("throttle campaign", Service.DISPATCHER, Role.OPERATOR, "PUT"),
}
_LIMITS = {"per_minute": 60_000, "per_day": 100_000_000}
_PROBLEMS: Mapping[str, Callable[[], str]] = {
    "per_minute": lambda: _(
        "Messages per minute: give a whole number from 1 to %(most)s, or leave it empty for no bound.",
        most=decimal(_LIMITS["per_minute"]),
    ),
    "per_day": lambda: _(
        "Messages per day: give a whole number from 1 to %(most)s, or leave it empty for no bound.",
        most=decimal(_LIMITS["per_day"]),
    ),
}
_WHOLE = re.compile(r"[0-9][0-9,. _]{0,12}")


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/campaigns")
    async def list_page(reader: Reader = reader_dependency, q: Part = None, cursor: api.Cursor = None) -> Response:
        async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
            page = await stored.list_groups(
                connection, reader.workspace, KIND, cursor=cursor, limit=PAGE_ROWS, q=q or None
            )
        groups = [(group, rates_of(group.by_status)) for group in page.groups]
        return pages.render(
            "campaigns.html",
            reader=reader,
            section="campaigns",
            groups=groups,
            q=q or "",
            cursor=cursor,
            next_cursor=page.next_cursor,
            queue=await _asked(pages, reader, "queue"),
        )

    @router.get("/w/{w}/campaigns.csv")
    async def export(reader: Reader = reader_dependency, q: Part = None) -> StreamingResponse:
        return campaign_api.csv_of_groups(pages.runtime, reader.caller, KIND, q or None)

    @router.get("/w/{w}/campaigns/{campaign:path}")
    async def campaign_page(
        request: Request, campaign: str, reader: Reader = reader_dependency, done: str = ""
    ) -> Response:
        if wants_part(request):
            return await _show_course(pages, reader, campaign)
        return await _show(pages, request, reader, campaign, done=done)

    @router.post("/w/{w}/campaigns/{campaign:path}")
    async def act(request: Request, campaign: str, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        form = await login.form_of(request)
        what = form.get("do", "")
        if what not in ACTIONS:
            raise Problem(422, "This form asks for nothing that a campaign knows.")
        wanted, problem = throttle_in(form) if what == "throttle" else ({}, _unsure(what, form))
        if problem is not None:
            return await _show(pages, request, reader, campaign, status=422, problem=problem, given=form)
        if what == "throttle":
            answer = await pages.act(request, reader, ACTIONS[what], "throttles", campaign, body=wanted)
        else:
            answer = await pages.act(request, reader, ACTIONS[what], "campaigns", campaign, what)
        if not answer.is_good:
            return await _show(
                pages, request, reader, campaign, status=answer.status, problem=answer.refusal, given=form
            )
        path = f"/w/{quote(reader.workspace, safe='')}/campaigns/{quote(campaign, safe='')}"
        return redirect(f"{path}?done={what}", request)


def throttle_in(form: dict[str, str]) -> tuple[dict[str, int | None], str | None]:
    """The throttle that a form asks for (an empty field: no bound), and why it can't be one."""
    wanted: dict[str, int | None] = {}
    for name, most in _LIMITS.items():
        text = form.get(name, "")
        number = int(re.sub(r"[^0-9]", "", text)) if _WHOLE.fullmatch(text) else None
        if text and (number is None or not 1 <= number <= most):
            return {}, _PROBLEMS[name]()
        wanted[name] = number
    return wanted, None


def _unsure(what: str, form: dict[str, str]) -> str | None:
    if what == "cancel" and not form.get("sure"):
        return _("Tick that you are sure: a cancelled campaign never goes on, and what waits of it is withdrawn.")
    return None


async def _show(
    pages: Pages, request: Request, reader: Reader, campaign: str, *, status: int = 200, **more: Any
) -> Response:
    async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
        found = await campaign_api.load_campaign(connection, reader.workspace, campaign, datetime.now(UTC))
        failed = await stored.latest_failed(connection, reader.workspace, KIND, campaign, FAILED_SHOWN)
    course, kept, unknown = await _course(pages, reader, found.group, found.lately, found.waits)
    viewer = pages.viewer(request, reader)
    values = {"problem": None, "done": "", "given": {}} | course | more
    return pages.render(
        "campaign.html",
        status=status,
        campaign=found,
        failed=[viewer.message(row) for row in failed],
        rects=stacked(found.bars),
        shown_statuses=statuses_in(found.bars),
        kept=kept,
        unknown=unknown,
        **values,
    )


async def _show_course(pages: Pages, reader: Reader, campaign: str) -> Response:
    """Only how far it is: what a page that stays open asks for again and again."""
    async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
        group, lately, waits = await campaign_api.load_course(connection, reader.workspace, campaign, datetime.now(UTC))
    course, _, _ = await _course(pages, reader, group, lately, waits)
    return pages.render("campaign.html", block="course", problem=None, **course)


async def _course(
    pages: Pages, reader: Reader, group: Group, lately: int, waits: Waits
) -> tuple[dict[str, Any], dict[str, Any] | None, str | None]:
    """What the block `course` shows, and what the dispatcher keeps of the campaign (or why that is not known)."""
    kept, unknown = await _asked(pages, reader, "campaigns", group.id)
    progress = progress_of(group.done, group.total, lately, group.first_at, datetime.now(UTC), _throttle_of(kept))
    course = {
        "reader": reader,
        "section": "campaigns",
        "group": group,
        "rates": rates_of(group.by_status),
        "progress": progress,
        "moments": _moments(kept),
        "scheduled": next((wait for wait in waits if wait.scheduled), None),
    }
    return course, kept and kept | {"waiting": _unscheduled(kept, waits)}, unknown


def _unscheduled(kept: dict[str, Any], waits: Waits) -> list[dict[str, Any]]:
    """What waits at the dispatcher without what waits there for its own time: that is told by this log's `waits`."""
    ours = sum(wait.count for wait in waits if wait.scheduled)
    told = [
        one | {"messages": one["messages"] - ours} if one["waiting_for"] == TURN else one for one in kept["waiting"]
    ]
    return [one for one in told if one["messages"] > 0]


async def _asked(pages: Pages, reader: Reader, *parts: str) -> tuple[dict[str, Any] | None, str | None]:
    """What the dispatcher knows; or None, and why it is not known: the page stands without it."""
    try:
        answer = await pages.ask(reader, Service.DISPATCHER, *parts)
    except Problem as problem:
        return None, told(str(problem.detail))
    if not answer.is_good or not isinstance(answer.body, dict):
        return None, answer.refusal
    return answer.body, None


def _throttle_of(kept: dict[str, Any] | None) -> Throttle:
    kept = kept or {}
    return Throttle(kept.get("per_minute"), kept.get("per_day"), kept.get("slots_today") or 0)


def _moments(kept: dict[str, Any] | None) -> dict[str, datetime]:
    """The times that the dispatcher told."""
    told = {name: (kept or {}).get(name) for name in ("paused_at", "cancelled_at")}
    return {name: datetime.fromisoformat(text) for name, text in told.items() if isinstance(text, str)}
