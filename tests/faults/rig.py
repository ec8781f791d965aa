"""The whole system under faults: Kafka, PostgreSQL and two of every service (stack.py), the proxies between them, the
simulator of Meta, and balancers in front of the doors. What the rig itself starts is no part of the product."""

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from balancer import Balancer
from groups import Groups
from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.process import Command, Process
from local_stack.services import PREFIX, SERVICES
from local_stack.state import StateDir
from outside import until
from stack import SIMULATOR, WAL_MOUNT, Control, choose_links, replicas_of
from toxiproxy import Link, Toxiproxy

Json = dict[str, Any]
HERE = Path(__file__).parent
START_SECONDS = 300.0
BACK_SECONDS = 300.0
CHECK_SECONDS = 1.0
WAL_BYTES = 640 * 2**20
BOOKS_KEPT = 1_000_000
CLONE_NEWNS = 0x00020000
# What shortens the waits, and what a balancer in front needs.
SETTINGS = {
    "UNKNOWN_OUTCOME_SECONDS": "20",
    "META_CONNECT_TIMEOUT_SECONDS": "2",
    # Not shorter: on a machine that is busy with other things an answer takes seconds.
    "META_READ_TIMEOUT_SECONDS": "10",
    "DRAIN_SECONDS": "3",
}


