"""Dead letters: the list, one of them, and putting it back repaired."""

from collections.abc import Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.problems import Problem
from sendwhy.topics import Topic

from message_log import api, dead_letters, login, repair, words
from message_log.dead_letters import DeadLetterDetail, DeadLetters
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Pages, redirect
from message_log.queries import Text
from message_log.view import read_json

TopicQuery = Annotated[Text | None, Query()]


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()
    letters = DeadLetters(pages.runtime)

    @router.get("/w/{w}/dead-letters")
    async def list_page(
        reader: Reader = reader_dependency, topic: TopicQuery = None, cursor: api.Cursor = None
    ) -> Response:
        async with pages.runtime.within(api.scope_of(reader.caller)) as connection:
            page = await dead_letters.list_dead_letters(
                connection, reader.caller, topic=topic or None, cursor=cursor, limit=PAGE_ROWS
            )
        return pages.render(
            "dead_letters.html",
            reader=reader,
            section="webhooks",
            items=[dead_letters.view(row) for row in page.rows],
            topics=[name for name in Topic if name is not Topic.DEAD_LETTERS],
            topic=topic,
            cursor=cursor,
            next_cursor=page.next_cursor,
        )

    @router.get("/w/{w}/dead-letters.csv")
    async def export(reader: Reader = reader_dependency, topic: TopicQuery = None) -> StreamingResponse:
        return dead_letters.csv_answer(pages.runtime, reader.caller, topic or None)

    def show(
        reader: Reader, letter: DeadLetterDetail, text: str | None = None, errors: Mapping[str, str] | None = None
    ) -> Response:
        return pages.render(
            "dead_letter.html",
            status=422 if errors else 200,
            reader=reader,
            section="webhooks",
            letter=letter,
            text=_laid_out(letter.body) if text is None else text,
            errors=errors,
            may_repair=_may_repair(reader, letter),
        )

    @router.get("/w/{w}/dead-letters/{dead_letter_id}")
    async def letter_page(dead_letter_id: str, reader: Reader = reader_dependency) -> Response:
        return show(reader, await dead_letters.load(pages.runtime, reader.caller, dead_letter_id))

    @router.post("/w/{w}/dead-letters/{dead_letter_id}/resubmit")
    async def resubmit(request: Request, dead_letter_id: str, reader: Reader = reader_dependency) -> Response:
        login.refuse_foreign_form(request)
        if not reader.may(Role.ADMIN):
            raise Problem(403, "This needs the role admin.")
        letter = await dead_letters.load(pages.runtime, reader.caller, dead_letter_id)
        text = (await login.form_of(request)).get("body", "")
        async with pages.runtime.within(api.scope_of(reader.caller)) as connection:
            done = await letters.resubmit(connection, reader.caller, letter, text)
        if not isinstance(done, dead_letters.Resubmitted):
            return show(reader, letter, text, done)
        pages.runtime.publish_soon()
        return redirect(f"/w/{reader.workspace}/dead-letters/{letter.dead_letter_id}", request)


def _laid_out(body: str | None) -> str | None:
    """JSON in lines, easier to edit; anything else as it is."""
    value = read_json(body.encode()) if body else None
    return body if value is None else words.pretty_json(value)


def _may_repair(reader: Reader, letter: DeadLetterDetail) -> bool:
    return reader.sees_everything if repair.is_for_admins_of_all(letter.topic) else reader.may(Role.ADMIN)
