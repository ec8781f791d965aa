"""The list of messages with its filters, and one message."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Depends, Header, Query, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BeforeValidator
from pydantic_core import to_json
from sendwhy.postgres import Connection
from sendwhy.reasons import Service

from message_log import api, bundle, cells, charges, counts, live, queries, story, volume, words
from message_log.charges import Charge
from message_log.fixes import fixes_of
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Pages, redirect, wants_part
from message_log.queries import Filters
from message_log.view import MessageDetail, Viewer

DEFAULT_RANGE = "7d"
# A reader whose session or role ends meanwhile is told nothing more after this; the browser asks again by itself.
STREAM_SECONDS = 300.0
# A form that keeps the time chosen by from and to sends an empty one.
Range = Annotated[
    Literal["15m", "1h", "24h", "7d", "30d", "all"] | None, BeforeValidator(lambda given: given or None), Query()
]


# What the time was before: the form sends it along where from and to are set.
Was = Annotated[Literal["chosen"] | None, Query()]


class Address:
    """A list's address: its filters and its range, and the addresses one step away."""

    def __init__(self, workspace: str, filters: Filters, range_name: str | None) -> None:
        self.path = f"/w/{quote(workspace, safe='')}/messages"
        self.filters, self.range = filters, range_name

    def _query(self, filters: Filters, **more: str | None) -> str:
        given = filters.model_dump(mode="json", by_alias=True, exclude_none=True)
        pairs = {**given, "range": self.range, **more}
        return urlencode({name: value for name, value in pairs.items() if value is not None})

    def _to(self, path: str, query: str) -> str:
        return f"{path}?{query}" if query else path

    def with_(self, **change: Any) -> str:
        """The same list with filters set (or, by None, taken away)."""
        given = self.filters.model_dump(mode="json", exclude_none=True) | change
        return self._to(self.path, self._query(Filters.model_validate_json(to_json(given))))

    def page(self, cursor: str) -> str:
        return self._to(self.path, self._query(self.filters, cursor=cursor))

    def csv(self) -> str:
        return self._to(f"{self.path}.csv", self._query(self.filters))

    def again(self) -> str:
        """Where its failed messages are sent again."""
        return self._to(f"{self.path.removesuffix('/messages')}/send-again", self._query(self.filters))

    def live(self) -> str:
        """Where it is told what comes to this list; without a range, since what comes is new."""
        given = self.filters.model_dump(mode="json", by_alias=True, exclude_none=True)
        return self._to(f"{self.path}.live", urlencode(given))

    def between(self, since: datetime, until: datetime) -> str:
        """The same list of a span of time only."""
        given = self.filters.model_copy(update={"since": since, "until": until})
        return self._to(self.path, self._query(given, range=None))

    @property
    def plain(self) -> str:
        return self.path


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/messages")
    async def list_page(
        request: Request,
        filters: api.FilterQuery,
        reader: Reader = reader_dependency,
        range: Range = None,
        was: Was = None,
        cursor: api.Cursor = None,
    ) -> Response:
        filters, range_name = _one_time(filters, range, was)
        async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
            values = await _list_values(connection, reader, filters, range_name, cursor)
            values |= await _choices(connection, reader.workspace) if not wants_part(request) else {}
        if filters.q and len(values["page"].rows) == 1 and cursor is None:
            return redirect(_message_path(reader, values["page"].rows[0]["message_id"]), request)
        viewer = pages.viewer(request, reader)
        messages = [viewer.message(row) for row in values["page"].rows]
        values |= {"fixes": {message.message_id: fixes_of(message) for message in messages}}
        block = "results" if wants_part(request) else None
        return pages.render(
            "messages.html", block=block, reader=reader, section="messages", messages=messages, **values
        )

    @router.get("/w/{w}/messages.csv")
    async def export(
        request: Request,
        filters: api.FilterQuery,
        reader: Reader = reader_dependency,
        range: Range = None,
    ) -> StreamingResponse:
        wanted = filters.model_copy(update={"since": filters.since or queries.since_of(range)})
        return api.csv_answer(pages.runtime, reader.caller, wanted, pages.viewer(request, reader))

    @router.get("/w/{w}/messages.live", response_class=EventSourceResponse)
    async def live_tail(
        request: Request,
        filters: api.FilterQuery,
        _slot: Annotated[None, Depends(pages.streams.slot)],
        reader: Reader = reader_dependency,
        after: Annotated[str | None, Query(max_length=200)] = None,
        last_event_id: Annotated[str | None, Header(alias="Last-Event-ID", max_length=200)] = None,
    ) -> AsyncIterator[ServerSentEvent]:
        """Which messages of a list came or changed: enough to say so; the list itself is read again."""
        position = live.read_position(last_event_id) or live.read_position(after)
        changes = pages.streams.changes(
            pages.runtime, request.app, reader.workspace, position, filters, seconds=STREAM_SECONDS
        )
        async for row in changes:
            told = {"id": row["message_id"], "at": row["at"], "updated": row["updated_at"], "status": row["status"]}
            yield ServerSentEvent(data=told, id=live.position_of(row))

    @router.get("/w/{w}/messages/{message_id}")
    async def message_page(request: Request, message_id: str, reader: Reader = reader_dependency) -> Response:
        viewer = pages.viewer(request, reader)
        message = await api.load_message(pages.runtime, reader.workspace, message_id, viewer)
        async with pages.runtime.within(reader.workspace) as connection:
            position = await queries.position_now(connection)
        return pages.render(
            "message.html",
            reader=reader,
            section="messages",
            message=message,
            steps=steps_of(message),
            waits=story.waits_of(message),
            tries=story.tries_of(message),
            content=story.content_of(message),
            charge=await _charge(pages, reader, message_id, viewer),
            fixes=fixes_of(message),
            position=live.text_of(position),
        )

    @router.get("/w/{w}/messages/{message_id}/bundle")
    async def download(request: Request, message_id: str, reader: Reader = reader_dependency) -> Response:
        viewer = pages.viewer(request, reader)
        await api.load_message(pages.runtime, reader.workspace, message_id, viewer)
        charge = await _charge(pages, reader, message_id, viewer)
        made = await bundle.make(pages.runtime, reader.caller, message_id, viewer, charge)
        return bundle.answer_of(made)


