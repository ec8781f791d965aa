"""The webhook log, replay, and dead letters that are repaired, over HTTP."""

import csv
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from message_log_builders import ADMIN, OPERATOR, STRANGER, VIEWER, WORKSPACE, registered, requested, status
from sendwhy.access import Role
from sendwhy.events import Status
from sendwhy.topics import Headers, Outgoing, Topic, outgoing

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
MessageLog = Any
NUMBER = "415566778890018"
HOME, API = f"/w/{WORKSPACE}", f"/v1/workspaces/{WORKSPACE}"
SAME_SITE = {"sec-fetch-site": "same-origin"}
SCRIPT = "<script>alert(1)</script>"
FORMULA = "=HYPERLINK(1)"


def log_in(message_log: MessageLog, token: str) -> httpx.Client:
    answer = httpx.post(f"{message_log.url}/login", data={"token": token}, headers=SAME_SITE, trust_env=False)
    assert answer.status_code == 303, answer.text
    return httpx.Client(
        base_url=message_log.url, cookies=answer.cookies, timeout=60, trust_env=False, headers=SAME_SITE
    )


@pytest.fixture
def admin(message_log: MessageLog) -> Iterator[httpx.Client]:
    with log_in(message_log, ADMIN) as client:
        yield client


def delivery(wamid: str, message_id: str | None = None, **more: Any) -> bytes:
    callback = {"biz_opaque_callback_data": f"sw1:{WORKSPACE}:{message_id}"} if message_id else {}
    value = {"metadata": {"phone_number_id": NUMBER}, "statuses": [{"id": wamid, "status": "delivered", **callback}]}
    change = {"field": "messages", "value": value}
    return json.dumps({"entry": [{"id": "301", "changes": [change]}], **more}).encode()


def received(body: bytes) -> Outgoing:
    headers: Headers = (
        ("source", b"meta"),
        ("app_id", b"400"),
        ("received_at", b"2026-11-22T10:00:00.000000+00:00"),
        ("delivery_id", SCRIPT.encode()),
    )
    return Outgoing(Topic.WEBHOOK_RECEIVED, b"k", body, headers)


def refused(body: bytes) -> Outgoing:
    headers = (("source", b"meta"), ("cause", b"signature is wrong"), ("size", b"4711"))
    return Outgoing(Topic.WEBHOOK_REFUSED, b"k", body, headers)


def dead(body: bytes, topic: str = "send.requested", error: str = "unreadable: to: Field required") -> Outgoing:
    headers = (("service", b"consent"), ("topic", topic.encode()), ("error", error.encode()))
    return Outgoing(Topic.DEAD_LETTERS, b"k", body, headers)


def test_a_delivery_is_found_by_wamid_and_says_what_became_of_it(message_log: MessageLog, admin: httpx.Client) -> None:
    told = status(Status.DELIVERED, message_id="made-1", provider_message_id="wamid.made")
    bodies = [delivery("wamid.made", "made-1", evil=SCRIPT), delivery("wamid.unmade", "made-2")]
    senders = outgoing(registered(NUMBER), source="test")
    message_log.publish([senders, *map(received, bodies), outgoing(told, source="test")])
    message_log.wait_for(f"{API}/messages/made-1", lambda m: m["webhooks"] and m["events"])
    found = message_log.wait_for(f"{API}/webhooks?wamid=wamid.made", lambda a: len(a["items"]) == 1)["items"][0]
    assert (found["signature"], found["answer"], found["refused"]) == ("right", 200, None)
    one = message_log.get(f"{API}/webhooks/{found['webhook_id']}").json()
    assert one["headers"]["received_at"] == "2026-11-22T10:00:00.000000+00:00"
    assert one["parts"][0]["made"]["event_id"] == str(told.event_id)
    other = message_log.wait_for(f"{API}/webhooks?wamid=wamid.unmade", lambda a: a["items"])["items"][0]
    assert message_log.get(f"{API}/webhooks/{other['webhook_id']}").json()["parts"][0]["made"] is None
    assert message_log.get("/v1/workspaces/other/webhooks?wamid=wamid.made", STRANGER).json()["items"] == []
    page = admin.get(f"{HOME}/webhooks/{found['webhook_id']}").text
    assert "Delivered to the device" in page
    assert SCRIPT not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "no event yet" in admin.get(f"{HOME}/webhooks/{other['webhook_id']}").text
    assert "status delivered" in admin.get(f"{HOME}/webhooks?wamid=wamid.made").text


