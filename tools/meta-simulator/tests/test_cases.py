"""The cases that are no answer to a send, and how webhooks are made to travel."""

import asyncio
import hashlib
import hmac
import json
from collections import Counter
from typing import Any

import httpx
import pytest
from meta_simulator.cases import PLAYS
from meta_simulator.scenarios import SCENARIOS
from meta_simulator.testing import NUMBER, SECRET, TEMPLATES, TOKEN, WABA, Meta, template_body
from meta_simulator.webhooks import GIVE_UP_AFTER, LONGEST_GAP

PERSON = "447700900142"
SALE = {"name": "autumn_sale", "language": "en_US"}


def _code(answer: httpx.Response) -> int | None:
    error = answer.json().get("error")
    return int(error["code"]) if error else None


async def _play(meta: Meta, name: str, **needs: Any) -> Any:
    return await meta.control("POST", f"cases/{name}", {"phone_number_id": NUMBER, **needs})


async def _values(meta: Meta, count: int) -> list[Any]:
    await meta.receiver.until(lambda: len(meta.receiver.bodies) >= count)
    return meta.receiver.values()


def test_every_case_that_is_no_answer_to_a_send_has_a_play() -> None:
    assert set(PLAYS) == {name for name, scenario in SCENARIOS.items() if scenario.by_control}


async def test_the_listing_tells_how_each_case_is_played(meta: Meta) -> None:
    rows = {row["name"]: row for row in (await meta.client.get("/_sim/scenarios")).json()}
    assert {row["case"] for row in rows.values()} == {None, *range(1, 85)}
    assert rows["failed_131026"]["play"] == "PUT /_sim/recipients/{phone}"
    assert rows["verification"]["play"] == "POST /_sim/cases/verification"
    assert rows["verification"]["needs"] == ["verify_token"]


async def test_a_case_of_a_send_waits_for_the_next_send(meta: Meta) -> None:
    assert (await _play(meta, "answer_131021", phone=PERSON))["waits_for"] == f"a send to {PERSON}"
    assert _code(await meta.send_template(PERSON)) == 131021


async def test_a_recipient_may_have_any_case_which_is_played_once_a_message_was_read(meta: Meta) -> None:
    scenario = {"scenario": "window_opens", "delays_ms": {"sent": 1, "delivered": 2, "read": 3}}
    await meta.control("PUT", f"recipients/{PERSON}", scenario)
    await meta.send_template(PERSON)
    await meta.receiver.until(lambda: any("messages" in value for value in meta.receiver.values()))
    await meta.receiver.status("read")


@pytest.mark.parametrize(
    ("name", "ages", "outcome"),
    [
        ("window_opens", [0], "sent"),
        ("window_renewed_at_23_h_59", [86_340, 0], "sent"),
        ("window_closed_at_24_h", [86_400], "failed"),
    ],
)
async def test_windows(meta: Meta, name: str, ages: list[int], outcome: str) -> None:
    wamids = (await _play(meta, name, phone=PERSON))["wamids"]
    told = [value["messages"][0] for value in await _values(meta, len(ages))]
    assert {each["id"] for each in told} == set(wamids)
    times = sorted(int(each["timestamp"]) for each in told)
    if len(ages) == 2:
        assert times[1] - times[0] in (86_339, 86_340, 86_341)
    await meta.send(PERSON)
    assert (await meta.receiver.status(outcome))["recipient_id"] == PERSON


async def test_stop_and_resume(meta: Meta) -> None:
    for name, value in (("marketing_stopped", "stop"), ("marketing_resumed", "resume")):
        await _play(meta, name, phone=PERSON)
        await meta.receiver.until(
            lambda value=value: any(  # type: ignore[misc]
                each.get("user_preferences", [{}])[0].get("value") == value for each in meta.receiver.values()
            )
        )


async def test_a_limit_is_reached_by_all_numbers_of_a_portfolio_and_raised_by_a_step(meta: Meta) -> None:
    account = {"portfolio_id": "p", "messaging_limit": 1000, "templates": TEMPLATES}
    await meta.control("PUT", f"accounts/{WABA}", account)
    await meta.control("PUT", "accounts/sister", account)
    await meta.number("222", waba_id="sister")
    await meta.send_template(PERSON)
    assert (await _play(meta, "messaging_limit_reached"))["messaging_limit"] == 1
    await meta.send_template("447700900001", number="222")
    assert (await meta.receiver.status("failed"))["errors"][0]["code"] == 131048
    assert (await _play(meta, "messaging_limit_raised"))["messaging_limit"] == 250
    await meta.send_template("447700900002", number="222", biz_opaque_callback_data="after")
    await meta.receiver.until(
        lambda: any(each.get("biz_opaque_callback_data") == "after" for each in meta.receiver.statuses())
    )
    limits = [value.get("max_daily_conversations_per_business") for value in meta.receiver.values()]
    assert Counter(limits)[1] == Counter(limits)[250] == 2, "each account of the portfolio is told"


