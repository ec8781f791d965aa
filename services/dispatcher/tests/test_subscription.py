"""Whether Meta takes the token and our app gets the webhooks, on real PostgreSQL and with a Meta that is told."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from cryptography.fernet import Fernet
from dispatcher import store
from dispatcher.clock import utc_now
from dispatcher.meta import MetaRefused, MetaUnreachable, SubscribedApp, _subscribed_app
from dispatcher.store import NewSender
from dispatcher.subscription import ANSWER_HOLDS, SubscriptionApi
from dispatcher.tokens import Access, TokenVault, token_tag
from fastapi import FastAPI
from pydantic import SecretStr
from sendwhy import problems
from sendwhy.access import parse_tokens
from sendwhy.events import MetaError
from sendwhy.postgres import Connection, connect_pool
from sendwhy.tenancy import within

pytestmark = pytest.mark.postgres
VAULT = TokenVault(SecretStr(Fernet.generate_key().decode()))
SENDER, OURS = "15550100", "400"


@dataclass
class Desk:
    pool: asyncpg.Pool
    told: Any = field(default_factory=lambda: [SubscribedApp(OURS, "Ours", None)])
    asked: list[str] = field(default_factory=list)
    now: datetime = field(default_factory=utc_now)

    def within(self, workspace: str, *, wait_seconds: float) -> AbstractAsyncContextManager[Connection]:
        return within(self.pool, None, workspace, wait_seconds=wait_seconds)

    async def subscribed_apps(self, waba_id: str, access: Access) -> list[SubscribedApp]:
        self.asked.append(f"{waba_id} {access.token}")
        if isinstance(self.told, Exception):
            raise self.told
        told: list[SubscribedApp] = self.told
        return told

    async def put(self, sender: str = SENDER, app: str | None = OURS, sealed: bytes | None = None) -> None:
        token = sealed or VAULT.seal("acme", sender, "token")
        new = NewSender(sender, "acme", "300", "200", app, False, token, token_tag=token_tag("token"))
        async with self.pool.acquire() as connection:
            await store.put_sender(connection, new, self.now)


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    desk = Desk(pool)
    await desk.put()
    yield desk
    await pool.close()


@pytest.fixture
async def http(desk: Desk) -> AsyncIterator[httpx.AsyncClient]:
    app = FastAPI()
    app.state.tokens = parse_tokens("v" * 32 + ":viewer:acme," + "o" * 32 + ":admin:other")
    problems.install(app)
    app.include_router(SubscriptionApi(desk, desk, VAULT, lambda: desk.now).routes())  # type: ignore[arg-type]
    transport = httpx.ASGITransport(app)
    base = "http://x/v1/workspaces/acme/senders/"
    headers = {"authorization": "Bearer " + "v" * 32}
    async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
        yield client


async def told(http: httpx.AsyncClient, sender: str = SENDER) -> dict[str, Any]:
    answer = await http.get(f"{sender}/subscription")
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


FOREIGN = [SubscribedApp("999", "Other", None)]
CASES = [
    ([SubscribedApp(OURS, None, "https://elsewhere.example/x")], "valid", True),
    (FOREIGN, "valid", False),
    ([], "valid", False),
    (MetaRefused(MetaError(code=190, title="Expired")), "refused", None),
    (MetaRefused(MetaError(code=4, title="Too many calls")), "unknown", None),
    (MetaUnreachable("HTTP 502"), "unknown", None),
]


@pytest.mark.parametrize(("answer", "token", "subscribed"), CASES)
async def test_what_metas_answer_says(
    desk: Desk, http: httpx.AsyncClient, answer: Any, token: str, subscribed: bool | None
) -> None:
    desk.told = answer
    found = await told(http)
    assert (found["token"], found["subscribed"], found["error"] is None) == (token, subscribed, subscribed is not None)
    assert [app["app_id"] for app in found["apps"]] == ([] if subscribed is None else [one.app_id for one in answer])


async def test_a_token_that_our_keys_do_not_open_asks_nobody(desk: Desk, http: httpx.AsyncClient) -> None:
    other = TokenVault(SecretStr(Fernet.generate_key().decode()))
    await desk.put("15550101", sealed=other.seal("acme", "15550101", "token"))
    desk.asked.clear()
    found = await told(http, "15550101")
    assert (found["token"], found["subscribed"], desk.asked) == ("unreadable", None, [])


async def test_numbers_that_share_account_and_token_ask_once_for_a_while(desk: Desk, http: httpx.AsyncClient) -> None:
    await desk.put("15550102")
    await desk.put("15550103", app=None)
    desk.told = FOREIGN
    found = [await told(http, one) for one in (SENDER, "15550102", SENDER)]
    assert [one["sender_id"] for one in found] == [SENDER, "15550102", SENDER]
    assert desk.asked == ["300 token"]
    # Without an app of its own, any app's subscription will do.
    assert (await told(http, "15550103"))["subscribed"] is True
    desk.now += ANSWER_HOLDS + timedelta(seconds=1)
    await told(http)
    assert len(desk.asked) == 3


async def test_another_workspaces_number_is_not_found(desk: Desk, http: httpx.AsyncClient) -> None:
    other = {"authorization": "Bearer " + "o" * 32}
    answer = await http.get(f"http://x/v1/workspaces/other/senders/{SENDER}/subscription", headers=other)
    assert (answer.status_code, desk.asked) == (404, [])


@pytest.mark.parametrize("entry", [None, [], {}, {"whatsapp_business_api_data": {"id": None}}, "x"])
def test_an_entry_that_names_no_app_is_none(entry: Any) -> None:
    assert _subscribed_app(entry) is None
