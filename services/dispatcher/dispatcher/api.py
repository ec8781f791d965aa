"""The dispatcher over HTTP (contract.md, "HTTP"): senders, templates, and whether requests would be sent."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import JsonValue, StringConstraints
from sendwhy.access import Role
from sendwhy.evaluation import EVALUATE_PATH, Evaluate, EvaluateRequest
from sendwhy.events import (
    LIFE_BY_ORIGIN,
    PURPOSE_BY_ORIGIN,
    Gate,
    MessageId,
    Moment,
    Price,
    Purpose,
    Resolved,
    SenderId,
    SendFunded,
    Wire,
    event_id_of,
)
from sendwhy.http import (
    Admin,
    AnyToken,
    Body,
    Caller,
    IdempotencyKey,
    Operator,
    Viewer,
    body_schema,
    cursor_of,
    json_body,
    once,
    position_of,
)
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime
from sendwhy.topics import TOPICS, Topic

from dispatcher import announce, holding, people_store, queue_store, store, tier_store
from dispatcher.answers import HoldScope
from dispatcher.decide import CAMPAIGN, Check, Facts, Message, Tier, Waiting, evaluate, lane_of
from dispatcher.fleet import Fleet
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.settings import Settings
from dispatcher.store import NewSender, SenderRow
from dispatcher.sync import sync_sender
from dispatcher.tokens import Access, TokenUnreadable, TokenVault, token_tag

ACQUIRE_SECONDS = 10

Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_\-]{1,64}$")]
SenderPath = Annotated[str, Path(alias="id", pattern=r"^[0-9]{5,20}$")]


class PutSender(Body):
    access_token: Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[\x21-\x7e]+$")]
    waba_id: Id
    portfolio_id: Id | None = None
    app_id: Id | None = None
    default: bool = False


class SenderAnswer(Wire):
    """A sender without its token. `hold` is why it doesn't send now, `synced_at` when Meta last told its templates."""

    sender_id: SenderId
    workspace_id: str
    waba_id: str
    portfolio_id: str
    app_id: str | None
    default: bool
    display_phone_number: str | None
    quality_rating: str | None
    messages_per_second: int
    messaging_limit: int | None
    paused_at: Moment | None
    hold: dict[str, JsonValue] | None
    hold_since: Moment | None
    hold_until: Moment | None
    synced_at: Moment | None


class TemplateAnswer(Wire):
    waba_id: str
    name: str
    language: str
    status: str
    category: str
    parameter_format: str
    components: list[dict[str, JsonValue]]
    quality: str | None
    rejected_reason: str | None
    said_by: str
    said_at: Moment | None
    synced_at: Moment | None


class TemplatesAnswer(Wire):
    items: list[TemplateAnswer]
    next_cursor: str | None


class SyncAnswer(Wire):
    synced_at: Moment
    templates: int


class EvaluateResult(Wire):
    message_id: MessageId
    gates: list[Gate]
    resolved: Resolved


class EvaluateAnswer(Wire):
    results: list[EvaluateResult]


