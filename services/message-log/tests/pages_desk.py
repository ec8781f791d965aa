"""The pages in this process on a real database, without Kafka: rows are written as the projection writes them, and the
other services are a small server on a real socket."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import httpx
import uvicorn
from cryptography.fernet import Fernet
from fastapi import APIRouter, FastAPI, Request, Response
from message_log import (
    automation_pages,
    campaign_api,
    campaign_pages,
    inbox_api,
    inbox_pages,
    login_pages,
    message_pages,
    store,
)
from message_log.decide import fold, tells
from message_log.freshness import Freshness
from message_log.live import Streams
from message_log.pages import Pages, static_file
from message_log.projection import event_row, inbound_row
from message_log.services import OtherServices
from message_log.settings import MessageLogSettings
from message_log.store import KnownState, SenderRow
from message_log_builders import PRIVACY_KEY, TOKENS, WORKSPACE, after
from pydantic import HttpUrl, SecretStr
from sendwhy import problems, tenancy
from sendwhy.acting import Acting
from sendwhy.events import ContactUpdated, Inbound, MessageReceived, TemplateUpdated, Wire
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool, unpublished
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.topics import Topic, outgoing

SAME_SITE = {"sec-fetch-site": "same-origin"}
SENDER, WABA = "415566778899001", "300"
NOW = datetime.now(UTC)


def template(name: str, category: str, text: str, state: str = "APPROVED", waba: str = WABA) -> TemplateUpdated:
    return TemplateUpdated(
        event_id=uuid4(),
        occurred_at=NOW,
        waba_id=waba,
        name=name,
        language="en_US",
        version=1,
        status=state,
        category=category,
        parameter_format="POSITIONAL",
        components=[{"type": "BODY", "text": text}],
        said_by="meta",
        said_at=NOW,
    )


def wrote(
    text: str | None, ago: timedelta, phone: str = "5215512345678", sender: str = SENDER, **raw: Any
) -> MessageReceived:
    """Mexican people's numbers come from Meta with the old 1."""
    return MessageReceived(
        event_id=uuid4(),
        occurred_at=NOW - ago,
        workspace_id=WORKSPACE,
        sender_id=sender,
        wamid=f"wamid.{uuid4()}",
        phone=phone,
        kind=Inbound.TEXT if text else Inbound.OTHER,
        text=text,
        raw=raw,
    )


@dataclass
class Dispatcher:
    """What the dispatcher answers (GETs by path, writes with `status`), and what it was asked."""

    answers: dict[str, Any] = field(default_factory=dict)
    status: int = 200
    refusal: dict[str, Any] = field(default_factory=dict)
    asked: list[tuple[str, str, Any, str | None]] = field(default_factory=list)

    def app(self, acting: Acting) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{path:path}", methods=["GET", "POST", "PUT"])
        async def any_path(request: Request, path: str) -> Any:
            token = acting.read(request.headers["authorization"].removeprefix("Bearer "))
            body = await request.json() if await request.body() else None
            self.asked.append((request.method, path, body, token.role.name if token else None))
            if request.method == "GET":
                found = self.answers.get(path.removeprefix(f"v1/workspaces/{WORKSPACE}/"))
                return found if found is not None else Response(status_code=500)
            if self.status >= 400:
                return problems.problem_response(self.status, **self.refusal)
            return {}

        return app


class Runtime:
    service = Service.MESSAGE_LOG

    def __init__(self, pool: asyncpg.Pool, reader: str) -> None:
        self.pool, self.published = pool, 0
        self._reader = reader

    @classmethod
    async def over(cls, pool: asyncpg.Pool) -> "Runtime":
        """With the role that sees one workspace, as `migrate` has made it."""
        async with pool.acquire() as connection:
            reader = await tenancy.reader_of(connection)
        assert reader is not None
        return cls(pool, reader)

    def within(self, workspace: str | None, **how: Any) -> Any:
        return tenancy.within(self.pool, self._reader, workspace, **how)

    def publish_soon(self) -> None:
        self.published += 1


