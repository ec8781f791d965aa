"""Templates and senders as the dispatcher has them: state, since when, what stops them; pause, resume, sync."""

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import Service

from message_log import api, login
from message_log.contact_api import service_csv
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Action, Pages, redirect
from message_log.probes import SENDERS_LOOKED_AT
from message_log.services import ASK_SECONDS, Answer
from message_log.told import Told, told_by
from message_log.view import mask

ACTIONS = {
    "pause": Action("pause sender", Service.DISPATCHER, Role.OPERATOR),
    "resume": Action("resume sender", Service.DISPATCHER, Role.OPERATOR),
    "sync": Action("sync sender", Service.DISPATCHER, Role.OPERATOR),
}
# Meta's own; what is not in them is listed all the same.
STATUSES = ("APPROVED", "PENDING", "REJECTED", "PAUSED", "DISABLED", "IN_APPEAL", "ARCHIVED")
CATEGORIES = ("MARKETING", "UTILITY", "AUTHENTICATION")
# Meta's own words on a webhook may name the person it was about.
_DIGITS = re.compile(r"\+?\d{7,}")

Part = Annotated[str | None, Query(max_length=64)]


def install(router: APIRouter, pages: Pages) -> None:
    _template_routes(router, pages)
    _sender_routes(router, pages)


def _template_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/templates")
    async def templates_page(
        reader: Reader = reader_dependency, status: Part = None, category: Part = None, cursor: api.Cursor = None
    ) -> Response:
        given = (("status", status), ("category", category), ("cursor", cursor))
        asked = [("limit", str(PAGE_ROWS)), *((name, value) for name, value in given if value)]
        told = await told_by(pages, reader, Service.DISPATCHER, "templates", asked=asked)
        return pages.render(
            "templates.html",
            reader=reader,
            section="templates",
            told=told,
            statuses_of=STATUSES,
            categories=CATEGORIES,
            status_asked=status or "",
            category=category or "",
            cursor=cursor,
        )

    @router.get("/w/{w}/templates.csv")
    async def templates_csv(reader: Reader = reader_dependency) -> StreamingResponse:
        return await _csv(pages, reader, "templates")


def _sender_routes(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/senders")
    async def senders_page(reader: Reader = reader_dependency) -> Response:
        told = await told_by(pages, reader, Service.DISPATCHER, "senders")
        ids = [str(one["sender_id"]) for one in (told.body or [])[:SENDERS_LOOKED_AT]]
        asked = (told_by(pages, reader, Service.DISPATCHER, "senders", one, "health") for one in ids)
        stops = {
            one: health.body["stopped_by"]
            for one, health in zip(ids, await asyncio.gather(*asked), strict=True)
            if health.body
        }
        return pages.render("senders.html", reader=reader, section="senders", told=told, stops=stops)

    @router.get("/w/{w}/senders.csv")
    async def senders_csv(reader: Reader = reader_dependency) -> StreamingResponse:
        return await _csv(pages, reader, "senders")

    @router.get("/w/{w}/senders/{sender_id}")
    async def sender_page(
        sender_id: str, reader: Reader = reader_dependency, done: Annotated[str, Query(max_length=20)] = ""
    ) -> Response:
        return await _show(pages, reader, sender_id, done=done)

    @router.post("/w/{w}/senders/{sender_id}")
    async def act(request: Request, sender_id: str, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        what = (await login.form_of(request)).get("do", "")
        if what not in ACTIONS:
            raise Problem(422, "This form asks for nothing that a sender knows.")
        try:
            answer = await pages.act(request, reader, ACTIONS[what], "senders", sender_id, what)
        except Problem as problem:
            if problem.status_code < 500:
                raise
            return await _show(pages, reader, sender_id, status=problem.status_code, problem=str(problem.detail))
        if not answer.is_good:
            return await _show(pages, reader, sender_id, status=answer.status, problem=answer.refusal)
        return redirect(f"/w/{reader.workspace}/senders/{sender_id}?done={what}", request)


async def _csv(pages: Pages, reader: Reader, name: str) -> StreamingResponse:
    async def ask(asked: Sequence[tuple[str, str]]) -> Answer:
        return await pages.ask(reader, Service.DISPATCHER, name, asked=asked, seconds=ASK_SECONDS)

    return await service_csv(name, reader.workspace, ask)


async def _show(pages: Pages, reader: Reader, sender_id: str, *, status: int = 200, **more: Any) -> Response:
    sender, health = await asyncio.gather(
        told_by(pages, reader, Service.DISPATCHER, "senders", sender_id),
        told_by(pages, reader, Service.DISPATCHER, "senders", sender_id, "health"),
    )
    if _is_unknown(sender):
        raise not_found("The sender")
    if health.body is not None and not reader.may(Role.OPERATOR):
        for report in health.body["reports"]:
            report["detail"] = _DIGITS.sub(lambda found: mask(found[0]) or "", report["detail"])
    values = {"problem": None, "done": ""} | more
    return pages.render(
        "sender.html",
        status=status,
        reader=reader,
        section="senders",
        sender_id=sender_id,
        sender=sender,
        health=health,
        **values,
    )


def _is_unknown(told: Told) -> bool:
    # An id that no sender can have is refused by its form.
    return told.status in (404, 422)
