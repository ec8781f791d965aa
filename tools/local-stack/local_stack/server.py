"""What Kafka and PostgreSQL have in common here: made ready once, started, asked until they answer, stopped."""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Self

from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.process import Command, Process, ProcessEndedError
from local_stack.state import StateDir

START_SECONDS = 120.0
STOP_SECONDS = 20.0
START_TRIES = 3


class Server(ABC):
    """A server with its data in `state_dir`; `async with` starts and stops it.

    Without a janitor it brings its own, so that a killed test run leaves nothing behind either.
    """

    def __init__(self, state_dir: Path, janitor: Janitor | None = None) -> None:
        self.state = StateDir(state_dir)
        self._janitor = janitor
        self._own_janitor: Janitor | None = None
        self._process: Process | None = None

    @property
    def process(self) -> Process:
        assert self._process is not None, f"{type(self).__name__} has not been started"
        return self._process

    @property
    def started(self) -> bool:
        return self._process is not None

    async def start(self) -> None:
        """Returns when the server answers. Raises StackError with the end of its log if it doesn't in 120 s."""
        await self.prepare()
        if self._janitor is None:
            self._janitor = self._own_janitor = Janitor()
        try:
            await self._start(self._janitor)
        except BaseException:
            await self.stop()
            raise

    async def _start(self, janitor: Janitor) -> None:
        for tries_left in reversed(range(START_TRIES)):
            self._process = Process(self.command(), self.state.logs, janitor)
            try:
                await self._wait_until_ready(self._process)
                return
            except ProcessEndedError:
                # Somebody took the port, or a predecessor is still letting go of the data: once more.
                if not tries_left:
                    raise
                await asyncio.sleep(1)

    async def _wait_until_ready(self, process: Process) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not await self.answers():
            process.check_alive()
            if time.monotonic() > deadline:
                raise StackError(f"{process.name} is not ready after {START_SECONDS:.0f} s; see {process.log}")
            await asyncio.sleep(0.03)

    async def stop(self) -> None:
        if self._process is not None:
            await self._process.stop(STOP_SECONDS)
        if self._own_janitor is not None:
            self._own_janitor.close()
            self._janitor = self._own_janitor = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @abstractmethod
    async def prepare(self) -> None:
        """Whatever must be there before a first start."""

    @abstractmethod
    def command(self) -> Command:
        """Chooses the ports and says what to start on them."""

    @abstractmethod
    async def answers(self) -> bool: ...
