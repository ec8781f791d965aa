"""Credits as an accountant sees them, over the whole stack and from outside."""

import csv
import io
from datetime import UTC, datetime, timedelta

from outside import Json, Outside, template, text, until

ORDER = template("7", name="order_update", language="en_US")


async def charge(user: Outside, message_id: str) -> Json:
    told: Json = await user.ok("GET", "billing", f"/messages/{message_id}/charge")
    return told


async def until_charge(user: Outside, message_id: str, *states: str) -> Json:
    """The charge, once it is in such a state: billing may hear of it a little after the message log."""

    async def is_so() -> bool:
        return (await charge(user, message_id))["state"] in states

    await until(is_so, f"{message_id} is {' or '.join(states)}")
    return await charge(user, message_id)


async def until_categories_are_known(user: Outside) -> None:
    """A template that was synced just now reaches billing a little later; until then its price is assumed."""
    body = {"requests": [user.request("ask", "nobody"), user.request("ask", "nobody", content=ORDER)]}

    async def are_known() -> bool:
        answer = await user.call("POST", user.at("billing", "/v1/evaluate"), body)
        return not any(result["gates"][0]["evidence"]["assumed"] for result in answer.json()["results"])

    await until(are_known, "the templates' categories")


async def test_who_came_first_goes_out_and_a_top_up_retries_nothing(user: Outside) -> None:
    await user.set_up(credits=3)
    ids = [f"m{number}" for number in range(5)]
    await user.contacts([(name, user.person()) for name in ids])
    await user.publish(*(user.request(name, name) for name in ids))
    outcomes = await user.settled(ids)
    refused = [name for name in ids if outcomes[name] == ("failed", "INSUFFICIENT_CREDITS")]
    assert len(refused) == 2
    events = {event["message_id"]: event["reason"]["evidence"] for event in await user.events("send.rejected")}
    assert set(events) == set(refused)
    campaign = {"kind": "campaign", "id": "black-friday"}
    assert sorted(evidence["scope"]["refused"] for evidence in events.values()) == [1, 2]
    for evidence in events.values():
        assert (evidence["balance"], evidence["price"], evidence["shortfall"]) == (0, 1, 1)
        assert (evidence["scope"]["origin"], evidence["scope"]["funded"]) == (campaign, 3)
    alerts = await user.ok("GET", "billing", "/alerts")
    assert [item["threshold"] for item in alerts["items"]] == [0, 10, 20]

    await user.ok("POST", "billing", "/top-ups", {"credits": 10, "reference": "2"}, **{"idempotency-key": "second"})
    await user.publish(*(user.request(name, name) for name in ids), user.request("new", ids[0]))
    assert await user.settled(["new"]) == {"new": ("read", None)}
    assert await user.settled(ids) == outcomes
    for name in refused:
        told = await charge(user, name)
        assert (told["state"], told["credits"], told["refusal"]["code"]) == ("not_charged", 0, "INSUFFICIENT_CREDITS")
    assert await user.balance() == 9
    assert len(await user.calls()) == 4


async def test_after_a_top_up_what_can_go_is_sent_again_once_for_what_the_plan_said(user: Outside) -> None:
    await user.set_up(credits=1)
    ids = [f"m{number}" for number in range(3)]
    await user.contacts([(name, user.person()) for name in ids])
    await user.publish(*(user.request(name, name) for name in ids))
    outcomes = await user.settled(ids)
    short = sorted(name for name in ids if outcomes[name][1] == "INSUFFICIENT_CREDITS")
    assert len(short) == 2
    broke = await judged(user, "/send-again?campaign=black-friday")
    assert (broke["going"], broke["credits"]["short"]) == (0, 2)
    await user.ok("POST", "billing", "/top-ups", {"credits": 5, "reference": "2"}, **{"idempotency-key": "second"})

    plan = await judged(user, "/send-again?campaign=black-friday")
    assert (plan["going"], plan["credits"]["going"], plan["credits"]["short"]) == (2, 2, 0)
    confirmed = {"messages": 2, "credits": 2}
    await user.ok("POST", "message-log", f"/send-again/{plan['id']}/confirm", confirmed)
    repeats = {}
    for name in short:
        repeats[name] = await until_sent_again(user, name)
    assert await user.settled(repeats.values()) == dict.fromkeys(repeats.values(), ("read", None))
    assert await user.settled(ids) == outcomes
    assert (await user.message(repeats[short[0]]) or {})["resend_of"] == short[0]
    assert await user.balance() == 3
    assert (await judged(user, "/send-again?campaign=black-friday"))["going"] == 0
    assert len(await user.calls()) == 3


async def judged(user: Outside, path: str) -> Json:
    view: Json = await user.ok("POST", "message-log", path)

    async def has_ended() -> bool:
        nonlocal view
        view = await user.ok("GET", "message-log", f"/send-again/{view['id']}")
        return bool(view["state"] != "running")

    await until(has_ended, "the plan is judged")
    return view


