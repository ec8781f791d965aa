"""Which replica drives which sender: session locks on one connection of its own, senders shared fairly."""

import asyncio
import math
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import structlog
from sendwhy.logs import describe
from sendwhy.postgres import SERVER_SETTINGS, TRANSIENT_ERRORS
from sendwhy.service import Runtime

from dispatcher import store, sync_store
from dispatcher.driver import ALIVE_SECONDS, LOCK_SECONDS, Driver
from dispatcher.limits import PairPace

log = structlog.get_logger("sendwhy")
LOCK_SPACE = 2**62
STOP_SECONDS = 15.0


def lock_key(sender_id: str) -> int:
    """The advisory lock of a sender; ids are digits, so that two senders don't meet on one key."""
    return int(sender_id) % LOCK_SPACE


class Fleet:
    """This replica's drivers. A lost lock connection loses all locks: the drivers stop, their fences hold."""

    def __init__(self, runtime: Runtime, make_driver: Callable[[str], Driver]) -> None:
        self._runtime, self._make_driver = runtime, make_driver
        self._drivers: dict[str, tuple[Driver, asyncio.Task[None]]] = {}

    def wake(self, sender_id: str) -> None:
        """Tell a sender's driver, if it runs here, that something is due; others look by themselves twice a second."""
        known = self._drivers.get(sender_id)
        if known is not None:
            known[0].wake.set()

    def pairs(self, sender_id: str) -> PairPace | None:
        """The paces of a sender's pairs; None where another replica drives it."""
        known = self._drivers.get(sender_id)
        return None if known is None else known[0].pairs()

    async def tell(self) -> None:
        """Let all replicas know what this one really sends."""
        sent = {sender_id: driver.sent_last_minute() for sender_id, (driver, _) in self._drivers.items()}
        if sent:
            async with self._runtime.pool.acquire(timeout=30) as connection:
                await sync_store.tell_driving(connection, f"{self._runtime.settings.replica}", sent)

    async def run(self) -> None:
        while True:
            connection = None
            try:
                connection = await self._connect()
                while True:
                    await self._share_out(connection)
                    await asyncio.sleep(LOCK_SECONDS)
            except TRANSIENT_ERRORS as error:
                log.warning("the lock connection failed, drivers stop", error=describe(error))
            finally:
                await self._stop(list(self._drivers))
                if connection is not None:
                    with suppress(*TRANSIENT_ERRORS):
                        await connection.close(timeout=3)
            await asyncio.sleep(LOCK_SECONDS)

    async def _connect(self) -> asyncpg.Connection:
        url = self._runtime.settings.database_url.get_secret_value()
        settings = {**SERVER_SETTINGS, "application_name": "sendwhy-dispatcher-locks"}
        return await asyncpg.connect(url, timeout=10, command_timeout=10, server_settings=settings)

    async def _share_out(self, connection: asyncpg.Connection) -> None:
        name = f"{self._runtime.settings.replica}"
        alive = await store.seen_replicas(connection, name, ALIVE_SECONDS)
        senders = await store.sender_ids(connection)
        share = math.ceil(len(senders) / max(1, alive))
        ended = [sender for sender, (_, task) in self._drivers.items() if task.done() or sender not in senders]
        surplus = [sender for sender in self._drivers if sender not in ended][share:]
        await self._stop([*ended, *surplus])
        for sender in [*ended, *surplus]:
            await connection.execute("select pg_advisory_unlock($1)", lock_key(sender))
        for sender in senders:
            free = sender not in self._drivers and len(self._drivers) < share
            if free and await connection.fetchval("select pg_try_advisory_lock($1)", lock_key(sender)):
                self._start(sender)

    def _start(self, sender_id: str) -> None:
        driver = self._make_driver(sender_id)
        self._drivers[sender_id] = (driver, asyncio.create_task(driver.run(), name=f"driver {sender_id}"))

    async def _stop(self, sender_ids: list[str]) -> None:
        stopping = [self._drivers.pop(sender) for sender in sender_ids if sender in self._drivers]
        for driver, _ in stopping:
            driver.stop()
        tasks = [task for _, task in stopping]
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=STOP_SECONDS)
            for task in late:
                task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log.error("a driver failed", exc_info=result)
