"""The numbers beside a list of messages, under /v1: by status, by reason, by country, and over time."""

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from sendwhy import http
from sendwhy.events import Moment
from sendwhy.postgres import Connection
from sendwhy.service import Runtime

from message_log import cells, queries, volume
from message_log.api import FilterQuery, ReasonCount
from message_log.names import countries_of


class BarView(BaseModel):
    """The messages asked for from `since` to before `until`, by status; statuses of none are left out."""

    since: Moment
    until: Moment
    by_status: dict[str, int]


class CountsView(BaseModel):
    """The counts of the messages that fit the filters; `bars` have one width."""

    total: int
    by_status: dict[str, int]
    by_reason: list[ReasonCount]
    bar_seconds: int
    bars: list[BarView]


class Country(BaseModel):
    """A calling code to which this workspace has sent, and the countries that have it, as ISO letters."""

    calling_code: str
    countries: str


_CODES = "select calling_code from calling_code_seen where workspace_id = $1"


async def countries_seen(connection: Connection, workspace: str) -> list[Country]:
    rows = await connection.fetch(_CODES, workspace)
    found = [Country(calling_code=row[0], countries=countries_of(row[0])) for row in rows]
    return sorted(found, key=lambda country: (country.countries, country.calling_code))


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}", tags=["messages"])

    @router.get("/message-counts")
    async def count_messages(caller: http.Viewer, filters: FilterQuery) -> CountsView:
        """How many messages fit the same filters as the list's, by status, by reason and over time; without `from`, of
        the last seven days."""
        now = datetime.now(UTC)
        timed = filters.model_copy(update={"since": filters.since or now - timedelta(days=7)})
        async with runtime.within(caller.workspace, snapshot=True) as connection:
            timed = await queries.meant(connection, caller.workspace, timed)
            measured = await volume.measure(connection, caller.workspace, timed, now)
            reasons = await cells.by_reason(connection, caller.workspace, timed)
        return CountsView(
            total=sum(bar.total for bar in measured.bars),
            by_status=measured.by_status,
            by_reason=[ReasonCount(**asdict(row)) for row in reasons],
            bar_seconds=int(measured.width.total_seconds()),
            bars=[BarView(since=bar.since, until=bar.until, by_status=bar.by_status) for bar in measured.bars],
        )

    @router.get("/countries")
    async def list_countries(caller: http.Viewer) -> list[Country]:
        """The countries to which messages were asked for, for the filter `country`."""
        async with runtime.within(caller.workspace) as connection:
            return await countries_seen(connection, caller.workspace)

    return router


def values_of(measured: volume.Volume) -> dict[str, Any]:
    """For the chart on a page: only the statuses that occur."""
    return {"volume": measured, "volume_statuses": [name for name, count in measured.by_status.items() if count]}
