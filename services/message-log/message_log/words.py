"""What pages call things: statuses, events, times, durations. One word for a thing, everywhere."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

from babel.numbers import format_decimal, format_percent
from pydantic_core import to_json
from sendwhy.access import Role
from sendwhy.reasons import CATALOGUE, ReasonCode, ReasonInfo

from message_log.language import decimal, lazy, lazy_in, ngettext, spoken, told
from message_log.language import gettext as _
from message_log.names import countries_of
from message_log.view import read_moment

STATUS_WORDS: Mapping[str, str] = {
    "sending": lazy_in("message status", "Sending"),
    "waiting": lazy_in("message status", "Waiting"),
    "sent": lazy_in("message status", "Sent"),
    "delivered": lazy_in("message status", "Delivered"),
    "read": lazy_in("message status", "Read"),
    "failed": lazy_in("message status", "Failed"),
}
STATUS_MEANINGS: Mapping[str, str] = {
    "sending": lazy("on its way to WhatsApp"),
    "waiting": lazy("held back for now"),
    "sent": lazy("with WhatsApp’s servers"),
    "delivered": lazy("on the person’s device"),
    "read": lazy("blue ticks"),
    "failed": lazy("ended with a reason"),
}
RECOVERABLE_WORDS: Mapping[str, str] = {
    "never": lazy("This message can’t be sent."),
    "after_consent": lazy("Only once the person agrees."),
    "after_fix": lazy("Once the cause is fixed."),
    "after_topup": lazy("Once there are credits."),
    "after_wait": lazy("Later; waiting is enough."),
    "by_template": lazy("Now, with an approved template."),
    "unknown": lazy("Nobody can tell."),
}
FILTER_WORDS: Mapping[str, str] = {
    "status": lazy_in("filter", "status"),
    "reason": lazy_in("filter", "reason"),
    "reason_not": lazy_in("filter", "not the reason"),
    "service": lazy_in("filter", "said by"),
    "origin": lazy_in("filter", "origin"),
    "campaign": lazy_in("filter", "campaign"),
    "automation": lazy_in("filter", "automation"),
    "template": lazy_in("filter", "template"),
    "country": lazy_in("filter", "country"),
    "contact": lazy_in("filter", "contact"),
    "phone": lazy_in("filter", "phone"),
    "sender": lazy_in("filter", "sender"),
    "q": lazy_in("filter", "search"),
    "since": lazy_in("filter", "from"),
    "until": lazy_in("filter", "to"),
}
RANGE_WORDS: Mapping[str, str] = {
    "15m": lazy("last 15 minutes"),
    "1h": lazy("last hour"),
    "24h": lazy("last 24 hours"),
    "7d": lazy("last 7 days"),
    "30d": lazy("last 30 days"),
    "all": lazy("all time"),
}
# Beside RANGE_WORDS: a time that from and to name.
CHOSEN_TIME = lazy("in the chosen time")
_EVENT_WORDS: Mapping[str, str] = {
    "requested": lazy_in("event", "Request arrived"),
    "consented": lazy_in("event", "Consent let it pass"),
    "funded": lazy_in("event", "Credits reserved"),
    "rejected": lazy_in("event", "Rejected"),
    "held": lazy_in("event", "Held"),
    "recalled": lazy_in("event", "Recalled before sending"),
    "cancelled": lazy_in("event", "Cancel asked for"),
    "accepted": lazy_in("event", "Accepted by Meta"),
    "sent": lazy_in("event", "Sent: with WhatsApp’s servers"),
    "delivered": lazy_in("event", "Delivered to the device"),
    "read": lazy_in("event", "Read"),
    "played": lazy_in("event", "Played"),
    "failed": lazy_in("event", "Failed"),
    "dead_letter": lazy_in("event", "Put aside as unreadable"),
}

# What messages wait for in the dispatcher's queue, after "for".
WAITING_FOR_WORDS: Mapping[str, str] = {
    "turn": lazy("a turn"),
    "paused": lazy("somebody to resume the campaign or the number"),
    "hold": lazy("a hold of the number to end"),
    "throttle": lazy("a slot in the campaign’s throttle"),
    "pair": lazy("Meta’s pace for one person"),
    "tier": lazy("the number’s daily limit of people"),
    "cap": lazy("Meta’s marketing limit of the person"),
    "retry": lazy("another try after a passing failure"),
    "rate": lazy("the number’s rate"),
    "window": lazy("what the person last wrote to be read"),
    "sync": lazy("the templates to be read from Meta"),
    "repair": lazy("a version of the dispatcher that can read it"),
    "in_flight": lazy("Meta’s answer"),
    "unknown": lazy("a receipt, since Meta’s answer got lost"),
}


MARKETING_WORDS: Mapping[str, str] = {
    "SUBSCRIBED": lazy("Subscribed"),
    "UNSUBSCRIBED": lazy("Unsubscribed"),
    "NOT_SUBSCRIBED": lazy("Not subscribed"),
    "UNKNOWN": lazy("Never asked"),
}
VERDICT_WORDS: Mapping[str, str] = {
    "passes": lazy("Would be sent now"),
    "stopped": lazy("Would not be sent now"),
    "waits": lazy("Would wait"),
    "unknown": lazy("Nobody can tell just now"),
}
PASSED_WORDS: Mapping[bool | None, str] = {
    True: lazy("passes"),
    False: lazy("stops it"),
    None: lazy("can’t tell"),
}
_GATE_WORDS: Mapping[str, str] = {
    "request": lazy("The request is whole"),
    "phone_known": lazy("Phone number is known"),
    "calling_code": lazy("Calling code"),
    "phone_possible": lazy("Number can exist"),
    "marketing_state": lazy("Consent to marketing"),
    "credits": lazy("Credits"),
    "sender": lazy("Number to send from"),
    "cancelled": lazy("Not cancelled"),
    "expiry": lazy("In time"),
    "quality": lazy("Quality of the number"),
    "template": lazy("Template"),
    "parameters": lazy("Template’s parameters"),
    "window": lazy("24-hour window"),
    "paused": lazy("Not paused"),
    "hold": lazy("Nothing holds the number"),
    "marketing_cap": lazy("Meta’s cap on marketing to a person"),
    "throttle": lazy("Throttle"),
    "pair": lazy("Pace to one person"),
    "tier": lazy("Messaging limit"),
}
LEDGER_WORDS: Mapping[str, str] = {
    "top_up": lazy("Top-up"),
    "adjustment": lazy("Adjustment"),
    "reserve": lazy("Reserved"),
    "capture": lazy("Kept"),
    "release": lazy("Released: rejected"),
    "refund": lazy("Refunded: failed"),
    "recapture": lazy("Taken again: it arrived late"),
    "waive": lazy("Not taken again"),
}
HISTORY_WORDS: Mapping[str, str] = {
    "consent": lazy("Consent"),
    "phone": lazy("Phone"),
    "merged": lazy("Became one person"),
    "parted": lazy("Became several people"),
}
STOPS_WORDS: Mapping[str, str] = {
    "all": lazy("Nothing is sent"),
    "marketing": lazy("Marketing is not sent"),
    "templates": lazy("Templates are not sent"),
}

STOPPED_WORDS: Mapping[str, str] = {
    "paused": lazy("the number is paused"),
    "hold": lazy("the number is held"),
    "quality": lazy("its quality is low"),
    "template": lazy("templates are not read yet"),
    "tier": lazy("the messaging limit is reached"),
}


def gate_word(gate: str) -> str:
    return _GATE_WORDS.get(gate) or in_words(gate).capitalize()


def in_words(name: str) -> str:
    """A field's name, or a value in capitals, for people: IN_APPEAL is "in appeal". Those in VALUE_WORDS translated."""
    text = name.replace("_", " ").lower()
    return VALUE_WORDS.get(text, text)


