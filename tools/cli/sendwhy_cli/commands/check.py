"""`sendwhy check`: what sending a file would do."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, Exit
from sendwhy_cli.files import opened
from sendwhy_cli.options import Json, Place, grouped


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(check))


def check(
    file: Annotated[Path, typer.Argument(help="Request bodies, one JSON object a line; - for stdin.")],
    place: Place,
    saves: Annotated[
        list[str] | None,
        typer.Option("--save", help="Write an outcome's lines, or a group's, to a file: goes=FILE. Repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Tell what sending a file would do, and send nothing. Exits 1 if not all of it would go.

    $ sendwhy check requests.jsonl

    $ sendwhy check requests.jsonl --save goes=now.jsonl --save fails=repair.jsonl

    Every line is judged by consent, billing and the dispatcher as they stand now; nothing is charged. A group is what
    the list shows in brackets, as in fails.INSUFFICIENT_CREDITS.
    """
    from sendwhy_cli.check import all_would_go, save, saves_of, show, take
    from sendwhy_cli.client import Client
    from sendwhy_cli.progress import progress

    with terminal.command_errors(as_json=as_json):
        wanted = saves_of(saves or [])
        with Client.at(place) as client:
            with opened(file) as (read, _size), progress() as tell:
                view = take(client, read, file.name, tell)
            for group, path in wanted.items():
                save(client, view, group, path)
            terminal.show(view, show, as_json=as_json)
            if not as_json:
                terminal.say(f"page: {terminal.plain(str(view.get('url')))}")
                ready = file if all_would_go(view) else wanted.get("goes")
                # Where there is no Kafka to publish to, whoever sends is another system.
                if ready is not None and view["going"] and client.stack.kafka:
                    terminal.say(f"next: {place.command('send', str(ready))}")
    raise typer.Exit(Exit.DONE if all_would_go(view) else Exit.BAD_ANSWER)
