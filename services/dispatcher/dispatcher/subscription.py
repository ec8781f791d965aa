"""Whether Meta takes a number's token, and whether our app gets the account's webhooks: asked of Meta on demand.

Meta allows 200 such calls an hour for an app and account, so an answer holds for a while, for all who ask and for all
numbers that share account, token and app.
"""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Literal

from fastapi import APIRouter
from sendwhy.events import Moment, SenderId, Wire
from sendwhy.http import Viewer
from sendwhy.service import Runtime

from dispatcher.api import ACQUIRE_SECONDS, SenderPath, sender_of
from dispatcher.meta import Meta, MetaRefused, MetaUnreachable, SubscribedApp
from dispatcher.store import SenderRow
from dispatcher.sync import failure_words
from dispatcher.tokens import TokenUnreadable, TokenVault

ANSWER_HOLDS = timedelta(minutes=2)
ANSWERS_KEPT = 1000
# Meta's codes for a token that is wrong, expired or not allowed to see the account, as answers.py has them.
BAD_TOKEN_CODES = frozenset({0, 3, 10, 104, 190, *range(200, 300), 131005})

TokenState = Literal["valid", "refused", "unreadable", "unknown"]


class App(Wire):
    """`override_url`: where Meta posts this account's webhooks instead of the app's own address."""

    app_id: str
    name: str | None
    override_url: str | None


class Subscription(Wire):
    """`token`: refused by Meta (`error` in its words), unreadable with our keys, unknown where Meta could not be asked.
    `subscribed`: whether the number's `app_id` (where none is set: any app) gets the account's webhooks; null unless
    Meta told."""

    sender_id: SenderId
    waba_id: str
    app_id: str | None
    asked_at: Moment
    token: TokenState
    error: str | None
    subscribed: bool | None
    apps: list[App]


_Key = tuple[str, str, str | None]


class SubscriptionApi:
    def __init__(self, runtime: Runtime, meta: Meta, vault: TokenVault, clock: Callable[[], datetime]) -> None:
        self._runtime, self._meta, self._vault, self._clock = runtime, meta, vault, clock
        self._asked: dict[_Key, asyncio.Task[Subscription]] = {}

    def routes(self) -> APIRouter:
        router = APIRouter(prefix="/v1/workspaces/{w}/senders/{id}")
        summary = "Whether Meta takes the token, and whether our app gets the webhooks"
        router.get("/subscription", response_model=Subscription, summary=summary)(self.subscription)
        return router

    async def subscription(self, caller: Viewer, id: SenderPath) -> Subscription:
        async with self._runtime.within(caller.workspace, wait_seconds=ACQUIRE_SECONDS) as connection:
            row = await sender_of(connection, caller.workspace, id)
        # The account is what a PUT named: only one that its token may see is told of.
        key = (row.sender.waba_id, row.token_tag or row.token.hex(), row.app_id)
        # Shielded: whoever gives up waiting leaves the answer to the others.
        told = await asyncio.shield(self._answer(key, row))
        return told.model_copy(update={"sender_id": id})

    def _answer(self, key: _Key, row: SenderRow) -> "asyncio.Task[Subscription]":
        known = self._asked.get(key)
        if known is None or (known.done() and not self._holds(known)):
            self._asked.pop(key, None)
            known = self._asked[key] = asyncio.create_task(self._ask(row))
            while len(self._asked) > ANSWERS_KEPT:
                del self._asked[next(iter(self._asked))]
        return known

    def _holds(self, asked: "asyncio.Task[Subscription]") -> bool:
        is_told = not asked.cancelled() and asked.exception() is None
        return is_told and self._clock() - asked.result().asked_at <= ANSWER_HOLDS

    async def _ask(self, row: SenderRow) -> Subscription:
        now, sender = self._clock(), row.sender
        try:
            access = self._vault.access(self._vault.open(sender.workspace_id, sender.sender_id, row.token), row.app_id)
            apps = await self._meta.subscribed_apps(sender.waba_id, access)
        except (MetaRefused, MetaUnreachable, TokenUnreadable) as error:
            return _told(row, now, token_state(error), error=failure_words(error))
        return _told(row, now, "valid", apps=apps)


def token_state(error: MetaRefused | MetaUnreachable | TokenUnreadable) -> TokenState:
    """What a failed question says of the token; a limit or a fault of Meta's says nothing."""
    if isinstance(error, TokenUnreadable):
        return "unreadable"
    if isinstance(error, MetaRefused) and error.error.code in BAD_TOKEN_CODES:
        return "refused"
    return "unknown"


def _told(
    row: SenderRow,
    now: datetime,
    token: TokenState,
    *,
    error: str | None = None,
    apps: list[SubscribedApp] | None = None,
) -> Subscription:
    ours = [one for one in apps or [] if row.app_id in (None, one.app_id)]
    return Subscription(
        sender_id=row.sender.sender_id,
        waba_id=row.sender.waba_id,
        app_id=row.app_id,
        asked_at=now,
        token=token,
        error=error,
        subscribed=None if apps is None else bool(ours),
        apps=[App(app_id=one.app_id, name=one.name, override_url=one.override) for one in apps or []],
    )
