"""`sendwhy contacts` and `sendwhy import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.files import opened
from sendwhy_cli.options import Json, Place, grouped


def install(app: typer.Typer) -> None:
    contacts = typer.Typer(help="Contacts: import them from a CSV file.", no_args_is_help=True, epilog=HELP)
    contacts.command("import", epilog=HELP)(grouped(import_contacts))
    app.add_typer(contacts, name="contacts")
    app.command("import", epilog=HELP, hidden=True)(grouped(import_contacts))


def import_contacts(
    file: Annotated[Path, typer.Argument(help="A CSV file of contacts; - for stdin.")],
    place: Place,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and judge all rows, store nothing.")] = False,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="A field's column, as in phone=Mobile. Repeatable.")
    ] = None,
    refused: Annotated[
        Path | None, typer.Option("--refused", help="Write every refused row and why to this file, as CSV.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Import contacts from a CSV file. Exits 1 if a row was refused.

    $ sendwhy contacts import customers.csv --dry-run

    $ sendwhy contacts import customers.csv --map phone=Mobile --refused refused.csv

    Columns are found by their names, in many languages. The same file again changes nothing that is already so.
    """
    from sendwhy_cli.client import Client
    from sendwhy_cli.imports import Wanted, columns_of, save_refused, show, take
    from sendwhy_cli.progress import progress

    with terminal.command_errors(as_json=as_json):
        wanted = Wanted(columns_of(columns or []), dry_run)
        if refused is not None and dry_run:
            raise CommandError(Exit.USAGE, "--refused goes with an import, not with --dry-run: a preview keeps no rows")
        with Client.at(place) as client:
            with opened(file) as (read, size), progress() as tell:
                view = take(client, read, size, wanted, tell)
            if refused is not None:
                save_refused(client, view, refused)
        terminal.show(view, lambda seen: print("\n".join(show(seen))), as_json=as_json)
    if view["refused_count"] and refused is None and not dry_run and not as_json:
        terminal.say("next: the same with --refused FILE.csv writes every refused row and why")
    raise typer.Exit(Exit.BAD_ANSWER if view["refused_count"] or view["state"] == "failed" else Exit.DONE)
