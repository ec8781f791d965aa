"""Every case of Meta's (meta-cloud-api.md, section 7) by its number: what must come out of the whole system.

All are played at once by playing.py, which waits until each has come to its end; each test then states the facts.
"""

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from outside import Json
from playing import Facts, code_of, play_all

CONSENT, DISPATCHER, INGEST = "consent", "dispatcher", "webhook-ingest"


@dataclass(frozen=True)
class Fate:
    """What becomes of a message: its status, the reason and who says it, and how often Meta was called for it."""

    status: str
    reason: str | None = None
    service: str | None = None
    calls: int = 1


READ = Fate("read")
UNKNOWN = Fate("failed", "SEND_OUTCOME_UNKNOWN", DISPATCHER)


def at_once(reason: str) -> Fate:
    return Fate("failed", reason, DISPATCHER)


def later(reason: str) -> Fate:
    return Fate("failed", reason, INGEST)


RETRIED = Fate("read", calls=3)
# Scenarios that touch nothing but their one message. Nobody is called again after a call that Meta may have taken.
FATES: dict[str, Fate] = {
    "no_message_status": READ,
    "accepted": READ,
    "held_for_quality": READ,
    "message_status_paused": READ,
    "wa_id_differs": READ,
    "user_id_answer": READ,
    "answer_100": at_once("INVALID_CONTENT"),
    "answer_131008": at_once("INVALID_CONTENT"),
    "answer_131009": at_once("INVALID_CONTENT"),
    "answer_131021": at_once("RECIPIENT_NOT_ALLOWED"),
    "answer_132000": at_once("TEMPLATE_PARAMETERS_MISMATCH"),
    "answer_132001": at_once("TEMPLATE_NOT_APPROVED"),
    "answer_132012": at_once("TEMPLATE_PARAMETERS_MISMATCH"),
    "answer_132018": at_once("TEMPLATE_PARAMETERS_MISMATCH"),
    "answer_132015": at_once("TEMPLATE_NOT_APPROVED"),
    "answer_132016": at_once("TEMPLATE_NOT_APPROVED"),
    "answer_130429": RETRIED,
    "answer_131056": RETRIED,
    "temporary_then_ok": RETRIED,
    "answer_131057": RETRIED,
    "answer_131016": RETRIED,
    "answer_2": RETRIED,
    "answer_133004": RETRIED,
    "timeout_after_acceptance": READ,
    "timeout_before_acceptance": UNKNOWN,
    "reset_after_acceptance": READ,
    "reset_before_acceptance": UNKNOWN,
    "close_after_acceptance": READ,
    "half_header": READ,
    "half_body": READ,
    "junk_answer": READ,
    "drip": READ,
    "html_502": UNKNOWN,
    "html_503": UNKNOWN,
    "html_502_taken": READ,
    "error_with_200": RETRIED,
    "junk_with_200": READ,
    "error_data_string": at_once("INVALID_CONTENT"),
    "failed_131026": later("RECIPIENT_NOT_ON_WHATSAPP"),
    "failed_131047": later("OUTSIDE_24_HOUR_WINDOW"),
    "failed_131049": later("MARKETING_CAP_REACHED"),
    "failed_130472": later("RECIPIENT_IN_META_EXPERIMENT"),
    "failed_131053": later("MEDIA_FAILED"),
    "failed_132015": later("TEMPLATE_NOT_APPROVED"),
    "failed_131000": later("TEMPORARY_FAILURE"),
    "value_errors_130429": Fate("sending"),
    "failed_unknown_code": later("META_ERROR"),
    "failed_without_details": later("RECIPIENT_NOT_ON_WHATSAPP"),
    "failed_without_errors": later("META_ERROR"),
    "failed_after_sent": later("RECIPIENT_NOT_ON_WHATSAPP"),
    "ok": READ,
    "read_without_delivered": READ,
    "reversed": READ,
    "doubled": READ,
    "delivered_and_failed": Fate("delivered"),
    "failed_then_delivered": Fate("delivered"),
    "status_before_answer": READ,
    "unknown_wamid": READ,
    "sent_then_silence": Fate("sent"),
    "accepted_then_silence": Fate("sending"),
    "unknown_status": READ,
    "milliseconds": READ,
    "pricing_on_read": READ,
    "v23_conversation": READ,
    "user_id_only": READ,
    "held_then_released": READ,
    "held_until_budget_ends": READ,
}
# An error in a 200 has nothing taken, so it is tried again; twice is enough.
TIMES = {"error_with_200": 2}


