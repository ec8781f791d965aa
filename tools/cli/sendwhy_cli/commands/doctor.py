"""`sendwhy doctor`: checks with their fixes."""

from __future__ import annotations

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, Exit
from sendwhy_cli.options import Json, Place, grouped


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(doctor))


def doctor(place: Place, as_json: Json = False) -> None:
    """Check the installation: each fault with its fix. Exits 1 if there is one.

    $ sendwhy doctor

    $ sendwhy doctor --state-dir /tmp/sendwhy --json

    That is Kafka, databases, services, lag, clocks, numbers, webhooks, receipts; on a local stack its processes and
    ports too, of an installation elsewhere whether each service answers whose address is set.
    """
    from sendwhy_cli.doctor import examine, show

    with terminal.command_errors(as_json=as_json):
        told, code = examine(place)
        terminal.show(told, show, as_json=as_json)
    if code is Exit.DONE and not as_json:
        terminal.say(f"next: {place.command('test-message --to PHONE')}")
    raise typer.Exit(code)
