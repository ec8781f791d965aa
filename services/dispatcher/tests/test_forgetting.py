"""Which messages the dispatcher forgets, on a real PostgreSQL."""

from datetime import timedelta

import pytest
from dispatcher import queue_store
from dispatcher.decide import Facts, Reject, decide
from dispatcher.forgetting import KEEP_MESSAGES, prune_cancellations, prune_messages
from dispatcher_cases import NOW, SENDER, funded
from dispatcher_desk import Desk, record
from sendwhy.postgres import connect_pool
from sendwhy.reasons import ReasonCode
from sendwhy.topics import TOPICS, Topic

pytestmark = pytest.mark.postgres
HOUR = timedelta(hours=1)
STATES = ("waiting", "in_flight", "unknown", "accepted", "rejected", "recalled")


async def ended(desk: Desk, message_id: str, state: str, expired: timedelta, queued: timedelta) -> None:
    """A message in that state, which expired and came so long ago."""
    await desk.queue(message_id)
    await desk.connection.execute(
        "update message set state = $2, expires_at = $3, queued_at = $4 where message_id = $1",
        message_id,
        state,
        NOW - expired,
        NOW - queued,
    )


def test_messages_are_kept_for_longer_than_their_request_can_be_read_again() -> None:
    assert TOPICS[Topic.SEND_FUNDED].gone_after + timedelta(days=7) < KEEP_MESSAGES


async def test_what_is_over_goes_in_steps_and_what_has_no_outcome_stays_however_old(desk: Desk) -> None:
    past = KEEP_MESSAGES + HOUR
    for state in STATES:
        await ended(desk, f"old-{state}", state, past, past + HOUR)
        await ended(desk, f"young-{state}", state, KEEP_MESSAGES - HOUR, past)
    # It came long after it had expired: its request can still be read again.
    await ended(desk, "late", "rejected", past, HOUR)
    gone = {"old-accepted", "old-rejected", "old-recalled"}
    there = set(await desk.states())
    assert await prune_messages(desk.connection, NOW, at_once=2) == len(gone)
    assert set(await desk.states()) == there - gone
    assert await prune_messages(desk.connection, NOW, at_once=2) == 0


async def test_a_cancel_stays_while_its_request_may_come_and_as_long_as_its_message(desk: Desk) -> None:
    past = KEEP_MESSAGES + HOUR
    for state in ("waiting", "unknown", "rejected"):
        await ended(desk, f"of-{state}", state, HOUR, past)
    for message_id, age in [("early", KEEP_MESSAGES - HOUR), ("never-1", past), ("never-2", past), ("never-3", past)]:
        await queue_store.remember_cancellations(desk.connection, [("acme", message_id, None)], NOW - age)
    for state in ("waiting", "unknown", "rejected"):
        await queue_store.remember_cancellations(desk.connection, [("acme", f"of-{state}", None)], NOW - past)
    assert await prune_cancellations(desk.connection, NOW, at_once=2) == 3
    left = await desk.connection.fetch("select message_id from cancellation order by message_id")
    assert [row["message_id"] for row in left] == ["early", "of-rejected", "of-unknown", "of-waiting"]


async def test_what_somebody_works_on_is_passed_over_and_goes_the_next_time(desk: Desk, migrated_database: str) -> None:
    past = KEEP_MESSAGES + HOUR
    for message_id in ("worked-on", "over"):
        await ended(desk, message_id, "rejected", past, past)
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as other:
        async with other.transaction():
            await queue_store.lock_messages(other, [("acme", "worked-on")])
            assert await prune_messages(desk.connection, NOW) == 1
        assert set(await desk.states()) == {"worked-on"}
        assert await prune_messages(desk.connection, NOW) == 1
    await pool.close()


async def test_a_request_that_came_again_after_all_was_forgotten_would_expire_and_not_be_sent(desk: Desk) -> None:
    await ended(desk, "m1", "accepted", KEEP_MESSAGES + HOUR, KEEP_MESSAGES + HOUR)
    assert await prune_messages(desk.connection, NOW) == 1
    again = funded(message_id="m1").model_copy(update={"expires_at": NOW - KEEP_MESSAGES - HOUR})
    await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, again)])
    ((message, *_),) = await queue_store.lock_expired(desk.connection, NOW, 10)
    facts = Facts(sender=SENDER)
    verdict = decide(message, facts, NOW)
    assert isinstance(verdict, Reject)
    assert verdict.reason.code is ReasonCode.EXPIRED_BEFORE_SENDING
