"""`sendwhy up`'s stack, wired for faults: each process reaches Kafka, PostgreSQL and Meta through a proxy of its own.

A process of its own, so that it can be killed with all that it started:
`python tests/faults/stack.py STATE_DIR REPLICAS META_URL`. It is told by files in STATE_DIR/control (see `Control`).
"""

import argparse
import asyncio
import json
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from urllib.parse import urlsplit

from local_stack.errors import StackError
from local_stack.janitor import Janitor
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from local_stack.process import Command, Process
from local_stack.progress import Progress
from local_stack.server import Server
from local_stack.services import PREFIX, SERVICES
from local_stack.state import StateDir
from local_stack.supervisor import Options, Stack, up
from toxiproxy import Link, link_name

# Log of the write-ahead: small enough to be filled, large enough for what a busy machine's checkpoints leave behind.
WAL_MOUNT = "wal"
WAL_SETTINGS = {"max_wal_size": "128MB", "min_wal_size": "32MB", "checkpoint_timeout": "60s"}
HELD_SECONDS = 0.1
SIMULATOR = "simulator"


def replicas_of(service: str, count: int) -> list[str]:
    """Names of processes, as local_stack.supervisor has them."""
    return [service, *(f"{service}-{number}" for number in range(2, count + 1))]


def choose_links(state: StateDir, count: int) -> list[Link]:
    """The proxies for `count` processes of each service. Chosen once, before anything listens; `read_links` has them
    afterwards."""
    wanted = [
        (client, server)
        for service in SERVICES
        for client in replicas_of(service, count)
        for server in ("kafka", "postgres", "meta")
        if server != "meta" or service == "dispatcher"
    ]
    names = [link_name(*each) for each in wanted]
    ports = state.ports("postgres", SIMULATOR, *names, *(_listener_port(client) for client, _ in wanted))

    def upstream(client: str, server: str) -> int:
        return ports[{"kafka": _listener_port(client), "meta": SIMULATOR}.get(server, server)]

    links = [
        Link(client, server, ports[name], upstream(client, server))
        for (client, server), name in zip(wanted, names, strict=True)
    ]
    state.write_json("links.json", {link.name: asdict(link) for link in links})
    return links


def read_links(state: StateDir) -> list[Link]:
    return [Link(**link) for link in state.read_json("links.json").values()]


def _listener_port(client: str) -> str:
    return f"kafka_of_{client}"


class Control:
    """What the rig tells a running stack, by files: they outlive a kill of either.

    `held`: that process or server isn't started again while it is there. `environment`: what a process is told beside
    the rest from its next start on.
    """

    def __init__(self, state_dir: Path) -> None:
        self._folder = state_dir / "control"
        self._folder.mkdir(parents=True, exist_ok=True)

    def hold(self, name: str) -> None:
        (self._folder / f"{name}.hold").touch()

    def release(self, name: str) -> None:
        (self._folder / f"{name}.hold").unlink(missing_ok=True)

    def is_held(self, name: str) -> bool:
        return (self._folder / f"{name}.hold").exists()

    def tell(self, name: str, environment: dict[str, str]) -> None:
        (self._folder / f"{name}.json").write_text(json.dumps(environment))

    def forget(self, name: str) -> None:
        (self._folder / f"{name}.json").unlink(missing_ok=True)

    def environment(self, name: str) -> dict[str, str]:
        try:
            told: dict[str, str] = json.loads((self._folder / f"{name}.json").read_bytes())
        except FileNotFoundError:
            return {}
        return told


