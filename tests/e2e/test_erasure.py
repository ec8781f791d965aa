"""A person is erased everywhere: looked for in every table of every database, by everything that named them."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import httpx
from aiokafka import AIOKafkaConsumer, TopicPartition
from outside import Json, Outside, template, text, until

DATABASES = ("consent", "billing", "dispatcher", "webhook_ingest", "message_log")
SERVICES = {"consent", "billing", "dispatcher", "webhook-ingest", "message-log"}
# Raw deliveries hold other people's messages too; they go with their 14 days, as the proof says.
KEPT_UNTIL_RETENTION = {("message_log", "webhook")}


class Canary:
    """A person of whom every fact is unmistakable."""

    def __init__(self, user: Outside) -> None:
        self.phone = user.person()
        national = self.phone.removeprefix("+52")
        mark = national[-8:]
        self.contact_id, self.name = f"canary-{mark}", f"Kanarienvogel {mark}"
        self.bsuid, self.said, self.told = f"MX.bsuid{mark}", f"Soy un canario {mark}", f"Querido canario {mark}"
        self.order = f"order-of-canary-{mark}"
        # The person's number stands in other spellings within these ones.
        self.facts = (national, self.contact_id, self.name, self.bsuid)
        self.words = (self.said, self.told, self.order)


async def looked_up(user: Outside, facts: tuple[str, ...]) -> dict[tuple[str, str], set[str]]:
    """In which (database, table) which of these facts stand, in whatever kind of column."""
    found: dict[tuple[str, str], set[str]] = {}
    for database in DATABASES:
        url = urlsplit(user.stack["postgres"])._replace(path=f"/{database}").geturl()
        connection = await asyncpg.connect(url)
        try:
            for table in await connection.fetch(
                "select relname from pg_class where relnamespace = 'public'::regnamespace"
                " and relkind in ('r', 'p') and not relispartition"
            ):
                name = table["relname"]
                columns = await connection.fetch(
                    "select attname, atttypid = 'bytea'::regtype as raw from pg_attribute"
                    " where attrelid = $1::regclass and attnum > 0 and not attisdropped",
                    name,
                )
                test = " or ".join(
                    f"position(convert_to(fact, 'UTF8') in {one['attname']}) > 0"
                    if one["raw"]
                    else f"position(fact in {one['attname']}::text) > 0"
                    for one in columns
                )
                query = f"select fact from unnest($1::text[]) fact where exists (select from {name} where {test})"
                if rows := await connection.fetch(query, list(facts)):
                    found[database, name] = {row["fact"] for row in rows}
        finally:
            await connection.close()
    return found


async def all_read(user: Outside) -> None:
    """Wait until every service has handled all that stands in Kafka now."""
    consumer = AIOKafkaConsumer(bootstrap_servers=user.stack["kafka"], enable_auto_commit=False)
    await consumer.start()
    ends: dict[tuple[str, int], int] = {}
    try:
        for topic in await consumer.topics():
            places = [TopicPartition(topic, number) for number in await user.producer.partitions_for(topic)]
            ends |= {(place.topic, place.partition): end for place, end in (await consumer.end_offsets(places)).items()}
    finally:
        await consumer.stop()

    async def handled() -> bool:
        for database in DATABASES:
            url = urlsplit(user.stack["postgres"])._replace(path=f"/{database}").geturl()
            connection = await asyncpg.connect(url)
            try:
                rows = await connection.fetch("select topic, partition, next_offset from reached")
            finally:
                await connection.close()
            if any(row["next_offset"] < ends[row["topic"], row["partition"]] for row in rows):
                return False
        return True

    await until(handled, "everything is read")


async def get(user: Outside, service: str, path: str, status: int = 200) -> Any:
    answer = await user.call("GET", user.at(service, f"/v1/workspaces/{user.workspace}{path}"))
    assert answer.status_code == status, answer.text
    return answer.json()


def webhook(user: Outside, value: Json) -> bytes:
    metadata = {"display_phone_number": user.display, "phone_number_id": user.sender_id}
    change = {"field": "messages", "value": {"messaging_product": "whatsapp", "metadata": metadata, **value}}
    return json.dumps(
        {"object": "whatsapp_business_account", "entry": [{"id": user.waba_id, "changes": [change]}]}
    ).encode()


async def live(user: Outside, canary: Canary) -> tuple[bytes, str]:
    """The person's life with us: a message read, one failed, one waiting, words of theirs, at last a STOP. Returns a
    webhook of theirs, and Meta's id of the message that was read."""
    digits = canary.phone.removeprefix("+")
    await user.contact(canary.contact_id, canary.phone, name=canary.name, user_id=canary.bsuid)
    failing = {"scenario": "failed", "errors": [{"code": 131026, "title": "Message undeliverable"}]}
    await user.sim("PUT", f"/recipients/{digits}", failing)
    await user.publish(user.request("failed", canary.contact_id, content=template(canary.told)))
    await user.settled(["failed"])
    await user.sim("PUT", f"/recipients/{digits}", {"scenario": "ok"})
    written = webhook(
        user,
        {
            "contacts": [{"profile": {"name": canary.name}, "wa_id": f"521{digits[2:]}", "user_id": canary.bsuid}],
            "messages": [
                {
                    "from": f"521{digits[2:]}",
                    "from_user_id": canary.bsuid,
                    "id": f"wamid.{user.workspace}.in",
                    "timestamp": str(int(time.time()) - 1),
                    "type": "text",
                    "text": {"body": canary.said},
                }
            ],
        },
    )
    assert await user.post_webhook(written) == 200
    greeting = {"type": "text", "text": {"body": canary.said}}
    await user.sim("POST", "/inbound", {"phone_number_id": user.sender_id, "from": canary.phone, "message": greeting})
    later = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 3600))
    inbox = {"kind": "inbox", "thread_id": canary.contact_id, "agent": "a"}
    utility = {"origin": {"kind": "api"}, "content": template(canary.told, name="order_update", language="en_US")}
    await user.publish(
        user.request("read", canary.contact_id, content=template(canary.told), metadata={"order": canary.order}),
        user.request("typed", canary.contact_id, content=text(canary.told), origin=inbox),
        user.request("waits", canary.contact_id, send_at=later, **utility),
        user.request("with-phone", canary.contact_id, send_at=later, **utility)
        | {"to": {"contact_id": canary.contact_id, "phone": canary.phone}},
    )
    assert (await user.settled(["read", "typed"])) == {"read": ("read", None), "typed": ("read", None)}
    stop = {"type": "text", "text": {"body": "STOP"}}
    await user.sim("POST", "/inbound", {"phone_number_id": user.sender_id, "from": canary.phone, "message": stop})

    async def stopped() -> bool:
        told = await get(user, "consent", f"/contacts/{canary.contact_id}")
        return bool(told["marketing_state"] == "UNSUBSCRIBED")

    await until(stopped, "STOP")
    await all_read(user)
    message = await user.message("read")
    assert message is not None
    return written, message["provider_message_id"]


