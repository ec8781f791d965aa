"""The `sendwhy` command: its groups of commands, in the order of its help. A command imports what it needs when it
runs, so that `--help` and Tab answer at once."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sendwhy_cli.commands import (
    campaigns,
    completion,
    contacts,
    credits,
    local,
    messages,
    reasons,
    replay,
    senders,
    sending,
    tail,
    templates,
    why,
)
from sendwhy_cli.errors import HELP, Exit

app = typer.Typer(
    name="sendwhy",
    epilog=HELP,
    no_args_is_help=True,
    add_completion=True,
    # Rich would cost every `--help` as much time as all the rest, and draw boxes that can't be copied.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"sendwhy {version('sendwhy-cli')}")
        raise typer.Exit(Exit.DONE)


@app.callback()
def main(
    _version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Every WhatsApp message ends in blue ticks or in a reason.

    $ sendwhy why MESSAGE_ID

    $ sendwhy messages --status failed --since 24h
    """
    for stream in (sys.stdout, sys.stderr):
        # A terminal that knows no ticks gets question marks, not an error.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


why.install(app)
reasons.install(app)
messages.install(app)
tail.install(app)
campaigns.install(app)
contacts.install(app)
credits.install(app)
templates.install(app)
senders.install(app)
replay.install(app)
sending.install(app)
local.install(app)
completion.install(app)
