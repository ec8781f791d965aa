"""What Meta's webhooks tell of templates, numbers and accounts, read into changes of what we know. Pure.

Shapes: Meta's webhook reference pages as meta-cloud-api.md, 3.5 and 3.6, has them; spellings differ between pages, so
everything is read tolerantly.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sendwhy.events import EARLIEST, LATEST, Reason, reason
from sendwhy.reasons import ReasonCode

from dispatcher.meta import messaging_limit
from dispatcher.store import NumberState, TemplateRow

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
_STOPPING_RESTRICTIONS = (
    "RESTRICTED_BIZ_INITIATED_MESSAGING",
    "RESTRICTED_CUSTOMER_INITIATED_MESSAGING",
)


def told_at(occurred_at: datetime) -> datetime:
    """Until when a report may have been made: Meta dates it in whole seconds, so one of the same second as a reading of
    ours may tell what came after it."""
    return occurred_at if occurred_at.microsecond else occurred_at + timedelta(microseconds=999_999)


def template_after(known: TemplateRow, field: str, value: Mapping[str, Any], at: datetime) -> TemplateRow:
    """The template after a report; the same row where the report changes nothing."""
    said = replace(known.template, said_by=field, said_at=at)
    if isinstance(event := value.get("event"), str):
        status = _STATUS_OF_EVENT.get(event.upper(), event.upper())
        if status is None:
            return known
        why = _rejected_reason(value) if status not in ("APPROVED", "PENDING") else None
        return replace(known, template=replace(said, status=status, rejected_reason=why))
    if isinstance(score := value.get("new_quality_score"), str):
        return replace(known, quality=score.upper())
    if isinstance(category := value.get("new_category"), str) and "correct_category" not in value:
        return replace(known, template=replace(said, category=category.upper()))
    return known


def _rejected_reason(value: Mapping[str, Any]) -> str | None:
    info = value.get("rejection_info") or value.get("other_info")
    details = (info.get("reason") or info.get("description")) if isinstance(info, dict) else None
    told = value.get("reason")
    parts = [part for part in (told, details) if isinstance(part, str) and part not in ("", "NONE")]
    return ": ".join(parts)[:500] or None


@dataclass(frozen=True, slots=True)
class AccountChange:
    """What a report means for senders: a new state, a hold of the account (with its end), or the end of one. `wide`:
    the state is that of all senders of the account's portfolio."""

    number: NumberState | None = None
    hold: Reason | None = None
    hold_until: datetime | None = None
    lifted: bool = False
    wide: bool = False


def account_change(field: str, value: Mapping[str, Any]) -> AccountChange:
    event = str(value.get("event", "")).upper()
    if field == "business_capability_update":
        limit = value.get("max_daily_conversations_per_business", value.get("max_daily_conversation_per_phone"))
        return AccountChange(number=_limit(limit), wide=True)
    if field == "phone_number_quality_update":
        told = _limit(value.get("max_daily_conversations_per_business", value.get("current_limit")))
        upgraded = replace(told, messages_per_second=1000) if event == "THROUGHPUT_UPGRADE" else told
        return AccountChange(number=upgraded)
    if field == "account_update":
        return _account_update(event, value)
    if field == "account_review_update":
        return AccountChange(lifted=str(value.get("decision", "")).upper() == "APPROVED")
    return AccountChange()


def _limit(told: Any) -> NumberState:
    limit = messaging_limit(told)
    unlimited = limit is None and ("UNLIMITED" in str(told).upper() or str(told) == "-1")
    return NumberState(messaging_limit=limit, unlimited=unlimited)


def _account_update(event: str, value: Mapping[str, Any]) -> AccountChange:
    if event == "ACCOUNT_RESTRICTION":
        return _restriction(value.get("restriction_info"))
    ban = value.get("ban_info")
    state = str(ban.get("waba_ban_state", "")).upper() if isinstance(ban, dict) else ""
    if event == "ACCOUNT_DELETED" or state == "DISABLE":
        return AccountChange(hold=_unavailable(event, {"event": event, "state": state}))
    return AccountChange(lifted=event == "ACCOUNT_RECONNECTED" or state == "REINSTATE")


def _restriction(restrictions: Any) -> AccountChange:
    rows = [row for row in restrictions if isinstance(row, dict)] if isinstance(restrictions, list) else []
    stopping = [row for row in rows if row.get("restriction_type") in _STOPPING_RESTRICTIONS]
    if not stopping:
        return AccountChange(lifted=not rows)
    ends = [row["expiration"] for row in stopping if isinstance(row.get("expiration"), int)]
    end = min(max(*ends, EARLIEST.timestamp()), LATEST.timestamp()) if ends else None
    until = datetime.fromtimestamp(end, UTC) if end is not None else None
    kinds = sorted({str(row["restriction_type"]) for row in stopping})
    return AccountChange(hold=_unavailable("ACCOUNT_RESTRICTION", {"restrictions": list(kinds)}), hold_until=until)


def _unavailable(event: str, evidence: dict[str, Any]) -> Reason:
    return reason(ReasonCode.SENDER_NOT_AVAILABLE, f"Meta told by account_update: {event}", evidence)
