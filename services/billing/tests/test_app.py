"""The whole service with real Kafka and PostgreSQL: over HTTP, and from topic to topic."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from billing_desk import TEMPLATE, consented, status
from billing_service import Service, fields, names
from sendwhy.events import AccountUpdated, SendConsented, Status
from sendwhy.topics import Topic

pytestmark = [pytest.mark.kafka, pytest.mark.postgres, pytest.mark.asyncio(loop_scope="module")]


async def test_an_account_that_was_never_seen_is_empty(service: Service, workspace: str) -> None:
    answer = await service.get(workspace, "account")
    assert (answer.status_code, answer.json()) == (
        200,
        {
            "workspace_id": workspace,
            "balance": 0,
            "reserved": 0,
            "version": 0,
            "last_top_up": None,
            "low_balance_percent": None,
        },
    )


async def test_a_top_up_is_booked_and_told(service: Service, workspace: str) -> None:
    answer = await service.top_up(workspace, 50)
    assert answer.status_code == 200
    assert {key: answer.json()[key] for key in ("balance", "version", "last_top_up")} == {
        "balance": 50,
        "version": 1,
        "last_top_up": 50,
    }
    assert answer.json()["entry"]["cause"] == "invoice 7"
    [told] = await service.until(Topic.ACCOUNT_UPDATED, names(workspace))
    state = AccountUpdated.model_validate_json(told)
    assert (state.balance, state.version, state.last_top_up) == (50, 1, 50)
    assert state.last_entry == answer.json()["entry"]


async def test_fifty_equal_top_ups_with_one_key_are_one_credit(service: Service, workspace: str) -> None:
    answers = await asyncio.gather(*(service.top_up(workspace, 7) for _ in range(50)))
    assert Counter((answer.status_code, answer.content) for answer in answers) == {(200, answers[0].content): 50}
    assert (await service.get(workspace, "account")).json()["balance"] == 7
    other = await service.top_up(workspace, 8)
    assert other.status_code == 409


@pytest.mark.parametrize("credits", [True, 1.0, 1.5, "1", None, 0, -1, 10**9 + 1, 10**40, [], {}])
async def test_odd_amounts_are_refused_by_name(service: Service, workspace: str, credits: Any) -> None:
    answer = await service.post(workspace, "top-ups", {"credits": credits, "reference": "r"}, key="k")
    assert (answer.status_code, fields(answer)) == (422, {"credits"})
    assert (await service.get(workspace, "account")).json()["balance"] == 0


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"credits": 1}, {"reference"}),
        ({"credits": 1, "reference": ""}, {"reference"}),
        ({"credits": 1, "reference": "a\x00b"}, {"reference"}),
        ({"credits": 1, "reference": "x" * 201}, {"reference"}),
        ({"credits": 1, "reference": "r", "workspace": "other"}, {"workspace"}),
    ],
)
async def test_odd_top_ups_are_refused_by_name(service: Service, workspace: str, body: Any, wrong: set[str]) -> None:
    answer = await service.post(workspace, "top-ups", body, key="k")
    assert (answer.status_code, fields(answer)) == (422, wrong)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'{"credits":1,"reference":"\\ud800"}', b'{"credits":NaN,"reference":"r"}', b"[" * 10_000]
)
async def test_a_body_that_is_no_body_is_a_client_error(service: Service, workspace: str, raw: bytes) -> None:
    headers = {"authorization": "Bearer admin-token", "idempotency-key": "k", "content-type": "application/json"}
    for method, path in [("POST", "top-ups"), ("POST", "adjustments"), ("PUT", "prices")]:
        url = f"/v1/workspaces/{workspace}/{path}"
        answer = await service.http.request(method, url, content=raw, headers=headers)
        assert answer.status_code in (400, 422) or (path == "prices" and raw == b"[]")


async def test_a_top_up_needs_a_key_and_rights(service: Service, workspace: str) -> None:
    body = {"credits": 1, "reference": "r"}
    without = await service.post(workspace, "top-ups", body)
    assert (without.status_code, fields(without)) == (400, {"Idempotency-Key"})
    assert (await service.post(workspace, "top-ups", body, key="k", token="viewer-token")).status_code == 403
    assert (await service.post(workspace, "top-ups", body, key="k", token="foreign-token")).status_code == 404
    assert (await service.post(workspace, "top-ups", body, key="k", token="none")).status_code == 401
    adjustment = {"credits": 1, "reason": "r"}
    assert (await service.post(workspace, "adjustments", adjustment, token="operator-token")).status_code == 403
    assert (await service.get("a%00b", "account")).status_code == 404


async def test_an_adjustment_corrects_but_never_below_zero(service: Service, workspace: str) -> None:
    await service.top_up(workspace, 10)
    down = await service.post(workspace, "adjustments", {"credits": -4, "reason": "double booking"}, key="down")
    assert (down.status_code, down.json()["balance"]) == (200, 6)
    below = await service.post(workspace, "adjustments", {"credits": -7, "reason": "too much"}, key="below")
    assert (below.status_code, fields(below)) == (409, {"credits"})
    zero = await service.post(workspace, "adjustments", {"credits": 0, "reason": "nothing"})
    assert (zero.status_code, fields(zero)) == (422, {"credits"})
    assert (await service.get(workspace, "account")).json()["balance"] == 6


async def test_the_ledger_is_paged_and_filtered(service: Service, workspace: str) -> None:
    for n in range(5):
        await service.top_up(workspace, n + 1, key=f"k{n}")
    await service.post(workspace, "adjustments", {"credits": -1, "reason": "x"}, key="a")
    seen: list[int] = []
    cursor: dict[str, str] = {}
    while True:
        page = (await service.get(workspace, "ledger", limit=4, **cursor)).json()
        seen += [entry["version"] for entry in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = {"cursor": page["next_cursor"]}
    assert seen == [6, 5, 4, 3, 2, 1]
    [adjusted] = (await service.get(workspace, "ledger", kind="adjustment")).json()["items"]
    assert (adjusted["amount"], adjusted["balance_after"], adjusted["cause"]) == (-1, 14, "x")
    assert (await service.get(workspace, "ledger", message_id="none")).json()["items"] == []


@pytest.mark.parametrize(
    "params",
    [{"cursor": "???"}, {"cursor": "AAAA"}, {"cursor": "OTk5OTk5OTk5OTk5OTk5OTk5OTk"}, {"limit": 501}, {"kind": "x"}],
)
async def test_odd_questions_to_the_ledger_are_refused(service: Service, workspace: str, params: Any) -> None:
    answer = await service.get(workspace, "ledger", **params)
    assert (answer.status_code, fields(answer)) == (422, set(params))


PRICE = {"category": "marketing", "calling_code": "52", "credits": 3, "valid_from": "2026-11-01T00:00:00Z"}


async def test_a_price_list_is_replaced_as_a_whole(service: Service, workspace: str) -> None:
    general = PRICE | {"calling_code": None, "credits": 2}
    assert (await service.put_prices(workspace, [PRICE, general])).status_code == 200
    await service.put_prices(workspace, [general])
    items = (await service.get(workspace, "prices")).json()["items"]
    assert items == [general | {"valid_from": "2026-11-01T00:00:00.000Z"}]


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"credits": True}, {"0.credits"}),
        ({"credits": 1.0}, {"0.credits"}),
        ({"credits": -1}, {"0.credits"}),
        ({"category": "markting"}, {"0.category"}),
        ({"calling_code": "+52"}, {"0.calling_code"}),
        ({"calling_code": "052"}, {"0.calling_code"}),
        ({"valid_from": "2026-11-01T00:00:00"}, {"0.valid_from"}),
        ({"valid_from": 1}, {"0.valid_from"}),
        ({"valid_from": "9999-12-31T00:00:00Z"}, {"0.valid_from"}),
        ({"price": 1}, {"0.price"}),
    ],
)
async def test_odd_prices_are_refused_by_name(service: Service, workspace: str, change: Any, wrong: set[str]) -> None:
    answer = await service.put_prices(workspace, [PRICE | change])
    assert (answer.status_code, fields(answer)) == (422, wrong)


async def test_two_prices_for_one_thing_are_refused(service: Service, workspace: str) -> None:
    answer = await service.put_prices(workspace, [PRICE, PRICE | {"credits": 4}])
    assert (answer.status_code, fields(answer)) == (422, {"1"})


def body_of(event: SendConsented) -> dict[str, Any]:
    return event.request.model_dump(mode="json")


async def test_evaluate_judges_credits_in_turn_and_charges_nothing(service: Service, workspace: str) -> None:
    await service.top_up(workspace, 7)
    await service.put_prices(workspace, [PRICE])
    asked = [body_of(consented(name, workspace, content=TEMPLATE)) for name in ("a", "b", "c")]
    resolved = {"contact_id": None, "phone": "+525512345678", "country": "MX", "purpose": "marketing"}
    beside = (await service.evaluate({"requests": asked, "resolved": [resolved] * 3, "at": None})).json()["results"]
    within = await service.evaluate({"requests": [request | {"resolved": resolved} for request in asked]})
    assert within.json()["results"] == beside
    [first, second, third] = [result["gates"][0] for result in beside]
    assert [first["passed"], second["passed"], third["passed"]] == [True, True, False]
    assert third["reason"]["code"] == "INSUFFICIENT_CREDITS"
    scope = {"origin": {"kind": "campaign", "id": "black-friday"}, "funded": 2, "refused": 1}
    money = {"balance": 1, "price": 3, "shortfall": 2, "currency": "credits"}
    assert third["reason"]["evidence"] == money | {"scope": scope}
    assert (first["evidence"]["assumed"], first["evidence"]["category"]) == (True, "marketing")
    assert beside[0]["resolved"]["phone"] == "+525512345678"
    account = (await service.get(workspace, "account")).json()
    assert (account["balance"], account["version"]) == (7, 1)


async def test_evaluate_does_not_know_the_past(service: Service, workspace: str) -> None:
    answer = await service.evaluate({"requests": [body_of(consented("a", workspace))], "at": "2026-01-01T00:00:00Z"})
    [result] = answer.json()["results"]
    assert [gate["passed"] for gate in result["gates"]] == [None]


async def test_evaluate_answers_each_request_for_itself(service: Service, workspace: str) -> None:
    await service.top_up(workspace, 2)
    asked = [body_of(consented(name, workspace)) for name in ("a", "b", "c")]
    odd = [asked[0] | {"message_id": "no spaces"}, {"workspace_id": workspace}]
    answer = await service.evaluate({"requests": [asked[0], *odd, *asked[1:]]})
    assert answer.status_code == 200, answer.text
    results = answer.json()["results"]
    assert [one["message_id"] for one in results] == ["a", "no spaces", None, "b", "c"]
    told = [(one["gates"][0]["gate"], one["gates"][0]["passed"]) for one in results]
    assert told == [("credits", True), ("request", False), ("request", False), ("credits", True), ("credits", False)]
    reason = results[1]["gates"][0]["reason"]
    assert (reason["code"], [line.partition(":")[0] for line in reason["evidence"]["fields"]]) == (
        "INVALID_REQUEST",
        ["message_id"],
    )
    past = await service.evaluate({"requests": [odd[0], asked[0]], "at": "2026-01-01T00:00:00Z"})
    assert [one["gates"][0]["passed"] for one in past.json()["results"]] == [False, None]


async def test_evaluate_refuses_foreign_workspaces_and_odd_questions(service: Service, workspace: str) -> None:
    ours, foreign = body_of(consented("a", "elsewhere")), body_of(consented("b", workspace))
    assert (await service.evaluate({"requests": [ours]}, "foreign-token")).status_code == 200
    assert (await service.evaluate({"requests": [ours, foreign]}, "foreign-token")).status_code == 404
    odd = await service.evaluate({"requests": [ours, 7]})
    assert (odd.status_code, fields(odd)) == (422, {"requests.1"})
    assert (await service.evaluate({"requests": [ours], "resolved": []})).status_code == 422
    assert (await service.evaluate({"requests": [ours] * 1001})).status_code == 422


async def test_a_persons_data_are_found_by_an_id_with_slashes(service: Service, workspace: str) -> None:
    path = f"/v1/workspaces/{workspace}/contacts/gid:%2F%2Fshop%2F5/data?message_id=m-1"
    assert (await service.ask("GET", path)).json() == {"ledger": []}


async def test_from_topic_to_topic(service: Service, workspace: str) -> None:
    await service.top_up(workspace, 2)
    await service.publish(*(consented(name, workspace) for name in ("a", "b", "c", "a")))
    ours = names(workspace)
    funded = await service.until(Topic.SEND_FUNDED, ours, count=2)
    [refused] = await service.until(Topic.SEND_REJECTED, ours)
    assert b"INSUFFICIENT_CREDITS" in refused
    assert len(funded) == 2
    first = next(name for name in ("a", "b", "c") if any(f'"message_id":"{name}"'.encode() in one for one in funded))
    await service.publish(
        status(first, Status.ACCEPTED, workspace),
        status(first, Status.SENT, workspace),
        status(first, Status.READ, workspace),
    )
    captured = await service.until(Topic.ACCOUNT_UPDATED, lambda value: ours(value) and b'"kind":"capture"' in value)
    assert AccountUpdated.model_validate_json(captured[0]).balance == 0
    account = (await service.get(workspace, "account")).json()
    assert (account["balance"], account["reserved"], account["low_balance_percent"]) == (0, 1, 0)
    entries = (await service.get(workspace, "ledger", message_id=first)).json()["items"]
    assert [entry["kind"] for entry in entries] == ["capture", "reserve"]


async def test_an_unreadable_record_is_put_aside_and_its_neighbours_go_on(service: Service, workspace: str) -> None:
    await service.top_up(workspace, 1)
    async with AIOKafkaProducer(bootstrap_servers=service.kafka) as producer:
        await producer.send_and_wait(Topic.SEND_CONSENTED, f"{{{workspace}".encode(), partition=0)
    await service.publish(consented("a", workspace))
    assert await service.until(Topic.SEND_FUNDED, names(workspace))
    assert await service.until(Topic.DEAD_LETTERS, lambda value: value == f"{{{workspace}".encode())


async def test_health_and_metrics(service: Service, workspace: str) -> None:
    assert [(await service.http.get(path)).status_code for path in ("/livez", "/readyz")] == [200, 200]
    metrics = (await service.http.get("/metrics")).text
    assert 'sendwhy_messages_rejected_total{reason="INSUFFICIENT_CREDITS",service="billing"}' in metrics
    assert "sendwhy_credits_balance_mismatch 0.0" in metrics
    schema = (await service.http.get("/openapi.json")).json()
    assert "/v1/workspaces/{w}/top-ups" in schema["paths"]
    assert schema["paths"]["/v1/evaluate"]["post"]["requestBody"]["required"]
