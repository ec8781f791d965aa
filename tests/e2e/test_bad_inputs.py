"""Every bad input, on a whole Sendwhy: it ends as its table says, no answer is a 5xx, no partition stops, and the good
neighbours before and after it come through."""

import asyncio
import base64
import hashlib
import hmac
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from bad_calls import BODIES, CALLS, FOREIGN, FORMS, HOSTILE, IN_PATHS, IN_QUERIES, PAGE_PARAMETERS, PAGES
from bad_inputs import ASIDE, GOES, REFUSED, BadBytes, BadEvent, BadPost, BadRecord, Json
from bad_records import EVENTS, MUTANTS, REQUESTS, TOMBSTONES
from bad_webhooks import META, SHOPIFY, WIRE
from local_stack.chromium import logged_in
from outside import Outside, outside, until
from playwright.async_api import Browser

PARTITION = 0
AT_ONCE = 8
TOPICS = [
    "send.requested",
    "send.consented",
    "send.funded",
    "send.rejected",
    "send.held",
    "send.recalled",
    "send.cancelled",
    "status.updated",
    "webhook.received",
    "message.received",
    "customer.updated",
    "template.reported",
    "sender.reported",
    "contact.updated",
    "template.updated",
    "sender.updated",
    "account.updated",
    "person.erasing",
    "person.erased",
]
# Read by message-log only, which keeps what it can't read as it is.
DECIDED_BY_NOBODY = {"send.rejected", "send.held", "account.updated", "person.erased"}
COMPACTED = {"contact.updated", "template.updated", "sender.updated", "account.updated"}
# One of each service.
LARGE = {"send.requested", "send.consented", "send.funded", "webhook.received", "send.rejected"}
Place = tuple[str, int, int]


async def lag(user: Outside) -> dict[str, int]:
    """What the groups of all services have not yet committed, by group; nothing where all has been read."""
    admin = AIOKafkaAdminClient(bootstrap_servers=user.stack["kafka"])
    await admin.start()
    behind: dict[str, int] = {}
    try:
        groups = [name for name, *_ in await admin.list_consumer_groups() if name.startswith("sendwhy-")]
        async with AIOKafkaConsumer(bootstrap_servers=user.stack["kafka"]) as consumer:
            for group in groups:
                reached = await admin.list_consumer_group_offsets(group)
                ends = await consumer.end_offsets(list(reached))
                missing = sum(max(0, ends[place] - known.offset) for place, known in reached.items())
                if missing:
                    behind[group] = missing
    finally:
        await admin.close()
    assert groups
    return behind


async def all_is_read(user: Outside) -> None:
    async def read() -> bool:
        return not await lag(user)

    try:
        await until(read, "every group has read its topics")
    except AssertionError:
        raise AssertionError(f"partitions stand still: {await lag(user)}") from None


async def dead_letters(user: Outside) -> dict[Place, set[str]]:
    """Where what was put aside had stood, and the services that put it aside."""
    found: dict[Place, set[str]] = {}
    for letter in await user.records("dead.letters", holding=""):
        told = {name: value.decode(errors="replace") for name, value in letter.headers}
        place = (told["topic"], int(told["partition"]), int(told["offset"]))
        found.setdefault(place, set()).add(told["service"])
    return found


async def read_messages(user: Outside, ids: Iterable[str]) -> None:
    ids = list(ids)
    assert await user.settled(ids) == dict.fromkeys(ids, ("read", None))


async def test_requests(user: Outside) -> None:
    await user.set_up()
    # So many that none of them is written to faster than Meta allows.
    people = [f"c{number}" for number in range(20)]
    await user.contacts((name, user.person()) for name in people)
    places: list[Place] = []

    async def put(bad: BadRecord, value: bytes | None) -> None:
        told = await user.producer.send_and_wait(
            "send.requested", value, bad.key, PARTITION, bad.timestamp_ms, list(bad.headers)
        )
        places.append((told.topic, told.partition, told.offset))

    good = BadRecord("", "", lambda request: None)
    for number, bad in enumerate(REQUESTS):
        person = people[number % len(people)]
        await put(good, json.dumps(user.request(f"good-{number}", person)).encode())
        await put(bad, bad.make(user.request(f"bad-{number}", person)))
    await put(good, json.dumps(user.request(f"good-{len(REQUESTS)}", people[0])).encode())

    await all_is_read(user)
    await read_messages(user, (f"good-{number}" for number in range(len(REQUESTS) + 1)))
    aside = await dead_letters(user)
    refused = {event["message_id"]: event["reason"]["code"] for event in await user.events("send.rejected")}
    wrong: Json = {}
    for number, bad in enumerate(REQUESTS):
        message, place = f"bad-{number}", places[2 * number + 1]
        found = (place in aside, refused.get(message))
        code = "INVALID_REQUEST" if bad.told == REFUSED else bad.told if bad.told.isupper() else None
        if found != (bad.told in (ASIDE, REFUSED), code):
            wrong[bad.name] = found
    assert not wrong
    await read_messages(user, (f"bad-{number}" for number, bad in enumerate(REQUESTS) if bad.told.startswith(GOES)))


