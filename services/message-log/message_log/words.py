"""What pages call things: statuses, events, times, durations. One word for a thing, everywhere."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json
from sendwhy.reasons import CATALOGUE, ReasonCode, ReasonInfo

STATUS_WORDS: Mapping[str, str] = {
    "sending": "Sending",
    "waiting": "Waiting",
    "sent": "Sent",
    "delivered": "Delivered",
    "read": "Read",
    "failed": "Failed",
}
STATUS_MEANINGS: Mapping[str, str] = {
    "sending": "on its way to WhatsApp",
    "waiting": "held back for now",
    "sent": "with WhatsApp’s servers",
    "delivered": "on the person’s device",
    "read": "blue ticks",
    "failed": "ended with a reason",
}
RECOVERABLE_WORDS: Mapping[str, str] = {
    "never": "This message can’t be sent.",
    "after_consent": "Only once the person subscribes again.",
    "after_fix": "Once the cause is fixed.",
    "after_topup": "Once there are credits.",
    "after_wait": "Later; waiting is enough.",
    "by_template": "Now, with an approved template.",
    "unknown": "Nobody can tell.",
}
FILTER_WORDS: Mapping[str, str] = {
    "status": "status",
    "reason": "reason",
    "reason_not": "not the reason",
    "service": "said by",
    "origin": "origin",
    "campaign": "campaign",
    "automation": "automation",
    "template": "template",
    "contact": "contact",
    "phone": "phone",
    "sender": "sender",
    "q": "search",
    "since": "from",
    "until": "to",
}
RANGE_WORDS: Mapping[str, str] = {
    "15m": "last 15 minutes",
    "1h": "last hour",
    "24h": "last 24 hours",
    "7d": "last 7 days",
    "30d": "last 30 days",
    "all": "all time",
}
_EVENT_WORDS: Mapping[str, str] = {
    "requested": "Request arrived",
    "consented": "Consent let it pass",
    "funded": "Credits reserved",
    "rejected": "Rejected",
    "held": "Held",
    "recalled": "Recalled before sending",
    "cancelled": "Cancel asked for",
    "accepted": "Accepted by Meta",
    "sent": "Sent: with WhatsApp’s servers",
    "delivered": "Delivered to the device",
    "read": "Read",
    "played": "Played",
    "failed": "Failed",
    "dead_letter": "Put aside as unreadable",
}


MARKETING_WORDS: Mapping[str, str] = {
    "SUBSCRIBED": "Subscribed",
    "UNSUBSCRIBED": "Unsubscribed",
    "NOT_SUBSCRIBED": "Not subscribed",
    "UNKNOWN": "Never asked",
}
VERDICT_WORDS: Mapping[str, str] = {
    "passes": "Would be sent now",
    "stopped": "Would not be sent now",
    "waits": "Would wait",
    "unknown": "Nobody can tell just now",
}
PASSED_WORDS: Mapping[bool | None, str] = {True: "passes", False: "stops it", None: "can’t tell"}
_GATE_WORDS: Mapping[str, str] = {
    "request": "The request is whole",
    "phone_known": "Phone number is known",
    "calling_code": "Calling code",
    "phone_possible": "Number can exist",
    "marketing_state": "Consent to marketing",
    "credits": "Credits",
    "sender": "Number to send from",
    "cancelled": "Not cancelled",
    "expiry": "In time",
    "quality": "Quality of the number",
    "template": "Template",
    "parameters": "Template’s parameters",
    "window": "24-hour window",
    "paused": "Not paused",
    "hold": "Nothing holds the number",
    "marketing_cap": "Meta’s cap on marketing to a person",
    "throttle": "Throttle",
    "pair": "Pace to one person",
    "tier": "Messaging limit",
}
LEDGER_WORDS: Mapping[str, str] = {
    "top_up": "Top-up",
    "adjustment": "Adjustment",
    "reserve": "Reserved",
    "capture": "Kept",
    "release": "Released: rejected",
    "refund": "Refunded: failed",
    "recapture": "Taken again: it arrived late",
    "waive": "Not taken again",
}
HISTORY_WORDS: Mapping[str, str] = {
    "consent": "Consent",
    "phone": "Phone",
    "merged": "Became one person",
    "parted": "Became several people",
}
STOPS_WORDS: Mapping[str, str] = {
    "all": "Nothing is sent",
    "marketing": "Marketing is not sent",
    "templates": "Templates are not sent",
}

STOPPED_WORDS: Mapping[str, str] = {
    "paused": "the number is paused",
    "hold": "the number is held",
    "quality": "its quality is low",
    "template": "templates are not read yet",
    "tier": "the messaging limit is reached",
}


def gate_word(gate: str) -> str:
    return _GATE_WORDS.get(gate) or gate.replace("_", " ").capitalize()


def in_words(name: str) -> str:
    """A field's name, or a value in capitals, for people: IN_APPEAL is "in appeal"."""
    return name.replace("_", " ").lower()


def number(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def event_word(kind: str) -> str:
    return _EVENT_WORDS.get(kind, kind)


def event_detail(event: Mapping[str, Any]) -> str:
    """One line on an event, from its own fields; "" where its word says it all."""
    reason, price = event.get("reason"), event.get("price")
    if isinstance(reason, dict):
        return f"{reason.get('title')}: {reason.get('detail')}"
    if isinstance(price, dict):
        return f"{price.get('credits')} for category {price.get('category')}"
    if event.get("kind") == "held":
        until = event.get("until")
        end = f"{absolute(datetime.fromisoformat(str(until)))} at the latest" if until else "somebody repairs it"
        return f"{title_of(str(event.get('cause')))}: it waits, until {end}"
    wamid = event.get("provider_message_id") if event.get("kind") == "accepted" else None
    return str(event.get("note") or wamid or "")


def reason_info(code: str) -> ReasonInfo | None:
    return CATALOGUE[ReasonCode(code)] if code in ReasonCode.__members__ else None


def title_of(code: str) -> str:
    info = reason_info(code)
    return info.title if info else code


def filter_value(name: str, value: Any) -> str:
    if name in ("reason", "reason_not"):
        return title_of(str(value))
    if name == "status":
        return STATUS_WORDS[str(value)]
    return absolute(value) if isinstance(value, datetime) else str(value)


def absolute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]


_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def duration(seconds: float) -> str:
    """3.2 s, 4 min, 2 h, 5 d."""
    for length, unit in _UNITS:
        if abs(seconds) >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if abs(seconds) >= 0.1 or seconds == 0 else f"{seconds * 1000:.0f} ms"


def ago(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return f"in {duration(-seconds)}"
    return "just now" if seconds < 5 else f"{duration(round(seconds)).replace('.0 s', ' s')} ago"


def pretty_json(value: Any) -> str:
    return to_json(value, indent=2).decode()
