"""The webhook log."""

from fastapi import APIRouter, Response

from message_log import api, queries
from message_log.login import Reader
from message_log.pages import PAGE_ROWS, Pages
from message_log.queries import Page
from message_log.view import WebhookItem, webhook_fields


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/webhooks")
    async def list_page(reader: Reader = reader_dependency, cursor: api.Cursor = None) -> Response:
        async with pages.connect() as connection:
            page: Page = await queries.list_webhooks(
                connection, reader.workspace, everything=reader.sees_everything, cursor=cursor, limit=PAGE_ROWS
            )
        items = [WebhookItem(**webhook_fields(row), kinds=row["kinds"]) for row in page.rows]
        return pages.render(
            "webhooks.html", reader=reader, section="webhooks", items=items, cursor=cursor, next_cursor=page.next_cursor
        )

    @router.get("/w/{w}/webhooks/{webhook_id}")
    async def webhook_page(webhook_id: str, reader: Reader = reader_dependency) -> Response:
        webhook = await api.load_webhook(pages.runtime, reader.workspace, webhook_id, everything=reader.sees_everything)
        return pages.render("webhook.html", reader=reader, section="webhooks", webhook=webhook)
