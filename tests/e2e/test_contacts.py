"""A person as others see them: a shop's fixes, a webhook without a phone, suggestions, and what stood in the past."""

import json
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

from outside import Outside, now_text, text, until


def shop_customer(number: int, phone: str | None, **more: Any) -> dict[str, Any]:
    updated_at = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"id": number, "phone": phone, "first_name": "Inés", "updated_at": updated_at} | more


def in_an_hour() -> str:
    return (datetime.now(UTC) + timedelta(hours=1)).isoformat(timespec="seconds")


def webhook_of(user: Outside, **told: Any) -> bytes:
    """Meta's webhook of the user's number."""
    value = {
        "messaging_product": "whatsapp",
        "metadata": {"display_phone_number": user.display, "phone_number_id": user.sender_id},
        **told,
    }
    entry = {"id": user.waba_id, "changes": [{"field": "messages", "value": value}]}
    return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()


def message_of(user: Outside, text: str, *, phone: str | None = None, user_id: str) -> bytes:
    """Of a message; since March 2026 it may name its sender by a business-scoped user id only."""
    sent: dict[str, Any] = {
        "from_user_id": user_id,
        "id": f"wamid.{uuid.uuid4().hex}",
        "timestamp": str(int(datetime.now(UTC).timestamp())),
        "type": "text",
        "text": {"body": text},
    }
    contact: dict[str, Any] = {"profile": {"name": "Inés"}, "user_id": user_id}
    if phone:
        sent["from"] = contact["wa_id"] = phone.removeprefix("+")
    return webhook_of(user, contacts=[contact], messages=[sent])


async def test_a_fix_by_hand_that_the_shops_next_sync_overwrites(user: Outside) -> None:
    user.workspace = "demo"
    number = uuid.uuid4().int % 10**9
    wrong, right = user.person(), user.person()
    contact = f"/contacts/shopify:{number}"

    async def has_phone(phone: str) -> bool:
        answer = await user.call("GET", user.at("consent", f"/v1/workspaces/demo{contact}"))
        return answer.status_code == 200 and answer.json()["phone"] == phone

    assert await user.post_shopify("customers/create", shop_customer(number, wrong)) == 200
    await until(lambda: has_phone(wrong), "the shop's customer")
    await user.contact(f"shopify:{number}", right)
    assert await user.post_shopify("customers/update", shop_customer(number, wrong)) == 200
    await until(lambda: has_phone(wrong), "the shop's next sync")
    history = (await user.ok("GET", "consent", f"{contact}/history"))["items"]
    changes = [(change, line) for line in history for change in line["fields"] if change["field"] == "phone"]
    assert [(change["old"], change["new"]) for change, _ in changes] == [(right, wrong), (wrong, right), (None, wrong)]
    overwrote = changes[0][1]["overwrote"]
    assert (overwrote["origin"], overwrote["by"]) == ("put", changes[1][1]["by"])
    assert await user.post_shopify("customers/delete", {"id": number}) == 200

    async def is_gone() -> bool:
        answer = await user.call("GET", user.at("consent", f"/v1/workspaces/demo{contact}"))
        return answer.status_code == 404

    await until(is_gone, "the deleted customer")


async def test_a_stop_without_a_phone_recalls_what_waits_under_another_id(user: Outside) -> None:
    await user.set_up()
    phone, user_id = user.person(), f"MX.{uuid.uuid4().int % 10**18}"
    await user.contact("crm:55", phone)
    await user.ok("PUT", "consent", "/contacts/erp:1", {"user_id": user_id, "external_ids": ["erp:old:1"]})
    assert await user.post_webhook(message_of(user, "hello", phone=phone, user_id=user_id)) == 200

    async def is_one_person() -> bool:
        first, second = [await user.ok("GET", "consent", f"/contacts/{name}") for name in ("crm:55", "erp:old:1")]
        return bool(first["person_id"] == second["person_id"])

    await until(is_one_person, "one person")
    await user.publish(*(user.request(name, name, send_at=in_an_hour()) for name in ("crm:55", "erp:old:1")))

    async def both_are_funded() -> bool:
        told = [await user.message(name) for name in ("crm:55", "erp:old:1")]
        return all(one and "funded" in {event["kind"] for event in one["events"]} for one in told)

    await until(both_are_funded, "both wait")
    assert await user.post_webhook(message_of(user, "STOP", user_id=user_id)) == 200
    outcome = ("failed", "CUSTOMER_IS_NOT_OPTED_IN")
    assert await user.settled(["crm:55", "erp:old:1"]) == {"crm:55": outcome, "erp:old:1": outcome}
    history = (await user.ok("GET", "consent", "/contacts/erp:1/history"))["items"]
    assert {line["kind"] for line in history} >= {"consent", "merged"}
    (stop,) = [line for line in history if line["source"] == "stop_reply"]
    assert stop["stood"] == "UNSUBSCRIBED"
    assert stop["proof"].endswith(' "STOP"')


