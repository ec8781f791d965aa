"""Meta's paths and webhooks, and the simulator's controls, over HTTP."""

import asyncio
import hashlib
import json
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from meta_simulator.testing import NUMBER, SECRET, TEMPLATES, TOKEN, WABA, Meta, template_body
from meta_simulator.webhooks import GIVE_UP_AFTER, LONGEST_GAP, gap_after

PERSON = "447700900142"


def _code(answer: httpx.Response) -> int | None:
    error = answer.json().get("error")
    return int(error["code"]) if error else None


# Sending


async def test_an_accepted_send_answers_like_meta(meta: Meta) -> None:
    answer = await meta.send_template("+44 7700 900142")
    body = answer.json()
    assert body["contacts"] == [{"input": "+44 7700 900142", "wa_id": PERSON}]
    assert body["messages"][0]["id"].startswith("wamid.")
    assert body["messages"][0]["message_status"] == "accepted"


@pytest.mark.parametrize(
    ("number", "token", "http_status", "code"),
    [
        (NUMBER, "wrong", 401, 190),
        (NUMBER, "x y", 401, 190),
        ("404", TOKEN, 400, 100),
        ("222", TOKEN, 400, 100),
        ("333", TOKEN, 400, 100),
    ],
)
async def test_a_token_opens_only_its_account(meta: Meta, number: str, token: str, http_status: int, code: int) -> None:
    await meta.number("222", waba_id="another", access_token="token of another")
    await meta.number("333", waba_id="third", access_token=None)
    answer = await meta.post(template_body(PERSON), number, token)
    assert (answer.status_code, _code(answer)) == (http_status, code)
    error = answer.json()["error"]
    if code == 100:
        assert (error["type"], error["error_subcode"]) == ("GraphMethodException", 33)


@pytest.mark.parametrize(
    ("status", "code", "http_status"),
    [
        ("PAUSED", 132015, 400),
        ("DISABLED", 132016, 400),
        ("REJECTED", 132001, 404),
        ("PENDING", 132001, 404),
        ("APPROVED", None, 200),
    ],
)
async def test_only_an_approved_template_is_sent(meta: Meta, status: str, code: int | None, http_status: int) -> None:
    await meta.control("PATCH", f"templates/{WABA}/hello_world/en_US", {"status": status, "reason": "SCAM"})
    answer = await meta.send_template(PERSON)
    assert (_code(answer), answer.status_code) == (code, http_status)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) > 0)
    told = meta.receiver.values()[0]
    assert (told["event"], told["message_template_name"], told["reason"]) == (status, "hello_world", "SCAM")


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (template_body(PERSON, "no_such_template"), 132001),
        (template_body(PERSON, "hello_world") | {"template": {"name": "x"}}, 131008),
        (template_body("1 555 701 0123"), 131021),
        ({"messaging_product": "whatsapp", "type": "text", "text": {"body": "x"}}, 100),
        ([1], 100),
    ],
)
async def test_refusals_that_need_the_account(meta: Meta, body: Any, code: int) -> None:
    assert _code(await meta.post(body)) == code


async def test_throughput_above_the_numbers_rate_is_refused(meta: Meta) -> None:
    await meta.number(messages_per_second=3)
    codes = [_code(await meta.send_template(f"44770090014{index}")) for index in range(5)]
    assert codes[:3] == [None, None, None]
    assert 130429 in codes


@pytest.mark.parametrize(
    ("settings", "level"),
    [
        ({}, "STANDARD"),
        ({"messages_per_second": 1000}, "HIGH"),
        ({"messages_per_second": 3}, "STANDARD"),
        ({"messages_per_second": 3, "throughput_level": 3}, 3),
    ],
)
async def test_a_number_tells_its_throughput(meta: Meta, settings: Any, level: object) -> None:
    await meta.number(**settings)
    told = (await meta.get(f"{NUMBER}?fields=throughput")).json()
    assert told["throughput"] == {"level": level}


async def test_the_46th_message_at_once_to_a_person_is_refused(meta: Meta) -> None:
    codes = [_code(await meta.send_template(PERSON)) for _ in range(46)]
    assert codes == [None] * 45 + [131056]


