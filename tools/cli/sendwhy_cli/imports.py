"""`sendwhy import`: brings a CSV file of contacts to consent, and tells what became of its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sendwhy_cli.client import Client
from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.files import written
from sendwhy_cli.services import CONSENT
from sendwhy_cli.terminal import unknown_shape

PIECE_BYTES = 256 * 1024
POLL_SECONDS = 0.3
PLAIN_PROGRESS_SECONDS = 10.0
# A preview reads the whole file before it answers.
PREVIEW_SECONDS = 1800.0
SHOWN = 10
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

Tell = Callable[[str, int, int, int], None]


@dataclass(frozen=True)
class Wanted:
    """`columns`: a field's column by field, as in phone=Mobile."""

    columns: dict[str, str]
    is_dry: bool


def columns_of(pairs: Sequence[str]) -> dict[str, str]:
    """--map phone=Column as a dictionary. Raises CommandError."""
    columns = {}
    for pair in pairs:
        field, equals, column = pair.partition("=")
        if not (field and equals):
            raise CommandError(Exit.USAGE, f"--map {pair}: write it as phone=Column")
        columns[field.strip()] = column
    return columns


def take(client: Client, file: IO[bytes], size: int | None, wanted: Wanted, tell: Tell) -> dict[str, Any]:
    """Upload the file, then wait until it is imported; the import's last state. `tell` hears of (what, done, total,
    rows). Raises CommandError."""
    parameters = {f"map.{field}": column for field, column in wanted.columns.items()}
    headers = {"content-type": "text/csv", "prefer": "respond-async"}
    if wanted.is_dry:
        parameters["dry_run"] = "true"
    if size is not None:
        headers["content-length"] = str(size)
    try:
        view = client.ask(
            "POST",
            CONSENT,
            "contacts",
            "import",
            content=_pieces(file, size, tell),
            params=parameters,
            headers=headers,
            timeout=httpx.Timeout(PREVIEW_SECONDS, connect=5),
        )
        while view["state"] == "running" and not wanted.is_dry:
            tell(
                "waits for an older import" if view["waiting"] else "imports",
                view["bytes_read"],
                view["bytes_total"],
                view["read"],
            )
            time.sleep(POLL_SECONDS)
            view = client.get(CONSENT, "contacts", "imports", view["import_id"])
    except CommandError as error:
        if error.code is not Exit.UNREACHABLE:
            raise
        sentence = f"{error}; the same file may be sent again: rows that are in change nothing"
        raise CommandError(error.code, sentence, error.problem) from error
    except (KeyError, TypeError) as error:
        raise unknown_shape(error) from error
    return dict(view)


def save_refused(client: Client, view: dict[str, Any], path: Path) -> None:
    """The file of refused rows. Raises CommandError."""
    with written(path, "--refused ") as out:
        client.download(out.write, CONSENT, "contacts", "imports", view["import_id"], "refused.csv")


def _pieces(file: IO[bytes], size: int | None, tell: Tell) -> Iterator[bytes]:
    sent = 0
    while piece := file.read(PIECE_BYTES):
        yield piece
        sent += len(piece)
        tell("uploads", sent, size or sent, 0)


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """A bar with rows and rate on a terminal, else a line every 10 s."""
    if not console.is_terminal:
        yield _plain(console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rows]}"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task: TaskID = bar.add_task("uploads", total=None, rows="")
        rate = _Rate()

        def tell(what: str, done: int, total: int, rows: int) -> None:
            told = f"{rows:,} rows, {rate.of(rows):,.0f}/s" if rows else f"{done / 1e6:,.1f} MB"
            bar.update(task, description=what, completed=done, total=total, rows=told)

        yield tell


class _Rate:
    """Rows a second since the first that was told."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def of(self, rows: int) -> float:
        now = time.monotonic()
        self._start = self._start or (now, rows)
        return (rows - self._start[1]) / max(now - self._start[0], 0.001)


def _plain(console: Console) -> Tell:
    told = time.monotonic()

    def tell(what: str, done: int, total: int, rows: int) -> None:
        nonlocal told
        if time.monotonic() - told >= PLAIN_PROGRESS_SECONDS:
            told = time.monotonic()
            console.print(f"{what}: {done / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rows:,} rows")

    return tell


def show(view: dict[str, Any]) -> Iterator[str]:
    """The lines for a person."""
    kind = "would be imported" if view["dry_run"] else "imported"
    yield (
        f"{view['imported']:,} of {view['read']:,} rows {kind} ({view['unchanged']:,} say what already stood),"
        f" {view['refused_count']:,} refused"
    )
    columns = ", ".join(f"{field} = {column!r}" for field, column in view["mapping"].items())
    separator = SEPARATORS.get(view["separator"], repr(view["separator"]))
    yield f"read as {view['encoding']}, separated by {separator}: {columns}"
    if view["ignored"]:
        yield f"ignored columns: {', '.join(map(repr, view['ignored']))}"
    if view["repeated_count"]:
        first = view["repeated"][0]
        yield (
            f"{view['repeated_count']:,} rows are on a contact that an earlier row names too, the later one holds:"
            f" row {first['row']} repeats row {first['earlier_row']}"
        )
    for one in view["refused"][:SHOWN]:
        yield f"  row {one['row']}: {one['field'] + ': ' if one['field'] else ''}{one['detail']}"
    if view["refused_count"] > SHOWN:
        yield f"  and {view['refused_count'] - min(SHOWN, len(view['refused'])):,} more"
    if view["fault"]:
        yield f"failed: {view['fault']}"
