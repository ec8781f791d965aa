"""Campaigns and automations under /v1 (contract.md, message-log): what became of all messages of one origin."""

from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import quote

import asyncpg
from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from sendwhy import http
from sendwhy.events import Moment, OriginKind
from sendwhy.http import Caller
from sendwhy.postgres import Connection
from sendwhy.problems import not_found
from sendwhy.reasons import CATALOGUE, ReasonCode
from sendwhy.service import Runtime
from sendwhy.sheets import csv_text

from message_log import api, queries
from message_log import campaign_queries as stored
from message_log.api import Cursor, Limit, ReasonCount, csv_response
from message_log.campaign_queries import Group
from message_log.campaign_story import Bar, Progress, progress_of, rates_of
from message_log.queries import STATUSES, Filters
from message_log.settings import MessageLogSettings
from message_log.view import MessageView

CSV_PAGE = 200

Part = Annotated[str | None, Query(max_length=256, pattern=r"^[^\x00]*$")]


class RatesView(BaseModel):
    """Shares between 0 and 1, null where there is nothing to share: `delivered` and `failed` of what has ended (sent,
    delivered, read, failed), `read` of what was delivered."""

    delivered: float | None
    read: float | None
    failed: float | None


class GroupView(BaseModel):
    """A campaign or an automation in a list. `first_at`, `last_at`: its first and last request."""

    id: str
    name: str | None
    total: int
    by_status: dict[str, int]
    rates: RatesView
    first_at: Moment
    last_at: Moment
    url: str


class GroupList(BaseModel):
    items: list[GroupView]
    next_cursor: str | None


class Failure(ReasonCount):
    """`example`: the latest message with this reason."""

    what_to_do: str
    example: str


class WaitCount(BaseModel):
    """Messages held for a cause, at the latest until `until`; null: some of them until somebody repairs it.
    `scheduled`: nothing holds them, they asked for a later time, the last of them for `until`."""

    cause: str
    count: int
    since: Moment
    until: Moment | None
    scheduled: bool = False


class ProgressView(BaseModel):
    """`done` messages of `total` have left our hands. `per_minute`: the pace of the last five minutes, at which the
    last one leaves at `ends_at`; null where nothing left, or nothing is to go."""

    done: int
    total: int
    per_minute: float | None
    ends_at: Moment | None


class BarView(BaseModel):
    """The messages that left from `since` to before `until`, by what they are now; statuses of none are left out."""

    since: Moment
    until: Moment
    by_status: dict[str, int]


class CampaignView(BaseModel):
    id: str
    total: int
    by_status: dict[str, int]
    by_reason: list[Failure]
    name: str | None
    first_at: Moment
    last_at: Moment
    rates: RatesView
    progress: ProgressView
    waiting: list[WaitCount]
    bar_seconds: int
    bars: list[BarView]
    url: str


class NodeCounts(BaseModel):
    node_id: str | None
    by_status: dict[str, int]


class PersonActivity(BaseModel):
    """What an automation did for one person, the earliest first; of more than 20 messages the last 20."""

    items: list[MessageView]


class AutomationView(BaseModel):
    """Counts per node, the messages to each person, newest first, and the same by person on `…/people`."""

    id: str
    nodes: list[NodeCounts]
    items: list[MessageView]
    next_cursor: str | None
    name: str | None
    total: int
    by_status: dict[str, int]
    by_reason: list[Failure]
    first_at: Moment
    last_at: Moment
    url: str


class ActivityList(BaseModel):
    items: list[PersonActivity]
    next_cursor: str | None


def routes(runtime: Runtime, settings: MessageLogSettings) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["campaigns"])
    for kind in (OriginKind.CAMPAIGN, OriginKind.AUTOMATION):
        _list_routes(router, runtime, settings, kind)
    _campaign_route(router, runtime, settings)
    _automation_routes(router, runtime, settings)
    return router