async def test_every_topic(user: Outside) -> None:
    await user.set_up()
    await user.contact("c1", user.person())
    await user.publish(*(user.request(f"before-{number}", "c1") for number in range(6)))
    await read_messages(user, [f"before-{number}" for number in range(6)])
    sent: list[tuple[str, BadEvent, Any]] = []
    mark = user.workspace.encode()
    for topic in TOPICS:
        partitions = sorted(await user.producer.partitions_for(topic))
        for bad in [*EVENTS, *(TOMBSTONES if topic in COMPACTED else ())]:
            for partition in partitions if not bad.is_large else [PARTITION] if topic in LARGE else []:
                value, headers = bad.make(mark), list(bad.headers)
                told = await user.producer.send(topic, value, bad.key, partition, None, headers)
                sent.append((topic, bad, told))
        for value in mutants(await user.records(topic), mark):
            await user.producer.send(topic, value, b"mutant")
    await user.publish(*(user.request(f"after-{number}", "c1") for number in range(6)))
    await read_messages(user, [f"after-{number}" for number in range(6)])
    await all_is_read(user)
    aside = await dead_letters(user)
    missing: Json = {}
    for topic, bad, told in sent:
        place = (await told).partition, (await told).offset
        if bad in EVENTS and topic not in DECIDED_BY_NOBODY and (topic, *place) not in aside:
            missing[f"{topic}: {bad.name}"] = place
    assert not missing


def mutants(records: Iterable[Any], mark: bytes) -> list[bytes]:
    """Of the first real event of a topic: each of its fields in turn wrong, as an event of nobody's."""
    real = next((record.value for record in records if record.value and record.value.startswith(b"{")), None)
    if real is None:
        return []
    event: Json = json.loads(real.replace(mark, b"mutant"))
    paths: list[tuple[str, ...]] = [(name,) for name in event]
    paths += [(name, inner) for name, value in event.items() if isinstance(value, dict) for inner in value]
    made, wrong = [], list(MUTANTS.values())
    for number, path in enumerate(paths):
        changed = json.loads(json.dumps(event))
        place = changed
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = wrong[number % len(wrong)]
        made.append(json.dumps(changed).encode())
    return made


# --- webhooks ---


def signature_of(secret: str, body: bytes) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


async def post_all(
    user: Outside,
    path: str,
    cases: list[BadPost],
    sign: Callable[[bytes], tuple[str, str]],
    good: Callable[[int], bytes],
) -> None:
    """Each case between two good ones; all statuses must be as the table says, and what is put aside be found."""
    url = user.at("webhook-ingest", path)
    wrong: Json = {}
    marks: list[str] = []

    async def post(body: bytes, bad: BadPost | None) -> int:
        name, right = sign(body)
        signed = bad.sign(right) if bad else right
        headers = dict(bad.headers) if bad else {}
        encoded: Any = {key: value.encode() for key, value in headers.items()}
        if signed is not None:
            encoded[name] = signed.encode()
        if "shopify" in path:
            encoded = {"x-shopify-topic": b"customers/update"} | encoded
        return (await user.http.post(url, content=body, headers=encoded)).status_code

    for number, bad in enumerate(cases):
        assert await post(good(number), None) == 200
        marks.append(f"{user.workspace}-{number:04}")
        body = bad.make(marks[-1]).replace(b"NUMBER", user.sender_id.encode()).replace(b"WABA", user.waba_id.encode())
        if (status := await post(body, bad)) != bad.status:
            wrong[bad.name] = status
    assert await post(good(len(cases)), None) == 200
    assert not wrong
    await all_is_read(user)
    aside = [letter.value for letter in await user.records("dead.letters")]
    put_aside = {
        bad.name: any(mark.encode() in value.replace(b"\\u0000", b"") for value in aside)
        for bad, mark in zip(cases, marks, strict=True)
        if not bad.is_aside or mark
    }
    assert {name for name, is_there in put_aside.items() if is_there} == {bad.name for bad in cases if bad.is_aside}