async def test_a_person_is_erased_everywhere_and_the_proof_says_so(user: Outside) -> None:
    await user.set_up()
    canary = Canary(user)
    written, wamid = await live(user, canary)
    path = f"/contacts/{canary.contact_id}"
    before = await looked_up(user, canary.facts + canary.words)
    assert {database for database, _ in before} >= {"consent", "billing", "dispatcher", "message_log"}
    export = await get(user, "message-log", f"{path}/export")
    assert set(export["services"]) == SERVICES
    assert all(fact in json.dumps(export, ensure_ascii=False) for fact in (canary.phone, canary.name, *canary.words))
    assert {row["kind"] for row in export["services"]["billing"]["ledger"]} >= {"reserve", "capture"}
    assert {row["message_id"] for row in export["services"]["webhook-ingest"]["receipts"]} >= {"read", "failed"}

    url = user.at("consent", f"/v1/workspaces/{user.workspace}{path}")
    first = await user.call("DELETE", url)
    assert first.status_code == 204
    again = await user.call("DELETE", url)
    assert (again.status_code, again.headers["location"]) == (204, first.headers["location"])
    proof_path = first.headers["location"].removeprefix(f"/v1/workspaces/{user.workspace}")

    async def complete() -> bool:
        return bool((await get(user, "consent", proof_path))["state"] == "complete")

    await until(complete, "the proof is complete")
    expected = dict.fromkeys(("waits", "with-phone"), ("failed", "CUSTOMER_IS_NOT_OPTED_IN"))
    assert await user.settled(expected) == expected
    proof = await get(user, "consent", proof_path)
    assert {one["service"] for one in proof["services"]} == SERVICES
    acts = {
        (service["service"], one["table"], one["act"]) for service in proof["services"] for one in service["tables"]
    }
    assert acts >= {
        ("consent", "contact", "erased"),
        ("consent", "decision", "blurred"),
        ("consent", "memory", "kept"),
        ("billing", "decision", "blurred"),
        ("billing", "ledger", "kept"),
        ("dispatcher", "message", "recalled"),
        ("dispatcher", "message", "blurred"),
        ("webhook-ingest", "message", "blurred"),
        ("message-log", "message", "blurred"),
        ("message-log", "inbound", "erased"),
        ("message-log", "webhook", "kept"),
    }
    kept = [one for service in proof["services"] for one in service["tables"] if one["act"] == "kept"]
    assert all(one["ground"] for one in kept)
    assert {one["topic"] for one in proof["topics"]} >= {"send.requested", "webhook.received", "contact.updated"}

    # What comes later brings nothing back: a signed webhook again, a late receipt, a replay, the request again.
    late = {"id": wamid, "status": "played", "timestamp": str(int(time.time())), "recipient_id": canary.phone[1:]}
    opaque = {"biz_opaque_callback_data": f"sw1:{user.workspace}:read"}
    assert await user.post_webhook(written) == 200
    assert await user.post_webhook(webhook(user, {"statuses": [late | opaque]})) == 200
    hour = {"from": _utc(time.time() - 600), "to": _utc(time.time() + 60)}
    await user.ok("POST", "webhook-ingest", "/webhooks/replay", hour)
    await user.publish(user.request("read", canary.contact_id, content=template(canary.told)))
    await all_read(user)
    await all_read(user)
    left = await looked_up(user, canary.facts + canary.words)
    assert {place: facts for place, facts in left.items() if place not in KEPT_UNTIL_RETENTION} == {}
    told = json.dumps([proof, await get(user, "consent", "/erasures"), await user.message("read")])
    assert not [fact for fact in canary.facts + canary.words if fact in told]
    message = await user.message("read")
    assert message is not None
    assert (message["to"], message["status"]) == ({"contact_id": None, "phone": None}, "read")
    assert len([call for call in await user.calls() if ":waits" in call["biz_opaque_callback_data"]]) == 0

    states = await keyed(user, "contact.updated", f"{user.workspace}/{canary.contact_id}")
    assert states[-1].value is None
    await get(user, "message-log", f"{path}/export", 404)

    # A re-import by accident is refused; put in again on purpose, the STOP still holds.
    file = f"contact_id,phone,marketing_state,source,proof\nnew,{canary.phone},SUBSCRIBED,import,form 17\n"
    headers = {"authorization": f"Bearer {user.stack['admin_token']}", "content-type": "text/csv"}
    import_url = user.at("consent", f"/v1/workspaces/{user.workspace}/contacts/import")
    await user.http.post(import_url, content=file.encode(), headers=headers)
    await get(user, "consent", "/contacts/new", 404)
    await user.contact("new", canary.phone)
    assert (await get(user, "consent", "/contacts/new"))["marketing_state"] == "UNSUBSCRIBED"