def _list_routes(router: APIRouter, runtime: Runtime, settings: MessageLogSettings, kind: OriginKind) -> None:
    @router.get(f"/{kind}s", summary=f"{kind.capitalize()}s, the one with the latest request first")
    async def list_groups(
        request: Request, caller: http.Viewer, q: Part = None, cursor: Cursor = None, limit: Limit = 50
    ) -> GroupList:
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            page = await stored.list_groups(connection, caller.workspace, kind, cursor=cursor, limit=limit, q=q)
        url = url_of(api.base_of(request, settings), caller.workspace, kind)
        return GroupList(items=[group_view(group, url) for group in page.groups], next_cursor=page.next_cursor)

    @router.get(f"/{kind}s.csv", response_class=StreamingResponse, summary=f"{kind.capitalize()}s as CSV")
    async def export_groups(caller: http.Viewer, q: Part = None) -> StreamingResponse:
        return csv_of_groups(runtime, caller, kind, q)


def _campaign_route(router: APIRouter, runtime: Runtime, settings: MessageLogSettings) -> None:
    @router.get("/campaigns/{campaign:path}")
    async def read_campaign(request: Request, caller: http.Viewer, campaign: str) -> CampaignView:
        now = datetime.now(UTC)
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            found = await load_campaign(connection, caller.workspace, campaign, now)
        return campaign_view(found, url_of(api.base_of(request, settings), caller.workspace, OriginKind.CAMPAIGN))


def _automation_routes(router: APIRouter, runtime: Runtime, settings: MessageLogSettings) -> None:
    @router.get("/automations/{automation:path}/people", summary="What an automation did, person by person")
    async def list_people(
        request: Request, caller: http.Viewer, automation: str, cursor: Cursor = None, limit: Limit = 50
    ) -> ActivityList:
        viewer = api.viewer_for(request, caller, settings)
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            if await stored.read_group(connection, caller.workspace, OriginKind.AUTOMATION, automation) is None:
                raise not_found("The automation")
            people, more = await stored.people_of(connection, caller.workspace, automation, cursor=cursor, limit=limit)
        items = [PersonActivity(items=[viewer.message(row) for row in one.rows]) for one in people]
        return ActivityList(items=items, next_cursor=more)

    @router.get("/automations/{automation:path}")
    async def read_automation(
        request: Request, caller: http.Viewer, automation: str, cursor: Cursor = None, limit: Limit = 50
    ) -> AutomationView:
        kind = OriginKind.AUTOMATION
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            group = await stored.read_group(connection, caller.workspace, kind, automation)
            if group is None:
                raise not_found("The automation")
            nodes = await stored.nodes_of(connection, caller.workspace, automation)
            failures = await stored.failures_of(connection, caller.workspace, kind, automation)
            # Not before there is one: of what no id can be there is no filter either.
            filters = Filters(automation=automation)
            page = await queries.list_messages(connection, caller.workspace, filters, cursor=cursor, limit=limit)
        listed = group_view(group, url_of(api.base_of(request, settings), caller.workspace, kind))
        messages = api.message_list(api.viewer_for(request, caller, settings), page)
        return AutomationView(
            **listed.model_dump(exclude={"rates"}),
            nodes=node_counts(nodes),
            by_reason=[failure_view(row) for row in failures],
            items=messages.items,
            next_cursor=messages.next_cursor,
        )


@dataclass(frozen=True, slots=True)
class Campaign:
    """All that message-log knows of a campaign at one moment. `lately`: how many left within PACE_OVER."""

    group: Group
    progress: Progress
    failures: list[Failure]
    waits: list[WaitCount]
    bar_seconds: int
    bars: Sequence[Bar]
    lately: int


