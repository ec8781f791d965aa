"""POST /v1/evaluate: what would become of requests, by the driver's own facts, gates and order; nothing is stored."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter
from sendwhy.evaluation import EVALUATE_PATH, Evaluate, EvaluateRequest, check_rights
from sendwhy.events import (
    LIFE_BY_ORIGIN,
    PURPOSE_BY_ORIGIN,
    Gate,
    Price,
    Purpose,
    Resolved,
    SendFunded,
    Wire,
    event_id_of,
)
from sendwhy.http import AnyToken, body_schema, json_body
from sendwhy.postgres import Connection
from sendwhy.service import Runtime

from dispatcher import claims, facts, queue_store, store, tier_store
from dispatcher.decide import (
    CAMPAIGN,
    WINDOW_BELIEF,
    Check,
    Facts,
    Message,
    Send,
    Tier,
    campaign_of,
    decide,
    evaluate,
    in_the_past,
    lane_of,
)
from dispatcher.limits import (
    PairPace,
    Throttle,
    throttle_opens_at,
    throttle_room,
    throttle_take,
    throttle_waits_for_minute,
)
from dispatcher.queue_store import Stopped
from dispatcher.settings import Settings
from dispatcher.store import Key, SenderRow

ACQUIRE_SECONDS = 10
# Copies of the paces of a sender's pairs, where this replica drives it.
Pairs = Callable[[str], PairPace | None]


class EvaluateResult(Wire):
    """`message_id` is null where the request names none, `resolved` where it can't be used."""

    message_id: str | None
    gates: list[Gate]
    resolved: Resolved | None


class EvaluateAnswer(Wire):
    results: list[EvaluateResult]


@dataclass(slots=True)
class Limits:
    """What the limits have left, counted request by request in the order of the list, as a driver would. `pairs` None
    for a sender that another replica drives; `seconds` is the time of their clock."""

    tiers: dict[str, Tier]
    reached: dict[str, set[str]]
    throttles: dict[Key, Throttle]
    pairs: Mapping[str, PairPace | None]
    seconds: float

    def judge(self, message: Message, known: Facts, now: datetime) -> tuple[Facts, list[Check]]:
        """All gates of one message, with what its predecessors in the list have taken."""
        sender = known.sender
        if sender is None:
            return known, evaluate(message, known, now)
        tier = replace(self.tiers.get(sender.tier_key, Tier()), limit=sender.messaging_limit)
        reached = self.reached.get(sender.tier_key, set())
        pairs = self.pairs.get(sender.sender_id)
        wait = None if pairs is None else timedelta(seconds=pairs.wait_seconds(message.address, self.seconds))
        known = replace(known, pair_wait=wait, tier=replace(tier, already_reached=message.address in reached))
        verdict = decide(message, known, now)
        campaign = _campaign(message)
        throttle = self.throttles.get(campaign)
        if isinstance(verdict, Send) and throttle is not None:
            if throttle_room(throttle, now):
                self.throttles[campaign] = throttle_take(throttle, now)
            else:
                opens_at = throttle_opens_at(throttle) if throttle_waits_for_minute(throttle) else None
                known = replace(known, throttled=True, slot_at=opens_at)
                verdict = decide(message, known, now)
        if isinstance(verdict, Send):
            if pairs is not None:
                pairs.take(message.address, self.seconds)
            if verdict.counts_for_tier and message.address not in reached:
                self.reached.setdefault(sender.tier_key, set()).add(message.address)
                self.tiers[sender.tier_key] = replace(tier, used=tier.used + 1)
        return known, evaluate(message, known, now)