async def test_metas_webhooks(user: Outside) -> None:
    await user.set_up()
    secret = user.stack["meta_app_secret"]

    def good(number: int) -> bytes:
        message = {"id": f"wamid.{user.workspace}.{number}", "from": "525512341111", "timestamp": "1763805600"}
        message |= {"type": "text", "text": {"body": f"good {user.workspace}/{number}/"}}  # type: ignore[dict-item]
        value = {
            "messaging_product": "whatsapp",
            "metadata": {"phone_number_id": user.sender_id},
            "messages": [message],
        }
        entry = {"id": user.waba_id, "changes": [{"field": "messages", "value": value}]}
        return json.dumps({"object": "whatsapp_business_account", "entry": [entry]}).encode()

    await post_all(user, "/webhooks/meta", META, lambda body: ("x-hub-signature-256", signature_of(secret, body)), good)
    texts = {event.get("text") for event in await user.events("message.received")}
    assert {f"good {user.workspace}/{number}/" for number in range(len(META) + 1)} <= texts


async def test_shopifys_webhooks(user: Outside) -> None:
    first = 770_000_000_000 + int(user.workspace.rpartition("-")[2])

    def sign(body: bytes) -> tuple[str, str]:
        digest = hmac.new(user.stack["shopify_secret"].encode(), body, hashlib.sha256).digest()
        return "x-shopify-hmac-sha256", base64.b64encode(digest).decode()

    def good(number: int) -> bytes:
        return json.dumps({"id": first + number, "first_name": f"Good {number}", "phone": user.person()}).encode()

    await post_all(user, "/webhooks/shopify/demo", SHOPIFY, sign, good)
    for number in range(len(SHOPIFY) + 1):
        url = user.at("consent", f"/v1/workspaces/demo/contacts/shopify:{first + number}")
        assert (await user.call("GET", url)).status_code == 200, number


async def test_the_doors_socket(user: Outside) -> None:
    address = urlsplit(user.at("webhook-ingest", ""))
    body = b'{"object": "whatsapp_business_account", "entry": []}'
    signature = signature_of(user.stack["meta_app_secret"], body).encode()

    async def answer(bad: BadBytes) -> bytes:
        wire = bad.wire.replace(b"{path}", b"/webhooks/meta").replace(b"{signature}", signature)
        wire = wire.replace(b"{length}", str(len(body)).encode()).replace(b"{body}", body)
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        try:
            writer.write(wire)
            if not bad.answer:
                # Nobody waits for an answer that can't come: the client says that it is done.
                writer.write_eof()
            return await asyncio.wait_for(reader.read(4096), 30)
        except ConnectionError:
            return b""
        finally:
            writer.close()

    wrong: Json = {}
    for bad in WIRE:
        found = await answer(bad)
        if not found.startswith(bad.answer) or bool(found) != bool(bad.answer):
            wrong[bad.name] = found[:60]
        assert await user.post_webhook(body) == 200
    assert not wrong


# --- APIs and pages ---


async def status_of(http: httpx.AsyncClient, method: str, url: str, **more: Any) -> tuple[int, str, bytes]:
    """Status, type and body of an answer; of a stream of events, which has no end, none of it."""
    try:
        async with http.stream(method, url, **more) as answer:
            kind = answer.headers.get("content-type", "")
            body = b"" if "event-stream" in kind else await answer.aread()
            return answer.status_code, kind, body
    except httpx.TransportError as error:
        error.add_note(f"asked: {method} {url}")
        raise


async def test_calls(user: Outside) -> None:
    await user.set_up(credits=0)
    wrong: Json = {}
    for bad in CALLS:
        url = user.at(bad.service, f"/v1/workspaces/{user.workspace}{bad.path}")
        headers: Any = {"authorization": f"Bearer {user.stack['admin_token']}", "content-type": "application/json"}
        headers = {name: value.encode() for name, value in (headers | dict(bad.headers)).items()}
        content = bad.body if bad.body is None or isinstance(bad.body, bytes) else json.dumps(bad.body).encode()
        status, kind, body = await status_of(user.http, bad.method, url.replace("ADMIN", user.stack["admin_token"]),
                                             content=content, headers=headers)  # fmt: skip
        if status != bad.status or (status >= 400 and kind != "application/problem+json"):
            wrong[bad.name] = (status, kind, body[:300])
    assert not wrong


async def routes(user: Outside) -> AsyncIterator[tuple[str, str, str, Json]]:
    """All below /v1; what comes to the door for webhooks has a table of its own."""
    for service in user.stack["services"]:
        openapi = (await user.http.get(user.at(service, "/openapi.json"))).json()
        for path, operations in openapi["paths"].items():
            for method, operation in operations.items() if path.startswith("/v1/") else ():
                yield service, method.upper(), path, operation


