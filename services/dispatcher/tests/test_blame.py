"""One broken message costs itself only: it is found, stands aside visibly, and its neighbours go."""

import json
from datetime import timedelta

import pytest
from dispatcher import queue_store, salvage, store
from dispatcher.blame import AGAIN_MAX, ALL, Blame, aside_until
from dispatcher.clock import utc_now
from dispatcher.decide import Facts, Lane, Reject, Wait, Waiting, decide
from dispatcher.timers import Timers
from dispatcher_cases import NOW, SENDER, funded, message
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import LATEST
from sendwhy.patience import TRIES_BEFORE_BLAME
from sendwhy.postgres import unpublished
from sendwhy.reasons import ReasonCode
from structlog.testing import capture_logs
from test_driver import World, put, until, world  # noqa: F401 - a fixture

UNREADABLE = (
    b'{"request": {"to": {"contact_id": "c-9"}, "origin": {"kind": "campaign", "id": "x"}}, "price": "a newer shape"}'
)


@given(st.integers(1, 120), st.sets(st.integers(0, 119)), st.integers(1, 100))
def test_exactly_the_guilty_are_put_aside_and_all_others_go(count: int, guilty: set[int], room: int) -> None:
    guilty = {one for one in guilty if one < count}
    blame, queue, aside = Blame(), list(range(count)), set[int]()
    for _ in range(60 + 20 * count):
        looked_at = queue[: min(room, blame.most)]
        if not guilty & set(looked_at):
            queue = queue[len(looked_at) :]
            blame.passed()
        elif found := blame.failed([("acme", str(one)) for one in looked_at]):
            aside.add(int(found[1]))
            queue.remove(int(found[1]))
        if not queue:
            break
    assert (queue, aside) == ([], guilty)


def test_a_failure_is_given_the_time_to_pass_before_anybody_is_blamed() -> None:
    blame = Blame()
    for _ in range(TRIES_BEFORE_BLAME - 1):
        assert blame.failed([("acme", "m-1")]) is None
        assert blame.pause([("acme", "m-1")]) > 0
    assert blame.most == ALL
    assert blame.failed([("acme", "m-1")]) == ("acme", "m-1")


def test_a_failure_of_no_message_blames_nobody_and_pauses_longer_and_longer() -> None:
    blame = Blame()
    assert [blame.failed([]) for _ in range(50)] == [None] * 50
    assert blame.pause([]) >= 5


@given(st.timedeltas(timedelta(), timedelta(days=30)))
def test_what_stands_aside_is_looked_at_again_at_growing_intervals(age: timedelta) -> None:
    wait = aside_until(NOW - age, NOW) - NOW
    assert timedelta(minutes=1) <= wait <= AGAIN_MAX