# Values and fields' names that are known, as `in_words` writes them; others are shown as they come.
VALUE_WORDS: Mapping[str, str] = {
    "approved": lazy("approved"),
    "pending": lazy("pending"),
    "rejected": lazy("rejected"),
    "paused": lazy("paused"),
    "disabled": lazy("disabled"),
    "in appeal": lazy("in appeal"),
    "archived": lazy("archived"),
    "marketing": lazy("marketing"),
    "utility": lazy("utility"),
    "authentication": lazy("authentication"),
    "transactional": lazy("transactional"),
    "conversation": lazy("conversation"),
    "green": lazy("green"),
    "yellow": lazy("yellow"),
    "red": lazy("red"),
    "unknown": lazy("unknown"),
    "campaign": lazy("campaign"),
    "automation": lazy("automation"),
    "inbox": lazy("inbox"),
    "api": lazy("api"),
    "test": lazy("test"),
    "day": lazy("day"),
    "category": lazy("category"),
    "country": lazy("country"),
    "messages": lazy("messages"),
    "reserved": lazy("reserved"),
    "captured": lazy("captured"),
    "released": lazy("released"),
    "refunded": lazy("refunded"),
    "recaptured": lazy("recaptured"),
    "waived": lazy("waived"),
    "top ups": lazy("top ups"),
    "adjustments": lazy("adjustments"),
    "net": lazy("net"),
    "right": lazy("right"),
    "wrong": lazy("wrong"),
    "missing": lazy("missing"),
    "meta": lazy("meta"),
    "text": lazy("text"),
    "button": lazy("button"),
    "interactive": lazy("interactive"),
    "call": lazy("call"),
    "other": lazy("other"),
}
# What the record of people's actions names beside the actions of the pages.
NOTED_WORDS: Mapping[str, str] = {
    "reply": lazy("reply"),
    "give access": lazy("give access"),
    "take access": lazy("take access"),
    "resubmit dead letter": lazy("resubmit dead letter"),
    "send test message": lazy("send test message"),
    "check audience": lazy("check audience"),
    "plan to send again": lazy("plan to send again"),
    "judge many again": lazy("judge many again"),
    "cancel many": lazy("cancel many"),
    "confirm send again": lazy("confirm send again"),
    "send again": lazy("send again"),
    "done": lazy("done"),
    "had none here": lazy("had none here"),
}
AUDIENCE_WORDS: Mapping[str, str] = {
    "running": lazy("Judging"),
    "judged": lazy("Judged"),
    "cancelled": lazy("Cancelled"),
    "failed": lazy("Broke off"),
    "interrupted": lazy("Interrupted"),
    "sending": lazy_in("many messages", "Sending"),
    "sent": lazy("Sent again"),
    "stopped": lazy("Stopped"),
}
REFUSED_WORDS: Mapping[str, str] = {
    "signature is wrong": lazy("signature is wrong"),
    "signature is missing": lazy("signature is missing"),
    "signature is repeated": lazy("signature is repeated"),
}
SCOPE_WORDS: Mapping[str, str] = {
    "sender": lazy_in("a hold of", "sender"),
    "account": lazy_in("a hold of", "account"),
    "campaign": lazy_in("a hold of", "campaign"),
    "template": lazy_in("a hold of", "template"),
    "many": lazy_in("a hold of", "the number, template, campaign or account"),
}

