"""The whole service: the door, Kafka, the parsing half, timers, replay."""

import asyncio
import base64
import hashlib
import hmac
import json
import os
import re
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from ingest_service import SHOPIFY_SECRET, VERIFY_TOKEN, Ingest
from ingest_webhooks import APP, OTHER_SECRET, SECRET, T0, body, callback, sender, signature, status, statuses, value
from sendwhy.events import (
    CustomerUpdated,
    MessageReceived,
    Status,
    StatusUpdated,
    To,
    event_id_of,
)
from sendwhy.kafka import create_topics
from sendwhy.reasons import ReasonCode, Service
from sendwhy.settings import KafkaSettings
from sendwhy.topics import MAX_WEBHOOK_BYTES, Topic
from webhook_ingest.receipts import take_mark

pytestmark = [pytest.mark.kafka, pytest.mark.postgres]
FAKETIME = "/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1"


def accepted(number: str, wamid: str, message_id: str, deadline: timedelta = timedelta(days=30)) -> StatusUpdated:
    now = datetime.now(UTC)
    return StatusUpdated(
        event_id=event_id_of(message_id, "accepted"),
        occurred_at=now,
        observed_at=now,
        message_id=message_id,
        workspace_id="acme",
        sender_id=number,
        provider_message_id=wamid,
        service=Service.DISPATCHER,
        status=Status.ACCEPTED,
        to=To(contact_id="c-1"),
        receipt_deadline=now + deadline,
    )


def told(ingest: Ingest, wamid: str) -> list[StatusUpdated]:
    """What the service itself has said about a wamid."""
    events = [StatusUpdated.model_validate_json(raw) for raw in ingest.bodies(Topic.STATUS_UPDATED, wamid)]
    return [event for event in events if event.service is Service.WEBHOOK_INGEST]


def hook(number: str, *entries: Any) -> bytes:
    return statuses(*entries, number=number, waba=f"9{number}")


@pytest.mark.parametrize(
    ("query", "code", "text"),
    [
        (f"hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge=1158201444", 200, "1158201444"),
        (f"hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge=", 200, ""),
        (f"hub.mode=unsubscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge=1", 403, ""),
        ("hub.mode=subscribe&hub.verify_token=guess&hub.challenge=1", 403, ""),
        ("hub.mode=subscribe&hub.verify_token=gu%C3%A9ss%FF&hub.challenge=1", 403, ""),
        ("hub.mode=subscribe&hub.challenge=1", 403, ""),
        (f"hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}&hub.challenge={'1' * 2000}", 403, ""),
        ("", 403, ""),
    ],
)
def test_verification(ingest: Ingest, query: str, code: int, text: str) -> None:
    answer = ingest.get(f"/webhooks/meta?{query}")
    assert (answer.status_code, answer.text) == (code, text)


def test_200_means_that_kafka_has_the_very_bytes(ingest: Ingest) -> None:
    raw = hook("100000000000101", status("sent", "wamid.bytes")).replace(b"wamid.bytes", b"wamid.\\u0062ytes\\/")
    assert ingest.hook(raw) == 200
    (record,) = [record for record in ingest.records(Topic.WEBHOOK_RECEIVED) if record.value == raw]
    headers = dict(record.headers)
    assert (headers["source"], headers["app_id"]) == (b"meta", APP.encode())
    assert headers["delivery_id"] == record.key == hashlib.sha256(raw).hexdigest().encode()


KNOCKS: list[tuple[str, str, dict[str, str], int]] = [
    ("GET", "/webhooks/meta?hub.mode=subscribe&hub.challenge=7&hub.verify_token=" + VERIFY_TOKEN, {}, 200),
    ("GET", "/webhooks/meta?hub.mode=subscribe&hub.challenge=7&hub.verify_token=no", {}, 403),
    ("POST", "/webhooks/meta", {}, 401),
    ("POST", "/webhooks/meta", {"content-encoding": "gzip"}, 415),
    ("POST", "/webhooks/meta", {"x-shopify-topic": "a", "X-Shopify-Topic": "b"}, 400),
    ("POST", "/webhooks/shopify/acme", {}, 401),
    ("POST", "/webhooks/shopify/acme", {"content-encoding": "gzip"}, 415),
]


