"""How long each service takes from its start until it is ready, and what it holds then: `make bench ARGS=starts`.

Kafka and PostgreSQL run, topics and tables are there, nothing else runs: each service is started some times, one after
the other, with the settings of `sendwhy up`. Aims: ready within 3 s, less than 150 MB (at load: `make bench` tells).
"""

import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from local_stack import deploy
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from local_stack.services import PREFIX, SERVICES, environment, make_credentials, module_of
from processes import bytes_of, cpu_of
from report import console
from rich.table import Table

TIMES, LOOK_SECONDS = 3, 0.02
AIM_SECONDS, AIM_MB = 3.0, 150


@dataclass(frozen=True)
class Start:
    """The best of some starts: seconds until /readyz answers 200, CPU seconds until then, MB then."""

    service: str
    seconds: float
    cpu: float
    megabytes: float


async def starts() -> list[Start]:
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres:
        await deploy.create_topics(kafka.bootstrap)
        credentials = make_credentials(kafka.state, {})
        common = environment(credentials, "http://127.0.0.1:9", {}, {})
        found = []
        for service in SERVICES:
            database = await postgres.ensure_database(module_of(service))
            await deploy.migrate(service, database)
            port = kafka.state.ports(service)[service]
            own = {
                "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
                "DATABASE_URL": database,
                "HTTP_PORT": str(port),
                "REPLICA": service,
            }
            settings = common | {PREFIX + name: value for name, value in own.items()}
            taken = [await _start(service, settings, port) for _ in range(TIMES)]
            found.append(min(taken, key=lambda start: start.seconds))
        return found


async def _start(service: str, settings: Mapping[str, str], port: int) -> Start:
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module_of(service), "serve", env=settings, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        await _ready(f"http://127.0.0.1:{port}/readyz")
        seconds, watched = time.monotonic() - started, psutil.Process(process.pid)
        return Start(service, seconds, cpu_of(watched), bytes_of(watched) / 2**20)
    finally:
        process.terminate()
        await process.wait()


async def _ready(url: str) -> None:
    async with httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(url)).is_success:
                    return
            except httpx.TransportError:
                pass
            await asyncio.sleep(LOOK_SECONDS)


def show(found: list[Start]) -> None:
    load = os.getloadavg()[0]
    title = f"The best of {TIMES} starts each; aims: {AIM_SECONDS:.0f} s, {AIM_MB} MB; load average {load:.0f}"
    table = Table("service", "ready after s", "CPU s", "MB", title=title)
    for one in found:
        table.add_row(one.service, f"{one.seconds:.2f}", f"{one.cpu:.2f}", f"{one.megabytes:.0f}")
    console.print(table)


def told(found: list[Start]) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]
