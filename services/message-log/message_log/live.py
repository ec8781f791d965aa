"""The live stream of a workspace's messages: each reader follows the projection by its own position, so that a
reconnect loses nothing and a slow reader holds up nobody.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import AsyncIterator

import asyncpg
from fastapi import FastAPI, Request
from sendwhy.http import is_ending
from sendwhy.problems import Problem
from sendwhy.service import Runtime

from message_log import queries
from message_log.language import gettext as _
from message_log.login import session_in
from message_log.queries import Filters

STREAMS_MAX = 100
# One who forgets to close them keeps nobody else out.
STREAMS_PER_READER_MAX = 20
POLL_SECONDS = 0.5
CHANGES_MAX = 200
ALL = Filters()

Position = tuple[int, str]
_POSITION = re.compile(r"(\d{1,18}):([A-Za-z0-9._:\-]{0,128})")


def position_of(row: asyncpg.Record) -> str:
    return f"{row['changed_by']}:{row['message_id']}"


def text_of(position: Position) -> str:
    """A position as `read_position` reads it; one behind a whole transaction is at the beginning of the next."""
    return f"{position[0] + 1}:"


def read_position(last_event_id: str | None) -> Position | None:
    found = _POSITION.fullmatch(last_event_id or "")
    return (int(found[1]), found[2]) if found else None


def _later(status: int, detail: str) -> Problem:
    return Problem(status, detail, headers={"retry-after": "5"})


class Streams:
    """The open streams of this process, at most STREAMS_MAX, and few enough of each token or session."""

    def __init__(self) -> None:
        self._open: Counter[str] = Counter()

    async def slot(self, request: Request) -> AsyncIterator[None]:
        """A dependency: one place for as long as the stream lasts; 429 who has many, 503 where there is none left."""
        session = session_in(request, secure=True) or session_in(request, secure=False)
        reader = request.headers.get("authorization") or session or ""
        if self._open[reader] >= STREAMS_PER_READER_MAX:
            raise _later(429, _("You already follow %(most)s streams; close one.", most=STREAMS_PER_READER_MAX))
        if self._open.total() >= STREAMS_MAX:
            raise _later(503, _("This process already serves %(most)s streams.", most=STREAMS_MAX))
        self._open[reader] += 1
        try:
            yield
        finally:
            self._open[reader] -= 1
            self._open += Counter()

    async def changes(
        self,
        runtime: Runtime,
        app: FastAPI,
        workspace: str,
        position: Position | None,
        filters: Filters = ALL,
        *,
        seconds: float | None = None,
    ) -> AsyncIterator[asyncpg.Record]:
        """Changed messages, until the service ends (uvicorn waits for open streams before it stops), or for so many
        seconds."""
        end = None if seconds is None else time.monotonic() + seconds
        while not is_ending(app) and (end is None or time.monotonic() < end):
            async with runtime.within(workspace) as connection:
                # Read first: what is visible by now and is not among the rows below fits no filter of this stream.
                settled = await queries.position_now(connection)
                position = position or settled
                rows = await queries.changes_after(connection, workspace, filters, position, CHANGES_MAX)
            for row in rows:
                yield row
            if rows:
                position = (rows[-1]["changed_by"], rows[-1]["message_id"])
            if len(rows) < CHANGES_MAX:
                position = max(position, settled)
                await asyncio.sleep(POLL_SECONDS)
