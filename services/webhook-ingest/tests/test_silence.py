"""A number that falls silent: whether it is one, and whose fault that is."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import asyncpg
import pytest
from ingest_webhooks import AT, NUMBER, WABA, WORKSPACE, status, statuses
from pydantic import SecretStr
from sendwhy.kafka import Producer, create_topics
from sendwhy.metrics import Metrics
from sendwhy.postgres import connect_pool, store_reached
from sendwhy.reasons import Service
from sendwhy.service import Runtime
from sendwhy.topics import Outgoing, Topic
from webhook_ingest import store
from webhook_ingest.parsing import Beat
from webhook_ingest.settings import Settings
from webhook_ingest.silence import READ_WITHIN, UNANSWERED_MIN, WHAT_TO_DO, Cause, SenderFacts, silence_of_sender
from webhook_ingest.watch import Pulse, Watch, facts_of, note_beats, save_silent, unanswered

PATIENCE = timedelta(minutes=10)
MINUTE = timedelta(minutes=1)
# Twenty minutes of silence: Meta took ten messages, nothing came since; everybody else is heard of.
QUIET = SenderFacts(
    now=AT,
    waiting=10,
    unanswered=10,
    unanswered_since=AT - 20 * MINUTE,
    heard_at=AT - 25 * MINUTE,
    late=timedelta(seconds=1),
    read_until=AT - timedelta(seconds=20),
    refused_at=None,
    others_at=AT - MINUTE,
)
# Statuses come, and tell of half an hour ago.
LATE = replace(QUIET, unanswered=0, unanswered_since=None, heard_at=AT - MINUTE, late=30 * MINUTE)


@pytest.mark.parametrize(
    ("facts", "cause"),
    [
        (QUIET, Cause.SUBSCRIPTION_GONE),
        (replace(QUIET, heard_at=None, late=None), Cause.SUBSCRIPTION_GONE),
        (replace(QUIET, unanswered=UNANSWERED_MIN), Cause.SUBSCRIPTION_GONE),
        (replace(QUIET, unanswered=UNANSWERED_MIN - 1), None),
        (replace(QUIET, unanswered=0, unanswered_since=None, heard_at=AT), None),
        (replace(QUIET, others_at=None), Cause.NOTHING_ARRIVES),
        (replace(QUIET, others_at=AT - 21 * MINUTE), Cause.NOTHING_ARRIVES),
        (replace(QUIET, refused_at=AT - 2 * MINUTE), Cause.SIGNATURE_REFUSED),
        (replace(QUIET, refused_at=AT - 2 * MINUTE, others_at=None), Cause.SIGNATURE_REFUSED),
        (replace(QUIET, refused_at=AT - 30 * MINUTE), Cause.SUBSCRIPTION_GONE),
        (replace(QUIET, read_until=AT - READ_WITHIN), Cause.SUBSCRIPTION_GONE),
        (replace(QUIET, read_until=AT - 2 * READ_WITHIN), Cause.INGEST_LAGS),
        (replace(QUIET, read_until=AT - 2 * READ_WITHIN, refused_at=AT), Cause.INGEST_LAGS),
        (LATE, Cause.META_LATE),
        (replace(LATE, late=PATIENCE), None),
        (replace(LATE, late=None), None),
        (replace(LATE, waiting=UNANSWERED_MIN - 1), None),
        (replace(LATE, heard_at=AT - PATIENCE), None),
        (replace(LATE, read_until=AT - 2 * READ_WITHIN), Cause.INGEST_LAGS),
        (replace(LATE, refused_at=AT, others_at=None), Cause.META_LATE),
    ],
)
def test_who_is_silent_and_whose_fault_it_is(facts: SenderFacts, cause: Cause | None) -> None:
    told = silence_of_sender(facts, PATIENCE)
    assert (told and told.cause) == cause


def test_a_silence_has_its_beginning_and_its_evidence() -> None:
    told = silence_of_sender(QUIET, PATIENCE)
    assert told is not None
    assert told.since == QUIET.unanswered_since
    assert told.evidence["unanswered_messages"] == 10
    assert told.evidence["heard_at"] == (AT - 25 * MINUTE).isoformat()


def test_every_cause_says_what_to_do() -> None:
    assert set(WHAT_TO_DO) == set(Cause)


def test_beats_of_a_number_are_joined() -> None:
    pulse = Pulse()
    pulse.note({"1": Beat(AT, 30.0), "2": Beat(foreign_at=AT)})
    pulse.note({"1": Beat(AT - MINUTE, 2.0), "2": Beat(AT + MINUTE, None)})
    assert pulse.take() == {"1": Beat(AT, 2.0), "2": Beat(AT + MINUTE, None, AT)}
    assert pulse.take() == {}


@pytest.fixture
async def connection(migrated_database: str) -> AsyncIterator[Any]:
    pool = await connect_pool(migrated_database, service="webhook-ingest-test", size=2)
    async with pool.acquire() as connection:
        yield connection
    await pool.close()


async def _take(connection: asyncpg.Connection, minutes_ago: int, *, rank: int = 0, failed: bool = False) -> None:
    """Meta took a message."""
    at = AT - minutes_ago * MINUTE
    wamid = f"wamid.{minutes_ago}.{rank}.{failed}"
    await connection.execute(
        "insert into message (sender_id, wamid, workspace_id, message_id, accepted_at, deadline, rank, failed,"
        " prune_after) values ($1, $2, $3, $2, $4, $5, $6, $7, $5)",
        NUMBER,
        wamid,
        WORKSPACE,
        at,
        at + timedelta(days=30),
        rank,
        failed,
    )


@pytest.mark.postgres
async def test_the_facts_of_a_number(connection: asyncpg.Connection) -> None:
    for number, waba in ((NUMBER, WABA), ("415566778899002", "77")):
        await connection.execute("insert into sender values ($1, 'acme', $2, null, 1)", number, waba)
    for minutes in range(12, 20):
        await _take(connection, minutes)
    await _take(connection, 5)
    await _take(connection, 30)
    await _take(connection, 13, rank=1)
    await _take(connection, 14, failed=True)
    heard = {NUMBER: Beat(AT - 25 * MINUTE, 3.0), "415566778899002": Beat(AT - MINUTE), "99999999": Beat(AT)}
    await note_beats(connection, heard)
    await note_beats(connection, {NUMBER: Beat(AT - 26 * MINUTE, None, AT - 2 * MINUTE)})
    (row,) = await unanswered(connection, AT, PATIENCE)
    facts = facts_of(row, AT, AT, None)
    assert facts == SenderFacts(
        now=AT,
        waiting=9,
        unanswered=8,
        unanswered_since=AT - 19 * MINUTE,
        heard_at=AT - 25 * MINUTE,
        late=timedelta(seconds=3),
        read_until=AT,
        refused_at=AT - 2 * MINUTE,
        others_at=AT - MINUTE,
    )
    told = silence_of_sender(facts, PATIENCE)
    assert told is not None
    assert await save_silent(connection, {NUMBER: told}, AT) == {}
    assert await save_silent(connection, {NUMBER: told}, AT) == {NUMBER: Cause.SIGNATURE_REFUSED}
    await note_beats(connection, {NUMBER: Beat(AT)})
    (row,) = await unanswered(connection, AT, PATIENCE)
    assert silence_of_sender(facts_of(row, AT, AT, None), PATIENCE) is None
    assert await save_silent(connection, {}, AT) == {NUMBER: Cause.SIGNATURE_REFUSED}
    assert await connection.fetchval("select count(*) from silent_sender") == 0


class Running:
    """As much of a runtime as the watch needs."""

    def __init__(self, pool: asyncpg.Pool, settings: Settings) -> None:
        self.pool, self.settings = pool, settings
        self.group, self.metrics = "sendwhy-webhook-ingest", Metrics(Service.WEBHOOK_INGEST)


@pytest.mark.kafka
@pytest.mark.postgres
async def test_the_watch_finds_out_whose_fault_it_is(kafka_bootstrap: str, migrated_database: str) -> None:
    configured = Settings(
        kafka_bootstrap_servers=kafka_bootstrap,
        database_url=SecretStr(migrated_database),
        api_tokens=SecretStr("viewer-1:viewer:acme"),
        meta_app_secrets=SecretStr("700:the-secret-of-tests"),
        meta_verify_token=SecretStr("the-token-of-tests"),
        privacy_key=SecretStr("a key of tests only"),
    )
    await create_topics(configured)
    pool = await connect_pool(migrated_database, service="webhook-ingest-test", size=4)
    running, now = Running(pool, configured), datetime.now(UTC)
    watch = Watch(cast("Runtime", running), configured, Pulse())
    producer = Producer(configured, running.metrics)
    await producer.start()

    async def cause() -> str | None:
        found: str | None = await pool.fetchval("select cause from silent_sender where sender_id = $1", number)
        shown = f'sendwhy_senders_silent{{cause="{found}"}} 1.0'
        assert found is None or shown in running.metrics.text().decode()
        return found

    number, other = "415566778899771", "415566778899772"
    for one in (number, other):
        await pool.execute("insert into sender values ($1, 'acme', $2, null, 1)", one, f"9{one}")
    await pool.execute(
        "insert into message (sender_id, wamid, workspace_id, message_id, accepted_at, deadline, rank, prune_after)"
        " select $1, n::text, 'acme', n::text, $2, $2, 0, $2 from generate_series(1, 5) n",
        number,
        now - 20 * MINUTE,
    )
    # One raw delivery that we have not handled: nobody else can be blamed, and after a while it is us.
    await producer.publish([Outgoing(Topic.WEBHOOK_RECEIVED, b"k", b"{}", (("source", b"meta"), ("app_id", b"700")))])
    await watch.judge(now)
    assert await cause() is None
    await watch.judge(now + 2 * MINUTE)
    assert await cause() == Cause.INGEST_LAGS

    reached = {(str(Topic.WEBHOOK_RECEIVED), partition): 10**9 for partition in range(6)}
    async with pool.acquire() as connection:
        await store_reached(connection, running.group, reached)
    await watch.judge(now)
    assert await cause() == Cause.NOTHING_ARRIVES
    async with pool.acquire() as connection:
        await note_beats(connection, {other: Beat(now)})
    await watch.judge(now)
    assert await cause() == Cause.SUBSCRIPTION_GONE
    refused = Outgoing(Topic.WEBHOOK_REFUSED, b"digest", statuses(status("sent"), number=number), ())
    await producer.publish([refused])
    await watch.judge(now + MINUTE)
    assert await cause() == Cause.SIGNATURE_REFUSED
    async with pool.acquire() as connection:
        await note_beats(connection, {number: Beat(now + MINUTE)})
    await watch.judge(now + MINUTE)
    assert await cause() is None
    await producer.stop()
    await pool.close()


@pytest.mark.postgres
async def test_what_is_missing_and_for_how_long(connection: asyncpg.Connection) -> None:
    assert await store.count_awaited(connection, AT) == store.Missing(0, 0.0, 0.0)
    await connection.execute("insert into sender values ($1, 'acme', $2, null, 1)", NUMBER, WABA)
    for minutes, rank in ((5, 0), (20, 1), (30, 2), (40, 3), (50, 4), (3000, 1)):
        await _take(connection, minutes, rank=rank)
    missing = await store.count_awaited(connection, AT)
    # Of those of the last day, and not of the last minutes, one in four has no receipt.
    assert missing == store.Missing(3, 3000 * 60.0, 0.25)
