"""The queue on real PostgreSQL: one driver, one result a try, and nothing that was out is sent again."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import permutations
from typing import Any
from uuid import uuid4

import asyncpg
import pytest
from dispatcher import claims, people_store, queue_store, recovery_store, store, sweeps
from dispatcher.app import PLANNED_ONCE
from dispatcher.campaign_api import CampaignAnswer, read_campaign
from dispatcher.clock import utc_now
from dispatcher.decide import Waiting
from dispatcher.queue_store import NewWait, Result
from dispatcher.store import NewSender
from dispatcher.sweeps import Kind, Sweep
from dispatcher_cases import NOW, PHONE, SENDER, contact, funded
from dispatcher_desk import ACME, Desk, known_of, open_lines, record
from sendwhy.events import MarketingState, SendCancelled, SendFunded, Status, StatusUpdated, event_id_of, reason
from sendwhy.reasons import ReasonCode, Service
from sendwhy.stage import Record
from sendwhy.topics import Topic, tombstone

pytestmark = pytest.mark.postgres


def result(message_id: str, attempt: int, state: str, wamid: str | None = None) -> Result:
    tries: Sequence[dict[str, Any]] = [{"result": state}]
    return Result(("acme", message_id), attempt, state, Waiting.TURN, None, wamid, None, tries)


async def test_the_same_request_twice_is_queued_once(desk: Desk) -> None:
    await desk.queue("m1", "m1", "m2")
    await desk.queue("m2")
    assert await desk.states() == {"m1": "waiting", "m2": "waiting"}


async def test_what_was_out_when_a_driver_died_is_parked_and_not_sent_again(desk: Desk) -> None:
    await desk.queue("m1", "m2")
    first = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert first is not None
    assert sorted(await desk.claim(first)) == ["m1", "m2"]
    second = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert second is not None
    assert await desk.states() == {"m1": "unknown", "m2": "unknown"}
    assert await desk.claim(second) == []
    assert await claims.hold_fence(desk.connection, SENDER.sender_id, first) is None


async def test_a_late_driver_may_still_say_how_its_own_try_ended(desk: Desk) -> None:
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.take_over(desk.connection, SENDER.sender_id)
    taken = result("m1", 1, "accepted", "wamid.A")
    assert await queue_store.record_results(desk.connection, [taken]) == {("acme", "m1"): "c-1"}
    assert await queue_store.record_results(desk.connection, [taken]) == {}
    assert await desk.states() == {"m1": "accepted"}


async def test_who_waits_while_another_takes_over_holds_nothing(desk: Desk, migrated_database: str) -> None:
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    claiming = await asyncpg.connect(migrated_database)
    async with desk.connection.transaction():
        await queue_store.take_over(desk.connection, SENDER.sender_id)
        held = asyncio.create_task(claims.hold_fence(claiming, SENDER.sender_id, fence))
        while not await desk.connection.fetchval("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)
    assert await held is None
    assert await claims.hold_fence(claiming, SENDER.sender_id, fence + 1) is not None
    await claiming.close()


async def test_what_meta_took_is_stored_with_what_tells_it_once(desk: Desk) -> None:
    await desk.queue("m1", "m2")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await desk.connection.execute("update message set contact_id = 'erased:1' where message_id = 'm2'")
    taken = [
        (result(one, 1, "accepted", f"wamid.{one}"), (uuid4(), tombstone(Topic.SEND_HELD, one))) for one in ("m1", "m2")
    ]
    # What was erased meanwhile goes the long way, which names nobody.
    assert await queue_store.record_taken(desk.connection, taken) == {("acme", "m1")}
    assert await queue_store.record_taken(desk.connection, taken) == set()
    assert await desk.states() == {"m1": "accepted", "m2": "in_flight"}
    assert await desk.outbox() == ["send.held m1"]


async def test_small_batches_are_planned_once(migrated_database: str) -> None:
    connection = await asyncpg.connect(migrated_database, server_settings=PLANNED_ONCE)
    for _ in range(7):
        await queue_store.accepted(connection, [("acme", "m1")])
    assert await connection.fetchval("select sum(custom_plans) from pg_prepared_statements") == 0
    await connection.close()


async def test_a_result_of_a_former_try_changes_nothing(desk: Desk) -> None:
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.record_results(desk.connection, [result("m1", 1, "waiting")])
    await desk.claim(fence)
    assert await queue_store.record_results(desk.connection, [result("m1", 1, "accepted", "wamid.A")]) == {}
    assert await desk.states() == {"m1": "in_flight"}


def receipt(message_id: str, status: Status = Status.SENT, code: ReasonCode | None = None) -> StatusUpdated:
    return StatusUpdated(
        event_id=event_id_of(message_id, status),
        occurred_at=utc_now(),
        observed_at=utc_now(),
        message_id=message_id,
        workspace_id="acme",
        sender_id=SENDER.sender_id,
        provider_message_id="wamid.W",
        service=Service.WEBHOOK_INGEST,
        status=status,
        reason=reason(code, "so") if code else None,
    )


async def test_a_webhook_proves_an_unknown_outcome_taken_and_says_accepted_once(desk: Desk) -> None:
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.take_over(desk.connection, SENDER.sender_id)
    for _ in range(2):
        await desk.stages.on_statuses(desk.connection, [record(Topic.STATUS_UPDATED, receipt("m1"))])
    assert await desk.states() == {"m1": "accepted"}
    assert await desk.outbox() == ["status.updated m1"]


async def test_once_a_message_is_found_accepted_its_receipts_ask_nothing(desk: Desk) -> None:
    await desk.queue("m1", "m2")
    asked: list[str] = []

    def hears(query: Any) -> None:
        asked.append(query.query)

    async def hear(*message_ids: str) -> int:
        # asyncpg tells its loggers at the loop's next turn.
        await asyncio.sleep(0)
        asked.clear()
        await desk.stages.on_statuses(
            desk.connection, [record(Topic.STATUS_UPDATED, receipt(one)) for one in message_ids]
        )
        await asyncio.sleep(0)
        return len(asked)

    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    desk.connection.add_query_logger(hears)
    # It waits and was never called: whatever this is of, the same may come of a call.
    assert await hear("m1") == 2
    await desk.claim(fence)
    assert await hear("m1") > 2
    assert await desk.states() == {"m1": "accepted", "m2": "in_flight"}
    assert [await hear("m1"), await hear("m1")] == [1, 0]
    assert await hear("m1", "m2") > 2
    assert await desk.states() == {"m1": "accepted", "m2": "accepted"}
    assert await desk.outbox() == ["status.updated m1", "status.updated m2"]


async def test_a_webhook_ends_the_retries_of_what_meta_took_all_the_same(desk: Desk) -> None:
    await desk.queue("m1", "m2")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    assert await desk.claim(fence) == ["m1", "m2"]
    await queue_store.record_results(desk.connection, [result("m1", 1, "waiting")])
    await desk.stages.on_statuses(desk.connection, [record(Topic.STATUS_UPDATED, receipt("m1"))])
    assert (await desk.states())["m1"] == "accepted"


async def test_metas_own_late_answer_beats_an_outcome_that_was_given_up(desk: Desk) -> None:
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.take_over(desk.connection, SENDER.sender_id)
    await queue_store.finish_unknown(desk.connection, {("acme", "m1"): ReasonCode.SEND_OUTCOME_UNKNOWN})
    assert await queue_store.record_results(desk.connection, [result("m1", 1, "waiting")]) == {}
    taken = result("m1", 1, "accepted", "wamid.A")
    assert await queue_store.record_results(desk.connection, [taken]) == {("acme", "m1"): "c-1"}


async def test_a_webhook_beats_an_outcome_that_was_given_up(desk: Desk) -> None:
    await desk.queue("m1")
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    await desk.claim(fence)
    await queue_store.take_over(desk.connection, SENDER.sender_id)
    await queue_store.finish_unknown(desk.connection, {("acme", "m1"): ReasonCode.SEND_OUTCOME_UNKNOWN})
    await desk.stages.on_statuses(desk.connection, [record(Topic.STATUS_UPDATED, receipt("m1"))])
    assert await desk.states() == {"m1": "accepted"}


async def test_a_stop_takes_waiting_marketing_out(desk: Desk) -> None:
    await desk.queue("m1")
    stopped = record(Topic.CONTACT_UPDATED, contact(MarketingState.UNSUBSCRIBED))
    await desk.stages.on_contacts(desk.connection, [stopped])
    assert await desk.states() == {"m1": "recalled"}
    assert await desk.outbox() == ["send.recalled m1"]


async def test_an_old_stop_that_is_read_again_takes_nothing_out(desk: Desk) -> None:
    subscribed = record(Topic.CONTACT_UPDATED, contact(MarketingState.SUBSCRIBED, version=3))
    await desk.stages.on_contacts(desk.connection, [subscribed])
    await desk.queue("m1")
    stopped = record(Topic.CONTACT_UPDATED, contact(MarketingState.UNSUBSCRIBED, version=2))
    await desk.stages.on_contacts(desk.connection, [stopped])
    assert await desk.states() == {"m1": "waiting"}


async def test_a_stop_that_came_first_takes_out_what_comes_later(desk: Desk) -> None:
    await desk.stages.on_contacts(
        desk.connection, [record(Topic.CONTACT_UPDATED, contact(MarketingState.UNSUBSCRIBED))]
    )
    await desk.queue("m1")
    assert await desk.states() == {"m1": "recalled"}


async def test_a_stop_and_its_message_cannot_miss_each_other(desk: Desk, migrated_database: str) -> None:
    """Whoever comes second finds the other: the state is stored while the message comes in, or the other way round."""
    for message_id, funded_first in (("m1", True), ("m2", False)):
        other = Desk(await asyncpg.connect(migrated_database))
        version = 2 if funded_first else 3
        stopped = [record(Topic.CONTACT_UPDATED, contact(MarketingState.UNSUBSCRIBED, version=version))]

        async def stop(desk: Desk, stopped: list[Record[Any]] = stopped) -> None:
            await desk.stages.on_contacts(desk.connection, stopped)

        async def come_in(desk: Desk, message_id: str = message_id) -> None:
            await desk.queue(message_id)

        first, second = (come_in, stop) if funded_first else (stop, come_in)
        async with desk.connection.transaction():
            await first(desk)
            after = asyncio.create_task(second(other))
            while not after.done() and not await desk.connection.fetchval(
                "select count(*) from pg_locks where not granted"
            ):
                await asyncio.sleep(0.01)
        await after
        await other.connection.close()
        assert (await desk.states())[message_id] == "recalled"
        await desk.connection.execute("delete from contact")


async def test_the_time_of_a_stop_is_counted_from_its_webhook_and_once(desk: Desk) -> None:
    def seen() -> tuple[float, float]:
        lines = [line.split() for line in Desk.metrics.text().decode().splitlines() if "stop_to_last" in line]
        values = {name.removeprefix("sendwhy_stop_to_last_message_seconds_"): float(value) for name, value in lines[2:]}
        return values["count"], values["sum"]

    async def tell(state: MarketingState, version: int, received_at: str | None) -> None:
        told = record(Topic.CONTACT_UPDATED, contact(state, version=version), received_at=received_at)
        await desk.stages.on_contacts(desk.connection, [told])

    (count, total), minute_ago = seen(), (utc_now() - timedelta(minutes=1)).isoformat()
    await tell(MarketingState.UNSUBSCRIBED, 2, minute_ago)
    assert seen()[0] == count + 1
    assert 60 <= seen()[1] - total < 120
    await tell(MarketingState.UNSUBSCRIBED, 2, minute_ago)  # a repeat
    await tell(MarketingState.UNSUBSCRIBED, 1, minute_ago)  # late
    await tell(MarketingState.UNSUBSCRIBED, 3, None)  # a change of the name: no STOP behind it
    await tell(MarketingState.UNSUBSCRIBED, 4, (utc_now() - timedelta(hours=2)).isoformat())  # the topic read anew
    await tell(MarketingState.UNSUBSCRIBED, 5, "yesterday")
    await tell(MarketingState.SUBSCRIBED, 6, minute_ago)
    assert seen()[0] == count + 1


async def test_after_a_restored_backup_nothing_that_may_have_been_sent_goes_out(desk: Desk) -> None:
    await desk.queue("waited")
    await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, _for_tomorrow("scheduled"))])
    await recovery_store.park_all(desk.connection, {0: 10}, utc_now())
    await desk.queue("before", "cancelled-later")
    await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, _for_tomorrow("scheduled-later"))])
    later = record(Topic.SEND_FUNDED, funded(message_id="after"))
    await desk.stages.on_funded(desk.connection, [replace(later, offset=10)])
    assert await desk.states() == {
        "waited": "unknown",
        "before": "unknown",
        "cancelled-later": "unknown",
        "after": "waiting",
        # Surely not sent: before its time nobody sends it.
        "scheduled": "waiting",
        "scheduled-later": "waiting",
    }
    fence = await queue_store.take_over(desk.connection, SENDER.sender_id)
    assert fence is not None
    assert await desk.claim(fence) == ["after"]
    assert len(await queue_store.lock_unknown(desk.connection, utc_now() + timedelta(seconds=1), 10)) == 3


def _for_tomorrow(message_id: str) -> SendFunded:
    tomorrow = utc_now() + timedelta(days=1)
    base = funded(message_id=message_id)
    return base.model_copy(update={"send_at": tomorrow, "expires_at": tomorrow + timedelta(days=1)})


async def test_after_a_restored_backup_a_message_has_the_end_that_was_told_of_it(desk: Desk) -> None:
    await desk.queue("sent", "refused", "nobody-knows")
    await recovery_store.park_all(desk.connection, {}, utc_now())
    told = [("acme", "sent", "accepted", "accepted", "wamid.1"), ("acme", "refused", "rejected", "CANCELLED", None)]
    assert await recovery_store.settle_parked(desk.connection, told) == 2
    assert await recovery_store.settle_parked(desk.connection, told) == 0
    assert await desk.states() == {"sent": "accepted", "refused": "rejected", "nobody-knows": "unknown"}
    assert await desk.outbox() == []


async def test_after_a_restored_backup_a_number_goes_on_above_what_was_told_of_it(desk: Desk) -> None:
    assert await recovery_store.continue_senders(
        desk.connection, [("elsewhere", 3, False), (SENDER.sender_id, 7, True)], utc_now()
    ) == [SENDER.sender_id]
    row = (await store.senders(desk.connection, [SENDER.sender_id]))[SENDER.sender_id]
    assert (row.version, row.sender.paused_at is not None) == (8, True)
    assert await recovery_store.continue_senders(desk.connection, [(SENDER.sender_id, 7, True)], utc_now()) == []


async def test_an_older_state_never_replaces_a_newer_one(desk: Desk) -> None:
    for version in (3, 2):
        state = MarketingState.UNSUBSCRIBED if version == 3 else MarketingState.SUBSCRIBED
        await desk.stages.on_contacts(desk.connection, [record(Topic.CONTACT_UPDATED, contact(state, version))])
    known = await people_store.contacts(desk.connection, [("acme", "c-1")])
    assert known["acme", "c-1"].version == 3


async def test_a_cancel_that_comes_first_is_remembered(desk: Desk) -> None:
    cancel = SendCancelled(workspace_id="acme", message_id="m1", by="upstream")
    await desk.stages.on_cancelled(desk.connection, [record(Topic.SEND_CANCELLED, cancel)])
    await desk.queue("m1", "m2")
    assert await desk.states() == {"m1": "rejected", "m2": "waiting"}
    assert await desk.outbox() == ["send.rejected m1"]


async def test_a_cancel_that_comes_beside_its_request_is_seen_before_the_call(desk: Desk) -> None:
    await desk.queue("m1", "m2")
    await queue_store.remember_cancellations(desk.connection, [("acme", "m1", None)], utc_now())
    assert await desk.due() == {"m1": "upstream", "m2": None}
    await queue_store.cancel_campaign(desk.connection, "acme", "black-friday", utc_now())
    assert await desk.due() == {"m1": "upstream", "m2": "campaign"}


@pytest.mark.parametrize("kind", ["automation", "inbox", "api", "test"])
async def test_what_stops_a_campaign_stops_nothing_else_of_its_id(desk: Desk, kind: str) -> None:
    campaign = ("acme", "black-friday")
    await queue_store.put_throttle(desk.connection, *campaign, 1, 1)
    await queue_store.pause_campaign(desk.connection, *campaign, utc_now())

    async def queue(count: int) -> None:
        events = [
            funded(message_id=f"{one}-{count}", origin={"kind": one, "id": "black-friday"})
            for one in (kind, "campaign")
        ]
        await desk.stages.on_funded(desk.connection, [record(Topic.SEND_FUNDED, event) for event in events])

    await queue(1)
    assert await desk.due() == {f"{kind}-1": None}
    cancel = SendCancelled(workspace_id="acme", campaign_id="black-friday", by="shop")
    await desk.stages.on_cancelled(desk.connection, [record(Topic.SEND_CANCELLED, cancel)])
    await queue(2)
    states = await desk.states()
    assert (states[f"{kind}-1"], states[f"{kind}-2"], states["campaign-2"]) == ("waiting", "waiting", "rejected")
    assert (await desk.due()).keys() >= {f"{kind}-1", f"{kind}-2"}


async def test_a_throttled_campaign_is_cancelled_beside_its_driver(desk: Desk, migrated_database: str) -> None:
    campaign = ("acme", "black-friday")
    await queue_store.put_throttle(desk.connection, *campaign, 1, None)
    await desk.queue("m1", "m2")
    driver = await asyncpg.connect(migrated_database)
    sweep = Sweep("acme", Kind.CANCEL_CAMPAIGN, "black-friday", "operator Ana", utc_now())

    async def cancel() -> int:
        async with desk.connection.transaction():
            return await desk.stages.cancel_all(desk.connection, sweep)

    async with driver.transaction():
        # A driver locks the throttle before it looks at what stands in the campaign's line.
        lines = await open_lines(driver, SENDER.sender_id, utc_now(), 1)
        due = await claims.lock_due(driver, SENDER.sender_id, utc_now(), limit=1, lines=lines)
        cancelling = asyncio.create_task(cancel())
        while not await driver.fetchval("select count(*) from pg_locks where not granted"):
            await asyncio.sleep(0.01)
        await queue_store.set_waits(driver, [NewWait(due[0].message.key, Waiting.RETRY, utc_now(), told=False)])
    assert await cancelling == 1
    await driver.close()
    # What the driver had is taken by the next step.
    assert await sweeps.cancel_step(desk.connection, sweep, desk.stages.cancel) == 1
    assert await desk.outbox() == ["send.rejected m1", "send.rejected m2"]
    await desk.queue("m3")
    assert await desk.states() == {"m1": "rejected", "m2": "rejected", "m3": "rejected"}


async def test_a_cancelled_message_that_waits_is_rejected_once(desk: Desk) -> None:
    await desk.queue("m1")
    cancel = SendCancelled(workspace_id="acme", message_id="m1")
    for _ in range(2):
        await desk.stages.on_cancelled(desk.connection, [record(Topic.SEND_CANCELLED, cancel)])
    assert await desk.states() == {"m1": "rejected"}
    assert await desk.outbox() == ["send.rejected m1"]


async def test_a_marketing_cap_is_remembered_for_the_person(desk: Desk) -> None:
    await desk.queue("m1")
    capped = receipt("m1", Status.FAILED, ReasonCode.MARKETING_CAP_REACHED)
    await desk.stages.on_statuses(desk.connection, [record(Topic.STATUS_UPDATED, capped)])
    until = (await known_of(desk.connection)).caps[PHONE]
    assert timedelta(hours=23) < until - utc_now() <= timedelta(hours=24)


async def test_a_batch_is_one_statement_a_table(desk: Desk) -> None:
    statements: list[str] = []
    with desk.connection.query_logger(lambda query: statements.append(query.query)):
        await desk.queue(*(f"m{number}" for number in range(500)))
    assert len(await desk.states()) == 500
    assert len([one for one in statements if "insert into message" in one]) == 1
    assert len(statements) < 13


async def test_two_defaults_are_never_known(desk: Desk) -> None:
    other = NewSender("100000000000002", "acme", "300", "200", None, True, b"sealed")
    changed = await store.put_sender(desk.connection, other, utc_now())
    assert [(row.sender.sender_id, row.is_default) for row in changed] == [
        (SENDER.sender_id, False),
        ("100000000000002", True),
    ]


async def test_a_number_stays_with_its_workspace(desk: Desk) -> None:
    theirs = NewSender(SENDER.sender_id, "other", "666", "666", None, True, b"theirs")
    assert await store.put_sender(desk.connection, theirs, utc_now()) == []
    known = (await store.senders(desk.connection, [SENDER.sender_id]))[SENDER.sender_id]
    assert (known.sender.workspace_id, known.sender.waba_id, known.token) == ("acme", "300", b"sealed")


async def test_a_number_that_moves_to_another_account_waits_for_its_templates(desk: Desk) -> None:
    await store.mark_synced(desk.connection, "acme", "300", utc_now())
    same = await store.put_sender(desk.connection, ACME, utc_now())
    assert same[-1].sender.templates_synced_at is not None
    moved = await store.put_sender(desk.connection, replace(ACME, waba_id="301"), utc_now())
    assert moved[-1].sender.templates_synced_at is None


async def test_a_campaign_tells_its_throttle_its_pause_and_what_of_it_waits(desk: Desk) -> None:
    campaign = ("acme", "black-friday")
    assert await read_campaign(desk.connection, campaign) == CampaignAnswer(campaign_id="black-friday", waiting=[])
    await desk.queue("m-1", "m-2")
    await queue_store.put_throttle(desk.connection, *campaign, 600, None)
    await queue_store.pause_campaign(desk.connection, *campaign, NOW)
    told = await read_campaign(desk.connection, campaign)
    assert (told.per_minute, told.per_day, told.paused_at, told.cancelled_at) == (600, None, NOW, None)
    assert [(one.waiting_for, one.messages) for one in told.waiting] == [("paused", 2)]
    assert (await read_campaign(desk.connection, ("other", "black-friday"))).waiting == []


@pytest.mark.parametrize("lock", [queue_store.lock_waiting, queue_store.lock_messages])
async def test_who_waited_for_a_message_gets_it_as_it_is_then(
    desk: Desk, migrated_database: str, lock: Callable[..., Coroutine[Any, Any, list[Any]]]
) -> None:
    """Also with a row of another partition beside it, by the plan that large tables have."""
    keys = [("acme", f"m{number}") for number in range(6)]
    await desk.queue(*(message_id for _, message_id in keys))
    other = await asyncpg.connect(migrated_database)
    await other.execute("set enable_hashjoin = off; set enable_mergejoin = off; set enable_seqscan = off")
    for pair in permutations(keys, 2):
        async with desk.connection.transaction():
            await lock(desk.connection, pair[:1])
            waits = asyncio.create_task(lock(other, pair))
            while not await desk.connection.fetchval(_IS_BLOCKED, other.get_server_pid()):
                await asyncio.sleep(0.001)
            await desk.connection.execute("update message set not_before = now() where message_id = $1", pair[0][1])
        assert len(await waits) == len(pair)
    await other.close()


_IS_BLOCKED = "select cardinality(pg_blocking_pids($1)) > 0"