def test_what_was_refused_says_why_to_those_who_may_see_it(message_log: MessageLog, admin: httpx.Client) -> None:
    message_log.publish([refused(SCRIPT.encode())])

    # Others of other tests may be there already.
    def own(answer: Any) -> list[Any]:
        return [one for one in answer["items"] if one["size"] == 4711]

    items = own(message_log.wait_for(f"{API}/webhooks?refused=true", own))
    assert (items[0]["signature"], items[0]["answer"]) == ("wrong", 401)
    answer = admin.get(f"{HOME}/webhooks/{items[0]['webhook_id']}")
    page = answer.text
    assert (answer.status_code, re.findall("<h[12]>(.*?)</h", page)[1:2]) == (200, ["Refused: the signature is wrong"])
    assert "What to do" in page
    assert SCRIPT not in page
    assert message_log.get(f"{API}/webhooks?refused=true", OPERATOR).json()["items"] == []
    rows = list(csv.DictReader(io.StringIO(message_log.get(f"{API}/webhooks.csv?refused=true").text)))
    assert rows[0]["answer"] == "401"


def test_a_replay_shows_the_difference_first_and_is_noted(
    message_log: MessageLog, admin: httpx.Client, others: Any
) -> None:
    path = f"{API}/webhooks/replay"
    answer = {
        "dry_run": True,
        "deliveries": 1234,
        "emitted": {"status.updated": 7},
        "complete": True,
        "next_from": None,
    }
    others.answers[f"POST {path}"] = (200, answer)
    span = {"from": "2026-11-22T10:00:00Z", "to": "2026-11-22T11:00"}
    assert "In this span" in admin.get(f"{HOME}/webhook-replay", params=span).text
    trial = admin.post(f"{HOME}/webhook-replay", data={**span, "dry_run": "1"}).text
    assert "A replay would do this" in trial
    assert "7 status.updated" in trial
    assert "Replay 1,234 deliveries" in trial
    others.answers[f"POST {path}"] = (200, answer | {"dry_run": False})
    assert "Replayed" in admin.post(f"{HOME}/webhook-replay", data=span).text
    first, second = [asked for asked in others.asked if asked.path == path][-2:]
    assert (first.query, second.query) == ("dry_run=true", "dry_run=false")
    assert json.loads(second.body) == {"from": "2026-11-22T10:00:00+00:00", "to": "2026-11-22T11:00:00+00:00"}
    assert second.who.role is Role.ADMIN
    assert "replay webhooks" in admin.get(f"{HOME}/audit").text
    others.answers[f"POST {path}"] = (422, {"title": "no", "detail": SCRIPT})
    wrong = admin.post(f"{HOME}/webhook-replay", data=span)
    assert wrong.status_code == 422
    assert SCRIPT not in wrong.text


@pytest.mark.parametrize("span", [{"from": "x", "to": "y"}, {"from": "2026-11-22", "to": "2026-11-22"}, {"from": ""}])
def test_a_span_that_is_none_is_told(admin: httpx.Client, span: dict[str, str]) -> None:
    assert admin.post(f"{HOME}/webhook-replay", data=span).status_code == 422


def test_a_viewer_replays_nothing(message_log: MessageLog, others: Any) -> None:
    before = len(others.asked)
    with log_in(message_log, VIEWER) as viewer:
        page = viewer.get(f"{HOME}/webhook-replay").text
        assert "disabled" in page
        assert "This needs the role operator." in page
        span = {"from": "2026-11-22T10:00:00Z", "to": "2026-11-22T11:00:00Z"}
        assert viewer.post(f"{HOME}/webhook-replay", data=span).status_code == 403
    assert len(others.asked) == before


def letters(message_log: MessageLog, message_id: str, token: str = ADMIN) -> Any:
    return message_log.wait_for(f"{API}/dead-letters?message_id={message_id}", lambda a: a["items"], token)["items"]


