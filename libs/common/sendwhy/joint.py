"""One transaction for what several stages have read meanwhile (ADR 43).

Where stages write the same rows, as the message log's do with the seven events of a message, each transaction of its
own locks, reads, folds and writes a row anew. Together they do it once for all that has come, and the busier it is, the
longer they gather, so that more of a row's events meet.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from sendwhy.postgres import Connection, Position, store_reached
from sendwhy.topics import Outgoing
from sendwhy.values import value_class

# After a rest, what comes waits this long for company; at work as long as the last turn took, and no longer than this.
PAUSE_SECONDS, PAUSE_SECONDS_MAX = 0.02, 1.0
# A stage that has so many records has more of them waiting: nothing is gained by waiting for others.
MANY_RECORDS = 500

Act = Callable[[Connection, Sequence[Any]], Awaitable[Sequence[Outgoing]]]


@value_class
class _Part:
    """What one stage adds: its records, and the offsets it has reached by them."""

    records: Sequence[Any]
    next_offsets: dict[Position, int]
    done: asyncio.Future[None]


class Joint:
    """The handler of several stages, which all publish nothing: `handle` gets the records of all that take part."""

    def __init__(self, handle: Act, *, group: str, pool: Callable[[], asyncpg.Pool]) -> None:
        self.handle, self._group, self._pool = handle, group, pool
        self._parts: list[_Part] = []
        self._turns: asyncio.Task[None] | None = None
        self._pause, self._ended = PAUSE_SECONDS, time.monotonic()

    async def take_part(self, records: Sequence[Any], next_offsets: dict[Position, int]) -> None:
        """Returns once these records are handled and committed with others'. Raises what handling any of them raises;
        then nothing of any of them was done."""
        part = _Part(records, next_offsets, asyncio.get_running_loop().create_future())
        self._parts.append(part)
        if self._turns is None:
            self._turns = asyncio.create_task(self._take_turns())
        await part.done

    async def close(self) -> None:
        """For when no stage runs any more."""
        if self._turns is not None:
            await asyncio.gather(self._turns, return_exceptions=True)

    async def _take_turns(self) -> None:
        parts: list[_Part] = []
        if time.monotonic() - self._ended > self._pause:
            self._pause = PAUSE_SECONDS
        try:
            while self._parts:
                await asyncio.sleep(self._pause)
                parts, self._parts = self._parts, []
                began = time.monotonic()
                await self._turn(parts)
                self._ended = time.monotonic()
                has_many = any(len(part.records) >= MANY_RECORDS for part in parts)
                took = PAUSE_SECONDS if has_many else self._ended - began
                self._pause = min(max(took, PAUSE_SECONDS), PAUSE_SECONDS_MAX)
        finally:
            self._turns = None
            for part in (*parts, *self._parts):
                part.done.cancel()

    async def _turn(self, parts: Sequence[_Part]) -> None:
        try:
            await self._transact(parts)
        except Exception as error:  # noqa: BLE001 - each stage judges it
            for part in _awaited(parts):
                part.done.set_exception(error)
        else:
            for part in _awaited(parts):
                part.done.set_result(None)

    async def _transact(self, parts: Sequence[_Part]) -> None:
        records = [record for part in parts for record in part.records]
        reached = {place: offset for part in parts for place, offset in part.next_offsets.items()}
        async with self._pool().acquire(timeout=30) as connection, connection.transaction():
            if records:
                await self.handle(connection, records)
            await store_reached(connection, self._group, reached)


def _awaited(parts: Sequence[_Part]) -> list[_Part]:
    """Without those whose stage has been cancelled."""
    return [part for part in parts if not part.done.done()]