@pytest.fixture(scope="module")
def facts(stack_file: Path) -> Facts:
    return asyncio.run(play_all(stack_file, {name: (fate.status, fate.reason) for name, fate in FATES.items()}, TIMES))


def shown(message: Json) -> Fate:
    return Fate(message["status"], code_of(message), message["service"] if message["reason"] else None, 0)


def is_as(message: Json, status: str, reason: str | None = None, service: str | None = None) -> None:
    assert shown(message) == Fate(status, reason, service, 0)


def everyday(facts: Facts, *names: str) -> None:
    """Each of these ended as FATES has it, with no call too many."""
    scene = facts.scene("everyday")
    for name in names:
        fate = FATES[name]
        is_as(scene["messages"][name], fate.status, fate.reason, fate.service)
        assert len(calls(facts, name)) == fate.calls, name


def message(facts: Facts, name: str) -> Json:
    told: Json = facts.scene("everyday")["messages"][name]
    return told


def calls(facts: Facts, name: str) -> list[Json]:
    return facts.calls_for(facts.scene("everyday")["workspace"], name)


def statuses(facts: Facts, name: str) -> list[Json]:
    return facts.of("status.updated", workspace_id=facts.scene("everyday")["workspace"], message_id=name)


Check = Callable[[Facts], None]
CASES: dict[str, Check] = {}


def case(number: int, what: str) -> Callable[[Check], Check]:
    def add(check: Check) -> Check:
        CASES[f"case_{number:02d}_{what}"] = check
        return check

    return add


def simply(number: int, what: str, *names: str) -> None:
    CASES[f"case_{number:02d}_{what}"] = lambda facts: everyday(facts, *names)


# Synchronous answers

simply(1, "accepted_without_message_status", "no_message_status")
simply(2, "accepted", "accepted")
simply(3, "held_for_quality_assessment", "held_for_quality")
simply(4, "message_status_paused", "message_status_paused")
simply(5, "wa_id_differs_from_input", "wa_id_differs")
simply(6, "answered_with_a_user_id", "user_id_answer")


def holds(number: int, what: str, cause: str, *scenarios: str) -> None:
    """The sender is held: the message that met the answer and all others wait, uncalled, until somebody repairs it."""

    def check(facts: Facts) -> None:
        for scenario in scenarios:
            scene = facts.scene(scenario)
            for waiting in (scene["waits"], scene["also"]):
                assert (waiting["status"], (waiting["waiting"] or {}).get("cause")) == ("waiting", cause), scenario
            assert scene["hold"]["code"] == cause
            assert scene["calls_while_held"] == 1
            for after in scene["after"]:
                is_as(after, "read")
            assert len(facts.calls_for(scene["workspace"], "first")) == 2
            assert len(facts.calls_for(scene["workspace"], "second")) == 1

    CASES[f"case_{number:02d}_{what}"] = check


holds(7, "token_190", "SENDER_CREDENTIALS_REJECTED", "answer_190")
holds(8, "permission_10_200", "SENDER_CREDENTIALS_REJECTED", "answer_10", "answer_200")
holds(9, "unknown_number_100_33", "SENDER_NOT_AVAILABLE", "answer_100_33")
simply(10, "bad_parameter_100", "answer_100")
simply(11, "missing_parameter_131008", "answer_131008")
simply(12, "invalid_value_131009", "answer_131009")
simply(13, "own_number_131021", "answer_131021")
simply(14, "parameter_count_132000", "answer_132000")
simply(15, "no_such_template_132001", "answer_132001")
simply(16, "parameter_format_132012_132018", "answer_132012", "answer_132018")
simply(17, "template_paused_132015", "answer_132015")
simply(18, "template_disabled_132016", "answer_132016")