async def test_free_form_goes_only_within_24_hours_of_the_persons_message(meta: Meta) -> None:
    async def first_status(seconds_ago: float | None, person: str, **other: Any) -> str:
        if seconds_ago is not None:
            message = {"type": "text", "text": {"body": "?"}} | other
            said = {"phone_number_id": NUMBER, "from": person, "message": message, "seconds_ago": seconds_ago}
            await meta.control("POST", "inbound", said)
        await meta.send(person, biz_opaque_callback_data=person)
        mine = [person]
        await meta.receiver.until(lambda: _of(meta, mine[0]) != [])
        return str(_of(meta, person)[0]["status"])

    assert await first_status(None, "447700900001") == "failed"
    assert await first_status(86_401, "447700900002") == "failed"
    assert await first_status(86_300, "447700900003") == "sent"
    assert await first_status(1, "447700900004", group_id="Y2Fw") == "failed"
    assert await first_status(1, "447700900005", type="revoke") == "failed"
    assert await first_status(1, "447700900006", type="system", system={"type": "user_changed_number"}) == "failed"
    (moved,) = [told for told in meta.receiver.values() if told.get("messages", [{}])[0].get("type") == "system"]
    assert "contacts" not in moved
    assert _of(meta, "447700900001")[0]["errors"][0]["code"] == 131047


def _of(meta: Meta, callback: str) -> list[Any]:
    return [each for each in meta.receiver.statuses() if each.get("biz_opaque_callback_data") == callback]


async def test_the_messaging_limit_is_shared_by_the_numbers_of_a_portfolio(meta: Meta) -> None:
    account = {"portfolio_id": "p", "messaging_limit": 2, "templates": TEMPLATES}
    await meta.control("PUT", f"accounts/{WABA}", account)
    await meta.control("PUT", "accounts/sister", account)
    await meta.number("222", waba_id="sister")
    for number, person in ((NUMBER, "447700900001"), ("222", "447700900002"), ("222", "447700900003")):
        await meta.send_template(person, number=number)
    assert (await meta.receiver.status("failed"))["recipient_id"] == "447700900003"
    told = next(each for each in meta.receiver.values() if "max_phone_numbers_per_waba" in each)
    assert told["max_daily_conversations_per_business"] == 2


# Webhooks


async def test_webhooks_are_signed_over_the_bytes_on_the_wire(meta: Meta) -> None:
    message = {"type": "text", "text": {"body": "Grüße 50% a/b"}}
    await meta.control("POST", "inbound", {"phone_number_id": NUMBER, "from": f"+{PERSON}", "message": message})
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 1)
    body = meta.receiver.bodies[0]
    assert meta.receiver.is_signed(0)
    assert json.dumps(json.loads(body), ensure_ascii=False, separators=(",", ":")).encode() != body
    said = meta.receiver.values()[0]
    assert (said["messages"][0]["from"], said["contacts"][0]["wa_id"]) == (PERSON, PERSON)
    assert said["messages"][0]["text"] == {"body": "Grüße 50% a/b"}


async def test_a_webhook_is_repeated_until_it_is_answered_200(meta: Meta) -> None:
    await meta.settings(time_scale=100)
    meta.receiver.plan = [500, 204, 302]
    await meta.control("POST", "events", {"waba_id": WABA, "field": "security", "value": {"event": "PIN_CHANGED"}})
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 4)
    assert len(set(meta.receiver.bodies)) == 1
    line = await meta.line("webhooks", lambda each: bool(each["delivered"]))
    assert [each["http_status"] for each in line["tries"]] == [500, 204, 302, 200]
    assert {each["sha256"] for each in line["tries"]} == {hashlib.sha256(meta.receiver.bodies[0]).hexdigest()}


async def test_a_receiver_that_moved_gets_the_retries(meta: Meta) -> None:
    with socket.create_server(("127.0.0.1", 0)) as nobody:
        gone = f"http://127.0.0.1:{nobody.getsockname()[1]}/hook"
    await meta.number(webhook_url=gone)
    await meta.settings(time_scale=100)
    await meta.control("POST", "events", {"waba_id": WABA, "field": "security", "value": {}})
    await meta.number()
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 1)


def test_gaps_grow_and_end_after_seven_days() -> None:
    gaps = [gap_after(tries) for tries in range(1, 200)]
    assert gaps[:4] == [1, 2, 4, 8]
    assert gaps == sorted(gaps)
    assert max(gaps) == LONGEST_GAP
    assert GIVE_UP_AFTER == 7 * 24 * 3600


@pytest.mark.parametrize(
    ("how", "signed_with"),
    [
        ({}, SECRET),
        ({"secret": "old secret"}, "old secret"),
        ({"signature": "wrong"}, None),
        ({"signature": "missing"}, None),
    ],
)
async def test_bodies_of_ones_own_are_signed_as_told(meta: Meta, how: dict[str, str], signed_with: str | None) -> None:
    await meta.control("POST", "events", {"phone_number_id": NUMBER, "body": "{not json", **how})
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 1)
    assert meta.receiver.bodies == [b"{not json"]
    assert any(meta.receiver.is_signed(0, secret) for secret in (SECRET, "old secret")) == bool(signed_with)
    assert signed_with is None or meta.receiver.is_signed(0, signed_with)
    assert (meta.receiver.signatures[0] is None) == (how.get("signature") == "missing")
    assert (await meta.lines("webhooks"))[0]["body"] == "{not json"


