"""What can become of PostgreSQL, by signals, locks and a full disk."""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import asyncpg
from field import Field
from outside import until
from rig import Rig
from stack import WAL_MOUNT

IDLE_CONNECTIONS = 190
# Of 16 MB, more than can be allocated before.
SEGMENTS = 60
TERMINATE = (
    "select pg_terminate_backend(pid) from pg_stat_activity"
    " where backend_type = 'client backend' and pid <> pg_backend_pid()"
)
# By service, what an outsider locks.
LOCKED = {"billing": "account", "dispatcher": "message", "message_log": "message", "consent": "decision"}


async def _killed(rig: Rig, number: signal.Signals) -> None:
    old = rig.pid("postgres")
    rig.signal("postgres", number)
    await rig.replaced("postgres", old)


async def crash(on: Field, _target: str) -> None:
    """`pg_ctl stop -m immediate`, or kill -9 of the postmaster."""
    await _killed(on.rig, on.chance.choice([signal.SIGQUIT, signal.SIGKILL]))
    await on.last()


async def crash_loop(on: Field, _target: str) -> None:
    """The same as soon as it answers again, all the while."""
    async for _ in on.again_and_again(0, 3):
        await _killed(on.rig, on.chance.choice([signal.SIGQUIT, signal.SIGKILL]))


async def frozen(on: Field, _target: str) -> None:
    """The server and all its sessions."""
    on.rig.signal("postgres", signal.SIGSTOP, tree=True)
    try:
        await on.last()
    finally:
        on.rig.signal("postgres", signal.SIGCONT, tree=True)


@asynccontextmanager
async def superuser(rig: Rig, database: str = "postgres") -> AsyncIterator[asyncpg.Connection]:
    url = rig.stack["postgres"].rpartition("/")[0]
    connection = await asyncpg.connect(f"{url}/{database}", timeout=20)
    try:
        yield connection
    finally:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            await connection.close(timeout=10)


async def terminated(on: Field, _target: str) -> None:
    """pg_terminate_backend of every session, again and again."""
    async with superuser(on.rig) as connection:
        async for _ in on.again_and_again(0.5, 3):
            await connection.execute(TERMINATE)


async def locks_lost(on: Field, _target: str) -> None:
    """The sessions that hold drivers' locks are ended while calls are in flight."""
    async with superuser(on.rig, "dispatcher") as connection:
        async for _ in on.again_and_again(0.5, 2):
            await connection.execute(
                "select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and pid <> pg_backend_pid()"
            )


async def locked(on: Field, _target: str) -> None:
    """An outsider holds a table's rows, and then the whole table."""
    database = on.chance.choice(sorted(LOCKED))
    table = LOCKED[database]
    async with superuser(on.rig, database) as connection:
        # One after the other: whoever makes a lock stronger runs into a deadlock with those that wait for the first.
        for mode in ("share row exclusive", "access exclusive"):
            async with connection.transaction():
                await connection.execute(f"lock table {table} in {mode} mode")
                await asyncio.sleep(on.seconds / 2)


async def no_connections(on: Field, _target: str) -> None:
    """An outsider takes all that are left, and the services' sessions end."""
    async with AsyncExitStack() as opened:
        control = await opened.enter_async_context(superuser(on.rig))
        await control.execute(TERMINATE)
        with contextlib.suppress(asyncpg.TooManyConnectionsError):
            for _ in range(IDLE_CONNECTIONS):
                await opened.enter_async_context(superuser(on.rig))
        await on.last()


async def disk_full(on: Field, _target: str) -> None:
    """No room for the write-ahead log: the server ends itself, and can't start before there is room."""
    filler = on.rig.state_dir / WAL_MOUNT / "filler"
    try:
        await _fill(on.rig)
        await on.last()
    finally:
        filler.unlink(missing_ok=True)

    async def answers() -> bool:
        with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            async with superuser(on.rig):
                return True
        return False

    await until(answers, "PostgreSQL is back", 120)


async def _fill(rig: Rig) -> None:
    folder = rig.state_dir / WAL_MOUNT
    with (folder / "filler").open("wb") as file, contextlib.suppress(OSError):
        os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(folder).free)
    # What is allocated already is used up, so that it is met now.
    with contextlib.suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
        async with superuser(rig) as connection:
            for _ in range(SEGMENTS):
                await connection.execute("select pg_logical_emit_message(false, 'filler', repeat('x', 16000000))")


async def nack_while_moving(on: Field, target: str) -> None:
    """The database goes away while a replica of a service does, so that batches fail and partitions move at once."""
    name = on.rig.processes(target)[-1]
    old = on.rig.pid(name)
    await _killed(on.rig, signal.SIGQUIT)
    on.rig.signal(name, signal.SIGKILL)
    await on.last()
    await on.rig.replaced(name, old)
