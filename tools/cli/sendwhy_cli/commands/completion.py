"""`sendwhy completion`: the script that makes a shell complete commands, statuses and reasons."""

from __future__ import annotations

from typing import Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.commands.completing import among
from sendwhy_cli.errors import HELP, CommandError, Exit

SHELLS = ("bash", "zsh", "fish", "powershell", "pwsh")


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(completion)


def completion(
    shell: Annotated[str, typer.Argument(help=f"One of {', '.join(SHELLS)}.", autocompletion=among(*SHELLS))],
) -> None:
    """Print the completion script for a shell. `sendwhy --install-completion` puts it where the shell finds it.

    $ source <(sendwhy completion bash)
    """
    # Typer's own --show-completion can't be told which shell where it finds out by itself.
    from typer.completion import get_completion_script  # type: ignore[attr-defined]

    with terminal.command_errors():
        if shell not in SHELLS:
            raise CommandError(Exit.USAGE, f"no script for {shell}: there are {', '.join(SHELLS)}")
        print(get_completion_script(prog_name="sendwhy", complete_var="_SENDWHY_COMPLETE", shell=shell))