def _one_time(filters: Filters, range_name: str | None, was: str | None) -> tuple[Filters, str | None]:
    """From and to, or a range: of both, the one that was set last."""
    if range_name is None or not (filters.since or filters.until):
        return filters, range_name
    if was is None:
        return filters, None
    return filters.model_copy(update={"since": None, "until": None}), range_name


async def _charge(pages: Pages, reader: Reader, message_id: str, viewer: Viewer) -> Charge:
    asked = pages.ask(reader, Service.BILLING, "messages", message_id, "charge")
    return await charges.charge_of(asked, sees_phones=viewer.sees_phones)


def _message_path(reader: Reader, message_id: str) -> str:
    return f"/w/{quote(reader.workspace, safe='')}/messages/{quote(message_id, safe='')}"


async def _list_values(
    connection: Connection, reader: Reader, filters: Filters, range_name: str | None, cursor: str | None
) -> dict[str, Any]:
    shown_range = range_name or ("all" if filters.since or filters.until else DEFAULT_RANGE)
    timed = filters.model_copy(update={"since": filters.since or queries.since_of(shown_range)})
    workspace = reader.workspace
    timed = await queries.meant(connection, workspace, timed)
    page = await queries.list_messages(connection, workspace, timed, cursor=cursor, limit=PAGE_ROWS)
    measured = await volume.measure(connection, workspace, timed.model_copy(update={"status": None}), datetime.now(UTC))
    is_first = cursor is None and filters.until is None
    all_reasons = timed.model_copy(update={"status": None, "reason": None})
    return {
        "page": page,
        "filters": filters,
        "range": shown_range,
        "in_time": words.CHOSEN_TIME if filters.since or filters.until else words.RANGE_WORDS[shown_range],
        "cursor": cursor,
        "address": Address(workspace, filters, range_name),
        # Of a name that many have, not all contacts were looked at.
        "names_looked_at": queries.NAMED_MAX if len(timed.named or ()) == queries.NAMED_MAX else None,
        "by_status": measured.by_status,
        **counts.values_of(measured),
        "position": live.text_of(await queries.position_now(connection)) if is_first else None,
        "by_reason": await cells.by_reason(connection, workspace, all_reasons),
        "chips": [(name, value) for name, value in filters.active.items() if value],
        "ways_out": await _ways_out(connection, workspace, filters, timed) if not page.rows else [],
        "any_at_all": bool(page.rows) or await queries.has_messages(connection, workspace),
    }


async def _choices(connection: Connection, workspace: str) -> dict[str, Any]:
    """What the filters offer."""
    return {
        "countries": await counts.countries_seen(connection, workspace),
        "senders": await queries.senders_of(connection, workspace),
        "templates": await queries.templates_of(connection, workspace),
    }


async def _ways_out(connection: Connection, workspace: str, filters: Filters, timed: Filters) -> list[tuple[str, int]]:
    """For an empty list: each filter, and how many messages would show without it."""
    found = []
    for name in filters.active:
        found.append((name, await cells.total(connection, workspace, timed.model_copy(update={name: None}))))
    return found


def steps_of(message: MessageDetail) -> list[dict[str, Any]]:
    """The timeline: each event with its offset from the first and the gap to the one before, in seconds."""
    steps: list[dict[str, Any]] = []
    requests = 0
    for event in message.events:
        data = event.model_dump(mode="json", exclude_none=True)
        requests += event.kind == "requested"
        before = message.events[len(steps) - 1].at if steps else event.at
        steps.append(
            {
                "event": event,
                "data": data,
                "offset": (event.at - message.events[0].at).total_seconds(),
                "gap": (event.at - before).total_seconds(),
                "repeated": event.kind == "requested" and requests > 1,
            }
        )
    return steps
