"""Dead letters: what nobody could read, under /v1 and for the pages; repaired, it goes back to its topic."""

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from asyncpg import Record
from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sendwhy import http
from sendwhy.access import Role
from sendwhy.events import Moment
from sendwhy.http import Admin, Body, Caller, IdempotencyKey
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text

from message_log import accounts, repair
from message_log.api import CSV_PAGE, Cursor, Limit, csv_response, scope_of, sees_everything
from message_log.language import gettext as _
from message_log.queries import Page, Text, as_uuid, from_cursor, page_of

ACTION = "resubmit dead letter"
_COLUMNS = ("dead_letter_id", "at", "topic", "service", "error", "message_id", "size", "resubmitted_at")


class DeadLetterView(BaseModel):
    """A record that a service put aside. `topic`: where it came from; `service`: who could not read it; `size` in
    bytes, null where they are past retention. `resubmitted_at`, `resubmitted_by`: when it was last put back."""

    dead_letter_id: UUID
    at: Moment
    workspace_id: str | None
    message_id: str | None
    service: str
    topic: str
    error: str
    size: int | None
    resubmitted_at: Moment | None
    resubmitted_by: str | None


class DeadLetterDetail(DeadLetterView):
    """`body` for operators of the workspace that it names; of all others only for admins of all workspaces. It is null
    where it is no text or past retention. `fixed`: why it can't be put back; null where it can."""

    body: str | None
    body_hidden: bool
    is_text: bool
    fixed: str | None


class DeadLetterList(BaseModel):
    items: list[DeadLetterView]
    next_cursor: str | None


class Resubmission(Body):
    """`body`: the repaired record, as JSON text."""

    body: str


class Resubmitted(BaseModel):
    topic: str
    event_id: UUID


_FOUND = """
select e.event_id, e.occurred_at, e.workspace_id, e.message_id, e.service, e.note, octet_length(e.body) as size,
       {body} as body, a.at as resubmitted_at, a.who as resubmitted_by
from event e
left join lateral (select at, who from audit where action = '{action}' and target = e.event_id::text
                   and result = 'done' order by audit_id desc limit 1) a on true
where e.kind = 'dead_letter' and (e.workspace_id = $1 or $2 and e.workspace_id is null)
"""
_LIST = (
    _FOUND.format(body="null::bytea", action=ACTION)
    + """
  and ($3::timestamptz is null or (e.occurred_at, e.event_id) < ($3, $4::uuid))
  and ($6::text is null or e.note like $6 || ': %') and ($7::text is null or e.message_id = $7)
order by e.occurred_at desc, e.event_id desc limit $5
"""
)
_READ = _FOUND.format(body="e.body", action=ACTION) + " and e.event_id = $3"


async def list_dead_letters(
    connection: Connection,
    caller: Caller,
    *,
    topic: str | None = None,
    message_id: str | None = None,
    cursor: str | None = None,
    limit: int = 50,
) -> Page:
    at, key = (None, None) if cursor is None else from_cursor(cursor)
    rows = await connection.fetch(
        _LIST,
        caller.workspace,
        sees_everything(caller),
        at,
        as_uuid(key) if key else None,
        limit + 1,
        topic,
        message_id,
    )
    return page_of(rows, limit, "occurred_at", "event_id")


def _fields(row: Record) -> dict[str, Any]:
    topic, _, error = (row["note"] or "").partition(": ")
    return {
        "dead_letter_id": row["event_id"],
        "at": row["occurred_at"],
        "workspace_id": row["workspace_id"],
        "message_id": row["message_id"],
        "service": row["service"],
        "topic": topic,
        "error": error,
        "size": row["size"],
        "resubmitted_at": row["resubmitted_at"],
        "resubmitted_by": row["resubmitted_by"],
    }


def view(row: Record) -> DeadLetterView:
    return DeadLetterView(**_fields(row))


async def load(runtime: Runtime, caller: Caller, dead_letter_id: str) -> DeadLetterDetail:
    """One that the caller may see, or 404."""
    key = as_uuid(dead_letter_id)
    async with runtime.within(scope_of(caller)) as connection:
        row = key and await connection.fetchrow(_READ, caller.workspace, sees_everything(caller), key)
    if not row:
        raise not_found("The dead letter")
    fields = _fields(row)
    may_see = sees_everything(caller) or (row["workspace_id"] is not None and caller.token.role >= Role.OPERATOR)
    text = _text(row["body"])
    return DeadLetterDetail(
        **fields,
        body=text if may_see else None,
        body_hidden=not may_see,
        is_text=text is not None,
        fixed=repair.why_not(fields["topic"]),
    )


