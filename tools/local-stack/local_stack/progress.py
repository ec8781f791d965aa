"""What `sendwhy up` says while it works: on stderr, with a spinner on a terminal, else plain lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status


class Progress:
    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._running: list[str] = []
        self._status: Status | None = None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Steps may overlap; each is told with its seconds when it is done."""
        started = time.monotonic()
        self._running.append(name)
        self._show()
        try:
            yield
        except BaseException:
            self._end(name)
            raise
        self._end(name)
        self.console.print(f"{name:<16} [green]✓[/green] {time.monotonic() - started:.1f} s")

    def say(self, text: str) -> None:
        self.console.print(text, markup=False)

    def _end(self, name: str) -> None:
        self._running.remove(name)
        self._show()

    def _show(self) -> None:
        if not self.console.is_terminal:
            return
        if self._status is None:
            self._status = self.console.status("")
        self._status.update(f"{', '.join(self._running)} …")
        if self._running:
            self._status.start()
        else:
            self._status.stop()
