"""The commands. What a command needs is imported when it runs: `--help` answers at once."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Annotated, NoReturn

import typer
from rich.console import Console

from sendwhy_cli.errors import HELP, CommandError, Exit

app = typer.Typer(
    name="sendwhy",
    help="Every WhatsApp message ends in blue ticks or in a reason.",
    epilog=HELP,
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StateDir = Annotated[Path, typer.Option("--state-dir", help="The stack's directory.", show_default=True)]
Workspace = Annotated[str, typer.Option("--workspace", "-w", help="The workspace.", show_default=True)]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
STATE_DIR = Path(".state")
WORKSPACE = "demo"
DEMO_STATE_DIR = STATE_DIR / "demo"
DEMO_DATA = Path("demo")
PLAIN_PROGRESS_SECONDS = 10.0


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
    """Every WhatsApp message ends in blue ticks or in a reason."""


@app.command(epilog=HELP)
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
    """Run everything on this machine: Kafka, PostgreSQL, a simulated Meta and all services.

    $ sendwhy up --state-dir /tmp/sendwhy --replicas billing=2

    DIR/stack.json says where everything is as soon as all is ready. Ctrl-C stops; the data stay in DIR.
    """
    from local_stack.errors import StackError
    from local_stack.progress import Progress
    from local_stack.supervisor import Options, up

    try:
        options = Options(state_dir, _counts(replicas or []), empty, meta_url)
        raise typer.Exit(asyncio.run(up(options, Progress())))
    except StackError as error:
        _fail(CommandError(Exit(error.exit_code), str(error)))


@app.command(epilog=HELP)
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
    """Send sample requests through the whole product and tell what became of each, by reason.

    $ sendwhy demo

    $ sendwhy demo --exit --report out.json

    The pages stay until Ctrl-C, which ends everything. Exits 1 if a request has no outcome.
    """
    from sendwhy_cli.demo import run

    with _command_errors():
        code = run(state_dir, data, report, stays=not leave)
    raise typer.Exit(code)


@app.command(epilog=HELP)
def fetch() -> None:
    """Download Kafka and prepare Java for it, once a machine, so that `sendwhy up` starts fast."""
    from local_stack.errors import StackError
    from local_stack.kafka import fetch
    from local_stack.kafka_files import KafkaFiles
    from local_stack.progress import Progress

    files = KafkaFiles()
    try:
        with Progress().step("Kafka's files"):
            asyncio.run(fetch(files))
    except StackError as error:
        _fail(CommandError(Exit.UNREACHABLE, str(error)))
    print(files.jars)


@app.command(epilog=HELP)
def send(
    file: Annotated[Path, typer.Argument(help="Request bodies, one JSON object a line; - for stdin.")],
    by_settings: Annotated[
        bool, typer.Option("--kafka-settings", help="To the Kafka of the SENDWHY_KAFKA_ settings, no local stack's.")
    ] = False,
    state_dir: StateDir = STATE_DIR,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Publish send requests, one a line, as an upstream system would.

    $ sendwhy send requests.jsonl

    $ generate | sendwhy send -

    $ SENDWHY_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 sendwhy send requests.jsonl --kafka-settings

    Lines are published as they are: what can't be read ends on dead.letters. Sending a file twice changes nothing.
    """
    from sendwhy.settings import KafkaSettings, load

    from sendwhy_cli.send import publish
    from sendwhy_cli.stack import find_stack

    with _command_errors():
        stack = None if by_settings else find_stack(state_dir)
        with _opened(file) as (lines, size), _progress(size) as on_line:
            sent = asyncio.run(publish(stack.kafka if stack else load(KafkaSettings), lines, on_line))
    rate = sent.acknowledged / max(sent.seconds, 0.001)
    print(f"{sent.acknowledged} requests published in {sent.seconds:.1f} s ({rate:.0f}/s)")
    if sent.unreadable:
        _say(f"of these, {sent.unreadable} can't be read or name nobody to send to: they end on dead.letters")
    if sent.too_large or sent.failed:
        _fail(
            CommandError(Exit.BAD_ANSWER, f"{sent.too_large} lines are too large, {sent.failed} were not acknowledged")
        )
    if stack:
        why = _on_this_stack(f"sendwhy why MESSAGE_ID --workspace {shlex.quote(workspace)}", state_dir)
        _say(f"next: {why}   or {stack.services['message-log']}")


