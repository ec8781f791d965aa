"""kill -9 of each service in mid-campaign: one outcome a message, none sent twice, the ledger sums up."""

import asyncio
import os
import signal

from outside import Outside, highest, until

SERVICES = ["consent", "billing", "dispatcher", "webhook-ingest", "message-log"]
CAMPAIGN = 400


async def kill(user: Outside, service: str) -> None:
    (pid, *_) = user.stack["pids"][service]
    os.kill(pid, signal.SIGKILL)

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


async def test_each_service_is_killed_in_mid_campaign(user: Outside) -> None:
    await user.set_up(credits=CAMPAIGN - 50, per_second=20)
    people = [(f"c{number}", user.person()) for number in range(CAMPAIGN)]
    await user.contacts(people)
    requests = [user.request(f"m{number}", f"c{number}") for number in range(CAMPAIGN)]
    await user.publish(*requests[: CAMPAIGN // 2])
    for service in SERVICES:
        await kill(user, service)
    await user.publish(*requests[CAMPAIGN // 2 :])
    for service in reversed(SERVICES):
        await kill(user, service)
    ids = [one["message_id"] for one in requests]
    # What was out while the dispatcher died is resolved by its webhook.
    outcomes = await user.settled(ids, seconds=240)
    reasons = sorted(str(reason) for _, reason in outcomes.values() if reason)
    assert reasons == ["INSUFFICIENT_CREDITS"] * 50
    # Whole requests that Meta did not refuse: a refusal for pace (130429) was surely not taken, and is tried again.
    calls = [
        call["biz_opaque_callback_data"]
        for call in await user.calls()
        if call["whole"] and (call["http_status"] or 200) < 400
    ]
    assert len(calls) == len(set(calls)) == CAMPAIGN - 50
    await ledger_sums_up(user)
    rejected = {event["message_id"] for event in await user.events("send.rejected")}
    statuses = await user.events("status.updated")
    for message_id in ids:
        told = [event for event in statuses if event["message_id"] == message_id]
        assert (message_id in rejected) != (highest(told) == "read"), message_id


async def ledger_sums_up(user: Outside) -> None:
    async def captured() -> bool:
        return len([entry for entry in await user.ledger() if entry["kind"] == "capture"]) == CAMPAIGN - 50

    await until(captured, "every receipt is captured")
    entries = await user.ledger()
    assert sum(entry["amount"] for entry in entries) == await user.balance() == 0
    kinds = [(entry["message_id"], entry["kind"]) for entry in entries if entry["message_id"]]
    assert len(kinds) == len(set(kinds))
    await asyncio.sleep(0)