def shortened(text: str) -> str:
    return re.sub(r"(.)\1{20,}", r"\1…", text)[:300]


async def judged(user: Outside, asked: list[tuple[str, str, Json]]) -> None:
    """No answer is a 5xx, and each refusal is a problem document."""
    limit = asyncio.Semaphore(AT_ONCE)
    headers = {"authorization": f"Bearer {user.stack['admin_token']}", "content-type": "application/json"}
    wrong: Json = {}

    async def ask(method: str, url: str, more: Json) -> None:
        async with limit:
            status, kind, body = await status_of(http, method, url, headers=headers, **more)
        if status >= 500 or (status >= 400 and kind != "application/problem+json"):
            wrong[shortened(f"{method} {url}")] = (status, kind, shortened(body.decode(errors="replace")))

    async with fresh() as http:
        await asyncio.gather(*(ask(*one) for one in asked))
    assert not wrong


def fresh(**more: Any) -> httpx.AsyncClient:
    """Each call on a connection of its own: what ends one is no idleness."""
    return httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_keepalive_connections=0), **more)


def some_of(odd: Sequence[tuple[str, str]], turn: int, count: int) -> Iterable[str]:
    """So many of the odd values, others at each turn: all meet every service, and not each of them every parameter."""
    return (odd[(turn * count + number) % len(odd)][1] for number in range(count))


async def test_every_part_of_every_path_and_query(user: Outside) -> None:
    asked: list[tuple[str, str, Json]] = []
    async for service, method, path, operation in routes(user):
        here = path.replace("{w}", user.workspace)
        parameters = operation.get("parameters", [])
        names = [one["name"] for one in parameters if one["in"] == "path" and one["name"] != "w"]
        for odd in some_of(IN_PATHS, len(asked), 3) if names else ():
            filled = here
            for name in names:
                filled = filled.replace("{" + name + "}", odd)
            asked.append((method, user.at(service, filled), {}))
        for name in names:
            here = here.replace("{" + name + "}", "none")
        for one in parameters:
            if one["in"] == "query":
                queries = some_of(IN_QUERIES, len(asked), 3)
                asked += [(method, user.at(service, f"{here}?{one['name']}={odd}"), {}) for odd in queries]
    assert len(asked) > 700
    await judged(user, asked)


async def test_every_body(user: Outside) -> None:
    asked: list[tuple[str, str, Json]] = []
    async for service, method, path, operation in routes(user):
        if method in ("POST", "PUT") and "application/json" in operation.get("requestBody", {}).get("content", {}):
            here = path.replace("{w}", user.workspace).replace("{id}", "12345678")
            url = user.at(service, here.replace("{contact_id}", "c1").replace("{dead_letter_id}", "none"))
            asked += [(method, url, {"content": body}) for _, body in BODIES]
    assert len(asked) > 100
    await judged(user, asked)


async def test_pages(user: Outside) -> None:
    base = user.at("message-log", "")
    async with fresh(base_url=base) as browser:
        token = {"token": user.stack["admin_token"]}
        entered = await browser.post("/login", data=token, headers={"sec-fetch-site": "same-origin"})
        assert entered.status_code == 303
        paths = [
            f"/w/{user.workspace}{page.replace('ID', odd)}" for page in PAGES for _, odd in IN_PATHS if "ID" in page
        ]
        paths += [
            f"/w/{user.workspace}{page}?{name}={odd}"
            for page in PAGES
            if "ID" not in page
            for turn, name in enumerate(PAGE_PARAMETERS)
            for odd in some_of(IN_QUERIES, turn, 1)
        ]
        limit = asyncio.Semaphore(AT_ONCE)
        broken: Json = {}

        async def look(path: str) -> None:
            async with limit:
                answer = await browser.get(path)
            if answer.status_code >= 500 or "set-cookie" in answer.headers:
                broken[shortened(path)] = answer.status_code

        await asyncio.gather(*(look(path) for path in paths))
        assert not broken
        let_in: Json = {}
        for form in FORMS:
            for name, headers in FOREIGN:
                given = {key: value.replace("BASE", base) for key, value in headers.items()}
                answer = await browser.post(form.replace("WORKSPACE", user.workspace), data={"a": "b"}, headers=given)
                if answer.status_code not in (403, 404, 405):
                    let_in[f"{name}: {form}"] = answer.status_code
        assert not let_in
        assert (await browser.get(f"/w/{user.workspace}/messages")).status_code == 200