@pytest.mark.parametrize(("method", "target", "headers", "code"), KNOCKS)
def test_what_the_door_answers_stands_in_its_document(
    ingest: Ingest, method: str, target: str, headers: dict[str, str], code: int
) -> None:
    answer = httpx.request(method, ingest.url + target, headers=headers, timeout=10, trust_env=False)
    assert answer.status_code == code
    path = target.partition("?")[0].replace("/acme", "/{workspace_id}")
    told = ingest.get("/openapi.json").json()["paths"][path][method.lower()]["responses"]
    kind = answer.headers.get("content-type", "").partition(";")[0]
    assert set(told[str(code)].get("content", {})) == ({kind} if answer.content else set())


@pytest.mark.parametrize("secret", ["nobodys-secret", None])
def test_an_unsigned_webhook_is_refused_and_recorded(ingest: Ingest, secret: str | None) -> None:
    raw = hook("100000000000102", status("sent", f"wamid.refused.{secret}", note="x" * 4000))
    headers = {"x-hub-signature-256": signature(raw, secret)} if secret else {}
    answer = ingest.post("/webhooks/meta", content=raw, headers=headers)
    assert (answer.status_code, answer.content) == (401, b"")
    digest = hashlib.sha256(raw).hexdigest().encode()
    (record,) = ingest.wait_for(
        lambda: [record for record in ingest.records(Topic.WEBHOOK_REFUSED) if record.key == digest]
    )
    found = dict(record.headers)
    assert (record.value, found["size"]) == (raw[:2048], str(len(raw)).encode())
    assert found["cause"] == (b"signature is wrong" if secret else b"signature is missing")
    assert raw not in [record.value for record in ingest.records(Topic.WEBHOOK_RECEIVED)]


def test_refusals_beyond_ten_a_second_are_only_counted(ingest: Ingest) -> None:
    before = len(ingest.records(Topic.WEBHOOK_REFUSED))
    started = time.monotonic()
    with httpx.Client(trust_env=False) as client:
        for _ in range(200):
            assert client.post(f"{ingest.url}/webhooks/meta", content=b"{}").status_code == 401
    recorded = len(ingest.records(Topic.WEBHOOK_REFUSED)) - before
    assert recorded <= 10 * (time.monotonic() - started + 2)
    counted = [line for line in ingest.get("/metrics").text.splitlines() if 'result="refused"' in line]
    assert float(counted[0].rpartition(" ")[2]) >= 200


def test_a_body_that_is_too_large_is_413(ingest: Ingest) -> None:
    assert ingest.hook(b"x" * (MAX_WEBHOOK_BYTES + 1)) == 413


