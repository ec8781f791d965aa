"""What several test files share: the dispatcher's handlers on a database, and a Meta on a socket that does as told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import asyncpg
import dispatcher
import httpx
from cryptography.fernet import Fernet
from dispatcher import claims, person_api, queue_store
from dispatcher.claims import OpenLines
from dispatcher.clock import utc_now
from dispatcher.facts_store import Known, known
from dispatcher.meta import Meta
from dispatcher.settings import Settings
from dispatcher.stages import Stages
from dispatcher.store import NewSender
from dispatcher_cases import PHONE, SENDER, funded
from fastapi import FastAPI
from pydantic import SecretStr
from sendwhy.access import parse_tokens
from sendwhy.metrics import Metrics
from sendwhy.postgres import Connection, unpublished
from sendwhy.reasons import Service
from sendwhy.stage import Record
from sendwhy.tenancy import within
from sendwhy.topics import Topic

MIGRATIONS = Path(dispatcher.__file__).parent / "migrations"
ACME = NewSender(SENDER.sender_id, "acme", "300", "200", None, True, b"sealed")
Behave = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Desk:
    """The dispatcher's handlers on a database, without Kafka: what they would publish stands in the outbox."""

    metrics = Metrics(Service.DISPATCHER)
    settings = type("Settings", (), {"receipt_ttl_seconds": 60, "privacy_key": SecretStr("a key of tests only")})()

    def __init__(self, connection: asyncpg.Connection) -> None:
        self.connection = connection
        self.stages = Stages(self, self.settings, self, utc_now)  # type: ignore[arg-type]

    def publish_soon(self) -> None: ...

    def wake(self, sender_id: str) -> None: ...

    async def queue(self, *message_ids: str) -> None:
        events = [funded(message_id=message_id) for message_id in message_ids]
        await self.stages.on_funded(self.connection, [record(Topic.SEND_FUNDED, event) for event in events])

    async def claim(self, fence: int) -> list[str]:
        """As a driver does it: what is due is marked in flight."""
        assert await claims.hold_fence(self.connection, SENDER.sender_id, fence) is not None
        due = await claims.lock_due(self.connection, SENDER.sender_id, utc_now(), limit=100)
        await queue_store.mark_in_flight(self.connection, [one.message.key for one in due], fence)
        return [one.message.funded.message_id for one in due]

    async def due(self) -> dict[str, str | None]:
        """What a driver would look at now, and by whom it was cancelled."""
        found = await claims.lock_due(self.connection, SENDER.sender_id, utc_now(), limit=100)
        return {one.message.funded.message_id: one.message.cancelled_by for one in found}

    async def states(self) -> dict[str, str]:
        rows = await self.connection.fetch("select message_id, state from message")
        return {row["message_id"]: row["state"] for row in rows}

    async def outbox(self) -> list[str]:
        rows = await unpublished(self.connection, older_than_seconds=-1, limit=1000)
        return sorted(f"{record.topic} {(record.key or b'').decode()}" for record in rows.values())


async def open_lines(connection: Connection, sender_id: str, now: datetime, most: int) -> OpenLines:
    """As its driver finds them."""
    fence = await connection.fetchval("select fence from sender where sender_id = $1", sender_id)
    held = await claims.hold_fence(connection, sender_id, fence)
    assert held is not None
    row, lines = held
    return await claims.open_lines(connection, row.sender.workspace_id, lines, now, most)


async def known_of(connection: Connection) -> Known:
    """What is known of the person at `PHONE`, beside their contact."""
    return await known(connection, SENDER, addresses=[PHONE])


def record(topic: Topic, event: Any, *, received_at: str | None = None) -> Record[Any]:
    headers = () if received_at is None else (("received_at", received_at.encode()),)
    return Record(event, topic, 0, 0, datetime.now(UTC), None, event and event.to_json(), headers)


@asynccontextmanager
async def server(behave: Behave) -> AsyncIterator[str]:
    running: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        running.add(task)
        try:
            await behave(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    listening = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def meta_at(url: str, **settings: Any) -> Meta:
    timeouts = {"meta_connect_timeout_seconds": 0.5, "meta_read_timeout_seconds": 0.5}
    return Meta(
        Settings(
            kafka_bootstrap_servers="unused:1",
            database_url=SecretStr("postgresql://unused"),
            api_tokens=SecretStr(""),
            meta_graph_url=url,
            privacy_key=SecretStr("a key of tests only"),
            token_encryption_key=SecretStr(Fernet.generate_key().decode()),
            **(timeouts | settings),
        )
    )


async def data_of(pool: asyncpg.Pool, contact_id: str) -> httpx.Response:
    """What the API answers of a person's data."""

    class Running:
        @staticmethod
        def within(workspace: str) -> AbstractAsyncContextManager[Any]:
            return within(pool, None, workspace, wait_seconds=10)

    token = "o" * 32
    app = FastAPI()
    app.state.tokens = parse_tokens(f"{token}:operator:acme")
    app.include_router(person_api.routes(Running()))  # type: ignore[arg-type]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as http:
        path = f"/v1/workspaces/acme/contacts/{quote(contact_id, safe='')}/data"
        return await http.get(path, headers={"authorization": f"Bearer {token}"})
