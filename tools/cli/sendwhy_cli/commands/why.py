"""`sendwhy why` and `sendwhy open`: one message."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urljoin

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped
from sendwhy_cli.services import MESSAGE_LOG

if TYPE_CHECKING:
    from sendwhy_cli.client import Client

DECIDED = frozenset({"delivered", "read", "failed"})
POLL_SECONDS = 0.5
# A request that was published just now comes to message-log a moment later.
UNKNOWN_SECONDS = 10.0

MessageId = Annotated[str, typer.Argument(help="The message_id of the request.")]


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(why))
    app.command("open", epilog=HELP)(grouped(open_page))


def why(
    message_id: MessageId,
    place: Place,
    watch: Annotated[
        bool, typer.Option("--watch", help="Wait until it is delivered, read or failed; tell each step.")
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", help="Write everything that is known of it to this file, for a support case."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what became of one message, event by event. Exits 1 for a failed one.

    $ sendwhy why bf-2026-000017 --workspace acme

    $ sendwhy why bf-2026-000017 --watch

    $ sendwhy why bf-2026-000017 --bundle case.json
    """
    from sendwhy_cli.client import Client
    from sendwhy_cli.files import written
    from sendwhy_cli.why import show

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        message = _watched(client, message_id) if watch else _read(client, message_id)
        if bundle is not None:
            with written(bundle) as out:
                client.download(out.write, MESSAGE_LOG, "messages", message_id, "bundle")
            terminal.say(f"written: {bundle}; phone numbers in it are as your token may see them")
        if bundle is None or str(bundle) != "-":
            terminal.show(message, lambda seen: show(terminal.console(), seen), as_json=as_json)
        if not as_json:
            terminal.put(_page_of(client, message))
            if code := _code_of(message):
                terminal.say(f"next: {place.command('explain', code)}")
        raise typer.Exit(Exit.BAD_ANSWER if message["status"] == "failed" else Exit.DONE)


def _code_of(message: dict[str, Any]) -> str | None:
    """The reason that it ended with or, unless it is paused or waits for its own time, is held for."""
    if reason := message.get("reason"):
        return str(reason["code"])
    waiting = message.get("waiting")
    return str(waiting["cause"]) if waiting and waiting["cause"] != "EXPIRED_BEFORE_SENDING" else None


def open_page(message_id: MessageId, place: Place) -> None:
    """Print the address of a message's page.

    $ xdg-open "$(sendwhy open bf-2026-000017)"
    """
    from sendwhy_cli.client import Client

    with terminal.command_errors(), Client.at(place) as client:
        terminal.put(_page_of(client, _read(client, message_id)))


def _read(client: Client, message_id: str) -> dict[str, Any]:
    try:
        message = client.get(MESSAGE_LOG, "messages", message_id)
    except CommandError as error:
        if error.code is not Exit.NOT_FOUND:
            raise
        found = client.place.command("messages -q", message_id)
        sentence = f"no message {message_id} in workspace {client.place.workspace}; other ids and phones: {found}"
        raise CommandError(error.code, sentence, error.problem) from error
    if not isinstance(message, dict) or not isinstance(message.get("status"), str):
        raise terminal.unknown_shape(ValueError("no message with a status"))
    return message


def _watched(client: Client, message_id: str) -> dict[str, Any]:
    """The message once it is decided; until then, each step on stderr as it comes."""
    told, end = 0, time.monotonic() + UNKNOWN_SECONDS
    while True:
        try:
            message = _read(client, message_id)
        except CommandError as error:
            if error.code is not Exit.NOT_FOUND or time.monotonic() > end:
                raise
        else:
            if message["status"] in DECIDED:
                return message
            told = _tell(message, told)
        time.sleep(POLL_SECONDS)


def _tell(message: dict[str, Any], told: int) -> int:
    """Its events that weren't told yet; how many are told now."""
    events = message.get("events", [])
    for event in events[told:]:
        terminal.say(f"{terminal.utc(event['at'])}  {event['service']}  {event['kind']}")
    if len(events) > told and (waiting := message.get("waiting")):
        until = terminal.utc(waiting["until"]) or terminal.open_end(waiting)
        terminal.say(f"{terminal.waits_for(waiting)} until {until}")
    return len(events)


def _page_of(client: Client, message: dict[str, Any]) -> str:
    """The address that the message itself names, else where message-log has it."""
    page = message.get("url") or client.page("messages", str(message["message_id"]))
    return urljoin(client.stack.services[MESSAGE_LOG], str(page))
