"""The filters of a message list: the same as in the API and on the page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from sendwhy_cli.commands.completing import ORIGINS, STATUSES, among, reasons
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.services import SERVICES

_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


@dataclass(frozen=True)
class Filters:
    """Each narrows the list further."""

    status: Annotated[
        str | None, typer.Option("--status", help=f"One of {', '.join(STATUSES)}.", autocompletion=among(*STATUSES))
    ] = None
    reason: Annotated[
        str | None,
        typer.Option("--reason", help="Only this reason: its code, title or Meta's number.", autocompletion=reasons),
    ] = None
    not_reason: Annotated[
        str | None, typer.Option("--not-reason", help="All but this reason.", autocompletion=reasons)
    ] = None
    service: Annotated[
        str | None, typer.Option("--service", help="Who said the reason.", autocompletion=among(*SERVICES))
    ] = None
    sender: Annotated[str | None, typer.Option("--sender", help="The sending number's id at Meta.")] = None
    origin: Annotated[
        str | None, typer.Option("--origin", help=f"One of {', '.join(ORIGINS)}.", autocompletion=among(*ORIGINS))
    ] = None
    campaign: Annotated[str | None, typer.Option("--campaign", help="A campaign's id.")] = None
    automation: Annotated[str | None, typer.Option("--automation", help="An automation's id.")] = None
    template: Annotated[str | None, typer.Option("--template", help="A template's name.")] = None
    country: Annotated[
        str | None, typer.Option("--country", help="The phone's country, as MX, or its code, as 52.")
    ] = None
    contact: Annotated[str | None, typer.Option("--contact", help="A contact's id.")] = None
    phone: Annotated[str | None, typer.Option("--phone", help="A phone number.")] = None
    since: Annotated[
        str | None,
        typer.Option("--since", "--from", help="Requested since then: 24h, 7d, a day or a time (UTC unless it says)."),
    ] = None
    until: Annotated[str | None, typer.Option("--until", "--to", help="Requested before then; as in --since.")] = None
    search: Annotated[str | None, typer.Option("--search", "-q", help="Any id, a phone, or a name's beginning.")] = None

    def params(self, now: datetime) -> dict[str, str | int | None]:
        """As the API calls them. Raises CommandError."""
        return {
            "status": self.status,
            "reason": code_of("--reason", self.reason),
            "reason!": code_of("--not-reason", self.not_reason),
            "service": self.service,
            "sender": self.sender,
            "origin": self.origin,
            "campaign": self.campaign,
            "automation": self.automation,
            "template": self.template,
            "country": self.country,
            "contact": self.contact,
            "phone": self.phone,
            "from": time_of("--since", self.since, now),
            "to": time_of("--until", self.until, now),
            "q": self.search,
        }

    def words(self) -> str:
        """As they were given, for the command that goes on."""
        return " ".join(self._given())

    def _given(self) -> Iterator[str]:
        for each in fields(self):
            if (value := getattr(self, each.name)) is not None:
                yield f"--{each.name.replace('_', '-')} {shlex.quote(value)}"


def code_of(option: str, name: str | None) -> str | None:
    """A reason's code by any of its names. Raises CommandError."""
    if name is None:
        return None
    from sendwhy_cli.explain import find, suggest

    found = find(name)
    if len(found) == 1:
        return found[0]
    like = found or suggest(name)
    hint = f"; did you mean {', '.join(like)}?" if like else "; see: sendwhy explain"
    raise CommandError(Exit.USAGE, f"{option}: no one reason is called {name!r}{hint}")


def time_of(option: str, told: str | None, now: datetime) -> str | None:
    """`24h` before now, a day or a time, as RFC 3339. Raises CommandError."""
    if told is None:
        return None
    try:
        if ago := _AGO.fullmatch(told):
            return (now - timedelta(**{_UNITS[ago[2]]: int(ago[1])})).isoformat()
        at = datetime.fromisoformat(f"{told}T00:00:00Z" if _DAY.fullmatch(told) else told)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).isoformat()
    except (ValueError, OverflowError):
        raise CommandError(
            Exit.USAGE, f"{option} {told}: write it as 24h, 7d, 2026-11-22 or 2026-11-22T10:00:00Z"
        ) from None
