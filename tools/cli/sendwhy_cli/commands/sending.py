"""`sendwhy send`: requests from a file, as an upstream system publishes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sendwhy_cli import terminal
from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.files import opened
from sendwhy_cli.options import Place, grouped

if TYPE_CHECKING:
    from sendwhy.settings import KafkaSettings

    from sendwhy_cli.progress import Tell

TOLD_EVERY = 50


def install(app: typer.Typer) -> None:
    app.command(epilog=HELP)(grouped(send))


def send(
    file: Annotated[Path, typer.Argument(help="Request bodies, one JSON object a line; - for stdin.")],
    place: Place,
    by_settings: Annotated[
        bool, typer.Option("--kafka-settings", help="To the Kafka of the SENDWHY_KAFKA_ settings, no local stack's.")
    ] = False,
) -> None:
    """Publish send requests from a file, as upstream systems do.

    $ sendwhy send requests.jsonl

    $ generate | sendwhy send -

    $ SENDWHY_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 sendwhy send requests.jsonl --kafka-settings

    Lines are published as they are: what can't be read ends on dead.letters. Sending a file twice changes nothing.
    """
    import asyncio

    from sendwhy_cli.progress import progress
    from sendwhy_cli.send import publish

    with terminal.command_errors():
        kafka, pages = _kafka_of(place, by_settings=by_settings)
        with opened(file) as (lines, size), progress() as tell:
            sent = asyncio.run(publish(kafka, lines, _counting(tell, size)))
    rate = sent.acknowledged / max(sent.seconds, 0.001)
    print(f"{sent.acknowledged} requests published in {sent.seconds:.1f} s ({rate:.0f}/s)")
    if sent.unreadable:
        terminal.say(f"of these, {sent.unreadable} can't be read or name nobody to send to: they end on dead.letters")
    if sent.too_large or sent.failed:
        terminal.fail(
            CommandError(Exit.BAD_ANSWER, f"{sent.too_large} lines are too large, {sent.failed} were not acknowledged")
        )
    if pages:
        terminal.say(f"next: {place.command('why MESSAGE_ID')}   or {pages}")


def _kafka_of(place: Place, *, by_settings: bool) -> tuple[str | KafkaSettings, str | None]:
    """The Kafka to publish to, and the address of its pages where that is known."""
    from sendwhy.settings import KafkaSettings, load

    from sendwhy_cli.stack import find

    if by_settings:
        return load(KafkaSettings), None
    stack = find(place)
    if not stack.kafka:
        raise CommandError(
            Exit.USAGE, "send needs Kafka: name a local stack by --state-dir, or another Kafka by --kafka-settings"
        )
    return stack.kafka, stack.services["message-log"]


def _counting(tell: Tell, size: int | None) -> Callable[[int], None]:
    """Hears of each line's bytes."""
    from sendwhy_cli.progress import Rate

    rate, lines, read = Rate(), 0, 0

    def on_line(length: int) -> None:
        nonlocal lines, read
        lines, read = lines + 1, read + length
        if lines % TOLD_EVERY == 1:
            tell("publishes", read, size, f"{lines:,} requests, {rate.of(lines):,.0f}/s")

    return on_line