@case(19, "throughput_130429")
def _(facts: Facts) -> None:
    everyday(facts, "answer_130429")
    scene = facts.scene("throughput")
    for told in scene["messages"]:
        is_as(told, "read")
    refused = [
        call
        for told in scene["messages"]
        for call in facts.calls_for(scene["workspace"], told["message_id"])
        if call["answer"].get("error", {}).get("code") == 130429
    ]
    assert refused, "Meta refused none: the case was not played"
    for told in scene["messages"]:
        taken = [call for call in facts.calls_for(scene["workspace"], told["message_id"]) if call["wamid"]]
        assert len(taken) == 1


@case(20, "pair_rate_131056")
def _(facts: Facts) -> None:
    everyday(facts, "answer_131056")
    first, second, third = (datetime.fromisoformat(call["at"]) for call in calls(facts, "answer_131056"))
    # Meta: 4^n seconds, n from 0.
    assert second - first >= timedelta(seconds=1)
    assert third - second >= timedelta(seconds=4)


simply(
    21,
    "temporary_131057_131016_2_133004",
    "temporary_then_ok",
    "answer_131057",
    "answer_131016",
    "answer_2",
    "answer_133004",
)
holds(22, "blocked_368_131031", "SENDER_NOT_AVAILABLE", "answer_368", "answer_131031")

# Transport

simply(23, "timeout_after_acceptance", "timeout_after_acceptance")
simply(24, "timeout_before_acceptance", "timeout_before_acceptance")
simply(
    25,
    "connection_reset",
    "reset_after_acceptance",
    "reset_before_acceptance",
    "close_after_acceptance",
    "half_header",
    "half_body",
    "junk_answer",
    "drip",
)
simply(26, "html_502_503", "html_502", "html_503", "html_502_taken")
simply(27, "error_with_200", "error_with_200", "junk_with_200")


@case(28, "error_data_is_a_string")
def _(facts: Facts) -> None:
    everyday(facts, "error_data_string")
    assert message(facts, "error_data_string")["reason"]["meta"]["details"] == "The parameter value is not valid."


# Asynchronous failures


def fails(number: int, code: int) -> None:
    def check(facts: Facts) -> None:
        scenario = f"failed_{code}"
        everyday(facts, scenario)
        assert message(facts, scenario)["reason"]["meta"]["code"] == code

    CASES[f"case_{number:02d}_{code}"] = check


def fails_and_holds(number: int, code: int, reason: str) -> None:
    """Final for the message; what else waits for this sender waits with the same cause."""

    def check(facts: Facts) -> None:
        scene = facts.scene(f"failed_{code}")
        is_as(scene["failed"], "failed", reason, INGEST)
        assert scene["failed"]["reason"]["meta"]["code"] == code
        assert scene["hold"]["code"] == reason
        assert len(facts.calls_for(scene["workspace"], "first")) == 1

    CASES[f"case_{number:02d}_{code}"] = check


fails(29, 131026)
fails(30, 131047)
fails(31, 131049)


@case(32, "131050")
def _(facts: Facts) -> None:
    scene = facts.scene("consent")
    is_as(scene["told"], "failed", "RECIPIENT_STOPPED_MARKETING", INGEST)
    assert scene["told contact"]["marketing_state"] == "UNSUBSCRIBED"


fails(33, 130472)
fails_and_holds(34, 131042, "META_PAYMENT_ISSUE")
fails_and_holds(35, 131031, "SENDER_NOT_AVAILABLE")


