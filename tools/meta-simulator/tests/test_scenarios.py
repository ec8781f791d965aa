"""Every scenario, driven over HTTP: what the caller saw and which webhooks were posted, in order."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from meta_simulator.scenarios import BY_SUFFIX, SCENARIOS
from meta_simulator.testing import Meta, running_meta

STREAM = "sent delivered read"

# The answer: "taken", an error code, an HTTP status with HTML, or the name of the caller's exception.
# The webhooks: statuses, a failure with its code, other fields in brackets.
EXPECTED: dict[str, tuple[str, str]] = {
    "ok": ("taken", STREAM),
    "no_message_status": ("taken", STREAM),
    "accepted": ("taken", STREAM),
    "held_for_quality": ("taken", STREAM),
    "message_status_paused": ("taken", STREAM),
    "wa_id_differs": ("taken", STREAM),
    "user_id_answer": ("taken", STREAM),
    "answer_190": ("190", ""),
    "answer_10": ("10", ""),
    "answer_200": ("200", ""),
    "answer_100_33": ("100", ""),
    "answer_100": ("100", ""),
    "answer_131008": ("131008", ""),
    "answer_131009": ("131009", ""),
    "answer_131021": ("131021", ""),
    "answer_132000": ("132000", ""),
    "answer_132001": ("132001", ""),
    "answer_132012": ("132012", ""),
    "answer_132018": ("132018", ""),
    "answer_132015": ("132015", ""),
    "answer_132016": ("132016", ""),
    "answer_130429": ("130429", ""),
    "answer_131056": ("131056", ""),
    "temporary_then_ok": ("131016", ""),
    "temporary_always": ("131016", ""),
    "answer_131057": ("131057", ""),
    "answer_131016": ("131016", ""),
    "answer_2": ("2", ""),
    "answer_133004": ("133004", ""),
    "answer_368": ("368", ""),
    "answer_131031": ("131031", ""),
    "timeout_after_acceptance": ("ReadTimeout", STREAM),
    "timeout_before_acceptance": ("ReadTimeout", ""),
    "reset_after_acceptance": ("ReadError", STREAM),
    "reset_before_acceptance": ("ReadError", ""),
    "close_after_acceptance": ("RemoteProtocolError", STREAM),
    "half_header": ("RemoteProtocolError", STREAM),
    "half_body": ("RemoteProtocolError", STREAM),
    "junk_answer": ("RemoteProtocolError", STREAM),
    "drip": ("TimeoutError", STREAM),
    "html_502": ("502 html", ""),
    "html_503": ("503 html", ""),
    "html_502_taken": ("502 html", STREAM),
    "error_with_200": ("131000", ""),
    "junk_with_200": ("200 html", STREAM),
    "error_data_string": ("131009", ""),
    "failed_131026": ("taken", "failed:131026"),
    "failed_131047": ("taken", "failed:131047"),
    "failed_131049": ("taken", "failed:131049"),
    "failed_131050": ("taken", "failed:131050"),
    "failed_130472": ("taken", "failed:130472"),
    "failed_131042": ("taken", "failed:131042"),
    "failed_131031": ("taken", "failed:131031"),
    "failed_131053": ("taken", "failed:131053"),
    "failed_132015": ("taken", "failed:132015"),
    "failed_131048": ("taken", "failed:131048"),
    "failed_131000": ("taken", "failed:131000"),
    "value_errors_130429": ("taken", ""),
    "failed_unknown_code": ("taken", "failed:139999"),
    "failed_without_details": ("taken", "failed:131026"),
    "failed_without_errors": ("taken", "failed"),
    "failed_after_sent": ("taken", "sent failed:131026"),
    "read_without_delivered": ("taken", "sent read"),
    "reversed": ("taken", "read delivered sent"),
    "doubled": ("taken", "sent sent delivered delivered read read"),
    "delivered_and_failed": ("taken", "sent delivered failed:131026"),
    "failed_then_delivered": ("taken", "failed:131026 delivered"),
    "status_before_answer": ("taken", STREAM),
    "unknown_wamid": ("taken", STREAM),
    "sent_then_silence": ("taken", "sent"),
    "accepted_then_silence": ("taken", ""),
    "unknown_status": ("taken", "sent warmed_up read"),
    "milliseconds": ("taken", STREAM),
    "pricing_on_read": ("taken", STREAM),
    "v23_conversation": ("taken", STREAM),
    "user_id_only": ("taken", STREAM),
    "held_then_released": ("taken", STREAM),
    "held_until_budget_ends": ("taken", STREAM),
    "held_then_dropped": ("taken", "failed:132015"),
    "replies": ("taken", STREAM),
    "wrong_131047_then_ok": ("taken", "failed:131047"),
    "stops_after_delivery": ("taken", STREAM),
    "stops_then_resumes": ("taken", STREAM),
    "stops_after_acceptance": ("taken", "failed:131050"),
    "marketing_cap": ("taken", "failed:131049"),
}
# What a send can meet; the others are played by a control (test_cases.py).
SENDS = [name for name, scenario in SCENARIOS.items() if not scenario.by_control]
# The one that pauses the template for everyone goes last, when all else has happened.
ORDER = sorted(SENDS, key=lambda name: name == "held_then_dropped")
DELAYS = {"sent": 20, "delivered": 60, "read": 100, "held": 30}


@dataclass
class Seen:
    answer: str
    body: Any
    webhooks: list[Any]

    @property
    def statuses(self) -> list[Any]:
        values = [hook["body"]["entry"][0]["changes"][0]["value"] for hook in self.webhooks]
        return [value["statuses"][0] for value in values]


async def _call(impatient: Meta, to: str, name: str) -> tuple[str, Any]:
    try:
        async with asyncio.timeout(15):
            answer = await impatient.send_template(to, "autumn_sale", biz_opaque_callback_data=name)
    except (httpx.TransportError, TimeoutError) as error:
        return type(error).__name__, None
    return _told(answer)


def _told(answer: httpx.Response) -> tuple[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        return f"{answer.status_code} html", None
    return (str(body["error"]["code"]) if "error" in body else "taken"), body


async def _drive_all() -> dict[str, Seen]:
    async with running_meta() as meta:
        await meta.number(messages_per_second=1000)
        phones = {name: f"+44 7700 {index:06d}" for index, name in enumerate(SENDS)}
        for name, phone in phones.items():
            await meta.control("PUT", f"recipients/{phone}", {"scenario": name, "delays_ms": DELAYS})
        patience = httpx.Timeout(15, read=10)
        async with httpx.AsyncClient(base_url=meta.client.base_url, timeout=patience, trust_env=False) as client:
            impatient = Meta(client, meta.receiver, meta.port)
            calls = await asyncio.gather(*(_call(impatient, phones[name], name) for name in ORDER[:-1]))
            calls.append(await _call(impatient, phones[ORDER[-1]], ORDER[-1]))
        await meta.receiver.until(
            lambda: any(
                each.get("biz_opaque_callback_data") == "held_then_dropped" for each in meta.receiver.statuses()
            )
        )
        webhooks = {name: await meta.lines("webhooks", biz_opaque_callback_data=name) for name in SENDS}
    return {name: Seen(answer, body, webhooks[name]) for name, (answer, body) in zip(ORDER, calls, strict=True)}


@pytest.fixture(scope="module")
def seen() -> dict[str, Seen]:
    return asyncio.run(_drive_all())


def _short(status: Any) -> str:
    errors = status.get("errors")
    return str(status["status"]) + (f":{errors[0]['code']}" if errors else "")


@pytest.mark.parametrize("name", SENDS)
def test_a_scenario_plays_as_its_name_says(seen: dict[str, Seen], name: str) -> None:
    outcome = seen[name]
    assert (outcome.answer, " ".join(map(_short, outcome.statuses))) == EXPECTED[name]
    assert all(hook["delivered"] for hook in outcome.webhooks)


def test_every_case_has_a_name_and_a_number() -> None:
    assert {each.case for each in SCENARIOS.values()} - {None} == set(range(1, 85))
    assert set(BY_SUFFIX) == {f"9{case:03d}" for case in range(1, 85)}


def test_answers_differ_in_what_is_optional(seen: dict[str, Seen]) -> None:
    def sent(name: str) -> Any:
        return seen[name].body["messages"][0]

    assert "message_status" not in sent("no_message_status")
    assert sent("accepted")["message_status"] == "accepted"
    assert sent("held_then_released")["message_status"] == "held_for_quality_assessment"
    assert sent("message_status_paused")["message_status"] == "paused"
    contact = seen["wa_id_differs"].body["contacts"][0]
    assert contact["wa_id"] != contact["input"].replace(" ", "").removeprefix("+")
    assert set(seen["user_id_answer"].body["contacts"][0]) == {"input", "user_id"}
    assert isinstance(seen["error_data_string"].body["error"]["error_data"], str)
    assert "fbtrace_id" not in seen["error_data_string"].body["error"]


def test_statuses_differ_in_what_is_optional(seen: dict[str, Seen]) -> None:
    def keys(name: str, key: str) -> list[bool]:
        return [key in status for status in seen[name].statuses]

    assert keys("ok", "pricing") == [True, True, False]
    assert keys("pricing_on_read", "pricing") == [True, False, True]
    assert keys("v23_conversation", "conversation") == [True, True, False]
    assert keys("user_id_only", "recipient_id") == [False, False, False]
    assert keys("user_id_only", "recipient_user_id") == [True, True, True]
    assert [len(each["timestamp"]) for each in seen["milliseconds"].statuses] == [13, 13, 13]
    assert [len(each["timestamp"]) for each in seen["ok"].statuses] == [10, 10, 10]
    assert seen["failed_without_errors"].statuses[0].keys() >= {"id", "status", "timestamp"}
    assert "error_data" not in seen["failed_without_details"].statuses[0]["errors"][0]


def test_statuses_carry_the_wamid_that_was_answered(seen: dict[str, Seen]) -> None:
    wamid = seen["ok"].body["messages"][0]["id"]
    assert {each["id"] for each in seen["ok"].statuses} == {wamid}


async def test_temporary_then_ok_counts_for_each_message(meta: Meta) -> None:
    await meta.control("PUT", "recipients/447700900142", {"scenario": "temporary_then_ok"})
    tries = [
        _told(await meta.send_template("+447700900142", biz_opaque_callback_data=message))[0]
        for message in ("a", "b", "a", "b", "a", "b")
    ]
    assert tries == ["131016", "131016", "2", "2", "taken", "taken"]


async def test_temporary_always_never_passes(meta: Meta) -> None:
    await meta.control("PUT", "recipients/447700900142", {"scenario": "temporary_always"})
    tries = [_told(await meta.send_template("447700900142"))[0] for _ in range(4)]
    assert tries == ["131016", "2", "131000", "131016"]


async def test_an_answer_of_ones_own_lasts_as_often_as_told(meta: Meta) -> None:
    own = {"scenario": "answer", "http_status": 418, "body": {"error": {"code": 7}}, "times": 2}
    await meta.control("PUT", "recipients/+447700900142", own)
    answers = [await meta.send_template("447700900142") for _ in range(3)]
    assert [each.status_code for each in answers] == [418, 418, 200]
    assert answers[0].json() == {"error": {"code": 7}}


async def test_errors_of_ones_own_come_as_they_are(meta: Meta) -> None:
    errors = [{"code": 1, "title": "a"}, {"code": 2, "title": "b"}]
    await meta.control("PUT", "recipients/447700900142", {"scenario": "failed", "errors": errors})
    await meta.send_template("447700900142")
    assert (await meta.receiver.status("failed"))["errors"] == errors


async def test_a_stop_holds_for_marketing_only_until_resumed(meta: Meta) -> None:
    stop = {"phone_number_id": "415566778899001", "from": "+447700900142", "marketing": "stop"}
    await meta.control("POST", "inbound", stop)
    await meta.send_template("447700900142", "autumn_sale", biz_opaque_callback_data="marketing")
    await meta.send_template("447700900142", "hello_world", biz_opaque_callback_data="utility")
    assert (await meta.receiver.status("failed"))["errors"][0]["code"] == 131050
    assert (await meta.receiver.status("read"))["biz_opaque_callback_data"] == "utility"
    await meta.control("POST", "inbound", stop | {"marketing": "resume"})
    await meta.send_template("447700900142", "autumn_sale", biz_opaque_callback_data="again")
    await meta.receiver.until(lambda: any(_is("again", "sent", each) for each in meta.receiver.statuses()))


def _is(callback: str, status: str, each: Any) -> bool:
    return (each.get("biz_opaque_callback_data"), each["status"]) == (callback, status)


async def test_the_number_chooses_the_case_only_where_that_is_on(meta: Meta) -> None:
    assert _told(await meta.send_template("+447700909007"))[0] == "taken"
    await meta.settings(suffixes=True)
    assert _told(await meta.send_template("+447700909007"))[0] == "190"


async def test_a_share_of_all_calls_is_answered_otherwise(meta: Meta) -> None:
    await meta.settings(answers={"503": 1.0})
    answer = await meta.send_template("447700900142")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, 2)
    await meta.settings(answers={"html_502": 1.0})
    assert (await meta.send_template("447700900142")).status_code == 502
    await meta.settings(answers={"ok": 0.5, "failed_131026": 0.5})
    assert (await meta.send_template("447700900142")).status_code == 200


def test_each_scenario_of_a_send_is_driven() -> None:
    assert json.dumps(sorted(SENDS)) == json.dumps(sorted(EXPECTED))