def _text(body: bytes | None) -> str | None:
    try:
        return None if body is None else body.decode()
    except UnicodeDecodeError:
        return None


@dataclass(frozen=True, slots=True)
class DeadLetters:
    """Puts repaired records back."""

    runtime: Runtime

    async def resubmit(
        self, connection: Connection, caller: Caller, letter: DeadLetterDetail, text: str
    ) -> Resubmitted | Mapping[str, str]:
        """Publish the repaired text to the letter's topic, with the caller's transaction, and note who did it; what is
        wrong with it by field otherwise. Raises Problem where this can't or may not be done."""
        if letter.fixed is not None:
            raise Problem(409, letter.fixed)
        if repair.is_for_admins_of_all(letter.topic) and not sees_everything(caller):
            raise Problem(
                403, _("Only an admin of all workspaces may put something back on %(topic)s.", topic=letter.topic)
            )
        own = None if sees_everything(caller) else caller.workspace
        made = repair.repaired(letter.topic, letter.dead_letter_id, text, own)
        if not isinstance(made, repair.Repaired):
            return made
        await add_to_outbox(connection, [(made.event_id, made.record)])
        await accounts.note(connection, caller.workspace, caller.token.name, ACTION, str(letter.dead_letter_id), "done")
        return Resubmitted(topic=letter.topic, event_id=made.event_id)


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["dead letters"])
    letters = DeadLetters(runtime)
    Topic = Annotated[Text | None, Query()]

    @router.get("/dead-letters")
    async def list_all(
        caller: http.Viewer, topic: Topic = None, message_id: Topic = None, cursor: Cursor = None, limit: Limit = 50
    ) -> DeadLetterList:
        """What services put aside, newest first. What names no workspace: only for admins of all workspaces."""
        async with runtime.within(scope_of(caller)) as connection:
            page = await list_dead_letters(
                connection, caller, topic=topic, message_id=message_id, cursor=cursor, limit=limit
            )
        return DeadLetterList(items=[view(row) for row in page.rows], next_cursor=page.next_cursor)

    @router.get("/dead-letters.csv", response_class=StreamingResponse)
    async def export(caller: http.Viewer, topic: Topic = None) -> StreamingResponse:
        return csv_answer(runtime, caller, topic)

    @router.get("/dead-letters/{dead_letter_id}")
    async def read(caller: http.Viewer, dead_letter_id: str) -> DeadLetterDetail:
        return await load(runtime, caller, dead_letter_id)

    @router.post("/dead-letters/{dead_letter_id}/resubmit", status_code=202, response_model=Resubmitted)
    async def resubmit(
        request: Request, body: Resubmission, caller: Admin, dead_letter_id: str, key: IdempotencyKey = None
    ) -> Response:
        """Publish a repaired record to the topic that it came from. The same text again changes nothing more."""
        letter = await load(runtime, caller, dead_letter_id)

        async def act() -> tuple[int, bytes]:
            done = await letters.resubmit(connection, caller, letter, body.body)
            if not isinstance(done, Resubmitted):
                raise Problem(422, "The repaired record still has fields that are missing or wrong.", errors=done)
            return 202, done.model_dump_json().encode()

        async with runtime.within(scope_of(caller)) as connection:
            answer = await http.once(connection, request, caller, key, act)
        runtime.publish_soon()
        return answer

    return router


def csv_answer(runtime: Runtime, caller: Caller, topic: str | None) -> StreamingResponse:
    return csv_response("dead-letters", caller, _lines(runtime, caller, topic))


async def _lines(runtime: Runtime, caller: Caller, topic: str | None) -> AsyncIterator[str]:
    yield csv_text([_COLUMNS])
    cursor: str | None = None
    while True:
        async with runtime.within(scope_of(caller)) as connection:
            page = await list_dead_letters(connection, caller, topic=topic, cursor=cursor, limit=CSV_PAGE)
        if page.rows:
            views = [view(row).model_dump(mode="json") for row in page.rows]
            yield csv_text([[one[name] for name in _COLUMNS] for one in views])
        if (cursor := page.next_cursor) is None:
            return