@case(36, "131053")
def _(facts: Facts) -> None:
    everyday(facts, "failed_131053")
    assert "404" in message(facts, "failed_131053")["reason"]["meta"]["details"]


fails(37, 132015)
fails_and_holds(38, 131048, "QUALITY_RATING_TOO_LOW")
fails(39, 131000)


@case(40, "value_errors_130429")
def _(facts: Facts) -> None:
    """It names no message, so none fails by it; it is told about the number."""
    everyday(facts, "value_errors_130429")
    told = [event for event in facts.of("sender.reported", field="errors") if event["raw"].get("code") == 130429]
    workspace = facts.scene("everyday")["workspace"]
    assert any(event.get("sender_id") == message(facts, "ok")["sender_id"] for event in told), workspace


@case(41, "unknown_code")
def _(facts: Facts) -> None:
    everyday(facts, "failed_unknown_code")
    meta = message(facts, "failed_unknown_code")["reason"]["meta"]
    assert (meta["code"], meta["title"]) == (139999, "Some future error")
    assert 'sendwhy_webhook_unknown_total{kind="code"}' in facts.scene("metrics")["text"]


@case(42, "errors_without_details")
def _(facts: Facts) -> None:
    everyday(facts, "failed_without_details")
    meta = message(facts, "failed_without_details")["reason"]["meta"]
    assert (meta["code"], meta["details"]) == (131026, None)


@case(43, "failed_without_errors")
def _(facts: Facts) -> None:
    everyday(facts, "failed_without_errors")
    assert "no cause" in message(facts, "failed_without_errors")["reason"]["detail"]


@case(44, "failed_after_sent")
def _(facts: Facts) -> None:
    everyday(facts, "failed_after_sent")
    assert {event["status"] for event in statuses(facts, "failed_after_sent")} == {"accepted", "sent", "failed"}


# Status streams

simply(45, "sent_delivered_read", "ok")
simply(46, "read_without_delivered", "read_without_delivered")
simply(47, "reversed_order", "reversed")


@case(48, "each_one_twice")
def _(facts: Facts) -> None:
    everyday(facts, "doubled")
    told = {event["event_id"]: event["status"] for event in statuses(facts, "doubled")}
    assert sorted(told.values()) == ["accepted", "delivered", "read", "sent"]


@case(49, "delivered_and_failed_together")
def _(facts: Facts) -> None:
    everyday(facts, "delivered_and_failed")
    assert {"delivered", "failed"} <= {event["status"] for event in statuses(facts, "delivered_and_failed")}


@case(50, "failed_then_delivered")
def _(facts: Facts) -> None:
    everyday(facts, "failed_then_delivered")
    assert {"delivered", "failed"} <= {event["status"] for event in statuses(facts, "failed_then_delivered")}


@case(51, "status_before_the_answer")
def _(facts: Facts) -> None:
    everyday(facts, "status_before_answer")
    told = {event["event_id"]: event["status"] for event in statuses(facts, "status_before_answer")}
    assert sorted(told.values()) == ["accepted", "delivered", "read", "sent"]


@case(52, "unknown_wamid")
def _(facts: Facts) -> None:
    """Another software's message on the same number is kept apart: told, and nobody's."""
    everyday(facts, "unknown_wamid")
    (call,) = calls(facts, "unknown_wamid")
    phone = call["to"]
    stray = [
        status["id"]
        for webhook in facts.webhooks
        if (webhook["status"], webhook["biz_opaque_callback_data"]) == ("delivered", None)
        for entry in webhook["body"]["entry"]
        for change in entry["changes"]
        for status in change["value"]["statuses"]
        if status.get("recipient_id") == phone
    ]
    assert len(stray) == 1
    (told,) = {event["event_id"]: event for event in facts.of("status.updated", provider_message_id=stray[0])}.values()
    assert (told["status"], told["message_id"]) == ("delivered", None)