@pytest.mark.parametrize(
    ("name", "code", "told"),
    [
        ("account_restricted", 368, ["ACCOUNT_VIOLATION", "ACCOUNT_RESTRICTION"]),
        ("account_disabled", 131031, ["DISABLED_UPDATE", "DISABLED_UPDATE"]),
        ("throughput_upgrade", 131057, ["THROUGHPUT_UPGRADE"]),
    ],
)
async def test_what_an_account_or_number_goes_through_ends(meta: Meta, name: str, code: int, told: list[str]) -> None:
    await meta.settings(time_scale=100)
    await _play(meta, name, seconds=100)
    assert _code(await meta.send_template(PERSON)) == code
    async with asyncio.timeout(20):
        while _code(await meta.send_template(PERSON)) is not None:
            await asyncio.sleep(0.1)
    await meta.receiver.until(lambda: [each["event"] for each in meta.receiver.values() if "event" in each] == told)
    number = (await meta.get(f"{NUMBER}?fields=throughput")).json()
    assert number["throughput"]["level"] == ("HIGH" if name == "throughput_upgrade" else "STANDARD")


async def test_a_template_is_paused_unpaused_and_disabled(meta: Meta) -> None:
    codes = []
    for name in ("template_paused", "template_unpaused", "template_disabled"):
        await _play(meta, name, template=SALE)
        codes.append(_code(await meta.send_template(PERSON, "autumn_sale")))
    assert codes == [132015, None, 132016]
    await meta.receiver.until(lambda: len([each for each in meta.receiver.values() if "event" in each]) == 3)
    titles = [each["other_info"]["title"] for each in meta.receiver.values() if "event" in each]
    assert sorted(titles) == ["DISABLED", "FIRST_PAUSE", "UNPAUSE"]


async def test_a_category_moves_after_a_notice(meta: Meta) -> None:
    await meta.settings(time_scale=86_400)
    await _play(meta, "template_category_moved", template={"name": "hello_world"})
    notice, done = await _values(meta, 2)
    assert (notice["new_category"], notice["correct_category"]) == ("UTILITY", "MARKETING")
    assert (done["previous_category"], done["new_category"]) == ("UTILITY", "MARKETING")


async def test_a_reset_of_the_pin_is_told(meta: Meta) -> None:
    await _play(meta, "pin_reset")
    assert (await _values(meta, 1))[0]["event"] == "PIN_RESET_REQUEST"


async def test_verification_with_the_right_and_a_wrong_token(meta: Meta) -> None:
    told = await _play(meta, "verification", verify_token="right")
    assert (told["right"]["verified"], told["wrong"]["verified"]) == (True, False)


async def test_signatures_are_posted_once_each(meta: Meta) -> None:
    meta.receiver.plan = [200, 401, 401, 200]
    told = await _play(meta, "signatures", old_secret="old secret")
    assert told["http_status"] == {"right": 200, "wrong": 401, "missing": 401, "old": 200}
    assert [meta.receiver.is_signed(index) for index in range(4)] == [True, False, False, False]
    assert meta.receiver.signatures[2] is None
    assert meta.receiver.is_signed(3, "old secret")


async def test_an_escaped_body_breaks_when_it_is_serialised_again(meta: Meta) -> None:
    told = await _play(meta, "escaped_body", phone=PERSON)
    (value,) = await _values(meta, 1)
    assert value["messages"][0]["text"]["body"] == told["text"]
    again = json.dumps(json.loads(meta.receiver.bodies[0]), separators=(",", ":")).encode()
    assert again != meta.receiver.bodies[0]


async def test_a_batch_of_1000_is_one_post_of_nearly_3_mb(meta: Meta) -> None:
    told = await _play(meta, "batch_of_1000")
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 1)
    (body,) = meta.receiver.bodies
    assert 2_800_000 < len(body) == told["bytes"] <= 3_000_000
    assert len(json.loads(body)["entry"]) == 1000


