"""The inbox: threads with their ticks, and a reply: free while the window is open, else by a template."""

import re
from dataclasses import replace
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote, urlencode
from uuid import uuid4

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import JsonValue, ValidationError
from sendwhy.access import Role
from sendwhy.events import MessageId, Origin, OriginKind, SendRequested, To, generated_contact_id
from sendwhy.problems import Problem
from sendwhy.reasons import Service
from sendwhy.stage import fields_of

from message_log import api, inbox_api, inbox_queries, login, queries, template_forms
from message_log.inbox_queries import Whom, Window
from message_log.language import decimal
from message_log.language import gettext as _
from message_log.language import told as translated
from message_log.login import Reader
from message_log.pages import Action, Pages, redirect, wants_part
from message_log.template_forms import TemplateForm

THREADS_SHOWN = 30
ENTRIES_SHOWN = 40
TEXT_LENGTH_MAX = 4096
MAKE_CONTACT = Action("make contact", Service.CONSENT, Role.OPERATOR, "PUT")
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Sent = Annotated[MessageId | None, Query()]
Template = Annotated[str | None, Query(max_length=600)]


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/inbox")
    async def list_page(request: Request, reader: Reader = reader_dependency, cursor: api.Cursor = None) -> Response:
        viewer = pages.viewer(request, reader)
        threads = await inbox_api.load_threads(
            pages.runtime, reader.workspace, viewer, cursor=cursor, limit=THREADS_SHOWN
        )
        block = "threads" if wants_part(request) else None
        return pages.render(
            "inbox.html", block=block, reader=reader, section="inbox", threads=threads, cursor=cursor, place=_path
        )

    @router.get("/w/{w}/inbox.csv")
    async def export(request: Request, reader: Reader = reader_dependency) -> StreamingResponse:
        return inbox_api.csv_of_threads(pages.runtime, reader.caller, pages.viewer(request, reader))

    @router.get("/w/{w}/inbox/with/{contact:path}")
    async def thread_page(
        request: Request,
        contact: str,
        reader: Reader = reader_dependency,
        cursor: api.Cursor = None,
        template: Template = None,
        sent: Sent = None,
    ) -> Response:
        shown = _Shown(pages, request, reader, f"with/{quote(contact, safe='')}")
        async with pages.runtime.within(reader.workspace) as connection:
            whom = await inbox_api.known_contact(connection, reader.workspace, contact)
        return await shown.page(whom, cursor=cursor, template=template, sent=sent)

    @router.post("/w/{w}/inbox/with/{contact:path}")
    async def reply(request: Request, contact: str, reader: Reader = reader_dependency) -> Response:
        shown = _Shown(pages, request, reader, f"with/{quote(contact, safe='')}")
        async with pages.runtime.within(reader.workspace) as connection:
            whom = await inbox_api.known_contact(connection, reader.workspace, contact)
        return await shown.reply(whom)

    @router.get("/w/{w}/inbox/from/{event_id}")
    async def stranger_page(
        request: Request,
        event_id: str,
        reader: Reader = reader_dependency,
        cursor: api.Cursor = None,
        template: Template = None,
        sent: Sent = None,
    ) -> Response:
        shown = _Shown(pages, request, reader, f"from/{quote(event_id, safe='')}")
        async with pages.runtime.within(reader.workspace) as connection:
            whom = await inbox_api.known_stranger(connection, reader.workspace, event_id)
        return await shown.page(whom, cursor=cursor, template=template, sent=sent)

    @router.post("/w/{w}/inbox/from/{event_id}")
    async def reply_to_stranger(request: Request, event_id: str, reader: Reader = reader_dependency) -> Response:
        shown = _Shown(pages, request, reader, f"from/{quote(event_id, safe='')}")
        async with pages.runtime.within(reader.workspace) as connection:
            whom = await inbox_api.known_stranger(connection, reader.workspace, event_id)
        return await shown.reply(whom)


def _path(url: str) -> str:
    """A page's own address without the host under which others reach it."""
    return url[url.index("/w/") :]