async def load_course(
    connection: Connection, workspace: str, campaign: str, now: datetime
) -> tuple[Group, int, Sequence[stored.Wait]]:
    """The campaign's counts, how many left within PACE_OVER, and what is held."""
    group = await stored.read_group(connection, workspace, OriginKind.CAMPAIGN, campaign)
    if group is None:
        raise not_found("The campaign")
    lately = await stored.left_lately(connection, workspace, OriginKind.CAMPAIGN, campaign, now)
    return group, lately, await stored.waits_of(connection, workspace, OriginKind.CAMPAIGN, campaign)


async def load_campaign(connection: Connection, workspace: str, campaign: str, now: datetime) -> Campaign:
    kind = OriginKind.CAMPAIGN
    group, lately, waits = await load_course(connection, workspace, campaign, now)
    width, bars = await stored.over_time(connection, workspace, kind, campaign)
    failures = await stored.failures_of(connection, workspace, kind, campaign)
    return Campaign(
        group=group,
        progress=progress_of(group.done, group.total, lately, group.first_at, now),
        failures=[failure_view(row) for row in failures],
        waits=[WaitCount(**asdict(wait)) for wait in waits],
        bar_seconds=int(width.total_seconds()),
        bars=bars,
        lately=lately,
    )


def campaign_view(campaign: Campaign, url: str) -> CampaignView:
    listed = group_view(campaign.group, url)
    return CampaignView(
        **listed.model_dump(),
        by_reason=campaign.failures,
        progress=ProgressView(**asdict(campaign.progress)),
        waiting=campaign.waits,
        bar_seconds=campaign.bar_seconds,
        bars=[BarView(since=bar.since, until=bar.until, by_status=dict(bar.by_status)) for bar in campaign.bars],
    )


def url_of(base: str, workspace: str, kind: OriginKind) -> str:
    """The page of all campaigns or automations; a group's own is below it."""
    return f"{base.rstrip('/')}/w/{quote(workspace, safe='')}/{kind}s"


def group_view(group: Group, url: str) -> GroupView:
    return GroupView(
        id=group.id,
        name=group.name,
        total=group.total,
        by_status=group.by_status,
        rates=RatesView(**asdict(rates_of(group.by_status))),
        first_at=group.first_at,
        last_at=group.last_at,
        url=f"{url}/{quote(group.id, safe='')}",
    )


def failure_view(row: asyncpg.Record) -> Failure:
    code = ReasonCode(row["reason"])
    what_to_do = CATALOGUE[code].what_to_do
    return Failure(
        reason=code, service=row["service"], count=row["count"], what_to_do=what_to_do, example=row["example"]
    )


def node_counts(nodes: Mapping[str | None, dict[str, int]]) -> list[NodeCounts]:
    return [NodeCounts(node_id=node, by_status=counts) for node, counts in nodes.items()]


def csv_of_groups(runtime: Runtime, caller: Caller, kind: OriginKind, q: str | None) -> StreamingResponse:
    return csv_response(f"{kind}s", caller, _csv_lines(runtime, caller.workspace, kind, q))


async def _csv_lines(runtime: Runtime, workspace: str, kind: OriginKind, q: str | None) -> AsyncIterator[str]:
    yield csv_text(
        [("id", "name", "total", *STATUSES, "delivered_rate", "read_rate", "failed_rate", "first_at", "last_at")]
    )
    cursor: str | None = None
    while True:
        async with runtime.within(workspace, snapshot=True) as connection:
            page = await stored.list_groups(connection, workspace, kind, cursor=cursor, limit=CSV_PAGE, q=q)
        if page.groups:
            yield csv_text([_csv_row(group) for group in page.groups])
        if (cursor := page.next_cursor) is None:
            return


def _csv_row(group: Group) -> list[Any]:
    rates = rates_of(group.by_status)
    shares = [None if one is None else round(one, 4) for one in (rates.delivered, rates.read, rates.failed)]
    counts = [group.by_status[status] for status in STATUSES]
    return [group.id, group.name, group.total, *counts, *shares, group.first_at.isoformat(), group.last_at.isoformat()]
