"""`sendwhy up`: Kafka, PostgreSQL, the simulator and all services in the foreground, until told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit

import httpx

from local_stack import demo
from local_stack.errors import StackError, WrongUseError
from local_stack.janitor import Janitor
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from local_stack.process import Command, Process, last_line
from local_stack.progress import Progress
from local_stack.server import Server
from local_stack.services import (
    META_APP_ID,
    PREFIX,
    SERVICES,
    environment,
    make_credentials,
    module_of,
    settings_of_caller,
)
from local_stack.state import StateDir

READY_SECONDS = 180.0
GRACE_SECONDS = 15.0
RESTART_SECONDS = 1.0
# Of one process, until it has answered for the first time.
START_DEATHS_MAX = 4
WRONG_SETTING = 2
LOG_CHECK_SECONDS = 10.0
INTERRUPTED = 130


@dataclass(frozen=True)
class Options:
    """How to start. `replicas` counts the processes of a service, 1 unless said; `meta_url` None: the simulator."""

    state_dir: Path
    replicas: Mapping[str, int] = field(default_factory=dict)
    empty: bool = False
    meta_url: str | None = None

    def __post_init__(self) -> None:
        for name, count in self.replicas.items():
            if name not in SERVICES or not 1 <= count <= 16:
                raise WrongUseError(f"--replicas {name}={count}: a service ({', '.join(SERVICES)}) and 1 to 16")
        if self.meta_url is not None and not _is_http_url(self.meta_url):
            raise WrongUseError(f"--meta-url {self.meta_url}: write it as https://graph.example.com")


def _is_http_url(text: str) -> bool:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0 and not re.search(r"\s", text)


class Stack:
    """One run of everything on one state directory, which it holds until `stop`."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options = options
        self._progress = progress
        self._state = StateDir(options.state_dir)
        self._lock = self._state.lock()
        self._janitor = Janitor(self._lock)
        self._kafka = Kafka(options.state_dir, self._janitor)
        self._postgres = Postgres(options.state_dir, self._janitor)
        self._caller = settings_of_caller(os.environ)
        self._credentials = make_credentials(self._state, self._caller)
        self._replicas = {
            service: [service, *(f"{service}-{n}" for n in range(2, options.replicas.get(service, 1) + 1))]
            for service in SERVICES
        }
        names = [name for replicas in self._replicas.values() for name in replicas]
        self._ports = self._state.ports("meta", *names)
        self._databases: dict[str, str] = {}
        self._processes: dict[str, Process] = {}
        self._killed = False

    @property
    def meta_url(self) -> str:
        return self._options.meta_url or f"http://127.0.0.1:{self._ports['meta']}"

    @property
    def service_urls(self) -> dict[str, str]:
        return {service: f"http://127.0.0.1:{self._ports[service]}" for service in SERVICES}

    async def start(self) -> None:
        """Returns when everything answers and stack.json is written. Raises StackError."""
        (self._state.path / "stack.json").unlink(missing_ok=True)
        kafka_ready, postgres_ready = asyncio.Event(), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._start_kafka(kafka_ready))
            tasks.create_task(self._start_postgres(postgres_ready))
            if self._options.meta_url is None:
                tasks.create_task(self._start_simulator())
            for service in SERVICES:
                tasks.create_task(self._start_service(service, kafka_ready, postgres_ready))
        if self._options.meta_url is None and not self._options.empty:
            with self._progress.step("demo workspace"):
                await self._make_demo_workspace()
        self._write_stack_json()

    async def watch(self) -> None:
        """Starts again what dies, for ever."""
        async with asyncio.TaskGroup() as tasks:
            for server in (self._kafka, self._postgres):
                tasks.create_task(self._watch_server(server))
            for name in self._processes:
                tasks.create_task(self._watch_process(name))
            tasks.create_task(self._bound_logs())

    async def stop(self) -> None:
        """Services first (15 s), then Kafka, then PostgreSQL; after `kill` all at once."""
        (self._state.path / "stack.json").unlink(missing_ok=True)
        await asyncio.gather(*[process.stop(GRACE_SECONDS) for process in self._processes.values()])
        await self._kafka.stop()
        await self._postgres.stop()
        self._janitor.close()
        os.close(self._lock)

    def kill(self) -> None:
        self._killed = True
        for process in self._all_processes():
            process.signal(signal.SIGKILL)

    @property
    def killed(self) -> bool:
        return self._killed

    def _all_processes(self) -> list[Process]:
        servers = [server.process for server in (self._kafka, self._postgres) if server.started]
        return [*self._processes.values(), *servers]

    async def _start_kafka(self, ready: asyncio.Event) -> None:
        with self._progress.step("Kafka"):
            await asyncio.gather(self._kafka.start(), self._deploy())
        with self._progress.step("topics"):
            await (await self._deploy()).create_topics(self._kafka.bootstrap)
        ready.set()

    async def _start_postgres(self, ready: asyncio.Event) -> None:
        with self._progress.step("PostgreSQL"):
            await self._postgres.start()
            for service in SERVICES:
                self._databases[service] = await self._postgres.ensure_database(module_of(service))
        ready.set()

    async def _start_simulator(self) -> None:
        with self._progress.step("meta simulator"):
            self._spawn("meta")
            await self._until_answers("meta", f"{self.meta_url}/_sim/scenarios")

    async def _start_service(self, service: str, kafka: asyncio.Event, postgres: asyncio.Event) -> None:
        await postgres.wait()
        await (await self._deploy()).migrate(service, self._databases[service])
        await kafka.wait()
        with self._progress.step(service):
            for name in self._replicas[service]:
                self._spawn(name)
            for name in self._replicas[service]:
                await self._until_answers(name, f"http://127.0.0.1:{self._ports[name]}/readyz")

    @staticmethod
    async def _deploy() -> ModuleType:
        # A second's import, in a thread while Kafka starts.
        return await asyncio.to_thread(importlib.import_module, "local_stack.deploy")

    def _environment(self, name: str) -> dict[str, str]:
        """`name` is a process' name: a service, or a further replica of it."""
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": self._kafka.bootstrap,
            "DATABASE_URL": self._databases[self._service_of(name)],
            "HTTP_HOST": "127.0.0.1",
            "HTTP_PORT": str(self._ports[name]),
            "REPLICA": name,
        }
        common = environment(self._credentials, self.meta_url, self.service_urls, self._caller)
        return common | {PREFIX + setting: value for setting, value in own.items()}

    def _spawn(self, name: str) -> None:
        self._processes[name] = Process(self._command(name), self._state.logs, self._janitor)

    def _command(self, name: str) -> Command:
        if name == "meta":
            where = ["--host", "127.0.0.1", "--port", str(self._ports[name]), "--seed", self._write_seed()]
            return Command(name, [sys.executable, "-m", "meta_simulator", *where])
        module = module_of(self._service_of(name))
        return Command(name, [sys.executable, "-m", module, "serve"], env=self._environment(name))

    def _service_of(self, name: str) -> str:
        return next(service for service in SERVICES if name in self._replicas[service])

    async def _until_answers(self, name: str, url: str) -> None:
        """What dies meanwhile is started again, as later: a machine under load may not give it what it needs in time.
        A wrong setting (exit code 2) would be as wrong again."""
        deadline = time.monotonic() + READY_SECONDS
        deaths = 0
        told = "no answer"
        async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
            while True:
                if (code := self._processes[name].exit_code) is not None:
                    deaths += 1
                    if code == WRONG_SETTING:
                        raise WrongUseError(f"{name} can't start: {last_line(self._processes[name].log)}")
                    if deaths > START_DEATHS_MAX:
                        self._processes[name].check_alive()
                    await self._start_again(name, code)
                with contextlib.suppress(httpx.TransportError):
                    answer = await client.get(url)
                    if answer.is_success:
                        return
                    told = answer.text[:500]
                if time.monotonic() > deadline:
                    log = self._processes[name].log
                    raise StackError(f"{name} is not ready after {READY_SECONDS:.0f} s; see {log}; it says: {told}")
                await asyncio.sleep(0.1)

    async def _start_again(self, name: str, code: int) -> None:
        self._progress.say(f"{name} ended with code {code} (see {self._processes[name].log}), starting it again")
        await asyncio.sleep(RESTART_SECONDS)
        self._spawn(name)

    def _write_seed(self) -> str:
        """The simulator keeps nothing itself: it reads this again at each start."""
        seed = demo.simulator_seed(
            access_token=self._state.secret("demo_access_token"),
            app_secret=self._credentials.meta_app_secret,
            webhook_url=f"{self.service_urls['webhook-ingest']}/webhooks/meta",
        )
        self._state.write_json("simulator.json", {} if self._options.empty else seed)
        return str(self._state.path / "simulator.json")

    async def _make_demo_workspace(self) -> None:
        headers = {"Authorization": f"Bearer {self._credentials.admin_token}"}
        async with httpx.AsyncClient(headers=headers, timeout=30, trust_env=False) as client:
            await demo.make_workspace(
                client,
                self.service_urls["dispatcher"],
                self.service_urls["billing"],
                access_token=self._state.secret("demo_access_token"),
            )

    async def _watch_process(self, name: str) -> None:
        while True:
            await self._start_again(name, await self._processes[name].wait())
            self._write_stack_json()

    async def _watch_server(self, server: Server) -> None:
        while True:
            name, code = server.process.name, await server.process.wait()
            self._progress.say(f"{name} ended with code {code}, starting it again")
            before = (self._kafka.bootstrap, self._postgres.url)
            await self._restart(server)
            self._write_stack_json()
            if before != (self._kafka.bootstrap, self._postgres.url):
                await self._move_services()

    async def _restart(self, server: Server) -> None:
        while True:
            await asyncio.sleep(RESTART_SECONDS)
            try:
                return await server.start()
            except StackError as error:
                self._progress.say(str(error))

    async def _move_services(self) -> None:
        """Its port was taken meanwhile: the services learn the new one by a restart."""
        for service in SERVICES:
            self._databases[service] = await self._postgres.ensure_database(module_of(service))
        for name, process in self._processes.items():
            if name != "meta":
                process.signal(signal.SIGTERM)

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_SECONDS)
            for process in self._all_processes():
                process.bound_log()

    def _write_stack_json(self) -> None:
        pids = {service: [self._processes[name].pid for name in self._replicas[service]] for service in SERVICES}
        if "meta" in self._processes:
            pids["meta"] = [self._processes["meta"].pid]
        stack = {
            "kafka": self._kafka.bootstrap,
            "postgres": self._postgres.url,
            "meta": self.meta_url,
            "services": self.service_urls,
            "replicas": {
                service: [f"http://127.0.0.1:{self._ports[name]}" for name in names]
                for service, names in self._replicas.items()
            },
            "admin_token": self._credentials.admin_token,
            "meta_app_id": META_APP_ID,
            "meta_app_secret": self._credentials.meta_app_secret,
            "meta_verify_token": self._credentials.meta_verify_token,
            "shopify_secret": self._credentials.shopify_secret,
            "pids": {"kafka": [self._kafka.process.pid], "postgres": [self._postgres.process.pid], **pids},
        }
        self._state.write_json("stack.json", stack)