class ListeningKafka(Kafka):
    """A broker with a listener for each client, which names the client's proxy as its address."""

    def __init__(self, state_dir: Path, janitor: Janitor, links: Iterable[Link]) -> None:
        super().__init__(state_dir, janitor)
        self._links = [link for link in links if link.server == "kafka"]

    def properties(self) -> str:
        names = [f"VIA{number}" for number in range(len(self._links))]
        places = list(zip(names, self._links, strict=True))
        more = {
            "listeners": [f"{name}://127.0.0.1:{link.upstream}" for name, link in places],
            "advertised.listeners": [f"{name}://127.0.0.1:{link.listen}" for name, link in places],
            "listener.security.protocol.map": [f"{name}:PLAINTEXT" for name in [*names, "CONTROLLER"]],
        }
        lines = super().properties().splitlines()
        for number, line in enumerate(lines):
            key, _, value = line.partition("=")
            lines[number] = f"{key}={','.join([value, *more[key]])}" if key in more else line
        return "\n".join([*lines, "num.network.threads=1", ""])


class RoomyPostgres(Postgres):
    """With its write-ahead log on the small file system that the rig mounted, where it could."""

    async def prepare(self) -> None:
        await super().prepare()
        mount, log = self.state.path / WAL_MOUNT, self.state.path / "postgres" / "data" / "pg_wal"
        if mount.exists() and not log.is_symlink():
            shutil.copytree(log, mount / "pg_wal", dirs_exist_ok=True)
            for path in (mount / "pg_wal", *(mount / "pg_wal").rglob("*")):
                os.chown(path, log.stat().st_uid, log.stat().st_gid)
            (mount / "pg_wal").chmod(0o700)
            shutil.rmtree(log)
            log.symlink_to(mount / "pg_wal")

    def command(self) -> Command:
        usual = super().command()
        more = [part for name, value in WAL_SETTINGS.items() for part in ("-c", f"{name}={value}")]
        return Command(usual.name, [*usual.argv, *more], usual.env, usual.user, usual.stop_signal, usual.crash_signal)


class FaultStack(Stack):
    """`links`: the proxies. Each life of a process has a log of its own, so that none is lost."""

    def __init__(self, options: Options, progress: Progress, links: Iterable[Link]) -> None:
        super().__init__(options, progress)
        self._links = {link.name: link for link in links}
        self._kafka = ListeningKafka(options.state_dir, self._janitor, self._links.values())
        self._postgres = RoomyPostgres(options.state_dir, self._janitor)
        self._control = Control(options.state_dir)

    def _environment(self, name: str) -> dict[str, str]:
        told = super()._environment(name)
        database = urlsplit(told[PREFIX + "DATABASE_URL"])
        own = {
            "KAFKA_BOOTSTRAP_SERVERS": f"127.0.0.1:{self._port(name, 'kafka')}",
            "DATABASE_URL": database._replace(
                netloc=f"{database.netloc.rpartition(':')[0]}:{self._port(name, 'postgres')}", query="sslmode=disable"
            ).geturl(),
        }
        if link_name(name, "meta") in self._links:
            own["META_GRAPH_URL"] = f"http://127.0.0.1:{self._port(name, 'meta')}"
        return told | {PREFIX + setting: value for setting, value in own.items()} | self._control.environment(name)

    def _port(self, client: str, server: str) -> int:
        return self._links[link_name(client, server)].listen

    def _spawn(self, name: str) -> None:
        command = self._command(name)
        lives = len(list(self._state.logs.glob(f"{name}~*.log")))
        one = Command(f"{name}~{lives + 1}", command.argv, command.env)
        self._processes[name] = Process(one, self._state.logs, self._janitor)

    async def _start_again(self, name: str, code: int) -> None:
        await self._until_released(name)
        await super()._start_again(name, code)

    async def _restart(self, server: Server) -> None:
        await self._until_released(server.process.name)
        await super()._restart(server)

    async def _until_released(self, name: str) -> None:
        while self._control.is_held(name):
            await asyncio.sleep(HELD_SECONDS)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("state_dir", type=Path)
    parser.add_argument("replicas", type=int)
    parser.add_argument("meta_url")
    told = parser.parse_args()
    options = Options(told.state_dir, dict.fromkeys(SERVICES, told.replicas), meta_url=told.meta_url)
    links = read_links(StateDir(told.state_dir))

    def make(options: Options, progress: Progress) -> Stack:
        return FaultStack(options, progress, links)

    try:
        return asyncio.run(up(options, Progress(), make))
    except StackError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
