"""Rubbish on every topic and endpoint: a clear error or a dead letter, and the rest goes on."""

import json
from typing import Any

import httpx
import pytest
from outside import Outside, until

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
]


def rubbish(mark: str) -> list[bytes]:
    return [
        b"not json " + mark.encode(),
        json.dumps({"mark": mark}).encode(),
        json.dumps([mark]).encode(),
        json.dumps({"mark": mark, "message_id": 7, "workspace_id": None, "event_id": "x"}).encode(),
        b'{"mark": "' + mark.encode() + b'", "deep": ' + b"[" * 3000 + b"]" * 3000 + b"}",
        b"\xff\xfe" + mark.encode(),
        json.dumps({"mark": mark, "big": "x" * 3_000_000}).encode(),
    ]


async def test_rubbish_on_every_topic_stops_nothing(user: Outside) -> None:
    await user.set_up()
    await user.contact("c1", user.person())
    for topic in TOPICS:
        for value in rubbish(user.workspace):
            await user.publish_raw(topic, value)
    await user.publish(user.request("after", "c1"))
    assert await user.settled(["after"]) == {"after": ("read", None)}
    planted = set(rubbish(user.workspace))

    async def put_aside() -> bool:
        letters = await user.records("dead.letters")
        sources = {dict(letter.headers)["topic"].decode() for letter in letters if letter.value in planted}
        return set(TOPICS) - {"send.rejected", "send.held", "account.updated"} <= sources

    await until(put_aside, "dead letters of each topic that a stage decides on")


async def test_an_unreadable_request_is_rejected_where_its_id_can_be_read_and_the_id_stays_free(user: Outside) -> None:
    await user.set_up()
    await user.contact("c1", user.person())
    wrong = user.request("m1", "c1") | {"origin": {"kind": "carrier pigeon"}}
    await user.publish(wrong)
    assert await user.settled(["m1"]) == {"m1": ("failed", "INVALID_REQUEST")}
    message = await user.message("m1")
    assert message is not None
    assert "origin.kind" in json.dumps(message["reason"])
    await user.publish(user.request("m1", "c1"))

    async def corrected() -> bool:
        told = await user.message("m1")
        return bool(told and told["status"] == "read")

    await until(corrected, "the corrected request under the same id")


ENDPOINTS = [
    ("consent", "PUT", "/contacts/c1"),
    ("consent", "POST", "/contacts/c1/subscribe"),
    ("billing", "POST", "/top-ups"),
    ("billing", "POST", "/adjustments"),
    ("billing", "PUT", "/prices"),
    ("dispatcher", "PUT", "/senders/12345678"),
    ("dispatcher", "PUT", "/throttles/c"),
    ("message-log", "POST", "/messages"),
]
BODIES: list[bytes] = [
    b"",
    b"not json",
    b"[7]",
    b"null",
    b'{"credits": true, "access_token": 7, "per_minute": "x", "marketing_state": "MAYBE"}',
    b'{"a": "\\u0000", "credits": 1e400}',
    b"[" * 5000,
    b"\xff\xfe\x00",
]


@pytest.mark.parametrize(("service", "method", "path"), ENDPOINTS)
async def test_rubbish_over_http_gets_a_problem(user: Outside, service: str, method: str, path: str) -> None:
    url = user.at(service, f"/v1/workspaces/{user.workspace}{path}")
    headers = {
        "authorization": f"Bearer {user.stack['admin_token']}",
        "content-type": "application/json",
        "idempotency-key": "k",
    }
    for body in BODIES:
        answer = await user.http.request(method, url, content=body, headers=headers)
        assert 400 <= answer.status_code < 500, (body[:40], answer.status_code, answer.text)
        assert answer.headers["content-type"] == "application/problem+json"
    answer = await user.http.request(method, url, content=b'{"a": "' + b"x" * 5_000_000 + b'"}', headers=headers)
    assert answer.status_code == 413


@pytest.mark.parametrize(("service", "method", "path"), ENDPOINTS)
async def test_nobody_is_let_in_without_a_token(user: Outside, service: str, method: str, path: str) -> None:
    url = user.at(service, f"/v1/workspaces/{user.workspace}{path}")
    for headers in ({}, {"authorization": "Bearer wrong-token"}, {"authorization": "Basic eDp5"}):
        answer = await user.http.request(method, url, content=b"{}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"


async def door(user: Outside, body: bytes, **headers: str) -> httpx.Response:
    return await user.http.post(user.at("webhook-ingest", "/webhooks/meta"), content=body, headers=headers)


async def test_nothing_unsigned_is_believed(user: Outside) -> None:
    body = b'{"object": "whatsapp_business_account", "entry": []}'
    for headers in (
        {},
        {"x-hub-signature-256": ""},
        {"x-hub-signature-256": "sha256="},
        {"x-hub-signature-256": "sha256=" + "0" * 64},
        {"x-hub-signature-256": "sha1=" + "0" * 40},
        {"x-hub-signature-256": "sha256=" + "é" * 32},
    ):
        encoded: Any = {name: value.encode("utf-8") for name, value in headers.items()}
        assert (await door(user, body, **encoded)).status_code == 401
    assert await user.post_webhook(body, secret="another secret") == 401
    assert await user.post_webhook(body) == 200


async def test_a_signed_and_unreadable_webhook_is_kept_and_put_aside(user: Outside) -> None:
    for body in rubbish(user.workspace)[:6]:
        assert await user.post_webhook(body) == 200
    assert await user.post_webhook(b"x" * (3 * 1024 * 1024 + 1)) == 413

    async def put_aside() -> bool:
        return len(await user.records("dead.letters")) >= 3

    await until(put_aside, "dead letters of unreadable webhooks")


async def test_verification(user: Outside) -> None:
    url = user.at("webhook-ingest", "/webhooks/meta")
    asked = {"hub.mode": "subscribe", "hub.challenge": "1158201444"}
    right = await user.http.get(url, params=asked | {"hub.verify_token": user.stack["meta_verify_token"]})
    assert (right.status_code, right.text) == (200, "1158201444")
    assert (await user.http.get(url, params=asked | {"hub.verify_token": "wrong"})).status_code == 403
    assert (await user.http.get(url)).status_code == 403


async def test_a_foreign_workspace_is_not_found(user: Outside) -> None:
    for service, path in (
        ("consent", "/contacts/c1"),
        ("message-log", "/messages/none"),
        ("dispatcher", "/senders/123456"),
    ):
        answer = await user.call("GET", user.at(service, f"/v1/workspaces/{user.workspace}{path}"))
        assert answer.status_code == 404
        assert answer.headers["content-type"] == "application/problem+json"
