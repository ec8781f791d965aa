"""What runs Sendwhy on this machine: up, demo, fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sendwhy_cli.errors import HELP, CommandError, Exit
from sendwhy_cli.options import STATE_DIR, StateDir
from sendwhy_cli.terminal import command_errors, fail

DEMO_STATE_DIR = STATE_DIR / "demo"
DEMO_DATA = Path("demo")


def install(app: typer.Typer) -> None:
    for command in (demo, up, fetch):
        app.command(epilog=HELP)(command)


def up(
    state_dir: StateDir = STATE_DIR,
    replicas: Annotated[
        list[str] | None, typer.Option("--replicas", help="Processes of a service, as in billing=2. Repeatable.")
    ] = None,
    empty: Annotated[bool, typer.Option("--empty", help="No demo workspace.")] = False,
    meta_url: Annotated[
        str | None, typer.Option("--meta-url", help="Another Meta than the simulator; implies --empty.")
    ] = None,
) -> None:
    """Run everything on this machine, with a simulated Meta.

    $ sendwhy up --state-dir /tmp/sendwhy --replicas billing=2

    That is Kafka, PostgreSQL, the simulator and all services. DIR/stack.json says where everything is as soon as all
    is ready. Ctrl-C stops; the data stay in DIR.
    """
    import asyncio

    from local_stack.errors import StackError
    from local_stack.progress import Progress
    from local_stack.supervisor import Options, up

    try:
        options = Options(state_dir, _counts(replicas or []), empty, meta_url)
        raise typer.Exit(asyncio.run(up(options, Progress())))
    except StackError as error:
        fail(CommandError(Exit(error.exit_code), str(error)))


def demo(
    leave: Annotated[bool, typer.Option("--exit", help="End when all outcomes are told.")] = False,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write every request's outcome to this file, as JSON.")
    ] = None,
    state_dir: Annotated[
        Path, typer.Option("--state-dir", help="Empty, or a former demo's: that is removed.", show_default=True)
    ] = DEMO_STATE_DIR,
    data: Annotated[Path, typer.Option("--data", help="The folder with the demo's data.")] = DEMO_DATA,
) -> None:
    """Send sample requests, and tell what became of each.

    $ sendwhy demo

    $ sendwhy demo --exit --report out.json

    The pages stay until Ctrl-C, which ends everything. Exits 1 if a request has no outcome.
    """
    from sendwhy_cli.demo import run

    with command_errors():
        code = run(state_dir, data, report, stays=not leave)
    raise typer.Exit(code)


def fetch() -> None:
    """Download Kafka and prepare Java for it, once a machine.

    $ sendwhy fetch

    `sendwhy up` does it too, but starts fast when it is done.
    """
    import asyncio

    from local_stack.errors import StackError
    from local_stack.kafka import fetch
    from local_stack.kafka_files import KafkaFiles
    from local_stack.progress import Progress

    files = KafkaFiles()
    try:
        with Progress().step("Kafka's files"):
            asyncio.run(fetch(files))
    except StackError as error:
        fail(CommandError(Exit.UNREACHABLE, str(error)))
    print(files.jars)


def _counts(pairs: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if not count.isdecimal():
            fail(CommandError(Exit.USAGE, f"--replicas {pair}: write it as billing=2"))
        counts[name] = int(count)
    return counts
