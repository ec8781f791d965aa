"""kill -9 of each service in mid-campaign: one outcome a message, none sent twice, the ledger sums up."""

import asyncio
import os
import signal

import pytest
from outside import Outside, highest, until

SERVICES = ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]
CAMPAIGN = 400
CREDITS = 350


async def kill(user: Outside, *services: str) -> None:
    """kill -9 at once, and wait until each is back."""
    pids = {service: user.stack["pids"][service][0] for service in services}
    for pid in pids.values():
        os.kill(pid, signal.SIGKILL)
    await asyncio.gather(*(_back(user, service, pid) for service, pid in pids.items()))


async def _back(user: Outside, service: str, pid: int) -> None:
    async def back() -> bool:
        # stack.json may be rewritten at this very moment, and the service may not listen yet.
        if pid in user.stack["pids"][service]:
            return False
        try:
            return (await user.http.get(user.at(service, "/readyz"))).status_code == 200
        except OSError:
            return False
        except Exception as error:
            if type(error).__module__.startswith("httpx"):
                return False
            raise

    await until(back, f"{service} is back")


@pytest.mark.timeout(600)
async def test_each_service_is_killed_in_mid_campaign(user: Outside) -> None:
    await user.set_up(credits=CREDITS, per_second=20)
    people = [(f"c{number}", user.person()) for number in range(CAMPAIGN)]
    await user.contacts(people)
    requests = [user.request(f"m{number}", f"c{number}") for number in range(CAMPAIGN)]
    await user.publish(*requests[: CAMPAIGN // 2])
    for service in SERVICES:
        await kill(user, service)
    await user.publish(*requests[CAMPAIGN // 2 :])
    # All at once, as when the machine dies.
    await kill(user, *SERVICES)
    ids = [one["message_id"] for one in requests]
    outcomes = await user.settled(ids, seconds=240)
    called = await taken_calls(user)
    assert len(called) == len(set(called)), "a message was sent twice"
    # A dispatcher that dies between its mark and its call leaves a message of which nobody can know whether it was
    # sent. If it was, its webhook tells so, however late; if not, it is never sent again.
    unknown = {one for one, (_, reason) in outcomes.items() if reason == "SEND_OUTCOME_UNKNOWN"}
    await user.settled_as(unknown & set(called), "read")
    never_sent = unknown - set(called)
    refused = {one for one, (_, reason) in outcomes.items() if reason == "INSUFFICIENT_CREDITS"}
    assert set(called) | never_sent | refused == set(ids)
    assert len(called) + len(never_sent) + len(refused) == CAMPAIGN
    # The credits of what was never sent came back, perhaps in time for another message.
    assert CAMPAIGN - CREDITS - len(never_sent) <= len(refused) <= CAMPAIGN - CREDITS
    await ledger_sums_up(user, len(called))
    rejected = {event["message_id"] for event in await user.events("send.rejected")}
    statuses = await user.events("status.updated")
    for message_id in ids:
        told = highest(event for event in statuses if event["message_id"] == message_id)
        assert (told == "read") == (message_id in called), message_id
        assert (message_id in rejected) == (message_id in unknown | refused), message_id


async def taken_calls(user: Outside) -> list[str]:
    """The messages of whole requests that Meta did not refuse: a refusal for pace (130429) was surely not taken, and
    is tried again."""
    prefix = f"sw1:{user.workspace}:"
    return [
        call["biz_opaque_callback_data"].removeprefix(prefix)
        for call in await user.calls()
        if call["whole"] and (call["http_status"] or 200) < 400
    ]


async def ledger_sums_up(user: Outside, sent: int) -> None:
    async def captured() -> bool:
        return len([entry for entry in await user.ledger() if entry["kind"] == "capture"]) == sent

    await until(captured, "every receipt is captured")
    entries = await user.ledger()
    assert sum(entry["amount"] for entry in entries) == await user.balance() == CREDITS - sent
    kinds = [(entry["message_id"], entry["kind"]) for entry in entries if entry["message_id"]]
    assert len(kinds) == len(set(kinds))
