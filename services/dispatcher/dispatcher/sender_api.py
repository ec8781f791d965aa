"""How senders do, for operators: health, the last sync, what Meta last told, and what would stop a message now."""

from collections.abc import Callable
from datetime import datetime

from fastapi import APIRouter
from pydantic import JsonValue
from sendwhy.events import Moment, SenderId, Wire
from sendwhy.http import Viewer
from sendwhy.postgres import Connection
from sendwhy.service import Runtime

from dispatcher import sync_store, tier_store
from dispatcher.api import ACQUIRE_SECONDS, SenderPath, sender_of
from dispatcher.decide import Tier, spares_replies
from dispatcher.driving import IS_NEWS
from dispatcher.settings import Settings
from dispatcher.store import SenderRow
from dispatcher.sync_store import Failure, Report, Synced


class Stop(Wire):
    """What would stop a message at this moment. `stops`: all, marketing, or templates (that reach a new person)."""

    gate: str
    stops: str
    detail: str
    since: Moment | None = None
    until: Moment | None = None


class Quality(Wire):
    rating: str | None
    policy: str


class TierUse(Wire):
    """Unique people reached outside a window in the last 24 h, by all numbers of the portfolio; `limit` null: none.
    `proven`: Meta told that it is this portfolio; until then the workspace's own numbers alone are counted."""

    portfolio_id: str
    proven: bool
    limit: int | None
    used: int
    left: int | None
    room_at: Moment | None


class Throughput(Wire):
    """`sent_last_minute` is what was really called, null where no replica has told of driving it lately."""

    allowed_per_second: int
    sent_last_minute: int | None
    measured_at: Moment | None
    replica: str | None


class Hold(Wire):
    cause: dict[str, JsonValue]
    since: Moment | None
    until: Moment | None


class FailedSync(Wire):
    since: Moment
    at: Moment
    error: str


class SyncState(Wire):
    """The account's last sync with its differences, and, while reading by this number's token fails, since when."""

    synced_at: Moment | None
    last: Synced | None
    failed: FailedSync | None


class Health(Wire):
    """`stopped_by` is empty where a message would go; `reports` has the newest of each kind of Meta's webhooks."""

    sender_id: SenderId
    at: Moment
    stopped_by: list[Stop]
    quality: Quality
    tier: TierUse
    throughput: Throughput
    paused_at: Moment | None
    hold: Hold | None
    sync: SyncState
    reports: list[Report]


class SenderApi:
    def __init__(self, runtime: Runtime, settings: Settings, clock: Callable[[], datetime]) -> None:
        self._runtime, self._settings, self._clock = runtime, settings, clock

    def routes(self) -> APIRouter:
        router = APIRouter(prefix="/v1/workspaces/{w}/senders/{id}")
        router.get("/health", response_model=Health, summary="How a number does, and what stops it")(self.health)
        router.get("/sync", response_model=SyncState, summary="The last sync, and what it changed")(self.sync)
        return router

    async def health(self, caller: Viewer, id: SenderPath) -> Health:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            row = await sender_of(connection, caller.workspace, id)
            return await self._health(connection, row, self._clock())

    async def _health(self, connection: Connection, row: SenderRow, now: datetime) -> Health:
        sender, policy = row.sender, self._settings.quality_policy
        limit = sender.messaging_limit if _is_proven(row) else None
        tier = await tier_store.read_tier(connection, sender.tier_key, limit, now)
        driving = await sync_store.driving(connection, sender.sender_id)
        is_news = driving is not None and now - driving["seen_at"] <= IS_NEWS
        sync = await _sync_state(connection, row)
        return Health(
            sender_id=sender.sender_id,
            at=now,
            stopped_by=stops(row, tier, policy, sync.failed, now),
            quality=Quality(rating=sender.quality, policy=policy),
            tier=_use(row, tier),
            throughput=Throughput(
                allowed_per_second=sender.messages_per_second,
                sent_last_minute=driving["sent_last_minute"] if driving and is_news else None,
                measured_at=driving["seen_at"] if driving else None,
                replica=driving["replica"] if driving else None,
            ),
            paused_at=sender.paused_at,
            hold=_hold(row),
            sync=sync,
            reports=await sync_store.reports(connection, sender.sender_id) if _is_proven(row) else [],
        )

    async def sync(self, caller: Viewer, id: SenderPath) -> SyncState:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            return await _sync_state(connection, await sender_of(connection, caller.workspace, id))


def _is_proven(row: SenderRow) -> bool:
    """Whether Meta has told this workspace's token of the account that its PUT named."""
    return row.sender.templates_synced_at is not None


async def _sync_state(connection: Connection, row: SenderRow) -> SyncState:
    failed = await sync_store.failure(connection, row.sender.sender_id)
    return SyncState(
        synced_at=row.sender.templates_synced_at,
        last=await sync_store.synced(connection, row.sender.waba_id) if _is_proven(row) else None,
        failed=FailedSync(since=failed.since, at=failed.at, error=failed.error) if failed else None,
    )


def _use(row: SenderRow, tier: Tier) -> TierUse:
    left = None if tier.limit is None else max(0, tier.limit - tier.used)
    room_at = tier.room_at if left == 0 else None
    return TierUse(
        portfolio_id=row.proven_portfolio_id or row.sender.portfolio_id,
        proven=row.proven_portfolio_id is not None,
        limit=tier.limit,
        used=tier.used,
        left=left,
        room_at=room_at,
    )


def _hold(row: SenderRow) -> Hold | None:
    sender = row.sender
    if sender.hold is None:
        return None
    return Hold(cause=sender.hold.model_dump(mode="json"), since=sender.hold_since, until=sender.hold_until)


def stops(row: SenderRow, tier: Tier, policy: str, failed: Failure | FailedSync | None, now: datetime) -> list[Stop]:
    """What would stop a message from this sender now, by the gates' own rules; the message's own gates (template,
    parameters, window, pair) are POST /v1/evaluate's."""
    sender = row.sender
    found = []
    if sender.paused_at is not None:
        detail = "An operator paused the number; resume it"
        found.append(Stop(gate="paused", stops="all", detail=detail, since=sender.paused_at))
    if sender.hold is not None and (sender.hold_until is None or now < sender.hold_until):
        told = sender.hold.detail or sender.hold.title
        stopped = "templates" if spares_replies(sender, now) else "all"
        until = sender.hold_replies_from if stopped == "all" and sender.hold_replies_from else sender.hold_until
        found.append(Stop(gate="hold", stops=stopped, detail=told, since=sender.hold_since, until=until))
    if sender.quality == "RED" and policy == "block":
        found.append(
            Stop(gate="quality", stops="marketing", detail="The number's quality rating is RED (policy block)")
        )
    if sender.templates_synced_at is None:
        why = f": {failed.error}" if failed else ""
        detail = f"The templates have not been read from Meta yet{why}"
        found.append(Stop(gate="template", stops="templates", detail=detail, since=failed.since if failed else None))
    if tier.limit is not None and tier.used >= tier.limit:
        detail = f"{tier.used} of {tier.limit} people in 24 h are reached; a new person waits for room"
        found.append(Stop(gate="tier", stops="templates", detail=detail, until=tier.room_at))
    return found
