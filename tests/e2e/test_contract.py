"""The system driven by contract.md alone, from outside: nothing of ours is imported."""

import json
from pathlib import Path

from outside import LADDER, TEMPLATES, Outside, highest, template, text, until

EXAMPLES = Path(__file__).parent / "meta-examples.jsonl"


async def test_a_message_becomes_blue_ticks(user: Outside) -> None:
    await user.set_up()
    phone = user.person()
    await user.contact("c1", phone)
    await user.publish(user.request("m1", "c1", metadata={"order": "4711"}))
    assert await user.settled(["m1"]) == {"m1": ("read", None)}
    message = await user.message("m1")
    assert message is not None
    assert {event["service"] for event in message["events"]} >= {"consent", "billing", "dispatcher", "webhook-ingest"}

    async def announced() -> bool:
        return "accepted" in {event["status"] for event in await user.events("status.updated")}

    await until(announced, "accepted")
    events = await user.events("status.updated")
    accepted = [event for event in events if event["status"] == "accepted"]
    assert len(accepted) == 1
    assert accepted[0]["metadata"] == {"order": "4711"}
    assert accepted[0]["receipt_deadline"] > accepted[0]["occurred_at"]
    assert highest(events) == "read"
    assert await user.balance() == 999

    async def captured() -> bool:
        return sorted(entry["kind"] for entry in await user.ledger()) == ["capture", "reserve", "top_up"]

    # Billing hears of a receipt for itself, up to a second after the log, or later where much comes.
    await until(captured, "captured")


async def test_each_reason_of_ours_is_caused_by_data(user: Outside) -> None:
    await user.set_up()
    await user.contact("subscribed", user.person())
    await user.contact("stopped", user.person(), "UNSUBSCRIBED")
    await user.contact("never", user.person(), "NOT_SUBSCRIBED")
    await user.contact("national", "5512345678")
    await user.contact("impossible", "+52551")
    ask = user.request
    inbox = {"origin": {"kind": "inbox", "thread_id": "t", "agent": "a"}}
    await user.publish(
        ask("stopped", "stopped"),
        ask("never", "never"),
        ask("nobody", "nobody"),
        ask("national", "national"),
        ask("impossible", "impossible"),
        ask("no-template", "subscribed", content=template("x", name="autum_sale")),
        ask("no-language", "subscribed", content=template("x", language="en_GB")),
        ask("not-mapped", "subscribed", content=template()),
        ask("window", "subscribed", content=text(), **inbox),
        ask("no-sender", "subscribed", sender_id="99999999"),
    )
    expected = {
        "stopped": ("failed", "CUSTOMER_IS_NOT_OPTED_IN"),
        "never": ("failed", "CUSTOMER_IS_NOT_OPTED_IN"),
        "nobody": ("failed", "CUSTOMER_IS_NOT_OPTED_IN"),
        "national": ("failed", "CUSTOMER_IS_MISSING_CALLING_CODE"),
        "impossible": ("failed", "PHONE_NUMBER_IMPOSSIBLE"),
        "no-template": ("failed", "TEMPLATE_NOT_APPROVED"),
        "no-language": ("failed", "TEMPLATE_NOT_APPROVED"),
        "not-mapped": ("failed", "TEMPLATE_PARAMETERS_MISMATCH"),
        "window": ("failed", "OUTSIDE_24_HOUR_WINDOW"),
        "no-sender": ("failed", "SENDER_NOT_AVAILABLE"),
    }
    assert await user.settled(expected) == expected
    rejected = {event["message_id"]: event for event in await user.events("send.rejected")}
    assert rejected["stopped"]["service"] == "consent"
    assert rejected["stopped"]["reason"]["evidence"]["marketing_state"] == "UNSUBSCRIBED"
    assert rejected["not-mapped"]["service"] == "dispatcher"
    assert await user.calls() == []
    assert await user.balance() == 1000


async def test_no_account_no_credits(user: Outside) -> None:
    await user.set_up(credits=0)
    await user.contact("c1", user.person())
    await user.publish(user.request("m1", "c1"))
    assert await user.settled(["m1"]) == {"m1": ("failed", "INSUFFICIENT_CREDITS")}
    (event,) = await user.events("send.rejected")
    assert event["service"] == "billing"
    assert event["reason"]["evidence"]["balance"] == 0
    assert event["reason"]["evidence"]["shortfall"] == 1


