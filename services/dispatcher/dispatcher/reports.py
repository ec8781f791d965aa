"""What Meta's webhooks tell of templates, numbers and accounts, read into changes of what we know. Pure.

Shapes: Meta's webhook reference pages as meta-cloud-api.md, 3.5 and 3.6, has them; spellings differ between pages, so
everything is read tolerantly, and what isn't known changes nothing but is told on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from sendwhy.events import Reason, milliseconds, reason
from sendwhy.logs import mask
from sendwhy.moments import told_time
from sendwhy.reasons import ReasonCode

from dispatcher.answers import HoldScope
from dispatcher.decide import Stops
from dispatcher.meta import is_unlimited, messaging_limit
from dispatcher.store import NumberState, TemplateRow
from dispatcher.sync_store import Report

_STATUS_OF_EVENT = {
    "APPROVED": "APPROVED",
    "REINSTATED": "APPROVED",
    "UNPAUSE": "APPROVED",
    "UNPAUSED": "APPROVED",
    "FLAGGED": None,
    "PENDING": "PENDING",
    "IN_APPEAL": "IN_APPEAL",
    "REJECTED": "REJECTED",
    "PAUSED": "PAUSED",
    "DISABLED": "DISABLED",
    "PENDING_DELETION": "PENDING_DELETION",
    "DELETED": "DELETED",
    "ARCHIVED": "ARCHIVED",
    "UNARCHIVED": "APPROVED",
    "LIMIT_EXCEEDED": "LIMIT_EXCEEDED",
    "LOCKED": "LOCKED",
}
_STOPS_BEGINNING = "RESTRICTED_BIZ_INITIATED_MESSAGING"
# Not RESTRICTED_UTILITY_TEMPLATES and RESTRICTED_DIRECT_SEND_UTILITY_TEMPLATES: Meta's page on account_update (copy of
# September 2026) says that those forbid to make such templates, and to send them by Direct Send, which isn't used here.
_STOPPING_RESTRICTIONS = (_STOPS_BEGINNING, "RESTRICTED_CUSTOMER_INITIATED_MESSAGING")
_DECISIONS = frozenset({"APPROVED", "REJECTED", "PENDING", "DEFERRED"})
_CATEGORIES = frozenset({"MARKETING", "UTILITY", "AUTHENTICATION"})
_KNOWN: Mapping[str, frozenset[str]] = {
    "message_template_status_update": frozenset(_STATUS_OF_EVENT),
    "message_template_quality_update": frozenset({"GREEN", "YELLOW", "RED", "UNKNOWN"}),
    "template_category_update": _CATEGORIES,
    "phone_number_quality_update": frozenset(
        {"ONBOARDING", "THROUGHPUT_UPGRADE", "FLAGGED", "UNFLAGGED", "UPGRADE", "DOWNGRADE"}
    ),
    "phone_number_name_update": _DECISIONS,
    "account_review_update": _DECISIONS,
    "account_update": frozenset(
        {
            "ACCOUNT_DELETED",
            "ACCOUNT_OFFBOARDED",
            "ACCOUNT_RECONNECTED",
            "ACCOUNT_RESTRICTION",
            "ACCOUNT_VIOLATION",
            "AD_ACCOUNT_LINKED",
            "AUTH_INTL_PRICE_ELIGIBILITY_UPDATE",
            "BUSINESS_PRIMARY_LOCATION_COUNTRY_UPDATE",
            "DISABLED_UPDATE",
            "MM_LITE_TERMS_SIGNED",
            "PARTNER_ADDED",
            "PARTNER_APP_INSTALLED",
            "PARTNER_APP_UNINSTALLED",
            "PARTNER_CLIENT_CERTIFICATION_STATUS_UPDATE",
            "PARTNER_REMOVED",
            "VOLUME_BASED_PRICING_TIER_UPDATE",
            "",
        }
    ),
    "account_alerts": frozenset(
        {
            "INCREASED_CAPABILITIES_ELIGIBILITY_DEFERRED",
            "INCREASED_CAPABILITIES_ELIGIBILITY_FAILED",
            "INCREASED_CAPABILITIES_ELIGIBILITY_NEED_MORE_INFO",
            "OBA_APPROVED",
            "OBA_REJECTED",
            "PROFILE_PICTURE_LOST",
            "",
        }
    ),
    "security": frozenset({"PIN_CHANGED", "PIN_RESET_REQUEST", "PIN_REQUEST_SUCCESS"}),
    "business_capability_update": frozenset({"LIMITS"}),
}
# Fields of Meta's that change nothing here, whatever they tell. They have lines of their own, so that the newest
# doesn't hide the others; by this list, so that nobody fills the table with names.
_OF_PEOPLE = frozenset(
    {
        "automatic_events",
        "group_participants_update",
        "history",
        "messaging_handovers",
        "smb_app_state_sync",
        "smb_message_echoes",
        "standby",
    }
)
_CHANGING_NOTHING = _OF_PEOPLE | {
    "business_username_update",
    "flows",
    "group_lifecycle_update",
    "group_settings_update",
    "group_status_update",
    "partner_solutions",
    "payment_configuration_update",
}
UNKNOWN = "unknown"
ERRORS = "errors"
# What a line names of a webhook: facts of accounts, numbers and templates in Meta's words. Anything else may be
# somebody's name, number or message, and whoever may look at a sender reads the line.
_TOLD_ON = frozenset(
    {
        *("alert_description", "alert_severity", "alert_status", "alert_type", "category_update_timestamp"),
        *("correct_category", "country", "country_code", "current_limit", "decision", "description", "disable_date"),
        *("effective_month", "entity_id", "entity_type", "expiration", "max_daily_conversation_per_phone"),
        *("max_daily_conversations_per_business", "max_phone_numbers_per_business", "max_phone_numbers_per_waba"),
        *("message_template_category", "message_template_id", "message_template_language", "message_template_name"),
        *("new_category", "new_quality_score", "old_limit", "owner_business_id", "partner_app_id", "previous_category"),
        *("previous_quality_score", "pricing_category", "reason", "recommendation", "region", "rejection_reason"),
        *("remediation", "requested_verified_name", "restriction_type", "start_time", "tier", "tier_update_time"),
        *("title", "violation_type", "waba_ban_date", "waba_ban_state", "waba_id"),
    }
)
_EVENT = re.compile(r"[A-Z][A-Z_]*\d{0,6}[A-Z_]*")
DETAIL_MAX = 300


def template_after(known: TemplateRow, field: str, value: Mapping[str, Any], at: datetime) -> TemplateRow | None:
    """The template after a report; the same row where the report changes nothing; None where it is of a kind that we
    don't know, so that only Meta can say what the template is now."""
    said = replace(known.template, said_by=field, said_at=at)
    if isinstance(event := value.get("event"), str):
        event = "UNPAUSE" if _title(value) == "UNPAUSE" else event.upper()
        if event not in _STATUS_OF_EVENT:
            return None
        status, told = _STATUS_OF_EVENT[event], _category(value) or known.template.category
        if status is None:
            is_news = told != known.template.category
            return replace(known, template=replace(said, category=told)) if is_news else known
        why = _rejected_reason(value) if status not in ("APPROVED", "PENDING") else None
        return replace(known, template=replace(said, status=status, category=told, rejected_reason=why))
    if isinstance(score := value.get("new_quality_score"), str):
        return replace(known, quality=score.upper())
    if isinstance(category := value.get("new_category"), str):
        # An advance notice (`correct_category`) names the present category here, and changes nothing yet.
        return (
            known
            if value.get("correct_category") is not None
            else replace(known, template=replace(said, category=category.upper()))
        )
    return None


