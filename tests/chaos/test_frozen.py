"""A replica that is stopped (SIGSTOP) in full swing is replaced; when it wakes it sends nothing that is another's."""

import asyncio
import random
import signal
from collections import Counter, defaultdict
from contextlib import AsyncExitStack
from datetime import datetime

import pytest
from proxies import MetaProxy, Seen, listening
from rig import Account, Dispatcher, Rig, judge, until

pytestmark = pytest.mark.asyncio(loop_scope="module")
MESSAGES = 800
FREEZES = 1
# What is told where nobody takes over: who holds what at the database.
STANDING = """
select application_name, state, wait_event_type, wait_event, now() - state_change as since, pg_blocking_pids(pid) as by,
       left(query, 100) as query
from pg_stat_activity where application_name like 'sendwhy-dispatcher%'
"""


async def drivers(rig: Rig, accounts: list[Account], replicas: list[Dispatcher]) -> dict[str, tuple[Dispatcher, int]]:
    """By sender, who took it over last and under which fence, as the replicas' logs tell."""
    fences = {one.sender_id: await rig.fence(one) for one in accounts}
    owners = tenures(replicas)
    return {sender: (owners[sender, fence][0], fence) for sender, fence in fences.items() if (sender, fence) in owners}


def tenures(replicas: list[Dispatcher]) -> dict[tuple[str, int], tuple[Dispatcher, float]]:
    """Who drove a sender under which fence, and since when."""
    return {
        (line["sender"], line["fence"]): (one, datetime.fromisoformat(line["timestamp"]).timestamp())
        for one in replicas
        for line in one.said()
        if line["event"] == "driving sender"
    }


@pytest.mark.timeout(400)
async def test_a_frozen_replica_is_replaced_and_wakes_to_nothing(chaos: Rig) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    host = ("127.0.0.1", int(chaos.meta_url.rpartition(":")[2]))
    async with AsyncExitStack() as stack:
        doors = [MetaProxy(host), MetaProxy(host)]
        for door in doors:
            await stack.enter_async_context(listening(door))
        replicas = [
            await chaos.start(name, meta_url=door.url, unknown_outcome_seconds=5)
            for name, door in zip("ab", doors, strict=True)
        ]
        for one in replicas:
            await chaos.ready(one)
        await chaos.sim("PUT", "/settings", {"latency_ms": 30})
        accounts = [await chaos.account(replicas[0], per_second=20) for _ in range(4)]
        count = MESSAGES // len(accounts)
        for account in accounts:
            await chaos.publish(account.funded(number) for number in range(count))
        for _ in range(FREEZES):
            await asyncio.sleep(chance.uniform(0.5, 1.5))
            await freeze_one(chaos, accounts, replicas, chance)

        async def all_settled() -> bool:
            states = await chaos.states(*accounts)
            return states["accepted"] + states["rejected"] == MESSAGES

        await until(all_settled, "all settled", 90)
        verdict = await judge(chaos, *accounts)
        print(dict(verdict.table), f"{verdict.calls} calls")
        assert not verdict.violations
        assert verdict.table["accepted"] > MESSAGES * 0.9
        judge_callers(await marks(chaos, accounts), replicas, [door.seen for door in doors])
        print("worst sliding second:", {one.sender_id: worst_second(await chaos.calls(one)) for one in accounts})
        await chaos.stop(*replicas)


async def freeze_one(rig: Rig, accounts: list[Account], replicas: list[Dispatcher], chance: random.Random) -> None:
    """Stop a replica that drives somebody until the other one drives all of its senders and goes on."""
    driving = await drivers(rig, accounts, replicas)
    victim = chance.choice(sorted((owner for owner, _ in driving.values()), key=lambda one: one.name))
    frozen = victim.name
    before = {sender: fence for sender, (owner, fence) in driving.items() if owner is victim}
    mine = [account for account in accounts if account.sender_id in before]
    victim.signal(signal.SIGSTOP)
    try:

        async def is_replaced() -> bool:
            return all([await rig.fence(account) > before[account.sender_id] for account in mine])

        try:
            await until(is_replaced, f"{frozen} is replaced", 90)
        except AssertionError:
            for row in await rig.sql(STANDING):
                print(dict(row))
            for one in replicas:
                print(one.name, *one.said()[-5:], sep="\n")
            raise
        sent = len(await rig.calls(*mine))

        async def goes_on() -> bool:
            states = await rig.states(*mine)
            return len(await rig.calls(*mine)) > sent or not states["waiting"]

        await until(goes_on, "the other goes on", 40)
        print(f"{frozen} with {len(mine)} senders was replaced")
    finally:
        victim.signal(signal.SIGCONT)


async def marks(rig: Rig, accounts: list[Account]) -> dict[str, tuple[str, int, int]]:
    """By `workspace:message`: sender, and fence and number of the last try."""
    rows = await rig.sql(
        "select workspace_id, message_id, sender_id, fence, attempts from message where workspace_id = any($1::text[])",
        [one.workspace for one in accounts],
    )
    return {
        f"{row['workspace_id']}:{row['message_id']}": (row["sender_id"], row["fence"], row["attempts"]) for row in rows
    }


def judge_callers(marked: dict[str, tuple[str, int, int]], replicas: list[Dispatcher], seen: list[list[Seen]]) -> None:
    """Every call was made by whom the fence of its mark names, and none after that fence was over."""
    known = tenures(replicas)
    last: dict[str, tuple[Dispatcher, float]] = defaultdict()
    for replica, calls in zip(replicas, seen, strict=True):
        for call in calls:
            if call.key not in last or last[call.key][1] < call.at:
                last[call.key] = (replica, call.at)
    callers: Counter[str] = Counter()
    for key, (replica, at) in last.items():
        if key not in marked:
            continue
        sender, fence, _ = marked[key]
        owner, since = known[sender, fence]
        callers[replica.name] += 1
        assert owner is replica, (key, fence, owner.name, replica.name)
        following = known.get((sender, fence + 1))
        assert following is None or at < following[1], (key, fence, at, following[1] if following else None)
        assert at >= since
    assert set(callers) == {one.name for one in replicas}


def worst_second(calls: dict[str, list[dict[str, str]]]) -> int:
    moments = sorted(datetime.fromisoformat(call["at"]).timestamp() for each in calls.values() for call in each)
    return max((sum(1 for at in moments if start <= at < start + 1) for start in moments), default=0)