async def test_a_conversation_within_its_window(user: Outside) -> None:
    await user.set_up()
    phone = user.person()
    await user.contact("c1", phone, "UNSUBSCRIBED")
    inbound = {"phone_number_id": user.sender_id, "from": phone, "message": {"type": "text", "text": {"body": "Hi"}}}
    await user.sim("POST", "/inbound", inbound)
    origin = {"kind": "inbox", "thread_id": "t", "agent": "a"}
    await user.publish(user.request("m1", "c1", content=text(), origin=origin))
    assert await user.settled(["m1"]) == {"m1": ("read", None)}


async def test_a_stop_unsubscribes_and_its_word_is_the_evidence(user: Outside) -> None:
    await user.set_up()
    phone = user.person()
    await user.contact("c1", phone)
    await user.publish(user.request("later", "c1", send_at=None, content=template("Inés")))
    await user.settled(["later"])
    stop = {"phone_number_id": user.sender_id, "from": phone, "message": {"type": "text", "text": {"body": "STOP"}}}
    await user.sim("POST", "/inbound", stop)

    async def unsubscribed() -> bool:
        told = await user.ok("GET", "consent", "/contacts/c1")
        return bool(told["marketing_state"] == "UNSUBSCRIBED")

    await until(unsubscribed, "STOP")
    await user.publish(user.request("after", "c1"))
    assert await user.settled(["after"]) == {"after": ("failed", "CUSTOMER_IS_NOT_OPTED_IN")}


FAILED_BY_META = [
    (131026, "RECIPIENT_NOT_ON_WHATSAPP"),
    (131049, "MARKETING_CAP_REACHED"),
    (130472, "RECIPIENT_IN_META_EXPERIMENT"),
    (131053, "MEDIA_FAILED"),
    (777777, "META_ERROR"),
]


async def test_what_meta_says_has_its_reason(user: Outside) -> None:
    await user.set_up()
    expected = {}
    for code, reason in FAILED_BY_META:
        for channel in ("later", "at-once"):
            name = f"{channel}-{code}"
            phone = user.person()
            scenario = (
                {"scenario": "failed", "errors": [{"code": code, "title": "told", "error_data": {"details": "why"}}]}
                if channel == "later"
                else {
                    "scenario": "answer",
                    "http_status": 400,
                    "body": {"error": {"message": "told", "code": code, "error_data": {"details": "why"}}},
                }
            )
            await user.sim("PUT", f"/recipients/{phone}", scenario)
            await user.contact(name, phone)
            expected[name] = ("failed", reason)
    await user.publish(*(user.request(name, name) for name in expected))
    assert await user.settled(expected) == expected
    for name in expected:
        message = await user.message(name)
        assert message is not None
        assert message["reason"]["meta"]["code"] == int(name.rsplit("-", 1)[1])


async def test_repeats_change_nothing(user: Outside) -> None:
    """Each request twice, each webhook three times more and in reverse order."""
    await user.set_up()
    people = [(f"c{number}", user.person()) for number in range(20)]
    await user.contacts(people)
    requests = [user.request(f"m{number}", f"c{number}") for number in range(20)]
    await user.publish(*requests)
    await user.publish(*reversed(requests))
    before = await user.settled([one["message_id"] for one in requests])
    told = [json.loads(line) for line in (await user.sim("GET", "/webhooks")).text.splitlines()]
    mine = [one["body"] for one in told if user.workspace in str(one["biz_opaque_callback_data"])]
    assert len(mine) == 60
    for _ in range(3):
        for body in reversed(mine):
            assert await user.post_webhook(json.dumps(body).encode()) == 200
    await user.publish(*requests)
    await user.publish(user.request("last", "c0"))
    await user.settled(["last"])
    assert await user.settled([one["message_id"] for one in requests]) == before
    assert len([call for call in await user.calls() if not call["biz_opaque_callback_data"].endswith(":last")]) == 20
    entries = [entry for entry in await user.ledger() if entry["message_id"] and entry["message_id"] != "last"]
    assert sorted((entry["message_id"], entry["kind"]) for entry in entries) == sorted(
        (one["message_id"], kind) for one in requests for kind in ("reserve", "capture")
    )
    events = await user.events("status.updated")
    for one in requests:
        accepted = {e["event_id"] for e in events if e["message_id"] == one["message_id"] and e["status"] == "accepted"}
        assert len(accepted) == 1
    contents: dict[str, str] = {}
    for event in events + await user.events("send.rejected"):
        assert contents.setdefault(event["event_id"], json.dumps(event, sort_keys=True)) == json.dumps(
            event, sort_keys=True
        )