def _category(value: Mapping[str, Any]) -> str | None:
    """The category that a status report names beside the status (meta-cloud-api.md, 3.5)."""
    category = str(value.get("message_template_category")).upper()
    return category if category in _CATEGORIES else None


def _title(value: Mapping[str, Any]) -> str:
    info = value.get("other_info")
    return str(info.get("title")).upper() if isinstance(info, dict) else ""


def _rejected_reason(value: Mapping[str, Any]) -> str | None:
    info = value.get("rejection_info") or value.get("other_info")
    details = (info.get("reason") or info.get("description")) if isinstance(info, dict) else None
    disabled = value.get("disable_info")
    date = disabled.get("disable_date") if isinstance(disabled, dict) else None
    told = value.get("reason")
    parts = [part for part in (told, details) if isinstance(part, str) and part not in ("", "NONE")]
    return ": ".join([*parts, *([f"disabled on {date}"] if date else [])])[:500] or None


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What a report means for senders: a new state of the named number, or of all of the account's portfolio, a hold
    (with its end, from when on replies go if that is before, and whether it is a restriction's or a ban's), or the end
    of one."""

    number: NumberState | None = None
    portfolio: NumberState | None = None
    hold: Reason | None = None
    hold_until: datetime | None = None
    hold_stops: Stops = Stops.ALL
    hold_replies_from: datetime | None = None
    hold_scope: HoldScope = HoldScope.BAN
    lifted: bool = False


def account_change(field: str, value: Mapping[str, Any]) -> AccountChange:
    event = _event(field, value)
    if field == "business_capability_update":
        return AccountChange(portfolio=_limit(value, "max_daily_conversation_per_phone"))
    if field == "phone_number_quality_update":
        # The limit is the portfolio's since October 2025, whichever number it is told by.
        upgraded = NumberState(messages_per_second=1000) if event == "THROUGHPUT_UPGRADE" else None
        return AccountChange(number=upgraded, portfolio=_limit(value, "current_limit"))
    if field == "account_update":
        return _account_update(event, value)
    if field == "account_review_update":
        return AccountChange(lifted=str(value.get("decision", "")).upper() == "APPROVED")
    return AccountChange()


def _limit(value: Mapping[str, Any], former_name: str) -> NumberState | None:
    """The messaging limit; under its former name where the new one is null or missing."""
    told = value.get("max_daily_conversations_per_business")
    told = value.get(former_name) if told is None else told
    limit, unlimited = messaging_limit(told), is_unlimited(told)
    return NumberState(messaging_limit=limit, unlimited=unlimited) if unlimited or limit is not None else None


def _account_update(event: str, value: Mapping[str, Any]) -> AccountChange:
    if event == "ACCOUNT_RESTRICTION":
        return _restriction(value.get("restriction_info"))
    ban = _only(value.get("ban_info"))
    state = str(_only(ban.get("waba_ban_state"))).upper() if isinstance(ban, dict) else ""
    if event in ("ACCOUNT_DELETED", "ACCOUNT_OFFBOARDED") or state == "DISABLE":
        return AccountChange(hold=_unavailable(event, {"event": event, "state": state}))
    return AccountChange(lifted=event == "ACCOUNT_RECONNECTED" or state == "REINSTATE")


def _only(told: Any) -> Any:
    """Meta's pages show some values bare and in a list of one."""
    return told[0] if isinstance(told, list) and len(told) == 1 else told