ROLE_WORDS: Mapping[Role, str] = {
    Role.VIEWER: lazy_in("role", "viewer"),
    Role.OPERATOR: lazy_in("role", "operator"),
    Role.ADMIN: lazy_in("role", "admin"),
}


def needs_role(role: Role) -> str:
    return _("This needs the role %(role)s.", role=ROLE_WORDS[role])


def noted(text: str) -> str:
    """An action or its result in the record of what people did."""
    return NOTED_WORDS.get(text) or told(text)


def signed(value: int) -> str:
    """+1,000, -3, 0"""
    return f"+{decimal(value)}" if value > 0 else decimal(value)


def scope(kind: str) -> str:
    """Whose hold a wait is, after "of"."""
    return SCOPE_WORDS.get(kind, kind)


def number(value: int | None) -> str:
    return _("not known") if value is None else decimal(value)


def event_word(kind: str) -> str:
    return _EVENT_WORDS.get(kind, kind)


def event_detail(event: Mapping[str, Any]) -> str:
    """One line on an event, from its own fields; "" where its word says it all."""
    reason, price = event.get("reason"), event.get("price")
    if isinstance(reason, dict):
        return f"{told(str(reason.get('title')))}: {reason.get('detail')}"
    if isinstance(price, dict):
        return _("%(credits)s for category %(category)s", credits=price.get("credits"), category=price.get("category"))
    if event.get("kind") == "held":
        until = event.get("until")
        title = held_title(str(event.get("cause")), ends=bool(until))
        if not until:
            return _("%(cause)s: it waits, until %(end)s", cause=title, end=open_end(str(event.get("cause"))))
        time = absolute(datetime.fromisoformat(str(until)))
        return _("%(cause)s: it waits, until %(time)s at the latest", cause=title, time=time)
    wamid = event.get("provider_message_id") if event.get("kind") == "accepted" else None
    return str(event.get("note") or wamid or "")


