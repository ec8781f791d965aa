"""`sendwhy send`: requests from a file, as an upstream system publishes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.files import opened
from sendwhy_cli.options import Place, grouped

PLAIN_PROGRESS_SECONDS = 10.0


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(send))


def send(
    file: Annotated[Path, typer.Argument(help="Request bodies, one JSON object a line; - for stdin.")], place: Place
) -> None:
    """Publish send requests from a file, as upstream systems do.

    $ sendwhy send requests.jsonl

    $ generate | sendwhy send -

    Lines are published as they are: what can't be read ends on dead.letters. Sending a file twice changes nothing.
    """
    import asyncio

    from sendwhy_cli.send import publish
    from sendwhy_cli.stack import find

    with terminal.command_errors():
        stack = find(place)
        if not stack.kafka:
            raise CommandError(
                Exit.USAGE, "send needs Kafka, so it works on a local stack only: name it by --state-dir"
            )
        with opened(file) as (lines, size), progress(size) as on_line:
            sent = asyncio.run(publish(stack.kafka, lines, on_line))
    rate = sent.acknowledged / max(sent.seconds, 0.001)
    print(f"{sent.acknowledged} requests published in {sent.seconds:.1f} s ({rate:.0f}/s)")
    if sent.unreadable:
        terminal.say(f"of these, {sent.unreadable} can't be read or name nobody to send to: they end on dead.letters")
    if sent.too_large or sent.failed:
        terminal.fail(
            CommandError(Exit.BAD_ANSWER, f"{sent.too_large} lines are too large, {sent.failed} were not acknowledged")
        )
    terminal.say(f"next: {place.command('why MESSAGE_ID')}   or {stack.services['message-log']}")


@contextmanager
def progress(size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, else a line every 10 s; hears of each line's bytes."""
    shown = terminal.console(stderr=True)
    if not shown.is_terminal:
        yield _plain_progress()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.fields[lines]} requests, {task.fields[rate]:.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shown, transient=True) as bar:
        task = bar.add_task("", total=size, lines=0, rate=0.0)
        started, lines = time.monotonic(), 0

        def on_line(length: int) -> None:
            nonlocal lines
            lines += 1
            if lines % 50 == 0:
                bar.update(task, lines=lines, rate=lines / max(time.monotonic() - started, 0.001))
            bar.advance(task, length)

        yield on_line


def _plain_progress() -> Callable[[int], None]:
    told, lines = time.monotonic(), 0

    def on_line(_length: int) -> None:
        nonlocal told, lines
        lines += 1
        if time.monotonic() - told >= PLAIN_PROGRESS_SECONDS:
            told = time.monotonic()
            terminal.say(f"{lines} requests")

    return on_line