def _restriction(told: Any) -> AccountChange:
    """An empty list ends what stood; what can't be read ends nothing."""
    rows = [row for row in (told if isinstance(told, list) else [told]) if isinstance(row, dict)]
    kinds = [str(row.get("restriction_type")).upper() for row in rows]
    stopping = [(kind, row) for kind, row in zip(kinds, rows, strict=True) if kind in _STOPPING_RESTRICTIONS]
    if not stopping:
        return AccountChange(lifted=told == [])
    stopped_by = sorted({kind for kind, _ in stopping})
    until = _last_end(row for _, row in stopping)
    replies_from = _last_end(row for kind, row in stopping if kind != _STOPS_BEGINNING)
    # What stops replies may end before what stops the business from beginning.
    is_split = len(stopped_by) > 1 and replies_from != until
    evidence: dict[str, Any] = {"restrictions": list(stopped_by), "until": milliseconds(until) if until else None}
    if is_split and replies_from is not None:
        evidence["replies_from"] = milliseconds(replies_from)
    return AccountChange(
        hold=_unavailable("ACCOUNT_RESTRICTION", evidence),
        hold_until=until,
        hold_stops=Stops.BUSINESS_INITIATED if is_split or stopped_by == [_STOPS_BEGINNING] else Stops.ALL,
        hold_replies_from=replies_from if is_split else None,
        hold_scope=HoldScope.RESTRICTION,
    )


def _last_end(restrictions: Iterable[Mapping[str, Any]]) -> datetime | None:
    ends = [told_time(one.get("expiration")) for one in restrictions]
    known_ends = [end for end in ends if end is not None]
    return max(known_ends) if known_ends and len(known_ends) == len(ends) else None


def _unavailable(event: str, evidence: dict[str, Any]) -> Reason:
    return reason(ReasonCode.SENDER_NOT_AVAILABLE, f"Meta told by account_update: {event}", evidence)


def report_of(field: str, value: Mapping[str, Any], at: datetime, why: Reason | None = None) -> Report:
    """A webhook in a line, for operators. What we don't know stands under the one field `UNKNOWN`, with its name alone.
    `why`: of an error that belongs to no message; it holds nobody, as Meta tells of nothing that would end it."""
    if why is not None:
        return Report(field=ERRORS, at=at, event=why.code.value, detail=mask(why.detail)[:DETAIL_MAX], known=True)
    event = _event(field, value)
    if event not in _KNOWN.get(field, ()):
        event = event if _EVENT.fullmatch(event) else ""
        if field not in _CHANGING_NOTHING:
            return Report(field=UNKNOWN, at=at, event=f"{field[:64]} {event}".strip()[:128], detail="", known=False)
    detail = "" if field in _OF_PEOPLE else ", ".join(_told(value))[:DETAIL_MAX]
    return Report(field=field, at=at, event=event, detail=detail, known=True)


def _event(field: str, value: Mapping[str, Any]) -> str:
    """What happened, in Meta's capitals; each field of Meta's has it under another name."""
    alert = value.get("alert_info")
    told = value.get("event") or value.get("decision") or value.get("new_quality_score") or value.get("new_category")
    told = told or (alert.get("alert_type") if isinstance(alert, dict) else None)
    if told is None and field == "business_capability_update":
        return "LIMITS"
    return str(told or "").upper()[:64]


def _told(value: Mapping[str, Any], depth: int = 3) -> Iterator[str]:
    for name, part in value.items():
        for one in part if isinstance(part, list) else [part]:
            if isinstance(one, dict):
                yield from _told(one, depth - 1) if depth > 1 else ()
            elif name in _TOLD_ON and isinstance(one, str | int | float) and one != "":
                yield f"{name}: {one}"