@dataclass
class Rig:
    """`replicas`: of each service. `no_small_disk`: why the write-ahead log has no disk of its own, or empty."""

    state_dir: Path
    replicas: int
    settings: dict[str, str] = field(default_factory=dict)
    no_small_disk: str = ""
    fronts: dict[str, Balancer] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.state = StateDir(self.state_dir)
        self.janitor = Janitor()
        self.links: list[Link] = choose_links(self.state, self.replicas)
        self.control = Control(self.state_dir)
        self.groups = Groups(lambda: self.bootstrap)
        self.http = httpx.AsyncClient(timeout=60, trust_env=False)
        self._stack: subprocess.Popen[bytes] | None = None
        ports = self.state.ports("toxiproxy", SIMULATOR)
        self.meta_url = f"http://127.0.0.1:{ports[SIMULATOR]}"
        self.proxies = Toxiproxy(ports["toxiproxy"], self.janitor, self.state.logs)

    # --- the start and the end ---

    async def start(self) -> None:
        # In this thread: a mount name space is a thread's own, and what it starts inherits it.
        self.no_small_disk = self._mount()
        self._simulator = self._start_simulator()
        await self.proxies.start(self.links)
        await self.start_stack()

    def _mount(self) -> str:
        """A small file system for the write-ahead log, gone with this process. Returns why there is none."""
        if os.geteuid() != 0:
            return "only root may mount a small file system"
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS) != 0:
            return f"no mounts of our own: {os.strerror(ctypes.get_errno())}"
        where = self.state_dir / WAL_MOUNT
        where.mkdir(exist_ok=True, mode=0o711)
        commands = (
            ["mount", "--make-rprivate", "/"],
            ["mount", "-t", "tmpfs", "-o", f"size={WAL_BYTES},mode=711", "tmpfs", str(where)],
        )
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                where.rmdir()
                return f"mount: {done.stderr.strip()}"
        return ""

    def _start_simulator(self) -> Process:
        where = ["--host", "127.0.0.1", "--port", self.meta_url.rpartition(":")[2], "--keep", str(BOOKS_KEPT)]
        return Process(Command("meta", [sys.executable, "-m", "meta_simulator", *where]), self.state.logs, self.janitor)

    async def start_stack(self) -> None:
        (self.state_dir / "stack.json").unlink(missing_ok=True)
        settings = {PREFIX + name: value for name, value in (SETTINGS | self.settings).items()}
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        command = [sys.executable, str(HERE / "stack.py"), str(self.state_dir), str(self.replicas), self.meta_url]
        with (self.state.logs / "supervisor.log").open("ab") as log:
            # Awaiting it would hand it to a thread, with whose end it would end (see Process).
            self._stack = subprocess.Popen(  # noqa: ASYNC220
                command, stdout=log, stderr=log, env=inherited | settings, start_new_session=True
            )
        self.janitor.watch(self._stack.pid, signal.SIGTERM)

        async def is_there() -> bool:
            if self._stack is not None and self._stack.poll() is not None:
                raise StackError(f"the stack ended: {(self.state.logs / 'supervisor.log').read_text()[-3000:]}")
            return (self.state_dir / "stack.json").exists()

        await until(is_there, "the stack is ready", START_SECONDS)

    async def stop(self) -> None:
        if self._stack is not None and self._stack.poll() is None:
            self._stack.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._stack.wait, 120)
        await self.groups.close()
        await self.proxies.stop()
        await self._simulator.kill()
        await self.http.aclose()
        self.janitor.close()
        if not self.no_small_disk:
            await asyncio.to_thread(subprocess.run, ["umount", "-l", str(self.state_dir / WAL_MOUNT)], check=False)

    async def kill_stack(self) -> None:
        """kill -9 of the supervisor: all that it started goes with it, and a new one starts on what is left."""
        assert self._stack is not None
        before = psutil.Process(self._stack.pid).children(recursive=True)
        self._stack.kill()
        self.janitor.forget(self._stack.pid)
        await asyncio.to_thread(self._stack.wait)

        async def all_gone() -> bool:
            return not any(one.is_running() and one.status() != psutil.STATUS_ZOMBIE for one in before)

        await until(all_gone, "nothing outlives the stack", 60)
        await self.start_stack()

    @asynccontextmanager
    async def balanced(self, services: Iterable[str]) -> AsyncIterator[None]:
        async with AsyncExitStack() as opened:
            for service in services:
                balancer = Balancer(self.stack["replicas"][service], check_seconds=CHECK_SECONDS)
                self.fronts[service] = await opened.enter_async_context(balancer.listening())
            yield

    # --- what runs ---

    @property
    def stack(self) -> Json:
        told: Json = json.loads((self.state_dir / "stack.json").read_bytes())
        return told

    @property
    def bootstrap(self) -> str:
        return str(self.stack["kafka"])

    def processes(self, *services: str) -> list[str]:
        return [name for service in services or SERVICES for name in replicas_of(service, self.replicas)]

    def pid(self, name: str) -> int:
        """Of a process, or of kafka or postgres."""
        service, _, number = name.rpartition("-")
        if number.isdigit() and service in SERVICES:
            return int(self.stack["pids"][service][int(number) - 1])
        return int(self.stack["pids"][name][0])

    def url(self, name: str) -> str:
        service, _, number = name.rpartition("-")
        if number.isdigit() and service in SERVICES:
            return str(self.stack["replicas"][service][int(number) - 1])
        return str(self.stack["services"][name])

    def signal(self, name: str, number: signal.Signals, *, tree: bool = False) -> None:
        """What is gone already needs none. `tree`: also to all that it started."""
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            pid = self.pid(name)
            children = psutil.Process(pid).children(recursive=True) if tree else []
            os.kill(pid, number)
            for child in children:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.send_signal(number)

    def end(self, name: str) -> None:
        """In good order."""
        self.signal(name, signal.SIGTERM)

    def environment_of(self, name: str) -> dict[str, str]:
        """What a running process was told."""
        return psutil.Process(self.pid(name)).environ()

    async def replaced(self, name: str, old: int) -> None:
        async def is_new() -> bool:
            return self.pid(name) != old and psutil.pid_exists(self.pid(name))

        await until(is_new, f"{name} is started again", BACK_SECONDS)

    async def is_ready(self, name: str) -> bool:
        try:
            return (await self.http.get(f"{self.url(name)}/readyz", timeout=5)).status_code == 200
        except httpx.HTTPError:
            return False

    async def all_ready(self) -> bool:
        return all(await asyncio.gather(*(self.is_ready(name) for name in self.processes())))

    async def ready(self, *names: str, seconds: float = BACK_SECONDS) -> None:
        async def are() -> bool:
            return all(await asyncio.gather(*(self.is_ready(name) for name in names or self.processes())))

        await until(are, f"{', '.join(names) or 'all'} ready", seconds)

    async def sim(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = await self.http.request(method, f"{self.meta_url}/_sim{path}", json=body)
        answer.raise_for_status()
        return answer

    async def lag(self) -> int:
        """Of all groups together. Raises KafkaError while Kafka is away."""
        return sum(max(0, each.lag) for each in await self.groups.lags())
