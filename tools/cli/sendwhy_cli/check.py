"""`sendwhy check`: brings a file of send requests to the message log, and tells what would become of each."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote

import httpx
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sendwhy_cli.errors import CommandError, Exit
from sendwhy_cli.stack import RunningStack

PIECE_BYTES = 256 * 1024
POLL_SECONDS = 0.3
PLAIN_PROGRESS_SECONDS = 10.0
# A file of 100,000 lines is read before it is answered.
UPLOAD_SECONDS = 300.0

Tell = Callable[[int, int], None]


def saves_of(pairs: Sequence[str]) -> dict[str, Path]:
    """--save fails=FILE as a dictionary. Raises CommandError."""
    saves = {}
    for pair in pairs:
        group, equals, file = pair.partition("=")
        if not (group and equals and file):
            raise CommandError(Exit.USAGE, f"--save {pair}: write it as goes=FILE")
        saves[group] = Path(file)
    return saves


class Checker:
    def __init__(self, stack: RunningStack, workspace: str) -> None:
        self._address = stack.services["message-log"]
        self._path = f"/v1/workspaces/{quote(workspace, safe='')}/audience-checks"
        headers = {"authorization": f"Bearer {stack.admin_token}"}
        self._http = httpx.Client(base_url=self._address, headers=headers, timeout=60, trust_env=False)

    def close(self) -> None:
        self._http.close()

    def take(self, file: IO[bytes], name: str, tell: Tell) -> dict[str, Any]:
        """Upload the file and wait until it is judged; the check's last state. `tell` hears of (judged, lines). Raises
        CommandError."""
        body = iter(lambda: file.read(PIECE_BYTES), b"")
        view: dict[str, Any] = self._request(
            "POST", self._path, content=body, params={"name": name}, timeout=UPLOAD_SECONDS
        ).json()
        while view["state"] == "running":
            tell(view["judged"], view["lines"])
            time.sleep(POLL_SECONDS)
            view = self._request("GET", f"{self._path}/{view['id']}").json()
        if view["state"] != "judged":
            raise CommandError(Exit.UNREACHABLE, f"the check is {view['state']}: {view['told'] or 'begin it again'}")
        return view

    def save(self, view: dict[str, Any], group: str, path: Path) -> None:
        """A group's lines as they came, or those of all groups of an outcome. Raises CommandError."""
        known = {one["group"] for one in view["groups"]} | {one["outcome"] for one in view["groups"]}
        try:
            with path.open("wb") as out:
                if group not in known:
                    return
                address = f"{self._path}/{view['id']}/lines.jsonl"
                with self._http.stream("GET", address, params={"group": group}) as answer:
                    _check(answer)
                    for piece in answer.iter_bytes():
                        out.write(piece)
        except OSError as error:
            raise CommandError(Exit.USAGE, f"--save {group}={path}: {error.strerror}") from error
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
        detail = f"message-log at {self._address} doesn't answer ({type(error).__name__}); nothing was sent or charged"
        return CommandError(Exit.UNREACHABLE, detail)


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    answer.read()
    try:
        detail = str(answer.json()["detail"])
    except (ValueError, KeyError, TypeError):
        detail = f"message-log answered {answer.status_code}"
    codes = {401: Exit.NOT_ALLOWED, 403: Exit.NOT_ALLOWED, 404: Exit.NOT_FOUND}
    usual = Exit.UNREACHABLE if answer.is_server_error else Exit.USAGE
    raise CommandError(codes.get(answer.status_code, usual), detail)


def all_would_go(view: dict[str, Any]) -> bool:
    return bool(view["going"] == view["lines"])


@contextmanager
def progress(console: Console) -> Iterator[Tell]:
    """A bar with the time left on a terminal, else a line every 10 s."""
    if not console.is_terminal:
        told = time.monotonic()

        def say(judged: int, lines: int) -> None:
            nonlocal told
            if time.monotonic() - told >= PLAIN_PROGRESS_SECONDS:
                told = time.monotonic()
                console.print(f"{judged:,} of {lines:,} judged")

        yield say
        return
    columns = (TextColumn("judged"), BarColumn(), TextColumn("{task.completed:,.0f}"), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        yield lambda judged, lines: bar.update(task, completed=judged, total=lines)


def show(console: Console, view: dict[str, Any]) -> None:
    """For a person: the groups, the credits, the limits, and what could not be asked."""
    table = Table("lines", "what becomes of them", "what to do", box=None, pad_edge=False)
    for column in table.columns[:1]:
        column.justify = "right"
    for one in view["groups"]:
        table.add_row(f"{one['count']:,}", _cell(one), one["what_to_do"] or "")
    console.print(table)
    for line in _facts(view):
        console.print(line, markup=False, soft_wrap=True)


def _cell(group: dict[str, Any]) -> str:
    # A title and a detail are text, whatever brackets they hold.
    from rich.markup import escape

    said = f" ({group['service']})" if group["service"] else ""
    until = f", until {group['until_last']}" if group["until_last"] else ""
    example = group["example"] or {}
    where = f"\n  line {example['line']:,}: {example['detail']}" if example.get("detail") else ""
    return escape(f"{group['title']}{said}{until}  [{group['group']}]{where}")


def _facts(view: dict[str, Any]) -> Iterator[str]:
    credits = view["credits"]
    if credits["balance"] is None:
        yield "credits: the balance is not known"
    else:
        short = f": {credits['short']:,} short" if credits["short"] else ""
        yield f"credits: {credits['needed']:,} needed, {credits['balance']:,} there{short}"
    for one in view["people"]:
        yield (
            f"messaging limit of {one['portfolio']}: {one['limit']:,} people a day, {one['used']:,} used,"
            f" {one['taken']:,} of these would take, {one['left']:,} left after it"
        )
    for service, why in view["faults"].items():
        yield f"{service} could not be asked, so nothing it would say is a pass: {why}"
    yield f"{view['going']:,} of {view['lines']:,} would go; nothing was sent or charged"
