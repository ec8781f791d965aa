"""Replicas of billing as processes of their own, killed in the middle: exact in the end."""

import asyncio
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any

import httpx
import pytest
from billing_desk import Desk, consented, rejected, status
from billing_service import TOKENS, Service, names
from pydantic import TypeAdapter
from sendwhy.events import SendRejected, Status, Wire
from sendwhy.reasons import ReasonCode
from sendwhy.topics import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="module")]

MESSAGES = 300
FIRST_CREDITS = 100
TOP_UPS = 8
IN_FULL_SWING = 20
TOP_UP_CREDITS = 10
JSON: TypeAdapter[Any] = TypeAdapter(dict[str, Any])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Replica:
    """`python -m billing serve`; the app of the `service` fixture is one replica more."""

    def __init__(self, environment: dict[str, str], http: httpx.AsyncClient) -> None:
        self._environment, self.http = environment, http
        self.process: asyncio.subprocess.Process | None = None
        self.url = ""

    async def start(self) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = (sys.executable, "-m", "billing", "serve")
        environment = self._environment | {"SENDWHY_HTTP_PORT": str(port), "SENDWHY_DRAIN_SECONDS": "0"}
        self.process = await asyncio.create_subprocess_exec(
            *command, env=environment, stderr=asyncio.subprocess.DEVNULL
        )
        async with asyncio.timeout(60):
            while not await self._is_ready():
                await asyncio.sleep(0.1)

    async def _is_ready(self) -> bool:
        try:
            return (await self.http.get(f"{self.url}/readyz")).status_code == 200
        except httpx.TransportError:
            return False

    async def kill(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGKILL)
        await self.process.wait()


async def top_up(http: httpx.AsyncClient, urls: Sequence[str], workspace: str, key: str) -> None:
    """Asked until it is answered, of the next replica where a connection breaks."""
    headers = {"authorization": "Bearer admin-token", "idempotency-key": key}
    body = {"credits": TOP_UP_CREDITS, "reference": key}
    async with asyncio.timeout(60):
        for url in cycle(urls):
            try:
                answer = await http.post(f"{url}/v1/workspaces/{workspace}/top-ups", json=body, headers=headers)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.status_code < 500:
                assert answer.status_code == 200
                return


@asynccontextmanager
async def replicas(database: str, kafka: str) -> AsyncIterator[list[Replica]]:
    environment = os.environ | {
        "SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka,
        "SENDWHY_DATABASE_URL": database,
        "SENDWHY_API_TOKENS": TOKENS,
    }
    async with httpx.AsyncClient(timeout=30) as http:
        found = [Replica(environment, http) for _ in range(2)]
        try:
            await asyncio.gather(*(one.start() for one in found))
            yield found
        finally:
            for one in found:
                if one.process is not None and one.process.returncode is None:
                    await one.kill()


async def publish_in_pieces(service: Service, events: list[Wire], pieces: int) -> None:
    for piece in range(pieces):
        await service.publish(*events[piece::pieces])


@pytest.mark.timeout(240)
async def test_replicas_that_are_killed_leave_exact_books(
    service: Service, beside: Desk, database: str, kafka_bootstrap: str, workspace: str
) -> None:
    chance = random.Random(7)
    ids = [f"m{n}" for n in range(MESSAGES)]
    requests: list[Wire] = [consented(name, workspace) for name in ids]
    requests += chance.sample(requests, 100)
    assert (await service.top_up(workspace, FIRST_CREDITS)).status_code == 200
    async with replicas(database, kafka_bootstrap) as [one, other]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_in_pieces(service, requests, 4))
            for n in range(TOP_UPS):
                # Each on both replicas at once: one key, one credit.
                for urls in ([one.url, other.url], [other.url]):
                    tasks.create_task(top_up(one.http, urls, workspace, f"k{n}"))
            await until_booked(beside, workspace, "reserve")
            # It stays away: the others take over its partitions.
            await one.kill()
        decided = await until_decided(service, workspace)
        funded = sorted(name for name, values in decided.items() if b'"price":{' in next(iter(values)))
        await beside_is_exact(beside, workspace, decided, len(funded))
        read, failed, cancelled = funded[::3], funded[1::3], funded[2::3]
        told: list[Wire] = [status(name, said, workspace) for name in read for said in (Status.SENT, Status.READ)]
        told += [status(name, Status.SENT, workspace) for name in failed]
        told += [status(name, Status.FAILED, workspace, ReasonCode.META_ERROR) for name in failed]
        told += [rejected(name, ReasonCode.CANCELLED, workspace) for name in cancelled]
        told += chance.sample(told, len(told) // 2)
        chance.shuffle(told)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(publish_in_pieces(service, told, 4))
            await until_booked(beside, workspace, "capture")
            await other.kill()
        await until_settled(beside, workspace, len(failed))
    account = (await service.get(workspace, "account")).json()
    assert account["balance"] == FIRST_CREDITS + TOP_UPS * TOP_UP_CREDITS - len(read)
    assert account["reserved"] == 0
    assert await beside.mismatches() == 0
    booked = await beside.pool.fetch("select message_id, kind from ledger where workspace_id = $1", workspace)
    assert Counter(row["kind"] for row in booked)["top_up"] == TOP_UPS + 1


async def until_booked(beside: Desk, workspace: str, kind: str) -> None:
    """Until the work is in full swing."""
    count = "select count(*) from ledger where workspace_id = $1 and kind = $2"
    async with asyncio.timeout(60):
        while await beside.pool.fetchval(count, workspace, kind) < IN_FULL_SWING:
            await asyncio.sleep(0.01)


async def until_decided(service: Service, workspace: str) -> dict[str, set[bytes]]:
    """Every message's answers: repeats must be the same, byte for byte."""
    ours = names(workspace)
    decided: dict[str, set[bytes]] = {}
    async with asyncio.timeout(90):
        while len(decided) < MESSAGES:
            decided.clear()
            for topic in (Topic.SEND_FUNDED, Topic.SEND_REJECTED):
                for value in await service.all_of(topic, ours):
                    event = JSON.validate_json(value)
                    name = (event.get("request") or event)["message_id"]
                    decided.setdefault(name, set()).add(value)
    assert {len(values) for values in decided.values()} == {1}
    return decided


async def beside_is_exact(beside: Desk, workspace: str, decided: dict[str, set[bytes]], funded: int) -> None:
    balance = await beside.balance(workspace)
    assert balance + funded == FIRST_CREDITS + TOP_UPS * TOP_UP_CREDITS
    refusals = [value for [value] in decided.values() if b'"price":{' not in value]
    scopes = [SendRejected.model_validate_json(value).reason.evidence["scope"] for value in refusals]
    counted = [scope["refused"] for scope in scopes if isinstance(scope, dict)]
    assert set(counted) == set(range(1, len(counted) + 1))
    assert len(counted) == MESSAGES - funded


async def until_settled(beside: Desk, workspace: str, failing: int) -> None:
    """Until no reservation is open and every failure has been told."""
    counts = """
    select count(*) filter (where booked = array['reserve']) as open, count(*) filter (where failed) as failed
    from charge where workspace_id = $1
    """
    async with asyncio.timeout(90):
        while tuple(await beside.pool.fetchrow(counts, workspace) or ()) != (0, failing):
            await asyncio.sleep(0.2)
