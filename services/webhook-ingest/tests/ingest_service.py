"""The service as a process, and what tests do around it: post webhooks, publish, and look at topics."""

import asyncio
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, ConsumerRecord
from aiokafka.admin import AIOKafkaAdminClient
from ingest_webhooks import APP, OTHER_APP, OTHER_SECRET, SECRET, signature
from sendwhy.events import Wire
from sendwhy.kafka import Producer
from sendwhy.metrics import Metrics
from sendwhy.reasons import Service
from sendwhy.recovery import places_of
from sendwhy.settings import KafkaSettings
from sendwhy.stage import consumer_group
from sendwhy.topics import Topic, outgoing

START_SECONDS = 60.0
SEEN_SECONDS = 60.0
VERIFY_TOKEN = "the-verify-token"
SHOPIFY_SECRET = "the-shopify-secret"

Records = list[ConsumerRecord[Any, Any]]


class Ingest:
    """The running service at `url`."""

    def __init__(self, bootstrap: str, database_url: str, out: Path) -> None:
        self.bootstrap, self.database_url, self._out = bootstrap, database_url, out
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.settings = {
            "SENDWHY_KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "SENDWHY_DATABASE_URL": database_url,
            "SENDWHY_HTTP_PORT": str(port),
            "SENDWHY_DRAIN_SECONDS": "0",
            "SENDWHY_META_APP_SECRETS": f"{APP}:{SECRET},{OTHER_APP}:{OTHER_SECRET}",
            "SENDWHY_META_VERIFY_TOKEN": VERIFY_TOKEN,
            "SENDWHY_PRIVACY_KEY": "a key of tests only",
            "SENDWHY_SHOPIFY_WEBHOOK_SECRETS": f"acme:{SHOPIFY_SECRET}",
            "SENDWHY_API_TOKENS": "operator-1:operator:acme,viewer-1:viewer:acme,operator-2:operator:globex"
            ",admin-00:admin:*",
        }

    def start(self, environment: Mapping[str, str]) -> None:
        environment = {**environment, **self.settings}
        command = [sys.executable, "-m", "webhook_ingest"]
        subprocess.run([*command, "migrate"], env=environment, check=True)
        with self._out.open("ab") as stream:
            self._process = subprocess.Popen([*command, "serve"], env=environment, stdout=stream, stderr=stream)
        self.wait_for(lambda: self._is_ready(), START_SECONDS)

    def _is_ready(self) -> bool:
        assert self._process.poll() is None, self._out.read_text()
        try:
            return self.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(30)

    def kill(self) -> None:
        """As the machine's end would: nothing is said or finished."""
        self._process.kill()
        self._process.wait(30)

    def logs(self) -> str:
        return self._out.read_text()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=10, trust_env=False, **more)

    def look(self, path: str, token: str = "viewer-1", **query: Any) -> httpx.Response:
        return self.get(path, params=query, headers={"authorization": f"Bearer {token}"})

    def execute(self, statement: str, *values: Any) -> None:
        """As somebody who may: a statement on the service's own database."""

        async def run() -> None:
            connection = await asyncpg.connect(self.database_url)
            await connection.execute(statement, *values)
            await connection.close()

        asyncio.run(run())

    def post(self, path: str, **more: Any) -> httpx.Response:
        return httpx.post(self.url + path, timeout=60, trust_env=False, **more)

    def hook(self, raw: bytes, secret: str = SECRET, **headers: str) -> int:
        """Post a webhook as Meta does; returns the status."""
        signed = {"x-hub-signature-256": signature(raw, secret), "content-type": "application/json"} | headers
        return self.post("/webhooks/meta", content=raw, headers=signed).status_code

    def publish(self, events: Sequence[Wire]) -> None:
        async def run() -> None:
            producer = Producer(KafkaSettings(kafka_bootstrap_servers=self.bootstrap), Metrics(Service.DISPATCHER))
            await producer.start()
            await producer.publish([outgoing(event, source="test") for event in events])
            await producer.stop()

        asyncio.run(run())

    def records(self, topic: Topic) -> Records:
        """All that stands on a topic now."""
        return asyncio.run(_all_of(self.bootstrap, topic))

    def bodies(self, topic: Topic, text: str) -> list[bytes]:
        """The values on a topic that contain a text."""
        return [record.value for record in self.records(topic) if text.encode() in (record.value or b"")]

    def has_read(self, ends: Mapping[int, int]) -> bool:
        """Whether the parsing half has committed all of webhook.received up to these offsets."""
        reached = asyncio.run(_committed(self.bootstrap, Topic.WEBHOOK_RECEIVED))
        return all(reached.get(partition, 0) >= end for partition, end in ends.items())

    def wait_for(self, found: Callable[[], Any], seconds: float = SEEN_SECONDS) -> Any:
        end = time.monotonic() + seconds
        while not (result := found()):
            assert time.monotonic() < end, self.logs()[-4000:]
            time.sleep(0.1)
        return result


async def _all_of(bootstrap: str, topic: Topic) -> Records:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap, auto_offset_reset="earliest") as consumer:
        # Asked, since another test adds one.
        places = await places_of(consumer, topic)
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: Records = []
        while sum(ends.values()) > sum([await consumer.position(place) for place in places]):
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                found += records
        return found


async def _committed(bootstrap: str, topic: Topic) -> dict[int, int]:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    try:
        offsets = await admin.list_consumer_group_offsets(consumer_group(Service.WEBHOOK_INGEST, topic))
    finally:
        await admin.close()
    return {place.partition: known.offset for place, known in offsets.items()}