@case(53, "sent_and_then_nothing")
def _(facts: Facts) -> None:
    """Until the deadline that `accepted` told it is what it is, and not failed."""
    everyday(facts, "sent_then_silence", "accepted_then_silence")
    for name in ("sent_then_silence", "accepted_then_silence"):
        (accepted,) = (event for event in statuses(facts, name) if event["status"] == "accepted")
        assert datetime.fromisoformat(accepted["receipt_deadline"]) > datetime.now(UTC)


@case(54, "unknown_status")
def _(facts: Facts) -> None:
    everyday(facts, "unknown_status")
    told = [event["raw"] for event in facts.of("sender.reported", field="statuses")]
    assert "warmed_up" in {raw.get("status") for raw in told}


@case(55, "timestamp_in_milliseconds")
def _(facts: Facts) -> None:
    everyday(facts, "milliseconds")
    for event in statuses(facts, "milliseconds"):
        assert abs(datetime.fromisoformat(event["occurred_at"]) - datetime.now(UTC)) < timedelta(hours=1)


@case(56, "pricing_on_read")
def _(facts: Facts) -> None:
    everyday(facts, "pricing_on_read")
    (read,) = (event for event in statuses(facts, "pricing_on_read") if event["status"] == "read")
    assert read["pricing"]["category"] == "marketing"


simply(57, "v23_conversation", "v23_conversation")
simply(58, "no_recipient_id", "user_id_only")

# Pacing

simply(59, "held_then_released", "held_then_released")


@case(60, "held_then_dropped")
def _(facts: Facts) -> None:
    scene = facts.scene("dropped")
    is_as(scene["held"], "failed", "TEMPLATE_NOT_APPROVED", INGEST)
    assert (scene["template"]["status"], scene["template"]["quality"]) == ("PAUSED", "RED")
    is_as(scene["next"], "failed", "TEMPLATE_NOT_APPROVED", DISPATCHER)
    assert facts.calls_for(scene["workspace"], "next") == []


simply(61, "held_until_the_budget_ends", "held_until_budget_ends")

# Windows


@case(62, "inbound_text_opens_the_window")
def _(facts: Facts) -> None:
    scene = facts.scene("windows")
    for name in ("window_opens", "replies", "reply"):
        is_as(scene[name], "read")


@case(63, "renewed_at_23_h_59")
def _(facts: Facts) -> None:
    is_as(facts.scene("windows")["window_renewed_at_23_h_59"], "read")


@case(64, "closed_at_24_h")
def _(facts: Facts) -> None:
    scene = facts.scene("windows")
    is_as(scene["window_closed_at_24_h"], "failed", "OUTSIDE_24_HOUR_WINDOW", DISPATCHER)
    assert facts.calls_for(scene["workspace"], "window_closed_at_24_h") == []


@case(65, "131047_although_open")
def _(facts: Facts) -> None:
    """What Meta tells by webhook is final, and never sent again by itself; a resend works."""
    scene = facts.scene("windows")
    is_as(scene["wrong"], "failed", "OUTSIDE_24_HOUR_WINDOW", INGEST)
    assert len(facts.calls_for(scene["workspace"], "wrong")) == 1
    is_as(scene["again"], "read")


# Consent


@case(66, "stop")
def _(facts: Facts) -> None:
    scene = facts.scene("consent")
    assert scene["stops contact"]["marketing_state"] == "UNSUBSCRIBED"
    is_as(scene["stops-marketing"], "failed", "CUSTOMER_IS_NOT_OPTED_IN", CONSENT)
    assert facts.calls_for(scene["workspace"], "stops-marketing") == []
    is_as(scene["stops-utility"], "read")
    assert scene["stopped contact"]["marketing_state"] == "UNSUBSCRIBED"


@case(67, "resume")
def _(facts: Facts) -> None:
    scene = facts.scene("consent")
    is_as(scene["resumes-marketing"], "read")
    assert scene["resumed contact"]["marketing_state"] == "SUBSCRIBED"


