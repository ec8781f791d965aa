"""`sendwhy test-message`: one real message, followed."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped


@dataclass(frozen=True)
class Content:
    """What is sent, and from which number."""

    sender: Annotated[str | None, typer.Option("--sender", help="Meta's id of the number to send from.")] = None
    template: Annotated[
        str | None, typer.Option("--template", help="NAME or NAME/LANGUAGE; hello_world where nothing is said.")
    ] = None
    params: Annotated[
        list[str] | None, typer.Option("--param", help="A variable of the template's text. Repeatable, in order.")
    ] = None
    text: Annotated[
        str | None, typer.Option("--text", help="Free text: only within 24 h of what the person wrote.")
    ] = None


def install(app: typer.Typer) -> None:
    app.command("test-message", epilog=HELP)(grouped(send_and_follow))


def send_and_follow(
    place: Place,
    to: Annotated[str, typer.Option("--to", help="The phone, with + and calling code.")],
    content: Content,
    timeout: Annotated[float, typer.Option("--timeout", min=1, help="Seconds to follow it.", show_default=True)] = 60,
    as_json: Json = False,
) -> None:
    """Send a real message and watch it, stage by stage. Exits 1 if it failed, or is not there in time.

    $ sendwhy test-message --to +525512345678

    $ sendwhy test-message --to +525512345678 --template order_update/en_US --param 4711

    It reaches that phone, and may cost credits here and money at Meta.
    """
    from sendwhy_cli.client import Client
    from sendwhy_cli.following import ending_of, exit_of, follow, send

    with terminal.command_errors(as_json=as_json), Client.at(place) as client:
        if content.text is not None and (content.template is not None or content.params):
            raise CommandError(Exit.USAGE, "--text goes without --template and --param")
        message_id = send(client, to, content)
        if not as_json:
            terminal.say(f"message {message_id}; {place.command('why', message_id)}")
        try:
            journey = follow(client, message_id, timeout, (lambda _: None) if as_json else _Told())
        except CommandError as error:
            sentence = f"{error}; it is sent, and later this tells of it: {place.command('why', message_id)}"
            raise CommandError(error.code, sentence, error.problem) from error

        def show(seen: Mapping[str, Any]) -> None:
            for line in ending_of(seen, timeout):
                terminal.put(line)

        terminal.show(journey, show, as_json=as_json)
        if not as_json:
            terminal.say(f"page: {terminal.plain(str(journey.get('url')))}")
            if reason := journey.get("reason"):
                terminal.say(f"next: {place.command('explain', terminal.plain(str(reason)))}")
        raise typer.Exit(exit_of(journey))


class _Told:
    """Shows each line once, as soon as it is there."""

    def __init__(self) -> None:
        self._shown: set[str] = set()

    def __call__(self, journey: Mapping[str, Any]) -> None:
        from sendwhy_cli.following import lines_of

        for line in lines_of(journey):
            if line not in self._shown:
                self._shown.add(line)
                terminal.put(line)
        sys.stdout.flush()
