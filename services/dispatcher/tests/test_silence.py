"""What a frozen process holds at the database is bounded, wherever between two messages to the server it froze."""

import asyncio

import asyncpg
import pytest
from dispatcher import claims, store
from dispatcher.clock import utc_now
from dispatcher.fleet import Fleet
from dispatcher.lease import SILENCE_ENDS_TRANSACTIONS, TRANSACTION_SECONDS
from dispatcher_cases import SENDER
from dispatcher_desk import ACME
from pydantic import SecretStr
from sendwhy.postgres import SERVER_SETTINGS

pytestmark = pytest.mark.postgres


class Replica:
    """What a fleet needs to open the connection that holds its locks."""

    def __init__(self, url: str) -> None:
        self.settings = type("Settings", (), {"database_url": SecretStr(url)})()

    async def lock_connection(self) -> asyncpg.Connection:
        return await Fleet(self, lambda _: None)._connect()  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("froze", ["between two statements", "with a statement half told"])
async def test_another_takes_over_from_who_froze_within_a_transaction(migrated_database: str, froze: str) -> None:
    replica = Replica(migrated_database)
    frozen, other = await replica.lock_connection(), await replica.lock_connection()
    claiming = await asyncpg.connect(
        migrated_database, server_settings={**SERVER_SETTINGS, **SILENCE_ENDS_TRANSACTIONS}, timeout=10
    )
    await store.put_sender(other, ACME, utc_now())
    assert await Fleet._take_over(frozen, SENDER.sender_id) == 1
    await claiming.execute("begin")
    assert await claims.hold_fence(claiming, SENDER.sender_id, 1) is not None
    if froze != "between two statements":
        # All of a statement but its end: what asyncpg does with one that it hasn't prepared before.
        await claiming.prepare("select 'of a claim'")
        await frozen.prepare("select 'of the locks'")
    # A session whose statement is half told is else never idle, and no time of a statement runs out.
    async with asyncio.timeout(TRANSACTION_SECONDS + 15):
        while await Fleet._take_over(other, SENDER.sender_id) is None:
            await asyncio.sleep(0.2)
    for connection in (frozen, claiming, other):
        connection.terminate()
