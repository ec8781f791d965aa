"""What comes of a request that can't be read, and who isn't let in. All other bad inputs: test_bad_inputs.py."""

import json

import pytest
from outside import Outside, until


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


@pytest.mark.parametrize(("service", "method", "path"), ENDPOINTS)
async def test_nobody_is_let_in_without_a_token(user: Outside, service: str, method: str, path: str) -> None:
    url = user.at(service, f"/v1/workspaces/{user.workspace}{path}")
    for headers in ({}, {"authorization": "Bearer wrong-token"}, {"authorization": "Basic eDp5"}):
        answer = await user.http.request(method, url, content=b"{}", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["content-type"] == "application/problem+json"


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