@app.command("import", epilog=HELP)
def import_contacts(
    file: Annotated[Path, typer.Argument(help="A CSV file of contacts; - for stdin.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and judge all rows, store nothing.")] = False,
    columns: Annotated[
        list[str] | None, typer.Option("--map", help="A field's column, as in phone=Mobile. Repeatable.")
    ] = None,
    refused: Annotated[
        Path | None, typer.Option("--refused", help="Write every refused row and why to this file, as CSV.")
    ] = None,
    as_json: Json = False,
    state_dir: StateDir = STATE_DIR,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Import contacts from a CSV file. Exits 1 if a row was refused.

    $ sendwhy import customers.csv --dry-run

    $ sendwhy import customers.csv --map phone=Mobile --refused refused.csv

    Columns are found by their names, in many languages. The same file again changes nothing that is already so.
    """
    from sendwhy_cli.imports import Importer, Wanted, columns_of, progress, show
    from sendwhy_cli.stack import find_stack

    with _command_errors():
        wanted = Wanted(workspace, columns_of(columns or []), dry_run)
        if refused is not None and dry_run:
            raise CommandError(Exit.USAGE, "--refused goes with an import, not with --dry-run: a preview keeps no rows")
        importer = Importer(find_stack(state_dir))
        try:
            with _opened(file) as (opened, size), progress(Console(stderr=True)) as tell:
                view = importer.take(opened, size, wanted, tell)
            if refused is not None:
                importer.save_refused(view, refused)
        finally:
            importer.close()
    if as_json:
        print(json.dumps(view, ensure_ascii=False))
    else:
        print("\n".join(show(view)))
        if view["refused_count"] and refused is None and not dry_run:
            _say("next: the same with --refused FILE.csv writes every refused row and why")
    raise typer.Exit(Exit.BAD_ANSWER if view["refused_count"] or view["state"] == "failed" else Exit.DONE)


@app.command(epilog=HELP)
def explain(
    code: Annotated[list[str], typer.Argument(help="A code, a title, another name of it, or Meta's number.")],
    as_json: Json = False,
    state_dir: StateDir = STATE_DIR,  # noqa: ARG001  taken by every command
    workspace: Workspace = WORKSPACE,  # noqa: ARG001
) -> None:
    """Tell what a reason means, why it happens and what to do.

    $ sendwhy explain INSUFFICIENT_CREDITS

    $ sendwhy explain 131026

    $ sendwhy explain "invalid whatsapp number"
    """
    from sendwhy_cli.explain import as_json as entry_as_json
    from sendwhy_cli.explain import find, show, suggest

    words = " ".join(code)
    found = find(words)
    if not found:
        similar = "".join(f"\n  sendwhy explain {name}" for name in suggest(words))
        _fail(
            CommandError(Exit.NOT_FOUND, f"no reason is called {words!r}{'; did you mean' if similar else ''}{similar}")
        )
    for name in found:
        if as_json:
            print(json.dumps(entry_as_json(name), ensure_ascii=False))
        else:
            show(_stdout(), name)
            print()


@app.command(epilog=HELP)
def why(
    message_id: Annotated[str, typer.Argument(help="The message_id of the request.")],
    as_json: Json = False,
    state_dir: StateDir = STATE_DIR,
    workspace: Workspace = WORKSPACE,
) -> None:
    """Show what became of one message, event by event. Exits 1 for a failed one.

    $ sendwhy why bf-2026-000017 --workspace acme
    """
    from sendwhy_cli.stack import find_stack
    from sendwhy_cli.why import fetch, page_of, show

    with _command_errors():
        stack = find_stack(state_dir)
        message = fetch(stack, workspace, message_id)
    if as_json:
        print(json.dumps(message, ensure_ascii=False))
    else:
        show(_stdout(), message)
        print(page_of(stack, workspace, message))
        if reason := message.get("reason"):
            _say(f"next: {_on_this_stack('sendwhy explain ' + reason['code'], state_dir)}")
    raise typer.Exit(Exit.BAD_ANSWER if message["status"] == "failed" else Exit.DONE)


def _on_this_stack(command: str, state_dir: Path) -> str:
    """The command as it works for whoever copies it."""
    return command if state_dir == STATE_DIR else f"{command} --state-dir {shlex.quote(str(state_dir))}"


def _counts(pairs: list[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for pair in pairs:
        name, _, count = pair.partition("=")
        if not count.isdecimal():
            _fail(CommandError(Exit.USAGE, f"--replicas {pair}: write it as billing=2"))
        counts[name] = int(count)
    return counts


@contextmanager
def _opened(file: Path) -> Iterator[tuple[IO[bytes], int | None]]:
    """The file, and its size in bytes where it is known."""
    if str(file) == "-":
        yield sys.stdin.buffer, None
        return
    try:
        opened = file.open("rb")
    except OSError as error:
        raise CommandError(Exit.USAGE, f"{file}: {error.strerror}") from error
    with opened:
        yield opened, os.fstat(opened.fileno()).st_size or None


@contextmanager
def _progress(size: int | None) -> Iterator[Callable[[int], None]]:
    """A bar with rate and time left on a terminal, else a line every 10 s; hears of each line's bytes."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _plain_progress()
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        TextColumn("{task.fields[lines]} requests, {task.fields[rate]:.0f}/s"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
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
            _say(f"{lines} requests")

    return on_line


@contextmanager
def _command_errors() -> Iterator[None]:
    try:
        yield
    except CommandError as error:
        _fail(error)


def _fail(error: CommandError) -> NoReturn:
    _say(f"sendwhy: {error}")
    raise typer.Exit(error.code)


def _say(text: str) -> None:
    print(text, file=sys.stderr)


def _stdout() -> Console:
    return Console(highlight=False)