def reason_info(code: str) -> ReasonInfo | None:
    return CATALOGUE[ReasonCode(code)] if code in ReasonCode.__members__ else None


def title_of(code: str) -> str:
    info = reason_info(code)
    return told(info.title) if info else code


class Wait(Protocol):
    """What a wait is told by. A pause, and a message that our own code failed on, have no code of their own: their
    cause is what the message would end with, the former without `until`."""

    @property
    def cause(self) -> str: ...
    @property
    def until(self) -> datetime | None: ...
    @property
    def scheduled(self) -> bool: ...


def wait_title(wait: Wait) -> str:
    return _("Scheduled for later") if wait.scheduled else held_title(wait.cause, ends=wait.until is not None)


def held_title(cause: str, *, ends: bool) -> str:
    if cause == ReasonCode.EXPIRED_BEFORE_SENDING:
        return _("Put aside, to be tried again") if ends else _("Paused")
    return title_of(cause)


def wait_todo(wait: Wait) -> str | None:
    """What to do about it; None before its own time, and as long as a receipt may still tell what became of a call."""
    if wait.scheduled or wait.cause == ReasonCode.SEND_OUTCOME_UNKNOWN:
        return None
    if wait.cause != ReasonCode.EXPIRED_BEFORE_SENDING:
        info = reason_info(wait.cause)
        return told(info.what_to_do) if info else None
    if wait.until is None:
        return _("Resume its number, or its campaign; then it goes out by itself. Don’t send it again.")
    return _("Don’t send it again. Why it was put aside stands in the dispatcher’s log: “a message was put aside”.")


def open_end(cause: str) -> str:
    """What ends a wait of which nobody can say when it ends: "until …"."""
    if cause == ReasonCode.EXPIRED_BEFORE_SENDING:
        return _("somebody resumes it")
    info = reason_info(cause)
    passes = cause == ReasonCode.TEMPORARY_FAILURE or (info is not None and info.recoverable == "after_wait")
    if passes:
        return _("it passes; Sendwhy tries now and then")
    return _("the cause is repaired; Sendwhy tries now and then")


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


def day_time(moment: datetime, now: datetime) -> str:
    """A time that stands alone, with its day unless that is today's."""
    is_today = moment.astimezone(UTC).date() == now.astimezone(UTC).date()
    return f"{clock(moment)[:8]} UTC" if is_today else absolute(moment)


def duration(seconds: float) -> str:
    """3.2 s, 4 min, 2 h, 5 d."""
    if abs(seconds) >= 86400:
        return _("%(count)s d", count=_rounded(seconds / 86400))
    if abs(seconds) >= 3600:
        return _("%(count)s h", count=_rounded(seconds / 3600))
    if abs(seconds) >= 60:
        return _("%(count)s min", count=_rounded(seconds / 60))
    if abs(seconds) >= 0.1 or seconds == 0:
        return _("%(count)s s", count=_rounded(seconds, 1))
    return _("%(count)s ms", count=_rounded(seconds * 1000))