@case(68, "stop_after_acceptance")
def _(facts: Facts) -> None:
    scene = facts.scene("consent")
    is_as(scene["too_late"], "failed", "RECIPIENT_STOPPED_MARKETING", INGEST)
    assert scene["too_late contact"]["marketing_state"] == "UNSUBSCRIBED"


# Limits


@case(69, "portfolio_limit_shared_by_two_numbers")
def _(facts: Facts) -> None:
    scene = facts.scene("limits")
    is_as(scene["first"], "read")
    assert scene["waits"]["status"] == "waiting"
    assert scene["waits"]["waiting"]["cause"] == "MESSAGING_LIMIT_REACHED"
    assert scene["calls_while_full"] == 1
    is_as(scene["known"], "read")


@case(70, "limit_raised")
def _(facts: Facts) -> None:
    scene = facts.scene("limits")
    assert scene["raised"]["messaging_limit"] == 250
    assert {sender["messaging_limit"] for sender in scene["senders"]} == {250}
    is_as(scene["after"], "read")
    assert len(facts.calls_for(scene["workspace"], "second")) == 1


@case(71, "marketing_cap_of_one_person")
def _(facts: Facts) -> None:
    scene = facts.scene("cap")
    is_as(scene["first"], "failed", "MARKETING_CAP_REACHED", INGEST)
    assert scene["second"]["status"] == "waiting"
    assert scene["second"]["waiting"]["cause"] == "MARKETING_CAP_REACHED"
    until = datetime.fromisoformat(scene["second"]["waiting"]["until"])
    assert timedelta(hours=23) < until - datetime.now(UTC) <= timedelta(hours=24)
    assert facts.calls_for(scene["workspace"], "second") == []
    is_as(scene["utility"], "read")
    is_as(scene["other"], "read")


# Accounts and templates


@case(72, "restriction_with_its_end")
def _(facts: Facts) -> None:
    for name in ("account_restricted", "account_disabled"):
        scene = facts.scene(name)
        assert scene["sender"]["hold"]["code"] == "SENDER_NOT_AVAILABLE"
        assert scene["waits"]["waiting"]["cause"] == "SENDER_NOT_AVAILABLE"
        is_as(scene["after"], "read")
        assert len([call for call in facts.calls_for(scene["workspace"], "waits") if call["wamid"]]) == 1
    restricted = facts.scene("account_restricted")
    until = datetime.fromisoformat(restricted["sender"]["hold_until"]).timestamp()
    assert until == restricted["played"]["expiration"]


@case(73, "template_paused_unpaused_disabled")
def _(facts: Facts) -> None:
    scene = facts.scene("template_states")
    is_as(scene["template_paused"], "failed", "TEMPLATE_NOT_APPROVED", DISPATCHER)
    is_as(scene["template_unpaused"], "read")
    is_as(scene["template_disabled"], "failed", "TEMPLATE_NOT_APPROVED", DISPATCHER)
    for name in ("template_paused", "template_disabled"):
        assert facts.calls_for(scene["workspace"], name) == []


@case(74, "category_moved_to_marketing")
def _(facts: Facts) -> None:
    scene = facts.scene("category")
    is_as(scene["noticed"], "read")
    is_as(scene["after"], "failed", "CUSTOMER_IS_NOT_OPTED_IN", CONSENT)
    assert facts.calls_for(scene["workspace"], "moved") == []


@case(75, "throughput_upgrade")
def _(facts: Facts) -> None:
    scene = facts.scene("upgrade")
    is_as(scene["during"], "read")
    *refused, taken = facts.calls_for(scene["workspace"], "during")
    assert {call["answer"]["error"]["code"] for call in refused} == {131057}
    assert taken["wamid"]
    assert scene["sender"]["messages_per_second"] == 1000


