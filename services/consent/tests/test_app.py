"""The whole service on real Kafka and PostgreSQL: what upstream publishes is answered, and the HTTP API."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit
from uuid import uuid4

import asyncpg
import consent
import httpx
import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer
from consent.app import make_app
from consent_desk import PHONE, message, request, settings
from fastapi import FastAPI
from sendwhy.erasure import report
from sendwhy.evaluation import NOW_TOLERANCE
from sendwhy.events import ErasedRows, PersonErasing
from sendwhy.kafka import create_topics
from sendwhy.postgres import migrate
from sendwhy.reasons import Service
from sendwhy.topics import Outgoing, Topic, outgoing

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="module")]
MIGRATIONS = Path(consent.__file__).parent / "migrations"
SECONDS = 30
CONTACT = {"phone": PHONE, "phone_country_code": "MX", "marketing_state": "SUBSCRIBED", "source": "import"}


@dataclass
class Running:
    """The service, an HTTP client of it as admin, and everything that it has published so far."""

    app: FastAPI
    http: httpx.AsyncClient
    consumer: AIOKafkaConsumer
    seen: list[Any] = field(default_factory=list)

    async def publish(self, *events: Any) -> None:
        await self.app.state.runtime.producer.publish([outgoing(event, source="test") for event in events])

    async def wait_for(self, topic: Topic, fits: Callable[[Any], bool], count: int = 1) -> list[Any]:
        """The first records of a topic that fit, as they were published."""
        async with asyncio.timeout(SECONDS):
            while len(found := [one for one in self.seen if one.topic == topic and fits(one)]) < count:
                for records in (await self.consumer.getmany(timeout_ms=200)).values():
                    self.seen += records
        return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(kafka_bootstrap: str, postgres_url: str) -> AsyncIterator[Running]:
    name = f"consent_{uuid4().hex}"
    admin = await asyncpg.connect(postgres_url)
    await admin.execute(f"create database {name}")
    database = urlsplit(postgres_url)._replace(path=f"/{name}").geturl()
    await migrate(database, MIGRATIONS)
    configured = settings(database, kafka_bootstrap)
    await create_topics(configured)
    app = make_app(configured)
    published = ("send.consented", "send.rejected", "contact.updated", "person.erasing", "dead.letters")
    topics = [Topic(name) for name in published]
    consumer = AIOKafkaConsumer(*topics, bootstrap_servers=kafka_bootstrap, auto_offset_reset="earliest")
    await consumer.start()
    headers = {"authorization": "Bearer admin-token-1"}
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://consent", headers=headers) as http,
    ):
        yield Running(app, http, consumer)
    await consumer.stop()
    await admin.execute(f"drop database {name} with (force)")
    await admin.close()


def named(message_id: str) -> Callable[[Any], bool]:
    return lambda one: one.key == message_id.encode()


def workspace() -> str:
    return f"w-{uuid4().hex[:8]}"


async def put(running: Running, w: str, contact_id: str = "c-1", **more: Any) -> Any:
    answer = await running.http.put(f"/v1/workspaces/{w}/contacts/{contact_id}", json=CONTACT | more)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_a_request_twice_gives_the_same_bytes_twice(running: Running) -> None:
    w, name = workspace(), f"m-{uuid4()}"
    await put(running, w)
    asked = request(name, workspace_id=w, to={"contact_id": "c-1"})
    await running.publish(asked)
    await running.wait_for(Topic.SEND_CONSENTED, named(name))
    await running.publish(asked)
    first, second = await running.wait_for(Topic.SEND_CONSENTED, named(name), 2)
    assert (first.value, first.headers) == (second.value, second.headers)


async def test_who_put_a_state_that_doesnt_hold_is_told_whose_does(running: Running) -> None:
    w = workspace()
    await put(running, w, marketing_state="UNSUBSCRIBED")
    answer = await running.http.put(
        f"/v1/workspaces/{w}/contacts/c-2", json={"phone": PHONE, "marketing_state": "NOT_SUBSCRIBED"}
    )
    kept = answer.json()
    assert kept["marketing_state"] == "UNSUBSCRIBED"
    assert [note.endswith("of another contact of the same person") for note in kept["notes"]] == [True]


async def test_stop_reaches_the_next_request(running: Running) -> None:
    w, name = workspace(), f"m-{uuid4()}"
    await put(running, w)
    await running.publish(message("STOP", 0, workspace_id=w, wamid=f"wamid.{w}"))
    await running.wait_for(
        Topic.CONTACT_UPDATED, lambda one: one.key == f"{w}/c-1".encode() and b"UNSUBSCRIBED" in (one.value or b"")
    )
    await running.publish(request(name, workspace_id=w, to={"contact_id": "c-1"}))
    (rejected,) = await running.wait_for(Topic.SEND_REJECTED, named(name))
    assert b"replied STOP" in rejected.value
    kept = await put(running, w, name="Inés")
    assert (kept["marketing_state"], kept["name"], len(kept["notes"])) == ("UNSUBSCRIBED", "Inés", 1)
    answer = await running.http.post(f"/v1/workspaces/{w}/contacts/c-1/subscribe", json={})
    assert answer.status_code == 422
    old = {"proof": "form 3", "at": "2020-01-01T00:00:00Z"}
    answer = await running.http.post(f"/v1/workspaces/{w}/contacts/c-1/subscribe", json=old)
    assert answer.status_code == 409
    answer = await running.http.post(f"/v1/workspaces/{w}/contacts/c-1/subscribe", json={"proof": "form 17"})
    assert answer.json()["marketing_state"] == "SUBSCRIBED"
    history = (await running.http.get(f"/v1/workspaces/{w}/contacts/c-1/history")).json()["items"]
    assert [(line["said"], line["stood"]) for line in history] == [
        ("SUBSCRIBED", "SUBSCRIBED"),
        ("SUBSCRIBED", "UNSUBSCRIBED"),
        ("UNSUBSCRIBED", "UNSUBSCRIBED"),
        ("SUBSCRIBED", "SUBSCRIBED"),
    ]


async def test_an_unreadable_request_is_told_and_put_aside(running: Running) -> None:
    w, name = workspace(), f"m-{uuid4()}"
    body = f'{{"message_id":"{name}","workspace_id":"{w}","to":{{}}}}'.encode()
    producer = running.app.state.runtime.producer
    await producer.publish([Outgoing(Topic.SEND_REQUESTED, b"k", body)])
    (rejected,) = await running.wait_for(Topic.SEND_REJECTED, named(name))
    assert b"INVALID_REQUEST" in rejected.value
    assert b"content" in rejected.value
    assert await running.wait_for(Topic.DEAD_LETTERS, lambda one: one.value == body)


async def test_import_refuses_bad_rows_and_takes_the_others(running: Running) -> None:
    w = workspace()
    lines = ["contact_id,phone,phone_country_code,marketing_state,name,proof,favourite"]
    lines += [f"c-{i},+5255123456{i % 90 + 10},MX,subscribed,Inés,form {i},blue" for i in range(1200)]
    lines += [",+525512345678,,,,", "c-x,,MEX,,,", "c-y,,,maybe,,", '"c-z","+52', "", ""]
    file = "\ufeff" + "\r\n".join(lines)
    headers = {"content-type": "text/csv", "idempotency-key": f"import-{w}"}
    answer = await running.http.post(f"/v1/workspaces/{w}/contacts/import", content=file.encode(), headers=headers)
    assert answer.status_code == 200, answer.text
    report = answer.json()
    assert (report["read"], report["imported"], report["refused_count"]) == (1204, 1200, 4)
    assert [(one["row"], one["field"]) for one in report["refused"]][:3] == [
        (1202, "contact_id"),
        (1203, "phone_country_code"),
        (1204, "marketing_state"),
    ]
    again = await running.http.post(f"/v1/workspaces/{w}/contacts/import", content=file.encode(), headers=headers)
    assert (again.json(), again.headers["idempotent-replayed"]) == (report, "true")
    other = await running.http.post(f"/v1/workspaces/{w}/contacts/import", content=b"contact_id\n", headers=headers)
    assert other.status_code == 409
    page = (await running.http.get(f"/v1/workspaces/{w}/contacts?limit=500")).json()
    assert len(page["items"]) == 500
    after = (await running.http.get(f"/v1/workspaces/{w}/contacts?limit=500&cursor={page['next_cursor']}")).json()
    assert not {one["contact_id"] for one in page["items"]} & {one["contact_id"] for one in after["items"]}
    mark = f"{w}/".encode()
    assert await running.wait_for(Topic.CONTACT_UPDATED, lambda one: one.key.startswith(mark), 1200)


@pytest.mark.parametrize(
    ("content_type", "body", "status", "field"),
    [
        ("application/json", b"{}", 415, "Content-Type"),
        (None, b"contact_id\n", 415, "Content-Type"),
        ("text/csv", b"phone,name\n", 422, "map.contact_id"),
        ("text/csv; charset=\0", b"contact_id\n", 422, "encoding"),
        ("text/csv", b"", 422, "body"),
        ("text/csv", b"PK\x03\x04", 422, "body"),
    ],
)
async def test_a_file_that_is_none(
    running: Running, content_type: str | None, body: bytes, status: int, field: str
) -> None:
    headers = {"content-type": content_type} if content_type else {}
    answer = await running.http.post(f"/v1/workspaces/{workspace()}/contacts/import", content=body, headers=headers)
    assert (answer.status_code, [one["field"] for one in answer.json()["errors"]]) == (status, [field])


async def test_a_key_that_was_used_for_something_else_is_named(running: Running) -> None:
    path, headers = f"/v1/workspaces/{workspace()}/contacts", {"idempotency-key": "k-1", "content-type": "text/csv"}
    answers = [
        await running.http.post(f"{path}/import", content=body, headers=headers) for body in (b"contact_id\n", b"id\n")
    ]
    answers += [
        await running.http.put(f"{path}/c-1", json={"name": name}, headers={"idempotency-key": "k-2"}) for name in "ab"
    ]
    assert [answer.status_code for answer in answers] == [200, 409, 200, 409]
    assert all(one.json()["errors"][0]["field"] == "Idempotency-Key" for one in answers[1::2])


async def test_a_body_that_is_no_json_is_named_as_the_body(running: Running) -> None:
    headers = {"content-type": "application/json"}
    answer = await running.http.put("/v1/workspaces/acme/contacts/c-bad", content=b'{"name": ', headers=headers)
    (error,) = answer.json()["errors"]
    assert (answer.status_code, error["field"], "character" in error["detail"]) == (422, "body", True)


async def test_erasure_leaves_a_tombstone_and_blocks_a_reimport(running: Running) -> None:
    w, name = workspace(), f"m-{uuid4()}"
    put_key = {"idempotency-key": f"put-{w}"}
    path = f"/v1/workspaces/{w}/contacts/c-1"
    first = await running.http.put(path, json=CONTACT, headers=put_key)
    assert (await running.http.put(path, json=CONTACT, headers=put_key)).json() == first.json()
    await running.publish(request(name, workspace_id=w, to={"contact_id": "c-1"}))
    await running.wait_for(Topic.SEND_CONSENTED, named(name))
    assert (await running.http.delete(path)).status_code == 204
    assert (await running.http.get(path)).status_code == 404
    assert (await running.http.delete(path)).status_code in (204, 404)
    states = await running.wait_for(Topic.CONTACT_UPDATED, lambda one: one.key == f"{w}/c-1".encode(), 3)
    assert [one.value is None for one in states[:3]] == [False, False, True]
    assert PHONE.encode() not in states[1].value
    file = f"contact_id,phone\nc-1,{PHONE}\nc-2,{PHONE}\nc-3,+525587654321\n".encode()
    answer = await running.http.post(
        f"/v1/workspaces/{w}/contacts/import", content=file, headers={"content-type": "text/csv"}
    )
    assert (answer.json()["imported"], answer.json()["refused_count"]) == (1, 2)
    assert (await put(running, w))["version"] == first.json()["version"] + 2


async def test_an_erasure_forgets_nobody_elses_answers(running: Running) -> None:
    w = workspace()
    path, key = f"/v1/workspaces/{w}/contacts/c-1", {"idempotency-key": f"put-{w}"}
    await running.http.put(path, json=CONTACT, headers=key)
    await put(running, w, "name", phone="+447700900142")
    assert (await running.http.delete(f"/v1/workspaces/{w}/contacts/name")).status_code == 204
    again = await running.http.put(path, json=CONTACT, headers=key)
    assert again.headers.get("idempotent-replayed") == "true"


@pytest.mark.parametrize("named_by", ["contact_id", "person_id"])
async def test_a_person_of_two_records_is_erased_by_any_name(running: Running, named_by: str) -> None:
    w = workspace()
    await put(running, w, "shopify:7712")
    told = await put(running, w, "crm:55")
    answer = await running.http.delete(f"/v1/workspaces/{w}/contacts/{told[named_by]}")
    proof = (await running.http.get(answer.headers["location"])).json()
    rows = {table["table"]: table["rows"] for table in proof["services"][0]["tables"]}
    assert (answer.status_code, rows["contact"]) == (204, 2)
    for name in ("shopify:7712", "crm:55"):
        assert (await running.http.get(f"/v1/workspaces/{w}/contacts/{name}")).status_code == 404


async def test_the_proof_is_complete_once_every_service_has_reported(running: Running) -> None:
    w = workspace()
    path = f"/v1/workspaces/{w}/contacts/c-1"
    await running.http.put(path, json=CONTACT)
    assert (await running.http.delete(f"/v1/workspaces/{w}/contacts/nobody")).status_code == 404
    key = {"idempotency-key": "erase-c-1"}
    addresses = {(await running.http.delete(path, headers=headers)).headers["location"] for headers in (key, key, {})}
    (address,) = addresses
    proof = (await running.http.get(address)).json()
    assert (proof["state"], proof["cause"], proof["completed_at"]) == ("running", "http", None)
    assert proof["missing"] == ["billing", "dispatcher", "webhook-ingest", "message-log"]
    assert len(proof["orders"]) == 2
    assert PHONE not in str(proof)
    assert "c-1" not in str(proof)
    # The first order is given again with the second: a service may have lost it.
    orders = await running.wait_for(Topic.PERSON_ERASING, lambda one: w.encode() in one.value, 3)
    rows = [ErasedRows(table="decision", act="blurred", rows=2)]
    for one in orders:
        order = PersonErasing.model_validate_json(one.value)
        others = [service for service in Service if service is not Service.CONSENT]
        await running.publish(*(report(order, service, rows, order.occurred_at) for service in others))
    async with asyncio.timeout(SECONDS):
        while (proof := (await running.http.get(address)).json())["state"] != "complete":
            await asyncio.sleep(0.05)
    billing = next(one for one in proof["services"] if one["service"] == "billing")
    assert [(one["table"], one["act"], one["rows"]) for one in billing["tables"]] == [("decision", "blurred", 4)]
    assert proof["missing"] == []
    assert min(one["until"] for one in proof["topics"]) > proof["asked_at"]
    page = (await running.http.get(f"/v1/workspaces/{w}/erasures?limit=1")).json()
    assert [one["erasure_id"] for one in page["items"]] == [proof["erasure_id"]]
    assert page["next_cursor"] is None
    assert (await running.http.get(f"/v1/workspaces/{w}/erasures?cursor=x")).status_code == 422
    elsewhere = address.replace(w, workspace())
    assert (await running.http.get(elsewhere)).status_code == 404


async def test_what_consent_holds_of_a_person(running: Running) -> None:
    w, name = workspace(), f"m-{uuid4()}"
    path = f"/v1/workspaces/{w}/contacts/c-1"
    await running.http.put(path, json=CONTACT)
    await running.publish(request(name, workspace_id=w, to={"contact_id": "c-1"}))
    await running.wait_for(Topic.SEND_CONSENTED, named(name))
    held = (await running.http.get(f"{path}/data")).json()
    assert [one["phone"] for one in held["contacts"]] == [PHONE]
    assert [one["stood"] for one in held["history"]] == ["SUBSCRIBED"]
    assert held["message_ids"] == [name]
    await running.http.delete(path)
    held = (await running.http.get(f"{path}/data")).json()
    assert (held["contacts"], held["history"], held["message_ids"]) == ([], [], [])


async def test_evaluate_shows_every_gate_and_stores_nothing(running: Running) -> None:
    w = workspace()
    await put(running, w, phone="5512345678")
    bodies = [
        request(f"m-{i}", workspace_id=w, to=to).model_dump(mode="json")
        for i, to in enumerate([{"contact_id": "c-1"}, {"contact_id": "nobody"}, {"phone": PHONE}])
    ]
    answer = await running.http.post("/v1/evaluate", json={"requests": [*bodies, {"message_id": "bad"}], "at": None})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    failing = [[gate["gate"] for gate in one["gates"] if gate["passed"] is False] for one in results]
    assert failing == [["calling_code"], ["marketing_state", "phone_known"], ["marketing_state"], ["request"]]
    assert results[0]["resolved"] == {
        "contact_id": "c-1",
        "phone": None,
        "user_id": None,
        "country": None,
        "calling_code": None,
        "purpose": "marketing",
    }
    past = await running.http.post("/v1/evaluate", json={"requests": bodies[:1], "at": "2026-01-01T00:00:00Z"})
    gates = {gate["gate"]: gate["passed"] for gate in past.json()["results"][0]["gates"]}
    assert gates == {
        "request": True,
        "marketing_state": False,
        "phone_known": None,
        "calling_code": None,
        "phone_possible": None,
    }


async def test_evaluate_finds_the_stop_of_who_has_the_given_phone(running: Running) -> None:
    w = workspace()
    before = (datetime.now(UTC) - 2 * NOW_TOLERANCE).isoformat()
    await put(running, w, "x", phone=None, marketing_state="SUBSCRIBED")
    await put(running, w, "s-1", phone=PHONE)
    await running.http.post(f"/v1/workspaces/{w}/contacts/s-1/unsubscribe", json={})
    body = request(workspace_id=w, to={"contact_id": "x", "phone": PHONE}).model_dump(mode="json")
    sources = []
    for moment in (None, before):
        answer = await running.http.post("/v1/evaluate", json={"requests": [body], "at": moment})
        gate = answer.json()["results"][0]["gates"][1]
        sources.append((gate["gate"], gate["passed"], gate["evidence"]["source"]))
    assert sources == [("marketing_state", False, "operator"), ("marketing_state", False, "unknown")]


@pytest.mark.parametrize(
    ("token", "method", "path", "status"),
    [
        ("viewer-token-1", "GET", "/v1/workspaces/other/contacts", 404),
        ("viewer-token-1", "PUT", "/v1/workspaces/acme/contacts/c", 403),
        ("operator-token-1", "DELETE", "/v1/workspaces/acme/contacts/c", 403),
        ("operator-token-1", "DELETE", "/v1/workspaces/acme/contacts/gid:%2F%2Fshop%2F5", 403),
        ("viewer-token-1", "PUT", "/v1/workspaces/acme/contacts/gid:%2F%2Fshop%2F5", 403),
        ("viewer-token-1", "GET", "/v1/workspaces/other/contacts/x%2Fworkspaces%2Facme%2Fcontacts%2Fc", 404),
        ("admin-token-1", "PUT", "/v1/workspaces/acme/contacts/", 422),
        ("operator-token-1", "GET", "/v1/workspaces/acme/contacts/nobody", 404),
        ("operator-token-1", "POST", "/v1/workspaces/acme/contacts/nobody/subscribe", 404),
        ("wrong-token", "GET", "/v1/workspaces/acme/contacts", 401),
        ("viewer-token-1", "GET", "/v1/workspaces/acme/keywords", 200),
        ("viewer-token-1", "PUT", "/v1/workspaces/acme/keywords", 403),
        ("operator-token-1", "PUT", "/v1/workspaces/acme/keywords", 200),
        ("operator-token-1", "PUT", "/v1/workspaces/other/keywords", 404),
        ("viewer-token-1", "GET", "/v1/workspaces/other/keywords/history", 404),
    ],
)
async def test_rights(running: Running, token: str, method: str, path: str, status: int) -> None:
    headers = {"authorization": f"Bearer {token}"}
    answer = await running.http.request(method, path, headers=headers, json={} if method != "GET" else None)
    assert answer.status_code == status, answer.text
    assert (answer.headers["content-type"] == "application/problem+json") == (status >= 400)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{", "body"),
        (b"[]", "body"),
        (b"{}", "requests"),
        (b'{"requests": [7]}', "requests.0"),
        (b'{"requests": [], "at": "yesterday"}', "at"),
        (b'{"requests": [], "at": 1764000000}', "at"),
        (b'{"requests": [], "when": null}', "when"),
        (b'{"requests": [], "resolved": [null]}', "body"),
        (b'{"requests": [' + b",".join([b"{}"] * 1001) + b"]}", "requests"),
    ],
)
async def test_a_question_that_is_none_names_its_field(running: Running, body: bytes, field: str) -> None:
    answer = await running.http.post("/v1/evaluate", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert [one["field"] for one in answer.json()["errors"]] == [field]


@pytest.mark.parametrize("workspace_id", [None, 7, [], {}, "no such"])
async def test_a_request_of_no_workspace_is_judged_as_unreadable(running: Running, workspace_id: Any) -> None:
    answer = await running.http.post("/v1/evaluate", json={"requests": [{"workspace_id": workspace_id}]})
    (judged,) = answer.json()["results"]
    assert [(gate["gate"], gate["passed"]) for gate in judged["gates"]] == [("request", False)]


@pytest.mark.parametrize("cursor", ["!", "AA", "YQBi", "/w"])
async def test_a_cursor_that_is_none_of_ours(running: Running, cursor: str) -> None:
    answer = await running.http.get("/v1/workspaces/acme/contacts", params={"cursor": cursor})
    assert (answer.status_code, [one["field"] for one in answer.json()["errors"]]) == (422, ["cursor"])


async def test_evaluate_keeps_to_the_callers_workspaces(running: Running) -> None:
    headers = {"authorization": "Bearer viewer-token-1"}
    foreign = request(workspace_id="other").model_dump(mode="json")
    answer = await running.http.post("/v1/evaluate", json={"requests": [foreign]}, headers=headers)
    assert answer.status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"phone": 5512345678},
        {"marketing_state": "subscribed"},
        {"marketing_state": True},
        {"phone": "x\u0000"},
        {"phone_country_code": "MEX"},
        {"unknown": 1},
        [],
    ],
)
async def test_bad_bodies_are_named(running: Running, body: Any) -> None:
    answer = await running.http.put("/v1/workspaces/acme/contacts/c-bad", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"]


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("PUT", "contacts/c-bad", rb'{"name": "\ud800"}', "name"),
        ("PUT", "contacts/c-bad", rb'{"external_ids": ["a\udfff"]}', "external_ids.0"),
        ("PUT", "contacts/c-bad", rb'{"\ud800": 1}', "body"),
        ("PUT", "keywords", rb'{"stop": ["\ud800x"]}', "stop.0"),
        ("POST", "contacts/c-bad/subscribe", rb'{"source": "\ud800"}', "source"),
        ("POST", "contacts/c-bad/unsubscribe", rb'{"proof": "\ud800"}', "proof"),
        (
            "POST",
            "contacts/c-bad/suggestion/accept",
            rb'{"phone": "+525512345678", "ground": "address_country", "note": "\ud800"}',
            "note",
        ),
    ],
)
async def test_a_text_that_no_utf8_can_hold_is_named(
    running: Running, method: str, path: str, body: bytes, field: str
) -> None:
    headers = {"content-type": "application/json"}
    answer = await running.http.request(method, f"/v1/workspaces/acme/{path}", content=body, headers=headers)
    assert answer.status_code == 422, answer.text
    assert [one["field"] for one in answer.json()["errors"]] == [field]


async def test_a_viewer_sees_no_full_number(running: Running) -> None:
    await put(running, "acme", "c-seen")
    headers = {"authorization": "Bearer viewer-token-1"}
    answer = await running.http.get("/v1/workspaces/acme/contacts/c-seen", headers=headers)
    assert answer.json()["phone"] == "***78"


KEYWORDS = {
    "stop": ["fuera"],
    "start": ["sí quiero"],
    "stop_buttons": ["PREF_0"],
    "start_buttons": [],
    "ignore": ["alta"],
}


async def test_a_workspaces_own_keywords(running: Running) -> None:
    w = workspace()
    path = f"/v1/workspaces/{w}/keywords"
    nobodys = (await running.http.get(path)).json()
    assert (nobodys["version"], nobodys["stop"], nobodys["changed_by"]) == (0, [], None)
    key = {"idempotency-key": f"keywords-{w}"}
    first = await running.http.put(path, json=KEYWORDS, headers=key)
    assert first.status_code == 200, first.text
    assert {name: first.json()[name] for name in KEYWORDS} == KEYWORDS
    assert (await running.http.put(path, json=KEYWORDS, headers=key)).json() == first.json()
    assert (await running.http.put(path, json={}, headers=key)).status_code == 409
    assert (await running.http.put(path, json=KEYWORDS)).json()["version"] == 1
    second = (await running.http.put(path, json=KEYWORDS | {"ignore": []})).json()
    assert (second["version"], (await running.http.get(path)).json()) == (2, second)
    page = (await running.http.get(f"{path}/history?limit=1")).json()
    older = (await running.http.get(f"{path}/history?limit=1&cursor={page['next_cursor']}")).json()
    assert [page["items"], older["items"]] == [[second], [first.json()]]
    assert second["changed_by"]
    assert (await running.http.get(f"{path}/history?cursor=x")).status_code == 422
    await put(running, w)
    await running.publish(message("¡FUERA!", 0, workspace_id=w, wamid=f"wamid.{w}"))
    await running.wait_for(
        Topic.CONTACT_UPDATED, lambda one: one.key == f"{w}/c-1".encode() and b"UNSUBSCRIBED" in (one.value or b"")
    )
    line = (await running.http.get(f"/v1/workspaces/{w}/contacts/c-1/history")).json()["items"][0]
    assert (line["source"], line["proof"]) == ("stop_reply", f'wamid.{w} "¡FUERA!"')


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"stop": "fuera"}, "stop"),
        ({"stop": ["fuera", 7]}, "stop.1"),
        ({"stop": ["x" * 65]}, "stop.0"),
        ({"stop": ["!?"]}, "stop.0"),
        ({"stop": ["a\u0000"]}, "stop.0"),
        ({"stop": [f"w{i}" for i in range(101)]}, "stop"),
        ({"stop_buttons": ["x" * 257]}, "stop_buttons.0"),
        ({"stop": ["listo"], "start": ["LISTO!"]}, "stop.0"),
        ({"ignore": ["baja", "stop"]}, "ignore.1"),
        ({"start": ["baja"]}, "start.0"),
        ({"halt": ["x"]}, "halt"),
        ([], "body"),
    ],
)
async def test_keywords_that_cannot_be_are_named(running: Running, body: Any, field: str) -> None:
    path = f"/v1/workspaces/{workspace()}/keywords"
    answer = await running.http.put(path, json=body)
    assert answer.status_code == 422, answer.text
    assert [one["field"] for one in answer.json()["errors"]] == [field]
    assert (await running.http.get(path)).json()["version"] == 0


OPERATOR, VIEWER = ({"authorization": f"Bearer {role}-token-1"} for role in ("operator", "viewer"))


async def test_one_person_under_all_their_names(running: Running) -> None:
    w = workspace()
    first = await put(running, w, "shopify:7712", marketing_state="NOT_SUBSCRIBED")
    second = await put(running, w, "crm:55", external_ids=["erp:1"], language="es_MX", address_country="MX")
    assert second["person_id"] == first["person_id"]
    assert second["external_ids"] == ["crm:55", "erp:1", "shopify:7712"]
    for name in ("shopify:7712", "erp:1", first["person_id"]):
        told = (await running.http.get(f"/v1/workspaces/{w}/contacts/{name}")).json()
        assert (told["person_id"], told["marketing_state"]) == (first["person_id"], "SUBSCRIBED")
    kept = await put(running, w, "crm:55", name="Inés")
    assert (kept["external_ids"], kept["language"], kept["address_country"]) == (
        ["crm:55", "erp:1", "shopify:7712"],
        "es_MX",
        "MX",
    )
    history = (await running.http.get(f"/v1/workspaces/{w}/contacts/erp:1/history")).json()["items"]
    told = [(line["kind"], line["contact_id"], line["stood"]) for line in reversed(history)]
    assert told[0] == ("consent", "shopify:7712", "NOT_SUBSCRIBED")
    assert ("consent", "crm:55", "SUBSCRIBED") in told
    (merged,) = [line for line in history if line["kind"] == "merged"]
    assert merged["note"] == "the same phone number"
    assert merged["origin"] == "put"


async def test_erasure_by_another_name(running: Running) -> None:
    w = workspace()
    await put(running, w, "crm:55", external_ids=["erp:1"])
    answer = await running.http.delete(f"/v1/workspaces/{w}/contacts/erp:1")
    assert answer.status_code == 204, answer.text
    proof = await running.http.get(answer.headers["location"])
    erased = {table["table"]: table["rows"] for table in proof.json()["services"][0]["tables"]}
    assert (erased["contact"], erased["contact_name"]) == (1, 1)
    for name in ("crm:55", "erp:1"):
        assert (await running.http.get(f"/v1/workspaces/{w}/contacts/{name}")).status_code == 404


async def test_a_message_made_record_yields_to_a_named_one(running: Running) -> None:
    w = workspace()
    await running.publish(message("STOP", 0, workspace_id=w, wamid=f"wamid.{w}"))
    mark = f"{w}/wa-".encode()
    await running.wait_for(Topic.CONTACT_UPDATED, lambda one: one.key.startswith(mark))
    assert len((await running.http.get(f"/v1/workspaces/{w}/contacts")).json()["items"]) == 1
    await put(running, w)
    listed = (await running.http.get(f"/v1/workspaces/{w}/contacts")).json()["items"]
    assert [(one["contact_id"], one["marketing_state"], one["external_ids"]) for one in listed] == [
        ("c-1", "UNSUBSCRIBED", ["c-1"])
    ]
    history = (await running.http.get(f"/v1/workspaces/{w}/contacts/c-1/history")).json()["items"]
    stop = next(line for line in history if line["source"] == "stop_reply")
    assert (stop["proof"], stop["cause"]) == (f'wamid.{w} "STOP"', f"wamid.{w}")


async def test_what_stood_at_a_past_moment(running: Running) -> None:
    w = workspace()
    before = (await put(running, w))["updated_at"]
    await running.http.post(f"/v1/workspaces/{w}/contacts/c-1/unsubscribe", json={"proof": "call 3"})
    path = f"/v1/workspaces/{w}/contacts/c-1/history"
    # The API tells milliseconds, the database keeps microseconds.
    moment = (datetime.fromisoformat(before) + timedelta(milliseconds=1)).isoformat()
    past = (await running.http.get(path, params={"at": moment})).json()
    assert (past["standing"]["marketing_state"], past["standing"]["source"]) == ("SUBSCRIBED", "import")
    assert [line["said"] for line in past["items"]] == ["SUBSCRIBED"]
    never = (await running.http.get(path, params={"at": "2020-01-01T00:00:00Z"})).json()
    assert (never["standing"]["marketing_state"], never["items"]) == ("UNKNOWN", [])
    asked = [request(workspace_id=w, to={"contact_id": "c-1"}).model_dump(mode="json")]
    body = {"requests": asked, "at": await an_hour_passes(running, w, moment)}
    (judged,) = (await running.http.post("/v1/evaluate", json=body)).json()["results"]
    assert next(gate for gate in judged["gates"] if gate["gate"] == "marketing_state")["passed"]
    assert (await running.http.get(path, params={"at": "yesterday"})).status_code == 422
    assert (await running.http.get(path, params={"cursor": "bm9uZQ"})).status_code == 422


async def test_a_past_moment_is_judged_by_the_phone_of_then(running: Running) -> None:
    w = workspace()
    national = await put(running, w, phone="5512345678", phone_country_code="MX")
    await put(running, w)
    moment = (datetime.fromisoformat(national["updated_at"]) + timedelta(milliseconds=1)).isoformat()
    asked = [request(workspace_id=w, to={"contact_id": "c-1"}).model_dump(mode="json")]
    verdicts = []
    for at in (await an_hour_passes(running, w, moment), None):
        answer = await running.http.post("/v1/evaluate", json={"requests": asked, "at": at})
        (judged,) = answer.json()["results"]
        verdicts.append((judged["resolved"]["phone"], [one["gate"] for one in judged["gates"] if not one["passed"]]))
    assert verdicts == [(None, ["calling_code", "phone_possible"]), (PHONE, [])]


async def an_hour_passes(running: Running, w: str, moment: str) -> str:
    """As if all of the workspace had been told an hour earlier; when the moment was, then."""
    async with running.app.state.runtime.pool.acquire() as connection:
        for table, column in (("contact_history", "recorded_at"), ("contact", "created_at")):
            earlier = f"{column} = {column} - interval '1 hour'"
            await connection.execute(f"update {table} set {earlier} where workspace_id = $1", w)
    return (datetime.fromisoformat(moment) - timedelta(hours=1)).isoformat()


async def test_a_moment_ago_is_now(running: Running) -> None:
    w = workspace()
    await put(running, w)
    asked = [request(workspace_id=w, to={"contact_id": "c-1"}).model_dump(mode="json")]
    answers = []
    for ago in (timedelta(0), NOW_TOLERANCE / 2, -NOW_TOLERANCE, 2 * NOW_TOLERANCE):
        body = {"requests": asked, "resolved": [None], "at": (datetime.now(UTC) - ago).isoformat()}
        (judged,) = (await running.http.post("/v1/evaluate", json=body)).json()["results"]
        answers.append({gate["passed"] for gate in judged["gates"]})
    assert answers == [{True}, {True}, {True}, {True, False, None}]


async def test_a_viewer_sees_no_full_number_in_a_history(running: Running) -> None:
    await put(running, "acme", "c-fixed", phone="+12025550123")
    await put(running, "acme", "c-fixed", phone="+12025550145")
    path = "/v1/workspaces/acme/contacts/c-fixed/history"
    shown = [
        [change for line in (await running.http.get(path, headers=who)).json()["items"] for change in line["fields"]]
        for who in (OPERATOR, VIEWER)
    ]
    changed = [[(one["old"], one["new"]) for one in changes if one["field"] == "phone"] for changes in shown]
    assert changed == [
        [("+12025550123", "+12025550145"), (None, "+12025550123")],
        [("***23", "***45"), (None, "***23")],
    ]


async def test_a_suggestion_is_applied_only_when_accepted(running: Running) -> None:
    w = workspace()
    await put(running, w, phone="5512345678", phone_country_code=None, address_country="MX")
    listed = (await running.http.get(f"/v1/workspaces/{w}/contacts/suggestions")).json()
    (one,) = listed["items"]
    assert one["suggestion"] == {
        "phone": PHONE,
        "calling_code": "52",
        "ground": "address_country",
        "country": "MX",
        "text": "the address' country MX",
    }
    alone = f"/v1/workspaces/{w}/contacts/c-1/suggestion"
    assert (await running.http.get(alone)).json() == {"contact_id": "c-1", "suggestion": one["suggestion"]}
    path = f"/v1/workspaces/{w}/contacts/c-1/suggestion/accept"
    other = await running.http.post(path, json={"phone": PHONE, "ground": "shop_country"})
    assert (other.status_code, "changed" in other.text) == (409, True)
    assert other.json()["errors"][0]["field"] == "phone"
    shown = {"phone": PHONE, "ground": "address_country", "note": "asked by phone"}
    key = {"idempotency-key": f"accept-{w}"}
    first = await running.http.post(path, json=shown, headers=key)
    assert first.json() == {
        "contact_id": "c-1",
        "outcome": "accepted",
        "why": None,
        "phone": PHONE,
        "suggestion": None,
    }
    assert (await running.http.post(path, json=shown, headers=key)).json() == first.json()
    assert (await running.http.post(path, json=shown)).json()["outcome"] == "already_accepted"
    history = (await running.http.get(f"/v1/workspaces/{w}/contacts/c-1/history")).json()["items"]
    (accepted,) = [line for line in history if line["origin"] == "suggestion"]
    assert accepted["note"] == "accepted +52: the address' country MX; asked by phone"
    assert accepted["fields"] == [{"field": "phone_calling_code", "old": None, "new": "52"}]
    assert (await running.http.get(alone)).json()["suggestion"] is None
    await running.wait_for(Topic.CONTACT_UPDATED, lambda one: one.key == f"{w}/c-1".encode() and b'"52"' in one.value)


async def test_suggestions_in_bulk_by_ground_and_by_name(running: Running) -> None:
    w = workspace()
    base = f"/v1/workspaces/{w}"
    assert (await running.http.get(f"{base}/settings")).json()["shop_country"] is None
    assert (await running.http.put(f"{base}/settings", json={"shop_country": "mx"})).json()["shop_country"] == "MX"
    await put(running, w, "b-address", phone="07700900142", phone_country_code="GB", address_country="GB")
    for i in range(3):
        await put(running, w, f"shop-{i}", phone=f"551234567{i}", phone_country_code=None)
    await put(running, w, "c-readable")
    pages = [(await running.http.get(f"{base}/contacts/suggestions?limit=3")).json()]
    pages.append((await running.http.get(f"{base}/contacts/suggestions?cursor={pages[0]['next_cursor']}")).json())
    assert [[one["contact_id"] for one in page["items"]] for page in pages] == [
        ["b-address", "shop-0", "shop-1"],
        ["shop-2"],
    ]
    await put(running, w, "shop-1", phone="5512345699", phone_country_code=None)
    accept = f"{base}/contacts/suggestions/accept"
    listed = {"ground": "shop_country", "listed_at": pages[1]["listed_at"]}
    done = (await running.http.post(accept, json={"filter": listed})).json()
    assert [(one["contact_id"], one["outcome"]) for one in done["items"]] == [
        ("shop-0", "accepted"),
        ("shop-1", "refused"),
        ("shop-2", "accepted"),
    ]
    assert (done["accepted"], done["refused"], done["items"][1]["suggestion"]["phone"]) == (2, 1, "+525512345699")
    items = [
        {"contact_id": "b-address", "phone": "+447700900142", "ground": "address_country"},
        {"contact_id": "shop-0", "phone": "+525512345670", "ground": "shop_country"},
        {"contact_id": "shop-1", "phone": "+525512345671", "ground": "shop_country"},
        {"contact_id": "nobody", "phone": PHONE, "ground": "digits"},
    ]
    done = (await running.http.post(accept, json={"items": items})).json()
    assert [one["outcome"] for one in done["items"]] == ["accepted", "already_accepted", "refused", "refused"]
    left = (await running.http.get(f"{base}/contacts/suggestions?ground=shop_country&country=mx")).json()
    assert [one["contact_id"] for one in left["items"]] == ["shop-1"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"items": []},
        {"filter": {"ground": "horoscope", "listed_at": "2026-11-22T10:00:00Z"}},
        {"filter": {"ground": "digits"}},
        {"items": [{"contact_id": "c", "phone": PHONE, "ground": "digits"}] * 2},
    ],
)
async def test_a_bulk_acceptance_that_is_none(running: Running, body: Any) -> None:
    answer = await running.http.post("/v1/workspaces/acme/contacts/suggestions/accept", json=body)
    assert (answer.status_code, bool(answer.json()["errors"])) == (422, True), answer.text


@pytest.mark.parametrize(
    ("headers", "method", "path", "status"),
    [
        (VIEWER, "POST", "/v1/workspaces/acme/contacts/suggestions/accept", 403),
        (VIEWER, "POST", "/v1/workspaces/acme/contacts/c-1/suggestion/accept", 403),
        (VIEWER, "PUT", "/v1/workspaces/acme/settings", 403),
        (VIEWER, "GET", "/v1/workspaces/other/contacts/suggestions", 404),
        (VIEWER, "GET", "/v1/workspaces/other/contacts/c-1/suggestion", 404),
        (OPERATOR, "GET", "/v1/workspaces/acme/contacts/nobody/suggestion", 404),
        (VIEWER, "GET", "/v1/workspaces/other/settings", 404),
        (OPERATOR, "GET", "/v1/workspaces/acme/contacts/nobody/history", 404),
    ],
)
async def test_rights_on_suggestions(
    running: Running, headers: dict[str, str], method: str, path: str, status: int
) -> None:
    answer = await running.http.request(method, path, headers=headers, json={} if method != "GET" else None)
    assert answer.status_code == status, answer.text


async def test_another_workspaces_person_is_nobody(running: Running) -> None:
    mine = await put(running, workspace())
    assert (await running.http.get(f"/v1/workspaces/{workspace()}/contacts/{mine['person_id']}")).status_code == 404


@pytest.mark.parametrize(
    "contact_id", ["gid://shopify/Customer/5", "/", "erp/7/history", "erp/7/subscribe", "imports/7", "a%2Fb", "a//b/"]
)
async def test_a_contact_id_may_have_slashes(running: Running, contact_id: str) -> None:
    """It stands in a path with its slashes encoded, which a server decodes before it looks for the route."""
    w = workspace()
    headers = {"content-type": "text/csv"}
    file = f"contact_id,phone,marketing_state\n{contact_id},{PHONE},subscribed\n".encode()
    await running.http.post(f"/v1/workspaces/{w}/contacts/import", content=file, headers=headers)
    path = f"/v1/workspaces/{w}/contacts/{quote(contact_id, safe='')}"

    async def told(method: str, suffix: str = "", **more: Any) -> Any:
        answer = await running.http.request(method, path + suffix, **more)
        assert answer.status_code == 200, answer.text
        return answer.json()

    assert (await told("PUT", json=CONTACT | {"name": "Inés"}))["contact_id"] == contact_id
    assert (await told("POST", "/unsubscribe", json={}))["contact_id"] == contact_id
    assert (await told("POST", "/subscribe", json={"proof": "form 17"}))["name"] == "Inés"
    assert [one["contact_id"] for one in (await told("GET", "/history"))["items"]] == [contact_id] * 4
    assert (await told("GET", "/suggestion")) == {"contact_id": contact_id, "suggestion": None}
    assert [one["contact_id"] for one in (await told("GET", "/data"))["contacts"]] == [contact_id]
    accepted = {"phone": PHONE, "ground": "shop_country"}
    assert (await told("POST", "/suggestion/accept", json=accepted))["outcome"] == "already_accepted"
    if not contact_id.endswith("/history"):
        assert (await told("GET"))["contact_id"] == contact_id
    assert (await running.http.delete(path)).status_code == 204
    assert (await running.http.get(f"/v1/workspaces/{w}/contacts")).json()["items"] == []


@pytest.mark.parametrize(
    ("body", "headers"),
    [(b"", {}), *((body, {"content-type": "application/json"}) for body in (b"", b"{}"))],
)
async def test_a_word_needs_no_body(running: Running, body: bytes, headers: dict[str, str]) -> None:
    w = workspace()
    await put(running, w, marketing_state="UNKNOWN")
    path = f"/v1/workspaces/{w}/contacts/c-1"
    answers = [
        await running.http.post(f"{path}/{said}", content=body, headers=headers | {"idempotency-key": f"{w}-{number}"})
        for number, said in ((1, "subscribe"), (2, "unsubscribe"), (2, "unsubscribe"))
    ]
    assert [(one.status_code, one.json()["marketing_state"], one.json()["source"]) for one in answers] == [
        (200, "SUBSCRIBED", "operator"),
        (200, "UNSUBSCRIBED", "operator"),
        (200, "UNSUBSCRIBED", "operator"),
    ]
    assert answers[2].headers["idempotent-replayed"] == "true"