class Evaluation:
    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        pairs: Pairs,
        clock: Callable[[], datetime],
        seconds: Callable[[], float],
    ) -> None:
        self._runtime, self._settings, self._pairs, self._clock, self._seconds = (
            runtime,
            settings,
            pairs,
            clock,
            seconds,
        )

    def routes(self) -> APIRouter:
        router = APIRouter()
        router.post(
            EVALUATE_PATH,
            response_model=EvaluateAnswer,
            summary="What would become of requests; nothing is stored or sent",
            openapi_extra=body_schema(Evaluate),
        )(self.evaluate)
        return router

    async def evaluate(self, token: AnyToken, body: Annotated[Evaluate, json_body(Evaluate)]) -> EvaluateAnswer:
        check_rights(token, body.requests)
        now = body.at or self._clock()
        asked = body.read(self._clock())
        requests = [one for one in asked if isinstance(one, EvaluateRequest)]
        messages = [_imagined(one, now, name=str(number)) for number, one in enumerate(requests)]
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            judged = await self.judge(connection, messages, now)
        past = body.asks_of_the_past(self._clock())
        results = [
            EvaluateResult(
                message_id=request.message_id,
                gates=[in_the_past(message, known, now, one) if past else one.to_gate() for one in checks],
                resolved=message.funded.resolved,
            )
            for request, message, (known, checks) in zip(requests, messages, judged, strict=True)
        ]
        return EvaluateAnswer(results=body.answers(asked, results, EvaluateResult))

    async def judge(
        self, connection: Connection, messages: Sequence[Message], now: datetime
    ) -> list[tuple[Facts, list[Check]]]:
        """The facts and gates of each message, which differ in their ids, in their order."""
        asked = [(one.funded.workspace_id, one.funded.request.sender_id) for one in messages]
        rows = await store.sender_for_requests(connection, asked)
        by_sender: dict[str, list[Message]] = {}
        for message, pair in zip(messages, asked, strict=True):
            if pair in rows:
                by_sender.setdefault(rows[pair].sender.sender_id, []).append(message)
        senders = {row.sender.sender_id: row for row in rows.values()}
        known: dict[Key, Facts] = {}
        for sender_id, mine in by_sender.items():
            known |= await facts.load(connection, senders[sender_id].sender, mine, self._settings.quality_policy)
        campaigns = {_campaign(one) for one in messages}
        stopped = await queue_store.stopped_campaigns(connection, campaigns)
        limits = await self._limits(connection, list(senders.values()), messages, campaigns, now)
        return [
            limits.judge(_as_queued(one, known.get(one.key), stopped), known.get(one.key, Facts(sender=None)), now)
            for one in messages
        ]

    async def _limits(
        self,
        connection: Connection,
        rows: Sequence[SenderRow],
        messages: Sequence[Message],
        campaigns: set[Key],
        now: datetime,
    ) -> Limits:
        addresses = {one.address for one in messages}
        tiers: dict[str, Tier] = {}
        reached: dict[str, set[str]] = {}
        for row in rows:
            portfolio = row.sender.tier_key
            if row.sender.messaging_limit is not None and portfolio not in tiers:
                tiers[portfolio] = await tier_store.read_tier(connection, portfolio, row.sender.messaging_limit, now)
                reached[portfolio] = await tier_store.reached_people(connection, portfolio, addresses, now)
        return Limits(
            tiers=tiers,
            reached=reached,
            throttles=await _throttles(connection, campaigns, now),
            pairs={row.sender.sender_id: self._pairs(row.sender.sender_id) for row in rows},
            seconds=self._seconds(),
        )


async def _throttles(connection: Connection, campaigns: set[Key], now: datetime) -> dict[Key, Throttle]:
    found: dict[Key, Throttle] = {}
    for workspace_id in {workspace for workspace, _ in campaigns}:
        asked = [campaign for workspace, campaign in campaigns if workspace == workspace_id]
        known = await claims.read_throttles(connection, workspace_id, asked, now)
        found |= {(workspace_id, campaign): one for campaign, one in known.items() if one.limits}
    return found


def _campaign(message: Message) -> Key:
    """No campaign has no name."""
    return message.funded.workspace_id, campaign_of(message.funded.request.origin) or ""


def _as_queued(message: Message, known: Facts | None, stopped: Mapping[Key, Stopped]) -> Message:
    """With the lane that its template puts it into, and its campaign's pause or end."""
    funded = message.funded
    category = known.template.category if known and known.template else None
    campaign = stopped.get(_campaign(message))
    return replace(
        message,
        lane=lane_of(funded.resolved.purpose, category),
        campaign_paused_at=campaign.paused_at if campaign else None,
        cancelled_by=CAMPAIGN if campaign and campaign.cancelled_at else None,
    )


def _imagined(request: EvaluateRequest, now: datetime, *, name: str) -> Message:
    """The request as it would stand in the queue at this moment, under a name of its own: a list may hold one id
    twice, with two contents."""
    purpose = request.purpose or PURPOSE_BY_ORIGIN[request.origin.kind]
    known = request.resolved or Resolved(contact_id=request.to.contact_id, phone=request.to.phone, purpose=purpose)
    requested = request.requested_at or now
    send_at = max(request.send_at or requested, requested)
    funded = SendFunded(
        event_id=event_id_of(request.message_id, "evaluate"),
        occurred_at=now,
        request=request.model_copy(update={"message_id": name}),
        resolved=known,
        needs_subscription=known.purpose is Purpose.MARKETING,
        send_at=send_at,
        expires_at=request.expires_at or send_at + LIFE_BY_ORIGIN[request.origin.kind],
        price=Price(credits=0, category="unknown"),
    )
    # As if it had waited for what is still being read: a closed window is told as closed by what is known now.
    queued_at = now - WINDOW_BELIEF
    return Message(funded, sender_id=request.sender_id or "", lane=lane_of(known.purpose, None), queued_at=queued_at)