class _Shown:
    """One thread, at its address, for one reader."""

    def __init__(self, pages: Pages, request: Request, reader: Reader, place: str) -> None:
        self.pages, self.request, self.reader = pages, request, reader
        self.path = f"/w/{quote(reader.workspace, safe='')}/inbox/{place}"

    async def page(
        self,
        whom: Whom,
        *,
        cursor: str | None = None,
        template: str | None = None,
        sent: str | None = None,
        given: dict[str, str] | None = None,
        problem: str | None = None,
    ) -> Response:
        workspace, viewer = self.reader.workspace, self.pages.viewer(self.request, self.reader)
        async with self.pages.runtime.within(workspace, snapshot=True) as connection:
            thread = await inbox_api.load_thread(
                connection, workspace, whom, viewer, cursor=cursor, limit=ENTRIES_SHOWN
            )
            sender = thread.window.sender_id if thread.window else None
            templates = await inbox_queries.templates_of(connection, workspace, sender)
        forms = [template_forms.form_of(each) for each in templates]
        block = "entries" if wants_part(self.request) else None
        return self.pages.render(
            "thread.html",
            status=200 if problem is None else 422,
            block=block,
            reader=self.reader,
            section="inbox",
            thread=thread,
            path=self.path,
            cursor=cursor,
            forms=forms,
            chosen=_chosen(forms, template),
            template_text=template_forms.text_of,
            sent=sent if sent and not any(_is(entry, sent) for entry in thread.items) else None,
            key=str(uuid4()),
            given=given or {},
            problem=problem,
            text_length_max=TEXT_LENGTH_MAX,
        )

    async def reply(self, whom: Whom) -> Response:
        """Publish what the form says as POST …/messages would, from the number to which the person wrote."""
        login.refuse_foreign_form(self.request)
        if not self.reader.may(Role.OPERATOR):
            raise Problem(403, "This needs the role operator.")
        form = await login.form_of(self.request)
        async with self.pages.runtime.within(self.reader.workspace) as connection:
            window = await inbox_queries.window_of(connection, self.reader.workspace, whom)
            sender = window.sender_id if window else None
            templates = await inbox_queries.templates_of(connection, self.reader.workspace, sender)
        forms = [template_forms.form_of(each) for each in templates]
        content, problem = content_of(form, forms, window, datetime.now(UTC))
        if content is None:
            return await self.page(whom, template=form.get("template"), given=form, problem=problem)
        if whom.contact_id is None and whom.number is None:
            whom, problem = await self._made_contact(whom)
            if problem is not None:
                return await self.page(whom, template=form.get("template"), given=form, problem=problem)
        try:
            wanted = self._request(whom, content, sender, form.get("key", ""))
        except ValidationError as error:
            return await self.page(whom, given=form, problem="; ".join(fields_of(error)))
        async with self.pages.runtime.within(self.reader.workspace) as connection:
            await api.hand_over(connection, wanted)
        self.pages.runtime.publish_soon()
        await self.pages.note(self.reader, "reply", whom.contact_id or "a person without contact", wanted.message_id)
        return redirect(f"{self.path}?{urlencode({'sent': wanted.message_id})}#newest", self.request)

    async def _made_contact(self, whom: Whom) -> tuple[Whom, str | None]:
        """Somebody of whom only a WhatsApp user id is known, as consent's contact, under the name that consent itself
        would give them: a request names a contact or a number. Or why consent can't make one."""
        [user_id] = whom.phones
        contact_id = generated_contact_id(self.reader.workspace, user_id)
        known = replace(whom, contact_id=contact_id)
        try:
            # Consent may have them since a moment, and a PUT would empty what it knows.
            if (await self.pages.ask(self.reader, Service.CONSENT, "contacts", contact_id)).is_good:
                return known, None
            made = await self.pages.act(
                self.request, self.reader, MAKE_CONTACT, "contacts", contact_id, body={"user_id": user_id}
            )
        except Problem as problem:
            return whom, translated(str(problem.detail))
        return (known, None) if made.is_good else (whom, made.refusal)

    def _request(self, whom: Whom, content: dict[str, JsonValue], sender: str | None, key: str) -> SendRequested:
        # The form's own key: pressed twice, it is one message.
        name = queries.as_uuid(key) or uuid4()
        phone = f"+{whom.number}" if whom.contact_id is None and whom.number else None
        return SendRequested(
            message_id=f"inbox-{name}",
            workspace_id=self.reader.workspace,
            sender_id=sender,
            to=To(contact_id=whom.contact_id, phone=phone),
            origin=Origin(kind=OriginKind.INBOX, thread_id=whom.contact_id, agent=self.reader.token.name),
            content=content,
            requested_at=datetime.now(UTC),
        )


def content_of(
    form: dict[str, str], forms: list[TemplateForm], window: Window | None, now: datetime
) -> tuple[dict[str, JsonValue] | None, str | None]:
    """The content that a form asks for; or None, and why there is none."""
    if form.get("template"):
        return _template_content(form, forms)
    text = _UNSEEN.sub("", form.get("text", "").replace("\r\n", "\n")).strip()
    if not text:
        return None, _("Write something first.")
    if len(text) > TEXT_LENGTH_MAX:
        return None, _(
            "WhatsApp takes at most %(most)s characters; this has %(count)s.",
            most=decimal(TEXT_LENGTH_MAX),
            count=decimal(len(text)),
        )
    if window is None or not window.is_open(now):
        return None, _("The window is closed, so WhatsApp takes no free text. Choose a template.")
    return {"type": "text", "text": {"body": text}}, None


def _template_content(
    form: dict[str, str], forms: list[TemplateForm]
) -> tuple[dict[str, JsonValue] | None, str | None]:
    chosen = _chosen(forms, form["template"])
    if chosen is None:
        return None, _("This template isn’t known here any more. Choose another.")
    if chosen.unfit is not None:
        return None, _("The template can’t be sent from here: %(why)s.", why=chosen.unfit)
    if missing := chosen.missing(form):
        return None, _("Fill in %(fields)s.", fields=", ".join(missing))
    return chosen.content(form), None


def _chosen(forms: list[TemplateForm], key: str | None) -> TemplateForm | None:
    return next((form for form in forms if form.key == key), None)


def _is(entry: Any, message_id: str) -> bool:
    return entry.message is not None and entry.message.message_id == message_id