@case(76, "pin_reset_alert")
def _(facts: Facts) -> None:
    scene = facts.scene("pin")
    told = [event["raw"] for event in facts.of("sender.reported", field="security", waba_id=scene["waba_id"])]
    assert {raw["event"] for raw in told} == {"PIN_RESET_REQUEST"}
    assert scene["sender"]["hold"] is None
    is_as(scene["after"], "read")


# How webhooks travel


@case(77, "verification")
def _(facts: Facts) -> None:
    told = facts.scene("transport")["verification"]
    assert told["right"]["verified"]
    assert (told["wrong"]["verified"], told["wrong"]["http_status"]) == (False, 403)


@case(78, "signatures")
def _(facts: Facts) -> None:
    told = facts.scene("transport")["signatures"]["http_status"]
    assert told == {"right": 200, "wrong": 401, "missing": 401, "old": 401}


@case(79, "escaped_unicode_and_slashes")
def _(facts: Facts) -> None:
    played = facts.scene("transport")["escaped_body"]
    (event,) = facts.texts(played["wamids"])
    assert event["text"] == played["text"]


@case(80, "batch_of_1000_near_3_mb")
def _(facts: Facts) -> None:
    played = facts.scene("transport")["batch_of_1000"]
    assert played["bytes"] > 2_800_000
    assert {event["wamid"] for event in facts.texts(played["wamids"])} == set(played["wamids"])
    assert len(played["wamids"]) == 1000


@case(81, "repeated_until_answered")
def _(facts: Facts) -> None:
    (wamid,) = facts.scene("transport")["webhook_unanswered"]["wamids"]
    (webhook,) = (each for each in facts.webhooks if wamid in json.dumps(each["body"]))
    assert [each["http_status"] for each in webhook["tries"]] == [None, None, 200]
    assert len({event["event_id"] for event in facts.texts([wamid])}) == 1


@case(82, "three_times_the_send_rate")
def _(facts: Facts) -> None:
    told = facts.scene("transport")["concurrent_webhooks"]
    print(told)
    assert told["posted"] == told["answered_200"] == 240


@case(83, "several_entries_changes_and_fields")
def _(facts: Facts) -> None:
    scene = facts.scene("transport")
    wamids = scene["several_in_one_post"]["wamids"]
    assert sorted(event["text"] for event in facts.texts(wamids)) == ["One", "Two"]
    assert facts.of("sender.reported", field="errors", sender_id=scene["sender_id"])
    (security,) = facts.of("sender.reported", field="security", waba_id=scene["waba_id"])
    assert security["raw"]["event"] == "PIN_CHANGED"


@case(84, "unknown_field_and_message_type")
def _(facts: Facts) -> None:
    scene = facts.scene("transport")
    (event,) = facts.texts(scene["unknown_field_and_type"]["wamids"])
    assert (event["kind"], event["raw"]["hologram"]["scent"]) == ("other", "rose")
    (told,) = facts.of("sender.reported", field="future_field_update", waba_id=scene["waba_id"])
    assert told["raw"] == {"event": "SOMETHING_NEW", "level": 3}
    assert facts.of("sender.reported", field="messages", sender_id=scene["sender_id"])


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CASES)
def test_what_becomes_of(facts: Facts, name: str) -> None:
    CASES[name](facts)


def test_all_84_cases_are_played() -> None:
    assert [int(name.split("_")[1]) for name in CASES] == list(range(1, 85))


# Played on the way by other scenes, or what any of them needs.
ELSEWHERE: dict[str, Any] = {
    "temporary_always": "never ends: tests/test_scenarios.py of the simulator",
    "webhook_never_answered": "takes 7 days: tests/test_cases.py of the simulator",
    "answer": "test_contract.py",
    "failed": "test_contract.py",
}


def test_every_name_of_the_simulator_is_played(facts: Facts) -> None:
    here = (Path(__file__).parent / "playing.py").read_text() + Path(__file__).read_text()
    names = {row["name"] for row in facts.scene("scenarios")["names"]}
    assert [name for name in sorted(names - set(ELSEWHERE)) if f'"{name}"' not in here] == []
