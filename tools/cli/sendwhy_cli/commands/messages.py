"""`sendwhy messages`: the message log as a list."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.filters import Filters
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import MESSAGE_LOG

# A narrow terminal has what one looks for first, a wider one more.
COLUMNS = {
    0: ("STATUS", "AT (UTC)", "MESSAGE", "WHY"),
    100: ("STATUS", "REQUESTED (UTC)", "MESSAGE", "TO", "WHY"),
    140: ("STATUS", "REQUESTED (UTC)", "MESSAGE", "TO", "ORIGIN", "TEMPLATE", "SENDER", "WHY"),
}

Limit = Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="How many at most.")]
Cursor = Annotated[str | None, typer.Option("--cursor", help="Where the list before this one ended.")]


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(messages))


def messages(
    filters: Filters,
    place: Place,
    limit: Limit = 50,
    cursor: Cursor = None,
    csv: Annotated[
        Path | None, typer.Option("--csv", help="All that fit, as CSV into this file; - for stdout.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List messages, newest first: what became of each, and why.

    $ sendwhy messages --status failed --since 24h

    $ sendwhy messages --reason INSUFFICIENT_CREDITS --campaign black-friday --csv unpaid.csv

    $ sendwhy messages -q +525512345678 --json
    """
    from sendwhy_cli.client import Client, given
    from sendwhy_cli.files import written

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        if csv is not None and (as_json or cursor):
            raise CommandError(Exit.USAGE, "--csv has all that fit: leave out --json and --cursor")
        params = filters.params(datetime.now(UTC))
        if csv is not None:
            with written(csv) as out:
                client.download(out.write, MESSAGE_LOG, "messages.csv", params=params)
            if str(csv) != "-":
                terminal.say(f"written: {csv}")
            return
        found = client.listed(MESSAGE_LOG, "messages", params=params, limit=limit, cursor=cursor)
        terminal.show(found, show, as_json=as_json)
        if as_json:
            return
        query = urlencode(given(params))
        terminal.say(f"page: {client.page('messages')}{'?' if query else ''}{query}")
        terminal.say(_next(found, filters, place))


def show(found: Mapping[str, Any]) -> None:
    items = found["items"]
    if not items:
        terminal.say("no message fits; leave out a filter, or widen --since")
        return
    columns = COLUMNS[max(least for least in COLUMNS if least <= terminal.width())]
    terminal.table(columns, [[cells(item)[name] for name in columns] for item in items])


def cells(message: Mapping[str, Any]) -> dict[str, Any]:
    """What each column shows of a message."""
    to, origin = message["to"], message["origin"] or {}
    return {
        "STATUS": terminal.status(message["status"]),
        "AT (UTC)": terminal.moment(message["requested_at"], "%m-%d %H:%M:%S"),
        "REQUESTED (UTC)": terminal.moment(message["requested_at"]),
        "MESSAGE": message["message_id"],
        "TO": to["contact_id"] or to["phone"],
        "ORIGIN": " ".join(str(origin[name]) for name in ("kind", "id") if origin.get(name)) or None,
        "TEMPLATE": message["template"],
        "SENDER": message["sender_id"],
        "WHY": why(message),
    }


def why(message: Mapping[str, Any]) -> str:
    """The reason in a few words, or what is waited for; nothing where nothing went wrong."""
    if reason := message["reason"]:
        return str(reason["title"])
    if waiting := message["waiting"]:
        until = terminal.moment(waiting["until"], terminal.MINUTES)
        end = f"{until} UTC" if until else terminal.open_end(waiting)
        return f"{terminal.waits_for(waiting)} until {end}"
    return ""


def _next(found: Mapping[str, Any], filters: Filters, place: Place) -> str:
    if not found["items"]:
        other = place.command("campaigns list --search", filters.campaign) if filters.campaign else None
        return f"next: {other or place.command('messages')}"
    first = next((one for one in found["items"] if one["reason"]), found["items"][0])
    hint = f"next: {place.command('why', terminal.plain(first['message_id']))}"
    if found["next_cursor"]:
        words = " ".join(filter(None, ("messages", filters.words(), "--cursor")))
        hint += f"\nmore: {place.command(words, terminal.plain(found['next_cursor']))}"
    return hint
