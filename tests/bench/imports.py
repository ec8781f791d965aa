"""What an import costs: rows per second and the peak memory of consent, for a small file and a large one.

    .venv/bin/python tests/bench/imports.py --rows 10000 1000000

Consent runs alone on real Kafka and PostgreSQL, a new process for each file; then the same file comes a second time,
which must change nothing. Figures are printed, never asserted: this machine is shared.
"""

import argparse
import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
from local_stack.kafka import Kafka
from local_stack.postgres import Postgres
from rich.console import Console
from rich.table import Table

PORT, TOKEN, WORKSPACE = 21900, "bench-admin-token", "bench"
HEADERS = {"authorization": f"Bearer {TOKEN}"}
IMPORTS = f"http://127.0.0.1:{PORT}/v1/workspaces/{WORKSPACE}/contacts/import"
PIECE_ROWS = 5_000
console = Console(width=120)


def pieces(rows: int) -> Iterator[bytes]:
    """A list as a shop exports it; every thousandth row is bad."""
    yield b"Customer ID;Phone Number;Full name;E-Mail;Accepts Marketing;Source;Proof\r\n"
    for start in range(0, rows, PIECE_ROWS):
        numbers = range(start, min(start + PIECE_ROWS, rows))
        yield "".join(line(i, contact_id="" if i % 1000 == 999 else f"{i}") for i in numbers).encode()


def line(i: int, *, contact_id: str) -> str:
    mail = f"ines.{i}@example.com"
    return f"{contact_id};+5255{10_000_000 + i};Inés Muñoz {i};{mail};yes;checkout;form {i}\r\n"


async def body(rows: int) -> AsyncIterator[bytes]:
    for piece in pieces(rows):
        yield piece


@contextlib.asynccontextmanager
async def serving(environment: dict[str, str]) -> AsyncIterator[psutil.Process]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "consent", "serve", env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        async with httpx.AsyncClient() as http:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get(f"http://127.0.0.1:{PORT}/readyz")).is_success:
                        break
                await asyncio.sleep(0.1)
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


def peak(process: psutil.Process) -> int:
    """The most memory that the process ever held (VmHWM), in bytes."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


async def take(http: httpx.AsyncClient, rows: int) -> Any:
    answer = await http.post(IMPORTS, content=body(rows), headers=HEADERS | {"content-type": "text/csv"})
    answer.raise_for_status()
    return answer.json()


async def measure(environment: dict[str, str], rows: int, table: Table) -> None:
    async with serving(environment) as process, httpx.AsyncClient(timeout=None) as http:
        idle = peak(process)
        for name in ("first", "again"):
            started, cpu = time.monotonic(), sum(process.cpu_times()[:2])
            view = await take(http, rows)
            seconds, cpu = time.monotonic() - started, sum(process.cpu_times()[:2]) - cpu
            table.add_row(
                f"{rows:,} {name}",
                f"{view['bytes_total'] / 1e6:.1f}",
                f"{view['unchanged']:,}",
                f"{view['refused_count']:,}",
                f"{seconds:.1f}",
                f"{rows / seconds:,.0f}",
                f"{cpu / rows * 1e6:.0f}",
                f"{idle / 1e6:.0f}",
                f"{peak(process) / 1e6:.0f}",
            )


async def kill(environment: dict[str, str], rows: int) -> None:
    """kill -9 in the middle, and what the import says afterwards."""
    headers = {"content-type": "text/csv", "prefer": "respond-async"}
    async with httpx.AsyncClient(timeout=None, headers=HEADERS) as http:
        async with serving(environment) as process:
            answer = await http.post(IMPORTS, content=body(rows), headers=headers)
            address = f"http://127.0.0.1:{PORT}{answer.headers['location']}"
            while (view := (await http.get(address)).json())["read"] < rows // 3:
                await asyncio.sleep(0.05)
            process.send_signal(signal.SIGKILL)
        async with serving(environment):
            started = time.monotonic()
            while (view := (await http.get(address)).json())["state"] == "running":
                await asyncio.sleep(0.2)
            seconds = time.monotonic() - started
            console.print(
                f"killed after {view['read']:,} of {rows:,} rows: {view['state']} {seconds:.0f} s after restart"
            )
            again = await take(http, rows)
            console.print(f"again: {again['imported']:,} imported, of these {again['unchanged']:,} unchanged")


async def environment_of(kafka: Kafka, postgres: Postgres, database: str) -> dict[str, str]:
    """The settings of a consent with a database of its own."""
    settings = {
        "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap,
        "DATABASE_URL": await postgres.ensure_database(database),
        "HTTP_PORT": str(PORT),
        "API_TOKENS": f"{TOKEN}:admin:*",
        "PRIVACY_KEY": "bench-privacy-key-0123456789",
    }
    environment = os.environ | {f"SENDWHY_{name}": value for name, value in settings.items()}
    await run(environment, "consent", "migrate")
    return environment


async def run(environment: dict[str, str], *arguments: str) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", *arguments, env=environment, stderr=asyncio.subprocess.DEVNULL
    )
    assert await process.wait() == 0


async def main(counts: list[int]) -> None:
    table = Table("rows", "MB", "unchanged", "refused", "s", "rows/s", "CPU µs/row", "idle RSS MB", "peak RSS MB")
    state = Path(tempfile.mkdtemp(prefix="sendwhy-bench-"))
    async with Kafka(state) as kafka, Postgres(state) as postgres:
        await run(os.environ | {"SENDWHY_KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap}, "sendwhy", "topics")
        for number, rows in enumerate(counts):
            await measure(await environment_of(kafka, postgres, f"consent_{number}"), rows, table)
        await kill(await environment_of(kafka, postgres, "consent_kill"), 30_000)
    console.print(table)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 1_000_000])
    asyncio.run(main(parser.parse_args().rows))