def broken(message_id: str, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(requested(message_id=message_id).to_json())
    return body | {"to": {}, **more}


def test_a_dead_letter_is_repaired_put_back_and_noted(message_log: MessageLog, admin: httpx.Client) -> None:
    body = broken("dead-1", metadata={"note": SCRIPT})
    message_log.publish([dead(json.dumps(body).encode(), error=f"unreadable: {SCRIPT}")])
    (letter,) = letters(message_log, "dead-1")
    assert (letter["topic"], letter["service"], letter["error"]) == (
        "send.requested",
        "consent",
        f"unreadable: {SCRIPT}",
    )
    address = f"{HOME}/dead-letters/{letter['dead_letter_id']}"
    page = admin.get(address).text
    assert "Put it back on send.requested" in page
    assert SCRIPT not in page + admin.get(f"{HOME}/dead-letters").text
    still = admin.post(f"{address}/resubmit", data={"body": json.dumps(body)})
    assert still.status_code == 422
    assert "needs contact_id or phone" in still.text
    assert letters(message_log, "dead-1")[0]["resubmitted_at"] is None
    repaired = body | {"to": {"contact_id": "c-1"}}
    assert admin.post(f"{address}/resubmit", data={"body": json.dumps(repaired)}).status_code == 303
    message = message_log.wait_for(
        f"{API}/messages/dead-1", lambda m: any(e["kind"] == "requested" for e in m["events"])
    )
    assert message["to"]["contact_id"] == "c-1"
    assert letters(message_log, "dead-1")[0]["resubmitted_by"]
    assert "put back" in admin.get(f"{HOME}/dead-letters").text
    assert "resubmit dead letter" in admin.get(f"{HOME}/audit").text


def test_by_api_a_repair_is_checked_the_same_way(message_log: MessageLog) -> None:
    message_log.publish([dead(json.dumps(broken("dead-2")).encode())])
    (letter,) = letters(message_log, "dead-2")
    path = f"{API}/dead-letters/{letter['dead_letter_id']}/resubmit"
    wrong = message_log.post(path, json={"body": "{}"})
    assert wrong.status_code == 422
    assert {error["field"] for error in wrong.json()["errors"]} >= {"message_id", "to"}
    good = json.dumps(broken("dead-2") | {"to": {"phone": "+525512345678"}})
    answers = [message_log.post(path, json={"body": good}, headers={"Idempotency-Key": "r-1"}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [202, 202]
    assert answers[0].json() == answers[1].json()
    message_log.wait_for(f"{API}/messages/dead-2")


def test_who_may_see_and_repair_dead_letters(message_log: MessageLog) -> None:
    secret = json.dumps(broken("dead-3", metadata={"phone": "+525512345678"})).encode()
    nobodys = b'{"statuses": "+525512345678"}'
    message_log.publish(
        [dead(secret), dead(nobodys, "webhook.received", "seen-1"), dead(b"\xff\x00", "status.updated", "seen-2")]
    )
    (letter,) = letters(message_log, "dead-3", VIEWER)
    address = f"/dead-letters/{letter['dead_letter_id']}"
    assert message_log.get(API + address, OPERATOR).json()["body"] == secret.decode()
    seen = message_log.get(API + address, VIEWER)
    assert (seen.json()["body"], seen.json()["body_hidden"]) == (None, True)
    with log_in(message_log, VIEWER) as viewer, log_in(message_log, OPERATOR) as operator:
        assert "5512345678" not in viewer.get(HOME + address).text
        assert "disabled" in operator.get(HOME + address).text
        for person in (viewer, operator):
            assert person.post(f"{HOME}{address}/resubmit", data={"body": "{}"}).status_code == 403
    assert message_log.post(f"{API}{address}/resubmit", OPERATOR, json={"body": "{}"}).status_code == 403
    assert message_log.get(f"/v1/workspaces/other{address}", STRANGER).status_code == 404
    all_of_them = message_log.wait_for(
        f"{API}/dead-letters?limit=500",
        lambda a: {"seen-1", "seen-2"} <= {each["error"] for each in a["items"]},
    )["items"]
    ids = {each["topic"]: each["dead_letter_id"] for each in all_of_them if each["error"] in ("seen-1", "seen-2")}
    for letter_id in ids.values():
        assert message_log.get(f"{API}/dead-letters/{letter_id}", OPERATOR).status_code == 404
    raw = message_log.get(f"{API}/dead-letters/{ids['webhook.received']}").json()
    assert raw["body"] == nobodys.decode()
    assert "replay it" in raw["fixed"]
    refused_path = f"{API}/dead-letters/{ids['webhook.received']}/resubmit"
    assert message_log.post(refused_path, json={"body": "{}"}).status_code == 409
    binary = message_log.get(f"{API}/dead-letters/{ids['status.updated']}").json()
    assert (binary["body"], binary["is_text"], binary["size"]) == (None, False, 2)


def test_a_formula_in_an_error_is_no_formula(message_log: MessageLog) -> None:
    message_log.publish([dead(json.dumps(broken("dead-4")).encode(), error=FORMULA)])
    letters(message_log, "dead-4")
    rows = list(csv.DictReader(io.StringIO(message_log.get(f"{API}/dead-letters.csv").text)))
    assert next(row for row in rows if row["message_id"] == "dead-4")["error"] == f"'{FORMULA}"


def test_wrong_addresses_are_not_found_and_wrong_filters_named(message_log: MessageLog) -> None:
    for path in ("dead-letters/none", "webhooks/none", "dead-letters/6f1f0f0a-6d1c-5b8e-9c55-0a1d7b4c2e77"):
        assert message_log.get(f"{API}/{path}").status_code == 404
    for query in ("webhooks?from=x", "webhooks?refused=perhaps", "dead-letters?cursor=!!", "dead-letters?limit=0"):
        assert message_log.get(f"{API}/{query}").status_code == 422