class Api:
    def __init__(
        self,
        runtime: Runtime,
        settings: Settings,
        meta: Meta,
        vault: TokenVault,
        fleet: Fleet,
        clock: Callable[[], datetime],
    ) -> None:
        self._runtime, self._settings, self._clock = runtime, settings, clock
        self._meta, self._vault, self._fleet = meta, vault, fleet

    def routes(self) -> APIRouter:
        router = APIRouter()
        base = "/v1/workspaces/{w}"
        put, get, post = router.put, router.get, router.post
        put(f"{base}/senders/{{id}}", response_model=SenderAnswer, summary="Set up a number")(self.put_sender)
        get(f"{base}/senders", response_model=list[SenderAnswer], summary="The workspace's numbers")(self.list_senders)
        get(f"{base}/senders/{{id}}", response_model=SenderAnswer, summary="One number")(self.get_sender)
        post(f"{base}/senders/{{id}}/sync", response_model=SyncAnswer, summary="Read number and templates from Meta")(
            self.sync
        )
        post(f"{base}/senders/{{id}}/pause", response_model=SenderAnswer, summary="Stop sending from a number")(
            self.pause
        )
        post(f"{base}/senders/{{id}}/resume", response_model=SenderAnswer, summary="Go on, and end a hold")(self.resume)
        get(f"{base}/templates", response_model=TemplatesAnswer, summary="Templates as Meta has them")(self.templates)
        post(
            EVALUATE_PATH,
            response_model=EvaluateAnswer,
            summary="What would become of requests; nothing is stored or sent",
            openapi_extra=body_schema(Evaluate),
        )(self.evaluate)
        return router

    # --- senders ---

    async def put_sender(
        self, request: Request, caller: Admin, id: SenderPath, body: PutSender, key: IdempotencyKey = None
    ) -> Response:
        await self._prove(id, self._vault.access(body.access_token, body.app_id))
        new = NewSender(
            sender_id=id,
            workspace_id=caller.workspace,
            waba_id=body.waba_id,
            portfolio_id=body.portfolio_id or body.waba_id,
            app_id=body.app_id,
            is_default=body.default,
            token=self._vault.seal(caller.workspace, id, body.access_token),
            token_tag=token_tag(body.access_token),
        )

        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            await store.lock_workspace(connection, caller.workspace)
            rows = await store.put_sender(connection, new, now)
            if not rows:
                raise Problem(409, "This number belongs to another workspace.")
            # Number and token are proven by now; a restriction or a payment isn't repaired by them.
            rows += await holding.lift(connection, rows[-1], (HoldScope.SENDER, HoldScope.TOKEN), now)
            latest = {row.sender.sender_id: row for row in rows}
            await add_to_outbox(connection, announce.senders_updated(latest.values(), now))
            await queue_store.wake_waiting(connection, [Waiting.HOLD], sender_id=id)
            return 200, _sender_answer(latest[id]).to_json()

        return await self._write(request, caller, key, act, wake=id)

    async def _prove(self, sender_id: str, access: Access) -> None:
        try:
            await self._meta.number(sender_id, access)
        except MetaRefused as refused:
            told = refused.error
            detail = f"Meta refused the token for this number: {told.title or 'no title'} (code {told.code})"
            raise Problem(422, detail, errors={"access_token": detail}) from None
        except MetaUnreachable:
            raise Problem(503, "Meta could not be reached to prove the token; try again.") from None

    async def _sender_of(self, connection: Connection, caller: Caller, sender_id: str) -> SenderRow:
        row = (await store.senders(connection, [sender_id])).get(sender_id)
        if row is None or row.sender.workspace_id != caller.workspace:
            raise not_found("The sender")
        return row

    async def list_senders(self, caller: Viewer) -> list[SenderAnswer]:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            rows = await store.senders_of(connection, "workspace_id", caller.workspace)
        return [_sender_answer(row) for row in rows]

    async def get_sender(self, caller: Viewer, id: SenderPath) -> SenderAnswer:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            return _sender_answer(await self._sender_of(connection, caller, id))

    async def sync(self, caller: Operator, id: SenderPath) -> SyncAnswer:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            row = await self._sender_of(connection, caller, id)
        now = self._clock()
        try:
            access = self._vault.access(self._vault.open(caller.workspace, id, row.token), row.app_id)
            count = await sync_sender(self._runtime.pool, self._meta, row, access, now)
        except TokenUnreadable:
            raise Problem(409, "The stored token can't be decrypted; PUT the sender again.") from None
        except MetaRefused as refused:
            raise Problem(502, f"Meta refused: {refused.error.title} (code {refused.error.code})") from None
        except MetaUnreachable:
            raise Problem(503, "Meta could not be reached; try again.") from None
        self._runtime.publish_soon()
        self._fleet.wake(id)
        return SyncAnswer(synced_at=now, templates=count)

    async def pause(self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            await self._sender_of(connection, caller, id)
            now = self._clock()
            rows = await store.set_paused(connection, id, now)
            held = [announce.sender_paused(row, now) for row in rows]
            await add_to_outbox(connection, [*announce.senders_updated(rows, now), *held])
            return 200, _sender_answer(rows[0]).to_json()

        return await self._write(request, caller, key, act)

    async def resume(self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            lifted = await holding.lift(
                connection, await self._sender_of(connection, caller, id), tuple(HoldScope), now
            )
            rows = await store.set_paused(connection, id, None)
            latest = {row.sender.sender_id: row for row in [*lifted, *rows]}
            await add_to_outbox(connection, announce.senders_updated(latest.values(), now))
            await queue_store.wake_waiting(connection, [Waiting.HOLD], sender_id=id)
            return 200, _sender_answer(rows[0]).to_json()

        return await self._write(request, caller, key, act, wake=id)

    # --- templates ---

    async def templates(
        self,
        caller: Viewer,
        cursor: str | None = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
    ) -> TemplatesAnswer:
        start = position_of(cursor) if cursor else ""
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            senders = await store.senders_of(connection, "workspace_id", caller.workspace)
            accounts = sorted({row.sender.waba_id for row in senders})
            rows = [row for waba in accounts for row in (await store.templates_of(connection, waba)).values()]
        ordered = sorted(((_template_position(row), row) for row in rows), key=lambda pair: pair[0])
        page = [(position, row) for position, row in ordered if position > start][: limit + 1]
        more = cursor_of(page[limit - 1][0]) if len(page) > limit else None
        return TemplatesAnswer(items=[_template_answer(row) for _, row in page[:limit]], next_cursor=more)

    async def _write(
        self,
        request: Request,
        caller: Caller,
        key: str | None,
        act: Callable[[Connection], Awaitable[tuple[int, bytes]]],
        *,
        wake: str | None = None,
    ) -> Response:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection, connection.transaction():
            answer = await once(connection, request, caller, key, lambda: act(connection))
        self._runtime.publish_soon()
        if wake:
            self._fleet.wake(wake)
        return answer

    # --- evaluate ---

    async def evaluate(self, token: AnyToken, body: Annotated[Evaluate, json_body(Evaluate)]) -> EvaluateAnswer:
        if not all(token.may(Role.VIEWER, request.workspace_id) for request in body.requests):
            raise not_found("The workspace")
        now = body.at or self._clock()
        past = body.asks_of_the_past(self._clock())
        messages = [
            _imagined(request, resolved, now)
            for request, resolved in zip(body.requests, body.each_resolved(), strict=True)
        ]
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            messages = await self._as_stopped(connection, messages)
            facts = await self._facts(connection, messages, now)
        results = [
            EvaluateResult(
                message_id=message.funded.message_id,
                gates=[_unknown(check) if past else check.to_gate() for check in evaluate(message, known, now)],
                resolved=message.funded.resolved,
            )
            for message, known in zip(messages, facts, strict=True)
        ]
        return EvaluateAnswer(results=results)

    @staticmethod
    async def _as_stopped(connection: Connection, messages: Sequence[Message]) -> list[Message]:
        campaigns = {(one.funded.workspace_id, one.funded.request.origin.id or "") for one in messages}
        stopped = await queue_store.stopped_campaigns(connection, campaigns)
        found = []
        for one in messages:
            campaign = stopped.get((one.funded.workspace_id, one.funded.request.origin.id or ""))
            if campaign is not None:
                by = CAMPAIGN if campaign.cancelled_at else None
                one = replace(one, campaign_paused_at=campaign.paused_at, cancelled_by=by)
            found.append(one)
        return found

    async def _facts(self, connection: Connection, messages: Sequence[Message], now: datetime) -> list[Facts]:
        asked = [(one.funded.workspace_id, one.funded.request.sender_id) for one in messages]
        rows = await store.sender_for_requests(connection, asked)
        accounts = {row.sender.waba_id for row in rows.values()}
        templates = {waba: await store.templates_of(connection, waba) for waba in accounts}
        windows = {
            sender_id: await people_store.windows(connection, sender_id, {one.phone for one in messages})
            for sender_id in {row.sender.sender_id for row in rows.values()}
        }
        read_until = await people_store.inbound_read_until(connection, TOPICS[Topic.MESSAGE_RECEIVED].partitions)
        tiers = await self._tiers(connection, rows.values(), now)
        people = {(one.funded.workspace_id, one.funded.resolved.contact_id or "") for one in messages}
        contacts = await people_store.contacts(connection, people)
        found = []
        for message, pair in zip(messages, asked, strict=True):
            row = rows.get(pair)
            if row is None:
                found.append(Facts(sender=None))
                continue
            known = templates[row.sender.waba_id]
            wanted = message.template
            match = known.get((wanted.name, wanted.language.code)) if wanted else None
            found.append(
                Facts(
                    sender=row.sender,
                    template=match.template if match else None,
                    known_templates=list(known),
                    window_opened_at=windows[row.sender.sender_id].get(message.phone),
                    inbound_read_until=read_until,
                    contact=contacts.get((message.funded.workspace_id, message.funded.resolved.contact_id or "")),
                    tier=tiers.get(row.sender.portfolio_id, Tier()),
                    quality_policy=self._settings.quality_policy,
                )
            )
        return found

    @staticmethod
    async def _tiers(connection: Connection, rows: Any, now: datetime) -> dict[str, Tier]:
        limits = {row.sender.portfolio_id: row.sender.messaging_limit for row in rows}
        return {one: await tier_store.read_tier(connection, one, limit, now) for one, limit in limits.items()}


def _imagined(request: EvaluateRequest, resolved: Resolved | None, now: datetime) -> Message:
    """The request as it would stand in the queue at this moment."""
    purpose = request.purpose or PURPOSE_BY_ORIGIN[request.origin.kind]
    known = resolved or Resolved(contact_id=request.to.contact_id, phone=request.to.phone, purpose=purpose)
    requested = request.requested_at or now
    send_at = max(request.send_at or requested, requested)
    funded = SendFunded(
        event_id=event_id_of(request.message_id, "evaluate"),
        occurred_at=now,
        request=request,
        resolved=known,
        needs_subscription=known.purpose is Purpose.MARKETING,
        send_at=send_at,
        expires_at=request.expires_at or send_at + LIFE_BY_ORIGIN[request.origin.kind],
        price=Price(credits=0, category="unknown"),
    )
    return Message(funded=funded, sender_id=request.sender_id or "", lane=lane_of(known.purpose, None), queued_at=now)


def _unknown(check: Check) -> Gate:
    """A gate that looks at what stands now can't tell of the past."""
    return check.to_gate() if check.gate == "expiry" else Gate(gate=check.gate, passed=None)


def _sender_answer(row: SenderRow) -> SenderAnswer:
    sender = row.sender
    return SenderAnswer(
        sender_id=sender.sender_id,
        workspace_id=sender.workspace_id,
        waba_id=sender.waba_id,
        portfolio_id=sender.portfolio_id,
        app_id=row.app_id,
        default=row.is_default,
        display_phone_number=row.display_phone_number,
        quality_rating=sender.quality,
        messages_per_second=sender.messages_per_second,
        messaging_limit=sender.messaging_limit,
        paused_at=sender.paused_at,
        hold=None if sender.hold is None else sender.hold.model_dump(mode="json"),
        hold_since=sender.hold_since,
        hold_until=sender.hold_until,
        synced_at=sender.templates_synced_at,
    )


def _template_position(row: store.TemplateRow) -> str:
    return f"{row.waba_id}/{row.template.name}/{row.template.language}"


def _template_answer(row: store.TemplateRow) -> TemplateAnswer:
    template = row.template
    return TemplateAnswer(
        waba_id=row.waba_id,
        name=template.name,
        language=template.language,
        status=template.status,
        category=template.category,
        parameter_format=row.parameter_format,
        components=[dict(part) for part in template.components],
        quality=row.quality,
        rejected_reason=template.rejected_reason,
        said_by=template.said_by,
        said_at=template.said_at,
        synced_at=row.synced_at,
    )