@given(
    st.binary(max_size=200)
    | st.recursive(
        st.none() | st.booleans() | st.text(),
        lambda one: st.dictionaries(
            st.sampled_from(["request", "to", "origin", "resolved", "expires_at", "price", "metadata", "x"]), one
        ),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_stands_in_a_row_is_a_message_that_can_be_told_of(body: bytes) -> None:
    found, why = salvage.read(body, "acme", "m-1", NOW)
    assert why
    assert (found.workspace_id, found.message_id) == ("acme", "m-1")
    assert found.to_json()


def test_what_can_be_read_is_kept() -> None:
    whole = json.loads(funded().to_json())
    found, why = salvage.read(json.dumps(whole | {"price": "?"}).encode(), "acme", "m-1", NOW)
    assert why is not None
    assert why.startswith("price")
    assert found.request.to == funded().request.to
    assert found.request.origin == funded().request.origin
    assert (found.resolved, found.expires_at) == (funded().resolved, funded().expires_at)
    assert salvage.read(b"\xff", "acme", "m-1", NOW)[0].expires_at == LATEST


def test_what_can_not_be_read_waits_to_be_repaired_and_may_be_cancelled() -> None:
    broken = message(unreadable="price: wrong")
    assert decide(broken, Facts(sender=SENDER), NOW) == Wait(
        Waiting.REPAIR, ReasonCode.EXPIRED_BEFORE_SENDING, NOW + timedelta(minutes=1)
    )
    cancelled = decide(message(unreadable="price: wrong", cancelled_by="ops"), Facts(sender=SENDER), NOW)
    assert isinstance(cancelled, Reject)
    assert cancelled.reason.code is ReasonCode.CANCELLED


@pytest.mark.postgres
async def test_an_unreadable_row_waits_visibly_and_expires_with_a_reason(world: World) -> None:  # noqa: F811
    await put(world, ["a", "broken", "b"], Lane.CONVERSATION)
    async with world.pool.pool.acquire(timeout=5) as connection:
        await connection.execute("update message set funded = $1, tries = '?' where message_id = 'broken'", UNREADABLE)
    async with world.driving():
        await until(lambda: len(world.calls) == 3)
        await world.reach_but_one("accepted", "waiting")
    async with world.pool.pool.acquire(timeout=5) as connection:
        row = await connection.fetchrow("select * from message where message_id = 'broken'")
        assert row is not None
        assert (row["state"], row["waiting_for"], row["told"], row["attempts"]) == ("waiting", "repair", ["repair"], 0)
        await connection.execute("update message set expires_at = clock_timestamp() where message_id = 'broken'")
        await Timers(world, world.settings, utc_now).expire()  # type: ignore[arg-type]
        told = [one.value or b"" for one in (await unpublished(connection, older_than_seconds=-1, limit=20)).values()]
    (rejected,) = [one for one in map(json.loads, told) if one.get("reason")]
    assert rejected["reason"]["code"] == "EXPIRED_BEFORE_SENDING"
    assert rejected["reason"]["evidence"]["waited_for"] == "repair"
    assert rejected["to"]["contact_id"] == "c-9"


@pytest.mark.postgres
async def test_a_message_on_which_our_code_fails_is_put_aside_and_its_neighbours_go(world: World) -> None:  # noqa: F811
    ids = [f"n-{number}" for number in range(20)]
    await put(world, ids, Lane.CONVERSATION)
    async with world.pool.pool.acquire(timeout=5) as connection:
        # Its person's window is closed, and the time until which that is not believed can't be computed.
        await connection.execute(
            "delete from conversation_window where phone ="
            " (select '+' || ltrim(phone, '+') from message where message_id = 'n-7')"
        )
        await connection.execute("update message set queued_at = 'infinity' where message_id = 'n-7'")
    with capture_logs() as logs:
        async with world.driving() as task:
            await until(lambda: len(world.calls) == 20)
            await world.reach_but_one("accepted", "waiting")
            assert not task.done()
    assert [one["message_id"] for one in logs if one["event"] == "a message was put aside"] == ["n-7"]
    async with world.pool.pool.acquire(timeout=5) as connection:
        row = await connection.fetchrow("select * from message where message_id = 'n-7'")
        assert row is not None
        assert (row["state"], row["waiting_for"], row["attempts"]) == ("waiting", "repair", 0)
        assert row["not_before"] > utc_now() + timedelta(seconds=40)
    assert len(set(world.calls)) == 20


@pytest.mark.postgres
async def test_what_may_have_been_called_is_not_put_aside(world: World) -> None:  # noqa: F811
    async with world.pool.pool.acquire(timeout=5) as connection:
        fence = await queue_store.take_over(connection, SENDER.sender_id)
        assert fence is not None
        key = ("acme", "m-1")
        await queue_store.mark_in_flight(connection, [key], fence)
        world.driver._fence = fence
        await world.driver._put_aside(key, ValueError("a bug"))
        assert await queue_store.message_state(connection, key) == "in_flight"
        await queue_store.take_over(connection, SENDER.sender_id)
        assert await queue_store.message_state(connection, key) == "unknown"
        assert (await store.senders(connection, [SENDER.sender_id]))[SENDER.sender_id].fence == fence + 1
