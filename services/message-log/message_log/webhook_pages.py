"""The webhook log, and the replay of what is in it."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.access import Role
from sendwhy.problems import Problem
from sendwhy.reasons import Service

from message_log import api, login, webhook_api, webhook_queries
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Action, Pages, query_of
from message_log.view import read_moment

TRY_REPLAY = Action("try a replay of webhooks", Service.WEBHOOK_INGEST, Role.OPERATOR)
REPLAY = Action("replay webhooks", Service.WEBHOOK_INGEST, Role.OPERATOR)
SPAN_MAX = timedelta(hours=24)
Moment = Annotated[str | None, Query(max_length=40)]


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/webhooks")
    async def list_page(
        filters: webhook_api.WebhookQuery, reader: Reader = reader_dependency, cursor: api.Cursor = None
    ) -> Response:
        async with pages.runtime.within(api.scope_of(reader.caller)) as connection:
            page = await webhook_queries.list_webhooks(
                connection, reader.workspace, filters, everything=reader.sees_everything, cursor=cursor, limit=PAGE_ROWS
            )
        return pages.render(
            "webhooks.html",
            reader=reader,
            section="webhooks",
            items=[webhook_api.item_of(row) for row in page.rows],
            filters=filters,
            query=query_of(filters),
            kept_days=pages.settings.webhook_retention_days,
            cursor=cursor,
            next_cursor=page.next_cursor,
        )

    @router.get("/w/{w}/webhooks.csv")
    async def export(filters: webhook_api.WebhookQuery, reader: Reader = reader_dependency) -> StreamingResponse:
        return webhook_api.csv_answer(pages.runtime, reader.caller, filters)

    @router.get("/w/{w}/webhooks/{webhook_id}")
    async def webhook_page(webhook_id: str, reader: Reader = reader_dependency) -> Response:
        webhook = await webhook_api.load_webhook(
            pages.runtime, reader.workspace, webhook_id, everything=reader.sees_everything
        )
        came = read_moment(webhook.headers.get("received_at"))
        return pages.render(
            "webhook.html",
            reader=reader,
            section="webhooks",
            webhook=webhook,
            took=(webhook.received_at - came).total_seconds() if came and came.tzinfo else None,
            # Kafka's times are whole milliseconds: nothing else of another millisecond is in this span.
            span=(webhook.received_at, webhook.received_at + timedelta(milliseconds=1)),
        )

    _install_replay(router, pages)


def _install_replay(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    async def show(
        reader: Reader,
        span: tuple[datetime, datetime],
        *,
        told: Mapping[str, Any] | None = None,
        problem: str | None = None,
    ) -> Response:
        async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
            counts = await webhook_queries.count_parts(connection, reader.workspace, *span)
        return pages.render(
            "replay.html",
            status=422 if problem else 200,
            reader=reader,
            section="webhooks",
            since=span[0],
            until=span[1],
            counts=counts,
            told=told,
            problem=problem,
        )

    @router.get("/w/{w}/webhook-replay")
    async def replay_page(
        reader: Reader = reader_dependency,
        since: Annotated[Moment, Query(alias="from")] = None,
        until: Annotated[Moment, Query(alias="to")] = None,
    ) -> Response:
        if since is None and until is None:
            now = datetime.now(UTC).replace(microsecond=0)
            return await show(reader, (now - timedelta(hours=1), now))
        return await show(reader, _span(since, until))

    @router.post("/w/{w}/webhook-replay")
    async def replay(request: Request, reader: Reader = reader_dependency) -> Response:
        form = await login.form_of(request)
        span = _span(form.get("from"), form.get("to"))
        is_trial = form.get("dry_run") == "1"
        answer = await pages.act(
            request,
            reader,
            TRY_REPLAY if is_trial else REPLAY,
            "webhooks",
            "replay",
            body={"from": span[0].isoformat(), "to": span[1].isoformat()},
            asked=[("dry_run", "true" if is_trial else "false")],
        )
        if not answer.is_good:
            return await show(reader, span, problem=answer.refusal)
        return await show(reader, span, told=answer.body)


def _span(since: str | None, until: str | None) -> tuple[datetime, datetime]:
    """What people wrote as a span of time, UTC where they named no zone. Raises Problem."""
    moments = [read_moment((one or "").strip()) for one in (since, until)]
    if moments[0] is None or moments[1] is None:
        raise Problem(422, "Write the times like 2026-11-26T14:00:00Z.")
    first, last = (one if one.tzinfo else one.replace(tzinfo=UTC) for one in moments if one)
    if not timedelta(0) < last - first <= SPAN_MAX:
        raise Problem(422, "A span has an end after its beginning, and at most 24 hours.")
    return first, last
