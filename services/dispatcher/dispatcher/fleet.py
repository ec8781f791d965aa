"""Which replica drives which sender: session locks on one connection of its own, senders shared fairly.

A take-over raises the fence over the very connection that holds the lock: a replica that was frozen in between, and
whose lock has gone to another, finds that connection closed.
"""

import asyncio
import math
import time
from collections.abc import Callable
from contextlib import suppress

import asyncpg
import structlog
from sendwhy.logs import describe
from sendwhy.postgres import SERVER_SETTINGS, TRANSIENT_ERRORS, time_of
from sendwhy.service import Runtime

from dispatcher import claims, queue_store, store, sync_store
from dispatcher.clock import utc_now
from dispatcher.driver import ALIVE_SECONDS, LOCK_SECONDS, Driver
from dispatcher.driving import Doing, Told, is_to_be_told
from dispatcher.lease import SILENCE_ENDS_SESSIONS, Lease
from dispatcher.limits import PairPace
from dispatcher.syncs import is_due

log = structlog.get_logger("sendwhy")
LOCK_SPACE = 2**62
STOP_SECONDS = 15.0
# Who waits longer for a sender's row waits for somebody frozen, or at long work: the other senders come first.
TAKE_OVER_LOCK_SECONDS = 1


def lock_key(sender_id: str) -> int:
    """The advisory lock of a sender; ids are digits, so that two senders don't meet on one key."""
    return int(sender_id) % LOCK_SPACE