@dataclass
class Desk:
    pool: asyncpg.Pool
    app: FastAPI
    dispatcher: Dispatcher

    @asynccontextmanager
    async def browser(self, token: str) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://log", headers=SAME_SITE) as client:
            assert (await client.post("/login", data={"token": token})).status_code == 303
            yield client

    async def get(self, path: str, token: str) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://log") as client:
            return await client.get(f"/v1/workspaces/{WORKSPACE}/{path}", headers=headers)

    async def tell(self, *events: Wire) -> None:
        """Each event as its stage would write it, at the time it names."""
        told: dict[tuple[str, str], list[Any]] = {}
        rows = []
        for number, event in enumerate(events):
            at = getattr(event, "occurred_at", None) or getattr(event, "requested_at", None) or after(0)
            state = tells(event, at)
            if state is not None:
                told.setdefault((event.workspace_id, event.message_id), []).append(state)  # type: ignore[attr-defined]
            rows.append(event_row(_record(event, number, at), event))
        async with self.pool.acquire() as connection, connection.transaction():
            await store.fold_messages(connection, {key: fold(states) for key, states in told.items()})
            await store.add_events(connection, rows)

    async def wrote(self, *events: MessageReceived) -> None:
        async with self.pool.acquire() as connection:
            await store.add_inbound(connection, [inbound_row(event, WORKSPACE) for event in events])

    async def know(self, *states: ContactUpdated | TemplateUpdated) -> None:
        async with self.pool.acquire() as connection:
            for state in states:
                if isinstance(state, ContactUpdated):
                    topic, workspace, phone = Topic.CONTACT_UPDATED, state.workspace_id, state.phone
                    key = f"{workspace}/{state.contact_id}"
                else:
                    topic, workspace, phone = Topic.TEMPLATE_UPDATED, None, None
                    key = f"{state.waba_id}/{state.name}/{state.language}"
                user_id = state.user_id if isinstance(state, ContactUpdated) else None
                row = KnownState(key, state.version, workspace, phone, state.to_json(), user_id=user_id)
                await store.set_states(connection, topic, [row])

    async def outbox(self) -> list[Any]:
        async with self.pool.acquire() as connection:
            rows = await unpublished(connection, older_than_seconds=-1, limit=100)
        return [record for _, record in sorted(rows.items())]


def _record(event: Wire, number: int, at: Any) -> Record[Any]:
    sent = outgoing(event, source="test")
    return Record(event, sent.topic, 0, number + abs(hash(sent.value)) % 10**9, at, sent.key, sent.value, ())


@asynccontextmanager
async def serving(app: FastAPI) -> AsyncIterator[str]:
    """The app on a real socket; yields its address."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
        running = asyncio.create_task(server.serve([listening]))
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            await running


def settings_of_desk(database_url: str, keys: SecretStr, **urls: str) -> MessageLogSettings:
    """`urls`: where other services are, by setting."""
    others: dict[str, Any] = {name: HttpUrl(url) for name, url in urls.items()}
    return MessageLogSettings(
        kafka_bootstrap_servers="nowhere:9092",
        database_url=SecretStr(database_url),
        privacy_key=SecretStr(PRIVACY_KEY),
        api_tokens=SecretStr(TOKENS),
        acting_key=keys,
        **others,
    )


@asynccontextmanager
async def open_desk(database_url: str) -> AsyncIterator[Desk]:
    pool = await connect_pool(database_url, service="pages-test", size=4)
    async with pool.acquire() as connection:
        await store.set_senders(connection, [SenderRow(SENDER, WORKSPACE, WABA, 1, True, after(0))], [])
    keys = SecretStr(Fernet.generate_key().decode())
    dispatcher = Dispatcher()
    async with serving(dispatcher.app(Acting(keys))) as url:
        settings = settings_of_desk(database_url, keys, dispatcher_url=url, consent_url=url)
        services = OtherServices(settings, Metrics(Service.MESSAGE_LOG))
        yield Desk(pool, _app(await Runtime.over(pool), settings, services), dispatcher)
        await services.close()
    await pool.close()


def _app(runtime: Any, settings: MessageLogSettings, services: OtherServices) -> FastAPI:
    app = FastAPI()
    app.state.tokens, app.state.acting = settings.tokens, Acting(settings.acting_key)
    problems.install(app)
    app.include_router(campaign_api.routes(runtime, settings))
    app.include_router(inbox_api.routes(runtime, settings))
    pages = Pages(runtime, settings, Freshness(Metrics(Service.MESSAGE_LOG)), services, Streams())
    router = APIRouter(route_class=pages.route_class())
    for group in (login_pages, message_pages, campaign_pages, automation_pages, inbox_pages):
        group.install(router, pages)
    router.add_api_route("/static/{path:path}", static_file, methods=["GET"])
    app.include_router(router)
    return app