async def test_an_unanswered_webhook_is_repeated(meta: Meta) -> None:
    await meta.settings(time_scale=100)
    await _play(meta, "webhook_unanswered", phone=PERSON, times=3)
    line = await meta.line("webhooks", lambda each: bool(each["delivered"]))
    assert [each["http_status"] for each in line["tries"]] == [None, None, None, 200]
    assert len(set(meta.receiver.bodies)) == 1


async def test_a_webhook_that_is_never_answered_is_given_up_after_seven_days(meta: Meta) -> None:
    # Seven days in ten seconds: in one, a busy machine makes too few of the tries.
    await meta.settings(time_scale=60_480)
    await _play(meta, "webhook_never_answered", phone=PERSON)
    least = GIVE_UP_AFTER / LONGEST_GAP
    await meta.line("webhooks", lambda each: len(each["tries"]) > least / 4)
    async with asyncio.timeout(60):
        before = -1
        while len(meta.receiver.bodies) != before:
            before = len(meta.receiver.bodies)
            await asyncio.sleep(0.3)
    assert not (await meta.lines("webhooks"))[0]["delivered"]


async def test_concurrent_webhooks_tell_what_they_took(meta: Meta) -> None:
    told = await _play(meta, "concurrent_webhooks", seconds=0.5)
    assert told["posted"] == told["answered_200"] == 120
    assert 0 < told["median_ms"] <= told["p99_ms"]


async def test_several_entries_changes_and_fields_in_one_post(meta: Meta) -> None:
    await _play(meta, "several_in_one_post", phone=PERSON)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 1)
    first, second = json.loads(meta.receiver.bodies[0])["entry"]
    assert [sorted(change["value"]) for change in first["changes"]] == [
        ["contacts", "messages", "messaging_product", "metadata"],
        ["errors", "messaging_product", "metadata", "statuses"],
    ]
    assert second["changes"][0]["field"] == "security"


async def test_an_unknown_field_and_an_unknown_type(meta: Meta) -> None:
    await _play(meta, "unknown_field_and_type", phone=PERSON)
    values = await _values(meta, 2)
    assert {"hologram"} == {value["messages"][0]["type"] for value in values if "messages" in value}
    assert {"SOMETHING_NEW"} == {value["event"] for value in values if "event" in value}


@pytest.mark.parametrize(
    ("name", "needs", "http_status"),
    [
        ("no_such_case", {}, 404),
        ("window_opens", {"phone_number_id": "404", "phone": PERSON}, 404),
        ("window_opens", {}, 422),
        ("failed_131026", {}, 422),
        ("verification", {}, 422),
        ("template_paused", {"template": {"name": "no such"}}, 422),
        ("account_restricted", {"seconds": 0}, 422),
        ("webhook_unanswered", {"phone": PERSON, "times": 0}, 422),
        ("pin_reset", {"pin": 1}, 422),
    ],
)
async def test_a_case_says_what_it_lacks(meta: Meta, name: str, needs: Any, http_status: int) -> None:
    answer = await meta.client.post(f"/_sim/cases/{name}", json={"phone_number_id": NUMBER, **needs})
    assert (answer.status_code, bool(answer.json()["error"])) == (http_status, True)


# Settings


async def _write(meta: Meta, count: int) -> None:
    for number in range(count):
        message = {"type": "text", "text": {"body": str(number)}}
        said = {"phone_number_id": NUMBER, "from": f"4477009{number:05d}", "message": message}
        await meta.control("POST", "inbound", said)


def _texts(meta: Meta) -> list[int]:
    return [
        int(entry["changes"][0]["value"]["messages"][0]["text"]["body"])
        for body in meta.receiver.bodies
        for entry in json.loads(body)["entry"]
    ]


async def test_updates_share_a_post_and_its_fate(meta: Meta) -> None:
    await meta.settings(webhooks={"batch": 7}, time_scale=100)
    meta.receiver.plan = [500]
    await _write(meta, 30)
    await meta.receiver.until(lambda: set(_texts(meta)) == set(range(30)))
    assert 1 < max(len(json.loads(body)["entry"]) for body in meta.receiver.bodies) <= 7
    assert all(meta.receiver.is_signed(index) for index in range(len(meta.receiver.bodies)))
    assert len(meta.receiver.bodies) < 30
    lines = await meta.lines("webhooks")
    refused = [line for line in lines if line["tries"][0]["http_status"] == 500]
    assert len(refused) == refused[0]["batch"] > 1
    assert all(len(line["body"]["entry"]) == 1 for line in lines)


