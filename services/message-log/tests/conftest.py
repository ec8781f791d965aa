"""One message log for the whole session, as a process of its own on real Kafka and PostgreSQL.

Its consumer group's offsets live in Kafka, so a second one with an empty database would rightly refuse to start: the
tests keep apart by workspaces and message ids instead.
"""

import asyncio
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
import httpx
import pytest

# pytest's importlib mode puts no folder on the path, and the builders are shared by several test files.
sys.path.insert(0, str(Path(__file__).parent))

import everything as filled
import message_log as package
from message_log_builders import PRIVACY_KEY, TOKENS
from other_services import ACTING_KEY, Others, others_serving
from sendwhy.kafka import Producer, create_topics
from sendwhy.metrics import Metrics
from sendwhy.reasons import Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import Outgoing

START_SECONDS = 180.0
SEEN_SECONDS = 30.0

Publish = Callable[[Sequence[Outgoing]], None]


class MessageLog:
    """The running service. `api` answers as admin of all workspaces unless a call names another token."""

    def __init__(
        self, url: str, kafka: KafkaSettings, database_url: str, environment: dict[str, str], out: Path
    ) -> None:
        self.url, self.database_url = url, database_url
        self.kafka, self._environment, self._out = kafka, environment, out
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, *words: str) -> int:
        """A command of the service beside the running one; returns its exit code."""
        command = [sys.executable, "-m", "message_log", *words]
        return subprocess.run(command, env=self._environment, check=False, capture_output=True).returncode

    def start(self) -> None:
        with self._out.open("ab") as stream:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "message_log", "serve"], env=self._environment, stdout=stream, stderr=stream
            )
        _wait_until_ready(self, self._process, self._out)

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(30)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def get(self, path: str, token: str = "admin-token-1", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} | more.pop("headers", {})
        return httpx.get(self.url + path, headers=headers, timeout=60, trust_env=False, **more)

    def post(self, path: str, token: str = "admin-token-1", **more: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} | more.pop("headers", {})
        return httpx.post(self.url + path, headers=headers, timeout=60, trust_env=False, **more)

    def publish(self, records: Sequence[Outgoing]) -> None:
        async def run() -> None:
            producer = Producer(self.kafka, Metrics(Service.CONSENT))
            await producer.start()
            try:
                await producer.publish(records)
            finally:
                await producer.stop()

        # In a thread of its own: Playwright has a loop running in the tests' thread.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(asyncio.run, run()).result()

    def wait_for(
        self,
        path: str,
        when: Callable[[Any], bool] = lambda answer: True,
        token: str = "admin-token-1",
        status: int = 200,
    ) -> Any:
        """The JSON answer once it has that status and `when` holds for it."""
        end = time.monotonic() + SEEN_SECONDS
        while True:
            answer = self.get(path, token)
            if answer.status_code == status and when(answer.json()):
                return answer.json()
            assert time.monotonic() < end, f"{path} still answers {answer.status_code}: {answer.text[:2000]}"
            time.sleep(0.05)


@pytest.fixture
def migrations() -> Path:
    return Path(package.__file__ or "").parent / "migrations"


@pytest.fixture
async def connection(migrated_database: str) -> AsyncIterator[asyncpg.Connection]:
    """To a database of its own with the log's tables, beside any service."""
    connection = await asyncpg.connect(migrated_database)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def others() -> Iterator[Others]:
    """The other services, as the pages ask them; consent and dispatcher below a path of their name."""
    with others_serving() as serving:
        yield serving


@pytest.fixture(scope="session")
def message_log(
    kafka_bootstrap: str, postgres_url: str, others: Others, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MessageLog]:
    kafka = KafkaSettings(kafka_bootstrap_servers=kafka_bootstrap)
    asyncio.run(create_topics(kafka))
    name = f"message_log_{uuid.uuid4().hex}"
    asyncio.run(_create_database(postgres_url, name))
    database_url = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    port = _free_port()
    environment = os.environ | {
        "SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka_bootstrap,
        "SENDWHY_DATABASE_URL": database_url,
        "SENDWHY_HTTP_PORT": str(port),
        "SENDWHY_DRAIN_SECONDS": "0",
        "SENDWHY_API_TOKENS": TOKENS,
        "SENDWHY_PRIVACY_KEY": PRIVACY_KEY,
        "SENDWHY_ACTING_KEY": ACTING_KEY,
        "SENDWHY_CONSENT_URL": f"{others.url}/consent",
        "SENDWHY_BILLING_URL": others.url,
        "SENDWHY_DISPATCHER_URL": f"{others.url}/dispatcher",
        "SENDWHY_WEBHOOK_INGEST_URL": others.url,
    }
    out = tmp_path_factory.mktemp("message-log") / "out.log"
    log = MessageLog(f"http://127.0.0.1:{port}", kafka, database_url, environment, out)
    assert log.run("migrate") == 0
    try:
        log.start()
        yield log
    finally:
        log.stop()


@pytest.fixture(scope="session")
def everything(message_log: MessageLog, others: Others) -> MessageLog:
    """The message log once it shows all that everything.py tells."""
    others.answers |= filled.answers()
    message_log.publish(filled.records())
    expected = {"failed": 7, "waiting": 1, "read": 1}
    for word, count in expected.items():
        path = f"{filled.API}/messages?range=all&status={word}"
        message_log.wait_for(path, lambda answer, count=count: len(answer["items"]) == count)  # type: ignore[misc]
    for name in ("webhooks", "webhooks?refused=true", "dead-letters?message_id=e-dead", "contacts?q=In%C3%A9s"):
        message_log.wait_for(f"{filled.API}/{name}", lambda answer: bool(answer["items"]))
    message_log.wait_for(f"{filled.API}/threads", lambda answer: len(answer["items"]) >= 2)
    for path, body in (("audience-checks?name=" + quote(filled.EVIL), filled.audience_file()), (_AGAIN, b"")):
        answer = message_log.post(f"{filled.API}/{path}", content=body)
        assert answer.status_code == 202, answer.text
        message_log.wait_for(answer.headers["location"], lambda view: view["state"] == "judged")
    return message_log


_AGAIN = "send-again?range=all"


def _wait_until_ready(log: MessageLog, process: "subprocess.Popen[bytes]", out: Path) -> None:
    end = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, out.read_text()
        assert time.monotonic() < end, out.read_text()
        try:
            if log.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def _create_database(url: str, name: str) -> None:
    connection = await asyncpg.connect(url)
    await connection.execute(f"create database {name}")
    await connection.close()
