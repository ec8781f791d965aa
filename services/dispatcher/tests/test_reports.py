"""What Meta's webhooks change, value by value of meta-cloud-api.md, 3.5 and 3.6; reading them never fails."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from dispatcher.decide import Stops
from dispatcher.reporting import is_older
from dispatcher.reports import UNKNOWN, AccountChange, account_change, report_of, template_after
from dispatcher.store import NumberState, TemplateRow
from dispatcher_cases import NOW, TEMPLATE
from hypothesis import given
from hypothesis import strategies as st
from sendwhy.events import EARLIEST, LATEST, reason
from sendwhy.reasons import ReasonCode

STOPPING = "RESTRICTED_BIZ_INITIATED_MESSAGING"
ROW = TemplateRow("300", TEMPLATE, "POSITIONAL", "GREEN", NOW, 1)
STATUS = "message_template_status_update"
CATEGORY = "template_category_update"

STATUSES = [
    ("APPROVED", "APPROVED"),
    ("ARCHIVED", "ARCHIVED"),
    ("UNARCHIVED", "APPROVED"),
    ("DELETED", "DELETED"),
    ("DISABLED", "DISABLED"),
    ("FLAGGED", "PAUSED"),
    ("IN_APPEAL", "IN_APPEAL"),
    ("LIMIT_EXCEEDED", "LIMIT_EXCEEDED"),
    ("LOCKED", "LOCKED"),
    ("PAUSED", "PAUSED"),
    ("paused", "PAUSED"),
    ("PENDING", "PENDING"),
    ("REINSTATED", "APPROVED"),
    ("PENDING_DELETION", "PENDING_DELETION"),
    ("REJECTED", "REJECTED"),
    ("UNPAUSED", "APPROVED"),
]


@pytest.mark.parametrize(("event", "status"), STATUSES)
def test_each_event_of_a_template_leads_to_its_state(event: str, status: str) -> None:
    known = replace(ROW, template=replace(TEMPLATE, status="PAUSED"))
    after = template_after(known, STATUS, {"event": event, "reason": None}, NOW)
    assert after is not None
    assert after.template.status == status
    if event == "FLAGGED":
        assert after == known
    else:
        assert (after.template.said_by, after.template.said_at) == (STATUS, NOW)


REASONS: list[tuple[dict[str, Any], str | None]] = [
    (
        {"event": "REJECTED", "reason": "INVALID_FORMAT", "rejection_info": {"reason": "Side by side."}},
        "INVALID_FORMAT: Side by side.",
    ),
    (
        {"event": "PAUSED", "reason": "NONE", "other_info": {"title": "FIRST_PAUSE", "description": "For three hours"}},
        "For three hours",
    ),
    ({"event": "DISABLED", "disable_info": {"disable_date": 1795340300}}, "disabled on 1795340300"),
    ({"event": "APPROVED", "reason": "NONE"}, None),
]


@pytest.mark.parametrize(("value", "why"), REASONS)
def test_a_state_comes_with_metas_reason(value: dict[str, Any], why: str | None) -> None:
    after = template_after(ROW, STATUS, value, NOW)
    assert after is not None
    assert after.template.rejected_reason == why


def test_an_unpause_is_known_by_its_title_whatever_the_event() -> None:
    after = template_after(ROW, STATUS, {"event": "PAUSED", "other_info": {"title": "UNPAUSE"}}, NOW)
    assert after is not None
    assert after.template.status == "APPROVED"


def test_quality_is_read_under_either_field() -> None:
    for field in (STATUS, "message_template_quality_update"):
        after = template_after(ROW, field, {"previous_quality_score": "GREEN", "new_quality_score": "red"}, NOW)
        assert after is not None
        assert (after.quality, after.template.status) == ("RED", "APPROVED")


def test_an_advance_notice_of_a_category_changes_nothing_yet() -> None:
    notice = {"new_category": "MARKETING", "correct_category": "UTILITY", "category_update_timestamp": 1795426702}
    assert template_after(ROW, CATEGORY, notice, NOW) == ROW
    for extra in ({}, {"correct_category": None}):
        told = {"previous_category": "MARKETING", "new_category": "utility", **extra}
        done = template_after(replace(ROW, template=replace(TEMPLATE, category="MARKETING")), CATEGORY, told, NOW)
        assert done is not None
        assert done.template.category == "UTILITY"


@pytest.mark.parametrize("event", ["APPROVED", "FLAGGED", "PAUSED"])
@pytest.mark.parametrize(
    ("told", "category"), [("marketing", "MARKETING"), ("WONDROUS", "UTILITY"), (None, "UTILITY"), (7, "UTILITY")]
)
def test_a_status_takes_the_category_beside_it_along(event: str, told: Any, category: str) -> None:
    known = replace(ROW, template=replace(TEMPLATE, category="UTILITY"))
    after = template_after(known, STATUS, {"event": event, "message_template_category": told}, NOW)
    assert after is not None
    assert after.template.category == category


@pytest.mark.parametrize("value", [{"event": "BEWITCHED"}, {}, {"event": 7}, {"new_category": None}])
def test_what_we_do_not_know_is_left_to_the_next_sync(value: dict[str, Any]) -> None:
    assert template_after(ROW, STATUS, value, NOW) is None


NUMBERS: list[tuple[str, dict[str, Any], AccountChange]] = [
    (
        "phone_number_quality_update",
        {"event": "THROUGHPUT_UPGRADE", "current_limit": "TIER_UNLIMITED"},
        AccountChange(NumberState(messages_per_second=1000), NumberState(unlimited=True)),
    ),
    (
        "phone_number_quality_update",
        {"event": "ONBOARDING", "max_daily_conversations_per_business": "TIER_250", "current_limit": "TIER_50"},
        AccountChange(portfolio=NumberState(messaging_limit=250)),
    ),
    (
        "phone_number_quality_update",
        {"event": "ONBOARDING", "max_daily_conversations_per_business": None, "current_limit": "TIER_10K"},
        AccountChange(portfolio=NumberState(messaging_limit=10_000)),
    ),
    ("phone_number_quality_update", {"event": "ONBOARDING", "current_limit": "TIER_NOT_SET"}, AccountChange()),
    (
        "business_capability_update",
        {"max_daily_conversations_per_business": None, "max_daily_conversation_per_phone": 1000},
        AccountChange(portfolio=NumberState(messaging_limit=1000)),
    ),
    (
        "business_capability_update",
        {"max_daily_conversations_per_business": 2000},
        AccountChange(portfolio=NumberState(messaging_limit=2000)),
    ),
    (
        "business_capability_update",
        {"max_daily_conversations_per_business": 2000.0},
        AccountChange(portfolio=NumberState(messaging_limit=2000)),
    ),
    (
        "business_capability_update",
        {"max_daily_conversations_per_business": -1.0},
        AccountChange(portfolio=NumberState(unlimited=True)),
    ),
    ("business_capability_update", {"max_phone_numbers_per_waba": 25}, AccountChange()),
    ("account_update", {"event": "ACCOUNT_RECONNECTED"}, AccountChange(lifted=True)),
    (
        "account_update",
        {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "REINSTATE"}},
        AccountChange(lifted=True),
    ),
    (
        "account_update",
        {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "SCHEDULE_FOR_DISABLE"}},
        AccountChange(),
    ),
    ("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": []}, AccountChange(lifted=True)),
    (
        "account_update",
        {
            "event": "ACCOUNT_RESTRICTION",
            "restriction_info": [{"restriction_type": "RESTRICTED_ADD_PHONE_NUMBER_ACTION"}],
        },
        AccountChange(),
    ),
    *[
        ("account_update", {"event": event}, AccountChange())
        for event in (
            "ACCOUNT_VIOLATION",
            "AD_ACCOUNT_LINKED",
            "PARTNER_REMOVED",
            "VOLUME_BASED_PRICING_TIER_UPDATE",
            "NEW",
        )
    ],
    ("account_review_update", {"decision": "REJECTED"}, AccountChange()),
    ("account_alerts", {"alert_info": {"alert_type": "OBA_APPROVED"}}, AccountChange()),
    ("security", {"event": "PIN_CHANGED"}, AccountChange()),
    ("phone_number_name_update", {"decision": "APPROVED"}, AccountChange()),
]


@pytest.mark.parametrize(("field", "value", "change"), NUMBERS)
def test_each_report_changes_what_it_says(field: str, value: dict[str, Any], change: AccountChange) -> None:
    assert account_change(field, value) == change


@pytest.mark.parametrize(
    "value",
    [
        {"event": "ACCOUNT_DELETED"},
        {"event": "ACCOUNT_OFFBOARDED"},
        {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": "DISABLE"}},
        {"event": "DISABLED_UPDATE", "ban_info": {"waba_ban_state": ["DISABLE"]}},
        {"event": "DISABLED_UPDATE", "ban_info": [{"waba_ban_state": "DISABLE"}]},
    ],
)
def test_an_account_that_is_gone_holds_its_senders(value: dict[str, Any]) -> None:
    hold = account_change("account_update", value).hold
    assert hold is not None
    assert hold.code is ReasonCode.SENDER_NOT_AVAILABLE


@pytest.mark.parametrize(
    ("kinds", "stops"),
    [
        ([STOPPING], Stops.BUSINESS_INITIATED),
        ([STOPPING, "RESTRICTED_ADD_PHONE_NUMBER_ACTION"], Stops.BUSINESS_INITIATED),
        ([STOPPING, "RESTRICTED_CUSTOMER_INITIATED_MESSAGING"], Stops.ALL),
        (["RESTRICTED_CUSTOMER_INITIATED_MESSAGING"], Stops.ALL),
    ],
)
def test_a_restriction_of_what_a_business_begins_spares_replies(kinds: list[str], stops: Stops) -> None:
    rows = [{"restriction_type": kind} for kind in kinds]
    change = account_change("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": rows})
    assert change.hold is not None
    assert change.hold_stops is stops


@pytest.mark.parametrize("expiration", [1_795_000_000, -(10**18), 10**30, 0, None, "soon", True])
def test_a_restriction_holds_until_a_moment_that_events_can_hold(expiration: Any) -> None:
    restriction = {"restriction_type": STOPPING, "expiration": expiration}
    change = account_change("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": [restriction]})
    assert change.hold is not None
    assert change.hold_until is None or EARLIEST <= change.hold_until <= LATEST


END = datetime(2026, 11, 25, 9, 40, 11, tzinfo=UTC)


def restriction_of(rows: Any) -> AccountChange:
    return account_change("account_update", {"event": "ACCOUNT_RESTRICTION", "restriction_info": rows})


@pytest.mark.parametrize(
    "expiration",
    [1795599611, "1795599611", 1795599611.0, 1795599611000, "2026-11-25T09:40:11+0000", "2026-11-25T09:40:11Z"],
)
def test_the_end_of_a_restriction_is_read_as_any_time_of_metas(expiration: Any) -> None:
    change = restriction_of([{"restriction_type": STOPPING.lower(), "expiration": expiration}])
    assert change.hold_until == END
    assert change.hold is not None
    assert change.hold.evidence == {"restrictions": [STOPPING], "until": "2026-11-25T09:40:11.000Z"}


def test_of_several_restrictions_one_without_an_end_is_the_last() -> None:
    rows = [{"restriction_type": STOPPING, "expiration": end} for end in (1795599611, 1795599610)]
    assert restriction_of(rows).hold_until == END
    assert restriction_of([*rows, {"restriction_type": STOPPING}]).hold_until is None


def test_what_stops_replies_ends_with_its_own_restriction() -> None:
    def both(begin: int | None, reply: int | None) -> tuple[Any, ...]:
        kinds = {STOPPING: begin, "RESTRICTED_CUSTOMER_INITIATED_MESSAGING": reply}
        change = restriction_of([{"restriction_type": kind, "expiration": end} for kind, end in kinds.items()])
        return change.hold_stops, change.hold_until, change.hold_replies_from

    last, first = 1795599611, 1795599591
    assert both(last, first) == (Stops.BUSINESS_INITIATED, END, END - timedelta(seconds=20))
    assert both(None, last) == (Stops.BUSINESS_INITIATED, None, END)
    for begin, reply in ((first, last), (last, last)):
        assert both(begin, reply) == (Stops.ALL, END, None)
    assert both(last, None) == (Stops.ALL, None, None)


@pytest.mark.parametrize("told", [None, {}, "", [None], ["RESTRICTED_UTILITY_TEMPLATES"], 7])
def test_only_an_empty_list_ends_a_restriction(told: Any) -> None:
    assert restriction_of(told) == AccountChange()
    assert account_change("account_update", {"event": "ACCOUNT_RESTRICTION"}) == AccountChange()
    assert restriction_of([]) == AccountChange(lifted=True)


def test_a_restriction_without_its_list_is_read() -> None:
    assert restriction_of({"restriction_type": STOPPING, "expiration": 1795599611}).hold_until == END


@pytest.mark.parametrize("kind", ["RESTRICTED_UTILITY_TEMPLATES", "RESTRICTED_DIRECT_SEND_UTILITY_TEMPLATES"])
def test_a_restriction_of_what_sendwhy_does_not_do_holds_nobody(kind: str) -> None:
    assert restriction_of([{"restriction_type": kind, "expiration": 1795599611}]) == AccountChange()


@pytest.mark.parametrize("limit", ["TIER_2K", 250, "²", None, [], {"a": "³"}, -1, "9" * 40])
def test_any_limit_can_be_read(limit: Any) -> None:
    value = {"max_daily_conversations_per_business": limit}
    told = account_change("business_capability_update", value).portfolio
    assert (told is not None) == (limit in ("TIER_2K", 250, -1))


LINES: list[tuple[str, dict[str, Any], tuple[str, str, bool]]] = [
    (
        "account_update",
        {"event": "ACCOUNT_VIOLATION", "violation_info": {"violation_type": "ALCOHOL"}},
        ("account_update", "ACCOUNT_VIOLATION", True),
    ),
    ("account_review_update", {"decision": "REJECTED"}, ("account_review_update", "REJECTED", True)),
    ("account_alerts", {"alert_info": {"alert_type": "OBA_REJECTED"}}, ("account_alerts", "OBA_REJECTED", True)),
    (
        "security",
        {"event": "PIN_RESET_REQUEST", "requester": "61500000011122"},
        ("security", "PIN_RESET_REQUEST", True),
    ),
    ("phone_number_name_update", {"decision": "APPROVED"}, ("phone_number_name_update", "APPROVED", True)),
    ("business_capability_update", {"max_phone_numbers_per_waba": 25}, ("business_capability_update", "LIMITS", True)),
    ("flows", {"event": "FLOW_STATUS_CHANGE", "flow_id": "1"}, ("flows", "FLOW_STATUS_CHANGE", True)),
    ("account_update", {"event": "NEW_THING"}, (UNKNOWN, "account_update NEW_THING", False)),
    ("moon_phase_update", {"phase": "full"}, (UNKNOWN, "moon_phase_update", False)),
]


@pytest.mark.parametrize(("field", "value", "line"), LINES)
def test_operators_read_what_was_told(field: str, value: dict[str, Any], line: tuple[str, str, bool]) -> None:
    report = report_of(field, value, NOW)
    assert (report.field, report.event, report.known) == line
    assert "61500000011122" not in report.detail


ECHO = {
    "event": "private words",
    "from": "15557010123",
    "to": "447700900142",
    "text": {"body": "private words to Ines"},
    "contacts": [{"profile": {"name": "Ines"}, "wa_id": "447700900142"}],
    "title": "Ines",
    "reason": "Ines",
}


@pytest.mark.parametrize("field", ["statuses", "account_update"])
def test_nothing_that_may_be_personal_is_told_of_what_is_not_known(field: str) -> None:
    report = report_of(field, ECHO, NOW)
    assert (report.event, report.detail) == (field, "")


@pytest.mark.parametrize("field", ["smb_message_echoes", "history", "smb_app_state_sync"])
def test_nothing_is_told_of_fields_about_people_but_that_they_came(field: str) -> None:
    report = report_of(field, ECHO, NOW)
    assert (report.field, report.event, report.detail) == (field, "", "")


def test_of_what_is_known_only_its_own_facts_are_told() -> None:
    violation = {"event": "ACCOUNT_VIOLATION", "violation_info": {"violation_type": "ALCOHOL", "of": "Ines"}}
    assert report_of("account_update", violation | {"to": "447700900142"}, NOW).detail == "violation_type: ALCOHOL"
    why = reason(ReasonCode.META_ERROR, "Meta says: +447700900142 can't be reached (code 7)")
    assert "447700900142" not in report_of("errors", {}, NOW, why).detail


@pytest.mark.parametrize(
    "field",
    [
        "partner_solutions", "payment_configuration_update", "automatic_events", "history", "smb_message_echoes",
        "smb_app_state_sync", "flows", "business_username_update", "group_lifecycle_update", "group_settings_update",
        "group_status_update", "group_participants_update", "messaging_handovers", "standby",
    ],
)  # fmt: skip
def test_a_field_of_metas_that_changes_nothing_has_a_line_of_its_own(field: str) -> None:
    report = report_of(field, {"a": 1}, NOW)
    assert (report.field, report.event, report.known) == (field, "", True)


_JSON = st.recursive(st.none() | st.integers() | st.text(), lambda one: st.lists(one) | st.dictionaries(st.text(), one))


@given(
    st.sampled_from([*{field for field, _, _ in [*NUMBERS, *LINES]}, STATUS, CATEGORY]),
    st.dictionaries(
        st.sampled_from(
            ["event", "decision", "alert_info", "ban_info", "restriction_info", "other_info", "new_category"]
        ),
        _JSON,
    ),
)
def test_nothing_that_a_webhook_holds_is_fatal(field: str, value: dict[str, Any]) -> None:
    account_change(field, value)
    template_after(ROW, field, value, NOW)
    assert len(report_of(field, value, NOW).detail) <= 300


@given(st.integers(-120, 120), st.integers(0, 999_999))
def test_an_event_is_older_by_whole_seconds_only(seconds: int, micros: int) -> None:
    known_at = NOW + timedelta(microseconds=micros)
    assert is_older(NOW + timedelta(seconds=seconds), known_at) == (seconds < 0)
    assert not is_older(NOW, None)