async def test_shares_are_doubled_reordered_and_delayed(meta: Meta) -> None:
    await meta.settings(webhooks={"double": 1}, time_scale=10)
    await _write(meta, 5)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 10)
    assert Counter(_texts(meta)) == dict.fromkeys(range(5), 2)
    await meta.settings(webhooks={"reorder": 0.5}, time_scale=10)
    await _write(meta, 30)
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 40)
    assert _texts(meta)[10:] != list(range(30))
    await meta.settings(webhooks={"delay_ms": [1000, 1000]}, time_scale=10)
    await _write(meta, 1)
    assert len(meta.receiver.bodies) == 40
    await meta.receiver.until(lambda: len(meta.receiver.bodies) == 41)


@pytest.mark.parametrize(
    "settings",
    [
        {"webhooks": {"batch": 0}},
        {"webhooks": {"batch": 1001}},
        {"webhooks": {"double": 1.1}},
        {"webhooks": {"reorder": -0.1}},
        {"webhooks": {"delay_ms": [2, 1]}},
        {"webhooks": {"delay_ms": [-1, 1]}},
        {"webhooks": {"dubble": 0}},
        {"answers": {"503": 0.6, "429": 0.6}},
        {"retry_after_seconds": -1},
    ],
)
async def test_settings_out_of_bounds_are_refused(meta: Meta, settings: Any) -> None:
    answer = await meta.client.put("/_sim/settings", json=settings)
    assert answer.status_code == 422


async def test_rate_answers_say_when_to_come_back_if_told_so(meta: Meta) -> None:
    await meta.settings(answers={"429": 1.0})
    assert "retry-after" not in (await meta.send_template(PERSON)).headers
    await meta.settings(answers={"429": 1.0}, retry_after_seconds=7)
    assert (await meta.send_template(PERSON)).headers["retry-after"] == "7"
    await meta.settings(answers={"answer_131056": 1.0}, retry_after_seconds=7)
    assert (await meta.send_template(PERSON)).headers["retry-after"] == "7"
    await meta.settings(retry_after_seconds=7)
    slow = {"scenario": "answer", "http_status": 429, "body": "<html>slow down</html>", "times": 1}
    await meta.control("PUT", f"recipients/{PERSON}", slow)
    assert (await meta.send_template(PERSON)).headers["retry-after"] == "7"
    await meta.settings(answers={"400": 1.0}, retry_after_seconds=7)
    assert "retry-after" not in (await meta.send_template(PERSON)).headers


async def test_an_outage_refuses_connections_and_ends(meta: Meta) -> None:
    await meta.control("POST", "down", {"seconds": 1})
    seen: list[str] = []
    async with asyncio.timeout(20):
        while "down" not in seen or seen[-1] != "up":
            try:
                seen.append("up" if (await meta.send_template(PERSON)).status_code == 200 else "odd")
            except httpx.ConnectError:
                seen.append("down")
            except httpx.ReadError:
                seen.append("cut")
            await asyncio.sleep(0.02)
    assert "odd" not in seen


@pytest.mark.parametrize("seconds", [0, -1, 4000, "x"])
async def test_an_outage_has_a_length(meta: Meta, seconds: Any) -> None:
    assert (await meta.client.post("/_sim/down", json={"seconds": seconds})).status_code == 422


# appsecret_proof

PROOF = hmac.new(SECRET.encode(), TOKEN.encode(), hashlib.sha256).hexdigest()


@pytest.mark.parametrize(
    ("required", "proof", "message"),
    [
        (False, None, None),
        (False, PROOF, None),
        (False, "0" * 64, "Invalid appsecret_proof provided in the API argument"),
        (False, "", "Invalid appsecret_proof provided in the API argument"),
        (True, PROOF, None),
        (True, None, "API calls from the server require an appsecret_proof argument"),
    ],
)
async def test_a_proof_must_be_right_and_may_be_required(
    meta: Meta, required: bool, proof: str | None, message: str | None
) -> None:
    await meta.number(require_appsecret_proof=required)
    query = {} if proof is None else {"appsecret_proof": proof}
    headers = {"Authorization": f"Bearer {TOKEN}"}
    sent = await meta.client.post(
        f"/v25.0/{NUMBER}/messages", json=template_body(PERSON), headers=headers, params=query
    )
    read = await meta.client.get(f"/v25.0/{NUMBER}", headers=headers, params=query)
    for answer in (sent, read):
        error = answer.json().get("error")
        assert (error and error["message"]) == message
        if error:
            assert (answer.status_code, error["code"], error["type"]) == (400, 100, "GraphMethodException")