@pytest.mark.asyncio(loop_scope="session")
async def test_hostile_texts_do_nothing_in_a_browser(stack_file: Path, chromium: Browser) -> None:
    async with outside(stack_file) as user:
        await plant(user)
        await look_at_every_page(user, chromium)


async def plant(user: Outside) -> None:
    """Hostile texts through every door."""
    await user.set_up()
    for number, text in enumerate(HOSTILE):
        await user.contact(f"h{number}", user.person(), name=text)
    requests = [
        user.request(f"h-{number}", f"h{number}", origin={"kind": "campaign", "id": text, "name": text},
                     metadata={text: text})
        for number, text in enumerate(HOSTILE)
    ]  # fmt: skip
    requests += [
        one | {"message_id": one["message_id"] + "-a", "origin": {"kind": "automation", "id": text, "node_id": text}}
        for one, text in zip(requests, HOSTILE, strict=True)
    ]
    await user.publish(*requests)
    await user.publish_raw("send.requested", json.dumps({"workspace_id": user.workspace, "note": HOSTILE}).encode())
    for text in HOSTILE:
        said = {"type": "text", "text": {"body": text}}
        await user.sim("POST", "/inbound", {"phone_number_id": user.sender_id, "from": user.person(), "message": said})
    await user.settled([one["message_id"] for one in requests])
    await all_is_read(user)


async def look_at_every_page(user: Outside, chromium: Browser) -> None:
    """No script runs, no htmx acts, nothing is asked of anybody else."""
    async with logged_in(chromium, user.at("message-log", ""), user.stack["admin_token"]) as watched:
        await watched.page.add_init_script("window.pwned = () => { fetch('/pwned') }")
        seen = ""
        for page in [one for one in PAGES if "ID" not in one] + ["/messages/h-3", "/contacts/h3", "/inbox/with/h3"]:
            await watched.page.goto(f"/w/{user.workspace}{page}")
            seen += await watched.page.locator("main").inner_text()
        assert [text for text in HOSTILE if text not in seen] == []
        assert watched.complaints == []


# --- what must not be told ---


async def test_nothing_of_this_told_a_secret_or_a_phone(user: Outside) -> None:
    """After all that: no token, secret, password or full phone number in a log line of ours, a metric, the answer to a
    refused call, or the error of a dead letter."""
    await user.set_up()
    phone = user.person()
    await user.contact("canary", phone)
    answers = [await user.call("PUT", user.at("consent", f"/v1/workspaces/{user.workspace}/contacts/canary"), body)
               for body in ({"phone": [phone]}, {"phone": phone, "proof": {phone: phone}}, [phone])]  # fmt: skip
    asked = {"hub.mode": "subscribe", "hub.verify_token": f"wrong-{user.stack['meta_verify_token']}"}
    answers.append(await user.http.get(user.at("webhook-ingest", "/webhooks/meta"), params=asked))
    # Two that the database refuses, with the person in the row, and one that nobody can read.
    await user.publish_raw("contact.updated", json.dumps({"phone": phone, "workspace_id": user.workspace}).encode())
    for topic in ("send.requested", "message.received", "customer.updated"):
        odd = user.request("canary\0", phone) | {"phone": phone, "event_id": phone}
        await user.publish_raw(topic, json.dumps(odd).encode())
    await user.publish(user.request("canary-1", "canary"))
    await user.settled(["canary-1"])
    await all_is_read(user)

    names = ("admin_token", "meta_app_secret", "meta_verify_token", "shopify_secret")
    canaries = {name: user.stack[name] for name in names}
    canaries |= {"the number's token": f"token-{user.sender_id}", "a database's password": password_of(user.stack)}
    canaries |= {"a phone": phone.removeprefix("+")}
    texts = {path.name: path.read_text(errors="replace") for path in logs_of(user.stack_file)}
    for service in user.stack["services"]:
        texts[f"metrics of {service}"] = (await user.http.get(user.at(service, "/metrics"))).text
    texts["answers"] = "\n".join(answer.text for answer in answers)
    texts["errors of dead letters"] = "\n".join(
        dict(letter.headers)["error"].decode() for letter in await user.records("dead.letters")
    )
    assert set(user.stack["services"]) <= {name.removesuffix(".log") for name in texts}
    assert [(name, where) for name, secret in canaries.items() for where, text in texts.items() if secret in text] == []


def password_of(stack: Json) -> str:
    password = urlsplit(stack["postgres"]).password
    assert password
    return password


def logs_of(stack_file: Path) -> list[Path]:
    """The services' logs; the simulator's tells of its own phones, as Meta's may."""
    return [path for path in (stack_file.parent / "logs").glob("*.log") if path.stem != "meta"]