def _rounded(value: float, digits: int = 0) -> str:
    """Without groups of thousands, which would read as a break between two spans."""
    return format_decimal(round(value, digits), "0.0" if digits else "0", locale=spoken().locale, group_separator=False)


def remaining(seconds: float) -> str:
    """What is left of a span, never more than there is: 23 h 55 min, 4 min, less than a minute."""
    minutes = int(seconds // 60)
    if minutes < 1:
        return _("less than a minute")
    hours, minutes = divmod(minutes, 60)
    if hours:
        return _("%(hours)s h %(minutes)s min", hours=hours, minutes=minutes)
    return _("%(count)s min", count=minutes)


def ago(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    if seconds < 0:
        return _("in %(span)s", span=duration(-seconds))
    if seconds < 5:
        return _("just now")
    whole = round(seconds)
    return _("%(span)s ago", span=_("%(count)s s", count=whole) if whole < 60 else duration(whole))


_TRY_WORDS: Mapping[str, str] = {
    "taken": lazy("Taken"),
    "unknown": lazy("No usable answer: nobody knows whether it was taken"),
    "not started in time": lazy("Not started in time"),
    "retry": lazy("Refused for now, tried again"),
    "pace": lazy("Refused for its pace, tried again"),
    "pair": lazy("Refused: too many to this person at once, tried again"),
    "syncing": lazy("Refused until its templates are known, tried again"),
    "hold": lazy("Refused: this holds the number"),
    "refused": lazy("Refused"),
    "reject": lazy("Refused"),
}


def try_answer(told: Mapping[str, Any]) -> str:
    """What Meta answered to a try: "Refused for now, tried again (HTTP 500, code 131000)"."""
    result = str(told.get("result"))
    answer, http, code = _TRY_WORDS.get(result, result), told.get("http_status"), told.get("code")
    if http is not None and code is not None:
        return _("%(answer)s (HTTP %(http)s, code %(code)s)", answer=answer, http=http, code=code)
    if http is not None:
        return _("%(answer)s (HTTP %(http)s)", answer=answer, http=http)
    return str(answer) if code is None else _("%(answer)s (code %(code)s)", answer=answer, code=code)


def duration_word(seconds: float) -> str:
    """A whole span in words: "hour", "15 minutes"."""
    for length, say in _STEPS:
        if seconds >= length and seconds % length == 0:
            return say(int(seconds // length))
    return _seconds(int(seconds))


def _days(count: int) -> str:
    return ngettext("day", "%(num)s days", count)


def _hours(count: int) -> str:
    return ngettext("hour", "%(num)s hours", count)


def _minutes(count: int) -> str:
    return ngettext("minute", "%(num)s minutes", count)


def _seconds(count: int) -> str:
    return ngettext("second", "%(num)s seconds", count)


_STEPS = ((86400, _days), (3600, _hours), (60, _minutes), (1, _seconds))


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
    locale = spoken().locale
    if 0 < share < 0.001 or 0.999 < share < 1:
        near = format_percent(0.001 if share < 0.5 else 0.999, "0.0%", locale=locale)
        return f"<{near}" if share < 0.5 else f">{near}"
    return format_percent(share, locale.percent_formats[None].pattern.replace("0", "0.#"), locale=locale)


def waiting_for(cause: str) -> str:
    return WAITING_FOR_WORDS.get(cause, cause)


def bar_time(moment: datetime, width_seconds: int) -> str:
    """When a bar begins: as much of the time as its width needs."""
    shape = "%Y-%m-%d" if width_seconds >= 86400 else "%m-%d %H:%M" if width_seconds >= 60 else "%H:%M:%S"
    return moment.astimezone(UTC).strftime(shape)


def span(seconds: int) -> str:
    """The width of a bar: second, 5 seconds, minute, 15 minutes, day."""
    for length, say in _STEPS:
        if seconds >= length:
            return say(seconds // length)
    return _("moment")