@pytest.mark.parametrize(("token", "verified", "http_status"), [("right", True, 200), ("wrong", False, 403)])
async def test_the_handshake(meta: Meta, token: str, verified: bool, http_status: int) -> None:
    told = await meta.control("POST", f"verify/{NUMBER}", {"verify_token": token})
    assert (told["verified"], told["http_status"]) == (verified, http_status)


async def test_a_category_or_quality_that_changes_is_told(meta: Meta) -> None:
    patch = {"category": "MARKETING", "quality_score": "RED"}
    await meta.control("PATCH", f"templates/{WABA}/hello_world/en_US", patch)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 2)
    keys = {key for value in meta.receiver.values() for key in value}
    assert {"previous_category", "new_category", "previous_quality_score", "new_quality_score"} <= keys


# Reading


async def test_somebody_writes_under_a_user_id_alone(meta: Meta) -> None:
    said = {"phone_number_id": NUMBER, "from": "MX.7041", "message": {"type": "text", "text": {"body": "hola"}}}
    await meta.control("POST", "inbound", said)
    await meta.control("POST", "inbound", {"phone_number_id": NUMBER, "from": "MX.7041", "marketing": "stop"})
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 2)
    message, preference = sorted(meta.receiver.values(), key=lambda value: "user_preferences" in value)
    assert message["contacts"] == [{"profile": {"name": "Ines Calder"}, "user_id": "MX.7041"}]
    assert (message["messages"][0]["from_user_id"], "from" in message["messages"][0]) == ("MX.7041", False)
    wish = preference["user_preferences"][0]
    assert (wish["user_id"], wish["value"], "wa_id" in wish) == ("MX.7041", "stop", False)


async def test_authentication_templates_go_to_numbers_only(meta: Meta) -> None:
    code = {**TEMPLATES[0], "name": "code", "category": "AUTHENTICATION"}
    await meta.control("PUT", f"accounts/{WABA}", {"templates": [*TEMPLATES, code]})
    asked = {name: template_body(PERSON, name) for name in ("hello_world", "code")}
    by_user_id = {name: {**body, "to": None, "recipient": "GB.7041"} for name, body in asked.items()}
    assert [_code(await meta.post(asked[name])) for name in asked] == [None, None]
    assert [_code(await meta.post(by_user_id[name])) for name in asked] == [None, 131062]


async def test_templates_come_page_by_page(meta: Meta) -> None:
    many = [{"name": f"t{index}", "language": "en_US"} for index in range(5)]
    await meta.control("PUT", f"accounts/{WABA}", {"templates": many})
    answer = await meta.get(f"{WABA}/message_templates?limit=2")
    names: list[str] = []
    while True:
        page = answer.json()
        names += [row["name"] for row in page["data"]]
        if "next" not in page["paging"]:
            break
        answer = await meta.client.get(page["paging"]["next"], headers={"Authorization": f"Bearer {TOKEN}"})
    assert names == ["t0", "t1", "t2", "t3", "t4"]
    row = page["data"][0]
    assert row.keys() >= {"id", "status", "category", "parameter_format", "components", "quality_score"}


@pytest.mark.parametrize(
    ("path", "token", "code"),
    [
        (f"{NUMBER}?fields=id,display_phone_number,quality_rating,throughput", TOKEN, None),
        (f"{NUMBER}?fields=throughput{{level}},whatsapp_business_manager_messaging_limit", TOKEN, None),
        (f"{NUMBER}?fields=nonsense", TOKEN, 100),
        (NUMBER, "wrong", 190),
        ("404", TOKEN, 100),
        (WABA, TOKEN, None),
        (f"{WABA}/phone_numbers", TOKEN, None),
        (f"{WABA}/subscribed_apps", TOKEN, None),
        (f"{WABA}/subscribed_apps", "wrong", 190),
        (f"{WABA}/message_templates", "wrong", 190),
        (f"{WABA}/message_templates?after=junk", TOKEN, 100),
        (f"{WABA}/message_templates?limit=0", TOKEN, 100),
        (f"{WABA}/no_such_edge", TOKEN, 2500),
    ],
)
async def test_reading(meta: Meta, path: str, token: str, code: int | None) -> None:
    assert _code(await meta.get(path, token)) == code


async def test_an_account_that_is_not_subscribed_tells_no_app_and_posts_nothing(meta: Meta) -> None:
    async def apps() -> list[str]:
        told = (await meta.get(f"{WABA}/subscribed_apps")).json()["data"]
        return [one["whatsapp_business_api_data"]["id"] for one in told]

    await meta.number(app_id="400")
    assert await apps() == ["400"]
    await meta.control("PUT", f"accounts/{WABA}", {"subscribed": False})
    assert await apps() == []
    before = len(meta.receiver.bodies)
    wrote = {"phone_number_id": NUMBER, "from": PERSON, "message": {"type": "text", "text": {"body": "Hi"}}}
    await meta.control("POST", "inbound", wrote)
    await meta.control("PUT", f"accounts/{WABA}", {"subscribed": True})
    await meta.control("POST", "inbound", wrote)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) > before)
    assert len(meta.receiver.bodies) == before + 1


