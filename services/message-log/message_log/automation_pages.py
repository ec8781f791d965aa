"""Automations: the list, and one of them node by node and person by person."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sendwhy.events import OriginKind
from sendwhy.problems import not_found

from message_log import api, campaign_api
from message_log import campaign_queries as stored
from message_log.campaign_api import Part
from message_log.campaign_story import rates_of
from message_log.login import Reader
from message_log.pages import Pages

KIND = OriginKind.AUTOMATION
PEOPLE_ROWS = 25
LIST_ROWS = 50


def install(router: APIRouter, pages: Pages) -> None:
    reader_dependency = pages.reader()

    @router.get("/w/{w}/automations")
    async def list_page(reader: Reader = reader_dependency, q: Part = None, cursor: api.Cursor = None) -> Response:
        async with pages.runtime.within(reader.workspace, snapshot=True) as connection:
            page = await stored.list_groups(
                connection, reader.workspace, KIND, cursor=cursor, limit=LIST_ROWS, q=q or None
            )
        return pages.render(
            "automations.html",
            reader=reader,
            section="automations",
            groups=[(group, rates_of(group.by_status)) for group in page.groups],
            q=q or "",
            cursor=cursor,
            next_cursor=page.next_cursor,
        )

    @router.get("/w/{w}/automations.csv")
    async def export(reader: Reader = reader_dependency, q: Part = None) -> StreamingResponse:
        return campaign_api.csv_of_groups(pages.runtime, reader.caller, KIND, q or None)

    @router.get("/w/{w}/automations/{automation:path}")
    async def automation_page(
        request: Request, automation: str, reader: Reader = reader_dependency, cursor: api.Cursor = None
    ) -> Response:
        workspace, viewer = reader.workspace, pages.viewer(request, reader)
        async with pages.runtime.within(workspace, snapshot=True) as connection:
            group = await stored.read_group(connection, workspace, KIND, automation)
            if group is None:
                raise not_found("The automation")
            nodes = await stored.nodes_of(connection, workspace, automation)
            failures = await stored.failures_of(connection, workspace, KIND, automation)
            people, more = await stored.people_of(connection, workspace, automation, cursor=cursor, limit=PEOPLE_ROWS)
        return pages.render(
            "automation.html",
            reader=reader,
            section="automations",
            group=group,
            nodes=campaign_api.node_counts(nodes),
            failures=[campaign_api.failure_view(row) for row in failures],
            people=[[viewer.message(row) for row in one.rows] for one in people],
            cursor=cursor,
            next_cursor=more,
        )
