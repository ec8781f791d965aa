"""What the dispatcher has set for one campaign, and what of it waits: for message-log's page of it."""

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import BaseModel
from sendwhy.events import Moment
from sendwhy.http import Viewer
from sendwhy.postgres import Connection
from sendwhy.service import Runtime

from dispatcher.queue_store import WAITS_FOR_OF_COUNTED
from dispatcher.store import Key

# A campaign's id is the upstream system's, and may hold slashes.
CampaignPath = Annotated[str, Path(alias="id", min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]

_SET = """
select c.per_minute, c.per_day, c.paused_at, c.cancelled_at, coalesce((
    select sum(u.calls) from campaign_use u where u.workspace_id = c.workspace_id and u.campaign_id = c.campaign_id
      and u.minute > clock_timestamp() - interval '24 hours'), 0)::int as slots_today
from campaign c where c.workspace_id = $1 and c.campaign_id = $2
"""
_WAITING = f"""
with counted as materialized (
    select sender_id, line, waiting_for, not_before > clock_timestamp() as later, count(*) as messages,
           min(queued_at) as oldest
    from message where state = 'waiting' and workspace_id = $1 and campaign_id = $2 group by 1, 2, 3, 4
)
select {WAITS_FOR_OF_COUNTED} as waiting_for, sum(m.messages)::bigint as messages,
       min(m.oldest) as oldest
from counted m
left join sender s on s.sender_id = m.sender_id
left join campaign c on c.workspace_id = $1 and c.campaign_id = $2
group by 1 order by 2 desc, 1
"""  # noqa: S608 - a constant


class CampaignWaiting(BaseModel):
    waiting_for: str
    messages: int
    oldest: Moment


class CampaignAnswer(BaseModel):
    """`slots_today`: how many of `per_day` were called in the last 24 hours. A campaign of which nothing was set and
    nothing waits is an answer of nulls: who asks may know of messages that have not come here yet."""

    campaign_id: str
    paused_at: Moment | None = None
    cancelled_at: Moment | None = None
    per_minute: int | None = None
    per_day: int | None = None
    slots_today: int = 0
    waiting: list[CampaignWaiting]


async def read_campaign(connection: Connection, campaign: Key) -> CampaignAnswer:
    row = await connection.fetchrow(_SET, *campaign)
    waiting = [CampaignWaiting(**dict(each)) for each in await connection.fetch(_WAITING, *campaign)]
    if row is None:
        return CampaignAnswer(campaign_id=campaign[1], waiting=waiting)
    return CampaignAnswer(campaign_id=campaign[1], waiting=waiting, **dict(row))


def routes(runtime: Runtime) -> APIRouter:
    router = APIRouter(prefix="/v1/workspaces/{w}")

    @router.get("/campaigns/{id:path}", summary="A campaign's throttle and pause, and what of it waits")
    async def get_campaign(caller: Viewer, id: CampaignPath) -> CampaignAnswer:
        async with runtime.within(caller.workspace) as connection:
            return await read_campaign(connection, (caller.workspace, id))

    return router
