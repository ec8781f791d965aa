"""Every panel of every dashboard, asked of a real Prometheus that scrapes the running stack while messages fail."""

import asyncio
import json
import re
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml
from aiokafka import AIOKafkaProducer

ROOT = Path(__file__).parents[2]
PANELS = [
    (panel["title"], target["expr"])
    for path in (ROOT / "deploy" / "grafana" / "dashboards").glob("*.json")
    for panel in json.loads(path.read_text())["panels"]
    for target in panel["targets"]
]
WAIT_SECONDS = 90
SENDER = "100000000000001"
FAILS_AT_ONCE, FAILS_LATER, FINE = "+525512340001", "+525512340002", "+525512340003"
NOT_ON_WHATSAPP = {"error": {"message": "(#131026) Message undeliverable", "code": 131026, "error_data": {}}}
CAPPED = {"code": 131049, "title": "Meta chose not to deliver", "error_data": {"details": "healthy ecosystem"}}


def resolved(expression: str) -> str:
    """An expression as Grafana sends it for a short time range."""
    return re.sub(r"\$__(rate_interval|range)", "1m", expression).replace("$service", ".*")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def prometheus_url(prometheus: Path, stack: Mapping[str, Any], tmp_path: Path) -> Iterator[str]:
    jobs = [
        {"job_name": name, "static_configs": [{"targets": [url.removeprefix("http://")]}]}
        for name, url in stack["services"].items()
    ]
    config = {
        "global": {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"},
        "rule_files": [str(ROOT / "deploy" / "prometheus" / "rules.yml")],
        "scrape_configs": jobs,
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        str(prometheus),
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (tmp_path / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    yield f"http://{address}"
    process.terminate()
    process.wait(30)


class Outside:
    """What an upstream system, an operator and a Prometheus user can do."""

    def __init__(self, stack: Mapping[str, Any], prometheus: str, client: httpx.AsyncClient) -> None:
        self._stack, self._prometheus, self._client = stack, prometheus, client

    async def api(self, service: str, method: str, path: str, body: Any = None) -> httpx.Response:
        url = f"{self._stack['services'][service]}/v1/workspaces/demo/{path}"
        headers = {"Authorization": f"Bearer {self._stack['admin_token']}", "Idempotency-Key": uuid4().hex}
        return await self._client.request(method, url, json=body, headers=headers)

    async def meta(self, phone: str, scenario: Mapping[str, Any]) -> None:
        url = f"{self._stack['meta']}/_sim/recipients/{phone.removeprefix('+')}"
        (await self._client.put(url, json=scenario)).raise_for_status()

    async def query(self, expression: str) -> list[Any]:
        answer = await self._client.get(f"{self._prometheus}/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        told = answer.json()
        assert told["status"] == "success", told
        result: list[Any] = told["data"]["result"]
        return result

    async def publish(self, values: list[bytes]) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self._stack["kafka"]) as producer:
            for value in values:
                await producer.send_and_wait("send.requested", value, key=b"dashboard")

    async def status(self, message_id: str) -> str | None:
        answer = await self.api("message-log", "GET", f"messages/{message_id}")
        return str(answer.json()["status"]) if answer.is_success else None


@pytest.fixture
async def outside(stack: Mapping[str, Any], prometheus_url: str) -> AsyncIterator[Outside]:
    async with httpx.AsyncClient(trust_env=False, timeout=15) as client:

        async def is_ready() -> bool:
            return (await client.get(f"{prometheus_url}/-/ready")).is_success

        await until(is_ready, "Prometheus is ready")
        yield Outside(stack, prometheus_url, client)


async def until(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    try:
        async with asyncio.timeout(WAIT_SECONDS):
            while True:
                try:
                    if await holds():
                        return
                except httpx.TransportError:
                    pass
                await asyncio.sleep(0.5)
    except TimeoutError:
        pytest.fail(f"not within {WAIT_SECONDS} s: {what}")


def template(message_id: str, phone: str, name: str, origin: Mapping[str, str]) -> bytes:
    content = {
        "type": "template",
        "template": {
            "name": name,
            "language": {"code": "en_US"},
            "components": [{"type": "body", "parameters": [{"type": "text", "text": "4711"}]}],
        },
    }
    to = {"phone": phone} if origin["kind"] == "api" else {"contact_id": "dashboard", "phone": phone}
    request = {"message_id": message_id, "workspace_id": "demo", "to": to, "origin": origin, "content": content}
    return json.dumps(request).encode()


async def one_round(outside: Outside) -> None:
    """A message for each way to end; returns when each has."""
    run = uuid4().hex
    expected = {f"{run}-fine": "read", f"{run}-once": "failed", f"{run}-later": "failed", f"{run}-who": "failed"}
    stranger = json.loads(template(f"{run}-who", FINE, "autumn_sale", {"kind": "campaign", "id": run}))
    stranger["to"] = {"contact_id": f"nobody-{run}", "phone": FINE}
    await outside.publish(
        [
            template(f"{run}-fine", FINE, "order_update", {"kind": "api"}),
            template(f"{run}-once", FAILS_AT_ONCE, "order_update", {"kind": "api"}),
            template(f"{run}-later", FAILS_LATER, "order_update", {"kind": "api"}),
            json.dumps(stranger).encode(),
            b"no request at all",
        ]
    )
    for message_id, status in expected.items():

        async def has_ended(message_id: str = message_id, status: str = status) -> bool:
            return await outside.status(message_id) == status

        await until(has_ended, f"{message_id} is {status}")


@asynccontextmanager
async def waiting_message(outside: Outside) -> AsyncIterator[None]:
    campaign = f"paused-{uuid4().hex}"
    contact = {"phone": FINE, "marketing_state": "SUBSCRIBED", "source": "import", "proof": "form 17"}
    (await outside.api("consent", "PUT", "contacts/dashboard", contact)).raise_for_status()
    (await outside.api("dispatcher", "POST", f"campaigns/{campaign}/pause")).raise_for_status()
    await outside.publish([template(f"{campaign}-1", FINE, "autumn_sale", {"kind": "campaign", "id": campaign})])
    yield
    (await outside.api("dispatcher", "POST", f"messages/{campaign}-1/cancel")).raise_for_status()


@pytest.mark.stack
async def test_every_panel_has_an_answer(outside: Outside) -> None:
    async def is_scraped() -> bool:
        return len(await outside.query("up == 1")) == 5

    await until(is_scraped, "Prometheus reaches all five services")
    await outside.meta(FAILS_AT_ONCE, {"scenario": "answer", "http_status": 400, "body": NOT_ON_WHATSAPP})
    await outside.meta(FAILS_LATER, {"scenario": "failed", "errors": [CAPPED]})
    async with waiting_message(outside):
        # Twice: a counter with labels that first appear with an event has a rate only from its second one on.
        for _ in range(2):
            before = await outside.query("sum(sendwhy_dead_letters_total)")
            await one_round(outside)

            async def is_seen(before: list[Any] = before) -> bool:
                return await outside.query("sum(sendwhy_dead_letters_total)") != before

            await until(is_seen, "Prometheus has seen the round")
        for title, expression in PANELS:

            async def has_data(expression: str = expression) -> bool:
                return bool(await outside.query(resolved(expression)))

            await until(has_data, f"{title}: {expression}")


@pytest.mark.stack
async def test_panels_tell_the_truth(outside: Outside) -> None:
    async def answers() -> bool:
        return len(await outside.query("up == 1")) == 5

    await until(answers, "Prometheus reaches all five services")
    failed = 'sum by (reason) (sendwhy_messages_rejected_total{reason="CUSTOMER_IS_NOT_OPTED_IN"})'
    before = float((await outside.query(failed))[0]["value"][1])
    await one_round(outside)

    async def has_grown() -> bool:
        return float((await outside.query(failed))[0]["value"][1]) == before + 1

    await until(has_grown, "one more message was not opted in")
