"""The dispatcher over HTTP (contract.md, "HTTP"): senders, templates, and whether requests would be sent."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import JsonValue, StringConstraints
from sendwhy.events import (
    SENDER_ID,
    Moment,
    SenderId,
    Wire,
)
from sendwhy.http import (
    Admin,
    Body,
    Caller,
    Cursor,
    IdempotencyKey,
    Operator,
    Viewer,
    answered,
    cursor_of,
    once,
    position_of,
)
from sendwhy.postgres import Connection, add_to_outbox
from sendwhy.problems import Problem, not_found
from sendwhy.service import Runtime

from dispatcher import announce, holding, queue_store, store
from dispatcher.answers import HoldScope
from dispatcher.decide import Waiting
from dispatcher.fleet import Fleet
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable
from dispatcher.settings import Settings
from dispatcher.store import NewSender, SenderRow
from dispatcher.sync import sync_sender
from dispatcher.tokens import Access, TokenUnreadable, TokenVault, token_tag

SENDERS_PAGE = 100
ACQUIRE_SECONDS = 10

Id = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z_\-]{1,64}$")]
SenderPath = Annotated[str, Path(alias="id", pattern=SENDER_ID)]
InCapitals = Annotated[str | None, Query(pattern=r"^[A-Z_]{1,64}$")]


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


class SendersAnswer(Wire):
    items: list[SenderAnswer]
    next_cursor: str | None


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


async def sender_of(connection: Connection, workspace: str, sender_id: str) -> SenderRow:
    """A number of the workspace; another's is not found."""
    row = (await store.senders(connection, [sender_id])).get(sender_id)
    if row is None or row.sender.workspace_id != workspace:
        raise not_found("The sender")
    return row


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
        get(
            f"{base}/senders",
            response_model=list[SenderAnswer] | SendersAnswer,
            summary="The workspace's numbers: all of them, or page by page",
        )(self.list_senders)
        get(f"{base}/senders/{{id}}", response_model=SenderAnswer, summary="One number")(self.get_sender)
        post(f"{base}/senders/{{id}}/sync", response_model=SyncAnswer, summary="Read number and templates from Meta")(
            self.sync
        )
        post(f"{base}/senders/{{id}}/pause", response_model=SenderAnswer, summary="Stop sending from a number")(
            self.pause
        )
        post(f"{base}/senders/{{id}}/resume", response_model=SenderAnswer, summary="Go on, and end a hold")(self.resume)
        get(f"{base}/templates", response_model=TemplatesAnswer, summary="Templates as Meta has them")(self.templates)
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

    async def list_senders(
        self, caller: Viewer, cursor: str | None = None, limit: Annotated[int | None, Query(ge=1, le=500)] = None
    ) -> list[SenderAnswer] | SendersAnswer:
        """All numbers as a list; with `limit` or `cursor` a page of them, and where the next one begins."""
        start, most = position_of(cursor) if cursor else "", limit or SENDERS_PAGE
        async with self._runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            if cursor is None and limit is None:
                rows = await store.senders_of(connection, "workspace_id", caller.workspace)
                return [_sender_answer(row) for row in rows]
            rows = await store.senders_page(connection, caller.workspace, start, most + 1)
        more = cursor_of(rows[most - 1].sender.sender_id) if len(rows) > most else None
        return SendersAnswer(items=[_sender_answer(row) for row in rows[:most]], next_cursor=more)

    async def get_sender(self, caller: Viewer, id: SenderPath) -> SenderAnswer:
        async with self._runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            return _sender_answer(await sender_of(connection, caller.workspace, id))

    async def sync(self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None) -> Response:
        async with self._runtime.pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
            row = await sender_of(connection, caller.workspace, id)
            before = await answered(connection, request, caller, key)
        # Two at once may both ask Meta; the answer of the first to end stands for both.
        return before or await self._sync(request, caller, row, key)

    async def _sync(self, request: Request, caller: Caller, row: SenderRow, key: str | None) -> Response:
        now = self._clock()
        try:
            count = await sync_sender(self._runtime.pool, self._meta, self._vault, row, now)
        except TokenUnreadable:
            raise Problem(409, "The stored token can't be decrypted; PUT the sender again.") from None
        except MetaRefused as refused:
            raise Problem(502, f"Meta refused: {refused.error.title} (code {refused.error.code})") from None
        except MetaUnreachable:
            raise Problem(503, "Meta could not be reached; try again.") from None

        async def act(_: Connection) -> tuple[int, bytes]:
            return 200, SyncAnswer(synced_at=now, templates=count).to_json()

        return await self._write(request, caller, key, act, wake=row.sender.sender_id)

    async def pause(self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            await store.lock_workspace(connection, caller.workspace)
            known = await sender_of(connection, caller.workspace, id)
            rows = await store.set_paused(connection, id, now)
            held = [announce.sender_paused(row, now) for row in rows]
            await add_to_outbox(connection, [*announce.senders_updated(rows, now), *held])
            return 200, _sender_answer(rows[0] if rows else known).to_json()

        return await self._write(request, caller, key, act)

    async def resume(self, request: Request, caller: Operator, id: SenderPath, key: IdempotencyKey = None) -> Response:
        async def act(connection: Connection) -> tuple[int, bytes]:
            now = self._clock()
            lifted = await holding.lift(
                connection, await sender_of(connection, caller.workspace, id), tuple(HoldScope), now
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
        cursor: Cursor = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 100,
        status: InCapitals = None,
        category: InCapitals = None,
    ) -> TemplatesAnswer:
        start = position_of(cursor) if cursor else ""
        async with self._runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            senders = await store.senders_of(connection, "workspace_id", caller.workspace)
            accounts = sorted({row.sender.waba_id for row in senders if row.sender.templates_synced_at is not None})
            rows = await store.templates_page(connection, accounts, start, limit + 1, status=status, category=category)
        more = cursor_of(_template_position(rows[limit - 1])) if len(rows) > limit else None
        return TemplatesAnswer(items=[_template_answer(row) for row in rows[:limit]], next_cursor=more)

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
