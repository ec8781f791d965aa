"""`sendwhy import`: brings a CSV file of contacts to consent, and tells what became of its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.stack import RunningStack

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

    workspace: str
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


class Importer:
    def __init__(self, stack: RunningStack) -> None:
        headers = {"authorization": f"Bearer {stack.admin_token}"}
        self._address = stack.services["consent"]
        self._http = httpx.Client(base_url=self._address, headers=headers, timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def take(self, file: IO[bytes], size: int | None, wanted: Wanted, tell: Tell) -> dict[str, Any]:
        """Upload the file, then wait until it is imported; the import's last state. `tell` hears of (what, done, total,
        rows). Raises CommandError."""
        path = f"/v1/workspaces/{quote(wanted.workspace, safe='')}/contacts/import"
        parameters = {f"map.{field}": column for field, column in wanted.columns.items()}
        headers = {"content-type": "text/csv", "prefer": "respond-async"}
        if wanted.is_dry:
            parameters["dry_run"] = "true"
        if size is not None:
            headers["content-length"] = str(size)
        body = _pieces(file, size, tell)
        answer = self._request("POST", path, content=body, params=parameters, headers=headers, timeout=PREVIEW_SECONDS)
        view: dict[str, Any] = answer.json()
        if wanted.is_dry:
            return view
        while view["state"] == "running":
            tell(
                "waits for an older import" if view["waiting"] else "imports",
                view["bytes_read"],
                view["bytes_total"],
                view["read"],
            )
            time.sleep(POLL_SECONDS)
            view = self._request("GET", answer.headers["location"]).json()
        return view

    def save_refused(self, view: dict[str, Any], path: Path) -> None:
        """The file of refused rows. Raises CommandError."""
        try:
            with path.open("wb") as out, self._http.stream("GET", view["result_file"]) as answer:
                _check(answer)
                for piece in answer.iter_bytes():
                    out.write(piece)
        except OSError as error:
            raise CommandError(Exit.USAGE, f"--refused {path}: {error.strerror}") from error
        except httpx.TransportError as error:
            raise self._unreachable(error) from error

    def _request(self, method: str, path: str, **more: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **more)
        except httpx.TransportError as error:
            raise self._unreachable(error) from error
        _check(answer)
        return answer

    def _unreachable(self, error: Exception) -> CommandError:
        return CommandError(
            Exit.UNREACHABLE,
            f"consent at {self._address} doesn't answer ({type(error).__name__}); the same file may be sent again:"
            " rows that are in change nothing",
        )


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        problem = answer.json()
        errors = "".join(f"\n  {one['field']}: {one['detail']}" for one in problem.get("errors", ()))
        detail = f"{problem['detail']}{errors}"
    except (ValueError, KeyError, TypeError, AttributeError):
        detail = f"consent answered {answer.status_code}"
    codes = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}
    usual = Exit.UNREACHABLE if answer.is_server_error else Exit.USAGE
    raise CommandError(codes.get(answer.status_code, usual), detail)


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
