"""Where faults strike: what each of them gets."""

import asyncio
import random
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
