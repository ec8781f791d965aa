"""One transaction for what several stages have read meanwhile (ADR 43).

Where stages write the same rows, as the message log's do with the seven events of a message, each transaction of its
own locks, reads, folds and writes a row anew. Together they do it once for all that has come. Where there is something
to gather, stages rest before they read on, so that more of a row's events meet.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import asyncpg

from sendwhy.kafka import BATCH_MAX_RECORDS, busy_rest
from sendwhy.postgres import Connection, Position, store_reached
from sendwhy.topics import Outgoing
from sendwhy.values import value_class

# What comes waits this long for company.
PAUSE_SECONDS = 0.02
# After a turn of so many records as come in a steady flow, its stages rest; not where one had as many as it reads at
# once, and has more of them waiting. They rest longer where turns take longer, as each stage does.
FLOW_RECORDS, REST_SECONDS = 20, 0.25

Act = Callable[[Connection, Sequence[Any]], Awaitable[Sequence[Outgoing]]]


@value_class
class _Part:
    """What one stage adds: its records, and the offsets it has reached by them."""

    records: Sequence[Any]
    next_offsets: dict[Position, int]
    done: asyncio.Future[None]


class Joint:
    """The handler of several stages, which all publish nothing: `handle` gets the records of all that take part.
    `max_records`: how many each of them reads at once; all are in memory until the turn's end."""

    def __init__(
        self, handle: Act, *, group: str, pool: Callable[[], asyncpg.Pool], max_records: int = BATCH_MAX_RECORDS
    ) -> None:
        self.handle, self.max_records = handle, max_records
        self._group, self._pool = group, pool
        self._parts: list[_Part] = []
        self._turns: asyncio.Task[None] | None = None
        self._rest_until = 0.0

    async def take_part(self, records: Sequence[Any], next_offsets: dict[Position, int]) -> None:
        """Returns once these records are handled and committed with others'. Raises what handling any of them raises;
        then nothing of any of them was done."""
        part = _Part(records, next_offsets, asyncio.get_running_loop().create_future())
        self._parts.append(part)
        if self._turns is None:
            self._turns = asyncio.create_task(self._take_turns())
        await part.done

    async def rest(self) -> None:
        """For a stage, before it reads on: what it read now would only wait."""
        await asyncio.sleep(max(0.0, self._rest_until - time.monotonic()))

    async def close(self) -> None:
        """For when no stage runs any more."""
        if self._turns is not None:
            await asyncio.gather(self._turns, return_exceptions=True)

    async def _take_turns(self) -> None:
        parts: list[_Part] = []
        try:
            while self._parts:
                # Stages that rest and one that didn't take part meet in the next turn.
                await self.rest()
                await asyncio.sleep(PAUSE_SECONDS)
                parts, self._parts = self._parts, []
                begins = time.monotonic()
                await self._turn(parts)
                ends = time.monotonic()
                sizes = [len(part.records) for part in parts]
                is_flow = sum(sizes) >= FLOW_RECORDS and max(sizes) < self.max_records
                rest = max(REST_SECONDS, busy_rest(ends - begins))
                self._rest_until = ends + rest if is_flow else 0.0
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
