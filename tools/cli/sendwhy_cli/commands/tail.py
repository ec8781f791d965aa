"""`sendwhy tail`: messages as they change."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.filters import Filters
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import MESSAGE_LOG

if TYPE_CHECKING:
    from sendwhy_cli.client import Client

# The stream says something at least every 15 s, if only that it lives.
SILENCE_SECONDS = 45.0
WAIT_MAX_SECONDS = 30.0


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(tail))


def tail(filters: Filters, place: Place, as_json: Json = False) -> None:
    """Follow messages as they change, until Ctrl-C. --json: an object a line.

    $ sendwhy tail

    $ sendwhy tail --status failed --campaign black-friday

    $ sendwhy tail --json | jq -r .reason.code

    A lost connection is made again by itself, from where it broke off. --since and --until go by the time of the
    request, as in `messages`.
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        params = filters.params(datetime.now(UTC))
        for message in follow(client, params):
            terminal.show(message, _show, as_json=as_json)


def follow(client: Client, params: dict[str, str | int | None]) -> Iterator[Any]:
    """Changes for ever. Raises CommandError where asking again can't help."""
    position: str | None = None
    failures = 0
    while True:
        try:
            for event_id, message in _stream(client, params, position, is_first=failures == 0):
                position = event_id or position
                if message is not None:
                    failures = 0
                    yield message
            told = "the stream ended"
        except CommandError as error:
            # Before anything was ever heard, a wrong address is likelier than an outage.
            if error.code is not Exit.UNREACHABLE or (position is None and failures == 0):
                raise
            told = str(error)
        failures += 1
        wait = min(WAIT_MAX_SECONDS, 0.25 * 2**failures) * random.uniform(0.7, 1)
        terminal.say(f"{told}; trying again in {wait:.1f} s")
        time.sleep(wait)


def _stream(
    client: Client, params: dict[str, str | int | None], position: str | None, *, is_first: bool
) -> Iterator[tuple[str | None, Any]]:
    """Positions with their messages until the stream breaks off; first where it begins, alone. Raises CommandError."""
    import httpx
    from httpx_sse import SSEError, connect_sse

    from sendwhy_cli.client import check, given, no_answer

    headers = {} if position is None else {"last-event-id": position}
    timeout = httpx.Timeout(SILENCE_SECONDS, connect=5)
    address = client.address(MESSAGE_LOG, "events")
    with (
        client.reaching(MESSAGE_LOG),
        connect_sse(client.http, "GET", address, params=given(params), headers=headers, timeout=timeout) as source,
    ):
        if not source.response.is_success:
            source.response.read()
        check(MESSAGE_LOG, source.response)
        terminal.say("listening; Ctrl-C ends" if is_first else "listening again")
        yield source.response.headers.get("last-event-id"), None
        try:
            for event in source.iter_sse():
                if event.data:
                    yield event.id or None, event.json()
        except (SSEError, ValueError, RecursionError) as error:
            raise no_answer(MESSAGE_LOG, f"something that is no stream of messages ({error})") from error


def _show(message: Any) -> None:
    """One line, with columns as wide as most need."""
    from rich.text import Text

    from sendwhy_cli.commands.messages import why

    status = terminal.status(message["status"])
    status.align("left", 13)
    at = terminal.moment(message["updated_at"])
    to = message["to"]["contact_id"] or message["to"]["phone"] or "–"
    line = Text.assemble(f"{at} UTC  ", status, f"  {message['message_id']:<24}  {to:<20}  {why(message)}".rstrip())
    terminal.console().print(line, soft_wrap=True)
