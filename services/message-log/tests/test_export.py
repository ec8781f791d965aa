"""The export of a person: pages, the caller's own token, and no document with a gap. The other services are a small
server on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from message_log.export import MESSAGES_PER_PAGE, Exporter
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings
from message_log_builders import CONTACT_IDS, OPERATOR, STRANGER, TOKENS, VIEWER, WORKSPACE
from pydantic import HttpUrl, SecretStr
from sendwhy import problems
from sendwhy.acting import Acting
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool
from sendwhy.reasons import Service
from sendwhy.tenancy import within

pytestmark = pytest.mark.postgres
CONTACTS = f"/v1/workspaces/{WORKSPACE}/contacts"
PATH = f"{CONTACTS}/shopify%3A7712/export"
PHONE = "+525512345678"


@dataclass
class Others:
    """What consent, billing, dispatcher and webhook-ingest answer, and what they were asked."""

    message_ids: list[str] = field(default_factory=list)
    contacts: list[dict[str, Any]] = field(default_factory=list)
    asked: list[Request] = field(default_factory=list)
    status: int = 200
    contact_ids: list[str] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.get("/{service}/v1/workspaces/{w}/contacts/{contact_id:path}/data")
        async def data(service: str, contact_id: str, request: Request) -> Any:
            self.asked.append(request)
            self.contact_ids.append(contact_id)
            if service == "webhook-ingest" and self.status != 200:
                return Response(status_code=self.status)
            if service == "consent":
                return {"contacts": self.contacts, "history": [], "message_ids": self.message_ids}
            return {"asked": request.query_params.getlist("message_id")}

        return app


@dataclass
class Desk:
    others: Others
    http: httpx.AsyncClient
    server: uvicorn.Server
    serving: "asyncio.Task[None]"

    async def get(self, query: str = "", token: str = OPERATOR) -> httpx.Response:
        return await self.http.get(PATH + query, headers={"authorization": f"Bearer {token}"})


@pytest.fixture
async def desk(migrated_database: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(migrated_database, service="export-test", size=2)
    others = Others()
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(others.app(), log_config=None, lifespan="off"))
    serving = asyncio.create_task(server.serve([listening]))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    settings = MessageLogSettings(
        kafka_bootstrap_servers="nowhere:9092",
        database_url=SecretStr(migrated_database),
        privacy_key=SecretStr("a key of tests only"),
        api_tokens=SecretStr(TOKENS),
        consent_url=HttpUrl(f"{url}/consent"),
        billing_url=HttpUrl(f"{url}/billing"),
        dispatcher_url=HttpUrl(f"{url}/dispatcher"),
        webhook_ingest_url=HttpUrl(f"{url}/webhook-ingest"),
    )
    services = OtherServices(settings, Metrics(Service.MESSAGE_LOG))
    exporter = Exporter(type("Runtime", (), {"within": partial(within, pool, None)})(), settings, services)
    app = FastAPI()
    app.state.tokens = settings.tokens
    app.state.acting = Acting(settings.acting_key)
    problems.install(app)
    app.include_router(exporter.routes())
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://log") as http:
        yield Desk(others, http, server, serving)
    server.should_exit = True
    await serving
    listening.close()
    await services.close()
    await pool.close()


async def test_every_message_is_on_one_page_and_each_service_is_asked_for_it(desk: Desk) -> None:
    ids = [f"m-{number:03}" for number in range(MESSAGES_PER_PAGE + 50)]
    desk.others.message_ids = ids[::-1]
    desk.others.contacts = [{"contact_id": "shopify:7712", "phone": PHONE, "user_id": None}]
    first = (await desk.get()).json()
    second = (await desk.get(f"?cursor={first['next_cursor']}")).json()
    assert (first["messages"], second["messages"], second["next_cursor"]) == (MESSAGES_PER_PAGE, 50, None)
    for service in ("billing", "dispatcher"):
        assert first["services"][service]["asked"] + second["services"][service]["asked"] == ids
    assert {one.headers["authorization"] for one in desk.others.asked} == {f"Bearer {OPERATOR}"}
    ingest = [one for one in desk.others.asked if "webhook-ingest" in one.url.path]
    assert {tuple(one.query_params.getlist("phone")) for one in ingest} == {(PHONE,)}


@pytest.mark.parametrize("status", [500, 403, 404])
async def test_a_service_that_does_not_answer_is_named(desk: Desk, status: int) -> None:
    desk.others.contacts = [{"contact_id": "shopify:7712", "phone": PHONE, "user_id": None}]
    desk.others.status = status
    answer = await desk.get()
    assert (answer.status_code, "webhook-ingest" in answer.json()["detail"]) == (503, True)


async def test_a_service_that_is_away_is_named(desk: Desk) -> None:
    desk.server.should_exit = True
    await desk.serving
    answer = await desk.get()
    assert (answer.status_code, "consent can't be reached" in answer.json()["detail"]) == (503, True)


async def test_whom_nobody_holds_is_not_found_and_a_viewer_gets_nothing(desk: Desk) -> None:
    assert (await desk.get()).status_code == 404
    assert (await desk.get(token=VIEWER)).status_code == 403
    assert (await desk.get(token=STRANGER)).status_code == 404
    assert (await desk.get("?cursor=_w")).status_code == 422


@pytest.mark.parametrize("contact_id", CONTACT_IDS)
async def test_a_person_is_exported_whatever_their_id_is_made_of(desk: Desk, contact_id: str) -> None:
    desk.others.contacts = [{"contact_id": contact_id, "phone": None, "user_id": None}]
    headers = {"authorization": f"Bearer {OPERATOR}"}
    answer = await desk.http.get(f"{CONTACTS}/{quote(contact_id, safe='')}/export", headers=headers)
    assert (answer.status_code, set(desk.others.contact_ids)) == (200, {contact_id})
