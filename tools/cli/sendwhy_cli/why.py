"""`sendwhy why`: the timeline of one message, and the reason if it failed."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from sendwhy.reasons import CATALOGUE, ReasonCode

from sendwhy_cli import terminal
from sendwhy_cli.services import INGEST
from sendwhy_cli.terminal import MARKS

NOTE_LENGTH = 100
# What is worth a look in a line; `--json` has the rest.
DETAILS = ("cause", "since", "until", "balance", "contact_version", "template_category")
TIMES = ("since", "until")


def show(console: Console, message: dict[str, Any]) -> None:
    status = message["status"]
    mark, style = MARKS.get(status, ("?", ""))
    console.print(Text.assemble((mark, style), " ", (status.upper(), "bold"), f"   {message['message_id']}"))
    _show_reason(console, message.get("reason"))
    if waiting := message.get("waiting"):
        console.print(Text(_wait(waiting)))
        if todo := _todo(waiting):
            console.print(Text(f"What to do: {todo}"))
    terminal.draw(console, _timeline(message.get("events", [])))


def _show_reason(console: Console, reason: dict[str, Any] | None) -> None:
    if not reason:
        return
    console.print(Text.assemble((reason["title"], "bold"), f"  {reason['code']}"))
    console.print(Text(reason.get("detail") or ""))
    if reason["code"] in ReasonCode.__members__:
        console.print(Text(f"What to do: {CATALOGUE[ReasonCode(reason['code'])].what_to_do}"))


def _wait(waiting: dict[str, Any]) -> str:
    fails_at = terminal.utc(waiting.get("expires_at"))
    end = f"; it fails at {fails_at} if it still waits" if fails_at else ""
    until = terminal.utc(waiting["until"]) or terminal.open_end(waiting)
    return f"{terminal.waits_for(waiting)} since {terminal.utc(waiting['since'])}, until {until}{end}"


def _todo(waiting: dict[str, Any]) -> str | None:
    """What to do about it; None before its own time, and as long as a receipt may still tell what became of a call."""
    cause = waiting["cause"]
    if waiting.get("scheduled") or cause == ReasonCode.SEND_OUTCOME_UNKNOWN or cause not in ReasonCode.__members__:
        return None
    if cause == ReasonCode.EXPIRED_BEFORE_SENDING:
        step = "Wait" if waiting["until"] else "Resume what is paused"
        return f"{step}; it goes out by itself. Don't send it again."
    return CATALOGUE[ReasonCode(cause)].what_to_do


def _timeline(events: list[dict[str, Any]]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(justify="right")
    # What expired before it came is refused with the time of its end, which lies before the request.
    first = next((place for place, event in enumerate(events) if event["kind"] == "requested"), 0)
    events = [*events[first : first + 1], *events[:first], *events[first + 1 :]]
    times = [datetime.fromisoformat(event["at"]) for event in events]
    for event, at in zip(events, times, strict=True):
        details = list(_details(event))
        # Meta tells whole seconds, and message-log puts them after later moments of ours.
        if event["service"] == INGEST and not at.microsecond:
            details.append("(Meta's clock)")
        if event is events[0]:
            details.insert(0, f"{terminal.utc(event['at'])}")
        offset = f"{(at - times[0]).total_seconds():+.3f} s"
        table.add_row(offset, Text(event["service"]), Text(event["kind"]), _line(", ".join(details), event))
    return table


def _line(details: str, event: dict[str, Any]) -> Text:
    """A note, which may be a whole validation error, gets one line: the page and `--json` have all of it."""
    return Text(details, no_wrap=True, overflow="ellipsis") if event.get("note") else Text(details)


def _details(event: dict[str, Any]) -> Iterator[str]:
    if reason := event.get("reason"):
        yield str(reason["code"])
    if price := event.get("price"):
        yield f"price {price['credits']} ({price['category']}{', assumed' if price['assumed'] else ''})"
    if note := event.get("note"):
        yield _shortened(str(note))
    for name in DETAILS:
        if (value := event.get(name)) is not None:
            yield f"{name.replace('_', ' ')} {terminal.utc(value) if name in TIMES else value}"


def _shortened(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= NOTE_LENGTH else line[: NOTE_LENGTH - 1] + "…"
