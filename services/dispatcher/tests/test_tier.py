"""The messaging limit on real PostgreSQL, over time: any history of calls and refusals of one portfolio."""

import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import pytest
from dispatcher import erasures, tier_store
from dispatcher.decide import Lane
from dispatcher.tier_store import DAY
from sendwhy.postgres import Connection, connect_pool

pytestmark = pytest.mark.postgres
NOW = datetime(2026, 11, 26, 12, tzinfo=UTC)
PORTFOLIO = "200"


@pytest.fixture
async def connection(migrated_database: str) -> AsyncIterator[Connection]:
    pool = await connect_pool(migrated_database, service="dispatcher-test")
    async with pool.acquire() as connection:
        yield connection
    await pool.close()


async def reach(connection: Connection, limit: int, people: list[str], now: datetime) -> list[tuple[str, datetime]]:
    """As a driver does it: whom there is a place for, by their calls' moments."""
    async with connection.transaction():
        tier = await tier_store.lock_tier(connection, PORTFOLIO, limit, now)
        assert tier.at is not None
        reached = await tier_store.reached_people(connection, PORTFOLIO, people, tier.at)
        places = tier.places
        going = []
        for person in people:
            if person in reached or places > 0:
                places -= person not in reached
                reached.add(person)
                going.append(person)
        moments = await tier_store.add_reached(connection, PORTFOLIO, going, tier.at)
    return list(zip(going, moments, strict=True))


@pytest.mark.parametrize("seed", range(6))
async def test_never_more_people_than_the_limit_in_any_moving_day(connection: Connection, seed: int) -> None:
    """Two replicas with different clocks; repeats, refusals, silences of more than a day, forgetting of old numbers."""
    chance, limit = random.Random(seed), 8
    now, kept = NOW, list[tuple[str, datetime]]()
    for _ in range(150):
        now += chance.choice([timedelta(seconds=1), timedelta(minutes=40), timedelta(hours=5)])
        if chance.random() < 0.03:
            now += chance.choice([timedelta(hours=23), timedelta(hours=30), timedelta(days=4)])
            await erasures.prune(connection, now)
        clock = now - timedelta(seconds=chance.choice([0, 0, 2]))
        people = [f"+{chance.randrange(30)}" for _ in range(chance.randrange(1, 6))]
        calls = await reach(connection, limit, people, clock)
        refused = [call for call in calls if chance.random() < 0.3]
        await tier_store.give_back(connection, PORTFOLIO, refused)
        kept += [call for call in calls if call not in refused]
        # The count that is carried is what counting would find.
        tier = await tier_store.lock_tier(connection, PORTFOLIO, limit, now)
        assert tier.at is not None
        assert tier.used == len({person for person, at in kept if at > tier.at - DAY})
        assert (await tier_store.read_tier(connection, PORTFOLIO, limit, tier.at)).used == tier.used
    for start in [at for _, at in kept]:
        assert len({person for person, at in kept if start <= at < start + DAY}) <= limit


async def test_a_place_is_free_a_day_after_the_call_and_not_a_microsecond_before(connection: Connection) -> None:
    assert await reach(connection, 1, ["+1"], NOW) == [("+1", NOW)]
    for late in (timedelta(0), DAY - timedelta(microseconds=1)):
        assert await reach(connection, 1, ["+2"], NOW + late) == []
    assert (await tier_store.read_tier(connection, PORTFOLIO, 1, NOW + timedelta(hours=1))).room_at == NOW + DAY
    assert await reach(connection, 1, ["+2"], NOW + DAY) == [("+2", NOW + DAY)]


async def test_who_waits_is_promised_a_place_of_its_own_and_each_lane_from_the_first(connection: Connection) -> None:
    limit = 4
    for hour in range(limit):
        await reach(connection, limit, [f"+{hour}"], NOW + timedelta(hours=hour))
    tier = await tier_store.lock_tier(connection, PORTFOLIO, limit, NOW + timedelta(hours=4))
    free = [NOW + DAY + timedelta(hours=hour) for hour in range(limit)]
    first = await tier_store.promise(connection, PORTFOLIO, tier, {Lane.MARKETING: 3})
    second = await tier_store.promise(connection, PORTFOLIO, tier, {Lane.MARKETING: 3, Lane.CONVERSATION: 1})
    assert first[Lane.MARKETING] == free[:3]
    assert second[Lane.CONVERSATION] == free[:1]
    assert second[Lane.MARKETING][0] == free[3]
    assert free[3] < second[Lane.MARKETING][1] < second[Lane.MARKETING][2]
    await tier_store.forget_promises(connection, PORTFOLIO)
    assert (await tier_store.promise(connection, PORTFOLIO, tier, {Lane.MARKETING: 1}))[Lane.MARKETING] == free[:1]


async def test_two_calls_to_one_person_count_until_none_is_left(connection: Connection) -> None:
    first, second = await reach(connection, 1, ["+1", "+1"], NOW)
    for call, used in ((second, 1), (first, 0)):
        await tier_store.give_back(connection, PORTFOLIO, [call])
        assert (await tier_store.lock_tier(connection, PORTFOLIO, 1, NOW)).used == used
