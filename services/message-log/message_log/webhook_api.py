"""The webhook log under /v1."""

from collections.abc import AsyncIterator
from typing import Annotated

import asyncpg
from fastapi import APIRouter, Depends, Query
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sendwhy import http
from sendwhy.http import Caller
from sendwhy.problems import not_found
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text

from message_log import queries, webhook_queries
from message_log.api import CSV_PAGE, Cursor, Limit, csv_response, scope_of, sees_everything
from message_log.view import WebhookDetail, WebhookItem, webhook_detail, webhook_fields
from message_log.webhook_queries import WebhookFilters

_COLUMNS = ("webhook_id", "received_at", "source", "app", "answer", "signature", "refused", "size", "kinds")


class WebhookList(BaseModel):
    items: list[WebhookItem]
    next_cursor: str | None


def filters_of_query(filters: Annotated[WebhookFilters, Query()]) -> WebhookFilters:
    return filters


WebhookQuery = Annotated[WebhookFilters, Depends(filters_of_query)]


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["webhooks"])

    @router.get("/webhooks")
    async def list_webhooks(
        caller: http.Viewer, filters: WebhookQuery, cursor: Cursor = None, limit: Limit = 50
    ) -> WebhookList:
        """Deliveries, newest first. What belongs to no workspace or was refused: only for admins of all workspaces."""
        page = await _page(runtime, caller, filters, cursor, limit)
        return WebhookList(items=[item_of(row) for row in page.rows], next_cursor=page.next_cursor)

    @router.get("/webhooks.csv", response_class=StreamingResponse)
    async def export_webhooks(caller: http.Viewer, filters: WebhookQuery) -> StreamingResponse:
        return csv_answer(runtime, caller, filters)

    @router.get("/webhooks/{webhook_id}")
    async def read_webhook(caller: http.Viewer, webhook_id: str) -> WebhookDetail:
        return await load_webhook(runtime, caller.workspace, webhook_id, everything=sees_everything(caller))

    return router


async def _page(
    runtime: Runtime, caller: Caller, filters: WebhookFilters, cursor: str | None, limit: int
) -> queries.Page:
    everything = sees_everything(caller)
    async with runtime.within(scope_of(caller)) as connection:
        return await webhook_queries.list_webhooks(
            connection, caller.workspace, filters, everything=everything, cursor=cursor, limit=limit
        )


def item_of(row: asyncpg.Record) -> WebhookItem:
    return WebhookItem(**webhook_fields(row), kinds=row["kinds"])


async def load_webhook(runtime: Runtime, workspace: str, webhook_id: str, *, everything: bool) -> WebhookDetail:
    async with runtime.within(None if everything else workspace, snapshot=True) as connection:
        found = await webhook_queries.read_webhook(connection, workspace, webhook_id, everything=everything)
    if found is None:
        raise not_found("The webhook")
    return webhook_detail(*found, with_body=everything)


def csv_answer(runtime: Runtime, caller: Caller, filters: WebhookFilters) -> StreamingResponse:
    return csv_response("webhooks", caller, _lines(runtime, caller, filters))


async def _lines(runtime: Runtime, caller: Caller, filters: WebhookFilters) -> AsyncIterator[str]:
    yield csv_text([_COLUMNS])
    cursor: str | None = None
    while True:
        page = await _page(runtime, caller, filters, cursor, CSV_PAGE)
        if page.rows:
            items = [item_of(row).model_dump(mode="json") for row in page.rows]
            yield csv_text([[item[name] for name in _COLUMNS[:-1]] + [", ".join(item["kinds"])] for item in items])
        if (cursor := page.next_cursor) is None:
            return