async def test_who_is_known_by_a_user_id_alone_is_written_to(user: Outside) -> None:
    await user.set_up()
    name, user_id = "crm:56", f"MX.{uuid.uuid4().int % 10**18}"
    person = {"user_id": user_id, "marketing_state": "SUBSCRIBED", "source": "import", "proof": "form 17"}
    await user.ok("PUT", "consent", f"/contacts/{name}", person)
    hello = user.request("hello", name, content=text(), origin={"kind": "inbox", "thread_id": name, "agent": "ana"})
    await user.publish(hello)
    assert await user.settled(["hello"]) == {"hello": ("failed", "OUTSIDE_24_HOUR_WINDOW")}
    wrote = {"phone_number_id": user.sender_id, "from": user_id, "message": {"type": "text", "text": {"body": "hola"}}}
    await user.sim("POST", "/inbound", wrote)

    async def window_is_open() -> bool:
        return bool((await user.ok("GET", "dispatcher", f"/contacts/{name}/data"))["windows"])

    await until(window_is_open, "the window that they opened")
    reply = {**hello, "message_id": "reply", "requested_at": now_text()}
    await user.publish(reply, user.request("campaign", name))
    assert await user.settled(["reply", "campaign"]) == {"reply": ("read", None), "campaign": ("read", None)}
    bodies = [call["body"] for call in await user.calls()]
    assert [(body.get("to"), body["recipient"]) for body in bodies] == [(None, user_id)] * 2
    await user.publish(user.request("waiting", name, send_at=in_an_hour()))

    async def waits() -> bool:
        told = await user.message("waiting")
        return bool(told and "funded" in {event["kind"] for event in told["events"]})

    await until(waits, "the message that waits")
    assert await user.post_webhook(message_of(user, "STOP", user_id=user_id)) == 200

    async def has_stopped() -> bool:
        return bool((await user.ok("GET", "consent", f"/contacts/{name}"))["marketing_state"] == "UNSUBSCRIBED")

    await until(has_stopped, "the STOP")
    await user.publish(user.request("late", name))
    outcome = ("failed", "CUSTOMER_IS_NOT_OPTED_IN")
    assert await user.settled(["waiting", "late"]) == {"waiting": outcome, "late": outcome}


def receipt_of(user: Outside, wamid: str, phone: str, user_id: str) -> bytes:
    """Of a message that was delivered, as it names its person since March 2026."""
    status = {
        "id": wamid,
        "status": "delivered",
        "timestamp": str(int(datetime.now(UTC).timestamp())),
        "recipient_id": phone.removeprefix("+"),
        "recipient_user_id": user_id,
    }
    contact = {"wa_id": phone.removeprefix("+"), "user_id": user_id}
    return webhook_of(user, contacts=[contact], statuses=[status])


async def test_a_stop_under_a_user_id_that_only_a_receipt_told_of(user: Outside) -> None:
    await user.set_up()
    name, phone, user_id = "crm:57", user.person(), f"MX.{uuid.uuid4().int % 10**18}"
    await user.contact(name, phone)
    await user.publish(user.request("first", name))
    assert await user.settled(["first"]) == {"first": ("read", None)}
    wamid = (await user.ok("GET", "message-log", "/messages/first"))["provider_message_id"]
    await user.publish(user.request("waits", name, send_at=in_an_hour()))

    async def told(key: str, value: str) -> bool:
        return bool((await user.ok("GET", "consent", f"/contacts/{name}"))[key] == value)

    assert await user.post_webhook(receipt_of(user, wamid, phone, user_id)) == 200
    await until(lambda: told("user_id", user_id), "the user id that the receipt told")
    assert await user.post_webhook(message_of(user, "STOP", user_id=user_id)) == 200
    await until(lambda: told("marketing_state", "UNSUBSCRIBED"), "the STOP")
    await user.publish(user.request("late", name))
    stopped = ("failed", "CUSTOMER_IS_NOT_OPTED_IN")
    assert await user.settled(["waits", "late"]) == {"waits": stopped, "late": stopped}


async def test_a_suggested_calling_code_is_accepted_and_the_past_stays(user: Outside) -> None:
    user.workspace = "demo"
    number, phone = uuid.uuid4().int % 10**9, user.person()
    name = f"shopify:{number}"
    national = phone.removeprefix("+52")
    customer = shop_customer(number, national, default_address={"country_code": "MX"})
    assert await user.post_shopify("customers/create", customer) == 200
    shown: dict[str, Any] = {}

    async def is_suggested() -> bool:
        cursor = ""
        while True:
            page = await user.ok("GET", "consent", f"/contacts/suggestions?ground=address_country{cursor}")
            shown.update({one["contact_id"]: one["suggestion"] for one in page["items"]})
            if name in shown or not page["next_cursor"]:
                return name in shown
            cursor = f"&cursor={page['next_cursor']}"

    await until(is_suggested, "the suggestion")
    assert (shown[name]["phone"], shown[name]["text"]) == (phone, "the address' country MX")
    seen = {"phone": phone, "ground": "address_country"}
    done = await user.ok("POST", "consent", f"/contacts/{name}/suggestion/accept", seen)
    assert (done["outcome"], done["phone"]) == ("accepted", phone)
    await user.ok("POST", "consent", f"/contacts/{name}/subscribe", {"proof": "form 17"})
    told = await user.ok("GET", "consent", f"/contacts/{name}")
    assert (told["phone"], told["phone_given"], told["marketing_state"]) == (phone, national, "SUBSCRIBED")
    lines = (await user.ok("GET", "consent", f"/contacts/{name}/history"))["items"]
    accepted = next(line for line in lines if line["origin"] == "suggestion")
    assert accepted["note"] == "accepted +52: the address' country MX"
    past = await user.ok("GET", "consent", f"/contacts/{name}/history?at={accepted['recorded_at']}")
    assert past["standing"]["marketing_state"] == "UNKNOWN"
    assert "SUBSCRIBED" not in {line["stood"] for line in past["items"]}