async def until_sent_again(user: Outside, message_id: str) -> str:
    async def is_so() -> bool:
        return bool((await user.message(message_id) or {})["sent_again_as"])

    await until(is_so, f"{message_id} is sent again")
    return str((await user.message(message_id) or {})["sent_again_as"][0]["message_id"])


async def test_every_charge_is_explained_and_the_statement_is_the_ledger(user: Outside) -> None:
    await user.set_up()
    price = {"category": "marketing", "calling_code": "52", "credits": 3, "valid_from": "2026-01-01T00:00:00Z"}
    await user.ok("PUT", "billing", "/prices", [price])
    await until_categories_are_known(user)
    people = {name: user.person() for name in ("read", "failed", "rejected", "recalled", "cancelled")}
    await user.contacts(people.items())
    errors = [{"code": 131026, "title": "told", "error_data": {"details": "why"}}]
    await user.sim("PUT", f"/recipients/{people['failed']}", {"scenario": "failed", "errors": errors})
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    api = {"kind": "api"}
    await user.publish(
        user.request("read", "read"),
        user.request("failed", "failed", content=ORDER, origin=api),
        user.request("rejected", "rejected", content=text(), origin={"kind": "inbox", "thread_id": "t", "agent": "a"}),
        user.request("recalled", "recalled", send_at=later),
        user.request("cancelled", "cancelled", send_at=later),
    )
    await user.settled(["read", "failed", "rejected"])
    for name in ("recalled", "cancelled"):
        await until_funded(user, name)
    await user.ok("POST", "dispatcher", "/messages/cancelled/cancel")
    stop = {
        "phone_number_id": user.sender_id,
        "from": people["recalled"],
        "message": {"type": "text", "text": {"body": "STOP"}},
    }
    await user.sim("POST", "/inbound", stop)
    await user.settled(["recalled", "cancelled"])

    read = await until_charge(user, "read", "captured")
    assert (read["credits"], read["summary"]) == (3, "This message costs 3 credits.")
    assert (read["price"]["row"]["calling_code"], read["price"]["country"], read["price"]["assumed"]) == (
        "52",
        "MX",
        False,
    )
    assert [entry["kind"] for entry in read["entries"]] == ["reserve", "capture"]
    assert (read["meta_pricing"]["category"], read["pricing_differences"]) == ("marketing", [])
    failed = await until_charge(user, "failed", "released", "refunded")
    assert failed["credits"] == 0
    assert failed["entries"][-1]["cause"]["reason"] == "RECIPIENT_NOT_ON_WHATSAPP"
    for name, reason in [
        ("rejected", "OUTSIDE_24_HOUR_WINDOW"),
        ("recalled", "CUSTOMER_IS_NOT_OPTED_IN"),
        ("cancelled", "CANCELLED"),
    ]:
        told = await until_charge(user, name, "released")
        cause = told["entries"][-1]["cause"]
        assert (told["credits"], cause["kind"], cause["reason"]) == (0, "send.rejected", reason)
    await statement_is_the_ledger(user)


async def until_funded(user: Outside, message_id: str) -> None:
    path = f"/v1/workspaces/{user.workspace}/messages/{message_id}/charge"

    async def is_funded() -> bool:
        return (await user.call("GET", user.at("billing", path))).status_code == 200

    await until(is_funded, f"{message_id} is funded")


async def statement_is_the_ledger(user: Outside) -> None:
    ledger = await user.ledger()
    days = sorted(entry["at"][:10] for entry in ledger)
    end = (datetime.fromisoformat(days[-1]) + timedelta(days=1)).date().isoformat()
    query = f"from={days[0]}&to={end}&by=day,campaign,category,country&zone=UTC"
    told = await user.ok("GET", "billing", f"/statements?{query}")
    assert (told["opening_balance"], told["closing_balance"]) == (0, await user.balance())
    assert sum(row["net"] for row in told["rows"]) == sum(entry["amount"] for entry in ledger) == told["totals"]["net"]
    by_kind = {
        kind: sum(entry["price"] for entry in ledger if entry["kind"] == kind) for kind in ("reserve", "release")
    }
    assert (told["totals"]["reserved"], told["totals"]["released"]) == (by_kind["reserve"], by_kind["release"])
    assert {row["country"] for row in told["rows"] if row["messages"]} == {"MX"}
    answer = await user.call("GET", user.at("billing", f"/v1/workspaces/{user.workspace}/statements.csv?{query}"))
    lines = list(csv.DictReader(io.StringIO(answer.text)))
    assert lines[-1]["balance"] == str(told["closing_balance"])
    assert sum(int(line["net"]) for line in lines if line["line"] == "row") == told["totals"]["net"]