class Fleet:
    """This replica's drivers. A lost lock connection loses all locks: the drivers stop, their fences hold."""

    def __init__(self, runtime: Runtime, make_driver: Callable[[str], Driver]) -> None:
        self._runtime, self._make_driver = runtime, make_driver
        self._drivers: dict[str, tuple[Driver, asyncio.Task[None]]] = {}
        self._stopping: set[str] = set()
        self._lease = Lease()
        self._told: dict[str, tuple[Driver, Told]] = {}
        self._to_sync: set[str] = set()

    def wake(self, sender_id: str) -> None:
        """Tell a sender's driver, if it runs here, that something is due; what others queue is found by `look`."""
        known = self._drivers.get(sender_id)
        if known is not None:
            known[0].wake.set()

    def pairs(self, sender_id: str) -> PairPace | None:
        """The paces of a sender's pairs; None where another replica drives it."""
        known = self._drivers.get(sender_id)
        return None if known is None else known[0].pairs()

    async def tell(self) -> None:
        """Let all replicas know what this one's numbers do, as far as that is to be told."""
        now, at = time.monotonic(), utc_now()
        drivers = {sender_id: driver for sender_id, (driver, _) in self._drivers.items()}
        doing = {one: Doing(driver.sent_last_minute(), driver.resting()) for one, driver in drivers.items()}
        # Another replica may have driven, and told of, a number that came back.
        told = {one: known for one, (driver, known) in self._told.items() if drivers.get(one) is driver}
        news = {one: what for one, what in doing.items() if is_to_be_told(told.get(one), what, now)}
        if news:
            sent = {one: what.sent_last_minute for one, what in news.items()}
            rests = {one: what.rest.told(now, at) for one, what in news.items() if what.rest is not None}
            async with self._runtime.pool.acquire(timeout=30) as connection:
                await sync_store.tell_driving(connection, f"{self._runtime.settings.replica}", sent, rests)
        told |= {one: Told(what, now) for one, what in news.items()}
        self._told = {one: (drivers[one], known) for one, known in told.items()}

    async def look(self) -> None:
        """Twice a second, one statement for all: drivers whose sender has nothing to do rest, the others look."""
        drivers = {sender_id: driver for sender_id, (driver, _) in self._drivers.items()}
        if not drivers:
            return
        async with self._runtime.pool.acquire(timeout=30) as connection:
            at_work = await claims.senders_at_work(connection, list(drivers))
        for sender_id, driver in drivers.items():
            driver.rest(is_quiet=sender_id not in at_work and sender_id not in self._to_sync)

    async def look_at_syncs(self) -> None:
        """Whose driver is to read its number or account from Meta, also where another replica heard of it."""
        async with self._runtime.pool.acquire(timeout=30) as connection:
            reads = await sync_store.reads(connection, list(self._drivers))
        self._to_sync = {read.sender_id for read in reads if is_due(read, utc_now())}

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
                self._lease.end()
                await _outlast(asyncio.create_task(self._stop_all(connection)))
            await asyncio.sleep(LOCK_SECONDS)

    async def _connect(self) -> asyncpg.Connection:
        url = self._runtime.settings.database_url.get_secret_value()
        settings = {**SERVER_SETTINGS, **SILENCE_ENDS_SESSIONS, "application_name": "sendwhy-dispatcher-locks"}
        return await asyncpg.connect(url, timeout=10, command_timeout=10, server_settings=settings)

    async def _share_out(self, connection: asyncpg.Connection) -> None:
        asked_at = time.monotonic()
        alive = await store.seen_replicas(connection, f"{self._runtime.settings.replica}", ALIVE_SECONDS)
        self._lease.renew(asked_at)
        utc_now.heard(await time_of(connection))
        senders = await store.sender_ids(connection)
        share = math.ceil(len(senders) / max(1, alive))
        await self._release_ended(connection)
        working = [sender for sender in self._drivers if sender in senders]
        self._ask_to_stop({*working[share:], *(self._drivers.keys() - set(senders))})
        for sender in senders:
            if sender not in self._drivers and len(self._drivers) - len(self._stopping) < share:
                asked_at = time.monotonic()
                fence = await self._take_over(connection, sender)
                self._lease.renew(asked_at)
                if fence is not None:
                    self._start(sender, fence)

    @staticmethod
    async def _take_over(connection: asyncpg.Connection, sender_id: str) -> int | None:
        """The new fence, or None where another replica drives the sender, or it is gone or busy."""
        if not await connection.fetchval("select pg_try_advisory_lock($1)", lock_key(sender_id)):
            return None
        fence = None
        try:
            async with connection.transaction():
                await connection.execute(f"set local lock_timeout = '{TAKE_OVER_LOCK_SECONDS}s'")
                fence = await queue_store.take_over(connection, sender_id)
        except (asyncpg.LockNotAvailableError, asyncpg.TransactionRollbackError) as error:
            log.info("a sender can't be taken over yet", sender=sender_id, error=describe(error))
        if fence is None:
            await connection.execute("select pg_advisory_unlock($1)", lock_key(sender_id))
        return fence

    def _start(self, sender_id: str, fence: int) -> None:
        driver = self._make_driver(sender_id)
        run = driver.run(fence, self._lease)
        self._drivers[sender_id] = (driver, asyncio.create_task(run, name=f"driver {sender_id}"))

    def _ask_to_stop(self, sender_ids: set[str]) -> None:
        """Nothing here waits for them: a lock connection that is silent for some seconds loses all its locks."""
        for sender_id in sender_ids - self._stopping:
            self._stopping.add(sender_id)
            driver, task = self._drivers[sender_id]
            driver.stop()
            asyncio.get_running_loop().call_later(STOP_SECONDS, task.cancel)

    async def _release_ended(self, connection: asyncpg.Connection) -> None:
        for sender_id in [sender_id for sender_id, (_, task) in self._drivers.items() if task.done()]:
            self._forget(sender_id)
            await connection.execute("select pg_advisory_unlock($1)", lock_key(sender_id))

    def _forget(self, sender_id: str) -> None:
        _, task = self._drivers.pop(sender_id)
        self._stopping.discard(sender_id)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.error("a driver failed", sender=sender_id, exc_info=error)

    async def _stop_all(self, connection: asyncpg.Connection | None) -> None:
        self._ask_to_stop(set(self._drivers))
        if self._drivers:
            await asyncio.wait([task for _, task in self._drivers.values()])
        for sender_id in list(self._drivers):
            self._forget(sender_id)
        if connection is not None:
            with suppress(*TRANSIENT_ERRORS):
                await connection.close(timeout=3)


async def _outlast(task: "asyncio.Task[None]") -> None:
    """Wait for a task to its end, however often we are cancelled meanwhile: a service that ends cancels each second."""
    cancelled = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
