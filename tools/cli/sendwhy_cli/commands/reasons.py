"""`sendwhy explain`."""

from __future__ import annotations

from typing import Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.completing import reasons
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import Json, Place, grouped


def page_of(place: Place, code: str | None = None) -> str | None:
    """The address at which anybody can read the same, or the list of all, where an installation is known; the catalogue
    needs none."""
    from sendwhy_cli.services import MESSAGE_LOG
    from sendwhy_cli.stack import find

    try:
        url = find(place).services.get(MESSAGE_LOG)
    except CommandError:
        return None
    return url and "/".join(filter(None, (url, "reasons", code)))


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(explain))


def explain(
    code: Annotated[
        list[str],
        typer.Argument(help="A code, a title, another name of it, or Meta's number.", autocompletion=reasons),
    ],
    place: Place,
    as_json: Json = False,
) -> None:
    """Tell what a reason means, why it happens and what to do.

    $ sendwhy explain INSUFFICIENT_CREDITS

    $ sendwhy explain 131026

    $ sendwhy explain "invalid whatsapp number"
    """
    from sendwhy_cli.explain import as_json as entry_as_json
    from sendwhy_cli.explain import find, show, suggest

    words = " ".join(code)
    with terminal.command_errors(as_json=as_json):
        found = find(words)
        if not found:
            similar = "".join(f"\n  sendwhy explain {name}" for name in suggest(words))
            hint = f"did you mean{similar}" if similar else f"all are in {page_of(place) or 'docs/reasons.md'}"
            raise CommandError(Exit.NOT_FOUND, f"no reason is called {words!r}; {hint}")
        for name in found:
            if as_json:
                print(terminal.json_text(entry_as_json(name)))
            else:
                show(terminal.console(), name)
                print()
    if not as_json:
        for name in found:
            if page := page_of(place, name):
                terminal.say(f"page: {page}")
        terminal.say(f"next: {place.command(f'messages --reason {found[0]}')}")