async def test_metas_examples_are_understood_or_kept(user: Outside) -> None:
    await user.set_up()
    lines = [json.loads(line) for line in EXAMPLES.read_text().splitlines()]
    for line in lines:
        assert await user.post_webhook(json.dumps(line["payload"]).encode()) == 200, line["name"]
    wamids = {
        element["id"]
        for line in lines
        for entry in line["payload"]["entry"]
        for change in entry["changes"]
        for element in change["value"].get("statuses", []) + change["value"].get("messages", [])
        if element.get("status", "sent") in (*LADDER, "failed")
    }

    async def understood() -> bool:
        told = set()
        for topic in ("status.updated", "message.received"):
            for record in await user.records(topic, holding="wamid"):
                event = json.loads(record.value)
                told.add(event.get("provider_message_id") or event.get("wamid"))
        return wamids <= told

    await until(understood, "the examples' statuses and messages")
    metrics = (await user.http.get(user.at("webhook-ingest", "/metrics"))).text
    assert 'sendwhy_webhook_unknown_total{kind="status"}' in metrics


async def test_a_message_sent_over_http(user: Outside) -> None:
    await user.set_up()
    await user.contact("c1", user.person())
    body = user.request("m1", "c1")
    await user.ok("POST", "message-log", "/messages", body, **{"idempotency-key": "k1"})
    assert await user.settled(["m1"]) == {"m1": ("read", None)}


async def test_a_test_message_is_told_stage_by_stage_and_the_checks_see_a_lost_subscription(user: Outside) -> None:
    await user.set_up()
    content = template("4711", name="order_update", language="en_US")
    body = {"origin": {"kind": "test"}, "to": {"phone": user.person()}, "content": content}
    path = f"/messages/{(await user.ok('POST', 'message-log', '/messages', body))['message_id']}/stages"

    async def is_read() -> bool:
        answer = await user.call("GET", user.at("message-log", f"/v1/workspaces/{user.workspace}{path}"))
        return answer.status_code == 200 and answer.json()["status"] == "read"

    await until(is_read, "the test message's way")
    told = await user.ok("GET", "message-log", path)
    assert told["ended"]
    assert [stage["place"] for stage in told["stages"] if stage["state"] != "done"] == ["queue"]
    await user.sim("PUT", f"/accounts/{user.waba_id}", {"subscribed": False, "templates": TEMPLATES})
    checks = {one["id"]: one for one in (await user.ok("GET", "message-log", "/diagnostics"))["checks"]}
    assert checks[f"subscription:{user.sender_id}"]["result"] == "failed"
    names = ["kafka", "topics", "database:billing", "alive:dispatcher", "lag:consent", f"token:{user.sender_id}"]
    assert {name: checks[name]["result"] for name in names} == dict.fromkeys(names, "ok")


async def test_evaluate_tells_what_sending_would(user: Outside) -> None:
    await user.set_up()
    await user.contact("good", user.person())
    await user.contact("stopped", user.person(), "UNSUBSCRIBED")
    requests = [user.request("a", "good"), user.request("b", "stopped")]
    answer = await user.call("POST", user.at("consent", "/v1/evaluate"), {"requests": requests, "at": None})
    assert answer.status_code == 200, answer.text
    good, stopped = answer.json()["results"]
    assert all(gate["passed"] for gate in good["gates"])
    assert "CUSTOMER_IS_NOT_OPTED_IN" in str(stopped["gates"])
    for service in ("billing", "dispatcher"):
        passed_on = [one | {"resolved": told["resolved"]} for one, told in zip(requests, [good, stopped], strict=True)]
        answer = await user.call("POST", user.at(service, "/v1/evaluate"), {"requests": passed_on, "at": None})
        assert answer.status_code == 200, answer.text
    assert await user.calls() == []
