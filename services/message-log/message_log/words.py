"""What pages call things: statuses, events, times, durations. One word for a thing, everywhere."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from pydantic_core import to_json
from sendwhy.reasons import CATALOGUE, ReasonCode, ReasonInfo

from message_log.names import countries_of
from message_log.view import read_moment

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
    "country": "country",
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
# Beside RANGE_WORDS: a time that from and to name.
CHOSEN_TIME = "in the chosen time"
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

# What messages wait for in the dispatcher's queue, after "for".
WAITING_FOR_WORDS: Mapping[str, str] = {
    "turn": "their turn",
    "paused": "somebody to resume the campaign or the number",
    "hold": "a hold of the number to end",
    "throttle": "their slot in the campaign’s throttle",
    "pair": "Meta’s pace for one person",
    "tier": "the number’s daily limit of people",
    "cap": "Meta’s marketing limit of the person",
    "retry": "another try after a passing failure",
    "rate": "the number’s rate",
    "window": "what the person last wrote to be read",
    "sync": "the templates to be read from Meta",
    "in_flight": "Meta’s answer",
    "unknown": "a receipt, since Meta’s answer got lost",
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
        end = (
            f"{absolute(datetime.fromisoformat(str(until)))} at the latest"
            if until
            else open_end(str(event.get("cause")))
        )
        return f"{title_of(str(event.get('cause')))}: it waits, until {end}"
    wamid = event.get("provider_message_id") if event.get("kind") == "accepted" else None
    return str(event.get("note") or wamid or "")


def reason_info(code: str) -> ReasonInfo | None:
    return CATALOGUE[ReasonCode(code)] if code in ReasonCode.__members__ else None


def title_of(code: str) -> str:
    info = reason_info(code)
    return info.title if info else code


def open_end(cause: str) -> str:
    """What ends a wait of which nobody can say when it ends: "until …"."""
    if cause == ReasonCode.EXPIRED_BEFORE_SENDING:
        return "somebody resumes it"
    info = reason_info(cause)
    passes = cause == ReasonCode.TEMPORARY_FAILURE or (info is not None and info.recoverable == "after_wait")
    return "it passes; Sendwhy tries now and then" if passes else "the cause is repaired; Sendwhy tries now and then"


def filter_value(name: str, value: Any) -> str:
    if name in ("reason", "reason_not"):
        return title_of(str(value))
    if name == "status":
        return STATUS_WORDS[str(value)]
    if name == "country":
        return f"{countries_of(str(value))} (+{value})"
    return absolute(value) if isinstance(value, datetime) else str(value)


def absolute(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def told_time(told: Any) -> str:
    """A time as another service wrote it, for people; as it is where it is none."""
    moment = read_moment(told)
    return absolute(moment) if moment and moment.tzinfo else str(told)


def iso(moment: datetime) -> str:
    """For an address or a field: 2026-11-26T14:00:00Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


def field_time(moment: datetime | None) -> str:
    """For a date and time field, in UTC."""
    return "" if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def clock(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%H:%M:%S.%f")[:-3]


_UNITS = ((86400.0, "d"), (3600.0, "h"), (60.0, "min"))


def duration(seconds: float) -> str:
    """3.2 s, 4 min, 2 h, 5 d."""
    for length, unit in _UNITS:
        if abs(seconds) >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.1f} s" if abs(seconds) >= 0.1 or seconds == 0 else f"{seconds * 1000:.0f} ms"


def remaining(seconds: float) -> str:
    """What is left of a span, never more than there is: 23 h 55 min, 4 min, less than a minute."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return "less than a minute"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def ago(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return f"in {duration(-seconds)}"
    return "just now" if seconds < 5 else f"{duration(round(seconds)).replace('.0 s', ' s')} ago"


_TRY_WORDS: Mapping[str, str] = {
    "taken": "Taken",
    "unknown": "No usable answer: nobody knows whether it was taken",
    "not started in time": "Not started in time",
    "retry": "Refused for now, tried again",
    "pace": "Refused for its pace, tried again",
    "pair": "Refused: too many to this person at once, tried again",
    "syncing": "Refused until its templates are known, tried again",
    "hold": "Refused: this holds the number",
    "refused": "Refused",
    "reject": "Refused",
}


def try_answer(told: Mapping[str, Any]) -> str:
    """What Meta answered to a try: "Refused for now, tried again (HTTP 500, code 131000)"."""
    result = str(told.get("result"))
    numbers = [("HTTP", told.get("http_status")), ("code", told.get("code"))]
    named = ", ".join(f"{word} {number}" for word, number in numbers if number is not None)
    return f"{_TRY_WORDS.get(result, result)}{f' ({named})' if named else ''}"


_STEPS = ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second"))


def counted(number: int, one: str, many: str) -> str:
    """1 delivery, 1,234 deliveries."""
    return f"{number:,} {one if number == 1 else many}"


def duration_word(seconds: float) -> str:
    """A whole span in words: "hour", "15 minutes"."""
    length, word = next((step for step in _STEPS if seconds >= step[0] and seconds % step[0] == 0), _STEPS[-1])
    count = int(seconds // length)
    return word if count == 1 else f"{count} {word}s"


def bar_label(moment: datetime, width_seconds: float) -> str:
    """When a bar of a chart begins, as exact as its width asks for."""
    if width_seconds >= 86400:
        return moment.astimezone(UTC).strftime("%Y-%m-%d")
    return moment.astimezone(UTC).strftime(
        "%m-%d %H:%M" if width_seconds >= 3600 else "%H:%M" if width_seconds >= 60 else "%H:%M:%S"
    )


def pretty_json(value: Any) -> str:
    return to_json(value, indent=2).decode()


def percent(share: float | None) -> str:
    """94.1%, never 100% or 0% of what is almost so; a dash where there is nothing to share."""
    if share is None:
        return "–"
    if 0 < share < 0.001 or 0.999 < share < 1:
        return "<0.1%" if share < 0.5 else ">99.9%"
    return f"{share:.1%}".replace(".0%", "%")


def waiting_for(cause: str) -> str:
    return WAITING_FOR_WORDS.get(cause, cause)


def bar_time(moment: datetime, width_seconds: int) -> str:
    """When a bar begins: as much of the time as its width needs."""
    shape = "%Y-%m-%d" if width_seconds >= 86400 else "%m-%d %H:%M" if width_seconds >= 60 else "%H:%M:%S"
    return moment.astimezone(UTC).strftime(shape)


def span(seconds: int) -> str:
    """The width of a bar: second, 5 seconds, minute, 15 minutes, day."""
    for length, unit in ((86400, "day"), (3600, "hour"), (60, "minute"), (1, "second")):
        if seconds >= length:
            count = seconds // length
            return unit if count == 1 else f"{count} {unit}s"
    return "moment"
