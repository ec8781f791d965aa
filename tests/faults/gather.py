"""The last look at a run: once all is quiet, everything that the judge reads is written into the run's folder."""

import asyncio
import contextlib
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from actions import Tenant
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from groups import places_of
from history import TOPICS, Record, write_api, write_lags, write_records
from outside import until
from rig import Json, Rig

PAGE = 500
QUIET_SECONDS = 2.0
REBUILT_SECONDS = 900.0


@dataclass
class Quiet:
    """Looks whether all is quiet. `say` tells people what is not."""

    rig: Rig
    tenants: Sequence[Tenant]
    say: Callable[[str], None]
    _since: str = "0"
    """All webhooks before are delivered."""

    async def wait(self, seconds: float) -> str:
        """Until it is quiet twice in a row; what was in the way when the time was up, or nothing."""
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        quiet, told = 0, ""
        while quiet < 2:
            what = await self._look()
            quiet = 0 if what else quiet + 1
            if what and what != told:
                self.say(f"waiting: {what}")
                told = what
            if what and loop.time() > end:
                return what
            await asyncio.sleep(QUIET_SECONDS)
        return ""

    async def _look(self) -> str:
        """What still goes on, or nothing: a process that isn't ready, lag, webhooks not delivered, messages without an
        outcome."""
        try:
            if not await self.rig.all_ready():
                return "not all are ready"
            if lag := await self.rig.lag():
                return f"lag {lag:,}"
            if undelivered := await self._undelivered():
                return f"{undelivered:,} webhooks are not delivered"
            if without := sum([await _open(tenant) for tenant in self.tenants]):
                return f"{without:,} messages have no outcome"
        except (httpx.HTTPError, AssertionError, OSError, KafkaError, TimeoutError) as error:
            return f"{type(error).__name__}: {str(error)[:200]}"
        return ""

    async def _undelivered(self) -> int:
        url = f"{self.rig.meta_url}/_sim/webhooks?since={self._since}"
        count, first = 0, None
        async with self.rig.http.stream("GET", url, timeout=300) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                # A line's head is the simulator's own; what is in its body can't look the same, unquoted.
                if '"delivered": false' in line:
                    count += 1
                    first = first or line.partition('"at": "')[2].partition('"')[0]
        self._since = first or self._since
        return count


async def _open(tenant: Tenant) -> int:
    counts = (await tenant.ok("GET", "message-log", "/message-counts"))["by_status"]
    return int(counts.get("sending", 0)) + int(counts.get("waiting", 0))


async def gather(rig: Rig, tenants: list[Tenant], folder: Path) -> None:
    await _topics(rig, folder)
    for what in ("calls", "webhooks"):
        await _book(rig, what, folder)
    for tenant in tenants:
        await _api(tenant, folder)
    write_lags(folder, await rig.groups.lags())
    await _metrics(rig, folder)


async def _topics(rig: Rig, folder: Path) -> None:
    for topic in TOPICS:
        records = [record async for record in _records(rig, topic)]
        write_records(folder, topic, records)


async def _records(rig: Rig, topic: str) -> AsyncIterator[Record]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=rig.bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=8 * 2**20,
    )
    await consumer.start()
    try:
        places = await places_of(consumer, topic)
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        await consumer.seek_to_beginning(*places)
        while any([await consumer.position(place) < ends[place] for place in places]):
            for batch in (await consumer.getmany(timeout_ms=500, max_records=5_000)).values():
                for each in batch:
                    headers = tuple((name, bytes(value)) for name, value in each.headers)
                    where = (each.partition, each.offset, each.timestamp)
                    yield Record(topic, *where, each.key, each.value, headers)
    finally:
        await consumer.stop()


async def _book(rig: Rig, what: str, folder: Path) -> None:
    with (folder / f"{what}.jsonl").open("wb") as file:
        async with rig.http.stream("GET", f"{rig.meta_url}/_sim/{what}", timeout=300) as answer:
            answer.raise_for_status()
            async for chunk in answer.aiter_bytes():
                file.write(chunk)


async def _api(tenant: Tenant, folder: Path) -> None:
    async def senders() -> list[Json]:
        return [await tenant.ok("GET", "dispatcher", f"/senders/{tenant.sender_id}")]

    reads: dict[str, Coroutine[Any, Any, Any]] = {
        "messages": _pages(tenant, "message-log", "/messages"),
        "ledger": _pages(tenant, "billing", "/ledger"),
        "account": tenant.ok("GET", "billing", "/account"),
        "queue": tenant.ok("GET", "dispatcher", "/queue"),
        "senders": senders(),
    }
    for what, read in reads.items():
        # What a service that never came back doesn't tell is missing, and judged so.
        with contextlib.suppress(httpx.HTTPError, AssertionError):
            write_api(folder, what, tenant.workspace, await read)


async def _pages(tenant: Tenant, service: str, path: str) -> list[Json]:
    rows: list[Json] = []
    cursor = ""
    while True:
        page = await tenant.ok("GET", service, f"{path}?limit={PAGE}{cursor}")
        rows += page["items"]
        if not page["next_cursor"]:
            return rows
        cursor = f"&cursor={page['next_cursor']}"


async def _metrics(rig: Rig, folder: Path) -> None:
    (folder / "metrics").mkdir(exist_ok=True)
    for name in rig.processes():
        with contextlib.suppress(httpx.HTTPError):
            told = await rig.http.get(f"{rig.url(name)}/metrics")
            (folder / "metrics" / f"{name}.txt").write_text(told.text)


def keep_logs(rig: Rig, folder: Path) -> None:
    (folder / "logs").mkdir(exist_ok=True)
    for log in rig.state.logs.glob("*.log*"):
        name, _, age = log.name.partition(".log")
        shutil.copyfile(log, folder / "logs" / f"{name}{age}.log")


async def rebuild_the_log(rig: Rig, tenants: list[Tenant], folder: Path) -> None:
    """The message log made anew from the topics, in its own database: what it shows must be the same."""
    names = rig.processes("message-log")
    old = {name: rig.pid(name) for name in names}
    environment = rig.environment_of("message-log")
    for name in names:
        rig.control.hold(name)
        rig.end(name)

    async def is_emptied() -> bool:
        # Refused until Kafka has noticed that the replicas are gone.
        command = [sys.executable, "-m", "message_log", "rebuild", "--yes"]
        done = await asyncio.to_thread(
            subprocess.run, command, env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        return done.returncode == 0

    await until(is_emptied, "the message log is emptied", 180)
    for name in names:
        rig.control.release(name)
    for name in names:
        await rig.replaced(name, old[name])
    await rig.ready(*names)

    async def has_read_all() -> bool:
        return await rig.lag() == 0

    await until(has_read_all, "the message log has read everything again", REBUILT_SECONDS)
    for tenant in tenants:
        messages = await _pages(tenant, "message-log", "/messages")
        write_api(folder, "messages", tenant.workspace, messages, rebuilt=True)
