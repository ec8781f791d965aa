"""How far a long run is, on stderr."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sendwhy_cli import terminal

LINE_SECONDS = 10.0

# What is done, how much of it, of how much (None: nobody knows), and a word on it.
Tell = Callable[[str, int, int | None, str], None]


@contextmanager
def progress() -> Iterator[Tell]:
    """A bar with the time left on a terminal, else a line every 10 s."""
    shown = terminal.console(stderr=True)
    if not shown.is_terminal:
        yield _line_by_line()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=shown, transient=True) as bar:
        task = bar.add_task("", total=None, note="")
        yield lambda what, done, total, note: bar.update(task, description=what, completed=done, total=total, note=note)


def _line_by_line() -> Tell:
    told = time.monotonic()

    def tell(what: str, done: int, total: int | None, note: str) -> None:
        nonlocal told
        if time.monotonic() - told >= LINE_SECONDS:
            told = time.monotonic()
            part = f" {done / total:.0%}," if total else ""
            terminal.say(f"{what}:{part} {note}")

    return tell


class Rate:
    """How many a second since the first that was told."""

    def __init__(self) -> None:
        self._start: tuple[float, int] | None = None

    def of(self, count: int) -> float:
        now = time.monotonic()
        self._start = self._start or (now, count)
        return (count - self._start[1]) / max(now - self._start[0], 0.001)
