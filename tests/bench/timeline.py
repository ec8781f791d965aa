"""When each message passed each station, by clocks that were there anyway: Kafka's own time of a record (LogAppendTime,
whole milliseconds), lean Meta's books, and the transaction that changed the message's row in the log last.
"""

import asyncio
import bisect
import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import asyncpg
from aiokafka import AIOKafkaConsumer, TopicPartition
from lean_load import WORKSPACE
from sendwhy.topics import TOPICS, Topic

LOOK_SECONDS = 0.2
SAMPLE = 20_000
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
_STATUS = re.compile(rb'"status":\s*"(\w+)"')
_WATCHED = (Topic.SEND_CONSENTED, Topic.SEND_FUNDED, Topic.STATUS_UPDATED)
Stations = dict[str, dict[int, float]]


class Committed:
    """Looks five times a second which transactions are visible: so it is known since when each change of a row is."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._looks: list[tuple[float, int, int, frozenset[int]]] = []
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        self._connection = await asyncpg.connect(self._address)
        self._counter = await asyncpg.connect(self._address)
        self._task = asyncio.create_task(self._look())

    async def _look(self) -> None:
        while True:
            low, high, running = (await self._connection.fetchval("select pg_current_snapshot()::text")).split(":")
            ids = frozenset(map(int, running.split(","))) if running else frozenset()
            self._looks.append((time.time(), int(low), int(high), ids))
            await asyncio.sleep(LOOK_SECONDS)

    async def read(self) -> int:
        """How many messages the log has as read: counted as its pages count them."""
        count: int | None = await self._counter.fetchval(_READ, WORKSPACE)
        return count or 0

    async def stop(self) -> None:
        assert self._task is not None
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task
        await self._connection.close()
        await self._counter.close()

    def seen_since(self, transaction: int) -> float | None:
        """Unix seconds of the first look that had it."""
        start = bisect.bisect_right(self._looks, transaction, key=lambda look: look[2])
        for at, _low, high, running in self._looks[start:]:
            if transaction < high and transaction not in running:
                return at
        return None

    async def visible(self, numbers: Sequence[int]) -> dict[int, float]:
        """Since when the log has the message whole."""
        ids = [f"m{number}" for number in numbers]
        rows = await self._counter.fetch(
            "select message_id, changed_by from message where workspace_id = $1 and message_id = any($2::text[])",
            WORKSPACE,
            ids,
        )
        seen = {int(row["message_id"][1:]): self.seen_since(row["changed_by"]) for row in rows}
        return {number: at for number, at in seen.items() if at is not None}


_READ = """
select sum(count)::bigint from (
    select count from message_hour where workspace_id = $1 and outcome = 'read'
    union all select count from message_cell_change where workspace_id = $1 and outcome = 'read') counted
"""


@dataclass
class Books:
    """What lean Meta saw: `calls` and the next three in all; of a phase, times by number less the first one, 0 where
    nothing was, and how long each POST took until it was answered 200, its repeats included."""

    calls: int
    doubled: int
    webhooks: int
    refused: int
    called: list[float]
    posted: list[float]
    answered: list[float]
    answer_seconds: list[float]


@dataclass
class Offsets:
    """Where the topics ended when the phase began."""

    consumer: AIOKafkaConsumer
    ends: Mapping[TopicPartition, int] = field(default_factory=dict)

    async def now(self) -> Mapping[TopicPartition, int]:
        places = [TopicPartition(topic, number) for topic in _WATCHED for number in range(TOPICS[topic].partitions)]
        ends: Mapping[TopicPartition, int] = await self.consumer.end_offsets(places)
        return ends

    async def mark(self) -> None:
        self.ends = await self.now()

    async def records(self, numbers: range, step: int) -> Stations:
        """When Kafka stored the sampled messages' consented, funded, accepted, sent, delivered and read."""
        found: Stations = {}
        until = {place: end for place, end in (await self.now()).items() if end > self.ends[place]}
        self.consumer.assign(list(until))
        for place in until:
            self.consumer.seek(place, self.ends[place])
        while until:
            for place, records in (await self.consumer.getmany(timeout_ms=1_000, max_records=20_000)).items():
                for record in records:
                    number = int(record.key[1:]) if record.key and record.key[1:].isdigit() else -1
                    if number in numbers and (number - numbers.start) % step == 0:
                        found.setdefault(_station(record.topic, record.value), {}).setdefault(
                            number, record.timestamp / 1000
                        )
                if records and records[-1].offset + 1 >= until.get(place, 0):
                    until.pop(place, None)
        return found


def _station(topic: str, value: bytes | None) -> str:
    if topic != Topic.STATUS_UPDATED:
        return topic.removeprefix("send.")
    status = _STATUS.search(value or b"")
    return status[1].decode() if status else "other"


def steps(at: Stations) -> Iterator[tuple[str, list[float]]]:
    """The seconds between stations, as people read a message's way; posted and answered are those of `read`."""
    ways = (
        ("consent: requested → consented", "requested", "consented"),
        ("billing: consented → funded", "consented", "funded"),
        ("dispatcher: funded → called", "funded", "called"),
        ("Meta and dispatcher: called → accepted told", "called", "accepted"),
        ("door: webhook posted → answered", "posted", "answered"),
        ("parser: webhook answered → read told", "answered", "read"),
        ("log: read told → whole in the log", "read", "visible"),
        ("request to Meta: requested → called", "requested", "called"),
        ("end to end: requested → whole in the log", "requested", "visible"),
    )
    for name, start, end in ways:
        begun, ended = at.get(start, {}), at.get(end, {})
        yield name, [ended[number] - begun[number] for number in begun.keys() & ended.keys()]


def quantiles(seconds: Sequence[float]) -> dict[str, float]:
    """In ms; empty where there is nothing."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    return {
        name: round(ordered[min(len(ordered) - 1, int(len(ordered) * q))] * 1000, 1) for name, q in QUANTILES.items()
    }
