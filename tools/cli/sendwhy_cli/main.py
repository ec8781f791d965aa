"""The `sendwhy` command: its groups of commands, in the order of its help. A command imports what it needs when it
runs, so that `--help` and Tab answer at once."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from sendwhy_cli.commands import (
    campaigns,
    check,
    completion,
    contacts,
    credits,
    doctor,
    following,
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

# In the help; whatever isn't here comes last.
ORDER = [
    "why",
    "messages",
    "tail",
    "explain",
    "open",
    "check",
    "doctor",
    "test-message",
    "campaigns",
    "contacts",
    "credits",
    "templates",
    "senders",
    "replay",
    "send",
    "demo",
    "up",
    "fetch",
    "completion",
]


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002  the framework's signature
        return sorted(self.commands, key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))


app = typer.Typer(
    cls=_InOrder,
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
check.install(app)
doctor.install(app)
following.install(app)
campaigns.install(app)
contacts.install(app)
credits.install(app)
templates.install(app)
senders.install(app)
replay.install(app)
sending.install(app)
local.install(app)
completion.install(app)
