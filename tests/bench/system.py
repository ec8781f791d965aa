"""The whole system as users start it (`sendwhy up`), before a lean Meta, with what a campaign needs to be sent."""

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from lean_load import WORKSPACE, contact_id, phone, sender_id
from lean_meta import APP, PORTFOLIO, TOKEN, WABA
from local_stack.services import SERVICES
from processes import SUPERVISOR
from sendwhy.topics import TOPICS, Topic

HERE = Path(__file__).parent
READY_SECONDS, SET_UP_SECONDS = 240.0, 300.0
CREDITS = 100_000_000


@dataclass(frozen=True)
class Shape:
    """What the system is and what it sends: lean Meta's `latency_ms` and `batch` (statuses in a POST at most)."""

    contacts: int
    senders: int
    latency_ms: float = 50
    batch: int = 1
    replicas: Mapping[str, int] | None = None


class System:
    def __init__(self, stack: Mapping[str, Any], state: Path, meta: str, pids: Mapping[str, int]) -> None:
        self.stack, self.state, self.meta, self.pids = stack, state, meta, pids
        self.kafka: str = stack["kafka"]

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.stack['admin_token']}"}

    def database(self, service: str) -> str:
        """The superuser's address of a service's database."""
        return str(self.stack["postgres"]).rpartition("/")[0] + "/" + service.replace("-", "_")

    async def set_up(self, shape: Shape) -> None:
        """Numbers, credits and contacts."""
        services = self.stack["services"]
        workspace = f"v1/workspaces/{WORKSPACE}"
        async with httpx.AsyncClient(headers=self.headers, timeout=SET_UP_SECONDS, trust_env=False) as http:
            target = {"url": f"{services['webhook-ingest']}/webhooks/meta", "secret": self.stack["meta_app_secret"]}
            (await http.post(f"{self.meta}/_target", json=target)).raise_for_status()
            sender = {"access_token": TOKEN, "waba_id": WABA, "portfolio_id": PORTFOLIO, "app_id": self._app}
            for number in range(shape.senders):
                url = f"{services['dispatcher']}/{workspace}/senders/{sender_id(number)}"
                (await http.put(url, json=sender | {"default": number == 0})).raise_for_status()
            top_up = {"credits": CREDITS, "reference": "bench"}
            url = f"{services['billing']}/{workspace}/top-ups"
            (await http.post(url, json=top_up, headers={"idempotency-key": "bench"})).raise_for_status()
            rows = (f"{contact_id(n)},{phone(n)},SUBSCRIBED,import,bench\n" for n in range(shape.contacts))
            csv = "contact_id,phone,marketing_state,source,proof\n" + "".join(rows)
            url = f"{services['consent']}/{workspace}/contacts/import"
            (await http.post(url, content=csv.encode(), headers={"content-type": "text/csv"})).raise_for_status()
        await self._known(shape)

    @property
    def _app(self) -> str:
        return str(self.stack.get("meta_app_id", APP))

    async def _known(self, shape: Shape) -> None:
        """Until the dispatcher has read who is subscribed and what may be sent."""
        await self._until("dispatcher", "select count(*) from contact", shape.contacts)
        synced = "select count(*) from sender where templates_synced_at is not null and messages_per_second is not null"
        await self._until("dispatcher", synced, shape.senders)
        await self._until("message-log", "select count(*) from known_state", shape.contacts)

    async def _until(self, service: str, count: str, wanted: int) -> None:
        connection = await asyncpg.connect(self.database(service))
        async with asyncio.timeout(SET_UP_SECONDS):
            while await connection.fetchval(count) < wanted:
                await asyncio.sleep(0.2)
        await connection.close()

    async def flush_webhooks(self, *, flushed: bool) -> None:
        """Whether Kafka has a webhook on disk before it is answered, from now on."""
        config = TOPICS[Topic.WEBHOOK_RECEIVED].config()
        if not flushed:
            config.pop("flush.messages")
        admin = AIOKafkaAdminClient(bootstrap_servers=self.kafka)
        await admin.start()
        resource = ConfigResource(ConfigResourceType.TOPIC, Topic.WEBHOOK_RECEIVED, configs=config)
        for answer in await admin.alter_configs([resource]):
            codes = [told[0] for told in answer.resources]
            assert not any(codes), f"webhook.received was not altered: {answer}"
        await admin.close()

    def restarted(self) -> list[str]:
        """The processes that died meanwhile: what was measured is then of another system."""
        now = (_read(self.state / "stack.json") or {"pids": {}})["pids"]
        return [name for name, pids in self.stack["pids"].items() if now.get(name) != pids]


@contextlib.asynccontextmanager
async def running(shape: Shape, state: Path | None = None) -> AsyncIterator[System]:
    """The system, ready and set up. Its log stands beside the state directory; of both nothing stays after a run that
    went well, which are gigabytes, unless they were asked for."""
    where = state or Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with _running(shape, where) as system:
        yield system
    if state is None:
        await asyncio.to_thread(shutil.rmtree, where)
        where.with_suffix(".log").unlink()


@contextlib.asynccontextmanager
async def _running(shape: Shape, state: Path) -> AsyncIterator[System]:
    meta_options = ["--latency", str(shape.latency_ms), "--batch", str(shape.batch)]
    replicas = [f"--replicas={service}={count}" for service, count in (shape.replicas or {}).items()]
    async with process([sys.executable, str(HERE / "lean_meta.py"), *meta_options]) as meta:
        assert meta.stdout is not None
        url = (await asyncio.wait_for(meta.stdout.readline(), READY_SECONDS)).decode().strip()
        command = [str(Path(sys.executable).parent / "sendwhy"), "up", "--state-dir", str(state)]
        async with process([*command, "--meta-url", url, *replicas], log=state.with_suffix(".log")) as up:
            stack = await _ready(state / "stack.json", up, state.with_suffix(".log"))
            system = System(stack, state, url, _pids(stack, meta.pid, up.pid))
            await system.set_up(shape)
            yield system


def _pids(stack: Mapping[str, Any], meta: int, up: int) -> dict[str, int]:
    """By name; further replicas of a service as `billing-2`. `up` is what has started all others but Meta."""
    pids: dict[str, int] = {}
    for name in (*SERVICES, "kafka", "postgres"):
        for number, pid in enumerate(stack["pids"][name], start=1):
            pids[name if number == 1 else f"{name}-{number}"] = pid
    return pids | {"meta": meta, SUPERVISOR: up}


@contextlib.asynccontextmanager
async def process(command: Sequence[str], log: Path | None = None) -> AsyncIterator[asyncio.subprocess.Process]:
    with contextlib.ExitStack() as files:
        out = files.enter_context(log.open("wb")) if log else asyncio.subprocess.PIPE
        settings = {name: value for name, value in os.environ.items() if not name.startswith("SENDWHY_")}
        process = await asyncio.create_subprocess_exec(*command, stdout=out, stderr=out if log else None, env=settings)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            await process.wait()


async def _ready(stack: Path, up: asyncio.subprocess.Process, log: Path) -> Mapping[str, Any]:
    async with asyncio.timeout(READY_SECONDS):
        while (found := _read(stack)) is None:
            assert up.returncode is None, f"sendwhy up ended, see {log}"
            await asyncio.sleep(0.2)
    return found


def _read(path: Path) -> Mapping[str, Any] | None:
    found: Mapping[str, Any] | None = json.loads(path.read_text()) if path.exists() else None
    return found