def how_to_log_in(state_dir: Path) -> str:
    """Where the token stands, never the token: what we say may end in a log."""
    return f"log in with the admin_token of {state_dir / 'stack.json'}"


async def up(options: Options, progress: Progress, make: Callable[[Options, Progress], Stack] = Stack) -> int:
    """Runs until SIGINT, SIGTERM or SIGHUP; returns the exit code. Raises StackError if it can't start."""
    stack = make(options, progress)
    work = asyncio.create_task(_work(stack, options, progress))
    stop_on_signals(stack, work, progress)
    try:
        await asyncio.wait([work])
    finally:
        await stack.stop()
    if work.cancelled():
        return INTERRUPTED if stack.killed else 0
    error = work.exception()
    assert error is not None, "the stack is watched until it is stopped"
    raise first_of(error)


def stop_on_signals(stack: Stack, work: asyncio.Task[int] | asyncio.Task[None], progress: Progress) -> None:
    """The first one cancels the work, a second one kills the stack."""

    def interrupt() -> None:
        if work.cancelling() or work.done():
            stack.kill()
            return
        work.cancel()
        progress.say("stopping; a second Ctrl-C kills")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, interrupt)


async def _work(stack: Stack, options: Options, progress: Progress) -> None:
    started = time.monotonic()
    await stack.start()
    progress.say(f"ready after {time.monotonic() - started:.1f} s: {options.state_dir / 'stack.json'}")
    progress.say(f"pages: {stack.service_urls['message-log']}   Ctrl-C stops")
    progress.say(how_to_log_in(options.state_dir))
    await stack.watch()


def first_of(error: BaseException) -> BaseException:
    """What a group of exceptions begins with, or the exception itself."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