def test_a_signed_body_of_the_largest_size_is_kept(ingest: Ingest) -> None:
    raw = hook("100000000000103", status("sent", "wamid.large")) + b" " * MAX_WEBHOOK_BYTES
    assert ingest.hook(raw[:MAX_WEBHOOK_BYTES]) == 200
    assert ingest.wait_for(lambda: told(ingest, "wamid.large"))


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\x00", b"[" * 5000])
def test_a_signed_but_unreadable_webhook_is_200_and_put_aside(ingest: Ingest, raw: bytes) -> None:
    assert ingest.hook(raw) == 200
    assert ingest.wait_for(
        lambda: [
            record
            for record in ingest.records(Topic.DEAD_LETTERS)
            if record.value == raw and dict(record.headers).get("error", b"").startswith(b"unreadable")
        ]
    )


def shopify(ingest: Ingest, workspace: str, raw: bytes, secret: str = SHOPIFY_SECRET, **more: str) -> httpx.Response:
    signed = base64.b64encode(hmac.new(secret.encode(), raw, hashlib.sha256).digest()).decode()
    headers = {"x-shopify-hmac-sha256": signed, "x-shopify-topic": "customers/update", **more}
    return ingest.post(f"/webhooks/shopify/{workspace}", content=raw, headers=headers)


def test_a_shops_customer_reaches_consent(ingest: Ingest) -> None:
    raw = json.dumps({"id": 771233, "phone": "+525512345678"}).encode()
    assert shopify(ingest, "acme", raw).status_code == 200
    (event,) = ingest.wait_for(lambda: ingest.bodies(Topic.CUSTOMER_UPDATED, "shopify:771233"))
    customer = CustomerUpdated.model_validate_json(event)
    assert (customer.workspace_id, customer.phone, customer.detail) == ("acme", "+525512345678", "customers/update")


def test_a_shops_event_is_told_once_however_often_it_comes(ingest: Ingest) -> None:
    for note in ("first", "again", "and again"):
        raw = json.dumps({"id": 771234, "note": note}).encode()
        assert shopify(ingest, "acme", raw, **{"x-shopify-event-id": "event-771234"}).status_code == 200
    assert shopify(ingest, "acme", json.dumps({"id": 771235}).encode()).status_code == 200
    ingest.wait_for(lambda: ingest.bodies(Topic.CUSTOMER_UPDATED, "shopify:771235"))

    def read() -> list[bytes]:
        return ingest.bodies(Topic.CUSTOMER_UPDATED, "shopify:771234")

    ingest.wait_for(read)
    # The parser has read all three once the deadlines' mark, taken now, is behind it.
    mark = asyncio.run(take_mark(KafkaSettings(kafka_bootstrap_servers=ingest.bootstrap), datetime.now(UTC)))
    ingest.wait_for(lambda: ingest.has_read(mark.ends))
    assert len(read()) == 1


def test_an_unknown_workspace_answers_as_a_wrong_signature_does(ingest: Ingest) -> None:
    unknown, wrong = shopify(ingest, "globex", b"{}"), shopify(ingest, "acme", b"{}", "another-secret")
    assert (unknown.status_code, unknown.content) == (wrong.status_code, wrong.content) == (401, b"")


def test_thrice_and_reversed_is_each_once(ingest: Ingest) -> None:
    number, wamid = "100000000000104", "wamid.thrice"
    ingest.publish([sender(number), accepted(number, wamid, "m-thrice")])
    for name in ["read", "delivered", "sent"] * 3:
        assert ingest.hook(hook(number, status(name, wamid, **callback("m-thrice")))) == 200

    def named() -> list[str]:
        return sorted(event.status for event in told(ingest, wamid) if event.message_id == "m-thrice")

    ingest.wait_for(lambda: len(named()) >= 3)
    ingest.hook(hook(number, status("sent", "wamid.after")))
    ingest.wait_for(lambda: told(ingest, "wamid.after"))
    assert named() == ["delivered", "read", "sent"]


def test_a_status_before_its_sender_and_accepted_finds_its_message(ingest: Ingest) -> None:
    number, wamid = "100000000000105", "wamid.early"
    assert ingest.hook(hook(number, status("delivered", wamid))) == 200
    (first,) = ingest.wait_for(lambda: told(ingest, wamid))
    assert (first.message_id, first.workspace_id) == (None, None)
    ingest.publish([sender(number), accepted(number, wamid, "m-early")])
    found = ingest.wait_for(lambda: [event for event in told(ingest, wamid) if event.message_id == "m-early"])
    assert found[0].status is Status.DELIVERED


def test_an_inbound_message_is_told_with_its_workspace(ingest: Ingest) -> None:
    number = "100000000000106"
    ingest.publish([sender(number)])
    message = {"id": "wamid.in", "from": "447700900142", "timestamp": str(T0), "type": "text", "text": {"body": "STOP"}}
    assert ingest.hook(body(value(number, messages=[message]), waba=f"9{number}")) == 200
    events = ingest.wait_for(
        lambda: [
            event
            for raw in ingest.bodies(Topic.MESSAGE_RECEIVED, "wamid.in")
            if (event := MessageReceived.model_validate_json(raw)).workspace_id is not None
            and event.sender_id == number
        ]
    )
    assert (events[0].workspace_id, events[0].phone, events[0].text) == ("acme", "+447700900142", "STOP")


def test_one_app_cannot_speak_for_anothers_number(ingest: Ingest) -> None:
    number, wamid = "100000000000107", "wamid.forged"
    ingest.publish([sender(number)])
    ingest.hook(hook(number, status("sent", "wamid.own")))
    ingest.wait_for(lambda: [event for event in told(ingest, "wamid.own") if event.workspace_id == "acme"])
    assert ingest.hook(hook(number, status("read", wamid)), OTHER_SECRET) == 200
    (record,) = ingest.wait_for(
        lambda: [record for record in ingest.records(Topic.DEAD_LETTERS) if wamid.encode() in (record.value or b"")]
    )
    assert dict(record.headers)["error"] == b"foreign"
    assert told(ingest, wamid) == []


def test_a_receipt_that_never_comes_ends_as_failed(ingest: Ingest) -> None:
    number, wamid = "100000000000108", "wamid.silent"
    ingest.publish([sender(number), accepted(number, wamid, "m-silent", deadline=timedelta(milliseconds=10))])
    (event,) = ingest.wait_for(lambda: told(ingest, wamid))
    assert event.reason is not None
    assert (event.status, event.reason.code) == (Status.FAILED, ReasonCode.NO_DELIVERY_RECEIPT)
    assert event.reason.evidence["inferred"] is True


@pytest.mark.skipif(not Path(FAKETIME).exists(), reason="libfaketime is missing: apt-get install faketime")
def test_a_replica_whose_clock_is_a_month_ahead_gives_up_no_receipt_before_its_deadline(
    ingest: Ingest, tmp_path: Path
) -> None:
    number = "100000000000114"
    ingest.publish([sender(number), accepted(number, "wamid.patient", "m-patient", deadline=timedelta(hours=1))])
    ahead = Ingest(ingest.bootstrap, ingest.database_url, tmp_path / "ahead.log")
    steady = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1"}
    ahead.start({**os.environ, **steady, "LD_PRELOAD": FAKETIME, "FAKETIME": "+30d"})
    gave_up = re.compile(r'^sendwhy_messages_failed_total\{.*reason="NO_DELIVERY_RECEIPT".*\} [1-9]', re.MULTILINE)
    try:
        for turn in range(20):
            # Either of the two looks at what is due, and then at all of it.
            wamid = f"wamid.due-{turn}"
            ingest.publish([accepted(number, wamid, f"m-due-{turn}", deadline=timedelta(milliseconds=10))])
            ingest.wait_for(partial(told, ingest, wamid))
            if gave_up.search(ahead.get("/metrics").text):
                break
        else:
            pytest.fail("the replica that is ahead gave up nothing")
    finally:
        ahead.stop()
    assert told(ingest, "wamid.patient") == []


def test_a_deadlines_mark_knows_where_the_raw_webhooks_end(ingest: Ingest) -> None:
    assert ingest.hook(b"{}") == 200
    mark = asyncio.run(take_mark(KafkaSettings(kafka_bootstrap_servers=ingest.bootstrap), datetime.now(UTC)))
    assert sum(mark.ends.values()) >= len(ingest.records(Topic.WEBHOOK_RECEIVED)) > 0


def span() -> dict[str, Any]:
    now = datetime.now(UTC)
    return {"from": (now - timedelta(hours=1)).isoformat(), "to": (now + timedelta(seconds=1)).isoformat()}


def replay(ingest: Ingest, token: str, body: dict[str, Any], *, dry_run: bool = False) -> httpx.Response:
    return ingest.post(
        f"/v1/workspaces/acme/webhooks/replay?dry_run={str(dry_run).lower()}",
        json={name: value for name, value in body.items() if value is not None},
        headers={"authorization": f"Bearer {token}"},
    )


@pytest.mark.parametrize(
    ("token", "changes", "code"),
    [
        ("nobody", {}, 401),
        ("viewer-1", {}, 403),
        ("operator-2", {}, 404),
        ("operator-1", {"to": "2000-01-01T00:00:00Z"}, 422),
        ("operator-1", {"from": "2026-01-01T00:00:00Z"}, 422),
        ("operator-1", {"from": "yesterday"}, 422),
        ("operator-1", {"from": "2026-11-22T10:00:00"}, 422),
        ("operator-1", {"from": None}, 422),
        ("operator-1", {"from": None, "to": None}, 422),
        ("operator-1", {"delivery_id": "A" * 64}, 422),
        ("operator-1", {"delivery_id": 7}, 422),
        ("operator-1", {"workspace": "globex"}, 422),
    ],
)
def test_replays_that_are_refused(ingest: Ingest, token: str, changes: dict[str, Any], code: int) -> None:
    assert replay(ingest, token, span() | changes).status_code == code


def test_a_replay_by_a_better_parser_repairs_the_past_once(ingest: Ingest) -> None:
    """The stored reading is made one of a parser that did not know the code yet."""
    number, wamid = "100000000000109", "wamid.replayed"
    ingest.publish([sender(number), accepted(number, wamid, "m-replayed")])
    ingest.hook(hook(number, status("sent", "wamid.first")))
    ingest.wait_for(lambda: [event for event in told(ingest, "wamid.first") if event.workspace_id])
    raw = hook(number, status("failed", wamid, errors=[{"code": 131026}], **callback("m-replayed")))
    ingest.hook(raw)
    (before,) = ingest.wait_for(lambda: told(ingest, wamid))
    old = "update seen_status set reading = 'of old', reason = 'META_ERROR' where wamid = $1"
    ingest.execute(old, wamid)
    one = {"delivery_id": hashlib.sha256(raw).hexdigest()}

    dry = replay(ingest, "operator-1", one, dry_run=True).json()
    assert (dry["dry_run"], dry["complete"], dry["deliveries"]) == (True, True, 1)
    assert (dry["emitted"], dry["changes_count"]) == ({"status.updated": 1}, 1)
    assert dry["changes"] == [
        {
            "message_id": "m-replayed",
            "sender_id": number,
            "provider_message_id": wamid,
            "from": {"status": "failed", "reason": "META_ERROR"},
            "to": {"status": "failed", "reason": "RECIPIENT_NOT_ON_WHATSAPP"},
        }
    ]
    assert len(told(ingest, wamid)) == 1

    assert replay(ingest, "operator-1", span()).json()["changes"] == dry["changes"]
    _, after = ingest.wait_for(lambda: found if len(found := told(ingest, wamid)) == 2 else None)
    assert (after.message_id, after.reason, after.occurred_at) == (before.message_id, before.reason, before.occurred_at)
    assert after.observed_at > before.observed_at

    for asked in (span(), one):
        again = replay(ingest, "operator-1", asked).json()
        assert (again["emitted"], again["changes"], again["changes_count"]) == ({}, [], 0)
    assert len(told(ingest, wamid)) == 2


def test_a_delivery_that_nobody_knows_is_not_replayed(ingest: Ingest) -> None:
    answer = replay(ingest, "operator-1", {"delivery_id": "0" * 64}).json()
    assert (answer["deliveries"], answer["complete"]) == (0, True)


def test_what_nobody_knows_is_listed(ingest: Ingest) -> None:
    number, stranger = "100000000000112", "100000000000113"
    ingest.publish([sender(number)])
    wamids = [f"wamid.other.{count}" for count in range(5)]
    raw = hook(number, *(status("sent", wamid) for wamid in wamids))
    ingest.wait_for(lambda: ingest.hook(raw) == 200 and ingest.look("/v1/workspaces/acme/webhooks/unmatched").json())
    path = "/v1/workspaces/acme/webhooks/unmatched"

    def found() -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = []
        cursor: dict[str, str] = {}
        while True:
            page = ingest.look(path, limit=2, **cursor).json()
            items += page["items"]
            if page["next_cursor"] is None:
                return items
            cursor = {"cursor": page["next_cursor"]}

    items = ingest.wait_for(lambda: [one for one in found() if one["sender_id"] == number][4:] and found())
    mine = [one for one in items if one["sender_id"] == number]
    assert sorted(one["provider_message_id"] for one in mine) == wamids
    assert not any(one["by_other_software"] for one in mine)
    ingest.execute("update seen_status set observed_at = observed_at - interval '2 hours' where wamid = $1", wamids[0])
    (old,) = [one for one in found() if one["provider_message_id"] == wamids[0]]
    assert old["by_other_software"]
    assert old["note"].startswith("sent by other software")
    assert ingest.look(path, "operator-2").status_code == 404
    assert [ingest.look(path, cursor=bad).status_code for bad in ("x", "W10", "WyJhIl0")] == [422, 422, 422]

    assert ingest.hook(hook(stranger, status("read", "wamid.stranger"))) == 200
    assert ingest.look("/v1/webhooks/unclaimed", "operator-1").status_code == 403
    assert ingest.look("/v1/webhooks/unclaimed", "nobody").status_code == 401
    unclaimed = ingest.wait_for(
        lambda: [
            one
            for one in ingest.look("/v1/webhooks/unclaimed", "admin-00", limit=500).json()["items"]
            if one["sender_id"] == stranger
        ]
    )
    assert unclaimed[0]["app_id"] == APP
    assert unclaimed[0]["body"]["entry"][0]["changes"][0]["value"]["statuses"] == [status("read", "wamid.stranger")]
    assert ingest.look("/v1/workspaces/acme/webhooks/silence").json() == {"items": []}
    told = ingest.get("/metrics").text
    assert 'sendwhy_senders_silent{cause="subscription_gone"} 0.0' in told
    assert 'sendwhy_webhook_unknown_total{kind="sender"}' in told
    assert "sendwhy_receipts_missing_ratio" in told


def test_a_persons_data_are_found_by_an_id_with_slashes(ingest: Ingest) -> None:
    answer = ingest.look("/v1/workspaces/acme/contacts/gid:%2F%2Fshop%2F5/data", "operator-1")
    assert answer.json() == {"receipts": [], "left_out": False}


def test_no_secret_and_no_phone_is_logged(ingest: Ingest) -> None:
    ingest.hook(hook("100000000000110", status("sent", "wamid.log"), 7))
    ingest.get(f"/webhooks/meta?hub.mode=subscribe&hub.verify_token={VERIFY_TOKEN}")
    assert not [secret for secret in (SECRET, VERIFY_TOKEN, SHOPIFY_SECRET, "447700900142") if secret in ingest.logs()]


async def _limit_records(bootstrap: str, size: int) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    settings = {"max.message.bytes": str(size)}
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, Topic.WEBHOOK_RECEIVED, settings)])
    await admin.close()


def test_what_kafka_refuses_or_misses_is_503_and_the_next_is_200(
    own_kafka: Any, fresh_database: str, tmp_path: Path
) -> None:
    kafka, run = own_kafka
    run(create_topics(KafkaSettings(kafka_bootstrap_servers=kafka.bootstrap)))
    service = Ingest(kafka.bootstrap, fresh_database, tmp_path / "out.log")
    service.start(os.environ)
    try:
        small = [hook("100000000000111", status("sent", f"wamid.{number}")) for number in range(20)]
        assert service.hook(small[0]) == 200

        run(_limit_records(kafka.bootstrap, 100_000))
        assert service.hook(small[0] + b" " * 200_000) == 503
        assert service.wait_for(lambda: service.hook(small[0]) == 200)
        assert {service.hook(raw) for raw in small} == {200}

        run(kafka.stop())
        assert service.hook(small[0]) == 503
        run(kafka.start())
        assert service.wait_for(lambda: service.hook(small[0]) == 200)
    finally:
        service.stop()