def _utc(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


async def keyed(user: Outside, topic: str, key: str) -> list[Any]:
    """The records of one key, tombstones too, in their order."""
    consumer = AIOKafkaConsumer(bootstrap_servers=user.stack["kafka"], auto_offset_reset="earliest")
    await consumer.start()
    try:
        places = [TopicPartition(topic, number) for number in await user.producer.partitions_for(topic)]
        consumer.assign(places)
        ends = await consumer.end_offsets(places)
        found: list[Any] = []
        while any([await consumer.position(place) < ends[place] for place in places]):
            for batch in (await consumer.getmany(timeout_ms=500)).values():
                found += [record for record in batch if record.key == key.encode()]
        return found
    finally:
        await consumer.stop()


async def test_a_shops_mandatory_webhooks(user: Outside) -> None:
    user.workspace = "demo"
    phone = user.person()
    number = int(phone[-8:]) + 10**9
    contact_id = f"shopify:{number}"
    await user.contact(contact_id, phone)
    customer = {"id": number, "email": "c@example.com", "phone": phone}
    for topic, body in (
        ("customers/data_request", {"shop_id": 7, "customer": customer, "data_request": {"id": number}}),
        ("shop/redact", {"shop_id": number, "shop_domain": "s.myshopify.com"}),
    ):
        assert (await shop_posts(user, topic, body)).status_code == 200

    async def requests(kind: str, holding: str) -> list[Json]:
        rows = (await get(user, "consent", "/privacy-requests?limit=200"))["items"]
        return [row for row in rows if row["kind"] == kind and (row[holding] or kind == "shop_redact")]

    async def asked() -> bool:
        named = [row["contact_id"] for row in await requests("data_request", "contact_id")]
        return contact_id in named and bool(await requests("shop_redact", "kind"))

    await until(asked, "the shop's requests are listed")
    (row,) = [row for row in await requests("data_request", "contact_id") if row["contact_id"] == contact_id]
    export = await get(user, "message-log", row["export_url"].removeprefix("/v1/workspaces/demo"))
    assert export["services"]["consent"]["contacts"][0]["phone"] == phone

    assert (await shop_posts(user, "customers/redact", {"shop_id": 7, "customer": customer})).status_code == 200

    async def erased() -> bool:
        path = f"/v1/workspaces/demo/contacts/{contact_id}"
        return (await user.call("GET", user.at("consent", path))).status_code == 404

    await until(erased, "the customer is erased")

    async def proven() -> bool:
        rows = await requests("redact", "erasure_url")
        paths = [one["erasure_url"].removeprefix("/v1/workspaces/demo") for one in rows]
        proofs = [await get(user, "consent", path) for path in paths]
        return any(one["state"] == "complete" and one["cause"] == "shopify customers/redact" for one in proofs)

    await until(proven, "the redaction is proven")
    await all_read(user)
    left = await looked_up(user, (phone.removeprefix("+52"), contact_id))
    assert set(left) <= KEPT_UNTIL_RETENTION


async def shop_posts(user: Outside, topic: str, body: Json) -> httpx.Response:
    raw = json.dumps(body).encode()
    digest = hmac.new(user.stack["shopify_secret"].encode(), raw, hashlib.sha256).digest()
    headers = {
        "x-shopify-hmac-sha256": base64.b64encode(digest).decode(),
        "x-shopify-topic": topic,
        "content-type": "application/json",
    }
    return await user.http.post(user.at("webhook-ingest", "/webhooks/shopify/demo"), content=raw, headers=headers)
