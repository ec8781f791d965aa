"""`sendwhy up`'s stack, driven by a test: nothing starts again by itself, services end and start by hand."""

import asyncio
import signal
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from local_stack.process import Command
from local_stack.progress import Progress
from local_stack.services import PREFIX, SERVICES, module_of
from local_stack.supervisor import Options, Stack


class HeldStack(Stack):
    """An empty stack. `pythons`: by service, another interpreter that runs it, with another release in it."""

    def __init__(self, state_dir: Path) -> None:
        super().__init__(Options(state_dir, empty=True), Progress())
        self.pythons: dict[str, str] = {}

    @property
    def file(self) -> Path:
        return self._state.path / "stack.json"

    @property
    def logs(self) -> Path:
        return self._state.logs

    @property
    def postgres_url(self) -> str:
        return self._postgres.url

    def settings(self, service: str) -> dict[str, str]:
        """The service's own settings, as its process is told them."""
        return {name: value for name, value in self._environment(service).items() if name.startswith(PREFIX)}

    def _command(self, name: str) -> Command:
        usual = super()._command(name)
        return replace(usual, argv=[self.pythons.get(name, usual.argv[0]), *usual.argv[1:]])

    async def kill_services(self) -> None:
        await asyncio.gather(*(self._processes[service].kill() for service in SERVICES))

    async def end_services(self, services: Iterable[str] = SERVICES) -> None:
        for service in services:
            self._processes[service].signal(signal.SIGTERM)
        await asyncio.gather(*(self._processes[service].wait() for service in services))

    def start_service(self, service: str) -> None:
        self._spawn(service)

    async def exit_code(self, service: str) -> int:
        """How a process that can't stay ends."""
        return await asyncio.wait_for(self._processes[service].wait(), 90)

    async def serve(self, services: Iterable[str] = SERVICES) -> None:
        """Start services and wait until they answer."""
        for service in services:
            self._spawn(service)
        for service in services:
            await self._until_answers(service, f"http://127.0.0.1:{self._ports[service]}/readyz")
        self._write_stack_json()

    def write_settings(self, folder: Path) -> None:
        """A file of settings for each service, as a shell reads them."""
        folder.mkdir()
        for service in SERVICES:
            lines = [f"{name}='{value}'" for name, value in self.settings(service).items()]
            (folder / f"{module_of(service)}.env").write_text("\n".join(lines))
