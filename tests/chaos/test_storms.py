"""Storms at Meta's end: a campaign waits, says for what, and finishes by itself; a reply overtakes it."""

import asyncio
import os
from collections import Counter
from datetime import UTC, datetime

import pytest
from dispatcher.limits import SILENT_MAX
from proxies import MetaProxy, listening
from rig import Account, Json, Rig, Verdict, judge, until
from sendwhy.events import SenderReported, event_id_of

pytestmark = pytest.mark.asyncio(loop_scope="module")
# By hand: SENDWHY_OUTAGE_SECONDS=600.
OUTAGE_SECONDS = float(os.environ.get("SENDWHY_OUTAGE_SECONDS", "5"))


async def settle(rig: Rig, account: Account, count: int) -> Verdict:
    async def all_settled() -> bool:
        states = await rig.states(account)
        return states["accepted"] + states["rejected"] == count

    await until(all_settled, "all settled", 150)
    verdict = await judge(rig, account)
    print(dict(verdict.table), f"{verdict.calls} calls")
    assert not verdict.violations
    return verdict


async def held(rig: Rig, account: Account, scope: str) -> list[Json]:
    """What was told of holds of that kind, in order."""
    told = [event for each in (await rig.events(account))["send.held"].values() for event in each]
    return sorted((one for one in told if one["scope"]["kind"] == scope), key=lambda one: one["occurred_at"])


async def until_sent(rig: Rig, account: Account, count: int) -> None:
    async def sent() -> bool:
        return (await rig.states(account))["accepted"] >= count

    await until(sent, f"{count} are sent")


async def outage(rig: Rig, account: Account, count: int) -> None:
    """A reply that comes when Meta is down; and what an outage must not cost."""
    before = await rig.states(account)
    await asyncio.sleep(OUTAGE_SECONDS)
    during = await rig.states(account)
    lost = during["unknown"] + during["rejected"] - before["unknown"] - before["rejected"]
    # What was out, what opened the circuit, and a try now and then.
    assert lost <= 3 * SILENT_MAX + OUTAGE_SECONDS / 20, during
    assert during["waiting"] > count / 2
    (told,) = await rig.sql("select hold from sender where sender_id = $1", account.sender_id)
    assert b"TEMPORARY_FAILURE" in told["hold"]
    # Told once, however many tries find the same.
    (sender_held,) = await held(rig, account, "sender")
    assert sender_held["cause"] == "TEMPORARY_FAILURE"
    await rig.publish([account.funded(1, reply=True)])


async def first_of_recovery(rig: Rig, account: Account, sent_before: int) -> None:
    """The reply went before nearly all of the campaign: what tried the line, and what was out, may have gone first."""
    calls = sorted(
        (call["at"], key) for key, each in (await rig.calls(account)).items() for call in each if call["wamid"]
    )
    position = next(index for index, (_, key) in enumerate(calls) if key.endswith(":r1"))
    assert position <= sent_before + 2 * SILENT_MAX


@pytest.mark.timeout(OUTAGE_SECONDS + 300)
@pytest.mark.parametrize("kind", ["refuses connections", "answers 502 with a page"])
async def test_meta_is_down_for_a_while(chaos: Rig, kind: str) -> None:
    count = 400
    async with listening(MetaProxy(("127.0.0.1", int(chaos.meta_url.rpartition(":")[2])))) as door:
        one = await chaos.ready(await chaos.start("one", meta_url=door.url, unknown_outcome_seconds=5))
        await chaos.sim("PUT", "/settings", {"latency_ms": 20})
        account = await chaos.account(one)
        await open_window(chaos, account)
        await chaos.publish(account.funded(number) for number in range(count))
        await until_sent(chaos, account, 50)
        if kind == "refuses connections":
            await door.refuse()
        else:
            await chaos.sim("PUT", "/settings", {"latency_ms": 20, "answers": {"502": 1}})
        sent = (await chaos.states(account))["accepted"]
        await outage(chaos, account, count)
        await chaos.sim("PUT", "/settings", {"latency_ms": 20})
        if kind == "refuses connections":
            await door.listen()
        verdict = await settle(chaos, account, count + 1)
        await first_of_recovery(chaos, account, sent + 10)
        assert set(verdict.table) <= {"accepted", "SEND_OUTCOME_UNKNOWN"}
        assert (await chaos.sender(one, account))["hold"] is None
        await chaos.stop(one)


