"""What waits, over HTTP (contract.md, "HTTP"): the queue by cause; throttles; pause, resume and cancel of messages,
campaigns and of all that waits at a sender. (Pause and resume of a sender itself: api.py.)"""

import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import Field
from sendwhy.events import SENDER_ID, MessageId, Moment, Wire
from sendwhy.http import Body, Caller, IdempotencyKey, Operator, Viewer, once
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.reasons import ReasonCode
from sendwhy.service import Runtime

from dispatcher import announce, queue_store, store, sweeps
from dispatcher.api import ACQUIRE_SECONDS, SenderPath
from dispatcher.campaign_api import CampaignPath
from dispatcher.decide import Lane, Waiting
from dispatcher.fleet import Fleet
from dispatcher.queue_store import Locked
from dispatcher.stages import Stages
from dispatcher.sweeps import Kind, Sweep

# Counting a million takes half a second: who asks again and again gets what was counted, as long as it is so fresh.
FRESH_SHARE = 10


QueueSender = Annotated[str | None, Query(pattern=SENDER_ID)]
QueueCampaign = Annotated[str | None, Query(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
Asked = tuple[str, str | None, str | None]


class PutThrottle(Body):
    """`per_minute`: calls in any 60 s, `per_day`: in any 24 h from now on, each also if Meta refuses it."""

    per_minute: Annotated[int, Field(ge=1, le=60_000)] | None = None
    per_day: Annotated[int, Field(ge=1, le=100_000_000)] | None = None


class ThrottleAnswer(Wire):
    campaign_id: str
    per_minute: int | None
    per_day: int | None


class CancelledAnswer(Wire):
    """`cancelled`: taken out now; `cancelling`: still waiting, they are taken out one after the other and not sent;
    `in_flight`: called already, with no outcome yet: these can't be called back."""

    cancelled: int
    cancelling: int = 0
    in_flight: int = 0


class PausedAnswer(Wire):
    message_id: MessageId
    paused_at: Moment | None


class WaitingAnswer(Wire):
    """`since`: when the first pause or hold of these began."""

    lane: str
    waiting_for: str
    messages: int
    oldest: Moment
    since: Moment | None


class QueueAnswer(Wire):
    items: list[WaitingAnswer]


class QueueApi:
    def __init__(self, runtime: Runtime, fleet: Fleet, stages: Stages, clock: Callable[[], datetime]) -> None:
        self._runtime, self._fleet, self._stages, self._clock = runtime, fleet, stages, clock
        self._counted: dict[Asked, tuple[float, QueueAnswer]] = {}

    def routes(self) -> APIRouter:
        router = APIRouter()
        base = "/v1/workspaces/{w}"
        put, get, post = router.put, router.get, router.post
        put(f"{base}/throttles/{{id:path}}", response_model=ThrottleAnswer, summary="Slow a campaign down")(
            self.put_throttle
        )
        post(f"{base}/campaigns/{{id:path}}/pause", status_code=204, summary="Stop a campaign for now")(
            self.pause_campaign
        )
        post(f"{base}/campaigns/{{id:path}}/resume", status_code=204, summary="Let a paused campaign go on")(
            self.resume_campaign
        )
        post(
            f"{base}/campaigns/{{id:path}}/cancel",
            response_model=CancelledAnswer,
            summary="Withdraw a campaign for good",
        )(self.cancel_campaign)
        post(f"{base}/senders/{{id}}/cancel", response_model=CancelledAnswer, summary="Withdraw all that waits here")(
            self.cancel_sender
        )
        post(f"{base}/messages/{{id}}/pause", response_model=PausedAnswer, summary="Stop one message for now")(
            self.pause_message
        )
        post(f"{base}/messages/{{id}}/resume", response_model=PausedAnswer, summary="Let a paused message go on")(
            self.resume_message
        )
        post(f"{base}/messages/{{id}}/cancel", response_model=CancelledAnswer, summary="Withdraw one message")(
            self.cancel_message
        )
        get(f"{base}/queue", response_model=QueueAnswer, summary="What waits, by cause")(self.queue)
        return router

    # --- campaigns ---

    async def put_throttle(
        self, request: Request, caller: Operator, id: CampaignPath, body: PutThrottle, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            await queue_store.put_throttle(connection, caller.workspace, id, body.per_minute, body.per_day)
            await self._line_up(connection, caller, id)
            answer = ThrottleAnswer(campaign_id=id, per_minute=body.per_minute, per_day=body.per_day)
            return 200, answer.to_json()

        return await self._write(request, caller, key, act)

    async def pause_campaign(
        self, request: Request, caller: Operator, id: CampaignPath, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            if await queue_store.pause_campaign(connection, caller.workspace, id, now):
                await self._line_up(connection, caller, id)
                await add_to_outbox(connection, [announce.campaign_held(caller.workspace, id, now)])
            return 204, b""

        return await self._write(request, caller, key, act)

    async def _line_up(self, connection: Connection, caller: Caller, campaign_id: str) -> None:
        """What waits already moves to the campaign's own line."""
        await sweeps.start(connection, Sweep(caller.workspace, Kind.LINE, campaign_id, None, self._clock()))

    async def resume_campaign(
        self, request: Request, caller: Operator, id: CampaignPath, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            if await queue_store.resume_campaign(connection, caller.workspace, id):
                await add_to_outbox(connection, [announce.campaign_held(caller.workspace, id, now, until=now)])
            return 204, b""

        return await self._write(request, caller, key, act)

    async def cancel_campaign(
        self, request: Request, caller: Operator, id: CampaignPath, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            sweep = Sweep(caller.workspace, Kind.CANCEL_CAMPAIGN, id, _by(caller), self._clock())
            cancelled = await self._stages.cancel_all(connection, sweep)
            left, out = await queue_store.counts_of_campaign(connection, (caller.workspace, id))
            return 200, CancelledAnswer(cancelled=cancelled, cancelling=left, in_flight=out).to_json()

        return await self._write(request, caller, key, act)

    # --- senders ---

    async def cancel_sender(
        self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            row = (await store.senders(connection, [id])).get(id)
            if row is None or row.sender.workspace_id != caller.workspace:
                raise not_found("The sender")
            sweep = Sweep(caller.workspace, Kind.CANCEL_SENDER, id, _by(caller), self._clock())
            cancelled = await self._stages.cancel_all(connection, sweep)
            left, out = await queue_store.counts_of_sender(connection, id)
            return 200, CancelledAnswer(cancelled=cancelled, cancelling=left, in_flight=out).to_json()

        return await self._write(request, caller, key, act)

    # --- messages ---

    async def pause_message(
        self, request: Request, caller: Operator, id: MessageId, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            locked, now = await self._waiting(connection, caller, id), self._clock()
            message = locked.message
            since = await queue_store.paused_at(connection, message.key)
            if since is None:
                since = now
                held = announce.held(message, ReasonCode.EXPIRED_BEFORE_SENDING, Waiting.PAUSED, now, None)
                await queue_store.pause_message(connection, message.key, now, told=held is not None)
                await add_to_outbox(connection, [held] if held else [])
            return 200, PausedAnswer(message_id=id, paused_at=since).to_json()

        return await self._write(request, caller, key, act)

    async def resume_message(
        self, request: Request, caller: Operator, id: MessageId, key: IdempotencyKey = None
    ) -> Response:
        woken: list[str] = []

        async def act(connection: Connection) -> tuple[int, bytes]:
            locked = await self._waiting(connection, caller, id)
            await queue_store.resume_message(connection, locked.message.key)
            woken.append(locked.message.sender_id)
            return 200, PausedAnswer(message_id=id, paused_at=None).to_json()

        answer = await self._write(request, caller, key, act)
        for sender_id in woken:
            self._fleet.wake(sender_id)
        return answer

    @staticmethod
    async def _waiting(connection: Connection, caller: Caller, message_id: str) -> Locked:
        for locked in await queue_store.lock_messages(connection, [(caller.workspace, message_id)]):
            if locked.state != "waiting":
                raise Problem(409, f"The message doesn't wait any more: it is {locked.state}.")
            return locked
        raise not_found("The message")

    async def cancel_message(
        self, request: Request, caller: Operator, id: MessageId, key: IdempotencyKey = None
    ) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            name = (caller.workspace, id)
            messages = await queue_store.lock_waiting(connection, [name])
            if not messages:
                state = await queue_store.message_state(connection, name)
                if state is not None:
                    raise Problem(409, f"The message doesn't wait any more: it is {state}.")
                rows = [(caller.workspace, id, _by(caller))]
                await queue_store.remember_cancellations(connection, rows, self._clock())
                return 202, CancelledAnswer(cancelled=0).to_json()
            cancelled = await self._stages.cancel(connection, messages, {name: _by(caller)})
            return 200, CancelledAnswer(cancelled=cancelled).to_json()

        return await self._write(request, caller, key, act)

    # --- the queue ---

    async def queue(self, caller: Viewer, sender: QueueSender = None, campaign: QueueCampaign = None) -> QueueAnswer:
        asked = (caller.workspace, sender, campaign)
        fresh_until, answer = self._counted.get(asked, (0.0, None))
        started = time.monotonic()
        if answer is None or started >= fresh_until:
            async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
                senders = await store.senders_of(connection, "workspace_id", caller.workspace)
                names = [row.sender.sender_id for row in senders if sender in (None, row.sender.sender_id)]
                of_campaign = (caller.workspace, campaign) if campaign is not None else None
                rows = await queue_store.queue_by_cause(connection, names, self._clock(), of_campaign)
            items = [
                WaitingAnswer(
                    lane=Lane(row["lane"]).name.lower(),
                    waiting_for=row["waiting_for"],
                    messages=row["messages"],
                    oldest=row["oldest"],
                    since=row["since"],
                )
                for row in rows
            ]
            answer = QueueAnswer(items=items)
            ended = time.monotonic()
            self._counted = {w: one for w, one in self._counted.items() if one[0] > ended}
            self._counted[asked] = (ended + FRESH_SHARE * (ended - started), answer)
        return answer

    async def _write(
        self,
        request: Request,
        caller: Caller,
        key: str | None,
        act: Callable[[Connection], Awaitable[tuple[int, bytes]]],
    ) -> Response:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection, connection.transaction():
            answer = await once(connection, request, caller, key, lambda: act(connection))
        self._runtime.publish_soon()
        return answer


def _by(caller: Caller) -> str:
    return f"operator {caller.token.name}"
