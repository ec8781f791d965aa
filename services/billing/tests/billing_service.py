"""billing as a whole: the running app's doors, for tests that share one."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from sendwhy.events import Wire
from sendwhy.topics import TOPICS, Topic, outgoing

TOKENS = "admin-token:admin:*,operator-token:operator:*,viewer-token:viewer:*,foreign-token:admin:elsewhere"


class Service:
    """The running app's doors. Each test has a workspace of its own, since the topics are shared."""

    def __init__(self, http: httpx.AsyncClient, kafka: str) -> None:
        self.http, self.kafka = http, kafka

    async def top_up(self, workspace: str, credits: int, key: str | None = None) -> httpx.Response:
        return await self.post(
            workspace, "top-ups", {"credits": credits, "reference": "invoice 7"}, key=key or workspace
        )

    async def post(
        self, workspace: str, path: str, body: Any, *, key: str | None = None, token: str = "admin-token"
    ) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"} | ({} if key is None else {"idempotency-key": key})
        return await self.http.post(f"/v1/workspaces/{workspace}/{path}", json=body, headers=headers)

    async def get(self, workspace: str, path: str, token: str = "viewer-token", **params: Any) -> httpx.Response:
        headers = {"authorization": f"Bearer {token}"}
        return await self.http.get(f"/v1/workspaces/{workspace}/{path}", headers=headers, params=params)

    async def put_prices(self, workspace: str, prices: Any) -> httpx.Response:
        headers = {"authorization": "Bearer admin-token"}
        return await self.http.put(f"/v1/workspaces/{workspace}/prices", json=prices, headers=headers)

    async def evaluate(self, body: Any, token: str = "viewer-token") -> httpx.Response:
        return await self.http.post("/v1/evaluate", json=body, headers={"authorization": f"Bearer {token}"})

    async def ask(
        self, method: str, path: str, *, content: bytes | None = None, token: str = "admin-token", **headers: str
    ) -> httpx.Response:
        """Anything at all, with JSON as content type unless another is given."""
        given = {"authorization": f"Bearer {token}", "content-type": "application/json"} | headers
        return await self.http.request(method, path, content=content, headers=given)

    async def publish(self, *events: Wire) -> None:
        async with AIOKafkaProducer(bootstrap_servers=self.kafka) as producer:
            for event in events:
                out = outgoing(event, source="test")
                await producer.send_and_wait(out.topic, out.value, key=out.key, headers=list(out.headers))

    async def until(self, topic: Topic, wanted: Callable[[bytes], bool], *, count: int = 1) -> list[bytes]:
        """The first `count` values of the topic, from its start, that are wanted."""
        found: list[bytes] = []
        options = {"bootstrap_servers": self.kafka, "auto_offset_reset": "earliest"}
        async with asyncio.timeout(30), AIOKafkaConsumer(topic, **options) as consumer:
            async for entry in consumer:
                if entry.value is not None and wanted(entry.value):
                    found.append(entry.value)
                if len(found) == count:
                    break
        return found

    async def all_of(self, topic: Topic, wanted: Callable[[bytes], bool]) -> list[bytes]:
        """The values from the topic's beginning to its present end that are wanted."""
        async with AIOKafkaConsumer(bootstrap_servers=self.kafka, auto_offset_reset="earliest") as consumer:
            places = [TopicPartition(topic, number) for number in range(TOPICS[topic].partitions)]
            consumer.assign(places)
            ends = await consumer.end_offsets(places)
            found: list[bytes] = []
            while any([await consumer.position(place) < ends[place] for place in places]):
                for batch in (await consumer.getmany(timeout_ms=200)).values():
                    found += [entry.value for entry in batch if entry.value is not None and wanted(entry.value)]
        return found


def fields(answer: httpx.Response) -> set[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return {entry["field"] for entry in answer.json().get("errors", [])}


def names(workspace: str) -> Callable[[bytes], bool]:
    return lambda value: f'"workspace_id":"{workspace}"'.encode() in value
