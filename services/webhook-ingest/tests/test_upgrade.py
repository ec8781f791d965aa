"""A database with rows of the first release goes through all migrations since, and repeats stay repeats."""

from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest
from ingest_webhooks import APP, AT, NUMBER, WABA, WORKSPACE, delivery, status, statuses
from sendwhy.postgres import migrate
from webhook_ingest import parsing, store
from webhook_ingest.app import MIGRATIONS
from webhook_ingest.decide import RANK_DELIVERED

pytestmark = pytest.mark.postgres
ROWS = f"""
insert into sender values ('{NUMBER}', '{WORKSPACE}', '{WABA}', '{APP}', 1);
insert into message (sender_id, wamid, workspace_id, message_id, recipient, rank, failed, accepted_at, deadline,
                     prune_after)
values ('{NUMBER}', 'wamid.A', '{WORKSPACE}', 'm-1', 'c-1', 1, true, now(), now() + interval '1 day',
        now() + interval '46 days');
insert into seen_status values ('{NUMBER}', 'wamid.A', 'sent', 0, 1), ('{NUMBER}', 'wamid.A', 'failed', 0, 2);
"""


async def test_rows_of_the_first_release_live_on(fresh_database: str, tmp_path: Path) -> None:
    for file in MIGRATIONS.glob("0001*.sql"):
        (tmp_path / file.name).write_text(file.read_text())
    await migrate(fresh_database, tmp_path)
    connection = await asyncpg.connect(fresh_database)
    await connection.execute(ROWS)
    await migrate(fresh_database, MIGRATIONS)
    (message,) = (await store.lock_messages(connection, [(NUMBER, "wamid.A")], AT)).values()
    assert (message.message_id, message.rank, message.failed, message.silence) == ("m-1", 1, True, None)
    assert await connection.fetchval("select recipient from message") is None
    assert await connection.fetchval("select count(*) from seen_status where reading = ''") == 2
    # A failure that was told before the upgrade is told again at most once, and counts as no second failed message.
    failed = statuses(status("failed", errors=[{"code": 131026}]))
    said = []
    for offset in (7, 8):
        async with connection.transaction():
            said.append(await parsing.apply(connection, [delivery(failed, offset)], frozenset({APP})))
    assert [len(outcome.publish) for outcome in said] == [1, 0]
    assert not said[0].verdict.failed
    async with connection.transaction():
        await parsing.apply(connection, [delivery(statuses(status("delivered")), 9)], frozenset({APP}))
    assert await connection.fetchval("select rank from message") == RANK_DELIVERED
    await store.prune(connection, AT + timedelta(days=400))
    assert await connection.fetchval("select count(*) from seen_status") == 0
    await connection.close()
