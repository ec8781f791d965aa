"""A workspace's own STOP and START words and buttons over HTTP."""

from datetime import UTC, datetime
from typing import Annotated

import structlog
from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sendwhy.events import Line, Moment
from sendwhy.http import Body, Caller, Cursor, IdempotencyKey, Operator, Viewer, cursor_of, once, position_of
from sendwhy.postgres import Connection
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from consent import keyword_store, store
from consent.keywords import LISTS, Kept, Keywords, faults_in

WORDS_MAX = 100
PAGE_MAX = 100

log = structlog.get_logger("sendwhy")

Word = Annotated[Line, Field(min_length=1, max_length=64)]
# Meta's longest payload is 256 characters.
Button = Annotated[Line, Field(min_length=1, max_length=256)]


class KeywordsBody(Body):
    """All of a workspace's own words: what is left out is emptied. They are compared as the built-in ones are, without
    case, accents, punctuation and emoji. `stop` and `start` are whole messages; the buttons are labels or payloads of
    quick replies; `ignore` takes words out of the built-in table."""

    stop: list[Word] = Field(default_factory=list, max_length=WORDS_MAX)
    start: list[Word] = Field(default_factory=list, max_length=WORDS_MAX)
    stop_buttons: list[Button] = Field(default_factory=list, max_length=WORDS_MAX)
    start_buttons: list[Button] = Field(default_factory=list, max_length=WORDS_MAX)
    ignore: list[Word] = Field(default_factory=list, max_length=WORDS_MAX)

    @property
    def keywords(self) -> Keywords:
        return Keywords(**{name: tuple(dict.fromkeys(getattr(self, name))) for name in LISTS})


class KeywordsView(BaseModel):
    """`version` grows with every change; 0: nobody has set any."""

    stop: list[str]
    start: list[str]
    stop_buttons: list[str]
    start_buttons: list[str]
    ignore: list[str]
    version: int
    changed_by: str | None
    changed_at: Moment | None


class KeywordsPage(BaseModel):
    items: list[KeywordsView]
    next_cursor: str | None


def keyword_routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}/keywords")

    @router.put("", response_model=KeywordsView)
    async def put_keywords(
        caller: Operator, body: KeywordsBody, request: Request, key: IdempotencyKey = None
    ) -> Response:
        if faults := faults_in(body.keywords):
            raise Problem(422, "Some keywords can't be what they are said to be.", errors=faults)

        async def act(connection: Connection) -> tuple[int, bytes]:
            kept = await _replace(connection, caller, body.keywords)
            return 200, _view(kept).model_dump_json().encode()

        async with runtime.pool.acquire(timeout=30) as connection, connection.transaction():
            return await once(connection, request, caller, key, lambda: act(connection))

    @router.get("", response_model=KeywordsView)
    async def get_keywords(caller: Viewer) -> KeywordsView:
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            return _view(await keyword_store.keywords_of(connection, caller.workspace))

    @router.get("/history", response_model=KeywordsPage)
    async def get_keywords_history(
        caller: Viewer, cursor: Cursor = None, limit: Annotated[int, Query(ge=1, le=PAGE_MAX)] = 20
    ) -> KeywordsPage:
        before = _version_in(cursor) if cursor else 2**63 - 1
        async with runtime.within(caller.workspace, wait_seconds=30) as connection:
            found = await keyword_store.changes_of(connection, caller.workspace, before, limit)
        next_cursor = cursor_of(str(found[-1].version)) if len(found) == limit else None
        return KeywordsPage(items=[_view(one) for one in found], next_cursor=next_cursor)

    return router


async def _replace(connection: Connection, caller: Caller, keywords: Keywords) -> Kept:
    """Keep these from now on; where they hold already, nothing changes."""
    await store.lock_workspaces(connection, [caller.workspace])
    held = await keyword_store.keywords_of(connection, caller.workspace)
    if held.keywords == keywords:
        return held
    kept = Kept(keywords, held.version + 1, caller.token.name, datetime.now(UTC))
    await keyword_store.add_keywords(connection, caller.workspace, kept)
    log.info("keywords were changed", workspace=caller.workspace, by=caller.token.name, version=kept.version)
    return kept


def _view(kept: Kept) -> KeywordsView:
    return KeywordsView(
        **{name: list(kept.keywords.named(name)) for name in LISTS},
        version=kept.version,
        changed_by=kept.changed_by,
        changed_at=kept.changed_at,
    )


def _version_in(cursor: str) -> int:
    position = position_of(cursor)
    if not position.isascii() or not position.isdigit() or len(position) > 18:
        raise Problem(422, "The cursor is not one of ours.", errors={"cursor": "is not one of ours"})
    return int(position)
