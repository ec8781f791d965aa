"""One phase of a run: so many messages at a rate, from the first request until the last is whole in the log."""

import asyncio
import json
import os
import sys
import time
from array import array
from dataclasses import asdict, dataclass, field
from typing import Any

import httpx
from aiokafka import AIOKafkaConsumer
from processes import Watch
from sizes import per_message, sizes_of
from system import HERE, Shape, System
from timeline import SAMPLE, Books, Committed, Offsets, Stations, quantiles, steps

LOOK_SECONDS = 0.5
# Without a single message more for so long, the rest is given up and told as missing.
STUCK_SECONDS = 180.0
SLOW_SECONDS = 1.0


@dataclass(frozen=True)
class Phase:
    """`rate`: requests a second, 0 for as fast as Kafka takes them; `flushed`: webhooks are on disk when answered."""

    name: str
    messages: int
    rate: float = 0
    flushed: bool = True


WARM_UP = Phase("warm-up", 1_000, rate=250)


@dataclass
class Result:
    """Figures of a phase. `seconds`: from the first request to the last message's final status in the log; `cpu`:
    seconds by process; `steps`, `answers`: ms by quantile; `memory`, `progress`: (seconds, figure) since the first
    request; `load`: the machine's, before and after; `bytes`: a message's, by table and topic."""

    name: str
    messages: int
    rate: float
    flushed: bool
    seconds: float
    missing: int
    webhooks: int
    refused: int
    doubled_calls: int
    load: tuple[float, float]
    cpu: dict[str, float]
    steps: dict[str, dict[str, float]] = field(default_factory=dict)
    answers: dict[str, float] = field(default_factory=dict)
    slow_answers: float = 0.0
    memory: list[tuple[float, dict[str, float]]] = field(default_factory=list)
    progress: list[tuple[float, int]] = field(default_factory=list)
    bytes: dict[str, dict[str, float]] = field(default_factory=dict)

    @property
    def pace(self) -> float:
        """Messages/s from the first request to the last final status."""
        return (self.messages - self.missing) / self.seconds

    @property
    def cpu_us(self) -> dict[str, float]:
        """Microseconds per message by process."""
        return {name: seconds / self.messages * 1e6 for name, seconds in self.cpu.items()}

    def to_json(self) -> dict[str, Any]:
        whole = {"messages_per_second": self.pace, "cpu_us": self.cpu_us, "cpu_us_all": sum(self.cpu_us.values())}
        return asdict(self) | whole


@dataclass
class Measured:
    """What was seen of a phase while it went."""

    moments: "array[float]"
    progress: list[tuple[float, int]]
    cpu: dict[str, float]
    load: tuple[float, float]
    memory: list[tuple[float, dict[str, float]]]


class Runner:
    def __init__(self, system: System, shape: Shape) -> None:
        self._system, self._shape = system, shape
        self._next = 0
        self._known = Books(0, 0, 0, 0, [], [], [], [])

    async def run(self, phase: Phase) -> Result:
        numbers = range(self._next, self._next + phase.messages)
        self._next = numbers.stop
        await self._system.flush_webhooks(flushed=phase.flushed)
        committed = Committed(self._system.database("message-log"))
        await committed.start()
        async with AIOKafkaConsumer(bootstrap_servers=self._system.kafka) as consumer:
            offsets, before = Offsets(consumer), await sizes_of(self._system)
            await offsets.mark()
            measured = await self._send(phase, numbers, committed)
            stations, books = await self._stations(numbers, measured, committed, offsets)
            result = self._result(phase, measured, stations, books)
            result.bytes = per_message(before, await sizes_of(self._system), phase.messages)
        await committed.stop()
        self._known = books
        return result

    async def _send(self, phase: Phase, numbers: range, committed: Committed) -> Measured:
        file = self._system.state / f"moments-{numbers.start}"
        watch, load, read = Watch(self._system.pids), os.getloadavg()[0], await committed.read()
        watch.start()
        command = [sys.executable, str(HERE / "lean_load.py"), "--bootstrap", self._system.kafka]
        told = {"first": numbers.start, "count": len(numbers), "rate": phase.rate, "moments": file}
        told |= {"contacts": self._shape.contacts, "senders": self._shape.senders, "campaign": f"c{numbers.start}"}
        options = [f"--{name}={value}" for name, value in told.items()]
        process = await asyncio.create_subprocess_exec(*command, *options, stdout=asyncio.subprocess.PIPE)
        progress = await self._until_read(committed, read, len(numbers))
        out, _ = await process.communicate()
        cpu = watch.stop() | {"load": json.loads(out)["cpu"]}
        moments = array("d", await asyncio.to_thread(file.read_bytes))
        return Measured(moments, progress, cpu, (load, os.getloadavg()[0]), watch.memory)

    @staticmethod
    async def _until_read(committed: Committed, before: int, messages: int) -> list[tuple[float, int]]:
        """(unix seconds, messages that the log shows as read) until all are, or nothing moves any more."""
        progress = [(time.time(), 0)]
        moved = time.monotonic()
        while progress[-1][1] < messages and time.monotonic() - moved < STUCK_SECONDS:
            await asyncio.sleep(LOOK_SECONDS)
            now = (time.time(), await committed.read() - before)
            if now[1] != progress[-1][1]:
                moved = time.monotonic()
            progress.append(now)
        return progress

    async def _stations(
        self, numbers: range, measured: Measured, committed: Committed, offsets: Offsets
    ) -> tuple[dict[str, dict[int, float]], Books]:
        books = await self._books(numbers)
        step = max(1, len(numbers) // SAMPLE)
        sample = range(numbers.start, numbers.stop, step)
        found = await offsets.records(numbers, step)
        found["visible"] = await committed.visible(sample)
        for name, times in (
            ("requested", measured.moments),
            ("called", books.called),
            ("posted", books.posted[2::3]),
            ("answered", books.answered[2::3]),
        ):
            at = {number: times[number - numbers.start] for number in sample if number - numbers.start < len(times)}
            found[name] = {number: moment for number, moment in at.items() if moment}
        return found, books

    async def _books(self, numbers: range) -> Books:
        asked = {"first": numbers.start, "end": numbers.stop, "posts": self._known.webhooks}
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            answer = await http.get(f"{self._system.meta}/_books", params=asked)
        return Books(**answer.json())

    def _result(self, phase: Phase, measured: Measured, stations: Stations, books: Books) -> Result:
        first = measured.moments[0]
        # The last look is up to half a second late; each message's own moment is not.
        last = max(stations["visible"].values(), default=measured.progress[-1][0])
        answers = books.answer_seconds
        return Result(
            **asdict(phase),
            seconds=last - first,
            missing=phase.messages - measured.progress[-1][1],
            webhooks=books.webhooks - self._known.webhooks,
            refused=books.refused - self._known.refused,
            doubled_calls=books.doubled - self._known.doubled,
            load=measured.load,
            cpu=measured.cpu,
            steps={name: quantiles(seconds) for name, seconds in steps(stations)},
            answers=quantiles(answers),
            slow_answers=sum(1 for seconds in answers if seconds > SLOW_SECONDS) / max(1, len(answers)),
            memory=measured.memory,
            progress=[(round(at - first, 2), count) for at, count in measured.progress],
        )