async def open_window(rig: Rig, account: Account) -> None:
    await rig.sql(
        "insert into conversation_window values ($1, $2, clock_timestamp())", account.sender_id, account.phone(1)
    )


async def test_a_storm_of_130429_passes(chaos: Rig) -> None:
    count = 300
    one = await chaos.ready(await chaos.start("one"))
    account = await chaos.account(one)
    await chaos.sim("PUT", "/settings", {"latency_ms": 10, "answers": {"429": 0.9}})
    await chaos.publish(account.funded(number) for number in range(count))
    await asyncio.sleep(4)
    calls = await chaos.calls(account)
    refused = Counter(call["http_status"] for each in calls.values() for call in each)
    # A refusal for pace is a second of rest: far from 80 calls a second.
    assert refused[429] < 120, refused
    await chaos.sim("PUT", "/settings", {"latency_ms": 10})
    verdict = await settle(chaos, account, count)
    assert verdict.table == {"accepted": count}
    await chaos.stop(one)


async def test_a_token_expires_in_mid_campaign_and_is_repaired(chaos: Rig) -> None:
    count = 300
    one = await chaos.ready(await chaos.start("one"))
    await chaos.sim("PUT", "/settings", {"latency_ms": 10})
    account = await chaos.account(one)
    await chaos.publish(account.funded(number) for number in range(count))
    await until_sent(chaos, account, 50)
    account.credential = "the-new-token"
    await chaos.number(account)

    async def is_held() -> bool:
        hold = (await chaos.sender(one, account))["hold"]
        return hold is not None and hold["code"] == "SENDER_CREDENTIALS_REJECTED"

    await until(is_held, "the sender is held")
    told = [event for each in (await chaos.events(account))["send.held"].values() for event in each]
    assert [one["cause"] for one in told if one["scope"]["kind"] != "message"] == ["SENDER_CREDENTIALS_REJECTED"]
    assert (await chaos.states(account))["rejected"] == 0
    await chaos.put_sender(one, account)
    assert (await settle(chaos, account, count)).table == {"accepted": count}
    await chaos.stop(one)


async def test_a_tier_runs_out_and_is_raised(chaos: Rig) -> None:
    count, limit = 120, 50
    one = await chaos.ready(await chaos.start("one"))
    account = await chaos.account(one, limit=limit)
    await chaos.publish(account.funded(number) for number in range(count))
    await until_sent(chaos, account, limit)

    async def all_wait() -> bool:
        rows = await chaos.sql(
            "select count(*) as n from message where workspace_id = $1 and waiting_for = 'tier'", account.workspace
        )
        return bool(rows[0]["n"] == count - limit)

    await until(all_wait, "the rest waits for the tier")
    assert (await chaos.states(account))["accepted"] == limit
    assert {one["cause"] for one in await held(chaos, account, "message")} == {"MESSAGING_LIMIT_REACHED"}
    now = datetime.now(UTC)
    report = SenderReported(
        event_id=event_id_of(account.waba_id, "raised"),
        occurred_at=now,
        waba_id=account.waba_id,
        field="business_capability_update",
        raw={"max_daily_conversation_per_phone": 1000, "max_daily_conversations_per_business": 1000},
    )
    await chaos.producer.send_and_wait("sender.reported", report.to_json(), key=account.waba_id.encode())
    assert (await settle(chaos, account, count)).table == {"accepted": count}
    await chaos.stop(one)


async def test_a_template_is_paused_in_mid_campaign(chaos: Rig) -> None:
    count = 300
    one = await chaos.ready(await chaos.start("one"))
    await chaos.sim("PUT", "/settings", {"latency_ms": 10})
    account = await chaos.account(one)
    await chaos.publish(account.funded(number) for number in range(count))
    await until_sent(chaos, account, 50)
    await chaos.sim("PATCH", f"/templates/{account.waba_id}/autumn_sale/en_US", {"status": "PAUSED"})
    verdict = await settle(chaos, account, count)
    assert set(verdict.table) == {"accepted", "TEMPLATE_NOT_APPROVED"}
    assert verdict.table["accepted"] >= 50
    await chaos.stop(one)