# Controls


async def test_calls_tell_what_came_and_what_was_answered(meta: Meta) -> None:
    answer = await meta.send_template(PERSON, biz_opaque_callback_data="sw1:acme:1")
    await meta.send_template(PERSON, biz_opaque_callback_data="sw1:acme:2")
    (call,) = await meta.lines("calls", biz_opaque_callback_data="sw1:acme:1")
    assert call["answered_at"] >= call["at"]
    assert call["answer"] == answer.json()
    assert call["wamid"] == answer.json()["messages"][0]["id"]
    assert (call["to"], call["whole"], call["http_status"]) == (PERSON, True, 200)
    assert call["body"]["biz_opaque_callback_data"] == "sw1:acme:1"
    later = await meta.lines("calls", since=call["at"].replace("2", "3", 1))
    assert later == []


async def test_a_call_that_was_cut_is_not_whole(meta: Meta) -> None:
    _reader, writer = await asyncio.open_connection("127.0.0.1", meta.port)
    head = f"POST /v25.0/{NUMBER}/messages HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n"
    writer.write(head.encode() + b'{"messaging_')
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    call = await meta.line("calls", lambda each: not each["whole"])
    assert (call["http_status"], call["wamid"]) == (None, None)


async def test_an_unanswered_call_has_no_status(meta: Meta) -> None:
    await meta.control("PUT", f"recipients/{PERSON}", {"scenario": "close_after_acceptance"})
    with pytest.raises(httpx.RemoteProtocolError):
        await meta.send_template(PERSON)
    (call,) = await meta.lines("calls")
    assert (call["http_status"], call["answer"], call["whole"]) == (None, None, True)
    assert call["wamid"]


@pytest.mark.parametrize(
    ("method", "path", "body", "http_status"),
    [
        ("PUT", f"recipients/{PERSON}", {"scenario": "no such"}, 422),
        ("PUT", f"recipients/{PERSON}", {"scenaro": "ok"}, 422),
        ("PUT", "recipients/nobody", {}, 422),
        ("PUT", "numbers/1", {}, 422),
        ("PUT", "settings", {"time_scale": 0}, 422),
        ("PUT", "settings", {"answers": {"maybe": 1}}, 422),
        ("POST", "inbound", {"phone_number_id": "404", "from": "1", "message": {}}, 404),
        ("POST", "inbound", {"phone_number_id": NUMBER, "from": "1"}, 422),
        ("POST", "events", {"waba_id": "404", "field": "x", "value": {}}, 404),
        ("POST", "events", {}, 422),
        ("PATCH", f"templates/{WABA}/none/en_US", {"status": "PAUSED"}, 404),
        ("GET", "calls?since=yesterday", None, 422),
    ],
)
async def test_controls_say_what_is_wrong(meta: Meta, method: str, path: str, body: Any, http_status: int) -> None:
    answer = await meta.client.request(method, f"/_sim/{path}", json=body)
    assert answer.status_code == http_status
    assert answer.json()["error"]


async def test_the_program_takes_a_seed_cuts_connections_and_ends_at_sigterm(tmp_path: Path) -> None:
    seed = tmp_path / "seed.json"
    number = {"waba_id": WABA, "access_token": TOKEN}
    recipients = {PERSON: {"scenario": "reset_after_acceptance"}}
    seed.write_text(
        json.dumps(
            {
                "accounts": {WABA: {"templates": TEMPLATES}},
                "numbers": {NUMBER: number},
                "recipients": recipients,
                "settings": {"suffixes": True, "latency_ms": 1},
            }
        )
    )
    program = (sys.executable, "-m", "meta_simulator", "--port", "0", "--seed", str(seed))
    process = await asyncio.create_subprocess_exec(*program, stdout=asyncio.subprocess.PIPE)
    assert process.stdout
    async with asyncio.timeout(60):
        base = (await process.stdout.readline()).decode().split()[-1]
        async with httpx.AsyncClient(base_url=base, headers={"Authorization": f"Bearer {TOKEN}"}) as client:
            answer = await client.post(f"/v25.0/{NUMBER}/messages", json=template_body("+447700909014"))
            assert _code(answer) == 132000
            with pytest.raises(httpx.ReadError):
                await client.post(f"/v25.0/{NUMBER}/messages", json=template_body(PERSON))
        process.send_signal(signal.SIGTERM)
        assert await process.wait() == 0
