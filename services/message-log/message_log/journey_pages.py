"""A test message: asked for with a form, then watched stage by stage while it travels."""

import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated
from urllib.parse import quote, urlencode
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, JsonValue, ValidationError
from sendwhy.access import Role
from sendwhy.events import Origin, OriginKind, SendRequested, To
from sendwhy.http import once
from sendwhy.problems import Problem
from sendwhy.stage import fields_of

from message_log import api, inbox_queries, journey, journey_api, live, login, queries, template_forms, words
from message_log.fixes import fixes_of
from message_log.language import decimal
from message_log.language import gettext as _
from message_log.login import Reader
from message_log.pages import Pages, redirect, wants_part
from message_log.template_forms import TemplateForm
from message_log.view import mask

ACTION = "send test message"
TEXT = "text"
TEXT_LENGTH_MAX = 4096
_SPACING = re.compile(r"[\s().\-/]")
_PHONE = re.compile(r"\+[1-9]\d{6,14}")

Sender = Annotated[str | None, Query(max_length=64)]
Choice = Annotated[str | None, Query(max_length=600)]


class _Made(BaseModel):
    message_id: str


@dataclass(frozen=True, slots=True)
class _Asked:
    """What stands in the first form: the number to send from, and a template or free text."""

    senders: Sequence[str]
    sender: str | None
    forms: list[TemplateForm]
    chosen: TemplateForm | None
    is_text: bool


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/diagnostics/test-message")
    async def form_page(reader: Reader = reader_dependency, sender: Sender = None, template: Choice = None) -> Response:
        return await _form(pages, reader, sender, template)

    @router.post("/w/{w}/diagnostics/test-message")
    async def send(request: Request, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        if not reader.may(Role.OPERATOR):
            raise Problem(403, words.needs_role(Role.OPERATOR))
        given = await login.form_of(request)
        asked = await _asked(pages, reader, given.get("sender"), given.get("template"))
        wanted, problem = request_of(reader.workspace, given, asked, datetime.now(UTC))
        if wanted is None:
            return await _form(pages, reader, asked.sender, given.get("template"), given=given, problem=problem)
        message_id = await _hand_over(pages, request, reader, wanted, given.get("key", ""))
        if message_id == wanted.message_id:
            await pages.note(reader, ACTION, wanted.message_id, f"to {mask(wanted.to.phone)}")
        return redirect(_path(reader, message_id), request)

    @router.get("/w/{w}/diagnostics/test-message/{message_id}")
    async def watch(request: Request, message_id: str, reader: Reader = reader_dependency) -> Response:
        message, told = await journey_api.follow(
            pages.runtime, reader.workspace, message_id, pages.viewer(request, reader)
        )
        async with pages.runtime.within(reader.workspace) as connection:
            position = await queries.position_now(connection)
        stream = urlencode({"q": message_id, "after": live.text_of(position)})
        return pages.render(
            "journey.html",
            block="journey" if wants_part(request) else None,
            reader=reader,
            section="diagnostics",
            journey=told,
            message=message,
            fixes=fixes_of(message) if message else [],
            path=_path(reader, message_id),
            stream=f"/w/{quote(reader.workspace, safe='')}/messages.live?{stream}",
            is_over=told.status in ("read", "failed"),
        )


def _path(reader: Reader, message_id: str | None = None) -> str:
    base = f"/w/{quote(reader.workspace, safe='')}/diagnostics/test-message"
    return base if message_id is None else f"{base}/{quote(message_id, safe='')}"


async def _asked(pages: Pages, reader: Reader, sender: str | None, template: str | None) -> _Asked:
    async with pages.runtime.within(reader.workspace) as connection:
        senders = await queries.senders_of(connection, reader.workspace)
        sender = sender if sender in senders else None
        templates = await inbox_queries.templates_of(connection, reader.workspace, sender)
    forms = [template_forms.form_of(each) for each in templates]
    is_text = template == TEXT
    chosen = None if is_text else _choose(forms, template)
    return _Asked(senders, sender, forms, chosen, is_text)


def _choose(forms: Sequence[TemplateForm], key: str | None) -> TemplateForm | None:
    """The one asked for; else the simplest that can be sent: with nothing to fill in, and no marketing."""
    if key:
        return next((form for form in forms if form.key == key), None)
    fit = [form for form in forms if form.unfit is None]
    return min(fit, key=lambda form: (len(form.fields), form.template.category == "MARKETING"), default=None)


async def _form(
    pages: Pages,
    reader: Reader,
    sender: str | None,
    template: str | None,
    *,
    given: dict[str, str] | None = None,
    problem: str | None = None,
) -> Response:
    asked = await _asked(pages, reader, sender, template)
    return pages.render(
        "test_message.html",
        status=200 if problem is None else 422,
        reader=reader,
        section="diagnostics",
        asked=asked,
        given=given or {},
        problem=problem,
        path=_path(reader),
        key=str(uuid4()),
        template_text=template_forms.text_of,
        text_length_max=TEXT_LENGTH_MAX,
    )


def request_of(
    workspace: str, given: dict[str, str], asked: _Asked, now: datetime
) -> tuple[SendRequested | None, str | None]:
    """The send.requested that a form asks for; or None, and why there is none."""
    phone = _SPACING.sub("", given.get("phone", ""))
    if not _PHONE.fullmatch(phone):
        return None, _("Write the phone number with + and the country’s calling code, as in +52 55 1234 5678.")
    content, problem = _content(given, asked)
    if content is None:
        return None, problem
    try:
        return (
            SendRequested(
                message_id=journey.new_id(now, secrets.token_hex(4)),
                workspace_id=workspace,
                sender_id=asked.sender,
                to=To(phone=phone),
                origin=Origin(kind=OriginKind.TEST),
                content=content,
                requested_at=now,
            ),
            None,
        )
    except ValidationError as error:
        return None, "; ".join(fields_of(error))


def _content(given: dict[str, str], asked: _Asked) -> tuple[dict[str, JsonValue] | None, str | None]:
    if asked.is_text:
        text = given.get("text", "").replace("\r\n", "\n")
        if not text or len(text) > TEXT_LENGTH_MAX:
            return None, _("Write a text of at most %(length)s characters.", length=decimal(TEXT_LENGTH_MAX))
        return {"type": "text", "text": {"body": text}}, None
    chosen = asked.chosen
    if chosen is None:
        return None, _("Choose a template, or free text.")
    if chosen.unfit is not None:
        return None, _("The template can’t be sent from here: %(why)s.", why=chosen.unfit)
    if missing := chosen.missing(given):
        return None, _("Fill in %(fields)s.", fields=", ".join(missing))
    return chosen.content(given), None


async def _hand_over(pages: Pages, request: Request, reader: Reader, wanted: SendRequested, key: str) -> str:
    """Publish it once, however often the form is sent; returns the message's id."""

    async def publish() -> tuple[int, bytes]:
        await api.hand_over(connection, wanted)
        return 202, _Made(message_id=wanted.message_id).model_dump_json().encode()

    own = queries.as_uuid(key)
    async with pages.runtime.within(reader.workspace) as connection:
        answer = await once(connection, request, reader.caller, str(own) if own else None, publish)
    pages.runtime.publish_soon()
    return _Made.model_validate_json(bytes(answer.body)).message_id
