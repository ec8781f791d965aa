"""Where faults strike: what each of them gets."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from rig import Rig
from workload import Workload


@dataclass(frozen=True)
class Field:
    """`seconds`: for how long the fault lasts. `chance`: of this fault alone, so that a seed makes the same again."""

    rig: Rig
    workload: Workload
    chance: random.Random
    seconds: float

    async def last(self) -> None:
        await asyncio.sleep(self.seconds)

    @asynccontextmanager
    async def gone(self, service: str) -> AsyncIterator[None]:
        """kill -9 of all replicas of a service; within, none comes back, and at the end all are new."""
        old = {name: self.rig.pid(name) for name in self.rig.processes(service)}
        for name in old:
            self.rig.control.hold(name)
            self.rig.signal(name, signal.SIGKILL)
        try:
            yield
        finally:
            for name in old:
                self.rig.control.release(name)
        for name, pid in old.items():
            await self.rig.replaced(name, pid)

    async def again_and_again(self, shortest: float, longest: float) -> AsyncIterator[None]:
        """Turns with pauses, until its time is over; at least one."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self.seconds
        while True:
            yield
            if loop.time() >= end:
                return
            await asyncio.sleep(self.chance.uniform(shortest, longest))


@asynccontextmanager
async def beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Something goes on meanwhile; what it met is told at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        (ended,) = await asyncio.gather(task, return_exceptions=True)
    if isinstance(ended, Exception):
        raise ended
