"""Migrations from 0006 on, on a database with messages in every state: nothing is lost, nothing waits for ever."""

import shutil
from datetime import timedelta
from pathlib import Path

import pytest
from dispatcher import claims, queue_store
from dispatcher.clock import utc_now
from dispatcher_cases import funded
from dispatcher_desk import MIGRATIONS, open_lines
from sendwhy.events import reason
from sendwhy.postgres import connect_pool, migrate
from sendwhy.reasons import ReasonCode

pytestmark = pytest.mark.postgres
FORMER = [
    # message, state, waiting for, seconds until it is due (None: never by itself), campaign
    ("slot", "waiting", "throttle", 86_400, "throttled"),
    ("paused", "waiting", "paused", None, "paused"),
    ("hold", "waiting", "hold", None, "plain"),
    ("tier", "waiting", "tier", None, "plain"),
    ("turn", "waiting", "turn", 0, None),
    ("retry", "waiting", "retry", 600, None),
    ("out", "in_flight", "turn", 0, "throttled"),
    ("open", "unknown", "turn", 0, None),
    ("done", "accepted", "turn", 0, None),
]


async def test_what_stood_in_the_former_queue_goes_on(fresh_database: str, tmp_path: Path) -> None:
    for file in sorted(MIGRATIONS.glob("*.sql")):
        if file.name < "0007":
            shutil.copy(file, tmp_path)
    await migrate(fresh_database, tmp_path)
    pool = await connect_pool(fresh_database, service="dispatcher-test")
    now = utc_now()
    async with pool.acquire() as connection:
        await connection.execute(
            "insert into sender (sender_id, workspace_id, waba_id, portfolio_id, token, hold, hold_since, hold_until,"
            " hold_strikes) values ('41', 'acme', '300', '200', 'sealed', $1, $2, $2, 2)",
            reason(ReasonCode.META_PAYMENT_ISSUE, "The card is refused").to_json(),
            now,
        )
        await connection.execute(
            "insert into campaign (workspace_id, campaign_id, per_minute, next_slot_at, paused_at) values"
            " ('acme', 'throttled', 60, $1, null), ('acme', 'paused', null, null, $1),"
            " ('acme', 'plain', null, null, null)",
            now,
        )
        for message_id, state, waiting_for, seconds, campaign in FORMER:
            await connection.execute(
                "insert into message (workspace_id, message_id, sender_id, lane, campaign_id, contact_id, phone,"
                " needs_subscription, not_before, expires_at, queued_at, state, waiting_for, slotted, funded,"
                " fence) values ('acme', $1, '41', 2, $2, 'c', '+1', true, coalesce($3::timestamptz, 'infinity'),"
                " $4, $5, $6, $7, $8, $9, 0)",
                message_id,
                campaign,
                None if seconds is None else now + timedelta(seconds=seconds),
                now + timedelta(days=2),
                now,
                state,
                waiting_for,
                waiting_for == "throttle",
                funded(message_id=message_id).to_json(),
            )
    await pool.close()
    await migrate(fresh_database, MIGRATIONS)
    pool = await connect_pool(fresh_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        await queue_store.take_over(connection, "41")
        now = utc_now()
        lines = await open_lines(connection, "41", now, 9)
        due = await claims.lock_due(connection, "41", now, limit=9, lines=lines)
        assert {one.message.key[1] for one in due} == {"slot", "paused", "hold", "turn"}
        assert [one.message.key[1] for one in await claims.lock_tier_waits(connection, "41", 9)] == ["tier"]
        states = await connection.fetch("select message_id from message where state = 'unknown' order by 1")
        assert [row["message_id"] for row in states] == ["open", "out"]
        assert await connection.fetchval("select array_agg(target order by target) from sweep") == [
            "paused",
            "throttled",
        ]
        assert await connection.fetchval("select strikes from hold where scope_id = '41'") == 2
    await pool.close()
